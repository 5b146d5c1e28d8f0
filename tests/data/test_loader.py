"""The stream of batches: the same for any number of workers, from any state, at any sequence length."""

import itertools
import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from tiny_run import MICRO_BATCH_TOKENS, SEQUENCE_LENGTH, same, sentences

from modernbert.batch import IGNORE
from modernbert.data import LoaderState, MlmBatches
from modernbert.errors import DataError
from modernbert.text.bpe import train_tokenizer
from modernbert.text.build import build_shards
from modernbert.text.shards import Shards
from modernbert.text.tokenizer import load_tokenizer, special_ids


def batches_of(shards, **changes):
    options = {
        "sequence_length": SEQUENCE_LENGTH, "micro_batch_tokens": MICRO_BATCH_TOKENS, "mask_rate": 0.3, "seed": 5,
    }  # fmt: skip
    return MlmBatches({"text": shards}, **(options | changes))


def documents_of(batch):
    """The ids of each sequence as they were before masking."""
    ids = torch.where(batch.labels_T == IGNORE, batch.input_ids_T, batch.labels_T)
    return [part.tolist() for part in ids.split(batch.lengths())]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(shards, num_workers):
    with_none = list(itertools.islice(batches_of(shards).stream(), 40))
    stream = batches_of(shards).stream(num_workers=num_workers)
    with_some = list(itertools.islice(stream, 40))
    stream.close()
    for (batch, state), (expected, expected_state) in zip(with_some, with_none, strict=True):
        assert same(batch, expected)
        assert state == expected_state


def test_the_stream_goes_on_from_any_state_even_with_another_number_of_workers(shards):
    batches = batches_of(shards)
    unbroken = list(itertools.islice(batches.stream(), 70))  # over 1.5 epochs
    for stopped_behind in range(50):
        state = LoaderState.from_dict(json.loads(json.dumps(unbroken[stopped_behind][1].to_dict())))
        num_workers = 2 if stopped_behind in (7, 40) else 0
        resumed = batches.stream(state, num_workers=num_workers)
        for batch, after in itertools.islice(resumed, 3 if num_workers == 0 else 20):
            stopped_behind += 1
            assert same(batch, unbroken[stopped_behind][0])
            assert after == unbroken[stopped_behind][1]
        resumed.close()


def test_a_fresh_loader_goes_on_like_the_one_that_stopped(shards):
    unbroken = list(itertools.islice(batches_of(shards).stream(), 12))
    again = batches_of(shards).stream(unbroken[5][1])
    assert all(same(next(again)[0], expected) for expected, _ in unbroken[6:])


def test_workers_end_with_the_stream(shards):
    stream = batches_of(shards).stream(num_workers=2)
    next(stream)
    assert len(multiprocessing.active_children()) >= 2
    stream.close()
    del stream
    assert not multiprocessing.active_children()


def test_a_loader_draws_nothing_from_the_runs_random_numbers(shards):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    np_before = pickle.dumps(np.random.get_state())  # noqa: NPY002 - the global one is what must stay
    for num_workers in (0, 1):
        stream = batches_of(shards).stream(num_workers=num_workers)
        next(stream)
        stream.close()
    list(batches_of(shards, split="heldout").once())
    assert torch.equal(torch.get_rng_state(), before)
    assert pickle.dumps(np.random.get_state()) == np_before  # noqa: NPY002


def test_every_sequence_stands_between_cls_and_sep_and_holds_no_other(shards):
    special = special_ids(load_tokenizer(shards))
    for batch, _ in itertools.islice(batches_of(shards).stream(), 30):
        for ids in documents_of(batch):
            assert ids[0] == special.cls and ids[-1] == special.sep
            assert not set(ids[1:-1]) & special.never_masked_or_drawn
            assert 3 <= len(ids) <= SEQUENCE_LENGTH


def test_a_batch_describes_its_documents(shards):
    for batch, _ in itertools.islice(batches_of(shards).stream(), 30):
        assert batch.num_tokens <= MICRO_BATCH_TOKENS
        assert batch.max_seqlen == max(batch.lengths())
        assert (batch.positions_T == 0).sum() == batch.num_documents
        assert batch.labels_T.shape == batch.input_ids_T.shape
        assert batch.cu_seqlens.dtype == torch.int32 and batch.input_ids_T.dtype == torch.int64


def whole_split(shards, split, length=SEQUENCE_LENGTH):
    """Each sequence that a split gives, worked out document by document."""
    opened, special = Shards.open(shards, split), special_ids(load_tokenizer(shards))
    content = length - 2
    return sorted(
        [special.cls, *opened.tokens(document, start, start + content).tolist(), special.sep]
        for document in range(len(opened))
        for start in range(0, int(opened.lengths[document]), content)
    )


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_once_shows_the_whole_split_once(shards, split):
    batches = list(batches_of(shards, split=split).once())
    assert sorted(ids for batch in batches for ids in documents_of(batch)) == whole_split(shards, split)
    assert all(batch.num_tokens >= 0.9 * MICRO_BATCH_TOKENS for batch in batches[:-3])


def test_once_gives_the_same_masks_every_time(shards):
    batches = batches_of(shards, split="heldout")
    assert all(same(a, b) for a, b in zip(batches.once(), batches.once(), strict=True))


def test_the_sequence_length_changes_without_building_again(shards):
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    for length in (3, 8, 32, 64, 1000):
        found = batches_of(shards, sequence_length=length, micro_batch_tokens=max(256, 2 * length)).once()
        assert sorted(ids for batch in found for ids in documents_of(batch)) == whole_split(shards, "train", length)
    assert {path.name: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_the_second_epoch_shows_the_same_text_in_another_order_under_other_masks(shards):
    batches = batches_of(shards)
    size = len(batches.mixture.pieces)
    epochs = [batches[np.arange(start, start + size), 0.3] for start in (0, size)]
    first, second = (documents_of(epoch) for epoch in epochs)
    assert sorted(first) == sorted(second) and first != second
    masks = [
        dict(zip(map(tuple, documents_of(epoch)), epoch.labels_T.split(epoch.lengths()), strict=True))
        for epoch in epochs
    ]
    long = [ids for ids in masks[0] if len(ids) == SEQUENCE_LENGTH]
    assert len(long) > 50
    assert sum(torch.equal(masks[0][ids], masks[1][ids]) for ids in long) <= 1


def test_seed_decides_order_and_masks(shards):
    first, same_seed, other = (next(batches_of(shards, seed=seed).stream())[0] for seed in (1, 1, 2))
    assert same(first, same_seed)
    assert documents_of(first) != documents_of(other)


def test_the_masking_rate_is_that_asked_for(shards):
    for rate in (0.15, 0.3):
        chosen = total = 0
        for batch in batches_of(shards, mask_rate=rate).once():
            chosen += int((batch.labels_T != IGNORE).sum())
            total += batch.num_tokens - 2 * batch.num_documents
        assert abs(chosen / total - rate) < 5 * (rate * (1 - rate) / total) ** 0.5


def test_a_state_is_small_plain_numbers(shards):
    *_, (_, state) = itertools.islice(batches_of(shards).stream(), 200)
    assert len(json.dumps(state.to_dict())) < 8000
    assert LoaderState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_an_empty_split_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(sentences(300)))
    tokenizer = train_tokenizer(sentences(300), vocab_size=320)
    build_shards(tmp_path / "a.txt", tokenizer=tokenizer, out=tmp_path / "out", heldout=0, documents="line")
    with pytest.raises(DataError, match=r"no documents in its heldout split .* build with another --heldout"):
        batches_of(tmp_path / "out", split="heldout")
