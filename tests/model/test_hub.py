"""Checkpoints on disk: what is opened, what is refused and in which words, and that a save is whole or not at all."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modernbert import EncoderModel, MaskedLM, PackedBatch, load
from modernbert.errors import CheckpointError, ModernBertError, UnsupportedError
from modernbert.model import hub

SHARED = Path(__file__).parents[2].parent / "shared"
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A whole checkpoint, to be spoiled."""
    return tiny_model.save(tmp_path / "model")


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(change(tensors), path, metadata={"format": "pt"})


def without(start):
    """A change that leaves out the tensors whose names begin like this."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}


def refused(folder, error=CheckpointError, **options):
    """The one line in which a folder is refused."""
    with pytest.raises(error) as refusal:
        load(folder, **options)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def assert_same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def contents(folder):
    """Every path below, hidden ones too, with what the files hold."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# Opening


def test_a_saved_model_is_the_same_when_loaded(folder, tiny_model):
    model = load(folder)
    assert type(model) is MaskedLM and not model.training
    assert model.config == tiny_model.config
    assert_same_weights(model, tiny_model)
    assert model.tokenizer.to_str() == tiny_model.tokenizer.to_str()
    assert load(str(folder), backend="reference").encoder.backend == "reference"


def test_a_loaded_model_can_be_trained(folder):
    model = load(folder)
    model(PackedBatch.from_sequences([[5, 6, 7]], [[-100, 6, 7]])).loss_sum.backward()
    assert all(p.requires_grad and p.grad is not None and p.dtype == torch.float32 for p in model.parameters())


def test_a_checkpoint_without_a_tokenizer_opens_without_one(folder):
    (folder / "tokenizer.json").unlink()
    assert load(folder).tokenizer is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_opened_as_float32(folder, tiny_model, dtype):
    change_tensors(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, tiny_model.state_dict()[name].to(dtype).float())


def test_a_bare_encoder_of_transformers_opens_as_one(tmp_path, folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ModernBertModel.from_pretrained(folder).eval()
    theirs.save_pretrained(tmp_path / "bare")
    assert not any(name.startswith("model.") for name in hub.read_tensors(tmp_path / "bare"))
    ours = load(tmp_path / "bare")
    assert type(ours) is EncoderModel and ours.tokenizer is None
    ids = torch.arange(5, 45)
    hidden_TD = ours.encoder(PackedBatch.from_sequences([ids]))
    torch.testing.assert_close(hidden_TD, theirs(ids[None]).last_hidden_state[0], atol=2e-5, rtol=0)


def test_an_encoder_saves_and_opens_without_a_head(tmp_path, tiny_config):
    model = EncoderModel(tiny_config).draw(4)
    again = load(model.save(tmp_path / "encoder"))
    assert type(again) is EncoderModel
    assert_same_weights(again, model)
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["architectures"] == ["ModernBertModel"]


def test_a_classifier_opens_as_the_encoder_below_it(folder):
    change_tensors(folder, lambda tensors: tensors | {"classifier.weight": torch.zeros(2, 32)})
    assert type(load(folder)) is EncoderModel


def test_a_checkpoint_in_several_files_opens_through_its_index(folder, tiny_model):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        safetensors.torch.save_file(part, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same_weights(load(folder), tiny_model)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "has no model-00002-of-00002.safetensors" in refused(folder)


def test_a_checkpoint_that_transformers_split_opens(tmp_path, folder, tiny_model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ModernBertForMaskedLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "split", max_shard_size="50KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    assert_same_weights(load(tmp_path / "split"), tiny_model)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_broken_index_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refused(folder)


def test_a_decoder_that_is_saved_though_tied_opens(folder, tiny_model):
    embedding = "model.embeddings.tok_embeddings.weight"
    change_tensors(folder, lambda tensors: tensors | {"decoder.weight": tensors[embedding].clone()})
    assert_same_weights(load(folder), tiny_model)


def test_a_decoder_of_its_own_is_refused(folder):
    change_tensors(folder, lambda tensors: tensors | {"decoder.weight": torch.zeros(320, 32)})
    assert "decoder.weight differs from the embedding" in refused(folder, UnsupportedError)


def test_the_newest_checkpoint_of_a_run_is_opened(tmp_path, tiny_config):
    run = tmp_path / "run"
    for seed, name in enumerate(["stable-00000900", "extend-00010000", "anneal-00009999"]):
        MaskedLM(tiny_config).draw(seed).save(run / name)
    (run / "run.json").write_text("{}")
    (run / "anneal-00020000").mkdir()  # no config.json: not a checkpoint
    shutil.copytree(run / "stable-00000900", run / "hand-made")
    assert_same_weights(load(run), MaskedLM(tiny_config).draw(1))


# Refusing


def test_a_missing_tensor_is_named(folder):
    change_tensors(folder, without("model.layers.1.mlp.Wi.weight"))
    message = refused(folder)
    assert str(folder) in message and "model.layers.1.mlp.Wi.weight is missing" in message


def test_several_missing_tensors_are_counted(folder):
    change_tensors(folder, without("model.layers.2."))
    assert "model.layers.2.attn.Wo.weight and 5 more tensors are missing" in refused(folder)


def test_a_missing_decoder_bias_is_named(folder):
    change_tensors(folder, without("decoder.bias"))
    assert "decoder.bias is missing" in refused(folder)


def test_a_missing_embedding_is_named_where_the_decoder_is_saved(folder):
    change_tensors(folder, lambda tensors: tensors | {"decoder.weight": torch.zeros(320, 32)})
    change_tensors(folder, without("model.embeddings.tok_embeddings."))
    assert "model.embeddings.tok_embeddings.weight is missing" in refused(folder)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder):
    change_tensors(folder, lambda tensors: tensors | {"model.final_norm.weight": torch.ones(31)})
    message = refused(folder)
    assert "model.final_norm.weight is of the wrong shape" in message
    assert "(31,)" in message and "(32,)" in message


def test_a_config_of_another_size_is_refused(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 64}))
    assert "more tensors are of the wrong shape" in refused(folder)


def test_an_unexpected_tensor_is_refused_unless_it_is_to_be_ignored(folder, tiny_model):
    change_tensors(folder, lambda tensors: tensors | {"model.layers.0.attn_norm.weight": torch.ones(32)})
    message = refused(folder)
    assert "model.layers.0.attn_norm.weight is unknown" in message and "--ignore-unexpected" in message
    assert_same_weights(load(folder, ignore_unexpected=True), tiny_model)


def test_layers_more_than_the_config_says_are_refused(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 2, "layer_types": None}))
    assert "model.layers.2.attn.Wo.weight and 5 more tensors are unknown" in refused(folder)


def test_a_strangers_checkpoint_with_a_norm_too_many_is_refused_or_read_as_transformers_does():
    transformers = pytest.importorskip("transformers")
    folder = SHARED / "model-configs" / "tiny-random"
    if not folder.exists():
        pytest.skip("the stranger's checkpoint is not on this machine")
    message = refused(folder)
    assert "model.layers.0.attn_norm.weight is unknown" in message and "ignore_unexpected=True" in message
    ours = load(folder, ignore_unexpected=True)
    assert type(ours) is EncoderModel and ours.tokenizer is not None
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    ids = torch.arange(10, 110)
    hidden_TD = ours.encoder(PackedBatch.from_sequences([ids]))
    torch.testing.assert_close(hidden_TD, theirs(ids[None]).last_hidden_state[0], atol=2e-5, rtol=0)


def test_a_folder_without_config_or_weights_is_no_checkpoint(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    assert "has no config.json; it is no checkpoint folder" in refused(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    message = refused(folder)
    assert "has no model.safetensors" in message and "pickled" not in message


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled weights only: open and save it once with transformers" in refused(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("", "not valid JSON"), ("[1]", "a list, not an object")]
)
def test_a_broken_config_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    line = refused(folder)
    assert message in line and "config.json" in line


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_of_weights_is_refused(folder, kept):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    message = refused(folder)
    assert "model.safetensors cannot be read" in message and "good copy" in message


def test_a_checkpoint_of_another_kind_of_model_is_refused(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "bert"}))
    assert "model_type is 'bert'" in refused(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nowhere", "a/b/c", "~/model"])
def test_a_path_that_is_not_there_never_asks_the_hub(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    assert f"{name}: no such folder" in refused(name)


def test_a_hub_name_without_a_network_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub

    assert huggingface_hub.constants.HF_HUB_OFFLINE  # set in tests/conftest.py
    message = refused("nobody-at-all/no-such-model")
    assert "nobody-at-all/no-such-model: no such folder, and the hub did not give it" in message

    def cut_off(*_, **__):
        raise ConnectionError("several\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cut_off)
    assert "(ConnectionError); check the name and the network, or give a local folder" in refused("owner/model")


def test_a_hub_name_opens_what_the_hub_gives(monkeypatch, folder, tiny_model):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert_same_weights(load("owner/model"), tiny_model)
    assert asked == ["owner/model"]


# Saving


def test_a_saved_folder_holds_what_transformers_asks_for_and_nothing_else(tmp_path, folder, tiny_config):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    bare = MaskedLM(tiny_config).draw(0).save(tmp_path / "bare")
    assert sorted(path.name for path in bare.iterdir()) == FILES[:2]


def test_a_saved_folder_has_the_permissions_of_any_other(tmp_path, folder):
    (tmp_path / "other").mkdir()
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_makes_the_folders_above(tmp_path, tiny_model):
    assert load(tiny_model.save(tmp_path / "a" / "b" / "model")).config == tiny_model.config


def test_saved_weights_are_named_as_the_published_ones(folder):
    tensors = hub.read_tensors(folder)
    layer = ["attn.Wqkv.weight", "attn.Wo.weight", "mlp_norm.weight", "mlp.Wi.weight", "mlp.Wo.weight"]
    expected = {
        *("model.embeddings.tok_embeddings.weight", "model.embeddings.norm.weight", "model.final_norm.weight"),
        *("head.dense.weight", "head.norm.weight", "decoder.bias"),
        *(f"model.layers.{i}.{name}" for i in range(3) for name in layer),
        *(f"model.layers.{i}.attn_norm.weight" for i in (1, 2)),
    }
    assert tensors.keys() == expected  # no decoder.weight: it is tied
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_saved_tokenizer_is_described_for_transformers(folder, tiny_config):
    values = json.loads((folder / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["model_max_length"] == tiny_config.max_position_embeddings == 128
    assert values["model_input_names"] == ["input_ids", "attention_mask"]
    assert values["mask_token"] == "[MASK]"


def test_saving_twice_leaves_the_second(tmp_path, tiny_config, folder):
    (folder / "stale.txt").write_text("of the first save")
    other = MaskedLM(tiny_config).draw(9)
    other.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same_weights(load(folder), other)


def write_half_and_fail(failure):
    real = safetensors.torch.save_file

    def save_file(tensors, path, **options):
        real(tensors, path, **options)
        os.truncate(path, os.path.getsize(path) // 2)
        raise failure

    return save_file


@pytest.mark.parametrize("earlier", [True, False], ids=["over-an-earlier", "new"])
def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(
    tmp_path, monkeypatch, tiny_model, tiny_config, earlier
):
    parent = tmp_path / "checkpoints"
    parent.mkdir()
    if earlier:
        tiny_model.save(parent / "model")
    before = contents(parent)
    no_space = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(safetensors.torch, "save_file", write_half_and_fail(no_space))
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space") as refusal:
        MaskedLM(tiny_config).draw(9).save(parent / "model")
    assert "\n" not in str(refusal.value) and str(parent / "model") in str(refusal.value)
    assert contents(parent) == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()], ids=repr)
def test_an_interrupted_save_leaves_what_was_there(folder, monkeypatch, tiny_config, failure):
    before = contents(folder.parent)
    monkeypatch.setattr(safetensors.torch, "save_file", write_half_and_fail(failure))
    with pytest.raises(type(failure)):
        MaskedLM(tiny_config).draw(9).save(folder)
    assert contents(folder.parent) == before


def test_a_disk_that_fills_up_at_the_tokenizer_leaves_what_was_there(folder, monkeypatch, tiny_config, tiny_tokenizer):
    before = contents(folder.parent)
    write_bytes = Path.write_bytes

    def fill_up(path, *args, **options):
        if "tokenizer_config.json" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, *args, **options)

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(ModernBertError, match="No space left on device"):
        MaskedLM(tiny_config, tiny_tokenizer).draw(9).save(folder)
    assert contents(folder.parent) == before


LIMITED_SAVE = """
import resource, sys
from modernbert import load
from modernbert.errors import CheckpointError

model = load(sys.argv[1])
for parameter in model.parameters():
    parameter.data.zero_()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for target in sys.argv[1:]:
    try:
        model.save(target)
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_file_system_that_takes_no_more_leaves_what_was_there(folder):
    before = contents(folder.parent)
    assert (folder / "model.safetensors").stat().st_size > 50_000
    command = [sys.executable, "-c", LIMITED_SAVE, str(folder), str(folder.with_name("new"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    over_an_earlier, new = done.stdout.splitlines()
    for message in (over_an_earlier, new):
        assert "could not be saved" in message and "File too large" in message
    assert contents(folder.parent) == before


def test_a_place_that_cannot_hold_a_folder_is_refused(tmp_path, tiny_model):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="could not be saved"):
        tiny_model.save(tmp_path / "file" / "model")
    assert contents(tmp_path) == {"file": b"kept"}


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()], ids=repr)
def test_a_save_that_fails_at_the_last_step_puts_the_earlier_one_back(folder, monkeypatch, tiny_config, failure):
    before = contents(folder.parent)
    rename = os.rename

    def fail_at_the_last(source, destination):
        if Path(destination) == folder and not str(source).endswith(".replaced"):
            raise failure
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_at_the_last)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        MaskedLM(tiny_config).draw(9).save(folder)
    monkeypatch.undo()
    assert contents(folder.parent) == before


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_said_of_a_save_over_a_file_or_link_is_true(tmp_path, tiny_model, tiny_config, kind):
    target = tmp_path / "latest"
    if kind == "file":
        target.write_text("kept")
    else:
        target.symlink_to(tiny_model.save(tmp_path / "real"))
    before = contents(tmp_path)
    try:
        MaskedLM(tiny_config).draw(9).save(target)
    except CheckpointError:
        assert contents(tmp_path) == before
    else:
        assert_same_weights(load(target), MaskedLM(tiny_config).draw(9))
        assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_what_a_killed_save_left_is_cleared_and_nothing_else(folder):
    parent = folder.parent
    for name in (".model.unfinished-abcd1234", ".model.replaced", ".git", ".x.backup2024"):
        (parent / name).mkdir()
    (parent / ".lost.replaced").mkdir()  # killed between the two renames: the earlier one gets its name back
    hub.clear_unfinished(parent)
    assert sorted(path.name for path in parent.iterdir()) == [".git", ".x.backup2024", "lost", "model"]


def test_a_bias_that_the_config_denies_is_no_surprise_to_be_dropped(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["head.dense.bias"] = torch.ones(tensors["head.dense.weight"].shape[0])
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"head\.dense\.bias is unknown"):
        load(folder)


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(tmp_path, tiny_config, tiny_tokenizer):
    folder = MaskedLM(tiny_config.replace(vocab_size=256), tiny_tokenizer).draw(0).save(tmp_path / "small")
    with pytest.raises(CheckpointError, match="tokenizer has 320 ids and the model 256"):
        load(folder)


def test_a_model_without_a_head_says_that_it_cannot_fill_masks(tmp_path, tiny_config, tiny_tokenizer):
    folder = EncoderModel(tiny_config, tiny_tokenizer).draw(0).save(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="no MLM head"):
        load(folder).fill_mask("the [MASK]")
