"""Checkpoint folder or hub name → the model it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modernbert.errors import UnsupportedError
from modernbert.model import hub
from modernbert.model.attention import Backend
from modernbert.tasks.base import EncoderModel
from modernbert.tasks.mlm import MaskedLM
from modernbert.text.tokenizer import load_tokenizer


def load(
    folder_or_hub_name: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: Backend = "blocked",
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
    kind = _kind_of(tensors, folder)
    model = hub.on_meta(lambda: kind(config, tokenizer, backend=backend))
    hub.load_tensors(model, tensors, origin=folder, ignore_unexpected=ignore_unexpected)
    return model.to(device).eval()


def newest_checkpoint(folder: Path) -> Path:
    """The folder itself if it is a checkpoint; of a run folder the checkpoint with the highest step."""
    if (folder / hub.CONFIG).exists():
        return folder
    steps = [path for path in folder.glob("*-*") if (path / hub.CONFIG).exists() and _step(path) is not None]
    return max(steps, key=lambda path: _step(path) or 0, default=folder)


def _step(checkpoint: Path) -> int | None:
    """`stable-00001000` → 1000."""
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else None


def _kind_of(tensors: Mapping[str, Tensor], folder: Path) -> type[EncoderModel]:
    """A decoder's bias, or a head without a classifier behind it, is an MLM head."""
    decoder, embedding = tensors.get("decoder.weight"), tensors.get("model.embeddings.tok_embeddings.weight")
    if decoder is not None and embedding is not None and not torch.equal(decoder, embedding):
        raise UnsupportedError(f"{folder}: decoder.weight differs from the embedding; only a tied decoder is computed")
    has_mlm_head = "head.dense.weight" in tensors and "classifier.weight" not in tensors
    return MaskedLM if has_mlm_head else EncoderModel
