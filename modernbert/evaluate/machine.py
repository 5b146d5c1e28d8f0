"""Machine, checkout and versions → what the reader of a measurement must know; and malloc's habits."""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import modernbert
from modernbert.runtime import Runtime, cpu_name

_PACKAGES = ("torch", "transformers", "numpy", "tokenizers", "safetensors")

# glibc's mallopt: nothing below 1 GiB is given a mapping of its own, and no memory goes back to the system.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def environment(runtime: Runtime) -> dict[str, Any]:
    """Commit, date, command, hardware and versions."""
    device = runtime.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    versions = {name: version_of(name) for name in _PACKAGES}
    return {
        **commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": {
            "cpu": cpu_name(),
            "cores": os.cpu_count() or 0,
            "threads": runtime.num_threads,
            "simd": torch.backends.cpu.get_cpu_capability(),
            "memory_bytes": memory_bytes(),
            "gpu": gpu,
            "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory if gpu else None,
        },
        "versions": {"modernbert": modernbert.__version__, "python": platform.python_version(), **versions},
        "device": str(device),
        "dtype": str(runtime.dtype).removeprefix("torch."),
    }


def commit() -> dict[str, Any]:
    """`commit` and whether tracked files differ from it (`dirty`); both None where this is no checkout."""
    checkout = Path(modernbert.__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == checkout:
            changed = git("status", "--porcelain", "--untracked-files=no")
            return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        pass
    return {"commit": None, "dirty": None}


def described_commit() -> str | None:
    """The same in a word, such as `1a2b3c4d5e6f-dirty`."""
    found = commit()
    return f"{found['commit']}{'-dirty' if found['dirty'] else ''}" if found["commit"] else None


def memory_bytes() -> int:
    """The machine's memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def usable_memory_bytes(device: torch.device) -> int:
    """What a process may have of a device's memory; on a CPU the machine's, or what its control group is given of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return min([memory_bytes(), *cgroup_limits()])


def cgroup_limits(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes of memory that each control group around this process may take, of either version."""
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, group in entries:
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inner = top / group.lstrip("/")
        for folder in [inner, *inner.parents][: len(inner.parts) - len(top.parts) + 1]:
            try:
                yield int((folder / file).read_text())
            except (OSError, ValueError):  # not there, or "max"
                continue


def tune_malloc() -> bool:
    """Have glibc keep freed memory: otherwise a tensor above 32 MiB faults in all its pages anew at each operation.

    Returns:
        Whether this is glibc and took it. Holds for the whole process, whose memory then never shrinks.
    """
    libc = _glibc()
    if libc is None:
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def release_memory() -> None:
    """Give what is free back to the system, so that its use again shows."""
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:
        return None


def version_of(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
