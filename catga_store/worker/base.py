"""What both workers share: which handlers there are, options, health, and what is claimed."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Coroutine
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from typing import Any

from catga_store import codec
from catga_store.core import waiting
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.tags import wanted_tags
from catga_store.model.times import from_ms
from catga_store.model.times import span_ms
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Found
from catga_store.protocol.wakeups import Waiter
from catga_store.worker.flights import Flight
from catga_store.worker.flights import Handler
from catga_store.worker.flights import Tally
from catga_store.worker.gate import LONGEST_WAIT
from catga_store.worker.gate import Gate
from catga_store.worker.policy import Retry
from catga_store.worker.runs import BaseRun
from catga_store.worker.steps import Enter
from catga_store.worker.steps import StoppedError

__all__ = ["BaseWorker", "check_plain", "check_store"]

_WAIT_SECONDS = 20.0
"""How long one call waits for work."""
_STALE_SECONDS = 60.0
"""A claim loop that has not turned for so long hangs."""
_MOST_CONCURRENCY = 1000
_LONGEST_GATHERING = 0.02
_FOREVER_MS = 100 * 365 * 86_400_000


class BaseWorker:
    """Everything of a worker that neither blocks nor awaits."""

    _run_class: type[BaseRun[Any]]
    _is_async: bool

    def __init__(
        self,
        store: Any,
        *,
        concurrency: int = 8,
        lease: timedelta = timedelta(seconds=30),
        retry: Retry | None = None,
        grace: timedelta = timedelta(seconds=20),
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        if type(concurrency) is not int or not 1 <= concurrency <= _MOST_CONCURRENCY:
            message = (
                f"concurrency: expected an int from 1 to {_MOST_CONCURRENCY}, got "
                f"{shown(concurrency)}"
            )
            raise UsageError(message)

        _check_retry(retry)
        if not span_ms(lease, "lease"):
            message = "lease: expected a duration longer than 0, got 0"
            raise UsageError(message)

        self.store = store
        self.concurrency = concurrency
        self.tally = Tally()
        """What the worker has counted since it was created."""
        self.log = logging.getLogger("catga_store.worker")
        self._lease = lease
        self._retry = Retry() if retry is None else retry
        self._grace = span_ms(grace, "grace") / 1000
        self._owner = owner
        self._wanted = wanted_tags(tags)
        self._tags = dict(self._wanted) or None
        self._grace_now = self._grace
        self._handlers: dict[str, Handler] = {}
        self._types: list[Any] = []
        self._flights: set[Flight] = set()
        self._ending = 0
        """How many of them are about to end: the handler has, and what has come of it is being written."""
        self._gate = Gate()
        self._is_running = False
        self._is_stopping = False
        self._waiter: Waiter | None = None
        self._turned = 0.0
        self._down_since: float | None = None
        self._vain = 0
        self._claim_seconds = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the worker is stopping at once: flows that cannot be written now are free when their leases end."""
        raise NotImplementedError

    def leave(self, flight: Flight) -> None:
        """Start handlers that wait for this one to end; do nothing if this one did not begin."""
        raise NotImplementedError

    def _leave(self, flight: Flight) -> bool:
        """Free the place of a handler; whether others wait for that."""
        was_inside, flight.is_inside = flight.is_inside, False
        is_waited_for = was_inside and self._gate.is_wanted
        if was_inside:
            self._gate.leave()

        return is_waited_for

    def _may_enter(self, asked: Enter, waited: float) -> bool:
        """Whether a handler may begin; raises `StoppedError` when the worker stops before."""
        if self._is_stopping and waited:
            raise StoppedError

        impatient = waited >= LONGEST_WAIT
        asked.flight.is_inside = self._gate.enter(alone=asked.alone, impatient=impatient)
        return asked.flight.is_inside

    # handlers -------------------------------------------------------------------------------------

    def _add_handler(
        self,
        function: Callable[..., Any],
        types: tuple[Any, ...],
        retry: Retry | None,
        time_limit: timedelta | None,
    ) -> None:
        self._check_function("handles", function)
        _check_retry(retry)
        limit = None if time_limit is None else span_ms(time_limit, "time_limit") / 1000
        handler = Handler(function, self._retry if retry is None else retry, limit)
        for one in types:
            name = self._name_of(one)
            if name in self._handlers:
                message = (
                    f"flows of type {name!r} already have a handler; a type can have only one "
                    "handler"
                )
                raise UsageError(message)

            self._handlers[name] = handler
            self._types.append("" if one is None else one)

    def _add_failure_handler(self, function: Callable[..., Any], types: tuple[Any, ...]) -> None:
        self._check_function("on_failure", function)
        for one in types:
            name = self._name_of(one)
            if name not in self._handlers:
                message = f"on_failure: flows of type {name!r} have no handler; add a handler for this type first"
                raise UsageError(message)

            self._handlers[name].on_failure = function

    def _name_of(self, state_type: Any) -> str:
        if state_type is None or isinstance(state_type, str):
            return state_type or ""

        codec.check_state_type(state_type)
        return codec.type_name(state_type)

    def _check_function(self, what: str, function: Any) -> None:
        if not callable(function):
            message = f"{what}: expected a function that takes a run, got {shown(function)}"
            raise UsageError(message)

        is_async = inspect.iscoroutinefunction(function)
        if is_async and not self._is_async:
            message = (
                f"Worker.{what}: expected a plain function, got an async function; use an "
                "AsyncWorker with an AsyncStore"
            )
            raise UsageError(message)

        is_plain = inspect.isfunction(function) and not is_async
        if self._is_async and is_plain:
            message = (
                f"AsyncWorker.{what}: expected an async function, got a plain function; use a "
                "Worker with a Store, or define the function with `async def`"
            )
            raise UsageError(message)

    # claims ---------------------------------------------------------------------------------------

    def _claiming(self, limit: int) -> Conversation[list[FlowSnapshot[Any]]]:
        """Claim flows that have a handler, as soon as there are some; `stop` ends it.

        This is `claim_due(wait=…)`, whose wait nothing else can end.
        """
        return waiting.claim_when_due(
            self.store._context,
            self._types,
            lease=self._lease,
            limit=limit,
            owner=self._owner,
            tags=self._tags,
            seconds=_WAIT_SECONDS,
            begun=self._waits,
        )

    def _waits(self, waiter: Waiter) -> None:
        self._waiter = waiter
        if self._is_stopping:
            waiter.end()

    def _claimed(self, number: int, limit: int, seconds: float) -> None:
        """Note what a claim has brought, and how long it took."""
        is_more = number == limit
        self._claim_seconds = min(seconds, _LONGEST_GATHERING) if is_more else 0.0

    def _gathering(self, free_since: float) -> float:
        """For how many seconds to wait for more free slots before the next claim; 0: claim now.

        A claim costs as much for one flow as for several. So where there is more work than slots, it
        waits for as long as a claim takes.
        """
        if len(self._flights) == self._ending:
            return 0.0

        return free_since + self._claim_seconds - time.monotonic()

    def _flights_of(self, flows: Sequence[FlowSnapshot[Any]]) -> list[Flight]:
        """Make the runs of flows that one call has claimed."""
        now = time.monotonic()
        return [
            Flight(self.store, self._run_class, flow, self._handlers[flow.type_name], now)
            for flow in flows
        ]

    def _begin(self) -> None:
        if not self._handlers:
            message = (
                "this worker has no handlers; before you run it, add a handler with "
                "@worker.handles(…)"
            )
            raise UsageError(message)

        if self._is_running:
            message = "this worker is already running; to run two workers, create a second one"
            raise UsageError(message)

        self._is_running = True
        self._grace_now = self._grace
        self._turn()

    # health ---------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether the worker is running and its claim loop is not stuck.

        An outage of the store does not make a worker unhealthy.
        """
        return self._is_running and time.monotonic() - self._turned < _STALE_SECONDS

    @property
    def in_flight(self) -> int:
        """The number of flows that the worker has claimed now, including those whose outcome is being written."""
        return len(self._flights)

    @property
    def names(self) -> tuple[str, ...]:
        """The stored names of the types that the worker handles."""
        return tuple(self._handlers)

    def now(self) -> datetime:
        """Return the current time according to the store's clock."""
        now: datetime = self.store.now()
        return now

    def _turn(self) -> None:
        self._turned = time.monotonic()

    def store_failed(self, error: Exception) -> None:
        """Record that the store could not be reached, and log the first failure."""
        if self._down_since is None:
            self._down_since = time.monotonic()
            self.log.warning("the store cannot be reached, and the worker keeps trying: %s", error)

    def _store_works(self) -> None:
        self._vain = 0
        since, self._down_since = self._down_since, None
        if since is not None:
            self.log.warning(
                "the store can be reached again after an outage of %.1f s", time.monotonic() - since
            )

    # tests ----------------------------------------------------------------------------------------

    def _next_due(self) -> Conversation[datetime | None]:
        """When something is due next that this worker handles."""
        now_ms = self.store._context.settings.now_ms()
        due = Due(now_ms, 1, self.names, self._wanted, within_ms=_FOREVER_MS)
        found: tuple[Found, ...] = yield due
        times = [entry.head.due_ms for entry in found if entry.head.due_ms is not None]
        return from_ms(min(times)) if times else None

    def _moves_clock(self, next_due: datetime | None, until: datetime | None) -> bool:
        """Move a manual clock to that time; whether that is worth while."""
        advance = getattr(self.store._context.settings.clock, "advance", None)
        if advance is None or next_due is None or (until is not None and next_due > until):
            return False

        advance(max(next_due - self.now(), timedelta(0)))
        return True

    def _check_runs(self, runs: int, most: int) -> None:
        if runs >= most:
            message = (
                f"run_until_idle: the worker was still not idle after {runs} runs; if a flow "
                "recurs, pass `until`, a time on the store's clock at which to stop, or raise "
                "`most`"
            )
            raise UsageError(message)

    def __repr__(self) -> str:
        names = ", ".join(name or "untyped" for name in self._handlers)
        state = "stopping" if self._is_stopping else "running" if self._is_running else "idle"
        return f"<{type(self).__name__} on {self.store!r} for {names or 'no type'}, {state}>"


def check_store(store: object, kind: type, advice: str) -> None:
    """Raise `UsageError` unless a worker got a store of its API."""
    if not isinstance(store, kind):
        message = f"store: expected {advice.partition(';')[0]}, got {shown(store)};{advice.partition(';')[2]}"
        raise UsageError(message)


def _check_retry(retry: object) -> None:
    if retry is not None and not isinstance(retry, Retry):
        message = f"retry: expected a Retry, got {shown(retry)}"
        raise UsageError(message)


def check_plain(result: object) -> None:
    """Raise `UsageError` if a handler of a blocking worker returned something to await."""
    if isinstance(result, Awaitable):
        if isinstance(result, Coroutine):
            result.close()

        message = (
            "the handler returned a coroutine or another awaitable, which a Worker does not"
            " await; use an AsyncWorker"
        )
        raise UsageError(message)
