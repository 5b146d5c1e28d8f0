"""What only a CUDA device can show. Skipped elsewhere."""

import pytest
import torch
from tiny_run import Interrupted, interrupt_at, losses, tiny_recipe

from modernbert import PackedBatch
from modernbert.model.attention import attend, plan_attention
from modernbert.pretraining import pretrain
from modernbert.runtime import Runtime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("half_window", [None, 64])
@pytest.mark.parametrize("lengths", [[5, 30, 100], [700, 1, 200]])
def test_blocked_attention_is_dense_attention_on_cuda(dtype, half_window, lengths):
    batch = PackedBatch.from_sequences([[1] * length for length in lengths]).to("cuda")
    q, k, v = (torch.randn(sum(lengths), 4, 64, device="cuda", dtype=dtype) for _ in range(3))
    found = attend(q, k, v, plan_attention(batch, half_window, dtype=dtype))
    expected = attend(q, k, v, plan_attention(batch, half_window, backend="reference"))
    torch.testing.assert_close(found, expected, atol=2e-2 if dtype != torch.float32 else 1e-4, rtol=2e-2)


def test_a_deterministic_run_on_cuda_goes_on_bit_for_bit(shards, tmp_path):
    run = tiny_recipe(shards, steps=12, loop={"deterministic": True})
    runtime = Runtime.detect(device="cuda")
    pretrain(run, tmp_path / "unbroken", runtime)
    with pytest.raises(Interrupted):
        pretrain(run, tmp_path / "out", runtime, interrupt_at(5))
    pretrain(run, tmp_path / "out", runtime)
    assert losses(tmp_path / "out") == losses(tmp_path / "unbroken")
