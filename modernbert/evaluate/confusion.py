"""What was right and what was said → a picture of which classes are taken for which.

    gold, said → counts → PATH.png: rows right, columns said, colour the share of the row
                        → PATH.json: labels, counts, the most confused pairs

What is right is blue and what is not red, drawn by its root, as a tenth of a row is already much. Up to 30 classes have
their names and counts. More have numbers at every few rows, and the most confused pairs in words beside them; of more than
200 the 100 with most errors are drawn. Where no font of the machine has a label's characters, the picture says so and
shows numbers from 1, in the order of the labels in the JSON. Price: about a second.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modernbert.disk import write_whole

_NAMED = 30  # classes that have room for their names and counts
_DRAWN, _DRAWN_OF_MANY = 200, 100
_PAIRS = 18
_LETTERS, _LETTERS_IN_LIST = 24, 40  # of a label
_OWN_FONT = "DejaVu Sans"  # comes with matplotlib
_LAST_RESORT = "Last Resort"  # fonts that have a box for every character, and no character


class Confused(NamedTuple):
    """Two classes of which one is taken for the other."""

    label: str
    said: str
    times: int
    of: int  # how often the first is right


class Confusion(NamedTuple):
    """Counts of what was right (rows) and what was said (columns).

    Attributes:
        labels: the model's, and behind them others that are right somewhere.
        counts: (C, C).
        pairs: all that were confused, most often first.
        numbered: whether the picture shows numbers instead of labels.
    """

    labels: list[str]
    counts: np.ndarray
    pairs: list[Confused]
    numbered: bool = False


def confusion(labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str]) -> Confusion:
    """Count which classes are taken for which.

    Args:
        labels: of the model.
        gold: what is right; it may be a label that the model does not have.
        predicted: what was said instead.
    """
    names = [*labels, *sorted(set(gold).union(predicted).difference(labels))]
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    found = Counter(zip(gold, predicted, strict=True))
    for (right, said), count in found.items():
        counts[place[right], place[said]] = count
    rows = counts.sum(1)
    pairs = [Confused(a, b, count, int(rows[place[a]])) for (a, b), count in found.items() if a != b]
    pairs.sort(key=lambda pair: (-pair.times, -pair.times / pair.of, place[pair.label], place[pair.said]))
    return Confusion(names, counts, pairs)


def draw_confusion(labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str], path: Path) -> Confusion:
    """Draw a confusion matrix, and write its numbers beside it.

    Args:
        labels: of the model, in the order of rows and columns.
        gold: what is right.
        predicted: what was said.
        path: of the PNG; the JSON has the same name.

    Returns:
        What was drawn.
    """
    from matplotlib.figure import Figure  # half a second to import; and no window system is wanted

    found = confusion(labels, gold, predicted)
    family = _fonts_for("".join(found.labels))
    found = found._replace(numbered=family is None)
    shown = _rows_shown(found)
    named = len(shown) <= _NAMED
    side = max(3.6, 0.34 * len(shown) + 2.4) if named else 7.5
    figure = Figure(figsize=(side + (0.6 if named else 3.8), side), layout="constrained")
    if named:
        axes = figure.add_subplot()
    else:
        axes, beside = figure.subplots(1, 2, width_ratios=(7, 3.6))
        _list_pairs(beside, found, family)
    numbers = [str(index + 1) for index in shown]
    names = numbers if found.numbered or not named else [_short(found.labels[index], _LETTERS) for index in shown]
    _draw_matrix(axes, found.counts[np.ix_(shown, shown)], found.counts.sum(1)[shown], names, family)
    figure.suptitle("\n".join(_title(found, len(shown), path)), fontsize=9)
    figure.savefig(path, dpi=120)
    write_whole(path.with_suffix(".json"), json.dumps(_record(found), ensure_ascii=False))
    return found


def _draw_matrix(axes: Any, counts: np.ndarray, rows: np.ndarray, names: list[str], family: list[str] | None) -> None:
    size = len(names)
    shares = np.sqrt(counts / np.maximum(rows[:, None], 1))
    diagonal = np.eye(size, dtype=bool)
    for colors, hidden in (("Reds", diagonal), ("Blues", ~diagonal)):
        axes.imshow(
            np.ma.masked_array(shares, hidden | (counts == 0)), cmap=colors, vmin=0, vmax=1.15, interpolation="nearest"
        )
    ticks = list(range(0, size, 1 if size <= _NAMED else -(-size // 20)))
    shown = [names[index] for index in ticks]
    longest = max(map(len, shown), default=0)
    text: dict[str, Any] = {"parse_math": False, "family": family or [_OWN_FONT], "fontsize": 8}
    is_level = longest <= 3 or (size <= 4 and longest <= 10)
    turned: dict[str, Any] = {} if is_level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, shown, **text, **turned)
    axes.set_yticks(ticks, shown, **text)
    axes.set_xlabel("said")
    axes.set_ylabel("right")
    if size > _NAMED:
        return
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    axes.grid(which="minor", color="0.9", lw=0.6)
    for row, column in zip(*np.nonzero(counts), strict=True):
        count = int(counts[row, column])
        axes.text(
            column, row, f"{count:,}" if count < 10_000 else f"{count / 1000:.0f}k", ha="center", va="center",
            fontsize=9 if size <= 8 else 6.5, color="white" if shares[row, column] > 0.7 else "black",
        )  # fmt: skip


def _list_pairs(axes: Any, found: Confusion, family: list[str] | None) -> None:
    """The most confused pairs in words, with the numbers of their rows and columns."""
    axes.axis("off")
    place = {label: index for index, label in enumerate(found.labels)}

    def end(label: str) -> str:
        return f"{place[label] + 1}" if family is None else f"{place[label] + 1} {_short(label, _LETTERS_IN_LIST)}"

    lines = ["most confused: right → said", ""]
    for pair in found.pairs[:_PAIRS]:
        lines += [f"{pair.times:,} of {pair.of:,}:  {end(pair.label)}", f"        → {end(pair.said)}"]
    if not found.pairs:
        lines.append("none")
    text = axes.text(
        0, 1, "\n".join(lines), va="top", ha="left", fontsize=7.5, linespacing=1.35, parse_math=False,
        family=family or [_OWN_FONT], transform=axes.transAxes,
    )  # fmt: skip
    text.set_in_layout(False)  # or it takes room from the matrix


def _title(found: Confusion, shown: int, path: Path) -> list[str]:
    right, total = int(np.trace(found.counts)), int(found.counts.sum())
    lines = [f"{right:,} of {total:,} right"]
    if shown < len(found.labels):
        lines.append(f"the {shown} of {len(found.labels):,} classes with most errors")
    if found.numbered:
        lines += textwrap.wrap(
            f"no font here has all characters of the labels: numbers, as the labels stand in {path.stem}.json", 60
        )
    return lines


def _rows_shown(found: Confusion) -> list[int]:
    if len(found.labels) <= _DRAWN:
        return list(range(len(found.labels)))
    wrong = found.counts.sum(0) + found.counts.sum(1) - 2 * found.counts.diagonal()
    return sorted(np.argsort(-wrong, kind="stable")[:_DRAWN_OF_MANY].tolist())


def _record(found: Confusion) -> dict[str, Any]:
    """The labels, how often each was said where each was right, and the pairs that were confused."""
    return {
        "labels": found.labels,
        "counts": found.counts.tolist(),
        "confused": [pair._asdict() for pair in found.pairs[:100]],
    }


def _short(label: str, letters: int) -> str:
    text = " ".join(label.split())
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _fonts_for(text: str) -> list[str] | None:
    """Two fonts at most that have all characters of a text, matplotlib's own first; None where the machine has none."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    own = get_font(findfont(_OWN_FONT))
    missing = {c for c in text if not c.isspace() and not own.get_char_index(ord(c))}
    if not missing:
        return [_OWN_FONT]
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.style != "normal", entry.name)):
        if entry.name.startswith(_LAST_RESORT):
            continue
        try:
            font = get_font(entry.fname)
        except (OSError, RuntimeError):  # listed once and gone now, or no font at all
            continue
        if all(font.get_char_index(ord(c)) for c in missing):
            return [_OWN_FONT, entry.name]
    return None
