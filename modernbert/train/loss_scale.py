"""float16's narrow range → a factor that keeps gradients inside it: scaled(loss).backward() → unscale_ → update.

float16 ends at 65,504 below and at 6e-8 above zero, where many gradients of a mean loss lie. The loss is multiplied by a
scale before the backward pass and the gradients, in float32 by then, are divided by it behind it. Where one overflowed, the
step is left out and the scale halved; after 2,000 steps without, it is doubled: the rule and the numbers of
`torch.amp.GradScaler`, with which tests compare it step by step. bfloat16 has float32's range and needs none of this.

Why not GradScaler itself: its scale has no lower end, so that a model that is broken is skipped for ever, the scale going to
zero; and it looks for infinities in a pass and with a wait of its own, where a run takes the norm of all gradients in any
case. (That its check is one of each device is no reason: with DTensors, FSDP2's, PyTorch 2.13 reduces it over ranks.) Here
`update` is told whether that norm was finite. It is the same number on every rank, so all of them keep the same scale.

Order in a step: a loss that is not finite is no fault of the scale, which acts behind it; then `exhausted`, then `update`.
Price: one multiplication of all gradients in place, no synchronization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

LEAST = 1.0  # a scale of which gradients are those of the loss itself
LARGEST = 2.0**127  # in float32, as GradScaler keeps it
GOOD_STEPS = 2_000  # in a row, before the scale is doubled


@dataclass(slots=True)
class LossScale:
    """How much the loss is scaled by, and for how long that has gone well."""

    scale: float = 2.0**16
    good_steps: int = 0  # since the scale was last changed

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> Self | None:
        """A new one where products in `dtype` need it, None elsewhere."""
        return cls() if dtype == torch.float16 else None

    @property
    def exhausted(self) -> bool:
        """Whether gradients that are not finite now are so by themselves: the scale cannot be lowered any more."""
        return self.scale <= LEAST

    def scaled(self, loss: Tensor) -> Tensor:
        """What to call `backward` on."""
        return loss * self.scale

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Divide in place, once a step, when all micro-batches have been added up. DTensors as well, but not both kinds."""
        if gradients:
            # A power of two, so that nothing is rounded.
            torch._foreach_mul_(list(gradients), 1.0 / self.scale)

    def update(self, finite: bool) -> None:
        """Take note of a step: whether all of its gradients, of all ranks, were finite. If not, the step is left out."""
        if not finite:
            self.scale, self.good_steps = max(self.scale / 2, LEAST), 0
            return
        self.good_steps += 1
        if self.good_steps == GOOD_STEPS:
            self.scale, self.good_steps = min(self.scale * 2, LARGEST), 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """The way back from `to_dict`."""
        return cls(scale=float(state["scale"]), good_steps=int(state["good_steps"]))
