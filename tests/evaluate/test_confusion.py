"""Confusion matrices: their counts, and that a picture never shows what cannot be read."""

import json
import random
import warnings

import matplotlib.image
import numpy as np
import pytest

from modernbert.evaluate import confusion as module
from modernbert.evaluate.confusion import confusion, draw_confusion


def drawn(labels, count=400, share=0.8):
    picked = random.Random(0)
    gold = [picked.choice(labels) for _ in range(count)]
    return gold, [label if picked.random() < share else picked.choice(labels) for label in gold]


def texts_of(monkeypatch):
    """All text that a picture was drawn with; filled while drawing."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    found = []
    save = Figure.savefig

    def saving(figure, *arguments, **options):
        save(figure, *arguments, **options)
        found.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", saving)
    return found


def test_counts_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    labels = ["a", "b", "c"]
    gold, said = drawn(labels)
    found = confusion(labels, gold, said)
    assert np.array_equal(found.counts, metrics.confusion_matrix(gold, said, labels=labels))


def test_pairs_are_those_confused_most_often_first():
    found = confusion(["a", "b"], ["a", "a", "a", "b", "b", "new"], ["b", "b", "a", "a", "b", "a"])
    assert found.labels == ["a", "b", "new"]
    assert [tuple(pair) for pair in found.pairs] == [("a", "b", 2, 3), ("new", "a", 1, 1), ("b", "a", 1, 2)]
    assert confusion(["a"], ["a"], ["a"]).pairs == []


@pytest.mark.parametrize("count", [1, 20, 77, 260])
def test_any_number_of_classes_gives_a_picture_of_bounded_size(tmp_path, count):
    labels = [f"class_{n}_with_a_name" for n in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(labels, *drawn(labels), tmp_path / "confusion.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "confusion.png").shape
    assert 400 <= height <= 1600 and 400 <= width <= 1700


def test_few_classes_show_their_counts_and_many_their_worst_pairs(tmp_path, monkeypatch):
    shown = texts_of(monkeypatch)
    draw_confusion(["no", "yes"], ["no"] * 7 + ["yes"] * 5, ["no"] * 12, tmp_path / "a.png")
    assert {"7", "5", "no", "yes", "7 of 12 right"} <= set(shown)
    shown.clear()
    labels = [f"intent {n}" for n in range(77)]
    draw_confusion(labels, ["intent 3"] * 9, ["intent 3"] * 4 + ["intent 8"] * 5, tmp_path / "b.png")
    (pairs,) = [text for text in shown if "most confused" in text]
    assert "5 of 9:  4 intent 3" in pairs and "→ 9 intent 8" in pairs


def test_labels_are_text_and_no_formulas(tmp_path, monkeypatch):
    shown = texts_of(monkeypatch)
    labels = [r"$\frac$", "a\nb" * 40]
    draw_confusion(labels, labels, labels, tmp_path / "a.png")
    assert r"$\frac$" in shown
    assert any(text.endswith("…") and "\n" not in text for text in shown)


def test_labels_that_no_font_has_are_numbered_and_named_beside_the_picture(tmp_path, monkeypatch):
    from matplotlib.font_manager import fontManager

    own = [entry for entry in fontManager.ttflist if entry.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(fontManager, "ttflist", own)
    shown = texts_of(monkeypatch)
    labels = ["财经", "房产"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of a missing glyph
        found = draw_confusion(labels, labels, labels[::-1], tmp_path / "confusion.png")
    assert found.numbered
    assert {"1", "2"} <= set(shown) and not any(character in "".join(shown) for character in "财经房产")
    assert any("confusion.json" in text for text in shown)
    record = json.loads((tmp_path / "confusion.json").read_text(encoding="utf-8"))
    assert record["labels"] == labels and record["counts"] == [[0, 1], [1, 0]]
    assert record["confused"][0] == {"label": "财经", "said": "房产", "times": 1, "of": 1}


def test_a_font_that_has_the_characters_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OWN_FONT", "STIXGeneral")  # without Hebrew, which DejaVu has
    assert module._fonts_for("abc") == ["STIXGeneral"]
    fonts = module._fonts_for("שלום")
    assert fonts is not None and len(fonts) == 2


def test_of_very_many_classes_those_with_most_errors_are_drawn(tmp_path, monkeypatch):
    shown = texts_of(monkeypatch)
    labels = [f"c{n}" for n in range(300)]
    said = labels[:100] + labels[150:] + labels[100:150]  # the first hundred are right
    draw_confusion(labels, labels, said, tmp_path / "a.png")
    assert any("the 100 of 300 classes with most errors" in text for text in shown)
    assert "101" in shown and "1" not in shown
