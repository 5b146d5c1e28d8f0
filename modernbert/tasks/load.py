"""Checkpoint folder or hub name → the model it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from modernbert.errors import CheckpointError, UnsupportedError
from modernbert.model import hub
from modernbert.model.attention import Backend
from modernbert.tasks.base import EncoderModel
from modernbert.tasks.mlm import MaskedLM
from modernbert.text.tokenizer import load_tokenizer, num_ids


def load(
    folder_or_hub_name: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: Backend | Literal["auto"] = "auto",
    ignore_unexpected: bool = False,
) -> EncoderModel:
    """Open a checkpoint: the encoder, with its MLM head where there is one, and its tokenizer where there is one.

    Args:
        folder_or_hub_name: a checkpoint folder, a run folder (its newest checkpoint), or a hub name.
        device: where to put the weights, which stay float32.
        backend: of attention.
        ignore_unexpected: leave out tensors that this architecture does not have instead of refusing.

    Returns:
        A `MaskedLM`, or an `EncoderModel` for a checkpoint without an MLM head; in evaluation mode.

    Raises:
        CheckpointError: missing, incomplete, or not of this architecture.
    """
    folder = newest_checkpoint(hub.find_folder(folder_or_hub_name))
    config = hub.read_config(folder)
    tensors = hub.read_tensors(folder)
    if not any(name.startswith("model.") for name in tensors):  # a bare ModernBertModel names its tensors without
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None
    if tokenizer is not None and num_ids(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {num_ids(tokenizer)} ids and the model {config.vocab_size}; they do not belong together"
        )
    kind = _kind_of(tensors, folder)
    model = hub.on_meta(lambda: kind(config, tokenizer, backend=backend))
    hub.load_tensors(model, tensors, origin=folder, ignore_unexpected=ignore_unexpected)
    return model.to(device).eval()


def newest_checkpoint(folder: Path) -> Path:
    """The folder itself if it is a checkpoint; of a run folder the checkpoint with the highest step."""
    if (folder / hub.CONFIG).exists():
        return folder
    return next(reversed(hub.checkpoints_in(folder)), folder)


def _kind_of(tensors: Mapping[str, Tensor], folder: Path) -> type[EncoderModel]:
    """A decoder's bias, or a head without a classifier behind it, is an MLM head."""
    decoder, embedding = tensors.get("decoder.weight"), tensors.get("model.embeddings.tok_embeddings.weight")
    if decoder is not None and embedding is not None and not torch.equal(decoder, embedding):
        raise UnsupportedError(f"{folder}: decoder.weight differs from the embedding; only a tied decoder is computed")
    has_mlm_head = "head.dense.weight" in tensors and "classifier.weight" not in tensors
    return MaskedLM if has_mlm_head else EncoderModel
