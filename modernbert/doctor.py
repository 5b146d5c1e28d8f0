"""The machine → what a run on it would use, and why."""

from __future__ import annotations

from typing import Any

import torch

from modernbert.evaluate.machine import memory_bytes, version_of
from modernbert.model.choose import AttentionChoice, LinearChoice, choose_attention, choose_linear
from modernbert.model.config import PRESETS
from modernbert.runtime import Runtime, cpu_units, precisions
from modernbert.train.peak import peak_flops

_PACKAGES = (
    "modernbert", "torch", "tokenizers", "safetensors", "numpy", "torch-optimi", "huggingface_hub", "transformers",
)  # fmt: skip


def examine(runtime: Runtime) -> dict[str, Any]:
    """Versions, hardware, a measured speed, and the choices that follow from them. Takes about a second."""
    peak, source = peak_flops(PRESETS["base"], runtime, 2048)
    return {
        "machine": {**runtime.describe(), "memory_bytes": memory_bytes()},
        "packages": {name: version_of(name) for name in _PACKAGES},
        "speed": {"flops_per_second": peak, "source": f"{source} (ModernBERT-base)"},
        "choices": _choices(runtime),
    }


def rows(found: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """What `examine` found, as rows of one table for a person: section, name, value."""
    shown: list[list[Any]] = []
    for section, entries in found.items():
        for name, value in entries.items():
            if name == "memory_bytes":
                name, value = "memory", f"{value / 2**30:.1f} GiB"
            elif name == "flops_per_second":
                name, value = "matrix products", f"{value / 1e9:,.0f} GFLOP/s"
            is_first = not shown or all(row[0] != section for row in shown)
            shown.append([section if is_first else "", name, "not installed" if value is None else value])
    return shown


def _choices(runtime: Runtime) -> dict[str, str]:
    on_cpu = runtime.device.type == "cpu"
    return {
        "device": f"{runtime.device.type}: " + ("no GPU is to be seen" if on_cpu else "found"),
        "precision": str(runtime.dtype).removeprefix("torch.") + (": others only on request" if on_cpu else ""),
        "bfloat16": _precision(runtime.device, torch.bfloat16),
        "float16": _precision(runtime.device, torch.float16),
        "attention": _said(choose_attention(runtime.device, runtime.dtype, 64, gradients=False)),
        "attention in training": _said(choose_attention(runtime.device, runtime.dtype, 64, gradients=True)),
        **({} if on_cpu else {"flash attention": "PyTorch's own; modernbert.model.choose.activate_flash for FA3"}),
        "linear layers": _said(choose_linear(runtime.device, runtime.dtype, gradients=False)),
        "linear layers in training": _said(choose_linear(runtime.device, runtime.dtype, gradients=True)),
        "compile": "never unasked; modernbert.model.compile does it on request",
    }


def _precision(device: torch.device, dtype: torch.dtype) -> str:
    """What there is against a precision here, or that nothing is."""
    against = precisions(device)[str(dtype).removeprefix("torch.")]
    units = cpu_units(dtype) if device.type == "cpu" else None
    return against or "to be had with --precision" + (f", this CPU has units for it ({units})" if units else "")


def _said(choice: AttentionChoice | LinearChoice) -> str:
    return f"{choice[0]}: {choice.reason}"
