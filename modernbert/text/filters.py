"""A document -> whether to train on it, its signature, its ids: all that can be found out by looking at it alone.

Steps: language, evaluation text, signature for near-duplicates (each only where asked for); long texts cut into blocks
(see `cut`), all blocks tokenised together. None of this depends on other documents, so any number of processes may
share it (see `crew`) and the result stays the same. Price: the sum of what `language`, `contamination` and `near` say
of themselves, and 3 MB a second and core for tokenising.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from modernbert.text.contamination import DEFAULT_WORDS, EvaluationTexts
from modernbert.text.cut import Blocks, Cutter
from modernbert.text.language import LanguageFilter, identifier_version
from modernbert.text.near import signature, version_for
from modernbert.text.read import digest_of

NEAR, LANGUAGE, CONTAMINATED = "near-duplicate", "other language", "contaminated"


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What is left out beside empty texts and exact duplicates; nothing, if not said otherwise."""

    near_duplicates: float | None = None  # Jaccard similarity of runs of five words, above 0 and up to 1; 0.8 is usual
    languages: Sequence[str] = ()  # codes such as "en"; a document in any of them stays
    language_confidence: float = 0.5  # the probability from which a document counts as being in them
    decontaminate: Sequence[str | Path] = ()  # evaluation files
    decontaminate_fields: Sequence[str] = ("text",)  # of their records
    decontaminate_words: int = DEFAULT_WORDS  # words in a row that make a copy

    def describe(self) -> dict[str, Any]:
        """What the result depends on, as plain data; empty where nothing is filtered."""
        told: dict[str, Any] = {}
        if self.near_duplicates is not None:
            told |= {"near_duplicates": self.near_duplicates, "near_duplicates_by": version_for(self.near_duplicates)}
        if self.languages:
            told |= {
                "language": list(self.languages),
                "language_confidence": self.language_confidence,
                "language_by": identifier_version(),
            }
        if self.decontaminate:
            told |= {
                "decontaminate": [str(path) for path in self.decontaminate],
                "decontaminate_digest": digest_of(self.decontaminate, ()),
                "decontaminate_fields": list(self.decontaminate_fields),
                "decontaminate_words": self.decontaminate_words,
            }
        return told

    def language_filter(self) -> LanguageFilter | None:
        """The filter by language, if there is one."""
        return LanguageFilter(self.languages, self.language_confidence) if self.languages else None

    def evaluation_texts(self) -> EvaluationTexts | None:
        """Read the evaluation files, if there are any."""
        if not self.decontaminate:
            return None
        return EvaluationTexts.read(
            list(self.decontaminate), fields=self.decontaminate_fields, num_words=self.decontaminate_words
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was found out about one document."""

    refused: tuple[str, str] | None = None  # why, and a few words on it
    signature: NDArray[np.uint32] | None = None  # None also where the text has no words
    ids: NDArray[np.uint32] | None = None  # None where it was not to be tokenised
    num_forced: int = 0  # cuts where ids may differ from those of the text as a whole
    is_uncut: bool = False  # long, and tokenised as a whole


class Looker:
    """Looks at documents.

    Args:
        tokenizer: as `for_plain_text` gives it.
        filters: what to look for.
        evaluation: the texts of `filters.evaluation_texts()`.
        batch_chars: characters tokenised at once, which bounds the memory.
    """

    def __init__(
        self, tokenizer: Tokenizer, filters: Filters, evaluation: EvaluationTexts | None, batch_chars: int
    ) -> None:
        self._cutter = Cutter(tokenizer)
        self._tokenizer = tokenizer
        self._language = filters.language_filter()
        self._evaluation = evaluation
        self._signs = filters.near_duplicates is not None
        self._batch_chars = batch_chars

    def look(self, texts: Sequence[str], *, tokenise: bool = True) -> list[Looked]:
        """Find out about each text; `tokenise` False leaves the ids out."""
        refused = [self._refuse(text) for text in texts]
        passed = [text for text, reason in zip(texts, refused, strict=True) if reason is None]
        cut = [self._cutter.cut(text) for text in passed]
        ids: Iterator[NDArray[np.uint32] | None] = iter(self._ids(cut) if tokenise else [None] * len(passed))
        found = (
            Looked(
                signature=signature(text) if self._signs else None,
                ids=next(ids),
                num_forced=blocks.num_forced,
                is_uncut=blocks.is_uncut,
            )
            for text, blocks in zip(passed, cut, strict=True)
        )
        return [Looked(refused=reason) if reason else next(found) for reason in refused]

    def tokenise(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, without special tokens."""
        return self._ids([self._cutter.cut(text) for text in texts])

    def _ids(self, cut: list[Blocks]) -> list[NDArray[np.uint32]]:
        flat = [block for blocks in cut for block in blocks.texts]
        found: list[NDArray[np.uint32]] = []
        start = num_chars = 0
        for stop, block in enumerate(flat, start=1):
            num_chars += len(block)
            if num_chars >= self._batch_chars or stop == len(flat):
                encodings = self._tokenizer.encode_batch_fast(flat[start:stop], add_special_tokens=False)
                found += [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
                start, num_chars = stop, 0
        parts = iter(found)
        return [self._cutter.join(blocks, [next(parts) for _ in blocks.texts]) for blocks in cut]

    def _refuse(self, text: str) -> tuple[str, str] | None:
        if self._language and (seems := self._language.refuses(text)):
            return LANGUAGE, seems
        if self._evaluation and (name := self._evaluation.find(text)):
            return CONTAMINATED, f"as in {name}"
        return None
