"""A model of transformers that pads → an encoder that takes packed batches, as ours does.

    PackedBatch → groups of like length → padded ids, mask, segments → the model → real positions (T, D)

So BERT, RoBERTa, DeBERTa-v2, ELECTRA and others stand wherever an `Encoder` does: under every head, in fine-tuning, in
encoding. The model is given, and nothing of transformers is imported here (`evaluate.foreign` opens one by its name).
Price: padding. Without gradients texts are grouped by length, at most 16,384 padded positions at once; with them a batch is
padded to its longest text, as a `Trainer` does.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modernbert.batch import PackedBatch
from modernbert.errors import UnsupportedError
from modernbert.model.config import ModernBertConfig
from modernbert.model.linear import LinearPath

_PADDED_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True)
class ForeignConfig(ModernBertConfig):
    """What heads, encoding and training ask of a shape. RoPE, windows and GLU say nothing of such a model."""

    foreign: str = ""  # its `model_type`

    def to_dict(self, architecture: str) -> dict[str, Any]:
        """As ours, under a `model_type` that nobody takes for a ModernBERT."""
        values = super().to_dict(architecture)
        name = f"{self.foreign}-with-modernbert-head"
        return values | {"model_type": name, "architectures": [f"{name}:{architecture}"]}


@dataclass(frozen=True, slots=True)
class _Embeddings:
    tok_embeddings: nn.Embedding


class ForeignEncoder(nn.Module):
    """An encoder of another library behind the call of ours.

    `backend`, `linear` and `reproducible` are accepted and change nothing: the model computes as it always does.
    `checkpoint_layers` turns the model's own gradient checkpointing on.

    Args:
        model: a bare encoder of transformers: takes `input_ids` and `attention_mask`, gives `last_hidden_state`.
        sep_token_id: of its tokenizer, for models that tell the second text of a pair by its segment.
        max_length: tokens a text may have where the model's config does not say.

    Raises:
        UnsupportedError: no such model, or nothing says how long its texts may be.
    """

    def __init__(self, model: nn.Module, *, sep_token_id: int | None, max_length: int | None = None) -> None:
        super().__init__()
        self.stock = model
        values: Any = model.config
        known = inspect.signature(model.forward).parameters
        if values.is_encoder_decoder or not {"input_ids", "attention_mask"} <= known.keys():
            raise UnsupportedError(f"a {type(model).__name__} is no encoder of texts; give one such as BERT or RoBERTa")
        self.has_segments = "token_type_ids" in known and getattr(values, "type_vocab_size", 0) > 1
        self.sep_token_id = sep_token_id
        self.pad_token_id = int(values.pad_token_id or 0)
        self.config = _stand_in(model, max_length)
        self.backend: str = "auto"
        self.linear: LinearPath | Literal["auto"] = "plain"
        self.reproducible = False
        self._checkpoint_layers = False

    @property
    def embeddings(self) -> _Embeddings:
        """Where the token embedding is found."""
        found: Any = self.stock.get_input_embeddings()  # type: ignore[operator]
        return _Embeddings(found)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks, first to last.

        Raises:
            UnsupportedError: the model has no list of them, as ALBERT, whose layers are one.
        """
        for module in self.stock.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.config.num_hidden_layers:
                return module
        raise UnsupportedError(f"a {type(self.stock).__name__} has no list of layers that could be treated one by one")

    @property
    def checkpoint_layers(self) -> bool:
        """Whether layers are computed a second time for the backward pass."""
        return self._checkpoint_layers

    @checkpoint_layers.setter
    def checkpoint_layers(self, wanted: bool) -> None:
        stock: Any = self.stock
        if wanted:
            stock.gradient_checkpointing_enable({"use_reentrant": False})
        elif self._checkpoint_layers:
            stock.gradient_checkpointing_disable()
        self._checkpoint_layers = wanted

    def path_for(self, hidden: Tensor) -> LinearPath:  # noqa: ARG002
        """What a head's linear layers take: PyTorch's own product."""
        return "plain"

    def forward(self, batch: PackedBatch) -> Tensor:
        """Packed token ids → final hidden states (T, D)."""
        rows = list(batch.input_ids_T.split(batch.lengths()))
        if torch.is_grad_enabled():
            return torch.cat(self._hidden(rows))
        found: list[Tensor] = [batch.input_ids_T] * len(rows)
        for places in groups_of_like_length(batch.lengths(), _PADDED_AT_ONCE):
            for place, hidden_SD in zip(places, self._hidden([rows[place] for place in places]), strict=True):
                found[place] = hidden_SD
        return torch.cat(found)

    def _hidden(self, rows: list[Tensor]) -> list[Tensor]:
        """Hidden states of each row, padding left out."""
        hidden_BLD = self.stock(**self.padded(rows)).last_hidden_state
        return [hidden_LD[: len(row)] for hidden_LD, row in zip(hidden_BLD, rows, strict=True)]

    def padded(self, rows: list[Tensor]) -> dict[str, Tensor]:
        """What the model takes: `input_ids`, `attention_mask` and, where it has them, `token_type_ids`, each (B, L).

        Segments are 0 up to and with a row's first separator and 1 behind it, as the tokenizers of such models have them.
        """
        device = rows[0].device
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        ids_BL = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        real_BL = torch.arange(ids_BL.shape[1], device=device) < lengths_B[:, None]
        inputs = {"input_ids": ids_BL, "attention_mask": real_BL.long()}
        if self.has_segments and self.sep_token_id is not None:
            is_separator_BL = (ids_BL == self.sep_token_id) & real_BL
            behind_BL = is_separator_BL.cumsum(1) - is_separator_BL.long() > 0
            inputs["token_type_ids"] = (behind_BL & real_BL).long()
        return inputs


def groups_of_like_length(lengths: list[int], padded_at_once: int) -> Iterator[list[int]]:
    """Places of texts, longest first, in groups that hold so many positions when padded, or one text that is longer."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        stop = start + max(1, padded_at_once // max(1, lengths[order[start]]))
        yield order[start:stop]
        start = stop


def _stand_in(model: nn.Module, max_length: int | None) -> ForeignConfig:
    values: Any = model.config
    heads, width = values.num_attention_heads, values.hidden_size
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    return ForeignConfig(
        foreign=values.model_type,
        vocab_size=embedding.num_embeddings,
        hidden_size=width,
        intermediate_size=getattr(values, "intermediate_size", 4 * width),
        num_hidden_layers=values.num_hidden_layers,
        num_attention_heads=heads if width % (2 * heads) == 0 else 1,
        max_position_embeddings=_positions(model, max_length),
        norm_eps=next(n for n in itertools.chain(_norm_eps(values), (1e-5,)) if n),
        norm_bias=True,
        classifier_bias=True,
        initializer_range=getattr(values, "initializer_range", 0.02),
        pad_token_id=values.pad_token_id,
        bos_token_id=getattr(values, "bos_token_id", None),
        eos_token_id=getattr(values, "eos_token_id", None),
        cls_token_id=getattr(values, "cls_token_id", None),
        sep_token_id=getattr(values, "sep_token_id", None),
    )


def _norm_eps(values: Any) -> Iterator[float | None]:
    return (getattr(values, name, None) for name in ("layer_norm_eps", "norm_eps"))


def _positions(model: nn.Module, max_length: int | None) -> int:
    """Tokens that a text may have. RoBERTa and its kin count positions from behind the padding's own, so have two fewer."""
    positions = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    if positions > 0:
        table = next((m for n, m in model.named_modules() if n.endswith("position_embeddings")), None)
        first = getattr(table, "padding_idx", None)
        return positions if first is None else positions - first - 1
    if max_length is not None and 0 < max_length < 10**6:
        return max_length
    raise UnsupportedError(
        f"neither the config of this {type(model).__name__} nor its tokenizer says how many tokens a text may have; set "
        "model_max_length in its tokenizer_config.json"
    )
