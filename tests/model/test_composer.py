"""Checkpoints of the reference trainer: names, shapes, windows and bases, and that nothing in a file is ever run."""

import dataclasses
import pickle
import zipfile

import pytest
import torch
from reference.composer_file import names_of_the_trainer, stored_config, write

from modernbert import MaskedLM
from modernbert.errors import CheckpointError, UnsupportedError
from modernbert.model.composer import config_of, model_settings, read_composer, write_composer
from modernbert.model.pickled import read_pickle


@pytest.fixture
def write_tiny(tmp_path, tiny_model):
    return lambda **options: write(tmp_path / "ep0-ba25-rank0.pt", tiny_model, **options)


@pytest.mark.parametrize("prefix", ["model.", "", "module.model.", "model._orig_mod.", "_orig_mod.model.module."])
def test_tensors_get_their_published_names_whatever_wrapped_them(write_tiny, tiny_model, prefix):
    found = read_composer(write_tiny(prefix=prefix))
    assert found.tensors.keys() == tiny_model.state_dict().keys() and not found.left_out
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tiny_model.state_dict().items())


def test_wrappers_inside_names_are_dropped_too(tmp_path, tiny_model):
    names = names_of_the_trainer(tiny_model.state_dict())
    wrapped = {name.replace(".attn.", "._fsdp_wrapped_module.attn._orig_mod."): t for name, t in names.items()}
    torch.save({"state": {"model": wrapped}}, tmp_path / "x.pt")
    assert read_composer(tmp_path / "x.pt").tensors.keys() == tiny_model.state_dict().keys()


def test_bare_state_dicts_are_read_too(tmp_path, tiny_model):
    for whole in (
        names_of_the_trainer(tiny_model.state_dict()),
        {"state_dict": names_of_the_trainer(tiny_model.state_dict())},
    ):
        torch.save(whole, tmp_path / "x.pt")
        assert read_composer(tmp_path / "x.pt").tensors.keys() == tiny_model.state_dict().keys()


def test_the_clock_and_the_tokenizer_are_found(write_tiny, tiny_model, tiny_config):
    found = read_composer(write_tiny(config=stored_config(tiny_config), tokenizer=tiny_model.tokenizer, tokens=77))
    assert found.tokens == 77
    assert found.tokenizer().to_str() == tiny_model.tokenizer.to_str()
    with pytest.raises(CheckpointError, match="holds no tokenizer; give the one"):
        read_composer(write_tiny()).tokenizer()


def test_the_shape_is_the_tensors_and_the_rest_the_stored_settings(write_tiny, tiny_model, tiny_config):
    found = read_composer(write_tiny(config=stored_config(tiny_config, max_seq_len=128, rotary_emb_base=160000.0,
                                                          local_attn_rotary_emb_base=10000.0)))  # fmt: skip
    config, remarks = config_of(found, tiny_model.tokenizer)
    assert config == tiny_config and remarks == []


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({}, {"global_rope_theta": 10_000.0, "local_rope_theta": 10_000.0, "max_position_embeddings": 1024}),
        (
            {"rotary_emb_base": 160000.0},  # -1: local layers as global ones
            {"global_rope_theta": 160_000.0, "local_rope_theta": 160_000.0, "max_position_embeddings": 8192},
        ),
        ({"max_seq_len": 7999}, {"max_position_embeddings": 7999}),
        (
            {"sliding_window": 64},
            {"local_attention": 64, "layer_types": ("full_attention", *["sliding_attention"] * 2)},
        ),
        ({"global_attn_every_n_layers": -1}, {"layer_types": ("sliding_attention",) * 3}),
        ({"sliding_window": -1, "global_attn_every_n_layers": -1}, {"layer_types": ("full_attention",) * 3}),
        ({"global_attn_every_n_layers": 2}, {"layer_types": ("full_attention", "sliding_attention", "full_attention")}),
        ({"norm_kwargs": {"eps": "1e-6", "bias": False}}, {"norm_eps": 1e-6}),  # YAML reads 1e-6 as a text
        ({"normalization": "low_precision_layernorm"}, {}),
    ],
)
def test_windows_and_bases_are_read_as_the_trainer_means_them(write_tiny, tiny_model, tiny_config, stored, expected):
    found = read_composer(write_tiny(config=stored_config(tiny_config, **stored)))
    config, _ = config_of(found, tiny_model.tokenizer)
    assert {name: getattr(config, name) for name in expected} == expected


def test_an_old_checkpoint_whose_settings_know_no_window_has_none(write_tiny, tiny_model, tiny_config):
    stored = stored_config(tiny_config)
    del stored["sliding_window"], stored["global_attn_every_n_layers"], stored["local_attn_rotary_emb_base"]
    config, _ = config_of(read_composer(write_tiny(config=stored)), tiny_model.tokenizer)
    assert set(config.layer_types) == {"full_attention"}


def test_what_nobody_says_is_assumed_and_said(tmp_path, tiny_tokenizer, tiny_config):
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 4}
    wide = MaskedLM(tiny_config.replace(**shape), tiny_tokenizer).draw(0)
    config, remarks = config_of(read_composer(write(tmp_path / "x.pt", wide)), tiny_tokenizer)
    assert (config.num_attention_heads, config.local_attention, config.global_attn_every_n_layers) == (2, 128, 3)
    assert (config.global_rope_theta, config.local_rope_theta, config.max_position_embeddings) == (
        160_000,
        10_000,
        8192,
    )
    assert "are assumed" in remarks[0] and "8,192 positions are assumed" in remarks[1]


def test_a_configuration_wins_over_the_checkpoint_and_options_over_both(write_tiny, tiny_model, tiny_config):
    found = read_composer(write_tiny(config=stored_config(tiny_config, rotary_emb_base=20000.0)))
    yaml = {"max_seq_len": 64, "model": {"name": "flex_bert", "model_config": {"rotary_emb_base": 30000.0}}}
    config, remarks = config_of(found, tiny_model.tokenizer, yaml)
    assert (config.global_rope_theta, config.max_position_embeddings, remarks) == (30_000, 64, [])
    config, _ = config_of(found, tiny_model.tokenizer, yaml, global_rope_theta=40_000.0, max_position_embeddings=None)
    assert (config.global_rope_theta, config.max_position_embeddings) == (40_000, 64)
    assert (
        model_settings({"model_config": {"hidden_size": 3}}) == model_settings({"hidden_size": 3}) == {"hidden_size": 3}
    )


def test_special_ids_are_the_tokenizers_and_never_typed(write_tiny, tiny_model, tiny_config):
    stored = stored_config(tiny_config, pad_token_id=0, mask_token_id=0)
    config, _ = config_of(read_composer(write_tiny(config=stored)), tiny_model.tokenizer)
    assert (config.pad_token_id, config.cls_token_id, config.sep_token_id) == (
        tiny_config.pad_token_id, tiny_config.cls_token_id, tiny_config.sep_token_id,
    )  # fmt: skip


def test_biases_are_seen_in_the_tensors(tmp_path, tiny_tokenizer, tiny_config):
    biases = {
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
    }
    model = MaskedLM(tiny_config.replace(**biases), tiny_tokenizer).draw(0)
    config, _ = config_of(read_composer(write(tmp_path / "x.pt", model)), tiny_tokenizer, {"num_attention_heads": 2})
    assert {name: getattr(config, name) for name in biases} == biases


# What is refused


@pytest.mark.parametrize(
    ("stored", "part"),
    [
        ({"causal_mask": True}, "causal_mask=True"),  # Ettin's decoders have the same names
        ({"bert_layer": "parallel_prenorm"}, "'parallel_prenorm'; only 'prenorm'"),
        ({"normalization": "rmsnorm"}, "'layernorm' or 'low_precision_layernorm'"),
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
        ({"skip_first_prenorm": False}, "skip_first_prenorm"),
        ({"embedding_layer": "absolute_pos"}, "absolute_pos"),
    ],
)
def test_an_architecture_that_is_not_computed_is_refused(write_tiny, tiny_model, tiny_config, stored, part):
    found = read_composer(write_tiny(config=stored_config(tiny_config, **stored)))
    with pytest.raises(UnsupportedError, match=part):
        config_of(found, tiny_model.tokenizer)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "intermediate_size"])
def test_settings_of_another_model_are_refused(write_tiny, tiny_model, tiny_config, name):
    found = read_composer(write_tiny(config=stored_config(tiny_config)))
    with pytest.raises(CheckpointError, match=f"{name} is .* by its tensors and 999 by the settings"):
        config_of(found, tiny_model.tokenizer, {name: 999})


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path, tiny_tokenizer, tiny_config):
    small = MaskedLM(tiny_config.replace(vocab_size=256, pad_token_id=0)).draw(0)
    with pytest.raises(CheckpointError, match="320 ids and the model 256 rows"):
        config_of(read_composer(write(tmp_path / "x.pt", small)), tiny_tokenizer)


def test_a_decoder_of_its_own_is_refused(tmp_path, tiny_model):
    names = names_of_the_trainer(tiny_model.state_dict())
    torch.save(
        {"state": {"model": names | {"model.decoder.weight": names["model.decoder.weight"] + 1}}}, tmp_path / "x.pt"
    )
    with pytest.raises(UnsupportedError, match="tied decoder"):
        read_composer(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"state": {"model": {"model.roberta.x": torch.zeros(2)}}}, "holds no model.bert.embeddings"),
        ({"state": {}}, "holds no model.bert.embeddings"),
        ([1, 2], "holds no model.bert.embeddings"),
        ({"state": {"model": {"model.bert.embeddings.tok_embeddings.weight": "a shard"}}}, "no whole tensor"),
        ({"state": {"model": {"model.bert.embeddings.tok_embeddings.weight": torch.zeros(320, 8)}}}, "no ModernBERT"),
    ],
)
def test_another_kind_of_file_is_refused_in_one_line(tmp_path, tiny_tokenizer, content, part):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises((CheckpointError, UnsupportedError), match=part) as refusal:
        config_of(read_composer(tmp_path / "x.pt"), tiny_tokenizer)
    assert "\n" not in str(refusal.value)


# Reading pickles


class Harmful:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


@dataclasses.dataclass
class Foreign:
    values: list


class ForeignDict(dict):
    pass


def test_nothing_in_a_file_is_run_and_foreign_objects_are_no_hindrance(tmp_path):
    mark = tmp_path / "harm"
    deep = ForeignDict(a=Foreign([1]), b=print)
    whole = {"a": torch.arange(3), "b": [Harmful(mark), deep, Foreign([2])], "c": {"d": 1.5, "e": None, "f": "ü"}}
    torch.save(whole, tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt")
    assert not mark.exists()
    assert torch.equal(found["a"], whole["a"]) and found["c"] == whole["c"] and len(found["b"]) == 3
    found["b"][0].anything_else = 1  # stand-ins are plain objects
    pickle.loads(pickle.dumps(Harmful(mark)))  # the same object is harmful to an ordinary reader
    assert mark.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_tensors_of_any_kind_are_read(tmp_path, dtype):
    matrix = torch.arange(12).view(3, 4).to(dtype)
    torch.save(
        {"whole": matrix, "part": matrix[:, 1:3], "parameter": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt"
    )
    found = read_pickle(tmp_path / "x.pt")
    assert torch.equal(found["whole"], matrix) and torch.equal(found["part"], matrix[:, 1:3])
    assert torch.equal(found["parameter"], torch.ones(2))


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-600])
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"nonsense")
    for name, part in (
        ("none.pt", "no such file"), ("text.pt", "torch.save"), ("old.pt", "torch.save"), ("script.pt", "TorchScript"),
        ("cut.pt", "fetch it again"), ("zip.pt", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=part) as refusal:
            read_pickle(tmp_path / name)
        assert "\n" not in str(refusal.value) and name in str(refusal.value)


# The way back


def test_what_is_written_for_the_trainer_is_what_it_writes(tmp_path, tiny_model, tiny_config):
    path = tmp_path / "back.pt"
    write_composer(tiny_model.state_dict(), tiny_config, tiny_model.tokenizer, path)
    whole = torch.load(path, weights_only=True)  # no objects: plain PyTorch opens it
    assert whole["state"]["model"].keys() == names_of_the_trainer(tiny_model.state_dict()).keys()
    found = read_composer(path)
    assert config_of(found, found.tokenizer()) == (tiny_config, [])
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tiny_model.state_dict().items())


def test_a_pattern_that_the_trainer_does_not_know_is_not_written(tmp_path, tiny_config):
    odd = MaskedLM(tiny_config.replace(layer_types=("sliding_attention", "full_attention", "full_attention"))).draw(0)
    with pytest.raises(UnsupportedError, match="global_attn_every_n_layers"):
        write_composer(odd.state_dict(), odd.config, None, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
