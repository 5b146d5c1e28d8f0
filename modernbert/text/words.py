r"""A text -> its words in lower case, for comparing texts: whatever is neither letter, digit nor "_" separates.

In scripts that are written without spaces (Han, kana, Thai, Lao, Burmese, Khmer) each character is a word of its own.
Price: 27 MB of text a second on one core.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: odd, and its bits are well mixed


def split_words(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text.lower())


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


def hash_rows(columns: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of a table given by its columns; their order matters."""
    hashes = np.zeros_like(columns[0])
    for column in columns:
        hashes = (hashes * _MULTIPLIER) ^ column
        hashes ^= hashes >> np.uint64(29)  # or the low bits would never hear of the high ones
    return hashes * _MULTIPLIER
