"""Queries, keys and values of a packed batch → attention outputs. A document never sees its neighbour.

    plan = plan_attention(batch, half_window, backend=…)     # once per batch and kind of layer
    o_TNH = attend(q_TNH, k_TNH, v_TNH, plan)                 # once per layer

Backends:

- `reference`: dense T × T mask, float32 softmax. The slow twin that every other backend is tested against.
- `blocked`: for a window, the packed sequence is cut into chunks of W queries, and each chunk attends to the W + 2 ·
  half_window keys around it under a small mask: T × (W + 2 · half_window) scores, whatever the documents' lengths.
  Without a window each document goes through PyTorch's SDPA alone, without a mask. Runs on any device.
- `onednn`: as `blocked`, but whole documents go head by head through oneDNN's matrix products (`modernbert.model.linear`),
  which pays where these use wider vectors than MKL's, in which SDPA computes. float32 on a CPU; with gradients, for
  which oneDNN's operators have no formula, it is `blocked`.
- `varlen`: PyTorch's own variable-length flash attention with its window. CUDA, half precision.

Which one is used where, and why: `modernbert.model.choose`.

Price of `blocked` for a window of 128 (129 keys seen): 160 scores a token on a CPU without gradients, 256 elsewhere;
keys and values are copied once, into a buffer with half a window of padding on either side, and every chunk reads
its window out of that buffer through overlapping strides. No local layer ever builds a mask of document-length², and
no query row is ever without a key (a softmax over nothing is NaN): each row, padding included, sees itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import PackedBatch
from modernbert.model.linear import onednn_linear

Backend = Literal["reference", "blocked", "onednn", "varlen"]
BACKENDS: tuple[Backend, ...] = ("reference", "blocked", "onednn", "varlen")

# Where every document is at most this long they share chunks under one mask instead of taking one SDPA call each: on
# two cores a call costs some 50 µs forward, as much as attending over about this many tokens at head size 64.
_SHORT_DOCUMENT = 128

# `onednn` takes documents from here on head by head, this many queries at a time: shorter ones do not pay for 36 calls,
# and 512 queries × 8,192 keys are 16 MiB of scores.
_BY_HEAD_FROM, _QUERIES_AT_ONCE = 256, 512


@dataclass(frozen=True, slots=True)
class DenseMask:
    """`reference`: which of all T keys each of T queries sees."""

    allowed_TT: Tensor  # bool


@dataclass(frozen=True, slots=True)
class Chunks:
    """`blocked` with a window: C chunks of W queries, each attending to K = W + 2 · half_window keys."""

    half_window: int
    bias_C1WK: Tensor  # 0 where seen, -inf where not


@dataclass(frozen=True, slots=True)
class Whole:
    """`blocked` without a window: runs of neighbouring documents of one length, (documents, tokens in each)."""

    runs: tuple[tuple[int, int], ...]
    by_head: bool = False  # through oneDNN


@dataclass(frozen=True, slots=True)
class Varlen:
    """`varlen`: the kernel reads the borders itself; (-1, -1) is no window."""

    cu_seqlens: Tensor  # int32
    max_seqlen: int
    window: tuple[int, int]


Plan = DenseMask | Chunks | Whole | Varlen


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
    if half_window is not None and half_window >= batch.max_seqlen - 1:
        half_window = None  # it holds every whole document, so it is none
    if backend == "varlen":
        window = (-1, -1) if half_window is None else (half_window, half_window)
        return Varlen(batch.cu_seqlens, batch.max_seqlen, window)
    if half_window is None:
        runs = tuple((len([*run]), length) for length, run in itertools.groupby(batch.lengths()))
        if batch.max_seqlen > _SHORT_DOCUMENT or len(runs) == 1:
            return Whole(runs, by_head=backend == "onednn" and not torch.is_grad_enabled())
    # Without a window but with short documents of many lengths, chunks serve as well: the longest one is the window.
    return _plan_chunks(batch, batch.max_seqlen - 1 if half_window is None else half_window, dtype)


def attend(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Plan) -> Tensor:
    """Softmax attention, scaled by H^-1/2, under the plan. Returns o_TNH."""
    match plan:
        case Whole():
            return _attend_whole(q_TNH, k_TNH, v_TNH, plan)
        case Chunks():
            return _attend_chunks(q_TNH, k_TNH, v_TNH, plan)
        case Varlen():
            return _attend_varlen(q_TNH, k_TNH, v_TNH, plan)
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


def _attend_whole(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Whole) -> Tensor:
    # `split`, not slices: its backward is one concatenation instead of one T-sized buffer per document.
    sizes = [documents * length for documents, length in plan.runs]
    outputs = []
    for (documents, length), *qkv in zip(plan.runs, *(x.split(sizes) for x in (q_TNH, k_TNH, v_TNH)), strict=True):
        if plan.by_head and length >= _BY_HEAD_FROM:
            outputs += [_attend_by_head(*document) for document in zip(*(x.split(length) for x in qkv), strict=True)]
            continue
        q_BNLH, k_BNLH, v_BNLH = (x.unflatten(0, (documents, -1)).transpose(1, 2) for x in qkv)
        outputs.append(F.scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _attend_by_head(q_LNH: Tensor, k_LNH: Tensor, v_LNH: Tensor) -> Tensor:
    length, num_heads, head_size = q_LNH.shape
    q_NLH = (q_LNH * head_size**-0.5).transpose(0, 1).contiguous()
    k_NLH, v_NHL = k_LNH.transpose(0, 1).contiguous(), v_LNH.permute(1, 2, 0).contiguous()
    o_LNH = torch.empty_like(q_LNH, memory_format=torch.contiguous_format)
    for head in range(num_heads):
        for start in range(0, length, _QUERIES_AT_ONCE):
            rows = slice(start, start + _QUERIES_AT_ONCE)
            probs = onednn_linear(q_NLH[head, rows], k_NLH[head])
            torch.softmax(probs, -1, out=probs)
            o_LNH[rows, head] = onednn_linear(probs, v_NHL[head])
    return o_LNH


def _attend_varlen(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Varlen) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = plan.cu_seqlens, plan.max_seqlen
    o_TNH = varlen_attn(q_TNH, k_TNH, v_TNH, cu, cu, longest, longest, window_size=plan.window)
    assert isinstance(o_TNH, Tensor)
    return o_TNH


def _width(half_window: int, device: torch.device) -> int:
    # On two cores, 2,048 tokens, half_window 64: the forward pass alone takes 8.7 ms with 32 and 12.4 with 128, forward
    # and backward 77 and 60, since the backward adds up W + 2 · half_window rows a chunk.
    if device.type == "cpu" and not torch.is_grad_enabled():
        return 32
    return max(2 * half_window, 32)


def _plan_chunks(batch: PackedBatch, half_window: int, dtype: torch.dtype) -> Chunks:
    """The chunk of queries s … s + W − 1 attends to keys s − half_window … s + W − 1 + half_window."""
    document_T = _document_of_token(batch)
    width = _width(half_window, document_T.device)
    behind = -batch.num_tokens % width
    # Padding before and behind the batch gets document numbers of its own: no real row sees it, it sees itself.
    before_keys = F.pad(document_T, (half_window, 0), value=-1)
    keys_CK = F.pad(before_keys, (0, behind + half_window), value=-2).unfold(0, width + 2 * half_window, width)
    queries_CW = keys_CK[:, half_window : half_window + width]
    query_W1 = torch.arange(width, device=document_T.device)[:, None] + half_window
    near_WK = (query_W1 - torch.arange(keys_CK.shape[1], device=document_T.device)).abs() <= half_window
    allowed_CWK = near_WK & (queries_CW[:, :, None] == keys_CK[:, None, :])
    bias_CWK = torch.zeros(allowed_CWK.shape, dtype=dtype, device=document_T.device)
    return Chunks(half_window, bias_CWK.masked_fill_(~allowed_CWK, float("-inf")).unsqueeze(1))


def _attend_chunks(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Chunks) -> Tensor:
    num_tokens, num_heads, head_size = q_TNH.shape
    num_chunks, _, width, num_keys = plan.bias_C1WK.shape
    behind = num_chunks * width - num_tokens

    def windows(x_TNH: Tensor) -> Tensor:
        padded = F.pad(x_TNH, (0, 0, 0, 0, plan.half_window, plan.half_window + behind))
        return padded.unfold(0, num_keys, width).transpose(-1, -2)  # (C, N, K, H), overlapping in memory

    q_CNWH = F.pad(q_TNH, (0, 0, 0, 0, 0, behind)).view(-1, width, num_heads, head_size).transpose(1, 2)
    o_CNWH = F.scaled_dot_product_attention(q_CNWH, windows(k_TNH), windows(v_TNH), plan.bias_C1WK)
    return o_CNWH.transpose(1, 2).reshape(-1, num_heads, head_size)[:num_tokens]


def _document_of_token(batch: PackedBatch) -> Tensor:
    """For each token the number of its document."""
    index_B = torch.arange(batch.num_documents, device=batch.cu_seqlens.device)
    return index_B.repeat_interleave(batch.cu_seqlens.diff(), output_size=batch.num_tokens)
