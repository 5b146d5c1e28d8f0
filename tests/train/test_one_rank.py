"""FSDP2 at world size 1 against the plain path: nothing is cut, so nothing may differ."""

import os
import subprocess
import sys

import pytest
import tomli_w
import torch
from tiny_run import recipe, rows, same_weights

from modernbert.train.checkpoint import RunFolder


def launch(words, num_ranks=1):
    """`modernbert` under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "modernbert", *map(str, words)], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "device,precision",
    [
        ("cpu", "float32"),
        pytest.param("cuda", "bfloat16", marks=[
            pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]),
    ],
)  # fmt: skip
def test_fsdp2_at_world_size_1_is_the_plain_path_to_the_bit(shards, tmp_path, device, precision):
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe(shards, steps=8)))
    for out, strategy in (("plain", "ddp"), ("sharded", "fsdp")):
        words = ["pretrain", path, f"compute.strategy={strategy}", "--out", tmp_path / out]
        done = launch([*words, "--device", device, "--precision", precision, "--threads", "1"])
        assert done.returncode == 0, done.stderr
    plain, sharded = (rows(tmp_path / out) for out in ("plain", "sharded"))
    # On CUDA the plain path's optimizer is a Triton kernel, which takes no sharded tensors: then only the first step is the same.
    same_steps = len(plain) if device == "cpu" else 1
    assert [row["loss"] for row in plain[:same_steps]] == [row["loss"] for row in sharded[:same_steps]]
    assert [row["loss"] for row in plain] == pytest.approx([row["loss"] for row in sharded], rel=1e-2)
    if device == "cpu":
        assert same_weights(*(RunFolder(tmp_path / out).newest() for out in ("plain", "sharded")))
