"""The stream of labelled examples: each once an epoch, in steps of so many, whatever is resumed or shared."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.batch import Feature, pack_features, within
from modernbert.data.labelled import LabelledBatches
from modernbert.data.loader import LoaderState
from modernbert.errors import ConfigError


def features(lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [
        Feature(ids_T=draw.integers(5, 300, length).astype(np.int32), target=index % 3, example=index)
        for index, length in enumerate(lengths)
    ]


def batches(lengths=(3, 9, 4, 12, 5, 7, 2), *, batch_size=3, micro_batch_tokens=16, seed=1, **others):
    return LabelledBatches(
        {"": features(lengths), **others}, batch_size=batch_size, micro_batch_tokens=micro_batch_tokens, seed=seed
    )


def steps_of(stream, count, state=None, **share):
    """So many steps as lists of (batch, state)."""
    found, taken = [[]], stream.share(state, **share)
    while len(found) <= count:
        batch, behind = next(taken)
        found[-1].append((batch, behind))
        if behind.ends_step:
            found.append([])
    return found[:count]


def examples_in(stream, steps):
    """The numbers of the examples in some steps, in order."""
    states = [behind for step in steps for _, behind in step]
    return [found["document"] for state in states for found in stream.describe(state.positions)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=25), batch_size=st.integers(1, 8),
    micro_batch_tokens=st.integers(8, 64), seed=st.integers(0, 9),
)  # fmt: skip
def test_every_epoch_shows_each_example_once(lengths, batch_size, micro_batch_tokens, seed):
    stream = batches(lengths, batch_size=batch_size, micro_batch_tokens=micro_batch_tokens, seed=seed)
    per_epoch = -(-len(lengths) // batch_size)
    steps = steps_of(stream, 2 * per_epoch)
    for epoch in (steps[:per_epoch], steps[per_epoch:]):
        assert sorted(examples_in(stream, epoch)) == list(range(len(lengths)))
        tokens = sum(batch.num_tokens for step in epoch for batch, _ in step)
        assert tokens == stream.tokens_of(1) == sum(lengths)
        assert all(sum(batch.num_documents for batch, _ in step) <= batch_size for step in epoch)


def test_epochs_differ_in_order_and_seeds_do_too():
    lengths = range(1, 40)
    stream, other = batches(lengths), batches(lengths, seed=2)
    steps = steps_of(stream, 26)
    assert examples_in(stream, steps[:13]) != examples_in(stream, steps[13:])
    assert examples_in(stream, steps[:13]) != examples_in(other, steps_of(other, 13))


def test_a_step_is_cut_into_passes_within_the_budget():
    stream = batches((10, 10, 10, 40), batch_size=4, micro_batch_tokens=20)
    (step,) = steps_of(stream, 1)
    assert sum(batch.num_documents for batch, _ in step) == 4
    assert all(batch.num_tokens <= 20 or batch.num_documents == 1 for batch, _ in step)
    assert [behind.ends_step for _, behind in step] == [False] * (len(step) - 1) + [True]


def test_targets_follow_their_examples():
    stream = batches()
    for batch, behind in itertools.chain(*steps_of(stream, 5)):
        numbers = [found["document"] for found in stream.describe(behind.positions)]
        assert batch.targets_B.tolist() == [number % 3 for number in numbers]
        assert batch.num_targets == len(numbers)


def test_a_state_as_plain_data_brings_the_stream_back():
    stream = batches()
    steps = steps_of(stream, 9)
    state = LoaderState.from_dict(steps[3][-1][1].to_dict())
    again = steps_of(batches(), 5, state)
    for (expected, _), (found, _) in zip(itertools.chain(*steps[4:]), itertools.chain(*again), strict=True):
        assert torch.equal(expected.input_ids_T, found.input_ids_T)
        assert torch.equal(expected.targets_B, found.targets_B)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_read_each_step_between_them_and_each_has_a_part(num_ranks):
    alone = steps_of(batches(batch_size=4), 6)
    shared = [steps_of(batches(batch_size=4), 6, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    for expected, *found in zip(alone, *shared, strict=True):
        read = [[batch for batch, _ in step if batch is not None] for step in found]
        tokens = torch.cat([batch.input_ids_T for batch, _ in expected]).sort().values
        assert torch.equal(torch.cat([b.input_ids_T for own in read for b in own]).sort().values, tokens)
        num_examples = sum(batch.num_documents for batch, _ in expected)
        assert all(read) or num_examples < num_ranks
        for parts in zip(*found, strict=True):
            assert sum(batch is not None for batch, _ in parts) == 1


def test_several_tasks_take_turns_and_end_their_epochs_together():
    stream = batches((5,) * 20, batch_size=2, second=features((5,) * 10, seed=3))
    steps = steps_of(stream, 15)
    tasks = [step[0][0].task for step in steps]
    assert tasks.count("") == 10 and tasks.count("second") == 5
    assert stream.tokens_of(1) == 150 == steps[-1][-1][1].pack.tokens
    assert max(len(list(run)) for _, run in itertools.groupby(tasks)) <= 2


def test_a_state_of_other_examples_is_refused():
    _, behind = steps_of(batches(), 1)[0][-1]
    with pytest.raises(ConfigError, match="another --out"):
        next(batches((4, 5, 6)).share(behind))


def test_labels_at_tokens_and_targets_of_texts_are_packed_alike():
    tagged = [
        Feature(ids_T=np.array([1, 5, 6], dtype=np.int32), labels_T=np.array([-100, 0, 2])),
        Feature(ids_T=np.array([1, 7], dtype=np.int32), labels_T=np.array([-100, 1])),
    ]
    batch = pack_features(tagged, "tags")
    assert batch.labels_T.tolist() == [-100, 0, 2, -100, 1]
    assert (batch.num_targets, batch.targets_B, batch.task) == (3, None, "tags")
    several = pack_features([Feature(ids_T=np.array([3], dtype=np.int32), target=np.array([1.0, 0.0]))] * 2)
    assert several.targets_B.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert pack_features([Feature(ids_T=np.array([3], dtype=np.int32))]).num_targets == 0


def test_parts_keep_the_order_and_the_budget():
    found = list(within(features((4, 4, 9, 1, 1)), 8))
    assert [[feature.example for feature in part] for part in found] == [[0, 1], [2], [3, 4]]
