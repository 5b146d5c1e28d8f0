"""Means and intervals over seeds, against scipy's."""

import math

import numpy as np
import pytest

from modernbert.errors import DataError
from modernbert.evaluate.seeds import paired, summary, t_quantile, unpaired

OURS, THEIRS = [0.81, 0.83, 0.80, 0.84, 0.82], [0.80, 0.81, 0.80, 0.83, 0.80]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 9, 12.5, 19, 30, 61.3, 199, 10_000, 1e6])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_t_quantiles_are_scipys(freedom, confidence):
    stats = pytest.importorskip("scipy.stats")
    assert t_quantile(freedom, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-7)


def test_five_seeds_have_the_interval_of_the_book():
    # Student's table: 2.776 at 4 degrees of freedom
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.mean, found.n) == (3.0, 5)
    assert found.sd == pytest.approx(math.sqrt(2.5))
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert found.width == pytest.approx(2 * half, rel=1e-6)
    assert found.includes(3.0) and not found.includes(0.0)


def test_an_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    found = summary(OURS)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(OURS), scale=stats.sem(OURS))
    assert (found.low, found.high, found.sd) == pytest.approx((low, high, np.std(OURS, ddof=1)))


def test_the_difference_of_pairs_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    found = paired(OURS, THEIRS)
    interval = stats.ttest_rel(OURS, THEIRS).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(OURS) - np.mean(THEIRS))


def test_the_difference_of_other_seeds_is_welchs():
    stats = pytest.importorskip("scipy.stats")
    found = unpaired(OURS, THEIRS[:3])
    interval = stats.ttest_ind(OURS, THEIRS[:3], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_pairs_tell_more_than_two_lots_where_seeds_do_the_same_to_both():
    shared = np.array([0.0, 0.05, -0.03, 0.02, 0.04])
    ours, theirs = list(0.81 + shared), list(0.80 + shared + np.array([0, 1e-3, 0, -1e-3, 0]))
    assert not paired(ours, theirs).includes(0.0)
    assert unpaired(ours, theirs).includes(0.0)


def test_a_single_value_has_no_spread_and_no_interval():
    for found in (summary([0.9]), paired([0.9], [0.8]), unpaired([0.9], [0.8, 0.7])):
        assert (found.sd, found.low, found.high, found.width, found.includes(0.0)) == (None,) * 5
    assert summary([0.9]).mean == 0.9


def test_values_all_alike_have_an_interval_without_width():
    assert summary([0.5] * 4).width == 0
    assert unpaired([0.5] * 4, [0.25] * 3).includes(0.25)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: summary([]), "at least one seed"),
        (lambda: summary([0.5, math.nan]), "nan"),
        (lambda: paired([0.5, 0.6], [0.5]), "2 values and 1 are no pairs"),
        (lambda: paired([math.inf, 0.6], [math.inf, 0.5]), "inf"),
    ],
)
def test_what_has_no_mean_is_refused(call, says):
    with pytest.raises(DataError, match=says):
        call()
