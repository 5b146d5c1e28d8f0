"""Any iterable of texts → vectors in the order of the texts, as an array or a file that can be gone on with.

The work is `modernbert.retrieval.windows`, the file `modernbert.retrieval.vectors`. Price: that of two windows, and
where the vectors stay in memory 4 bytes a dimension, 3 kB a text for a base model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.errors import DataError
from modernbert.model import hub
from modernbert.retrieval.vectors import Counts, VectorFile, check_out
from modernbert.retrieval.windows import (
    TEXTS_PER_WINDOW,
    TOKENS_PER_BATCH,
    How,
    OnProgress,
    checked,
    encode_windows,
)
from modernbert.tasks import EncoderModel, load
from modernbert.tasks.embed import Embedder, EmbedSettings, Pooling
from modernbert.tasks.load import newest_checkpoint
from modernbert.text.tokenizer import tokenizer_fingerprint


def encode(
    model: EncoderModel | str | Path,
    texts: Iterable[str],
    *,
    pooling: Pooling | None = None,
    normalize: bool = True,
    truncate_dim: int | None = None,
    max_length: int | None = None,
    prompt: str | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    texts_per_window: int = TEXTS_PER_WINDOW,
    out: str | Path | None = None,
    progress: OnProgress | None = None,
) -> np.ndarray | Path:
    """Turn texts into vectors.

    Longer texts are cut to `max_length`, their last special token kept, and a warning says how many. A text for which
    the tokenizer gives no token at all gets a vector of zeros, likely to nothing, and is counted too. Computes where
    the model is, in the precision of its weights or of an `autocast` around the call.

    Args:
        model: a loaded model, or a folder or hub name to load.
        texts: any iterable, read once and never held as a whole.
        pooling: mean of the tokens, or the state of the first. None: what a sentence-transformers folder says, and of
            another checkpoint the mean.
        normalize: to length one, so that a dot product is the cosine.
        truncate_dim: keep the first so many dimensions (for models trained for it), before normalising.
        max_length: in tokens, special ones included; what the folder says, or the model's positions, if None.
        prompt: the name of the one of its prompts that goes before each text, such as query or document; the folder's default
            if None.
        tokens_per_batch: tokens computed at once; a longer text alone is a batch.
        texts_per_window: texts that are sorted by length together, and that a kill costs at most.
        out: a file to write, .npy or .parquet (columns index, text, vector). The same call goes on with a file that
            was cut off. None: an array.
        progress: called at the start and after each batch with the counts so far, which for a file that is gone on with
            include what earlier calls did.

    Returns:
        (texts, dimensions) float32 in the order of the texts, or `out`.

    Raises:
        ConfigError: a setting out of range, a file that is there already or was begun with another model or settings.
        DataError: texts that cannot be encoded, a file that cannot be written, a model without a tokenizer.
        CheckpointError: the model cannot be loaded.
    """
    if isinstance(texts, str | bytes):
        raise DataError("texts is a single text; give a list of texts, such as [text]")
    out = None if out is None else check_out(out)
    if not isinstance(model, EncoderModel):
        model = open_for_vectors(model, pooling=pooling)
    how = How.of(
        model, pooling=pooling, normalize=normalize, truncate_dim=truncate_dim, max_length=max_length, prompt=prompt,
        tokens_per_batch=tokens_per_batch, texts_per_window=texts_per_window,
    )  # fmt: skip
    progress = progress or (lambda _counts: None)
    reading = checked(texts)
    if out is None:
        progress(counts := Counts())
        windows = encode_windows(model, reading, how, counts, progress)
        return _joined([vectors_WD for _, vectors_WD in windows], how.dimensions)
    with VectorFile.unfinished(out, how.dimensions, fingerprint_of(model, how)) as file:
        file.skip_done(reading)
        progress(file.counts)
        for window, vectors_WD in encode_windows(model, reading, how, file.counts, progress):
            file.append(window, vectors_WD)
        return file.finish()


def open_for_vectors(
    name: str | Path, *, pooling: Pooling | None = None, device: str | torch.device = "cpu"
) -> Embedder:
    """Load a model for its vectors.

    Args:
        name: a folder, a run folder or a hub name.
        pooling: where it is given, what else the folder asks for is left out.
        device: where to put the weights.

    Raises:
        CheckpointError: the model cannot be loaded.
        UnsupportedError: its vectors need something that is not computed here.
    """
    folder = newest_checkpoint(hub.find_folder(name))
    settings = EmbedSettings.read(folder) if pooling is None else EmbedSettings(pooling=pooling)
    return Embedder.of(load(folder, device=device), settings)


def _joined(windows: list[np.ndarray], dimensions: int) -> np.ndarray:
    """One array, each window let go when it is copied."""
    vectors_ND = np.empty((sum(map(len, windows)), dimensions), dtype=np.float32)
    end = len(vectors_ND)
    while windows:
        window_WD = windows.pop()
        vectors_ND[end - len(window_WD) : end] = window_WD
        end -= len(window_WD)
    return vectors_ND


def fingerprint_of(model: EncoderModel, how: How) -> dict[str, Any]:
    """All that decides what a vector is. Batches and windows do not, beyond rounding; the weights are hashed whole."""
    device = model.device.type
    weights = hashlib.blake2b(digest_size=8)
    weights.update(json.dumps(dataclasses.asdict(model.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.encoder.state_dict().items()):
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return {
        "model": weights.hexdigest(),
        "tokenizer": tokenizer_fingerprint(model.need_tokenizer())[:16],
        "pooling": how.pooling,
        **({"prefix": how.prefix} if how.prefix else {}),
        "normalize": how.normalize,
        "dimensions": how.dimensions,
        "max_length": how.max_length,
        "precision": str(autocast or next(model.parameters()).dtype).removeprefix("torch."),
    }
