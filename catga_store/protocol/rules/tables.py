"""What the rules work on: the rows of a store, inside one transaction."""

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
"""Status of a condition row that only holds completions which came before their condition."""

TOMBSTONE = -2
"""A cleared condition leaves a row whose status is `TOMBSTONE - outcome`."""


class WaitRow(NamedTuple):
    """A condition row. `done` counts the completed children, so that a completion costs O(1)."""

    head: Head
    any: bool = False
    parent: str | None = None
    expected: int = 0
    done: int = 0


class ItemRow(NamedTuple):
    """One item of a condition: a child, a completion, or both."""

    member: bool
    done: bool
    success: bool = False


class Tables(Protocol):
    """Rows of a store, inside one transaction. A store implements this; it decides nothing.

    Methods that read return expired rows too, except where they take `now_ms`.
    """

    def layout(self) -> tuple[int, int] | None:
        """Return layout version and partitions, or None if the store was never used."""
        ...

    def lay_out(self, version: int, partitions: int) -> None:
        """Set layout version and partitions."""
        ...

    def identity(self) -> str:
        """Return a text that names this store and no other, also where it is moved; see `Identify`."""
        ...

    def head(self, key: Key) -> Head | None:
        """Return the head of a flow, progress record or part."""
        ...

    def record(self, key: Key) -> Record | None:
        """Return a whole record of any kind; a condition with the completions of its children."""
        ...

    def write(self, key: Key, head: Head, body: bytes | None, old: Head | None) -> None:
        """Insert (`old` is None) or replace a flow, progress record or part.

        A body of None keeps the body.
        """
        ...

    def replace(self, key: Key, head: Head, body: bytes | None, old: Head, commit_id: str) -> bool:
        """Replace a flow if its head is still `old`; the commits that it remembers may differ.

        The new head gets this commit as its revision, and remembers it. Return False, and write
        nothing, if the head is another one, cannot be read, or the commit is logged already.
        """
        ...

    def admit(self, commit: Commit, change: Put | Check | None) -> bool:
        """Decide a commit of parts of one flow, of which at most `change` can be refused, in one step.

        True: the flow is there and has not expired, the commit is not logged, and the store holds the
        revision that `change` expects. A `Put` is then written; one that expects no part is not looked
        at. False, and nothing is written, if any of this is not so, or always.
        """
        ...

    def add_part(self, key: Key, head: Head, body: bytes) -> bool:
        """Insert a part after `admit`. Return False, and write nothing, if there is one, or if unsure."""
        ...

    def remove(self, key: Key, old: Head) -> None:
        """Remove a flow, a progress record or a part."""
        ...

    def part(self, key: Key, now_ms: int) -> Record | None:
        """Return a part, unless its flow has expired."""
        ...

    def parts(self, wanted: Parts) -> list[ListedPart]:
        """Return a page of parts, in order, without the counters of logs; none if their flow has expired."""
        ...

    def entry(self, flow_id: str, log: str, key: str) -> int | None:
        """Return the sequence of the entry of a log that has this key, which is not empty."""
        ...

    def drop_parts(self, flow_id: str) -> None:
        """Make all parts of a flow absent, counters included, in a time that does not grow with them.

        Their rows may be removed later, by `reclaim`. New parts of the same flow are unaffected.
        """
        ...

    def reclaim(self, limit: int) -> None:
        """Remove up to `limit` rows of parts that were dropped."""
        ...

    def orphan(self, flow_id: str, expires_ms: int | None) -> None:
        """Set when the parts of a flow that does not exist may be removed; None: not at all."""
        ...

    def steps(self, flow_id: str) -> list[Found]:
        """Return the progress records of a flow, by step."""
        ...

    def wait(self, key: Key) -> WaitRow | None:
        """Return a condition row in any state."""
        ...

    def write_wait(
        self, key: Key, row: WaitRow, old: WaitRow | None, terms: Terms | None = None
    ) -> None:
        """Insert or replace a condition row; terms of None keep the terms."""
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
        """Make exactly these the children; return how many have completed, and how many succeeded."""
        ...

    def remove_items(self, key: Key) -> None:
        """Remove every item of a condition."""
        ...

    def due_flows(self, request: Due) -> list[Found]:
        """Return flows with `due_ms` at or before now, oldest first, without the expired ones."""
        ...

    def due_waits(self, request: Due) -> list[Found]:
        """Return conditions with a parent and `due_ms` at or before now, oldest first."""
        ...

    def overdue(self, now_ms: int, limit: int | None) -> list[Found]:
        """Return pending conditions with `due_ms` at or before now, oldest first, then by id."""
        ...

    def find(
        self, wanted: Filter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        """Return a page of a listing, without the expired records."""
        ...

    def count(self, wanted: Filter, now_ms: int) -> int:
        """Return the length of a listing: as many as `find` would return."""
        ...

    def list_due(
        self, wanted: DueFilter, after: tuple[int, str] | None, limit: int, now_ms: int
    ) -> list[Found]:
        """Return a page of flows by due time, then by id, without the expired ones."""
        ...

    def count_due(self, wanted: DueFilter, now_ms: int) -> int:
        """Return the length of such a listing: as many as `list_due` would return."""
        ...

    def totals(self, now_ms: int) -> Totals:
        """Return what there is, without the expired records, as the indexes say."""
        ...

    def scan(self, kind: str, after: Key | None, limit: int) -> list[Key]:
        """Return keys of one kind in order, whatever their state."""
        ...

    def expired(self, now_ms: int, limit: int) -> list[Key]:
        """Return flows and condition rows that have expired, and orphaned parts.

        Orphaned parts are one key for each flow, `part_key(flow_id, "")`.
        """
        ...

    def logged(self, commit_id: str) -> tuple[Outcome, ...] | None:
        """Return the reply of a commit, `()` if it was given up, None if it is not known."""
        ...

    def log(self, commit_id: str, at_ms: int, outcomes: tuple[Outcome, ...]) -> None:
        """Remember a commit's reply."""
        ...

    def forget_log(self, before_ms: int, limit: int) -> None:
        """Forget up to `limit` replies that are older than `before_ms`."""
        ...

    def clear(self) -> None:
        """Remove everything but the layout."""
        ...
