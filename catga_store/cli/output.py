"""What commands print: tables for people, JSON for programs.

On a terminal a table has colours and is as wide as the screen; elsewhere it is plain columns that
nothing is cut off, one line a row. Control characters in ids are shown escaped. JSON is one document,
in ASCII, its times ISO 8601 in UTC; a long list is written as it is read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import UTC
from datetime import datetime
from typing import Any
from typing import NoReturn

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Row", "escaped", "print_json", "print_json_list", "print_rows", "stdout", "when"]

Row = Sequence[str]

_STYLES = {
    "COMPLETED": "green",
    "SATISFIED": "green",
    "ok": "green",
    "FAILED": "bold red",
    "problem": "bold red",
    "CANCELLED": "dim",
    "COMPENSATING": "yellow",
    "TIMED_OUT": "yellow",
    "warning": "yellow",
    "unknown": "yellow",
    "SUSPENDED": "cyan",
    "PENDING": "cyan",
    "RUNNING": "blue",
}


class _Stdout(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the guard: `rich` would exit with 1, which means something here."""
        raise BrokenPipeError


def stdout() -> Console:
    """Answer the console to print to."""
    return _Stdout(highlight=False)


def escaped(text: str) -> str:
    """Show control characters instead of sending them: an id may hold any."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def when(moment: datetime | None) -> str:
    """Show a moment in a table: UTC, to the second; empty for none."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def print_rows(columns: Row, rows: Iterable[Row]) -> None:
    """Print a table; a cell that is a known word is coloured."""
    shown = [[escaped(cell) for cell in row] for row in rows]
    console = stdout()

    if not console.is_terminal:
        widths = [max(map(len, cells)) for cells in zip(columns, *shown, strict=True)]
        for row in (columns, *shown):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())  # noqa: T201  this is what the command is for

        return

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")

    for row in shown:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))

    console.print(table)


def print_json(document: object) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, default=_known))  # noqa: T201  this is the command's answer


def print_json_list(name: str, items: Iterable[object], rest: Callable[[], dict[str, Any]]) -> None:
    """Print `{name: [item, …], …}`, an item a line, as they come; `rest` is asked at the end."""
    write = sys.stdout.write
    comma = f"{{{json.dumps(name)}: ["  # not before there is an answer: an error comes instead
    for item in items:
        write(f"{comma}\n  {json.dumps(item, default=_known)}")
        comma = ","

    write("\n]" if comma == "," else f"{comma}]")
    for key, value in rest().items():
        write(f", {json.dumps(key)}: {json.dumps(value, default=_known)}")

    write("}\n")


def _known(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()

    raise TypeError(value)
