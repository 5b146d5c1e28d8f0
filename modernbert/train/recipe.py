"""What a recipe says: sections `model`, `data`, `optim`, `loop` and a list of `phases`, everything in tokens.

A token count may also be written as a share, `"5%"`: of the phase's tokens in a phase, of the run's in `loop`.
`resolve()` turns shares into counts; run.json holds the resolved recipe.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from modernbert.errors import ConfigError
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.settings import Settings
from modernbert.text.tokenizer import SpecialIds


def _as_amount(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(\.\d+)?%", value) or float(value[:-1]) > 100:
            raise ValueError('must be a number of tokens, or a share such as "5%"')
        return value
    return value


TokenAmount = Annotated[Annotated[int, Field(ge=0)] | str, pydantic.BeforeValidator(_as_amount)]
"""A number of tokens, or a share of the phase or run such as "5%"."""


def tokens_of(amount: int | str, whole: int) -> int:
    """`"5%"` of a whole, or the number itself."""
    return round(float(amount[:-1]) / 100 * whole) if isinstance(amount, str) else amount


class ModelSettings(Settings):
    """The shape to train: a preset, and what differs from it."""

    preset: Literal["tiny", "mini", "small", "base", "large", "huge"]
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    max_position_embeddings: int | None = None
    local_attention: int | None = None  # the whole window
    global_attn_every_n_layers: int | None = None
    global_rope_theta: float | None = None
    local_rope_theta: float | None = None
    initializer_range: float | None = Field(None, gt=0, le=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)  # on the attention blocks' output, while training only

    def config(self, vocab_size: int, special: SpecialIds) -> ModernBertConfig:
        """The shape for a tokenizer; the embedding has a multiple of 64 rows, which matrix units like."""
        own = self.model_dump(exclude={"preset", "attention_dropout"}, exclude_none=True)
        ids = {
            "pad_token_id": special.pad,
            "cls_token_id": special.cls,
            "bos_token_id": special.cls,
            "sep_token_id": special.sep,
            "eos_token_id": special.sep,
        }
        return PRESETS[self.preset].replace(vocab_size=-(-vocab_size // 64) * 64, **ids, **own)


def _as_path(value: Any) -> str:
    return str(Path(str(value)).expanduser())  # TOML reads 2024 as a number, and a folder may be called so


class DataSettings(Settings):
    """Where tokens come from."""

    path: Annotated[str, pydantic.BeforeValidator(_as_path)]  # a shard folder made by `modernbert data build`
    workers: int = Field(0, ge=0)  # reading processes; batches are the same for any number


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Settings):
    """StableAdamW with fully decoupled weight decay (the recipe of ModernBERT)."""

    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0, le=1)
    weight_decay: float = Field(1e-5, ge=0, le=1)  # a step's shrinkage at the peak rate; none on norms and biases


class LoopSettings(Settings):
    """How long, and when to look."""

    tokens: int = Field(ge=1)  # the run's total, over all phases
    checkpoint_tokens: TokenAmount = "10%"  # between checkpoints
    eval_tokens: TokenAmount = "10%"  # between evaluations
    eval_size_tokens: int = Field(200_000, ge=1)  # of held-out text in one evaluation, at most
    eval_mask_rate: float = Field(0.15, gt=0, lt=1)
    deterministic: bool = False  # refuse CUDA kernels whose result varies from run to run


class PhaseSettings(Settings):
    """One stretch of training with its own lengths and learning rate."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    share: float = Field(1.0, gt=0, le=1)  # of the run's tokens
    sequence_length: int = Field(ge=3)  # [CLS] and [SEP] included
    tokens_per_step: int = Field(ge=1)  # the batch size, in tokens
    micro_batch_tokens: int = Field(ge=1)  # of one forward and backward pass
    mask_rate: float = Field(0.3, gt=0, lt=1)
    lr: float = Field(gt=0, le=10)  # the peak
    warmup_tokens: TokenAmount = 0  # linear, from 0
    decay_tokens: TokenAmount = 0  # 1 − sqrt, at the end of the phase
    decay_to: float = Field(0.001, ge=0, le=1)  # share of the peak that is left at the end

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.micro_batch_tokens < self.sequence_length:
            raise ValueError(
                f"micro_batch_tokens={self.micro_batch_tokens} cannot hold one sequence of "
                f"sequence_length={self.sequence_length}; raise the former (8 sequences pack well)"
            )
        if self.tokens_per_step % self.micro_batch_tokens:
            raise ValueError(
                f"tokens_per_step={self.tokens_per_step} is no whole number of micro-batches of "
                f"micro_batch_tokens={self.micro_batch_tokens}; make it a multiple"
            )
        return self

    def micro_batches_per_step(self) -> int:
        """Passes whose gradients add up to one step."""
        return self.tokens_per_step // self.micro_batch_tokens


class PretrainRun(Settings):
    """A whole pretraining run."""

    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelSettings
    data: DataSettings
    optim: OptimSettings = OptimSettings()
    loop: LoopSettings
    phases: list[PhaseSettings] = Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases are named {names}; give each its own name")
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the phases' shares add up to {total:g}; they must add up to 1")
        positions = self.model.max_position_embeddings
        if positions is None:
            positions = PRESETS[self.model.preset].max_position_embeddings
        for phase in self.phases:
            if phase.sequence_length > positions:
                raise ValueError(
                    f"phase {phase.name}: sequence_length={phase.sequence_length} exceeds the model's {positions} "
                    f"positions; raise model.max_position_embeddings or shorten it"
                )
            budget = self.phase_tokens(phase)
            shaped = tokens_of(phase.warmup_tokens, budget) + tokens_of(phase.decay_tokens, budget)
            if shaped > budget:
                raise ValueError(
                    f"phase {phase.name}: warm-up and decay take {shaped:,} tokens of its {budget:,}; "
                    "shorten them or raise loop.tokens"
                )
        return self

    def phase_tokens(self, phase: PhaseSettings) -> int:
        """The token budget of a phase."""
        return round(phase.share * self.loop.tokens)

    def resolve(self) -> PretrainRun:
        """The same run with every share turned into a number of tokens."""
        values = self.model_dump()
        for name in ("checkpoint_tokens", "eval_tokens"):
            values["loop"][name] = max(1, tokens_of(values["loop"][name], self.loop.tokens))
        for phase, phase_values in zip(self.phases, values["phases"], strict=True):
            for name in ("warmup_tokens", "decay_tokens"):
                phase_values[name] = tokens_of(phase_values[name], self.phase_tokens(phase))
        return PretrainRun.parse(values)


# What may differ when a run goes on: none of it changes what is learnt.
_FREE = {("data", "workers"), ("data", "path"), ("loop", "checkpoint_tokens"), ("loop", "eval_tokens"),
         ("loop", "eval_size_tokens")}  # fmt: skip


def refuse_other_recipe(stored: PretrainRun, asked: PretrainRun, where: str) -> None:
    """Raise ConfigError where going on with `asked` would not be the run that `stored` began."""
    differing = [
        f"{'.'.join(map(str, key))}={theirs!r} (now {ours!r})"
        for key, theirs, ours in _differences(stored.model_dump(), asked.model_dump())
        if key[:2] not in _FREE
    ]
    if differing:
        raise ConfigError(
            f"{where} holds a run with {', '.join(differing[:3])}; go on with the same settings, or choose another --out"
        )


def _differences(a: Any, b: Any, path: tuple = ()) -> list[tuple[tuple, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in _differences(a.get(key), b.get(key), (*path, key))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in _differences(x, y, (*path, i))]
    return [] if a == b else [(path, a, b)]
