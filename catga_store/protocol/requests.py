"""The store protocol: what every store is asked, and what it replies.

A store sees a record as a `Head`, which it may read, and a body, which it may not. Everything that
the public API offers is built from these requests, once, above them. All times are integers, in
milliseconds since 1970-01-01T00:00Z, and every request that depends on time carries its `now_ms`.
An expired record is absent for every request.

The file is over 400 lines because it is the whole vocabulary of the protocol, which an author of a
store reads from top to bottom: records, changes, replies, requests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from typing import NamedTuple
from typing import TypeAlias
from typing import final

from attrs import define

from catga_store.errors import CorruptRecordError
from catga_store.protocol.chance import choices
from catga_store.protocol.conversation import Request
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import Key

__all__ = [
    "ANY",
    "CANCELLED",
    "CLAIMED",
    "ENDED",
    "EXISTS",
    "FIRST_MS",
    "HIGHEST_STATUS",
    "IF_ABSENT",
    "LAST_MS",
    "LOWEST_STATUS",
    "MAX_CHANGES",
    "MISSING",
    "NO_STATUS",
    "PENDING",
    "REMEMBERED_COMMITS",
    "REPORTS",
    "SATISFIED",
    "STALE",
    "SWEEP_EVERY",
    "SWEPT_AT_ONCE",
    "TIMED_OUT",
    "Append",
    "Applied",
    "Change",
    "Check",
    "Clear",
    "Commit",
    "Complete",
    "Conflict",
    "Count",
    "CountDue",
    "Delete",
    "Due",
    "DueFilter",
    "DueWaits",
    "Extend",
    "Filter",
    "Find",
    "Found",
    "Head",
    "Identify",
    "Item",
    "ListDue",
    "ListedPart",
    "Outcome",
    "Overdue",
    "Parts",
    "Ping",
    "Put",
    "Read",
    "Record",
    "Refused",
    "RemoveParts",
    "Reply",
    "Resolve",
    "Scan",
    "Scanned",
    "SetWait",
    "Stats",
    "Steps",
    "Sweep",
    "Terms",
    "Totals",
    "has_tags",
    "head_from",
]

MAX_CHANGES = 200
"""The most records in one commit."""

REMEMBERED_COMMITS = 8
"""How many ids of the commits that wrote it a record remembers."""

SWEEP_EVERY, SWEPT_AT_ONCE = 16, 8
"""One write in 16 of a process also removes up to 8 expired records."""

PENDING, SATISFIED, TIMED_OUT, CANCELLED = range(4)
"""`Head.status` of a wait condition; the values of `WaitOutcome`."""

LOWEST_STATUS, HIGHEST_STATUS = -5, 6
"""The lowest `Head.status` of any record, which a condition may have, and the highest, that of a flow."""

FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999, which every time of a record lies in, in milliseconds from 1970."""

NO_STATUS = 9
"""`Filter.status`: only records that are stored with a status that does not exist. A store that keeps the
status in its index alone has none: what cannot be read is found there under the status that it had."""

ANY = "*"
"""`Put.expected` of a progress record or part: any revision or none; the store increments the version.
Of a `Check`: any revision, under its claim."""

IF_ABSENT = "-"
"""`Put.expected` of a part: it is written only if there is none, and never refused."""

EXISTS, STALE, MISSING, CLAIMED = "exists", "stale", "missing", "claimed"
REPORTS = "reports"
"""`Conflict.reason`."""

ENDED = 4
"""The least `Head.status` of a flow that has ended."""


# --- records ------------------------------------------------------------------------------------


class Head(NamedTuple):
    """What a store may read of a record. Which fields have a meaning depends on the kind of record."""

    version: int
    status: int
    created_ms: int
    updated_ms: int
    type: str = ""
    type_version: int = 1
    position: str = ""
    """A flow: its position. A part: its tag; of an entry of a log, its key."""
    error: str | None = None
    attempts: int = 0
    """A flow: how often it was claimed. An entry of a log: the version of its flow that its commit made,
    0 if it made none."""
    owner: str | None = None
    claim: str | None = None
    """The id of the commit that claimed the flow; the owner's own writes keep it."""
    due_ms: int | None = None
    """A flow: when a worker should look at it, or when its claim ends. A pending condition: its
    deadline. An ended condition: since when its parent is to be notified; None once it was."""
    expires_ms: int | None = None
    reports_to: str | None = None
    """A flow: the id of the condition that it completes when it ends; see `Delete`."""
    tags: tuple[tuple[str, str], ...] = ()
    """A flow: its tags, by key."""
    revision: str = ""
    """Unique forever; set by the store: the id of the commit, perhaps with `@` and more behind it."""
    commits: tuple[str, ...] = ()
    """The last commits that wrote the record, newest first; each made one version. Kept by the store."""

    def stamped(self, revision: str, commits: tuple[str, ...]) -> Head:
        """Return the head with the revision and commits of another write; faster than `_replace`."""
        return head_from((*self[:-2], revision, commits))


head_from: Callable[[tuple[object, ...]], Head] = partial(tuple.__new__, Head)  # pyright: ignore[reportUnknownMemberType]  typeshed's generic
"""Return a head of all its fields in order: a third of what `Head(…)` costs, in every operation."""


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


def record_with_body(head: Head, body: bytes) -> Record:
    """Return a record of any kind but a wait condition: half of what `Record(…)` costs, in every reading."""
    record: Record = _new(Record, (head, body, None, ()))
    return record


_new: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  typeshed's generic


# --- changes: what a commit is made of ------------------------------------------------------------


class Put(NamedTuple):
    """Write a record if the store still holds revision `expected` (`None`: if it holds none).

    On a wait condition the store counts the completions again and computes `due_ms` and
    `expires_ms` itself. Other heads are stored as they come, with revision and commits added.
    """

    key: Key
    head: Head
    body: bytes
    expected: str | None
    replaces: Head | None = None
    """The head that had the revision `expected`: it tells which index entries exist."""
    fresh: bool = False
    """A new incarnation: what belonged to the old one (progress, parts, completions) goes first."""
    claiming: bool = False
    """Refused as `CLAIMED` while another owner's claim has not ended."""
    keeps_body: bool = False
    """The body is the stored one; a store need not write it."""
    terms: Terms | None = None
    notified: bool = False
    """The condition's parent has been notified: a worker has claimed it."""
    items: tuple[Item, ...] = ()
    """Completions to restore with a condition that is copied from another store."""


class SetWait(NamedTuple):
    """Create a condition, or replace the terms of a pending one; leave an ended one as it is."""

    key: Key
    terms: Terms
    created_ms: int
    renotify: bool = False
    """The parent suspends on it: if it has ended, the parent is notified again."""


class Delete(NamedTuple):
    """Remove a record if the store still holds revision `expected` (`None`: whatever it holds).

    The progress and the parts of a flow are absent from then on; their space may be reclaimed later. A
    condition leaves a tombstone for `Commit.retain_ms`. Without `expected`, a flow that has not ended and
    reports its end is not removed: refused as `REPORTS`, because its end belongs into the same commit.
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
    claim: str | None = None
    """With `ANY` as `expected`: the flow must be under this claim, at any revision."""


class Complete(NamedTuple):
    """Record one child's completion on a condition. Never a reason to refuse a commit."""

    key: Key
    child: str
    success: bool
    payload: bytes


class Append(NamedTuple):
    """Add the next entry to a log of a flow. Never a reason to refuse a commit.

    The entry is the part `entry_key(id, log, sequence)`. The sequence is 1 more than the version of the
    log's counter, `counter_key(id, log)`, which the store writes with it. If the log has an entry with
    the same key, which is `head.position`, nothing is written; an empty key is like no other. `head` is
    stored as it comes, with version 1, revision and commits.
    """

    key: Key
    """The name of the log, as the name of a part."""
    head: Head
    body: bytes


Change: TypeAlias = Put | SetWait | Delete | Check | Complete | Append


class Outcome(NamedTuple):
    """What one change of an applied commit did; which fields are set depends on the change."""

    version: int = 0
    """Append: the sequence of the entry, which is that of the first one if it is a duplicate."""
    revision: str = ""
    status: int | None = None
    created_ms: int = 0
    satisfied: bool = False
    """This change satisfied the condition. That is true once in the life of a condition."""
    accepted: bool = False
    """Complete: it was counted or kept now. Delete: there was something. SetWait: it was written. Put
    with `IF_ABSENT`: it was written; else version and revision are those of what is there."""
    duplicate: bool = False
    terms: Terms | None = None
    """SetWait on an ended condition: the stored terms."""
    replaced: str = ""
    """Complete that satisfied: the revision that the condition had before."""


class Conflict(NamedTuple):
    """Why the change at one place of the commit was refused, and which head the store holds."""

    place: int
    reason: str
    head: Head | None


@final
class Applied(NamedTuple):
    """Every change of the commit was written."""

    outcomes: tuple[Outcome, ...]


@final
class Refused(NamedTuple):
    """Nothing of the commit was written."""

    conflicts: tuple[Conflict, ...]


Reply: TypeAlias = Applied | Refused


class Filter(NamedTuple):
    """Which records a listing or a count includes; None means no restriction.

    Times after are inclusive, times before are not. What follows `updated_before_ms` is for flows only.
    `id_prefix` is what their ids begin with, as UTF-8 bytes.
    """

    kind: str
    status: int | None = None
    type: str | None = None
    parent: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    updated_before_ms: int | None = None
    id_prefix: str | None = None
    updated_after_ms: int | None = None
    owner: str | None = None
    error_contains: str | None = None
    """A part of the error of a flow, as it is written there."""
    attempts_at_least: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """Tags that a flow must all have. A store has an index for flows with one tag and one status, and
    looks up the first; the others it may check flow by flow."""

    @property
    def reads_heads(self) -> bool:
        """Whether it asks for what a store need not have an index for."""
        return (
            self[_FIRST_UNINDEXED:_TAGS] != _NOT_ASKED
            or self.updated_before_ms is not None
            or len(self.tags) > 1
        )

    def includes(self, head: Head) -> bool:
        """Whether a flow or condition is in the listing, as far as its head says; not if it has expired."""
        status, kind, updated_ms = self.status, self.type, head.updated_ms
        return (
            (status is None or head.status == status)
            and (kind is None or head.type == kind)
            and (self.created_after_ms is None or head.created_ms >= self.created_after_ms)
            and (self.created_before_ms is None or head.created_ms < self.created_before_ms)
            and (self.updated_after_ms is None or updated_ms >= self.updated_after_ms)
            and (self.updated_before_ms is None or updated_ms < self.updated_before_ms)
            and (self.owner is None or head.owner == self.owner)
            and (self.error_contains is None or self.error_contains in (head.error or ""))
            and (self.attempts_at_least is None or head.attempts >= self.attempts_at_least)
            and (not self.tags or has_tags(head, self.tags))
        )


_FIRST_UNINDEXED = Filter._fields.index("updated_after_ms")
_TAGS = Filter._fields.index("tags")
_NOT_ASKED = (None,) * (_TAGS - _FIRST_UNINDEXED)


def has_tags(head: Head, tags: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a flow has all these tags."""
    return all(pair in head.tags for pair in tags)


class DueFilter(NamedTuple):
    """Which flows a listing by due time includes: those due after `after_ms`, and until `until_ms`.

    None means no restriction. With `claimed`, only flows under a claim, ended or not. `types` are
    names of types, of which a flow has one.
    """

    claimed: bool
    after_ms: int | None = None
    until_ms: int | None = None
    types: tuple[str, ...] | None = None
    tags: tuple[tuple[str, str], ...] = ()

    def includes(self, head: Head) -> bool:
        """Whether a flow with this head is in the listing, unless it has expired."""
        due_ms = head.due_ms
        return (
            due_ms is not None
            and (self.after_ms is None or due_ms > self.after_ms)
            and (self.until_ms is None or due_ms <= self.until_ms)
            and (head.claim is not None or not self.claimed)
            and (self.types is None or head.type in self.types)
            and (not self.tags or has_tags(head, self.tags))
        )


class Totals(NamedTuple):
    """How much there is of what, as the indexes of a store say."""

    flows: tuple[tuple[str, int, int], ...]
    """Type, status and number of flows, for each pair that there is, in no order."""
    due: int
    """Flows whose due time has come; under a claim that has ended or under none."""
    oldest_due_ms: int | None
    """The due time of the first of them."""
    claimed: int
    """Flows under a claim that has not ended."""
    lapsed: int
    """Flows under a claim that has ended."""
    pending: int
    """Pending conditions."""
    overdue: int
    """Pending conditions whose deadline has passed."""
    calling: int
    """Conditions with a parent whose `due_ms` has come: it is to be notified, or its wait to time out."""


class Found(NamedTuple):
    """One entry of a listing."""

    key: Key
    head: Head
    error: CorruptRecordError | None = None
    """Why the head cannot be read, in a reply to `Find`, `ListDue` or `Overdue`; `head` then has no more than
    the time by which the listing can be continued after it."""
    picked: bool = False
    """Whether the store has picked this flow; see `Due.bodies`."""
    body: bytes | None = None
    """The body of a flow that was picked, if it came without another request."""

    @classmethod
    def unreadable(
        cls, key: Key, created_ms: int, error: CorruptRecordError, due_ms: int | None = None
    ) -> Found:
        """Return the entry of a flow or condition whose head cannot be read."""
        return cls(key, Head(0, 0, created_ms, created_ms, due_ms=due_ms), error)


class ListedPart(NamedTuple):
    """One part of a listing; `body` is None unless it was asked for."""

    name: str
    head: Head
    body: bytes | None


class Scanned(NamedTuple):
    """One entry of a scan: a record, or the pending completions of a condition that is not set yet."""

    key: Key
    record: Record
    error: CorruptRecordError | None = None
    """Why it cannot be read; then there is nothing in the record."""

    @classmethod
    def unreadable(cls, key: Key, error: CorruptRecordError) -> Scanned:
        """Return the entry of a record that cannot be read."""
        return cls(key, Record(Head(0, 0, 0, 0), b""), error)


# --- requests -----------------------------------------------------------------------------------


@define
class Read(Request[tuple[Record | None, ...]]):
    """Read the records under these keys, in their order; the reply has None where there is none."""

    keys: tuple[Key, ...]
    now_ms: int


@define
class Steps(Request[tuple[Found, ...]]):
    """Read the keys and heads of the progress records of a flow, by step."""

    flow_id: str
    now_ms: int


@define
class Commit(Request[Reply]):
    """Apply every change, or none. A commit that is sent again with the same id has the same reply.

    Raises `StoreUnavailableError` when nothing was written, and `CommitUncertainError` when it is
    not known whether the commit was applied.
    """

    id: str
    now_ms: int
    changes: tuple[Change, ...]
    retain_ms: int | None
    """How long ended conditions, tombstones, pending completions, and parts without a flow are kept
    from their last write; None: forever. Such parts are not absent then, but a sweep removes them."""
    history: int = 1
    """How many versions of a flow are kept, the current one included: a write of a flow keeps what it
    replaces as the part `version_key(id, version)`, and removes the versions that are too old."""

    def leaving_flows(self) -> set[str]:
        """Return the ids of flows that this commit deletes or replaces, with progress and parts."""
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
    """Settle a commit: the reply is that of the commit, or None, and then it will never be applied.

    Raises `CommitUncertainError` while the store cannot tell.
    """

    id: str
    keys: tuple[Key, ...]


@define
class Extend(Request[Head | None]):
    """Move the due time of a flow; the reply is its head, or None if `claim` is not its claim."""

    key: Key
    claim: str
    due_ms: int
    now_ms: int


@define
class Due(Request[tuple[Found, ...]]):
    """List flows that are due, and conditions whose parent is to be notified; nearly oldest first.

    Up to `limit` of each. With `types`, only flows whose type is one of these names (`""`: untyped),
    and conditions whose parent is such a flow or does not exist.
    """

    now_ms: int
    limit: int
    types: tuple[str, ...] | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """Likewise, only flows with all these tags; the first is looked up in an index."""
    within_ms: int = 0
    """Also what becomes due within that time. What has expired is decided by `now_ms` alone."""

    bodies: int = 0
    """The store may pick up to this number of the flows, at random (`picks`), and return their bodies: a claim
    then reads those no more. A body that would take another request is left out; the flow is picked all the same,
    so that flows with large bodies have their turn."""

    @property
    def until_ms(self) -> int:
        """What is due at this time, or before, is wanted."""
        return self.now_ms + self.within_ms

    def picks(self, number: int) -> frozenset[int]:
        """Draw which of this number of flows are picked, by their places."""
        if not self.bodies:
            return frozenset()

        return frozenset(choices.sample(range(number), min(self.bodies, number)))

    def wants(self, head: Head) -> bool:
        """Whether a flow is of the types and has the tags."""
        return (self.types is None or head.type in self.types) and (
            not self.tags or has_tags(head, self.tags)
        )


@define
class DueWaits(Request[tuple[tuple[Found, ...], ...]]):
    """For each of these flows, the conditions whose parent it is and that it should be notified of.

    At most `limit` of each flow, newest first. One request for all flows.
    """

    parents: tuple[str, ...]
    limit: int
    now_ms: int


@define
class Overdue(Request[tuple[Found, ...]]):
    """List pending conditions whose deadline has passed, oldest deadline first.

    One whose head cannot be read is an entry that says so (`Found.error`).
    """

    now_ms: int
    limit: int | None


@define
class Find(Request[tuple[Found, ...]]):
    """List records: newest `created_ms` first, then by id; with `id_prefix` by id alone.

    One whose head cannot be read is an entry that says so (`Found.error`).

    `after` is the last entry already seen: its `created_ms` and id. Ids are ordered as UTF-8 bytes.
    """

    filter: Filter
    after: tuple[int, str] | None
    limit: int
    now_ms: int


@define
class Count(Request[int]):
    """Count the records that `Find` would list."""

    filter: Filter
    now_ms: int


@define
class ListDue(Request[tuple[Found, ...]]):
    """List flows by their due time, the oldest first, then by id.

    `after` is the last entry already seen: its `due_ms` and id. Ids are ordered as UTF-8 bytes.
    """

    filter: DueFilter
    after: tuple[int, str] | None
    limit: int
    now_ms: int


@define
class CountDue(Request[int]):
    """Count the flows that `ListDue` would list."""

    filter: DueFilter
    now_ms: int


@define
class Stats(Request[Totals]):
    """Count everything there is; a store need not read a record for it."""

    now_ms: int


@define
class Parts(Request[tuple[ListedPart, ...]]):
    """List up to `limit` parts of a flow whose names begin with `prefix`, by the bytes of their names.

    Only names greater than `after` and less than `before`, as bytes. With `reverse`, the last ones,
    last first. With `bodies`, each with its body, as one commit wrote both. Counters of logs are left out.
    """

    flow_id: str
    prefix: str
    after: str | None
    before: str | None
    reverse: bool
    limit: int
    bodies: bool
    now_ms: int
    entries: bool = False
    """Only entries of the log whose name, with a slash, is the prefix; see `is_entry`."""
    versions: bool = False
    """Only former versions of the flow, which other listings leave out; see `is_version`."""
    until: str = ""
    """Not empty: the list ends with the first part whose name ends with this. So the last group of parts,
    whose first one is named so, is read from the end in one request, and no body of another group."""


@define
class RemoveParts(Request[int]):
    """Remove up to `limit` parts of a flow: those that `Parts` would list first.

    Returns how many there were. Counters of logs stay, so no sequence of a log comes again.
    """

    flow_id: str
    prefix: str
    before: str | None
    limit: int
    now_ms: int
    entries: bool = False


@define
class Scan(Request[tuple[Scanned, ...]]):
    """List every record of one kind by key, from the first key greater than `after`.

    Parts are listed with the counters of logs.
    """

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
    """Remove every record under exactly the prefix of this store."""


@define
class Identify(Request[str]):
    """Return a text that names this store and no other, wherever its server or file is moved.

    It is asked once, if the store has codecs that bind bodies to it.
    """


@define
class Ping(Request[None]):
    """Reply if the store works."""
