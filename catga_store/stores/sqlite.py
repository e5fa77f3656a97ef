"""The SQLite store: one file, many processes, every commit durable when it is acknowledged.

Tables: `catga_flows` and `catga_progress` (one row a record, keyed by id and step), `catga_waits`
and `catga_items` (a condition, and one row per child), `catga_commits` (replies of recent commits)
and `catga_layout`. Ids are BLOBs of UTF-8, so NUL and case stay what they are. Bodies are JSON:
`sqlite3 flows.db "select cast(id as text), version, body from catga_flows"` reads them.

WAL with `synchronous=FULL`: a commit is one transaction under `BEGIN IMMEDIATE` and one fsync.
Reads see a snapshot and never wait for writers. A writer waits up to 30 s for other processes.
A lost connection does not exist here; a failed `COMMIT` of unknown outcome is asked again under
the same commit id. A row that cannot be read raises `CorruptRecordError` where it is asked for, and
is passed over, with a warning in the log, where workers ask for what is due or has expired.

The file must lie on a local disk: WAL needs shared memory. It belongs to this library alone. Copy
it with SQLite's own backup, not as a file: opening and closing it in a process that has a store on
it drops that process's locks. Its log, beside it, is part of it while anybody has it open.

The file is over 400 lines because it is read as a whole: tables, what they hold, who runs it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from typing import ParamSpec
from typing import TypeAlias
from typing import TypeVar

import msgspec

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
from catga_store.keys import flow_key
from catga_store.records import CANCELLED
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

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

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

_HEAD = (
    "version, status, created_ms, updated_ms, type, type_version, position, error, attempts,"
    " owner, claim, due_ms, expires_ms, revision, commits"
)
_WAIT_HEAD = "version, status, created_ms, updated_ms, due_ms, expires_ms, revision, commits"
_TABLE = {FLOW: "catga_flows", PROGRESS: "catga_progress"}

_READ_HEAD, _READ = (
    {
        kind: f"SELECT {_HEAD}{more} FROM {table} WHERE id = ? AND step = ?"  # noqa: S608  ours
        for kind, table in _TABLE.items()
    }
    for more in ("", ", body")
)

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
    """
CREATE TABLE catga_commits (
  id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID
""",
    "CREATE INDEX catga_flows_all ON catga_flows (created_ms DESC, id)",
    "CREATE INDEX catga_flows_status ON catga_flows (status, created_ms DESC, id)",
    "CREATE INDEX catga_flows_type ON catga_flows (type, created_ms DESC, id)",
    "CREATE INDEX catga_flows_both ON catga_flows (status, type, created_ms DESC, id)",
    # With the type, so that a worker of one type passes over others' work inside the index.
    "CREATE INDEX catga_flows_due ON catga_flows (due_ms, type) WHERE due_ms IS NOT NULL",
    "CREATE INDEX catga_flows_expires ON catga_flows (expires_ms) WHERE expires_ms IS NOT NULL",
    "CREATE INDEX catga_waits_all ON catga_waits (created_ms DESC, id) WHERE status >= 0",
    "CREATE INDEX catga_waits_status ON catga_waits (status, created_ms DESC, id)",
    """
CREATE INDEX catga_waits_parent ON catga_waits (parent, created_ms DESC, id)
WHERE parent IS NOT NULL AND status >= 0
""",
    """
CREATE INDEX catga_waits_due ON catga_waits (due_ms)
WHERE due_ms IS NOT NULL AND parent IS NOT NULL
""",
    f"""
CREATE INDEX catga_waits_deadline ON catga_waits (due_ms, id)
WHERE due_ms IS NOT NULL AND status = {PENDING}
""",
    "CREATE INDEX catga_waits_expires ON catga_waits (expires_ms) WHERE expires_ms IS NOT NULL",
)


# --- rows, which somebody may have edited ---------------------------------------------------------

_NONE = type(None)
_INT, _TEXT, _BYTES = (int,), (str,), (bytes,)
_INT_OR_NONE, _TEXT_OR_NONE, _BYTES_OR_NONE = (int, _NONE), (str, _NONE), (bytes, _NONE)


def _shapes(*columns: tuple[type, ...]) -> frozenset[tuple[type, ...]]:
    return frozenset(itertools.product(*columns))


_HEAD_COLUMNS = (
    *(_INT, _INT, _INT, _INT, _TEXT, _INT, _TEXT, _TEXT_OR_NONE, _INT),
    *(_TEXT_OR_NONE, _TEXT_OR_NONE, _INT_OR_NONE, _INT_OR_NONE, _TEXT, _TEXT),
)
_HEADS = (
    _shapes(*_HEAD_COLUMNS) | _shapes(*_HEAD_COLUMNS, _BYTES) | _shapes(*_HEAD_COLUMNS, _INT)
)  # alone, with the body or the id, with the step

_WAIT_COLUMNS = (_INT, _INT, _INT, _INT, _INT_OR_NONE, _INT_OR_NONE, _TEXT, _TEXT)
_WAITS = (
    _shapes(*_WAIT_COLUMNS, _INT, _BYTES_OR_NONE, _INT, _INT)
    | _shapes(*_WAIT_COLUMNS, _TEXT)
    | _shapes(*_WAIT_COLUMNS, _BYTES)
    | _shapes(*_WAIT_COLUMNS, _BYTES, _BYTES, _TEXT)
)  # with what decides it, with the terms, with the id, with id, parent and terms

_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
_LOWEST, _HIGHEST = -5, 6
"""The states of all kinds of rows lie in between; `Head.status` says more."""


def _head(key: Key, row: Sequence[Any]) -> Head:
    """A head from the columns of `_HEAD`, and what else `_HEADS` lists."""
    if (
        tuple(map(type, row)) not in _HEADS
        or not 0 <= row[1] <= _HIGHEST
        or not _FIRST_MS <= row[2] <= _LAST_MS
        or not _FIRST_MS <= row[3] <= _LAST_MS
    ):
        raise _corrupt(key, f"the row {_shown(row)}")

    return Head.of((*row[:14], tuple(row[14].split())))


def _wait_head(key: Key, row: Sequence[Any]) -> Head:
    """A head from the columns of `_WAIT_HEAD`, and what else `_WAITS` lists."""
    if (
        tuple(map(type, row)) not in _WAITS
        or not _LOWEST <= row[1] <= CANCELLED
        or not _FIRST_MS <= row[2] <= _LAST_MS
        or not _FIRST_MS <= row[3] <= _LAST_MS
    ):
        raise _corrupt(key, f"the row {_shown(row)}")

    version, status, created_ms, updated_ms, due_ms, expires_ms, revision, commits = row[:8]
    return Head(
        version,
        status,
        created_ms,
        updated_ms,
        due_ms=due_ms,
        expires_ms=expires_ms,
        revision=revision,
        commits=tuple(commits.split()),
    )


def _shown(row: Sequence[Any]) -> str:
    return ", ".join(repr(value)[:40] for value in row)


def _corrupt(key: Key, what: str) -> CorruptRecordError:
    message = f"{key} cannot be read: {what} is none of this library's; it is left as it is"
    return CorruptRecordError(message, key=tuple(key))


def _key(kind: str, record_id: object, step: object = 0) -> Key:
    """The key of a row; `CorruptRecordError` for one that no record can have."""
    if type(record_id) is bytes and type(step) is int:
        with contextlib.suppress(UnicodeDecodeError):
            return Key(kind, record_id.decode(), step)

    raise _corrupt(Key(kind, repr(record_id)[:100]), "its id")


def _flow_found(row: Sequence[Any]) -> Found:
    """An entry from `_HEAD` and the id."""
    key = _key(FLOW, row[15])
    return Found(key, _head(key, row))


def _due_found(row: Sequence[Any]) -> Found:
    """An entry from `_HEAD`, the id and the type of the body."""
    found = _flow_found(row[:16])
    if row[16] != "blob":
        raise _corrupt(found.key, f"a body of type {row[16]}")

    return found


def _wait_found(row: Sequence[Any]) -> Found:
    """An entry from `_WAIT_HEAD` and the id."""
    key = _key(WAIT, row[8])
    return Found(key, _wait_head(key, row))


def _readable(
    rows: Iterable[Sequence[Any]], limit: int, read: Callable[[Sequence[Any]], T]
) -> list[T]:
    """The first `limit` that can be read: one row that cannot must not stand in everybody's way."""
    found: list[T] = []

    for row in rows:
        if len(found) == limit:
            break

        try:
            found.append(read(row))
        except CorruptRecordError as error:
            _warn(error)

    return found


def _warn(error: CorruptRecordError) -> None:
    """Log what was passed over, for each record once in a while: workers poll."""
    now = time.monotonic()
    if now - _warned.get(error.key, -math.inf) > _WARN_AGAIN_SECONDS:
        if len(_warned) > _WARNED_MOST:
            _warned.clear()

        _warned[error.key] = now
        _log.warning("passed over: %s", error)


_log = logging.getLogger("catga_store")
_warned: dict[object, float] = {}
_WARNED_MOST = 1000
_WARN_AGAIN_SECONDS = 30


# --- tables -------------------------------------------------------------------------------------


_INDEXED = tuple((1 << bit, place) for bit, place in enumerate((1, 4, 2, 11, 12)))
"""A bit for each indexed column of `_HEAD`, and its place there."""


@cache
def _update_text(table: str, moved: int, *, with_body: bool) -> str:
    names = ["version", "updated_ms", "type_version", "position", "error", "attempts", "owner"]
    names += ["claim", "revision", "commits"]
    names += [Head._fields[place] for bit, place in _INDEXED if moved & bit]
    names += ["body"] if with_body else []
    return f"UPDATE {table} SET {'=?, '.join(names)}=? WHERE id = ? AND step = ?"  # noqa: S608  ours


class SQLiteTables:
    """Rows in one SQLite connection, inside one transaction; implements `Tables`."""

    def __init__(self, connection: sqlite3.Connection, file: tuple[int, int] | None) -> None:
        self.connection = connection
        self._execute = connection.execute
        self._file = file

    def is_in_place(self, path: str) -> bool:
        """Whether the path still leads to the file that the connection has open."""
        return _place(path) == self._file

    def layout(self) -> tuple[int, int] | None:
        there = self._execute("SELECT 1 FROM sqlite_master WHERE name = 'catga_layout'").fetchone()
        if there is None:
            return None

        row = self._execute("SELECT version, partitions FROM catga_layout").fetchone()
        if row is None or tuple(map(type, row)) != (int, int):
            message = f"the layout of the store cannot be read: it is {row}; it is left as it is"
            raise CorruptRecordError(message, key=None)

        version, partitions = row
        return version, partitions

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
            _READ_HEAD[key.kind],
            (key.id.encode(), key.step),
        ).fetchone()
        return None if row is None else _head(key, row)

    def record(self, key: Key) -> Record | None:
        if key.kind == WAIT:
            return self._wait_record(key)

        row = self._execute(
            _READ[key.kind],
            (key.id.encode(), key.step),
        ).fetchone()
        return None if row is None else Record(_head(key, row), row[15])

    def _wait_record(self, key: Key) -> Record | None:
        row = self._execute(
            f"SELECT {_WAIT_HEAD}, terms FROM catga_waits WHERE id = ?",  # noqa: S608  ours
            (key.id.encode(),),
        ).fetchone()
        if row is None:
            return None

        head = _wait_head(key, row)
        items = self._execute(
            "SELECT child, success, payload FROM catga_items"
            " WHERE wait = ? AND done AND (member OR ?)",
            (key.id.encode(), head.status < 0),
        )
        return Record(
            head,
            b"",
            _read_terms(key, row[8]),
            tuple(_item(key, row) for row in items),
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
        values: list[Any] = [head.version, head.updated_ms, *head[5:11], head.revision, commits]
        moved = 0
        for bit, place in _INDEXED:
            if head[place] != old[place]:
                moved |= bit
                values.append(head[place])

        if body is not None:
            values.append(body)

        values += key.id.encode(), key.step
        self._execute(_update_text(table, moved, with_body=body is not None), values)

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
        found: list[Found] = []
        for row in rows:
            key = Key(PROGRESS, flow_id, row[15])
            found.append(Found(key, _head(key, row)))

        return found

    # conditions -----------------------------------------------------------------------------------

    def wait(self, key: Key) -> WaitRow | None:
        row = self._execute(
            f"SELECT {_WAIT_HEAD}, any_of, parent, expected, done"  # noqa: S608  ours
            " FROM catga_waits WHERE id = ?",
            (key.id.encode(),),
        ).fetchone()
        if row is None:
            return None

        head = _wait_head(key, row)
        parent = None if row[9] is None else _key(FLOW, row[9]).id
        return WaitRow(head, bool(row[8]), parent, row[10], row[11])

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
            f"SELECT {_HEAD}, id, typeof(body)"  # noqa: S608  ours
            " FROM catga_flows WHERE due_ms IS NOT NULL AND due_ms <= ?"
            " AND (? IS NULL OR type IN ('', ?)) AND (expires_ms IS NULL OR expires_ms > ?)"
            " ORDER BY due_ms",
            (now_ms, wanted, wanted, now_ms),
        )
        return _readable(rows, limit, _due_found)

    def due_waits(self, now_ms: int, limit: int, wanted: str | None) -> list[Found]:
        rows = self._execute(
            f"SELECT {_WAIT_HEAD}, id, parent, terms, EXISTS (SELECT 1 FROM catga_items"  # noqa: S608  ours
            " WHERE wait = catga_waits.id AND done AND (typeof(child) <> 'blob'"
            " OR typeof(success) <> 'integer' OR typeof(payload) <> 'blob')) FROM catga_waits"
            " WHERE due_ms IS NOT NULL AND parent IS NOT NULL AND due_ms <= ?"
            " AND (? IS NULL OR ifnull((SELECT type FROM catga_flows"
            " WHERE id = parent AND step = 0 AND (expires_ms IS NULL OR expires_ms > ?)), '')"
            " IN ('', ?)) ORDER BY due_ms",
            (now_ms, wanted, now_ms, wanted),
        )
        return _readable(rows, limit, self._wake)

    def _wake(self, row: Sequence[Any]) -> Found:
        """A condition that can be told of: it and its parent can be read."""
        found = _wait_found(row[:11])
        _read_terms(found.key, row[10])
        if row[11]:
            raise _corrupt(found.key, "a completion")

        self.head(flow_key(_key(FLOW, row[9]).id))
        return found

    def overdue(self, now_ms: int, limit: int | None) -> list[Found]:
        rows = self._execute(
            f"SELECT {_WAIT_HEAD}, id FROM catga_waits INDEXED BY catga_waits_deadline"  # noqa: S608  ours
            f" WHERE due_ms IS NOT NULL AND status = {PENDING} AND due_ms <= ?"
            " ORDER BY due_ms, id LIMIT ?",
            (now_ms, -1 if limit is None else limit),
        )
        return [_wait_found(row) for row in rows]

    def find(
        self, wanted: Filter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        where, values = _where(wanted)
        where += " AND (expires_ms IS NULL OR expires_ms > ?)"
        values.append(now_ms)
        if after is None:
            return self._page(wanted, where, values, limit)

        # Two ranges, each of which the index begins at: many records may share a millisecond.
        created_ms, last_id = after[0], after[1].encode()
        same = f"{where} AND created_ms = ? AND id > ?"
        found = self._page(wanted, same, [*values, created_ms, last_id], limit)
        if len(found) < limit:
            older = f"{where} AND created_ms < ?"
            found += self._page(wanted, older, [*values, created_ms], limit - len(found))

        return found

    def _page(
        self, wanted: Filter, where: str, values: Sequence[object], limit: int
    ) -> list[Found]:
        columns, table = _LISTED[wanted.kind]
        rows = self._execute(
            f"SELECT {columns}, id FROM {table} INDEXED BY {_index(wanted)} WHERE {where}"  # noqa: S608  ours
            " ORDER BY created_ms DESC, id LIMIT ?",
            (*values, limit),
        )
        read = _flow_found if wanted.kind == FLOW else _wait_found
        return [read(row) for row in rows]

    def count(self, wanted: Filter, now_ms: int) -> int:
        # What has expired is counted apart: so an index alone answers, and no row is read.
        where, values = _where(wanted)
        _, table = _LISTED[wanted.kind]
        number: int = self._execute(
            f"SELECT (SELECT count(*) FROM {table} INDEXED BY {_index(wanted)} WHERE {where})"  # noqa: S608  ours
            f" - (SELECT count(*) FROM {table} INDEXED BY {table}_expires"
            f" WHERE {where} AND expires_ms IS NOT NULL AND expires_ms <= ?)",
            (*values, *values, now_ms),
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

        return [_key(kind, *row) for row in rows]

    def expired(self, now_ms: int, limit: int) -> list[Key]:
        found: list[Key] = []

        readers: tuple[tuple[str, Callable[[Sequence[Any]], Key]], ...] = (
            (FLOW, self._leaving),
            (WAIT, lambda row: _wait_found(row).key),
        )
        for kind, read in readers:
            columns, table = _LISTED[kind]
            rows = self._execute(
                f"SELECT {columns}, id FROM {table}"  # noqa: S608  ours
                " WHERE expires_ms IS NOT NULL AND expires_ms <= ? ORDER BY expires_ms",
                (now_ms,),
            )
            found += _readable(rows, limit - len(found), read)

        return found

    def _leaving(self, row: Sequence[Any]) -> Key:
        """A flow that can be removed: it and its progress can be read."""
        key = _flow_found(row).key
        self.steps(key.id)
        return key

    # the log of commits ---------------------------------------------------------------------------

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:
        row = self._execute("SELECT reply FROM catga_commits WHERE id = ?", (commit_id,)).fetchone()
        return None if row is None else _read_outcomes(commit_id, row[0])

    def log(self, commit_id: str, at_ms: int, outcomes: tuple[Outcome, ...]) -> None:
        self._execute(
            "INSERT OR REPLACE INTO catga_commits VALUES (?, ?, ?)",
            (commit_id, at_ms, msgspec.json.encode(outcomes).decode()),
        )

    def forget_log(self, before_ms: int, limit: int) -> None:
        # Ids begin with their time, so the oldest come first.
        self._execute(
            "DELETE FROM catga_commits WHERE at_ms < ? AND id IN"
            " (SELECT id FROM catga_commits ORDER BY id LIMIT ?)",
            (before_ms, limit),
        )


_LISTED = {FLOW: (_HEAD, "catga_flows"), WAIT: (_WAIT_HEAD, "catga_waits")}


def _index(wanted: Filter) -> str:
    """The index whose order a listing has: the planner, without statistics, may sort instead."""
    if wanted.kind == WAIT:
        if wanted.parent is not None:
            return "catga_waits_parent"

        return "catga_waits_all" if wanted.status is None else "catga_waits_status"

    if wanted.type is None:
        return "catga_flows_all" if wanted.status is None else "catga_flows_status"

    return "catga_flows_type" if wanted.status is None else "catga_flows_both"


def _where(wanted: Filter) -> tuple[str, list[Any]]:
    where = "status >= 0" if wanted.kind == WAIT else "1"
    values: list[Any] = []
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

    return where, values


def _item(key: Key, row: Sequence[Any]) -> Item:
    child, success, payload = row
    if type(child) is bytes and type(payload) is bytes and type(success) is int:
        with contextlib.suppress(UnicodeDecodeError):
            return Item(child.decode(), bool(success), payload)

    raise _corrupt(key, f"the completion {_shown(row)}")


def _write_terms(terms: Terms) -> str:
    return json.dumps(terms)


def _read_terms(key: Key, text: str) -> Terms:
    try:
        fields: list[Any] = json.loads(text)
        children, any_of, timeout_ms, parent = fields
        if (
            type(children) is list
            and all(type(child) is str for child in fields[0])
            and (type(any_of), type(timeout_ms), type(parent)) in _TERMS
        ):
            return Terms(tuple(fields[0]), any_of, timeout_ms, parent)
    except (ValueError, TypeError) as error:
        raise _corrupt(key, f"what it waits for, {text[:100]!r},") from error

    raise _corrupt(key, f"what it waits for, {text[:100]!r},")


_TERMS = _shapes((bool,), _INT_OR_NONE, _TEXT_OR_NONE)


def _read_outcomes(commit_id: str, text: str) -> tuple[Outcome, ...]:
    outcomes: list[Outcome] = []
    try:
        for fields in json.loads(text):
            outcome = Outcome(*fields)
            if outcome.terms is not None:
                children, any_of, timeout_ms, parent = outcome.terms
                outcome = outcome._replace(terms=Terms(tuple(children), any_of, timeout_ms, parent))

            outcomes.append(outcome)
    except (ValueError, TypeError) as error:
        message = f"the reply of commit {commit_id} cannot be read: {error}; it is left as it is"
        raise CorruptRecordError(message, key=None) from error

    return tuple(outcomes)


# --- the wire -----------------------------------------------------------------------------------


class SQLiteWire:
    """Performs `Call` as one transaction on a pooled connection; opens the file at first use.

    Any number of threads may use it; writers of one process queue on a lock, those of several on
    SQLite's. It may be used on both sides of a fork, which waits for the calls that are under way.
    """

    threaded = True
    """An async driver must perform the call in a worker thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[SQLiteTables] = []
        self._writing = threading.Lock()
        self._closed = False
        self._was_there = False
        self._written = 0
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        _wires.add(self)

    def __call__(self, call: Call[Any]) -> Any:
        if not call.writes:
            return self._perform(call, self._read)

        if not self._writing.acquire(timeout=max(0, BUSY_SECONDS)):
            message = (
                f"the file {self._path!r} stayed locked by another thread for {BUSY_SECONDS} s"
            )
            raise NotSentError(message)

        try:
            return self._perform(call, self._write)
        finally:
            self._writing.release()

    def _perform(
        self, call: Call[Any], transaction: Callable[[SQLiteTables, Call[Any]], Any]
    ) -> Any:
        traffic = _traffic
        traffic.enter()
        tables: SQLiteTables | None = None
        keep = False
        try:
            tables = self._take(call)
            result = transaction(tables, call)
            keep = True
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except BaseException:
            keep = tables is not None and not tables.connection.in_transaction
            raise
        finally:
            if tables is not None:
                self._give_back(tables, keep=keep)

            traffic.leave()

        return result

    def _write(self, tables: SQLiteTables, call: Call[Any]) -> Any:
        connection = tables.connection
        _patiently(connection.execute, "BEGIN IMMEDIATE")
        try:
            result = call.function(tables)
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

        SQLite begins the log anew only at a moment when no reader needs it, and among busy readers
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

    def _read(self, tables: SQLiteTables, call: Call[Any]) -> Any:
        if call.single:
            return _patiently(call.function, tables)

        return _patiently(_snapshot, tables, call.function)

    # connections ----------------------------------------------------------------------------------

    def _take(self, call: Call[Any]) -> SQLiteTables:
        try:
            tables = self._idle.pop()
        except IndexError:
            return self._open()

        if not call.single and not tables.is_in_place(self._path):
            # SQLite goes on with a file that was deleted: commits would be acknowledged and lost.
            tables.connection.close()
            _close_all(self._idle)
            message = (
                f"the file {self._path!r} was removed or replaced since it was opened;"
                " its connections were closed and nothing was written; put it back, or open"
                " the store anew"
            )
            raise StoreConfigError(message)

        return tables

    def _open(self) -> SQLiteTables:
        connection = _connect(self._path, create=not self._was_there)
        self._was_there = True
        return SQLiteTables(connection, _place(self._path))

    def _give_back(self, tables: SQLiteTables, *, keep: bool) -> None:
        if keep and len(self._idle) < MOST_IDLE:
            self._idle.append(tables)
            if self._closed:
                _close_all(self._idle)
        else:
            tables.connection.close()

    def close(self) -> None:
        """Close every idle connection; those in use close when they are done."""
        self._closed = True
        _close_all(self._idle)

    # forks ----------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close every connection: SQLite's locks and shared memory must not cross a fork.

        A child would believe that it holds locks which its parent holds, and the parent, closing
        last, would delete the log that the child writes.
        """
        _close_all(self._idle)

    def after_fork_in_child(self) -> None:
        """Forget what threads that are not here any more have left behind, without closing it."""
        _inherited.extend(self._idle)
        self._idle.clear()
        self._writing = threading.Lock()

    # failures -------------------------------------------------------------------------------------

    def _translated(self, error: sqlite3.Error) -> Exception:
        kind, text, facts = _FAILURES.get(_code(error), _UNKNOWN_FAILURE)
        why = self._why_not() if kind is StoreConfigError else ""
        message = text.format(path=self._path, error=error, seconds=BUSY_SECONDS, why=why)
        return kind(message, **facts)

    def _why_not(self) -> str:
        place = Path(self._path)
        if place.is_dir():
            return "it is a folder, and must be a file"

        if not place.parent.is_dir():
            return f"its folder {str(place.parent)!r} does not exist; make it"

        if self._was_there and not place.exists():
            return "it was removed since it was opened; put it back"

        return "this user must have the right to read and write it and its folder"

    def __repr__(self) -> str:
        return f"<SQLiteWire {self._path!r} idle: {len(self._idle)}>"


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


def _patiently(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call until it is not turned away by another's lock, for at most `BUSY_SECONDS`.

    SQLite's own waiting goes in steps that grow to 100 ms, and whoever has waited longest asks the
    least often: among eight busy writers the unlucky wait for a second. These are even odds.
    """
    give_up: float | None = None

    while True:
        try:
            return function(*args, **kwargs)
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


def _place(path: str) -> tuple[int, int] | None:
    """Which file a path leads to, `None` if to none."""
    try:
        found = os.stat(path)  # noqa: PTH116  asked before every write: a Path costs more than this
    except OSError:
        return None

    return found.st_dev, found.st_ino


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
    """The calls under way in this process. A fork waits until there are none, and lets none begin.

    SQLite's mutexes and locks, in the middle of a call of another thread, would stay as they are
    in the child for ever.
    """

    def __init__(self) -> None:
        self._gate = threading.Condition()
        self._under_way: list[int] = []
        self._stopped = False

    def enter(self) -> None:
        # Without a lock: first be seen, then look; `stop` does the same the other way round.
        self._under_way.append(threading.get_ident())
        while self._stopped:
            self.leave()
            with self._gate:
                self._gate.wait_for(lambda: not self._stopped)

            self._under_way.append(threading.get_ident())

    def leave(self) -> None:
        self._under_way.remove(threading.get_ident())
        if self._stopped:
            with self._gate:
                self._gate.notify_all()

    def stop(self) -> None:
        """Let no call begin and wait for those under way, except this thread's own."""
        own = threading.get_ident()
        with self._gate:
            self._gate.wait_for(lambda: not self._stopped)
            self._stopped = True
            self._gate.wait_for(
                lambda: all(ident == own for ident in tuple(self._under_way)),
                timeout=BUSY_SECONDS + 1,
            )

    def go_on(self) -> None:
        with self._gate:
            self._stopped = False
            self._gate.notify_all()


_traffic = _Traffic()
_wires: weakref.WeakSet[SQLiteWire] = weakref.WeakSet()
_inherited: list[SQLiteTables] = []


def _before_fork() -> None:
    _traffic.stop()
    for wire in list(_wires):
        wire.before_fork()


def _after_fork_in_parent() -> None:
    _traffic.go_on()


def _after_fork_in_child() -> None:
    global _traffic  # noqa: PLW0603  the parent's threads, which its lock is about, are not here
    _traffic = _Traffic()
    for wire in list(_wires):
        wire.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
