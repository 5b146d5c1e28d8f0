"""Cross-entropy in chunks against its slow twin: the same losses, answers and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.batch import IGNORE, PackedBatch
from modernbert.model.config import PRESETS
from modernbert.tasks import MaskedLM, chunked
from modernbert.tasks.chunked import chunked_cross_entropy


def leaves(num_rows, num_entries, width, bias, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, width, generator=draw, requires_grad=True)
    weight = torch.randn(num_entries, width, generator=draw, requires_grad=True)
    bias = torch.randn(num_entries, generator=draw, requires_grad=True) if bias else None
    return hidden, weight, bias, torch.randint(num_entries, (num_rows,), generator=draw)


@settings(deadline=None)
@given(
    num_rows=st.integers(0, 40), num_entries=st.integers(1, 300), width=st.integers(1, 16), bias=st.booleans(),
    rows_at_once=st.sampled_from([1, 3, 7, 1000]), path=st.sampled_from(["plain", "onednn"]), scale=st.floats(-2, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_chunks_give_what_all_logits_at_once_give(num_rows, num_entries, width, bias, rows_at_once, path, scale, seed):
    if path == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    hidden, weight, bias, labels = leaves(num_rows, num_entries, width, bias, seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunked, "_BYTES", 4 * num_entries * rows_at_once)
        loss, losses, correct = chunked_cross_entropy(hidden, weight, bias, labels, path)
    (loss * scale).backward()
    wanted = [leaf.grad.clone() for leaf in (hidden, weight, bias) if leaf is not None]
    for leaf in (hidden, weight, bias):
        if leaf is not None:
            leaf.grad = None
    logits = F.linear(hidden, weight, bias)
    expected = F.cross_entropy(logits, labels, reduction="none")
    (expected.sum() * scale).backward()
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.detach(), expected.sum().detach(), rtol=1e-4, atol=1e-3)
    assert int(correct) == int((logits.argmax(1) == labels).sum())
    for found, leaf in zip(wanted, [leaf for leaf in (hidden, weight, bias) if leaf is not None], strict=True):
        torch.testing.assert_close(found, leaf.grad, rtol=1e-3, atol=1e-3)


def test_a_masked_language_model_learns_the_same_with_chunks_as_without(monkeypatch):
    config = PRESETS["tiny"].replace(num_hidden_layers=2, vocab_size=512, hidden_size=64, num_attention_heads=2)
    task = MaskedLM(config).draw(0)
    ids = torch.randint(20, 400, (60,))
    labels = torch.where(torch.rand(60) < 0.3, ids, IGNORE)
    batch = PackedBatch.from_sequences([ids[:25], ids[25:]], [labels[:25], labels[25:]])
    monkeypatch.setattr(chunked, "_BYTES", 4 * 512 * 5)
    output = task(batch)
    output.loss_sum.backward()
    found = {name: p.grad.clone() for name, p in task.named_parameters()}
    task.zero_grad()
    positions = (labels != IGNORE).nonzero().squeeze(1)
    F.cross_entropy(task.logits(batch, positions), labels[positions], reduction="sum").backward()
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_loss_that_is_not_finite_reaches_loss_and_gradients():
    hidden, weight, bias, labels = leaves(4, 9, 3, True, 0)
    with torch.no_grad():
        hidden[2, 0] = float("nan")
    loss, losses, _ = chunked_cross_entropy(hidden, weight, bias, labels, "plain")
    loss.backward()
    assert loss.isnan() and losses.isnan().tolist() == [False, False, True, False] and weight.grad.isnan().any()


def test_going_back_twice_is_refused():
    loss, _, _ = chunked_cross_entropy(*leaves(4, 9, 3, True, 0), "plain")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_under_autocast_losses_are_summed_in_float32_over_all_logits(monkeypatch):
    config = PRESETS["tiny"].replace(num_hidden_layers=1, vocab_size=512, hidden_size=64, num_attention_heads=2)
    task = MaskedLM(config).draw(0)
    monkeypatch.setattr("modernbert.tasks.mlm.chunked_cross_entropy", None)  # not to be called
    ids = torch.arange(20, 50)
    with torch.autocast("cpu", torch.bfloat16):
        output = task(PackedBatch.from_sequences([ids], [ids]))
    output.loss_sum.backward()
    assert output.losses_M.dtype == torch.float32 and task.decoder.bias.grad.isfinite().all()
