"""Listings and counts of flows and wait conditions, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from typing import Unpack

from catga_store import codec
from catga_store.core import envelope
from catga_store.core.arguments import check_limit
from catga_store.core.arguments import check_names
from catga_store.core.context import Context
from catga_store.core.context import read_what_can_be
from catga_store.core.cursors import read_cursor
from catga_store.core.cursors import write_cursor
from catga_store.core.options import FlowFilters
from catga_store.core.options import WaitFilters
from catga_store.errors import CorruptRecordError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.listings import Page
from catga_store.model.tags import wanted_tags
from catga_store.model.times import to_ms_up
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import MAX_ID_BYTES
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import check_id
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import NO_STATUS
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found

__all__ = [
    "count_flows",
    "find_damaged",
    "find_flows",
    "find_waits",
    "name_of_type",
    "query_flows",
    "query_wait_conditions",
    "read_waits",
]

_MOST_ATTEMPTS = 2**63 - 1


def query_flows(
    context: Context, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[FlowFilters]
) -> Conversation[Page[FlowSummary]]:
    """One page of flow summaries, newest first, or by id if it is restricted to an id prefix."""
    found, following = yield from find_flows(context, "query_flows", limit, cursor, filters)
    return Page(tuple(envelope.summary_of(entry) for entry in found), following)


def find_flows(
    context: Context, operation: str, limit: int, cursor: str | None, filters: FlowFilters
) -> Conversation[tuple[tuple[Found, ...], str | None]]:
    """One page of keys and heads; `operation` is what the errors name."""
    return (yield from _page(context, _flow_filter(operation, filters), limit, cursor))


def find_damaged(
    context: Context, limit: int, cursor: str | None, filters: FlowFilters
) -> Conversation[tuple[tuple[Found, ...], str | None]]:
    """One page of flows whose status cannot be read, so that no listing by status has them."""
    wanted = _flow_filter("find_damaged", filters)._replace(status=NO_STATUS)
    return (yield from _page(context, wanted, limit, cursor))


def count_flows(context: Context, **filters: Unpack[FlowFilters]) -> Conversation[int]:
    """How many flows a listing would have."""
    wanted = _flow_filter("count_flows", filters)
    return (yield from ask(Count(wanted, context.settings.now_ms())))


def query_wait_conditions(
    context: Context, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[WaitFilters]
) -> Conversation[Page[WaitCondition]]:
    """One page of wait conditions, newest first."""
    check_names("query_wait_conditions", "filter", filters, WaitFilters.__annotations__)
    outcome, parent = filters.get("outcome"), filters.get("parent_flow_id")
    if outcome is not None and type(outcome) is not WaitOutcome:
        message = f"outcome: expected a WaitOutcome or None, got {shown(outcome)}"
        raise UsageError(message)

    if parent is not None:
        check_id(parent, "a parent's flow id")

    status = None if outcome is None else outcome.value
    wanted = Filter(WAIT, status=status, parent=parent)
    found, following = yield from _page(context, wanted, limit, cursor)
    waits = yield from read_waits(context, found)
    return Page(tuple(waits), following)


def read_waits(context: Context, found: Sequence[Found]) -> Conversation[list[WaitCondition]]:
    """The conditions of a listing that are still there; one that cannot be read says so."""
    keys = [entry.key for entry in found if entry.error is None]
    records, corrupt = yield from read_what_can_be(context, keys)
    waits: list[WaitCondition] = []
    for entry in found:
        key = entry.key
        error = entry.error or corrupt.get(key)
        try:
            if error is None and key in records:
                waits.append(envelope.decode_wait(key.id, records[key]))
        except CorruptRecordError as wrong:
            error = wrong

        if error is not None:
            waits.append(envelope.unreadable_wait(key.id, error))

    return waits


def find_waits(
    context: Context, status: int, limit: int, cursor: str | None
) -> Conversation[tuple[tuple[Found, ...], str | None]]:
    """One page of keys and heads of the conditions with this status."""
    return (yield from _page(context, Filter(WAIT, status=status), limit, cursor))


def _page(
    context: Context, wanted: Filter, limit: int, cursor: str | None
) -> Conversation[tuple[tuple[Found, ...], str | None]]:
    check_limit(limit)
    after = None if cursor is None else read_cursor(cursor, wanted)
    found = yield Find(wanted, after, limit, context.settings.now_ms())
    if len(found) < limit:
        return found, None

    last: Found = found[-1]
    return found, write_cursor(wanted, (last.head.created_ms, last.key.id))


def _flow_filter(operation: str, filters: FlowFilters) -> Filter:
    check_names(operation, "filter", filters, FlowFilters.__annotations__)
    status, state_type = filters.get("status"), filters.get("state_type")
    if status is not None and type(status) is not FlowStatus:
        message = f"status: expected a FlowStatus or None, got {shown(status)}"
        raise UsageError(message)

    return Filter(
        FLOW,
        None if status is None else status.value,
        name_of_type(state_type),
        None,
        _moment(filters.get("created_after")),
        _moment(filters.get("created_before")),
        _moment(filters.get("updated_before")),
        _id_prefix(filters.get("id_prefix")),
        _moment(filters.get("updated_after")),
        _owner(filters.get("owner")),
        _part_of_error(filters.get("error_contains")),
        _attempts(filters.get("attempts_at_least")),
        wanted_tags(filters.get("tags")),
    )


def _moment(value: datetime | None) -> int | None:
    return None if value is None else to_ms_up(value)


def _id_prefix(value: object) -> str | None:
    """The prefix as plain text; like an id it cannot be empty, which is seldom what was meant."""
    if value is None:
        return None

    try:
        if isinstance(value, str) and 1 <= len(value.encode()) <= MAX_ID_BYTES:
            return str.__str__(value)

        reason = ""
    except UnicodeEncodeError as error:
        reason = f": {error}"

    message = (
        f"id_prefix: expected None or a str of 1 to {MAX_ID_BYTES} UTF-8 bytes, got "
        f"{shown(value)}{reason}"
    )
    raise UsageError(message)


def _owner(value: Any) -> str | None:
    return None if value is None else check_id(value, "an owner")


def _part_of_error(value: object) -> str | None:
    """A part of an error, as plain text; an empty one is in every error, which is seldom what was meant."""
    if value is None:
        return None

    try:
        if isinstance(value, str) and value.encode():
            return str.__str__(value)

        reason = ""
    except UnicodeEncodeError as error:
        reason = f": {error}"

    message = f"error_contains: expected None or a non-empty str, got {shown(value)}{reason}"
    raise UsageError(message)


def _attempts(value: object) -> int | None:
    if value is None or (type(value) is int and 0 <= value <= _MOST_ATTEMPTS):
        return value

    message = (
        f"attempts_at_least: expected None or an int from 0 to {_MOST_ATTEMPTS}, got {shown(value)}"
    )
    raise UsageError(message)


def name_of_type(state_type: Any | None) -> str | None:
    """Return the name that a type is stored under, or a name itself; None restricts to none."""
    if isinstance(state_type, str):
        return _type_name(state_type)

    codec.check_state_type(state_type)
    return codec.type_name(state_type) or None


def _type_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"invalid state type name {shown(name)}: {error}"
        raise UsageError(message) from error

    return name
