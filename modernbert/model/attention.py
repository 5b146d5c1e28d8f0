"""Queries, keys and values of a packed batch → attention outputs. A document never sees its neighbour.

    plan = plan_attention(batch, half_window, backend=…)     # once per batch and kind of layer
    o_TNH = attend(q_TNH, k_TNH, v_TNH, plan)                 # once per layer

Backends:

- `reference`: dense T × T mask, float32 softmax. The slow twin that every other backend is tested against.
- `blocked`: for a window, the packed sequence is cut into chunks of W queries, and each chunk attends to the W + 2 ·
  half_window keys around it under a small mask: T × (W + 2 · half_window) scores, whatever the documents' lengths.
  Without a window each document goes through PyTorch's SDPA alone, without a mask. Where all are short (128 tokens, and twice
  half_window) those of like length go together, padded to the longest of them. Runs on any device.
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

# Where every document is at most this long those of like length share an SDPA call, padded, instead of taking one each: on
# two cores a call costs some 50 µs forward, as much as attending over about this many tokens at head size 64.
_SHORT_DOCUMENT, _PAD_TO = 128, 16

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
class Groups:
    """`blocked` with short documents, those of like length padded to one length; P places in all."""

    shapes: tuple[tuple[int, int], ...]  # (documents, padded length) of each group
    token_P: Tensor  # of each place; of padding any token
    place_T: Tensor  # of each token
    # 0 where seen, -inf where not; (B, 1, 1, L) without a window; None where all is seen.
    biases_B1LL: tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Varlen:
    """`varlen`: the kernel reads the borders itself; (-1, -1) is no window."""

    cu_seqlens: Tensor  # int32
    max_seqlen: int
    window: tuple[int, int]


Plan = DenseMask | Chunks | Whole | Groups | Varlen


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
    if batch.max_seqlen <= (_SHORT_DOCUMENT if half_window is None else min(_SHORT_DOCUMENT, 2 * half_window)):
        return _plan_groups(batch, half_window, dtype)
    assert half_window is not None
    return _plan_chunks(batch, half_window, dtype)


def attend(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Plan) -> Tensor:
    """Softmax attention, scaled by H^-1/2, under the plan. Returns o_TNH."""
    match plan:
        case Whole():
            return _attend_whole(q_TNH, k_TNH, v_TNH, plan)
        case Chunks():
            return _attend_chunks(q_TNH, k_TNH, v_TNH, plan)
        case Groups():
            return _attend_groups(q_TNH, k_TNH, v_TNH, plan)
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


def _plan_groups(batch: PackedBatch, half_window: int | None, dtype: torch.dtype) -> Groups:
    lengths = batch.lengths()
    starts = [0, *itertools.accumulate(lengths)]
    padded = [-(-length // _PAD_TO) * _PAD_TO for length in lengths]
    order = sorted(range(len(lengths)), key=padded.__getitem__)
    shapes, tokens, real, biases = [], [], [], []
    for _, members in itertools.groupby(order, key=padded.__getitem__):
        group = [*members]
        longest = max(lengths[document] for document in group)
        starts_B1 = torch.tensor([starts[document] for document in group])[:, None]
        lengths_B1 = torch.tensor([lengths[document] for document in group])[:, None]
        place_L = torch.arange(longest)
        is_real_BL = place_L < lengths_B1
        tokens.append((starts_B1 + torch.minimum(place_L, lengths_B1 - 1)).flatten())  # padding repeats the last one
        real.append(is_real_BL.flatten())
        seen_B1LL = is_real_BL[:, None, None]
        if half_window is not None:
            near_LL = (place_L[:, None] - place_L).abs() <= half_window
            # Padding sees all: nobody is without a key.
            seen_B1LL = (seen_B1LL & near_LL) | ~is_real_BL[:, None, :, None]
        bias_B1LL = torch.zeros(seen_B1LL.shape, dtype=dtype).masked_fill_(~seen_B1LL, float("-inf"))
        biases.append(None if bool(seen_B1LL.all()) else bias_B1LL)
        shapes.append((len(group), longest))
    token_P, places = torch.cat(tokens), torch.cat(real).nonzero().squeeze(1)
    place_T = torch.empty(batch.num_tokens, dtype=torch.int64)
    place_T[token_P[places]] = places
    device = batch.cu_seqlens.device
    on_device = tuple(None if bias is None else bias.to(device) for bias in biases)
    return Groups(tuple(shapes), token_P.to(device), place_T.to(device), on_device)


def _attend_groups(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, plan: Groups) -> Tensor:
    sizes = [documents * length for documents, length in plan.shapes]
    parts = [x.index_select(0, plan.token_P).split(sizes) for x in (q_TNH, k_TNH, v_TNH)]
    outputs = []
    for (documents, length), bias_B1LL, *qkv in zip(plan.shapes, plan.biases_B1LL, *parts, strict=True):
        q_BNLH, k_BNLH, v_BNLH = (x.unflatten(0, (documents, -1)).transpose(1, 2) for x in qkv)
        mask = None if bias_B1LL is None else bias_B1LL.expand(-1, -1, length, -1)
        outputs.append(F.scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH, mask).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.place_T)


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
