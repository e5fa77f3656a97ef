"""The store protocol: the requests to every store, and the replies.

A store sees a record as a `Head`, which it may read, and a body, which it may not read. All operations of the
public API are built from these requests, once, in the layers above. All times are integers in milliseconds
since 1970-01-01T00:00Z, and every request that depends on the time contains its `now_ms`. For every request,
an expired record is absent.

The file is over 400 lines because it is the whole vocabulary of the protocol, which an author of a store
reads from top to bottom: records, changes, replies, requests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from typing import NamedTuple
from typing import TypeAlias
from typing import TypeVar
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
    "USUAL_PUT",
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
    "applied_from",
    "from_fields",
    "has_tags",
    "head_from",
    "outcome_from",
    "put_from",
]

T = TypeVar("T", bound=tuple[Any, ...])

MAX_CHANGES = 200
"""The maximum number of records in one commit."""

REMEMBERED_COMMITS = 8
"""The maximum number of commit ids that a record keeps; see `Head.commits`."""

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
    """The part of a record that a store may read. The kind of the record determines which fields have a meaning."""

    version: int
    status: int
    created_ms: int
    updated_ms: int
    type: str = ""
    type_version: int = 1
    position: str = ""
    """Of a flow: its position. Of a part: its tag. Of a log entry: its key."""
    error: str | None = None
    attempts: int = 0
    """Of a flow: how many times it has been claimed. Of a log entry: the version of its flow that its commit
    wrote, or 0 if it did not write the flow."""
    owner: str | None = None
    claim: str | None = None
    """The id of the commit that claimed the flow; the owner's own writes keep it."""
    due_ms: int | None = None
    """Of a flow: when a worker should look at it, or when its claim ends. Of a pending condition: its deadline.
    Of a condition that has ended: the time since which its parent is to be notified; None after the
    notification."""
    expires_ms: int | None = None
    reports_to: str | None = None
    """Of a flow: the id of the condition that the flow completes when it ends; see `Delete`."""
    tags: tuple[tuple[str, str], ...] = ()
    """Of a flow: its tags, ordered by key."""
    revision: str = ""
    """A string that is never used again. The store sets it to the id of the commit, possibly followed by `@` and
    more text."""
    commits: tuple[str, ...] = ()
    """The last commits that wrote the record, newest first; each wrote one version. The store maintains this field."""

    def stamped(self, revision: str, commits: tuple[str, ...]) -> Head:
        """Return the head with the revision and commits of another write. This is faster than `_replace`."""
        return head_from((*self[:-2], revision, commits))


def from_fields(kind: type[T]) -> Callable[[tuple[object, ...]], T]:
    """Return what makes a tuple of this kind from all its fields in order: it costs a third to half of its class."""
    return partial(tuple.__new__, kind)  # pyright: ignore[reportUnknownMemberType]  typeshed's generic


head_from = from_fields(Head)


class Terms(NamedTuple):
    """The definition of a wait condition, which a store must understand to decide when the wait ends."""

    children: tuple[str, ...]
    any: bool
    timeout_ms: int | None = None
    parent: str | None = None


class Item(NamedTuple):
    """The completion of one child."""

    child: str
    success: bool
    payload: bytes


class Record(NamedTuple):
    """A stored record. Only wait conditions have `terms` and `items`."""

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
    """Write a record if the store still has the revision `expected` (`None`: if it has no such record).

    For a wait condition, the store counts the completions again and computes `due_ms` and `expires_ms`
    itself. Other heads are stored as they are, with the revision and commits added.
    """

    key: Key
    head: Head
    body: bytes
    expected: str | None
    replaces: Head | None = None
    """The head that had the revision `expected`, which shows which index entries exist."""
    fresh: bool = False
    """A new incarnation: everything that belonged to the old one (progress, parts, completions) is removed first."""
    claiming: bool = False
    """The change is refused as `CLAIMED` while another owner has a claim that has not ended."""
    keeps_body: bool = False
    """The body is the stored body, so a store does not have to write it."""
    terms: Terms | None = None
    notified: bool = False
    """The parent of the condition has been notified: a worker has claimed it."""
    items: tuple[Item, ...] = ()
    """Completions that are restored with a condition that is copied from another store."""


put_from = from_fields(Put)
USUAL_PUT = tuple(Put._field_defaults.values())[1:]
"""The fields of a `Put` after `replaces`, as most have them."""


class SetWait(NamedTuple):
    """Create a condition, or replace the terms of a pending condition; leave a condition that has ended as it is."""

    key: Key
    terms: Terms
    created_ms: int
    renotify: bool = False
    """The parent suspends on the condition: if the condition has ended, the parent is notified again."""


class Delete(NamedTuple):
    """Remove a record if the store still has the revision `expected` (`None`: whatever it has).

    From then on, the progress and the parts of a flow are absent; their space may be reclaimed later. A
    condition leaves a tombstone for `Commit.retain_ms`. Without `expected`, a flow that has not ended and
    reports its end is not removed but refused as `REPORTS`, because its report belongs in the same commit.
    """

    key: Key
    expected: str | None
    replaces: Head | None = None


class Check(NamedTuple):
    """Refuse the commit unless the store has the revision `expected`.

    With `due_ms`, the record's due time is changed to this time; its version and revision do not change.
    """

    key: Key
    expected: str
    due_ms: int | None = None
    claim: str | None = None
    """If `expected` is `ANY`, the flow must have this claim, at any revision."""


class Complete(NamedTuple):
    """Record the completion of one child on a condition. This change is never a reason to refuse a commit."""

    key: Key
    child: str
    success: bool
    payload: bytes


class Append(NamedTuple):
    """Add the next entry to a log of a flow. This change is never a reason to refuse a commit.

    The entry is the part `entry_key(id, log, sequence)`. The sequence is 1 more than the version of the log's
    counter, `counter_key(id, log)`, which the store writes together with the entry. If the log has an entry
    with the same key, which is `head.position`, nothing is written; an empty key does not match any other
    key. `head` is stored as it is, with version 1 and the revision and commits added.
    """

    key: Key
    """The name of the log, in the form of the name of a part."""
    head: Head
    body: bytes


Change: TypeAlias = Put | SetWait | Delete | Check | Complete | Append


class Outcome(NamedTuple):
    """The effect of one change of an applied commit. The change determines which fields are set."""

    version: int = 0
    """Of `Append`: the sequence of the entry; for a duplicate, the sequence of the first entry."""
    revision: str = ""
    status: int | None = None
    created_ms: int = 0
    satisfied: bool = False
    """Whether this change satisfied the condition, which happens only once in the life of a condition."""
    accepted: bool = False
    """Of `Complete`: it was counted or kept now. Of `Delete`: a record existed. Of `SetWait`: it was written. Of
    `Put` with `IF_ABSENT`: it was written; otherwise, the version and revision are those of the existing
    record."""
    duplicate: bool = False
    terms: Terms | None = None
    """Of `SetWait` on a condition that has ended: the stored terms."""
    replaced: str = ""
    """Of a `Complete` that satisfied the condition: the previous revision of the condition."""


outcome_from = from_fields(Outcome)


class Conflict(NamedTuple):
    """Why the change at one place in the commit was refused, and which head the store has."""

    place: int
    reason: str
    head: Head | None


@final
class Applied(NamedTuple):
    """All changes of the commit were written."""

    outcomes: tuple[Outcome, ...]


applied_from = from_fields(Applied)


@final
class Refused(NamedTuple):
    """No change of the commit was written."""

    conflicts: tuple[Conflict, ...]


Reply: TypeAlias = Applied | Refused


class Filter(NamedTuple):
    """Which records a listing or a count includes; None means no restriction.

    The fields `..._after_ms` are inclusive, and the fields `..._before_ms` are exclusive. The fields that
    follow `updated_before_ms` apply only to flows. `id_prefix` is the beginning of the ids, as UTF-8 bytes.
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
    """A substring of the error of a flow; case matters."""
    attempts_at_least: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """Tags, all of which a flow must have. A store has an index of flows by one tag and one status, in which it
    looks up the first tag; it may check the other tags flow by flow."""

    @property
    def reads_heads(self) -> bool:
        """Whether the filter contains a restriction for which a store does not have to have an index."""
        return (
            self[_FIRST_UNINDEXED:_TAGS] != _NOT_ASKED
            or self.updated_before_ms is not None
            or len(self.tags) > 1
        )

    def includes(self, head: Head) -> bool:
        """Return whether the filter includes a flow or condition with this head, apart from expiry."""
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
    """Return whether a flow has all of these tags."""
    return all(pair in head.tags for pair in tags)


class DueFilter(NamedTuple):
    """Which flows a listing by due time includes: flows that are due after `after_ms` and no later than `until_ms`.

    None means no restriction. With `claimed`, the listing includes only flows with a claim, whether or not
    the claim has ended. `types` are type names, one of which a flow must have.
    """

    claimed: bool
    after_ms: int | None = None
    until_ms: int | None = None
    types: tuple[str, ...] | None = None
    tags: tuple[tuple[str, str], ...] = ()

    def includes(self, head: Head) -> bool:
        """Return whether the listing includes a flow with this head, unless it has expired."""
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
    """The numbers of records in several categories, according to the indexes of a store."""

    flows: tuple[tuple[str, int, int], ...]
    """The type, status and number of flows, for each pair that exists, in no particular order."""
    due: int
    """Flows whose due time has come; they have no claim, or a claim that has ended."""
    oldest_due_ms: int | None
    """The earliest due time among these flows."""
    claimed: int
    """Flows with a claim that has not ended."""
    lapsed: int
    """Flows with a claim that has ended."""
    pending: int
    """Pending conditions."""
    overdue: int
    """Pending conditions whose deadline has passed."""
    calling: int
    """Conditions with a parent, whose `due_ms` has come: the parent is to be notified, or the wait is to time out."""


class Found(NamedTuple):
    """One entry in a listing."""

    key: Key
    head: Head
    error: CorruptRecordError | None = None
    """Why the head cannot be read, in a reply to `Find`, `ListDue` or `Overdue`. In this case, `head` contains
    only the time from which the listing can be continued."""
    picked: bool = False
    """Whether the store has picked this flow; see `Due.bodies`."""
    body: bytes | None = None
    """The body of a flow that was picked, if it was read without a further request."""

    @classmethod
    def unreadable(
        cls, key: Key, created_ms: int, error: CorruptRecordError, due_ms: int | None = None
    ) -> Found:
        """Return the entry for a flow or condition whose head cannot be read."""
        return cls(key, Head(0, 0, created_ms, created_ms, due_ms=due_ms), error)


class ListedPart(NamedTuple):
    """One part in a listing; `body` is None unless bodies were requested."""

    name: str
    head: Head
    body: bytes | None


class Scanned(NamedTuple):
    """One entry in a scan: a record, or the pending completions of a condition that has not been set yet."""

    key: Key
    record: Record
    error: CorruptRecordError | None = None
    """Why the record cannot be read; in this case, `record` is empty."""

    @classmethod
    def unreadable(cls, key: Key, error: CorruptRecordError) -> Scanned:
        """Return the entry for a record that cannot be read."""
        return cls(key, Record(Head(0, 0, 0, 0), b""), error)


# --- requests -----------------------------------------------------------------------------------


@define
class Read(Request[tuple[Record | None, ...]]):
    """Read the records with these keys, in this order; the reply contains None for each record that is absent."""

    keys: tuple[Key, ...]
    now_ms: int


@define
class Steps(Request[tuple[Found, ...]]):
    """Read the keys and heads of a flow's progress records, ordered by step."""

    flow_id: str
    now_ms: int


@define
class Commit(Request[Reply]):
    """Apply all changes or none. A commit that is sent again with the same id gets the same reply.

    Raises `StoreUnavailableError` if nothing was written, and `CommitUncertainError` if it is not known
    whether the commit was applied.
    """

    id: str
    now_ms: int
    changes: tuple[Change, ...]
    retain_ms: int | None
    """How long conditions that have ended, tombstones, pending completions, and parts without a flow are kept
    after their last write; None means forever. Such parts do not become absent after this time, but a sweep
    removes them."""
    history: int = 1
    """How many versions of a flow are kept, including the current version. A write of a flow keeps the version
    that it replaces as the part `version_key(id, version)`, and removes versions that are too old."""

    def leaving_flows(self) -> set[str]:
        """Return the ids of flows that this commit deletes or replaces, together with their progress and parts."""
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
    """Resolve a commit: the reply is the commit's reply, or None if the commit will never be applied.

    Raises `CommitUncertainError` while the store cannot determine the outcome.
    """

    id: str
    keys: tuple[Key, ...]


@define
class Extend(Request[Head | None]):
    """Change the due time of a flow; the reply is its head, or None if the flow does not have the claim `claim`."""

    key: Key
    claim: str
    due_ms: int
    now_ms: int


@define
class Due(Request[tuple[Found, ...]]):
    """List flows that are due and conditions whose parent is to be notified, roughly oldest first.

    The reply contains up to `limit` of each. With `types`, it contains only flows whose type is one of these
    names (`""` means no type), and conditions whose parent is such a flow or does not exist.
    """

    now_ms: int
    limit: int
    types: tuple[str, ...] | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """In the same way, only flows that have all of these tags; the first tag is looked up in an index."""
    within_ms: int = 0
    """Also include what becomes due within this time. Expiry is determined by `now_ms` alone."""

    bodies: int = 0
    """The store may pick up to this number of the flows, at random (`picks`), and return their bodies, so that a
    claim does not have to read them. A body that would take a further request is omitted, but its flow is
    still picked, so that flows with large bodies also get their turn."""

    @property
    def until_ms(self) -> int:
        """The latest due time that the listing includes."""
        return self.now_ms + self.within_ms

    def picks(self, number: int) -> frozenset[int]:
        """Draw the flows that are picked out of this number of flows, and return their places."""
        if not self.bodies:
            return frozenset()

        return frozenset(choices.sample(range(number), min(self.bodies, number)))

    def wants(self, head: Head) -> bool:
        """Return whether a flow has one of the types and all of the tags."""
        return (self.types is None or head.type in self.types) and (
            not self.tags or has_tags(head, self.tags)
        )


@define
class DueWaits(Request[tuple[tuple[Found, ...], ...]]):
    """For each of these flows, list the conditions of which it is the parent and should be notified.

    The reply contains up to `limit` conditions of each flow, newest first. There is one request for all
    flows.
    """

    parents: tuple[str, ...]
    limit: int
    now_ms: int


@define
class Overdue(Request[tuple[Found, ...]]):
    """List pending conditions whose deadline has passed, earliest deadline first.

    A condition whose head cannot be read has an entry with `Found.error`.
    """

    now_ms: int
    limit: int | None


@define
class Find(Request[tuple[Found, ...]]):
    """List records by `created_ms`, newest first, then by id; with `id_prefix`, by id alone.

    A record whose head cannot be read has an entry with `Found.error`. `after` is the `created_ms` and the id
    of the last entry that was listed before. Ids are ordered by their UTF-8 bytes.
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
    """List flows by due time, earliest first, then by id.

    `after` is the `due_ms` and the id of the last entry that was listed before. Ids are ordered by their
    UTF-8 bytes.
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
    """Count all records; a store does not have to read any record for this."""

    now_ms: int


@define
class Parts(Request[tuple[ListedPart, ...]]):
    """List up to `limit` parts of a flow whose names begin with `prefix`, ordered by the bytes of their names.

    Only names greater than `after` and less than `before` are listed, compared as bytes. With `reverse`, the
    last parts are listed, in descending order. With `bodies`, each part has its body, and both come from the
    same commit. Counters of logs are omitted.
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
    """Only entries of the log whose name, followed by a slash, is the prefix; see `is_entry`."""
    versions: bool = False
    """Only earlier versions of the flow, which other listings omit; see `is_version`."""
    until: str = ""
    """If this is not empty, the list ends with the first part whose name ends with this text. The last group of
    parts, whose first part has such a name, can therefore be read from the end in one request, without bodies
    of other groups."""
    brief: bool = False
    """Only the version, `created_ms`, position and revision of each head are used: the other fields may be those of
    any head. These four are enough to write a part again."""


@define
class RemoveParts(Request[int]):
    """Remove up to `limit` parts of a flow: the parts that `Parts` would list first.

    The reply is the number of parts that were removed. Counters of logs are kept, so no sequence of a log is
    used again.
    """

    flow_id: str
    prefix: str
    before: str | None
    limit: int
    now_ms: int
    entries: bool = False


@define
class Scan(Request[tuple[Scanned, ...]]):
    """List all records of one kind, ordered by key, starting with the first key greater than `after`.

    Parts are listed together with the counters of logs.
    """

    kind: str
    after: Key | None
    limit: int
    now_ms: int


@define
class Sweep(Request[int]):
    """Remove up to `limit` expired records; the reply is the number of records that were removed."""

    now_ms: int
    limit: int


@define
class Clear(Request[None]):
    """Remove all records with exactly the prefix of this store."""


@define
class Identify(Request[str]):
    """Return a string that identifies this store and no other, even if its server or file is moved.

    It is requested once, if the store has codecs that bind bodies to the store.
    """


@define
class Ping(Request[None]):
    """Reply if the store works."""
