"""The parity check passes what is right and fails what is a token, a mask or a scale off; training speed is measured."""

import math

import pytest
import torch

from modernbert import PRESETS
from modernbert.evaluate import parity, steps
from modernbert.evaluate.parity import attention_parity, impossible, model_parity
from modernbert.evaluate.peers import shape_of
from modernbert.evaluate.steps import attention_speed, training_speed
from modernbert.model import attention
from modernbert.model.attention import BACKENDS, Chunks
from modernbert.runtime import Runtime

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def sides(rows):
    return [row[side] for row in rows for side in ("forward", "backward") if row[side]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_backend_that_can_run_passes(dtype):
    rows = attention_parity(CPU, dtype, mixes=[[1, 2, 3], [128, 1, 40]], half_windows=[None, 64, 1, 0])
    possible = {b for b in BACKENDS if impossible(b, CPU, dtype) is None}
    assert {row["backend"] for row in rows} == possible >= {"reference", "blocked"} and len(rows) == 8 * len(possible)
    assert all(side["passed"] for side in sides(rows))
    assert all(row["backward"] is not None for row in rows if row["backend"] != "onednn")


@pytest.mark.skipif(impossible("onednn", CPU, torch.float32) is not None, reason="PyTorch without oneDNN's operators")
def test_long_documents_are_compared_head_by_head_and_a_mistake_there_fails(monkeypatch):
    def verdicts():
        rows = attention_parity(CPU, torch.float32, mixes=[[300, 5]], half_windows=[None])
        return {row["backend"]: row["forward"]["passed"] for row in rows}

    assert all(verdicts().values())
    monkeypatch.setattr(attention, "_attend_by_head", lambda q, k, v: torch.zeros_like(q))
    assert verdicts() == {"reference": True, "blocked": True, "onednn": False}


def test_what_cannot_run_says_why():
    assert "CUDA" in impossible("varlen", CPU, torch.bfloat16)
    assert "float32" in impossible("onednn", CPU, torch.float16)
    assert impossible("blocked", CPU, torch.float16) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mistake", ["a window one wider", "no borders", "another scale", "NaN"])
def test_a_mistake_fails(dtype, mistake, monkeypatch):
    plan, attend = parity.plan_attention, parity.attend
    whole = parity.PackedBatch.from_sequences([[1] * 200])

    def wrong_plan(batch, half_window, *, backend, dtype):
        if backend == "blocked" and mistake == "a window one wider":
            half_window += 1
        if backend == "blocked" and mistake == "no borders":
            batch = whole
        return plan(batch, half_window, backend=backend, dtype=dtype)

    def wrong_attend(q, k, v, its_plan):
        of_blocked = isinstance(its_plan, Chunks)
        output = attend(q * 1.1 if of_blocked and mistake == "another scale" else q, k, v, its_plan)
        return output * float("nan") if of_blocked and mistake == "NaN" else output

    monkeypatch.setattr(parity, "plan_attention", wrong_plan)
    monkeypatch.setattr(parity, "attend", wrong_attend)
    rows = attention_parity(CPU, dtype, mixes=[[150, 50]], half_windows=[16])
    blocked = [row for row in rows if row["backend"] == "blocked"]
    assert not blocked[0]["forward"]["passed"]
    assert all(side["passed"] for side in sides(row for row in rows if row["backend"] == "reference"))


def test_a_comparison_that_does_not_fit_is_named(monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(parity, "_compare", too_large)
    rows = attention_parity(CPU, torch.float16, mixes=[[8192]], half_windows=[None])
    assert [row["backend"] for row in rows] == ["reference", "blocked"] and all("fit" in row["skipped"] for row in rows)


# Of two narrow layers a window that is one token off moves the output by 2e-3, which is less than bfloat16 rounds.
@pytest.mark.parametrize(("dtype", "wrong_window"), [*zip(DTYPES, [130, 20, 130], strict=True)], ids=str)
def test_a_whole_model_passes_and_one_with_another_window_does_not(dtype, wrong_window, monkeypatch):
    config = shape_of("tiny", quick=True)
    found = model_parity(config, CPU, dtype, [90, 1, 140])
    assert found["passed"] and 0 < found["ours"] < 0.01
    right = parity.peer
    monkeypatch.setattr(parity, "peer", lambda name, shape: right(name, shape.replace(local_attention=wrong_window)))
    assert not model_parity(config, CPU, dtype, [90, 1, 140])["passed"]


def test_training_steps_are_timed_and_learn():
    runtime = Runtime.detect(device="cpu", num_threads=1)
    config = shape_of("tiny", quick=True)
    found = training_speed(config, runtime, num_tokens=256, length=64, seconds=0.0)
    assert (found["tokens"], found["steps"], found["peak_memory_bytes"]) == (256, 3, None)
    assert found["low"] <= found["tokens_per_second"] <= found["high"] and found["mfu"] > 0
    assert found["first_loss"] == pytest.approx(math.log(512), abs=0.3) and found["last_loss"] < found["first_loss"]


def test_training_batches_are_masked_at_thirty_per_cent():
    batch = steps._masked_batch(512, 5, 100)
    hidden = batch.labels_T != -100
    assert hidden.sum() == 150 and batch.lengths() == [100] * 5
    assert torch.equal(batch.labels_T[hidden], batch.input_ids_T[hidden])


def test_a_training_step_that_does_not_fit_is_halved(monkeypatch):
    tried = []

    def once(config, runtime, num_tokens, length, seconds):
        tried.append(num_tokens)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(steps, "_training_speed", once)
    with pytest.raises(torch.OutOfMemoryError):
        training_speed(PRESETS["tiny"], None, num_tokens=4096, length=1024, seconds=0)
    assert tried == [4096, 2048, 1024]


def test_attention_alone_is_timed_on_each_backend():
    runtime = Runtime.detect(device="cpu", num_threads=1)
    rows = attention_speed(runtime, num_documents=2, length=40, num_heads=2, head_size=16, half_window=8, rounds=3)
    found = {(row["backend"], row["half_window"]) for row in rows}
    assert {("blocked", None), ("blocked", 8), ("onednn", None)} <= found
    assert all(row["low_s"] <= row["median_s"] <= row["high_s"] for row in rows)
