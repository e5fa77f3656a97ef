"""Reading what a claim depends on: the flow, and the conditions that it waits for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence

from catga_store.core.claim_plans import Candidate
from catga_store.core.claim_plans import Gathered
from catga_store.core.claim_plans import awaited_of
from catga_store.core.claim_plans import notified_of
from catga_store.core.context import Context
from catga_store.core.context import read_what_can_be
from catga_store.errors import CorruptRecordError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Record

__all__ = ["gather", "look_for_waits", "read_waits"]

_log = logging.getLogger(__name__)


def gather(
    context: Context, chosen: Sequence[Found], now_ms: int, *, all_waits: bool
) -> Conversation[Gathered]:
    """Return candidates, each with its flow and the conditions that a claim of it depends on.

    `all_waits`: those chosen are all the conditions that have ended, and none need be looked
    for.
    """
    gathered = Gathered()
    unread = [entry.key for entry in chosen if entry.body is None]
    records, corrupt = yield from read_what_can_be(context, unread)
    for entry in chosen:
        if entry.body is not None:
            records[entry.key] = Record(entry.head, entry.body)

    gathered.stuck = [entry for entry in chosen if entry.key in corrupt]

    for entry in chosen:
        record = records.get(entry.key)
        if entry.key.kind == FLOW and entry.key not in corrupt:
            gathered.candidate(entry.key.id).flow = record
        elif record is not None and record.terms is not None and record.terms.parent:
            gathered.candidate(record.terms.parent).woken_by[entry.key.id] = record

    unread = [key for key in map(flow_key, gathered.candidates) if key not in records]
    parents, corrupt = yield from read_what_can_be(context, unread)
    for key, parent in parents.items():
        gathered.candidate(key.id).flow = parent

    for key in corrupt:
        gathered.candidate(key.id).error = corrupt[key]

    candidates = gathered.candidates.values()
    if not all_waits:
        free = [candidate for candidate in candidates if candidate.is_free(now_ms)]
        yield from look_for_waits(free, now_ms)

    yield from read_waits(context, candidates)
    return gathered


def look_for_waits(candidates: Sequence[Candidate], now_ms: int) -> Conversation[None]:
    """Find whatever else has ended that flows are to be notified of: one request for all of them."""
    try:
        yield from _find_waits(candidates, now_ms)
    except CorruptRecordError as error:
        if error.key is None:
            raise

        if len(candidates) == 1:
            _log.warning(
                (
                    "%s was not checked for ended wait conditions, because a record cannot be read: "
                    "%s"
                ),
                flow_key(candidates[0].flow_id),
                error,
            )
            return

        for candidate in candidates:
            yield from look_for_waits([candidate], now_ms)


def _find_waits(candidates: Sequence[Candidate], now_ms: int) -> Conversation[None]:
    parents = tuple(candidate.flow_id for candidate in candidates)
    if not parents:
        return

    waits = yield from ask(DueWaits(parents, MAX_CHANGES, now_ms))
    for candidate, found in zip(candidates, waits, strict=True):
        candidate.unread = [
            entry.key.id for entry in found if entry.key.id not in candidate.woken_by
        ]


def read_waits(context: Context, candidates: Iterable[Candidate]) -> Conversation[None]:
    """The conditions that flows await, or that were found to have ended, in one request."""
    keys: dict[Key, None] = {}

    for candidate in candidates:
        candidate.awaits = awaited_of(candidate)
        candidate.was_notified_of = notified_of(candidate)
        notified = () if candidate.was_notified_of is None else (candidate.was_notified_of,)
        for name in (*candidate.awaits, *notified):
            if name not in candidate.woken_by:
                keys[wait_key(name)] = None

        keys |= dict.fromkeys(map(wait_key, candidate.unread))

    records, corrupt = yield from read_what_can_be(context, list(keys))

    for candidate in candidates:
        known = {wait_key(name): record for name, record in candidate.woken_by.items()}
        for name in candidate.unread:
            record = records.get(wait_key(name))
            if record is not None:
                candidate.woken_by[name] = record

        if candidate.was_notified_of is not None:
            candidate.shown_before = records.get(wait_key(candidate.was_notified_of))

        for name in candidate.awaits:
            key = wait_key(name)
            record = known.get(key) or records.get(key)
            if record is not None:
                candidate.awaited[name] = record

            candidate.error = candidate.error or corrupt.get(key)
