"""A resolved recipe + what its work costs → steps, hours, memory, operations, money. What to make of them: `advice`.

Pure arithmetic. What a micro-batch costs comes from `roofline` (a data sheet) or from `measure` (the machine in front).
Several devices share a step's micro-batches: a step takes as long as the fullest of them, then gradients are exchanged.
Every micro-batch counts as full, and saving as free: it happens in the background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modernbert.model.config import ModernBertConfig
from modernbert.model.flops import forward_flops
from modernbert.train.devices import Device
from modernbert.train.footprint import Footprint, footprint, largest_micro_batch
from modernbert.train.measure import PhaseTiming
from modernbert.train.recipe import PhaseSettings, PretrainRun
from modernbert.train.roofline import exchange_seconds, micro_batch_seconds, num_parameters, optimizer_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a plan is for."""

    name: str
    source: str  # of the figures: data sheet, or measured
    count: int
    memory_bytes: float  # of one
    peak_flops: float  # of one
    bfloat16: bool
    sheet: Device | None = None  # where it was not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """One phase, on all devices together unless said otherwise."""

    name: str
    tokens: int
    steps: int
    sequence_length: int
    tokens_per_step: int
    micro_batch_tokens: int
    hours: float  # evaluations included
    evaluation_hours: float
    step_seconds: float  # at full batch
    tokens_per_second: float  # while training
    mfu: float
    flops: float
    device_hours: float
    cost: float | None
    memory: Footprint  # of one device
    memory_bytes: int
    largest_micro_batch_tokens: int  # that fits one device
    epochs: dict[str, float] | None  # by component; None where the text is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run."""

    parameters: int
    hardware: str
    source: str
    count: int
    tokens: int
    steps: int
    hours: float
    device_hours: float
    flops: float
    mfu: float
    cost: float | None
    memory_bytes: int  # of one device, in the phase that takes most
    device_memory_bytes: int
    epochs: dict[str, float] | None  # by source, over all phases
    phases: list[PhasePlan]
    warnings: list[str]  # `advice` on it


def sheet_timing(config: ModernBertConfig, phase: PhaseSettings, device: Device) -> PhaseTiming:
    """What the work of a phase takes by a data sheet, every sequence being full."""
    m, length, rate = phase.micro_batch_tokens, phase.sequence_length, phase.mask_rate
    return PhaseTiming(
        micro_batch_seconds=micro_batch_seconds(config, m, length, rate, device),
        evaluation_seconds=micro_batch_seconds(config, m, length, rate, device, training=False),
        optimizer_seconds=optimizer_seconds(config, device),
        tokens_per_micro_batch=m,
        flops_per_micro_batch=full_flops(config, phase),
        micro_batches_per_step=phase.tokens_per_step // m,
        num_timed=0,
        peak_bytes=None,
    )


def full_flops(config: ModernBertConfig, phase: PhaseSettings) -> float:
    """Useful operations of a micro-batch of full sequences, forward and backward."""
    m, length = phase.micro_batch_tokens, phase.sequence_length
    return 3 * forward_flops(config, [length], round(phase.mask_rate * length)) * m / length


def evaluations_of(run: PretrainRun, phase: PhaseSettings) -> int:
    """How often a phase of the resolved run is evaluated: at intervals, at its end, and once before the first."""
    every, index = run.loop.eval_tokens, run.phases.index(phase)
    assert isinstance(every, int)
    before = sum(run.phase_tokens(other) for other in run.phases[:index])
    end = before + run.phase_tokens(phase)
    crossed = end // every - before // every
    at_end = 0 if end % every == 0 else 1
    return min(crossed + at_end, phase.num_steps(run.phase_tokens(phase))) + (index == 0)


def make_plan(
    run: PretrainRun,
    config: ModernBertConfig,
    hardware: Hardware,
    timings: Sequence[PhaseTiming],
    *,
    price: float | None = None,
    evaluation_tokens: int | None = None,
    epochs: Sequence[Mapping[str, float]] | None = None,
    source_epochs: Mapping[str, float] | None = None,
) -> Plan:
    """Put a plan together.

    Args:
        run: the resolved recipe.
        config: the shape.
        hardware: what it runs on.
        timings: what the work of each phase takes on one device.
        price: of a device for an hour.
        evaluation_tokens: of one evaluation, where held-out text is known; the recipe's wish if not.
        epochs: for each phase, how often it reads each component.
        source_epochs: how often the run reads each source.
    """
    wanted = run.loop.eval_size_tokens if evaluation_tokens is None else evaluation_tokens
    phases = [
        _plan_phase(run, phase, config, hardware, timing, price, wanted)
        for phase, timing in zip(run.phases, timings, strict=True)
    ]
    if epochs is not None:
        phases = [replace(phase, epochs=dict(found)) for phase, found in zip(phases, epochs, strict=True)]
    device_hours, flops = sum(phase.device_hours for phase in phases), sum(phase.flops for phase in phases)
    return Plan(
        parameters=num_parameters(config), hardware=hardware.name, source=hardware.source, count=hardware.count,
        tokens=run.total_tokens, steps=sum(phase.steps for phase in phases), hours=sum(phase.hours for phase in phases),
        device_hours=device_hours, flops=flops, mfu=flops / (device_hours * 3600 * hardware.peak_flops),
        cost=None if price is None else device_hours * price, memory_bytes=max(phase.memory_bytes for phase in phases),
        device_memory_bytes=int(hardware.memory_bytes), phases=phases, warnings=[],
        epochs=None if source_epochs is None else dict(source_epochs),
    )  # fmt: skip


def _plan_phase(
    run: PretrainRun,
    phase: PhaseSettings,
    config: ModernBertConfig,
    hardware: Hardware,
    timing: PhaseTiming,
    price: float | None,
    evaluation_tokens: int,
) -> PhasePlan:
    budget, sizes = run.phase_tokens(phase), phase.steps_by_size(run.phase_tokens(phase))
    # Micro-batches are a little less than full, and budgets count real tokens.
    filling = phase.micro_batch_tokens / timing.tokens_per_micro_batch
    training = filling * sum(n * _step_seconds(size, config, hardware, timing) for size, n in sizes.items())
    kept = {
        "bfloat16": hardware.bfloat16,
        "dropout": run.model.attention_dropout > 0,
        "recomputed": run.compute.activation_checkpointing,
    }
    a_token = timing.evaluation_seconds / timing.tokens_per_micro_batch
    evaluation = evaluations_of(run, phase) * evaluation_tokens * a_token
    hours = (training + evaluation) / 3600
    memory = footprint(config, phase.micro_batch_tokens, phase.mask_rate, **kept)
    flops = timing.flops_per_micro_batch / timing.tokens_per_micro_batch * budget
    return PhasePlan(
        name=phase.name, tokens=budget, steps=sizes.total(), sequence_length=phase.sequence_length,
        tokens_per_step=phase.tokens_per_step, micro_batch_tokens=phase.micro_batch_tokens, hours=hours,
        evaluation_hours=evaluation / 3600,
        step_seconds=_step_seconds(timing.micro_batches_per_step, config, hardware, timing),
        tokens_per_second=budget / training, mfu=flops / (training * hardware.count * hardware.peak_flops), flops=flops,
        device_hours=hours * hardware.count, cost=None if price is None else hours * hardware.count * price,
        memory=memory, memory_bytes=timing.peak_bytes or memory.total,
        largest_micro_batch_tokens=largest_micro_batch(
            config, hardware.memory_bytes, phase.sequence_length, phase.mask_rate, **kept
        ),
        epochs=None,
    )  # fmt: skip


def _step_seconds(size: int, config: ModernBertConfig, hardware: Hardware, timing: PhaseTiming) -> float:
    """A step of so many micro-batches, shared by all devices."""
    exchange = 0.0
    if hardware.sheet is not None and hardware.count > 1:
        exchange = exchange_seconds(config, hardware.sheet, hardware.count)
    return math.ceil(size / hardware.count) * timing.micro_batch_seconds + timing.optimizer_seconds + exchange
