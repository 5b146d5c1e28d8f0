"""The report of a run: all that was recorded, nothing that was not, and one page that needs nothing else."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET

import fake_run
import numpy as np
import pytest
import tiny_run
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from modernbert.__main__ import app
from modernbert.errors import CheckpointError, ConfigError
from modernbert.evaluate import chart, curves, run_rows
from modernbert.evaluate.run_page import render, write_page
from modernbert.evaluate.run_report import report, sentences

STEPS = 400
VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, one that was broken off and is behind, and one as it was recorded before this issue."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "whole": fake_run.write_fake_run(folder / "whole", STEPS),
        "half": fake_run.write_fake_run(folder / "half", STEPS, stop_at=0.5, better=-0.5, data_wait=0.3, seed=1),
        "older": fake_run.write_fake_run(folder / "older", STEPS, older=True),
    }


@pytest.fixture(scope="module")
def whole_text(runs):
    return "".join(parsed(render(report(runs["whole"]))).text)


@pytest.fixture(scope="module")
def curve_file(runs):
    path = runs["whole"].parent / "whole-curve.json"
    curves.save_curve(runs["whole"], path, "made up")
    return path


def rows_of(losses_by_phase, tokens_per_step=100):
    """Rows as `read_run` gives them, of phases with these losses."""
    losses = [loss for losses in losses_by_phase for loss in losses]
    count = len(losses)
    steps = {name: np.full(count, np.nan) for name in run_rows.COLUMNS}
    steps |= {
        "loss": np.array(losses, dtype=float), "tokens": np.arange(1, count + 1) * float(tokens_per_step),
        "targets": np.ones(count), "step": np.arange(1.0, count + 1),
    }  # fmt: skip
    phase = np.repeat(np.arange(len(losses_by_phase)), [len(losses) for losses in losses_by_phase])
    names = [f"phase{index}" for index in range(len(losses_by_phase))]
    return run_rows.RunRows("made", {"recipe": {}}, steps, phase, names, [], [], [])


class Tags(html.parser.HTMLParser):
    """Raises where a tag is closed that was not open; keeps attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.names = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


# --- the page


@pytest.mark.parametrize("name", ["whole", "half", "older"])
def test_a_page_needs_no_network_and_no_other_file(runs, name):
    page = render(report(runs[name], [runs["whole"]]))
    tags = parsed(page)
    assert not [a for a in tags.attributes if a[1] in ("src", "href", "srcset", "action", "data")]
    assert "http" not in page and "@import" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}  # clip paths of the page itself


def test_an_id_is_given_once_and_each_picture_says_what_it_shows(runs):
    tags = parsed(render(report(runs["whole"])))
    ids = [value for _, name, value in tags.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    pictures = [value for tag, name, value in tags.attributes if tag == "svg" and name == "role"]
    labels = [value for tag, name, value in tags.attributes if tag == "svg" and name == "aria-label"]
    assert len(pictures) == len(labels) and all(len(label) > 20 for label in labels)


def test_what_a_run_recorded_is_text_in_its_page_and_never_markup(runs):
    page = render(report(runs["whole"]))
    assert "<script>alert(1)" not in page and "<b>prose" not in page
    text = "".join(parsed(page).text)
    assert "<script>alert(1)</script>" in text and "books & <b>prose</b>" in text


@pytest.mark.parametrize(
    "expected",
    [
        *("finished", "stable", "extend", "anneal", "Learning rate", "Batch", "Masking rate", "Gradient norm", "MFU"),
        *("Data wait", "Filled", "Held-out loss by source", "by position in the context", "stable-00000320", "deleted"),
        *("loss 9.12, 14 deviations", "SIGTERM", "Imagined CPU 9000", "mask_rate = 0.3", "optim.eps=1e-06 (now 1e-08)"),
        "120 GFLOP/s",
    ],
)
def test_a_page_says(whole_text, expected):
    assert expected in whole_text


def test_what_an_older_run_did_not_record_is_called_so(runs):
    text = "".join(parsed(render(report(runs["older"]))).text)
    assert "Not recorded in this run: masking rate." in text
    assert "Loss by source: not recorded." in text and "Loss by position in the context: not recorded." in text
    assert "stable-00000320" in text and "anneal" in text


def test_a_run_that_has_not_made_a_step_has_a_page(runs, tmp_path):
    about = json.loads((runs["half"] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(about | {"sessions": None}))
    found = report(tmp_path, [tmp_path])
    assert "No step has been recorded yet." in render(found)
    assert found["headline"]["tokens"] == 0 and found["headline"]["seconds_left"] is None


def test_a_page_of_very_many_steps_is_as_light(runs, tmp_path):
    long = fake_run.write_fake_run(tmp_path / "long", 10_000)
    page, short = render(report(long)), render(report(runs["whole"]))
    assert len(page) < 1.5 * len(short) < 400_000


# --- what it says


def test_the_headline_of_an_unfinished_run_says_what_is_left(runs):
    head = report(runs["half"])["headline"]
    assert head["status"] == "unfinished" and head["step"] == STEPS // 2
    left = (head["total_tokens"] - head["tokens"]) / head["tokens_per_second"]
    assert head["seconds_left"] == pytest.approx(left) and left > 0
    assert report(runs["whole"])["headline"]["seconds_left"] is None


def test_a_run_that_waits_for_data_is_told_what_to_do(runs):
    (warning,) = [remark["text"] for remark in report(runs["half"])["remarks"] if remark["kind"] == "warning"]
    assert "data was the bottleneck: 30%" in warning and "data.workers (now 1)" in warning
    assert not [remark for remark in report(runs["whole"])["remarks"] if remark["kind"] == "warning"]


def test_a_report_is_json_that_every_reader_takes(runs):
    found = report(runs["whole"], [runs["half"]])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_skipped_step_has_no_loss_and_its_tokens_count(runs):
    rows = run_rows.read_run(runs["whole"])
    skipped = round(0.7 * STEPS) - 1
    assert math.isnan(rows.steps["loss"][skipped]) and rows.steps["tokens"][skipped] > rows.steps["tokens"][skipped - 1]
    assert len(rows.phase) == STEPS
    assert all(loss is not None for loss in report(runs["whole"])["curves"]["smoothed_loss"])


def test_a_checkpoint_stands_with_its_evaluation_and_whether_it_is_there(runs):
    found = {checkpoint["name"]: checkpoint for checkpoint in report(runs["whole"])["checkpoints"]}
    looks = {row["step"]: row["loss"] for row in run_rows.read_run(runs["whole"]).evaluations}
    assert all(checkpoint["heldout_loss"] == looks[checkpoint["step"]] for checkpoint in found.values())
    assert not found["stable-00000120"]["there"] and found["anneal-00000400"]["there"]
    older = {checkpoint["name"]: checkpoint for checkpoint in report(runs["older"])["checkpoints"]}
    assert older["anneal-00000400"]["stall_seconds"] is None
    assert older["anneal-00000400"]["tokens"] == found["anneal-00000400"]["tokens"]


def test_a_line_cut_off_while_being_written_is_left_out(runs, tmp_path):
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((runs["whole"] / name).read_bytes())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4')
    assert len(run_rows.read_run(tmp_path).phase) == STEPS


@pytest.mark.parametrize("content", [None, "{", "[]", '{"status": "finished"}'])
def test_a_folder_that_holds_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        report(tmp_path)


@pytest.fixture
def copied(runs, tmp_path):
    """A run's two files, to be spoiled."""
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((runs["whole"] / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "line",
    ["[]", "5", "null", '{"kind": "event", "event": "spike", "step": 1}', '{"kind": "train", "step": 1, "tokens": "many"}',
     '{"kind": "eval", "step": 1, "tokens": 1}', '{"kind": "save", "step": 1, "checkpoint": "x"}',
     '{"kind": "eval", "step": 1, "tokens": 1, "loss": 2, "by_source": {"a": 5}}',
     '{"kind": "eval", "step": 1, "tokens": 1, "loss": 2, "by_position": [{"from": 1}]}',
     '{"kind": "train", "step": 1, "tokens": 1, "phase": 3}'],
)  # fmt: skip
def test_a_line_that_is_no_row_is_refused_by_its_number(copied, line):
    with (copied / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    count = len((copied / "metrics.jsonl").read_text().splitlines())
    with pytest.raises(CheckpointError, match=f"its line {count} is no row of a run") as refused:
        render(report(copied))
    assert "\n" not in str(refused.value)


def test_a_byte_that_is_no_text_and_a_loss_that_is_no_number_do_not_stop_a_report(copied):
    with (copied / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "event", "step": 9, "tokens": 9, "event": "spike", "text": "\xff", "loss": NaN}\n')
        file.write(b'{"kind": "eval", "step": 999, "phase": "anneal", "tokens": 99999999, "loss": NaN}\n')
    found = report(copied)
    json.dumps(found, allow_nan=False)
    assert found["events"][-1]["loss"] is None and found["headline"]["heldout_loss"] is None
    assert render(found)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"recipe": {}}, "its recipe has no model and loop"),
        ({"recipe": {"model": {}, "loop": {}, "phases": [{}]}}, "phases are no list of named ones"),
        ({"recipe": {"model": {}, "loop": {}, "phases": [{"name": "a", "lr": "x"}]}}, "is no number"),
        ({"recipe": {"model": {}, "loop": {}, "phases": [{"name": "a", "tokens": "x"}]}}, "tokens are no number"),
        ({"sessions": [None]}, "its sessions"),
        ({"environment": 5}, "its environment"),
    ],
)
def test_a_run_json_of_which_nothing_can_be_made_is_refused(copied, changes, part):
    about = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(about | changes))
    with pytest.raises(CheckpointError, match=part):
        report(copied)


@pytest.mark.parametrize("lost", ["recipe", "total_tokens", "rows"])
def test_a_reference_that_lacks_something_is_refused(runs, curve_file, tmp_path, lost):
    values = json.loads(curve_file.read_text())
    del values[lost]
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="make one with --save-reference"):
        report(runs["whole"], reference=str(tmp_path / "c.json"))


def test_several_devices_are_said_to_be_several():
    assert curves.hardware({"device": "H100", "device_count": 8, "dtype": "bfloat16"}) == "8 × H100, bfloat16"
    assert curves.devices({"device": "H100", "device_count": 1}) == "H100" and curves.devices({}) is None


# --- bins


@given(
    phases=st.lists(st.lists(st.floats(0, 12), min_size=1, max_size=400), min_size=1, max_size=4),
    num_bins=st.integers(2, 60),
)
def test_each_step_is_in_one_bin_of_its_phase(phases, num_bins):
    rows = rows_of(phases)
    bins = run_rows.bin_steps(rows, num_bins=num_bins, min_bins=5)
    ends = np.append(bins.starts[1:], len(rows.phase))
    assert bins.starts[0] == 0 and (bins.starts < ends).all()
    assert all(len(set(rows.phase[a:b])) == 1 for a, b in zip(bins.starts, ends, strict=True))
    assert len(bins.starts) <= num_bins + 6 * len(phases)
    found = run_rows.binned(rows.steps["loss"], bins)
    for index, (a, b) in enumerate(zip(bins.starts, ends, strict=True)):
        inside = rows.steps["loss"][a:b]
        expected = [inside.min(), inside.mean(), inside.max()]
        assert [found[key][index] for key in ("low", "mean", "high")] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_loss_is_not_averaged_across_phases():
    rows = rows_of([[4.0] * 500, [2.0] * 10])
    bins = run_rows.bin_steps(rows)
    found = run_rows.smoothed(rows, bins.tokens, bins.phase)
    assert found[bins.phase == 0] == pytest.approx(4.0) and found[bins.phase == 1] == pytest.approx(2.0)


def test_a_short_phase_is_drawn_in_detail():
    bins = run_rows.bin_steps(rows_of([[4.0] * 50_000, [2.0] * 1000]))
    assert (bins.phase == 1).sum() == run_rows.MIN_BINS


# --- reference curves


def test_a_run_is_on_track_beside_its_own_curve(runs, curve_file):
    found = report(runs["whole"], reference=str(curve_file))["reference"]
    assert (found["verdict"], found["measure"], found["difference"]) == (
        "on track",
        "held-out",
        pytest.approx(0, abs=1e-5),
    )
    assert "within 3% counts as on track" in found["sentence"]


@pytest.mark.parametrize(
    ("better", "same_data", "verdict"),
    [
        (-0.5, True, "behind"),
        (-0.5, False, "on track"),
        (0.0, True, "on track"),
        (0.5, True, "ahead"),
        (-2.0, False, "behind"),
    ],
)
def test_the_verdict_beside_a_reference(tmp_path, curve_file, better, same_data, verdict):
    run = fake_run.write_fake_run(tmp_path / "run", STEPS, stop_at=0.7, better=better, seed=3)
    if not same_data:
        about = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(about | {"data": {"other": "f"}}))
    found = report(run, reference=str(curve_file))
    assert found["reference"]["verdict"] == verdict
    assert found["reference"]["sentence"].startswith(verdict.capitalize())
    assert found["reference"]["sentence"] in "".join(parsed(render(found)).text)


def test_before_the_first_evaluation_training_losses_are_compared(tmp_path, curve_file):
    run = fake_run.write_fake_run(tmp_path / "run", STEPS, stop_at=0.05)
    assert report(run, reference=str(curve_file))["reference"]["measure"] == "training"


def test_settings_that_differ_from_the_references_are_named(tmp_path, runs, curve_file):
    run = fake_run.write_fake_run(tmp_path / "run", STEPS)
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"lr": 0.0008', '"lr": 0.0004'))
    sentence = report(run, reference=str(curve_file))["reference"]["sentence"]
    assert "stable.lr is 0.0004 and the reference's 0.0008" in sentence


def test_a_reference_with_other_phases_gives_no_verdict(runs, curve_file, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(re.sub('"(stable|extend|anneal)"', '"elsewhere"', curve_file.read_text()))
    assert report(runs["whole"], reference=str(other))["reference"]["verdict"] == "unknown"


def test_a_curve_is_small_and_keeps_every_evaluation(runs, curve_file):
    curve = curves.load_curve(str(curve_file))
    assert len(curve["rows"]) <= curves.MAX_POINTS and curve["recipe"] == "whole-curve" and curve["note"] == "made up"
    evaluations = run_rows.read_run(runs["whole"]).evaluations
    kept = [row["eval_loss"] for row in curve["rows"] if "eval_loss" in row]
    assert kept == pytest.approx([row["loss"] for row in evaluations], rel=1e-5)


def test_the_fitting_reference_is_of_the_same_preset_and_size(runs, curve_file, monkeypatch):
    curve = curves.load_curve(str(curve_file))
    offered = {
        "far": curve | {"total_tokens": 10**12}, "near": curve, "base": curve | {"preset": "base"},
        "larger": curve | {"parameters": 2_000_000},
    }  # fmt: skip
    monkeypatch.setattr(curves, "curve_names", lambda: list(offered))
    monkeypatch.setattr(curves, "load_curve", offered.get)
    rows = run_rows.read_run(runs["whole"])
    assert curves.fitting_curve(rows, 1_000_000) is curve
    rows.about["recipe"]["model"]["preset"] = "huge"
    assert curves.fitting_curve(rows, 1_000_000) is None


def test_every_reference_curve_of_the_package_can_be_read():
    for name in curves.curve_names():
        curve = curves.load_curve(name)
        assert curve["recipe"] == name and len(curve["rows"]) <= curves.MAX_POINTS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["half", "--save-reference", "c.json"], "half is not finished"),
        (["whole", "--save-reference", "c.txt"], "a reference curve is a .json file"),
        (["whole", "--reference", "nope"], "no such reference curve"),
        (["whole", "--reference", "nope.json"], "cannot be read as a reference curve"),
        (["whole", "--out", "nowhere/page.html"], "choose another --out"),
    ],
)
def test_a_refusal_is_one_line(runs, own_place, arguments, says):
    name, *rest = arguments
    result = CliRunner().invoke(app, ["report", str(runs[name]), *rest])
    assert isinstance(result.exception, ConfigError) and says in str(result.exception)
    assert "\n" not in str(result.exception)


# --- the command, on a run as it is


def test_the_report_of_a_real_run_of_three_phases(tmp_path, own_place):
    run = tiny_run.tiny_recipe(
        tiny_run.build_tiny_shards(tmp_path), steps=24, loop={"checkpoint_tokens": "25%", "eval_tokens": "25%"},
        phases=[
            {"tokens": "50%", "tokens_per_step": 512, "tokens_per_step_start": 256, "batch_warmup_tokens": "20%"},
            {"name": "extend", "tokens": "25%", "sequence_length": 64},
            {"name": "anneal", "tokens": "25%", "sequence_length": 64, "mask_rate_end": 0.1},
        ],
    )  # fmt: skip
    with pytest.raises(tiny_run.Interrupted):
        tiny_run.train(run, tmp_path / "run", tiny_run.interrupt_at(8))
    tiny_run.train(run, tmp_path / "run")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--out", "page.html", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["headline"]["status"] == "finished" and len(found["sessions"]) == 2
    assert [phase["name"] for phase in found["phases"] if phase["done"]] == ["stable", "extend", "anneal"]
    assert all(
        found["curves"][name] for name in ("lr", "mask_rate", "step_tokens", "gradient_norm", "mfu", "data_wait")
    )
    assert all(row["by_source"] and row["by_position"] for row in found["evaluations"])
    assert all(checkpoint["write_seconds"] is not None for checkpoint in found["checkpoints"])
    assert 50_000 < found["headline"]["parameters"] < 1_000_000
    parsed((tmp_path / "page.html").read_text())

    saved = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--save-reference", "mine.json", "--note", "hm"])
    assert saved.exit_code == 0, saved.output
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--reference", "mine.json"])
    assert shown.exit_code == 0 and "On track" in shown.stdout and "written: report.html" in shown.stdout


def test_other_runs_and_the_reference_are_overlaid_by_name(runs, curve_file, tmp_path):
    found = report(runs["half"], [runs["whole"], runs["older"]], str(curve_file))
    page = write_page(found, tmp_path / "page.html").read_text()
    for name in ("whole-curve, held-out", "whole, training", "older, held-out"):
        assert f'data-name="{name}"' in page
    assert any("Behind" in line for line in sentences(found))


# --- charts


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6), about=st.integers(2, 8))
def test_ticks_are_inside_and_evenly_spaced(low, span, about):
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = chart.nice_ticks(low, high, about)
    step = 1e-9 * max(abs(low), abs(high), high - low)
    assert 1 <= len(ticks) <= 2 * about + 2
    assert all(low - 1e-6 * span - step <= tick <= high + 1e-6 * span + step for tick in ticks)


def test_a_missing_value_interrupts_a_line_and_a_lone_point_is_a_dot():
    series = chart.Series(name="a & b", x=[0, 1, 2, 3, 4], y=[1.0, 2.0, None, 3.0, None], low=[1.0, 2.0, None, 3.0, None],
                          high=[2.0, 3.0, None, 4.0, None])  # fmt: skip
    svg = chart.Chart(title="t", description="d", series=[series], x_label="x").svg("c")
    root = ET.fromstring(svg)  # also says that it is well formed
    line = next(path for path in root.iter("path") if path.get("data-name") == "a & b")
    assert line.get("d").count("M") == 2 and line.get("d").count("L") == 1
    assert len(list(root.iter("circle"))) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0008, "0.0008"), (5e-5, "5e-5"), (985_000, "985 k"), (1.7e12, "1.7 T"), (20e6, "20 M"), (0.3, "0.3")],
)
def test_numbers_on_axes_are_short(value, text):
    assert chart.quantity(value) == text
