"""One encoder under several heads, trained together: each batch is one task's, and the encoder learns from all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from modernbert.batch import PackedBatch
from modernbert.tasks.base import EncoderModel, TaskOutput
from modernbert.tasks.head import HeadModel


class SeveralHeads(EncoderModel):
    """Tasks by name over the first one's encoder, each with the weight of its loss.

    Args:
        heads: at least one; all of one shape. Their encoders are given up for the first one's.
        weights: of their losses.
    """

    architecture: ClassVar[str] = "ModernBertModel"

    def __init__(self, heads: Mapping[str, HeadModel], weights: Mapping[str, float]) -> None:
        first = next(iter(heads.values()))
        super().__init__(first.model.config, first.tokenizer, encoder=first.model)
        for model in heads.values():
            model.model = first.model
        self.parts = nn.ModuleDict(
            {
                f"{name}_": nn.ModuleDict({"head": m.head, "drop": m.drop, "classifier": m.classifier})
                for name, m in heads.items()  # the dash: a task may be called as a method of ModuleDict is
            }
        )
        self.__dict__["heads"] = dict(heads)  # past nn.Module: the encoder is to have its name but once
        self.loss_weights = dict(weights)

    heads: dict[str, HeadModel]

    def forward(self, batch: PackedBatch) -> TaskOutput:
        """The loss of the task that the batch is of; no other head's is taken."""
        model = self.heads[batch.task or next(iter(self.heads))]
        output = model(batch)
        others = [p for name, m in self.heads.items() if m is not model for p in self.parts[f"{name}_"].parameters()]
        unused = torch.zeros((), device=self.device)  # DDP waits for each parameter
        for parameter in others:
            unused = unused + parameter.sum() * 0.0
        return replace(output, loss_sum=output.loss_sum * self.loss_weights.get(batch.task, 1.0) + unused)
