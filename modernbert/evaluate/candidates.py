"""A budget of parameters or of milliseconds → candidate shapes.

Heads of 64, GLU widths in whole tiles of 64, and a depth of 4, 7, 10, … so that the last layer is global, as in every
published size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from modernbert.errors import ConfigError
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.train.roofline import num_parameters

STRETCH = 3  # layers, one global and two local
_HEAD_SIZE, _TILE, _WIDEST = 64, 64, 4096
_WIDTHS_PER_DEPTH = (20, 72)  # width over depth; published shapes lie between 27 and 64
_GLU = (1.0, 3.0)  # its width over the model's; published 1.5 to 2.6
_TOLERANCE = 0.03


def of_size(parameters: int, vocab_size: int) -> list[ModernBertConfig]:
    """Candidates within 3 % of a number of parameters, embedding and head included.

    Raises:
        ConfigError: the vocabulary alone takes too many, or no shape comes near.
    """
    near = []
    for width in range(2 * _HEAD_SIZE, _WIDEST + 1, _HEAD_SIZE):
        for depth in _depths(width):
            missing = parameters - num_parameters(_config(depth, width, _TILE, vocab_size))
            glu = _TILE + round(missing / (3 * width * depth) / _TILE) * _TILE
            least, most = (round(ratio * width / _TILE) * _TILE for ratio in _GLU)
            near.append(_config(depth, width, min(max(glu, least), most), vocab_size))
    found = [config for config in near if abs(num_parameters(config) / parameters - 1) <= _TOLERANCE]
    if not found:
        nearest = min(map(num_parameters, near), key=lambda size: abs(size - parameters))
        raise ConfigError(
            f"params={parameters:,}: no shape comes within {_TOLERANCE:.0%}; with a vocabulary of {vocab_size:,} the "
            f"nearest has {nearest:,}; ask for that, or give another --vocab-size"
        )
    return found


def of_latency(
    milliseconds: float, vocab_size: int, cost_of: Callable[[ModernBertConfig], float]
) -> list[ModernBertConfig]:
    """For each width the deepest candidates whose stretches, at `cost_of` milliseconds each, stay within a budget.

    Raises:
        ConfigError: not even the smallest does.
    """
    found, width = [], 2 * _HEAD_SIZE
    while width <= _WIDEST:
        depths = list(_depths(width))
        fitting = []
        for glu in sorted({round(ratio * width / _TILE) * _TILE for ratio in (1.5, 2.0, 2.5)}):
            cost = cost_of(_config(STRETCH, width, glu, vocab_size)) / STRETCH
            deepest = max((depth for depth in depths if depth * cost <= milliseconds), default=None)
            if deepest is not None:
                fitting.append(_config(deepest, width, glu, vocab_size))
        if not fitting:
            break  # wider ones only take longer
        found += fitting
        width += _HEAD_SIZE if width < 1024 else 4 * _HEAD_SIZE
    if not found:
        raise ConfigError(
            f"latency-ms={milliseconds:g}: the smallest shape takes longer ({depths[0]} layers of {width}); raise it, or "
            "give fewer --tokens"
        )
    return found


def _depths(width: int) -> Iterator[int]:
    narrow, wide = _WIDTHS_PER_DEPTH
    return (depth for depth in range(4, 65, 3) if narrow <= width / depth <= wide)


def _config(depth: int, width: int, glu: int, vocab_size: int) -> ModernBertConfig:
    return PRESETS["base"].replace(
        num_hidden_layers=depth, hidden_size=width, intermediate_size=glu, num_attention_heads=width // _HEAD_SIZE,
        vocab_size=vocab_size,
    )  # fmt: skip
