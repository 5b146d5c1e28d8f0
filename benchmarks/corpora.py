"""Corpora of the shared data → shard folders, built once and kept; and a result → its line, with what its reader must know."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modernbert.evaluate.machine import environment
from modernbert.runtime import Runtime
from modernbert.text import build_shards, iter_documents, load_tokenizer, save_tokenizer, train_tokenizer

CORPORA = ("wiki_en", "wiki_zh", "books_gutenberg", "code_python", "docs_pd", "math_latex", "science_ccby")
SHORT_NAMES = {"wiki": ("wiki_en",), "mixture": CORPORA}
_SAMPLE_DOCUMENTS = 2000  # of each corpus, for a tokenizer that is trained here


def add_arguments(parser: argparse.ArgumentParser, *, tokenizer: str) -> None:
    parser.add_argument("--corpora", type=Path, default=Path("../shared/data"), help="holds the folders pretrain_*")
    parser.add_argument("--tokenizer", default=tokenizer, help="a folder, or the size of one to train on the data")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir(), "modernbert-benchmarks"), help="keeps shards for next time"
    )  # fmt: skip


def corpora_of(name: str) -> tuple[str, ...]:
    """`wiki` → wiki_en, `mixture` → all of them, anything else → itself."""
    return SHORT_NAMES.get(name, (name,))


def shards_of(names: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Path]:
    """Shard folders of some corpora, by corpus; 2 % of the documents are held out."""
    files = {name: arguments.corpora / f"pretrain_{name}" / "train.jsonl.zst" for name in names}
    if arguments.tokenizer.isdecimal():
        tokenizer_folder = arguments.work / f"tokenizer-{arguments.tokenizer}-{'-'.join(names)}"
        if not (tokenizer_folder / "tokenizer.json").exists():
            trained = train_tokenizer(_sample(files), vocab_size=int(arguments.tokenizer), sample_bytes=24 * 10**6)
            save_tokenizer(trained, tokenizer_folder, model_max_length=8192)
    else:
        tokenizer_folder = Path(arguments.tokenizer)
    tokenizer = load_tokenizer(tokenizer_folder)
    folders = {name: arguments.work / f"shards-{tokenizer_folder.resolve().name}" / name for name in names}
    for name, folder in folders.items():
        build_shards([files[name]], tokenizer=tokenizer, out=folder, heldout=0.02)
    return folders


def _sample(files: dict[str, Path]) -> Iterator[str]:
    for file in files.values():
        for document in itertools.islice(iter_documents([file]), _SAMPLE_DOCUMENTS):
            yield document.text


def keep(row: dict[str, Any], out: Path | None) -> None:
    """Print a result and append it to a file, with commit and hardware."""
    row = {**row, "environment": environment(Runtime.detect(device="cpu"))}
    print(json.dumps(row), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
