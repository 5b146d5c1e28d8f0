"""Checkpoints at an address: whole or not there, whatever is cut off, and a run that goes on elsewhere."""

# ruff: noqa: F811 - fixtures are imported, and named by tests

import json
import os
from pathlib import Path

import pytest
import torch
from s3 import AT_ONCE, SOON, aws, bucket, within  # noqa: F401

from modernbert import remote as remote_module
from modernbert.disk import try_lock
from modernbert.errors import CheckpointError, TrainingError
from modernbert.model import hub
from modernbert.model.stored import fetch_model
from modernbert.train.checkpoint import read_about
from modernbert.train.run_store import PART, RunStore

ADDRESS = "memory://bucket/run"


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty store in this process, one file at a time, and an empty cache."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("MODERNBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(remote_module, "_AT_ONCE", 1)
    return MemoryFileSystem


@pytest.fixture
def other_machine(monkeypatch, tmp_path):
    """Go to another machine and back: another cache."""

    def go(name):
        monkeypatch.setenv("MODERNBERT_CACHE", str(tmp_path / f"cache-{name}"))

    return go


def write_checkpoint(store, step, mark=b"x", phase="stable"):
    """A folder as a save leaves it, with contents of its own."""
    folder = store.working / f"{phase}-{step:08d}"
    for name in ("config.json", "model.safetensors", "run.json", "state/optimizer.pt", "state/.metadata"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name} {step:08d} ".encode() + mark)
    return folder


def write_about(store, *sessions, rows=1):
    """run.json of so many sessions, and metrics."""
    about = {"recipe": {}, "sessions": [{"started_at": at, "from_step": 0, "from_tokens": 0} for at in sessions]}
    store.working.mkdir(parents=True, exist_ok=True)
    (store.working / "run.json").write_text(json.dumps(about))
    (store.working / "metrics.jsonl").write_text("{}\n" * rows)
    for name in ("run.json", "metrics.jsonl"):
        store.push_file(store.working / name)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def hub_like(store):
    return sorted(path for path in store.working.iterdir() if path.is_dir() and not path.name.startswith("."))


def run_with(*steps, sessions=("one",), address=ADDRESS):
    store = RunStore.open(address, patience=SOON)
    assert store.pull() == []
    write_about(store, *sessions)
    for step in steps:
        store.save(write_checkpoint(store, step))
    return store


def test_a_run_goes_on_elsewhere_from_its_newest_checkpoint(memory, other_machine):
    store = run_with(10, 20)
    expected = contents(store.working / "stable-00000020")
    assert store.checkpoints() == ["stable-00000010", "stable-00000020"]
    other_machine("b")
    there = RunStore.open(ADDRESS)
    assert there.working != store.working
    assert there.pull() == []
    assert contents(there.working / "stable-00000020") == expected
    assert not (there.working / "stable-00000010").exists(), "the newest is enough"
    assert json.loads((there.working / "run.json").read_text())["sessions"][0]["started_at"] == "one"
    assert [path.name for path in there.working.iterdir() if path.name.startswith(".")] == [".lock"]


def test_checkpoints_are_in_the_order_of_their_steps(memory):
    store = run_with(100_000_000, 9)
    store.save(write_checkpoint(store, 50, phase="anneal"))
    assert store.checkpoints() == ["stable-00000009", "anneal-00000050", "stable-100000000"]


def test_a_checkpoint_that_is_here_and_agrees_is_not_fetched(memory, monkeypatch):
    store = run_with(10)
    before = os.stat(store.working / "stable-00000010" / "model.safetensors").st_ino
    assert RunStore.open(ADDRESS).pull() == []
    assert os.stat(store.working / "stable-00000010" / "model.safetensors").st_ino == before


@pytest.mark.parametrize("damage", [b"short", None])
def test_a_checkpoint_that_differs_here_is_fetched_again(memory, damage):
    store = run_with(10)
    path = store.working / "stable-00000010" / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(damage or bytes(len(good)))
    RunStore.open(ADDRESS).pull()
    assert path.read_bytes() == good


class Cut(Exception):
    """What ends a process between two writes."""


def cutting(memory, monkeypatch, after):
    """The store takes so many changes more, then the process is cut off."""
    left = [after]

    def limited(method):
        def call(self, *args, **options):
            if left[0] == 0:
                raise Cut
            left[0] -= 1
            return method(self, *args, **options)

        return call

    for name in ("put_file", "pipe_file", "rm_file"):
        monkeypatch.setattr(memory, name, limited(getattr(memory, name)))
    return left


@pytest.mark.parametrize("change", ["put", "put again", "remove"])
def test_wherever_it_is_cut_off_a_whole_checkpoint_is_found(memory, other_machine, change):
    cut_points = 0
    for after in range(100):
        memory.store.clear()
        other_machine(f"{change}-{after}-a")
        store = run_with(10)
        if change != "put":
            store.save(write_checkpoint(store, 20, b"old"))
        with pytest.MonkeyPatch.context() as patch:
            left = cutting(memory, patch, after)
            try:
                store.remove("stable-00000020") if change == "remove" else store.save(
                    write_checkpoint(store, 20, b"new")
                )
                done = True
            except CheckpointError as error:
                assert "Cut" in str(error)
                done = False
        other_machine(f"{change}-{after}-b")
        there = RunStore.open(ADDRESS)
        there.pull()
        (found,) = hub.checkpoints_in(there.working)
        reached = contents(found)["model.safetensors"].decode()
        wanted = {
            "put": {"00000010 x", "00000020 new"},
            "put again": {"00000010 x", "00000020 old", "00000020 new"},
            "remove": {"00000010 x", "00000020 old"},
        }[change]
        assert reached.removeprefix("model.safetensors ") in wanted
        marks = {raw.split()[-1] for name, raw in contents(found).items()}
        assert len(marks) == 1, "files of two saves are never mixed"
        assert there.checkpoints()[-1] == found.name
        cut_points += 1
        if done:
            assert left[0] >= 0
            break
    assert done
    assert cut_points > 5


def test_what_a_cut_left_there_is_said_and_cleared_away(memory, other_machine):
    store = run_with(10)
    store.push(write_checkpoint(store, 20))
    other_machine("b")
    there = RunStore.open(ADDRESS)
    assert there.pull(host=1) == [], "only the first host clears away"
    assert any("stable-00000020" in name for name in memory.store)
    assert there.pull() == [f"{ADDRESS}/stable-00000020 was not whole (its upload was cut off), so it was cleared away"]
    assert not any("stable-00000020" in name for name in memory.store)


def test_what_is_not_a_runs_is_left_alone(memory, other_machine):
    store = run_with(10)
    for name in ("notes-2/a.txt", "export-1/config.json", "readme.md"):
        store.remote.write_bytes(name, b"mine")
    other_machine("b")
    assert RunStore.open(ADDRESS).pull() == []
    assert {"notes-2/a.txt", "export-1/config.json", "readme.md"} <= set(store.remote.files())


def test_a_checkpoint_whose_upload_was_cut_off_stays_here_and_is_put_there_again(memory):
    store = run_with(10)
    local = write_checkpoint(store, 20)
    store.push(local)
    again = RunStore.open(ADDRESS)
    cleared, going_on = again.pull()
    assert "cleared away" in cleared
    assert f"is at stable-00000010, and {again.working} is at stable-00000020: going on from there" in going_on
    assert again.missing() == [local]
    again.save(local)
    assert (again.missing(), again.checkpoints()[-1]) == ([], "stable-00000020")


def test_what_one_host_did_alone_is_gone_on_from_by_several(memory, other_machine):
    store = run_with(10)
    expected = contents(write_checkpoint(store, 20))
    assert RunStore.open(ADDRESS).pull(host=0, num_hosts=2) == [
        f"stable-00000020 was not at {ADDRESS} and was put there"
    ]
    other_machine("b")
    there = RunStore.open(ADDRESS)
    assert there.pull(host=1, num_hosts=2) == []
    assert contents(there.working / "stable-00000020") == expected


def test_of_several_hosts_only_the_first_may_be_ahead_of_the_address(memory):
    store = run_with(10, 20)
    store.remove("stable-00000010")
    assert "several hosts go on from what is there, so they were" in store.pull(host=1, num_hosts=2)[0]
    assert [path.name for path in hub_like(store)] == ["stable-00000020"]
    newer = write_checkpoint(store, 30)
    with pytest.raises(CheckpointError, match=r"stable-00000030 is newer than all .* on this host alone first"):
        store.pull(host=1, num_hosts=2)
    assert newer.exists()


def test_a_part_of_a_checkpoint_of_several_hosts_is_never_taken_for_all_of_it(memory):
    store = run_with(1000)
    part = write_checkpoint(store, 2000)
    (part / PART).touch()
    assert store.missing() == [] and store.parts() == ["stable-00002000"]
    (remark,) = RunStore.open(ADDRESS).pull()
    assert "stable-00002000 was one host's part of a checkpoint of several, so it was cleared away" in remark
    assert not part.exists() and store.checkpoints() == ["stable-00001000"]


def test_a_part_that_became_whole_there_before_its_host_could_note_it_is_kept(memory):
    store = run_with(1000)
    (store.working / "stable-00001000" / PART).touch()
    assert store.pull() == []
    assert store.parts() == [] and (store.working / "stable-00001000" / "config.json").exists()


def test_a_folder_that_is_no_runs_is_refused_and_nothing_of_it_is_deleted(memory):
    store = RunStore.open("memory://bucket")
    store.remote.write_bytes("backup-20240131/db.dump", b"mine")
    with pytest.raises(
        CheckpointError, match=r"memory://bucket is not empty and holds no run \(no run\.json\); choose"
    ):
        store.pull()
    assert store.remote.files() == {"backup-20240131/db.dump": 4}


def test_a_sealed_checkpoint_with_an_edited_file_is_passed_over_and_not_deleted(memory, other_machine):
    store = run_with(10, 20)
    store.remote.write_bytes("stable-00000020/config.json", b"edited by hand, and longer")
    other_machine("b")
    (remark,) = RunStore.open(ADDRESS).pull()
    assert "stable-00000020 is not as its manifest.json says, so it does not count; put its files back" in remark
    assert "stable-00000020/model.safetensors" in store.remote.files()
    assert store.missing() == [store.working / "stable-00000020"], "the host that has it puts it there again"
    store.save_missing()
    assert store.checkpoints() == ["stable-00000010", "stable-00000020"]


def test_an_older_checkpoint_that_never_arrived_is_missing_too(memory):
    store = run_with(10)
    older = write_checkpoint(store, 15, phase="anneal")
    store.save(write_checkpoint(store, 20))
    assert store.missing() == [older]
    assert store.save_missing() == [f"anneal-00000015 was not at {ADDRESS} and was put there"]


def test_what_a_pull_of_an_earlier_version_left_is_not_mixed_in(memory, other_machine):
    store = run_with(10)
    other_machine("b")
    there = RunStore.open(ADDRESS)
    stale = there.working / ".stable-00000010.unfinished-pull" / "state" / "shard-00009.safetensors"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of another save")
    there.pull()
    assert contents(there.working / "stable-00000010") == contents(store.working / "stable-00000010")


def test_a_run_that_lost_its_run_json_there_gets_it_before_its_checkpoints(memory):
    store = run_with(10)
    memory.store.clear()
    store.pull()
    store.save_missing()
    assert store.pull() == [] and store.checkpoints() == ["stable-00000010"]


def test_what_reads_run_folders_names_the_working_folder_of_an_address(memory):
    store = run_with(10)
    with pytest.raises(CheckpointError) as error:
        read_about(Path(ADDRESS))
    assert str(store.working) in str(error.value)


def test_a_run_that_went_on_elsewhere_is_not_mixed_with_what_stayed_here(memory, other_machine):
    other_machine("a")
    store = run_with(10)
    branch = write_checkpoint(store, 30)  # never put there
    other_machine("b")
    there = RunStore.open(ADDRESS)
    there.pull()
    write_about(there, "one", "two", rows=5)
    there.save(write_checkpoint(there, 20, b"other"))
    other_machine("a")
    (remark,) = RunStore.open(ADDRESS).pull()
    assert "held stable-00000030" in remark and "went on elsewhere since" in remark
    assert not branch.exists()
    assert hub.checkpoints_in(store.working)[-1].name == "stable-00000020"
    assert (store.working / "metrics.jsonl").read_text() == "{}\n" * 5


def test_metrics_that_are_further_there_replace_those_here(memory, other_machine):
    other_machine("a")
    store = run_with(10)
    other_machine("b")
    RunStore.open(ADDRESS).pull()
    other_machine("a")
    write_about(store, "one", rows=9)
    store.save(write_checkpoint(store, 20))
    other_machine("b")
    there = RunStore.open(ADDRESS)
    there.pull()
    assert (there.working / "metrics.jsonl").read_text() == "{}\n" * 9


def test_metrics_that_are_further_here_stay(memory):
    store = run_with(10)
    (store.working / "metrics.jsonl").write_text("{}\n" * 9)
    RunStore.open(ADDRESS).pull()
    assert (store.working / "metrics.jsonl").read_text() == "{}\n" * 9


def test_an_address_that_was_emptied_is_told(memory):
    store = run_with(10)
    memory.store.clear()
    (remark,) = RunStore.open(ADDRESS).pull()
    assert remark.startswith(f"{ADDRESS} holds no whole checkpoint, and {store.working} is at stable-00000010")


def test_a_part_that_never_came_is_not_sealed(memory):
    store = run_with()
    checkpoint = write_checkpoint(store, 10)
    mine = store.push(checkpoint, ["config.json", "state/optimizer.pt"])
    assert sorted(store.remote.at("stable-00000010").files()) == ["config.json", "state/optimizer.pt"]
    theirs = store.push(checkpoint, ["model.safetensors", "run.json"])
    store.remote.remove(["stable-00000010/run.json"])
    with pytest.raises(
        CheckpointError, match=r"stable-00000010/run\.json is not there as it was put, so that checkpoint"
    ):
        store.seal("stable-00000010", mine + theirs)
    assert store.checkpoints() == []


def test_a_checkpoint_of_two_hosts_is_whole(memory, other_machine):
    store = run_with()
    checkpoint = write_checkpoint(store, 10)
    first = store.push(checkpoint, ["config.json", "model.safetensors", "run.json"])
    second = store.push(checkpoint, ["state/optimizer.pt", "state/.metadata"])
    store.seal("stable-00000010", first + second)
    other_machine("b")
    there = RunStore.open(ADDRESS)
    there.pull(host=1, num_hosts=2)
    assert contents(there.working / "stable-00000010") == contents(checkpoint)


def test_a_removed_checkpoint_is_gone_and_removing_it_twice_is_no_error(memory):
    store = run_with(10, 20)
    store.remove("stable-00000010")
    store.remove("stable-00000010")
    assert store.checkpoints() == ["stable-00000020"]
    assert not any("stable-00000010" in name for name in memory.store)


def test_a_checkpoint_loses_its_manifest_before_anything_else(memory, monkeypatch):
    store, removed, rm_file = run_with(10), [], memory.rm_file
    monkeypatch.setattr(memory, "rm_file", lambda self, path: (removed.append(path), rm_file(self, path)))
    store.remove("stable-00000010")
    assert removed[0] == "/bucket/run/stable-00000010/manifest.json"
    assert len(removed) == 6


def test_a_working_folder_in_use_is_left_alone(memory):
    store = run_with(10)
    with try_lock(store.working / ".lock"), pytest.raises(TrainingError, match="is in use by another process"):
        RunStore.open(ADDRESS).pull()


def test_a_damaged_manifest_is_named(memory):
    store = run_with(10, 20)
    store.remote.write_bytes("stable-00000020/manifest.json", b"{")
    with pytest.raises(
        CheckpointError, match=r"stable-00000020/manifest\.json is no checkpoint's .*delete that folder there"
    ):
        store.pull()


def test_a_checkpoint_that_is_gone_here_is_named(memory):
    store = run_with()
    checkpoint = write_checkpoint(store, 10)
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.push(checkpoint, ["none"])


def test_a_model_at_an_address_is_that_of_the_newest_checkpoint(memory, tiny_model, tiny_config):
    store = run_with(10)
    folder = store.working / "stable-00000020"
    write_checkpoint(store, 20)
    hub.write_weights(folder, tiny_model.state_dict(), tiny_config, architecture="ModernBertForMaskedLM")
    store.save(folder)
    for address in (ADDRESS, f"{ADDRESS}/stable-00000020", f"{ADDRESS}/"):
        found = fetch_model(address)
        assert hub.read_config(found) == tiny_config
        assert torch.equal(*(hub.read_tensors(f)["head.norm.weight"] for f in (found, folder)))
        assert not (found / "state").exists(), "a model needs no optimizer"
    with pytest.raises(CheckpointError, match="memory://bucket/none holds no whole checkpoint"):
        fetch_model("memory://bucket/none")


# Against a server.


def test_a_run_goes_on_from_s3_through_faults_that_pass(bucket, other_machine):
    address = bucket.at("run")
    store = run_with(10, address=address)
    bucket.fails("PUT /" + bucket.name + "/run/stable-00000020/state", 503)
    bucket.fails("PUT /" + bucket.name + "/run/stable-00000020/model", "hang")
    local = write_checkpoint(store, 20, b"x" * 100_000)
    within(15, store.save, local)
    assert store.checkpoints() == ["stable-00000010", "stable-00000020"]
    store.push(write_checkpoint(store, 30))
    other_machine("b")
    bucket.fails("GET /" + bucket.name + "/run/stable-00000020/model", "cut")
    there = RunStore.open(address, patience=SOON)
    assert "stable-00000030 was not whole" in there.pull()[0]
    assert contents(there.working / "stable-00000020") == contents(local)
    assert there.checkpoints() == ["stable-00000010", "stable-00000020"]
    assert bucket.unasked() == []
    there.remove("stable-00000010")
    assert there.checkpoints() == ["stable-00000020"]


def test_a_store_that_stays_away_is_named_and_the_checkpoint_before_counts(bucket, other_machine):
    address = bucket.at("run")
    store = run_with(10, address=address)
    slow = RunStore.open(address, patience=AT_ONCE)
    bucket.fails("PUT", 503, times=10_000)
    with pytest.raises(CheckpointError, match=r"no answer for 0\.8 s \(.*\); check the network"):
        within(8, slow.save, write_checkpoint(store, 20))
    bucket.recovers()
    assert store.checkpoints() == ["stable-00000010"]


def test_a_bucket_that_does_not_exist_ends_a_run_before_it_begins(bucket):
    address = f"s3://{bucket.name}-not/run"
    with pytest.raises(CheckpointError, match=r"not found \(.*\); check the address"):
        within(5, RunStore.open(address, patience=SOON).pull)
