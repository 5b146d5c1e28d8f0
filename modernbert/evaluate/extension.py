"""A model and held-out long documents → what the text beyond the old length is worth to it, and what its extension cost.

    document   ………………………………………|———— stretch ————|          at least four old lengths lie before the stretch's end
    near                      [CLS]|———— stretch ————|[SEP]     old_length tokens
    whole     [CLS]………………………………|———— stretch ————|[SEP]     new_length tokens at most

15 % of the stretch's ordinary tokens are masked and nothing before it: both inputs hide the same tokens and take the loss
at the same places, so a token's two losses differ by the far past alone. `late` counts only the second half of each
stretch, where the near input, too, has half an old length of text on the left. Intervals are a bootstrap over documents,
since the stretches and tokens of one document are not independent. `inside` is the loss in pieces of the old length.

Price: a forward pass over new_length + old_length tokens for each stretch, some 0.15 × old_length targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modernbert.batch import IGNORE, PackedBatch
from modernbert.data.mask import Masker
from modernbert.data.pack import NUM_SPECIALS
from modernbert.errors import CheckpointError, ConfigError, DataError
from modernbert.runtime import Runtime, evaluating
from modernbert.tasks import EncoderModel, MaskedLM
from modernbert.text.shards import Shards
from modernbert.text.tokenizer import SpecialIds, load_tokenizer, special_ids, tokenizer_fingerprint

LEAST_OLD_LENGTHS = 4  # of text up to a stretch's end
_RESAMPLES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionPlan:
    """What is measured. The same plan on the same shards gives the same targets for every model."""

    old_length: int  # [CLS] and [SEP] included, as everywhere
    new_length: int
    num_documents: int = 200
    stretches: int = 4  # of one document, at most
    mask_rate: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.old_length <= NUM_SPECIALS + 1 or self.new_length < LEAST_OLD_LENGTHS * self.old_length:
            raise ConfigError(
                f"old_length={self.old_length} and new_length={self.new_length}: the new one must be at least "
                f"{LEAST_OLD_LENGTHS} times the old, and the old above {NUM_SPECIALS + 1}"
            )

    @property
    def stretch(self) -> int:
        """Tokens of a stretch."""
        return self.old_length - NUM_SPECIALS

    def ends(self, length: int) -> list[int]:
        """Where the stretches of a document of some tokens end: the last one with it, the others evenly before, apart."""
        count = (length - LEAST_OLD_LENGTHS * self.old_length) // self.stretch + 1
        if count <= 0:
            return []
        steps = np.unique(np.linspace(0, count - 1, min(count, self.stretches)).astype(int))
        return [length - int(step) * self.stretch for step in steps]


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of M targets, and which document each is in; `inside` has E targets of its own."""

    document_M: np.ndarray
    source_M: np.ndarray  # an index of `sources`
    late_M: np.ndarray  # bool: in the second half of its stretch
    near_M: np.ndarray
    whole_M: np.ndarray
    inside_document_E: np.ndarray
    inside_E: np.ndarray
    sources: tuple[str, ...]


Piece = tuple[np.ndarray, np.ndarray]
"""Corrupted ids and labels of one input, int64."""


def measure(
    model: EncoderModel,
    shards: Mapping[str, Shards],
    plan: ExtensionPlan,
    runtime: Runtime | None = None,
    *,
    batch_tokens: int = 16384,
) -> Losses:
    """The losses of one model; `summarize` makes figures of them.

    Args:
        model: with an MLM head.
        shards: held-out splits by source.
        plan: what is measured.
        runtime: precision; the model's device and float32 if not given.
        batch_tokens: of one forward pass, or one input where that is longer.

    Raises:
        ConfigError: a new length beyond the model's positions.
        CheckpointError: no MLM head.
        DataError: fewer than two documents so long, or another tokenizer.
    """
    runtime = runtime or Runtime.detect(device=str(model.device), precision="float32")
    _check(model, shards, plan)
    first = next(iter(shards.values()))
    special = special_ids(load_tokenizer(first.folder))
    masker = Masker(special, first.vocab_size)
    near, whole = [], []
    documents, sources, late = [], [], []
    for number, (source, document) in enumerate(_long_documents(shards, plan)):
        tokens = list(shards.values())[source].tokens(document)
        for order, end in enumerate(plan.ends(len(tokens))):
            views = _views(tokens, end, plan, special, masker, position=number * plan.stretches + order)
            near.append(views[0])
            whole.append(views[1])
            targets = np.flatnonzero(views[0][1] != IGNORE)
            documents.append(np.full(len(targets), number))
            sources.append(np.full(len(targets), source))
            late.append(targets > plan.stretch // 2)
    inside = list(_inside(shards, plan, special, masker))
    return Losses(
        document_M=np.concatenate(documents),
        source_M=np.concatenate(sources),
        late_M=np.concatenate(late),
        near_M=_losses(model, near, runtime, batch_tokens),
        whole_M=_losses(model, whole, runtime, batch_tokens),
        inside_document_E=np.repeat(np.arange(len(inside)), [int((labels != IGNORE).sum()) for _, labels in inside]),
        inside_E=_losses(model, inside, runtime, batch_tokens),
        sources=tuple(shards),
    )


def _check(model: EncoderModel, shards: Mapping[str, Shards], plan: ExtensionPlan) -> None:
    if not isinstance(model, MaskedLM):
        raise CheckpointError(
            "the model has no MLM head, so it has no loss at masked tokens; load a pretrained checkpoint"
        )
    if plan.new_length > model.config.max_position_embeddings:
        raise ConfigError(
            f"new_length={plan.new_length} exceeds the model's {model.config.max_position_embeddings} positions; lower it"
        )
    if model.tokenizer is not None:
        own = tokenizer_fingerprint(model.tokenizer)
        for name, source in shards.items():
            if source.manifest["tokenizer"] != own:
                raise DataError(
                    f"{name} ({source.folder}) was built with another tokenizer than the model's; build it anew"
                )


def _long_documents(shards: Mapping[str, Shards], plan: ExtensionPlan) -> list[tuple[int, int]]:
    """(source, document) of those that are long enough, drawn from all sources together."""
    least = LEAST_OLD_LENGTHS * plan.old_length
    found = [(s, int(d)) for s, source in enumerate(shards.values()) for d in np.flatnonzero(source.lengths >= least)]
    if len(found) < 2:
        raise DataError(
            f"{len(found)} held-out documents of {', '.join(shards)} have {least:,} tokens or more "
            f"({LEAST_OLD_LENGTHS} × old_length), and an interval needs two; hold out more, or give longer text"
        )
    drawn = np.random.default_rng(plan.seed).permutation(len(found))[: plan.num_documents]
    return [found[index] for index in sorted(drawn)]


def _views(
    tokens: np.ndarray, end: int, plan: ExtensionPlan, special: SpecialIds, masker: Masker, position: int
) -> tuple[Piece, Piece]:
    """The near and the whole input of a stretch, masked alike."""
    start = end - plan.stretch
    ids, labels = masker(tokens[start:end].astype(np.int64), plan.mask_rate, plan.seed, position)
    past = tokens[max(0, end - plan.new_length + NUM_SPECIALS) : start].astype(np.int64)
    return _framed(ids, labels, special), _framed(
        np.concatenate([past, ids]), np.concatenate([np.full(len(past), IGNORE), labels]), special
    )


def _framed(ids: np.ndarray, labels: np.ndarray, special: SpecialIds) -> Piece:
    return np.concatenate([[special.cls], ids, [special.sep]]), np.concatenate([[IGNORE], labels, [IGNORE]])


def _inside(shards: Mapping[str, Shards], plan: ExtensionPlan, special: SpecialIds, masker: Masker) -> Iterator[Piece]:
    """The beginnings, of the old length, of held-out documents of any length."""
    places = [(source, document) for source in shards.values() for document in range(len(source))]
    drawn = np.random.default_rng(plan.seed).permutation(len(places))[: plan.num_documents * plan.stretches]
    for number, index in enumerate(drawn):
        source, document = places[index]
        ids = source.tokens(document, 0, plan.stretch).astype(np.int64)
        yield _framed(*masker(ids, plan.mask_rate, plan.seed + 1, number), special)


def _losses(model: EncoderModel, pieces: Iterable[Piece], runtime: Runtime, batch_tokens: int) -> np.ndarray:
    """Of all targets, in order."""
    found: list[torch.Tensor] = []
    with evaluating(model), torch.inference_mode():
        for batch in _batches(pieces, batch_tokens):
            with runtime.autocast():
                output = model(batch.to(runtime.device))
            assert output.losses_M is not None
            found.append(output.losses_M.double().cpu())
    return torch.cat(found).numpy()


def _batches(pieces: Iterable[Piece], batch_tokens: int) -> Iterator[PackedBatch]:
    waiting: list[Piece] = []
    for piece in pieces:
        if waiting and sum(len(ids) for ids, _ in waiting) + len(piece[0]) > batch_tokens:
            yield _packed(waiting)
            waiting = []
        waiting.append(piece)
    yield _packed(waiting)


def _packed(pieces: list[Piece]) -> PackedBatch:
    return PackedBatch.from_sequences(*([torch.from_numpy(row) for row in rows] for rows in zip(*pieces, strict=True)))


def summarize(losses: Losses, plan: ExtensionPlan) -> dict[str, Any]:
    """Losses → figures: means over targets in nats, intervals over documents."""
    by_source = {
        name: _figures(losses, losses.source_M == index, plan.seed)
        for index, name in enumerate(losses.sources)
        if (losses.source_M == index).any()
    }
    inside = bootstrap(losses.inside_E, losses.inside_document_E, plan.seed)
    return {
        "old_length": plan.old_length, "new_length": plan.new_length, "mask_rate": plan.mask_rate, "seed": plan.seed,
        **_figures(losses, np.ones(len(losses.near_M), bool), plan.seed),
        "late": _figures(losses, losses.late_M, plan.seed), "by_source": by_source, "inside": inside,
    }  # fmt: skip


def _figures(losses: Losses, chosen_M: np.ndarray, seed: int) -> dict[str, Any]:
    near, whole = losses.near_M[chosen_M], losses.whole_M[chosen_M]
    return {
        "near": float(near.mean()),
        "whole": float(whole.mean()),
        "difference": bootstrap(whole - near, losses.document_M[chosen_M], seed),
    }


def inside_change(before: Losses, after: Losses, seed: int = 0) -> dict[str, float]:
    """How much the loss inside the old length rose, in nats, paired target by target."""
    assert np.array_equal(before.inside_document_E, after.inside_document_E), "two plans, or other shards"
    return bootstrap(after.inside_E - before.inside_E, before.inside_document_E, seed)


def bootstrap(values_M: np.ndarray, document_M: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The mean of some values and its 95 % interval, whole documents drawn with replacement.

    Returns:
        `mean`, `low`, `high` (equal to the mean where there is one document), `documents`, `targets`.
    """
    _, index_M = np.unique(document_M, return_inverse=True)
    sum_B, count_B = np.bincount(index_M, weights=values_M), np.bincount(index_M)
    num_documents = len(sum_B)
    drawn = np.random.default_rng(seed).multinomial(
        num_documents, np.full(num_documents, 1 / num_documents), size=_RESAMPLES
    )
    low, high = np.quantile((drawn @ sum_B) / (drawn @ count_B), [0.025, 0.975])
    mean = float(sum_B.sum() / count_B.sum())
    return {
        "mean": mean, "low": float(low), "high": float(high), "documents": num_documents, "targets": len(values_M)
    }  # fmt: skip
