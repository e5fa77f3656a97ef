"""Instants and spans in whole milliseconds, in UTC, and their conversion at the edge of the API."""

from __future__ import annotations

from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import lru_cache
from typing import Final

from catga_store.errors import UsageError
from catga_store.protocol.masking import shown

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
_ZERO = timedelta(0)
_LONGEST = timedelta(days=36_500)
_LATEST_CLOCK = datetime(9900, 1, 1, tzinfo=UTC)  # no span that is added to it leaves the year 9999


class _Now(datetime):
    """A `due_at` that stands for the time at which a flow is written, so the flow is due at once.

    `NOW` is the default `due_at` of a new flow and the default of `release`. To type checkers, it is a
    datetime. It prints as `now`, and is replaced by the actual time when the flow is written.

    >>> import catga_store as cs
    >>> flow = cs.FlowSnapshot("order-1", state={})
    >>> print(flow.due_at)
    now
    >>> cs.MemoryStore().create(flow)
    >>> flow.due_at == flow.created_at
    True
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "NOW"

    def __str__(self) -> str:
        return "now"

    def __reduce__(self) -> str:  # a name: what is copied or unpickled is `NOW`
        return "NOW"

    def __reduce_ex__(self, _: object) -> str:  # as above
        return "NOW"


NOW: Final[datetime] = _Now(1970, 1, 1, tzinfo=UTC)


def to_ms(moment: object) -> int:
    """Return milliseconds since 1970, rounded down; `UsageError` unless it is an aware datetime."""
    return _since_epoch(moment) // MS


def to_ms_up(moment: object) -> int:
    """Return milliseconds since 1970, rounded up; `UsageError` unless it is an aware datetime."""
    return -(-_since_epoch(moment) // MS)


def clock_ms(moment: object) -> int:
    """Return what the clock of a store shows, rounded down.

    `UsageError` after the year 9899: the end of a lease must be a datetime, too.
    """
    milliseconds = to_ms(moment)
    if milliseconds >= _since_epoch(_LATEST_CLOCK) // MS:
        message = f"the store's clock returned {moment}, but the year must be before 9900"
        raise UsageError(message)

    return milliseconds


def _since_epoch(moment: object) -> timedelta:
    if not isinstance(moment, datetime):
        message = f"expected a datetime, got {shown(moment)}"
        raise UsageError(message)

    try:
        offset = moment.utcoffset()
    except Exception as error:
        message = (
            f"the time zone of a datetime (of type {type(moment.tzinfo).__name__}) cannot be "
            f"used: {error}"
        )
        raise UsageError(message) from error

    if offset is None:
        message = (
            f"{moment!r} has no time zone: expected an aware datetime, such as one with tzinfo=UTC"
        )
        raise UsageError(message)

    # Not the operator: subclasses have their own, and return what is not a timedelta.
    return datetime.__sub__(moment, _EPOCH)


@lru_cache(maxsize=4096)
def from_ms(milliseconds: int) -> datetime:
    """Return the moment, in UTC."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def span_ms(span: object, what: str) -> int:
    """Return milliseconds, rounded up; `UsageError` unless it is a span of 0 to 100 years."""
    if not isinstance(span, timedelta):
        message = f"{what}: expected a timedelta, got {shown(span)}"
        raise UsageError(message)

    plain: timedelta = timedelta.__add__(_ZERO, span)  # as above
    if not _ZERO <= plain <= _LONGEST:
        message = f"{what}: expected a timedelta of 0 to 36,500 days, got {span!r}"
        raise UsageError(message)

    return -(-plain // MS)


def moment_down(value: datetime | None) -> datetime | None:
    """Return a moment in UTC and whole milliseconds, rounded down."""
    return None if value is None else _in_utc(value, to_ms(value))


def moment_up(value: datetime | None) -> datetime | None:
    """Return a moment in UTC and whole milliseconds, rounded up; `NOW` and None as they are."""
    if value is None or value is NOW:
        return value

    return _in_utc(value, to_ms_up(value))


def _in_utc(value: datetime, milliseconds: int) -> datetime:
    try:
        return from_ms(milliseconds)
    except OverflowError:
        message = f"{value!r} is out of range: the year in UTC must be from 1 to 9999"
        raise UsageError(message) from None


def span_up(value: timedelta | None) -> timedelta | None:
    """Return a timeout in whole milliseconds, rounded up."""
    return None if value is None else span_ms(value, "timeout") * MS
