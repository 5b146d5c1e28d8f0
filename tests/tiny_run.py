"""A corpus of a few sentences, its shards, and a recipe whose steps take milliseconds: for tests of whole runs."""

import json
import math
import random
from unittest import mock

import torch
from safetensors.torch import load_file

from modernbert.data import MlmBatches
from modernbert.pretraining import pretrain
from modernbert.runtime import Runtime
from modernbert.text.bpe import train_tokenizer
from modernbert.text.build import build_shards
from modernbert.train import loop, peak
from modernbert.train.log import read_metrics
from modernbert.train.loop import Hooks
from modernbert.train.recipe import PretrainRun

WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "green", "hills", "and", "birds"),
    *("sang", "in", "tall", "old", "trees", "near", "rivers"),
)
VOCAB_SIZE, SEQUENCE_LENGTH, MICRO_BATCH_TOKENS = 320, 32, 256


class Interrupted(Exception):
    pass


def sentences(count, seed=0, longest=24):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, longest))).capitalize() + "." for _ in range(count)]


def write_corpus(path, count=400, seed=0):
    path.write_text("".join(f"{line}\n" for line in sentences(count, seed)))
    return path


def build_tiny_shards(folder, seed=0):
    source = write_corpus(folder / "corpus.txt", seed=seed)
    tokenizer = train_tokenizer(sentences(400, seed), vocab_size=VOCAB_SIZE)
    build_shards(source, tokenizer=tokenizer, out=folder / "shards", heldout=0.1, min_tokens=1, documents="line")
    return folder / "shards"


def recipe(shards, *, steps=12, phase=None, phases=None, **sections):
    """Plain values of a run of about so many steps; sections such as `loop={...}` are laid over them."""
    own = {
        "name": "stable",
        "sequence_length": SEQUENCE_LENGTH,
        "tokens_per_step": MICRO_BATCH_TOKENS,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "lr": 3e-3,
        "warmup_tokens": "10%",
        "decay_tokens": "20%",
        **(phase or {}),
    }
    values = {
        "model": {
            "preset": "tiny", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 2, "max_position_embeddings": 64, "local_attention": 16,
            "global_attn_every_n_layers": 2, "attention_dropout": 0.1,
        },
        "data": {"path": str(shards)},
        "loop": {
            "tokens": steps * MICRO_BATCH_TOKENS, "checkpoint_tokens": 3 * MICRO_BATCH_TOKENS,
            "eval_tokens": 6 * MICRO_BATCH_TOKENS, "eval_size_tokens": 1000,
        },
        "phases": [{**own, **changes} for changes in phases or [{}]],
    }  # fmt: skip
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return values


def tiny_recipe(shards, **changes):
    return PretrainRun.parse(recipe(shards, **changes))


def runtime(num_threads=1):
    return Runtime.detect(device="cpu", num_threads=num_threads)


def quick_peak():
    """The measurement of the peak as it is, in 4 ms instead of half a second."""
    whole = peak._gemm_rate
    return mock.patch.object(peak, "_gemm_rate", lambda *shape_and_runtime: whole(*shape_and_runtime, seconds=0.001))


def no_peak():
    """No measurement: a made-up figure."""
    return mock.patch.object(peak, "_gemm_rate", lambda *_shape_and_runtime: 1e9)


def train(run, out, hooks=None, num_threads=1, peak_of=no_peak, **options):
    """`pretrain` without the half second that measuring the peak takes, and without its pictures."""
    with peak_of(), mock.patch.object(loop, "draw_curve"):
        return pretrain(run, out, runtime(num_threads), hooks, **options)


def interrupt_at(step, kind="train"):
    """Hooks that cut a run off when this step's row has been written."""

    def on_row(row):
        if row["step"] == step and row["kind"] == kind:
            raise Interrupted(f"after the {kind} row of step {step}")

    return Hooks(on_row=on_row)


def rows(out, kind="train"):
    return [row for row in read_metrics(out) if row["kind"] == kind]


def losses(out):
    return [row["loss"] for row in rows(out)]


def train_batches(run, **changes):
    """The training stream of a run's first phase."""
    phase = run.phases[0]
    options = {
        "sequence_length": phase.sequence_length, "micro_batch_tokens": phase.micro_batch_tokens,
        "mask_rate": phase.mask_rate, "mixture": phase.mixture, "seed": run.seed,
    }  # fmt: skip
    return MlmBatches(run.data.folders(), **(options | changes))


def same(a, b):
    """Whether two batches are the same, token by token."""
    return torch.equal(a.input_ids_T, b.input_ids_T) and torch.equal(a.labels_T, b.labels_T)


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def same_weights(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def optimizer_of(checkpoint):
    """Averages by name, and groups, of a run of one process."""
    shards = [load_file(path) for path in sorted((checkpoint / "state").glob("*.safetensors"))]
    tensors = {name: tensor for shard in shards for name, tensor in shard.items()}
    return tensors, json.loads((checkpoint / "state" / "optimizer.json").read_text())["groups"]


def all_finite(tensors):
    return all(math.isfinite(tensor.double().abs().max().item()) for tensor in tensors)
