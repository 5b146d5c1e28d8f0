"""Scores of several models → one row a task and metric, side by side: mean ± sd, the best one, differences with intervals.

    score files, or lists of scores → the newest of each (model, task, metric) → rows → table, Markdown, PNG

Where two models were run with the same seeds on the same examples they are compared in pairs; else unpaired (Welch). A
difference is called one only where its 95 % interval leaves out 0. Where protocols differ a row says in what.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from modernbert.console import Console
from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.benchmarks import LOWER_IS_BETTER
from modernbert.evaluate.score import WHERE_COMPUTED, Score, ScoreFile
from modernbert.evaluate.seeds import Summary, paired, unpaired

Source: TypeAlias = str | Path | Sequence[Score]

_SHARES = frozenset(
    {
        *(
            "accuracy",
            "f1",
            "macro_f1",
            "micro_f1",
            "matthews",
            "pearson",
            "spearman",
            "exact_match",
            "subset_accuracy",
        ),
        *("ndcg@10", "mrr@10", "recall@100"),
    }
)
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")  # Okabe and Ito's


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A model's mean less the first model's."""

    summary: Summary
    is_paired: bool

    @property
    def is_one(self) -> bool:
        """Whether its interval leaves out 0."""
        return self.summary.includes(0.0) is False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one task."""

    suite: str
    task: str
    metric: str
    scores: Mapping[str, Score]  # model → its score; those that have one
    best: str | None  # None where nobody is: one model, or equals
    differences: Mapping[str, Difference]  # model → against the first one
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Models side by side."""

    models: tuple[str, ...]  # in the order given; the first is what the others are compared with
    rows: tuple[Row, ...]


def compare(sources: Sequence[Source]) -> Comparison:
    """Put models side by side.

    Args:
        sources: score files, or lists of scores; each may hold several models.

    Returns:
        Models by their names as given, or name and fingerprint where two models have one name.

    Raises:
        DataError: a file that is not there, or holds no scores.
        ConfigError: no sources.
    """
    if not sources:
        raise ConfigError("nothing to compare; give at least one file of scores")
    scores = [score for source in sources for score in _scores_of(source)]
    names = _names(scores)
    newest: dict[tuple[str, str, str], dict[str, Score]] = {}
    for score in scores:
        cells = newest.setdefault((score.suite, score.task, score.metric), {})
        cells[names[score.model, score.model_fingerprint]] = score
    models = tuple(dict.fromkeys(names.values()))
    rows = []
    for (suite, task, metric), cells in newest.items():
        ordered = {model: cells[model] for model in models if model in cells}
        first = ordered.get(models[0])
        rows.append(
            Row(
                suite=suite, task=task, metric=metric, scores=ordered, best=_best(metric, ordered),
                differences={} if first is None else _differences(models[0], first, ordered),
                remarks=tuple(_remarks(ordered)),
            )
        )  # fmt: skip
    return Comparison(models=models, rows=tuple(rows))


def _scores_of(source: Source) -> list[Score]:
    if not isinstance(source, str | Path):
        return list(source)
    if not Path(source).is_file():
        raise DataError(f"{source}: no such file; give one that `modernbert evaluate` wrote")
    found = list(ScoreFile(source))
    if not found:
        raise DataError(f"{source} holds no scores; give one that `modernbert evaluate` wrote")
    return found


def _names(scores: Sequence[Score]) -> dict[tuple[str, str], str]:
    """(model, fingerprint) → a name that no other model has."""
    keys = list(dict.fromkeys((score.model, score.model_fingerprint) for score in scores))
    given = [model for model, _ in keys]
    return {
        (model, fingerprint): model if given.count(model) == 1 else f"{model} ({fingerprint[:6]})"
        for model, fingerprint in keys
    }


def _best(metric: str, scores: Mapping[str, Score]) -> str | None:
    ranked = [(score.value, model) for model, score in scores.items() if math.isfinite(score.value)]
    if len(ranked) < 2:
        return None
    ranked.sort(reverse=metric not in LOWER_IS_BETTER)
    return None if ranked[0][0] == ranked[1][0] else ranked[0][1]


def _differences(name: str, first: Score, scores: Mapping[str, Score]) -> dict[str, Difference]:
    found = {}
    for model, score in scores.items():
        if model == name or not all(map(math.isfinite, (*score.values, *first.values))):
            continue
        pairs = _are_paired(first, score)
        summary = (paired if pairs else unpaired)(score.values, first.values)
        found[model] = Difference(summary=summary, is_paired=pairs)
    return found


def _are_paired(a: Score, b: Score) -> bool:
    """Whether the same seed meant the same for both."""
    same = all(_canonical(a.protocol.get(name)) == _canonical(b.protocol.get(name)) for name in _DRAWN_BY_SEED)
    return same and a.n == b.n and bool(a.protocol.get("seeds"))


_DRAWN_BY_SEED = ("seeds", "files", "max_examples", "max_test")


def _remarks(scores: Mapping[str, Score]) -> list[str]:
    """In what protocols differ, in words; and figures that do not compare."""
    protocols = [score.protocol for score in scores.values()]
    names = sorted({name for protocol in protocols for name in protocol} - WHERE_COMPUTED)
    differing = [name for name in names if len({_canonical(protocol.get(name)) for protocol in protocols}) > 1]
    return [f"protocols differ in {', '.join(differing)}"] if differing else []


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=list)


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: a model's mean ± sd, `*` behind the best, and the difference to the first model below it."""
    columns = ["suite", "task", "metric", *comparison.models]
    rows = []
    for row in comparison.rows:
        cells = [_cell(row, model) for model in comparison.models]
        rows.append([row.suite, row.task + _marks(comparison, row), row.metric, *cells])
    return columns, rows


def remarks(comparison: Comparison) -> list[str]:
    """What the reader of a table must know."""
    said = list(dict.fromkeys(remark for row in comparison.rows for remark in row.remarks))
    found = [f"{'†' * number} {remark}" for number, remark in enumerate(said, start=1)]
    if any(row.differences for row in comparison.rows):
        kinds = {difference.is_paired for row in comparison.rows for difference in row.differences.values()}
        how = " or ".join("paired by seed" if kind else "unpaired (Welch)" for kind in sorted(kinds, reverse=True))
        found.insert(0, f"Δ: less {comparison.models[0]}, 95 % interval, {how}; shares in points of 100; * (bold) best")
    return found


def markdown(comparison: Comparison) -> str:
    """The table with the best of each row in bold, and what must be known of it."""
    columns, rows = table(comparison)
    lines = [_line(columns), "|---" * len(columns) + "|"]
    lines += [_line([_as_markdown(cell) for cell in row]) for row in rows]
    return "\n".join(lines) + "\n\n" + "".join(f"{remark}  \n" for remark in remarks(comparison))


def show(comparison: Comparison, console: Console) -> None:
    """Print the table, and the remarks below it."""
    console.table(*table(comparison))
    for remark in remarks(comparison):
        console.say(remark)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _as_markdown(cell: str) -> str:
    """On one line, the best in bold."""
    mean, *difference = cell.split("\n")
    return "<br>".join([f"**{mean[:-2]}**" if mean.endswith(" *") else mean, *difference])


def _marks(comparison: Comparison, row: Row) -> str:
    said = list(dict.fromkeys(remark for other in comparison.rows for remark in other.remarks))
    return "".join(" " + "†" * (said.index(remark) + 1) for remark in row.remarks)


def _cell(row: Row, model: str) -> str:
    score = row.scores.get(model)
    if score is None:
        return "–"
    if not math.isfinite(score.value):
        return "not defined"
    scale = 100.0 if row.metric in _SHARES else 1.0
    spread = "" if score.sd is None else f" ± {_number(score.sd * scale)}"
    text = f"{_number(score.value * scale)}{spread}{' *' if row.best == model else ''}"
    difference = row.differences.get(model)
    if difference is None:
        return text
    found = difference.summary
    ends = "" if found.low is None else f" [{found.low * scale:+.2f}, {found.high * scale:+.2f}]"  # type: ignore[operator]
    return f"{text}\nΔ {found.mean * scale:+.2f}{ends}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def plot(comparison: Comparison, path: str | Path) -> None:
    """A PNG: a panel a metric, a line a task, a dot a model with the interval of its mean.

    Raises:
        ConfigError: it cannot be written.
    """
    from matplotlib.figure import Figure  # half a second to import; and no window system is wanted

    metrics = list(dict.fromkeys(row.metric for row in comparison.rows))
    of = {metric: [row for row in comparison.rows if row.metric == metric] for metric in metrics}
    num_models = len(comparison.models)
    heights = [len(rows) * (0.22 * num_models + 0.3) + 0.9 for rows in of.values()]
    figure = Figure(figsize=(9, sum(heights) + 0.5 + 0.2 * num_models), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, (metric, rows) in zip(panels, of.items(), strict=True):
        _draw(panel, metric, rows, comparison.models)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=1)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # a suffix that is no picture's is a ValueError
        raise ConfigError(f"{path} cannot be written ({error}); choose a .png where you may write") from error


def _draw(panel: Any, metric: str, rows: Sequence[Row], models: Sequence[str]) -> None:
    scale = 100.0 if metric in _SHARES else 1.0
    for number, model in enumerate(models):
        shift = 0.7 * ((number + 0.5) / len(models) - 0.5)
        found = [(place, row.scores[model]) for place, row in enumerate(rows) if model in row.scores]
        found = [(place, score) for place, score in found if math.isfinite(score.value)]
        values = [score.value * scale for _, score in found]
        below = [0.0 if s.low is None else (s.value - s.low) * scale for _, s in found]
        above = [0.0 if s.high is None else (s.high - s.value) * scale for _, s in found]
        panel.errorbar(
            values, [place + shift for place, _ in found], xerr=[below, above], fmt="o", markersize=5, capsize=3,
            color=_COLORS[number % len(_COLORS)], label=model,
        )  # fmt: skip
    panel.set_yticks(range(len(rows)), [row.task for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    unit = ", points of 100" if scale != 1.0 else ""
    panel.set_xlabel(f"{metric}{unit} ({'lower' if metric in LOWER_IS_BETTER else 'higher'} is better)")
    if metric == "pseudo_perplexity":
        panel.set_xscale("log")
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
