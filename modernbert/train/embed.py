"""What the fine-tuning of an embedder says: its data, its loss, and how long and how fast to learn."""

from __future__ import annotations

from typing import Literal, Self

import pydantic
from pydantic import Field

from modernbert.model.config import PRESETS
from modernbert.settings import Settings
from modernbert.tasks.embed import Pooling
from modernbert.text.pairs import Shape
from modernbert.train.recipe import OptimSettings, PathText

Loss = Literal["auto", "in-batch", "cached", "cosent", "cosine", "margin-mse", "distill"]

LOSS_OF: dict[Shape, Loss] = {
    "pairs": "in-batch", "triplets": "in-batch", "scored": "cosent", "margins": "margin-mse", "texts": "distill",
}  # fmt: skip
"""The usual loss for each kind of data."""
TAKEN: dict[Loss, tuple[Shape, ...]] = {
    "in-batch": ("pairs", "triplets"), "cached": ("pairs", "triplets"), "cosent": ("scored",), "cosine": ("scored",),
    "margin-mse": ("margins",), "distill": ("texts", "pairs", "triplets", "scored", "margins"),
}  # fmt: skip
"""The kinds of data that each loss takes; of a teacher only texts are wanted, so any file has them."""


class EmbedRun(Settings):
    """A whole fine-tuning of an embedder."""

    model: PathText  # a checkpoint folder, a run folder, an address or a hub name; with a teacher also a preset: a new student
    train: PathText  # a file of pairs, triplets, scored pairs or texts; or a folder in BEIR's form
    validation: PathText | None = None  # a tenth of `train`, at most 1,000 rows, if not given
    teacher: PathText | None = None  # an embedder whose vectors are learnt; needs no labels
    loss: Loss = "auto"  # by the data if not given
    pooling: Pooling | None = None  # the mean; of an embedder that goes on, its own
    max_length: int | None = Field(None, ge=8)  # tokens of a text, special ones included; 256, or what the model takes
    matryoshka: list[int] = Field(default_factory=list)  # dimensions that are to serve alone, too
    query_prompt: str | None = None  # before an anchor, or a query; of an embedder that goes on, its own if not given
    document_prompt: str | None = None  # before any other text; likewise
    scale: float = Field(20.0, gt=0)  # of cosines in contrastive and margin losses: one over the temperature
    seed: int = Field(0, ge=0, lt=2**31)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(64, ge=2)  # rows of a step: of the in-batch losses, how many negatives there are
    mini_batch_size: int = Field(32, ge=1)  # rows that `cached` computes at once
    max_examples: int | None = Field(None, ge=2)  # of `train`, drawn by the seed; all if not given
    lr: float | None = Field(None, gt=0, le=1)  # as of `finetune`, by the model's width, if not given
    warmup: float = Field(0.1, ge=0, le=1)  # share of all steps
    evaluations: int = Field(4, ge=1)  # in all, evenly spread
    optim: OptimSettings = OptimSettings()

    @property
    def is_new_student(self) -> bool:
        """Whether a shape is to learn, rather than a checkpoint; a folder of that name goes by its absolute path."""
        return self.teacher is not None and self.model in PRESETS

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.loss == "distill") != (self.teacher is not None) and self.loss != "auto":
            raise ValueError(
                f"loss={self.loss} and teacher={self.teacher}: distillation has a teacher, and no other loss has"
            )
        if min(self.matryoshka, default=1) < 1:
            raise ValueError(f"matryoshka={self.matryoshka} must be numbers of dimensions")
        return self
