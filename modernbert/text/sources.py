r"""Files, folders and records → the sources of an index: a text each, with its name, its hash and what is known of it.

    a file of text, Markdown or code       one source, named by its path
    .jsonl, .csv, .tsv, .parquet           a source a record, named PATH#ID

What cannot be read is told with its reason, and the rest goes on: one bad file among a thousand costs itself alone. A text is
what `Path.read_text(encoding="utf-8")` gives, line ends as \n. Price: one file in memory, of .jsonl one record.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert.errors import ModernBertError
from modernbert.text.blocks import BOM, COMPRESSIONS, DAMAGED, lines, read_blocks
from modernbert.text.read import JSONL_SUFFIXES, list_files
from modernbert.text.records import BROKEN, NO_TEXT, NOT_JSON, decode, is_encodable
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
    begins_at: int = 0  # where the text begins in the file as `read_text` gives it: 1 behind a byte-order mark
    title: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)  # short fields of a record, to filter by


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """A file whose size and time are those that are known: it was not read."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What is not indexed, and why."""

    reason: str
    name: str
    file: str  # the path, of a folder too
    is_unsure: bool = False  # whether something may be there that could not be read


def iter_sources(
    paths: Sequence[str | Path],
    *,
    text_field: str = "text",
    exclude: Iterable[str] = (),
    max_megabytes: float = 20.0,
    is_known: Callable[[str, str], bool] = lambda _name, _stamp: False,
) -> Iterator[Source | Unchanged | LeftOut]:
    """Read sources, file by file in sorted order; what is left out is told in its place.

    Args:
        paths: files and folders. What a folder holds beside known kinds of files is passed over.
        text_field: of records.
        exclude: shell patterns of files to pass over.
        max_megabytes: a file that is one source and larger is left out, as it would be one of some thousand passages.
        is_known: whether a file of this name was indexed with this stamp; then it is not read.

    Raises:
        DataError: a path that does not exist.
    """
    passed_over: list[LeftOut] = []

    def pass_over(reason: str, name: str) -> None:
        place = os.path.abspath(name)
        passed_over.append(LeftOut(reason=reason, name=place, file=place, is_unsure=reason == "unreadable folder"))

    for file in list_files([str(path) for path in paths], on_skip=pass_over, exclude=exclude):
        yield from passed_over
        passed_over.clear()
        path = Path(os.path.abspath(file.path))
        name = str(path)
        if not is_encodable(name):
            yield LeftOut(reason="a name that is not UTF-8", name=ascii(name), file=name)
        elif file.dataset is not None or file.shard is not None:
            yield LeftOut(reason="a dataset, which is not indexed: write it as .jsonl", name=name, file=name)
        else:
            try:
                yield from _sources_of(path, text_field, max_megabytes, is_known)
            except OSError as error:
                yield LeftOut(reason=f"unreadable ({error.strerror or error})", name=name, file=name, is_unsure=True)
            except DAMAGED as error:
                yield LeftOut(reason=f"damaged ({error})", name=name, file=name, is_unsure=True)
            except ModernBertError as error:
                yield LeftOut(reason=f"unreadable ({error})", name=name, file=name, is_unsure=True)
    yield from passed_over


def _sources_of(
    path: Path, text_field: str, max_megabytes: float, is_known: Callable[[str, str], bool]
) -> Iterator[Source | Unchanged | LeftOut]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    suffix = suffixes[-1] if suffixes else ""
    if suffix in JSONL_SUFFIXES:
        yield from _records(path, _json_rows(path, compression), text_field)
    elif suffix in CSV_SUFFIXES | PARQUET_SUFFIXES:
        from modernbert.text.labelled_open import open_table

        table = open_table(path)
        columns = {name: table.column(name) for name in table.names}
        count = max(map(len, columns.values()), default=0)
        rows = ({name: column[row] for name, column in columns.items()} for row in range(count))
        yield from _records(path, enumerate(rows), text_field)
    else:
        yield _file(path, compression, max_megabytes, is_known)


def _file(
    path: Path, compression: str, max_megabytes: float, is_known: Callable[[str, str], bool]
) -> Source | Unchanged | LeftOut:
    """A file that is one source."""
    name, status = str(path), path.stat()
    stamp = f"{status.st_size}:{status.st_mtime_ns}"
    if is_known(name, stamp):
        return Unchanged(name=name)
    raw, limit = bytearray(), max_megabytes * MEGABYTE
    for block in read_blocks(path, compression):
        raw += block
        if b"\0" in block:
            return LeftOut(reason="binary", name=name, file=name, is_unsure=True)
        if len(raw) > limit:
            reason = f"larger than {max_megabytes:g} MB (--max-megabytes)"
            return LeftOut(reason=reason, name=name, file=name, is_unsure=True)
    has_bom = raw.startswith(BOM)
    text = decode(bytes(raw).removeprefix(BOM))
    if text is None:
        return LeftOut(reason=BROKEN, name=name, file=name, is_unsure=True)
    if not text.strip():
        return LeftOut(reason="empty", name=name, file=name)
    return Source(name=name, file=name, text=text, begins_at=int(has_bom), digest=_digest(text), stamp=stamp)


def _json_rows(path: Path, compression: str) -> Iterator[tuple[int, Mapping[str, Any] | LeftOut]]:
    blocks = read_blocks(path, compression)
    first = next(blocks, b"")
    if b"\0" in first:
        yield 0, LeftOut(reason="binary", name=str(path), file=str(path), is_unsure=True)
        return
    for number, raw in enumerate(lines(itertools.chain([first.removeprefix(BOM)], blocks))):
        if raw.strip():
            yield number, _json_row(path, number, raw)


def _json_row(path: Path, number: int, raw: bytes) -> Mapping[str, Any] | LeftOut:
    text, reason = decode(raw), NOT_JSON
    if text is None:
        reason = BROKEN
    else:
        try:
            record = json.loads(text)
            if isinstance(record, dict):
                return record
            reason = "no JSON object"
        except (ValueError, RecursionError):
            pass
    return LeftOut(reason=reason, name=f"{path}, line {number + 1}", file=str(path), is_unsure=True)


def _records(
    path: Path, rows: Iterable[tuple[int, Mapping[str, Any] | LeftOut]], text_field: str
) -> Iterator[Source | LeftOut]:
    """Records of one file, each under its own id or else its place."""
    seen: set[str] = set()
    without: list[LeftOut] = []
    others: dict[str, None] = {}
    has_field = False
    for number, record in rows:
        if isinstance(record, LeftOut):
            yield record
            continue
        given = next((record[name] for name in _IDS if record.get(name) not in (None, "")), number + 1)
        name = f"{path}#{given}"
        has_field = has_field or text_field in record
        found = _record(path, name, record, text_field)
        if name in seen:
            found = LeftOut(reason="an id that a record before it has", name=name, file=str(path))
        seen.add(name)
        if isinstance(found, LeftOut) and found.reason == NO_TEXT and not has_field:
            without.append(found)
            others |= dict.fromkeys(key for key, value in record.items() if isinstance(value, str))
        else:
            yield found
    if has_field:
        yield from without
    elif without:
        reason = (
            f"no record has the field {text_field!r} (--text-field; there are {', '.join(others) or 'none of text'})"
        )
        # Rather a wrong option than a file that has lost its texts: what was indexed of it stays.
        yield LeftOut(reason=reason, name=str(path), file=str(path), is_unsure=True)


def _record(path: Path, name: str, record: Mapping[str, Any], text_field: str) -> Source | LeftOut:
    text = record.get(text_field)
    if not isinstance(text, str):
        return LeftOut(reason=NO_TEXT, name=name, file=str(path))
    if not text.strip():
        return LeftOut(reason="empty", name=name, file=str(path))
    title = next((str(record[key]) for key in _TITLES if isinstance(record.get(key), str)), "")
    meta = {
        key: str(value)
        for key, value in record.items()
        if key != text_field and isinstance(value, str | int | float) and 0 < len(str(value)) <= _LONGEST_META
    }
    if not all(map(is_encodable, (name, text, title, *meta, *meta.values()))):
        return LeftOut(reason=BROKEN, name=ascii(name), file=str(path))
    digest = _digest(json.dumps([text, title, sorted(meta.items())]))
    return Source(name=name, file=str(path), text=text, title=title, meta=meta, digest=digest)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
