"""The index of a Redis store compared with its records, for the doctor.

Nothing is changed. Workers may write meanwhile, so what looks wrong is looked at twice.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Protocol

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import PENDING
from catga_store.stores.findings import Finding
from catga_store.stores.redis.index import DIGITS
from catga_store.stores.redis.index import newest_first
from catga_store.stores.redis.index import stamp_of
from catga_store.stores.redis.index import tag_of
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.layout import id_of
from catga_store.stores.redis.layout import read_head
from catga_store.stores.redis.sweeping import glob
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe

__all__ = ["PerformsPipes", "ask", "examine_index", "flows_of", "keys_of", "unverified"]

_PAGE = 1000
_MOST_ENTRIES = 100_000
"""Entries of one range that are compared at most, so that a doctor does not take hours."""


class PerformsPipes(Protocol):
    """A link to a server."""

    def perform(self, request: Any, /) -> tuple[object, ...]:
        """Send the commands of a `Pipe` and return the replies."""
        ...


def ask(link: PerformsPipes, args: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands, each with its second argument as its key, and return the replies."""
    if not args:
        return []

    replies = link.perform(Pipe(tuple(Command(one, one[1]) for one in args), writes=False))
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply

    return list(replies)


def _due(head: Any) -> bytes:
    return b"" if head.due_ms is None else stamp_of(head.due_ms)


_LISTED: dict[bytes, tuple[str, Callable[[Any], bytes]]] = {
    b"fa": (FLOW, lambda head: newest_first(head.created_ms)),
    b"fd": (FLOW, _due),
    b"fc": (FLOW, lambda head: b"" if head.claim is None else _due(head)),
    b"wa": (WAIT, lambda head: newest_first(head.created_ms)),
    b"wd": (WAIT, lambda head: _due(head) if head.status == PENDING else b""),
}
"""Ranges of the index whose members are a time and an id, with what the time must be."""


def examine_index(link: PerformsPipes, layout: RedisLayout) -> Iterator[Finding]:
    """Compare entries with the heads of their records, and the records with their entries."""
    entries, astray = 0, list[str]()
    records, lost = 0, list[str]()
    for number in range(layout.partitions):
        for begin in _LISTED:
            for members in _members(link, layout.index[number], begin):
                astray += unverified(link, layout, number, begin, members)
                entries += len(members)
                if entries >= _MOST_ENTRIES:
                    break

        for flows in flows_of(link, layout, number):
            lost += _unlisted(link, layout, number, flows)
            records += len(flows)
            if records >= _MOST_ENTRIES:
                break

    found = f"{entries:,} entries were compared with their records"
    if astray:
        yield Finding(
            "index",
            "warning",
            f"{found}: {len(astray):,} have no matching record, for example those of"
            f" {_named(astray)}",
            "another program has written to these keys, or the server has lost records; listings"
            " and workers skip these entries",
            "keep other programs away from these keys; if flows are missing, restore them "
            "from a backup",
        )
    else:
        yield Finding("index", "ok", found, "the index agrees with the records")

    found = f"{records:,} flows were looked up in the index"
    if lost:
        yield Finding(
            "flows",
            "problem",
            f"{found}: {len(lost):,} have missing entries, for example {_named(lost)}",
            "listings omit these flows, and workers do not claim them",
            "write each of these flows again with `update` to restore its index entries",
        )
    else:
        yield Finding("flows", "ok", found, "each flow is listed, and is claimed when it is due")


def _named(ids: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(ids[:3]))


def flows_of(link: PerformsPipes, layout: RedisLayout, number: int) -> Iterator[list[bytes]]:
    """Return the keys of a partition's flows, a page at a time."""
    return keys_of(link, layout.flow[number])


def keys_of(link: PerformsPipes, begin: bytes) -> Iterator[list[bytes]]:
    """Return the keys that begin so, a page at a time."""
    cursor = b"0"
    while True:
        args = b"SCAN", cursor, b"MATCH", glob(begin) + b"*", b"COUNT", _PAGE
        (answer,) = link.perform(Pipe((Command(args, begin),), writes=False))
        if isinstance(answer, Exception):
            raise answer

        found: Any = answer
        cursor, keys = found
        yield keys
        if int(cursor) == 0:
            return


def _unlisted(
    link: PerformsPipes, layout: RedisLayout, number: int, keys: Sequence[bytes]
) -> Iterator[str]:
    """Return the ids of flows with missing entries. Asked twice: a worker may write in between."""
    left = keys
    for _ in range(2):
        heads = ask(link, [(b"HGET", key, b"head") for key in left])
        members = [_entries(layout, number, *one) for one in zip(left, heads, strict=True)]
        index = layout.index[number]
        asked = [(b"ZSCORE", index, member) for wanted in members for member in wanted]
        scores = iter(ask(link, asked))
        present = [[next(scores) is not None for _ in wanted] for wanted in members]
        left = [key for key, found in zip(left, present, strict=True) if not all(found)]

    for key in left:
        yield repr(key.removeprefix(layout.flow[number]).decode(errors="replace"))


def _entries(layout: RedisLayout, number: int, key: bytes, text: Any) -> list[bytes]:
    """Return some of the members that a flow must have in the index."""
    name = key.removeprefix(layout.flow[number])
    try:
        head = read_head(Key(FLOW, id_of(FLOW, name)), text)
    except CorruptRecordError:
        return []  # it is gone, or reading it raises the error

    due = [] if head.due_ms is None else [b"fd" + stamp_of(head.due_ms) + name]
    if due and head.claim is not None:
        due.append(b"fc" + due[0][2:])

    created = newest_first(head.created_ms) + name
    tags = list(map(tag_of, head.tags))
    due += [b"fh" + tag + due[0][2:] for tag in tags if due]
    due += [b"fg%b%d%b" % (tag, head.status, created) for tag in tags]
    return [b"fi" + name, b"fa" + created, *due]


def _members(link: PerformsPipes, index: bytes, begin: bytes) -> Iterator[list[bytes]]:
    first = b"[" + begin
    while True:
        args = b"ZRANGEBYLEX", index, first, b"(" + begin + b":", b"LIMIT", 0, _PAGE
        (members,) = ask(link, [args])
        if members:
            yield members

        if len(members) < _PAGE:
            return

        first = b"(" + members[-1]


def unverified(
    link: PerformsPipes, layout: RedisLayout, number: int, begin: bytes, members: list[bytes]
) -> Iterator[str]:
    """Return the ids of entries that have no such record, also when asked again."""
    kind, stamp = _LISTED[begin]
    keys = layout.flow if kind == FLOW else layout.wait
    places = [member[len(begin) :] for member in members]
    heads = ask(link, [(b"HGET", keys[number] + place[DIGITS:], b"head") for place in places])
    doubtful = [
        place
        for place, text in zip(places, heads, strict=True)
        if not _is_verified(kind, place, text, stamp)
    ]
    # A worker may have written the record between the two reads: then the entry is gone as well.
    left = ask(link, [(b"ZSCORE", layout.index[number], begin + place) for place in doubtful])
    for place, score in zip(doubtful, left, strict=True):
        if score is not None:
            yield repr(place[DIGITS:].decode(errors="replace"))


def _is_verified(kind: str, place: bytes, text: Any, stamp: Callable[[Any], bytes]) -> bool:
    try:
        head = read_head(Key(kind, id_of(kind, place[DIGITS:])), text)
    except CorruptRecordError:
        return False

    return stamp(head) == place[:DIGITS]
