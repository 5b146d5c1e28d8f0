"""A whole run whose text and folder lie at S3 addresses: it goes on on another machine, and through faults that pass."""

# ruff: noqa: F811 - fixtures are imported, and named by tests

import contextlib
import json

import pytest
from s3 import SOON, aws, bucket  # noqa: F401
from tiny_run import Interrupted, interrupt_at, losses, same_weights, tiny_recipe, train

from modernbert import load
from modernbert.errors import CheckpointError
from modernbert.remote import Remote
from modernbert.train.loop import Hooks
from modernbert.train.run_store import RunStore


@pytest.fixture
def places(bucket, shards):
    """Addresses of the text and of a run, and the recipe that names the former."""
    text, out = bucket.at("shards"), bucket.at("run")
    Remote(text, patience=SOON).upload_folder(shards)
    return out, tiny_recipe(text), tiny_recipe(shards)


@pytest.fixture
def on_machine(monkeypatch, tmp_path):
    """Be on a machine of this name: a cache of its own."""
    from modernbert.text import shards as shards_module

    def go(name):
        monkeypatch.setenv("MODERNBERT_CACHE", str(tmp_path / f"cache-{name}"))
        monkeypatch.setattr(shards_module, "_here", {})

    return go


def test_a_run_at_an_address_goes_on_on_another_machine_as_if_nothing_had_been(places, on_machine, tmp_path, bucket):
    out, run, run_here = places
    whole = train(run_here, tmp_path / "whole")
    on_machine("first")
    with pytest.raises(Interrupted):
        train(run, out, interrupt_at(8))
    there = RunStore.open(out, patience=SOON).checkpoints()
    assert there[:2] == ["stable-00000000", "stable-00000003"]

    on_machine("second")
    bucket.fails("GET", 503, times=3)  # passes
    said = []
    newest = train(run, out, Hooks(on_remark=said.append))
    assert any("going on with" in text and "behind step" in text for text in said), said
    assert same_weights(newest, whole) and losses(newest.parent) == losses(tmp_path / "whole")
    there = RunStore.open(out, patience=SOON).checkpoints()
    assert there == [f"stable-{step:08d}" for step in (0, 3, 6, 9, 12)]
    about = json.loads(Remote(out, patience=SOON).read_bytes("run.json"))
    assert about["status"] == "finished" and about["recipe"]["data"]["path"].startswith("s3://")

    on_machine("third")
    assert load(out).config == load(newest).config  # the model alone, from the address of the run


def test_an_upload_that_fails_for_good_is_named_and_made_up_for(places, on_machine, bucket, monkeypatch):
    out, run, _ = places
    on_machine("first")
    monkeypatch.setattr("modernbert.remote.Patience", lambda: SOON)
    said = []

    def fail_from_step_2(row):
        if row["kind"] == "train" and row["step"] == 2:
            bucket.fails("stable-00000003", 403, times=10**6)

    train(run, out, Hooks(on_row=fail_from_step_2, on_remark=said.append))
    assert any("stable-00000003" in text and "s3://" in text for text in said), said
    there = RunStore.open(out, patience=SOON).checkpoints()
    assert "stable-00000003" not in there and there[-1] > "stable-00000003"
    bucket.recovers()


def test_a_bucket_that_is_not_there_is_refused_before_anything_is_trained(places, on_machine):
    _, run, _ = places
    on_machine("first")
    with pytest.raises(CheckpointError, match="s3://nowhere") as caught, contextlib.suppress(KeyError):
        train(run, "s3://nowhere/run")
    assert "\n" not in str(caught.value)
