"""Which evaluation is the best one, and when there have been enough."""

import pytest

from modernbert.errors import TrainingError
from modernbert.train.select import Selection


def seen(values, *, higher_is_better=True, patience=None):
    """What a selection says of evaluation after evaluation: (is best, is enough)."""
    selection = Selection(
        metric="f1", higher_is_better=higher_is_better, patience=patience, keep=lambda _weights, _step: None
    )
    best, said = None, []
    for step, value in enumerate(values):
        best, is_best = selection.see(best, {"f1": value, "loss": 1.0}, step)
        said.append((is_best, selection.is_enough(best)))
    return best, said


@pytest.mark.parametrize(
    ("values", "higher_is_better", "best_step"),
    [([0.1, 0.3, 0.2], True, 1), ([0.5, 0.5, 0.5], True, 0), ([3.0, 1.0, 2.0], False, 1), ([0.0], True, 0)],
)
def test_the_best_is_kept_and_the_first_of_equals(values, higher_is_better, best_step):
    best, said = seen(values, higher_is_better=higher_is_better)
    assert best["step"] == best_step and best["value"] == values[best_step]
    assert [is_best for is_best, _ in said][best_step]
    assert not any(enough for _, enough in said)


def test_of_equals_the_one_with_the_lower_loss_is_best():
    selection = Selection(metric="f1", higher_is_better=True, patience=1, keep=lambda _weights, _step: None)
    best = None
    for step, loss in enumerate((1.0, 0.8, 0.9, None)):
        best, is_best = selection.see(best, {"f1": 0.0, "loss": loss}, step)
        assert is_best == (step < 2)
    assert selection.is_enough(best), "a lower loss alone is no progress"
    assert (best["step"], best["loss"], best["since"]) == (1, 0.8, 3)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_refused(value):
    selection = Selection(metric="f1", higher_is_better=True, patience=None, keep=lambda _weights, _step: None)
    with pytest.raises(TrainingError, match="behind step 7, and the best weights are told by it"):
        selection.see(None, {"f1": value}, 7)


def test_it_is_enough_behind_so_many_without_a_better_one():
    _, said = seen([0.2, 0.4, 0.3, 0.4, 0.9], patience=2)
    assert said == [(True, False), (True, False), (False, False), (False, True), (True, False)]


def test_a_metric_that_the_task_does_not_have_is_named_with_those_it_has():
    selection = Selection(metric="bleu", higher_is_better=True, patience=None, keep=lambda _weights, _step: None)
    with pytest.raises(TrainingError, match=r"metric=bleu.*accuracy, loss"):
        selection.see(None, {"accuracy": 0.5, "loss": 1.0, "by_class": []}, 1)
