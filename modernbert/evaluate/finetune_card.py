"""What a fine-tuning knows of itself → the README.md of its folder, and the tables that a console shows.

As in a pretrained model's card nothing is said that the fine-tuning does not know: of files their names and no paths, no
language, and a base model in the hub's metadata only where it came from there. The same result gives the same card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jinja2
import tomli_w
from huggingface_hub import EvalResult, ModelCardData

from modernbert.evaluate.chart import duration, quantity
from modernbert.evaluate.curves import devices
from modernbert.evaluate.finetune_usage import PIPELINES, usage, usage_sentences
from modernbert.evaluate.metrics import ClassScore
from modernbert.evaluate.model_card import HUB_NAME, VERSIONS, Table, cell, file_name, table_in_markdown
from modernbert.settings import without_none
from modernbert.text.labelled_open import FILE_SUFFIXES, kind_of
from modernbert.text.labelled_table import LABELS_FILE

PARTS = ("validation", "test")
_DOES = {"single": "tells which of {n} classes {what} belongs to", "multi": "tells which of {n} classes apply to {what}",
         "regression": "predicts a number for {what}", "tokens": "finds entities in a text",
         "spans": "answers a question from a passage"}  # fmt: skip
_SETTINGS = {
    "epochs": "epochs", "batch_size": "examples a step", "lr": "peak rate", "warmup": "warm-up, share",
    "decay": "decay, share", "seed": "seed", "head_dropout": "dropout of the head", "out_dropout": "dropout of attention",
    "freeze": "encoder frozen",
}  # fmt: skip
_TASK_SETTINGS = {
    "pooling": "pooling", "class_weights": "class weights", "label_smoothing": "label smoothing", "weight": "weight of the loss",
}  # fmt: skip
_CLASSES_SHOWN, _PAIRS_SHOWN = 100, 10


def finetune_card(about: Mapping[str, Any]) -> str:
    """The card of a fine-tuned folder, as Markdown.

    Args:
        about: plain data, all of it JSON's. `kind`, `problem`, `labels`, `metric` (the main one's name), `examples` and
            `files` (counts, and paths or names, by `train`, `validation`, `test`), `validation` and perhaps `test` (scores
            by name), `recipe` (of `FinetuneRun`), `model` (what it was made from). Perhaps also `by_class` (of the test
            examples where there are any), `best` (metric, value, step), `steps`, `seconds`, `environment`, `remarks`,
            `max_length`, `stride`, `parameters`, `picture` (a file's name), `numbered` (the picture has numbers for
            labels), `confused` (label, said, times, of), `from_hub` (the model was loaded from the hub), `licence`.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("modernbert", "evaluate"), autoescape=False, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters["cell"] = cell
    by_class, confused = class_table(about), about.get("confused") or []
    return templates.get_template("finetune_card.md.jinja").render(
        metadata=_metadata(about).to_yaml().strip(),
        title=cell(f"{_base(about)}, fine-tuned: {PIPELINES[about['kind']].replace('-', ' ')}"),
        summary=_summary(about),
        licence=about.get("licence"),
        table=table_in_markdown,
        scores=metrics_table(about),
        score_sentences=_score_sentences(about),
        by_class=by_class if by_class.rows else None,
        by_class_title=f"By {'type' if about['problem'] == 'tokens' else 'class'}, on the {_last(about)} examples:",
        picture=about.get("picture"),
        confused=_confused(confused) if confused else None,
        usage=usage(about),
        usage_sentences=usage_sentences(about),
        data=_data(about),
        remarks=[_without_paths(remark, about) for remark in about.get("remarks") or []],
        settings=_settings(about),
        recipe_toml=tomli_w.dumps(without_none(_plain(about["recipe"], _hub_names(about)))).strip(),
        hardware=_hardware(about),
        limitations=_limitations(about),
    )


def metrics_table(about: Mapping[str, Any]) -> Table:
    """Every metric by part of the data, the main one first; for `Console.table(*console_rows(…))` as well."""
    parts = _parts(about)
    names = list(dict.fromkeys(name for part in parts for name in about[part]))
    names.sort(key=lambda name: name != about["metric"])
    rows = [[name, *(score(about[part].get(name)) for part in parts)] for name in names]
    return Table("|".join(["metric", *(f"{part}>" for part in parts)]), rows)


def class_table(about: Mapping[str, Any]) -> Table:
    """Precision, recall and F1 by class or type of entity; with the numbers of a picture that has no names."""
    found = _by_class(about)
    numbered = bool(about.get("numbered")) and about["problem"] == "single"
    rows = [
        [*([str(number)] if numbered else []), row.label, *map(score, row[1:4]), f"{row.support:,}", f"{row.said:,}"]
        for number, row in enumerate(found, start=1)
    ]
    first = "number>|" if numbered else ""
    return Table(f"{first}{_thing(about)}|precision>|recall>|F1>|{_counted(about)}>|said>", rows[:_CLASSES_SHOWN])


def console_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """A table as `Console.table` takes it."""
    return [name.rstrip(">") for name in table.columns.split("|")], table.rows


def _by_class(about: Mapping[str, Any]) -> list[ClassScore]:
    return [row if isinstance(row, ClassScore) else ClassScore(**row) for row in about.get("by_class") or []]


def score(value: float | None) -> str:
    """A metric in four digits, a dash where there is none."""
    return "–" if value is None else f"{value:.4f}" if abs(value) < 1000 else quantity(value)


def _thing(about: Mapping[str, Any]) -> str:
    return "type" if about["problem"] == "tokens" else "class"


def _counted(about: Mapping[str, Any]) -> str:
    return "entities" if about["problem"] == "tokens" else "examples"


def _parts(about: Mapping[str, Any]) -> list[str]:
    return [part for part in PARTS if about.get(part)]


def _last(about: Mapping[str, Any]) -> str:
    return _parts(about)[-1]


def _base(about: Mapping[str, Any]) -> str:
    return about["model"] if about.get("from_hub") else PurePath(about["model"]).name or "an encoder"


def _metadata(about: Mapping[str, Any]) -> ModelCardData:
    pipeline = PIPELINES[about["kind"]]
    files = about["files"]
    hub_data = {name for path in files.values() if (name := _hub_set(path)) is not None}
    results = [
        EvalResult(
            task_type=pipeline, dataset_type="hub" if _hub_set(_source(about, part)) else "local",
            dataset_name=_file(about, part), dataset_split=part, metric_type=name, metric_value=round(value, 6),
        )
        for part in _parts(about)
        for name, value in about[part].items()
    ]  # fmt: skip
    return ModelCardData(
        model_name=_base(about), license=about.get("licence"), library_name="transformers", pipeline_tag=pipeline,
        tags=["modernbert", "encoder"], datasets=sorted(hub_data) or None, base_model=_hub_model(about),
        metrics=sorted({name for part in _parts(about) for name in about[part]}), eval_results=results,
    )  # fmt: skip


def _hub_model(about: Mapping[str, Any]) -> str | None:
    """What it was made from, by its name on the hub."""
    return about["model"] if about.get("from_hub") and HUB_NAME.fullmatch(about["model"]) else None


def _hub_set(source: Any) -> str | None:
    """The name of a data set on the hub, without configuration, split and revision; None of files and folders."""
    text = str(source)
    name = re.split(r"[:@#]", text.removeprefix("hf:"))[0]
    if not text.startswith("hf:"):
        suffix, compression = kind_of(Path(text))
        is_file = suffix in FILE_SUFFIXES or compression or Path(text).exists()
        return name if not is_file and HUB_NAME.fullmatch(name) else None
    return name if ("/" not in name or HUB_NAME.fullmatch(name)) and not Path(name).is_dir() else None


def _source(about: Mapping[str, Any], part: str) -> str:
    """Where a part's examples are from; validation examples without a file were held out of the training file."""
    files = about["files"]
    assert part in files or part == "validation", f"{part} examples come from a file"
    return str(files.get(part, files["train"]))


def _file(about: Mapping[str, Any], part: str) -> str:
    return _named(_source(about, part))


def _named(source: str) -> str:
    """A file by its name, a data set of the hub as it was given."""
    return source if _hub_set(source) else file_name(source)


def _summary(about: Mapping[str, Any]) -> str:
    what = "a pair of texts" if about["kind"] == "pair" else "a text"
    does = _DOES[about["problem"]].format(n=len(about["labels"]), what=what)
    size = f" with {quantity(about['parameters'])} parameters" if about.get("parameters") else ""
    metric = about["metric"]
    values = [f"{score(about[part][metric])} on {about['examples'][part]:,} {part} examples" for part in _parts(about)
              if metric in about[part]]  # fmt: skip
    known = f" {cell(metric)}: {', '.join(values)}." if values else ""
    return f"A ModernBERT encoder{size}, made from {cell(_base(about))}, that {does}.{known}"


def _score_sentences(about: Mapping[str, Any]) -> list[str]:
    problem, labels, sentences = about["problem"], about["labels"], []
    best = about.get("best")
    if best:
        sentences.append(f"The weights are those of step {best['step']:,}, the best by {cell(best['metric'])} on the "
                         "validation examples, whose scores are flattered by that choice.")  # fmt: skip
    if about.get("test"):
        sentences.append("The test examples were scored once, with the weights so chosen.")
    if problem == "single" and len(labels) == 2:
        sentences.append(f"f1 is that of {cell(labels[1])}.")
    if problem == "tokens":
        sentences.append("f1, precision and recall count entities whose type and both ends are right, as seqeval does; "
                         "accuracy counts words.")  # fmt: skip
    if problem == "spans":
        sentences.append("exact\\_match and f1 are SQuAD's, for Chinese answers CMRC's, as shares of 1.")
    if len(about.get("by_class") or []) > _CLASSES_SHOWN:
        sentences.append(f"Of {len(about['by_class']):,} classes the first {_CLASSES_SHOWN} are shown.")
    if about.get("numbered"):
        name = PurePath(about["picture"]).stem if about.get("picture") else "confusion"
        sentences.append(f"The picture has numbers for labels, in the order of the labels in {name}.json.")
    return sentences


def _confused(pairs: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[pair["label"], pair["said"], f"{pair['times']:,}", f"{pair['of']:,}"] for pair in pairs[:_PAIRS_SHOWN]]
    return Table("most confused: right|said|times>|of>", rows)


def _data(about: Mapping[str, Any]) -> Table:
    rows = []
    for part in ("train", *PARTS):
        if part in about["examples"]:
            held = " (held out of it)" if part not in about["files"] else ""
            rows.append([part, f"{_file(about, part)}{held}", f"{about['examples'][part]:,}"])
    return Table("part|file|examples>", rows)


def _settings(about: Mapping[str, Any]) -> Table:
    recipe = about["recipe"]
    rows = [[words, _said(recipe[name])] for name, words in _SETTINGS.items() if recipe.get(name) is not None]
    task = _task(about)
    rows += [[words, _said(task[name])] for name, words in _TASK_SETTINGS.items() if task.get(name) is not None]
    if len(recipe.get("tasks") or []) > 1:
        rows.append(["tasks trained together", ", ".join(one.get("name") or one["kind"] for one in recipe["tasks"])])
    rows += [[name, f"{about[name]:,}"] for name in ("steps", "tokens", "max_length") if about.get(name)]
    return Table("setting|value", rows)


def _task(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task's own settings among those of several."""
    fitting = [one for one in about["recipe"].get("tasks") or []
               if one["kind"] == about["kind"] and str(one.get("train")) == str(about["files"]["train"])]  # fmt: skip
    return fitting[0] if fitting else {}


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {weight:g}" for name, weight in value.items())
    return (
        {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _hardware(about: Mapping[str, Any]) -> Table | None:
    environment = about.get("environment") or {}
    rows: list[tuple[str, Any]] = [
        ("hardware", devices(environment)),
        ("precision", environment.get("dtype")),
        ("time in training steps", None if about.get("seconds") is None else duration(about["seconds"])),
        ("commit", environment.get("commit")),
        ("versions", ", ".join(f"{name} {environment[name]}" for name in VERSIONS if environment.get(name))),
    ]
    known = [[str(name), str(value)] for name, value in rows if value]
    return Table("|", known) if known else None


def _limitations(about: Mapping[str, Any]) -> list[str]:
    sentences = ["What its training text says, and leaves out, was not examined for bias; its language is not stated."]
    if "test" not in _parts(about):
        chosen = ", by which its weights were chosen" if about.get("best") else ""
        sentences.append(f"It was scored on the validation examples alone{chosen}.")
    found = _by_class(about)
    if few := sum(row.support < 10 for row in found):
        sentences.append(f"{few} of {len(found)} rows by {_thing(about)} rest on fewer than ten examples.")
    return sentences


def _hub_names(about: Mapping[str, Any]) -> set[str | None]:
    """The model and the data sets, as they were given, that are on the hub."""
    return {_hub_model(about), *(str(path) for path in about["files"].values() if _hub_set(path))}


def _plain(value: Any, keep: set[str | None]) -> Any:
    """The same without the folders of paths."""
    if isinstance(value, dict):
        return {name: _plain(part, keep) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, keep) for part in value]
    return file_name(value) if isinstance(value, str) and "/" in value and value not in keep else value


def _without_paths(remark: str, about: Mapping[str, Any]) -> str:
    for path in sorted(map(str, about["files"].values()), key=len, reverse=True):
        remark = remark.replace(str(PurePath(path).parent / LABELS_FILE), LABELS_FILE).replace(path, _named(path))
    return remark
