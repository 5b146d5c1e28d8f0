"""The loop: what a loss is averaged over, what a row says, phases, evaluation, and the guard against NaN."""

import json
import math

import optimi
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import (
    MICRO_BATCH_TOKENS,
    all_finite,
    losses,
    optimizer_of,
    rows,
    runtime,
    tiny_recipe,
    train,
    train_batches,
)

from modernbert.batch import IGNORE, PackedBatch
from modernbert.errors import TrainingError
from modernbert.tasks import MaskedLM
from modernbert.tasks.base import TaskOutput
from modernbert.text.shards import Shards
from modernbert.text.tokenizer import load_tokenizer, special_ids
from modernbert.train import loop
from modernbert.train.log import read_metrics
from modernbert.train.loop import Hooks
from modernbert.train.schedule import learning_rate
from modernbert.train.score import evaluate_on
from modernbert.train.spread import alone


def checkpoints(out):
    return sorted(path for path in out.glob("*-????????") if path.is_dir())


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """A run of 60 steps with everything at its usual place."""
    out = tmp_path_factory.mktemp("run") / "out"
    run = tiny_recipe(shards, steps=60, phase={"lr": 1e-2}, loop={"checkpoint_tokens": "25%", "eval_tokens": "10%"})
    train(run, out)
    return out, run.resolve()


def untrained(shards, **changes):
    run = tiny_recipe(shards, **changes)
    task = MaskedLM(run.model.config(320, special_ids(load_tokenizer(shards))))
    return run, task.draw(0)


@pytest.fixture
def seen(monkeypatch):
    """The micro-batches of each step that is taken."""
    steps, whole = [], loop.accumulate
    monkeypatch.setattr(
        loop, "accumulate", lambda task, batches, *more: steps.append(batches) or whole(task, batches, *more)
    )
    return steps


def test_unequal_micro_batches_give_the_loss_and_the_gradients_of_one_big_batch(shards):
    run, task = untrained(shards)
    documents = [
        (batch.input_ids_T.tolist(), batch.labels_T.tolist())
        for batch, _ in zip(train_batches(run).once(), range(3), strict=False)
    ]
    # The first micro-batch has few targets, the second all of its own: a mean of means would be far off.
    documents[0][1][5:] = [IGNORE] * (len(documents[0][1]) - 5)
    documents[1] = (documents[1][0], list(documents[1][0]))
    parts = [PackedBatch.from_sequences([ids], [labels]) for ids, labels in documents]
    whole = PackedBatch.from_sequences([ids for ids, _ in documents], [labels for _, labels in documents])
    targets = [int((part.labels_T != IGNORE).sum()) for part in parts]
    assert 0 < 20 * targets[0] < targets[1]

    found = loop.accumulate(alone(task), parts, runtime())
    gradients = {name: p.grad.clone() for name, p in task.named_parameters()}
    task.zero_grad()
    expected = loop.accumulate(alone(task), [whole], runtime())
    assert found == pytest.approx(expected, rel=1e-5) and found["targets"] == sum(targets)
    for name, parameter in task.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7), name


def test_a_micro_batch_without_any_target_does_no_harm(shards):
    _, task = untrained(shards)
    ids = list(range(40, 60))
    empty = PackedBatch.from_sequences([ids], [[IGNORE] * 20])
    full = PackedBatch.from_sequences([ids], [ids])
    with_empty = loop.accumulate(alone(task), [empty, full], runtime())
    assert with_empty == pytest.approx(loop.accumulate(alone(task), [full], runtime()))
    nothing = loop.accumulate(alone(task), [empty], runtime())
    assert nothing["loss"] == 0 and all_finite(p.grad for p in task.parameters())


def test_a_run_with_gradient_accumulation_learns_as_one_without(shards, tmp_path):
    for name, micro in (("whole", 512), ("parts", 256)):
        phase = {"tokens_per_step": 512, "micro_batch_tokens": micro}
        train(tiny_recipe(shards, steps=40, phase=phase, model={"attention_dropout": 0.0}), tmp_path / name)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len(whole) >= 20 and abs(len(whole) - len(parts)) <= 1
    assert parts[-1] == pytest.approx(whole[-1], rel=0.1)


def test_each_row_says_what_readers_count_on(finished):
    out, run = finished
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert {"kind", "step", "phase", "tokens"} <= row.keys()
    train_rows, eval_rows = rows(out), rows(out, "eval")
    assert {row["kind"] for row in read_metrics(out)} - {"event"} == {"train", "eval", "save"}
    assert [row["step"] for row in train_rows] == list(range(1, len(train_rows) + 1))
    for row in train_rows:
        assert row["phase"] == "stable" and row["tokens_per_second"] > 0 and row["mfu"] > 0
        assert 0 <= row["data_wait"] <= 1 and 0 <= row["accuracy"] <= 1
        assert 0.9 < row["filled"] <= 1 and row["step_tokens"] == row["filled"] * MICRO_BATCH_TOKENS
        assert 0 < row["targets"] < row["step_tokens"] and 0 < row["gradient_norm"] < math.inf
    for before, after in zip([{"tokens": 0}, *train_rows], train_rows, strict=False):
        assert after["tokens"] - before["tokens"] == after["step_tokens"]
    assert eval_rows[0]["step"] == 0 and eval_rows[-1]["step"] == train_rows[-1]["step"]
    assert len(eval_rows) == 11
    about = json.loads((out / "run.json").read_text())
    assert about["status"] == "finished" and about["recipe"] == json.loads(run.model_dump_json())


def test_the_rate_in_each_row_follows_the_schedule(finished):
    out, run = finished
    phase, budget = run.phases[0], run.loop.tokens
    for row in rows(out):
        expected = learning_rate(
            min(row["tokens"], budget),
            peak=1e-2,
            total=budget,
            warmup=phase.warmup_tokens,
            decay=phase.decay_tokens,
            decay_to=phase.decay_to,
        )
        assert row["lr"] == pytest.approx(expected, rel=1e-12)
    rates = [row["lr"] for row in rows(out)]
    assert rates[0] < 1e-2 == max(rates) and rates[-1] == pytest.approx(1e-2 * phase.decay_to)


def test_the_budget_is_the_runs_total_to_within_one_step(finished):
    out, run = finished
    assert 0 <= rows(out)[-1]["tokens"] - run.loop.tokens < run.phases[0].tokens_per_step
    assert rows(out)[-2]["tokens"] < run.loop.tokens


def test_the_loss_falls_and_held_out_text_is_understood_too(finished):
    out, _ = finished
    first, last = rows(out, "eval")[0], rows(out, "eval")[-1]
    assert first["loss"] == pytest.approx(math.log(320), abs=0.1)
    assert last["loss"] < first["loss"] - 2
    assert last["accuracy"] > 0.15 > 0.05 > first["accuracy"]
    assert losses(out)[-1] < losses(out)[0] - 2


def test_checkpoints_stand_at_the_start_at_their_share_and_at_the_end(finished):
    out, _ = finished
    steps = [int(path.name[-8:]) for path in checkpoints(out)]
    last = rows(out)[-1]["step"]
    assert len(steps) == 5 and steps[0] == 0 and steps[-1] == last
    assert steps[1:-1] == pytest.approx([last / 4, last / 2, last * 3 / 4], abs=1.5)


def test_phases_run_in_order_each_with_its_own_lengths_rate_and_masks(shards, tmp_path, seen):
    phases = [
        {"name": "first", "tokens": "50%", "sequence_length": 32, "lr": 1e-3},
        {"name": "second", "tokens": "25%", "sequence_length": 64, "micro_batch_tokens": 512, "tokens_per_step": 512,
         "lr": 5e-4, "warmup_tokens": 0},
        {"name": "third", "tokens": "25%", "sequence_length": 16, "lr": 2e-4, "mask_rate": 0.05},
    ]  # fmt: skip
    run = tiny_recipe(shards, steps=32, phases=phases)
    train(run, tmp_path / "out")
    found = rows(tmp_path / "out")
    names = [row["phase"] for row in found]
    assert names == sorted(names, key=["first", "second", "third"].index) and len(set(names)) == 3
    for phase in run.phases:
        mine = [(row, batches) for row, batches in zip(found, seen, strict=True) if row["phase"] == phase.name]
        assert max(batch.max_seqlen for _, batches in mine for batch in batches) <= phase.sequence_length
        assert max(batch.max_seqlen for _, batches in mine for batch in batches) > phase.sequence_length / 2
        assert max(row["lr"] for row, _ in mine) == phase.lr
        used = sum(row["step_tokens"] for row, _ in mine)
        assert 0 <= used - run.phase_tokens(phase) < phase.tokens_per_step
        masked = sum(row["targets"] for row, _ in mine) / used
        assert masked == pytest.approx(phase.mask_rate * 0.9, rel=0.25)
        assert any(path.name.startswith(phase.name) for path in checkpoints(tmp_path / "out"))


def test_a_phase_goes_on_with_text_that_the_phase_before_it_did_not_show(shards, tmp_path, seen):
    phases = [{"name": "first", "tokens": "50%"}, {"name": "second", "tokens": "50%"}]
    train(tiny_recipe(shards, steps=10, phases=phases), tmp_path / "out")
    half = len(seen) // 2
    first, second = (
        {
            tuple(ids.tolist())
            for batches in part
            for batch in batches
            for ids in batch.input_ids_T.split(batch.lengths())
        }
        for part in (seen[:half], seen[half:])
    )
    assert len(first & second) < 0.1 * len(first)  # short sentences may be alike; not a tenth of them


def test_evaluation_is_at_its_own_masking_rate(shards, tmp_path):
    held_out = Shards.open(shards, split="heldout").num_tokens
    for rate in (0.15, 0.6):
        run = tiny_recipe(shards, steps=1, loop={"eval_mask_rate": rate, "eval_size_tokens": 10**6})
        train(run, tmp_path / str(rate))
        for row in rows(tmp_path / str(rate), "eval"):
            assert abs(row["targets"] / held_out - rate) < 4 * math.sqrt(rate * (1 - rate) / held_out)


def test_evaluation_does_not_disturb_training(shards, tmp_path):
    for name, every in (("always", 1), ("never", "100%")):
        train(tiny_recipe(shards, loop={"eval_tokens": every}), tmp_path / name)
    assert len(rows(tmp_path / "always", "eval")) > len(rows(tmp_path / "never", "eval")) == 2
    assert losses(tmp_path / "always") == losses(tmp_path / "never")


def test_saving_does_not_disturb_training(shards, tmp_path):
    for name, every in (("always", 1), ("never", "100%")):
        train(tiny_recipe(shards, loop={"checkpoint_tokens": every}), tmp_path / name)
    assert len(checkpoints(tmp_path / "always")) > len(checkpoints(tmp_path / "never")) == 2
    assert losses(tmp_path / "always") == losses(tmp_path / "never")


def test_evaluation_leaves_the_mode_as_it_was_and_is_without_dropout(shards):
    run, task = untrained(shards)
    noisy = MaskedLM(task.config, out_dropout=0.5).draw(0)
    batches = list(train_batches(run).once())
    for training in (True, False):
        noisy.train(training)
        found = evaluate_on(noisy, batches, runtime(), 10**9)
        assert noisy.training == training
    assert found == evaluate_on(task, batches, runtime(), 10**9)
    short = evaluate_on(task, batches, runtime(), 1)
    assert short["targets"] == int((batches[0].labels_T != IGNORE).sum())


def test_evaluation_is_averaged_over_targets_and_not_over_batches(shards):
    run, task = untrained(shards)
    batches = [PackedBatch.from_sequences([[5, 6, 7]], [[5, IGNORE, IGNORE]]), *list(train_batches(run).once())[:1]]
    task.eval()
    with torch.inference_mode():
        outputs = [task(batch) for batch in batches]
    expected = sum(o.loss_sum.item() for o in outputs) / sum(o.num_targets for o in outputs)
    assert evaluate_on(task, batches, runtime(), 10**9)["loss"] == pytest.approx(expected)


def test_seed_decides_the_run(shards, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_recipe(shards, steps=3, seed=seed), tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_the_number_of_workers_changes_nothing(shards, tmp_path):
    for workers in (0, 2):
        train(tiny_recipe(shards, steps=6, data={"workers": workers}), tmp_path / str(workers))
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def refused_at(step, run, out, hooks=None):
    """Train until the guard stops the run, and see that everything it promises is there."""
    with pytest.raises(TrainingError, match=f"^step {step}: .*finite.*last checkpoint is stable-") as caught:
        train(run, out, hooks)
    kept = out / f"nan-{step:08d}.pt"
    assert str(kept) in str(caught.value) and "\n" not in str(caught.value)
    batches = torch.load(kept, weights_only=True)
    assert {"input_ids_T", "cu_seqlens", "labels_T"} <= batches[0].keys()
    assert [row["step"] for row in rows(out)] == list(range(1, step))
    assert json.loads((out / "run.json").read_text())["status"] == "unfinished"
    for path in checkpoints(out):
        assert all_finite(load_file(path / "model.safetensors").values()), path
        assert all_finite(optimizer_of(path)[0].values()), path
    return batches


def test_a_weight_that_is_not_a_number_stops_the_run(shards, tmp_path):
    def poison(task, _path, progress):
        if progress.step == 3:
            with torch.no_grad():
                task.head.dense.weight[0, 0] = float("nan")

    refused_at(4, tiny_recipe(shards), tmp_path / "out", Hooks(on_checkpoint=poison))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_batch_that_gives_no_number_stops_the_run_before_it_does_harm(shards, tmp_path, monkeypatch, poison):
    run, whole, calls = tiny_recipe(shards, loop={"eval_tokens": "100%"}), MaskedLM.forward, []

    def forward(self, batch):
        output = whole(self, batch)
        if self.training:
            calls.append(batch)
        return (
            TaskOutput(output.loss_sum * poison, output.num_targets, output.metric_sums) if len(calls) == 5 else output
        )

    with monkeypatch.context() as patched:
        patched.setattr(MaskedLM, "forward", forward)
        kept = refused_at(5, run, tmp_path / "out")
    assert len(kept) == 1 and torch.equal(kept[0]["input_ids_T"], calls[-1].input_ids_T)
    assert torch.equal(kept[0]["labels_T"], calls[-1].labels_T)

    # With the cause gone, the same run goes on as if nothing had been.
    train(run, tmp_path / "out")
    train(run, tmp_path / "unbroken")
    assert losses(tmp_path / "out") == losses(tmp_path / "unbroken")


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(shards, tmp_path):
    def poison(task, _path, progress):
        if progress.step == 3:
            task.head.dense.weight.register_hook(lambda gradient: gradient * float("inf"))

    refused_at(4, tiny_recipe(shards), tmp_path / "out", Hooks(on_checkpoint=poison))


def test_an_update_that_makes_a_weight_infinite_reaches_no_checkpoint(shards, tmp_path, monkeypatch):
    whole, calls = optimi.StableAdamW.step, []

    def step(self):
        whole(self)
        calls.append(self)
        if len(calls) == 3:  # the step behind which a checkpoint is due
            with torch.no_grad():
                self.param_groups[0]["params"][0][0, 0] = float("inf")

    monkeypatch.setattr(optimi.StableAdamW, "step", step)
    with pytest.raises(TrainingError):
        train(tiny_recipe(shards), tmp_path / "out")
    for path in checkpoints(tmp_path / "out"):
        assert all_finite(load_file(path / "model.safetensors").values()), path
