"""Texts of many lengths, a folder of the tiny model, and what each text gives alone."""

import random

import pytest
import torch
from tiny_run import sentences

from modernbert.batch import PackedBatch


@pytest.fixture(scope="session")
def texts():
    """90 texts of 0 to some 120 tokens, in no order."""
    draw = random.Random(1)
    return [" ".join(sentences(draw.randint(0, 3), seed, longest=12)) for seed in range(90)]


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory):
    return tiny_model.save(tmp_path_factory.mktemp("retrieval") / "model")


@pytest.fixture(scope="session")
def alone(tiny_model):
    """The slow twin: each text through the encoder alone, pooled by slicing."""

    def vectors(texts, pooling="mean", normalize=True, dimensions=None, model=tiny_model):
        rows = []
        for text in texts:
            batch = PackedBatch.from_sequences([model.tokenizer.encode(text).ids])
            with torch.inference_mode():
                hidden_TD = model.encoder(batch)
            row_D = (hidden_TD[0] if pooling == "cls" else hidden_TD.mean(0))[:dimensions]
            rows.append(row_D / row_D.norm() if normalize else row_D)
        return torch.stack(rows).numpy()

    return vectors
