"""What every task is: an encoder, perhaps a head, perhaps a tokenizer; saved as one Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from modernbert.errors import CheckpointError, DataError
from modernbert.model import hub
from modernbert.model.attention import Backend
from modernbert.model.config import ModernBertConfig
from modernbert.model.encoder import Encoder
from modernbert.model.init import initialize
from modernbert.text.tokenizer import save_tokenizer


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """Sums, not means: micro-batches and ranks are averaged over targets, wherever these happen to fall."""

    loss_sum: Tensor
    num_targets: int
    metric_sums: dict[str, Tensor] = field(default_factory=dict)
    losses_M: Tensor | None = None  # of each target, in order, without gradient; None where a loss is not by target


class Prediction(NamedTuple):
    """One answer for one mask."""

    text: str  # without the white space that the text around the mask already has
    probability: float
    filled: str  # the whole text with this answer in place, other masks holding their best one


class EncoderModel(nn.Module):
    """An encoder with its tokenizer; the base of every task. Its parameter names are the checkpoint's."""

    architecture: ClassVar[str] = "ModernBertModel"

    def __init__(
        self,
        config: ModernBertConfig,
        tokenizer: Tokenizer | None = None,
        *,
        out_dropout: float = 0.0,
        backend: Backend | Literal["auto"] = "auto",
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Another encoder (`model.foreign`) computes the same from the same batch, and says so with the same attributes.
        self.model: Encoder = encoder or Encoder(config, out_dropout=out_dropout, backend=backend)  # type: ignore[assignment]
        self.tokenizer = tokenizer

    @property
    def encoder(self) -> Encoder:
        """The encoder: `model.encoder(batch)` gives hidden states (T, D)."""
        return self.model

    @property
    def config(self) -> ModernBertConfig:
        """The shape."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embeddings.tok_embeddings.weight.device

    @property
    def num_parameters(self) -> int:
        """Weights of encoder and head; the tied decoder counts once."""
        return sum(p.numel() for p in self.parameters())

    def draw(self, seed: int) -> Self:
        """Give every weight its initial value."""
        initialize(self, self.config, torch.Generator().manual_seed(seed))
        return self

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer, or a refusal where the checkpoint came without one."""
        if self.tokenizer is None:
            raise DataError("this model has no tokenizer; load a folder that holds a tokenizer.json")
        return self.tokenizer

    def fill_mask(
        self,
        text: str,  # noqa: ARG002
        top_k: int = 5,  # noqa: ARG002
        *,
        joint: bool = False,  # noqa: ARG002
    ) -> list[list[Prediction]]:
        """Answer each mask in a text; see `MaskedLM.fill_mask`.

        Raises:
            CheckpointError: this model has no MLM head.
        """
        raise CheckpointError("this model has no MLM head, so it cannot fill masks; load a pretrained checkpoint")

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `modernbert.load` and `transformers` open; whole or not at all."""
        folder = Path(folder)
        with hub.whole_folder(folder) as unfinished:
            self.write(unfinished)
        return folder

    def write(self, folder: Path) -> None:
        """Write config, weights and tokenizer into an existing folder."""
        self.writer(self.state_dict())(folder)

    def writer(self, tensors: dict[str, Tensor]) -> Callable[[Path], None]:
        """What `write` does with other tensors in the weights' place, such as copies that do not change any more."""
        config, tokenizer = self.config, self.tokenizer

        def write(folder: Path) -> None:
            hub.write_weights(folder, tensors, config, architecture=self.architecture)
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder, model_max_length=config.max_position_embeddings)

        return write
