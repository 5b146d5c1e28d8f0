"""StableAdamW as the recipe means it, against a slow twin."""

import pytest
import torch
from reference.stable_adamw import StableAdamW
from tiny_run import tiny_recipe
from torch import nn

from modernbert.data.loader import special_ids
from modernbert.tasks import MaskedLM
from modernbert.text.tokenizer import load_tokenizer
from modernbert.train.optim import build_optimizer, set_learning_rate
from modernbert.train.recipe import OptimSettings


def rates(step, peak_lr):
    """Warm-up, a stable stretch, decay."""
    return peak_lr * min(1, (step + 1) / 5, (20 - step) / 6)


@pytest.mark.parametrize("peak_lr", [3e-3, 8e-4])
@pytest.mark.parametrize("weight_decay", [1e-5, 0.0, 9e-4])
def test_twenty_steps_are_bit_equal_with_the_slow_twin(peak_lr, weight_decay):
    draw = torch.Generator().manual_seed(0)
    module = nn.ParameterDict(
        {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in
         {"matrix": (40, 30), "other": (7, 5), "norm": (40,)}.items()}
    )  # fmt: skip
    decayed = ["matrix", "other"]
    twins = {
        name: StableAdamW([module[name].detach().clone()], weight_decay if name in decayed else 0.0) for name in module
    }
    optimizer = build_optimizer(module, OptimSettings(weight_decay=weight_decay), peak_lr)
    for step in range(20):
        set_learning_rate(optimizer, rates(step, peak_lr), peak_lr)
        for name, parameter in module.items():
            # Gradients that grow a hundredfold at step 10, so that the clipping of the update acts.
            parameter.grad = torch.randn(parameter.shape, generator=draw) * (100 if step == 10 else 1)
            twins[name].step([parameter.grad.clone()], rates(step, peak_lr), peak_lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in module.items():
            assert torch.equal(parameter.detach(), twins[name].weights[0]), (step, name)


@pytest.mark.parametrize("lr_over_peak", [1.0, 0.5, 0.001])
def test_a_weight_without_gradient_shrinks_by_the_decay_times_the_share_of_the_peak_rate(lr_over_peak):
    weight = nn.ParameterDict({"w": nn.Parameter(torch.ones(4, 4, dtype=torch.float64))})
    optimizer = build_optimizer(weight, OptimSettings(weight_decay=1e-5), 8e-4)
    set_learning_rate(optimizer, 8e-4 * lr_over_peak, 8e-4)
    for step in range(1, 4):
        weight["w"].grad = torch.zeros(4, 4, dtype=torch.float64)
        optimizer.step()
        expected = (1 - 1e-5 * lr_over_peak) ** step
        assert torch.allclose(weight["w"], torch.full((4, 4), expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_each_phase_decays_against_its_own_peak():
    weight = nn.ParameterDict({"w": nn.Parameter(torch.ones(2, 2, dtype=torch.float64))})
    optimizer = build_optimizer(weight, OptimSettings(weight_decay=1e-4), 8e-4)
    for lr, peak_lr in ((8e-4, 8e-4), (3e-4, 3e-4)):
        set_learning_rate(optimizer, lr, peak_lr)
        before = weight["w"].detach().clone()
        weight["w"].grad = torch.zeros(2, 2, dtype=torch.float64)
        optimizer.step()
        assert torch.allclose(weight["w"] / before, torch.full((2, 2), 1 - 1e-4, dtype=torch.float64), rtol=1e-12)


def test_matrices_decay_and_norms_and_biases_do_not(shards):
    run = tiny_recipe(shards)
    task = MaskedLM(run.model.config(320, special_ids(load_tokenizer(shards)))).draw(0)
    optimizer = build_optimizer(task, run.optim, 1e-3)
    decayed, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-5, 0.0]
    names = {name: id(p) for name, p in task.named_parameters()}
    assert {name for name, key in names.items() if key in others} == {
        name for name in names if "norm" in name or name.endswith("bias")
    }
    assert decayed | others == set(names.values()) and not decayed & others
    assert names["decoder.bias"] in others and names["model.embeddings.tok_embeddings.weight"] in decayed

    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, before[name]) == (names[name] in others or not before[name].any()), name


def test_a_module_of_matrices_alone_can_be_trained():
    optimizer = build_optimizer(nn.Linear(3, 2, bias=False), OptimSettings(), 1e-3)
    assert len(optimizer.param_groups) == 1
