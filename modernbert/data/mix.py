"""Sources and weights → which documents a phase reads, and which component's piece comes next.

A component is a source, or those of its documents that pass a filter, and a share of the tokens. Its k-th piece is
due at (k + ½) / rate, its rate being its weight over its mean piece: the piece that is due first comes next. No random
numbers are drawn: pieces of each component come within one or two of what the rates say at any moment, and shares of
tokens are the weights as closely as the pieces shown so far have the mean of all; exactly so over whole epochs. A
component whose epochs are used up is due no more, and the others come on denser.

Price: 16 bytes a document of one source; of several, 24 a document and component, 32 where some are filtered; and a
pass over the documents' lengths to begin with (0.02 s for 250,000, wherever a run goes on). Which pieces come next and
how long they are is found for all components at once: packing 8,192 tokens is planned in 0.4 ms from 1 or 5
components, in 0.5 ms from 20.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from pydantic import Field

from modernbert.data.order import POSITION_BITS, component_of, piece_at
from modernbert.data.pack import NUM_SPECIALS, Pieces
from modernbert.errors import DataError
from modernbert.settings import Settings
from modernbert.text.shards import Shards, Split

ENDLESS = 1 << POSITION_BITS


class Component(Settings):
    """A part of a mixture. A lone number is its weight."""

    source: str | None = None  # the component's own name if not given
    weight: float = Field(gt=0)  # share of the tokens, before weights are divided by their sum
    max_epochs: float | None = Field(None, gt=0)  # of the component within a phase; then the others take over
    min_tokens: int | None = Field(None, ge=1)  # only documents at least so long (without [CLS] and [SEP])
    max_tokens: int | None = Field(None, ge=1)  # only documents at most so long
    min_score: float | None = None  # only documents scored so, where the build kept scores

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_weight(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, int | float) else value


class Mixture:
    """The components of a phase, their documents cut for one sequence length.

    Components are numbered by the order of their names. In the names below C is their number, and a piece counts
    through all of them.

    Args:
        folders: shard folders by source name, all of one tokenizer.
        components: by name; each source by its tokens if there are none.
        split: `train` or `heldout`.
        sequence_length: longest sequence, [CLS] and [SEP] included.

    Raises:
        DataError: shards that cannot be used, of different tokenizers, or a component without a document.
    """

    def __init__(
        self,
        folders: Mapping[str, str | Path],
        components: Mapping[str, Component] | None = None,
        *,
        split: Split = "train",
        sequence_length: int,
    ) -> None:
        by_size = not components
        components = components or {name: Component(weight=1) for name in folders}
        self.names = sorted(components)
        self.components = [components[name] for name in self.names]
        self.sources = [components[name].source or name for name in self.names]
        self.shards = _open(folders, sorted(set(self.sources)), split)
        chosen = [_select(name, components[name], self.shards_of(c)) for c, name in enumerate(self.names)]
        lengths = [
            self.shards_of(c).lengths if documents is None else self.shards_of(c).lengths[documents]
            for c, documents in enumerate(chosen)
        ]
        self.pieces = Pieces(lengths[0] if len(lengths) == 1 else np.concatenate(lengths), sequence_length)
        self._documents = None if all(documents is None for documents in chosen) else np.concatenate(
            [np.arange(len(sizes)) if some is None else some for some, sizes in zip(chosen, lengths, strict=True)]
        )  # fmt: skip
        self._rows_until_C = np.cumsum([len(sizes) for sizes in lengths])
        until_C = self.pieces.until(self._rows_until_C)
        self._first_piece_C = np.concatenate([[0], until_C[:-1]])
        self.num_pieces_C = np.diff(until_C, prepend=0)
        content_C = np.array([sizes.sum() for sizes in lengths])
        self.num_tokens_C = content_C + NUM_SPECIALS * self.num_pieces_C  # of an epoch, as training counts them
        weights_C = self.num_tokens_C if by_size else np.array([part.weight for part in self.components])
        self.shares_C = weights_C / weights_C.sum()
        rates_C = self.shares_C / (self.num_tokens_C / self.num_pieces_C)
        self._rates_C = rates_C / rates_C.sum()
        self.caps_C = np.array([
            ENDLESS if part.max_epochs is None else max(1, int(min(part.max_epochs * pieces, ENDLESS)))
            for part, pieces in zip(self.components, self.num_pieces_C.tolist(), strict=True)
        ])  # fmt: skip

    def shards_of(self, component: int) -> Shards:
        """The source of a component."""
        return self.shards[self.sources[component]]

    def document_lengths(self, component: int) -> np.ndarray:
        """Tokens of each document of a component, without [CLS] and [SEP]."""
        first = self._rows_until_C[component - 1] if component else 0
        return self.pieces.document_lengths[first : self._rows_until_C[component]]

    def draw(
        self, drawn: tuple[int, ...], count: int, *, since: tuple[int, ...] = (), caps_C: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """The stream positions that are due next, and the counters behind them.

        Args:
            drawn: pieces drawn of each component so far; none: 0 of each.
            count: how many are wanted. Fewer come where a component ends, none where all have ended.
            since: what `drawn` was when this mixture began.
            caps_C: pieces that each component gives from then on; as its max_epochs say if not given.
        """
        caps_C = self.caps_C if caps_C is None else caps_C
        since_C = np.array(since or (0,) * len(self.names))
        served_C = np.array(drawn or (0,) * len(self.names)) - since_C
        left_C = caps_C - served_C
        live_C = left_C > 0
        if not live_C.any():
            return np.empty(0, dtype=np.int64), tuple((since_C + served_C).tolist())
        first_due = ((served_C + 0.5) / self._rates_C)[live_C].min()
        # A live component has at least its rate times the stretch, less one, due in it: so `count` are due by then.
        until = first_due + (count + live_C.sum() + 1) / self._rates_C[live_C].sum()
        due_C = np.clip(np.ceil(self._rates_C * until - served_C).astype(np.int64) + 1, 0, np.maximum(left_C, 0))
        owners = np.repeat(np.arange(len(due_C)), due_C)
        numbers = np.arange(len(owners)) + (served_C - np.cumsum(due_C) + due_C)[owners]
        due = (numbers + 0.5) / self._rates_C[owners]
        order = np.argsort(due, kind="stable")
        order = order[due[order] <= until][:count]
        owners, numbers = owners[order], (numbers + since_C[owners])[order]
        behind_C = since_C + served_C + np.bincount(owners, minlength=len(due_C))
        return owners << POSITION_BITS | numbers, tuple(behind_C.tolist())

    def pieces_at(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Which pieces stand at some stream positions."""
        return self._first_piece_C[component_of(positions)] + piece_at(positions, self.num_pieces_C, seed)

    def locate(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For each piece its component, its document in that source, and its first and last-plus-one token there."""
        rows, starts, stops = self.pieces.locate(pieces)
        components = np.searchsorted(self._rows_until_C, rows, side="right")
        if self._documents is not None:
            return components, self._documents[rows], starts, stops
        return components, rows - np.where(components > 0, self._rows_until_C[components - 1], 0), starts, stops

    def key(self, seed: int) -> int:
        """What a place in the stream belongs to: this text in this order, whatever its weights, names and folders."""
        about: list[Any] = [seed, self.pieces.content_length, self.num_pieces_C.tolist(), self.num_tokens_C.tolist()]
        for component in range(len(self.names)):
            shards = self.shards_of(component)
            about.append([shard["sha256"] for shard in shards.manifest["splits"][shards.split]["shards"]])
        if self._documents is not None:
            about.append(hashlib.sha256(self._documents.astype("<i8").tobytes()).hexdigest())
        return int.from_bytes(hashlib.sha256(json.dumps(about).encode()).digest()[:6], "big")


def _open(folders: Mapping[str, str | Path], sources: list[str], split: Split) -> dict[str, Shards]:
    for source in sources:
        if source not in folders:
            raise DataError(f"the mixture names {source!r}, and the sources are {', '.join(folders)}; correct the name")
    shards = {source: Shards.open(folders[source], split=split) for source in sources}
    refuse_other_tokenizers(shards)
    return shards


def refuse_other_tokenizers(sources: Mapping[str, Shards]) -> None:
    """Raise DataError where not all sources are of one tokenizer; it names two that differ."""
    (name, first), *others = sources.items()
    for source, other in others:
        if other.manifest["tokenizer"] != first.manifest["tokenizer"]:
            raise DataError(
                f"source {name} ({first.folder}) and source {source} ({other.folder}) were built with different "
                f"tokenizers; build one of them again with the other's: --tokenizer {first.folder}"
            )


def _select(name: str, component: Component, shards: Shards) -> np.ndarray | None:
    """The documents of a source that a component takes, None for all."""
    fits = np.ones(len(shards), dtype=bool)
    limits = []
    if component.min_tokens is not None:
        fits &= shards.lengths >= component.min_tokens
        limits.append(f"min_tokens={component.min_tokens:,}")
    if component.max_tokens is not None:
        fits &= shards.lengths <= component.max_tokens
        limits.append(f"max_tokens={component.max_tokens:,}")
    if component.min_score is not None:
        if shards.scores is None:
            raise DataError(
                f"component {name}: min_score={component.min_score:g}, and {shards.folder} was built without scores; "
                "build it again with --score-field, or leave min_score out"
            )
        fits &= shards.scores >= component.min_score
        limits.append(f"min_score={component.min_score:g}")
    if not limits:
        return None
    if not fits.any():
        raise DataError(f"component {name}: {_none_fits(' and '.join(limits), component, shards)}; change the limit")
    return np.flatnonzero(fits)


def _none_fits(limits: str, component: Component, shards: Shards) -> str:
    found = f"they have {shards.lengths.min():,} to {shards.lengths.max():,} tokens"
    if component.min_score is not None and shards.scores is not None:
        found += f" and scores of {np.fmin.reduce(shards.scores):g} to {np.fmax.reduce(shards.scores):g}"
    return f"none of the {len(shards):,} documents of {shards.folder} meets {limits} ({found})"
