"""Evaluation texts -> a filter for training text that repeats a long stretch of one of them.

Steps: words (see `words`); every run of 13 words of every evaluation text becomes a 64-bit hash (26 characters where
most of a text is in a script without spaces: 13 of them would be a common phrase); a document that shares one run is
contaminated, whatever else is in it. Thirteen words are what GPT-3 and Dolma took.

Price: 6 to 15 MB of text a second on one core, against 6 million runs. Memory, for the evaluation texts alone: 16
bytes a run, and 120 for each different word.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import ConfigError, DataError
from modernbert.text.read import iter_documents
from modernbert.text.words import blockwise_ngram_hashes, is_unspaced, ngram_hashes, split_words

DEFAULT_WORDS = 13
_CHARACTERS_PER_WORD = 2
_MARKS_PER_RUN = 16


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one length."""

    num_words: int
    hashes: NDArray[np.uint64]  # sorted
    texts: NDArray[np.int32]  # the number of the text that each is from
    marks: NDArray[np.uint8]  # a bit for the last bits of each hash: 1 says perhaps, 0 says no

    @classmethod
    def of(cls, num_words: int, parts: list[tuple[NDArray[np.uint64], int]]) -> Runs:
        """Take pairs of the hashes of a text and its number."""
        hashes = np.concatenate([part for part, _ in parts])
        texts = np.concatenate([np.full(len(part), number, dtype=np.int32) for part, number in parts])
        hashes, first = np.unique(hashes, return_index=True)
        marks = np.zeros(2 ** math.ceil(math.log2(_MARKS_PER_RUN / 8 * len(hashes))), dtype=np.uint8)
        np.bitwise_or.at(marks, *_place(hashes, len(marks)))
        return cls(num_words, hashes, texts[first], marks)

    def find(self, hashes: NDArray[np.uint64]) -> int | None:
        """The number of a text that has one of these runs, the first of them; None: there is none."""
        place, bit = _place(hashes, len(self.marks))
        hashes = hashes[(self.marks[place] & bit) != 0]  # one look each, where the search below takes twenty
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        hits = np.flatnonzero(self.hashes[places] == hashes)
        return int(self.texts[places[hits[0]]]) if len(hits) else None


def _place(hashes: NDArray[np.uint64], num_bytes: int) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """The byte of each hash, and its bit in there."""
    byte = ((hashes >> np.uint64(3)) & np.uint64(num_bytes - 1)).astype(np.intp)
    return byte, np.uint8(1) << (hashes & np.uint64(7)).astype(np.uint8)


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
            fields: of a record (JSON line, csv or parquet row) that hold text; each that it has is a text of its own.
            num_words: words in a run, 5 or more: shorter ones are everywhere.

        Raises:
            ConfigError: runs too short to mean anything.
            DataError: files that cannot be read, or no text long enough.
        """
        if num_words < 5:
            raise ConfigError(
                f"decontaminate_words={num_words} is too small: every text shares such runs; take 5 or more"
            )
        documents = iter_documents(files, text_field=fields, documents="paragraph")
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
            num_words, names, num_too_short, [Runs.of(length, parts) for length, parts in sorted(found.items())], codes
        )

    def find(self, text: str) -> str | None:
        """The name of an evaluation text of which this one repeats a run, the first in this text; None: of none."""
        for runs in self.runs:
            for hashes in blockwise_ngram_hashes(text, self._number, runs.num_words):
                number = runs.find(hashes)
                if number is not None:
                    return self.names[number]
        return None

    def _number(self, words: list[str]) -> NDArray[np.uint64]:
        # A word that no evaluation text holds is 0, and no hash of theirs was made with a 0.
        return np.fromiter(map(self._codes.get, words, itertools.repeat(0)), dtype=np.uint64, count=len(words))

    def remarks(self) -> list[str]:
        """What a person should know of what cannot be found."""
        if not self.num_too_short:
            return []
        count = len(self.names) + self.num_too_short
        return [
            f"{self.num_too_short:,} of {count:,} evaluation texts are shorter than {self.num_words} words (or "
            f"{self.num_words * _CHARACTERS_PER_WORD} characters of a script without spaces) and were not looked for."
        ]
