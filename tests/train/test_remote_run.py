"""A whole run whose text and folder lie at S3 addresses: it goes on on another machine, and through faults that pass."""

# ruff: noqa: F811 - fixtures are imported, and named by tests

import contextlib
import json
from dataclasses import replace

import pytest
import tiny_run
from s3 import SOON, aws, bucket  # noqa: F401
from tiny_run import Interrupted, interrupt_at, losses, runtime, same_weights, tiny_recipe, train

from modernbert import load
from modernbert.errors import CheckpointError, ConfigError
from modernbert.ranks import Ranks
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

    with pytest.raises(CheckpointError, match=r"not all of .*stable-00000003.*no access"):
        train(run, out, Hooks(on_row=fail_from_step_2, on_remark=said.append))
    assert any("stable-00000003" in text and "s3://" in text for text in said), said
    there = RunStore.open(out, patience=SOON).checkpoints()
    assert "stable-00000003" not in there and there[-1] == "stable-00000012"
    bucket.recovers()
    train(run, out)
    assert "stable-00000003" in RunStore.open(out, patience=SOON).checkpoints()


def test_a_bucket_that_is_not_there_is_refused_before_anything_is_trained(places, on_machine):
    _, run, _ = places
    on_machine("first")
    with pytest.raises(CheckpointError, match="s3://nowhere") as caught, contextlib.suppress(KeyError):
        train(run, "s3://nowhere/run")
    assert "\n" not in str(caught.value)


@pytest.fixture
def memory(tmp_path, monkeypatch, on_machine):
    """A store in this process; `memory.refuses = text` refuses to take what has it in its name."""
    from fsspec.implementations.memory import MemoryFileSystem

    on_machine("first")
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(MemoryFileSystem, "refuses", None, raising=False)
    put_file = MemoryFileSystem.put_file

    def put(self, here, there, **options):
        if self.refuses is not None and self.refuses in there:
            raise PermissionError("refused")
        return put_file(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    return MemoryFileSystem


OUT = "memory://bucket/run"


def refusing(memory, what, from_step, said=None):
    """Hooks that have the store refuse something from a step on."""

    def on_row(row):
        if row["kind"] == "train" and row["step"] == from_step:
            memory.refuses = what

    return Hooks(on_row=on_row, on_remark=(said if said is not None else []).append)


def about_there():
    return json.loads(Remote(OUT).read_bytes("run.json"))


def test_a_run_whose_last_checkpoint_did_not_arrive_fails_and_the_same_command_puts_it_there(memory, shards):
    run = tiny_recipe(shards)
    with pytest.raises(
        CheckpointError, match=r"not all of .* is at memory://bucket/run, and the same command .*no access"
    ):
        train(run, OUT, refusing(memory, "stable-00000012", 10))
    assert RunStore.open(OUT).checkpoints()[-1] == "stable-00000009"
    memory.refuses = None
    said = []
    train(run, OUT, Hooks(on_remark=said.append))
    assert f"stable-00000012 was not at {OUT} and was put there" in said and "nothing to do" in said[-1]
    assert RunStore.open(OUT).checkpoints()[-1] == "stable-00000012"
    assert about_there()["status"] == "finished"
    assert Remote(OUT).read_bytes("metrics.jsonl") == (RunStore.open(OUT).working / "metrics.jsonl").read_bytes()


def test_the_address_says_finished_when_a_command_later_reaches_it(memory, shards):
    run = tiny_recipe(shards)
    with pytest.raises(CheckpointError, match="not all of"):
        train(run, OUT, refusing(memory, "run.json", 12))
    assert about_there()["status"] == "unfinished"
    memory.refuses = None
    train(run, OUT)
    assert about_there()["status"] == "finished"


def test_the_end_of_metrics_and_the_last_curve_arrive(memory, shards):
    def draw(row):
        if row["kind"] == "train":
            (RunStore.open(OUT).working / "loss.png").write_bytes(b"%d" % row["step"])

    train(tiny_recipe(shards), OUT, Hooks(on_row=draw))
    assert Remote(OUT).read_bytes("loss.png") == b"12"
    assert b'"save"' in Remote(OUT).read_bytes("metrics.jsonl").splitlines()[-1]


def test_nothing_is_deleted_there_while_new_checkpoints_do_not_arrive(memory, shards):
    run = tiny_recipe(shards, loop={"keep_every": 0, "keep_last": 1})
    said = []

    def on_row(row):
        if row["kind"] == "save" and row["step"] == 3:  # 6 and 9 do not arrive
            memory.refuses = "bucket/run/stable"
        if row["kind"] == "save" and row["step"] == 9:
            memory.refuses = None
            assert RunStore.open(OUT).checkpoints() == ["stable-00000000", "stable-00000003"]

    newest = train(run, OUT, Hooks(on_row=on_row, on_remark=said.append))
    assert sum("no access" in text for text in said) == 2
    assert RunStore.open(OUT).checkpoints() == ["stable-00000000", "stable-00000012"]
    assert sorted(path.name for path in newest.parent.glob("stable-*")) == ["stable-00000000", "stable-00000012"]


def test_an_error_is_told_and_not_what_the_address_then_says(memory, shards):
    def on_row(row):
        if row["kind"] == "train" and row["step"] == 5:
            memory.refuses = "run.json"
            raise Interrupted("the real one")

    with pytest.raises(Interrupted, match="the real one"):
        train(tiny_recipe(shards), OUT, Hooks(on_row=on_row))
    about = json.loads((RunStore.open(OUT).working / "run.json").read_text())
    assert about["sessions"][-1]["ended"] == "error: the real one"


def two_hosts(monkeypatch):
    """Be the first of two hosts; the other one has no say in this."""
    monkeypatch.setattr(tiny_run, "runtime", lambda _: replace(runtime(), ranks=Ranks(nodes=(0, 1))))


def test_a_checkpoint_that_hosts_have_in_parts_counts_only_once_it_is_sealed(memory, shards, monkeypatch):
    run = tiny_recipe(shards)
    with monkeypatch.context() as patch:
        two_hosts(patch)
        with pytest.raises(CheckpointError, match="lacks stable-00000012, of which each host has a part"):
            train(run, OUT, refusing(memory, "stable-00000012", 10))
        store = RunStore.open(OUT)
        assert store.parts() == ["stable-00000012"] and store.missing() == []
        assert store.checkpoints()[-1] == "stable-00000009" and about_there()["status"] == "unfinished"
    memory.refuses = None
    said = []
    train(run, OUT, Hooks(on_remark=said.append))
    assert any("was one host's part" in text for text in said), said
    assert any("behind step 9" in text for text in said), said
    assert store.checkpoints()[-1] == "stable-00000012" and store.parts() == []


def test_hosts_with_other_text_are_told_apart_before_anything_is_trained(shards, tmp_path, monkeypatch):
    first = Ranks.first
    monkeypatch.setattr(
        Ranks, "first", lambda self, value: first(self, {"text": "0" * 16} if is_told(value) else value)
    )

    def is_told(value):
        return isinstance(value, dict) and value.keys() == {"text"}

    with pytest.raises(ConfigError, match=r"is not the first rank's .* copy the same shards to every host"):
        train(tiny_recipe(shards), tmp_path / "run")
    assert list((tmp_path / "run").glob("stable-*")) == []


def test_a_state_at_an_address_is_refused_with_what_to_do(memory, shards, tmp_path):
    run = tiny_recipe(shards, phase={"checkpoint": OUT, "start": "weights+optimizer"})
    with pytest.raises(
        CheckpointError, match=r"memory://bucket/run only weights are fetched; copy the checkpoint here"
    ):
        train(run, tmp_path / "other")


def test_an_optimizer_of_which_parts_are_missing_is_refused(shards, tmp_path):
    run = tiny_recipe(shards)
    with pytest.raises(Interrupted):
        train(run, tmp_path / "run", interrupt_at(8))
    newest = sorted((tmp_path / "run").glob("stable-*"))[-1]
    (file,) = (newest / "state").glob("*.safetensors")
    file.unlink()
    with pytest.raises(
        CheckpointError, match=r"state cannot be read \(ValueError: parts of it are missing, with .* more"
    ):
        train(run, tmp_path / "run")
