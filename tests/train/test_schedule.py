"""The learning rate of each step: warm-up, stable, 1 − sqrt."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.train.schedule import learning_rate

SHAPE = {"peak": 8.0, "total": 1000, "warmup": 100, "decay": 400, "decay_to": 0.25}


@pytest.mark.parametrize(
    "tokens,expected",
    [
        (0, 0.0),
        (1, 0.08),
        (50, 4.0),
        (99, 7.92),
        (100, 8.0),  # warmed up
        (101, 8.0),
        (600, 8.0),  # the last token of the stable stretch
        (601, 8 * (1 - 0.75 * math.sqrt(1 / 400))),
        (700, 8 * (1 - 0.75 * 0.5)),  # a quarter of the way: half of what is to be lost is lost
        (1000, 2.0),
        (1001, 2.0),  # nothing below the floor
        (9999, 2.0),
    ],
)
def test_warm_up_is_linear_then_stable_then_falls_as_one_minus_sqrt_to_its_floor(tokens, expected):
    assert learning_rate(tokens, **SHAPE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "shape,expected_by_tokens",
    [
        ({}, {0: 8.0, 1: 8.0, 500: 8.0, 1000: 8.0}),  # constant
        ({"warmup": 1}, {0: 0.0, 1: 8.0, 1000: 8.0}),
        ({"warmup": 1000}, {0: 0.0, 500: 4.0, 1000: 8.0}),  # all warm-up
        ({"decay": 1000}, {0: 8.0, 250: 4.0, 1000: 0.0}),  # all decay
        ({"decay": 1}, {999: 8.0, 1000: 0.0}),
        ({"decay": 1000, "decay_to": 1.0}, {0: 8.0, 500: 8.0, 1000: 8.0}),  # a floor at the peak
        ({"warmup": 500, "decay": 500}, {250: 4.0, 500: 8.0, 625: 4.0, 1000: 0.0}),  # no stable stretch
    ],
)
def test_parts_of_no_length_are_skipped(shape, expected_by_tokens):
    found = {tokens: learning_rate(tokens, peak=8.0, total=1000, **shape) for tokens in expected_by_tokens}
    assert found == pytest.approx(expected_by_tokens)


@settings(deadline=None)
@given(
    total=st.integers(1, 10**13),
    parts=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    decay_to=st.floats(0, 1),
    at=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_rate_rises_and_then_falls_and_never_leaves_its_bounds(total, parts, decay_to, at):
    warmup, decay = (round(part * (total - 1)) for part in parts)
    shape = {"peak": 3e-4, "total": total, "warmup": warmup, "decay": decay, "decay_to": decay_to}
    early, late = sorted(round(share * total) for share in at)
    first, second = learning_rate(early, **shape), learning_rate(late, **shape)
    assert min(first, second) >= 0 and max(first, second) <= 3e-4
    if late <= total - decay:
        assert first <= second
    if early >= warmup:
        assert first >= second >= 3e-4 * decay_to - 1e-18  # rounding
