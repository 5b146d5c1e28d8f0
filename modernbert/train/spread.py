"""A task → the same task over all ranks of a run, through DDP or FSDP2; for one process, as it is.

- `ddp`: every rank has all weights and averages gradients with the others.
- `fsdp`: every rank has its part of weights, gradients and optimizer, and fetches a layer's weights as it is computed.

Both average gradients over ranks; `TaskOutput` has sums, so a loss is multiplied by the ranks and divided by all targets
of the step. Weights are float32 and autocast chooses the products' precision, here as in one process.
Price: `ddp` sends each gradient once a step, `fsdp` each weight twice and each gradient once, a pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from modernbert.batch import PackedBatch, idle_batch
from modernbert.model import hub
from modernbert.ranks import ALONE, Ranks
from modernbert.tasks.base import EncoderModel, TaskOutput

Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A task and how all ranks compute it."""

    task: EncoderModel  # of this rank; under FSDP2 its parameters are DTensors
    forward: Callable[[PackedBatch], TaskOutput]  # what takes a training step's batches
    ranks: Ranks = ALONE
    is_sharded: bool = False

    @property
    def strategy(self) -> str:
        """`ddp`, `fsdp`, or `none` where there is nothing to share."""
        return "fsdp" if self.is_sharded else "none" if self.ranks.size == 1 else "ddp"

    @contextlib.contextmanager
    def pass_of_step(self, *, is_last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients are exchanged behind the last one only."""
        if self.is_sharded:
            self.task.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            yield
        elif isinstance(self.forward, nn.parallel.DistributedDataParallel) and not is_last:
            with self.forward.no_sync():
                yield
        else:
            yield

    def gradient_norm(self) -> float:
        """Of all gradients together."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.task.parameters() if p.grad is not None])
        return whole(norm).item()

    def has_finite_weights(self) -> bool:
        """Whether all weights, everywhere, are finite numbers."""
        if self.is_sharded:
            self.task.reshard()  # type: ignore[operator]  # behind an evaluation what is not of a layer is still whole
        mine = (local(p) for p in self.task.parameters())
        return all(self.ranks.gather(all(bool(p.isfinite().all()) for p in mine)))

    def weights(self) -> dict[str, Tensor]:
        """All weights, on the first rank; nothing on the others. Where they are sharded, copies in the CPU's memory."""
        found = {}
        for name, tensor in self.task.state_dict().items():
            together = whole(tensor)  # all ranks take part
            if self.ranks.is_first:
                # Of a single rank it is the weight itself, which the next step changes.
                found[name] = together.to("cpu", copy=True) if self.is_sharded else together
        return found

    def unsharded(self) -> EncoderModel:
        """The task with whole weights and gradients: itself, or a copy where it is sharded."""
        if not self.is_sharded:
            return self.task
        kind: type[EncoderModel] = type(self.task).__mro__[2]  # FSDP2 puts two classes before it
        dropout: Any = self.task.encoder.layers[0].attn.out_dropout  # type: ignore[union-attr]
        copied = hub.on_meta(lambda: kind(self.task.config, self.task.tokenizer, out_dropout=dropout))
        copied.load_state_dict({n: whole(t) for n, t in self.task.state_dict().items()}, assign=True)
        for theirs, ours in zip(self.task.parameters(), copied.parameters(), strict=True):
            ours.requires_grad_(theirs.requires_grad)
            ours.grad = None if theirs.grad is None else whole(theirs.grad)
        copied.train(self.task.training)
        copied.encoder.reproducible = self.task.encoder.reproducible
        copied.encoder.checkpoint_layers = self.task.encoder.checkpoint_layers
        return copied


def alone(task: EncoderModel) -> Spread:
    """A task of one process."""
    return Spread(task=task, forward=task)


def spread(task: EncoderModel, strategy: Strategy, ranks: Ranks) -> Spread:
    """Have all ranks compute a task together; each brings the same weights.

    Args:
        task: on its device. Under FSDP2 it is changed in place.
        strategy: `ddp` or `fsdp`.
        ranks: that take part. Of one that was not launched with others the task stays as it is.
    """
    if ranks.steps is None:
        return alone(task)
    if strategy == "ddp":
        if ranks.size == 1:
            return Spread(task=task, forward=task, ranks=ranks)
        wrapped = nn.parallel.DistributedDataParallel(
            task, process_group=ranks.tensors, init_sync=False, gradient_as_bucket_view=True
        )
        _settle(wrapped, task.device)
        return Spread(task=task, forward=wrapped, ranks=ranks)
    from torch.distributed.fsdp import fully_shard

    mesh = ranks.mesh(task.device.type)
    for layer in task.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(task, mesh=mesh)
    if TaskOutput not in _pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(TaskOutput)  # or FSDP2 does not see the loss in it
    task.encoder.reproducible = True
    return Spread(task=task, forward=task, ranks=ranks, is_sharded=True)


def _settle(wrapped: nn.parallel.DistributedDataParallel, device: torch.device) -> None:
    """Have DDP lay out its buckets as they will stay.

    It does so anew behind its first backward pass, and with three ranks or more the rounding of a sum depends on its place
    in a bucket: a run that goes on would differ from an unbroken one in its first step.
    """
    wrapped(idle_batch().to(device)).loss_sum.backward()
    wrapped.zero_grad(set_to_none=True)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, by all ranks; any other as it is."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a sharded tensor; any other as it is."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _is_sharded(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor  # a second to import

    return isinstance(tensor, DTensor)
