"""Device and model shape → the best rate of floating-point operations to hope for, and where the figure is from."""

from __future__ import annotations

import time

import torch

from modernbert.model.config import ModernBertConfig
from modernbert.runtime import Runtime

# Dense bfloat16 tensor-core rates of the data sheets, without sparsity, in FLOP/s.
_DATA_SHEETS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "A10": 125e12,
    "L40S": 362e12, "L4": 121e12, "B200": 2250e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "RTX A6000": 155e12,
}  # fmt: skip


def peak_flops(config: ModernBertConfig, runtime: Runtime, num_tokens: int) -> tuple[float, str]:
    """The peak rate and its source.

    The data sheet's for a GPU in the table running bfloat16; otherwise the best rate that matrix products of the
    model's own shapes reach here, measured in about half a second.
    """
    if runtime.device.type == "cuda" and runtime.dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(runtime.device)
        for model, flops in _DATA_SHEETS.items():
            if model in name:
                return flops, f"data sheet of {model}, bfloat16"
    d, i = config.hidden_size, config.intermediate_size
    shapes = [(d, 3 * d), (d, d), (d, 2 * i), (i, d)]
    best = max(_gemm_rate(num_tokens, k, n, runtime) for k, n in shapes)
    return best, "best matrix product of the model's shapes, measured"


def _gemm_rate(m: int, k: int, n: int, runtime: Runtime, seconds: float = 0.1) -> float:
    a = torch.randn(m, k, device=runtime.device, dtype=runtime.dtype)
    b = torch.randn(n, k, device=runtime.device, dtype=runtime.dtype)
    best, stop_at = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        torch.nn.functional.linear(a, b)
        while time.perf_counter() < stop_at:
            _synchronize(runtime)
            started_at = time.perf_counter()
            torch.nn.functional.linear(a, b)
            _synchronize(runtime)
            best = min(best, time.perf_counter() - started_at)
    return 2.0 * m * k * n / best


def _synchronize(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    elif runtime.device.type == "mps":
        torch.mps.synchronize()
