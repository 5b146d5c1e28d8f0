"""Texts → windows of texts with their vectors, in the order of the texts.

    read a window → tokenise it (in a thread) → batches of like length → encoder → pool → the texts' order

Each window of at most 8,192 texts, or of a million characters, is on its way alone: while one is computed the next is
tokenised, and nothing else is held. Within it texts go longest first, so that memory runs out at once or not at all,
into batches of a token budget; nothing is ever padded. Price: the texts, ids and vectors of two windows in memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from modernbert.batch import PackedBatch
from modernbert.errors import ConfigError, DataError
from modernbert.retrieval.vectors import Counts
from modernbert.runtime import evaluating
from modernbert.tasks import Embedder, EncoderModel
from modernbert.tasks.embed import POOLINGS, EmbedSettings, Pooling, pool
from modernbert.text.tokenizer import kept_copy

log = logging.getLogger(__name__)

OnProgress = Callable[[Counts], None]

TOKENS_PER_BATCH = 16_384
TEXTS_PER_WINDOW = 8_192
_CHARS_PER_WINDOW = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How texts become vectors, checked against a model."""

    pooling: Pooling
    normalize: bool
    prefix: str  # before each text
    dimensions: int  # of the vectors
    max_length: int  # tokens of a text, special ones included
    tokens_per_batch: int
    texts_per_window: int

    @classmethod
    def of(
        cls,
        model: EncoderModel,
        *,
        pooling: Pooling | None,
        normalize: bool,
        truncate_dim: int | None,
        max_length: int | None,
        prompt: str | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        texts_per_window: int = TEXTS_PER_WINDOW,
    ) -> How:
        """Take None from the model; see `modernbert.retrieval.encode`.

        Raises:
            ConfigError: a value out of range, or no such prompt.
            DataError: the model has no tokenizer.
        """
        num_special = model.need_tokenizer().num_special_tokens_to_add(is_pair=False)
        width, positions = model.config.hidden_size, model.config.max_position_embeddings
        settings = model.settings if isinstance(model, Embedder) else EmbedSettings()
        if max_length is None:
            max_length = min(settings.max_length or positions, positions)
        how = cls(
            pooling=pooling or settings.pooling,
            normalize=normalize,
            prefix=settings.prefix(prompt),
            dimensions=width if truncate_dim is None else truncate_dim,
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            texts_per_window=texts_per_window,
        )
        if how.pooling not in POOLINGS:
            raise ConfigError(f"pooling={how.pooling!r} is not known; say {' or '.join(POOLINGS)}")
        if how.pooling == "cls" and not num_special:
            raise ConfigError("pooling='cls' takes a special first token, which this tokenizer does not add; say mean")
        _check_range("truncate_dim", how.dimensions, 1, width, "the model's width")
        _check_range("max_length", how.max_length, num_special + 1, positions, "the model's positions")
        _check_range("tokens_per_batch", tokens_per_batch, 1)
        _check_range("texts_per_window", texts_per_window, 1)
        return how


def _check_range(name: str, value: int, least: int, most: int | None = None, most_is: str = "") -> None:
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}, {most_is}"
        raise ConfigError(f"{name}={value} is out of range; it must be {limits}")


def checked(texts: Iterable[str]) -> Iterator[str]:
    """The same texts, as long as they are texts.

    Raises:
        DataError: something else among them, or half a surrogate pair, which no UTF-8 can hold.
    """
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(
                f"text {number} is a {type(text).__name__} ({text!r:.40}), not a str; leave it out or say ''"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"text {number} is no valid Unicode ({error.reason}); repair it or leave it out") from error
        yield text


def encode_windows(
    model: EncoderModel, texts: Iterator[str], how: How, counts: Counts, progress: OnProgress
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield window after window of W texts with their vectors (W, dimensions), and keep `counts` up to date."""
    for window, ids in _tokenised(_windows(texts, how.texts_per_window), model.need_tokenizer(), how):
        yield window, _encode_window(model, ids, how, counts, progress)
    if counts.truncated:
        cut = f"{counts.truncated:,} of {counts.texts:,} texts were longer than {how.max_length:,} tokens and cut there"
        log.warning("%s; the model takes %s", cut, f"{model.config.max_position_embeddings:,}")
    if counts.empty:
        log.warning("%s of %s texts gave no token; their vectors are zero", f"{counts.empty:,}", f"{counts.texts:,}")


def batches_of_like_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Cut texts, longest first, into batches within a budget; yields their places. Empty ones are in none."""
    batch: list[int] = []
    filled = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and filled + lengths[place] > tokens_per_batch:
            yield batch
            batch, filled = [], 0
        if lengths[place]:
            batch.append(place)
            filled += lengths[place]
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Ids:
    """The token ids of a window's texts, each (T) int32."""

    ids_T: list[Tensor]
    num_truncated: int


def _windows(texts: Iterator[str], texts_per_window: int) -> Iterator[list[str]]:
    window: list[str] = []
    num_chars = 0
    for text in texts:
        window.append(text)
        num_chars += len(text)
        if len(window) == texts_per_window or num_chars >= _CHARS_PER_WINDOW:
            yield window
            window, num_chars = [], 0
    if window:
        yield window


def _tokenised(
    windows: Iterator[list[str]], callers_tokenizer: Tokenizer, how: How
) -> Iterator[tuple[list[str], _Ids]]:
    """Each window with its ids. The next one is read before, and tokenised while the caller works on this one."""
    # Cuts before special tokens are added, so that the last one stays.
    tokenizer = kept_copy(callers_tokenizer, max_length=how.max_length)
    ahead: deque[tuple[list[str], Future[_Ids]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as thread:
        for window in windows:
            ahead.append((window, thread.submit(_tokenise, tokenizer, how, window)))
            if len(ahead) == 2:
                ready, ids = ahead.popleft()
                yield ready, ids.result()
        for ready, ids in ahead:
            yield ready, ids.result()


def _tokenise(tokenizer: Tokenizer, how: How, texts: list[str]) -> _Ids:
    encodings = tokenizer.encode_batch_fast([how.prefix + text for text in texts] if how.prefix else texts)
    ids_T = [torch.from_numpy(np.array(encoding.ids, dtype=np.int32)) for encoding in encodings]
    num_truncated = sum(len(encoding) == how.max_length and bool(encoding.overflowing) for encoding in encodings)
    return _Ids(ids_T, num_truncated)


def _encode_window(model: EncoderModel, window: _Ids, how: How, counts: Counts, progress: OnProgress) -> np.ndarray:
    lengths = [len(ids_T) for ids_T in window.ids_T]
    first_text = counts.texts + 1
    counts.truncated += window.num_truncated
    counts.empty += lengths.count(0)
    counts.texts += lengths.count(0)
    with evaluating(model), torch.inference_mode():
        vectors_WD = torch.zeros(len(lengths), how.dimensions, device=model.device)  # stays zero where nothing is
        for places in batches_of_like_length(lengths, how.tokens_per_batch):
            batch = PackedBatch.from_sequences(window.ids_T[place] for place in places).to(model.device)
            try:
                hidden_TD = model.encoder(batch)
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"tokens_per_batch={how.tokens_per_batch}: {batch.num_tokens:,} tokens do not fit the memory of "
                    f"{model.device}; try {how.tokens_per_batch // 2}"
                ) from error
            vectors_WD[places] = pool(hidden_TD, batch, how.pooling, dimensions=how.dimensions, normalize=how.normalize)
            counts.texts += len(places)
            counts.tokens += batch.num_tokens
            progress(counts)
        if not vectors_WD.isfinite().all():  # attention spreads it over a batch, so which text began it is not known
            where = f"texts {first_text:,} to {counts.texts:,}"
            raise DataError(
                f"a vector of {where} is not finite; the weights are damaged, or overflow in this precision"
            )
        return vectors_WD.cpu().numpy()
