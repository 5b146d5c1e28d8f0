"""A Composer checkpoint of the reference trainer ↔ tensors, config and tokenizer in the Hugging Face layout.

    {"state": {"model": {"model.bert.encoder.layers.0.attn.Wqkv.weight": …}, "timestamp": …, "integrations": …}, "rng": …}

Steps: the pickle is read without running its code (`modernbert.model.pickled`); names lose the wrappers' prefixes and get
the published ones; the shape is read from the tensors, and what tensors cannot say (windows, RoPE bases) from the model
settings that the checkpoint itself holds, or from a file or option beside it. What nobody says is assumed and remarked upon.

Source of names and settings: AnswerDotAI/ModernBERT `src/bert_layers` and its branch `pretraining_documentation`; Ettin's
and mmBERT's trainer writes the same. Price: tensors are mapped, not read, until they are written again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from modernbert.disk import sync
from modernbert.errors import CheckpointError, ConfigError, UnsupportedError
from modernbert.model.config import FULL, SLIDING, UNEXTENDED_THETA, ModernBertConfig
from modernbert.model.pickled import read_pickle
from modernbert.text.tokenizer import num_ids, special_ids

_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARTS = ("bert.", "head.", "decoder.", "classifier.")
_HEAD_SIZE = 64  # of every published shape
_SHORT_POSITIONS, _LONG_POSITIONS = 1024, 8192  # trained before context extension, and after

# What this encoder computes, in the reference trainer's words. Settings that are not here say nothing of the function.
_COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "attention_layer": ("rope",),
    "bert_layer": ("prenorm",),
    "embedding_layer": ("sans_pos",),
    "mlp_layer": ("glu",),
    "normalization": ("layernorm", "low_precision_layernorm"),
    "embed_norm": (True,),
    "final_norm": (True,),
    "skip_first_prenorm": (True,),
    "hidden_act": ("gelu",),
    "head_pred_act": ("gelu",),
    "head_pred_norm": (True,),
    "tie_word_embeddings": (True,),
    "causal_mask": (False,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_dim": (None,),
    "local_attn_rotary_emb_dim": (None,),
    "rotary_emb_scale_base": (None,),
}


@dataclass(frozen=True, slots=True)
class ComposerCheckpoint:
    """What of a checkpoint is of use."""

    path: Path
    tensors: dict[str, Tensor]  # by their published names
    settings: Mapping[str, Any]  # the model's, as the trainer had them; empty where the file holds none
    tokenizer_json: str | None
    tokens: int | None  # seen in training, by the trainer's own count
    left_out: tuple[str, ...]  # tensors that belong to no part of the model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that Composer stored beside the weights.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        if self.tokenizer_json is None:
            raise CheckpointError(
                f"{self.path} holds no tokenizer; give the one it was trained with, --tokenizer=FOLDER_OR_NAME"
            )
        try:
            return Tokenizer.from_str(self.tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(
                f"{self.path}: its tokenizer cannot be read ({error}); give one with --tokenizer=FOLDER_OR_NAME"
            ) from error


def read_composer(path: str | Path) -> ComposerCheckpoint:
    """Read a `.pt` file, running none of what it holds.

    Raises:
        CheckpointError: it is missing, damaged or no such checkpoint.
    """
    path = Path(path)
    whole = read_pickle(path)
    state = whole.get("state", whole)
    state = state if isinstance(state, Mapping) else {}
    tensors, left_out = _published_names(state.get("model", state.get("state_dict", state)))
    if "model.embeddings.tok_embeddings.weight" not in tensors:
        raise CheckpointError(
            f"{path} holds no model.bert.embeddings.tok_embeddings.weight; give a checkpoint of the ModernBERT trainer "
            "(FlexBERT), saved whole and not in shards"
        )
    stored = _at(state, "integrations", "huggingface")
    settings = _at(stored, "model", "config", "content")
    settings = settings if isinstance(settings, Mapping) else {}
    tokenizer = _at(stored, "tokenizer", "tokenizer", "content")
    return ComposerCheckpoint(
        path,
        tensors,
        settings,
        json.dumps(tokenizer, default=str) if tokenizer else None,
        _tokens_seen(state.get("timestamp")),
        left_out,
    )


def config_of(
    checkpoint: ComposerCheckpoint,
    tokenizer: Tokenizer,
    given: Mapping[str, Any] | None = None,
    **changes: float | None,
) -> tuple[ModernBertConfig, list[str]]:
    """The shape of a checkpoint.

    Args:
        checkpoint: as read.
        tokenizer: the special ids are its own.
        given: the trainer's configuration (`model.model_config`, `max_seq_len`), which wins over what the checkpoint holds.
        changes: `global_rope_theta`, `local_rope_theta`, `max_position_embeddings`; they win over both, None says nothing.

    Returns:
        The shape, and what had to be assumed.

    Raises:
        CheckpointError: the settings do not fit the tensors or are no numbers, or the tokenizer does not fit.
        UnsupportedError: an architecture that is not computed here.
    """
    settings = {**checkpoint.settings, **model_settings(given or {})}
    _check_computed(settings, checkpoint.path)
    shape = _shape(checkpoint, settings)
    if num_ids(tokenizer) > shape["vocab_size"]:
        raise CheckpointError(
            f"{checkpoint.path}: the tokenizer has {num_ids(tokenizer)} ids and the model {shape['vocab_size']} rows; give the "
            "tokenizer that it was trained with"
        )
    rest, remarks = _positions(checkpoint.path, settings, shape["num_hidden_layers"], changes)
    special = special_ids(tokenizer)
    shape |= {"pad_token_id": special.pad, "cls_token_id": special.cls, "bos_token_id": special.cls}
    shape |= {"sep_token_id": special.sep, "eos_token_id": special.sep}
    return ModernBertConfig(**shape, **rest), remarks


def model_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings of a training configuration, or such settings themselves, with `max_seq_len` where it is said."""
    own = _at(given, "model", "model_config") or _at(given, "model_config") or given
    if not isinstance(own, Mapping):
        raise ConfigError(
            f"the settings' model_config is {own!r}, and no table of settings; give the trainer's own file"
        )
    settings = {name: value for name, value in own.items() if not isinstance(value, Mapping) or name == "norm_kwargs"}
    if "max_seq_len" in given:
        settings["max_seq_len"] = given["max_seq_len"]
    return settings


def write_composer(
    tensors: Mapping[str, Tensor], config: ModernBertConfig, tokenizer: Tokenizer | None, path: Path
) -> None:
    """Write what the reference trainer loads with `load_path` and `load_weights_only`.

    Args:
        tensors: of a masked language model, by their published names.
        config: its shape.
        tokenizer: kept beside it, as Composer does.
        path: the file to write.

    Raises:
        CheckpointError: it cannot be written.
    """
    names = {**tensors, "decoder.weight": tensors["model.embeddings.tok_embeddings.weight"]}
    renamed = OrderedDict(
        (f"model.{re.sub('^model.', 'bert.', name).replace('bert.layers.', 'bert.encoder.layers.')}", tensor)
        for name, tensor in names.items()
    )
    stored: dict[str, Any] = {"model": {"config": {"file_extension": ".json", "content": _trainer_settings(config)}}}
    if tokenizer is not None:
        stored["tokenizer"] = {"tokenizer": {"file_extension": ".json", "content": json.loads(tokenizer.to_str())}}
    unfinished = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            torch.save({"state": {"model": renamed, "integrations": {"huggingface": stored}}, "rng": []}, file)
        sync(unfinished)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written ({error}); free some space or choose another place") from error


def _published_names(stored: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    tensors, left_out = {}, []
    for name, value in stored.items() if isinstance(stored, Mapping) else ():
        bare = _WRAPPERS.sub("", str(name)).removeprefix("model.")
        if not bare.startswith(_PARTS):
            left_out.append(bare)
        elif not isinstance(value, Tensor):
            raise CheckpointError(f"{name} is no whole tensor; save the model unsharded (fsdp state_dict_type: full)")
        else:
            tensors[re.sub(r"^bert\.(encoder\.)?", "model.", bare)] = value
    decoder = tensors.pop("decoder.weight", None)
    embedding = tensors.get("model.embeddings.tok_embeddings.weight")
    if decoder is not None and embedding is not None and not torch.equal(decoder, embedding):
        raise UnsupportedError("decoder.weight differs from the embedding; only a tied decoder is computed")
    return tensors, tuple(left_out)


def _at(values: Any, *keys: str) -> Any:
    """What lies at a path of keys, an empty object where nothing does."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return {} if values is None else values


def _tokens_seen(timestamp: Any) -> int | None:
    """The count that lies in `{"Timestamp": {"token": …}}`, whatever is around it."""
    if not isinstance(timestamp, Mapping):
        return None
    if isinstance(timestamp.get("token"), int):
        return timestamp["token"]
    return next((found for value in timestamp.values() if (found := _tokens_seen(value)) is not None), None)


def _check_computed(settings: Mapping[str, Any], path: Path) -> None:
    for name, computed in _COMPUTED.items():
        if name in settings and settings[name] not in computed:
            wanted = " or ".join(map(repr, computed))
            raise UnsupportedError(f"{path}: {name}={settings[name]!r}; only {wanted} is computed")


def _shape(checkpoint: ComposerCheckpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensors say; only the number of heads is not in them."""
    tensors = checkpoint.tensors
    layers = {int(found[1]) for name in tensors if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    narrow = tensors.get("model.layers.0.mlp.Wo.weight")
    if narrow is None:
        raise UnsupportedError(
            f"{checkpoint.path} has no model.bert.encoder.layers.0.mlp.Wo.weight; it is no ModernBERT"
        )
    embedding = tensors["model.embeddings.tok_embeddings.weight"]
    if embedding.dim() != 2 or narrow.dim() != 2:
        raise CheckpointError(
            f"{checkpoint.path}: the embedding or mlp.Wo is no matrix; save the model unsharded (fsdp state_dict_type: full)"
        )
    vocab_size, hidden_size = embedding.shape
    said = {"num_hidden_layers": max(layers) + 1, "hidden_size": hidden_size, "intermediate_size": narrow.shape[1]}
    for name, value in said.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {value} by its tensors and {settings[name]} by the settings; give the "
                "configuration that it was trained with"
            )
    return {
        **said,
        "vocab_size": vocab_size,
        "num_attention_heads": _whole(checkpoint.path, "num_attention_heads", settings.get("num_attention_heads"))
        or max(1, hidden_size // _HEAD_SIZE),
        "norm_eps": _number(checkpoint.path, "norm_kwargs.eps", _at(settings, "norm_kwargs", "eps") or 1e-5),
        "norm_bias": "model.final_norm.bias" in tensors,
        "attention_bias": "model.layers.0.attn.Wqkv.bias" in tensors,
        "mlp_bias": "model.layers.0.mlp.Wi.bias" in tensors,
        "classifier_bias": "head.dense.bias" in tensors,
        "decoder_bias": "decoder.bias" in tensors,
    }


def _number(path: Path, name: str, value: Any) -> float:
    """A setting's number, which YAML may have left as text (`1e-5`).

    Raises:
        CheckpointError: it is none.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CheckpointError(
            f"{path}: {name}={value!r} is no number; give the trainer's settings, resolved, as --config"
        )
    return number


def _whole(path: Path, name: str, value: Any) -> int | None:
    number = None if value is None else _number(path, name, value)
    if number is not None and number != int(number):
        raise CheckpointError(f"{path}: {name}={value!r} is no whole number; give the trainer's settings as --config")
    return None if number is None else int(number)


def _positions(
    path: Path, settings: Mapping[str, Any], num_layers: int, changes: Mapping[str, float | None]
) -> tuple[dict[str, Any], list[str]]:
    """Windows, RoPE bases and positions, which no tensor tells. Defaults of settings are the trainer's."""
    usual, remarks = ModernBertConfig(), []
    if settings:
        window, every = (
            _whole(path, name, settings.get(name, -1)) for name in ("sliding_window", "global_attn_every_n_layers")
        )
        full = settings.get("rotary_emb_base", UNEXTENDED_THETA)
        local = settings.get("local_attn_rotary_emb_base", -1)
    else:
        window, every = usual.local_attention, usual.global_attn_every_n_layers
        full, local = usual.global_rope_theta, usual.local_rope_theta
        remarks.append(
            f"the checkpoint holds no settings: heads of {_HEAD_SIZE}, a window of {window} in all but every {every}rd layer, "
            f"and RoPE bases {full:,.0f} and {local:,.0f} are assumed; --config or --global-rope-theta say otherwise"
        )
    given = {name: value for name, value in changes.items() if value is not None}
    full = _number(path, "rotary_emb_base", given.get("global_rope_theta", full))
    local = _number(
        path,
        "local_attn_rotary_emb_base",
        given.get("local_rope_theta", full if local in (None, -1) else local),
    )
    positions = _whole(path, "max_seq_len", given.get("max_position_embeddings", settings.get("max_seq_len")))
    if positions is None:
        positions = _LONG_POSITIONS if full > UNEXTENDED_THETA else _SHORT_POSITIONS
        remarks.append(
            f"{positions:,} positions are assumed, from a RoPE base of {full:,.0f}; --max-positions says otherwise"
        )
    has_window = window is not None and window > 0
    types = [
        SLIDING if has_window and (every is None or every < 1 or layer % every) else FULL for layer in range(num_layers)
    ]
    return {
        "local_attention": window if has_window else usual.local_attention,
        "layer_types": tuple(types),
        "global_rope_theta": full,
        "local_rope_theta": local,
        "max_position_embeddings": positions,
    }, remarks


def _trainer_settings(config: ModernBertConfig) -> dict[str, Any]:
    if config.global_attn_every_n_layers is None:
        raise UnsupportedError(
            "the reference trainer knows global_attn_every_n_layers only, and this pattern is no such one"
        )
    return {
        **{name: computed[0] for name, computed in _COMPUTED.items()},
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "norm_kwargs": {"eps": config.norm_eps, "bias": config.norm_bias},
        "attn_qkv_bias": config.attention_bias,
        "attn_out_bias": config.attention_bias,
        "mlp_in_bias": config.mlp_bias,
        "mlp_out_bias": config.mlp_bias,
        "head_pred_bias": config.classifier_bias,
        "decoder_bias": config.decoder_bias,
        "sliding_window": config.local_attention,
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        "rotary_emb_base": config.global_rope_theta,
        "local_attn_rotary_emb_base": config.local_rope_theta,
        "max_seq_len": config.max_position_embeddings,
    }
