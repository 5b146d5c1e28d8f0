"""What `run_report.report` says → the charts of its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from modernbert.evaluate.chart import Chart, Series, number, percent, quantity, value_range, without_extremes

_COLORS = 7
_EARLY = 0.05  # share of the run whose steep beginning may leave the picture of the loss
FIGURES = (  # column, title, how a value reads, drawn from zero, what it is
    ("lr", "Learning rate", quantity, True, ""),
    ("step_tokens", "Batch", quantity, True, "Tokens in a step."),
    ("mask_rate", "Masking rate", percent, True, ""),
    ("gradient_norm", "Gradient norm", quantity, True, "Before the update, over all weights."),
    ("tokens_per_second", "Tokens a second", quantity, True, "Real tokens, within steps."),
    ("mfu", "MFU", percent, True, "Useful operations over the hardware's peak."),
    ("data_wait", "Data wait", percent, True, "Share of a step's time spent waiting for data."),
    ("filled", "Filled", percent, False, "Tokens of a step over the room it has."),
    ("accuracy", "Training accuracy", percent, False, "At masked tokens, with dropout."),
)


class Figure(NamedTuple):
    """A chart in the page, drawn for wide and for narrow screens where it is large."""

    name: str
    title: str
    note: str
    legend: list[tuple[int, str]]  # colour, name
    wide: str
    narrow: str = ""


def _breaks(phases: Sequence[str]) -> list[int]:
    return [index for index in range(1, len(phases)) if phases[index] != phases[index - 1]]


def _boundaries(found: dict[str, Any]) -> list[tuple[float, str]]:
    begun = [phase for phase in found["phases"] if phase["begins"] is not None]
    return [(phase["begins"], phase["name"]) for phase in begun] if len(begun) > 1 else []


def loss_figure(found: dict[str, Any]) -> Figure | None:
    """Training and held-out loss, those of other runs and of the reference."""
    curves = found["curves"]
    if not curves["tokens"]:
        return None
    series = [
        Series(name="", x=curves["tokens"], y=curves["loss"]["mean"], low=curves["loss"]["low"],
               high=curves["loss"]["high"], color=0, faint=True, breaks=_breaks(curves["phase"])),
        Series(name="training", x=curves["tokens"], y=curves["smoothed_loss"], color=0, breaks=_breaks(curves["phase"])),
        _held_out_series("held-out", found["evaluations"], "loss", 1),
    ]  # fmt: skip
    overlaid = []
    if found["reference"]:
        overlaid.append((found["reference"]["curve"]["recipe"], *_reference_points(found["reference"]["curve"])))
    overlaid += [(other["run"], other, other["evaluations"]) for other in found["against"]]
    for index, (name, training, evaluations) in enumerate(overlaid[: _COLORS - 2], start=2):
        series.append(
            Series(name=f"{name}, training", x=training["tokens"], y=training["smoothed_loss"], color=index,
                   breaks=_breaks(training["phase"]))
        )  # fmt: skip
        if evaluations:
            series.append(_held_out_series(f"{name}, held-out", evaluations, "loss", index))
    span, note = _loss_range(found, series)
    chart = Chart(
        title="Loss over tokens", description=_loss_in_words(found), series=series, x_label="tokens", y_range=span,
        boundaries=_boundaries(found), marks=_marks(found["events"]),
    )  # fmt: skip
    legend = [(s.color, s.name) for s in series if s.name]
    return Figure("loss", "Loss", note, legend, chart.svg("loss", 1080, 400), chart.svg("loss-n", 380, 300))


def _reference_points(curve: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = curve["rows"]
    training = {
        "tokens": [row["tokens"] for row in rows], "smoothed_loss": [row["loss"] for row in rows],
        "phase": [row["phase"] for row in rows],
    }  # fmt: skip
    return training, [{**row, "loss": row["eval_loss"]} for row in rows if row.get("eval_loss") is not None]


def _held_out_series(name: str, rows: Sequence[dict[str, Any]], key: str, color: int) -> Series:
    phases = [row.get("phase") or "" for row in rows]
    return Series(
        name=name, x=[row["tokens"] for row in rows], y=[row[key] for row in rows], color=color, markers=True,
        breaks=_breaks(phases),
    )  # fmt: skip


def _loss_range(found: dict[str, Any], series: Sequence[Series]) -> tuple[tuple[float, float], str]:
    """Where the axis ends, so that the first steps do not flatten all that follows; and a remark on what is drawn."""
    note = (
        "Training loss (with dropout, at the phase's masking rate) is averaged over 2% of the run; held-out loss is "
        "at its own masking rate, so the two differ."
    )
    if found["steps_per_bin"] > 1:
        note += f" The faint band spans the lowest and highest of up to {found['steps_per_bin']:,} steps."
    early = _EARLY * max(found["curves"]["tokens"])
    shown = [s for s in series if not s.faint]
    whole = value_range([s.y for s in shown])
    span = value_range([[y for x, y in zip(s.x, s.y, strict=True) if x >= early] for s in shown])
    if whole[1] - span[1] < 0.35 * (span[1] - span[0]):
        return whole, note
    begin = next((y for s in shown for y in s.y if y is not None), 0.0)
    return span, f"{note} The first {_EARLY:.0%} of the run begin above the picture, at {begin:.2f}."


def _loss_in_words(found: dict[str, Any]) -> str:
    head = found["headline"]
    words = (
        f"Training loss is now {number(head['train_loss'], '.3f')}, held-out loss {number(head['heldout_loss'], '.3f')}"
    )
    if found["reference"]:
        return f"{words}. {found['reference']['sentence']}"
    return f"{words}, after {quantity(head['tokens'])} tokens."


def _marks(events: Sequence[dict[str, Any]]) -> list[tuple[float, str]]:
    shown = [event for event in events if event.get("event") in ("nan", "spike", "rollback", "skip")]
    return [(event["tokens"], f"{event['event']}: {event.get('text', '')}") for event in shown[:100]]


def small_figures(found: dict[str, Any]) -> Iterator[Figure]:
    """One chart for each recorded column."""
    curves = found["curves"]
    for column, title, form, from_zero, note in FIGURES:
        if curves[column] is None:
            continue
        values = curves[column]
        line = Series(name=title.lower(), x=curves["tokens"], y=values["mean"], low=values["low"], high=values["high"],
                      breaks=_breaks(curves["phase"]))  # fmt: skip
        edges = without_extremes([*values["low"], *values["high"]], 0.01)
        span = value_range([edges, without_extremes(values["mean"], 0.005)], from_zero=from_zero)
        last = next((value for value in reversed(values["mean"]) if value is not None), None)
        chart = Chart(
            title=f"{title} over tokens", description=f"Last {form(last) if last is not None else 'unknown'}.",
            series=[line], x_label="tokens", y_ticks=form, y_range=span, boundaries=_boundaries(found),
        )  # fmt: skip
        yield Figure(column, title, note, [], chart.svg(column))


def source_figure(found: dict[str, Any]) -> Figure | None:
    """Held-out loss of each source over tokens; None where there is one source, or none recorded."""
    rows = [row for row in found["evaluations"] if row.get("by_source") and row["step"]]
    names = source_names(rows)
    if not rows or len(names) < 2:
        return None
    series = [
        _held_out_series(name, [{**r, "l": r["by_source"].get(name, {}).get("loss")} for r in rows], "l", color)
        for color, name in enumerate(names[:_COLORS])
    ]
    note = f"The {_COLORS} sources with most masked tokens; the table has all." if len(names) > _COLORS else ""
    chart = Chart(
        title="Held-out loss by source, over tokens", series=series, x_label="tokens", boundaries=_boundaries(found),
        description="; ".join(f"{s.name}: {number(s.y[-1], '.3f')} at last" for s in series) + ".",
    )  # fmt: skip
    legend = [(s.color, s.name) for s in series]
    return Figure("source", "Held-out loss by source", note, legend, *_both(chart, "source"))


def _both(chart: Chart, name: str) -> tuple[str, str]:
    """For half a wide page, and for a narrow one."""
    return chart.svg(name, 540, 280), chart.svg(f"{name}-n", 380, 260)


def source_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """By how many targets they have in the last evaluation."""
    targets = {name: scores.get("targets") or 0 for row in rows for name, scores in row["by_source"].items()}
    return sorted(targets, key=lambda name: -targets[name])


def ends(found: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """The first and last evaluation of each phase that have a key, the untrained model's not; each with a label."""
    found_ends = []
    rows = [row for row in found["evaluations"] if row.get(key)]
    for phase in dict.fromkeys(row.get("phase") for row in rows):
        own = [row for row in rows if row.get("phase") == phase]
        own = [row for row in own if row["step"]] or own
        for word, row in {"first": own[0], "last": own[-1]}.items():
            if word == "last" or len(own) > 1:
                found_ends.append((f"{phase} {word}, {quantity(row['tokens'])}", row))
    return found_ends


def position_figure(found: dict[str, Any]) -> Figure | None:
    """Held-out loss over positions, at the first and last evaluation of each phase; None where not recorded."""
    evaluations = ends(found, "by_position")[-_COLORS:]
    series = []
    for color, (label, row) in enumerate(evaluations):
        buckets = [bucket for bucket in row["by_position"] if bucket.get("targets")]
        series.append(
            Series(
                name=label, x=[b["to"] + 1 for b in buckets], y=[b["loss"] for b in buckets], color=color, markers=True
            )
        )
    series = [s for s in series if s.x]
    if all(len(s.x) < 2 for s in series):
        return None
    chart = Chart(
        title="Held-out loss by position in the context", series=series, x_label="positions below", log2_x=True,
        description="; ".join(f"{s.name}: {number(s.y[0], '.3f')} at the beginning, {number(s.y[-1], '.3f')} at the end"
                              for s in series) + ".",
        x_ticks=lambda value: f"{value:,.0f}",
    )  # fmt: skip
    legend = [(s.color, s.name) for s in series]
    note = "A line that rises to the right says that positions so far out are not learnt yet."
    return Figure("position", "Held-out loss by position in the context", note, legend, *_both(chart, "position"))
