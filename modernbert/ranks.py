"""One process among the others of a run: which it is, what all of them agree on, and who is missing where one is.

    torchrun's environment → Ranks.joined() → gather, first, agreeing; ALONE is the same for one process, and does nothing

What moves tensors is PyTorch's own (DDP, FSDP2, DCP: `train.spread`, `train.state`). Here are small Python values: some
numbers of each step, an error, a decision. Price: 0.3 ms a `gather` of two ranks on one machine.

A collective that waits for a rank that died, or hangs, fails on all the others, at once or after
`compute.timeout_minutes`. Each of them says so in the launcher's store; whoever does not is to blame, and where it last
was is in that store, too.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from modernbert.errors import ConfigError, ModernBertError, TrainingError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    import torch.distributed.device_mesh

T = TypeVar("T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_SETUP = datetime.timedelta(hours=1)  # of downloads, of building a model, and of the slowest disk behind a save
_MEETING = datetime.timedelta(minutes=10)  # for the others to be started
_POLL_SECONDS = 0.02
# Those that wait fail at nearly the same time, but for one that was still computing. Who has not said so by then hangs.
_CONFESSION_SECONDS, _LAST_CONFESSION_SECONDS = 2.0, 15.0


def is_launched() -> bool:
    """Whether this process was started as one of several."""
    return all(name in os.environ for name in _LAUNCHED)


def speaks() -> bool:
    """Whether this process is the one that talks to the user."""
    return not is_launched() or os.environ["RANK"] == "0"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A process among those of a run. Every method is for all of them, in the same order; for one alone, free."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its host
    host: str = "localhost"
    hosts: tuple[str, ...] = ("localhost",)  # names, of each rank
    nodes: tuple[int, ...] = (0,)  # the launcher's numbers of these, which two hosts of one name have apart
    store: dist.Store | None = None
    steps: dist.ProcessGroup | None = None  # for what is agreed on
    tensors: dist.ProcessGroup | None = None  # for gradients and weights
    saves: dist.ProcessGroup | None = None  # for a save behind the run's back: a thread of its own

    @classmethod
    @contextlib.contextmanager
    def joined(cls, *, device: str = "auto") -> Iterator[Ranks]:
        """Meet the processes that were launched together with this one; alone where none were.

        Args:
            device: what they will compute on, as `Runtime.detect` takes it.

        Raises:
            TrainingError: not all of them came.
        """
        if not is_launched():
            yield ALONE
            return
        import torch
        import torch.distributed as dist

        on_cuda = device != "cpu" and torch.cuda.is_available()
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=_MEETING))
            store = _own_keys(store, rank, size)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=size, timeout=_SETUP
            )
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"rank {os.environ['RANK']} did not meet the other {int(os.environ['WORLD_SIZE']) - 1} at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({_first_line(error)}); look at that address, "
                "and whether all hosts were started; where it names 127.…, set GLOO_SOCKET_IFNAME to the network's interface"
            ) from error
        host = socket.gethostname()
        found: list[Any] = [None] * size
        dist.all_gather_object(found, (host, int(os.environ.get("GROUP_RANK", "0"))))
        hosts, nodes = zip(*found, strict=True)
        ranks = cls(
            rank=rank, size=size, local_rank=int(os.environ.get("LOCAL_RANK", "0")), host=host, hosts=hosts, nodes=nodes,
            store=store, steps=dist.new_group(backend="gloo", timeout=_SETUP),
            saves=dist.new_group(backend="gloo", timeout=_SETUP),
        )  # fmt: skip
        with ranks._telling():
            yield ranks
        dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this one is the first on its machine."""
        return self.local_rank == 0

    @property
    def node(self) -> int:
        """Which of the launched machines this is."""
        return self.nodes[self.rank]

    @property
    def num_nodes(self) -> int:
        """Machines that were launched."""
        return len(set(self.nodes))

    def impatient(self, minutes: float) -> Ranks:
        """The same ranks, which from now on wait so long for one another."""
        if self.steps is None:
            return self
        import torch.distributed as dist

        timeout = datetime.timedelta(minutes=minutes)
        return replace(
            self, steps=dist.new_group(backend="gloo", timeout=timeout), tensors=dist.new_group(timeout=timeout)
        )

    def gather(self, value: T) -> list[T]:
        """What each rank has, in their order, on all of them."""
        return self._gather(value, self.steps)

    def gather_saves(self, value: T) -> list[T]:
        """The same on the thread that saves."""
        return self._gather(value, self.saves)

    def _gather(self, value: T, group: dist.ProcessGroup | None) -> list[T]:
        if group is None:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=group)
        return found

    def first(self, value: T) -> T:
        """What the first rank has."""
        if self.steps is None:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.steps)
        return box[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """Have the first rank do something, and all of them its result, or its error."""
        result = None
        with self.agreeing():
            if self.is_first:
                result = work()
        return self.first(result)  # type: ignore[return-value]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks, to the bit the same on all of them."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """Refuse on all ranks what is refused on one. Nothing inside may wait for other ranks.

        Raises:
            ModernBertError: of the lowest rank that has one; it is the one to tell it.
        """
        mine: ModernBertError | None = None
        try:
            yield
        except ModernBertError as error:
            if self.steps is None:
                raise
            mine = error
        found = self.gather(mine)
        teller = next((rank for rank, error in enumerate(found) if error is not None), None)
        if teller is None:
            return
        told = found[teller]
        assert told is not None
        if any(str(other) != str(told) for other in found):  # no fault of the recipe, then, but of a place
            told = type(told)(f"{self._name(teller)}: {told}")
        told.said_elsewhere = teller != self.rank
        raise told from mine

    def need_same(self, **values: object) -> None:
        """Refuse ranks that were not started alike.

        Raises:
            ConfigError: one of the values is another than the first rank's.
        """
        theirs = self.first(values)
        with self.agreeing():
            for name, value in values.items():
                if value != theirs[name]:
                    raise ConfigError(
                        f"{name} is {value} on {self.host}, and {theirs[name]} on the first rank, {self.hosts[0]}; "
                        "start all ranks alike"
                    )

    def at(self, place: str) -> None:
        """Note where this rank is, for others to tell should it be missing: "step 41, reading data"."""
        if self.store is not None:
            note = {"at": place, "time": time.time(), "pid": os.getpid()}
            self.store.set(f"at/{self.rank}", json.dumps(note))

    def mesh(self, device_type: str) -> torch.distributed.device_mesh.DeviceMesh:
        """All ranks in a row, for FSDP2."""
        from torch.distributed.device_mesh import DeviceMesh

        assert self.tensors is not None
        return DeviceMesh.from_group(self.tensors, device_type)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Leave word of an error for the others, and turn what collectives make of a missing rank into one line.

        Raises:
            TrainingError: a rank is missing.
        """
        try:
            yield
        except ModernBertError as error:
            if not error.said_elsewhere:
                self._leave_word(str(error))
                with contextlib.suppress(RuntimeError):
                    error.said_elsewhere = not self._is_teller()
            raise
        except RuntimeError as error:
            if not _is_of_a_collective(error):
                self._leave_word(f"{type(error).__name__}: {_first_line(error)}")
                raise
            raise self._missing(error) from error
        except BaseException as error:
            self._leave_word(f"{type(error).__name__}: {_first_line(error)}")
            raise

    def _leave_word(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store may be what is gone
            assert self.store is not None
            self.store.set(f"word/{self.rank}", text)

    def _is_teller(self) -> bool:
        """Whether nobody has told yet why the run ends; who asks first does."""
        assert self.store is not None
        return self.store.add("told", 1) == 1

    def _missing(self, error: RuntimeError) -> TrainingError:
        """Whom this rank has been waiting for. Of all that wait, the first to ask tells it."""
        answers: list[tuple[str, bool]] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone, too
                answers.append(self._asked(error))

        # On a thread, as behind a link that is cut the store neither answers nor fails.
        asking = threading.Thread(target=ask, daemon=True)
        with _outliving_the_launcher():
            asking.start()
            asking.join(_LAST_CONFESSION_SECONDS + _CONFESSION_SECONDS)
        what, is_teller = answers[0] if answers else (f"{self._name(0)}, or its launcher, is gone", self.is_first_here)
        found = TrainingError(
            f"{what}; the same command goes on from the newest checkpoint, on as many ranks as there are"
        )
        found.said_elsewhere = not is_teller
        return found

    def _asked(self, error: RuntimeError) -> tuple[str, bool]:
        """Who is missing, by the store, and whether this rank is to tell it."""
        store = self.store
        assert store is not None
        store.set(f"waits/{self.rank}", "1")
        began_at, gone = time.monotonic(), list(range(self.size))
        while gone and (waited := time.monotonic() - began_at) < _LAST_CONFESSION_SECONDS:
            if waited > _CONFESSION_SECONDS and len(gone) == 1:
                break
            time.sleep(_POLL_SECONDS)
            gone = [rank for rank in gone if not store.check([f"waits/{rank}"])]
        lines = [self._whereabouts(rank) for rank in gone[:3]]
        if len(gone) > 3:
            lines.append(f"and {len(gone) - 3} more")
        if not gone:  # all wait: a link between two of them is broken
            lines = [f"ranks cannot reach each other any more ({_first_line(error)})"]
        return "; ".join(lines), self._is_teller()

    def _whereabouts(self, rank: int) -> str:
        assert self.store is not None
        if self.store.check([f"word/{rank}"]):
            return f"{self._name(rank)} stopped: {self.store.get(f'word/{rank}').decode()}"
        if not self.store.check([f"at/{rank}"]):
            return f"{self._name(rank)} does not answer, nor has it begun"
        note = json.loads(self.store.get(f"at/{rank}"))
        ago = time.time() - note["time"]
        return f"{self._name(rank)} (process {note['pid']}) does not answer, last heard of {ago:,.0f} s ago at {note['at']}"

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}"


def _own_keys(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The launcher's store, with keys that these processes alone have.

    torchrun keeps its store when it starts processes again, and they would read what those before them wrote: gloo the
    address of one that is gone. Its count of restarts does not tell them apart, as hosts count their own. So each brings
    a word that is new, and the first answers under that word with the name of the session.
    """
    import torch.distributed as dist

    word = secrets.token_hex(8)
    if rank:
        store.set(f"come/{rank}", word)
        session = store.get(f"answer/{word}").decode()  # waits for it
        store.set(f"here/{session}/{rank}", "1")
        return dist.PrefixStore(session, store)
    missing, until = list(range(1, size)), time.monotonic() + _SETUP.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"come/{other}"]):  # it may be an old one's: then the answer is read by nobody
                store.set(f"answer/{store.get(f'come/{other}').decode()}", word)
        missing = [other for other in missing if not store.check([f"here/{word}/{other}"])]
        if time.monotonic() > until:
            raise RuntimeError(f"rank {missing[0]} did not come")
        time.sleep(_POLL_SECONDS if missing else 0)
    return dist.PrefixStore(word, store)


@contextlib.contextmanager
def _outliving_the_launcher() -> Iterator[None]:
    """Finish a sentence first: torchrun sends SIGTERM to the others as soon as one of them is dead."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


ALONE = Ranks()
"""One process, joined with no other."""


def need_no_others(what: str) -> None:
    """Refuse to be launched several times.

    Raises:
        ConfigError: this process is one of several.
    """
    if is_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise ConfigError(
            f"{what} is work for one process, and {os.environ['WORLD_SIZE']} were launched; leave torchrun out"
        )


def leave(status: int, error: ModernBertError) -> NoReturn:
    """End this process. One of several does so at once: what waits for a rank that is gone would keep it for minutes."""
    if not is_launched():
        sys.exit(status)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)  # for torchrun's summary
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Whether it says that another rank is missing; gloo raises plain RuntimeErrors, NCCL and stores DistErrors."""
    import torch.distributed as dist

    text = str(error)
    words = (
        "Connection closed by peer",
        "Timed out waiting",
        "timed out",
        "Connection reset",
        "Connection refused",
        "gloo",
    )
    return isinstance(error, dist.DistError) or any(word in text for word in words)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
