"""Examples + a pretrained model → a folder that answers: the whole fine-tuning, assembled in data order.

    OUT/                a model that transformers opens, its card, metrics.json, confusion.png
    OUT/run/            run.json, metrics.jsonl, loss.png; until the end also `best` and what is needed to go on

The result is made whole within `run` and then moved up, metrics.json last. Several tasks give OUT/NAME each.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor

from modernbert.batch import Feature, pack_features, within
from modernbert.data.labelled import LabelledBatches
from modernbert.disk import sync
from modernbert.errors import ConfigError, StoppedError, UnsupportedError
from modernbert.evaluate.foreign import is_ours
from modernbert.evaluate.metrics import score_all
from modernbert.evaluate.model_card import HUB_NAME
from modernbert.evaluate.score import model_fingerprint
from modernbert.finetuned import METRICS, Decided, write_result
from modernbert.model import hub
from modernbert.model.encoder import Encoder
from modernbert.pretraining import environment, saying_out_of_memory
from modernbert.runtime import Runtime
from modernbert.taskdata import TaskData, labels_of, read_task
from modernbert.tasks import EncoderModel, load
from modernbert.tasks.answer import STRIDE
from modernbert.tasks.head import HeadModel, HeadSettings, LossSettings
from modernbert.tasks.load import HEADS, LONGEST_WINDOW
from modernbert.tasks.several import SeveralHeads
from modernbert.text.examples import Example, Kind
from modernbert.train.checkpoint import RUN_FILE, Progress, RunFolder, take_weights, writing
from modernbert.train.finetune import FinetuneRun
from modernbert.train.loop import Hooks, Session
from modernbert.train.optim import build_optimizer
from modernbert.train.recipe import PhaseSettings, differences
from modernbert.train.saving import StopRequest, remove_checkpoint, snapshot
from modernbert.train.score import evaluate_on
from modernbert.train.select import Selection
from modernbert.train.spread import spread

_LOSS_TOKENS = 200_000  # of validation examples, on which the loss is taken
_BEST = "best"  # in a run's folder: the best weights so far, by their steps
_RESULT = "result"  # in a run's folder: what is moved up at the end
_BEST_KEPT = 3  # a checkpoint that is being written knows the last but one, and the one before it the last but two
_IF_MEMORY_IS_FULL = (
    "say compute.activation_checkpointing=true, or with another --out micro_batch_tokens=… or a shorter --max-length"
)
_ARCHITECTURES: dict[Kind, str] = {
    "classify": "ModernBertForSequenceClassification", "pair": "ModernBertForSequenceClassification",
    "tag": "ModernBertForTokenClassification", "answer": "ModernBertForQuestionAnswering",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is to be trained, on what."""

    run: FinetuneRun  # resolved
    tasks: dict[str, TaskData]
    heads: dict[str, HeadModel]
    model: EncoderModel  # the only head, or all of them over one encoder
    batches: LabelledBatches
    fingerprints: dict[str, Any]  # of what is learnt from, and of what scores it
    remarks: list[str]

    @property
    def metric(self) -> tuple[str, bool]:
        """By which weights are chosen, and whether more of it is better."""
        return next(iter(self.tasks.values())).metric if len(self.tasks) == 1 else (SCORE, True)


SCORE = "score"
"""Of several tasks: the mean of their metrics, each counted so that more is better."""


def finetune(run: FinetuneRun, out: Path, runtime: Runtime, hooks: Hooks | None = None) -> dict[str, Any]:
    """Fine-tune a model, or go on with the unfinished fine-tuning in `out`.

    Args:
        run: model, tasks and how to learn.
        out: the folder to write.
        runtime: device, precision and ranks.
        hooks: callbacks for rows and remarks.

    Returns:
        What metrics.json says: of each task its folder, metric, validation and test scores.

    Raises:
        ConfigError: settings that do not fit, or `out` holds something else.
        DataError: files that cannot be used.
        CheckpointError: a model that cannot be loaded, or results that cannot be written.
        StoppedError: it was asked to stop, and has saved.
    """
    ranks = runtime.ranks
    hooks = (hooks or Hooks()) if ranks.is_first else Hooks()
    with ranks.agreeing():
        _refuse_other(out)
        prepared = prepare(run, runtime)
    for remark in [*runtime.remarks(), *prepared.remarks]:
        hooks.on_remark(remark)
    about = {"recipe": run.model_dump(mode="json"), "data": prepared.fingerprints}
    ranks = ranks.impatient(run.compute.timeout_minutes)
    runtime = replace(runtime, ranks=ranks)
    with RunFolder.locked(out / "run", ranks) as folder, StopRequest() as stop:
        with ranks.agreeing():
            _refuse_changes(folder, about)
        if folder.finished:
            hooks.on_remark(f"{out} is finished; nothing to do")
            return ranks.on_first(lambda: json.loads((out / METRICS).read_text(encoding="utf-8")))
        best = folder.path / _BEST

        def keep(weights: dict[str, Tensor], step: int) -> None:
            _write_best(prepared, weights, best, step)

        session = _session(prepared, folder, runtime, hooks, stop, keep=keep)
        folder.begin_session(
            **about, status="unfinished", from_step=session.progress.step, from_tokens=session.progress.tokens,
            environment=environment(runtime), changes=[],
        )  # fmt: skip
        try:
            with saying_out_of_memory(_IF_MEMORY_IS_FULL):
                reason = session.fit()
        except BaseException as error:
            folder.end_by_error(error)
            raise
        if reason is not None:
            folder.end_session(reason, status="unfinished")
            with ranks.agreeing():
                raise StoppedError(f"stopped ({reason}); the same command goes on from there")
        assert session.progress.best is not None
        with ranks.agreeing():
            take_weights(prepared.model, best / _name_of(session.progress.best["step"]))
        decided = final_decisions(prepared, runtime)
        result = ranks.on_first(lambda: _finish(out, prepared, decided, folder, session.progress))
        folder.end_session("finished", status="finished")
        ranks.on_first(lambda: _tidy(folder))
        return result


def _refuse_other(out: Path) -> None:
    """Results are moved into OUT: nobody's files are to be in their way."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{out} cannot be written, as {there} is no folder that can be; choose another --out")
    if not out.exists() or (out / "run" / RUN_FILE).exists():
        return
    if any(path.name != "run" for path in out.iterdir()):
        raise ConfigError(f"{out} is there and holds no fine-tuning; choose another --out")


def _refuse_changes(folder: RunFolder, about: dict[str, Any]) -> None:
    """How it is computed and guarded may change when it goes on; what is learnt may not."""
    if not folder.about:
        return
    stored, asked = folder.about["recipe"], about["recipe"]
    changes = [
        f"{'.'.join(map(str, key))}={theirs!r} (now {ours!r})"
        for key, theirs, ours in differences(stored, asked)
        if key[0] not in ("guard", "compute")
    ]
    if not changes:
        changes = [f"other {what}" for what, found in about["data"].items() if folder.about["data"].get(what) != found]
    if changes:
        raise ConfigError(
            f"{folder.path} holds a fine-tuning with {', '.join(changes[:3])}; go on with the same, or choose another --out"
        )


# --- preparation


def prepare(run: FinetuneRun, runtime: Runtime, base: EncoderModel | None = None, *, fingerprint: str = "") -> Prepared:
    """Read files, put new heads on the model, and tokenise.

    Args:
        run: model, tasks and how to learn.
        runtime: where the model goes.
        base: the model, if it is loaded already; it is not changed.
        fingerprint: its own, if that is known.
    """
    names = run.names()
    tasks = {name: read_task(settings, name, run.seed) for name, settings in zip(names, run.tasks, strict=True)}
    base = base or _load_ours(run.model)
    run = run.resolve(num_examples=max(len(data.train) for data in tasks.values()), hidden_size=base.config.hidden_size)
    made = {name: head_for(base, data, run) for name, data in tasks.items()}
    features = {name: made[name].features(data.train) for name, data in tasks.items()}
    for name, data in tasks.items():
        made[name].loss = _loss_settings(data, made[name])
    batches = LabelledBatches(
        features, batch_size=run.batch_size, micro_batch_tokens=run.micro_batch_tokens, seed=run.seed
    )
    model: EncoderModel = next(iter(made.values()))
    if len(made) > 1:
        model = SeveralHeads(made, {name: data.settings.weight for name, data in tasks.items()})
    if run.freeze:
        model.encoder.requires_grad_(False)
    model = model.to(runtime.device)
    model.encoder.checkpoint_layers = run.compute.activation_checkpointing
    told = {name: f"{name}, " if len(tasks) > 1 else "" for name in tasks}
    remarks = [f"{told[name]}{remark}" for name, data in tasks.items() for remark in data.remarks]
    remarks += [remark for name, of_task in features.items() for remark in _said(tasks[name], made[name], of_task, run)]
    fingerprints = {
        "model": fingerprint or model_fingerprint(base, base.tokenizer), "training examples": batches.key,
        "validation or test examples": zlib.crc32(repr([(t.validation, t.test) for t in tasks.values()]).encode()),
    }  # fmt: skip
    return Prepared(
        run=run, tasks=tasks, heads=made, model=model, batches=batches, fingerprints=fingerprints, remarks=remarks
    )


def _said(data: TaskData, model: HeadModel, features: Sequence[Feature], run: FinetuneRun) -> list[str]:
    """What a user should know of the examples as the model sees them."""
    lengths = np.array([len(feature.ids_T) for feature in features])
    windows = f" in {len(features):,} windows" if len(features) != len(data.train) else ""
    said = [
        f"{data.name}: {len(data.train):,} examples{windows} of {lengths.sum():,} tokens, the longest of {lengths.max():,}; "
        f"epochs {run.epochs:g}, batches of {run.batch_size}, lr {run.lr:g}"
    ]
    full = int((lengths == model.settings.max_length).sum())
    if full and not model.settings.stride:
        said.append(
            f"{data.name}: {full:,} texts fill all {model.settings.max_length:,} tokens, and are cut there if longer"
        )
    return said


def _load_ours(name: str) -> EncoderModel:
    if not is_ours(name):
        raise UnsupportedError(
            f"{name} is no ModernBERT, and a fine-tuned folder is to be one; `modernbert evaluate` scores any encoder"
        )
    return load(name)


def head_for(base: EncoderModel, data: TaskData, run: FinetuneRun) -> HeadModel:
    """A new head on the weights of a model, which is not changed; the head's dense layer too where it has one."""
    task, positions = data.settings, base.config.max_position_embeddings
    architecture = _ARCHITECTURES[task.kind]
    max_length = task.max_length or min(positions, LONGEST_WINDOW.get(architecture, positions))
    if max_length > positions:
        raise ConfigError(f"max_length={max_length} exceeds the model's {positions:,} positions; lower it")
    stride = min(STRIDE, max_length // 4) if task.stride is None else task.stride
    if stride >= max_length // 2:
        raise ConfigError(f"stride={stride} is no less than half of max_length={max_length}; lower it")
    settings = HeadSettings(
        kind=task.kind, labels=data.labels, problem=data.problem, max_length=max_length, pooling=task.pooling,
        stride=stride if task.kind in ("tag", "answer") else 0,
    )  # fmt: skip
    encoder = None if isinstance(base.encoder, Encoder) else copy.deepcopy(base.encoder)
    if encoder is not None and run.out_dropout:
        raise ConfigError(f"out_dropout={run.out_dropout}: this encoder has dropout of its own; leave it out")
    tokenizer = Tokenizer.from_str(base.need_tokenizer().to_str())  # its own: a head may settle how words begin
    model = HEADS[architecture](
        base.encoder.config, tokenizer, settings, out_dropout=run.out_dropout, head_dropout=run.head_dropout,
        encoder=encoder,
    )  # fmt: skip
    model.adapt(data.train)
    return model.draw_head(run.seed) if encoder is not None else model.draw(run.seed).take_encoder(base)


def _loss_settings(data: TaskData, model: HeadModel) -> LossSettings:
    """Class weights by name, or by how rare a class is: 1 for the examples on the average."""
    task, wanted = data.settings, data.settings.class_weights
    if task.label_smoothing and data.problem not in ("single", "tokens"):
        raise ConfigError(
            f"label_smoothing={task.label_smoothing}: this task ({data.problem}) has no single class; leave it out"
        )
    if wanted is None:
        return LossSettings(label_smoothing=task.label_smoothing)
    labels = model.settings.labels
    if data.problem not in ("single", "multi", "tokens"):
        raise ConfigError(f"class_weights: {data.problem} has no classes; leave them out")
    if isinstance(wanted, dict):
        if unknown := wanted.keys() - set(labels):
            raise ConfigError(f"class_weights names {sorted(unknown)[0]!r}, which is none of the {len(labels)} labels")
        weights = tuple(wanted.get(label, 1.0) for label in labels)
    else:
        counts = Counter(label for example in data.train for label in labels_of(example))
        total = sum(counts.values())
        weights = tuple(total / (len(labels) * max(1, counts[label])) for label in labels)
    return LossSettings(class_weights=weights, label_smoothing=task.label_smoothing)


# --- training and scores


def _session(
    prepared: Prepared,
    folder: RunFolder,
    runtime: Runtime,
    hooks: Hooks,
    stop: StopRequest,
    *,
    keep: Callable[[dict[str, Tensor], int], None],
    saves: bool = True,
) -> Session:
    run, model, ranks = prepared.run, prepared.model, runtime.ranks
    assert run.epochs is not None and run.lr is not None
    plan = run.plan(prepared.batches.tokens_of(run.epochs))
    shared = spread(model, run.compute.strategy, ranks)
    optimizer = build_optimizer(model, run.optim, run.lr)
    progress = Progress()
    if saves and ranks.on_first(lambda: bool(folder.checkpoints())):
        progress, remarks = folder.restore(shared, optimizer, runtime)
        for remark in (f"going on with {folder.path} behind step {progress.step:,}", *remarks):
            hooks.on_remark(remark)
    metric, higher_is_better = prepared.metric
    selection = Selection(metric=metric, higher_is_better=higher_is_better, patience=run.patience, keep=keep)
    return Session(
        spread=shared, optimizer=optimizer, run=plan, batches_of=lambda _phase, _stream: prepared.batches,
        evaluate=_evaluation(prepared, runtime), progress=progress, folder=folder, runtime=runtime, peak=None,
        peak_source="", hooks=hooks, stop=stop, selection=selection, saves=saves, looks_first=False,
        when_changed="",
    )  # fmt: skip


def train_in_memory(prepared: Prepared, runtime: Runtime, hooks: Hooks | None = None) -> dict[str, Any]:
    """Fine-tune without a folder: the model holds the best weights behind it. For evaluations, which keep scores alone.

    Returns:
        The best evaluation, steps, tokens, and the seconds spent in steps.
    """
    best: dict[str, Tensor] = {}

    def keep(weights: dict[str, Tensor], _step: int) -> None:
        best.update(snapshot(weights))

    with TemporaryDirectory() as temporary, RunFolder.locked(Path(temporary) / "run") as folder, StopRequest() as stop:
        session = _session(prepared, folder, runtime, hooks or Hooks(), stop, keep=keep, saves=False)
        with saying_out_of_memory(_IF_MEMORY_IS_FULL):
            reason = session.fit()
    if reason is not None:
        raise StoppedError(f"stopped ({reason}); what is done is kept, and the same command does the rest")
    prepared.model.load_state_dict(best)
    progress = session.progress
    return {"best": progress.best, "steps": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}


def _evaluation(prepared: Prepared, runtime: Runtime) -> Callable[[EncoderModel, PhaseSettings], dict[str, Any]]:
    features = {name: _scorable(prepared.heads[name], data) for name, data in prepared.tasks.items()}

    def evaluate(model: EncoderModel, _phase: PhaseSettings) -> dict[str, Any]:
        row: dict[str, Any] = {"loss": loss_of(model, features, runtime)}
        parts = []
        for name, data in prepared.tasks.items():
            decisions = decide_together(prepared.heads[name], data.validation, runtime)
            scores = score_all(data.problem, data.labels, data.validation, decisions)
            row |= scores if len(prepared.tasks) == 1 else {f"{name}/{key}": value for key, value in scores.items()}
            metric, higher_is_better = data.metric
            if len(prepared.tasks) > 1:
                if metric not in scores:
                    raise ConfigError(
                        f"task {name}: metric={metric} is none of {', '.join(scores)}; choose one of them"
                    )
                parts.append(scores[metric] if higher_is_better else -scores[metric])
        return row | ({SCORE: sum(parts) / len(parts)} if parts else {})

    return evaluate


def loss_of(model: EncoderModel, features: dict[str, list[Feature]], runtime: Runtime) -> float | None:
    """The mean loss over the first examples of each task; None where no label is known to the model."""
    batches = [
        pack_features(part, name)
        for name, of_task in features.items()
        for part in within(_first(of_task, _LOSS_TOKENS), 16_384)
    ]
    return evaluate_on(model, batches, runtime)["loss"] if batches else None


def _first(features: list[Feature], max_tokens: int) -> list[Feature]:
    filled = np.cumsum([len(feature.ids_T) for feature in features])
    return features[: int(np.searchsorted(filled, max_tokens)) + 1]


def _scorable(model: HeadModel, data: TaskData) -> list[Feature]:
    """Features of the validation examples whose labels the model has."""
    known = set(model.settings.labels)
    has_classes = data.problem in ("single", "multi", "tokens")
    kept = [e for e in data.validation if not has_classes or known.issuperset(labels_of(e))]
    return model.features(kept) if kept else []


def decide_together(model: HeadModel, examples: Sequence[Example], runtime: Runtime) -> list[dict[str, Any]]:
    """What a head says of each example, in their order; on all ranks, of which each decides a part."""
    ranks = runtime.ranks
    with runtime.autocast():
        parts = ranks.gather(model.decide(examples[ranks.rank :: ranks.size]))
    found: list[dict[str, Any]] = [{}] * len(examples)
    for rank, part in enumerate(parts):
        found[rank :: ranks.size] = part
    return found


def final_decisions(prepared: Prepared, runtime: Runtime) -> dict[str, dict[str, Decided]]:
    """What each task's head says of its validation and, once, of its test examples."""
    return {
        name: {
            part: Decided(examples, decide_together(prepared.heads[name], examples, runtime))
            for part, examples in (("validation", data.validation), ("test", data.test))
            if examples is not None
        }
        for name, data in prepared.tasks.items()
    }


# --- what is written


def _name_of(step: int) -> str:
    return f"{step:08d}"  # no dash, or it would count as a checkpoint


def _write_best(prepared: Prepared, weights: dict[str, Tensor], best: Path, step: int) -> None:
    """Each under its step's name: a run that goes on from an earlier checkpoint finds the best one that this knows of."""
    with hub.whole_folder(best / _name_of(step)) as folder:
        prepared.model.writer(weights)(folder)
    for older in sorted(best.glob("[0-9]*"))[:-_BEST_KEPT]:
        shutil.rmtree(older, ignore_errors=True)


def _finish(
    out: Path, prepared: Prepared, decided: dict[str, dict[str, Decided]], folder: RunFolder, progress: Progress
) -> dict[str, Any]:
    """Make the result whole within `run`, and move it up, metrics.json last."""
    result: dict[str, Any] = {
        "model": prepared.run.model, "from_hub": _is_hub_name(prepared.run.model), "best": progress.best,
        "steps": progress.step, "tokens": progress.tokens,
        "seconds": progress.seconds, "tasks": {}, "recipe": prepared.run.model_dump(mode="json"),
        "environment": folder.about["environment"],
    }  # fmt: skip
    made = folder.path / _RESULT
    with hub.whole_folder(made) as unfinished:
        for name, data in prepared.tasks.items():
            place = unfinished / name if len(prepared.tasks) > 1 else unfinished
            place.mkdir(exist_ok=True)
            result["tasks"][name] = write_result(place, data, prepared.heads[name], decided[name], result)
        text = json.dumps(result, indent=2, default=str)
        (unfinished / METRICS).write_text(text + "\n", encoding="utf-8")
    with writing(out):
        for path in sorted(made.iterdir(), key=lambda path: path.name == METRICS):
            if path.is_dir():  # of an end that was cut off
                shutil.rmtree(out / path.name, ignore_errors=True)
            os.replace(path, out / path.name)
        sync(out)
    return json.loads(text)


def _is_hub_name(name: str) -> bool:
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _tidy(folder: RunFolder) -> None:
    """Remove what a finished run needs no more; what it kept of steps that went wrong stays."""
    for checkpoint in folder.checkpoints():
        remove_checkpoint(checkpoint)
    for name in (_BEST, _RESULT):
        shutil.rmtree(folder.path / name, ignore_errors=True)
