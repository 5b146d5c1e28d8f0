"""Evaluation texts -> a filter for training text that repeats a long stretch of one of them.

Steps: words (see `words`); every run of 13 words of every evaluation text becomes a 64-bit hash (26 characters where
most of a text is in a script without spaces: 13 of them would be a common phrase); a document that shares one run is
contaminated, whatever else is in it. Thirteen words are what GPT-3 and Dolma took.

Price: 20 MB of text a second on one core. Memory, for the evaluation texts alone: 12 bytes a run, and 120 for each
different word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import ConfigError, DataError
from modernbert.text.read import iter_documents
from modernbert.text.words import is_unspaced, ngram_hashes, split_words

DEFAULT_WORDS = 13
_CHARACTERS_PER_WORD = 2


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one length: their hashes, sorted, and the number of the text that each is from."""

    num_words: int
    hashes: NDArray[np.uint64]
    texts: NDArray[np.int32]


@dataclass(frozen=True)
class EvaluationTexts:
    """The runs of words of some evaluation texts."""

    num_words: int  # in a run
    names: list[str]  # of the texts
    num_too_short: int  # texts of fewer words than a run, which cannot be looked for
    runs: list[Runs]
    _codes: dict[str, int] = field(repr=False)  # of every word in them

    @classmethod
    def read(
        cls, files: Sequence[str | Path], *, fields: Sequence[str] = ("text",), num_words: int = DEFAULT_WORDS
    ) -> EvaluationTexts:
        """Read evaluation files, as `iter_documents` takes them; plain text by paragraph.

        Args:
            files: files and folders.
            fields: of a record (JSON line, csv or parquet row) that hold text; each is a text of its own.
            num_words: words in a run, 5 or more: shorter ones are everywhere.

        Raises:
            ConfigError: runs too short to mean anything.
            DataError: files that cannot be read, or no text long enough.
        """
        if num_words < 5:
            raise ConfigError(
                f"decontaminate_words={num_words} is too small: every text shares such runs; take 5 or more"
            )
        documents = itertools.chain.from_iterable(
            iter_documents(files, text_field=name, documents="paragraph") for name in fields
        )
        return cls.of(((f"{document.source}#{document.position}", document.text) for document in documents), num_words)

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]], num_words: int = DEFAULT_WORDS) -> EvaluationTexts:
        """Take pairs of a name and a text."""
        codes: dict[str, int] = {}
        names: list[str] = []
        num_too_short = 0
        found: dict[int, list[tuple[NDArray[np.uint64], int]]] = {}
        for name, text in texts:
            words = split_words(text)
            length = num_words * _CHARACTERS_PER_WORD if is_unspaced(words) else num_words
            if len(words) < length:
                num_too_short += 1
                continue
            numbers = np.array([codes.setdefault(word, len(codes) + 1) for word in words], dtype=np.uint64)
            found.setdefault(length, []).append((ngram_hashes(numbers, length), len(names)))
            names.append(name)
        if not names:
            raise DataError(
                f"no evaluation text has {num_words} words ({num_too_short:,} are shorter); give other files, another "
                "--decontaminate-field, or fewer --decontaminate-words"
            )
        return cls(
            num_words, names, num_too_short, [_runs(length, parts) for length, parts in sorted(found.items())], codes
        )

    def find(self, text: str) -> str | None:
        """The name of an evaluation text of which this one repeats a run, the first in this text; None: of none."""
        words = split_words(text)
        # A word that no evaluation text holds is 0, and no hash of theirs was made with a 0.
        numbers = np.fromiter(map(self._codes.get, words, itertools.repeat(0)), dtype=np.uint64, count=len(words))
        for runs in self.runs:
            if len(words) < runs.num_words:
                continue
            hashes = ngram_hashes(numbers, runs.num_words)
            places = np.searchsorted(runs.hashes, hashes).clip(max=len(runs.hashes) - 1)
            hits = np.flatnonzero(runs.hashes[places] == hashes)
            if len(hits):
                return self.names[runs.texts[places[hits[0]]]]
        return None

    def remarks(self) -> list[str]:
        """What a person should know of what cannot be found."""
        if not self.num_too_short:
            return []
        count = len(self.names) + self.num_too_short
        return [
            f"{self.num_too_short:,} of {count:,} evaluation texts are shorter than {self.num_words} words (or "
            f"{self.num_words * _CHARACTERS_PER_WORD} characters of a script without spaces) and were not looked for."
        ]


def _runs(length: int, parts: list[tuple[NDArray[np.uint64], int]]) -> Runs:
    hashes = np.concatenate([part for part, _ in parts])
    texts = np.concatenate([np.full(len(part), number, dtype=np.int32) for part, number in parts])
    hashes, first = np.unique(hashes, return_index=True)
    return Runs(length, hashes, texts[first])
