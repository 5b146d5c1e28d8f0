"""A model's shape and a device's data sheet → seconds of a micro-batch, of an update and of an exchange of gradients.

Each operation takes as long as the slower of its arithmetic and its memory traffic, and operations follow each other:

- matrix products, sizes rounded up to the tiles of the hardware (128 rows and columns, 64 inner), at `matrix_share` of
  the peak, or their operands and results at `bandwidth_share` of the memory's rate;
- attention at the rate of FlashAttention-2 on an H100, all documents as long as the sequence length; a local layer
  computes whole tiles around its window;
- what lies between (norms, RoPE, GELU and gate, dropout, sums, softmax over the masked positions' logits), bytes only;
- the host: `host_seconds_per_token` for reading, collating and driving a step, hidden by nothing.

Two constants are fitted, `matrix_share` and `host_seconds_per_token`, to the published hours of the six Ettin encoders
on four H100s: within 11 %, and within 18 % for a size left out of the fit (`benchmarks/plan_fit.py`; docs/planning.md
has the table). They were trained by another program, a fork of ModernBERT's, with fused element-wise operations. Six
points do not tell `bandwidth_share` from the others (0.5 and 0.9 fit alike), so it is assumed. All else is counted or
cited.
"""

from __future__ import annotations

from dataclasses import dataclass

from modernbert.model.config import ModernBertConfig
from modernbert.train.devices import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What of a data sheet is reached."""

    matrix_share: float  # fitted
    host_seconds_per_token: float  # fitted; a device's own
    bandwidth_share: float = 0.8  # assumed


FITTED = Rates(matrix_share=0.59, host_seconds_per_token=0.82e-6)

_TILE, _INNER_TILE = 128, 64  # of bfloat16 tensor-core products
_ATTENTION_SHARE = 0.35  # of the peak: FlashAttention-2 on an H100 (arXiv 2407.08608, abstract)
_KERNELS_PER_LAYER, _KERNELS_BESIDE = 80, 50  # forward and backward, counted in our own operators under autocast
_LAUNCH_SECONDS = 5e-6  # a kernel, from Python; hidden behind the work unless micro-batches are small
_OPTIMIZER_BYTES = 80  # a weight: StableAdamW reads and writes weight, gradient and averages some 20 times


def num_parameters(config: ModernBertConfig) -> int:
    """Weights of an encoder with its MLM head; the tied decoder counts once."""
    d, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    norm = d * (2 if config.norm_bias else 1)
    biases = layers * (4 * d * config.attention_bias + (2 * i + d) * config.mlp_bias)
    head = d * d + norm + d * config.classifier_bias + config.vocab_size * config.decoder_bias
    return config.vocab_size * d + layers * (4 * d * d + 3 * d * i) + biases + (2 * layers + 1) * norm + head


def micro_batch_seconds(
    config: ModernBertConfig,
    num_tokens: int,
    sequence_length: int,
    mask_rate: float,
    device: Device,
    *,
    training: bool = True,
    rates: Rates = FITTED,
) -> float:
    """Forward and backward (or forward alone) of one micro-batch in bfloat16.

    Args:
        config: the shape.
        num_tokens: of the micro-batch, in documents of `sequence_length` tokens.
        sequence_length: of every document.
        mask_rate: share of the positions at which head and decoder run; 0 leaves them out.
        device: a data sheet.
        training: with the backward pass.
        rates: what is reached of the data sheet.
    """
    products = _product_shapes(config, num_tokens, mask_rate, training=training)
    busy = sum(count * _product_seconds(shape, device, rates) for shape, count in products)
    busy += _attention_seconds(config, num_tokens, sequence_length, device, training=training)
    busy += _traffic_bytes(config, num_tokens, mask_rate, training=training) / (
        rates.bandwidth_share * device.bytes_per_second
    )
    kernels = _KERNELS_PER_LAYER * config.num_hidden_layers + _KERNELS_BESIDE
    launching = kernels * _LAUNCH_SECONDS * (1 if training else 1 / 3)
    return max(busy, launching) + (rates.host_seconds_per_token * num_tokens if training else 0.0)


def optimizer_seconds(config: ModernBertConfig, device: Device, rates: Rates = FITTED) -> float:
    """One update of all weights."""
    return num_parameters(config) * _OPTIMIZER_BYTES / (rates.bandwidth_share * device.bytes_per_second)


def exchange_seconds(config: ModernBertConfig, device: Device, count: int) -> float:
    """Summing the float32 gradients over `count` devices in a ring, as if nothing hid it."""
    return 2 * (count - 1) / count * 4 * num_parameters(config) / device.link_bytes_per_second


Shape = tuple[int, int, int]
"""M rows of K → N columns."""


def _product_shapes(
    config: ModernBertConfig, num_tokens: int, mask_rate: float, *, training: bool
) -> list[tuple[Shape, int]]:
    """Every matrix product of a pass, and how often it is made."""
    d, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    masked = round(mask_rate * num_tokens)
    forward = [((num_tokens, k, n), layers) for k, n in ((d, 3 * d), (d, d), (d, 2 * i), (i, d))]
    if masked:
        forward += [((masked, d, d), 1), ((masked, d, config.vocab_size), 1)]
    if not training:
        return forward
    backward = [(shape, count) for (m, k, n), count in forward for shape in ((m, n, k), (k, m, n))]
    return forward + backward


def _product_seconds(shape: Shape, device: Device, rates: Rates) -> float:
    m, k, n = shape
    flops = 2.0 * _up(m, _TILE) * _up(k, _INNER_TILE) * _up(n, _TILE)
    moved = 2.0 * (m * k + k * n + m * n)
    arithmetic = flops / (rates.matrix_share * device.peak_flops)
    return max(arithmetic, moved / (rates.bandwidth_share * device.bytes_per_second))


def _attention_seconds(
    config: ModernBertConfig, num_tokens: int, sequence_length: int, device: Device, *, training: bool
) -> float:
    keys = sum(
        sequence_length if half is None else min(sequence_length, 2 * half + 1 + _TILE) for half in config.half_windows
    )
    passes = 3.5 if training else 1.0  # the backward pass computes the scores again
    return passes * 4.0 * config.hidden_size * num_tokens * keys / (_ATTENTION_SHARE * device.peak_flops)


def _traffic_bytes(config: ModernBertConfig, num_tokens: int, mask_rate: float, *, training: bool) -> float:
    """Bytes moved between the products, each chain of element-wise operations fused; the residual stream is float32.

    For each of D columns of a layer: two norms 12 (backward 28), RoPE 8 (8), dropout and sums 21 (13); of I: GELU and
    gate 6 (10). The logits 6, the embedding and its gradient 20, casts of the weights 6.
    """
    d, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    a_token = layers * ((90 * d + 16 * i) if training else (41 * d + 6 * i))
    a_token += 20 * d if training else 8 * d
    logits = (6 if training else 2) * mask_rate * config.vocab_size
    return num_tokens * (a_token + logits) + 6.0 * num_parameters(config)


def _up(value: int, tile: int) -> int:
    return -(-value // tile) * tile
