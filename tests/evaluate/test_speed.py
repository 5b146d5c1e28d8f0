"""The bench: loads are what they say, turns are taken, ratios are paired, and the record holds what it measured."""

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modernbert import PRESETS
from modernbert.errors import ConfigError
from modernbert.evaluate import speed
from modernbert.evaluate.gemm import NumpyProducts, Yardstick
from modernbert.evaluate.loads import LOADS, Load, longest_of, make_load
from modernbert.evaluate.machine import commit
from modernbert.evaluate.speed import Bench, bench, figures
from modernbert.evaluate.timing import interleave, noise, ratios
from modernbert.model.flops import forward_flops
from modernbert.runtime import Runtime

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runtime():
    return Runtime.detect(device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def record(runtime):
    """A quick bench of three loads, beside two peers."""
    loads = ("latency", "mixed", "8192")
    return bench(Bench(quick=True, rounds=4, loads=loads, against=("bert", "deberta"), memory=False), runtime)


def lengths(name, **settings):
    return [[len(row) for row in rows] for rows in make_load(name, vocab_size=500, **settings).batches]


# Loads


@pytest.mark.parametrize(
    ("name", "texts", "shortest", "longest", "batches"),
    [
        ("latency", 32, 8, 30, 32), ("queries", 32, 8, 30, 1), ("fixed-512", 8, 512, 512, 1), ("mixed", 32, 16, 512, 1),
        ("mixed-sorted", 32, 16, 512, 4), ("2048", 2, 2048, 2048, 1), ("8192", 1, 8192, 8192, 1),
        ("mixed-8192", 3, 256, 8192, 1),
    ],
)  # fmt: skip
def test_a_load_is_what_it_says(name, texts, shortest, longest, batches):
    found = lengths(name)
    flat = list(itertools.chain(*found))
    assert (len(flat), min(flat), max(flat), len(found)) == (texts, shortest, longest, batches)
    assert longest_of(name) == longest
    load = make_load(name, vocab_size=500)
    assert load == make_load(name, vocab_size=500)
    assert all(0 < token < 500 for rows in load.batches for row in rows for token in row)


def test_every_load_is_listed_above():
    cases = test_a_load_is_what_it_says.pytestmark[0].args[1]
    assert [case[0] for case in cases] == list(LOADS)


def test_mixed_lengths_are_the_normal_distribution():
    (mixed,) = lengths("mixed")
    assert statistics.mean(mixed) == pytest.approx(256, abs=3)
    assert sum(abs(length - 256) < 128 for length in mixed) / 32 == pytest.approx(0.683, abs=0.05)
    assert mixed != sorted(mixed)


def test_sorted_batches_hold_the_same_texts_in_order():
    (mixed,), batches = lengths("mixed"), lengths("mixed-sorted")
    assert [len(batch) for batch in batches] == [8] * 4
    assert list(itertools.chain(*batches)) == sorted(mixed)


def test_a_larger_scale_has_more_rows_and_single_queries_stay_as_many():
    assert lengths("fixed-512", scale=16) == [[512] * 128]
    assert [len(batch) for batch in lengths("mixed-sorted", scale=4)] == [32] * 4
    assert lengths("latency", scale=4) == lengths("latency")


def test_padding_is_counted():
    load = Load("x", "", ([[1] * 10, [1] * 5], [[1] * 4]))
    assert (load.num_tokens, load.num_padded_tokens) == (19, 24)


def test_a_round_of_single_queries_is_one_of_them():
    rows = ([[1] * 3], [[1] * 5])
    assert [Load("x", "", rows, one_by_one=True).lengths(round_) for round_ in range(3)] == [[3], [5], [3]]
    assert Load("x", "", rows).lengths(1) == [3, 5]


# Turns and ratios


class Clock:
    """Moves when a call says so."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def work(round_):
            self.log.append(f"{name}{round_}")
            self.now += seconds * (round_ + 1)

        return work


def test_turns_are_reversed_each_round_and_the_warm_up_is_not_timed():
    clock = Clock()
    calls = {"A": clock.call("A", 1), "B": clock.call("B", 10), "C": clock.call("C", 100)}
    between = lambda: clock.log.append("|")  # noqa: E731
    times = interleave(calls, seconds=0, rounds=3, warmups=2, between=between, clock=clock)
    assert " ".join(clock.log) == "A0 A1 B0 B1 C0 C1 A0 B0 C0 | C1 B1 A1 | A2 B2 C2 |"
    assert times == {"A": [1, 2, 3], "B": [10, 20, 30], "C": [100, 200, 300]}


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 3), (25, 7), (21, 6), (3, 3)])
def test_rounds_end_with_the_seconds_but_not_before_the_third(seconds, rounds):
    clock = Clock()

    def work(_):
        clock.now += 4

    assert interleave({"A": work}, seconds=seconds, clock=clock) == {"A": [4] * rounds}


def test_ratios_are_taken_within_a_round():
    ours, theirs = [1, 10, 2, 4], [2, 20, 4, 12]  # the second round fell into a slow minute
    found = ratios(theirs, ours)
    assert found["ratio"] == 2 and found["ratio_low"] == 2 and 2 < found["ratio_high"] < 3


def test_noise_compares_like_with_like():
    assert noise([1.0, 5.0] * 10) == pytest.approx(5)
    assert noise([1.0, 5.0] * 10, period=2) == pytest.approx(1)
    assert noise([1.0, 5.0], period=32) == 1


# Figures


def test_figures_follow_from_the_times():
    config = PRESETS["tiny"]
    load = Load("x", "two texts", ([[1] * 100, [1] * 50],))
    times = {"modernbert": [1.0, 2.0, 4.0], "bert": [3.0, 6.0, 12.0]}
    entry = figures(load, times, config, {"plain": 5e6, "numpy": 2e7})
    ours, bert = entry["competitors"]
    assert (ours["median_s"], ours["tokens_per_second"], ours["ratio"]) == (2, 75, 1)
    assert (bert["median_s"], bert["ratio"], bert["ratio_low"], bert["times_s"]) == (6, 3, 3, [3, 6, 12])
    assert entry["gemm_best"] == {"path": "numpy", "flops_per_second": 2e7}
    assert entry["share"] == pytest.approx(forward_flops(config, [100, 50]) / 2 / 2e7)
    assert entry["padding"] == pytest.approx(0.25)
    assert len(entry["remarks"]) == 2 and "range" in entry["remarks"][0] and "p50_ms" not in ours


def test_latency_is_that_of_single_queries():
    load = Load("latency", "", tuple([[1] * n] for n in (10, 20)), one_by_one=True)
    entry = figures(load, {"modernbert": [0.01, 0.02] * 50}, PRESETS["tiny"], {"plain": 1e9})
    (ours,) = entry["competitors"]
    assert ours["tokens_per_second"] == pytest.approx(1000) and entry["remarks"] == []
    assert ours["p50_ms"] == pytest.approx(15) and ours["p99_ms"] == pytest.approx(20)


# The yardstick


def test_the_yardstick_measures_the_models_own_products(runtime):
    config = PRESETS["tiny"].replace(hidden_size=64, num_attention_heads=1, intermediate_size=96)
    with NumpyProducts(1) as numpy:
        yardstick = Yardstick(config, 5000, runtime, numpy)
        yardstick.sample()
        yardstick.sample()
        assert numpy._process.poll() is None
    assert numpy._process.returncode == 0
    assert yardstick.shapes == [(2048, 64, 192), (2048, 64, 64), (2048, 64, 192), (2048, 96, 64)]
    assert {"plain", "onednn", "packed", "numpy"} == set(yardstick.seconds)
    assert all(len(seconds) == 6 for paths in yardstick.seconds.values() for seconds in paths)
    assert all(rate > 0 for rate in yardstick.rates().values())


def test_a_rate_is_all_operations_over_the_sum_of_medians(runtime):
    config = PRESETS["tiny"].replace(hidden_size=64, num_attention_heads=1, intermediate_size=96)
    yardstick = Yardstick(config, 10, runtime)
    yardstick.seconds = {"plain": [[1.0, 1.0, 9.0], [2.0], [3.0], [0.0, 4.0, 5.0]]}
    assert yardstick.rates() == {"plain": 2 * 10 * 64 * (192 + 64 + 192 + 96) / 10}


# The whole


def test_the_record_holds_what_was_measured(record, runtime):
    assert json.loads(json.dumps(record)) == record
    assert {"commit", "dirty", "date", "command", "hardware", "versions", "dtype", "model"} <= record.keys()
    assert record["hardware"]["threads"] == 1 and record["versions"]["torch"] == torch.__version__
    assert record["quick"] and record["memory"] is None
    names = {entry["load"]: [c["name"] for c in entry["competitors"]] for entry in record["loads"]}
    everyone = ["modernbert", "bert", "deberta"]
    assert names == {"latency": everyone, "mixed": everyone, "8192": everyone[:2]}  # no DeBERTa for 8,192
    for entry in record["loads"]:
        assert entry["rounds"] == 4 and all(len(c["times_s"]) == 4 for c in entry["competitors"])
        assert set(entry["gemm"]) >= {"plain", "numpy"} and entry["share"] > 0


def test_a_load_that_does_not_fit_is_halved_for_all(runtime, monkeypatch):
    tried = []

    def measure(load, competitors, *_):
        tried.append(len(load.batches[0]))
        if len(tried) < 3:
            raise torch.OutOfMemoryError
        return {"load": load.name}

    monkeypatch.setattr(speed, "measure", measure)
    settings = Bench(model="tiny", loads=("queries",), against=(), memory=False, scale=8)
    assert list(speed.measure_loads(settings, runtime)) == [{"load": "queries"}] and tried == [256, 128, 64]
    with pytest.raises(torch.OutOfMemoryError):
        tried.clear()
        list(speed.measure_loads(Bench(model="tiny", loads=("queries",), against=(), scale=2), runtime))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loads": ("mixd",)}, "mixd"), ({"loads": ("mixd",)}, "mixed-sorted"), ({"loads": ()}, "mixed-sorted"),
        ({"against": ("brt",)}, "transformers, bert, deberta, accelerated"), ({"rounds": 0}, "rounds=0"),
        ({"model": "bas"}, "tiny, mini, small, base"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_line(settings, says, runtime):
    with pytest.raises(ConfigError) as refused:
        bench(Bench(**settings), runtime)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_texts_longer_than_the_models_positions_are_refused(tiny_model, tmp_path, runtime):
    folder = tiny_model.save(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"128 positions; say --loads latency,queries$"):
        bench(Bench(model=str(folder), loads=("latency", "queries", "mixed")), runtime)


def test_a_checkpoint_can_be_measured(tiny_model, tmp_path, runtime):
    folder = tiny_model.save(tmp_path / "model")
    settings = Bench(model=str(folder), loads=("queries",), against=("accelerated",), rounds=1, memory=False)
    (entry,) = bench(settings, runtime)["loads"]
    assert [c["name"] for c in entry["competitors"]] == ["modernbert", "accelerated"] and entry["tokens"] > 500


def test_the_commit_is_the_checkouts():
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    assert commit()["commit"] == head[:12]


FORBIDDEN = ("pydantic", "rich", "typer", "optimi", "zstandard", "matplotlib", "tomli_w")
WITHOUT = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {FORBIDDEN!r} else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
try:
    import rich
except ImportError:
    pass
else:
    raise SystemExit("the hook does nothing")
import modernbert, modernbert.tasks, modernbert.evaluate.parity, modernbert.evaluate.report
from modernbert.evaluate.speed import Bench, bench
from modernbert.evaluate.steps import training_speed
from modernbert.evaluate.peers import shape_of
from modernbert.runtime import Runtime
runtime = Runtime.detect(device="cpu", num_threads=1)
found = bench(Bench(quick=True, rounds=1, loads=("queries",), memory=False), runtime)
training_speed(shape_of("tiny", quick=True), runtime, num_tokens=64, length=32, seconds=0)
print([c["name"] for c in found["loads"][0]["competitors"]])
"""


def test_the_bench_runs_without_settings_optimizer_and_console_libraries():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "['modernbert', 'transformers', 'bert', 'deberta']"
