"""Peak memory of fine-tuning on inputs of 8,192 tokens, each measurement in a process of its own.

    python benchmarks/long_documents.py --shape base --out results/long_documents.jsonl

A classifier of that shape with random weights, StableAdamW; a step has made-up documents of that length, one to a pass.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

from modernbert import PRESETS
from modernbert.batch import Feature, pack_features
from modernbert.evaluate.machine import environment
from modernbert.runtime import Runtime
from modernbert.tasks.classify import Classifier
from modernbert.tasks.head import HeadSettings
from modernbert.train.loop import accumulate
from modernbert.train.optim import build_optimizer
from modernbert.train.recipe import OptimSettings
from modernbert.train.spread import alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="base", choices=sorted(PRESETS))
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--documents", type=int, default=2, help="of a step")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--checkpoint-layers", action="store_true", help="keep each layer's input alone")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runtime = Runtime.detect(device="cpu")
    settings = HeadSettings(kind="classify", labels=("a", "b"), problem="single", max_length=arguments.length)
    model = Classifier(PRESETS[arguments.shape], None, settings, head_dropout=0.1).draw(0)
    model.encoder.checkpoint_layers = arguments.checkpoint_layers
    optimizer = build_optimizer(model, OptimSettings(), 1e-4)
    draw = np.random.default_rng(0)
    began_at = time.perf_counter()
    for _ in range(arguments.steps):
        batches = [
            pack_features([Feature(ids_T=draw.integers(0, 50_000, arguments.length).astype(np.int32), target=0)])
            for _ in range(arguments.documents)
        ]
        loss = accumulate(alone(model), batches, runtime)["loss"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert torch.isfinite(torch.tensor(loss))
    tokens = arguments.steps * arguments.documents * arguments.length
    found = {
        "shape": arguments.shape, "length": arguments.length, "documents": arguments.documents,
        "checkpoint_layers": arguments.checkpoint_layers,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "tokens_per_second": tokens / (time.perf_counter() - began_at), "environment": environment(runtime),
    }  # fmt: skip
    with arguments.out.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(f"{arguments.shape}: peak {found['peak_gib']:.1f} GiB, {found['tokens_per_second']:,.0f} tokens/s")


if __name__ == "__main__":
    main()
