"""Questions with their passages -> examples whose answers stand where they are said to stand.

An answer that is not at its offset is looked for in the passage, and the nearest place taken; one that is nowhere in it is
left out, and a question with it that has no other: it is no question without an answer. All of that is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from modernbert.errors import DataError
from modernbert.text.examples import AnswerExample
from modernbert.text.labelled_table import Table

_IMPOSSIBLE = "is_impossible"
_START = "answer_start"


def read_answers(
    table: Table, texts: Mapping[str, list[str]], columns: Mapping[str, str], *, labelled: bool
) -> tuple[list[AnswerExample], list[str]]:
    """Make the examples of a table.

    Args:
        table: the source.
        texts: of the roles question and context, a text a row.
        columns: role -> column.
        labelled: whether answers are read.

    Returns:
        Examples, and what was done.

    Raises:
        DataError: answers of no known form, or none in its passage.
    """
    questions, contexts = texts["question"], texts["context"]
    ids = _ids(table.column(columns["id"]) if "id" in columns else [None] * len(questions))
    remarks = []
    if ids[1]:
        remarks.append(f"{ids[1]:,} ids occur again; the later ones got a number behind them")
    if not labelled:
        rows = enumerate(zip(ids[0], questions, contexts, strict=True))
        return [
            AnswerExample(question=question, context=context, id=name, where=table.where(row))
            for row, (name, question, context) in rows
        ], remarks
    done: Counter[str] = Counter()
    examples = []
    for row, given in enumerate(_given(table, columns["answers"])):
        answers = [place(contexts[row], text, start, done) for text, start in given if text]
        found = tuple(answer for answer in answers if answer is not None)
        if answers and not found:
            done["left out"] += 1
            done[f"first {done['left out']}"] = row
            continue
        done["none"] += not found
        examples.append(
            AnswerExample(
                question=questions[row], context=contexts[row], id=ids[0][row], answers=found, where=table.where(row)
            )
        )
    return examples, [*remarks, *_said(table, examples, done)]


def place(context: str, text: str, start: int | None, done: Counter[str]) -> tuple[str, int] | None:
    """An answer where it stands in its passage: at its offset, else at the nearest place; None where it is nowhere."""
    if start is not None and start >= 0 and context.startswith(text, start):
        return text, start
    before = context.rfind(text, 0, max(start or 0, 0) + len(text))
    behind = context.find(text, max(start or 0, 0))
    places = [found for found in (before, behind) if found >= 0]
    if not places:
        done["nowhere"] += 1
        return None
    done["unplaced" if start is None else "moved"] += 1
    return text, min(places, key=lambda found: abs(found - (start or 0)))


def _said(table: Table, examples: list[AnswerExample], done: Counter[str]) -> list[str]:
    if done["left out"] and not examples:
        raise DataError(
            f"{table.where(done['first 1'])}: the answer is not in its passage, nor is any other of {done['left out']:,} "
            "questions; answers must be copied from the passage letter by letter"
        )
    said = []
    if done["none"]:
        said.append(f"{done['none']:,} of {len(examples):,} questions have no answer in their passage, and say so")
    if done["unplaced"]:
        said.append(f"{done['unplaced']:,} answers without an offset: the first place in the passage was taken")
    if done["moved"]:
        said.append(f"{done['moved']:,} answers were not at their offset: the nearest place in the passage was taken")
    if done["nowhere"]:
        said.append(
            f"{done['nowhere']:,} answers are nowhere in their passage and were left out"
            + (
                f", {done['left out']:,} questions with them (first: {table.where(done['first 1'])})"
                if done["left out"]
                else ""
            )
        )
    return said


def _ids(values: list[Any]) -> tuple[list[str], int]:
    """An id for each row, none twice: its own, else its number; and how many were not alone."""
    given = [str(row) if value is None or value == "" else str(value) for row, value in enumerate(values)]
    taken, seen, ids = set(given), Counter[str](), []
    for name in given:
        seen[name] += 1
        number, unique = seen[name], name
        while number > 1 and (unique := f"{name}-{number}") in taken:
            number += 1
        taken.add(unique)
        ids.append(unique)
    return ids, len(given) - len(set(given))


def _given(table: Table, column: str) -> list[list[tuple[str, int | None]]]:
    """Answers of each row as (text, offset), in whatever form they were written."""
    values = table.column(column)
    impossible = table.column(_IMPOSSIBLE) if _IMPOSSIBLE in table.names else [None] * len(values)
    starts = table.column(_START) if _START in table.names else [None] * len(values)
    rows: list[list[tuple[str, int | None]]] = []
    for row, (value, start) in enumerate(zip(values, starts, strict=True)):
        if impossible[row] in (True, "true", "True", "1", 1):
            rows.append([])
        elif value is None:
            num_missing = sum(v is None and not i for v, i in zip(values, impossible, strict=True))
            raise DataError(
                f"{table.where(row)}: no answers in {column!r} ({num_missing:,} rows are so); an empty list says that the "
                "passage has none"
            )
        else:
            rows.append([_answer(table, row, one) for one in _several(value, start)])
    return rows


def _several(value: Any, start: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        texts, offsets = value.get("text"), value.get(_START)
        if not isinstance(texts, list):
            return [(texts, offsets)]
        offsets = offsets if isinstance(offsets, list) else [offsets] * len(texts)
        return list(zip(texts, [*offsets, *[None] * (len(texts) - len(offsets))], strict=False))
    if isinstance(value, list | tuple):
        starts = start if isinstance(start, list) and len(start) == len(value) else [None] * len(value)
        return [
            (one.get("text"), one.get(_START)) if isinstance(one, dict) else (one, offset)
            for one, offset in zip(value, starts, strict=True)
        ]
    return [(value, start[0] if isinstance(start, list) and start else start)]


def _answer(table: Table, row: int, answer: tuple[Any, Any]) -> tuple[str, int | None]:
    text, start = answer
    if isinstance(start, str):
        start = int(start) if start.strip().removeprefix("-").isdecimal() else None if not start.strip() else start
    if isinstance(start, float) and start % 1 == 0:
        start = int(start)
    if not isinstance(text, str) or not isinstance(start, int | None):
        raise DataError(
            f"{table.where(row)}: {answer!r} is no answer; write {{text: […], answer_start: […]}}, offsets counting "
            "characters from 0"
        )
    return text, start
