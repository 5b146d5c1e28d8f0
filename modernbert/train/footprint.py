"""A model's shape and a micro-batch → bytes that training takes on each device, and the largest micro-batch that fits.

Weights, gradients and StableAdamW's two averages are float32; under bfloat16 each matrix has a copy as well. What a layer
keeps for its backward pass was counted tensor by tensor; tests compare it with what autograd really keeps.
Fragments of the allocator, other programs and a step's transients are covered by leaving `1 − USABLE` free.
"""

from __future__ import annotations

from dataclasses import dataclass

from modernbert.model.config import ModernBertConfig
from modernbert.train.roofline import num_parameters

USABLE = 0.92  # of a device's memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes on one device."""

    weights: int  # and their bfloat16 copies
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it, at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def footprint(
    config: ModernBertConfig,
    num_tokens: int,
    mask_rate: float,
    *,
    bfloat16: bool,
    dropout: bool = False,
    recomputed: bool = False,
) -> Footprint:
    """What a step takes at its peak, where the backward pass begins.

    Args:
        config: the shape.
        num_tokens: of a micro-batch.
        mask_rate: share of positions with logits.
        bfloat16: whether products run in it.
        dropout: whether attention outputs are dropped, which keeps a mask.
        recomputed: whether layers are computed anew in the backward pass (`compute.activation_checkpointing`).
    """
    parameters = num_parameters(config)
    return Footprint(
        weights=parameters * (6 if bfloat16 else 4),
        gradients=parameters * 4,
        optimizer=parameters * 8,
        activations=round(
            num_tokens * kept_per_token(config, mask_rate, bfloat16=bfloat16, dropout=dropout, recomputed=recomputed)
        ),
        logits=round(num_tokens * mask_rate * config.vocab_size * _logit_bytes(bfloat16)),
    )


def largest_micro_batch(
    config: ModernBertConfig,
    memory_bytes: float,
    sequence_length: int,
    mask_rate: float,
    *,
    bfloat16: bool,
    dropout: bool = False,
    recomputed: bool = False,
) -> int:
    """Tokens of the largest micro-batch that fits, in whole sequences; 0 where not even one does."""
    fixed = footprint(config, 0, mask_rate, bfloat16=bfloat16).total
    a_token = kept_per_token(config, mask_rate, bfloat16=bfloat16, dropout=dropout, recomputed=recomputed)
    a_token += mask_rate * config.vocab_size * _logit_bytes(bfloat16)
    sequences = int((USABLE * memory_bytes - fixed) / (a_token * sequence_length))
    return max(0, sequences) * sequence_length


def kept_per_token(
    config: ModernBertConfig, mask_rate: float, *, bfloat16: bool, dropout: bool, recomputed: bool = False
) -> float:
    """Bytes a token that a forward pass keeps for the backward pass, but for the logits.

    A layer in bfloat16: two inputs of norms in float32 (8 D), their outputs (4), qkv (6), rotated q and k (4), attention's
    output (2) and log-sums (4 a head); of GeGLU its two inputs, the GELU and the product (8 I). In float32 all are.
    A layer that is recomputed keeps its input (4 D), and one at a time the rest.
    """
    d, i, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layer = (24 * d + 8 * i if bfloat16 else 40 * d + 16 * i) + 4 * heads + (d if dropout else 0)
    beside = 8 * d + 16 * config.head_size + mask_rate * (16 * d)  # embedding, last norm, angles, head
    layers = config.num_hidden_layers
    return (layers * 4 * d + layer if recomputed else layers * layer) + beside


def _logit_bytes(bfloat16: bool) -> int:
    """Log-probabilities and their gradient in float32, and the latter once more for the product behind it."""
    return 10 if bfloat16 else 12
