"""How datetimes, times and timedeltas are encoded: ISO 8601 text, and microseconds.

The text keeps the offset from UTC but not the name of the zone; UTC is written as `Z`. ` fold=1` at
its end marks the second pass of an hour that is repeated.
"""

from __future__ import annotations

from datetime import UTC
from datetime import datetime
from datetime import time
from datetime import timedelta
from typing import Any

from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import kind_of

__all__ = [
    "datetime_text",
    "decode_datetime",
    "decode_time",
    "decode_timedelta",
    "encode_datetime",
    "encode_time",
    "encode_timedelta",
]

_FOLD = " fold=1"


def encode_datetime(value: Any) -> Any:
    """What msgspec writes as `datetime_text` does: the value itself where it can."""
    if value.__class__ is not datetime:
        raise Misfit("datetime", describe(value))

    tz = value.tzinfo
    if tz is UTC or (tz is None and not value.fold):
        return value  # msgspec writes these as below, and much faster

    return datetime_text(value)


def datetime_text(value: Any) -> str:
    """The text of a datetime; `Misfit` for what could not be read back exactly."""
    if value.__class__ is not datetime:
        raise Misfit("datetime", describe(value))

    text: str = value.isoformat()
    if value.tzinfo is None:
        return text + _FOLD if value.fold else text

    _check_offset("datetime", value.utcoffset())
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def decode_datetime(value: Any, _: Any) -> Any:
    """Read such a text; a date is refused."""
    if value.__class__ is not str:
        raise Misfit("datetime", kind_of(value))

    try:
        if value[10] == "T":  # else it is a date, which `fromisoformat` takes for midnight
            return datetime.fromisoformat(value)
    except (ValueError, IndexError):
        if value.endswith(_FOLD):
            return decode_datetime(value.removesuffix(_FOLD), None).replace(fold=1)

    raise Misfit("datetime", "a string that is not a valid datetime")


def encode_time(value: time) -> str:
    """The text of a time of day."""
    if value.tzinfo is None:
        return value.isoformat() + _FOLD if value.fold else value.isoformat()

    _check_offset("time", value.utcoffset())
    return value.isoformat()


def decode_time(text: str) -> time:
    """Read such a text."""
    if text.endswith(_FOLD):
        return time.fromisoformat(text.removesuffix(_FOLD)).replace(fold=1)

    return time.fromisoformat(text)


def _check_offset(label: str, offset: timedelta | None) -> None:
    if offset is None:
        raise Misfit(
            label, "a value whose tzinfo returns no offset", "it would be read back as naive"
        )

    if offset and abs(offset) < timedelta(seconds=1):  # as CPython 3.11 does
        raise Misfit(
            label, "a UTC offset shorter than a second", "`fromisoformat` would read it as UTC"
        )


def encode_timedelta(value: timedelta) -> int:
    """A duration in microseconds."""
    return (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds


def decode_timedelta(microseconds: int) -> timedelta:
    """Read a duration in microseconds."""
    days, rest = divmod(microseconds, 86_400_000_000)
    return timedelta(days=days, microseconds=rest)
