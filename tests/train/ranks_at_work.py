"""What each rank does in a test: some runs, one after the other, every batch that it was handed noted in a file.

`at_work(jobs, ranks)` is one rank; `launch` starts several, forked from one process that has imported all. As a script,
under torchrun, it is the command line with a fault in it:

    python -m torch.distributed.run … ranks_at_work.py '{"kill": [1, "step 7, computing"]}' pretrain RECIPE --out RUN

Faults, each by rank where there is one:
    stop    step: the first rank is sent SIGTERM behind it
    poison  batch: the embedding of its first document is NaN
    kill, freeze, fail, crash   [rank, place]: SIGKILL, SIGSTOP, an error of ours, an error of nobody's
    cut_off [rank, save, events, signal]: this signal before so many-th file event from this save on
    blind   rank: it does not find the run's folder
They befall the first of several starts only.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import tomli_w
import torch
from tiny_run import no_peak

from modernbert.data.loader import MlmBatches
from modernbert.errors import DataError, ModernBertError
from modernbert.model.encoder import Embeddings
from modernbert.pretraining import pretrain
from modernbert.ranks import ALONE, Ranks
from modernbert.runtime import Runtime
from modernbert.train import checkpoint, loop
from modernbert.train.checkpoint import RunFolder
from modernbert.train.loop import Hooks
from modernbert.train.recipe import PretrainRun

_SECONDS = 120  # after which ranks are given up


# --- what is noted, and what goes wrong


@contextlib.contextmanager
def noting(path, poison=None):
    """Write a line for each micro-batch that this rank is handed: its number, its documents' places, its tokens."""
    whole, poisoned = MlmBatches.share, []

    def share(self, state=None, **where):
        for batch, behind in whole(self, state, **where):
            if batch is not None:
                tokens = hashlib.sha256(batch.input_ids_T.numpy().tobytes() + batch.labels_T.numpy().tobytes())
                line = {"number": behind.number, "positions": behind.positions.tolist(), "sha256": tokens.hexdigest()}
                if behind.number == poison:
                    poisoned.append(batch.input_ids_T[: batch.lengths()[0]])
                    line["poisoned"] = self.describe(behind.positions[:1])[0]
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            yield batch, behind

    def forward(self, input_ids_T):
        hidden_TD = embed(self, input_ids_T)
        for ids in poisoned:
            if len(ids) <= len(input_ids_T):
                begins = (input_ids_T.unfold(0, len(ids), 1) == ids).all(1).nonzero().flatten().tolist()
                for begin in begins:
                    is_ill_T = torch.arange(len(input_ids_T)) - begin
                    is_ill_T = (is_ill_T >= 0) & (is_ill_T < len(ids))
                    hidden_TD = torch.where(is_ill_T[:, None], torch.nan, hidden_TD)
        return hidden_TD

    embed = Embeddings.forward
    with mock.patch.object(MlmBatches, "share", share), mock.patch.object(Embeddings, "forward", forward):
        yield


@contextlib.contextmanager
def going_wrong(faults):
    """Have this process meet its faults, unless it was started again."""
    with contextlib.ExitStack() as stack:
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            here = faults.keys() & {"kill", "freeze", "fail", "crash"}
            stack.enter_context(mock.patch.object(Ranks, "at", _faulty_at({name: faults[name] for name in here})))
            if faults.get("blind") == int(os.environ.get("RANK", "0")):
                stack.enter_context(mock.patch.object(checkpoint, "_is_locked_with", lambda *_: False))
            if faults.get("cut_off", [None])[0] == int(os.environ.get("RANK", "0")):
                stack.enter_context(_cut_off(*faults["cut_off"][1:]))
        yield


def _faulty_at(faults):
    whole = Ranks.at

    def at(self, place):
        whole(self, place)
        for name, (rank, where) in faults.items():
            if (self.rank, place) == (rank, where):
                if name == "fail":
                    raise DataError("shards/train-00000.bin cannot be read (Input/output error); copy it again")
                if name == "crash":
                    raise ZeroDivisionError("division by zero")
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}[name])

    return at


def _cut_off(save, num_events, signal_name="SIGKILL"):
    whole, saves = RunFolder.prepare_save, []

    def prepare_save(self, *about, **more):
        saves.append(1)
        if len(saves) == save:
            number = signal.Signals[signal_name]
            count_events(self.path, lambda count, *_what: count == num_events and os.kill(os.getpid(), number))
        return whole(self, *about, **more)

    return mock.patch.object(RunFolder, "prepare_save", prepare_save)


def count_events(folder, happens):
    """From now on, have every file event of Python's within a folder, in any thread, counted and told of before it happens."""
    count, lock, inside = [0], threading.Lock(), f"{folder}{os.sep}"

    def on_audit(event, values):
        if event == "open" or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"):
            named = values[: 2 if event == "os.rename" else 1]
            paths = [os.fsdecode(path) for path in named if isinstance(path, str | bytes | os.PathLike)]
            if event != "open" and isinstance(values[-1], int) and values[-1] >= 0:  # within an open folder
                paths = [os.path.join(os.readlink(f"/proc/self/fd/{values[-1]}"), path) for path in paths]
            if any(path.startswith(inside) for path in paths):
                with lock:
                    count[0] += 1
                    happens(count[0], event, paths, values)

    sys.addaudithook(on_audit)


# --- runs


def at_work(jobs, ranks=ALONE):
    """Do some runs with the others; what came of each is beside its folder, as NAME.rankR.json."""
    found = []
    for job in jobs:
        out, said = Path(job["out"]), []

        def on_row(row, job=job):
            if row["kind"] == "train" and row["step"] == job.get("stop"):
                os.kill(os.getpid(), signal.SIGTERM)

        with noting(noted(out, ranks.rank), job.get("poison")), no_peak(), mock.patch.object(loop, "draw_curve"):
            try:
                runtime = Runtime.detect(device="cpu", num_threads=1, ranks=ranks)
                hooks = Hooks(on_row=on_row, on_remark=said.append)
                newest = pretrain(PretrainRun.parse(job["recipe"]), out, runtime, hooks)
                came = {"checkpoint": newest.name}
            except ModernBertError as error:
                came = {"error": type(error).__name__, "text": str(error), "is_told": not error.said_elsewhere}
        found.append({**came, "remarks": said})
        out.with_name(f"{out.name}.rank{ranks.rank}.json").write_text(json.dumps(found[-1]))
    return found


def noted(out, rank):
    """Where a rank notes its batches."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(f"{out.name}.batches{rank}.jsonl")


def batches_of(out, num_ranks):
    """What each rank noted, line by line."""
    return [
        [json.loads(line) for line in noted(out, rank).read_text().splitlines()] if noted(out, rank).exists() else []
        for rank in range(num_ranks)
    ]


def _one_rank(rank, num_ranks, port, jobs):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    with Ranks.joined(device="cpu") as ranks:
        at_work(jobs, ranks)


def launch(jobs, num_ranks):
    """Have so many ranks do some jobs; returns for each job what each rank says of it."""
    start_from = multiprocessing.get_context("forkserver")
    start_from.set_forkserver_preload(
        ["modernbert.pretraining", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start_from.Process(target=_one_rank, args=(rank, num_ranks, port, jobs)) for rank in range(num_ranks)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(_SECONDS)
    for process in ranks:
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in ranks] == [0] * num_ranks
    outs = [Path(job["out"]) for job in jobs]
    return [
        [json.loads(out.with_name(f"{out.name}.rank{rank}.json").read_text()) for rank in range(num_ranks)]
        for out in outs
    ]


def torchrun(folder, values, faults=None, *, num_ranks=2, max_restarts=0):
    """Start the command line under torchrun, with faults; the run is `folder/out`, what is said `folder/log`."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(tomli_w.dumps(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(num_ranks), "--max-restarts", str(max_restarts), __file__]
    command += [json.dumps(faults or {}), "pretrain", "recipe.toml", "--out", str(folder / "out"), "--device", "cpu"]
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here.parent, here)))}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [*command, "--threads", "1", "--json"], cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip


def wait_for(started):
    """Its exit status; it and its ranks are killed when they take too long."""
    try:
        return started.wait(_SECONDS)
    finally:
        end(started)


def ranks_of(started):
    """Process numbers of a launcher's ranks."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text()
    return sorted(int(child) for child in children.split())


def end(started):
    """Kill a launcher and its ranks, which it gave sessions of their own, where they are still there."""
    if started.poll() is None:
        for process in (*ranks_of(started), started.pid):
            os.kill(process, signal.SIGKILL)
        started.wait()


def refusals(folder):
    """The lines by which the command says what is wrong."""
    lines = (folder / "log").read_text().splitlines()
    return [line.partition("modernbert: ")[2] for line in lines if line.startswith("modernbert: ")]


def main():
    from modernbert.__main__ import main as command

    faults, sys.argv = json.loads(sys.argv[1]), ["modernbert", *sys.argv[2:]]
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    with (
        noting(noted(out, int(os.environ["RANK"])), faults.get("poison")),
        going_wrong(faults),
        no_peak(),
        mock.patch.object(loop, "draw_curve"),
    ):
        command()


if __name__ == "__main__":
    main()
