"""Quickstart's search: pairs of docstrings and functions, held out by module, and who finds more."""

import json
from pathlib import Path

import pytest

from modernbert import functions
from modernbert.errors import DataError
from modernbert.functions import pairs_of, verdict, write_pairs

SOURCE = '''
def told(x):
    """Say what this does in words.

    More of it.
    """
    return x


class Kept:
    async def inside(self):
        """One more thing it does."""
        await self.told()

    def short(self):
        """Too short."""
        return 1


def silent():
    return 2
'''


def test_a_pair_is_a_docstring_and_its_function_without_it():
    found = dict(pairs_of(SOURCE))
    assert list(found) == ["Say what this does in words.", "One more thing it does."]
    assert found["Say what this does in words."] == "def told(x):\n    return x\n"
    assert "One more" not in found["One more thing it does."]
    assert list(pairs_of("def f(:")) == []


def library(folder, modules):
    folder.mkdir()
    for name in modules:
        body = "\n".join(
            f'def {name}_{n}(x):\n    """What {name} does in case {n}."""\n    return {n}\n' for n in range(20)
        )
        (folder / f"{name}.py").write_text(body)
    return folder


def test_a_module_is_in_one_part_only_and_those_asked_about_are_held_out(tmp_path):
    names = ["calendar", "shlex", *(f"module{n}" for n in range(20))]
    test, files = write_pairs(library(tmp_path / "lib", names), ("module3*",), tmp_path / "out", 500)
    train = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    modules = {part: {text.split()[1] for text in of_part} for part, of_part in
               {"train": [row["docstring"] for row in train], "test": [docstring for docstring, _ in test]}.items()}  # fmt: skip
    assert not modules["train"] & modules["test"] and {"calendar", "shlex"} <= modules["test"]
    assert "module3" not in modules["train"] | modules["test"]
    assert [path.stem for path in files[:2]] == ["calendar", "shlex"]


def test_a_library_without_docstrings_is_refused(tmp_path):
    with pytest.raises(DataError, match="too few functions"):
        write_pairs(library(tmp_path / "lib", []), (), tmp_path / "out", 500)


@pytest.mark.parametrize("own,counted,fused,begins", [
    (0.2, 0.5, 0.4, "BM25 wins by 0.300"), (0.5, 0.4, 0.3, "This encoder beats BM25 by 0.100"),
    (0.3, 0.4, 0.5, "Both fused beat"),
])  # fmt: skip
def test_the_winner_is_said(own, counted, fused, begins):
    said = verdict({"this encoder": own, "bm25": counted, "both fused": fused}, 1234)
    assert said.startswith(begins) and "1,234" in said


@pytest.mark.slow
def test_the_whole_chapter(tiny_model, tmp_path, monkeypatch):
    from modernbert.console import Console
    from modernbert.runtime import Runtime

    monkeypatch.setattr(functions, "MAX_LENGTH", 60)
    checkpoint = tiny_model.save(tmp_path / "model")
    names = ["calendar", "shlex", *(f"module{n}" for n in range(10))]
    folder = library(tmp_path / "lib", names)
    runtime = Runtime.detect(device="cpu", num_threads=1)
    found = functions.find_functions(folder, (), checkpoint, tmp_path / "out", 1000, runtime, Console(quiet=True))
    assert set(found["mrr"]) == {"this encoder", "bm25", "both fused"}
    assert 0 < len(found["answers"]) <= 3, "words may find nothing in so small a library"
    assert Path(found["store"]).is_dir()
