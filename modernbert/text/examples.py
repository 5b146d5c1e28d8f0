"""What labelled files hold, as every task takes it. Labels are text everywhere; numbers only where a number is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["classify", "pair", "tag", "answer"]
Problem: TypeAlias = Literal["single", "multi", "regression", "tokens", "spans"]
"""What is predicted: one class, all that apply, a number, a tag for each word, a stretch of a passage."""
Label: TypeAlias = str | float | tuple[str, ...]
"""A class; a number to be predicted; or all the classes that apply, of which there may be none."""

OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextExample:
    """A text, or a pair of texts, with its label."""

    text: str
    pair: str | None = None
    label: Label | None = None  # None: not labelled
    where: str = ""  # file and line, for messages


@dataclass(frozen=True, slots=True, kw_only=True)
class TagExample:
    """A text, its words, and a tag for each of them (BIO: `B-disease`, `I-disease`, `O`)."""

    text: str
    spans: tuple[tuple[int, int], ...]  # of each word: first character, and the one behind its last
    tags: tuple[str, ...] | None = None  # None: not labelled
    where: str = ""

    @classmethod
    def from_words(cls, words: tuple[str, ...], tags: tuple[str, ...] | None = None, where: str = "") -> TagExample:
        """Of words alone: the text is the words with a space between each two."""
        spans, start = [], 0
        for word in words:
            spans.append((start, start + len(word)))
            start += len(word) + 1
        return cls(text=" ".join(words), spans=tuple(spans), tags=tags, where=where)

    @property
    def words(self) -> tuple[str, ...]:
        """The words."""
        return tuple(self.text[start:stop] for start, stop in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerExample:
    """A question, the passage that may answer it, and the answers that are right."""

    question: str
    context: str
    id: str = ""
    answers: tuple[tuple[str, int], ...] | None = None  # (text, first character) each; none at all: it has no answer
    where: str = ""


Example: TypeAlias = TextExample | TagExample | AnswerExample
