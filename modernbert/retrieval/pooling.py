"""Hidden states of packed documents → one vector a document; a sentence-transformers folder → how its model pools.

The mean over a document's tokens, special ones included as in sentence-transformers, or the first token's state; the
first dimensions of it, where fewer are wanted; length one. Sums are float32 whatever the model computes in.
Price: one pass over the hidden states, 2 ms for 16,384 tokens of width 768 on one core.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import PackedBatch
from modernbert.errors import CheckpointError, UnsupportedError
from modernbert.model import hub
from modernbert.tasks.classify import pooled
from modernbert.tasks.load import newest_checkpoint

Pooling = Literal["mean", "cls"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

_COMPUTED_MODULES = {"Transformer", "Pooling", "Normalize"}


def pool(hidden_TD: Tensor, batch: PackedBatch, pooling: Pooling, *, dimensions: int, normalize: bool) -> Tensor:
    """(T, D) → (B, dimensions), float32. Cut before it is normalised, as Matryoshka training (arXiv 2205.13147) cuts."""
    vectors_BD = pooled(hidden_TD.float(), batch, pooling)[:, :dimensions]
    return F.normalize(vectors_BD, dim=-1) if normalize else vectors_BD


def pooling_of(folder_or_hub_name: str | Path) -> Pooling:
    """What a sentence-transformers folder says of its pooling; the mean for a checkpoint that says nothing.

    Raises:
        CheckpointError: no such folder, or its files cannot be read.
        UnsupportedError: its vectors need something that is not computed here: another pooling, a dense layer, a
            prompt before every text.
    """
    folder = newest_checkpoint(hub.find_folder(folder_or_hub_name))
    remedy = "to leave that out, say mean or cls yourself"
    place = "1_Pooling"
    for module in _read_json(folder / "modules.json", []):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in _COMPUTED_MODULES:
            raise UnsupportedError(f"{folder}/modules.json asks for a {kind} layer, which is not computed; {remedy}")
        if kind == "Pooling":
            place = str(module.get("path"))
    if _read_json(folder / "sentence_bert_config.json", {}).get("do_lower_case"):
        raise UnsupportedError(
            f"{folder}: its texts are lower-cased first; do that to yours, and say mean or cls yourself"
        )
    prompts = _read_json(folder / "config_sentence_transformers.json", {})
    if name := prompts.get("default_prompt_name"):
        raise UnsupportedError(
            f"{folder}: its texts begin with the prompt {name!r}; put it before yours, and say mean or cls yourself"
        )
    modes = _modes(_read_json(folder / place / "config.json", {"pooling_mode": "mean"}))
    for known in ("mean", "cls"):
        if modes == [known]:
            return known
    raise UnsupportedError(f"{folder}/{place} asks for pooling {' + '.join(modes) or 'none'}; {remedy}")


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
