"""A checkpoint's tokenizer with the methods that code for BERT calls. Without transformers.

    text | texts | pairs | words → `tokenizers` (cut, pad) → BatchEncoding

Ids, masks and offsets are those of `transformers.AutoTokenizer` on the same folder. As ModernBERT's own, it gives no
token_type_ids. Price: 0.1 s to open one of 50,000 entries; cutting and padding are done in Rust.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import BPE

from modernbert.disk import write_whole
from modernbert.dropin.bert_config import refuse_unknown
from modernbert.dropin.bert_encoding import BatchEncoding, as_lists, filled_up
from modernbert.errors import ConfigError, DataError, UnsupportedError
from modernbert.model import hub
from modernbert.tasks.load import newest_checkpoint
from modernbert.text.tokenizer import ROLES, load_tokenizer, num_ids, save_tokenizer, special_names

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
Truncation = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"] | None
Side = Literal["left", "right"]

NO_LIMIT = int(1e30)
"""`model_max_length` of a tokenizer that says none, as transformers writes it."""
_LARGEST_LIMIT = int(1e20)
_PADDINGS: Mapping[Any, str | None] = {
    True: "longest", False: None, "longest": "longest", "max_length": "max_length", "do_not_pad": None
}  # fmt: skip
_TRUNCATIONS: Mapping[Any, str | None] = {
    True: "longest_first", False: None, None: None, "longest_first": "longest_first", "only_first": "only_first",
    "only_second": "only_second", "do_not_truncate": None,
}  # fmt: skip
_CONFIG = "tokenizer_config.json"


class ModernBERTTokenizer:
    """Texts ↔ token ids.

    Args:
        tokenizer: of the `tokenizers` library.
        model_max_length: tokens of an input, special ones included; `truncation=True` cuts there unless told otherwise.
        padding_side: where padding goes.
        truncation_side: where tokens are cut off.
        names: role ("cls", "sep", "pad", "mask", "unk") → token, where these are not the usual spellings.
    """

    model_input_names = ("input_ids", "attention_mask")
    is_fast = True
    pad_token_type_id = 0

    def __init__(
        self, tokenizer: Tokenizer, *, model_max_length: int = NO_LIMIT, padding_side: Side = "right",
        truncation_side: Side = "right", names: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("left", "right"):
                raise ConfigError(f"{name}={side!r}; give 'left' or 'right'")
        self.backend_tokenizer = tokenizer
        self.model_max_length, self.padding_side, self.truncation_side = model_max_length, padding_side, truncation_side
        self.name_or_path = ""
        given = dict(names or {})
        self._names = given if given.keys() >= set(ROLES) else {**special_names(tokenizer), **given}

    @classmethod
    def from_pretrained(cls, folder_or_hub_name: str | Path, **changes: Any) -> Self:
        """Open the tokenizer of a checkpoint.

        Args:
            folder_or_hub_name: a folder with a tokenizer.json, a run folder (its newest checkpoint), or a hub name.
            changes: `model_max_length`, `padding_side`, `truncation_side`, in place of what the folder says.

        Raises:
            CheckpointError: no such folder or hub name.
            DataError: no tokenizer that can be read, or one without the five special tokens.
            ConfigError: another argument.
        """
        known = {"model_max_length", "padding_side", "truncation_side"}
        without_effect = {"use_fast", "trust_remote_code"}
        refuse_unknown("from_pretrained", changes.keys() - without_effect, known)
        folder = newest_checkpoint(hub.find_folder(folder_or_hub_name))
        tokenizer, stored = load_tokenizer(folder), _stored(folder)
        said = {role: stored.get(f"{role}_token") for role in ROLES}
        names = {role: name["content"] if isinstance(name, dict) else name for role, name in said.items() if name}
        kept = {name: stored[name] for name in known if stored.get(name) is not None}
        kept |= {name: changes[name] for name in known if name in changes}
        found = cls(tokenizer, names=names, **kept)
        found.name_or_path = str(folder_or_hub_name)
        return found

    def save_pretrained(self, folder: str | Path, **others: Any) -> tuple[str, ...]:
        """Write tokenizer.json and tokenizer_config.json, with which transformers gives the same ids.

        Args:
            folder: where to; made if need be.
            others: `legacy_format` and `is_main_process` change nothing: there is one format.

        Raises:
            ConfigError: another argument.
        """
        refuse_unknown("save_pretrained", others, ("legacy_format", "is_main_process"))
        folder = Path(folder)
        save_tokenizer(self.backend_tokenizer, folder, model_max_length=self.model_max_length)
        values = _stored(folder) | {f"{role}_token": name for role, name in self._names.items()}
        values |= {"padding_side": self.padding_side, "truncation_side": self.truncation_side}
        write_whole(folder / _CONFIG, json.dumps(values, indent=2) + "\n")
        return str(folder / _CONFIG), str(folder / "tokenizer.json")

    def __call__(
        self, text: Any, text_pair: Any = None, *, add_special_tokens: bool = True, padding: Padding = False,
        truncation: Truncation = None, max_length: int | None = None, stride: int = 0, is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None, padding_side: Side | None = None, return_tensors: str | None = None,
        return_token_type_ids: bool | None = None, return_attention_mask: bool = True,
        return_overflowing_tokens: bool = False, return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False, return_length: bool = False, verbose: bool = True,  # noqa: ARG002
    ) -> BatchEncoding:  # fmt: skip
        """Tokenise one text, or a list of them.

        Args:
            text: a text or a list of texts; with `is_split_into_words` the words of one, or a list of such lists.
            text_pair: the second text of each pair, likewise.
            add_special_tokens: put [CLS] and [SEP] where the model expects them.
            padding: False, True ("longest": of the batch), or "max_length".
            truncation: True ("longest_first"), "only_first", "only_second", or False. Unsaid it is False, and True where
                `max_length` is said and nothing is padded.
            max_length: of a row, special tokens included; `model_max_length` where it is needed and not said.
            stride: tokens that neighbouring rows of a cut text share.
            is_split_into_words: texts are lists of words.
            pad_to_multiple_of: rows are padded further, to such a length.
            padding_side: in place of the tokenizer's.
            return_tensors: "pt", "np", or None for lists; one text gives one list, and a tensor of one row.
            return_token_type_ids: True is refused: the model has none.
            return_attention_mask: 1 at tokens, 0 at padding.
            return_overflowing_tokens: what was cut off follows in rows of its own, `overflow_to_sample_mapping` says whose.
            return_special_tokens_mask: 1 at special tokens and padding.
            return_offsets_mapping: the characters of each token, (first, behind the last).
            return_length: of each row, padding counted.
            verbose: without effect.

        Raises:
            DataError: texts that are none, pairs that do not match, or rows of different lengths to make a tensor of.
            ConfigError: a choice that does not exist, or lengths that cannot be.
        """
        if return_token_type_ids:
            raise UnsupportedError("return_token_type_ids=True: ModernBERT has no token types; leave it out")
        inputs, is_batch = _inputs(text, text_pair, words=is_split_into_words)
        cut, filled, limit = self._lengths(padding, truncation, max_length, pad_to_multiple_of)
        encodings = self._encode(
            inputs, cut=cut, stride=stride, filled=filled, limit=limit, side=padding_side or self.padding_side,
            multiple=pad_to_multiple_of, special=add_special_tokens, words=is_split_into_words,
        )  # fmt: skip
        rows = [[first, *(first.overflowing if return_overflowing_tokens else [])] for first in encodings]
        flat = [encoding for of_text in rows for encoding in of_text]
        wanted = {
            "input_ids": True, "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask, "offset_mapping": return_offsets_mapping,
        }  # fmt: skip
        fields = {"input_ids": "ids", "offset_mapping": "offsets"}
        columns: dict[str, Any] = {
            name: [getattr(encoding, fields.get(name, name)) for encoding in flat] for name in wanted if wanted[name]
        }
        if return_length:
            columns["length"] = [len(encoding.ids) for encoding in flat]
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = [i for i, of_text in enumerate(rows) for _ in of_text]
        if not is_batch and return_tensors is None and not return_overflowing_tokens:
            columns = {name: column[0] if isinstance(column[0], list) else column for name, column in columns.items()}
        return BatchEncoding(columns, flat).convert_to_tensors(return_tensors)

    encode_plus = batch_encode_plus = __call__  # as older code has it, for one text and for several

    def pad(
        self, encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, padding: Padding = True,
        max_length: int | None = None, pad_to_multiple_of: int | None = None, padding_side: Side | None = None,
        return_attention_mask: bool | None = None, return_tensors: str | None = None,
    ) -> BatchEncoding:  # fmt: skip
        """Pad what was tokenised before, as data collators do: `input_ids`, masks, `offset_mapping`, lists of `labels`.

        Args:
            encoded: a dict of lists of rows, or a list of dicts with one row each. Other columns stay as they are.
            padding: True ("longest"), "max_length" or False.
            max_length: for "max_length"; `model_max_length` if not given.
            pad_to_multiple_of: rows are padded further, to such a length.
            padding_side: in place of the tokenizer's.
            return_attention_mask: False leaves the mask out; otherwise it is made where there is none.
            return_tensors: "pt", "np", or None for lists.
        """
        if not isinstance(encoded, Mapping):
            encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
        columns = {name: as_lists(column) for name, column in encoded.items()}
        if "input_ids" not in columns:
            raise DataError(f"nothing to pad: no input_ids among {', '.join(columns) or 'no columns'}")
        ids = columns["input_ids"]
        alone = bool(ids) and not isinstance(ids[0], list)
        if alone:
            columns = {name: [column] for name, column in columns.items()}
        if return_attention_mask is False:
            columns.pop("attention_mask", None)
        else:
            columns.setdefault("attention_mask", [[1] * len(row) for row in columns["input_ids"]])
        _, filled, limit = self._lengths(padding, False, max_length, pad_to_multiple_of)
        longest = max(map(len, columns["input_ids"]), default=0)
        width = {None: 0, "longest": longest, "max_length": limit or 0}[filled]
        if filled and pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        columns = filled_up(columns, width, self.pad_token_id, padding_side or self.padding_side)
        if alone and return_tensors is None:  # one row stays one row, unless it becomes a tensor
            columns = {name: column[0] for name, column in columns.items()}
        return BatchEncoding(columns).convert_to_tensors(return_tensors)

    def encode(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        """The ids of one text: a list, or a tensor of one row; arguments are `__call__`'s."""
        return self(text, text_pair, **kwargs)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of one text, as the vocabulary spells them."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:  # fmt: skip
        """The text of some ids; of a list of such lists all their texts.

        Args:
            token_ids: a list, tensor or array.
            skip_special_tokens: leave out [CLS] and the like.
            clean_up_tokenization_spaces: without effect on a BPE, as in transformers: its spaces are the text's own.

        Raises:
            UnsupportedError: spaces to be cleaned up of another kind of tokenizer.
        """
        if clean_up_tokenization_spaces and not isinstance(self.backend_tokenizer.model, BPE):
            raise UnsupportedError("clean_up_tokenization_spaces=True: spaces stay where they are; leave it out")
        ids = as_lists(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        return self.backend_tokenizer.decode([ids] if isinstance(ids, int) else ids, skip_special_tokens)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:  # fmt: skip
        """The text of each row of ids; arguments are those of `decode`."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Ids → tokens; of one id its token. An id without a token is None."""
        ids = as_lists(ids)
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend_tokenizer.id_to_token(number) for number in ids if number not in special]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Tokens → ids; of one token its id. A token that is not in the vocabulary is `unk_token_id`."""
        if isinstance(tokens, str):
            found = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Tokens, as the vocabulary spells them → text."""
        decoder = self.backend_tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def get_special_tokens_mask(
        self, token_ids_0: Any, token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 at special tokens, 0 elsewhere, of ids that have theirs already."""
        if not already_has_special_tokens or token_ids_1 is not None:
            raise UnsupportedError(
                "get_special_tokens_mask reads ids with special tokens; say already_has_special_tokens"
            )
        special = set(self.all_special_ids)
        return [int(number in special) for number in as_lists(token_ids_0)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text, or a pair, gets."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add entries; returns how many were new. The model needs rows for them: `resize_token_embeddings(len(tokenizer))`."""
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        add = self.backend_tokenizer.add_special_tokens if special_tokens else self.backend_tokenizer.add_tokens
        return add(tokens)

    def get_vocab(self) -> dict[str, int]:
        """Token → id, added ones included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Entries without added tokens; `len(tokenizer)` is the number with them."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return num_ids(self.backend_tokenizer)

    def __bool__(self) -> bool:
        return True

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """`cls_token` and the like → token."""
        return {f"{role}_token": name for role, name in self._names.items()}

    @property
    def all_special_tokens(self) -> list[str]:
        """The five tokens that mean something to a model."""
        return list(self._names.values())

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return [self.convert_tokens_to_ids(name) for name in self._names.values()]

    def __getattr__(self, name: str) -> Any:
        """`cls_token`, `cls_token_id`, and so on for sep, pad, mask and unk; bos and eos are None, as ModernBERT's are."""
        role, _, rest = name.partition("_token")
        if rest in ("", "_id") and role in (*ROLES, "bos", "eos") and name != role:
            token = self.__dict__.get("_names", {}).get(role)
            return token if not rest or token is None else self.backend_tokenizer.token_to_id(token)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _lengths(
        self, padding: Padding, truncation: Truncation, max_length: int | None, multiple: int | None
    ) -> tuple[str | None, str | None, int | None]:
        """How to cut, how to pad, and the length of both."""
        if truncation is None and max_length is not None and padding is False:
            truncation = True
        for name, value, choices in (("padding", padding, _PADDINGS), ("truncation", truncation, _TRUNCATIONS)):
            if value not in choices:
                raise ConfigError(f"{name}={value!r}; give one of {', '.join(map(str, choices))}")
        cut, filled = _TRUNCATIONS[truncation], _PADDINGS[padding]
        if max_length is None and self.model_max_length <= _LARGEST_LIMIT:
            max_length = self.model_max_length
        elif max_length is None:  # nowhere to cut, nothing to fill
            cut, filled = None, None if filled == "max_length" else filled
        if cut and filled and multiple and max_length and max_length % multiple:
            raise ConfigError(f"max_length={max_length} is no multiple of pad_to_multiple_of={multiple}")
        return cut, filled, max_length

    def _encode(
        self, inputs: list[Any], *, cut: str | None, stride: int, filled: str | None, limit: int | None, side: str,
        multiple: int | None, special: bool, words: bool,
    ) -> list[Encoding]:  # fmt: skip
        tokenizer = self.backend_tokenizer
        try:
            if cut and limit is not None:
                pair = isinstance(inputs[0], tuple)
                room = limit - (self.num_special_tokens_to_add(pair) if special else 0)
                if stride and stride >= room:
                    raise ConfigError(f"stride={stride} must be below the {room} tokens of text that a row has")
                tokenizer.enable_truncation(limit, stride=stride, strategy=cut, direction=self.truncation_side)
            if filled:
                tokenizer.enable_padding(
                    length=limit if filled == "max_length" else None, direction=side, pad_id=self.pad_token_id,
                    pad_token=self.pad_token, pad_to_multiple_of=multiple,
                )  # fmt: skip
            return tokenizer.encode_batch(inputs, add_special_tokens=special, is_pretokenized=words)
        except ConfigError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(f"these texts cannot be tokenised so: {str(error).splitlines()[0]}") from error
        finally:
            tokenizer.no_truncation()
            tokenizer.no_padding()


def _stored(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; nothing where there is none."""
    path = folder / _CONFIG
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); restore it from a good copy") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}, not an object; restore it from a good copy")
    return values


def _inputs(text: Any, pair: Any, *, words: bool) -> tuple[list[Any], bool]:
    """What `encode_batch` takes, and whether it was a batch."""
    is_batch = isinstance(text, list | tuple) and not (words and (not text or isinstance(text[0], str)))
    if is_batch and pair is not None and (isinstance(pair, str) or len(pair) != len(text)):
        found = "one text" if isinstance(pair, str) else f"{len(pair)} second texts"
        raise DataError(f"{len(text)} texts and {found}; give as many second texts as first ones")
    if is_batch:
        inputs = list(text) if pair is None else list(zip(text, pair, strict=True))
    else:
        inputs = [(text, pair) if pair else text]  # an empty second text is none, as in transformers
    if not inputs:
        raise DataError("no texts in the list; give at least one")
    for number, item in enumerate(inputs, start=1):
        parts = item if isinstance(item, tuple) else (item,)
        if not all(_is_words(part) if words else isinstance(part, str) for part in parts):
            wanted = "a list of words (is_split_into_words)" if words else "a text"
            raise DataError(f"item {number} is {item!r:.60}; give {wanted}, or two of them as a pair")
    return inputs, is_batch


def _is_words(part: Any) -> bool:
    return isinstance(part, list | tuple) and all(isinstance(word, str) for word in part)
