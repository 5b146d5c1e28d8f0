"""Several ranks train what one process trains: the same documents in the same order, losses that agree to rounding."""

import json
import math

import pytest
import ranks_at_work
import torch
from tiny_run import MICRO_BATCH_TOKENS, losses, recipe, rows, weights

from modernbert.train import loop
from modernbert.train.checkpoint import RunFolder
from modernbert.train.log import read_metrics

STEPS = 50
# A float32 of 5 nats is one to within 5e-7; that is how much losses differed at most, behind 50 steps too. At lr 3e-3
# one step was so steep that 2e-6 (DDP) and 6e-5 (FSDP2) came of it, and of one process whose sums are in another order.
ROUNDING = 5e-6
OF_WEIGHTS = 3e-6  # they differed by 3e-7


def steps(shards, strategy="ddp", **sections):
    """50 steps of 1, 2 and then 3 micro-batches: of two ranks the second has none in some passes."""
    phase = {"tokens_per_step": 3 * MICRO_BATCH_TOKENS, "tokens_per_step_start": MICRO_BATCH_TOKENS,
             "batch_warmup_tokens": "40%", "lr": 2e-3}  # fmt: skip
    loop = {"tokens": 122 * MICRO_BATCH_TOKENS, "checkpoint_tokens": "25%", "eval_tokens": "25%"}
    return recipe(shards, phase=phase, compute={"strategy": strategy}, loop=loop, **sections)


def job(folder, name, values, **faults):
    return {"out": str(folder / name), "recipe": values, **faults}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(shards, folder):
    """One process's run, which the others are to repeat."""
    ranks_at_work.at_work([job(folder, "one", steps(shards))])
    return folder / "one"


@pytest.fixture(scope="module")
def two(shards, folder):
    """What two ranks say of their runs, by the names of their folders."""
    ill = {"loop": {"tokens": 24 * MICRO_BATCH_TOKENS, "checkpoint_tokens": 5 * MICRO_BATCH_TOKENS}}
    jobs = [
        job(folder, "ddp", steps(shards)),
        job(folder, "fsdp", steps(shards, "fsdp")),
        job(folder, "elastic", steps(shards), stop=8),
        job(folder, "skip", recipe(shards, **ILL, guard={"on_nan": "skip"}, **ill), poison=10),
        job(folder, "rollback", recipe(shards, **ILL, guard={"on_nan": "rollback"}, **ill), poison=10),
        job(folder, "sharded", recipe(shards, **ILL, guard={"on_nan": "skip"}, compute={"strategy": "fsdp"}, **ill),
            poison=10),
        job(folder, "stop", recipe(shards, **ILL, **ill), poison=10),
    ]  # fmt: skip
    found = ranks_at_work.launch(jobs, 2)
    return {job["out"].rpartition("/")[2]: said for job, said in zip(jobs, found, strict=True)}


ILL = {"phase": {"tokens_per_step": 3 * MICRO_BATCH_TOKENS}}  # runs that meet a NaN in their fourth step
ILL_STEP, ILL_NUMBER = 4, 10


# --- the same run


def in_order(batches_of_ranks):
    """Every micro-batch that a run took in, in the order of the stream; by one rank each."""
    lines = sorted((line for rank in batches_of_ranks for line in rank), key=lambda line: line["number"])
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1)), "one rank each, none left out"
    return lines


def same_scores(out, other):
    return [
        (row["step"], row["targets"], pytest.approx(row["loss"], abs=ROUNDING), pytest.approx(row["accuracy"], abs=5e-3),
         [(at["from"], at["targets"], pytest.approx(at["loss"], abs=ROUNDING)) for at in row["by_position"]])
        for row in rows(other, "eval")
    ] == [
        (row["step"], row["targets"], row["loss"], row["accuracy"],
         [(at["from"], at["targets"], at["loss"]) for at in row["by_position"]])
        for row in rows(out, "eval")
    ]  # fmt: skip


def test_the_run_of_these_tests_has_dropout_idle_passes_and_a_growing_batch(one):
    row_of_step = rows(one)
    assert len(row_of_step) >= STEPS
    sizes = [round(row["step_tokens"] / row["filled"] / MICRO_BATCH_TOKENS) for row in row_of_step]
    assert sizes == sorted(sizes) and {1, 2, 3} == set(sizes)
    assert len(rows(one, "eval")) >= 4 and losses(one)[-1] < losses(one)[0] - 1
    assert json.loads((one / "run.json").read_text())["recipe"]["model"]["attention_dropout"] == 0.1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_lose_what_one_process_loses(one, two, folder, strategy):
    assert losses(folder / strategy) == pytest.approx(losses(one), abs=ROUNDING)
    for row, other in zip(rows(folder / strategy), rows(one), strict=True):
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=2e-5)
        assert [row[name] for name in ("step", "tokens", "lr", "targets", "mask_rate", "filled")] == [
            other[name] for name in ("step", "tokens", "lr", "targets", "mask_rate", "filled")
        ]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_read_the_documents_of_one_process_in_its_order(one, two, folder, strategy):
    expected, found = (ranks_at_work.batches_of(out, 2) for out in (one, folder / strategy))
    assert in_order(found) == in_order(expected)
    assert min(len(rank) for rank in found) > 0.4 * len(expected[0])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_learn_the_weights_of_one_process(one, two, folder, strategy):
    expected = weights(RunFolder(one).newest())
    found = weights(RunFolder(folder / strategy).newest())
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=0, atol=OF_WEIGHTS, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_score_held_out_text_as_one_process_does(one, two, folder, strategy):
    assert same_scores(folder / strategy, one)


def test_dropout_drawn_otherwise_would_be_seen(shards, one, folder, monkeypatch):
    whole = loop._seed_of
    monkeypatch.setattr(loop, "_seed_of", lambda run, state: whole(run, state) + 1)
    ranks_at_work.at_work([job(folder, "other", steps(shards), stop=20)])
    assert max(abs(a - b) for a, b in zip(losses(folder / "other"), losses(one), strict=False)) > 100 * ROUNDING


def test_every_rank_is_told_the_same_checkpoint(two, folder):
    for name in ("ddp", "fsdp"):
        assert [rank["checkpoint"] for rank in two[name]] == [RunFolder(folder / name).newest().name] * 2


def test_remarks_are_of_the_first_rank_and_say_which_places_are_idle(two):
    first, second = two["ddp"]
    assert second["remarks"] == []
    said = "phase stable: 3 micro-batches a step over 2 ranks leave 1 of 4 places idle"
    assert sum(remark.startswith(said) for remark in first["remarks"]) == 1
    assert not any("shards nothing in one process" in remark for remark in two["fsdp"][0]["remarks"])


# --- another number of ranks


def test_a_run_goes_on_on_one_process_and_then_on_four_ranks(shards, one, two, folder):
    out = folder / "elastic"
    alone = ranks_at_work.at_work([job(folder, "elastic", steps(shards), stop=16)])[0]
    assert "this run had ranks 2 and now has 1: losses will agree to rounding" in " ".join(alone["remarks"])
    four = ranks_at_work.launch([job(folder, "elastic", steps(shards, "fsdp"), stop=24)], 4)[0]
    said = " ".join(four[0]["remarks"])
    assert "this run had ranks 1 and now has 4" in said and "this run had strategy none and now has fsdp" in said
    assert [row["step"] for row in rows(out)] == list(range(1, 25))
    assert losses(out) == pytest.approx(losses(one)[:24], abs=ROUNDING)
    found = in_order(ranks_at_work.batches_of(out, 4))
    assert found == in_order(ranks_at_work.batches_of(one, 1))[: len(found)]
    for session in (two["elastic"], [alone], four):
        assert {rank["error"] for rank in session} == {"StoppedError"}
        assert [rank["is_told"] for rank in session] == [True] + [False] * (len(session) - 1)
        assert len({rank["text"] for rank in session}) == 1


# --- a step that goes wrong


def events(out):
    return [row for row in read_metrics(out) if row["kind"] == "event" and row["event"] == "nan"]


def poisoned(out):
    """The document at fault, as the rank describes it that read it: the second."""
    assert not any("poisoned" in line for line in ranks_at_work.batches_of(out, 2)[0])
    (line,) = (line for line in ranks_at_work.batches_of(out, 2)[1] if "poisoned" in line)
    return line["poisoned"]


@pytest.mark.parametrize("name", ["skip", "rollback", "sharded", "stop"])
def test_a_document_of_another_rank_is_named(two, folder, name):
    document = poisoned(folder / name)
    (event,) = events(folder / name)
    assert event["text"].startswith(f"step {ILL_STEP}: loss nan")
    assert f"{document['source']} #{document['document']} '{document['text']}' (loss nan)" in event["text"]
    assert event["text"].count("(loss nan)") == 1


@pytest.mark.parametrize("name", ["skip", "sharded"])
def test_a_step_that_is_skipped_is_skipped_by_all_ranks(two, folder, name):
    assert all("checkpoint" in rank for rank in two[name])
    found = {row["step"]: row["kind"] for row in read_metrics(folder / name) if row["kind"] in ("train", "skipped")}
    assert found == {step: "skipped" if step == ILL_STEP else "train" for step in range(1, 10)}
    assert all(math.isfinite(loss) for loss in losses(folder / name))
    in_order(ranks_at_work.batches_of(folder / name, 2))


def test_a_run_of_two_ranks_is_set_back_and_reads_on_behind_the_step_at_fault(two, folder):
    out = folder / "rollback"
    assert all("checkpoint" in rank for rank in two["rollback"])
    assert [row["step"] for row in rows(out)] == list(range(1, 10))
    assert "Went on from step 2 with the text behind it" in events(out)[0]["text"]
    lines = in_order(ranks_at_work.batches_of(out, 2))
    assert len(lines) == 3 * (ILL_STEP + 9 - 2), "four steps, and seven of nine from behind the second: nothing twice"


def test_a_run_that_stops_at_a_nan_says_so_once(two):
    first, second = two["stop"]
    assert first["error"] == second["error"] == "TrainingError" and first["text"] == second["text"]
    assert [first["is_told"], second["is_told"]] == [True, False]
    assert "stopped" in first["text"] and "guard.on_nan=skip" in first["text"] and "\n" not in first["text"]


def test_each_rank_keeps_its_part_of_the_batch_at_fault(two, folder):
    kept = [torch.load(folder / "skip" / name) for name in ("nan-00000004-rank0.pt", "nan-00000004-rank1.pt")]
    assert [len(batches) for batches in kept] == [1, 2]
    assert poisoned(folder / "skip") and all({"input_ids_T", "labels_T"} <= b.keys() for part in kept for b in part)


# --- under torchrun


def test_a_recipe_that_cannot_be_run_is_refused_in_one_line(shards, tmp_path):
    values = steps(shards)
    values["phases"][0]["lr"] = -1
    assert ranks_at_work.wait_for(ranks_at_work.torchrun(tmp_path, values)) == 1
    assert ranks_at_work.refusals(tmp_path) == ["phases.0.lr=-1: input should be greater than 0"]
