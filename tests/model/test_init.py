"""Initial weights and sizes, as the published models have them."""

import math

import pytest
import torch
from torch import nn

from modernbert import PRESETS, EncoderModel, MaskedLM, ModernBertConfig
from modernbert.model.hub import on_meta
from modernbert.model.init import initialize

CONFIG = ModernBertConfig(
    vocab_size=512, hidden_size=128, num_attention_heads=2, intermediate_size=192, num_hidden_layers=8,
    norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True,
)  # fmt: skip
CUT_STD = 0.8796  # of a standard normal cut at two: sqrt(1 - 2 · 2 φ(2) / (2 Φ(2) - 1))
RESIDUAL = 0.02 / math.sqrt(2 * 8)


@pytest.fixture(scope="module")
def model():
    model = MaskedLM(CONFIG)
    model.classifier = nn.Linear(128, 300)
    return model.draw(0)


@pytest.mark.parametrize(
    ("ending", "std", "count"),
    [
        ("tok_embeddings.weight", 0.02, 1),
        ("attn.Wqkv.weight", 0.02, 8),
        ("mlp.Wi.weight", 0.02, 8),
        ("attn.Wo.weight", RESIDUAL, 8),
        ("mlp.Wo.weight", RESIDUAL, 8),
        ("head.dense.weight", RESIDUAL, 1),
        ("classifier.weight", 128**-0.5, 1),
    ],
)
def test_each_kind_of_matrix_has_its_spread_and_is_cut_at_two_of_it(model, ending, std, count):
    matrices = [p.detach() for name, p in model.named_parameters() if name.endswith(ending)]
    assert len(matrices) == count
    values = torch.cat([matrix.flatten() for matrix in matrices])
    assert values.std().item() == pytest.approx(CUT_STD * std, rel=0.03)
    assert abs(values.mean().item()) < 0.03 * std
    assert 1.9 * std < values.abs().max().item() <= 2 * std * (1 + 1e-6)


def test_every_parameter_is_of_a_known_kind_norms_are_one_and_biases_zero(model):
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.dim() == 2, name


def test_the_spread_and_the_cut_are_those_of_the_config():
    model = MaskedLM(CONFIG.replace(initializer_range=0.1, initializer_cutoff_factor=3.0)).draw(0)
    weight = model.encoder.layers[0].mlp.Wi.weight
    assert 0.28 < weight.abs().max() <= 0.3001
    assert weight.std().item() == pytest.approx(0.1 * 0.9866, rel=0.03)


def test_layers_are_drawn_independently(model):
    first, second = (model.encoder.layers[i].mlp.Wi.weight for i in (0, 1))
    assert torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1].abs() < 0.03


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before():
    one = MaskedLM(CONFIG).draw(5).state_dict()
    torch.randn(7)
    again, other = MaskedLM(CONFIG).draw(5).state_dict(), MaskedLM(CONFIG).draw(6).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    drawn = [name for name in one if one[name].dim() == 2]
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_drawing_leaves_the_global_random_state_alone():
    model = MaskedLM(CONFIG)
    before = torch.get_rng_state()
    model.draw(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_encoder_is_drawn_alike_with_and_without_a_head():
    with_head, without = MaskedLM(CONFIG).draw(2).encoder, EncoderModel(CONFIG).draw(2).encoder
    assert all(torch.equal(with_head.state_dict()[name], tensor) for name, tensor in without.state_dict().items())


def test_drawing_overwrites_every_parameter():
    model = MaskedLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize(model, CONFIG, torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("preset", "millions", "tolerance"),
    [
        ("tiny", 17, 0.03), ("mini", 32, 0.03), ("small", 68, 0.03), ("base", 149, 0.03), ("large", 395, 0.03),
        ("huge", 1000, 0.04),  # 1,031 M; its name, 1B, has one digit
    ],
)  # fmt: skip
def test_a_preset_has_as_many_parameters_as_the_published_model(preset, millions, tolerance):
    model = on_meta(lambda: MaskedLM(PRESETS[preset]))
    assert model.device.type == "meta"
    assert model.num_parameters / 1e6 == pytest.approx(millions, rel=tolerance)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_number_of_parameters_is_that_of_transformers(preset):
    transformers = pytest.importorskip("transformers")
    config = transformers.ModernBertConfig.from_dict(PRESETS[preset].to_dict("ModernBertForMaskedLM"))
    with torch.device("meta"):
        theirs = transformers.ModernBertForMaskedLM(config)
    ours = on_meta(lambda: MaskedLM(PRESETS[preset]))
    shapes = {name: p.shape for name, p in theirs.named_parameters() if name != "decoder.weight"}
    assert {name: p.shape for name, p in ours.named_parameters()} == shapes
