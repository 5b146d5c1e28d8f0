"""Task + batches → a trained task and its checkpoints: the only loop.

A step gathers micro-batches worth `tokens_per_step`, adds up their gradients, each weighted by its targets (so
that a loss is averaged over masked tokens, wherever they fall), and updates once. Real tokens are the only clock:
nothing here is ever padding. Phases follow one another in the same loop; what changes with a phase is set when it is
entered.

Several ranks share a step's micro-batches and go through this loop together: what a step decides by (losses, clocks,
signals) is gathered from all of them, so that all decide alike. The first one writes.

Each step yields a row for metrics.jsonl. Three of its numbers say how fast: real tokens per second, the share of
time spent waiting for data, and MFU, the useful operations (3 × the forward's) over the hardware's peak.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modernbert.batch import PackedBatch, idle_batch
from modernbert.data.loader import Batches, LoaderState
from modernbert.errors import ModernBertError, TrainingError
from modernbert.model import hub
from modernbert.model.flops import forward_flops
from modernbert.runtime import Runtime
from modernbert.tasks.base import EncoderModel
from modernbert.tasks.load import newest_checkpoint
from modernbert.train.checkpoint import (
    Progress,
    RunFolder,
    take_optimizer,
    take_weights,
    writing,
)
from modernbert.train.guard import SpikeDetector, Verdict, diagnose, joined
from modernbert.train.log import MetricsLog, draw_curve
from modernbert.train.loss_scale import LossScale
from modernbert.train.optim import build_optimizer, set_learning_rate, set_weight_decay
from modernbert.train.recipe import PhaseSettings, TrainRun
from modernbert.train.saving import BackgroundSaver, StopRequest, remove_checkpoint, to_delete
from modernbert.train.schedule import learning_rate
from modernbert.train.select import Selection
from modernbert.train.spread import Spread

Row = dict[str, Any]

STARVED = 0.1  # share of the time spent waiting for data from which a run is said to be held up by it
_WAITING_STEPS = 50
STREAMS_APART = 1000  # the text of a run is numbered by its phases; what must not repeat it begins so much further
_PARTING_SECONDS = 2.0  # for a save under way, when a rank is missing and this one is about to end
_SECONDS_BETWEEN_LOOKS = 0.02  # at whether all have written their part
_SECONDS_BETWEEN_CURVES = 600  # a month's curve takes seconds to read


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller adds to a run."""

    on_row: Callable[[Row], None] = lambda _row: None  # each line of metrics.jsonl
    # A checkpoint's model, the place it is being written to, and how far the run has come. On the first rank only, so what
    # it calls must not wait for others: not the model where FSDP2 has cut it.
    on_checkpoint: Callable[[EncoderModel, Path, Progress], None] = lambda _task, _path, _progress: None
    on_remark: Callable[[str], None] = lambda _text: None  # what a user should know


@dataclass(kw_only=True)
class Session:
    """One process's part of a run: from where `progress` stands to the end, or to where it is asked to stop.

    Args:
        spread: what is trained, over all ranks.
        optimizer: over its parameters.
        run: the resolved recipe, or what the loop reads of it.
        batches_of: the training stream of a phase (its index), begun in the phase of the second index.
        evaluate: scores on held-out text or examples, at a phase's length.
        progress: where to begin; all zero for a new run.
        folder: where checkpoints and metrics go.
        runtime: device and precision.
        peak: FLOP/s that count as full use; None where nobody asks how full it is.
        peak_source: where that figure is from.
        hooks: callbacks.
        stop: says when to end early.
        selection: which evaluation is the best one, and when to end because none is better any more.
        num_workers: reading processes.
        saves: whether checkpoints are written at all; without them a run that is cut off begins anew.
        looks_first: whether to evaluate and to save before the first step.
        when_changed: what a command with other settings must say, too, for the run to go on.
    """

    spread: Spread
    optimizer: torch.optim.Optimizer
    run: TrainRun
    batches_of: Callable[[int, int], Batches]
    evaluate: Callable[[EncoderModel, PhaseSettings], Row]
    progress: Progress
    folder: RunFolder
    runtime: Runtime
    peak: float | None
    peak_source: str
    hooks: Hooks
    stop: StopRequest
    selection: Selection | None = None
    num_workers: int = 0
    saves: bool = True
    looks_first: bool = True
    when_changed: str = " with --allow-change"
    log: MetricsLog | None = field(init=False)  # of the first rank
    detector: SpikeDetector = field(init=False)
    scale: LossScale | None = field(init=False)  # where float16 needs one
    saver: BackgroundSaver = field(init=False)
    _saved_at: tuple[int, float] = field(init=False)  # step and time of the last checkpoint
    _num_troubles: int = field(init=False, default=0)  # skips and rollbacks
    _drawn_at: float = field(init=False, default=-math.inf)
    _reason: str | None = field(init=False, default=None)  # to stop, as all ranks know it
    _is_late: bool = field(init=False, default=False)  # whether the clock asks for a checkpoint

    @property
    def task(self) -> EncoderModel:
        """What is trained."""
        return self.spread.task

    def fit(self) -> str | None:
        """Train to the end of the last phase.

        Returns:
            None at the end, or why the run was asked to stop before it. All is saved then.

        Raises:
            TrainingError: the loss or a gradient is no longer a finite number, and the recipe says to stop.
            CheckpointError: a checkpoint cannot be written.
        """
        progress, phases = self.progress, self.run.phases
        ranks = self.runtime.ranks
        new = ranks.on_first(lambda: not self.folder.checkpoints())
        self.log = MetricsLog(self.folder.path, after_step=-1 if new else progress.step) if ranks.is_first else None
        self.detector = SpikeDetector.from_state(self.run.guard, progress.recent_losses)
        self.scale = LossScale.for_dtype(self.runtime.dtype)
        if self.scale is not None and progress.loss_scale is not None:
            self.scale = LossScale.from_dict(progress.loss_scale)
        self.saver = BackgroundSaver()
        self._saved_at = progress.step, time.monotonic()
        reason = None
        try:
            if new:
                self._start_phase()
                if self.looks_first:
                    self._look(phases[0])
                    self._save(phases[0], number=0, always=True)
            else:
                text = f"resumed behind step {progress.step:,}"
                self.record({"kind": "event", **self._where(), "event": "resume", "text": text})
            while progress.phase < len(phases):
                reason = self._run_phase(phases[progress.phase])
                if reason is not None:
                    break
                progress.phase, progress.phase_tokens = progress.phase + 1, 0
                if progress.phase < len(phases):
                    self._start_phase()
            self._all_written()
            return reason
        except RuntimeError:
            if ranks.size > 1:
                self.saver.abandon(_PARTING_SECONDS)
            raise
        finally:
            try:
                self.saver.close()
            finally:
                if self.log is not None:
                    self.log.close()

    def is_done(self) -> bool:
        """Whether nothing of the recipe is left to do."""
        phases, progress = self.run.phases, self.progress
        return progress.phase == len(phases) - 1 and self._is_over(self.run.phase_tokens(phases[-1]))

    def record(self, row: Row) -> None:
        """Write a line of metrics."""
        if self.log is not None:
            self.log.write(row)
        self.hooks.on_row(row)

    # --- phases

    def _start_phase(self) -> None:
        """What a phase takes from the one before it, or from a checkpoint."""
        progress, index = self.progress, self.progress.phase
        phase = self.run.phases[index]
        if phase.start == "weights" and index:
            self.optimizer = build_optimizer(self.task, self.run.optim, phase.lr)
        if phase.checkpoint is not None:
            self._start_from(phase, newest_checkpoint(hub.find_folder(phase.checkpoint)))
        progress.name = phase.name
        progress.loader, progress.stream = self._text_from(index)
        progress.recent_losses = []  # another length or another rate has losses of its own
        self.detector = SpikeDetector(self.run.guard)
        enter_phase(self.task, self.optimizer, self.run, phase)

    def _start_from(self, phase: PhaseSettings, checkpoint: Path) -> None:
        take_weights(self.task, checkpoint)
        if phase.start != "weights":
            take_optimizer(self.spread, self.optimizer, checkpoint, self.runtime)
        if not (checkpoint / "state").is_dir():
            return
        theirs = RunFolder.progress_of(checkpoint)
        if phase.start == "state":
            self.progress.loader, self.progress.stream = theirs.loader, theirs.stream
        else:  # or it would read once more what they have read, in the same order
            self.progress.loader, self.progress.stream = None, theirs.stream + STREAMS_APART

    def _text_from(self, index: int) -> tuple[Row | None, int]:
        """Where a phase begins to read: behind what was read, or, of other text or cut to another length, anew."""
        progress = self.progress
        if progress.loader is not None:
            state = LoaderState.from_dict(progress.loader)
            if state.key == self.batches_of(index, progress.stream).key:
                return state.next_phase().to_dict(), progress.stream
        return None, index + progress.stream // STREAMS_APART * STREAMS_APART

    def _run_phase(self, phase: PhaseSettings) -> str | None:
        """The steps that are left of a phase, with what stands between them."""
        progress, budget = self.progress, self.run.phase_tokens(phase)
        enter_phase(self.task, self.optimizer, self.run, phase)
        while not self._is_over(budget):
            waits: deque[tuple[float, float]] = deque(maxlen=_WAITING_STEPS)
            told = False
            for row in self._steps(phase, budget):
                self.record(row)
                waits.append((row["data_wait"] * row["step_seconds"], row["step_seconds"]))
                if not told and len(waits) == _WAITING_STEPS:
                    told = self._tell_waiting(waits)
                self._agree()
                self._between_steps(phase, row, is_last=self._is_over(budget))
                if progress.is_enough:
                    break
                if self._reason is not None and not self._is_over(budget):
                    if self._saved_at[0] < progress.step:
                        self._save(phase, number=None)
                    return self._reason
        return self._reason if progress.phase + 1 < len(self.run.phases) else None

    def _is_over(self, budget: int) -> bool:
        return self.progress.phase_tokens >= budget or self.progress.is_enough

    def _between_steps(self, phase: PhaseSettings, row: Row, *, is_last: bool) -> None:
        self.saver.check()
        loop, now = self.run.loop, self.progress.tokens
        before = now - row["step_tokens"]
        if is_last or _crossed(before, now, loop.eval_tokens):
            self._look(phase)
        is_last = is_last or self.progress.is_enough
        if is_last or _crossed(before, now, loop.checkpoint_tokens):
            self._save(phase, number=_counted(now, loop.checkpoint_tokens), always=is_last)
        elif self._is_late:
            self._save(phase, number=None)

    def _tell_waiting(self, waits: Iterable[tuple[float, float]]) -> bool:
        waited, seconds = (sum(column) for column in zip(*waits, strict=True))
        if waited <= STARVED * seconds:
            return False
        text = (
            f"data is the bottleneck: {waited / seconds:.0%} of the last {_WAITING_STEPS} steps was spent waiting for it; "
            f"raise data.workers (now {self.num_workers}), or put the shards on a faster disk"
        )
        self._tell({"kind": "event", "event": "data", "text": text})
        return True

    # --- steps

    def _steps(self, phase: PhaseSettings, budget: int) -> Iterator[Row]:
        """Steps until the budget is used or the run is set back, each as its row, `progress` standing behind it."""
        progress, run, ranks = self.progress, self.run, self.runtime.ranks
        state = LoaderState.from_dict(progress.loader) if progress.loader else None
        batches = self.batches_of(progress.phase, progress.stream)
        stream = batches.share(state, rank=ranks.rank, num_ranks=ranks.size, num_workers=self.num_workers)
        started_at = time.perf_counter()
        while progress.phase_tokens < budget:
            ranks.at(f"step {progress.step + 1:,}, reading data")
            planned = _taken(stream, phase.micro_batches_at(progress.phase_tokens))
            waited = time.perf_counter() - started_at
            ranks.at(f"step {progress.step + 1:,}, computing")
            own = [_Read(batch, behind) for batch, behind in planned if batch is not None]
            step_tokens = sum(state.num_tokens for _, state in planned)
            lr = _rate(phase, min(progress.phase_tokens + step_tokens, budget), budget)
            set_learning_rate(self.optimizer, lr, phase.lr)
            seeds = [_seed_of(run, read.state) for read in own]
            means = accumulate(self.spread, [read.batch for read in own], self.runtime, seeds, self.scale)
            means["gradient_norm"] = self.spread.gradient_norm()
            has_overflowed = self._has_overflowed(means)
            action, event = ("skip", {}) if has_overflowed else self._judge(means, batches, own)
            behind = planned[-1][1]
            if action == "rollback":
                self._roll_back(behind, event)
                return
            taken = action in (None, "note")
            if taken:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            now = time.perf_counter()
            seconds, started_at = now - started_at, now
            waited, flops = self._over_ranks(waited, own)
            progress.step += 1
            progress.tokens += step_tokens
            progress.phase_tokens += step_tokens
            progress.seconds += seconds
            progress.loader = behind.to_dict()
            progress.recent_losses = self.detector.state()
            progress.loss_scale = None if self.scale is None else self.scale.to_dict()
            if event:
                self._tell(event)
            yield {
                "kind": "train" if taken else "skipped", **self._where(), "phase_tokens": progress.phase_tokens,
                **(means if taken else {}), "lr": lr, "mask_rate": behind.mask_rate,
                "tokens_per_second": step_tokens / seconds, "data_wait": min(1.0, waited / seconds),
                "mfu": flops / seconds / (self.peak * ranks.size) if self.peak else None, "step_tokens": step_tokens,
                "filled": step_tokens / (len(planned) * phase.micro_batch_tokens),
                "step_seconds": seconds, "seconds": progress.seconds,
            }  # fmt: skip
            started_at = time.perf_counter()  # evaluation and saving are not the step's

    def _agree(self) -> None:
        """Have all ranks know what one of them knows: a signal, or, of the first, the clock."""
        minutes = self.run.loop.checkpoint_minutes
        is_late = minutes is not None and time.monotonic() - self._saved_at[1] > 60 * minutes
        known = self.runtime.ranks.gather((self.stop.reason, is_late))
        self._reason = next((reason for reason, _ in known if reason is not None), None)
        self._is_late = known[0][1]

    def _over_ranks(self, waited: float, own: list[_Read]) -> tuple[float, float]:
        """The longest wait for data, and the operations of all ranks together."""
        flops = 3 * sum(forward_flops(self.task.config, r.batch.lengths(), r.batch.num_targets) for r in own)
        waits, operations = zip(*self.runtime.ranks.gather((waited, flops)), strict=True)
        return max(waits), sum(operations)

    def _has_overflowed(self, means: dict[str, float]) -> bool:
        """Whether gradients were too large for float16 alone: then the scale is halved, and the step left out."""
        if self.scale is None or not math.isfinite(means["loss"]):
            return False
        is_finite, is_last_resort = math.isfinite(means["gradient_norm"]), self.scale.exhausted
        self.scale.update(is_finite)
        return not is_finite and not is_last_resort

    def _judge(self, means: dict[str, float], batches: Batches, own: list[_Read]) -> tuple[str | None, Row]:
        """What to do about a step, None if nothing is wrong with it, and what to tell about it.

        Raises:
            TrainingError: the recipe says to stop. The batch is kept.
        """
        median, deviations = self.detector.median, self.detector.see(means["loss"])
        if not math.isfinite(means["gradient_norm"]):
            deviations = math.inf
        if deviations is None:
            return None, {}
        guard, step = self.run.guard, self.progress.step + 1
        event = "spike" if math.isfinite(deviations) else "nan"
        action: str = guard.on_spike if event == "spike" else guard.on_nan
        self._num_troubles += action in ("skip", "rollback")
        too_many = self._num_troubles > guard.max_events
        if action == "rollback" and self.folder.agreed_newest_name() is None:
            too_many = False
            action = "stop"
        action = "stop" if too_many else action
        if self.spread.is_sharded and action == "note":
            verdict = Verdict(step=step, loss=means["loss"], deviations=deviations, median=median, failures=[
                "its cause was not looked for, as that takes all weights on every rank"])  # fmt: skip
        else:
            verdict = joined(self.runtime.ranks.gather(diagnose(
                self.spread.unsharded(), [read.batch for read in own], self.runtime, step=step, loss=means["loss"],
                deviations=deviations, median=median, name_of=_namer(batches, own),
            )))  # fmt: skip
        row = verdict.row(event, _DONE[action])
        if action != "note":
            row["text"] += f". The batch is kept in {self._keep_batch(own, f'{event}-{step:08d}')}"
        if action == "stop":
            self._all_written()
            self.record({**row, **self._where()})
            remedy = f"set guard.on_{event}=skip and give the command again{self.when_changed}"
            if too_many:
                remedy = f"raise guard.max_events={guard.max_events}, as more steps than that went wrong"
            newest = self.folder.agreed_newest_name()
            there = "there is no checkpoint yet" if newest is None else f"the last checkpoint is {newest}"
            with self.runtime.ranks.agreeing():
                raise TrainingError(f"{row['text']}, {there}; lower the learning rate, look at that batch, or {remedy}")
        return action, row

    def _tell(self, event: Row) -> None:
        self.record({**event, **self._where()})
        self.hooks.on_remark(event["text"])

    def _keep_batch(self, own: list[_Read], name: str) -> Path:
        """Each rank keeps what it has of the batch. Returns the file, or the pattern of all ranks' files."""
        ranks = self.runtime.ranks
        kept, all_of_it = (
            self.folder.path / (f"{name}.pt" if ranks.size == 1 else f"{name}-rank{which}.pt")
            for which in (ranks.rank, "*")
        )
        fields: list[dict[str, Any]] = [
            {"input_ids_T": b.input_ids_T, "cu_seqlens": b.cu_seqlens, "labels_T": b.labels_T, "targets_B": b.targets_B}
            for b, _ in own
        ]
        with writing(self.folder.path), kept.open("wb") as file:
            torch.save(fields, file)
        return all_of_it

    def _roll_back(self, behind: LoaderState, event: Row) -> None:
        """Weights, optimizer and clock of the newest checkpoint, and the text behind the batch at fault."""
        self._all_written()
        self.runtime.ranks.gather(None)  # the first rank's write, too, is done now
        self.optimizer.zero_grad(set_to_none=True)
        phase, stream = self.progress.phase, self.progress.stream
        progress, remarks = self.folder.restore(self.spread, self.optimizer, self.runtime)
        vars(self.progress).update(vars(progress))
        if self.log is not None:
            self.log.drop_after(progress.step)
        self._saved_at = progress.step, time.monotonic()
        if progress.phase < phase:  # the newest checkpoint is the end of the phase before
            self.progress.phase, self.progress.phase_tokens = phase, 0
            self._start_phase()
        else:
            self.detector = SpikeDetector.from_state(self.run.guard, self.progress.recent_losses)
        undone = LoaderState.from_dict(self.progress.loader) if self.progress.loader else LoaderState(behind.key)
        self.progress.loader, self.progress.stream = behind.instead_of(undone).to_dict(), stream
        for remark in remarks:
            self.hooks.on_remark(remark)
        self._tell(event | {"text": f"{event['text']}. Went on from step {progress.step:,} with the text behind it"})

    # --- evaluation and checkpoints

    def _look(self, phase: PhaseSettings) -> None:
        self.runtime.ranks.at(f"evaluation behind step {self.progress.step:,}")
        scores = self.evaluate(self.task, phase)
        if self.selection is not None:
            scores = {**scores, "is_best": self._select(self.selection, scores)}
        self.record({"kind": "eval", **self._where(), **scores, "seconds": self.progress.seconds,
                     "lr": None, "tokens_per_second": None})  # fmt: skip

    def _select(self, selection: Selection, scores: Row) -> bool:
        """Keep the weights if no evaluation was better, and see whether to go on."""
        self.progress.best, is_best = selection.see(self.progress.best, scores, self.progress.step)
        self.progress.is_enough = selection.is_enough(self.progress.best)
        if is_best:
            weights = self.spread.weights()  # all ranks take part
            self.runtime.ranks.on_first(lambda: selection.keep(weights, self.progress.step))
        return is_best

    def _save(self, phase: PhaseSettings, *, number: int | None, always: bool = False) -> None:
        if not self.saves:
            return
        began_at = time.perf_counter()
        self.runtime.ranks.at(f"save behind step {self.progress.step:,}")
        if self.log is not None:
            self.log.sync()
        self._all_written()  # one copy in memory at a time
        path, write = self.folder.prepare_save(
            self.spread, self.optimizer, self.progress, phase.name, self.runtime, number=number, always=always
        )
        row: Row = {"kind": "save", **self._where(), "checkpoint": path.name}

        draws = always or time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_CURVES
        problems: list[str] = []

        def write_and_tidy() -> Path:
            written = write()
            problems.extend(self.folder.send(written))
            if self.log is None:
                return written
            try:  # the checkpoint is whole: what fails behind it is no reason to end a run
                old = to_delete(self.folder.kept(), self.run.loop.keep_every, self.run.loop.keep_last)
                for name in () if problems else old:  # what did not arrive replaces nothing at the address
                    self.folder.forget(name)  # first: of what is not here nobody would know there
                    remove_checkpoint(self.folder.path / name)
                if draws:
                    draw_curve(self.folder.path)
            except (ModernBertError, OSError) as error:
                problems.append(str(error))
            return written

        def then(_path: Path, seconds: float) -> None:
            self.stop.note_save(stall + seconds)
            self.record(row | {"stall_seconds": stall, "write_seconds": seconds})
            for problem in problems:
                self.hooks.on_remark(problem)

        self.saver.submit(write_and_tidy, then)
        stall = time.perf_counter() - began_at
        self._saved_at = self.progress.step, time.monotonic()
        self._drawn_at = time.monotonic() if draws else self._drawn_at
        self.hooks.on_checkpoint(self.task, path, self.progress)

    def _all_written(self) -> None:
        """Wait for what all ranks are writing. One that hangs meanwhile is missed here: a write waits an hour for it."""
        ranks = self.runtime.ranks
        while ranks.size > 1 and any(ranks.gather(self.saver.is_writing)):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self.saver.wait()

    def _where(self) -> Row:
        phase = self.run.phases[min(self.progress.phase, len(self.run.phases) - 1)]
        return {"step": self.progress.step, "phase": phase.name, "tokens": self.progress.tokens}


def enter_phase(task: EncoderModel, optimizer: torch.optim.Optimizer, run: TrainRun, phase: PhaseSettings) -> None:
    """Set what holds throughout a phase: RoPE bases, weight decay, and the one size of a compiled batch."""
    bases = {name: theta for name in _BASES if (theta := getattr(phase, name)) is not None}
    task.encoder.config = task.config.replace(**bases)
    if run.compute.compile:
        from modernbert.model.compile import OneSize  # seconds to import

        task.encoder.compute = OneSize(phase.micro_batch_tokens)
    set_weight_decay(optimizer, run.optim.weight_decay if phase.weight_decay is None else phase.weight_decay)


_BASES = ("global_rope_theta", "local_rope_theta")
_DONE = {"note": "taken all the same", "skip": "skipped", "rollback": "rolled back", "stop": "stopped"}


class _Read(NamedTuple):
    """A micro-batch that this rank has read."""

    batch: PackedBatch
    state: LoaderState  # behind it


def _namer(batches: Batches, own: list[_Read]) -> Callable[[int, int], str]:
    """(micro-batch, document in it) → source, number and first words."""

    def name_of(micro_batch: int, document: int) -> str:
        positions = own[micro_batch].state.positions
        assert positions is not None  # of a batch that was just read
        found = batches.describe(positions[document : document + 1])[0]
        return f"{found['source']} #{found['document']} '{found['text']}'"

    return name_of


def _taken(stream: Iterator[tuple[PackedBatch | None, LoaderState]], count: int) -> list[Any]:
    """The next micro-batches of a stream, so many; what belongs together for a step counts as one."""
    taken = []
    while count:
        taken.append(next(stream))
        count -= taken[-1][1].ends_step
    return taken


def _rate(phase: PhaseSettings, phase_tokens: int, budget: int) -> float:
    assert isinstance(phase.warmup_tokens, int) and isinstance(phase.decay_tokens, int)  # the recipe is resolved
    return learning_rate(
        phase_tokens, peak=phase.lr, total=budget, start=phase.lr_start, warmup=phase.warmup_tokens,
        decay=phase.decay_tokens, decay_to=phase.decay_to, shape=phase.decay_shape,
    )  # fmt: skip


def accumulate(
    spread: Spread,
    micro_batches: Sequence[PackedBatch],
    runtime: Runtime,
    seeds: Sequence[int] = (),
    scale: LossScale | None = None,
) -> dict[str, float]:
    """Gradients of the mean loss over all targets of the step, on all ranks.

    Args:
        spread: the task.
        micro_batches: this rank's.
        runtime: device, precision and ranks.
        seeds: of what is drawn in each micro-batch (dropout), so that it does not depend on the rank that computes it;
            as PyTorch's generators stand if not given.
        scale: of float16's backward passes.

    Returns:
        That loss, the other means, and `targets`, their number.
    """
    spread.task.train()
    ranks = runtime.ranks
    counted = ranks.gather((len(micro_batches), sum(batch.num_targets for batch in micro_batches)))
    passes, targets = max(count for count, _ in counted), sum(count for _, count in counted)
    sums: dict[str, Tensor] = {}
    for index in range(passes):
        batch = micro_batches[index] if index < len(micro_batches) else idle_batch()
        if index < len(seeds):
            torch.manual_seed(seeds[index])
        with spread.pass_of_step(is_last=index == passes - 1):
            with runtime.autocast():
                output = spread.forward(batch.to(runtime.device))
            loss = output.loss_sum * ranks.size / max(1, targets)
            (loss if scale is None else scale.scaled(loss)).backward()
        for name, value in {"loss": output.loss_sum.detach(), **output.metric_sums}.items():
            sums[name] = sums[name] + value if name in sums else value
    if scale is not None:
        scale.unscale_([p.grad for p in spread.task.parameters() if p.grad is not None])
    totals: dict[str, float] = {}
    for part in ranks.gather({name: value.item() for name, value in sums.items()}):  # an idle rank may have no metrics
        for name, share in part.items():
            totals[name] = totals.get(name, 0.0) + share
    return {**{name: total / max(1, targets) for name, total in totals.items()}, "targets": targets}


def _seed_of(run: TrainRun, state: LoaderState) -> int:
    """Of what is drawn while a micro-batch is computed."""
    return int(np.random.SeedSequence((run.seed, state.key, state.number)).generate_state(1, np.uint64)[0])


def _crossed(before: int, now: int, every: int | str) -> bool:
    return _counted(now, every) > _counted(before, every)


def _counted(tokens: int, every: int | str) -> int:
    assert isinstance(every, int)  # the recipe is resolved
    return tokens // every
