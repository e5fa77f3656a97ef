"""Threads of one process that write to one file: the one whose turn it is commits for those who wait.

Most of a small commit is a wait for the disk. So a writer runs its own function, then those of the writers
that wait for it, each within a savepoint, and one COMMIT is for all of them. If no other writer waits, it
uses no savepoint. No writer waits for others to come.

| what happens | to the one it happens to | to the others |
|---|---|---|
| a function raises | what it wrote is rolled back; it gets the error | nothing |
| SQLite fails within a function, as on a full disk | it is run again, by itself | they are run again |
| the thread is interrupted before COMMIT | it is interrupted | they are run again |
| COMMIT fails | it gets the error | they get the same error |
| the thread is interrupted by the end of COMMIT | it is interrupted | they get a `ReplyLostError` |

No writer gets a result before COMMIT has returned.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any

from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.sqlite.tables import SQLiteTables

__all__ = ["UndoneError", "WaitingWriters", "Writer", "commit_for"]

_MOST_TOGETHER = 32
"""How many others one transaction is for: the first does not wait for an endless number of them."""


class UndoneError(Exception):
    """SQLite has failed in a transaction of several writers: nothing of it is to be committed."""


class Writer:
    """A thread that waits for its turn to write, and what came of its function."""

    def __init__(self, function: Callable[[SQLiteTables], Any]) -> None:
        self.function = function
        self.thread = get_ident()
        self.is_over = False
        """Its function was run, and committed or not."""
        self.has_left = False
        """Its thread was interrupted or waits no longer: its function must not be run from now on."""
        self.result: Any = None
        self.error: Exception | None = None
        # A bare lock, because a signal handler of the waiting thread may write, too.
        self._bell = threading.Lock()
        self._bell.acquire()

    def wait(self, seconds: float) -> bool:
        """Wait until it is over, or may be next; whether it was called."""
        return self._bell.acquire(timeout=max(seconds, 0.0))

    def call(self) -> None:
        """End its wait."""
        with suppress(RuntimeError):  # it was called already
            self._bell.release()

    def end(self) -> None:
        """Let it have its result or its error."""
        self.is_over = True
        self.call()

    def outcome(self) -> Any:
        """Return what its function has returned, or raise its error."""
        error = self.error
        if error is None:
            return self.result

        try:
            raise error
        finally:
            self.error = error = None  # else its traceback and this frame hold each other

    def fail(self, error: Exception) -> None:
        """Let it have this error: nothing that it wrote is known to be stored."""
        self.result, self.error = None, error
        self.end()


class WaitingWriters:
    """Those who wait for the writer of this file in this process."""

    def __init__(self) -> None:
        self.queue: deque[Writer] = deque()

    def add(self, writer: Writer) -> None:
        """Let it wait behind the others."""
        self.queue.append(writer)

    def remove(self, writer: Writer) -> bool:
        """Let it wait no longer; `False` if another thread runs its function."""
        try:
            self.queue.remove(writer)
        except ValueError:
            return False

        return True

    def leave(self, writer: Writer) -> None:
        """Let it wait no longer, and never be put back."""
        writer.has_left = True
        self.remove(writer)

    def put_back(self, writers: Sequence[Writer]) -> None:
        """Let them wait again: nothing came of their functions."""
        for writer in reversed(writers):
            if not writer.is_over and writer not in self.queue:
                writer.result = writer.error = None
                self.queue.appendleft(writer)
                if writer.has_left:  # looked at last: it may leave at any moment
                    self.remove(writer)

    def call_next(self) -> None:
        """Let the first one write, now that the lock is free."""
        waiting = tuple(self.queue)
        for writer in waiting:
            # All that wait in its thread: a signal handler may wait there in place of the first.
            if writer.thread == waiting[0].thread:
                writer.call()

    def clear(self) -> None:
        """Forget those who wait; in a forked child, whose parent has their threads."""
        self.queue = deque()

    def run(self, tables: SQLiteTables, joined: list[Writer]) -> None:
        """Run their functions in the transaction of another one, and add them to `joined`.

        Raises `UndoneError` if SQLite fails: each is then to be run in a transaction of its own.
        """
        while len(joined) < _MOST_TOGETHER and (waiting := tuple(self.queue)):
            joined.append(writer := waiting[0])
            if not self.remove(writer):
                joined.pop()  # it waits no longer
                continue

            try:
                _run_within(tables, writer)
            except sqlite3.Error as error:
                raise UndoneError from error


def _run_within(tables: SQLiteTables, writer: Writer) -> None:
    execute = tables.connection.execute
    tables.known = {}
    execute("SAVEPOINT writer")
    try:
        writer.result = writer.function(tables)
    except sqlite3.Error:
        raise
    except Exception as error:  # noqa: BLE001  it is raised in the thread of the writer
        writer.error = error
        execute("ROLLBACK TO writer")

    execute("RELEASE writer")


def commit_for(
    connection: sqlite3.Connection,
    joined: Sequence[Writer],
    failure_of: Callable[[sqlite3.Error], Exception],
) -> None:
    """Commit, and let the writers that have joined have their results, or each an error of its own."""
    try:
        connection.execute("COMMIT")
        for writer in joined:
            writer.end()
    except sqlite3.Error as error:
        for writer in joined:
            writer.fail(failure_of(error))

        raise
    finally:
        for writer in joined:
            if not writer.is_over:
                writer.fail(
                    ReplyLostError("the thread that was committing these changes was interrupted")
                )
