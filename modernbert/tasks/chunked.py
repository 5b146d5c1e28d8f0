"""Hidden states and a decoder → cross-entropy and its gradients, some rows of logits at a time. For CPUs, float32.

2,458 targets over 50,368 entries are 495 MB of logits, as much again for their gradient, and pages that glibc's malloc gives
back and faults in anew. Here one buffer below 32 MiB serves for all rows: a chunk's logits become its gradient in place,
and with it both products of the backward pass are done at once, so nothing but the gradients is kept for it.

Price: the gradients are computed in the forward pass, whether or not a backward pass follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modernbert.model.linear import LinearPath, linear

_BYTES = 31 * 2**20  # of logits at once: below what glibc maps and unmaps each time


def chunked_cross_entropy(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_M: Tensor, path: LinearPath
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `F.cross_entropy(hidden Wᵀ + b, labels)` without all logits in memory.

    Args:
        hidden_MD: one row for each target, float32.
        weight_VD: the decoder's matrix.
        bias_V: its bias, if it has one.
        labels_M: the right entry of each row, int64.
        path: of the products.

    Returns:
        The losses' sum, which carries the gradients; each loss (M); how many rows have their highest logit at the label.
    """
    return _ChunkedCrossEntropy.apply(hidden_MD, weight_VD, bias_V, labels_M, path)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_M: Tensor, path: LinearPath
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_rows = max(1, _BYTES // (4 * len(weight_VD)))
        losses_M = hidden_MD.new_empty(len(labels_M))
        correct = labels_M.new_zeros(())
        grad_hidden_MD, grad_weight_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V)
        weight_DV = weight_VD.t().contiguous()
        for start in range(0, len(labels_M), num_rows):
            rows = slice(start, start + num_rows)
            hidden_CD, labels_C1 = hidden_MD[rows], labels_M[rows, None]
            logits_CV = linear(hidden_CD, weight_VD, bias_V, path)
            correct += (logits_CV.argmax(1, keepdim=True) == labels_C1).sum()
            right_C1 = logits_CV.gather(1, labels_C1)
            sums_C1 = logits_CV.logsumexp(1, keepdim=True)
            losses_M[rows] = (sums_C1 - right_C1).squeeze(1)
            grad_CV = logits_CV.sub_(sums_C1).exp_()  # softmax, in place
            grad_CV.scatter_add_(1, labels_C1, grad_CV.new_full(labels_C1.shape, -1.0))
            grad_hidden_MD[rows] = linear(grad_CV, weight_DV, None, path)
            torch.addmm(grad_weight_VD, grad_CV.t(), hidden_CD, out=grad_weight_VD)
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
        ctx.gradients = grad_hidden_MD, grad_weight_VD, grad_bias_V
        ctx.mark_non_differentiable(losses_M, correct)
        return losses_M.sum(), losses_M, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so good for one backward pass
        if gradients is None:
            raise RuntimeError("the gradients of chunked_cross_entropy are gone: it can be gone back through once")
        return (*(None if gradient is None else gradient.mul_(grad) for gradient in gradients), None, None)
