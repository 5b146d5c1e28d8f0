"""`modernbert import`: a checkpoint of the reference trainer becomes a folder, is proven to be the same model, and goes back."""

import json
import sys

import numpy as np
import pytest
import torch
from reference.composer_file import stored_config, write
from reference.mds_writer import write_mds
from test_cli import refusal, result, run

import modernbert
from modernbert import MaskedLM, PackedBatch, load
from modernbert import convert as convert_module
from modernbert.convert import export_composer, import_any, import_composer
from modernbert.errors import CheckpointError, ConfigError
from modernbert.model import hub
from modernbert.model.composer import read_composer
from modernbert.text import Shards, save_tokenizer

ARCHITECTURE = {"max_seq_len": 128, "rotary_emb_base": 160000.0, "local_attn_rotary_emb_base": 10000.0}


pytestmark = pytest.mark.usefixtures("own_place")


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.fixture
def composer_file(tmp_path, tiny_model, tiny_config):
    """As a run of the trainer leaves it: settings and tokenizer inside."""
    config = stored_config(tiny_config, **ARCHITECTURE)
    return write(tmp_path / "ep0-ba25-rank0.pt", tiny_model, config=config, tokenizer=tiny_model.tokenizer)


@torch.inference_mode()
def scores(model, ids=range(5, 105)):
    return model.logits(PackedBatch.from_sequences([torch.tensor([*ids])]))


def test_an_imported_checkpoint_is_the_model_that_was_saved(composer_file, tiny_model, tiny_config):
    pytest.importorskip("transformers")
    found = import_composer(composer_file, "model")
    again = load("model")
    assert type(again) is MaskedLM and again.config == tiny_config
    assert torch.equal(scores(again), scores(tiny_model))
    assert again.tokenizer.to_str() == tiny_model.tokenizer.to_str()
    assert found["checked"]["with"].startswith("transformers ") and found["checked"]["difference"] < 1e-5
    assert found["tokens"] == 123_456_789 and found["parameters"] == tiny_model.num_parameters
    assert json.loads(json.dumps(found)) == found


@pytest.mark.usefixtures("without_transformers")
def test_without_transformers_the_folder_is_opened_by_this_package(composer_file):
    assert import_composer(composer_file, "model")["checked"] == {"with": "modernbert", "difference": 0.0}


@pytest.mark.usefixtures("without_transformers")
def test_a_tokenizer_may_be_given(tmp_path, tiny_model, tiny_config):
    path = write(tmp_path / "x.pt", tiny_model, config=stored_config(tiny_config))
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        import_composer(path, "model")
    save_tokenizer(tiny_model.tokenizer, "tokenizer", model_max_length=128)
    import_composer(path, "model", tokenizer="tokenizer")
    assert load("model").config.max_position_embeddings == 1024  # as before context extension


@pytest.mark.usefixtures("without_transformers")
@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_the_trainers_configuration_is_read(tmp_path, tiny_model, composer_file, name):
    settings = {"max_seq_len": 96, "model": {"model_config": {"rotary_emb_base": 20000.0}}, "note": "${max_seq_len}"}
    (tmp_path / name).write_text(json.dumps(settings))  # YAML reads JSON
    found = import_composer(composer_file, "model", settings=tmp_path / name)
    assert (found["config"]["max_position_embeddings"], found["config"]["global_rope_theta"]) == (96, 20_000)
    assert load("model").tokenizer is not None


@pytest.mark.parametrize(
    ("text", "part"), [("a: [", "neither YAML nor JSON"), ("- 1", "holds no settings"), (None, "check the path")]
)
def test_a_configuration_that_is_none_is_refused(tmp_path, composer_file, text, part):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=part) as refusal:
        import_composer(composer_file, "model", settings=tmp_path / "run.yaml")
    assert "\n" not in str(refusal.value) and not (tmp_path / "model").exists()


def test_a_model_that_answers_otherwise_when_opened_again_is_not_kept(tmp_path, composer_file, monkeypatch):
    """As when a reader takes its own default for a base that is not written."""
    pytest.importorskip("transformers")
    written = hub.write_weights

    def forgetful(folder, *args, **named):
        written(folder, *args, **named)
        values = json.loads((folder / "config.json").read_text())
        values["layer_types"] = ["full_attention"] * 3
        (folder / "config.json").write_text(json.dumps(values))

    monkeypatch.setattr(hub, "write_weights", forgetful)
    monkeypatch.setattr(convert_module, "_TOLERANCE", 1e-6)  # untrained, attention is hardly heard
    with pytest.raises(CheckpointError, match=r"opened again with transformers [\d.]+ the scores differ"):
        import_composer(composer_file, "model")
    assert not (tmp_path / "model").exists() and not [*tmp_path.glob(".model*")]


def test_values_that_are_not_finite_are_refused(tmp_path, tiny_config, tiny_tokenizer):
    broken = MaskedLM(tiny_config, tiny_tokenizer).draw(0)
    broken.model.layers[1].mlp.Wi.weight.data[3, 5] = float("nan")
    path = write(tmp_path / "x.pt", broken, config=stored_config(tiny_config), tokenizer=tiny_tokenizer)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.Wi\.weight holds values that are not finite"):
        import_composer(path, "model")


def test_a_classifier_is_refused(tmp_path, tiny_model, tiny_config):
    path = write(tmp_path / "x.pt", tiny_model, config=stored_config(tiny_config), tokenizer=tiny_model.tokenizer)
    whole = torch.load(path, weights_only=False)
    whole["state"]["model"]["model.classifier.weight"] = torch.zeros(2, 32)
    torch.save(whole, path)
    with pytest.raises(CheckpointError, match="no masked language model"):
        import_composer(path, "model")


def test_what_is_there_is_not_overwritten(composer_file, tiny_model):
    tiny_model.save("model")
    with pytest.raises(ConfigError, match="is there already"):
        import_composer(composer_file, "model")
    with pytest.raises(ConfigError, match="is there already"):
        export_composer("model", composer_file)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "text.txt"])
def test_a_folder_that_holds_anything_is_never_replaced(tmp_path, composer_file, name):
    """Such as a run's folder, which has no config.json of its own."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("a month of work")
    with pytest.raises(ConfigError, match="is there already"):
        import_composer(composer_file, "run")
    assert (tmp_path / "run" / name).read_text() == "a month of work"


@pytest.mark.usefixtures("without_transformers")
def test_an_empty_folder_may_be_filled(tmp_path, composer_file):
    (tmp_path / "model").mkdir()
    assert import_composer(composer_file, "model")["out"] == "model"


ODD = [
    ({"rotary_emb_base": None}, "rotary_emb_base=None is no number"),
    ({"rotary_emb_base": "high"}, "rotary_emb_base='high' is no number"),
    ({"sliding_window": "wide"}, "sliding_window='wide' is no number"),
    ({"sliding_window": 8.5}, "sliding_window=8.5 is no whole number"),
    ({"max_seq_len": "${max_seq_len}"}, r"max_seq_len='\$\{max_seq_len\}' is no number"),
    ({"norm_kwargs": {"eps": "small"}}, "norm_kwargs.eps='small' is no number"),
    ({"num_attention_heads": [2]}, r"num_attention_heads=\[2\] is no number"),
    ({"global_attn_every_n_layers": True}, "global_attn_every_n_layers=True is no number"),
]


@pytest.mark.parametrize(("values", "part"), ODD)
def test_settings_that_are_no_numbers_are_refused_in_a_line(tmp_path, tiny_model, tiny_config, values, part):
    config = stored_config(tiny_config, **(ARCHITECTURE | values))
    path = write(tmp_path / "x.pt", tiny_model, config=config, tokenizer=tiny_model.tokenizer)
    with pytest.raises(CheckpointError, match=part) as refused:
        import_composer(path, "model")
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("without_transformers")
def test_numbers_that_yaml_leaves_as_text_are_numbers(tmp_path, tiny_model, tiny_config):
    odd = {"sliding_window": "8", "norm_kwargs": {"eps": "1e-5"}, "rotary_emb_base": "16e4"}
    config = stored_config(tiny_config, **(ARCHITECTURE | odd))
    path = write(tmp_path / "x.pt", tiny_model, config=config, tokenizer=tiny_model.tokenizer)
    assert import_composer(path, "model")["config"]["local_attention"] == 8
    assert load("model").config == tiny_config


def test_a_flat_matrix_and_a_broken_archive_are_refused_in_a_line(tmp_path, composer_file):
    whole = torch.load(composer_file, weights_only=False)
    name = next(name for name in whole["state"]["model"] if name.endswith("layers.0.mlp.Wo.weight"))
    whole["state"]["model"][name] = whole["state"]["model"][name].flatten()
    torch.save(whole, tmp_path / "flat.pt")
    with pytest.raises(CheckpointError, match="is no matrix"):
        import_composer(tmp_path / "flat.pt", "model")
    end = b"PK\x05\x06" + bytes(4) + b"\x01\x00\x01\x00" + b"\xff\x00\x00\x00" + bytes(4) + bytes(2)
    (tmp_path / "zip.pt").write_bytes(bytes(300) + end)
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_composer(tmp_path / "zip.pt", "model")


def test_a_file_for_the_trainer_is_whole_or_not_there(tmp_path, tiny_model, monkeypatch):
    tiny_model.save("model")

    def full(_values, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(CheckpointError, match="cannot be written"):
            export_composer("model", "deep/er/back.pt")
    assert [*(tmp_path / "deep" / "er").iterdir()] == []
    assert export_composer("model", "deep/er/back.pt")["parameters"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        export_composer("model", "file/back.pt")


# The verb


@pytest.mark.parametrize(
    ("source", "options", "part"),
    [
        ("model", ["--out", "x.pt", "--global-rope-theta", "5"], "--global-rope-theta: of no use for model"),
        ("model", ["--out", "x.pt", "--tokenizer", "model"], "--tokenizer: of no use for model"),
        ("model", ["--out", "x.pt", "--config", "x.yaml"], "--config: of no use for model"),
        ("mds", ["--out", "x", "--tokenizer", "model", "--max-positions", "5"], "--max-positions: of no use for mds"),
        ("ep0-ba25-rank0.pt", ["--out", "x", "--column", "ids", "--heldout", "0.1"], "--column, --heldout: of no use"),
        ("ep0-ba25-rank0.pt", ["--out", "x", "--max-positions", "0"], "max_position_embeddings=0 must be at least 1"),
    ],
)
def test_an_option_that_does_not_apply_is_refused(tmp_path, tiny_model, composer_file, source, options, part):
    tiny_model.save("model")
    (tmp_path / "mds").mkdir()
    assert part in refusal("import", source, *options)
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.pt").exists()


def test_the_verb_imports_a_checkpoint_and_writes_it_back(tmp_path, composer_file, tiny_model):
    found = result("import", composer_file, "--out", "model", "--max-positions", 100)
    assert (found["kind"], found["config"]["max_position_embeddings"]) == ("model", 100)
    back = result("import", "model", "--out", "back.pt")
    assert back["kind"] == "composer" and back["parameters"] == tiny_model.num_parameters
    before, after = read_composer(composer_file), read_composer(tmp_path / "back.pt")
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors | after.tensors)


def test_the_verb_says_what_it_assumed_and_how_it_was_checked(tmp_path, tiny_tokenizer, tiny_config):
    shape = {"hidden_size": 64, "num_attention_heads": 1}
    path = write(tmp_path / "x.pt", MaskedLM(tiny_config.replace(**shape), tiny_tokenizer).draw(0))
    save_tokenizer(tiny_tokenizer, "tokenizer", model_max_length=128)
    found = run("import", path, "--tokenizer", "tokenizer", "--out", "model")
    assert found.status == 0, found.err
    assert "are assumed" in found.err and "8,192 positions are assumed" in found.err and "start=" in found.err
    assert "model: written; opened with" in found.out


def test_mds_shards_become_shards(tmp_path, tiny_tokenizer):
    documents = [tiny_tokenizer.encode(f"the river and the old stone house {n}").ids for n in range(40)]
    samples = [{"input_ids": np.array(ids, dtype=np.uint16)} for ids in documents]
    write_mds(tmp_path / "mds", {"input_ids": "ndarray:uint16"}, samples)
    save_tokenizer(tiny_tokenizer, "tokenizer", model_max_length=128)
    assert "give --tokenizer" in refusal("import", "mds", "--out", "shards")
    found = result("import", "mds", "--tokenizer", "tokenizer", "--out", "shards", "--heldout", 0.25)
    assert found["kind"] == "shards"
    assert sum(Shards.open("shards", split=split).num_documents for split in ("train", "heldout")) == 40


def test_refusals_of_the_verb_are_one_line(tmp_path, tiny_model):
    (tmp_path / "text.pt").write_text("no")
    tiny_model.save("model")
    assert "no file that torch.save" in refusal("import", "text.pt", "--out", "out")
    assert "no such file" in refusal("import", "nowhere.pt", "--out", "out")
    assert "say --out FILE.pt" in refusal("import", "model", "--out", "out")
    assert not (tmp_path / "out").exists()


def test_any_source_is_told_by_what_it_is(composer_file):
    assert import_any(composer_file, "model")["kind"] == "model"
    assert import_any("model", "back.pt")["kind"] == "composer"
    assert modernbert.load("model").num_parameters
