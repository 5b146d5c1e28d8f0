"""Tokenised texts as code for BERT knows them: a dict of lists or tensors that also answers by attribute.

    encodings (of `tokenizers`) → columns (input_ids, attention_mask, …) → lists, tensors or arrays

Also the way back from tokens to words and characters, which tagging and question answering need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from modernbert.batch import IGNORE
from modernbert.errors import ConfigError, DataError

_AT_PADDING = {"attention_mask": 0, "special_tokens_mask": 1, "labels": IGNORE, "offset_mapping": (0, 0)}


class CharSpan(NamedTuple):
    """Characters of a text: the first, and the one behind the last."""

    start: int
    end: int


class BatchEncoding(dict):
    """Columns by name; `batch.input_ids` is `batch["input_ids"]`, `batch[0]` the first text's `tokenizers.Encoding`."""

    def __init__(self, columns: Mapping[str, Any] | None = None, encodings: Sequence[Encoding] | None = None) -> None:
        super().__init__(columns or {})
        self.__dict__["encodings"] = None if encodings is None else list(encodings)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"a BatchEncoding of {', '.join(self) or 'nothing'} has no {name}")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        if isinstance(key, slice):
            return {name: column[key] for name, column in self.items()}
        return self._encodings_known()[key]

    @property
    def data(self) -> dict[str, Any]:
        """The columns as a plain dict."""
        return dict(self)

    @property
    def is_fast(self) -> bool:
        """Whether words and characters are known: of what a tokenizer gave, not of what was padded together later."""
        return self.__dict__["encodings"] is not None

    def to(self, device: str | torch.device | int, non_blocking: bool = False) -> Self:
        """Move tensors to a device, in place; anything else stays."""
        for name, column in self.items():
            if isinstance(column, torch.Tensor):
                self[name] = column.to(device, non_blocking=non_blocking)
        return self

    def convert_to_tensors(self, tensor_type: str | None) -> Self:
        """Make tensors ("pt") or arrays ("np") of the columns, in place; plain fractions are float32 in a tensor.

        Raises:
            DataError: rows of different lengths, or a column of text, of which there is no tensor.
            ConfigError: another kind of tensor.
        """
        if tensor_type is None:
            return self
        if tensor_type not in ("pt", "np"):
            raise ConfigError(f"return_tensors={tensor_type!r}; give 'pt' or 'np'")
        for name, column in self.items():
            self[name] = _tensor(name, column) if tensor_type == "pt" else _array(name, column)
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """A text's tokens, as the vocabulary spells them."""
        return self._encodings_known()[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the number of its word; None for special tokens."""
        return self._encodings_known()[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token whether it is of the first text of a pair (0) or of the second (1); None for special tokens."""
        return self._encodings_known()[batch_index].sequence_ids

    def char_to_token(self, batch_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The token that holds a character; None for white space that no token holds."""
        row, place = _row_and_place(batch_or_char, char)
        return self._encodings_known()[row].char_to_token(place, sequence_index)

    def token_to_chars(self, batch_or_token: int, token: int | None = None) -> CharSpan | None:
        """The characters of a token; None for special tokens."""
        row, place = _row_and_place(batch_or_token, token)
        found = self._encodings_known()[row].token_to_chars(place)
        return None if found is None else CharSpan(*found)

    def token_to_word(self, batch_or_token: int, token: int | None = None) -> int | None:
        """The number of the word that a token is of."""
        row, place = _row_and_place(batch_or_token, token)
        return self.word_ids(row)[place]

    def _encodings_known(self) -> list[Encoding]:
        encodings = self.__dict__["encodings"]
        if encodings is None:
            raise DataError(
                "words and characters are known of what a tokenizer gave only, not of what was padded since"
            )
        return encodings

    def __reduce__(self) -> Any:  # the default sets items before the object has attributes
        return type(self), (dict(self), self.__dict__["encodings"])


def _array(name: str, column: Any) -> np.ndarray:
    try:
        array = np.asarray(column)
        return (
            array if array.size or _has_dtype(column) else array.astype(np.int64)
        )  # rows without a token, not fractions
    except ValueError as error:
        lengths = sorted({len(row) if isinstance(row, Sequence | np.ndarray) else 1 for row in column})
        raise DataError(
            f"{name}: rows of {lengths[0]} to {lengths[-1]} tokens make no tensor; give padding=True, or "
            "truncation=True and padding='max_length'"
        ) from error


def _tensor(name: str, column: Any) -> Tensor:
    if isinstance(column, Tensor):
        return column
    array = _array(name, column)
    if array.dtype.kind not in "biuf":
        first = next(iter(array.flat))
        raise DataError(f"{name} holds {first!r:.40}, of which there is no tensor; leave that column out")
    if array.dtype == np.float64 and not _has_dtype(column):
        array = array.astype(np.float32)  # as `torch.tensor` reads Python's numbers
    return torch.from_numpy(array)


def _has_dtype(column: Any) -> bool:
    """Whether someone chose what its numbers are: an array, or a list of them."""
    return hasattr(column, "dtype") or (
        isinstance(column, Sequence) and len(column) > 0 and hasattr(column[0], "dtype")
    )


def _row_and_place(first: int, second: int | None) -> tuple[int, int]:
    """One number is a place in the first text; of two the former says which text."""
    return (0, first) if second is None else (first, second)


def as_lists(column: Any) -> Any:
    """Tensors and arrays, or a list of them, as plain lists; anything else as it is."""
    if isinstance(column, torch.Tensor | np.ndarray | np.generic):
        return column.tolist()
    if isinstance(column, list | tuple) and column and isinstance(column[0], torch.Tensor | np.ndarray | np.generic):
        return [part.tolist() for part in column]
    return column


def filled_up(columns: Mapping[str, Any], width: int, pad_id: int, side: str) -> dict[str, Any]:
    """Rows of ids, masks, offsets and lists of labels, at least so long; other columns as they are."""
    found = dict(columns)
    for name, fill in {**_AT_PADDING, "input_ids": pad_id}.items():
        rows = found.get(name)
        if rows and isinstance(rows[0], list | tuple):
            padding = [[fill] * (width - len(row)) for row in rows]
            pairs = zip(rows, padding, strict=True)
            found[name] = [[*row, *more] if side == "right" else [*more, *row] for row, more in pairs]
    return found
