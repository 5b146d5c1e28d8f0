"""A long text -> blocks that can be tokenised one by one and give the very ids of the whole.

A tokenizer that first splits a text into words never joins what it splits there. So a text may be cut before a space
that follows a word, or between a letter and a full stop, if this tokenizer splits there whatever lies around; that is
tried out on 4,000 made-up strings when the first long text comes. A block behind a cut is tokenised with an "x" in front, whose
ids are dropped, because tokenizers treat the beginning of a text as special.

Price: 0.3 s once. Memory while tokenising falls from 100 times the text to 100 times a block of 65,536 characters.
A run of so many characters with no such place (base64, say) is cut where it is; the ids may differ there, and it is
counted.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

BLOCK_CHARS = 2**16
_SENTINEL = "x"
# What may begin a block, and what must stand before it. Narrower than any tokenizer's notion of space and letter.
_CUTS = (
    re.compile(r"(?<=\S) "),
    re.compile(r"(?<=\S)[\n\t\r]"),
    re.compile(r"(?<=[^\W\d_])[。！？，、；：.!?,;:()\[\]{}<>=\"/]"),
)
_ALPHABET = (*"aZsx17'._-,(。、字かé🙂  \n\t", "\u0301", "\u00a0", "\r\n", "'s", "ß", "ก")
_NUM_TRIALS = 4000
_TAILS = (256, 4096, BLOCK_CHARS)  # characters in which the last cut is looked for, few first


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one text."""

    texts: list[str]
    num_dropped: list[int]  # ids to drop at the front of each
    num_forced: int = 0  # cuts where ids may differ from the whole text's
    is_uncut: bool = False  # a long text that no safe cut is known for


class Cutter:
    """Cuts texts where a tokenizer splits them anyway."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _cuts(self) -> list[re.Pattern[str]]:
        return [cut for cut in _CUTS if _is_safe(self._tokenizer, cut)]

    @cached_property
    def _sentinel_ids(self) -> list[int]:
        return self._tokenizer.encode(_SENTINEL, add_special_tokens=False).ids

    def cut(self, text: str, block_chars: int = BLOCK_CHARS) -> Blocks:
        """Cut a text into blocks of at most `block_chars` characters; it stays whole where no safe cut is known."""
        if len(text) <= block_chars:
            return Blocks([text], [0])
        if not self._cuts:
            return Blocks([text], [0], is_uncut=True)
        texts, dropped, num_forced = [], [], 0
        start, is_clean = 0, False  # whether the block from `start` needs the sentinel
        while start < len(text):
            stop, found = len(text), True
            if len(text) - start > block_chars:
                last = self._last_cut(text, start + 1, start + block_chars)
                stop, found = (last, True) if last else (start + block_chars, False)
            texts.append((_SENTINEL if is_clean else "") + text[start:stop])
            dropped.append(len(self._sentinel_ids) if is_clean else 0)
            num_forced += not found
            start, is_clean = stop, found
        return Blocks(texts, dropped, num_forced)

    def join(self, blocks: Blocks, ids: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """The ids of the whole text from those of its blocks."""
        parts = []
        for num_dropped, block in zip(blocks.num_dropped, ids, strict=True):
            assert not num_dropped or block[:num_dropped].tolist() == self._sentinel_ids
            parts.append(block[num_dropped:])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _last_cut(self, text: str, least: int, most: int) -> int | None:
        for cut in self._cuts:
            for tail in _TAILS:
                start = max(least, most - tail)
                places = [match.start() for match in cut.finditer(text, start, most)]
                if places:
                    return places[-1]
                if start == least:
                    break
        return None


def _is_safe(tokenizer: Tokenizer, cut: re.Pattern[str]) -> bool:
    """Whether a tokenizer splits wherever a pattern matches, and treats what follows as it would behind an "x"."""
    if tokenizer.pre_tokenizer is None or any(
        token.rstrip or token.single_word or cut.search(token.content)
        for token in tokenizer.get_added_tokens_decoder().values()
        if not (token.special and tokenizer.encode_special_tokens)
    ):
        return False
    if len(_pieces(tokenizer, _SENTINEL)) != 1:
        return False
    draw = random.Random(0)
    for _ in range(_NUM_TRIALS):
        text = "".join(draw.choices(_ALPHABET, k=draw.randint(2, 12)))
        places = [match.start() for match in cut.finditer(text)]
        if not places:
            continue
        place = draw.choice(places)
        behind = _pieces(tokenizer, _SENTINEL + text[place:])
        if _pieces(tokenizer, text) != _pieces(tokenizer, text[:place]) + behind[1:]:
            return False
        if behind[:1] != _pieces(tokenizer, _SENTINEL):
            return False
    return True


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the tokenizer splits a text into before it looks for tokens."""
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]
