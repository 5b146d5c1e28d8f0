"""A finished run → its reference loss curve, a small JSON file; and whether another run is on track beside it.

The curves of the package's own recipes lie in `modernbert/recipes/curves/`. A curve has at most 200 points; each holds
the training loss averaged over 2 % of the run, and, where an evaluation was made, the held-out loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open

from modernbert.disk import write_whole
from modernbert.errors import ConfigError
from modernbert.evaluate.run_rows import PHASE_KEYS, Row, RunRows, bin_steps, plain, read_run, smoothed
from modernbert.model import hub
from modernbert.train.recipe import tokens_of

Points: TypeAlias = Sequence[tuple[float, str, float]]  # tokens, phase, loss

MAX_POINTS = 200
SAME_DATA, OTHER_DATA = 0.03, 0.2  # how far above the reference's a loss may lie and still be on track


def curve_names() -> list[str]:
    """The reference curves that come with the package."""
    folder = resources.files("modernbert") / "recipes" / "curves"
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def load_curve(name_or_path: str) -> dict[str, Any]:
    """A curve of the package by its name, or one that `write_curve` made.

    Raises:
        ConfigError: neither exists, or it is no curve.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        source, origin = path, str(path)
    elif name_or_path in curve_names():
        source, origin = resources.files("modernbert") / "recipes" / "curves" / f"{name_or_path}.json", name_or_path  # type: ignore[assignment]
    else:
        known = ", ".join(curve_names()) or "none yet"
        raise ConfigError(f"{name_or_path}: no such reference curve; there are {known}, or give a .json file")
    try:
        curve = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{origin} cannot be read as a reference curve ({error}); give another --reference"
        ) from error
    rows = curve.get("rows") if isinstance(curve, dict) else None
    if not rows or not isinstance(rows, list) or not all(map(_is_point, rows)):
        raise ConfigError(f"{origin} holds no rows of tokens, phase and loss; make one with --save-reference")
    phases, total = curve.get("phases") or [], curve.get("total_tokens")
    if not isinstance(curve.get("recipe"), str) or not isinstance(total, int) or total < 1:
        raise ConfigError(f"{origin} says no recipe and total_tokens; make one with --save-reference")
    if not isinstance(phases, list) or not all(isinstance(phase, dict) and "name" in phase for phase in phases):
        raise ConfigError(f"{origin}: its phases are no list of named ones; make one with --save-reference")
    return curve


def _is_point(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("phase"), str)
        and all(isinstance(row.get(key), int | float) and math.isfinite(row[key]) for key in ("tokens", "loss"))
        and isinstance(row.get("eval_loss") or 0.0, int | float)
    )


def write_curve(run: Path, name: str, note: str = "") -> dict[str, Any]:
    """The reference curve of a finished run.

    Args:
        run: its folder.
        name: what it is called; the recipe's name is best.
        note: what a reader should know, such as where the data is from.

    Raises:
        ConfigError: the run is not finished.
        CheckpointError: the folder holds no run.
    """
    rows = read_run(run)
    if rows.about.get("status") != "finished" or not rows.phases:
        raise ConfigError(f"{run} is not finished, so it is no reference; go on with it by its own command first")
    environment, recipe = rows.about.get("environment") or {}, rows.about["recipe"]
    return {
        "recipe": name,
        "preset": recipe["model"].get("preset"),
        "parameters": count_parameters(run),
        "total_tokens": rows.tokens,
        "data": rows.about.get("data"),
        "commit": environment.get("commit"),
        "hardware": hardware(environment),
        "phases": phase_settings(recipe),
        "note": note,
        "rows": _points(rows),
    }


def save_curve(run: Path, file: Path, note: str = "") -> dict[str, Any]:
    """Write the reference curve of a finished run, named as its file.

    Raises:
        ConfigError: the run is not finished, or the file cannot be written.
    """
    if file.suffix != ".json":
        raise ConfigError(f"{file}: a reference curve is a .json file; give --save-reference NAME.json")
    curve = write_curve(run, file.stem, note)
    points = ",\n  ".join(json.dumps(row) for row in curve["rows"])
    text = json.dumps(curve | {"rows": []}, indent=1).replace('"rows": []', f'"rows": [\n  {points}\n ]')
    try:
        write_whole(file, text + "\n")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}); give another --save-reference") from error
    return curve


def _points(rows: RunRows) -> list[Row]:
    every = -(-len(rows.evaluations) // (MAX_POINTS // 2)) or 1
    evaluations = rows.evaluations[::-1][::every]
    room = MAX_POINTS - len(evaluations)
    bins = bin_steps(rows, num_bins=room // 2, min_bins=room // 2 // len(rows.phases))
    points = list(zip(bins.tokens.tolist(), bins.phase.tolist(), [None] * len(bins.starts), strict=True))
    points += [(row["tokens"], rows.phases.index(row["phase"]), row["loss"]) for row in evaluations]
    points.sort(key=lambda point: (point[1], point[0]))
    tokens, phase = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points])
    found = []
    for point, loss in zip(points, plain(smoothed(rows, tokens, phase)), strict=True):
        row: Row = {"tokens": round(point[0]), "phase": rows.phases[point[1]], "loss": loss}
        found.append(row if point[2] is None else row | {"eval_loss": plain([point[2]])[0]})
    return [row for row in found if row["loss"] is not None]


def phase_settings(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each phase of a recipe in run.json: its name, tokens, and what a loss depends on. Older recipes have shares."""
    total = recipe["loop"].get("tokens") or 0
    return [
        {
            "name": phase["name"],
            "tokens": tokens_of(phase["tokens"], total) if "tokens" in phase else round(phase.get("share", 0) * total),
            **{key: phase.get(key) for key in PHASE_KEYS},
        }
        for phase in recipe["phases"]
    ]


def count_parameters(run: Path) -> int | None:
    """Weights of the newest checkpoint, from its header alone; None where there is none that can be read."""
    for checkpoint in reversed(hub.checkpoints_in(run)):
        try:
            with safe_open(checkpoint / hub.WEIGHTS, framework="np") as tensors:
                return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            continue  # being written, or damaged: an older one has the same shape
    return None


def devices(environment: dict[str, Any]) -> str | None:
    """The device, with how many of them where there is more than one; processes on a CPU share it."""
    name, count = environment.get("device"), environment.get("device_count")
    if not name:
        return None
    return (
        f"{count} × {name}" if isinstance(count, int) and count > 1 and not str(name).startswith("cpu") else str(name)
    )


def hardware(environment: dict[str, Any]) -> str | None:
    """Device, number type and threads, in a few words."""
    parts = [devices(environment), environment.get("dtype")]
    threads = environment.get("threads")
    found = [str(part) for part in parts if part] + ([f"{threads} threads"] if threads else [])
    return ", ".join(found) or None


def fitting_curve(rows: RunRows, parameters: int | None) -> dict[str, Any] | None:
    """The curve of the same preset and size that is nearest: the same data first, then the most similar budget."""
    preset = rows.about["recipe"]["model"].get("preset")
    total = sum(phase["tokens"] for phase in phase_settings(rows.about["recipe"])) or 1
    curves = [load_curve(name) for name in curve_names()]
    fitting = [
        curve
        for curve in curves
        if preset is not None and curve.get("preset") == preset and _alike(curve.get("parameters"), parameters)
    ]

    def distance(curve: dict[str, Any]) -> tuple[bool, float]:
        return curve.get("data") != rows.about.get("data"), abs(math.log(curve["total_tokens"] / total))

    return min(fitting, key=distance, default=None)


def _alike(a: int | None, b: int | None) -> bool:
    return a is None or b is None or abs(a / b - 1) <= 0.05


def compare(rows: RunRows, curve: dict[str, Any]) -> dict[str, Any]:
    """Where a run stands beside a reference, at the last point that both have in the same phase.

    Returns:
        `verdict` ("on track", "ahead", "behind" or "unknown"), `sentence`, and `tokens`, `ours`, `theirs`, `measure`.
    """
    name = curve["recipe"]
    ours, theirs = _losses(rows), _losses_of_curve(curve)
    for measure in ("held-out", "training"):
        for tokens, phase, loss in reversed(ours[measure]):
            other = _at(theirs[measure], tokens, phase)
            if other is not None and math.isfinite(loss):
                return _verdict(rows, curve, measure, tokens, loss, other)
    return {
        "reference": name,
        "verdict": "unknown",
        "sentence": f"No verdict beside {name}: the two have no token count within a phase of the same name in common.",
    }


def _losses(rows: RunRows) -> dict[str, Points]:
    bins = bin_steps(rows)
    training = smoothed(rows, bins.tokens, bins.phase)
    names = [rows.phases[index] for index in bins.phase]
    return {
        "held-out": [(row["tokens"], row["phase"], row["loss"]) for row in rows.evaluations if row["tokens"]],
        "training": list(zip(bins.tokens.tolist(), names, training.tolist(), strict=True)),
    }


def _losses_of_curve(curve: dict[str, Any]) -> dict[str, Points]:
    rows = [row for row in curve["rows"] if row["tokens"]]
    looks = [row for row in rows if row.get("eval_loss") is not None]
    return {
        "held-out": [(row["tokens"], row["phase"], row["eval_loss"]) for row in looks],
        "training": [(row["tokens"], row["phase"], row["loss"]) for row in rows],
    }


def _at(points: Points, tokens: float, phase: str) -> float | None:
    """The loss at a token count, on a line over log tokens; None outside the points of that phase (by over 1 %)."""
    of_phase = [(at, loss) for at, name, loss in points if name == phase]
    if not of_phase or not of_phase[0][0] / 1.01 <= tokens <= of_phase[-1][0] * 1.01:
        return None
    return float(np.interp(math.log(tokens), [math.log(at) for at, _ in of_phase], [loss for _, loss in of_phase]))


def _verdict(
    rows: RunRows, curve: dict[str, Any], measure: str, tokens: float, ours: float, theirs: float
) -> dict[str, Any]:
    same_data = curve.get("data") is not None and curve["data"] == rows.about.get("data")
    tolerance = SAME_DATA if same_data else OTHER_DATA
    share = ours / theirs - 1
    verdict = "behind" if share > tolerance else "ahead" if share < -tolerance else "on track"
    relation = f"{abs(share):.1%} {'higher' if share > 0 else 'lower'}" if abs(share) >= 5e-4 else "the same"
    data = "the same data" if same_data else "other data, whose level differs"
    sentence = (
        f"{verdict.capitalize()}: at {tokens / 1e6:,.1f} M tokens the reference {curve['recipe']} had a {measure} loss "
        f"of {theirs:.3f} and this run has {ours:.3f}, {relation}; on {data}, within {tolerance:.0%} counts as on track."
    )
    differing = _differing(rows.about["recipe"], curve)
    if differing:
        sentence += f" In settings they differ: {'; '.join(differing[:4])}."
    elif verdict == "behind":
        look_at = "seed, precision and versions" if same_data else "the data: order, duplicates, tokenizer"
        sentence += f" The settings are the reference's, so look at {look_at}."
    return {
        "reference": curve["recipe"], "verdict": verdict, "sentence": sentence, "tokens": round(tokens), "ours": ours,
        "theirs": theirs, "difference": share, "measure": measure, "tolerance": tolerance, "same_data": same_data,
    }  # fmt: skip


def _differing(recipe: dict[str, Any], curve: dict[str, Any]) -> list[str]:
    """What a loss depends on and is not alike in the two, phase by phase; budgets to a hundredth."""
    references = {phase["name"]: phase for phase in curve.get("phases") or []}
    return [
        f"{phase['name']}.{key} is {phase[key]:,} and the reference's {reference[key]:,}"
        for phase in phase_settings(recipe)
        if (reference := references.get(phase["name"]))
        for key in (*PHASE_KEYS, "tokens")
        if phase.get(key) and reference.get(key) and abs(phase[key] / reference[key] - 1) > 0.01
    ]
