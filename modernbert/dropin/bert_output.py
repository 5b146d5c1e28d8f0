"""What the BERT-style classes give back, and the losses that transformers takes of it.

Each loss is a mean over what is labelled, in float32; `num_items` is what a sum is divided by in its place, where one
step is several batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import IGNORE
from modernbert.errors import ConfigError, DataError

_FIELDS = ("loss", "logits", "start_logits", "end_logits", "last_hidden_state", "hidden_states", "attentions")


class ModelOutput(dict):
    """Tensors by name: `output.logits`, `output["logits"]`, and by place, `output[0]`, those that are None left out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__({name: value for name, value in dict(*args, **kwargs).items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name in _FIELDS:
            return self.get(name)
        raise AttributeError(f"a ModelOutput has no {name}; it has {', '.join(self)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The tensors in their order."""
        return tuple(self.values())


def token_loss(logits_MC: Tensor, labels_M: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy over the labelled tokens."""
    return _cross_entropy(logits_MC, labels_M, IGNORE, num_items)


def sequence_loss(logits_BC: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Cross-entropy, binary cross-entropy or squared error of one row of labels for each text."""
    num_labels = logits_BC.shape[1]
    if problem_type == "single_label_classification":
        if labels.is_floating_point():
            raise DataError(f"labels are {labels.dtype}, and single-label classification takes the numbers of classes")
        return _cross_entropy(logits_BC, labels.reshape(-1).long(), IGNORE)
    if labels.numel() != logits_BC.numel():
        raise DataError(f"labels of {tuple(labels.shape)} for logits of {tuple(logits_BC.shape)} ({problem_type})")
    targets_BC = labels.to(logits_BC.device).reshape(-1, num_labels).float()
    if problem_type == "regression":
        return F.mse_loss(logits_BC.float(), targets_BC)
    return F.binary_cross_entropy_with_logits(logits_BC.float(), targets_BC)


def problem_of(problem_type: str | None, num_labels: int, labels: Tensor) -> str:
    """What kind of labels these are, as transformers guesses where the config does not say it."""
    if problem_type is not None:
        return problem_type
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def span_loss(logits_BS: Iterable[Tensor], positions_B: Iterable[Tensor]) -> Tensor:
    """The mean of start's and end's cross-entropy; positions beyond the row are left out."""
    losses = []
    for of_rows_BS, at_B in zip(logits_BS, positions_B, strict=True):
        length = of_rows_BS.shape[1]
        losses.append(_cross_entropy(of_rows_BS, at_B.reshape(-1).clamp(0, length), length))
    return sum(losses[1:], losses[0]) / len(losses)


def _cross_entropy(logits_MC: Tensor, labels_M: Tensor, ignored: int, num_items: Tensor | int | None = None) -> Tensor:
    labels_M = labels_M.to(logits_MC.device)
    if len(labels_M) != len(logits_MC):
        raise ConfigError(f"{len(labels_M)} labels for {len(logits_MC)} rows of logits; give one for each")
    if num_items is None:
        return F.cross_entropy(logits_MC.float(), labels_M, ignore_index=ignored)
    items = num_items.to(logits_MC.device) if isinstance(num_items, Tensor) else num_items
    return F.cross_entropy(logits_MC.float(), labels_M, ignore_index=ignored, reduction="sum") / items
