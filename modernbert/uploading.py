"""Files → a revision of a repository on the hub, in one commit; what the revision holds already is left out.

A revision is a branch off the repository's first commit, which holds no model: so it has the files given and nothing of
its neighbours. A commit has all files or none, and blobs that were uploaded before a cut are not uploaded again: a
publication that was cut off leaves whole revisions behind, and the same calls go on. Price: each file is read once to be
compared (nothing is fetched for it) and once more to be uploaded.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from modernbert import __version__
from modernbert.errors import CheckpointError, ConfigError, ModernBertError

Content: TypeAlias = Path | bytes
Files: TypeAlias = Mapping[str, Content]
"""What a revision holds: path in the repository → a local file, or its contents."""

MAIN = "main"
_OWN = (".gitattributes", ".gitignore")  # the hub's and its owner's, not a model's
# What the client raises for a connection differs by its version; all of it has a common base with HfHubHTTPError.
_FAILURES = (OSError, RuntimeError, ValueError, *HfHubHTTPError.__bases__)


def check_name(name: str) -> str:
    """A repository's name, as it is.

    Raises:
        ConfigError: it is none.
    """
    refusal = f"{name!r} is no repository's name; give owner/name, of letters, digits, single '-', '_' and '.'"
    if name.count("/") != 1:
        raise ConfigError(refusal)
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ConfigError(refusal) from error
    return name


class Repository:
    """A model repository on the hub.

    Args:
        name: owner/name.
        endpoint: the hub's address; the client's own choice (HF_ENDPOINT) if not given.

    Raises:
        ConfigError: of each method: a name that is none, or the hub does not let this user do it.
        CheckpointError: likewise: it could not be reached, or broke off; the same call goes on.
    """

    def __init__(self, name: str, *, endpoint: str | None = None) -> None:
        self.name = check_name(name)
        self._api = HfApi(endpoint=endpoint, library_name="modernbert", library_version=__version__)
        self._hashes: dict[tuple[Path, bool], str] = {}

    @property
    def url(self) -> str:
        """Where people find it."""
        return f"{self._api.endpoint}/{self.name}"

    def create(self, *, private: bool) -> None:
        """Make it where it is not there, after asking the hub who is asking.

        Raises:
            ConfigError: it should be private, and is there and public.
        """
        with self._saying():
            self._api.whoami()
            self._api.create_repo(self.name, private=True if private else None, repo_type="model", exist_ok=True)
            is_private = bool(self._api.model_info(self.name).private)
        if private and not is_private:
            raise ConfigError(
                f"{self.name} is there already and public, and --private was asked for; change that in its settings on the "
                "hub, or choose another name"
            )

    @cached_property
    def _first_commit(self) -> str:
        return self._api.list_repo_commits(self.name)[-1].commit_id

    def branches(self) -> set[str]:
        """Names of its branches."""
        with self._saying():
            return {branch.name for branch in self._api.list_repo_refs(self.name).branches}

    def hashes(self, revision: str) -> dict[str, tuple[bool, str]]:
        """Of each file of a revision: whether it is kept as a large one, and its hash."""
        with self._saying():
            entries = list(self._api.list_repo_tree(self.name, revision=revision, recursive=True))
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {f.path: (True, f.lfs.sha256) if f.lfs else (False, f.blob_id) for f in files}

    def differing(self, files: Files, there: Mapping[str, tuple[bool, str]]) -> set[str]:
        """Paths of the files that a revision (its `hashes`) does not hold as they are."""
        with self._saying():
            return {
                path for path, content in files.items() if path not in there or not self._is_same(content, *there[path])
            }

    def _is_same(self, content: Content, large: bool, digest: str) -> bool:
        if isinstance(content, bytes):
            return digest == _hash(io.BytesIO(content), large)
        if (content, large) not in self._hashes:
            with content.open("rb") as file:
                self._hashes[content, large] = _hash(file, large)
        return self._hashes[content, large] == digest

    def read(self, path: str, revision: str = MAIN) -> bytes | None:
        """The contents of a small file; None where the revision has none of that name."""
        with tempfile.TemporaryDirectory() as folder, self._saying():
            try:
                found = self._api.hf_hub_download(self.name, path, revision=revision, local_dir=folder)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):  # the hub was not reached
                    raise
                return None
            return Path(found).read_bytes()

    def read_json(self, path: str, revision: str = MAIN) -> dict[str, Any]:
        """The same as an object; empty where there is none that can be read."""
        try:
            values = json.loads(self.read(path, revision) or b"{}")
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}

    def start_branch(self, name: str) -> None:
        """Make a branch that holds no model, where it is not there."""
        with self._saying():
            self._api.create_branch(self.name, branch=name, revision=self._first_commit, exist_ok=True)

    def commit(
        self, files: Files, *, revision: str, message: str, delete: set[str] | frozenset[str] = frozenset()
    ) -> None:
        """Put files into a revision and take others out, all at once."""
        operations = [CommitOperationDelete(path) for path in sorted(delete)]
        with self._saying():
            for path, content in files.items():
                if isinstance(content, Path):
                    content.stat()  # the client would say of a missing one nothing that can be told from other failures
                operations.append(CommitOperationAdd(path, content if isinstance(content, bytes) else str(content)))
            self._api.create_commit(self.name, operations, commit_message=message, revision=revision)

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except ModernBertError:
            raise
        except _FAILURES as error:
            raise _said(self.name, self._api.endpoint, error) from error


@contextlib.contextmanager
def bars_on_terminals() -> Iterator[None]:
    """The client's own bars of its uploads, on a terminal only."""
    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _hash(file: BinaryIO, large: bool) -> str:
    return sha_fileobj(file).hex() if large else git_hash(file.read())


def not_a_models(path: str) -> bool:
    """Whether a file of a repository belongs to no model in it."""
    return path in _OWN


def _said(name: str, endpoint: str, error: BaseException) -> ModernBertError:
    """What to tell a user of a failure: whose it is, and what to do."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    status = next((s for e in causes if (s := getattr(getattr(e, "response", None), "status_code", None))), None)
    if any(isinstance(e, OfflineModeIsEnabled) for e in causes):
        return ConfigError(f"{name}: HF_HUB_OFFLINE keeps the hub's client from the network; unset it to publish")
    if any(isinstance(e, LocalTokenNotFoundError) for e in causes) or status == 401:
        return ConfigError(
            f"{name}: the hub does not know who is asking (401, no valid token); give `hf auth login`, or set HF_TOKEN to a "
            f"token that may write to {name.partition('/')[0]}"
        )
    if status == 403:
        return ConfigError(
            f"{name}: this token may not write there (403); take one that may, with `hf auth login` or HF_TOKEN, or another "
            "owner's name"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ConfigError(
            f"{name}: the hub has no such repository for this token; check the name and `hf auth whoami`"
        )
    missing = next((e for e in causes if isinstance(e, FileNotFoundError) and e.filename), None)
    if missing is not None:
        return CheckpointError(
            f"{missing.filename} went away while it was being published (a run deletes older checkpoints); give the same "
            "command again"
        )
    what = (str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0]
    return CheckpointError(
        f"{name}: {endpoint} did not do it ({f'{status}, ' if status else ''}{what}); check the network and that address. What "
        "was uploaded is whole, and the same command goes on"
    )
