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

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where one process computes."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; weights and optimizer stay float32
    num_threads: int

    @classmethod
    def detect(
        cls,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        num_threads: int | None = None,
    ) -> Runtime:
        """Choose what this machine offers, or check what was asked for.

        Args:
            device: `auto` takes CUDA where it is, then MPS, then the CPU.
            precision: `auto` is bfloat16 on GPUs that compute it, float32 elsewhere (on CPUs without
                bfloat16 units it is several times slower than float32).
            num_threads: CPU threads; None keeps PyTorch's choice.

        Raises:
            ConfigError: a device that is not there.
        """
        chosen = _device(device)
        if num_threads is not None:
            if num_threads < 1:
                raise ConfigError(f"num_threads={num_threads} must be at least 1")
            torch.set_num_threads(num_threads)
        if precision == "auto":
            has_bfloat16 = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bfloat16" if has_bfloat16 else "float32"
        return cls(
            device=chosen,
            dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[precision],
            num_threads=torch.get_num_threads(),
        )

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products in `dtype`; nothing where that is float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

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
        }


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
