"""Trackers: what they get, and that none of them can stop or slow a run, whatever it does."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
import types

import pytest

from modernbert.train import trackers
from modernbert.train.trackers import Trackers, numbers

ROW = {"kind": "train", "step": 3, "phase": "stable", "tokens": 300, "loss": 2.5, "lr": 1e-3}
REST = "metrics.jsonl has everything"


def rows(count, **changes):
    return [{**ROW, "step": step, "tokens": 100 * step, **changes} for step in range(1, count + 1)]


class FakeRun:
    """What `wandb.init` and `trackio.init` give."""

    def __init__(self):
        self.logged, self.finished, self.config, self.metrics = [], False, self, {}

    def update(self, values, allow_val_change=False):
        assert allow_val_change, "another `timestamp` would be refused"
        self.recipe = values

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, values, step=None):
        self.logged.append(values if step is None else {**values, "step": step})

    def finish(self):
        self.finished = True


class FakeWriter(FakeRun):
    """torch.utils.tensorboard's SummaryWriter."""

    def __init__(self, folder, purge_step=None):
        super().__init__()
        self.folder, self.purge_step = folder, purge_step
        FakeWriter.last = self

    def add_text(self, name, text, step):
        self.recipe = text

    def add_scalar(self, name, number, step):
        self.logged.append((name, number, step))

    close = FakeRun.finish


@pytest.fixture
def install(monkeypatch):
    """Put a fake package where a tracker imports it; `init` is what opening a run does."""

    def install(name, init=None):
        run, asked = FakeRun(), {}

        def open_run(*_args, **options):
            asked.update(options)
            return run if init is None else init(run)

        if name == "tensorboard":
            package = types.ModuleType("torch.utils.tensorboard")
            package.SummaryWriter = FakeWriter if init is None else lambda *_args, **_options: init(run)
            monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
        else:
            package = types.ModuleType(name)
            package.init, package.login = open_run, lambda prompt: True
            package.Settings = lambda **settings: settings
            monkeypatch.setitem(sys.modules, name, package)
        return run, asked

    return install


@pytest.fixture
def start(tmp_path):
    """Start trackers; what they tell goes to `said`."""
    said = []

    def start(*names, ids=None, about=None):
        about = {"recipe": {"seed": 1}} if about is None else about
        return Trackers.start(names, tmp_path / "my run", about, ids or {}, said.append)

    start.said = said
    return start


# --- what they get


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW, {"stable/train/loss": 2.5, "stable/train/lr": 1e-3}),
        (
            {**ROW, "kind": "eval", "lr": None, "by_source": {"wiki": {"loss": 1.0, "targets": 7}}},
            {"stable/eval/loss": 2.5, "stable/eval/by_source/wiki/loss": 1.0, "stable/eval/by_source/wiki/targets": 7},
        ),
        (
            {**ROW, "kind": "eval", "phase": "extend", "by_position": [{"from": 0, "to": 512, "loss": 3.0}], "lr": None},
            {"extend/eval/loss": 2.5, "extend/eval/by_position/0-512/loss": 3.0},
        ),
        ({**ROW, "kind": "save", "checkpoint": "stable-00000003", "stall_seconds": 0.5},
         {"stable/save/stall_seconds": 0.5, "stable/save/loss": 2.5, "stable/save/lr": 1e-3}),
        ({**ROW, "loss": math.nan, "lr": math.inf, "flag": True}, {}),
    ],
)  # fmt: skip
def test_finite_numbers_of_a_row_go_under_their_names_by_phase_and_kind(row, expected):
    assert numbers(row) == expected


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_row_in_order_with_tokens_and_step(install, start, name):
    run, asked = install(name)
    tracking = start(name)
    for row in [*rows(5), {**ROW, "kind": "event", "text": "resumed"}]:
        tracking.row(row)
    tracking.close()
    assert run.logged == [
        {"stable/train/loss": 2.5, "stable/train/lr": 1e-3, "tokens": 100 * step, "step": step} for step in range(1, 6)
    ]
    assert run.finished and start.said == []
    assert {"seed": 1} in (asked.get("config"), getattr(run, "recipe", None)) and asked["resume"] == "allow"
    if name == "wandb":
        assert run.metrics == {"tokens": None, "step": None, "*": "tokens"}


def test_tensorboard_gets_numbers_over_tokens_in_the_run_s_folder(install, start, tmp_path):
    install("tensorboard")
    tracking = start("tensorboard")
    for row in rows(5)[2:]:
        tracking.row(row)
    tracking.close()
    writer = FakeWriter.last
    assert writer.folder == str(tmp_path / "my run" / "tensorboard") and writer.finished and "seed" in writer.recipe
    assert writer.purge_step == 300, "what a killed session wrote from here on is dropped"
    losses = [(number, tokens) for name, number, tokens in writer.logged if name == "stable/train/loss"]
    steps = [(number, tokens) for name, number, tokens in writer.logged if name == "stable/step"]
    assert losses == [(2.5, 300), (2.5, 400), (2.5, 500)] and steps == [(3, 300), (4, 400), (5, 500)]


def test_a_run_that_goes_on_goes_on_in_the_same_tracker_run(install, start):
    asked = {name: install(name)[1] for name in ("wandb", "trackio")}
    first = start("wandb", "trackio")
    first.close()
    ids = json.loads(json.dumps(first.ids))
    names = asked["wandb"]["id"], asked["trackio"]["name"]
    assert names == (ids["wandb"], ids["trackio"]) and all(name.startswith("my-run-") for name in names)
    second = start("wandb", "trackio", ids=ids, about={"recipe": {"seed": 1, "timestamp": "later"}})
    second.close()
    assert (asked["wandb"]["id"], asked["trackio"]["name"]) == names and second.ids == ids and start.said == []
    assert start("trackio").ids["trackio"] != ids["trackio"], "two runs of one name"


def test_the_id_of_a_tracker_that_is_left_out_for_once_is_not_lost(install, start):
    install("trackio")
    assert start("trackio", ids={"wandb": "run-1", "trackio": "run-2"}).ids == {"wandb": "run-1", "trackio": "run-2"}


def test_no_trackers_no_threads(start):
    before = threading.active_count()
    tracking = start()
    tracking.row(ROW)
    tracking.close()
    assert threading.active_count() == before and tracking.ids == {} and start.said == []


# --- what they cannot do


def raising(run):
    raise ConnectionError("the server is\ngone")


def exiting(run):
    raise SystemExit(3)


def raising_later(run):
    def log(*_args, **_options):
        raise ConnectionError("the server is\ngone")

    run.log = run.add_text = log
    return run


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (raising, "ConnectionError: the server is gone"),
        (raising_later, "ConnectionError: the server is gone"),
        (exiting, "SystemExit: 3"),
    ],
)
def test_an_error_is_one_remark_and_the_tracker_is_off(install, start, name, fault, says):
    install(name, fault)
    tracking = start(name)
    for row in rows(50):
        tracking.row(row)
        time.sleep(0.001)
    tracking.close()
    assert start.said == [f"{name} is off: {says}; {REST}"]


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_one_remark_with_the_remedy(start, monkeypatch, name):
    package = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    tracking = start(name)
    assert start.said == [f"{name} is off: package {package} is missing (pip install 'modernbert[{name}]'); {REST}"]
    tracking.row(ROW)
    tracking.close()
    assert len(start.said) == 1


@pytest.fixture
def release():
    """Set at the end of a test, so that what hangs does not hang for ever."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("where", ["opening", "logging", "finishing"])
def test_a_tracker_that_hangs_does_not_hold_the_run(install, start, monkeypatch, release, where):
    monkeypatch.setattr(trackers, "_OPEN_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "_WAITING_ROWS", 100)

    def hang(*_args, **_options):
        release.wait(60)

    def init(run):
        if where == "opening":
            hang()
        setattr(run, {"opening": "log", "logging": "log", "finishing": "finish"}[where], hang)
        return run

    install("wandb", init)
    fine, _ = install("trackio")
    began_at = time.perf_counter()
    tracking = start("wandb", "trackio")
    for row in rows(150):
        tracking.row(row)
        while where == "finishing" and tracking._trackers[0]._queue.qsize() > 50:
            time.sleep(0.001)  # a run is slower than this loop
        while tracking._trackers[1]._queue.qsize() > 50:
            time.sleep(0.001)
    tracking.close(timeout=0.2)
    assert time.perf_counter() - began_at < 10
    says = {
        "finishing": "did not finish within 0.2 s, so its last rows may be missing",
    }.get(where, "does not answer (100 rows are waiting), so it is off")
    assert start.said == [f"wandb {says}; {REST}"]
    assert len(fine.logged) == 150 and fine.finished, "the other tracker"


def test_a_hanging_tracker_does_not_keep_the_interpreter_from_ending(tmp_path):
    source = f"""
import sys, time, types
from pathlib import Path
from modernbert.train import trackers
package = types.ModuleType("trackio")
package.init = lambda **_options: time.sleep(3600)
sys.modules["trackio"] = package
trackers._OPEN_SECONDS = 0.1
tracking = trackers.Trackers.start(["trackio"], Path({str(tmp_path)!r}), {{}}, {{}}, print)
tracking.close(0.1)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert "did not finish within 0.1 s" in done.stdout


def test_nobody_is_asked_for_a_password(install, start, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    install("wandb")
    sys.modules["wandb"].login = lambda prompt: prompt
    start("wandb").close()
    assert start.said == [
        f"wandb is off: PermissionError: nobody is logged in; run `wandb login`, or set WANDB_MODE=offline; {REST}"
    ]


def test_what_trackio_prints_does_not_go_among_the_results(install, start, capsys):
    install("trackio")
    package = sys.modules["trackio"]
    whole = package.init
    exec("def say(text): print(text)", vars(package))
    package.init = lambda **options: package.say("* Created new run") or whole(**options)
    start("trackio").close()
    assert capsys.readouterr().out == "" and start.said == []


# --- the real ones, where they are installed


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_a_run_that_was_killed_and_went_on(start, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = start("tensorboard")
    for row in rows(10, loss=5.0):
        first.row(row)
    first.close(30)
    second = start("tensorboard")
    for row in rows(12, loss=1.0)[6:]:  # its checkpoint was that of step 6
        second.row(row)
    second.close(30)
    assert start.said == []
    found = EventAccumulator(str(tmp_path / "my run" / "tensorboard"))
    found.Reload()
    curve = [(event.step, event.value) for event in found.Scalars("stable/train/loss")]
    assert curve == [(100 * step, 5.0 if step <= 6 else 1.0) for step in range(1, 13)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_tracker_takes_a_run_that_goes_on_with_another_recipe(tmp_path, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    source = f"""
from pathlib import Path
from modernbert.train.trackers import Trackers
ids = {{}}
for session in range(2):
    about = {{"recipe": {{"timestamp": session}}}}
    tracking = Trackers.start([{name!r}], Path({str(tmp_path)!r}, "run"), about, ids, print)
    tracking.row({{"kind": "train", "step": session, "phase": "stable", "tokens": 100 * session, "loss": 1.0}})
    tracking.close(30)
    ids = tracking.ids
"""
    where = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=100, check=True, env=os.environ | where
    )
    assert done.stdout == ""
    assert any(path.suffix in (".wandb", ".db") for path in tmp_path.rglob("*"))
