"""Compilation: asked for only, the same results, once for all shapes or for a shape that never changes."""

import copy
import pickle
import shutil

import pytest
import torch
import torch._dynamo

import modernbert.model.encoder as encoder_module
from modernbert import PRESETS, MaskedLM, PackedBatch
from modernbert.errors import ConfigError
from modernbert.model.compile import compile_layers, fill

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")

SHAPES = ([40, 40], [5], [300, 2, 7], [129] * 3, [2], [400], [399], [200, 100, 90], [50] * 8, [1, 1, 1])


@pytest.fixture
def no_recompiling():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@needs_compiler
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


# --- shapes that never change


def pair(**kwargs):
    """A model, and the same one compiled for 400 tokens."""
    plain = MaskedLM(PRESETS["tiny"].replace(vocab_size=128, num_hidden_layers=4), **kwargs).draw(0).train()
    compiled = copy.deepcopy(plain)
    return plain, compiled


def labelled(lengths):
    rows = [(7 * torch.arange(length) + length) % 128 for length in lengths]
    return PackedBatch.from_sequences(rows, rows)


def loss_and_gradients(task, batch):
    task.zero_grad()
    loss = task(batch).loss_sum / batch.num_tokens
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in task.named_parameters()}


class Counting:
    """A backend that compiles nothing, counts what it is given and notes the rows of what each graph works on."""

    def __init__(self):
        self.num_graphs, self.rows = 0, set()

    def __call__(self, graph, inputs):
        self.num_graphs += 1
        self.rows |= {len(x) for x in inputs if isinstance(x, torch.Tensor) and not isinstance(x, torch.nn.Parameter)}
        return graph.forward


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_ten_batches_of_ten_sizes_are_compiled_once_and_give_the_same_gradients(fresh, checkpoint_layers):
    plain, compiled = pair()
    backend = Counting()
    compiled.encoder.checkpoint_layers = checkpoint_layers
    compile_layers(compiled.encoder, num_tokens=400, backend=backend)
    for lengths in SHAPES:
        loss, gradients = loss_and_gradients(compiled, labelled(lengths))
        expected_loss, expected = loss_and_gradients(plain, labelled(lengths))
        torch.testing.assert_close(loss, expected_loss)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-3)
        assert backend.num_graphs == 4 and backend.rows == {400}


def test_what_takes_no_gradients_and_what_is_larger_is_computed_as_it_is(fresh):
    plain, compiled = pair()
    backend = Counting()
    compile_layers(compiled.encoder, num_tokens=400, backend=backend)
    plain.encoder.linear = "plain"
    with torch.no_grad():
        assert torch.equal(compiled.encoder(labelled([30, 9])), plain.encoder(labelled([30, 9])))
    larger = labelled([300, 101])
    assert torch.equal(compiled.encoder(larger), plain.encoder(larger))
    assert backend.num_graphs == 0
    compiled.encoder(labelled([30, 9]))
    assert backend.num_graphs == 4


def test_dropout_is_drawn_anew_at_each_step_of_compiled_layers(fresh):
    _, compiled = pair(out_dropout=0.5)
    compile_layers(compiled.encoder, num_tokens=400, backend=Counting())
    batch = labelled([30, 9])
    assert not torch.equal(compiled.encoder(batch), compiled.encoder(batch))
    torch.manual_seed(1)
    first = compiled.encoder(batch)
    torch.manual_seed(1)
    assert torch.equal(compiled.encoder(batch), first)


def test_a_model_compiled_for_one_size_is_saved_and_copied_like_any_other(fresh):
    plain, compiled = pair()
    compile_layers(compiled.encoder, num_tokens=400, backend="eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for again in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        torch.testing.assert_close(again.encoder(labelled([30, 9])), plain.encoder(labelled([30, 9])))


@pytest.mark.slow
@needs_compiler
def test_the_compiler_itself_gives_the_same_gradients_for_all_sizes(no_recompiling_but_for_the_first_layer):
    plain, compiled = pair()
    compile_layers(compiled.encoder, num_tokens=400)
    for lengths in SHAPES:
        _, gradients = loss_and_gradients(compiled, labelled(lengths))
        for name, gradient in loss_and_gradients(plain, labelled(lengths))[1].items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-3)


@pytest.fixture
def no_recompiling_but_for_the_first_layer():
    """The first layer has no attention norm, so that two versions of it are as many as there may be."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("lengths", SHAPES)
def test_filling_adds_documents_behind_and_leaves_those_in_front(lengths):
    batch = PackedBatch.from_sequences([torch.arange(length) % 50 + 1 for length in lengths])
    filled = fill(batch, 400)
    added = filled.lengths()[len(lengths) :]
    expected = PackedBatch.from_sequences(
        [
            *(torch.arange(length) % 50 + 1 for length in lengths),
            *(torch.zeros(length, dtype=torch.int64) for length in added),
        ]
    )
    assert filled.num_tokens == 400 and filled.max_seqlen == batch.max_seqlen == max(filled.lengths())
    assert filled.lengths()[: len(lengths)] == lengths
    for name in ("input_ids_T", "positions_T", "cu_seqlens"):
        assert torch.equal(getattr(filled, name), getattr(expected, name)), name
        assert getattr(filled, name).dtype == getattr(batch, name).dtype


def test_no_size_at_all_is_refused():
    with pytest.raises(ConfigError, match="num_tokens=0 must be at least 1"):
        compile_layers(pair()[1].encoder, num_tokens=0)
