"""Where and how a run computes: device, precision, threads. A value that is passed, never a global."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from modernbert.errors import ConfigError
from modernbert.ranks import ALONE, Ranks

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What a processor's own products in half precision are called by `torch.cpu.get_capabilities`, of x86 and of Arm.
_UNITS: dict[torch.dtype, tuple[str, ...]] = {
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where one process computes."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; weights and optimizer stay float32
    num_threads: int
    ranks: Ranks = ALONE  # among which this process computes

    @classmethod
    def detect(
        cls,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        num_threads: int | None = None,
        ranks: Ranks = ALONE,
    ) -> Runtime:
        """Choose what this machine offers, or check what was asked for.

        Args:
            device: `auto` takes CUDA where it is, then MPS, then the CPU.
            precision: `auto` is bfloat16 on CUDA GPUs with units for it, float32 elsewhere; float16, which needs its loss
                scaled, is never taken unasked. `remarks` says what a choice costs.
            num_threads: CPU threads; None keeps PyTorch's choice.
            ranks: of several on a machine, each takes the CUDA device of its number.

        Raises:
            ConfigError: a device that is not there, or a precision that it does not compute.
        """
        chosen = _device(device) if ranks.size == 1 else _device_of_rank(device, ranks)
        if num_threads is not None:
            if num_threads < 1:
                raise ConfigError(f"num_threads={num_threads} must be at least 1")
            torch.set_num_threads(num_threads)
        if precision == "auto":
            precision = "bfloat16" if chosen.type == "cuda" and _cuda_has_bfloat16() else "float32"
        dtype = _DTYPES[precision]
        if fault := _why_not(chosen, dtype):
            raise ConfigError(f"precision={precision}: {fault}")
        return cls(
            device=chosen,
            dtype=dtype,
            num_threads=torch.get_num_threads(),
            ranks=ranks,
        )

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products in `dtype`; nothing where that is float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def remarks(self) -> list[str]:
        """What a user should know of the choice: a precision that costs more here than it saves."""
        cost = cost_of(self.device, self.dtype)
        return [] if cost is None else [f"{cost}; say precision float32"]

    def describe(self) -> dict[str, str | int]:
        """What a result's reader wants to know of the machine."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return {
            "device": gpu or f"{self.device.type} ({cpu_name()})",
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.num_threads,
            "cores": os.cpu_count() or 0,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **({"device_count": self.ranks.size, "hosts": self.ranks.num_nodes} if self.ranks.size > 1 else {}),
        }


def cost_of(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why products in this precision are slow on this device; None where nothing is known against them.

    Forward and backward of `tiny`, 1,024 tokens, one thread of a Zen 5 (PyTorch 2.13), in times of float32: bfloat16 0.8
    with its units, 1.2 without them (oneDNN kept to AVX512_CORE_VNNI), 18 to 20 without AVX-512 (oneDNN and MKL kept to
    AVX2, or oneDNN off). float16 without units: 17 to 26. Arm and GPUs were not timed.
    """
    if dtype != torch.bfloat16:
        return None
    if device.type == "cuda":
        return None if _cuda_has_bfloat16() else "this GPU has no bfloat16 units and emulates it, which was not timed"
    if device.type != "cpu" or cpu_units(dtype) is not None:
        return None
    found, where = torch.cpu.get_capabilities(), f"a CPU without bfloat16 units ({cpu_name()})"
    if found.get("avx512_f"):
        return f"bfloat16 is about 1.2 times as slow as float32 on {where}"
    if found.get("avx2") and not found.get("avx_ne_convert"):
        return f"bfloat16 is about 20 times as slow as float32 on {where} and without AVX-512"
    return f"bfloat16 is slower than float32, by a factor that was not measured, on {where}"


def cpu_units(dtype: torch.dtype) -> str | None:
    """The instructions with which this CPU multiplies matrices of half precision; None where it has none."""
    found = torch.cpu.get_capabilities()
    return next((name for name in _UNITS[dtype] if found.get(name)), None)


def precisions(device: torch.device) -> dict[str, str]:
    """Each precision with what there is against it on a device: why it is refused, or what it costs; empty if nothing."""

    def against(dtype: torch.dtype) -> str:
        fault = _why_not(device, dtype)
        return f"refused: {fault}" if fault else cost_of(device, dtype) or ""

    return {name: against(dtype) for name, dtype in _DTYPES.items()}


def _why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a device does not compute in a precision, with the remedy."""
    if device.type == "cpu" and dtype == torch.float16 and cpu_units(dtype) is None:
        return f"a CPU without float16 units ({cpu_name()}) takes some 20 times as long as in float32; say float32"
    if dtype != torch.bfloat16:
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return f"{torch.cuda.get_device_name(device)} does not compute it; say float16 or float32"
    if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):  # autocast would switch itself off
        return "MPS computes it from macOS 14 on; say float16 or float32"
    return None


def _cuda_has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout for a while; each part is left in the mode it had."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU was given to do; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def cpu_name() -> str:
    """The processor as the operating system names it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device(name: str) -> torch.device:
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is no device; say auto, cpu, cuda, cuda:0 or mps") from error
    if device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise ConfigError(f"device={name!r} is not supported; say auto, cpu, cuda, cuda:0 or mps")
    is_there = {"cpu": True, "mps": has_mps, "cuda": (device.index or 0) < torch.cuda.device_count()}
    if not is_there[device.type]:
        raise ConfigError(f"device={name!r} is not on this machine (torch {torch.__version__}); say cpu")
    return device


def _device_of_rank(name: str, ranks: Ranks) -> torch.device:
    """The device of one rank of several: on CUDA that of its number on its machine."""
    kind = _device(name)
    if kind.type == "mps":
        raise ConfigError(f"device={name!r} serves one process, and {ranks.size} were launched; say cpu")
    if kind.type == "cpu":
        return kind
    if kind.index is not None:
        raise ConfigError(
            f"device={name!r} is one device for {ranks.size} ranks; say cuda, of which each takes its own"
        )
    if ranks.local_rank >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"rank {ranks.rank} is number {ranks.local_rank + 1} on {ranks.host}, which has {count} CUDA devices; launch one "
            "process a device (--nproc-per-node)"
        )
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Have PyTorch refuse, for a while, kernels whose result varies from run to run."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before its first use
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
