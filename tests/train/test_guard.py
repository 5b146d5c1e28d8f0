"""The guard: which losses are spikes, and what is said about a step that went wrong."""

import itertools
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import runtime, tiny_recipe, train_batches

from modernbert.batch import IGNORE, PackedBatch
from modernbert.model.compile import compile_layers
from modernbert.model.encoder import GeGLU
from modernbert.tasks import MaskedLM
from modernbert.tasks.base import TaskOutput
from modernbert.text.tokenizer import load_tokenizer, special_ids
from modernbert.train import guard
from modernbert.train.guard import SpikeDetector, diagnose, first_bad_layer, loudest_layer, worst_documents
from modernbert.train.recipe import GuardSettings


def detector(losses=(), **settings):
    return SpikeDetector.from_state(GuardSettings(**settings), losses)


def usual(count, level=2.0, spread=0.05, seed=0):
    draw = random.Random(seed)
    return [draw.gauss(level, spread) for _ in range(count)]


# --- spikes


@pytest.mark.parametrize(
    ("before", "loss", "is_spike"),
    [
        (usual(128), 2.1, False),
        (usual(128), 3.0, True),
        (usual(128), 0.5, False),  # a fall is no spike
        (usual(31), 9.0, False),  # too few to tell
        (usual(32), 9.0, True),
        ([2.0] * 128, 2.3, False),  # a flat curve does not make a ripple a spike
        ([2.0] * 128, 2.5, True),
        ([0.0] * 128, 0.19, False),
        ([0.0] * 128, 0.21, True),
        (usual(128, spread=0.3), 4.0, False),  # a small batch is noisy
        ([11 - 0.05 * i for i in range(128)], 5.5, False),  # the steep beginning
    ],
)  # fmt: skip
def test_a_spike_is_told_from_what_is_usual(before, loss, is_spike):
    assert (detector(before).see(loss) is not None) == is_spike


def test_the_height_is_counted_in_deviations_above_the_median():
    before = [2.0] * 40 + [2.1] * 40 + [1.9] * 40  # half of all lie within 0.1 of 2.0
    assert detector(before).see(4.0) == pytest.approx(2.0 / (1.4826 * 0.1), rel=1e-6)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_infinitely_high_and_never_remembered(loss):
    seen = detector(usual(64))
    assert seen.see(loss) == math.inf
    assert seen.state() == usual(64)


@pytest.mark.parametrize(("on_spike", "remembered"), [("note", 1), ("skip", 0), ("rollback", 0), ("stop", 0)])
def test_the_loss_of_a_step_that_was_not_taken_is_not_remembered(on_spike, remembered):
    seen = detector(usual(64), on_spike=on_spike)
    assert seen.see(5.0) is not None
    assert seen.state() == usual(64) + [5.0] * remembered


def test_a_rise_that_lasts_is_noted_once_and_a_skipped_one_each_time():
    noted, skipped = (detector(usual(128), on_spike=action) for action in ("note", "skip"))
    rise = usual(200, level=5.0, seed=1)
    assert sum(noted.see(loss) is not None for loss in rise) == 1
    assert sum(skipped.see(loss) is not None for loss in rise) == 200
    assert noted.see(12.0) is not None, "what was noted has become usual"


def test_an_ordinary_run_raises_no_alarm():
    seen, draw = detector(), random.Random(1)
    for step in range(5000):
        level = 2 + 9 * math.exp(-step / 150)
        assert seen.see(draw.gauss(level, 0.03 + 0.02 * level)) is None, step


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.floats(0, 12) | st.just(math.nan), max_size=120),
    cut=st.integers(0, 120),
    window=st.integers(8, 60),
    on_spike=st.sampled_from(["note", "skip"]),
)
def test_a_resumed_detector_judges_as_the_unbroken_one(losses, cut, window, on_spike):
    unbroken, first = (detector(spike_window=window, on_spike=on_spike) for _ in range(2))
    expected = [unbroken.see(loss) for loss in losses]
    found = [first.see(loss) for loss in losses[:cut]]
    state = json.loads(json.dumps(first.state()))
    assert len(state) <= window
    second = detector(state, spike_window=window, on_spike=on_spike)
    found += [second.see(loss) for loss in losses[cut:]]
    assert found == expected and second.state() == unbroken.state()


def test_a_new_phase_begins_without_memories():
    seen = detector(usual(128))
    seen.forget()
    assert seen.see(9.0) is None and seen.state() == [9.0] and seen.median == 9.0


# --- layers


@pytest.fixture
def step(shards):
    """A model in training mode, and two micro-batches of a step."""
    tokenizer = load_tokenizer(shards)
    run = tiny_recipe(shards)
    task = MaskedLM(run.model.config(320, special_ids(tokenizer)), tokenizer, out_dropout=0.1).draw(0)
    batches = [batch for batch, _ in zip(train_batches(run).once(), range(2), strict=False)]
    return task.train(), batches


def poison(task, name, value=math.nan):
    parameter = dict(task.named_parameters())[name]
    with torch.no_grad():
        parameter.flatten()[:1].fill_(value)


def spoil(module, how):
    """Change what a module gives, as a faulty kernel would."""
    whole = module.forward
    module.forward = lambda *inputs: how(whole(*inputs))


def with_nan(x):
    return torch.cat([x[:1] * math.nan, x[1:]])


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("model.layers.1.mlp.Wo.weight", "layers.1.mlp.Wo (weight)"),
        ("model.layers.0.attn.Wqkv.weight", "layers.0.attn.Wqkv (weight)"),
        ("model.final_norm.weight", "final_norm (weight)"),
        ("head.dense.weight", "head.dense (weight)"),
        ("decoder.bias", "decoder (weight)"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(step, weight, expected):
    task, batches = step
    poison(task, weight)
    assert first_bad_layer(task, batches, runtime()) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (lambda task: task.model.layers[1].mlp.Wi, "layers.1.mlp.Wi (output)"),
        (lambda task: task.model.layers[0].attn_norm, "layers.0.attn_norm (output)"),
        (lambda task: task.head.norm, "head.norm (output)"),
    ],
)
def test_a_module_whose_output_is_not_finite_is_named(step, where, expected):
    task, batches = step
    spoil(where(task), with_nan)
    assert first_bad_layer(task, batches, runtime()) == expected


def test_an_overflow_between_two_modules_is_named_by_the_one_behind(step):
    task, batches = step
    spoil(task.model.layers[1].mlp.Wi, lambda x: x * 1e30)  # finite; the gate's product is not
    assert first_bad_layer(task, batches, runtime()) == "layers.1.mlp.Wo (input)"


def test_a_gradient_that_is_not_finite_is_named_by_its_weight(step):
    class Overflows(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    task, batches = step
    spoil(task.model.layers[0].mlp.Wo, Overflows.apply)
    assert first_bad_layer(task, batches, runtime()) == "layers.0.mlp.Wo.weight (gradient)"


def test_the_loss_itself_is_named_where_all_before_it_is_finite(step):
    task, batches = step
    whole = task.forward

    def forward(batch):
        output = whole(batch)
        return TaskOutput(output.loss_sum * math.inf, output.num_targets)

    task.forward = forward
    assert first_bad_layer(task, batches, runtime()) == "the loss"


def test_a_step_that_is_finite_has_no_bad_layer(step):
    assert first_bad_layer(*step, runtime()) is None


@pytest.mark.parametrize("weight", [None, "model.layers.1.mlp.Wo.weight"])
def test_a_diagnosis_leaves_nothing_behind(step, weight):
    task, batches = step
    for batch in batches:
        task(batch).loss_sum.backward()
    if weight:
        poison(task, weight)
    weights = {name: p.detach().clone() for name, p in task.named_parameters()}
    gradients = {name: p.grad for name, p in task.named_parameters()}
    copies = {name: gradient.clone() for name, gradient in gradients.items()}
    random_state = torch.get_rng_state()
    diagnose(task, batches, runtime(), step=1, loss=math.nan)
    diagnose(task, batches, runtime(), step=1, loss=9.0, deviations=12.0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in task.modules())
    for name, parameter in task.named_parameters():
        assert (
            torch.equal(
                parameter.detach(),
                weights[name],
            )
            or weight == name
        )
        assert parameter.grad is gradients[name] and torch.equal(parameter.grad, copies[name])
        assert not parameter._post_accumulate_grad_hooks
    assert not any(module._forward_hooks for module in task.modules())


@pytest.mark.slow
def test_a_compiled_model_is_looked_into_as_well(step):
    task, batches = step
    compile_layers(task.encoder)
    assert any(isinstance(module, GeGLU) and module._compiled_call_impl for module in task.modules())
    poison(task, "model.layers.1.mlp.Wo.weight")
    assert first_bad_layer(task, batches, runtime()) == "layers.1.mlp.Wo (weight)"


def test_the_loudest_gradient_is_the_one_largest_beside_its_weights(step):
    task, _ = step
    for parameter in task.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    weight = task.model.layers[1].attn.Wo.weight
    weight.grad *= 500
    name, norm, share = loudest_layer(task)
    assert name == "layers.1.attn.Wo.weight"
    assert norm == pytest.approx(0.5 * weight.numel() ** 0.5, rel=1e-5)
    assert share == pytest.approx(norm / weight.norm().item(), rel=1e-5)


# --- documents


def documents_of(batches):
    for number, batch in enumerate(batches):
        starts = batch.cu_seqlens.tolist()
        for document, (start, stop) in enumerate(itertools.pairwise(starts)):
            yield number, document, batch.input_ids_T[start:stop], batch.labels_T[start:stop]


def test_means_by_document_are_those_of_each_document_alone(step):
    task, batches = step
    found = worst_documents(task, batches, runtime(), k=10_000)
    task.eval()
    expected = {}
    for number, document, ids, labels in documents_of(batches):
        output = task(PackedBatch.from_sequences([ids], [labels]))
        if output.num_targets:
            expected[number, document] = (output.loss_sum.item() / output.num_targets, output.num_targets)
    assert {(d.micro_batch, d.document) for d in found} == expected.keys()
    for d in found:
        mean, targets = expected[d.micro_batch, d.document]
        assert d.loss == pytest.approx(mean, rel=1e-4) and d.targets == targets


def test_the_document_that_raises_the_loss_most_is_first_and_quoted_unmasked(step):
    task, batches = step
    tokenizer = task.tokenizer
    text = "Birds sang in tall old trees near rivers."
    ids = tokenizer.encode(text).ids
    labels = [token if 0 < place < len(ids) - 1 else IGNORE for place, token in enumerate(ids)]
    masked = [
        tokenizer.token_to_id("[MASK]") if label != IGNORE else token for token, label in zip(ids, labels, strict=True)
    ]
    with torch.no_grad():  # these tokens are what the model believes in least
        task.decoder.bias[ids] -= 5.0
        task.decoder.bias[[t for t in range(320) if t not in ids]] += 5.0
    plain = [(i.tolist(), [IGNORE] * (len(i) - 2) + [int(i[-2]), IGNORE]) for _, _, i, _ in documents_of(batches[:1])]
    mixed = PackedBatch.from_sequences([*(i for i, _ in plain), masked], [*(row for _, row in plain), labels])
    worst = worst_documents(task, [batches[1], mixed], runtime(), k=1)[0]
    assert (worst.micro_batch, worst.document) == (1, len(plain))
    assert worst.name == f"micro-batch 1, document {len(plain)} '{text[:48]}…'"


def test_a_short_document_with_one_hard_word_does_not_outrank_a_long_bad_one():
    class Losses(torch.nn.Module):
        tokenizer = None

        def forward(self, batch):
            losses_M = batch.input_ids_T[batch.labels_T != IGNORE].float()
            return TaskOutput(losses_M.sum(), len(losses_M), {}, losses_M)

    documents = [[2] * 10, [15], [2] * 10, [9] * 10, [2] * 10]  # each id its own loss
    batch = PackedBatch.from_sequences(documents, documents)
    found = worst_documents(Losses(), [batch], runtime(), k=2)
    assert [(d.document, d.loss, d.targets) for d in found] == [(3, 9.0, 10), (1, 15.0, 1)]


@pytest.mark.parametrize("k", [1, 3])
def test_only_documents_that_are_not_finite_are_named_where_there_are_any(step, k):
    task, batches = step
    token = next(int(i[1]) for n, d, i, labels in documents_of(batches) if n == 1 and (labels != IGNORE).any())

    def poison(_module, inputs, output):  # not the weight: the decoder is tied, and its row would spoil every document
        return torch.where((inputs[0] == token)[:, None], math.nan, output)

    task.model.embeddings.register_forward_hook(poison)
    ill = {(n, d) for n, d, i, labels in documents_of(batches) if (i == token).any() and (labels != IGNORE).any()}
    found = worst_documents(task, batches, runtime(), k=k)
    assert found and {(d.micro_batch, d.document) for d in found} <= ill
    assert len(found) == min(k, len(ill)) and all(math.isnan(d.loss) for d in found)


def test_a_step_without_targets_names_no_document(step):
    task, _ = step
    blank = PackedBatch.from_sequences([[1, 2, 3]], [[IGNORE] * 3])
    assert worst_documents(task, [blank], runtime()) == []


# --- the sentence


def test_a_step_that_is_not_finite_is_told_in_one_sentence(step):
    task, batches = step
    poison(task, "model.layers.1.mlp.Wo.weight")
    verdict = diagnose(
        task, batches, runtime(), step=1234, loss=math.nan, deviations=math.inf,
        name_of=lambda micro_batch, document: f"wiki #{100 * micro_batch + document} 'Title'",
    )  # fmt: skip
    text = verdict.sentence("skipped")
    assert text.startswith(
        "step 1,234: loss nan; the first value that is not finite is in layers.1.mlp.Wo (weight); documents: wiki #"
    )
    assert text.endswith("; skipped") and "\n" not in text and text.count("'Title' (loss nan)") == 3


def test_a_spike_is_told_in_one_sentence(step):
    task, batches = step
    for batch in batches:
        task(batch).loss_sum.backward()
    verdict = diagnose(task, batches, runtime(), step=7, loss=9.25, deviations=31.4, median=2.5)
    text = verdict.sentence("noted")
    assert text.startswith(
        "step 7: loss 9.25, 31 deviations above the recent median 2.5; the loudest gradient is that of "
    )
    assert "documents: micro-batch " in text and text.endswith("; noted")


def test_a_gradient_that_was_not_finite_and_a_fault_that_does_not_come_back_are_told(step):
    text = diagnose(*step, runtime(), step=7, loss=2.5).sentence("skipped")
    assert text == (
        "step 7: loss 2.5, gradients not finite; computed once more it is finite, so look at the hardware, or at what "
        "dropout drew; skipped"
    ), "documents that are fine are not to blame"


@pytest.mark.parametrize("broken", ["first_bad_layer", "worst_documents", "loudest_layer"])
def test_a_diagnosis_that_fails_is_a_clause_of_the_sentence(step, monkeypatch, broken):
    def fail(*_anything):
        raise RuntimeError("CUDA error:\nout of memory")

    monkeypatch.setattr(guard, broken, fail)
    deviations = None if broken == "first_bad_layer" else 12.0
    verdict = diagnose(*step, runtime(), step=7, loss=9.0, deviations=deviations)
    assert "could not be found (RuntimeError: CUDA error: out of memory)" in verdict.sentence("skipped")
    assert "\n" not in verdict.sentence("skipped")


def test_a_name_that_cannot_be_found_leaves_the_place(step):
    def name_of(micro_batch, document):
        raise OSError("the disk is gone")

    poison(step[0], "decoder.bias")
    verdict = diagnose(*step, runtime(), step=7, loss=math.nan, name_of=name_of)
    assert "the disk is gone" in verdict.sentence("skipped") and "documents: micro-batch " in verdict.sentence(
        "skipped"
    )


@pytest.mark.parametrize("deviations", [None, 12.0])
def test_the_row_of_an_event_is_valid_json_without_nan(step, deviations):
    task, batches = step
    for batch in batches:
        task(batch).loss_sum.backward()
    poison(task, "decoder.bias")
    row = diagnose(task, batches, runtime(), step=7, loss=math.nan, deviations=deviations).row("nan", "skipped")
    back = json.loads(json.dumps(row, allow_nan=False))
    assert back["kind"] == "event" and back["event"] == "nan" and back["step"] == 7 and back["loss"] is None
    assert back["text"].endswith("skipped") and back["documents"][0]["loss"] is None
    assert (back["layer"] == "decoder (weight)") == (deviations is None)
    assert (back["loudest"] is not None) == (deviations is not None)
