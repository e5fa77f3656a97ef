"""What commands print: tables for people, JSON for programs.

On a terminal a table has colours and fits the screen; elsewhere it is plain columns, one line a row,
and nothing is cut off. Control characters in ids are shown escaped, and so is what the
encoding of the output cannot show. JSON is one document, always in ASCII, its times ISO 8601 in UTC; a
long list is written as it is read.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Any
from typing import NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from catga_store.model.documents import json_value
from catga_store.model.time_texts import length
from catga_store.model.times import MS
from catga_store.protocol.masking import escaped

__all__ = [
    "Row",
    "counted",
    "escape_what_cannot_be_shown",
    "escaped",
    "print_hanging",
    "print_json",
    "print_json_list",
    "print_rows",
    "relative",
    "replace_closed_streams",
    "say",
    "stdout",
    "when",
]

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
        """Leave it to `exit_codes`: `rich` would exit with 1, which means something else here."""
        raise BrokenPipeError


_ASCII = {"→": "->", "…": "...", "µ": "u"}
"""What the commands' own texts have besides ASCII, and how it is written where it cannot be shown."""


def replace_closed_streams() -> None:
    """Open the null device for each standard stream that was closed, as by `>&-`.

    Python has None there, and the next file that is opened would get the stream's descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Open until the process ends, like the stream that it replaces.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def escape_what_cannot_be_shown() -> None:
    """Let output in any encoding, as cp1252 or ASCII, escape a character instead of failing."""
    codecs.register_error(__name__, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=__name__)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error

    text = error.object[error.start : error.end]
    shown = [
        _ASCII.get(one) or one.encode("ascii", "backslashreplace").decode("ascii") for one in text
    ]
    return "".join(shown), error.end


def stdout() -> Console:
    """Return the console that prints to stdout."""
    return _Stdout(highlight=False)


def counted(number: int, noun: str) -> str:
    """Return the number with its noun: `1 flow`, `2 flows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def when(moment: datetime | None) -> str:
    """Return a time as tables show it: in UTC, to the second; empty for `None`."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def relative(moment: datetime | None) -> str:
    """Return a time in its largest unit, as how long ago it was, or will be: `2 h ago`, `in 5 min`; `-` for `None`."""
    if moment is None:
        return "-"

    ms = (datetime.now(UTC) - moment) // MS
    text = " ".join(length(abs(ms)).split()[:2])
    return f"in {text}" if ms < 0 else f"{text} ago"


def say(text: object) -> None:
    """Print a line. `typer.echo` would write UTF-8 where the output is ASCII."""
    print(text)  # noqa: T201  this is what commands are for


def print_rows(columns: Row, rows: Iterable[Row]) -> None:
    """Print a table; a cell that is a known word is coloured.

    On a terminal, empty columns are left out, and a table that is too wide is printed as a paragraph
    for each row, so that no value is cut off.
    """
    shown = [[escaped(cell) for cell in row] for row in rows]
    console = stdout()

    if not console.is_terminal:
        widths = [max(map(len, cells)) for cells in zip(columns, *shown, strict=True)]
        for row in (columns, *shown):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())  # noqa: T201  this is what the command is for

        return

    filled = [
        place for place in range(len(columns)) if any(row[place] not in _NOTHING for row in shown)
    ]
    if filled and shown:
        columns = [columns[place] for place in filled]
        shown = [[row[place] for place in filled] for row in shown]

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)

    for row in shown:
        table.add_row(*(_styled(cell) for cell in row))

    if _least_width(columns, shown) <= console.width:
        console.print(table)
        return

    for row in shown:
        _print_paragraph(console, columns, row)


_NOTHING = ("", "-")
_FOLDED = ("CHECKED", "ERROR", "REASON", "RESULT")
_NARROW = 20
"""A column of text that is narrower than this is not worth folding."""


def _least_width(columns: Row, rows: Sequence[Row]) -> int:
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    least = [
        min(width, _NARROW) if column in _FOLDED else width
        for column, width in zip(columns, widths, strict=True)
    ]
    return sum(least) + 2 * (len(least) - 1)


def _styled(cell: str) -> Text:
    return Text(cell, _STYLES.get(cell, ""))


def _print_paragraph(console: Console, columns: Row, row: Row) -> None:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for column, cell in zip(columns, row, strict=True):
        if cell not in _NOTHING:
            grid.add_row(column, _styled(cell))

    console.print(grid)
    console.print()


def print_hanging(console: Console, mark: Text, lines: Sequence[Text], indent: int) -> None:
    """Print lines beside a mark; a line that does not fit wraps at its own indentation."""
    if not console.is_terminal:
        for number, line in enumerate(lines):
            first = mark.plain.ljust(indent) if number == 0 else " " * indent
            print(f"{first}{line.plain}")  # noqa: T201  as above

        return

    grid = Table.grid()
    grid.add_column(width=indent)
    grid.add_column(ratio=1)
    for number, line in enumerate(lines):
        grid.add_row(mark if number == 0 else Text(), line)

    console.print(grid)


def print_json(document: object) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, default=json_value))  # noqa: T201  this is the command's answer


def print_json_list(name: str, items: Iterable[object], rest: Callable[[], dict[str, Any]]) -> None:
    """Print `{name: [item, …], …}`, one item a line, as they come; `rest` is called at the end."""
    write = sys.stdout.write
    comma = f"{{{json.dumps(name)}: ["  # printed with the first item: an error may come instead
    for item in items:
        write(f"{comma}\n  {json.dumps(item, default=json_value)}")
        comma = ","

    write("\n]" if comma == "," else f"{comma}]")
    for key, value in rest().items():
        write(f", {json.dumps(key)}: {json.dumps(value, default=json_value)}")

    write("}\n")
