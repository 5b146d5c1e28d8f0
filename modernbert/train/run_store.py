"""A run whose folder lies at an address: it trains in a folder here, and each whole checkpoint is put there.

    RunStore.open(address) → pull → training in `working` → push → seal → … → remove

    ADDRESS/run.json, metrics.jsonl, loss.png     each replaced whole
    ADDRESS/stable-00001000/…                     checkpoints as `model.stored` has them, from one host or from several

The manifest is put last and removed first, so whatever is cut off, the checkpoint before is found.
Price: a checkpoint is hashed and sent once, on the thread that saves; `pull` lists the folder and hashes what is here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from modernbert.disk import sync, try_lock
from modernbert.errors import CheckpointError, TrainingError
from modernbert.model.stored import CHECKPOINT_MANIFEST as MANIFEST
from modernbert.model.stored import checkpoint_names, step_of, whole_checkpoints
from modernbert.patience import Patience
from modernbert.remote import Entry, Remote, cache_folder, difference, names_in, sha256_of

_VERSION = 1
_RUN, _METRICS = "run.json", "metrics.jsonl"
PART = ".parts-elsewhere"  # in the folder of a checkpoint of which other hosts have parts, until all are sealed there
_LAST_WORD = Patience(stall_seconds=10.0, total_seconds=10.0)  # of a run that ends by an error
_PULLED = ".unfinished-pull"  # cleared away with unfinished saves (`hub.clear_unfinished`) when nobody goes on with it


class RunStore:
    """A run at an address and its working folder here. One process of a host has it.

    Args:
        remote: the run's folder there; raises CheckpointError.
        working: the run's folder here.
    """

    def __init__(self, remote: Remote, working: Path) -> None:
        self.remote, self.working = remote, working

    @classmethod
    def open(
        cls, address: str, *, remark: Callable[[str], None] | None = None, patience: Patience | None = None
    ) -> Self:
        """The store of an address; its working folder is in the cache and is the same whenever it is opened.

        Args:
            address: of the run, such as s3://bucket/run.
            remark: is told when the service does not answer and is tried again; from any thread.
            patience: how long to wait for it.

        Raises:
            ConfigError: no package for such addresses.
        """
        remote = Remote(address, error=CheckpointError, patience=patience, remark=remark)
        return cls(remote, cache_folder(address, "runs"))

    def checkpoints(self) -> list[str]:
        """Names of the whole checkpoints there, oldest first.

        Raises:
            CheckpointError: no answer; as with every method here.
        """
        return list(whole_checkpoints(self.remote, self.remote.files()))

    def pull(self, *, host: int = 0, num_hosts: int = 1) -> list[str]:
        """Bring the working folder to where the run stands, before it begins or goes on, and before it is locked.

        The newest whole checkpoint comes here unless it is here and agrees. What only this host has (its upload was cut
        off) stays and is the newest, and `missing` names it, as long as the run did not go on elsewhere since. With
        several hosts only what is there counts, or they would go on from different checkpoints; so the first puts there
        what it alone has.

        Args:
            host: which one this is; the first clears unfinished uploads away, so the others call this behind it.
            num_hosts: that train together.

        Returns:
            Remarks for the user: what was passed over, cleared away or kept.

        Raises:
            CheckpointError: no answer, no room here, files there that are no run's, a checkpoint that is damaged there, or
                one that another host than the first alone has.
            TrainingError: another process is training in the working folder.
        """
        try:
            self.working.mkdir(parents=True, exist_ok=True)
            lock = try_lock(self.working / ".lock")
        except OSError as error:
            raise self._cannot_write(error) from error
        if lock is None:
            raise TrainingError(
                f"{self.working}, the folder here of {self.remote.address}, is in use by another process; wait"
            )
        with lock:
            files = self.remote.files()
            if files and _RUN not in files:  # which is put there first
                raise CheckpointError(
                    f"{self.remote.address} is not empty and holds no run (no {_RUN}); choose another --out"
                )
            whole = whole_checkpoints(self.remote, files)
            with self._writing():
                remarks = self._settle_parts(whole)
                is_ours = self._went_on_from(files)
                if host == 0 and num_hosts > 1 and is_ours:
                    remarks += self.save_missing()
                    files = self.remote.files()
                    whole = whole_checkpoints(self.remote, files)
                remarks += self._clear_unsealed(files, whole) if host == 0 else []
                if num_hosts > 1 and is_ours:
                    self._refuse_newer_here(whole)
                return remarks + self._bring(files, whole, is_ours=is_ours and num_hosts == 1, was_ours=is_ours)

    def _bring(
        self, files: dict[str, int], whole: dict[str, list[Entry]], *, is_ours: bool, was_ours: bool
    ) -> list[str]:
        remarks = [] if is_ours else self._clear_local(whole, was_ours=was_ours)
        newest, newest_here = _last(whole), _last(self._local())
        step, step_here = (-1 if name is None else step_of(name) for name in (newest, newest_here))
        metrics_here = self.working / _METRICS
        num_bytes = metrics_here.stat().st_size if metrics_here.is_file() else 0
        if not is_ours or (step_here, num_bytes) < (step, files.get(_METRICS, 0)):
            self._fetch_about(files)
        if newest is not None and step >= step_here:
            self._fetch(newest, whole[newest])
        elif newest_here is not None:
            behind = "holds no whole checkpoint" if newest is None else f"is at {newest}"
            remarks.append(
                f"{self.remote.address} {behind}, and {self.working} is at {newest_here}: going on from there; delete "
                "that folder to go on from the address alone"
            )
        return remarks

    def fetch(self, name: str, *, alone: bool) -> None:
        """Have a whole checkpoint here as it is there, for a host that has a part of it.

        Args:
            name: the checkpoint's.
            alone: delete all others here.

        Raises:
            CheckpointError: it is not whole there.
        """
        entries = whole_checkpoints(self.remote, self.remote.files()).get(name)
        if entries is None:
            raise CheckpointError(f"{self.remote.address}/{name} is not whole, so this host cannot go back to it")
        with self._writing():
            self._fetch(name, entries)
            for other in self._local():
                if alone and other != name:
                    shutil.rmtree(self.working / other)

    def missing(self) -> list[Path]:
        """Checkpoints here that are not there, or not whole: to be put there again."""
        there = self.checkpoints()
        return [self.working / name for name in self._local() if name not in there]

    def save_missing(self) -> list[str]:
        """Put them there, and say so."""
        missing = self.missing()
        if missing and self.remote.read_bytes(_RUN) is None:
            self.push_file(self.working / _RUN)  # without it nothing there is taken for a run's
        for path in missing:
            self.save(path)
        return [f"{path.name} was not at {self.remote.address} and was put there" for path in missing]

    def parts(self) -> list[str]:
        """Names of checkpoints of several hosts of which only this one's part is here, and not all are there."""
        return [name for name in self._folders() if (self.working / name / PART).exists()]

    def clear_parts(self, but: str = "") -> None:
        """Delete these, but one."""
        for name in self.parts():
            if name != but:
                shutil.rmtree(self.working / name, ignore_errors=True)

    def save(self, checkpoint: Path) -> None:
        """Put a checkpoint there: `push` and `seal` of a run on one host."""
        self.seal(checkpoint.name, self.push(checkpoint))

    def push(self, checkpoint: Path, names: Iterable[str] | None = None) -> list[Entry]:
        """Put files of a checkpoint there. It does not count before `seal`, nor does an earlier one of that name.

        Args:
            checkpoint: its folder here.
            names: relative names of the files that this host puts there; None for all.

        Returns:
            What is there now, to be sealed.

        Raises:
            CheckpointError: no answer, or a file that is gone.
        """
        chosen = [name for name in (names_in(checkpoint) if names is None else names) if name != MANIFEST]
        try:
            entries = [
                Entry(name=name, bytes=(checkpoint / name).stat().st_size, sha256=sha256_of(checkpoint / name))
                for name in chosen
            ]
        except OSError as error:
            raise CheckpointError(
                f"{checkpoint} cannot be read ({error}), so it was not put to {self.remote.address}"
            ) from error
        self.remote.remove([f"{checkpoint.name}/{MANIFEST}"])
        self.remote.at(checkpoint.name).upload_files(checkpoint, chosen)
        return entries

    def seal(self, name: str, entries: Sequence[Entry]) -> None:
        """Have a checkpoint count: its manifest is put there when all that it lists is.

        Args:
            name: the checkpoint's.
            entries: of all hosts.

        Raises:
            CheckpointError: a file is not there, or not as it was put.
        """
        there = self.remote.at(name).files()
        short = [entry.name for entry in entries if there.get(entry.name) != entry.bytes]
        if short or not entries:
            what = f"{name}/{short[0]} is not there as it was put" if short else f"{name} has no files"
            raise CheckpointError(f"{self.remote.address}: {what}, so that checkpoint does not count; save it again")
        files = [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.name)]
        content = json.dumps({"version": _VERSION, "files": files}, indent=1) + "\n"
        self.remote.write_bytes(f"{name}/{MANIFEST}", content.encode())

    def push_file(self, path: Path) -> None:
        """Put a file of the run's folder there, whole: run.json, metrics.jsonl, loss.png."""
        self.remote.upload(path, path.name)

    def try_push_file(self, path: Path) -> None:
        """The same within some seconds or not at all, for what is no error by itself."""
        with contextlib.suppress(CheckpointError):
            Remote(self.remote.address, error=CheckpointError, patience=_LAST_WORD).upload(path, path.name)

    def remove(self, name: str) -> None:
        """Delete a checkpoint there, its manifest first; one that is gone already is no error."""
        names = self.remote.at(name).files()
        self.remote.remove(f"{name}/{file}" for file in sorted(names, key=lambda file: file != MANIFEST))

    def _clear_unsealed(self, files: dict[str, int], whole: dict[str, list[Entry]]) -> list[str]:
        remarks = []
        for name in checkpoint_names(file.partition("/")[0] for file in files if "/" in file):
            if name in whole:
                continue
            if f"{name}/{MANIFEST}" in files:  # which no cut leaves: it is removed first and put last
                remarks.append(
                    f"{self.remote.address}/{name} is not as its {MANIFEST} says, so it does not count; put its files back, or "
                    "delete it"
                )
                continue
            self.remove(name)
            remarks.append(
                f"{self.remote.address}/{name} was not whole (its upload was cut off), so it was cleared away"
            )
        return remarks

    def _went_on_from(self, files: dict[str, int]) -> bool:
        """Whether what is here is the run that is there, as far as that or further."""
        run = self.working / _RUN
        here = _sessions(run.read_bytes()) if run.is_file() else None
        there = _sessions(self.remote.read_bytes(_RUN)) if _RUN in files else None
        return here is not None and (there is None or here[: len(there)] == there)

    def _settle_parts(self, whole: dict[str, list[Entry]]) -> list[str]:
        """Tell parts of checkpoints that became whole from those that never did, and delete the latter."""
        remarks = []
        for name in self.parts():
            folder = self.working / name
            if name in whole and all(difference(folder / entry.name, entry) is None for entry in whole[name]):
                (folder / PART).unlink()
            else:
                shutil.rmtree(folder)
                remarks.append(f"{folder} was one host's part of a checkpoint of several, so it was cleared away")
        return remarks

    def _refuse_newer_here(self, whole: dict[str, list[Entry]]) -> None:
        newest, newest_here = _last(whole), _last(self._local())
        if newest_here is not None and step_of(newest_here) > (-1 if newest is None else step_of(newest)):
            raise CheckpointError(
                f"{self.working / newest_here} is newer than all that {self.remote.address} has; give the command on this host "
                "alone first, which puts it there, or delete that folder"
            )

    def _clear_local(self, whole: dict[str, list[Entry]], *, was_ours: bool) -> list[str]:
        """Delete the checkpoints here that the run at the address does not know."""
        alone = [name for name in self._local() if name not in whole]
        for name in alone:
            shutil.rmtree(self.working / name)
        if not alone:
            return []
        why = (
            "several hosts go on from what is there" if was_ours
            else "the run there is another one, or went on elsewhere since"
        )  # fmt: skip
        return [
            f"{self.working} held {', '.join(alone)} and {self.remote.address} does not: {why}, so they were deleted"
        ]

    def _fetch_about(self, files: dict[str, int]) -> None:
        for name in (_METRICS, _RUN):
            (self.working / name).unlink(missing_ok=True)
            if name in files:
                self.remote.download(Entry(name=name, bytes=files[name]), self.working)

    def _fetch(self, name: str, entries: list[Entry]) -> None:
        """Have a checkpoint here as it is there; it takes its name when all of it is."""
        destination = self.working / name
        if all(difference(destination / entry.name, entry) is None for entry in entries):
            return
        unfinished = self.working / f".{name}{_PULLED}"
        self.remote.at(name).mirror(unfinished, entries)
        due = {unfinished / entry.name for entry in entries}
        for path in unfinished.rglob("*"):  # the lock, and what a pull of an earlier version left
            if path.is_file() and path not in due:
                path.unlink()
        shutil.rmtree(destination, ignore_errors=True)
        os.rename(unfinished, destination)
        sync(self.working)

    def _local(self) -> list[str]:
        """Names of the checkpoints here, oldest first; parts of one are none."""
        return [name for name in self._folders() if not (self.working / name / PART).exists()]

    def _folders(self) -> list[str]:
        if not self.working.is_dir():
            return []
        return checkpoint_names(path.name for path in self.working.iterdir() if path.is_dir())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> CheckpointError:
        reason = error.strerror or error
        return CheckpointError(
            f"{self.working} cannot be written ({reason}); make room, or set MODERNBERT_CACHE elsewhere"
        )


def _last(names: Iterable[str]) -> str | None:
    return max(names, key=step_of, default=None)


def _sessions(raw: bytes | None) -> list[Any] | None:
    """What tells a run, and how far it has come, from another: when its sessions began, and where."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        sessions = json.loads(raw or b"").get("sessions", [])
        return [[session.get(key) for key in ("started_at", "from_step", "from_tokens")] for session in sessions]
    return None
