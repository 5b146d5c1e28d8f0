"""Every path of a linear layer against the plain product."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import modernbert.model.choose as choose
import modernbert.model.linear as linear_module
from modernbert import ModernBertConfig, PackedBatch
from modernbert.model.encoder import Encoder
from modernbert.model.linear import Linear, onednn_is_built_in, onednn_linear


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch):
    monkeypatch.setattr(linear_module, "_WORTH_A_CALL", 1)
    monkeypatch.setattr(linear_module, "_WORTH_A_CALL_WITH_GRADIENTS", 1)


pytestmark = pytest.mark.skipif(not onednn_is_built_in(), reason="this PyTorch was built without oneDNN's operators")


def layer_of(inputs, outputs, *, bias=False, seed=0):
    torch.manual_seed(seed)
    return Linear(inputs, outputs, bias=bias)


@given(
    rows=st.integers(0, 40) | st.sampled_from([256, 257, 300]),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    gradients=st.booleans(),
    path=st.sampled_from(["onednn", "packed"]),
)
@settings(deadline=None, max_examples=60)
def test_the_product_is_the_plain_one(rows, inputs, outputs, bias, gradients, path):
    layer = layer_of(inputs, outputs, bias=bias)
    x = torch.randn(rows, inputs)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(layer(x, path), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 4, 3), (1, 1, 1), (5, 7, 3), (64, 48, 96), (300, 20, 10)])
def test_the_gradients_are_the_plain_ones(rows, inputs, outputs, bias):
    layer, x = layer_of(inputs, outputs, bias=bias), torch.randn(rows, inputs, requires_grad=True)
    direction = torch.randn(rows, outputs)
    found = torch.autograd.grad((layer(x, "onednn") * direction).sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad((layer(x, "plain") * direction).sum(), [x, *layer.parameters()])
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-5)


def test_a_frozen_weight_gets_no_gradient_and_its_input_does():
    layer, x = layer_of(6, 4), torch.randn(5, 6, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x, "onednn").sum().backward()
    assert layer.weight.grad is None and x.grad.abs().sum() > 0


def test_with_gradients_only_a_large_product_is_onednns(monkeypatch):
    monkeypatch.setattr(linear_module, "_WORTH_A_CALL_WITH_GRADIENTS", 64 * 32 * 100)
    calls = []
    product = linear_module.onednn_linear
    monkeypatch.setattr(linear_module, "onednn_linear", lambda *a: calls.append(len(a[0])) or product(*a))
    layer = layer_of(64, 32)
    for rows in (99, 100):
        layer(torch.randn(rows, 64), "onednn")
    assert calls == [100]


def test_a_small_product_is_plain_on_every_path(monkeypatch):
    monkeypatch.setattr(linear_module, "_WORTH_A_CALL", 2**21)
    monkeypatch.setattr(linear_module, "_WORTH_A_CALL_WITH_GRADIENTS", 2**21)
    monkeypatch.setattr(linear_module, "onednn_linear", lambda *_: pytest.fail("oneDNN was called"))
    layer, x = layer_of(64, 32), torch.randn(1023, 64)
    for path in ("plain", "onednn", "packed"):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(layer(x, path), F.linear(x, layer.weight))


def test_the_operator_is_refused_where_it_would_drop_a_gradient():
    with pytest.raises(AssertionError, match="drop the gradient"):
        onednn_linear(torch.randn(2, 3), torch.randn(4, 3, requires_grad=True))


def added(layer):
    with torch.no_grad():
        layer.weight.add_(1.0)


def stepped(layer):
    layer(torch.ones(2, 8)).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def fused_step(layer):
    layer(torch.ones(2, 8)).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


def written_through_data(layer):
    layer.weight.data.mul_(3.0)


def loaded(layer):
    layer.load_state_dict(layer_of(8, 4, seed=1).state_dict())


def assigned(layer):
    layer.load_state_dict(layer_of(8, 4, seed=1).state_dict(), assign=True)


def replaced(layer):
    layer.weight = torch.nn.Parameter(torch.randn(4, 8))


@pytest.mark.parametrize("change", [added, stepped, fused_step, written_through_data, loaded, assigned, replaced])
def test_a_changed_weight_is_packed_again(change):
    layer, x = layer_of(8, 4), torch.randn(3, 8)
    with torch.inference_mode():
        before = layer(x, "packed")
    change(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, "packed"), F.linear(x, layer.weight))
        assert not torch.equal(layer(x, "packed"), before)


def test_a_packed_copy_can_have_its_rows_in_another_order_and_its_bias_too():
    layer, x = layer_of(8, 4, bias=True), torch.randn(3, 8)
    layer.packed_order = [2, 0, 3, 1]
    with torch.no_grad():
        torch.testing.assert_close(layer(x, "packed"), layer(x, "plain")[:, [2, 0, 3, 1]])
        layer.bias.add_(1.0)
        torch.testing.assert_close(layer(x, "packed"), layer(x, "plain")[:, [2, 0, 3, 1]])
    assert torch.equal(layer(x, "packed").detach(), layer(x, "onednn").detach())  # with gradients nothing is packed


def test_a_weight_is_packed_once_and_only_when_asked():
    layer = layer_of(8, 4)
    with torch.inference_mode():
        layer(torch.randn(3, 8), "onednn")
        assert layer._packed is None
        layer(torch.randn(3, 8), "packed")
        first = layer._packed
        layer(torch.randn(1, 8), "packed")
    assert first is not None and layer._packed is first
    layer(torch.randn(3, 8, requires_grad=True), "packed").sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_packed_layer_can_be_copied_and_pickled(copied):
    layer, x = layer_of(8, 4), torch.randn(3, 8)
    with torch.inference_mode():
        expected = layer(x, "packed")
        assert torch.equal(copied(layer)(x, "packed"), expected)
    assert layer.state_dict().keys() == {"weight"}


def test_a_weight_made_in_inference_mode_is_never_packed():
    with torch.inference_mode():
        layer = layer_of(8, 4)
        x = torch.randn(3, 8)
        layer(x, "packed")
        layer.weight.mul_(2.0)  # nobody counts versions here
        torch.testing.assert_close(layer(x, "packed"), F.linear(x, layer.weight))


@pytest.mark.parametrize(
    ("seconds", "path"),
    [
        ({"plain": 2.0, "onednn": 1.0, "packed": 0.9}, "packed"),
        ({"plain": 2.0, "onednn": 0.8, "packed": 0.9}, "onednn"),
        ({"plain": 1.0, "onednn": 1.2, "packed": 1.1}, "plain"),
    ],
)
def test_the_fastest_path_is_chosen_and_the_reason_has_the_figures(seconds, path, monkeypatch):
    monkeypatch.setattr(choose, "measure_linear", lambda: seconds)
    found = choose._measured.__wrapped__()
    assert found.path == path and f"{seconds['packed'] / seconds['plain']:.2f}" in found.reason
    assert found.gain == seconds["plain"] / seconds[path]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_packed_path_is_measured_whatever_mode_the_first_forward_pass_runs_in(mode, monkeypatch):
    packed = []
    pack = Linear.pack
    monkeypatch.setattr(Linear, "pack", lambda layer: packed.append(layer) or pack(layer))
    with mode():
        choose.measure_linear(16, rounds=2)
    assert len(packed) == 3


def test_a_step_that_nobody_counts_is_seen():
    layer, x = layer_of(8, 4), torch.randn(3, 8)
    with torch.inference_mode():
        layer(x, "packed")
    layer(x, "packed").sum().backward()  # through this, or there is nothing to step along
    layer.weight.data[1, 1] += 1.0  # what no sample shows
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, "packed"), F.linear(x, layer.weight))


@pytest.mark.parametrize("gradients", [True, False])
def test_a_reproducible_encoder_asks_no_clock_and_still_chooses_by_dtype(gradients, monkeypatch):
    monkeypatch.setattr(choose, "measure_linear", lambda: pytest.fail("measured"))
    choose._measured.cache_clear()
    encoder = Encoder(ModernBertConfig(num_hidden_layers=1, vocab_size=64))
    encoder.reproducible = True
    with torch.set_grad_enabled(gradients):
        assert encoder.path_for(torch.zeros(2, 3)) == choose._choose_with_gradients().path
        assert encoder.path_for(torch.zeros(2, 3, dtype=torch.bfloat16)) == "plain"
        encoder(PackedBatch.from_sequences([[1] * 300]))


def test_measuring_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert all(seconds > 0 for seconds in choose.measure_linear(16, rounds=1).values())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("capability", "vendor", "path"),
    [
        ("AVX512", "AuthenticAMD", "onednn"),
        ("AVX512", "GenuineIntel", "plain"),
        ("AVX512", None, "plain"),
        ("AVX2", "AuthenticAMD", "plain"),
        ("DEFAULT", None, "plain"),
    ],
)
def test_where_gradients_flow_the_processor_decides_and_no_clock(capability, vendor, path, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(choose, "_cpu_vendor", lambda: vendor)
    monkeypatch.setattr(choose, "measure_linear", lambda: pytest.fail("measured"))
    assert choose._choose_with_gradients.__wrapped__().path == path


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda", torch.float32), ("mps", torch.float16), ("cpu", torch.bfloat16)]
)
def test_anything_but_float32_on_a_cpu_stays_plain(device, dtype):
    for gradients in (True, False):
        assert choose.choose_linear(torch.device(device), dtype, gradients=gradients).path == "plain"


H100, T4 = (9, 0), (7, 5)


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "has_windows", "backend", "why"),
    [
        (torch.bfloat16, 64, H100, True, "varlen", "variable-length"),
        (torch.float16, 64, H100, True, "varlen", "variable-length"),
        (torch.float32, 64, H100, True, "blocked", "float32"),
        (torch.bfloat16, 64, H100, False, "blocked", "window"),
        (torch.float16, 64, T4, True, "blocked", "7.5"),
        (torch.bfloat16, 20, H100, True, "blocked", "multiple of 8"),
        (torch.bfloat16, 264, H100, True, "blocked", "256"),
    ],
)
def test_on_cuda_the_choice_follows_from_dtype_shape_and_chip(dtype, head_size, capability, has_windows, backend, why):
    found = choose._choose_on_cuda(dtype, head_size, capability, has_windows=has_windows)
    assert found.backend == backend and why in found.reason


@pytest.mark.parametrize(
    ("gain", "gradients", "backend"), [(2.2, False, "onednn"), (1.1, False, "blocked"), (2.2, True, "blocked")]
)
def test_on_a_cpu_long_documents_go_over_onednn_where_it_gains_enough(gain, gradients, backend, monkeypatch):
    monkeypatch.setattr(choose, "_choose_by_measuring", lambda: choose.LinearChoice("onednn", "", gain))
    found = choose.choose_attention(torch.device("cpu"), torch.float32, 64, gradients=gradients)
    assert found.backend == backend
    assert choose.choose_attention(torch.device("mps"), torch.float32, 64, gradients=gradients).backend == "blocked"


def test_this_pytorchs_variable_length_attention_has_windows():
    assert choose.varlen_has_windows()  # 2.11 and newer are supported, and this one is one of them
