"""An address such as s3://bucket/folder ↔ files here: copies that are whole or not there, whatever the network does.

    Remote(address).mirror(folder, entries)     there → here: what is missing, several at once, checked, one process a host
    Remote(address).upload_folder(folder)       here → there: the manifest last

An address is an object store's that fsspec knows (s3://, gs://, az://); its driver finds credentials and endpoint as it
does everywhere, so nothing of them is ours. A file comes as `NAME.part` and takes its name when size and hash agree.
Price: a connection a file, eight at once; hashing what has a hash, some 1 to 2 GB/s.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from modernbert.disk import sync, try_lock, write_whole
from modernbert.errors import ConfigError, DataError, ModernBertError
from modernbert.patience import Patience, Pulse, Unavailable, persist, spelled

T = TypeVar("T")

_AT_ONCE = 8
_PART_BYTES = 8 * 2**20  # of an upload: what must move within a stall's limit, here 140 kB/s
_PART_UNIT = 256 * 2**10  # what Google's parts must be a multiple of
_MOST_PARTS = 9_000  # S3 takes 10,000
_MUCH_BYTES = 100e6  # from which on a copy deserves a word
_WAIT_SECONDS = 0.5
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file as it must be."""

    name: str  # relative to its folder, with /
    bytes: int
    sha256: str | None = None


def is_address(text: object) -> bool:
    """Whether this is a place that fsspec opens rather than a path of this machine."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def cache_folder(address: str, kind: str, version: str = "") -> Path:
    """Where copies of an address lie: below MODERNBERT_CACHE, or ~/.cache/modernbert. Not made here.

    Args:
        address: what is copied.
        kind: a folder for each kind of thing.
        version: another one is another folder.
    """
    root = Path(os.environ.get("MODERNBERT_CACHE") or Path.home() / ".cache" / "modernbert").expanduser().absolute()
    readable = re.sub(r"[^\w.-]+", "-", address.partition("://")[2]).strip("-.")[-60:] or "root"
    digest = hashlib.sha256(f"{address.rstrip('/')}\n{version}".encode()).hexdigest()[:12]
    return root / kind / f"{readable}-{digest}"


class Remote:
    """A folder at an address. Its calls may come from several threads.

    Args:
        address: with its scheme.
        error: the class of what is raised; the message names address, reason and remedy.
        patience: how long to wait for a service that does not answer.
        remark: is told what takes long, and, once in a while, that a service does not answer and is tried again; from any
            thread.

    Raises:
        ConfigError: nobody knows the scheme, or the package for it is missing.
    """

    def __init__(
        self,
        address: str,
        *,
        error: type[ModernBertError] = DataError,
        patience: Patience | None = None,
        remark: Callable[[str], None] | None = None,
    ) -> None:
        scheme, mark, place = address.partition("://")
        self.address = scheme + mark + place.rstrip("/")
        self.patience = patience or Patience()
        self._error, self._remark = error, remark
        self._told_at, self._telling = -float("inf"), threading.Lock()
        self._opened_by = os.getpid()
        self._fs, self._root = _open(self.address)

    def at(self, name: str) -> Remote:
        """A folder of this folder."""
        return Remote(f"{self.address}/{name}", error=self._error, patience=self.patience, remark=self._remark)

    def files(self) -> dict[str, int]:
        """Bytes by name of all files below, with `/` in names; empty where there is no such folder.

        Raises:
            ModernBertError: as with every method here, of the class given, where the service gives no answer.
        """
        self._fs.invalidate_cache()
        found = self._call("", "find", self._root, detail=True)
        root = self._root.rstrip("/")
        return {
            path.removeprefix(root).lstrip("/"): int(about["size"])
            for path, about in found.items()
            if about["type"] == "file" and path.startswith(f"{root}/") and not path.endswith("/")
        }

    def read_bytes(self, name: str) -> bytes | None:
        """Contents of a small file, None where it is missing."""
        try:
            return self._persist("cat_file", self._path(name))
        except Unavailable as error:
            if error.is_missing:
                return None
            raise self._failed(name, error) from error

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        self._call(name, "pipe_file", self._path(name), content)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files, one after the other in this order; what is gone already is no error."""
        for name in names:
            try:
                self._persist("rm_file", self._path(name))
            except Unavailable as error:
                if not error.is_missing:
                    raise self._failed(name, error) from error

    def download(self, entry: Entry, folder: Path, *, stop: threading.Event | None = None) -> None:
        """Fetch a file. A damaged one is fetched once more.

        Args:
            entry: which, and how it must be.
            folder: where to.
            stop: gives up when set.
        """
        destination = folder / entry.name
        part = destination.with_name(f"{destination.name}.part")
        problem = None
        for _ in range(2):
            with self._writing(folder):
                destination.parent.mkdir(parents=True, exist_ok=True)
                # In order, or nothing would count as moving until 50 MB are here.
                options = _accepted(self._fs, "get_file", max_concurrency=1)
                # A call that was given up may still write; without the name it writes to nowhere.
                before = partial(part.unlink, missing_ok=True)
                files = (self._path(entry.name), str(part))
                self._call(entry.name, "get_file", *files, moves=True, before=before, stop=stop, **options)
                problem = difference(part, entry)
                if problem is None:
                    sync(part)
                    os.replace(part, destination)
                    return
                part.unlink(missing_ok=True)
        raise self._error(
            f"{self.address}/{entry.name}: {problem}, and so it was when fetched again; put a whole one there"
        )

    def upload(self, path: Path, name: str, *, stop: threading.Event | None = None) -> None:
        """Put a file there, whole or not at all."""
        chunk = max(_PART_BYTES, -(-path.stat().st_size // _MOST_PARTS // _PART_UNIT) * _PART_UNIT)
        options = _accepted(self._fs, "put_file", chunksize=chunk, max_concurrency=1)
        self._call(name, "put_file", str(path), self._path(name), moves=True, stop=stop, **options)

    def mirror(self, folder: Path, entries: Sequence[Entry], *, last: tuple[str, bytes] | None = None) -> None:
        """Have these files in a folder here: fetches what is missing or of another size, several at once.

        One process of a host does it, others wait for it and then find all there. Whole files stay, so what was cut off
        goes on.

        Args:
            folder: made where missing.
            entries: of this address.
            last: name and contents of a file that is written when all others are here.

        Raises:
            ModernBertError: of the class given: too little room, a folder that cannot be written, or no answer.
        """
        for entry in entries:
            if PurePosixPath(entry.name).is_absolute() or ".." in PurePosixPath(entry.name).parts:
                raise self._error(f"{self.address} lists {entry.name!r}, which lies outside of it; it is damaged")
        with self._only_process(folder):
            missing = [entry for entry in entries if _size(folder / entry.name) != entry.bytes]
            num_bytes = sum(entry.bytes for entry in missing)
            self._check_room(folder, num_bytes)
            if num_bytes >= _MUCH_BYTES and self._remark is not None:
                self._remark(f"fetching {num_bytes / 1e9:,.1f} GB of {self.address} into {folder}")
            self._together([partial(self.download, entry, folder) for entry in missing])
            if last is not None:
                with self._writing(folder):
                    write_whole(folder / last[0], last[1])

    def upload_files(self, folder: Path, names: Iterable[str]) -> None:
        """Put files of a folder there under their relative names, several at once."""
        self._together([partial(self.upload, folder / name, name) for name in names])

    def upload_folder(self, folder: Path, *, last: str = "manifest.json") -> None:
        """Put a folder there, its manifest last: until then, and while an earlier one is replaced, it does not count.

        Args:
            folder: hidden and unfinished (`.tmp`, `.part`) files stay here.
            last: the manifest's name.

        Raises:
            ModernBertError: of the class given: no manifest here, or no answer.
        """
        if not (folder / last).is_file():
            raise self._error(f"{folder} has no {last}; give a folder that is finished")
        names = [name for name in names_in(folder) if name != last]
        self.remove([last])
        self.upload_files(folder, names)
        there = self.files()
        short = [name for name in names if there.get(name) != (folder / name).stat().st_size]
        if short:
            raise self._error(f"{self.address}/{short[0]} is not there as it was put; give the command again")
        self.upload(folder / last, last)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _call(self, name: str, method: str, *args: Any, **options: Any) -> Any:
        try:
            return self._persist(method, *args, **options)
        except Unavailable as error:
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: Unavailable) -> ModernBertError:
        return self._error(f"{f'{self.address}/{name}'.rstrip('/')}: {error.reason}; {error.remedy}")

    def _persist(
        self,
        method: str,
        *args: Any,
        moves: bool = False,
        before: Callable[[], None] = lambda: None,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> Any:
        if self._opened_by != os.getpid():  # drivers do not outlive a fork
            self._opened_by, (self._fs, self._root) = os.getpid(), _open(self.address)

        def call(pulse: Pulse) -> Future[Any]:
            before()
            extra = {"callback": _callback(pulse)} if moves else {}
            return _start(self._fs, method, *args, **options, **extra)

        return persist(call, self.patience, trouble=self._tell, stop=stop)

    def _tell(self, reason: str) -> None:
        with self._telling:
            if self._remark is None or time.monotonic() - self._told_at < self.patience.total_seconds:
                return
            self._told_at = time.monotonic()
        limit = spelled(self.patience.total_seconds)
        self._remark(f"{self.address} does not answer ({reason}); trying again for up to {limit}")

    def _together(self, jobs: Sequence[Callable[..., None]]) -> None:
        """Run jobs, some at a time; the first that fails ends the others."""
        stop = threading.Event()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="remote") as pool:
            try:
                for future in as_completed([pool.submit(job, stop=stop) for job in jobs]):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @contextlib.contextmanager
    def _only_process(self, folder: Path) -> Iterator[None]:
        with self._writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = try_lock(folder / ".lock")
            if lock is None and self._remark is not None:
                self._remark(f"another process fetches {self.address}; waiting for it")
            while lock is None:
                time.sleep(_WAIT_SECONDS)
                lock = try_lock(folder / ".lock")
        with lock:
            yield

    @contextlib.contextmanager
    def _writing(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(
                f"{folder} cannot be written ({error.strerror or error}); make room, or set MODERNBERT_CACHE to another folder"
            ) from error

    def _check_room(self, folder: Path, bytes_needed: int) -> None:
        free = shutil.disk_usage(folder).free
        if free < bytes_needed:
            raise self._error(
                f"{self.address} takes {bytes_needed / 1e9:,.3f} GB here, and {folder} has {free / 1e9:,.3f} GB of disk "
                "left; make room, or set MODERNBERT_CACHE to a larger disk"
            )


def difference(path: Path, entry: Entry) -> str | None:
    """How a file differs from what it must be; None if it does not."""
    size = _size(path)
    if size != entry.bytes:
        return "missing" if size is None else f"{size:,} bytes, and {entry.bytes:,} are due"
    if entry.sha256 is not None and sha256_of(path) != entry.sha256:
        return "contents of another SHA-256 than is due"
    return None


def sha256_of(path: Path) -> str:
    """The hash of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names_in(folder: Path) -> list[str]:
    """Relative names of the files below a folder, neither hidden nor unfinished, in order."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name.as_posix()
        for name in names
        if not any(part.startswith(".") for part in name.parts[:-1])
        and (not name.name.startswith(".") or name.name == ".metadata")  # torch's, of sharded checkpoints
        and name.suffix not in (".tmp", ".part")
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _open(address: str) -> tuple[Any, str]:
    """The driver of an address, and its name for the folder there."""
    from fsspec.core import url_to_fs

    scheme, _, place = address.partition("://")
    if not place:
        raise ConfigError(f"{address} names no bucket; give one, such as {scheme}://bucket/folder")
    try:
        fs, root = url_to_fs(address)
    except ImportError as error:
        package = _EXTRAS.get(scheme)
        how = f"the package {package} (pip install {_how_to_get(package)})" if package else str(error)
        raise ConfigError(f"{address} needs {how}") from error
    except ValueError as error:
        raise ConfigError(f"{address}: {error}; check the address, or give a folder of this machine") from error
    if not fs.async_impl and scheme != "memory":  # those of object stores are on an event loop, and memory is for tests
        raise ConfigError(
            f"{address} is no object store's (s3://, gs://, az://), so a copy that was cut off could count as whole; mount it, "
            "and give the folder itself"
        )
    return fs, root


def _how_to_get(package: str) -> str:
    return "'modernbert[s3]'" if package == "s3fs" else package


def _accepted(fs: Any, method: str, **options: Any) -> dict[str, Any]:
    """Those options that a driver's method names."""
    function = getattr(fs, f"_{method}") if fs.async_impl else getattr(fs, method)
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def _start(fs: Any, method: str, *args: Any, **options: Any) -> Future[Any]:
    """Begin a call. One on a driver's event loop ends when cancelled; one in a thread is left to itself."""
    if fs.async_impl:
        import asyncio

        return asyncio.run_coroutine_threadsafe(getattr(fs, f"_{method}")(*args, **options), fs.loop)
    future: Future[Any] = Future()

    def work() -> None:
        try:
            result = getattr(fs, method)(*args, **options)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    threading.Thread(target=work, name=f"{method} {args[0]}", daemon=True).start()
    return future


def _callback(pulse: Pulse) -> Any:
    from fsspec.callbacks import Callback

    class Moving(Callback):
        def relative_update(self, inc: int = 1) -> None:
            self.value += inc
            pulse.beat()

    return Moving()
