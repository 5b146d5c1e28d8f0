"""Tags of words ↔ spans of words; windows of a long text → the one that decides on each word.

    words → (a model) → tags → repaired tags → spans

Tags are BIO: `B-disease` begins an entity, `I-disease` goes on with it, `O` is outside of all. Other writings of the same
(`E-`, `L-`: its last word, `S-`, `U-`: its only one, a bare `disease`) are read as well. Pure functions. Price: about a
microsecond a character, and as much a tag.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from modernbert.text.examples import OUTSIDE

Span = tuple[str, int, int]
"""The type of an entity, its first word, and the one behind its last."""

_BEGINS, _GOES_ON, _ENDS = "BSU", "IEL", "ESLU"
_NAMELESS = "_"  # the type in a tag that is `B` or `I` alone, as seqeval calls it


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """The entities that tags say, in their order; an `I-x` that goes on with nothing begins one.

    The same as seqeval's `get_entities` finds in its default mode, that of conlleval.
    """
    spans: list[Span] = []
    is_open = False
    for word, tag in enumerate(tags):
        prefix, kind = _parsed(tag)
        if prefix == OUTSIDE:
            is_open = False
            continue
        if is_open and prefix in _GOES_ON and spans[-1][0] == kind:
            spans[-1] = (kind, spans[-1][1], word + 1)
        else:
            spans.append((kind, word, word + 1))
        is_open = prefix not in _ENDS
    return spans


def span_tags(spans: Iterable[Span], num_words: int) -> list[str]:
    """BIO tags of so many words; the inverse of `entity_spans`. Spans must not overlap."""
    tags = [OUTSIDE] * num_words
    for kind, first, stop in spans:
        assert 0 <= first < stop <= num_words, f"span {first}:{stop} of {num_words} words"
        assert set(tags[first:stop]) == {OUTSIDE}, f"span {first}:{stop} overlaps another"
        tags[first:stop] = [f"B-{kind}", *[f"I-{kind}"] * (stop - first - 1)]
    return tags


def repair(tags: Sequence[str]) -> list[str]:
    """Valid BIO with the same entities: an `I-x` behind anything but `B-x` or `I-x` becomes `B-x`."""
    return span_tags(entity_spans(tags), len(tags))


@functools.lru_cache(4096)
def _parsed(tag: str) -> tuple[str, str]:
    """(B, I, E, L, S, U or O; type). A tag without such a prefix is a type, of a word inside."""
    prefix, _, kind = tag.partition("-")
    if prefix == OUTSIDE:
        return OUTSIDE, ""
    if prefix in ("B", "I", "E", "L", "S", "U"):
        return prefix, kind or _NAMELESS
    return "I", tag


def num_windows(num_tokens: int, size: int, stride: int) -> int:
    """Windows of `size` tokens, each sharing `stride` with the next, that a text takes; one for a text without any."""
    assert 0 <= stride < size
    return 1 + max(0, -(-(num_tokens - size) // (size - stride)))


def deciding_windows(first_W: np.ndarray, stop_W: np.ndarray, *, num_tokens: int, size: int, stride: int) -> np.ndarray:
    """For each word the window in which it has most context: on the side where it has less, the text's own end not counted.

    Args:
        first_W: each word's first token in the text.
        stop_W: the token behind its last.
        num_tokens: of the whole text.
        size: tokens of a window, special ones not counted.
        stride: tokens that neighbouring windows share.

    Returns:
        The window's number (W); it holds the word's first token. Of two as good, the earlier one.
    """
    step = size - stride
    # Window k leaves a word first − k·step tokens on its left and k·step + size − stop on its right, so that window k + 1 is
    # better where first − (k + 1)·step > k·step + size − stop. A word longer than the overlap may be whole in none.
    best_W = -((first_W + stop_W - size - step) // (-2 * step))
    earliest_W = -((first_W - size + 1) // -step)
    latest_W = np.minimum(first_W // step, num_windows(num_tokens, size, stride) - 1)
    return np.clip(np.maximum(best_W, 0), np.maximum(earliest_W, 0), latest_W)
