"""Tokens seen in a phase → learning rate: warm-up, stable, decay (WSD). A pure function."""

from __future__ import annotations

import math


def learning_rate(
    tokens: int, *, peak: float, total: int, warmup: int = 0, decay: int = 0, decay_to: float = 0.0
) -> float:
    """The rate of a step that ends when the phase has seen `tokens`.

    Linear from 0 over `warmup`, `peak` until `decay` tokens are left, then 1 − sqrt down to `decay_to` · peak
    (Hägele et al., arXiv 2405.18392).
    """
    if tokens < warmup:
        return peak * tokens / warmup
    into_decay = tokens - (total - decay)
    if into_decay <= 0:
        return peak
    return peak * (1 - (1 - decay_to) * math.sqrt(min(1.0, into_decay / decay)))
