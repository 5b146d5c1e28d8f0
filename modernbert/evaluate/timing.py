"""Calls by name → seconds of each, taken in turns, and the figures made of them.

    A B C · C B A · A B C · …

What slows the machine for a while slows all of them: ratios are taken within a round and their median over rounds.
Ranges are the 10th to 90th hundredth.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_LEAST_ROUNDS = 3


def interleave(
    calls: Mapping[str, Callable[[int], object]],
    *,
    seconds: float,
    rounds: int | None = None,
    warmups: int = 1,
    between: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time the calls round by round, the order turned round each time.

    Args:
        calls: each is given the number of the round, and is done when it returns.
        seconds: begin no round after so long; at least three are made.
        rounds: make exactly so many instead.
        warmups: untimed calls of each beforehand, as rounds 0, 1, ….
        between: done after each round.
        clock: seconds.

    Returns:
        For each name the seconds of every round.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name, round_ in itertools.product(names, range(warmups)):
        calls[name](round_)
    began_at = clock()
    for round_ in itertools.count():
        if (round_ == rounds) if rounds is not None else (round_ >= _LEAST_ROUNDS and clock() - began_at >= seconds):
            return times
        for name in names if round_ % 2 == 0 else names[::-1]:
            started_at = clock()
            calls[name](round_)
            times[name].append(clock() - started_at)
        between()
    raise AssertionError


def ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """How many times as long the first took: the median of the rounds' own ratios, and their range."""
    paired = [a / b for a, b in zip(slower, faster, strict=True)]
    return {"ratio": statistics.median(paired), "ratio_low": quantile(paired, 0.1), "ratio_high": quantile(paired, 0.9)}


def noise(times: Sequence[float], period: int = 1) -> float:
    """Upper over lower end of the range of times of the same work; of a `period` of different work the median of these."""
    same = [times[start::period] for start in range(min(period, len(times)))]
    return statistics.median(quantile(group, 0.9) / quantile(group, 0.1) for group in same)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies, with straight lines between neighbours."""
    return float(np.quantile(values, share))
