"""The tokenizer's files of a checkpoint → whether they and config.json mean the same tokens.

Readers differ in which file they believe, so a disagreement is silent until one of them is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tokenizers import Tokenizer

from modernbert.errors import ModernBertError
from modernbert.evaluate.contents import Contents
from modernbert.model.config import ModernBertConfig
from modernbert.text.tokenizer import load_tokenizer, num_ids, special_ids, special_names

_TOKENIZER, _TOKENIZER_CONFIG, _SENTENCES = "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"


def look_at_tokenizer(found: Contents) -> None:
    """Compare a folder's tokenizer files with each other and with config.json."""
    if not (found.folder / _TOKENIZER).exists():
        found.warn(f"no {_TOKENIZER}: give the tokenizer beside the model")
        return
    path = found.folder / _TOKENIZER_CONFIG
    try:
        found.tokenizer = load_tokenizer(found.folder)
        special_ids(found.tokenizer)
    except ModernBertError as error:
        found.error(f"{_TOKENIZER}: {error}")
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        found.error(f"{path.name} is no JSON ({error})")
        return
    if not isinstance(values, dict):
        found.error(f"{path.name} holds a {type(values).__name__}, not an object")
        return
    found.tokenizer_values = values
    if not path.exists():
        found.warn(f"no {_TOKENIZER_CONFIG}: transformers does not know the special tokens' parts without it")
    before = len(found.findings)
    if found.config is not None:
        _compare_ids(found, found.config, found.tokenizer)
    _compare_roles(found, found.tokenizer)
    _look_at_spaces(found, found.tokenizer)
    if len(found.findings) == before:
        found.ok("special tokens: the tokenizer's files and config.json agree")


def _compare_ids(found: Contents, config: ModernBertConfig, tokenizer: Tokenizer) -> None:
    if (count := num_ids(tokenizer)) > config.vocab_size:
        found.error(
            f"the tokenizer has {count:,} ids and the embedding {config.vocab_size:,} rows: they do not belong together"
        )
    special = special_ids(tokenizer)
    for role in ("pad", "mask", "cls", "sep"):
        said, own = found.values.get(f"{role}_token_id"), getattr(special, role)
        if isinstance(said, int) and said != own:
            text = f"config.json: {role}_token_id={said}, and the tokenizer's {tokenizer.id_to_token(own)} is {own}"
            (found.error if role in ("pad", "mask") else found.warn)(text)
    for name, said in found.values.items():
        if name.endswith("_token_id") and isinstance(said, int) and not 0 <= said < config.vocab_size:
            found.error(f"config.json: {name}={said} is outside the vocabulary of {config.vocab_size:,}")


def _compare_roles(found: Contents, tokenizer: Tokenizer) -> None:
    """The parts that tokenizer_config.json gives to tokens, against what these are called."""
    names, roles = special_names(tokenizer), {}
    for role, name in names.items():
        said = found.tokenizer_values.get(f"{role}_token", name)
        said = said.get("content", name) if isinstance(said, Mapping) else said
        if not isinstance(said, str) or tokenizer.token_to_id(said) is None:
            found.error(f"{_TOKENIZER_CONFIG}: {role}_token={said!r}, which {_TOKENIZER} does not have")
        else:
            roles[role] = said
    by_token: dict[str, list[str]] = {}
    for role, said in roles.items():
        by_token.setdefault(said, []).append(role)
    for said, sharing in by_token.items():
        if len(sharing) > 1:
            # As one published conversion had it: the mask's id given as the padding's, and both lost.
            (found.error if {"pad", "mask"} & set(sharing) else found.warn)(
                f"{' and '.join(sharing)} are the same token, {said}"
            )


def _look_at_spaces(found: Contents, tokenizer: Tokenizer) -> None:
    """The mask takes the space before it; no other special token does."""
    special = special_ids(tokenizer)
    beside = found.tokenizer_values.get("added_tokens_decoder")
    takes_space = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.lstrip}
    if isinstance(beside, Mapping):  # transformers lets this win over tokenizer.json
        if odd := [key for key in beside if not key.isdecimal()]:
            found.error(f"{_TOKENIZER_CONFIG}: added_tokens_decoder has the key {odd[0]!r}, which is no id")
            return
        takes_space = {int(i) for i, token in beside.items() if isinstance(token, Mapping) and token.get("lstrip")}
    if special.pad in takes_space:
        found.error(
            f"{tokenizer.id_to_token(special.pad)} has lstrip, as if it were the mask: a conversion took one for the other"
        )
    if special.mask not in takes_space:
        found.warn(
            f"{tokenizer.id_to_token(special.mask)} has no lstrip, so answers to a mask after a space begin with another one"
        )


def compare_lengths(found: Contents, config: ModernBertConfig) -> None:
    """Where readers cut texts, against the model's positions."""
    positions = config.max_position_embeddings
    longest = found.tokenizer_values.get("model_max_length")
    if isinstance(longest, int | float) and longest > positions:
        limit = "no limit" if longest > 2**31 else f"{longest:,} tokens"
        found.warn(f"{_TOKENIZER_CONFIG}: model_max_length is {limit}, and the model has {positions:,} positions")
    elif isinstance(longest, int | float) and longest < positions:
        found.warn(
            f"{_TOKENIZER_CONFIG}: texts are cut at {longest:,} tokens, and the model has {positions:,} positions"
        )
    path = found.folder / _SENTENCES
    if path.exists():
        try:
            cut = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
        except (OSError, ValueError, AttributeError) as error:
            found.error(f"{_SENTENCES} cannot be read ({error})")
            return
        if isinstance(cut, int) and cut < positions:
            found.warn(f"{_SENTENCES}: texts are cut at {cut:,} tokens, and the model has {positions:,} positions")
