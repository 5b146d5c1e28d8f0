"""What `modernbert.accelerate` gains on a SentenceTransformer: stock and accelerated interleaved in one process.

    python benchmarks/dropin.py [--rounds 5] [--layers 22] [--texts 16]

A ModernBERT-base with random weights (speed does not depend on them) and a tokenizer that is made here of single letters, so
that a text of n letters has n + 2 tokens. Each round runs stock, accelerated, accelerated, stock; figures are medians of the
per-round ratios with their range. Loads: `encode` sorts by length itself; "unsorted" are batches as a server sees them, of
random lengths N(256, 128) cut to 16–512; the training step is forward, contrastive loss and backward on pairs of such
texts. A JSON line for each load.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import modernbert
from modernbert import PRESETS, EncoderModel

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def texts_of(lengths: list[int], seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=length - 2)) for length in lengths]


def mixed_lengths(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [min(512, max(16, round(draw.gauss(256, 128)))) for _ in range(count)]


def sentence_transformer(folder: Path, layers: int) -> Any:
    from sentence_transformers import SentenceTransformer

    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    config = PRESETS["base"].replace(
        num_hidden_layers=layers, vocab_size=64, pad_token_id=0, cls_token_id=1, sep_token_id=2
    )
    EncoderModel(config, tokenizer).draw(0).save(folder)
    return SentenceTransformer(str(folder), device="cpu")


def train_step(model: Any, pairs: list[tuple[dict[str, torch.Tensor], ...]]) -> torch.Tensor:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model.zero_grad()
    loss = MultipleNegativesRankingLoss(model)(pairs, None)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def interleaved(model: Any, work: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Run `work` on the stock and the accelerated model in turns; `work` returns what is compared."""
    seconds: dict[str, list[float]] = {"stock": [], "accelerated": []}
    results: dict[str, Any] = {}
    switch = {"stock": modernbert.restore, "accelerated": modernbert.accelerate}
    for number in range(rounds + 1):
        for name in ("stock", "accelerated", "accelerated", "stock"):
            switch[name](model)
            started_at = time.perf_counter()
            results[name] = work()
            if number:  # the first round is for warming up
                seconds[name].append(time.perf_counter() - started_at)
    ratios = [
        sum(seconds["stock"][i : i + 2]) / sum(seconds["accelerated"][i : i + 2]) for i in range(0, 2 * rounds, 2)
    ]
    return {
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
        **{f"{name}_seconds": statistics.median(taken) for name, taken in seconds.items()}, **results,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--texts", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = sentence_transformer(Path(folder) / "model", args.layers)
    texts = texts_of(mixed_lengths(args.texts, 0), 0)
    unsorted_batch = model.preprocess(texts_of(mixed_lengths(args.texts, 1), 1))
    pairs = [model.preprocess(texts_of(mixed_lengths(args.texts // 4, seed), seed)) for seed in (2, 3)]

    def encode() -> torch.Tensor:
        return model.encode(texts, batch_size=8, convert_to_tensor=True, show_progress_bar=False)

    @torch.inference_mode()
    def serve() -> torch.Tensor:
        return model(dict(unsorted_batch))["sentence_embedding"]

    loads = {
        f"encode {args.texts} texts in batches of 8": encode,
        f"unsorted batch of {args.texts}": serve,
        f"training step of {args.texts // 4} pairs": lambda: train_step(model, [dict(half) for half in pairs]),
    }
    for name, work in loads.items():
        row = interleaved(model, work, args.rounds)
        stock, ours = row.pop("stock"), row.pop("accelerated")
        if work is encode or work is serve:
            row["least_cosine"] = torch.cosine_similarity(ours.double(), stock.double()).min().item()
        else:
            row["gradient_distance"] = ((ours - stock).norm() / stock.norm()).item()
        print(json.dumps({"load": name, "layers": args.layers, "threads": torch.get_num_threads(), **row}), flush=True)


if __name__ == "__main__":
    main()
