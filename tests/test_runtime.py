"""Precision: what is chosen, what is warned of with its cost, and what is refused."""

import pytest
import torch

from modernbert import doctor
from modernbert.errors import ConfigError
from modernbert.runtime import Runtime, cpu_units, precisions

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
ZEN_5 = {"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": True}
SKYLAKE = {"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False}
ZEN_2 = {"architecture": "x86_64", "avx2": True, "avx512_f": False}
GRANITE_RAPIDS = {**ZEN_5, "amx_bf16": True, "amx_fp16": True, "avx512_fp16": True}
APPLE_M1 = {"architecture": "arm64", "neon": True, "bf16": False, "fp16_arith": True}


@pytest.fixture
def cpu(monkeypatch):
    """Have PyTorch find such a processor."""
    return lambda found: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)


@pytest.fixture
def gpu(monkeypatch):
    """Have PyTorch find a GPU, and say how it computes bfloat16."""

    def found(*, native, emulated):
        def is_supported(including_emulation=True):
            return native or (including_emulation and emulated)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some GPU")

    return found


def detect(precision, device="cpu"):
    return Runtime.detect(device=device, precision=precision)


@pytest.mark.parametrize("found", [ZEN_5, SKYLAKE, ZEN_2, GRANITE_RAPIDS, APPLE_M1])
def test_a_cpu_is_given_float32_unless_asked(cpu, found):
    cpu(found)
    assert detect("auto").dtype == torch.float32
    assert detect("auto").remarks() == []


def test_a_gpu_is_given_bfloat16_where_it_has_units_and_never_float16(gpu):
    gpu(native=True, emulated=True)
    assert detect("auto", "cuda").dtype == torch.bfloat16
    gpu(native=False, emulated=True)
    assert detect("auto", "cuda").dtype == torch.float32


@pytest.mark.parametrize(
    ("found", "cost"),
    [
        (ZEN_5, None),
        (GRANITE_RAPIDS, None),
        (SKYLAKE, "about 1.2 times as slow as float32 on a CPU without bfloat16 units"),
        (ZEN_2, "about 20 times as slow as float32 on a CPU without bfloat16 units"),
        (ZEN_2 | {"avx_ne_convert": True}, "by a factor that was not measured"),
        (APPLE_M1, "by a factor that was not measured"),
        (APPLE_M1 | {"bf16": True}, None),
    ],
)
def test_bfloat16_on_a_cpu_without_units_is_done_and_its_cost_is_said(cpu, found, cost):
    cpu(found)
    runtime = detect("bfloat16")
    assert runtime.dtype == torch.bfloat16
    if cost is None:
        assert runtime.remarks() == []
    else:
        (remark,) = runtime.remarks()
        assert cost in remark and remark.endswith("say precision float32") and "\n" not in remark


@pytest.mark.parametrize("found", [ZEN_5, SKYLAKE, ZEN_2])
def test_float16_on_a_cpu_without_units_is_refused_in_a_line(cpu, found):
    cpu(found)
    with pytest.raises(ConfigError, match=r"precision=float16.*without float16 units.*say float32") as refused:
        detect("float16")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("found", [GRANITE_RAPIDS, APPLE_M1])
def test_float16_on_a_cpu_with_units_is_taken_when_asked_for(cpu, found):
    cpu(found)
    assert detect("float16").dtype == torch.float16


def test_a_gpu_that_emulates_bfloat16_does_so_with_a_remark(gpu):
    gpu(native=False, emulated=True)
    (remark,) = detect("bfloat16", "cuda").remarks()
    assert "emulates" in remark


def test_a_gpu_that_cannot_even_emulate_bfloat16_is_refused_it_and_has_float16(gpu):
    gpu(native=False, emulated=False)
    with pytest.raises(ConfigError, match="Some GPU does not compute it; say float16 or float32"):
        detect("bfloat16", "cuda")
    assert detect("float16", "cuda").dtype == torch.float16
    assert detect("float16", "cuda").remarks() == []


@pytest.mark.parametrize("is_new", [True, False])
def test_mps_computes_bfloat16_from_macos_14_on_and_float16_always(monkeypatch, is_new):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda _major, _minor: is_new)
    assert detect("auto", "mps").dtype == torch.float32
    assert detect("float16", "mps").dtype == torch.float16
    if is_new:
        assert detect("bfloat16", "mps").dtype == torch.bfloat16
    else:
        with pytest.raises(ConfigError, match="macOS 14"):
            detect("bfloat16", "mps")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_run_in_the_precision_and_weights_stay_float32(dtype):
    runtime = Runtime(device=CPU, dtype=dtype, num_threads=1)
    layer = torch.nn.Linear(8, 8)
    with runtime.autocast():
        out = layer(torch.randn(4, 8))
    out.float().sum().backward()
    assert out.dtype == dtype and layer.weight.dtype == layer.weight.grad.dtype == torch.float32


@pytest.mark.skipif(not torch.cpu.get_capabilities()["architecture"].startswith("x86"), reason="x86 instructions")
def test_units_of_this_processor_are_those_that_pytorch_asks_it_for():
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu.get_capabilities()["amx_bf16"]
    assert (cpu_units(torch.bfloat16) is not None) is bool(has_bfloat16)


def test_doctor_says_what_there_is_against_each_precision(cpu):
    cpu(ZEN_2)
    assert precisions(CPU)["float32"] == ""
    choices = doctor.examine(Runtime(device=CPU, dtype=torch.float32, num_threads=1))["choices"]
    assert "20 times as slow" in choices["bfloat16"] and choices["float16"].startswith("refused: ")
    cpu(ZEN_5)
    assert precisions(CPU)["bfloat16"] == ""
    choices = doctor.examine(Runtime(device=CPU, dtype=torch.float32, num_threads=1))["choices"]
    assert "avx512_bf16" in choices["bfloat16"]
