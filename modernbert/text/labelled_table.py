"""A labelled source as columns, values as they are, with the place of each row; and the lines of a file, numbered."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modernbert.errors import DataError
from modernbert.text.blocks import BOM, lines, read_blocks, refusing_damage

LABELS_FILE = "labels.json"


class Table:
    """Columns of a source, read when asked for.

    Args:
        source: the file or dataset, for messages.
        names: of the columns, in order.
        read: a column's values by its name.
        places: of each row, such as "line 7"; None for "row 0", "row 1", …
        classes: of a column of integers, the name of each, where the source itself says them.
        typed: whether numbers are numbers, which in csv they are not.
        remarks: on what was read, for the user.
        labels_file: where names of integers may stand, beside the file.
        word_columns: the columns have numbers for names: these hold words and their tags.
    """

    def __init__(
        self,
        source: str,
        names: Iterable[str],
        read: Callable[[str], list[Any]],
        *,
        places: Sequence[str] | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        typed: bool = True,
        remarks: Iterable[str] = (),
        labels_file: Path | None = None,
        word_columns: tuple[str, str] | None = None,
    ) -> None:
        self.source, self.names, self.typed, self.remarks = source, tuple(names), typed, tuple(remarks)
        self.labels_file, self.word_columns = labels_file, word_columns
        self._read, self._places, self._classes = read, places, dict(classes or {})
        self._columns: dict[str, list[Any]] = {}

    def column(self, name: str) -> list[Any]:
        """The values of a column, one for each row; None where a record does not have it."""
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]

    def where(self, row: int) -> str:
        """A row's place, for messages."""
        return f"{self.source}, {self._places[row] if self._places is not None else f'row {row}'}"

    def class_names(self, column: str) -> tuple[dict[int, str], str]:
        """Names of a column's integers, and who says them; none where nobody does.

        Raises:
            DataError: the file beside it cannot be read as names.
        """
        if self._classes.get(column):
            return dict(enumerate(self._classes[column])), self.source
        if self.labels_file is None or not self.labels_file.is_file():
            return {}, ""
        try:
            found = json.loads(self.labels_file.read_text("utf-8"))
            pairs = found.items() if isinstance(found, dict) else enumerate(found)
            return {int(number): str(name) for number, name in pairs}, str(self.labels_file)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.labels_file} is neither a list of names nor {{number: name}}; correct it, or move it away from "
                f"{self.source}"
            ) from error


def line_places(numbers: Iterable[int]) -> list[str]:
    """The places of rows, by the numbers of their lines."""
    return [f"line {number}" for number in numbers]


def numbered_lines(path: Path, compression: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of each line of a file.

    Raises:
        DataError: it is damaged.
    """
    blocks = read_blocks(path, compression)
    first = next(refusing_damage(blocks, path, "lines"), b"")
    raw = lines(itertools.chain([first.removeprefix(BOM)], blocks))
    yield from enumerate(refusing_damage(raw, path, "lines"), 1)


def decoded(raw: bytes, where: str) -> str:
    """UTF-8 -> text, every character as it stands.

    Raises:
        DataError: it is something else.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: broken UTF-8 (byte {error.start + 1} is {raw[error.start]:#04x}); save the file as UTF-8, or take "
            "that line out"
        ) from error
