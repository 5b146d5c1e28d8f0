"""Our encoder against transformers' ModernBERT, and each attention backend against the dense one.

The linear weights are drawn four times larger than at the start of training: at their usual size the residual
stream is almost all embedding, and a tanh GELU moves the output by 4e-6, which nobody would see. Norms and biases
are moved off one and zero, so that one left out or swapped is seen too.
"""

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import modernbert.model.encoder as encoder_module
import modernbert.model.linear as linear_module
import modernbert.tasks.mlm as mlm_module
from modernbert import IGNORE, PRESETS, MaskedLM, ModernBertConfig, PackedBatch
from modernbert.model.attention import Chunks, DenseMask, Groups, Whole, attend, plan_attention
from modernbert.model.linear import onednn_is_built_in

BACKENDS = ("reference", "blocked", *(("onednn",) if onednn_is_built_in() else ()))  # those of a CPU
PATHS = ("plain", *(("onednn", "packed") if onednn_is_built_in() else ()))
TOLERANCE = 2e-5
ONEDNN_TOLERANCE = 5e-5  # it adds up longer chains: at width 1,152 twice MKL's rounding error against float64
PAD = 3  # transformers gives the padding token's embedding no gradient, so no document holds it

SHAPES = {
    "tiny": PRESETS["tiny"].replace(vocab_size=384, pad_token_id=PAD),
    "base-like": PRESETS["base"].replace(vocab_size=256, num_hidden_layers=4, pad_token_id=PAD),
    "heads-of-20-window-of-10": ModernBertConfig(
        vocab_size=199, hidden_size=60, num_attention_heads=3, intermediate_size=77, num_hidden_layers=5,
        local_attention=10, pad_token_id=PAD,
    ),
    "odd-window-all-biases": ModernBertConfig(
        vocab_size=100, hidden_size=48, num_attention_heads=2, intermediate_size=50, num_hidden_layers=4,
        global_attn_every_n_layers=2, local_attention=7, norm_bias=True, attention_bias=True, mlp_bias=True,
        classifier_bias=True, global_rope_theta=10_000.0, local_rope_theta=500.0, pad_token_id=PAD,
    ),
    "one-layer-no-decoder-bias": ModernBertConfig(
        vocab_size=100, hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=1,
        decoder_bias=False, pad_token_id=PAD,
    ),
    "local-first": ModernBertConfig(
        vocab_size=100, hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=3,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"), local_attention=4, pad_token_id=PAD,
    ),
}  # fmt: skip

SPOILED_CASES = [
    ("tiny", [70, 5, 90]),
    ("heads-of-20-window-of-10", [40, 3, 30]),
    ("odd-window-all-biases", [2, 20, 9]),
]
CASES = [
    *SPOILED_CASES,  # what the spoiled models are tried on must pass when nothing is spoiled
    ("tiny", [1]),
    ("tiny", [2, 1, 3]),
    ("tiny", [64, 65, 66]),
    ("tiny", [129, 1, 130, 7]),
    ("tiny", [300, 20]),
    ("base-like", [1, 150, 33]),
    ("heads-of-20-window-of-10", [1]),
    ("heads-of-20-window-of-10", [5, 6, 7, 11, 12]),
    ("heads-of-20-window-of-10", [40, 1, 133]),
    ("odd-window-all-biases", [1, 3, 4, 5, 8]),
    ("odd-window-all-biases", [90, 31]),
    ("one-layer-no-decoder-bias", [1, 17, 140]),
    ("local-first", [2, 9, 30]),
]
IMPLEMENTATION = {"odd-window-all-biases": "eager", "heads-of-20-window-of-10": "eager"}  # of theirs; else "sdpa"


def with_visible_weights(model):
    """Weights as different from their initial values as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            elif "tok_embeddings" not in name:
                parameter *= 4
    return model


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    """Shape name -> our model and transformers' model of the same weights, made once."""
    transformers = pytest.importorskip("transformers")
    made = {}

    def pair(shape):
        if shape not in made:
            ours = with_visible_weights(MaskedLM(SHAPES[shape]).draw(0)).eval()
            folder = ours.save(tmp_path_factory.mktemp("parity") / "model")
            theirs = transformers.ModernBertForMaskedLM.from_pretrained(
                folder, attn_implementation=IMPLEMENTATION.get(shape, "sdpa")
            )
            made[shape] = ours, theirs.eval()
        return made[shape]

    return pair


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch):
    monkeypatch.setattr(linear_module, "_WORTH_A_CALL", 1)
    monkeypatch.setattr(linear_module, "_WORTH_A_CALL_WITH_GRADIENTS", 1)


@pytest.fixture
def ours_of(pair_of):
    """Shape name -> our model alone, for one test to spoil."""

    def ours(shape):
        fresh = MaskedLM(SHAPES[shape])
        fresh.load_state_dict(pair_of(shape)[0].state_dict())
        fresh.encoder.linear = "plain"  # the operators of transformers, so that only the mistake differs
        return fresh.eval()

    return ours


def batch_of(lengths, vocab_size, seed=0):
    """Random documents; every third token is labelled, the first one always."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(PAD + 1, vocab_size, (length,), generator=generator) for length in lengths]
    labels = [torch.where(torch.arange(len(row)) % 3 == 0, row.flip(0), IGNORE) for row in rows]
    return PackedBatch.from_sequences(rows, labels)


def assert_near(what, ours, theirs, *, by_norm=False, tolerance=TOLERANCE):
    """The largest difference, or with `by_norm` the difference's norm over the norm, is within the tolerance."""
    difference = (ours - theirs).norm() / theirs.norm().clamp_min(1e-12) if by_norm else (ours - theirs).abs().max()
    assert difference <= tolerance, f"{what} moved by {difference:.1e}, more than {tolerance:.0e}"


def gradients_of(model):
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return gradients


def tolerance_of(path):
    return TOLERANCE if path == "plain" else ONEDNN_TOLERANCE


def assert_parity(ours, theirs, lengths):
    """Hidden states, logits and gradients of one packed batch are those of transformers, document by document."""
    batch = batch_of(lengths, ours.config.vocab_size)
    hidden, logits = ours.encoder(batch), ours.logits(batch)
    ours(batch).loss_sum.backward()

    their_hidden, their_logits = [], []
    for ids, labels in zip(batch.input_ids_T.split(lengths), batch.labels_T.split(lengths), strict=True):
        their_hidden.append(theirs.model(input_ids=ids[None]).last_hidden_state[0])
        their_logits.append(theirs.decoder(theirs.head(their_hidden[-1])))
        F.cross_entropy(their_logits[-1], labels, ignore_index=IGNORE, reduction="sum").backward()

    near = functools.partial(assert_near, tolerance=tolerance_of(ours.encoder.linear))
    near("the hidden state", hidden, torch.cat(their_hidden))
    near("the logits", logits, torch.cat(their_logits))
    gradients, their_gradients = gradients_of(ours), gradients_of(theirs)
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        near(f"the gradient of {name}", gradients[name], gradient, by_norm=True)


@pytest.mark.parametrize(("backend", "path"), [("reference", "plain"), *(("blocked", path) for path in PATHS[:2])])
@pytest.mark.parametrize(("shape", "lengths"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_states_logits_and_gradients_are_those_of_transformers(pair_of, shape, lengths, backend, path):
    ours, theirs = pair_of(shape)
    ours.encoder.backend, ours.encoder.linear = backend, path
    assert_parity(ours, theirs, lengths)


@pytest.mark.parametrize("bytes_at_once", [12 * 2**20, 3 * 256 * 4 * 100])  # everything at once, and some 100 tokens
@pytest.mark.parametrize(("backend", "path"), [(b, p) for b in BACKENDS for p in PATHS])
@pytest.mark.parametrize("lengths", [[1], [300, 20, 1, 128], [64] * 5, [512, 256, 257, 255]], ids=str)
def test_without_gradients_too(pair_of, lengths, backend, path, bytes_at_once, monkeypatch):
    ours, theirs = pair_of("tiny")
    ours.encoder.backend, ours.encoder.linear = backend, path
    monkeypatch.setattr(encoder_module, "_BYTES_AT_ONCE", bytes_at_once)
    batch = batch_of(lengths, ours.config.vocab_size)
    with torch.inference_mode():
        found = ours.encoder(batch)
        expected = [theirs.model(input_ids=ids[None]).last_hidden_state[0] for ids in batch.input_ids_T.split(lengths)]
    assert_near("the hidden state", found, torch.cat(expected), tolerance=ONEDNN_TOLERANCE)


def test_a_document_of_2048_tokens_is_computed_as_transformers_does(pair_of):
    ours, theirs = pair_of("tiny")
    ours.encoder.backend, ours.encoder.linear = "blocked", "auto"
    assert_parity(ours, theirs, [2048])


@pytest.mark.slow
def test_a_document_of_2048_tokens_is_computed_densely_as_transformers_does(pair_of):
    ours, theirs = pair_of("tiny")
    ours.encoder.backend = "reference"
    assert_parity(ours, theirs, [2048, 5])


# The test is itself tested: each of these mistakes must be seen.


def other_config(**changes):
    def spoil(ours, monkeypatch):
        values = changes | {k: v(ours.config) for k, v in changes.items() if callable(v)}
        ours.encoder.config = ours.config.replace(**values)

    return spoil


def tanh_gelu_in(module):
    def spoil(ours, monkeypatch):
        # A stand-in for `F` in one module of ours: torch's own gelu is what transformers calls.
        wrong = types.SimpleNamespace(**vars(F))
        wrong.gelu = lambda x: F.gelu(x, approximate="tanh")
        monkeypatch.setattr(module, "F", wrong)

    return spoil


def swap_gate_and_input(ours, monkeypatch):
    def forward(self, hidden_TD, path):
        input_TI, gate_TI = self.Wi(hidden_TD).chunk(2, dim=-1)
        return self.Wo(F.gelu(gate_TI) * input_TI)

    monkeypatch.setattr(encoder_module.GeGLU, "forward", forward)


def other_epsilon(ours, monkeypatch):
    # Seen because the embeddings stay at std 0.02: their variance, 4e-4, is only forty times the right eps. Behind
    # the embedding's norm the variance is about one, where no test in float32 could tell 1e-6 from 1e-5.
    for module in ours.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6


def norm_in_first_layer(ours, monkeypatch):
    # Seen because the embedding's norm has trained-looking weights; right after plain ones a second norm does little.
    ours.encoder.layers[0].attn_norm = torch.nn.LayerNorm(
        ours.config.hidden_size, eps=ours.config.norm_eps, elementwise_affine=False
    )


def visible_neighbours(ours, monkeypatch):
    def plan(batch, half_window, **kwargs):
        num_tokens = batch.num_tokens
        one_document = PackedBatch(
            input_ids_T=batch.input_ids_T,
            positions_T=batch.positions_T,
            cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
            max_seqlen=num_tokens,
        )
        return plan_attention(one_document, half_window, **kwargs)

    monkeypatch.setattr(encoder_module, "plan_attention", plan)


def interleaved_rotation(ours, monkeypatch):
    def rotate(x, rotation):
        cos, sin = rotation
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

    monkeypatch.setattr(encoder_module, "rotate", rotate)


MISTAKES = {
    "window + 1": other_config(local_attention=lambda config: config.local_attention + 2),
    "window - 1": other_config(local_attention=lambda config: config.local_attention - 2),
    "thetas swapped": other_config(
        global_rope_theta=lambda config: config.local_rope_theta,
        local_rope_theta=lambda config: config.global_rope_theta,
    ),
    "global layers shifted": other_config(
        layer_types=lambda config: (*config.layer_types[1:], config.layer_types[0]),
    ),
    "tanh GELU": tanh_gelu_in(encoder_module),
    "tanh GELU in the head": tanh_gelu_in(mlm_module),
    "gate and input swapped": swap_gate_and_input,
    "eps 1e-6": other_epsilon,
    "a norm in layer 0": norm_in_first_layer,
    "neighbours visible": visible_neighbours,
    "rotation interleaved": interleaved_rotation,
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(("shape", "lengths"), SPOILED_CASES, ids=lambda value: str(value).replace(" ", ""))
def test_the_comparison_sees_a_mistake(ours_of, pair_of, monkeypatch, shape, lengths, mistake):
    ours, theirs = ours_of(shape), pair_of(shape)[1]
    MISTAKES[mistake](ours, monkeypatch)
    with pytest.raises(AssertionError, match=r"moved by") as seen:
        assert_parity(ours, theirs, lengths)
    theirs.zero_grad()
    print(mistake, "on", shape, "-", str(seen.value).splitlines()[0])


@pytest.mark.parametrize("what", ["a weight", "the gradient alone"])
def test_the_comparison_sees_a_change_of_one_parameter(ours_of, pair_of, what):
    ours, theirs = ours_of("tiny"), pair_of("tiny")[1]
    weight = ours.encoder.layers[4].mlp.Wo.weight
    if what == "a weight":
        with torch.no_grad():
            weight *= 1.001
    else:
        weight.register_hook(lambda gradient: gradient * 1.0001)
    with pytest.raises(AssertionError, match="moved by" if what == "a weight" else r"gradient of .*layers\.4\.mlp\.Wo"):
        assert_parity(ours, theirs, [70, 5])
    theirs.zero_grad()


# What needs no transformers.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ["tiny", "odd-window-all-biases"])
def test_a_document_never_sees_its_neighbour(shape, backend):
    model = with_visible_weights(MaskedLM(SHAPES[shape], backend=backend).draw(0)).eval()
    lengths = [140, 1, 33, 64, 2]
    batch = batch_of(lengths, model.config.vocab_size)
    together = model.encoder(batch).split(lengths)
    for ids, packed in zip(batch.input_ids_T.split(lengths), together, strict=True):
        alone = model.encoder(PackedBatch.from_sequences([ids]))
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_from_a_document_to_its_neighbour(backend):
    batch = batch_of([20, 150, 20], 100)
    q, k, v = (torch.randn(190, 2, 8, requires_grad=True) for _ in range(3))
    for half_window in (None, 5, 64):
        o = attend(q, k, v, plan_attention(batch, half_window, backend=backend))
        gradients = torch.autograd.grad(o[20:170].square().sum(), (q, k, v))
        for gradient in gradients:
            assert gradient[20:170].abs().sum() > 0
            assert gradient[:20].abs().max() == gradient[170:].abs().max() == 0


LENGTHS = st.lists(st.integers(1, 40) | st.integers(100, 300), min_size=1, max_size=5)
HALF_WINDOWS = st.none() | st.integers(0, 3) | st.integers(4, 80)


@given(
    lengths=LENGTHS,
    half_window=HALF_WINDOWS,
    num_heads=st.integers(1, 4),
    head_size=st.sampled_from([2, 6, 8, 20]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_blocked_attention_is_dense_attention(lengths, half_window, num_heads, head_size, seed):
    batch = batch_of(lengths, 50)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch.num_tokens, num_heads, head_size)
    q, k, v, direction = (torch.randn(shape, generator=generator) for _ in range(4))
    found = []
    for backend in BACKENDS:
        qkv = [x.clone().requires_grad_() for x in (q, k, v)]
        o = attend(*qkv, plan_attention(batch, half_window, backend=backend))
        assert o.shape == shape
        found.append((o, *torch.autograd.grad((o * direction).sum(), qkv)))
    with torch.no_grad():  # other widths, other operators
        for backend in BACKENDS:
            o = attend(q, k, v, plan_attention(batch, half_window, backend=backend))
            torch.testing.assert_close(o, found[0][0], atol=2e-5, rtol=2e-5)
    for dense, *others in zip(*found, strict=True):
        for other in others:
            assert other.isfinite().all()
            torch.testing.assert_close(other, dense, atol=2e-5, rtol=2e-5)


@given(lengths=LENGTHS, half_window=HALF_WINDOWS)
@settings(deadline=None, max_examples=60)
def test_every_query_sees_a_key_and_exactly_those_of_the_definition(lengths, half_window):
    batch = batch_of(lengths, 50)
    dense = plan_attention(batch, half_window, backend="reference")
    assert isinstance(dense, DenseMask)
    document = [index for index, length in enumerate(lengths) for _ in range(length)]
    position = torch.arange(len(document))
    near = (position[:, None] - position).abs() <= (len(document) if half_window is None else half_window)
    expected = near & (torch.tensor(document)[:, None] == torch.tensor(document))
    assert torch.equal(dense.allowed_TT, expected) and expected.any(-1).all()

    for gradients in (True, False):  # chunks of another width
        with torch.set_grad_enabled(gradients):
            assert_exactly_those(plan_attention(batch, half_window), batch, expected)


def assert_exactly_those(blocked, batch, expected):
    if isinstance(blocked, Whole):
        assert [length for documents, length in blocked.runs for _ in range(documents)] == batch.lengths()
        return
    if isinstance(blocked, Groups):
        assert torch.equal(blocked.token_P[blocked.place_T], torch.arange(batch.num_tokens))
        sizes = [documents * length for documents, length in blocked.shapes]
        for part_P, shape, bias in zip(blocked.token_P.split(sizes), blocked.shapes, blocked.biases_B1LL, strict=True):
            documents, length = shape
            seen_BLL = torch.ones(documents, length, length, dtype=torch.bool)
            if bias is not None:
                seen_BLL = (bias == 0).expand(-1, -1, length, -1)[:, 0]
                assert (bias[bias != 0] == float("-inf")).all() and seen_BLL.any(-1).all()
            for tokens_L, seen_LL in zip(part_P.view(shape), seen_BLL, strict=True):
                for place, token in enumerate(tokens_L[: len(tokens_L.unique())]):
                    assert torch.equal(expected[token].nonzero().squeeze(1), tokens_L[seen_LL[place]])
        return
    assert isinstance(blocked, Chunks)
    seen = blocked.bias_C1WK == 0
    assert seen.any(-1).all()  # padding rows too: a softmax over nothing is NaN
    assert (blocked.bias_C1WK[~seen] == float("-inf")).all()
    counts = seen.sum(-1).flatten()[: batch.num_tokens]
    assert torch.equal(counts, expected.sum(-1))


def num_planned(plan):
    """Elements of all tensors that a plan holds."""
    values = [getattr(plan, name) for name in plan.__slots__]
    return sum(value.numel() for value in values if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("half_window", [3, 64])
def test_the_plan_of_a_local_layer_grows_with_the_tokens_not_with_their_square(half_window):
    width = max(2 * half_window, 32)
    for num_tokens in (512, 1024, 2048, 16_384):
        for lengths in ([num_tokens], [num_tokens // 4] * 4):
            plan = plan_attention(batch_of(lengths, 50), half_window)
            assert 0 < num_planned(plan) <= 2 * width * (num_tokens + width)


def test_the_plan_of_a_global_layer_holds_no_mask_of_a_long_document():
    assert num_planned(plan_attention(batch_of([4096, 30], 50), None)) == 0
    short = plan_attention(batch_of([100] * 40, 50), None)
    assert num_planned(short) <= 4 * 100 * (4000 + 200)


SMALL = ModernBertConfig(
    vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=3, pad_token_id=PAD
)


@given(lengths=LENGTHS, local_attention=st.integers(0, 200), backend=st.sampled_from(BACKENDS))
@settings(deadline=None, max_examples=40)
def test_outputs_and_gradients_are_always_finite(lengths, local_attention, backend):
    config = SMALL.replace(local_attention=local_attention)
    model = with_visible_weights(MaskedLM(config, backend=backend).draw(0))
    batch = batch_of(lengths, config.vocab_size)
    output = model(batch)
    output.loss_sum.backward()
    assert model.encoder(batch).isfinite().all()
    assert output.loss_sum.isfinite() and output.num_targets == sum(-(-length // 3) for length in lengths)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("lengths", [[1], [40, 3], [200, 1]])
def test_bfloat16_attention_stays_near_float32(lengths):
    batch = batch_of(lengths, 50)
    q, k, v = torch.randn(3, batch.num_tokens, 2, 16).unbind()
    for half_window in (None, 4):
        exact = attend(q, k, v, plan_attention(batch, half_window, backend="reference"))
        plan = plan_attention(batch, half_window, dtype=torch.bfloat16)
        rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), plan)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def varlen_by_definition(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size):
    """What `torch.nn.attention.varlen.varlen_attn` promises, document by document; it runs on CUDA only."""
    assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32
    assert max_q == max_k == cu_seq_q.diff().max()
    outputs = []
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(stop - start) - torch.arange(stop - start)[:, None]  # key minus query
        left, right = (stop if side < 0 else side for side in window_size)
        allowed = (distance >= -left) & (distance <= right)
        outputs.append(F.scaled_dot_product_attention(q, k, v, allowed).transpose(0, 1))
    return torch.cat(outputs)


@given(lengths=LENGTHS, half_window=HALF_WINDOWS)
@settings(deadline=None, max_examples=40)
def test_the_variable_length_kernel_is_asked_for_what_the_dense_mask_says(lengths, half_window):
    batch = batch_of(lengths, 50)
    q, k, v = torch.randn(3, batch.num_tokens, 2, 8).unbind()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_definition)
        found = attend(q, k, v, plan_attention(batch, half_window, backend="varlen"))
    expected = attend(q, k, v, plan_attention(batch, half_window, backend="reference"))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("lengths", [[8192], [1] * 50, [128, 256, 512], [8192, 1, 128]], ids=str)
def test_documents_of_whole_blocks_one_token_and_8192_tokens_are_computed(lengths, gradients):
    batch = batch_of(lengths, 50)
    q, k, v = (torch.randn(batch.num_tokens, 1, 8, requires_grad=gradients) for _ in range(3))
    for half_window in (None, 64):
        with torch.set_grad_enabled(gradients):
            found = attend(q, k, v, plan_attention(batch, half_window, backend=BACKENDS[-1]))
        assert found.isfinite().all()
        for start, length in zip(batch.cu_seqlens.tolist(), lengths, strict=False):
            rows = slice(start, start + length)
            document = batch_of([length], 50)
            if length > 512:  # a dense mask of 8,192² is too much: the kernel's own definition, one document
                wanted = varlen_by_definition(
                    q[rows], k[rows], v[rows], document.cu_seqlens, document.cu_seqlens, length, length,
                    window_size=(-1, -1) if half_window is None else (half_window, half_window),
                )  # fmt: skip
            else:
                wanted = attend(q[rows], k[rows], v[rows], plan_attention(document, half_window, backend="reference"))
            torch.testing.assert_close(found[rows], wanted, atol=2e-5, rtol=2e-5)


def test_a_batch_of_more_than_two_to_the_31_elements_is_planned_and_computed_in_shape():
    """On the meta device: 2.9 M tokens × 768 are 2.2e9 elements, past what 32-bit indices reach."""
    num_tokens, heads, head_size = 2_900_000, 12, 64
    lengths = [num_tokens]
    batch = PackedBatch(
        input_ids_T=torch.empty(num_tokens, dtype=torch.int64, device="meta"),
        positions_T=torch.empty(num_tokens, dtype=torch.int64, device="meta"),
        cu_seqlens=torch.tensor([0, *lengths], dtype=torch.int32, device="meta"),
        max_seqlen=num_tokens,
    )
    q = torch.empty(num_tokens, heads, head_size, device="meta")
    assert q.numel() > 2**31
    assert attend(q, q, q, plan_attention(batch, 64)).shape == q.shape
