"""A device's name → what its data sheet says: the one table of named hardware.

Rates are dense bfloat16 matrix rates, without sparsity; a link is one direction between neighbours in one machine
(NVLink or Infinity Fabric, else PCIe); memory is what the driver leaves to programs, in GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from modernbert.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator as its maker describes it."""

    name: str  # as `--device` takes it
    peak_flops: float  # a second, bfloat16
    bytes_per_second: float  # of its memory
    memory_bytes: float
    link_bytes_per_second: float
    drivers: tuple[str, ...]  # the full names a driver may give
    calibrated: bool = False  # whether published training runs on it were compared with `roofline`

    @property
    def source(self) -> str:
        """Where the figures are from, for a reader."""
        if self.calibrated:
            return "data sheet, calibrated on six published training runs"
        return "data sheet; scaled from the H100 by data-sheet rates; not measured"


def _device(name: str, teraflops: float, gigabytes: float, gib: float, link: float, *drivers: str) -> Device:
    return Device(
        name=name, peak_flops=teraflops * 1e12, bytes_per_second=gigabytes * 1e9, memory_bytes=gib * GIB,
        link_bytes_per_second=link * 1e9, drivers=drivers, calibrated=name == "h100",
    )  # fmt: skip


# Cousins with similar names (H100 NVL, laptop versions) differ, so drivers' names are given in full.
DEVICES = {
    device.name: device
    for device in (
        #        name     TFLOP/s  GB/s   GiB  GB/s each way
        _device("h100", 989, 3350, 79, 450, "NVIDIA H100 80GB HBM3"),
        _device("h100-pcie", 756, 2000, 79, 64, "NVIDIA H100 PCIe"),
        _device("h200", 989, 4800, 140, 450, "NVIDIA H200"),
        _device("b200", 2250, 8000, 178, 900, "NVIDIA B200"),
        _device("a100-40", 312, 1555, 39, 300, "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        _device("a100-80", 312, 2039, 79, 300, "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        _device("l40s", 362, 864, 44, 32, "NVIDIA L40S"),
        _device("l4", 121, 300, 22, 32, "NVIDIA L4"),
        _device("a10", 125, 600, 22, 32, "NVIDIA A10"),
        _device("rtx4090", 165, 1008, 23.5, 32, "NVIDIA GeForce RTX 4090"),
        _device("rtx3090", 71, 936, 23.5, 32, "NVIDIA GeForce RTX 3090"),
        _device("a6000", 155, 768, 47, 32, "NVIDIA RTX A6000"),
        _device("mi300x", 1307, 5300, 191, 448, "AMD Instinct MI300X"),
    )
}


HERE = ("here", "auto", "cpu", "cuda", "mps")  # names of what is in front, to be measured


def is_here(name: str) -> bool:
    """Whether a name means the machine in front."""
    return name.partition(":")[0] in HERE


def named_device(name: str) -> Device:
    """The device of this name.

    Raises:
        ConfigError: no such device in the table.
    """
    try:
        return DEVICES[name.lower()]
    except KeyError as error:
        raise ConfigError(
            f"device={name!r} is not known; known are {', '.join(DEVICES)}, and here, cpu, cuda or mps, which are measured"
        ) from error


def device_of_driver(full_name: str) -> Device | None:
    """The device that a driver calls so, if the table has it."""
    return next((device for device in DEVICES.values() if full_name in device.drivers), None)
