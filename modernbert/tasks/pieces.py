"""Examples of words → windows of token ids, and where in them the words stand.

    words and what is between them → pieces, with their spaces → tokens → windows that share `stride` tokens → ids

A piece is tokenised for itself, so that no token reaches over the border of a word. Price: 0.1 s once to copy a tokenizer of
50,000 entries; then as much as tokenising costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from modernbert.errors import ConfigError, DataError
from modernbert.tasks.entities import deciding_windows
from modernbert.tasks.prefix import takes_prefix_space, without_prefix_space
from modernbert.text.examples import Example, TagExample

_EXAMPLES_AT_ONCE = 1_024  # tokenised
_NOT_SPACE = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an example, as token ids, and the words that are decided in it."""

    example: int
    ids_T: np.ndarray
    words_W: np.ndarray  # numbers in the example
    places_W: np.ndarray  # of their first tokens in `ids_T`


class WordReader:
    """Tokenises words.

    Args:
        tokenizer: as the model's folder has it.
        max_length: tokens of a window, special ones included.
        stride: tokens that neighbouring windows share.
        prefix_space: False reads each word as the tokenizer reads a text; see `Tagger`.

    Raises:
        ConfigError: windows that share all of their tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_length: int, stride: int, prefix_space: bool) -> None:
        self.size = max_length - tokenizer.num_special_tokens_to_add(is_pair=False)
        if not 0 <= stride < self.size:
            raise ConfigError(
                f"stride={stride} with max_length={max_length}: windows have room for {self.size} tokens of text, and the stride "
                "must be less"
            )
        self.max_length, self.stride, self.prefix_space = max_length, stride, prefix_space
        # Pieces say their spaces themselves. Added tokens are found in a piece before any space is put there.
        self._tokenizer = without_prefix_space(tokenizer) if prefix_space else Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, stride=stride)
        added = tokenizer.get_added_tokens_decoder().values()
        self._added = frozenset(token.content for token in added if not token.normalized)

    def windows(self, examples: Sequence[Example]) -> Iterator[Window]:
        """The windows of each example, one at least, in order.

        Raises:
            DataError: words that are not in the text, or not in its order.
        """
        for start in range(0, len(examples), _EXAMPLES_AT_ONCE):
            pieces = [self._pieces(example) for example in examples[start : start + _EXAMPLES_AT_ONCE]]
            encodings = self._tokenizer.encode_batch([texts for texts, _ in pieces], is_pretokenized=True)
            for index, (encoding, (_, words_P)) in enumerate(zip(encodings, pieces, strict=True), start=start):
                yield from _cut(index, [encoding, *encoding.overflowing], words_P, self.size, self.stride)

    def _pieces(self, example: Example) -> tuple[list[str], np.ndarray]:
        """What is tokenised, each for itself, and of which word it is (P): −1 of text between words, which is read too."""
        assert isinstance(example, TagExample)
        text, behind = example.text, 0
        pieces: list[str] = []
        words: list[int] = []
        for word, (start, stop) in enumerate([*example.spans, (len(text), len(text))]):
            if not behind <= start <= stop <= len(text):
                raise DataError(
                    f"{example.where}: word {word + 1} is at {start}:{stop} of {len(text)} characters; words must be in the "
                    "text, one behind the other"
                )
            between = [match.span() for match in _NOT_SPACE.finditer(text, behind, start)]
            for number, (first, end) in [*((-1, span) for span in between), (word, (start, stop))]:
                if first == end:  # a word of nothing, or the end of the text
                    continue
                piece = text[first:end]
                is_apart = self.prefix_space and (not pieces or text[first - 1].isspace())
                has_space = is_apart and takes_prefix_space(piece) and piece not in self._added
                pieces.append(f" {piece}" if has_space else piece)
                words.append(number)
            behind = stop
        return pieces, np.array(words, dtype=np.int64)


def _cut(example: int, encodings: Sequence[Encoding], words_P: np.ndarray, size: int, stride: int) -> Iterator[Window]:
    """The windows of a text, each with the words that are decided there."""
    pieces_T = [np.array([-1 if p is None else p for p in e.word_ids], dtype=np.int64) for e in encodings]
    inner_T = [np.flatnonzero(pieces >= 0) for pieces in pieces_T]  # all but special tokens
    step = size - stride
    num_tokens = (len(encodings) - 1) * step + len(inner_T[-1])
    all_T = np.empty(num_tokens, dtype=np.int64)  # the piece of each token of the text
    for number, (pieces, inner) in enumerate(zip(pieces_T, inner_T, strict=True)):
        all_T[number * step : number * step + len(inner)] = pieces[inner]
    firsts_F = np.flatnonzero(np.diff(all_T, prepend=-1))
    stops_F = np.append(firsts_F[1:], num_tokens)
    numbers_F = words_P[all_T[firsts_F]]
    is_word = numbers_F >= 0
    first_W, stop_W, words_W = firsts_F[is_word], stops_F[is_word], numbers_F[is_word]
    window_W = deciding_windows(first_W, stop_W, num_tokens=num_tokens, size=size, stride=stride)
    for number, (encoding, inner) in enumerate(zip(encodings, inner_T, strict=True)):
        here = window_W == number
        places_W = inner[first_W[here] - number * step] if here.any() else np.zeros(0, dtype=np.int64)
        yield Window(example, np.array(encoding.ids, dtype=np.int32), words_W[here], places_W)
