"""Token ids of one split -> its row of shards, each whole on disk or not there at all; two rows are a folder.

A shard grows as a `.tmp` file, is synced, renamed into place, and only then noted in `build.json`; `manifest.json`
comes last. Price: the ids go straight to disk; memory holds eight bytes for each document of the open shard, twelve
where scores are kept.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from modernbert.disk import write_whole
from modernbert.errors import ConfigError, DataError
from modernbert.text.clean import is_held_out
from modernbert.text.read import Skips
from modernbert.text.shards import (
    FORMAT_VERSION,
    INDEX_DTYPE,
    MANIFEST,
    PREFIXES,
    SCORE_DTYPE,
    Split,
    length_histogram,
    token_dtype,
)

_STATE = "build.json"


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
        """Return the split's part of the manifest. Memory: the lengths of one shard's documents at a time."""
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
        }


class BuildFolder:
    """A folder on its way to being a finished build, and the writer of each split.

    Args:
        folder: made where missing; may hold the unfinished build of the same settings, which goes on.
        settings: what the contents depend on, as plain data; "tokenizer" (its fingerprint), "heldout" and "seed"
            among them.
        vocab_size: ids are below it.
        shard_tokens: a shard is closed once it holds so many.
        scores: whether each document comes with a score.

    Raises:
        ConfigError: the folder holds a build of other settings.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, vocab_size: int, shard_tokens: int, scores: bool = False
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.vocab_size = vocab_size
        self.keeps_scores = scores
        self._state_path = folder / _STATE
        finished: dict[str, list[dict[str, Any]]] = {split: [] for split in PREFIXES}
        folder.mkdir(parents=True, exist_ok=True)
        if self._state_path.exists():
            state = json.loads(self._state_path.read_bytes())
            check_same_build(folder, state["settings"], settings)
            finished = state["shards"]
        self.writers = {
            split: SplitWriter(
                folder,
                prefix,
                dtype=token_dtype(vocab_size),
                shard_tokens=shard_tokens,
                finished=finished[split],
                scores=scores,
            )
            for split, prefix in PREFIXES.items()
        }
        self._num_done = {split: writer.num_documents + writer.num_too_short for split, writer in self.writers.items()}
        self._write_state()

    @property
    def num_tokens(self) -> int:
        """Tokens of both splits."""
        return sum(writer.num_tokens for writer in self.writers.values())

    @property
    def num_too_short(self) -> int:
        """Documents of fewer than `min_tokens`."""
        return sum(writer.num_too_short for writer in self.writers.values())

    @property
    def num_documents(self) -> dict[str, int]:
        """Documents kept, by split."""
        return {split: writer.num_documents for split, writer in self.writers.items()}

    @property
    def has_shards(self) -> bool:
        """Whether there is anything to go on from."""
        return any(writer.finished for writer in self.writers.values())

    @property
    def is_catching_up(self) -> bool:
        """Whether documents still come that lie in finished shards of an earlier call."""
        return any(self._num_done.values())

    def split_of(self, digest: bytes) -> Split:
        """The split of the document with this digest."""
        held_out = is_held_out(digest, fraction=self.settings["heldout"], seed=self.settings["seed"])
        return "heldout" if held_out else "train"

    def is_done(self, split: Split) -> bool:
        """Whether the next document of this split lies in a finished shard already. Call once for each document."""
        if not self._num_done[split]:
            return False
        self._num_done[split] -= 1
        return True

    def add(
        self,
        split: Split,
        ids: Sequence[int] | NDArray[Any],
        *,
        num_text_bytes: int,
        min_tokens: int,
        score: float | None = None,
    ) -> None:
        """Append a document to its split, or count it as too short."""
        writer = self.writers[split]
        if len(ids) < min_tokens:
            writer.num_too_short += 1
        elif writer.add(ids, num_text_bytes=num_text_bytes, score=score):
            self._write_state()

    def close(self) -> None:
        """Close the open shards."""
        for writer in self.writers.values():
            writer.close_shard()
        self._write_state()

    def discard_open_shards(self) -> None:
        """Leave finished shards only."""
        for writer in self.writers.values():
            writer.discard()

    def forget(self) -> None:
        """Leave nothing behind that looks like a build."""
        for shard in itertools.chain.from_iterable(writer.finished for writer in self.writers.values()):
            for ending in ("bin", "idx", "score"):
                (self.folder / f"{shard['name']}.{ending}").unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder holds something else, or is in use
            self.folder.rmdir()

    def describe(self, skips: Skips) -> dict[str, Any]:
        """The manifest of the closed shards."""
        return {
            "format": "modernbert-shards",
            "version": FORMAT_VERSION,
            "dtype": token_dtype(self.vocab_size).name,
            "vocab_size": self.vocab_size,
            "tokenizer": self.settings["tokenizer"],
            "scores": self.keeps_scores,
            "splits": {split: writer.describe() for split, writer in self.writers.items()},
            "skipped": skips.as_dict(),
            "settings": self.settings,
        }

    def finish(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, which makes a data set of the folder. Returns it."""
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        self._state_path.unlink()
        return manifest

    def _write_state(self) -> None:
        shards = {split: writer.finished for split, writer in self.writers.items()}
        state = {"settings": self.settings, "shards": shards}
        write_whole(self._state_path, json.dumps(state, ensure_ascii=False))


def check_same_build(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to mix two builds.

    Raises:
        ConfigError: the settings differ; the message names them.
    """
    names = {"sources_digest": "the source files", "tokenizer": "the tokenizer"}
    different = [
        names.get(key, f"{key} ({there.get(key)!r} there, {here.get(key)!r} here)")
        for key in [*here, *(key for key in there if key not in here)]
        if there.get(key) != here.get(key)
    ]
    if different:
        raise ConfigError(
            f"{folder} holds a build of other inputs: {', '.join(different)} differ; "
            "choose another --out, or delete that folder"
        )


@contextmanager
def saying_what_to_do(folder: Path) -> Iterator[None]:
    """Turn what a full or foreign disk says into one line with a remedy."""
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(folder: Path, error: OSError | sqlite3.Error) -> DataError:
    """What to say of a full or foreign disk."""
    reason = getattr(error, "strerror", None) or error
    return DataError(
        f"{folder} cannot be written ({reason}); make room or take another --out, and "
        "run the same command again: finished shards are kept"
    )


def _sync_and_close(file: IO[bytes]) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())
