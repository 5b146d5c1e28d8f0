"""`modernbert encode`: texts from arguments, files and standard input; vectors as JSON lines and as files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import HERE, everything_in, refusal, result, run
from tiny_run import sentences

from modernbert.retrieval import encode

pq = pytest.importorskip("pyarrow.parquet")


pytestmark = pytest.mark.usefixtures("own_place")


@pytest.fixture
def expected(tiny_model):
    return lambda texts, **settings: encode(tiny_model, texts, **settings)


def lines(found):
    assert found.status == 0, found.err
    return [json.loads(line) for line in found.out.splitlines()]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_without_out_each_text_is_a_json_line(tiny_folder, expected, flags):
    texts = ["the cat sat", "", "naïve 漢字"]
    found = lines(run("encode", tiny_folder, *texts, *HERE, *flags))
    assert [line["text"] for line in found] == texts
    assert np.allclose([line["vector"] for line in found], expected(texts), atol=1e-6)


def test_lines_of_standard_input_are_texts_and_blank_ones_are_left_out_and_said(tiny_folder):
    found = run("encode", tiny_folder, *HERE, stdin="one\n\n two \r\n   \nthree")
    assert [line["text"] for line in lines(found)] == ["one", " two ", "three"]
    assert "left out: 2 blank (line 2, line 4)" in found.err


def test_what_is_printed_does_not_depend_on_how_many_lines_go_together(tiny_folder, expected):
    texts = sentences(300)
    found = lines(run("encode", tiny_folder, *HERE, stdin="\n".join(texts)))
    assert np.allclose([line["vector"] for line in found], expected(texts), atol=1e-6)


def test_every_option_reaches_the_vectors(tiny_folder, expected):
    texts = ["the cat sat on a mat", "dogs ran"]
    options = ["--pooling", "cls", "--no-normalize", "--truncate-dim", "7", "--max-length", "5"]
    found = run("encode", tiny_folder, *texts, *options, *HERE)
    vectors = [line["vector"] for line in lines(found)]
    assert np.allclose(
        vectors, expected(texts, pooling="cls", normalize=False, truncate_dim=7, max_length=5), atol=1e-6
    )


def test_a_sentence_transformers_folder_says_how_it_pools_unless_the_command_does(tiny_model, expected):
    folder = tiny_model.save("folder")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    for options, pooling in (([], "cls"), (["--pooling", "mean"], "mean")):
        (found,) = lines(run("encode", folder, "the cat sat", *options, *HERE))
        assert np.allclose(found["vector"], expected(["the cat sat"], pooling=pooling)[0], atol=1e-6)


def write_sources(texts):
    """Three files, and the texts in their order."""
    Path("a.txt").write_text("\n\n".join(texts[:20]))
    Path("b.jsonl").write_text(
        "".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts[20:40]))
    )
    Path("c.txt.gz").write_bytes(gzip.compress("\n".join(texts[40:]).encode()))
    return ["--from", "a.txt", "--from", "b.jsonl", "--from", "c.txt.gz", "--text-field", "body"]


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_files_become_a_file_and_figures(tiny_folder, tiny_model, expected, kind):
    texts = sentences(60)
    said = result(
        "encode", tiny_folder, *write_sources(texts), "--out", f"deep/v.{kind}", "--truncate-dim", "16", *HERE
    )
    rates = {said.pop(name) for name in ("seconds", "texts_per_second", "tokens_per_second")}
    assert min(rates) > 0
    tokens = sum(len(tiny_model.tokenizer.encode(text)) for text in texts)
    assert said == {
        "path": f"deep/v.{kind}", "dimensions": 16, "texts": 60, "tokens": tokens, "truncated": 0, "empty": 0,
    }  # fmt: skip
    if kind == "npy":
        found = np.load("deep/v.npy")
    else:
        table = pq.read_table("deep/v.parquet")
        found = np.stack(table["vector"].to_numpy())
        assert table["text"].to_pylist() == texts
    assert np.allclose(found, expected(texts, truncate_dim=16), atol=1e-6)


def test_a_person_is_told_the_pace(tiny_folder):
    found = run("encode", tiny_folder, "a", "b", "--out", "v.npy", *HERE)
    assert found.status == 0 and found.out.startswith("v.npy: 2 texts, 32 dimensions, ")
    assert "texts/s" in found.out and "tokens/s" in found.out


def test_the_same_command_goes_on_after_an_error_in_its_input(tiny_folder, expected, monkeypatch):
    monkeypatch.setattr("modernbert.retrieval.windows._CHARS_PER_WINDOW", 100)
    texts = sentences(60)
    good = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    Path("t.jsonl").write_text(good[:-40])
    command = ["encode", tiny_folder, "--from", "t.jsonl", "--out", "v.npy", *HERE]
    assert "not valid JSON" in refusal(*command)
    assert not Path("v.npy").exists() and Path("v.npy.unfinished").exists()
    Path("t.jsonl").write_text(good)
    again = run(*command)
    assert again.status == 0 and "going on with v.npy behind text " in again.err
    assert np.allclose(np.load("v.npy"), expected(texts), atol=1e-6)


@pytest.mark.parametrize(
    "command,message",
    [
        ("FOLDER a --from t.txt", "give texts or --from t.txt, not both"),
        ("FOLDER --from nowhere.txt", "nowhere.txt: no such file or folder"),
        ("FOLDER --from empty.txt", "no documents in empty.txt; give some text"),
        ("FOLDER --from empty.txt --out v.npy", "no documents in empty.txt; give some text"),
        ("FOLDER --from bad.jsonl --out v.npy", "bad.jsonl, line 2: not valid JSON"),
        ("FOLDER", "no documents in standard input; give some text"),
        ("FOLDER a --out v.csv", "v.csv: vectors are written as .npy or .parquet"),
        ("FOLDER a --out t.npy", "t.npy is there already; remove it or choose another name"),
        ("FOLDER a --out v.npy --truncate-dim 0", "truncate_dim=0 is out of range; it must be from 1 to 32"),
        ("FOLDER a --truncate-dim 33", "truncate_dim=33 is out of range"),
        ("FOLDER a --max-length 1000", "max_length=1000 is out of range; it must be from 3 to 128"),
        ("FOLDER a --device abacus", "device='abacus' is no device"),
        ("FOLDER a --threads 0", "num_threads=0 must be at least 1"),
        ("nowhere a --out v.npy", "nowhere: no such folder, and not a hub name"),
        ("empty a --out v.npy", "empty has no config.json"),
    ],
)
def test_a_bad_request_is_one_line_and_leaves_nothing(tiny_folder, tmp_path, command, message):
    Path("t.txt").write_text("a text\n")
    Path("empty.txt").write_text("\n")
    Path("bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    Path("t.npy").write_text("mine")
    Path("empty").mkdir()
    before = everything_in(tmp_path)
    assert message in refusal("encode", *(str(tiny_folder) if word == "FOLDER" else word for word in command.split()))
    assert everything_in(tmp_path) == before


def test_a_pooling_that_is_not_known_is_exit_status_2(tiny_folder):
    found = run("encode", tiny_folder, "a", "--pooling", "max")
    assert found.status == 2 and "Traceback" not in found.err + found.out
