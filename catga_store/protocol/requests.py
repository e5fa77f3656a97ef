"""The narrow store protocol: what every store can be asked, and what it answers.

A store sees records as a `Head`, which it may read, and a body, which it may not. Everything the
public API offers is built from these requests, once, above them. All times are integers, in
milliseconds since 1970-01-01T00:00Z, and every request that depends on time carries its `now_ms`.
An expired record is absent to every request.
"""

from __future__ import annotations

from typing import NamedTuple
from typing import Protocol
from typing import TypeAlias

from attrs import define

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import Key

__all__ = [
    "ANY",
    "CANCELLED",
    "CLAIMED",
    "EXISTS",
    "MAX_CHANGES",
    "MISSING",
    "PENDING",
    "REMEMBERED_COMMITS",
    "SATISFIED",
    "STALE",
    "SWEEP_EVERY",
    "SWEPT_AT_ONCE",
    "TIMED_OUT",
    "Applied",
    "Change",
    "Check",
    "Clear",
    "Commit",
    "Complete",
    "Conflict",
    "Count",
    "Delete",
    "Due",
    "Extend",
    "Filter",
    "Find",
    "Found",
    "Head",
    "Item",
    "Outcome",
    "Overdue",
    "Ping",
    "Put",
    "Read",
    "Record",
    "Refused",
    "Reply",
    "Resolve",
    "Scan",
    "Scanned",
    "SetWait",
    "Steps",
    "StoreProtocol",
    "Sweep",
    "Terms",
]

MAX_CHANGES = 200
"""At most so many records in one commit."""

REMEMBERED_COMMITS = 8
"""A record remembers the ids of so many commits that wrote it."""

SWEEP_EVERY, SWEPT_AT_ONCE = 16, 8
"""One write in 16 of a process also removes up to 8 expired records."""

PENDING, SATISFIED, TIMED_OUT, CANCELLED = range(4)
"""`Head.status` of a wait condition; the values of `WaitOutcome`."""

ANY = "*"
"""`Put.expected` of a progress record: whatever is there; the store counts the version on."""

EXISTS, STALE, MISSING, CLAIMED = "exists", "stale", "missing", "claimed"
"""`Conflict.reason`."""


# --- records ------------------------------------------------------------------------------------


class Head(NamedTuple):
    """What a store may look at. Which fields mean something depends on the kind of record."""

    version: int
    status: int
    created_ms: int
    updated_ms: int
    type: str = ""
    type_version: int = 1
    position: str = ""
    error: str | None = None
    attempts: int = 0
    owner: str | None = None
    claim: str | None = None
    """The id of the commit that claimed the flow; the owner's own writes keep it."""
    due_ms: int | None = None
    """A flow: when a worker should look at it, or its claim ends. A pending condition: its deadline.
    An ended one: since when its parent should have been told; `None` once it was."""
    expires_ms: int | None = None
    revision: str = ""
    """Unique for ever; given by the store."""
    commits: tuple[str, ...] = ()
    """The last commits that wrote the record, newest first; each made one version. Kept by the store."""

    @classmethod
    def of(cls, fields: tuple[object, ...]) -> Head:
        """A head of all its fields in order; quicker than naming them."""
        return tuple.__new__(cls, fields)  # pyright: ignore[reportUnknownMemberType]  typeshed's generic

    def stamped(self, revision: str, commits: tuple[str, ...]) -> Head:
        """The same head as of another write; quicker than `_replace`."""
        return tuple.__new__(Head, (*self[:-2], revision, commits))  # pyright: ignore[reportUnknownMemberType]  as above


class Terms(NamedTuple):
    """The definition of a wait condition, which a store must understand to decide it."""

    children: tuple[str, ...]
    any: bool
    timeout_ms: int | None = None
    parent: str | None = None


class Item(NamedTuple):
    """One child's completion."""

    child: str
    success: bool
    payload: bytes


class Record(NamedTuple):
    """A stored record; `terms` and `items` only on wait conditions."""

    head: Head
    body: bytes
    terms: Terms | None = None
    items: tuple[Item, ...] = ()


# --- changes: what a commit is made of ------------------------------------------------------------


class Put(NamedTuple):
    """Write a record if the store still holds revision `expected` (`None`: if it holds none).

    On a wait condition the store counts the completions again and works out `due_ms` and
    `expires_ms` itself; elsewhere the head is stored as given, with revision and commits added.
    """

    key: Key
    head: Head
    body: bytes
    expected: str | None
    replaces: Head | None = None
    """The head that `expected` had: what index entries there are."""
    fresh: bool = False
    """A new incarnation: what belonged to the old one (progress, completions) goes first."""
    claiming: bool = False
    """Refused as `CLAIMED` while another owner's claim has not ended."""
    keeps_body: bool = False
    """The body is the stored one; a store may spare itself writing it."""
    terms: Terms | None = None
    given: bool = False
    """The condition's parent has been given to a worker."""
    items: tuple[Item, ...] = ()
    """Completions to restore with a condition that is copied from another store."""


class SetWait(NamedTuple):
    """Create a condition, or replace the terms of a pending one; leave a closed one as it is."""

    key: Key
    terms: Terms
    created_ms: int
    rearm: bool = False
    """The parent suspends on it: if it is closed, hand the parent out (again)."""


class Delete(NamedTuple):
    """Remove a record if the store still holds revision `expected` (`None`: whatever it holds).

    A flow's progress goes with it; a condition leaves a marker for `Commit.retain_ms`.
    """

    key: Key
    expected: str | None
    replaces: Head | None = None


class Check(NamedTuple):
    """Refuse the commit unless the store holds revision `expected`.

    With `due_ms`, move the record's due time to it; neither version nor revision changes.
    """

    key: Key
    expected: str
    due_ms: int | None = None


class Complete(NamedTuple):
    """Record one child's completion on a condition. Never a reason to refuse a commit."""

    key: Key
    child: str
    success: bool
    payload: bytes


Change: TypeAlias = Put | SetWait | Delete | Check | Complete


class Outcome(NamedTuple):
    """What one change of an applied commit did; which fields are set depends on the change."""

    version: int = 0
    revision: str = ""
    status: int | None = None
    created_ms: int = 0
    satisfied: bool = False
    """This change made the condition satisfied; true once in a condition's life."""
    accepted: bool = False
    """Complete: it was counted or kept now. Delete: there was something. SetWait: it was written."""
    duplicate: bool = False
    terms: Terms | None = None
    """SetWait on a closed condition: the terms that are stored."""
    replaced: str = ""
    """Complete that satisfied: the revision that the condition had before."""


class Conflict(NamedTuple):
    """Why one change, by its place in the commit, was refused, and what the store holds instead."""

    place: int
    reason: str
    head: Head | None


class Applied(NamedTuple):
    """The commit was written, whole."""

    outcomes: tuple[Outcome, ...]


class Refused(NamedTuple):
    """Nothing of the commit was written."""

    conflicts: tuple[Conflict, ...]


Reply: TypeAlias = Applied | Refused


class Filter(NamedTuple):
    """Which records a listing or a count wants; `None` is no restriction."""

    kind: str
    status: int | None = None
    type: str | None = None
    parent: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    updated_before_ms: int | None = None


class Found(NamedTuple):
    """One entry of a listing."""

    key: Key
    head: Head


class Scanned(NamedTuple):
    """One entry of a scan of everything: a record, or completions that no condition awaits yet."""

    key: Key
    record: Record


# --- requests -----------------------------------------------------------------------------------


@define
class Read(Request[tuple[Record | None, ...]]):
    """The records under these keys, in their order; `None` where there is none."""

    keys: tuple[Key, ...]
    now_ms: int


@define
class Steps(Request[tuple[Found, ...]]):
    """The keys and heads of a flow's progress records, by step."""

    flow_id: str
    now_ms: int


@define
class Commit(Request[Reply]):
    """Apply every change, or none. Sent again with the same id, it answers as the first time.

    Raises `StoreUnavailableError` when nothing was written, `CommitUncertainError` when nobody
    can tell.
    """

    id: str
    now_ms: int
    changes: tuple[Change, ...]
    retain_ms: int | None
    """How long ended conditions, tombstones and pending completions are kept; None: forever."""

    def leaving_flows(self) -> set[str]:
        """Return the ids of flows that this commit deletes or replaces, with their progress."""
        if len(self.changes) == 1:
            return set()

        return {
            change.key.id
            for change in self.changes
            if change.key.kind == FLOW
            and (isinstance(change, Delete) or (isinstance(change, Put) and change.fresh))
        }


@define
class Resolve(Request[Applied | None]):
    """What became of a commit: its reply, or `None`, and from then on it will never be applied.

    Raises `CommitUncertainError` while the store cannot tell.
    """

    id: str
    keys: tuple[Key, ...]


@define
class Extend(Request[Head | None]):
    """Move the due time of a flow that is still under claim `claim`; answers its head, else `None`."""

    key: Key
    claim: str
    due_ms: int
    now_ms: int


@define
class Due(Request[tuple[Found, ...]]):
    """Flows whose due time has come, and conditions whose parent should be told; nearly oldest first.

    Up to `limit` of each. With `type`, only flows of that type and untyped ones, and conditions
    whose parent is such a flow or is not there.
    """

    now_ms: int
    limit: int
    type: str | None = None


@define
class Overdue(Request[tuple[Found, ...]]):
    """Pending conditions whose deadline has come, oldest deadline first."""

    now_ms: int
    limit: int | None


@define
class Find(Request[tuple[Found, ...]]):
    """A listing: newest `created_ms` first, then by id; `after` is the last entry already seen."""

    filter: Filter
    after: tuple[int, str] | None
    limit: int
    now_ms: int


@define
class Count(Request[int]):
    """How many records a listing would have."""

    filter: Filter
    now_ms: int


@define
class Scan(Request[tuple[Scanned, ...]]):
    """Every record of one kind by key, from the first key greater than `after`."""

    kind: str
    after: Key | None
    limit: int
    now_ms: int


@define
class Sweep(Request[int]):
    """Remove up to `limit` expired records; the reply is how many there were."""

    now_ms: int
    limit: int


@define
class Clear(Request[None]):
    """Remove every record of this store, under exactly its prefix."""


@define
class Ping(Request[None]):
    """Answer if the store works."""


class StoreProtocol(Protocol):
    """A store: it turns a store protocol request into a conversation over its own transport requests."""

    def converse(self, request: Request[object], /) -> Conversation[object]:
        """Do what the request asks and return its reply."""
        ...
