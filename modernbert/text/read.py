"""Paths -> documents: plain text, Markdown, code and JSON lines, each also as .gz or .zst, and folders.

Steps: list the files in sorted order; read each in blocks of 1 MiB, decompressing on the way; cut it into
documents; decode as UTF-8. Price: one document in memory at a time, and one line with JSON lines or "line".

What a folder holds by chance (binary files, broken UTF-8) is dropped and counted; what was named or promised
(a path, a JSON field, a whole archive) and is not there is an error, because silence would cost data.
"""

from __future__ import annotations

import fnmatch
import gzip
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from modernbert.batch import Document
from modernbert.errors import ConfigError, DataError

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
COMPRESSIONS = frozenset({".gz", ".zst"})

Cut: TypeAlias = Literal["file", "line", "paragraph"]
OnSkip: TypeAlias = Callable[[str, str], None]
Paths: TypeAlias = str | Path | Iterable[str | Path]

_BLOCK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


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
    """One file to read. `named` says that the user named it, rather than a folder it lies in."""

    path: Path
    named: bool


def iter_documents(
    paths: Paths,
    *,
    text_field: str = "text",
    documents: Cut = "file",
    on_skip: OnSkip | None = None,
    exclude: Iterable[str] = (),
) -> Iterator[Document]:
    r"""Read documents from files and folders, file by file in sorted order.

    Args:
        paths: a file or folder, or several. A file of an unknown kind is read as plain text when named
            itself, and passed over inside a folder.
        text_field: the field of a JSON line that holds its text.
        documents: what one document is in a plain file: the file, each non-empty line, or each block between
            blank lines. A JSON line is always one document.
        on_skip: called with a reason and a name for each document (or whole file) left out; `Skips.add` fits.
        exclude: shell patterns such as "*.min.js" or "tests/*", tried on a file's name and its path in the
            folder.

    Returns:
        An iterator of documents, `position` counting lines, blocks or files from 0. A byte-order mark is
        removed and \r\n becomes \n.

    Raises:
        DataError: a missing path, a binary file named directly, a JSON line without the text, a damaged
            archive.
    """
    if documents not in ("file", "line", "paragraph"):
        raise ConfigError(f"documents={documents!r} is not known; choose file, line or paragraph")
    skip = on_skip or (lambda _reason, _name: None)
    files = list_files(paths, on_skip=skip, exclude=exclude)
    return itertools.chain.from_iterable(_read_file(file, text_field, documents, skip) for file in files)


def list_files(paths: Paths, *, on_skip: OnSkip, exclude: Iterable[str] = ()) -> list[SourceFile]:
    """List the files that `iter_documents` reads, in its order; hidden ones are passed over.

    Raises:
        DataError: a path that does not exist.
    """
    patterns = tuple(exclude)
    files: list[SourceFile] = []
    for path in [Path(paths)] if isinstance(paths, str | Path) else map(Path, paths):
        if path.is_dir():
            files += [SourceFile(file, named=False) for file in _walk(path, patterns, on_skip)]
        elif path.exists():
            files.append(SourceFile(path, named=True))
        else:
            raise DataError(f"{path}: no such file or folder; check the path")
    return files


def _walk(folder: Path, patterns: tuple[str, ...], on_skip: OnSkip) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=lambda error: on_skip("unreadable folder", error.filename)):
        for name in sorted(folders):
            if (path := Path(parent, name)).is_symlink():  # may lead in a circle
                on_skip("linked folder", str(path))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            path = Path(parent, name)
            tried = (name, path.relative_to(folder).as_posix())
            if name.startswith("."):
                on_skip("hidden", str(path))
            elif not path.is_file():
                on_skip("broken link", str(path))
            elif any(fnmatch.fnmatchcase(text, pattern) for text in tried for pattern in patterns):
                on_skip("excluded", str(path))
            elif _kind(path)[0] is None:
                on_skip("unknown kind of file", str(path))
            else:
                yield path


def _kind(path: Path) -> tuple[str | None, str]:
    """("plain" or "jsonl" or None, ".gz" or ".zst" or "")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    suffix = suffixes[-1] if suffixes else ""
    if suffix in JSONL_SUFFIXES:
        return "jsonl", compression
    return ("plain" if suffix in PLAIN_SUFFIXES | CODE_SUFFIXES else None), compression


def _read_file(file: SourceFile, text_field: str, cut: Cut, skip: OnSkip) -> Iterator[Document]:
    kind, compression = _kind(file.path)
    count = 0
    try:
        blocks = _blocks(file.path, compression)
        first = next(blocks, b"")
        if b"\0" in first:
            return _refuse_binary(file, skip)
        pieces = _cut(itertools.chain([first.removeprefix(_BOM)], blocks), "line" if kind == "jsonl" else cut)
        for position, raw in pieces:
            if kind != "jsonl" and b"\0" in raw:
                _refuse_binary(file, skip)
                continue
            where = f"{file.path}, line {position + 1}" if kind == "jsonl" else f"{file.path}#{position}"
            text = _jsonl_text(raw, text_field, where) if kind == "jsonl" else _decode(raw)
            if text is None:
                skip("broken UTF-8", where)
                continue
            count += 1
            yield Document(text=text, source=str(file.path), position=position)
    except _DAMAGED as error:
        raise DataError(
            f"{file.path} is cut short or damaged after {count:,} documents; fetch it again or leave it out"
        ) from error
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}") from error


def _refuse_binary(file: SourceFile, skip: OnSkip) -> None:
    if file.named:
        raise DataError(
            f"{file.path} is not UTF-8 text: it has NUL bytes in it, so it is binary or UTF-16; "
            "convert it to text or leave it out"
        )
    skip("binary", str(file.path))


def _blocks(path: Path, compression: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file. Raises one of `_DAMAGED` where an archive ends too early."""
    with path.open("rb") as raw:
        if compression and path.stat().st_size == 0:
            raise EOFError
        if compression == ".zst":
            yield from _unzstd(iter(lambda: raw.read(_BLOCK_BYTES), b""))
        else:
            plain = gzip.GzipFile(fileobj=raw) if compression else raw
            yield from iter(lambda: plain.read(_BLOCK_BYTES), b"")


def _unzstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard  # here, so that opening a model does not need it

    # Frame by frame, because zstandard's own stream_reader ends a file that was cut short without a word.
    decoder = None
    for block in blocks:
        rest = block
        while rest:
            decoder = decoder or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                data = decoder.decompress(rest)
            except zstandard.ZstdError as error:
                raise EOFError from error
            if data:
                yield data
            rest, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None:
        raise EOFError


def _cut(blocks: Iterator[bytes], cut: Cut) -> Iterator[tuple[int, bytes]]:
    if cut == "file":
        yield 0, b"".join(blocks)
    elif cut == "line":
        yield from ((number, line) for number, line in enumerate(_lines(blocks)) if line.strip())
    else:
        # Runs of lines that are blank, and runs that are not, alternate.
        runs = itertools.groupby(_lines(blocks), key=lambda line: bool(line.strip()))
        yield from enumerate(b"\n".join(lines) for filled, lines in runs if filled)


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    open_line: list[bytes] = []
    for block in blocks:
        head, *rest = block.split(b"\n")
        open_line.append(head)
        for line in rest:
            yield b"".join(open_line).removesuffix(b"\r")
            open_line = [line]
    if last := b"".join(open_line):
        yield last.removesuffix(b"\r")


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None


def _jsonl_text(raw: bytes, text_field: str, where: str) -> str | None:
    line = _decode(raw)
    if line is None:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); repair or remove that line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}, not an object; write one object a line")
    text = record.get(text_field)
    if not isinstance(text, str):
        found = f"holds a {type(text).__name__}, not text" if text_field in record else "is not there"
        texts = [name for name, value in record.items() if isinstance(value, str)]
        remedy = f"say --text-field {texts[0]}" if texts else "none of them holds text"
        fields = ", ".join(record)
        raise DataError(f"{where}: the field {text_field!r} {found}; the fields are {fields}: {remedy}")
    if "\\u" in line and not _is_encodable(text):
        return None  # half a surrogate pair, written as an escape: no UTF-8 can hold it
    return text.replace("\r\n", "\n")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
