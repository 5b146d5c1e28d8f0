"""Saving behind the run's back: copies, the writer, which checkpoints stay, and the wish to stop."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import CheckpointError
from modernbert.model import hub
from modernbert.train.saving import (
    BackgroundSaver,
    Kept,
    StopRequest,
    free_space_problem,
    remove_checkpoint,
    snapshot,
    to_delete,
)

# --- the writer


def nothing(_path, _seconds):
    pass


@pytest.fixture
def saver():
    saver = BackgroundSaver()
    yield saver
    saver.close()


def test_a_write_goes_on_beside_the_caller_and_is_told_of_in_the_callers_thread(saver):
    go, told = threading.Event(), []

    def write():
        assert go.wait(10)
        return Path("stable-00000001")

    saver.submit(write, lambda path, seconds: told.append((path, seconds, threading.current_thread())))
    saver.check()
    assert told == [], "not done yet"
    go.set()
    saver.wait()
    ((path, seconds, thread),) = told
    assert path == Path("stable-00000001") and 0 < seconds < 10 and thread is threading.current_thread()
    saver.check()
    saver.close()
    assert len(told) == 1, "told of twice"


def test_writes_never_overlap_and_the_wait_for_the_one_before_counts_as_stall(saver):
    events = []

    def write(number):
        events.append(f"begin {number}")
        time.sleep(0.05)
        events.append(f"end {number}")
        return Path(str(number))

    for number in range(3):
        saver.submit(lambda number=number: write(number), lambda path, _: events.append(f"told {path}"))
    saver.wait()
    assert events == [f"{what} {number}" for number in range(3) for what in ("begin", "end", "told")]
    assert 0.08 < saver.stall_seconds < 5


@pytest.mark.parametrize("how", ["check", "wait", "close", "submit"])
def test_the_error_of_a_write_is_raised_in_the_callers_thread_once(saver, how):
    def write():
        raise CheckpointError("no space left")

    told = []
    saver.submit(write, lambda *_: told.append(1))
    saver._current.thread.join()
    with pytest.raises(CheckpointError, match="no space left"):
        saver.submit(write, nothing) if how == "submit" else getattr(saver, how)()
    assert told == []
    saver.check()
    saver.submit(lambda: Path("next"), nothing)  # and it can be used again


def test_an_interpreter_that_ends_in_an_error_waits_for_the_write_and_for_nothing_else(tmp_path):
    source = f"""
import time
from pathlib import Path
from modernbert.train.saving import BackgroundSaver
saver = BackgroundSaver()
saver.submit(lambda: Path("first"), lambda *_: None)
saver.wait()
def write():
    time.sleep(0.3)
    return Path({str(tmp_path)!r}, "written").write_text("whole") and Path("second")
saver.submit(write, lambda *_: None)
raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=100, check=False)
    assert done.returncode != 0 and b"KeyboardInterrupt" in done.stderr
    assert (tmp_path / "written").read_text() == "whole"


# --- copies


def test_a_snapshot_is_the_same_and_does_not_change_with_the_run():
    weight = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    state = {"weights": {"w": weight, "half": torch.ones(3, dtype=torch.bfloat16)}, "optimizer": optimizer.state_dict(),
             "list": [torch.arange(3), (torch.zeros(2), "text", 5, None)]}  # fmt: skip
    copied = snapshot(state)
    before = weight.detach().clone()
    average = optimizer.state[weight]["exp_avg"].clone()
    with torch.no_grad():
        weight += 1
        optimizer.state[weight]["exp_avg"] += 1
        state["list"][0] += 1
        state["list"][1][0].fill_(7)
    assert torch.equal(copied["weights"]["w"], before) and not copied["weights"]["w"].requires_grad
    assert torch.equal(copied["optimizer"]["state"][0]["exp_avg"], average)
    assert copied["weights"]["half"].dtype == torch.bfloat16
    assert copied["list"][0].tolist() == [0, 1, 2] and copied["list"][1][0].tolist() == [0, 0]
    assert copied["list"][1][1:] == ("text", 5, None)
    optimizer.load_state_dict(copied["optimizer"])


def test_a_snapshot_of_a_view_holds_the_view_alone_and_one_tensor_stays_one():
    whole = torch.zeros(1000, 1000)
    copied = snapshot({"a": whole[0], "b": [whole], "c": whole})
    assert copied["a"].untyped_storage().nbytes() == 4000
    assert copied["b"][0] is copied["c"]


def test_a_snapshot_does_not_hand_out_the_run_s_own_lists():
    groups = [{"lr": 1.0, "betas": [0.9, 0.98]}]
    copied = snapshot({"param_groups": groups})
    groups[0]["lr"], groups[0]["betas"][0] = 2.0, 0.0
    assert copied == {"param_groups": [{"lr": 1.0, "betas": [0.9, 0.98]}]}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_snapshot_from_cuda_is_complete_and_pinned():
    weight = torch.randn(4096, 4096, device="cuda")
    expected = weight.cpu()
    copied = snapshot({"w": weight})
    weight.zero_()
    assert copied["w"].is_pinned() and torch.equal(copied["w"], expected)


# --- the disk


@pytest.mark.parametrize(
    ("free", "needed", "problem"), [(100, 100, False), (99, 100, True), (0, 1, True), (5, 0, False)]
)
def test_a_disk_without_room_is_told_of(tmp_path, monkeypatch, free, needed, problem):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free * 10**9) if path == tmp_path else None)
    found = free_space_problem(tmp_path / "not" / "there yet", needed * 10**9)
    assert (found is not None) == problem
    if found:
        assert f"{free:.1f} {'GB' if free else 'MB'} of disk left" in found and "choose another --out" in found


def test_a_removed_checkpoint_is_gone_and_removing_it_again_is_no_error(tmp_path):
    folder = tmp_path / "stable-00000001"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "optimizer.pt").write_text("x")
    remove_checkpoint(folder)
    assert list(tmp_path.iterdir()) == []
    remove_checkpoint(folder)


def test_a_removal_that_is_cut_off_leaves_no_folder_of_that_name_and_is_cleared_away(tmp_path, monkeypatch):
    def save():
        (tmp_path / "stable-00000001").mkdir()
        (tmp_path / "stable-00000001" / "model.safetensors").write_text("x")

    save()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_args, **_kwargs: None)  # killed before it deletes anything
        remove_checkpoint(tmp_path / "stable-00000001")
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
    save()
    remove_checkpoint(tmp_path / "stable-00000001")  # does not stumble over what is left
    assert list(tmp_path.iterdir()) == []

    save()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_args, **_kwargs: None)
        remove_checkpoint(tmp_path / "stable-00000001")
    hub.clear_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_removed_is_told_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    (tmp_path / "stable-00000001").mkdir()
    with pytest.raises(CheckpointError, match=r"stable-00000001 cannot be removed \(Permission denied\)"):
        remove_checkpoint(tmp_path / "stable-00000001")


# --- which checkpoints stay


def kept(text):
    """Of "0 1 t 2e" three are regular, one is by the clock, and the last is the end of a phase."""
    found = []
    for place, word in enumerate(text.split()):
        number = None if word.startswith("t") else int(word.rstrip("e"))
        found.append(Kept(f"{place}:{word}", number, word.endswith("e")))
    return found


@pytest.mark.parametrize(
    ("checkpoints", "keep_every", "keep_last", "gone"),
    [
        ("0", 0, 1, ""),
        ("", 0, 1, ""),
        ("0 1 2 3", 1, 1, ""),  # all regular ones
        ("0 1 2 3", 0, 1, "1 2"),  # the first and the last
        ("0 1 2 3", 0, 2, "1"),
        ("0 1 2 3 4 5", 2, 1, "1 3"),
        ("0 1 2 3 4 5", 3, 2, "1 2"),
        ("0 1 t 2 t t 3", 1, 1, "t t t"),  # those by the clock go
        ("0 1 2 t", 1, 1, ""),  # but the last stays, whatever it is
        ("0 1 2 t", 1, 2, ""),
        ("0 1 2e 3 4", 0, 1, "1 3"),  # the end of a phase stays
        ("0 te 1 2", 0, 1, "1"),
        ("t 1 2", 0, 1, "1"),  # the first of all stays
        ("0 1 2", 0, 9, ""),
    ],
)  # fmt: skip
def test_checkpoints_go_by_the_policy(checkpoints, keep_every, keep_last, gone):
    deleted = to_delete(kept(checkpoints), keep_every, keep_last)
    assert [name.partition(":")[2] for name in deleted] == gone.split()


runs = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40).map(
    lambda flags: [
        Kept(str(place), sum(r for r, _ in flags[:place]) if regular else None, end)
        for place, (regular, end) in enumerate(flags)
    ]
)


@given(checkpoints=runs, keep_every=st.integers(0, 6), keep_last=st.integers(1, 6))
def test_the_policy_keeps_what_it_promises(checkpoints, keep_every, keep_last):
    gone = set(to_delete(checkpoints, keep_every, keep_last))
    stays = [c for c in checkpoints if c.name not in gone]
    assert checkpoints[:1] == stays[:1]
    assert checkpoints[-keep_last:] == stays[-keep_last:] or len(checkpoints) < keep_last
    for checkpoint in checkpoints:
        regular = checkpoint.number is not None and keep_every and checkpoint.number % keep_every == 0
        promised = checkpoint.is_phase_end or regular or checkpoint in (checkpoints[0], *checkpoints[-keep_last:])
        assert promised == (checkpoint.name not in gone)


@given(checkpoints=runs, keep_every=st.integers(0, 6), keep_last=st.integers(1, 6))
def test_deleting_after_every_save_keeps_the_same_as_deleting_once_at_the_end(checkpoints, keep_every, keep_last):
    there = []
    for checkpoint in checkpoints:
        there.append(checkpoint)
        gone = set(to_delete(there, keep_every, keep_last))
        there = [c for c in there if c.name not in gone]
    gone = set(to_delete(checkpoints, keep_every, keep_last))
    assert there == [c for c in checkpoints if c.name not in gone]
    assert to_delete(there, keep_every, keep_last) == []


# --- the wish to stop


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_reason_to_stop_and_handlers_are_given_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.reason == number.name, "the first is the reason"
    assert signal.getsignal(number) == before


def test_handlers_are_given_back_behind_an_error_too():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="oops"), StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ValueError("oops")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("minutes", "saves", "runs_until"),
    [
        (None, [50], None),
        (10, [], 600 - 30),  # 5 %
        (60, [], 3600 - 60),  # at most a minute
        (10, [5], 600 - 30),
        (10, [100, 20], 600 - 200),  # twice the longest save
        (1, [90], 0),
    ],
)
def test_the_time_limit_leaves_room_for_a_save(minutes, saves, runs_until):
    clock = Clock()
    with StopRequest(minutes, clock=clock) as stop:
        for seconds in saves:
            stop.note_save(seconds)
        if runs_until is None:
            clock.now = 1e9
            assert stop.reason is None
            return
        clock.now = runs_until - 0.01
        assert stop.reason is None or runs_until == 0
        clock.now = runs_until
        assert stop.reason == "time limit"


def test_in_another_thread_there_is_the_time_limit_only():
    clock, found = Clock(), []

    def work():
        before = signal.getsignal(signal.SIGTERM)
        with StopRequest(1, clock=clock) as stop:
            assert signal.getsignal(signal.SIGTERM) == before
            clock.now = 60
            found.append(stop.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["time limit"]


def end_of(source):
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout.split()


THREE_SIGNALS = """
import os, signal
from modernbert.train.saving import StopRequest
class Clock:
    now = 0.0
    def __call__(self): return self.now
clock = Clock()
with StopRequest(clock=clock) as stop:
    for clock.now in (0.0, 0.1, 5.0):
        os.kill(os.getpid(), signal.SIGTERM)
        print(clock.now, stop.reason, flush=True)
"""


def test_a_second_sigterm_ends_the_process_at_once_but_one_that_arrives_twice_does_not():
    """GNU timeout signals its child, and then the group that the child is in."""
    assert end_of(THREE_SIGNALS) == (-signal.SIGTERM, ["0.0", "SIGTERM", "0.1", "SIGTERM"])


WORKERS = """
import os, signal, subprocess, time
import torch
from torch.utils.data import DataLoader, Dataset
from modernbert.train.saving import StopRequest
os.setsid()
class Numbers(Dataset):
    def __len__(self): return 10**6
    def __getitem__(self, index): return torch.tensor(index)
def everybody(number): subprocess.run(["kill", f"-{number}", "--", f"-{os.getpid()}"], start_new_session=True)
with StopRequest() as stop:
    loader = iter(DataLoader(Numbers(), batch_size=None, num_workers=2))
    total = sum(int(next(loader)) for _ in range(10))
    everybody("USR1"), everybody("TERM")
    time.sleep(0.3)
    total += sum(int(next(loader)) for _ in range(40))
    print(stop.reason, total)
    for worker in loader._workers: worker.terminate(), worker.join(5)
    print(*[worker.exitcode for worker in loader._workers], flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells parents from others with sigwaitinfo")
def test_data_workers_outlive_a_signal_to_the_whole_job_and_end_by_their_parent():
    assert end_of(WORKERS) == (0, ["SIGUSR1", str(sum(range(50))), "0", "0"])
