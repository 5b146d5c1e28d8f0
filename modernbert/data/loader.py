"""Shards → `(PackedBatch, LoaderState)`, endlessly or once: the chain order → pack → read → mask.

What to read is planned in this process (index arithmetic, some 0.7 ms for 8,192 tokens); worker processes, if any,
only read and mask. So order and masks are the same for any number of workers, and a state is the numbers of the
pieces that wait to be packed (some hundreds), whatever has been consumed before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from modernbert.batch import PackedBatch
from modernbert.data.mask import Masker
from modernbert.data.order import piece_at
from modernbert.data.pack import NUM_SPECIALS, PackState, Pieces, pack
from modernbert.errors import DataError
from modernbert.text.shards import Shards, Split
from modernbert.text.tokenizer import load_tokenizer, special_ids


@dataclass(frozen=True, slots=True)
class LoaderState:
    """Where the stream stands behind a batch."""

    pack: PackState = field(default_factory=PackState)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoaderState:
        """The way back from `to_dict`."""
        pack_values = values["pack"]
        return cls(PackState(pack_values["next_position"], tuple(pack_values["pending"])))


class MlmBatches(Dataset):
    """Masked, packed batches of one split of a shard folder.

    Args:
        folder: shards with their tokenizer.
        split: `train` or `heldout`.
        sequence_length: longest sequence, [CLS] and [SEP] included.
        micro_batch_tokens: tokens of a batch at most.
        mask_rate: share of ordinary tokens to predict.
        seed: of order and masks.

    Raises:
        DataError: the split holds no document.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: Split = "train",
        sequence_length: int,
        micro_batch_tokens: int,
        mask_rate: float,
        seed: int,
    ) -> None:
        self.shards = Shards.open(folder, split=split)
        if not self.shards.num_documents:
            raise DataError(f"{folder}: the {split} split holds no document; build with more text")
        self.special = special_ids(load_tokenizer(folder))
        self.pieces = Pieces(self.shards.lengths, sequence_length)
        self.sequence_length, self.micro_batch_tokens = sequence_length, micro_batch_tokens
        self.seed = seed
        self._mask = Masker(self.special, self.shards.vocab_size, mask_rate)

    def stream(
        self, state: LoaderState | None = None, *, num_workers: int = 0
    ) -> Iterator[tuple[PackedBatch, LoaderState]]:
        """Batches without end, epoch after epoch, going on behind a state."""
        return self._iterate(state or LoaderState(), None, num_workers)

    def once(self) -> Iterator[PackedBatch]:
        """One pass over the split, the last batch perhaps short."""
        return (batch for batch, _ in self._iterate(LoaderState(), len(self.pieces), 0))

    def _iterate(
        self, state: LoaderState, stop: int | None, num_workers: int
    ) -> Iterator[tuple[PackedBatch, LoaderState]]:
        states: deque[LoaderState] = deque()  # of what the loader has asked for; it hands batches back in order

        def plans() -> Iterator[np.ndarray]:
            packed = pack(
                self._lengths_at, self.micro_batch_tokens, state.pack, longest=self.sequence_length, stop=stop
            )
            for positions, pack_state in packed:
                states.append(LoaderState(pack_state))
                yield positions

        loader = DataLoader(
            self,
            batch_size=None,
            sampler=plans(),
            num_workers=num_workers,
            generator=torch.Generator(),  # or else each start of a stream would draw from the run's generator
        )
        for batch in loader:
            yield batch, states.popleft()

    def _lengths_at(self, positions: np.ndarray) -> np.ndarray:
        return self.pieces.lengths(piece_at(positions, len(self.pieces), self.seed))

    def sequences(self, pieces: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Unmasked ids (int64) of some pieces, or of all in the order of the text, [CLS] and [SEP] included."""
        located = self.pieces.locate(np.arange(len(self.pieces)) if pieces is None else pieces)
        for document, start, stop in zip(*(column.tolist() for column in located), strict=True):
            ids = np.empty(stop - start + NUM_SPECIALS, dtype=np.int64)
            ids[0], ids[-1] = self.special.cls, self.special.sep
            ids[1:-1] = self.shards.tokens(document, start, stop)
            yield ids

    def __getitem__(self, positions: np.ndarray) -> PackedBatch:
        """Read and mask the sequences at some stream positions."""
        sequences, labels = [], []
        pieces = piece_at(positions, len(self.pieces), self.seed)
        for position, ids in zip(positions, self.sequences(pieces), strict=True):
            corrupted, targets = self._mask(ids, self.seed, int(position))
            sequences.append(torch.from_numpy(corrupted))
            labels.append(torch.from_numpy(targets))
        return PackedBatch.from_sequences(sequences, labels)
