"""A recipe and some hardware, named or in front, → a plan; a budget of parameters or milliseconds → shapes.

A named device is reckoned from its data sheet (`train.roofline`) in no time. The machine in front is measured: each
phase's real micro-batches, from its text where that is there, in about a minute.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modernbert.batch import PackedBatch
from modernbert.console import Console
from modernbert.data.budget import epochs as epochs_of
from modernbert.data.pack import NUM_SPECIALS, Pieces
from modernbert.errors import ConfigError, ModernBertError
from modernbert.evaluate.chart import duration, quantity
from modernbert.evaluate.machine import tune_malloc, usable_memory_bytes
from modernbert.model import hub
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.preflight import base_remarks, check_text, has_held_out, mlm_batches, open_sources, shape_of
from modernbert.pretraining import saying_out_of_memory
from modernbert.runtime import Runtime
from modernbert.settings import override, read_recipe
from modernbert.tasks import MaskedLM
from modernbert.tasks.load import newest_checkpoint
from modernbert.text import Shards
from modernbert.text.tokenizer import SpecialIds
from modernbert.train.advice import advice
from modernbert.train.devices import DEVICES, GIB, Device, is_here, named_device
from modernbert.train.footprint import footprint, largest_micro_batch
from modernbert.train.measure import PhaseTiming, made_up_batches, time_phase
from modernbert.train.optim import build_optimizer, set_learning_rate
from modernbert.train.peak import peak_flops
from modernbert.train.plan import Hardware, full_flops, make_plan, sheet_timing
from modernbert.train.recipe import PhaseSettings, PretrainRun
from modernbert.train.scale import read_run

_NO_TEXT = "(no text given)"
_OF_ONE_MACHINE = 8  # devices whose links `train.devices` has
_PUBLISHED = PRESETS["base"]  # its vocabulary and special ids, where there is no tokenizer


def plan_recipe(
    recipe: str,
    settings: Sequence[str] = (),
    *,
    device: str = "here",
    count: int = 1,
    price: float | None = None,
    seconds: float = 60.0,
    num_threads: int | None = None,
    console: Console,
) -> dict[str, Any]:
    """A plan as plain data (`Plan`, and `remarks` on what it rests on).

    Args:
        recipe: name or file.
        settings: `key=value`; text need not be given.
        device: a name of `train.devices`, or one of its `HERE`.
        count: devices that share each step.
        price: of one of them for an hour.
        seconds: for measuring, over all phases.
        num_threads: CPU threads.
        console: where progress goes.

    Raises:
        ConfigError: a recipe, device, count or price that cannot be.
    """
    if count < 1:
        raise ConfigError(f"count={count} must be at least 1")
    if price is not None and not (price >= 0 and math.isfinite(price)):
        raise ConfigError(f"price={price} must be 0 or more, for a device and hour")
    named = None if is_here(device) else named_device(device)
    run, remarks = read_any_run(recipe, settings)
    sources, config, found = _text_and_shape(run)
    remarks += found
    if named is not None:
        hardware, timings, found = _by_data_sheet(run, config, named, count)
    else:
        tune_malloc()
        runtime = Runtime.detect(device="auto" if device == "here" else device, num_threads=num_threads)
        hardware = _hardware_here(runtime, config, run, count)
        with saying_out_of_memory():
            timings, found = _measure(run, config, runtime, seconds, console, with_text=sources is not None)
        if count > 1:
            found.append(f"one device was measured; what {count} need to exchange gradients is not counted")
    remarks += found
    warnings, known = ([], {}) if sources is None else (_preflight(run, config), _text_facts(run, sources))
    plan = make_plan(run, config, hardware, timings, price=price, **known)
    plan = dataclasses.replace(plan, warnings=[*warnings, *advice(plan, run, config, hardware)])
    return {"recipe": recipe, **dataclasses.asdict(plan), "remarks": remarks}


def _text_and_shape(run: PretrainRun) -> tuple[dict[str, Shards] | None, ModernBertConfig, list[str]]:
    absent = [folder for folder in run.data.folders().values() if not Path(folder).is_dir()]
    if not absent:
        sources = open_sources(run)
        return sources, shape_of(run, sources), []
    why = "no text is given (data.path or data.sources)" if _NO_TEXT in absent else f"{absent[0]} is no folder"
    return None, _shape_without_text(run), [f"{why}: every sequence counts as full, and epochs are not known"]


def _by_data_sheet(
    run: PretrainRun, config: ModernBertConfig, named: Device, count: int
) -> tuple[Hardware, list[PhaseTiming], list[str]]:
    hardware = Hardware(
        name=named.name, source=named.source, count=count, memory_bytes=named.memory_bytes,
        peak_flops=named.peak_flops, bfloat16=True, sheet=named,
    )  # fmt: skip
    remarks = []
    if count > _OF_ONE_MACHINE:
        remarks.append(
            f"{count} devices are more than the {_OF_ONE_MACHINE} of one machine, and gradients are reckoned to pass between "
            f"them as within one, {named.link_bytes_per_second / 1e9:.0f} GB/s each way: a slower network takes longer"
        )
    return hardware, [sheet_timing(config, phase, named) for phase in run.phases], remarks


def _preflight(run: PretrainRun, config: ModernBertConfig) -> list[str]:
    """For what `pretrain` would refuse the text, and what it would remark on."""
    found = base_remarks(run, config)
    try:
        found += check_text(run)
    except ModernBertError as error:
        found.append(f"pretrain refuses this: {error}")
    if not any(map(has_held_out, run.data.folders().values())):
        found.append("pretrain refuses this: no source has held-out documents; build with --heldout 0.01")
    return found


def read_any_run(recipe: str, settings: Sequence[str]) -> tuple[PretrainRun, list[str]]:
    """The resolved run, text or none, and what was assumed to fill it in."""
    values, assumed, remarks = override(read_recipe(recipe), settings), [], []
    # Sections and phases that are none are left to `read_run`, which refuses them by name.
    data, model = (values.get(name) or {} for name in ("data", "model"))
    phases = values.get("phases") or [{}]
    phases = [phase for phase in phases if isinstance(phase, Mapping)] if isinstance(phases, list) else []
    if isinstance(data, Mapping) and data.get("path") is None and not data.get("sources"):
        named = [
            (part.get("source") if isinstance(part, Mapping) else None) or name
            for phase in phases
            if isinstance(mixture := phase.get("mixture"), Mapping)
            for name, part in mixture.items()
        ]
        keys = [f"data.sources.{name}" for name in dict.fromkeys(named)] or ["data.path"]
        assumed += [f'{key}="{_NO_TEXT}"' for key in keys]
    nothing_said = isinstance(model, Mapping) and model.get("preset") is None
    if nothing_said and phases and phases[0].get("checkpoint") is None:
        assumed.append("model.preset=base")
        remarks.append(
            "no checkpoint is given to go on from: the shape is base's; set phases.0.checkpoint or model.preset"
        )
    return read_run(recipe, [*settings, *assumed]).resolve(), remarks


def _shape_without_text(run: PretrainRun) -> ModernBertConfig:
    """With the published vocabulary, or the checkpoint's."""
    checkpoint = None
    if run.phases[0].checkpoint is not None:
        checkpoint = hub.read_config(newest_checkpoint(hub.find_folder(run.phases[0].checkpoint)))
    like = checkpoint or _PUBLISHED
    special = SpecialIds(
        cls=like.cls_token_id or 0, sep=like.sep_token_id or 0, pad=like.pad_token_id or 0, mask=0, unk=0,
        never_masked_or_drawn=frozenset(),
    )  # fmt: skip
    return run.model.config(like.vocab_size, special, checkpoint)


def _text_facts(run: PretrainRun, sources: Mapping[str, Shards]) -> dict[str, Any]:
    """Epochs by component and by source, and the tokens of an evaluation."""
    by_phase, by_source = [], dict.fromkeys(sources, 0.0)
    for index, phase in enumerate(run.phases):
        mixture = mlm_batches(run, index).mixture
        found = epochs_of(mixture, run.phase_tokens(phase))
        by_phase.append(found)
        for component, times in enumerate(found.values()):
            source, epoch_tokens = mixture.sources[component], float(mixture.num_tokens_C[component])
            lengths = sources[source].lengths
            whole = lengths.sum() + NUM_SPECIALS * len(Pieces(lengths, phase.sequence_length))
            by_source[source] += times * epoch_tokens / float(whole)
    kept = [
        shards.manifest["splits"]["heldout"]["tokens"]
        for shards in sources.values()
        if has_held_out(str(shards.folder))
    ]
    each = run.loop.eval_size_tokens // max(1, len(kept))
    batch = run.phases[0].micro_batch_tokens  # evaluated whole
    evaluated = sum(min(tokens, -(-each // batch) * batch) for tokens in kept)
    return {"epochs": by_phase, "source_epochs": by_source, "evaluation_tokens": evaluated}


def show_plan(result: dict[str, Any], console: Console) -> None:
    """A table of phases, the sum, and every sentence."""
    devices = f"{result['count']} × {result['hardware']}" if result["count"] > 1 else result["hardware"]
    console.say(f"{result['parameters']:,} parameters on {devices} ({result['source']})")
    columns = "phase,tokens,steps,time,tokens/s,MFU,GiB a device,largest micro-batch,epochs,cost"
    console.table(columns.split(","), [
        [
            phase["name"], quantity(phase["tokens"]), f"{phase['steps']:,}", duration(3600 * phase["hours"]),
            f"{phase['tokens_per_second']:,.0f}", f"{phase['mfu']:.0%}", f"{phase['memory_bytes'] / GIB:.1f}",
            quantity(phase["largest_micro_batch_tokens"]), _epochs_in_words(phase["epochs"]), _money(phase["cost"]),
        ]
        for phase in result["phases"]
    ])  # fmt: skip
    cost = "" if result["cost"] is None else f", {_money(result['cost'])} at the price given"
    console.say(
        f"In all {quantity(result['tokens'])} tokens in {result['steps']:,} steps: {duration(3600 * result['hours'])}, "
        f"{result['device_hours']:,.4g} device-hours, {result['flops']:.3g} operations, MFU {result['mfu']:.0%}{cost}"
    )
    for line in [*result["warnings"], *result["remarks"]]:
        console.say(f"- {line}")


def _epochs_in_words(epochs: dict[str, float] | None) -> str:
    return "–" if epochs is None else ", ".join(f"{name} {times:.2f}" for name, times in epochs.items())


def _money(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:,.2f}"


def _hardware_here(runtime: Runtime, config: ModernBertConfig, run: PretrainRun, count: int) -> Hardware:
    peak, peak_source = peak_flops(config, runtime, run.phases[0].micro_batch_tokens)
    return Hardware(
        name=str(runtime.describe()["device"]), source=f"measured here (peak: {peak_source})", count=count,
        memory_bytes=usable_memory_bytes(runtime.device), peak_flops=peak, bfloat16=runtime.dtype != torch.float32,
    )  # fmt: skip


def _measure(
    run: PretrainRun, config: ModernBertConfig, runtime: Runtime, seconds: float, console: Console, *, with_text: bool
) -> tuple[list[PhaseTiming], list[str]]:
    """Each phase's timing, and how it was come by where a whole micro-batch would have taken too long."""
    memory, states = usable_memory_bytes(runtime.device), footprint(config, 0, 0.0, bfloat16=False).total
    if states > memory:
        raise ConfigError(
            f"weights, gradients and averages take {states / GIB:.0f} GiB and this machine has {memory / GIB:.0f}; name "
            f"what is to train it: --device {', '.join(DEVICES)}"
        )
    task = MaskedLM(config, out_dropout=run.model.attention_dropout).draw(run.seed).to(runtime.device)
    task.encoder.reproducible = True  # as in training
    task.encoder.checkpoint_layers = run.compute.activation_checkpointing
    optimizer = build_optimizer(task, run.optim, run.phases[0].lr)
    set_learning_rate(optimizer, 0.0, run.phases[0].lr)  # only the time counts
    lone = run.phases[0].model_copy(update=_sized(1, min(run.phases[0].sequence_length, 512)))
    rate = _rate(time_phase(task, optimizer, lone, made_up_batches(config.vocab_size, lone), runtime, micro_batches=2))
    share = seconds / len({_kind(phase) for phase in run.phases})
    timings: dict[Any, PhaseTiming] = {}
    remarks = []
    with console.progress("measuring", len(run.phases)) as update:
        for index, phase in enumerate(run.phases):
            update(index, phase.name)
            if (kind := _kind(phase)) not in timings:
                most = largest_micro_batch(
                    config, memory, 1, phase.mask_rate, bfloat16=runtime.dtype != torch.float32,
                    dropout=run.model.attention_dropout > 0, recomputed=run.compute.activation_checkpointing,
                )  # fmt: skip
                probe = _affordable(config, phase, rate * share / 5, most)  # a warm-up, two or more passes, two updates
                batches = _batches(run, index, probe) if with_text else made_up_batches(config.vocab_size, probe)
                timing = time_phase(task, optimizer, probe, batches, runtime, seconds=0.7 * share)
                if probe is not phase:
                    timing, remark = _scaled_to(config, phase, probe, timing, fits=phase.micro_batch_tokens <= most)
                    remarks.append(remark)
                timings[kind] = timing
            full = phase.tokens_per_step // phase.micro_batch_tokens
            timings[phase.name] = dataclasses.replace(timings[kind], micro_batches_per_step=full)
    return [timings[phase.name] for phase in run.phases], remarks


def _batches(run: PretrainRun, index: int, probe: PhaseSettings) -> Iterator[PackedBatch]:
    """Of a phase's own text, in micro-batches of the probe."""
    phases = [probe if i == index else other for i, other in enumerate(run.phases)]
    return (batch for batch, _ in mlm_batches(run.model_copy(update={"phases": phases}), index).stream())


def _scaled_to(
    config: ModernBertConfig, phase: PhaseSettings, probe: PhaseSettings, timing: PhaseTiming, *, fits: bool
) -> tuple[PhaseTiming, str]:
    """What a smaller probe took, for the phase's own micro-batches; and a sentence on it."""
    flops = timing.flops_per_micro_batch * full_flops(config, phase) / full_flops(config, probe)
    tokens = timing.tokens_per_micro_batch * phase.micro_batch_tokens / probe.micro_batch_tokens
    why = "would take too long" if fits else "does not fit the memory here"
    return timing.scaled(round(tokens), flops), (
        f"phase {phase.name}: a micro-batch {why}, so it was measured on {probe.micro_batch_tokens:,} tokens in sequences "
        f"of {probe.sequence_length:,}, and scaled by operations to its micro-batches"
    )


def _kind(phase: PhaseSettings) -> tuple[Any, ...]:
    """What makes micro-batches alike."""
    return phase.sequence_length, phase.micro_batch_tokens, phase.mask_rate, str(phase.mixture)


def _affordable(config: ModernBertConfig, phase: PhaseSettings, flops: float, tokens: int) -> PhaseSettings:
    """The phase itself, or with fewer sequences, or with a single shorter one: a pass of so many operations and tokens."""
    if full_flops(config, phase) <= flops and phase.micro_batch_tokens <= tokens:
        return phase
    length = phase.sequence_length
    one = phase.model_copy(update=_sized(1, length))
    if (sequences := int(min(flops / full_flops(config, one), tokens / length))) >= 1:
        return phase.model_copy(update=_sized(sequences, length))
    while length > 256 and (full_flops(config, one) > flops or length > tokens):
        length //= 2
        one = phase.model_copy(update=_sized(1, length))
    return one


def _sized(sequences: int, length: int) -> dict[str, int]:
    return {"sequence_length": length, "micro_batch_tokens": sequences * length, "tokens_per_step": sequences * length}


def _rate(timing: PhaseTiming) -> float:
    return timing.flops_per_micro_batch / timing.micro_batch_seconds
