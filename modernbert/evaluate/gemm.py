"""A model's shape and a number of rows → the best rate at which this machine multiplies such matrices, by path.

The yardstick of `modernbert bench`: the four products of a layer (Wqkv, Wo, Wi, Wo of the MLP), timed between the rounds
of a load, so that a slow minute of a shared machine hits both. A path's rate is the operations of the four over the sum
of their median times: what a model that did nothing but its linear layers would reach. Weights are the same in every
sample and so lie in the cache, which favours the yardstick where rows are few.

Paths: `plain` (F.linear), and for float32 on a CPU `onednn` with the weight as it is, `packed` with the weight in oneDNN's
order, and `numpy` (OpenBLAS, in a process of its own).

Price: a sample is 4 products × 4 calls a path, at 2,048 rows of base some 1,500 tokens of the model.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.errors import ModernBertError
from modernbert.model.config import ModernBertConfig
from modernbert.model.linear import onednn_is_built_in, onednn_linear
from modernbert.runtime import Runtime, synchronize

Shape = tuple[int, int, int]
"""M rows of K → N columns: 2 · M · K · N operations."""

_REPEATS = 3
_MOST_ROWS = {"cpu": 2048, "cuda": 16384}  # more are no faster


class NumpyProducts:
    """numpy's float32 products, timed in another process for as long as this is open."""

    def __init__(self, num_threads: int) -> None:
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), str(num_threads))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("numpy_gemm.py"))],
            env={**os.environ, **threads, "OPENBLAS_THREAD_TIMEOUT": "4"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def time(self, shapes: Sequence[Shape], repeats: int) -> list[list[float]]:
        """Seconds of each shape's product, `repeats` times."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"shapes": shapes, "repeats": repeats}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ModernBertError("the process that times numpy's products has ended; it said why above")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it


class Yardstick:
    """Samples of the products of one load.

    Args:
        config: whose layers.
        num_rows: tokens that a forward pass of the load has; what is above 2,048 (CUDA: 16,384) is left out.
        runtime: device and dtype.
        numpy: None leaves that path out.
    """

    def __init__(
        self, config: ModernBertConfig, num_rows: int, runtime: Runtime, numpy: NumpyProducts | None = None
    ) -> None:
        m = min(num_rows, _MOST_ROWS.get(runtime.device.type, num_rows))
        d, i = config.hidden_size, config.intermediate_size
        self.shapes: list[Shape] = [(m, d, 3 * d), (m, d, d), (m, d, 2 * i), (m, i, d)]
        self._runtime, self._numpy = runtime, numpy
        self._calls = _calls(self.shapes, runtime)
        paths = [*self._calls, *(["numpy"] if numpy else [])]
        self.seconds: dict[str, list[list[float]]] = {path: [[] for _ in self.shapes] for path in paths}

    @torch.inference_mode()
    def sample(self) -> None:
        """Time every path on every shape."""
        for path, calls in self._calls.items():
            for seconds, call in zip(self.seconds[path], calls, strict=True):
                seconds += self._time(call)
        if self._numpy:
            for seconds, found in zip(self.seconds["numpy"], self._numpy.time(self.shapes, _REPEATS), strict=True):
                seconds += found

    def rates(self) -> dict[str, float]:
        """FLOP/s of each path."""
        flops = sum(2.0 * m * k * n for m, k, n in self.shapes)
        return {path: flops / sum(map(statistics.median, seconds)) for path, seconds in self.seconds.items()}

    def _time(self, call: Callable[[], Tensor]) -> list[float]:
        found = []
        for warm in (False, *(True,) * _REPEATS):
            synchronize(self._runtime.device)
            started_at = time.perf_counter()
            call()
            synchronize(self._runtime.device)
            if warm:
                found.append(time.perf_counter() - started_at)
        return found


def _calls(shapes: Sequence[Shape], runtime: Runtime) -> dict[str, list[functools.partial[Tensor]]]:
    def draw(*size: int) -> Tensor:
        return torch.randn(*size, device=runtime.device, dtype=runtime.dtype)

    operands = [(draw(m, k), draw(n, k)) for m, k, n in shapes]
    calls = {"plain": [functools.partial(F.linear, x, w) for x, w in operands]}
    if runtime.device.type == "cpu" and runtime.dtype == torch.float32 and onednn_is_built_in():
        reorder = torch.ops.mkldnn._reorder_linear_weight.default
        calls["onednn"] = [functools.partial(onednn_linear, x, w) for x, w in operands]
        calls["packed"] = [functools.partial(onednn_linear, x, reorder(w, None)) for x, w in operands]
    return calls
