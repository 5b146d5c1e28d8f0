"""A task, a phase and some of its batches → how long a micro-batch, an update and a whole step of it take here."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from modernbert.batch import IGNORE, PackedBatch
from modernbert.model.flops import forward_flops
from modernbert.runtime import Runtime, evaluating, synchronize
from modernbert.tasks.base import EncoderModel
from modernbert.train.recipe import PhaseSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTiming:
    """What the work of a phase takes on one device."""

    micro_batch_seconds: float  # reading, forward and backward
    evaluation_seconds: float  # forward alone
    optimizer_seconds: float  # norm of the gradients and update
    tokens_per_micro_batch: int  # real ones
    flops_per_micro_batch: float  # useful ones, forward and backward
    micro_batches_per_step: int  # of a full batch
    num_timed: int  # micro-batches
    peak_bytes: int | None  # CUDA only

    @property
    def step_seconds(self) -> float:
        """A step at full batch."""
        return self.micro_batches_per_step * self.micro_batch_seconds + self.optimizer_seconds

    def scaled(self, num_tokens: int, flops: float) -> PhaseTiming:
        """The same for micro-batches of another size, as if time went with operations."""
        factor = flops / self.flops_per_micro_batch
        return replace(
            self, micro_batch_seconds=factor * self.micro_batch_seconds, flops_per_micro_batch=flops,
            evaluation_seconds=factor * self.evaluation_seconds, tokens_per_micro_batch=num_tokens, peak_bytes=None,
        )  # fmt: skip


def time_phase(
    task: EncoderModel,
    optimizer: torch.optim.Optimizer,
    phase: PhaseSettings,
    batches: Iterable[PackedBatch],
    runtime: Runtime,
    *,
    micro_batches: int = 5,
    seconds: float = 20.0,
) -> PhaseTiming:
    """Time real passes, and two updates of which the faster counts, since the first makes the optimizer's state.

    The weights move, so give a copy, or a learning rate of 0, or load them afterwards.

    Args:
        task: left in training mode, without gradients.
        optimizer: over its parameters.
        phase: the batches are its micro-batches.
        batches: labelled, at least one. The first warms up, unless there is no time for another.
        runtime: device and precision.
        micro_batches: to be timed, at most.
        seconds: begin no pass behind so many.
    """
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    task.train()
    task.zero_grad(set_to_none=True)
    timed = _passes(task, batches, runtime, micro_batches, seconds)
    updates = [_update_seconds(task, optimizer, runtime) for _ in range(2)]
    task.zero_grad(set_to_none=True)
    on_cuda = runtime.device.type == "cuda"
    return PhaseTiming(
        micro_batch_seconds=statistics.median(took for took, _ in timed),
        evaluation_seconds=_forward_seconds(task, timed[-1][1], runtime),
        optimizer_seconds=min(updates),
        tokens_per_micro_batch=round(statistics.mean(batch.num_tokens for _, batch in timed)),
        flops_per_micro_batch=statistics.mean(_flops(task, batch) for _, batch in timed),
        micro_batches_per_step=phase.tokens_per_step // phase.micro_batch_tokens,
        num_timed=len(timed),
        peak_bytes=torch.cuda.max_memory_allocated(runtime.device) if on_cuda else None,
    )


def _passes(
    task: EncoderModel, batches: Iterable[PackedBatch], runtime: Runtime, micro_batches: int, seconds: float
) -> list[tuple[float, PackedBatch]]:
    """Seconds of each pass, reading included, behind one that warms up."""
    stream, began_at = iter(batches), time.perf_counter()
    passes: list[tuple[float, PackedBatch]] = []
    for _ in range(micro_batches + 1):
        if passes and time.perf_counter() - began_at + passes[-1][0] > seconds:
            break
        started_at = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            break
        _train_on(task, batch, runtime)
        passes.append((time.perf_counter() - started_at, batch))
    return passes[1:] or passes


def made_up_batches(vocab_size: int, phase: PhaseSettings, seed: int = 0) -> Iterable[PackedBatch]:
    """Micro-batches without end: full sequences of random ids, a share of them to be guessed."""
    draw = torch.Generator().manual_seed(seed)
    count, length = phase.micro_batch_tokens // phase.sequence_length, phase.sequence_length
    for _ in itertools.count():
        ids = torch.randint(vocab_size, (count, length), generator=draw)
        hidden = torch.rand(count, length, generator=draw) < phase.mask_rate
        yield PackedBatch.from_sequences(ids, torch.where(hidden, ids, IGNORE))


def _train_on(task: EncoderModel, batch: PackedBatch, runtime: Runtime) -> None:
    with runtime.autocast():
        output = task(batch.to(runtime.device))
    (output.loss_sum / max(1, output.num_targets)).backward()
    synchronize(runtime.device)


def _forward_seconds(task: EncoderModel, batch: PackedBatch, runtime: Runtime) -> float:
    started_at = time.perf_counter()
    with evaluating(task), torch.inference_mode(), runtime.autocast():
        task(batch.to(runtime.device))
    synchronize(runtime.device)
    return time.perf_counter() - started_at


def _update_seconds(task: EncoderModel, optimizer: torch.optim.Optimizer, runtime: Runtime) -> float:
    started_at = time.perf_counter()
    torch.nn.utils.get_total_norm([p.grad for p in task.parameters() if p.grad is not None]).item()
    optimizer.step()
    synchronize(runtime.device)
    return time.perf_counter() - started_at


def _flops(task: EncoderModel, batch: PackedBatch) -> float:
    assert batch.labels_T is not None
    return 3 * forward_flops(task.config, batch.lengths(), int((batch.labels_T != IGNORE).sum()))
