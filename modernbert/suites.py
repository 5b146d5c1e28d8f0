"""A model + labelled data sets → what it scores when it is fine-tuned on them, over seeds: the suites that train.

    the learning rate that is best on validation, by one seed → a fine-tuning for each seed → its score on the test part

Every encoder goes through the same loop, the packed ones and those of transformers behind `model.foreign`. What was asked for
stands in the protocol of each score. What a seed gave is kept beside the scores, so that an interrupted evaluation goes on
with the seed it was at. Price: (rates − 1 + seeds) fine-tunings a task.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.console import Console
from modernbert.errors import ConfigError
from modernbert.evaluate.bag_of_words import METHOD, STRENGTHS, bag_of_words
from modernbert.evaluate.benchmarks import Benchmark, choose
from modernbert.evaluate.foreign import open_encoder
from modernbert.evaluate.machine import tune_malloc
from modernbert.evaluate.metrics import score_all
from modernbert.evaluate.probe import ProbeSettings, evaluate_probe
from modernbert.evaluate.pseudo import MlmSettings, evaluate_mlm
from modernbert.evaluate.retrieval import RETRIEVAL_SUITES, RetrievalSettings, evaluate_retrieval, places_of
from modernbert.evaluate.score import (
    Progress,
    Score,
    ScoreFile,
    model_fingerprint,
    protocol_key,
    sha256_of,
    where_computed,
)
from modernbert.evaluate.similarity import SIMILARITY, evaluate_similarity, files_of
from modernbert.finetuning import decide_together, prepare, train_in_memory
from modernbert.runtime import Precision, Runtime
from modernbert.settings import override
from modernbert.taskdata import labels_of, read_task
from modernbert.tasks import EncoderModel
from modernbert.text.examples import Example, TextExample
from modernbert.train.finetune import EPOCHS, EXAMPLES, FinetuneRun, usual_lr


def evaluate_lines(
    model: str,
    suite: str,
    data: Path,
    out: Path,
    *,
    given: dict[str, Any],
    tasks: Sequence[str],
    device: str = "auto",
    num_threads: int | None = None,
    precision: Precision = "auto",
    console: Console,
) -> Iterator[Score]:
    """`evaluate` as it is given on the command line, in view of a person; what is absent is named.

    Args:
        model: a folder, an address, a hub name, or `BAG_OF_WORDS`.
        suite: one of `benchmarks.SUITES` or `retrieval.RETRIEVAL_SUITES`, or `SIMILARITY`.
        data: the folder of data sets.
        out: the file of scores.
        given: settings of the suite's protocol; None where nothing is said.
        tasks: only these.
        device: as of `Runtime.detect`.
        num_threads: likewise.
        precision: likewise.
        console: where it is shown.
    """
    tune_malloc()
    if suite in (*RETRIEVAL_SUITES, SIMILARITY):
        runtime = Runtime.detect(device=device, num_threads=num_threads, precision=precision)
        given = {
            **given,
            "settings": None,
            **override({}, given.get("settings") or ()),
        }  # split=validation, truncate_dim=64
        values = _known_values(given, {field.name for field in dataclasses.fields(RetrievalSettings)}, suite, model)
        settings = RetrievalSettings(**values)
        there = files_of(data, settings.split, tasks) if suite == SIMILARITY else places_of(suite, data, tasks)
        with console.progress(f"{suite} of {model}", len(there)) as update:
            how: dict[str, Any] = {
                "settings": settings, "tasks": tasks, "scores": ScoreFile(out), "runtime": runtime, "progress": update
            }  # fmt: skip
            if suite == SIMILARITY:
                yield from evaluate_similarity(model, data, **how)
            else:
                yield from evaluate_retrieval(model, suite, data, **how)
        return
    chosen = choose(suite, data, tuple(tasks))
    for name, reason in chosen.absent.items():
        console.remark(f"{name}: absent, {reason}")
    runtime = Runtime.detect(device=device, num_threads=num_threads, precision=precision)
    with console.progress(f"{suite} of {model}", len(chosen.present)) as update:
        yield from evaluate_suite(
            model, suite, data, given=given, tasks=tasks, scores=ScoreFile(out), runtime=runtime, progress=update
        )


def evaluate_suite(
    model: str,
    suite: str,
    data: str | Path,
    *,
    given: dict[str, Any],
    tasks: Sequence[str],
    scores: ScoreFile,
    runtime: Runtime,
    progress: Progress,
) -> Iterator[Score]:
    """Any suite, as `modernbert evaluate` is asked for it; known scores are taken from the file.

    Args:
        model: a folder, an address, a hub name, or `BAG_OF_WORDS`.
        suite: one of `benchmarks.SUITES`.
        data: the folder of data sets.
        given: settings of the suite's protocol; None where nothing is said.
        tasks: only these.
        scores: where scores are kept.
        runtime: device and precision.
        progress: told before each step of the work.

    Raises:
        ConfigError: a setting that this suite does not have.
    """
    kind: type[Any] = {"probe": ProbeSettings, "mlm": MlmSettings}.get(suite, FinetuneProtocol)
    known = (
        {"max_examples", "max_test"} if model == BAG_OF_WORDS else {field.name for field in dataclasses.fields(kind)}
    )
    values = _known_values(given, known, suite, model)
    if model == BAG_OF_WORDS:
        protocol = FinetuneProtocol(seeds=(0,), **values)
        return evaluate_bag_of_words(
            suite, data, protocol, scores=scores, tasks=tasks, runtime=runtime, progress=progress
        )
    how: dict[str, Any] = {"tasks": tasks, "scores": scores, "runtime": runtime, "progress": progress}
    if suite == "probe":
        return evaluate_probe(model, data, settings=ProbeSettings(**values), **how)
    if suite == "mlm":
        return evaluate_mlm(model, data, settings=MlmSettings(**values), **how)
    return evaluate_finetuned(model, suite, data, protocol=FinetuneProtocol(**values), **how)


def _known_values(given: dict[str, Any], known: set[str], suite: str, model: str) -> dict[str, Any]:
    """What is said, refused where a suite does not have it."""
    values = {name: value for name, value in given.items() if value is not None}
    if idle := [name for name in values if name not in known]:
        raise ConfigError(
            f"{idle[0]}={values[idle[0]]}: of no use for {suite} of {model}, which has {', '.join(sorted(known))}"
        )
    return values


BAG_OF_WORDS = "bag-of-words"
"""In the place of a model: the baseline that counts words."""


def evaluate_bag_of_words(
    suite: str,
    data: str | Path,
    protocol: FinetuneProtocol,
    *,
    scores: ScoreFile,
    tasks: Sequence[str],
    runtime: Runtime,
    progress: Progress,
) -> Iterator[Score]:
    """The counting baseline on a suite's single-text tasks: word (1,2)-grams, TF-IDF, logistic regression.

    Its regularisation is chosen on the validation part, or on a tenth of the training examples where there is none.

    Raises:
        ConfigError: no task of the suite is one for it.
    """
    present = [b for b in choose(suite, data, tuple(tasks)).present if b.kind == "classify" and b.train is not None]
    if not present:
        raise ConfigError(f"{BAG_OF_WORDS} counts the words of single texts, of which suite {suite} has no task")
    for done, benchmark in enumerate(present):
        progress(done, benchmark.name)
        asked = {
            "method": METHOD, "strengths": STRENGTHS, "max_examples": protocol.max_examples, "max_test": protocol.max_test,
            "seeds": protocol.seeds,
            "files": {file: sha256_of(Path(data) / file) for file in benchmark.files}, "note": benchmark.note,
        }  # fmt: skip
        if known := scores.find(BAG_OF_WORDS, benchmark.name, protocol_key(asked), suite):
            yield from known
            continue
        started_at = time.perf_counter()
        settings = _run_of(benchmark, Path(data), protocol, 0, None).tasks[0]
        task = read_task(settings, benchmark.name, seed=0)
        assert task.test is not None
        train, validation = (
            [(_text_of(e), str(labels_of(e)[0])) for e in part] for part in (task.train, task.validation)
        )
        test = task.test[: protocol.max_test]
        said, strength = bag_of_words(train, validation, [_text_of(example) for example in test])
        found = score_all("single", task.labels, test, [{"label": label} for label in said])
        score = Score.of(
            [found[benchmark.metric]], suite=suite, task=benchmark.name, metric=benchmark.metric, model=BAG_OF_WORDS,
            model_fingerprint=BAG_OF_WORDS, protocol=asked | where_computed(runtime),
            details={"metrics": {k: [v] for k, v in found.items()}, "strength": strength},
            seconds=time.perf_counter() - started_at,
        )  # fmt: skip
        scores.append(score)
        yield score


def _text_of(example: Example) -> str:
    assert isinstance(example, TextExample)
    return example.text


_OWN_OPTIONS = {
    "seed": "--seeds", "lr": "--lr", "epochs": "--epochs", "batch_size": "--batch-size", "model": "MODEL",
    "tasks": "--tasks, --max-length and --max-examples",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneProtocol:
    """How a suite fine-tunes; all of it stands in the protocol of a score. None: as `modernbert finetune` chooses."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rates: tuple[float, ...] = ()  # learning rates to choose among; the usual one for the model's width if empty
    epochs: float | None = None
    batch_size: int = 16
    max_length: int = 512  # tokens
    max_examples: int | None = None  # of the training part, drawn by each seed
    max_test: int | None = None  # of the test part, its first ones
    settings: tuple[str, ...] = ()  # any other of FinetuneRun's, as key=value

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={self.seeds} must be one or more, each once")
        for setting in self.settings:
            if (name := setting.partition("=")[0].partition(".")[0].strip()) in _OWN_OPTIONS:
                raise ConfigError(f"{setting}: the protocol says that itself; use {_OWN_OPTIONS[name]}")


def evaluate_finetuned(
    model: EncoderModel | str | Path,
    suite: str,
    data: str | Path,
    *,
    name: str = "",
    protocol: FinetuneProtocol | None = None,
    tasks: Sequence[str] = (),
    scores: ScoreFile | None = None,
    runtime: Runtime | None = None,
    progress: Progress = lambda _done, _note: None,
) -> Iterator[Score]:
    """Fine-tune a model on each task of a suite that is there, and score it; `choose(suite, data).absent` names the others.

    Args:
        model: a loaded one, or the name of any encoder.
        suite: glue, classify, ner, qa or zh.
        data: the folder of data sets.
        name: the model's, where it is given loaded.
        protocol: None for the standard one.
        tasks: only these.
        scores: where scores are kept, and taken from where they are known.
        runtime: device and precision.
        progress: told before each fine-tuning.
    """
    protocol, runtime = protocol or FinetuneProtocol(), runtime or Runtime.detect()
    chosen = choose(suite, data, tuple(tasks))
    if not isinstance(model, EncoderModel):
        name, model = name or str(model), open_encoder(model)
    fingerprint = model_fingerprint(model, model.tokenizer)
    for done, benchmark in enumerate(chosen.present):
        asked = _asked(benchmark, Path(data), protocol, model)
        key = protocol_key(asked)
        if scores is not None and (known := scores.find(fingerprint, benchmark.name, key, suite)):
            yield from known
            continue
        trial = _Trial(model, benchmark, Path(data), protocol, runtime, fingerprint, asked, scores)
        started_at = time.perf_counter()
        rate, tried = trial.best_rate(lambda note, done=done, b=benchmark: progress(done, f"{b.name}, {note}"))  # type: ignore[misc]
        found = []
        for seed in protocol.seeds:
            progress(done, f"{benchmark.name}, seed {seed}")
            found.append(trial.seed(seed, rate))
        details = {
            "lr": found[0]["lr"], "epochs": found[0]["epochs"], "rates_tried": tried,
            "metrics": {k: [row["test"][k] for row in found] for k in found[0]["test"]},
            "validation": [row["validation"] for row in found], "examples": found[0]["examples"],
            "tokens_per_second": [row["tokens"] / max(1e-9, row["seconds"]) for row in found],
        }  # fmt: skip
        score = Score.of(
            details["metrics"][benchmark.metric], suite=suite, task=benchmark.name, metric=benchmark.metric,
            model=name or type(model).__name__, model_fingerprint=fingerprint,
            protocol=asked | where_computed(runtime), details=details, seconds=time.perf_counter() - started_at,
        )  # fmt: skip
        if scores is not None:
            scores.append(score)
        yield score


def _asked(benchmark: Benchmark, data: Path, protocol: FinetuneProtocol, model: EncoderModel) -> dict[str, Any]:
    return {
        "method": "fine-tuned whole, in one loop for every encoder; the best weights by validation are scored",
        **dataclasses.asdict(protocol),
        "rates": protocol.rates or (usual_lr(model.config.hidden_size),),
        "epochs": protocol.epochs or f"{EXAMPLES:,} examples, at least {EPOCHS[0]} and at most {EPOCHS[1]} epochs",
        "max_length": min(protocol.max_length, model.config.max_position_embeddings),
        "recipe": _run_of(benchmark, data, protocol, 0, None).model_dump(
            mode="json", exclude={"model", "tasks", "seed", "lr"}
        ),
        "files": {file: sha256_of(data / file) for file in benchmark.files},
        "note": benchmark.note,
    }


def _run_of(
    benchmark: Benchmark, data: Path, protocol: FinetuneProtocol, seed: int, rate: float | None, **task: Any
) -> FinetuneRun:
    assert benchmark.kind != "text" and benchmark.train is not None
    files = {"train": benchmark.train, "validation": benchmark.validation, "test": benchmark.test}
    task |= {
        "kind": benchmark.kind, "columns": benchmark.columns, "metric": benchmark.metric,
        "max_examples": protocol.max_examples,
        **{part: str(data / file) for part, file in files.items() if file is not None},
    }  # fmt: skip
    values = {
        "model": "in memory", "tasks": [task], "seed": seed, "epochs": protocol.epochs, "lr": rate,
        "batch_size": protocol.batch_size,
    }  # fmt: skip
    return FinetuneRun.parse(override(values, protocol.settings))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Fine-tunings of one model on one task."""

    model: EncoderModel
    benchmark: Benchmark
    data: Path
    protocol: FinetuneProtocol
    runtime: Runtime
    fingerprint: str
    asked: dict[str, Any]
    scores: ScoreFile | None

    def best_rate(self, progress: Callable[[str], None]) -> tuple[float, dict[str, float]]:
        """The learning rate with the best validation score of the first seed, and that score of each where there are several."""
        rates: tuple[float, ...] = self.asked["rates"]
        if len(rates) == 1:
            return rates[0], {}
        tried = {}
        for rate in rates:
            progress(f"learning rate {rate:g}")
            tried[rate] = self.seed(self.protocol.seeds[0], rate)["validation"]
        return max(tried, key=tried.__getitem__), {f"{rate:g}": value for rate, value in tried.items()}

    def seed(self, seed: int, rate: float) -> dict[str, Any]:
        """One fine-tuning: its scores, from the file of halves where it was done before."""
        halves = (
            None if self.scores is None else ScoreFile(self.scores.path.with_name(f".{self.scores.path.name}.seeds"))
        )
        asked = {**self.asked, "seeds": [seed], "rates": [rate]}
        if halves is not None:
            known = halves.find(self.fingerprint, self.benchmark.name, protocol_key(asked))
            if known:
                return dict(known[0].details)
        found = self._train(seed, rate)
        if halves is not None:
            halves.append(Score.of(
                [found["test"][self.benchmark.metric]], suite="", task=self.benchmark.name, metric=self.benchmark.metric,
                model="", model_fingerprint=self.fingerprint, protocol=asked, details=found,
            ))  # fmt: skip
        return found

    def _train(self, seed: int, rate: float) -> dict[str, Any]:
        length = self.asked["max_length"]
        run = _run_of(self.benchmark, self.data, self.protocol, seed, rate, max_length=length)
        prepared = prepare(run, self.runtime, self.model, fingerprint=self.fingerprint)
        trained = train_in_memory(prepared, self.runtime)
        (task,) = prepared.tasks.values()
        assert task.test is not None
        test = task.test[: self.protocol.max_test]
        decisions = decide_together(next(iter(prepared.heads.values())), test, self.runtime)
        return {
            "test": score_all(task.problem, task.labels, test, decisions), "validation": trained["best"]["value"],
            "best_step": trained["best"]["step"], "steps": trained["steps"], "tokens": trained["tokens"],
            "seconds": trained["seconds"], "lr": prepared.run.lr, "epochs": prepared.run.epochs,
            "examples": {"train": len(task.train), "validation": len(task.validation), "test": len(test)},
        }  # fmt: skip
