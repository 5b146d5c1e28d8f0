"""A column of labels -> text everywhere, or numbers where a number is to be predicted; and which rows are left out.

    ints          "0", "1", … or the names that `labels.json`, or the dataset itself, has for them; -1 among others: hidden
    floats        numbers to be predicted, where any of them is not whole; else as ints
    bools, text   "true", "false"; text without white space around it
    lists         all the classes that apply; there may be none

What could be wrong is refused: a label that is missing, NaN, or of another type than the others.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modernbert.errors import DataError
from modernbert.text.examples import Label, Problem
from modernbert.text.labelled_table import Table

_HIDDEN = -1
# As programs write numbers. What a number would write otherwise (007, 1_0, +3, other digits) is a name and stays as it is;
# nobody counts to 10**18, so longer ones are ids.
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FLOAT = re.compile(r"-?(?:(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[1-9][0-9]*[eE][-+][0-9]+)")
_NOT_FINITE = re.compile(r"[-+]?(?:nan|inf|infinity)", re.IGNORECASE)


@dataclass(slots=True)
class Labels:
    """Of each row, None where it is hidden, with what is to be said of them."""

    labels: list[Label | None]
    problem: Problem
    names: list[str]  # the set of them, sorted; none of numbers
    remarks: list[str] = field(default_factory=list)


def read_labels(table: Table, column: str, problem: Problem | None = None) -> Labels:
    """Read a column of labels.

    Args:
        table: the source.
        column: its name.
        problem: what another file of the same task was found to hold; None: find out, and want two classes at least.

    Raises:
        DataError: labels that are missing, not finite, of mixed types, hidden throughout, or all the same.
    """
    values = [value.strip() if isinstance(value, str) else value for value in table.column(column)]
    remarks: list[str] = []
    if not table.typed:
        values, remarks = _numbers_of_text(table, column, values)
    _refuse_missing(table, column, values)
    types = _types(table, column, values)
    is_fraction = types == {"number"} and any(isinstance(value, float) and value % 1 for value in values)
    found: Problem = problem or ("multi" if types == {"list"} else "regression" if is_fraction else "single")
    if (found == "multi") != (types == {"list"}) or (found == "regression" and types != {"number"}):
        what = {"multi": "lists of classes", "regression": "numbers"}.get(found, "one class a row")
        raise DataError(
            f"{table.source}: {column!r} holds {_a(values[0])}, where {what} are wanted, as in the file trained on; say "
            "--label-column with another"
        )
    if found == "regression" and set(values) == {_HIDDEN}:
        raise _all_hidden(table, column)
    if found == "regression":
        return Labels([float(value) for value in values], found, [], remarks)
    name_of, names_remark = _naming(table, column, values)
    labels: list[Label | None]
    if found == "multi":
        _refuse_vectors(table, column, values)
        labels = [tuple(dict.fromkeys(map(name_of, value))) for value in values]
        counts = Counter(name for value in labels for name in value)  # type: ignore[union-attr]
    else:
        labels, hidden_remarks = _hiding(table, column, values, name_of)
        remarks += hidden_remarks
        counts = Counter(label for label in labels if label is not None)
    if problem is None and len(set(labels) - {None}) < 2:
        raise DataError(
            f"{table.source}: every label in {column!r} is the same ({next(iter(set(labels) - {None}))!r}); "
            + "".join(f"{remark}; " for remark in remarks)
            + "nothing can be learnt from one class: give rows of another, or say --label-column"
        )
    names = sort_labels(counts)
    return Labels(labels, found, names, [*names_remark, *remarks, *_rare(counts)])


def sort_labels(labels: Sequence[str] | Counter[str]) -> list[str]:
    """By number where all of them are whole numbers, else by the alphabet."""
    if all(name.removeprefix("-").isdecimal() for name in labels):
        return sorted(labels, key=lambda name: (int(name), name))
    return sorted(labels)


def _rare(counts: Counter[str]) -> list[str]:
    rare = [name for name in sort_labels(counts) if counts[name] == 1]
    if not rare:
        return []
    shown = ", ".join(map(repr, rare[:3])) + (", …" if len(rare) > 3 else "")
    return [f"{len(rare):,} of {len(counts):,} classes {'has' if len(rare) == 1 else 'have'} one example only: {shown}"]


def _numbers_of_text(table: Table, column: str, values: list[Any]) -> tuple[list[Any], list[str]]:
    """Csv says nothing of types: numbers where all are, text where some are whole; fractions among text are refused.

    A `nan` is none beside numbers alone, which are then refused for it; beside text it is the name of a class.
    """
    filled = [value for value in values if value]
    numbers = {value: number for value in filled if (number := _number(value)) is not None}
    others = {*filled} - numbers.keys()
    if all(_NOT_FINITE.fullmatch(value) for value in others):
        numbers |= {value: float(value) for value in others}
        return [numbers.get(value) for value in values], []
    if any(isinstance(number, float) for number in numbers.values()):
        number, text = (
            next(i for i, v in enumerate(values) if v and (v in numbers) == is_one) for is_one in (True, False)
        )
        raise _mixed(table, column, values, number, text)
    count = sum(value in numbers for value in filled)
    said = [f"{count:,} of {len(values):,} labels look like numbers; all are taken as text"] if numbers else []
    return values, said


def _number(text: str) -> int | float | None:
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else None


def _refuse_missing(table: Table, column: str, values: list[Any]) -> None:
    def is_missing(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(is_missing, value))
        return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))

    missing = [row for row, value in enumerate(values) if is_missing(value)]
    if missing:
        what = {None: "no label", "": "an empty label"}.get(
            _hashable(values[missing[0]]), f"{values[missing[0]]} as label"
        )
        raise DataError(
            f"{table.where(missing[0])}: {what} in {column!r} ({len(missing):,} of {len(values):,} rows are so); fill them "
            "in or take those rows out"
        )


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list) else value


def _types(table: Table, column: str, values: list[Any]) -> set[str]:
    """What kinds of labels there are, one."""
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        kind = _type(value)
        if kind not in ("text", "number", "bool", "list"):
            raise DataError(
                f"{table.where(row)}: the label in {column!r} is {_a(value)}; write text, a number or a list"
            )
        first.setdefault(kind, row)
        if kind == "list":
            for item in value:
                if _type(item) not in ("text", "number") or (isinstance(item, float) and item % 1):
                    raise DataError(
                        f"{table.where(row)}: {item!r} among the labels of {column!r}; write names of classes"
                    )
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise _mixed(table, column, values, one, other)
    return set(first)


def _mixed(table: Table, column: str, values: list[Any], one: int, other: int) -> DataError:
    return DataError(
        f"{table.source}: labels of mixed types in {column!r}: {values[one]!r} ({_place(table, one)}) and {values[other]!r} "
        f"({_place(table, other)}); write all of them as text, or all as numbers"
    )


def _place(table: Table, row: int) -> str:
    return table.where(row).removeprefix(f"{table.source}, ")


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "list" if isinstance(value, list | tuple) else type(value).__name__


def _a(value: Any) -> str:
    return {"list": "a list", "number": "a number", "text": "text", "bool": "true or false"}.get(
        _type(value), f"a {type(value).__name__}"
    )


def _refuse_vectors(table: Table, column: str, values: list[Any]) -> None:
    """[0, 1, 0]: a place for each class, not the numbers of those that apply."""
    same = len({len(value) for value in values}) == 1 and len(values[0]) > 1
    if same and all(set(value) <= {0, 1} for value in values) and any(len(set(value)) < len(value) for value in values):
        raise DataError(
            f"{table.source}: {column!r} holds a 0 or 1 for each class, such as {values[0]!r}; write the names of those that "
            "apply"
        )


def _naming(table: Table, column: str, values: list[Any]) -> tuple[Callable[[Any], str], list[str]]:
    """How a label is written, and where the names of numbers come from."""
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    numbers = {item for item in flat if _type(item) == "number"}
    names, teller = table.class_names(column) if numbers else ({}, "")
    if not names:
        return _as_text, []
    unnamed = sorted(number for number in numbers if number != _HIDDEN and number not in names)
    if unnamed:
        raise DataError(
            f"{table.source}: label {unnamed[0]} in {column!r} has no name: {teller} names {len(names)} "
            f"({min(names)} to {max(names)}); add it there, or move names and file apart"
        )
    shown = ", ".join(f"{number} = {names[number]}" for number in sorted(names)[:3]) + (", …" if len(names) > 3 else "")
    return lambda item: names.get(item, _as_text(item)), [f"labels named by {teller}: {shown}"]


def _as_text(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    return str(int(item)) if isinstance(item, float) and item % 1 == 0 else str(item)


def _hiding(
    table: Table, column: str, values: list[Any], name_of: Callable[[Any], str]
) -> tuple[list[Label | None], list[str]]:
    """Leave out -1, which stands for "not told" in test sets, unless it has a name or there are other negative numbers."""
    numbers = [value for value in values if _type(value) == "number"]
    is_class = not numbers or min(numbers) != _HIDDEN or name_of(_HIDDEN) != str(_HIDDEN)
    labels = [None if not is_class and value == _HIDDEN else name_of(value) for value in values]
    num_hidden = sum(label is None for label in labels)
    if num_hidden == len(labels):
        raise _all_hidden(table, column)
    remark = (
        f"{num_hidden:,} of {len(labels):,} rows left out: their label is -1, taken as hidden (a class called -1 is to be "
        "named in labels.json)"
    )
    return list(labels), [remark] if num_hidden else []


def _all_hidden(table: Table, column: str) -> DataError:
    return DataError(
        f"{table.source}: every label in {column!r} is -1: it is hidden, as in the test sets of GLUE; take a file with labels"
    )
