"""A smaller trained model's tensors → those of a larger one, which so begins about where the smaller one stopped.

Every axis of the larger model is covered by the smaller one's entries, centred and wrapped around, heads as wholes; q, k and
v, and the two halves of the GLU, each by themselves. An entry of the larger model's input is then a copy, so each column
is divided by the number of its copies (Net2Net, arXiv 1511.05641): every product, and with it the model's output, is what it
was, where plain tiling, as in the reference, multiplies it. Copies would also get equal gradients and stay copies for
ever; noise that adds up to nothing over the copies of an input tells them apart and changes no output.
Layers are taken in their order and all of them, global ones from global ones and local ones from local ones.

Price: the smaller model in memory once, the larger one twice. In width nothing is lost at the first step; repeated layers
cost some of it, and learnt no worse than layers that begin by adding nothing (docs/checkpoints.md has the figures).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from modernbert.errors import CheckpointError
from modernbert.model import hub
from modernbert.model.config import ModernBertConfig
from modernbert.text.tokenizer import load_tokenizer, num_ids, tokenizer_fingerprint

_NOISE = 0.5  # of a matrix's own standard deviation


def tiled_tensors(
    folder_or_hub_name: str | Path, config: ModernBertConfig, *, tokenizer: Tokenizer | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Open a smaller masked language model and enlarge it.

    Args:
        folder_or_hub_name: the smaller model: a checkpoint, a run folder (its newest) or a hub name.
        config: the larger shape, with the RoPE bases that its training begins with.
        tokenizer: of the larger model; it must be the smaller one's.
        seed: of the noise between copies.

    Returns:
        Every tensor of a `MaskedLM` of the larger shape, float32.

    Raises:
        CheckpointError: the smaller model is none, has no MLM head, is larger somewhere, or has another tokenizer, head
            size, window, pattern of layers or RoPE base.
    """
    folder = hub.find_folder(folder_or_hub_name)
    if not (folder / hub.CONFIG).exists() and (found := hub.checkpoints_in(folder)):
        folder = found[-1]
    small, tensors = hub.read_config(folder), hub.read_tensors(folder)
    refuse_unlike(small, config, str(folder))
    _refuse_other_tokenizer(folder, config, tokenizer)
    if "head.dense.weight" not in tensors or "classifier.weight" in tensors:
        raise CheckpointError(f"{folder} is no masked language model; tile from a pretrained one")
    return tile({name: tensor.float() for name, tensor in tensors.items()}, small, config, seed=seed)


def tile(
    tensors: Mapping[str, Tensor], small: ModernBertConfig, large: ModernBertConfig, *, seed: int = 0
) -> dict[str, Tensor]:
    """Enlarge the tensors of a masked language model (of shape `small`), by their published names, to the shape `large`."""
    width = _Axis.covering(small.hidden_size, large.hidden_size)
    heads = _Axis.covering(small.num_attention_heads, large.num_attention_heads)
    inner = _Axis.covering(small.intermediate_size, large.intermediate_size)
    rows = {"attn.Wqkv": (3, heads.of(small.head_size)), "mlp.Wi": (2, inner)}
    columns = {"attn.Wo": heads.of(small.head_size), "mlp.Wo": inner}
    draw = torch.Generator().manual_seed(seed)

    def enlarged(name: str) -> Tensor:
        owner = name.rpartition(".")[0]
        tensor, part = tensors[name], ".".join(owner.split(".")[-2:])
        if part == "embeddings.tok_embeddings":
            return _with_rows(tensor[:, width.index], large.vocab_size, 0.0)
        if part == "decoder":
            return _with_rows(tensor, large.vocab_size, tensor.min().item())
        parts, axis = rows.get(part, (1, width))
        taken = torch.cat([block[axis.index] for block in tensor.chunk(parts)])
        if part == "head.norm":
            return taken / width.copies  # the decoder's columns are the embedding's, so its inputs are divided
        return columns.get(part, width).as_inputs(taken, draw) if taken.dim() == 2 else taken

    whole = {name for name in tensors if not name.startswith("model.layers.") and name != "decoder.weight"}
    result = {name: enlarged(name) for name in sorted(whole)}
    for layer, source in enumerate(layers_from(small, large)):
        for name in sorted(n for n in tensors if n.startswith(f"model.layers.{source}.")):
            result[name.replace(f".{source}.", f".{layer}.", 1)] = enlarged(name)
        if layer and not source:  # the first layer has no norm of its own: the embedding's is it
            for name in [name for name in result if name.startswith("model.embeddings.norm.")]:
                result[name.replace("embeddings.norm", f"layers.{layer}.attn_norm")] = result[name].clone()
    return {name: tensor for name, tensor in result.items() if not name.startswith("model.layers.0.attn_norm.")}


def layers_from(small: ModernBertConfig, large: ModernBertConfig) -> list[int]:
    """For each layer of the larger model the one of the smaller that it starts as: of its kind, and in its order.

    The k-th global layer of K is the ⌊(k + ½) · S / K⌋-th of the smaller model's S, and local ones likewise: that never runs
    past the end, and leaves none of the smaller model's out. Where the smaller has none of a kind, all layers count.
    """
    assert small.layer_types is not None and large.layer_types is not None
    sources = [0] * large.num_hidden_layers
    for kind in set(large.layer_types):
        wanted = [layer for layer, other in enumerate(large.layer_types) if other == kind]
        there = [layer for layer, other in enumerate(small.layer_types) if other == kind] or [
            *range(small.num_hidden_layers)
        ]
        for rank, layer in enumerate(wanted):
            sources[layer] = there[(2 * rank + 1) * len(there) // (2 * len(wanted))]
    return sources


def refuse_unlike(small: ModernBertConfig, large: ModernBertConfig, origin: str) -> None:
    """Raise CheckpointError where one model cannot be tiled into the other."""
    if small.head_size != large.head_size:
        raise CheckpointError(
            f"{origin} has heads of {small.head_size} and the larger model of {large.head_size}, which turn otherwise; "
            f"choose num_attention_heads={large.hidden_size // small.head_size}"
        )
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size"):
        if getattr(small, name) > getattr(large, name):
            raise CheckpointError(
                f"{origin}: {name}={getattr(small, name)} exceeds {getattr(large, name)} of the model to tile into; "
                "tile a smaller model into a larger one"
            )
    for name in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias", "decoder_bias"):
        if getattr(small, name) != getattr(large, name):
            raise CheckpointError(
                f"{origin}: {name}={getattr(small, name)}, and not so in the larger model; make them agree"
            )
    for name in ("global_attn_every_n_layers", "local_attention"):
        if getattr(small, name) != getattr(large, name):
            raise CheckpointError(
                f"{origin}: {name}={getattr(small, name)}, and {getattr(large, name)} in the larger model, which so sees "
                f"other tokens; set model.{name}={getattr(small, name)}"
            )
    for name in ("global_rope_theta", "local_rope_theta"):
        if getattr(small, name) != getattr(large, name):
            raise CheckpointError(
                f"{origin}: {name}={getattr(small, name):,.0f}, and the larger model begins with "
                f"{getattr(large, name):,.0f}, which turns otherwise; set phases.0.{name}={getattr(small, name):.1f}, or take "
                "a smaller model from before its context was extended"
            )


def _refuse_other_tokenizer(folder: Path, config: ModernBertConfig, tokenizer: Tokenizer | None) -> None:
    rows = hub.read_config(folder).vocab_size
    if not (folder / "tokenizer.json").exists():
        if rows != config.vocab_size:
            raise CheckpointError(
                f"{folder} has {rows:,} entries and no tokenizer, and the larger model {config.vocab_size:,}; put its "
                "tokenizer.json there"
            )
        return
    own = load_tokenizer(folder)
    if tokenizer is not None and tokenizer_fingerprint(own) != tokenizer_fingerprint(tokenizer):
        raise CheckpointError(
            f"{folder} has another tokenizer; build the data with the tokenizer of the model to tile from"
        )
    if num_ids(own) > config.vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has {num_ids(own):,} ids and the larger model {config.vocab_size:,} rows; take its "
            "tokenizer for the larger model, too"
        )


def _with_rows(tensor: Tensor, num_rows: int, fill: float) -> Tensor:
    """Rows beyond the tokenizer's ids are padding: cut, or filled."""
    padding = (0, 0) * (tensor.dim() - 1) + (0, num_rows - len(tensor))
    return F.pad(tensor, padding, value=fill)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Which entry of the smaller model each of the larger is, and how many copies of it there are."""

    index: Tensor
    copies: Tensor

    @classmethod
    def covering(cls, small: int, large: int) -> _Axis:
        """Centred, and wrapped around at both ends."""
        index = (torch.arange(large) - (large - small) // 2) % small
        return cls(index, index.bincount(minlength=small)[index].float())

    def of(self, size: int) -> _Axis:
        """The same for entries that are blocks of so many, kept whole."""
        index = self.index[:, None] * size + torch.arange(size)
        return _Axis(index.flatten(), self.copies.repeat_interleave(size))

    def as_inputs(self, matrix: Tensor, draw: torch.Generator) -> Tensor:
        """Take a matrix's columns, so that copies of an input together do what the one did, each differently."""
        noise = _NOISE * matrix.std() * torch.randn(len(matrix), len(self.index), generator=draw)
        total = torch.zeros_like(matrix).index_add_(1, self.index, noise)
        return matrix[:, self.index] / self.copies + (noise - total[:, self.index] / self.copies)
