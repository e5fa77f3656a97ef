"""When a step that failed is run again, and when the flow is given up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from attrs import Attribute
from attrs import field
from attrs import frozen

from catga_store.errors import UsageError
from catga_store.model.times import MS
from catga_store.model.times import span_ms
from catga_store.protocol.chance import uniform
from catga_store.protocol.masking import shown

__all__ = ["GiveUp", "Retry"]

_MOST_DOUBLINGS = 62
"""More than a delay of 100 years takes, from one millisecond."""


class GiveUp(Exception):  # noqa: N818  a request of a handler, not an error of the library
    """Raise this exception in a handler to fail the flow at once, however many attempts are left.

    The text of the exception becomes `flow.error`. Changes that the handler has made since its last commit
    are discarded. To fail a flow and keep the changes, call `run.fail(reason)` and return.
    """


def _check_attempts(_instance: object, _attribute: Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        message = f"attempts: expected an int of at least 1, got {shown(value)}"
        raise UsageError(message)


def _checked_span(value: object) -> timedelta:
    return span_ms(value, "delay of Retry") * MS


@frozen(kw_only=True)
class Retry:
    """How many times a step is attempted, and how long a worker waits between two attempts.

    The delay is a random time between 0 and an upper bound (full jitter). The bound is `first` after the
    first attempt, and doubles after each further attempt, up to `most`.

    >>> from datetime import timedelta
    >>> from catga_store import Retry
    >>> retry = Retry(attempts=5, first=timedelta(seconds=1), most=timedelta(minutes=1))
    >>> [retry.longest_delay(attempt).seconds for attempt in (1, 2, 3, 4, 10)]
    [1, 2, 4, 8, 60]
    """

    attempts: int = field(default=10, validator=_check_attempts)
    first: timedelta = field(default=timedelta(seconds=1), converter=_checked_span)
    most: timedelta = field(default=timedelta(minutes=10), converter=_checked_span)

    def longest_delay(self, attempt: int) -> timedelta:
        """Return the upper bound of the delay after this attempt; the first attempt has the number 1."""
        doublings = min(max(attempt - 1, 0), _MOST_DOUBLINGS)
        seconds = self.first.total_seconds() * 2**doublings
        return timedelta(seconds=min(seconds, self.most.total_seconds()))

    def delay(self, attempt: int) -> timedelta:
        """Return a random delay after this attempt."""
        return self.longest_delay(attempt) * uniform(0, 1)


GiveUp.__module__ = Retry.__module__ = "catga_store"
