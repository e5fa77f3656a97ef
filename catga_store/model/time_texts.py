"""Times as people write and read them: `2030-01-31T12:00Z`, or how long ago, as in `7d`; `2 d 3 h`."""

from __future__ import annotations

import re
from datetime import datetime
from datetime import timedelta

from catga_store.errors import UsageError
from catga_store.protocol.masking import shown

__all__ = ["length", "moment", "span"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


_LENGTHS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000))


def length(span_ms: int) -> str:
    """Return a length of time in its two largest units: `2 d 3 h`, `40 s`.

    >>> length(183_600_000), length(40_000), length(7)
    ('2 d 3 h', '40 s', '7 ms')
    """
    for place, (unit, ms) in enumerate(_LENGTHS):
        if span_ms >= ms:
            text = f"{span_ms // ms} {unit}"
            for smaller, smaller_ms in _LENGTHS[place + 1 : place + 2]:
                rest = span_ms % ms // smaller_ms
                text += f" {rest} {smaller}" if rest else ""

            return text

    return f"{max(span_ms, 0)} ms"


def span(text: str) -> timedelta | None:
    """Parse a length of time; `None` if it is not."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    try:
        return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        return None


def moment(text: str | None) -> datetime | None:
    """Parse a time, or how long ago; `UsageError` if it is neither."""
    if text is None:
        return None

    ago = span(text)
    try:
        if ago is not None:
            return datetime.now().astimezone() - ago

        read = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        read = None

    if read is None or read.tzinfo is None:
        message = (
            f"{shown(text)} is not a valid time or age; specify a time with a UTC offset, such as "
            "2030-01-31T12:00Z, or an age, such as 30s, 15m, 2h or 7d"
        )
        raise UsageError(message)

    return read
