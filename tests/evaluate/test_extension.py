import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import sentences

from modernbert import EncoderModel, MaskedLM
from modernbert.batch import IGNORE
from modernbert.data.mask import Masker
from modernbert.errors import CheckpointError, ConfigError, DataError
from modernbert.evaluate import extension
from modernbert.evaluate.extension import ExtensionPlan, bootstrap, inside_change, measure, summarize
from modernbert.text import Shards, build_shards, special_ids, train_tokenizer

OLD, NEW = 32, 128


def build(folder, tokenizer, num_words):
    draw = random.Random(0)
    words = ["river", "mountain", "stone", "house", "green", "light", "walks", "sings", "under", "over", "quiet"]
    lines = [json.dumps({"text": " ".join(draw.choices(words, k=count))}) for count in num_words]
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    build_shards([folder / "corpus.jsonl"], tokenizer=tokenizer, out=folder / "shards", heldout=0.6, min_tokens=1)
    return Shards.open(folder / "shards", "heldout")


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("extension")
    return {
        "short and long": build(folder / "a", tiny_tokenizer, [5, 20, 40, 60, 80, 100, 120] * 4),
        "long": build(folder / "b", tiny_tokenizer, range(90, 160, 5)),
    }


def wide_awake(config):
    """Weights so large that far tokens move a loss by more than rounding."""
    return config.replace(max_position_embeddings=NEW, initializer_range=0.3)


@pytest.fixture(scope="module")
def model(tiny_model, tiny_config):
    return MaskedLM(wide_awake(tiny_config), tiny_model.tokenizer).draw(1).eval()


@given(st.integers(1, 5000), st.integers(8, 64), st.integers(1, 6))
def test_stretches_lie_apart_behind_four_old_lengths(length, old_length, stretches):
    plan = ExtensionPlan(old_length=old_length, new_length=4 * old_length, stretches=stretches)
    ends = plan.ends(length)
    assert all(4 * old_length <= end <= length for end in ends)
    assert len(ends) <= stretches
    assert all(later - earlier >= plan.stretch for later, earlier in itertools.pairwise(ends))
    assert bool(ends) == (length >= 4 * old_length)
    assert not ends or ends[0] == length


@given(st.integers(4 * OLD, 300))
def test_both_inputs_hide_the_same_tokens_and_only_in_the_stretch(tiny_tokenizer, length):
    special, plan = special_ids(tiny_tokenizer), ExtensionPlan(old_length=OLD, new_length=NEW)
    tokens = np.random.default_rng(length).integers(10, 300, length)
    (near, near_labels), (whole, whole_labels) = extension._views(
        tokens, length, plan, special, Masker(special, 320), position=3
    )
    assert len(near) == OLD
    assert len(whole) == min(length + 2, NEW)
    assert (near[0], near[-1], whole[0], whole[-1]) == (special.cls, special.sep) * 2
    assert np.array_equal(whole[-OLD + 1 :], near[1:])
    assert np.array_equal(whole_labels[-OLD + 1 :], near_labels[1:])
    assert (whole_labels[: -OLD + 1] == IGNORE).all()
    assert np.array_equal(whole[1 : -OLD + 1], tokens[-(len(whole) - 2) : -plan.stretch])  # nothing hidden before it
    hidden = near_labels != IGNORE
    assert np.array_equal(near_labels[hidden], tokens[-plan.stretch :][hidden[1:-1]])


def test_the_far_past_is_worth_nothing_to_a_model_that_cannot_see_it(shards, tiny_config, tiny_tokenizer):
    config = tiny_config.replace(
        layer_types=("sliding_attention",) * 3, local_attention=4, max_position_embeddings=NEW, initializer_range=0.3
    )  # three layers of two tokens to the left: six in all, and late targets have fifteen
    near_sighted = MaskedLM(config, tiny_tokenizer).draw(0).eval()
    losses = measure(near_sighted, shards, ExtensionPlan(old_length=OLD, new_length=NEW, num_documents=10))
    assert losses.late_M.any()
    assert np.abs(losses.whole_M - losses.near_M)[losses.late_M].max() < 1e-4
    assert np.abs(losses.whole_M - losses.near_M).max() > 0.1  # at a stretch's beginning it does see some of it


def test_a_model_that_sees_all_of_it_is_moved_by_the_far_past(model, shards):
    losses = measure(model, shards, ExtensionPlan(old_length=OLD, new_length=NEW, num_documents=10))
    assert np.median(np.abs(losses.whole_M - losses.near_M)[losses.late_M]) > 1e-2


def test_losses_do_not_depend_on_what_shares_a_batch(model, shards):
    plan = ExtensionPlan(old_length=OLD, new_length=NEW, num_documents=6, stretches=2)
    one, many = (measure(model, shards, plan, batch_tokens=tokens) for tokens in (1, 5000))
    for name in ("near_M", "whole_M", "inside_E"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-4)


def measured(model, shards, **plan):
    plan = ExtensionPlan(**plan)
    return summarize(measure(model, shards, plan), plan)


def test_the_report_adds_up(model, shards):
    report = measured(model, shards, old_length=OLD, new_length=NEW, num_documents=1000)
    difference = report["difference"]
    long_documents = [int((source.lengths >= 4 * OLD).sum()) for source in shards.values()]
    assert difference["documents"] == sum(long_documents)
    assert difference["mean"] == pytest.approx(report["whole"] - report["near"])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert sum(part["difference"]["targets"] for part in report["by_source"].values()) == difference["targets"]
    assert 0.4 < report["late"]["difference"]["targets"] / difference["targets"] < 0.6
    assert report["inside"]["documents"] == sum(len(source) for source in shards.values())
    json.dumps(report)


def test_the_same_plan_asks_every_model_for_the_same_targets(model, shards, tiny_config, tiny_tokenizer):
    other = MaskedLM(wide_awake(tiny_config), tiny_tokenizer).draw(2).eval()
    plan = ExtensionPlan(old_length=OLD, new_length=NEW, num_documents=5)
    before, after = (measure(m, shards, plan) for m in (model, other))
    change = inside_change(before, after)
    assert change["mean"] == pytest.approx(
        summarize(after, plan)["inside"]["mean"] - summarize(before, plan)["inside"]["mean"]
    )
    assert inside_change(before, before)["high"] == 0


@given(st.integers(2, 30), st.floats(-2, 2))
def test_an_interval_around_what_never_varies_is_a_point(num_documents, value):
    found = bootstrap(np.full(3 * num_documents, value), np.repeat(np.arange(num_documents), 3))
    assert found["low"] == pytest.approx(value)
    assert found["high"] == pytest.approx(value)
    assert found["targets"] == 3 * num_documents


def test_the_interval_covers_the_truth_as_often_as_it_says_where_a_documents_targets_are_alike():
    draw = np.random.default_rng(0)
    document_M = np.repeat(np.arange(40), 25)
    covered, naive = 0, 0
    for trial in range(100):
        values = np.repeat(draw.normal(size=40), 25) + 0.1 * draw.normal(size=1000)
        found = bootstrap(values, document_M, trial)
        covered += found["low"] <= 0 <= found["high"]
        one_by_one = 1.96 * values.std() / np.sqrt(len(values))
        naive += abs(values.mean()) <= one_by_one
    assert 0.88 < covered / 100 <= 0.99
    assert naive / 100 < 0.6  # as though tokens of one document knew nothing of each other


def test_what_cannot_be_measured_is_refused(model, shards, tiny_config, tiny_tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="at least 4 times"):
        measured(model, shards, old_length=64, new_length=255)
    with pytest.raises(ConfigError, match="128 positions"):
        measured(model, shards, old_length=64, new_length=256)
    short = {"short": build(tmp_path / "short", tiny_tokenizer, [5, 6, 7, 8] * 3)}
    with pytest.raises(DataError, match="hold out more"):
        measured(model, short, old_length=OLD, new_length=NEW)
    with pytest.raises(CheckpointError, match="no MLM head"):
        measured(EncoderModel(tiny_config, tiny_tokenizer).draw(0), shards, old_length=OLD, new_length=NEW)
    other = train_tokenizer(sentences(200), vocab_size=320)
    with pytest.raises(DataError, match="another tokenizer"):
        measured(MaskedLM(model.config, other).draw(0), shards, old_length=OLD, new_length=NEW)
