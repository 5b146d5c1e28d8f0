"""An embedder on folders in BEIR's form → nDCG@10, MRR@10 and recall@100, beside BM25's and both fused.

    corpus, queries → vectors → every query compared with every document → the first 100      (exact: the twin of an index)
                    → words   → the store's BM25                         → the first 100      → reciprocal rank fusion

| suite | data | what a document's vector is |
|---|---|---|
| `retrieval` | every folder in BEIR's form | that of its first `max_length` tokens |
| `code` | `retrieval_cosqa`, `retrieval_mbpp`, `code_docstring_python` | likewise |
| `long` | `retrieval_qmsum_long`, or a folder itself | of its first 512 tokens; of all the model takes; of its best passage |

Metrics are those of trec_eval through ir-measures. A score's `values` are those of single queries, in the order of the file, so
that `compare` says how sure a difference is, paired by query. Any encoder that transformers loads and any
sentence-transformers model will do. Price: two million tokens for SciFact's corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from modernbert.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from modernbert.evaluate.foreign import is_ours, open_encoder
from modernbert.evaluate.score import (
    Progress,
    Score,
    ScoreFile,
    model_fingerprint,
    protocol_key,
    sha256_of,
    where_computed,
)
from modernbert.model import hub
from modernbert.retrieval.chunks import chunks_of
from modernbert.retrieval.encode import encode, open_for_vectors
from modernbert.retrieval.store import RRF_K, About, Passage, Store, rank_fusion
from modernbert.runtime import Runtime
from modernbert.tasks import Embedder
from modernbert.tasks.embed import EmbedSettings
from modernbert.tasks.load import newest_checkpoint
from modernbert.text.beir import BeirFolder, beir_folders, read_beir
from modernbert.text.labelled_open import open_table

RetrievalSuite = Literal["retrieval", "code", "long"]
RETRIEVAL_SUITES: tuple[str, ...] = ("retrieval", "code", "long")
METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "RR@10", "recall@100": "R@100"}
"""Ours → ir-measures' names."""
BM25 = "bm25"

_DEPTH = 100
_QUERIES_AT_ONCE = 256
_CODE = ("retrieval_cosqa", "retrieval_mbpp", "code_docstring_python")
_LONG = "retrieval_qmsum_long"
_SHORT = 512  # tokens, of long documents' beginnings and passages

Run = dict[str, dict[str, float]]
"""Query → document → score, of the first 100."""
Way = Literal["first", "chunks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalSettings:
    """How a suite is run; all of it stands in the protocol of a score."""

    max_length: int | None = None  # tokens of a text; what the model's folder says, at most 512, if None
    max_test: int | None = None  # queries, the first
    truncate_dim: int | None = None
    split: str = "test"

    def __post_init__(self) -> None:
        for name in ("max_length", "max_test", "truncate_dim"):
            if (value := getattr(self, name)) is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")


class Vectors:
    """Any embedder, by its name.

    Args:
        name: a folder, a run folder or a hub name: ours, an encoder of transformers, or of sentence-transformers.
        runtime: the device.

    Raises:
        CheckpointError: nothing there that can be opened.
        UnsupportedError: a library that is needed and not installed.
    """

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self.stock: Any = None
        self.model: Embedder | None = None
        try:
            if is_ours(name):
                self.model = open_for_vectors(name, device=runtime.device)
            else:
                settings = EmbedSettings.read(newest_checkpoint(hub.find_folder(name))) if Path(name).is_dir() else None
                if settings is not None:
                    self.model = Embedder.of(open_encoder(name, runtime.device), settings)
        except UnsupportedError:  # layers that are not computed here: their library does
            self.model = None
        if self.model is None:
            self.stock = _stock(name, runtime)
        longest = self.stock.max_seq_length if self.model is None else self.model.config.max_position_embeddings
        self.positions: int = longest or _SHORT
        own = self.stock.max_seq_length if self.model is None else self.model.settings.max_length
        self.usual_length = min(own or _SHORT, _SHORT, self.positions)  # of a text, where nothing is said
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        """Of weights and tokenizer, and of how vectors are made of them."""
        if self.model is not None:
            weights, how = model_fingerprint(self.model, self.model.tokenizer), dataclasses.asdict(self.model.settings)
        else:
            weights = model_fingerprint(self.stock, None)
            how = {"prompts": self.stock.prompts, "likeness": self.stock.similarity_fn_name, "modules": str(self.stock)}
        return f"{weights}-{hashlib.blake2b(repr(how).encode(), digest_size=4).hexdigest()}"

    def __call__(
        self, texts: Sequence[str], prompt: str | None, max_length: int, dimensions: int | None = None
    ) -> np.ndarray:
        """Vectors (N, D), of length one unless likeness is a dot product. The prompt None is the model's own default."""
        max_length = min(max_length, self.positions)
        if self.model is not None:
            found = encode(
                self.model, texts, max_length=max_length, truncate_dim=dimensions, prompt=prompt,
                normalize=self.model.settings.likeness == "cosine",
            )  # fmt: skip
            assert isinstance(found, np.ndarray)
            return found
        self.stock.max_seq_length = max_length
        by_kind = {"query": self.stock.encode_query, "document": self.stock.encode_document, None: self.stock.encode}[
            prompt
        ]
        normalize = self.stock.similarity_fn_name != "dot"
        found = by_kind(list(texts), normalize_embeddings=normalize, truncate_dim=dimensions, show_progress_bar=False)
        return np.asarray(found)

    def chunks(self, text: str, max_length: int) -> list[str]:
        """A long text's passages, each of so many tokens with its special ones and its prompt."""
        assert self.model is not None
        tokenizer = self.model.need_tokenizer()
        more = len(tokenizer.encode(self.model.settings.prefix("document")))  # one space's token may come between
        found = chunks_of(text, "prose", tokenizer, max_length - more - 1)
        return [chunk.text for chunk in found] or [text]


def evaluate_retrieval(
    model: str,
    suite: str,
    data: Path,
    *,
    settings: RetrievalSettings,
    tasks: Sequence[str] = (),
    scores: ScoreFile | None = None,
    runtime: Runtime | None = None,
    progress: Progress = lambda _done, _note: None,
) -> Iterator[Score]:
    """Score an embedder, BM25, and both fused, on each task that is there.

    Args:
        model: its name, or `bm25` for that alone.
        suite: one of `RETRIEVAL_SUITES`.
        data: a folder in BEIR's form, or one that holds such.
        settings: how.
        tasks: only these, by the names of their folders without `retrieval_`.
        scores: where scores are kept, and taken from where they are known.
        runtime: device and precision.
        progress: told before each task.

    Raises:
        ConfigError: no such task.
        DataError: nothing of it is there.
    """
    _need_ir_measures()
    runtime = runtime or Runtime.detect()
    places = places_of(suite, data, tasks)
    vectors = None if model == BM25 else Vectors(model, runtime)
    for done, (name, place) in enumerate(places.items()):
        progress(done, name)
        task = read_task(place, settings)
        ways = _ways(suite, settings, vectors)
        by_words: Run | None = None
        for label, way, length in ways:
            asked = {
                "method": "every query against every document; BM25 of the store; reciprocal rank fusion of the first 100",
                **dataclasses.asdict(settings), "max_length": length, "way": way, "depth": _DEPTH, "rrf_k": RRF_K,
                "files": _files_of(place, settings.split), "seeds": _digest(task.queries),  # what `compare` pairs by: the queries
            }  # fmt: skip
            systems = _systems(model, vectors)
            known = [
                score
                for system, fingerprint in systems
                for score in (scores.find(fingerprint, name + label, protocol_key(asked), suite) if scores else [])
                if score.model == system
            ]
            if len(known) == len(systems) * len(METRICS):
                yield from known
                continue
            started_at = time.perf_counter()
            by_words = by_words or rank_by_words(task)
            runs = {BM25: by_words}
            if vectors is not None:
                with runtime.autocast():
                    by_vectors = rank_by_vectors(task, vectors, way, length, settings.truncate_dim)
                runs |= {model: by_vectors, f"{model} + bm25": fuse(by_vectors, by_words)}
            for system, fingerprint in systems:
                for metric, values in measured(task, runs[system]).items():
                    score = Score.of(
                        [round(value, 4) for value in values], suite=suite, task=name + label, metric=metric, model=system,
                        model_fingerprint=fingerprint, protocol=asked | where_computed(runtime),
                        details={
                            "documents": len(task.corpus), "queries": len(values), "judgments_of_no_document": task.num_lost,
                        },
                        seconds=time.perf_counter() - started_at,
                    )  # fmt: skip
                    if scores is not None:
                        scores.append(score)
                    yield score


def _ways(suite: str, settings: RetrievalSettings, vectors: Vectors | None) -> list[tuple[str, Way, int]]:
    """What stands behind a task's name, how a document gets its vector, and of how many tokens."""
    usual = _SHORT if vectors is None else vectors.usual_length
    if suite != "long" or vectors is None:
        return [("", "first", settings.max_length or usual)]
    short = min(_SHORT, vectors.positions)
    found: list[tuple[str, Way, int]] = [(f", first {short}", "first", short)]
    if vectors.positions > short:
        found.append((f", first {vectors.positions}", "first", vectors.positions))
    if vectors.model is not None:  # whose tokenizer says where a passage ends
        found.append((f", best passage of {short}", "chunks", short))
    return found


def _systems(model: str, vectors: Vectors | None) -> list[tuple[str, str]]:
    """What is scored: names and fingerprints."""
    if vectors is None:
        return [(BM25, BM25)]
    return [(model, vectors.fingerprint), (BM25, BM25), (f"{model} + bm25", f"{vectors.fingerprint}+bm25")]


def places_of(suite: str, data: Path, tasks: Sequence[str] = ()) -> dict[str, Path]:
    """The folders of a suite that are there, by the names of their tasks.

    Raises:
        ConfigError: a task that is none of them.
        DataError: none is there.
    """
    folders = beir_folders(data)
    if suite == "code":
        folders = [data / name for name in _CODE if (data / name).is_dir()]
    elif suite == "long" and folders != [data]:
        folders = [folder for folder in folders if folder.name == _LONG]
    found = {folder.name.removeprefix("retrieval_"): folder for folder in folders}
    if not found:
        raise DataError(
            f"{data} has no folder for suite {suite}; it takes corpus.jsonl, queries.jsonl and qrels/test.tsv"
        )
    if unknown := [task for task in tasks if task.removeprefix("retrieval_") not in found]:
        raise ConfigError(f"suite {suite} has no task {unknown[0]!r} there; choose among {', '.join(found)}")
    wanted = {task.removeprefix("retrieval_") for task in tasks}
    return {name: folder for name, folder in found.items() if not wanted or name in wanted}


def read_task(place: Path, settings: RetrievalSettings) -> BeirFolder:
    """A folder in BEIR's form, or one of (docstring, code) pairs, each of which is a query and its only answer."""
    if beir_folders(place) == [place]:
        task = read_beir(place, settings.split)
    else:
        table = open_table(place / f"{settings.split}.parquet")
        docstrings, codes = table.column("docstring"), table.column("code")
        task = BeirFolder(
            name=place.name, corpus=dict(zip(map(str, range(len(codes))), codes, strict=True)),
            queries=dict(zip(map(str, range(len(docstrings))), docstrings, strict=True)),
            judgments={str(row): {str(row): 1} for row in range(len(codes))},
        )  # fmt: skip
    kept = dict(list(task.queries.items())[: settings.max_test])
    return dataclasses.replace(task, queries=kept, judgments={query: task.judgments[query] for query in kept})


# --- ranking


def rank_by_vectors(task: BeirFolder, vectors: Vectors, way: Way, max_length: int, dimensions: int | None) -> Run:
    """The first 100 documents of each query, by the dot product of vectors of length one."""
    ids = list(task.corpus)
    texts, owners = list(task.corpus.values()), np.arange(len(ids))
    if way == "chunks":
        parts = [vectors.chunks(text, max_length) for text in texts]
        owners = np.repeat(owners, [len(part) for part in parts])
        texts = [text for part in parts for text in part]
    documents_ND = torch.from_numpy(vectors(texts, "document", max_length, dimensions))
    queries_QD = torch.from_numpy(vectors(list(task.queries.values()), "query", max_length, dimensions))
    owner_N = torch.from_numpy(owners)
    run: Run = {}
    for begin in range(0, len(queries_QD), _QUERIES_AT_ONCE):
        scores_QN = queries_QD[begin : begin + _QUERIES_AT_ONCE] @ documents_ND.T
        if way == "chunks":
            best_QB = torch.full((len(scores_QN), len(ids)), -torch.inf)
            scores_QN = best_QB.scatter_reduce_(1, owner_N.expand(len(scores_QN), -1), scores_QN, "amax")
        top = scores_QN.topk(min(_DEPTH, len(ids)), dim=1)
        for query, row, places in zip(
            list(task.queries)[begin : begin + _QUERIES_AT_ONCE], top.values.tolist(), top.indices.tolist(), strict=True
        ):
            run[query] = {ids[place]: score for place, score in zip(places, row, strict=True)}
    return run


def rank_by_words(task: BeirFolder) -> Run:
    """The first 100 documents of each query, by the BM25 that `modernbert search` uses."""
    with tempfile.TemporaryDirectory() as folder:
        about = About(model=BM25, fingerprint={}, dimensions=1, likeness="dot", max_tokens=0)
        passages = [
            Passage(source=name, file="", digest="", stamp="", start=0, end=len(text), heading="", text=text, meta={})
            for name, text in task.corpus.items()
        ]
        with Store.written(Path(folder) / "store", about) as store:
            store.replace(passages, np.zeros((len(passages), 1), dtype=np.float32), known=set())
            store.settle()
            return {
                query: {hit.source: hit.score for hit in store.bm25(text, _DEPTH)}
                for query, text in task.queries.items()
            }


def fuse(*runs: Run) -> Run:
    """Reciprocal rank fusion, query by query."""
    return {
        query: dict(rank_fusion([_ranked(run.get(query, {})) for run in runs])[:_DEPTH])
        for query in dict.fromkeys(query for run in runs for query in run)
    }


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda document: (-scores[document], document))


def measured(task: BeirFolder, run: Run) -> dict[str, list[float]]:
    """Each metric's value for each query, in order; 0 of a query for which nothing was found."""
    import ir_measures

    measures = {ours: ir_measures.parse_measure(theirs) for ours, theirs in METRICS.items()}
    found: dict[tuple[str, str], float] = {
        (str(value.measure), value.query_id): value.value
        for value in ir_measures.iter_calc(list(measures.values()), task.judgments, run)
    }
    return {
        ours: [found.get((str(measure), query), 0.0) for query in task.queries] for ours, measure in measures.items()
    }


# --- the rest


def _files_of(place: Path, split: str) -> dict[str, str]:
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    wanted = [path for path in files if path.stem == split or (path.parent == place and path.suffix != ".parquet")]
    return {f"{place.name}/{path.relative_to(place)}": sha256_of(path) for path in wanted}


def _digest(queries: Mapping[str, str]) -> str:
    return hashlib.blake2b(repr(list(queries)).encode(), digest_size=8).hexdigest()


def _stock(name: str, runtime: Runtime) -> Any:
    """The library's own model.

    Raises:
        CheckpointError: it cannot open it.
        UnsupportedError: it is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UnsupportedError(
            f"{name} needs sentence-transformers, which is not installed; pip install 'modernbert[retrieval]'"
        ) from error
    try:
        return SentenceTransformer(name, device=str(runtime.device))
    except Exception as error:
        raise CheckpointError(
            f"{name}: sentence-transformers cannot open it ({str(error).splitlines()[0]:.120})"
        ) from error


def _need_ir_measures() -> None:
    try:
        import ir_measures  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "retrieval metrics need ir-measures, which is not installed; pip install 'modernbert[retrieval]'"
        ) from error
