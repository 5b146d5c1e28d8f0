"""Metrics of a run → `metrics.jsonl`, each step once whatever was interrupted, and the loss curve as PNG."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modernbert.disk import sync
from modernbert.train.checkpoint import CURVE_FILE, METRICS_FILE, writing

_BLOCK_BYTES = 2**16


class MetricsLog:
    """Appends one JSON object a line.

    Args:
        run: the run's folder.
        after_step: keep the lines up to this step and drop what an interrupted session wrote beyond it.
    """

    def __init__(self, run: Path, after_step: int) -> None:
        self.path = run / METRICS_FILE
        self._begin(after_step)

    def _begin(self, after_step: int) -> None:
        with writing(self.path.parent):
            _cut(self.path, after_step)
            self._file = self.path.open("a", encoding="utf-8")

    def drop_after(self, step: int) -> None:
        """Forget the lines beyond a step, as the run was set back to it."""
        self._file.close()
        self._begin(step)

    def write(self, row: dict[str, Any]) -> None:
        """Append a line and hand it to the operating system."""
        with writing(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Have all lines on the disk, as a checkpoint must not outlive the lines before it."""
        with writing(self.path):
            sync(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut(path: Path, after_step: int) -> None:
    """Drop the lines beyond a step, and one that was cut off. Looks at the end of the file alone, however long it is."""
    if not path.exists():
        return
    stop, late = path.stat().st_size, []
    for offset, row in _rows_from_behind(path):
        if row is not None and row["step"] <= after_step:
            if row["kind"] in ("train", "eval"):  # these lines rise with their steps; a save is told after later steps
                break
            late.append(row)
        stop = offset
    os.truncate(path, stop)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in reversed(late))
    sync(path)


def _rows_from_behind(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Where each line begins, and what it says; None for one that is no JSON object. The last line first."""
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            begin = max(0, end - _BLOCK_BYTES)
            file.seek(begin)
            lines = (file.read(end - begin) + rest).splitlines(keepends=True)
            at = begin + sum(map(len, lines))
            rest = lines.pop(0) if begin else b""  # its beginning is in the block before
            for line in reversed(lines):
                at -= len(line)
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                yield at, row if isinstance(row, dict) else None
            end = begin


def last_evaluation(run: Path) -> dict[str, Any] | None:
    """The newest row of kind `eval`."""
    rows = _rows_from_behind(run / METRICS_FILE) if (run / METRICS_FILE).exists() else ()
    return next((row for _, row in rows if row is not None and row["kind"] == "eval"), None)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without one that was cut off while being written."""
    return list(iter_metrics(run))


def iter_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """The same one by one: a month's run has hundreds of megabytes of them."""
    path = run / METRICS_FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return


def draw_curve(run: Path, references: dict[str, float] | None = None) -> Path:
    """Draw training and held-out loss over tokens.

    Args:
        run: the run's folder.
        references: losses to draw as level lines, by name.

    Returns:
        The PNG's path.
    """
    from matplotlib.figure import Figure  # half a second to import; and no window system is wanted

    points: dict[str, list[tuple[int, float]]] = {"train": [(0, math.nan)], "eval": [(0, math.nan)]}
    is_masked = False
    for row in iter_metrics(run):
        if row["kind"] in points:
            points[row["kind"]].append((row["tokens"], math.nan if row["loss"] is None else row["loss"]))
            is_masked = is_masked or row.get("mask_rate") is not None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points["train"], strict=True), lw=0.8, alpha=0.6, label="training")
    axes.plot(*zip(*points["eval"], strict=True), "o-", label="held out")
    for number, (name, loss) in enumerate(sorted((references or {}).items(), key=lambda item: -item[1])):
        axes.axhline(loss, ls="--", lw=1, color=f"C{number + 2}", label=f"{name}: {loss:.2f}")
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss at masked tokens (nats)" if is_masked else "loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1e6:g} M" if 0 < value < 1e9 else f"{value / 1e9:g} B" if value else "0"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    with writing(run):
        figure.savefig(run / CURVE_FILE, dpi=120)
    return run / CURVE_FILE
