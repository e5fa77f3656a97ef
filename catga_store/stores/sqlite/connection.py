"""Connections to a SQLite file, transactions on them, and what their failures mean.

The file is over 400 lines because who opens, keeps, leaves and inherits a connection is read together.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any
from typing import TypeAlias
from typing import TypeVar
from typing import TypeVarTuple

from catga_store.errors import CorruptRecordError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import StoreConfigError
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.sqlite.tables import SQLiteTables
from catga_store.stores.sqlite.tables import place_of

__all__ = [
    "BUSY_SECONDS",
    "LARGEST_IDLE_LOG",
    "MOST_IDLE",
    "SQLiteTransport",
]

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

BUSY_SECONDS: float = 30
"""How long anybody waits for another's lock before the store counts as unavailable."""

MOST_IDLE = 8
"""So many connections are kept for the next call; each costs three file descriptors."""

LARGEST_IDLE_LOG = 16 * 1024 * 1024
"""What a burst of large commits has made of the log is cut back to this once it is checkpointed."""

_LOOK_AT_LOG_EVERY = 64
_SMALLEST_DATABASE = 512
_PAUSES = 0.0005, 0.005
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


class SQLiteTransport:
    """Performs `Call` as one transaction on a pooled connection; opens the file at first use.

    Any number of threads may use it; writers of one process queue on a lock, those of several on
    SQLite's. It may be used on both sides of a fork, which waits for the calls that are under way.
    """

    threaded = True
    """An async driver must perform the call in a worker thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[SQLiteTables] = []
        # A thread that forks in the middle of a write, in a signal handler say, has it already.
        self._writing = threading.RLock()
        self._held = False
        self._closed = False
        self._was_there = False
        self._written = 0
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        _traffic.admit(self)

    def __call__(  # noqa: C901, PLR0912  written out: after a sync each function costs as much again
        self, call: Call[Any]
    ) -> Any:
        function, writes = call.function, call.writes
        traffic, own = _traffic, get_ident()
        if not writes:
            traffic.under_way.append(own)  # be seen, then look: `stop` does it the other way round
        elif not self._writing.acquire(blocking=False):
            self._queue_up()

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
                if not call.single and place_of(self._path) != tables.file:
                    moved, tables = tables, None
                    raise self._moved(moved)

            if writes:
                result = self._write(tables, function)
            elif call.single:
                result = _patiently(function, tables)
            else:
                result = _patiently(_snapshot, tables, function)

            keep = True
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except BaseException:
            keep = tables is not None and not tables.connection.in_transaction
            raise
        finally:
            if keep and tables is not None and len(self._idle) < MOST_IDLE:
                self._idle.append(tables)
                if self._closed:
                    _close_all(self._idle)
            elif tables is not None:
                tables.connection.close()

            if writes:
                self._writing.release()
            else:
                traffic.under_way.remove(own)
                if traffic.stopped:
                    traffic.notify()

        return result

    def _queue_up(self) -> None:
        if not self._writing.acquire(timeout=BUSY_SECONDS):
            message = (
                f"the file {self._path!r} stayed locked by another thread for {BUSY_SECONDS} s"
            )
            raise NotSentError(message)

    def _write(self, tables: SQLiteTables, function: Callable[[SQLiteTables], R]) -> R:
        connection = tables.connection
        _patiently(connection.execute, "BEGIN IMMEDIATE")
        try:
            result = function(tables)
        except BaseException:
            _roll_back(connection)
            raise

        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(connection)
            if _code(error) == sqlite3.SQLITE_IOERR:
                # The log may hold the commit's last frame, and then recovery after a crash of
                # every process would apply it; until then it counts for nothing.
                message = f"SQLite could not finish a commit to {self._path!r}: {error}"
                raise ReplyLostError(message) from error

            raise

        self._written += 1
        if self._written % _LOOK_AT_LOG_EVERY == 0:
            self._curb_log(connection)

        return result

    def _curb_log(self, connection: sqlite3.Connection) -> None:
        """Cut a log back that has grown because there is always somebody reading from it.

        SQLite begins the log again only at a moment when no reader needs it, and among busy readers
        there may never be one. This waits for those that are there, and lets new ones read the
        file instead.
        """
        with contextlib.suppress(sqlite3.Error):
            if _size(f"{self._path}-wal") > 2 * LARGEST_IDLE_LOG:
                connection.execute("PRAGMA busy_timeout = 250")
                try:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    connection.execute("PRAGMA busy_timeout = 0")

    # connections ----------------------------------------------------------------------------------

    def _moved(self, tables: SQLiteTables) -> StoreConfigError:
        """Close what is open of a file that is not in its place any more, and say so."""
        # SQLite goes on with a file that was deleted: commits would be acknowledged and lost.
        tables.connection.close()
        _close_all(self._idle)
        message = (
            f"the file {self._path!r} was removed or replaced since it was opened;"
            " its connections were closed and nothing was written; put it back, or open"
            " the store again"
        )
        return StoreConfigError(message)

    def _open(self) -> SQLiteTables:
        connection = _connect(self._path, create=not self._was_there)
        self._was_there = True
        return SQLiteTables(connection, place_of(self._path))

    def close(self) -> None:
        """Close every idle connection; those in use close when they are done."""
        self._closed = True
        _close_all(self._idle)

    # forks ----------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let no write begin, and close every connection once none is under way.

        SQLite's locks and shared memory must not cross a fork. A child would believe that it holds
        locks which its parent holds, and the parent, closing last, would delete the log that the
        child writes.
        """
        self._held = self._writing.acquire(timeout=BUSY_SECONDS + 1)
        _close_all(self._idle)

    def after_fork_in_parent(self) -> None:
        """Let writes go on."""
        if self._held:
            self._held = False
            self._writing.release()

    def after_fork_in_child(self) -> None:
        """Forget what threads that are not here any more have left behind, without closing it."""
        _inherited.extend(self._idle)
        self._idle.clear()
        self._writing = threading.RLock()
        self._held = False

    # failures -------------------------------------------------------------------------------------

    def _translated(self, error: sqlite3.Error) -> Exception:
        kind, text, facts = _FAILURES.get(_code(error), _UNKNOWN_FAILURE)
        why = self._why_not() if kind is StoreConfigError else ""
        message = text.format(path=self._path, error=error, seconds=BUSY_SECONDS, why=why)
        return kind(message, **facts)

    def _why_not(self) -> str:
        place = Path(self._path)
        try:
            place.stat()  # `is_dir` would swallow what the system says
        except (FileNotFoundError, NotADirectoryError):
            if not place.parent.is_dir():
                return f"its folder {str(place.parent)!r} does not exist; make it"

            if self._was_there:
                return "it was removed since it was opened; put it back"
        except OSError as error:
            return f"the system says {error.strerror}"
        else:
            if place.is_dir():
                return "it is a folder, and must be a file"

        return "this user must have the right to read and write it and its folder"

    def __repr__(self) -> str:
        return f"<SQLiteTransport {self._path!r} idle: {len(self._idle)}>"


_Failure: TypeAlias = tuple[type[Exception], str, dict[str, Any]]

_DAMAGED = (
    "the file {path!r} is damaged or no SQLite database: {error};"
    " it is left as it is; restore it from a backup"
)
_FULL = "the disk that holds {path!r} is full: {error}; free some space"
_LOCKED = "the file {path!r} stayed locked by another process for {seconds} s: {error}"
_READ_ONLY = (
    "the file {path!r} or its folder cannot be written: {error}; nothing was written;"
    " give this user the right to write both"
)
_NO_ACCESS = "the file {path!r} cannot be opened: {error}; {why}; nothing was written"
_TOO_BIG = "a record is over SQLite's limit of 1,000,000,000 bytes: {error}; nothing was written"
_NOT_OURS = "the file {path!r} does not have this library's tables: {error}; nothing was written"

_FAILURES: dict[int, _Failure] = {
    sqlite3.SQLITE_NOTADB: (CorruptRecordError, _DAMAGED, {"key": None}),
    sqlite3.SQLITE_CORRUPT: (CorruptRecordError, _DAMAGED, {"key": None}),
    sqlite3.SQLITE_FULL: (NotSentError, _FULL, {}),
    sqlite3.SQLITE_BUSY: (NotSentError, _LOCKED, {}),
    sqlite3.SQLITE_LOCKED: (NotSentError, _LOCKED, {}),
    sqlite3.SQLITE_PROTOCOL: (NotSentError, _LOCKED, {}),
    sqlite3.SQLITE_READONLY: (StoreConfigError, _READ_ONLY, {}),
    sqlite3.SQLITE_CANTOPEN: (StoreConfigError, _NO_ACCESS, {}),
    sqlite3.SQLITE_PERM: (StoreConfigError, _NO_ACCESS, {}),
    sqlite3.SQLITE_AUTH: (StoreConfigError, _NO_ACCESS, {}),
    sqlite3.SQLITE_TOOBIG: (RecordTooLargeError, _TOO_BIG, {"size": None, "limit": 10**9}),
    sqlite3.SQLITE_ERROR: (StoreConfigError, _NOT_OURS, {}),
}
"""What a primary result code means to the caller."""

_UNKNOWN_FAILURE: _Failure = (NotSentError, "SQLite cannot use {path!r} now: {error}", {})


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
        message = f"the file {path!r} is no SQLite database: it is left as it is"
        raise CorruptRecordError(message, key=None)

    tables, ours = execute(
        "SELECT count(*), total(name = 'catga_layout') FROM sqlite_master WHERE type = 'table'"
    ).fetchone()
    if tables and not ours:
        message = (
            f"the file {path!r} is a SQLite database of something else: it has {tables} tables and"
            " none of this library's; nothing was written; give the store a file of its own"
        )
        raise StoreConfigError(message)

    if execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return

    (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        message = (
            f"the file {path!r} cannot have a write-ahead log, SQLite offers {mode!r}: its file"
            " system has no shared memory; nothing was written; put the file on a local disk"
        )
        raise StoreConfigError(message)


def _patiently(function: Callable[[*Ts], R], *args: *Ts) -> R:
    """Call until it is not turned away by another's lock, for at most `BUSY_SECONDS`.

    SQLite's own waiting goes in steps that grow to 100 ms, and whoever has waited longest asks the
    least often: among eight busy writers the unlucky wait for a second. These are even odds.
    """
    give_up: float | None = None

    while True:
        try:
            return function(*args)
        except sqlite3.OperationalError as error:
            if _code(error) not in _BUSY:
                raise

            now = time.monotonic()
            if give_up is None:
                give_up = now + BUSY_SECONDS
            elif now > give_up:
                raise

        time.sleep(random.uniform(*_PAUSES))  # noqa: S311  jitter


def _snapshot(tables: SQLiteTables, function: Callable[[SQLiteTables], R]) -> R:
    tables.connection.execute("BEGIN")
    try:
        return function(tables)
    finally:
        _roll_back(tables.connection)


def _roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction, if the failure that we are told of has not ended it already."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


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

        tables.connection.close()


def _code(error: sqlite3.Error) -> int:
    """The primary result code; extended codes carry it in their low byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


# --- forks --------------------------------------------------------------------------------------


class _Traffic:
    """The reads under way in this process. A fork waits until there are none, and lets none begin.

    SQLite's mutexes and locks, in the middle of a call of another thread, would stay as they are
    in the child for ever. Writes are kept apart by the lock that they take anyway.
    """

    def __init__(self) -> None:
        self._gate = threading.Condition()
        self.under_way: list[int] = []
        self.stopped = False

    def admit(self, transport: SQLiteTransport) -> None:
        """Add a transport to those that a fork stops; not while one is being made."""
        with self._gate:
            self._gate.wait_for(lambda: not self.stopped, timeout=BUSY_SECONDS + 1)
            _transports.add(transport)

    def wait(self, own: int) -> None:
        """A read that has been seen waits, unseen, until reads may go on."""
        while self.stopped:
            self.under_way.remove(own)
            try:
                self.notify()
                with self._gate:
                    self._gate.wait_for(lambda: not self.stopped)
            finally:
                self.under_way.append(own)

    def notify(self) -> None:
        """A read has ended while somebody waits for that."""
        with self._gate:
            self._gate.notify_all()

    def stop(self) -> None:
        """Let no read begin and wait for those under way, except this thread's own."""
        own = get_ident()
        with self._gate:
            self._gate.wait_for(lambda: not self.stopped)
            self.stopped = True
            self._gate.wait_for(
                lambda: all(ident == own for ident in tuple(self.under_way)),
                timeout=BUSY_SECONDS + 1,
            )

    def go_on(self) -> None:
        with self._gate:
            self.stopped = False
            self._gate.notify_all()


_traffic = _Traffic()
_transports: weakref.WeakSet[SQLiteTransport] = weakref.WeakSet()
_inherited: list[SQLiteTables] = []


def _before_fork() -> None:
    _traffic.stop()
    for transport in list(_transports):
        transport.before_fork()


def _after_fork_in_parent() -> None:
    for transport in list(_transports):
        transport.after_fork_in_parent()

    _traffic.go_on()


def _after_fork_in_child() -> None:
    global _traffic  # noqa: PLW0603  the parent's threads, which its lock is about, are not here
    _traffic = _Traffic()
    for transport in list(_transports):
        transport.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has no fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
