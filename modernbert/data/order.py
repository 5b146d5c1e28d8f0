"""A position in the endless training stream → the piece of text that stands there.

Epoch e shows every piece once, in an order that depends on (seed, e) only. The order is a keyed bijection
computed per position (a Feistel network that walks its cycle back into range), so that any position is found in
constant time and memory: resuming replays nothing, and a billion documents need no shuffled list.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6  # four suffice for a pseudo-random permutation (Luby and Rackoff, 1988); small domains want a few more


def piece_at(positions: np.ndarray, num_pieces: int, seed: int) -> np.ndarray:
    """The pieces at some positions of the stream.

    Args:
        positions: int64, counted from 0 over all epochs.
        num_pieces: pieces in one epoch, at least 1.
        seed: of the run.
    """
    epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), num_pieces)
    pieces = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        pieces[here] = shuffled(offsets[here], num_pieces, (seed, int(epoch)))
    return pieces


def shuffled(indices: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a keyed random permutation of 0 … size − 1 sends these indices."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    low = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> shift, x & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        return left << shift | right

    result = network(np.asarray(indices, dtype=np.uint64))
    while (outside := result >= size).any():  # the domain is at most four times too large
        result[outside] = network(result[outside])
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
