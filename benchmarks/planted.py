"""Long documents with a piece of evidence at a known place: how well a search finds them, by that place.

    python benchmarks/planted.py --model EMBEDDER --data DATA --out results/planted.jsonl

A document is a stretch of a novel (Project Gutenberg) of 8,192 tokens. Into it goes a paragraph of an article (PLOS, held out),
but for its first sentence, which is the query: a query has one document among all, and the same stretch of novel in every band
of places. Systems: one vector of the first 512 tokens, one of all 8,192, the best passage of 512, and BM25. With 95 % intervals
of the mean over queries. By chance MRR@10 is 2.93 / documents.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from corpora import keep
from distill_texts import END_OF_SENTENCE

from modernbert.evaluate.retrieval import Vectors, Way, measured, rank_by_vectors, rank_by_words
from modernbert.evaluate.seeds import summary
from modernbert.runtime import Runtime
from modernbert.text import iter_documents
from modernbert.text.beir import BeirFolder

LENGTH, SHORT = 8192, 512
BANDS = ((0, 512), (512, 1024), (1024, 2048), (2048, 4096), (4096, 8192))
_PARAGRAPH = (250, 800)  # characters of evidence
_QUERY = (40, 250)
SYSTEMS: dict[str, tuple[Way, int]] = {
    "first 512": ("first", SHORT), "first 8192": ("first", LENGTH), "best passage of 512": ("chunks", SHORT),
}  # fmt: skip
BM25 = "bm25"


def evidence_of(data: Path, count: int, draw: np.random.Generator) -> list[tuple[str, str]]:
    """(query, evidence): the first sentence of a paragraph, and the rest of it; no two of one article while there are others."""
    articles = []
    for document in iter_documents(data / "pretrain_science_ccby" / "validation.jsonl.zst"):
        found = []
        for paragraph in document.text.split("\n"):
            first, *rest = END_OF_SENTENCE.split(paragraph.strip(), maxsplit=1)
            if rest and _QUERY[0] <= len(first) <= _QUERY[1] and _PARAGRAPH[0] <= len(rest[0]) <= _PARAGRAPH[1]:
                found.append((first, rest[0]))
        articles.append([found[place] for place in draw.permutation(len(found))])
    turns = [article[turn] for turn in range(max(map(len, articles))) for article in articles if turn < len(article)]
    return turns[:count]


def stretches_of(data: Path, tokenizer: Any, count: int, draw: np.random.Generator) -> list[str]:
    """Pieces of novels of `LENGTH` tokens or a little more, none of them twice."""
    found = []
    for document in iter_documents(data / "pretrain_books_gutenberg" / "train.jsonl.zst"):
        chars = LENGTH * 6
        for begin in range(5_000, len(document.text) - chars, chars):
            found.append(document.text[begin : begin + chars])
    chosen = [found[place] for place in draw.permutation(len(found))[:count]]
    cut = []
    for text in chosen:
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        assert len(offsets) >= LENGTH, "six characters a token were too few"
        cut.append(text[: offsets[LENGTH][0] if len(offsets) > LENGTH else len(text)])
    return cut


def planted(stretch: str, evidence: str, band: tuple[int, int], tokenizer: Any, draw: np.random.Generator) -> str:
    """The stretch with the evidence at a place between words, wholly within a band of tokens."""
    offsets = tokenizer.encode(stretch, add_special_tokens=False).offsets
    size = len(tokenizer.encode(evidence, add_special_tokens=False).ids)
    low, high = band[0], max(band[0] + 1, band[1] - size - 16)  # [CLS], and the rest of a word of many tokens
    place = offsets[int(draw.integers(low, high))][0]
    while 0 < place < len(stretch) and not stretch[place - 1].isspace():
        place += 1
    return f"{stretch[:place]}{evidence} {stretch[place:]}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    names = [f"{low:,} to {high:,}" for low, high in BANDS]
    for system, color in zip([*SYSTEMS, BM25], ("#E69F00", "#0072B2", "#009E73", "#666666"), strict=True):
        of = {tuple(row["band"]): row for row in rows if row["system"] == system}
        middle = np.array([of[band]["mrr@10"] for band in BANDS])
        low, high = (np.array([of[band][name] for band in BANDS]) for name in ("low", "high"))
        axes.errorbar(
            names, middle, [middle - low, high - middle], color=color, marker="o", markersize=4, capsize=3, label=system
        )
    axes.axhline(2.93 / rows[0]["documents"], color="#999999", linewidth=0.8, linestyle=":", label="chance")
    axes.set(ylim=(0, 1.02), xlabel="where the evidence lies, in tokens", ylabel="MRR@10")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an embedder's folder, of 8,192 positions")
    parser.add_argument("--label", help="what to call it; its folder's name if not given")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--documents", type=int, default=80, help="and as many queries")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="draw what was measured, too")
    arguments = parser.parse_args()
    vectors = Vectors(arguments.model, Runtime.detect(device="cpu", num_threads=arguments.threads))
    if vectors.model is None or vectors.positions < LENGTH:
        parser.error(f"{arguments.model} takes {vectors.positions:,} tokens; an embedder of {LENGTH:,} is wanted")
    tokenizer = vectors.model.need_tokenizer()
    draw = np.random.default_rng(0)
    evidence = evidence_of(arguments.data, arguments.documents, draw)
    stretches = stretches_of(arguments.data, tokenizer, len(evidence), draw)
    rows = []
    for band in BANDS:
        documents = [
            planted(stretch, text, band, tokenizer, draw)
            for stretch, (_, text) in zip(stretches, evidence, strict=True)
        ]
        ids = [str(number) for number in range(len(documents))]
        task = BeirFolder(
            name="planted", corpus=dict(zip(ids, documents, strict=True)),
            queries={name: query for name, (query, _) in zip(ids, evidence, strict=True)},
            judgments={name: {name: 1} for name in ids},
        )  # fmt: skip
        runs = {name: rank_by_vectors(task, vectors, way, length, None) for name, (way, length) in SYSTEMS.items()}
        for system, found in {**runs, BM25: rank_by_words(task)}.items():
            ranks = measured(task, found)["mrr@10"]
            mean = summary(ranks)
            row = {
                "what": "planted evidence", "model": arguments.label or Path(arguments.model).name, "band": band,
                "system": system, "documents": len(documents), "mrr@10": mean.mean, "low": mean.low, "high": mean.high,
                "first": ranks.count(1.0) / len(ranks),
            }  # fmt: skip
            rows.append(row)
            keep(row, arguments.out)
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
