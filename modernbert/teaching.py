"""A teacher embedder, of any make → its vectors in a student's dimensions, and a new student of its own.

    texts → the teacher → its principal directions, as many as the student has dimensions → what the student learns
    its tokens, alone   → likewise                                                       → where a new student's embeddings begin

Embeddings that begin there know the meaning of every word, also of those in none of the texts: with 12,000 texts a student of 256
dimensions reached an STS-B correlation of 0.75 with it, and one whose embeddings had been pretrained 0.49 (results/retrieval.md).
Price: the teacher's pass over the texts, once, and over its vocabulary: half a minute for 30,000 entries on one core.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from modernbert.disk import write_whole
from modernbert.errors import DataError
from modernbert.tasks import MaskedLM
from modernbert.text import num_ids, special_ids
from modernbert.train.recipe import ModelSettings

_TEXTS_AT_ONCE = 1_000
_TOKENS_AT_ONCE = 512
_TEXTS_OF_DIRECTIONS = 20_000

OnProgress = Callable[[float, float, str], None]
"""Told of the steps done, the steps in all, and a few words."""


class Teacher:
    """The teacher's vectors in the student's dimensions, computed once and kept.

    A wider teacher is turned to the principal directions of the training texts, which lose least of its cosines; a narrower one
    gets zeros behind.

    Args:
        name: a folder or hub name that sentence-transformers opens.
        device: where it computes.
        width: the student's dimensions.
        work: the folder of what is kept.
        is_asked_to_stop: looked at behind each thousand texts.
        progress: told of them.
    """

    def __init__(
        self, name: str, device: str, width: int, work: Path, is_asked_to_stop: Callable[[], bool], progress: OnProgress
    ) -> None:
        self._name, self._device, self._width = name, device, width
        self._work, self._is_asked_to_stop, self._progress = work, is_asked_to_stop, progress
        self._stock: Any = None  # opened where something is not kept
        self._directions: np.ndarray | None = None

    def has(self, texts: Sequence[str]) -> bool:
        """Compute the vectors of texts, as far as they are not kept; False where that was to stop.

        The texts that are trained on come first: the directions are theirs.
        """
        for begin in range(0, len(texts), _TEXTS_AT_ONCE):
            self._raw(texts[begin : begin + _TEXTS_AT_ONCE])
            self._progress(begin, len(texts), "texts of the teacher")
            if self._is_asked_to_stop():
                return False
        if self._directions is None:
            self._directions = self._principal(texts[:_TEXTS_OF_DIRECTIONS])
        return True

    def _principal(self, texts: Sequence[str]) -> np.ndarray:
        """(the teacher's width, the student's or less)."""
        raw = np.concatenate([self._raw(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)])
        if raw.shape[1] <= self._width:
            return np.eye(raw.shape[1], dtype=np.float32)
        # Not centred: a cosine is of the vectors as they are.
        _, _, directions = np.linalg.svd(raw.astype(np.float64), full_matrices=False)
        return directions[: self._width].T.astype(np.float32)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, the student's width)."""
        return self._turned(
            np.concatenate([self._raw(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)])
        )

    def _turned(self, raw: np.ndarray) -> np.ndarray:
        assert self._directions is not None
        turned = raw @ self._directions
        return np.pad(turned, ((0, 0), (0, self._width - turned.shape[1])))

    def teach_tokens(self, embeddings_VD: torch.Tensor) -> bool:
        """Let a student's embeddings begin as the teacher's vectors of its tokens alone; special ones stay as they are.

        About their mean, which tells no token from another, and as far apart as the embeddings were.

        Args:
            embeddings_VD: of a student that shares the teacher's tokenizer; changed in place.

        Returns:
            False where that was to stop.
        """
        self._stock = self._stock or open_teacher(self._name, self._device)
        tokenizer = tokenizer_of(self._stock, self._name)
        special = special_ids(tokenizer)
        tokens = sorted(set(tokenizer.get_vocab().values()) - special.never_masked_or_drawn)
        found = []
        for begin in range(0, len(tokens), _TOKENS_AT_ONCE):
            some = torch.tensor(tokens[begin : begin + _TOKENS_AT_ONCE], device=self._stock.device)
            ids = torch.stack([torch.full_like(some, special.cls), some, torch.full_like(some, special.sep)], dim=1)
            with torch.no_grad():
                out = self._stock({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"]
            found.append(torch.nn.functional.normalize(out.float(), dim=1).cpu().numpy())
            self._progress(begin, len(tokens), "tokens of the teacher")
            if self._is_asked_to_stop():
                return False
        taught = torch.from_numpy(self._turned(np.concatenate(found))).to(embeddings_VD)
        taught = taught - taught.mean(0)
        with torch.no_grad():
            embeddings_VD[tokens] = taught * (embeddings_VD[tokens].std() / taught.std())
        return True

    def _raw(self, texts: Sequence[str]) -> np.ndarray:
        """As the teacher gives them, of some texts, kept by what they are."""
        file = self._work / f"teacher-{hashlib.sha256(repr(list(texts)).encode()).hexdigest()[:16]}.npy"
        if file.exists():
            return np.load(file)
        self._stock = self._stock or open_teacher(self._name, self._device)
        found: np.ndarray = self._stock.encode(
            list(texts),
            normalize_embeddings=True,
            show_progress_bar=False,
            batch_size=16 if self._device == "cpu" else 64,  # padding costs more there than calls do
        )
        buffer = io.BytesIO()
        np.save(buffer, found)
        write_whole(file, buffer.getvalue())
        return found


def open_teacher(name: str, device: str) -> Any:
    """A SentenceTransformer.

    Raises:
        DataError: it cannot be opened.
    """
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name, device=device).eval()
    except Exception as error:
        raise DataError(
            f"teacher {name} cannot be opened ({str(error).splitlines()[0]:.120}); give a folder or hub name"
        ) from error


def tokenizer_of(stock: Any, name: str) -> Tokenizer:
    """Its tokenizer, which neither cuts nor pads.

    Raises:
        DataError: it has none that a new student could share.
    """
    backend = getattr(stock.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"teacher {name} has no fast tokenizer of transformers to share; give a checkpoint to teach in place of a preset"
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def new_student(preset: str, teacher: str, folder: Path, seed: int) -> Path:
    """Write a checkpoint that has learnt nothing yet: a preset's shape, the teacher's tokenizer.

    Args:
        preset: tiny, mini, small, base, large or huge.
        teacher: whose tokenizer it shares.
        folder: to write.
        seed: of its weights.

    Raises:
        DataError: the teacher cannot be opened, or its tokenizer not shared.
    """
    tokenizer = tokenizer_of(open_teacher(teacher, "cpu"), teacher)
    settings = ModelSettings.model_validate({"preset": preset})
    try:
        special = special_ids(tokenizer)
    except DataError as error:
        raise DataError(f"teacher {teacher}: {error}; or give a checkpoint to teach in place of a preset") from error
    config = settings.config(num_ids(tokenizer), special)
    return MaskedLM(config, tokenizer).draw(seed).save(folder)
