"""Does a warm start pay? A small trained model, tiled into a larger one, beside that one's cold twin; three seeds.

    python benchmarks/warm_start.py --out results/warm_start.json            # some 15 minutes on 2 cores

For each seed: a small model is trained; the larger one is trained twice on the same batches by the same schedule, once
from drawn weights, once from the small one's (`model.tile_from`). All are judged on the same masked tokens of the same
held-out text every 2.5 % of the way. The share is the tokens at which the tiled one's loss, the mean of its last three
evaluations (which lags, so this is not in its favour), first is at or below the cold one's last, over the cold one's
tokens. Target: at most 0.7 for every seed. What the small one cost comes beside it, in the larger one's tokens by FLOPs:
a user who tiles has a small model already; one who trains it for this should count it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from corpora import add_arguments, corpora_of, shards_of

from modernbert.disk import write_whole
from modernbert.evaluate.machine import environment
from modernbert.model import hub
from modernbert.model.flops import forward_flops
from modernbert.pretraining import pretrain
from modernbert.runtime import Runtime
from modernbert.train.log import read_metrics
from modernbert.train.recipe import PretrainRun

TARGET, SMOOTHED = 0.7, 3
LENGTH = 256

Curve = list[tuple[int, float]]
"""(tokens, held-out loss)."""


def recipe(
    folders: Mapping[str, Path], arguments: argparse.Namespace, *, shape: str, tokens: int, seed: int, tile_from: Path | None
) -> PretrainRun:  # fmt: skip
    layers, width = map(int, shape.split("x"))
    model = {
        "preset": "tiny", "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 3 * width // 2,
        "num_attention_heads": width // 32, "max_position_embeddings": LENGTH, "local_attention": 16,
        "initializer_range": 0.06,
    }  # fmt: skip
    phase = {
        "name": "stable", "sequence_length": LENGTH, "tokens_per_step": 2048, "micro_batch_tokens": 2048,
        "lr": arguments.lr, "warmup_tokens": "5%", "decay_tokens": arguments.decay,
    }  # fmt: skip
    return PretrainRun.parse({
        "seed": seed,
        "model": model | ({"tile_from": str(tile_from)} if tile_from else {}),
        "data": {"sources": {name: str(folder) for name, folder in folders.items()}},
        "loop": {
            "tokens": tokens, "checkpoint_tokens": "100%", "eval_tokens": "2.5%", "eval_size_tokens": arguments.eval_tokens,
        },
        "phases": [phase],
    })  # fmt: skip


def curve_of(out: Path) -> Curve:
    return [(row["tokens"], row["loss"]) for row in read_metrics(out) if row["kind"] == "eval"]


def smooth(curve: Curve, over: int = SMOOTHED) -> Curve:
    """Each evaluation behind the first as the mean of itself and those before it, up to `over` of them."""
    losses = [loss for _, loss in curve]
    return [
        (tokens, statistics.fmean(losses[max(1, i - over + 1) : i + 1])) for i, (tokens, _) in enumerate(curve) if i
    ]


def share_needed(tiled: Curve, cold: Curve) -> float | None:
    """Of the cold one's tokens, those with which the tiled one has the cold one's last loss; None where it never has."""
    last_tokens, last_loss = cold[-1]
    reached = [tokens for tokens, loss in smooth(tiled) if loss <= last_loss]
    return reached[0] / last_tokens if reached else None


def flops_a_token(checkpoint: Path) -> float:
    return forward_flops(hub.read_config(checkpoint), [LENGTH], round(0.3 * LENGTH)) / LENGTH


def one_seed(seed: int, folders: Mapping[str, Path], work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    runtime = Runtime.detect(device="cpu", num_threads=arguments.threads)

    def train(name: str, shape: str, tokens: int, tile_from: Path | None = None) -> tuple[Path, Curve]:
        run = recipe(folders, arguments, shape=shape, tokens=tokens, seed=seed, tile_from=tile_from)
        checkpoint = pretrain(run, work / f"{name}-{seed}", runtime)
        curve = curve_of(work / f"{name}-{seed}")
        print(
            f"seed {seed}: {name:5s} {curve[0][1]:.3f} → {curve[-1][1]:.3f} nats in {curve[-1][0]:,} tokens", flush=True
        )
        return checkpoint, curve

    small, small_curve = train("small", arguments.small, arguments.small_tokens)
    large, cold = train("cold", arguments.large, arguments.tokens)
    _, tiled = train("tiled", arguments.large, arguments.tokens, small)
    share = share_needed(tiled, cold)
    print(f"seed {seed}: share of the tokens {share if share is None else round(share, 3)}", flush=True)
    return {
        "seed": seed, "share": share, "cold_loss": cold[-1][1], "tiled_loss": tiled[-1][1],
        "small_cost_in_large_tokens": small_curve[-1][0] * flops_a_token(small) / flops_a_token(large),
        "curves": {"small": small_curve, "cold": cold, "tiled": tiled},
    }  # fmt: skip


def draw(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(results), 4.2), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False, sharey=True)[0], results, strict=True):
        for number, name in enumerate(("cold", "tiled")):
            tokens, losses = zip(*result["curves"][name], strict=True)
            axes.plot([t / 1e6 for t in tokens], losses, color=f"C{number}", label=name)
        axes.axhline(result["cold_loss"], ls=":", color="C0")
        share = result["share"]
        axes.set(title=f"seed {result['seed']}: " + ("never" if share is None else f"{share:.0%} of the tokens"))
        axes.set(xlabel="million tokens", ylabel="held-out loss (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="wiki", help="wiki, mixture, or a corpus such as docs_pd")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--small", default="4x128", help="layers x width, heads of 32")
    parser.add_argument("--large", default="6x256")
    parser.add_argument("--small-tokens", type=int, default=1_500_000)
    parser.add_argument("--tokens", type=int, default=1_200_000, help="of the larger model, each time")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", default="20%", help="share of the run at whose end the rate falls, for all alike")
    parser.add_argument("--eval-tokens", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON; the curves come beside it as PNG")
    add_arguments(parser, tokenizer="8192")
    arguments = parser.parse_args()
    folders = shards_of(corpora_of(arguments.data), arguments)
    with tempfile.TemporaryDirectory() as work:
        results = [one_seed(seed, folders, Path(work), arguments) for seed in map(int, arguments.seeds.split(","))]
    shares = [result["share"] for result in results]
    met = all(share is not None and share <= TARGET for share in shares)
    print(f"shares {shares}, target ≤ {TARGET}: {'met' if met else 'not met'}")
    if arguments.out:
        settings = {
            key: getattr(arguments, key) for key in ("data", "small", "large", "small_tokens", "tokens", "lr", "decay")
        }
        document = {
            "target": TARGET, "met": met, "settings": settings, "results": results,
            "environment": environment(Runtime.detect(device="cpu")),
        }  # fmt: skip
        write_whole(arguments.out, json.dumps(document, indent=1) + "\n")
        draw(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
