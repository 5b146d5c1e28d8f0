"""Encoder → the same encoder, compiled. Opt-in: nothing else in this package compiles.

Two ways, as the number of tokens T of a packed batch is another each time:

- `compile_layers(encoder)`: the feed-forward blocks alone, T symbolic: `torch.compile` fuses GELU, gate and their memory
  traffic. One compilation with gradients and one without, whatever the batches' shapes, and all layers share them.
- `compile_layers(encoder, num_tokens=N)`: whole layers on shapes that never change, for training. A batch that gradients
  are taken of is filled up to N tokens with documents of its own, which no other sees and which are cut off at the end.
  Attention itself, whose plan is another for each batch, stays outside. What lies around it is four graphs, compiled
  once for the run and shared by all layers: norm; product and rotation; product and dropout; residual, norm, GeGLU, residual.
  What takes no gradients, and a batch of more than N tokens, is computed without the compiler's code, as it is.

Price: some 3 s a graph on a CPU, and a C++ compiler; of the second way also the filling, (N − T) / N of the work. On a CPU
the first gains nothing: a layer of ModernBERT-base took 0.98 to 1.24 times as long without it as with it. The second was
checked on a CPU and timed nowhere; neither was timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import PackedBatch
from modernbert.errors import ConfigError
from modernbert.model.attention import attend
from modernbert.model.encoder import Attention, Encoder, GeGLU, Route
from modernbert.model.linear import Linear


def compile_layers(
    encoder: Encoder, *, num_tokens: int | None = None, backend: str | Callable[..., Any] = "inductor"
) -> Encoder:
    """Compile in place. Linear layers take the `plain` path, in which the compiler finds its own operators.

    Args:
        encoder: to be compiled; names of weights stay.
        num_tokens: the one size of every batch that is trained on, such as a phase's `micro_batch_tokens`; None for any.
        backend: of `torch.compile`.

    Raises:
        ConfigError: no size at all.
    """
    encoder.linear = "plain"
    if num_tokens is None:
        for module in encoder.modules():
            if isinstance(module, GeGLU):
                module.compile(dynamic=True, backend=backend)
        return encoder
    if num_tokens < 1:
        raise ConfigError(f"num_tokens={num_tokens} must be at least 1; give the tokens of a micro-batch")
    for module in encoder.modules():
        if isinstance(module, Attention):
            module.attend = attend_uncompiled  # type: ignore[method-assign]
        elif isinstance(module, Linear):
            module._packed = None  # or setting it for the first time would be a change that compiles anew
    for layer in encoder.layers:
        layer.compile(dynamic=False, backend=backend)
    encoder.compute = OneSize(num_tokens)
    return encoder


@torch.compiler.disable
def attend_uncompiled(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, route: Route) -> Tensor:
    """Stands in for `Attention.attend`: the compiler ends one graph before it and begins another behind it."""
    return attend(q_TNH, k_TNH, v_TNH, route.plan)


@dataclass(frozen=True, slots=True)
class OneSize:
    """Stands in for `Encoder.hidden_states`: the compiled layers see batches of `num_tokens` and no others."""

    num_tokens: int

    def __call__(self, encoder: Encoder, batch: PackedBatch) -> Tensor:
        """Packed token ids → final hidden states (T, D)."""
        if not torch.is_grad_enabled() or batch.num_tokens > self.num_tokens:
            with torch.compiler.set_stance("force_eager"):
                return encoder.hidden_states(batch)
        return encoder.hidden_states(fill(batch, self.num_tokens))[: batch.num_tokens]


def fill(batch: PackedBatch, num_tokens: int) -> PackedBatch:
    """A batch of `num_tokens`: behind its own documents others of token 0, none longer than the longest. No labels."""
    start, length = batch.num_tokens, batch.max_seqlen
    if start == num_tokens:
        return batch
    index = torch.arange(num_tokens - start, device=batch.input_ids_T.device)
    borders = torch.arange(start, num_tokens, length, dtype=torch.int32, device=index.device)
    return replace(
        batch,
        input_ids_T=F.pad(batch.input_ids_T, (0, len(index))),
        positions_T=torch.cat([batch.positions_T, index % length]),
        cu_seqlens=F.pad(torch.cat([batch.cu_seqlens[:-1], borders]), (0, 1), value=num_tokens),
        labels_T=None,
    )
