"""What happens to parts of flows and to logs, which are parts with a counter.

A part is visible as long as its flow has not expired. A part may come before its flow: then the flow's
parts are orphaned. A sweep removes them if there is still no flow when the retention of waits has passed
since the last of them was written.
"""

from __future__ import annotations

from catga_store.protocol.keys import counter_key
from catga_store.protocol.keys import entry_key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import RemoveParts
from catga_store.protocol.rules.expiry import after
from catga_store.protocol.rules.tables import Tables
from catga_store.protocol.rules.version_checks import written

__all__ = ["append", "note_orphan", "parts", "remove_parts"]


def parts(tables: Tables, request: Parts) -> tuple[ListedPart, ...]:
    """Return what `Parts` asks for."""
    return tuple(tables.parts(request))


def remove_parts(tables: Tables, request: RemoveParts) -> int:
    """Do what `RemoveParts` asks."""
    flow_id = request.flow_id
    wanted = Parts(
        flow_id,
        request.prefix,
        after=None,
        before=request.before,
        reverse=False,
        limit=request.limit,
        bodies=False,
        now_ms=request.now_ms,
        entries=request.entries,
    )
    found = parts(tables, wanted)
    for part in found:
        tables.remove(part_key(flow_id, part.name), part.head)

    return len(found)


def append(tables: Tables, commit: Commit, change: Append) -> Outcome:
    """Add the next entry to a log, unless it has one of the same key."""
    flow_id, log = change.key.id, change.key.name
    if change.head.position:
        first = tables.entry(flow_id, log, change.head.position)
        if first is not None:
            return Outcome(first, duplicate=True)

    at = counter_key(flow_id, log)
    counter = tables.head(at)
    sequence = 1 if counter is None else counter.version + 1
    created_ms = commit.now_ms if counter is None else counter.created_ms
    head = Head(sequence, 0, created_ms, commit.now_ms)
    tables.write(at, written(head, commit.id, counter), b"", counter)
    entry = change.head._replace(version=1)
    tables.write(
        entry_key(flow_id, log, sequence), written(entry, commit.id, None), change.body, None
    )
    note_orphan(tables, commit, flow_id)
    return Outcome(sequence, commit.id, 0, commit.now_ms, accepted=True)


def note_orphan(tables: Tables, commit: Commit, flow_id: str) -> None:
    """Set when a part that was written now may be removed, if its flow does not exist."""
    if tables.head(flow_key(flow_id)) is None:
        tables.orphan(flow_id, after(commit.now_ms, commit.retain_ms))
