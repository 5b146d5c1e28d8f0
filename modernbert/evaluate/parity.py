"""Attention backends and whole models → how far they are from the same in float32, beside PyTorch's own attention.

Queries, keys, values and the gradient from above are drawn and rounded to the dtype; `reference` in float32 on these
very numbers is the truth. An error says little alone, so SDPA's on the same inputs, each document by itself under a
dense mask, stands beside it. `passed` is at most three times that, or half a rounding of the largest value: a window that
is one token off would move an output by more.

Price: the truth holds heads × T² scores: some 3 GB with two heads at 8,192 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import PackedBatch
from modernbert.evaluate.peers import cast, padded, peer
from modernbert.model.attention import BACKENDS, Backend, attend, plan_attention
from modernbert.model.choose import varlen_has_windows
from modernbert.model.config import ModernBertConfig
from modernbert.tasks import EncoderModel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

_TIMES_SDPA, _LEAST = 3.0, 1e-5  # the latter of the largest value: float32 sums in another order
_LEAST_OF_MODELS = 1e-4  # 22 layers in float32, whose truth is theirs
_HALF = (torch.bfloat16, torch.float16)


def impossible(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run here; None where it can."""
    if backend == "varlen":
        if device.type != "cuda" or dtype not in _HALF:
            return "needs CUDA and half precision"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs compute capability 8.0"
        return None if varlen_has_windows() else f"PyTorch {torch.__version__} has no window for it"
    if backend == "onednn" and (device.type != "cpu" or dtype != torch.float32):
        return "needs a CPU and float32"
    return None


def attention_parity(
    device: torch.device,
    dtype: torch.dtype,
    *,
    mixes: Sequence[Sequence[int]],
    half_windows: Sequence[int | None],
    num_heads: int = 2,
    head_size: int = 64,
) -> list[dict[str, Any]]:
    """Compare every backend that can run here, on every mix of lengths and every window.

    Returns:
        A row for each: backend, dtype, lengths, half_window, and for `forward` and `backward` the largest error, SDPA's,
        and whether it passed; `backward` is None where the backend takes no gradients, `skipped` says why there is none.
    """
    possible = [backend for backend in BACKENDS if impossible(backend, device, dtype) is None]
    rows = []
    for lengths in mixes:
        for half_window in half_windows:
            case = {"dtype": _name(dtype), "lengths": list(lengths), "half_window": half_window}
            try:
                found = _compare(lengths, half_window, possible, device, dtype, num_heads, head_size)
            except torch.OutOfMemoryError:
                found = {backend: {"skipped": "the comparison does not fit the memory"} for backend in possible}
            rows += [{"backend": backend, **case, **errors} for backend, errors in found.items()]
    return rows


def _compare(
    lengths: Sequence[int],
    half_window: int | None,
    backends: Sequence[Backend],
    device: torch.device,
    dtype: torch.dtype,
    num_heads: int,
    head_size: int,
) -> dict[Backend, dict[str, Any]]:
    batch = PackedBatch.from_sequences([[1] * length for length in lengths]).to(device)
    generator = torch.Generator().manual_seed(sum(lengths))
    drawn = torch.randn(4, batch.num_tokens, num_heads, head_size, generator=generator).to(device, dtype)

    def backend_as(backend: Backend, like: torch.dtype) -> Attend:
        # Planned where it is used: with gradients and without, plans differ.
        return lambda q, k, v: attend(q, k, v, plan_attention(batch, half_window, backend=backend, dtype=like))

    truth = _run(backend_as("reference", torch.float32), drawn.float())
    sdpa = _errors(_run(lambda q, k, v: _sdpa(q, k, v, lengths, half_window), drawn), truth)
    found: dict[Backend, dict[str, Any]] = {}
    for backend in backends:
        errors = _errors(_run(backend_as(backend, dtype), drawn, gradients=backend != "onednn"), truth)
        found[backend] = {
            side: None if error is None else _verdict(error, sdpa[side], largest, dtype)
            for (side, error), largest in zip(errors.items(), _largest(truth), strict=True)
        }
    return found


def _run(function: Attend, drawn: Tensor, *, gradients: bool = True) -> list[Tensor | None]:
    """Output, and the gradients of q, k and v stacked; float32."""
    q, k, v, above = drawn
    if not gradients:
        with torch.inference_mode():
            return [function(q.clone(), k.clone(), v.clone()).float(), None]
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    output = function(*leaves)
    return [output.detach().float(), torch.stack(torch.autograd.grad(output, leaves, above)).float()]


def _sdpa(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, lengths: Sequence[int], half_window: int | None) -> Tensor:
    outputs = []
    for q, k, v in zip(*(x.split(list(lengths)) for x in (q_TNH, k_TNH, v_TNH)), strict=True):
        index = torch.arange(len(q), device=q.device)
        mask = None if half_window is None else (index[:, None] - index).abs() <= half_window
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1))
    return torch.cat(outputs)


def _errors(found: Sequence[Tensor | None], truth: Sequence[Tensor | None]) -> dict[str, float | None]:
    return {
        side: None if a is None or b is None else (a - b).abs().max().item()
        for side, a, b in zip(("forward", "backward"), found, truth, strict=True)
    }


def _largest(truth: Sequence[Tensor | None]) -> list[float]:
    return [0.0 if x is None else x.abs().max().item() for x in truth]


def _verdict(error: float, sdpa: float | None, largest: float, dtype: torch.dtype) -> dict[str, Any]:
    assert sdpa is not None
    limit = max(_TIMES_SDPA * sdpa, max(torch.finfo(dtype).eps / 4, _LEAST) * largest)
    return {"error": error, "sdpa": sdpa, "passed": error <= limit}  # NaN never passes


def model_parity(
    config: ModernBertConfig,
    device: torch.device,
    dtype: torch.dtype,
    lengths: Sequence[int],
    *,
    backend: Backend | Literal["auto"] = "auto",
) -> dict[str, Any]:
    """Whole encoders in `dtype`, ours and transformers' (SDPA), against transformers' in float32, with the same weights.

    Matrices are drawn four times as large as at the start of training: at their usual size the output is almost all
    embedding, and a mistake would not be seen.

    Returns:
        Relative errors by norm of `ours` and `theirs`, and whether ours is at most half as large again.
    """
    ours = EncoderModel(config, backend=backend).draw(0).encoder
    for name, parameter in ours.named_parameters():
        if parameter.dim() == 2 and "embeddings" not in name:
            parameter.data *= 4
    theirs = peer("transformers", config)
    theirs.load_state_dict(ours.state_dict())
    rows = [[(31 * n + 7 * i) % (config.vocab_size - 1) + 1 for i in range(n)] for n in lengths]
    inputs = {name: tensor.to(device) for name, tensor in padded(rows).items()}
    real_BL = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    batch = PackedBatch.from_sequences(rows).to(device)
    with torch.inference_mode():
        theirs = theirs.to(device).eval()
        truth_TD = theirs(**inputs).last_hidden_state[real_BL]
        theirs_TD = cast(theirs, dtype)(**inputs).last_hidden_state[real_BL]
        ours_TD = cast(ours.to(device).eval(), dtype)(batch)
    error, stock = (((x.float() - truth_TD).norm() / truth_TD.norm()).item() for x in (ours_TD, theirs_TD))
    passed = error <= max(1.5 * stock, _LEAST_OF_MODELS)
    return {"dtype": _name(dtype), "lengths": list(lengths), "ours": error, "theirs": stock, "passed": passed}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
