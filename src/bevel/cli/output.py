"""What the command line prints: JSON on stdout, or tables and progress for people.

With `--json` stdout holds one JSON object and nothing else. Messages go to stderr, and so does progress, on a terminal only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from bevel.compiler import Say

STDERR = Console(stderr=True)


def _reader_left() -> NoReturn:
    """End well when nobody reads on, as in `bevel ops | head`; what Python still holds for stdout goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise click.exceptions.Exit(0)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        _reader_left()


def emit(as_json: bool, document: Mapping[str, Any], text: Iterable[Any]) -> None:
    """Print `document` as JSON, or the renderables of `text`."""
    if as_json:
        try:
            click.echo(json.dumps(document, indent=1))
        except BrokenPipeError:
            _reader_left()
        return
    # Piped text is not wrapped: a table's columns stay on their line for grep and less.
    console = _Output()
    if not console.is_terminal:
        console = _Output(width=180)
    for item in text:
        console.print(item, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose columns are right-aligned where they hold numbers."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(_is_number(row[index]) for row in cells)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*row)
    return grid


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "").replace("-", "").replace("e", "").replace("+", "").rstrip(" %x").isdigit()


@contextmanager
def progress() -> Iterator[Say]:
    """A reporter (stage, done, total) that draws bars on a terminal and is silent in a pipe."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=STDERR, transient=True, disable=not STDERR.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def say(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield say


def kib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1024:.1f} KiB"
