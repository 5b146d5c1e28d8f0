"""The whole life of an encoder in miniature: this Python's own library → a trained checkpoint and a report.

    corpus → tokenizer → shards → count models → pretraining, watched → evaluation → transformers → a task → report

Every chapter calls what a user would call. What a chapter leaves in the folder is taken as it is by the next run,
so an interrupted quickstart goes on. The token budget is set once, from a speed measured here, and written into
recipe.toml.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from modernbert.batch import IGNORE, PackedBatch
from modernbert.console import Console
from modernbert.data import MlmBatches
from modernbert.disk import write_whole
from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.counts import CountModels
from modernbert.functions import find_functions
from modernbert.passages import ask_for_modules
from modernbert.preflight import held_out_batches, mlm_batches
from modernbert.pretraining import pretrain, row_shower
from modernbert.runs import build_data, compare_tokenizers, learn_tokenizer
from modernbert.runtime import Runtime, evaluating
from modernbert.settings import override, read_recipe
from modernbert.tasks import EncoderModel, MaskedLM, load
from modernbert.text import format_report, summarize
from modernbert.train.checkpoint import Progress, RunFolder
from modernbert.train.log import draw_curve
from modernbert.train.loop import Hooks
from modernbert.train.optim import build_optimizer
from modernbert.train.recipe import PretrainRun
from modernbert.train.score import evaluate_on

VOCAB_SIZE = 8192
HELDOUT = 0.04
SPEED_STEPS = 6
TASK_SHARE, SEARCH_SHARE = 0.15, 0.4  # of the tokens of pretraining, as many more for the task and for search
# Tests, other people's packages, and tables that a program wrote. pydoc_data is read as topics, not as code.
NOT_READ = ("test/*", "tests/*", "*/test/*", "*/tests/*", "*/idle_test/*", "*-packages/*", "config-*", "encodings/*",
            "pydoc_data/*")  # fmt: skip

# What the encoder is asked at the start, half-way and at the end, and what a reader would answer.
PROBES = (
    ("for i in [MASK](len(items)):", "range"),
    ("if value is not [MASK]:", "None"),
    ("    def __init__([MASK], name, value):", "self"),
    ("try:\n    import json\nexcept [MASK]:\n    json = None", "ImportError"),
    ("with open(filename, 'rb') as f:\n    data = f.[MASK]()", "read"),
    ("Return [MASK] if the string is empty, False otherwise.", "True"),
    ("If the argument is omitted, the default [MASK] is used.", "value"),
    ("This method must be called [MASK] the file is closed.", "before"),
)


@dataclass
class Chapters:
    """Where the time goes: chapters by title, in seconds."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """Announce and time a chapter."""
        self.console.heading(f"{len(self.seconds) + 1}. {title}")
        started_at = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - started_at


def quickstart(out: Path, minutes: float, runtime: Runtime, console: Console) -> dict[str, Any]:
    """Live the whole life once.

    Args:
        out: the folder for everything made.
        minutes: time for all of it; the token budget follows from it.
        runtime: device and threads.
        console: where it is shown.

    Returns:
        The figures of the report, as plain data.

    Raises:
        ConfigError: a folder of something else, or too little time to learn anything.
    """
    began_at = time.perf_counter()
    if out.exists() and any(out.iterdir()) and not (out / "corpus").exists():
        raise ConfigError(f"{out} is not empty and holds no quickstart; choose another --out")
    chapters = Chapters(console)
    with chapters.chapter("Text: the source code and documentation of this Python"):
        sources = write_corpus(out / "corpus", console)
    with chapters.chapter("Tokenizer"):
        report = make_tokenizer(sources, out / "tokenizer", console)
    with chapters.chapter("Shards of token ids"):
        make_shards(sources, out, console)
    with chapters.chapter("What counting alone would guess"):
        baselines = count_models(out / "shards", console)
    with chapters.chapter("Pretraining, and the same eight sentences along the way"):
        run = planned_run(out, minutes * 60 - (time.perf_counter() - began_at), runtime, console)
        checkpoint = watch_pretraining(run, out / "run", runtime, console)
    with chapters.chapter("Evaluation on held-out files"):
        scores = evaluate(run, checkpoint, baselines, runtime, console)
        draw_curve(out / "run", {name: s["loss"] for name, s in baselines.items() if s["loss"] is not None})
    with chapters.chapter("The same checkpoint in transformers"):
        agreement = open_in_transformers(checkpoint, console)
    with chapters.chapter("A task: which module of the library does this passage come from?"):
        task = ask_for_modules(
            library_folder(), NOT_READ, checkpoint, out / "task", int(TASK_SHARE * run.total_tokens), runtime, console
        )
    search = None
    if can_search():
        with chapters.chapter("Search: find a function of the library by what it does"):
            tokens = int(SEARCH_SHARE * run.total_tokens)
            search = find_functions(library_folder(), NOT_READ, checkpoint, out / "search", tokens, runtime, console)
    else:
        console.remark("the chapter on search is left out: it needs pip install 'modernbert[retrieval]'")
    result = {
        "checkpoint": str(checkpoint), "scores": scores, "probes": probe_history(out / "run"), "tokenizer": report,
        "transformers": agreement, "task": task, "search": search, "seconds": chapters.seconds, "commands": next_commands(out),
    }  # fmt: skip
    conclude(result, out, console)
    return result


def can_search() -> bool:
    """Whether what the last chapter needs is installed."""
    needed = ("lancedb", "ir_measures", "sentence_transformers", "accelerate", "datasets")
    return all(importlib.util.find_spec(name) is not None for name in needed)


def write_corpus(folder: Path, console: Console) -> list[Path]:
    """The library's folder, and the language reference that pydoc carries, one topic a document."""
    folder.mkdir(parents=True, exist_ok=True)
    library = library_folder()
    if not any(library.glob("*.py")):
        raise DataError(f"{library} holds no source code; run quickstart with a Python that ships its library as text")
    try:
        from pydoc_data.topics import topics
    except ImportError:
        console.say(f"{library} (code and docstrings); this Python comes without pydoc's topics")
        return [library]
    prose = folder / "topics.jsonl"
    lines = "".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics))
    if not prose.exists() or prose.read_text(encoding="utf-8") != lines:  # its date decides whether shards are current
        write_whole(prose, lines)
    console.say(f"{library} (code and docstrings), {prose} ({len(topics)} topics of the language reference)")
    return [library, prose]


def library_folder() -> Path:
    """Where the standard library of this Python is."""
    return Path(sysconfig.get_paths()["stdlib"])


def make_tokenizer(sources: list[Path], folder: Path, console: Console) -> dict[str, Any]:
    """Train the tokenizer and report on it, unless that is done."""
    report_file = folder / "report.json"
    if not (folder / "tokenizer.json").exists():
        report = learn_tokenizer(sources, vocab_size=VOCAB_SIZE, out=folder, exclude=NOT_READ, console=console)
        write_whole(report_file, json.dumps(report))
    elif not report_file.exists():  # an earlier session was cut off between the two
        write_whole(report_file, json.dumps(compare_tokenizers(str(folder), sources, exclude=NOT_READ)))
    report = json.loads(report_file.read_text())
    console.say(format_report(report))
    return report


def make_shards(sources: list[Path], out: Path, console: Console) -> None:
    """Build the shards, unless they are there."""
    manifest = build_data(
        sources, str(out / "tokenizer"), out / "shards", heldout=HELDOUT, exclude=NOT_READ, console=console
    )
    console.say(summarize(manifest))


def held_out(run: PretrainRun) -> MlmBatches:
    """The masked held-out text on which everything is compared."""
    return held_out_batches(run, next(iter(run.data.folders())), run.phases[0].sequence_length)


def base_run(shards: Path) -> PretrainRun:
    """The recipe before its budget is known."""
    return PretrainRun.parse(override(read_recipe("quickstart"), [f"data.path={json.dumps(str(shards))}"]))


def count_models(shards: Path, console: Console) -> dict[str, dict[str, float | None]]:
    """Fit the count models on the training split and let them guess the held-out masks."""
    run = base_run(shards)
    models = CountModels(mlm_batches(run, 0).sequences(), held_out(run).vocab_size)
    scores = models.score(neighbours(held_out(run)))
    console.table(["model", "loss (nats)", "top-1 accuracy"], score_rows(scores))
    return scores


def neighbours(batches: MlmBatches) -> Iterator[tuple[int, int, int]]:
    """(left, hidden, right) true tokens at the masked positions."""
    for batch in batches.once():
        assert batch.labels_T is not None
        labels = batch.labels_T.numpy()
        ids = np.where(labels != IGNORE, labels, batch.input_ids_T.numpy())
        for position in np.flatnonzero(labels != IGNORE):
            yield int(ids[position - 1]), int(ids[position]), int(ids[position + 1])


def planned_run(out: Path, seconds: float, runtime: Runtime, console: Console) -> PretrainRun:
    """The recipe with a token budget for the time that is left; an earlier session's, if there is one."""
    recipe_file = out / "recipe.toml"
    if not recipe_file.exists():
        run = base_run(out / "shards")
        speed = measure_speed(run, runtime)
        # Evaluations, checkpoints, the last chapters and a machine that slows down take their part.
        tokens = int(0.8 * (1 - TASK_SHARE) * speed * seconds) // 1000 * 1000
        if tokens < 20 * run.phases[0].tokens_per_step:
            raise ConfigError(
                f"at {speed:,.0f} tokens/s {seconds:.0f} s are too little to learn from; give more --minutes"
            )
        planned = run.model_copy(update={"loop": run.loop.model_copy(update={"tokens": tokens})})
        write_whole(
            recipe_file,
            f"# The quickstart recipe with a budget for {seconds:.0f} s at {speed:,.0f} tokens/s, measured here.\n"
            + tomli_w.dumps(planned.model_dump(mode="json", exclude_none=True)),
        )
        console.say(f"{speed:,.0f} tokens/s measured: {tokens:,} tokens in the time that is left ({recipe_file})")
    else:
        console.remark(f"{recipe_file} is there, so its budget holds, whatever --minutes says; delete it to plan anew")
    return PretrainRun.parse(read_recipe(recipe_file))


def measure_speed(run: PretrainRun, runtime: Runtime) -> float:
    """Tokens a second of training steps on the first micro-batches, the first step not counted."""
    batches = mlm_batches(run, 0)
    task = MaskedLM(run.model.config(batches.vocab_size, batches.special)).draw(run.seed).to(runtime.device)
    optimizer = build_optimizer(task, run.optim, run.phases[0].lr)
    stream = batches.stream()
    tokens, started_at = 0, 0.0
    for step in range(1 + SPEED_STEPS):
        batch, _ = next(stream)
        with runtime.autocast():
            output = task(batch.to(runtime.device))
        (output.loss_sum / output.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            started_at = time.perf_counter()
        else:
            tokens += batch.num_tokens
    return tokens / (time.perf_counter() - started_at)


def watch_pretraining(run: PretrainRun, folder: Path, runtime: Runtime, console: Console) -> Path:
    """Pretrain, and answer the probes at step 0, half-way and at the end."""
    shown: set[str] = set()

    def show_probes(task: EncoderModel, _path: Path, progress: Progress) -> None:
        stage = stage_of(progress.tokens / run.total_tokens)
        if stage and stage not in shown:
            shown.add(stage)
            answers = answer_probes(task)
            console.table([stage, "answer", "probability", "expected"], [
                [a["text"].strip().replace("\n", " ⏎ "), a["answer"], f"{a['probability']:.0%}", a["expected"]] for a in answers
            ])  # fmt: skip

    with console.progress("pretraining", run.total_tokens) as update:
        hooks = Hooks(on_row=row_shower(console, update), on_checkpoint=show_probes, on_remark=console.remark)
        return pretrain(run, folder, runtime, hooks)


def stage_of(share: float) -> str | None:
    """Which of the three looks a checkpoint at this share of the budget is for."""
    if share == 0:
        return "at step 0"
    return "at the end" if share >= 1 else "half-way" if 0.45 <= share < 0.7 else None


def answer_probes(task: EncoderModel) -> list[dict[str, Any]]:
    """The best answer to each probe."""
    answers = []
    with evaluating(task):
        for text, expected in PROBES:
            best = task.fill_mask(text, top_k=1)[0][0]
            answers.append({"text": text, "expected": expected, "answer": best.text, "probability": best.probability})
    return answers


def probe_history(run_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The probes' answers by the checkpoints of the three looks, read back from disk."""
    history: dict[str, list[dict[str, Any]]] = {}
    budget = json.loads((run_folder / "run.json").read_text())["recipe"]["loop"]["tokens"]
    for checkpoint in RunFolder(run_folder).checkpoints():
        stage = stage_of(RunFolder.progress_of(checkpoint).tokens / budget)
        if stage and stage not in history:
            history[stage] = answer_probes(load(checkpoint))
    return history


def evaluate(
    run: PretrainRun, checkpoint: Path, baselines: dict[str, Any], runtime: Runtime, console: Console
) -> dict[str, dict[str, float | None]]:
    """The encoder on the very positions that the count models guessed, beside them."""
    model = load(checkpoint, device=runtime.device)
    found = evaluate_on(model, held_out(run).once(), runtime)
    scores = {**baselines, "this encoder": {"loss": found["loss"], "accuracy": found["accuracy"]}}
    console.table(["model", "loss (nats)", "top-1 accuracy"], score_rows(scores))
    console.say(verdict(scores))
    return scores


def score_rows(scores: dict[str, dict[str, float | None]]) -> list[list[str]]:
    """Rows of a table, worst loss first."""
    ordered = sorted(scores.items(), key=lambda item: -(item[1]["loss"] or float("inf")))
    return [[name, f"{s['loss']:.3f}" if s["loss"] else "–", f"{s['accuracy']:.1%}"] for name, s in ordered]


def verdict(scores: dict[str, dict[str, float | None]]) -> str:
    """Who wins, said plainly."""
    own = scores["this encoder"]["loss"] or float("inf")
    margins = {name: s["loss"] - own for name, s in scores.items() if s["loss"] is not None and name != "this encoder"}
    parts = [
        f"beats {name} by {margin:.2f} nats" if margin > 0 else f"{name} still wins by {-margin:.2f} nats"
        for name, margin in margins.items()
    ]
    return "This encoder " + "; ".join(parts) + "."


def open_in_transformers(checkpoint: Path, console: Console) -> dict[str, Any]:
    """Load the checkpoint with transformers, where installed, and compare the logits."""
    if importlib.util.find_spec("transformers") is None:
        console.say("transformers is not installed, so this was not tried (pip install 'modernbert[hf]')")
        return {"installed": False}
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ours = load(checkpoint)
    assert isinstance(ours, MaskedLM)
    inputs = tokenizer(PROBES[0][0], return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**inputs).logits[0]
        found = ours.logits(PackedBatch.from_sequences([inputs["input_ids"][0]]))
    difference = (expected - found).abs().max().item()
    console.say(
        f"transformers {transformers.__version__} opens {checkpoint} as {type(theirs).__name__}; "
        f"logits differ by {difference:.1e} at most"
    )
    return {"installed": True, "version": transformers.__version__, "largest_logit_difference": difference}


def next_commands(out: Path) -> list[str]:
    """Commands to paste, with the paths just made."""
    beside_python = Path(sys.executable).with_name("modernbert")
    if shutil.which("modernbert"):
        program = "modernbert"
    else:  # in a virtual environment that is not activated, as after `make quickstart`
        program = os.path.relpath(beside_python) if beside_python.exists() else f"{sys.executable} -m modernbert"
    names = ("run", "task/model", "search/store", "shards", "recipe.toml", "longer")
    run, task, store, shards, recipe, longer = (shlex.quote(str(out / name)) for name in names)
    return [
        f'{program} fill-mask {run} "import [MASK]"',
        f'{program} predict {task} "def urlopen(url, data=None, timeout=10):"',
        *([f'{program} search {store} "parse a date"'] if (out / "search" / "store").exists() else []),
        f"{program} data inspect {shards}",
        f"{program} pretrain {recipe} loop.tokens=10_000_000 --out {longer}",
    ]


def conclude(result: dict[str, Any], out: Path, console: Console) -> None:
    """Write report.md and print the end."""
    seconds = {**result["seconds"], "all of it": sum(result["seconds"].values())}
    report = report_of(result, seconds)
    (out / "report.md").write_text(report, encoding="utf-8")
    console.heading("What next")
    for command in result["commands"]:
        console.say(f"  {command}")
    console.heading("Where the time went")
    console.table(["chapter", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()])
    console.say(f"\nReport: {out / 'report.md'}   curve: {out / 'run' / 'loss.png'}")


def report_of(result: dict[str, Any], seconds: dict[str, float]) -> str:
    """report.md."""
    lines = [
        "# Quickstart",
        "",
        "Loss at the masked tokens of held-out files, and how often the best guess is right:",
        "",
    ]
    lines += markdown_table(["model", "loss (nats)", "top-1 accuracy"], score_rows(result["scores"]))
    lines += ["", verdict(result["scores"]), "", "![loss](run/loss.png)", "", "## Watching it learn", ""]
    stages = list(result["probes"])

    def said(stage: str, probe: int) -> str:
        answer = result["probes"][stage][probe]
        return f"{answer['answer']} ({answer['probability']:.0%})"

    answers = [
        [f"`{text.strip()!r}`", *(said(stage, probe) for stage in stages), expected]
        for probe, (text, expected) in enumerate(PROBES)
    ]
    lines += markdown_table(["sentence", *stages, "expected"], answers)
    task = result["task"]
    lines += ["", "## Which module does a passage come from?", ""]
    lines += markdown_table(["model", "accuracy"], [[name, f"{value:.1%}"] for name, value in task["accuracy"].items()])
    lines += ["", task["verdict"], "", "![confusion](task/model/confusion.png)"]
    if (search := result["search"]) is not None:
        lines += ["", "## Which function does that?", ""]
        lines += markdown_table(["system", "MRR@10"], [[name, f"{value:.3f}"] for name, value in search["mrr"].items()])
        lines += ["", search["verdict"], ""]
        found = [[a["question"], a["function"], a["where"]] for a in search["answers"]]
        lines += markdown_table(["question", "function", "where"], found)
    lines += ["", f"Checkpoint: `{result['checkpoint']}`", "", "## What next", "", "```sh", *result["commands"], "```"]
    lines += ["", "## Where the time went", ""]
    lines += markdown_table(["chapter", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()])
    return "\n".join(lines) + "\n"


def markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *escaped]]
