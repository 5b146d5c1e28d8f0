"""x and W → x Wᵀ, through whichever of PyTorch's own paths is fast here.

- `plain`: `F.linear`, any device and dtype. On x86 CPUs that is MKL, which keeps to AVX2 on processors that are not Intel's.
- `onednn`: the operator that `torch.compile` emits for CPUs, called directly: float32 on a CPU.
- `packed`: the same, with each weight laid out once in oneDNN's own order, for as long as the weight does not change.
  Where gradients are taken it is `onednn`.

Price of `packed`: a second copy of the weights (420 MiB for ModernBERT-base), made at the first use. On 2 cores of a Zen 5
it does 411 GFLOP/s where `onednn` does 288 and `plain` 135 (16 rows), 440, 429 and 197 at 1,024 rows; on an older EPYC
with AVX2 only `packed` is 1.05 to 1.5 times as fast as `plain`. Which path is used, and why: `modernbert.model.choose`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LinearPath = Literal["plain", "onednn", "packed"]

# Below this many multiplications oneDNN's call (20 µs, packed 26) costs more than it saves: 3 rows of 768 → 1,024.
_WORTH_A_CALL = 2**21
# Where gradients are taken each matrix is also transposed twice, which costs narrow layers more than they win.
_WORTH_A_CALL_WITH_GRADIENTS = 2**28


def onednn_is_built_in() -> bool:
    """Whether this PyTorch has the operators that `onednn` calls."""
    try:
        torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._reorder_linear_weight.default  # noqa: B018
    except AttributeError:
        return False
    return torch.backends.mkldnn.is_available()


def onednn_linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b without gradients; both matrices contiguous, or the weight packed. Returns (M, N).

    Source: `torch/_inductor/mkldnn_lowerings.py`, which calls the same operator.
    """
    assert not torch.is_grad_enabled(), "the operator would drop the gradient in silence"
    return torch.ops.mkldnn._linear_pointwise.default(x_MK, weight_NK, bias_N, "none", [], "")


def linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, path: LinearPath) -> Tensor:
    """Compute x Wᵀ + b with gradients where they are asked for. Returns (M, N)."""
    with_gradients = torch.is_grad_enabled()
    least = _WORTH_A_CALL_WITH_GRADIENTS if with_gradients else _WORTH_A_CALL
    if path == "plain" or len(x_MK) * weight_NK.numel() < least:
        return F.linear(x_MK, weight_NK, bias_N)
    if with_gradients:
        return _WithGradients.apply(x_MK, weight_NK, bias_N)
    return onednn_linear(x_MK.contiguous(), weight_NK, bias_N)


class Linear(nn.Linear):
    """`nn.Linear` with a choice of path. Same parameters, same state dict.

    Where `packs` is true the outputs come in `packed_order`, if one is set: a copy can be made in any order of rows.
    """

    packed_order: list[int] | None = None
    _packed: tuple[tuple[Any, ...], Tensor, Tensor | None] | None = None

    def forward(self, x_MK: Tensor, path: LinearPath = "plain") -> Tensor:
        """(M, K) → (M, N)."""
        if self.packs(x_MK, path):
            return onednn_linear(x_MK.contiguous(), *self.pack())
        if torch.is_grad_enabled() and self.weight.requires_grad:
            self._packed = None  # about to change, and a fused optimizer does not even count it
        return linear(x_MK, self.weight, self.bias, path)

    def packs(self, x_MK: Tensor, path: LinearPath) -> bool:
        """Whether these rows go through the packed copy."""
        if path != "packed" or torch.is_grad_enabled() or len(x_MK) * self.weight.numel() < _WORTH_A_CALL:
            return False
        return not self.weight.is_inference()  # such a weight does not count its changes: a copy could be outdated

    def pack(self) -> tuple[Tensor, Tensor | None]:
        """The weight in oneDNN's layout, and the bias; made anew where they have changed."""
        # What is written in place changes the version, a move the address; `.data` and fused kernels change neither, hence a
        # sample of the numbers.
        weight, bias = self.weight.detach(), self.bias
        key: tuple[Any, ...] = (weight.data_ptr(), self.weight._version, weight.shape, _sample(weight))
        if bias is not None:
            key += (bias.data_ptr(), bias._version, _sample(bias))
        if self._packed is None or self._packed[0] != key:
            order = slice(None) if self.packed_order is None else self.packed_order
            packed = torch.ops.mkldnn._reorder_linear_weight.default(weight[order], None)
            self._packed = key, packed, None if bias is None else bias.detach()[order]
        return self._packed[1:]

    def __getstate__(self) -> dict[str, Any]:
        # A packed tensor can neither be pickled nor copied.
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def _sample(x: Tensor) -> list[float]:
    return x.detach().flatten()[:: x.numel() // 8 + 1].tolist()


class _WithGradients(torch.autograd.Function):
    """Forward and both products of the backward pass through oneDNN.

    Both passes of a 768 × 2304 weight: 57 ms against 111 with `plain` at 2,048 rows (2 cores of a Zen 5). On a slower EPYC with
    AVX-512 66 against 74 at 1,024 rows, and of a 256 × 768 weight 10.0 against 8.4: hence a least size.
    """

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return onednn_linear(x_MK.contiguous(), weight_NK, bias_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_MK, weight_NK = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_MN = grad_MN.contiguous()  # as are the transposes: with other strides one product takes seconds
        return (
            onednn_linear(grad_MN, weight_NK.t().contiguous()) if needs_x else None,
            onednn_linear(grad_MN.t().contiguous(), x_MK.t().contiguous()) if needs_weight else None,
            grad_MN.sum(0) if needs_bias else None,
        )
