"""Hidden states → answers about texts: what classification, tagging and question answering have in common.

    examples → features (ids, targets) → encoder → head (dense → GELU → norm) → dropout → classifier → loss, or answers

The head's tensors and `config.json` are those of transformers' `ModernBertFor…` classes, so a folder opens there as it is.
What these do not know (the cut, the stride, how a text is to be read) stands under `modernbert_task` in `config.json`.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from modernbert.batch import Feature, PackedBatch, within
from modernbert.errors import CheckpointError, ConfigError, UnsupportedError
from modernbert.model.attention import Backend
from modernbert.model.config import ModernBertConfig
from modernbert.model.init import initialize
from modernbert.runtime import evaluating
from modernbert.tasks.base import EncoderModel
from modernbert.tasks.mlm import PredictionHead
from modernbert.text.examples import Example, Kind, Problem

PROBLEM_TYPES = {"single": "single_label_classification", "multi": "multi_label_classification",
                  "regression": "regression"}  # fmt: skip
OWN = "modernbert_task"  # in config.json
_TOKENS_AT_ONCE = 65_536  # of a forward pass without gradients; the encoder cuts it further where that is faster
_EXAMPLES_AT_ONCE = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """What a head answers, and how texts are put before it."""

    kind: Kind | None  # None: of a folder that does not say whether its texts come in pairs
    labels: tuple[str, ...]  # one for each output
    problem: Problem
    max_length: int  # tokens of an input, special ones included; longer texts are cut there, or read in windows
    stride: int = 0  # tokens that neighbouring windows of a long text share, where it is read in windows
    pooling: Literal["cls", "mean"] = "mean"  # of one vector for a text
    prefix_space: bool = True  # of tags: whether each word is read as after a space

    def to_values(self) -> dict[str, Any]:
        """What `config.json` says of it."""
        names = dict(enumerate(self.labels))
        values: dict[str, Any] = {
            "id2label": {str(index): name for index, name in names.items()},
            "label2id": {name: index for index, name in names.items()},
            "classifier_pooling": self.pooling,
            OWN: {name: value for name, value in asdict(self).items() if name not in ("labels", "pooling")},
        }
        if self.problem in PROBLEM_TYPES:
            values["problem_type"] = PROBLEM_TYPES[self.problem]
        return values

    @classmethod
    def from_values(
        cls,
        values: Mapping[str, Any],
        *,
        kind: Kind | None,
        problem: Problem,
        num_outputs: int,
        max_length: int,
        stride: int = 0,
    ) -> Self:
        """Read a `config.json`, written here or by transformers; what it does not say is as given."""
        names = {int(index): str(name) for index, name in (values.get("id2label") or {}).items()}
        if sorted(names) != list(range(num_outputs)):
            if names and len(names) != num_outputs:
                raise CheckpointError(
                    f"config.json names {len(names)} labels and the classifier has {num_outputs} outputs; they do not "
                    "belong together"
                )
            names = {index: f"LABEL_{index}" for index in range(num_outputs)}
        own = values.get(OWN) or {}
        known = {"single_label_classification": "single", "multi_label_classification": "multi"}
        if problem == "single":
            problem = known.get(str(values.get("problem_type")), "regression" if num_outputs == 1 else "single")  # type: ignore[assignment]
            if values.get("problem_type") == "regression" and num_outputs > 1:
                raise UnsupportedError(f"config.json: a regression of {num_outputs} numbers; only one is computed")
        return cls(
            kind=own.get("kind", kind), labels=tuple(names[index] for index in range(num_outputs)),
            problem=own.get("problem", problem), max_length=int(own.get("max_length", max_length)),
            stride=int(own.get("stride", stride)), pooling=values.get("classifier_pooling", "cls"),
            prefix_space=bool(own.get("prefix_space", False)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """How classes are weighed while training."""

    class_weights: tuple[float, ...] | None = None  # one for each label
    label_smoothing: float = 0.0


class HeadModel(EncoderModel):
    """An encoder with a head that answers; the base of `Classifier`, `Tagger` and `Answerer`.

    Args:
        config: the encoder's shape.
        tokenizer: of its texts.
        settings: what the head answers.
        out_dropout: on each attention block's output while training.
        head_dropout: before the classifier while training; transformers' `classifier_dropout`.
        backend: of attention.
        encoder: another encoder to stand in the place of one of this shape.
    """

    def __init__(
        self,
        config: ModernBertConfig,
        tokenizer: Tokenizer | None,
        settings: HeadSettings,
        *,
        out_dropout: float = 0.0,
        head_dropout: float = 0.0,
        backend: Backend | Literal["auto"] = "auto",
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config, tokenizer, out_dropout=out_dropout, backend=backend, encoder=encoder)
        self.settings = settings
        self.loss = LossSettings()
        self.head = PredictionHead(config)
        self.drop = nn.Dropout(head_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(settings.labels))

    @property
    def config(self) -> ModernBertConfig:
        """The encoder's shape, with what `config.json` says of this head."""
        config = self.model.config
        extra = {name: value for name, value in config.extra.items() if name not in ("problem_type", OWN)}
        return config.replace(extra={**extra, **self.settings.to_values(), "classifier_dropout": self.drop.p})

    def classify(self, hidden_MD: Tensor) -> Tensor:
        """Head and classifier: (M, D) → logits (M, C)."""
        return self.classifier(self.drop(self.head(hidden_MD, self.model.path_for(hidden_MD))))

    @abstractmethod
    def logits(self, batch: PackedBatch) -> Tensor:
        """Logits of each document (B, C), or of each token (T, C)."""

    @abstractmethod
    def features(self, examples: Sequence[Example]) -> list[Feature]:
        """Tokenise examples, with their targets where they are labelled; a long text may give several."""

    @abstractmethod
    def decide(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """What the model says of each example, whatever its label: see each task. A score says how sure it is."""

    @abstractmethod
    def examples(self, items: Iterable[Any], first: int = 1) -> list[Example]:
        """What callers of `predict` give (strings, pairs, dicts) as examples, or a refusal; `first` is the first one's number."""

    def predict(self, items: Any) -> list[dict[str, Any]]:
        """Answer for some items, in their order; see the task for what an item and an answer is."""
        return list(self.predict_each([items] if isinstance(items, str | dict | Example) else items))

    def predict_each(self, items: Iterable[Any], window_size: int = _EXAMPLES_AT_ONCE) -> Iterator[dict[str, Any]]:
        """The same one by one, for any number of items: so many are read at a time."""
        remaining = iter(items)
        return self.predict_windows(iter(lambda: list(itertools.islice(remaining, window_size)), []))

    def predict_windows(self, windows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """The same for items that come some at a time, each window answered before the next is asked for."""
        number = 1
        for window in windows:
            yield from self.answer(window, self.examples(window, number))
            number += len(window)

    def answer(self, items: Sequence[Any], examples: Sequence[Example]) -> list[dict[str, Any]]:
        """`decide`, in the form that suits what was given."""
        del items
        return self.decide(examples)

    def outputs(self, features: Sequence[Feature]) -> list[np.ndarray]:
        """Logits of each feature, without gradients, in float32: (C), or (its tokens, C) where the task is one of tokens."""
        found: list[np.ndarray] = []
        with evaluating(self), torch.no_grad():
            for part in within(features, _TOKENS_AT_ONCE):
                batch = PackedBatch.from_sequences(torch.from_numpy(f.ids_T) for f in part).to(self.device)
                logits = self.logits(batch).float().cpu()
                if len(logits) == len(part) and self.settings.problem not in ("tokens", "spans"):
                    found.extend(logits.numpy())
                else:
                    found.extend(t.numpy() for t in logits.split([len(f.ids_T) for f in part]))
        return found

    def adapt(self, examples: Sequence[Example]) -> None:
        """Settle, before training, what depends on the training examples; nothing here."""

    def draw_head(self, seed: int) -> Self:
        """Give head and classifier their initial values, and leave the encoder as it is."""
        parts = nn.ModuleDict({"head": self.head, "classifier": self.classifier})
        initialize(parts, self.model.config, torch.Generator().manual_seed(seed))
        return self

    def take_encoder(self, other: EncoderModel) -> Self:
        """Take over another model's encoder weights and, where it has one, the dense layer and norm of its head."""
        ours, theirs = self.state_dict(), other.state_dict()
        taken = {name: theirs[name] for name in ours if name in theirs and not name.startswith("classifier.")}
        misshapen = [name for name in taken if taken[name].shape != ours[name].shape]
        if misshapen:
            raise ConfigError(f"{misshapen[0]} is of another shape in the checkpoint; it is another model")
        self.load_state_dict({**ours, **taken})
        return self
