"""How long does it take to go on with a run that is 1 % or 90 % done? `python benchmarks/kills.py --resume-time`.

A run over 100 M made-up tokens, once through, with a model so small (one layer, 16 wide, 2 % masked) that reading is most
of its work, and a checkpoint at every 1 %. Copies of its folder that end at 1 % and at 90 % are then resumed in turns:
seconds from calling `pretrain` to the first new row. That is reading recipe, shards and checkpoint, measuring the peak
for MFU (half a second), the first batch and one step; not Python's imports.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.pretraining import pretrain
from modernbert.runtime import Runtime
from modernbert.text import save_tokenizer, tokenizer_fingerprint, train_tokenizer
from modernbert.text.shards import FORMAT_VERSION, MANIFEST, PREFIXES
from modernbert.text.writer import SplitWriter
from modernbert.train.checkpoint import Progress, RunFolder
from modernbert.train.log import read_metrics
from modernbert.train.loop import Hooks
from modernbert.train.recipe import PretrainRun

SAME_WITHIN = 1.2  # late over early, and the other way round


def make_shards(folder: Path, tokens: int) -> Path:
    """Drawn ids in documents of log-normal lengths, written as a build writes them."""
    draw = np.random.default_rng(0)
    tokenizer = train_tokenizer([" ".join(f"word{n}" for n in range(3000))] * 2, vocab_size=512)
    save_tokenizer(tokenizer, folder, model_max_length=512)
    splits = {}
    for split, budget in {"train": tokens, "heldout": 50_000}.items():
        writer = SplitWriter(folder, PREFIXES[split], dtype=np.dtype("<u2"), shard_tokens=2**26, finished=[])
        while writer.num_tokens < budget:
            ids = draw.integers(16, 400, min(50_000, max(8, int(draw.lognormal(6.0, 1.0)))))
            writer.add(ids, num_text_bytes=4 * len(ids))
        writer.close_shard()
        splits[split] = writer.describe()
    manifest = {
        "format": "modernbert-shards", "version": FORMAT_VERSION, "dtype": "uint16", "vocab_size": 512,
        "tokenizer": tokenizer_fingerprint(tokenizer), "splits": splits, "skipped": {}, "settings": {"heldout": 0.0},
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


class FirstRowSeen(Exception):
    """Ends a run behind its first new training row."""


def resume_time(tokens: int, rounds: int, threads: int, work: Path) -> dict[str, Any]:
    shards = make_shards(work / "shards", tokens)
    run = PretrainRun.parse({
        "model": {
            "preset": "tiny", "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 1,
            "max_position_embeddings": 512, "local_attention": 16,
        },
        "data": {"path": str(shards)},
        "loop": {
            "tokens": tokens, "checkpoint_tokens": "1%", "eval_tokens": "50%", "eval_size_tokens": 10_000,
        },
        "phases": [{
            "name": "stable", "sequence_length": 512, "micro_batch_tokens": 16_384,
            "tokens_per_step": 16_384 * max(1, tokens // 800 // 16_384), "mask_rate": 0.02, "lr": 1e-4,
        }],
    })  # fmt: skip
    runtime = Runtime.detect(device="cpu", num_threads=threads)
    began_at = time.perf_counter()
    pretrain(run, work / "run", runtime)
    print(f"the whole run: {time.perf_counter() - began_at:.0f} s", flush=True)
    seconds: dict[float, list[float]] = {0.01: [], 0.9: []}
    copies = {share: cut_off(work / "run", work / f"at-{share}", share * tokens) for share in seconds}
    for round_ in range(-1, rounds):
        for share in list(seconds) if round_ % 2 else list(seconds)[::-1]:
            taken = seconds_to_first_row(run, copies[share], runtime)
            if round_ >= 0:
                seconds[share].append(taken)
    medians = [statistics.median(taken) for taken in seconds.values()]
    return {
        "what": "resume time", "tokens": tokens,
        "seconds": {f"{share:.0%}": sorted(taken) for share, taken in seconds.items()},
        "resumed_from_tokens": [progress_behind(copy).tokens for copy in copies.values()],
        "late_minus_early_seconds": medians[1] - medians[0], "late_over_early": medians[1] / medians[0],
        "met": 1 / SAME_WITHIN < medians[1] / medians[0] < SAME_WITHIN,
    }  # fmt: skip


def cut_off(run: Path, copy: Path, tokens: float) -> Path:
    """A run's folder as a kill behind the first checkpoint after so many tokens would have left it."""
    copy.mkdir()
    for checkpoint in RunFolder(run).checkpoints():
        shutil.copytree(checkpoint, copy / checkpoint.name)
        if RunFolder.progress_of(checkpoint).tokens >= tokens:
            break
    about = json.loads((run / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**about, "status": "unfinished"}))
    last_step = progress_behind(copy).step
    rows = [row for row in read_metrics(run) if row["step"] <= last_step]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


def progress_behind(run: Path) -> Progress:
    return RunFolder.progress_of(RunFolder(run).newest())


def seconds_to_first_row(run: PretrainRun, out: Path, runtime: Runtime) -> float:
    def on_row(row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            raise FirstRowSeen

    began_at = time.perf_counter()
    try:
        pretrain(run, out, runtime, Hooks(on_row=on_row))
    except FirstRowSeen:
        return time.perf_counter() - began_at
    raise AssertionError("the run had ended")
