"""`modernbert pretrain` with a watch set inside each of its processes; started by ranks.py.

    python benchmarks/ranks_inside.py exchange RECIPE … --out RUN        and likewise under torchrun
    python benchmarks/ranks_inside.py saves RECIPE … --out RUN

The run is the command's own, from its first line to its last; the first rank writes what was seen to RUN.json.

- exchange: some steps exchange gradients and weights as ever, others go through the same copies and send nothing, in the
  order A B B A. DDP has a hook for it (PyTorch's own `noop_hook`), FSDP2 takes other collectives. The loss then means
  nothing, so the recipe's learning rate must be next to none.
- saves: every other save is waited for where it is made, as if it were written in the foreground.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from modernbert import pretraining
from modernbert.__main__ import main
from modernbert.ranks import Ranks, speaks
from modernbert.train.loop import Session
from modernbert.train.spread import Spread

IS_SILENT = (False, True, True, False)  # of the steps, again and again


class Gather(DefaultAllGather):
    """FSDP2's own, or, in a silent step, each rank's part in place of the others'."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """As FSDP2 calls it."""
        if not self.exchange.is_silent:
            return super().__call__(output_tensor, input_tensor, group, async_op)
        for rank, part in enumerate(output_tensor.view(group.size(), -1)):
            if rank != group.rank():  # its own is there already
                part.copy_(input_tensor.view(-1))
        return None


class Scatter(DefaultReduceScatter):
    """The same for gradients."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        """As FSDP2 calls it."""
        if not self.exchange.is_silent:
            return super().__call__(output_tensor, input_tensor, group, op, async_op)
        output_tensor.view(-1).copy_(input_tensor.view(group.size(), -1)[group.rank()])
        return None


class Exchange:
    """Has some steps send nothing, and notes the seconds of each."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.is_silent = IS_SILENT[0]
        self._agreeing = 0.0  # seconds of this step so far

    def patches(self) -> list[Any]:
        """What to change in the run."""
        return [
            mock.patch.object(pretraining, "spread", self._switched(pretraining.spread)),
            mock.patch.object(Session, "record", self._noting(Session.record)),
            mock.patch.object(Ranks, "gather", self._timed(Ranks.gather)),
        ]

    def _switched(self, spread: Callable[..., Spread]) -> Callable[..., Spread]:
        def switched(*args: Any) -> Spread:
            shared = spread(*args)
            if isinstance(shared.forward, torch.nn.parallel.DistributedDataParallel):
                group = shared.ranks.tensors
                shared.forward.register_comm_hook(
                    None, lambda _, bucket: (noop_hook if self.is_silent else allreduce_hook)(group, bucket)
                )
            for module in shared.task.modules():
                if isinstance(module, FSDPModule):
                    module.set_custom_all_gather(Gather(self))
                    module.set_custom_reduce_scatter(Scatter(self))
            return shared

        return switched

    def _noting(self, record: Callable[..., None]) -> Callable[..., None]:
        def noting(session: Session, row: dict[str, Any]) -> None:
            record(session, row)
            if row["kind"] == "train":
                self.found.append(
                    {"silent": self.is_silent, "seconds": row["step_seconds"], "agreeing_seconds": self._agreeing}
                )
                self.is_silent = IS_SILENT[len(self.found) % len(IS_SILENT)]
            self._agreeing = 0.0

        return noting

    def _timed(self, gather: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began_at = time.perf_counter()
            try:
                return gather(*args)
            finally:
                self._agreeing += time.perf_counter() - began_at

        return timed


class Saves:
    """Waits for every other save, and notes for how long the run stood still for each."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def patches(self) -> list[Any]:
        """What to change in the run."""
        return [mock.patch.object(Session, "_save", self._waiting(Session._save))]

    def _waiting(self, save: Callable[..., None]) -> Callable[..., None]:
        def waiting(session: Session, *args: Any, **named: Any) -> None:
            began_at, is_waited_for = time.perf_counter(), len(self.found) % 2 == 0
            save(session, *args, **named)
            if is_waited_for:
                session.saver.wait()
                session.runtime.ranks.gather(None)  # all of them, as all would
            seconds = time.perf_counter() - began_at
            self.found.append({"step": session.progress.step, "synchronous": is_waited_for, "stall_seconds": seconds})

        return waiting


if __name__ == "__main__":
    watch: Exchange | Saves = {"exchange": Exchange, "saves": Saves}[sys.argv[1]]()
    sys.argv[1] = "pretrain"
    for patch in watch.patches():
        patch.start()
    try:
        main()
    finally:
        if speaks():
            out = Path(sys.argv[sys.argv.index("--out") + 1])
            out.with_suffix(".json").write_text(json.dumps(watch.found))
