"""Quickstart's last task: to find a function of the standard library by what it does.

Docstrings and the functions they stand in → an embedder learns which belong together → functions of other modules, beside BM25
and both fused → the files of these modules in a store, and three questions asked of it.
"""

from __future__ import annotations

import ast
import fnmatch
import itertools
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from modernbert.console import Console
from modernbert.disk import write_whole
from modernbert.embedding import finetune_embedder
from modernbert.errors import DataError
from modernbert.evaluate.retrieval import BM25, Vectors, fuse, measured, rank_by_vectors, rank_by_words
from modernbert.retrieval.encode import open_for_vectors
from modernbert.retrieval.index import index
from modernbert.retrieval.search import Retriever
from modernbert.retrieval.store import Mode
from modernbert.runtime import Runtime
from modernbert.text.beir import BeirFolder
from modernbert.train.embed import EmbedRun

QUESTIONS = {
    "calendar": "the weekday of the first day of a month and the number of its days",
    "shlex": "split a command line into words as a shell does",
    "gzip": "compress data in one shot and return the compressed string",
}
"""By the module that answers, which is held out."""
MAX_LENGTH = 128  # tokens of a docstring and of a function
_TEST_SHARE = 0.12  # of the modules
_EPOCHS, _TOKENS_A_PAIR = 2, 130
_LEAST_PAIRS, _MOST_PAIRS, _TEST_PAIRS = 64, 2_000, 300
_INDEXED_BYTES = 300_000  # of the held-out modules' files
_LEAST_WORDS, _MOST_CHARS = 4, 2_000
_SHOWN = 90  # characters of a passage
_MODES: dict[str, Mode] = {"this encoder": "dense", BM25: "bm25", "both fused": "hybrid"}


def find_functions(
    library: Path,
    excluded: Sequence[str],
    checkpoint: Path,
    folder: Path,
    tokens: int,
    runtime: Runtime,
    console: Console,
) -> dict[str, Any]:
    """Fine-tune an embedder, compare it with BM25, and search the code of this Python.

    Args:
        library: the folder of the standard library.
        excluded: shell patterns of its files that are not read.
        checkpoint: the encoder to start from.
        folder: for the pairs, the embedder (`model`) and the store (`store`).
        tokens: to train on, some.
        runtime: device and threads.
        console: where it is shown.

    Returns:
        `mrr` of each system on functions of held-out modules, `verdict`, and `answers` to the questions.

    Raises:
        DataError: the library is too small.
    """
    num_pairs = min(_MOST_PAIRS, max(_LEAST_PAIRS, tokens // (_EPOCHS * _TOKENS_A_PAIR)))
    pairs, files = write_pairs(library, excluded, folder, num_pairs)
    out = folder / "model"
    run = EmbedRun(
        model=str(checkpoint), train=str(folder / "train.jsonl"), epochs=_EPOCHS, batch_size=32, max_length=MAX_LENGTH,
        evaluations=1, lr=5e-4,
    )  # fmt: skip
    _clear_older(folder, run)
    with console.progress("fine-tuning", 1.0) as update:

        def show(done: float, total: float, note: str) -> None:
            update(done / total, note)

        finetune_embedder(run, out, runtime, progress=show)
    task = _as_task(pairs)
    vectors = Vectors(str(out), runtime)
    by_vectors, by_words = rank_by_vectors(task, vectors, "first", MAX_LENGTH, None), rank_by_words(task)
    runs = {"this encoder": by_vectors, BM25: by_words, "both fused": fuse(by_vectors, by_words)}
    mrr = {name: fmean(measured(task, found)["mrr@10"]) for name, found in runs.items()}
    said = verdict(mrr, len(task.corpus))
    console.table(["system", "MRR@10"], [[name, f"{value:.3f}"] for name, value in mrr.items()])
    console.say(said)
    with console.progress("indexing"):
        report = index(
            files,
            open_for_vectors(out, device=runtime.device),
            folder / "store",
            name=str(out.absolute()),
            max_tokens=MAX_LENGTH,
        )
    console.say(f"{len(files)} files of the held-out modules: {report.in_store:,} passages in {folder / 'store'}")
    retriever = Retriever(folder / "store", device=runtime.device)
    answers, mode = [], _MODES[max(mrr, key=mrr.__getitem__)]
    for question in QUESTIONS.values():
        for hit in retriever.search(question, 1, mode):
            where = f"{Path(hit.source).relative_to(library)}:{hit.start}"
            answers.append({"question": question, "where": where, "function": hit.heading, "text": hit.text[:_SHOWN]})
    console.say(f"Three questions, asked by --mode {mode}, which has just won:")
    console.table(["question", "function", "where"], [[a["question"], a["function"], a["where"]] for a in answers])
    return {"mrr": mrr, "verdict": said, "answers": answers, "folder": str(out), "store": str(folder / "store")}


def _clear_older(folder: Path, run: EmbedRun) -> None:
    """Remove what an earlier quickstart made of another checkpoint."""
    asked = json.dumps([run.model_dump(mode="json"), (folder / "train.jsonl").read_text(encoding="utf-8")])
    made = folder / "made_of.json"
    if not made.exists() or made.read_text(encoding="utf-8") != asked:
        for name in ("model", "store"):
            shutil.rmtree(folder / name, ignore_errors=True)
        write_whole(made, asked)


def verdict(mrr: dict[str, float], num_functions: int) -> str:
    """Who wins, said plainly, and why if it is not the encoder."""
    best = max(mrr, key=mrr.__getitem__)
    among = f"each docstring has one right function among {num_functions:,}, of modules that were held out"
    if best == "both fused":
        better = max(mrr["this encoder"], mrr[BM25])
        return f"Both fused beat the better of the two by {mrr[best] - better:.3f}: they miss different functions; {among}."
    if best == BM25:
        return (
            f"BM25 wins by {mrr[best] - mrr['this encoder']:.3f} over this encoder: a docstring shares names with its function, "
            f"which counting sees at once, and minutes of training are little; {among}."
        )
    return f"This encoder beats BM25 by {mrr[best] - mrr[BM25]:.3f}; {among}."


def write_pairs(
    library: Path, excluded: Sequence[str], folder: Path, num_pairs: int
) -> tuple[list[tuple[str, str]], list[Path]]:
    """Pairs for training into `train.jsonl`; those of held-out modules, and their files, are returned.

    Raises:
        DataError: the library is too small.
    """
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    files: list[Path] = []
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if any(fnmatch.fnmatch(str(relative), pattern) for pattern in excluded):
            continue
        module = relative.parts[0].removesuffix(".py")
        held_out = module in QUESTIONS or zlib.crc32(module.encode()) % 1000 < 1000 * _TEST_SHARE
        rows["test" if held_out else "train"] += pairs_of(path.read_text(encoding="utf-8", errors="replace"))
        if held_out:
            files.append(path)
    most = {"train": num_pairs, "test": _TEST_PAIRS}
    kept = {part: _drawn(list(dict.fromkeys(of_part)), most[part]) for part, of_part in rows.items()}
    if min(map(len, kept.values())) < 8:
        raise DataError(f"{library} holds too few functions with docstrings to learn from")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"docstring": docstring, "code": code}) + "\n" for docstring, code in kept["train"]]
    write_whole(folder / "train.jsonl", "".join(lines))
    files.sort(key=lambda path: path.stem not in QUESTIONS)
    sizes = itertools.accumulate(path.stat().st_size for path in files)
    return kept["test"], [path for path, size in zip(files, sizes, strict=True) if size <= _INDEXED_BYTES]


def pairs_of(source: str) -> Iterator[tuple[str, str]]:
    """(the first paragraph of a docstring, its function without the docstring) of a file that parses."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
        told = node.body[0]
        code = "".join([*lines[node.lineno - 1 : told.lineno - 1], *lines[told.end_lineno : node.end_lineno]])
        if len(docstring.split()) >= _LEAST_WORDS and len(code) <= _MOST_CHARS:
            yield docstring, code


def _drawn(pairs: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """Some, the same each time and from all over."""
    return sorted(pairs, key=lambda pair: zlib.crc32(pair[0].encode()))[:most]


def _as_task(pairs: Sequence[tuple[str, str]]) -> BeirFolder:
    return BeirFolder(
        name="functions", corpus={str(n): code for n, (_, code) in enumerate(pairs)},
        queries={str(n): docstring for n, (docstring, _) in enumerate(pairs)},
        judgments={str(n): {str(n): 1} for n in range(len(pairs))},
    )  # fmt: skip
