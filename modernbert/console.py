"""What a person sees: lines, tables and progress. Passed to long work as a value; the library itself is silent.

Progress goes to standard error, as a live bar on a terminal and as an occasional line elsewhere, so that standard
output holds results only.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Update = Callable[..., None]
"""`update(done, note="")`: how much is done now, and a few words beside the bar."""

_SECONDS_BETWEEN_LINES = 15.0
_WIDTH_OF_A_FILE = 110  # of tables where there is no terminal to ask


class Console:
    """Speaks to a person, or to nobody.

    Args:
        quiet: say nothing on standard output, for `--json`; progress still goes to standard error.
        silent: say nothing at all: another process of the same run does.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
        self._out = RichConsole(quiet=quiet or silent, highlight=False, soft_wrap=True, width=width)
        # On a terminal all goes through one console, or lines would run into the live bar.
        one_is_enough = self._out.is_terminal and not quiet
        self._err = (
            self._out if one_is_enough else RichConsole(stderr=True, quiet=silent, highlight=False, soft_wrap=True)
        )

    def say(self, text: str = "") -> None:
        """Print a line; the text is taken as it is."""
        self._out.print(escape(text))

    def heading(self, text: str) -> None:
        """Print the title of a chapter."""
        self._out.print(f"\n[bold]{escape(text)}[/bold]")

    def remark(self, text: str) -> None:
        """Print a line beside the results, on standard error."""
        self._err.print(escape(text), style="dim")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; columns of numbers are set right."""
        table = Table()
        for index, column in enumerate(columns):
            numeric = all(_is_number(row[index]) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self._out.print(table, soft_wrap=False)

    @contextlib.contextmanager
    def progress(self, description: str, total: float | None = None) -> Iterator[Update]:
        """Show the progress of some work; `total` None where its end is not known."""
        if not self._err.is_terminal:
            yield self._lines(description, total)
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %") if total else TextColumn("{task.completed:,.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if total else []),
        ]
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)

    def _lines(self, description: str, total: float | None) -> Update:
        said_at = time.monotonic()

        def update(done: float, note: str = "") -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= _SECONDS_BETWEEN_LINES:
                said_at = time.monotonic()
                share = f"{done / total:4.0%}" if total else f"{done:,.0f}"
                self._err.print(escape(f"{description}  {share}  {note}"))

        return update


def fail(message: str) -> None:
    """Print a refusal: one line on standard error."""
    sys.stderr.write(f"modernbert: {' '.join(message.split())}\n")


def _is_number(cell: object) -> bool:
    text = str(cell).replace(",", "").rstrip("%× ").lstrip("±")
    return text in ("", "–") or text.replace(".", "", 1).replace("-", "", 1).isdigit()
