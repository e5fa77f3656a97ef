"""What is due or claimed, without claiming it, and how much a store holds."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from datetime import timedelta
from typing import Unpack

from attrs import frozen

from catga_store.core import envelope
from catga_store.core.arguments import check_limit
from catga_store.core.arguments import check_names
from catga_store.core.context import Context
from catga_store.core.cursors import read_cursor
from catga_store.core.cursors import write_cursor
from catga_store.core.listings import name_of_type
from catga_store.core.options import DueFilters
from catga_store.errors import UsageError
from catga_store.model.flows import FlowStatus
from catga_store.model.listings import Page
from catga_store.model.stats import DueFlow
from catga_store.model.stats import StoreStats
from catga_store.model.tags import Pairs
from catga_store.model.tags import wanted_tags
from catga_store.model.times import MS
from catga_store.model.times import from_ms
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import Stats

__all__ = ["count_due", "query_due", "stats"]


def query_due(
    context: Context, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[DueFilters]
) -> Conversation[Page[DueFlow]]:
    """One page of flows that are due or claimed, by due time."""
    now_ms = context.settings.now_ms()
    wanted = _Wanted.of("query_due", filters)
    check_limit(limit)
    after = None if cursor is None else read_cursor(cursor, wanted.fields)
    found: list[Found] = []
    for one in wanted.ranges(now_ms):
        is_before = after is not None and one.until_ms is not None and after[0] > one.until_ms
        if len(found) < limit and not is_before:
            found += yield ListDue(one, after, limit - len(found), now_ms)

    following = None
    if len(found) >= limit:
        following = write_cursor(wanted.fields, (_due_ms_of(found[-1]), found[-1].key.id))

    return Page(tuple(_due_flows(found, now_ms)), following)


def count_due(context: Context, **filters: Unpack[DueFilters]) -> Conversation[int]:
    """How many flows such a listing would have."""
    now_ms = context.settings.now_ms()
    total = 0
    for one in _Wanted.of("count_due", filters).ranges(now_ms):
        total += yield CountDue(one, now_ms)

    return total


def stats(context: Context) -> Conversation[StoreStats]:
    """Everything that the indexes of a store count."""
    now_ms = context.settings.now_ms()
    totals = yield from ask(Stats(now_ms))
    flows: dict[str, dict[FlowStatus, int]] = {}
    unreadable = 0
    for kind, status, number in sorted(totals.flows):
        if status in _STATUSES:
            flows.setdefault(kind, {})[FlowStatus(status)] = number
        else:
            unreadable += number

    oldest_ms = totals.oldest_due_ms
    return StoreStats(
        at=from_ms(now_ms),
        flows=flows,
        due=totals.due,
        oldest_due_age=None if oldest_ms is None else (now_ms - oldest_ms) * MS,
        claimed=totals.claimed,
        expired_leases=totals.lapsed,
        waits_pending=totals.pending,
        waits_overdue=totals.overdue,
        waits_due=totals.calling,
        unreadable=unreadable,
    )


_STATUSES = range(len(FlowStatus))


_WHAT = (None, "due", "claimed", "expired")


@frozen
class _Wanted:
    """The filters of a listing of what is due, checked."""

    only: str | None
    types: tuple[str, ...] | None
    tags: Pairs

    @classmethod
    def of(cls, operation: str, filters: DueFilters) -> _Wanted:
        check_names(operation, "filter", filters, DueFilters.__annotations__)
        only = filters.get("only")
        if only not in _WHAT:
            message = f"only: expected 'due', 'claimed', 'expired' or None, got {shown(only)}"
            raise UsageError(message)

        name = name_of_type(filters.get("state_type"))
        return cls(only, None if name is None else (name,), wanted_tags(filters.get("tags")))

    @property
    def fields(self) -> list[object]:
        """What a cursor says of them."""
        return ["due", self.only, self.types, self.tags]

    def ranges(self, now_ms: int) -> list[DueFilter]:
        """The ranges of due times that they are, in order."""
        every = DueFilter(claimed=self.only == "expired", types=self.types, tags=self.tags)
        past = every._replace(until_ms=now_ms)
        later = every._replace(claimed=True, after_ms=now_ms)
        if self.only == "claimed":
            return [later]

        return [past, later] if self.only is None else [past]


def _due_ms_of(entry: Found) -> int:
    due_ms = entry.head.due_ms
    return 0 if due_ms is None else due_ms


def _due_flows(found: Iterable[Found], now_ms: int) -> Iterator[DueFlow]:
    latest = {entry.key: entry for entry in found}  # one may be claimed between two requests
    for entry in latest.values():
        yield _due_flow(entry, now_ms)


def _due_flow(entry: Found, now_ms: int) -> DueFlow:
    head, due_ms = entry.head, _due_ms_of(entry)
    claimed = due_ms > now_ms
    age_ms = now_ms - (head.updated_ms if claimed else due_ms)
    return DueFlow(
        envelope.summary_of(entry),
        claimed=claimed,
        lease_expired=head.claim is not None and not claimed,
        age=timedelta(milliseconds=max(age_ms, 0)),
    )
