"""Long work in bounded memory: thousands of batches, hundreds of steps, a corpus that grows."""

import gc
import resource

import pytest
import tiny_run
from tiny_run import MICRO_BATCH_TOKENS, losses, tiny_recipe, train, train_batches

from modernbert.text import iter_documents, load_tokenizer
from modernbert.text.build import build_shards
from modernbert.train.checkpoint import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_run.build_tiny_shards(tmp_path_factory.mktemp("soak"))


def megabytes_at_most():
    """The most memory that this process has held, in MB."""
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def test_twenty_thousand_batches_take_no_more_memory_than_two_thousand(shards):
    stream = train_batches(tiny_recipe(shards)).stream()
    for _ in range(2_000):
        next(stream)
    before = megabytes_at_most()
    for _ in range(18_000):
        _, state = next(stream)
    assert megabytes_at_most() < before + 20
    assert len(state.pack.pending) < 1024 and sum(state.pack.drawn) > 100_000


def test_two_thousand_steps_take_no_more_memory_than_two_hundred_and_still_learn(shards, tmp_path):
    seldom = {"checkpoint_tokens": "50%", "eval_tokens": "50%"}
    train(tiny_recipe(shards, steps=200, loop=seldom), tmp_path / "short")
    before = megabytes_at_most()
    train(tiny_recipe(shards, steps=2_000, loop=seldom), tmp_path / "long")
    assert megabytes_at_most() < before + 50
    assert losses(tmp_path / "long")[-1] < losses(tmp_path / "long")[0] - 1
    progress = RunFolder.progress_of(RunFolder(tmp_path / "long").newest())
    assert progress.tokens >= 2_000 * MICRO_BATCH_TOKENS


def test_a_build_ten_times_as_large_takes_hardly_more_memory(shards, tmp_path):
    tokenizer = load_tokenizer(shards)
    for name, count in (("small", 40_000), ("large", 400_000)):
        source = tiny_run.write_corpus(tmp_path / f"{name}.txt", count=count)
        build_shards(source, tokenizer=tokenizer, out=tmp_path / name, documents="line")
        if name == "small":
            before = megabytes_at_most()
    # 100 bytes a document for the duplicates' hashes, and 8 for an open shard's index.
    assert megabytes_at_most() < before + 150
    assert sum(1 for _ in iter_documents(tmp_path / "large.txt", documents="line")) == 400_000
