"""What messages, reprs, logs and output may show of a URL, and of a value that may hold one.

Whatever comes from a URL passes through `mask_url`, and whatever a caller passed by mistake through
`shown`, before it is shown. Both work from a list of what is harmless: what they do not know is
masked. A URL that cannot be parsed is masked like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from datetime import time
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import cast
from uuid import UUID

__all__ = ["MASK", "escaped", "mask_url", "shown"]

MASK = "***"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,19})://", re.ASCII)
_LOCAL = re.compile(r"(?:sqlite|unix):///|sqlite:(?!//)[^@]*$|memory://[^@:]*$", re.IGNORECASE)
_HOST = re.compile(r"(?:[\w.-]*|\[[0-9A-Fa-f:.%\w]*\])(?::[0-9]*)?")
_PATH = re.compile(r"(?:/[0-9]{0,5})?")
_WORDS = re.compile(r"(?:[A-Za-z]:)?[\w .,/\\+-]*")
_OPTION = re.compile(r"[a-z][a-z_]{0,39}")
_HARMLESS_OPTIONS = frozenset(
    {
        "accept_plain",
        "acknowledged_by",
        "bucket",
        "codecs",
        "db",
        "max_bytes",
        "prefix",
        "replicas",
        "stale_reads",
    }
)
_PLAIN = (
    bool,
    int,
    float,
    complex,
    Decimal,
    Fraction,
    date,
    time,
    timedelta,
    UUID,
    Enum,
    type,
    type(None),
)
_MOST_CHARACTERS = 120
_MOST_ITEMS = 3


def mask_url(url: str) -> str:
    """Return a URL as it may be shown: without user, password, token and unknown options.

    Hosts, ports, a database number, the path of a file and the options in `_HARMLESS_OPTIONS` stay
    readable. Works on any text, and never raises.

    >>> mask_url("redis://user:pa/ss@host:6379/0?password=hunter2&prefix=a:")
    'redis://***@host:6379/0?password=***&prefix=a:'
    >>> mask_url("redis://user:pa?ss@host:6379/0")
    'redis://***'
    >>> mask_url("nats://t0ken@a:4222,b:4222?tokem=pw")
    'nats://***@a:4222,b:4222?tokem=***'
    >>> mask_url("sqlite:////var/lib/flows.db")
    'sqlite:////var/lib/flows.db'
    """
    if _LOCAL.match(url):
        place, mark, query = _parted(url)
        return f"{place}{_masked_query(mark, query)}"

    found = _SCHEME.match(url)
    scheme = "" if found is None else found[0]
    user, at, rest = url[len(scheme) :].rpartition("@")
    if re.search(r"[?#]", user):
        return f"{scheme}{MASK}"  # a password that was not escaped, or an option: who knows

    place, mark, query = _parted(rest)
    if not (scheme or at) and not mark and _WORDS.fullmatch(place):
        return url  # a word or the path of a file

    hosts, slash, path = place.partition("/")
    shown_hosts = ",".join(host if _HOST.fullmatch(host) else MASK for host in hosts.split(","))
    shown_path = f"{slash}{path}" if _PATH.fullmatch(f"{slash}{path}") else f"/{MASK}"
    shown_user = f"{MASK}@" if user or at else ""
    return f"{scheme}{shown_user}{shown_hosts}{shown_path}{_masked_query(mark, query)}"


def _parted(text: str) -> tuple[str, str, str]:
    """The place, the first `?` or `#`, and what follows it."""
    found = re.search(r"[?#]", text)
    if found is None:
        return text, "", ""

    return text[: found.start()], found[0], text[found.end() :]


def _masked_query(mark: str, query: str) -> str:
    if not query:
        return mark

    if mark == "#":
        return f"#{MASK}"

    pairs, hash_mark, _ = query.partition("#")
    shown_pairs = "&".join(map(_masked_pair, pairs.split("&")))
    return f"?{shown_pairs}{f'#{MASK}' if hash_mark else ''}"


def _masked_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    if not equals or not _OPTION.fullmatch(name):
        return MASK

    return pair if name in _HARMLESS_OPTIONS else f"{name}={MASK}"


def escaped(text: str) -> str:
    """Return text with its control characters escaped: an id may hold any."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def shown(value: object) -> str:
    """Return a value of the wrong type as a message may show it.

    Text that looks like a URL is masked, long text is cut, and of an object that is not a plain value
    only the class is named: a client's `repr` may hold a password.

    >>> shown("redis://user:hunter2@host"), shown(5), shown(object())
    ("'redis://***@host'", '5', '<object object>')
    """
    if isinstance(value, str):
        return _shown_text(value)

    if isinstance(value, bytes):
        return f"b{_shown_text(value.decode('latin-1'))}"

    if isinstance(value, PurePath):
        return f"{type(value).__name__}({_shown_text(str(value))})"

    if isinstance(value, list | tuple):
        return _shown_items(cast("Sequence[object]", value))

    return _shown_plain(value)


def _shown_text(text: str) -> str:
    masked = mask_url(text) if re.search(r"://|@", text) else str(text)
    cut = masked if len(masked) <= _MOST_CHARACTERS else f"{masked[:_MOST_CHARACTERS]}…"
    return repr(cut)


def _shown_plain(value: object) -> str:
    # What this library defines has a `repr` without secrets.
    if isinstance(value, _PLAIN) or type(value).__module__ == "catga_store":
        with suppress(ValueError):  # an int of more digits than Python prints
            return repr(value)

    return f"<{type(value).__qualname__} object>"


def _shown_items(items: Sequence[object]) -> str:
    texts = [shown(item) for item in items[:_MOST_ITEMS]]
    inside = ", ".join([*texts, "…"] if len(items) > _MOST_ITEMS else texts)
    return f"[{inside}]" if isinstance(items, list) else f"({inside})"
