"""Windows of vectors → rows of one .npy file on disk.

    rows.npy    the rows, behind 128 bytes kept free for the header, which is written last

The file does not say how many of its rows are whole: that is told from outside (`modernbert.retrieval.vectors`), and
what lies behind them is cut away. Price: each row is written once, and nothing is copied at the end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from modernbert.disk import sync

_HEADER_BYTES = 128


class Rows(Protocol):
    """How rows lie in a folder before they are one file."""

    def __init__(self, folder: Path, dimensions: int) -> None: ...

    def cut_back(self, num_rows: int) -> bool:
        """Drop what lies behind so many rows. False where there are fewer."""

    def append(self, first_row: int, texts: Sequence[str], vectors_WD: np.ndarray) -> None:
        """Put the rows of a window on disk, synced."""

    def finish(self, num_rows: int) -> Path:
        """Make one file of all rows, still in the folder."""


class NpyRows:
    """`Rows` of a .npy file; texts are not kept."""

    def __init__(self, folder: Path, dimensions: int) -> None:
        self._path, self._dimensions = folder / "rows.npy", dimensions

    def cut_back(self, num_rows: int) -> bool:
        """See `Rows`."""
        if not num_rows:
            self._path.write_bytes(bytes(_HEADER_BYTES))
        num_bytes = _HEADER_BYTES + num_rows * self._dimensions * 4
        if not self._path.exists() or self._path.stat().st_size < num_bytes:
            return False
        os.truncate(self._path, num_bytes)
        return True

    def append(self, first_row: int, texts: Sequence[str], vectors_WD: np.ndarray) -> None:  # noqa: ARG002
        """See `Rows`."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(vectors_WD, dtype="<f4").data)
        sync(self._path)

    def finish(self, num_rows: int) -> Path:
        """See `Rows`. The header is numpy's, version 1.0, padded with spaces to the room that was kept."""
        about = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, self._dimensions)}
        header = str(about).encode("ascii").ljust(_HEADER_BYTES - 11) + b"\n"
        with self._path.open("r+b") as file:
            file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        return self._path
