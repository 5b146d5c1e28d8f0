"""A position in a component's endless stream → the piece of text that stands there.

Epoch e shows every piece once, in an order that depends on (seed, component, e) only. The order is a keyed bijection
computed per position (a Feistel network that walks its cycle back into range), so that any position is found in
constant time and memory: resuming replays nothing, and a billion documents need no shuffled list. Positions of many
components are computed in one go, each with its own size and keys.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_ROUNDS = 6  # four suffice for a pseudo-random permutation (Luby and Rackoff, 1988); small domains want a few more
POSITION_BITS = 48
_WITHIN = (1 << POSITION_BITS) - 1


def piece_at(positions: np.ndarray, num_pieces: np.ndarray | int, seed: int) -> np.ndarray:
    """The pieces at some positions of the stream, counted from 0 within their component.

    Args:
        positions: int64; the component is in the bits above `POSITION_BITS`, what is below counts over all epochs.
        num_pieces: pieces in one epoch of each component, at least 1; a number for a lone component.
        seed: of the run.
    """
    components, within = np.asarray(positions, dtype=np.int64) >> POSITION_BITS, positions & _WITHIN
    sizes = np.atleast_1d(num_pieces)[components]
    epochs, offsets = np.divmod(within, sizes)
    owners, which = np.unique(components << POSITION_BITS | epochs, return_inverse=True)
    keys = [round_keys(seed, owner & _WITHIN, owner >> POSITION_BITS) for owner in owners.tolist()]
    return shuffled(offsets, sizes, np.array(keys, dtype=np.uint64).reshape(-1, _ROUNDS)[which].T)


def component_of(positions: np.ndarray) -> np.ndarray:
    """Whose positions these are."""
    return positions >> POSITION_BITS


def epoch_of(positions: np.ndarray, num_pieces: np.ndarray) -> np.ndarray:
    """Which showing of its component, from 0, each position belongs to."""
    return (positions & _WITHIN) // num_pieces[component_of(positions)]


@lru_cache(maxsize=4096)
def round_keys(seed: int, epoch: int, component: int = 0) -> np.ndarray:
    """What keys the order of one epoch of one component: uint64, one for each round."""
    key = (seed, epoch, component) if component else (seed, epoch)
    return np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)


def shuffled(indices: np.ndarray, sizes: np.ndarray | int, keys: np.ndarray) -> np.ndarray:
    """Where keyed random permutations of 0 … size − 1 send these indices.

    Args:
        indices: below their sizes.
        sizes: of each index's permutation, up to 2^53; or one for all.
        keys: uint64, a row for each round, of one key for each index or one for all.
    """
    result = np.array(indices, dtype=np.uint64)
    limits = np.broadcast_to(np.asarray(sizes, dtype=np.uint64), result.shape)
    keys = np.broadcast_to(keys, (len(keys), len(result)))
    bits = np.frexp((limits - np.uint64(1)).astype(np.float64))[1]
    half_bits = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    low = (np.uint64(1) << half_bits) - np.uint64(1)
    walking = np.arange(len(result))
    while len(walking):  # the domain is at most four times too large
        result[walking] = _network(result[walking], half_bits[walking], low[walking], keys[:, walking])
        walking = walking[result[walking] >= limits[walking]]
    return result.astype(np.int64)


def _network(x: np.ndarray, half_bits: np.ndarray, low: np.ndarray, keys: np.ndarray) -> np.ndarray:
    left, right = x >> half_bits, x & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return left << half_bits | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
