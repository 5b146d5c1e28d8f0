"""One figure with all that it takes to get it again: the record of an evaluation, and the file that holds such records.

    Score → a JSON line → appended to a file → found again, so that what was measured is not measured twice

A score belongs to weights (`model_fingerprint`), a task and a protocol. `protocol_key` is the protocol less what says
where it was computed. Price: a line of some 2 kB, on the disk before `append` returns.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from tokenizers import Tokenizer
from torch import nn

from modernbert.errors import ConfigError, DataError
from modernbert.evaluate.machine import environment
from modernbert.evaluate.seeds import Summary, summary
from modernbert.runtime import Runtime
from modernbert.text.tokenizer import tokenizer_fingerprint

log = logging.getLogger(__name__)

# Said in a protocol, and no part of what it asks for: another machine or commit repeats the same measurement.
WHERE_COMPUTED = frozenset({"commit", "dirty", "versions", "device", "dtype"})


Progress = Callable[[float, str], None]
"""Tasks of an evaluation that are done, and a few words on the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one model on one task."""

    suite: str
    task: str
    metric: str
    value: float  # mean over seeds; nan where it is not defined
    sd: float | None  # over seeds; None of one
    n: int  # seeds
    values: tuple[float, ...]  # of each seed
    low: float | None  # of the mean's 95 % interval; None of one seed, unless the protocol has an interval of its own
    high: float | None
    model: str  # as it was given
    model_fingerprint: str
    protocol: Mapping[str, Any]  # all that one must do to get the same; `seeds` in the order of `values`
    details: Mapping[str, Any] = field(default_factory=dict)  # what was found on the way
    seconds: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float], **about: Any) -> Score:
        """Of the values of each seed; the rest as the fields are called."""
        found = Summary(math.nan, None, len(values), None, None)
        if all(map(math.isfinite, values)):
            found = summary(values)
        return cls(
            value=found.mean, sd=found.sd, n=len(values), values=tuple(map(float, values)), low=found.low,
            high=found.high, **about,
        )  # fmt: skip

    @property
    def protocol_key(self) -> str:
        """The same for the same protocol, wherever it was followed."""
        return protocol_key(self.protocol)

    def to_line(self) -> str:
        """JSON without a line break. What is no finite number is null."""
        return json.dumps(_finite(dataclasses.asdict(self)), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_line(cls, line: str | bytes, where: str = "") -> Score:
        """Read what `to_line` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            found = json.loads(line)
            found["values"] = tuple(math.nan if value is None else float(value) for value in found["values"])
            found["value"] = math.nan if found["value"] is None else float(found["value"])
            score = cls(**found)
        except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
            raise DataError(f"{where or 'a line'} is no score of `modernbert evaluate` ({error}); remove it") from error
        if not isinstance(score.protocol, dict) or score.n != len(score.values):
            raise DataError(f"{where or 'a line'} is no score of `modernbert evaluate` (n or protocol); remove it")
        return score


class ScoreFile:
    """Scores in a file of JSON lines, to which several processes may append.

    Args:
        path: made where missing, with its folder, at the first append.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, score: Score) -> None:
        """Write a line behind the others. What a kill left of a line before it is removed, and a warning says so.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # let go of with the file
                self._drop_half_a_line(file)
                file.write(f"{score.to_line()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error.strerror}); choose another --out") from error

    def __iter__(self) -> Iterator[Score]:
        """All scores, oldest first. Half a line at the end is left out, and a warning says so."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        *lines, rest = content.split(b"\n")
        if rest:
            log.warning(
                "%s ends with half a line, which is left out: its writer was killed, or still writes", self.path
            )
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Score.from_line(line, f"{self.path}, line {number}")

    def find(self, model_fingerprint: str, task: str, key: str, suite: str | None = None) -> list[Score]:
        """What is known of some weights on a task under a protocol (its `protocol_key`): the newest of each metric."""
        wanted = (model_fingerprint, task, key)
        found = {
            score.metric: score
            for score in self
            if (score.model_fingerprint, score.task, score.protocol_key) == wanted and suite in (None, score.suite)
        }
        return list(found.values())

    def _drop_half_a_line(self, file: IO[bytes]) -> None:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        log.warning("%s ended with half a line, whose writer was killed; it is removed and measured again", self.path)


def protocol_key(protocol: Mapping[str, Any]) -> str:
    """Sixteen letters of a hash over a protocol, less `WHERE_COMPUTED`."""
    kept = {name: value for name, value in protocol.items() if name not in WHERE_COMPUTED}
    return hashlib.sha256(json.dumps(_finite(kept), sort_keys=True).encode()).hexdigest()[:16]


def model_fingerprint(model: nn.Module, tokenizer: Tokenizer | None) -> str:
    """A hash over every weight, the shape (a window or a RoPE base has no weight) and the tokenizer. A second for a GB."""
    found = hashlib.blake2b(digest_size=8)
    shape = getattr(model, "config", None)
    found.update(b"" if shape is None else json.dumps(dataclasses.asdict(shape), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    found.update(b"" if tokenizer is None else tokenizer_fingerprint(tokenizer).encode())
    return found.hexdigest()


@functools.lru_cache(maxsize=256)
def _sha256_of(path: Path, size: int, changed_ns: int) -> str:
    del size, changed_ns  # of the key only
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's contents, kept for as long as the file does not change.

    Raises:
        DataError: it cannot be read.
    """
    try:
        status = path.stat()
        return _sha256_of(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error


def where_computed(runtime: Runtime) -> dict[str, Any]:
    """Commit, versions and hardware, as every protocol says them."""
    found = environment(runtime)
    return {name: found[name] for name in sorted(WHERE_COMPUTED)}


def _finite(value: Any) -> Any:
    """The same with null for what JSON cannot say."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
