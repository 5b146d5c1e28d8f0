"""Passages with their vectors on a real store: written in whole commits, found by likeness, by words, or by both.

    rows → one commit a group of sources, old passages out and new ones in → a table of LanceDB
    query → nearest vectors (exact, or by an index beyond 50,000 rows) | BM25 → hits

The table lies in a folder, or under an address that LanceDB knows (`s3://…`, `db://…`): the same calls serve both. A commit is
whole or not there, so what is killed at any moment leaves the state before it. Whose vectors they are (model, pooling, prompts,
length) stands with the table, and others are refused. Needs lancedb (`[retrieval]`).
Price: `results/LOG.md` has bytes a passage, and seconds a query at 10,000 to 1,000,000 passages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from modernbert.disk import try_lock
from modernbert.errors import ConfigError, DataError, UnsupportedError
from modernbert.remote import is_address
from modernbert.retrieval.terms import terms_of

Mode = Literal["dense", "bm25", "hybrid"]
Key = TypeVar("Key")

TABLE = "passages"
ANN_FROM = 50_000  # rows: below, looking at each takes less than a tenth of a second
RRF_K = 60  # Cormack, Clarke, Büttcher: Reciprocal rank fusion, SIGIR 2009
DEPTH = 100  # hits of each part that are fused
_REFINE = 10  # an index that rounds vectors gives so many times the hits wanted, which are then ordered exactly
_ABOUT = b"modernbert"
_LOCK = ".modernbert.lock"
_REFUSALS = (OSError, RuntimeError, ValueError)  # what LanceDB raises of disks, networks and conditions
_KEPT = timedelta(hours=1)  # versions of the table for readers that are at it
_COLUMNS = ("source", "start", "end", "content", "heading", "meta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A row of the table."""

    source: str
    file: str
    digest: str  # of the source
    stamp: str
    start: int  # in the source's text, in characters
    end: int
    heading: str
    text: str
    meta: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A passage that was found."""

    source: str
    start: int
    end: int
    score: float  # of the mode asked for: likeness, BM25, or the sum of 1 / (60 + rank) over both
    text: str
    heading: str
    meta: Mapping[str, str]
    dense: float | None = None  # its likeness, where that was looked at
    bm25: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, what is not known left out."""
        found: dict[str, Any] = {"source": self.source, "start": self.start, "end": self.end, "score": self.score}
        parts = {
            "dense": self.dense,
            "bm25": self.bm25,
            "heading": self.heading or None,
            "meta": dict(self.meta) or None,
        }
        return found | {name: value for name, value in parts.items() if value is not None} | {"text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Whose vectors a store holds."""

    model: str  # the name it was indexed with
    fingerprint: Mapping[str, Any]  # all that decides what a vector is
    dimensions: int
    likeness: Literal["cosine", "dot"]
    max_tokens: int  # of a passage

    def to_json(self) -> str:
        """As it stands with the table."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, sort_keys=True, default=dict)

    def differing(self, other: About) -> tuple[str, Any, Any] | None:
        """The first of what decides a vector that is not the same for both: its name, here and there."""
        ours, theirs = (
            {**a.fingerprint, "dimensions": a.dimensions, "max_tokens": a.max_tokens} for a in (self, other)
        )
        names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        return (names[0], ours.get(names[0]), theirs.get(names[0])) if names else None


class Store:
    """An open table; `Store.open` and `Store.written` give one."""

    def __init__(self, table: Any, about: About, place: str) -> None:
        self.about, self.place = about, place
        self._table = table

    @classmethod
    def open(cls, place: str | Path) -> Store:
        """Open what is there, for searching.

        Raises:
            DataError: nothing is, it was not made here, or it cannot be read.
            UnsupportedError: lancedb is not installed.
        """
        _refuse_foreign(str(place))
        store = cls._found(str(place))
        if store is None:
            raise DataError(f"{place}: no store of passages; make one with `modernbert index SOURCES --store {place}`")
        return store

    @classmethod
    @contextlib.contextmanager
    def written(cls, place: str | Path, about: About) -> Iterator[Store]:
        """Open a store, or begin an empty one, as the only one who writes it.

        At an address nobody is locked out: there LanceDB puts commits one behind the other.

        Raises:
            ConfigError: it holds another model's vectors, or another process is writing it.
            DataError: it was not made here, or cannot be written.
            UnsupportedError: lancedb is not installed.
        """
        place = str(place)
        _refuse_foreign(place)
        if is_address(place):
            yield cls._opened_or_made(place, about)
            return
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
            lock = try_lock(Path(place) / _LOCK)
        except OSError as error:
            raise DataError(f"{place} cannot be written ({error.strerror or error}); choose another --store") from error
        if lock is None:
            raise ConfigError(f"{place} is being written by another process; wait for it, or choose another --store")
        with lock:
            yield cls._opened_or_made(place, about)

    @classmethod
    def _opened_or_made(cls, place: str, about: About) -> Store:
        store = cls._found(place)
        if store is not None:
            if found := store.about.differing(about):
                name, theirs, ours = found
                raise ConfigError(
                    f"{place} holds vectors of {store.about.model} with {name}={theirs!r}, and these would have {ours!r}; index "
                    "with the same, or choose another --store"
                )
            return store
        database = _connect(place)
        import pyarrow as pa  # comes with lancedb

        schema = pa.schema(
            [
                *(pa.field(name, pa.string()) for name in ("id", "source", "file", "digest", "stamp")),
                *(pa.field(name, pa.int64()) for name in ("start", "end")),
                *(pa.field(name, pa.string()) for name in ("heading", "content", "terms")),
                pa.field("meta", pa.list_(pa.string())), pa.field("vector", pa.list_(pa.float32(), about.dimensions)),
            ],
            metadata={_ABOUT: about.to_json().encode()},
        )  # fmt: skip
        with _writing(place):
            return cls(database.create_table(TABLE, schema=schema), about, place)

    @classmethod
    def _found(cls, place: str) -> Store | None:
        """None where there is none; what was killed while the table was made is none, too."""
        if not is_address(place) and not (Path(place) / f"{TABLE}.lance").is_dir():
            return None
        try:
            table = _connect(place).open_table(TABLE)
            about = About(**json.loads((table.schema.metadata or {})[_ABOUT]))
        except (KeyError, TypeError) as error:
            raise DataError(f"{place} is no store of passages that this made; choose another") from error
        except _REFUSALS as error:
            if "not found" in str(error).lower():
                return None
            raise DataError(f"{place} cannot be read ({_first_line(error)})") from error
        return cls(table, about, place)

    def __len__(self) -> int:
        """Passages."""
        return int(self._table.count_rows())

    def known(self) -> dict[str, tuple[str, str, str]]:
        """Sources that are indexed: name → (file, digest, stamp)."""
        wanted = ["source", "file", "digest", "stamp"]
        found = self._table.search().select(wanted).limit(max(1, len(self))).to_arrow().select(wanted)
        columns = [found.column(name).to_pylist() for name in wanted]
        return {source: (file, digest, stamp) for source, file, digest, stamp in zip(*columns, strict=True)}

    def replace(self, passages: Sequence[Passage], vectors_ND: np.ndarray, *, known: set[str]) -> None:
        """Put in the passages of some sources, and take out what these had before, in one commit.

        Args:
            passages: all that these sources have.
            vectors_ND: one for each.
            known: those of their sources that are indexed already.
        """
        assert len(passages) == len(vectors_ND)
        rows = self._rows(passages, vectors_ND)
        with _writing(self.place):
            if not known and not is_address(self.place):  # where nobody else can have put them in meanwhile
                self._table.add(rows)
                return
            sources = {passage.source for passage in passages}
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.when_not_matched_by_source_delete(f"source IN ({_listed(sources)})").execute(rows)

    def remove(self, sources: Iterable[str]) -> None:
        """Take out all passages of some sources."""
        names = list(sources)
        if not names:
            return
        with _writing(self.place):
            for begin in range(0, len(names), 1000):
                self._table.delete(f"source IN ({_listed(names[begin : begin + 1000])})")

    def settle(self) -> None:
        """Bring the indexes up to what was written, and clear away old versions: behind a round of writing."""
        with _writing(self.place):
            indexes = {index.name for index in self._table.list_indices()}
            if len(self) and "terms_idx" not in indexes:
                from lancedb.index import FTS

                how = FTS(base_tokenizer="whitespace", stem=True, remove_stop_words=False, max_token_length=64)
                self._table.create_index("terms", config=how)
            if len(self) >= ANN_FROM and "vector_idx" not in indexes:
                self.build_index()
            self._table.optimize(cleanup_older_than=_KEPT)

    def build_index(self) -> None:
        """An approximate index of the vectors, whatever their number."""
        from lancedb.index import IvfRq, IvfSq

        kind = IvfSq if self.about.dimensions % 8 else IvfRq  # which packs eight to a byte
        self._table.create_index("vector", config=kind(distance_type=self.about.likeness), replace=True)

    def _rows(self, passages: Sequence[Passage], vectors_ND: np.ndarray) -> Any:
        import pyarrow as pa

        contents = [content_of(p.heading, p.text) for p in passages]
        columns: dict[str, Any] = {
            "id": [f"{p.source}\0{p.start}" for p in passages],
            **{name: [getattr(p, name) for p in passages] for name in ("source", "file", "digest", "stamp", "start", "end")},
            "heading": [p.heading for p in passages], "content": contents, "terms": [terms_of(text) for text in contents],
            "meta": [[f"{key}={value}" for key, value in p.meta.items()] for p in passages],
        }  # fmt: skip
        width = vectors_ND.shape[1]
        columns["vector"] = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_ND.astype(np.float32).reshape(-1)), width
        )
        return pa.table(columns, schema=self._table.schema)

    # --- search

    def dense(self, vector_D: np.ndarray, top: int, *, where: str = "", exact: bool = False) -> list[Hit]:
        """The passages most like a vector; `exact` looks at each whatever the number.

        Raises:
            ConfigError: a filter that cannot be read.
        """
        query = self._table.search(vector_D, vector_column_name="vector").distance_type(self.about.likeness)
        query = query.bypass_vector_index() if exact else query.refine_factor(_REFINE)
        return [
            _hit(row, 1.0 - row["_distance"], dense=1.0 - row["_distance"])
            for row in _taken(query, top, where, "_distance")
        ]

    def bm25(self, query: str, top: int, *, where: str = "") -> list[Hit]:
        """The passages that have a query's words.

        Raises:
            ConfigError: a filter that cannot be read.
        """
        terms = terms_of(query)
        if not terms or not len(self):
            return []
        asked = self._table.search(terms, query_type="fts", fts_columns="terms")
        return [_hit(row, row["_score"], bm25=row["_score"]) for row in _taken(asked, top, where, "_score")]

    def search(
        self, query: str, vector_D: np.ndarray | None, mode: Mode, top: int, *, where: str = "", exact: bool = False
    ) -> list[Hit]:
        """Search by a mode; `vector_D` is the query's, and not needed for bm25."""
        if mode == "bm25":
            return self.bm25(query, top, where=where)
        assert vector_D is not None
        if mode == "dense":
            return self.dense(vector_D, top, where=where, exact=exact)
        depth = max(DEPTH, top)
        return fused(self.dense(vector_D, depth, where=where, exact=exact), self.bm25(query, depth, where=where))[:top]

    def passages_of(self, source: str) -> tuple[list[Hit], np.ndarray]:
        """All passages of a source with their vectors (N, D); none of a source that is not indexed."""
        where = f"source = {_quoted(source)}"
        rows = self._table.search().where(where).select([*_COLUMNS, "vector"]).limit(1_000_000).to_list()
        rows.sort(key=lambda row: row["start"])
        vectors = np.array([row["vector"] for row in rows], dtype=np.float32).reshape(len(rows), self.about.dimensions)
        return [_hit(row, 0.0) for row in rows], vectors


def rank_fusion(rankings: Sequence[Sequence[Key]], k: int = RRF_K) -> list[tuple[Key, float]]:
    """Reciprocal rank fusion: what is in a ranking at rank r, counted from 1, gets 1 / (k + r) of it; the best first."""
    scores: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + 1 / (k + rank)
    return sorted(scores.items(), key=lambda item: -item[1])


def fused(dense: Sequence[Hit], bm25: Sequence[Hit]) -> list[Hit]:
    """The hits of both, by reciprocal rank fusion, each with its score in either part."""
    by_key = [{(hit.source, hit.start): hit for hit in hits} for hits in (dense, bm25)]
    found = []
    for key, score in rank_fusion([list(hits) for hits in by_key]):
        parts = [hits.get(key) for hits in by_key]
        hit = next(part for part in parts if part is not None)
        dense_score, bm25_score = (None if part is None else part.score for part in parts)
        found.append(replace(hit, score=score, dense=dense_score, bm25=bm25_score))
    return found


def content_of(heading: str, text: str) -> str:
    """What is encoded and searched of a passage."""
    return f"{heading}\n{text}" if heading else text


def filter_of(conditions: Sequence[str], where: str = "") -> str:
    """`key=value` conditions on what records say of themselves, and a condition in SQL, all of which must hold.

    Raises:
        ConfigError: a condition that is none.
    """
    parts = [f"({where})"] if where else []
    for condition in conditions:
        if "=" not in condition:
            raise ConfigError(f"--filter {condition}: no condition; write key=value, as in language=en")
        parts.append(f"array_has(meta, {_quoted(condition)})")
    return " AND ".join(parts)


def _hit(row: Mapping[str, Any], score: float, **parts: float) -> Hit:
    heading = row["heading"]
    text = row["content"][len(heading) + 1 :] if heading else row["content"]
    meta = dict(pair.split("=", 1) for pair in row["meta"] or ())
    return Hit(
        source=row["source"], start=row["start"], end=row["end"], score=score, text=text, heading=heading, meta=meta, **parts
    )  # fmt: skip


def _taken(query: Any, top: int, where: str, score: str) -> list[dict[str, Any]]:
    query = query.select([*_COLUMNS, score]).limit(top)
    try:
        found: list[dict[str, Any]] = (query.where(where, prefilter=True) if where else query).to_list()
        return found
    except _REFUSALS as error:
        if where:
            raise ConfigError(
                f"--where {where}: the store cannot take it ({_first_line(error)}); columns are source, file, start, end, "
                "heading, content and meta"
            ) from error
        raise DataError(f"the store cannot be read ({_first_line(error)})") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_quoted, names))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _refuse_foreign(place: str) -> None:
    """Nobody's files are to lie among a store's."""
    path = Path(place)
    if is_address(place) or not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not ((path / f"{TABLE}.lance").exists() or (path / _LOCK).exists()):
        raise DataError(f"{place} is there and is no store of passages; choose another --store")


def _connect(place: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise UnsupportedError(
            "a store of passages needs lancedb, which is not installed; pip install 'modernbert[retrieval]'"
        ) from error
    try:
        return lancedb.connect(place, read_consistency_interval=timedelta(0))  # others may be writing
    except _REFUSALS as error:
        raise DataError(f"{place} cannot be opened ({_first_line(error)})") from error


@contextlib.contextmanager
def _writing(place: str) -> Iterator[None]:
    try:
        yield
    except _REFUSALS as error:
        raise DataError(
            f"{place} cannot be written ({_first_line(error)}); free some space or choose another --store. What was committed "
            "before stays, and the same command goes on behind it"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{(str(error).splitlines() or [type(error).__name__])[0]:.160}"
