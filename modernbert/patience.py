"""A call to a service far away -> its answer, or one reason why there is none.

    call → error that may pass, or nothing moved for a while → pause → call … → answer or `Unavailable`

A pause doubles from one to the next and is drawn (half of it to all of it), so that many processes do not come back at
once. Tried again are what the network does, a service that is busy or broken (5xx, 429) and stalls; not what stays as
it is: nothing there, no permission, bad credentials, a full disk here.

A stall is told from outside, by whether bytes still move: timeouts of drivers see a socket that does not answer, but not
an upload that nobody reads. Price: the caller looks twice a second.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.5
_LONGEST_REASON = 200

_ACCESS = (
    "check the credentials (of s3://: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and what they allow"
)
_NOT_FOUND = "check the address"
_NETWORK = "check the network and the service's address (of s3://: AWS_ENDPOINT_URL), and give the command again"
_DISK = "make room, or take another place"
_OTHER = "check the address and the service"

# By name, since these classes are of packages that need not be installed; a class is what one of its bases is.
_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),  # botocore
    *("ProfileNotFound", "SSOError", "UnauthorizedSSOTokenError"),
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"),  # Google's, Azure's
}
_NETWORK_ERRORS = {
    *("HTTPClientError", "ConnectionError", "ResponseParserError", "IncompleteReadError"),  # botocore, requests
    "FlexibleChecksumError",  # botocore's: what came is not what was sent
    *(
        "ClientConnectionError",
        "ClientPayloadError",
        "HTTPException",
        "HTTPError",
        "TransportError",
    ),  # aiohttp, http, …
    *("ServiceRequestError", "ServiceResponseError"),  # Azure's
}
_DAMAGED_ON_THE_WAY = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}  # S3's, with status 400
_BUSY = {408, 409, 425, 429}
_LOCAL = {  # permissions too: services that refuse say so without a number of the system's
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE),
    *(errno.EACCES, errno.EPERM),
}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a service."""

    stall_seconds: float = 60.0  # without a byte, and a call is given up
    total_seconds: float = 600.0  # since a call last got further than those before; the last may take a stall longer
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a failed call means."""

    reason: str
    remedy: str
    passes: bool = False  # may be over at the next call
    is_missing: bool = False  # the service has no such file


class Unavailable(Exception):
    """A call that has no answer. For whoever made it: to be raised again as an error that a user can meet.

    Args:
        reason: what was wrong last.
        remedy: what a user can do.
        is_missing: whether the service said that there is nothing.
    """

    def __init__(self, reason: str, remedy: str, *, is_missing: bool = False) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy, self.is_missing = reason, remedy, is_missing


class Pulse:
    """When something last moved, and how often. Its `beat` may be called by any thread."""

    def __init__(self) -> None:
        self.at, self.beats = time.monotonic(), 0

    def beat(self) -> None:
        """Say that something moved."""
        self.at, self.beats = time.monotonic(), self.beats + 1


def persist(
    call: Callable[[Pulse], Future[T]],
    patience: Patience,
    *,
    trouble: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> T:
    """Call until there is an answer.

    Args:
        call: begins one call and beats the pulse whenever something moves. Its future is cancelled at a stall.
        patience: how long.
        trouble: is told the reason when the first call has failed and another will be made.
        stop: gives up at once when set, from another thread.

    Raises:
        Unavailable: no answer, after patience or at once where waiting is of no use.
    """
    stop = stop or threading.Event()
    pause = patience.first_pause_seconds
    trouble_since: float | None = None
    most = 0  # beats of a call
    while True:
        pulse = Pulse()
        try:
            return _watched(call(pulse), pulse, patience.stall_seconds, stop)
        except Exception as error:  # noqa: BLE001 - drivers have errors of their own; `problem_of` tells them apart
            problem, cause = problem_of(error), error
        if not problem.passes:
            raise Unavailable(problem.reason, problem.remedy, is_missing=problem.is_missing) from cause
        if pulse.beats > most:  # a file has so many beats only, so this ends
            most, trouble_since, pause = pulse.beats, None, patience.first_pause_seconds
        if trouble_since is None:
            trouble_since = pulse.at
            trouble(problem.reason)
        left = trouble_since + patience.total_seconds - time.monotonic()
        if left <= 0:
            raise Unavailable(
                f"no answer for {spelled(patience.total_seconds)} ({problem.reason})", _NETWORK
            ) from cause
        stop.wait(min(left, pause * random.uniform(0.5, 1)))
        pause = min(2 * pause, patience.longest_pause_seconds)


def _watched(future: Future[T], pulse: Pulse, stall_seconds: float, stop: threading.Event) -> T:
    """The future's result, as long as its pulse beats."""
    try:
        while True:
            left = pulse.at + stall_seconds - time.monotonic()
            if stop.is_set():
                raise Unavailable("given up", "see what else was reported")
            if left <= 0:
                raise TimeoutError(f"nothing moved for {stall_seconds:g} s")
            try:
                return future.result(timeout=min(left, _LOOK_SECONDS))
            except TimeoutError:
                if future.done():  # its own, or it came this very moment
                    return future.result()
    except BaseException:
        future.cancel()
        raise


def problem_of(error: BaseException) -> Problem:
    """What an error of some driver means."""
    reason = _reason(error)
    chain = list(_chain(error))
    status, code = next(filter(any, map(_status, chain)), (None, None))
    names = {base.__name__ for link in chain for base in type(link).__mro__}
    if isinstance(error, Unavailable):
        return Problem(reason=error.reason, remedy=error.remedy)
    if isinstance(error, OSError) and error.errno in _LOCAL and status is None:
        return Problem(reason=reason, remedy=_DISK)
    if isinstance(error, FileNotFoundError) or status == 404:
        return Problem(reason=f"not found ({reason})", remedy=_NOT_FOUND, is_missing=code != "NoSuchBucket")
    if isinstance(error, PermissionError) or status in (401, 403) or names & _CREDENTIALS:
        return Problem(reason=f"no access ({reason})", remedy=_ACCESS)
    if isinstance(error, TimeoutError) or code in _DAMAGED_ON_THE_WAY:
        return Problem(reason=reason, remedy=_NETWORK, passes=True)
    if status is not None and status >= 300:
        passes = status in _BUSY or (status >= 500 and status != 501)
        return Problem(reason=reason, remedy=_NETWORK if passes else _OTHER, passes=passes)
    if isinstance(error, OSError | EOFError) or names & _NETWORK_ERRORS:
        return Problem(reason=reason, remedy=_NETWORK, passes=True)
    return Problem(reason=f"{type(error).__name__}: {reason}", remedy=_OTHER)


def spelled(seconds: float) -> str:
    """`90` → `90 s`, `600` → `10 minutes`."""
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} s"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> tuple[int | None, str | None]:
    """The HTTP status and the service's own code, as botocore, aiohttp, requests, gcsfs or Azure's driver have them."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):
        metadata, details = response.get("ResponseMetadata") or {}, response.get("Error") or {}
        return metadata.get("HTTPStatusCode"), details.get("Code")
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value, None
    return None, None


def _reason(error: BaseException) -> str:
    """One line, not too long."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
