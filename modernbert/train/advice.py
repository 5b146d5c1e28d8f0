"""A plan → what is too small or too large in it, each in a sentence with a remedy."""

from __future__ import annotations

import math

from modernbert.model.config import ModernBertConfig
from modernbert.train.devices import GIB, Device
from modernbert.train.footprint import USABLE
from modernbert.train.plan import Hardware, PhasePlan, Plan
from modernbert.train.recipe import PhaseSettings, PretrainRun
from modernbert.train.roofline import FITTED, micro_batch_seconds

MANY_EPOCHS = 4  # beyond, repeated text is worth less and less (arXiv 2305.16264)
FEW_TOKENS, MANY_TOKENS = 20, 150_000  # a parameter; Ettin's smallest saw 118,000
FEW_STEPS = 200
_FILLS = 0.8  # of the rate that micro-batches four times as large have


def advice(plan: Plan, run: PretrainRun, config: ModernBertConfig, hardware: Hardware) -> list[str]:
    """What is too small or too large, each in a sentence with a remedy."""
    found = []
    for phase, settings in zip(plan.phases, run.phases, strict=True):
        found += [f"phase {phase.name}: {line}" for line in _phase_warnings(phase, settings, config, hardware)]
    ratio = plan.tokens / plan.parameters
    if ratio < FEW_TOKENS:
        found.append(
            f"{plan.tokens:,} tokens are {ratio:.1f} for each of {plan.parameters:,} parameters, fewer than {FEW_TOKENS}: "
            "a smaller model would learn more from them in less time"
        )
    if ratio > MANY_TOKENS:
        found.append(
            f"{plan.tokens:,} tokens are {ratio:,.0f} for each of {plan.parameters:,} parameters, more than any published "
            "encoder has seen: a larger model would make more of them"
        )
    for source, times in (plan.epochs or {}).items():
        if times > MANY_EPOCHS:
            found.append(
                f"source {source} is read {times:.1f} times over; beyond {MANY_EPOCHS} epochs repeated text teaches less "
                "and less (published runs read theirs about once): build more text, lower its weight, or lower the tokens"
            )
    if hardware.sheet is not None:
        host = FITTED.host_seconds_per_token * plan.tokens / 3600 / plan.device_hours
        if host > 0.5:
            found.append(
                f"{host:.0%} of the time is the host's (reading and driving, as fitted to the program that published the "
                "hours): a faster device gains little, so measure there with --device here before you rent it"
            )
    return found


def _phase_warnings(
    phase: PhasePlan, settings: PhaseSettings, config: ModernBertConfig, hardware: Hardware
) -> list[str]:
    found = []
    largest = phase.largest_micro_batch_tokens
    if largest == 0:
        found.append(
            f"not one sequence of {phase.sequence_length:,} tokens fits the {hardware.memory_bytes / GIB:.0f} GiB of "
            f"{hardware.name}; take a smaller model, or a device with more memory"
        )
    elif phase.memory_bytes > USABLE * hardware.memory_bytes:
        found.append(
            f"a micro-batch of {phase.micro_batch_tokens:,} tokens takes {phase.memory_bytes / GIB:.1f} GiB and "
            f"{hardware.name} has {hardware.memory_bytes / GIB:.0f}, of which {USABLE:.0%} are counted on; "
            f"set micro_batch_tokens={_dividing(settings, largest)}"
        )
    found += _sharing_warnings(settings, hardware.count)
    fills = 1.0 if hardware.sheet is None else _filling(config, settings, hardware.sheet)
    if fills < _FILLS and largest > phase.micro_batch_tokens:
        found.append(
            f"micro-batches of {phase.micro_batch_tokens:,} tokens reach {fills:.0%} of the speed of larger ones: the "
            f"device waits for the host to launch kernels; raise micro_batch_tokens (up to {largest:,} fit)"
        )
    if phase.steps < FEW_STEPS:
        found.append(f"only {phase.steps:,} steps; lower tokens_per_step, or raise its tokens, to learn something")
    return found


def _dividing(settings: PhaseSettings, largest: int) -> str:
    """Whole sequences that fit and go into the steps without remainder, or that the steps must be made to hold."""
    length, steps = settings.sequence_length, math.gcd(settings.tokens_per_step, settings.tokens_per_step_start or 0)
    fitting = range(largest // length * length, 0, -length)
    whole = next((tokens for tokens in fitting if steps % tokens == 0), None)
    return f"{largest} and the tokens of a step to a multiple of it" if whole is None else str(whole)


def _sharing_warnings(settings: PhaseSettings, count: int) -> list[str]:
    size = settings.tokens_per_step // settings.micro_batch_tokens
    rounds = math.ceil(size / count)
    busy = size / (rounds * count)
    fitting = settings.tokens_per_step // count // settings.sequence_length * settings.sequence_length
    if busy == 1 or count == 1:
        return []
    remedy = "raise tokens_per_step" if fitting == 0 else (
        f"lower micro_batch_tokens to a share of the {fitting:,} tokens that each of them gets, or raise tokens_per_step"
    )  # fmt: skip
    return [
        f"a step's {size:,} micro-batches keep {count} devices busy for {busy:.0%} of the time; {remedy} so that it is "
        f"a multiple of {count} micro-batches"
    ]


def _filling(config: ModernBertConfig, phase: PhaseSettings, device: Device) -> float:
    """The rate of this micro-batch over that of one four times as large."""
    m, length, rate = phase.micro_batch_tokens, phase.sequence_length, phase.mask_rate
    larger = micro_batch_seconds(config, 4 * m, length, rate, device)
    return larger / (4 * micro_batch_seconds(config, m, length, rate, device))
