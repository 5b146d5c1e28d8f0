"""Packing: each token once, nothing cut that fits, hardly a gap, and no memory but its state."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.data.pack import NUM_SPECIALS, PackState, Pieces, in_order, pack
from modernbert.errors import ConfigError

LENGTH = 128


def log_normal(count, length=LENGTH, seed=0):
    """Documents as on the web: most short, some very long."""
    draw = np.random.default_rng(seed).lognormal(np.log(length / 2), 1.2, count)
    return np.maximum(1, draw).astype(np.int64)


def uniform(count, length=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(5, length - 1, count)


def endless(pieces):
    """Lengths at the positions of an unshuffled stream."""
    return lambda positions: pieces.lengths(positions % len(pieces))


def batches(document_lengths, budget, *, length=LENGTH, state=None, stop="epoch"):
    pieces = Pieces(document_lengths, length)
    stop = len(pieces) if stop == "epoch" else stop
    return pieces, pack(endless(pieces), budget, state or PackState(), longest=length, draw=in_order(stop))


@settings(deadline=None, max_examples=100)
@given(
    document_lengths=st.lists(st.integers(1, 300), min_size=1, max_size=400),
    length=st.integers(3, 90),
    budget_sequences=st.integers(1, 9),
    extra=st.integers(0, 20),
)
def test_each_token_is_shown_exactly_once_an_epoch(document_lengths, length, budget_sequences, extra):
    document_lengths = np.array(document_lengths)
    budget = budget_sequences * length + extra
    pieces, packed = batches(document_lengths, budget, length=length)
    seen = [np.zeros(count, dtype=int) for count in document_lengths]
    for positions, _ in packed:
        assert 0 < pieces.lengths(positions).sum() <= budget
        for document, start, stop in zip(*pieces.locate(positions), strict=True):
            assert 0 < stop - start <= length - NUM_SPECIALS
            seen[document][start:stop] += 1
    assert all((count == 1).all() for count in seen)


@settings(deadline=None, max_examples=100)
@given(document_lengths=st.lists(st.integers(1, 300), min_size=1, max_size=100), length=st.integers(3, 90))
def test_a_document_that_fits_stays_whole_and_a_longer_one_gives_full_pieces_but_the_last(document_lengths, length):
    content = length - NUM_SPECIALS
    pieces = Pieces(np.array(document_lengths), length)
    found = {}
    for document, start, stop in zip(*pieces.locate(np.arange(len(pieces))), strict=True):
        found.setdefault(int(document), []).append(int(stop - start))
    for document, total in enumerate(document_lengths):
        whole, rest = divmod(total, content)
        assert found[document] == [content] * whole + ([rest] if rest else [])
    assert pieces.lengths(np.arange(len(pieces))).max() <= length


def test_a_document_of_exactly_the_sequence_length_is_whole_and_one_more_token_is_a_piece_of_its_own():
    pieces = Pieces(np.array([LENGTH - 2, LENGTH - 1]), LENGTH)
    assert pieces.lengths(np.arange(3)).tolist() == [LENGTH, LENGTH, 3]
    assert pieces.share_cut() == {"documents": 0.5, "tokens": (LENGTH - 1) / (2 * LENGTH - 3)}


def test_what_is_cut_is_counted():
    assert Pieces(np.array([1, 10, 28]), 30).share_cut() == {"documents": 0.0, "tokens": 0.0}
    assert Pieces(np.array([10, 29, 61]), 30).share_cut() == {"documents": 2 / 3, "tokens": 0.9}
    lengths = log_normal(500)
    cut = [length for length in lengths.tolist() if length > LENGTH - 2]
    assert Pieces(lengths, LENGTH).share_cut() == {"documents": len(cut) / 500, "tokens": sum(cut) / lengths.sum()}


@pytest.mark.parametrize("draw", [log_normal, uniform])
@pytest.mark.parametrize("length", [64, 128, 1024])
def test_over_99_percent_of_a_budget_of_eight_sequences_is_filled(draw, length):
    budget = 8 * length
    pieces, packed = batches(draw(4000, length), budget, length=length, stop=None)
    filled = [pieces.lengths(positions % len(pieces)).sum() / budget for positions, _ in itertools.islice(packed, 300)]
    assert np.mean(filled) >= 0.99
    assert min(filled) >= 0.97


@pytest.mark.parametrize("budget_sequences", [1, 2, 8])
@pytest.mark.parametrize("awkward", [False, True])
def test_nothing_waits_for_ever(budget_sequences, awkward):
    # The awkward stream: some that fit beside nothing, and so many that fit better.
    lengths = np.where(np.arange(700) % 7 == 0, LENGTH - 2, 30) if awkward else uniform(700)
    budget = budget_sequences * LENGTH
    _, packed = batches(lengths, budget, stop=None)
    pulled_at, oldest = {}, 0
    ages = []
    for number, (positions, state) in enumerate(itertools.islice(packed, 1500)):
        for position in (*positions.tolist(), *state.pending):
            pulled_at.setdefault(position, number)
        ages += [number - pulled_at.pop(position) for position in positions.tolist()]
        assert min(positions) >= oldest
        oldest = min(state.pending, default=state.drawn[0])
        assert len(state.pending) < 512
    # Each batch takes the oldest, so a piece leaves before its pool has gone by.
    assert max(ages) <= 512


@pytest.mark.parametrize(("mean", "budget"), [(30, 65_536), (100, 65_536), (30, 16_384), (300, 98_304)])
def test_short_documents_fill_a_large_budget_too(mean, budget):
    lengths = np.random.default_rng(0).geometric(1 / mean, 60_000)
    pieces, packed = batches(lengths, budget, length=1024, stop=None)
    filled = [pieces.lengths(p % len(pieces)).sum() / budget for p, _ in itertools.islice(packed, 10)]
    assert min(filled) >= 0.999


@pytest.mark.parametrize("draw", [log_normal, uniform])
def test_going_on_from_any_state_is_going_on(draw):
    document_lengths = draw(900)
    _, packed = batches(document_lengths, 4 * LENGTH, stop=None)
    unbroken = list(itertools.islice(packed, 60))
    for stopped_behind in range(50):
        state = unbroken[stopped_behind][1]
        _, resumed = batches(document_lengths, 4 * LENGTH, state=state, stop=None)
        for (positions, after), (expected, expected_after) in zip(
            resumed, unbroken[stopped_behind + 1 :], strict=False
        ):
            assert positions.tolist() == expected.tolist()
            assert after == expected_after


def test_a_state_does_not_grow_with_what_was_consumed():
    _, packed = batches(uniform(50), 4 * LENGTH, stop=None)
    assert {len(state.pending) for _, state in itertools.islice(packed, 2000)} <= set(range(512))


def test_a_stop_ends_the_stream_after_everything_was_used_whatever_the_state():
    pieces, packed = batches(uniform(1500), 8 * LENGTH)
    unbroken = list(packed)
    assert sorted(position for positions, _ in unbroken for position in positions) == list(range(len(pieces)))
    assert unbroken[-1][1] == PackState((len(pieces),), (), int(pieces.lengths(np.arange(len(pieces))).sum()))
    _, resumed = batches(uniform(1500), 8 * LENGTH, state=unbroken[-3][1])
    assert [positions.tolist() for positions, _ in resumed] == [p.tolist() for p, _ in unbroken[-2:]]
    _, nothing_left = batches(uniform(1500), 8 * LENGTH, state=unbroken[-1][1])
    assert list(nothing_left) == []


def test_a_document_of_one_token():
    pieces, packed = batches(np.array([1]), LENGTH)
    assert [positions.tolist() for positions, _ in packed] == [[0]]
    assert pieces.lengths(np.array([0])).tolist() == [3]
    _, repeated = batches(np.array([1]), LENGTH, stop=None)
    assert len(next(repeated)[0]) == LENGTH // 3


def test_a_document_of_a_million_tokens():
    pieces, packed = batches(np.array([1_000_000, 7]), 8 * LENGTH)
    assert len(pieces) == -(-1_000_000 // (LENGTH - 2)) + 1
    covered = 0
    for positions, _ in packed:
        _, starts, stops = pieces.locate(positions)
        covered += int((stops - starts).sum())
        assert pieces.lengths(positions).sum() <= 8 * LENGTH
    assert covered == 1_000_007


def test_sequences_all_of_full_length_fill_the_budget_to_the_last_token():
    pieces, packed = batches(np.full(100, 10 * (LENGTH - 2)), 8 * LENGTH, stop=None)
    assert all(pieces.lengths(p % len(pieces)).sum() == 8 * LENGTH for p, _ in itertools.islice(packed, 100))


def test_a_budget_below_one_sequence_is_refused():
    _, packed = batches(uniform(10), LENGTH - 1)
    with pytest.raises(ConfigError, match="127 tokens cannot hold a sequence of 128; raise it"):
        next(packed)


@pytest.mark.parametrize("length", [-1, 0, 2])
def test_a_sequence_without_room_for_a_token_is_refused(length):
    with pytest.raises(ConfigError, match=f"sequence_length={length} must exceed 2"):
        Pieces(np.array([5]), length)
