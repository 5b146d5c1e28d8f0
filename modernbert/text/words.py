r"""A text -> its words, their case folded, for comparing texts: whatever is neither letter, digit nor "_" separates.

In scripts that are written without spaces (Han, kana, Thai, Lao, Burmese, Khmer) each character is a word of its own.
Price: 15 to 27 MB of text a second on one core.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts that are written without spaces, as ranges of a regular expression."""
_WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
_REST_OF_WORD = re.compile(f"[^\\W{UNSPACED}]*")
_CHARACTER = re.compile(f"[{UNSPACED}]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: odd, and its bits are well mixed


def split_words(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text.casefold())  # unlike lower(), the same for a part as in the whole


def word_blocks(text: str, block_chars: int = 2**18) -> Iterator[list[str]]:
    """The words of a text, some at a time: as a list they take fifteen times the memory of the text."""
    start = 0
    while start < len(text):
        rest = _REST_OF_WORD.match(text, min(start + block_chars, len(text)))
        assert rest is not None  # it matches nothing, too
        yield split_words(text[start : rest.end()])
        start = rest.end()


def is_unspaced(words: list[str]) -> bool:
    """Whether most words are characters of a script written without spaces."""
    return sum(1 for word in words if _CHARACTER.match(word)) * 2 > len(words)


def ngram_hashes(word_hashes: NDArray[np.uint64], num_words: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each run of `num_words` words; of all of them where there are fewer; none of no words.

    Args:
        word_hashes: a number for each word, in order.
        num_words: words in a run, 1 or more.
    """
    length = min(num_words, len(word_hashes))
    if length == 0:
        return np.zeros(0, dtype=np.uint64)
    count = len(word_hashes) - length + 1
    return hash_rows([word_hashes[offset : offset + count] for offset in range(length)])


def blockwise_ngram_hashes(
    text: str, number: Callable[[list[str]], NDArray[np.uint64]], num_words: int
) -> Iterator[NDArray[np.uint64]]:
    """The hashes of all runs of `num_words` words of a text, some at a time; none where it has fewer words.

    Args:
        text: any text.
        number: gives a number for each of some words.
        num_words: words in a run, 1 or more.
    """
    carried = np.zeros(0, dtype=np.uint64)
    for words in word_blocks(text):
        numbers = np.concatenate([carried, number(words)])
        if len(numbers) >= num_words:
            yield ngram_hashes(numbers, num_words)
        carried = numbers[max(len(numbers) - num_words + 1, 0) :]


def hash_rows(columns: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of a table given by its columns; their order matters."""
    hashes = np.zeros_like(columns[0])
    for column in columns:
        hashes = (hashes * _MULTIPLIER) ^ column
        hashes ^= hashes >> np.uint64(29)  # or the low bits would never hear of the high ones
    return hashes * _MULTIPLIER
