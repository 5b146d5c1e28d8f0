"""Files, folders and records → the sources of an index: a text each, with its name, its hash and what is known of it.

    a file of text, Markdown or code       one source, named by its path
    .jsonl, .csv, .tsv, .parquet           a source a record, named PATH#ID

What cannot be read is told to `on_skip` with its reason, and the rest goes on: one bad file among a thousand costs itself
alone. Price: one file in memory, of tables of records one record.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert.errors import ModernBertError
from modernbert.text.blocks import BOM, DAMAGED, lines, read_blocks
from modernbert.text.read import JSONL_SUFFIXES, Paths, SourceFile, list_files
from modernbert.text.records import BROKEN, NO_TEXT, OnSkip, decode, is_encodable
from modernbert.text.tables import CSV_SUFFIXES, PARQUET_SUFFIXES

MEGABYTE = 10**6
_IDS = ("_id", "id", "doc_id", "docid")
_TITLES = ("title", "heading", "func_name", "name")
_LONGEST_META = 200  # characters of a field's value that is kept to filter by


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A text to be indexed."""

    name: str  # a path, or PATH#ID of a record
    file: str  # the path
    text: str
    digest: str  # of all that is indexed of it
    stamp: str = ""  # size and time of change, of a file that is one source
    title: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)  # short fields of a record, to filter by


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """A file whose size and time are those that are known: it was not read."""

    name: str


def iter_sources(
    paths: Paths,
    *,
    text_field: str = "text",
    exclude: Iterable[str] = (),
    max_megabytes: float = 20.0,
    is_known: Callable[[str, str], bool] = lambda _name, _stamp: False,
    on_skip: OnSkip,
) -> Iterator[Source | Unchanged]:
    """Read sources, file by file in sorted order.

    Args:
        paths: files and folders. What a folder holds beside known kinds of files is passed over.
        text_field: of records.
        exclude: shell patterns of files to pass over.
        max_megabytes: a file that is one source and larger is left out, as it would be one of some thousand passages.
        is_known: whether a file of this name was indexed with this stamp; then it is not read.
        on_skip: told of what is left out: a reason and a name.

    Raises:
        DataError: a path that does not exist.
    """
    for file in list_files(paths, on_skip=on_skip, exclude=exclude):
        if file.dataset is not None or file.shard is not None:
            on_skip("a dataset, which is not indexed: write it as .jsonl", str(file.path))
            continue
        try:
            yield from _sources_of(file, text_field, max_megabytes, is_known, on_skip)
        except OSError as error:
            on_skip(f"unreadable ({error.strerror or error})", str(file.path))
        except DAMAGED as error:
            on_skip(f"damaged ({error})", str(file.path))
        except ModernBertError as error:
            on_skip(f"unreadable ({error})", str(file.path))


def _sources_of(
    file: SourceFile,
    text_field: str,
    max_megabytes: float,
    is_known: Callable[[str, str], bool],
    on_skip: OnSkip,
) -> Iterator[Source | Unchanged]:
    path = file.path.absolute()
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    suffix = suffixes[-1] if suffixes else ""
    if suffix in JSONL_SUFFIXES:
        yield from _records(path, _json_rows(path, compression, on_skip), text_field, on_skip)
    elif suffix in CSV_SUFFIXES | PARQUET_SUFFIXES:
        from modernbert.text.labelled_open import open_table

        table = open_table(path)
        columns = {name: table.column(name) for name in table.names}
        rows = ({name: column[row] for name, column in columns.items()} for row in range(_length(columns)))
        yield from _records(path, enumerate(rows), text_field, on_skip)
    else:
        yield from _file(path, compression, max_megabytes, is_known, on_skip)


def _length(columns: Mapping[str, Sequence[Any]]) -> int:
    return max(map(len, columns.values()), default=0)


def _file(
    path: Path, compression: str, max_megabytes: float, is_known: Callable[[str, str], bool], on_skip: OnSkip
) -> Iterator[Source | Unchanged]:
    """A file that is one source."""
    name, status = str(path), path.stat()
    stamp = f"{status.st_size}:{status.st_mtime_ns}"
    if is_known(name, stamp):
        yield Unchanged(name=name)
        return
    raw, limit = bytearray(), max_megabytes * MEGABYTE
    for block in read_blocks(path, compression):
        raw += block
        if b"\0" in block:
            on_skip("binary", name)
            return
        if len(raw) > limit:
            on_skip(f"larger than {max_megabytes:g} MB (--max-megabytes)", name)
            return
    text = decode(bytes(raw).removeprefix(BOM))
    if text is None:
        on_skip(BROKEN, name)
    elif not text.strip():
        on_skip("empty", name)
    else:
        yield Source(name=name, file=name, text=text, digest=_digest(text), stamp=stamp)


def _json_rows(path: Path, compression: str, on_skip: OnSkip) -> Iterator[tuple[int, Mapping[str, Any]]]:
    blocks = read_blocks(path, compression)
    first = next(blocks, b"")
    if b"\0" in first:
        on_skip("binary", str(path))
        return
    for number, raw in enumerate(lines(itertools.chain([first.removeprefix(BOM)], blocks))):
        if not raw.strip():
            continue
        where = f"{path}, line {number + 1}"
        text = decode(raw)
        if text is None:
            on_skip(BROKEN, where)
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            on_skip("not valid JSON", where)
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            on_skip("no JSON object", where)


def _records(
    path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]], text_field: str, on_skip: OnSkip
) -> Iterator[Source]:
    """Records of one file, each under its own id or else its place."""
    seen: set[str] = set()
    for number, record in rows:
        text = record.get(text_field)
        given = next((record[name] for name in _IDS if record.get(name) not in (None, "")), number + 1)
        name = f"{path}#{given}"
        if name in seen:
            on_skip("an id that a record before it has", name)
            continue
        seen.add(name)
        if not isinstance(text, str):
            on_skip(NO_TEXT, name)
            continue
        if not text.strip():
            on_skip("empty", name)
            continue
        title = next((str(record[name]) for name in _TITLES if isinstance(record.get(name), str)), "")
        meta = {
            key: str(value)
            for key, value in record.items()
            if key != text_field and isinstance(value, str | int | float) and 0 < len(str(value)) <= _LONGEST_META
        }
        if not all(map(is_encodable, (text, title, *meta, *meta.values()))):
            on_skip(BROKEN, name)
            continue
        yield Source(
            name=name, file=str(path), text=text, title=title, meta=meta,
            digest=_digest(json.dumps([text, title, sorted(meta.items())])),
        )  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
