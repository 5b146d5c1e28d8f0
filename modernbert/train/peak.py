"""Device and model shape → the best rate of floating-point operations to hope for, and where the figure is from."""

from __future__ import annotations

import time

import torch

from modernbert.model.choose import choose_linear
from modernbert.model.config import ModernBertConfig
from modernbert.model.linear import linear
from modernbert.runtime import Runtime, synchronize

# Dense bfloat16 tensor-core rates of the data sheets, without sparsity, in FLOP/s, by the driver's full name: cousins
# with similar names (H100 NVL, laptop versions) differ, so they are measured.
_DATA_SHEETS = {
    "NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA B200": 2250e12,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12, "NVIDIA A10": 125e12,
    "NVIDIA GeForce RTX 4090": 165e12, "NVIDIA GeForce RTX 3090": 71e12, "NVIDIA RTX A6000": 155e12,
}  # fmt: skip


def peak_flops(config: ModernBertConfig, runtime: Runtime, num_tokens: int) -> tuple[float, str]:
    """The peak rate and its source.

    The data sheet's for a GPU in the table running bfloat16; otherwise the best rate that matrix products of the
    model's own shapes reach here, measured in about half a second.
    """
    if runtime.device.type == "cuda" and runtime.dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(runtime.device)
        if name in _DATA_SHEETS:
            return _DATA_SHEETS[name], f"data sheet of {name}, bfloat16"
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
