"""Metrics rows → TensorBoard, W&B, Trackio: each behind a thread of its own, so that none can stop or slow a run.

    row → bounded queue → daemon thread: open, log, finish

Whatever goes wrong there (a package that is missing, an error, no answer) is one remark, and that tracker is off;
metrics.jsonl has everything anyhow. Price: a `put` a row. A run that goes on goes on in the same tracker's run.
"""

from __future__ import annotations

import math
import os
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

Row = Mapping[str, Any]

KINDS = ("train", "eval", "save")  # rows that trackers get
_PLACE = ("kind", "step", "phase", "tokens")  # keys that say where a number belongs, not what it is
_WAITING_ROWS = 1000  # of a tracker that does not answer, before it is off
_OPEN_SECONDS = 10.0  # a run waits so long for its trackers, once; later ones get their rows all the same
_UPLOAD_SECONDS = 20.0  # W&B may take at the very end, when the run is over


@dataclass(frozen=True)
class _Sink:
    """An open tracker."""

    log: Callable[[Row], None]
    finish: Callable[[], None]


class Trackers:
    """The trackers of a session.

    Example: `Trackers.start(["tensorboard"], run_folder, about, ids={}, remark=print)`.
    """

    def __init__(self, trackers: Sequence[_Tracker], ids: Mapping[str, str], remark: Callable[[str], None]) -> None:
        self._trackers, self._remark = trackers, remark
        self.ids = dict(ids)
        """What trackers know the run by, for run.json and for the session that goes on."""

    @classmethod
    def start(
        cls,
        names: Sequence[str],
        run_folder: Path,
        about: Mapping[str, Any],
        ids: Mapping[str, str],
        remark: Callable[[str], None],
    ) -> Self:
        """Open trackers, each in its thread.

        Args:
            names: of `tensorboard`, `wandb` and `trackio`.
            run_folder: the run's; TensorBoard and W&B write below it.
            about: run.json; its "recipe" is shown beside the curves.
            ids: what `ids` was in the session before; empty for a new run.
            remark: tells the user what is off, and why; is called in the caller's thread.
        """
        title = re.sub(r"[^\w.-]", "-", run_folder.absolute().name)[:64]  # W&B's ids have no / \ # ? % :
        known = {name: ids.get(name) or f"{title}-{uuid.uuid4().hex[:8]}" for name in names if name != "tensorboard"}
        trackers = [_Tracker(name, run_folder, about.get("recipe") or {}, known.get(name, "")) for name in names]
        deadline = time.monotonic() + _OPEN_SECONDS
        for tracker in trackers:
            tracker.opened.wait(max(0.0, deadline - time.monotonic()))
        started = cls(trackers, {**ids, **known}, remark)
        started._tell()
        return started

    def row(self, row: Row) -> None:
        """Pass on a line of metrics.jsonl; events are not for trackers."""
        if row.get("kind") in KINDS:
            for tracker in self._trackers:
                tracker.put(row)
        self._tell()

    def close(self, timeout: float = 5.0) -> None:
        """Let trackers finish, all of them within so many seconds."""
        for tracker in self._trackers:
            tracker.put(None)
        deadline = time.monotonic() + timeout
        for tracker in self._trackers:
            tracker.thread.join(max(0.0, deadline - time.monotonic()))
            if tracker.thread.is_alive():
                tracker.turn_off(f"did not finish within {timeout:g} s, so its last rows may be missing")
        self._tell()

    def _tell(self) -> None:
        for tracker in self._trackers:
            if tracker.problem is not None and not tracker.told:
                tracker.told = True
                self._remark(f"{tracker.name} {tracker.problem}; metrics.jsonl has everything")


class _Tracker:
    """One tracker and its thread."""

    def __init__(self, name: str, run_folder: Path, recipe: Mapping[str, Any], run_id: str) -> None:
        self.name = name
        self.opened = threading.Event()  # or failed to
        self.problem: str | None = None
        self.told = False
        self._queue: queue.Queue[Row | None] = queue.Queue(_WAITING_ROWS)
        self.thread = threading.Thread(
            target=self._work, args=(run_folder, recipe, run_id), name=f"tracker-{name}", daemon=True
        )
        self.thread.start()

    def put(self, row: Row | None) -> None:
        """Queue a row, or None for the end."""
        if self.problem is None:
            try:
                self._queue.put_nowait(row)
            except queue.Full:
                self.turn_off(f"does not answer ({_WAITING_ROWS:,} rows are waiting), so it is off")

    def turn_off(self, problem: str) -> None:
        """From now on rows pass it by. The first problem is the one to tell."""
        self.problem = self.problem or problem

    def _work(self, run_folder: Path, recipe: Mapping[str, Any], run_id: str) -> None:
        try:
            sink = _OPEN[self.name](run_folder, recipe, run_id)
            self.opened.set()
            while (row := self._queue.get()) is not None and self.problem is None:
                sink.log(row)
            sink.finish()
        except ModuleNotFoundError as error:
            self.turn_off(f"is off: package {error.name} is missing (pip install 'modernbert[{self.name}]')")
        except BaseException as error:  # noqa: BLE001 - whatever a tracker does, SystemExit included
            reason = " ".join(str(error).split())[:200]
            self.turn_off(f"is off: {type(error).__name__}: {reason}")
        finally:
            self.opened.set()


def numbers(row: Row) -> dict[str, float]:
    """What can be drawn of a row: finite numbers by phase, kind and name, as "stable/eval/by_source/wiki/loss"."""
    prefix = f"{row['phase']}/{row['kind']}"
    return dict(_flat(prefix, {name: value for name, value in row.items() if name not in _PLACE}))


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}/{key}", item)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping) and {"from", "to"} <= item.keys():  # a stretch of the context
                rest = {key: number for key, number in item.items() if key not in ("from", "to")}
                yield from _flat(f"{name}/{item['from']}-{item['to']}", rest)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _tensorboard(run_folder: Path, recipe: Mapping[str, Any], _run_id: str) -> _Sink:
    """Its x axis is tokens; steps are a curve."""
    from torch.utils.tensorboard import SummaryWriter

    writers: list[SummaryWriter] = []

    def log(row: Row) -> None:
        if not writers:  # what a killed session wrote beyond its last checkpoint is dropped: here the next one begins
            writers.append(SummaryWriter(str(run_folder / "tensorboard"), purge_step=row["tokens"]))
            writers[0].add_text("recipe", f"```\n{recipe}\n```", row["tokens"])
        for name, number in {**numbers(row), f"{row['phase']}/step": row["step"]}.items():
            writers[0].add_scalar(name, number, row["tokens"])

    def finish() -> None:
        for writer in writers:
            writer.close()

    return _Sink(log, finish)


def _wandb(run_folder: Path, recipe: Mapping[str, Any], run_id: str) -> _Sink:
    """Its x axis is tokens, or step at will. WANDB_PROJECT, WANDB_MODE=offline and the like work as ever."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
        raise PermissionError("nobody is logged in; run `wandb login`, or set WANDB_MODE=offline")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "modernbert"), name=run_folder.name, id=run_id, resume="allow",
        dir=str(run_folder), settings=wandb.Settings(silent=True, console="off", finish_timeout=_UPLOAD_SECONDS),
    )  # fmt: skip
    # A run that goes on may do so with other settings, of logging for one; W&B refuses that unless told.
    run.config.update(dict(recipe), allow_val_change=True)
    for name in ("tokens", "step"):
        run.define_metric(name)
    run.define_metric("*", step_metric="tokens")
    return _Sink(lambda row: run.log({**numbers(row), "tokens": row["tokens"], "step": row["step"]}), run.finish)


def _trackio(_run_folder: Path, recipe: Mapping[str, Any], run_id: str) -> _Sink:
    """TRACKIO_DIR and its other variables work as ever."""
    import trackio

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio":  # standard output is for results
            vars(module)["print"] = lambda *parts, **_more: sys.stderr.write(" ".join(map(str, parts)) + "\n")
    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "modernbert"), name=run_id, resume="allow", config=dict(recipe)
    )
    return _Sink(lambda row: run.log({**numbers(row), "tokens": row["tokens"]}, step=row["step"]), run.finish)


_OPEN: dict[str, Callable[[Path, Mapping[str, Any], str], _Sink]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio,
}  # fmt: skip
