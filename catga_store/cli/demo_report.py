"""The demo's story on a terminal: in colour there, as plain lines everywhere else."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from catga_store.demo.orders import Event
from catga_store.demo.story import StoredRecord
from catga_store.demo.verdict import Verdict
from catga_store.protocol.masking import mask_url

__all__ = ["Report"]

_COLOURS = {"ada": "red", "bob": "green", "cleo": "magenta", "eve": "yellow", "finn": "blue"}


class Report:
    """A narrator that prints each event as it happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._acts = 0

    def opening(self, url: str) -> None:
        """Print where the store is."""
        self._print(Text(f"The store is {mask_url(url)}"))

    def act(self, title: str, text: str) -> None:
        """Print the title of an act."""
        self._acts += 1
        title = f"{self._acts}. {title}"

        if self._console.is_terminal:
            self._console.print()
            self._console.print(Panel(text, title=f"[bold]{title}", title_align="left"))
        else:
            self._print(Text(f"\n== {title} ==\n{text}"))

    def event(self, event: Event) -> None:
        """Print one line: the version that was written, if any, who, and what."""
        version = "" if event.version is None else f"v{event.version}"
        text = Text(event.text)
        text.append("" if event.key is None else f"  [key {event.key}]", "dim")
        self._line(Text(f"{version:>5}"), Text(event.who, _COLOURS.get(event.who, "cyan")), text)

    def stored(self, records: Iterable[StoredRecord]) -> None:
        """Print the records that have changed."""
        if not self._console.is_terminal:
            for record, version, content in records:
                self._print(Text(f"  stored: {record}  v{version}  {content}"))

            return

        table = Table(
            title="changed in the store", title_justify="left", box=box.ROUNDED, expand=True
        )
        table.add_column("record", overflow="fold")
        table.add_column("version", justify="right")
        table.add_column("content", ratio=1)

        for record, version, content in records:
            table.add_row(Text(record), str(version), Text(content))

        self._console.print(table)

    def verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Print a line for each check, with what was found."""
        verdicts = list(verdicts)
        self._print(Text("\nThe demo checks its own result:"))

        for verdict in verdicts:
            mark = Text("ok", "green") if verdict.holds else Text("FAILED", "bold red")
            text = Text(verdict.claim).append(f" ({verdict.found})", "dim")
            self._line(Text(), mark, text)

        off = sum(not verdict.holds for verdict in verdicts)
        end = f"{off} of {len(verdicts)} checks failed" if off else "All checks passed."
        self._print(Text(f"\n{end}", "bold red" if off else "bold green"))

    def _line(self, number: Text, who: Text, text: Text) -> None:
        """Print three columns, the last one wrapped inside itself."""
        if not self._console.is_terminal:
            self._print(Text(f"{number!s:<6} {who!s:<8} {text!s}".rstrip()))
            return

        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=6)
        grid.add_column(width=8)
        grid.add_column(ratio=1)
        grid.add_row(number, who, text)
        self._console.print(grid)

    def _print(self, text: Text) -> None:
        """Print; lines are not wrapped outside a terminal."""
        self._console.print(text, soft_wrap=not self._console.is_terminal)
