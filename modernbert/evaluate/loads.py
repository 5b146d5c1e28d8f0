"""A load's name → the token ids that every competitor encodes, the same in every run.

Ids are drawn at random: speed does not depend on them. A larger `scale` has more rows of the same lengths, as a GPU
needs; `quick` has few and short ones, for a look at whether everything runs.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from modernbert.errors import ConfigError

Rows = list[list[int]]
"""Token ids, one list a text."""

_SORTED_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Load:
    """What is encoded in one round."""

    name: str
    what: str
    batches: tuple[Rows, ...]  # each is one forward pass
    one_by_one: bool = False  # a round is one batch, in turn, instead of all of them: latency

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(row) for rows in self.batches for row in rows)

    @property
    def num_tokens(self) -> int:
        """Real tokens of all batches."""
        return sum(len(row) for rows in self.batches for row in rows)

    @property
    def num_padded_tokens(self) -> int:
        """What a model that pads computes instead."""
        return sum(len(rows) * max(map(len, rows)) for rows in self.batches)

    def lengths(self, round_: int) -> list[int]:
        """Tokens of each text of a round."""
        batches = [self.batches[round_ % len(self.batches)]] if self.one_by_one else self.batches
        return [len(row) for rows in batches for row in rows]


@dataclass(frozen=True, slots=True)
class _Kind:
    what: str
    num_rows: int
    longest: int
    lengths: Callable[[int], list[int]]  # of so many texts
    arrange: Callable[[Rows], tuple[Rows, ...]] = lambda rows: (rows,)
    one_by_one: bool = False


# Lengths are a distribution's evenly spaced quantiles, not draws from it: few texts then waste as much padding as many.
def _queries(num_rows: int) -> list[int]:
    return [round(8 + 22 * i / max(num_rows - 1, 1)) for i in range(num_rows)]


def _mixed(num_rows: int) -> list[int]:
    normal = statistics.NormalDist(256, 128)
    return [min(max(round(normal.inv_cdf((i + 0.5) / num_rows)), 16), 512) for i in range(num_rows)]


def _mixed_long(num_rows: int) -> list[int]:
    return [round(256 * 32 ** (i / max(num_rows - 1, 1))) for i in range(num_rows)]


def _sorted(rows: Rows) -> tuple[Rows, ...]:
    rows = sorted(rows, key=len)
    size = -(-len(rows) // _SORTED_BATCHES)
    return tuple(rows[start : start + size] for start in range(0, len(rows), size))


def _each(rows: Rows) -> tuple[Rows, ...]:
    return tuple([row] for row in rows)


_KINDS = {
    "latency": _Kind("queries of 8–30 tokens, one at a time", 32, 30, _queries, _each, one_by_one=True),
    "queries": _Kind("queries of 8–30 tokens, one batch", 32, 30, _queries),
    "fixed-512": _Kind("512 tokens", 8, 512, lambda num_rows: [512] * num_rows),
    "mixed": _Kind("N(256, 128) tokens cut to 16–512, one batch", 32, 512, _mixed),
    "mixed-sorted": _Kind("the same, sorted by length into four batches", 32, 512, _mixed, _sorted),
    "2048": _Kind("2,048 tokens", 2, 2048, lambda num_rows: [2048] * num_rows),
    "8192": _Kind("8,192 tokens", 1, 8192, lambda num_rows: [8192] * num_rows),
    "mixed-8192": _Kind("256 to 8,192 tokens, evenly on a logarithmic scale, one batch", 3, 8192, _mixed_long),
}

LOADS: tuple[str, ...] = tuple(_KINDS)


def make_load(name: str, *, vocab_size: int, scale: int = 1, quick: bool = False) -> Load:
    """Make a load.

    Args:
        name: one of `LOADS`.
        vocab_size: ids are below this, and not 0, which BERT pads with.
        scale: times as many rows; single queries stay as many.
        quick: at most four rows, of a sixteenth of the length.

    Raises:
        ConfigError: no such load.
    """
    kind, draw = _kind(name), random.Random(0)
    lengths = kind.lengths(min(kind.num_rows, 4) if quick else kind.num_rows * (1 if kind.one_by_one else scale))
    if quick:
        lengths = [-(-length // 16) for length in lengths]
    draw.shuffle(lengths)
    rows = [[draw.randrange(1, vocab_size) for _ in range(length)] for length in lengths]
    what = f"{len(rows)} × {kind.what}{', all a sixteenth as long' if quick else ''}"
    return Load(name, what, kind.arrange(rows), kind.one_by_one)


def longest_of(name: str) -> int:
    """Tokens that a model must have positions for to take part.

    Raises:
        ConfigError: no such load.
    """
    return _kind(name).longest


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise ConfigError(f"load {name!r} is unknown; choose among {', '.join(LOADS)}")
    return _KINDS[name]
