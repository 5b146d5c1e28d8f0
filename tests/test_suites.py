"""The suites that fine-tune: scores over seeds, taken up where they were left, for any encoder."""

import json

import pytest
from tiny_tasks import texts

from modernbert import suites
from modernbert.errors import ConfigError
from modernbert.evaluate.compare import compare
from modernbert.evaluate.score import ScoreFile
from modernbert.runtime import Runtime
from modernbert.suites import FinetuneProtocol, evaluate_finetuned, evaluate_suite

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with one of the sets that the suite `classify` knows, made up."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sst2_sentences").mkdir()
    for seed, (part, count) in enumerate({"train": 120, "validation": 40, "test": 60}.items()):
        rows = texts(count, seed)
        table = pyarrow.table({"sentence": [text for text, _ in rows], "label": [name for _, name in rows]})
        parquet.write_table(table, folder / "sst2_sentences" / f"{part}.parquet")
    return folder


QUICK = FinetuneProtocol(seeds=(0, 1, 2), rates=(5e-3,), epochs=2, batch_size=8, max_length=64)


def scored(model, data, scores, protocol=QUICK, name="m"):
    runtime = Runtime.detect(device="cpu", num_threads=1)
    return list(
        evaluate_finetuned(model, "classify", data, name=name, protocol=protocol, scores=scores, runtime=runtime)
    )


def test_a_score_has_its_seeds_its_spread_and_its_protocol(tiny_model, data, tmp_path):
    (score,) = scored(tiny_model, data, ScoreFile(tmp_path / "s.jsonl"))
    assert (score.task, score.metric, score.n, len(score.values)) == ("sst2_sentences", "accuracy", 3, 3)
    assert score.low <= score.value <= score.high and score.sd >= 0
    protocol = json.loads(score.to_line())["protocol"]
    assert protocol["seeds"] == [0, 1, 2] and protocol["epochs"] == 2 and len(protocol["files"]) == 3
    assert protocol["recipe"]["optim"]["betas"] == [0.9, 0.98] and protocol["recipe"]["warmup"] == 0.1
    assert score.details["examples"] == {"train": 120, "validation": 40, "test": 60} and score.details["lr"] == 5e-3
    assert not protocol["files"].keys() & {str(data)}


def test_what_is_known_is_not_measured_again(tiny_model, data, tmp_path, monkeypatch):
    scores = ScoreFile(tmp_path / "s.jsonl")
    first = scored(tiny_model, data, scores)
    monkeypatch.setattr(suites, "prepare", lambda *_a, **_k: pytest.fail("measured again"))
    assert [score.to_line() for score in scored(tiny_model, data, scores)] == [score.to_line() for score in first]


def test_an_evaluation_that_was_cut_off_goes_on_with_the_seed_it_was_at(tiny_model, data, tmp_path, monkeypatch):
    whole = scored(tiny_model, data, ScoreFile(tmp_path / "whole.jsonl"))
    trained, train = [], suites._Trial._train

    def some(trial, seed, rate):
        trained.append(seed)
        if len(trained) == 3:
            raise Killed
        return train(trial, seed, rate)

    monkeypatch.setattr(suites._Trial, "_train", some)
    with pytest.raises(Killed):
        scored(tiny_model, data, ScoreFile(tmp_path / "cut.jsonl"))
    again = scored(tiny_model, data, ScoreFile(tmp_path / "cut.jsonl"))
    assert trained == [0, 1, 2, 2]
    assert again[0].values == whole[0].values


def test_the_rate_is_the_best_on_validation_by_the_first_seed(tiny_model, data, tmp_path, monkeypatch):
    asked = []

    def train(_trial, seed, rate):
        asked.append((seed, rate))
        row = {"validation": {1e-3: 0.5, 2e-3: 0.9, 4e-3: 0.7}[rate], "test": {"accuracy": 0.1}, "lr": rate, "epochs": 1,
               "examples": {}, "tokens": 1, "seconds": 1.0}  # fmt: skip
        return row

    monkeypatch.setattr(suites._Trial, "_train", train)
    protocol = FinetuneProtocol(seeds=(0, 1), rates=(1e-3, 2e-3, 4e-3))
    (score,) = scored(tiny_model, data, ScoreFile(tmp_path / "s.jsonl"), protocol)
    assert asked == [(0, 1e-3), (0, 2e-3), (0, 4e-3), (1, 2e-3)], (
        "the first seed's run at the best rate is not repeated"
    )
    assert score.details["rates_tried"] == {"0.001": 0.5, "0.002": 0.9, "0.004": 0.7}


def test_another_encoder_goes_through_the_same_loop(tmp_path, data, tiny_tokenizer):
    transformers = pytest.importorskip("transformers")
    from modernbert.evaluate.foreign import open_encoder
    from modernbert.text import save_tokenizer, special_ids

    special = special_ids(tiny_tokenizer)
    config = transformers.BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, pad_token_id=special.pad,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    save_tokenizer(tiny_tokenizer, tmp_path / "bert", model_max_length=64)
    model = open_encoder(tmp_path / "bert")
    before = [parameter.clone() for parameter in model.parameters()]
    protocol = FinetuneProtocol(
        seeds=(0, 1), rates=(2e-3,), epochs=3, batch_size=8, settings=("optim.layer_decay=0.9",)
    )
    (score,) = scored(model, data, ScoreFile(tmp_path / "s.jsonl"), protocol, name="bert")
    assert score.value > 0.5, "three classes"
    assert score.protocol["max_length"] == 64
    assert all((a == b).all() for a, b in zip(before, model.parameters(), strict=True)), (
        "each seed begins with the same"
    )


@pytest.mark.parametrize("setting", ["seed=3", "lr=1e-3", "tasks.0.metric=loss", "epochs=9"])
def test_what_the_protocol_says_itself_is_not_said_twice(setting):
    with pytest.raises(ConfigError, match="the protocol says that itself; use --"):
        FinetuneProtocol(settings=(setting,))


def test_counting_words_stands_beside_the_models(tiny_model, data, tmp_path):
    runtime, scores = Runtime.detect(device="cpu", num_threads=1), ScoreFile(tmp_path / "s.jsonl")
    how = {"given": {}, "tasks": (), "scores": scores, "runtime": runtime, "progress": lambda _done, _note: None}
    (counted,) = evaluate_suite("bag-of-words", "classify", data, **how)
    assert counted.value == 1.0 and counted.n == 1, "one word tells the class"
    (again,) = evaluate_suite("bag-of-words", "classify", data, **how)
    assert again.to_line() == counted.to_line()
    scored(tiny_model, data, scores)
    assert compare([tmp_path / "s.jsonl"]).models == ("bag-of-words", "m")


def test_the_baseline_takes_the_caps_of_the_models_and_no_other_setting(data, tmp_path):
    how = {
        "tasks": (),
        "scores": ScoreFile(tmp_path / "s"),
        "runtime": Runtime.detect(),
        "progress": lambda _d, _n: None,
    }
    (score,) = evaluate_suite("bag-of-words", "classify", data, given={"max_examples": 30, "max_test": 10}, **how)
    assert (score.protocol["max_examples"], score.protocol["max_test"]) == (30, 10)
    with pytest.raises(ConfigError, match="epochs=3: of no use for classify of bag-of-words"):
        evaluate_suite("bag-of-words", "classify", data, given={"epochs": 3}, **how)


def test_the_usual_rate_is_part_of_the_protocol(tiny_model, data, tmp_path, monkeypatch):
    scores, quick = ScoreFile(tmp_path / "s.jsonl"), FinetuneProtocol(seeds=(0,), epochs=0.1)
    (first,) = scored(tiny_model, data, scores, quick)
    monkeypatch.setattr(suites, "usual_lr", lambda _width: 1e-3)
    (second,) = scored(tiny_model, data, scores, quick)
    assert first.protocol["rates"] != second.protocol["rates"] == (1e-3,), "another rule, another measurement"


def test_a_setting_of_another_suite_is_refused(data, tmp_path):
    how = {
        "tasks": (),
        "scores": ScoreFile(tmp_path / "s"),
        "runtime": Runtime.detect(),
        "progress": lambda _d, _n: None,
    }
    with pytest.raises(ConfigError, match="epochs=3: of no use for probe of m, which has"):
        evaluate_suite("m", "probe", data, given={"epochs": 3, "seeds": None}, **how)
