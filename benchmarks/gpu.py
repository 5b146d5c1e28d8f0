"""All that a GPU must show, in one command of under nine minutes.

    make gpu      or      python benchmarks/gpu.py --out results/gpu

Needs a checkout, PyTorch ≥ 2.11, transformers ≥ 5.17, tokenizers and safetensors; no network, no install. In order of weight:

1. environment: device, versions, which attention backend is chosen and why
2. parity: every attention backend in bfloat16, float16 and float32, and the whole model beside transformers'
3. bench: bfloat16, eight loads against transformers' ModernBERT, BERT-base and DeBERTa-v3-base
4. memory: peak above the weights; with 3 the four headline ratios
5. training: tokens a second of whole steps at 1,024, tiny to large
6. attention: the backends alone, and with flash attention 3 where PyTorch can be given it

Each finding is written to OUT/gpu.json and OUT/gpu.md at once, so that a cut-off loses nothing; what the time does not
reach is named. Exit status: 0; 1 where parity failed or a section broke; 2 where there is no such device.
`--device cpu --quick` runs all of it in miniature.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_tables import markdown, parity_table, passed

from modernbert.disk import write_whole
from modernbert.errors import ModernBertError
from modernbert.evaluate.machine import environment
from modernbert.evaluate.memory import memory_of
from modernbert.evaluate.parity import attention_parity, impossible, model_parity
from modernbert.evaluate.peers import OURS, PEERS, shape_of
from modernbert.evaluate.speed import Bench, about, measure_loads, sentence
from modernbert.evaluate.steps import attention_speed, training_speed
from modernbert.model.attention import BACKENDS
from modernbert.model.choose import activate_flash, choose_attention
from modernbert.runtime import Runtime

MIXES = ([1, 2, 3], [128, 256, 384], [5, 130, 1, 64, 1000], [8192, 1, 500])
QUICK_MIXES = ([1, 2, 3], [128, 1, 40])
HALF_WINDOWS = (None, 64, 1, 0)
LOADS = ("fixed-512", "mixed", "8192", "mixed-sorted", "queries", "latency", "2048", "mixed-8192")
SIZES = ("tiny", "small", "base", "large")

# The latest second, of 100, at which a section may begin another piece of work: room is left for those behind it.
LATEST = {"environment": 100, "parity": 30, "bench": 65, "memory": 75, "training": 94, "attention": 97}


class Session:
    """What was found so far, on disk at all times, and the time that is left.

    Args:
        out: the folder.
        seconds: for all of it.
        quick: everything in miniature.
        runtime: device and dtype.
    """

    def __init__(self, out: Path, seconds: float, quick: bool, runtime: Runtime) -> None:
        self.out, self.seconds, self.quick, self.runtime = out, seconds, quick, runtime
        self.began_at, self.section = time.monotonic(), "environment"
        self.found: dict[str, Any] = {"quick": quick, "skipped": [], "broken": {}}

    def has_time(self, for_what: str) -> bool:
        """Whether the section may begin another piece of work; what it may not is noted."""
        limit = self.seconds * LATEST[self.section] / 100
        if time.monotonic() - self.began_at < limit:
            return True
        self.found["skipped"].append(f"{self.section}: {for_what}, as {limit:.0f} s were over")
        print(f"not done: {self.found['skipped'][-1]}", flush=True)
        return False

    def save(self) -> None:
        """Write everything."""
        self.found["seconds"] = round(time.monotonic() - self.began_at, 1)
        write_whole(self.out / "gpu.json", json.dumps(self.found, indent=1) + "\n")
        write_whole(self.out / "gpu.md", markdown(self.found))

    def run(self, section: str, work: Callable[[Session], None]) -> None:
        """Do a section; one that breaks is noted and the others go on."""
        self.section = section
        print(f"\n{section} ({time.monotonic() - self.began_at:.0f} s)", flush=True)
        try:
            work(self)
        except Exception as error:  # noqa: BLE001 - whatever a driver or kernel raises must not cost what comes after
            traceback.print_exc()
            self.found["broken"][section] = " ".join(f"{type(error).__name__}: {error}".split())
        gc.collect()
        torch.cuda.empty_cache()
        self.save()


def look_around(session: Session) -> None:
    runtime = session.runtime
    chosen = {
        f"{str(dtype).removeprefix('torch.')}, {'with' if gradients else 'without'} gradients": " — ".join(
            choose_attention(runtime.device, dtype, 64, gradients=gradients)
        )
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for gradients in (False, True)
    }
    cuda = {}
    if runtime.device.type == "cuda":
        capability = torch.cuda.get_device_capability(runtime.device)
        cuda = {"capability": f"{capability[0]}.{capability[1]}", "cuda": torch.version.cuda}
    session.found["environment"] = {**environment(runtime), **cuda, "attention": chosen}
    for what, choice in chosen.items():
        print(f"{what}: {choice}")


def compare(session: Session) -> None:
    device, mixes = session.runtime.device, QUICK_MIXES if session.quick else MIXES
    rows = session.found["parity"] = {"attention": [], "models": [], "impossible": {}}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        why = {f"{b}, {name}": impossible(b, device, dtype) for b in BACKENDS}
        rows["impossible"] |= {which: reason for which, reason in why.items() if reason}
        for mix in mixes:
            if session.has_time(f"{name}, lengths {mix}"):
                rows["attention"] += attention_parity(device, dtype, mixes=[mix], half_windows=HALF_WINDOWS)
        session.save()
    config, lengths = shape_of("base", quick=session.quick), [200, 1, 70] if session.quick else [700, 1, 200, 128, 33]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if session.has_time(f"whole model, {dtype}"):
            rows["models"].append(model_parity(config, device, dtype, lengths))
            session.save()
    for line in parity_table(rows).rows:
        print(*line, sep="  ")


def race(session: Session) -> None:
    settings = Bench(loads=LOADS, seconds=0.0 if session.quick else 5.0, quick=session.quick, memory=False)
    record = session.found["bench"] = about(settings, session.runtime)
    entries = measure_loads(settings, session.runtime)
    for load in LOADS:
        if session.has_time(load):
            record["loads"].append(next(entries))
            print(sentence(record["loads"][-1]), flush=True)
            session.save()


def weigh(session: Session) -> None:
    if session.has_time("peak memory"):
        names = (OURS, *PEERS)
        session.found["bench"]["memory"] = memory_of(
            names, "base", session.runtime, quick=session.quick, own_process=False, say=print
        )


def train(session: Session) -> None:
    rows = session.found["training"] = []
    length, num_tokens, seconds = (64, 256, 0.1) if session.quick else (1024, 65536, 5.0)
    for name in SIZES:
        if session.has_time(name):
            config = shape_of(name, quick=session.quick)
            speed = training_speed(config, session.runtime, num_tokens=num_tokens, length=length, seconds=seconds)
            rows.append({"model": name, **speed})
            print(f"{name}: {speed['tokens_per_second']:,.0f} tokens/s, MFU {speed['mfu']:.0%}", flush=True)
            session.save()


def attend_alone(session: Session) -> None:
    shapes = ((2, 128), (1, 300)) if session.quick else ((128, 512), (8, 8192))
    rows = session.found["attention"] = []

    def time_all(flash: str) -> None:
        for documents, length in shapes:
            if session.has_time(f"{documents} × {length} tokens, {flash}"):
                found = attention_speed(
                    session.runtime, num_documents=documents, length=length, num_heads=12, head_size=64, half_window=64,
                    rounds=3 if session.quick else 20,
                )  # fmt: skip
                rows.extend({"flash": flash, **row} for row in found)

    time_all("PyTorch's own")
    reason = activate_flash("FA3")
    session.found["flash attention 3"] = reason or "activated"
    print(f"flash attention 3: {session.found['flash attention 3']}")
    if reason is None:
        try:
            time_all("FA3")
            compare_with = [m for m in (QUICK_MIXES if session.quick else MIXES) if sum(m) < 8192]
            session.found["parity with FA3"] = attention_parity(
                session.runtime.device, session.runtime.dtype, mixes=compare_with, half_windows=HALF_WINDOWS
            )
        finally:
            torch.nn.attention.restore_flash_attention_impl()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="all of it in miniature; measures nothing")
    parser.add_argument("--minutes", type=float, default=8.2, help="begin no work later; imports come before")
    arguments = parser.parse_args()
    try:
        if not arguments.quick and torch.device(arguments.device).type != "cuda":
            raise ModernBertError(f"--device {arguments.device} would take hours; add --quick, or use modernbert bench")
        runtime = Runtime.detect(device=arguments.device, num_threads=1 if arguments.quick else None)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (ModernBertError, RuntimeError, OSError) as error:
        sys.stderr.write(f"gpu.py: {' '.join(str(error).split())}\n")
        return 2
    session = Session(arguments.out, 60 * arguments.minutes, arguments.quick, runtime)
    for section, work in zip(LATEST, (look_around, compare, race, weigh, train, attend_alone), strict=True):
        session.run(section, work)
    print(f"\n{(arguments.out / 'gpu.md').read_text()}")
    return 0 if passed(session.found) else 1


if __name__ == "__main__":
    sys.exit(main())
