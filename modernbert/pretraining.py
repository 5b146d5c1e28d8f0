"""A recipe → a pretrained encoder: the whole run, assembled in data order."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

import modernbert
from modernbert.console import Console, Update
from modernbert.data import MlmBatches
from modernbert.data.budget import cap_remarks, check_budget, long_share_remark
from modernbert.errors import CheckpointError, ConfigError, DataError
from modernbert.evaluate.machine import described_commit
from modernbert.model import hub
from modernbert.model.config import ModernBertConfig
from modernbert.model.tile import tiled_tensors
from modernbert.runtime import Precision, Runtime, deterministic_algorithms
from modernbert.tasks import EncoderModel, MaskedLM
from modernbert.tasks.load import newest_checkpoint
from modernbert.text import Shards, load_tokenizer, special_ids
from modernbert.train.checkpoint import Progress, RunFolder, read_about, take_weights
from modernbert.train.log import iter_metrics
from modernbert.train.loop import Hooks, Session, accumulate
from modernbert.train.measure import time_phase
from modernbert.train.optim import build_optimizer
from modernbert.train.peak import peak_flops
from modernbert.train.recipe import PhaseSettings, PretrainRun, changes_of
from modernbert.train.saving import StopRequest, free_space_problem
from modernbert.train.scale import read_run
from modernbert.train.score import evaluate_on, merged
from modernbert.train.trackers import Trackers

_SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def pretrain(
    run: PretrainRun,
    out: str | Path,
    runtime: Runtime,
    hooks: Hooks | None = None,
    *,
    allow_change: bool = False,
    time_limit_minutes: float | None = None,
) -> Path:
    """Pretrain by masked language modelling, or go on with the unfinished run in `out`.

    SIGTERM, SIGUSR1 and the time limit end it early, behind a checkpoint; run.json then says `unfinished`.

    Args:
        run: the recipe.
        out: the run's folder.
        runtime: device and precision.
        hooks: callbacks for rows, checkpoints and remarks.
        allow_change: go on although the recipe differs from the one that the run began with.
        time_limit_minutes: of this call.

    Returns:
        The newest checkpoint.

    Raises:
        ConfigError: `out` holds a run with other settings, or on other data.
        DataError: shards that cannot be used.
        CheckpointError: a checkpoint to start from that does not fit, or one that cannot be written.
        TrainingError: the run had to stop.
    """
    hooks = hooks or Hooks()
    run = run.resolve()
    sources = open_sources(run)
    config = shape_of(run, sources)
    for remark in check_text(run):
        hooks.on_remark(remark)
    with (
        RunFolder.locked(Path(out)) as folder,
        deterministic_algorithms(run.loop.deterministic),
        StopRequest(time_limit_minutes) as stop,
    ):
        about = {"recipe": run.model_dump(mode="json"), "data": {n: data_fingerprint(s) for n, s in sources.items()}}
        changes = _changes(folder, run, about["data"], allow=allow_change)
        if folder.finished and not changes:
            hooks.on_remark(f"{out} is finished: {run.total_tokens:,} tokens; nothing to do")
            return folder.newest()
        session = _session(run, config, folder, runtime, hooks, stop)
        folder.begin_session(
            **about, status="unfinished", from_step=session.progress.step, from_tokens=session.progress.tokens,
            environment=environment(runtime), changes=changes, peak_flops=session.peak, peak_source=session.peak_source,
        )  # fmt: skip
        with tracked(run, session) as trackers:
            folder.write_about(trackers=trackers.ids)
            try:
                reason = session.fit()
            except BaseException as error:
                folder.end_session(f"error: {error}" if isinstance(error, Exception) else type(error).__name__)
                raise
        folder.end_session(reason or "finished", status="unfinished" if reason else "finished")
        if reason:
            hooks.on_remark(f"stopped ({reason}) behind {folder.newest().name}; the same command goes on")
        return folder.newest()


@contextlib.contextmanager
def tracked(run: PretrainRun, session: Session) -> Iterator[Trackers]:
    """Have every row of a session go to the recipe's trackers, too."""
    folder, hooks = session.folder, session.hooks
    trackers = Trackers.start(
        run.loop.trackers, folder.path, folder.about, folder.about.get("trackers", {}), hooks.on_remark
    )

    def on_row(row: dict[str, Any]) -> None:
        hooks.on_row(row)
        trackers.row(row)

    session.hooks = replace(hooks, on_row=on_row)
    try:
        yield trackers
    finally:
        trackers.close()


def _session(
    run: PretrainRun, config: ModernBertConfig, folder: RunFolder, runtime: Runtime, hooks: Hooks, stop: StopRequest
) -> Session:
    """Model, optimizer, text and evaluation, as the newest checkpoint left them or new."""
    tokenizer = load_tokenizer(next(iter(run.data.folders().values())))
    task = MaskedLM(config, tokenizer, out_dropout=run.model.attention_dropout).draw(run.seed)
    progress = Progress()
    if not folder.checkpoints():
        _need_room(folder, task)
        if run.model.tile_from is not None:
            small = run.model.tile_from
            tensors = tiled_tensors(small, config, tokenizer=tokenizer, seed=run.seed)
            hub.load_tensors(task, tensors, origin=Path(small), assign=False)
            hooks.on_remark(f"weights tiled from {run.model.tile_from}")
    task = task.to(runtime.device)
    task.encoder.reproducible = True  # so that a run that goes on evaluates to the bit as before
    optimizer = build_optimizer(task, run.optim, run.phases[0].lr)
    peak, peak_source = peak_flops(config, runtime, run.phases[0].micro_batch_tokens)
    hooks.on_remark(f"peak for MFU: {peak / 1e9:,.0f} GFLOP/s ({peak_source})")
    torch.manual_seed(run.seed)  # for dropout; all else draws from generators of its own
    if folder.checkpoints():
        progress, remarks = folder.restore(task, optimizer, runtime)
        for remark in (f"going on with {folder.path} behind step {progress.step:,}", *remarks):
            hooks.on_remark(remark)
    return Session(
        task=task, optimizer=optimizer, run=run, batches_of=lambda phase, stream: mlm_batches(run, phase, stream),
        evaluate=held_out_scores(run, runtime), progress=progress, folder=folder, runtime=runtime, peak=peak,
        peak_source=peak_source, hooks=hooks, stop=stop,
    )  # fmt: skip


def open_sources(run: PretrainRun) -> dict[str, Shards]:
    """The training split of each source.

    Raises:
        DataError: shards that cannot be used.
    """
    return {name: Shards.open(path) for name, path in run.data.folders().items()}


def shape_of(run: PretrainRun, sources: dict[str, Shards]) -> ModernBertConfig:
    """The model's shape; every checkpoint that a phase starts from must have it.

    Raises:
        CheckpointError: one has another.
    """
    folders = {p.name: newest_checkpoint(hub.find_folder(p.checkpoint)) for p in run.phases if p.checkpoint is not None}
    theirs = {name: hub.read_config(folder) for name, folder in folders.items()}
    first, special = run.phases[0], special_ids(load_tokenizer(next(iter(run.data.folders().values()))))
    vocab_size = max(shards.vocab_size for shards in sources.values())
    config = run.model.config(vocab_size, special, theirs.get(first.name))
    for name, shape in theirs.items():
        differing = [f"{key}={getattr(shape, key)} (here {getattr(config, key)})" for key in _SHAPE
                     if getattr(shape, key) != getattr(config, key)]  # fmt: skip
        if differing:
            raise CheckpointError(
                f"phase {name}: {folders[name]} is of another shape: {', '.join(differing)}; give a checkpoint of this "
                "shape, leave model.preset out to take the checkpoint's, or start larger with model.tile_from"
            )
    for phase in run.phases:
        if phase.sequence_length > config.max_position_embeddings:
            raise ConfigError(
                f"phase {phase.name}: sequence_length={phase.sequence_length} exceeds the model's "
                f"{config.max_position_embeddings} positions; shorten it, or raise model.max_position_embeddings"
            )
    return config


def check_text(run: PretrainRun) -> list[str]:
    """Refuse text that cannot fill a phase, and say what is odd about it."""
    remarks = []
    for index, phase in enumerate(run.phases):
        mixture, tokens = mlm_batches(run, index).mixture, run.phase_tokens(phase)
        check_budget(mixture, tokens + phase.tokens_per_step)  # the last step may reach beyond the budget
        found = cap_remarks(mixture, tokens)
        before = run.phases[index - 1].sequence_length if index else phase.sequence_length
        if before < phase.sequence_length:
            found.append(long_share_remark(mixture, before, tokens, run.data.warn_long_share) or "")
        remarks += [f"phase {phase.name}: {remark}" for remark in found if remark]
    return remarks


def _changes(folder: RunFolder, run: PretrainRun, data: dict[str, str], *, allow: bool) -> list[str]:
    """What differs from the run in the folder; refused unless allowed."""
    if folder.recipe is None:
        return []
    changes = changes_of(folder.recipe, run)
    if changes and not allow:
        raise ConfigError(
            f"{folder.path} holds a run with {', '.join(changes[:3])}; go on with the same settings, say --allow-change "
            "if the change is meant, or choose another --out"
        )
    if folder.about["data"] != data:
        paths = ", ".join(run.data.folders().values())
        changes.append(f"{paths} is not the data that {folder.path} began with")
        if not allow:
            raise ConfigError(f"{changes[-1]}; give that, say --allow-change if it is meant, or choose another --out")
    return changes


def _need_room(folder: RunFolder, task: MaskedLM) -> None:
    """Two checkpoints must fit: one is written before another is deleted."""
    problem = free_space_problem(folder.path, 2 * 3 * 4 * task.num_parameters)
    if problem is not None:
        raise CheckpointError(problem)


def mlm_batches(run: PretrainRun, index: int, stream: int | None = None) -> MlmBatches:
    """The masked, packed training text of a phase, in the order of the stream that began in a phase (this one)."""
    phase = run.phases[index]
    return MlmBatches(
        run.data.folders(), mixture=phase.mixture, sequence_length=phase.sequence_length,
        micro_batch_tokens=phase.micro_batch_tokens, mask_rate=phase.mask_rate, mask_rate_end=phase.mask_rate_end,
        total_tokens=run.phase_tokens(phase), seed=stream_seed(run.seed, index if stream is None else stream),
    )  # fmt: skip


def stream_seed(seed: int, stream: int) -> int:
    """Of order and masks: each stream has its own, or a new phase would show the same text once more."""
    return seed if stream == 0 else int(np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0] >> 1)


def held_out_batches(run: PretrainRun, source: str, sequence_length: int) -> MlmBatches:
    """The held-out text of a source at the evaluation's masking rate: the same masks whenever it is asked for."""
    return MlmBatches(
        {source: run.data.folders()[source]}, split="heldout", sequence_length=sequence_length,
        micro_batch_tokens=max(run.phases[0].micro_batch_tokens, sequence_length),
        mask_rate=run.loop.eval_mask_rate, seed=run.seed,
    )  # fmt: skip


def held_out_scores(run: PretrainRun, runtime: Runtime) -> Callable[[EncoderModel, PhaseSettings], dict[str, Any]]:
    """An evaluation at a phase's length, over every source that has held-out text, alike.

    Raises:
        DataError: none has any.
    """
    kept = {name: path for name, path in run.data.folders().items() if has_held_out(path)}
    if not kept:
        raise DataError(f"{', '.join(run.data.folders().values())}: no held-out documents; build with --heldout 0.01")
    batches_of = cache(lambda source, length: held_out_batches(run, source, length))

    def evaluate(task: EncoderModel, phase: PhaseSettings) -> dict[str, Any]:
        each = max(1, run.loop.eval_size_tokens // len(kept))
        scores = {
            name: evaluate_on(task, batches_of(name, phase.sequence_length).once(), runtime, each) for name in kept
        }
        return {"sequence_length": phase.sequence_length, **merged(scores)}

    return evaluate


def has_held_out(folder: str) -> bool:
    """Whether a shard folder keeps documents apart for evaluation."""
    return bool(Shards.open(folder).manifest["splits"]["heldout"]["shards"])


def pretrain_recipe(
    recipe: str,
    settings: Sequence[str],
    out: Path,
    *,
    device: str = "auto",
    num_threads: int | None = None,
    precision: Precision = "auto",
    allow_change: bool = False,
    time_limit_minutes: float | None = None,
    console: Console,
) -> dict[str, Any]:
    """`pretrain` for a recipe's name or file with `key=value` changes, in view of a person.

    Returns:
        The newest checkpoint, its last evaluation, and whether the run is `finished`.
    """
    run = read_run(recipe, settings)
    runtime = Runtime.detect(device=device, precision=precision, num_threads=num_threads)
    with console.progress("pretraining", run.total_tokens) as update:
        hooks = Hooks(on_row=row_shower(console, update), on_remark=console.remark)
        checkpoint = pretrain(
            run, out, runtime, hooks, allow_change=allow_change, time_limit_minutes=time_limit_minutes
        )
    evaluations = [row for row in iter_metrics(out) if row["kind"] == "eval"]
    if not evaluations:
        raise CheckpointError(f"{out}/metrics.jsonl holds no evaluation any more; the checkpoint is {checkpoint}")
    last = evaluations[-1]
    return {
        "checkpoint": str(checkpoint),
        "status": read_about(out)["status"],
        **{name: last[name] for name in ("step", "tokens", "loss", "accuracy")},
    }


def dry_run_recipe(
    recipe: str,
    settings: Sequence[str],
    *,
    device: str = "auto",
    num_threads: int | None = None,
    precision: Precision = "auto",
    console: Console,
) -> dict[str, Any]:
    """Check a recipe by doing it: two steps of one real micro-batch for each phase, writing nothing.

    Returns:
        The resolved `recipe`, `parameters`, `remarks`, and for each of `phases` its losses, the seconds of a micro-batch
        and of an update, and those of a full step and of the whole phase that follow from them.
    """
    run = read_run(recipe, settings).resolve()
    runtime = Runtime.detect(device=device, precision=precision, num_threads=num_threads)
    config = shape_of(run, open_sources(run))
    remarks = check_text(run)
    phases = []
    with console.progress("trying phases", len(run.phases)) as update:
        for index, phase in enumerate(run.phases):
            phases.append(_try_phase(run, index, config, runtime))
            update(index + 1, phase.name)
    task = hub.on_meta(lambda: MaskedLM(config))
    return {
        "recipe": run.model_dump(mode="json"), "parameters": task.num_parameters, "remarks": remarks, "phases": phases,
    }  # fmt: skip


def _try_phase(run: PretrainRun, index: int, config: ModernBertConfig, runtime: Runtime) -> dict[str, Any]:
    phase, budget = run.phases[index], run.phase_tokens(run.phases[index])
    task = MaskedLM(config, out_dropout=run.model.attention_dropout).draw(run.seed).to(runtime.device)
    if phase.checkpoint is not None:
        take_weights(task, newest_checkpoint(hub.find_folder(phase.checkpoint)))
    optimizer = build_optimizer(task, run.optim, phase.lr)
    batches = [batch for batch, _ in itertools.islice(mlm_batches(run, index).stream(), 2)]
    losses = []
    for batch in batches:
        losses.append(accumulate(task, [batch], runtime)["loss"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    timing = time_phase(task, optimizer, phase, batches, runtime, micro_batches=1)
    return {
        "phase": phase.name, "tokens": budget, "steps": phase.num_steps(budget), "losses": losses,
        "micro_batch_tokens": [batch.num_tokens for batch in batches],
        "micro_batch_seconds": timing.micro_batch_seconds, "optimizer_seconds": timing.optimizer_seconds,
        "step_seconds": timing.step_seconds, "hours": phase.num_steps(budget) * timing.step_seconds / 3600,
        "peak_bytes": timing.peak_bytes,
    }  # fmt: skip


def show_dry_run(tried: dict[str, Any], console: Console) -> None:
    """The resolved recipe, and a row a phase."""
    console.say(tomli_w.dumps(_without_none(tried["recipe"])))
    console.table(
        ["phase", "tokens", "steps", "losses", "micro-batch", "update", "full step", "whole phase"],
        [
            [p["phase"], f"{p['tokens']:,}", f"{p['steps']:,}", " → ".join(f"{loss:.3f}" for loss in p["losses"]),
             f"{p['micro_batch_seconds']:.3f} s", f"{p['optimizer_seconds']:.3f} s", f"{p['step_seconds']:,.2f} s",
             f"{p['hours']:,.2f} h"]
            for p in tried["phases"]
        ],
    )  # fmt: skip
    for remark in tried["remarks"]:
        console.remark(remark)
    console.remark(f"{tried['parameters']:,} parameters; nothing was written")


def _without_none(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return [_without_none(value) for value in values] if isinstance(values, list) else values


def row_shower(console: Console, update: Update) -> Callable[[dict[str, Any]], None]:
    """Show each row of a run: steps on the bar, evaluations as lines."""

    def show(row: dict[str, Any]) -> None:
        if row["kind"] == "eval":
            console.say(
                f"{row['phase']}  step {row['step']:>6,}  {row['tokens'] / 1e6:6.2f} M tokens  "
                f"held-out loss {row['loss']:.3f}  accuracy {row['accuracy']:.1%}"
            )
        elif row["kind"] == "train":
            update(
                row["tokens"],
                f"{row['phase']}  loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s  "
                f"data wait {row['data_wait']:.1%}  MFU {row['mfu']:.0%}",
            )

    return show


def data_fingerprint(shards: Shards) -> str:
    """A hash of all token ids of a shard folder, and of their tokenizer: the same data under any path."""
    manifest = shards.manifest
    hashes = [shard["sha256"] for split in manifest["splits"].values() for shard in split["shards"]]
    return hashlib.sha256("".join([manifest["tokenizer"], *hashes]).encode()).hexdigest()[:16]


def environment(runtime: Runtime) -> dict[str, Any]:
    """Versions, hardware and commit: what a reader of a result wants to know."""
    packages = ("tokenizers", "safetensors", "torch-optimi", "numpy")
    return {
        **runtime.describe(),
        "modernbert": modernbert.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": described_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
