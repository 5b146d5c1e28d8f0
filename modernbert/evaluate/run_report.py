"""RUN → what its report says, as plain data: `modernbert report --json`. `run_page` makes the page of it.

Everything is read from run.json, metrics.jsonl and the names of the checkpoint folders, also while the run goes on. What
an older run did not record is None, and the page says so. Price: some 10 s for the 400,000 steps of a month.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import modernbert
from modernbert.evaluate import curves
from modernbert.evaluate.run_rows import Bins, Row, RunRows, bin_steps, binned, plain, read_run, smoothed
from modernbert.model import hub
from modernbert.train.checkpoint import METRICS_FILE
from modernbert.train.guard import finite
from modernbert.train.loop import STARVED

_RECENT = 0.02  # the run's last share of tokens, for what is said of now
_MAX_EVALUATIONS = 300
_SHOWN_COLUMNS = (
    *("loss", "accuracy", "lr", "step_tokens", "mask_rate", "gradient_norm", "tokens_per_second", "mfu", "data_wait"),
    "filled",
)


def report(run: Path, against: Sequence[Path] = (), reference: str = "auto") -> dict[str, Any]:
    """All that a run's report says.

    Args:
        run: the run's folder.
        against: other runs, to overlay their losses.
        reference: a reference curve's name or file; "auto" for the one that fits, "none".

    Raises:
        CheckpointError: a folder holds no run.
        ConfigError: no such reference.
    """
    rows = read_run(run)
    bins = bin_steps(rows)
    parameters = curves.count_parameters(run)
    if reference == "auto":
        curve = curves.fitting_curve(rows, parameters)
    else:
        curve = None if reference == "none" else curves.load_curve(reference)
    about = rows.about
    return finite({
        "run": rows.name,
        "modernbert": modernbert.__version__,
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "headline": _headline(run, rows, parameters),
        "remarks": _remarks(rows),
        "reference": None if curve is None else {**curves.compare(rows, curve), "curve": curve},
        "phases": _phases(rows),
        "curves": _curves(rows, bins),
        "steps_per_bin": bins.steps_per_bin,
        "evaluations": _thinned(rows.evaluations),
        "checkpoints": _checkpoints(run, rows),
        "events": rows.events,
        "sessions": about.get("sessions"),
        "changes": [
            f"session {number}: {change}"
            for number, session in enumerate(about.get("sessions") or [], start=1)
            for change in session.get("changes") or []
        ],
        "environment": about.get("environment") or {},
        "peak_flops": about.get("peak_flops"),
        "peak_source": about.get("peak_source"),
        "data": about.get("data"),
        "recipe": about["recipe"],
        "against": [_other(path) for path in against],
    })  # fmt: skip


def sentences(found: dict[str, Any]) -> list[str]:
    """What a terminal shows of a report: where the run stands, the verdict, and remarks."""
    head = found["headline"]
    losses = {"training": head["train_loss"], "held-out": head["heldout_loss"]}
    told = ", ".join(f"{name} loss {loss:.3f}" for name, loss in losses.items() if loss is not None)
    line = (
        f"{found['run']}: {head['status']}, {head['tokens'] / 1e6:,.2f} of {head['total_tokens'] / 1e6:,.2f} M tokens"
    )
    verdict = [found["reference"]["sentence"]] if found["reference"] else []
    return [f"{line}, {told}" if told else line, *verdict, *(remark["text"] for remark in found["remarks"])]


def _headline(run: Path, rows: RunRows, parameters: int | None) -> dict[str, Any]:
    steps, total = rows.steps, sum(phase["tokens"] for phase in curves.phase_settings(rows.about["recipe"]))
    status = rows.about.get("status") or "unfinished"
    last = rows.evaluations[-1] if rows.evaluations else None
    metrics = run / METRICS_FILE
    written = datetime.datetime.fromtimestamp(metrics.stat().st_mtime, datetime.UTC) if metrics.exists() else None
    found: dict[str, Any] = {
        "status": status, "tokens": rows.tokens, "total_tokens": total, "parameters": parameters, "step": 0, "phase": None,
        "train_loss": None, "heldout_loss": last and last["loss"], "heldout_accuracy": last and last.get("accuracy"),
        "heldout_at": last and last["tokens"], "tokens_per_second": None, "seconds": None, "seconds_left": None,
        "last_row_at": written and written.isoformat(timespec="seconds"),
    }  # fmt: skip
    if not rows.phases:
        return found
    recent = slice(int(np.searchsorted(steps["tokens"], rows.tokens * (1 - _RECENT))), None)
    pace = _pace(steps["step_tokens"][recent], steps["tokens_per_second"][recent])
    end = np.array([rows.tokens]), rows.phase[-1:]
    found |= {
        "step": int(steps["step"][-1]), "phase": rows.phases[int(rows.phase[-1])],
        "train_loss": plain(smoothed(rows, *end))[0], "tokens_per_second": pace,
        "seconds": plain(steps["seconds"][-1:])[0],
    }  # fmt: skip
    if status != "finished" and pace:
        found["seconds_left"] = max(0, total - rows.tokens) / pace
    return found


def _pace(tokens: np.ndarray, tokens_per_second: np.ndarray) -> float | None:
    """Tokens over seconds: what a mean of the rates would overstate."""
    known = np.isfinite(tokens) & (tokens_per_second > 0)
    seconds = (tokens[known] / tokens_per_second[known]).sum()
    return float(tokens[known].sum() / seconds) if seconds > 0 else None


def _remarks(rows: RunRows) -> list[dict[str, str]]:
    """Sentences that a reader must not miss, each "warning" or "note"."""
    found = []
    waits, rate = rows.steps["data_wait"], rows.steps["tokens_per_second"]
    seconds = np.divide(rows.steps["step_tokens"], rate, out=np.zeros_like(rate), where=rate > 0)
    late = slice(int(len(waits) * 0.9), None)
    for part, when in ((slice(None), "Over the whole run"), (late, "In the last tenth of its steps")):
        known = np.isfinite(waits[part]) & np.isfinite(seconds[part])
        total = seconds[part][known].sum()
        share = float((waits[part][known] * seconds[part][known]).sum() / total) if total > 0 else 0.0
        if share > STARVED:
            workers = rows.about["recipe"].get("data", {}).get("workers", 0)
            found.append({"kind": "warning", "text":
                f"{when}, data was the bottleneck: {share:.0%} of the time of steps was spent waiting for it. Raise "
                f"data.workers (now {workers}), or bring the shards onto a faster disk; losses stay the same."})  # fmt: skip
            break
    counts = {
        kind: sum(row.get("event") == kind for row in rows.events) for kind in ("nan", "spike", "rollback", "skip")
    }
    if any(counts.values()):
        listed = ", ".join(f"{count:,} × {kind}" for kind, count in counts.items() if count)
        found.append({"kind": "note", "text": f"The guard of the run acted or noted: {listed}; see the events."})
    return found


def _phases(rows: RunRows) -> list[dict[str, Any]]:
    """Of each phase of the recipe: what it was to do, and what it did."""
    spans = dict(rows.spans())
    found = []
    for settings in curves.phase_settings(rows.about["recipe"]):
        span = spans.get(settings["name"])
        evaluations = [row for row in rows.evaluations if row.get("phase") == settings["name"]]
        done: dict[str, Any] = {
            "done": 0, "steps": 0, "begins": None, "seconds": None, "tokens_per_second": None,
            "loss_first": None, "loss_last": None,
            "heldout_first": evaluations[0]["loss"] if evaluations else None,
            "heldout_last": evaluations[-1]["loss"] if evaluations else None,
        }  # fmt: skip
        if span is not None:
            tokens, seconds = rows.steps["tokens"], rows.steps["seconds"]
            begins = tokens[span.start - 1] if span.start else 0.0
            before = seconds[span.start - 1] if span.start else 0.0
            ends = np.array([tokens[span.start], tokens[span.stop - 1]])
            first, last = plain(smoothed(rows, ends, rows.phase[[span.start, span.stop - 1]]))
            done |= {
                "done": int(tokens[span.stop - 1] - begins), "steps": span.stop - span.start, "begins": int(begins),
                "seconds": plain([seconds[span.stop - 1] - before])[0], "loss_first": first, "loss_last": last,
                "tokens_per_second": _pace(rows.steps["step_tokens"][span], rows.steps["tokens_per_second"][span]),
            }  # fmt: skip
        found.append(settings | done)
    return found


def _curves(rows: RunRows, bins: Bins) -> dict[str, Any]:
    """`tokens` and `phase` of each bin, and of each column its mean, lowest and highest; None where not recorded."""
    found: dict[str, Any] = {
        "tokens": plain(bins.tokens),
        "phase": [rows.phases[index] for index in bins.phase],
        "smoothed_loss": plain(smoothed(rows, bins.tokens, bins.phase)),
    }
    for name in _SHOWN_COLUMNS:
        column = rows.steps[name]
        found[name] = binned(column, bins) if np.isfinite(column).any() else None
    return found


def _thinned(rows: list[Row]) -> list[Row]:
    """At most some 300, the first and last of each phase among them."""
    every = -(-len(rows) // _MAX_EVALUATIONS) or 1
    return [
        row
        for index, row in enumerate(rows)
        if index % every == 0
        or any(not 0 <= i < len(rows) or rows[i].get("phase") != row.get("phase") for i in (index - 1, index + 1))
    ]


def _checkpoints(run: Path, rows: RunRows) -> list[dict[str, Any]]:
    """Saves and folders, by step; `there` says whether the folder still is."""
    there = {path.name for path in hub.checkpoints_in(run)}
    saves = {row["checkpoint"]: row for row in rows.saves}
    looks = {(row["step"], row.get("phase")): row for row in rows.evaluations}
    tokens = dict(zip(rows.steps["step"].astype(int).tolist(), rows.steps["tokens"].astype(int).tolist(), strict=True))
    found = []
    for name in there | saves.keys():
        phase, _, digits = name.rpartition("-")
        row, step = saves.get(name, {}), int(digits)
        found.append({
            "name": name, "step": step, "tokens": row.get("tokens", tokens.get(step, None if step else 0)),
            "heldout_loss": looks.get((step, phase), {}).get("loss"), "stall_seconds": row.get("stall_seconds"),
            "write_seconds": row.get("write_seconds"), "there": name in there,
        })  # fmt: skip
    return sorted(found, key=lambda checkpoint: (checkpoint["step"], checkpoint["tokens"] or 0))


def _other(run: Path) -> dict[str, Any]:
    """What is overlaid of another run."""
    rows = read_run(run)
    bins = bin_steps(rows)
    return {
        "run": rows.name,
        "headline": _headline(run, rows, curves.count_parameters(run)),
        "tokens": plain(bins.tokens),
        "phase": [rows.phases[index] for index in bins.phase],
        "smoothed_loss": plain(smoothed(rows, bins.tokens, bins.phase)),
        "evaluations": [
            {key: row.get(key) for key in ("tokens", "phase", "loss")} for row in _thinned(rows.evaluations)
        ],
    }
