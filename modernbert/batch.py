"""The words that every stage shares: `Document`, `Feature` and `PackedBatch`.

Shape letters, here and everywhere: T tokens in the batch, N heads, H head size, D hidden width,
B documents, V vocabulary, M masked positions, I intermediate width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""The label of a position where no loss is taken (PyTorch's and transformers' convention)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text as it was read, with where it came from."""

    text: str
    source: str  # the file
    position: int  # its place in that file, from 0
    score: float | None = None  # how good the source says it is


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """B documents laid end to end without padding: T tokens in all.

    Example: documents of 3 and 2 tokens give positions 0 1 2 0 1, cu_seqlens 0 3 5, max_seqlen 3.
    """

    input_ids_T: Tensor  # int64
    positions_T: Tensor  # int64, restarts at 0 with each document
    cu_seqlens: Tensor  # int32, B + 1 entries: first 0, last T
    max_seqlen: int
    labels_T: Tensor | None = None  # int64, IGNORE where no loss is taken
    targets_B: Tensor | None = None  # a row for each document: a class, a number, several of either, or a span
    task: str = ""  # whose targets these are, where one encoder has several heads

    @classmethod
    def from_sequences(
        cls,
        sequences: Iterable[Sequence[int] | Tensor],
        labels: Iterable[Sequence[int] | Tensor] | None = None,
    ) -> PackedBatch:
        """Lay sequences of token ids end to end.

        Args:
            sequences: one list or one-dimensional tensor of token ids per document, special tokens included.
            labels: for each document as many labels as tokens, `IGNORE` where no loss is taken.

        Raises:
            ValueError: no document, an empty document, or labels that do not fit.
        """
        rows = [torch.as_tensor(ids, dtype=torch.int64) for ids in sequences]
        lengths = [row.numel() for row in rows]
        if not rows or min(lengths) == 0:
            raise ValueError(f"a batch needs at least one document and no empty ones; lengths are {lengths}")
        if any(row.dim() != 1 for row in rows):
            raise ValueError("each document must be one-dimensional")
        labels_T = None
        if labels is not None:
            label_rows = [torch.as_tensor(row, dtype=torch.int64) for row in labels]
            if [row.numel() for row in label_rows] != lengths:
                raise ValueError(f"{[row.numel() for row in label_rows]} labels for documents of {lengths} tokens")
            labels_T = torch.cat(label_rows)
        device = rows[0].device
        return cls(
            input_ids_T=torch.cat(rows),
            positions_T=torch.cat([torch.arange(length, device=device) for length in lengths]),
            cu_seqlens=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device),
            max_seqlen=max(lengths),
            labels_T=labels_T,
        )

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids_T.numel()

    @property
    def num_documents(self) -> int:
        """B."""
        return self.cu_seqlens.numel() - 1

    @property
    def num_targets(self) -> int:
        """How many losses are taken: at tokens, or of documents. 0 of a batch without any."""
        if self.labels_T is not None:
            return int((self.labels_T != IGNORE).sum())
        return 0 if self.targets_B is None else len(self.targets_B)

    def lengths(self) -> list[int]:
        """Tokens of each document, in order. Reads `cu_seqlens` on the host."""
        return self.cu_seqlens.diff().tolist()

    def in_parts(self, max_tokens: int) -> Iterator[tuple[Tensor, PackedBatch]]:
        """Smaller batches of documents of like length, each with the places (T of the part) of its tokens in this one.

        Shortest documents first; a part holds at most `max_tokens` unless one document alone is longer.
        """
        lengths = self.lengths()
        starts = [0, *itertools.accumulate(lengths)]
        parts: list[list[int]] = [[]]
        filled = 0
        for document in sorted(range(len(lengths)), key=lengths.__getitem__):
            if parts[-1] and filled + lengths[document] > max_tokens:
                parts.append([])
                filled = 0
            parts[-1].append(document)
            filled += lengths[document]
        for part in parts:
            index = torch.cat([torch.arange(starts[d], starts[d + 1], device=self.input_ids_T.device) for d in part])
            sizes = [lengths[d] for d in part]
            yield (
                index,
                PackedBatch(
                    input_ids_T=self.input_ids_T[index],
                    positions_T=self.positions_T[index],
                    cu_seqlens=self.cu_seqlens.new_tensor([0, *itertools.accumulate(sizes)]),
                    max_seqlen=max(sizes),
                    labels_T=None if self.labels_T is None else self.labels_T[index],
                    targets_B=None if self.targets_B is None else self.targets_B[part],
                    task=self.task,
                ),
            )

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        return replace(
            self,
            input_ids_T=self.input_ids_T.to(device, non_blocking=True),
            positions_T=self.positions_T.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            labels_T=None if self.labels_T is None else self.labels_T.to(device, non_blocking=True),
            targets_B=None if self.targets_B is None else self.targets_B.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One sequence of token ids for a model, special tokens included, with what is to be learnt from it."""

    ids_T: np.ndarray  # int32
    labels_T: np.ndarray | None = None  # int64, one for each token, IGNORE where no loss is taken
    target: Any = None  # of the whole sequence: an int, a float, or an array of either
    example: int = 0  # which example it was made of


def pack_features(features: Sequence[Feature], task: str = "") -> PackedBatch:
    """Lay features end to end; all of them have targets of the same kind."""
    has_labels, has_targets = features[0].labels_T is not None, features[0].target is not None
    batch = PackedBatch.from_sequences(
        [torch.from_numpy(feature.ids_T) for feature in features],
        [torch.from_numpy(feature.labels_T) for feature in features] if has_labels else None,
    )
    targets = torch.as_tensor(np.stack([feature.target for feature in features])) if has_targets else None
    return replace(batch, targets_B=targets, task=task)


def within(features: Sequence[Feature], max_tokens: int) -> Iterator[list[Feature]]:
    """Cut features, in their order, into parts within a token budget; a longer one is alone."""
    part: list[Feature] = []
    filled = 0
    for feature in features:
        if part and filled + len(feature.ids_T) > max_tokens:
            yield part
            part, filled = [], 0
        part.append(feature)
        filled += len(feature.ids_T)
    if part:
        yield part


def idle_batch() -> PackedBatch:
    """A batch without a target, for a rank that has none left in a pass in which all of them take part."""
    ids_T = torch.zeros(2, dtype=torch.int64)
    return PackedBatch.from_sequences([ids_T], [torch.full_like(ids_T, IGNORE)])
