"""The bar of a command that takes long: on a terminal, on stderr."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextlib import nullcontext

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn

__all__ = ["bar"]


@contextmanager
def bar(*, quiet: bool) -> Generator[Progress]:
    """Yield a bar, which is shown on a terminal unless it is to be quiet."""
    console = Console(stderr=True)
    shows = console.is_terminal and not quiet
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, disable=not shows)
    with progress if shows else nullcontext():  # before 15, rich ends one that is not shown, too
        yield progress
