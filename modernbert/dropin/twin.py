"""A `ModernBertModel` of transformers → an `Encoder` with its weights, and the reasons against that.

The embedding and the norms *are* the model's. Linear layers hold the very dictionaries in which the model's keep their
parameters: what changes a parameter is seen, and gradients land where the optimizer looks. What the model's modules have
become (an adapter, a hook, a dropout in training) is looked at again before each forward, 0.3 ms for 22 layers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.errors import ModernBertError, UnsupportedError
from modernbert.model.config import FULL, SLIDING, ModernBertConfig
from modernbert.model.encoder import Attention, Embeddings, Encoder, GeGLU, Layer, Rotation
from modernbert.model.linear import Linear

# Which module of theirs each of ours may stand for, and (NoneType) which need none of ours. No other is computed here.
_TWINS: Mapping[type, tuple[str, ...]] = {
    Embeddings: ("ModernBertEmbeddings",),
    Layer: ("ModernBertEncoderLayer",),
    Attention: ("ModernBertAttention",),
    GeGLU: ("ModernBertMLP",),
    Linear: ("Linear",),
    nn.Embedding: ("Embedding",),
    nn.LayerNorm: ("LayerNorm",),
    nn.Identity: ("Identity",),
    nn.ModuleList: ("ModuleList",),
    type(None): ("Dropout", "Identity", "GELUActivation", "ModernBertRotaryEmbedding"),
}
_HOMES = ("torch.nn.modules.", "transformers.models.modernbert.", "transformers.activations")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# transformers' own: they collect hidden states, which is refused, and let embeddings require gradients, which is done.
_HARMLESS = ("transformers.utils.output_capturing", "transformers.modeling_utils")

_CONFIG_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_eps"),
    *("norm_bias", "attention_bias", "mlp_bias", "hidden_activation", "max_position_embeddings", "local_attention"),
    *("layer_types", "rope_parameters"),
)


def refusal(what: str) -> UnsupportedError:
    """What the stock model does and this package does not."""
    return UnsupportedError(f"{what}: only the stock model does that; modernbert.restore brings it back")


class Twin(Encoder):
    """An encoder with the parameters, the norms and the rotary frequencies of a `ModernBertModel`."""

    theirs: Any

    def __init__(self, theirs: Any) -> None:
        values, version = theirs.config.to_dict(), sys.modules["transformers"].__version__
        if int(version.partition(".")[0]) < 5:
            raise UnsupportedError(
                f"transformers {version} lays its ModernBERT out differently; it must be 5.0 or newer"
            )
        try:
            config = ModernBertConfig.from_dict({key: values[key] for key in _CONFIG_KEYS})
        except ModernBertError as error:
            raise UnsupportedError(f"this {type(theirs).__name__} cannot be accelerated: {error}") from error
        if any(parameter.is_meta for parameter in theirs.parameters()):
            raise UnsupportedError("the weights are on the meta device; load them first")
        with torch.device("meta"):
            super().__init__(config)
        self.eval()  # while its norms are still its own: the training flags of the model's are not ours to set
        self.__dict__["theirs"] = theirs  # past nn.Module, which would take the model for a part of its twin
        self.share()

    def share(self) -> None:
        """Take over what has become of the model's modules and parameters.

        Raises:
            UnsupportedError: they are no longer what this encoder computes.
        """
        kinds = tuple(layer.attention_type for layer in self.theirs.layers)
        if kinds != self.config.layer_types or self.theirs.config.local_attention != self.config.local_attention:
            raise refusal("layers or a window that are not the ones of its config")
        _share(self, self.theirs)

    def rotation(self, positions_T: Tensor, half_window: int | None, dtype: torch.dtype) -> Rotation:
        """From the model's own frequencies: `.half()` rounds these too, and the answer is to stay the stock one."""
        kind = FULL if half_window is None else SLIDING
        angles = self.theirs.rotary_emb(self.embeddings.tok_embeddings.weight, positions_T[None], kind)
        cos, sin = (x_1TH[0, :, None, None, : self.config.head_size // 2].to(dtype) for x_1TH in angles)
        return cos, sin


def _share(ours: nn.Module, theirs: nn.Module, path: str = "") -> None:
    for name, child in theirs._modules.items():
        twin = ours._modules.get(name)
        reason = _reason_against(child, _TWINS[type(twin)])
        if reason is not None:
            raise refusal(f"{path}{name} {reason}")
        assert child is not None
        if type(child) in (nn.Embedding, nn.LayerNorm):
            ours._modules[name] = child
        elif twin is not None:
            twin.__dict__["_parameters"] = child._parameters
            _share(twin, child, f"{path}{name}.")


def _reason_against(module: Any, expected: tuple[str, ...]) -> str | None:
    """Why only the stock model computes what this module does, or None. Plain and quick: each module, each forward."""
    kind, state = type(module), module.__dict__
    if kind.__name__ not in expected or not kind.__module__.startswith(_HOMES):
        return f"is a {kind.__module__}.{kind.__qualname__}"
    if any(state[hooks] for hooks in _HOOKS):
        hooks = [hook for hooks in _HOOKS for hook in state[hooks].values()]
        if any(getattr(hook, "__module__", None) not in _HARMLESS for hook in hooks):
            return "has hooks"
    if "forward" in state:
        return "has a forward that another library put there"
    if any(type(parameter) not in (nn.Parameter, Tensor, type(None)) for parameter in state["_parameters"].values()):
        return "has quantized or distributed parameters"
    if state["training"] and (state.get("p") or state.get("attention_dropout")):
        return f"trains with a dropout of {state.get('p') or state.get('attention_dropout')}"
    if state["training"] and state.get("gradient_checkpointing"):
        return "trains with gradient checkpointing"
    return None
