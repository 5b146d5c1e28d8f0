"""A recipe → a pretrained encoder: the whole run, assembled in data order."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import tomli_w
import torch

import modernbert
from modernbert.console import Console, Update
from modernbert.errors import CheckpointError, ConfigError, DataError, StoppedError, TrainingError
from modernbert.evaluate.machine import described_commit, tune_malloc
from modernbert.model import hub
from modernbert.model.config import ModernBertConfig
from modernbert.model.tile import tiled_tensors
from modernbert.preflight import (
    base_remarks,
    changes_from,
    check_text,
    data_fingerprint,
    has_held_out,
    held_out_batches,
    mlm_batches,
    need_room,
    open_sources,
    ranks_remarks,
    shape_of,
)
from modernbert.ranks import Ranks, is_launched, need_no_others
from modernbert.remote import is_address
from modernbert.runtime import Precision, Runtime, deterministic_algorithms
from modernbert.settings import without_none
from modernbert.tasks import EncoderModel, MaskedLM
from modernbert.tasks.load import newest_checkpoint
from modernbert.text import load_tokenizer
from modernbert.text.shards import local_folder
from modernbert.train.checkpoint import Progress, RunFolder, take_weights
from modernbert.train.log import last_evaluation
from modernbert.train.loop import STREAMS_APART, Hooks, Session, accumulate, enter_phase
from modernbert.train.measure import time_phase
from modernbert.train.optim import build_optimizer, keep_off_triton
from modernbert.train.peak import peak_flops
from modernbert.train.recipe import PhaseSettings, PretrainRun
from modernbert.train.run_store import RunStore
from modernbert.train.saving import StopRequest
from modernbert.train.scale import read_run
from modernbert.train.score import evaluate_on, merged
from modernbert.train.spread import alone, spread
from modernbert.train.trackers import Trackers

Evaluate: TypeAlias = Callable[[EncoderModel, PhaseSettings], dict[str, Any]]


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

    SIGTERM, SIGUSR1, Ctrl-C, a closed terminal and the time limit end it early, behind a checkpoint; run.json then says
    `unfinished`.

    Args:
        run: the recipe.
        out: the run's folder, or its address.
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
        StoppedError: it was asked to, and has saved.
    """
    run, ranks = run.resolve(), runtime.ranks
    hooks = (hooks or Hooks()) if ranks.is_first else Hooks()
    store, out = _opened(out, ranks, hooks)
    with ranks.agreeing():
        for place in run.data.places().values():
            local_folder(place, remark=hooks.on_remark)
        sources = open_sources(run)
        config = shape_of(run, sources, out)
        remarks = [*runtime.remarks(), *check_text(run), *base_remarks(run, config), *ranks_remarks(run, ranks)]
    _refuse_other_starts(run, runtime)
    for remark in remarks:
        hooks.on_remark(remark)
    patient, ranks = ranks, ranks.impatient(run.compute.timeout_minutes)
    runtime = replace(runtime, ranks=ranks)
    evaluate = held_out_scores(run, runtime)
    with (
        RunFolder.locked(out, ranks, store) as folder,
        deterministic_algorithms(run.loop.deterministic),
        StopRequest(time_limit_minutes) as stop,
    ):
        for name in folder.cut_off:
            hooks.on_remark(f"{name}: its save was cut off, so it does not count and was cleared away")
        _put_the_rest(folder, patient, hooks)
        data = {name: data_fingerprint(shards.manifest) for name, shards in sources.items()}
        about = {"recipe": run.model_dump(mode="json"), "data": data}
        _refuse_other_text(ranks, data)
        with ranks.agreeing():
            changes = changes_from(folder, run, data, allow=allow_change)
        session = (
            None if folder.finished and not changes else _session(run, config, evaluate, folder, runtime, hooks, stop)
        )
        if session is None or (folder.finished and session.is_done()):
            hooks.on_remark(f"{out} is finished: {run.total_tokens:,} tokens; nothing to do")
            return folder.agreed_newest()
        folder.begin_session(
            **about, status="unfinished", from_step=session.progress.step, from_tokens=session.progress.tokens,
            environment=environment(runtime), changes=changes, peak_flops=session.peak, peak_source=session.peak_source,
        )  # fmt: skip
        with tracked(run, session) as trackers:
            folder.write_about(trackers=trackers.ids)
            try:
                with saying_out_of_memory():
                    reason = session.fit()
            except BaseException as error:
                folder.end_by_error(error)
                raise
        folder.end_session(reason or "finished", status="unfinished" if reason else "finished")
        _close_address(folder, patient, hooks, is_stopped=reason is not None)
        newest = folder.agreed_newest()
        if reason:
            behind = str(newest) if store is None else f"{store.remote.address}/{newest.name}"
            with ranks.agreeing():
                raise StoppedError(f"stopped ({reason}) behind {behind}; the same command goes on from there")
        return newest


def _refuse_other_starts(run: PretrainRun, runtime: Runtime) -> None:
    """Ranks that were given another recipe, or compute otherwise, would wait for each other or learn something else."""
    runtime.ranks.need_same(
        recipe=hashlib.sha256(run.model_dump_json().encode()).hexdigest()[:16],
        precision=str(runtime.dtype),
        device=runtime.device.type,
        torch=torch.__version__,
        modernbert=modernbert.__version__,
    )


def _refuse_other_text(ranks: Ranks, data: dict[str, str]) -> None:
    of_first = ranks.first(data)
    with ranks.agreeing():
        if of_first != data:
            raise ConfigError(
                f"the text on {ranks.host} is not the first rank's (fingerprints {data}, there {of_first}); copy the same "
                "shards to every host, or give their address"
            )


def _close_address(folder: RunFolder, patient: Ranks, hooks: Hooks, *, is_stopped: bool) -> None:
    """Have the run's address hold all of it, and say so."""
    if folder.store is None:
        return
    try:
        _put_the_rest(folder, patient, hooks)
    except CheckpointError as error:
        if not is_stopped:
            raise
        hooks.on_remark(str(error))  # whoever asked it to stop is to start it again all the same
    else:
        hooks.on_remark(f"all of it is at {folder.store.remote.address}")


def _put_the_rest(folder: RunFolder, patient: Ranks, hooks: Hooks) -> None:
    """What the run's address lacks; the other ranks wait for it as long as it takes."""
    with patient.agreeing():
        if patient.is_first:
            for remark in folder.put_the_rest():
                hooks.on_remark(remark)


def _opened(out: str | Path, ranks: Ranks, hooks: Hooks) -> tuple[RunStore | None, Path]:
    """The folder to train in; of an address its working folder on this host, brought to where the run stands."""
    if not is_address(out):
        return None, Path(out)
    with ranks.agreeing():
        store = RunStore.open(str(out), remark=hooks.on_remark)
    for is_turn in (ranks.is_first, ranks.is_first_here and not ranks.is_first):  # the first clears unfinished uploads
        with ranks.agreeing():
            if is_turn:
                for remark in store.pull(host=ranks.node, num_hosts=ranks.num_nodes):
                    hooks.on_remark(remark)
    return store, store.working


@contextlib.contextmanager
def saying_out_of_memory(
    remedy: str = "lower the phase's micro_batch_tokens, `modernbert plan` says what fits",
) -> Iterator[None]:
    """Say in one line that a device's memory is too small, and what to do.

    Raises:
        TrainingError: instead of the body's OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the device's memory is full ({str(error).splitlines()[0]}); {remedy}") from error


@contextlib.contextmanager
def tracked(run: PretrainRun, session: Session) -> Iterator[Trackers]:
    """Have every row of a session go to the recipe's trackers, too."""
    folder, hooks = session.folder, session.hooks
    names = run.loop.trackers if folder.ranks.is_first else ()
    trackers = Trackers.start(names, folder.path, folder.about, folder.about.get("trackers", {}), hooks.on_remark)

    def on_row(row: dict[str, Any]) -> None:
        hooks.on_row(row)
        trackers.row(row)

    session.hooks = replace(hooks, on_row=on_row)
    try:
        yield trackers
    finally:
        trackers.close()


def _session(
    run: PretrainRun,
    config: ModernBertConfig,
    evaluate: Evaluate,
    folder: RunFolder,
    runtime: Runtime,
    hooks: Hooks,
    stop: StopRequest,
) -> Session:
    """Model and optimizer, as the newest checkpoint left them or new."""
    ranks = runtime.ranks
    tokenizer = load_tokenizer(next(iter(run.data.folders().values())))
    task = MaskedLM(config, tokenizer, out_dropout=run.model.attention_dropout).draw(run.seed)
    progress = Progress()
    goes_on = ranks.on_first(lambda: bool(folder.checkpoints()))
    if not goes_on:
        ranks.on_first(lambda: need_room(folder, task))
        if run.model.tile_from is not None:
            with ranks.agreeing():
                _take_tiled(task, run, run.model.tile_from)
            hooks.on_remark(f"weights tiled from {run.model.tile_from}")
    task = task.to(runtime.device)
    task.encoder.reproducible = True  # so that a run that goes on evaluates to the bit as before
    task.encoder.checkpoint_layers = run.compute.activation_checkpointing
    if run.compute.compile:
        from modernbert.model.compile import compile_layers  # seconds to import

        compile_layers(task.encoder, num_tokens=run.phases[0].micro_batch_tokens)
    shared = spread(task, run.compute.strategy, ranks)
    optimizer = build_optimizer(task, run.optim, run.phases[0].lr)
    if shared.is_sharded:
        keep_off_triton(optimizer)
    peak, peak_source = ranks.on_first(lambda: peak_flops(config, runtime, run.phases[0].micro_batch_tokens))
    hooks.on_remark(f"peak for MFU: {peak / 1e9:,.0f} GFLOP/s ({peak_source})")
    if goes_on:
        progress, remarks = folder.restore(shared, optimizer, runtime)
        with ranks.agreeing():
            remarks += _place_in(run, progress)
        for remark in (f"going on with {folder.path} behind step {progress.step:,}", *remarks):
            hooks.on_remark(remark)
    return Session(
        spread=shared, optimizer=optimizer, run=run, batches_of=lambda phase, stream: mlm_batches(run, phase, stream),
        evaluate=evaluate, progress=progress, folder=folder, runtime=runtime, peak=peak,
        peak_source=peak_source, hooks=hooks, stop=stop, num_workers=run.data.workers,
    )  # fmt: skip


def _take_tiled(task: MaskedLM, run: PretrainRun, small: str) -> None:
    """A smaller model's weights; it must turn positions as the first phase does."""
    tokenizer, first = load_tokenizer(next(iter(run.data.folders().values()))), run.phases[0]
    bases = {"global_rope_theta": first.global_rope_theta, "local_rope_theta": first.local_rope_theta}
    config = task.config.replace(**{name: base for name, base in bases.items() if base is not None})
    tensors = tiled_tensors(small, config, tokenizer=tokenizer, seed=run.seed)
    hub.load_tensors(task, tensors, origin=Path(small), assign=False)


def _place_in(run: PretrainRun, progress: Progress) -> list[str]:
    """Find a run's place in a recipe that may have been edited; says what could not be kept.

    Raises:
        ConfigError: the phase that it was in is gone.
    """
    names = [phase.name for phase in run.phases]
    if (progress.name or names[0]) not in names:
        raise ConfigError(
            f"the run was in its phase {progress.name}, and the recipe has {', '.join(names)}; keep that phase's name"
        )
    progress.phase = names.index(progress.name) if progress.name else progress.phase
    if progress.loader is None or progress.loader["key"] == mlm_batches(run, progress.phase, progress.stream).key:
        return []
    progress.loader, progress.stream = None, progress.stream + STREAMS_APART
    return [f"phase {progress.name} reads other text than before, or cuts it otherwise, and begins to read it anew"]


def held_out_scores(run: PretrainRun, runtime: Runtime) -> Evaluate:
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


def pretrain_recipe(
    recipe: str,
    settings: Sequence[str],
    out: str | Path,
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
        The newest checkpoint and its last evaluation.
    """
    tune_malloc()
    with Ranks.joined(device=device) as ranks:
        with ranks.agreeing():
            run = read_run(recipe, settings)
            _refuse_restarts(time_limit_minutes)
            runtime = Runtime.detect(device=device, precision=precision, num_threads=num_threads, ranks=ranks)
        with console.progress("pretraining", run.total_tokens) as update:
            hooks = Hooks(on_row=row_shower(console, update), on_remark=console.remark)
            checkpoint = pretrain(
                run, out, runtime, hooks, allow_change=allow_change, time_limit_minutes=time_limit_minutes
            )
        last = ranks.on_first(lambda: last_evaluation(checkpoint.parent))
    if last is None:
        raise CheckpointError(
            f"{checkpoint.parent}/metrics.jsonl holds no evaluation any more; the checkpoint is {checkpoint}"
        )
    return {
        "checkpoint": str(checkpoint),
        **{name: last[name] for name in ("step", "tokens", "loss", "accuracy")},
    }


def _refuse_restarts(time_limit_minutes: float | None) -> None:
    """A run that stopped as it was told to must not be started again by its launcher."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if time_limit_minutes is not None and restarts and is_launched():
        raise ConfigError(
            f"--time-limit {time_limit_minutes:g} ends the run, and torchrun --max-restarts {restarts} would begin it again; "
            "leave one out"
        )


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
    need_no_others("--dry-run")
    run = read_run(recipe, settings).resolve()
    tune_malloc()
    runtime = Runtime.detect(device=device, precision=precision, num_threads=num_threads)
    for place in run.data.places().values():
        local_folder(place, remark=console.remark)
    config = shape_of(run, open_sources(run))
    remarks = [*runtime.remarks(), *check_text(run), *base_remarks(run, config)]
    held_out_scores(run, runtime)  # refuses text of which nothing is held out
    phases = []
    with console.progress("trying phases", len(run.phases)) as update, saying_out_of_memory():
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
    task.encoder.checkpoint_layers = run.compute.activation_checkpointing
    if phase.checkpoint is not None:
        take_weights(task, newest_checkpoint(hub.find_folder(phase.checkpoint)))
    elif run.model.tile_from is not None:
        _take_tiled(task, run, run.model.tile_from)
    optimizer = build_optimizer(task, run.optim, phase.lr)
    enter_phase(task, optimizer, run, phase)
    batches = [batch for batch, _ in itertools.islice(mlm_batches(run, index).stream(), 2)]
    losses = []
    for batch in batches:
        losses.append(accumulate(alone(task), [batch], runtime)["loss"])
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
    console.say(tomli_w.dumps(without_none(tried["recipe"])))
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
