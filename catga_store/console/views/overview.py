"""The page "Overview": how much there is, what is due, who works, what needs attention."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from datetime import timedelta
from itertools import pairwise
from typing import Any

import anyio
from attrs import define
from attrs import field
from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response

from catga_store.aio import AsyncStore
from catga_store.console.context import ConsoleContext
from catga_store.console.context import context_of
from catga_store.console.rendering import reply
from catga_store.model.diagnosis import Diagnosis
from catga_store.model.documents import diagnosis_document
from catga_store.model.documents import stats_document
from catga_store.model.flows import FlowStatus
from catga_store.model.stats import DueFlow
from catga_store.model.stats import StoreStats

__all__ = ["show"]

_FRESH = 4.5
"""For how many seconds a look at the store serves every reader: less than a page waits between two."""
_LEAST, _MOST = 50, 200
"""How many flows one look diagnoses; the next one continues behind them, and so on, round by round."""
_FOUND_AT_ONCE = 20
_DIAGNOSES_COST = 5
"""The requests of one diagnosis, beside one for each flow that is never due."""
_ATTENTION = 10
_CLAIMS = 200
_SAMPLES = 120
"""How many looks the chart holds: ten minutes of an open page."""


@frozen
class _Sample:
    """How many flows had ended at a time."""

    at: datetime
    completed: int
    failed: int


@frozen
class _Owner:
    """A worker that has claims."""

    name: str
    claims: int
    first_end: datetime | None
    last_write: timedelta


@frozen
class _Look:
    """What one look at the store has found."""

    stats: StoreStats
    owners: list[_Owner]
    more_owners: bool
    attention: list[Diagnosis]
    """The worst of what was found."""
    found: int
    is_complete: bool
    """Whether every live flow was looked at since the page was opened first."""


@define
class _Rounds:
    """What needs attention, looked for in rounds over all live flows, a part of them at a time."""

    found: dict[str, tuple[int, Diagnosis]] = field(factory=dict[str, tuple[int, Diagnosis]])
    """What was found in which round."""
    number: int = 1
    cursor: str | None = None
    size: int = _LEAST
    next_at: float = float("-inf")

    async def look(self, store: AsyncStore, now: float) -> None:
        """Look at the next flows, unless the last look has cost so much that it is too soon.

        A look may cost a request for each flow, if all of them are never due. Its requests, as far as they
        can be known, are spread to one a second.
        """
        if now < self.next_at:
            return

        page = await store.diagnose_all(limit=_FOUND_AT_ONCE, most=self.size, cursor=self.cursor)
        for one in page:
            self.found[one.flow_id] = (self.number, one)

        is_full = len(page) == _FOUND_AT_ONCE
        self.next_at = now + _DIAGNOSES_COST + (self.size if is_full else len(page))
        self.size = _LEAST if is_full else min(self.size * 2, _MOST)
        self.cursor = page.cursor
        if self.cursor is None:  # what was not found again is well, or gone
            self.found = {name: one for name, one in self.found.items() if one[0] == self.number}
            self.number += 1

    def worst(self) -> list[Diagnosis]:
        """Return what was found, the worst first."""
        found = [one for _, one in self.found.values()]
        return sorted(found, key=lambda one: one.severity != "problem")


@define
class _Looks:
    """Looks at the store for all readers of a console, at most one in a few seconds.

    So an open overview costs the store the same for one reader and for a hundred.
    """

    last: _Look | None = None
    at: float = 0.0
    rounds: _Rounds = field(factory=_Rounds)
    samples: deque[_Sample] = field(factory=lambda: deque[_Sample](maxlen=_SAMPLES))
    lock: anyio.Lock = field(factory=anyio.Lock)

    async def look(self, store: AsyncStore) -> _Look:
        """Return the last look, or look again if that is too old."""
        async with self.lock:
            now = anyio.current_time()
            if self.last is None or now - self.at >= _FRESH:
                stats = await store.stats()
                claimed = await store.query_due(only="claimed", limit=_CLAIMS)
                await self.rounds.look(store, now)
                worst = self.rounds.worst()
                self.last = _Look(
                    stats,
                    _owners(claimed.items),
                    claimed.cursor is not None,
                    worst[:_ATTENTION],
                    len(worst),
                    self.rounds.number > 1,
                )
                self.at = now
                self.samples.append(_sample(stats))

            return self.last


def _sample(stats: StoreStats) -> _Sample:
    def total(status: FlowStatus) -> int:
        return sum(by_status.get(status, 0) for by_status in stats.flows.values())

    return _Sample(stats.at, total(FlowStatus.COMPLETED), total(FlowStatus.FAILED))


def _owners(claimed: tuple[DueFlow, ...]) -> list[_Owner]:
    """Who has claims, those with the most first."""
    by_name: dict[str, list[DueFlow]] = {}
    for one in claimed:
        by_name.setdefault(one.flow.owner or "", []).append(one)

    owners = [
        _Owner(
            name,
            len(claims),
            min((one.flow.due_at for one in claims if one.flow.due_at is not None), default=None),
            min(one.age for one in claims),
        )
        for name, claims in by_name.items()
    ]
    return sorted(owners, key=lambda one: (-one.claims, one.name))


@frozen
class _Column:
    """One column of the chart: what ended between two looks, drawn in a square of 120 by 100."""

    place: int
    completed: int
    failed: int
    good: float
    bad: float


@frozen
class Chart:
    """How many flows ended while the page was open."""

    columns: list[_Column]
    completed: int
    failed: int
    since: datetime | None


def chart_of(samples: list[_Sample]) -> Chart:
    """Return the chart of some looks; what retention has removed meanwhile is not counted as negative."""
    steps = [
        (max(0, after.completed - before.completed), max(0, after.failed - before.failed))
        for before, after in pairwise(samples)
    ]
    most = max((good + bad for good, bad in steps), default=0) or 1
    columns = [
        _Column(_SAMPLES - len(steps) + place, good, bad, good / most * 100, bad / most * 100)
        for place, (good, bad) in enumerate(steps)
    ]
    return Chart(
        columns,
        sum(good for good, _ in steps),
        sum(bad for _, bad in steps),
        samples[0].at if samples else None,
    )


def _looks_of(context: ConsoleContext) -> _Looks:
    looks: _Looks = context.kept.setdefault("overview", _Looks())
    return looks


async def show(request: Request) -> Response:
    """Show the numbers of the store. All readers together look at most once in a few seconds."""
    context = context_of(request)
    looks = _looks_of(context)
    look = await looks.look(context.store)
    document: dict[str, Any] = {
        **stats_document(look.stats),
        "owners": [
            {"owner": one.name, "claims": one.claims, "first_lease_end": one.first_end}
            for one in look.owners
        ],
        "attention": [diagnosis_document(one) for one in look.attention],
        "attention_found": look.found,
        "attention_complete": look.is_complete,
    }
    return reply(
        request,
        "overview.html",
        document,
        chart=chart_of(list(looks.samples)),
        look=look,
        statuses=list(FlowStatus),
    )
