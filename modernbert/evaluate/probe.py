"""A model as it is, nothing trained in it → how much a linear classifier can read out of its vectors.

    texts → frozen vectors (mean of the last hidden states) → logistic regression → accuracy on texts held out
    sentence pairs → cosine of the two vectors → correlation with people's judgement of their likeness

Of each set a pool of training texts and a sample of the test texts are encoded once; each seed draws its own training and
validation texts from that pool, and the regularisation is chosen on the latter. Caps, grid and seeds are part of the
protocol. An encoder of random weights is a random projection of the bag of its words, and reads topics and intents well:
what pretraining adds is seen beside the checkpoint of step 0, not beside the majority class.
Price: 5,000 texts a set, some 1.2 million tokens for the suite, and then a minute of scikit-learn on one core.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import ConfigError, UnsupportedError
from modernbert.evaluate.benchmarks import Benchmark, Chosen, choose
from modernbert.evaluate.foreign import open_encoder
from modernbert.evaluate.metrics import score_all
from modernbert.evaluate.score import (
    Progress,
    Score,
    ScoreFile,
    model_fingerprint,
    protocol_key,
    sha256_of,
    where_computed,
)
from modernbert.retrieval.encode import encode
from modernbert.runtime import Runtime
from modernbert.tasks import EncoderModel
from modernbert.tasks.embed import Pooling
from modernbert.text.examples import Example, TextExample
from modernbert.text.labelled import Columns, read_labelled

_MOST_ITERATIONS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """How a probe is taken; all of it stands in the protocol."""

    pool: int = 4000  # training texts encoded
    train: int = 2000  # of them, drawn by each seed
    validation: int = 500  # likewise, for choosing the regularisation
    test: int = 1000  # test texts, the same for each seed
    max_length: int = 256  # tokens; longer texts are cut there
    pooling: Pooling = "mean"
    grid: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, on features of mean 0 and variance 1
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        for name in ("pool", "train", "validation", "test", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.seeds or not self.grid or min(self.grid) <= 0:
            raise ConfigError(f"seeds={self.seeds} and grid={self.grid} need at least one entry, the grid's above 0")


QUICK = ProbeSettings(pool=600, train=500, validation=100, test=500, max_length=128, grid=(0.01, 1.0), seeds=(0,))
"""For a look during pretraining."""


def evaluate_probe(
    model: EncoderModel | str | Path,
    data: str | Path,
    *,
    name: str = "",
    settings: ProbeSettings | None = None,
    tasks: Sequence[str] = (),
    scores: ScoreFile | None = None,
    runtime: Runtime | None = None,
    progress: Progress = lambda _done, _note: None,
) -> Iterator[Score]:
    """Probe a model on each data set that is there; `choose("probe", data).absent` names the others.

    Args:
        model: a loaded one, or the name of any encoder.
        data: the folder of data sets.
        name: the model's, where it is given loaded.
        settings: None for the standard ones, which figures are comparable by.
        tasks: only these.
        scores: where scores are kept, and taken from where they are known.
        runtime: device and precision; the CPU in float32 if None.
        progress: told before each task.

    Raises:
        CheckpointError: the model cannot be opened.
        DataError: no data set is there.
        UnsupportedError: scikit-learn is not installed.
    """
    settings, runtime = settings or ProbeSettings(), runtime or Runtime.detect(device="cpu", precision="float32")
    _need_scikit_learn()
    chosen = choose("probe", data, tuple(tasks))
    if not isinstance(model, EncoderModel):
        name, model = name or str(model), open_encoder(model, runtime.device)
    about = {
        "suite": "probe", "model": name or type(model).__name__,
        "model_fingerprint": model_fingerprint(model, model.tokenizer),
    }  # fmt: skip
    for done, benchmark in enumerate(chosen.present):
        progress(done, benchmark.name)
        protocol = _protocol(benchmark, Path(data), settings, model)
        known = (
            scores.find(about["model_fingerprint"], benchmark.name, protocol_key(protocol), "probe") if scores else []
        )
        if known:
            yield from known
            continue
        started_at = time.perf_counter()
        with runtime.autocast():
            values, details = _measure(benchmark, Path(data), model, settings)
        score = Score.of(
            values, **about, task=benchmark.name, metric=benchmark.metric,
            protocol=protocol | where_computed(runtime), details=details, seconds=time.perf_counter() - started_at,
        )  # fmt: skip
        if scores is not None:
            scores.append(score)
        yield score


def probe_now(
    model: EncoderModel,
    data: str | Path,
    tasks: Sequence[str] = ("sst2_sentences", "ag_news", "banking77"),
    settings: ProbeSettings = QUICK,
) -> dict[str, float]:
    """A quick look at a model during pretraining: task → its metric, from 500 training and 500 test texts, one seed.

    Of sets that are not there nothing is said. The model is left in the mode it had.

    Raises:
        DataError: none of them is there.
        UnsupportedError: scikit-learn is not installed.
    """
    _need_scikit_learn()
    chosen: Chosen = choose("probe", data, tuple(tasks))
    measured = ((b.name, _measure(b, Path(data), model, settings)[0]) for b in chosen.present)
    return {name: statistics.fmean(values) for name, values in measured}


def _protocol(benchmark: Benchmark, data: Path, settings: ProbeSettings, model: EncoderModel) -> dict[str, Any]:
    trained = benchmark.train is not None
    asked: dict[str, Any] = dataclasses.asdict(settings)
    asked["max_length"] = min(settings.max_length, model.config.max_position_embeddings)
    if not trained:
        asked = {key: asked[key] for key in ("max_length", "pooling")} | {"seeds": (0,), "test": "all"}
    files = (benchmark.train, benchmark.test) if trained else (benchmark.test,)
    return {
        "method": "logistic regression on frozen vectors" if trained else "cosine of frozen vectors",
        **asked,
        "files": {file: sha256_of(data / file) for file in files if file is not None},
        "note": benchmark.note,
    }


def _measure(
    benchmark: Benchmark, data: Path, model: EncoderModel, settings: ProbeSettings
) -> tuple[list[float], dict[str, Any]]:
    """The metric of each seed, and what else was found."""
    test, labels = _read(benchmark, data / benchmark.test)
    if benchmark.train is None:
        return _by_cosine(test, model, settings, benchmark.metric)
    train, labels = _read(benchmark, data / benchmark.train)
    draw = np.random.default_rng(0)
    pool = [train[i] for i in draw.permutation(len(train))[: settings.pool]]
    test = [test[i] for i in draw.permutation(len(test))[: settings.test]]
    vectors = _vectors(model, [example.text for example in pool + test], settings)
    pool_XD, test_XD = vectors[: len(pool)], vectors[len(pool) :]
    found = [
        _one_seed(pool, pool_XD, test, test_XD, labels, benchmark.metric, settings, seed) for seed in settings.seeds
    ]
    majority = Counter(str(example.label) for example in pool).most_common(1)[0][0]
    always = score_all("single", labels, test, [{"label": majority} for _ in test])[benchmark.metric]
    others = {name: [row[0][name] for row in found] for name in found[0][0]}
    details = {
        "examples": found[0][1] | {"pool": len(pool), "test": len(test)}, "classes": len(labels), "majority": always,
        "regularisation": [row[2] for row in found], "not_converged": sum(row[3] for row in found), "metrics": others,
    }  # fmt: skip
    return others[benchmark.metric], details


def _one_seed(
    pool: list[TextExample], pool_XD: np.ndarray, test: list[TextExample], test_XD: np.ndarray, labels: Sequence[str],
    metric: str, settings: ProbeSettings, seed: int,
) -> tuple[dict[str, float], dict[str, int], float, int]:  # fmt: skip
    """Metrics on the test texts, how many examples were used, the regularisation taken, and fits that did not converge."""
    from sklearn.linear_model import LogisticRegression

    order = np.random.default_rng(seed).permutation(len(pool))
    num_validation = min(settings.validation, max(1, len(pool) // 5))
    of_validation = order[:num_validation]
    of_train = order[num_validation : num_validation + settings.train]
    mean_D, sd_D = pool_XD[of_train].mean(0), pool_XD[of_train].std(0) + 1e-6
    gold = np.array([str(example.label) for example in pool])
    best: tuple[float, float, np.ndarray] | None = None
    not_converged = 0
    for strength in sorted(settings.grid):  # of equals the one that fits less closely
        classifier = LogisticRegression(C=strength, max_iter=_MOST_ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told below
            classifier.fit((pool_XD[of_train] - mean_D) / sd_D, gold[of_train])
        not_converged += int(classifier.n_iter_.max() >= _MOST_ITERATIONS)
        said = classifier.predict((pool_XD[of_validation] - mean_D) / sd_D)
        chosen_by = score_all("single", labels, [pool[i] for i in of_validation], _decisions(said))[metric]
        if best is None or chosen_by > best[0]:
            best = (chosen_by, strength, classifier.predict((test_XD - mean_D) / sd_D))
    assert best is not None
    metrics = score_all("single", labels, test, _decisions(best[2]))
    return metrics, {"train": len(of_train), "validation": num_validation}, best[1], not_converged


def _by_cosine(
    examples: list[TextExample], model: EncoderModel, settings: ProbeSettings, metric: str
) -> tuple[list[float], dict[str, Any]]:
    pairs = [example.pair for example in examples]
    assert all(pair is not None for pair in pairs)
    vectors = _vectors(model, [example.text for example in examples] + [str(pair) for pair in pairs], settings)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12
    cosines = (vectors[: len(examples)] * vectors[len(examples) :]).sum(1)
    metrics = score_all("regression", [], examples, [{"value": float(cosine)} for cosine in cosines])
    return [metrics[metric]], {"examples": {"test": len(examples)}, "metrics": {k: [v] for k, v in metrics.items()}}


def _vectors(model: EncoderModel, texts: list[str], settings: ProbeSettings) -> np.ndarray:
    length = min(settings.max_length, model.config.max_position_embeddings)
    found = encode(model, texts, pooling=settings.pooling, normalize=False, max_length=length)
    assert isinstance(found, np.ndarray)
    return found


def _read(benchmark: Benchmark, path: Path) -> tuple[list[TextExample], list[str]]:
    assert benchmark.kind in ("classify", "pair")
    file = read_labelled(path, benchmark.kind, Columns(**benchmark.columns))
    return [_text(example) for example in file.examples], list(file.labels)


def _text(example: Example) -> TextExample:
    assert isinstance(example, TextExample)
    return example


def _decisions(said: np.ndarray) -> list[dict[str, Any]]:
    return [{"label": str(label)} for label in said]


def _need_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "the probe needs scikit-learn, which is not installed; pip install 'modernbert[evaluate]'"
        ) from error
