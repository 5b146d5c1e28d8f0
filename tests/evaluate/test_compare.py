"""Models stand side by side, in pairs where seeds agree, and what does not compare is said."""

import math

import pytest

from modernbert.console import Console
from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.compare import compare, markdown, plot, remarks, show, table
from modernbert.evaluate.score import Score, ScoreFile
from modernbert.evaluate.seeds import paired, unpaired

PROTOCOL = {"seeds": [0, 1, 2], "files": {"a": "1"}, "max_length": 256, "commit": "1a"}


def made(model, values, task="banking77", metric="accuracy", fingerprint=None, **protocol):
    return Score.of(
        values, suite="probe", task=task, metric=metric, model=model, model_fingerprint=fingerprint or model,
        protocol=PROTOCOL | protocol,
    )  # fmt: skip


A, B = made("a", (0.70, 0.72, 0.74)), made("b", (0.71, 0.74, 0.75))


def test_the_same_seeds_are_compared_in_pairs():
    (row,) = compare([[A], [B]]).rows
    assert row.best == "b" and row.differences["b"].is_paired
    assert row.differences["b"].summary == paired(B.values, A.values)
    assert row.differences.keys() == {"b"}


@pytest.mark.parametrize("change", [{"seeds": [3, 4, 5]}, {"files": {"a": "2"}}])
def test_other_seeds_or_files_are_compared_unpaired(change):
    other = made("b", (0.71, 0.74, 0.75), **change)
    (row,) = compare([[A, other]]).rows
    assert not row.differences["b"].is_paired
    assert row.differences["b"].summary == unpaired(other.values, A.values)
    assert row.remarks == (f"protocols differ in {next(iter(change))}",)


def test_another_commit_is_no_other_protocol():
    (row,) = compare([[A, made("b", (0.7, 0.7, 0.8), commit="2b")]]).rows
    assert row.remarks == ()


def test_a_difference_is_called_one_only_where_its_interval_leaves_out_0():
    clear, unclear = made("b", (0.80, 0.82, 0.84)), made("c", (0.66, 0.78, 0.74))
    (row,) = compare([[A, clear, unclear]]).rows
    assert row.differences["b"].is_one and not row.differences["c"].is_one


def test_less_is_better_where_it_is():
    rows = compare([[made("a", (2.0, 2.0, 2.0), metric="loss"), made("b", (3.0, 3.0, 3.0), metric="loss")]]).rows
    assert rows[0].best == "a"
    assert compare([[A, made("b", A.values)]]).rows[0].best is None  # equals


def test_two_models_of_one_name_are_told_apart_and_the_newest_score_counts():
    again = made("a", (0.1, 0.1, 0.1), fingerprint="ffffffff00")
    found = compare([[A, again], [made("a", (0.9, 0.9, 0.9))]])
    assert found.models == ("a (a)", "a (ffffff)")
    assert found.rows[0].scores["a (a)"].value == pytest.approx(0.9)


def test_the_table_says_what_is_missing_and_what_is_best():
    only, undefined = made("a", (0.5, 0.5, 0.6), task="sst2"), made("b", (math.nan,), task="stsb", metric="pearson")
    found = compare([[A, B, only, undefined]])
    columns, rows = table(found)
    assert columns == ["suite", "task", "metric", "a", "b"]
    assert rows[0][3] == "72.00 ± 2.00" and rows[0][4].startswith("73.33 ± 2.08 *\nΔ +1.33 [")
    assert rows[1][4] == "–" and rows[2][3:] == ["–", "not defined"]
    text = markdown(found)
    assert "| 72.00 ± 2.00 | **73.33 ± 2.08**<br>Δ +1.33 [" in text
    assert remarks(found)[0].startswith("Δ: less a, 95 % interval, paired by seed")


def test_rows_whose_protocols_differ_are_marked(capsys):
    found = compare([[A, made("b", (0.7, 0.7, 0.7), max_length=512)]])
    assert table(found)[1][0][1] == "banking77 †"
    show(found, Console())
    assert "† protocols differ in max_length" in capsys.readouterr().out


def test_a_picture_is_drawn_of_every_metric(tmp_path):
    scores = [
        A,
        B,
        made("a", (300.0,), metric="pseudo_perplexity"),
        made("b", (math.nan,), task="stsb", metric="pearson"),
    ]
    plot(compare([scores]), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="cannot be written"):
        plot(compare([scores]), tmp_path / "nowhere" / "c.png")


def test_files_are_read_and_what_is_none_is_refused(tmp_path):
    file = ScoreFile(tmp_path / "a.jsonl")
    for score in (A, B):
        file.append(score)
    (row,) = compare([file.path]).rows
    assert row.scores.keys() == {"a", "b"} and row.differences["b"].is_paired
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="holds no scores"):
        compare([tmp_path / "empty.jsonl"])
    with pytest.raises(DataError, match="no such file"):
        compare([tmp_path / "b.jsonl"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([])
