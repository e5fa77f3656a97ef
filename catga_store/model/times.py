"""Instants and spans in whole milliseconds, in UTC, and their conversion at the edge of the API."""

from __future__ import annotations

from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import lru_cache

from catga_store.errors import UsageError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
_LONGEST = timedelta(days=36_500)

AT_ONCE = _EPOCH
"""The `due_at` of a flow that says nothing about it: due as soon as it is stored."""


def to_ms(moment: object) -> int:
    """Milliseconds since 1970, rounded down; `UsageError` unless it is an aware datetime."""
    if not isinstance(moment, datetime):
        message = f"{moment!r} is no datetime"
        raise UsageError(message)

    if moment.tzinfo is None or moment.utcoffset() is None:
        message = (
            f"{moment!r} has no time zone; pass an aware datetime, such as one with tzinfo=UTC"
        )
        raise UsageError(message)

    return (moment - _EPOCH) // MS


def to_ms_up(moment: datetime) -> int:
    """Milliseconds since 1970, rounded up; `UsageError` unless it is an aware datetime."""
    milliseconds = to_ms(moment)
    return milliseconds if milliseconds * MS == moment - _EPOCH else milliseconds + 1


@lru_cache(maxsize=4096)
def from_ms(milliseconds: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def span_ms(span: object, what: str) -> int:
    """Milliseconds, rounded up; `UsageError` unless it is a span of 0 to 100 years."""
    if not isinstance(span, timedelta):
        message = f"{what} must be a timedelta, not {span!r}"
        raise UsageError(message)

    if not timedelta(0) <= span <= _LONGEST:
        message = f"{what} must be between 0 and 36,500 days, not {span!r}"
        raise UsageError(message)

    return -(-span // MS)


def moment_down(value: datetime | None) -> datetime | None:
    """Return a moment in UTC and whole milliseconds, rounded down."""
    return None if value is None else _in_utc(value, to_ms(value))


def moment_up(value: datetime | None) -> datetime | None:
    """A moment as it is kept: in UTC, in whole milliseconds, rounded up."""
    if value is None or value is AT_ONCE:
        return value

    return _in_utc(value, to_ms_up(value))


def _in_utc(value: datetime, milliseconds: int) -> datetime:
    try:
        return from_ms(milliseconds)
    except OverflowError:
        message = f"{value!r} cannot be kept: in UTC it is no year from 1 to 9999"
        raise UsageError(message) from None


def span_up(value: timedelta | None) -> timedelta | None:
    """Return a timeout in whole milliseconds, rounded up."""
    return None if value is None else span_ms(value, "a timeout") * MS
