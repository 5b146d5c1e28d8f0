"""The `finetune` command: what was given on the command line → a run, in view of a person, and its result as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modernbert.console import Console, Update
from modernbert.errors import ConfigError
from modernbert.evaluate.finetune_card import console_rows, metrics_table
from modernbert.evaluate.machine import tune_malloc
from modernbert.finetuned import CARD, CONFUSION
from modernbert.finetuning import finetune
from modernbert.ranks import Ranks
from modernbert.runtime import Precision, Runtime
from modernbert.settings import override, read_recipe, without_none
from modernbert.train.finetune import FinetuneRun
from modernbert.train.loop import Hooks


def finetune_files(
    kind: str,
    model: str,
    out: Path,
    *,
    tasks: Path | None,
    task: dict[str, Any],
    columns: dict[str, str | None],
    run: dict[str, Any],
    settings: Sequence[str],
    device: str = "auto",
    num_threads: int | None = None,
    precision: Precision = "auto",
    console: Console,
) -> dict[str, Any]:
    """`finetune` as it is given on the command line, in view of a person.

    Args:
        kind: of the task, or `several`, which `tasks` describes.
        model: what to start from.
        out: the folder to write.
        tasks: a TOML file with a table for each of several tasks.
        task: of a single one its settings; None where nothing is said.
        columns: likewise.
        run: likewise, of the whole.
        settings: `key=value`, laid over all that.
        device: as of `Runtime.detect`.
        num_threads: likewise.
        precision: likewise.
        console: where it is shown.
    """
    tune_malloc()
    with Ranks.joined(device=device) as ranks:
        with ranks.agreeing():
            values = _values(kind, model, tasks, without_none(task), without_none(columns), without_none(run))
            wanted = FinetuneRun.parse(override(values, settings))
            runtime = Runtime.detect(device=device, precision=precision, num_threads=num_threads, ranks=ranks)
        with console.progress("fine-tuning") as update:
            hooks = Hooks(on_row=_row_shower(console, update), on_remark=console.remark)
            return finetune(wanted, out, runtime, hooks)


def _values(
    kind: str, model: str, tasks: Path | None, task: dict[str, Any], columns: dict[str, Any], run: dict[str, Any]
) -> dict[str, Any]:
    if (kind == "several") != (tasks is not None):
        raise ConfigError(
            "several tasks at once are told by a file: modernbert finetune several MODEL --tasks tasks.toml"
        )
    if tasks is not None:
        if task or columns:
            raise ConfigError(f"--{next(iter(task | columns))}: of several tasks, {tasks} says that for each")
        return {**read_recipe(tasks), **run, "model": model}
    if "train" not in task:
        raise ConfigError("no training examples; give --train FILE")
    return {**run, "model": model, "tasks": [{"kind": kind, **task, "columns": columns}]}


def _row_shower(console: Console, update: Update) -> Callable[[dict[str, Any]], None]:
    """Steps on the bar, evaluations as lines."""

    def show(row: dict[str, Any]) -> None:
        if row["kind"] == "eval":
            known = ("step", "tokens", "seconds")
            scores = [f"{n} {v:.4g}" for n, v in row.items() if isinstance(v, float) and n not in known][:4]
            console.say(f"step {row['step']:>6,}  {'  '.join(scores)}{'  best so far' if row['is_best'] else ''}")
        elif row["kind"] == "train":
            update(row["phase_tokens"], f"tokens  loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s")

    return show


def show_result(result: dict[str, Any], out: Path, console: Console) -> None:
    """A table for each task, and where things are."""
    for name, task in result["tasks"].items():
        several = len(result["tasks"]) > 1
        if several:
            console.heading(name)
        console.table(*console_rows(metrics_table(task)))
        folder = out / name if several else out
        files = [str(folder / file) for file in (CARD, CONFUSION) if (folder / file).exists()]
        console.remark(
            f"the weights of step {result['best']['step']:,}, the best by {result['best']['metric']} on validation, are in "
            f"{folder}; see also {', '.join(files)}"
        )
