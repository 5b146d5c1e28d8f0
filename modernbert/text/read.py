"""Paths -> documents: text, Markdown, code, JSON lines, csv, tsv (each also .gz, .zst), parquet, MDS, hub datasets.

Steps: list the files in sorted order; read each in blocks of 1 MiB, decompressing on the way; cut it into
documents; decode as UTF-8. Price: one document in memory at a time, and one line with JSON lines or "line".

What a folder holds by chance (binary files, broken UTF-8, a record without text, a line that is no JSON) is dropped and
counted; what was named or promised (a path, a field, a whole archive) and is not there is an error, because silence
would cost data.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from modernbert.batch import Document
from modernbert.errors import ConfigError, DataError
from modernbert.text.blocks import BOM, COMPRESSIONS, lines, read_blocks, refusing_damage
from modernbert.text.datasets import PREFIX, Address, read_dataset
from modernbert.text.mds_format import INDEX, SUFFIX, MdsShard, read_mds, shards_in
from modernbert.text.records import BROKEN, NOT_JSON, Fields, OnSkip, Row, decode, documents_of
from modernbert.text.tables import CSV_SUFFIXES, PARQUET_SUFFIXES, read_csv, read_parquet

PLAIN_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
CODE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("c", "h", "cc", "cpp", "hpp", "cs", "cu", "java", "kt", "scala", "go", "rs", "swift", "zig", "dart"),
        *("py", "pyi", "rb", "php", "pl", "lua", "r", "jl", "sh", "sql", "hs", "ml", "ex", "erl", "clj"),
        *("js", "mjs", "jsx", "ts", "tsx", "vue", "html", "css", "tex", "toml", "yaml", "yml"),
    )
)  # fmt: skip
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})

Cut: TypeAlias = Literal["file", "line", "paragraph"]
Kind: TypeAlias = Literal["plain", "jsonl", "csv", "parquet"]
Paths: TypeAlias = str | Path | Iterable[str | Path]

_SUFFIXES: dict[Kind, frozenset[str]] = {
    "plain": PLAIN_SUFFIXES | CODE_SUFFIXES, "jsonl": JSONL_SUFFIXES, "csv": CSV_SUFFIXES,
}  # fmt: skip


@dataclass
class Skips:
    """How many documents were left out and why, with the first three names for each reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one document; fits `on_skip`."""
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < 3:
            names.append(name)

    def as_dict(self) -> dict[str, dict[str, int | list[str]]]:
        """Plain data for a manifest: reason -> count and examples."""
        return {
            reason: {"count": count, "examples": self.examples.get(reason, [])}
            for reason, count in sorted(self.counts.items())
        }

    def __str__(self) -> str:
        """One line, such as "2 exact duplicate (a.txt, b.txt), 1 binary (c.py)"."""
        return ", ".join(
            f"{count:,} {reason}" + (f" ({', '.join(names)})" if (names := self.examples.get(reason)) else "")
            for reason, count in sorted(self.counts.items())
        )


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read, or one dataset. `named` says that the user named it, rather than a folder it lies in."""

    path: Path
    named: bool
    shard: MdsShard | None = None
    dataset: Address | None = None

    def identity(self) -> str:
        """Path, size and time of change, or a hub dataset's commit: another text has another identity."""
        if self.dataset is not None:
            return self.dataset.identity()
        status = self.path.stat()
        return f"{self.path}\0{status.st_size}\0{status.st_mtime_ns}"


def iter_documents(
    paths: Paths,
    *,
    text_field: str | Sequence[str] = "text",
    score_field: str | None = None,
    documents: Cut = "file",
    on_skip: OnSkip | None = None,
    exclude: Iterable[str] = (),
) -> Iterator[Document]:
    r"""Read documents from files and folders, file by file in sorted order.

    Args:
        paths: a file or folder, or several; `hf:NAME[:CONFIG][@SPLIT]` is a dataset (see `text.datasets`). A file
            of an unknown kind is read as plain text when named itself, and passed over inside a folder.
        text_field: the field of a record (a JSON line, a table's row, a sample) that holds its text; of several, each
            that a record has is a document.
        score_field: the field that holds a document's score, a number; plain files have none.
        documents: what one document is in a plain file: the file, each non-empty line, or each block between
            blank lines. A record's text is always one document.
        on_skip: called with a reason and a name for each document (or whole file) left out; `Skips.add` fits.
        exclude: shell patterns such as "*.min.js" or "tests/*", tried on a file's name and its path in the
            folder.

    Returns:
        An iterator of documents, `position` counting lines, rows, blocks or files from 0. A byte-order mark is
        removed and \r\n becomes \n.

    Raises:
        DataError: a missing path, a binary file named directly, a file without the field for a text, a record without
            a score, JSON lines that begin with something else, a damaged file.
        UnsupportedError: a library or an encoding that is not there.
    """
    if documents not in ("file", "line", "paragraph"):
        raise ConfigError(f"documents={documents!r} is not known; choose file, line or paragraph")
    skip = on_skip or (lambda _reason, _name: None)
    fields = Fields((text_field,) if isinstance(text_field, str) else tuple(text_field), score_field)
    files = list_files(paths, on_skip=skip, exclude=exclude)
    return itertools.chain.from_iterable(
        refusing_damage(_documents_of(file, fields, documents, skip), file.path, "documents") for file in files
    )


def list_files(paths: Paths, *, on_skip: OnSkip, exclude: Iterable[str] = ()) -> list[SourceFile]:
    """List the files that `iter_documents` reads, in its order; hidden ones are passed over.

    Raises:
        DataError: a path that does not exist.
    """
    patterns = tuple(exclude)
    files: list[SourceFile] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if str(path).startswith(PREFIX):
            files.append(SourceFile(Path(path), named=True, dataset=Address.parse(str(path))))
        elif Path(path).is_dir():
            files += _walk(Path(path), patterns, on_skip)
        elif Path(path).exists():
            files.append(SourceFile(Path(path), named=True))
        else:
            raise DataError(f"{path}: no such file or folder; check the path")
    return files


def digest_of(paths: Paths, exclude: Iterable[str] = ()) -> str:
    """SHA-256 over each file's path, size and time of change: notices another corpus without reading it.

    Raises:
        DataError: a path that does not exist, or a dataset that cannot be reached.
    """
    digest = hashlib.sha256()
    for file in list_files(paths, on_skip=lambda _reason, _name: None, exclude=exclude):
        digest.update(f"{file.identity()}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _walk(folder: Path, patterns: tuple[str, ...], on_skip: OnSkip) -> Iterator[SourceFile]:
    for parent, folders, names in os.walk(folder, onerror=lambda error: on_skip("unreadable folder", error.filename)):
        for name in sorted(folders):
            if (path := Path(parent, name)).is_symlink():  # may lead in a circle
                on_skip("linked folder", str(path))
        shards = shards_in(Path(parent)) or []
        for shard in shards:
            if _is_excluded(shard.path, folder, patterns):
                on_skip("excluded", str(shard.path))
            else:
                yield SourceFile(shard.path, named=False, shard=shard)
        listed = {shard.path.relative_to(parent).parts[0] for shard in shards} | ({INDEX} if shards else set())
        hidden = {name for name in folders if name.startswith(".") or name == "__pycache__"}
        folders[:] = sorted(set(folders) - listed - hidden)
        for name in sorted(set(names) - listed):
            path = Path(parent, name)
            if shards and SUFFIX in path.suffixes:
                continue  # the compressed twin of a shard
            if reason := _reason_to_pass_over(path, folder, patterns):
                on_skip(reason, str(path))
            else:
                yield SourceFile(path, named=False)


def _reason_to_pass_over(path: Path, folder: Path, patterns: tuple[str, ...]) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "broken link"
    if _is_excluded(path, folder, patterns):
        return "excluded"
    if SUFFIX in path.suffixes:
        return "MDS shard without its index.json"
    return None if _kind(path)[0] else "unknown kind of file"


def _is_excluded(path: Path, folder: Path, patterns: tuple[str, ...]) -> bool:
    tried = (path.name, path.relative_to(folder).as_posix())
    return any(fnmatch.fnmatchcase(text, pattern) for text in tried for pattern in patterns)


def _kind(path: Path) -> tuple[Kind | None, str]:
    """(how to read it, None where that is not known; ".gz" or ".zst" or "")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    suffix = suffixes[-1] if suffixes else ""
    if suffix in PARQUET_SUFFIXES:
        return (None if compression else "parquet"), compression
    for kind, known in _SUFFIXES.items():
        if suffix in known:
            return kind, compression
    return None, compression


def _documents_of(file: SourceFile, fields: Fields, cut: Cut, skip: OnSkip) -> Iterator[Document]:
    kind, compression = _kind(file.path)
    if file.dataset is not None:
        yield from read_dataset(file.dataset, fields, skip)
    elif file.shard is not None:
        yield from read_mds(file.shard, fields, skip)
    elif kind == "parquet":
        yield from read_parquet(file.path, fields, skip)
    elif kind == "csv":
        yield from read_csv(file.path, compression, fields, skip)
    else:
        blocks = read_blocks(file.path, compression)
        first = next(blocks, b"")
        blocks = itertools.chain([first.removeprefix(BOM)], blocks)
        if b"\0" in first:
            _refuse_binary(file, skip)
        elif kind == "jsonl":
            yield from _json_lines(file, blocks, fields, skip)
        else:
            yield from _plain(file, blocks, fields, cut, skip)


def _plain(file: SourceFile, blocks: Iterator[bytes], fields: Fields, cut: Cut, skip: OnSkip) -> Iterator[Document]:
    if fields.score is not None:
        raise DataError(
            f"{file.path}: plain text has no field {fields.score!r} to hold a score; "
            "leave --score-field out, or give documents as JSON lines or a table"
        )
    for position, raw in _cut(blocks, cut):
        text = decode(raw)
        if b"\0" in raw:
            _refuse_binary(file, skip)
        elif text is None:
            skip(BROKEN, f"{file.path}#{position}")
        else:
            yield Document(text=text, source=str(file.path), position=position)


def _refuse_binary(file: SourceFile, skip: OnSkip) -> None:
    if file.named:
        raise DataError(
            f"{file.path} is not UTF-8 text: it has NUL bytes in it, so it is binary or UTF-16; "
            "convert it to text or leave it out"
        )
    skip("binary", str(file.path))


def _cut(blocks: Iterator[bytes], cut: Cut) -> Iterator[tuple[int, bytes]]:
    if cut == "file":
        yield 0, b"".join(blocks)
    elif cut == "line":
        yield from ((number, line) for number, line in enumerate(lines(blocks)) if line.strip())
    else:
        # Runs of lines that are blank, and runs that are not, alternate.
        runs = itertools.groupby(lines(blocks), key=lambda line: bool(line.strip()))
        yield from enumerate(b"\n".join(run) for filled, run in runs if filled)


def _json_lines(file: SourceFile, blocks: Iterator[bytes], fields: Fields, skip: OnSkip) -> Iterator[Document]:
    yield from documents_of(_json_records(file.path, blocks, skip), fields, str(file.path), skip)


def _json_records(path: Path, blocks: Iterator[bytes], skip: OnSkip) -> Iterator[Row]:
    """A file that does not begin with JSON is of another kind; behind that, a bad line is one among good ones."""
    begun = False
    for position, raw in _cut(blocks, "line"):
        where = f"{path}, line {position + 1}"
        line = decode(raw)
        if line is None:
            skip(BROKEN, where)
            continue
        try:
            record = json.loads(line)
            wrong = None if isinstance(record, dict) else f"a JSON {type(record).__name__}, not an object"
        except (ValueError, RecursionError) as error:
            wrong = f"not valid JSON ({error})"
        if wrong is None:
            begun = True
            yield position, where, record
        elif begun:
            skip(NOT_JSON, where)
        else:
            raise DataError(f"{where}: {wrong}; write one object a line")
