"""Texts → one vector each, by the settings of a folder that sentence-transformers opens.

    [CLS] prompt text [SEP] → encoder → pool (mean, or first token) → first dimensions → length one

The mean is over all of a text's tokens, special ones and its prompt's included, as in sentence-transformers; dimensions are cut
before the vector is normalised, as Matryoshka training cuts (arXiv 2205.13147). Sums are float32 whatever the model computes in.
Price: one pass over the hidden states, 2 ms for 16,384 tokens of width 768 on one core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from modernbert.batch import PackedBatch
from modernbert.errors import CheckpointError, ConfigError, UnsupportedError
from modernbert.model.config import ModernBertConfig
from modernbert.tasks.base import EncoderModel
from modernbert.tasks.classify import pooled

Pooling = Literal["mean", "cls"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
Likeness = Literal["cosine", "dot"]

MODULES = "modules.json"
_ABOUT, _TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
_COMPUTED = {"Transformer", "Pooling", "Normalize"}
_KINDS = ("query", "document")  # of prompts that every model is asked for; without one, nothing goes before a text


def pool(hidden_TD: Tensor, batch: PackedBatch, pooling: Pooling, *, dimensions: int, normalize: bool) -> Tensor:
    """(T, D) → (B, dimensions), float32."""
    vectors_BD = pooled(hidden_TD.float(), batch, pooling)[:, :dimensions]
    return F.normalize(vectors_BD, dim=-1) if normalize else vectors_BD


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings:
    """How a model's vectors are made."""

    pooling: Pooling = "mean"
    normalize: bool = True  # whether the folder has them of length one; likeness by cosine does not mind
    likeness: Likeness = "cosine"
    max_length: int | None = None  # tokens, special ones included; the model's positions if None
    prompts: Mapping[str, str] = field(default_factory=dict)  # by name, such as query and document
    default_prompt: str | None = None  # the name of the one before texts of which nothing is said

    def prefix(self, prompt: str | None) -> str:
        """What goes before a text.

        Args:
            prompt: a prompt's name; None for the default one.

        Raises:
            ConfigError: no prompt of that name.
        """
        name = self.default_prompt if prompt is None else prompt
        if name is None or (name in _KINDS and name not in self.prompts):
            return ""
        if name not in self.prompts:
            known = ", ".join(sorted({*self.prompts, *_KINDS}))
            raise ConfigError(f"prompt={name!r} is none of this model's; choose among {known}")
        return self.prompts[name]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What a sentence-transformers folder says; of any other checkpoint the defaults.

        Raises:
            CheckpointError: its files cannot be read.
            UnsupportedError: its vectors need something that is not computed here: another pooling, a dense layer, texts in
                small letters, a mean that leaves the prompt out.
        """
        remedy = "to leave that out, say mean or cls yourself"
        place, normalize = "1_Pooling", False
        modules = _read_json(folder / MODULES, [])
        for module in modules:
            kind = str(module.get("type")).rpartition(".")[2]
            if kind not in _COMPUTED:
                raise UnsupportedError(f"{folder}/{MODULES} asks for a {kind} layer, which is not computed; {remedy}")
            if kind == "Pooling":
                place = str(module.get("path"))
            normalize = normalize or kind == "Normalize"
        inputs, about = _read_json(folder / _TRANSFORMER, {}), _read_json(folder / _ABOUT, {})
        if inputs.get("do_lower_case"):
            raise UnsupportedError(
                f"{folder}: its texts are lower-cased first; do that to yours, and say mean or cls yourself"
            )
        pooling = _read_json(folder / place / "config.json", {"pooling_mode": "mean"})
        prompts = {name: str(text) for name, text in (about.get("prompts") or {}).items() if text}
        if prompts and pooling.get("include_prompt") is False:
            raise UnsupportedError(f"{folder}/{place} leaves prompts out of the mean, which is not computed; {remedy}")
        modes = _modes(pooling)
        if len(modes) != 1 or modes[0] not in POOLINGS:
            raise UnsupportedError(f"{folder}/{place} asks for pooling {' + '.join(modes) or 'none'}; {remedy}")
        likeness = about.get("similarity_fn_name") or "cosine"
        if likeness not in get_args(Likeness):
            raise UnsupportedError(
                f"{folder}/{_ABOUT} asks for likeness by {likeness}, which is not computed; {remedy}"
            )
        return cls(
            pooling=modes[0],  # type: ignore[arg-type]
            normalize=normalize or not modules, likeness=likeness,  # type: ignore[arg-type]
            prompts=prompts, max_length=_length(folder, inputs),
            default_prompt=about.get("default_prompt_name"),
        )  # fmt: skip

    def write(self, folder: Path, *, width: int) -> None:
        """Write what makes a sentence-transformers folder of a checkpoint.

        Args:
            folder: that holds the checkpoint.
            width: of its hidden states.
        """
        kinds = ["Transformer", "Pooling", *(["Normalize"] if self.normalize else [])]
        places = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
        modules = [
            {"idx": index, "name": str(index), "path": place, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, place) in enumerate(zip(kinds, places, strict=True))
        ]
        about = {
            "prompts": {name: self.prompts.get(name, "") for name in {**dict.fromkeys(_KINDS), **self.prompts}},
            "default_prompt_name": self.default_prompt, "similarity_fn_name": self.likeness,
        }  # fmt: skip
        pooling = {
            "word_embedding_dimension": width, "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean", "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False, "include_prompt": True,
        }  # fmt: skip
        files: dict[str, Any] = {
            MODULES: modules, _ABOUT: about, "1_Pooling/config.json": pooling,
            _TRANSFORMER: {"max_seq_length": self.max_length, "do_lower_case": False},
        }  # fmt: skip
        for place in places[1:]:
            (folder / place).mkdir(exist_ok=True)
        for name, values in files.items():
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class Embedder(EncoderModel):
    """An encoder whose vectors of whole texts are what it is for; saved as a folder that sentence-transformers opens.

    Args:
        config: the encoder's shape.
        tokenizer: of its texts.
        settings: how its vectors are made.
        how: as of `EncoderModel`.
    """

    def __init__(
        self,
        config: ModernBertConfig,
        tokenizer: Tokenizer | None = None,
        settings: EmbedSettings = EmbedSettings(),
        **how: Any,
    ) -> None:
        super().__init__(config, tokenizer, **how)
        self.settings = settings

    @classmethod
    def of(cls, model: EncoderModel, settings: EmbedSettings) -> Self:
        """Around the encoder of another model, which it shares."""
        encoder = cls(model.encoder.config, model.tokenizer, settings, encoder=model.encoder)
        return encoder.train(model.training)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Vectors of the documents (B, D)."""
        settings, width = self.settings, self.config.hidden_size
        hidden_TD = self.model(batch)
        return pool(hidden_TD, batch, settings.pooling, dimensions=width, normalize=settings.normalize)

    def write(self, folder: Path) -> None:
        """Write checkpoint and settings into an existing folder."""
        super().write(folder)
        self.settings.write(folder, width=self.config.hidden_size)


def _length(folder: Path, inputs: dict[str, Any]) -> int | None:
    """Where texts are cut: in a file of sentence-transformers up to 5, with the tokenizer from 6 on."""
    told = _read_json(folder / "tokenizer_config.json", {}) if (folder / MODULES).exists() else {}
    length = inputs.get("max_seq_length") or told.get("model_max_length")
    return int(length) if length and length < 10**9 else None


def _modes(config: dict[str, Any]) -> list[str]:
    """`pooling_mode` as sentence-transformers 6 writes it, or a flag for each mode as earlier versions did."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return [mode] if isinstance(mode, str) else list(mode)
    flags = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    return [name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for name in flags]


def _read_json(path: Path, if_missing: Any) -> Any:
    """A JSON file of the kind (list or object) that `if_missing` is of."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return if_missing
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it from a good copy") from error
    items = values if isinstance(values, list) else []
    if type(values) is not type(if_missing) or not all(isinstance(item, dict) for item in items):
        raise CheckpointError(f"{path} is not what sentence-transformers writes; restore it from a good copy")
    return values
