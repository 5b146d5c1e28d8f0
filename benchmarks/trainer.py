"""MLM pretraining here and by a `transformers` Trainer: real tokens a second, and held-out loss at equal wall-clock.

    python benchmarks/trainer.py --out results/trainer.jsonl                     # speed, some 22 minutes on 2 cores (estimated)
    python benchmarks/trainer.py --race 6 --shape tiny --data wiki --out results/trainer-race.json

Theirs is `Trainer.train()` on ModernBertForMaskedLM of the same shape with SDPA: its data loader, its collator
(DataCollatorForLanguageModeling at 0.3, special-token masks given), its clipping and its default optimizer (fused AdamW).
Timed from `on_train_begin` to the last `on_step_end`, so that reading and collating count and building the Trainer does
not. Ours is `our_step`: MlmBatches, forward, backward, the gradients' norm, StableAdamW. Both float32, the same threads,
one process, in turns whose order is reversed each round; each of their loads beside ours at its length. glibc keeps freed
memory for both alike (`tune_malloc`), as `modernbert pretrain` has it do.

- padded: one document a row, cut at 1,024, padded to the longest of the batch; rows for about as many real tokens as our
  step has. Target: ours ≥ 0.95 × its padded-to-real ratio, measured in the timed batches.
- blocks: documents end to end, cut every 1,024 (target 1.15×) or 8,192 tokens (1.5×), as `group_texts` of run_mlm does.

Both with `sparse_prediction=True`; with its default, logits at every position ("dense"), in the first rounds, for the record.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from corpora import add_arguments, corpora_of, keep, shards_of
from trainer_race import draw, race
from trainer_sides import LONG, SHORT, Blocks, Documents, Ours, Theirs, Turn, fitted, their_model

from modernbert.disk import write_whole
from modernbert.evaluate.machine import environment, tune_malloc
from modernbert.runtime import Runtime
from modernbert.tasks import MaskedLM
from modernbert.train.optim import build_optimizer
from modernbert.train.recipe import OptimSettings

TARGETS = {"padded": 0.95, f"blocks {SHORT}": 1.15, f"blocks {LONG}": 1.5}
# Shapes whose default is measured at 8,192 tokens a pass: base's logits at every position, 1.7 GB some four times, beside
# 12 GB of activations and both sides' weights and averages, are more than 24 GB hold.
DENSE_LONG = ("tiny", "mini")


def speed(
    shape: str, data: str, rounds: int, warmups: int, tokens: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Rates of all loads and the ratios that have targets."""
    folders = shards_of(corpora_of(data), arguments)
    config = fitted(shape, folders)
    task = MaskedLM(config).draw(0)
    task.encoder.reproducible = True  # as `pretrain` has it
    optimizer, model = build_optimizer(task, OptimSettings(), 1e-4), their_model(config)
    rows = {"padded": Documents(folders, SHORT)}
    rows |= {f"blocks {length}": Blocks(folders, length) for length in (SHORT, LONG)}
    entrants: dict[str, Any] = {f"ours {n}": Ours(task, optimizer, folders, n, tokens) for n in (SHORT, LONG)}
    shared, folder = None, next(iter(folders.values()))
    for load, of_load in rows.items():
        for name in (load,) if load == f"blocks {LONG}" and shape not in DENSE_LONG else (load, f"{load} dense"):
            entrants[name] = Theirs(model, of_load, folder, tokens, sparse=name == load, optimizer=shared)
            shared = entrants[name].optimizer
    turns = take_turns(entrants, rounds, warmups, arguments)
    return {
        "shape": shape, "data": data, "corpora": list(folders), "tokenizer_entries": config.vocab_size,
        "parameters": task.num_parameters, "step_tokens": tokens,
        "rates": {name: spread([turn.rate for turn in taken]) for name, taken in turns.items() if taken},
        "steps": {name: sum(turn.steps for turn in taken) for name, taken in turns.items()},
        "padded_to_real": ratio_of_slots(turns["padded"]), **comparisons(turns),
    }  # fmt: skip


def take_turns(
    entrants: Mapping[str, Any], rounds: int, warmups: int, arguments: argparse.Namespace
) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {name: [] for name in entrants}
    for round_ in range(-warmups, rounds):
        for name in list(entrants) if round_ % 2 == 0 else list(entrants)[::-1]:
            if "dense" in name and not 0 <= round_ < arguments.dense_rounds:
                continue
            turn = entrants[name].turn(arguments.seconds if round_ >= 0 else 0.0, seed=round_ + warmups)
            print(f"  round {round_}: {name:20s} {turn.rate:9,.0f} tokens/s, {turn.steps} steps", flush=True)
            gc.collect()
            if round_ >= 0:
                turns[name].append(turn)
    return turns


def ratio_of_slots(turns: list[Turn]) -> float:
    return sum(turn.slots for turn in turns) / sum(turn.tokens for turn in turns)


def comparisons(turns: Mapping[str, list[Turn]]) -> dict[str, Any]:
    """Ours over theirs, paired within rounds."""
    found: dict[str, Any] = {}
    for name, theirs in turns.items():
        load = name.removesuffix(" dense")
        if load not in TARGETS or not theirs:
            continue
        ours = turns[f"ours {LONG if load.endswith(str(LONG)) else SHORT}"]
        ratio = spread([a.rate / b.rate for a, b in zip(ours, theirs, strict=False)])
        target = TARGETS[load] * (ratio_of_slots(theirs) if load == "padded" else 1.0)
        found[name] = {"ratio": ratio, "target": target, "met": ratio["median"] >= target}
    return {"ours_over_theirs": found}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    tune_malloc()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny,base", help="presets")
    parser.add_argument("--data", default="wiki,mixture", help="wiki, mixture, or a corpus such as docs_pd")
    parser.add_argument("--step-tokens", default="8192,4096", help="of an optimizer step, about, of each shape")
    parser.add_argument("--rounds", default="3,2", help="timed rounds of each shape")
    parser.add_argument("--dense-rounds", type=int, default=1, help="rounds with sparse_prediction=False, too")
    parser.add_argument("--warmups", default="1,1", help="untimed rounds of one step each, with a shape's first data")
    parser.add_argument("--seconds", type=float, default=6.0, help="a turn ends with the step that passes so many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--race", type=float, metavar="MINUTES", help="held-out loss after so long, instead of speed")
    parser.add_argument("--race-lr", type=float, default=1e-3, help="our peak")
    parser.add_argument("--their-lrs", default="1e-3,5e-4", help="their peaks; the better one counts")
    parser.add_argument("--race-step-tokens", type=int, default=4096)
    parser.add_argument("--race-eval-tokens", type=int, default=100_000)
    parser.add_argument("--race-looks", type=int, default=12, help="evaluations of each runner")
    parser.add_argument("--out", type=Path)
    add_arguments(parser, tokenizer="../shared/modernbert-tokenizer")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.race:
        races = [race(data, arguments) for data in arguments.data.split(",")]
        result = {"races": races, "environment": environment(Runtime.detect(device="cpu"))}
        if arguments.out:
            write_whole(arguments.out, json.dumps(result, indent=1) + "\n")
            draw(races, arguments.out.with_suffix(".png"))
        return
    shapes = arguments.shape.split(",")
    settings = [[int(n) for n in getattr(arguments, name).split(",")] for name in ("rounds", "warmups", "step_tokens")]
    if any(len(column) != len(shapes) for column in settings):
        parser.error(f"{len(shapes)} shapes need as many --rounds, --warmups and --step-tokens")
    for shape, rounds, warmups, tokens in zip(shapes, *settings, strict=True):
        for number, data in enumerate(arguments.data.split(",")):
            keep(speed(shape, data, rounds, 0 if number else warmups, tokens, arguments), arguments.out)
            gc.collect()


if __name__ == "__main__":
    main()
