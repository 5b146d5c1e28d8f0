"""A step that went wrong → where: the first layer, the loudest gradient, the worst documents.

Price: the layer costs a step, with a look at what every module gives; the documents cost a forward pass of each
micro-batch. No weight, gradient, mode or random number of the run is changed.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modernbert.batch import IGNORE, PackedBatch
from modernbert.runtime import Runtime, evaluating
from modernbert.tasks.base import EncoderModel, TaskOutput

_LEAST_BIAS = 0.02  # biases begin at 0, and a gradient relative to nothing says nothing
_EXCERPT = 48  # characters


class Loud(NamedTuple):
    """A parameter and its gradient."""

    name: str
    norm: float  # of the gradient
    share: float  # of the weights' own norm


@dataclass(frozen=True, kw_only=True)
class DocumentLoss:
    """A document of a step."""

    micro_batch: int
    document: int  # in the micro-batch
    loss: float  # mean over its targets, in nats
    targets: int
    name: str  # what a person finds it by


def first_bad_layer(task: EncoderModel, batches: Sequence[PackedBatch], runtime: Runtime) -> str | None:
    """The first place of a step whose value is not finite, in the order of computation; None if there is none.

    "layers.3.mlp.Wo (output)", "(weight)" where the module's own weights are to blame, "(input)" where what lies
    between modules is (attention, the gate's product), or "layers.3.mlp.Wo.weight (gradient)" in the backward pass.

    Args:
        task: left as found: hooks, weights, gradients and random numbers.
        batches: the step's micro-batches, labelled.
        runtime: device and precision.
    """
    targets = sum(int((batch.labels_T != IGNORE).sum()) for batch in batches if batch.labels_T is not None)
    found: list[str] = []
    with _as_it_was(task, runtime), _watching(task, found), _uncompiled():
        for batch in batches:
            with runtime.autocast():
                loss_sum = task(batch.to(runtime.device)).loss_sum
            if not found and not _is_finite(loss_sum):
                found.append(_first_bad_weight(task) or "the loss")
            if not found:
                (loss_sum / max(1, targets)).backward()
            if found:
                return found[0]
    return None


def _first_bad_weight(task: EncoderModel) -> str | None:
    """The module of a weight that is not finite: the decoder's are used without a call of its own."""
    bad = (name for name, parameter in task.named_parameters() if not _is_finite(parameter))
    name = next(bad, None)
    return None if name is None else f"{_short(name).rpartition('.')[0]} (weight)"


@contextmanager
def _watching(task: EncoderModel, found: list[str]) -> Iterator[None]:
    """Have the places of values that are not finite added to `found` as they are computed."""

    def look_forward(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if found or _is_finite(output):
                return
            own = all(_is_finite(parameter) for parameter in module.parameters(recurse=False))
            where = "weight" if not own else "output" if _is_finite(inputs) else "input"
            found.append(f"{name} ({where})" if name else _first_bad_weight(task) or "the loss")

        return hook

    def look_backward(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if not found and not _is_finite(parameter.grad):
                found.append(f"{name} (gradient)")

        return hook

    with ExitStack() as hooks:
        for name, module in task.named_modules():
            hooks.enter_context(module.register_forward_hook(look_forward(_short(name))))
        for name, parameter in task.named_parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(look_backward(_short(name)))
                hooks.callback(handle.remove)
        yield


@contextmanager
def _as_it_was(task: EncoderModel, runtime: Runtime) -> Iterator[None]:
    """Put gradients aside and bring them back; the same for the random numbers that dropout draws."""
    gradients = [(parameter, parameter.grad) for parameter in task.parameters()]
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


def loudest_layer(task: EncoderModel) -> Loud:
    """The parameter whose gradient has the largest norm relative to the weights' own.

    Biases count as at least 0.02 each: they begin at 0, and would always be loudest.

    Raises:
        ValueError: there are no gradients.
    """
    found = []
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).item()
            weights = torch.linalg.vector_norm(parameter.detach(), dtype=torch.float32).item()
            least = _LEAST_BIAS * math.sqrt(parameter.numel()) if parameter.dim() < 2 else sys.float_info.min
            share = norm / max(weights, least)
            found.append(Loud(_short(name), norm, share if math.isfinite(share) else math.inf))
    if not found:
        raise ValueError("the gradients are gone")
    return max(found, key=lambda loud: loud.share)


def worst_documents(
    task: EncoderModel,
    batches: Sequence[PackedBatch],
    runtime: Runtime,
    k: int = 3,
) -> list[DocumentLoss]:
    """The documents that raise a step's loss most: all that are not finite, else by (mean loss − usual) × targets.

    The usual is the median over documents; by the mean alone, sentences with a single target would always lead.
    Without dropout. In a micro-batch whose loss is not finite each document is taken alone, because through a packed
    kernel a NaN spreads to its neighbours (0 × NaN is NaN); in k such micro-batches at most.

    Args:
        task: left as found.
        batches: the step's micro-batches, labelled.
        runtime: device and precision.
        k: documents at most.
    """

    def forward(batch: PackedBatch) -> TaskOutput:
        with runtime.autocast():
            return task(batch.to(runtime.device))

    found: list[tuple[float, int, int, int]] = []  # mean loss, targets, micro-batch, document
    apart: list[tuple[float, int]] = []  # mean loss, micro-batch
    # With gradients enabled, so that the same kernels are chosen as in the step.
    with torch.enable_grad(), evaluating(task), _uncompiled():
        for index, batch in enumerate(batches):
            output = forward(batch)
            if output.losses_M is None or not _is_finite(output.losses_M):
                mean = output.loss_sum.item() / max(1, output.num_targets)
                apart.append((mean if math.isfinite(mean) else math.inf, index))
            else:
                found += [
                    (*means, index, document) for document, means in enumerate(_by_document(batch, output.losses_M))
                ]
        for _, index in sorted(apart, key=lambda entry: -entry[0])[:k]:
            for places, alone in batches[index].in_parts(1):  # one document a part
                document = int(torch.searchsorted(batches[index].cu_seqlens, places[0], right=True)) - 1
                output = forward(alone)
                found.append((output.loss_sum.item() / max(1, output.num_targets), output.num_targets, index, document))
    found = [entry for entry in found if entry[1]]
    worst = [entry for entry in found if not math.isfinite(entry[0])][:k]
    if not worst and found:
        usual = statistics.median(loss for loss, *_ in found)
        worst = sorted(found, key=lambda entry: (usual - entry[0]) * entry[1])[:k]
    return [
        DocumentLoss(
            micro_batch=index, document=document, loss=loss, targets=targets,
            name=f"micro-batch {index}, document {document}{_excerpt(task, batches[index], document)}",
        )
        for loss, targets, index, document in worst
    ]  # fmt: skip


def _by_document(batch: PackedBatch, losses_M: Tensor) -> list[tuple[float, int]]:
    """Mean loss and number of targets of each document; 0 and 0 where it has none."""
    if batch.labels_T is None:  # a loss for each document
        return [(loss, 1) for loss in losses_M.tolist()]
    positions_M = (batch.labels_T != IGNORE).nonzero().squeeze(1).cpu()
    document_M = torch.searchsorted(batch.cu_seqlens.cpu(), positions_M, right=True) - 1
    targets_B = torch.bincount(document_M, minlength=batch.num_documents)
    sums_B = torch.zeros(batch.num_documents).index_add_(0, document_M, losses_M.float().cpu())
    return list(zip((sums_B / targets_B.clamp(min=1)).tolist(), targets_B.tolist(), strict=True))


def _excerpt(task: EncoderModel, batch: PackedBatch, document: int) -> str:
    """How a document begins, unmasked."""
    if task.tokenizer is None or batch.labels_T is None:
        return ""
    start, stop = batch.cu_seqlens[document : document + 2].tolist()
    ids, labels = batch.input_ids_T[start:stop], batch.labels_T[start:stop]
    original = torch.where(labels == IGNORE, ids, labels)[: 2 * _EXCERPT]
    return f" '{' '.join(task.tokenizer.decode(original.tolist()).split())[:_EXCERPT]}…'"


def _uncompiled() -> AbstractContextManager[object]:
    """Eager for a while; what was never imported (it takes seconds) has compiled nothing."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _is_finite(value: Any) -> bool:
    """Whether all tensors in a module's inputs or outputs are."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.detach().isfinite().all())
    if isinstance(value, tuple | list):
        return all(_is_finite(item) for item in value)
    return _is_finite(getattr(value, "loss_sum", ()))


def _short(name: str) -> str:
    return name.removeprefix("model.")
