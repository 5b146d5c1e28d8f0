"""What a fine-tuning says: a model, one task or several, and how long and how fast to learn; and what the loop reads of it.

Unlike pretraining, which counts tokens, fine-tuning is told in examples and epochs, as its recipes are everywhere. `plan` turns
that into the tokens that the loop counts, once the examples are known.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import pydantic
from pydantic import Field

from modernbert.errors import ConfigError
from modernbert.settings import Settings
from modernbert.text.examples import Kind
from modernbert.train.recipe import (
    ComputeSettings,
    GuardSettings,
    LoopSettings,
    OptimSettings,
    PathText,
    PhaseSettings,
    TrainRun,
)
from modernbert.train.schedule import DecayShape

PHASE = "finetune"
# A rate for ModernBERT-base, and by the square of the width for others: narrow encoders want far more (results/LOG.md).
_LR_OF_BASE, _WIDTH_OF_BASE = 8e-5, 768
EXAMPLES = 30_000  # that a small set is shown in all, within the bounds of epochs below
EPOCHS = (3, 10)


def usual_lr(hidden_size: int) -> float:
    """The learning rate for an encoder of some width, where none is given."""
    return float(f"{_LR_OF_BASE * (_WIDTH_OF_BASE / hidden_size) ** 2:.2g}")


class ColumnSettings(Settings):
    """The names of a file's columns, where they are not to be guessed."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    words: str | None = None
    tags: str | None = None
    question: str | None = None
    context: str | None = None
    answers: str | None = None
    id: str | None = None


class TaskSettings(Settings):
    """One task: its files, its head, its loss."""

    kind: Kind
    name: str = Field("", pattern=r"^[a-zA-Z0-9_-]*$")  # its folder's, where there are several tasks; the kind if empty
    train: PathText
    validation: PathText | None = None  # a tenth of `train` if not given
    test: PathText | None = None  # scored once, with the weights that were chosen on `validation`
    max_examples: int | None = Field(None, ge=2)  # of `train`, drawn by the seed; all if not given
    columns: ColumnSettings = ColumnSettings()
    weight: float = Field(1.0, gt=0)  # of its loss, where there are several tasks
    problem: Literal["single", "multi", "regression"] | None = None  # of labels; as they look if not given
    metric: str | None = None  # by which the best weights are chosen; the task's usual one if not given
    max_length: int | None = Field(None, ge=8)  # tokens; all that the model takes, of questions 384, if not given
    stride: int | None = Field(None, ge=0)  # tokens that windows share; 128, or a quarter of them
    pooling: Literal["mean", "cls"] = "mean"
    class_weights: Literal["balanced"] | dict[str, float] | None = None  # balanced: by how rare a class is
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class FinetuneRun(Settings):
    """A whole fine-tuning."""

    model: PathText  # a checkpoint folder, a run folder, an address or a hub name
    tasks: list[TaskSettings] = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**63)
    epochs: float | None = Field(None, gt=0)  # 3 to 10, fewer the more examples, if not given
    batch_size: int = Field(16, ge=1)  # examples of a step
    micro_batch_tokens: int = Field(16_384, ge=8)  # of one forward and backward pass
    lr: float | None = Field(None, gt=0, le=1)  # 8e-5 at a width of 768, 7.2e-4 at 256, if not given
    warmup: float = Field(0.1, ge=0, le=1)  # share of all tokens
    decay: float = Field(0.9, ge=0, le=1)  # share of all tokens
    decay_to: float = Field(0.02, ge=0, le=1)  # above 0, or the last step would teach nothing
    decay_shape: DecayShape = "linear"
    evaluations: int | None = Field(None, ge=1)  # in all, evenly spread; one an epoch if not given
    patience: int | None = Field(None, ge=1)  # evaluations without a better one behind which it ends
    freeze: bool = False  # train the head alone
    head_dropout: float = Field(0.1, ge=0, lt=1)
    out_dropout: float = Field(0.0, ge=0, lt=1)  # on the attention blocks' output
    optim: OptimSettings = OptimSettings()
    guard: GuardSettings = GuardSettings(spike_deviations=1e6)  # the loss of 16 examples jumps by nature; NaN is told
    compute: ComputeSettings = ComputeSettings()

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} and decay={self.decay} take more than the whole; shorten one")
        if self.compute.strategy == "fsdp":
            raise ValueError('compute.strategy="fsdp" is for pretraining; fine-tuning on several ranks takes "ddp"')
        if self.compute.compile:
            raise ValueError("compute.compile fills each batch up to one size, far beyond fine-tuning's; leave it out")
        names = self.names()
        if "run" in names:
            raise ValueError('a task is named "run", as the folder of the training is; choose another name')
        if len(set(names)) < len(names):
            raise ValueError(f"tasks are named {names}; give each its own name")
        return self

    def names(self) -> list[str]:
        """Of the tasks, in order."""
        return [task.name or task.kind for task in self.tasks]

    def resolve(self, *, num_examples: int, hidden_size: int) -> FinetuneRun:
        """Say what was left open.

        Args:
            num_examples: of the largest task's training set.
            hidden_size: of the model.
        """
        few, many = EPOCHS
        epochs = self.epochs or float(min(many, max(few, round(EXAMPLES / num_examples))))
        lr = self.lr or usual_lr(hidden_size)
        evaluations = self.evaluations or max(1, math.ceil(epochs))
        return self.model_copy(update={"epochs": epochs, "lr": lr, "evaluations": evaluations})

    def plan(self, total_tokens: int) -> TrainRun:
        """What the loop reads of a (resolved) run over so many tokens."""
        assert self.lr is not None and self.evaluations is not None
        if total_tokens < 1:
            raise ConfigError(f"epochs={self.epochs} of these examples come to no token at all; raise it")
        every = math.ceil(total_tokens / self.evaluations)
        phase = PhaseSettings(
            name=PHASE, tokens=total_tokens, sequence_length=min(8, self.micro_batch_tokens),
            tokens_per_step=self.micro_batch_tokens, micro_batch_tokens=self.micro_batch_tokens, lr=self.lr,
            warmup_tokens=round(self.warmup * total_tokens), decay_tokens=round(self.decay * total_tokens),
            decay_to=self.decay_to, decay_shape=self.decay_shape,
        )  # fmt: skip
        loop = LoopSettings(
            tokens=total_tokens, checkpoint_tokens=every, eval_tokens=every, keep_every=0, keep_last=1,
        )  # fmt: skip
        return TrainRun(
            seed=self.seed, optim=self.optim, loop=loop, guard=self.guard, compute=self.compute, phases=[phase]
        )
