"""Files, folders and records → a store of passages that says what they say now: only what has changed is encoded again.

    sources → those that are new or changed → passages → vectors → a commit for each group → what is gone is taken out

A source is known by the hash of its text. Groups of some thousand passages are committed one by one, each whole or not at all,
so that the same command, given again behind a kill, does the rest. What cannot be read is counted and named; what was indexed of
it before stays. Price: a group's texts and vectors in memory; `results/LOG.md` has documents a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import ConfigError, DataError
from modernbert.remote import is_address
from modernbert.retrieval.chunks import chunks_of, structure_of
from modernbert.retrieval.encode import encode, fingerprint_of
from modernbert.retrieval.store import About, Passage, Store, content_of
from modernbert.retrieval.windows import How
from modernbert.tasks import Embedder
from modernbert.text.read import Skips
from modernbert.text.sources import LeftOut, Source, Unchanged, iter_sources

MAX_TOKENS = 256  # of a passage: what one vector can say, and what a reader reads at a glance
SPARE_TOKENS = 34  # for the heading before a passage, special tokens and a prompt
_HEADING_CHARS = 100  # its end: the nearest title
_PASSAGES_A_COMMIT = 2_000
_CHARS_A_COMMIT = 4_000_000


@dataclass(slots=True, kw_only=True)
class Report:
    """What a round of indexing did."""

    sources: int = 0  # that were looked at
    unchanged: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    passages: int = 0  # that were encoded
    in_store: int = 0  # passages, behind the round
    skips: Skips = field(default_factory=Skips)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**{k: v for k, v in asdict(self).items() if k != "skips"}, "skipped": self.skips.as_dict()}


def index(
    paths: Sequence[str | Path],
    model: Embedder,
    place: str | Path,
    *,
    name: str,
    max_tokens: int | None = None,
    dimensions: int | None = None,
    text_field: str = "text",
    exclude: Iterable[str] = (),
    max_megabytes: float = 20.0,
    progress: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """Bring a store up to some sources.

    Args:
        paths: files and folders. What was indexed below them and is not there any more is taken out.
        model: whose vectors they get, as `encode.open_for_vectors` opens it.
        place: the store, a folder or an address.
        name: the model's, as a search is to open it.
        max_tokens: of a passage; 256, or what the model takes, if None.
        dimensions: the first so many of a vector; all if None.
        text_field: of records.
        exclude: shell patterns of files to pass over.
        max_megabytes: of a file that is one source.
        progress: told behind each commit.

    Raises:
        ConfigError: the store has another model's vectors, another process is writing it, or a setting out of range.
        DataError: a path that does not exist, or a store that cannot be written.
        UnsupportedError: lancedb is not installed.
    """
    longest = model.config.max_position_embeddings - SPARE_TOKENS
    max_tokens = min(MAX_TOKENS, longest) if max_tokens is None else max_tokens
    if not 8 <= max_tokens <= longest:
        raise ConfigError(
            f"max_tokens={max_tokens} is out of range; it must be from 8 to {longest}, what the model takes"
        )
    how = how_of(model, dimensions, max_tokens, "document")
    if not paths:
        raise DataError("no sources; give files or folders")
    if (missing := [path for path in paths if not Path(path).exists()]) and not _is_store(place):
        raise DataError(f"{missing[0]}: no such file or folder; check the path")
    with Store.written(place, about_of(model, name, how, max_tokens)) as store:
        round_ = _Round(store, model, how, max_tokens, progress)
        roots = [os.path.abspath(path) for path in paths]
        for path in missing:  # what was indexed of it is taken out
            if not round_.knows_below(os.path.abspath(path)):
                raise DataError(f"{path}: no such file or folder; check the path")
        there = [path for path in paths if path not in missing]
        for source in iter_sources(
            there, text_field=text_field, exclude=exclude, max_megabytes=max_megabytes, is_known=round_.is_known
        ):  # fmt: skip
            round_.take(source)
        round_.commit()
        round_.remove_gone(roots)
        store.settle()
        round_.report.in_store = len(store)
    return round_.report


def about_of(model: Embedder, name: str, how: How, max_tokens: int) -> About:
    """What a store says of its vectors. The precision they are computed in is no part of it: a query may have another."""
    fingerprint = {key: value for key, value in fingerprint_of(model, how).items() if key != "precision"}
    return About(
        model=name, fingerprint=fingerprint, dimensions=how.dimensions, likeness=model.settings.likeness, max_tokens=max_tokens
    )  # fmt: skip


def _is_store(place: str | Path) -> bool:
    return is_address(str(place)) or Path(place).is_dir()


def how_of(model: Embedder, dimensions: int | None, max_tokens: int, prompt: str) -> How:
    """How passages, and queries for them, become vectors: of length one, with room for a heading and the prompt."""
    of_prompt = len(model.need_tokenizer().encode(model.settings.prefix(prompt), add_special_tokens=False))
    max_length = min(max_tokens + SPARE_TOKENS + of_prompt, model.config.max_position_embeddings)
    return How.of(model, pooling=None, normalize=True, truncate_dim=dimensions, max_length=max_length, prompt=prompt)


class _Round:
    """What has been seen and what waits to be committed."""

    def __init__(
        self, store: Store, model: Embedder, how: How, max_tokens: int, progress: Callable[[Report], None]
    ) -> None:
        self.report = Report()
        self._store, self._model, self._how, self._max_tokens, self._progress = store, model, how, max_tokens, progress
        self._known = store.known()
        self._seen: set[str] = set()
        self._unsure: set[str] = set()  # files and folders of which something could not be read
        self._waiting: list[Passage] = []
        self._replaced: set[str] = set()
        self._waiting_chars = 0

    def is_known(self, name: str, stamp: str) -> bool:
        """Whether a file was indexed with this size and time."""
        known = self._known.get(name)
        return known is not None and known[2] == stamp

    def knows_below(self, root: str) -> bool:
        """Whether something of a file, or below a folder, was indexed."""
        return any(_is_below(file, root) for file, _, _ in self._known.values())

    def take(self, source: Source | Unchanged | LeftOut) -> None:
        """Let a source wait for its commit, where it has changed; the first of several of one name counts."""
        if isinstance(source, LeftOut):
            self.report.skips.add(source.reason, source.name)
            if source.is_unsure:
                self._unsure.add(source.file)
            return
        if source.name in self._seen:
            return
        self.report.sources += 1
        self._seen.add(source.name)
        known = self._known.get(source.name)
        if isinstance(source, Unchanged) or (known is not None and known[1] == source.digest):
            self.report.unchanged += 1
            return
        if known is not None:
            self._replaced.add(source.name)
            self.report.changed += 1
        else:
            self.report.added += 1
        self._waiting += self._passages(source)
        self._waiting_chars += len(source.text)
        if len(self._waiting) >= _PASSAGES_A_COMMIT or self._waiting_chars >= _CHARS_A_COMMIT:
            self.commit()

    def _passages(self, source: Source) -> list[Passage]:
        is_record = source.name != source.file
        structure = "prose" if is_record else structure_of(source.file.removesuffix(".gz").removesuffix(".zst"))
        chunks = chunks_of(source.text, structure, self._model.need_tokenizer(), self._max_tokens)
        return [
            Passage(
                source=source.name, file=source.file, digest=source.digest, stamp=source.stamp,
                start=source.begins_at + chunk.start, end=source.begins_at + chunk.end,
                heading=(chunk.heading or source.title)[-_HEADING_CHARS:], text=chunk.text, meta=source.meta,
            )
            for chunk in chunks
        ]  # fmt: skip

    def commit(self) -> None:
        """Encode what waits, and put it into the store."""
        if not self._waiting:
            return
        how = self._how
        vectors = encode(
            self._model, [content_of(p.heading, p.text) for p in self._waiting],
            truncate_dim=how.dimensions, max_length=how.max_length, prompt="document",
        )  # fmt: skip
        assert isinstance(vectors, np.ndarray)
        self._store.replace(self._waiting, vectors, known=self._replaced)
        self.report.passages += len(self._waiting)
        self._waiting, self._replaced, self._waiting_chars = [], set(), 0
        self._progress(self.report)

    def remove_gone(self, roots: Sequence[str]) -> None:
        """Take out sources below these roots that are not there any more."""
        gone = [
            name
            for name, (file, _, _) in self._known.items()
            if name not in self._seen
            and any(_is_below(file, root) for root in roots)
            and not any(_is_below(file, place) for place in self._unsure)
        ]
        self._store.remove(gone)
        self.report.removed = len(gone)


def _is_below(file: str, root: str) -> bool:
    return file == root or file.startswith(root.rstrip(os.sep) + os.sep)
