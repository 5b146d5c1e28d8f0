"""A record (a JSON line, a row of a table, a sample of a shard) -> its documents: their text and, if wanted, a score.

A record without a text is left out and counted; a file in which no record has the wanted field is refused, for then the
field was misnamed. One wording of that for every format: the value, the fields there are, the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from modernbert.batch import Document
from modernbert.errors import DataError

OnSkip: TypeAlias = Callable[[str, str], None]
"""Called with a reason and a name for each document, or whole file, left out."""
BROKEN, NO_TEXT, NOT_JSON = "broken UTF-8", "no text", "not valid JSON"
Row: TypeAlias = tuple[int, str, Mapping[str, Any]]
"""A record's place in its file, that place in words, and the record: field -> value, text as `str` or UTF-8 `bytes`."""
_PATIENCE = 1000  # records in which to look for a field: a file of gigabytes is not read to learn of a wrong name
_LARGEST_SCORE = float(np.finfo(np.float32).max)  # they are kept in 32 bits


@dataclass(frozen=True, slots=True)
class Fields:
    """The names under which a record keeps its texts, each a document, and, where one is wanted, its score."""

    texts: tuple[str, ...] = ("text",)
    score: str | None = None

    def among(self, columns: Iterable[str]) -> list[str]:
        """Which of some columns must be read, each once."""
        there = set(columns)
        return [name for name in dict.fromkeys([*self.texts, self.score]) if name is not None and name in there]

    def check_columns(self, columns: Iterable[str], where: str, *, texts: Iterable[str] | None = None) -> None:
        """Refuse a table that has not the wanted columns, before anything of it is read.

        Args:
            columns: the names of all.
            where: the file.
            texts: the names of those that may hold text, where that can be known; else all.

        Raises:
            DataError: with the names that are there.
        """
        columns = list(columns)
        there = dict.fromkeys(columns)
        if not there.keys() & set(self.texts):
            raise _refused(where, self.texts, there, "text", list(columns if texts is None else texts), "--text-field")
        if self.score is not None and self.score not in there:
            raise _refused(where, (self.score,), there, "a number", columns, "--score-field")


def documents_of(rows: Iterable[Row], fields: Fields, source: str, skip: OnSkip) -> Iterator[Document]:
    r"""Make documents of the records of a file, one of each text in them; \r\n becomes \n.

    Args:
        rows: the records, in order.
        fields: the names wanted.
        source: the file, for the documents.
        skip: told of records without a text (it is missing, null or of another type), and of texts that are not UTF-8.

    Raises:
        DataError: no record, or none of the first 1,000, has one of the fields for a text; or one has no finite number
            under the field for a score.
    """
    refused: DataError | None = None
    has_field, num_without = False, 0
    for position, where, record in rows:
        wanted = [record[name] for name in fields.texts if name in record]
        texts = [value for value in wanted if isinstance(value, str | bytes)]
        has_field = has_field or bool(texts) or None in wanted
        if not texts:
            skip(NO_TEXT, where)
            num_without += 1
            if not has_field and refused is None:
                others = [name for name, value in record.items() if isinstance(value, str)]
                refused = _refused(where, fields.texts, record, "text", others, "--text-field")
            if not has_field and refused is not None and num_without >= _PATIENCE:
                raise refused
        for raw in texts:
            text = decode(raw) if isinstance(raw, bytes) else raw.replace("\r\n", "\n")
            if text is None or not is_encodable(text):  # such as half a surrogate pair, written as an escape
                skip(BROKEN, where)
            else:
                yield Document(text=text, source=source, position=position, score=_score(record, fields.score, where))
    if refused is not None and not has_field:
        raise refused


def _score(record: Mapping[str, Any], name: str | None, where: str) -> float | None:
    if name is None:
        return None
    if not _is_number(record.get(name)):
        numbers = [other for other, value in record.items() if _is_number(value)]
        raise _refused(where, (name,), record, "a finite number of 32 bits", numbers, "--score-field")
    return float(record[name])


def decode(raw: bytes) -> str | None:
    r"""UTF-8 -> text with \n for \r\n, or None where it is no UTF-8."""
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold this text: it has no half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(abs(value) <= _LARGEST_SCORE)  # type: ignore[operator]


def _refused(
    where: str, names: tuple[str, ...], record: Mapping[str, Any], wanted: str, others: list[str], option: str
) -> DataError:
    there = [name for name in names if name in record]
    subject = " and ".join(map(repr, there[:1] or names))
    several = len(names) > 1 and not there
    found = f"holds {_shown(record[there[0]])}, not {wanted}" if there else f"{'are' if several else 'is'} not there"
    others = [other for other in others if other not in names]
    remedy = f"say {option} {others[0]}" if others else f"none of them holds {wanted}"
    fields = ", ".join(map(str, record))
    return DataError(
        f"{where}: the field{'s' if several else ''} {subject} {found}; the fields are {fields}: {remedy}, or leave the "
        "file out"
    )


def _shown(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    return "nothing" if value is None else f"a {type(value).__name__}"
