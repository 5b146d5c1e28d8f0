"""A folder, file or hub name -> a tokenizer, its special ids and its fingerprint; a tokenizer -> a folder.

Everything about a tokenizer is read from the tokenizer: no id is typed anywhere in this package.
Price: a 50,000-entry tokenizer loads in about 0.1 s.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from modernbert.disk import write_whole
from modernbert.errors import DataError
from modernbert.text.shards import local_folder

ROLES = ("cls", "sep", "pad", "mask", "unk")
_STYLES = (
    ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"),
    ("<s>", "</s>", "<pad>", "<mask>", "<unk>"),
    ("<bos>", "<eos>", "<pad>", "<mask>", "<unk>"),
)
_SPARE = re.compile(r"\[unused\d+\]|<unused\d+>")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialIds:
    """The ids that mean something to a model, rather than to a text."""

    cls: int
    sep: int
    pad: int
    mask: int
    unk: int
    never_masked_or_drawn: frozenset[int]
    """Ids that masking neither hides nor draws as random tokens: special, spare [unusedN], holes."""


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Open a tokenizer, without the truncation and padding that its file may hold (as `transformers` does).

    Args:
        source: a folder with a tokenizer.json, such a file itself, the address of shards, or a name on the hub.

    Raises:
        DataError: missing, not reachable, or not a tokenizer.json that this version of `tokenizers` reads.
    """
    path = local_folder(source)
    if path.is_dir():
        path = path / "tokenizer.json"
        if not path.is_file():
            raise DataError(f"{path}: no such file; train one with `modernbert tokenizer train`")
    elif not path.exists():
        path = _fetch(str(source))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path} is no tokenizer that can be read ({error}); save or fetch it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _fetch(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"{name}: no such file or folder, and no name for the Hugging Face hub; check the path")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # network libraries raise errors of their own, which differ by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name}: no such folder here, and no tokenizer.json under that name on the hub ({reason}); check"
            " the path, or fetch the tokenizer where there is a network and give its folder"
        ) from error


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Find the special ids by the usual spellings: [CLS] as BERT, <s> as RoBERTa, <bos> as Gemma.

    Raises:
        DataError: one of the five is missing; the message names it.
    """
    names = special_names(tokenizer)
    decoder = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {token_id for token_id, token in decoder.items() if token.special}
    spare = {token_id for token, token_id in vocabulary.items() if _SPARE.fullmatch(token)}
    holes = set(range(num_ids(tokenizer))).difference(vocabulary.values())
    ids = {role: vocabulary[name] for role, name in names.items()}
    return SpecialIds(**ids, never_masked_or_drawn=frozenset(special | spare | holes | set(ids.values())))


def special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Role ("cls", "sep", "pad", "mask", "unk") -> the token's spelling in this tokenizer.

    Raises:
        DataError: one of them is missing.
    """
    missing_by_style = [[name for name in style if tokenizer.token_to_id(name) is None] for style in _STYLES]
    missing, style = min(zip(missing_by_style, _STYLES, strict=True), key=lambda pair: len(pair[0]))
    if missing:
        raise DataError(
            f"the tokenizer has no {' and no '.join(missing)}, which masked training needs; "
            "add them with add_special_tokens, or train a tokenizer with `modernbert tokenizer train`"
        )
    return dict(zip(ROLES, style, strict=True))


def num_ids(tokenizer: Tokenizer) -> int:
    """Return the largest id plus one, which an embedding needs; where ids have holes, entries are fewer."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def adds_prefix_space(tokenizer: Tokenizer) -> bool:
    """Whether a word at the start of a text gets the same ids as after a space; found out by trying."""
    at_start, after_space = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", " a"))
    return at_start == after_space


def for_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer so that it neither cuts nor pads, and takes "[MASK]" spelled out in a text for text."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    return plain


def kept_copy(tokenizer: Tokenizer, *, max_length: int | None = None) -> Tokenizer:
    """Copy a tokenizer so that it does not pad, and cuts where it is told, whatever its file says; its own settings stay.

    The copy is kept for the next call, for making it takes up to 50 ms: longer than a query, or the passages of a short text.
    It is made anew where something of the tokenizer has changed since, but for its model (vocabulary, merges, dropout), of which
    only the number of entries is looked at.

    Args:
        tokenizer: stays as it is.
        max_length: in tokens, special ones included; None cuts nowhere.
    """
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.post_processor, tokenizer.encode_special_tokens)
    added = sorted((number, repr(token)) for number, token in tokenizer.get_added_tokens_decoder().items())
    state = pickle.dumps((parts, added, tokenizer.get_vocab_size(with_added_tokens=True)))
    return _copied(tokenizer, max_length, state)


@functools.lru_cache(maxsize=8)
def _copied(tokenizer: Tokenizer, max_length: int | None, _state: bytes) -> Tokenizer:
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.encode_special_tokens = tokenizer.encode_special_tokens  # not part of the string
    copied.no_padding()
    if max_length is None:
        copied.no_truncation()
    else:
        copied.enable_truncation(max_length)
    return copied


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the tokenizer's canonical JSON, less truncation and padding."""
    state = json.loads(tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    canonical = json.dumps(state, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, *, model_max_length: int) -> None:
    """Write tokenizer.json and a tokenizer_config.json with which `transformers` gives the same ids.

    Args:
        tokenizer: must have the five special tokens.
        folder: made where missing.
        model_max_length: in tokens, special ones included; `transformers` truncates there on request.

    Raises:
        DataError: a special token is missing, or the folder cannot be written.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        # transformers 4 resets a ByteLevel pre-tokenizer to this value, False where it is absent.
        "add_prefix_space": adds_prefix_space(tokenizer),
        **{f"{role}_token": name for role, name in special_names(tokenizer).items()},
    }
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(Path(folder, "tokenizer_config.json"), json.dumps(config, indent=2) + "\n")
        write_whole(Path(folder, "tokenizer.json"), tokenizer.to_str(pretty=True))
    except OSError as error:
        raise DataError(f"{folder}: the tokenizer cannot be written ({error.strerror or error})") from error
