"""The probe reads out what vectors hold, chooses nothing by test texts, and is not taken twice."""

import json
import random
import sys

import numpy as np
import pytest

from modernbert.errors import ConfigError, DataError, UnsupportedError
from modernbert.evaluate.probe import ProbeSettings, evaluate_probe, probe_now
from modernbert.evaluate.score import ScoreFile

pytest.importorskip("sklearn")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

SMALL = ProbeSettings(pool=120, train=80, validation=30, test=60, max_length=32, grid=(0.01, 1.0), seeds=(0, 1))
SIDES = {"water": ["river", "mountain", "stone", "forest"], "town": ["house", "letter", "child", "reads"]}


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def texts_of(labels, draw):
    return [" ".join(draw.choices(SIDES[label] + ["the", "of", "and"], k=9)) for label in labels]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for split, count in (("train", 200), ("test", 90), ("validation", 20)):
        labels = [draw.choice(["water", "town"]) for _ in range(count)]
        write(folder / f"banking77/{split}.parquet", text=texts_of(labels, draw), label=labels)
        noise = [draw.choice(["water", "town"]) for _ in range(count)]
        write(folder / f"scicite/{split}.parquet", text=texts_of(labels, draw), label=noise)
    likeness = [0.0, 1.5, 2.0, 4.5, 5.0, 3.0]
    first = texts_of(["water"] * 6, draw)
    second = [a if like > 3 else b for a, b, like in zip(first, texts_of(["town"] * 6, draw), likeness, strict=True)]
    write(folder / "glue/stsb/test.parquet", sentence1=first, sentence2=second, label=likeness)
    return folder


@pytest.fixture(scope="module")
def scores(tiny_model, data):
    return {score.task: score for score in evaluate_probe(tiny_model, data, name="tiny", settings=SMALL)}


def test_what_the_words_say_is_read_out_and_what_they_do_not_is_not(scores):
    assert scores["banking77"].value > 0.9 > 0.75 > scores["scicite"].value
    assert scores["banking77"].details["majority"] < 0.7
    assert scores["stsb"].metric == "pearson" and scores["stsb"].value > 0.7


def test_each_seed_is_a_score_and_the_protocol_says_how_it_was_got(scores):
    score = scores["banking77"]
    assert (score.n == 2 and score.sd is not None and score.low < score.value < score.high) or score.sd == 0
    assert score.protocol["seeds"] == (0, 1) and score.protocol["grid"] == (0.01, 1.0)
    assert set(score.protocol["files"]) == {"banking77/train.parquet", "banking77/test.parquet"}
    assert {"commit", "versions"} <= score.protocol.keys()
    assert score.details["examples"] == {"train": 80, "validation": 24, "pool": 120, "test": 60}
    assert set(score.details["regularisation"]) <= {0.01, 1.0}
    json.loads(score.to_line())


def test_the_same_twice_is_the_same(tiny_model, data, scores):
    again = evaluate_probe(tiny_model, data, name="tiny", settings=SMALL, tasks=("scicite",))
    assert [score.values for score in again] == [scores["scicite"].values]


def test_what_is_measured_is_not_measured_again_and_a_new_protocol_is(tiny_model, data, tmp_path, monkeypatch):
    file = ScoreFile(tmp_path / "scores.jsonl")
    arguments = {"name": "tiny", "tasks": ("banking77",), "scores": file}
    (first,) = evaluate_probe(tiny_model, data, settings=SMALL, **arguments)
    calls = []
    import modernbert.evaluate.probe as probe

    true = probe._measure
    monkeypatch.setattr(probe, "_measure", lambda *a: calls.append(a) or true(*a))
    (second,) = evaluate_probe(tiny_model, data, settings=SMALL, **arguments)
    assert not calls and second.to_line() == first.to_line()
    other = ProbeSettings(**{**{name: getattr(SMALL, name) for name in SMALL.__slots__}, "seeds": (5,)})
    (third,) = evaluate_probe(tiny_model, data, settings=other, **arguments)
    assert len(calls) == 1 and third.protocol_key != first.protocol_key and len(list(file)) == 2


def test_the_choice_of_regularisation_never_sees_test_labels(tiny_model, data, tmp_path):
    """With test labels all wrong, the same regularisation is chosen and the score is what is left of 1."""
    for name in ("train", "validation", "test"):
        table = pq.read_table(data / f"banking77/{name}.parquet").to_pydict()
        if name == "test":
            table["label"] = ["town" if label == "water" else "water" for label in table["label"]]
        write(tmp_path / f"banking77/{name}.parquet", **table)
    (true,) = evaluate_probe(tiny_model, data, settings=SMALL, tasks=("banking77",))
    (turned,) = evaluate_probe(tiny_model, tmp_path, settings=SMALL, tasks=("banking77",))
    assert turned.details["regularisation"] == true.details["regularisation"]
    np.testing.assert_allclose(np.add(turned.values, true.values), 1.0)


def test_a_quick_look_gives_a_figure_a_task_and_leaves_the_mode(tiny_model, data):
    found = probe_now(tiny_model, data, ("banking77", "stsb"), SMALL)
    assert found.keys() == {"banking77", "stsb"} and found["banking77"] > 0.9
    assert not tiny_model.training


def test_without_data_or_scikit_learn_it_is_refused(tiny_model, data, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="--data"):
        list(evaluate_probe(tiny_model, tmp_path))
    with pytest.raises(ConfigError, match="grid"):
        ProbeSettings(grid=())
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UnsupportedError, match=r"modernbert\[evaluate\]"):
        probe_now(tiny_model, data)
