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


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


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


# The verb


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
