"""Tables -> documents, a row each: csv and tsv (also as .gz or .zst), and parquet.

Steps: take the wanted columns, refuse the table before its first row where one is missing, and go through the
rows as they come. Price: csv one row in memory, 100 MB/s; parquet 64 rows and a page of each wanted column, 100 MB/s.

A row that does not fit the header, a quote that is never closed and a file that was cut short are errors,
because a table read askew looks like text.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modernbert.batch import Document
from modernbert.errors import DataError, UnsupportedError
from modernbert.text.blocks import BOM, lines, read_blocks
from modernbert.text.records import Fields, OnSkip, Row, documents_of

CSV_SUFFIXES = frozenset({".csv", ".tsv"})
PARQUET_SUFFIXES = frozenset({".parquet"})

_MAX_FIELD_CHARS = 2**28  # what lies behind a quote that is never closed is read up to here, then refused
_ROWS_PER_BATCH = 64
_BUFFER_BYTES = 2**20


def read_csv(path: Path, compression: str, fields: Fields, skip: OnSkip) -> Iterator[Document]:
    """Read a table of text whose first row names its columns; ".tsv" is split at tabs, ".csv" as its header is.

    Args:
        path: the file.
        compression: as `read_blocks` takes it.
        fields: the columns wanted.
        skip: as `documents_of` takes it.

    Raises:
        DataError: a column that is missing, a row that does not fit the header, quotes that do not match.
    """
    rows = csv_rows(path, compression)
    _, header = next(rows, (0, []))
    if not header:
        return
    fields.check_columns(header, f"{path}, line 1")
    yield from documents_of(csv_records(path, header, rows, fields.score), fields, str(path), skip)


def csv_records(
    path: Path, header: list[str], rows: Iterator[tuple[int, list[str]]], score: str | None
) -> Iterator[Row]:
    """Rows as records of a header, each with its place in the file."""
    for position, (line, row) in enumerate(rows):
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise DataError(
                f"{where}: a row of {len(row)} fields under a header of {len(header)}; "
                "put a field that holds a separator or a line break in quotes"
            )
        record: dict[str, Any] = dict(zip(header, row, strict=True))
        if score is not None:
            record[score] = _number(record[score])
        yield position, where, record


def csv_rows(path: Path, compression: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of each row that is not blank. Bytes that are not UTF-8 become surrogates."""
    blocks = read_blocks(path, compression)
    first = next(blocks, b"")
    if b"\0" in first:
        raise DataError(f"{path} is not a table of text: it has NUL bytes in it; save it as UTF-8 or leave it out")
    if b"\r" in first.rstrip(b"\r") and b"\n" not in first:
        raise DataError(f"{path}: its lines end as on old Macs, in \\r alone; save it with \\n or \\r\\n")
    raw = lines(itertools.chain([first.removeprefix(BOM)], blocks))
    text = (line.decode("utf-8", "surrogateescape") + "\n" for line in raw)
    header = next(text, "")
    is_tsv = path.name.lower().removesuffix(compression).endswith(".tsv")
    separator = "\t" if is_tsv else max(",;\t|", key=header.count)
    csv.field_size_limit(_MAX_FIELD_CHARS)
    reader = csv.reader(itertools.chain([header], text), delimiter=separator, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; the row that ends there opens a quote it does not close, "
            "or does not double a quote inside quotes; repair it, or save the table as JSON lines or parquet"
        ) from error


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def read_parquet(path: Path, fields: Fields, skip: OnSkip) -> Iterator[Document]:
    """Read the wanted columns of a parquet file, a few rows at a time.

    Args:
        path: the file.
        fields: the columns wanted.
        skip: as `documents_of` takes it.

    Raises:
        DataError: a column that is missing or holds no text.
        EOFError: the file is cut short or damaged.
        UnsupportedError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnsupportedError(
            f"{path}: parquet needs pyarrow, which is not installed; pip install 'modernbert[parquet]'"
        ) from error
    try:
        # With pre_buffer, pyarrow's own choice, memory grows with the file: 388 MB for one of 400 MB, here 7.
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            types = {column.name: column.type for column in file.schema_arrow}
            fields.check_columns(types, str(path), texts=[name for name, kind in types.items() if _is_text(kind)])
            names = fields.among(types)
            batches = file.iter_batches(_ROWS_PER_BATCH, columns=names, use_threads=False)
            columns = ([_values(batch.column(name)) for name in names] for batch in batches)
            values = itertools.chain.from_iterable(zip(*some, strict=True) for some in columns)
            rows = (
                (position, f"{path}, row {position}", dict.fromkeys(types) | dict(zip(names, row, strict=True)))
                for position, row in enumerate(values)
            )
            yield from documents_of(rows, fields, str(path), skip)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's own word
        raise EOFError from error


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _values(column: Any) -> list[Any]:
    """Python values of a column of a batch; text as bytes, for it may not be UTF-8 and that is the reader's to say."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_large_string(column.type):
        column = column.view(pyarrow.large_binary())
    elif pyarrow.types.is_string(column.type):
        column = column.view(pyarrow.binary())
    return column.to_pylist()
