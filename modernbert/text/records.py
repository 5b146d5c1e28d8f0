"""A record (a JSON line, a row of a table, a sample of a shard) -> a document: its text and, if wanted, its score.

One wording of what is missing for every format: the value, the fields there are, the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from modernbert.batch import Document
from modernbert.errors import DataError

OnSkip: TypeAlias = Callable[[str, str], None]
"""Called with a reason and a name for each document, or whole file, left out."""
BROKEN = "broken UTF-8"


@dataclass(frozen=True, slots=True)
class Fields:
    """The names under which a record keeps its text and, where one is wanted, its score."""

    text: str = "text"
    score: str | None = None

    @property
    def names(self) -> list[str]:
        """What must be read of a record, each once."""
        return [self.text] if self.score in (None, self.text) else [self.text, str(self.score)]

    def document(self, record: Mapping[str, Any], *, source: str, position: int, where: str) -> Document | None:
        r"""Make a document of a record; \r\n becomes \n.

        Args:
            record: field -> value; the text as `str`, or as `bytes` of UTF-8.
            source: the file, for the document.
            position: the record's place in that file, for the document.
            where: the record's place, for messages.

        Returns:
            None where the text is not UTF-8.

        Raises:
            DataError: no text, or no finite number for a score, under the field's name.
        """
        text = record.get(self.text)
        if isinstance(text, bytes):
            text = decode(text)
            if text is None:
                return None
        if not isinstance(text, str):
            texts = [name for name, value in record.items() if isinstance(value, str)]
            raise _refused(where, self.text, record, "text", texts, "--text-field")
        if not is_encodable(text):
            return None  # half a surrogate pair, written as an escape: no UTF-8 can hold it
        score = record.get(self.score) if self.score is not None else None
        if self.score is not None and not _is_number(score):
            numbers = [name for name, value in record.items() if _is_number(value)]
            raise _refused(where, self.score, record, "a finite number", numbers, "--score-field")
        return Document(
            text=text.replace("\r\n", "\n"),
            source=source,
            position=position,
            score=None if score is None else float(score),
        )

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
        if self.text not in there:
            raise _refused(where, self.text, there, "text", list(columns if texts is None else texts), "--text-field")
        if self.score is not None and self.score not in there:
            raise _refused(where, self.score, there, "a number", columns, "--score-field")


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
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _refused(
    where: str, name: str, record: Mapping[str, Any], wanted: str, others: list[str], option: str
) -> DataError:
    found = f"holds {_shown(record[name])}, not {wanted}" if name in record else "is not there"
    others = [other for other in others if other != name]
    remedy = f"say {option} {others[0]}" if others else f"none of them holds {wanted}"
    fields = ", ".join(map(str, record))
    return DataError(f"{where}: the field {name!r} {found}; the fields are {fields}: {remedy}, or leave the file out")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    return "nothing" if value is None else f"a {type(value).__name__}"
