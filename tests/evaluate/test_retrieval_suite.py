"""`evaluate --suite retrieval`: metrics as by hand, BM25 beside every model, queries paired."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_cli import HERE, refusal, run

from modernbert.evaluate.retrieval import RetrievalSettings, Vectors, evaluate_retrieval, fuse, measured, read_task
from modernbert.retrieval import encode
from modernbert.runtime import Runtime
from modernbert.tasks import Embedder
from modernbert.tasks.embed import EmbedSettings
from modernbert.text.beir import BeirFolder

pytest.importorskip("lancedb")
pytest.importorskip("ir_measures")
pytestmark = pytest.mark.usefixtures("own_place")
WORDS = ["river", "stone", "green", "house", "letter", "child", "light", "morning", "evening", "forest"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten documents of a word each, told by it; every query names one."""
    folder = tmp_path_factory.mktemp("data") / "retrieval_words"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": "", "text": f"the old {word} and the {word}"} for n, word in enumerate(WORDS)]
    queries = [{"_id": f"q{n}", "text": f"a new {word}"} for n, word in enumerate(WORDS)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(10))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder.parent


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "embedder"
    return str(Embedder.of(tiny_model, EmbedSettings(prompts={"query": "of "})).save(folder))


def scores(model, data, **settings):
    runtime = Runtime.detect(device="cpu", num_threads=1)
    found = evaluate_retrieval(model, "retrieval", data, settings=RetrievalSettings(**settings), runtime=runtime)
    return {(score.model, score.metric): score for score in found}


def test_metrics_are_those_by_hand():
    task = BeirFolder(name="t", corpus={}, queries={"q1": "", "q2": "", "q3": ""},
                      judgments={"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"x": 1}, "q3": {"y": 1}})  # fmt: skip
    run_ = {"q1": {"b": 3.0, "z": 2.0, "a": 1.0}, "q2": {f"n{i}": 99.0 - i for i in range(12)} | {"x": 1.0}}
    found = measured(task, run_)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert found["ndcg@10"] == pytest.approx([(1 / math.log2(2) + 2 / math.log2(4)) / ideal, 0, 0])
    assert found["mrr@10"] == [1.0, 0.0, 0.0] and found["recall@100"] == [1.0, 1.0, 0.0]


def test_words_find_every_document_and_stand_beside_the_model(model, data):
    found = scores(model, data)
    assert {name for name, _ in found} == {model, "bm25", f"{model} + bm25"}
    assert found["bm25", "mrr@10"].value == 1.0 and found["bm25", "ndcg@10"].n == 10
    seeds = {score.protocol["seeds"] for score in found.values()}
    assert len(seeds) == 1, "compare pairs them by query"


def test_vectors_are_ranked_as_by_hand_with_the_models_prompt(model, data):
    task = read_task(data / "retrieval_words", RetrievalSettings())
    queries = encode(model, list(task.queries.values()), prompt="query")
    documents = encode(model, list(task.corpus.values()), prompt="document")
    ranks = [1 + int((row > row[n]).sum()) for n, row in enumerate(queries @ documents.T)]
    assert list(scores(model, data)[model, "mrr@10"].values) == pytest.approx([1 / r for r in ranks], abs=1e-3)


def test_a_model_of_the_library_gives_the_same_whether_ours_opens_it_or_it(model, data):
    pytest.importorskip("sentence_transformers", minversion="5.4")
    runtime = Runtime.detect(device="cpu", num_threads=1)
    ours, stock = Vectors(model, runtime), Vectors(model, runtime)
    from sentence_transformers import SentenceTransformer

    stock.model, stock.stock = None, SentenceTransformer(model, device="cpu")
    texts = ["the old river", "a stone"]
    for prompt in ("query", "document"):
        assert np.allclose(ours(texts, prompt, 64), stock(texts, prompt, 64), atol=1e-5)


def test_fusion_of_a_run_with_itself_keeps_its_order():
    run_ = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    assert list(fuse(run_, run_)["q"]) == ["a", "b", "c"]


def test_long_documents_are_taken_in_three_ways(model, data):
    runtime = Runtime.detect(device="cpu", num_threads=1)
    found = list(
        evaluate_retrieval(model, "long", data / "retrieval_words", settings=RetrievalSettings(), runtime=runtime)
    )
    tasks = list(dict.fromkeys(score.task for score in found))
    assert tasks == ["words, first 128", "words, best passage of 128"]
    own = [s.values for s in found if s.model == model and s.metric == "mrr@10"]
    assert own[0] == own[1], "no document is longer"


def test_another_prompt_is_another_model(tiny_model, data, tmp_path):
    runtime = Runtime.detect(device="cpu", num_threads=1)
    prints = []
    for query in ("of ", "in "):
        Embedder.of(tiny_model, EmbedSettings(prompts={"query": query})).save(tmp_path / query.strip())
        prints.append(Vectors(str(tmp_path / query.strip()), runtime).fingerprint)
    assert prints[0] != prints[1]


def test_on_the_command_line_and_what_is_known_is_not_measured_again(model, data):
    arguments = ["evaluate", model, "--suite", "retrieval", "--data", data, "--json", *HERE]
    first = run(*arguments)
    lines = [json.loads(line) for line in first.out.splitlines()]
    assert first.status == 0 and len(lines) == 9
    assert run(*arguments).out == first.out and len(Path("scores.jsonl").read_text().splitlines()) == 9
    assert "has no folder for suite retrieval" in refusal("evaluate", model, "--suite", "retrieval", "--data", ".")
    assert "no task 'x'" in refusal("evaluate", model, "--suite", "retrieval", "--data", data, "--tasks", "x")
    assert run(*arguments, "split=test", "max_test=3").status == 0
    assert "max_test=0 must be" in refusal(*arguments, "max_test=0")
    assert "epochs=2.0: of no use" in refusal(
        "evaluate", model, "--suite", "retrieval", "--data", data, "--epochs", "2"
    )
