"""The commands `index`, `search` and `ask`: what was given on the command line → a store brought up, hits, an answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modernbert.console import Console
from modernbert.errors import CheckpointError, ConfigError
from modernbert.evaluate.machine import tune_malloc
from modernbert.predicting import load_head
from modernbert.retrieval.encode import open_for_vectors
from modernbert.retrieval.index import Report, index
from modernbert.retrieval.search import Retriever, answered
from modernbert.retrieval.store import Hit, Mode, filter_of
from modernbert.runtime import Runtime

_SHOWN = 160  # characters of a passage in a table


def index_files(
    sources: Sequence[str],
    model: str,
    store: str,
    *,
    max_tokens: int | None,
    dimensions: int | None,
    text_field: str,
    exclude: Sequence[str],
    max_megabytes: float,
    runtime: Runtime,
    console: Console,
) -> dict[str, Any]:
    """Bring a store up to its sources, in view of a person. Returns the round's counts and pace."""
    tune_malloc()
    opened = open_for_vectors(model, device=runtime.device)
    name = str(Path(model).absolute()) if Path(model).is_dir() else model
    began_at = time.monotonic()

    def show(report: Report) -> None:
        update(report.sources, f"sources  {report.passages:,} passages encoded")

    with console.progress("indexing") as update, runtime.autocast():
        report = index(
            sources, opened, store, name=name, max_tokens=max_tokens, dimensions=dimensions, text_field=text_field,
            exclude=exclude, max_megabytes=max_megabytes, progress=show,
        )  # fmt: skip
    for reason, skipped in report.skips.as_dict().items():
        examples = skipped["examples"]
        assert isinstance(examples, list)
        console.remark(f"left out: {skipped['count']} {reason}, such as {', '.join(map(str, examples))}")
    return {"store": store, **report.to_dict(), "seconds": time.monotonic() - began_at}


def sentence(result: dict[str, Any]) -> str:
    """What a round of indexing did."""
    return (
        f"{result['store']}: {result['added']:,} sources added, {result['changed']:,} changed, {result['removed']:,} removed, "
        f"{result['unchanged']:,} as they were; {result['in_store']:,} passages, {result['passages']:,} of them encoded in "
        f"{result['seconds']:.1f} s"
    )


def search_store(
    store: str,
    query: str | None,
    *,
    like: str | None,
    model: str | None,
    top: int,
    mode: Mode | None,
    filters: Sequence[str],
    where: str,
    exact: bool,
    runtime: Runtime,
) -> list[Hit]:
    """The hits for a query, or the sources like a file or text.

    Raises:
        ConfigError: neither, or both, or a mode for what is by likeness alone.
    """
    if (query is None) == (like is None):
        raise ConfigError("give a query, or --like FILE or TEXT, and not both")
    if like is not None and mode not in (None, "dense"):
        raise ConfigError(f"--mode {mode}: of no use with --like, which goes by likeness; leave it out")
    retriever, condition = Retriever(store, model, device=runtime.device), filter_of(filters, where)
    with runtime.autocast():
        if like is not None:
            return retriever.like(like, top, where=condition, exact=exact)
        assert query is not None
        return retriever.search(query, top, mode or "hybrid", where=condition, exact=exact)


def ask_store(
    store: str, question: str, reader: str, *, model: str | None, top: int, mode: Mode, filters: Sequence[str], where: str,
    runtime: Runtime,
) -> dict[str, Any]:  # fmt: skip
    """Search, and let a reader answer from the passages found; no answer where it finds none in any.

    Raises:
        CheckpointError: the reader does not answer questions.
    """
    head = load_head(reader, runtime)
    if head.settings.kind != "answer":
        raise CheckpointError(f"{reader} does not answer questions; make a reader with `modernbert finetune answer`")
    hits = search_store(
        store, question, like=None, model=model, top=top, mode=mode, filters=filters, where=where, exact=False, runtime=runtime
    )  # fmt: skip
    with runtime.autocast():
        found = answered(hits, head.predict([(question, hit.text) for hit in hits]))
    return {"question": question, **found}


def hit_rows(hits: Sequence[Hit]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table."""
    rows = [
        [f"{hit.score:.3f}", f"{hit.source}:{hit.start}-{hit.end}", hit.heading, " ".join(hit.text.split())[:_SHOWN]]
        for hit in hits
    ]
    return ["score", "where", "of", "passage"], rows
