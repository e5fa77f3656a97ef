"""Listings and counts of flows and wait conditions, page by page."""

from __future__ import annotations

import base64
import json
import operator
from datetime import datetime
from typing import Any

from catga_store import codec
from catga_store.core import envelope
from catga_store.core.context import Context
from catga_store.core.context import read_all
from catga_store.errors import InvalidIdError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.listings import Page
from catga_store.model.times import from_ms
from catga_store.model.times import to_ms_up
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import check_id
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found

__all__ = ["count_flows", "query_flows", "query_wait_conditions"]

_PAGE_MOST = 1000


def query_flows(
    context: Context,
    *,
    status: FlowStatus | None = None,
    state_type: Any | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    updated_before: datetime | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Conversation[Page[FlowSummary]]:
    """One page of flow summaries, newest first."""
    wanted = _flow_filter(status, state_type, created_after, created_before, updated_before)
    found, following = yield from _page(context, wanted, limit, cursor)
    return Page(tuple(envelope.summary_of(entry) for entry in found), following)


def count_flows(
    context: Context,
    *,
    status: FlowStatus | None = None,
    state_type: Any | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    updated_before: datetime | None = None,
) -> Conversation[int]:
    """How many flows a listing would have."""
    wanted = _flow_filter(status, state_type, created_after, created_before, updated_before)
    return (yield from ask(Count(wanted, context.settings.now_ms())))


def query_wait_conditions(
    context: Context,
    *,
    outcome: WaitOutcome | None = None,
    parent_flow_id: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Conversation[Page[WaitCondition]]:
    """One page of wait conditions, newest first."""
    if outcome is not None and type(outcome) is not WaitOutcome:
        message = f"outcome must be a WaitOutcome or None, not {outcome!r}"
        raise UsageError(message)

    if parent_flow_id is not None:
        check_id(parent_flow_id, "a parent's flow id")

    status = None if outcome is None else outcome.value
    wanted = Filter(WAIT, status=status, parent=parent_flow_id)
    found, following = yield from _page(context, wanted, limit, cursor)
    records = yield from read_all(context, [entry.key for entry in found])
    waits = (
        envelope.decode_wait(entry.key.id, record)
        for entry, record in zip(found, records, strict=True)
        if record is not None
    )
    return Page(tuple(waits), following)


def _page(
    context: Context, wanted: Filter, limit: int, cursor: str | None
) -> Conversation[tuple[tuple[Found, ...], str | None]]:
    if type(limit) is not int or not 1 <= limit <= _PAGE_MOST:
        message = f"limit must be an int from 1 to {_PAGE_MOST}, not {limit!r}"
        raise UsageError(message)

    after = None if cursor is None else _read_cursor(cursor, wanted)
    found = yield Find(wanted, after, limit, context.settings.now_ms())
    if len(found) < limit:
        return found, None

    last: Found = found[-1]
    return found, _write_cursor(wanted, (last.head.created_ms, last.key.id))


def _flow_filter(
    status: FlowStatus | None,
    state_type: Any | None,
    created_after: datetime | None,
    created_before: datetime | None,
    updated_before: datetime | None,
) -> Filter:
    if status is not None and type(status) is not FlowStatus:
        message = f"status must be a FlowStatus or None, not {status!r}"
        raise UsageError(message)

    if isinstance(state_type, str):
        name: str | None = _type_name(state_type)
    else:
        codec.check_state_type(state_type)
        name = codec.type_name(state_type) or None

    return Filter(
        FLOW,
        None if status is None else status.value,
        name,
        None,
        None if created_after is None else to_ms_up(created_after),
        None if created_before is None else to_ms_up(created_before),
        None if updated_before is None else to_ms_up(updated_before),
    )


def _type_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"no state type is named {name!r}: {error}"
        raise UsageError(message) from error

    return name


def _write_cursor(wanted: Filter, last: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([list(wanted), *last]).encode()).decode()


def _read_cursor(cursor: str, wanted: Filter) -> tuple[int, str]:
    try:
        fields, created_ms, record_id = json.loads(base64.urlsafe_b64decode(cursor))
        after = operator.index(created_ms), check_id(record_id, "the id in a cursor")
        from_ms(after[0])
    except (ValueError, TypeError, OverflowError, RecursionError, InvalidIdError) as error:
        message = f"{cursor!r} is no cursor of this library"
        raise UsageError(message) from error

    if fields != list(wanted):
        message = "a cursor goes on with the listing it came from: pass the same filters with it"
        raise UsageError(message)

    return after
