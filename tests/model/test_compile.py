"""Compilation: asked for only, the same results, once for all shapes."""

import shutil

import pytest
import torch
import torch._dynamo

import modernbert.model.encoder as encoder_module
from modernbert import PRESETS, MaskedLM, PackedBatch
from modernbert.model.compile import compile_layers

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture
def no_recompiling():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def test_compiled_layers_give_the_same_states_and_never_compile_again_for_a_shape(no_recompiling, monkeypatch):
    monkeypatch.setattr(encoder_module, "_BYTES_AT_ONCE", 4 * 2 * 384 * 100)  # parts of 100 rows
    model = MaskedLM(PRESETS["tiny"].replace(vocab_size=128)).draw(0).eval()
    compiled = MaskedLM(model.config).eval()
    compiled.load_state_dict(model.state_dict())
    compile_layers(compiled.encoder)
    for lengths in ([40, 40], [5], [300, 2, 7], [129] * 3, [2]):
        batch = PackedBatch.from_sequences([torch.arange(length) % 128 for length in lengths])
        with torch.no_grad():
            torch.testing.assert_close(compiled.encoder(batch), model.encoder(batch), atol=5e-5, rtol=5e-5)
    assert compiled.state_dict().keys() == model.state_dict().keys()


def test_nothing_is_compiled_unasked():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = MaskedLM(PRESETS["tiny"].replace(vocab_size=128)).draw(0)
    with torch.inference_mode():
        model.encoder(PackedBatch.from_sequences([[1, 2, 3]]))
    assert not torch._dynamo.utils.counters["stats"]
