r"""A file of examples, or a dataset -> its columns, with values as they are: text, numbers, lists.

Steps: tell the format by the name; read its records; note the line of each. Unlike text for pretraining, of which a bad
line is dropped and counted, a labelled file is somebody's work that scores are taken on: whatever cannot be read is an
error that names its line. The one exception is half a surrogate pair (`"\ud83d"`, an emoji cut in two), which becomes
U+FFFD, so that offsets stay what they were. Price: the file in memory, of parquet the columns that are used.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modernbert.errors import DataError, UnsupportedError
from modernbert.text.blocks import COMPRESSIONS, refusing_damage
from modernbert.text.datasets import PREFIX, Address, guarded, open_rows
from modernbert.text.labelled_conll import read_conll
from modernbert.text.labelled_table import LABELS_FILE, Table, decoded, line_places, numbered_lines
from modernbert.text.records import is_encodable
from modernbert.text.tables import csv_records, csv_rows

_JSON_LINES, _JSON = frozenset({".jsonl", ".ndjson"}), frozenset({".json"})
_TABLES, _PARQUET = frozenset({".csv", ".tsv"}), frozenset({".parquet"})
_CONLL, _PLAIN = frozenset({".conll", ".bio", ".iob", ".iob2", ".bioes", ".conllu"}), frozenset({".txt"})
FILE_SUFFIXES = _JSON_LINES | _JSON | _TABLES | _PARQUET | _CONLL | _PLAIN
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^:@#]+)?(@[^:@#]+)?(#[^:@#]+)?")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def open_table(source: str | Path, *, tagged: bool = False, labelled: bool = True) -> Table:
    """Open a file or a dataset.

    Args:
        source: a path; `hf:NAME[:CONFIG][@SPLIT]`; a dataset's name; or a folder that `datasets` reads.
        tagged: words with tags are wanted: .tsv and .txt are then a token a line.
        labelled: False reads .txt as a text a line.

    Raises:
        DataError: it is not there, of no known kind, or broken.
        UnsupportedError: a library that is not there.
    """
    text = str(source)
    if text.startswith(PREFIX):
        return _dataset(Address.parse(text))
    path = Path(source)
    suffix, compression = kind_of(path)
    if path.is_dir():
        return _dataset(Address.parse(f"{PREFIX}{text}"))
    if not path.exists():
        if suffix not in FILE_SUFFIXES and not compression and _DATASET.fullmatch(text):
            return _dataset(Address.parse(f"{PREFIX}{text}"))
        raise DataError(f"{source}: no such file; check the path")
    if suffix in _PARQUET and not compression:
        return _parquet(path)
    if suffix in _JSON_LINES | _JSON:
        return _json(path, compression)
    if suffix in _PLAIN and not labelled:
        return _plain(path, compression)
    if tagged and (suffix in _CONLL | _PLAIN | {".tsv"} or suffix not in FILE_SUFFIXES):
        return read_conll(path, compression, universal=suffix == ".conllu")
    if suffix in _TABLES:
        return _csv(path, compression)
    raise DataError(
        f"{path} is no kind of file that holds {'tags' if tagged else 'labels'}: give .jsonl, .json, .csv, .tsv or "
        ".parquet" + (", or .conll for tags" if not tagged else "")
    )


def kind_of(path: Path) -> tuple[str, str]:
    """(".jsonl" or what else it is, ".gz" or ".zst" or ""), both in small letters."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def _of_records(source: str, records: list[dict[str, Any]], places: Sequence[str] | None, **more: Any) -> Table:
    names = dict.fromkeys(itertools.chain.from_iterable(records))
    return Table(source, names, lambda name: [record.get(name) for record in records], places=places, **more)


def _plain(path: Path, compression: str) -> Table:
    texts = [decoded(raw, f"{path}, line {number}") for number, raw in numbered_lines(path, compression)]
    return Table(str(path), ["text"], lambda _: texts, places=line_places(range(1, len(texts) + 1)))


def _csv(path: Path, compression: str) -> Table:
    rows = refusing_damage(csv_rows(path, compression), path, "rows")
    _, header = next(rows, (0, []))
    twice = [name for index, name in enumerate(header) if name in header[:index]]
    if twice:
        raise DataError(f"{path}, line 1: two columns are named {twice[0]!r}; rename one of them")
    records, places = [], []
    for _, where, record in csv_records(path, header, rows, None):
        if not all(map(is_encodable, record.values())):  # bytes that are no UTF-8 come as surrogates
            raise DataError(f"{where}: broken UTF-8; save the file as UTF-8, or take that line out")
        records.append(dict(record))
        places.append(where.removeprefix(f"{path}, "))
    columns = {name: [record[name] for record in records] for name in header}
    return Table(
        str(path), header, columns.__getitem__, places=places, typed=False, labels_file=path.parent / LABELS_FILE
    )


def _json(path: Path, compression: str) -> Table:
    """Objects, one a line, each read before the next; or, in .json, one value that holds them all."""
    num_halves = 0

    def parse(raw: bytes, where: str) -> Any:
        nonlocal num_halves
        text = decoded(raw, where)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error}); write one object a line") from error
        if _ESCAPED_SURROGATE.search(raw):
            value, count = _mended(value)
            num_halves += count
        return value

    lines: Iterable[tuple[int, bytes]] = numbered_lines(path, compression)
    records: list[dict[str, Any]] = []
    numbers: list[int] | None = []
    if kind_of(path)[0] in _JSON:
        lines = list(lines)
        filled = [raw for _, raw in lines if raw.strip()]
        if len(filled) == 1 or (filled and not _is_object(filled[0])):
            records, numbers = _objects_in(parse(b"\n".join(raw for _, raw in lines), str(path)), path), None
    if numbers is not None:
        for number, raw in lines:
            if raw.strip():
                where = f"{path}, line {number}"
                records.append(_object(parse(raw, where), where))
                numbers.append(number)
    if any("paragraphs" in record or "qas" in record for record in records):
        records, numbers = list(_questions(records, path)), None
    remarks = [f"{num_halves:,} halves of surrogate pairs became U+FFFD"] if num_halves else []
    places = None if numbers is None else line_places(numbers)
    return _of_records(str(path), records, places, remarks=remarks, labels_file=path.parent / LABELS_FILE)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, not an object; write one object a line")
    return value


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def _objects_in(value: Any, path: Path) -> list[dict[str, Any]]:
    """The records of a whole JSON file: a list of them, `{"data": [...]}`, an object with one list in it, or one record."""
    if isinstance(value, dict):
        only = next(iter(value.values())) if len(value) == 1 else None
        inside = value.get("data", only)
        value = inside if isinstance(inside, list) and "paragraphs" not in value else [value]
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise DataError(
            f'{path}: no list of objects in it; write [{{…}}, …], {{"data": [{{…}}, …]}} or an object a line'
        )
    return value


def _questions(records: Iterable[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """SQuAD's articles -> paragraphs -> questions, each a record."""
    try:
        for article in records:
            for paragraph in article.get("paragraphs", [article]):
                for asked in paragraph["qas"]:
                    yield {"title": article.get("title"), "context": paragraph["context"], **asked}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: begins as SQuAD and goes on otherwise ({error!r}); write data -> paragraphs (context, qas) -> qas "
            "(id, question, answers)"
        ) from error


def _mended(value: Any) -> tuple[Any, int]:
    """A JSON value with U+FFFD for each half of a surrogate pair, and how many there were."""
    if isinstance(value, str):
        return _SURROGATE.subn("\ufffd", value)
    if isinstance(value, list):
        found = [_mended(item) for item in value]
        return [item for item, _ in found], sum(count for _, count in found)
    if isinstance(value, dict):
        found = [_mended(item) for item in value.values()]
        return dict(zip(value, (item for item, _ in found), strict=True)), sum(count for _, count in found)
    return value, 0


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnsupportedError(
            f"{path}: parquet needs pyarrow, which is not installed; pip install 'modernbert[parquet]'"
        ) from error

    def read(name: str) -> list[Any]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                column = file.read(columns=[name], use_threads=False).column(name)
            return column.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: column {name!r} has broken UTF-8 in row {_first_broken(column)}; write it as UTF-8"
            ) from error
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise _damaged(path, error) from error

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = {name: _names_in(feature) for name, feature in told.items() if isinstance(feature, dict)}
    return Table(str(path), schema.names, read, classes=classes, labels_file=path.parent / LABELS_FILE)


def _first_broken(column: Any) -> int:
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    return -1


def _damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{path} cannot be read: {error.strerror or error}")
    return DataError(f"{path} is cut short or damaged; fetch it again or leave it out")


def _names_in(feature: Mapping[str, Any]) -> list[str]:
    """Class names as `datasets` writes them into a parquet file: of the column, or of the items of its lists."""
    inner = feature.get("feature")
    return list(feature.get("names") or (inner.get("names") if isinstance(inner, dict) else None) or ())


def _dataset(address: Address) -> Table:
    rows = open_rows(address)
    features = getattr(rows, "features", None) or {}
    classes = {
        name: names
        for name, feature in features.items()
        if (names := getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None))
    }
    records = list(guarded(iter(rows), address))
    return _of_records(str(address), records, None, classes=classes)
