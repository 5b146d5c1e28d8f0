"""The files of a task → its training, validation and test examples, which fit each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.benchmarks import LOWER_IS_BETTER
from modernbert.evaluate.metrics import main_metric
from modernbert.tasks.head import Problem
from modernbert.text.examples import Example, TagExample, TextExample
from modernbert.text.labelled import Columns, LabelledFile, read_labelled
from modernbert.train.finetune import TaskSettings

_HELD_OUT = 0.1  # of the training examples, where no validation file is given
_METRICS: dict[Problem, tuple[str, ...]] = {  # what `score_all` gives of each; of two classes and of absent answers more
    "single": ("accuracy", "macro_f1"), "multi": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson", "spearman", "mse"), "tokens": ("f1", "precision", "recall", "macro_f1", "accuracy"),
    "spans": ("f1", "exact_match", "no_answer_accuracy", "answered_f1", "answered_exact_match"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task's examples."""

    name: str
    settings: TaskSettings
    problem: Problem
    labels: tuple[str, ...]
    train: list[Example]
    validation: list[Example]
    test: list[Example] | None
    remarks: list[str]

    @property
    def metric(self) -> tuple[str, bool]:
        """By which weights are chosen, and whether more of it is better."""
        usual, higher_is_better = main_metric(self.problem, self.labels)
        wanted = self.settings.metric
        return (usual, higher_is_better) if wanted is None else (wanted, wanted not in LOWER_IS_BETTER)


def read_task(task: TaskSettings, name: str, seed: int) -> TaskData:
    """A task's files.

    Raises:
        ConfigError: a metric that the task has not.
        DataError: they cannot be read, or do not belong together.
    """
    columns = Columns(**task.columns.model_dump())
    train = read_labelled(task.train, task.kind, columns, problem=task.problem)
    _check_metric(task.metric, train)
    files = {"train": train}
    for part, path in (("validation", task.validation), ("test", task.test)):
        if path is not None:
            files[part] = read_labelled(path, task.kind, columns, problem=train.problem)
    remarks = [f"{part}: {remark}" for part, file in files.items() for remark in file.remarks]
    remarks += [
        f"{part} is the same file as train; its scores say nothing of other texts"
        for part in ("validation", "test")
        if getattr(task, part) == task.train
    ]
    examples = {part: _known(file, train, part, remarks) for part, file in files.items()}
    if task.max_examples is not None and task.max_examples < len(examples["train"]):
        drawn = np.random.default_rng(seed).permutation(len(examples["train"]))[: task.max_examples]
        examples["train"] = [examples["train"][place] for place in np.sort(drawn).tolist()]
        remarks.append(f"train: {len(examples['train']):,} of its examples are drawn")
    if (
        train.problem == "single"
        and task.problem is None
        and len(train.labels) > 2
        and all(map(str.isdecimal, train.labels))
    ):
        remarks.append(
            f"train: its {len(train.labels)} whole numbers are taken for classes; tasks.0.problem=regression has numbers learnt"
        )
    if "validation" not in examples:
        examples["train"], examples["validation"] = _held_out(examples["train"], seed)
        remarks.append(f"{len(examples['validation']):,} of the training examples are held out for validation")
    return TaskData(
        name=name, settings=task, problem=train.problem, labels=_outputs(train), train=examples["train"],
        validation=examples["validation"], test=examples.get("test"), remarks=remarks,
    )  # fmt: skip


def _check_metric(metric: str | None, train: LabelledFile) -> None:
    """Before anything is learnt: an evaluation, which would miss it, comes an epoch later."""
    known = ["loss", *_METRICS[train.problem]]
    if train.problem == "single" and len(train.labels) == 2:
        known += ["f1", "matthews"]
    if metric is not None and metric not in known:
        raise ConfigError(f"metric={metric} is none of this task's: {', '.join(known)}; choose one of them")


def _outputs(train: LabelledFile) -> tuple[str, ...]:
    """A name for each output of the head."""
    if train.problem == "spans":
        return ("start", "end")
    return ("value",) if train.problem == "regression" else tuple(train.labels)


def _known(file: LabelledFile, train: LabelledFile, part: str, remarks: list[str]) -> list[Example]:
    """A file's examples, with a remark where the training file does not have all their labels."""
    unseen = sorted(set(file.labels) - set(train.labels))
    if unseen and not set(file.labels) & set(train.labels) - {"O"}:
        raise DataError(
            f"{part}: none of its labels ({', '.join(unseen[:5])}) is one of the training file's ({', '.join(train.labels[:5])})"
        )
    if unseen:
        remarks.append(f"{part}: labels that the training file does not have count as wrong: {', '.join(unseen[:10])}")
    return file.examples


def _held_out(examples: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    if len(examples) < 2:
        raise DataError(f"{len(examples)} training example, of which none can be held out; give a validation file")
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    count = max(1, round(_HELD_OUT * len(examples)))
    held = set(order[:count])
    return (
        [example for place, example in enumerate(examples) if place not in held],
        [example for place, example in enumerate(examples) if place in held],
    )


def labels_of(example: Example) -> tuple[Any, ...]:
    """The classes of an example, or the tags of its words."""
    if isinstance(example, TagExample):
        return example.tags or ()
    assert isinstance(example, TextExample)
    return example.label if isinstance(example.label, tuple) else (example.label,)
