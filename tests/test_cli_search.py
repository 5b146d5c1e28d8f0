"""`index`, `search` and `ask` as a person gives them: what is printed, refused and left behind."""

import json
from pathlib import Path

import pytest
from test_cli import HERE, refusal, result, run
from tiny_tasks import write_jsonl

from modernbert.tasks import Answerer
from modernbert.tasks.head import HeadSettings

pytest.importorskip("lancedb")
pytestmark = pytest.mark.usefixtures("own_place")


@pytest.fixture(scope="module")
def embedder(tiny_model, tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("embedder") / "model")


@pytest.fixture(scope="module")
def reader(tiny_config, tiny_tokenizer, tmp_path_factory):
    """Untrained: it answers something, which stands where it says."""
    settings = HeadSettings(kind="answer", labels=("start", "end"), problem="spans", max_length=64, stride=16)
    return Answerer(tiny_config, tiny_tokenizer, settings).draw(0).save(tmp_path_factory.mktemp("reader") / "model")


@pytest.fixture
def sources():
    Path("notes").mkdir()
    Path("notes/bridge.md").write_text("# Bridge\n\nThe old stone bridge by the river.\n")
    Path("notes/house.txt").write_text("A green house in the forest.\n\nA quiet child reads a letter.\n")
    write_jsonl(Path("notes/records.jsonl"), [{"id": "r1", "text": "new light in the evening", "lang": "en"}])
    return "notes"


def index(embedder, *arguments):
    return ["index", *arguments, "--model", embedder, "--store", "store", "--max-tokens", "40", *HERE]


def lines(found):
    assert found.status == 0, found.err
    return [json.loads(line) for line in found.out.splitlines()]


def test_index_then_search_in_every_mode(embedder, sources):
    found = result(*index(embedder, sources))
    assert (found["added"], found["unchanged"], found["removed"]) == (3, 0, 0)
    assert result(*index(embedder, sources))["passages"] == 0
    for mode in ("dense", "bm25", "hybrid"):
        hits = lines(run("search", "store", "stone bridge", "--mode", mode, "--json", "--top", "2", *HERE))
        assert {"source", "start", "end", "score", "text"} <= hits[0].keys() and len(hits) <= 2
    (best, *_) = lines(run("search", "store", "stone bridge", "--mode", "bm25", "--json", *HERE))
    text = Path(best["source"]).read_text()
    assert (
        best["source"] == str(Path("notes/bridge.md").absolute()) and text[best["start"] : best["end"]] == best["text"]
    )
    shown = run("search", "store", "stone bridge", *HERE)
    assert shown.status == 0 and "bridge.md" in shown.out


def test_filters_and_conditions(embedder, sources):
    run(*index(embedder, sources))
    (hit,) = lines(run("search", "store", "light", "--filter", "lang=en", "--json", *HERE))
    assert hit["source"].endswith("records.jsonl#r1") and hit["meta"]["lang"] == "en"
    assert lines(run("search", "store", "light", "--where", "source LIKE '%.md'", "--json", *HERE))[0][
        "source"
    ].endswith(".md")
    assert "the store cannot take it" in refusal("search", "store", "light", "--where", "no sql at all", *HERE)


def test_recommendations_leave_the_file_out(embedder, sources):
    run(*index(embedder, sources))
    hits = lines(run("search", "store", "--like", "notes/bridge.md", "--json", *HERE))
    assert [Path(hit["source"]).name for hit in hits if "bridge" in hit["source"]] == [] and len(hits) == 2
    assert "not both" in refusal("search", "store", "words", "--like", "x", *HERE)
    assert "goes by likeness" in refusal("search", "store", "--like", "x", "--mode", "bm25", *HERE)


def test_an_answer_stands_where_it_says(embedder, reader, sources):
    run(*index(embedder, sources))
    found = result("ask", "store", "what is old", "--reader", reader, *HERE)
    text = Path(found["source"]).read_text() if "#" not in found["source"] else "new light in the evening"
    assert text[found["start"] : found["end"]] == found["answer"] and found["answer"] in found["passage"]
    assert "has no head" in refusal("ask", "store", "what", "--reader", embedder, *HERE)


def test_no_hits_are_no_answer(embedder, reader, sources):
    run(*index(embedder, sources))
    found = result("ask", "store", "zebra", "--reader", reader, "--mode", "bm25", *HERE)
    assert found["answer"] is None and found["source"] is None
    assert run("ask", "store", "zebra", "--reader", reader, "--mode", "bm25", *HERE).out == "no answer\n"


@pytest.mark.parametrize("arguments,message", [
    (["search", "nowhere", "words"], "no store of passages"), (["search", "notes", "words"], "is no store of passages"),
    (["search", "store", " "], "the query is empty"), (["search", "store", "words", "--top", "0"], "top=0 must be at least 1"),
    (["index", "nothing", "--model", "MODEL", "--store", "new"], "no such file or folder"),
    (["index", "notes", "--model", "nowhere", "--store", "new"], "nowhere: no such folder"),
])  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing_behind(embedder, sources, arguments, message):
    run(*index(embedder, sources))
    said = refusal(*[embedder if word == "MODEL" else word for word in arguments], *HERE)
    assert message in said and not Path("new").exists()
