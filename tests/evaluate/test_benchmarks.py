"""Suites name what is there and what is not, with the reason."""

from pathlib import Path

import pytest

from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.benchmarks import BENCHMARKS, LOWER_IS_BETTER, SUITES, choose
from modernbert.text.labelled import Columns, read_labelled

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")


def put(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")


def test_what_is_not_there_is_named_and_the_rest_is_done(tmp_path):
    put(tmp_path, "banking77/train.parquet", "banking77/test.parquet", "ag_news/train.parquet")
    chosen = choose("classify", tmp_path)
    assert [benchmark.name for benchmark in chosen.present] == ["banking77"]
    assert chosen.absent["ag_news"] == "ag_news/test.parquet is not in the data folder"
    assert "nothing can be fine-tuned" in chosen.absent["snli"]


def test_glue_names_the_tasks_that_cannot_be_done_whatever_lies_there(tmp_path):
    put(
        tmp_path,
        *(f"glue/{task}/{split}.parquet" for task in ("rte", "ax", "qnli") for split in ("train", "validation")),
    )
    chosen = choose("glue", tmp_path)
    assert [benchmark.name for benchmark in chosen.present] == ["glue/rte"]
    assert {"glue/mnli", "glue/qqp", "glue/ax", "glue/qnli"} <= set(chosen.absent)


def test_a_folder_without_any_of_it_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none of the 7 data sets of suite mlm, such as pretrain_wiki_en"):
        choose("mlm", tmp_path)


def test_unknown_suites_and_tasks_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="suite 'superglue' is unknown; choose among probe"):
        choose("superglue", tmp_path)
    with pytest.raises(ConfigError, match="suite ner has no task 'banking77'"):
        choose("ner", tmp_path, ("banking77",))


def test_only_the_tasks_asked_for_are_chosen(tmp_path):
    put(tmp_path, *(f"{name}/{split}.parquet" for name in ("banking77", "ag_news") for split in ("train", "test")))
    chosen = choose("classify", tmp_path, ("ag_news",))
    assert [benchmark.name for benchmark in chosen.present] == ["ag_news"] and chosen.absent == {}


def test_no_benchmark_is_scored_on_what_it_learns_from_or_chooses_by():
    for benchmark in BENCHMARKS:
        assert benchmark.test not in (benchmark.train, benchmark.validation), benchmark.name
        assert benchmark.metric not in LOWER_IS_BETTER or benchmark.kind == "text"


@needs_shared
@pytest.mark.parametrize("suite", SUITES)
def test_all_that_a_suite_promises_is_in_the_shared_data(suite):
    reasons = ("not in the data folder", "nothing can be fine-tuned", "trained on MNLI")
    absent = choose(suite, SHARED).absent
    assert set(absent) <= {"glue/mnli", "glue/qqp", "glue/ax", "glue/qnli", "cosqa_pairs", "snli"}
    assert all(any(reason in why for reason in reasons) for why in absent.values())


@needs_shared
@pytest.mark.parametrize("name", ["pubmedqa", "imdb", "ag_news", "20newsgroups", "glue/wnli", "stsb", "ner_wnut17"])
def test_columns_are_read_as_the_table_says(name):
    pytest.importorskip("pyarrow")
    (benchmark,) = (benchmark for benchmark in BENCHMARKS if benchmark.name == name)
    file = read_labelled(SHARED / benchmark.test, benchmark.kind, Columns(**benchmark.columns))
    assert benchmark.columns.items() <= file.columns.items()
    assert len(file.labels) == {"pubmedqa": 3, "imdb": 2, "ag_news": 4, "20newsgroups": 20, "glue/wnli": 2}.get(
        name, len(file.labels)
    )
    assert file.problem == {"stsb": "regression", "ner_wnut17": "tokens"}.get(name, "single")
