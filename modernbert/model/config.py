"""A checkpoint's `config.json` → the frozen shape of an encoder, and back.

Two generations of keys exist. transformers 5 reads `layer_types` and `rope_parameters`; everything older reads
`global_attn_every_n_layers`, `global_rope_theta` and `local_rope_theta`, and takes its defaults in silence
where they are missing. Both are read here (the newer win, as in transformers) and both are written, agreeing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modernbert.errors import CheckpointError, ConfigError, UnsupportedError

log = logging.getLogger(__name__)

FULL, SLIDING = "full_attention", "sliding_attention"
UNEXTENDED_THETA = 10_000.0  # the global RoPE base before the context was extended

# Keys that say nothing of the weights, or that are written afresh at every save. Dropout is a setting of a
# training run and never of a checkpoint.
_NOT_KEPT = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "modernbert_version", "_name_or_path"),
        *("dtype", "torch_dtype", "attention_dropout", "embedding_dropout", "mlp_dropout"),
        *("hidden_activation", "classifier_activation", "tie_word_embeddings", "layer_norm_eps"),
        *("layer_types", "rope_parameters", "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"),
    }
)


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig:
    """The shape of an encoder. The defaults are ModernBERT-base's; names are the checkpoint's own.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152  # of the GLU; `Wi` is twice this wide
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    max_position_embeddings: int = 8192
    local_attention: int = 128  # the whole window; a token sees local_attention // 2 on either side
    global_attn_every_n_layers: int | None = 3  # None: `layer_types` is a pattern this key cannot express
    layer_types: tuple[str, ...] | None = None  # after construction always one entry per layer
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    decoder_bias: bool = True
    classifier_bias: bool = False  # of every head's dense layer
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    pad_token_id: int | None = 50283
    bos_token_id: int | None = 50281
    eos_token_id: int | None = 50282
    cls_token_id: int | None = 50281
    sep_token_id: int | None = 50282
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys that others wrote: kept and written back

    def __post_init__(self) -> None:
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("global_rope_theta", "local_rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if self.hidden_size % self.num_attention_heads or self.head_size % 2:
            raise ConfigError(
                f"hidden_size={self.hidden_size} over num_attention_heads={self.num_attention_heads} must give an "
                f"even whole head size; try hidden_size={64 * self.num_attention_heads}"
            )
        if self.local_attention < 0:
            raise ConfigError(f"local_attention={self.local_attention} must not be negative")
        types, every = self.layer_types, self.global_attn_every_n_layers
        if types is None:
            if every is None or every < 1:
                raise ConfigError(f"global_attn_every_n_layers={every} must be at least 1")
            types = _pattern(every, self.num_hidden_layers)
        types = tuple(types)
        if len(types) != self.num_hidden_layers or not all(kind in (FULL, SLIDING) for kind in types):
            raise ConfigError(
                f"layer_types has {len(types)} entries {sorted({str(kind) for kind in types})} for num_hidden_layers="
                f"{self.num_hidden_layers}; give one of {FULL!r}, {SLIDING!r} per layer"
            )
        object.__setattr__(self, "layer_types", types)
        object.__setattr__(self, "global_attn_every_n_layers", _every_n(types, every))

    @property
    def head_size(self) -> int:
        """H."""
        return self.hidden_size // self.num_attention_heads

    @property
    def half_windows(self) -> tuple[int | None, ...]:
        """For each layer the tokens seen on either side, None where the whole document is."""
        assert self.layer_types is not None
        return tuple(None if kind == FULL else self.local_attention // 2 for kind in self.layer_types)

    def rope_theta(self, half_window: int | None) -> float:
        """The RoPE base of layers with this window."""
        return self.global_rope_theta if half_window is None else self.local_rope_theta

    def replace(self, **changes: Any) -> ModernBertConfig:
        """A copy with some fields changed; a new depth brings a new layer pattern unless one is given."""
        if "layer_types" not in changes and {"num_hidden_layers", "global_attn_every_n_layers"} & changes.keys():
            changes["layer_types"] = None
        return dataclasses.replace(self, **changes)

    def to_dict(self, architecture: str) -> dict[str, Any]:
        """`config.json` with both generations of keys, warning where the older cannot say what the newer do."""
        from modernbert import __version__

        assert self.layer_types is not None
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        if self.global_attn_every_n_layers is None:
            del values["global_attn_every_n_layers"]
            log.warning(
                "the layer pattern %s cannot be said by global_attn_every_n_layers: transformers before 5.0, and "
                "servers that read the older keys, will read another pattern from this checkpoint",
                "".join("G" if kind == FULL else "l" for kind in self.layer_types),
            )
        return {
            **self.extra,
            **values,
            "model_type": "modernbert",
            "architectures": [architecture],
            "layer_types": list(self.layer_types),
            "rope_parameters": {
                FULL: {"rope_type": "default", "rope_theta": self.global_rope_theta},
                SLIDING: {"rope_type": "default", "rope_theta": self.local_rope_theta},
            },
            "hidden_activation": "gelu",
            "classifier_activation": "gelu",
            "tie_word_embeddings": True,
            "attention_dropout": 0.0,
            "embedding_dropout": 0.0,
            "mlp_dropout": 0.0,
            "torch_dtype": "float32",
            "dtype": "float32",
            "modernbert_version": __version__,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModernBertConfig:
        """Read a `config.json` of either generation.

        Raises:
            CheckpointError: another model's config, or values of the wrong kind.
            UnsupportedError: a ModernBERT variant that this encoder does not compute.
        """
        if values.get("model_type", "modernbert") != "modernbert":
            raise CheckpointError(f"model_type is {values['model_type']!r}; only 'modernbert' can be loaded")
        for name, computed in _COMPUTED.items():
            if values.get(name, computed) != computed:
                raise UnsupportedError(f"config.json: {name}={values[name]!r}; only {computed!r} is computed")
        known = {f.name for f in dataclasses.fields(cls)} - {"extra", "layer_types"}
        kwargs = {name: values[name] for name in known if name in values}
        if kwargs.get("local_rope_theta", 0.0) is None:  # the older generation's way to say "as the global one"
            kwargs["local_rope_theta"] = kwargs.get("global_rope_theta", cls.global_rope_theta)
        if isinstance(kwargs.get("eos_token_id"), list):
            kwargs["eos_token_id"] = next(iter(kwargs["eos_token_id"]), None)
        kwargs["extra"] = {name: values[name] for name in values if name not in known and name not in _NOT_KEPT}
        kwargs |= _newer_keys(values, kwargs)
        for f in dataclasses.fields(cls):
            if f.name in kwargs and not _is_of_kind(kwargs[f.name], str(f.type)):
                raise CheckpointError(
                    f"config.json: {f.name}={kwargs[f.name]!r} is of the wrong kind; it must be {f.type}"
                )
        return cls(**kwargs)


# Keys of which one value is computed here, and any other refused.
_COMPUTED = {
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
    "rope_scaling": None,
}


def _is_of_kind(value: Any, kind: str) -> bool:
    """Whether a JSON value may stand in a field annotated so; fields of other kinds are checked by their readers."""
    if value is None:
        return kind.endswith("None") or not kind.startswith(("int", "float", "bool"))
    if kind.startswith(("int", "float")):
        return isinstance(value, int if kind.startswith("int") else int | float) and not isinstance(value, bool)
    return isinstance(value, bool) or not kind.startswith("bool")


def _newer_keys(values: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_types` and `rope_parameters`, which win over the older keys, as in transformers 5."""
    newer: dict[str, Any] = {}
    types, rope = values.get("layer_types"), values.get("rope_parameters") or {}
    if types is not None:
        if not isinstance(types, list):
            raise CheckpointError(f"config.json: layer_types={types!r} is no list")
        newer["layer_types"] = tuple(types)
        every = older.get("global_attn_every_n_layers")
        if isinstance(every, int) and every > 0 and newer["layer_types"] != _pattern(every, len(types)):
            log.warning(
                "config.json: layer_types and global_attn_every_n_layers=%s disagree; the former is used", every
            )
    if not isinstance(rope, dict) or not rope.keys() <= {FULL, SLIDING}:
        raise CheckpointError(
            f"config.json: rope_parameters={rope!r} must have one entry each for {FULL} and {SLIDING}"
        )
    for kind, name in ((FULL, "global_rope_theta"), (SLIDING, "local_rope_theta")):
        entry = rope.get(kind) or {}
        if not isinstance(entry, dict):
            raise CheckpointError(f"config.json: rope_parameters.{kind}={entry!r} is no object")
        if entry.get("rope_type", "default") != "default":
            raise UnsupportedError(f"rope_type={entry['rope_type']!r} for {kind}; only 'default' is computed")
        if "rope_theta" in entry:
            newer[name] = entry["rope_theta"]
            if name in older and older[name] != newer[name]:
                log.warning(
                    "config.json: rope_parameters says %s for %s and %s says %s; the former is used",
                    newer[name], kind, name, older[name],
                )  # fmt: skip
    return newer


def _pattern(every: int, num_layers: int) -> tuple[str, ...]:
    return tuple(SLIDING if layer % every else FULL for layer in range(num_layers))


def _every_n(types: tuple[str, ...], preferred: int | None) -> int | None:
    """The n of "every n-th layer is global" that gives this pattern; None where there is none."""
    candidates = [preferred] if preferred else []
    return next((n for n in [*candidates, *range(1, len(types) + 1)] if _pattern(n, len(types)) == types), None)


def _shape(layers: int, hidden: int, intermediate: int) -> ModernBertConfig:
    return ModernBertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=hidden // 64,
    )


# base and large are ModernBERT's (arXiv 2412.13663), the others the Ettin family's.
PRESETS: Mapping[str, ModernBertConfig] = {
    "tiny": _shape(7, 256, 384),
    "mini": _shape(10, 384, 576),
    "small": _shape(19, 512, 768),
    "base": _shape(22, 768, 1152),
    "large": _shape(28, 1024, 2624),
    "huge": _shape(28, 1792, 3840),
}
