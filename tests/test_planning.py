"""`modernbert plan RECIPE`: published hours, text on disk or none, the machine in front measured, refusals."""

import json

import pytest
import tiny_run
from tiny_run import recipe
from typer.testing import CliRunner

from modernbert import planning
from modernbert.__main__ import app
from modernbert.console import Console
from modernbert.data.pack import Pieces
from modernbert.errors import ConfigError
from modernbert.planning import plan_recipe
from modernbert.text.shards import Shards

# JHU-CLSP/ettin-encoder-vs-decoder, pretraining/README.md: hours on four H100s for 2 T tokens.
PUBLISHED_HOURS = {"tiny": 141, "mini": 212, "small": 300, "base": 470, "large": 950, "huge": 2170}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_run.build_tiny_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny_file(tmp_path):
    """A tiny recipe as a file; what is given is laid over it."""
    import tomli_w

    def write(data, **changes):
        values = recipe(data or "none", **changes)
        if data is None:
            del values["data"]
        (tmp_path / "tiny.toml").write_text(tomli_w.dumps(values))
        return str(tmp_path / "tiny.toml")

    return write


def plan(name, *settings, **how):
    return plan_recipe(name, settings, console=Console(quiet=True), **{"device": "h100", **how})


@pytest.mark.parametrize("preset", PUBLISHED_HOURS)
def test_published_hours_are_reckoned_within_a_quarter(preset):
    assert plan(preset, count=4)["hours"] == pytest.approx(PUBLISHED_HOURS[preset], rel=0.25)


@pytest.mark.parametrize(("name", "words"), [("base", "no text is given"), ("base-continue", "the shape is base's")])
def test_a_recipe_needs_no_text_and_no_checkpoint_to_be_planned(name, words):
    found = plan(name)
    assert found["epochs"] is None and all(phase["epochs"] is None for phase in found["phases"])
    assert found["parameters"] == 149_655_232
    assert any(words in remark for remark in found["remarks"])


def test_text_that_is_not_there_is_named(tmp_path):
    found = plan("tiny", f"data.path={tmp_path / 'absent'}")
    assert any(f"{tmp_path / 'absent'} is no folder" in remark for remark in found["remarks"])


def test_a_mixture_of_sources_needs_no_text_either(tiny_file):
    mixture = {"wiki": 2, "long": {"source": "books", "weight": 1}}
    assert plan(tiny_file(None, phase={"mixture": mixture}))["epochs"] is None


def test_a_published_recipe_is_planned_for_a_small_budget():
    assert plan("base", "scale_to=1_000_000_000")["tokens"] == pytest.approx(10**9, rel=1e-3)


def test_epochs_are_the_tokens_of_a_phase_over_those_of_its_text(shards, tiny_file):
    found = plan(tiny_file(shards, phases=[{"name": "a", "tokens": "75%"}, {"name": "b", "tokens": "25%"}], steps=400))
    opened = Shards.open(shards)
    whole = opened.num_tokens + 2 * len(Pieces(opened.lengths, tiny_run.SEQUENCE_LENGTH))
    assert found["epochs"] == {"text": pytest.approx(found["tokens"] / whole)}
    assert [phase["epochs"]["text"] for phase in found["phases"]] == pytest.approx(
        [phase["tokens"] / whole for phase in found["phases"]]
    )
    assert any("source text is read" in sentence for sentence in found["warnings"])


def test_the_machine_in_front_is_measured_on_the_text_of_each_phase(shards, tiny_file):
    phases = [{"name": "a", "tokens": "50%"}, {"name": "b", "tokens": "50%", "sequence_length": 64}]
    with tiny_run.no_peak():
        found = plan(tiny_file(shards, phases=phases), device="cpu", seconds=3.0, num_threads=1)
    assert "measured here" in found["source"] and found["remarks"] == []
    assert all(0 < phase["hours"] < 1 and phase["tokens_per_second"] > 100 for phase in found["phases"])
    assert found["hours"] == pytest.approx(sum(phase["hours"] for phase in found["phases"]))


def test_phases_that_are_alike_are_measured_once(shards, tiny_file, monkeypatch):
    timed = []
    whole = planning.time_phase
    monkeypatch.setattr(planning, "time_phase", lambda *a, **k: timed.append(a[2].name) or whole(*a, **k))
    phases = [{"name": "a", "tokens": "50%"}, {"name": "b", "tokens": "50%", "tokens_per_step": 512}]
    with tiny_run.no_peak():
        found = plan(tiny_file(shards, phases=phases), device="cpu", seconds=2.0, num_threads=1)
    assert timed == ["a", "a"], "the second only to see how fast this machine is"
    assert found["phases"][1]["step_seconds"] > found["phases"][0]["step_seconds"]


def test_what_would_take_long_is_measured_in_little_and_scaled_and_that_is_said(tiny_file):
    file = tiny_file(None, phase={"micro_batch_tokens": 2**15, "tokens_per_step": 2**15}, steps=1000)
    with tiny_run.no_peak():
        found = plan(file, device="cpu", seconds=0.5, num_threads=1)
    assert any("and scaled by operations to its micro-batches" in remark for remark in found["remarks"])
    assert found["phases"][0]["micro_batch_tokens"] == 2**15


def test_phases_that_are_a_table_are_refused_in_a_line(tmp_path):
    (tmp_path / "r.toml").write_text("[model]\npreset = 'tiny'\n[loop]\n[phases.stable]\nlr = 1e-3\n")
    with pytest.raises(ConfigError, match="phases: ") as refused:
        plan(str(tmp_path / "r.toml"))
    assert "\n" not in str(refused.value)


def test_a_micro_batch_beyond_the_memory_here_is_measured_in_less(tiny_file, monkeypatch):
    file = tiny_file(None, phase={"micro_batch_tokens": 2**14, "tokens_per_step": 2**14}, steps=1000)
    probed = []
    whole = planning.time_phase
    monkeypatch.setattr(
        planning, "time_phase", lambda *a, **k: probed.append(a[2].micro_batch_tokens) or whole(*a, **k)
    )
    monkeypatch.setattr(planning, "usable_memory_bytes", lambda _device: 120 * 2**20)
    with tiny_run.no_peak():
        found = plan(file, device="cpu", seconds=200.0, num_threads=1)
    assert probed[-1] <= found["phases"][0]["largest_micro_batch_tokens"] < 2**14
    assert any("does not fit the memory here, so it was measured on" in remark for remark in found["remarks"])


def test_text_that_pretrain_refuses_is_said_to_be_refused(shards, tiny_file):
    mixture = {"text": {"weight": 1, "max_epochs": 1}}
    found = plan(tiny_file(shards, phase={"mixture": mixture}, steps=4000))
    assert any("pretrain refuses this: " in sentence and "raise" in sentence for sentence in found["warnings"])


def test_text_of_which_nothing_is_held_out_is_said_to_be_refused(shards, tiny_file, monkeypatch):
    assert not any("pretrain refuses" in sentence for sentence in plan(tiny_file(shards))["warnings"])
    monkeypatch.setattr(planning, "has_held_out", lambda _folder: False)
    assert any("no source has held-out documents" in sentence for sentence in plan(tiny_file(shards))["warnings"])


@pytest.mark.parametrize(("count", "said"), [(8, False), (64, True)])
def test_more_devices_than_one_machine_has_are_remarked_on(count, said):
    remarks = plan("base", count=count)["remarks"]
    assert any("a slower network takes longer" in remark for remark in remarks) == said


def test_a_model_that_this_machine_cannot_hold_is_not_built(monkeypatch):
    monkeypatch.setattr(planning, "usable_memory_bytes", lambda _device: 2**20)
    with (
        tiny_run.no_peak(),
        pytest.raises(ConfigError, match="this machine has 0; name what is to train it: --device h100"),
    ):
        plan("tiny", device="cpu", num_threads=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--device", "h99"], "device='h99' is not known; known are h100"),
        (["tiny", "--device", "h100", "--count", "0"], "count=0 must be at least 1"),
        (["tiny", "--device", "h100", "--price", "-1"], "price=-1.0 must be 0 or more"),
        (["tinny"], "tinny: no such recipe or file; did you mean 'tiny'?"),
        (["tiny", "--params", "5"], "--params and --latency-ms ask for a shape, and tiny has one"),
        ([], "give a recipe, or one budget for a shape"),
        (["--params", "5", "--latency-ms", "5"], "give a recipe, or one budget for a shape"),
        (["--params", "5"], "params=5: no shape comes within 3%"),
        (["--params", "-5"], "params=-5 must be above 0"),
        (["--params", "50_000_000", "--price", "2"], "--price: of no use for planning a shape"),
        (["--params", "50_000_000", "--count", "1"], "--count: of no use for planning a shape"),
        (["tiny", "--tokens", "5", "--vocab-size", "64"], "--tokens, --vocab-size: of no use for planning a recipe"),
        (["tiny", "phases=3", "--device", "h100"], "phases=3: "),
        (["tiny", "data=3", "--device", "h100"], "data=3: "),
        (["tiny", "model=tiny", "--device", "h100"], "model='tiny': "),
        (["tiny", "phases=[3]", "--device", "h100"], "phases.0=3: "),
        (["tiny", "phases.stable.mixture=wiki", "--device", "h100"], "phases.0.mixture='wiki': "),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(arguments, words):
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception) and "\n" not in str(result.exception)


def test_the_command_prints_one_object_with_everything_in_it():
    result = CliRunner().invoke(app, ["plan", "base", "--device", "h100", "--count", "8", "--price", "2.5", "--json"])
    found = json.loads(result.stdout)
    assert {
        *("recipe", "parameters", "hardware", "source", "count", "tokens", "steps", "hours", "device_hours", "flops", "mfu"),
        *("cost", "memory_bytes", "device_memory_bytes", "epochs", "phases", "warnings", "remarks"),
    } == found.keys()  # fmt: skip
    assert {
        *("name", "tokens", "steps", "sequence_length", "tokens_per_step", "micro_batch_tokens", "hours", "step_seconds"),
        *("evaluation_hours", "tokens_per_second", "mfu", "flops", "device_hours", "cost", "memory", "memory_bytes"),
        *("largest_micro_batch_tokens", "epochs"),
    } == found["phases"][0].keys()  # fmt: skip
    assert found["phases"][0]["memory"].keys() == {"weights", "gradients", "optimizer", "activations", "logits"}


def test_the_command_shows_a_table_and_sentences():
    result = CliRunner().invoke(app, ["plan", "base", "--device", "l4", "--price", "1"])
    assert "anneal" in result.stdout and "not measured" in result.stdout and "at the price given" in result.stdout
