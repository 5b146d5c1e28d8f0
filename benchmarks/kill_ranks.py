"""A pretraining command of one process or of several ranks: how it is started, and how its processes are killed.

    Command(…).start() → Running; wait until it is where one wants it → `kill` one rank, or all there is

Several ranks are torchrun and its children, of which each has its number in its environment: so there is no asking the
run itself, and nothing in it that is made for this. Needs Linux's /proc, and pgrep.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_SECONDS = 120.0  # in which torchrun must have taken the other ranks down; it gives a rank 30 s to end


def launched(words: Iterable[str], ranks: int) -> list[str]:
    """A Python command line, such as `-m modernbert …`, for one process or for so many ranks of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, *words]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A pretraining command, given again and again."""

    words: tuple[str, ...] = ("-m", "modernbert", "pretrain")  # or a script's, which takes what these take
    recipe: Path
    out: Path
    threads: int  # of each rank
    ranks: int = 1
    strategy: str = "ddp"

    def start(self) -> Running:
        """Start it; what it says goes beside its folder."""
        words = [*self.words, str(self.recipe), f"compute.strategy={self.strategy}"]
        words += ["--out", str(self.out), "--threads", str(self.threads), "--device", "cpu"]
        path, before = self.out.with_suffix(".log"), sessions_of(self.out)
        with path.open("ab") as log:
            says_from = log.tell()
            process = subprocess.Popen(launched(words, self.ranks), stdout=log, stderr=log)
        return Running(process=process, ranks=self.ranks, out=self.out, sessions_before=before, says_from=says_from)

    def finish(self) -> None:
        """Run to the end."""
        running = self.start()
        try:
            status = running.process.wait()
        finally:
            running.kill_all()
        if status != 0:
            raise RuntimeError(running.says()[-2000:])


@dataclass(frozen=True, kw_only=True)
class Running:
    """A command under way."""

    process: subprocess.Popen[bytes]  # of several ranks, torchrun
    ranks: int
    out: Path
    sessions_before: int
    says_from: int  # where in the log

    def is_under_way(self) -> bool:
        """Whether it trains, or has trained: its ranks have met and read the checkpoint that it goes on from."""
        return sessions_of(self.out) > self.sessions_before

    def says(self) -> str:
        """What it has printed by now."""
        return self.out.with_suffix(".log").read_bytes()[self.says_from :].decode(errors="replace")

    def pids(self) -> dict[int, int]:
        """Rank → process, of those that live."""
        if self.ranks == 1:
            return {0: self.process.pid}
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        found = {}
        for pid in map(int, children.stdout.split()):
            with contextlib.suppress(OSError):  # gone meanwhile
                values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found |= {int(value[5:]): pid for value in values if value.startswith(b"RANK=")}
        return found

    def kill_all(self) -> None:
        """SIGKILL to all its processes: first to torchrun, which must not learn of it."""
        pids = set() if self.process.poll() is not None else {self.process.pid, *self.pids().values()}
        for pid in sorted(pids, key=lambda pid: pid != self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def kill_rank(self, rank: int) -> dict[str, Any]:
        """SIGKILL to one rank, and wait for the end of all.

        Returns:
            `end_seconds` until torchrun had ended, what was `told`, and whether that is the one line that names this rank.

        Raises:
            RuntimeError: the others go on for END_SECONDS. They are killed.
        """
        pid = self.pids()[rank]
        os.kill(pid, signal.SIGKILL)
        killed_at = time.perf_counter()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.kill_all()
            raise RuntimeError(f"{END_SECONDS:.0f} s behind the kill of rank {rank}: {self.says()[-2000:]}") from error
        told = [line for line in self.says().splitlines() if line.startswith("modernbert: ")]
        return {"end_seconds": time.perf_counter() - killed_at, "told": told,
                "named": len(told) == 1 and f"rank {rank} on " in told[0] and f"(process {pid})" in told[0]}  # fmt: skip


def sessions_of(run: Path) -> int:
    """How many processes, or sets of ranks, have begun to train in a run's folder."""
    try:
        return len(json.loads((run / "run.json").read_text())["sessions"])
    except FileNotFoundError:
        return 0
