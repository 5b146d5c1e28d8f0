"""A masked language model, ours or another's → its loss on held-out text by source and position, and its pseudo-perplexity.

    documents → pieces of `max_length` tokens → 15 % masked, once a seed → loss of a token, bits a character
    passages  → each token masked in turn, alone → pseudo-perplexity (arXiv 1910.14659), bits a character

A loss of a token compares models of one tokenizer only; those of different ones are compared by character: bits a token ×
scored tokens / characters of the text. Even so a tokenizer that drops case or white space, or says [UNK], has less to guess:
`keeps_text` and `unknown` in a score's details say how much. Of a word in several tokens the others stay visible when one
is masked, which flatters rare words alike in all models of one tokenizer.
Price: some 75,000 tokens a source for the loss; a passage of 50 tokens costs 2,600 for the pseudo-perplexity.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from modernbert.batch import IGNORE, PackedBatch
from modernbert.data.mask import Masker
from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.benchmarks import Benchmark, choose
from modernbert.evaluate.foreign import ForeignMaskedLM, open_masked
from modernbert.evaluate.score import (
    Progress,
    Score,
    ScoreFile,
    model_fingerprint,
    protocol_key,
    sha256_of,
    where_computed,
)
from modernbert.runtime import Runtime, evaluating
from modernbert.tasks.mlm import MaskedLM
from modernbert.text.read import iter_documents
from modernbert.text.tokenizer import SpecialIds, for_plain_text, num_ids, special_ids
from modernbert.train.score import evaluate_on

Masked: TypeAlias = MaskedLM | ForeignMaskedLM

_TRIM = re.compile(r"^\S{0,30}\s+|\s+\S{0,30}$")  # of a passage the words that its ends cut
_DOCUMENT_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MlmSettings:
    """How a masked language model is measured; all of it stands in the protocol."""

    rate: float = 0.15  # of tokens; 80 % of them become [MASK], 10 % another token, 10 % stay
    max_length: int = 512  # tokens of a piece
    characters: int = 100_000  # of each source, at most 20,000 of a document
    seeds: tuple[int, ...] = (0, 1, 2)  # of masks
    passages: int = 32  # of each source, for the pseudo-perplexity
    passage_characters: int = 200
    tokens_per_batch: int = 8192

    def __post_init__(self) -> None:
        for name in ("characters", "passages", "passage_characters", "tokens_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_length < 3 or not 0 < self.rate < 1 or not self.seeds:
            raise ConfigError(
                f"max_length={self.max_length} must be at least 3, rate={self.rate} between 0 and 1, and seeds="
                f"{self.seeds} need at least one entry"
            )


def evaluate_mlm(
    model: Masked | str | Path,
    data: str | Path,
    *,
    name: str = "",
    settings: MlmSettings | None = None,
    tasks: Sequence[str] = (),
    scores: ScoreFile | None = None,
    runtime: Runtime | None = None,
    progress: Progress = lambda _done, _note: None,
) -> Iterator[Score]:
    """Measure a masked language model on each text that is there.

    Args:
        model: a loaded one, or the name of any that has an MLM head.
        data: the folder of data sets; `choose("mlm", data)` says which.
        name: the model's, where it is given loaded.
        settings: None for the standard ones, which figures are comparable by.
        tasks: only these.
        scores: where scores are kept, and taken from where they are known.
        runtime: device and precision; the CPU in float32 if None.
        progress: told before each text.

    Returns:
        Of each text four scores: `loss` (nats a token; `by_position` in its details), `bits_per_character`,
        `pseudo_perplexity` (a token) and `pseudo_bits_per_character`.

    Raises:
        CheckpointError: the model cannot be opened, or has no MLM head.
        DataError: no text is there, or the tokenizer has no mask.
    """
    settings = settings or MlmSettings()
    if runtime is None:
        place = "cpu" if isinstance(model, str | Path) else str(model.device)
        runtime = Runtime.detect(device=place, precision="float32")
    chosen = choose("mlm", data, tuple(tasks))
    if isinstance(model, str | Path):
        name, model = name or str(model), open_masked(model, runtime.device)
    reader = _Reader(model, settings)
    about = {
        "suite": "mlm", "model": name or type(model).__name__,
        "model_fingerprint": model_fingerprint(model, model.tokenizer),
    }  # fmt: skip
    for done, benchmark in enumerate(chosen.present):
        progress(done, benchmark.name)
        path = Path(data) / benchmark.test
        protocol = _protocol(benchmark, path, settings, reader.max_length)
        known = scores.find(about["model_fingerprint"], benchmark.name, protocol_key(protocol), "mlm") if scores else []
        if len(known) == 4:
            yield from known
            continue
        started_at = time.perf_counter()
        measured = [*_masked(model, reader, path, settings, runtime), *_pseudo(model, reader, path, settings, runtime)]
        seconds = (time.perf_counter() - started_at) / len(measured)
        for metric, values, details in measured:
            score = Score.of(
                values, **about, task=benchmark.name, metric=metric, protocol=protocol | where_computed(runtime),
                details=details, seconds=seconds,
            )  # fmt: skip
            if scores is not None and metric not in {of.metric for of in known}:
                scores.append(score)
            yield score


_Measured: TypeAlias = tuple[str, list[float], dict[str, Any]]  # metric, values, details


class _Reader:
    """Texts → ids, as one model has them."""

    def __init__(self, model: Masked, settings: MlmSettings) -> None:
        tokenizer = model.need_tokenizer()
        self.tokenizer = for_plain_text(tokenizer)
        self.special: SpecialIds = special_ids(tokenizer)
        self.masker = Masker(self.special, num_ids(tokenizer))
        self.positions = model.config.max_position_embeddings
        self.max_length = min(settings.max_length, self.positions)

    def ids_of(self, text: str) -> list[int]:
        """Without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def framed(self, ids: Sequence[int]) -> np.ndarray:
        """With them."""
        return np.array([self.special.cls, *ids, self.special.sep], dtype=np.int64)

    def is_scored(self, ids_T: np.ndarray) -> np.ndarray:
        """Which ids can be masked."""
        return ~np.isin(ids_T, list(self.special.never_masked_or_drawn))

    def keeps(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the ids give the text back."""
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip() == text.strip()


def _protocol(benchmark: Benchmark, path: Path, settings: MlmSettings, max_length: int) -> dict[str, Any]:
    asked = dataclasses.asdict(settings) | {"max_length": max_length}
    del asked["tokens_per_batch"]  # changes nothing beyond rounding
    return {
        "method": "masked once a seed at a rate; pseudo-perplexity: every token masked in turn, alone",
        **asked, "files": {benchmark.test: sha256_of(path)}, "note": benchmark.note,
    }  # fmt: skip


def _masked(model: Masked, reader: _Reader, path: Path, settings: MlmSettings, runtime: Runtime) -> Iterator[_Measured]:
    texts = texts_of(path, settings.characters)
    ids = [reader.ids_of(text) for text in texts]
    content = reader.max_length - 2
    pieces = [reader.framed(of[i : i + content]) for of in ids for i in range(0, len(of), content)]
    scored, characters = sum(int(reader.is_scored(piece).sum()) for piece in pieces), sum(map(len, texts))
    num_tokens = sum(map(len, ids))
    found = []
    for seed in settings.seeds:
        drawn = (reader.masker(piece, settings.rate, seed, place) for place, piece in enumerate(pieces))
        batches = _batches(drawn, settings.tokens_per_batch)
        found.append(evaluate_on(cast(MaskedLM, model), batches, runtime))
    details = {
        "tokens": num_tokens, "scored_tokens": scored, "characters": characters, "documents": len(texts),
        "unknown": sum(of.count(reader.special.unk) for of in ids) / max(1, num_tokens),
        "keeps_text": all(reader.keeps(text, of) for text, of in zip(texts, ids, strict=True)),
    }  # fmt: skip
    losses = [row["loss"] for row in found]
    more = {"accuracy": [row["accuracy"] for row in found], "by_position": _by_position(found)}
    yield "loss", losses, details | more
    yield "bits_per_character", [loss / math.log(2) * scored / characters for loss in losses], details


def _by_position(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all seeds together."""
    sums: dict[tuple[int, int], list[float]] = {}
    for entry in itertools.chain.from_iterable(row["by_position"] for row in found):
        total = sums.setdefault((entry["from"], entry["to"]), [0.0, 0.0])
        total[0] += entry["loss"] * entry["targets"]
        total[1] += entry["targets"]
    return [{"from": a, "to": b, "loss": loss / n, "targets": int(n)} for (a, b), (loss, n) in sorted(sums.items())]


def _pseudo(model: Masked, reader: _Reader, path: Path, settings: MlmSettings, runtime: Runtime) -> Iterator[_Measured]:
    texts = texts_of(path, settings.characters)
    passages = passages_of(texts, settings.passages, settings.passage_characters)
    framed = [reader.framed(reader.ids_of(passage)) for passage in passages]
    fitting = [place for place, ids_T in enumerate(framed) if len(ids_T) <= reader.positions]
    losses = [pseudo_losses(model, framed[place], reader, settings.tokens_per_batch, runtime) for place in fitting]
    num_tokens, nats = sum(map(len, losses)), sum(float(of.sum()) for of in losses)
    characters = sum(len(passages[place]) for place in fitting)
    if not num_tokens:
        raise DataError(f"{path}: no token of {len(passages)} passages can be masked; raise passage_characters")
    details = {
        "passages": len(fitting), "too_long": len(passages) - len(fitting), "tokens": num_tokens,
        "characters": characters,
    }  # fmt: skip
    yield "pseudo_perplexity", [math.exp(nats / num_tokens)], details
    yield "pseudo_bits_per_character", [nats / math.log(2) / characters], details


def pseudo_losses(
    model: Masked, ids_T: np.ndarray, reader: _Reader, tokens_per_batch: int, runtime: Runtime
) -> np.ndarray:
    """Nats of each token of a sequence that can be masked, while it alone is."""
    at = np.flatnonzero(reader.is_scored(ids_T))

    def copies() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for place in at:
            corrupted, labels = ids_T.copy(), np.full_like(ids_T, IGNORE)
            corrupted[place], labels[place] = reader.special.mask, ids_T[place]
            yield corrupted, labels

    found = []
    with evaluating(model), torch.no_grad():
        for batch in _batches(copies(), tokens_per_batch):
            with runtime.autocast():
                losses_M = model(batch.to(runtime.device)).losses_M
            assert losses_M is not None
            found.append(losses_M.float().cpu().numpy())
    return np.concatenate(found) if found else np.empty(0)


def _batches(pairs: Iterable[tuple[np.ndarray, np.ndarray]], tokens_per_batch: int) -> Iterator[PackedBatch]:
    """Ids and labels laid end to end, as many as fit."""
    part: list[tuple[np.ndarray, np.ndarray]] = []
    filled = 0
    for pair in pairs:
        if part and filled + len(pair[0]) > tokens_per_batch:
            yield _packed(part)
            part, filled = [], 0
        part.append(pair)
        filled += len(pair[0])
    if part:
        yield _packed(part)


def _packed(pairs: list[tuple[np.ndarray, np.ndarray]]) -> PackedBatch:
    return PackedBatch.from_sequences(
        [torch.from_numpy(ids_T) for ids_T, _ in pairs], [torch.from_numpy(labels_T) for _, labels_T in pairs]
    )


def texts_of(path: Path, characters: int) -> list[str]:
    """The first documents of a file, each cut, until there are so many characters. The same for every model.

    Raises:
        DataError: the file cannot be read, or holds no text.
    """
    texts: list[str] = []
    left = characters
    for document in iter_documents(path):
        text = document.text[: min(left, _DOCUMENT_CHARACTERS)].strip()
        if text:
            texts.append(text)
        left -= len(text)
        if left <= 0:
            break
    if not texts:
        raise DataError(f"{path} holds no text; give another file")
    return texts


def passages_of(texts: Sequence[str], count: int, characters: int) -> list[str]:
    """So many passages, of each text in turn, from places drawn at random; words that an end would cut are left out."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        text = texts[number % len(texts)]
        start = int(draw.integers(max(1, len(text) - characters + 1)))
        passage = text[start : start + characters]
        trimmed = passage if len(passage) == len(text) else _TRIM.sub("", passage)
        found.append(trimmed.strip() or passage)
    return found
