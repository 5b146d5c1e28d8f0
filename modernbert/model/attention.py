"""Queries, keys and values of a packed batch → attention outputs. A document never sees its neighbour.

    plan = plan_attention(batch, half_window)     # once per batch and kind of layer
    o_TNH = attend(q_TNH, k_TNH, v_TNH, plan)     # once per layer

Backends:

- `reference`: dense T × T mask, float32 softmax. The slow twin that every other backend is tested against.
- `blocked`: for a window, the packed sequence is cut into chunks and each chunk attends to two chunks' worth of
  keys under a small mask: T × 4 · half_window scores, whatever the documents' lengths. Without a window each
  document goes through PyTorch's SDPA alone, without a mask. Runs on any device.

Price of `blocked` for a window of 128: half of the computed scores are masked away, and keys and values are
copied once. No local layer ever builds a mask of document-length², and no query row is ever without a key (a
softmax over nothing is NaN): each row, padding included, sees at least itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import PackedBatch

Backend = Literal["reference", "blocked"]
BACKENDS: tuple[Backend, ...] = ("reference", "blocked")

# Documents up to this long share chunks under one mask instead of taking one SDPA call each: on two cores a call
# costs some 50 µs forward, as much as attending over about this many tokens at head size 64.
_SHORT_DOCUMENT = 128


@dataclass(frozen=True, slots=True)
class DenseMask:
    """`reference`: which of all T keys each of T queries sees."""

    allowed_TT: Tensor  # bool


@dataclass(frozen=True, slots=True)
class Chunks:
    """`blocked` with a window: C chunks of W queries, each attending to 2 W keys."""

    width: int  # W, even
    bias_C1WK: Tensor  # 0 where seen, -inf where not; K = 2 W


@dataclass(frozen=True, slots=True)
class Whole:
    """`blocked` without a window: every document by itself."""

    lengths: list[int]


Plan = DenseMask | Chunks | Whole


def plan_attention(
    batch: PackedBatch,
    half_window: int | None,
    *,
    backend: Backend = "blocked",
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """What depends on the batch and not on the layer.

    Args:
        batch: the documents.
        half_window: tokens seen on either side; None for the whole document.
        backend: see the module.
        dtype: of the queries, keys and values to come.
    """
    if backend == "reference":
        return _plan_dense(batch, half_window)
    if half_window is None or half_window >= batch.max_seqlen - 1:
        # The window holds every whole document, so there is none; short documents are cheapest in chunks.
        if batch.max_seqlen > _SHORT_DOCUMENT:
            return Whole(batch.lengths())
        half_window = batch.max_seqlen - 1
    return _plan_chunks(batch, half_window, dtype)


def attend(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Plan) -> Tensor:
    """Softmax attention, scaled by H^-1/2, under the plan. Returns o_TNH."""
    match plan:
        case Whole():
            return _attend_whole(q_TNH, k_TNH, v_TNH, plan.lengths)
        case Chunks():
            return _attend_chunks(q_TNH, k_TNH, v_TNH, plan)
        case DenseMask():
            return _attend_dense(q_TNH, k_TNH, v_TNH, plan.allowed_TT)


def _plan_dense(batch: PackedBatch, half_window: int | None) -> DenseMask:
    document_T = _document_of_token(batch)
    allowed_TT = document_T[:, None] == document_T[None, :]
    if half_window is not None:
        index_T = torch.arange(batch.num_tokens, device=document_T.device)
        allowed_TT &= (index_T[:, None] - index_T[None, :]).abs() <= half_window
    return DenseMask(allowed_TT)


def _attend_dense(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, allowed_TT: Tensor) -> Tensor:
    scores_NTT = torch.einsum("qnh,knh->nqk", q_TNH.float(), k_TNH.float()) * q_TNH.shape[-1] ** -0.5
    probs_NTT = scores_NTT.masked_fill(~allowed_TT, float("-inf")).softmax(-1)
    return torch.einsum("nqk,knh->qnh", probs_NTT, v_TNH.float()).to(v_TNH.dtype)


def _attend_whole(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, lengths: list[int]) -> Tensor:
    # `split`, not slices: its backward is one concatenation instead of one T-sized buffer per document.
    documents = zip(q_TNH.split(lengths), k_TNH.split(lengths), v_TNH.split(lengths), strict=True)
    outputs = [
        F.scaled_dot_product_attention(*(x_LNH.transpose(0, 1)[None] for x_LNH in qkv))[0].transpose(0, 1)
        for qkv in documents
    ]
    return torch.cat(outputs)


def _plan_chunks(batch: PackedBatch, half_window: int, dtype: torch.dtype) -> Chunks:
    """The chunk starting at token s attends to keys s − W/2 … s + 3W/2 − 1, so W ≥ 2 · half_window is needed."""
    width = max(2 * half_window, 32)
    num_chunks = -(-batch.num_tokens // width)
    document_T = _document_of_token(batch)
    # Padding before and behind the batch gets document numbers of its own: no real row sees it, it sees itself.
    document_keys = F.pad(document_T, (width // 2, 0), value=-1)
    document_keys = F.pad(document_keys, (0, (num_chunks + 1) * width - len(document_keys)), value=-2)
    keys_CK = document_keys.unfold(0, 2 * width, width)
    queries_CW = keys_CK[:, width // 2 : width // 2 + width]
    query_W1 = torch.arange(width, device=document_T.device)[:, None] + width // 2
    near_WK = (query_W1 - torch.arange(2 * width, device=document_T.device)).abs() <= half_window
    allowed_CWK = near_WK & (queries_CW[:, :, None] == keys_CK[:, None, :])
    bias_CWK = torch.zeros(allowed_CWK.shape, dtype=dtype, device=document_T.device)
    return Chunks(width, bias_CWK.masked_fill_(~allowed_CWK, float("-inf")).unsqueeze(1))


def _attend_chunks(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Chunks) -> Tensor:
    num_tokens, num_heads, head_size = q_TNH.shape
    width, num_chunks = plan.width, plan.bias_C1WK.shape[0]
    behind = num_chunks * width - num_tokens

    def two_chunks(x_TNH: Tensor) -> Tensor:
        # Shifted by half a chunk, the keys of a chunk are two neighbouring chunks: one copy, no gather.
        x = F.pad(x_TNH, (0, 0, 0, 0, width // 2, behind + width // 2)).view(-1, width, num_heads, head_size)
        return torch.cat((x[:-1], x[1:]), dim=1).transpose(1, 2)

    q_CNWH = F.pad(q_TNH, (0, 0, 0, 0, 0, behind)).view(-1, width, num_heads, head_size).transpose(1, 2)
    o_CNWH = F.scaled_dot_product_attention(q_CNWH, two_chunks(k_TNH), two_chunks(v_TNH), plan.bias_C1WK)
    return o_CNWH.transpose(1, 2).reshape(-1, num_heads, head_size)[:num_tokens]


def _document_of_token(batch: PackedBatch) -> Tensor:
    """For each token the number of its document."""
    index_B = torch.arange(batch.num_documents, device=batch.cu_seqlens.device)
    return index_B.repeat_interleave(batch.cu_seqlens.diff(), output_size=batch.num_tokens)
