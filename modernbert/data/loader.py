"""Shards → `(PackedBatch, LoaderState)`, endlessly or once: the chain mix → order → pack → read → mask.

What to read is planned in this process (index arithmetic, some 0.5 ms for 8,192 tokens, for many components as for
one); worker processes, if any, only read and mask. So order and masks are the same for any number of workers, and a
state is the numbers of the pieces that wait to be packed (some hundreds) and a counter for each component, whatever
has been consumed before it.

Several ranks plan the same stream, and of N each reads every N-th batch, counted from the stream's beginning: so all have
the same states, and which documents are in which batch does not depend on N.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from modernbert.batch import PackedBatch
from modernbert.data.mask import Masker
from modernbert.data.mix import Component, Mixture
from modernbert.data.order import epoch_of
from modernbert.data.pack import NUM_SPECIALS, PackState, pack
from modernbert.errors import ConfigError, DataError
from modernbert.text.shards import Split
from modernbert.text.tokenizer import load_tokenizer, special_ids

_EXCERPT = 80  # characters of a piece that `describe` quotes


@dataclass(frozen=True, slots=True)
class LoaderState:
    """Where the stream stands behind a batch; and, not stored, what that batch was."""

    key: int  # of the text and its order: a state is of no use to another stream
    pack: PackState = field(default_factory=PackState)
    since: tuple[int, ...] = ()  # what pack.drawn was when the phase began: weights and max_epochs count from there
    number: int = 0  # of batches, from the beginning of the stream; the last one's number, counted from 1
    positions: np.ndarray | None = field(default=None, compare=False, repr=False)  # one for each document of the batch
    mask_rate: float | None = field(default=None, compare=False, repr=False)  # of the batch
    num_tokens: int = field(default=0, compare=False, repr=False)  # in the batch
    ends_step: bool = field(default=True, compare=False, repr=False)  # False: the next one belongs to the same step

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {"key": self.key, "pack": asdict(self.pack), "since": self.since, "number": self.number}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoaderState:
        """The way back from `to_dict`."""
        packed = values["pack"]
        pack_state = PackState(tuple(packed["drawn"]), tuple(packed["pending"]), packed["tokens"])
        return cls(values["key"], pack_state, tuple(values["since"]), values.get("number", 0))

    def next_phase(self) -> LoaderState:
        """The same place in the text, for a phase that begins there: of another mixing or masking, if need be."""
        return replace(self, since=self.pack.drawn, pack=replace(self.pack, tokens=0))

    def instead_of(self, undone: LoaderState) -> LoaderState:
        """Go on from here in a run that was set back to an earlier place.

        What was read between counts neither towards the mixture and its `max_epochs` nor towards masking.

        Args:
            undone: the earlier state, or a fresh one for the beginning of a phase.
        """
        if undone.key != self.key or not undone.pack.drawn:
            return replace(self.next_phase(), positions=None)
        between = [now - then for now, then in zip(self.pack.drawn, undone.pack.drawn, strict=True)]
        since = tuple(begun + more for begun, more in zip(undone.since or (0,) * len(between), between, strict=True))
        return replace(self, since=since, pack=replace(self.pack, tokens=undone.pack.tokens), positions=None)


class Batches(Protocol):
    """What the training loop asks of a stream of batches."""

    key: int  # of what is in it and of its order

    def share(
        self, state: LoaderState | None = None, *, rank: int = 0, num_ranks: int = 1, num_workers: int = 0
    ) -> Iterator[tuple[PackedBatch | None, LoaderState]]:
        """Micro-batches behind a state, without end; None stands for each that another rank reads."""

    def describe(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """For people: `source`, `document` and `text` of what is at some positions of the stream."""


class MlmBatches(Dataset):
    """Masked, packed batches of one split of some shard folders.

    Args:
        sources: shard folders by name, all of one tokenizer.
        split: `train` or `heldout`.
        mixture: what to read of them, by weight; every source by its tokens if empty.
        sequence_length: longest sequence, [CLS] and [SEP] included.
        micro_batch_tokens: tokens of a batch at most.
        mask_rate: share of ordinary tokens to predict.
        mask_rate_end: that share once `total_tokens` have been planned; linear until there, constant if not given.
        total_tokens: of the phase.
        seed: of order and masks.

    Raises:
        DataError: a split or component without a document, sources of different tokenizers.
    """

    def __init__(
        self,
        sources: Mapping[str, str | Path],
        *,
        split: Split = "train",
        mixture: Mapping[str, Component] | None = None,
        sequence_length: int,
        micro_batch_tokens: int,
        mask_rate: float,
        mask_rate_end: float | None = None,
        total_tokens: int | None = None,
        seed: int,
    ) -> None:
        if mask_rate_end is not None and not total_tokens:
            raise ValueError(f"mask_rate_end={mask_rate_end} needs total_tokens: where is the end?")
        self.mixture = Mixture(sources, mixture, split=split, sequence_length=sequence_length)
        self.key = self.mixture.key(seed)
        first = self.mixture.shards_of(0)
        self.vocab_size, self._tokenizer_folder = first.vocab_size, first.folder
        self.special = special_ids(load_tokenizer(first.folder))
        self.sequence_length, self.micro_batch_tokens = sequence_length, micro_batch_tokens
        self.seed = seed
        self._mask_rates = mask_rate, mask_rate if mask_rate_end is None else mask_rate_end
        self._total_tokens = total_tokens
        self._mask = Masker(self.special, self.vocab_size)

    def stream(
        self, state: LoaderState | None = None, *, num_workers: int = 0
    ) -> Iterator[tuple[PackedBatch, LoaderState]]:
        """Batches without end, epoch after epoch, going on behind a state.

        Raises:
            ConfigError: the state is of another stream.
            DataError: every component has been read max_epochs times (all of it was yielded before).
        """
        for batch, behind in self.share(state, num_workers=num_workers):
            assert batch is not None
            yield batch, behind

    def share(
        self, state: LoaderState | None = None, *, rank: int = 0, num_ranks: int = 1, num_workers: int = 0
    ) -> Iterator[tuple[PackedBatch | None, LoaderState]]:
        """The same for one rank of several: None stands for each batch that another one reads."""
        state = state or LoaderState(self.key)
        if state.key != self.key:
            raise ConfigError(
                f"the stored place in the text (stream {state.key:012x}) is none in this stream ({self.key:012x}): sources, "
                "documents, sequence length or seed differ; go on with those of then, or begin the phase anew"
            )
        yield from self._iterate(state, self.mixture.caps_C, num_workers, rank, num_ranks)
        raise DataError(
            "every component of the mixture has been read max_epochs times; raise max_epochs, add a source, or lower "
            "the phase's tokens"
        )

    def once(self) -> Iterator[PackedBatch]:
        """One pass over every component, the last batch perhaps short."""
        batches = self._iterate(LoaderState(self.key), self.mixture.num_pieces_C, num_workers=0)
        return (batch for batch, _ in batches if batch is not None)

    def mask_rate_at(self, tokens: int) -> float:
        """The masking rate of a batch that begins behind so many tokens of the phase."""
        start, end = self._mask_rates
        return start if start == end else start + (end - start) * min(1.0, tokens / (self._total_tokens or 1))

    def _iterate(
        self, state: LoaderState, caps_C: np.ndarray, num_workers: int, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[tuple[PackedBatch | None, LoaderState]]:
        planned: deque[LoaderState] = deque()  # and not handed out; a loader with workers asks for plans ahead
        own: deque[LoaderState] = deque()  # of these, those that the loader has not asked for
        plans = self._plans(state, caps_C)

        def is_own(planned_state: LoaderState) -> bool:
            return (planned_state.number - 1) % num_ranks == rank

        def plan_one() -> bool:
            planned_state = next(plans, None)
            if planned_state is None:
                return False
            planned.append(planned_state)
            if is_own(planned_state):
                own.append(planned_state)
            return True

        def to_read() -> Iterator[tuple[np.ndarray | None, float | None]]:
            while own or plan_one():
                if own:
                    yield own[0].positions, own.popleft().mask_rate

        batches = iter(DataLoader(
            self,
            batch_size=None,
            sampler=to_read(),
            num_workers=num_workers,
            generator=torch.Generator(),  # or else each start of a stream would draw from the run's generator
        ))  # fmt: skip
        while planned or plan_one():
            behind = planned.popleft()
            yield next(batches) if is_own(behind) else None, behind

    def _plans(self, state: LoaderState, caps_C: np.ndarray) -> Iterator[LoaderState]:
        """The states behind the batches that follow one, each with what is in its batch."""
        packed = pack(
            self._lengths_at, self.micro_batch_tokens, state.pack, longest=self.sequence_length,
            draw=lambda drawn, count: self.mixture.draw(drawn, count, since=state.since, caps_C=caps_C),
        )  # fmt: skip
        tokens, number = state.pack.tokens, state.number
        for positions, pack_state in packed:
            rate, num_tokens = self.mask_rate_at(tokens), pack_state.tokens - tokens
            tokens, number = pack_state.tokens, number + 1
            yield LoaderState(self.key, pack_state, state.since, number, positions, rate, num_tokens)

    def _lengths_at(self, positions: np.ndarray) -> np.ndarray:
        return self.mixture.pieces.lengths(self.mixture.pieces_at(positions, self.seed))

    def sequences(self, pieces: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Unmasked ids (int64) of some pieces, or of all in the order of the text, [CLS] and [SEP] included."""
        located = self.mixture.locate(np.arange(len(self.mixture.pieces)) if pieces is None else pieces)
        for component, document, start, stop in zip(*(column.tolist() for column in located), strict=True):
            ids = np.empty(stop - start + NUM_SPECIALS, dtype=np.int64)
            ids[0], ids[-1] = self.special.cls, self.special.sep
            ids[1:-1] = self.mixture.shards_of(component).tokens(document, start, stop)
            yield ids

    def __getitem__(self, plan: tuple[np.ndarray, float]) -> PackedBatch:
        """Read the sequences at some stream positions, one document of the batch each, and mask them at a rate."""
        sequences, labels = [], []
        positions, rate = plan
        pieces = self.mixture.pieces_at(positions, self.seed)
        for position, ids in zip(positions, self.sequences(pieces), strict=True):
            corrupted, targets = self._mask(ids, rate, self.seed, int(position))
            sequences.append(torch.from_numpy(corrupted))
            labels.append(torch.from_numpy(targets))
        return PackedBatch.from_sequences(sequences, labels)

    def describe(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """Where the text at some stream positions is from, for people.

        Args:
            positions: such as `LoaderState.positions`, whose i-th is the i-th document of its batch.

        Returns:
            For each: component, source, document (its number in the source's split), from_token and to_token (the
            last plus one) in it, epoch (from 0), and how its text begins, in at most 80 characters.
        """
        tokenizer = load_tokenizer(self._tokenizer_folder)
        mixture, positions = self.mixture, np.asarray(positions, dtype=np.int64)
        located = mixture.locate(mixture.pieces_at(positions, self.seed))
        columns = (*located, epoch_of(positions, mixture.num_pieces_C))
        found = []
        for component, document, start, stop, epoch in zip(*(column.tolist() for column in columns), strict=True):
            ids = mixture.shards_of(component).tokens(document, start, min(stop, start + _EXCERPT))
            found.append({
                "component": mixture.names[component], "source": mixture.sources[component], "document": document,
                "from_token": start, "to_token": stop, "epoch": epoch,
                "text": " ".join(tokenizer.decode(ids.tolist()).split())[:_EXCERPT],
            })  # fmt: skip
        return found
