"""`config.json` of both generations: what is read, what is written, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert import PRESETS, MaskedLM, ModernBertConfig, load
from modernbert.errors import CheckpointError, ConfigError, ModernBertError, UnsupportedError
from modernbert.model.config import FULL, SLIDING

SHARED = Path(__file__).parents[2].parent / "shared"
OLDER = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
NEWER = ("layer_types", "rope_parameters")
ARCHITECTURE = "ModernBertForMaskedLM"


def written(config):
    """What is written, as it comes back from JSON."""
    return json.loads(json.dumps(config.to_dict(ARCHITECTURE)))


def without(values, *names):
    return {name: value for name, value in values.items() if name not in names}


def shape(config):
    """All fields that say something of the computation or the weights."""
    return without(dataclasses.asdict(config), "extra")


# Both generations


def assert_generations_agree(config):
    values = written(config)
    every = values["global_attn_every_n_layers"]
    assert values["layer_types"] == [SLIDING if i % every else FULL for i in range(config.num_hidden_layers)]
    assert values["rope_parameters"] == {
        FULL: {"rope_type": "default", "rope_theta": values["global_rope_theta"]},
        SLIDING: {"rope_type": "default", "rope_theta": values["local_rope_theta"]},
    }
    assert ModernBertConfig.from_dict(values) == config
    assert ModernBertConfig.from_dict(without(values, *NEWER)) == config
    newer = ModernBertConfig.from_dict(without(values, *OLDER))
    assert without(shape(newer), OLDER[0]) == without(shape(config), OLDER[0])
    assert newer.half_windows == config.half_windows


@pytest.mark.parametrize("preset", PRESETS)
def test_both_generations_of_keys_are_written_and_agree(preset):
    assert_generations_agree(PRESETS[preset])


@given(
    every=st.integers(1, 12),
    num_layers=st.integers(1, 30),
    thetas=st.tuples(st.floats(1.0, 1e7), st.floats(1.0, 1e7)),
    local_attention=st.integers(0, 1024),
)
@settings(deadline=None)
def test_both_generations_agree_for_any_pattern_that_both_can_say(every, num_layers, thetas, local_attention):
    config = ModernBertConfig(
        num_hidden_layers=num_layers,
        global_attn_every_n_layers=every,
        global_rope_theta=thetas[0],
        local_rope_theta=thetas[1],
        local_attention=local_attention,
    )
    assert_generations_agree(config)
    assert [window is None for window in config.half_windows] == [i % every == 0 for i in range(num_layers)]
    assert set(config.half_windows) <= {None, local_attention // 2}


@given(types=st.lists(st.sampled_from([FULL, SLIDING]), min_size=1, max_size=12))
@settings(deadline=None)
def test_any_pattern_of_layers_survives_a_round_trip(types):
    config = ModernBertConfig(num_hidden_layers=len(types), layer_types=tuple(types))
    values = written(config)
    assert values["layer_types"] == types
    assert ModernBertConfig.from_dict(values) == config
    every = values.get("global_attn_every_n_layers")
    if every is not None:
        assert [FULL if i % every == 0 else SLIDING for i in range(len(types))] == types


def test_a_pattern_that_older_keys_cannot_say_is_saved_with_a_warning_naming_who_misreads_it(caplog):
    config = ModernBertConfig(num_hidden_layers=4, layer_types=(SLIDING, FULL, FULL, SLIDING))
    assert "global_attn_every_n_layers" not in written(config)
    (warning,) = caplog.messages
    assert "lGGl" in warning and "transformers before 5.0" in warning and "servers" in warning


def test_an_ordinary_pattern_is_saved_without_a_warning(caplog):
    for preset in PRESETS.values():
        written(preset)
    assert caplog.messages == []


def test_where_the_generations_disagree_the_newer_win_with_a_warning(caplog):
    values = written(PRESETS["base"])
    values["layer_types"] = [FULL if i % 2 == 0 else SLIDING for i in range(22)]
    values["rope_parameters"][FULL]["rope_theta"] = 80_000.0
    values["rope_parameters"][SLIDING]["rope_theta"] = 5_000
    config = ModernBertConfig.from_dict(values)
    assert config.layer_types == tuple(values["layer_types"]) and config.global_attn_every_n_layers == 2
    assert (config.global_rope_theta, config.local_rope_theta) == (80_000.0, 5_000.0)
    assert len(caplog.messages) == 3
    assert "layer_types and global_attn_every_n_layers=3 disagree" in caplog.messages[0]
    assert "80000" in caplog.messages[1] and "160000" in caplog.messages[1]
    assert "5000" in caplog.messages[2] and "10000" in caplog.messages[2]


def test_generations_that_agree_are_read_without_a_warning(caplog):
    ModernBertConfig.from_dict(written(PRESETS["large"]))
    assert caplog.messages == []


def test_keys_of_one_generation_may_be_there_in_part():
    theta_only = {"rope_parameters": {FULL: {"rope_theta": 20_000}}, "local_rope_theta": 700.0}
    config = ModernBertConfig.from_dict(theta_only)
    assert (config.global_rope_theta, config.local_rope_theta) == (20_000.0, 700.0)
    config = ModernBertConfig.from_dict({"layer_types": None, "rope_parameters": None})
    assert config == ModernBertConfig()


def test_an_empty_config_is_base_as_in_transformers():
    assert ModernBertConfig.from_dict({}) == PRESETS["base"] == ModernBertConfig()


def test_a_local_theta_of_null_is_the_global_one():
    config = ModernBertConfig.from_dict({"global_rope_theta": 50_000.0, "local_rope_theta": None})
    assert config.local_rope_theta == 50_000.0
    assert ModernBertConfig.from_dict({"local_rope_theta": None}).local_rope_theta == 160_000.0
    assert_generations_agree(config)


# What is kept and what is not


def test_unknown_keys_survive_a_round_trip():
    strange = {"classifier_pooling": "mean", "id2label": {"0": "no"}, "x_of_another_tool": [1, {"deep": None}]}
    config = ModernBertConfig.from_dict(strange)
    assert config.extra == strange
    values = written(config)
    assert strange.items() <= values.items()
    assert ModernBertConfig.from_dict(values) == config


def test_dropout_never_enters_config_json(tmp_path, tiny_config):
    MaskedLM(tiny_config, out_dropout=0.1).draw(0).save(tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    dropouts = {name: value for name, value in values.items() if "dropout" in name}
    assert dropouts == {"attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0}


def test_dropout_of_a_foreign_config_is_not_kept():
    config = ModernBertConfig.from_dict({"attention_dropout": 0.1, "mlp_dropout": 0.2, "embedding_dropout": 0.3})
    assert config == ModernBertConfig()
    assert {written(config)[f"{where}_dropout"] for where in ("attention", "mlp", "embedding")} == {0.0}


def test_architecture_version_and_type_are_written_afresh():
    config = ModernBertConfig.from_dict(
        {"architectures": ["Other"], "transformers_version": "4.47", "dtype": "float16"}
    )
    values = written(config)
    assert values["architectures"] == [ARCHITECTURE] and values["model_type"] == "modernbert"
    assert "transformers_version" not in values
    assert values["dtype"] == values["torch_dtype"] == "float32"


def test_a_list_of_end_tokens_is_read_by_its_first():
    assert ModernBertConfig.from_dict({"eos_token_id": [7, 8]}).eos_token_id == 7


def test_a_new_depth_brings_a_new_pattern():
    config = PRESETS["base"].replace(num_hidden_layers=5)
    assert config.layer_types == (FULL, SLIDING, SLIDING, FULL, SLIDING)
    assert PRESETS["base"].replace(global_attn_every_n_layers=1).half_windows == (None,) * 22
    odd = config.replace(layer_types=(SLIDING,) * 5)
    assert odd.global_attn_every_n_layers is None
    assert odd.replace(local_attention=10).half_windows == (5,) * 5


# Refusals


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model_type": "bert"}, CheckpointError, "model_type is 'bert'; only 'modernbert'"),
        ({"hidden_activation": "silu"}, UnsupportedError, "hidden_activation='silu'"),
        ({"hidden_activation": "gelu_pytorch_tanh"}, UnsupportedError, "hidden_activation='gelu_pytorch_tanh'"),
        ({"classifier_activation": "relu"}, UnsupportedError, "classifier_activation='relu'"),
        ({"tie_word_embeddings": False}, UnsupportedError, "tie_word_embeddings=False"),
        ({"rope_parameters": {FULL: {"rope_type": "yarn", "factor": 4.0}}}, UnsupportedError, "rope_type='yarn'"),
        ({"rope_parameters": {SLIDING: {"rope_type": "linear"}}}, UnsupportedError, "'linear' for sliding_attention"),
        ({"hidden_size": "768"}, CheckpointError, "wrong kind"),
        ({"num_attention_heads": None}, CheckpointError, "wrong kind"),
        ({"num_hidden_layers": 0}, ConfigError, "num_hidden_layers=0 must be at least 1"),
        ({"vocab_size": 0}, ConfigError, "vocab_size=0"),
        ({"global_attn_every_n_layers": 0}, ConfigError, "global_attn_every_n_layers=0"),
        ({"hidden_size": 100, "num_attention_heads": 3}, ConfigError, "try hidden_size=192"),
        ({"hidden_size": 6, "num_attention_heads": 2}, ConfigError, "even whole head size"),
        ({"local_attention": -1}, ConfigError, "local_attention=-1"),
        ({"layer_types": [FULL] * 3}, ConfigError, "3 entries .* num_hidden_layers=22"),
        ({"layer_types": ["chunked_attention"] * 22}, ConfigError, "chunked_attention"),
    ],
)
def test_what_is_not_computed_is_refused_in_one_line(values, error, message):
    with pytest.raises(error, match=message) as refusal:
        ModernBertConfig.from_dict(values)
    assert "\n" not in str(refusal.value)


def test_the_older_key_for_scaled_rope_is_refused():
    with pytest.raises(UnsupportedError, match="rope_scaling"):
        ModernBertConfig.from_dict({"rope_scaling": {"rope_type": "linear", "factor": 4.0}})


@pytest.mark.parametrize("entry", [{"rope_theta": 5.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_rope_parameters_that_name_no_layer_type_are_refused(entry):
    with pytest.raises(ModernBertError, match="rope_parameters"):
        ModernBertConfig.from_dict({"rope_parameters": entry})


@pytest.mark.parametrize(
    "values",
    [
        {"layer_types": 5},
        {"rope_parameters": [1]},
        {"rope_parameters": {FULL: {"rope_theta": None}}},
        {"rope_parameters": {FULL: 10_000.0}},
        {"eos_token_id": "x"},
        {"norm_eps": None},
        {"global_rope_theta": None},
        {"local_rope_theta": "10000"},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_refused_in_one_line(values):
    with pytest.raises(ModernBertError) as refusal:
        ModernBertConfig.from_dict(values)
    assert "\n" not in str(refusal.value)


# transformers


@given(
    every=st.integers(1, 6),
    num_layers=st.integers(1, 12),
    thetas=st.tuples(st.floats(10.0, 1e6), st.floats(10.0, 1e6)),
    local_attention=st.integers(2, 300),
)
@settings(deadline=None, max_examples=30)
def test_transformers_reads_the_same_windows_layers_and_thetas(every, num_layers, thetas, local_attention):
    transformers = pytest.importorskip("transformers")
    config = ModernBertConfig(
        num_hidden_layers=num_layers,
        global_attn_every_n_layers=every,
        global_rope_theta=thetas[0],
        local_rope_theta=thetas[1],
        local_attention=local_attention,
    )
    values = written(config)
    for readable in (values, without(values, *NEWER), without(values, *OLDER)):
        theirs = transformers.ModernBertConfig.from_dict(readable)
        assert tuple(theirs.layer_types) == config.layer_types
        assert theirs.rope_parameters[FULL]["rope_theta"] == config.global_rope_theta
        assert theirs.rope_parameters[SLIDING]["rope_theta"] == config.local_rope_theta
        assert theirs.sliding_window == local_attention // 2


@pytest.mark.parametrize("preset", PRESETS)
def test_transformers_reads_every_field_as_it_is_here(preset):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ModernBertConfig.from_dict(written(PRESETS[preset]))
    for name, value in without(shape(PRESETS[preset]), *OLDER).items():
        found = getattr(theirs, name)
        assert (tuple(found) if isinstance(value, tuple) else found) == value, name
    again = ModernBertConfig.from_dict(json.loads(theirs.to_json_string(use_diff=False)))
    assert shape(again) == shape(PRESETS[preset])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True, "decoder_bias": False},
        {"layer_types": (SLIDING, FULL, SLIDING), "local_rope_theta": 77.0},
    ],
    ids=["plain", "biases", "odd-pattern"],
)
def test_a_way_through_transformers_and_back_changes_no_bit(tmp_path, tiny_config, changes):
    transformers = pytest.importorskip("transformers")
    ours = MaskedLM(tiny_config.replace(**changes)).draw(3)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(ours.save(tmp_path / "ours"))
    theirs.save_pretrained(tmp_path / "theirs")
    again = load(tmp_path / "theirs")
    assert type(again) is MaskedLM
    assert shape(again.config) == shape(ours.config)
    assert again.state_dict().keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_published_large_config_is_read_right(caplog):
    path = SHARED / "model-configs" / "ModernBERT-large-2024-12-20.json"
    if not path.exists():
        pytest.skip("the published config is not on this machine")
    values = json.loads(path.read_text())
    config = ModernBertConfig.from_dict(values)
    assert shape(config) == shape(PRESETS["large"])
    assert config.half_windows == tuple(64 if i % 3 else None for i in range(28))
    assert (config.rope_theta(None), config.rope_theta(64)) == (160_000.0, 10_000.0)
    assert config.extra["classifier_pooling"] == "mean"
    again = written(config)
    rewritten = {"architectures", "transformers_version", "_name_or_path", "layer_norm_eps"}
    assert {n: again.get(n) for n in values if n not in rewritten} == without(values, *rewritten)
    assert caplog.messages == []
