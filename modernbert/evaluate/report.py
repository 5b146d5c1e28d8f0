"""A record of `modernbert bench` → tables, a plot, and files.

    OUT/bench.json   the record, with the seconds of every round      OUT/bench.md   its tables
    OUT/bench.png    ratios with their ranges

Into `results/` of a checkout the record goes as one more line of `bench.jsonl` instead, beside the records of other
commits and machines.
"""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import modernbert
from modernbert.disk import write_whole
from modernbert.errors import ConfigError

RECORD, RECORDS, PLOT, TABLES = "bench.json", "bench.jsonl", "bench.png", "bench.md"
UNFINISHED = "bench.unfinished.json"

NAMES = {
    "modernbert": "ours", "transformers": "transformers' ModernBERT", "bert": "BERT-base", "deberta": "DeBERTa-v3-base",
    "accelerated": "transformers, accelerated",
}  # fmt: skip

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLORS = {"transformers": "#0072B2", "bert": "#E69F00", "deberta": "#009E73", "accelerated": "#CC79A7"}
_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)


class Table(NamedTuple):
    """Cells as text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def prepare(out: Path, *, quick: bool = False) -> None:
    """Make the folder, before ten minutes of work are spent.

    Raises:
        ConfigError: it cannot be written, or a quick look would stand among the results.
    """
    if quick and out.resolve() == results_folder():
        raise ConfigError(
            f"--quick is not a measurement and does not belong into {out}; choose another folder with --out"
        )
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / UNFINISHED, "{}\n")  # to see whether one may
        (out / UNFINISHED).unlink()


def write_unfinished(record: dict[str, Any], out: Path) -> None:
    """Keep what is measured so far, until `write`: a bench lasts half an hour."""
    with _writing(out):
        write_whole(out / UNFINISHED, json.dumps(record) + "\n")


def write(record: dict[str, Any], out: Path) -> list[Path]:
    """Write the files of a record into an existing folder.

    Raises:
        ConfigError: it cannot be written.
    """
    with _writing(out):
        if out.resolve() == results_folder():
            written = out / RECORDS
            with written.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        else:
            written = out / RECORD
            write_whole(written, json.dumps(record, indent=1) + "\n")
        write_whole(out / TABLES, markdown(record))
        draw(record, out / PLOT)
        (out / UNFINISHED).unlink(missing_ok=True)
    return [written, out / TABLES, out / PLOT]


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{out} could not be written ({error}); choose another folder with --out") from error


def results_folder() -> Path | None:
    """`results/` of the checkout that this package runs from; None where it is installed."""
    checkout = Path(modernbert.__file__).resolve().parents[1]
    return checkout / "results" if (checkout / "pyproject.toml").exists() else None


def tables(record: dict[str, Any]) -> list[Table]:
    """What a person reads: speed, latency, memory, matrix products."""
    loads = record["loads"]
    found = [_speed(loads)]
    latencies = [entry for entry in loads if "p50_ms" in entry["competitors"][0]]
    for entry in latencies:
        rows = [[NAMES[c["name"]], f"{c['p50_ms']:.1f}", f"{c['p99_ms']:.1f}"] for c in entry["competitors"]]
        found.append(Table(f"Latency: {entry['what']}", ["", "p50, ms", "p99, ms"], rows))
    if record["memory"]:
        found.append(_memory(record["memory"]))
    paths = list(dict.fromkeys(path for entry in loads for path in entry["gemm"]))
    rows = [[e["load"], *(f"{e['gemm'][path] / 1e9:,.0f}" for path in paths)] for e in loads]
    found.append(Table("Best matrix products, GFLOP/s", ["load", *paths], rows))
    return found


def _speed(loads: Sequence[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(c["name"] for entry in loads for c in entry["competitors"][1:]))
    rows = []
    for entry in loads:
        by_name = {c["name"]: c for c in entry["competitors"]}
        ours = entry["competitors"][0]
        beside = [_ratio(by_name[name]) if name in by_name else "–" for name in names]
        rows.append([entry["load"], f"{ours['tokens_per_second']:,.0f}", *beside, f"{entry['share']:.0%}"])
    columns = ["load", "tokens/s", *(f"{NAMES[name]} takes" for name in names), "of best GEMM"]
    return Table("Real tokens a second, and how many times as long others take", columns, rows)


def _ratio(competitor: dict[str, Any]) -> str:
    return f"{competitor['ratio']:.2f}× ({competitor['ratio_low']:.2f}–{competitor['ratio_high']:.2f})"


def _memory(memory: dict[str, Any]) -> Table:
    rows = []
    for found in memory["competitors"]:
        above, weights, before = (f"{found[f'{what}_bytes'] / 2**20:,.0f}" for what in ("above", "weights", "before"))
        rows.append([NAMES[found["name"]], above, f"{found['ratio']:.2f}×", weights, before])
    title = f"Peak memory above the weights, {memory['rows']} × {memory['length']} tokens in one forward pass"
    return Table(title, ["", "MiB", "of ours", "weights, MiB", "all before, MiB"], rows)


def headline(record: dict[str, Any]) -> str:
    """Model, machine and commit in a line."""
    hardware = record["hardware"]
    commit = (
        f"commit {record['commit']}{' with changes' if record['dirty'] else ''}" if record["commit"] else "no commit"
    )
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}"
    where = hardware["gpu"] or f"{threads} of {hardware['cpu']} ({hardware['simd']})"
    versions = record["versions"]
    return (
        f"{record['model']}{', quick: not a measurement' if record['quick'] else ''}, {record['dtype']}, {where}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, {commit}, {record['date'][:10]}"
    )


def remarks(record: dict[str, Any]) -> list[str]:
    """What a reader should hold against the figures."""
    return [f"{entry['load']}: {remark}" for entry in record["loads"] for remark in entry["remarks"]]


def markdown(record: dict[str, Any]) -> str:
    """The tables, below what was measured where."""
    blocks = [f"`{record['command']}`: {headline(record)}. Ranges are the 10th to 90th hundredth of rounds."]
    blocks += map(table_markdown, tables(record))
    blocks += ["\n".join(f"- {remark}" for remark in remarks(record))] if remarks(record) else []
    return "\n\n".join(blocks) + "\n"


def table_markdown(table: Table) -> str:
    """A table under its title."""
    lines = [table.columns, ["---", *("--:" for _ in table.columns[1:])], *table.rows]
    return f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """Bars of how many times as long each competitor takes, by load, and of how much memory."""
    from matplotlib.figure import Figure  # half a second to import; and no window system is wanted
    from matplotlib.patches import Patch

    groups = _groups(record)
    names = [name for name in _COLORS if any(name in beside for _, beside in groups)]
    thickness = 0.8 / max(len(names), 1)
    figure = Figure(figsize=(9, 1.6 + len(groups) * (0.2 + 0.2 * max(len(names), 1))), layout="constrained")
    axes = figure.add_subplot()
    for row, (_, beside) in enumerate(groups):
        for name in beside:
            _bar(
                axes, row + (names.index(name) - (len(names) - 1) / 2) * thickness, thickness * 0.9, name, beside[name]
            )
    ends = [1.0, *(end for _, beside in groups for ratio in beside.values() for end in ratio)]
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    axes.set_xlim(min(*ends, 0.8) / 1.1, max(*ends, 1.5) * 1.25)
    ticks = [t for t in _TICKS if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(groups)), [label for label, _ in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)  # the first load at the top
    axes.set_xlabel("how many times as long, or as much memory, as ours takes: to the right ours is better")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.suptitle("\n".join(textwrap.wrap(f"ModernBERT {headline(record)}", 115)), fontsize=9)
    handles = [Patch(color=_COLORS[name], label=NAMES[name]) for name in names]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(len(names), 1), frameon=False)
    figure.savefig(path, dpi=120)


def _groups(record: dict[str, Any]) -> list[tuple[str, dict[str, tuple[float, float, float]]]]:
    """A label, and for each other competitor its ratio with the range's ends."""
    groups = [
        (
            f"{entry['load']}\n{entry['competitors'][0]['tokens_per_second']:,.0f} tokens/s",
            {c["name"]: (c["ratio"], c["ratio_low"], c["ratio_high"]) for c in entry["competitors"][1:]},
        )
        for entry in record["loads"]
    ]
    if record["memory"]:
        ours, *others = record["memory"]["competitors"]
        memory = {c["name"]: (c["ratio"],) * 3 for c in others}
        groups.append((f"peak memory\n{ours['above_bytes'] / 2**20:,.0f} MiB", memory))
    return groups


def _bar(axes: Any, y: float, height: float, name: str, found: tuple[float, float, float]) -> None:
    """From 1 to the ratio, so that what is slower than ours points right and what is faster left."""
    ratio, low, high = found
    whiskers = [[max(ratio - low, 0)], [max(high - ratio, 0)]]
    axes.barh(y, ratio - 1, height, left=1, color=_COLORS[name], xerr=whiskers, error_kw={"lw": 1, "capsize": 2})
    axes.text(max(high, 1) * 1.03, y, f"{ratio:.{2 if ratio < 1 else 1}f}×", va="center", fontsize=8)
