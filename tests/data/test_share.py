"""The stream of batches among several ranks: all of it, each batch once, from any place, whatever their number."""

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_run import MICRO_BATCH_TOKENS, SEQUENCE_LENGTH, same

from modernbert.data import LoaderState, MlmBatches

NUM_BATCHES = 60  # 1.5 epochs


@pytest.fixture(scope="module")
def batches(shards):
    return MlmBatches(
        {"text": shards}, sequence_length=SEQUENCE_LENGTH, micro_batch_tokens=MICRO_BATCH_TOKENS, mask_rate=0.3, seed=5
    )


@pytest.fixture(scope="module")
def unbroken(batches):
    """The one stream that all of them share."""
    return list(itertools.islice(batches.stream(), NUM_BATCHES))


def taken(batches, state, num_ranks, count, num_workers=0):
    """The next so many places of the stream, as each rank has them."""
    streams = [
        batches.share(state, rank=rank, num_ranks=num_ranks, num_workers=num_workers) for rank in range(num_ranks)
    ]
    found = [list(itertools.islice(stream, count)) for stream in streams]
    for stream in streams:
        stream.close()
    return found


def assert_is_shared(found, expected):
    """Every batch is read by one rank, as the one stream has it; and all ranks have the same states."""
    for at_place, (batch, state) in zip(zip(*found, strict=True), expected, strict=True):
        read = [theirs for theirs, _ in at_place if theirs is not None]
        assert len(read) == 1 and same(read[0], batch)
        for _, theirs in at_place:
            assert theirs == state and theirs.positions.tolist() == state.positions.tolist()
            assert (theirs.mask_rate, theirs.num_tokens) == (state.mask_rate, batch.num_tokens)


def stored(state):
    """A state as a checkpoint keeps it."""
    return LoaderState.from_dict(json.loads(json.dumps(state.to_dict())))


@settings(max_examples=40, deadline=None)
@given(
    sessions=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 13)), min_size=1, max_size=4),
    begin=st.integers(0, 8),
)
@example(sessions=[(2, 7), (1, 6), (4, 9)], begin=0)
def test_ranks_read_the_one_stream_however_many_there_are_each_time(batches, unbroken, sessions, begin):
    place, state = begin, stored(unbroken[begin - 1][1]) if begin else None
    for num_ranks, count in sessions:
        found = taken(batches, state, num_ranks, count)
        assert_is_shared(found, unbroken[place : place + count])
        place, state = place + count, stored(found[-1][-1][1])


@pytest.mark.parametrize(("num_ranks", "begin"), [(1, 0), (2, 0), (3, 4), (5, 1)])
def test_reading_processes_change_nothing_about_who_reads_what(batches, unbroken, num_ranks, begin):
    state = stored(unbroken[begin - 1][1]) if begin else None
    with_none, with_one = (taken(batches, state, num_ranks, 12, num_workers) for num_workers in (0, 1))
    assert_is_shared(with_one, unbroken[begin : begin + 12])
    for theirs, ours in zip(with_none, with_one, strict=True):
        assert [batch is None for batch, _ in theirs] == [batch is None for batch, _ in ours]


@pytest.mark.parametrize("num_ranks", range(1, 6))
def test_each_rank_reads_its_turn_and_no_rank_reads_more_than_one_batch_ahead_of_another(batches, num_ranks):
    found = taken(batches, None, num_ranks, 4 * num_ranks + 1)
    for rank, pairs in enumerate(found):
        assert [state.number for batch, state in pairs if batch is not None] == [
            number for number in range(1, 4 * num_ranks + 2) if (number - 1) % num_ranks == rank
        ]


def test_the_turn_goes_by_the_streams_beginning_and_not_by_the_place_where_a_rank_begins(batches, unbroken):
    for begin in (1, 2, 3):
        (first, _), (second, _) = (pairs[0] for pairs in taken(batches, stored(unbroken[begin - 1][1]), 2, 1))
        assert (first is None) == (begin % 2 == 1) and (second is None) == (begin % 2 == 0)


def test_a_rank_alone_reads_all_of_it(batches, unbroken):
    for (batch, state), (expected, expected_state) in zip(batches.share(), unbroken, strict=False):
        assert same(batch, expected) and state == expected_state
        if state.number == 20:
            break


def test_a_rank_reads_nothing_that_is_anothers(batches, unbroken, monkeypatch):
    whole, read = MlmBatches.__getitem__, []
    monkeypatch.setattr(
        MlmBatches, "__getitem__", lambda self, plan: read.append(plan[0].tolist()) or whole(self, plan)
    )
    list(itertools.islice(batches.share(rank=1, num_ranks=3), 12))
    assert read == [state.positions.tolist() for _, state in unbroken[1:12:3]]


def test_a_state_from_before_batches_were_numbered_goes_on(batches, unbroken):
    old = unbroken[6][1].to_dict()
    del old["number"]
    found = taken(batches, LoaderState.from_dict(json.loads(json.dumps(old))), 2, 4)
    for at_place, (batch, state) in zip(zip(*found, strict=True), unbroken[7:11], strict=True):
        (read,) = (theirs for theirs, _ in at_place if theirs is not None)
        assert same(read, batch) and {theirs.pack for _, theirs in at_place} == {state.pack}
