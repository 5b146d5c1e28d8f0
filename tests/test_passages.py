"""Quickstart's task: passages of modules, and who says more often where they are from."""

import json
import sysconfig
from pathlib import Path

import pytest

from modernbert import MaskedLM
from modernbert.console import Console
from modernbert.errors import DataError
from modernbert.passages import PASSAGE_CHARS, ask_for_modules, largest_modules, passages, verdict, write_passages
from modernbert.runtime import Runtime


def library(folder, modules=("alpha", "beta", "gamma"), lines=6000):
    folder.mkdir()
    for name in modules:
        (folder / f"{name}.py").write_text("".join(f"{name}_{i % 7} = {name}(value, {i})\n\n" for i in range(lines)))
    (folder / "tests").mkdir()
    (folder / "tests" / "huge.py").write_text("x = 1\n" * 10**5)
    return folder


def test_the_largest_modules_are_chosen_and_what_is_not_read_is_not():
    standard = Path(sysconfig.get_paths()["stdlib"])
    found = largest_modules(standard, ("*-packages/*", "test/*"))
    assert len(found) == 12 and "asyncio" in found and "test" not in found and "site-packages" not in found


def test_passages_have_no_blank_lines_and_are_long_enough(tmp_path):
    path = library(tmp_path / "lib") / "alpha.py"
    found = list(passages([path]))
    assert all(len(text) >= PASSAGE_CHARS and "\n\n" not in text for text in found)


def test_no_passage_is_in_two_parts(tmp_path):
    files = write_passages(library(tmp_path / "lib"), ("tests/*",), tmp_path / "out")
    rows = {part: [json.loads(line) for line in path.read_text().splitlines()] for part, path in files.items()}
    texts = {part: {row["text"] for row in of_part} for part, of_part in rows.items()}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert {row["label"] for row in rows["test"]} == {"alpha", "beta", "gamma"}
    assert len(rows["train"]) == 360 and len(rows["test"]) == 120


def test_a_library_too_small_is_refused(tmp_path):
    with pytest.raises(DataError, match="fewer than two modules"):
        write_passages(library(tmp_path / "lib", lines=20), ("tests/*",), tmp_path / "out")


def test_the_task_is_learnt_again_for_another_checkpoint(tmp_path, tiny_config, tiny_tokenizer):
    tiny_model = MaskedLM(tiny_config.replace(max_position_embeddings=192), tiny_tokenizer).draw(0)
    lib, runtime = library(tmp_path / "lib"), Runtime.detect(device="cpu", num_threads=1)
    first, second = (tiny_model.save(tmp_path / name) for name in ("first", "second"))
    for checkpoint in (first, first, second):
        found = ask_for_modules(lib, ("tests/*",), checkpoint, tmp_path / "task", 5000, runtime, Console(silent=True))
    assert found["accuracy"]["bag of words"] == 1.0, "each module says its name in each line"
    assert json.loads((tmp_path / "task" / "model" / "metrics.json").read_text())["model"] == str(second)


@pytest.mark.parametrize(
    ("own", "counted", "begins"),
    [
        (0.8, 0.5, "This encoder beats the bag of words by 30.0%"),
        (0.5, 0.8, "The bag of words wins by 30.0%: a module"),
        (0.5, 0.5, "This encoder and the bag of words are right equally often"),
    ],
)
def test_the_winner_is_named_and_a_baseline_that_wins_with_its_reason(own, counted, begins):
    said = verdict({"this encoder": own, "bag of words": counted}, 12)
    assert said.startswith(begins) and "guessing would be right 8% of the time" in said and "\n" not in said
