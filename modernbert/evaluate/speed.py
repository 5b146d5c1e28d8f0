"""Loads and peers → how fast ModernBERT encodes beside them, and beside this machine's best matrix products.

For each load: every competitor's tensors are laid out, each is warmed up, and rounds are taken in turns (`timing`), with
a sample of the yardstick (`gemm`) after each. Useful operations count the linear layers, and attention inside window and
document only (`modernbert.model.flops`); their rate over the yardstick's best path is the `share`. Where a GPU's memory
is too small, a load is halved for all alike.

Price: the seconds asked for per load, or three rounds and a warm-up where these take longer: for all loads with base on
two cores about half an hour, of which the peers' padding takes most; a minute for peak memory.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modernbert.errors import ConfigError
from modernbert.evaluate.gemm import NumpyProducts, Yardstick
from modernbert.evaluate.loads import LOADS, Load, longest_of, make_load
from modernbert.evaluate.machine import environment, tune_malloc
from modernbert.evaluate.memory import memory_of
from modernbert.evaluate.peers import (
    CHOICES,
    LONGEST,
    OURS,
    PEERS,
    VOCAB_SIZE,
    Competitor,
    compete,
    positions_of_bert,
    shape_of,
)
from modernbert.evaluate.timing import interleave, noise, quantile, ratios
from modernbert.model.choose import choose_attention, choose_linear
from modernbert.model.config import ModernBertConfig
from modernbert.model.flops import forward_flops
from modernbert.runtime import Runtime, synchronize

Say = Callable[[str], None]

_NOISY = 1.5
_SCALE_ON_CUDA = 8


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure.

    Raises:
        ConfigError: an unknown load or peer, or a number out of range.
    """

    model: str = "base"  # preset, folder or hub name
    loads: Sequence[str] = LOADS
    against: Sequence[str] = PEERS
    seconds: float = 20.0  # a load; three rounds at least
    rounds: int | None = None  # a load, instead of seconds
    memory: bool = True
    quick: bool = False  # models and loads that take milliseconds: a look at whether all runs, not a measurement
    malloc: bool = False  # have malloc keep freed memory
    scale: int | None = None  # times as many rows; None: 8 on CUDA, else 1

    def __post_init__(self) -> None:
        for name in self.loads:
            longest_of(name)
        for name in self.against:
            if name not in CHOICES:
                raise ConfigError(f"competitor {name!r} is unknown; choose among {', '.join(CHOICES)}")
        if not self.loads:
            raise ConfigError(f"no load to measure; choose among {', '.join(LOADS)}")
        if self.seconds < 0 or (self.rounds is not None and self.rounds < 1):
            raise ConfigError(f"seconds={self.seconds} must not be negative, rounds={self.rounds} must be at least 1")


def bench(
    settings: Bench,
    runtime: Runtime,
    say: Say = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure all of it.

    Args:
        settings: what.
        runtime: where, in which dtype, with how many threads.
        say: told in a line what was found so far.
        keep: given the record so far, after each load.

    Returns:
        The record: environment, settings, one entry per load, and peak memory.

    Raises:
        ConfigError: texts longer than the model's positions, or a library that is missing.
    """
    malloc = settings.malloc and tune_malloc()
    record = about(settings, runtime, malloc=malloc)
    for entry in measure_loads(settings, runtime):
        record["loads"].append(entry)
        keep(record)
        say(sentence(entry))
    if settings.memory:
        names = [OURS, *settings.against]
        record["memory"] = memory_of(
            names, settings.model, runtime, quick=settings.quick, malloc=malloc, say=say
        )  # fmt: skip
    return record


def about(settings: Bench, runtime: Runtime, *, malloc: bool = False) -> dict[str, Any]:
    """A record without measurements yet."""
    return {
        "model": settings.model, "quick": settings.quick, "malloc": malloc, **environment(runtime),
        "choices": choices(runtime), "loads": [], "memory": None,
    }  # fmt: skip


def choices(runtime: Runtime) -> dict[str, str]:
    """What our encoder computes with here, and why."""
    attention = choose_attention(runtime.device, runtime.dtype, 64, gradients=False)
    linear = choose_linear(runtime.device, runtime.dtype, gradients=False)
    return {"attention": f"{attention.backend}: {attention.reason}", "linear": f"{linear.path}: {linear.reason}"}


def measure_loads(settings: Bench, runtime: Runtime) -> Iterator[dict[str, Any]]:
    """One entry for each load, as soon as it is measured.

    Raises:
        ConfigError: as `bench`.
    """
    config = shape_of(settings.model, quick=settings.quick)
    longest = max(map(longest_of, settings.loads))
    if longest > config.max_position_embeddings:
        fitting = [name for name in settings.loads if longest_of(name) <= config.max_position_embeddings]
        raise ConfigError(
            f"a load has texts of {longest} tokens and {settings.model} {config.max_position_embeddings} positions; "
            f"say --loads {','.join(fitting)}"
        )
    field = _Field(settings, runtime)
    on_cpu_in_float32 = runtime.device.type == "cpu" and runtime.dtype == torch.float32
    with contextlib.ExitStack() as stack:
        numpy = stack.enter_context(NumpyProducts(runtime.num_threads)) if on_cpu_in_float32 else None
        for name in settings.loads:
            yield _fitting(name, settings, field, config, runtime, numpy)


class _Field:
    """The competitors, built when they are first needed."""

    def __init__(self, settings: Bench, runtime: Runtime) -> None:
        self._settings, self._runtime = settings, runtime
        self._built: dict[tuple[str, int], Competitor] = {}

    def of(self, load: str) -> dict[str, Competitor]:
        """Those that take part in a load, ours first."""
        longest = longest_of(load)
        names = (OURS, *self._settings.against)
        return {name: self._one(name, longest) for name in names if longest <= LONGEST.get(name, longest)}

    def _one(self, name: str, longest: int) -> Competitor:
        key = name, positions_of_bert(longest) if name == "bert" else 0
        if key not in self._built:
            settings = self._settings
            self._built[key] = compete(name, settings.model, self._runtime, longest=longest, quick=settings.quick)
        return self._built[key]


def _fitting(
    name: str, settings: Bench, field: _Field, config: ModernBertConfig, runtime: Runtime, numpy: NumpyProducts | None
) -> dict[str, Any]:
    """Measure a load, halved until it fits the device's memory."""
    competitors = field.of(name)
    vocab_size = min(config.vocab_size, VOCAB_SIZE)
    scale = settings.scale or (_SCALE_ON_CUDA if runtime.device.type == "cuda" else 1)
    while True:
        load = make_load(name, vocab_size=vocab_size, scale=scale, quick=settings.quick)
        try:
            return measure(load, competitors, config, runtime, settings.seconds, settings.rounds, numpy)
        except torch.OutOfMemoryError:
            if scale == 1:
                raise
            scale //= 2
        torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors


def measure(
    load: Load,
    competitors: dict[str, Competitor],
    config: ModernBertConfig,
    runtime: Runtime,
    seconds: float,
    rounds: int | None = None,
    numpy: NumpyProducts | None = None,
) -> dict[str, Any]:
    """Time the competitors on one load, ours first among them, and the yardstick of our shape."""
    device = runtime.device
    thunks = {name: [c.prepare(rows, device) for rows in load.batches] for name, c in competitors.items()}

    def call(name: str, round_: int) -> None:
        batches = thunks[name]
        for thunk in [batches[round_ % len(batches)]] if load.one_by_one else batches:
            thunk()
        synchronize(device)

    with torch.inference_mode():
        yardstick = Yardstick(config, load.num_tokens // len(load.batches), runtime, numpy)
        times = interleave(
            {name: functools.partial(call, name) for name in competitors},
            seconds=seconds,
            rounds=rounds,
            warmups=len(load.batches) if load.one_by_one else 1 if device.type == "cpu" else 3,
            between=yardstick.sample,
        )
    return figures(load, times, config, yardstick.rates())


def figures(
    load: Load, times: dict[str, list[float]], config: ModernBertConfig, gemm: dict[str, float]
) -> dict[str, Any]:
    """Seconds of every round → a load's entry in the record; the first of `times` is ours."""
    ours, period = next(iter(times)), len(load.batches) if load.one_by_one else 1
    lengths = [load.lengths(round_) for round_ in range(len(times[ours]))]
    useful = statistics.median(forward_flops(config, ls) / s for ls, s in zip(lengths, times[ours], strict=True))
    best = max(gemm, key=gemm.__getitem__)
    shaky = {name: noise(taken, period) for name, taken in times.items()}
    return {
        "load": load.name, "what": load.what, "rows": len(load.lengths(0)), "tokens": sum(load.lengths(0)),
        "longest": load.longest, "padding": 1 - load.num_tokens / load.num_padded_tokens, "rounds": len(lengths),
        "competitors": [
            {
                "name": name,
                "median_s": statistics.median(taken), "low_s": quantile(taken, 0.1), "high_s": quantile(taken, 0.9),
                "tokens_per_second": statistics.median(sum(ls) / s for ls, s in zip(lengths, taken, strict=True)),
                **ratios(taken, times[ours]),
                **({"p50_ms": 1e3 * quantile(taken, 0.5), "p99_ms": 1e3 * quantile(taken, 0.99)} if load.one_by_one else {}),
                "times_s": taken,
            }
            for name, taken in times.items()
        ],
        "gemm": gemm, "gemm_best": {"path": best, "flops_per_second": gemm[best]},
        "useful_flops_per_second": useful, "share": useful / gemm[best],
        "remarks": [f"{name}: its own times range over {by:.1f}×" for name, by in shaky.items() if by > _NOISY],
    }  # fmt: skip


def sentence(entry: dict[str, Any]) -> str:
    """A load's figures in a line."""
    ours, *others = entry["competitors"]
    beside = ", ".join(f"{other['ratio']:.2f}× {other['name']}" for other in others)
    return (
        f"{entry['load']}: {entry['what']}; {entry['rounds']} rounds, {ours['tokens_per_second']:,.0f} tokens/s, "
        f"{entry['share']:.0%} of the best matrix products" + (f"; {beside}" if beside else "")
    )
