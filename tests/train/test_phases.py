"""Phases: what each takes from the one before, what it sets, what may start it, and what stops it early."""

import json
import os
import shutil
import signal

import pytest
import torch
from tiny_run import (
    MICRO_BATCH_TOKENS,
    Interrupted,
    build_tiny_shards,
    interrupt_at,
    losses,
    optimizer_of,
    recipe,
    rows,
    same_weights,
    tiny_recipe,
    train,
    weights,
)

from modernbert.errors import CheckpointError, ConfigError, DataError, StoppedError, TrainingError
from modernbert.model.hub import read_config
from modernbert.preflight import mlm_batches, stream_seed
from modernbert.pretraining import dry_run_recipe
from modernbert.tasks import MaskedLM
from modernbert.train.loop import Hooks
from modernbert.train.recipe import PretrainRun

HALVES = [{"name": "first", "tokens": "50%"}, {"name": "second", "tokens": "50%"}]


def halves(*, second=None, first=None):
    return [{**HALVES[0], **(first or {})}, {**HALVES[1], **(second or {})}]


def names_of(out):
    return sorted(path.name for path in out.glob("*-????????") if path.is_dir())


def events(out, kind):
    return [row for row in rows(out, "event") if row["event"] == kind]


def test_a_phase_that_starts_from_the_state_is_the_same_run_under_another_name(shards, tmp_path):
    flat = {"warmup_tokens": 0, "decay_tokens": 0}
    one = train(tiny_recipe(shards, steps=8, phase={**flat, "name": "first"}), tmp_path / "one")
    two = train(tiny_recipe(shards, steps=8, phase=flat, phases=halves()), tmp_path / "two")
    assert losses(tmp_path / "one") == losses(tmp_path / "two") and same_weights(one, two)


def test_a_phase_that_starts_from_weights_has_a_new_optimizer_and_one_with_it_has_not(shards, tmp_path):
    steps = {}
    for start in ("weights", "weights+optimizer"):
        train(tiny_recipe(shards, steps=8, phases=halves(second={"start": start})), tmp_path / start)
        _, groups = optimizer_of(tmp_path / start / names_of(tmp_path / start)[-1])
        steps[start] = groups[0]["step"]["tensor"]
    total = rows(tmp_path / "weights")[-1]["step"]
    assert steps["weights+optimizer"] == total and 0 < steps["weights"] < total


def test_rope_bases_change_with_the_phase_and_stand_in_every_config(shards, tmp_path):
    phases = halves(first={"global_rope_theta": 10_000.0}, second={"global_rope_theta": 160_000.0})
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        train(tiny_recipe(shards, steps=8, phases=phases), out, interrupt_at(7))
    train(tiny_recipe(shards, steps=8, phases=phases), out)
    bases = {name: read_config(out / name).global_rope_theta for name in names_of(out)}
    assert {theta for name, theta in bases.items() if name.startswith("first")} == {10_000.0}
    assert {theta for name, theta in bases.items() if name.startswith("second")} == {160_000.0}


def test_a_phase_without_bases_of_its_own_keeps_those_of_the_phase_before(shards, tmp_path):
    out = tmp_path / "out"
    train(tiny_recipe(shards, steps=6, phases=halves(first={"global_rope_theta": 77_000.0})), out)
    assert read_config(out / names_of(out)[-1]).global_rope_theta == 77_000.0


def test_the_masking_rate_is_annealed_over_its_phase(shards, tmp_path):
    train(tiny_recipe(shards, steps=20, phase={"mask_rate": 0.4, "mask_rate_end": 0.1}), tmp_path / "out")
    rates = [row["mask_rate"] for row in rows(tmp_path / "out")]
    assert rates[0] == 0.4 and rates == sorted(rates, reverse=True) and 0.1 <= rates[-1] < 0.14
    shares = [row["targets"] / row["step_tokens"] for row in rows(tmp_path / "out")]
    assert sum(shares[:5]) > 2 * sum(shares[-5:])


def test_a_batch_warms_up_within_its_phase_and_all_of_it_is_real_tokens(shards, tmp_path):
    phase = {"tokens_per_step": 1024, "tokens_per_step_start": 256, "batch_warmup_tokens": "50%"}
    train(tiny_recipe(shards, steps=60, phase=phase), tmp_path / "out")
    sizes = [row["step_tokens"] for row in rows(tmp_path / "out")]
    assert sizes[0] <= 256 < 900 < sizes[-1] <= 1024 and all(row["filled"] > 0.9 for row in rows(tmp_path / "out"))


def test_weight_decay_may_differ_by_phase_and_never_falls_on_norms(shards, tmp_path):
    out = tmp_path / "out"
    train(tiny_recipe(shards, steps=6, phases=halves(second={"weight_decay": 1e-3})), out)
    first = next(name for name in reversed(names_of(out)) if name.startswith("first"))
    groups = {name: optimizer_of(out / name)[1] for name in (first, names_of(out)[-1])}
    assert [[group["weight_decay"] for group in found] for found in groups.values()] == [[1e-5, 0.0], [1e-3, 0.0]]


def test_phases_of_other_text_have_streams_of_their_own(shards, tmp_path):
    run = tiny_recipe(shards, phases=halves(second={"mixture": {"text": {"weight": 1, "min_tokens": 10}}}))
    assert mlm_batches(run, 1).key != mlm_batches(run, 0).key
    assert stream_seed(3, 0) == 3 and len({stream_seed(3, stream) for stream in range(9)}) == 9


def test_sources_are_read_by_weight_and_evaluated_each(tmp_path):
    sources = {}
    for name in ("wiki", "books"):
        (tmp_path / name).mkdir()
        sources[name] = str(build_tiny_shards(tmp_path / name))
    values = recipe("unused", steps=8, phase={"mixture": {"wiki": 3, "books": 1}})
    values["data"] = {"sources": sources}
    train(PretrainRun.parse(values), tmp_path / "out")
    last = rows(tmp_path / "out", "eval")[-1]
    assert last["by_source"].keys() == {"wiki", "books"}
    assert last["targets"] == sum(entry["targets"] for entry in last["by_source"].values())
    assert sum(entry["targets"] for entry in last["by_position"]) == last["targets"]
    mean = sum(e["loss"] * e["targets"] for e in last["by_source"].values()) / last["targets"]
    assert last["loss"] == pytest.approx(mean)


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("parent") / "out"
    train(tiny_recipe(shards, steps=8, phases=halves(first={"global_rope_theta": 10_000.0})), out)
    return out


@pytest.mark.parametrize("start,steps_before", [("weights", 0), ("weights+optimizer", 8), ("state", 8)])
def test_a_run_continues_from_a_checkpoint_of_another_run(shards, tmp_path, finished, start, steps_before):
    values = recipe(shards, steps=4, phase={"name": "adapt", "start": start, "checkpoint": str(finished)})
    values["model"] = {}  # the shape is the checkpoint's
    newest = train(PretrainRun.parse(values), tmp_path / "out")
    assert same_weights(tmp_path / "out" / "adapt-00000000", finished / names_of(finished)[-1])
    assert read_config(newest).global_rope_theta == 10_000.0
    parent_steps = rows(finished)[-1]["step"] if steps_before else 0
    own = rows(tmp_path / "out")[-1]["step"]
    assert optimizer_of(newest)[1][0]["step"]["tensor"] == parent_steps + own


def test_the_exact_state_goes_on_with_the_text_that_comes_next(shards, tmp_path, finished):
    phase = {"start": "state", "checkpoint": str(finished), "warmup_tokens": 0, "decay_tokens": 0}
    run = tiny_recipe(shards, steps=4, phase=phase)
    train(run, tmp_path / "out")
    where = [json.loads((path / "state" / "progress.json").read_text())["progress"] for path in (
        finished / names_of(finished)[-1], tmp_path / "out" / "stable-00000000")]  # fmt: skip
    assert where[0]["loader"]["pack"]["pending"] == where[1]["loader"]["pack"]["pending"]


def test_weights_alone_cannot_give_an_optimizer(shards, tmp_path, finished):
    model = MaskedLM(read_config(finished / names_of(finished)[-1])).draw(0).save(tmp_path / "model")
    run = tiny_recipe(
        shards, phase={"checkpoint": str(model), "start": "weights+optimizer"}, model={"local_rope_theta": None}
    )
    with pytest.raises(
        CheckpointError, match='holds weights alone, no state/ of a run; take them with start="weights"'
    ):
        train(run, tmp_path / "out")


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_written(shards, tmp_path, finished):
    run = tiny_recipe(shards, phase={"checkpoint": str(finished)}, model={"hidden_size": 128})
    with pytest.raises(CheckpointError, match=r"is of another shape: hidden_size=64 \(here 128\)"):
        train(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mixture_that_cannot_fill_its_phase_is_refused_before_anything_is_written(shards, tmp_path):
    run = tiny_recipe(shards, steps=10_000, phase={"mixture": {"text": {"weight": 1, "max_epochs": 2}}})
    with pytest.raises(DataError, match="max_epochs"):
        train(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_little_long_text_in_a_longer_phase_is_remarked(shards, tmp_path):
    said = []
    phases = halves(second={"sequence_length": 64, "micro_batch_tokens": 512, "tokens_per_step": 512})
    run = tiny_recipe(shards, steps=8, phases=phases, data={"warn_long_share": 1.0})
    train(run, tmp_path / "out", Hooks(on_remark=said.append))
    (remark,) = (text for text in said if "documents longer than the 32 tokens" in text)
    assert remark.startswith("phase second: Only ") and "give long documents more weight" in remark


# --- an edited recipe


def test_an_edited_recipe_says_what_changed_and_goes_on_if_that_is_allowed(shards, tmp_path):
    run, edited = tiny_recipe(shards, steps=8), tiny_recipe(shards, steps=8, phase={"lr": 1e-3})
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        train(run, out, interrupt_at(5))
    with pytest.raises(ConfigError, match=r"phases.0.lr=0.003 \(now 0.001\); .* say --allow-change"):
        train(edited, out)
    train(edited, out, allow_change=True)
    assert max(row["lr"] for row in rows(out)[3:]) == 1e-3 < max(row["lr"] for row in rows(out)[:3])
    about = json.loads((out / "run.json").read_text())
    assert about["recipe"]["phases"][0]["lr"] == 1e-3
    assert [session["changes"] for session in about["sessions"]] == [[], ["phases.0.lr=0.003 (now 0.001)"]]
    assert about["sessions"][0]["ended"].startswith("error") and about["sessions"][1]["ended"] == "finished"


def test_a_finished_run_takes_another_phase_if_that_is_allowed(shards, tmp_path):
    out = tmp_path / "out"
    budget = 4 * MICRO_BATCH_TOKENS
    one = tiny_recipe(shards, phases=[{"name": "first", "tokens": budget}], loop={"tokens": None})
    two = tiny_recipe(
        shards,
        phases=[{"name": "first", "tokens": budget}, {"name": "second", "tokens": budget}],
        loop={"tokens": None},
    )
    train(one, out)
    before = losses(out)
    newest = train(two, out, allow_change=True)
    assert newest.name.startswith("second") and losses(out)[: len(before)] == before


def test_a_phase_may_be_put_before_the_one_that_a_run_is_in(shards, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        train(tiny_recipe(shards, steps=8, phases=halves()), out, interrupt_at(7))
    before = rows(out)[-1]["step"]
    three = [{**HALVES[0], "tokens": "25%"}, {"name": "plateau", "tokens": "25%"}, HALVES[1]]
    train(tiny_recipe(shards, steps=8, phases=three), out, allow_change=True)
    assert [row["phase"] for row in rows(out) if row["step"] >= before - 1].count("plateau") == 0
    assert rows(out)[-1]["phase"] == "second"


def test_a_recipe_without_the_phase_that_a_run_is_in_is_refused_and_spoils_nothing(shards, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        train(tiny_recipe(shards, steps=8, phases=halves()), out, interrupt_at(7))
    about = (out / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="the run was in its phase second, and the recipe has first; keep"):
        train(tiny_recipe(shards, steps=8, phases=[{"name": "first"}]), out, allow_change=True)
    assert (out / "run.json").read_bytes() == about


@pytest.mark.parametrize("change", [{"seed": 1}, {"phase": {"sequence_length": 24}}])
def test_other_text_in_the_midst_of_a_phase_is_read_anew_if_that_is_allowed(shards, tmp_path, change):
    out, said = tmp_path / "out", []
    with pytest.raises(Interrupted):
        train(tiny_recipe(shards, steps=8), out, interrupt_at(5))
    train(tiny_recipe(shards, steps=8, **change), out, Hooks(on_remark=said.append), allow_change=True)
    assert any("begins to read it anew" in text for text in said)
    assert rows(out)[-1]["tokens"] >= 8 * MICRO_BATCH_TOKENS


def test_a_finished_run_under_a_recipe_with_nothing_more_to_do_stays_as_it_is(shards, tmp_path):
    out, said = tmp_path / "out", []
    train(tiny_recipe(shards, steps=4), out)
    about = (out / "run.json").read_bytes()
    train(tiny_recipe(shards, steps=4, phase={"lr": 1e-4}), out, Hooks(on_remark=said.append), allow_change=True)
    assert any("is finished" in text for text in said) and (out / "run.json").read_bytes() == about


def test_a_run_goes_on_though_the_checkpoint_it_began_with_is_gone(shards, tmp_path, finished):
    parent = tmp_path / "parent"
    shutil.copytree(finished / names_of(finished)[-1], parent)
    run = tiny_recipe(shards, steps=6, phase={"checkpoint": str(parent), "start": "weights"})
    with pytest.raises(Interrupted):
        train(run, tmp_path / "out", interrupt_at(4))
    shutil.rmtree(parent)
    train(run, tmp_path / "out")
    assert rows(tmp_path / "out")[-1]["tokens"] >= 6 * MICRO_BATCH_TOKENS


def test_a_checkpoint_with_another_tokenizer_is_refused(shards, tmp_path, finished):
    (tmp_path / "other").mkdir()
    other = build_tiny_shards(tmp_path / "other", seed=5)
    run = tiny_recipe(other, phase={"checkpoint": str(finished), "start": "weights"})
    with pytest.raises(CheckpointError, match="has another tokenizer than the data in"):
        train(run, tmp_path / "out")


def test_a_checkpoint_with_another_window_is_another_shape_unless_the_recipe_says_so(shards, tmp_path, finished):
    values = recipe(shards, phase={"checkpoint": str(finished), "start": "weights"}, model={"local_attention": 32})
    train(PretrainRun.parse(values), tmp_path / "meant")
    del values["model"]["local_attention"]
    with pytest.raises(CheckpointError, match=r"local_attention=16 \(here 128\)"):
        train(PretrainRun.parse(values), tmp_path / "not-meant")


def test_a_run_that_starts_from_another_runs_weights_reads_text_in_another_order(shards, tmp_path, finished):
    run = tiny_recipe(shards, steps=2, phase={"checkpoint": str(finished), "start": "weights"})
    train(run, tmp_path / "out")
    state = json.loads((tmp_path / "out" / "stable-00000000" / "state" / "progress.json").read_text())["progress"]
    assert state["stream"] >= 1000


# --- stopping and keeping


def test_sigterm_saves_and_the_same_command_ends_as_the_unbroken_run(shards, tmp_path):
    run = tiny_recipe(shards, steps=10, loop={"checkpoint_tokens": "100%"})
    whole = train(run, tmp_path / "whole")

    def on_row(row):
        if row["kind"] == "train" and row["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "out"
    with pytest.raises(StoppedError, match="stable-00000004; the same command goes on"):
        train(run, out, Hooks(on_row=on_row))
    about = json.loads((out / "run.json").read_text())
    assert about["status"] == "unfinished" and about["sessions"][0]["ended"] == "SIGTERM"
    assert same_weights(train(run, out), whole) and losses(out) == losses(tmp_path / "whole")


def test_a_time_limit_saves_and_ends(shards, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(StoppedError, match=r"time limit.*stable-00000001"):
        train(tiny_recipe(shards, steps=50), out, time_limit_minutes=1e-6)
    assert json.loads((out / "run.json").read_text())["sessions"][0]["ended"] == "time limit"


def test_a_clock_may_ask_for_checkpoints_and_only_the_last_of_those_stay(shards, tmp_path):
    out = tmp_path / "out"
    loop = {"checkpoint_tokens": "50%", "checkpoint_minutes": 1e-9, "keep_every": 1, "keep_last": 2}
    train(tiny_recipe(shards, steps=12, loop=loop), out)
    steps = [int(name[-8:]) for name in names_of(out)]
    saved = [int(row["checkpoint"][-8:]) for row in rows(out, "save")]
    last = saved[-1]
    assert saved == list(range(last + 1))
    assert steps[0] == 0 and steps[-2:] == [last - 1, last] and len(steps) == 4


def test_every_save_is_written_down_with_what_it_cost(shards, tmp_path):
    out = tmp_path / "out"
    train(tiny_recipe(shards, steps=6), out)
    saves = rows(out, "save")
    assert [row["checkpoint"] for row in saves] == names_of(out)
    assert all(row["stall_seconds"] >= 0 < row["write_seconds"] for row in saves)


def test_a_disk_without_room_for_checkpoints_is_said_before_anything_is_trained(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match="of disk left, and a checkpoint takes"):
        train(tiny_recipe(shards), tmp_path / "out")
    assert names_of(tmp_path / "out") == []


# --- steps that go wrong


@pytest.fixture
def poisoned(monkeypatch):
    """The fifth training forward pass, and its repetition on the same batch, give what is asked for."""
    whole, state = MaskedLM.forward, {"calls": 0, "batch": None, "factor": float("nan")}

    def forward(self, batch):
        output = whole(self, batch)
        if self.training and state["batch"] is None:
            state["calls"] += 1
            if state["calls"] == 5:
                state["batch"] = batch.input_ids_T.clone()
        hit = state["batch"] is not None and torch.equal(batch.input_ids_T, state["batch"])
        return (
            type(output)(output.loss_sum * state["factor"], output.num_targets, output.metric_sums) if hit else output
        )

    monkeypatch.setattr(MaskedLM, "forward", forward)
    return state


def test_a_nan_is_skipped_named_and_counted_if_the_recipe_says_so(shards, tmp_path, poisoned):
    out, said = tmp_path / "out", []
    run = tiny_recipe(shards, steps=10, guard={"on_nan": "skip"})
    train(run, out, Hooks(on_remark=said.append))
    (event,) = events(out, "nan")
    assert event["step"] == 5 and "step 5: loss nan" in event["text"] and "skipped" in event["text"]
    assert "text #" in event["text"] and event["text"] in said
    assert [row["step"] for row in rows(out)] == [s for s in range(1, rows(out)[-1]["step"] + 1) if s != 5]
    assert (out / "nan-00000005.pt").exists()


def test_a_nan_rolls_back_and_goes_on_with_the_text_behind_it_if_the_recipe_says_so(shards, tmp_path, poisoned):
    out = tmp_path / "out"
    newest = train(tiny_recipe(shards, steps=10, guard={"on_nan": "rollback"}), out)
    (event,) = events(out, "nan")
    assert event["step"] == 3 and "Went on from step 3" in event["text"]
    assert [row["step"] for row in rows(out)] == list(range(1, rows(out)[-1]["step"] + 1))
    assert all(tensor.isfinite().all() for tensor in weights(newest).values())


def test_a_run_set_back_is_masked_and_capped_as_if_it_had_not_been(shards, tmp_path, poisoned):
    out = tmp_path / "out"
    phase = {"mask_rate": 0.4, "mask_rate_end": 0.1, "mixture": {"text": {"weight": 1, "max_epochs": 3}}}
    train(tiny_recipe(shards, steps=10, phase=phase, guard={"on_nan": "rollback"}), out)
    assert len(events(out, "nan")) == 1
    rates = [row["mask_rate"] for row in rows(out)]
    assert rates == pytest.approx([0.4 - 0.3 * row["step"] / 10 + 0.03 for row in rows(out)], abs=0.02)


def test_a_run_set_back_to_the_end_of_the_phase_before_begins_its_phase_anew(shards, tmp_path, poisoned):
    out = tmp_path / "out"
    poisoned["calls"] = -1  # the first step of the second phase's two
    run = tiny_recipe(
        shards, steps=10, phases=halves(), loop={"checkpoint_tokens": "100%"}, guard={"on_nan": "rollback"}
    )
    train(run, out)
    assert len(events(out, "nan")) == 1 and rows(out)[-1]["phase"] == "second"
    assert [row["step"] for row in rows(out)] == list(range(1, len(rows(out)) + 1))


def test_a_run_that_only_goes_wrong_stops(shards, tmp_path, monkeypatch):
    whole = MaskedLM.forward

    def forward(self, batch):
        output = whole(self, batch)
        return type(output)(
            output.loss_sum * (float("nan") if self.training else 1), output.num_targets, output.metric_sums
        )

    monkeypatch.setattr(MaskedLM, "forward", forward)
    with pytest.raises(TrainingError, match=r"step 3: loss nan.*raise guard.max_events=2"):
        train(tiny_recipe(shards, steps=10, guard={"on_nan": "skip", "max_events": 2}), tmp_path / "out")
    assert [event["step"] for event in events(tmp_path / "out", "nan")] == [1, 2, 2]


@pytest.mark.parametrize("action,taken", [("note", True), ("skip", False)])
def test_a_spike_is_named_and_taken_or_not(shards, tmp_path, poisoned, action, taken):
    poisoned["factor"] = 50.0
    poisoned["calls"] = -35  # so that the fortieth step is the one
    out = tmp_path / "out"
    train(tiny_recipe(shards, steps=44, guard={"on_spike": action, "spike_window": 32}), out)
    (event,) = events(out, "spike")
    assert event["step"] == 40 and "deviations above the recent median" in event["text"]
    assert (40 in [row["step"] for row in rows(out)]) == taken


# --- before anything is trained


def test_a_dry_run_takes_two_steps_of_each_phase_and_writes_nothing(shards, tmp_path, monkeypatch):
    import tomli_w

    from modernbert.console import Console

    monkeypatch.chdir(tmp_path)
    phases = halves(second={"tokens_per_step": 1024})
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(recipe(shards, steps=16, phases=phases)))
    before = sorted(tmp_path.rglob("*"))
    tried = dry_run_recipe("mine.toml", [], device="cpu", num_threads=1, console=Console(quiet=True))
    assert [phase["phase"] for phase in tried["phases"]] == ["first", "second"]
    for phase in tried["phases"]:
        assert len(phase["losses"]) == 2 and phase["losses"][0] == pytest.approx(5.8, abs=0.3)
    first, second = tried["phases"]
    assert second["step_seconds"] == pytest.approx(
        4 * second["micro_batch_seconds"] + second["optimizer_seconds"], rel=1e-6
    )
    assert first["steps"] == 8 and tried["recipe"]["phases"][1]["tokens"] == 8 * MICRO_BATCH_TOKENS
    assert sorted(tmp_path.rglob("*")) == before


def test_a_smaller_model_is_tiled_where_the_first_phase_turns_positions_as_it_does(shards, tmp_path):
    small = train(tiny_recipe(shards, steps=2), tmp_path / "small")
    larger = {"intermediate_size": 128, "tile_from": str(small)}
    with pytest.raises(CheckpointError, match=r"begins with 500.*set phases\.0\.global_rope_theta=160000\.0"):
        train(tiny_recipe(shards, steps=2, model=larger, phase={"global_rope_theta": 500.0}), tmp_path / "refused")
    model = larger | {"global_rope_theta": 500.0}
    run = tiny_recipe(shards, steps=2, model=model, phase={"global_rope_theta": 160_000.0})
    assert read_config(train(run, tmp_path / "larger")).global_rope_theta == 160_000
