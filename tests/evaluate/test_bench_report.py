"""`modernbert bench`: what is printed and written, where, and what is refused."""

import json
import sys
from unittest import mock

import pytest

from modernbert import PRESETS
from modernbert.__main__ import main
from modernbert.errors import ConfigError
from modernbert.evaluate import report
from modernbert.evaluate.loads import LOADS, make_load
from modernbert.evaluate.speed import Bench, about, figures
from modernbert.runtime import Runtime

pytestmark = pytest.mark.usefixtures("own_place")

SLOWER = {"transformers": 2.0, "bert": 0.5, "deberta": 12.0}


@pytest.fixture
def record():
    """Of made-up times: transformers takes twice as long as ours, BERT half."""
    found = about(Bench(), Runtime.detect(device="cpu", num_threads=1))
    for name in LOADS:
        load = make_load(name, vocab_size=500)
        ours = [0.1, 0.1, 0.3]
        times = {"modernbert": ours, **{peer: [by * s for s in ours] for peer, by in SLOWER.items()}}
        if load.longest == 8192:
            del times["deberta"]
        found["loads"].append(figures(load, times, PRESETS["base"], {"plain": 1e13, "numpy": 4e13}))
    sizes = {"modernbert": 100, "transformers": 300, "bert": 200, "deberta": 900}
    found["memory"] = {
        "rows": 32, "length": 512, "how": "made up",
        "competitors": [
            {"name": name, "above_bytes": size * 2**20, "ratio": size / 100, "weights_bytes": 0, "before_bytes": 0}
            for name, size in sizes.items()
        ],
    }  # fmt: skip
    return found


def cells(record, title):
    (table,) = [table for table in report.tables(record) if table.title.startswith(title)]
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def test_the_tables_say_what_was_measured(record):
    speed = cells(record, "Real tokens")
    assert list(speed) == list(LOADS)
    assert speed["fixed-512"]["tokens/s"] == "40,960"
    assert speed["mixed"]["transformers' ModernBERT takes"] == "2.00× (2.00–2.00)"
    assert speed["mixed"]["BERT-base takes"].startswith("0.50×")
    assert speed["8192"]["DeBERTa-v3-base takes"] == "–"
    share = record["loads"][2]["share"]
    assert speed["fixed-512"]["of best GEMM"] == f"{share:.0%}" and 0.1 < share < 0.5
    assert cells(record, "Latency")["ours"]["p50, ms"] == "100.0"
    assert cells(record, "Peak memory")["DeBERTa-v3-base"]["of ours"] == "9.00×"
    assert cells(record, "Best matrix")["mixed"] == {"plain": "10,000", "numpy": "40,000"}
    assert any("modernbert: its own times range over" in remark for remark in report.remarks(record))


def test_a_record_is_written_whole(record, tmp_path):
    report.prepare(tmp_path / "a" / "b")
    files = report.write(record, tmp_path / "a" / "b")
    assert [path.name for path in files] == ["bench.json", "bench.md", "bench.png"]
    assert json.loads(files[0].read_text()) == record
    said = files[1].read_text()
    assert record["commit"] in said and "| mixed |" in said and "2.00× (2.00–2.00)" in said
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_results_gather_one_line_for_each_record(record, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "results_folder", lambda: tmp_path.resolve())
    for date in ("2026-01-01", "2026-01-02"):
        report.write({**record, "date": date}, tmp_path)
    lines = (tmp_path / "bench.jsonl").read_text().splitlines()
    assert [json.loads(line)["date"] for line in lines] == ["2026-01-01", "2026-01-02"]
    assert not (tmp_path / "bench.json").exists() and "2026-01-02" in (tmp_path / "bench.md").read_text()
    with pytest.raises(ConfigError, match="not a measurement"):
        report.prepare(tmp_path, quick=True)


def test_results_are_the_checkouts():
    folder = report.results_folder()
    assert folder.name == "results" and (folder.parent / "pyproject.toml").exists()


def test_a_record_without_peers_memory_or_commit_is_drawn_too(record, tmp_path):
    for entry in record["loads"]:
        entry["competitors"] = entry["competitors"][:1]
    report.write({**record, "memory": None, "commit": None}, tmp_path)
    assert "no commit" in (tmp_path / "bench.md").read_text()


def test_bars_point_right_where_ours_is_faster(record, tmp_path):
    drawn = []
    with mock.patch("matplotlib.axes.Axes.barh", autospec=True, side_effect=lambda axes, y, width, *a, **k: drawn.append(
        (k["color"], round(width, 3), k["left"])
    )):  # fmt: skip
        report.draw(record, tmp_path / "x.png")
    of = {name: {width for color, width, _ in drawn if color == report._COLORS[name]} for name in SLOWER}
    assert of == {"transformers": {1.0, 2.0}, "bert": {-0.5, 1.0}, "deberta": {11.0, 8.0}}  # the latter is memory
    assert {left for *_, left in drawn} == {1}


# The command


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["modernbert", "bench", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


HERE = ("--quick", "--device", "cpu", "--threads", "1", "--rounds", "1")


def test_the_command_prints_a_table_and_writes_three_files(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, *HERE, "--no-memory", "--against", "bert", "--loads", "queries,latency") == 0
    said = capsys.readouterr()
    assert "BERT-base takes" in said.out and "p99, ms" in said.out
    assert "queries: 4 ×" in said.err and "quick: not a measurement" in said.err
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == ["bench.json", "bench.md", "bench.png"]


def test_the_command_prints_the_record_as_json(monkeypatch, capsys):
    assert run(monkeypatch, *HERE, "--against", "", "--loads", "fixed-512", "--out", "here", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in record["loads"][0]["competitors"]] == ["modernbert"]
    assert [c["name"] for c in record["memory"]["competitors"]] == ["modernbert"]
    assert record["command"].startswith("modernbert bench --quick")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--loads", "mixed,fixd"], "'fixd' is unknown; choose among latency, queries"),
        (["--against", "bart"], "'bart' is unknown; choose among transformers"),
        (["--model", "basis"], "'basis' is unknown"),
        (["--model", "./no/such/folder"], "no such folder"),
        (["--out", "file"], "choose another folder with --out"),
    ],
)
def test_the_command_refuses_in_one_line_before_any_work(arguments, says, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
