"""Device, dtype, shape → which attention backend and which path for linear layers, each with its reason.

Nothing here compiles or downloads. The only thing measured is the path of linear layers without gradients: once a
process, in some 50 ms, at the first use on a CPU. Where gradients flow the choice follows from the processor alone,
so that a run that goes on after an interruption computes with the same operators, to the bit.
"""

from __future__ import annotations

import functools
import inspect
import statistics
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch

from modernbert.model.attention import Backend
from modernbert.model.linear import Linear, LinearPath, onednn_is_built_in

_HALF = (torch.float16, torch.bfloat16)
_AMPERE = (8, 0)

# Head by head oneDNN reaches half of its peak and SDPA three quarters of MKL's, so the peaks must differ by this much.
_GAIN_FOR_HEADS = 1.5


_ONE_AT_A_TIME = threading.Lock()  # two threads that measure at once would spoil each other's figures


class AttentionChoice(NamedTuple):
    """A backend and why."""

    backend: Backend
    reason: str


class LinearChoice(NamedTuple):
    """A path and why."""

    path: LinearPath
    reason: str
    gain: float = 1.0  # over `plain`, where it was measured


def choose_attention(device: torch.device, dtype: torch.dtype, head_size: int, *, gradients: bool) -> AttentionChoice:
    """The backend for queries of this dtype on this device."""
    if device.type == "cpu" and not gradients and choose_linear(device, dtype, gradients=False).gain >= _GAIN_FOR_HEADS:
        return AttentionChoice("onednn", "windows in chunks over SDPA, long documents head by head over oneDNN")
    if device.type != "cuda":
        return AttentionChoice("blocked", "windows in chunks, whole documents by themselves, over SDPA")
    capability = torch.cuda.get_device_capability(device)
    return _choose_on_cuda(dtype, head_size, capability, has_windows=varlen_has_windows())


def _choose_on_cuda(
    dtype: torch.dtype, head_size: int, capability: tuple[int, int], *, has_windows: bool
) -> AttentionChoice:
    reasons = {
        f"PyTorch {torch.__version__} has no variable-length attention with a window": not has_windows,
        f"flash attention needs compute capability 8.0 and this GPU has {capability[0]}.{capability[1]}": capability
        < _AMPERE,
        f"flash attention computes in bfloat16 or float16, not {_name(dtype)}": dtype not in _HALF,
        f"flash attention takes heads of a multiple of 8 up to 256, not {head_size}": head_size > 256 or head_size % 8,
    }
    for reason, holds in reasons.items():
        if holds:
            return AttentionChoice("blocked", f"{reason}; windows in chunks, whole documents by themselves, over SDPA")
    return AttentionChoice("varlen", "PyTorch's variable-length flash attention, with its window")


@functools.cache
def varlen_has_windows() -> bool:
    """Whether this PyTorch's `varlen_attn` takes a window: 2.10 does not, 2.12 does, so it is asked."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def activate_flash(name: str = "FA3") -> str | None:
    """Have PyTorch's flash attention, and so `varlen`, run another implementation in this process, where one is installed.

    Never done unasked: it holds for everything in the process. `torch.nn.attention.restore_flash_attention_impl` undoes it.

    Returns:
        Why not, or None.
    """
    import torch.nn.attention as attention

    if not hasattr(attention, "activate_flash_attention_impl"):
        return f"PyTorch {torch.__version__} cannot exchange its flash attention"
    try:
        attention.activate_flash_attention_impl(name)
    except Exception as error:  # noqa: BLE001 - whatever the implementation's own import raises
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def choose_linear(device: torch.device, dtype: torch.dtype, *, gradients: bool) -> LinearChoice:
    """The path of linear layers for activations of this dtype on this device."""
    if device.type != "cpu":
        return LinearChoice("plain", f"{device.type}: PyTorch's own")
    if dtype != torch.float32:
        return LinearChoice("plain", f"oneDNN's path is for float32, not {_name(dtype)}")
    if not onednn_is_built_in():
        return LinearChoice("plain", f"PyTorch {torch.__version__} was built without oneDNN's linear operators")
    return _choose_with_gradients() if gradients else _choose_by_measuring()


@functools.cache
def _choose_with_gradients() -> LinearChoice:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and _cpu_vendor() not in ("GenuineIntel", None):
        return LinearChoice("onednn", f"MKL keeps to AVX2 on {_cpu_vendor()} processors, oneDNN uses AVX-512")
    return LinearChoice("plain", "oneDNN is preferred on AVX-512 processors that are not Intel's; this is none")


def _choose_by_measuring() -> LinearChoice:
    with _ONE_AT_A_TIME:
        return _measured()


@functools.cache
def _measured() -> LinearChoice:
    seconds = measure_linear()
    path = min(seconds, key=seconds.__getitem__)
    figures = ", ".join(f"{other} {seconds[other] / seconds['plain']:.2f}" for other in seconds if other != "plain")
    return LinearChoice(
        path, f"measured here, as shares of the time of F.linear: {figures}", seconds["plain"] / seconds[path]
    )


def measure_linear(rows: int = 512, *, rounds: int = 7) -> dict[LinearPath, float]:
    """Median seconds of one product of ModernBERT-base (768 → 2,304) on each path, interleaved."""
    samples: dict[LinearPath, list[float]] = {"plain": [], "onednn": [], "packed": []}
    draw = torch.Generator().manual_seed(0)
    # Not in the caller's inference mode: what is made there cannot be packed.
    with torch.inference_mode(False), torch.no_grad():
        layer = Linear(768, 2304, bias=False, device="meta").to_empty(device="cpu")
        layer.weight.normal_(generator=draw)
        x = torch.randn(rows, 768, generator=draw)
        for is_warm in [False, *[True] * rounds]:
            for path, taken in samples.items():
                started_at = time.perf_counter()
                layer(x, path)
                if is_warm:
                    taken.append(time.perf_counter() - started_at)
        assert layer.packs(x, "packed")
    return {path: statistics.median(taken) for path, taken in samples.items()}


@functools.cache
def _cpu_vendor() -> str | None:
    """`GenuineIntel`, `AuthenticAMD`, …; None where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
