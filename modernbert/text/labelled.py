"""Labelled files and datasets → examples: what `finetune`, `predict --file` and `evaluate` read.

    jsonl, json, csv, tsv, parquet, CoNLL, SQuAD, hf:NAME → columns, guessed and said → labels as text → examples

Steps: open the source as columns (`labelled_open`); find those of the task (`labelled_columns`); read texts and labels
(`labelled_labels`, `labelled_tags`, `labelled_answers`). What could be wrong is refused with its row, and what was done to
the rest is in the remarks, one line each. Price: all examples in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert.errors import DataError
from modernbert.text.examples import OUTSIDE, Example, Kind, Problem, TagExample, TextExample
from modernbert.text.labelled_answers import read_answers
from modernbert.text.labelled_columns import Columns, choose_columns
from modernbert.text.labelled_labels import read_labels
from modernbert.text.labelled_open import open_table
from modernbert.text.labelled_table import Table
from modernbert.text.labelled_tags import tag_names, tags_of_entities, to_bio
from modernbert.text.labelled_words import word_spans

__all__ = ["Columns", "LabelledFile", "read_labelled", "word_spans"]

_TEXTS: dict[Kind, tuple[str, ...]] = {
    "classify": ("text",), "pair": ("text", "pair"), "tag": ("text",), "answer": ("question", "context"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFile:
    """What a source holds."""

    examples: list[Example]
    columns: dict[str, str]  # role -> column
    problem: Problem
    labels: list[str]  # the set of them, sorted; of tags O first; none where numbers or answers are wanted
    remarks: list[str] = field(default_factory=list)  # for the user, a line each


def read_labelled(
    source: str | Path,
    kind: Kind,
    columns: Columns = Columns(),  # noqa: B008, frozen
    *,
    labelled: bool = True,
    problem: Problem | None = None,
) -> LabelledFile:
    """Read the examples of a task.

    Args:
        source: a file (.jsonl, .json, .csv, .tsv, each also .gz or .zst; .parquet; CoNLL), `hf:NAME[:CONFIG][@SPLIT]`, a
            dataset's name, or a folder that `datasets` reads.
        kind: the task.
        columns: as the user named them.
        labelled: False: labels, tags and answers are not looked at, so they may be absent or hidden; a .txt file is then a
            text a line.
        problem: what the file trained on was found to hold: this one is read the same way, and may have one class only.
            None: find out.

    Raises:
        DataError: no such file or column, or rows that cannot be used; the message names them.
        UnsupportedError: a library that is not there.
    """
    table = open_table(source, tagged=kind == "tag", labelled=labelled)
    if not table.names:
        raise DataError(f"{source}: no examples in it; give a file with rows")
    chosen, remarks = choose_columns(table, kind, columns, labelled=labelled)
    remarks = [*remarks, *table.remarks]
    texts = {role: _texts(table, chosen[role], remarks) for role in _TEXTS[kind] if role in chosen}
    examples: Iterable[Example]
    if kind == "answer":
        examples, said = read_answers(table, texts, chosen, labelled=labelled)
        found: Problem = "spans"
        labels: list[str] = []
    elif kind == "tag":
        examples, labels, said = _tagged(table, texts.get("text"), chosen, labelled, one_will_do=problem is not None)
        found = "tokens"
    else:
        examples, labels, found, said = _classified(table, texts, chosen.get("label"), problem)
    if not examples:
        raise DataError(f"{source}: no examples in it; give a file with rows")
    return LabelledFile(
        examples=list(examples), columns=chosen, problem=found, labels=labels, remarks=[*remarks, *said]
    )


def _texts(table: Table, column: str, remarks: list[str]) -> list[str]:
    """A column of text, each there, though it may be empty."""
    texts = table.column(column)
    missing = [row for row, text in enumerate(texts) if text is None]
    if missing:
        raise DataError(
            f"{table.where(missing[0])}: no text in {column!r} ({len(missing):,} of {len(texts):,} rows are so); fill them "
            "in, or take those rows out"
        )
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{table.where(row)}: {column!r} holds a {type(text).__name__}, not a text; name another column"
            )
    num_empty = sum(not text.strip() for text in texts)
    if num_empty:
        remarks.append(f"{num_empty:,} of {len(texts):,} texts in {column!r} are empty; they are kept")
    return texts


def _classified(
    table: Table, texts: dict[str, list[str]], column: str | None, problem: Problem | None
) -> tuple[list[Example], list[str], Problem, list[str]]:
    pairs: list[str] | list[None] = texts.get("pair") or [None] * len(texts["text"])
    rows = list(enumerate(zip(texts["text"], pairs, strict=True)))
    if column is None or not rows:
        made: list[Example] = [TextExample(text=text, pair=pair, where=table.where(row)) for row, (text, pair) in rows]
        return made, [], problem or "single", []
    read = read_labels(table, column, problem)
    made = [
        TextExample(text=text, pair=pair, label=label, where=table.where(row))
        for row, (text, pair) in rows
        if (label := read.labels[row]) is not None
    ]
    return made, read.names, read.problem, read.remarks


def _tagged(
    table: Table, texts: list[str] | None, columns: dict[str, str], labelled: bool, *, one_will_do: bool
) -> tuple[list[TagExample], list[str], list[str]]:
    """Examples, the tags that a tagger must know, and what was done."""
    remarks: list[str] = []
    tags: list[Any] = []
    if texts is None:
        words = [
            _strings(table, row, columns["words"], value) for row, value in enumerate(table.column(columns["words"]))
        ]
        made = [TagExample.from_words(tuple(of_row), None, table.where(row)) for row, of_row in enumerate(words)]
        if labelled:
            tags = _tags(table, columns["tags"], words, remarks)
    elif not labelled:
        made = [TagExample(text=text, spans=word_spans(text), where=table.where(row)) for row, text in enumerate(texts)]
    else:
        made, tags = _from_entities(table, texts, columns["tags"], remarks)
    num_empty = sum(not example.spans for example in made)
    if num_empty and texts is None:
        remarks.append(f"{num_empty:,} of {len(made):,} texts have no words; they are kept")
    if not labelled or not made:
        return made, [], remarks
    tags, said = to_bio(tags, table.source)
    if not one_will_do and len({tag for row in tags for tag in row}) < 2:
        only = next((tag for row in tags for tag in row), OUTSIDE)
        raise DataError(f"{table.source}: every tag is {only!r}; nothing can be learnt from one: say --tags-column")
    examples = [
        TagExample(text=example.text, spans=example.spans, tags=row, where=example.where)
        for example, row in zip(made, tags, strict=True)
    ]
    return examples, tag_names(tags), [*remarks, *said]


def _strings(table: Table, row: int, column: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        what = "nothing" if value is None else repr(value)[:40]
        remedy = "; a csv file has no lists: write JSON lines, parquet or CoNLL" if not table.typed else ""
        raise DataError(f"{table.where(row)}: {column!r} holds {what}, not a list of words{remedy}")
    return list(value)


def _tags(table: Table, column: str, words: list[list[str]], remarks: list[str]) -> list[list[str]]:
    """Tags as text, as many as there are words."""
    tags = []
    names: dict[int, str] | None = None
    for row, value in enumerate(table.column(column)):
        if not isinstance(value, list | tuple) or len(value) != len(words[row]):
            what = f"{len(value)} tags" if isinstance(value, list | tuple) else "no list"
            raise DataError(f"{table.where(row)}: {what} in {column!r} for {len(words[row])} words; write one for each")
        if any(isinstance(tag, int) for tag in value) and names is None:
            names, teller = table.class_names(column)
            if not names:
                raise DataError(
                    f"{table.where(row)}: {column!r} holds numbers; put a labels.json beside the file, a list of their names"
                )
            remarks.append(f"tags named by {teller}")
        of_row = [tag.strip() if isinstance(tag, str) else (names or {}).get(tag) for tag in value]
        if None in of_row:
            raise DataError(
                f"{table.where(row)}: {value[of_row.index(None)]!r} in {column!r} is no tag; write B-x, I-x and O"
            )
        tags.append([tag for tag in of_row if tag is not None])
    return tags


def _from_entities(
    table: Table, texts: list[str], column: str, remarks: list[str]
) -> tuple[list[TagExample], list[tuple[str, ...]]]:
    made, tags, num_cut, num_shared = [], [], 0, 0
    for row, (text, entities) in enumerate(zip(texts, table.column(column), strict=True)):
        spans, of_row, cut, shared = tags_of_entities(text, entities, table.where(row))
        made.append(TagExample(text=text, spans=spans, where=table.where(row)))
        tags.append(of_row)
        num_cut, num_shared = num_cut + cut, num_shared + shared
    if num_cut:
        remarks.append(f"{num_cut:,} words were cut where an entity begins or ends inside them")
    if num_shared:
        remarks.append(f"{num_shared:,} entities were left out, because a longer one shares characters with them")
    return made, tags
