"""What each request that reads returns."""

from __future__ import annotations

from contextlib import suppress

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Identify
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.requests import Stats
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Totals
from catga_store.protocol.rules.expiry import has_expired
from catga_store.protocol.rules.tables import TOMBSTONE
from catga_store.protocol.rules.tables import Tables

__all__ = [
    "count",
    "count_due",
    "due",
    "due_waits",
    "find",
    "list_due",
    "overdue",
    "ping",
    "read",
    "scan",
    "stats",
    "steps",
]


def read(tables: Tables, request: Read) -> tuple[Record | None, ...]:
    """Return what `Read` asks for."""
    now_ms = request.now_ms
    found: list[Record | None] = []

    for key in request.keys:
        kind = key.kind
        if kind == PART:
            found.append(tables.part(key, now_ms))
            continue

        record = tables.record(key)
        if record is None:
            pass
        elif kind == PROGRESS:
            flow = tables.head(flow_key(key.id))
            if flow is not None and has_expired(flow, now_ms):
                record = None
        else:
            head = record.head
            if head.status < 0 or (head.expires_ms is not None and head.expires_ms <= now_ms):
                record = None

        found.append(record)

    return tuple(found)


def steps(tables: Tables, request: Steps) -> tuple[Found, ...]:
    """Return what `Steps` asks for."""
    flow = tables.head(flow_key(request.flow_id))
    if flow is not None and has_expired(flow, request.now_ms):
        return ()

    return tuple(tables.steps(request.flow_id))


def due(tables: Tables, request: Due) -> tuple[Found, ...]:
    """Return what `Due` asks for."""
    found = tables.due_flows(request)
    for place in request.picks(len(found)):
        found[place] = _picked(tables, found[place])

    waits = tables.due_waits(request)
    if waits:
        found += waits
        found.sort(key=lambda entry: entry.head.due_ms or 0)

    return tuple(found)


def _picked(tables: Tables, found: Found) -> Found:
    """The entry of a flow that was picked, with its body if that can be read."""
    with suppress(CorruptRecordError):
        record = tables.record(found.key)
        if record is not None:
            return Found(found.key, record.head, picked=True, body=record.body)

    return found._replace(picked=True)


_PAGE = 1000


def due_waits(tables: Tables, request: DueWaits) -> tuple[tuple[Found, ...], ...]:
    """Return what `DueWaits` asks for."""
    return tuple(tuple(_due_waits_of(tables, parent, request)) for parent in request.parents)


def _due_waits_of(tables: Tables, parent: str, request: DueWaits) -> list[Found]:
    found: list[Found] = []
    after: tuple[int, str] | None = None

    while len(found) < request.limit:
        page = tables.find(Filter(WAIT, parent=parent), after, _PAGE, request.now_ms)
        for entry in page:
            if entry.error is not None:
                raise entry.error

        found += [
            entry
            for entry in page
            if entry.head.due_ms is not None and entry.head.due_ms <= request.now_ms
        ]
        if len(page) < _PAGE:
            break

        after = page[-1].head.created_ms, page[-1].key.id

    return found[: request.limit]


def overdue(tables: Tables, request: Overdue) -> tuple[Found, ...]:
    """Return what `Overdue` asks for."""
    return tuple(tables.overdue(request.now_ms, request.limit))


def find(tables: Tables, request: Find) -> tuple[Found, ...]:
    """Return what `Find` asks for."""
    return tuple(tables.find(request.filter, request.after, request.limit, request.now_ms))


def count(tables: Tables, request: Count) -> int:
    """Return what `Count` asks for."""
    return tables.count(request.filter, request.now_ms)


def list_due(tables: Tables, request: ListDue) -> tuple[Found, ...]:
    """Return what `ListDue` asks for."""
    return tuple(tables.list_due(request.filter, request.after, request.limit, request.now_ms))


def count_due(tables: Tables, request: CountDue) -> int:
    """Return what `CountDue` asks for."""
    return tables.count_due(request.filter, request.now_ms)


def stats(tables: Tables, request: Stats) -> Totals:
    """Return what `Stats` asks for."""
    return tables.totals(request.now_ms)


def scan(tables: Tables, request: Scan) -> tuple[Scanned, ...]:
    """Return what `Scan` asks for: a page of records, in the order of their keys.

    Pending completions come as a record whose status is negative and whose terms are empty. An
    expired record is left out, so a page may be shorter than asked for; an empty page is the end. A record
    that cannot be read is an entry that says so; what belongs to such a flow is listed as ever.
    """
    after = request.after

    while True:
        keys = tables.scan(request.kind, after, request.limit)
        found: list[Scanned] = []

        for key in keys:
            try:
                record = tables.record(key)
                if (
                    record is None
                    or record.head.status <= TOMBSTONE
                    or _is_gone(tables, key, record, request.now_ms)
                ):
                    continue
            except CorruptRecordError as error:
                found.append(Scanned.unreadable(key, error))
            else:
                found.append(Scanned(key, record))

        if found or not keys:
            return tuple(found)

        after = keys[-1]


def _is_gone(tables: Tables, key: Key, record: Record, now_ms: int) -> bool:
    if key.kind not in (PROGRESS, PART):
        return has_expired(record.head, now_ms)

    try:
        flow = tables.head(flow_key(key.id))
    except CorruptRecordError:
        return False  # a flow that cannot be read has not expired: nothing removes it

    return flow is not None and has_expired(flow, now_ms)


def identify(tables: Tables, _request: Identify) -> str:
    """Return what `Identify` asks for."""
    return tables.identity()


def ping(tables: Tables, _request: Ping) -> None:
    """Do what `Ping` asks: read the layout."""
    tables.layout()
