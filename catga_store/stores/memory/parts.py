"""The parts of one flow in memory, sorted by name, and the entries of its logs by key."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from sortedcontainers import SortedList

from catga_store.protocol.keys import is_entry
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import log_of
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Record

__all__ = ["FlowParts"]


class FlowParts:
    """Rows of parts; each write is noted before it is made, so that a transaction can be undone."""

    def __init__(self, flow_id: str, note: Callable[[Any, object], None]) -> None:
        self._flow_id = flow_id
        self._note = note
        self.rows: dict[str, Record] = {}
        self._entries: dict[tuple[str, str], int] = {}
        self.make_index()

    def make_index(self) -> None:
        """Make the index of the rows again: an interruption may have left it in any state."""
        self.names: SortedList[str] = SortedList(self.rows)

    def write(self, name: str, head: Head, body: bytes | None) -> None:
        """Insert or replace a part; a body of None keeps the body."""
        self._note(self.rows, name)
        if name not in self.rows:
            self.names.add(name)

        self.rows[name] = Record(head, self.rows[name].body if body is None else body)
        if head.position:
            logged = log_of(part_key(self._flow_id, name))
            if logged is not None:
                keyed, sequence = (logged[0], head.position), logged[1]
                self._note(self._entries, keyed)
                self._entries[keyed] = min(sequence, self._entries.get(keyed, sequence))

    def remove(self, name: str) -> None:
        """Remove a part."""
        self._note(self.rows, name)
        self.names.remove(name)
        head = self.rows.pop(name).head
        logged = log_of(part_key(self._flow_id, name)) if head.position else None
        if logged is not None and self._entries.get((logged[0], head.position)) == logged[1]:
            self._note(self._entries, (logged[0], head.position))
            del self._entries[logged[0], head.position]

    def entry(self, log: str, key: str) -> int | None:
        """Return the sequence of the entry that has this key."""
        return self._entries.get((log, key))

    def listed(self, wanted: Parts) -> list[ListedPart]:
        """Return a page of parts."""
        found: list[ListedPart] = []
        for name in self._names(wanted):
            if len(found) == wanted.limit or not name.startswith(wanted.prefix):
                break

            if self._is_shown(name, wanted):
                head, body = self.rows[name][:2]
                found.append(ListedPart(name, head, body if wanted.bodies else None))
                if wanted.until and name.endswith(wanted.until):
                    break

        return found

    def _is_shown(self, name: str, wanted: Parts) -> bool:
        if wanted.entries:
            return is_entry(name, wanted.prefix)

        return is_version(name) if wanted.versions else not is_hidden(part_key(self._flow_id, name))

    def _names(self, wanted: Parts) -> Iterator[str]:
        """Names between the bounds, in order; the order of text is that of its UTF-8 bytes."""
        first = max(wanted.prefix, wanted.after or "")
        last = wanted.before
        end = _after_all(wanted.prefix)
        if end is not None and (last is None or end < last):
            last = end

        inclusive = (wanted.after is None or first > wanted.after, False)
        return self.names.irange(first, last, inclusive=inclusive, reverse=wanted.reverse)


def _after_all(prefix: str) -> str | None:
    """The first text after all that begin with this one; None if there is none."""
    kept = prefix.rstrip(chr(0x10FFFF))
    if not kept:
        return None

    code = ord(kept[-1]) + 1
    first_surrogate, after_surrogates = 0xD800, 0xE000
    return kept[:-1] + chr(after_surrogates if code == first_surrogate else code)
