"""A clock that stands still until it is moved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from datetime import timedelta

__all__ = ["ManualClock"]

_START = datetime(2030, 1, 1, tzinfo=UTC)


class ManualClock:
    """A clock for stores under test, passed as `clock=`. Several stores can share one clock.

    Leases, deadlines, wake-ups and retention follow this clock, so a test can advance the clock instead of
    sleeping. The clock is thread-safe. Calls that are waiting on a store with this clock (`claim_due(wait=)`)
    notice when it is moved, but the maximum time for which they wait is real time.

    >>> from datetime import timedelta
    >>> from catga_store import MemoryStore
    >>> clock = ManualClock()
    >>> store = MemoryStore(clock=clock)
    >>> before = store.now()
    >>> clock.advance(timedelta(hours=1))
    datetime.datetime(2030, 1, 1, 1, 0, tzinfo=datetime.timezone.utc)
    >>> store.now() - before
    datetime.timedelta(seconds=3600)
    """

    def __init__(self, start: datetime = _START) -> None:
        if start.tzinfo is None or start.utcoffset() is None:
            message = f"start: expected a datetime with a time zone, got {start!r}"
            raise ValueError(message)

        self._now = start.astimezone(UTC)
        self._lock = threading.Lock()
        self.listeners: set[Callable[[], object]] = set()
        """Functions that are called whenever the clock is moved; calls that wait for a time add theirs."""

    def __call__(self) -> datetime:
        """The time, as an aware datetime in UTC."""
        with self._lock:
            return self._now

    @property
    def now(self) -> datetime:
        """The clock's time, as an aware datetime in UTC."""
        return self()

    def advance(self, span: timedelta) -> datetime:
        """Move the clock forward, or back if the span is negative, and return the new time."""
        with self._lock:
            self._now += span
            now = self._now

        for listener in list(self.listeners):
            listener()

        return now

    def __repr__(self) -> str:
        return f"<ManualClock {self().isoformat()}>"
