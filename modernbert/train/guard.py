"""Losses of steps → which one went wrong, and where, in one sentence: the step, the layer, the documents.

Judging costs two medians of recent losses a step (10 µs for 128 of them). What went wrong is looked for, when it has,
by `suspects`; whatever fails there is a clause of the sentence, never an error.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, TypeAlias, TypeVar

from modernbert.batch import PackedBatch
from modernbert.runtime import Runtime
from modernbert.tasks.base import EncoderModel
from modernbert.train.recipe import GuardSettings
from modernbert.train.suspects import DocumentLoss, Loud, first_bad_layer, loudest_layer, worst_documents

T = TypeVar("T")
NameOf: TypeAlias = Callable[[int, int], str]

# Losses seen before any is judged: with 32 the standard error of a deviation found so is 20 %.
_ENOUGH = 32
# A deviation is taken to be at least 0.02 nats + 1 % of the median. The loss of a target varies by 2 to 3 nats, so that
# of a step of 250,000 targets by 0.005, and ten times that is no news. Ten times the floor is: 0.4 nats at a loss of 2,
# 1.3 at 11.
_FLOOR_NATS, _FLOOR_SHARE = 0.02, 0.01
_NORMAL = 1.4826  # the standard deviation of normal numbers over their median absolute deviation


class SpikeDetector:
    """Judges each step's loss by the median and the spread of those before it; a lasting rise is judged once.

    A loss that rises slowly, or falls, is none of its business. What it has seen is plain numbers, so that a resumed
    run judges as the unbroken one does.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self._recent: deque[float] = deque(maxlen=settings.spike_window)

    def see(self, loss: float) -> float | None:
        """Judge the loss of a step, in nats.

        A spike is remembered only where its step is taken (`on_spike = "note"`): what was never learnt from must not
        make the next one look usual. One that follows a remembered spike at the same height is no news.

        Returns:
            None where nothing is new, else how many robust deviations it lies above the median; infinity for NaN.
        """
        if not math.isfinite(loss):
            return math.inf
        height, limit = self._height(loss), self.settings.spike_deviations
        is_spike = height > limit
        goes_on = is_spike and self._height(self._recent[-1]) > limit
        if not is_spike or self.settings.on_spike == "note":
            self._recent.append(loss)
        return height if is_spike and not goes_on else None

    def _height(self, loss: float) -> float:
        """Deviations above the median; 0 before enough has been seen."""
        if len(self._recent) < min(_ENOUGH, self.settings.spike_window):
            return 0.0
        median = statistics.median(self._recent)
        spread = _NORMAL * statistics.median(abs(seen - median) for seen in self._recent)
        return (loss - median) / max(spread, _FLOOR_NATS + _FLOOR_SHARE * median)

    @property
    def median(self) -> float | None:
        """Of the losses remembered, in nats; None before the first."""
        return statistics.median(self._recent) if self._recent else None

    def forget(self) -> None:
        """Begin anew: another phase has other text, lengths and masks, and so another loss."""
        self._recent.clear()

    def state(self) -> list[float]:
        """What it remembers, oldest first."""
        return list(self._recent)

    @classmethod
    def from_state(cls, settings: GuardSettings, state: Sequence[float]) -> Self:
        """The way back from `state`; a smaller window keeps the latest."""
        detector = cls(settings)
        detector._recent.extend(state)
        return detector


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of a step that went wrong."""

    step: int
    loss: float
    deviations: float | None = None  # above the median of recent losses; None where loss or gradient is not finite
    median: float | None = None  # of recent losses
    layer: str | None = None  # where the first value is that is not finite
    loudest: Loud | None = None
    documents: list[DocumentLoss] = field(default_factory=list)  # worst first
    failures: list[str] = field(default_factory=list)  # of the diagnosis

    def sentence(self, action: str) -> str:
        """All of it for a person, closing with what was done about it, "skipped" for example."""
        parts = [f"step {self.step:,}: loss {self.loss:.4g}"]
        if self.deviations is not None:
            usual = "" if self.median is None else f" {self.median:.4g}"
            parts[0] += f", {self.deviations:.0f} deviations above the recent median{usual}"
        elif math.isfinite(self.loss):
            parts[0] += ", gradients not finite"
        if self.layer is not None:
            parts.append(f"the first value that is not finite is in {self.layer}")
        elif self.deviations is None and not self.failures:
            parts.append("computed once more it is finite, so look at the hardware, or at what dropout drew")
        if self.loudest is not None:
            name, norm, share = self.loudest
            parts.append(f"the loudest gradient is that of {name} (norm {norm:.3g}, {share:.2g} of its weights')")
        if self.documents:
            parts.append("documents: " + ", ".join(f"{d.name} (loss {d.loss:.4g})" for d in self.documents))
        return "; ".join([*parts, *self.failures, action])

    def row(self, event: str, action: str) -> dict[str, Any]:
        """The keys of an event's line in metrics.jsonl; a number that is not finite is None there, as JSON has none."""
        values = asdict(self) | {"loudest": None if self.loudest is None else self.loudest._asdict()}
        del values["failures"]  # the text has them
        return {"kind": "event", "event": event, "text": self.sentence(action), **finite(values)}


def diagnose(
    task: EncoderModel,
    batches: Sequence[PackedBatch],
    runtime: Runtime,
    *,
    step: int,
    loss: float,
    deviations: float | None = None,
    median: float | None = None,
    name_of: NameOf | None = None,
) -> Verdict:
    """Find layer and documents of a step that went wrong; never raises.

    Args:
        task: as it was before the step was taken, the step's gradients still in place for the loudest of them.
        batches: the step's micro-batches, labelled.
        runtime: device and precision.
        step: its number.
        loss: its loss, in nats.
        deviations: what `SpikeDetector.see` said; None or infinity where loss or gradient is not finite.
        median: `SpikeDetector.median`.
        name_of: (micro-batch, document in it) → what a person finds the document by; its place and first words if
            not given.
    """
    failures: list[str] = []

    def tried(what: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except Exception as error:  # noqa: BLE001 - whatever it is, a run must not die of its diagnosis
            failures.append(f"{what} could not be found ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
            return None

    layer, loudest = None, None
    if deviations is None or not math.isfinite(deviations):
        deviations = None
        layer = tried("the layer", lambda: first_bad_layer(task, batches, runtime))
    else:
        loudest = tried("the loudest gradient", lambda: loudest_layer(task))
    is_gone = deviations is None and layer is None and not failures  # computed once more it is finite
    documents = [] if is_gone else tried("the documents", lambda: worst_documents(task, batches, runtime)) or []

    def named() -> list[DocumentLoss]:
        assert name_of is not None
        return [replace(d, name=name_of(d.micro_batch, d.document)) for d in documents]

    if name_of is not None:
        documents = tried("where documents are from", named) or documents
    return Verdict(
        step=step, loss=loss, deviations=deviations, median=median, layer=layer, loudest=loudest, documents=documents,
        failures=failures,
    )  # fmt: skip


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """Make one of what several ranks found, each in its own micro-batches of the same step."""
    documents = [document for verdict in verdicts for document in verdict.documents]
    worst = sorted(documents, key=lambda d: -d.loss * d.targets if math.isfinite(d.loss) else -math.inf)
    return replace(
        verdicts[0],
        layer=next((verdict.layer for verdict in verdicts if verdict.layer is not None), None),
        documents=worst[: max(len(verdict.documents) for verdict in verdicts)],
        failures=list(dict.fromkeys(failure for verdict in verdicts for failure in verdict.failures)),
    )


def finite(value: Any) -> Any:
    """Plain data with None for numbers that JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value
