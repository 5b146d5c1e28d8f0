"""A tokenizer and a model small enough to be made anew in every session, and no network for any test."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported

import random

import pytest
import torch

from modernbert import MaskedLM, ModernBertConfig
from modernbert.text import special_ids, train_tokenizer

_WORDS = (
    *("river", "mountain", "the", "of", "and", "a", "in", "old", "new", "stone", "house", "green", "light", "walks"),
    *("sings", "under", "over", "between", "with", "quiet", "morning", "evening", "forest", "child", "letter", "reads"),
)


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices are small here: on two busy cores, threads waiting for each other took 96 s for what takes one 26 s."""
    torch.set_num_threads(1)


@pytest.fixture
def own_place(tmp_path, monkeypatch):
    """Commands run in an empty folder, and PyTorch's threads are given back."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """320 entries: 256 bytes, 43 merges, 5 special tokens and 16 spare ones."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(5, 25))).capitalize() + "." for _ in range(200)]
    return train_tokenizer(texts, vocab_size=320)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer):
    """Three layers: global, local, local; 128 positions."""
    special = special_ids(tiny_tokenizer)
    return ModernBertConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        local_attention=8,
        pad_token_id=special.pad,
        bos_token_id=special.cls,
        cls_token_id=special.cls,
        eos_token_id=special.sep,
        sep_token_id=special.sep,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer, tiny_config):
    """Untrained, in evaluation mode. Shared by the session: do not change its weights."""
    return MaskedLM(tiny_config, tiny_tokenizer).draw(0).eval()
