"""Files at an address: copied whole, through faults that pass, and those that do not are named."""

# ruff: noqa: F811 - fixtures are imported, and named by tests

import errno
import os
import threading
import time
from collections import namedtuple
from concurrent.futures import Future
from pathlib import Path

import pytest
from s3 import AT_ONCE, SOON, aws, bucket, new_driver, within  # noqa: F401

from modernbert import remote as module
from modernbert.errors import CheckpointError, ConfigError, DataError
from modernbert.patience import Patience, Unavailable, persist, problem_of
from modernbert.remote import Entry, Remote, cache_folder, is_address, names_in, sha256_of

SLOWLY = pytest.mark.slow
BIG = bytes(range(256)) * 1200  # 300 kB: more than sockets swallow at once on the way to a stall


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty store in this process."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("MODERNBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return Remote("memory://bucket/folder", patience=SOON)


def put(remote, **contents):
    for name, content in contents.items():
        remote.write_bytes(name, content)
    return [Entry(name=name, bytes=len(content)) for name, content in contents.items()]


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("text", ["s3://b/x", "gs://b", "memory://a", "file:///a", "abfs+x://c/d"])
def test_an_address_has_a_scheme(text):
    assert is_address(text)


@pytest.mark.parametrize("text", ["/a/b", "a/b", "owner/model", "~/x", "s3:/b/x", Path("s3:/b"), "", None, "C:\\x"])
def test_a_path_or_a_hub_name_is_no_address(text):
    assert not is_address(text)


def test_each_address_and_version_has_a_readable_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("MODERNBERT_CACHE", str(tmp_path))
    places = [("s3://b/x/y", ""), ("s3://b/x-y", ""), ("gs://b/x/y", ""), ("s3://b/x/y", "2")]
    folders = [cache_folder(address, "shards", version) for address, version in places]
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "shards"}
    assert all("b-x-y" in folder.name for folder in folders)
    assert cache_folder("s3://b/x/y/", "shards") == folders[0]


def test_a_folder_comes_back_as_it_was_put(memory, tmp_path):
    for name in ("a.bin", "state/b.bin", "manifest.json", ".lock", "c.bin.tmp", "state/.metadata"):
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    memory.upload_folder(tmp_path / "local")
    there = memory.files()
    assert sorted(there) == ["a.bin", "manifest.json", "state/.metadata", "state/b.bin"]
    memory.mirror(tmp_path / "back", [Entry(name=name, bytes=size) for name, size in there.items()])
    for name in there:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_files_are_those_of_the_folder_and_not_of_one_whose_name_begins_like_it(memory):
    put(memory, a=b"1")
    put(Remote("memory://bucket/folder2"), b=b"12")
    assert memory.files() == {"a": 1}
    assert Remote("memory://bucket/none").files() == {}
    assert memory.read_bytes("none") is None
    memory.remove(["none", "a"])
    assert memory.files() == {}


def test_only_what_is_missing_or_cut_short_is_fetched_again(memory, tmp_path, monkeypatch):
    entries = put(memory, a=b"1" * 10, b=b"2" * 20, c=b"3" * 30)
    memory.mirror(tmp_path, entries)
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"2")
    fetched, download = [], Remote.download
    monkeypatch.setattr(
        Remote,
        "download",
        lambda self, entry, *args, **more: (fetched.append(entry.name), download(self, entry, *args, **more)),
    )
    memory.mirror(tmp_path, entries)
    assert sorted(fetched) == ["a", "b"]
    assert {name: (tmp_path / name).stat().st_size for name in "abc"} == {"a": 10, "b": 20, "c": 30}


def test_a_copy_that_takes_long_is_said_before_it_begins_and_only_then(memory, tmp_path, monkeypatch):
    remarks = []
    remote = Remote(memory.address, remark=remarks.append)
    entries = put(memory, a=b"1" * 10, b=b"2" * 20)
    monkeypatch.setattr(module, "_MUCH_BYTES", 25)
    remote.mirror(tmp_path / "x", entries[:1])
    assert remarks == []
    remote.mirror(tmp_path / "y", entries)
    remote.mirror(tmp_path / "y", entries)
    assert remarks == [f"fetching 0.0 GB of memory://bucket/folder into {tmp_path / 'y'}"]


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_fetched(memory, tmp_path, monkeypatch):
    entries = put(memory, a=b"1" * 1000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 999, 999))
    with pytest.raises(
        DataError, match=r"memory://bucket/folder takes .* GB here.* make room, or set MODERNBERT_CACHE"
    ):
        memory.mirror(tmp_path, entries)
    assert not (tmp_path / "a").exists()


def test_a_damaged_file_is_fetched_once_more_and_then_named(memory, tmp_path):
    (entry,) = put(memory, a=b"right")
    wrong = Entry(name="a", bytes=5, sha256="0" * 64)
    with pytest.raises(DataError) as error:
        memory.mirror(tmp_path, [wrong])
    assert (
        "memory://bucket/folder/a: contents of another SHA-256 than is due, and so it was when fetched again"
        in one_line(error)
    )
    with pytest.raises(DataError, match="5 bytes, and 6 are due"):
        memory.mirror(tmp_path, [Entry(name="a", bytes=6)])
    assert names_in(tmp_path) == []
    assert not (tmp_path / "a.part").exists()
    memory.mirror(tmp_path, [entry])
    assert (tmp_path / "a").read_bytes() == b"right"


def test_a_call_that_was_given_up_writes_to_nowhere_when_it_wakes_up(memory, tmp_path, monkeypatch):
    entries = put(memory, a=b"right")
    driver, first, woken, gone = type(memory._fs), threading.Event(), threading.Event(), threading.Event()
    get_file = driver.get_file

    def get(self, there, here, **options):
        if first.is_set():
            return get_file(self, there, here, **options)
        first.set()
        with open(here, "wb", buffering=0) as file:
            woken.wait(10)
            file.write(b"wrong, and longer")
        gone.set()

    monkeypatch.setattr(driver, "get_file", get)
    within(5, memory.mirror, tmp_path, entries)
    woken.set()
    assert gone.wait(5)
    assert (tmp_path / "a").read_bytes() == b"right"


@pytest.mark.parametrize("name", ["../a", "/etc/a", "x/../../a"])
def test_a_name_that_leads_out_of_the_folder_is_refused(memory, tmp_path, name):
    with pytest.raises(DataError, match="lies outside of it"):
        memory.mirror(tmp_path / "in", [Entry(name=name, bytes=1)])


def test_one_process_fetches_and_the_others_find_all_there(memory, tmp_path, monkeypatch):
    entries = put(memory, a=b"1" * 10)
    fetched, download = [], Remote.download

    def slow(self, entry, *args, **more):
        fetched.append(entry.name)
        time.sleep(0.2)
        download(self, entry, *args, **more)

    monkeypatch.setattr(Remote, "download", slow)
    remarks = []
    others = [Remote("memory://bucket/folder", remark=remarks.append) for _ in range(3)]
    threads = [threading.Thread(target=other.mirror, args=(tmp_path, entries)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert fetched == ["a"]
    assert remarks == ["another process fetches memory://bucket/folder; waiting for it"] * 2


def test_the_first_file_that_fails_ends_the_others(memory, tmp_path):
    entries = [*put(memory, a=b"1"), Entry(name="none", bytes=1)]
    with pytest.raises(DataError, match="memory://bucket/folder/none: not found"):
        within(5, memory.mirror, tmp_path, entries)


def test_an_unfinished_folder_is_not_put_anywhere(memory, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        memory.upload_folder(tmp_path)
    assert memory.files() == {}


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"nobody://x/y: Protocol not known: nobody; check the address"):
        Remote("nobody://x/y")


def test_a_missing_driver_is_named_with_the_command_that_installs_it(monkeypatch):
    import fsspec.core

    def absent(*_args, **_options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(ConfigError) as error:
        Remote("s3://b/x")
    assert one_line(error) == "s3://b/x needs the package s3fs (pip install 'modernbert[s3]')"
    with pytest.raises(ConfigError, match="sftp://b/x needs Install s3fs"):
        Remote("sftp://b/x")


@pytest.mark.parametrize("address", ["s3://", "memory://", "s3:///"])
def test_an_address_without_a_bucket_is_refused(address):
    with pytest.raises(ConfigError, match=r"names no bucket; give one, such as \w+://bucket/folder"):
        Remote(address)


def test_a_driver_that_leaves_half_files_under_their_names_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is no object store's .* give the folder itself"):
        Remote(f"file://{tmp_path}")


class Told(Exception):
    def __init__(self, **about):
        super().__init__("words of the service")
        self.__dict__ |= about


def answered(status, code="X"):
    error = OSError(errno.EIO, "words of the service")
    error.__cause__ = Told(response={"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}})
    return error


NoCredentialsError = type("NoCredentialsError", (Exception,), {})
EndpointConnectionError = type("EndpointConnectionError", (type("HTTPClientError", (Exception,), {}),), {})


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError(),
        answered(500),
        answered(503, "SlowDown"),
        answered(429),
        answered(400, "BadDigest"),
        Told(status_code=502),
        Told(code=503),
        EndpointConnectionError("Could not connect"),
        EOFError("cut"),
    ],
)
def test_what_may_pass_is_tried_again(error):
    assert problem_of(error).passes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("x"), "not found"),
        (answered(404, "NoSuchBucket"), "not found"),
        (PermissionError("Access Denied"), "no access"),
        (answered(403), "no access"),
        (Told(status=401), "no access"),
        (NoCredentialsError("Unable to locate credentials"), "no access"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/here/a.part"), "Permission denied"),
        (answered(400), "words of the service"),
        (answered(501), "words of the service"),
        (ValueError("strange"), "ValueError: strange"),
    ],
)
def test_what_stays_is_refused_at_once(error, reason):
    problem = problem_of(error)
    assert not problem.passes
    assert problem.reason.startswith(reason)


def failing(*errors):
    """A call that fails so, one error after the other, and then answers 7."""
    left = list(errors)

    def call(_pulse):
        future = Future()
        if left:
            future.set_exception(left.pop(0))
        else:
            future.set_result(7)
        return future

    return call, left


def test_a_call_is_made_again_until_it_answers_and_trouble_is_told_once():
    call, left = failing(TimeoutError(), ConnectionError("no"), answered(503))
    told = []
    assert persist(call, SOON, trouble=told.append) == 7
    assert (len(told), left) == (1, [])


def calls_that_get_so_far(*beats):
    """Each call beats so often and is reset, 0.1 s a beat; the last of them answers."""
    left = list(beats)

    def call(pulse):
        future, count = Future(), left.pop(0)

        def work():
            for _ in range(count):
                time.sleep(0.1)
                pulse.beat()
            future.set_exception(ConnectionResetError("reset")) if left else future.set_result("here")

        threading.Thread(target=work).start()
        return future

    return call


def test_patience_begins_anew_with_a_call_that_got_further_than_those_before():
    patience = Patience(stall_seconds=1, total_seconds=0.3, first_pause_seconds=0.01, longest_pause_seconds=0.01)
    assert persist(calls_that_get_so_far(1, 5, 6, 7), patience) == "here"
    with pytest.raises(Unavailable, match=r"no answer for 0\.3 s"):
        persist(calls_that_get_so_far(5, 5, 5, 5, 5), patience)


def test_no_second_call_is_made_where_waiting_is_of_no_use():
    call, left = failing(PermissionError("no"), TimeoutError())
    with pytest.raises(Unavailable, match="no access"):
        persist(call, SOON)
    assert len(left) == 1


def test_trouble_that_does_not_pass_ends_after_the_limit():
    with pytest.raises(Unavailable, match=r"no answer for 0\.8 s \(words of the service\); check the network"):
        within(4, persist, failing(*[answered(503)] * 1000)[0], AT_ONCE)


def test_a_stall_is_told_by_what_moves_and_not_by_how_long_it_takes():
    pause = Patience(stall_seconds=0.3, total_seconds=0.5, first_pause_seconds=0.05)

    def slow(pulse):
        future = Future()

        def work():
            for _ in range(8):
                time.sleep(0.1)
                pulse.beat()
            future.set_result("slow")

        threading.Thread(target=work).start()
        return future

    assert persist(slow, pause) == "slow"
    cancelled = []

    def dead(_pulse):
        future = Future()
        cancelled.append(future)
        return future

    with pytest.raises(Unavailable, match=r"nothing moved for 0\.3 s"):
        within(3, persist, dead, pause)
    assert all(future.cancelled() for future in cancelled)


# Against a server.


def test_the_drivers_own_variables_say_where_the_service_is(bucket):
    remote = Remote(bucket.at("f"), patience=SOON)
    put(remote, a=b"12345")
    assert remote.files() == {"a": 5}
    assert bucket.asked(f"/{bucket.name}/f/a")


@pytest.mark.parametrize("fault", ["cut", "stall", 503, "flip", pytest.param("hang", marks=SLOWLY)])
def test_a_download_survives_a_fault_that_passes(bucket, tmp_path, fault):
    remarks = []
    remote = Remote(bucket.at("f"), patience=SOON, remark=remarks.append)
    (tmp_path / "big").write_bytes(BIG)
    remote.upload(tmp_path / "big", "big")
    bucket.fails("GET /" + bucket.name + "/f/big", fault)
    entry = Entry(name="big", bytes=len(BIG), sha256=sha256_of(tmp_path / "big"))
    within(15, remote.mirror, tmp_path / "back", [entry])
    assert (tmp_path / "back" / "big").read_bytes() == BIG
    assert bucket.unasked() == []
    if fault in ("stall", "hang", 503):
        (remark,) = remarks
        assert remark.startswith(f"{bucket.at('f')} does not answer (")
        assert remark.endswith("); trying again for up to 20 s")


@pytest.mark.parametrize("fault", ["hang", 503])
@pytest.mark.parametrize("size", [300_000, pytest.param(20_000_000, marks=SLOWLY)])  # one request, and in parts
def test_an_upload_survives_a_fault_that_passes(bucket, tmp_path, fault, size):
    (tmp_path / "big").write_bytes(bytes(size))
    bucket.fails("PUT", fault)
    remote = Remote(bucket.at("f"), patience=SOON)
    within(30, remote.upload, tmp_path / "big", "big")
    assert remote.files() == {"big": size}
    assert bucket.unasked() == []


@pytest.mark.parametrize("fault", ["stall", 503, pytest.param("cut", marks=SLOWLY), pytest.param("hang", marks=SLOWLY)])
def test_a_fault_that_stays_is_named_within_the_limit(bucket, tmp_path, fault):
    remote = Remote(bucket.at("f"), patience=AT_ONCE)
    (tmp_path / "big").write_bytes(BIG)
    remote.upload(tmp_path / "big", "big")
    bucket.fails("/f/big", fault, times=1000)
    with pytest.raises(DataError) as error:
        within(12, remote.mirror, tmp_path / "back", [Entry(name="big", bytes=len(BIG))])
    message = one_line(error)
    assert message.startswith(f"{bucket.at('f/big')}: no answer for 0.8 s (")
    assert "; check the network and the service's address" in message
    assert names_in(tmp_path / "back") == []


def test_a_service_that_is_not_there_is_named(bucket, new_driver, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"s3://b/x: no answer for 0\.8 s \(.*127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
        within(10, Remote("s3://b/x", patience=AT_ONCE).files)


def test_a_bucket_that_does_not_exist_is_told_at_once(bucket):
    remote = Remote(f"s3://{bucket.name}-not/f", patience=SOON, error=CheckpointError)
    for call in (remote.files, lambda: remote.write_bytes("a", b"1"), lambda: remote.read_bytes("a")):
        with pytest.raises(CheckpointError, match=r"not found \(.*bucket.*\); check the address"):
            within(5, call)


def test_no_permission_is_told_at_once(bucket):
    remote = Remote(bucket.at("f"), patience=SOON)
    bucket.fails("/f/a", 403, times=1000)
    for call in (lambda: remote.write_bytes("a", b"1"), lambda: remote.read_bytes("a"), lambda: remote.remove(["a"])):
        with pytest.raises(DataError, match=r"/f/a: no access \(.*\); check the credentials"):
            within(5, call)
    assert len(bucket.asked("/f/a")) == 3


def test_missing_credentials_are_told_at_once(bucket, new_driver, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"no access \(Unable to locate credentials\); check the credentials"):
        within(5, Remote(bucket.at("f"), patience=SOON).files)


def test_a_forked_process_opens_a_driver_of_its_own(bucket):
    remote = Remote(bucket.at("f"), patience=SOON)
    put(remote, a=b"1")
    child = os.fork()
    if child == 0:
        os._exit(0 if remote.files() == {"a": 1} else 1)
    for _ in range(100):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended and status == 0
