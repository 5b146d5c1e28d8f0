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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.batch import PackedBatch
from modernbert.model.attention import Backend, Plan, attend, plan_attention
from modernbert.model.config import ModernBertConfig


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
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_dropout = out_dropout

    def forward(self, hidden_TD: Tensor, rotation: Rotation, plan: Plan) -> Tensor:
        """(T, D) → (T, D)."""
        qkv_T3NH = self.Wqkv(hidden_TD).view(-1, 3, self.num_heads, self.head_size)
        q_TNH, k_TNH = rotate(qkv_T3NH[:, :2], rotation).unbind(1)
        o_TNH = attend(q_TNH, k_TNH, qkv_T3NH[:, 2], plan)
        return F.dropout(self.Wo(o_TNH.flatten(1)), self.out_dropout, self.training)


class GeGLU(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """(T, D) → (T, D)."""
        input_TI, gate_TI = self.Wi(hidden_TD).chunk(2, dim=-1)
        return self.Wo(F.gelu(input_TI) * gate_TI)


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: ModernBertConfig, index: int, out_dropout: float) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if index == 0 else _norm(config)
        self.attn = Attention(config, out_dropout)
        self.mlp_norm = _norm(config)
        self.mlp = GeGLU(config)

    def forward(self, hidden_TD: Tensor, rotation: Rotation, plan: Plan) -> Tensor:
        """(T, D) → (T, D)."""
        hidden_TD = hidden_TD + self.attn(self.attn_norm(hidden_TD), rotation, plan)
        return hidden_TD + self.mlp(self.mlp_norm(hidden_TD))


class Encoder(nn.Module):
    """The encoder without a head.

    Args:
        config: the shape.
        out_dropout: dropout on each attention block's output while training; not part of a checkpoint.
        backend: of attention (`modernbert.model.attention`).
    """

    def __init__(self, config: ModernBertConfig, *, out_dropout: float = 0.0, backend: Backend = "blocked") -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = backend
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, i, out_dropout) for i in range(config.num_hidden_layers))
        self.final_norm = _norm(config)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Packed token ids → final hidden states (T, D)."""
        hidden_TD = self.embeddings(batch.input_ids_T)
        dtype = torch.get_autocast_dtype(hidden_TD.device.type) if _autocast(hidden_TD) else hidden_TD.dtype
        plans, rotations = {}, {}
        for half_window in set(self.config.half_windows):
            plans[half_window] = plan_attention(batch, half_window, backend=self.backend, dtype=dtype)
            theta = self.config.rope_theta(half_window)
            rotations[half_window] = rotation_of(batch.positions_T, self.config.head_size, theta, dtype)
        for layer, half_window in zip(self.layers, self.config.half_windows, strict=True):
            hidden_TD = layer(hidden_TD, rotations[half_window], plans[half_window])
        return self.final_norm(hidden_TD)


Rotation = tuple[Tensor, Tensor]
"""cos and sin, each (T, 1, 1, H/2): broadcast over q-and-k and over heads."""


def rotation_of(positions_T: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles position · theta^(−2i/H), computed in float32 (RoPE, arXiv 2104.09864)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions_T.device) / head_size
    angles = (positions_T.float()[:, None] * (1.0 / theta**exponents))[:, None, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_T2NH: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x_i, x_{i+H/2}) by its angle: the half-split form of RoPE."""
    cos, sin = rotation
    a, b = x_T2NH.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
