"""Held-out loss at equal wall-clock: ours, and a Trainer on padded rows and on blocks; see `trainer.py --race`.

All begin with the same weights and follow the same learning rate over the share of the time that has passed; the clock
stands still while a runner is looked at. One function judges all of them: their weights are copied into our model, which
answers the same masked tokens of the same held-out documents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from corpora import corpora_of, shards_of
from trainer_sides import SHORT, Blocks, Documents, Ours, Theirs, Turn, fitted, our_step, their_model
from transformers import ModernBertForMaskedLM

from modernbert.batch import PackedBatch
from modernbert.data import MlmBatches
from modernbert.runtime import Runtime
from modernbert.tasks import MaskedLM
from modernbert.train.optim import build_optimizer, set_learning_rate
from modernbert.train.recipe import OptimSettings
from modernbert.train.schedule import learning_rate
from modernbert.train.score import evaluate_on

_SHARES = 10**6  # of the time, what the schedule counts in place of tokens


@dataclass(kw_only=True)
class RaceClock:
    """Training seconds of one runner, stopped while it is looked at, and the losses seen."""

    total: float
    look: Callable[[], float]  # the held-out loss now
    looks: int
    began_at: float | None = None
    paused: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    def start(self) -> None:
        """Start, with a look at what nothing has been done to."""
        self.began_at = time.perf_counter()
        self.note()

    @property
    def share(self) -> float:
        """Of the time, that has passed."""
        if self.began_at is None:
            return 0.0
        return min(1.0, (time.perf_counter() - self.began_at - self.paused) / self.total)

    def lr(self, peak: float) -> float:
        """The shape both have: warm-up over 5 %, 1 − sqrt over the last 40 % of the time."""
        at = max(1, round(self.share * _SHARES))
        return learning_rate(
            at, peak=peak, total=_SHARES, warmup=_SHARES // 20, decay=2 * _SHARES // 5, decay_to=0.001
        )  # fmt: skip

    def over(self) -> bool:
        """Look where a look is due; whether the time is up."""
        if self.share >= len(self.curve) / self.looks:
            self.note()
        return self.share >= 1.0

    def note(self) -> None:
        """Look, while the clock stands still."""
        stopped_at = time.perf_counter()
        share = self.share
        self.curve.append({"seconds": share * self.total, "loss": self.look()})
        self.paused += time.perf_counter() - stopped_at


def race(data: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same first weights, the same minutes, the same shape of learning rate."""
    folders = shards_of(corpora_of(data), arguments)
    config, seconds = fitted(arguments.shape.split(",")[0], folders), 60 * arguments.race
    judge, runtime = MaskedLM(config), Runtime.detect(device="cpu")
    held_out = [
        MlmBatches({name: folder}, split="heldout", sequence_length=SHORT, micro_batch_tokens=8192, mask_rate=0.15, seed=0)
        for name, folder in folders.items()
    ]  # fmt: skip
    each = arguments.race_eval_tokens // len(held_out)
    judged = [batch for source in held_out for batch in first_tokens(source, each)]

    def look(model: torch.nn.Module) -> float:
        weights = model.state_dict()
        judge.load_state_dict({name: weights[name] for name in judge.state_dict()})
        return evaluate_on(judge, judged, runtime)["loss"]

    entrants: list[dict[str, Any]] = []
    for name, lr in [("ours", arguments.race_lr)] + [
        (load, lr) for load in ("padded", f"blocks {SHORT}") for lr in map(float, arguments.their_lrs.split(","))
    ]:
        start = MaskedLM(config).draw(0)
        runner = start if name == "ours" else their_model(config)
        runner.load_state_dict(start.state_dict(), strict=name == "ours")
        if name != "ours":
            runner.tie_weights()
        clock = RaceClock(total=seconds, look=lambda runner=runner: look(runner), looks=arguments.race_looks)
        run = run_ours if name == "ours" else run_theirs
        turn = run(runner, folders, clock, lr, name, arguments)
        entrants.append({"name": name, "lr": lr, "steps": turn.steps, "tokens": turn.tokens, "curve": clock.curve})
        print(f"{data}: {name} at {lr:g}: {clock.curve[-1]['loss']:.3f} nats after {turn.tokens:,} tokens", flush=True)
    ours, *theirs = [entrant["curve"][-1]["loss"] for entrant in entrants]
    return {
        "data": data, "minutes": arguments.race, "tokenizer_entries": config.vocab_size, "evaluated_tokens":
        sum(batch.num_tokens for batch in judged), "step_tokens": arguments.race_step_tokens, "entrants": entrants,
        "ours": ours, "best_of_theirs": min(theirs), "met": ours < min(theirs),
    }  # fmt: skip


def first_tokens(batches: MlmBatches, tokens: int) -> list[PackedBatch]:
    taken: list[PackedBatch] = []
    for batch in batches.once():
        taken.append(batch)
        if sum(b.num_tokens for b in taken) >= tokens:
            break
    return taken


def run_ours(
    task: MaskedLM, folders: Any, clock: RaceClock, lr: float, _name: str, arguments: argparse.Namespace
) -> Turn:
    task.encoder.reproducible = True
    optimizer, turn = build_optimizer(task, OptimSettings(), lr), Turn(steps=0, seconds=0.0, tokens=0, slots=0)
    ours = Ours(task, optimizer, folders, SHORT, arguments.race_step_tokens)
    clock.start()
    while not clock.over():
        batch, _ = next(ours.stream)
        set_learning_rate(optimizer, clock.lr(lr), lr)
        our_step(task, optimizer, batch, ours.runtime)
        turn.steps, turn.tokens = turn.steps + 1, turn.tokens + batch.num_tokens
    return turn


def run_theirs(
    model: ModernBertForMaskedLM, folders: Any, clock: RaceClock, lr: float, name: str, arguments: argparse.Namespace
) -> Turn:
    rows = (Documents if name == "padded" else Blocks)(folders, SHORT)
    theirs = Theirs(model, rows, next(iter(folders.values())), arguments.race_step_tokens, lr=lr)
    theirs.watch.begin = clock.start
    theirs.trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(theirs.optimizer, lambda _step: clock.lr(lr) / lr)
    return theirs.train_until(lambda _seconds: clock.over(), seed=0)


def draw(races: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(races), 4.5), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(races), squeeze=False)[0], races, strict=True):
        for entrant in result["entrants"]:
            points = entrant["curve"]
            style = {"lw": 2.5} if entrant["name"] == "ours" else {"ls": "--"}
            label = f"{entrant['name']}, lr {entrant['lr']:g}: {points[-1]['loss']:.3f}"
            axes.plot([p["seconds"] for p in points], [p["loss"] for p in points], label=label, **style)
        axes.set(title=result["data"], xlabel="seconds of training", ylabel="held-out loss (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
