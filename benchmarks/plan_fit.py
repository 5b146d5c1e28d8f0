"""Published hours of six encoders → the two fitted constants of `modernbert.train.roofline`, and how far off it then is.

    python benchmarks/plan_fit.py

Prints the table of results/LOG.md: the hours each size is said to take, by the constants fitted to all six and by those
fitted to the other five. Runs in seconds; no GPU is used.
"""

from __future__ import annotations

import functools
import math

from modernbert.model.config import PRESETS
from modernbert.train.devices import named_device
from modernbert.train.roofline import Rates, exchange_seconds, micro_batch_seconds, optimizer_seconds

# JHU-CLSP/ettin-encoder-vs-decoder, pretraining/README.md (hours on four H100s) and its encoder configurations
# (sequences of a micro-batch). 1.7 T tokens at 1,024, then 0.3 T at 8,192; 4,608 × 1,024 tokens a step.
PUBLISHED_HOURS = {"tiny": 141, "mini": 212, "small": 300, "base": 470, "large": 950, "huge": 2170}
SEQUENCES = {"tiny": 144, "mini": 128, "small": 96, "base": 72, "large": 48, "huge": 24}
PHASES = ((1.7e12, 1024), (0.3e12, 8192))
STEP_TOKENS, COUNT = 4608 * 1024, 4


@functools.cache
def hours(preset: str, rates: Rates) -> float:
    """Of the whole run on four H100s."""
    config, device = PRESETS[preset], named_device("h100")
    tokens = SEQUENCES[preset] * 1024
    update = optimizer_seconds(config, device, rates) + exchange_seconds(config, device, COUNT)
    seconds = 0.0
    for budget, length in PHASES:
        a_token = micro_batch_seconds(config, tokens, length, 0.3, device, rates=rates) / tokens
        seconds += budget * (a_token / COUNT + update / STEP_TOKENS)
    return seconds / 3600


def fit(presets: list[str]) -> Rates:
    """Least squares of log ratios over a grid, 0.01 and 0.02 µs apart."""
    grid = [
        Rates(matrix_share=matrix / 100, host_seconds_per_token=host / 100 * 1e-6)
        for matrix in range(40, 96)
        for host in range(20, 132, 2)
    ]
    return min(grid, key=lambda rates: sum(math.log(hours(p, rates) / PUBLISHED_HOURS[p]) ** 2 for p in presets))


if __name__ == "__main__":
    names = list(PUBLISHED_HOURS)
    all_six = fit(names)
    print(all_six)
    print("| size | published h | predicted h | ratio | ratio, fitted to the other five |\n|---|--:|--:|--:|--:|")
    for name in names:
        others = fit([other for other in names if other != name])
        predicted = hours(name, all_six)
        ratios = [predicted / PUBLISHED_HOURS[name], hours(name, others) / PUBLISHED_HOURS[name]]
        print(f"| {name} | {PUBLISHED_HOURS[name]:,} | {predicted:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
