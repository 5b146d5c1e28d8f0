"""Files of texts that belong together → what an embedder is trained on: pairs, triplets, scored pairs, or single texts.

    {"query": …, "positive": …}                       pairs: all others of a batch are negatives
    {"anchor": …, "positive": …, "negative": …}       triplets; negative_2, … are more of them
    {"sentence1": …, "sentence2": …, "score": 4.2}    scored pairs
    {"query": …, "positive": …, "negative": …, "score": 1.3}    triplets with a teacher's margin
    {"text": …}                                       texts, for a teacher
    a folder in BEIR's form                           pairs of its training judgments

Columns are guessed from their names. A row without one of its texts is refused with its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modernbert.errors import DataError
from modernbert.text.beir import beir_folders, read_beir, splits_of
from modernbert.text.labelled_open import open_table
from modernbert.text.labelled_table import Table

Shape = Literal["texts", "pairs", "triplets", "scored", "margins"]

_ANCHORS = ("anchor", "query", "question", "docstring", "sentence1", "sentence_a", "text1", "text_a", "premise")
_POSITIVES = (
    "positive", "pos", "document", "passage", "answer", "context", "code", "sentence2", "sentence_b", "text2", "text_b",
    "hypothesis", "text",
)  # fmt: skip
_NEGATIVE = re.compile(r"(hard_)?neg(ative)?(_?\d+)?")
_SCORES = ("score", "similarity", "label", "margin")
_TEXTS = ("text", "sentence", "document", "content")


@dataclass(frozen=True, kw_only=True)
class PairFile:
    """What a source holds, column by column."""

    shape: Shape
    texts: dict[str, list[str]]  # anchor, positive, negative, …; or text
    scores: list[float] | None = None
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.texts.values())))

    def distinct_texts(self) -> list[str]:
        """Those of all columns, each once."""
        return list(dict.fromkeys(text for column in self.texts.values() for text in column))


def read_pairs(source: str | Path, *, split: Literal["train", "validation"] = "train") -> PairFile:
    """Read a file, a dataset, or a folder in BEIR's form.

    Args:
        source: .jsonl, .json, .csv, .tsv, .parquet, hf:NAME, or a folder with corpus, queries and qrels.
        split: of a BEIR folder.

    Raises:
        DataError: no such file, no columns that are known, or a row without a text or a score.
        UnsupportedError: a library that is not there.
    """
    if Path(source).is_dir() and beir_folders(source)[:1] == [Path(source)]:
        return _of_beir(Path(source), split)
    table = open_table(source, labelled=False)
    by_name = {name.lower(): name for name in table.names}

    def first(known: Sequence[str], *others: str | None) -> str | None:
        return next((by_name[name] for name in known if name in by_name and by_name[name] not in others), None)

    anchor = first(_ANCHORS)
    positive = first(_POSITIVES, anchor)
    if anchor is None or positive is None:
        text = first(_TEXTS)
        if text is None:
            raise DataError(
                f"{source}: its columns ({', '.join(table.names)}) are none that belong together, such as query and positive, "
                "or sentence1, sentence2 and score; rename them"
            )
        return PairFile(shape="texts", texts={"text": _column(table, text)}, remarks=[f"columns: text = {text!r}"])
    columns = {"anchor": anchor, "positive": positive}
    negatives = [name for name in table.names if _NEGATIVE.fullmatch(name.lower())]
    columns |= {"negative" if not index else f"negative_{index + 1}": name for index, name in enumerate(negatives)}
    score = first(_SCORES, *columns.values())
    if score == by_name.get("label") and score is not None and not {"sentence1", "text1"} & by_name.keys():
        raise DataError(
            f"{source}: {score!r} may be a class or a degree of likeness; rename it score if more is more alike, or leave it out"
        )
    if score is not None and len(negatives) > 1:
        raise DataError(
            f"{source}: a score beside {len(negatives)} negatives says nothing of each; give one negative a row"
        )
    shapes: dict[tuple[bool, bool], Shape] = {
        (False, False): "pairs", (True, False): "triplets", (False, True): "scored", (True, True): "margins",
    }  # fmt: skip
    said = ", ".join(f"{role} = {name!r}" for role, name in [*columns.items(), *([("score", score)] if score else [])])
    return PairFile(
        shape=shapes[bool(negatives), score is not None],
        texts={role: _column(table, name) for role, name in columns.items()},
        scores=None if score is None else _numbers(table, score), remarks=[f"columns: {said}", *table.remarks],
    )  # fmt: skip


def _of_beir(folder: Path, split: str) -> PairFile:
    if split == "validation" and "validation" not in splits_of(folder):
        split = "dev"
    if split not in splits_of(folder):
        raise DataError(f"{folder} has no qrels/{split}.tsv; it has {', '.join(splits_of(folder)) or 'none'}")
    task = read_beir(folder, split)
    pairs = [
        (task.queries[query], task.corpus[document])
        for query, judged in task.judgments.items()
        for document, score in judged.items()
        if score > 0 and document in task.corpus
    ]
    if not pairs:
        raise DataError(f"{folder}: no document of its corpus is relevant to a query of {split}.tsv")
    anchors, positives = map(list, zip(*pairs, strict=True))
    return PairFile(
        shape="pairs",
        texts={"anchor": anchors, "positive": positives},
        remarks=[f"{len(pairs):,} pairs of {split}.tsv"],
    )


def _column(table: Table, name: str) -> list[str]:
    values = table.column(name)
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            what = "nothing" if value is None or value == "" else f"{value!r:.30}"
            raise DataError(f"{table.where(row)}: {name!r} holds {what}, not a text; fill it in, or take that row out")
    if not values:
        raise DataError(f"{table.source}: no rows in it; give a file with rows")
    return values


def _numbers(table: Table, name: str) -> list[float]:
    found = []
    for row, value in enumerate(table.column(name)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if number != number or abs(number) == float("inf"):
            raise DataError(f"{table.where(row)}: {name!r} holds {value!r:.30}, not a finite number")
        found.append(number)
    return found
