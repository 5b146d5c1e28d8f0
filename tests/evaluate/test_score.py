"""A score says how it was got, and is found again; whatever interrupts its writing costs one line at most."""

import json
import math
import multiprocessing

import pytest
import torch

from modernbert import MaskedLM
from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.score import Score, ScoreFile, model_fingerprint, protocol_key, sha256_of
from modernbert.evaluate.seeds import summary

PROTOCOL = {"seeds": (0, 1, 2), "grid": (0.1, 1.0), "files": {"a/test.parquet": "ab"}, "commit": "1a2b", "versions": {}}


def made(values=(0.5, 0.6, 0.7), **changes):
    about = {
        "suite": "probe", "task": "banking77", "metric": "accuracy", "model": "a model", "model_fingerprint": "f0",
        "protocol": PROTOCOL, "details": {"classes": 77}, "seconds": 1.5,
    }  # fmt: skip
    return Score.of(values, **{**about, **changes})


def test_mean_and_interval_are_those_of_the_seeds():
    score, wanted = made(), summary((0.5, 0.6, 0.7))
    assert (score.value, score.sd, score.n, score.low, score.high) == (
        wanted.mean,
        wanted.sd,
        3,
        wanted.low,
        wanted.high,
    )
    alone = made([0.5])
    assert (alone.value, alone.sd, alone.n, alone.low, alone.high) == (0.5, None, 1, None, None)


def test_a_line_holds_all_of_a_score():
    score = made(model="模型")
    line = score.to_line()
    assert "\n" not in line and json.loads(line)["protocol"]["commit"] == "1a2b"
    read = Score.from_line(line)
    assert read.to_line() == line and read.protocol_key == score.protocol_key and read.values == score.values


def test_what_is_no_number_is_null_on_a_line_and_comes_back():
    line = made([math.nan, 0.5]).to_line()
    assert json.loads(line)["values"] == [None, 0.5]
    read = Score.from_line(line)
    assert math.isnan(read.value) and math.isnan(read.values[0]) and read.values[1] == 0.5


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"values": 3}', made().to_line().replace('"n": 3', '"n": 2')])
def test_a_line_that_is_no_score_is_refused(line):
    with pytest.raises(DataError, match="is no score"):
        Score.from_line(line, "scores.jsonl, line 1")


def test_a_protocol_is_the_same_wherever_it_was_followed():
    assert protocol_key(PROTOCOL) == protocol_key({**PROTOCOL, "commit": "9f", "versions": {"torch": "3"}})
    assert protocol_key(PROTOCOL) == protocol_key(json.loads(json.dumps(PROTOCOL)))
    assert protocol_key(PROTOCOL) != protocol_key({**PROTOCOL, "seeds": (0, 1)})
    assert protocol_key(PROTOCOL) != protocol_key({**PROTOCOL, "files": {"a/test.parquet": "cd"}})


def test_a_score_is_found_by_weights_task_and_protocol_and_the_newest_counts(tmp_path):
    file = ScoreFile(tmp_path / "deep" / "scores.jsonl")
    assert list(file) == [] and file.find("f0", "banking77", made().protocol_key) == []
    for score in (made([0.1]), made([0.2]), made([0.9], metric="macro_f1"), made([0.3], model_fingerprint="f1")):
        file.append(score)
    found = file.find("f0", "banking77", made().protocol_key)
    assert {score.metric: score.value for score in found} == {"accuracy": 0.2, "macro_f1": 0.9}
    assert file.find("f0", "banking77", made(protocol={"seeds": (7,)}).protocol_key) == []
    assert file.find("f0", "sst2", made().protocol_key) == []
    assert file.find("f0", "banking77", made().protocol_key, "classify") == []


def test_a_line_cut_off_by_a_kill_is_dropped_and_said(tmp_path, caplog):
    file = ScoreFile(tmp_path / "scores.jsonl")
    file.append(made([0.1]))
    with file.path.open("ab") as raw:
        raw.write(made([0.2]).to_line().encode()[:-40])
    assert [score.value for score in file] == [0.1] and "half a line" in caplog.text
    caplog.clear()
    file.append(made([0.3]))
    assert "it is removed" in caplog.text
    assert [score.value for score in file] == [0.1, 0.3] and file.path.read_bytes().count(b"\n") == 2


def test_a_damaged_line_in_the_middle_is_refused_by_its_number(tmp_path):
    file = ScoreFile(tmp_path / "scores.jsonl")
    file.path.write_text(f"{made().to_line()}\nnonsense\n{made().to_line()}\n")
    with pytest.raises(DataError, match="line 2 is no score"):
        list(file)


def write_many(path, number):
    for round_ in range(40):
        ScoreFile(path).append(made([float(round_)], task=f"task {number}", details={"long": "x" * 20_000}))


def test_processes_do_not_tear_each_others_lines(tmp_path):
    path = tmp_path / "scores.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = list(ScoreFile(path))
    assert len(found) == 120
    for number in range(3):
        assert [s.value for s in found if s.task == f"task {number}"] == list(range(40))


def test_a_file_that_cannot_be_written_is_a_refusal(tmp_path):
    (tmp_path / "scores.jsonl").mkdir()
    with pytest.raises(ConfigError, match="--out"):
        ScoreFile(tmp_path / "scores.jsonl").append(made())


def test_a_fingerprint_tells_weights_and_tokenizers_apart(tiny_model, tiny_config, tiny_tokenizer):
    same = MaskedLM(tiny_config, tiny_tokenizer).draw(0)
    assert model_fingerprint(same, tiny_tokenizer) == model_fingerprint(tiny_model, tiny_tokenizer)
    assert model_fingerprint(same, None) != model_fingerprint(same, tiny_tokenizer)
    with torch.no_grad():
        same.decoder.bias[3] += 1e-7
    assert model_fingerprint(same, tiny_tokenizer) != model_fingerprint(tiny_model, tiny_tokenizer)


def test_a_files_hash_is_of_what_is_in_it_now(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert sha256_of(path).startswith("ba7816bf8f01cfea")
    path.write_bytes(b"abcd")
    assert not sha256_of(path).startswith("ba7816bf8f01cfea")
    with pytest.raises(DataError, match="cannot be read"):
        sha256_of(tmp_path / "g")
