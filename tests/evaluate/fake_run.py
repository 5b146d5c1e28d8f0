"""A run's folder as a finished or broken-off run leaves it, made up in milliseconds: three phases and every kind of row.

python tests/evaluate/fake_run.py FOLDER [steps]     # to look at its report
"""

import itertools
import json
import math
import random
import sys
from pathlib import Path

SOURCES = ("wiki_en", "code", "books & <b>prose</b>")
PHASES = (  # name, share of the steps, sequence length, micro-batches of a step, peak rate, masking rate
    ("stable", 0.8, 1024, 4, 8e-4, 0.3),
    ("extend", 0.12, 8192, 4, 3e-4, 0.3),
    ("anneal", 0.08, 8192, 2, 3e-4, 0.3),
)
MICRO_BATCH = 8192


def recipe(steps):
    phases = [
        {
            "name": name, "tokens": round(steps * share) * MICRO_BATCH * count, "start": "state", "checkpoint": None,
            "sequence_length": length, "tokens_per_step": MICRO_BATCH * count, "micro_batch_tokens": MICRO_BATCH,
            "mask_rate": mask, "mask_rate_end": 0.1 if name == "anneal" else None, "lr": lr, "mixture": {},
        }
        for name, share, length, count, lr, mask in PHASES
    ]  # fmt: skip
    return {
        "seed": 0, "model": {"preset": "tiny"}, "data": {"sources": dict.fromkeys(SOURCES, "shards"), "workers": 1},
        "loop": {"tokens": None, "checkpoint_tokens": "10%", "eval_mask_rate": 0.15}, "phases": phases,
    }  # fmt: skip


def environment(**changes):
    return {
        "device": "cpu (Imagined CPU 9000)", "dtype": "float32", "threads": 2, "cores": 2, "python": "3.11.9",
        "torch": "2.13.0", "modernbert": "0.1.0", "commit": "1a2b3c4d5e6f", "date": "2026-01-05T08:00:00+00:00", **changes,
    }  # fmt: skip


def write_fake_run(folder, steps=2000, *, stop_at=1.0, better=0.0, data_wait=0.02, seed=0, older=False):
    """Write run.json, metrics.jsonl and checkpoint folders; `stop_at` breaks off at that share of the steps.

    `older`: rows and run.json as they were before there were several sources, saves, events and sessions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = _Made(folder, random.Random(seed), better, data_wait, older)
    values = recipe(steps)
    made.look(values["phases"][0])
    for index, phase in enumerate(values["phases"]):
        made.train(phase, round(steps * PHASES[index][1]), steps, stop_at)
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in made.rows)
    (folder / "run.json").write_text(json.dumps(made.about(values, stop_at)))
    return folder


class _Made:
    def __init__(self, folder, draw, better, data_wait, older):
        self.folder, self.draw, self.better, self.data_wait, self.older = folder, draw, better, data_wait, older
        self.rows, self.step, self.tokens, self.seconds = [], 0, 0, 0.0

    def loss(self, phase_name="stable", noise=0.0):
        gain = {"stable": 0.0, "extend": 0.05, "anneal": 0.2}[phase_name]
        fallen = 10.8 * (1 + self.tokens / 1.0e6) ** -0.28 + 0.9
        return max(0.3, fallen - gain - self.better + self.draw.gauss(0, noise))

    def where(self, phase):
        return {"step": self.step, "phase": phase["name"], "tokens": self.tokens}

    def train(self, phase, phase_steps, steps, stop_at):
        done = 0
        for number in range(phase_steps):
            if self.step >= stop_at * steps:
                return
            share = (number + 1) / phase_steps
            warm = min(1.0, self.step / (0.15 * steps)) if phase["name"] == "stable" else 1.0
            count = max(1, round(phase["tokens_per_step"] / MICRO_BATCH * (0.25 + 0.75 * warm)))
            step_tokens = round(count * MICRO_BATCH * self.draw.uniform(0.985, 1.0))
            lr = phase["lr"] * (min(1.0, (self.step + 1) / (0.03 * steps)) if phase["name"] == "stable" else 1.0)
            if phase["name"] == "anneal":
                lr *= 1 - 0.999 * math.sqrt(share)
            mask = phase["mask_rate"] + ((phase["mask_rate_end"] or phase["mask_rate"]) - phase["mask_rate"]) * share
            pace = (41_000 if phase["sequence_length"] == 1024 else 23_000) * self.draw.uniform(0.93, 1.02)
            self.step, self.tokens, done = self.step + 1, self.tokens + step_tokens, done + step_tokens
            self.seconds += step_tokens / pace
            row = {
                "kind": "train", **self.where(phase), "phase_tokens": done, "loss": self.loss(phase["name"], 0.06),
                "accuracy": 0.9 - self.loss(phase["name"]) / 13, "targets": round(step_tokens * mask), "lr": lr,
                "mask_rate": mask, "tokens_per_second": pace, "data_wait": self.data_wait * self.draw.uniform(0.5, 1.5),
                "mfu": pace / 60_000, "step_tokens": step_tokens, "filled": step_tokens / (count * MICRO_BATCH),
                "gradient_norm": abs(self.draw.gauss(0.8, 0.12)) + 3 / self.step, "seconds": self.seconds,
            }  # fmt: skip
            if self.older:
                del row["mask_rate"], row["phase_tokens"]
            self.rows.append(row)
            if not self.older and self.step == round(0.31 * steps):
                self.event(phase, "spike", f"step {self.step}: loss 9.12, 14 deviations above the last 128 steps")
                self.rows[-2]["loss"] = 9.12
            if not self.older and self.step == round(0.7 * steps):
                row["kind"] = "skipped"
                del row["loss"], row["accuracy"], row["targets"], row["gradient_norm"]
                self.event(phase, "nan", f"step {self.step}: loss nan, first in layer 3; skipped")
            if not self.older and self.step == round(0.47 * steps):
                self.event(phase, "resume", f"going on behind step {self.step:,} on <script>alert(1)</script>")
            if self.step % max(1, steps // 10) == 0 or number + 1 == phase_steps:
                self.look(phase)
                self.save(phase)
        phase["tokens"] = done  # a step's micro-batches are never quite full

    def look(self, phase):
        overall = 10.83 if self.step == 0 else self.loss(phase["name"]) - 0.25
        row = {
            "kind": "eval", **self.where(phase), "loss": overall, "accuracy": max(0.0, 0.92 - overall / 12),
            "targets": 30_000, "sequence_length": phase["sequence_length"], "seconds": 2.0, "lr": None,
            "tokens_per_second": None,
        }  # fmt: skip
        if not self.older:
            row["by_source"] = {
                name: {"loss": overall + shift, "accuracy": row["accuracy"], "targets": 10_000}
                for name, shift in zip(SOURCES, (0.2, -0.6, 0.4), strict=True)
            }
            edges = [0, *(2**k for k in range(7, 14) if 2**k <= phase["sequence_length"])]
            row["by_position"] = [
                {"from": low, "to": high - 1, "loss": overall + 0.5 / (1 + high / 128) - 0.1, "targets": 4000}
                for low, high in itertools.pairwise(edges)
            ]
        self.rows.append(row)

    def save(self, phase):
        name = f"{phase['name']}-{self.step:08d}"
        if self.step % 3 or phase["name"] != "stable":  # the others were deleted by the keep policy
            (self.folder / name).mkdir(exist_ok=True)
            for file in ("config.json", "model.safetensors"):
                (self.folder / name / file).touch()
        if not self.older:
            self.rows.append(
                {"kind": "save", **self.where(phase), "checkpoint": name, "stall_seconds": 0.12, "write_seconds": 4.2}
            )

    def event(self, phase, event, text):
        self.rows.append({"kind": "event", **self.where(phase), "event": event, "text": text})

    def about(self, values, stop_at):
        found = {
            "recipe": values, "data": {name: "0123456789abcdef" for name in SOURCES}, "environment": environment(),
            "status": "finished" if stop_at >= 1 else "unfinished", "peak_flops": 1.2e11,
            "peak_source": "best matrix product of the model's shapes, measured",
        }  # fmt: skip
        if self.older:
            return found | {"data": "0123456789abcdef"}
        first = {"started_at": "2026-01-05T08:00:00+00:00", "from_step": 0, "from_tokens": 0, "ended": "SIGTERM"}
        second = {
            "started_at": "2026-01-06T07:12:30+00:00", "from_step": 940, "from_tokens": 28_000_000,
            "ended": "finished" if stop_at >= 1 else None,
        }  # fmt: skip
        return found | {
            "sessions": [
                {**first, "environment": environment(), "changes": []},
                {**second, "environment": environment(threads=1), "changes": ["optim.eps=1e-06 (now 1e-08)"]},
            ],
        }  # fmt: skip


if __name__ == "__main__":
    write_fake_run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
