"""What the SQLite store asks of SQLite, and nothing around it: the floor that it is held against.

The statements are not written down here a second time: they are recorded from the store at work,
text and values, and executed again on a plain connection to a file of the same layout, with the
same settings. So rows, bytes, index entries and the number of fetches are the same by construction,
and stay the same when the store changes. Only the commit ids are new ones, since an id that is in
the log already would be a replacement and no insertion. They are made before the clock starts.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import TypeAlias

import catga_store as cs

__all__ = ["Statement", "connect", "record", "replayed", "summary"]

Statement: TypeAlias = tuple[str, tuple[Any, ...]]
"""The text and the values of something that was executed."""

AHEAD = 512
"""So many commit ids are made before the clock starts."""


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
    """Record what a store executes that has been used already, and not by several threads."""
    driver: Any = store._driver  # noqa: SLF001  a benchmark looks under the waist
    (tables,) = driver.wire._idle  # noqa: SLF001  as above
    plain = tables.connection
    recorder = Recorder(plain)
    tables.connection, tables._execute = recorder, recorder.execute  # noqa: SLF001  as above
    try:
        yield recorder
    finally:
        tables.connection, tables._execute = plain, plain.execute  # noqa: SLF001  as above


def record(store: cs.SQLiteStore, call: Callable[[], object], times: int) -> list[list[Statement]]:
    """Answer what each of so many calls executes."""
    answer: list[list[Statement]] = []
    with recording(store) as recorder:
        for _ in range(times):
            call()
            answer.append(recorder.seen.copy())
            recorder.seen.clear()

    return answer


def connect(path: Path) -> sqlite3.Connection:
    """Open a file that a store has laid out, as the store does."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def replayed(
    connection: sqlite3.Connection, recorded: Sequence[Sequence[Statement]]
) -> Callable[[], None]:
    """Answer a call that executes one recording after the other, round and round."""
    execute = connection.execute
    recordings = itertools.cycle(recorded)
    ready: list[list[tuple[bool, Statement]]] = []

    def prepare() -> None:
        ready.extend(map(_ready, itertools.islice(recordings, AHEAD)))
        ready.reverse()

    def call() -> None:
        for fetches, (text, values) in ready.pop():
            cursor = execute(text, values)
            if fetches:
                cursor.fetchone()

        if not ready:
            prepare()

    prepare()
    return call


def _ready(statements: Sequence[Statement]) -> list[tuple[bool, Statement]]:
    """Answer the statements of one call as they are executed next, each with whether it fetches."""
    fresh = _under_a_new_id(statements)
    return [(text.startswith("SELECT"), (text, values)) for text, values in fresh]


def _under_a_new_id(statements: Sequence[Statement]) -> list[Statement]:
    """Answer the same statements with another commit id wherever theirs stands."""
    written = [values for text, values in statements if "INTO catga_commits" in text]
    if not written:
        return list(statements)

    # An id begins with its time, so that the log grows at its end; see `commits.py`.
    old, new = written[0][0], f"{time.time_ns() // 1_000_000:011x}{os.urandom(10).hex()}"
    return [
        (
            text,
            tuple(value.replace(old, new) if isinstance(value, str) else value for value in values),
        )
        for text, values in statements
    ]


def summary(statements: Sequence[Statement]) -> str:
    """Name the statements of one call in a line: verbs and tables."""
    names: list[str] = []
    for text, _ in statements:
        words = text.replace("(", " ").split()
        table = next((word.removeprefix("catga_") for word in words if "catga_" in word), "")
        verb = words[0] if words[0] != "BEGIN" else text
        names.append(f"{verb} {table}".strip())

    return ", ".join(names)
