"""Questions and passages → windows of tokens; logits of windows → spans of characters.

    [CLS] question [SEP] a part of the passage [SEP]    windows of `max_length` tokens, neighbours share `stride`

A passage is tokenised once, however many questions are asked of it, and a window is a slice of it: a span is a pair of
passage tokens, so that what two windows find is merged by looking at the same place. Tokens that only continue a
character (bytes of a Chinese one) have the whole character's place, and the space before a word is no part of it.
Price: 4 bytes for each passage token and each length of an answer while one example is decided.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from modernbert.errors import ConfigError, DataError
from modernbert.text.examples import AnswerExample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A tokenised passage: the ids of its T tokens, and the characters that each of them covers, without white space."""

    text: str
    ids_T: np.ndarray  # int32
    first_T: np.ndarray  # the first character
    stop_T: np.ndarray  # the one behind the last; equal to the first of a token of nothing but white space

    @classmethod
    def of(cls, text: str, encoding: Encoding) -> Passage:
        """Read an encoding without special tokens, and leave out the white space that its offsets count in."""
        offsets_T2 = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        is_space = np.fromiter((character.isspace() for character in text), bool, len(text))
        places = np.arange(len(text) + 1)
        # Of each border between characters: the next character that is no space, and the one behind the last such.
        next_from = np.minimum.accumulate(np.append(np.where(is_space, len(text), places[:-1]), len(text))[::-1])[::-1]
        last_to = np.maximum.accumulate(np.append(0, np.where(is_space, 0, places[1:])))
        first_T, stop_T = next_from[offsets_T2[:, 0]], last_to[offsets_T2[:, 1]]
        return cls(
            text=text,
            ids_T=np.array(encoding.ids, dtype=np.int32),
            first_T=first_T,
            stop_T=np.maximum(first_T, stop_T),
        )

    @property
    def is_blank_T(self) -> np.ndarray:
        """Tokens of nothing but white space, at which no answer begins or ends."""
        return self.first_T == self.stop_T

    def tokens_of(self, example: AnswerExample) -> tuple[int, int]:
        """The first and the last token of an example's first answer.

        Raises:
            DataError: it is not in the passage where it is said to be, or holds nothing that gives a token.
        """
        assert example.answers
        answer, start = example.answers[0]
        where = example.where or f"question {example.id or example.question!r:.60}"
        if start < 0 or self.text[start : start + len(answer)] != answer:
            raise DataError(
                f"{where}: the answer {answer!r:.60} is not at character {start} of its passage; correct answer_start "
                "or leave the answer out"
            )
        overlapping = ~self.is_blank_T & (self.stop_T > start) & (self.first_T < start + len(answer))
        if not overlapping.any():
            raise DataError(f"{where}: the answer {answer!r:.60} gives no token; leave it out")
        found = overlapping.nonzero()[0]
        return int(found[0]), int(found[-1])

    def characters_of(self, first: int, last: int) -> tuple[int, int]:
        """The characters that two tokens and those between them cover: the first, and the one behind the last."""
        return int(self.first_T[first]), int(self.stop_T[last])


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A question with N tokens of its passage, as a model reads them."""

    ids_T: np.ndarray  # int32
    example: int
    start: int  # the first of them in the passage
    place: int  # and where it is in the ids
    length: int  # N

    def target(self, tokens: tuple[int, int] | None) -> np.ndarray:
        """Where the ids have an answer (first and last token); twice 0 where they do not have all of it."""
        if tokens is None or tokens[0] < self.start or tokens[1] >= self.start + self.length:
            return np.zeros(2, dtype=np.int64)
        return np.array(tokens, dtype=np.int64) - self.start + self.place


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best answer to one question."""

    characters: tuple[int, int] | None  # None: the passage has no token at which one could begin
    advantage: float  # how much higher it is than no answer, in logits
    score: float  # its probability among all spans that were allowed, and no answer
    no_answer_score: float  # the probability of no answer


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens of a pair: before, between and behind its two texts."""

    before: np.ndarray
    between: np.ndarray
    behind: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Frame:
        sample = tokenizer.encode("a", "a")  # the template itself is not to be had; the ids of a pair show it
        of_text = np.array([-1 if text is None else text for text in sample.sequence_ids])
        ids = np.array(sample.ids, dtype=np.int32)
        first, second = (of_text == 0).nonzero()[0], (of_text == 1).nonzero()[0]
        if first[0] == 0:
            raise DataError(
                "the tokenizer puts no special token before a pair of texts, which stands for no answer; give it a "
                "template of [CLS] question [SEP] passage [SEP]"
            )
        return cls(ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :])

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.behind)


def windows_of(
    examples: Sequence[AnswerExample], tokenizer: Tokenizer, *, max_length: int, stride: int
) -> tuple[list[Passage], list[list[Window]]]:
    """Tokenise questions and passages, and cut passages to windows.

    A question gets what its passage leaves free, and half of a window at least; it is cut there, which is logged.

    Args:
        examples: what to read.
        tokenizer: with a template for pairs.
        max_length: of a window, in tokens, special ones included.
        stride: tokens that neighbouring windows of a passage share.

    Returns:
        For each example its passage and its windows, at least one, in the passage's order.

    Raises:
        ConfigError: windows that short cannot share that much.
        DataError: the tokenizer has no template for pairs.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    frame = _Frame.of(tokenizer)
    room = max_length - frame.num_tokens  # for question and passage
    if not 0 <= stride < room // 2:
        raise ConfigError(
            f"stride={stride} is out of range for max_length={max_length}; it must be from 0 to {room // 2 - 1}, less "
            "than the half that a passage has for itself beside a long question"
        )
    questions = tokenizer.encode_batch([example.question.strip() for example in examples], add_special_tokens=False)
    passages = passages_of((example.context for example in examples), tokenizer)
    windows, num_cut = [], 0
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        passage = passages[example.context]
        most = max(room // 2, room - len(passage.ids_T))
        num_cut += len(question.ids) > most
        head = np.concatenate([frame.before, np.array(question.ids[:most], dtype=np.int32), frame.between])
        width = max_length - len(head) - len(frame.behind)
        windows.append(
            [
                Window(
                    ids_T=np.concatenate([head, passage.ids_T[start : start + width], frame.behind]),
                    example=number,
                    start=start,
                    place=len(head),
                    length=min(width, len(passage.ids_T) - start),
                )
                for start in range(0, max(1, len(passage.ids_T) - stride), max(1, width - stride))
            ]
        )
    if num_cut:
        log.warning(
            "%s of %s questions fill more than half of a window of %s tokens beside a long passage, and are cut there; a "
            "larger max_length keeps more of them",
            *(f"{count:,}" for count in (num_cut, len(examples), max_length)),
        )
    return [passages[example.context] for example in examples], windows


def passages_of(texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, Passage]:
    """Each different text, tokenised."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    different = list(dict.fromkeys(texts))
    encodings = tokenizer.encode_batch(different, add_special_tokens=False)
    return {text: Passage.of(text, encoding) for text, encoding in zip(different, encodings, strict=True)}


def best_span(
    passage: Passage, windows: Sequence[Window], logits: Sequence[np.ndarray], max_answer_tokens: int
) -> Found:
    """Find the best answer in all windows of a passage, as the SQuAD reference scores it.

    A span counts start logit + end logit, the higher one where two windows have it. No answer counts the first token's
    logits, the lowest ones of all windows: a window without the answer says so rightly.

    Args:
        passage: of these windows.
        windows: all of one example.
        logits: of each window (its tokens, 2): start and end.
        max_answer_tokens: longer spans are none.
    """
    width = min(max_answer_tokens, max(len(passage.ids_T), 1))
    scores_TW = np.full((len(passage.ids_T), width), -np.inf, dtype=np.float32)  # of the span from t to t + w
    no_answer = min(float(logits_T2[0].sum()) for logits_T2 in logits)
    for window, logits_T2 in zip(windows, logits, strict=True):
        inside = slice(window.start, window.start + window.length)
        own_N2 = logits_T2[window.place : window.place + window.length].astype(np.float32)
        own_N2 = np.where(passage.is_blank_T[inside, None], np.float32(-np.inf), own_N2)
        ends = np.append(own_N2[:, 1], np.full(width, -np.inf, dtype=np.float32))
        spans_NW = own_N2[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, width)[: window.length]
        np.maximum(scores_TW[inside], spans_NW, out=scores_TW[inside])
    best = float(scores_TW.max(initial=-np.inf))
    if best == -np.inf:
        return Found(characters=None, advantage=-np.inf, score=0.0, no_answer_score=1.0)
    first, further = divmod(int(scores_TW.argmax()), width)
    top = max(best, no_answer)
    total = float(np.exp(scores_TW - top).sum(dtype=np.float64)) + float(np.exp(no_answer - top))
    return Found(
        characters=passage.characters_of(first, first + further),
        advantage=best - no_answer,
        score=float(np.exp(best - top)) / total,
        no_answer_score=float(np.exp(no_answer - top)) / total,
    )
