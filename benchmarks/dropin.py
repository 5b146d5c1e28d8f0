"""What `modernbert.accelerate` gains on a SentenceTransformer: stock and accelerated interleaved in one process.

    python benchmarks/dropin.py [--rounds 5] [--layers 22] [--json]

A ModernBERT-base with random weights (speed does not depend on them) and a tokenizer that is made here of single letters, so
that a text of n letters has n + 2 tokens. Each round runs stock, accelerated, accelerated, stock; figures are medians of the
per-round ratios with their range. Loads: `encode` sorts by length itself; "unsorted" are batches as a server sees them, of
random lengths N(256, 128) cut to 16–512; the training step is forward, contrastive loss, backward on 8 pairs of such texts.
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = sentence_transformer(Path(folder) / "model", args.layers)
    texts = texts_of(mixed_lengths(args.texts, 0), 0)
    unsorted_batch = model.preprocess(texts_of(mixed_lengths(32, 1), 1))
    halves = [texts_of(mixed_lengths(8, seed), seed) for seed in (2, 3)]
    pairs = [model.preprocess(half) for half in halves]

    def encode() -> torch.Tensor:
        return model.encode(texts, batch_size=8, convert_to_tensor=True, show_progress_bar=False)

    @torch.inference_mode()
    def serve() -> torch.Tensor:
        return model(dict(unsorted_batch))["sentence_embedding"]

    rows = {
        "encode, mixed lengths": interleaved(model, encode, args.rounds),
        "unsorted batch of 32": interleaved(model, serve, args.rounds),
        "training step": interleaved(model, lambda: train_step(model, [dict(half) for half in pairs]), args.rounds),
    }
    for name, row in rows.items():
        stock, ours = row.pop("stock"), row.pop("accelerated")
        if name == "training step":
            row["gradient_distance"] = ((ours - stock).norm() / stock.norm()).item()
        else:
            row["least_cosine"] = torch.cosine_similarity(ours.double(), stock.double()).min().item()
        if not args.json:
            print(f"{name}: {row['ratio']:.2f}× ({row['low']:.2f}–{row['high']:.2f})", row)
    if args.json:
        print(json.dumps({"threads": torch.get_num_threads(), "layers": args.layers, "rows": rows}))


if __name__ == "__main__":
    main()
