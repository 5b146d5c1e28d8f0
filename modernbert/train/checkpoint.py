"""The folder of a run: what is written when, and how a run that was cut off goes on.

    RUN/run.json                    resolved recipe, environment, status
    RUN/metrics.jsonl               a line a step and an evaluation
    RUN/loss.png                    the curve
    RUN/stable-00001000/            a checkpoint: what transformers opens, run.json, and
    RUN/stable-00001000/state/      optimizer (`state`), where the data stands

A checkpoint folder appears under its name when all of it is on disk, so the newest one is always whole. A save
costs three times the weights: themselves and the optimizer's two averages. It is copied in memory and written behind
the run's back (`saving`), so that a step waits for the copy alone. Of several ranks each writes its part of the
optimizer, and the first all the rest. Nothing random has a state: order, masks and dropout are functions of the seed
and of the place in the text.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from modernbert.disk import try_lock, write_whole
from modernbert.errors import CheckpointError, ModernBertError, TrainingError
from modernbert.model import hub
from modernbert.ranks import ALONE, Ranks
from modernbert.remote import Entry, cache_folder
from modernbert.runtime import Runtime
from modernbert.tasks.base import EncoderModel
from modernbert.train import state
from modernbert.train.optim import keep_off_triton
from modernbert.train.recipe import PretrainRun
from modernbert.train.run_store import PART, RunStore
from modernbert.train.saving import Kept, snapshot
from modernbert.train.spread import Spread

Row = dict[str, Any]

RUN_FILE, METRICS_FILE, CURVE_FILE = "run.json", "metrics.jsonl", "loss.png"
_PROGRESS = Path("state", "progress.json")


def _read_json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); {_REMEDY}") from error
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        raise CheckpointError(f"{path} holds no {' and '.join(keys)}; {_REMEDY}")
    return values


_REMEDY = "delete its checkpoint to go on from the one before, or copy a run.json from a checkpoint's folder"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line that a run's folder cannot be written.

    Raises:
        CheckpointError: instead of the body's OSError.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); free some space or choose another --out. "
            "Checkpoints that are there are whole"
        ) from error


def read_about(run: Path) -> dict[str, Any]:
    """What run.json says of a run.

    Raises:
        CheckpointError: there is no run, or its run.json is damaged.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(run)):
        working = cache_folder(str(run).replace(":/", "://", 1), "runs")
        raise CheckpointError(f"{run} is an address; give its working folder, {working} on the machine that trained it")
    if not (run / RUN_FILE).exists():
        raise CheckpointError(f"{run} holds no run (no {RUN_FILE}); give the folder of `modernbert pretrain --out`")
    return _read_json(run / RUN_FILE, "recipe")


@dataclass(kw_only=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0  # over all phases
    phase: int = 0  # its index
    name: str = ""  # and its name, by which an edited recipe's phases are told
    phase_tokens: int = 0
    seconds: float = 0.0  # spent in steps, over all sessions
    loader: dict[str, Any] | None = None  # of the current stream
    stream: int = 0  # the phase with which the current stream of text began
    recent_losses: list[float] = field(default_factory=list)  # by which a spike is told
    loss_scale: dict[str, Any] | None = None  # of float16
    best: dict[str, Any] | None = None  # the best evaluation so far, where one is chosen (`select`)
    is_enough: bool = False  # whether evaluations have stopped getting better


@dataclass
class RunFolder:
    """A run's folder, locked by this process, or by the first of several."""

    path: Path
    about: dict[str, Any] = field(default_factory=dict)  # the contents of run.json
    ranks: Ranks = ALONE
    token: str = ""  # of this session; the same on all ranks
    cut_off: list[str] = field(default_factory=list)  # checkpoints whose save was cut off; cleared away
    store: RunStore | None = None  # what is at an address; `path` is its working folder on this host
    is_apart: bool = False  # whether this rank answers for a working folder that is not the first rank's
    owed: list[Path] = field(default_factory=list)  # checkpoints that could not be put to the address; of one host

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: Path, ranks: Ranks = ALONE, store: RunStore | None = None) -> Iterator[RunFolder]:
        """Create or open a run's folder and keep other runs out of it.

        Args:
            path: the folder.
            ranks: that train in it together; the first locks it.
            store: the address that it is the working folder of.

        Raises:
            TrainingError: another process is training in it.
            CheckpointError: it cannot be written, holds something else, or is not one folder for all ranks.
        """
        with contextlib.ExitStack() as stack:
            folder = cls(path)
            with ranks.agreeing():
                if ranks.is_first:
                    folder = stack.enter_context(_locked(path))
            folder = replace(ranks.first(folder), path=path, ranks=ranks, store=store)
            tries = 6 if store is None and ranks.num_nodes > 1 else 1
            is_elsewhere = not ranks.is_first and not _is_locked_with(path, folder.token, tries)
            folder.is_apart = is_elsewhere and ranks.is_first_here and store is not None
            with ranks.agreeing():
                if is_elsewhere and store is None:
                    raise CheckpointError(
                        f"{path} is not the folder that the first rank, on {ranks.hosts[0]}, sees under that name; give an "
                        "--out on a file system that all hosts share, or an address such as s3://bucket/run"
                    )
                if folder.is_apart:
                    with writing(path):
                        hub.clear_unfinished(path)
            yield folder

    @property
    def recipe(self) -> PretrainRun | None:
        """The resolved recipe of the run in the folder, if there is one."""
        return PretrainRun.parse(self.about["recipe"]) if self.about else None

    @property
    def finished(self) -> bool:
        """Whether the run has reached its budget."""
        return self.about.get("status") == "finished"

    def write_about(self, **changes: Any) -> None:
        """Update run.json, at the run's address too."""
        self._write_about_here(changes)
        if self.store is not None and self.ranks.is_first:
            self.store.push_file(self.path / RUN_FILE)

    def _write_about_here(self, changes: dict[str, Any]) -> None:
        self.about |= changes
        if self.ranks.is_first:
            with writing(self.path):
                write_whole(self.path / RUN_FILE, json.dumps(self.about, indent=2) + "\n")

    def begin_session(
        self, *, from_step: int, from_tokens: int, environment: Row, changes: list[str], **about: Any
    ) -> None:
        """Note in run.json that a process goes on from here, and with what."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        session = {"started_at": now, "from_step": from_step, "from_tokens": from_tokens, "environment": environment,
                   "changes": changes, "ended": None}  # fmt: skip
        self.write_about(**about, environment=environment, sessions=[*self.about.get("sessions", []), session])

    def end_session(self, ended: str, **about: Any) -> None:
        """Note here how this process's part ended; a killed one leaves `null`. `put_the_rest` has the address know it."""
        *before, session = self.about["sessions"]
        self._write_about_here({**about, "sessions": [*before, session | {"ended": ended}]})

    def end_by_error(self, error: BaseException) -> None:
        """Note that it ended so, where that can be done soon: the error is what counts, and goes on."""
        with contextlib.suppress(CheckpointError):
            self.end_session(f"error: {error}" if isinstance(error, Exception) else type(error).__name__)
            if self.store is not None and self.ranks.is_first:
                self.store.try_push_file(self.path / RUN_FILE)

    def put_the_rest(self) -> list[str]:
        """Have the run's address, where it has one, hold all that is here. On the first rank.

        Returns:
            Remarks for the user.

        Raises:
            CheckpointError: it does not; nothing is lost here.
        """
        if self.store is None:
            return []
        address = self.store.remote.address
        try:
            remarks = self.store.save_missing()
            there = self.store.remote.files()
            for path in (self.path / METRICS_FILE, self.path / CURVE_FILE):
                if path.exists() and there.get(path.name) != path.stat().st_size:
                    self.store.push_file(path)
            parts = self.store.parts()
            if parts and self.finished:  # its last checkpoint is not whole anywhere
                self._write_about_here({"status": "unfinished"})
            if (self.path / RUN_FILE).exists():
                self.store.push_file(self.path / RUN_FILE)
        except CheckpointError as error:
            raise CheckpointError(
                f"not all of {self.path} is at {address}, and the same command on this machine puts it there: {error}"
            ) from error
        if parts:
            raise CheckpointError(
                f"{address} lacks {parts[-1]}, of which each host has a part; the same command goes on from the one before"
            )
        return remarks

    def newest(self) -> Path:
        """The newest whole checkpoint.

        Raises:
            CheckpointError: there is none.
        """
        found = self.checkpoints()
        if not found:
            raise CheckpointError(f"{self.path} holds no checkpoint any more; choose another --out to begin again")
        return found[-1]

    def agreed_newest(self) -> Path:
        """The one that the first rank calls so. All ranks ask together."""
        return self.path / self.ranks.on_first(lambda: self.newest().name)

    def agreed_newest_name(self) -> str | None:
        """Its name as the first rank has it; None where there is none yet. All ranks ask together."""
        return self.ranks.on_first(lambda: next((path.name for path in reversed(self.checkpoints())), None))

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return [
            path for path in hub.checkpoints_in(self.path) if (path / _PROGRESS).exists() and not (path / PART).exists()
        ]

    @staticmethod
    def progress_of(checkpoint: Path) -> Progress:
        """How far the run had come at a checkpoint."""
        return Progress(**_read_json(checkpoint / _PROGRESS, "progress")["progress"])

    def kept(self) -> list[Kept]:
        """The checkpoints that are there, as the keep policy sees them."""
        return [
            Kept(path.name, *(_read_json(path / _PROGRESS, "progress").get("kept") or (0, True)))
            for path in self.checkpoints()
        ]

    def prepare_save(
        self,
        spread: Spread,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        phase: str,
        runtime: Runtime,
        *,
        number: int | None,
        always: bool,
    ) -> tuple[Path, Callable[[], Path]]:
        """Copy what the checkpoint of this step holds; training may then go on. All ranks call it.

        Args:
            spread: the task as it stands.
            optimizer: likewise.
            progress: likewise.
            phase: the name of its phase.
            runtime: what a run that goes on is to be compared with.
            number: which of the regular checkpoints this is; None for one that a clock or a signal asked for.
            always: keep it whatever the policy says.

        Returns:
            Where it will be, and the function that writes this rank's part. A full disk leaves the earlier ones as they
            are.

        Raises:
            TrainingError: weights that are not finite, which are not worth keeping.
        """
        if not spread.has_finite_weights():
            newest = self.agreed_newest_name()
            with self.ranks.agreeing():
                raise TrainingError(
                    f"the weights behind step {progress.step} are not all finite, so they were not saved; the newest "
                    f"checkpoint is {newest or 'none'}; lower the learning rate"
                )
        destination = self.path / f"{phase}-{progress.step:08d}"
        unfinished = hub.unfinished(destination, self.token)
        weights = spread.weights()
        if not spread.is_sharded:
            weights = snapshot(weights)
        write_model = spread.task.writer(weights)
        finish_state = state.begin_save(spread.task, optimizer, unfinished / "state", self.ranks)
        about = json.dumps(self.about, indent=2) + "\n"
        where = json.dumps({"progress": asdict(progress), "on": _exactly_on(runtime, spread), "kept": [number, always]})

        def write() -> Path:
            if not self.ranks.is_first:
                with writing(destination):
                    finish_state()
                    if self.is_apart and unfinished.exists():
                        (unfinished / PART).touch()
                        os.rename(unfinished, destination)  # this host's part, to be sent
                return destination
            with hub.whole_folder(destination, unfinished) as folder:
                finish_state()  # first: whatever fails behind it, nobody writes here any more
                write_model(folder)
                (folder / RUN_FILE).write_text(about)
                (folder / _PROGRESS).write_text(where)
                if self._has_parts:
                    (folder / PART).touch()
            return destination

        return destination, write

    def send(self, checkpoint: Path) -> list[str]:
        """Put a checkpoint to the run's address, where it has one; each host its part. On all ranks, behind `write`.

        Returns:
            What went wrong. Of one host it is here all the same, and is sent behind the next one, or when the run goes on
            here; of several, which have a part each, it does not count.
        """
        if self.store is None:
            return []
        entries: list[Entry] = []
        problem = None
        try:
            if self.ranks.is_first:
                for name in (METRICS_FILE, CURVE_FILE):
                    if (self.path / name).exists():
                        self.store.push_file(self.path / name)
            if self.ranks.is_first or (self.is_apart and checkpoint.exists()):
                entries = self.store.push(checkpoint)
        except ModernBertError as error:
            problem = str(error)
        found = self.ranks.gather_saves((entries, problem))
        problems = [problem for _, problem in found if problem is not None]
        if self.ranks.is_first and not problems:
            try:
                self.store.seal(checkpoint.name, [entry for entries, _ in found for entry in entries])
                (checkpoint / PART).unlink(missing_ok=True)
                self._send_owed(self.store)
            except (ModernBertError, OSError) as error:
                problems = [str(error)]
        if self.ranks.is_first:
            self.store.clear_parts(but=checkpoint.name)
            if problems and not self._has_parts and checkpoint not in self.owed:
                self.owed.append(checkpoint)
        elif self.is_apart:
            shutil.rmtree(checkpoint, ignore_errors=True)  # a part of a checkpoint is none
        self.ranks.gather_saves(None)  # or the others would wait for the seal where they are less patient
        return problems

    def _send_owed(self, store: RunStore) -> None:
        """The checkpoints that could not be put there, now that the service answers again."""
        while self.owed:
            if self.owed[0].exists():
                store.save(self.owed[0])
            self.owed.pop(0)

    @property
    def _has_parts(self) -> bool:
        """Whether a checkpoint here is whole only with what other hosts have."""
        return self.store is not None and self.ranks.num_nodes > 1

    def forget(self, name: str) -> None:
        """Delete a checkpoint at the run's address, too."""
        if self.store is not None:
            self.store.remove(name)

    def restore(self, spread: Spread, optimizer: torch.optim.Optimizer, runtime: Runtime) -> tuple[Progress, list[str]]:
        """Bring the newest checkpoint back into task and optimizer. All ranks call it.

        Returns:
            How far the run had come, and remarks for the user.

        Raises:
            CheckpointError: its files do not belong together.
        """
        checkpoint = self.agreed_newest()
        if self.store is not None:
            with self.ranks.agreeing():
                if self.is_apart or (self.ranks.is_first and self._has_parts):  # of `state/` a host has its part
                    self.store.fetch(checkpoint.name, alone=self.is_apart)
        with self.ranks.agreeing():
            stored = _read_json(checkpoint / _PROGRESS, "progress", "on")
            take_weights(spread.task, checkpoint)
        take_optimizer(spread, optimizer, checkpoint, runtime)
        on = {"ranks": 1, "strategy": "none"} | stored["on"]  # of runs from before there were several
        remarks = [
            f"this run had {name} {on.get(name)} and now has {now}: losses will agree to rounding, not bit for bit"
            for name, now in _exactly_on(runtime, spread).items()
            if on.get(name) != now
        ]
        return Progress(**stored["progress"]), remarks


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[RunFolder]:
    run_file = path / RUN_FILE
    if path.is_dir() and not run_file.exists() and any(not p.name.startswith(".") for p in path.iterdir()):
        raise CheckpointError(f"{path} is not empty and holds no run; choose another --out")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = try_lock(path / _LOCK)
    if lock is None:
        raise TrainingError(f"{path} is in use by another process; wait for it or choose another --out")
    with lock:
        about = read_about(path) if run_file.exists() else {}
        token = secrets.token_hex(4)
        with writing(path):
            cut_off = hub.clear_unfinished(path)
            lock.write(token)
            lock.flush()
            os.fsync(lock.fileno())  # for other hosts to see
        yield RunFolder(path, about, token=token, cut_off=cut_off)


_LOCK = ".lock"


def _is_locked_with(path: Path, token: str, tries: int = 1) -> bool:
    """Whether this is the folder whose lock holds the token; another host's file system may take seconds to say so."""
    for left in reversed(range(tries)):
        with contextlib.suppress(OSError):
            if (path / _LOCK).read_text() == token:
                return True
        time.sleep(1.0 if left else 0.0)
    return False


def take_weights(task: EncoderModel, checkpoint: Path) -> None:
    """Load a checkpoint's weights into a model of its shape, and turn by its RoPE bases."""
    hub.load_tensors(task, hub.read_tensors(checkpoint), origin=checkpoint, assign=False)
    theirs = hub.read_config(checkpoint)
    task.encoder.config = task.config.replace(
        global_rope_theta=theirs.global_rope_theta, local_rope_theta=theirs.local_rope_theta
    )


def take_optimizer(spread: Spread, optimizer: torch.optim.Optimizer, checkpoint: Path, runtime: Runtime) -> None:
    """Load a checkpoint's optimizer state.

    Raises:
        CheckpointError: it has none, or it does not fit.
    """
    folder = checkpoint / "state"
    if not folder.is_dir():
        raise CheckpointError(
            f'{checkpoint} holds weights alone, no state/ of a run; take them with start="weights" and a warm-up'
        )
    state.load(spread.task, optimizer, folder, runtime.ranks)
    if runtime.device.type != "cuda" or spread.is_sharded:
        keep_off_triton(optimizer)  # torch-optimi notes in its state that it used it


def _exactly_on(runtime: Runtime, spread: Spread) -> dict[str, str | int]:
    """What must stay for losses to agree bit for bit."""
    return {
        "threads": runtime.num_threads,
        "device": runtime.device.type,
        "precision": str(runtime.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "ranks": runtime.ranks.size,
        "strategy": spread.strategy,
    }
