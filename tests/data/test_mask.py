"""Masking: the rates of the recipe, and ids that are never touched."""

import math

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from modernbert.batch import IGNORE
from modernbert.data.mask import Masker
from modernbert.text.shards import Shards
from modernbert.text.tokenizer import SpecialIds, load_tokenizer, num_ids, special_ids

VOCAB_SIZE = 100
UNTOUCHED = frozenset({90, 91, 92, 93, 94, 95, 96, 50})  # five special ones, two spare ones, a hole
SPECIAL = SpecialIds(unk=90, cls=91, sep=92, pad=93, mask=94, never_masked_or_drawn=UNTOUCHED)


def masker(rate=0.3, special=SPECIAL, vocab_size=VOCAB_SIZE):
    mask = Masker(special, vocab_size)
    return lambda ids, seed, position: mask(ids, rate, seed, position)


def random_ids(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)


def within_bounds(count, total, rate):
    """Five standard errors: a false alarm in 2 million."""
    return abs(count - rate * total) < 5 * math.sqrt(total * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3, 0.9])
def test_the_rate_is_that_of_ordinary_tokens_and_corruption_is_80_10_10(rate):
    ids = random_ids(400_000)
    corrupted, labels = masker(rate)(ids, seed=1, position=2)
    ordinary = ~np.isin(ids, list(UNTOUCHED))
    chosen = labels != IGNORE
    assert within_bounds(chosen.sum(), ordinary.sum(), rate)
    masked = chosen & (corrupted == SPECIAL.mask)
    kept = chosen & (corrupted == ids)
    drawn = chosen & ~masked & ~kept
    chance = 1 / (VOCAB_SIZE - len(UNTOUCHED))  # that the random token is the true one
    assert within_bounds(masked.sum(), chosen.sum(), 0.8)
    assert within_bounds(drawn.sum(), chosen.sum(), 0.1 * (1 - chance))
    assert within_bounds(kept.sum(), chosen.sum(), 0.1 + 0.1 * chance)


def test_random_tokens_are_drawn_evenly_from_all_ordinary_ones():
    ids = random_ids(1_000_000)
    corrupted, labels = masker(0.9)(ids, seed=0, position=0)
    drawn = corrupted[(labels != IGNORE) & (corrupted != SPECIAL.mask) & (corrupted != ids)]
    counts = np.bincount(drawn, minlength=VOCAB_SIZE)
    ordinary = [i for i in range(VOCAB_SIZE) if i not in UNTOUCHED]
    expected = len(drawn) / len(ordinary)
    assert counts[list(UNTOUCHED)].sum() == 0
    assert abs(counts[ordinary] - expected).max() < 6 * math.sqrt(expected)


def test_special_spare_and_missing_ids_are_never_masked_and_never_drawn():
    ids = random_ids(200_000)
    corrupted, labels = masker(0.99)(ids, seed=0, position=0)
    untouched = np.isin(ids, list(UNTOUCHED))
    assert (corrupted[untouched] == ids[untouched]).all()
    assert (labels[untouched] == IGNORE).all()
    new = corrupted[~untouched]
    assert set(new.tolist()) & UNTOUCHED == {SPECIAL.mask}


def test_what_is_not_chosen_is_as_it_was_and_has_no_label():
    ids = random_ids(10_000)
    before = ids.copy()
    corrupted, labels = masker()(ids, seed=0, position=0)
    assert (ids == before).all()
    assert (corrupted[labels == IGNORE] == ids[labels == IGNORE]).all()
    assert (labels[labels != IGNORE] == ids[labels != IGNORE]).all()
    assert corrupted.dtype == labels.dtype == np.int64


def test_id_zero_can_be_a_label():
    corrupted, labels = masker(0.5)(np.zeros(1000, dtype=np.int64), seed=0, position=0)
    assert (labels == 0).sum() > 400
    assert ((labels == 0) | (labels == IGNORE)).all()
    assert (corrupted == SPECIAL.mask).sum() > 300


def test_the_same_seed_and_position_give_the_same_masks_and_others_do_not():
    ids = random_ids(500)

    def at(seed, position):
        return tuple(masker()(ids, seed, position)[1].tolist())

    assert at(3, 4) == at(3, 4)
    assert len({at(seed, position) for seed in range(10) for position in range(10)}) == 100


def test_the_masks_of_a_position_do_not_depend_on_what_was_masked_before():
    mask = masker()
    ids = random_ids(500)
    mask(random_ids(37, seed=1), 0, 0)
    again = mask(ids, 0, 5)
    alone = masker()(ids, 0, 5)
    assert all((a == b).all() for a, b in zip(again, alone, strict=True))


def test_a_higher_rate_hides_what_a_lower_one_hides_and_more():
    ids = random_ids(2000)
    low, high = (masker(rate)(ids, 0, 5)[1] != IGNORE for rate in (0.15, 0.4))
    assert not (low & ~high).any() and high.sum() > 2 * low.sum()


def test_another_epoch_hides_other_tokens_of_the_same_text():
    # A piece's second showing stands at another position of the stream.
    ids, epoch = random_ids(500), 364
    first, second = (masker()(ids, 0, position)[1] for position in (7, 7 + epoch))
    both = ((first != IGNORE) & (second != IGNORE)).sum()
    assert (first != second).any()
    assert within_bounds(both, 500 * (1 - len(UNTOUCHED) / VOCAB_SIZE), 0.3**2)


@pytest.mark.parametrize("seed,position", [(0, 0), (2**63, 0), (0, 2**62)])
def test_large_seeds_and_positions_are_no_exception(seed, position):
    _, labels = masker()(random_ids(500), seed, position)
    assert 0 < (labels != IGNORE).sum() < 500


def test_every_kind_of_spare_id_of_a_real_tokenizer_is_left_alone(shards):
    tokenizer = Tokenizer.from_str(load_tokenizer(shards).to_str())
    tokenizer.add_special_tokens([AddedToken("[NEW]", special=True)])
    special = special_ids(tokenizer)
    names = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[NEW]", *(f"[unused{i}]" for i in range(16)))
    assert {tokenizer.token_to_id(name) for name in names} == special.never_masked_or_drawn
    ids = np.arange(num_ids(tokenizer)).repeat(200)
    corrupted, labels = Masker(special, num_ids(tokenizer))(ids, 0.9, 0, 0)
    assert not set(labels.tolist()) & special.never_masked_or_drawn
    assert set(corrupted[labels != IGNORE].tolist()) & special.never_masked_or_drawn == {special.mask}
    assert Shards.open(shards).vocab_size == num_ids(tokenizer) - 1
