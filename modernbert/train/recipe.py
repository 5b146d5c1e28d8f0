"""What a recipe says: sections `model`, `data`, `optim`, `loop`, `guard`, `compute` and a list of `phases`, everything in tokens.

A token count may also be written as a share, `"5%"`: of the run's tokens for a phase's budget and in `loop`, of the
phase's elsewhere. `resolve()` turns shares into counts; run.json holds the resolved recipe.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from modernbert.data.mix import Component
from modernbert.errors import ConfigError
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.remote import is_address
from modernbert.settings import Settings
from modernbert.text.shards import local_folder
from modernbert.text.tokenizer import SpecialIds
from modernbert.train.schedule import DecayShape, ramp


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


def _as_path(value: Any) -> str:
    if is_address(value):
        return str(value).rstrip("/")
    return str(Path(str(value)).expanduser())  # TOML reads 2024 as a number, and a folder may be called so


PathText = Annotated[str, pydantic.BeforeValidator(_as_path)]


class ModelSettings(Settings):
    """The shape to train: a preset, and what differs from it. Without a preset, the first phase's checkpoint's shape."""

    preset: Literal["tiny", "mini", "small", "base", "large", "huge"] | None = None
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
    tile_from: str | None = None  # a smaller trained model, folder or hub name, whose weights are tiled into this one

    def config(
        self, vocab_size: int, special: SpecialIds, checkpoint: ModernBertConfig | None = None
    ) -> ModernBertConfig:
        """The shape for a tokenizer; a new embedding has a multiple of 64 rows, which matrix units like.

        Args:
            vocab_size: ids of the tokenizer.
            special: its special ids.
            checkpoint: the shape of the model to start from, if there is one: it stands where there is no preset.
        """
        own = self.model_dump(exclude={"preset", "attention_dropout", "tile_from"}, exclude_none=True)
        ids = {
            "pad_token_id": special.pad,
            "cls_token_id": special.cls,
            "bos_token_id": special.cls,
            "sep_token_id": special.sep,
            "eos_token_id": special.sep,
        }
        if self.preset is None:
            if checkpoint is None:
                raise ConfigError(
                    f"model.preset is not given, nor a checkpoint to start from; choose {', '.join(PRESETS)}"
                )
            if checkpoint.vocab_size < vocab_size:
                raise ConfigError(
                    f"the data's tokenizer has {vocab_size} entries and the checkpoint {checkpoint.vocab_size}; "
                    "build the data with the checkpoint's tokenizer"
                )
            return checkpoint.replace(**ids, **own)
        return PRESETS[self.preset].replace(vocab_size=-(-vocab_size // 64) * 64, **ids, **own)


class DataSettings(Settings):
    """Where tokens come from: one shard folder, or several sources by name."""

    path: PathText | None = None  # a shard folder made by `modernbert data build`, or its address
    sources: dict[str, PathText] = Field(default_factory=dict)  # name → shard folder, all built with one tokenizer
    workers: int = Field(0, ge=0)  # reading processes; batches are the same for any number
    warn_long_share: float = Field(0.1, ge=0, le=1)  # remark where fewer tokens lie in documents beyond the old length

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either path=SHARDS or sources.NAME=SHARDS, one or more")
        return self

    def folders(self) -> dict[str, str]:
        """Shard folders on this machine by source name; a lone path is called `text`. What is at an address is copied."""
        return {name: str(local_folder(place)) for name, place in self.places().items()}

    def places(self) -> dict[str, str]:
        """The same as they were given."""
        return dict(self.sources) if self.path is None else {"text": self.path}


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Settings):
    """StableAdamW with fully decoupled weight decay (the recipe of ModernBERT)."""

    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0, le=1)
    weight_decay: float = Field(1e-5, ge=0, le=1)  # a step's shrinkage at the peak rate; none on norms and biases
    layer_decay: float = Field(1.0, gt=0, le=1)  # each layer's rate is that of the one above it times this


Tracker = Literal["tensorboard", "wandb", "trackio"]


class LoopSettings(Settings):
    """How long, when to look, and what to keep."""

    tokens: int | None = Field(None, ge=1)  # the run's total, over all phases; their sum if not given
    checkpoint_tokens: TokenAmount = "10%"  # between checkpoints
    checkpoint_minutes: float | None = Field(30.0, gt=0)  # at least so often, too; only the last of these are kept
    keep_every: int = Field(1, ge=0)  # every so many-th checkpoint stays for ever; 0: none
    keep_last: int = Field(2, ge=1)  # and the last ones; the first, and each phase's last, always stay
    eval_tokens: TokenAmount = "10%"  # between evaluations
    eval_size_tokens: int = Field(200_000, ge=1)  # of held-out text in one evaluation, at most, over all sources
    eval_mask_rate: float = Field(0.15, gt=0, lt=1)
    trackers: list[Tracker] = Field(default_factory=list)  # beside metrics.jsonl; a tracker that fails is left out
    deterministic: bool = False  # refuse CUDA kernels whose result varies from run to run


class GuardSettings(Settings):
    """What happens when a step goes wrong."""

    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    on_spike: Literal["note", "skip", "rollback", "stop"] = "note"
    spike_deviations: float = Field(10.0, gt=0)  # above the median of recent losses, in their (robust) deviations
    spike_window: int = Field(128, ge=8, le=4096)  # recent steps
    max_events: int = Field(20, ge=1)  # skips and rollbacks of one session, then the run stops


class ComputeSettings(Settings):
    """How a run is computed. None of it changes what is learnt, so all of it may differ when the run goes on."""

    strategy: Literal["ddp", "fsdp"] = "ddp"  # of several ranks: whole weights on each, or parts (FSDP2)
    activation_checkpointing: bool = False  # keep each layer's input alone, and compute the rest again
    compile: bool = False  # feed-forward blocks, for batches filled up to micro_batch_tokens
    timeout_minutes: float = Field(10.0, gt=0)  # for which a rank may keep the others waiting


class PhaseSettings(Settings):
    """One stretch of training: its budget, lengths, batch, learning rate, masking, positions and text."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    tokens: TokenAmount = "100%"  # the budget, or its share of the run's
    start: Literal["state", "weights+optimizer", "weights"] = (
        "state"  # what goes on from the phase before or `checkpoint`
    )
    checkpoint: PathText | None = None  # start from this folder or hub name, not from the phase before
    sequence_length: int = Field(ge=3)  # [CLS] and [SEP] included
    tokens_per_step: int = Field(ge=1)  # the batch size, in tokens
    tokens_per_step_start: int | None = Field(None, ge=1)  # the batch size at first
    batch_warmup_tokens: TokenAmount = 0  # over which the batch grows, linearly
    micro_batch_tokens: int = Field(ge=1)  # of one forward and backward pass
    mask_rate: float = Field(0.3, gt=0, lt=1)
    mask_rate_end: float | None = Field(None, gt=0, lt=1)  # reached linearly at the end of the phase
    lr: float = Field(gt=0, le=10)  # the peak
    lr_start: float = Field(0.0, ge=0, le=10)  # where warm-up begins
    warmup_tokens: TokenAmount = 0  # linear
    decay_tokens: TokenAmount = 0  # at the end of the phase
    decay_to: float = Field(0.001, ge=0, le=1)  # share of the peak that is left at the end
    decay_shape: DecayShape = "1-sqrt"
    weight_decay: float | None = Field(None, ge=0, le=1)  # optim's if not given
    global_rope_theta: float | None = Field(None, gt=1)  # from this phase on
    local_rope_theta: float | None = Field(None, gt=1)
    mixture: dict[str, Component] = Field(
        default_factory=dict
    )  # what to read, by weight; every source by its size if empty

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.micro_batch_tokens < self.sequence_length:
            raise ValueError(
                f"micro_batch_tokens={self.micro_batch_tokens} cannot hold one sequence of "
                f"sequence_length={self.sequence_length}; raise the former (8 sequences pack well)"
            )
        for name in ("tokens_per_step", "tokens_per_step_start"):
            value = getattr(self, name)
            if value is not None and value % self.micro_batch_tokens:
                raise ValueError(
                    f"{name}={value} is no whole number of micro-batches of "
                    f"micro_batch_tokens={self.micro_batch_tokens}; make it a multiple"
                )
        if (self.tokens_per_step_start is None) != (self.batch_warmup_tokens in (0, "0%")):
            raise ValueError("tokens_per_step_start and batch_warmup_tokens belong together; give both or neither")
        if self.tokens_per_step_start is not None and self.tokens_per_step_start > self.tokens_per_step:
            raise ValueError(
                f"tokens_per_step_start={self.tokens_per_step_start} exceeds tokens_per_step={self.tokens_per_step}; "
                "a batch warm-up grows"
            )
        if self.lr_start > self.lr:
            raise ValueError(f"lr_start={self.lr_start} exceeds lr={self.lr}, the peak; lower it")
        return self

    def micro_batches_at(self, phase_tokens: int) -> int:
        """Passes whose gradients add up to the step that begins behind so many tokens of the (resolved) phase."""
        if self.tokens_per_step_start is None:
            return self.tokens_per_step // self.micro_batch_tokens
        assert isinstance(self.batch_warmup_tokens, int)
        wanted = ramp(phase_tokens, self.tokens_per_step_start, self.tokens_per_step, self.batch_warmup_tokens)
        return max(1, round(wanted / self.micro_batch_tokens))

    def num_steps(self, budget: int) -> int:
        """Optimizer steps of the (resolved) phase, were every micro-batch full."""
        return self.steps_by_size(budget).total()

    def steps_by_size(self, budget: int) -> Counter[int]:
        """How many of these steps have so many micro-batches."""
        sizes: Counter[int] = Counter()
        done = 0
        warmup = self.batch_warmup_tokens if self.tokens_per_step_start is not None else 0
        assert isinstance(warmup, int)
        while done < min(budget, warmup):
            sizes[size := self.micro_batches_at(done)] += 1
            done += size * self.micro_batch_tokens
        sizes[self.tokens_per_step // self.micro_batch_tokens] += math.ceil(
            max(0, budget - done) / self.tokens_per_step
        )
        return +sizes


class TrainRun(Settings):
    """What the loop reads of a recipe, whatever is trained."""

    seed: int = Field(0, ge=0, lt=2**63)
    optim: OptimSettings = OptimSettings()
    loop: LoopSettings
    guard: GuardSettings = GuardSettings()
    compute: ComputeSettings = ComputeSettings()
    phases: list[PhaseSettings] = Field(min_length=1)

    @property
    def total_tokens(self) -> int:
        """Over all phases."""
        return sum(self.phase_tokens(phase) for phase in self.phases)

    def phase_tokens(self, phase: PhaseSettings) -> int:
        """The token budget of a phase."""
        return tokens_of(phase.tokens, self.loop.tokens or 0)


class PretrainRun(TrainRun):
    """A whole pretraining run."""

    model: ModelSettings
    data: DataSettings

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases are named {names}; give each its own name")
        self._check_budgets()
        self._check_positions()
        for phase in self.phases:
            budget = self.phase_tokens(phase)
            shaped = tokens_of(phase.warmup_tokens, budget) + tokens_of(phase.decay_tokens, budget)
            grown = tokens_of(phase.batch_warmup_tokens, budget)
            if max(shaped, grown) > budget:
                what = f"warm-up and decay take {shaped:,}" if shaped > budget else f"batch warm-up takes {grown:,}"
                raise ValueError(
                    f"phase {phase.name}: {what} tokens of its {budget:,}; shorten them, raise the budget, or have "
                    "the whole recipe shrunk with scale_to=TOKENS"
                )
            if budget < phase.tokens_per_step:
                raise ValueError(
                    f"phase {phase.name}: its {budget:,} tokens are less than one batch of "
                    f"tokens_per_step={phase.tokens_per_step:,}; raise the budget, lower the batch, or have the whole "
                    "recipe shrunk with scale_to=TOKENS"
                )
            self._check_mixture(phase)
        return self

    def _check_budgets(self) -> None:
        amounts = [phase.tokens for phase in self.phases]
        if self.loop.tokens is None:
            if not all(isinstance(amount, int) for amount in amounts):
                raise ValueError("a phase's tokens are a share, so loop.tokens is needed; add loop.tokens=…")
            return
        total = sum(tokens_of(amount, self.loop.tokens) for amount in amounts)
        if abs(total - self.loop.tokens) > max(len(amounts), 1e-6 * self.loop.tokens):
            raise ValueError(
                f"the phases' tokens ({', '.join(map(str, amounts))}) add up to {total:,}, and loop.tokens is "
                f"{self.loop.tokens:,}; make them agree, or leave loop.tokens out"
            )

    def _check_positions(self) -> None:
        positions = self.model.max_position_embeddings
        if positions is None and self.model.preset is not None:
            positions = PRESETS[self.model.preset].max_position_embeddings
        if self.model.preset is None and self.phases[0].checkpoint is None:
            raise ValueError(
                "model.preset is not given, and phase 0 names no checkpoint to take the shape from; give one"
            )
        if self.model.tile_from is not None and self.phases[0].checkpoint is not None:
            raise ValueError(
                "model.tile_from and the first phase's checkpoint both say where weights come from; give one"
            )
        for phase in self.phases:
            if positions is not None and phase.sequence_length > positions:
                raise ValueError(
                    f"phase {phase.name}: sequence_length={phase.sequence_length} exceeds the model's {positions} "
                    f"positions; raise model.max_position_embeddings or shorten it"
                )

    def _check_mixture(self, phase: PhaseSettings) -> None:
        known = self.data.places()
        for name, component in phase.mixture.items():
            if (source := component.source or name) not in known:
                raise ValueError(
                    f"phase {phase.name}: the mixture names {source!r}, and the data's sources are "
                    f"{', '.join(known)}; correct the name, or add data.sources.{source}=SHARDS"
                )

    def resolve(self) -> PretrainRun:
        """The same run with every share turned into a number of tokens."""
        values = self.model_dump()
        values["loop"]["tokens"] = self.total_tokens
        for name in ("checkpoint_tokens", "eval_tokens"):
            values["loop"][name] = max(1, tokens_of(values["loop"][name], self.total_tokens))
        for phase, phase_values in zip(self.phases, values["phases"], strict=True):
            phase_values["tokens"] = self.phase_tokens(phase)
            for name in ("warmup_tokens", "decay_tokens", "batch_warmup_tokens"):
                phase_values[name] = tokens_of(phase_values[name], self.phase_tokens(phase))
            if not phase_values["batch_warmup_tokens"]:
                phase_values["tokens_per_step_start"] = None  # its share of the phase came to nothing
        return PretrainRun.parse(values)


# What may differ when a run goes on: none of it changes what is learnt.
_FREE = {("data", "workers"), ("data", "path"), ("data", "sources"), ("data", "warn_long_share"),
         *(("loop", name) for name in ("checkpoint_tokens", "checkpoint_minutes", "keep_every", "keep_last",
                                       "eval_tokens", "eval_size_tokens", "trackers"))}  # fmt: skip


def changes_of(stored: PretrainRun, asked: PretrainRun) -> list[str]:
    """What differs between two resolved recipes that matters to learning, such as `phases.0.lr=0.001 (now 0.002)`."""
    found = differences(stored.model_dump(), asked.model_dump())
    return [
        f"{'.'.join(map(str, key))}={theirs!r} (now {ours!r})"
        for key, theirs, ours in found
        if key[:2] not in _FREE and key[0] != "compute"
    ]


def differences(a: Any, b: Any, path: tuple = ()) -> list[tuple[tuple, Any, Any]]:
    """Where two nested values differ: the keys that lead there, and both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in differences(a.get(key), b.get(key), (*path, key))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, (*path, i))]
    return [] if a == b else [(path, a, b)]
