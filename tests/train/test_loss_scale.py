"""Loss scaling for float16: step by step what torch.amp.GradScaler does, as plain state."""

import itertools
import json

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor

from modernbert import PRESETS, MaskedLM, PackedBatch
from modernbert.runtime import Runtime
from modernbert.train import loss_scale
from modernbert.train.loss_scale import GOOD_STEPS, LEAST, LossScale

INJECTED = (7, 8, 90, 91, 92, 300)  # steps of which a gradient is made infinite or NaN


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.Linear(12, 1))


def backward_in_float16(loss, model, step):
    """Gradients as a float16 backward pass leaves them: above 65,504 infinite, near zero rounded to it."""
    loss.backward()
    for p in model.parameters():
        p.grad = p.grad.half().float()
    if step in INJECTED:
        next(model.parameters()).grad[0, 0] = torch.inf if step % 2 else torch.nan


def test_scales_and_weights_are_those_of_gradscaler_over_hundreds_of_steps(monkeypatch):
    monkeypatch.setattr(loss_scale, "GOOD_STEPS", 40)
    theirs, ours = small_model(), small_model()
    their_optimizer, our_optimizer = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (theirs, ours))
    scaler, scale = torch.amp.GradScaler("cpu", growth_interval=40), LossScale()
    draw, scales, num_skipped = torch.Generator().manual_seed(1), [], 0
    for step in range(400):
        x = torch.randn(5, 6, generator=draw)
        backward_in_float16(scaler.scale((theirs(x) - 3).square().mean()), theirs, step)
        scaler.step(their_optimizer)
        scaler.update()
        their_optimizer.zero_grad()

        backward_in_float16(scale.scaled((ours(x) - 3).square().mean()), ours, step)
        gradients = [p.grad for p in ours.parameters()]
        scale.unscale_(gradients)
        finite = bool(torch.nn.utils.get_total_norm(gradients).isfinite())
        if finite:
            our_optimizer.step()
        scale.update(finite)
        our_optimizer.zero_grad()

        assert scale.scale == scaler.get_scale()
        assert scale.good_steps == scaler.state_dict()["_growth_tracker"]
        assert all(torch.equal(p, q) for p, q in zip(theirs.parameters(), ours.parameters(), strict=True))
        scales.append(scale.scale)
        num_skipped += not finite
    assert num_skipped > len(INJECTED)  # those of the scale itself as well
    assert any(a < b for a, b in itertools.pairwise(scales)) and scales[0] < 2.0**16


def test_gradients_too_small_for_float16_survive_by_the_scale_alone():
    def gradient(scale):
        weight = torch.ones(4, requires_grad=True)
        scale.scaled((weight * 1e-9).sum()).backward()
        found = [weight.grad.half().float()]
        scale.unscale_(found)
        return found[0]

    assert not gradient(LossScale(1.0)).any()
    torch.testing.assert_close(gradient(LossScale()), torch.full((4,), 1e-9), rtol=1e-3, atol=0)


def test_an_encoder_learns_in_float16_as_in_float32():
    config = PRESETS["tiny"].replace(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    batch = PackedBatch.from_sequences([range(20), range(5, 17)], [range(20), range(5, 17)])
    last = {}
    for dtype in (torch.float32, torch.float16):
        task, scale = MaskedLM(config).draw(0), LossScale.for_dtype(dtype) or LossScale(1.0)
        optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
        losses = []
        for _ in range(20):
            with Runtime(device=torch.device("cpu"), dtype=dtype, num_threads=1).autocast():
                loss = task(batch).loss_sum / batch.num_tokens
            scale.scaled(loss).backward()
            gradients = [p.grad for p in task.parameters() if p.grad is not None]
            scale.unscale_(gradients)
            finite = bool(torch.nn.utils.get_total_norm(gradients).isfinite())
            if finite:
                optimizer.step()
            scale.update(finite)
            optimizer.zero_grad()
            losses.append(loss.item())
        last[dtype] = losses[-1]
        assert losses[-1] < losses[0] - 1
    assert last[torch.float16] == pytest.approx(last[torch.float32], abs=0.1)


def test_a_run_that_goes_on_has_the_same_scale():
    scale = LossScale()
    for finite in (True, False, True, True):
        scale.update(finite)
    again = LossScale.from_dict(json.loads(json.dumps(scale.to_dict())))
    assert again == scale == LossScale(2.0**15, 2)


def test_the_scale_doubles_after_2000_good_steps_in_a_row_and_a_bad_one_begins_the_count_anew():
    scale = LossScale(1024.0, GOOD_STEPS - 1)
    scale.update(False)
    for _ in range(GOOD_STEPS - 1):
        scale.update(True)
    assert scale.scale == 512.0
    scale.update(True)
    assert scale == LossScale(1024.0, 0)


def test_a_scale_of_one_that_does_not_help_says_that_the_fault_is_elsewhere():
    scale, num_skipped = LossScale(), 0
    while not scale.exhausted:
        scale.update(False)
        num_skipped += 1
    assert num_skipped == 16
    scale.update(False)
    assert scale.scale == LEAST and scale.exhausted
    for _ in range(GOOD_STEPS):
        scale.update(True)
    assert not scale.exhausted


def test_the_scale_stays_a_number_of_float32():
    scale = LossScale(2.0**127, GOOD_STEPS - 1)
    scale.update(True)
    assert torch.tensor(scale.scale, dtype=torch.float32).isfinite()


@pytest.mark.parametrize(("dtype", "needed"), [("float16", True), ("bfloat16", False), ("float32", False)])
def test_only_float16_is_scaled(dtype, needed):
    assert (LossScale.for_dtype(getattr(torch, dtype)) is not None) is needed


def test_unscaling_nothing_is_no_fault():
    LossScale().unscale_([])


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_gradients_are_unscaled_in_place(mesh):
    whole = [torch.randn(4, 3), torch.randn(5)]
    sharded = [distribute_tensor(x * 2**16, mesh, [Shard(0)]) for x in whole]
    LossScale().unscale_(sharded)
    for gradient, expected in zip(sharded, whole, strict=True):
        assert torch.equal(gradient.full_tensor(), expected)
