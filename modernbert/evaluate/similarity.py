"""An embedder on scored pairs of texts → the rank correlation of its cosines with what people said, nothing trained.

    both texts of a pair → vectors → their cosine → Spearman's ρ with the scores

STS-B's test pairs (`glue/stsb` of a data folder), or a file of one's own. The interval is of 1,000 draws of pairs with
replacement. Any encoder that transformers loads and any sentence-transformers model will do.
Price: 60,000 tokens for STS-B.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.metrics import spearman
from modernbert.evaluate.retrieval import RetrievalSettings, Vectors
from modernbert.evaluate.score import Progress, Score, ScoreFile, protocol_key, sha256_of, where_computed
from modernbert.runtime import Runtime
from modernbert.text.pairs import read_pairs

SIMILARITY = "similarity"
_SETS = {"stsb": "glue/stsb"}
_DRAWS = 1_000


def evaluate_similarity(
    model: str,
    data: Path,
    *,
    settings: RetrievalSettings,
    tasks: Sequence[str] = (),
    scores: ScoreFile | None = None,
    runtime: Runtime | None = None,
    progress: Progress = lambda _done, _note: None,
) -> Iterator[Score]:
    """Score an embedder on each set of scored pairs that is there.

    Args:
        model: its name.
        data: a file of scored pairs, or a folder that holds glue/stsb.
        settings: how; `max_test` counts pairs.
        tasks: only these.
        scores: where scores are kept, and taken from where they are known.
        runtime: device and precision.
        progress: told before each task.

    Raises:
        ConfigError: no such task.
        DataError: nothing of it is there, or a file has no scores.
    """
    runtime = runtime or Runtime.detect()
    files = files_of(data, settings.split, tasks)
    vectors = Vectors(model, runtime)
    for done, (name, path) in enumerate(files.items()):
        progress(done, name)
        pairs = read_pairs(path)
        if pairs.shape != "scored":
            raise DataError(f"{path} holds {pairs.shape}, and no scored pairs; it takes sentence1, sentence2 and score")
        gold_N = np.array((pairs.scores or [])[: settings.max_test])
        if len(set(gold_N.tolist())) < 2:
            raise DataError(
                f"{path}: its {len(gold_N):,} pairs have one score, as where labels are hidden; say split=validation, give "
                "another file, or raise max_test"
            )
        length = settings.max_length or vectors.usual_length
        asked = {
            "method": "Spearman's rank correlation of cosines with scores; interval by 1,000 draws of pairs",
            "prompt": "the model's own for any text, where it has one",
            **dataclasses.asdict(settings), "max_length": length, "files": {path.name: sha256_of(path)}, "seeds": [0],
        }  # fmt: skip
        if scores is not None and (known := scores.find(vectors.fingerprint, name, protocol_key(asked), SIMILARITY)):
            yield from known
            continue
        started_at = time.perf_counter()
        firsts, seconds = (texts[: settings.max_test] for texts in pairs.texts.values())
        with runtime.autocast():
            first_ND, second_ND = (vectors(texts, None, length, settings.truncate_dim) for texts in (firsts, seconds))
        cosine_N = (_unit(first_ND) * _unit(second_ND)).sum(1)
        score = Score.of(
            [spearman(gold_N, cosine_N)], suite=SIMILARITY, task=name, metric="spearman", model=model,
            model_fingerprint=vectors.fingerprint, protocol=asked | where_computed(runtime),
            details={"pairs": len(gold_N)}, seconds=time.perf_counter() - started_at,
        )  # fmt: skip
        low, high = _interval(gold_N, cosine_N)
        score = dataclasses.replace(score, low=low, high=high)
        if scores is not None:
            scores.append(score)
        yield score


def files_of(data: Path, split: str, tasks: Sequence[str] = ()) -> dict[str, Path]:
    """The files of scored pairs that are there, by the names of their tasks.

    Raises:
        ConfigError: a task that is none of them.
        DataError: none is there.
    """
    known = {name: data / place / f"{split}.parquet" for name, place in _SETS.items()}
    found = {data.stem: data} if data.is_file() else {name: path for name, path in known.items() if path.is_file()}
    if not found:
        raise DataError(
            f"{data} has no {' or '.join(f'{place}/{split}.parquet' for place in _SETS.values())}; give a folder that has, or a "
            "file of scored pairs"
        )
    if unknown := [task for task in tasks if task not in found]:
        raise ConfigError(f"suite {SIMILARITY} has no task {unknown[0]!r} there; choose among {', '.join(found)}")
    return {name: path for name, path in found.items() if not tasks or name in tasks}


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)


def _interval(gold_N: np.ndarray, cosine_N: np.ndarray) -> tuple[float, float]:
    """95 %, of the correlation over pairs drawn with replacement."""
    draw = np.random.default_rng(0)
    places = (draw.integers(0, len(gold_N), len(gold_N)) for _ in range(_DRAWS))
    low, high = np.quantile([spearman(gold_N[place], cosine_N[place]) for place in places], [0.025, 0.975])
    return float(low), float(high)
