"""Whole threads: deleted, copied, and made shorter."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from functools import partial

from langgraph.checkpoint.serde.base import SerializerProtocol

import catga_store as cs
from catga_store.core import raw_parts
from catga_store.core import records
from catga_store.core import writes as plans
from catga_store.core.envelope import stored_bytes
from catga_store.langgraph.access import PAGE
from catga_store.langgraph.access import Access
from catga_store.langgraph.access import Mixed
from catga_store.langgraph.access import in_batches
from catga_store.langgraph.access import metadata_in
from catga_store.langgraph.access import next_of
from catga_store.langgraph.access import page_of
from catga_store.langgraph.access import read_group
from catga_store.langgraph.access import read_head
from catga_store.langgraph.layout import GraphThread
from catga_store.langgraph.layout import Group
from catga_store.langgraph.layout import Place
from catga_store.langgraph.layout import newest_of
from catga_store.langgraph.layout import place_of
from catga_store.langgraph.layout import tag_of_head
from catga_store.langgraph.layout import thread_flow
from catga_store.langgraph.reading import ancestors
from catga_store.langgraph.reading import groups
from catga_store.langgraph.reading import new_run
from catga_store.langgraph.reading import threads
from catga_store.langgraph.reading import values_of
from catga_store.langgraph.writing import ATTEMPTS
from catga_store.langgraph.writing import is_of
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Read

__all__ = ["copy_thread", "delete_for_runs", "delete_thread", "prune"]

_AT_ONCE = 190
"""Parts that one commit deletes; a commit names at most 200 records."""
_COPIED_AT_ONCE = 50


def delete_thread(to: Access, thread_id: str) -> Conversation[None]:
    """Delete the flow of a thread, and so all that belongs to it."""
    gone = Delete(flow_key(thread_flow(str(thread_id))), None)
    yield from _commit(to, (gone,))


def _commit(to: Access, changes: Iterable[Change]) -> Conversation[None]:
    yield from raw_parts.commit(to.context, changes, to.context.settings.now_ms(), to.claimed)


def _delete_parts(to: Access, flow_id: str, parts: Iterable[ListedPart]) -> Conversation[None]:
    for several in in_batches(parts, _AT_ONCE):
        yield from _commit(
            to,
            [Delete(part_key(flow_id, one.name), one.head.revision, one.head) for one in several],
        )


def _until_settled(thread: Place, work: Callable[[], Conversation[None]]) -> Conversation[None]:
    """List and delete again when something that was listed has changed meanwhile."""
    for attempt in range(ATTEMPTS):
        try:
            yield from work()
        except cs.ConflictError as error:
            if attempt == ATTEMPTS - 1 or not is_of(error, thread.flow_id):
                raise
        else:
            return


# the checkpoints of runs ----------------------------------------------------------------------------


def delete_for_runs(to: Access, run_ids: Collection[str]) -> Conversation[None]:
    """Delete the checkpoints of runs in all threads."""
    if not run_ids:
        return

    wanted = frozenset(map(str, run_ids))
    every = threads(to)
    while (thread := (yield from next_of(every))) is not None:
        yield from _until_settled(thread, partial(_delete_runs_of, to, thread, wanted))


def _delete_runs_of(to: Access, thread: Place, run_ids: frozenset[str]) -> Conversation[None]:
    """Delete checkpoints of one thread; where a newest one goes, the last that stays takes its place."""
    gone: dict[str, list[Group]] = {}
    stays: dict[str, str] = {}
    found = groups(to, thread.flow_id, "")
    while (group := (yield from next_of(found))) is not None:
        metadata = yield from metadata_in(to, thread.flow_id, group)
        if metadata.get("run_id") in run_ids:
            gone.setdefault(group.prefix, []).append(group)
        else:
            stays.setdefault(group.prefix, group.checkpoint_id)

    for prefix, several in gone.items():
        place = thread.at(prefix)
        yield from _move_head(to, place, {one.checkpoint_id for one in several}, stays.get(prefix))
        parts = (part for group in several for part in group.parts)
        yield from _delete_parts(to, place.flow_id, parts)


def _move_head(
    to: Access, place: Place, gone: Collection[str], newest: str | None
) -> Conversation[None]:
    """Let the head name another checkpoint if it names one of those that go; remove it if none stays."""
    key, now_ms = place.head, to.context.settings.now_ms()
    (record,) = yield Read((key,), now_ms)
    if record is None or newest_of(record.head) not in gone:
        return

    change: Change = Delete(key, record.head.revision, record.head)
    if newest is not None:
        change = raw_parts.plan_bytes(
            to.context,
            place.flow_id,
            place.head.name,
            stored_bytes(key, record.body),
            tag=tag_of_head(new_run(), newest),
            old=record.head,
            now_ms=now_ms,
        )

    yield from _commit(to, (change,))
    to.heads.pop((place.flow_id, place.prefix), None)


# all but the newest -----------------------------------------------------------------------------------


def prune(
    to: Access, serde: SerializerProtocol, thread_ids: Iterable[str], strategy: str
) -> Conversation[None]:
    """Delete all but the newest checkpoints, or whole threads."""
    if strategy not in ("delete", "keep_latest"):
        message = (
            f"unknown strategy {strategy!r}: expected 'keep_latest' or 'delete'; nothing was sent"
        )
        raise cs.UsageError(message)

    for thread_id in thread_ids:
        if strategy == "delete":
            yield from delete_thread(to, thread_id)
        else:
            thread = place_of({"configurable": {"thread_id": thread_id}})
            yield from _until_settled(thread, partial(_keep_latest, to, serde, thread))


def _keep_latest(to: Access, serde: SerializerProtocol, thread: Place) -> Conversation[None]:
    kept: dict[str, set[str]] = {}
    gone: list[Group] = []
    found = groups(to, thread.flow_id, "")
    while (group := (yield from next_of(found))) is not None:
        if group.prefix not in kept:
            place, stays = (
                thread.at(group.prefix),
                kept.setdefault(group.prefix, set()),
            )
            needed = _needed(to, serde, place)
            while (one := (yield from next_of(needed))) is not None:
                stays.add(one)

        # What came after the head was read is newer than all that was listed.
        if kept[group.prefix] and group.checkpoint_id not in kept[group.prefix]:
            gone.append(group)

    yield from _delete_parts(to, thread.flow_id, (part for group in gone for part in group.parts))


def _needed(to: Access, serde: SerializerProtocol, place: Place) -> Mixed[str]:
    """Yield the newest checkpoint, and the parents that its delta channels are made of.

    A delta channel has a counter in the metadata until its value is stored whole.
    """
    head = yield from read_head(to, place)
    newest = newest_of(head)
    group = None if newest is None else (yield from read_group(to, place, newest))
    if newest is None or group is None:
        return

    yield newest
    metadata = yield from metadata_in(to, place.flow_id, group)
    missing = set(metadata.get("counters_since_delta_snapshot") or ())
    missing -= values_of(group, serde).keys()
    parents = ancestors(to, place, newest)
    while missing and (parent := (yield from next_of(parents))) is not None:
        yield parent.checkpoint_id
        missing -= values_of(parent, serde).keys()


# copies -----------------------------------------------------------------------------------------------


def copy_thread(to: Access, source_id: str, target_id: str) -> Conversation[None]:
    """Copy a thread: the heads come last, so a copy that is not complete has no newest checkpoint."""
    source, target = thread_flow(str(source_id)), str(target_id)
    if (yield from records.get(to.context, source)) is None:
        return

    flow = cs.FlowSnapshot(thread_flow(target), state=GraphThread(target), due_at=None)
    now_ms = to.context.settings.now_ms()
    yield from _commit(to, (plans.plan_flow(flow, now_ms, to.context.limits),))
    heads: list[ListedPart] = []
    after = None
    while True:
        page = yield from page_of(to, source, "", after=after)
        heads += [part for part in page if part.name.endswith("/~")]
        rest = [part for part in page if not part.name.endswith("/~")]
        yield from _write_copies(to, source, flow.flow_id, rest)
        if len(page) < PAGE:
            break

        after = page[-1].name

    yield from _write_copies(to, source, flow.flow_id, heads)


def _write_copies(
    to: Access, source: str, flow_id: str, parts: Iterable[ListedPart]
) -> Conversation[None]:
    now_ms = to.context.settings.now_ms()
    for several in in_batches(parts, _COPIED_AT_ONCE):
        yield from _commit(
            to,
            [
                raw_parts.plan_bytes(
                    to.context,
                    flow_id,
                    one.name,
                    raw_parts.body_of(source, one),
                    tag=one.head.position,
                    expected=ANY,
                    now_ms=now_ms,
                )
                for one in several
            ],
        )
