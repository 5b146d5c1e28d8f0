"""Shapes for a budget: whole tiles, a global last layer, the size asked for, measured or reckoned."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.console import Console
from modernbert.errors import ConfigError
from modernbert.evaluate import shapes
from modernbert.evaluate.candidates import of_latency, of_size
from modernbert.evaluate.shapes import Stopwatch, lengths_of, plan_shapes
from modernbert.settings import override, read_recipe
from modernbert.train.recipe import PretrainRun
from modernbert.train.roofline import num_parameters

VOCAB_SIZE = 50_368


@given(st.integers(15_000_000, 2_000_000_000))
@settings(max_examples=20, deadline=None)
def test_candidates_have_the_size_asked_for_and_whole_tiles(parameters):
    for config in of_size(parameters, VOCAB_SIZE):
        assert num_parameters(config) == pytest.approx(parameters, rel=0.03)
        assert config.head_size == 64 and config.intermediate_size % 64 == 0
        assert config.half_windows[-1] is None, "the last layer is global"


@given(st.floats(0.5, 50))
def test_candidates_for_a_latency_stay_within_it_by_their_stretches(milliseconds):
    def cost_of(config):
        return config.hidden_size * config.intermediate_size / 1e5

    for config in of_latency(milliseconds, VOCAB_SIZE, cost_of):
        assert config.num_hidden_layers / 3 * cost_of(config) <= milliseconds
        assert config.half_windows[-1] is None


def test_where_no_shape_is_near_the_nearest_is_named():
    with pytest.raises(
        ConfigError, match=r"params=1,000: no shape comes within 3%; .* the nearest has 6,973,888; ask for"
    ):
        of_size(1000, VOCAB_SIZE)
    assert of_size(6_973_888, VOCAB_SIZE)


def test_a_latency_that_nothing_meets_is_refused():
    with pytest.raises(ConfigError, match=r"latency-ms=1: the smallest shape takes longer \(4 layers of 128\)"):
        of_latency(1.0, VOCAB_SIZE, lambda _config: 1000.0)


def test_documents_of_the_timed_batch_hold_its_tokens():
    assert lengths_of(1024) == [512, 512] and lengths_of(700) == [512, 188] and lengths_of(5) == [5]


def asked(**how):
    return plan_shapes(console=Console(quiet=True), **how)


def test_a_named_device_is_reckoned_and_says_so():
    found = asked(params=150_000_000, device="a100-80")
    shares = [row["share"] for row in found["shapes"]]
    assert shares == sorted(shares, reverse=True) and 0.05 < shares[0] < 0.6
    assert "not measured" in found["source"] and "tiles of 128" in found["remarks"][0]
    assert all(row["timed"] == "reckoned" for row in found["shapes"])


def test_shapes_for_a_latency_on_a_named_device_meet_it():
    found = asked(latency_ms=5.0, device="l4", num_tokens=2048)
    assert found["shapes"] and all(row["milliseconds"] <= 5 for row in found["shapes"])
    assert found["shapes"][0]["parameters"] > 10_000_000


def test_the_lines_to_paste_make_the_shape(tmp_path):
    row = asked(params=50_000_000, device="h100")["shapes"][0]
    (tmp_path / "shape.toml").write_text('extends = "tiny"\n' + row["toml"])
    run = PretrainRun.parse(override(read_recipe(tmp_path / "shape.toml"), ["data.path=x"]))
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        assert getattr(run.model, name) == row[name]


def test_a_latency_that_no_shape_keeps_is_said(monkeypatch):
    """Three layers may promise what a whole model does not keep."""
    monkeypatch.setattr(shapes, "sheet_seconds", lambda config, *_: 1e-3 * (config.num_hidden_layers > 3) + 1e-5)
    found = asked(latency_ms=0.2, device="h100")
    assert all(row["milliseconds"] > 0.2 for row in found["shapes"])
    assert any("no shape keeps to 0.2 ms" in remark for remark in found["remarks"])


def test_a_whole_model_that_does_not_fit_is_not_built(monkeypatch):
    monkeypatch.setattr(shapes, "usable_memory_bytes", lambda _device: 2**20)
    monkeypatch.setattr(Stopwatch, "whole", None)
    monkeypatch.setattr(Stopwatch, "_time", lambda *_, **__: 1e-3)
    found = asked(params=2_000_000, vocab_size=320, num_tokens=64, device="cpu", num_threads=1)
    assert all(row["timed"] == "3 layers" for row in found["shapes"])
    assert any("were not timed whole: a training pass takes" in remark for remark in found["remarks"])


def test_shapes_are_measured_in_front_and_the_best_as_a_whole(monkeypatch):
    whole = Stopwatch._time
    monkeypatch.setattr(
        Stopwatch, "_time", lambda self, call, **how: whole(self, call, **{**how, "calls": 1, "seconds": 0.0})
    )
    monkeypatch.setattr(shapes, "_WHOLE", 1)
    found = asked(params=2_000_000, vocab_size=320, num_tokens=64, device="cpu", num_threads=1)
    first, *others = found["shapes"]
    assert first["timed"] == "whole" and first["training_milliseconds"] > first["milliseconds"] > 0
    assert all(row["timed"] == "3 layers" and row["training_milliseconds"] is None for row in others)
    assert "measured here" in found["source"] and first["share"] > 0
    assert first["milliseconds_per_1024"] == pytest.approx(16 * first["milliseconds"])
