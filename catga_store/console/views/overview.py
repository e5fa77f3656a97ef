"""The page "Overview": how much there is, what is due, who works, what needs attention."""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime
from datetime import timedelta
from itertools import pairwise
from typing import Any

import anyio
from attrs import define
from attrs import field
from attrs import frozen
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from catga_store.aio import AsyncStore
from catga_store.console.context import ConsoleContext
from catga_store.console.context import context_of
from catga_store.console.rendering import reply
from catga_store.errors import CatgaStoreError
from catga_store.model.diagnosis import Diagnosis
from catga_store.model.documents import diagnosis_document
from catga_store.model.documents import stats_document
from catga_store.model.flows import FlowStatus
from catga_store.model.stats import DueFlow
from catga_store.model.stats import StoreStats

__all__ = ["prepare", "show"]

_FRESH = 4.5
"""For how many seconds a look at the store serves every reader: less than a page waits between two."""
_OLD = 30.0
"""After how many seconds a reader waits for a look, however long it takes."""
_SLOW = 0.1
"""The seconds of a look that no reader waits for, once there was one."""
_LEAST, _MOST = 50, 200
"""How many flows one look diagnoses; the next one continues behind them, and so on, round by round."""
_FOUND_AT_ONCE = 20
_DIAGNOSES_COST = 5
"""The requests of one diagnosis, beside one for each flow that is never due."""
_SECONDS_EACH = 1.5
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
        can be known, are spread to two in three seconds: on NATS some of them are two of the transport.
        """
        if now < self.next_at:
            return

        page = await store.diagnose_all(limit=_FOUND_AT_ONCE, most=self.size, cursor=self.cursor)
        for one in page:
            self.found[one.flow_id] = (self.number, one)

        is_full = len(page) == _FOUND_AT_ONCE
        cost = _DIAGNOSES_COST + (self.size if is_full else len(page))
        self.next_at = now + _SECONDS_EACH * cost
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

    So an open overview costs the store the same for one reader and for a hundred. Where a look takes long,
    a page shows the last one, with its time, and the next look begins behind the page.
    """

    last: _Look | None = None
    at: float = 0.0
    has_failed: bool = False
    """Whether the last look behind a page has failed: the next reader must see why."""
    took: deque[float] = field(factory=lambda: deque[float](maxlen=_SAMPLES))
    """The seconds of the last looks."""
    rounds: _Rounds = field(factory=_Rounds)
    samples: deque[_Sample] = field(factory=lambda: deque[_Sample](maxlen=_SAMPLES))
    lock: anyio.Lock = field(factory=anyio.Lock)

    async def look(self, store: AsyncStore) -> _Look:
        """Return the last look, or look again if that is too old."""
        async with self.lock:
            now = anyio.current_time()
            if self.last is None or self.has_failed or now - self.at >= _FRESH:
                begun = time.perf_counter()
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
                self.has_failed = False
                self.took.append(time.perf_counter() - begun)
                self.samples.append(_sample(stats))

            return self.last

    def at_once(self, now: float) -> _Look | None:
        """Return the last look if it may be shown before the next one has ended."""
        is_slow = max(self.took, default=0.0) > _SLOW
        return (
            None if self.has_failed or now - self.at >= (_OLD if is_slow else _FRESH) else self.last
        )

    async def renew(self, store: AsyncStore) -> None:
        """Look again behind a page, if it is time."""
        try:
            await self.look(store)
        except CatgaStoreError:  # the next reader asks again, and gets the error
            self.has_failed = True


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


async def prepare(context: ConsoleContext) -> None:
    """Look at the store, so that the first reader need not wait. An error is left to that reader."""
    await _looks_of(context).renew(context.store)


async def show(request: Request) -> Response:
    """Show the numbers of the store. All readers together look at most once in a few seconds."""
    context = context_of(request)
    looks = _looks_of(context)
    look = looks.at_once(anyio.current_time()) or await looks.look(context.store)
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
    response = reply(
        request,
        "overview.html",
        document,
        chart=chart_of(list(looks.samples)),
        look=look,
        statuses=list(FlowStatus),
    )
    response.background = BackgroundTask(looks.renew, context.store)
    return response
