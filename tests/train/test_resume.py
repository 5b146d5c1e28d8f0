"""A run that was cut off, anywhere, goes on and becomes the run that was never cut off, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tomli_w
import torch
from tiny_run import (
    MICRO_BATCH_TOKENS,
    Interrupted,
    build_tiny_shards,
    interrupt_at,
    losses,
    quick_peak,
    recipe,
    rows,
    runtime,
    same_weights,
    tiny_recipe,
    train,
)

from modernbert.errors import CheckpointError, ConfigError, TrainingError
from modernbert.pretraining import pretrain
from modernbert.train.checkpoint import RunFolder
from modernbert.train.log import read_metrics
from modernbert.train.loop import Hooks
from modernbert.train.recipe import PretrainRun

STEPS = 12
PHASES = [
    {"name": "stable", "tokens": "60%"},
    {"name": "longer", "tokens": "40%", "sequence_length": 64, "micro_batch_tokens": 128, "warmup_tokens": 0},
]


def every_row(out):
    """What each line says of the model, in order; without what only a clock says, and what befell the run."""
    return [
        (r["kind"], r["step"], r["phase"], r["tokens"], r["loss"], r["accuracy"], r["lr"])
        for r in read_metrics(out)
        if r["kind"] in ("train", "eval")
    ]


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    """The folder of the run that was never cut off, and its newest checkpoint."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    return out, train(tiny_recipe(shards, steps=STEPS, phases=PHASES), out)


@pytest.fixture
def run(shards):
    return tiny_recipe(shards, steps=STEPS, phases=PHASES)


def cut_off(run, out, hooks):
    with pytest.raises(Interrupted):
        train(run, out, hooks)


def remarks_of(run, out, **options):
    said = []
    train(run, out, Hooks(on_remark=said.append), **options)
    return said


def test_the_run_of_these_tests_has_two_phases_dropout_and_checkpoints_between_evaluations(unbroken, run):
    out, checkpoint = unbroken
    assert checkpoint.name.startswith("longer-") and run.model.attention_dropout == 0.1
    names = sorted(path.name for path in out.glob("*-????????"))
    assert len(names) >= 5 and len(rows(out, "eval")) >= 3
    assert len({row["step"] for row in rows(out)}) >= STEPS


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(run, tmp_path, unbroken, step):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(step))
    assert same_weights(train(run, out), unbroken[1])
    assert every_row(out) == every_row(unbroken[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_run_cut_off_again_and_again_is_the_unbroken_one(run, tmp_path, unbroken, seed):
    out, draw = tmp_path / "out", random.Random(seed)
    for step in sorted(draw.sample(range(1, STEPS + 1), 4)):
        cut_off(run, out, interrupt_at(step))
    assert same_weights(train(run, out), unbroken[1])
    assert every_row(out) == every_row(unbroken[0])


def test_a_run_cut_off_in_its_first_evaluation_says_each_thing_once(run, tmp_path, unbroken):
    cut_off(run, tmp_path / "out", interrupt_at(0, kind="eval"))
    train(run, tmp_path / "out")
    assert every_row(tmp_path / "out") == every_row(unbroken[0])


def test_a_run_cut_off_right_behind_an_evaluation_or_a_save_is_the_unbroken_one(run, tmp_path, unbroken):
    step = rows(unbroken[0], "eval")[1]["step"]
    cut_off(run, tmp_path / "a", interrupt_at(step, kind="eval"))

    def on_checkpoint(_task, _path, progress):
        if progress.step >= 6:
            raise Interrupted

    cut_off(run, tmp_path / "b", Hooks(on_checkpoint=on_checkpoint))
    for name in ("a", "b"):
        assert same_weights(train(run, tmp_path / name), unbroken[1])
        assert every_row(tmp_path / name) == every_row(unbroken[0])


def test_a_run_cut_off_between_its_last_save_and_its_end_only_says_that_it_is_finished(run, tmp_path, unbroken):
    def on_checkpoint(_task, _path, progress):
        if progress.tokens >= run.loop.tokens:
            raise Interrupted

    cut_off(run, tmp_path / "out", Hooks(on_checkpoint=on_checkpoint))
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "unfinished"
    assert same_weights(train(run, tmp_path / "out"), unbroken[1])
    assert every_row(tmp_path / "out") == every_row(unbroken[0])
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "finished"


def test_another_number_of_workers_after_the_interruption_changes_nothing(run, shards, tmp_path, unbroken):
    cut_off(run, tmp_path / "out", interrupt_at(5))
    with_workers = tiny_recipe(shards, steps=STEPS, phases=PHASES, data={"workers": 2})
    assert same_weights(train(with_workers, tmp_path / "out"), unbroken[1])
    cut_off(with_workers, tmp_path / "other", interrupt_at(5))
    assert same_weights(train(run, tmp_path / "other"), unbroken[1])
    assert every_row(tmp_path / "out") == every_row(tmp_path / "other") == every_row(unbroken[0])


def test_other_intervals_after_the_interruption_change_nothing_that_is_learnt(run, shards, tmp_path, unbroken):
    cut_off(run, tmp_path / "out", interrupt_at(5))
    other = tiny_recipe(shards, steps=STEPS, phases=PHASES, loop={"checkpoint_tokens": 1, "eval_tokens": "50%"})
    assert same_weights(train(other, tmp_path / "out"), unbroken[1])
    assert losses(tmp_path / "out") == losses(unbroken[0])


def test_measuring_the_machine_draws_nothing_from_the_runs_random_numbers(run, tmp_path, unbroken):
    cut_off(run, tmp_path / "out", interrupt_at(5))
    assert same_weights(train(run, tmp_path / "out", peak_of=quick_peak), unbroken[1])
    assert losses(tmp_path / "out") == losses(unbroken[0])


def test_what_is_drawn_before_a_run_does_not_matter_to_it(run, tmp_path, unbroken):
    torch.manual_seed(12345)
    torch.rand(77)
    assert same_weights(train(run, tmp_path / "out"), unbroken[1])


@pytest.mark.parametrize("torn", ['{"kind": "tra', "\0\0\0\0", '{"kind": "train", "step": 4, "lo\n'])
def test_a_torn_last_line_of_the_metrics_is_dropped(run, tmp_path, unbroken, torn):
    cut_off(run, tmp_path / "out", interrupt_at(5))
    with (tmp_path / "out/metrics.jsonl").open("a") as metrics:
        metrics.write(torn)
    train(run, tmp_path / "out")
    assert every_row(tmp_path / "out") == every_row(unbroken[0])


def test_lost_metrics_do_not_stop_a_run(run, tmp_path, unbroken):
    cut_off(run, tmp_path / "out", interrupt_at(5))
    (tmp_path / "out/metrics.jsonl").unlink()
    assert same_weights(train(run, tmp_path / "out"), unbroken[1])


def test_a_half_written_checkpoint_is_ignored_and_cleared(run, tmp_path, unbroken):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(5))
    half = out / ".stable-00000006.unfinished-k1_3abcd"
    (half / "state").mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (half / "state" / "progress.json").write_text("{")
    unnamed = out / "stable-00000005"  # as of another program: nothing to go on from
    unnamed.mkdir()
    (unnamed / "config.json").write_text("{}")
    assert same_weights(train(run, out), unbroken[1])
    assert not half.exists()
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == [".lock"]
    assert every_row(out) == every_row(unbroken[0])


def test_with_the_newest_checkpoint_deleted_a_run_goes_on_from_the_one_before(run, tmp_path, unbroken):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(11))
    newest = RunFolder(out).checkpoints()[-1]
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    assert same_weights(train(run, out), unbroken[1])
    assert every_row(out) == every_row(unbroken[0])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: b"no checkpoint", id="other"),
        pytest.param(lambda raw: raw[: len(raw) // 2], id="cut short"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["optimizer.json", "shard-00001-model-00001-of-00001.safetensors"])
def test_a_checkpoint_whose_state_is_damaged_is_named_with_the_way_out(run, tmp_path, damage, name):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(7))
    newest = RunFolder(out).checkpoints()[-1]
    path = newest / "state" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{newest.name}/state cannot be read .*; delete {newest.name}"):
        train(run, out)


def test_a_checkpoint_whose_weights_are_damaged_is_named(run, tmp_path):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(7))
    newest = RunFolder(out).checkpoints()[-1]
    (newest / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=f"{newest.name}/model.safetensors cannot be read"):
        train(run, out)


@pytest.mark.parametrize("contents", ["", "{", "[]"])
def test_a_damaged_run_json_is_refused_by_name(run, tmp_path, contents):
    cut_off(run, tmp_path / "out", interrupt_at(2))
    (tmp_path / "out/run.json").write_text(contents)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        train(run, tmp_path / "out")


def contents(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_a_finished_run_says_so_and_does_nothing(run, unbroken):
    out, checkpoint = unbroken
    before = contents(out)
    said = remarks_of(run, out)
    assert said == [f"{out} is finished: {run.loop.tokens:,} tokens; nothing to do"]
    assert contents(out) == before
    assert train(run, out) == checkpoint


def test_a_finished_run_whose_checkpoints_are_gone_is_refused(run, tmp_path):
    train(run, tmp_path / "out")
    for checkpoint in RunFolder(tmp_path / "out").checkpoints():
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(CheckpointError):
        train(run, tmp_path / "out")


@pytest.mark.parametrize("at_its_end", [False, True])
def test_other_settings_are_refused_by_name_and_change_nothing(run, shards, tmp_path, at_its_end):
    out = tmp_path / "out"
    train(run, out) if at_its_end else cut_off(run, out, interrupt_at(4))
    before = contents(out)
    for changes, key in (
        ({"seed": 1}, r"seed=0 \(now 1\)"),
        ({"optim": {"weight_decay": 1e-4}}, "optim.weight_decay=1e-05"),
        ({"model": {"attention_dropout": 0.0}}, "model.attention_dropout=0.1"),
    ):
        with pytest.raises(ConfigError, match=key):
            train(tiny_recipe(shards, steps=STEPS, phases=PHASES, **changes), out)
    assert contents(out) == before


def test_other_data_is_refused_and_the_same_data_elsewhere_is_not(run, tmp_path, unbroken):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(4))
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        build_tiny_shards(tmp_path / name, seed=seed)
    with pytest.raises(ConfigError, match=r"other/shards is not the data that .*out began with"):
        train(tiny_recipe(tmp_path / "other/shards", steps=STEPS, phases=PHASES), out)
    assert same_weights(train(tiny_recipe(tmp_path / "same/shards", steps=STEPS, phases=PHASES), out), unbroken[1])


def test_going_on_is_said_and_another_number_of_threads_too(run, tmp_path, unbroken):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(4))
    said = remarks_of(run, out, num_threads=2)
    assert any(f"going on with {out} behind step 3" in remark for remark in said)
    assert any("this run had threads 1 and now has 2: losses will agree to rounding" in remark for remark in said)
    assert losses(out) == pytest.approx(losses(unbroken[0]), rel=1e-3)
    cut_off(run, tmp_path / "again", interrupt_at(4))
    assert not any("threads" in remark for remark in remarks_of(run, tmp_path / "again"))


def test_a_run_that_another_process_trains_is_refused(run, tmp_path):
    with (
        RunFolder.locked(tmp_path / "out"),
        pytest.raises(TrainingError, match="out is in use by another process; wait"),
    ):
        train(run, tmp_path / "out")
    cut_off(run, tmp_path / "out", interrupt_at(2))
    train(run, tmp_path / "out")


@pytest.fixture
def foreign(tmp_path):
    """A folder of somebody's own."""
    folder = tmp_path / "home"
    (folder / ".notes.backup2024").mkdir(parents=True)
    (folder / ".notes.backup2024" / "diary").write_text("dear diary")
    (folder / "thesis.txt").write_text("once")
    return folder


def test_a_folder_that_holds_something_else_is_refused(run, foreign):
    with pytest.raises(CheckpointError, match="is not empty and holds no run; choose another --out"):
        train(run, foreign)
    assert (foreign / "thesis.txt").read_text() == "once"


def test_a_refused_folder_loses_nothing(run, foreign):
    with pytest.raises(CheckpointError):
        train(run, foreign)
    assert (foreign / ".notes.backup2024" / "diary").read_text() == "dear diary"


def test_a_refused_folder_gains_nothing(run, foreign):
    with pytest.raises(CheckpointError):
        train(run, foreign)
    assert not (foreign / ".lock").exists()


def test_a_place_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=r"cannot be written \(.*\); free some space or choose another --out"):
            train(run, out)


# Real processes. A step takes some milliseconds here, so these runs are longer.

PROCESS_STEPS = 120


def process_recipe(shards, workers=0):
    loop = {"checkpoint_tokens": 25 * MICRO_BATCH_TOKENS, "eval_tokens": 40 * MICRO_BATCH_TOKENS}
    return recipe(shards, steps=PROCESS_STEPS, loop=loop, data={"workers": workers})


@pytest.fixture(scope="module")
def unbroken_process(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("process") / "out"
    return out, train(PretrainRun.parse(process_recipe(shards)), out)


def start(shards, folder, workers=0):
    """`modernbert pretrain`, as a person would start it."""
    (folder / "recipe.toml").write_text(tomli_w.dumps(process_recipe(shards, workers)))
    command = [sys.executable, "-m", "modernbert", "pretrain", "recipe.toml", "--out", "out", "--threads", "1"]
    command += ["--device", "cpu", "--json"]
    log = (folder / "log").open("a")
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def kill_when(process, happened):
    """SIGKILL as soon as something has happened. False where the process ended first."""
    while process.poll() is None:
        if happened():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def num_lines(out):
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def finish(shards, folder, workers=0):
    """The same command to its end; a killed run's workers take a moment to notice and let go of the lock."""
    for _ in range(5):
        if start(shards, folder, workers).wait(120) == 0:
            return
        assert "is in use by another process" in (folder / "log").read_text().splitlines()[-1]
        time.sleep(2)
    raise AssertionError((folder / "log").read_text())


def assert_as_unbroken(folder, unbroken):
    assert every_row(folder / "out") == every_row(unbroken[0])
    assert same_weights(folder / "out" / unbroken[1].name, unbroken[1])
    assert sorted(p.name for p in (folder / "out").glob("*-????????")) == sorted(
        p.name for p in unbroken[0].glob("*-????????")
    )
    assert [p.name for p in (folder / "out").iterdir() if p.name.startswith(".")] == [".lock"]


def test_a_killed_process_goes_on_bit_for_bit(shards, tmp_path, unbroken_process):
    assert kill_when(start(shards, tmp_path), lambda: num_lines(tmp_path / "out") >= 70)
    assert 70 <= num_lines(tmp_path / "out") < PROCESS_STEPS
    finish(shards, tmp_path)
    assert_as_unbroken(tmp_path, unbroken_process)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_killed_at_random_moments_goes_on_bit_for_bit(shards, tmp_path, unbroken_process, workers):
    draw = random.Random(workers)
    for kill_number in range(4):
        lines = num_lines(tmp_path / "out") + draw.randint(1, 40)
        process = start(shards, tmp_path, workers if kill_number % 2 == 0 else 0)
        kill_when(process, lambda lines=lines: num_lines(tmp_path / "out") >= lines)
    finish(shards, tmp_path, workers)
    assert_as_unbroken(tmp_path, unbroken_process)


@pytest.mark.slow
def test_a_process_killed_while_it_saves_goes_on_bit_for_bit(shards, tmp_path, unbroken_process):
    out, killed, draw = tmp_path / "out", 0, random.Random(0)
    for _ in range(5):
        saves = [0]
        nth, pause = draw.randint(1, 3), draw.uniform(0, 0.02)

        def saving(saves=saves, nth=nth, pause=pause, seen=set()):  # noqa: B006 - one set for each process
            found = {path.name for path in out.glob(".stable-*")} - seen if out.exists() else set()
            seen |= found
            saves[0] += len(found)
            if saves[0] >= nth:
                time.sleep(pause)
            return saves[0] >= nth

        killed += kill_when(start(shards, tmp_path), saving)
    assert killed >= 3
    finish(shards, tmp_path)
    assert_as_unbroken(tmp_path, unbroken_process)


@pytest.mark.slow
def test_a_run_stopped_by_the_keyboard_says_how_to_go_on(shards, tmp_path, unbroken_process):
    process = start(shards, tmp_path)
    while num_lines(tmp_path / "out") < 30:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    log = (tmp_path / "log").read_text()
    assert "stopped (SIGINT) behind " in log and "the same command goes on" in log and "Traceback" not in log
    finish(shards, tmp_path)
    assert_as_unbroken(tmp_path, unbroken_process)


@pytest.mark.slow
def test_a_killed_run_may_be_started_again_at_once(shards, tmp_path):
    assert kill_when(start(shards, tmp_path, workers=2), lambda: num_lines(tmp_path / "out") >= 30)
    with RunFolder.locked(tmp_path / "out"):
        pass


def test_the_real_measurement_of_the_peak_serves_too(run, tmp_path):
    with quick_peak():
        pretrain(run, tmp_path / "out", runtime())
    about = json.loads((tmp_path / "out/run.json").read_text())
    assert about["peak_flops"] > 1e6 and "measured" in about["peak_source"]
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")


def test_another_precision_or_torch_is_said_and_an_older_device_is_no_obstacle(run, tmp_path, unbroken):
    out = tmp_path / "out"
    cut_off(run, out, interrupt_at(7))
    newest = RunFolder(out).checkpoints()[-1]
    progress = newest / "state" / "progress.json"
    values = json.loads(progress.read_text())
    values["on"] |= {"precision": "bfloat16", "device": "cuda"}
    progress.write_text(json.dumps(values))
    said = " ".join(remarks_of(run, out))
    assert "this run had precision bfloat16 and now has float32" in said
    assert "this run had device cuda and now has cpu" in said
    assert losses(out) == losses(unbroken[0])


@pytest.mark.parametrize("contents", ["", "[]", "{}"])
def test_a_damaged_progress_file_is_refused_by_name(run, tmp_path, contents):
    cut_off(run, tmp_path / "out", interrupt_at(7))
    newest = RunFolder(tmp_path / "out").checkpoints()[-1]
    (newest / "state" / "progress.json").write_text(contents)
    with pytest.raises(CheckpointError, match=r"progress\.json .*delete its checkpoint"):
        train(run, tmp_path / "out")
