"""Connections to a SQLite file, transactions on them, and what their failures mean.

How a connection is opened, kept, left and inherited by a forked process is here too. The file is over 400
lines because who has a connection and who has its lock is decided together.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any
from typing import TypeVar
from typing import TypeVarTuple

from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreConfigError
from catga_store.protocol.chance import uniform
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.sqlite.failures import BUSY_SECONDS
from catga_store.stores.sqlite.failures import code_of
from catga_store.stores.sqlite.failures import translated
from catga_store.stores.sqlite.failures import unopened
from catga_store.stores.sqlite.file_locks import FileGuard
from catga_store.stores.sqlite.file_locks import enter
from catga_store.stores.sqlite.forks import traffic
from catga_store.stores.sqlite.tables import SQLiteTables
from catga_store.stores.sqlite.writers import UndoneError
from catga_store.stores.sqlite.writers import WaitingWriters
from catga_store.stores.sqlite.writers import Writer
from catga_store.stores.sqlite.writers import commit_for

__all__ = [
    "BUSY_SECONDS",
    "LARGEST_IDLE_LOG",
    "MOST_IDLE",
    "SQLiteTransport",
]

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

MOST_IDLE = 8
"""How many connections are kept for the next call; each costs three file descriptors."""

LARGEST_IDLE_LOG = 16 * 1024 * 1024
"""To how many bytes the log is cut back after a burst of large commits, once it is checkpointed."""

_LOOK_AT_LOG_EVERY = 64
_SMALLEST_DATABASE = 512
_PAUSES = 0.0005, 0.005
_MOST_WAITS = 3
"""How often `BUSY_SECONDS` are waited for a thread that runs the function of another one."""
_inherited: list[SQLiteTables] = []
"""Connections of a parent process, which must not be closed here."""

_BEGIN = "BEGIN IMMEDIATE"
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


class SQLiteTransport:
    """Performs `Call` as one transaction on a pooled connection; opens the file at first use.

    Any number of threads may use it. Writers of one process wait for a lock of its own, those of
    several processes for SQLite's. It may be used on both sides of a fork, which waits for the
    calls under way.
    """

    threaded = True
    """An async driver must perform the call in a worker thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[SQLiteTables] = []
        # Reentrant: a thread may fork in the middle of a write, in a signal handler.
        self._writing = threading.RLock()
        self._waiting = WaitingWriters()
        self._held = False
        self._closed = False
        self._was_there = False
        self._written = 0
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        traffic.admit(self)

    def __call__(  # noqa: C901, PLR0912, PLR0915  written out: after a sync each function costs as much again
        self, call: Call[Any]
    ) -> Any:
        function, writes = call.function, call.writes
        own = 0 if writes else get_ident()
        if not writes:
            traffic.under_way.append(
                own
            )  # first this, then look: `stop` does it the other way round
        elif not self._writing.acquire(blocking=False):
            writer = self._queue_up(Writer(function))
            if writer is not None:
                return writer.outcome()

        tables: SQLiteTables | None = None
        keep = False
        try:
            if not writes and traffic.stopped:
                traffic.wait(own)

            try:
                tables = self._idle.pop()
            except IndexError:
                tables = self._open()
            else:
                if not writes and not call.single and (trouble := tables.guard.trouble()):
                    raise self._refused(tables.guard, trouble)

            if writes:
                result = self._write(tables, function)
            elif call.single:
                try:
                    result = function(tables)
                except sqlite3.OperationalError:
                    result = _patiently(function, tables)
            else:
                result = _patiently(_snapshot, tables, function)

            keep = True
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except BaseException:
            keep = (
                tables is not None
                and not tables.connection.in_transaction
                and not tables.guard.is_abandoned
            )
            raise
        finally:
            if keep and tables is not None and len(self._idle) < MOST_IDLE:
                self._idle.append(tables)
                if self._closed:
                    _close_all(self._idle)
            elif tables is not None:
                tables.close()

            if writes:
                self._writing.release()  # `_let_go`, written out
                if self._waiting.queue:
                    self._waiting.call_next()
            else:
                traffic.under_way.remove(own)
                if traffic.stopped:
                    traffic.notify()

        return result

    def _queue_up(self, writer: Writer) -> Writer | None:
        """Wait for the writer under way. `None`: it is this one's turn; else another one has written it."""
        waiting, give_up, waits = self._waiting, time.monotonic() + BUSY_SECONDS, 1
        waiting.add(writer)
        try:
            while not self._writing.acquire(blocking=False):
                if writer.wait(give_up - time.monotonic()):
                    if writer.is_over:
                        return writer
                elif (is_unbegun := waiting.remove(writer)) or waits == _MOST_WAITS:
                    raise self._timed_out(is_run=not is_unbegun)  # noqa: TRY301  left like after any other
                else:  # its function is being run
                    give_up, waits = time.monotonic() + BUSY_SECONDS, waits + 1
        except BaseException:
            waiting.leave(writer)
            waiting.call_next()  # this one may have been called
            raise

        if waiting.remove(writer):
            return None

        self._let_go()
        return writer

    def _timed_out(self, *, is_run: bool) -> Exception:
        if is_run:
            message = (
                f"another thread was writing these changes to {self._path!r} on behalf of this "
                "thread and did not finish in time; the changes may still be written"
            )
            return ReplyLostError(message)

        message = f"the file {self._path!r} stayed locked by another thread for {BUSY_SECONDS} s"
        return NotSentError(message)

    def _let_go(self) -> None:
        self._writing.release()
        if self._waiting.queue:
            self._waiting.call_next()

    def _translated(self, error: sqlite3.Error) -> Exception:
        return translated(error, self._path, seconds=BUSY_SECONDS, was_there=self._was_there)

    def _reply_lost(self, error: sqlite3.Error) -> ReplyLostError:
        # The log may hold the commit's last frame. Then a recovery, after every process has
        # crashed, would apply the commit; until then it has no effect.
        return ReplyLostError(f"SQLite could not finish a commit to {self._path!r}: {error}")

    def _failure_of_commit(self, error: sqlite3.Error) -> Exception:
        is_lost = code_of(error) == sqlite3.SQLITE_IOERR
        return self._reply_lost(error) if is_lost else self._translated(error)

    def _write(
        self, tables: SQLiteTables, function: Callable[[SQLiteTables], R], *, alone: bool = False
    ) -> R:
        joined: list[Writer] = []
        connection = tables.connection
        try:
            tables.run(_BEGIN)
        except sqlite3.OperationalError:
            _patiently(tables.run, _BEGIN)

        try:
            if trouble := tables.guard.trouble():
                raise self._refused(tables.guard, trouble)  # noqa: TRY301  rolled back like any other

            tables.known = {}
            result = function(tables)
            if self._waiting.queue and not alone:
                self._waiting.run(tables, joined)
        except UndoneError:
            _roll_back(tables)
            self._waiting.put_back(joined)
            return self._write(tables, function, alone=True)
        except BaseException:
            _roll_back(tables)
            self._waiting.put_back(joined)
            raise
        finally:
            tables.known = None

        try:
            if joined:
                commit_for(connection, joined, self._failure_of_commit)
            else:
                tables.run("COMMIT")
        except sqlite3.Error as error:
            _roll_back(tables)
            if code_of(error) == sqlite3.SQLITE_IOERR:
                raise self._reply_lost(error) from error

            raise

        self._written += 1
        if self._written % _LOOK_AT_LOG_EVERY == 0:
            self._curb_log(connection)

        return result

    def _curb_log(self, connection: sqlite3.Connection) -> None:
        """Cut back a log that has grown because there was always a reader.

        SQLite starts the log again only when no reader needs it, and busy readers may never leave such a
        moment. This waits for the present readers and makes new ones read the file instead.
        """
        with contextlib.suppress(sqlite3.Error):
            if _size(f"{os.path.realpath(self._path)}-wal") > 2 * LARGEST_IDLE_LOG:
                connection.execute("PRAGMA busy_timeout = 250")
                try:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    connection.execute("PRAGMA busy_timeout = 0")

    # connections ----------------------------------------------------------------------------------

    def _refused(self, guard: FileGuard, trouble: str) -> StoreConfigError:
        """Close what is open of a file that is not whole any more, and say what happened."""
        # SQLite itself continues with a file or a log that was deleted, so commits would be
        # acknowledged and lost.
        guard.abandon()
        _close_all(self._idle)
        return StoreConfigError(trouble)

    def _open(self) -> SQLiteTables:
        guard = enter(self._path)
        connection: sqlite3.Connection | None = None
        try:
            if guard.file is not None and (trouble := guard.trouble()):
                raise self._refused(guard, trouble)  # noqa: TRY301  the guard is left like after any other

            connection = self._connect(guard)
            guard.hold()
        except OSError as error:
            guard.leave(connection)
            raise unopened(error, self._path) from error
        except BaseException:
            guard.leave(connection)
            raise

        return SQLiteTables(connection, guard)

    def _connect(self, guard: FileGuard) -> sqlite3.Connection:
        try:
            connection = _connect(self._path, create=not self._was_there)
        except sqlite3.Error:
            with contextlib.suppress(OSError):
                guard.hold()  # which says so if the log is not the one that others have open

            raise

        self._was_there = True
        return connection

    def close(self) -> None:
        """Close every idle connection; those in use close when they are done."""
        self._closed = True
        _close_all(self._idle)

    # forks ----------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let no write begin, and close every connection when none is under way.

        SQLite's locks and shared memory must not cross a fork. The child would believe that it holds
        the locks of its parent, and the parent, closing last, would delete the log of the child.
        """
        self._held = self._writing.acquire(timeout=BUSY_SECONDS + 1)
        _close_all(self._idle)

    def after_fork_in_parent(self) -> None:
        """Let writes continue."""
        if self._held:
            self._held = False
            self._let_go()

    def after_fork_in_child(self) -> None:
        """Forget, without closing them, the connections of threads that exist only in the parent."""
        _inherited.extend(self._idle)
        self._idle.clear()
        self._writing = threading.RLock()
        self._waiting.clear()
        self._held = False

    def __repr__(self) -> str:
        return f"<SQLiteTransport {self._path!r} idle: {len(self._idle)}>"


def _connect(path: str, *, create: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{Path(path).as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=0,  # `_patiently` waits
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        _patiently(_set_up, connection, path)
    except BaseException:
        connection.close()
        raise

    return connection


def _set_up(connection: sqlite3.Connection, path: str) -> None:
    execute = connection.execute
    execute("PRAGMA synchronous = FULL")
    execute("PRAGMA fullfsync = ON")  # macOS: fsync alone leaves a commit in the drive's cache
    execute("PRAGMA trusted_schema = OFF")
    execute(f"PRAGMA journal_size_limit = {LARGEST_IDLE_LOG}")

    if 0 < _size(path) < _SMALLEST_DATABASE:
        # SQLite would take it for an empty one and write over it.
        message = (
            f"the file {path!r} is not a SQLite database, so nothing was changed; choose another "
            "path"
        )
        raise CorruptRecordError(message, key=None)

    tables, ours = execute(
        "SELECT count(*), total(name = 'catga_layout') FROM sqlite_master WHERE type = 'table'"
    ).fetchone()
    if tables and not ours:
        are = "table was" if tables == 1 else "tables were"
        message = (
            f"the file {path!r} belongs to another program: its {tables} {are} not created by "
            "this library; nothing was written; use a separate file for the store"
        )
        raise StoreConfigError(message)

    (encoding,) = execute("PRAGMA encoding").fetchone()
    if encoding != "UTF-8":  # which ids and names are converted to: see `binding`
        message = (
            f"the file {path!r} stores text as {encoding}, but a store needs UTF-8; nothing was "
            "written; use a separate file for the store"
        )
        raise StoreConfigError(message)

    if execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return

    (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        message = (
            f"the file {path!r} cannot have a write-ahead log, because its file system does not "
            f"support shared memory (SQLite offers only {mode!r}), so nothing was written; put "
            "the file on a local disk"
        )
        raise StoreConfigError(message)

    execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log and its index


def _patiently(function: Callable[[*Ts], R], *args: *Ts) -> R:
    """Call until no other connection holds the lock, for at most `BUSY_SECONDS`.

    SQLite itself waits in steps that grow to 100 ms, so the one that has waited longest asks least
    often: among eight busy writers some wait for a second. These pauses give everyone equal chances.
    """
    give_up: float | None = None

    while True:
        try:
            return function(*args)
        except sqlite3.OperationalError as error:
            if code_of(error) not in _BUSY:
                raise

            now = time.monotonic()
            if give_up is None:
                give_up = now + BUSY_SECONDS
            elif now > give_up:
                raise

        time.sleep(uniform(*_PAUSES))


def _snapshot(tables: SQLiteTables, function: Callable[[SQLiteTables], R]) -> R:
    tables.connection.execute("BEGIN")
    try:
        return function(tables)
    finally:
        _roll_back(tables)


def _roll_back(tables: SQLiteTables) -> None:
    """End a transaction, if the failure has not ended it already."""
    if tables.connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            tables.run("ROLLBACK")


def _size(path: str) -> int:
    """The size of a file, 0 if it is not there."""
    with contextlib.suppress(OSError):
        return Path(path).stat().st_size

    return 0


def _close_all(idle: list[SQLiteTables]) -> None:
    while True:
        try:
            tables = idle.pop()
        except IndexError:
            return

        tables.close()
