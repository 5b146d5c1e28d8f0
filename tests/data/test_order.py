"""The order of the stream: every piece once an epoch, any position found by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.data.order import POSITION_BITS, component_of, epoch_of, piece_at, round_keys, shuffled

keys = st.tuples(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(0, 1000))


def permutation(size, key):
    return shuffled(np.arange(size), size, round_keys(*key)[:, None])


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 5000), key=keys)
def test_shuffling_shows_every_index_once(size, key):
    result = permutation(size, key)
    assert result.dtype == np.int64
    assert np.array_equal(np.sort(result), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097])
def test_sizes_around_powers_of_two_are_no_exception(size):
    for seed in range(5):
        assert np.array_equal(np.sort(permutation(size, (seed, 0))), np.arange(size))


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000), data=st.data())
def test_a_position_is_found_without_what_comes_before_it(size, seed, epoch, data):
    whole = piece_at(np.arange(epoch * size, (epoch + 1) * size), size, seed)
    some = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    assert piece_at(np.array(some) + epoch * size, size, seed).tolist() == whole[some].tolist()


def test_positions_of_several_epochs_may_be_asked_for_at_once():
    whole = np.concatenate([piece_at(np.arange(start, start + 7), 7, 3) for start in (0, 7, 14)])
    assert piece_at(np.arange(21), 7, 3).tolist() == whole.tolist()
    assert piece_at(np.arange(20, -1, -1), 7, 3).tolist() == whole[::-1].tolist()
    assert piece_at(np.arange(0), 7, 3).tolist() == []


def test_a_position_in_a_billion_documents_costs_nothing():
    # 1.2 billion pieces would be a list of 10 GB.
    size = 1_200_000_007
    pieces = piece_at(np.array([0, 1, size - 1, 17 * size + 5]), size, 0)
    assert ((pieces >= 0) & (pieces < size)).all()
    assert len(set(pieces.tolist())) == 4


def test_each_epoch_has_its_own_order():
    orders = {tuple(piece_at(np.arange(epoch * 500, (epoch + 1) * 500), 500, 0).tolist()) for epoch in range(20)}
    assert len(orders) == 20


def test_each_seed_has_its_own_order():
    assert len({tuple(piece_at(np.arange(500), 500, seed).tolist()) for seed in range(20)}) == 20


def test_seed_and_epoch_do_not_stand_in_for_each_other():
    # (seed 1, epoch 0) must not be (seed 0, epoch 1): two runs would then only be shifted.
    assert permutation(500, (1, 0)).tolist() != permutation(500, (0, 1)).tolist()


def test_neighbours_are_torn_apart():
    size = 4096
    order = piece_at(np.arange(size), size, 0)
    # Of a random permutation about two neighbours in 4,096 stay neighbours, and as many positions stay in place.
    assert (np.abs(np.diff(order)) == 1).sum() <= 12
    assert (order == np.arange(size)).sum() <= 10
    correlation = np.corrcoef(order, np.arange(size))[0, 1]
    assert abs(correlation) < 0.08  # five standard errors


def test_every_piece_is_as_likely_at_the_front():
    counts = np.bincount([piece_at(np.array([0]), 10, seed)[0] for seed in range(2000)], minlength=10)
    assert abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9000)), max_size=50),
    seed=st.integers(0, 2**63),
)
def test_positions_of_several_components_may_be_asked_for_at_once(sizes, asked, seed):
    owners, numbers = (np.array(column, dtype=np.int64) for column in zip(*asked, strict=True)) if asked else ([], [])
    owners = np.asarray(owners, dtype=np.int64) % len(sizes)
    positions = owners << POSITION_BITS | np.asarray(numbers, dtype=np.int64)
    found = piece_at(positions, np.array(sizes), seed)
    assert component_of(positions).tolist() == owners.tolist()
    assert epoch_of(positions, np.array(sizes)).tolist() == [
        n // sizes[c] for c, n in zip(owners, numbers, strict=True)
    ]
    for piece, component, number in zip(found.tolist(), owners.tolist(), numbers, strict=True):
        epoch, offset = divmod(int(number), sizes[component])
        assert piece == permutation(sizes[component], (seed, epoch, component))[offset]


def test_components_of_one_size_have_orders_of_their_own():
    positions = np.arange(500) + (np.arange(20)[:, None] << POSITION_BITS)
    orders = {tuple(piece_at(row, np.full(20, 500), 0).tolist()) for row in positions}
    assert len(orders) == 20
