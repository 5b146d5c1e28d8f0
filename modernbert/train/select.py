"""Evaluations → the best one, and whether to end because none has been better for a while."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modernbert.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How the best evaluation of a run is told.

    Args:
        metric: its name among an evaluation's scores.
        higher_is_better: false for a loss.
        patience: evaluations without a better one behind which the run ends; None for never.
        keep: takes the weights of the best so far and their step, on the first rank; they change with the next step.
    """

    metric: str
    higher_is_better: bool
    patience: int | None
    keep: Callable[[dict[str, Tensor], int], None]

    def see(
        self, best: dict[str, Any] | None, scores: Mapping[str, Any], step: int
    ) -> tuple[dict[str, Any] | None, bool]:
        """Take in an evaluation.

        Returns:
            The best so far, as plain data, and whether this is it. Of equals the one with the lower loss is, or the first.

        Raises:
            TrainingError: the scores do not have the metric.
        """
        if self.metric not in scores:
            known = ", ".join(name for name, value in scores.items() if isinstance(value, int | float))
            raise TrainingError(f"metric={self.metric} is none of this task's: {known}; choose one of them")
        value = scores[self.metric]
        if value is None or not math.isfinite(value):
            raise TrainingError(
                f"{self.metric} is {value} behind step {step:,}, and the best weights are told by it; choose another metric"
            )
        loss = scores.get("loss")
        sign = 1 if self.higher_is_better else -1
        if best is None or (sign * value, *_less(loss)) > (sign * best["value"], *_less(best["loss"])):
            is_progress = best is None or value != best["value"]  # a lower loss alone is none
            since = 0 if is_progress or best is None else best["since"] + 1
            return {"metric": self.metric, "value": value, "loss": loss, "step": step, "since": since}, True
        return best | {"since": best["since"] + 1}, False

    def is_enough(self, best: Mapping[str, Any] | None) -> bool:
        """Whether so many evaluations have passed without a better one."""
        return self.patience is not None and best is not None and best["since"] >= self.patience


def _less(loss: float | None) -> tuple[float, ...]:
    """How a loss ranks among equals, where there is one."""
    return () if loss is None or not math.isfinite(loss) else (-loss,)
