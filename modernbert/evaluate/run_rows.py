"""RUN/metrics.jsonl → columns of its steps, lists of the rest, and steps binned by tokens for drawing.

A month's run has 400,000 steps: they are read line by line into columns of numbers (some 3 s and 50 MB), and a picture
gets a few hundred bins. A bin lies within one phase and keeps the mean, the lowest and the highest value.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from modernbert.errors import CheckpointError
from modernbert.train.checkpoint import METRICS_FILE, RUN_FILE, read_about
from modernbert.train.log import iter_metrics

Row: TypeAlias = dict[str, Any]
Column: TypeAlias = np.ndarray

COLUMNS = (
    *("step", "tokens", "loss", "accuracy", "targets", "lr", "mask_rate", "tokens_per_second", "data_wait", "mfu"),
    *("step_tokens", "filled", "gradient_norm", "seconds"),
)
PHASE_KEYS = ("sequence_length", "tokens_per_step", "lr", "mask_rate")  # what a loss depends on
NUM_BINS = 300  # over the whole run
MIN_BINS = 40  # of each phase, however short
SMOOTHED_SHARE = 0.02  # of the run's tokens, over which a loss is averaged


@dataclass(frozen=True)
class RunRows:
    """What a run's folder records.

    Attributes:
        name: the folder's.
        about: run.json.
        steps: a column for each of COLUMNS, NaN where a row does not have it (a skipped step has no loss).
        phase: index into `phases` of each step.
        phases: names, in the order in which they were trained.
        evaluations, saves, events: rows of the other kinds, in order.
    """

    name: str
    about: dict[str, Any]
    steps: dict[str, Column]
    phase: Column
    phases: list[str]
    evaluations: list[Row]
    saves: list[Row]
    events: list[Row]

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        return int(self.steps["tokens"][-1]) if len(self.phase) else 0

    def spans(self) -> list[tuple[str, slice]]:
        """Each phase and its steps."""
        cuts = [*np.flatnonzero(np.diff(self.phase, prepend=-1)), len(self.phase)]
        return [(self.phases[int(self.phase[a])], slice(int(a), int(b))) for a, b in itertools.pairwise(cuts)]


def read_run(run: Path) -> RunRows:
    """Read a run's folder, also while it is being trained.

    Raises:
        CheckpointError: it holds no run, or a damaged one.
    """
    if not (run / RUN_FILE).is_file():
        raise CheckpointError(f"{run} holds no {RUN_FILE}; give the --out folder of `modernbert pretrain`")
    about = read_about(run)
    if (fault := _fault_of(about)) is not None:
        raise CheckpointError(f"{run / RUN_FILE} is damaged: {fault}; copy a run.json from a checkpoint's folder")
    steps, phase, phases, others = _read_rows(run)
    return RunRows(
        name=run.resolve().name, about=about, steps=steps, phase=phase, phases=phases, evaluations=others["eval"],
        saves=others["save"], events=others["event"],
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fault_of(about: dict[str, Any]) -> str | None:
    """What of run.json a report could not be made of."""
    recipe = about["recipe"]
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(key), dict) for key in ("model", "loop")):
        return "its recipe has no model and loop"
    if not isinstance(recipe.get("data") or {}, dict):
        return "its recipe's data is no table"
    phases = recipe.get("phases")
    if not isinstance(phases, list) or not all(isinstance(p, dict) and isinstance(p.get("name"), str) for p in phases):
        return "its recipe's phases are no list of named ones"
    numbers = [p.get(key) for p in phases for key in PHASE_KEYS] + [recipe["loop"].get("tokens")]
    if not all(value is None or _is_number(value) for value in numbers):
        return f"one of {', '.join(PHASE_KEYS)} and loop.tokens is no number"
    amounts = [p.get("tokens", 0) for p in phases]
    if not all(_is_number(amount) or re.fullmatch(r"\d+(\.\d+)?%", str(amount)) for amount in amounts):
        return "a phase's tokens are no number"
    if not isinstance(about.get("environment") or {}, dict):
        return "its environment is no table"
    sessions = about.get("sessions") or []
    if not isinstance(sessions, list) or not all(map(_is_session, sessions)):
        return "its sessions are no list of such"
    return None


def _is_session(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("environment") or {}, dict)
        and isinstance(value.get("changes") or [], list)
        and isinstance(value.get("started_at") or "", str)
        and all(value.get(key) is None or _is_number(value[key]) for key in ("from_step", "from_tokens"))
    )


# What a row of each kind must say, in numbers; anything else that is known may be None or missing.
_NEEDED = {
    "train": ("step", "tokens"), "skipped": ("step", "tokens"), "eval": ("step", "tokens", "loss"), "save": ("step",),
    "event": ("step", "tokens"),
}  # fmt: skip


def _is_sound(row: Any) -> bool:
    """Whether a line of metrics is one that a report can be made of; rows of kinds that are not known are."""
    if not isinstance(row, dict) or not isinstance(row.get("phase") or "", str):
        return False
    kind = row.get("kind")
    needed = _NEEDED.get(kind, ()) if isinstance(kind, str) else ()
    if not all(_is_number(row.get(key)) for key in needed):
        return False
    if not all(row.get(key) is None or _is_number(row[key]) for key in (*COLUMNS, "stall_seconds", "write_seconds")):
        return False
    if kind == "save":
        return isinstance(row.get("checkpoint"), str) and row["checkpoint"].rpartition("-")[2].isdecimal()
    sources, positions = row.get("by_source") or {}, row.get("by_position") or []
    return (
        isinstance(sources, dict)
        and all(isinstance(scores, dict) and _is_number(scores.get("loss")) for scores in sources.values())
        and isinstance(positions, list)
        and all(
            isinstance(bucket, dict) and all(_is_number(bucket.get(key)) for key in ("from", "to", "targets"))
            and (_is_number(bucket.get("loss")) or not bucket["targets"])
            for bucket in positions
        )
    )  # fmt: skip


def _read_rows(run: Path) -> tuple[dict[str, Column], Column, list[str], dict[str, list[Row]]]:
    columns = {name: array("d") for name in COLUMNS}
    indices, phases = array("q"), dict[str, int]()
    others: dict[str, list[Row]] = {"eval": [], "save": [], "event": []}
    try:
        for number, row in enumerate(iter_metrics(run), start=1):
            if not _is_sound(row):
                raise CheckpointError(
                    f"{run / METRICS_FILE} is damaged: its line {number} is no row of a run; delete it, or restore the file"
                )
            if row.get("kind") in ("train", "skipped"):
                for name, column in columns.items():
                    value = row.get(name)
                    column.append(float("nan") if value is None else value)
                indices.append(phases.setdefault(row.get("phase") or "", len(phases)))
            elif row.get("kind") in others:
                others[row["kind"]].append(row)
    except OSError as error:
        raise CheckpointError(f"{run / METRICS_FILE} cannot be read ({error.strerror}); restore it") from error
    steps = {name: np.array(column, dtype=float) for name, column in columns.items()}
    return steps, np.array(indices, dtype=int), list(phases), others


@dataclass(frozen=True)
class Bins:
    """Steps grouped by tokens, never across phases."""

    starts: Column  # the first step of each bin
    tokens: Column  # the middle of each
    phase: Column  # index of each
    steps_per_bin: int  # in the fullest


def bin_steps(rows: RunRows, num_bins: int = NUM_BINS, min_bins: int = MIN_BINS) -> Bins:
    """Some `num_bins` bins of equal tokens; a short phase has `min_bins`, and bins never outnumber steps."""
    tokens = rows.steps["tokens"]
    starts: list[int] = []
    for _, span in rows.spans():
        first, last = (tokens[span.start - 1] if span.start else 0.0), tokens[span.stop - 1]
        wanted = max(min_bins, round(num_bins * (last - first) / max(tokens[-1], 1)))
        found = np.unique(np.searchsorted(tokens[span], np.linspace(first, last, wanted + 1)[:-1], side="right"))
        starts += (found[found < span.stop - span.start] + span.start).tolist()
    if not starts:
        empty = np.array([])
        return Bins(np.array([], dtype=int), empty, np.array([], dtype=int), 0)
    at = np.array(starts)
    counts = np.diff(np.append(at, len(tokens)))
    return Bins(at, np.add.reduceat(tokens, at) / counts, rows.phase[at], int(counts.max()))


def binned(values: Column, bins: Bins) -> dict[str, list[float | None]]:
    """Mean, lowest and highest of each bin; None where no step has a finite value."""
    if not len(bins.starts):
        return {"mean": [], "low": [], "high": []}
    finite = np.isfinite(values)
    masked = np.where(finite, values, np.nan)
    counts = np.add.reduceat(finite.astype(float), bins.starts)
    sums = np.add.reduceat(np.where(finite, values, 0.0), bins.starts)
    mean = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return {
        "mean": plain(mean),
        "low": plain(np.fmin.reduceat(masked, bins.starts)),
        "high": plain(np.fmax.reduceat(masked, bins.starts)),
    }


def smoothed(rows: RunRows, at: Column, phase: Column, name: str = "loss") -> Column:
    """A column around some token counts: its mean over targets within 1 % of the run to either side, in that phase."""
    result = np.full(len(at), np.nan)
    half = SMOOTHED_SHARE / 2 * max(rows.tokens, 1)
    for phase_name, span in rows.spans():
        tokens, values, targets = (rows.steps[key][span] for key in ("tokens", name, "targets"))
        weights = np.where(np.isfinite(values), np.nan_to_num(targets, nan=1.0), 0.0)
        sums, totals = (
            np.concatenate([[0.0], np.cumsum(column)]) for column in (np.nan_to_num(values) * weights, weights)
        )
        asked = np.flatnonzero(phase == rows.phases.index(phase_name))
        low = np.searchsorted(tokens, at[asked] - half)
        high = np.searchsorted(tokens, at[asked] + half, side="right")
        low, high = np.minimum(low, len(tokens) - 1), np.maximum(high, np.minimum(low, len(tokens) - 1) + 1)
        weight = totals[high] - totals[low]
        result[asked] = np.divide(sums[high] - sums[low], weight, out=np.full(len(asked), np.nan), where=weight > 0)
    return result


def plain(values: Column | Sequence[float]) -> list[float | None]:
    """Numbers for JSON, six digits each, None where not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
