"""Shared data → texts for a student embedder, without labels: sentences of every kind, and whole documents for search.

    python benchmarks/distill_texts.py --data DATA --out texts.jsonl

Left out, as the student is judged by it: every text of STS-B (train, validation and test), every query of a retrieval set, and
docstrings that are held out.
Documents of retrieval sets are in: whoever distils for their own collection has it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from modernbert.text import iter_documents
from modernbert.text.beir import read_beir
from modernbert.text.labelled_open import open_table

# Table → its columns of text.
SENTENCES: dict[str, tuple[str, ...]] = {
    "snli/validation": ("premise", "hypothesis"), "snli/test": ("premise", "hypothesis"),
    "glue/mrpc/train": ("sentence1", "sentence2"), "glue/mrpc/test": ("sentence1", "sentence2"),
    "glue/rte/train": ("sentence2",), "glue/rte/test": ("sentence2",), "glue/cola/train": ("sentence",),
    "glue/qnli/validation": ("question", "sentence"), "glue/qnli/test": ("question", "sentence"),
    "glue/wnli/train": ("sentence1",), "sst2_sentences/train": ("sentence",), "subjectivity/train": ("text",),
    "movie_review_polarity/train": ("text",), "banking77/train": ("text",), "scicite/train": ("text",),
    "ag_news/train": ("text",), "ag_news/test": ("title", "text"), "pubmedqa/train": ("question", "long_answer"),
    "code_docstring_python/train": ("docstring",),
}  # fmt: skip
RUNNING = ("pretrain_wiki_en", "pretrain_books_gutenberg", "pretrain_science_ccby", "pretrain_docs_pd")
COLLECTIONS = ("scifact", "nfcorpus", "scitldr", "msmarco_mini", "dbpedia_mini", "cranfield")
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(A-Z0-9])")
_LEAST, _MOST = 12, 400  # characters of a sentence
_OF_EACH, _OF_WIKIPEDIA, _DOCUMENTS = 4_000, 15_000, 400  # texts of a source, documents of a collection


def sentences_of(texts: Iterable[str]) -> list[str]:
    """Split at full stops; what is no sentence by its length is dropped."""
    found = (part.strip() for text in texts for line in text.splitlines() for part in END_OF_SENTENCE.split(line))
    return [part for part in found if _LEAST <= len(part) <= _MOST]


def texts_of(data: Path, draw: random.Random) -> Iterator[tuple[str, str]]:
    """(where from, text)."""
    for name, columns in SENTENCES.items():
        table = open_table(data / f"{name}.parquet")
        for column in sorted(columns):
            found = [text for text in table.column(column) if _LEAST <= len(text) <= 4 * _MOST]
            yield from ((name, text) for text in _some(found, _OF_EACH, draw))
    for name in RUNNING:
        found = sentences_of(document.text for document in iter_documents(data / name / "train.jsonl.zst"))
        wanted = _OF_WIKIPEDIA if name == "pretrain_wiki_en" else _OF_EACH
        yield from ((name, text) for text in _some(found, wanted, draw))
    for name in COLLECTIONS:
        documents = list(read_beir(data / f"retrieval_{name}").corpus.values())
        yield from ((name, text) for text in _some(documents, _DOCUMENTS, draw))
        yield from ((f"{name}, sentences", text) for text in _some(sentences_of(documents), _OF_EACH // 2, draw))


def _some(texts: list[str], most: int, draw: random.Random) -> list[str]:
    return draw.sample(texts, min(most, len(texts)))


def judged_by(data: Path) -> set[str]:
    """What is to stay unseen."""
    found: set[str] = set()
    for split in ("train", "validation", "test"):
        table = open_table(data / f"glue/stsb/{split}.parquet")
        found |= {text for column in ("sentence1", "sentence2") for text in table.column(column)}
    for split in ("validation", "test"):
        found |= set(open_table(data / f"code_docstring_python/{split}.parquet").column("docstring"))
    for name in (*COLLECTIONS, "cosqa", "mbpp", "qmsum_long"):
        found |= set(read_beir(data / f"retrieval_{name}").queries.values())
    return {_plain(text) for text in found}


def _plain(text: str) -> str:
    return re.sub(r"\W+", "", text.lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("texts.jsonl"))
    arguments = parser.parse_args()
    draw = random.Random(0)
    unseen = judged_by(arguments.data)
    rows: dict[str, tuple[str, str]] = {}
    lost = 0
    for source, text in texts_of(arguments.data, draw):
        plain = _plain(text)
        if plain in unseen:
            lost += 1
        else:
            rows.setdefault(plain, (source, text))
    kept = list(rows.values())
    draw.shuffle(kept)
    with arguments.out.open("w", encoding="utf-8") as file:
        for source, text in kept:
            file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
    characters = sum(len(text) for _, text in kept)
    print(f"{arguments.out}: {len(kept):,} texts, {characters:,} characters; {lost:,} left out, being judged by")


if __name__ == "__main__":
    main()
