"""When records expire, and how they are removed with everything that belongs to them."""

from __future__ import annotations

from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Sweep
from catga_store.protocol.rules.tables import Tables

__all__ = ["after", "clear", "has_expired", "live", "remove", "sweep"]


def has_expired(head: Head, now_ms: int) -> bool:
    """Return whether a record is absent because its time is up."""
    return head.expires_ms is not None and head.expires_ms <= now_ms


def after(now_ms: int, retain_ms: int | None) -> int | None:
    """Return when a record expires that is kept for `retain_ms`; None keeps it forever."""
    return None if retain_ms is None else now_ms + retain_ms


def live(tables: Tables, key: Key, now_ms: int) -> Head | None:
    """Return the head under a key; if it has expired, remove it and return None."""
    if key.kind in (PROGRESS, PART):
        flow = tables.head(flow_key(key.id))
        if flow is not None and has_expired(flow, now_ms):
            remove(tables, flow_key(key.id))
            return None

        return tables.head(key)

    if key.kind == WAIT:
        row = tables.wait(key)
        head = row.head if row is not None else None
    else:
        head = tables.head(key)

    if head is not None and has_expired(head, now_ms):
        remove(tables, key)
        return None

    return head


def remove(tables: Tables, key: Key) -> bool:
    """Remove a record and everything that belongs to it; return whether there was one."""
    if key.kind == WAIT:
        row = tables.wait(key)
        if row is not None:
            tables.remove_wait(key, row)

        return row is not None

    if key.kind == PART and not key.name:
        return _remove_orphans(tables, key)

    head = tables.head(key)
    if head is None:
        return False

    if key.kind == FLOW:
        for step in tables.steps(key.id):
            tables.remove(step.key, step.head)

        tables.drop_parts(key.id)

    tables.remove(key, head)
    return True


def _remove_orphans(tables: Tables, key: Key) -> bool:
    """Remove parts whose flow never came; they have expired, or belong to a flow that has come since."""
    if tables.head(flow_key(key.id)) is None:
        tables.drop_parts(key.id)
        return True

    tables.orphan(key.id, None)
    return False


_RECLAIMED, _MOST_RECLAIMED = 25, 5000
"""Rows of dropped parts that a sweep removes for each record that it may remove, and in all: 200 beside
a write. They bound how long a sweep keeps other writers of SQLite waiting."""


def sweep(tables: Tables, request: Sweep) -> int:
    """Do what `Sweep` asks."""
    keys = tables.expired(request.now_ms, request.limit)
    # Orphaned parts first: a flow that has come since, and has expired too, takes them along.
    removed = sum([remove(tables, key) for key in sorted(keys, key=_is_record)])
    tables.reclaim(min(_RECLAIMED * request.limit, _MOST_RECLAIMED))
    return removed


def _is_record(key: Key) -> bool:
    return key.kind != PART


def clear(tables: Tables, _request: Clear) -> None:
    """Do what `Clear` asks."""
    tables.clear()
