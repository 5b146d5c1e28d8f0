"""A fine-tuned folder + texts from arguments, files or lines → an answer each, in their order and as they come."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modernbert.errors import CheckpointError, ConfigError, DataError
from modernbert.runtime import Runtime
from modernbert.tasks import load
from modernbert.tasks.head import HeadModel
from modernbert.text.examples import Kind
from modernbert.text.labelled import Columns, read_labelled

_TWO_BY_TWO: dict[Kind, str] = {"pair": "a text and its pair", "answer": "a question and its passage"}


def load_head(folder: str | Path, runtime: Runtime) -> HeadModel:
    """A fine-tuned model, ready to answer.

    Raises:
        CheckpointError: there is none, or it has no head that answers.
    """
    model = load(folder, device=runtime.device)
    if not isinstance(model, HeadModel):
        raise CheckpointError(
            f"{folder} has no head that classifies, tags or answers; make one with `modernbert finetune`"
        )
    return model


def given_items(
    model: HeadModel, arguments: Sequence[str], files: Sequence[Path], lines: Iterable[str], columns: Columns
) -> Iterator[Any]:
    """What to answer: arguments (two by two for pairs and questions), the records of files, or lines.

    A line that is a JSON object is an item of its own: `{"text": …}`, `{"text": …, "pair": …}`, `{"question": …,
    "context": …}`. Any other line is a text.

    Raises:
        ConfigError: arguments and files, or an odd one left over.
        DataError: nothing, or a line that is no item.
    """
    kind: Kind = model.settings.kind or "classify"
    if arguments and files:
        raise ConfigError(f"give texts or --file {files[0]}, not both")
    if arguments:
        yield from _of_arguments(kind, arguments)
    elif files:
        for file in files:
            yield from read_labelled(file, kind, columns, labelled=False).examples
    else:
        yield from _of_lines(kind, lines)


def _of_arguments(kind: Kind, arguments: Sequence[str]) -> Iterator[Any]:
    if kind not in _TWO_BY_TWO:
        yield from arguments
        return
    if len(arguments) % 2:
        raise ConfigError(
            f"an odd number of texts ({len(arguments)}), and this model takes {_TWO_BY_TWO[kind]}, two by two; give the other one"
        )
    yield from zip(arguments[::2], arguments[1::2], strict=True)


def _of_lines(kind: Kind, lines: Iterable[str]) -> Iterator[Any]:
    number = 0
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if text.lstrip().startswith("{"):
            try:
                yield json.loads(text)
                continue
            except ValueError as error:
                if kind in _TWO_BY_TWO:
                    raise DataError(f"line {number} is no JSON object ({error}); write one a line") from error
        if kind in _TWO_BY_TWO:
            raise DataError(
                f"line {number} is one text, and this model takes {_TWO_BY_TWO[kind]}; write a JSON object a line"
            )
        yield text
    if not number:
        raise DataError("standard input is empty; give a text, --file, or lines")


def predict_lines(
    model: HeadModel, items: Iterable[Any], runtime: Runtime, *, as_they_come: bool
) -> Iterator[dict[str, Any]]:
    """Answers one by one; `as_they_come` answers what is there whenever there is something, as for a person who types."""
    with runtime.autocast():
        yield from model.predict_windows(ready(items)) if as_they_come else model.predict_each(items)


def ready(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of what has come since the last one, at most 1,024 items; waits for the first of each.

    Raises:
        Exception: what reading an item raised, behind the items before it.
    """
    waiting: queue.Queue[tuple[Any, BaseException | None] | None] = queue.Queue(_WAITING)

    def read() -> None:
        try:
            for item in items:
                waiting.put((item, None))
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            waiting.put((None, error))
        waiting.put(None)

    threading.Thread(target=read, daemon=True, name="reading").start()  # a terminal may never say another line
    while (found := waiting.get()) is not None:
        window: list[Any] = []
        while found is not None and found[1] is None:
            window.append(found[0])
            if waiting.empty() or len(window) == _WAITING:
                break
            found = waiting.get()
        if window:
            yield window
        if found is None:
            return
        if found[1] is not None:
            raise found[1]


_WAITING = 1_024
