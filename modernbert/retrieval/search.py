"""A query, or a text to find the like of → passages of a store, with their places and scores.

query → its vector (with the model's query prompt) and its words → dense, BM25, or both fused → hits
a file or text → the mean of its passages' vectors → the most alike sources, itself left out
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.errors import ConfigError, DataError
from modernbert.retrieval.chunks import chunks_of, structure_of
from modernbert.retrieval.encode import encode, open_for_vectors
from modernbert.retrieval.index import about_of, how_of
from modernbert.retrieval.store import Hit, Mode, Store, content_of
from modernbert.retrieval.windows import How
from modernbert.tasks import Embedder

_PASSAGES_A_SOURCE = 8  # looked at for each source wanted, since one source may have many of the nearest passages


class Retriever:
    """A store and the model whose vectors it holds.

    Args:
        place: the store, a folder or an address.
        model: its model, or the name of it; None: the one it was indexed with. Not needed for BM25 alone.
        device: where a model is put that is opened by its name.

    Raises:
        ConfigError: the model makes other vectors.
        CheckpointError: it cannot be opened.
        DataError: no store is there.
    """

    def __init__(
        self, place: str | Path, model: Embedder | str | None = None, *, device: str | torch.device = "cpu"
    ) -> None:
        self.store = Store.open(place)
        self._model, self._device = model, device
        self._checked: Embedder | None = None

    @property
    def model(self) -> Embedder:
        """The model, opened when it is first needed."""
        if self._checked is None:
            given = self._model if self._model is not None else self.store.about.model
            model = given if isinstance(given, Embedder) else open_for_vectors(given, device=self._device)
            about = self.store.about
            of_model = about_of(model, about.model, self._how(model, "document"), about.max_tokens)
            if found := about.differing(of_model):
                name, theirs, ours = found
                called = given if isinstance(given, str) else "this model"
                raise ConfigError(
                    f"{self.store.place} was indexed with {name}={theirs!r}, and {called} has {ours!r}; give the model it was "
                    f"indexed with ({about.model}), or index anew"
                )
            self._checked = model
        return self._checked

    def _how(self, model: Embedder, prompt: str) -> How:
        return how_of(model, self.store.about.dimensions, self.store.about.max_tokens, prompt)

    def vectors(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        """Vectors as the store has them, (N, dimensions)."""
        how = self._how(self.model, prompt)
        found = encode(self.model, texts, truncate_dim=how.dimensions, max_length=how.max_length, prompt=prompt)
        assert isinstance(found, np.ndarray)
        return found

    def search(
        self, query: str, top: int = 10, mode: Mode = "hybrid", *, where: str = "", exact: bool = False
    ) -> list[Hit]:
        """The best passages for a query.

        Args:
            query: words or a question.
            top: how many, at most.
            mode: by likeness of vectors, by words (BM25), or both fused by their ranks.
            where: a condition in SQL on source, file, heading, content and meta; see `store.filter_of`.
            exact: compare with each vector even where there is an index.

        Raises:
            ConfigError: a condition that cannot be read.
        """
        _check_top(top)
        if not query.strip():
            raise DataError("the query is empty; give some words")
        vector_D = None if mode == "bm25" else self.vectors([query], "query")[0]
        return self.store.search(query, vector_D, mode, top, where=where, exact=exact)

    def like(self, text_or_file: str | Path, top: int = 10, *, where: str = "", exact: bool = False) -> list[Hit]:
        """The sources most like a text, a file or an indexed record, each with its nearest passage; itself is left out.

        Raises:
            DataError: a file that cannot be read, is not there, or has no text.
        """
        _check_top(top)
        own, vectors_ND = self._of(text_or_file)
        vector_D = vectors_ND.mean(0)
        vector_D /= max(float(np.linalg.norm(vector_D)), 1e-12)
        found: dict[str, Hit] = {}
        looked_at = top * _PASSAGES_A_SOURCE
        while True:
            hits = self.store.dense(vector_D, looked_at, where=where, exact=exact)
            for hit in hits:
                if own is None or (hit.source != own and not hit.source.startswith(f"{own}#")):
                    found.setdefault(hit.source, hit)
            if len(found) >= top or len(hits) < looked_at:
                return list(found.values())[:top]
            looked_at *= 4

    def _of(self, text_or_file: str | Path) -> tuple[str | None, np.ndarray]:
        """The name of a source or file, None of a text; and the vectors of its passages."""
        given = str(text_or_file)
        for name in (given, os.path.abspath(given)):
            if len(vectors_ND := self.store.passages_of(name)[1]):
                return name, vectors_ND
        path = _path_of(given)
        text, own = given, None
        if path is not None:
            own = os.path.abspath(path)
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read as text ({error}); give a text, or another file") from error
        elif len(given.split()) == 1 and (os.sep in given or "#" in given):
            raise DataError(f"{given}: no such file or source; check the path, or give a text")
        chunks = chunks_of(
            text, structure_of(given if path else ""), self.model.need_tokenizer(), self.store.about.max_tokens
        )
        if not chunks:
            raise DataError(f"{path or 'the text'} is empty; give some words")
        return own, self.vectors([content_of(chunk.heading, chunk.text) for chunk in chunks], "document")

    def within(self, query: str, budget_tokens: int, mode: Mode = "hybrid", *, where: str = "") -> list[Hit]:
        """The best passages that fit a budget of tokens together, for a prompt: what a RAG framework asks of a retriever.

        Passages are taken by rank, and one that does not fit is passed over. Tokens are counted by this model's tokenizer.
        """
        hits = self.search(query, max(10, budget_tokens // 16), mode, where=where)
        counts = [len(e) for e in self.model.need_tokenizer().encode_batch([hit.text for hit in hits])]
        taken, left = [], budget_tokens
        for hit, count in zip(hits, counts, strict=True):
            if count <= left:
                taken.append(hit)
                left -= count
        return taken


def _check_top(top: int) -> None:
    if top < 1:
        raise ConfigError(f"top={top} must be at least 1")


def _path_of(text: str) -> Path | None:
    """A file that is there; a text may be longer than any file's name."""
    try:
        return Path(text) if Path(text).is_file() else None
    except (OSError, ValueError):
        return None


def answered(hits: Sequence[Hit], answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best of the answers that a reader found in some passages, with its place in the source; none where it found none.

    Of passages the one whose answer the reader is surest of counts; where it would rather have none everywhere, there is none.
    """
    found = [
        (answer["score"], hit, answer)
        for hit, answer in zip(hits, answers, strict=True)
        if answer["answer"] is not None
    ]
    if not found:
        return {"answer": None, "source": None, "start": None, "end": None, "score": None, "passage": None}
    score, hit, answer = max(found, key=lambda each: each[0])
    return {
        "answer": answer["answer"], "source": hit.source, "start": hit.start + answer["start"],
        "end": hit.start + answer["end"], "score": score, "passage": hit.text,
    }  # fmt: skip
