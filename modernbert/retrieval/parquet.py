"""Windows of texts and vectors → rows of one .parquet file on disk: index, text, vector. Needs pyarrow.

    part-*.parquet    a file for each window, named by its first row; copied into one at the end

A parquet file that is cut off cannot be read at all, hence the parts. Price: each row is written twice, and for the
moment of the copy the rows take their size of disk twice; one window is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modernbert.disk import sync

# Vectors neither repeat nor compress; text does.
_COMPRESSION = {"index": "zstd", "text": "zstd", "vector.list.element": "none"}


class ParquetRows:
    """`Rows` of a .parquet file."""

    def __init__(self, folder: Path, dimensions: int) -> None:
        self._folder = folder
        vector = pa.list_(pa.float32(), dimensions)
        self._schema = pa.schema([("index", pa.int64()), ("text", pa.string()), ("vector", vector)])

    def cut_back(self, num_rows: int) -> bool:
        """See `Rows`."""
        num_found = 0
        for path in self._parts():
            if int(path.stem.removeprefix("part-")) >= num_rows:
                path.unlink()
                continue
            try:
                num_found += pq.read_metadata(path).num_rows
            except ValueError:  # pyarrow's word for no parquet file
                return False
        return num_found == num_rows

    def append(self, first_row: int, texts: Sequence[str], vectors_WD: np.ndarray) -> None:
        """See `Rows`."""
        index = pa.array(np.arange(first_row, first_row + len(texts)))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_WD.reshape(-1)), vectors_WD.shape[1])
        path = self._folder / f"part-{first_row:012d}.parquet"
        self._write(path, [pa.table([index, pa.array(texts, pa.string()), vectors], schema=self._schema)])
        sync(path)

    def finish(self, num_rows: int) -> Path:  # noqa: ARG002
        """See `Rows`. A window stays a row group."""
        path = self._folder / "rows.parquet"
        self._write(path, (pq.ParquetFile(part).read() for part in self._parts()))
        return path

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))

    def _write(self, path: Path, tables: Iterable[pa.Table]) -> None:
        with pq.ParquetWriter(path, self._schema, compression=_COMPRESSION, use_dictionary=False) as writer:
            for table in tables:
                writer.write_table(table)
