"""A competitor and a batch → the memory that a forward pass takes above the weights, at its peak.

    python -m modernbert.evaluate.memory '{"name": "bert", "model": "base", …}'

On a CPU in a process of its own: model, a forward pass over 8 tokens, then the resident size and its highest value
during one forward pass over all rows (Linux: VmRSS, and VmHWM after it was set back). Elsewhere the operating system
knows only the highest value since the process began, so only what exceeds that is counted, and the result says so. On
CUDA PyTorch's allocator counts exactly, so no process is needed.

Price: some 10 s a competitor, of which most is importing and drawing weights.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from modernbert.errors import ModernBertError
from modernbert.evaluate.loads import Rows
from modernbert.evaluate.machine import release_memory, tune_malloc
from modernbert.evaluate.peers import Competitor, compete
from modernbert.runtime import Runtime, synchronize

_ROWS, _LENGTH = 32, 512
_QUICK_ROWS, _QUICK_LENGTH = 4, 32

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_of(
    names: Sequence[str],
    model: str,
    runtime: Runtime,
    *,
    quick: bool = False,
    malloc: bool = False,
    own_process: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Peak memory above the weights of each competitor, 32 texts of 512 tokens in one forward pass.

    Args:
        names: the first is ours, the others are compared with it.
        model: preset, folder or hub name.
        runtime: device, dtype, threads.
        quick: narrow models, 4 texts of 32 tokens.
        malloc: have malloc keep freed memory.
        own_process: None is a process for each but on CUDA.
        say: told in a line what was found.
    """
    num_rows, length = (_QUICK_ROWS, _QUICK_LENGTH) if quick else (_ROWS, _LENGTH)
    apart = runtime.device.type != "cuda" if own_process is None else own_process

    def one(name: str) -> dict[str, Any]:
        if apart:
            return probe_in_own_process(
                name, model=model, runtime=runtime, num_rows=num_rows, length=length, quick=quick, malloc=malloc
            )
        competitor = compete(name, model, runtime, longest=length, quick=quick)
        return probe(competitor, even_rows(num_rows, length), runtime.device)

    while True:
        try:
            found = {name: one(name) for name in names}
            break
        except torch.OutOfMemoryError:  # fewer for all alike
            if num_rows == 1:
                raise
            num_rows //= 2
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors
    ours = max(found[names[0]]["above_bytes"], 1)
    for name, result in found.items():
        result["ratio"] = result["above_bytes"] / ours
        say(f"peak memory: {name} {result['above_bytes'] / 2**20:,.0f} MiB above its weights")
    return {
        "rows": num_rows,
        "length": length,
        "how": found[names[0]]["how"],
        "competitors": [{"name": name, **result} for name, result in found.items()],
    }


def probe(competitor: Competitor, rows: Rows, device: torch.device) -> dict[str, Any]:
    """Bytes above what was taken before, in this process.

    Returns:
        above_bytes; before_bytes (the whole process, with the model and what its first forward pass keeps, such as our
        packed copy of the weights; CUDA: what tensors held); weights_bytes; how.
    """
    small, all_rows = competitor.prepare([rows[0][:8]], device), competitor.prepare(rows, device)
    with torch.inference_mode():
        small()
        synchronize(device)
        release_memory()
        meter = _CudaMeter(device) if device.type == "cuda" else _ProcessMeter()
        all_rows()
        synchronize(device)
        above = meter.peak() - meter.before
    weights = sum(parameter.nbytes for parameter in competitor.module.parameters())
    return {"above_bytes": above, "before_bytes": meter.before, "weights_bytes": weights, "how": meter.how}


def probe_in_own_process(
    name: str, *, model: str, runtime: Runtime, num_rows: int, length: int, quick: bool, malloc: bool
) -> dict[str, Any]:
    """`probe`, in a fresh process with as many threads.

    Raises:
        ModernBertError: what that process said before it ended.
    """
    request = {
        "name": name, "model": model, "device": str(runtime.device), "dtype": str(runtime.dtype).removeprefix("torch."),
        "threads": runtime.num_threads, "rows": num_rows, "length": length, "quick": quick, "malloc": malloc,
    }  # fmt: skip
    checkout = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (checkout, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "modernbert.evaluate.memory", json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ModernBertError(f"memory of {name}: its process ended with {last}; say --no-memory to go without")
    return json.loads(done.stdout.splitlines()[-1])


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the fresh process does."""
    if request["malloc"]:
        tune_malloc()
    runtime = Runtime.detect(device=request["device"], precision=request["dtype"], num_threads=request["threads"])
    competitor = compete(
        request["name"], request["model"], runtime, longest=request["length"], quick=request["quick"]
    )  # fmt: skip
    return probe(competitor, even_rows(request["rows"], request["length"]), runtime.device)


def even_rows(num_rows: int, length: int) -> Rows:
    """Texts of one length; ids do not matter."""
    return [[(7 * row + position) % 500 + 1 for position in range(length)] for row in range(num_rows)]


class _CudaMeter:
    how = "PyTorch's CUDA allocator"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self.before = torch.cuda.memory_allocated(device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)


class _ProcessMeter:
    def __init__(self) -> None:
        try:
            _RESET.write_text("5")
            self.before, self.how = _status("VmRSS"), "VmHWM set back to VmRSS before the forward pass"
        except OSError:
            self.before, self.how = _highest(), "what exceeds the process's highest size before the forward pass"

    def peak(self) -> int:
        return _status("VmHWM") if self.how.startswith("VmHWM") else _highest()


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.loads(sys.argv[1]))) + "\n")
