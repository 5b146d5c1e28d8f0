"""A budget of parameters or of milliseconds → shapes that fill the hardware best.

A stretch of three layers (one global, two local) of each candidate is timed, or reckoned from a data sheet; the best few
are then timed whole. They are ranked by the share of the hardware's best rate that their useful operations reach: of two shapes
of one size the one that computes more in the same time comes first, since a wide and shallow one is fast for doing less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from modernbert.batch import IGNORE, PackedBatch
from modernbert.console import Console
from modernbert.errors import ConfigError
from modernbert.evaluate.candidates import STRETCH, of_latency, of_size
from modernbert.evaluate.machine import usable_memory_bytes
from modernbert.model.config import PRESETS, ModernBertConfig
from modernbert.model.encoder import Encoder, Layer
from modernbert.model.flops import forward_flops
from modernbert.runtime import Runtime, synchronize
from modernbert.tasks import MaskedLM
from modernbert.train.devices import GIB, Device, is_here, named_device
from modernbert.train.footprint import USABLE, footprint
from modernbert.train.roofline import micro_batch_seconds, num_parameters

DOCUMENT_TOKENS = 512  # longest document of the batch that is timed
_ON_GPU, _ON_CPU = 65_536, 1024  # tokens
_LONG = 2.0  # seconds; then one timed call is enough
_WHOLE = 3  # candidates that are timed whole
_LABELLED = 1 / 3  # of the positions of a training pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A candidate and what it costs to encode `num_tokens` tokens."""

    config: ModernBertConfig
    num_tokens: int
    milliseconds: float
    flops: float  # useful ones
    timed: str  # "whole", "3 layers", or "reckoned"
    training_milliseconds: float | None = None  # forward and backward, where timed whole

    @property
    def rate(self) -> float:
        """Useful operations a second."""
        return self.flops / self.milliseconds * 1e3

    @property
    def parameters(self) -> int:
        """With its MLM head."""
        return num_parameters(self.config)

    @property
    def toml(self) -> str:
        """What to paste into a recipe."""
        c = self.config
        return (
            f'[model]\npreset = "base"\nnum_hidden_layers = {c.num_hidden_layers}\nhidden_size = {c.hidden_size}\n'
            f"num_attention_heads = {c.num_attention_heads}\nintermediate_size = {c.intermediate_size}\n"
        )

    def row(self, best_rate: float) -> dict[str, Any]:
        """Plain data; `share` is of the best rate."""
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        return {
            **{name: getattr(self.config, name) for name in names},
            "parameters": self.parameters, "milliseconds": self.milliseconds,
            "milliseconds_per_1024": self.milliseconds * 1024 / self.num_tokens,
            "training_milliseconds": self.training_milliseconds, "share": self.rate / best_rate, "timed": self.timed,
            "toml": self.toml,
        }  # fmt: skip


_TILES = (
    "reckoned, not measured: matrix products are computed in tiles of 128 × 128, so that a width of 576 (4.5 tiles) costs "
    "as much as one of 640; give the command on the device itself, without --device, to measure"
)


def plan_shapes(
    *,
    params: int | None = None,
    latency_ms: float | None = None,
    num_tokens: int | None = None,
    vocab_size: int | None = None,
    device: str = "here",
    num_threads: int | None = None,
    rows: int = 8,
    console: Console,
) -> dict[str, Any]:
    """Shapes for a budget, those that fill the hardware best first, as plain data.

    Args:
        params: parameters wanted, embedding and head included; or
        latency_ms: milliseconds to encode a batch of `num_tokens` tokens.
        num_tokens: of that batch; if not given enough to keep the device busy, 65,536 on a GPU and 1,024 on a CPU.
        vocab_size: entries of the vocabulary; the published one's if not given.
        device: a name of `train.devices`, or one of its `HERE`.
        num_threads: CPU threads.
        rows: shapes at most.
        console: where progress goes.

    Raises:
        ConfigError: a budget that no shape meets, both budgets or none, or an unknown device.
    """
    _check_asked({"params": params, "latency-ms": latency_ms, "tokens": num_tokens, "vocab-size": vocab_size})
    vocab_size = vocab_size or PRESETS["base"].vocab_size

    def candidates(cost_of: Callable[[ModernBertConfig], float]) -> list[ModernBertConfig]:
        if params is not None:
            return of_size(params, vocab_size)
        assert latency_ms is not None
        return of_latency(latency_ms, vocab_size, cost_of)

    if is_here(device):
        runtime = Runtime.detect(device="auto" if device == "here" else device, num_threads=num_threads)
        num_tokens = num_tokens or (_ON_CPU if runtime.device.type == "cpu" else _ON_GPU)
        found, shapes, best_rate = _measured(candidates, num_tokens, runtime, console)
    else:
        sheet, num_tokens = named_device(device), num_tokens or _ON_GPU
        found, shapes, best_rate = _reckoned(candidates, num_tokens, sheet)
    if latency_ms is not None:
        shapes, said = _within(shapes, latency_ms)
        found["remarks"] += said
    else:
        found["remarks"].append(_fastest(shapes))
    return {
        **found, "tokens": num_tokens, "document_tokens": min(num_tokens, DOCUMENT_TOKENS), "vocab_size": vocab_size,
        "shapes": [shape.row(best_rate) for shape in shapes[:rows]],
    }  # fmt: skip


def _check_asked(asked: Mapping[str, float | None]) -> None:
    if (asked["params"] is None) == (asked["latency-ms"] is None):
        raise ConfigError("give a recipe, or one budget for a shape: --params or --latency-ms")
    for name, value in asked.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name}={value} must be above 0")


def _reckoned(
    candidates: Callable[[Callable[[ModernBertConfig], float]], list[ModernBertConfig]], num_tokens: int, sheet: Device
) -> tuple[dict[str, Any], list[Shape], float]:
    found = {"hardware": sheet.name, "source": sheet.source, "remarks": [_TILES]}
    configs = candidates(lambda config: sheet_seconds(config, num_tokens, sheet) * 1e3)
    return found, on_sheet(configs, num_tokens, sheet), sheet.peak_flops


def _within(shapes: list[Shape], milliseconds: float) -> tuple[list[Shape], list[str]]:
    """Those that keep to a latency; where none does, the fastest first, and a sentence that says so."""
    fitting = [shape for shape in shapes if shape.milliseconds <= milliseconds]
    if fitting:
        return fitting, []
    return sorted(shapes, key=lambda shape: shape.milliseconds), [
        f"no shape keeps to {milliseconds:g} ms, though {STRETCH} layers of each promised it: what is shown takes longer, "
        "the fastest first; raise --latency-ms, or give fewer --tokens"
    ]


def _measured(
    candidates: Callable[[Callable[[ModernBertConfig], float]], list[ModernBertConfig]],
    num_tokens: int,
    runtime: Runtime,
    console: Console,
) -> tuple[dict[str, Any], list[Shape], float]:
    with console.progress("measuring shapes") as update:
        watch = Stopwatch(num_tokens, runtime, lambda config, done: update(done, f"width {config.hidden_size}"))
        shapes = watch.ranked(candidates(watch.stretch_milliseconds))
    about: dict[str, Any] = {
        "hardware": str(runtime.describe()["device"]),
        "source": f"measured here (best matrix product of any candidate: {watch.best_rate / 1e9:,.0f} GFLOP/s)",
        "remarks": [f"{STRETCH} layers of each were timed; those marked whole as a whole, and a training pass of them"],
    }
    about["remarks"] += watch.remarks
    return about, shapes, watch.best_rate


def _fastest(shapes: Iterable[Shape]) -> str:
    config = min(shapes, key=lambda shape: shape.milliseconds).config
    return (
        f"the fastest has {config.num_hidden_layers} layers of {config.hidden_size}; a wider and shallower shape of one "
        "size has more of it in the embedding and computes less for a token; which of them learns best no clock says"
    )


def show_shapes(result: dict[str, Any], console: Console) -> None:
    """A table, and what to paste for its first row."""
    console.say(
        f"{result['hardware']}, {result['source']}: encoding {result['tokens']:,} tokens, documents of "
        f"{result['document_tokens']:,}"
    )
    columns = "layers,width,heads,GLU,parameters,ms,ms for 1024,training ms,of best rate,timed"
    console.table(columns.split(","), [
        [
            row["num_hidden_layers"], row["hidden_size"], row["num_attention_heads"], row["intermediate_size"],
            f"{row['parameters']:,}", f"{row['milliseconds']:.2f}", f"{row['milliseconds_per_1024']:.2f}",
            "–" if row["training_milliseconds"] is None else f"{row['training_milliseconds']:.1f}",
            f"{row['share']:.0%}", row["timed"],
        ]
        for row in result["shapes"]
    ])  # fmt: skip
    for remark in result["remarks"]:
        console.say(remark)
    console.say("\n" + result["shapes"][0]["toml"])


def lengths_of(num_tokens: int) -> list[int]:
    """Documents of the batch that is timed."""
    whole, rest = divmod(num_tokens, DOCUMENT_TOKENS)
    return [DOCUMENT_TOKENS] * whole + ([rest] if rest else [])


def on_sheet(configs: Iterable[ModernBertConfig], num_tokens: int, device: Device) -> list[Shape]:
    """Candidates as a data sheet has them, best first."""
    return _ranked(
        _shape(config, num_tokens, sheet_seconds(config, num_tokens, device) * 1e3, "reckoned") for config in configs
    )


def sheet_seconds(config: ModernBertConfig, num_tokens: int, device: Device) -> float:
    """Encoding so many tokens, by a data sheet."""
    return micro_batch_seconds(config, num_tokens, min(num_tokens, DOCUMENT_TOKENS), 0.0, device, training=False)


class Stopwatch:
    """Times stretches and whole models here, and in turns with them their largest matrix products.

    Args:
        num_tokens: of the batch.
        runtime: device and precision.
        on_stretch: told of each candidate before it is timed, and how many were.
    """

    def __init__(
        self, num_tokens: int, runtime: Runtime, on_stretch: Callable[[ModernBertConfig, int], None] = lambda *_: None
    ) -> None:
        self.num_tokens, self.runtime, self.on_stretch = num_tokens, runtime, on_stretch
        self.batch = _batch(num_tokens, runtime.device)
        self.best_rate = 0.0  # FLOP/s of the best product so far
        self.remarks: list[str] = []
        self._stretches: dict[tuple[int, int], float] = {}

    def stretch_milliseconds(self, config: ModernBertConfig) -> float:
        """Three layers of this width."""
        key = (config.hidden_size, config.intermediate_size)
        if key not in self._stretches:
            self.on_stretch(config, len(self._stretches))
            encoder = Encoder(config.replace(num_hidden_layers=STRETCH, vocab_size=64, **_NO_IDS))
            encoder = encoder.to(self.runtime.device).eval()
            self._stretches[key] = self._time(lambda: encoder(self.batch)) * 1e3
            layer = encoder.layers[0]
            assert isinstance(layer, Layer)
            product, path = layer.mlp.Wi, encoder.path_for(encoder.final_norm.weight)
            x_TD = torch.randn(self.num_tokens, config.hidden_size, device=self.runtime.device)
            took = self._time(lambda: product(x_TD, path), seconds=0.05)
            self.best_rate = max(self.best_rate, 2.0 * x_TD.numel() * product.out_features / took)
        return self._stretches[key]

    def ranked(self, configs: Iterable[ModernBertConfig]) -> list[Shape]:
        """Candidates by their stretches, and the best few timed whole; best first, those timed whole ahead."""
        shapes = []
        for config in configs:
            took = self.stretch_milliseconds(config) * config.num_hidden_layers / STRETCH
            shapes.append(_shape(config, self.num_tokens, took, f"{STRETCH} layers"))
        shapes = _ranked(shapes)
        best = [shape for shape in shapes[:_WHOLE] if self._fits(shape.config)]
        return _ranked([self.whole(shape.config) for shape in best]) + [shape for shape in shapes if shape not in best]

    def _fits(self, config: ModernBertConfig) -> bool:
        """Whether this device can hold a training pass of a whole model; a remark where it cannot."""
        bfloat16 = self.runtime.dtype != torch.float32
        taken = footprint(config, self.num_tokens, _LABELLED, bfloat16=bfloat16)
        needed, memory = taken.total - taken.optimizer, usable_memory_bytes(self.runtime.device)
        if needed <= USABLE * memory:
            return True
        self.remarks.append(
            f"{config.num_hidden_layers} layers of {config.hidden_size} were not timed whole: a training pass takes "
            f"{needed / GIB:.1f} GiB and there are {memory / GIB:.1f} here"
        )
        return False

    def whole(self, config: ModernBertConfig) -> Shape:
        """A candidate of which encoding and training were timed on a whole model."""
        task = MaskedLM(config).to(self.runtime.device).eval()
        shape = _shape(config, self.num_tokens, self._time(lambda: task.encoder(self.batch)) * 1e3, "whole")
        hidden_T = self.batch.positions_T % round(1 / _LABELLED) == 0
        labelled = replace(self.batch, labels_T=torch.where(hidden_T, self.batch.input_ids_T, IGNORE))

        def train() -> None:
            task.zero_grad(set_to_none=True)
            output = task(labelled)
            (output.loss_sum / output.num_targets).backward()

        took = self._time(train, gradients=True, calls=2)
        return replace(shape, training_milliseconds=took * 1e3)

    def _time(
        self, call: Callable[[], object], *, gradients: bool = False, calls: int = 3, seconds: float = 0.15
    ) -> float:
        """The fastest of so many calls or more behind one that warms up: whatever disturbs a call makes it slower."""
        best, taken, began_at = float("inf"), 0, time.perf_counter()
        with nullcontext() if gradients else torch.inference_mode():
            while taken <= calls or time.perf_counter() - began_at < seconds:
                if taken > 1 and time.perf_counter() - began_at > _LONG:
                    break
                synchronize(self.runtime.device)
                started_at = time.perf_counter()
                with self.runtime.autocast():
                    call()
                synchronize(self.runtime.device)
                took = time.perf_counter() - started_at
                best, taken = (min(best, took) if taken else best), taken + 1
        return best


_NO_IDS = dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"))


def _shape(config: ModernBertConfig, num_tokens: int, milliseconds: float, timed: str) -> Shape:
    flops = forward_flops(config, lengths_of(num_tokens))
    return Shape(config=config, num_tokens=num_tokens, milliseconds=milliseconds, flops=flops, timed=timed)


def _ranked(shapes: Iterable[Shape]) -> list[Shape]:
    return sorted(shapes, key=lambda shape: -shape.rate)


def _batch(num_tokens: int, device: torch.device) -> PackedBatch:
    documents = [torch.arange(length) % 64 for length in lengths_of(num_tokens)]
    return PackedBatch.from_sequences(documents).to(device)
