"""One metric over several seeds → mean ± standard deviation and its interval; of two models, of their difference.

    values → mean, sd (n − 1) → mean ± t · sd / √n, with t the quantile of Student's distribution at n − 1 degrees of freedom

Seeds that two models share (the same order of examples, the same samples) are compared in pairs, which leaves out what a
seed does to both; others by Welch's interval. With five seeds t is 2.78, and not 1.96: few seeds prove little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modernbert.errors import DataError

CONFIDENCE = 0.95
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True, slots=True)
class Summary:
    """What several values say of the one behind them.

    Attributes:
        mean: of the values.
        sd: their standard deviation, by n − 1; None of a single value.
        n: how many; of two samples that are not paired the smaller one.
        low: end of the interval of the mean; None of a single value, which has no spread.
        high: its other end.
    """

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None

    @property
    def width(self) -> float | None:
        """From one end of the interval to the other."""
        return None if self.low is None or self.high is None else self.high - self.low

    def includes(self, value: float) -> bool | None:
        """Whether the interval reaches around a value; None where there is no interval to say it."""
        return None if self.low is None or self.high is None else self.low <= value <= self.high


def summary(values: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    """Mean, standard deviation and the t interval of the mean.

    Args:
        values: one a seed.
        confidence: of the interval.

    Raises:
        DataError: no values, or one that is no number.
    """
    found = _checked(values)
    mean = math.fsum(found) / len(found)
    if len(found) == 1:
        return Summary(mean, None, 1, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (len(found) - 1))
    half = t_quantile(len(found) - 1, confidence) * sd / math.sqrt(len(found))
    return Summary(mean, sd, len(found), mean - half, mean + half)


def paired(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    """The difference a − b, seed by seed.

    Args:
        a: one value a seed.
        b: those of the other model, for the same seeds in the same order.
        confidence: of the interval.

    Raises:
        DataError: not as many of both, none, or one that is no number.
    """
    if len(a) != len(b):
        raise DataError(
            f"{len(a)} values and {len(b)} are no pairs; run both with the same seeds, or compare them unpaired"
        )
    return summary([x - y for x, y in zip(_checked(a), _checked(b), strict=True)], confidence)


def unpaired(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    """The difference of the means of a and b, that have no seeds in common: Welch's interval.

    `sd` is that of the difference of two single values. Where either has a single value there is no interval.

    Args:
        a: one value a seed.
        b: those of the other model.
        confidence: of the interval.

    Raises:
        DataError: none, or one that is no number.
    """
    ours, theirs = summary(a, confidence), summary(b, confidence)
    mean, n = ours.mean - theirs.mean, min(ours.n, theirs.n)
    if ours.sd is None or theirs.sd is None:
        return Summary(mean, None, n, None, None)
    shares = (ours.sd**2 / ours.n, theirs.sd**2 / theirs.n)
    sd = math.hypot(ours.sd, theirs.sd)
    if not sum(shares):
        return Summary(mean, sd, n, mean, mean)
    freedom = sum(shares) ** 2 / (shares[0] ** 2 / (ours.n - 1) + shares[1] ** 2 / (theirs.n - 1))
    half = t_quantile(freedom, confidence) * math.sqrt(sum(shares))
    return Summary(mean, sd, n, mean - half, mean + half)


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """How many standard errors around its mean Student's distribution holds a share of itself.

    With x = √freedom · tan φ the share within ±θ is an integral of cosᶠ⁻¹ φ from 0 to θ, smooth enough for 64 nodes as
    long as θ is no wider than needed: it is found by doubling, then by halving.

    Args:
        freedom: its degrees, at least 1; they need not be whole.
        confidence: the share, between 0 and 1.
    """
    assert freedom >= 1 and 0 < confidence < 1
    factor = 2 / math.sqrt(math.pi) * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))

    def share_within(angle: float) -> float:
        return factor * angle / 2 * float(_WEIGHTS @ np.cos(angle * (_NODES + 1) / 2) ** (freedom - 1))

    low, high = 0.0, 1 / math.sqrt(freedom)
    while high < math.pi / 2 and share_within(high) < confidence:
        low, high = high, min(2 * high, math.pi / 2)
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if share_within(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _checked(values: Sequence[float]) -> list[float]:
    found = [float(value) for value in values]
    if not found:
        raise DataError("there are no values to take the mean of; run at least one seed")
    if wrong := [value for value in found if not math.isfinite(value)]:
        raise DataError(f"a score is {wrong[0]}, which is no number; that seed's run has diverged")
    return found
