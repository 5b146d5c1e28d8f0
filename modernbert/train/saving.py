"""Checkpoints behind a run's back: copies, one writer, which folders stay, and when to stop.

    snapshot → BackgroundSaver.submit(write, then) → a thread writes while steps go on → `then` at the next check

A step waits for the copy alone; and for the write before, should that not be done. Price: memory for one copy of
weights and optimizer (12 bytes a weight) while it is being written.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from modernbert.disk import sync
from modernbert.errors import CheckpointError
from modernbert.model.hub import hidden_for_removal


@dataclass
class _Write:
    """A write under way."""

    thread: threading.Thread
    then: Callable[[Path, float], None]
    path: Path | None = None
    seconds: float = 0.0
    error: BaseException | None = None


class BackgroundSaver:
    """Runs one write at a time on a thread that the interpreter waits for. All calls are for one thread, the run's."""

    def __init__(self) -> None:
        self._current: _Write | None = None
        self.stall_seconds = 0.0  # that callers waited for a write before theirs

    def submit(self, write: Callable[[], Path], then: Callable[[Path, float], None]) -> None:
        """Start a write, once the one before is done.

        Args:
            write: must touch nothing that the run still changes (`snapshot`); returns what it wrote.
            then: is called with that and the seconds it took, by the next `check`, `wait` or `close`: in the
                caller's thread, so that it may write to logs.

        Raises:
            BaseException: what the write before raised; this one is not started then.
        """
        began_at = time.perf_counter()
        self.wait()
        self.stall_seconds += time.perf_counter() - began_at

        def work() -> None:
            started_at = time.perf_counter()
            try:
                current.path = write()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                current.error = error
            current.seconds = time.perf_counter() - started_at

        # A thread for each write: none idles, so an interpreter that ends in an error is not kept from ending. Not a
        # daemon: it does wait for a write that is under way.
        current = _Write(threading.Thread(target=work, name="checkpoint", daemon=False), then)
        self._current = current
        current.thread.start()

    def check(self) -> None:
        """Finish what is written by now.

        Raises:
            BaseException: what the write raised.
        """
        if self._current is not None and not self._current.thread.is_alive():
            self.wait()

    @property
    def is_writing(self) -> bool:
        """Whether a write is under way."""
        return self._current is not None and self._current.thread.is_alive()

    def wait(self) -> None:
        """Finish what is under way; raises as `check`."""
        if self._current is None:
            return
        self._current.thread.join()
        done, self._current = self._current, None
        if done.error is not None:
            raise done.error
        assert done.path is not None
        done.then(done.path, done.seconds)

    close = wait

    def abandon(self, seconds: float) -> None:
        """Wait no longer than that for what is under way, and forget it: it may hang with the rank that is missing."""
        if self._current is not None:
            self._current.thread.join(seconds)
            self._current = None


def snapshot(state: Any) -> Any:
    """A copy of nested dicts, lists and tuples whose tensors are in the CPU's memory, pinned where they come from CUDA.

    Tensors that are one object stay one. The copy is complete when this returns.
    """
    copies: dict[int, Tensor] = {}
    from_cuda: set[torch.device] = set()

    def copied(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            source = tensor.detach()
            if source.is_cuda:
                from_cuda.add(source.device)
                target = torch.empty_like(source, device="cpu", pin_memory=True)
                copies[id(tensor)] = target.copy_(source, non_blocking=True)
            else:
                copies[id(tensor)] = source.to("cpu", copy=True)
        return copies[id(tensor)]

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return copied(value)
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [walk(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return copy.deepcopy(value)

    result = walk(state)
    for device in from_cuda:
        torch.cuda.synchronize(device)
    return result


def free_space_problem(folder: Path, bytes_needed: int) -> str | None:
    """What to tell a user whose disk has no room for a checkpoint; None if it has."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= bytes_needed:
        return None
    return (
        f"{folder} has {_gigabytes(free)} of disk left, and a checkpoint takes {_gigabytes(bytes_needed)}; "
        "free some space or choose another --out"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


class Kept(NamedTuple):
    """A checkpoint as the keep policy sees it."""

    name: str
    number: int | None  # which of the regular ones, by tokens; None where a clock or a signal asked for it
    is_phase_end: bool


def to_delete(checkpoints: Sequence[Kept], keep_every: int, keep_last: int) -> list[str]:
    """Names of the checkpoints that need not stay.

    Args:
        checkpoints: of a run, oldest first. The first of all, phase ends, every so many-th regular one and the last
            ones stay.
        keep_every: regular ones whose number is a multiple of it stay for ever; 0 for none.
        keep_last: how many of the latest stay, of whatever kind; at least 1.
    """
    assert keep_last >= 1 and keep_every >= 0

    def stays_for_ever(checkpoint: Kept) -> bool:
        is_regular = checkpoint.number is not None and keep_every > 0
        return checkpoint.is_phase_end or (is_regular and checkpoint.number % keep_every == 0)  # type: ignore[operator]

    return [checkpoint.name for checkpoint in checkpoints[1:-keep_last] if not stays_for_ever(checkpoint)]


def remove_checkpoint(path: Path) -> None:
    """Delete a folder; one that is gone already is no error.

    It loses its name first, on the disk too: whenever this is cut off, a folder of that name is whole, and what is left
    is cleared away with unfinished saves (`hub.clear_unfinished`).

    Raises:
        CheckpointError: it cannot be renamed.
    """
    hidden = hidden_for_removal(path)
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        os.rename(path, hidden)
        sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{path} cannot be removed ({error.strerror or error}); remove it by hand") from error
    shutil.rmtree(hidden, ignore_errors=True)


# What schedulers send (the second some minutes ahead), Ctrl-C, and a terminal that is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# GNU timeout signals its child and then the child's whole group, and torchrun passes on what a terminal has sent to all:
# two within a second are one.
_SAME_SIGNAL_SECONDS = 1.0
_MARGIN_SHARE, _MARGIN_MAX_SECONDS = 0.05, 60.0


class StopRequest:
    """Whether a run was asked to stop: by a signal (`_SIGNALS`) or a time limit.

    Used as `with StopRequest(minutes) as stop`. Signals only set `reason`, for the run to look at between steps; a
    second SIGTERM ends the process at once, a second Ctrl-C interrupts it. Data workers (forks) outlive these signals, as
    the run may need another batch, and end with it. In another than the main thread, which alone receives signals,
    there is the time limit only.

    Args:
        minutes: from now on; None for no limit. Of them is left, for the last save, twice the longest that was
            noted, and at least 5 % or a minute, whichever is less.
    """

    def __init__(self, minutes: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = None if minutes is None else 60 * minutes
        self._began_at = clock()
        self._margin = 0.0 if self._limit is None else min(_MARGIN_SHARE * self._limit, _MARGIN_MAX_SECONDS)
        self._signal: signal.Signals | None = None
        self._first_at: dict[int, float] = {}  # by signal
        self._before: dict[signal.Signals, Any] = {}

    @property
    def reason(self) -> str | None:
        """Why to stop: a signal's name, "time limit", or None for going on."""
        if self._signal is not None:
            return self._signal.name
        if self._limit is not None and self._clock() - self._began_at >= self._limit - self._margin:
            return "time limit"
        return None

    def note_save(self, seconds: float) -> None:
        """Tell how long a save took, from its first copy until all was on the disk."""
        self._margin = max(self._margin, 2 * seconds)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
            _listening.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            with suppress(TypeError):  # None: a handler that was not installed from Python
                signal.signal(number, handler)
        self._before = {}
        _listening.discard(self)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = self._clock()
        first = self._first_at.setdefault(number, now)
        if now - first > _SAME_SIGNAL_SECONDS and number == signal.SIGINT:
            raise KeyboardInterrupt
        if now - first > _SAME_SIGNAL_SECONDS and number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._signal = self._signal or signal.Signals(number)


_listening: set[StopRequest] = set()


def _outlive_signals() -> None:
    """In a forked child: take SIGTERM from the parent only.

    `timeout` and Slurm signal every process of a job. PyTorch's data workers would end, and the run with them
    ("DataLoader worker exited unexpectedly") before it has saved anything.
    """
    if not _listening or not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def obey_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=obey_parent, daemon=True).start()


os.register_at_fork(after_in_child=_outlive_signals)
