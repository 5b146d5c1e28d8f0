"""Metrics, against scikit-learn's, scipy's, seqeval's and the words of SQuAD's and CMRC's scripts."""

import json
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.errors import DataError
from modernbert.evaluate.answer_metrics import answer_scores, exact_match, overlap_f1
from modernbert.evaluate.metrics import by_class, gold_and_said, main_metric, score_all
from modernbert.text.examples import AnswerExample, TagExample, TextExample

DATA = Path(__file__).parents[3] / "shared" / "data"
LABELS = ["cat", "dog", "bird"]


def texts(labels):
    return [TextExample(text="x", label=label) for label in labels]


def single(labels, gold, said):
    """Scores and class scores of a single-label task."""
    arguments = ("single", labels, texts(gold), [{"text": "x", "label": label, "score": 0.9} for label in said])
    return score_all(*arguments), by_class(*arguments)


def multi(labels, gold, said):
    decisions = [{"labels": [{"label": label, "score": 0.9} for label in found]} for found in said]
    arguments = ("multi", labels, texts(map(tuple, gold)), decisions)
    return score_all(*arguments), by_class(*arguments)


def tokens(labels, gold, said):
    examples = [TagExample.from_words(("w",) * len(tags), tuple(tags)) for tags in gold]
    arguments = ("tokens", labels, examples, [{"tags": tags} for tags in said])
    return score_all(*arguments), by_class(*arguments)


def numbers(gold, said):
    return score_all("regression", ["value"], texts(map(float, gold)), [{"value": value} for value in said])


def drawn(seed, count, labels, share=0.6):
    """Right labels, and what a model that is right so often says."""
    picked = random.Random(seed)
    gold = [picked.choice(labels) for _ in range(count)]
    return gold, [label if picked.random() < share else picked.choice(labels) for label in gold]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labels", [["no", "yes"], LABELS, [f"intent {n}" for n in range(77)]])
def test_single_label_metrics_are_scikit_learns(seed, labels):
    metrics = pytest.importorskip("sklearn.metrics")
    gold, said = drawn(seed, 60, labels)
    scores, classes = single(labels, gold, said)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(gold, said))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(gold, said, average="macro"))
    assert ("f1" in scores) == ("matthews" in scores) == (len(labels) == 2)
    if len(labels) == 2:
        assert scores["f1"] == pytest.approx(metrics.f1_score(gold, said, pos_label="yes"))
        assert scores["matthews"] == pytest.approx(metrics.matthews_corrcoef(gold, said))
    columns = metrics.precision_recall_fscore_support(gold, said, labels=labels, zero_division=0)
    assert [row.label for row in classes] == labels
    np.testing.assert_allclose(np.array([row[1:5] for row in classes]).T, np.array(columns))


def test_a_label_that_the_model_does_not_have_is_a_miss():
    scores, classes = single(["no", "yes"], ["no", "yes", "maybe", "maybe"], ["no", "yes", "yes", "no"])
    assert scores["accuracy"] == 0.5
    assert scores["f1"] == pytest.approx(2 / 3)  # one right of two said and one expected
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    metrics = pytest.importorskip("sklearn.metrics")
    gold, said = ["no", "yes", "maybe", "maybe"], ["no", "yes", "yes", "no"]
    assert scores["matthews"] == pytest.approx(metrics.matthews_corrcoef(gold, said))
    assert [tuple(row) for row in classes][2] == ("maybe", 0.0, 0.0, 0.0, 2, 0)


def test_a_class_that_never_occurs_has_zeros_and_is_left_out_of_the_mean():
    scores, classes = single(LABELS, ["cat", "dog"], ["cat", "dog"])
    assert scores["macro_f1"] == 1
    assert tuple(classes[2]) == ("bird", 0.0, 0.0, 0.0, 0, 0)


def test_a_model_that_always_says_the_same_has_no_correlation():
    scores, _ = single(["no", "yes"], ["no", "yes", "no"], ["no", "no", "no"])
    assert scores == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(0.4), "f1": 0.0, "matthews": 0.0}


@pytest.mark.parametrize("seed", range(5))
def test_multi_label_metrics_are_scikit_learns(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    picked = random.Random(seed)
    gold = [[label for label in LABELS if picked.random() < 0.4] for _ in range(40)]
    said = [[label for label in LABELS if (label in found) != (picked.random() < 0.2)] for found in gold]
    scores, classes = multi(LABELS, gold, said)
    matrices = [[[label in found for label in LABELS] for found in side] for side in (gold, said)]
    assert scores["micro_f1"] == pytest.approx(metrics.f1_score(*matrices, average="micro"))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(*matrices, average="macro"))
    assert scores["subset_accuracy"] == pytest.approx(metrics.accuracy_score(*matrices))
    columns = metrics.precision_recall_fscore_support(*matrices, zero_division=0)
    np.testing.assert_allclose(np.array([row[1:5] for row in classes]).T, np.array(columns))


def test_no_class_at_all_can_be_right():
    scores, _ = multi(LABELS, [[], ["cat"]], [[], ["cat", "dog"]])
    assert scores["subset_accuracy"] == 0.5
    assert scores["micro_f1"] == pytest.approx(2 / 3)
    assert multi(LABELS, [[]], [[]])[0] == {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0}


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_scipys_with_ties_too(seed):
    stats = pytest.importorskip("scipy.stats")
    drawn_from = np.random.default_rng(seed)
    gold = drawn_from.integers(0, 6, 50).astype(float)
    said = np.round(gold + drawn_from.normal(0, 2, 50))
    scores = numbers(gold, said)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(gold, said).statistic)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(gold, said).statistic)
    assert scores["mse"] == pytest.approx(np.mean((gold - said) ** 2))


def test_a_correlation_with_what_never_changes_is_0_and_of_tiny_numbers_is_itself():
    assert numbers([1, 2, 3], [2.5, 2.5, 2.5])["pearson"] == 0
    assert numbers([4], [4]) == {"pearson": 0.0, "spearman": 0.0, "mse": 0.0}
    assert numbers([1, 2, 3], [1e-200, 2e-200, 3e-200])["pearson"] == pytest.approx(1)
    assert numbers([1, 2, 3], [3e30, 2e30, 1e30])["pearson"] == pytest.approx(-1)


TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), max_size=9), min_size=1, max_size=5))
def test_entity_metrics_are_seqevals(sentences):
    metrics = pytest.importorskip("seqeval.metrics")
    gold = [[tag for tag, _ in sentence] for sentence in sentences]
    said = [[tag for _, tag in sentence] for sentence in sentences]
    scores, classes = tokens(TAGS, gold, said)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores["precision"] == pytest.approx(metrics.precision_score(gold, said, zero_division=0))
        assert scores["recall"] == pytest.approx(metrics.recall_score(gold, said, zero_division=0))
        assert scores["f1"] == pytest.approx(metrics.f1_score(gold, said, zero_division=0))
        if any(gold) and any(tag != "O" for side in (gold, said) for tags in side for tag in tags):
            assert scores["macro_f1"] == pytest.approx(metrics.f1_score(gold, said, average="macro", zero_division=0))
            report = metrics.classification_report(gold, said, output_dict=True, zero_division=0)
            for row in classes:
                if row.label in report:
                    assert row.f1 == pytest.approx(report[row.label]["f1-score"])
                    assert row.support == report[row.label]["support"]
    assert [row.label for row in classes] == ["a", "b"]
    assert all(math.isfinite(value) for value in scores.values())


def test_an_entity_counts_only_with_its_type_and_both_its_ends():
    gold = [["B-a", "I-a", "O", "B-b"]]
    assert tokens(TAGS, gold, gold)[0]["f1"] == 1
    assert tokens(TAGS, gold, [["B-a", "O", "O", "B-b"]])[0] == {
        "f1": 0.5, "precision": 0.5, "recall": 0.5, "macro_f1": 0.5, "accuracy": 0.75,
    }  # fmt: skip
    assert tokens(TAGS, gold, [["B-b", "I-b", "O", "B-a"]])[0]["f1"] == 0


def test_a_type_that_the_model_does_not_have_is_a_miss():
    scores, classes = tokens(["O", "B-a", "I-a"], [["B-a", "B-new"]], [["B-a", "O"]])
    assert scores["recall"] == 0.5 and scores["precision"] == 1
    assert [(row.label, row.support, row.said) for row in classes] == [("a", 1, 1), ("new", 1, 0)]


def test_words_are_laid_side_by_side_for_a_confusion_matrix():
    examples = [TagExample.from_words(("a", "b"), ("O", "B-a")), TagExample.from_words(("c",), ("O",))]
    found = gold_and_said("tokens", examples, [{"tags": ["O", "O"]}, {"tags": ["B-a"]}])
    assert found == (["O", "B-a", "O"], ["O", "O", "B-a"])


@pytest.mark.parametrize(
    ("right", "given", "exact", "f1"),
    [  # as evaluate-v2.0.py computes them
        (["Denver Broncos"], "the Denver Broncos!", 1, 1),
        (["Denver Broncos", "Broncos"], "broncos", 1, 1),
        (["Santa Clara, California"], "Santa Clara", 0, 0.8),
        (["to be or not to be"], "to be", 0, 0.5),
        (["A. the, an"], "", 1, 1),  # nothing is left of it, so no answer is right
        (["theatre"], "atre", 0, 0),
        (["x"], None, 0, 0),
        ([], None, 1, 1),
        ([], "anything", 0, 0),
        (["U.S."], "us", 1, 1),
    ],
)
def test_english_answers_are_scored_as_squads_script_does(right, given, exact, f1):
    assert exact_match(right, given) == exact
    assert overlap_f1(right, given) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("right", "given", "exact", "f1"),
    [  # as cmrc2018_evaluate.py computes them: the longest run in common
        (["《战国无双3》"], "战国无双3", 1, 1),
        (["光荣和ω-force"], "光荣", 0, 2 * 2 / (4 + 2)),  # 光 荣 和 ωforce
        (["北京大学"], "大学北京", 0, 0.5),
        (["1998年8月"], "1998年", 0, 2 * 2 / (4 + 2)),
        (["村雨城"], "", 0, 0),
        (["村雨城", "村雨"], "村雨", 1, 1),
    ],
)
def test_chinese_answers_are_scored_as_cmrcs_script_does(right, given, exact, f1):
    assert exact_match(right, given, chinese=True) == exact
    assert overlap_f1(right, given, chinese=True) == pytest.approx(f1)


def question(right, asked="Who?"):
    return AnswerExample(question=asked, context="", answers=None if right is None else tuple((a, 0) for a in right))


def test_the_script_of_an_answer_says_how_it_is_scored():
    assert answer_scores([question(["北京大学"])], ["北京"])["f1"] == pytest.approx(2 / 3)
    assert answer_scores([question(["1998"], "哪一年？")], ["1998年"])["f1"] == pytest.approx(2 / 3)
    assert answer_scores([question(["1998"], "Which year?")], ["1998年"])["f1"] == 0


def test_questions_without_an_answer_are_scored_by_themselves():
    scores = answer_scores([question(["a cat"]), question([]), question([])], ["dog", None, "cat"])
    assert scores == {
        "f1": pytest.approx(1 / 3), "exact_match": pytest.approx(1 / 3), "no_answer_accuracy": 0.5, "answered_f1": 0.0,
        "answered_exact_match": 0.0,
    }  # fmt: skip
    assert answer_scores([question([])], [None])["answered_f1"] == 0
    assert set(score_all("spans", ["start", "end"], [question(["x"])], [{"answer": "x"}])) == {"f1", "exact_match"}


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared data")
@pytest.mark.parametrize("name", ["qa_xquad/en", "qa_xquad/zh", "qa_cmrc2018_zh/trial"])
def test_right_answers_of_real_data_are_right_and_those_of_the_next_question_are_not(name):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(DATA / f"{name}.parquet").to_pylist()
    examples = [question(row["answers"]["text"], row["question"]) for row in rows]
    given = [row["answers"]["text"][-1] for row in rows]
    assert answer_scores(examples, given) == {"f1": 1.0, "exact_match": 1.0}
    assert answer_scores(examples, [*given[1:], given[0]])["exact_match"] < 0.03


@pytest.mark.parametrize(
    ("problem", "examples", "decisions", "says"),
    [
        ("single", [], [], "no examples to score"),
        ("single", [TextExample(text="x", where="dev.jsonl:3")], [{"label": "cat"}], "dev.jsonl:3: it has no label"),
        ("tokens", [TagExample.from_words(("a",))], [{"tags": ["O"]}], "example 1: it has no label"),
        ("spans", [question(None)], [{"answer": "x"}], "no label"),
        ("regression", texts([math.nan]), [{"value": 1.0}], "nan is no number"),
        ("regression", texts([1.0]), [{"value": math.nan}], "diverged"),
        ("regression", texts(["good"]), [{"value": 1.0}], "this model predicts numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused(problem, examples, decisions, says):
    with pytest.raises(DataError, match=says) as caught:
        score_all(problem, LABELS, examples, decisions)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "unseen"]), st.sampled_from(["a", "b"])), min_size=1, max_size=6))
def test_no_score_is_ever_nan(pairs):
    scores, classes = single(["a", "b"], *zip(*pairs, strict=True))
    assert json.dumps([scores, classes], allow_nan=False)
    assert -1 <= scores["matthews"] <= 1


@pytest.mark.parametrize(
    ("problem", "scores"),
    [
        ("single", single(LABELS, ["cat"], ["cat"])[0]),
        ("multi", multi(LABELS, [["cat"]], [["cat"]])[0]),
        ("tokens", tokens(TAGS, [["B-a"]], [["B-a"]])[0]),
        ("regression", numbers([1, 2], [1, 2])),
        ("spans", answer_scores([question(["x"])], ["x"])),
    ],
)
def test_the_main_metric_comes_first_and_more_of_it_is_better(problem, scores):
    name, higher_is_better = main_metric(problem, LABELS)
    assert next(iter(scores)) == name and higher_is_better and scores[name] == pytest.approx(1)
