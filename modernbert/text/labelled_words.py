"""A running text -> its words, as tags are given to them: for entities that a file gives by characters, and for answers."""

from __future__ import annotations

import functools
import unicodedata
from typing import Literal

from modernbert.text.words import is_unspaced


def word_spans(text: str) -> tuple[tuple[int, int], ...]:
    """The words of a running text: first character of each, and the one behind its last.

    White space separates. Each punctuation mark or symbol is a word of its own, and so is each character of a script that is
    written without spaces (Han, kana, Thai, …). Accents, joiners and other marks belong to the character before them.
    """
    spans: list[tuple[int, int]] = []
    before: str = "space"
    for place, character in enumerate(text):
        kind = _kind_of(character)
        if kind == "space":
            before = kind
        elif before != "space" and (kind == "mark" or (kind == before == "letter")):
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
            before = "letter" if kind == "mark" else kind
    return tuple(spans)


@functools.lru_cache(65_536)
def _kind_of(character: str) -> Literal["space", "mark", "alone", "letter"]:
    category = unicodedata.category(character)
    if character.isspace():
        return "space"
    if category[0] == "M" or category == "Cf":
        return "mark"
    return "alone" if category[0] in "PS" or is_unspaced([character]) else "letter"
