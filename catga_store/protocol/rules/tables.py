"""The data to which the rules are applied: the rows of a store, inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from typing import Protocol

from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Terms
from catga_store.protocol.requests import Totals

__all__ = ["PENDING_COMPLETIONS", "TOMBSTONE", "ItemRow", "Tables", "WaitRow"]


PENDING_COMPLETIONS = -1
"""The status of a condition row that contains only completions that arrived before their condition."""

TOMBSTONE = -2
"""A cleared condition leaves a row whose status is `TOMBSTONE - outcome`."""


class WaitRow(NamedTuple):
    """A condition row. `done` is the number of children that have completed, so that a completion costs O(1)."""

    head: Head
    any: bool = False
    parent: str | None = None
    expected: int = 0
    done: int = 0


class ItemRow(NamedTuple):
    """An item of a condition: a child, a completion, or both."""

    member: bool
    done: bool
    success: bool = False


class Tables(Protocol):
    """The rows of a store, inside one transaction. A store implements this interface, which decides nothing.

    Methods that read also return expired rows, unless they take `now_ms`.
    """

    def layout(self) -> tuple[int, int] | None:
        """Return the layout version and the number of partitions, or None if the store has never been used."""
        ...

    def lay_out(self, version: int, partitions: int) -> None:
        """Set the layout version and the number of partitions."""
        ...

    def identity(self) -> str:
        """Return a string that identifies this store and no other, even if the store is moved; see `Identify`."""
        ...

    def head(self, key: Key) -> Head | None:
        """Return the head of a flow, progress record or part."""
        ...

    def record(self, key: Key) -> Record | None:
        """Return a whole record of any kind; a condition includes the completions of its children."""
        ...

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        """Insert (if `old` is None) or replace a flow, progress record or part.

        If `body` is None, the stored body is kept.
        """
        ...

    def replace(self, key: Key, head: Head, body: bytes | None, old: Head, commit_id: str) -> bool:
        """Replace a flow if its head is still `old`; the commits that the head remembers may be different.

        The new head gets this commit as its revision, and remembers it. If the head is different or cannot be
        read, or if the commit is already logged, nothing is written, and the method returns False.
        """
        ...

    def admit(self, commit: Commit, change: Put | Check | None) -> bool:
        """Decide, in one step, a commit of parts of one flow, in which only `change` can be refused, if anything.

        The method returns True if the flow exists and has not expired, the commit is not logged, and the
        store has the revision that `change` expects. If `change` is a `Put`, it is then written; a `Put` that
        expects no part is not examined. Otherwise, nothing is written, and the method returns False. It may
        always return False.
        """
        ...

    def add_part(self, key: Key, head: Head, body: bytes) -> bool:
        """Insert a part after `admit`. If the part exists, or in case of doubt, write nothing and return False."""
        ...

    def remove(self, key: Key, old: Head) -> None:
        """Remove a flow, a progress record or a part."""
        ...

    def part(self, key: Key, now_ms: int) -> Record | None:
        """Return a part, unless its flow has expired."""
        ...

    def parts(self, wanted: Parts) -> list[ListedPart]:
        """Return a page of parts, in order, without counters of logs; no parts if their flow has expired."""
        ...

    def entry(self, flow_id: str, log: str, key: str) -> int | None:
        """Return the sequence of the log entry that has this key, which is not empty."""
        ...

    def drop_parts(self, flow_id: str) -> None:
        """Make all parts of a flow absent, including counters, in a time that does not depend on their number.

        Their rows may be removed later by `reclaim`. New parts of the same flow are not affected.
        """
        ...

    def reclaim(self, limit: int) -> None:
        """Remove up to `limit` rows of parts that were dropped."""
        ...

    def orphan(self, flow_id: str, expires_ms: int | None) -> None:
        """Set the time from which the parts of a flow that does not exist may be removed; None means never."""
        ...

    def steps(self, flow_id: str) -> list[Found]:
        """Return the progress records of a flow, ordered by step."""
        ...

    def wait(self, key: Key) -> WaitRow | None:
        """Return a condition row in any state."""
        ...

    def write_wait(
        self, key: Key, row: WaitRow, old: WaitRow | None, terms: Terms | None = None
    ) -> None:
        """Insert or replace a condition row. If `terms` is None, the stored terms are kept."""
        ...

    def remove_wait(self, key: Key, old: WaitRow) -> None:
        """Remove a condition row and all its items."""
        ...

    def item(self, key: Key, child: str) -> ItemRow | None:
        """Return one item of a condition."""
        ...

    def write_item(self, key: Key, child: str, row: ItemRow, payload: bytes) -> None:
        """Insert or replace one item of a condition."""
        ...

    def set_members(self, key: Key, children: Iterable[str]) -> tuple[int, int]:
        """Set the children of a condition to exactly these; return how many have completed and how many succeeded."""
        ...

    def remove_items(self, key: Key) -> None:
        """Remove all items of a condition."""
        ...

    def due_flows(self, request: Due) -> list[Found]:
        """Return flows whose `due_ms` is not after now, oldest first, without expired flows."""
        ...

    def due_waits(self, request: Due) -> list[Found]:
        """Return conditions that have a parent and whose `due_ms` is not after now, oldest first."""
        ...

    def overdue(self, now_ms: int, limit: int | None) -> list[Found]:
        """Return pending conditions whose `due_ms` is not after now, oldest first, then by id."""
        ...

    def find(
        self, wanted: Filter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        """Return a page of a listing, without expired records."""
        ...

    def count(self, wanted: Filter, now_ms: int) -> int:
        """Return the length of a listing, which is the number of records that `find` would return."""
        ...

    def list_due(
        self, wanted: DueFilter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        """Return a page of flows by due time, then by id, without expired flows."""
        ...

    def count_due(self, wanted: DueFilter, now_ms: int) -> int:
        """Return the length of such a listing, which is the number of flows that `list_due` would return."""
        ...

    def totals(self, now_ms: int) -> Totals:
        """Return the numbers of records, without expired records, according to the indexes."""
        ...

    def scan(self, kind: str, after: Key | None, limit: int) -> list[Key]:
        """Return keys of one kind in order, whatever their state."""
        ...

    def expired(self, now_ms: int, limit: int) -> list[Key]:
        """Return flows and condition rows that have expired, and orphaned parts.

        For orphaned parts, the list contains one key per flow, `part_key(flow_id, "")`.
        """
        ...

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:
        """Return the reply of a commit, `()` if the commit was given up, or None if it is not known."""
        ...

    def log(self, commit_id: str, at_ms: int, outcomes: tuple[Outcome, ...]) -> None:
        """Store the reply of a commit."""
        ...

    def forget_log(self, before_ms: int, limit: int) -> None:
        """Remove up to `limit` replies that are older than `before_ms`."""
        ...

    def clear(self) -> None:
        """Remove everything except the layout."""
        ...
