"""A text → the terms by which BM25 finds it: words without case, names in code also by their parts.

`readHTTPHeader` and `read_http_header` are found by "read http header" and by themselves; of scripts that are written without
spaces each pair of neighbouring characters is a term. Stems are the store's affair. Price: 5 MB of text a second on one core.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from modernbert.text.words import UNSPACED

_WORD = re.compile(rf"[{UNSPACED}]+|[^\W{UNSPACED}]+")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_UNSPACED = re.compile(f"[{UNSPACED}]")


def terms_of(text: str) -> str:
    """The terms of a text, with spaces between; the same for a query as for a passage."""
    return " ".join(_terms(text))


def _terms(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        if _UNSPACED.match(word):
            yield from (map("".join, itertools.pairwise(word)) if len(word) > 1 else [word])
            continue
        parts = _PART.findall(word) if word.isascii() else [part for part in word.split("_") if part]
        if len(parts) > 1:
            yield from (part.casefold() for part in parts)
        joined = word.strip("_").casefold()
        if joined:
            yield joined
