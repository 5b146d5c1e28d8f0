"""`benchmarks/gpu.py` end to end in miniature, since there is no GPU to try it on."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modernbert.runtime import Runtime

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
SECTIONS = ["environment", "parity", "bench", "memory", "training", "attention"]


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "path", [*sys.path])  # it adds the checkout
    return importlib.import_module("gpu")


@pytest.fixture
def session(gpu, tmp_path):
    return gpu.Session(tmp_path, 100.0, True, Runtime.detect(device="cpu", num_threads=1))


def test_all_of_it_runs_in_miniature(tmp_path):
    done = run("--device", "cpu", "--quick", "--out", tmp_path / "a" / "gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "a" / "gpu" / "gpu.json").read_text())
    assert found["skipped"] == [] and found["broken"] == {} and found["quick"]
    assert found["environment"]["versions"]["torch"] == torch.__version__
    assert {(row["backend"], row["dtype"]) for row in found["parity"]["attention"]} == {
        *((backend, dtype) for backend in ("reference", "blocked") for dtype in ("float32", "bfloat16", "float16")),
        ("onednn", "float32"),
    }
    assert [row["dtype"] for row in found["parity"]["models"]] == ["bfloat16", "float16", "float32"]
    assert [entry["load"] for entry in found["bench"]["loads"]][:3] == ["fixed-512", "mixed", "8192"]
    assert len(found["bench"]["loads"]) == 8 and len(found["bench"]["memory"]["competitors"]) == 4
    assert [row["model"] for row in found["training"]] == ["tiny", "small", "base", "large"]
    assert {row["backend"] for row in found["attention"]} == {"blocked", "onednn"} and found["flash attention 3"]
    said = (tmp_path / "a" / "gpu" / "gpu.md").read_text()
    assert said in done.stdout and said.count("missed") + said.count("reached") == 4
    assert all(f"**{title}" in said for title in ("Headlines", "Training steps", "Parity", "Peak memory", "Attention"))


def test_without_time_each_piece_is_named_as_not_done(tmp_path):
    done = run("--device", "cpu", "--quick", "--minutes", "0", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = json.loads((tmp_path / "gpu.json").read_text())["skipped"]
    assert {line.partition(":")[0] for line in skipped} == set(SECTIONS[1:])
    assert any(line.startswith("bench: mixed,") for line in skipped)
    assert "not done: training: large" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("arguments", [[], ["--device", "cpu"], ["--device", "cuda:7", "--quick"], ["--device", "gpu"]])
def test_where_there_is_no_gpu_it_says_so_in_a_line(arguments, tmp_path):
    done = run("--out", tmp_path / "out", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("gpu.py: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_section_that_breaks_costs_no_other(gpu, session, capsys):
    def broken(_):
        raise RuntimeError("CUDA error:\nan illegal memory access")

    session.run("parity", broken)
    session.run("bench", lambda session: session.found.update(attention=[]))
    found = json.loads((session.out / "gpu.json").read_text())
    assert found["broken"] == {"parity": "RuntimeError: CUDA error: an illegal memory access"}
    assert found["attention"] == [] and not gpu.passed(session.found)
    assert "broken: parity" in (session.out / "gpu.md").read_text() and "Traceback" in capsys.readouterr().err


def test_a_section_leaves_time_for_those_behind_it(gpu, session, monkeypatch):
    monkeypatch.setattr(gpu.time, "monotonic", lambda: session.began_at + 50.0)
    allowed = {}
    for session.section in SECTIONS:
        allowed[session.section] = session.has_time("x")
    assert allowed == {"environment": True, "parity": False, "bench": True, "memory": True, "training": True,
                       "attention": True}  # fmt: skip
    assert session.found["skipped"] == ["parity: x, as 30 s were over"]


def test_findings_are_on_disk_as_soon_as_they_are_made(gpu, session, monkeypatch):
    def entries(*_):
        yield {"load": "fixed-512"}
        raise RuntimeError("the second load broke")

    monkeypatch.setattr(gpu, "measure_loads", entries)
    monkeypatch.setattr(gpu, "sentence", str)
    monkeypatch.setattr(gpu, "markdown", lambda found: "")
    session.run("bench", gpu.race)
    found = json.loads((session.out / "gpu.json").read_text())
    assert [entry["load"] for entry in found["bench"]["loads"]] == ["fixed-512"] and "bench" in found["broken"]


def test_the_four_headlines_are_judged(gpu):
    tables = importlib.import_module("gpu_tables")

    def side(load, **ratios):
        return {"load": load, "competitors": [{"name": n, "ratio": r} for n, r in {"modernbert": 1, **ratios}.items()]}

    loads = [
        side("fixed-512", deberta=2.0, bert=1.1),
        side("mixed", deberta=3.9),
        side("8192", bert=3.5, transformers=5),
    ]
    memory = side("memory", deberta=6.0)
    rows = tables.headlines({"bench": {"loads": loads, "memory": memory}})
    assert [(row["what"], row["ratio"], row["reached"]) for row in rows] == [
        ("512 tokens", 2.0, True), ("mixed lengths", 3.9, False), ("8,192 tokens", 3.5, True), ("peak memory", 6.0, True),
    ]  # fmt: skip
    assert rows[0]["others"] == {"bert": 1.1} and rows[2]["others"] == {"transformers": 5}
    assert tables.headlines({"bench": {"loads": loads[:1], "memory": None}}) == rows[:1]
    assert tables.headlines({}) == []


def test_a_failed_comparison_fails_the_script(gpu):
    passing, failing = ({"error": 0.1, "sdpa": 0.1, "passed": passed} for passed in (True, False))

    def found(**sides):
        row = {"backend": "varlen", "dtype": "bfloat16", **sides}
        return {"broken": {}, "parity": {"attention": [row], "models": []}}

    assert gpu.passed(found(forward=passing, backward=passing))
    assert gpu.passed(found(skipped="does not fit"))
    assert not gpu.passed(found(forward=passing, backward=failing))
    assert not gpu.passed({**found(forward=passing), "parity with FA3": [{"forward": failing}]})
    (row,) = gpu.parity_table(found(forward=passing, backward=failing)["parity"]).rows
    assert row == ["varlen", "bfloat16", "1", "1.0e-01 (1.0e-01)", "1.0e-01 (1.0e-01)", "1 failed"]
    assert gpu.parity_table(found(skipped="does not fit")["parity"]).rows[0][-1] == "not done"


def test_flash_attention_that_is_not_there_says_why(gpu):
    assert "Error" in gpu.activate_flash("FA3") or "cannot" in gpu.activate_flash("FA3")
