"""When records expire, and how they are removed with everything that belongs to them."""

from __future__ import annotations

from catga_store.protocol.keys import FLOW
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
    if key.kind == PROGRESS:
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

    head = tables.head(key)
    if head is None:
        return False

    if key.kind == FLOW:
        for step in tables.steps(key.id):
            tables.remove(step.key, step.head)

    tables.remove(key, head)
    return True


def sweep(tables: Tables, request: Sweep) -> int:
    """Do what `Sweep` asks."""
    keys = tables.expired(request.now_ms, request.limit)

    for key in keys:
        remove(tables, key)

    return len(keys)


def clear(tables: Tables, _request: Clear) -> None:
    """Do what `Clear` asks."""
    tables.clear()
