"""Task + batches → a trained task and its checkpoints: the only loop.

A step gathers micro-batches worth `tokens_per_step`, adds up their gradients, each weighted by its targets (so
that a loss is averaged over masked tokens, wherever they fall), and updates once. Real tokens are the only clock:
nothing here is ever padding.

Each step yields a row for metrics.jsonl. Three of its numbers say how fast: real tokens per second, the share of
time spent waiting for data, and MFU, the useful operations (3 × the forward's) over the hardware's peak.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modernbert.batch import IGNORE, PackedBatch
from modernbert.data.loader import LoaderState, MlmBatches
from modernbert.errors import TrainingError
from modernbert.model.flops import forward_flops
from modernbert.runtime import Runtime, evaluating
from modernbert.tasks.base import EncoderModel
from modernbert.train.checkpoint import Progress, RunFolder, writing
from modernbert.train.log import MetricsLog, draw_curve
from modernbert.train.optim import set_learning_rate
from modernbert.train.recipe import PhaseSettings, PretrainRun, tokens_of
from modernbert.train.schedule import learning_rate

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller adds to a run."""

    on_row: Callable[[Row], None] = lambda _row: None  # each line of metrics.jsonl
    on_checkpoint: Callable[[EncoderModel, Path, Progress], None] = lambda _task, _path, _progress: None
    on_remark: Callable[[str], None] = lambda _text: None  # what a user should know


def fit(
    task: EncoderModel,
    optimizer: torch.optim.Optimizer,
    run: PretrainRun,
    batches_of: Callable[[PhaseSettings], MlmBatches],
    evaluate: Callable[[EncoderModel], dict[str, float]],
    progress: Progress,
    folder: RunFolder,
    runtime: Runtime,
    peak: float,
    hooks: Hooks = Hooks(),
) -> Progress:
    """Train from `progress` to the end of the last phase.

    Args:
        task: what is trained; a call on a batch gives a `TaskOutput`.
        optimizer: over its parameters.
        run: the resolved recipe.
        batches_of: the training stream of a phase.
        evaluate: loss and accuracy on held-out text.
        progress: where to begin; all zero for a new run.
        folder: where checkpoints and metrics go.
        runtime: device and precision.
        peak: FLOP/s that count as full use.
        hooks: callbacks.

    Raises:
        TrainingError: the loss or a gradient is no longer a finite number. The batch is kept.
    """
    log = MetricsLog(folder.path, after_step=progress.step if folder.checkpoints() else -1)

    def record(row: Row) -> None:
        log.write(row)
        hooks.on_row(row)

    def look(phase: PhaseSettings) -> None:
        scores = evaluate(task)
        record({"kind": "eval", **_where(progress, phase), **scores, "lr": None, "tokens_per_second": None})

    def save(phase: PhaseSettings) -> None:
        log.sync()
        path = folder.save(task, optimizer, progress, phase.name, runtime)
        draw_curve(folder.path)
        hooks.on_checkpoint(task, path, progress)

    try:
        if progress.step == 0 and not folder.checkpoints():
            look(run.phases[0])
            save(run.phases[0])
        while progress.phase < len(run.phases):
            phase = run.phases[progress.phase]
            for row in _steps(task, optimizer, run, phase, batches_of(phase), progress, folder, runtime, peak):
                record(row)
                before = progress.tokens - row["step_tokens"]
                is_last = progress.phase_tokens >= run.phase_tokens(phase)
                if is_last or _crossed(before, progress.tokens, run.loop.eval_tokens):
                    look(phase)
                if is_last or _crossed(before, progress.tokens, run.loop.checkpoint_tokens):
                    save(phase)
            progress.phase, progress.phase_tokens = progress.phase + 1, 0
            following = run.phases[progress.phase : progress.phase + 1]
            if not following or following[0].sequence_length != phase.sequence_length:
                progress.loader = None  # cut to another length the text is another stream; else it goes on
    finally:
        log.close()
    return progress


def _steps(
    task: EncoderModel,
    optimizer: torch.optim.Optimizer,
    run: PretrainRun,
    phase: PhaseSettings,
    batches: MlmBatches,
    progress: Progress,
    folder: RunFolder,
    runtime: Runtime,
    peak: float,
) -> Iterator[Row]:
    """The steps that are left of a phase, each as its row; `progress` stands behind the step when it is yielded."""
    budget = run.phase_tokens(phase)
    warmup, decay = tokens_of(phase.warmup_tokens, budget), tokens_of(phase.decay_tokens, budget)
    state = LoaderState.from_dict(progress.loader) if progress.loader else None
    stream = batches.stream(state, num_workers=run.data.workers)
    started_at = time.perf_counter()
    while progress.phase_tokens < budget:
        micro_batches, state = _take(stream, phase.micro_batches_per_step())
        waited = time.perf_counter() - started_at
        step_tokens = sum(batch.num_tokens for batch in micro_batches)
        lr = learning_rate(
            min(progress.phase_tokens + step_tokens, budget),
            peak=phase.lr, total=budget, warmup=warmup, decay=decay, decay_to=phase.decay_to,
        )  # fmt: skip
        set_learning_rate(optimizer, lr, phase.lr)
        means = _accumulate(task, micro_batches, runtime)
        gradients = [p.grad for p in task.parameters() if p.grad is not None]
        gradient_norm = torch.nn.utils.get_total_norm(gradients).item()
        if not (math.isfinite(means["loss"]) and math.isfinite(gradient_norm)):
            _refuse_nan(folder, progress.step + 1, means["loss"], gradient_norm, micro_batches)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        now = time.perf_counter()
        seconds, started_at = now - started_at, now
        progress.step += 1
        progress.tokens += step_tokens
        progress.phase_tokens += step_tokens
        progress.seconds += seconds
        progress.loader = state.to_dict()
        flops = 3 * sum(forward_flops(task.config, batch.lengths(), count_targets(batch)) for batch in micro_batches)
        yield {
            "kind": "train", **_where(progress, phase), **means, "lr": lr,
            "tokens_per_second": step_tokens / seconds, "data_wait": waited / seconds, "mfu": flops / seconds / peak,
            "step_tokens": step_tokens, "filled": step_tokens / phase.tokens_per_step,
            "gradient_norm": gradient_norm, "seconds": progress.seconds,
        }  # fmt: skip
        started_at = time.perf_counter()  # evaluation and saving are not the step's


def _accumulate(task: EncoderModel, micro_batches: list[PackedBatch], runtime: Runtime) -> dict[str, float]:
    """Gradients of the mean loss over all targets of the step; returns that loss, the other means and `targets`."""
    task.train()
    targets = sum(count_targets(batch) for batch in micro_batches)
    sums: dict[str, Tensor] = {}
    for batch in micro_batches:
        with runtime.autocast():
            output = task(batch.to(runtime.device))
        (output.loss_sum / max(1, targets)).backward()
        for name, value in {"loss": output.loss_sum.detach(), **output.metric_sums}.items():
            sums[name] = sums[name] + value if name in sums else value
    return {**{name: value.item() / max(1, targets) for name, value in sums.items()}, "targets": targets}


def evaluate_on(
    task: EncoderModel, batches: Iterable[PackedBatch], runtime: Runtime, max_tokens: int | None = None
) -> dict[str, float]:
    """The loss and the task's other metrics over some batches, averaged over targets.

    Args:
        task: in any mode; left in the mode it had.
        batches: labelled.
        runtime: device and precision.
        max_tokens: stop once so many have been seen; None for all.
    """
    sums: dict[str, float] = {}
    targets, tokens = 0, 0
    with evaluating(task), torch.inference_mode():
        for batch in batches:
            with runtime.autocast():
                output = task(batch.to(runtime.device))
            for name, value in {"loss": output.loss_sum, **output.metric_sums}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            targets += output.num_targets
            tokens += batch.num_tokens
            if max_tokens is not None and tokens >= max_tokens:
                break
    return {**{name: value / max(1, targets) for name, value in sums.items()}, "targets": targets}


def count_targets(batch: PackedBatch) -> int:
    """Positions of a batch where a loss is taken."""
    assert batch.labels_T is not None
    return int((batch.labels_T != IGNORE).sum())


def _take(stream: Iterator[tuple[PackedBatch, LoaderState]], count: int) -> tuple[list[PackedBatch], LoaderState]:
    taken = [next(stream) for _ in range(count)]
    return [batch for batch, _ in taken], taken[-1][1]


def _crossed(before: int, now: int, every: int | str) -> bool:
    assert isinstance(every, int)  # the recipe is resolved
    return now // every > before // every


def _where(progress: Progress, phase: PhaseSettings) -> Row:
    return {"step": progress.step, "phase": phase.name, "tokens": progress.tokens}


def _refuse_nan(
    folder: RunFolder, step: int, loss: float, gradient_norm: float, micro_batches: list[PackedBatch]
) -> None:
    kept = folder.path / f"not-finite-{step:08d}.pt"
    fields: list[dict[str, Tensor]] = [
        {"input_ids_T": b.input_ids_T, "cu_seqlens": b.cu_seqlens, "labels_T": b.labels_T}  # type: ignore[dict-item]
        for b in micro_batches
    ]
    with writing(folder.path), kept.open("wb") as file:
        torch.save(fields, file)
    last = folder.newest().name
    raise TrainingError(
        f"step {step}: loss {loss}, gradient norm {gradient_norm}: not finite, so the step was not taken. The batch "
        f"is kept in {kept}, the last checkpoint is {last}; lower the learning rate or look at that batch"
    )
