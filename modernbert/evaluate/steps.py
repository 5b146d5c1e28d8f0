"""A model's shape → tokens a second of whole training steps, and of attention alone.

A step is forward, backward and AdamW (fused), products in the runtime's dtype over float32 weights, 30 % of the tokens
predicted, documents of one length packed without padding. The tokens of a step are halved until it fits the memory.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from typing import Any

import torch

from modernbert.batch import IGNORE, PackedBatch
from modernbert.evaluate.parity import impossible
from modernbert.evaluate.timing import interleave, quantile
from modernbert.model.attention import BACKENDS, attend, plan_attention
from modernbert.model.config import ModernBertConfig
from modernbert.model.flops import forward_flops
from modernbert.runtime import Runtime, synchronize
from modernbert.tasks import MaskedLM
from modernbert.train.peak import peak_flops

_MASKED, _DROPOUT = 0.3, 0.1
_LEAST_STEPS = 3


def training_speed(
    config: ModernBertConfig, runtime: Runtime, *, num_tokens: int, length: int, seconds: float
) -> dict[str, Any]:
    """Time steps of a fresh model.

    Args:
        config: its shape.
        runtime: device, and the dtype of products.
        num_tokens: of a step, fewer where they do not fit.
        length: tokens of each document.
        seconds: begin no step after so long; three at least.

    Returns:
        tokens_per_second (median, with the range), the share of the best rate of matrix products (`mfu`), peak memory on
        CUDA, and the losses of the first and last step.
    """
    while True:
        try:
            return _training_speed(config, runtime, num_tokens, length, seconds)
        except torch.OutOfMemoryError:
            if num_tokens < 2 * length:
                raise
            num_tokens //= 2
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors


def _training_speed(
    config: ModernBertConfig, runtime: Runtime, num_tokens: int, length: int, seconds: float
) -> dict[str, Any]:
    device = runtime.device
    model = MaskedLM(config, out_dropout=_DROPOUT).draw(0).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = _masked_batch(config.vocab_size, max(num_tokens // length, 1), length).to(device)

    def step() -> torch.Tensor:
        with runtime.autocast():
            output = model(batch)
            loss = output.loss_sum / output.num_targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        return loss.detach()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, _ = step(), step()  # not timed
    taken: list[float] = []
    began_at = time.perf_counter()
    while len(taken) < _LEAST_STEPS or time.perf_counter() - began_at < seconds:
        started_at = time.perf_counter()
        last = step()
        taken.append(time.perf_counter() - started_at)
    lengths = batch.lengths()
    peak, source = peak_flops(config, runtime, batch.num_tokens)
    median = statistics.median(taken)
    return {
        "tokens": batch.num_tokens, "length": length, "steps": len(taken),
        "tokens_per_second": batch.num_tokens / median,
        "low": batch.num_tokens / quantile(taken, 0.9), "high": batch.num_tokens / quantile(taken, 0.1),
        "mfu": 3 * forward_flops(config, lengths, round(_MASKED * batch.num_tokens)) / median / peak,
        "peak_flops": peak, "peak_source": source,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "first_loss": first.item(), "last_loss": last.item(),
    }  # fmt: skip


def _masked_batch(vocab_size: int, num_documents: int, length: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(1, vocab_size, (num_documents, length), generator=generator)
    labels = torch.full((ids_BL.numel(),), IGNORE)
    hidden = torch.randperm(len(labels), generator=generator)[: round(_MASKED * len(labels))]
    labels[hidden] = ids_BL.flatten()[hidden]
    return PackedBatch.from_sequences(ids_BL, labels.view_as(ids_BL))


def attention_speed(
    runtime: Runtime, *, num_documents: int, length: int, num_heads: int, head_size: int, half_window: int, rounds: int
) -> list[dict[str, Any]]:
    """Median seconds of attention alone, forward, without a window and with one, on every backend but the reference."""
    device, dtype = runtime.device, runtime.dtype
    batch = PackedBatch.from_sequences([[1] * length] * num_documents).to(device)
    drawn = torch.randn(3, batch.num_tokens, num_heads, head_size, device=device, dtype=dtype)
    backends = [b for b in BACKENDS if b != "reference" and impossible(b, device, dtype) is None]
    rows = []
    with torch.inference_mode():
        plans = {
            (backend, window): plan_attention(batch, window, backend=backend, dtype=dtype)
            for backend, window in itertools.product(backends, (None, half_window))
        }

        def call(key: Any, _round: int) -> None:
            attend(drawn[0], drawn[1], drawn[2], plans[key])
            synchronize(device)

        calls = {f"{backend} {window}": functools.partial(call, (backend, window)) for backend, window in plans}
        times = interleave(calls, seconds=0, rounds=rounds, warmups=2)
    for (backend, window), taken in zip(plans, times.values(), strict=True):
        rows.append(
            {"backend": backend, "half_window": window, "documents": num_documents, "length": length,
             "median_s": statistics.median(taken), "low_s": quantile(taken, 0.1), "high_s": quantile(taken, 0.9)}
        )  # fmt: skip
    return rows
