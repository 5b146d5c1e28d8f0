"""A run → its checkpoints as revisions of a hub repository, each with a model card: `modernbert publish`.

    choose checkpoints → what each revision holds (`publication`) → shown, or uploaded (`uploading`)

A checkpoint becomes a branch, and `main` holds the newest. What the hub has is left out, so the same command goes on with a
publication that was cut off, or adds what a run has saved since. Without `yes` nothing is sent and the hub is not asked.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modernbert.console import Console
from modernbert.disk import write_whole
from modernbert.errors import CheckpointError, ConfigError
from modernbert.model import hub
from modernbert.publication import CARD, STATE, Publication, Revision, is_written_by_hand, prepare
from modernbert.train.checkpoint import CURVE_FILE, RUN_FILE, RunFolder, read_about
from modernbert.uploading import MAIN, Content, Repository, bars_on_terminals, check_name, not_a_models

_TOLD = (CARD, RUN_FILE, CURVE_FILE)  # about the model; what was published with the weights stands
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def publish(
    run: Path,
    repo: str,
    *,
    checkpoints: Sequence[str] = (),
    every: bool = False,
    main: str | None = None,
    licence: str | None = None,
    languages: Sequence[str] = (),
    private: bool = False,
    with_state: bool = False,
    replace: bool = False,
    yes: bool = False,
    card: Path | None = None,
    endpoint: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """Publish a run, or say what would be. The same call goes on with a publication that was cut off.

    Args:
        run: its folder; another process may be training in it.
        repo: owner/name, made where it is not there.
        checkpoints: names of those to publish; phase ends and the newest if none are given.
        every: publish all there are.
        main: the checkpoint for `main`; the newest of those published if not given.
        licence: an identifier of the hub's, such as apache-2.0; needed for `yes`.
        languages: codes of the text's languages, such as en.
        private: of a repository that is made.
        with_state: optimizer and place in the text too, three times the bytes.
        replace: commit over revisions that hold something else, and cards that were edited by hand.
        yes: upload.
        card: where to write the card of `main` for looking at.
        endpoint: the hub's address; the client's own choice (HF_ENDPOINT) if not given.
        console: for remarks and progress.

    Returns:
        Plain data: `repo`, `url`, `uploaded`, `main`, `card`, `revisions`, each with its files, bytes and status.

    Raises:
        CheckpointError: no run, no checkpoint, one whose files contradict each other, or the hub could not be reached.
        ConfigError: a bad name, no licence, or the hub does not let this user do it.
    """
    check_name(repo)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ConfigError(
            f"--licence {licence!r} is no identifier of the hub's; give one such as apache-2.0, mit or other"
        )
    if yes and licence is None:
        raise ConfigError(
            "no licence was given, and what is published needs one; add --licence apache-2.0, mit, other, …"
        )
    chosen = choose(run, checkpoints, every=every, main=main)
    if is_in_use(run):
        console.remark(f"another process is training in {run}; its checkpoints are whole, and these are published")
    publication = prepare(
        run, repo, chosen, main=main, licence=licence, languages=languages, with_state=with_state, console=console
    )
    if card is not None:
        _write_card(card, publication.main.files[CARD])
    repository = Repository(repo, endpoint=endpoint)
    statuses = dict.fromkeys([*(r.published.revision for r in publication.revisions), MAIN], "not uploaded")
    if yes:
        repository.create(private=private)
        with bars_on_terminals():
            statuses = upload(publication, repository, replace=replace, remark=console.remark)
    return {
        "repo": repo, "url": repository.url, "uploaded": yes, "licence": licence, "card": None if card is None else str(card),
        "main": {"checkpoint": publication.main.published.checkpoint, "status": statuses[MAIN]},
        "revisions": [
            {**r.published._asdict(), "files": sorted(r.files), "bytes": r.num_bytes, "status": statuses[r.published.revision]}
            for r in publication.revisions
        ],
    }  # fmt: skip


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `publish` did, or would do."""
    rows = [
        [r["checkpoint"], r["revision"], len(r["files"]), f"{r['bytes'] / 1e6:,.1f}", r["status"]]
        for r in result["revisions"]
    ]
    main = result["main"]
    console.table(
        ["checkpoint", "revision", "files", "MB", "status"], [*rows, [main["checkpoint"], MAIN, "", "", main["status"]]]
    )
    console.say(f"each: {', '.join(result['revisions'][-1]['files'])}")
    if result["uploaded"]:
        console.say(f"published: {result['url']}")
        return
    console.say(f"the card of main: {result['card']}")
    if result["licence"] is None:
        console.say("no licence yet: add --licence apache-2.0, mit, other, …")
    console.say(f"nothing was uploaded, and {result['url']} was not looked at; give --yes to upload")


def choose(run: Path, names: Sequence[str], *, every: bool, main: str | None) -> list[Path]:
    """Checkpoints to publish, oldest first: those named, all, or phase ends and the newest; and the one for `main`.

    Raises:
        CheckpointError: no run, no checkpoint, or none of a name.
        ConfigError: both names and all.
    """
    read_about(run)
    there = {path.name: path for path in RunFolder(run).checkpoints()}
    if not there:
        raise CheckpointError(f"{run} holds no whole checkpoint; publish it once its run has saved one")
    if names and every:
        raise ConfigError(f"--all publishes {names[0]} too; give --all or --checkpoint, not both")
    wanted = [Path(name).name for name in [*names, *([main] if main else [])]]
    for name in wanted:
        if name not in there:
            raise CheckpointError(f"{name}: {run} holds no such checkpoint; there are {', '.join(there)}")
    if not names:
        last_of_phase = {name.rpartition("-")[0]: name for name in there}
        wanted += there if every else last_of_phase.values()
    return [path for name, path in there.items() if name in wanted]


def is_in_use(run: Path) -> bool:
    """Whether another process is training in a run's folder."""
    try:
        with (run / ".lock").open() as file:  # not `try_lock`, which would empty what the run has written in it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # none there, or another user's
        return False
    return False


def _write_card(path: Path, content: Content) -> None:
    assert isinstance(content, bytes)
    try:
        write_whole(path, content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another --card") from error


# --- what the hub has, and what it is sent


class _Step(NamedTuple):
    """What is to be done for a branch; nothing where it has all files."""

    branch: str
    status: str
    files: dict[str, Content]
    delete: frozenset[str] = frozenset()


def upload(
    publication: Publication, repository: Repository, *, replace: bool, remark: Callable[[str], None]
) -> dict[str, str]:
    """Bring a repository to hold a publication: a commit for each revision that it does not hold, `main` last.

    Returns:
        Of each branch what became of it.

    Raises:
        ConfigError: before anything is sent: a revision, or `main`, holds a model that is not this one.
    """
    branches = repository.branches()
    steps = [_branch_step(repository, revision, branches, replace=replace) for revision in publication.revisions]
    steps.append(_main_step(repository, publication, replace=replace, remark=remark))
    told = {r.published.revision: r for r in publication.revisions} | {MAIN: publication.main}
    for step in steps:
        own = told[step.branch].published
        if step.files:
            if step.branch not in branches:
                repository.start_branch(step.branch)
            remark(f"{step.branch}: uploading {', '.join(sorted(step.files))}")
            message = f"{own.checkpoint}: phase {own.phase}, {own.tokens:,} tokens, step {own.step:,}"
            repository.commit(step.files, revision=step.branch, message=message, delete=step.delete)
    return {step.branch: step.status for step in steps}


def _branch_step(repository: Repository, revision: Revision, branches: set[str], *, replace: bool) -> _Step:
    name = revision.published.revision
    there = repository.hashes(name) if name in branches else {}
    differing = repository.differing(revision.files, there)
    if not differing or (not differing - set(_TOLD) and not replace):
        return _Step(name, "there already", {})
    is_other = hub.WEIGHTS in differing and hub.WEIGHTS in there
    if is_other and not replace:
        raise ConfigError(
            f"{repository.name} has a revision {name} with other weights; choose another repository, or say --replace to "
            "commit over it"
        )
    stale = {path for path in there if path not in revision.files and not not_a_models(path)} if is_other else set()
    return _Step(name, "uploaded", {path: revision.files[path] for path in differing}, frozenset(stale))


def _main_step(
    repository: Repository, publication: Publication, *, replace: bool, remark: Callable[[str], None]
) -> _Step:
    """`main` follows its own run; another run's model, or a card that people edited, stays unless it is to be replaced."""
    files, there, own = publication.main.files, repository.hashes(MAIN), publication.main.published
    differing, stale = repository.differing(files, there), set[str]()
    if differing & there.keys() & {hub.CONFIG, hub.WEIGHTS}:
        theirs = repository.read_json(RUN_FILE)
        known = theirs.get("published")
        if not (isinstance(known, dict) and isinstance(known.get("tokens"), int)):  # it may be anybody's
            known = {}
        if not _is_same_run(theirs, publication.about):
            if not replace:
                raise ConfigError(
                    f"{repository.name} holds a model that is not of this run; choose another repository, or say --replace "
                    "to commit over it"
                )
            stale = {path for path in there if path not in files and not not_a_models(path)}
        elif known.get("tokens", 0) > own.tokens and not publication.main_is_chosen:
            remark(
                f"main holds {known.get('checkpoint')}, which is newer, and stays; --main {own.checkpoint} sets it back"
            )
            return _Step(MAIN, f"stays at {known.get('checkpoint')}", {})
        else:
            stale = {path for path in there if path.startswith(STATE) and path not in files}
    if CARD in differing & there.keys() and not replace and is_written_by_hand(repository.read(CARD) or b""):
        remark(f"{CARD} of main was written by hand and stays; --replace puts the new one in its place")
        differing.discard(CARD)
    if not differing:
        return _Step(MAIN, "there already", {})
    return _Step(MAIN, "uploaded", {path: files[path] for path in differing}, frozenset(stale))


def _is_same_run(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two run.json, the first from anywhere, are of one run: begun in the same second on the same text."""

    def mark(about: dict[str, Any]) -> tuple[Any, Any]:
        sessions = about.get("sessions")
        first = sessions[0] if isinstance(sessions, list) and sessions else None
        return first.get("started_at") if isinstance(first, dict) else None, about.get("data")

    return mark(theirs) == mark(ours)
