"""The index of a partition: the members of its sorted set, and ranges of them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.requests import FIRST_MS
from catga_store.protocol.requests import HIGHEST_STATUS
from catga_store.protocol.requests import LAST_MS
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Head

__all__ = [
    "BY_ID",
    "CLAIMED",
    "DIGITS",
    "DUE",
    "NOTIFIED",
    "PAGE",
    "UPLOAD",
    "Range",
    "RedisIndexEntry",
    "begins_of_due",
    "bounds_of",
    "bounds_of_due",
    "is_listed",
    "listing_of",
    "merged",
    "named",
    "newest_first",
    "ranges_of",
    "read_expiring",
    "stamp_of",
    "stamp_of_creation",
    "stamp_of_due",
    "tag_of",
    "time_of",
]

PAGE = 1000
_END = b":"  # follows every digit
_AFTER_TEXT = b"\xff"  # follows every byte of UTF-8
DIGITS = 15
BY_ID = b"fi"
"""What members begin with that name all flows, by id."""
CLAIMED, DUE = b"fc", b"fd"
"""What members begin with that say when claims end, and when flows are due."""
NOTIFIED = b"wt"
"""What members begin with that say which parent to notify, and when."""


def stamp_of(ms: int) -> bytes:
    """Return a time as 15 digits, in order."""
    return b"%015d" % (ms - FIRST_MS)


def time_of(stamp: bytes) -> int:
    """Return the time of what begins with such digits."""
    return int(stamp[:DIGITS]) + FIRST_MS


def newest_first(ms: int) -> bytes:
    """Return a time as 15 digits, the latest first."""
    return b"%015d" % (LAST_MS - ms)


def named(text: str) -> bytes:
    """Return a type or parent as part of a member: its length in bytes, and the text."""
    data = text.encode()
    return b"%d:%b" % (len(data), data)


def created_at(place: bytes) -> int:
    """Return the time of creation of an entry of a listing."""
    return LAST_MS - int(place[:DIGITS])


def stamp_of_due(head: Head) -> bytes:
    """Return the place of a head among what is due; empty if it is never due."""
    return b"" if head.due_ms is None else stamp_of(head.due_ms)


def stamp_of_creation(head: Head) -> bytes:
    """Return the place of a head in listings."""
    return newest_first(head.created_ms)


class RedisIndexEntry(NamedTuple):
    """A member of the index: its place in the order, and its record."""

    place: bytes
    id: bytes
    parent: bytes
    member: bytes


UPLOAD = "upload"
"""The kind of an entry that names the large body of a part that is gone."""


class _Expiring(NamedTuple):
    """A member of the index that says what expires, and how it is listed, if it is."""

    member: bytes
    kind: str
    status: bytes
    created_ms: int
    of: bytes
    id: bytes


_EXPIRING = re.compile(rb"x\d{15}([fw])([0-9-])(\d{15})(\d+):(.*)", re.DOTALL)
_UNLISTED = re.compile(rb"x\d{15}([nu])(.*)", re.DOTALL)


def read_expiring(member: bytes) -> _Expiring | None:
    """Read a member that begins with x; `None` if this library did not write it."""
    found = _EXPIRING.fullmatch(member)
    if found is None:
        other = _UNLISTED.fullmatch(member)
        if other is None:
            return None

        return _Expiring(member, PART if other[1] == b"n" else UPLOAD, b"-", 0, b"", other[2])

    kind, status, created, length, rest = found.groups()
    size, created_ms = int(length), LAST_MS - int(created)
    listed = FLOW if kind == b"f" else WAIT
    return _Expiring(member, listed, status, created_ms, rest[:size], rest[size:])


def tag_of(pair: tuple[str, str]) -> bytes:
    """Return a tag as part of a member."""
    key, value = pair
    return named(key) + named(value)


def ranges_of(wanted: Filter, after: tuple[int, str] | None) -> list[tuple[bytes, bytes, bytes]]:
    """Return the ranges of a listing: what their members begin with, and both ends."""
    begins = [listing_of(wanted)]
    if wanted.tags and wanted.id_prefix is None:
        statuses = range(HIGHEST_STATUS + 1) if wanted.status is None else (wanted.status,)
        begins = [b"fg%b%d" % (tag_of(wanted.tags[0]), status) for status in statuses]

    return [(begin, *_bounds(begin, wanted, after)) for begin in begins]


def listing_of(wanted: Filter) -> bytes:
    """Return what the members of a listing begin with; not of one by tags, see `ranges_of`."""
    if wanted.id_prefix is not None:
        return BY_ID

    kind, of = (b"f", wanted.type) if wanted.kind == FLOW else (b"w", wanted.parent)
    status = b"" if wanted.status is None else b"%d" % wanted.status
    if of is None:
        return kind + (b"s" + status if status else b"a")

    letter = b"b" + status if status else b"t" if wanted.kind == FLOW else b"p"
    return kind + letter + named(of)


def bounds_of(wanted: Filter, after: tuple[int, str] | None) -> tuple[bytes, bytes]:
    """Return the range of a listing, as ZRANGEBYLEX takes it; not of one by tags, see `ranges_of`."""
    return _bounds(listing_of(wanted), wanted, after)


def _bounds(begin: bytes, wanted: Filter, after: tuple[int, str] | None) -> tuple[bytes, bytes]:
    if wanted.id_prefix is not None:
        begin += wanted.id_prefix.encode()
        first = b"[" + begin if after is None else b"(" + BY_ID + after[1].encode()
        return first, b"(" + begin + _AFTER_TEXT

    first, last = b"[" + begin, b"(" + begin + _END
    if wanted.created_before_ms is not None:
        first += newest_first(wanted.created_before_ms - 1)

    if wanted.created_after_ms is not None:
        last = b"(" + begin + newest_first(wanted.created_after_ms - 1)

    if after is not None:
        seen = begin + newest_first(after[0]) + after[1].encode()
        if seen >= first[1:]:
            first = b"(" + seen

    return first, last


def begins_of_due(types: Sequence[str] | None, tags: Sequence[tuple[str, str]]) -> list[bytes]:
    """Return what members begin with that say when such flows are due; their heads say the rest."""
    if tags:
        return [b"fh" + tag_of(tags[0])]

    return [DUE] if types is None else [b"fe" + named(name) for name in types]


def bounds_of_due(
    wanted: DueFilter, after: tuple[int, str] | None = None
) -> list[tuple[bytes, bytes, bytes]]:
    """Return the ranges of a listing by due time: what their members begin with, and both ends."""
    begins = [CLAIMED if wanted.claimed else DUE]
    if not wanted.claimed:
        begins = begins_of_due(wanted.types, wanted.tags)

    found: list[tuple[bytes, bytes, bytes]] = []
    for begin in begins:
        first, last = b"[" + begin, b"(" + begin + _END
        if wanted.after_ms is not None:
            first += stamp_of(wanted.after_ms + 1)

        if wanted.until_ms is not None:
            last = b"(" + begin + stamp_of(wanted.until_ms + 1)

        if after is not None:
            seen = begin + stamp_of(after[0]) + after[1].encode()
            if seen >= first[1:]:
                first = b"(" + seen

        found.append((begin, first, last))

    return found


def is_listed(wanted: Filter, member: bytes) -> bool:
    """Return whether a listing would count the expired record of this member."""
    expiring = read_expiring(member)
    if expiring is None:
        return False

    of = wanted.type if wanted.kind == FLOW else wanted.parent
    return (
        expiring.kind == wanted.kind
        and expiring.status != b"-"
        and (wanted.status is None or expiring.status == b"%d" % wanted.status)
        and (of is None or expiring.of == of.encode())
        and (wanted.created_after_ms is None or expiring.created_ms >= wanted.created_after_ms)
        and (wanted.created_before_ms is None or expiring.created_ms < wanted.created_before_ms)
        and (wanted.id_prefix is None or expiring.id.startswith(wanted.id_prefix.encode()))
    )


class Range:
    """A range of one partition's index; `first` moves as entries are taken."""

    def __init__(self, number: int, begin: bytes, first: bytes, last: bytes) -> None:
        self.number = number
        self.begin = begin
        self.first = first
        self.last = last
        self.is_done = False

    def entries(self, members: Iterable[bytes]) -> Iterator[RedisIndexEntry]:
        """Read members; the place of an entry begins with its time, if it has one."""
        cut = len(self.begin)
        timed = self.begin[1:2] != b"i"

        for member in members:
            place = member[cut:]
            name, parent = place[DIGITS:] if timed else place, b""
            if self.begin == NOTIFIED:
                length, _, name = name.partition(b":")
                size = int(length) if length.isdigit() else 0
                parent, name = name[:size], name[size:]

            yield RedisIndexEntry(place, name, parent, member)


def merged(
    ranges: Sequence[Range], replies: Sequence[list[bytes]], page: int
) -> list[tuple[int, RedisIndexEntry]]:
    """Return the first `page` entries of all ranges, in order; each range continues after them."""
    numbered = (
        [(entry.place, place, entry) for entry in one.entries(members)]
        for place, (one, members) in enumerate(zip(ranges, replies, strict=True))
    )
    taken = [0] * len(ranges)
    found: list[tuple[int, RedisIndexEntry]] = []

    for _, place, entry in heapq.merge(*numbered):
        if len(found) == page:
            break

        found.append((ranges[place].number, entry))
        ranges[place].first = b"(" + entry.member
        taken[place] += 1

    for one, members, count in zip(ranges, replies, taken, strict=True):
        one.is_done = len(members) < page and count == len(members)

    return found
