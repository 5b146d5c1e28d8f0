"""What `run_report.report` says → one HTML page: charts as inline SVG, tables, nothing from the network.

A page is some 250 kB, whatever the run's length. It follows the reader's light or dark, and needs no script: a small one
only reads off values under the pointer.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import tomli_w

from modernbert.disk import write_whole
from modernbert.errors import ConfigError
from modernbert.evaluate.chart import duration, number, percent, quantity
from modernbert.evaluate.curves import devices
from modernbert.evaluate.run_figures import (
    FIGURES,
    ends,
    loss_figure,
    position_figure,
    small_figures,
    source_figure,
    source_names,
)
from modernbert.settings import without_none


class Table(NamedTuple):
    """Cells as text; columns of numbers are set right."""

    caption: str
    columns: list[tuple[str, bool]]  # heading, whether numbers
    rows: list[list[str]]


def write_page(found: dict[str, Any], out: Path) -> Path:
    """Write the page.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_whole(out, render(found))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    return out


def render(found: dict[str, Any]) -> str:
    """The page as text."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("modernbert", "evaluate"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template("run_report.html").render(
        found=found,
        cards=_cards(found),
        share=min(1.0, found["headline"]["tokens"] / max(found["headline"]["total_tokens"], 1)),
        loss=loss_figure(found),
        figures=list(small_figures(found)),
        missing=[title for column, title, *_ in FIGURES if found["curves"][column] is None],
        held_out=[figure for figure in (source_figure(found), position_figure(found)) if figure],
        phases=_phases(found),
        others=_others(found),
        sources=_sources(found),
        positions=_positions(found),
        checkpoints=_checkpoints(found),
        events=_events(found),
        sessions=_sessions(found),
        machine=_machine(found),
        recipe=tomli_w.dumps(without_none(found["recipe"])),
    )


def _cards(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value, and a smaller line."""
    head = found["headline"]
    left = head["seconds_left"]
    accuracy = head["heldout_accuracy"]
    at = f"at {quantity(head['heldout_at'])} tokens" if head["heldout_at"] is not None else ""
    cards = [
        ("Tokens", quantity(head["tokens"]), f"of {quantity(head['total_tokens'])}, step {head['step']:,}"),
        ("Held-out loss", number(head["heldout_loss"], ".3f"),
         ", ".join(filter(None, [at, f"accuracy {accuracy:.1%}" if accuracy is not None else ""]))),
        ("Training loss", number(head["train_loss"], ".3f"), "mean over the last 1%"),
        ("Tokens a second", quantity(head["tokens_per_second"]) if head["tokens_per_second"] else "–", "recently"),
        ("Time in steps", duration(head["seconds"]), "over all sessions"),
    ]  # fmt: skip
    if head["status"] != "finished":
        cards.append(("Time left", duration(left), "at the recent pace"))
    return cards


def moment(iso: str | None) -> str:
    """A date and minute in UTC."""
    try:
        return datetime.datetime.fromisoformat(iso or "").astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return iso or "–"


def _table(caption: str, columns: str, rows: list[list[str]]) -> Table:
    """Columns as `name|number>|…`: those that end in > are numbers."""
    return Table(caption, [(name.rstrip(">"), name.endswith(">")) for name in columns.split("|")], rows)


def _phases(found: dict[str, Any]) -> Table:
    rows = [
        [
            phase["name"], f"{quantity(phase['done'])} of {quantity(phase['tokens'])}", number(phase["steps"]),
            number(phase["sequence_length"]), quantity(phase["tokens_per_step"] or 0), quantity(phase["lr"] or 0),
            percent(phase["mask_rate"] or 0), *(number(phase[key], ".3f") for key in
                                                ("loss_first", "loss_last", "heldout_first", "heldout_last")),
            duration(phase["seconds"]),
            quantity(float(f"{phase['tokens_per_second']:.3g}")) if phase["tokens_per_second"] else "–",
        ]
        for phase in found["phases"]
    ]  # fmt: skip
    columns = "phase|tokens>|steps>|length>|batch>|peak rate>|masked>|loss, first>|last>|held-out, first>|last>|time>|tokens/s>"
    return _table("Phases", columns, rows)


def _others(found: dict[str, Any]) -> Table | None:
    rows = [
        [name, head["status"], quantity(head["tokens"]), quantity(head["parameters"]) if head["parameters"] else "–",
         number(head["train_loss"], ".3f"), number(head["heldout_loss"], ".3f"), duration(head["seconds"])]
        for name, head in [(found["run"], found["headline"]), *((o["run"], o["headline"]) for o in found["against"])]
    ]  # fmt: skip
    columns = "run|status|tokens>|parameters>|training loss>|held-out loss>|time in steps>"
    return _table("Runs side by side", columns, rows) if found["against"] else None


def _sources(found: dict[str, Any]) -> Table | None:
    looks = ends(found, "by_source")
    names = source_names([row for _, row in looks])
    rows = [[name, *(number(row["by_source"].get(name, {}).get("loss"), ".3f") for _, row in looks)] for name in names]
    return (
        _table("Held-out loss by source", "source|" + "|".join(f"{label}>" for label, _ in looks), rows)
        if rows
        else None
    )


def _positions(found: dict[str, Any]) -> Table | None:
    looks = ends(found, "by_position")
    buckets = sorted({(b["from"], b["to"]) for _, row in looks for b in row["by_position"]})
    losses = [{(b["from"], b["to"]): b["loss"] for b in row["by_position"] if b.get("targets")} for _, row in looks]
    rows = [[f"{low:,} to {high:,}", *(number(of.get((low, high)), ".3f") for of in losses)] for low, high in buckets]
    columns = "positions>|" + "|".join(f"{label}>" for label, _ in looks)
    return _table("Held-out loss by position", columns, rows) if rows else None


def _checkpoints(found: dict[str, Any]) -> Table:
    rows = [
        [c["name"], number(c["step"]), quantity(c["tokens"]) if c["tokens"] is not None else "–",
         number(c["heldout_loss"], ".3f"), number(c["stall_seconds"], ".2f"), number(c["write_seconds"], ".1f"),
         "there" if c["there"] else "deleted"]
        for c in found["checkpoints"]
    ]  # fmt: skip
    return _table("Checkpoints", "folder|step>|tokens>|held-out loss>|stall, s>|write, s>|now", rows)


def _events(found: dict[str, Any]) -> Table:
    rows = [
        [
            number(e.get("step")),
            e.get("phase") or "–",
            quantity(e.get("tokens") or 0),
            str(e.get("event")),
            e.get("text") or "",
        ]
        for e in found["events"]
    ]
    return _table("Events", "step>|phase|tokens>|event|what happened", rows)


def _sessions(found: dict[str, Any]) -> Table:
    rows = []
    for index, session in enumerate(found["sessions"] or [], start=1):
        place = session.get("environment") or {}
        rows.append([
            str(index), moment(session.get("started_at")), number(session.get("from_step")),
            quantity(session.get("from_tokens") or 0), session.get("ended") or "has not said",
            devices(place) or "–", number(place.get("threads")), str(place.get("torch") or "–"),
            str(place.get("commit") or "–"),
        ])  # fmt: skip
    columns = "session>|started|from step>|from tokens>|ended by|device|threads>|torch|commit"
    return _table("Sessions", columns, rows)


def _machine(found: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [(key.replace("_", " "), str(value)) for key, value in found["environment"].items() if value is not None]
    if found["peak_flops"]:
        pairs.append(("peak for MFU", f"{found['peak_flops'] / 1e9:,.0f} GFLOP/s ({found['peak_source']})"))
    data = found["data"]
    for name, fingerprint in data.items() if isinstance(data, dict) else [("data", data)] if data else []:
        pairs.append((f"fingerprint of {name}", str(fingerprint)))
    return pairs
