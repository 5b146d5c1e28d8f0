"""Device and model shape → the best rate of floating-point operations to hope for, and where the figure is from."""

from __future__ import annotations

import time

import torch

from modernbert.model.choose import choose_linear
from modernbert.model.config import ModernBertConfig
from modernbert.model.linear import linear
from modernbert.runtime import Runtime, synchronize
from modernbert.train.devices import device_of_driver


def peak_flops(config: ModernBertConfig, runtime: Runtime, num_tokens: int) -> tuple[float, str]:
    """The peak rate and its source.

    The data sheet's for a GPU in the table running in half precision; otherwise the best rate that matrix products of the
    model's own shapes reach here, measured in about half a second.
    """
    if runtime.device.type == "cuda" and runtime.dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(runtime.device)
        if device := device_of_driver(name):
            return device.peak_flops, f"data sheet of {name}, {str(runtime.dtype).removeprefix('torch.')}"
    d, i = config.hidden_size, config.intermediate_size
    shapes = [(d, 3 * d), (d, d), (d, 2 * i), (i, d), (d, config.vocab_size)]
    best = max(_gemm_rate(min(num_tokens, 4096), k, n, runtime) for k, n in shapes)
    return best, "best matrix product of the model's shapes, measured"


def _gemm_rate(m: int, k: int, n: int, runtime: Runtime, seconds: float = 0.1) -> float:
    a = torch.randn(m, k, device=runtime.device, dtype=runtime.dtype)
    b = torch.randn(n, k, device=runtime.device, dtype=runtime.dtype)
    path = choose_linear(runtime.device, runtime.dtype, gradients=False).path
    best, stop_at = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        linear(a, b, None, path)
        while time.perf_counter() < stop_at:
            synchronize(runtime.device)
            started_at = time.perf_counter()
            linear(a, b, None, path)
            synchronize(runtime.device)
            best = min(best, time.perf_counter() - started_at)
    return 2.0 * m * k * n / best
