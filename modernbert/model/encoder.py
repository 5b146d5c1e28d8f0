"""Packed token ids → hidden states: the whole ModernBERT encoder (Warner et al., arXiv 2412.13663).

    embedding → LayerNorm → N × [x + attention(norm(x)); x + GeGLU(norm(x))] → LayerNorm

- Pre-norm; the first layer has no attention norm, the embedding's norm is it. No biases unless the config says so.
- Every third layer sees its whole document, the others 64 tokens on either side; RoPE with one base for each kind.
- GeGLU: GELU(input) · gate, the exact (erf) GELU.
- Nothing is ever padded: T tokens of B documents lie end to end, and only attention knows where they meet.

Module names give the state dict of the published checkpoints, so loading and saving convert nothing.
Shape letters: T tokens, N heads, H head size, D hidden width, I intermediate width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modernbert.batch import PackedBatch
from modernbert.model.attention import Backend, Plan, attend, plan_attention
from modernbert.model.choose import choose_attention, choose_linear
from modernbert.model.config import ModernBertConfig
from modernbert.model.linear import Linear, LinearPath

# Without gradients a CPU takes a large batch in parts, so that what lies between two products stays in its caches and
# below the size (32 MiB) above which glibc's malloc returns memory to the system at every free.
_BYTES_AT_ONCE = 12 * 2**20


@dataclass(frozen=True, slots=True)
class Route:
    """What all layers of one kind share within a batch."""

    rotation: Rotation
    turns: Tensor | None  # the same as complex numbers (T, 1, 1, H/2), where the packed path may be taken
    plan: Plan
    linear: LinearPath


class Embeddings(nn.Module):
    """Token ids → normed vectors."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = _norm(config)

    def forward(self, input_ids_T: Tensor) -> Tensor:
        """(T) → (T, D)."""
        return self.norm(self.tok_embeddings(input_ids_T))


class Attention(nn.Module):
    """Multi-head attention with rotary positions, inside the window that the plan was made for."""

    def __init__(self, config: ModernBertConfig, out_dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        self.Wqkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_dropout = out_dropout
        # Scores do not change when q and k are reordered alike. With the two of a pair side by side a rotation is one
        # complex product in place: 4 % of the whole forward pass, 12 % for a single query (2 cores).
        self.Wqkv.packed_order = _pairs_side_by_side(self.num_heads, self.head_size)

    def forward(self, hidden_TD: Tensor, route: Route) -> Tensor:
        """(T, D) → (T, D)."""
        qkv_T3NH = self.Wqkv(hidden_TD, route.linear).view(-1, 3, self.num_heads, self.head_size)
        if self.Wqkv.packs(hidden_TD, route.linear):
            assert route.turns is not None
            torch.view_as_complex(qkv_T3NH[:, :2].unflatten(-1, (-1, 2))).mul_(route.turns)
            q_TNH, k_TNH = qkv_T3NH[:, :2].unbind(1)
        else:
            q_TNH, k_TNH = rotate(qkv_T3NH[:, :2], route.rotation).unbind(1)
        o_TNH = self.attend(q_TNH, k_TNH, qkv_T3NH[:, 2], route)
        return F.dropout(self.Wo(o_TNH.flatten(1), route.linear), self.out_dropout, self.training)

    def attend(self, q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, route: Route) -> Tensor:
        """All that knows of documents, and so is never compiled."""
        return attend(q_TNH, k_TNH, v_TNH, route.plan)


class GeGLU(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_TD: Tensor, path: LinearPath) -> Tensor:
        """(T, D) → (T, D)."""
        input_TI, gate_TI = self.Wi(hidden_TD, path).chunk(2, dim=-1)
        return self.Wo(F.gelu(input_TI) * gate_TI, path)


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: ModernBertConfig, index: int, out_dropout: float) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if index == 0 else _norm(config)
        self.attn = Attention(config, out_dropout)
        self.mlp_norm = _norm(config)
        self.mlp = GeGLU(config)

    def forward(self, hidden_TD: Tensor, route: Route) -> Tensor:
        """(T, D) → (T, D)."""
        hidden_TD = hidden_TD + self.attn(self.attn_norm(hidden_TD), route)
        normed_TD, rows = self.mlp_norm(hidden_TD), _rows_at_once(self.mlp.Wi.out_features)
        if not _in_parts(hidden_TD) or len(hidden_TD) <= rows:
            return hidden_TD + self.mlp(normed_TD, route.linear)
        # One document longer than a part.
        return hidden_TD + torch.cat([self.mlp(part_TD, route.linear) for part_TD in normed_TD.split(rows)])


class Encoder(nn.Module):
    """The encoder without a head.

    Args:
        config: the shape.
        out_dropout: dropout on each attention block's output while training; not part of a checkpoint.
        backend: of attention (`modernbert.model.attention`); `auto` is what `modernbert.model.choose` says.

    `linear` is the path of linear layers (`modernbert.model.linear`), `auto` unless set.
    `reproducible` has `auto` choose without gradients, too, what it chooses with them: from the machine and by no clock.
    `checkpoint_layers` keeps of each layer its input alone for the backward pass, which computes the layer once more: the
    same gradients to the bit and a third more operations, dropout drawn as before. A micro-batch of `tiny` of 8,192 tokens
    takes 303 MiB at its peak instead of 1,138 (float32 on a CPU, the allocator's count).
    `compute` is `hidden_states`, or what `modernbert.model.compile` puts around it.
    """

    compute: Callable[[Encoder, PackedBatch], Tensor]

    def __init__(
        self, config: ModernBertConfig, *, out_dropout: float = 0.0, backend: Backend | Literal["auto"] = "auto"
    ) -> None:
        super().__init__()
        self.config = config
        self.backend: Backend | Literal["auto"] = backend
        self.linear: LinearPath | Literal["auto"] = "auto"
        self.reproducible = False
        self.checkpoint_layers = False
        self.compute = Encoder.hidden_states
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, i, out_dropout) for i in range(config.num_hidden_layers))
        self.final_norm = _norm(config)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Packed token ids → final hidden states (T, D)."""
        rows = _rows_at_once(3 * self.config.hidden_size)
        if batch.num_tokens <= rows or not _in_parts(self.embeddings.tok_embeddings.weight):
            return self.compute(self, batch)
        hidden_TD = self.embeddings.tok_embeddings.weight.new_empty(batch.num_tokens, self.config.hidden_size)
        for index, part in batch.in_parts(rows):
            hidden_TD[index] = self.compute(self, part)
        return hidden_TD

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """The same, all documents at once."""
        hidden_TD = self.embeddings(batch.input_ids_T)
        routes = self._routes(batch, hidden_TD)
        for layer, half_window in zip(self.layers, self.config.half_windows, strict=True):
            if self.checkpoint_layers and torch.is_grad_enabled():
                hidden_TD = checkpoint(layer, hidden_TD, routes[half_window], use_reentrant=False)
            else:
                hidden_TD = layer(hidden_TD, routes[half_window])
        return self.final_norm(hidden_TD)

    def path_for(self, hidden: Tensor) -> LinearPath:
        """The path that linear layers take for these activations; heads ask for it too."""
        if self.linear != "auto":
            return self.linear
        gradients = torch.is_grad_enabled() or self.reproducible
        return choose_linear(hidden.device, _dtype_of(hidden), gradients=gradients).path

    def rotation(self, positions_T: Tensor, half_window: int | None, dtype: torch.dtype) -> Rotation:
        """Cos and sin for layers with this window."""
        return rotation_of(positions_T, self.config.head_size, self.config.rope_theta(half_window), dtype)

    def _routes(self, batch: PackedBatch, hidden_TD: Tensor) -> dict[int | None, Route]:
        config, dtype, backend = self.config, _dtype_of(hidden_TD), self.backend
        if backend == "auto":
            gradients = torch.is_grad_enabled() or self.reproducible
            backend = choose_attention(hidden_TD.device, dtype, config.head_size, gradients=gradients).backend
        linear = self.path_for(hidden_TD)
        routes = {}
        for half_window in set(config.half_windows):
            rotation = self.rotation(batch.positions_T, half_window, torch.promote_types(dtype, torch.float32))
            turns = torch.complex(*rotation) if linear == "packed" else None
            plan = plan_attention(batch, half_window, backend=backend, dtype=dtype)
            routes[half_window] = Route(rotation, turns, plan, linear)
        return routes


Rotation = tuple[Tensor, Tensor]
"""cos and sin, each (T, 1, 1, H/2): broadcast over q-and-k and over heads. At least float32, as the products are."""


def rotation_of(positions_T: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles position · theta^(−2i/H), computed in float32 (RoPE, arXiv 2104.09864)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions_T.device) / head_size
    angles = (positions_T.float()[:, None] * (1.0 / theta**exponents))[:, None, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_T2NH: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x_i, x_{i+H/2}) by its angle: the half-split form of RoPE."""
    cos, sin = rotation
    a, b = x_T2NH.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_T2NH.dtype)


def _pairs_side_by_side(num_heads: int, head_size: int) -> list[int]:
    """The rows of Wqkv in an order that puts x_{i+H/2} behind x_i in every head of q and k."""
    pairs = [half * head_size // 2 + i for i in range(head_size // 2) for half in (0, 1)]
    q_and_k = [head * head_size + place for head in range(2 * num_heads) for place in pairs]
    return [*q_and_k, *range(len(q_and_k), 3 * num_heads * head_size)]


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def _rows_at_once(width: int) -> int:
    """Rows of this many float32 columns that a part may have."""
    return max(_BYTES_AT_ONCE // (4 * width), 1)


def _in_parts(x: Tensor) -> bool:
    """Whether to take a large batch in parts: on a CPU, where nothing is kept for a backward pass."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def _dtype_of(x: Tensor) -> torch.dtype:
    """What products of `x` are computed in."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
