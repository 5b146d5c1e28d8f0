"""Every initial weight, in one function.

Truncated normal of standard deviation 0.02 cut at two of them; matrices that write into the residual stream
(`Wo`) and the head's dense layer are divided by sqrt(2 · layers) ("Megatron" initialisation); norms start at one
and biases at zero. The decoder's matrix is the embedding's.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from modernbert.model.config import ModernBertConfig

_RESIDUAL = ("attn.Wo", "mlp.Wo", "head.dense")


@torch.no_grad()
def initialize(module: nn.Module, config: ModernBertConfig, generator: torch.Generator) -> None:
    """Draw every parameter of an encoder, with or without a head, in the order of its names' appearance."""
    residual_std = config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers)
    for name, parameter in module.named_parameters():
        owner, _, kind = name.rpartition(".")
        if kind == "bias":
            nn.init.zeros_(parameter)
        elif owner.endswith("norm"):
            nn.init.ones_(parameter)
        else:
            if owner.endswith("classifier"):
                std = config.hidden_size**-0.5
            else:
                std = residual_std if owner.endswith(_RESIDUAL) else config.initializer_range
            cut = config.initializer_cutoff_factor * std
            nn.init.trunc_normal_(parameter, std=std, a=-cut, b=cut, generator=generator)
