"""`accelerate` against the stock models of transformers and sentence-transformers, made small and at random.

Weights are drawn far larger than at the start of training, so that a mistake moves the outputs (`tests/model/test_parity`).
"""

import copy
import io
import pickle
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modernbert import IGNORE, MaskedLM
from modernbert.dropin import accelerate, restore
from modernbert.dropin.forwards import Packing
from modernbert.errors import UnsupportedError
from modernbert.model import attention, encoder
from modernbert.model.linear import onednn_is_built_in

transformers = pytest.importorskip("transformers", minversion="5")

PAD, VOCABULARY, WINDOW = 3, 128, 16
BARE, MLM = "ModernBertModel", "ModernBertForMaskedLM"
TOKENS, QA = "ModernBertForTokenClassification", "ModernBertForQuestionAnswering"
SEQUENCE = "ModernBertForSequenceClassification"
KINDS = (BARE, MLM, TOKENS, SEQUENCE, QA)
SPECIAL = {"pad_token_id": PAD, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
LENGTHS = [  # a token sees 8 on either side; from 129 tokens on whole documents are attended to one by one
    [1], [1, 2], [8, 9, 10], [15, 16, 17, 18], [1, 17, 40], [33, 33, 33], [140, 5], [128, 129, 1],
]  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # by norm


def stock(kind=BARE, seed=0, **changes):
    """A model of transformers whose outputs show a mistake."""
    values = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 2, "local_attention": WINDOW, "max_position_embeddings": 256, "num_labels": 3,
    }  # fmt: skip
    if kind == QA:
        values["num_labels"] = 2
    model = getattr(transformers, kind)(transformers.ModernBertConfig(**values | SPECIAL | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise) if parameter.dim() == 1 else parameter.copy_(0.15 * noise)
    return model.eval()


def padded(lengths, side="right", seed=0):
    """Token ids and mask of rows of these lengths; every third real token is labelled."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(PAD + 1, VOCABULARY, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask = (mask.flip(1) if side == "left" else mask).long()
    return {"input_ids": ids.where(mask.bool(), torch.tensor(PAD)), "attention_mask": mask}


def answers(output, mask):
    """Every tensor of an output, without padding where it has any."""
    rows = mask.bool()
    return [x[rows] if x.shape[:2] == mask.shape else x for x in output.to_tuple() if x is not None]


def distance(ours, theirs):
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).float().norm() / theirs.float().norm().clamp_min(1e-2))


def assert_same(ours, theirs, tolerance=TOLERANCE[torch.float32]):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert distance(a, b) <= tolerance, f"moved by {distance(a, b):.1e}"


def pair(kind=BARE, **changes):
    """The stock model and an accelerated copy of it."""
    model = stock(kind, **changes)
    return model, accelerate(copy.deepcopy(model))


# The same answers.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_at_real_tokens_are_those_of_the_stock_model(kind, side, dtype):
    theirs, ours = pair(kind, classifier_pooling="mean" if side == "left" else "cls")
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    for lengths in LENGTHS:
        inputs = padded(lengths, side)
        with torch.no_grad():
            found, expected = (answers(model(**inputs), inputs["attention_mask"]) for model in (ours, theirs))
            assert_same(found, expected, TOLERANCE[dtype])
        assert_same(answers(ours(**inputs), inputs["attention_mask"]), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("side", ["right", "left"])
@given(lengths=st.lists(st.integers(0, 40) | st.integers(120, 150), min_size=1, max_size=5).filter(any))
@settings(deadline=None, max_examples=25)
def test_any_lengths_are_computed_and_padding_is_zero(side, lengths):
    theirs, ours = PAIR
    inputs = padded(lengths, side, seed=sum(lengths))
    mask = inputs["attention_mask"]
    with torch.no_grad():
        found = ours(**inputs).last_hidden_state
        assert_same([found[mask.bool()]], [theirs(**inputs).last_hidden_state[mask.bool()]])
    assert found[~mask.bool()].abs().sum() == 0


PAIR = pair()


@pytest.mark.parametrize(
    "inputs",
    [
        {"attention_mask": None},
        {"attention_mask": torch.ones(3, 40, dtype=torch.bool)},
        {"attention_mask": padded([40, 7, 22])["attention_mask"].bool()},
        {"attention_mask": padded([40, 7, 22])["attention_mask"].float()},
        {"position_ids": torch.arange(5, 45)[None]},
        {"position_ids": torch.randint(0, 200, (3, 40))},
        {"token_type_ids": torch.zeros(3, 40, dtype=torch.long), "output_attentions": False, "use_cache": True},
    ],
    ids=["no mask", "full mask", "bool mask", "float mask", "shifted positions", "any positions", "without effect"],
)
def test_every_way_to_call_it_gives_the_stock_answer(inputs):
    theirs, ours = PAIR
    inputs = padded([40, 7, 22]) | inputs
    mask = inputs["attention_mask"] if inputs["attention_mask"] is not None else torch.ones(3, 40)
    assert_same(answers(ours(**inputs), mask), answers(theirs(**inputs), mask))


@pytest.mark.parametrize("kind", [BARE, MLM])
def test_return_dict_false_gives_a_tuple(kind):
    theirs, ours = pair(kind)
    inputs = padded([4, 9])
    expected = theirs(**inputs, return_dict=False)
    found = ours(inputs["input_ids"], inputs["attention_mask"], return_dict=False)
    assert type(found) is type(expected) is tuple
    mask = inputs["attention_mask"].bool()
    assert_same([x[mask] for x in found], [x[mask] for x in expected])


def test_a_pad_token_that_is_attended_to_gets_no_gradient_as_in_the_stock_model():
    theirs, ours = pair()
    ids = padded([9, 4])["input_ids"]
    for model in (theirs, ours):
        model(ids).last_hidden_state.square().sum().backward()
    assert_same([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotary_frequencies_that_half_has_rounded_are_used_as_the_stock_model_uses_them(dtype):
    theirs, ours = pair()
    inputs = padded([120, 60])
    exact = ours(**inputs).last_hidden_state
    for model in (theirs, ours):
        model.rotary_emb.to(dtype)
    found, mask = ours(**inputs), inputs["attention_mask"]
    assert_same(answers(found, mask), answers(theirs(**inputs), mask))
    assert distance(found.last_hidden_state, exact) > 10 * TOLERANCE[torch.float32]


def test_under_autocast_it_computes_in_that_dtype():
    theirs, ours = pair(MLM)
    inputs = padded([30, 12])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (answers(model(**inputs), inputs["attention_mask"]) for model in (ours, theirs))
    assert_same(found, expected, TOLERANCE[torch.bfloat16])


def test_documents_that_flash_attention_gets_flattened_are_taken_as_they_are():
    theirs, ours = PAIR
    lengths = [12, 30, 5]
    inputs = padded(lengths)
    flat = {
        "input_ids": inputs["input_ids"][inputs["attention_mask"].bool()][None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": torch.tensor([0, 12, 42, 47]), "cu_seq_lens_k": torch.tensor([0, 12, 42, 47]),
        "max_length_q": 30, "max_length_k": 30,
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match="the argument cu_seq_lens_q"):
        ours(**flat)
    ours = copy.deepcopy(ours)
    ours.config._attn_implementation_internal = "flash_attention_2"
    (expected,) = answers(theirs(**inputs), inputs["attention_mask"])
    assert_same([ours(**flat).last_hidden_state[0]], [expected])


# The same training.


def loss_of(model, kind, lengths):
    inputs = padded(lengths)
    mask = inputs["attention_mask"].bool()
    if kind == BARE:
        return model(**inputs).last_hidden_state[mask].sin().mean()
    if kind == QA:
        spans = torch.arange(len(lengths)) % min(lengths)
        return model(**inputs, start_positions=spans, end_positions=spans + 1).loss
    if kind == SEQUENCE:
        return model(**inputs, labels=torch.arange(len(lengths)) % 3).loss
    labels = torch.where(mask & (torch.arange(mask.shape[1]) % 3 == 0), inputs["input_ids"] % 3, IGNORE)
    return model(**inputs, labels=labels).loss


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_the_stock_ones_and_stay_so_after_a_step(kind):
    theirs, ours = pair(kind)
    lengths = [20, 20] if kind == QA else [30, 4, 19]
    for model in (theirs, ours):
        model.train()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (theirs, ours)]
    for _ in range(2):
        losses = [loss_of(model, kind, lengths) for model in (ours, theirs)]
        assert_same(losses[:1], losses[1:])
        for loss in losses:
            loss.backward()
        expected = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            assert distance(parameter.grad, expected[name].grad) <= 1e-5, name
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert distance(ours.get_input_embeddings().weight, stock(kind).get_input_embeddings().weight) > 1e-3


def test_what_is_frozen_gets_no_gradient_and_the_rest_the_stock_one():
    theirs, ours = pair(SEQUENCE)
    for model in (theirs, ours):
        model.model.requires_grad_(False)
        model.model.layers[3].requires_grad_(True)
        loss_of(model, SEQUENCE, [9, 4]).backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and len(found) < len(list(ours.parameters()))
    assert_same(list(found.values()), list(expected.values()))


@pytest.mark.parametrize("ignored", [IGNORE, -1])
def test_sparse_prediction_gives_the_stock_logits_of_labelled_tokens(ignored):
    theirs, ours = pair(MLM, sparse_prediction=True, sparse_pred_ignore_index=ignored)
    inputs = padded([30, 4, 19])
    labels = torch.where(inputs["attention_mask"].bool() & (inputs["input_ids"] % 2 == 0), inputs["input_ids"], ignored)
    found, expected = (model(**inputs, labels=labels) for model in (ours, theirs))
    assert found.logits.shape == (int((labels != ignored).sum()), VOCABULARY)
    assert_same([found.loss, found.logits], [expected.loss, expected.logits])


def test_a_trainer_s_share_of_a_larger_batch_counts_in_the_loss():
    theirs, ours = pair(MLM)
    inputs = padded([5, 9])
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), torch.tensor(IGNORE))
    found, expected = (model(**inputs, labels=labels, num_items_in_batch=50).loss for model in (ours, theirs))
    assert_same([found], [expected])


def test_the_head_too_runs_at_real_tokens_only(monkeypatch):
    _, ours = pair(MLM)
    rows, plain = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: rows.append(x.shape[:-1].numel()) or plain(self, x))
    ours(**padded([30, 4, 2]))
    assert rows == [36, 36]  # the head's dense layer and the decoder


# Nothing but `forward` is touched.


@pytest.mark.parametrize("kind", KINDS)
def test_modules_parameters_and_files_are_untouched(kind, tmp_path):
    model = stock(kind)
    before = dict(model.state_dict(keep_vars=True)), [*model.named_modules()], [*model.named_buffers()]
    accelerate(model)
    model(**padded([3, 9]))
    after = dict(model.state_dict(keep_vars=True)), [*model.named_modules()], [*model.named_buffers()]
    assert before[0].keys() == after[0].keys()
    assert all(value is after[0][name] for name, value in before[0].items())
    assert before[1] == after[1] and [name for name, _ in before[2]] == [name for name, _ in after[2]]
    model.save_pretrained(tmp_path)
    again = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    assert type(again.forward) is not type(model.forward)
    inputs = padded([12, 5])
    assert_same(answers(model(**inputs), inputs["attention_mask"]), answers(again(**inputs), inputs["attention_mask"]))


@pytest.mark.parametrize("kind", KINDS)
def test_restore_gives_back_the_stock_model_to_the_bit(kind):
    model = stock(kind)
    inputs = padded([20, 20])
    before = model(**inputs).to_tuple()
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    flags = [module.training for module in model.modules()]
    assert restore(accelerate(model)) is model
    assert keys == {name: set(vars(module)) for name, module in model.named_modules()}
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(a, b) for a, b in zip(before, model(**inputs).to_tuple(), strict=True))


def test_accelerating_twice_and_restoring_what_is_stock_do_nothing():
    model = stock(MLM)
    assert restore(model) is model and accelerate(model) is model
    forward = model.forward
    assert accelerate(model) is model and model.forward is forward


def test_a_backbone_that_was_accelerated_or_restored_by_itself_leaves_its_head_working():
    theirs, ours = stock(MLM), stock(MLM)
    inputs = padded([12, 5])
    expected = answers(theirs(**inputs), inputs["attention_mask"])
    accelerate(ours.model)
    assert "forward" not in vars(ours)
    accelerate(ours)
    assert_same(answers(ours(**inputs), inputs["attention_mask"]), expected)
    restore(ours.model)
    assert_same(answers(ours(**inputs), inputs["attention_mask"]), expected, tolerance=0)


def test_training_flags_and_random_numbers_are_left_alone():
    model = stock(SEQUENCE, classifier_dropout=0.1).train()
    model.model.layers[1].eval()
    flags, state = [module.training for module in model.modules()], torch.get_rng_state()
    accelerate(model)
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_the_signature_stays_that_of_the_class():
    import inspect

    for kind in KINDS:
        model = stock(kind)
        before = inspect.signature(model.forward)
        assert inspect.signature(accelerate(model).forward) == before


@pytest.mark.parametrize("kind", [BARE, MLM])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_accelerated_and_on_its_own(kind, how):
    _, ours = pair(kind)
    inputs = padded([12, 5])
    before = answers(ours(**inputs), inputs["attention_mask"])
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    assert type(other.forward) is type(ours.forward)
    assert_same(answers(other(**inputs), inputs["attention_mask"]), before, tolerance=0)
    with torch.no_grad():
        other.get_input_embeddings().weight.neg_()
    assert_same(answers(ours(**inputs), inputs["attention_mask"]), before, tolerance=0)
    assert distance(answers(other(**inputs), inputs["attention_mask"])[0], before[0]) > 0.1
    assert "forward" not in vars(restore(other)) and "forward" in vars(ours)


def test_threads_get_the_answers_of_their_own_batches():
    _, ours = pair(MLM)
    batches = [padded([seed + 1, 30 - seed], seed=seed) for seed in range(6)]
    with torch.no_grad():
        expected = [ours(**inputs).logits for inputs in batches]
    wrong = []

    def serve(index):
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(ours(**batches[index]).logits, expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What becomes of the model later is seen.


def to_float64(model):
    model.to(torch.float64)


def load_and_assign(model):
    values = {name: value.clone() * 1.1 for name, value in model.state_dict().items()}
    model.load_state_dict(values, assign=True)


def grow_the_vocabulary(model):
    torch.manual_seed(5)
    model.resize_token_embeddings(VOCABULARY + 9, mean_resizing=False)


def put_another_linear(model):
    torch.manual_seed(5)
    model.model.layers[2].mlp.Wo = nn.Linear(96, 64, bias=False)


def put_another_norm(model):
    model.model.final_norm = nn.LayerNorm(64, eps=0.5, bias=False)


def write_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


def swap_parameters(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


CHANGES = [
    to_float64, load_and_assign, grow_the_vocabulary, put_another_linear, put_another_norm, write_data, swap_parameters,
]  # fmt: skip


@pytest.mark.parametrize("path", ["plain", "packed"])  # the latter keeps a copy of each weight
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_replaces_parameters_is_seen(change, path):
    if path == "packed" and not onednn_is_built_in():
        pytest.skip("this PyTorch has no oneDNN")
    theirs, ours = pair(MLM)
    inputs = padded([30, 4])
    ours.model.forward.twin.linear = path
    with torch.no_grad():
        before = ours(**inputs).logits
    if change in (to_float64, swap_parameters):
        ours.model.forward.twin.linear = "auto"  # float32 is the only dtype of `packed`
    for model in (theirs, ours):
        change(model)
    with torch.no_grad():
        found, expected = (answers(model(**inputs), inputs["attention_mask"]) for model in (ours, theirs))
    assert_same(found, expected)
    assert (
        found[0].dtype != before.dtype
        or found[0].shape[1] != before.shape[2]
        or distance(found[0][:30], before[0]) > 0.01
    )
    for model in (theirs, ours):
        loss_of(model, MLM, [30, 4]).backward()
    assert_same([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


def test_parameters_lent_for_one_call_are_used():
    theirs, ours = PAIR
    lent = {name: 0.8 * value for name, value in theirs.state_dict().items()}
    inputs = padded([9, 4])
    found, expected = (torch.func.functional_call(model, lent, (), inputs) for model in (ours, theirs))
    assert_same(answers(found, inputs["attention_mask"]), answers(expected, inputs["attention_mask"]))


def test_hooks_around_the_backbone_and_in_the_head_run_on_rows_as_they_are_padded():
    theirs, ours = pair(MLM)
    inputs, seen = padded([30, 4]), {"theirs": [], "ours": []}
    for name, model in (("theirs", theirs), ("ours", ours)):
        for module in (model, model.model, model.head.norm, model.decoder):
            module.register_forward_hook(lambda _m, _args, output, name=name: seen[name].append(output))
    found, expected = (answers(model(**inputs), inputs["attention_mask"]) for model in (ours, theirs))
    assert_same(found, expected)
    shapes = [[x.shape if isinstance(x, torch.Tensor) else x[0].shape for x in seen[name]] for name in seen]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 4


def test_hidden_states_that_the_stock_model_was_asked_for_before_are_no_obstacle():
    model = stock()
    assert len(model(**padded([3]), output_hidden_states=True).hidden_states) == 5
    accelerate(model)
    with pytest.raises(UnsupportedError, match="output_hidden_states=True"):
        model(**padded([3]), output_hidden_states=True)


def test_under_torch_compile_the_encoder_stays_as_it_is():
    theirs, ours = pair(MLM)
    inputs = padded([12, 5])
    compiled = torch.compile(ours, backend="eager")
    assert_same(
        answers(compiled(**inputs), inputs["attention_mask"]), answers(theirs(**inputs), inputs["attention_mask"])
    )


# Refusals.


class LoraLinear(nn.Linear):
    pass


def spoil(model, what):
    layer = model.model.layers[1]
    match what:
        case "lora":
            layer.attn.Wqkv = LoraLinear(64, 192, bias=False)
        case "adapter":
            layer.adapter = nn.Linear(64, 64)
        case "hook":
            layer.mlp.act.register_forward_hook(lambda *args: None)
        case "backward hook":
            layer.register_full_backward_hook(lambda *args: None)
        case "parametrization":
            nn.utils.parametrizations.weight_norm(layer.mlp.Wo)
        case "forward of another library":
            layer.forward = layer.forward
        case "fewer layers":
            model.model.layers = model.model.layers[:2]
        case "other window":
            model.config.local_attention = 32
        case "dropout":
            layer.mlp.drop.p = 0.1
            model.train()
        case "attention dropout":
            layer.attn.attention_dropout = 0.1
            model.train()
        case "checkpointing":
            model.activation_checkpointing_enable()
            model.train()


SPOILED = {
    "lora": r"^layers\.1\.attn\.Wqkv is a .*LoraLinear: only the stock model",
    "adapter": r"^layers\.1\.adapter is a torch\.nn\.modules\.linear\.Linear",
    "hook": r"^layers\.1\.mlp\.act has hooks",
    "backward hook": r"^layers\.1 has hooks",
    "parametrization": r"^layers\.1\.mlp\.Wo is a .*ParametrizedLinear",
    "forward of another library": r"^layers\.1 has a forward that another library",
    "fewer layers": "^layers or a window that are not",
    "other window": "^layers or a window that are not",
    "dropout": r"^layers\.1\.mlp\.drop trains with a dropout of 0\.1",
    "attention dropout": r"^layers\.1\.attn trains with a dropout of 0\.1",
    "checkpointing": r"^layers\.0 trains with gradient checkpointing",
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_model_that_was_changed_since_is_refused_until_it_is_restored(what):
    model = accelerate(stock(MLM))
    spoil(model, what)
    with pytest.raises(UnsupportedError, match=SPOILED[what]) as refused:
        model(**padded([5, 9]))
    assert "restore" in str(refused.value) and "\n" not in str(refused.value)
    restore(model)(**padded([5, 9]))


@pytest.mark.parametrize("what", [what for what in SPOILED if what != "other window"])
def test_a_model_with_what_is_not_computed_is_not_accelerated(what):
    model = stock(MLM)
    spoil(model, what)
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(UnsupportedError, match=SPOILED[what]):
        accelerate(model)
    assert keys == {name: set(vars(module)) for name, module in model.named_modules()}


def test_dropout_that_is_set_and_idle_is_no_obstacle():
    theirs, ours = pair(BARE, attention_dropout=0.1, mlp_dropout=0.1, embedding_dropout=0.1)
    inputs = padded([5, 9])
    assert_same(answers(ours(**inputs), inputs["attention_mask"]), answers(theirs(**inputs), inputs["attention_mask"]))
    with pytest.raises(UnsupportedError, match=r"embeddings\.drop trains with a dropout of 0\.1"):
        ours.train()(**inputs)


def test_checkpointing_that_is_on_and_idle_is_no_obstacle():
    theirs, ours = pair(MLM)
    for model in (theirs, ours):
        model.activation_checkpointing_enable()
    inputs = padded([5, 9])
    assert_same(answers(ours(**inputs), inputs["attention_mask"]), answers(theirs(**inputs), inputs["attention_mask"]))


def test_weights_of_another_tensor_type_are_refused():
    from torch.testing._internal.two_tensor import TwoTensor

    model = accelerate(stock())
    weight = model.layers[1].mlp.Wo.weight.detach()
    model.layers[1].mlp.Wo.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.Wo has quantized or distributed parameters"):
        model(**padded([5, 9]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (BARE, {"hidden_activation": "silu"}, "hidden_activation='silu'; only 'gelu'"),
        (
            MLM,
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}},
            "rope_type='linear'",
        ),
        ("ModernBertForMultipleChoice", {}, "a transformers.*ModernBertForMultipleChoice cannot be accelerated, only"),
    ],
)
def test_another_architecture_is_refused_by_name(kind, changes, message):
    model = stock(kind, **changes)
    with pytest.raises(UnsupportedError, match=message) as refused:
        accelerate(model)
    assert "\n" not in str(refused.value) and "forward" not in vars(model)


def test_objects_of_other_libraries_are_refused_by_name():
    bert = transformers.BertModel(transformers.BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1))
    for model, name in (
        (bert, "BertModel"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
        (torch.compile(stock(), backend="eager"), "OptimizedModule"),
        (nn.DataParallel(stock()), "DataParallel"),
    ):
        for act in (accelerate, restore):
            with pytest.raises(UnsupportedError, match=name):
                act(model)


def test_a_forward_that_is_compiled_or_replaced_already_is_refused():
    model = stock(MLM)
    model.model.compile(backend="eager")
    with pytest.raises(UnsupportedError, match="the forward of this ModernBertModel is compiled or replaced"):
        accelerate(model)
    model = stock(MLM)
    model.forward = model.forward
    with pytest.raises(UnsupportedError, match="the forward of this ModernBertForMaskedLM is compiled or replaced"):
        accelerate(model)


def test_weights_that_are_not_there_are_refused():
    with torch.device("meta"):
        model = transformers.ModernBertModel(stock().config)
    with pytest.raises(UnsupportedError, match="meta"):
        accelerate(model)


def test_a_forward_that_was_wrapped_since_is_not_restored_from_under_its_wrapper():
    import functools

    model = accelerate(stock())
    inner = model.forward

    @functools.wraps(inner, assigned=())
    def wrapper(*args, **kwargs):
        return inner(*args, **kwargs)

    model.forward = wrapper
    with pytest.raises(UnsupportedError, match="was wrapped since"):
        restore(model)
    model.forward = inner
    assert "forward" not in vars(restore(model))


BLOCK = torch.ones(2, 1, 9, 9)
HOLES = torch.tensor([[1] * 9, [1, 1, 0, 1, 1, 0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"output_attentions": True}, "output_attentions=True"),
        ({"output_hidden_states": True}, "output_hidden_states=True"),
        ({"is_causal": True}, "is_causal=True"),
        ({"some_bias": torch.ones(1)}, "the argument some_bias"),
        ({"attention_mask": HOLES}, "an attention_mask with holes: row 1 has 3 runs of tokens"),
        ({"attention_mask": BLOCK}, r"an attention_mask of \(2, 1, 9, 9\) for input_ids of \(2, 9\)"),
        ({"attention_mask": {"full_attention": BLOCK}}, "an attention_mask of dict for"),
        ({"attention_mask": torch.zeros(2, 9)}, r"a batch of \(2, 9\) without a single token"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 9, 64)}, "inputs_embeds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("kind", [BARE, MLM])
def test_calls_that_the_stock_model_answers_differently_are_refused(kind, inputs, message):
    model = accelerate(stock(kind))
    with pytest.raises(UnsupportedError, match=message) as refused:
        model(**padded([5, 9]) | inputs)
    assert "modernbert.restore" in str(refused.value) and "\n" not in str(refused.value)


def test_settings_of_the_config_count_as_arguments():
    model = accelerate(stock())
    model.config.output_hidden_states = True
    with pytest.raises(UnsupportedError, match="output_hidden_states=True"):
        model(**padded([5, 9]))
    model(**padded([5, 9]), output_hidden_states=False)


@pytest.mark.parametrize("kind", [MLM, TOKENS])
def test_labels_at_padding_are_refused_since_the_stock_loss_counts_them(kind):
    model = accelerate(stock(kind))
    inputs = padded([5, 9])
    with pytest.raises(UnsupportedError, match=r"labels at 4 positions of padding \(where none is meant, give -100\)"):
        model(**inputs, labels=torch.zeros_like(inputs["input_ids"]))


def test_heads_that_read_padding_are_refused_only_where_they_do():
    model = accelerate(stock(SEQUENCE, classifier_pooling="cls"))
    with pytest.raises(UnsupportedError, match="classifier_pooling='cls' of rows that begin with padding"):
        model(**padded([5, 9], "left"))
    model(**padded([9, 9], "left"))
    model = accelerate(stock(QA))
    spans = torch.tensor([1, 2])
    with pytest.raises(UnsupportedError, match="a loss over the positions of padding"):
        model(**padded([5, 9]), start_positions=spans, end_positions=spans)
    model(**padded([5, 9], "left"))
    model(**padded([9, 9]), start_positions=spans, end_positions=spans)


def test_tracing_and_exporting_are_refused():
    model = accelerate(stock())
    inputs = tuple(padded([5, 9]).values())
    with pytest.raises(UnsupportedError, match="being traced or exported"):
        torch.jit.trace(model, inputs, strict=False)
    with pytest.raises(UnsupportedError, match="being traced or exported"):
        torch.export.export(model, inputs)


# The trial is itself tried: each of these mistakes must be seen, and must leave no trace.


def wider_window(monkeypatch):
    plan = encoder.plan_attention
    monkeypatch.setattr(encoder, "plan_attention", lambda batch, half, **kw: plan(batch, half and half + 1, **kw))


def no_window(monkeypatch):
    plan = encoder.plan_attention
    monkeypatch.setattr(encoder, "plan_attention", lambda batch, half, **kw: plan(batch, None, **kw))


def visible_neighbours(monkeypatch):
    number = attention._document_of_token
    monkeypatch.setattr(attention, "_document_of_token", lambda batch: torch.zeros_like(number(batch)))


def other_gelu(monkeypatch):
    class Approximate:
        def __getattr__(self, name):
            return getattr(F, name)

        def gelu(self, x):
            return F.gelu(x, approximate="tanh")

    monkeypatch.setattr(encoder, "F", Approximate())


def not_a_number(monkeypatch):
    monkeypatch.setattr(Packing, "padded", lambda self, x: x.new_full((*self.padded_shape, x.shape[1]), float("nan")))


def misplaced_rows(monkeypatch):
    padded = Packing.padded
    monkeypatch.setattr(Packing, "padded", lambda self, x: padded(self, x).roll(1, dims=1))


MISTAKES = [wider_window, no_window, visible_neighbours, other_gelu, not_a_number, misplaced_rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_trial_that_fails_says_by_how_much_and_leaves_no_trace(kind, mistake, monkeypatch):
    model = stock(kind).train()
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    mistake(monkeypatch)
    number = "nan" if mistake is not_a_number else r"\d\.\de[-+]\d+"
    with pytest.raises(UnsupportedError, match=rf"is {number} away from the stock model, more than 1e-04"):
        accelerate(model)
    assert keys == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "mistake", [no_window, visible_neighbours, misplaced_rows], ids=lambda mistake: mistake.__name__
)
def test_in_half_precision_the_trial_sees_gross_mistakes_and_none_where_there_is_none(mistake, dtype, monkeypatch):
    model = stock().to(dtype)
    restore(accelerate(model))
    mistake(monkeypatch)
    with pytest.raises(UnsupportedError, match="away from the stock model, more than"):
        accelerate(model)


def test_rounded_products_are_allowed_for():
    torch.set_float32_matmul_precision("medium")
    try:
        theirs, ours = pair()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert_same([ours(**padded([9])).last_hidden_state], [theirs(**padded([9])).last_hidden_state])


# sentence-transformers.

TEXTS = [
    "a quiet river",
    "the old house of stone walks under the green morning light",
    "evening",
    "child reads and sings " * 9,
]


@pytest.fixture(scope="module")
def folder(tiny_config, tiny_tokenizer, tmp_path_factory):
    """A checkpoint with its tokenizer, no texts of which are of one length."""
    model = MaskedLM(tiny_config, tiny_tokenizer).draw(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6) if parameter.dim() > 1 else None
    return str(model.save(tmp_path_factory.mktemp("dropin") / "model"))


@pytest.fixture
def sentence_transformer(folder):
    """Pooling -> a fresh model on the CPU."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    def make(pooling="mean", *after):
        modules = [Transformer(folder), Pooling(32, pooling_mode=pooling), *after]
        return sentence_transformers.SentenceTransformer(modules=modules, device="cpu")

    return make


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_sentence_embeddings_are_the_stock_ones(sentence_transformer, pooling, side):
    model = sentence_transformer(pooling)
    model.tokenizer.padding_side = side
    before = model.encode(TEXTS, convert_to_tensor=True)
    assert accelerate(model) is model
    after = model.encode(TEXTS, convert_to_tensor=True)
    assert F.cosine_similarity(after, before).min() >= 0.99999
    assert_same([after], [before])
    assert F.cosine_similarity(after[0], after[1], dim=0) < 0.999
    assert torch.equal(restore(model).encode(TEXTS, convert_to_tensor=True), before)


def test_a_training_step_of_a_sentence_transformer_has_the_stock_gradients(sentence_transformer):
    theirs, ours = sentence_transformer(), accelerate(sentence_transformer())
    for model in (theirs, ours):
        model.train()
        a, b = (model(model.preprocess(texts))["sentence_embedding"] for texts in (TEXTS, TEXTS[::-1]))
        F.cross_entropy(5 * F.normalize(a) @ F.normalize(b).T, torch.arange(len(TEXTS))).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert distance(parameter.grad, expected[name].grad) <= 1e-5, name


def test_a_sentence_transformer_is_saved_as_ever(sentence_transformer, tmp_path):
    import sentence_transformers

    model = accelerate(sentence_transformer())
    before = model.encode(TEXTS, convert_to_tensor=True)
    model.save(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert "forward" not in vars(again[0].auto_model)
    assert_same([before], [again.encode(TEXTS, convert_to_tensor=True)])


def test_a_module_that_reads_padding_is_found_by_the_trial(sentence_transformer):
    class FirstPositions(nn.Module):
        def forward(self, features):
            return features | {"sentence_embedding": features["token_embeddings"].mean(1)}

    model = sentence_transformer("mean", FirstPositions())
    with pytest.raises(UnsupportedError, match="on a trial batch this SentenceTransformer is"):
        accelerate(model)
    assert "forward" not in vars(model[0].auto_model)


def test_a_sentence_transformer_on_something_else_is_refused_by_what_it_is_on(sentence_transformer):
    model = sentence_transformer()
    model[0].model = transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
    )
    with pytest.raises(UnsupportedError, match="BertModel cannot be accelerated"):
        accelerate(model)


def test_a_cross_encoder_gives_the_stock_scores(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    model = sentence_transformers.CrossEncoder(folder, num_labels=1, device="cpu")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3]), (TEXTS[2], TEXTS[2])]
    before = model.predict(pairs, convert_to_tensor=True)
    after = accelerate(model).predict(pairs, convert_to_tensor=True)
    assert "forward" in vars(model[0].auto_model) and "forward" in vars(model[0].auto_model.model)
    assert_same([after], [before])


def test_importing_the_module_imports_neither_library():
    code = "import modernbert.dropin, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert not {"transformers", "sentence_transformers"} & set(done.stdout.split())
