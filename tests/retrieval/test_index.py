"""Indexing does only what is needed, loses nothing to a kill or a bad file, and search finds what was indexed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from modernbert.errors import ConfigError, DataError
from modernbert.retrieval import encode
from modernbert.retrieval import index as indexing
from modernbert.retrieval.encode import open_for_vectors
from modernbert.retrieval.index import index
from modernbert.retrieval.search import Retriever, answered
from modernbert.retrieval.store import Hit, Store

pytest.importorskip("lancedb")


@pytest.fixture
def embedder(tiny_folder):
    return open_for_vectors(tiny_folder)


@pytest.fixture
def place(tmp_path, embedder, tiny_folder):
    """A folder of sources, and how it is indexed."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.md").write_text("# Bridge\n\nThe old stone bridge.\n\n# House\n\nA green house by the river.\n")
    (folder / "two.py").write_text("import os\n\n\ndef readHTTPHeader():\n    return os\n")
    rows = [
        {"_id": "r1", "text": "a letter in the morning", "lang": "en"},
        {"id": 2, "text": "une lettre", "lang": "fr"},
    ]
    (folder / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*paths, **settings):
        settings = {"name": str(tiny_folder), "max_tokens": 48, **settings}
        return index(paths or [folder], embedder, tmp_path / "store", **settings)

    run.folder, run.store = folder, tmp_path / "store"
    return run


def sources_in(place):
    return {name.removeprefix(f"{place.folder}/") for name in Store.open(place.store).known()}


def test_a_second_round_encodes_nothing(place):
    first = place()
    assert (first.added, first.unchanged, first.in_store) == (4, 0, first.passages)
    assert sources_in(place) == {"one.md", "two.py", "three.jsonl#r1", "three.jsonl#2"}
    again = place()
    assert (again.added, again.changed, again.removed, again.passages, again.unchanged) == (0, 0, 0, 0, 4)


def test_what_has_changed_is_encoded_anew_and_what_is_gone_is_taken_out(place):
    place()
    (place.folder / "one.md").write_text("# Forest\n\nA quiet forest.\n")
    (place.folder / "two.py").unlink()
    (place.folder / "three.jsonl").write_text(
        json.dumps({"_id": "r1", "text": "a letter in the morning", "lang": "en"})
    )
    (place.folder / "four.txt").write_text("new light")
    report = place()
    assert (report.added, report.changed, report.removed, report.unchanged, report.passages) == (1, 1, 2, 1, 2)
    assert sources_in(place) == {"one.md", "three.jsonl#r1", "four.txt"}
    retriever = Retriever(place.store)
    assert [hit.heading for hit in retriever.search("forest", 9, "bm25")] == ["Forest"]
    assert retriever.search("bridge", 9, "bm25") == []


def test_a_touched_file_of_the_same_text_is_not_encoded(place):
    place()
    os.utime(place.folder / "one.md", ns=(1, 1))
    assert place().passages == 0


def test_only_what_lies_below_the_given_sources_is_taken_out(place):
    place()
    other = place.folder.parent / "other"
    other.mkdir()
    (other / "five.txt").write_text("evening")
    (place.folder / "two.py").unlink()
    assert (place(other).removed, len(sources_in(place))) == (0, 5)
    assert place(place.folder).removed == 1


def test_bad_files_are_named_and_the_rest_is_indexed(place):
    (place.folder / "empty.txt").write_text(" \n")
    (place.folder / "binary.txt").write_bytes(b"\0\1\2")
    (place.folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (place.folder / "large.txt").write_text("river " * 400_000)
    (place.folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n[1]\n{"no": "text"}\n')
    (place.folder / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    report = place(max_megabytes=2)
    assert report.added == 5
    reasons = report.skips.counts
    assert {"empty", "binary", "broken UTF-8", "not valid JSON", "no JSON object", "no text"} <= reasons.keys()
    assert any("larger than 2 MB" in reason for reason in reasons) and any("damaged" in r for r in reasons)


def test_a_file_that_can_no_longer_be_read_keeps_what_was_indexed_of_it(place):
    place()
    (place.folder / "one.md").write_bytes(b"\xff\xfe\0")
    report = place()
    assert report.removed == 0 and "one.md" in sources_in(place)


def test_an_emptied_file_has_no_passages_left(place):
    place()
    (place.folder / "one.md").write_text("")
    assert place().removed == 1 and "one.md" not in sources_in(place)


def test_vectors_are_those_that_encode_gives(place, embedder):
    place()
    hits, vectors = Store.open(place.store).passages_of(str(place.folder / "two.py"))
    texts = [f"{hit.heading}\n{hit.text}" if hit.heading else hit.text for hit in hits]
    assert np.allclose(vectors, encode(embedder, texts), atol=1e-5)


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_a_hit_says_where_it_stands(place, mode):
    place()
    for hit in Retriever(place.store).search("stone bridge", 3, mode):
        if not hit.source.partition("#")[2]:
            text = Path(hit.source).read_text()
            assert text[hit.start : hit.end] == hit.text
        assert list(hit.to_dict())[:4] == ["source", "start", "end", "score"]


def test_the_like_of_a_file_leaves_the_file_out(place):
    place()
    retriever = Retriever(place.store)
    hits = retriever.like(place.folder / "one.md", 9)
    assert {hit.source for hit in hits} == {name for name in Store.open(place.store).known() if "one.md" not in name}
    assert len(retriever.like("a stone house", 9)) == 4, "a text is no source, so none is left out"
    records = retriever.like(place.folder / "three.jsonl", 9)
    assert {Path(hit.source).name for hit in records} == {"one.md", "two.py"}, "nor are a file's records like it"
    assert len(retriever.like(f"{place.folder}/three.jsonl#r1", 9)) == 3
    with pytest.raises(DataError, match="no such file or source"):
        retriever.like("docs/nowhere.md", 2)
    with pytest.raises(DataError, match="is empty"):
        retriever.like(" ", 2)


def test_passages_within_a_budget(place, embedder):
    place()
    retriever = Retriever(place.store)
    taken = retriever.within("the river", 40)
    counts = [len(embedder.tokenizer.encode(hit.text)) for hit in taken]
    assert taken and sum(counts) <= 40
    assert retriever.within("the river", 1) == []


def test_another_model_may_not_search(place, tiny_config, tiny_tokenizer, tmp_path):
    from modernbert import MaskedLM

    place()
    other = MaskedLM(tiny_config, tiny_tokenizer).draw(7).save(tmp_path / "other")
    with pytest.raises(ConfigError, match="was indexed with model="):
        Retriever(place.store, str(other)).search("river", 1, "dense")
    assert Retriever(place.store, str(other)).search("river", 1, "bm25"), "words need no model"
    with pytest.raises(ConfigError, match="holds vectors of"):
        index([place.folder], open_for_vectors(other), place.store, name="other", max_tokens=48)


def test_the_same_place_by_another_name_is_the_same_source(place, monkeypatch):
    place()
    monkeypatch.chdir(place.folder)
    assert place("../sources").unchanged == 4 and place(".", "one.md", "../sources").unchanged == 4
    Path("two.py").unlink()
    assert place("../sources").removed == 1


def test_overlapping_sources_are_indexed_once(place):
    report = place(place.folder, place.folder / "one.md")
    assert report.added == 4
    (place.folder / "one.md").write_text("# Other\n\nnew text")
    assert place(place.folder, place.folder / "one.md").changed == 1
    assert len(sources_in(place)) == 4


def test_what_cannot_be_read_stays_whatever_way_it_is_named(place, monkeypatch):
    place()
    monkeypatch.chdir(place.folder.parent)
    (place.folder / "two.py").write_bytes(b"\xff")
    assert place("sources").removed == 0 and "two.py" in sources_in(place)


def test_a_named_source_that_is_gone_is_taken_out(place):
    place()
    (place.folder / "one.md").unlink()
    assert place(place.folder / "one.md").removed == 1
    with pytest.raises(DataError, match="no such file or folder"):
        place(place.folder / "never.md")


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbfold stone\n\nriver", b"old stone\r\n\r\nriver\r\n"])
def test_places_are_those_of_the_text_as_python_reads_it(place, raw):
    (place.folder / "other.txt").write_bytes(raw)
    place(max_tokens=8)
    hits = [hit for hit in Retriever(place.store).search("stone river", 9, "bm25") if "other" in hit.source]
    text = (place.folder / "other.txt").read_text(encoding="utf-8")
    assert hits and all(text[hit.start : hit.end] == hit.text for hit in hits)


def test_a_name_that_is_no_utf8_is_left_out_and_said(place):
    try:
        Path(os.fsdecode(os.fsencode(place.folder) + b"/\xff.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert place().skips.counts["a name that is not UTF-8"] == 1


def test_a_field_that_no_record_has_is_said_with_those_there_are(place):
    report = place(text_field="body")
    assert any("no record has the field 'body' (--text-field; there are" in reason for reason in report.skips.counts)
    place()
    assert place(text_field="body").removed == 0, "a wrong option takes nothing out"


@pytest.mark.parametrize("settings,message", [
    ({"max_tokens": 4}, "max_tokens=4 is out of range; it must be from 8 to 94"), ({"dimensions": 99}, "truncate_dim=99"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(place, settings, message):
    with pytest.raises(ConfigError, match=message):
        place(**settings)
    assert not place.store.exists()


def test_no_source_is_refused(place):
    with pytest.raises(DataError, match="no such file or folder"):
        place(place.folder / "nowhere")


KILLED = """
import sys
from modernbert.retrieval import index as indexing
from modernbert.retrieval.encode import open_for_vectors
indexing._PASSAGES_A_COMMIT = 5
indexing.index([sys.argv[1]], open_for_vectors(sys.argv[2]), sys.argv[3], name=sys.argv[2], max_tokens=48,
               progress=lambda report: print(report.passages, flush=True))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_ten_moments_nothing_is_lost_and_nothing_doubled(tmp_path, tiny_folder, monkeypatch):
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"stone {number}\n\nriver {number}")
    draw = np.random.default_rng(0)
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tiny_folder), str(tmp_path / "store")]
    for _ in range(10):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # it has committed, or is done
        time.sleep(draw.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for number in draw.integers(0, 60, 5):  # and the sources go on changing
            (folder / f"{number}.txt").write_text(f"stone {number}\n\nriver {draw.integers(1000)}")
    subprocess.run(arguments, check=True, capture_output=True)
    rows = Store.open(tmp_path / "store")._table.to_arrow().to_pylist()
    found = {(row["source"], row["start"]): row["content"] for row in rows}
    assert len(found) == len(rows), "nothing is doubled"
    expected = {str(path): path.read_text() for path in folder.iterdir()}
    texts = {}
    for (source, _), content in sorted(found.items()):
        texts[source] = texts.get(source, "") + content
    assert {s: "".join(t.split()) for s, t in texts.items()} == {s: "".join(t.split()) for s, t in expected.items()}


def test_the_answer_of_the_surest_passage_is_given_with_its_place():
    def hit(source, start):
        return Hit(source=source, start=start, end=start + 9, score=1.0, text="it is here", heading="", meta={})

    none = {"answer": None, "start": None, "end": None, "score": 0.9}
    hits = [hit("a", 0), hit("b", 100), hit("c", 7)]
    answers = [
        none,
        {"answer": "here", "start": 6, "end": 10, "score": 0.4},
        {"answer": "it", "start": 0, "end": 2, "score": 0.2},
    ]
    found = answered(hits, answers)
    assert (found["answer"], found["source"], found["start"], found["end"]) == ("here", "b", 106, 110)
    assert answered(hits, [none] * 3)["answer"] is None and answered([], [])["answer"] is None


def test_commits_are_of_some_passages_each(place, monkeypatch):
    monkeypatch.setattr(indexing, "_PASSAGES_A_COMMIT", 1)
    seen = []
    place(progress=lambda report: seen.append(report.passages))
    assert len(seen) == 4 and seen == sorted(seen)
