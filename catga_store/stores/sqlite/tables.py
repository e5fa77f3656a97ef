"""The rows of one SQLite connection, and every statement that is run on them.

The file is over 400 lines because it implements one protocol, `Tables`, method by method.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreConfigError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import CANCELLED
from catga_store.protocol.requests import HIGHEST_STATUS
from catga_store.protocol.requests import NO_STATUS
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Terms
from catga_store.protocol.requests import Totals
from catga_store.protocol.requests import record_with_body
from catga_store.protocol.rules import ItemRow
from catga_store.protocol.rules import WaitRow
from catga_store.stores.sqlite.binding import BLOB
from catga_store.stores.sqlite.binding import as_blob
from catga_store.stores.sqlite.binding import without_nulls
from catga_store.stores.sqlite.file_locks import FileGuard
from catga_store.stores.sqlite.parts import SQLiteParts
from catga_store.stores.sqlite.rows import AFTER_HEAD
from catga_store.stores.sqlite.rows import AFTER_WAIT_HEAD
from catga_store.stores.sqlite.rows import HEAD
from catga_store.stores.sqlite.rows import ID_LENGTH
from catga_store.stores.sqlite.rows import ONE_MORE_COMMIT
from catga_store.stores.sqlite.rows import TAGS
from catga_store.stores.sqlite.rows import WAIT_HEAD
from catga_store.stores.sqlite.rows import columns_of
from catga_store.stores.sqlite.rows import corrupt
from catga_store.stores.sqlite.rows import due_found
from catga_store.stores.sqlite.rows import flow_due
from catga_store.stores.sqlite.rows import flow_found
from catga_store.stores.sqlite.rows import flow_listed
from catga_store.stores.sqlite.rows import read_head
from catga_store.stores.sqlite.rows import read_item
from catga_store.stores.sqlite.rows import read_key
from catga_store.stores.sqlite.rows import read_outcomes
from catga_store.stores.sqlite.rows import read_terms
from catga_store.stores.sqlite.rows import read_wait_head
from catga_store.stores.sqlite.rows import readable
from catga_store.stores.sqlite.rows import text_of_tags
from catga_store.stores.sqlite.rows import wait_found
from catga_store.stores.sqlite.rows import wait_listed
from catga_store.stores.sqlite.rows import write_terms
from catga_store.stores.sqlite.schema import LAY_OUT
from catga_store.stores.sqlite.tags import TAGGED
from catga_store.stores.sqlite.tags import SQLiteTags
from catga_store.stores.sqlite.tags import has_others
from catga_store.stores.sqlite.tags import parent_has_tags
from catga_store.stores.sqlite.tags import row_of

__all__ = [
    "SQLiteTables",
]

_encode = msgspec.json.Encoder().encode

_TABLE = {FLOW: "catga_flows", PROGRESS: "catga_progress"}

_READ_HEAD, _READ = (
    {
        kind: f"SELECT {HEAD}{more} FROM {table} WHERE id = {BLOB} AND step = ?"  # noqa: S608  ours
        for kind, table in _TABLE.items()
    }
    for more in ("", ", body")
)


_INSERT = {
    kind: f"INSERT INTO {table} (id, step, {HEAD}, body) VALUES ({BLOB}{', ?' * 19})"  # noqa: S608  ours
    for kind, table in _TABLE.items()
}

_INDEXED_FIELDS = (
    "status",
    "type",
    "created_ms",
    "claim",
    "due_ms",
    "expires_ms",
    "reports_to",
    "tags",
)
_INDEXED = tuple(
    (1 << bit, place) for bit, place in enumerate(map(Head._fields.index, _INDEXED_FIELDS))
)
"""A bit for each column of `HEAD` that is indexed or seldom changes, and its place there."""


@cache
def _update_text(table: str, moved: int, *, with_body: bool) -> str:
    names = ["version", "updated_ms", "type_version", "position", "error", "attempts", "owner"]
    names += ["revision", "commits"]
    names += [Head._fields[place] for bit, place in _INDEXED if moved & bit]
    names += ["body"] if with_body else []
    return f"UPDATE {table} SET {'=?, '.join(names)}=? WHERE id = {BLOB} AND step = ?"  # noqa: S608  ours


@cache
def _replace_text(moved: int, *, with_body: bool) -> str:
    """The same, if the row has a certain head and the commit is not logged; one more commit is added."""
    text = _update_text("catga_flows", moved, with_body=with_body)
    text = text.replace(" commits=?", f" commits={ONE_MORE_COMMIT}")
    head = ", ".join(Head._fields[:16])
    return (
        f"{text} AND ({head}) IS ({', '.join('?' * 16)}) AND typeof(commits) = 'text'"  # noqa: S608  ours
        " AND NOT EXISTS (SELECT 1 FROM catga_commits WHERE id = ?)"
    )


def _written(
    head: Head, revision: str, commits: str, body: bytes | None, old: Head
) -> tuple[int, list[Any]]:
    """Return which indexed columns have changed, and the values in the order of `_update_text`.

    SQLite writes the index entries of every column that an update names, changed or not.
    """
    values: list[Any] = [head[0], head[3], *head[5:10], revision, commits]
    moved = 0
    if head[1:3] != old[1:3] or head[4] != old[4] or head[10:15] != old[10:15]:
        for bit, place in _INDEXED:
            if head[place] != old[place]:
                moved |= bit
                values.append(text_of_tags(head.tags) if place == TAGS else head[place])

    if body is not None:
        values.append(as_blob(body))

    return moved, values


class SQLiteTables:
    """Rows in one SQLite connection, inside one transaction; implements `Tables`."""

    def __init__(self, connection: sqlite3.Connection, guard: FileGuard) -> None:
        self.connection = connection
        self._execute = connection.execute
        self._cursor = connection.cursor()
        self.run = run = self._cursor.execute
        """Executes a statement that has no rows, or at most one, which is fetched before the next: it makes no
        cursor."""
        self.change = without_nulls(run)
        self.guard = guard
        self.known: dict[Key, Head | None] | None = None
        """The heads that a writing transaction has read or written, so that each is read once."""
        self._parts = SQLiteParts(connection.execute, run, self.change)
        self._tags = SQLiteTags(connection.execute)

    def close(self) -> None:
        """Close the connection."""
        self._cursor.close()  # its statement would keep the file open
        self.guard.leave(self.connection)

    def layout(self) -> tuple[int, int] | None:
        there = self._execute("SELECT 1 FROM sqlite_master WHERE name = 'catga_layout'").fetchone()
        if there is None:
            return None

        row = self._execute("SELECT version, partitions FROM catga_layout").fetchone()
        if row is None or tuple(map(type, row)) != (int, int):
            message = (
                "the store's layout cannot be read: expected a version and a number of "
                f"partitions, found {row}; nothing was changed"
            )
            raise CorruptRecordError(message, key=None)

        version, partitions = row
        return version, partitions

    def lay_out(self, version: int, partitions: int) -> None:
        for statement in LAY_OUT:
            self._execute(statement)

        row = version, partitions, secrets.token_hex(16)
        self._execute("INSERT INTO catga_layout VALUES (?, ?, ?)", row)

    def identity(self) -> str:
        column = "SELECT 1 FROM pragma_table_info('catga_layout') WHERE name = 'identity'"
        if self._execute(column).fetchone() is None:
            message = (
                "the file was created by a release that did not support codecs, so a store with "
                "codecs cannot use it; nothing was written; copy the records to a new file with "
                "catga-store copy"
            )
            raise StoreConfigError(message)

        (identity,) = self._execute("SELECT identity FROM catga_layout").fetchone()
        return f"sqlite:{identity}"

    def clear(self) -> None:
        for table in ("flows", "progress", "waits", "items", "commits", "tags", "counts"):
            self._execute(f"DELETE FROM catga_{table}")  # noqa: S608  a literal name

        self._parts.clear()
        if self.known:
            self.known.clear()

    # flows and progress ---------------------------------------------------------------------------

    def head(self, key: Key) -> Head | None:
        known = self.known
        if known is None:
            return self._head(key)

        if key not in known:
            known[key] = self._head(key)

        return known[key]

    def _head(self, key: Key) -> Head | None:
        kind, record_id, step, _ = key
        if kind == PART:
            return self._parts.head(key)

        row = self._execute(_READ_HEAD[kind], (record_id, step)).fetchone()
        return None if row is None else read_head(key, row)

    def _know(self, key: Key, head: Head | None) -> None:
        if self.known is not None:
            self.known[key] = head

    def record(self, key: Key) -> Record | None:
        if key.kind == WAIT:
            return self._wait_record(key)

        kind, record_id, step, _ = key
        if kind == PART:
            return self._parts.record(key)

        row = self._execute(_READ[kind], (record_id, step)).fetchone()
        return None if row is None else record_with_body(read_head(key, row), row[AFTER_HEAD])

    def _wait_record(self, key: Key) -> Record | None:
        row = self._execute(
            f"SELECT {WAIT_HEAD}, terms FROM catga_waits WHERE id = ?",  # noqa: S608  ours
            (key.id.encode(),),
        ).fetchone()
        if row is None:
            return None

        head = read_wait_head(key, row)
        items = self._execute(
            "SELECT child, success, payload FROM catga_items"
            " WHERE wait = ? AND done AND (member OR ?)",
            (key.id.encode(), head.status < 0),
        )
        return Record(
            head,
            b"",
            read_terms(key, row[AFTER_WAIT_HEAD]),
            tuple(read_item(key, row) for row in items),
        )

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        self._know(key, head)
        if key.kind == PART:
            self._parts.write(key, head, body, old)
            return

        table = _TABLE[key.kind]
        if old is None:
            values = [key.id, key.step, *columns_of(head), as_blob(body)]
            self.change(_INSERT[key.kind], values)
            self._tags.write(key, head, None)
            return

        moved, values = _written(head, head.revision, " ".join(head.commits), body, old)
        values += key.id, key.step
        self.change(_update_text(table, moved, with_body=body is not None), values)
        self._tags.write(key, head, old)

    def replace(self, key: Key, head: Head, body: bytes | None, old: Head, commit_id: str) -> bool:
        # One statement instead of three; the row need not be read and checked again.
        if len(commit_id) != ID_LENGTH:
            return False  # the commits are cut off by their length in text

        moved, values = _written(head, commit_id, commit_id, body, old)
        values += key.id, key.step, *old[:TAGS], text_of_tags(old.tags), old.revision, commit_id
        cursor = self.change(_replace_text(moved, with_body=body is not None), values)
        if self.known:
            self.known.pop(key, None)

        if cursor.rowcount != 1:
            return False

        self._tags.write(key, head, old)
        return True

    def admit(self, commit: Commit, change: Put | Check | None) -> bool:
        if self.known and change is not None:
            self.known.pop(change.key, None)

        return self._parts.admit(commit, change)

    def add_part(self, key: Key, head: Head, body: bytes) -> bool:
        if self.known:
            self.known.pop(key, None)

        return self._parts.add(key, head, body)

    def remove(self, key: Key, old: Head) -> None:
        self._know(key, None)
        if key.kind == PART:
            self._parts.remove(key)
            return

        self._execute(
            f"DELETE FROM {_TABLE[key.kind]} WHERE id = ? AND step = ?",  # noqa: S608  ours
            (key.id.encode(), key.step),
        )
        self._tags.write(key, None, old)

    def steps(self, flow_id: str) -> list[Found]:
        rows = self._execute(
            f"SELECT {HEAD}, step FROM catga_progress WHERE id = ? ORDER BY step",  # noqa: S608  ours
            (flow_id.encode(),),
        )
        found: list[Found] = []
        for row in rows:
            key = Key(PROGRESS, flow_id, row[AFTER_HEAD])
            found.append(Found(key, read_head(key, row)))

        return found

    # parts ----------------------------------------------------------------------------------------

    def part(self, key: Key, now_ms: int) -> Record | None:
        return self._parts.living(key, now_ms)

    def parts(self, wanted: Parts) -> list[ListedPart]:
        return self._parts.listed(wanted)

    def entry(self, flow_id: str, log: str, key: str) -> int | None:
        return self._parts.entry(flow_id, log, key)

    def drop_parts(self, flow_id: str) -> None:
        if self.known:
            self.known.clear()

        self._parts.drop(flow_id)

    def reclaim(self, limit: int) -> None:
        self._parts.reclaim(limit)

    def orphan(self, flow_id: str, expires_ms: int | None) -> None:
        self._parts.orphan(flow_id, expires_ms)

    # conditions -----------------------------------------------------------------------------------

    def wait(self, key: Key) -> WaitRow | None:
        row = self._execute(
            f"SELECT {WAIT_HEAD}, any_of, parent, expected, done"  # noqa: S608  ours
            " FROM catga_waits WHERE id = ?",
            (key.id.encode(),),
        ).fetchone()
        if row is None:
            return None

        head = read_wait_head(key, row)
        any_of, parent, expected, done = row[AFTER_WAIT_HEAD:]
        parent_id = None if parent is None else read_key(FLOW, parent).id
        return WaitRow(head, bool(any_of), parent_id, expected, done)

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
                f"INSERT INTO catga_waits (id, {WAIT_HEAD}, any_of, parent, expected, done, terms)"  # noqa: S608  ours
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (wait_id, *values, write_terms(terms or Terms((), any=False))),
            )
            return

        self._execute(
            "UPDATE catga_waits SET version=?, status=?, created_ms=?, updated_ms=?, due_ms=?,"
            " expires_ms=?, revision=?, commits=?, any_of=?, parent=?, expected=?, done=?,"
            " terms=ifnull(?, terms) WHERE id = ?",
            (*values, None if terms is None else write_terms(terms), wait_id),
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

    def due_flows(self, request: Due) -> list[Found]:
        wanted = DueFilter(
            claimed=False, until_ms=request.until_ms, types=request.types, tags=request.tags
        )
        rows = self._rows_due(wanted, f"{HEAD}, id, typeof(body)", None, request.now_ms)
        return readable(rows, request.limit, due_found)

    def due_waits(self, request: Due) -> list[Found]:
        now_ms, types = request.now_ms, request.types
        with_tags, tags = parent_has_tags(request.tags, now_ms)
        rows = self._execute(
            f"SELECT {WAIT_HEAD}, id, parent, terms, EXISTS (SELECT 1 FROM catga_items"  # noqa: S608  ours
            " WHERE wait = catga_waits.id AND done AND (typeof(child) <> 'blob'"
            " OR typeof(success) <> 'integer' OR typeof(payload) <> 'blob')) FROM catga_waits"
            " WHERE due_ms IS NOT NULL AND parent IS NOT NULL AND due_ms <= ?"
            f"{_parent_type_in(types)}{with_tags} ORDER BY due_ms",
            (request.until_ms, *(() if types is None else (now_ms, types[0], *types)), *tags),
        )
        return readable(rows, request.limit, self._wake)

    def _wake(self, row: Sequence[Any]) -> Found:
        """Return an entry for a condition whose parent can be notified: both can be read."""
        found = wait_found(row[:-1])
        _, parent, terms, has_damaged_items = row[AFTER_WAIT_HEAD:]
        read_terms(found.key, terms)
        if has_damaged_items:
            raise corrupt(found.key, "a completion")

        self.head(flow_key(read_key(FLOW, parent).id))
        return found

    def overdue(self, now_ms: int, limit: int | None) -> list[Found]:
        rows = self._execute(
            f"SELECT {WAIT_HEAD}, id FROM catga_waits INDEXED BY catga_waits_deadline"  # noqa: S608  ours
            f" WHERE due_ms IS NOT NULL AND status = {PENDING} AND due_ms <= ?"
            " ORDER BY due_ms, id LIMIT ?",
            (now_ms, -1 if limit is None else limit),
        )
        return [wait_listed(row) for row in rows]

    def find(
        self, wanted: Filter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        where, values = _where(wanted)
        where += " AND (expires_ms IS NULL OR expires_ms > ?)"
        values.append(now_ms)
        if after is None:
            return self._page(wanted, where, values, limit)

        if wanted.id_prefix is not None:
            return self._page(wanted, f"{where} AND id > ?", [*values, after[1].encode()], limit)

        # Two ranges, each a range of the index: many records may share a millisecond.
        created_ms, last_id = after[0], after[1].encode()
        time, name = ("made_ms", "flow") if wanted.tags else ("created_ms", "id")
        same = f"{where} AND {time} = ? AND {name} > ?"
        found = self._page(wanted, same, [*values, created_ms, last_id], limit)
        if len(found) < limit:
            older = f"{where} AND {time} < ?"
            found += self._page(wanted, older, [*values, created_ms], limit - len(found))

        return found

    def _page(
        self, wanted: Filter, where: str, values: Sequence[object], limit: int
    ) -> list[Found]:
        columns, _ = _LISTED[wanted.kind]
        order = "created_ms DESC, id" if wanted.id_prefix is None else "id"
        if wanted.tags and wanted.id_prefix is None:
            order = "made_ms DESC, flow"

        rows = self._execute(
            f"SELECT {columns}, id FROM {_source(wanted)} WHERE {where}"  # noqa: S608  ours
            f" ORDER BY {order} LIMIT ?",
            (*values, limit),
        )
        read = flow_listed if wanted.kind == FLOW else wait_listed
        return [read(row) for row in rows]

    def count(self, wanted: Filter, now_ms: int) -> int:
        # Expired rows are counted separately: so an index is enough, and no row is read.
        where, values = _where(wanted)
        _, table = _LISTED[wanted.kind]
        if wanted.tags:
            where += " AND (expires_ms IS NULL OR expires_ms > ?)"
            return self._count(_source(wanted), where, [*values, now_ms])

        number: int = self._execute(
            f"SELECT (SELECT count(*) FROM {table} INDEXED BY {_index(wanted)} WHERE {where})"  # noqa: S608  ours
            f" - (SELECT count(*) FROM {table} INDEXED BY {table}_expires"
            f" WHERE {where} AND expires_ms IS NOT NULL AND expires_ms <= ?)",
            (*values, *values, now_ms),
        ).fetchone()[0]
        return number

    def list_due(
        self, wanted: DueFilter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        return readable(self._rows_due(wanted, f"{HEAD}, id", after, now_ms), limit, flow_due)

    def _rows_due(
        self, wanted: DueFilter, columns: str, after: tuple[int, str] | None, now_ms: int
    ) -> Iterable[Sequence[Any]]:
        where, values = _where_due(wanted)
        time, name = ("at_ms", "flow") if _looks_up_tag(wanted) else ("due_ms", "id")
        if after is not None:
            where += f" AND ({time}, {name}) > (?, ?)"
            values += after[0], after[1].encode()

        return self._execute(
            f"SELECT {columns} FROM {_source_of_due(wanted)} WHERE {where}"  # noqa: S608  ours
            f" AND (expires_ms IS NULL OR expires_ms > ?) ORDER BY {time}, {name}",
            (*values, now_ms),
        )

    def _count(self, source: str, where: str, values: Sequence[object]) -> int:
        number: int = self._execute(
            f"SELECT count(*) FROM {source} WHERE {where}",  # noqa: S608  ours
            values,
        ).fetchone()[0]
        return number

    def count_due(self, wanted: DueFilter, now_ms: int) -> int:
        where, values = _where_due(wanted)
        source = _source_of_due(wanted)
        if wanted.tags:
            where += " AND (expires_ms IS NULL OR expires_ms > ?)"
            return self._count(source, where, [*values, now_ms])

        number: int = self._execute(
            f"SELECT (SELECT count(*) FROM {source} WHERE {where})"  # noqa: S608  ours
            f" - (SELECT count(*) FROM catga_flows INDEXED BY catga_flows_expires WHERE {where}"
            " AND expires_ms IS NOT NULL AND expires_ms <= ?)",
            (*values, *values, now_ms),
        ).fetchone()[0]
        return number

    def totals(self, now_ms: int) -> Totals:
        flows = {
            (kind, status): number
            for kind, status, number in self._execute(
                "SELECT type, status, flows FROM catga_counts WHERE flows > 0"
            )
        }
        expired = self._execute(
            "SELECT type, status FROM catga_flows INDEXED BY catga_flows_expires"
            " WHERE expires_ms IS NOT NULL AND expires_ms <= ?",
            (now_ms,),
        )
        for pair in expired:
            flows[pair] = flows.get(pair, 0) - 1

        past = DueFilter(claimed=False, until_ms=now_ms)
        oldest = self._execute(
            "SELECT due_ms FROM catga_flows INDEXED BY catga_flows_due WHERE due_ms <= ?"
            " AND (expires_ms IS NULL OR expires_ms > ?) ORDER BY due_ms LIMIT 1",
            (now_ms, now_ms),
        ).fetchone()
        waits = self._execute(
            "SELECT"  # noqa: S608  a number of ours
            " (SELECT count(*) FROM catga_waits INDEXED BY catga_waits_status"
            f" WHERE status = {PENDING}),"
            " (SELECT count(*) FROM catga_waits INDEXED BY catga_waits_deadline"
            f" WHERE due_ms <= ? AND status = {PENDING}),"
            " (SELECT count(*) FROM catga_waits INDEXED BY catga_waits_due"
            " WHERE due_ms <= ? AND parent IS NOT NULL)",
            (now_ms, now_ms),
        ).fetchone()
        return Totals(
            tuple((*pair, number) for pair, number in flows.items() if number),
            self.count_due(past, now_ms),
            None if oldest is None else oldest[0],
            self.count_due(DueFilter(claimed=True, after_ms=now_ms), now_ms),
            self.count_due(past._replace(claimed=True), now_ms),
            *waits,
        )

    def scan(self, kind: str, after: Key | None, limit: int) -> list[Key]:
        if kind == PART:
            return self._parts.scan(after, limit)

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

        return [read_key(kind, *row) for row in rows]

    def expired(self, now_ms: int, limit: int) -> list[Key]:
        found: list[Key] = []

        readers: tuple[tuple[str, Callable[[Sequence[Any]], Key]], ...] = (
            (FLOW, self._leaving),
            (WAIT, lambda row: wait_found(row).key),
        )
        for kind, read in readers:
            columns, table = _LISTED[kind]
            rows = self._execute(
                f"SELECT {columns}, id FROM {table}"  # noqa: S608  ours
                " WHERE expires_ms IS NOT NULL AND expires_ms <= ? ORDER BY expires_ms",
                (now_ms,),
            )
            found += readable(rows, limit - len(found), read)

        return found + self._parts.orphans(now_ms, limit - len(found))

    def _leaving(self, row: Sequence[Any]) -> Key:
        """Return the key of a flow that can be removed: it and its progress can be read."""
        key = flow_found(row).key
        self.steps(key.id)
        return key

    # the log of commits ---------------------------------------------------------------------------

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:
        row = self._execute("SELECT reply FROM catga_commits WHERE id = ?", (commit_id,)).fetchone()
        return None if row is None else read_outcomes(commit_id, row[0])

    def log(self, commit_id: str, at_ms: int, outcomes: tuple[Outcome, ...]) -> None:
        self.run(
            "INSERT OR REPLACE INTO catga_commits VALUES (?, ?, ?)",
            (commit_id, at_ms, _encode(outcomes).decode()),
        )

    def forget_log(self, before_ms: int, limit: int) -> None:
        # Ids begin with their time, so the oldest come first.
        self._execute(
            "DELETE FROM catga_commits WHERE at_ms < ? AND id IN"
            " (SELECT id FROM catga_commits ORDER BY id LIMIT ?)",
            (before_ms, limit),
        )


def _type_in(column: str, types: Sequence[str] | None) -> str:
    """The condition that a type is one of these, by as many parameters; nothing for any type."""
    return "" if types is None else f" AND {column} IN ({', '.join('?' * len(types))})"


def _parent_type_in(types: Sequence[str] | None) -> str:
    """Likewise for the type of a condition's parent; a parent that is gone is of any type.

    Parameters: the time, one of the types, the types.
    """
    return _type_in(
        "coalesce((SELECT type FROM catga_flows WHERE id = parent AND step = 0"
        " AND (expires_ms IS NULL OR expires_ms > ?)), ?)",
        types,
    )


def _looks_up_tag(wanted: DueFilter) -> bool:
    return bool(wanted.tags) and not wanted.claimed


def _source_of_due(wanted: DueFilter) -> str:
    """Where flows are looked for by due time: else SQLite may read every flow of a type, and sort them."""
    if _looks_up_tag(wanted):
        return TAGGED.format(index="catga_tags_due")

    index = "catga_flows_claimed" if wanted.claimed else "catga_flows_due"
    return f"catga_flows INDEXED BY {index}"


def _where_due(wanted: DueFilter) -> tuple[str, list[Any]]:
    time, tags = "due_ms", wanted.tags
    where = "due_ms IS NOT NULL"
    values: list[Any] = []
    if _looks_up_tag(wanted):
        time, tags = "at_ms", wanted.tags[1:]
        where = "tag = ? AND at_ms IS NOT NULL"
        values.append(row_of(wanted.tags[0]))
    elif wanted.claimed:
        where += " AND claim IS NOT NULL"

    for term, value in (f"{time} > ?", wanted.after_ms), (f"{time} <= ?", wanted.until_ms):
        if value is not None:
            where += f" AND {term}"
            values.append(value)

    others, rows = has_others(tags)
    where += _type_in("type", wanted.types) + others
    return where, [*values, *(wanted.types or ()), *rows]


_AFTER_TEXT = b"\xff"
"""Greater than any byte of UTF-8: what begins with a prefix comes before the prefix and this."""

_NO_STATUS = {FLOW: ("(status > ? OR status < 0)", HIGHEST_STATUS), WAIT: ("status > ?", CANCELLED)}
"""Rows whose status does not exist; text is greater than any number. Hidden conditions are below 0."""

_LISTED = {FLOW: (HEAD, "catga_flows"), WAIT: (WAIT_HEAD, "catga_waits")}


def _index(wanted: Filter) -> str:
    """The index whose order a listing has: the planner, without statistics, may sort instead."""
    if wanted.kind == WAIT:
        if wanted.parent is not None:
            return "catga_waits_parent"

        return "catga_waits_all" if wanted.status is None else "catga_waits_status"

    if wanted.id_prefix is not None:
        return "sqlite_autoindex_catga_flows_1"  # of the primary key

    if wanted.type is None:
        return "catga_flows_all" if wanted.status is None else "catga_flows_status"

    return "catga_flows_type" if wanted.status is None else "catga_flows_both"


def _source(wanted: Filter) -> str:
    """Where records are looked for, in the order of a listing."""
    if wanted.tags and wanted.id_prefix is None:
        by_status = wanted.status not in (None, NO_STATUS)
        return TAGGED.format(
            index="sqlite_autoindex_catga_tags_1" if by_status else "catga_tags_all"
        )

    return f"{_LISTED[wanted.kind][1]} INDEXED BY {_index(wanted)}"


def _where(wanted: Filter) -> tuple[str, list[Any]]:
    where = "status >= 0" if wanted.kind == WAIT else "1"
    values: list[Any] = []
    prefix = None if wanted.id_prefix is None else wanted.id_prefix.encode()
    terms: tuple[tuple[str, object], ...] = (
        ("status = ?", wanted.status),
        ("type = ?", wanted.type),
        ("parent = ?", None if wanted.parent is None else wanted.parent.encode()),
        ("created_ms >= ?", wanted.created_after_ms),
        ("created_ms < ?", wanted.created_before_ms),
        ("updated_ms < ?", wanted.updated_before_ms),
        ("updated_ms >= ?", wanted.updated_after_ms),
        ("owner = ?", wanted.owner),
        ("instr(error, ?) > 0", wanted.error_contains),
        ("attempts >= ?", wanted.attempts_at_least),
        ("id >= ?", prefix),
        ("id < ?", None if prefix is None else prefix + _AFTER_TEXT),
    )
    tags = wanted.tags
    if wanted.status == NO_STATUS:
        terms = (_NO_STATUS[wanted.kind], *terms[1:])

    if tags and prefix is None:
        # The row of the tag says the same as the flow, and is in the order of the listing.
        terms = (
            ("tag = ?", row_of(tags[0])),
            ("in_status = ?", None if wanted.status == NO_STATUS else wanted.status),
            ("made_ms >= ?", wanted.created_after_ms),
            ("made_ms < ?", wanted.created_before_ms),
            *terms,
        )
        tags = tags[1:]

    for term, value in terms:
        if value is not None:
            where += f" AND {term}"
            values.append(value)

    others, rows = has_others(tags)
    return where + others, [*values, *rows]
