"""Tokenised examples → packed, labelled batches with the state of the stream: what a task is fine-tuned on.

    features → shuffled by epoch → steps of `batch_size` examples → micro-batches within a token budget → PackedBatch

A step is a number of examples, as fine-tuning recipes count it; tokens stay the clock, and nothing is padded. An example
that gives several windows (a long document with a stride) gives as many features, each counted as an example. Order is a
function of seed and epoch, so a state is a counter for each task. Of several ranks each has a part of every step, where it
has examples for all. Price: all features in memory, 4 bytes a token.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modernbert.batch import Feature, PackedBatch, pack_features
from modernbert.data.loader import LoaderState
from modernbert.data.pack import PackState
from modernbert.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _Part:
    """A micro-batch as it was planned."""

    task: int
    places: tuple[int, ...]  # of the stream, that is counted on through the epochs
    ends_step: bool


class LabelledBatches:
    """The training stream of one task or of several, each step of examples of one of them.

    Args:
        features: of each task by name, in the order of its file.
        batch_size: examples of a step.
        micro_batch_tokens: of one forward and backward pass; an example longer than that is alone.
        seed: of the order.
    """

    def __init__(
        self, features: Mapping[str, Sequence[Feature]], *, batch_size: int, micro_batch_tokens: int, seed: int
    ) -> None:
        self.features = dict(features)
        self.names = list(self.features)
        self.batch_size, self.micro_batch_tokens, self.seed = batch_size, micro_batch_tokens, seed
        self.key = self._key()
        self._lengths = [np.array([len(f.ids_T) for f in of_task]) for of_task in self.features.values()]
        self._sizes = [len(of_task) for of_task in self.features.values()]
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def tokens_of(self, epochs: float) -> int:
        """Tokens of so many epochs over every task."""
        tokens = 0
        for task, size in enumerate(self._sizes):
            whole, rest = divmod(round(epochs * size), size)
            tokens += whole * int(self._lengths[task].sum())
            tokens += sum(int(self._lengths[task][self.feature_at(task, whole * size + i)]) for i in range(rest))
        return tokens

    def share(
        self, state: LoaderState | None = None, *, rank: int = 0, num_ranks: int = 1, num_workers: int = 0
    ) -> Iterator[tuple[PackedBatch | None, LoaderState]]:
        """Micro-batches without end, for one rank of several: None stands for each that another one reads.

        Raises:
            ConfigError: the state is of other examples.
        """
        del num_workers  # features are in memory: nothing is read
        state = state or LoaderState(self.key)
        if state.key != self.key:
            raise ConfigError(
                f"the stored place (stream {state.key:012x}) is none in this stream ({self.key:012x}): examples, batch size "
                "or seed differ; choose another --out"
            )
        drawn = list(state.pack.drawn) or [0] * len(self.names)
        tokens, number = state.pack.tokens, state.number
        while True:
            task = self._next_task(drawn)
            for part in self._parts(task, drawn[task], num_ranks):
                number += 1
                of_part = [self.features[self.names[task]][self.feature_at(task, place)] for place in part.places]
                num_tokens = sum(len(feature.ids_T) for feature in of_part)
                drawn[task] += len(part.places)
                tokens += num_tokens
                places = np.array([(place << 8) + task for place in part.places])
                behind = LoaderState(
                    self.key, PackState(tuple(drawn), (), tokens), (), number, places, None, num_tokens, part.ends_step
                )
                own = (number - 1) % num_ranks == rank
                yield pack_features(of_part, self.names[task]) if own else None, behind

    def describe(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """Which examples those at some places of the stream are: task, and number among those trained on, from 0."""
        found = []
        for position in np.asarray(positions).tolist():
            task, place = position & 255, position >> 8
            feature = self.features[self.names[task]][self.feature_at(task, place)]
            found.append({"source": self.names[task] or "train", "document": feature.example, "text": ""})
        return found

    def _next_task(self, drawn: list[int]) -> int:
        """The task that is furthest behind, in shares of its epoch."""
        return min(range(len(drawn)), key=lambda task: (drawn[task] / self._sizes[task], task))

    def _parts(self, task: int, drawn: int, at_least: int) -> Iterator[_Part]:
        """The step that begins behind so many examples of a task, in so many parts or more; it ends with an epoch."""
        left = self._sizes[task] - drawn % self._sizes[task]
        places = range(drawn, drawn + min(self.batch_size, left))
        lengths, budget = self._lengths[task], self.micro_batch_tokens
        parts: list[list[int]] = []
        for share in np.array_split(np.array(places), min(at_least, len(places))):
            filled = budget + 1
            for place in share.tolist():
                length = int(lengths[self.feature_at(task, place)])
                if filled + length > budget:
                    parts.append([])
                    filled = 0
                parts[-1].append(place)
                filled += length
        for index, part in enumerate(parts):
            yield _Part(task, tuple(part), index == len(parts) - 1)

    def feature_at(self, task: int, place: int) -> int:
        """Which of a task's features stands at a place of its stream, that is counted on through the epochs."""
        epoch, position = divmod(place, self._sizes[task])
        if (task, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != task}
            drawn = np.random.default_rng((self.seed, task, epoch))
            self._orders[task, epoch] = drawn.permutation(self._sizes[task])
        return int(self._orders[task, epoch][position])

    def _key(self) -> int:
        """Of all that decides which examples are in which step."""
        crc = zlib.crc32(f"{self.batch_size} {self.micro_batch_tokens} {self.seed}".encode())
        for name, of_task in self.features.items():
            crc = zlib.crc32(f"{name} {len(of_task)}".encode(), crc)
            for feature in of_task:
                crc = zlib.crc32(feature.ids_T.tobytes(), crc)
                target = feature.labels_T if feature.target is None else np.asarray(feature.target)
                crc = crc if target is None else zlib.crc32(target.tobytes(), crc)
        return crc
