"""Labelled files small enough to be learnt in a second: for tests of whole fine-tunings."""

import json
import random

from modernbert.finetuning import finetune
from modernbert.runtime import Runtime
from modernbert.train.finetune import FinetuneRun

PLACES = {
    "water": ("river", "stone", "green"),
    "town": ("house", "letter", "child"),
    "sky": ("light", "morning", "evening"),
}
FILLERS = ("the", "of", "and", "a", "in", "old", "new", "quiet", "with")


def texts(count, seed=0):
    """(text, class) pairs: a class is told by one of its words."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        name = draw.choice(sorted(PLACES))
        words = [*draw.choices(FILLERS, k=draw.randint(2, 9)), draw.choice(PLACES[name])]
        draw.shuffle(words)
        found.append((" ".join(words), name))
    return found


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def classify_files(folder, *, train=160, validation=60, test=0):
    """Files of texts and their classes, by part."""
    counts = {"train": train, "validation": validation, "test": test}
    return {
        part: write_jsonl(folder / f"{part}.jsonl", [{"text": t, "label": n} for t, n in texts(count, seed)])
        for seed, (part, count) in enumerate(counts.items())
        if count
    }


def tag_files(folder, *, train=160, validation=60):
    """Words of which those of `sky` and `town` are entities."""

    def row(text):
        tags = [next((f"B-{n}" for n in ("sky", "town") if word in PLACES[n]), "O") for word in text.split()]
        return {"tokens": text.split(), "ner_tags": tags}

    return {
        part: write_jsonl(folder / f"{part}-tags.jsonl", [row(text) for text, _ in texts(count, seed)])
        for seed, (part, count) in enumerate({"train": train, "validation": validation}.items())
    }


def run_of(model, tasks, **settings):
    """A fine-tuning quick to do and quick to learn."""
    quick = {"epochs": 4, "lr": 5e-3, "batch_size": 8, "head_dropout": 0.0, **settings}
    return FinetuneRun.parse({"model": str(model), "tasks": tasks, **quick})


def finetuned(run, out, hooks=None):
    """What metrics.json says behind it."""
    return finetune(run, out, Runtime.detect(device="cpu", num_threads=1), hooks)
