"""torchrun's ranks die, hang, refuse and are cut off while they save: one line says why, and the run goes on from there.

Each test is a command line under torchrun, with one fault in it (`ranks_at_work`).
"""

import json
import os
import re
import signal
import socket
import time

import pytest
import ranks_at_work
from ranks_at_work import end, ranks_of, refusals, torchrun, wait_for
from test_many_ranks import ROUNDING, in_order, job, steps
from tiny_run import MICRO_BATCH_TOKENS, losses, rows, same_weights

from modernbert.train.checkpoint import RunFolder
from modernbert.train.log import read_metrics

pytestmark = pytest.mark.slow

HOST = re.escape(socket.gethostname())
GOES_ON = "the same command goes on from the newest checkpoint, on as many ranks as there are"
SAVES = 5  # at the start, at each quarter, and at the end


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    """The run of two ranks that met no fault, and that of one process."""
    folder = tmp_path_factory.mktemp("unbroken")
    ranks_at_work.launch([job(folder, "out", steps(shards))], 2)
    assert len(RunFolder(folder / "out").checkpoints()) == SAVES
    return folder / "out"


def every_row(out):
    return [
        (r["kind"], r["step"], r["tokens"], r["loss"], r["accuracy"]) for r in read_metrics(out)
        if r["kind"] in ("train", "eval")
    ]  # fmt: skip


def assert_as_unbroken(folder, unbroken):
    """To the bit; and every micro-batch that counts was the unbroken run's."""
    out = folder / "out"
    assert every_row(out) == every_row(unbroken)
    assert same_weights(RunFolder(out).newest(), RunFolder(unbroken).newest())
    expected = {line["number"]: line for line in in_order(ranks_at_work.batches_of(unbroken, 2))}
    for line in (line for rank in ranks_at_work.batches_of(out, 2) for line in rank):
        assert line == expected[line["number"]]
    assert [path.name for path in out.rglob(".*")] == [".lock"]


def seconds_from(happened, started):
    """Wait until something has happened, and then for the end: how long that took."""
    while not happened():
        assert started.poll() is None
        time.sleep(0.02)
    began_at = time.monotonic()
    wait_for(started)
    return time.monotonic() - began_at


# --- a rank that dies


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_takes_the_run_down_within_seconds_and_one_line_names_it(shards, tmp_path, unbroken, rank):
    started = torchrun(tmp_path, steps(shards), {"kill": [rank, "step 7, computing"]})
    out = tmp_path / "out"
    assert seconds_from(lambda: (out / "metrics.jsonl").exists() and len(rows(out)) >= 6, started) < 30
    assert started.returncode == 1  # torchrun's
    (line,) = refusals(tmp_path)
    assert re.fullmatch(
        rf"rank {rank} on {HOST} \(process \d+\) does not answer, last heard of \d+ s ago at step 7, computing; {GOES_ON}",
        line,
    )
    assert wait_for(torchrun(tmp_path, steps(shards))) == 0, (tmp_path / "log").read_text()
    assert_as_unbroken(tmp_path, unbroken)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_starts_a_run_again_and_it_is_the_unbroken_one(shards, tmp_path, unbroken, strategy):
    faults = {"kill": [1, "step 29, computing"]}
    assert wait_for(torchrun(tmp_path, steps(shards, strategy), faults, max_restarts=1)) == 0
    assert len(refusals(tmp_path)) == 1
    sessions = json.loads((tmp_path / "out" / "run.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 22]
    if strategy == "ddp":
        assert_as_unbroken(tmp_path, unbroken)
    assert losses(tmp_path / "out") == pytest.approx(losses(unbroken), abs=ROUNDING)


# --- a rank that hangs


def impatient(shards):
    values = steps(shards)
    values["compute"]["timeout_minutes"] = 0.1
    return values


def frozen(place):
    """The line that tells of a second rank that hangs."""
    return rf"rank 1 on {HOST} \(process \d+\) does not answer, last heard of \d+ s ago at {place}; {GOES_ON}"


def test_a_rank_that_hangs_is_named_and_taken_down_with_the_others(shards, tmp_path):
    began_at = time.monotonic()
    assert wait_for(torchrun(tmp_path, impatient(shards), {"freeze": [1, "step 7, computing"]})) == 1
    assert time.monotonic() - began_at < 110  # torchrun itself waits 30 s for what hangs, and then kills it
    (line,) = refusals(tmp_path)
    assert re.fullmatch(frozen("step 7, computing"), line)


@pytest.mark.parametrize(
    ("faults", "place"),
    [
        ({"freeze": [1, "evaluation behind step 22"]}, "evaluation behind step 22"),
        ({"cut_off": [1, 2, 2, "SIGSTOP"]}, r"(save behind step 22|step \d\d, .*)"),
        ({"cut_off": [1, SAVES, 2, "SIGSTOP"]}, r"save behind step 5\d"),
    ],
    ids=["evaluating", "within a save", "within the last save"],
)
def test_a_rank_that_hangs_is_named_wherever_it_hangs(shards, tmp_path, faults, place):
    started = torchrun(tmp_path, impatient(shards), faults)
    try:
        until = time.monotonic() + 60
        while not refusals(tmp_path) and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        end(started)  # without torchrun's 30 s
    (line,) = refusals(tmp_path)
    assert re.fullmatch(frozen(place), line)


# --- errors


def test_an_error_of_one_rank_is_told_once(shards, tmp_path):
    assert wait_for(torchrun(tmp_path, steps(shards), {"fail": [1, "step 7, computing"]})) == 1
    assert refusals(tmp_path) == ["shards/train-00000.bin cannot be read (Input/output error); copy it again"]


def test_a_crash_of_one_rank_shows_its_trace_and_one_line_names_it(shards, tmp_path):
    assert wait_for(torchrun(tmp_path, steps(shards), {"crash": [1, "step 7, computing"]})) == 1
    assert refusals(tmp_path) == [
        f"rank 1 on {socket.gethostname()} stopped: ZeroDivisionError: division by zero; {GOES_ON}"
    ]
    assert (tmp_path / "log").read_text().count("ZeroDivisionError: division by zero\n") == 1


def test_a_rank_that_does_not_see_the_runs_folder_is_named_once(shards, tmp_path):
    assert wait_for(torchrun(tmp_path, steps(shards), {"blind": 1})) == 1
    (line,) = refusals(tmp_path)
    assert re.match(rf"rank 1 on {HOST}: .*out is not the folder that the first rank, on {HOST}, sees ", line)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_step_that_is_no_number_stops_all_ranks_with_one_line(shards, tmp_path):
    assert wait_for(torchrun(tmp_path, steps(shards), {"poison": 10})) == 1
    (line,) = refusals(tmp_path)
    assert line.startswith("step 10: loss nan; ") and "documents: text #" in line and "guard.on_nan=skip" in line
    assert len(re.findall(r"exitcode +: 2 ", (tmp_path / "log").read_text())) == 2, "of both ranks"


@pytest.mark.parametrize("target", ["torchrun", "a rank"])
def test_a_run_that_is_asked_to_stop_says_so_once_and_goes_on_as_if_it_had_not(shards, tmp_path, unbroken, target):
    started, out = torchrun(tmp_path, steps(shards)), tmp_path / "out"
    while not (out / "metrics.jsonl").exists() or len(rows(out)) < 9:
        assert started.poll() is None
        time.sleep(0.02)
    if target == "torchrun":
        os.kill(started.pid, signal.SIGTERM)
    else:
        os.kill(ranks_of(started)[-1], signal.SIGUSR1)
    wait_for(started)
    (line,) = refusals(tmp_path)
    stopped_behind = RunFolder(out).newest()
    assert re.fullmatch(rf"stopped \(SIG\w+\) behind {stopped_behind}; the same command goes on from there", line)
    assert json.loads((out / "run.json").read_text())["status"] == "unfinished"
    assert wait_for(torchrun(tmp_path, steps(shards))) == 0
    assert_as_unbroken(tmp_path, unbroken)


# --- a save that is cut off


@pytest.mark.parametrize(
    ("rank", "save", "events"), [(0, 2, 1), (0, 2, 6), (0, 2, 15), (0, SAVES, 8), (1, 2, 1), (1, 2, 3), (1, SAVES, 2)]
)
def test_a_save_that_one_rank_cuts_off_never_was(shards, tmp_path, unbroken, rank, save, events):
    assert wait_for(torchrun(tmp_path, steps(shards), {"cut_off": [rank, save, events]})) == 1
    (line,) = refusals(tmp_path)
    assert re.match(rf"rank {rank} on {HOST} \(process \d+\) does not answer, last heard of ", line)
    before = RunFolder(tmp_path / "out").newest().name
    left = sorted(path.name for path in (tmp_path / "out").glob(".*.unfinished-*"))
    assert wait_for(torchrun(tmp_path, steps(shards))) == 0, (tmp_path / "log").read_text()
    said = re.findall(
        r"(\S+): its save was cut off, so it does not count and was cleared away", (tmp_path / "log").read_text()
    )
    assert said == [name.partition(".unfinished-")[0][1:] for name in left] and before not in said
    assert_as_unbroken(tmp_path, unbroken)


# --- another number of ranks


def test_a_run_goes_over_two_one_and_four_ranks_to_its_end(shards, tmp_path, unbroken):
    at_work = [(2, "ddp", 18), (1, "ddp", 36), (4, "fsdp", None)]
    for num_ranks, strategy, stop in at_work:
        ranks_at_work.launch(
            [job(tmp_path, "out", steps(shards, strategy), **({"stop": stop} if stop else {}))], num_ranks
        )
    assert losses(tmp_path / "out") == pytest.approx(losses(unbroken), abs=ROUNDING)
    found, expected = (ranks_at_work.batches_of(out, 4) for out in (tmp_path / "out", unbroken))
    assert in_order(found) == in_order(expected)
    assert len(in_order(found)) > 100 and rows(tmp_path / "out")[0]["step_tokens"] <= MICRO_BATCH_TOKENS
