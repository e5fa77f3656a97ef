"""The parts of flows in a SQLite file.

The parts of one flow have a number, their life, so that deleting a flow with many parts is one row: the
life loses its flow. The rows of such a life are removed later, some at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from functools import cache
from typing import Any

from catga_store.protocol.keys import PART
from catga_store.protocol.keys import SEQUENCE_DIGITS
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import entry_key as key_of_entry
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import log_of
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import FIRST_MS
from catga_store.protocol.requests import LAST_MS
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import from_fields
from catga_store.protocol.requests import head_from
from catga_store.protocol.requests import record_with_body
from catga_store.stores.sqlite.binding import BLOB
from catga_store.stores.sqlite.binding import as_blob
from catga_store.stores.sqlite.rows import AFTER_HEAD
from catga_store.stores.sqlite.rows import AFTER_PART_HEAD
from catga_store.stores.sqlite.rows import HEAD
from catga_store.stores.sqlite.rows import ID_LENGTH
from catga_store.stores.sqlite.rows import ONE_MORE_COMMIT
from catga_store.stores.sqlite.rows import PART_HEAD
from catga_store.stores.sqlite.rows import columns_of
from catga_store.stores.sqlite.rows import corrupt
from catga_store.stores.sqlite.rows import head_of_part
from catga_store.stores.sqlite.rows import head_of_row
from catga_store.stores.sqlite.rows import read_head
from catga_store.stores.sqlite.rows import read_key
from catga_store.stores.sqlite.rows import shown_row

__all__ = ["LAY_OUT_PARTS", "SQLiteParts"]

LAY_OUT_PARTS = (
    # `id` is NULL once the flow is gone; `expires_ms` is set while it has not come yet.
    "CREATE TABLE catga_lives (life INTEGER PRIMARY KEY, id BLOB UNIQUE, expires_ms INTEGER)",
    """
CREATE TABLE catga_parts (
  life INTEGER NOT NULL, name BLOB NOT NULL,
  version INTEGER NOT NULL, status INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  type TEXT NOT NULL, type_version INTEGER NOT NULL,
  position TEXT NOT NULL, error TEXT, attempts INTEGER NOT NULL,
  owner TEXT, claim TEXT, due_ms INTEGER, expires_ms INTEGER, reports_to TEXT, tags TEXT,
  revision TEXT NOT NULL, commits TEXT NOT NULL,
  log BLOB, body BLOB NOT NULL,
  PRIMARY KEY (life, name)
)
""",
    # `log` is set on the first entry that has a key, which is its `position`.
    "CREATE INDEX catga_parts_key ON catga_parts (life, log, position, name) WHERE log IS NOT NULL",
    "CREATE INDEX catga_lives_gone ON catga_lives (life) WHERE id IS NULL",
    "CREATE INDEX catga_lives_expires ON catga_lives (expires_ms) WHERE expires_ms IS NOT NULL",
)

_MOST = 2**31 - 1  # SQLite takes no larger ones than 64 bits

_LIFE = f"(SELECT life FROM catga_lives WHERE id = {BLOB})"  # noqa: S608  ours
_LIVING = (
    "catga_lives AS lives CROSS JOIN catga_parts AS part ON part.life = lives.life"  # noqa: S608  ours
    f" WHERE lives.id = {BLOB}"
    " AND NOT EXISTS (SELECT 1 FROM catga_flows WHERE id = lives.id AND step = 0 AND expires_ms <= ?)"
)
"""The parts of a flow that has not expired; in one statement, because a second one needs a snapshot.

The life is a row of the join, and not a value that is looked up first: that takes a tenth longer.
"""
_ONE = f"life = {_LIFE} AND name = {BLOB}"
_READ_HEAD = f"SELECT {HEAD} FROM catga_parts WHERE {_ONE}"  # noqa: S608  ours
_READ = f"SELECT {HEAD}, body FROM catga_parts WHERE {_ONE}"  # noqa: S608  ours
_INSERT = (
    f"INSERT INTO catga_parts (life, name, {HEAD}, log, body)"  # noqa: S608  ours
    f" VALUES ({_LIFE}, {BLOB}{', ?' * 19})"
)
_COLUMNS = HEAD.split(", ")
_UPDATE = (
    f"UPDATE catga_parts SET {' = ?, '.join(_COLUMNS)} = ?, body = ifnull(?, body)"  # noqa: S608  ours
    f" WHERE {_ONE}"
)

_HEAD_OF_PART = tuple(
    ", ".join([f"part.{name}" for name in names.split(", ")]) for names in (PART_HEAD, HEAD)
)
"""The columns of a part, and of a former version of a flow."""
_BRIEF = "part.version, part.created_ms, part.position, part.revision"
_READ_LIVING, _READ_LIVING_VERSION = (
    f"SELECT {head}, body FROM {_LIVING} AND name = {BLOB}"  # noqa: S608  ours
    for head in _HEAD_OF_PART
)

_ADMITTED = (
    "SELECT lives.life FROM catga_flows AS flow LEFT JOIN catga_lives AS lives ON lives.id = flow.id"  # noqa: S608  ours
    f"{{part}} WHERE flow.id = {BLOB} AND flow.step = 0"
    " AND (flow.expires_ms IS NULL OR flow.expires_ms > ?)"
    " AND NOT EXISTS (SELECT 1 FROM catga_commits WHERE id = ?)"
)
"""A row if the flow has not expired and the commit is not logged."""
_ADMIT = _ADMITTED.format(part="")
_CAN_BE_READ = " AND ".join(
    f"typeof({{of}}{name}) = '{kind}'"
    for kind, names in (
        ("integer", "version created_ms updated_ms type_version attempts"),
        ("text", "type position commits"),
    )
    for name in names.split()
)
"""A part whose row was edited is left to the statements that read the row and say what is wrong with it."""
_ADMIT_PART = _ADMITTED.format(
    part=" JOIN catga_parts AS part ON part.life = lives.life"
    f" AND part.name = {BLOB} AND part.revision = ? AND {_CAN_BE_READ.format(of='part.')}"
)
_MOVE = (
    "UPDATE catga_parts SET version=?, updated_ms=?, type=?, type_version=?, position=?,"  # noqa: S608  ours
    f" revision=?, commits={ONE_MORE_COMMIT}, body=? WHERE life = ? AND name = {BLOB}"
    f" AND revision = ? AND created_ms = ? AND {_CAN_BE_READ.format(of='')}"
)
_ADD = (
    "INSERT INTO catga_parts (life, name, version, status, created_ms, updated_ms, type, type_version,"  # noqa: S608  ours
    f" position, attempts, revision, commits, body) VALUES (?, {BLOB}, ?, 0, ?, ?, ?, ?, ?, 0, ?, ?, ?)"
    " ON CONFLICT (life, name) DO NOTHING"
)
_OF_PARTS = Head(0, 0, 0, 0)[7:15]
"""The fields of a head from `error` to `tags`, as an ordinary part has them."""


@cache
def _list_text(shape: tuple[bool, ...]) -> str:
    """The statement of a listing: making it for each call takes longer than a page of two parts."""
    prefix, after, before, entries, versions, reverse, bodies, brief = shape
    head = _BRIEF if brief else _HEAD_OF_PART[versions]
    return (
        f"SELECT {head}, name, {'body' if bodies else 'NULL'} FROM {_LIVING}"  # noqa: S608  ours
        f"{f' AND name >= {BLOB} AND name < {BLOB}' * prefix}"
        f"{f' AND name > {BLOB}' * after}{f' AND name < {BLOB}' * before}"
        f"{_ENTRIES * entries} AND substr(name, {_VERSIONS if versions else _SHOWN}"
        f" ORDER BY name{' DESC' * reverse} LIMIT ?"
    )


def _end_of(prefix: str) -> str | bytes:
    """Return what comes after all names with this prefix."""
    if prefix[-1] < "\x7f":
        return prefix[:-1] + chr(ord(prefix[-1]) + 1)

    encoded = prefix.encode()
    return encoded[:-1] + bytes((encoded[-1] + 1,))  # UTF-8 has no byte 255


_ENTRIES = " AND length(name) = ? AND substr(CAST(name AS TEXT), ?) NOT GLOB '*[^0-9]*'"
_VERSIONS, _SHOWN = "-2) = x'2f2f'", "-1) <> x'2f'"


class SQLiteParts:
    """The rows of parts in one connection, inside one transaction."""

    def __init__(
        self, execute: Callable[..., Any], run: Callable[..., Any], change: Callable[..., Any]
    ) -> None:
        self._execute, self._run, self._change = execute, run, change  # see `SQLiteTables`
        self._admitted = 0
        """The life that `admit` has found, for what the same transaction adds."""

    def head(self, key: Key) -> Head | None:
        """Return the head of a part."""
        row = self._execute(_READ_HEAD, (key.id, key.name)).fetchone()
        return None if row is None else read_head(key, row)

    def record(self, key: Key) -> Record | None:
        """Return a part."""
        row = self._execute(_READ, (key.id, key.name)).fetchone()
        return None if row is None else record_with_body(read_head(key, row), row[AFTER_HEAD])

    def living(self, key: Key, now_ms: int) -> Record | None:
        """Return a part, unless its flow has expired."""
        _, flow_id, _, name = key
        values = flow_id, now_ms, name
        if is_version(name):
            row = self._execute(_READ_LIVING_VERSION, values).fetchone()
            return None if row is None else record_with_body(read_head(key, row), row[AFTER_HEAD])

        row = self._execute(_READ_LIVING, values).fetchone()
        if row is None:
            return None

        head, body = head_of_part(row), row[AFTER_PART_HEAD]
        if head is None or type(body) is not bytes:
            raise corrupt(key, f"the row {shown_row(row)}")

        return record_with_body(head, body)

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        """Insert or replace a part."""
        blob = as_blob(body)
        if old is not None:
            self._change(_UPDATE, (*columns_of(head), blob, key.id, key.name))
            return

        log = self._log_of(key, head.position) if head.position else None
        self._run(f"INSERT OR IGNORE INTO catga_lives (id) VALUES ({BLOB})", (key.id,))  # noqa: S608  ours
        self._change(_INSERT, (key.id, key.name, *columns_of(head), log, blob))

    def admit(self, commit: Commit, change: Put | Check | None) -> bool:
        """Do what `Tables.admit` says."""
        flow_id, now_ms, commit_id = commit.changes[0].key.id, commit.now_ms, commit.id
        if isinstance(change, Check):
            wanted = change.key.name, change.expected, flow_id, now_ms, commit_id
            row = self._run(_ADMIT_PART, wanted).fetchone()
        else:
            row = self._run(_ADMIT, (flow_id, now_ms, commit_id)).fetchone()

        if row is None:
            return False

        (life,) = row
        if isinstance(change, Put) and change.expected is not None:
            head = change.head
            if head.status or head[7:15] != _OF_PARTS or len(commit_id) != ID_LENGTH:
                return False

            values = head.version, *head[3:7], commit_id, commit_id, as_blob(change.body)
            place = life, change.key.name, change.expected, head.created_ms
            if self._run(_MOVE, (*values, *place)).rowcount != 1:
                return False
        elif life is None:
            life = self._run(f"INSERT INTO catga_lives (id) VALUES ({BLOB})", (flow_id,)).lastrowid  # noqa: S608  ours

        self._admitted = life
        return True

    def add(self, key: Key, head: Head, body: bytes) -> bool:
        """Do what `Tables.add_part` says, in the life of the parts that were admitted."""
        if head.status or head[7:15] != _OF_PARTS:
            return False

        name = key.name
        if name[-1:].isdigit() and head.position:
            return False  # it may be an entry of a log, with a key

        values = head.version, *head[2:7], head.revision, " ".join(head.commits), as_blob(body)
        cursor = self._run(_ADD, (self._admitted, name, *values))
        return bool(cursor.rowcount)

    def _log_of(self, key: Key, entry_key: str) -> bytes | None:
        """Return the log of a new entry; `None` if one before it has the same key, which only a copy can bring.

        The first of these entries has the key, on every store, and with that entry the key goes.
        """
        logged = log_of(key)
        if logged is None:
            return None

        log, sequence = logged
        first = self.entry(key.id, log, entry_key)
        if first is not None and first < sequence:
            return None

        if first is not None:
            name = key_of_entry(key.id, log, first).name
            self._execute(f"UPDATE catga_parts SET log = NULL WHERE {_ONE}", (key.id, name))  # noqa: S608  ours

        return log.encode()

    def remove(self, key: Key) -> None:
        """Remove a part."""
        self._execute(f"DELETE FROM catga_parts WHERE {_ONE}", (key.id, key.name))  # noqa: S608  ours

    def listed(self, wanted: Parts) -> list[ListedPart]:
        """Return a page of parts."""
        prefix = wanted.prefix
        values: list[str | bytes | int] = [wanted.flow_id, wanted.now_ms]
        if prefix:
            values += [prefix, _end_of(prefix)]

        if wanted.after is not None:
            values.append(wanted.after)

        if wanted.before is not None:
            values.append(wanted.before)

        if wanted.entries:
            values += [len(prefix.encode()) + SEQUENCE_DIGITS, len(prefix) + 1]

        values.append(wanted.limit)
        shape = (
            bool(prefix),
            wanted.after is not None,
            wanted.before is not None,
            wanted.entries,
            wanted.versions,
            wanted.reverse,
            wanted.bodies,
            wanted.brief,
        )
        rows = self._execute(_list_text(shape), values)
        listed, until = _listed_in_brief if wanted.brief else _listed, wanted.until
        if not until:
            return [listed(wanted, row) for row in rows]

        found: list[ListedPart] = []
        for row in rows:
            part = listed(wanted, row)
            found.append(part)
            if part[0].endswith(until):
                break

        rows.close()  # what was not fetched would hold a snapshot
        return found

    def entry(self, flow_id: str, log: str, key: str) -> int | None:
        """Return the sequence of the entry of a log that has this key."""
        row = self._execute(
            f"SELECT name FROM catga_parts WHERE life = {_LIFE} AND log = ? AND position = ?"  # noqa: S608  ours
            " ORDER BY name LIMIT 1",
            (flow_id, log.encode(), key),
        ).fetchone()
        if row is None:
            return None

        logged = log_of(_key(flow_id, row[0]))
        if logged is None:
            raise corrupt(part_key(flow_id, repr(row[0])[:100]), "an entry of a log")

        return logged[1]

    def drop(self, flow_id: str) -> None:
        """Make all parts of a flow absent."""
        self._execute(
            "UPDATE catga_lives SET id = NULL, expires_ms = NULL WHERE id = ?", (flow_id.encode(),)
        )

    def reclaim(self, limit: int) -> None:
        """Remove some rows of parts that were dropped."""
        left = limit
        lives = self._execute("SELECT life FROM catga_lives WHERE id IS NULL LIMIT ?", (limit,))
        for (life,) in lives.fetchall():
            removed = self._execute(
                "DELETE FROM catga_parts WHERE rowid IN"
                " (SELECT rowid FROM catga_parts WHERE life = ? LIMIT ?)",
                (life, left),
            ).rowcount
            left -= removed
            if left <= 0:
                return  # perhaps there are more of it

            self._execute("DELETE FROM catga_lives WHERE life = ?", (life,))

    def orphan(self, flow_id: str, expires_ms: int | None) -> None:
        """Set when the parts of a flow that does not exist may be removed."""
        self._execute(
            "UPDATE catga_lives SET expires_ms = ? WHERE id = ?", (expires_ms, flow_id.encode())
        )

    def orphans(self, now_ms: int, limit: int) -> list[Key]:
        """Return the flows whose orphaned parts may be removed."""
        rows = self._execute(
            "SELECT id FROM catga_lives WHERE expires_ms IS NOT NULL AND expires_ms <= ?"
            " ORDER BY expires_ms LIMIT ?",
            (now_ms, min(limit, _MOST)),
        )
        return [read_key(PART, row[0]) for row in rows]

    def scan(self, after: Key | None, limit: int) -> list[Key]:
        """Return keys of parts in order, those of counters included."""
        flow_id, name = ("", "") if after is None else (after.id, after.name)
        rows = self._execute(
            "SELECT id, name FROM catga_lives JOIN catga_parts USING (life)"
            " WHERE id IS NOT NULL AND (id, name) > (?, ?) ORDER BY id, name LIMIT ?",
            (flow_id.encode(), name.encode(), limit),
        )
        return [_key(read_key(PART, row[0]).id, row[1]) for row in rows]

    def clear(self) -> None:
        """Remove everything."""
        self._execute("DELETE FROM catga_parts")
        self._execute("DELETE FROM catga_lives")


def _key(flow_id: str, name: object) -> Key:
    return part_key(flow_id, read_key(PART, name).id)


def _listed(wanted: Parts, row: Sequence[Any]) -> ListedPart:
    if wanted.versions:
        size = AFTER_HEAD
        head = head_of_row(row[:size])
    else:
        size = AFTER_PART_HEAD
        head = head_of_part(row)

    text = _name_in(wanted, row[size])
    if head is None:
        raise corrupt(part_key(wanted.flow_id, text), f"the row {shown_row(row[:size])}")

    body = row[-1] if wanted.bodies else None
    if type(body) is not bytes and wanted.bodies:
        raise corrupt(part_key(wanted.flow_id, text), f"a body of type {type(body).__name__}")

    return _listed_part((text, head, body))


def _name_in(wanted: Parts, name: Any) -> str:
    try:
        text: str = name.decode()
    except (AttributeError, UnicodeDecodeError):
        raise corrupt(part_key(wanted.flow_id, repr(name)[:100]), "an invalid id") from None

    return text


def _listed_in_brief(wanted: Parts, row: Sequence[Any]) -> ListedPart:
    version, created_ms, tag, revision, name, body = row
    text = _name_in(wanted, name)
    if not (
        type(version) is type(created_ms) is int
        and type(tag) is type(revision) is str
        and FIRST_MS <= created_ms <= LAST_MS
        and (type(body) is bytes or not wanted.bodies)
    ):
        raise corrupt(part_key(wanted.flow_id, text), f"the row {shown_row(row[:-1])}")

    head = head_from((version, 0, created_ms, created_ms, "", 1, tag, *_OF_PARTS, revision, ()))
    return _listed_part((text, head, body))


_listed_part = from_fields(ListedPart)
