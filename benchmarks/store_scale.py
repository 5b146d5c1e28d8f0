"""Search in stores of 10,000 to 1,000,000 passages: time, recall of the approximate index, bytes.

    python benchmarks/store_scale.py --model EMBEDDER --texts texts.jsonl --out results/store_scale.jsonl

Passages are made up: two sentences of the texts put together, and a vector between theirs with noise, as far from the nearest
sentence as a paraphrase is. Queries are sentences that are in no passage, one at a time, in one process that keeps the store
open, as a server does; LanceDB has threads of its own, on all cores. Recall: of the exact ten nearest, how many the index
finds. `--plot` draws the curves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from corpora import keep

from modernbert.evaluate.timing import quantile
from modernbert.retrieval.encode import encode, open_for_vectors
from modernbert.retrieval.index import MAX_TOKENS, about_of, how_of
from modernbert.retrieval.store import ANN_FROM, Hit, Passage, Store
from modernbert.runtime import Runtime

TOP = 10
NOISE = 0.5  # of a made-up vector, beside the mean of its two sentences': cosines of 0.75 or so to either
_AT_ONCE = 20_000
MODES = ("dense", "dense, exact", "bm25", "hybrid")


def passages_of(
    sentences: list[str], vectors_ND: np.ndarray, count: int, draw: np.random.Generator
) -> Iterator[tuple[list[Passage], np.ndarray]]:
    for begin in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - begin)
        a, b = draw.integers(0, len(sentences), (2, size))
        texts = [f"{sentences[i]} {sentences[j]}" for i, j in zip(a, b, strict=True)]
        found = vectors_ND[a] + vectors_ND[b]
        noise = draw.standard_normal(found.shape).astype(np.float32)
        found = _unit(_unit(found) + NOISE * _unit(noise))
        passages = [
            Passage(
                source=f"made-up-{begin + n}", file="made-up", digest="", stamp="", start=0, end=len(text), heading="", text=text,
                meta={},
            )
            for n, text in enumerate(texts)
        ]  # fmt: skip
        yield passages, found


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return found


def bytes_below(place: Path, part: str = "") -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and part in str(path))


def milliseconds(ask: Callable[[int], object], count: int) -> dict[str, float]:
    for number in range(min(5, count)):
        ask(number)
    times = []
    for number in range(count):
        began_at = time.perf_counter()
        ask(number)
        times.append(1e3 * (time.perf_counter() - began_at))
    return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99), "queries": count}


def measured(store: Store, queries: list[str], vectors_QD: np.ndarray, exact_queries: int) -> dict[str, Any]:
    asked: dict[str, Callable[[int], list[Hit]]] = {
        "dense": lambda n: store.search(queries[n], vectors_QD[n], "dense", TOP),
        "dense, exact": lambda n: store.search(queries[n], vectors_QD[n], "dense", TOP, exact=True),
        "bm25": lambda n: store.search(queries[n], None, "bm25", TOP),
        "hybrid": lambda n: store.search(queries[n], vectors_QD[n], "hybrid", TOP),
    }
    found = {
        mode: milliseconds(ask, exact_queries if mode == "dense, exact" else len(queries))
        for mode, ask in asked.items()
    }
    shares = []
    for number in range(exact_queries):
        near = {hit.source for hit in asked["dense, exact"](number)}
        shares.append(len(near & {hit.source for hit in asked["dense"](number)}) / len(near))
    return {"milliseconds": found, "recall_at_10": float(np.mean(shares)), "least_recall": min(shares)}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    sizes = [row["passages"] for row in rows]
    for mode, color in zip(MODES, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True):
        for name, style in (("p50", "-"), ("p99", ":")):
            left.plot(
                sizes, [row["milliseconds"][mode][name] for row in rows], style, color=color, marker="o", markersize=4,
                label=mode if name == "p50" else None,
            )  # fmt: skip
    left.set(
        xscale="log", yscale="log", xlabel="passages", ylabel="milliseconds a query", title="p50 (line), p99 (dots)"
    )
    left.legend(frameon=False)
    right.plot(sizes, [row["recall_at_10"] for row in rows], color="#0072B2", marker="o", markersize=4)
    right.set(xscale="log", ylim=(0, 1.02), xlabel="passages", title="recall@10 of the index against exact")
    right.axvline(ANN_FROM, color="#999999", linewidth=0.8)
    right.text(ANN_FROM * 0.9, 0.05, "looks at all", color="#666666", fontsize=8, ha="right")
    right.text(ANN_FROM * 1.1, 0.05, "uses the index", color="#666666", fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an embedder's folder")
    parser.add_argument("--texts", type=Path, required=True, help="a JSON line a text")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sentences", type=int, default=20_000, help="that passages are made of")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--exact-queries", type=int, default=200, help="of them asked exactly too, and for recall")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="draw what was measured, too")
    arguments = parser.parse_args()
    runtime = Runtime.detect(device="cpu", num_threads=arguments.threads)
    model = open_for_vectors(arguments.model, device=runtime.device)
    with arguments.texts.open(encoding="utf-8") as file:
        texts = [text for text in (json.loads(line)["text"] for line in file) if 40 <= len(text) <= 200]
    queries, sentences = texts[: arguments.queries], texts[arguments.queries :][: arguments.sentences]
    vectors = encode(model, sentences)
    assert isinstance(vectors, np.ndarray)
    encoding = milliseconds(lambda n: encode(model, [queries[n]]), arguments.exact_queries)
    vectors_QD = encode(model, queries)
    assert isinstance(vectors_QD, np.ndarray)
    how = how_of(model, None, MAX_TOKENS, "document")
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "store"
            with Store.written(place, about_of(model, "measured", how, MAX_TOKENS)) as store:
                written = 0.0
                for passages, some in passages_of(sentences, vectors, size, np.random.default_rng(0)):
                    began_at = time.perf_counter()
                    store.replace(passages, some, known=set())
                    written += time.perf_counter() - began_at
                began_at = time.perf_counter()
                store.settle()
                settled = time.perf_counter() - began_at
                with_old_versions = bytes_below(place)
                store._table.optimize(cleanup_older_than=timedelta(0))  # what `settle` keeps for an hour's readers
            store = Store.open(place)
            found = measured(store, queries, vectors_QD, arguments.exact_queries)
            row = {
                "what": "store scale", "passages": len(store), "dimensions": store.about.dimensions,
                "characters_a_passage": 2 * float(np.mean([len(text) for text in sentences])) + 1, **found,
                "seconds_to_write": written, "seconds_to_index": settled, "milliseconds_to_encode_a_query": encoding,
                "bytes_a_passage": bytes_below(place) / size, "bytes_a_passage_for_an_hour": with_old_versions / size,
                "bytes_a_passage_of_indexes": bytes_below(place, "_indices") / size,
            }  # fmt: skip
        rows.append(row)
        keep(row, arguments.out)
    if arguments.plot is not None:
        plot(sorted(rows, key=lambda row: row["passages"]), arguments.plot)


if __name__ == "__main__":
    main()
