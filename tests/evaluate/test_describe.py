"""`modernbert doctor MODEL`: what a checkpoint is, how to go on from it, and every way its files can disagree."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import tiny_run
import torch
from test_cli import refusal, result, run
from tokenizers import AddedToken

from modernbert import PRESETS, EncoderModel, MaskedLM
from modernbert.errors import CheckpointError
from modernbert.evaluate.describe import describe, rows
from modernbert.model import hub
from modernbert.preflight import open_sources, shape_of
from modernbert.text import build_shards, load_tokenizer
from modernbert.train.checkpoint import Progress
from modernbert.train.recipe import PretrainRun
from modernbert.train.scale import read_run

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A whole checkpoint, to be spoiled."""
    return tiny_model.save(tmp_path / "model")


def change(path, **values):
    """Set keys of a JSON file; None removes them."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_tensors(folder, changed):
    path = folder / "model.safetensors"
    safetensors.torch.save_file(changed(safetensors.torch.load_file(path)), path)


def said(folder, level):
    return [finding["text"] for finding in describe(folder)["findings"] if finding["level"] == level]


def only(folder, level):
    """The one finding of this level; none of a worse one."""
    (text,) = said(folder, level)
    assert "\n" not in text and (level == "error" or not said(folder, "error"))
    return text


# What it is


def test_a_checkpoint_of_this_package_has_no_fault(folder, tiny_model, tiny_config):
    found = describe(folder)
    assert {finding["level"] for finding in found["findings"]} == {"ok"} and found["errors"] == 0
    what = found["what"]
    assert what["parameters"] == tiny_model.num_parameters and what["preset"] is None
    assert what["heads"] == ["prediction head", "MLM decoder"] and what["architecture"] == "ModernBertForMaskedLM"
    assert (what["layers"], what["window"], what["positions"]) == ("Gll", 8, 128)
    assert what["rope_bases"] == {"global": 160_000.0, "local": 10_000.0}
    assert what["special_ids"]["mask"] == tiny_model.tokenizer.token_to_id("[MASK]")
    assert what["special_ids"]["pad"] == tiny_config.pad_token_id
    assert json.loads(json.dumps(found)) == found


def test_a_presets_shape_is_recognised(tmp_path):
    config = PRESETS["tiny"].replace(vocab_size=64, pad_token_id=0, max_position_embeddings=32)
    EncoderModel(config).draw(0).save(tmp_path / "m")
    what = describe(tmp_path / "m")["what"]
    assert what["preset"] == "tiny" and what["heads"] == [] and what["embedding_rows"] == 64


def test_every_row_for_a_person_has_three_cells(folder):
    table = rows(describe(folder))
    assert all(len(row) == 3 and all(isinstance(cell, str) for cell in row) for row in table)
    assert [row[0] for row in table if row[0]] == ["what", "training", "files"]


# How far its training had come


def make_run(path, tiny_model, phases, name, **progress):
    """A run of some phases, resolved, with one checkpoint."""
    own = {"tokens": 2560, "decay_tokens": 0}
    values = tiny_run.recipe("shards", phases=[own | phase for phase in phases])
    values["loop"]["tokens"] = None
    recipe = PretrainRun.parse(values).resolve()
    about = json.dumps({"recipe": recipe.model_dump(mode="json"), "status": "unfinished"})
    checkpoint = tiny_model.save(path / name)
    (checkpoint / "state").mkdir()
    (checkpoint / "state" / "progress.json").write_text(
        json.dumps({"progress": dataclasses.asdict(Progress(**progress))})
    )
    for place in (path, checkpoint):
        (place / "run.json").write_text(about)
    return checkpoint


PHASES = [{}, {"name": "anneal", "decay_tokens": "50%", "decay_to": 0.0, "decay_shape": "linear"}]


@pytest.mark.parametrize(
    ("name", "index", "phase_tokens", "left", "way"),
    [
        ("stable-00000005", 0, 1280, 1.0, "its rate had not fallen: modernbert pretrain base-continue"),
        ("anneal-00000012", 1, 640, 1.0, "its rate had not fallen: modernbert pretrain base-continue"),
        ("anneal-00000018", 1, 1920, 0.5, "its rate had fallen: modernbert pretrain annealed-continue"),
        ("anneal-00000020", 1, 2560, 0.0, "its rate had fallen: modernbert pretrain annealed-continue"),
    ],
)
def test_a_runs_checkpoint_says_where_its_phase_stood(tmp_path, tiny_model, name, index, phase_tokens, left, way):
    step = int(name[-8:])
    make_run(
        tmp_path / "run", tiny_model, PHASES, name, step=step, tokens=256 * step, phase=index, phase_tokens=phase_tokens
    )
    found = describe(tmp_path / "run")
    training = found["training"]
    assert (training["phase"], training["step"], training["tokens"]) == (name[:6], step, 256 * step)
    assert training["share_of_rate_left"] == pytest.approx(left) and training["decayed"] == (left < 1)
    assert training["optimizer"] and training["share_of_phase"] == phase_tokens / 2560
    exactly, sentence = found["continue"]
    assert exactly.endswith(f"--out {tmp_path / 'run'}")
    assert sentence.startswith(way) and f"phases.adapt.checkpoint={tmp_path / 'run' / name} " in sentence
    assert ("phases.adapt.start=weights+optimizer phases.adapt.warmup_tokens=0" in sentence) == (left == 1)


@pytest.mark.parametrize("step", [5, 20])
def test_the_command_to_go_on_is_one_that_pretrain_takes(tmp_path, tiny_model, step):
    """At 128 positions, where the recipe has 8,192, and at the run's own rate where that had not fallen."""
    name, phase = ("stable-00000005", 0) if step == 5 else ("anneal-00000020", 1)
    make_run(tmp_path / "run", tiny_model, PHASES, name, step=step, phase=phase, phase_tokens=1280 * (1 + phase))
    text = tiny_run.write_corpus(tmp_path / "corpus.txt")
    build_shards(text, tokenizer=tiny_model.tokenizer, out=tmp_path / "shards", heldout=0.1, documents="line")
    _, command = describe(tmp_path / "run")["continue"]
    _, _, command = command.partition("modernbert pretrain ")
    recipe, *settings = command.replace("SHARDS", str(tmp_path / "shards")).split()
    asked = read_run(recipe, settings).resolve()
    assert shape_of(asked, open_sources(asked)).max_position_embeddings == 128
    assert [phase.sequence_length for phase in asked.phases] == [128, 128]
    assert ([phase.lr for phase in asked.phases] == [3e-3, 3e-3]) == (step == 5)


def test_weights_alone_cannot_go_on_exactly(tmp_path, tiny_model):
    checkpoint = make_run(tmp_path / "run", tiny_model, PHASES, "stable-00000005", step=5, phase_tokens=1280)
    shutil.rmtree(checkpoint / "state")
    found = describe(checkpoint)
    assert found["training"]["decayed"] is None and not found["training"]["optimizer"]  # its phase may have had a decay
    assert [sentence.partition(":")[0] for sentence in found["continue"]] == [
        "if its rate had not fallen when it was saved", "if it is a finished model, or you do not know",
    ]  # fmt: skip
    assert not any("optimizer" in sentence for sentence in found["continue"])


def test_a_run_json_that_cannot_be_read_leaves_what_the_name_tells(tmp_path, tiny_model):
    checkpoint = make_run(tmp_path / "run", tiny_model, PHASES, "stable-00000005", step=5)
    (checkpoint / "run.json").write_text('{"recipe": {"phases": []}}')
    training = describe(checkpoint)["training"]
    assert (training["phase"], training["step"], training["decayed"]) == ("stable", 5, None)


@pytest.mark.parametrize(
    ("name", "phase", "decayed"),
    [("step599525", "step", False), ("ext1000", "ext", False), ("decay500", "decay", True), ("my-model-2", None, None)],
)
def test_published_steps_are_known_by_their_names(tmp_path, tiny_model, name, phase, decayed):
    training = describe(tiny_model.save(tmp_path / name))["training"]
    assert (training["phase"], training["decayed"]) == (phase, decayed)


@pytest.mark.parametrize(
    ("name", "decayed"),
    [("answerdotai/ModernBERT-large", True), ("jhu-clsp/ettin-encoder-17m", True), ("jhu-clsp/mmBERT-checkpoints", None),
     ("somebody/modernbert", None)],
)  # fmt: skip
def test_the_published_models_are_known_to_be_annealed(folder, monkeypatch, name, decayed):
    monkeypatch.setattr(hub, "find_folder", lambda _name: folder)
    found = describe(name)
    assert found["training"]["decayed"] is decayed
    assert f"phases.adapt.checkpoint={name} " in found["continue"][0]


def test_a_model_before_context_extension_is_said_to_be_one(tmp_path, tiny_model, tiny_tokenizer):
    config = tiny_model.config.replace(global_rope_theta=10_000.0)
    MaskedLM(config, tiny_tokenizer).draw(0).save(tmp_path / "m")
    found = describe(tmp_path / "m")
    assert found["training"]["extended_rope_base"] is False
    assert "128 positions, RoPE base 10,000" in found["continue"][-1] and "global_rope_theta" in found["continue"][-1]


# Whether its files agree


@pytest.mark.parametrize(
    ("values", "level", "part"),
    [
        ({"global_rope_theta": 10_000.0}, "error", "160000.0 for full_attention and global_rope_theta says 10000.0"),
        ({"global_attn_every_n_layers": 2}, "error", "layer_types and global_attn_every_n_layers=2 disagree"),
        ({"global_rope_theta": None, "global_attn_every_n_layers": None}, "warning", "transformers before 5.0"),
        (
            {"hidden_size": 64},
            "error",
            "do not belong together: model.embeddings.tok_embeddings.weight and 21 more of another shape",
        ),
        ({"num_hidden_layers": 4, "layer_types": None}, "error", "the weights are incomplete: no model.layers.3"),
        ({"num_hidden_layers": 2, "layer_types": None}, "warning", "that the architecture does not have"),
        ({"dtype": "bfloat16"}, "warning", "config.json says bfloat16 and the tensors are float32"),
        ({"pad_token_id": 5}, "error", "config.json: pad_token_id=5, and the tokenizer's [PAD] is"),
        ({"mask_token_id": 302}, "error", "config.json: mask_token_id=302, and the tokenizer's [MASK] is 303"),
        ({"cls_token_id": 7}, "warning", "config.json: cls_token_id=7"),
        ({"eos_token_id": 320}, "error", "eos_token_id=320 is outside the vocabulary of 320"),
        ({"vocab_size": "many"}, "error", "vocab_size='many' is of the wrong kind"),
        ({"hidden_activation": "silu"}, "error", "only 'gelu' is computed"),
        ({"max_position_embeddings": 512}, "warning", "texts are cut at 128 tokens, and the model has 512 positions"),
        ({"architectures": ["ModernBertForSequenceClassification"]}, "error", "there is no classifier.weight"),
    ],
)
def test_a_config_that_disagrees_is_seen(folder, values, level, part):
    change(folder / "config.json", **values)
    assert part in only(folder, level)


def test_the_older_keys_alone_are_in_order(folder):
    change(folder / "config.json", rope_parameters=None, layer_types=None)
    assert not said(folder, "warning") and "the older generation" in " ".join(said(folder, "ok"))


@pytest.mark.parametrize(
    ("values", "level", "part"),
    [
        ({"mask_token": "[PAD]"}, "error", "pad and mask are the same token, [PAD]"),
        ({"mask_token": {"content": "[PAD]"}}, "error", "pad and mask are the same token, [PAD]"),
        ({"sep_token": "[CLS]"}, "warning", "cls and sep are the same token"),
        ({"pad_token": "<pad>"}, "error", "pad_token='<pad>', which tokenizer.json does not have"),
        ({"model_max_length": 10**30}, "warning", "model_max_length is no limit, and the model has 128 positions"),
        ({"model_max_length": 512}, "warning", "model_max_length is 512 tokens"),
        ({"model_max_length": 64}, "warning", "texts are cut at 64 tokens"),
        ({"added_tokens_decoder": {"302": {"lstrip": True}, "303": {"lstrip": True}}}, "error", "[PAD] has lstrip"),
        ({"added_tokens_decoder": {"303": {"lstrip": False}}}, "warning", "[MASK] has no lstrip"),
    ],
)
def test_tokenizer_files_that_disagree_are_seen(folder, values, level, part):
    assert (load_tokenizer(folder).token_to_id("[PAD]"), load_tokenizer(folder).token_to_id("[MASK]")) == (302, 303)
    change(folder / "tokenizer_config.json", **values)
    assert part in only(folder, level)


def test_a_tokenizer_that_is_too_large_or_missing_or_damaged_is_seen(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken(f"extra{n}") for n in range(8)])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    assert "the tokenizer has 328 ids and the embedding 320 rows" in only(folder, "error")
    (folder / "tokenizer.json").write_text("{}")
    assert "no tokenizer that can be read" in only(folder, "error")
    (folder / "tokenizer.json").unlink()
    assert "give the tokenizer beside the model" in only(folder, "warning")


def test_other_files_of_the_tokenizer_are_looked_at_too(folder):
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    assert "sentence_bert_config.json: texts are cut at 64" in only(folder, "warning")
    (folder / "sentence_bert_config.json").write_text("[")
    assert "sentence_bert_config.json cannot be read" in only(folder, "error")
    (folder / "sentence_bert_config.json").unlink()
    (folder / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json is no JSON" in only(folder, "error")
    (folder / "tokenizer_config.json").unlink()
    assert "no tokenizer_config.json" in only(folder, "warning")


@pytest.mark.parametrize(
    ("file", "values", "part"),
    [
        ("tokenizer_config.json", {"pad_token": 5}, "pad_token=5, which tokenizer.json does not have"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "has the key 'x', which is no id"),
        ("config.json", {"architectures": 5}, "architectures=5 is no list of names"),
        ("config.json", {"architectures": "ModernBertForMaskedLM"}, "is no list of names"),
    ],
)
def test_values_of_the_wrong_kind_are_findings(folder, file, values, part):
    change(folder / file, **values)
    assert part in only(folder, "error")
    assert describe(folder)["what"]["architecture"] in (None, "ModernBertForMaskedLM")


def test_files_that_are_no_objects_or_no_files_are_findings(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json holds a list, not an object" in only(folder, "error")
    (folder / "tokenizer_config.json").unlink()
    (folder / "sentence_bert_config.json").mkdir()
    assert "sentence_bert_config.json cannot be read" in only(folder, "error")
    (folder / "sentence_bert_config.json").rmdir()
    for content in ('{"weight_map": {"a": 5}}', '{"weight_map": [["a", "b"]]}', "[]"):
        (folder / "model.safetensors.index.json").write_text(content)
        assert "names no files" in only(folder, "error")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        describe(folder)


WEIGHTS_SPOILED = [
    (
        lambda t: t | {"model.final_norm.weight": torch.full((32,), float("inf"))},
        "error",
        "not finite: model.final_norm",
    ),
    (
        lambda t: t | {"decoder.weight": t["model.embeddings.tok_embeddings.weight"] + 1},
        "error",
        "differs from the embedding",
    ),
    (
        lambda t: {n: x for n, x in t.items() if "mlp.Wo" not in n},
        "error",
        "incomplete: no model.layers.0.mlp.Wo.weight and 2",
    ),
    (lambda t: {n: x for n, x in t.items() if n.startswith("model.")}, "error", "and there is no head.dense.weight"),
    (
        lambda t: t | {"decoder.bias": torch.zeros(320, dtype=torch.float16)},
        "warning",
        "several kinds: float32, float16",
    ),
    (
        lambda t: t | {"model.layers.0.attn_norm.weight": torch.ones(32)},
        "warning",
        "layers.0.attn_norm.weight that the",
    ),
]


@pytest.mark.parametrize(("changed", "level", "part"), WEIGHTS_SPOILED)
def test_weights_that_are_not_what_they_should_be_are_seen(folder, changed, level, part):
    change_tensors(folder, changed)
    assert part in only(folder, level)


def test_a_tied_decoder_that_is_written_out_is_in_order(folder, tiny_model):
    change_tensors(folder, lambda t: t | {"decoder.weight": t["model.embeddings.tok_embeddings.weight"].clone()})
    assert "decoder.weight is there and is the embedding" in said(folder, "ok")
    assert describe(folder)["what"]["parameters"] == tiny_model.num_parameters


def test_files_of_weights_that_are_missing_damaged_or_promised_are_seen(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is not there" in only(folder, "error")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "there are pickled weights" in only(folder, "error")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert not said(folder, "error")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map | {"model.x": "a.safetensors"}})
    )
    assert "promises model.x that the files do not hold" in only(folder, "error")
    (folder / "b.safetensors").write_bytes(b"cut")
    assert "b.safetensors cannot be read" in said(folder, "error")[0]
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "names no files" in only(folder, "error")


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_somebody_elses_checkpoint_is_described():
    found = describe(SHARED / "model-configs" / "tiny-random")
    assert found["errors"] == 0 and any("attn_norm" in text for text in said(found["folder"], "warning"))


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_the_published_large_models_config_and_the_genuine_tokenizer_agree(tmp_path):
    """Its weights are not here, so they are said to be missing; and that tokenizer_config.json cuts nowhere."""
    files = {"config.json": SHARED / "model-configs" / "ModernBERT-large-2024-12-20.json"}
    files |= {name: SHARED / "modernbert-tokenizer" / name for name in ("tokenizer.json", "tokenizer_config.json")}
    for name, path in files.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    assert "model.safetensors is not there" in only(tmp_path, "error")
    (warning,) = said(tmp_path, "warning")
    assert "model_max_length is no limit" in warning and describe(tmp_path)["what"]["preset"] == "large"


# The verb


def test_the_verb_shows_everything_and_ends_well(folder):
    found = run("doctor", folder)
    assert found.status == 0 and not found.err, found.err
    for part in ("ModernBertForMaskedLM", "rope bases", "to go on training", "annealed-continue", "all finite"):
        assert part in found.out
    assert result("doctor", folder)["errors"] == 0


def test_the_verb_ends_with_1_where_files_contradict_each_other(folder):
    change(folder / "config.json", pad_token_id=5)
    found = run("doctor", folder, "--json")
    assert found.status == 1 and json.loads(found.out)["errors"] == 1


def test_what_is_no_model_is_refused(tmp_path):
    assert "no such folder" in refusal("doctor", "nowhere")
    assert "has no config.json" in refusal("doctor", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        describe(tmp_path)
