"""Parameters → StableAdamW as the recipe means it (arXiv 2304.13013; the library is torch-optimi).

Weight decay is fully decoupled: `decouple_lr` with `max_lr` at the peak, so that 1e-5 is the shrinkage of a step
at the peak rate; otherwise it would be scaled by the rate and act as some 1e-8. There is no gradient clipping,
StableAdamW's clipping of the update replaces it.
"""

from __future__ import annotations

from typing import Any

import optimi
import torch
from torch import nn

from modernbert.model.encoder import Encoder
from modernbert.train.recipe import OptimSettings


def build_optimizer(module: nn.Module, settings: OptimSettings, peak_lr: float) -> torch.optim.Optimizer:
    """StableAdamW over what is trained, with weight decay on matrices and none on norms and biases.

    With `layer_decay` below 1 a layer d below the head learns at `layer_decay`^d of the rate.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    depths = _depths(module) if settings.layer_decay < 1 else {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            key = depths.get(id(parameter), 0), parameter.dim() < 2
            groups.setdefault(key, []).append(parameter)
    return optimi.StableAdamW(
        [
            {
                "params": groups[depth, is_small],
                "weight_decay": 0.0 if is_small else settings.weight_decay,
                RATE: settings.layer_decay**depth,
            }
            for depth, is_small in sorted(groups)
        ],
        lr=peak_lr,
        betas=settings.betas,
        eps=settings.eps,
        decouple_lr=True,
        max_lr=peak_lr,
    )


def _depths(module: nn.Module) -> dict[int, int]:
    """How far below the head each parameter of a task's encoder is; what is not named here is of the head."""
    encoder: Any = module.encoder
    # Of an encoder that is not ours all that is in no layer counts as embeddings, which most of it is.
    lowest = encoder.embeddings if isinstance(encoder, Encoder) else encoder
    depths = {id(parameter): len(encoder.layers) + 1 for parameter in lowest.parameters()}
    for index, layer in enumerate(encoder.layers):
        depths |= {id(parameter): len(encoder.layers) - index for parameter in layer.parameters()}
    return depths


RATE = "rate"
"""Of a group of parameters: its share of the learning rate."""


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, peak_lr: float) -> None:
    """For the next step; decay scales with lr / peak_lr."""
    for group in optimizer.param_groups:
        rate = group.get(RATE, 1.0)  # checkpoints of before groups had one
        group["lr"], group["max_lr"] = rate * lr, rate * peak_lr


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Of matrices; norms and biases keep none."""
    for group in optimizer.param_groups:
        if group["params"][0].dim() >= 2:
            group["weight_decay"] = weight_decay


def keep_off_triton(optimizer: torch.optim.Optimizer) -> None:
    """Have torch-optimi compute with PyTorch's operators: its kernels take neither a CPU's tensors nor sharded ones."""
    for group in optimizer.param_groups:
        group["triton"] = False
