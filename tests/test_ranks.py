"""One process among several: alone it costs nothing; together all agree, and one of them tells why not."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest

from modernbert.errors import CheckpointError, ConfigError, DataError, TrainingError
from modernbert.ranks import ALONE, Ranks, is_launched, need_no_others, speaks

_SECONDS = 60
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


def launched(rank, size, port):
    """What torchrun tells a process."""
    values = (rank, size, rank, "127.0.0.1", port)
    return {name: str(value) for name, value in zip(LAUNCHED, values, strict=True)}


# --- alone


def test_a_process_alone_has_what_it_has():
    with Ranks.joined() as ranks:
        assert ranks is ALONE and ranks.impatient(0.001) is ranks
    assert (ALONE.size, ALONE.rank, ALONE.num_nodes) == (1, 0, 1) and ALONE.is_first and ALONE.is_first_here
    value = object()
    assert ALONE.gather(value) == [value] and ALONE.first(value) is value and ALONE.on_first(lambda: value) is value
    assert ALONE.sums([0.1, 2.0]) == [0.1, 2.0]
    ALONE.at("step 1, reading data")


def test_a_process_alone_meets_its_own_errors_as_they_are():
    error = DataError("shards are gone")
    with pytest.raises(DataError) as met, ALONE.agreeing():
        raise error
    assert met.value is error and not error.said_elsewhere


def test_a_process_is_one_of_several_when_a_launcher_says_all_of_it(monkeypatch):
    assert not is_launched() and speaks()
    for name, value in launched(1, 2, 29500).items():
        assert not is_launched() or name == "LOCAL_RANK"
        monkeypatch.setenv(name, value)
    assert is_launched() and not speaks()
    monkeypatch.setenv("RANK", "0")
    assert speaks()


def test_work_for_one_process_is_refused_to_several(monkeypatch):
    need_no_others("a plan")
    for name, value in launched(1, 4, 29500).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="a plan is work for one process, and 4 were launched; leave torchrun out"):
        need_no_others("a plan")
    monkeypatch.setenv("WORLD_SIZE", "1")
    need_no_others("a plan")


# --- together


def _work(work, rank, size, port, told):
    os.environ |= launched(rank, size, port)
    try:
        with Ranks.joined(device="cpu") as ranks:
            found = work(ranks.impatient(0.05))
    except BaseException as error:  # noqa: BLE001 - told to the test
        found = (type(error).__name__, str(error), getattr(error, "said_elsewhere", None))
    told.put((rank, found))
    told.close()
    told.join_thread()
    os._exit(0)  # as `leave` does


def together(work, size=2, expected=None):
    """What some ranks, forked from a process that has imported all, make of the same work; None of one that is gone."""
    start_from = multiprocessing.get_context("forkserver")
    start_from.set_forkserver_preload(["modernbert.pretraining", "torch.distributed"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = start_from.Queue()
    processes = [start_from.Process(target=_work, args=(work, rank, size, port, told)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        found = dict(told.get(timeout=_SECONDS) for _ in range(size if expected is None else expected))
    finally:
        for process in processes:
            process.kill()  # a frozen one, too
            process.join()
    return [found.get(rank) for rank in range(size)]


def _share(ranks):
    hosts = (ranks.size, ranks.num_nodes, ranks.is_first, ranks.is_first_here)
    gathered = ranks.gather({"rank": ranks.rank})
    sums = ranks.sums([0.1 * (ranks.rank + 1), 1.0])
    return hosts, gathered, ranks.first(f"of {ranks.rank}"), ranks.on_first(lambda: f"done by {ranks.rank}"), sums


def test_what_each_rank_has_is_known_to_all_in_order():
    first, second, third = together(_share, size=3)
    assert first == ((3, 1, True, True), [{"rank": 0}, {"rank": 1}, {"rank": 2}], "of 0", "done by 0", first[-1])
    assert second[1:] == third[1:] == first[1:] and second[0] == third[0] == (3, 1, False, False)
    assert first[-1] == [0.1 + 0.2 + 0.1 * 3, 3.0]


def _one_refuses(ranks):
    with ranks.agreeing():
        if ranks.rank == 1:
            raise DataError("shards cannot be read; copy them again")
    return "went on"


def test_what_one_rank_refuses_all_refuse_and_that_one_tells_it():
    text = "shards cannot be read; copy them again"
    host = socket.gethostname()
    told = ("DataError", f"rank 1 on {host}: {text}")
    assert together(_one_refuses, size=3) == [(*told, True), (*told, False), (*told, True)]


def _all_refuse(ranks):
    with ranks.agreeing():
        raise CheckpointError("the recipe is of another run")


def test_what_all_refuse_names_no_rank_and_is_told_by_the_first():
    told = ("CheckpointError", "the recipe is of another run")
    assert together(_all_refuse) == [(*told, False), (*told, True)]


def _first_fails(ranks):
    def work():
        raise TrainingError("the disk is full")

    return ranks.on_first(work)


def test_an_error_of_the_first_ranks_work_is_everybodys():
    (kind, text, elsewhere), second = together(_first_fails)
    assert (kind, elsewhere) == ("TrainingError", False) and text.endswith("the disk is full")
    assert second == (kind, text, True)


def _second_fails(error):
    def work(ranks):
        ranks.at("step 3, computing")
        if ranks.rank == 1:
            raise error
        return ranks.gather(1)

    return work


def _second_refuses(ranks):
    return _second_fails(DataError("shards are gone; build them"))(ranks)


def _second_crashes(ranks):
    return _second_fails(ZeroDivisionError("division by zero"))(ranks)


def test_an_error_that_one_rank_tells_itself_is_not_told_by_those_that_wait_for_it():
    (kind, text, elsewhere), second = together(_second_refuses)
    assert second == ("DataError", "shards are gone; build them", False)
    assert (kind, elsewhere) == ("TrainingError", True) and "stopped: shards are gone; build them" in text


def test_a_crash_of_one_rank_is_told_by_one_of_those_that_wait_for_it():
    first, second, third = together(_second_crashes, size=3)
    assert second[:2] == ("ZeroDivisionError", "division by zero")
    assert first[:2] == third[:2] and sorted([first[2], third[2]]) == [False, True]
    assert first[1].startswith(f"rank 1 on {socket.gethostname()} stopped: ZeroDivisionError: division by zero; ")
    assert "\n" not in first[1] and first[1].endswith(
        "the same command goes on from the newest checkpoint, on as many ranks as there are"
    )


def _second_is_killed(ranks):
    ranks.at("step 41, computing")
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return ranks.gather(1)


def _second_hangs(ranks):
    ranks.at("step 41, computing")
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return ranks.gather(1)


@pytest.mark.parametrize("work", [_second_is_killed, pytest.param(_second_hangs, marks=pytest.mark.slow)])
def test_a_rank_that_is_gone_or_hangs_is_named_with_its_place(work):
    began_at = time.monotonic()
    first, _ = together(work, expected=1)
    kind, text, elsewhere = first
    assert (kind, elsewhere) == ("TrainingError", False) and time.monotonic() - began_at < 40
    assert text.startswith(f"rank 1 on {socket.gethostname()} (process ")
    assert " does not answer, last heard of " in text and " s ago at step 41, computing; " in text


def _is_told_to_end_meanwhile(ranks):
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()  # as torchrun does
    return ranks.gather(1)


def test_a_launcher_that_ends_the_others_meanwhile_does_not_keep_them_from_telling_why():
    first, _ = together(_is_told_to_end_meanwhile, expected=1)
    assert first[0] == "TrainingError" and "rank 1 on " in first[1]


def test_what_ranks_before_them_left_in_the_launchers_store_is_not_read():
    import torch.distributed as dist

    from modernbert.ranks import _own_keys

    kept = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    sessions = []
    for _ in range(2):
        found = {}

        def meet(rank, found=found):
            own = dist.TCPStore("127.0.0.1", kept.port, is_master=False, wait_for_workers=False)
            found[rank] = _own_keys(own, rank, 3)

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_SECONDS)
        assert sorted(found) == [0, 1, 2]
        assert not found[0].check(["word/1"]), "a key of the session before"
        found[1].set("word/1", json.dumps("stopped"))
        assert found[2].get("word/1") == b'"stopped"'
        sessions.append(found)
    assert sessions[0][0].get("word/1") == b'"stopped"'
