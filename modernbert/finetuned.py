"""A fine-tuned head and what it said of its validation and test examples → the folder that a user takes away.

config.json  model.safetensors  tokenizer.json     what transformers opens
README.md    confusion.png      metrics.json       what it is, and how good
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modernbert.evaluate.confusion import draw_confusion
from modernbert.evaluate.finetune_card import finetune_card
from modernbert.evaluate.metrics import by_class, gold_and_said, score_all
from modernbert.taskdata import TaskData
from modernbert.tasks.head import HeadModel
from modernbert.text.examples import Example

METRICS = "metrics.json"
CARD, CONFUSION = "README.md", "confusion.png"


class Decided(NamedTuple):
    """Labelled examples, and what a head said of each."""

    examples: Sequence[Example]
    decisions: list[dict[str, Any]]


def write_result(
    folder: Path, data: TaskData, model: HeadModel, decided: dict[str, Decided], about: dict[str, Any]
) -> dict[str, Any]:
    """Write a task's folder.

    Args:
        folder: exists.
        data: the task's examples.
        model: its head.
        decided: by the part of the data, `validation` and perhaps `test`.
        about: of the fine-tuning: model, recipe, steps, environment.

    Returns:
        The task's part of metrics.json.
    """
    model.write(folder)
    last = decided.get("test", decided["validation"])
    found: dict[str, Any] = {
        "kind": data.settings.kind, "problem": data.problem, "labels": list(data.labels), "metric": data.metric[0],
        "examples": {"train": len(data.train)} | {part: len(some.examples) for part, some in decided.items()},
        **{part: score_all(data.problem, data.labels, some.examples, some.decisions) for part, some in decided.items()},
        "by_class": [row._asdict() for row in by_class(data.problem, data.labels, last.examples, last.decisions)],
        "remarks": data.remarks, "max_length": model.settings.max_length, "stride": model.settings.stride,
        "parameters": model.num_parameters,
    }  # fmt: skip
    if data.problem in ("single", "tokens"):
        gold, said = gold_and_said(data.problem, last.examples, last.decisions)
        drawn = draw_confusion(data.labels, gold, said, folder / CONFUSION)
        found |= {"picture": CONFUSION, "numbered": drawn.numbered, "confused": [p._asdict() for p in drawn.pairs[:10]]}
    files = {
        part: path for part in ("train", "validation", "test") if (path := getattr(data.settings, part)) is not None
    }
    (folder / CARD).write_text(finetune_card({**about, **found, "files": files}), encoding="utf-8")
    return found
