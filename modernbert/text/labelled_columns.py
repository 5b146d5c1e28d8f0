"""The columns there are -> which of them is the text, the label, the question: what the user named, else a clear guess.

Of several that would do, the first in the order of `_KNOWN` is taken, and said. Names are compared without their case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from modernbert.errors import DataError
from modernbert.text.examples import Kind
from modernbert.text.labelled_table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns as the user named them; None is guessed. In CoNLL files they are numbers, from 1."""

    text: str | None = None
    pair: str | None = None  # the second text
    label: str | None = None
    words: str | None = None
    tags: str | None = None  # one for each word; or, beside a text, the entities in it
    question: str | None = None
    context: str | None = None
    answers: str | None = None
    id: str | None = None


_ROLES: dict[Kind, tuple[str, ...]] = {
    "classify": ("text", "label"), "pair": ("text", "pair", "label"), "tag": ("words", "tags", "text"),
    "answer": ("question", "context", "answers", "id"),
}  # fmt: skip
_KNOWN: dict[str, tuple[str, ...]] = {
    "text": (
        *("text", "sentence", "content", "review", "document", "body", "comment", "tweet", "utterance", "query"),
        *("question", "input", "headline", "title", "文本", "内容", "句子", "评论", "标题"),
    ),
    "label": (
        *("label", "labels", "label_name", "label_text", "intent", "category", "class", "sentiment", "target", "topic"),
        *("gold_label", "score", "rating", "stars", "标签", "类别", "分类", "情感"),
    ),
    "words": ("tokens", "words"),
    "tags": ("ner_tags", "tags", "labels", "ner", "label", "pos_tags"),
    "entities": ("entities", "spans", "labels", "label"),
    "question": ("question", "query", "问题"),
    "context": ("context", "passage", "paragraph", "text", "段落", "文章", "上下文"),
    "answers": ("answers", "answer", "answer_text", "答案"),
    "id": ("id", "qid", "question_id", "_id"),
}
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("text", "pair")),
    *(("text", "text_pair"), ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b")),
    *(("question1", "question2"), ("question", "context"), ("question", "answer"), ("query", "document")),
    *(("query", "passage"), ("query", "text"), ("query", "code")),
)
_NAMED = ("label_name", "label_text")  # the same labels as "label", in words


def choose_columns(table: Table, kind: Kind, given: Columns, *, labelled: bool) -> tuple[dict[str, str], list[str]]:
    """Find the columns of a task.

    Args:
        table: the source.
        kind: the task.
        given: what the user named.
        labelled: whether labels, tags or answers are wanted.

    Returns:
        Role -> column, and what is said of it.

    Raises:
        DataError: a column that is not there, or none to be guessed.
    """
    named = {field.name: value for field in fields(given) if (value := getattr(given, field.name)) is not None}
    for role, column in named.items():
        if role not in _ROLES[kind]:
            raise DataError(f"--{role}-column is not read for {kind}; it reads {_said(_ROLES[kind])}")
        if column not in table.names:
            raise DataError(
                f"{table.source}: no column {column!r}; its columns are {_said(table.names)}: say --{role}-column with "
                "one of them"
            )
    guess = _Guess(table, named)
    if kind == "classify":
        guess.take_text(labelled)
    elif kind == "pair":
        guess.take_pair()
    elif kind == "tag":
        guess.take_words(labelled)
    else:
        guess.take("question")
        guess.take("context")
        guess.take("id", optional=True)
        guess.take("answers", optional=not labelled)
    if kind in ("classify", "pair") and labelled:
        guess.take_label()
    wanted = {"label", "tags", "answers"} if not labelled else set()
    chosen = {role: column for role, column in guess.chosen.items() if role not in wanted}
    said = "columns: " + ", ".join(f"{role} = {column!r}" for role, column in chosen.items())
    return chosen, ["; ".join([said, *guess.others])]


def _said(names: Iterable[str]) -> str:
    return ", ".join(map(str, names)) or "none"


class _Guess:
    """Columns as they are chosen one by one."""

    def __init__(self, table: Table, named: dict[str, str]) -> None:
        self.table, self.chosen, self.others = table, dict(named), list[str]()
        self.by_name = {name.strip().lower(): name for name in reversed(table.names)}  # the first of two wins

    def known(self, role: str) -> list[str]:
        """Columns that would do and are not taken, the likeliest first."""
        there = [self.by_name[name] for name in _KNOWN[role] if name in self.by_name]
        return [name for name in there if name not in self.chosen.values()]

    def take(self, role: str, *, optional: bool = False, others: bool = False, hint: str = "") -> None:
        """Choose the likeliest column for a role, where the user has named none."""
        if role in self.chosen:
            return
        known = self.known(role)
        if known:
            self.chosen[role] = known[0]
            if others and len(known) > 1:
                self.others.append(f"{_said(map(repr, known[1:]))} would do, too (--{role}-column)")
        elif not optional:
            raise DataError(
                f"{self.table.source}: no column is known as the {role} (such as {_said(_KNOWN[role][:3])}); its columns "
                f"are {_said(self.table.names)}{'' if self.table.typed else ' (by its first line)'}: say "
                f"--{role}-column with one of them{hint}"
            )

    def take_text(self, labelled: bool) -> None:
        """One text; where two columns are all there is, the one that is not the label."""
        if labelled and len(self.table.names) == 2 and not self.known("text"):
            self.take("label", optional=True)
        taken = {*self.chosen.values(), *self.known("label")}
        rest = [name for name in self.table.names if name not in taken]
        if "text" not in self.chosen and not self.known("text") and len(rest) == 1 and len(self.table.names) <= 2:
            self.chosen["text"] = rest[0]
        couple = next((couple for couple in _PAIRS if set(couple) <= self.by_name.keys()), None)
        hint = f"; or take the task pair, for {couple[0]} and {couple[1]}" if couple else ""
        self.take("text", hint=hint, others=True)

    def take_pair(self) -> None:
        """Two texts whose names belong together."""
        there = [
            tuple(self.by_name[name] for name in couple) for couple in _PAIRS if set(couple) <= self.by_name.keys()
        ]
        named = {role: self.chosen[role] for role in ("text", "pair") if role in self.chosen}
        fitting = [
            couple
            for couple in there
            if all(couple[("text", "pair").index(role)] == column for role, column in named.items())
            and not set(couple) & (set(self.chosen.values()) - set(named.values()))
        ]
        if len(named) < 2:
            if not fitting:
                raise DataError(
                    f"{self.table.source}: no two columns are known as a pair (such as sentence1 and sentence2); its "
                    f"columns are {_said(self.table.names)}: say --text-column and --pair-column"
                )
            self.chosen |= dict(zip(("text", "pair"), fitting[0], strict=True))
            if len(fitting) > 1:
                said = _said(" + ".join(map(repr, couple)) for couple in fitting[1:])
                self.others.append(f"{said} would do, too (--text-column, --pair-column)")

    def take_label(self) -> None:
        """The label, in words where there are words for its numbers."""
        if "label" in self.chosen:
            return
        rest = [name for name in self.table.names if name not in self.chosen.values()]
        if not self.known("label") and len(rest) == 1:
            self.chosen["label"] = rest[0]
            return
        known = self.known("label")
        words = next((self.by_name[name] for name in _NAMED if self.by_name.get(name) in known), None)
        self.take("label", others=not words)
        if words not in (None, known[0]) and all(
            isinstance(value, int | float) or value is None for value in self.table.column(known[0])
        ):
            self.chosen["label"] = words
            self.others.append(f"{known[0]!r} has numbers for it")

    def take_words(self, labelled: bool) -> None:
        """Words and their tags, or a text and the entities in it."""
        if self.table.word_columns:
            words, tags = self.table.word_columns
            self.chosen.setdefault("words", words)
            if labelled and len(self.table.names) < 2 and "tags" not in self.chosen:
                raise DataError(f"{self.table.source}: one column only, so no tags; a token a line, its tag last")
            if labelled:
                self.chosen.setdefault("tags", tags)
            return
        if "text" not in self.chosen and ("words" in self.chosen or self.known("words")):
            self.take("words")
            self.take("tags", optional=not labelled, others=True)
            return
        if "words" in self.chosen:
            raise DataError("--words-column and --text-column were both given; name the one that the tags belong to")
        hint = "; or --words-column with lists of words" if "words" not in self.chosen else ""
        self.take("text", hint=hint)
        if labelled and "tags" not in self.chosen:
            entities = self.known("entities")
            if not entities:
                raise DataError(
                    f"{self.table.source}: a text ({self.chosen['text']!r}) and no column known as its entities (such as "
                    f"{_said(_KNOWN['entities'][:2])}); its columns are {_said(self.table.names)}: say --tags-column"
                )
            self.chosen["tags"] = entities[0]
