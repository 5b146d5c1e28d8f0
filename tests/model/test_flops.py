"""The formula for useful operations against counting them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modernbert import IGNORE, PRESETS, MaskedLM, ModernBertConfig, PackedBatch
from modernbert.model.flops import forward_flops

CONFIG = ModernBertConfig(
    vocab_size=100, hidden_size=24, num_attention_heads=3, intermediate_size=40, num_hidden_layers=3
)


def model_of(config, backend):
    model = MaskedLM(config, backend=backend).draw(0)
    model.encoder.linear = "plain"  # the counter does not know oneDNN's operators
    return model


def pairs_by_counting(length, half_window):
    return sum(abs(i - j) <= half_window for i in range(length) for j in range(length))


@given(lengths=st.lists(st.integers(1, 60), max_size=4), local_attention=st.integers(0, 130))
def test_attention_is_charged_for_the_pairs_that_see_each_other(lengths, local_attention):
    config = CONFIG.replace(local_attention=local_attention)
    matrices = 2 * sum(lengths) * 3 * (3 * 24 * 24 + 24 * 24 + 24 * 80 + 40 * 24)
    pairs = sum(length**2 + 2 * pairs_by_counting(length, local_attention // 2) for length in lengths)
    # Two products, scores and weighted sum, of two operations for each of 24 numbers.
    assert forward_flops(config, lengths) == matrices + 2 * 2 * 24 * pairs


@pytest.mark.parametrize("num_targets", [0, 1, 7])
def test_the_formula_is_what_torch_counts_where_everything_is_seen(num_targets):
    config = CONFIG.replace(global_attn_every_n_layers=1)
    model = model_of(config, "reference")
    batch = PackedBatch.from_sequences([torch.arange(50)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(batch, torch.arange(num_targets))
    assert forward_flops(config, [50], num_targets) == counter.get_total_flops()


def test_a_training_step_is_three_forward_passes():
    config = CONFIG.replace(global_attn_every_n_layers=1)
    model = model_of(config, "reference")
    labels = torch.full((50,), IGNORE)
    labels[:15] = 1
    batch = PackedBatch.from_sequences([torch.arange(50)], [labels])
    with FlopCounterMode(display=False) as counter:
        model(batch).loss_sum.backward()
    assert 3 * forward_flops(config, [50], 15) == counter.get_total_flops()


@pytest.mark.parametrize(("gradients", "keys"), [(True, 4 * 64), (False, 32 + 2 * 64)])
def test_the_blocked_backend_computes_no_more_than_four_half_windows_a_token(gradients, keys):
    config = CONFIG.replace(layer_types=("sliding_attention",) * 3)
    model = model_of(config, "blocked")
    batch = PackedBatch.from_sequences([torch.arange(1024) % 100])
    # The counter knows matrix products, not the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients), sdpa_kernel(SDPBackend.MATH):
        model.encoder(batch)
    useful, spent = forward_flops(config, [1024]), counter.get_total_flops()
    matrices = 2 * 1024 * 3 * (4 * 24 * 24 + 3 * 24 * 40)
    assert spent == matrices + 3 * 4 * 24 * 1024 * keys
    assert 1.2 < (spent - matrices) / (useful - matrices) < 2.2  # up to half of the scores are masked away


def test_packing_does_not_change_the_price_and_a_longer_document_costs_more():
    config = PRESETS["base"]
    assert forward_flops(config, [100, 300], 20) == forward_flops(config, [300], 5) + forward_flops(config, [100], 15)
    assert forward_flops(config, [8192]) > 8 * forward_flops(config, [1024])
    assert forward_flops(config, []) == 0


def test_a_token_of_base_costs_about_two_operations_a_weight():
    per_token = forward_flops(PRESETS["base"], [1024]) / 1024
    weights_in_layers = 22 * (4 * 768**2 + 3 * 768 * 1152)
    assert 1.0 < per_token / (2 * weights_in_layers) < 1.15
