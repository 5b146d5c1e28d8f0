"""Folders in BEIR's form, and files of texts that belong together."""

import json

import pytest

from modernbert.errors import DataError
from modernbert.text.beir import beir_folders, read_beir
from modernbert.text.pairs import read_pairs


def write_beir(
    folder, *, judgments="q1\td1\t1\nq1\td2\t0\nq2\td2\t2\n", header="query-id\tcorpus-id\tscore\n", split="test"
):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": "d1", "title": "Bridge", "text": "old stone"}, {"_id": "d2", "title": "", "text": "a river"}]
    queries = [
        {"_id": "q1", "text": "what is old"},
        {"_id": "q2", "text": "water"},
        {"_id": "q3", "text": "not judged"},
    ]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / f"{split}.tsv").write_text(header + judgments)
    return folder


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore\n", ""])
def test_a_folder_is_read_whole(tmp_path, header):
    task = read_beir(write_beir(tmp_path / "task", header=header))
    assert task.corpus == {"d1": "Bridge old stone", "d2": "a river"}
    assert task.queries == {"q1": "what is old", "q2": "water"}
    assert task.judgments == {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}


def test_folders_are_found_in_a_folder_or_as_it(tmp_path):
    for name in ("b", "a"):
        write_beir(tmp_path / name)
    (tmp_path / "c").mkdir()
    assert [path.name for path in beir_folders(tmp_path)] == ["a", "b"]
    assert beir_folders(tmp_path / "a") == [tmp_path / "a"]
    assert beir_folders(tmp_path / "nowhere") == []


@pytest.mark.parametrize("line,message", [
    ('{"_id": "d1", "text": "again"}', "is that of a line before it"), ('{"_id": "d9", "text": null}', "an _id and a text"),
])  # fmt: skip
def test_broken_documents_are_refused_with_their_line(tmp_path, line, message):
    path = write_beir(tmp_path / "task") / "corpus.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=f"line 3: .*{message}"):
        read_beir(tmp_path / "task")


def test_judgments_of_documents_that_are_not_there_are_counted(tmp_path):
    assert read_beir(write_beir(tmp_path / "task", judgments="q1\td1\t1\nq1\tgone\t1\n")).num_lost == 1


@pytest.mark.parametrize("judgments,message", [
    ("q1 d1 1\n", "line 2: no judgment"), ("q9\td1\t1\n", "judges query 'q9'"), ("", "has no judgments"),
    ("q1\td1\tx\n", "line 2"), ("q1\td1\t0.5\n", "a whole score"),
])  # fmt: skip
def test_broken_judgments_are_refused(tmp_path, judgments, message):
    with pytest.raises(DataError, match=message):
        read_beir(write_beir(tmp_path / "task", judgments=judgments))


def test_a_split_that_is_not_there_says_which_are(tmp_path):
    with pytest.raises(DataError, match="splits that are there: test"):
        read_beir(write_beir(tmp_path / "task"), "dev")


@pytest.mark.parametrize("row,shape,columns", [
    ({"query": "a", "positive": "b"}, "pairs", {"anchor": "a", "positive": "b"}),
    ({"docstring": "a", "code": "b", "package": "p"}, "pairs", {"anchor": "a", "positive": "b"}),
    ({"anchor": "a", "positive": "b", "negative": "c", "negative_2": "d"}, "triplets",
     {"anchor": "a", "positive": "b", "negative": "c", "negative_2": "d"}),
    ({"sentence1": "a", "sentence2": "b", "score": 2.5}, "scored", {"anchor": "a", "positive": "b"}),
    ({"Query": "a", "pos": "b", "neg": "c", "score": 1}, "margins", {"anchor": "a", "positive": "b", "negative": "c"}),
    ({"text": "a", "label": 1}, "texts", {"text": "a"}),
    ({"sentence1": "a", "sentence2": "b", "label": 4}, "scored", {"anchor": "a", "positive": "b"}),
])  # fmt: skip
def test_columns_are_guessed_from_their_names(tmp_path, row, shape, columns):
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    file = read_pairs(tmp_path / "f.jsonl")
    assert file.shape == shape and {role: texts[0] for role, texts in file.texts.items()} == columns
    assert (file.scores is not None) == (shape in ("scored", "margins")) and len(file) == 2
    assert file.remarks[0].startswith("columns: ")


def test_a_beir_folder_gives_its_relevant_pairs(tmp_path):
    write_beir(tmp_path / "task", split="dev")
    assert len(read_pairs(tmp_path / "task", split="validation")) == 2
    file = read_pairs(write_beir(tmp_path / "task", split="train"))
    assert file.texts == {"anchor": ["what is old", "water"], "positive": ["Bridge old stone", "a river"]}
    with pytest.raises(DataError, match=r"has no qrels/train\.tsv; it has test"):
        read_pairs(write_beir(tmp_path / "other"))


@pytest.mark.parametrize("row,message", [
    ({"query": "a", "positive": ""}, "line 1: 'positive' holds nothing, not a text"),
    ({"query": "a", "positive": 3}, "'positive' holds 3, not a text"),
    ({"sentence1": "a", "sentence2": "b", "score": "high"}, "not a finite number"),
    ({"left": "a", "right": "b"}, "are none that belong together"),
    ({"premise": "a", "hypothesis": "b", "label": 0}, "'label' may be a class or a degree of likeness"),
    ({"query": "a", "positive": "b", "negative": "c", "negative_2": "d", "score": 1}, "says nothing of each"),
])  # fmt: skip
def test_rows_that_cannot_be_used_are_refused_with_their_place(tmp_path, row, message):
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "f.jsonl")
