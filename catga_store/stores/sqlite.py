"""The SQLite store: one file, many processes, every commit durable when it is acknowledged.

Tables: `catga_flows` and `catga_progress` (one row a record, keyed by id and step), `catga_waits`
and `catga_items` (a condition, and one row per child), `catga_commits` (replies of recent commits)
and `catga_layout`. Ids are BLOBs of UTF-8, so NUL and case stay what they are. Bodies are JSON:
`sqlite3 flows.db "select cast(id as text), version, body from catga_flows"` reads them.

WAL with `synchronous=FULL`: a commit is one transaction under `BEGIN IMMEDIATE` and one fsync.
Reads see a snapshot and never wait for writers. A writer waits up to 30 s for other processes.
A lost connection does not exist here; a failed `COMMIT` of unknown outcome is asked again under
the same commit id. The file must lie on a local disk: WAL needs shared memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from catga_store.conversation import Call
from catga_store.conversation import NotSentError
from catga_store.conversation import ReplyLostError
from catga_store.errors import CorruptRecordError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import StoreConfigError
from catga_store.keys import FLOW
from catga_store.keys import PROGRESS
from catga_store.keys import WAIT
from catga_store.keys import Key
from catga_store.records import PENDING
from catga_store.records import Filter
from catga_store.records import Found
from catga_store.records import Head
from catga_store.records import Item
from catga_store.records import Outcome
from catga_store.records import Record
from catga_store.records import Terms
from catga_store.stores.embedded import EmbeddedStore
from catga_store.stores.embedded import ItemRow
from catga_store.stores.embedded import WaitRow

__all__ = ["EmbeddedStore", "SQLiteTables", "SQLiteWire"]

BUSY_SECONDS = 30

_HEAD = (
    "version, status, created_ms, updated_ms, type, type_version, position, error, attempts,"
    " owner, claim, due_ms, expires_ms, revision, commits"
)
_WAIT_HEAD = "version, status, created_ms, updated_ms, due_ms, expires_ms, revision, commits"
_TABLE = {FLOW: "catga_flows", PROGRESS: "catga_progress"}

_RECORDS = """
CREATE TABLE {table} (
  id BLOB NOT NULL, step INTEGER NOT NULL,
  version INTEGER NOT NULL, status INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  type TEXT NOT NULL, type_version INTEGER NOT NULL,
  position TEXT NOT NULL, error TEXT, attempts INTEGER NOT NULL,
  owner TEXT, claim TEXT, due_ms INTEGER, expires_ms INTEGER,
  revision TEXT NOT NULL, commits TEXT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (id, step)
)
"""
_LAY_OUT = (
    "CREATE TABLE catga_layout (version INTEGER NOT NULL, partitions INTEGER NOT NULL)",
    _RECORDS.format(table="catga_flows"),
    _RECORDS.format(table="catga_progress"),
    """
CREATE TABLE catga_waits (
  id BLOB PRIMARY KEY,
  version INTEGER NOT NULL, status INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  due_ms INTEGER, expires_ms INTEGER,
  revision TEXT NOT NULL, commits TEXT NOT NULL,
  any_of INTEGER NOT NULL, parent BLOB, expected INTEGER NOT NULL, done INTEGER NOT NULL,
  terms TEXT NOT NULL
)
""",
    """
CREATE TABLE catga_items (
  wait BLOB NOT NULL, child BLOB NOT NULL,
  member INTEGER NOT NULL, done INTEGER NOT NULL, success INTEGER NOT NULL,
  payload BLOB NOT NULL,
  PRIMARY KEY (wait, child)
) WITHOUT ROWID
""",
    "CREATE TABLE catga_commits (id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, reply TEXT NOT NULL)"
    " WITHOUT ROWID",
    "CREATE INDEX catga_flows_all ON catga_flows (created_ms DESC, id)",
    "CREATE INDEX catga_flows_status ON catga_flows (status, created_ms DESC, id)",
    "CREATE INDEX catga_flows_type ON catga_flows (type, created_ms DESC, id)",
    "CREATE INDEX catga_flows_both ON catga_flows (status, type, created_ms DESC, id)",
    "CREATE INDEX catga_flows_due ON catga_flows (due_ms) WHERE due_ms IS NOT NULL",
    "CREATE INDEX catga_flows_expires ON catga_flows (expires_ms) WHERE expires_ms IS NOT NULL",
    "CREATE INDEX catga_waits_all ON catga_waits (created_ms DESC, id)",
    "CREATE INDEX catga_waits_status ON catga_waits (status, created_ms DESC, id)",
    "CREATE INDEX catga_waits_parent ON catga_waits (parent, created_ms DESC, id)"
    " WHERE parent IS NOT NULL",
    "CREATE INDEX catga_waits_due ON catga_waits (due_ms)"
    " WHERE due_ms IS NOT NULL AND parent IS NOT NULL",
    "CREATE INDEX catga_waits_deadline ON catga_waits (due_ms, id)"
    f" WHERE due_ms IS NOT NULL AND status = {PENDING}",
    "CREATE INDEX catga_waits_expires ON catga_waits (expires_ms) WHERE expires_ms IS NOT NULL",
)


def _head(row: Sequence[Any]) -> Head:
    """A head from the columns of `_HEAD`."""
    return Head(*row[:14], tuple(row[14].split()))


def _wait_head(row: Sequence[Any]) -> Head:
    """A head from the columns of `_WAIT_HEAD`."""
    return Head(
        *row[:4],
        due_ms=row[4],
        expires_ms=row[5],
        revision=row[6],
        commits=tuple(row[7].split()),
    )


class SQLiteTables:
    """Rows in one SQLite connection, inside one transaction; implements `Tables`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._execute = connection.execute

    def layout(self) -> tuple[int, int] | None:
        there = self._execute("SELECT 1 FROM sqlite_master WHERE name = 'catga_layout'").fetchone()
        if there is None:
            return None

        row: tuple[int, int] | None = self._execute(
            "SELECT version, partitions FROM catga_layout"
        ).fetchone()
        return row

    def lay_out(self, version: int, partitions: int) -> None:
        for statement in _LAY_OUT:
            self._execute(statement)

        self._execute("INSERT INTO catga_layout VALUES (?, ?)", (version, partitions))

    def clear(self) -> None:
        for table in ("flows", "progress", "waits", "items", "commits"):
            self._execute(f"DELETE FROM catga_{table}")  # noqa: S608  a literal name

    # flows and progress ---------------------------------------------------------------------------

    def head(self, key: Key) -> Head | None:
        row = self._execute(
            f"SELECT {_HEAD} FROM {_TABLE[key.kind]} WHERE id = ? AND step = ?",  # noqa: S608  ours
            (key.id.encode(), key.step),
        ).fetchone()
        return None if row is None else _head(row)

    def record(self, key: Key) -> Record | None:
        if key.kind == WAIT:
            return self._wait_record(key)

        row = self._execute(
            f"SELECT {_HEAD}, body FROM {_TABLE[key.kind]} WHERE id = ? AND step = ?",  # noqa: S608  ours
            (key.id.encode(), key.step),
        ).fetchone()
        return None if row is None else Record(_head(row), row[15])

    def _wait_record(self, key: Key) -> Record | None:
        row = self._execute(
            f"SELECT {_WAIT_HEAD}, terms FROM catga_waits WHERE id = ?",  # noqa: S608  ours
            (key.id.encode(),),
        ).fetchone()
        if row is None:
            return None

        head = _wait_head(row)
        items = self._execute(
            "SELECT child, success, payload FROM catga_items"
            " WHERE wait = ? AND done AND (member OR ?)",
            (key.id.encode(), head.status < 0),
        )
        return Record(
            head,
            b"",
            _read_terms(key, row[8]),
            tuple(Item(child.decode(), bool(success), body) for child, success, body in items),
        )

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        table = _TABLE[key.kind]
        commits = " ".join(head.commits)

        if old is None:
            self._execute(
                f"INSERT INTO {table} (id, step, {_HEAD}, body)"  # noqa: S608  our names
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (key.id.encode(), key.step, *head[:14], commits, body),
            )
            return

        # An indexed column that is named costs its index entries even if it keeps its value.
        names = "version=?, updated_ms=?, type_version=?, position=?, error=?, attempts=?, owner=?"
        names += ", claim=?, revision=?, commits=?"
        values: list[Any] = [
            head.version,
            head.updated_ms,
            head.type_version,
            head.position,
            head.error,
            head.attempts,
            head.owner,
            head.claim,
            head.revision,
            commits,
        ]
        for column in ("status", "type", "created_ms", "due_ms", "expires_ms"):
            value = getattr(head, column)
            if value != getattr(old, column):
                names += f", {column}=?"
                values.append(value)

        if body is not None:
            names += ", body=?"
            values.append(body)

        self._execute(
            f"UPDATE {table} SET {names} WHERE id = ? AND step = ?",  # noqa: S608  our names
            (*values, key.id.encode(), key.step),
        )

    def remove(self, key: Key, old: Head) -> None:  # noqa: ARG002  memory needs `old`
        self._execute(
            f"DELETE FROM {_TABLE[key.kind]} WHERE id = ? AND step = ?",  # noqa: S608  ours
            (key.id.encode(), key.step),
        )

    def steps(self, flow_id: str) -> list[Found]:
        rows = self._execute(
            f"SELECT {_HEAD}, step FROM catga_progress WHERE id = ? ORDER BY step",  # noqa: S608  ours
            (flow_id.encode(),),
        )
        return [Found(Key(PROGRESS, flow_id, row[15]), _head(row)) for row in rows]

    # conditions -----------------------------------------------------------------------------------

    def wait(self, key: Key) -> WaitRow | None:
        row = self._execute(
            f"SELECT {_WAIT_HEAD}, any_of, parent, expected, done"  # noqa: S608  ours
            " FROM catga_waits WHERE id = ?",
            (key.id.encode(),),
        ).fetchone()
        if row is None:
            return None

        parent = None if row[9] is None else row[9].decode()
        return WaitRow(_wait_head(row), bool(row[8]), parent, row[10], row[11])

    def write_wait(
        self, key: Key, row: WaitRow, old: WaitRow | None, terms: Terms | None = None
    ) -> None:
        wait_id, head = key.id.encode(), row.head

        if terms is None and old is not None and head is old.head:
            self._execute("UPDATE catga_waits SET done = ? WHERE id = ?", (row.done, wait_id))
            return

        parent = None if row.parent is None else row.parent.encode()
        values = (
            *head[:4],
            head.due_ms,
            head.expires_ms,
            head.revision,
            " ".join(head.commits),
            row.any,
            parent,
            row.expected,
            row.done,
        )
        if old is None:
            self._execute(
                f"INSERT INTO catga_waits (id, {_WAIT_HEAD}, any_of, parent, expected, done, terms)"  # noqa: S608  ours
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (wait_id, *values, _write_terms(terms or Terms((), any=False))),
            )
            return

        self._execute(
            "UPDATE catga_waits SET version=?, status=?, created_ms=?, updated_ms=?, due_ms=?,"
            " expires_ms=?, revision=?, commits=?, any_of=?, parent=?, expected=?, done=?,"
            " terms=ifnull(?, terms) WHERE id = ?",
            (*values, None if terms is None else _write_terms(terms), wait_id),
        )

    def remove_wait(self, key: Key, old: WaitRow) -> None:  # noqa: ARG002  memory needs `old`
        self.remove_items(key)
        self._execute("DELETE FROM catga_waits WHERE id = ?", (key.id.encode(),))

    def item(self, key: Key, child: str) -> ItemRow | None:
        row = self._execute(
            "SELECT member, done, success FROM catga_items WHERE wait = ? AND child = ?",
            (key.id.encode(), child.encode()),
        ).fetchone()
        return None if row is None else ItemRow(*map(bool, row))

    def write_item(self, key: Key, child: str, row: ItemRow, payload: bytes) -> None:
        self._execute(
            "INSERT OR REPLACE INTO catga_items VALUES (?,?,?,?,?,?)",
            (key.id.encode(), child.encode(), row.member, row.done, row.success, payload),
        )

    def set_members(self, key: Key, children: Iterable[str]) -> tuple[int, int]:
        wait_id = key.id.encode()
        self._execute("DELETE FROM catga_items WHERE wait = ? AND NOT done", (wait_id,))
        self._execute("UPDATE catga_items SET member = 0 WHERE wait = ?", (wait_id,))
        self.connection.executemany(
            "INSERT INTO catga_items VALUES (?, ?, 1, 0, 0, x'')"
            " ON CONFLICT (wait, child) DO UPDATE SET member = 1",
            ((wait_id, child.encode()) for child in children),
        )
        done, well = self._execute(
            "SELECT count(*), total(success) FROM catga_items WHERE wait = ? AND member AND done",
            (wait_id,),
        ).fetchone()
        return done, int(well)

    def remove_items(self, key: Key) -> None:
        self._execute("DELETE FROM catga_items WHERE wait = ?", (key.id.encode(),))

    # listings -------------------------------------------------------------------------------------

    def due_flows(self, now_ms: int, limit: int, wanted: str | None) -> list[Found]:
        rows = self._execute(
            f"SELECT {_HEAD}, id FROM catga_flows WHERE due_ms IS NOT NULL AND due_ms <= ?"  # noqa: S608  ours
            " AND (expires_ms IS NULL OR expires_ms > ?) AND (? IS NULL OR type IN ('', ?))"
            " ORDER BY due_ms LIMIT ?",
            (now_ms, now_ms, wanted, wanted, limit),
        )
        return [Found(Key(FLOW, row[15].decode()), _head(row)) for row in rows]

    def due_waits(self, now_ms: int, limit: int, wanted: str | None) -> list[Found]:
        return self._waits(
            "due_ms IS NOT NULL AND parent IS NOT NULL AND due_ms <= ?"
            " AND (? IS NULL OR ifnull((SELECT type FROM catga_flows"
            " WHERE id = parent AND step = 0), '') IN ('', ?)) ORDER BY due_ms LIMIT ?",
            (now_ms, wanted, wanted, limit),
        )

    def overdue(self, now_ms: int, limit: int | None) -> list[Found]:
        return self._waits(
            f"due_ms IS NOT NULL AND status = {PENDING} AND due_ms <= ?"
            " ORDER BY due_ms, id LIMIT ?",
            (now_ms, -1 if limit is None else limit),
        )

    def _waits(self, where: str, values: Sequence[object]) -> list[Found]:
        rows = self._execute(
            f"SELECT {_WAIT_HEAD}, id FROM catga_waits WHERE {where}",  # noqa: S608  ours
            values,
        )
        return [Found(Key(WAIT, row[8].decode()), _wait_head(row)) for row in rows]

    def find(
        self, wanted: Filter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        where, values = _where(wanted, now_ms)
        if after is not None:
            where += " AND created_ms <= ? AND (created_ms < ? OR id > ?)"
            values += [after[0], after[0], after[1].encode()]

        where += " ORDER BY created_ms DESC, id LIMIT ?"
        values.append(limit)
        if wanted.kind == WAIT:
            return self._waits(where, values)

        rows = self._execute(
            f"SELECT {_HEAD}, id FROM catga_flows WHERE {where}",  # noqa: S608  ours
            values,
        )
        return [Found(Key(FLOW, row[15].decode()), _head(row)) for row in rows]

    def count(self, wanted: Filter, now_ms: int) -> int:
        where, values = _where(wanted, now_ms)
        table = "catga_flows" if wanted.kind == FLOW else "catga_waits"
        number: int = self._execute(
            f"SELECT count(*) FROM {table} WHERE {where}",  # noqa: S608  our names
            values,
        ).fetchone()[0]
        return number

    def scan(self, kind: str, after: Key | None, limit: int) -> list[Key]:
        if kind == WAIT:
            rows = self._execute(
                "SELECT id, 0 FROM catga_waits WHERE id > ? ORDER BY id LIMIT ?",
                (b"" if after is None else after.id.encode(), limit),
            )
        else:
            rows = self._execute(
                f"SELECT id, step FROM {_TABLE[kind]} WHERE (id, step) > (?, ?)"  # noqa: S608  ours
                " ORDER BY id, step LIMIT ?",
                (*((b"", 0) if after is None else (after.id.encode(), after.step)), limit),
            )

        return [Key(kind, row[0].decode(), row[1]) for row in rows]

    def expired(self, now_ms: int, limit: int) -> list[Key]:
        found: list[Key] = []

        for kind, table in ((FLOW, "catga_flows"), (WAIT, "catga_waits")):
            rows = self._execute(
                f"SELECT id FROM {table} WHERE expires_ms IS NOT NULL AND expires_ms <= ?"  # noqa: S608  ours
                " ORDER BY expires_ms LIMIT ?",
                (now_ms, limit - len(found)),
            )
            found += [Key(kind, row[0].decode()) for row in rows]

        return found

    # the log of commits ---------------------------------------------------------------------------

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:
        row = self._execute("SELECT reply FROM catga_commits WHERE id = ?", (commit_id,)).fetchone()
        return None if row is None else _read_outcomes(row[0])

    def log(self, commit_id: str, at_ms: int, outcomes: tuple[Outcome, ...]) -> None:
        self._execute(
            "INSERT OR REPLACE INTO catga_commits VALUES (?, ?, ?)",
            (commit_id, at_ms, json.dumps(outcomes)),
        )

    def forget_log(self, before_ms: int, limit: int) -> None:
        # Ids begin with their time, so the oldest come first.
        self._execute(
            "DELETE FROM catga_commits WHERE at_ms < ? AND id IN"
            " (SELECT id FROM catga_commits ORDER BY id LIMIT ?)",
            (before_ms, limit),
        )


def _where(wanted: Filter, now_ms: int) -> tuple[str, list[Any]]:
    where = "(expires_ms IS NULL OR expires_ms > ?)"
    values: list[Any] = [now_ms]
    terms: tuple[tuple[str, object], ...] = (
        ("status = ?", wanted.status),
        ("type = ?", wanted.type),
        ("parent = ?", None if wanted.parent is None else wanted.parent.encode()),
        ("created_ms >= ?", wanted.created_after_ms),
        ("created_ms < ?", wanted.created_before_ms),
        ("updated_ms < ?", wanted.updated_before_ms),
    )
    for term, value in terms:
        if value is not None:
            where += f" AND {term}"
            values.append(value)

    if wanted.kind == WAIT and wanted.status is None:
        where += " AND status >= 0"

    return where, values


def _write_terms(terms: Terms) -> str:
    return json.dumps(terms)


def _read_terms(key: Key, text: str) -> Terms:
    try:
        children, any_of, timeout_ms, parent = json.loads(text)
        return Terms(tuple(children), any_of, timeout_ms, parent)
    except (ValueError, TypeError) as error:
        message = f"the terms of {key} cannot be read: {error}; the record is left as it is"
        raise CorruptRecordError(message, key=tuple(key)) from error


def _read_outcomes(text: str) -> tuple[Outcome, ...]:
    outcomes: list[Outcome] = []

    for fields in json.loads(text):
        outcome = Outcome(*fields)
        if outcome.terms is not None:
            children, any_of, timeout_ms, parent = outcome.terms
            outcome = outcome._replace(terms=Terms(tuple(children), any_of, timeout_ms, parent))

        outcomes.append(outcome)

    return tuple(outcomes)


# --- the wire -----------------------------------------------------------------------------------


class SQLiteWire:
    """Performs `Call` as one transaction on a pooled connection; opens the file at first use.

    Any number of threads may use it; writers of one process queue on a lock, those of several on
    SQLite's. A forked child opens connections of its own and never touches its parent's.
    """

    threaded = True
    """An async driver must perform the call in a worker thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[SQLiteTables] = []
        self._writing = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        _wires.add(self)

    def __call__(self, call: Call[Any]) -> Any:
        try:
            tables = self._take()
        except sqlite3.Error as error:
            raise self._translated(error) from error

        try:
            if call.writes:
                with self._writing:
                    result = self._write(tables, call)
            else:
                result = self._read(tables, call)
        except sqlite3.Error as error:
            self._give_back(tables)
            raise self._translated(error) from error
        except BaseException:
            self._give_back(tables)
            raise

        self._give_back(tables)
        return result

    def _write(self, tables: SQLiteTables, call: Call[Any]) -> Any:
        connection = tables.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = call.function(tables)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

            raise

        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
                raise

            if _code(error) == sqlite3.SQLITE_IOERR:
                message = f"SQLite could not finish a commit to {self._path!r}: {error}"
                raise ReplyLostError(message) from error

            raise

        return result

    def _read(self, tables: SQLiteTables, call: Call[Any]) -> Any:
        if call.single:
            return call.function(tables)

        connection = tables.connection
        connection.execute("BEGIN")
        try:
            return call.function(tables)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _take(self) -> SQLiteTables:
        try:
            return self._idle.pop()
        except IndexError:
            return SQLiteTables(_connect(self._path))

    def _give_back(self, tables: SQLiteTables) -> None:
        if self._closed or tables.connection.in_transaction:
            tables.connection.close()
        else:
            self._idle.append(tables)

    def _translated(self, error: sqlite3.Error) -> Exception:
        code, path = _code(error), self._path
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            message = (
                f"the file {path!r} is damaged or no SQLite database: {error};"
                " it is left as it is; restore it from a backup"
            )
            return CorruptRecordError(message, key=None)

        if code == sqlite3.SQLITE_FULL:
            return NotSentError(f"the disk that holds {path!r} is full: {error}; free some space")

        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return NotSentError(
                f"the file {path!r} stayed locked by another process for {BUSY_SECONDS} s"
            )

        if code == sqlite3.SQLITE_READONLY:
            message = f"the file {path!r} or its folder cannot be written: {error}; nothing was"
            return StoreConfigError(message)

        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            message = (
                f"the file {path!r} cannot be opened: {error};"
                " check that its folder exists and may be written"
            )
            return StoreConfigError(message)

        if code == sqlite3.SQLITE_TOOBIG:
            message = "a record is larger than SQLite's limit of 1,000,000,000 bytes"
            return RecordTooLargeError(message, size=None, limit=1_000_000_000)

        if code == sqlite3.SQLITE_ERROR:
            message = f"the file {path!r} does not have this library's tables: {error}"
            return StoreConfigError(message)

        return NotSentError(f"SQLite cannot use {path!r} now: {error}")

    def close(self) -> None:
        """Close every idle connection; those in use close when they are done."""
        self._closed = True
        _close_all(self._idle)

    def after_fork(self) -> None:
        """In the child: forget the parent's connections without closing them.

        Closing them would drop the parent's POSIX locks on the file.
        """
        _inherited.extend(self._idle)
        self._finalizer.detach()
        self._idle = []
        self._writing = threading.Lock()
        self._finalizer = weakref.finalize(self, _close_all, self._idle)

    def __repr__(self) -> str:
        return f"<SQLiteWire {self._path!r} idle: {len(self._idle)}>"


_wires: weakref.WeakSet[SQLiteWire] = weakref.WeakSet()
_inherited: list[SQLiteTables] = []


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        _set_up(connection)
    except BaseException:
        connection.close()
        raise

    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    give_up = time.monotonic() + BUSY_SECONDS

    while connection.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        # Going over to WAL does not wait for other connections by itself.
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise

            if time.monotonic() > give_up:
                raise

            time.sleep(0.01)

    connection.execute("PRAGMA synchronous = FULL")


def _close_all(idle: list[SQLiteTables]) -> None:
    while idle:
        idle.pop().connection.close()


def _code(error: sqlite3.Error) -> int:
    """The primary result code; extended codes carry it in their low byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _after_fork_in_child() -> None:
    for wire in list(_wires):
        wire.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
