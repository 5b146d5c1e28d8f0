"""Pieces of documents → micro-batches that fill a token budget.

A document that fits the sequence length is one piece and is never split. A longer one is cut into pieces, each a
sequence with its own [CLS] and [SEP]: all full but the last. Pieces wait in a pool, at least 512 and two budgets'
worth; a micro-batch takes the oldest ones first, so that nothing waits for long, and fills its last two sequence
lengths with the best-fitting one or two pieces of the pool.

Price: nothing is padded or dropped. With a budget of at least 8 sequence lengths over 99 % of it is filled on real
text; what is cut is counted by `Pieces`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from modernbert.errors import ConfigError

NUM_SPECIALS = 2  # [CLS] and [SEP] around each sequence
_POOL = 512  # pieces waiting at least: some pair of so many fits nearly any gap, and they are quick to sort

Draw: TypeAlias = Callable[[tuple[int, ...], int], tuple[np.ndarray, tuple[int, ...]]]
"""Counters of what was drawn, and how many to draw → that many stream positions (fewer near the end, none behind
it), and the counters behind them. No counters: nothing was drawn."""


def in_order(stop: int | None = None) -> Draw:
    """One stream, position after position, up to `stop`."""

    def draw(drawn: tuple[int, ...], count: int) -> tuple[np.ndarray, tuple[int, ...]]:
        first = drawn[0] if drawn else 0
        last = first + count if stop is None else min(first + count, stop)
        return np.arange(first, last), (last,)

    return draw


class Pieces:
    """Where documents are cut for one sequence length. Holds one int64 per document."""

    def __init__(self, document_lengths: np.ndarray, sequence_length: int) -> None:
        if sequence_length <= NUM_SPECIALS:
            raise ConfigError(f"sequence_length={sequence_length} must exceed {NUM_SPECIALS}, [CLS] and [SEP]")
        self.content_length = sequence_length - NUM_SPECIALS
        self.document_lengths = document_lengths
        self._pieces_until = np.cumsum(np.maximum(1, -(-document_lengths // self.content_length)))

    def __len__(self) -> int:
        return int(self._pieces_until[-1]) if len(self._pieces_until) else 0

    def until(self, num_documents: np.ndarray) -> np.ndarray:
        """How many pieces the first so many documents have (at least one document)."""
        return self._pieces_until[num_documents - 1]

    def locate(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each piece its document, and its first and last-plus-one token in that document."""
        documents = np.searchsorted(self._pieces_until, pieces, side="right")
        first_pieces = np.where(documents > 0, self._pieces_until[documents - 1], 0)
        starts = (pieces - first_pieces) * self.content_length
        return documents, starts, np.minimum(starts + self.content_length, self.document_lengths[documents])

    def lengths(self, pieces: np.ndarray) -> np.ndarray:
        """Tokens of each piece, [CLS] and [SEP] included."""
        _, starts, stops = self.locate(pieces)
        return stops - starts + NUM_SPECIALS

    def share_cut(self) -> dict[str, float]:
        """Which share of documents, and of tokens in such documents, is cut because it exceeds the length."""
        cut = self.document_lengths > self.content_length
        total = max(1, int(self.document_lengths.sum()))
        return {
            "documents": float(cut.mean()) if len(cut) else 0.0,
            "tokens": float(self.document_lengths[cut].sum() / total),
        }


@dataclass(frozen=True, slots=True)
class PackState:
    """Where packing stands: plain numbers, whatever has been trained on before."""

    drawn: tuple[int, ...] = ()  # pieces taken into the pool, of each component
    pending: tuple[int, ...] = ()  # stream positions in the pool, oldest first
    tokens: int = 0  # yielded


def pack(
    lengths_at: Callable[[np.ndarray], np.ndarray],
    budget: int,
    state: PackState,
    *,
    longest: int,
    draw: Draw,
) -> Iterator[tuple[np.ndarray, PackState]]:
    """Yield micro-batches as stream positions, each with the state behind it.

    Args:
        lengths_at: tokens of the pieces at some stream positions, specials included.
        budget: tokens of a micro-batch.
        state: where to go on.
        longest: the sequence length: no piece is longer.
        draw: what comes next.

    Raises:
        ConfigError: a budget below one sequence length.
    """
    if budget < longest:
        raise ConfigError(f"a micro-batch of {budget} tokens cannot hold a sequence of {longest}; raise it")
    drawn, tokens = state.drawn, state.tokens
    positions = np.asarray(state.pending, dtype=np.int64)
    lengths = lengths_at(positions) if len(positions) else np.empty(0, dtype=np.int64)
    while True:
        while len(positions) < _POOL or lengths.sum() < 2 * budget:
            new, drawn = draw(drawn, _POOL - len(positions) if len(positions) < _POOL else 128)
            if not len(new):
                break
            positions, lengths = np.append(positions, new), np.append(lengths, lengths_at(new))
        if not len(positions):
            return
        chosen = _fill(lengths, budget, longest)
        taken = positions[chosen]
        tokens += int(lengths[chosen].sum())
        positions, lengths = np.delete(positions, chosen), np.delete(lengths, chosen)
        yield taken, PackState(drawn, tuple(positions.tolist()), tokens)


def _fill(lengths: np.ndarray, budget: int, longest: int) -> list[int]:
    """Indices into the pool: the oldest until two sequence lengths are left, then the best fit."""
    until = np.cumsum(lengths)
    num_oldest = int(np.searchsorted(until, max(budget - 2 * longest, lengths[0]), side="right"))
    chosen = list(range(num_oldest))
    left = budget - int(until[num_oldest - 1])
    order = num_oldest + np.argsort(lengths[num_oldest:], kind="stable")
    while len(order):
        best = _best_fit(lengths[order], left)
        if not best:
            break
        chosen += order[best].tolist()
        left -= int(lengths[order[best]].sum())
        order = np.delete(order, best)
    return chosen


def _best_fit(sorted_lengths: np.ndarray, left: int) -> list[int]:
    """The one or two of the sorted lengths whose sum comes closest to `left` from below."""
    single = int(np.searchsorted(sorted_lengths, left, side="right")) - 1
    if single < 0:
        return []
    index = np.arange(len(sorted_lengths))
    partner = np.searchsorted(sorted_lengths, left - sorted_lengths, side="right") - 1
    partner = np.minimum(partner, index - 1)  # each pair once, no piece with itself
    sums = np.where(partner >= 0, sorted_lengths + sorted_lengths[partner], 0)
    sums[sums > left] = 0
    pair = int(np.argmax(sums))
    return [pair, int(partner[pair])] if sums[pair] > sorted_lengths[single] else [single]
