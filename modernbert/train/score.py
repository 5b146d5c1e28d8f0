"""Task + held-out batches → scores: overall, by source, and by position in the context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from modernbert.batch import IGNORE, PackedBatch, idle_batch
from modernbert.ranks import Ranks
from modernbert.runtime import Runtime, evaluating
from modernbert.tasks.base import EncoderModel


def evaluate_on(
    task: EncoderModel, batches: Iterable[PackedBatch], runtime: Runtime, max_tokens: int | None = None
) -> dict[str, Any]:
    """The loss and the task's other metrics over some batches, averaged over targets. Of several ranks each takes a part.

    Args:
        task: in any mode; left in the mode it had.
        batches: labelled.
        runtime: device and precision.
        max_tokens: stop once so many have been seen; None for all.

    Returns:
        `loss` and the others, `targets`, and `by_position`: the loss in stretches of the context, from 0 to 127 and
        then by powers of two.
    """
    sums: dict[str, float] = {}
    targets = 0
    at: dict[int, list[float]] = {}
    with evaluating(task), torch.no_grad():  # not inference_mode: FSDP2 would keep its tensors for the next step
        for batch in _own(batches, runtime.ranks, max_tokens):
            with runtime.autocast():
                output = task(batch.to(runtime.device))
            for name, value in {"loss": output.loss_sum, **output.metric_sums}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            if output.losses_M is not None and batch.labels_T is not None:
                _add_by_position(at, batch, output.losses_M.cpu())
            targets += output.num_targets
    sums, targets, at = _together(runtime.ranks.gather((sums, targets, at)))
    by_position = [
        {"from": 64 << b if b else 0, "to": (128 << b) - 1, "loss": loss / count, "targets": int(count)}
        for b, (loss, count) in sorted(at.items())
    ]
    return {**{k: v / max(1, targets) for k, v in sums.items()}, "targets": targets, "by_position": by_position}


def _own(batches: Iterable[PackedBatch], ranks: Ranks, max_tokens: int | None) -> Iterator[PackedBatch]:
    """A rank's part of the first batches that hold so many tokens; the same number of them on every rank."""
    tokens, index = 0, -1
    for index, batch in enumerate(batches):
        if index % ranks.size == ranks.rank:
            yield batch
        tokens += batch.num_tokens
        if max_tokens is not None and tokens >= max_tokens:
            break
    if ranks.rank > index % ranks.size:
        yield idle_batch()


def _together(parts: list[tuple[dict[str, float], int, dict[int, list[float]]]]) -> tuple[dict, int, dict]:
    """Sums of several ranks, in their order."""
    sums: dict[str, float] = {}
    at: dict[int, list[float]] = {}
    for theirs, _, theirs_at in parts:
        for name, value in theirs.items():
            sums[name] = sums.get(name, 0.0) + value
        for bucket, (loss, count) in theirs_at.items():
            total = at.setdefault(bucket, [0.0, 0.0])
            total[0] += loss
            total[1] += count
    return sums, sum(targets for _, targets, _ in parts), at


def _add_by_position(at: dict[int, list[float]], batch: PackedBatch, losses_M: Tensor) -> None:
    assert batch.labels_T is not None
    positions_M = batch.positions_T[batch.labels_T != IGNORE].cpu()
    buckets_M = (positions_M // 64).clamp(min=1).log2().floor().long()  # 0 … 127 → 0, 128 … 255 → 1, …
    for bucket in buckets_M.unique().tolist():
        mine = losses_M[buckets_M == bucket].double()
        total = at.setdefault(bucket, [0.0, 0.0])
        total[0] += mine.sum().item()
        total[1] += len(mine)


def merged(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Scores of several sources as one, by their targets, with each one's own `by_source`."""
    targets = sum(row["targets"] for row in scores.values())
    names = next(iter(scores.values())).keys() - {"targets", "by_position"}
    means = {n: sum(row[n] * row["targets"] for row in scores.values()) / max(1, targets) for n in sorted(names)}
    at: dict[tuple[int, int], list[float]] = {}
    for entry in (entry for row in scores.values() for entry in row["by_position"]):
        total = at.setdefault((entry["from"], entry["to"]), [0.0, 0.0])
        total[0] += entry["loss"] * entry["targets"]
        total[1] += entry["targets"]
    return {
        **means,
        "targets": targets,
        "by_source": {name: {k: v for k, v in row.items() if k != "by_position"} for name, row in scores.items()},
        "by_position": [
            {"from": a, "to": b, "loss": loss / n, "targets": int(n)} for (a, b), (loss, n) in sorted(at.items())
        ],
    }
