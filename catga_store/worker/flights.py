"""A run under way, as its worker sees it, and what a worker counts."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from typing import TYPE_CHECKING
from typing import Any

from attrs import define
from attrs import field

from catga_store.core.holding import Doubt
from catga_store.model.flows import FlowSnapshot
from catga_store.worker import outcomes
from catga_store.worker.policy import Retry
from catga_store.worker.runs import BaseRun

if TYPE_CHECKING:
    from anyio import CancelScope

__all__ = ["Flight", "Handler", "Tally"]


@define(eq=False)
class Handler:
    """A function for flows of one type, and what is set for it."""

    function: Callable[..., Any]
    retry: Retry
    time_limit: float | None
    on_failure: Callable[..., Any] | None = None


class Flight:
    """One run and all that only its worker needs to know of it."""

    def __init__(
        self,
        store: Any,
        kind: type[BaseRun[Any]],
        flow: FlowSnapshot[Any],
        handler: Handler,
        claimed_at: float,
    ) -> None:
        session = store.session()
        session.add(flow)
        self.flow = flow
        self.session = session
        self.run = kind(store, flow, session)
        self.handler = handler
        self.claimed_at = claimed_at
        """By the clock of the process, the same for all that one call has claimed."""
        self.began = outcomes.Began(flow.position, flow.status, flow.error, flow.status)
        self.began_at: datetime = datetime.max.replace(tzinfo=UTC)
        """By the clock of the store."""
        self.doubt = Doubt()
        """Whether the claim may be lost."""
        self.is_inside = False
        """Its handler runs; see `gate`."""
        self.is_ending = False
        """Another handler may run in place of its own, which has ended."""
        self.is_stopped = False
        """The worker wants the handler to end: the run does not count."""
        self.thread: threading.Thread | None = None
        self.scope: CancelScope | None = None
        self._store = store
        self._kind = kind
        self._started = math.inf
        self._is_settling = False
        self._lock = threading.Lock()

    def begin(self, now: datetime) -> None:
        """Note where the flow is, and set it running."""
        self.began_at = now
        self._started = time.monotonic()
        self.began = outcomes.begin(self.flow)

    def begin_settling(self) -> bool:
        """Return `True` to the one that ends this run: its own thread, or one that gave up waiting."""
        with self._lock:
            is_first = not self._is_settling
            self._is_settling = True
            return is_first

    @property
    def is_settling(self) -> bool:
        """Whether the handler has returned, or is waited for no longer."""
        return self._is_settling

    @property
    def lost(self) -> bool:
        """Whether nothing of the run can be committed."""
        return self.run.lost

    def lose(self) -> None:
        """Let the handler end: nothing that it does will be committed."""
        self.run._is_lost = True
        self.cancel()

    def cancel(self) -> None:
        """Cancel an async handler; a blocking one cannot be."""
        if self.scope is not None and not self._is_settling:
            self.scope.cancel()

    @property
    def seconds(self) -> float:
        """How long the handler has run; 0 if it has not begun."""
        return max(time.monotonic() - self._started, 0.0)

    @property
    def is_late(self) -> bool:
        """Whether the handler has taken longer than its time limit."""
        limit = self.handler.time_limit
        return limit is not None and self.seconds > limit

    def limit_error(self) -> TimeoutError:
        """The error of a handler that takes longer than its time limit."""
        limit = self.handler.time_limit
        return TimeoutError(f"the handler exceeded its time limit of {limit} s")

    def with_flow(self, flow: FlowSnapshot[Any], session: Any) -> BaseRun[Any]:
        """A run for an `on_failure` handler, with the flow as it is stored."""
        return self._kind(self._store, flow, session)

    def __repr__(self) -> str:
        return f"<Flight of {self.run!r}>"


@define
class Tally:
    """What a worker has done since it was made."""

    runs: Counter[str] = field(factory=Counter[str])
    """By how they ended: `ok`, `error`, `lost`, `handed back`."""
    errors: Counter[str] = field(factory=Counter[str])
    """By the class of the exception."""
    seconds: float = 0.0
    """How long all handlers ran, together."""
    _lock: threading.Lock = field(factory=threading.Lock, eq=False, repr=False)

    def ended(self, flight: Flight, how: str, error: BaseException | None = None) -> None:
        """Count a run."""
        with self._lock:
            self.runs[how] += 1
            self.seconds += flight.seconds
            if error is not None:
                self.errors[type(error).__name__] += 1
