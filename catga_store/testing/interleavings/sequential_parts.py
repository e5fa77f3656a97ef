"""What operations on one part and one log of a flow may return when they come one after the other."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

from catga_store.model.parts import Part
from catga_store.testing.interleavings.histories import NEVER
from catga_store.testing.interleavings.histories import Event

__all__ = ["PART_STEPS", "Entry", "PartSeen", "Parts", "journalled", "seen_part"]

UNKNOWN = "unknown"
"""The revision of a write that no actor has seen yet."""


class PartSeen(NamedTuple):
    """What a reader sees of a part."""

    revision: str
    version: int
    n: int


class Entry(NamedTuple):
    """What a reader sees of an entry: its sequence, its key, and the version of the flow it came with."""

    sequence: int
    key: str | None
    version: int | None


class Parts(NamedTuple):
    """One part of the flow, and its log: how far it has counted, and the entries that are there."""

    part: PartSeen | None = None
    last: int = 0
    entries: tuple[Entry, ...] = ()


def seen_part(part: Part[Any]) -> PartSeen:
    """What a reader sees of a part."""
    n: int = part.body["n"]
    return PartSeen(part.revision or "", part.version, n)


def _appended(parts: Parts, key: str | None, version: int | None) -> tuple[Parts, int, bool]:
    for entry in parts.entries:
        if key is not None and entry.key == key:
            return parts, entry.sequence, True

    last = parts.last + 1
    entries = (*parts.entries, Entry(last, key, version))
    return parts._replace(last=last, entries=entries), last, False


def journalled(
    parts: Parts, key: str | None, n: int, version: int
) -> tuple[Parts, int, bool, bool]:
    """The parts after a commit of the flow with an entry and a part that is kept, and what these did."""
    after, sequence, duplicate = _appended(parts, key, version)
    kept = parts.part is not None
    if not kept:
        after = after._replace(part=PartSeen(UNKNOWN, 1, n))

    return after, sequence, duplicate, kept


def _append(parts: Parts, event: Event) -> Iterable[Parts]:
    """`append`: given the key; returns the sequence, and whether it was a duplicate."""
    after, *did = _appended(parts, event.given, None)
    if event.answer is NEVER or list(event.answer) == did:
        yield after


def _trim(parts: Parts, event: Event) -> Iterable[Parts]:
    """`trim_log`: given the sequence that stays first; returns how many entries went."""
    left = tuple(entry for entry in parts.entries if entry.sequence >= event.given)
    if event.answer in (NEVER, len(parts.entries) - len(left)):
        yield parts._replace(entries=left)


def _read_log(parts: Parts, event: Event) -> Iterable[Parts]:
    """`read_log`: returns every entry."""
    if event.answer in (NEVER, parts.entries):
        yield parts


def _is(stored: PartSeen, seen: object) -> bool:
    """Whether a reader may see this; the revision of a write that no actor saw may be any."""
    known = isinstance(seen, PartSeen) and stored.revision in (UNKNOWN, seen.revision)
    return known and isinstance(seen, PartSeen) and seen[1:] == stored[1:]


def _written(parts: Parts, new: PartSeen, answer: Any) -> Iterable[Parts]:
    if answer is NEVER:
        yield parts._replace(part=new)
    elif _is(new, answer):
        yield parts._replace(part=answer)


def _refused(parts: Parts, event: Event, name: str) -> Iterable[Parts]:
    actual = None if parts.part is None else parts.part.version
    if event.answer is NEVER or event.answer == ((name,), actual):
        yield parts


def _put_part(parts: Parts, event: Event) -> Iterable[Parts]:
    """`put_part` of a new part: given n; returns `PartSeen`."""
    if parts.part is not None:
        return _refused(parts, event, "PartExistsError")

    return _written(parts, PartSeen(UNKNOWN, 1, event.given), event.answer)


def _keep_part(parts: Parts, event: Event) -> Iterable[Parts]:
    """`put_part` with `keep`: given n; returns `PartSeen`, or `None` if there was one."""
    if parts.part is not None:
        return [parts] if event.answer in (NEVER, None) else []

    return _written(parts, PartSeen(UNKNOWN, 1, event.given), event.answer)


def _overwrite_part(parts: Parts, event: Event) -> Iterable[Parts]:
    """`put_part` with `overwrite`: given n; returns `PartSeen`."""
    version = 1 if parts.part is None else parts.part.version + 1
    return _written(parts, PartSeen(UNKNOWN, version, event.given), event.answer)


def _update_part(parts: Parts, event: Event) -> Iterable[Parts]:
    """`put_part` of what was read: given its revision and the new n; returns `PartSeen`."""
    revision, n = event.given
    if parts.part is None or parts.part.revision != revision:
        return _refused(parts, event, "StalePartError")

    return _written(parts, PartSeen(UNKNOWN, parts.part.version + 1, n), event.answer)


def _get_part(parts: Parts, event: Event) -> Iterable[Parts]:
    """`get_part`: returns `PartSeen` or `None`."""
    if event.answer is NEVER or (parts.part is None and event.answer is None):
        yield parts
    elif parts.part is not None and _is(parts.part, event.answer):
        yield parts._replace(part=event.answer)


def _delete_part(parts: Parts, event: Event) -> Iterable[Parts]:
    """`delete_part`: returns whether there was one."""
    if event.answer in (NEVER, parts.part is not None):
        yield parts._replace(part=None)


PART_STEPS: dict[str, Callable[[Parts, Event], Iterable[Parts]]] = {
    "append": _append,
    "delete_part": _delete_part,
    "get_part": _get_part,
    "keep_part": _keep_part,
    "overwrite_part": _overwrite_part,
    "put_part": _put_part,
    "read_log": _read_log,
    "trim": _trim,
    "update_part": _update_part,
}
