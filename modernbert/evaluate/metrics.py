"""Labelled examples and what a model said of them → metrics, for every task the ones its benchmarks use.

    gold labels, decisions → right, expected and said of each class → precision, recall, F1 → their means

All are shares from 0 to 1, except `mse` and the correlations and `matthews` (−1 to 1), and none is ever NaN: a quotient
whose divisor is 0 is 0, as is the correlation of values that are all alike. A label that the model does not have counts as
missed. Price: numpy and sets over the examples, next to nothing beside the forward passes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from modernbert.errors import DataError
from modernbert.evaluate.answer_metrics import answer_scores
from modernbert.tasks.entities import entity_spans
from modernbert.tasks.head import Problem
from modernbert.text.examples import OUTSIDE, AnswerExample, Example, TagExample, TextExample

Decisions: TypeAlias = Sequence[Mapping[str, Any]]
Marks: TypeAlias = list[set[tuple[str, Any]]]
"""Of each example what is to be found, or was: a class, and of entities where."""

_MAIN: dict[Problem, str] = {
    "single": "accuracy", "regression": "pearson", "multi": "micro_f1", "tokens": "f1", "spans": "f1",
}  # fmt: skip


class ClassScore(NamedTuple):
    """How well one class, or one type of entity, is told; `support` is how often it is right, `said` how often it was said."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    said: int


def main_metric(problem: Problem, labels: Sequence[str]) -> tuple[str, bool]:
    """The metric that a checkpoint is chosen by, and whether more of it is better.

    Args:
        problem: of the head.
        labels: its labels.
    """
    del labels  # the same for any number of them
    return _MAIN[problem], True


def score_all(
    problem: Problem, labels: Sequence[str], examples: Sequence[Example], decisions: Decisions
) -> dict[str, float]:
    """Every metric of a problem, its main one first.

    Args:
        problem: of the head.
        labels: of the model, in its order.
        examples: with their labels.
        decisions: what `decide` said of each.

    Returns:
        single: `accuracy`, `macro_f1`; of two classes also `f1`, that of the second label, and `matthews`.
        multi: `micro_f1`, `macro_f1`, `subset_accuracy`. regression: `pearson`, `spearman`, `mse`.
        tokens: `f1`, `precision`, `recall` of entities whose type and both ends are right (as seqeval counts by default),
        `macro_f1` over their types, and `accuracy` of the words' tags.
        spans: see `answer_scores`.
        `macro_f1` is the mean over the classes that occur among the labels or the answers, as scikit-learn has it.

    Raises:
        DataError: no examples, one without a label, or a value that is no number.
    """
    assert len(examples) == len(decisions), f"{len(examples)} examples and {len(decisions)} decisions"
    _check(examples)
    if problem == "spans":
        return answer_scores([_answer_of(example) for example in examples], [said["answer"] for said in decisions])
    if problem == "regression":
        return _regression(examples, decisions)
    classes = by_class(problem, labels, examples, decisions)
    macro_f1 = _mean(found.f1 for found in classes if found.support or found.said)
    if problem == "single":
        gold, said = gold_and_said(problem, examples, decisions)
        scores = {"accuracy": _mean(a == b for a, b in zip(gold, said, strict=True)), "macro_f1": macro_f1}
        if len(labels) == 2:
            scores |= {"f1": classes[1].f1, "matthews": _matthews(gold, said)}
        return scores
    expected, answered = _marks(problem, examples, decisions)
    micro = _class_score("", _shared(expected, answered), sum(map(len, expected)), sum(map(len, answered)))
    if problem == "multi":
        subset = _mean(a == b for a, b in zip(expected, answered, strict=True))
        return {"micro_f1": micro.f1, "macro_f1": macro_f1, "subset_accuracy": subset}
    gold, said = gold_and_said(problem, examples, decisions)
    accuracy = _mean(a == b for a, b in zip(gold, said, strict=True))
    return {
        "f1": micro.f1, "precision": micro.precision, "recall": micro.recall, "macro_f1": macro_f1, "accuracy": accuracy,
    }  # fmt: skip


def by_class(
    problem: Problem, labels: Sequence[str], examples: Sequence[Example], decisions: Decisions
) -> list[ClassScore]:
    """Precision, recall and F1 of each class, or of each type of entity; none where a number or a passage is sought.

    Args:
        problem: of the head.
        labels: of the model; the rows are in their order, behind them labels that it does not have.
        examples: with their labels.
        decisions: what `decide` said of each.

    Raises:
        DataError: no examples, or one without a label.
    """
    if problem in ("regression", "spans"):
        return []
    _check(examples)
    expected, answered = _marks(problem, examples, decisions)
    support = Counter(mark[0] for marks in expected for mark in marks)
    said = Counter(mark[0] for marks in answered for mark in marks)
    right = Counter(mark[0] for a, b in zip(expected, answered, strict=True) for mark in a & b)
    known = entity_types(labels) if problem == "tokens" else list(labels)
    names = [*known, *sorted((support.keys() | said.keys()) - set(known))]
    return [_class_score(name, right[name], support[name], said[name]) for name in names]


def gold_and_said(problem: Problem, examples: Sequence[Example], decisions: Decisions) -> tuple[list[str], list[str]]:
    """The right class of each text, or the right tag of each word, and the one that was said: what a confusion matrix counts."""
    if problem == "tokens":
        tags = [(_tags_of(example), said["tags"]) for example, said in zip(examples, decisions, strict=True)]
        assert all(len(gold) == len(said) for gold, said in tags), (
            "a decision has as many tags as its example has words"
        )
        return [tag for gold, _ in tags for tag in gold], [tag for _, said in tags for tag in said]
    assert problem == "single"
    return [str(_label_of(example)) for example in examples], [str(said["label"]) for said in decisions]


def entity_types(tags: Iterable[str]) -> list[str]:
    """The types of entity in some tags, or the label of each tag's span, in their order."""
    return list(dict.fromkeys(span[0] for tag in tags if tag != OUTSIDE for span in entity_spans([tag])))


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise DataError("there are no examples to score; give a file with at least one")
    for number, example in enumerate(examples, start=1):
        if (label := _label_of(example)) is None:
            raise DataError(
                f"{example.where or f'example {number}'}: it has no label to be scored by; label it or leave it out"
            )
        if isinstance(label, float) and not math.isfinite(label):
            raise DataError(
                f"{example.where or f'example {number}'}: {label} is no number to be scored by; leave it out"
            )


def _label_of(example: Example) -> Any:
    if isinstance(example, TextExample):
        return example.label
    return example.tags if isinstance(example, TagExample) else example.answers


def _tags_of(example: Example) -> tuple[str, ...]:
    assert isinstance(example, TagExample) and example.tags is not None
    return example.tags


def _answer_of(example: Example) -> AnswerExample:
    assert isinstance(example, AnswerExample)
    return example


def _marks(problem: Problem, examples: Sequence[Example], decisions: Decisions) -> tuple[Marks, Marks]:
    if problem == "tokens":
        return (
            [{(name, (first, stop)) for name, first, stop in entity_spans(_tags_of(example))} for example in examples],
            [{(name, (first, stop)) for name, first, stop in entity_spans(said["tags"])} for said in decisions],
        )
    if problem == "single":
        gold, said = gold_and_said(problem, examples, decisions)
        return [{(name, None)} for name in gold], [{(name, None)} for name in said]
    labels = [_label_of(example) for example in examples]
    return (
        [{(str(name), None) for name in (label if isinstance(label, tuple) else (label,))} for label in labels],
        [{(str(found["label"]), None) for found in said["labels"]} for said in decisions],
    )


def _shared(expected: Marks, answered: Marks) -> int:
    return sum(len(a & b) for a, b in zip(expected, answered, strict=True))


def _class_score(label: str, right: int, support: int, said: int) -> ClassScore:
    return ClassScore(
        label, right / said if said else 0.0, right / support if support else 0.0,
        2 * right / (support + said) if right else 0.0, support, said,
    )  # fmt: skip


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _matthews(gold: Sequence[str], said: Sequence[str]) -> float:
    """Matthews' correlation, for any number of classes (Gorodkin's): 0 where either side has one class only."""
    size = len(gold)
    right = sum(a == b for a, b in zip(gold, said, strict=True))
    of_gold, of_said = Counter(gold), Counter(said)
    together = right * size - sum(of_gold[name] * of_said[name] for name in of_gold)
    spread = (size**2 - sum(n**2 for n in of_gold.values())) * (size**2 - sum(n**2 for n in of_said.values()))
    return together / math.sqrt(spread) if spread else 0.0


def _regression(examples: Sequence[Example], decisions: Decisions) -> dict[str, float]:
    for number, said in enumerate(decisions, start=1):
        if not math.isfinite(said["value"]):
            raise DataError(f"the model's value for example {number} is {said['value']}; its weights have diverged")
    try:
        gold = np.array([float(_label_of(example)) for example in examples])
    except (TypeError, ValueError) as error:
        raise DataError(f"a label is no number ({error}); this model predicts numbers") from error
    values = np.array([said["value"] for said in decisions], dtype=np.float64)
    return {
        "pearson": _pearson(gold, values),
        "spearman": spearman(gold, values),
        "mse": float(np.square(gold - values).mean()),
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where one of both does not vary."""
    return _pearson(_ranks(a), _ranks(b))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    a, b = ((x - x.mean()) / np.abs(x - x.mean()).max() for x in (a, b))  # squares of tiny values would be 0
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
