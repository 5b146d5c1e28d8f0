"""Windows of vectors → one .npy or .parquet file, whole or not there; writing that was cut off goes on.

    OUT.unfinished/.lock            held by the process that writes
    OUT.unfinished/progress.json    texts done, a hash of them, the settings; replaced whole after each window
    OUT.unfinished/...              the rows (`modernbert.retrieval.rows`)

A window is on disk before progress.json counts it, and what lies behind the counted rows is cut away before going on:
a kill at any time costs at most the window that was being computed. Price: two syncs a window.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.disk import sync, write_whole
from modernbert.errors import ConfigError, DataError
from modernbert.retrieval.rows import NpyRows, Rows

SUFFIXES = (".npy", ".parquet")


@dataclass(slots=True, kw_only=True)
class Counts:
    """How much has been encoded."""

    texts: int = 0
    tokens: int = 0  # special ones included, what was cut off not
    truncated: int = 0  # texts longer than the model takes
    empty: int = 0  # texts without any token, whose vectors are zero


def check_out(out: str | Path) -> Path:
    """Refuse a file that cannot be written, before any work.

    Raises:
        ConfigError: of another kind than .npy and .parquet, there already, or pyarrow is missing.
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out}: vectors are written as {' or '.join(SUFFIXES)}; choose a name that ends so")
    if out.exists():
        raise ConfigError(f"{out} is there already; remove it or choose another name")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"{out} needs pyarrow; pip install 'modernbert[parquet]', or choose a name ending in .npy")
    return out


class VectorFile:
    """A file of vectors on its way, locked by this process; `VectorFile.unfinished` opens it.

    `counts` says how much was done by an earlier process. The caller keeps it up to date; a window's `append` makes
    it last.
    """

    def __init__(self, out: Path, dimensions: int, settings: dict[str, Any]) -> None:
        self.counts = Counts()
        self._out, self._folder, self._settings = out, _folder_of(out), settings
        self._texts_hash = hashlib.blake2b(digest_size=16)
        self._num_recorded = 0
        self._hash_recorded = self._texts_hash.hexdigest()
        if self._progress_path.exists():
            self._read_progress()
        with self._writing():
            self._rows = _rows_of(out)(self._folder, dimensions)
            if not self._rows.cut_back(self._num_recorded):
                raise self._damaged(f"holds fewer than {self._num_recorded:,} rows")

    @classmethod
    @contextlib.contextmanager
    def unfinished(cls, out: Path, dimensions: int, settings: dict[str, Any]) -> Iterator[VectorFile]:
        """Begin a file, or go on with what an earlier process left.

        Args:
            out: the file; see `check_out`.
            dimensions: of a vector.
            settings: all that decides what a vector is, as plain data. What was begun with others is refused.

        Raises:
            ConfigError: other settings, or another process is writing it.
            DataError: it cannot be written, or what an earlier process left is damaged.
        """
        with _locked(_folder_of(out)):
            check_out(out)  # again: another process may just have finished it
            file = cls(out, dimensions, settings)
            try:
                yield file
            finally:
                if not file._num_recorded:
                    shutil.rmtree(file._folder, ignore_errors=True)

    def skip_done(self, texts: Iterator[str]) -> None:
        """Take the texts that are done off the iterator.

        Raises:
            DataError: they are not those that were encoded.
        """
        for text in itertools.islice(texts, self._num_recorded):
            self._hash(text)
        if self._texts_hash.hexdigest() != self._hash_recorded:
            raise DataError(
                f"{self._folder} holds vectors of {self._num_recorded:,} texts which are not the first of these; "
                "give the same texts again, or remove it to begin anew"
            )

    def append(self, texts: Sequence[str], vectors_WD: np.ndarray) -> None:
        """Put a window of W texts and their vectors on disk.

        Raises:
            DataError: the disk is full or not writable; what was appended before stays.
        """
        assert self.counts.texts == self._num_recorded + len(texts) == self._num_recorded + len(vectors_WD)
        for text in texts:
            self._hash(text)
        progress = {
            "settings": self._settings,
            "counts": asdict(self.counts),
            "texts_hash": self._texts_hash.hexdigest(),
        }
        with self._writing():
            self._rows.append(self._num_recorded, texts, vectors_WD)
            write_whole(self._progress_path, json.dumps(progress, indent=2) + "\n")
        self._num_recorded = self.counts.texts

    def finish(self) -> Path:
        """Give the file its name."""
        with self._writing():
            unnamed = self._rows.finish(self._num_recorded)
            sync(unnamed)
            os.replace(unnamed, self._out)
            sync(self._out.parent)
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._out

    @property
    def _progress_path(self) -> Path:
        return self._folder / "progress.json"

    def _hash(self, text: str) -> None:
        raw = text.encode()
        self._texts_hash.update(len(raw).to_bytes(8, "little"))  # or "ab", "c" would be as "a", "bc"
        self._texts_hash.update(raw)

    def _read_progress(self) -> None:
        try:
            progress = json.loads(self._progress_path.read_text(encoding="utf-8"))
            settings, self._hash_recorded = progress["settings"], progress["texts_hash"]
            self.counts = Counts(**progress["counts"])
            self._num_recorded = self.counts.texts
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged("has a progress.json that cannot be read") from error
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise ConfigError(
                    f"{self._folder} was begun with {name}={settings.get(name)!r}, this is {name}={value!r}; "
                    f"go on as it was begun, remove it, or choose another name than {self._out.name}"
                )

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self._folder} {what}, so it is damaged; remove it to begin anew")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self._out} cannot be written ({error.strerror or error}); free some space or choose another place. "
                f"The {self._num_recorded:,} texts that are done stay, and the same command goes on behind them"
            ) from error


def _folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.unfinished")


def _rows_of(out: Path) -> type[Rows]:
    if out.suffix == ".npy":
        return NpyRows
    from modernbert.retrieval.parquet import ParquetRows  # here, because pyarrow is an extra

    return ParquetRows


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - held while the file is written
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror or error}); choose another place") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} is in use by another process; wait for it or choose another name") from error
        yield
