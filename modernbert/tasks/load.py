"""Checkpoint folder or hub name → the model it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modernbert.errors import CheckpointError, UnsupportedError
from modernbert.model import hub
from modernbert.model.attention import Backend
from modernbert.tasks.answer import MAX_LENGTH, STRIDE, Answerer
from modernbert.tasks.base import EncoderModel
from modernbert.tasks.classify import Classifier
from modernbert.tasks.embed import MODULES, Embedder, EmbedSettings
from modernbert.tasks.head import HeadModel, HeadSettings
from modernbert.tasks.mlm import MaskedLM
from modernbert.tasks.tag import Tagger
from modernbert.text.tokenizer import load_tokenizer, num_ids


def load(
    folder_or_hub_name: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: Backend | Literal["auto"] = "auto",
    ignore_unexpected: bool = False,
) -> EncoderModel:
    """Open a checkpoint: the encoder, with its head and its tokenizer where there are any.

    Args:
        folder_or_hub_name: a checkpoint folder, a run folder (its newest checkpoint), or a hub name.
        device: where to put the weights, which stay float32.
        backend: of attention.
        ignore_unexpected: leave out tensors that this architecture does not have instead of refusing.

    Returns:
        A `MaskedLM`, `Classifier`, `Tagger` or `Answerer`; an `Embedder` for a folder of sentence-transformers; or an
        `EncoderModel` for another checkpoint without a head of these; in evaluation mode. Folders fine-tuned here and by
        transformers open alike.

    Raises:
        CheckpointError: missing, incomplete, or not of this architecture.
    """
    folder = newest_checkpoint(hub.find_folder(folder_or_hub_name))
    config = hub.read_config(folder)
    tensors = hub.read_model_tensors(folder)
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None
    if tokenizer is not None and num_ids(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {num_ids(tokenizer)} ids and the model {config.vocab_size}; they do not belong together"
        )
    kind, values = _kind_of(tensors, folder), hub.read_config_values(folder)
    model: EncoderModel
    if issubclass(kind, HeadModel):
        settings = _settings_of(kind, values, tensors, config.max_position_embeddings)
        how: dict[str, Any] = {"head_dropout": float(values.get("classifier_dropout") or 0.0), "backend": backend}
        model = hub.on_meta(lambda: kind(config, tokenizer, settings, **how))
    elif kind is EncoderModel and (embedding := embedding_of(folder)) is not None:
        model = hub.on_meta(lambda: Embedder(config, tokenizer, embedding, backend=backend))
    else:
        model = hub.on_meta(lambda: kind(config, tokenizer, backend=backend))
    hub.load_tensors(model, tensors, origin=folder, ignore_unexpected=ignore_unexpected)
    return model.to(device).eval()


def embedding_of(folder: Path) -> EmbedSettings | None:
    """How a sentence-transformers folder makes its vectors; None of another folder, and where that is not computed here.

    Such an encoder is opened all the same, and `encode` refuses it by its name.
    """
    if not (folder / MODULES).exists():
        return None
    try:
        return EmbedSettings.read(folder)
    except UnsupportedError:
        return None


def newest_checkpoint(folder: Path) -> Path:
    """The folder itself if it is a checkpoint; of a run folder the checkpoint with the highest step."""
    if (folder / hub.CONFIG).exists():
        return folder
    return next(reversed(hub.checkpoints_in(folder)), folder)


HEADS: Mapping[str, type[HeadModel]] = {head.architecture: head for head in (Classifier, Tagger, Answerer)}
"""Each head by transformers' name for it."""


def _kind_of(tensors: Mapping[str, Tensor], folder: Path) -> type[Any]:
    """A classifier is what `architectures` says; a decoder's bias, or a head without a classifier behind it, is an MLM head."""
    if "classifier.weight" in tensors:
        names = hub.read_config_values(folder).get("architectures") or [""]
        return HEADS.get(str(names[0]), EncoderModel)
    return MaskedLM if "head.dense.weight" in tensors else EncoderModel


def _settings_of(
    kind: type[HeadModel], values: Mapping[str, Any], tensors: Mapping[str, Tensor], positions: int
) -> HeadSettings:
    """What `config.json` says of a head; folders of transformers do not say all of it."""
    num_outputs = len(tensors["classifier.weight"])
    if kind is Classifier:
        return HeadSettings.from_values(
            values, kind=None, problem="single", num_outputs=num_outputs, max_length=positions
        )
    tags = kind is Tagger
    max_length = min(positions, LONGEST_WINDOW[kind.architecture])
    return HeadSettings.from_values(
        values, kind="tag" if tags else "answer", problem="tokens" if tags else "spans",
        num_outputs=num_outputs, max_length=max_length, stride=min(STRIDE, max_length // 4),
    )  # fmt: skip


LONGEST_WINDOW = {Tagger.architecture: 8192, Answerer.architecture: MAX_LENGTH}
"""Tokens of a window where nothing else is said."""
