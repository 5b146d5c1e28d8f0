"""Parameters → StableAdamW as the recipe means it (arXiv 2304.13013; the library is torch-optimi).

Weight decay is fully decoupled: `decouple_lr` with `max_lr` at the peak, so that 1e-5 is the shrinkage of a step
at the peak rate; otherwise it would be scaled by the rate and act as some 1e-8. There is no gradient clipping,
StableAdamW's clipping of the update replaces it.
"""

from __future__ import annotations

import optimi
import torch
from torch import nn

from modernbert.train.recipe import OptimSettings


def build_optimizer(module: nn.Module, settings: OptimSettings, peak_lr: float) -> torch.optim.Optimizer:
    """StableAdamW with weight decay on matrices and none on norms and biases."""
    decayed = [p for p in module.parameters() if p.dim() >= 2]
    others = [p for p in module.parameters() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return optimi.StableAdamW(
        [group for group in groups if group["params"]],
        lr=peak_lr,
        betas=settings.betas,
        eps=settings.eps,
        decouple_lr=True,
        max_lr=peak_lr,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, peak_lr: float) -> None:
    """For the next step; decay scales with lr / peak_lr."""
    for group in optimizer.param_groups:
        group["lr"], group["max_lr"] = lr, peak_lr


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Of matrices; norms and biases keep none."""
    for group in optimizer.param_groups:
        if group["params"][0].dim() >= 2:
            group["weight_decay"] = weight_decay


def keep_off_triton(optimizer: torch.optim.Optimizer) -> None:
    """Have torch-optimi compute with PyTorch's operators: its kernels take neither a CPU's tensors nor sharded ones."""
    for group in optimizer.param_groups:
        group["triton"] = False
