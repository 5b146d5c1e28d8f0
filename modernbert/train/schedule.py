"""Tokens seen in a phase → learning rate, batch size, masking rate: warm-up, stable, decay (WSD). Pure functions."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

DecayShape: TypeAlias = Literal["1-sqrt", "linear", "cosine"]


def learning_rate(
    tokens: int,
    *,
    peak: float,
    total: int,
    start: float = 0.0,
    warmup: int = 0,
    decay: int = 0,
    decay_to: float = 0.0,
    shape: DecayShape = "1-sqrt",
) -> float:
    """The rate of a step that ends when the phase has seen `tokens`.

    Linear from `start` over `warmup`, `peak` until `decay` tokens are left, then down to `decay_to` · peak:
    1 − sqrt (Hägele et al., arXiv 2405.18392), a line, or half a cosine.
    """
    if tokens < warmup:
        return ramp(tokens, start, peak, warmup)
    into_decay = tokens - (total - decay)
    if into_decay <= 0:
        return peak
    share = min(1.0, into_decay / decay)
    fallen = {"1-sqrt": math.sqrt(share), "linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2}[shape]
    return peak * (1 - (1 - decay_to) * fallen)


def ramp(tokens: int, start: float, end: float, over: int) -> float:
    """A line from `start` at 0 tokens to `end` at `over`, and `end` from there on."""
    return end if tokens >= over else start + (end - start) * tokens / over
