"""Checkpoints of a run → what their revisions on the hub hold: files, a card each, and nothing of this machine.

    examine each (every tensor is read) → files of transformers, card, run.json without paths, loss curve, state/ if asked

A revision is named by phase and tokens, `stable-12.583M-tokens`, as published intermediate checkpoints usually are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from modernbert.console import Console
from modernbert.errors import CheckpointError, ConfigError, DataError
from modernbert.evaluate import run_report
from modernbert.evaluate.describe import describe
from modernbert.evaluate.model_card import HUB_NAME, Published, Source, Story, render
from modernbert.model import hub
from modernbert.patience import Patience
from modernbert.preflight import data_fingerprint
from modernbert.text import load_tokenizer, read_manifest
from modernbert.text.tokenizer import special_names
from modernbert.train.checkpoint import CURVE_FILE, RUN_FILE, RunFolder, read_about
from modernbert.uploading import Content

CARD, STATE = "README.md", "state/"
_MODEL_FILES = (hub.CONFIG, hub.WEIGHTS, "tokenizer.json", "tokenizer_config.json")
_PATH = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?[\\/][^\s'\",;:()]+")  # absolute, within a sentence
_MARK = "<!-- modernbert publish: {} -->\n"


class Revision(NamedTuple):
    """A checkpoint, and what is to be uploaded of it."""

    published: Published
    files: dict[str, Content]
    num_bytes: int  # of all its files

    @classmethod
    def of(cls, published: Published, files: dict[str, Content]) -> Revision:
        """The same, measured now: a run may delete its checkpoint later."""
        sizes = (len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
        return cls(published, files, sum(sizes))


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Revisions of a run, oldest first, and which checkpoint `main` holds."""

    revisions: Sequence[Revision]
    main: Revision
    main_is_chosen: bool  # by the user: it may be older than what is there
    about: dict[str, Any]  # run.json


def revision_name(phase: str, tokens: int) -> str:
    """A checkpoint's branch, by itself alone, so that it stays the same whatever else is published."""
    for limit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if tokens >= limit:
            return f"{phase}-{float(f'{tokens / limit:.5g}'):g}{letter}-tokens"
    return f"{phase}-{tokens}-tokens"


def prepare(
    run: Path,
    repo: str,
    checkpoints: Sequence[Path],
    *,
    main: str | None = None,
    licence: str | None = None,
    languages: Sequence[str] = (),
    with_state: bool = False,
    console: Console,
) -> Publication:
    """Examine checkpoints and make the files of their revisions; the hub is not asked.

    Raises:
        CheckpointError: a checkpoint that a reader would fail on or misread.
    """
    published = [_published(path) for path in checkpoints]
    twice = [name for name, count in Counter(p.revision for p in published).items() if count > 1]
    if twice:
        both = ", ".join(p.checkpoint for p in published if p.revision == twice[0])
        raise ConfigError(f"{both} would all be the revision {twice[0]}; give one of them by --checkpoint")
    about = read_about(run)
    examined = {}
    with console.progress("examining", len(checkpoints)) as update:
        for number, path in enumerate(checkpoints, start=1):
            examined[path.name] = _examined(path)
            update(number, path.name)
    curve = run / CURVE_FILE
    if not curve.exists():
        console.remark(f"{curve} is not there, so cards show no curve")
    story = Story(
        repo=repo, found=run_report.report(run, reference="none"), about=examined, recipe=without_paths(about["recipe"]),
        sources=sources_of(about, console), revisions=published, licence=licence, languages=languages,
        mask=special_names(load_tokenizer(checkpoints[-1]))["mask"], has_curve=curve.exists(), with_state=with_state,
    )  # fmt: skip
    extra: dict[str, Content] = {CURVE_FILE: curve.read_bytes()} if curve.exists() else {}
    revisions = [
        Revision.of(own, {**extra, **_files(path, own, with_state), CARD: _card(story, own, own.revision)})
        for path, own in zip(checkpoints, published, strict=True)
    ]
    chosen = Path(main).name if main else checkpoints[-1].name
    newest = next(revision for revision in revisions if revision.published.checkpoint == chosen)
    on_main = Revision.of(newest.published, {**newest.files, CARD: _card(story, newest.published, None)})
    return Publication(revisions=revisions, main=on_main, main_is_chosen=main is not None, about=about)


def _published(checkpoint: Path) -> Published:
    progress = RunFolder.progress_of(checkpoint)
    phase = checkpoint.name.rpartition("-")[0]
    return Published(checkpoint.name, revision_name(phase, progress.tokens), phase, progress.step, progress.tokens)


def _examined(checkpoint: Path) -> dict[str, Any]:
    found = describe(checkpoint)
    fault = next((finding["text"] for finding in found["findings"] if finding["level"] == "error"), None)
    if fault is not None:
        raise CheckpointError(
            f"{checkpoint}: {fault}; it is not published (`modernbert doctor {checkpoint}` says more)"
        )
    return found


def _files(checkpoint: Path, own: Published, with_state: bool) -> dict[str, Content]:
    files: dict[str, Content] = {name: checkpoint / name for name in _MODEL_FILES if (checkpoint / name).exists()}
    about = {**without_paths(read_about(checkpoint)), "published": own._asdict()}
    files[RUN_FILE] = (json.dumps(about, indent=2) + "\n").encode()
    if with_state:
        states = (path for path in sorted((checkpoint / STATE).rglob("*")) if path.is_file())
        files |= {path.relative_to(checkpoint).as_posix(): path for path in states}
    return files


def without_paths(values: Any, key: str = "") -> Any:
    """What run.json says, less where things were on this machine: of each path its last part; hub names as they are."""
    if isinstance(values, dict):
        return {name: without_paths(value, "path" if key == "sources" else name) for name, value in values.items()}
    if isinstance(values, list):
        return [without_paths(value, key) for value in values]
    if not isinstance(values, str):
        return values
    if key == "path" or (key in ("checkpoint", "tile_from") and not is_hub_name(values)):
        return PurePath(values).name
    if key == "ended" and values.startswith("error"):
        return "error"  # what it said may name files in any way
    return _PATH.sub(_last_part, values)


def is_hub_name(name: str) -> bool:
    """Whether a model's name is one of the hub's, as no such folder is here."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).is_dir()


def _last_part(found: re.Match[str]) -> str:
    return re.split(r"[\\/]", found[0].rstrip("\\/"))[-1]


def sources_of(about: dict[str, Any], console: Console) -> list[Source]:
    """The text of a run, with what its shards say where they are at hand and are still those it read."""
    data = about["recipe"].get("data") or {}
    folders = data.get("sources") or {"text": data.get("path") or ""}
    told = about.get("data")
    fingerprints = told if isinstance(told, dict) else {}  # one for all sources in older runs
    found = []
    for name, path in folders.items():
        manifest = None
        with contextlib.suppress(DataError, ConfigError):  # an address may need a package, or be gone
            found_there = read_manifest(path, patience=Patience(total_seconds=30))
            manifest = found_there if data_fingerprint(found_there) == fingerprints.get(name) else None
        if manifest is None:
            console.remark(f"{path} does not hold the text of {name} (any more), so the cards do not say what is in it")
        found.append(Source(name, fingerprints.get(name), manifest))
    return found


def _card(story: Story, own: Published, revision: str | None) -> bytes:
    """The card, marked so that one which people have edited is told from it."""
    text = render(story, own.checkpoint, revision)
    return (text + _MARK.format(_digest(text))).encode()


def is_written_by_hand(card: bytes) -> bool:
    """Whether people wrote a card, or edited one of these."""
    text, mark = card[: -len(_MARK.format("0" * 16))], card[-len(_MARK.format("0" * 16)) :]
    return mark != _MARK.format(_digest(text.decode(errors="replace"))).encode()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
