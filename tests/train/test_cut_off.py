"""A save that is cut off, at whatever stage, never was: the checkpoint before it counts, and one line says so.

The save is a real run's, in a fork of this process. It ends, without any clean-up, before its n-th file event (opening,
making, renaming, removing), for every n; and in the middle of every file, where the system stops it from writing.
"""

import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import pytest
import safetensors.torch
import torch
from ranks_at_work import count_events
from tiny_run import Interrupted, interrupt_at, optimizer_of, recipe, rows, same_weights, train

from modernbert.train.checkpoint import RunFolder
from modernbert.train.loop import Hooks
from modernbert.train.recipe import PretrainRun

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and asks /proc where folders are")

BEFORE, AFTER, REMOVED = "stable-00000006", "stable-00000009", "stable-00000003"
CUT_OFF = 9


@pytest.fixture(scope="module")
def run(shards):
    """The third save removes the checkpoint of the first."""
    return PretrainRun.parse(recipe(shards, loop={"keep_every": 0, "keep_last": 2}))


@pytest.fixture(scope="module")
def interrupted(run, tmp_path_factory):
    """A run behind its sixth step, whose next save will be at the ninth."""
    out = tmp_path_factory.mktemp("cut") / "out"
    with pytest.raises(Interrupted):
        train(run, out, interrupt_at(7))
    assert [path.name for path in RunFolder(out).checkpoints()] == ["stable-00000000", REMOVED, BEFORE]
    return out


@pytest.fixture(scope="module")
def whole(run, interrupted, tmp_path_factory):
    """The same, gone on to behind the ninth step, with its checkpoint."""
    out = shutil.copytree(interrupted, tmp_path_factory.mktemp("whole") / "out")
    with pytest.raises(Interrupted):
        train(run, out, Hooks(on_checkpoint=_is_enough))
    return out


def _is_enough(*_checkpoint):
    raise Interrupted("the save goes on to its end, and no step beside it")


def save_in_a_fork(run, out, happens, prepare=lambda: None):
    """Go on with a run to behind its next save, `happens` told of each of its file events; returns how the fork ended."""
    child = os.fork()
    if not child:
        try:
            prepare()
            prepare_save = RunFolder.prepare_save

            def prepared(self, *about, **more):
                count_events(self.path, happens)
                return prepare_save(self, *about, **more)

            RunFolder.prepare_save = prepared
            train(run, out, Hooks(on_checkpoint=_is_enough))
        except Interrupted:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the fork must not go on with pytest's work
            traceback.print_exc()
        os._exit(1)
    return os.waitpid(child, 0)[1]


def files_of(checkpoint):
    return {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*")}


def assert_goes_on(run, out, whole):
    """The newest checkpoint is whole; what is left over is said, once, and cleared away. Returns what was said of it."""
    newest = RunFolder(out).newest()
    assert newest.name in (BEFORE, AFTER)
    assert same_weights(newest, whole / newest.name)
    for checkpoint in out.glob("stable-*[1-9]"):  # what is being removed has lost its name before it loses a file
        assert files_of(checkpoint) == files_of(whole / AFTER), checkpoint
    (found, groups), (expected, expected_groups) = optimizer_of(newest), optimizer_of(whole / newest.name)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert groups == expected_groups
    said = []
    with pytest.raises(Interrupted):
        train(run, out, Hooks(on_checkpoint=_is_enough, on_remark=said.append))  # on from it, to the save behind it
    behind = RunFolder(out).newest()
    assert behind.name == AFTER if newest.name == BEFORE else behind.name > AFTER
    if newest.name == BEFORE:
        assert same_weights(behind, whole / AFTER)
        assert [row["loss"] for row in rows(out)[:9]] == [row["loss"] for row in rows(whole)[:9]]
    hidden = [path.name for path in out.rglob(".*")]
    assert hidden == [".lock"], hidden
    said = [remark for remark in said if "cut off" in remark]
    if newest.name == AFTER:
        assert said == []
    return newest.name, said


SAID = f"{AFTER}: its save was cut off, so it does not count and was cleared away"


def named(out, event, paths):
    """An event without what differs from run to run."""
    return (event, *(re.sub(r"(unfinished-)[0-9a-f]{8}", r"\1TOKEN", os.path.relpath(path, out)) for path in paths))


@pytest.fixture(scope="module")
def stages(run, interrupted, tmp_path_factory):
    """Every file event of a whole save and what is cleared away behind it, with its how-manieth of that name."""
    folder = tmp_path_factory.mktemp("stages")
    out = shutil.copytree(interrupted, folder / "out")

    def happens(_count, event, paths, _values):
        with (folder / "events").open("a") as file:
            file.write(json.dumps(named(out, event, paths)) + "\n")

    assert save_in_a_fork(run, out, happens) == 0
    seen = [tuple(json.loads(line)) for line in (folder / "events").read_text().splitlines()]
    return [(event, seen[: place + 1].count(event)) for place, event in enumerate(seen)]


def cut_before(run, interrupted, out, stage):
    """A save cut off before this event; False where it came to its end without it."""
    shutil.copytree(interrupted, out)
    seen = []

    def happens(_count, event, paths, _values):
        seen.append(named(out, event, paths))
        if (seen[-1], seen.count(seen[-1])) == stage:
            os._exit(CUT_OFF)

    status = os.waitstatus_to_exitcode(save_in_a_fork(run, out, happens))
    assert status in (0, CUT_OFF)
    return status == CUT_OFF


def assert_no_stage_counts_but_the_last(run, interrupted, whole, folder, stages, chosen):
    """Before the folder has its name nothing of it counts, and it is told; from then on all of it does."""
    took_its_name = stages.index((("os.rename", f".{AFTER}.unfinished-TOKEN", AFTER), 1))
    for place in chosen:
        stage = stages[place]
        if not cut_before(run, interrupted, folder / str(place), stage):
            assert stage[0][0] == "os.mkdir", f"{stage} is not met every time"  # two threads make the same folder
            continue
        was_left = any((folder / str(place)).glob(f".{AFTER}.*"))
        assert was_left == (0 < place <= took_its_name) or stage[0][0] == "os.mkdir", stage
        newest, said = assert_goes_on(run, folder / str(place), whole)
        assert newest == (BEFORE if place <= took_its_name else AFTER), stage
        if newest == BEFORE:
            assert said == ([SAID] if was_left else []), stage
        shutil.rmtree(folder / str(place))


def test_the_save_of_these_tests_writes_every_file_and_removes_an_old_checkpoint(stages, whole):
    names = [" ".join(event) for event, _ in stages]
    written = {path.name for path in (whole / AFTER).rglob("*") if path.is_file()}
    assert {
        "model.safetensors",
        "config.json",
        "run.json",
        "tokenizer.json",
        "progress.json",
        "optimizer.json",
    } < written
    for name in written:
        assert any(event.startswith("open") and event.endswith(name) for event in names), name
    assert f"os.rename {REMOVED} .{REMOVED}.unfinished-removed" in names and len(stages) > 40


def test_a_save_cut_off_at_any_stage_never_was(run, interrupted, whole, tmp_path, stages):
    took_its_name = stages.index((("os.rename", f".{AFTER}.unfinished-TOKEN", AFTER), 1))
    removes = next(place for place, (event, _) in enumerate(stages) if event[0] == "os.remove")
    chosen = {0, 1, *range(4, took_its_name, 6), took_its_name, took_its_name + 1, removes}
    assert_no_stage_counts_but_the_last(run, interrupted, whole, tmp_path, stages, sorted(chosen))


@pytest.mark.slow
def test_a_save_cut_off_before_every_one_of_its_file_events_never_was(run, interrupted, whole, tmp_path, stages):
    assert_no_stage_counts_but_the_last(run, interrupted, whole, tmp_path, stages, range(len(stages)))


FILES = ("config.json", "run.json", "tokenizer.json", "tokenizer_config.json", "state/optimizer.json",
         "state/progress.json", "state/shard-00001-model-00001-of-00001.safetensors")  # fmt: skip


def assert_is_torn(out, whole, name):
    torn = [path for path in out.rglob(f"*{Path(name).name}*") if f".{AFTER}.unfinished-" in str(path)]
    assert [path.stat().st_size for path in torn] == [(whole / AFTER / name).stat().st_size // 2]


@pytest.mark.parametrize("name", FILES)
def test_a_save_cut_off_in_the_middle_of_a_file_never_was(run, interrupted, whole, tmp_path, name):
    out = shutil.copytree(interrupted, tmp_path / "out")
    half = (whole / AFTER / name).stat().st_size // 2

    def happens(_count, event, paths, values):
        is_written = event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR)
        if is_written and AFTER in paths[0] and Path(paths[0]).name in (Path(name).name, f".{name}.new"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    def die_of_it():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would make an error of it, and clear away
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    status = os.waitstatus_to_exitcode(save_in_a_fork(run, out, happens, die_of_it))
    assert status == -signal.SIGXFSZ
    assert_is_torn(out, whole, name)
    assert assert_goes_on(run, out, whole) == (BEFORE, [SAID])


def test_a_save_cut_off_in_the_middle_of_the_weights_never_was(run, interrupted, whole, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")

    def write_half(tensors, path, metadata=None):  # safetensors writes past Python, so that no limit stops it midway
        content = safetensors.torch.save(tensors, metadata)
        Path(path).write_bytes(content[: len(content) // 2])
        os._exit(CUT_OFF)

    def die_of_it():
        safetensors.torch.save_file = write_half

    status = os.waitstatus_to_exitcode(save_in_a_fork(run, out, lambda *_event: None, die_of_it))
    assert status == CUT_OFF
    assert_is_torn(out, whole, "model.safetensors")
    assert assert_goes_on(run, out, whole) == (BEFORE, [SAID])
