"""A fine-tuned folder's card: all it says is in what it was given, and its lines of code run."""

import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from modernbert import load
from modernbert.console import Console
from modernbert.evaluate.finetune_card import class_table, console_rows, finetune_card, metrics_table
from modernbert.evaluate.finetune_usage import usage
from modernbert.tasks.classify import Classifier
from modernbert.tasks.head import HeadSettings

TASK = {"kind": "classify", "name": "", "train": "/home/somebody/private/train.jsonl", "pooling": "mean", "weight": 1.0,
        "validation": "/home/somebody/private/dev.jsonl", "class_weights": None}  # fmt: skip
ABOUT = {
    "kind": "classify", "problem": "single", "labels": ["bad", "good"], "metric": "accuracy",
    "model": "/home/somebody/runs/stable-50M-tokens",
    "files": {"train": TASK["train"], "validation": TASK["validation"], "test": "test.jsonl"},
    "examples": {"train": 6920, "validation": 872},
    "validation": {"accuracy": 0.8142, "macro_f1": 0.814, "f1": 0.82, "matthews": 0.63},
    "by_class": [
        {"label": "bad", "precision": 0.8, "recall": 0.81, "f1": 0.805, "support": 428, "said": 433},
        {"label": "good|<b>", "precision": 0.82, "recall": 0.83, "f1": 0.825, "support": 7, "said": 439},
    ],
    "best": {"metric": "accuracy", "value": 0.8142, "step": 1298, "since": 0},
    "steps": 2163, "tokens": 900_000, "seconds": 240.0, "remarks": ["/home/somebody/private/dev.jsonl:3: empty text"],
    "recipe": {"model": "/home/somebody/runs/stable-50M-tokens", "epochs": 5.0, "lr": 2.4e-4, "batch_size": 16, "seed": 0,
               "freeze": False, "patience": None, "tasks": [TASK]},
    "environment": {"device": "cpu", "torch": "2.11.0", "python": "3.11.9", "modernbert": "0.1", "dtype": "float32"},
}  # fmt: skip


def about(**changes):
    return {**ABOUT, **changes}


def rows_of(text, first):
    """Cells of the table whose first heading is this."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |"))
    table = lines[start : next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def test_the_hub_reads_task_and_scores_and_no_language():
    data = ModelCard(finetune_card(ABOUT)).data
    said = data.to_dict()
    assert (said["pipeline_tag"], said["library_name"]) == ("text-classification", "transformers")
    assert said.keys().isdisjoint({"language", "license", "base_model", "datasets"})
    found = {result.metric_type: result for result in data.eval_results}
    assert found["accuracy"].metric_value == 0.8142
    assert (found["f1"].dataset_name, found["f1"].dataset_split) == ("dev.jsonl", "validation")


def test_scores_stand_in_the_table_main_metric_first():
    changed = about(
        metric="macro_f1", test={"accuracy": 0.801, "macro_f1": 0.8}, examples={**ABOUT["examples"], "test": 9}
    )
    assert rows_of(finetune_card(changed), "metric")[2:4] == [
        ["macro\\_f1", "0.8140", "0.8000"],
        ["accuracy", "0.8142", "0.8010"],
    ]
    assert rows_of(finetune_card(changed), "metric")[4] == ["f1", "0.8200", "–"]


def test_no_path_of_a_machine_is_in_a_card():
    text = finetune_card(ABOUT)
    assert "somebody" not in text and "private" not in text
    assert "stable-50M-tokens" in text and "dev.jsonl:3: empty text" in text


def test_every_table_has_as_many_cells_in_each_row():
    text = finetune_card(about(confused=[{"label": "bad", "said": "good|<b>", "times": 3, "of": 428}], picture="c.png"))
    for first in ("metric", "class", "part", "setting", "", "most confused: right"):
        assert len({len(row) for row in rows_of(text, first)}) == 1
    assert "good\\|&lt;b&gt;" in text and "<b>" not in text.partition("<details>")[0]


def test_nothing_is_said_that_is_not_known():
    known = ("kind", "problem", "labels", "metric", "model", "files", "examples", "validation", "recipe")
    text = finetune_card({name: ABOUT[name] for name in known})
    unknown = (
        "confusion",
        "![",
        "By class",
        "## Hardware",
        "of step",
        "were chosen",
        "test examples",
        "cut at",
        "None",
    )
    for word in unknown:
        assert word not in text, word
    assert "scored on the validation examples alone" in text and "not stated yet" in text


def test_a_test_set_a_picture_and_the_cut_are_said():
    text = finetune_card(about(
        test={"accuracy": 0.8}, examples={**ABOUT["examples"], "test": 1821}, picture="confusion.png", max_length=8192,
        parameters=17_000_000, licence="apache-2.0",
    ))  # fmt: skip
    assert "0.8000 on 1,821 test examples" in text and "](confusion.png)" in text and "cut at 8,192 tokens" in text
    assert "validation examples alone" not in text and "Licence: apache-2.0" in text


def test_held_out_validation_examples_are_said_to_be_that():
    text = finetune_card(about(files={"train": ABOUT["files"]["train"]}))
    assert rows_of(text, "part")[3] == ["validation", "train.jsonl (held out of it)", "872"]


def test_a_model_from_the_hub_is_named_and_a_folder_with_a_slash_is_not():
    assert ModelCard(finetune_card(about(model="runs/stable"))).data.base_model is None
    found = ModelCard(finetune_card(about(model="owner/encoder", from_hub=True))).data
    assert found.base_model == "owner/encoder"


def test_a_model_of_the_hub_keeps_its_whole_name_among_the_settings():
    recipe = {**ABOUT["recipe"], "model": "owner/encoder"}
    assert 'model = "owner/encoder"' in finetune_card(about(model="owner/encoder", from_hub=True, recipe=recipe))
    assert 'model = "encoder"' in finetune_card(about(model="owner/encoder", recipe=recipe))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:org/set", "org/set"),
        ("hf:org/set@train", "org/set"),
        ("hf:org/set:en@dev#1a2b", "org/set"),
        ("hf:imdb@test", "imdb"),
        ("org/set", "org/set"),
        ("org/set:en@dev", "org/set"),
        ("set", None),
        ("runs/train.jsonl", None),
        ("runs/train.jsonl.gz", None),
        ("/home/somebody/set", None),
        ("hf:/home/somebody/set@train", None),
        ("hf:../somebody/set", None),
        ("hf:~/somebody/set", None),
        ("hf:somebody/saved@train", None),  # these two are folders here
        ("somebody/saved", None),
    ],
)
def test_only_data_sets_of_the_hub_are_said_to_be_there_and_no_folder_is_named(tmp_path, monkeypatch, source, name):
    (tmp_path / "somebody" / "saved").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = {**ABOUT["recipe"], "model": "m", "tasks": [{**TASK, "train": source, "validation": None}]}
    text = finetune_card(about(files={"train": source}, recipe=recipe, remarks=[f"{source}, row 3: odd"]))
    data = ModelCard(text).data
    assert data.datasets == ([name] if name else None)
    assert {result.dataset_type for result in data.eval_results} == {"hub" if name else "local"}
    assert "somebody" not in text
    shown = source if name else source.rsplit("/", 1)[-1]
    assert [cells[1] for cells in rows_of(text, "part")[2:]] == [shown, f"{shown} (held out of it)"]
    assert f"\n- {shown}, row 3: odd\n" in text and f'train = "{shown}"' in text


def test_the_file_of_names_beside_the_data_is_named_without_its_folder():
    text = finetune_card(about(remarks=["labels named by /home/somebody/private/labels.json: 0 = bad"]))
    assert "- labels named by labels.json: 0 = bad" in text and "somebody" not in text


def test_a_tagger_says_that_texts_are_cut_and_how_to_give_words():
    changed = about(kind="tag", problem="tokens")
    assert "COVID - 19" in finetune_card(changed) and '{"words": ["COVID-19", "helps"]}' in finetune_card(changed)
    assert "COVID" not in finetune_card(ABOUT)


def test_a_numbered_picture_has_its_numbers_in_the_table():
    text = finetune_card(about(numbered=True, picture="confusion.png"))
    assert rows_of(text, "number")[2][:2] == ["1", "bad"] and "confusion.json" in text


def test_the_settings_are_those_of_the_task_among_several():
    other = {**TASK, "kind": "tag", "train": "other.conll", "pooling": "cls"}
    text = finetune_card(about(recipe={**ABOUT["recipe"], "tasks": [other, TASK]}))
    settings = {row[0]: row[1] for row in rows_of(text, "setting")}
    assert settings["pooling"] == "mean" and settings["tasks trained together"] == "tag, classify"
    assert settings["peak rate"] == "0.00024" and settings["encoder frozen"] == "no"


def test_the_console_shows_the_same_tables(capsys):
    for table in (metrics_table(ABOUT), class_table(ABOUT)):
        Console().table(*console_rows(table))
    out = capsys.readouterr().out
    assert "0.8142" in out and "good|<b>" in out and ">" not in out.replace("good|<b>", "")


@pytest.mark.parametrize("kind", ["classify", "pair", "tag", "answer"])
def test_a_card_of_each_kind_has_its_own_usage(kind):
    problem = {"tag": "tokens", "answer": "spans"}.get(kind, "single")
    text = finetune_card(about(kind=kind, problem=problem))
    assert usage({"kind": kind, "problem": problem}).transformers in text
    compile(usage({"kind": kind, "problem": problem}).transformers, "card", "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "problem"),
    [("classify", "single"), ("classify", "multi"), ("classify", "regression"), ("pair", "single"), ("tag", "tokens"),
     ("answer", "spans")],
)  # fmt: skip
def test_the_lines_of_code_in_a_card_run(kind, problem, tiny_config, tiny_tokenizer, tmp_path):
    labels = {"tokens": ("O", "B-x", "I-x"), "spans": ("start", "end"), "regression": ("value",)}.get(
        problem, ("a", "b")
    )
    settings = HeadSettings(kind=kind, labels=labels, problem=problem, max_length=64)
    folder = tmp_path / "model"
    folder.mkdir()
    head_class(kind)(tiny_config, tiny_tokenizer, settings).draw(0).write(folder)
    found = usage({"kind": kind, "problem": problem})
    program = found.transformers.replace("FOLDER", str(folder))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(load(folder).predict(eval(found.items))) == len(eval(found.items))


def head_class(kind):
    if kind == "tag":
        from modernbert.tasks.tag import Tagger

        return Tagger
    if kind == "answer":
        from modernbert.tasks.answer import Answerer

        return Answerer
    return Classifier
