"""The prices that docstrings state, measured on this machine: text, data, counting.

python benchmarks/prices.py CORPUS... --out results/prices.jsonl

Each figure is the median of several runs, with the spread; one JSON line a run of this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from modernbert.data import Component, MlmBatches
from modernbert.data.mask import Masker
from modernbert.data.pack import PackState, pack
from modernbert.pretraining import environment
from modernbert.runtime import Runtime
from modernbert.text import Skips, build_shards, drop_duplicates_and_short, iter_documents, train_tokenizer


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        work()
        found.append(time.perf_counter() - started_at)
    return found


def rate(amount: float, taken: list[float]) -> dict[str, float]:
    rates = sorted(amount / s for s in taken)
    return {"median": statistics.median(rates), "least": rates[0], "most": rates[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    texts = [document.text for document in iter_documents(arguments.corpus)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = train_tokenizer(texts, vocab_size=8192)

    def read_and_hash() -> None:
        for _ in drop_duplicates_and_short(iter_documents(arguments.corpus), skips=Skips()):
            pass

    def build() -> None:
        with tempfile.TemporaryDirectory() as folder:
            build_shards(arguments.corpus, tokenizer=tokenizer, out=Path(folder) / "shards")

    prices = {
        "read and hash, MB/s": rate(megabytes, seconds(read_and_hash, arguments.repeats)),
        "build shards, MB/s": rate(megabytes, seconds(build, arguments.repeats)),
        "train a tokenizer of 8,192, MB/s": rate(
            megabytes, seconds(lambda: train_tokenizer(texts, vocab_size=8192), 3)
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        build_shards(arguments.corpus, tokenizer=tokenizer, out=Path(folder) / "shards")
        text = {"text": Path(folder) / "shards"}

        def batches_of(num_components: int) -> MlmBatches:
            """The corpus as so many components of different weights."""
            mixture = {f"part{i:02d}": Component(source="text", weight=i + 1) for i in range(num_components)}
            return MlmBatches(
                text, mixture=mixture, sequence_length=1024, micro_batch_tokens=8192, mask_rate=0.3, seed=0
            )

        def plan(batches: MlmBatches) -> None:
            packed = pack(batches._lengths_at, 8192, PackState(), longest=1024, draw=batches.mixture.draw)
            next(packed)  # the first one fills the pool
            for _ in islice(packed, 200):
                pass

        for count in (1, 5, 20):
            mixed = batches_of(count)
            name = f"plan a micro-batch of 8,192 tokens from {count} components, 1/s"
            prices[name] = rate(200, seconds(lambda mixed=mixed: plan(mixed), arguments.repeats))
        batches = batches_of(1)

        def load() -> None:
            for _ in islice(batches.stream(), 100):
                pass

        filled = [batch.num_tokens / 8192 for batch, _ in islice(batches.stream(), 200)]
        prices["plan, read and mask one, 1/s"] = rate(100, seconds(load, arguments.repeats))
        prices["filled"] = {"median": statistics.median(filled), "least": min(filled), "most": max(filled)}
        masker = Masker(batches.special, 8192)
        ids = np.arange(1024) + 300
        taken = seconds(lambda: [masker(ids, 0.3, 0, position) for position in range(1000)], arguments.repeats)
        prices["mask a sequence of 1,024, 1/s"] = rate(1000, taken)

    row = {"megabytes": megabytes, "prices": prices, "environment": environment(Runtime.detect())}
    for name, value in prices.items():
        print(f"{name:60s} {value['median']:12,.3f}  ({value['least']:,.3f} … {value['most']:,.3f})")
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
