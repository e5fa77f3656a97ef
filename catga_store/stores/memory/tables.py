"""The rows of a memory store, and the sorted indexes made of them.

Rows hold bytes, like every other store's, so no caller ever holds the store's own object. Listings
and due times are kept sorted, so a page costs O(log n + page).

A transaction that is cut short, by Ctrl-C or a lack of memory, is undone: each write notes what it
replaces, and the indexes, which may be half changed, are built again from the rows. If that is
interrupted too, the next call continues it.

The file is over 400 lines because the rows and the indexes made of them are read together.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

from sortedcontainers import SortedDict
from sortedcontainers import SortedList

from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Item
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
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.memory.parts import FlowParts

__all__ = ["MemoryTables"]

R = TypeVar("R")


class _Listing:
    """Keys sorted newest first, then by id, under each combination of fields that is asked for."""

    def __init__(self) -> None:
        self._by: dict[tuple[Any, ...], SortedList[tuple[int, str]]] = {}

    def add(self, fields: tuple[Any, ...], head: Head, record_id: str) -> None:
        entries = self._by.get(fields)
        if entries is None:
            entries = self._by[fields] = SortedList()

        entries.add((-head.created_ms, record_id))

    def remove(self, fields: tuple[Any, ...], head: Head, record_id: str) -> None:
        entries = self._by[fields]
        entries.remove((-head.created_ms, record_id))
        if not entries:
            del self._by[fields]

    def lengths(self) -> dict[tuple[Any, ...], int]:
        return {fields: len(entries) for fields, entries in self._by.items()}

    def under(self, fields: tuple[Any, ...]) -> SortedList[tuple[int, str]]:
        return self._by.get(fields, _EMPTY)


_EMPTY: SortedList[tuple[int, str]] = SortedList()
_NONE_DUE: SortedList[tuple[int, Key]] = SortedList()


def _flow_fields(head: Head) -> tuple[tuple[Any, ...], ...]:
    return (
        (None, None),
        (head.status, None),
        (None, head.type),
        (head.status, head.type),
    )


def _fields_of_tags(head: Head) -> Iterator[tuple[Any, ...]]:
    for pair in head.tags:
        yield None, pair
        yield head.status, pair


def _wait_fields(row: WaitRow) -> tuple[tuple[Any, ...], ...]:
    status = row.head.status
    if status < 0:
        return ()

    alone = ((None, None), (status, None))
    return alone if row.parent is None else (*alone, (None, row.parent), (status, row.parent))


_ABSENT: Any = object()


_CLAIM, _AFTER_TIMES = Head._fields.index("claim"), Head._fields.index("expires_ms") + 1
"""Where a head has the claim, the due time and the expiry."""


class MemoryTables:
    """Rows and their indexes; implements `Tables`. Call it under its lock only."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.undo: list[tuple[Any, Any, Any]] = []
        self._layout: tuple[int, int] | None = None
        self._identity = secrets.token_hex(16)
        self._make_rows()
        self._make_indexes()

    def _make_rows(self) -> None:
        self._heads: dict[Key, Head] = {}
        self._bodies: dict[Key, bytes] = {}
        self._waits: dict[Key, WaitRow] = {}
        self._terms: dict[Key, Terms] = {}
        self._items: dict[Key, dict[str, tuple[ItemRow, bytes]]] = {}
        self._parts: dict[str, FlowParts] = {}
        self._orphans: dict[str, int] = {}
        self._log: dict[str, tuple[int, tuple[Outcome, ...]]] = {}

    def _make_indexes(self) -> None:
        self._keys: SortedList[Key] = SortedList()
        self._have_parts: SortedList[str] = SortedList()
        self._steps: dict[str, SortedDict[int, Head]] = {}
        self._flow_listing = _Listing()
        self._tagged = _Listing()
        self._wait_listing = _Listing()
        self._due_flows: SortedList[tuple[int, Key]] = SortedList()
        self._due_tagged: dict[tuple[str, str], SortedList[tuple[int, Key]]] = {}
        self._claimed: SortedList[tuple[int, Key]] = SortedList()
        self._due_waits: SortedList[tuple[int, Key]] = SortedList()
        self._deadlines: SortedList[tuple[int, Key]] = SortedList()
        self._expiries: SortedList[tuple[int, Key]] = SortedList()

    def __len__(self) -> int:
        return len(self._keys) + sum(len(parts.rows) for parts in self._parts.values())

    def layout(self) -> tuple[int, int] | None:
        return self._layout

    def lay_out(self, version: int, partitions: int) -> None:
        self._note(vars(self), "_layout")
        self._layout = version, partitions

    def identity(self) -> str:
        return f"memory:{self._identity}"

    def clear(self) -> None:
        for name in _ROWS:
            self._note(vars(self), name)

        self._make_rows()
        self._make_indexes()

    # transactions ---------------------------------------------------------------------------------

    def transact(self, function: Callable[[MemoryTables], R]) -> R:
        """Apply a function that writes: completely or not at all."""
        if self.undo:
            self.mend()

        try:
            result = function(self)
        except BaseException:
            self.mend()
            raise

        self.undo.clear()
        return result

    def mend(self) -> None:
        """Undo what an interrupted transaction has written."""
        for rows, key, before in reversed(self.undo):
            if before is _ABSENT:
                rows.pop(key, None)
            else:
                rows[key] = before

        self._make_indexes()
        for key, head in self._heads.items():
            self._index(key, head, None)

        for key, row in self._waits.items():
            self._keys.add(key)
            self._index_wait(key, None, row)

        for flow_id, expires_ms in self._orphans.items():
            self._expiries.add((expires_ms, part_key(flow_id, "")))

        self._have_parts.update(self._parts)
        for parts in self._parts.values():
            parts.make_index()

        self.undo.clear()

    def _note(self, rows: Any, key: object) -> None:
        """Note what a row is before it is written or removed."""
        self.undo.append((rows, key, rows.get(key, _ABSENT)))

    # flows and progress ---------------------------------------------------------------------------

    def head(self, key: Key) -> Head | None:
        if key.kind == PART:
            part = self._part(key)
            return None if part is None else part.head

        return self._heads.get(key)

    def record(self, key: Key) -> Record | None:
        kind = key.kind
        if kind == PART:
            return self._part(key)

        if kind == WAIT:
            row = self._waits.get(key)
            if row is None:
                return None

            items = (
                Item(child, item.success, payload)
                for child, (item, payload) in self._items.get(key, {}).items()
                if item.done and (item.member or row.head.status < 0)
            )
            return Record(row.head, b"", self._terms[key], tuple(items))

        head = self._heads.get(key)
        return None if head is None else record_with_body(head, self._bodies[key])

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        if key.kind == PART:
            self._write_part(key, head, body)
            return

        # `_note`, written out: most commits do this.
        note, heads, bodies = self.undo.append, self._heads, self._bodies
        note((heads, key, _ABSENT if old is None else old))
        heads[key] = head
        if body is not None:
            note((bodies, key, bodies.get(key, _ABSENT)))
            bodies[key] = body

        self._index(key, head, old)

    def replace(self, key: Key, head: Head, body: bytes | None, old: Head, commit_id: str) -> bool:
        there = self._heads.get(key)
        # A revision belongs to one head forever, except for its due time.
        if (
            there is None
            or there.revision != old.revision
            or there.due_ms != old.due_ms
            or commit_id in self._log
        ):
            return False

        commits = commit_id, *there.commits[: REMEMBERED_COMMITS - 1]
        self.write(key, head.stamped(commit_id, commits), body, there)
        return True

    def admit(self, commit: Commit, change: Put | Check | None) -> bool:  # noqa: ARG002  SQLite's
        return False  # looking a record up costs nothing here

    def add_part(self, key: Key, head: Head, body: bytes) -> bool:  # noqa: ARG002  likewise
        return False

    def _index(self, key: Key, head: Head, old: Head | None) -> None:
        if old is None:
            self._keys.add(key)

        if key.kind == PROGRESS:
            self._steps.setdefault(key.id, SortedDict())[key.step] = head
            return

        if old is None or old.status != head.status or old.type != head.type:
            self._list_flow(key, head, old)

        if head.tags or (old is not None and old.tags):
            self._list_tags(key, head, old)

        due_ms = expires_ms = claimed_ms = None
        if old is not None:
            if head[_CLAIM:_AFTER_TIMES] == old[_CLAIM:_AFTER_TIMES]:
                return  # most writes move nothing

            due_ms, expires_ms = old.due_ms, old.expires_ms
            claimed_ms = None if old.claim is None else due_ms

        if due_ms != head.due_ms:
            _move(self._due_flows, key, due_ms, head.due_ms)

        until_ms = None if head.claim is None else head.due_ms
        if claimed_ms != until_ms:
            _move(self._claimed, key, claimed_ms, until_ms)

        if expires_ms != head.expires_ms:
            _move(self._expiries, key, expires_ms, head.expires_ms)

    def _list_tags(self, key: Key, head: Head | None, old: Head | None) -> None:
        for fields in () if old is None else _fields_of_tags(old):
            assert old is not None  # noqa: S101  for the type checker
            self._tagged.remove(fields, old, key.id)

        for fields in () if head is None else _fields_of_tags(head):
            assert head is not None  # noqa: S101  for the type checker
            self._tagged.add(fields, head, key.id)

        for pair in () if old is None or old.due_ms is None else old.tags:
            assert old is not None  # noqa: S101  for the type checker
            index = self._due_tagged[pair]
            _move(index, key, old.due_ms, None)
            if not index:
                del self._due_tagged[pair]

        for pair in () if head is None or head.due_ms is None else head.tags:
            assert head is not None  # noqa: S101  for the type checker
            _move(self._due_tagged.setdefault(pair, SortedList()), key, None, head.due_ms)

    def _list_flow(self, key: Key, head: Head | None, old: Head | None) -> None:
        before = _flow_fields(old) if old is not None else ()
        after = _flow_fields(head) if head is not None else ()

        for fields in before:
            if old is not None and fields not in after:
                self._flow_listing.remove(fields, old, key.id)

        for fields in after:
            if head is not None and fields not in before:
                self._flow_listing.add(fields, head, key.id)

    def remove(self, key: Key, old: Head) -> None:
        if key.kind == PART:
            self._parts[key.id].remove(key.name)
            return

        self._note(self._heads, key)
        del self._heads[key]
        self._note(self._bodies, key)
        del self._bodies[key]
        self._keys.remove(key)

        if key.kind == PROGRESS:
            steps = self._steps[key.id]
            del steps[key.step]
            if not steps:
                del self._steps[key.id]

            return

        self._list_flow(key, None, old)
        self._list_tags(key, None, old)
        _move(self._due_flows, key, old.due_ms, None)
        _move(self._claimed, key, None if old.claim is None else old.due_ms, None)
        _move(self._expiries, key, old.expires_ms, None)

    def steps(self, flow_id: str) -> list[Found]:
        steps = self._steps.get(flow_id)
        if steps is None:
            return []

        return [Found(Key(PROGRESS, flow_id, step), head) for step, head in steps.items()]

    # parts ----------------------------------------------------------------------------------------

    def _part(self, key: Key) -> Record | None:
        parts = self._parts.get(key.id)
        return None if parts is None else parts.rows.get(key.name)

    def _write_part(self, key: Key, head: Head, body: bytes | None) -> None:
        parts = self._parts.get(key.id)
        if parts is None:
            self._note(self._parts, key.id)
            self._have_parts.add(key.id)
            parts = self._parts[key.id] = FlowParts(key.id, self._note)

        parts.write(key.name, head, body)

    def part(self, key: Key, now_ms: int) -> Record | None:
        return None if self._has_left(key.id, now_ms) else self._part(key)

    def parts(self, wanted: Parts) -> list[ListedPart]:
        parts = self._parts.get(wanted.flow_id)
        if parts is None or self._has_left(wanted.flow_id, wanted.now_ms):
            return []

        return parts.listed(wanted)

    def _has_left(self, flow_id: str, now_ms: int) -> bool:
        """Whether there is a flow that has expired, so that its parts are absent."""
        flow = self.head(flow_key(flow_id))
        return flow is not None and has_expired(flow, now_ms)

    def entry(self, flow_id: str, log: str, key: str) -> int | None:
        parts = self._parts.get(flow_id)
        return None if parts is None else parts.entry(log, key)

    def drop_parts(self, flow_id: str) -> None:
        if flow_id in self._parts:
            self._note(self._parts, flow_id)
            self._have_parts.remove(flow_id)
            del self._parts[flow_id]
            self.orphan(flow_id, None)

    def reclaim(self, limit: int) -> None:
        """Do nothing: the interpreter frees what was dropped."""

    def orphan(self, flow_id: str, expires_ms: int | None) -> None:
        before = self._orphans.get(flow_id)
        if before == expires_ms:
            return

        self._note(self._orphans, flow_id)
        if expires_ms is None:
            del self._orphans[flow_id]
        else:
            self._orphans[flow_id] = expires_ms

        _move(self._expiries, part_key(flow_id, ""), before, expires_ms)

    # conditions -----------------------------------------------------------------------------------

    def wait(self, key: Key) -> WaitRow | None:
        return self._waits.get(key)

    def write_wait(
        self, key: Key, row: WaitRow, old: WaitRow | None, terms: Terms | None = None
    ) -> None:
        self._note(self._waits, key)
        self._waits[key] = row
        if terms is not None:
            self._note(self._terms, key)
            self._terms[key] = terms

        if old is None:
            self._keys.add(key)

        if old is None or old.head is not row.head or old.parent != row.parent:
            self._index_wait(key, old, row)

    def remove_wait(self, key: Key, old: WaitRow) -> None:
        self.remove_items(key)
        self._note(self._waits, key)
        del self._waits[key]
        self._note(self._terms, key)
        del self._terms[key]
        self._keys.remove(key)
        self._index_wait(key, old, None)

    def _index_wait(self, key: Key, old: WaitRow | None, new: WaitRow | None) -> None:
        for fields in _wait_fields(old) if old is not None else ():
            assert old is not None  # noqa: S101  for the type checker
            self._wait_listing.remove(fields, old.head, key.id)

        for fields in _wait_fields(new) if new is not None else ():
            assert new is not None  # noqa: S101  for the type checker
            self._wait_listing.add(fields, new.head, key.id)

        _move(self._due_waits, key, _notified_at(old), _notified_at(new))
        _move(self._deadlines, key, _deadline(old), _deadline(new))
        _move(
            self._expiries,
            key,
            old.head.expires_ms if old else None,
            new.head.expires_ms if new else None,
        )

    def item(self, key: Key, child: str) -> ItemRow | None:
        entry = self._items.get(key, {}).get(child)
        return None if entry is None else entry[0]

    def write_item(self, key: Key, child: str, row: ItemRow, payload: bytes) -> None:
        items = self._items.get(key)
        if items is None:
            self._note(self._items, key)
            items = self._items[key] = {}

        self._note(items, child)
        items[child] = row, payload

    def set_members(self, key: Key, children: Iterable[str]) -> tuple[int, int]:
        there = self._items.get(key, {})
        kept = {child: entry for child, entry in there.items() if entry[0].done}
        items: dict[str, tuple[ItemRow, bytes]] = {}
        done = well = 0

        for child in children:
            row, payload = kept.pop(child, (ItemRow(member=True, done=False), b""))
            items[child] = row._replace(member=True), payload
            done += row.done
            well += row.done and row.success

        for child, (row, payload) in kept.items():
            items[child] = row._replace(member=False), payload

        self._note(self._items, key)
        self._items[key] = items
        return done, well

    def remove_items(self, key: Key) -> None:
        self._note(self._items, key)
        self._items.pop(key, None)

    # listings -------------------------------------------------------------------------------------

    def due_flows(self, request: Due) -> list[Found]:
        found: list[Found] = []
        until_ms = request.until_ms

        for due_ms, key in self._due_index(request.tags):
            if due_ms > until_ms or len(found) == request.limit:
                break

            head = self._heads[key]
            live = head.expires_ms is None or head.expires_ms > request.now_ms
            if live and request.wants(head):
                found.append(Found(key, head))

        return found

    def _due_index(self, tags: tuple[tuple[str, str], ...]) -> SortedList[tuple[int, Key]]:
        return self._due_tagged.get(tags[0], _NONE_DUE) if tags else self._due_flows

    def due_waits(self, request: Due) -> list[Found]:
        found: list[Found] = []
        now_ms, until_ms = request.now_ms, request.until_ms

        for due_ms, key in self._due_waits:
            if due_ms > until_ms or len(found) == request.limit:
                break

            row = self._waits[key]
            parent = self._heads.get(flow_key(row.parent or ""))
            gone = parent is None or (parent.expires_ms is not None and parent.expires_ms <= now_ms)
            if gone or (parent is not None and request.wants(parent)):
                found.append(Found(key, row.head))

        return found

    def overdue(self, now_ms: int, limit: int | None) -> list[Found]:
        found: list[Found] = []

        for due_ms, key in self._deadlines:
            if due_ms > now_ms or len(found) == limit:
                break

            found.append(Found(key, self._waits[key].head))

        return found

    def find(
        self, wanted: Filter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        found: list[Found] = []

        for entry in self._matching(wanted, after, now_ms):
            if len(found) == limit:
                break

            found.append(entry)

        return found

    def count(self, wanted: Filter, now_ms: int) -> int:
        if wanted._replace(status=None, type=None, parent=None) == Filter(wanted.kind):
            listing, fields = self._listing(wanted)
            expired = sum(
                1
                for key in self.expired(now_ms, len(self._expiries))
                if key.kind == wanted.kind and fields in self._fields(key)
            )
            return len(listing.under(fields)) - expired

        return sum(1 for _ in self._matching(wanted, None, now_ms))

    def _fields(self, key: Key) -> tuple[tuple[Any, ...], ...]:
        return (
            _flow_fields(self._heads[key]) if key.kind == FLOW else _wait_fields(self._waits[key])
        )

    def _listing(self, wanted: Filter) -> tuple[_Listing, tuple[Any, ...]]:
        if wanted.tags:
            return self._tagged, (wanted.status, wanted.tags[0])

        if wanted.kind == FLOW:
            return self._flow_listing, (wanted.status, wanted.type)

        return self._wait_listing, (wanted.status, wanted.parent)

    def _matching(
        self, wanted: Filter, after: tuple[int, str] | None, now_ms: int
    ) -> Iterator[Found]:
        if wanted.id_prefix is not None:
            yield from self._matching_by_id(wanted, wanted.id_prefix, after, now_ms)
            return

        listing, fields = self._listing(wanted)
        first: tuple[int, str] | None = None
        if wanted.created_before_ms is not None:
            first = 1 - wanted.created_before_ms, ""

        if after is not None:
            seen = -after[0], after[1]
            first = seen if first is None else max(first, seen)

        last = None
        if wanted.created_after_ms is not None:
            last = 1 - wanted.created_after_ms, ""

        for entry in listing.under(fields).irange(first, last, inclusive=(True, False)):
            if after is not None and entry == (-after[0], after[1]):
                continue

            key = Key(wanted.kind, entry[1])
            head = self._heads[key] if wanted.kind == FLOW else self._waits[key].head
            is_there = head.expires_ms is None or head.expires_ms > now_ms
            if is_there and wanted.includes(head):
                yield Found(key, head)

    def _matching_by_id(
        self, wanted: Filter, prefix: str, after: tuple[int, str] | None, now_ms: int
    ) -> Iterator[Found]:
        # Text is ordered as its UTF-8 bytes are.
        first = flow_key(prefix if after is None else after[1])
        for key in self._keys.irange(first, inclusive=(after is None, True)):
            if key.kind != FLOW or not key.id.startswith(prefix):
                return

            head = self._heads[key]
            is_there = head.expires_ms is None or head.expires_ms > now_ms
            if is_there and wanted.includes(head):
                yield Found(key, head)

    def list_due(
        self, wanted: DueFilter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        return list(itertools.islice(self._matching_due(wanted, after, now_ms), limit))

    def count_due(self, wanted: DueFilter, now_ms: int) -> int:
        if wanted.types is not None or wanted.tags:
            return sum(1 for _ in self._matching_due(wanted, None, now_ms))

        index = self._claimed if wanted.claimed else self._due_flows
        return _between(index, wanted) - sum(
            1 for key in self._expired_flows(now_ms) if wanted.includes(self._heads[key])
        )

    def _matching_due(
        self, wanted: DueFilter, after: tuple[int, str] | None, now_ms: int
    ) -> Iterator[Found]:
        index = self._claimed if wanted.claimed else self._due_index(wanted.tags)
        first = None if wanted.after_ms is None else (wanted.after_ms + 1, _FIRST_KEY)
        last = None if wanted.until_ms is None else (wanted.until_ms + 1, _FIRST_KEY)
        if after is not None:
            seen = after[0], flow_key(after[1])
            first = seen if first is None else max(first, seen)

        for due_ms, key in index.irange(first, last, inclusive=(True, False)):
            if after is not None and (due_ms, key.id) == after:
                continue

            head = self._heads[key]
            is_there = head.expires_ms is None or head.expires_ms > now_ms
            if is_there and wanted.includes(head):
                yield Found(key, head)

    def _expired_flows(self, now_ms: int) -> list[Key]:
        return [key for key in self.expired(now_ms, len(self._expiries)) if key.kind == FLOW]

    def totals(self, now_ms: int) -> Totals:
        flows = self._flow_listing.lengths()
        for key in self._expired_flows(now_ms):
            flows[self._heads[key].status, self._heads[key].type] -= 1

        past = DueFilter(claimed=False, until_ms=now_ms)
        later = DueFilter(claimed=True, after_ms=now_ms)
        oldest = next(self._matching_due(past, None, now_ms), None)
        return Totals(
            tuple(
                (kind, status, number)
                for (status, kind), number in flows.items()
                if number and status is not None and kind is not None
            ),
            self.count_due(past, now_ms),
            None if oldest is None else oldest.head.due_ms,
            self.count_due(later, now_ms),
            self.count_due(past._replace(claimed=True), now_ms),
            len(self._wait_listing.under((PENDING, None))),
            _between(self._deadlines, past),
            _between(self._due_waits, past),
        )

    def scan(self, kind: str, after: Key | None, limit: int) -> list[Key]:
        if kind == PART:
            return self._scan_parts(after, limit)

        found: list[Key] = []
        first = Key(kind, "") if after is None else after

        for key in self._keys.irange(first, inclusive=(False, True)):
            if key.kind != kind or len(found) == limit:
                break

            found.append(key)

        return found

    def _scan_parts(self, after: Key | None, limit: int) -> list[Key]:
        flow_id, last = ("", "") if after is None else (after.id, after.name)
        found: list[Key] = []

        for each in self._have_parts.irange(flow_id):
            names = self._parts[each].names.irange(last if each == flow_id else "")
            found += (part_key(each, name) for name in names if each != flow_id or name > last)
            if len(found) >= limit:
                break

        return found[:limit]

    def expired(self, now_ms: int, limit: int) -> list[Key]:
        found: list[Key] = []

        for expires_ms, key in self._expiries:
            if expires_ms > now_ms or len(found) == limit:
                break

            found.append(key)

        return found

    # the log of commits ---------------------------------------------------------------------------

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:
        entry = self._log.get(commit_id)
        return None if entry is None else entry[1]

    def log(self, commit_id: str, at_ms: int, outcomes: tuple[Outcome, ...]) -> None:
        self._note(self._log, commit_id)
        self._log[commit_id] = at_ms, outcomes

    def forget_log(self, before_ms: int, limit: int) -> None:
        for commit_id, (at_ms, _outcomes) in list(itertools.islice(self._log.items(), limit)):
            if at_ms < before_ms:
                self._note(self._log, commit_id)
                del self._log[commit_id]


_ROWS = ("_heads", "_bodies", "_waits", "_terms", "_items", "_parts", "_orphans", "_log")


def _notified_at(row: WaitRow | None) -> int | None:
    return row.head.due_ms if row is not None and row.parent is not None else None


def _between(index: SortedList[tuple[int, Key]], wanted: DueFilter) -> int:
    """How many entries of an index by time are in the range of a filter."""
    first, last = wanted.after_ms, wanted.until_ms
    before = 0 if first is None else index.bisect_left((first + 1, _FIRST_KEY))
    upto = len(index) if last is None else index.bisect_left((last + 1, _FIRST_KEY))
    return max(upto - before, 0)


_FIRST_KEY = Key("", "")


def _deadline(row: WaitRow | None) -> int | None:
    return row.head.due_ms if row is not None and row.head.status == PENDING else None


def _move(
    index: SortedList[tuple[int, Key]], key: Key, before: int | None, after: int | None
) -> None:
    if before == after:
        return

    if before is not None:
        index.remove((before, key))

    if after is not None:
        index.add((after, key))
