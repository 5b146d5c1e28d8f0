"""Token ids of one split -> its row of shards, each whole on disk or not there at all.

A shard grows as a `.tmp` file, is synced, renamed into place, and only then noted (see `folder`). Price: the ids go
straight to disk; memory holds eight bytes for each document of the open shard, twelve where scores are kept.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from modernbert.text.shards import INDEX_DTYPE, SCORE_DTYPE, length_histogram


class SplitWriter:
    """Writes one split as a row of shards. A finished shard is whole on disk; an open one is a .tmp file."""

    def __init__(
        self,
        folder: Path,
        prefix: str,
        *,
        dtype: np.dtype[Any],
        shard_tokens: int,
        finished: list[dict[str, Any]],
        scores: bool = False,
    ) -> None:
        self._folder, self._prefix, self._dtype, self._shard_tokens = folder, prefix, dtype, shard_tokens
        self._keeps_scores = scores
        # A shard that somebody deleted or cut since is written anew, with all that follow.
        self.finished = list(itertools.takewhile(self._is_whole, finished))
        self.num_documents = sum(shard["documents"] for shard in self.finished)
        self.num_tokens = sum(shard["tokens"] for shard in self.finished)
        self.num_too_short = sum(shard["too_short_before"] for shard in self.finished)
        self._file: IO[bytes] | None = None

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._prefix}-{len(self.finished):05d}.bin"

    def add(self, ids: Sequence[int] | NDArray[Any], *, num_text_bytes: int, score: float | None = None) -> bool:
        """Append a document, with its score where scores are kept. True where that closed the shard."""
        if self._file is None:
            self._file = self._path.with_suffix(".bin.tmp").open("wb")
            self._offsets, self._scores = array("Q", [0]), array("f")
            self._num_text_bytes = 0
            self._sha256 = hashlib.sha256()
        raw = np.asarray(ids, dtype=self._dtype).tobytes()
        self._file.write(raw)
        self._sha256.update(raw)
        self._offsets.append(self._offsets[-1] + len(ids))
        if self._keeps_scores:
            assert score is not None
            self._scores.append(score)
        self._num_text_bytes += num_text_bytes
        self.num_documents += 1
        self.num_tokens += len(ids)
        if self._offsets[-1] < self._shard_tokens:
            return False
        self.close_shard()
        return True

    def close_shard(self) -> None:
        """Put the open shard in its place, if there is one."""
        if self._file is None:
            return
        path = self._path
        too_short_before = self.num_too_short - sum(shard["too_short_before"] for shard in self.finished)
        beside = {"idx": np.asarray(self._offsets, dtype=INDEX_DTYPE).tobytes()}
        if self._keeps_scores:
            beside["score"] = np.asarray(self._scores, dtype=SCORE_DTYPE).tobytes()
        _sync_and_close(self._file)
        for ending, raw in beside.items():
            file = path.with_suffix(f".{ending}.tmp").open("wb")
            file.write(raw)
            _sync_and_close(file)
        for ending in (*beside, "bin"):
            os.replace(path.with_suffix(f".{ending}.tmp"), path.with_suffix(f".{ending}"))
        self._file = None
        self.finished.append(
            {
                "name": path.stem,
                "documents": len(self._offsets) - 1,
                "tokens": self._offsets[-1],
                "text_bytes": self._num_text_bytes,
                "too_short_before": too_short_before,
                "sha256": self._sha256.hexdigest(),
            }
        )
        if self._keeps_scores:
            self.finished[-1]["score_sha256"] = hashlib.sha256(beside["score"]).hexdigest()

    def discard(self) -> None:
        """Throw away the open shard, if there is one."""
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses the buffer's last bytes once more
                self._file.close()
            for ending in ("bin", "idx", "score"):
                self._path.with_suffix(f".{ending}.tmp").unlink(missing_ok=True)
            self._file = None

    def _is_whole(self, shard: dict[str, Any]) -> bool:
        sizes = {
            "bin": shard["tokens"] * self._dtype.itemsize,
            "idx": (shard["documents"] + 1) * INDEX_DTYPE.itemsize,
        }
        if self._keeps_scores:
            sizes["score"] = shard["documents"] * SCORE_DTYPE.itemsize
        paths = {ending: self._folder / f"{shard['name']}.{ending}" for ending in sizes}
        return all(paths[ending].is_file() and paths[ending].stat().st_size == sizes[ending] for ending in sizes)

    def describe(self) -> dict[str, Any]:
        """Return the split's part of the manifest. Memory: the lengths of one shard's documents, and all scores."""
        rows: dict[int, dict[str, int]] = {}
        for shard in self.finished:
            offsets = np.fromfile(self._folder / f"{shard['name']}.idx", INDEX_DTYPE)
            for row in length_histogram(np.diff(offsets.astype(np.int64)).astype(np.int64)):
                total = rows.setdefault(row["from"], {**row, "documents": 0, "tokens": 0})
                total["documents"] += row["documents"]
                total["tokens"] += row["tokens"]
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "text_bytes": sum(shard["text_bytes"] for shard in self.finished),
            "shards": self.finished,
            "lengths": [rows[least] for least in sorted(rows)],
            **({"score_quantiles": self._score_quantiles()} if self._keeps_scores and self.finished else {}),
        }

    def _score_quantiles(self) -> list[float]:
        """The least score, the quartiles and the greatest."""
        scores = [np.fromfile(self._folder / f"{shard['name']}.score", SCORE_DTYPE) for shard in self.finished]
        quantiles: list[float] = np.quantile(np.concatenate(scores), (0, 0.25, 0.5, 0.75, 1)).tolist()
        return quantiles


def _sync_and_close(file: IO[bytes]) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())
