"""Kill a pretraining run ten times, half of them in the midst of a save, and compare it with one that nobody disturbed.

    python benchmarks/kills.py --out results/kills.jsonl
    python benchmarks/kills.py --ranks 2 --strategy fsdp --out results/kills.jsonl
    python benchmarks/kills.py --resume-time --out results/kills.jsonl

Both runs are the command `modernbert pretrain RECIPE --out RUN` in a process of its own; the broken one gets SIGKILL at
random moments and is started again by the same command. The recipe has what could go wrong: three phases of different
lengths, two sources in changing mixtures, a growing batch, dropout, annealed masks, a data worker. Then every training
and evaluation row but its timings, and weights, optimizer and progress of every checkpoint both have, must be equal.

`--ranks 2`: both runs are under torchrun; half of the kills are of all processes at once, and half of one rank, behind
which the others must end by themselves and say in one line which it was.

`--resume-time`: see resume_time.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
import torch.distributed.checkpoint as dcp
from corpora import add_arguments, keep, shards_of
from kill_ranks import Command
from resume_time import resume_time
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from modernbert.train.checkpoint import RunFolder
from modernbert.train.log import read_metrics
from modernbert.train.state import NUMBERS

SOURCES = ("docs_pd", "science_ccby")
TIMINGS = {"tokens_per_second", "data_wait", "mfu", "seconds", "step_seconds"}


def recipe(folders: Mapping[str, Path], tokens: int) -> dict[str, Any]:
    first, second = folders
    return {
        "model": {
            "preset": "tiny", "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4,
            "max_position_embeddings": 512, "local_attention": 32, "attention_dropout": 0.1, "global_rope_theta": 10_000.0,
        },
        "data": {"sources": {name: str(folder) for name, folder in folders.items()}, "workers": 1},
        "loop": {"tokens": tokens, "checkpoint_tokens": "4%", "eval_tokens": "5%", "eval_size_tokens": 10_000},
        "phases": [
            {
                "name": "stable", "tokens": "50%", "sequence_length": 128, "micro_batch_tokens": 1024,
                "tokens_per_step": 4096, "tokens_per_step_start": 1024, "batch_warmup_tokens": "50%",
                "lr": 2e-3, "warmup_tokens": "10%", "mixture": {first: 1, second: 2},
            },
            {
                "name": "extend", "tokens": "30%", "start": "weights+optimizer", "sequence_length": 512,
                "micro_batch_tokens": 2048, "tokens_per_step": 4096, "lr": 1e-3, "warmup_tokens": "5%",
                "global_rope_theta": 160_000.0, "mixture": {first: {"weight": 3, "min_tokens": 256}, second: 1},
            },
            {
                "name": "anneal", "tokens": "20%", "sequence_length": 512, "micro_batch_tokens": 2048,
                "tokens_per_step": 4096, "mask_rate": 0.3, "mask_rate_end": 0.05, "lr": 1e-3, "decay_tokens": "100%",
                "mixture": {second: 1},
            },
        ],
    }  # fmt: skip


def last_row(run: Path) -> dict[str, Any]:
    """The last whole line of the metrics; cheap enough to be asked every few milliseconds."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return {"tokens": -1}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else {"tokens": -1}


def unfinished_save(run: Path) -> str | None:
    """The name of a checkpoint that is being written; one that is being removed is none."""
    names = [entry.name for entry in os.scandir(run)] if run.is_dir() else []
    return next((n for n in names if n.startswith(".") and ".unfinished-" in n and not n.endswith("-removed")), None)


def kill_once(command: Command, behind: int, in_save: bool, of_all: bool, draw: random.Random) -> dict[str, Any] | None:
    """Start the command, wait until it trains and is behind so many tokens, and kill it; None where it ended before.

    Returns:
        Where it was, and who was killed; `in_save` says whether a checkpoint was being written then, and is not there.
    """
    running = command.start()
    try:
        while running.process.poll() is None and not (
            running.is_under_way() and last_row(command.out)["tokens"] >= behind
        ):
            time.sleep(0.005)
        while in_save and running.process.poll() is None and unfinished_save(command.out) is None:
            time.sleep(0.0002)
        time.sleep(draw.uniform(0, 0.02 if in_save else 1.0))
        half = unfinished_save(command.out)
        if running.process.poll() is not None or len(running.pids()) < command.ranks:
            return None
        whom = None if of_all else draw.randrange(command.ranks)
        ended = {} if whom is None else running.kill_rank(whom)
    finally:
        running.kill_all()
    row = last_row(command.out)
    return {
        "step": row["step"],
        "tokens": row["tokens"],
        "phase": row["phase"],
        "killed": "all" if whom is None else f"rank {whom}",
        "in_save": half is not None and not (command.out / half[1:].partition(".unfinished-")[0]).exists(),
        "half": half,
        **ended,
    }


def break_run(command: Command, tokens: int, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill at random moments over the whole run, half of them in saves, half of them one rank alone, then let it end."""
    draw, found = random.Random(seed), []
    moments = sorted(draw.uniform(0.01, 0.96) * tokens for _ in range(kills))
    kinds = [(number % 2 == 0, command.ranks == 1 or number // 2 % 2 == 0) for number in range(kills)]
    draw.shuffle(kinds)
    for behind, (in_save, of_all) in zip(moments, kinds, strict=True):
        while True:  # until a save was really cut off, where one was to be
            killed = kill_once(command, int(behind), in_save, of_all, draw)
            if killed is None:
                return found
            found.append({"wanted": "in a save" if in_save else "any moment", **killed})
            print(json.dumps(found[-1]), flush=True)
            if killed["in_save"] or not in_save:
                break
    command.finish()
    return found


def compare(broken: Path, whole: Path) -> dict[str, Any]:
    """What differs between two runs, in words; `equal` where nothing does."""
    differences: list[str] = []
    rows = {}
    for run in (broken, whole):
        kept = [row for row in read_metrics(run) if row["kind"] in ("train", "eval", "skipped")]
        rows[run] = [{key: value for key, value in row.items() if key not in TIMINGS} for row in kept]
    if len(rows[broken]) != len(rows[whole]):
        differences.append(f"{len(rows[broken])} rows, and {len(rows[whole])} unbroken")
    for a, b in zip(rows[broken], rows[whole], strict=False):
        if a != b:
            differences.append(f"step {b['step']}: {[k for k in b if a.get(k) != b[k]]}")
    names = [[path.name for path in RunFolder(run).checkpoints()] for run in (broken, whole)]
    shared = [name for name in names[0] if name in names[1]]
    if not shared or names[0][-1] != names[1][-1]:
        differences.append(f"checkpoints end with {names[0][-1:]} and {names[1][-1:]}")
    for name in shared:
        if (broken / name / "model.safetensors").read_bytes() != (whole / name / "model.safetensors").read_bytes():
            differences.append(f"{name}: weights")
        if not same(*(optimizer_of(run / name / "state") for run in (broken, whole))):
            differences.append(f"{name}: optimizer")
        progress = [vars(RunFolder.progress_of(run / name)) | {"seconds": None} for run in (broken, whole)]
        if progress[0] != progress[1]:
            differences.append(f"{name}: progress {[k for k in progress[0] if progress[0][k] != progress[1][k]]}")
    return {
        "equal": not differences,
        "rows": len(rows[whole]),
        "checkpoints": len(shared),
        "differences": differences[:20],
    }


def optimizer_of(folder: Path) -> dict[str, Any]:
    """An optimizer's averages, each put together from what all ranks wrote of it, and its numbers."""
    tensors: dict[str, torch.Tensor] = {}
    if any(folder.glob("*.safetensors")):  # none in the checkpoint before the first step
        reader = HuggingFaceStorageReader(str(folder))
        for name, about in reader.read_metadata().state_dict_metadata.items():
            # What no file covered would stay no number, and equal to nothing.
            tensors[name] = torch.full(about.size, torch.nan, dtype=about.properties.dtype)
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {"tensors": tensors, "numbers": json.loads((folder / NUMBERS).read_text())}


def same(a: Any, b: Any) -> bool:
    """Whether two nests of lists, dictionaries, tensors and numbers are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def kills(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    folders = {name: folder.resolve() for name, folder in shards_of(SOURCES, arguments).items()}
    path = work / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe(folders, arguments.tokens)))
    whole, broken = (
        Command(
            recipe=path, out=work / name, threads=arguments.threads, ranks=arguments.ranks, strategy=arguments.strategy
        )
        for name in ("whole", "broken")
    )
    began_at = time.perf_counter()
    whole.finish()
    print(f"unbroken: {time.perf_counter() - began_at:.0f} s", flush=True)
    killed = break_run(broken, arguments.tokens, arguments.kills, arguments.seed)
    found = compare(broken.out, whole.out)
    sessions = json.loads((broken.out / "run.json").read_text())["sessions"]
    in_saves, of_one = sum(kill["in_save"] for kill in killed), [kill for kill in killed if "named" in kill]
    met = found["equal"] and len(killed) >= arguments.kills and 2 * in_saves >= arguments.kills
    return {
        "what": "kills", "ranks": arguments.ranks, "strategy": arguments.strategy if arguments.ranks > 1 else "none",
        "tokens": arguments.tokens, "kills": killed, "in_saves": in_saves,
        "phases": sorted({kill["phase"] for kill in killed}), "resumed_from_steps": [s["from_step"] for s in sessions[1:]],
        "of_one_rank": len(of_one), "named": sum(kill["named"] for kill in of_one),
        "end_seconds": sorted(kill["end_seconds"] for kill in of_one), **found,
        "met": met and all(kill["named"] for kill in of_one),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=1_200_000, help="of the run that is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--ranks", type=int, default=1, help="processes, by torchrun; then half the kills are of one")
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp", help="of several ranks")
    parser.add_argument("--threads", type=int, help="of each rank; PyTorch's choice, shared among them, if not given")
    parser.add_argument("--resume-time", action="store_true", help="how long resuming takes at 1 %% and at 90 %%")
    parser.add_argument("--resume-tokens", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=7, help="resumes of each")
    parser.add_argument("--out", type=Path, help="append the result as a line of JSON")
    add_arguments(parser, tokenizer="8192")
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or max(1, torch.get_num_threads() // arguments.ranks)
    with tempfile.TemporaryDirectory() as work:
        if arguments.resume_time:
            result = resume_time(arguments.resume_tokens, arguments.rounds, arguments.threads, Path(work))
        else:
            result = kills(arguments, Path(work))
    keep(result, arguments.out)
    if not result["met"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
