"""Shards at an address: a copy here, made once, the same as what was put there."""

# ruff: noqa: F811 - fixtures are imported, and named by tests

import json

import numpy as np
import pytest
import tiny_run
from s3 import SOON, aws, bucket, within  # noqa: F401

from modernbert.errors import DataError
from modernbert.remote import Remote
from modernbert.runs import inspect_data
from modernbert.text import load_tokenizer, shards
from modernbert.text.shards import Shards, local_folder, read_manifest


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tiny_run.build_tiny_shards(tmp_path_factory.mktemp("built"))


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """What a process remembers of addresses."""
    memory = {}
    monkeypatch.setattr(shards, "_here", memory)
    return memory


@pytest.fixture
def there(built, bucket):
    Remote(bucket.at("shards"), patience=SOON).upload_folder(built)
    bucket.forget()
    return bucket.at("shards")


@pytest.fixture
def in_memory(built, monkeypatch, tmp_path):
    """A changeable copy of the shards, in this process."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("MODERNBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    remote = Remote("memory://shards")
    remote.upload_folder(built)
    return remote


def test_shards_at_an_address_are_those_that_were_put_there(built, there):
    here, copy = Shards.open(built), Shards.open(there)
    assert len(here) == len(copy) > 100
    assert all(np.array_equal(here.tokens(document), copy.tokens(document)) for document in range(len(here)))
    assert Shards.open(there, "heldout").num_tokens == Shards.open(built, "heldout").num_tokens
    assert read_manifest(there) == read_manifest(built)
    assert load_tokenizer(local_folder(there)).to_str() == load_tokenizer(built).to_str()


def test_a_second_process_downloads_nothing_but_the_manifest(there, bucket, new_process):
    Shards.open(there)
    assert bucket.asked(".bin")
    bucket.forget()
    Shards.open(there, "heldout")  # the same process does not even ask
    assert bucket.asked("") == []
    new_process.clear()
    Shards.open(there)
    assert {line.partition("?")[0] for line in bucket.asked("")} == {f"GET /{bucket.name}/shards/manifest.json"}


def test_of_a_manifest_alone_nothing_else_is_fetched(there, bucket, built):
    assert read_manifest(there) == read_manifest(built)
    assert bucket.asked("manifest.json") and bucket.asked("manifest.json") == bucket.asked("")


def test_shards_come_here_through_faults_that_pass(there, bucket, monkeypatch):
    monkeypatch.setattr(shards, "Remote", lambda address, **options: Remote(address, patience=SOON, **options))
    remarks = []
    bucket.fails("shard-00000.bin", "cut")
    bucket.fails("shard-00000.idx", "stall")
    bucket.fails("manifest.json", 503)
    bucket.fails("tokenizer.json", "flip")
    folder = within(20, lambda: local_folder(there, remark=remarks.append))
    assert bucket.unasked() == []
    assert len(Shards.open(folder)) > 100
    assert remarks[0].startswith(f"{there} does not answer (")


def test_workers_open_the_copy_and_ask_nobody(there, bucket):
    import pickle

    raw = pickle.dumps(Shards.open(there))
    bucket.forget()
    assert len(pickle.loads(raw)) > 100
    assert bucket.asked("") == []


def test_data_inspect_takes_an_address(there, built):
    assert inspect_data(there, 32) == inspect_data(built, 32)


def test_what_was_deleted_from_the_cache_comes_back(in_memory, new_process):
    folder = local_folder("memory://shards")
    (folder / "shard-00000.idx").unlink()
    new_process.clear()
    assert local_folder("memory://shards") == folder
    assert (folder / "shard-00000.idx").is_file()


def test_a_manifest_that_changed_is_another_copy_and_the_earlier_one_stays(in_memory, new_process, tmp_path):
    before = local_folder("memory://shards")
    other = tiny_run.build_tiny_shards(tmp_path, seed=1)
    in_memory.upload_folder(other)
    assert local_folder("memory://shards") == before, "a process sees one version"
    new_process.clear()
    after = local_folder("memory://shards")
    assert after != before
    for folder, source in ((after, other), (before, None)):
        assert (folder / "shard-00000.bin").is_file()
        if source is not None:
            assert (folder / "shard-00000.bin").read_bytes() == (source / "shard-00000.bin").read_bytes()


def test_an_unfinished_copy_does_not_count(in_memory, new_process, monkeypatch):
    whole = Remote.download

    def cut(self, entry, *args, **more):
        if entry.name.endswith(".idx"):
            raise DataError("cut off")
        whole(self, entry, *args, **more)

    monkeypatch.setattr(Remote, "download", cut)
    with pytest.raises(DataError, match="cut off"):
        Shards.open("memory://shards")
    monkeypatch.setattr(Remote, "download", whole)
    assert len(Shards.open("memory://shards")) > 100


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "shard-00000.idx",
            None,
            r"memory://shards/shard-00000\.idx is missing, and the manifest says [\d,]+ bytes; put the",
        ),
        ("shard-00000.bin", b"123", r"memory://shards/shard-00000\.bin has 3 bytes, and the manifest says"),
        ("manifest.json", None, r"memory://shards has no manifest\.json: no finished shards there; check the address"),
        ("manifest.json", b"{", r"memory://shards/manifest\.json cannot be read"),
        ("manifest.json", b'{"version": 99}', "is of version 99, and this package reads 1"),
    ],
)
def test_what_is_not_whole_there_is_named(in_memory, name, content, message):
    in_memory.remove([name])
    if content is not None:
        in_memory.write_bytes(name, content)
    with pytest.raises(DataError, match=message) as error:
        Shards.open("memory://shards")
    assert "\n" not in str(error.value)


def test_a_shard_of_other_contents_than_its_hash_is_named(in_memory, built):
    raw = (built / "shard-00000.bin").read_bytes()
    in_memory.write_bytes("shard-00000.bin", raw[:-2] + bytes(2))
    with pytest.raises(DataError, match=r"memory://shards/shard-00000\.bin: contents of another SHA-256"):
        Shards.open("memory://shards")


def test_scores_come_along(in_memory, built, new_process):
    manifest = json.loads((built / "manifest.json").read_bytes())
    manifest["scores"] = True
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            in_memory.write_bytes(f"{shard['name']}.score", np.ones(shard["documents"], "<f4").tobytes())
    in_memory.write_bytes("manifest.json", json.dumps(manifest).encode())
    assert Shards.open("memory://shards").scores.sum() == len(Shards.open(built))


def test_a_folder_here_stays_what_it_is(built):
    assert local_folder(built) == built
    assert local_folder(str(built)) == built
