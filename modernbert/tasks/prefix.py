"""A tokenizer → one that reads a word alike wherever it stands: at the start of a text, after a space, or in a list of words.

Tokenizers of the GPT-2 kind have an entry for "house" and another for " house". Pretraining sees the second nearly always;
lists of words, and the first word of a text, give the first, which published models name as a weakness of theirs in entity
recognition. Their own remedy, `add_prefix_space`, knows one case only: it also puts a space between Han characters given one
by one, and between the pieces of patterns that cut a text before it. So it is switched off, and a normaliser in front of all
others does it: a space before the first character, unless that is a space or of a script that is written without spaces.

It is part of tokenizer.json, so that `transformers` reads words (`is_split_into_words=True`) as they are read here.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from modernbert.text.tokenizer import adds_prefix_space
from modernbert.text.words import UNSPACED, is_unspaced

_PREPEND = {"type": "Prepend", "prepend": " "}
_BUT_NOT = {"type": "Replace", "pattern": {"Regex": f"\\A (?=[ {UNSPACED}])"}, "content": ""}


def with_prefix_space(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads the first word of a text, and each of a list, as after a space.

    Returns:
        The tokenizer itself where it does so already, or where spaces say nothing to it.
    """
    before = json.loads(tokenizer.to_str())
    plain = _without(before)
    state = plain | {"normalizer": _sequence([_PREPEND, _BUT_NOT, *_parts(plain["normalizer"], "normalizers")])}
    says_nothing = adds_prefix_space(_from_state(plain, tokenizer))  # as to BERT's, which drops white space at once
    if state == before or says_nothing:
        return tokenizer
    return _from_state(state, tokenizer)


def without_prefix_space(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads a text as it is, whatever it did before: with a space in front only where the text has one."""
    return _from_state(_without(json.loads(tokenizer.to_str())), tokenizer)


def _without(state: dict[str, Any]) -> dict[str, Any]:
    pre_tokenizers = [
        part
        | ({"add_prefix_space": False} if part["type"] == "ByteLevel" else {})
        | ({"prepend_scheme": "never"} if part["type"] == "Metaspace" else {})
        for part in _parts(state["pre_tokenizer"], "pretokenizers")
    ]
    normalizers = _parts(state["normalizer"], "normalizers")
    kept = [part for part in normalizers if part["type"] != "Prepend" and part != _BUT_NOT]
    return state | {"pre_tokenizer": _sequence(pre_tokenizers, "pretokenizers"), "normalizer": _sequence(kept)}


def takes_prefix_space(word: str) -> bool:
    """Whether a tokenizer of `with_prefix_space` puts a space before this word."""
    return not word.startswith(" ") and not is_unspaced([word])


def _parts(part: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [p for child in part[children] for p in _parts(child, children)] if part["type"] == "Sequence" else [part]


def _sequence(parts: list[dict[str, Any]], children: str = "normalizers") -> dict[str, Any] | None:
    return {"type": "Sequence", children: parts} if len(parts) > 1 else next(iter(parts), None)


def _from_state(state: dict[str, Any], like: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = like.encode_special_tokens  # not part of the string
    return copy
