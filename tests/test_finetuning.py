"""Whole fine-tunings: what is learnt, kept, gone on with and refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_tasks import classify_files, finetuned, run_of, tag_files, texts, write_jsonl

from modernbert import MaskedLM
from modernbert.errors import CheckpointError, ConfigError, DataError, TrainingError
from modernbert.tasks import load
from modernbert.train.log import read_metrics
from modernbert.train.loop import Hooks


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("base") / "model")


def classify(folder, base, *, task=None, parts=None, **settings):
    return run_of(base, [{"kind": "classify", **(parts or classify_files(folder)), **(task or {})}], **settings)


@pytest.fixture(scope="module")
def learnt(base, tmp_path_factory):
    """A classifier with test examples, and where it is."""
    folder = tmp_path_factory.mktemp("learnt")
    remarks = []
    parts = classify_files(folder, test=80)
    result = finetuned(classify(folder, base, parts=parts), folder / "out", Hooks(on_remark=remarks.append))
    return folder / "out", result, remarks


def test_it_learns_and_says_how_well(learnt):
    out, result, remarks = learnt
    task = result["tasks"]["classify"]
    assert task["test"]["accuracy"] > 0.9 and task["validation"]["accuracy"] > 0.9
    assert task["examples"] == {"train": 160, "validation": 60, "test": 80}
    assert result == json.loads((out / "metrics.json").read_text())
    assert any("160 examples of" in remark and "epochs 4" in remark for remark in remarks)
    assert any("text" in remark and "label" in remark for remark in remarks), "guessed columns are said"


def test_the_folder_is_whole_and_holds_no_checkpoints(learnt):
    out, _, _ = learnt
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md",
                     "confusion.png", "confusion.json", "metrics.json", "run"}  # fmt: skip
    visible = {path.name for path in (out / "run").iterdir() if not path.name.startswith(".")}
    assert visible == {"run.json", "metrics.jsonl", "loss.png"}


def test_it_answers_what_it_was_scored_on(learnt):
    out, result, _ = learnt
    held = texts(80, seed=2)
    answers = load(out).predict([text for text, _ in held])
    right = sum(answer["label"] == name for answer, (_, name) in zip(answers, held, strict=True))
    assert right / 80 == pytest.approx(result["tasks"]["classify"]["test"]["accuracy"])


def test_the_same_call_again_does_nothing(learnt, base):
    out, result, _ = learnt
    before = (out / "model.safetensors").stat().st_mtime_ns
    remarks = []
    parts = classify_files(out.parent, test=80)
    assert finetuned(classify(out.parent, base, parts=parts), out, Hooks(on_remark=remarks.append)) == result
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert "finished; nothing to do" in remarks[-1]


def test_other_settings_in_the_same_folder_are_refused(learnt, base):
    out, _, _ = learnt
    parts = classify_files(out.parent, test=80)
    with pytest.raises(ConfigError, match=r"seed=0 \(now 1\).*choose another --out"):
        finetuned(classify(out.parent, base, parts=parts, seed=1), out)


def test_a_folder_of_something_else_is_left_alone(tmp_path, base):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no fine-tuning"):
        finetuned(classify(tmp_path, base), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("at_step", [5, pytest.param(31, marks=pytest.mark.slow), 45])
def test_what_was_cut_off_goes_on_to_the_same_bits(tmp_path, base, at_step):
    def stop(row):
        if row["kind"] == "train" and row["step"] == at_step:
            raise Interrupted

    whole = finetuned(classify(tmp_path, base, head_dropout=0.1), tmp_path / "whole")
    with pytest.raises(Interrupted):
        finetuned(classify(tmp_path, base, head_dropout=0.1), tmp_path / "cut", Hooks(on_row=stop))
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["run"]
    again = finetuned(classify(tmp_path, base, head_dropout=0.1), tmp_path / "cut")
    assert again["tasks"] == whole["tasks"] and again["best"] == whole["best"]
    for folder in ("whole", "cut"):
        assert [row["step"] for row in read_metrics(tmp_path / folder / "run") if row["kind"] == "train"] == list(
            range(1, 81)
        )
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_the_best_weights_are_kept_and_not_the_last(tmp_path, base):
    run = classify(tmp_path, base, task={"metric": "loss"}, epochs=6, lr=0.05, evaluations=6)
    result = finetuned(run, tmp_path / "out")
    rows = [row for row in read_metrics(tmp_path / "out" / "run") if row["kind"] == "eval"]
    best = min(rows, key=lambda row: row["loss"])
    assert (result["best"]["metric"], result["best"]["value"], result["best"]["step"]) == (
        "loss",
        best["loss"],
        best["step"],
    )
    assert result["tasks"]["classify"]["validation"]["accuracy"] == best["accuracy"]


def test_it_ends_early_when_nothing_gets_better(tmp_path, base):
    run = classify(tmp_path, base, epochs=20, lr=1e-12, patience=2, evaluations=20)  # so slow that nothing changes
    finetuned(run, tmp_path / "out")
    rows = [row for row in read_metrics(tmp_path / "out" / "run") if row["kind"] == "eval"]
    assert len(rows) == 3 and len({row["accuracy"] for row in rows}) == 1


def test_without_a_validation_file_a_tenth_is_held_out_and_said(tmp_path, base):
    remarks = []
    parts = classify_files(tmp_path, validation=0)
    result = finetuned(classify(tmp_path, base, parts=parts), tmp_path / "out", Hooks(on_remark=remarks.append))
    assert result["tasks"]["classify"]["examples"] == {"train": 144, "validation": 16}
    assert any("16 of the training examples are held out" in remark for remark in remarks)


def test_whole_numbers_are_classes_unless_they_are_said_to_be_numbers(tmp_path, base):
    rows = [{"text": text, "label": len(text.split())} for text, _ in texts(80)]
    parts = {"train": write_jsonl(tmp_path / "t.jsonl", rows)}
    remarks = []
    classes = finetuned(
        classify(tmp_path, base, parts=parts, epochs=1), tmp_path / "a", Hooks(on_remark=remarks.append)
    )
    numbers = finetuned(classify(tmp_path, base, parts=parts, task={"problem": "regression"}), tmp_path / "b")
    assert (
        classes["tasks"]["classify"]["problem"] == "single" and numbers["tasks"]["classify"]["problem"] == "regression"
    )
    assert any("whole numbers are taken for classes; tasks.0.problem=regression" in remark for remark in remarks)
    assert "value" in load(tmp_path / "b").predict("the old house")[0]


def test_a_frozen_encoder_does_not_change(tmp_path, base):
    finetuned(classify(tmp_path, base, freeze=True, epochs=1), tmp_path / "out")
    ours, theirs = load(tmp_path / "out").encoder.state_dict(), load(base).encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_encoder_learns_two_tasks_and_gives_a_folder_each(tmp_path, base):
    tasks = [
        {"kind": "classify", "name": "places", **classify_files(tmp_path)},
        {"kind": "tag", "name": "words", "weight": 2.0, **tag_files(tmp_path)},
    ]
    result = finetuned(run_of(base, tasks), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"places", "words", "metrics.json", "run"}
    places, words = load(tmp_path / "out" / "places"), load(tmp_path / "out" / "words")
    assert result["tasks"]["places"]["validation"]["accuracy"] > 0.8
    assert result["tasks"]["words"]["validation"]["f1"] > 0.8
    ours, theirs = places.encoder.state_dict(), words.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "one encoder"
    (answer,) = words.predict("the letter in the light")
    assert [(e["text"], e["label"]) for e in answer["entities"]] == [("letter", "town"), ("light", "sky")]


def test_balanced_weights_are_one_on_the_average_and_larger_for_the_rare(tmp_path, base):
    from modernbert.finetuning import prepare
    from modernbert.runtime import Runtime

    rows = [{"text": f"the river {i}", "label": "many"} for i in range(30)] + [{"text": "a house", "label": "few"}] * 10
    parts = {"train": write_jsonl(tmp_path / "t.jsonl", rows), "validation": write_jsonl(tmp_path / "v.jsonl", rows)}
    run = classify(tmp_path, base, parts=parts, task={"class_weights": "balanced"})
    prepared = prepare(run, Runtime.detect(device="cpu"))
    weights = dict(zip(prepared.tasks["classify"].labels, prepared.heads["classify"].loss.class_weights, strict=True))
    assert weights == pytest.approx({"few": 2.0, "many": 2 / 3})
    assert (30 * weights["many"] + 10 * weights["few"]) / 40 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ({"max_length": 4096}, {}, "max_length=4096 exceeds the model's 128 positions"),
        ({"class_weights": {"wter": 2.0}}, {}, "class_weights names 'wter'"),
        ({}, {"warmup": 0.5, "decay": 0.9}, "warmup=0.5 and decay=0.9 take more than the whole"),
        ({}, {"compute": {"strategy": "fsdp"}}, "fine-tuning on several ranks takes"),
        ({}, {"epohcs": 3}, "epohcs"),
        ({"name": "../elsewhere"}, {}, "name"),
        ({"name": "run"}, {}, 'a task is named "run"'),
        ({}, {"compute": {"compile": True}}, "compute.compile fills each batch"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(tmp_path, base, task, settings, message):
    with pytest.raises(ConfigError, match=message):
        finetuned(classify(tmp_path, base, task=task, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_labels_that_training_does_not_have_count_as_wrong_and_are_said(tmp_path, base):
    parts = classify_files(tmp_path)
    rows = [{"text": text, "label": name} for text, name in texts(30, 1)] + [{"text": "old", "label": "desert"}] * 30
    parts["validation"] = write_jsonl(tmp_path / "v.jsonl", rows)
    remarks = []
    result = finetuned(classify(tmp_path, base, parts=parts), tmp_path / "out", Hooks(on_remark=remarks.append))
    assert result["tasks"]["classify"]["validation"]["accuracy"] <= 0.5
    assert any("count as wrong: desert" in remark for remark in remarks)


def test_a_validation_file_of_other_labels_altogether_is_refused(tmp_path, base):
    parts = classify_files(tmp_path)
    rows = [{"text": "old", "label": "desert"}, {"text": "new", "label": "ice"}]
    parts["validation"] = write_jsonl(tmp_path / "v.jsonl", rows)
    with pytest.raises(DataError, match=r"validation: none of its labels \(desert, ice\)"):
        finetuned(classify(tmp_path, base, parts=parts), tmp_path / "out")


def test_layers_below_learn_more_slowly(tiny_model):
    from modernbert.train.optim import RATE, build_optimizer, set_learning_rate
    from modernbert.train.recipe import OptimSettings

    optimizer = build_optimizer(tiny_model, OptimSettings(layer_decay=0.5), 1e-3)
    set_learning_rate(optimizer, 8e-4, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(tiny_model.named_parameters())
    expected = {
        "head.dense.weight": 8e-4, "model.final_norm.weight": 8e-4, "model.layers.2.mlp.Wi.weight": 4e-4,
        "model.layers.0.attn.Wqkv.weight": 1e-4, "model.embeddings.tok_embeddings.weight": 5e-5,
    }  # fmt: skip
    assert {name: rates[id(named[name])] for name in expected} == pytest.approx(expected)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)
    assert {group[RATE] for group in optimizer.param_groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_an_end_that_was_cut_off_is_made_again(tmp_path, base, monkeypatch):
    whole = finetuned(classify(tmp_path, base), tmp_path / "whole")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    for broken in ("modernbert.finetuning.write_result", "modernbert.finetuning.os.replace"):
        with monkeypatch.context() as patch, pytest.raises((CheckpointError, OSError)):
            patch.setattr(broken, full)
            finetuned(classify(tmp_path, base), tmp_path / "cut")
        assert not (tmp_path / "cut" / "metrics.json").exists()
    again = finetuned(classify(tmp_path, base), tmp_path / "cut")
    assert again["tasks"] == whole["tasks"]
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_a_file_put_into_the_folder_meanwhile_stays(tmp_path, base):
    def note(row):
        (tmp_path / "out" / "notes.txt").write_text("mine")

    finetuned(classify(tmp_path, base, epochs=1), tmp_path / "out", Hooks(on_row=note))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_the_folder_may_be_a_link_or_the_current_one(tmp_path, base, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    finetuned(classify(tmp_path, base, epochs=1), tmp_path / "link")
    assert (tmp_path / "there" / "model.safetensors").exists() and (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    finetuned(classify(tmp_path, base, epochs=1), Path("."))
    assert (tmp_path / "here" / "model.safetensors").exists()


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_a_loss_that_is_no_number_is_said_before_the_first_checkpoint_too(
    tmp_path, tiny_config, tiny_tokenizer, action
):
    broken = MaskedLM(tiny_config, tiny_tokenizer).draw(0)
    with torch.no_grad():
        broken.encoder.layers[1].mlp.Wo.weight[0, 0] = torch.nan
    run = classify(tmp_path, broken.save(tmp_path / "broken"), guard={"on_nan": action})
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp.*there is no checkpoint yet") as told:
        finetuned(run, tmp_path / "out")
    assert "--allow-change" not in str(told.value)


def test_how_it_is_guarded_and_computed_may_change_when_it_goes_on(tmp_path, base):
    def stop(row):
        if row["kind"] == "train" and row["step"] == 30:
            raise Interrupted

    with pytest.raises(Interrupted):
        finetuned(classify(tmp_path, base), tmp_path / "out", Hooks(on_row=stop))
    changed = classify(tmp_path, base, guard={"on_nan": "skip"}, compute={"activation_checkpointing": True})
    assert finetuned(changed, tmp_path / "out")["steps"] == 80


def test_another_validation_file_under_the_same_name_is_no_longer_the_same_run(tmp_path, base):
    parts = classify_files(tmp_path)
    finetuned(classify(tmp_path, base, parts=parts, epochs=1), tmp_path / "out")
    write_jsonl(tmp_path / "validation.jsonl", [{"text": text, "label": name} for text, name in texts(40, 9)])
    with pytest.raises(ConfigError, match="other validation or test examples"):
        finetuned(classify(tmp_path, base, parts=parts, epochs=1), tmp_path / "out")


@pytest.mark.parametrize("name", ["type", "train", "items", "sst-2"])
def test_a_task_may_have_any_plain_name(tmp_path, base, name):
    tasks = [{"kind": "classify", "name": name, **classify_files(tmp_path)}, {"kind": "tag", **tag_files(tmp_path)}]
    finetuned(run_of(base, tasks, epochs=0.1), tmp_path / "out")
    assert (tmp_path / "out" / name / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("small", [[], ["micro_batch_tokens=48"]], ids=["as it is", "several passes"])
def test_two_ranks_learn_what_one_does(tmp_path, base, small):
    run = ["finetune", "classify", str(base), "head_dropout=0.0", "--epochs", "2", "--lr", "5e-3", "--batch-size", "8"]
    files = [
        f"--{part}={path}" for part, path in classify_files(tmp_path, train=161).items()
    ]  # one is left over for one rank
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "modernbert"]
    for command, out in ((launch, "two"), ([sys.executable, "-m", "modernbert"], "one")):
        done = subprocess.run([*command, *run, *small, *files, "--out", str(tmp_path / out), "--threads", "1"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / out / "metrics.json").read_text()) for out in ("one", "two"))
    assert one["tasks"]["classify"]["validation"] == pytest.approx(two["tasks"]["classify"]["validation"], abs=0.02)
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / out / "run") if row["kind"] == "train"]
        for out in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
