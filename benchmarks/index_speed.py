"""Documents a second from files to a searchable store: `modernbert index`, and the same with sentence-transformers' `encode`.

    python benchmarks/index_speed.py --model EMBEDDER --data DATA --out results/index_speed.jsonl

Both sides read the same files, make the same passages and write the same store; what differs is who computes the vectors.
Sides take turns; a ratio is of one round; told are the median over rounds, and the 10th and 90th hundredth.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from corpora import keep

from modernbert.evaluate.timing import interleave, ratios
from modernbert.retrieval.encode import encode, open_for_vectors
from modernbert.retrieval.index import index
from modernbert.runtime import Runtime
from modernbert.text.beir import read_beir
from modernbert.text.labelled_open import open_table

# Questions, web passages, functions, abstracts, transcripts of meetings: from a few tokens to many thousand.
MIXED = {"banking77": 0.2, "msmarco_mini": 0.2, "cosqa": 0.25, "scifact": 0.34, "qmsum_long": 0.01}
KINDS: dict[str, dict[str, float]] = {"mixed": MIXED, "abstracts": {"scifact": 1.0}, "questions": {"banking77": 1.0}}


def documents_of(data: Path, shares: dict[str, float], count: int) -> list[str]:
    draw = random.Random(0)
    found = []
    for name, share in shares.items():
        if name == "banking77":
            texts = list(open_table(data / name / "train.parquet").column("text"))
        else:
            texts = list(read_beir(data / f"retrieval_{name}").corpus.values())
        found += draw.sample(texts, round(share * count))
    draw.shuffle(found)
    return found


class Side:
    """Indexes with vectors by whom it is told, and remembers them."""

    def __init__(self, model: Any, file: Path, by: Callable[..., np.ndarray]) -> None:
        self._model, self._file, self._by = model, file, by
        self._vectors: list[np.ndarray] = []

    def __call__(self, _round: int) -> None:
        """Into a new store."""
        self._vectors = []
        with mock.patch(f"{index.__module__}.encode", self._watched), tempfile.TemporaryDirectory() as store:
            index([self._file], self._model, store, name="measured")

    def _watched(self, _model: Any, texts: Sequence[str], **how: Any) -> np.ndarray:
        self._vectors.append(self._by(texts, **how))
        return self._vectors[-1]

    @property
    def vectors(self) -> np.ndarray:
        """Of the newest round."""
        return np.concatenate(self._vectors)


def measured(model: Any, stock: Any, documents: list[str], batch_sizes: list[int], rounds: int) -> dict[str, Any]:
    def ours(texts: Sequence[str], **how: Any) -> np.ndarray:
        found = encode(model, texts, **how)
        assert isinstance(found, np.ndarray)
        return found

    def library(texts: Sequence[str], *, batch_size: int, max_length: int, **_: Any) -> np.ndarray:
        stock.max_seq_length = max_length
        found: np.ndarray = stock.encode_document(
            list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return found

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "documents.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        sides = {"ours": Side(model, file, ours)} | {
            f"library, batches of {size}": Side(model, file, functools.partial(library, batch_size=size))
            for size in batch_sizes
        }
        times = interleave(sides, seconds=0, rounds=rounds, warmups=1)
    return {
        "documents": len(documents), "passages": len(sides["ours"].vectors), "rounds": rounds,
        "vectors_apart": max(float(np.abs(sides["ours"].vectors - side.vectors).max()) for side in sides.values()),
        "documents_a_second": {name: len(documents) / statistics.median(of) for name, of in times.items()},
        "ours_times_faster": {name: ratios(times[name], times["ours"]) for name in sides if name != "ours"},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an embedder's folder")
    parser.add_argument("--label", help="what to call it; its folder's name if not given")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32], help="of the library; 32 is its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runtime = Runtime.detect(device="cpu", num_threads=arguments.threads)
    from sentence_transformers import SentenceTransformer

    model = open_for_vectors(arguments.model, device=runtime.device)
    stock = SentenceTransformer(arguments.model, device="cpu")
    for kind in arguments.kinds:
        documents = documents_of(arguments.data, KINDS[kind], arguments.documents)
        row = {
            "what": "index speed", "kind": kind, "model": arguments.label or Path(arguments.model).name,
            "parameters": sum(p.numel() for p in model.parameters()), "threads": runtime.num_threads,
            **measured(model, stock, documents, arguments.batch_sizes, arguments.rounds),
        }  # fmt: skip
        keep(row, arguments.out)


if __name__ == "__main__":
    main()
