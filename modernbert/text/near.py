"""Documents -> those that are unlike every one kept before: MinHash signatures, compared where a band of them agrees.

Steps: words (see `words`: characters in scripts without spaces), runs of five of them, a signature of 128 numbers
(rensa); cut into bands so that a pair at the threshold shares one in at least 99 of 100 cases; documents that share a
band are compared by their signatures, which give the Jaccard similarity of their runs with a standard error of 0.035 at
0.8. The first document of its kind is kept, and only kept ones are compared with.

Price: 15 MB of text a second on one core for the signature, 5,000 documents a second for looking up. Memory: a cache of
fixed size; behind it 1 to 1.5 kB of disk for each document kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import ConfigError
from modernbert.text.clean import CACHE_BYTES, open_scratch
from modernbert.text.words import blockwise_ngram_hashes, hash_rows, ngram_hashes, split_words

NUM_WORDS = 5
_NUM_HASHES = 128
_SEED = 1
_FOUND_AT_THRESHOLD = 0.99
_MOST_CANDIDATES = 256


def version_for(threshold: float) -> str:
    """Name the version of the signatures, which a build that goes on must share.

    Raises:
        ConfigError: a threshold that is no similarity, or rensa is not installed.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"near_duplicates={threshold} is out of range; a similarity is above 0 and up to 1")
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ConfigError(
            "near-duplicates need rensa, which is not installed; pip install 'modernbert[dedup]'"
        ) from error
    return f"rensa {RMinHash.ALGORITHM_VERSION}"


def signature(text: str) -> NDArray[np.uint32] | None:
    """128 numbers of which two texts share about as many as they share of their runs of five words; None: no words."""
    from rensa import RMinHash

    def number(words: list[str]) -> NDArray[np.uint64]:
        return np.asarray(RMinHash.hash_token_sets([words])[0], dtype=np.uint64)

    parts = list(blockwise_ngram_hashes(text, number, NUM_WORDS))
    hashes = np.concatenate(parts) if parts else ngram_hashes(number(split_words(text)), NUM_WORDS)
    if not len(hashes):
        return None
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, np.array([0, len(hashes)]), _NUM_HASHES, _SEED)
    return np.asarray(matrix.to_rows()[0], dtype=np.uint32)


class NearDuplicates:
    """The signatures of the documents kept so far.

    Args:
        threshold: the Jaccard similarity, above 0 and up to 1, from which a document counts as a copy.
        folder: where the index goes once it outgrows the cache; the place for temporary files if not given.
        cache_bytes: memory for it.
    """

    def __init__(self, threshold: float, folder: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        version_for(threshold)
        self.threshold = threshold
        self.num_bands, self._rows = bands(threshold)
        self._database = open_scratch(folder, cache_bytes)
        self._database.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, signature BLOB, name TEXT)")
        self._database.execute(
            "CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID"
        )
        self._num_kept = 0

    def find(self, signature: NDArray[np.uint32], name: str) -> tuple[str, float] | None:
        """The kept document that this one copies and their estimated similarity; where there is none, keep this one."""
        keys = self._keys(signature)
        marks = ", ".join("?" * len(keys))
        numbers = f"SELECT DISTINCT number FROM bands WHERE band IN ({marks}) ORDER BY number LIMIT {_MOST_CANDIDATES}"
        rows = self._database.execute(
            f"SELECT name, signature FROM kept WHERE number IN ({numbers}) ORDER BY number", keys
        )
        for other, raw in rows:
            alike = float((np.frombuffer(raw, dtype=np.uint32) == signature).mean())
            if alike >= self.threshold:
                return other, alike
        self._database.execute("INSERT INTO kept VALUES (?, ?, ?)", (self._num_kept, signature.tobytes(), name))
        self._database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(key, self._num_kept) for key in keys])
        self._num_kept += 1
        return None

    def _keys(self, signature: NDArray[np.uint32]) -> list[int]:
        """A 64-bit number for each band, and another where the same numbers stand in another band."""
        table = signature[: self.num_bands * self._rows].reshape(self.num_bands, self._rows).astype(np.uint64)
        numbers = np.arange(1, self.num_bands + 1, dtype=np.uint64)
        keys: list[int] = hash_rows([numbers, *table.T]).tolist()
        return [key - 2**64 if key >= 2**63 else key for key in keys]  # SQLite's integers have a sign


def bands(threshold: float) -> tuple[int, int]:
    """The bands of a signature and the numbers in each: the fewest bands that find 99 % of the pairs at a threshold."""
    for rows in range(_NUM_HASHES, 0, -1):
        count = _NUM_HASHES // rows
        if 1 - (1 - threshold**rows) ** count >= _FOUND_AT_THRESHOLD:
            return count, rows
    return _NUM_HASHES, 1
