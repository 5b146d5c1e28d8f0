"""Shapes of matrix products on standard input → numpy's seconds for each, on standard output, one JSON line a request.

A process of its own, run as a file: numpy's OpenBLAS threads spin after each product and would halve PyTorch's speed
beside them. With OPENBLAS_THREAD_TIMEOUT=4, which must be set before numpy is imported, they sleep instead.
"""

import json
import sys
import time

import numpy as np


def main() -> None:
    """Answer `{"shapes": [[m, k, n], …], "repeats": r}` with `[[seconds, …], …]` until the input ends."""
    draw = np.random.default_rng(0)
    operands: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = []
        for m, k, n in request["shapes"]:
            if (m, k, n) not in operands:
                x, w = (draw.standard_normal(size, dtype=np.float32) for size in ((m, k), (k, n)))
                operands[m, k, n] = x, w, np.empty((m, n), dtype=np.float32)
            x, w, out = operands[m, k, n]
            np.matmul(x, w, out=out)  # untimed
            seconds = []
            for _ in range(request["repeats"]):
                started_at = time.perf_counter()
                np.matmul(x, w, out=out)
                seconds.append(time.perf_counter() - started_at)
            answer.append(seconds)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
