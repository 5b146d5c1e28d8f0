"""Quickstart: the whole life, once in seconds with a token budget far too small, once with a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from modernbert.settings import override, read_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=check, env=environment)


def quickstart(out: Path, *settings: str) -> dict:
    """Live it with a recipe that an earlier session would have left, so that nothing depends on speed."""
    out.mkdir(exist_ok=True)
    (out / "corpus").mkdir(exist_ok=True)
    recipe = override(read_recipe("quickstart"), [f"data.path={json.dumps(str(out / 'shards'))}", *settings])
    (out / "recipe.toml").write_text(tomli_w.dumps(recipe))
    result = run("-m", "modernbert", "quickstart", "--out", str(out), "--json", check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("quickstart")
    tiny = ("model.hidden_size=64", "model.num_attention_heads=2", "model.intermediate_size=64")
    return out, quickstart(out, "loop.tokens=16_000", "loop.eval_size_tokens=4_000", *tiny)


def test_every_chapter_leaves_what_it_made(hurried: tuple[Path, dict]) -> None:
    out, result = hurried
    for name in ("tokenizer/tokenizer.json", "shards/manifest.json", "run/loss.png", "run/metrics.jsonl", "report.md"):
        assert (out / name).stat().st_size > 0, name
    assert len(result["commands"]) == 5
    assert set(result["seconds"]) and all(seconds > 0 for seconds in result["seconds"].values())


def test_functions_are_found_beside_bm25_and_who_wins_is_said(hurried: tuple[Path, dict]) -> None:
    out, result = hurried
    assert set(result["search"]["mrr"]) == {"this encoder", "bm25", "both fused"}
    assert len(result["search"]["answers"]) == 3
    assert result["search"]["verdict"] in (out / "report.md").read_text()


def test_the_same_eight_sentences_are_answered_three_times(hurried: tuple[Path, dict]) -> None:
    _, result = hurried
    assert list(result["probes"]) == ["at step 0", "half-way", "at the end"]
    assert all(len(answers) == 8 for answers in result["probes"].values())


def test_the_task_is_scored_beside_a_bag_of_words_and_says_who_wins(hurried: tuple[Path, dict]) -> None:
    out, result = hurried
    accuracy = result["task"]["accuracy"]
    assert set(accuracy) == {"this encoder", "bag of words"} and all(0 <= value <= 1 for value in accuracy.values())
    own, counted = accuracy["this encoder"], accuracy["bag of words"]
    begins = "This encoder beats" if own > counted else "The bag of words wins" if own < counted else "This encoder and"
    assert result["task"]["verdict"].startswith(begins)
    assert result["task"]["verdict"] in (out / "report.md").read_text()
    for answer in result["task"]["answers"]:
        assert answer.keys() == {"text", "label", "score", "expected"}


def test_transformers_opens_the_result_and_agrees(hurried: tuple[Path, dict]) -> None:
    _, result = hurried
    assert result["transformers"]["installed"]
    assert result["transformers"]["largest_logit_difference"] < 2e-5


def test_a_model_that_loses_is_said_to_lose(hurried: tuple[Path, dict]) -> None:
    out, result = hurried
    assert result["scores"]["this encoder"]["loss"] > result["scores"]["left bigram"]["loss"]
    assert "left bigram still wins" in (out / "report.md").read_text()


def test_the_commands_it_prints_work(hurried: tuple[Path, dict]) -> None:
    import shlex

    _, result = hurried
    for command in result["commands"][:2]:  # the third trains for longer than a test may
        _, _, arguments = command.partition("modernbert ")
        run("-m", "modernbert", *shlex.split(arguments))


@pytest.mark.slow
def test_the_examples_run_on_what_it_made(hurried: tuple[Path, dict], tmp_path: Path) -> None:
    out, _ = hurried
    assert "mean vector of 64 numbers" in run(str(EXAMPLES / "use_a_checkpoint.py"), str(out / "run")).stdout
    small = ("loop.tokens=8_000", "model.hidden_size=64", "model.num_attention_heads=2")
    shown = run(str(EXAMPLES / "pretrain_from_python.py"), str(out / "shards"), str(tmp_path / "run"), *small).stdout
    assert "stable-0000" in shown.splitlines()[-1]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not a quickstart")
    result = run("-m", "modernbert", "quickstart", "--out", str(tmp_path), check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "choose another --out" in result.stderr


@pytest.mark.slow
def test_with_a_real_budget_it_beats_the_bigram_by_0_4_nats(tmp_path: Path) -> None:
    scores = quickstart(tmp_path / "quickstart", "loop.tokens=1_200_000")["scores"]
    assert scores["this encoder"]["loss"] <= scores["left bigram"]["loss"] - 0.4
    assert scores["this encoder"]["accuracy"] > scores["left bigram"]["accuracy"]
