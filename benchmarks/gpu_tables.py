"""What `gpu.py` found → its tables: the four headline ratios, the bench, training, parity, attention."""

from __future__ import annotations

from typing import Any

from modernbert.evaluate import report
from modernbert.evaluate.peers import OURS

# What is asked of it: (what, load, beside whom, at least so many times as long, or as much).
HEADLINES = (
    ("512 tokens", "fixed-512", "deberta", 2.0),
    ("mixed lengths", "mixed", "deberta", 4.0),
    ("8,192 tokens", "8192", "bert", 3.0),
    ("peak memory", "memory", "deberta", 5.0),
)

# Ettin's training on one H100 (shared facts: hours for 2 T tokens), for orientation.
ETTIN = {"tiny": 985_000, "small": 463_000, "base": 295_000, "large": 146_000}


def headlines(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The four ratios that are asked for, as far as they were measured."""
    bench = found.get("bench") or {"loads": [], "memory": None}
    sides = {entry["load"]: entry["competitors"] for entry in bench["loads"]}
    if bench["memory"]:
        sides["memory"] = bench["memory"]["competitors"]
    rows = []
    for what, load, beside, target in HEADLINES:
        by_name = {c["name"]: c["ratio"] for c in sides.get(load, ())}
        if beside in by_name:
            ratio = by_name[beside]
            rows.append({"what": what, "beside": beside, "ratio": ratio, "target": target, "reached": ratio >= target,
                         "others": {name: by_name[name] for name in by_name if name not in (OURS, beside)}})  # fmt: skip
    return rows


def parity_table(parity: dict[str, Any]) -> report.Table:
    """Backend and dtype by the worst of all cases, SDPA's worst beside it."""
    rows = []
    for key in dict.fromkeys((row["backend"], row["dtype"]) for row in parity["attention"]):
        cases = [row for row in parity["attention"] if (row["backend"], row["dtype"]) == key]
        cells = []
        for side in ("forward", "backward"):
            done = [row[side] for row in cases if row.get(side)]
            cells.append(f"{max(d['error'] for d in done):.1e} ({max(d['sdpa'] for d in done):.1e})" if done else "–")
        failed = sum(not case[side]["passed"] for case in cases for side in ("forward", "backward") if case.get(side))
        skipped = sum("skipped" in case for case in cases)
        verdict = f"{failed} failed" if failed else "passed" if skipped < len(cases) else "not done"
        rows.append([*key, str(len(cases) - skipped), *cells, verdict])
    for row in parity["models"]:
        verdict = "passed" if row["passed"] else "failed"
        rows.append(["whole model", row["dtype"], "1", f"{row['ours']:.1e} ({row['theirs']:.1e})", "–", verdict])
    columns = ["", "dtype", "cases", "forward", "backward", "verdict"]
    return report.Table("Parity: largest error beside float32, in brackets SDPA's or transformers' own", columns, rows)


def tables(found: dict[str, Any]) -> list[report.Table]:
    """Everything that was found, the headlines first."""
    made = [_headline_table(headlines(found))]
    if "bench" in found:
        made += report.tables(found["bench"])
    if "training" in found:
        made.append(_training_table(found["training"]))
    if "parity" in found:
        made.append(parity_table(found["parity"]))
    if "attention" in found:
        made.append(_attention_table(found["attention"]))
    return made


def _headline_table(rows: list[dict[str, Any]]) -> report.Table:
    cells = []
    for row in rows:
        beside, reached = report.NAMES[row["beside"]], "reached" if row["reached"] else "missed"
        others = ", ".join(f"{report.NAMES[name]} {ratio:.2f}×" for name, ratio in row["others"].items())
        cells.append([row["what"], beside, f"{row['ratio']:.2f}×", f"{row['target']:g}×", reached, others])
    return report.Table("Headlines", ["", "beside", "takes", "asked", "", "others take"], cells)


def _training_table(rows: list[dict[str, Any]]) -> report.Table:
    cells = []
    for row in rows:
        rate = f"{row['tokens_per_second']:,.0f} ({row['low']:,.0f}–{row['high']:,.0f})"
        memory = f"{row['peak_memory_bytes'] / 2**30:.1f}" if row["peak_memory_bytes"] else "–"
        cells.append(
            [row["model"], f"{row['tokens']:,}", rate, f"{ETTIN[row['model']]:,}", f"{row['mfu']:.0%}", memory]
        )
    columns = ["", "tokens a step", "tokens/s", "Ettin, one H100", "MFU", "peak, GiB"]
    return report.Table("Training steps", columns, cells)


def _attention_table(rows: list[dict[str, Any]]) -> report.Table:
    cells = []
    for row in rows:
        texts, window = f"{row['documents']} × {row['length']}", str(row["half_window"] or "–")
        cells.append([row["backend"], row["flash"], texts, window, f"{1e3 * row['median_s']:.3f}"])
    return report.Table("Attention alone, 12 heads of 64", ["", "flash", "texts", "window ±", "ms"], cells)


def markdown(found: dict[str, Any]) -> str:
    """`gpu.md`."""
    blocks = ["# GPU"]
    if "bench" in found:
        blocks.append(report.headline(found["bench"]))
    blocks += [report.table_markdown(table) for table in tables(found) if table.rows]
    notes = [f"not done: {line}" for line in found["skipped"]]
    notes += [f"broken: {section}: {error}" for section, error in found["broken"].items()]
    notes += [f"{which}: {reason}" for which, reason in found.get("parity", {}).get("impossible", {}).items()]
    notes += [f"flash attention 3: {found['flash attention 3']}"] if "flash attention 3" in found else []
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)]) + "\n"


def passed(found: dict[str, Any]) -> bool:
    """Whether nothing broke and no comparison failed."""
    rows = [*found.get("parity", {}).get("attention", ()), *found.get("parity with FA3", ())]
    sides = [row[side] for row in rows for side in ("forward", "backward") if row.get(side)]
    models = found.get("parity", {}).get("models", ())
    return not found["broken"] and all(row["passed"] for row in [*sides, *models])
