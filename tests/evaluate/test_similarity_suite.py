"""`evaluate --suite similarity`: cosines beside people's scores."""

import json
from pathlib import Path

import pytest
from test_cli import HERE, refusal, result

from modernbert.errors import DataError
from modernbert.evaluate.retrieval import RetrievalSettings
from modernbert.evaluate.score import ScoreFile
from modernbert.evaluate.similarity import evaluate_similarity
from modernbert.retrieval import encode
from modernbert.runtime import Runtime
from modernbert.tasks import Embedder
from modernbert.tasks.embed import EmbedSettings

stats = pytest.importorskip("scipy.stats")
pytestmark = pytest.mark.usefixtures("own_place")
FIRSTS = [
    "the old house",
    "a green river",
    "one letter and one word",
    "the light of the morning",
    "seven children",
    "a stone",
]
SECONDS = ["the new house", "the letter", "one word", "the evening", "seven children", "a forest and a stone"]
GOLD = [4.0, 0.5, 3.0, 2.5, 5.0, 2.5]


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return str(Embedder.of(tiny_model, EmbedSettings()).save(tmp_path_factory.mktemp("model") / "embedder"))


def written(path, **columns):
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(path)


def score(model, data, **settings):
    runtime = Runtime.detect(device="cpu", num_threads=1)
    (found,) = evaluate_similarity(
        model, data, settings=RetrievalSettings(**settings), scores=ScoreFile("s.jsonl"), runtime=runtime
    )
    return found


def test_it_is_scipys_correlation_of_cosines(model):
    data = written("pairs.jsonl", sentence1=FIRSTS, sentence2=SECONDS, score=GOLD)
    cosines = (encode(model, FIRSTS) * encode(model, SECONDS)).sum(1)
    found = score(model, data)
    assert found.value == pytest.approx(stats.spearmanr(cosines, GOLD)[0], abs=1e-6)
    assert found.task == "pairs" and found.low < found.value < found.high
    first = score(model, data, max_test=4)
    assert first.value == pytest.approx(stats.spearmanr(cosines[:4], GOLD[:4])[0], abs=1e-6)
    assert len(list(ScoreFile("s.jsonl"))) == 2
    assert score(model, data).value == found.value and len(list(ScoreFile("s.jsonl"))) == 2, (
        "known, so not measured again"
    )


def test_what_has_no_scores_is_refused(model):
    data = written("pairs.jsonl", query=FIRSTS, positive=SECONDS)
    with pytest.raises(DataError, match="holds pairs, and no scored pairs"):
        score(model, data)
    data = written("hidden.jsonl", sentence1=FIRSTS, sentence2=SECONDS, score=[-1.0] * 6)
    with pytest.raises(DataError, match="its 6 pairs have one score"):
        score(model, data)
    Path("nothing").mkdir()
    with pytest.raises(DataError, match=r"has no glue/stsb/test.parquet"):
        score(model, Path("nothing"))


def test_the_command_says_the_score_and_refuses_another_task(model):
    written("pairs.jsonl", sentence1=FIRSTS, sentence2=SECONDS, score=GOLD)
    command = ["evaluate", model, "--suite", "similarity", "--data", "pairs.jsonl", *HERE]
    found = result(*command)
    assert (found["metric"], found["value"]) == ("spearman", pytest.approx(score(model, Path("pairs.jsonl")).value))
    assert "has no task 'x' there" in refusal(*command, "--tasks", "x")
