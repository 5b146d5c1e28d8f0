"""A Chinese run on real text: tokenizer, shards, a short training, a masked character of several tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modernbert
from modernbert.text import load_tokenizer

SHARED = Path(__file__).parents[1].parent / "shared"
WIKI = SHARED / "data" / "pretrain_wiki_zh" / "train.jsonl.zst"
GENUINE = SHARED / "modernbert-tokenizer"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WIKI.exists(), reason="the shared Chinese Wikipedia sample is not here"),
]


def command(*arguments: object) -> dict:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "modernbert", *map(str, arguments), "--json"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_chinese_encoder_from_raw_text(tmp_path: Path) -> None:
    tokenizer, shards, run = tmp_path / "tokenizer", tmp_path / "shards", tmp_path / "run"
    command("tokenizer", "train", WIKI, "--vocab-size", 8192, "--out", tokenizer, "--sample-megabytes", 12)
    report = command("tokenizer", "report", tokenizer, WIKI, "--against", GENUINE)
    ours, genuine = report["tokenizers"].values()
    assert ours["characters_per_token"] > 1.5 * genuine["characters_per_token"]
    assert ours["unknown_tokens"] == 0

    command("data", "build", WIKI, "--tokenizer", tokenizer, "--out", shards)
    settings = ("loop.tokens=300_000", "loop.eval_size_tokens=20_000")
    result = command("pretrain", "quickstart", f"data.path={shards}", *settings, "--out", run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(row["loss"] for row in rows if row["kind"] == "eval")
    assert result["loss"] < first - 1.5

    # A character that this vocabulary spells with several tokens: one mask each, answered together.
    character = "鑫"
    num_tokens = len(load_tokenizer(tokenizer).encode("在" + character, add_special_tokens=False).ids) - len(
        load_tokenizer(tokenizer).encode("在", add_special_tokens=False).ids
    )
    assert num_tokens > 1
    model = modernbert.load(run)
    assert isinstance(model, modernbert.MaskedLM)
    text = "他住在" + "[MASK]" * num_tokens + "市。"
    ((*answers,),) = model.fill_mask(text, top_k=3, joint=True)
    assert answers, "no whole character was found"
    for answer in answers:
        assert "\ufffd" not in answer.text
        assert answer.filled == f"他住在{answer.text}市。"
