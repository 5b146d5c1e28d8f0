"""Whether a plan of this machine is right: `modernbert plan laptop --device here`, then the run itself, side by side.

    python benchmarks/plan_here.py SHARDS --minutes 5 --out results/plan_here.jsonl

A first plan says how many tokens take the wanted minutes; the recipe is planned again for so many, and then run with
the same settings. A plan counts steps and evaluations, so it is compared with the seconds in steps (the run's own count)
and those spent evaluating; wall-clock has start-up, the peak's measurement and the stalls of saves beside them.
Met: the plan is within 15 % of the run. Nothing else should use the machine meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corpora import keep

from modernbert import pretraining
from modernbert.console import Console
from modernbert.planning import plan_recipe
from modernbert.train.log import read_metrics

TOLERANCE = 0.15
ROUND_TOKENS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="a shard folder with some long documents")
    parser.add_argument("settings", nargs="*", help="key=value changes to the recipe, for plan and run alike")
    parser.add_argument("--recipe", default="laptop", help="one that states loop.tokens and shares of it")
    parser.add_argument("--minutes", type=float, default=5.0, help="that the run should take")
    parser.add_argument("--tokens", type=int, help="of the run, instead of minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="here", help="here, cpu, cuda or mps")
    parser.add_argument("--out", type=Path, help="append the result as a line of JSON")
    arguments = parser.parse_intermixed_args()
    settings = [f"data.path={arguments.shards}", *arguments.settings]
    tokens = arguments.tokens or tokens_for(arguments, settings)
    settings.append(f"loop.tokens={tokens}")
    planned = planned_by(arguments, settings)
    took = run(arguments, settings)
    working = took["step_seconds"] + took["evaluation_seconds"]
    ratio = 3600 * planned["hours"] / working
    print(
        f"{tokens:,} tokens: planned {3600 * planned['hours']:.0f} s, of which evaluating "
        f"{3600 * sum(phase['evaluation_hours'] for phase in planned['phases']):.0f}; took {working:.0f} s, of which "
        f"evaluating {took['evaluation_seconds']:.0f}, and {took['wall_seconds']:.0f} by the wall: planned over taken {ratio:.3f}"
    )
    result = {
        "recipe": arguments.recipe, "settings": arguments.settings, "tokens": tokens, "threads": arguments.threads,
        "planned": {name: planned[name] for name in ("hours", "steps", "mfu", "remarks", "phases")}, "took": took,
        "planned_over_taken": ratio, "met": abs(ratio - 1) <= TOLERANCE,
    }  # fmt: skip
    keep(result, arguments.out)


def planned_by(arguments: argparse.Namespace, settings: list[str]) -> dict[str, Any]:
    return plan_recipe(
        arguments.recipe, settings, device=arguments.device, num_threads=arguments.threads, console=Console(quiet=True)
    )


def tokens_for(arguments: argparse.Namespace, settings: list[str]) -> int:
    """How many tokens take the wanted minutes, by a plan of the recipe as it is."""
    whole = planned_by(arguments, settings)
    tokens = whole["tokens"] * arguments.minutes / 60 / whole["hours"]
    return max(1, round(tokens / ROUND_TOKENS)) * ROUND_TOKENS


def run(arguments: argparse.Namespace, settings: list[str]) -> dict[str, Any]:
    """Seconds of the run itself: in steps, evaluating, and by the wall; and those in steps of each phase."""
    evaluations: list[float] = []
    pretraining.evaluate_on = timed(pretraining.evaluate_on, evaluations)
    device = "auto" if arguments.device == "here" else arguments.device
    with tempfile.TemporaryDirectory() as folder:
        out, began_at = Path(folder, "run"), time.perf_counter()
        pretraining.pretrain_recipe(
            arguments.recipe, settings, out, device=device, num_threads=arguments.threads, console=Console(quiet=True)
        )
        wall = time.perf_counter() - began_at
        rows = [row for row in read_metrics(out) if row["kind"] == "train"]
    ends = {row["phase"]: row["seconds"] for row in rows}  # seconds count up over the run
    begins = dict(zip(ends, [0.0, *ends.values()], strict=False))
    return {
        "step_seconds": rows[-1]["seconds"], "evaluation_seconds": sum(evaluations), "wall_seconds": wall,
        "steps": len(rows), "tokens": rows[-1]["tokens"],
        "step_seconds_by_phase": {name: ends[name] - begins[name] for name in ends},
    }  # fmt: skip


def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same, noting how long each call takes."""

    def noting(*args: Any, **named: Any) -> Any:
        began_at = time.perf_counter()
        try:
            return call(*args, **named)
        finally:
            seconds.append(time.perf_counter() - began_at)

    return noting


if __name__ == "__main__":
    main()
