"""A competitor's name → its model with random weights, and a forward pass made ready: speed does not depend on weights.

Each is at its best: PyTorch's SDPA where the class can use it (transformers' DeBERTa cannot, so eager is its best), no
pooling layer, no mask where nothing is padded. Shapes are the public configs'. What is timed is the encoder's forward
pass from token ids on the device to hidden states; tensors are laid out before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modernbert.batch import PackedBatch
from modernbert.dropin import accelerate
from modernbert.errors import ConfigError
from modernbert.evaluate.loads import Rows
from modernbert.model import hub
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.runtime import Runtime
from modernbert.tasks import EncoderModel, load
from modernbert.tasks.load import newest_checkpoint

OURS = "modernbert"
PEERS = ("transformers", "bert", "deberta")
CHOICES = (*PEERS, "accelerated")
VOCAB_SIZE = 30522  # BERT's, the smallest: ids below it are every competitor's

# DeBERTa's scores, two relative terms and their gathers are all length² per head: at 8,192 one text takes some 20 GB.
LONGEST = {"deberta": 2048}
_QUICK = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 96,
}
_SPECIAL_IDS = dict.fromkeys([f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep")], 0)

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_BERT_BASE = {**_BASE, "vocab_size": VOCAB_SIZE}
_DEBERTA_V3_BASE = {
    **_BASE,
    "vocab_size": 128100,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_relative_positions": -1,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}

M = TypeVar("M", bound=nn.Module)
Thunk = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Competitor:
    """A model and how it takes texts."""

    name: str
    module: nn.Module
    packs: bool  # or pads

    def prepare(self, rows: Rows, device: torch.device) -> Thunk:
        """A forward pass over one batch of texts: packed hidden states (T, D), or padded ones."""
        if self.packs:
            batch = PackedBatch.from_sequences(rows).to(device)
            return lambda: self.module(batch)
        inputs = {name: tensor.to(device) for name, tensor in padded(rows).items()}
        return lambda: self.module(**inputs).last_hidden_state


def padded(rows: Rows) -> dict[str, Tensor]:
    """`input_ids` (B, L), and `attention_mask` where some row is shorter than the longest."""
    lengths = torch.tensor([len(row) for row in rows])
    input_ids_BL = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask_BL = torch.arange(input_ids_BL.shape[1]) < lengths[:, None]
    return (
        {"input_ids": input_ids_BL} if mask_BL.all() else {"input_ids": input_ids_BL, "attention_mask": mask_BL.long()}
    )


def shape_of(model: str, *, quick: bool = False) -> ModernBertConfig:
    """The shape that a preset's name or a checkpoint stands for; `quick` cuts it to two narrow layers.

    Raises:
        ConfigError: neither.
        CheckpointError: no such checkpoint.
    """
    if model in PRESETS:
        return PRESETS[model].replace(**_QUICK, **_SPECIAL_IDS) if quick else PRESETS[model]
    if quick:
        raise ConfigError(f"--quick has narrow models of its own; {model!r} is none; say one of {', '.join(PRESETS)}")
    if "/" not in model and not Path(model).is_dir():
        raise ConfigError(f"model {model!r} is unknown; give a folder, a hub name, or one of {', '.join(PRESETS)}")
    return hub.read_config(newest_checkpoint(hub.find_folder(model)))


def compete(name: str, model: str, runtime: Runtime, *, longest: int, quick: bool = False) -> Competitor:
    """Build a competitor in evaluation mode.

    Args:
        name: `OURS` or one of `CHOICES`.
        model: preset, folder or hub name: what `OURS` is, and the shape of `transformers` and `accelerated`.
        runtime: device, and the dtype that weights are in.
        longest: tokens of the longest text to come.
        quick: two narrow layers.

    Raises:
        ConfigError: an unknown name, a text longer than the model's positions, or a library that is missing.
    """
    if name == OURS:
        module = _ours(model, quick)
    else:
        config = shape_of(model, quick=quick)
        with torch.device(runtime.device):
            module = peer("transformers" if name == "accelerated" else name, config, longest=longest, quick=quick)
    module = cast(module.to(runtime.device), runtime.dtype).eval()
    if name == "accelerated":
        module = accelerate(module)
    return Competitor(name, module, packs=name == OURS)


def cast(module: M, dtype: torch.dtype) -> M:
    """Parameters in this dtype, in place; buffers, such as rotary frequencies, stay float32 as in a loaded checkpoint."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def peer(name: str, config: ModernBertConfig, *, longest: int = 512, quick: bool = False) -> nn.Module:
    """A model of transformers, without a head.

    Args:
        name: one of `PEERS`.
        config: the shape of `transformers`.
        longest: a BERT has 512 positions, or 8,192 if this is above 512.
        quick: two narrow layers.

    Raises:
        ConfigError: no such peer, or transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"{name} needs transformers; pip install 'modernbert[hf]', or say --against ''") from error
    changes = _QUICK if quick else {}
    if name == "transformers":
        return _build(transformers.ModernBertConfig.from_dict(config.to_dict("ModernBertModel")), "sdpa")
    if name == "deberta":
        return _build(transformers.DebertaV2Config(**_DEBERTA_V3_BASE | changes), "eager")
    if name == "bert":
        shape = {**_BERT_BASE, **changes, "max_position_embeddings": positions_of_bert(longest)}
        return _build(transformers.BertConfig(**shape), "sdpa", add_pooling_layer=False)
    raise ConfigError(f"competitor {name!r} is unknown; choose among {', '.join(CHOICES)}")


def positions_of_bert(longest: int) -> int:
    """512 as published, or 8,192 as a BERT for long texts would have."""
    return 512 if longest <= 512 else max(longest, 8192)


def _build(config: Any, attention: str, **arguments: Any) -> nn.Module:
    from transformers import AutoModel

    return AutoModel.from_config(config, attn_implementation=attention, **arguments)


def _ours(model: str, quick: bool) -> nn.Module:
    if model in PRESETS:
        return EncoderModel(shape_of(model, quick=quick)).draw(0).encoder
    return load(model).encoder
