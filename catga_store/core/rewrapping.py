"""Writing what is stored again, through the codecs and the key that a store has now; one page of it."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define

from catga_store.codec.bodies.frames import is_unreadable
from catga_store.codec.bodies.frames import trail_of
from catga_store.core import commits
from catga_store.core.bodies import AsStored
from catga_store.core.bodies import Bodies
from catga_store.core.bodies import has_body
from catga_store.core.claim_plans import is_held
from catga_store.core.context import Context
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import log_of
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned

__all__ = ["RewrappedPage", "count_page", "rewrap_page"]

_PAGE = 100


@define
class RewrappedPage:
    """What became of the records of one page."""

    last: Key | None = None
    """The last of them; `None` if there were none."""
    current: int = 0
    rewritten: int = 0
    unreadable: int = 0
    claimed: int = 0
    pending: int = 0
    conflicts: int = 0


def rewrap_page(
    context: Context, bodies: Bodies, kind: str, after: Key | None
) -> Conversation[RewrappedPage]:
    """Write the records of a page that are not stored as they would be now, if nothing else has."""
    now_ms = context.settings.now_ms()
    found = yield from ask(AsStored(Scan(kind, after, _PAGE, now_ms)))
    page = RewrappedPage(found[-1].key if found else None)
    if not found:
        return page

    store = yield from bodies.identify()
    puts: list[Change] = []
    for key, stored, error in found:
        if error is not None:
            page.unreadable += 1
            continue

        if bodies.is_current(store, key, stored):
            page.current += has_body(key) or bool(stored.items)
            continue

        record = bodies.decoded(store, key, stored)
        if is_unreadable(record):
            page.unreadable += 1
        elif key.kind == FLOW and is_held(record.head, now_ms):
            page.claimed += 1
        elif key.kind == WAIT and record.head.status < PENDING:
            page.pending += 1
        else:
            puts.append(_put(key, record))

    for changes in commits.in_commits(puts, context.settings.partitions):
        written = yield from _written(context, changes, now_ms)
        page.rewritten += written
        page.conflicts += len(changes) - written

    return page


def _put(key: Key, record: Record) -> Put:
    """The same record in a further version, unless it is one that has no versions; times are kept."""
    old = record.head
    head = old._replace(version=old.version + 1)
    if key.kind == PART and (is_version(key.name) or log_of(key) is not None):
        head = old

    notified = key.kind == WAIT and old.status > PENDING and old.due_ms is None
    return Put(
        key,
        head,
        record.body,
        old.revision,
        old,
        terms=record.terms,
        notified=notified,
        items=record.items,
    )


def _written(context: Context, changes: Sequence[Change], now_ms: int) -> Conversation[int]:
    """Write all that the store does not refuse, because it was written since; return how many."""
    changes = tuple(changes)
    while changes:
        reply = yield from commits.send(
            context, new_commit_id(), now_ms, changes, keeps_history=False
        )
        if not isinstance(reply, Refused):
            break

        refused = {conflict.place for conflict in reply.conflicts}
        changes = tuple(one for place, one in enumerate(changes) if place not in refused)

    return len(changes)


def count_page(
    context: Context, kind: str, after: Key | None, *, through: bool
) -> Conversation[tuple[Key | None, dict[str | None, int], int]]:
    """Count the bodies of a page by their codecs and keys, `None` for none of them, and their bytes.

    `through`: the store has codecs.
    """
    scan = Scan(kind, after, _PAGE, context.settings.now_ms())
    found: Sequence[Scanned] = yield AsStored(scan) if through else scan
    counts: dict[str | None, int] = {}
    size = 0
    for key, record, error in found:
        if error is not None:
            continue

        stored = [record.body] if has_body(key) else [item.payload for item in record.items]
        for body in stored:
            trail = trail_of(body)
            counts[trail] = counts.get(trail, 0) + 1
            size += len(body)

    return found[-1].key if found else None, counts, size
