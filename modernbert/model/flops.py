"""A batch's shape → the floating-point operations that are useful in it.

Useful means: what the mathematics needs. Attention counts keys inside the window and the document, the decoder
counts masked positions, and a multiply-add counts two. A training step is three times the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from modernbert.model.config import ModernBertConfig


def forward_flops(config: ModernBertConfig, lengths: Sequence[int], num_targets: int = 0) -> float:
    """Operations of one forward pass.

    Args:
        config: the shape of the model.
        lengths: tokens of each document.
        num_targets: positions at which the MLM head and decoder run.
    """
    d, i, v = config.hidden_size, config.intermediate_size, config.vocab_size
    matrices_per_token = 4 * d * d + 3 * d * i  # Wqkv, Wo; Wi twice as wide as Wo
    flops = 2.0 * config.num_hidden_layers * sum(lengths) * matrices_per_token
    for half_window in config.half_windows:
        flops += 4.0 * d * sum(_pairs(length, half_window) for length in lengths)  # scores and weighted sum
    return flops + 2.0 * num_targets * (d * d + d * v)


def _pairs(length: int, half_window: int | None) -> int:
    """(query, key) pairs within the window: each row has 2w + 1 keys, less what the two edges cut off."""
    if half_window is None or half_window >= length - 1:
        return length * length
    return length * (2 * half_window + 1) - half_window * (half_window + 1)
