"""Texts that belong together, or a teacher → an embedder: fine-tuning on sentence-transformers' trainer, without padding.

    rows → its data set → its losses and batches without duplicates → its trainer, around an accelerated encoder → a folder

sentence-transformers owns this API, so its losses, samplers, evaluators and checkpoints are used as they are; the encoder inside
runs packed (`modernbert.accelerate`) and learns by this package's StableAdamW. OUT is a folder that it opens, and so do
`modernbert.encode` and `modernbert index`; OUT/run holds what is needed to go on, until all is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from modernbert.console import Console
from modernbert.disk import sync, try_lock, write_whole
from modernbert.dropin import accelerate, restore
from modernbert.errors import ConfigError, DataError, StoppedError, UnsupportedError
from modernbert.evaluate.machine import tune_malloc
from modernbert.model import hub
from modernbert.model.config import PRESETS
from modernbert.runtime import Runtime
from modernbert.settings import override, without_none
from modernbert.tasks.embed import MODULES, EmbedSettings
from modernbert.tasks.load import newest_checkpoint
from modernbert.teaching import OnProgress, Teacher, new_student
from modernbert.text.pairs import PairFile, read_pairs
from modernbert.train.embed import LOSS_OF, TAKEN, EmbedRun
from modernbert.train.finetune import usual_lr
from modernbert.train.optim import RATE, build_optimizer
from modernbert.train.saving import StopRequest

METRICS = "metrics.json"
_RECIPE, _RESULT, _LOCK = "recipe.json", "result", ".lock"
_USUAL_LENGTH = 256  # tokens of a text, where nothing is said
_HELD_OUT, _HELD_OUT_AT_MOST = 0.1, 1_000  # of the training rows, where no validation file is given


@dataclass(frozen=True, kw_only=True)
class _Data:
    train: PairFile
    validation: PairFile
    remarks: list[str]


def finetune_embedder(
    run: EmbedRun,
    out: Path,
    runtime: Runtime,
    *,
    progress: OnProgress = lambda _done, _total, _note: None,
    on_remark: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Fine-tune an embedder, or go on with the unfinished fine-tuning in `out`.

    Args:
        run: model, data, loss, and how to learn.
        out: the folder to write.
        runtime: the device.
        progress: told behind steps.
        on_remark: told what a user should know.

    Returns:
        What metrics.json says: the metric on validation before and behind, and how long it took.

    Raises:
        ConfigError: settings that do not fit, or `out` holds something else.
        DataError: files that cannot be used.
        CheckpointError: a model that cannot be loaded.
        StoppedError: it was asked to stop, and has saved.
        UnsupportedError: sentence-transformers is not installed.
    """
    _need_sentence_transformers()
    _quieten()
    _refuse_other(out)
    train = read_pairs(run.train)
    run = _resolved(run, train)
    data = _split(run, train)
    for remark in data.remarks:
        on_remark(remark)
    work = out / "run"
    _refuse_changes(work, run, data)
    if (out / METRICS).exists():
        on_remark(f"{out} is finished; nothing to do")
        _tidy(work)
        found: dict[str, Any] = json.loads((out / METRICS).read_text(encoding="utf-8"))
        return found
    model = _opened(run, runtime, on_remark)
    with _locked(work), StopRequest() as stop:
        write_whole(work / _RECIPE, _recipe_of(run, data))
        result = _train(run, data, model, work, stop, progress, on_remark)
        if result is None:
            raise StoppedError(f"stopped ({stop.reason}); the same command goes on from there")
        _write(model, result, out)
    return result


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = try_lock(work / _LOCK)
    except OSError as error:
        raise DataError(f"{work} cannot be written ({error.strerror or error}); choose another --out") from error
    if lock is None:
        raise ConfigError(f"{work} is in use by another process; wait for it, or choose another --out")
    with lock:
        yield


def embed_files(
    model: str,
    out: Path,
    *,
    run: dict[str, Any],
    settings: Sequence[str],
    device: str = "auto",
    num_threads: int | None = None,
    console: Console,
) -> dict[str, Any]:
    """`finetune embed` as it is given on the command line, in view of a person.

    Args:
        model: what to start from.
        out: the folder to write.
        run: settings that have an option of their own; None where nothing is said.
        settings: `key=value`, laid over these.
        device: as of `Runtime.detect`.
        num_threads: likewise.
        console: where it is shown.
    """
    tune_malloc()
    values = without_none(run)
    if "train" not in values:
        raise ConfigError("no training examples; give --train FILE")
    wanted = EmbedRun.parse(override({**values, "model": model}, settings))
    runtime = Runtime.detect(device=device, num_threads=num_threads)
    with console.progress("fine-tuning", 1.0) as update:

        def show(done: float, total: float, note: str) -> None:
            update(done / total, note)

        return finetune_embedder(wanted, out, runtime, progress=show, on_remark=console.remark)


def show_embedder(result: dict[str, Any], out: Path, console: Console) -> None:
    """A table of the metric before and behind, and where things are."""
    console.table(
        ["metric on validation", "before", "behind"],
        [[result["metric"], f"{result['before']:.4f}", f"{result['validation']:.4f}"]],
    )
    console.remark(
        f"{out} opens in sentence-transformers; `modernbert index SOURCES --model {out}` makes a store with it"
    )


# --- data


def _split(run: EmbedRun, train: PairFile) -> _Data:
    """What is learnt from, and what it is judged by."""
    remarks = [f"train: {len(train):,} rows ({train.shape})", *(f"train: {remark}" for remark in train.remarks)]
    draw = np.random.default_rng(run.seed)
    if run.max_examples is not None and run.max_examples < len(train):
        train = _rows(train, np.sort(draw.permutation(len(train))[: run.max_examples]))
        remarks.append(f"train: {len(train):,} of its rows are drawn")
    if run.validation is not None:
        validation = read_pairs(run.validation, split="validation")
        if validation.shape != train.shape:
            raise DataError(
                f"{run.validation} holds {validation.shape}, and {run.train} {train.shape}; give the same kind"
            )
    else:
        if len(train) < 4:
            raise DataError(f"{run.train}: {len(train)} rows are too few to learn from; give more")
        train, validation = _held_out(train, draw)
        remarks.append(f"{len(validation):,} of the training rows are held out for validation")
    if validation.shape == "scored" and len(set(validation.scores or ())) < 2:
        raise DataError(
            "the validation rows all have one score, with which nothing can be compared; give --validation FILE"
        )
    return _Data(train=train, validation=validation, remarks=remarks)


def _held_out(train: PairFile, draw: np.random.Generator) -> tuple[PairFile, PairFile]:
    """A tenth for validation, all rows of an anchor in one part: what was learnt is not to be asked."""
    anchors = next(iter(train.texts.values()))
    order = {anchor: place for place, anchor in enumerate(draw.permutation(sorted(set(anchors))).tolist())}
    least = 2 if train.scores is not None else 1
    wanted = min(_HELD_OUT_AT_MOST, max(least, round(_HELD_OUT * len(train))))
    places = sorted(range(len(anchors)), key=lambda row: order[anchors[row]])
    last = order[anchors[places[wanted - 1]]]
    held = np.array([order[anchor] <= last for anchor in anchors])
    if held.all():
        raise DataError("all training rows have one anchor, of which none can be held out; give --validation FILE")
    return _rows(train, np.flatnonzero(~held)), _rows(train, np.flatnonzero(held))


def _rows(file: PairFile, places: np.ndarray) -> PairFile:
    return PairFile(
        shape=file.shape, remarks=file.remarks,
        texts={role: [texts[place] for place in places] for role, texts in file.texts.items()},
        scores=None if file.scores is None else [file.scores[place] for place in places],
    )  # fmt: skip


def _resolved(run: EmbedRun, train: PairFile) -> EmbedRun:
    """Say what was left open, and refuse what does not go together."""
    loss = "distill" if run.teacher is not None else LOSS_OF[train.shape] if run.loss == "auto" else run.loss
    if train.shape not in TAKEN[loss]:
        raise ConfigError(f"loss={loss} takes {' or '.join(TAKEN[loss])}, and {run.train} holds {train.shape}")
    if loss == "distill" and run.teacher is None:
        raise ConfigError(
            f"{run.train} holds single texts, from which only a teacher teaches; give --teacher MODEL, or pairs"
        )
    return run.model_copy(update={"loss": loss})


def _refuse_other(out: Path) -> None:
    """Results are moved into OUT: nobody's files are to be in their way."""
    if not out.exists() or (out / "run" / _RECIPE).exists():
        return
    if not out.is_dir() or any(path.name != "run" for path in out.iterdir()):
        raise ConfigError(f"{out} is there and holds no fine-tuning of an embedder; choose another --out")


def _recipe_of(run: EmbedRun, data: _Data) -> str:
    digest = hashlib.sha256(repr((data.train, data.validation)).encode()).hexdigest()
    return json.dumps({"recipe": run.model_dump(mode="json"), "data": digest}, indent=2)


def _refuse_changes(work: Path, run: EmbedRun, data: _Data) -> None:
    path = work / _RECIPE
    if path.exists() and path.read_text(encoding="utf-8") != _recipe_of(run, data):
        raise ConfigError(
            f"{work} holds a fine-tuning with other settings or data; go on with the same, or choose another --out"
        )


# --- model and training


def _opened(run: EmbedRun, runtime: Runtime, on_remark: Callable[[str], None]) -> Any:
    """A SentenceTransformer on the checkpoint or the new student, accelerated."""
    if run.is_new_student:
        assert run.teacher is not None
        if Path(run.model).exists():
            on_remark(
                f"{run.model} is taken for the shape, not for the folder of that name; its absolute path means it"
            )
        with tempfile.TemporaryDirectory() as place:
            return _of_folder(run, new_student(run.model, run.teacher, Path(place) / "student", run.seed), runtime)
    if run.model in PRESETS and not Path(run.model).exists():
        raise ConfigError(
            f"{run.model} is a shape that has learnt nothing; give --teacher MODEL, which it learns from, or a pretrained "
            "checkpoint in its place"
        )
    return _of_folder(run, newest_checkpoint(hub.find_folder(run.model)), runtime)


def _of_folder(run: EmbedRun, folder: Path, runtime: Runtime) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    config = hub.read_config(folder)
    longest = config.max_position_embeddings
    max_length = run.max_length or min(_USUAL_LENGTH, longest)
    if max_length > longest:
        raise ConfigError(f"max_length={max_length} exceeds the model's {longest:,} positions; lower it")
    if wrong := [size for size in run.matryoshka if size > config.hidden_size]:
        raise ConfigError(f"matryoshka={wrong[0]} exceeds the model's {config.hidden_size} dimensions; lower it")
    given = {"query": run.query_prompt, "document": run.document_prompt}
    prompts = {name: prompt for name, prompt in given.items() if prompt is not None}
    if (folder / MODULES).exists():
        found = EmbedSettings.read(folder)
        if run.pooling not in (None, found.pooling):
            raise ConfigError(f"pooling={run.pooling}: {run.model} is an embedder by {found.pooling}; leave it out")
        model = SentenceTransformer(str(folder), device=str(runtime.device), prompts={**found.prompts, **prompts})
        model.max_seq_length = max_length
    else:
        inner = Transformer(str(folder), processor_kwargs={"model_max_length": max_length})
        parts = [inner, Pooling(config.hidden_size, run.pooling or "mean"), Normalize()]
        model = SentenceTransformer(modules=parts, device=str(runtime.device), prompts=prompts)
    return accelerate(model.float())


def _prompt(model: Any, role: str) -> str:
    """Before the texts of a column: an anchor is a query, any other text a document."""
    return model.prompts.get("query" if role == "anchor" else "document") or ""


def _train(
    run: EmbedRun, data: _Data, model: Any, work: Path, stop: StopRequest, progress: OnProgress,
    on_remark: Callable[[str], None],
) -> dict[str, Any] | None:  # fmt: skip
    """Train to the end, the best weights by validation in the model; None where it was asked to stop."""
    import transformers
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    teacher = None
    if run.loss == "distill":
        assert run.teacher is not None
        teacher = Teacher(
            run.teacher,
            str(model.device),
            model.get_embedding_dimension(),
            work,
            lambda: stop.reason is not None,
            progress,
        )
        if not all(teacher.has(part.distinct_texts()) for part in (data.train, data.validation)):
            return None
    train = _data_set(run, data.train, teacher)
    steps = max(1, round(len(train) * run.epochs / run.batch_size))
    every = math.ceil(steps / run.evaluations)
    evaluator = _evaluator(data.validation, model, teacher)
    # Of the weights as they were opened or drawn, also where it goes on: a new student has its teacher's words only later.
    before = evaluator(model)[evaluator.primary_metric]
    lr = run.lr or usual_lr(model.get_embedding_dimension())
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work), per_device_train_batch_size=run.batch_size, max_steps=steps, learning_rate=lr,
        warmup_steps=round(run.warmup * steps), lr_scheduler_type="linear", seed=run.seed, max_grad_norm=0.0,
        batch_sampler="no_duplicates" if run.loss in ("in-batch", "cached") else "batch_sampler",
        prompts={role: _prompt(model, role) for role in train.column_names if role != "label"},
        eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model=f"eval_{evaluator.primary_metric}", greater_is_better=True,
        logging_steps=max(1, min(10, every)), report_to=[], disable_tqdm=True, use_cpu=model.device.type == "cpu",
        dataloader_num_workers=0,
    )  # fmt: skip
    arguments._n_gpu = min(1, arguments.n_gpu)  # or its trainer would spread over all that there are
    optimizer = build_optimizer(_Learner(model), run.optim, lr)
    for group in optimizer.param_groups:  # a scheduler of transformers goes by what stands here
        group["lr"] = group["max_lr"] = lr * group[RATE]
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(run.warmup * steps), steps)
    follower = _follower(stop, progress, steps, evaluator.primary_metric, on_remark)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=train, loss=_loss(run, model), evaluator=evaluator,
        optimizers=(optimizer, schedule), callbacks=[follower],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    last = _newest_whole(work)
    embeddings_VD = model[0].auto_model.get_input_embeddings().weight
    if last is None and teacher is not None and run.is_new_student and not teacher.teach_tokens(embeddings_VD):
        return None
    if last is not None:
        on_remark(f"going on with {work} behind step {int(last.name.rpartition('-')[2]):,}")
    done = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if stop.reason is not None and trainer.state.global_step < steps:
        return None
    behind = evaluator(model)[evaluator.primary_metric]
    return {
        "model": run.model, "loss": run.loss, "metric": evaluator.primary_metric, "before": float(before),
        "validation": float(behind), "steps": steps, "rows": len(data.train), "seconds": done.metrics.get("train_runtime"),
        "recipe": {**run.model_dump(mode="json"), "lr": lr},
    }  # fmt: skip


class _Learner(nn.Module):
    """A SentenceTransformer as `build_optimizer` takes a task."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def encoder(self) -> nn.Module:
        """Whose layers may learn at rates of their own."""
        found: nn.Module = self.model[0].auto_model
        return found


def _newest_whole(work: Path) -> Path | None:
    """The newest checkpoint that is whole; later ones, cut off while they were written, are cleared away."""
    for checkpoint in sorted(work.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        if all((checkpoint / name).exists() for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt")):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _data_set(run: EmbedRun, file: PairFile, teacher: Teacher | None) -> Any:
    from datasets import Dataset

    if teacher is not None:
        texts = file.distinct_texts()
        return Dataset.from_dict({"text": texts, "label": teacher.vectors(texts)})
    columns: dict[str, Any] = dict(file.texts)
    if file.scores is not None:
        columns["label"] = _unit_scores(file.scores) if run.loss == "cosine" else file.scores
    return Dataset.from_dict(columns)


def _unit_scores(scores: list[float]) -> list[float]:
    """Into 0 to 1, where cosines are to be."""
    low, high = min(scores), max(scores)
    if low >= 0 and high <= 1:
        return scores
    return [(score - low) / max(high - low, 1e-9) for score in scores]


def _loss(run: EmbedRun, model: Any) -> Any:
    """The library's loss of this name, of every size asked for."""
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses

    made = {
        "in-batch": lambda: losses.MultipleNegativesRankingLoss(model, scale=run.scale),
        "cached": lambda: losses.CachedMultipleNegativesRankingLoss(
            model, scale=run.scale, mini_batch_size=run.mini_batch_size
        ),
        "cosent": lambda: losses.CoSENTLoss(model, scale=run.scale), "cosine": lambda: losses.CosineSimilarityLoss(model),
        "margin-mse": lambda: losses.MarginMSELoss(
            model, similarity_fct=lambda a, b: run.scale * util.pairwise_cos_sim(a, b)
        ), "distill": lambda: losses.EmbedDistillLoss(model),
    }[run.loss]()  # fmt: skip
    if not run.matryoshka:
        return made
    return losses.MatryoshkaLoss(model, made, sorted({model.get_embedding_dimension(), *run.matryoshka}, reverse=True))


def _evaluator(file: PairFile, model: Any, teacher: Teacher | None) -> Any:
    """What is better when it is more: the rank of the right text among all, correlation with scores, likeness to the teacher."""
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import evaluation

    if teacher is not None:
        texts = file.distinct_texts()[:_HELD_OUT_AT_MOST]
        return _like_teacher(texts, teacher.vectors(texts), _prompt(model, "text"))
    if file.shape == "scored":
        columns = [[_prompt(model, role) + text for text in file.texts[role]] for role in ("anchor", "positive")]
        return evaluation.EmbeddingSimilarityEvaluator(*columns, file.scores, main_similarity="cosine", write_csv=False)
    documents = {text: str(place) for place, text in enumerate(dict.fromkeys(file.texts["positive"]))}
    queries = {text: str(place) for place, text in enumerate(dict.fromkeys(file.texts["anchor"]))}
    relevant: dict[str, set[str]] = {}
    for query, document in zip(file.texts["anchor"], file.texts["positive"], strict=True):
        relevant.setdefault(queries[query], set()).add(documents[document])
    return evaluation.InformationRetrievalEvaluator(
        {place: text for text, place in queries.items()}, {place: text for text, place in documents.items()}, relevant,
        write_csv=False, score_functions={"cosine": util.cos_sim}, query_prompt=_prompt(model, "anchor") or None,
        corpus_prompt=_prompt(model, "positive") or None,
    )  # fmt: skip


def _like_teacher(texts: list[str], taught_ND: np.ndarray, prompt: str) -> Any:
    """Mean cosine to the teacher's vectors."""
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

    unit_ND = taught_ND / (np.linalg.norm(taught_ND, axis=1, keepdims=True) + 1e-12)

    class LikeTeacher(SentenceEvaluator):
        """Kept in the trainer, so a class of its kind."""

        def __init__(self) -> None:
            super().__init__()
            self.primary_metric = "cosine_to_teacher"

        def __call__(self, model: Any, *_: Any, **__: Any) -> dict[str, float]:
            vectors_ND = model.encode(texts, prompt=prompt, normalize_embeddings=True, show_progress_bar=False)
            return {self.primary_metric: float((vectors_ND * unit_ND).sum(1).mean())}

    return LikeTeacher()


def _follower(
    stop: StopRequest, progress: OnProgress, steps: int, metric: str, on_remark: Callable[[str], None]
) -> Any:
    """A callback of the trainer."""
    import transformers

    class Follower(transformers.TrainerCallback):
        """Steps on the bar, evaluations as lines, a checkpoint and an end where that is asked for."""

        loss = float("nan")

        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
            """Note the loss, say an evaluation."""
            self.loss = logs.get("loss", self.loss)
            if (score := logs.get(f"eval_{metric}")) is not None:
                on_remark(f"step {state.global_step:>6,}  {metric} {score:.4g}")

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            """Tell, and look whether to stop."""
            progress(state.global_step, steps, f"steps  loss {self.loss:.3f}")
            if stop.reason is not None:
                control.should_save = control.should_training_stop = True

    return Follower()


# --- what is written


def _write(model: Any, result: dict[str, Any], out: Path) -> None:
    """The model whole within `run`, then moved up, metrics.json last."""
    restore(model)
    made = out / "run" / _RESULT
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(str(made))
    (made / METRICS).write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
    for path in sorted(made.iterdir(), key=lambda path: path.name == METRICS):
        if (out / path.name).is_dir():  # of an end that was cut off
            shutil.rmtree(out / path.name)
        path.replace(out / path.name)
    sync(out)
    _tidy(out / "run")


def _tidy(work: Path) -> None:
    """Remove what a finished run needs no more."""
    for path in work.iterdir():
        if path.name not in (_RECIPE, _LOCK):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _quieten() -> None:
    """The library's own bars and reports would run into ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _need_sentence_transformers() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("sentence_transformers", "accelerate", "datasets")):
        raise UnsupportedError(
            "fine-tuning an embedder needs sentence-transformers, which is not installed; pip install 'modernbert[retrieval]'"
        )
