"""What several ranks cost: their speed beside one process's, the share of a step spent sending, and what saves take.

    python benchmarks/ranks.py --out results/ranks.jsonl                     # all three
    python benchmarks/ranks.py speed saves --shape mini --out results/ranks.jsonl

All of it is the command `modernbert pretrain` on one machine: one process with `--ranks` threads, and as many ranks of
one thread under torchrun, by DDP and by FSDP2; the same recipe, the same tokens a step. Nothing else should use the machine.

- speed: fresh runs in turns, whose order is reversed each round; of each the median of its steps' tokens a second, behind
  the first ones; ratios to one process are taken within a round.
- exchange: the share of a step that is gone when ranks send nothing: within one run, steps that exchange gradients and
  weights beside steps that make the same copies and keep silent (A B B A). Not a profiler's sum of collectives: gloo's
  threads work while the backward pass does, and take its cores; what a step would gain is the question. Waiting for a
  slower rank is no sending: `agreeing` is the share of a step spent in the small exchanges where ranks wait for each other.
- saves: of the model `--save-shape`, weights and optimizer. Saves in turns: in the background, as they are, and waited
  for (`synchronous`). `stall`: how long the run stands still; `write`: behind that, until all is on the disk (fsync);
  `beside write`: the steps that were under way meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
from corpora import add_arguments, corpora_of, keep, shards_of
from kill_ranks import Command
from ranks_inside import IS_SILENT

from modernbert.train.log import read_metrics

INSIDE = Path(__file__).with_name("ranks_inside.py")
ALONE = "1 process"


def recipe(
    shape: str, folders: Mapping[str, Path], *, length: int, micro_batch_tokens: int, step_tokens: int, steps: int,
    lr: float = 1e-4, save_steps: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A phase of constant size that looks at held-out text and saves as little as it may, or every so many steps."""
    tokens = steps * step_tokens
    return {
        "model": {"preset": shape},
        "data": {"sources": {name: str(folder.resolve()) for name, folder in folders.items()}},
        "loop": {
            "tokens": tokens, "eval_tokens": "100%", "eval_size_tokens": micro_batch_tokens, "keep_every": 0, "keep_last": 1,
            "checkpoint_tokens": (save_steps or steps) * step_tokens, "checkpoint_minutes": 1e6,
        },
        "guard": {"spike_deviations": 1e9},
        "phases": [{
            "name": "stable", "sequence_length": length, "micro_batch_tokens": micro_batch_tokens,
            "tokens_per_step": step_tokens, "lr": lr,
        }],
    }  # fmt: skip


def commands_of(values: dict[str, Any], work: Path, arguments: argparse.Namespace) -> dict[str, Command]:
    """A recipe for one process and for ranks, with the same threads in all."""
    path = work / "recipe.toml"
    path.write_text(tomli_w.dumps(values))
    alone = Command(recipe=path, out=work / "run", threads=arguments.ranks)
    ranks = {
        f"{arguments.ranks} ranks, {strategy}": replace(alone, threads=1, ranks=arguments.ranks, strategy=strategy)
        for strategy in arguments.strategies.split(",")
    }
    return {ALONE: alone, **ranks}


def rows_of(
    command: Command, work: Path, watch: str | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A run in a folder that is then removed: its metrics, and what was seen inside."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        words = command.words if watch is None else (str(INSIDE), watch)
        taken = replace(command, out=Path(folder, "run"), words=words)
        taken.finish()
        seen = [] if watch is None else json.loads(taken.out.with_suffix(".json").read_text())
        return read_metrics(taken.out), seen


def of_steps(arguments: argparse.Namespace, folders: Mapping[str, Path], **changes: Any) -> dict[str, Any]:
    return recipe(
        arguments.shape, folders, length=1024, micro_batch_tokens=arguments.micro_batch_tokens,
        step_tokens=arguments.step_tokens, **changes,
    )  # fmt: skip


def about_steps(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("shape", "data", "micro_batch_tokens", "step_tokens")}


def speed(arguments: argparse.Namespace, folders: Mapping[str, Path], work: Path) -> dict[str, Any]:
    values = of_steps(arguments, folders, steps=arguments.warmup_steps + arguments.steps)
    commands = commands_of(values, work, arguments)
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for round_ in range(arguments.rounds):
        for name in list(commands) if round_ % 2 == 0 else list(commands)[::-1]:
            steps = [row for row in rows_of(commands[name], work)[0] if row["kind"] == "train"]
            rates[name].append(statistics.median(row["tokens_per_second"] for row in steps[arguments.warmup_steps :]))
            print(f"  round {round_}: {name:16s} {rates[name][-1]:9,.0f} tokens/s", flush=True)
    ratios = {
        name: spread(a / b for a, b in zip(rates[name], rates[ALONE], strict=True)) for name in rates if name != ALONE
    }
    tell({name: {"tokens/s": spread(taken)} for name, taken in rates.items()}, "{:,.0f}")
    tell({name: {"of one process": ratio} for name, ratio in ratios.items()})
    return {
        **about_steps(arguments),
        "rates": {name: spread(taken) for name, taken in rates.items()},
        "over_one_process": ratios,
    }


def exchange(arguments: argparse.Namespace, folders: Mapping[str, Path], work: Path) -> dict[str, Any]:
    first = -(-arguments.warmup_steps // len(IS_SILENT)) * len(IS_SILENT)
    steps = first + arguments.pairs * 2
    # A rate of next to nothing: in silent steps each rank has gradients of its own.
    commands = commands_of(of_steps(arguments, folders, steps=steps + 1, lr=1e-9), work, arguments)
    found = {}
    for name, command in commands.items():
        if name == ALONE:
            continue
        _, seen = rows_of(command, work, "exchange")
        pairs = [sorted(seen[i : i + 2], key=lambda step: step["silent"]) for i in range(first, len(seen) - 1, 2)]
        found[name] = {
            "step_seconds": spread(loud["seconds"] for loud, _ in pairs),
            "silent_step_seconds": spread(silent["seconds"] for _, silent in pairs),
            "share": spread(1 - silent["seconds"] / loud["seconds"] for loud, silent in pairs),
            "agreeing_share": spread(loud["agreeing_seconds"] / loud["seconds"] for loud, _ in pairs),
        }
    tell(found, "{:.3f}")
    return {**about_steps(arguments), "exchange": found}


def saves(arguments: argparse.Namespace, folders: Mapping[str, Path], work: Path) -> dict[str, Any]:
    values = recipe(
        arguments.save_shape, folders, length=256, micro_batch_tokens=256, step_tokens=256 * arguments.ranks, lr=1e-6,
        steps=(2 * arguments.saves + 1) * arguments.save_steps, save_steps=arguments.save_steps,
    )  # fmt: skip
    found = {
        name: of_saves(*rows_of(command, work, "saves"))
        for name, command in commands_of(values, work, arguments).items()
    }
    tell(found)
    return {"save_shape": arguments.save_shape, "saves": found}


def of_saves(rows: list[dict[str, Any]], seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a run's saves, but of the first, which has no optimizer yet, and of the last, which no step follows."""
    synchronous = {save["step"]: save["synchronous"] for save in seen}
    under_way: int | None = None  # the step behind which the save was made that is being written
    steps: dict[bool, list[float]] = {True: [], False: []}  # by whether a save was being written
    written = {}
    for row in rows:
        if row["kind"] == "train":
            steps[under_way is not None].append(row["step_seconds"])
            under_way = row["step"] if synchronous.get(row["step"]) is False else under_way
        elif row["kind"] == "save":
            written[row["step"]], under_way = row["write_seconds"], None
    taken = seen[1:-1]
    return {
        "stall_seconds": spread(save["stall_seconds"] for save in taken if not save["synchronous"]),
        "write_seconds": spread(written[save["step"]] for save in taken if not save["synchronous"]),
        "synchronous_seconds": spread(save["stall_seconds"] for save in taken if save["synchronous"]),
        "step_seconds": spread(steps[False][1:]),
        "step_seconds_beside_write": spread(steps[True]),
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "of": len(values)}


def tell(found: Mapping[str, Mapping[str, Mapping[str, float]]], form: str = "{:.2f}") -> None:
    """A line for each figure of each command: the median, and from where to where."""
    for name, figures in found.items():
        for what, of in figures.items():
            median, least, most = (form.format(of[key]) for key in ("median", "least", "most"))
            print(f"{name:16s} {what.replace('_', ' '):28s} {median:>9s}  ({least} … {most})", flush=True)


SECTIONS = {"speed": speed, "exchange": exchange, "saves": saves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all if none is named")
    parser.add_argument("--ranks", type=int, default=2, help="of one thread each; the one process has as many threads")
    parser.add_argument("--strategies", default="ddp,fsdp")
    parser.add_argument("--shape", default="tiny", help="a preset, for speed and exchange")
    parser.add_argument("--data", default="docs_pd", help="wiki, mixture, or a corpus")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096, help="of sequences of 1,024 tokens at most")
    parser.add_argument("--step-tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=12, help="timed ones of a turn")
    parser.add_argument("--warmup-steps", type=int, default=3, help="untimed ones before them")
    parser.add_argument("--rounds", type=int, default=5, help="of speed")
    parser.add_argument("--pairs", type=int, default=20, help="of exchange, of a step that sends and one that does not")
    parser.add_argument("--save-shape", default="base", help="a preset")
    parser.add_argument("--saves", type=int, default=4, help="of each kind, about")
    parser.add_argument("--save-steps", type=int, default=8, help="from save to save; a write should fit between")
    parser.add_argument("--out", type=Path, help="append each result as a line of JSON")
    add_arguments(parser, tokenizer="../shared/modernbert-tokenizer")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    folders = shards_of(corpora_of(arguments.data), arguments)
    for section in arguments.sections or SECTIONS:
        with tempfile.TemporaryDirectory(dir=arguments.work) as work:
            found = SECTIONS[section](arguments, folders, Path(work))
            keep({"what": section, "ranks": arguments.ranks, **found}, arguments.out)


if __name__ == "__main__":
    main()
