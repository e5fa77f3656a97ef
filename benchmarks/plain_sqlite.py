"""The statements that the SQLite store executes, and nothing else: the floor for its cost.

The statements are not written down here a second time: they are recorded from the store at work,
text and values, and executed again on a plain connection to a file of the same layout, with the
same settings. So rows, bytes, index entries and the number of fetches are the same by construction,
and stay the same when the store changes. `None` is given as a value, as programs do, where the store
writes `NULL`. Each recording is executed once, on a copy of the file as
it was before the first: so every statement finds the rows that it found when it was recorded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import TypeAlias

import catga_store as cs

__all__ = ["Statement", "connect", "record", "replayed", "summary"]

Statement: TypeAlias = tuple[str, tuple[Any, ...]]
"""The text and the values of something that was executed."""


class Recorder:
    """Stands in for a connection and remembers what it executes."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.seen: list[Statement] = []

    def execute(self, text: str, values: Sequence[Any] = ()) -> Any:
        """Execute a statement."""
        self.seen.append((text, tuple(values)))
        return self._connection.execute(text, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@contextmanager
def recording(store: cs.SQLiteStore) -> Iterator[Recorder]:
    """Record the statements of a store that is prepared and used by one thread."""
    driver: Any = store._driver  # noqa: SLF001  a benchmark looks under the store protocol
    (tables,) = driver.transport._idle  # noqa: SLF001  as above
    plain = tables.connection
    recorder = Recorder(plain)
    execute, run, change = tables._execute, tables.run, tables.change  # noqa: SLF001  as above
    tables.connection = recorder
    tables._execute = tables.run = tables.change = recorder.execute  # noqa: SLF001  as above
    try:
        yield recorder
    finally:
        tables.connection, tables._execute = plain, execute  # noqa: SLF001  as above
        tables.run, tables.change = run, change


def record(
    store: cs.SQLiteStore, call: Callable[[], object], times: int, path: Path
) -> list[list[Statement]]:
    """Return the statements of each call; `path` becomes a copy of the file before the calls."""
    result: list[list[Statement]] = []
    with recording(store) as recorder:
        with closing(sqlite3.connect(path)) as copy:
            recorder.backup(copy)

        for _ in range(times):
            call()
            result.append(recorder.seen.copy())
            recorder.seen.clear()

    return result


def connect(path: Path) -> sqlite3.Connection:
    """Open a file that a store has laid out, as the store does."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def replayed(
    connection: sqlite3.Connection, recorded: Sequence[Sequence[Statement]]
) -> Callable[[], None]:
    """Return a function that executes the statements of one recorded call at each call."""
    execute = connection.execute
    ready = [
        [(text.startswith("SELECT"), text, values) for text, values in statements]
        for statements in reversed(recorded)
    ]

    def call() -> None:
        for fetches, text, values in ready.pop():
            cursor = execute(text, values)
            if fetches:
                cursor.fetchone()

    return call


def summary(statements: Sequence[Statement]) -> str:
    """Name the statements of one call in a line: verbs and tables."""
    names: list[str] = []
    for text, _ in statements:
        words = text.replace("(", " ").split()
        table = next((word.removeprefix("catga_") for word in words if "catga_" in word), "")
        verb = words[0] if words[0] != "BEGIN" else text
        names.append(f"{verb} {table}".strip())

    return ", ".join(names)
