"""Quickstart's second task: to say which module of the standard library a passage comes from.

The library's largest modules → passages of some lines → the encoder fine-tuned, a bag of words fitted → who is right more often.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modernbert.console import Console
from modernbert.disk import write_whole
from modernbert.errors import DataError
from modernbert.evaluate.bag_of_words import bag_of_words
from modernbert.finetuning import finetune
from modernbert.predicting import load_head
from modernbert.runtime import Runtime
from modernbert.train.checkpoint import RUN_FILE, read_about
from modernbert.train.finetune import FinetuneRun
from modernbert.train.loop import Hooks

NUM_MODULES = 12
PASSAGE_CHARS = 360  # at least; a passage ends with a line
PER_MODULE = {"train": 120, "validation": 20, "test": 40}
_SHOWN = 3


def ask_for_modules(
    library: Path,
    excluded: Sequence[str],
    checkpoint: Path,
    folder: Path,
    tokens: int,
    runtime: Runtime,
    console: Console,
) -> dict[str, Any]:
    """Fine-tune on passages, and compare with a bag of words.

    Args:
        library: the folder of the standard library.
        excluded: shell patterns of its files that are not read.
        checkpoint: the encoder to start from.
        folder: for the examples, and `model` in it.
        tokens: to train on.
        runtime: device and threads.
        console: where it is shown.

    Returns:
        `accuracy` of both on the test passages, `verdict` and a few `answers`.
    """
    files = write_passages(library, excluded, folder)
    out = folder / "model"
    num_tokens = sum(len(text) for text, _ in _pairs(files["train"])) / 3  # some three characters a token
    epochs = round(min(6.0, max(0.2, tokens / num_tokens)), 2)
    run = FinetuneRun.parse({
        "model": str(checkpoint), "epochs": epochs, "lr": 5e-4, "batch_size": 8, "evaluations": 3,
        "tasks": [{"kind": "classify", "max_length": 192, **{part: str(path) for part, path in files.items()}}],
    })  # fmt: skip
    _clear_older(out, run)
    with console.progress("fine-tuning", epochs * num_tokens) as update:
        hooks = Hooks(on_row=lambda row: update(row["tokens"]) if row["kind"] == "train" else None)
        result = finetune(run, out, runtime, hooks)
    pairs = {part: _pairs(path) for part, path in files.items()}
    said, _ = bag_of_words(pairs["train"], pairs["validation"], [text for text, _ in pairs["test"]])
    right = sum(a == b for a, (_, b) in zip(said, pairs["test"], strict=True)) / len(said)
    accuracy = {"this encoder": result["tasks"]["classify"]["test"]["accuracy"], "bag of words": right}
    console.table(["model", "accuracy"], [[name, f"{value:.1%}"] for name, value in accuracy.items()])
    console.say(found := verdict(accuracy, len(result["tasks"]["classify"]["labels"])))
    shown = pairs["test"][:: max(1, len(pairs["test"]) // _SHOWN)][:_SHOWN]
    answers = [
        {**answer, "expected": name}
        for answer, (_, name) in zip(load_head(out, runtime).predict([t for t, _ in shown]), shown, strict=True)
    ]
    console.table(["passage", "answer", "probability", "expected"], [
        [" ".join(a["text"].split())[:60] + " …", a["label"], f"{a['score']:.0%}", a["expected"]] for a in answers
    ])  # fmt: skip
    return {"accuracy": accuracy, "verdict": found, "answers": answers, "folder": str(out)}


def _clear_older(out: Path, run: FinetuneRun) -> None:
    """Remove what an earlier quickstart made of another checkpoint."""
    if (out / "run" / RUN_FILE).exists() and read_about(out / "run")["recipe"] != run.model_dump(mode="json"):
        shutil.rmtree(out)


def verdict(accuracy: dict[str, float], num_classes: int) -> str:
    """Who wins, said plainly, and why if it is the baseline."""
    own, counted = accuracy["this encoder"], accuracy["bag of words"]
    chance = f"guessing would be right {1 / num_classes:.0%} of the time"
    if own > counted:
        return f"This encoder beats the bag of words by {own - counted:.1%}; {chance}."
    if own == counted:
        return f"This encoder and the bag of words are right equally often; {chance}."
    return (
        f"The bag of words wins by {counted - own:.1%}: a module gives itself away by its names, which counting sees at once, "
        f"and minutes of pretraining are little; {chance}."
    )


def write_passages(library: Path, excluded: Sequence[str], folder: Path) -> dict[str, Path]:
    """Cut the largest modules into passages, the first part of each for training and the last for the test.

    Returns:
        The files `train`, `validation` and `test`, lines of `text` and `label`.

    Raises:
        DataError: the library is too small.
    """
    found = {name: list(passages(files)) for name, files in largest_modules(library, excluded).items()}
    wanted = sum(PER_MODULE.values())
    found = {name: texts for name, texts in found.items() if len(texts) >= wanted // 2}
    if len(found) < 2:
        raise DataError(f"{library} holds fewer than two modules of {wanted // 2} passages")
    rows: dict[str, list[dict[str, str]]] = {part: [] for part in PER_MODULE}
    for name, texts in sorted(found.items()):
        begin = 0
        for part, count in PER_MODULE.items():
            share = min(count, len(texts) * count // wanted)
            rows[part] += [{"text": text, "label": name} for text in texts[begin : begin + share]]
            begin += share
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: folder / f"{part}.jsonl" for part in rows}
    for part, path in files.items():
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows[part]))
    return files


def largest_modules(library: Path, excluded: Sequence[str]) -> dict[str, list[Path]]:
    """The files of the modules and packages with the most source code, by name."""
    files: dict[str, list[Path]] = {}
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if not any(fnmatch.fnmatch(str(relative), pattern) for pattern in excluded):
            files.setdefault(relative.parts[0].removesuffix(".py"), []).append(path)
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in files.items()}
    return {name: files[name] for name in sorted(sizes, key=lambda name: -sizes[name])[:NUM_MODULES]}


def passages(files: Sequence[Path]) -> Iterator[str]:
    """Some lines at a time."""
    for path in files:
        lines: list[str] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip():
                lines.append(line)
            if sum(map(len, lines)) >= PASSAGE_CHARS:
                yield "\n".join(lines)
                lines = []


def _pairs(path: Path) -> list[tuple[str, str]]:
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [(row["text"], row["label"]) for row in rows]
