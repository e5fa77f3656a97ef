"""The unit of work: identity map, plan, settle. Pure: nothing here does I/O or reads a clock.

`Unit` holds what a session has loaded and queued. `plan` turns that into the changes of one commit,
and can be called and compared in a test; `settle` is the one place where objects take over what the
store answered. The single operations of a store plan and settle their one record with the same
functions.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from typing import TypeAlias

from attrs import define
from attrs import field
from attrs import frozen

from catga_store import envelope
from catga_store.errors import ClaimLostError
from catga_store.errors import CommitTooLargeError
from catga_store.errors import ConflictError
from catga_store.errors import CrossPartitionError
from catga_store.errors import FlowClaimedError
from catga_store.errors import FlowExistsError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import SessionClosedError
from catga_store.errors import StaleFlowError
from catga_store.errors import StaleProgressError
from catga_store.errors import StaleWaitConditionError
from catga_store.errors import UsageError
from catga_store.errors import WaitConditionNotFoundError
from catga_store.keys import FLOW
from catga_store.keys import PROGRESS
from catga_store.keys import WAIT
from catga_store.keys import Key
from catga_store.keys import partition_of
from catga_store.model import AT_ONCE
from catga_store.model import Claim
from catga_store.model import Completion
from catga_store.model import FlowSnapshot
from catga_store.model import FlowStatus
from catga_store.model import ForEachProgress
from catga_store.model import Retention
from catga_store.model import WaitCondition
from catga_store.model import WaitOutcome
from catga_store.model import from_ms
from catga_store.model import head_of
from catga_store.model import to_ms
from catga_store.records import ANY
from catga_store.records import CLAIMED
from catga_store.records import EXISTS
from catga_store.records import MAX_CHANGES
from catga_store.records import MISSING
from catga_store.records import PENDING
from catga_store.records import Change
from catga_store.records import Check
from catga_store.records import Complete
from catga_store.records import Conflict
from catga_store.records import Delete
from catga_store.records import Head
from catga_store.records import Outcome
from catga_store.records import Put
from catga_store.records import Record
from catga_store.records import SetWait

__all__ = [
    "AnyRecord",
    "Entry",
    "Intent",
    "Limits",
    "Plan",
    "Receipt",
    "Unit",
    "check_partition",
    "claimed_error",
    "completion_of",
    "conflict_error",
    "key_of",
    "plan_flow",
    "plan_progress",
    "plan_set_wait",
    "plan_update_wait",
    "receipt_of",
    "settle_flow",
    "settle_progress",
    "settle_wait",
]

AnyRecord: TypeAlias = FlowSnapshot[Any] | WaitCondition | ForEachProgress


@frozen
class Limits:
    """What planning needs to know of a store."""

    retention: Retention
    max_record_bytes: int
    partitions: int


# --- planning one record --------------------------------------------------------------------------


def plan_flow(
    flow: FlowSnapshot[Any], now_ms: int, limits: Limits, *, instead: Head | None = None
) -> Put:
    """The write of a flow as it is now; `instead`: it takes the place of another incarnation.

    Decides what the contract says of `due_at`, claims, attempts and expiry:
    a terminal flow is never due and owned by nobody; a claim ends when the flow is suspended or
    given another `due_at`, and is renewed by any other write of its owner; attempts start anew
    when position or status have changed, unless they were set by hand.
    """
    old = head_of(flow) if instead is None else None
    type_name, type_version, body = envelope.encode_flow(flow)
    _check_size(flow.key, len(body) + len(flow.error or ""), limits)

    status, position = flow.status, str(flow.position)
    due_ms, owner, claim = _due_and_owner(flow, old, now_ms)
    attempts = flow.attempts
    if old is not None and attempts == old.attempts:
        moved = position != old.position or status.value != old.status
        attempts = 0 if moved else attempts

    head = Head(
        1 if old is None else old.version + 1,
        status.value,
        _created_ms(flow, old, now_ms),
        now_ms,
        type_name,
        type_version,
        position,
        flow.error,
        attempts,
        owner,
        claim,
        due_ms,
        _expires_ms(status, now_ms, limits.retention),
    )
    if instead is not None:
        return Put(flow.key, head, body, instead.revision, instead, fresh=True)

    return Put(flow.key, head, body, None if old is None else old.revision, old)


def _due_and_owner(
    flow: FlowSnapshot[Any], old: Head | None, now_ms: int
) -> tuple[int | None, str | None, str | None]:
    status, due_at = flow.status, flow.due_at
    if status.is_terminal:
        return None, None, None

    if due_at is AT_ONCE:
        suspended = status is FlowStatus.SUSPENDED and old is None
        return None if suspended else now_ms, None, None

    due_ms = None if due_at is None else to_ms(due_at)
    if old is None or due_ms != old.due_ms:
        return due_ms, None, None

    if status is FlowStatus.SUSPENDED and old.status != status.value:
        return None, None, None

    claim = flow._claim  # noqa: SLF001  the unit of work keeps records
    if claim is not None:
        return now_ms + claim.lease_ms, old.owner, old.claim

    return due_ms, old.owner, old.claim


def _created_ms(record: FlowSnapshot[Any] | WaitCondition, old: Head | None, now_ms: int) -> int:
    if old is not None:
        return old.created_ms

    return now_ms if record.created_at is None else to_ms(record.created_at)


def _expires_ms(status: FlowStatus, now_ms: int, retention: Retention) -> int | None:
    if not status.is_terminal:
        return None

    kept = retention.failed if status is FlowStatus.FAILED else retention.flows
    return None if kept is None else now_ms + kept // timedelta(milliseconds=1)


def plan_set_wait(
    wait: WaitCondition,
    now_ms: int,
    limits: Limits,
    *,
    rearm: bool = False,
    instead: Head | None = None,
) -> SetWait | Put:
    """The setting of a condition: see `SetWait`; `instead`: it takes the place of another one."""
    terms = envelope.terms_of(wait)
    _check_size(wait.key, sum(map(len, terms.children)), limits)
    created_ms = _created_ms(wait, None, now_ms)

    if instead is not None:
        head = Head(1, PENDING, created_ms, now_ms)
        return Put(wait.key, head, b"", instead.revision, instead, fresh=True, terms=terms)

    return SetWait(wait.key, terms, created_ms, rearm)


def plan_update_wait(wait: WaitCondition, now_ms: int, limits: Limits) -> Put:
    """The version-checked write of a condition's definition and outcome."""
    old = head_of(wait)
    if old is None:
        message = f"{wait.key} has no revision: it was never stored or read; set it"
        raise UsageError(message)

    terms = envelope.terms_of(wait)
    _check_size(wait.key, sum(map(len, terms.children)), limits)
    head = Head(old.version + 1, wait.outcome.value, old.created_ms, now_ms)
    return Put(wait.key, head, b"", old.revision, old, terms=terms)


def plan_progress(
    progress: ForEachProgress, key: Key, now_ms: int, limits: Limits, *, overwrite: bool = False
) -> Put:
    """The write of a ForEach progress; it must be what was loaded unless it is to be overwritten."""
    own_key = progress._key  # noqa: SLF001  the unit of work keeps records
    if own_key is not None and own_key != key:
        message = f"this progress is that of {own_key}; make a new one for {key}"
        raise UsageError(message)

    old = head_of(progress)
    body = envelope.encode_progress(progress)
    _check_size(key, len(body), limits)
    created_ms = now_ms if old is None else old.created_ms
    head = Head(1 if old is None else old.version + 1, 0, created_ms, now_ms)
    expected = ANY if overwrite else None if old is None else old.revision
    return Put(key, head, body, expected, old)


def _check_size(key: Key, size: int, limits: Limits) -> None:
    if size > limits.max_record_bytes:
        message = (
            f"{key} takes {size} bytes, the store's limit is {limits.max_record_bytes};"
            " nothing was written; raise max_record_bytes or keep the bulk elsewhere"
        )
        raise RecordTooLargeError(message, size=size, limit=limits.max_record_bytes)


def check_partition(changes: Iterable[Change], limits: Limits) -> None:
    """Refuse a commit that spans partitions; a condition belongs to its parent's."""
    if limits.partitions == 1:
        return

    found: dict[str, int] = {}

    for change in changes:
        ids = [change.key.id]
        if type(change) in (Put, SetWait) and change.terms is not None and change.terms.parent:  # type: ignore[union-attr]  # the two that have terms
            ids.append(change.terms.parent)  # type: ignore[union-attr]  # as above

        for any_id in ids:
            found[any_id] = partition_of(any_id, limits.partitions)

    if len(set(found.values())) > 1:
        shown = ", ".join(f"{any_id!r} in {number}" for any_id, number in sorted(found.items())[:5])
        message = (
            f"one commit cannot span partitions: {shown}; give ids that belong together the same"
            " {tag}; nothing was sent"
        )
        raise CrossPartitionError(message, partitions=found)


# --- settling one record --------------------------------------------------------------------------


def settle_flow(flow: FlowSnapshot[Any], put: Put, outcome: Outcome, claim: Claim | None) -> None:
    """The object is what was written; `claim` is the one it was written under or for."""
    head = put.head._replace(
        version=outcome.version, revision=outcome.revision, created_ms=outcome.created_ms
    )
    _settle_head(flow, head, put.body, claim)


def _settle_head(flow: FlowSnapshot[Any], head: Head, body: bytes, claim: Claim | None) -> None:
    give = object.__setattr__
    give(flow, "due_at", None if head.due_ms is None else from_ms(head.due_ms))
    give(flow, "attempts", head.attempts)
    give(flow, "created_at", from_ms(head.created_ms))
    give(flow, "_loaded", Record(head, body))
    give(flow, "_claim", claim if head.claim is not None else None)


def settle_wait(wait: WaitCondition, change: Put | SetWait, outcome: Outcome, now_ms: int) -> None:
    """The object takes what is stored: its own definition, or that of a condition that is closed."""
    written = type(change) is Put or outcome.accepted
    terms = change.terms if written else outcome.terms
    assert terms is not None, "stores answer with terms"  # noqa: S101  a broken store, not bad input
    head = Head(
        outcome.version, outcome.status or 0, outcome.created_ms, now_ms, revision=outcome.revision
    )
    items = tuple(wait._results._items.values())  # noqa: SLF001  what was read stays until it is read again
    envelope.load_wait(wait, Record(head, b"", terms, items))


def settle_progress(progress: ForEachProgress, put: Put, outcome: Outcome) -> None:
    """The object is what was written."""
    give = object.__setattr__
    head = put.head._replace(
        version=outcome.version, revision=outcome.revision, created_ms=outcome.created_ms
    )
    give(progress, "_key", put.key)
    give(progress, "_loaded", Record(head, put.body))


# --- answers ------------------------------------------------------------------------------------


@frozen
class Receipt:
    """What a commit did. `versions` maps the key of each written record to its version.

    A session that had nothing to write has an empty receipt, whose `commit_id` is `None`. A
    deleted record has version 0.
    """

    commit_id: str | None = None
    versions: dict[Key, int] = field(factory=dict[Key, int])
    completions: dict[tuple[str, str], Completion] = field(
        factory=dict[tuple[str, str], Completion]
    )
    satisfied: tuple[str, ...] = ()
    """Conditions that this commit satisfied, by its completions or by setting them."""


def completion_of(outcome: Outcome) -> Completion:
    """What a completion did."""
    status = outcome.status
    return Completion(
        accepted=outcome.accepted,
        duplicate=outcome.duplicate,
        now_satisfied=outcome.satisfied,
        outcome=None if status is None else WaitOutcome(status),
    )


def receipt_of(
    commit_id: str, parts: Iterable[tuple[Key, str | None, int]], outcomes: tuple[Outcome, ...]
) -> Receipt:
    """The receipt of a commit of these parts (key, child of a completion, version).

    `outcomes` may be missing when a commit is settled long after it was sent: then the versions
    are the planned ones, and what its completions did is not known.
    """
    receipt = Receipt(commit_id)
    satisfied: list[str] = []
    known = outcomes or (None,) * len(tuple(parts))

    for (key, child, version), outcome in zip(parts, known, strict=True):
        if child is None:
            if version >= 0:
                receipt.versions[key] = outcome.version if outcome is not None and version else version
        elif outcome is not None:
            receipt.completions[key.id, child] = completion_of(outcome)

        if outcome is not None and outcome.satisfied:
            satisfied.append(key.id)

    return Receipt(commit_id, receipt.versions, receipt.completions, tuple(satisfied))


def conflict_error(change: Change, conflict: Conflict, record: AnyRecord | None) -> ConflictError:
    """The error for one refused change, with what was expected and what the store holds."""
    key, head = change.key, conflict.head
    actual = None if head is None else head.version
    replaces = change.replaces if type(change) in (Put, Delete) else None  # type: ignore[union-attr]  # those have it
    loaded = head_of(record) if record is not None else None
    read = replaces or loaded
    expected = 0 if read is None else read.version
    nothing = "nothing in this commit was written"

    if key.kind == PROGRESS:
        message = f"{key} was read at version {expected} but the store holds {actual or 'none'}; {nothing}"
        return StaleProgressError(
            message, flow_id=key.id, step_index=key.step, expected=expected, actual=actual
        )

    if key.kind == WAIT:
        if conflict.reason == MISSING:
            message = f"{key} was read at version {expected} and is gone; {nothing}"
            return WaitConditionNotFoundError(message, correlation_id=key.id, expected=expected)

        message = f"{key} was read at version {expected} but the store holds {actual}; {nothing}"
        return StaleWaitConditionError(
            message, correlation_id=key.id, expected=expected, actual=actual
        )

    if conflict.reason == EXISTS:
        message = f"{key} exists already, at version {actual}; {nothing}"
        return FlowExistsError(message, flow_id=key.id, actual=actual)

    if conflict.reason == MISSING:
        message = f"{key} was read at version {expected} and is gone; {nothing}"
        return FlowNotFoundError(message, flow_id=key.id, expected=expected)

    if conflict.reason == CLAIMED and head is not None:
        return claimed_error(key.id, head)

    facts: dict[str, Any] = {"flow_id": key.id, "expected": expected, "actual": actual}
    if isinstance(record, FlowSnapshot) and record._claim is not None:  # noqa: SLF001  the unit keeps records
        holder = f"{head.owner!r} owns it" if head is not None and head.owner else "nobody owns it"
        message = (
            f"the claim on {key} is lost: it was claimed at version {expected}, the store holds"
            f" {actual} and {holder}; {nothing}"
        )
        return ClaimLostError(message, **facts)

    message = f"{key} was read at version {expected} but the store holds {actual}"
    if actual == expected:
        message += ", of another flow that has taken its place"

    return StaleFlowError(f"{message}; {nothing}", **facts)


def claimed_error(flow_id: str, head: Head) -> FlowClaimedError:
    """Another owner's claim has not ended."""
    until = from_ms(head.due_ms or 0)
    message = f"flow {flow_id!r} is claimed by {head.owner!r} until {until.isoformat()}"
    return FlowClaimedError(message, flow_id=flow_id, owner=head.owner, until=until)


def _conflict_of(errors: list[ConflictError]) -> ConflictError:
    """What was refused: the one error, a lost claim before others, or a `ConflictError` of all."""
    if len(errors) == 1:
        return errors[0]

    lost = next((error for error in errors if isinstance(error, ClaimLostError)), None)
    shown = "; ".join(str(error) for error in errors[:5])
    error = lost or ConflictError(f"{len(errors)} records were refused: {shown}")
    error._conflicts = tuple(errors)  # noqa: SLF001  set once, here
    return error


# --- the unit of work -----------------------------------------------------------------------------


class Intent(enum.Enum):
    """What a session will do with a record at commit."""

    LOADED = "write it if it has changed"
    NEW = "create it"
    SET = "set it"
    OVERWRITE = "write it whatever is there"
    DELETED = "delete it"


@define(eq=False)
class Entry:
    """One record of the identity map."""

    key: Key
    record: AnyRecord | None
    intent: Intent
    instead: Head | None = None
    """The incarnation that a new record replaces, or that a deletion expects."""
    fresh: bool = False
    """A new progress takes the place of one that was cleared in this session."""
    rearm: bool = False
    """The condition's parent suspends on it in this session."""


@frozen
class Plan:
    """The changes of one commit, each with its entry, if it has one."""

    changes: tuple[Change, ...]
    entries: tuple[Entry | None, ...]

    @property
    def parts(self) -> tuple[tuple[Key, str | None, int], ...]:
        """Key, child of a completion, and planned version (-1: none is made) of each change."""
        return tuple(
            (
                change.key,
                change.child if type(change) is Complete else None,
                _planned_version(change),
            )
            for change in self.changes
        )


def _planned_version(change: Change) -> int:
    if type(change) is Put:
        return change.head.version

    if type(change) is SetWait:
        return 1

    return 0 if type(change) is Delete else -1


_LIFECYCLE = {
    ("open", "use"): "open",
    ("open", "commit"): "committing",
    ("open", "rollback"): "open",
    ("open", "close"): "closed",
    ("closed", "close"): "closed",
    ("closed", "rollback"): "closed",
    ("committing", "settle"): "open",
    ("committing", "refuse"): "open",
    ("committing", "lose"): "closed",
    ("committing", "close"): "closed",
}
"""What may be done to a session in which state, and where that leads; anything else is an error."""


class Unit:
    """What one session has loaded and queued."""

    def __init__(self) -> None:
        self.state = "open"
        self.why_closed = "it was closed"
        self.receipt: Receipt | None = None
        self.refusal: BaseException | None = None
        """The error of the last commit that was refused or lost."""
        self._map: dict[Key, Entry] = {}
        self._completions: dict[tuple[Key, str], Complete] = {}
        self._checks: dict[Key, AnyRecord] = {}

    def step(self, verb: str) -> None:
        """Go where the lifecycle leads; raises by name what it has no way for."""
        try:
            self.state = _LIFECYCLE[self.state, verb]
        except KeyError:
            if self.state == "closed":
                message = f"this session cannot be used: {self.why_closed}; open a new one"
                raise SessionClosedError(message) from None

            message = "this session is being committed by another task; a session belongs to one"
            raise UsageError(message) from None

    def lose(self, error: BaseException) -> None:
        """Close after a commit whose sending failed."""
        self.step("lose")
        self.why_closed = f"its commit failed with {type(error).__name__}: {error}"
        self.refusal = error
        self.forget()

    def close(self) -> None:
        """Forget everything for good."""
        self.step("close")
        self.forget()

    def rollback(self) -> None:
        """Forget everything that was loaded and queued."""
        self.step("rollback")
        self.forget()

    # the identity map -----------------------------------------------------------------------------

    def find(self, key: Key) -> Entry | None:
        """What the session knows of a key."""
        self.step("use")
        return self._map.get(key)

    def track(self, key: Key, record: AnyRecord, intent: Intent = Intent.LOADED) -> Entry:
        """Take a record into the map."""
        entry = Entry(key, record, intent)
        self._map[key] = entry
        object.__setattr__(record, "_session", self)
        return entry

    def add(self, record: object) -> Entry:
        """Queue a record: a new one is created or set, one with a revision is updated if it changes."""
        self.step("use")
        checked = _any_record(record)
        key = key_of(checked)
        entry = self._map.get(key)

        if entry is not None and entry.record is checked:
            if entry.intent is Intent.DELETED:
                self._map[key] = entry = Entry(key, checked, Intent.LOADED)

            return entry

        self._check_free(checked)
        if entry is not None and entry.intent is not Intent.DELETED:
            message = f"another object for {key} is in this session already; change that one"
            raise UsageError(message)

        if head_of(checked) is not None:
            if entry is not None:
                message = f"{key} was deleted in this session; add a new record in its place"
                raise UsageError(message)

            return self.track(key, checked)

        instead = None if entry is None else entry.instead
        entry = self.track(key, checked, Intent.SET if key.kind == WAIT else Intent.NEW)
        entry.instead = instead
        return entry

    def _check_free(self, record: AnyRecord) -> None:
        other = record._session  # noqa: SLF001  the unit of work keeps records
        if isinstance(other, Unit) and other is not self and other.state != "closed":
            message = f"{record!r} is in another open session; expunge it there first"
            raise UsageError(message)

    def save_progress(self, key: Key, progress: ForEachProgress, *, overwrite: bool) -> None:
        """Queue a ForEach progress under its step."""
        self.step("use")
        if type(progress) is not ForEachProgress:
            message = f"progress must be a ForEachProgress, not {progress!r}"
            raise UsageError(message)

        own_key = progress._key  # noqa: SLF001  the unit of work keeps records
        if own_key is not None and own_key != key:
            message = f"this progress is that of {own_key}; make a new one for {key}"
            raise UsageError(message)

        entry = self._map.get(key)
        if entry is not None and entry.record is progress:
            if overwrite or entry.intent is Intent.DELETED:
                entry.intent = Intent.OVERWRITE if overwrite else Intent.LOADED

            return

        self._check_free(progress)
        if entry is not None and entry.intent is not Intent.DELETED:
            message = f"another object for {key} is in this session already; change that one"
            raise UsageError(message)

        fresh = Intent.NEW if head_of(progress) is None else Intent.LOADED
        replaced = entry is not None
        object.__setattr__(progress, "_key", key)
        self.track(key, progress, Intent.OVERWRITE if overwrite or replaced else fresh).fresh = replaced

    def clear_progress(self, key: Key) -> None:
        """Queue the removal of a ForEach progress, whatever it holds."""
        self.step("use")
        entry = self._map.get(key)
        if entry is not None and entry.record is not None:
            object.__setattr__(entry.record, "_session", None)

        self._map[key] = Entry(key, None, Intent.DELETED)

    def delete(self, record: object) -> None:
        """Queue the deletion of a loaded record; a new one is only forgotten."""
        self.step("use")
        checked = _any_record(record)
        key = key_of(checked)
        entry = self._map.get(key)

        if entry is not None and entry.record is not checked:
            message = f"another object for {key} is in this session already; delete that one"
            raise UsageError(message)

        if entry is None:
            self._check_free(checked)
            if head_of(checked) is None:
                message = f"{key} was never stored: there is nothing to delete"
                raise UsageError(message)

        head = head_of(checked)
        if entry is not None and entry.intent in (Intent.NEW, Intent.SET) and head is None:
            self.expunge(checked)
            if entry.instead is not None:
                self._map[key] = Entry(key, None, Intent.DELETED, entry.instead)

            return

        self.track(key, checked, Intent.DELETED).instead = head
        if key.kind == FLOW:
            self._forget_progress(key.id)

    def _forget_progress(self, flow_id: str) -> None:
        for key in [key for key in self._map if key.kind == PROGRESS and key.id == flow_id]:
            gone = self._map.pop(key).record
            if gone is not None:
                object.__setattr__(gone, "_session", None)

    def complete(self, change: Complete) -> None:
        """Queue a completion; the first of a child counts."""
        self.step("use")
        self._completions.setdefault((change.key, change.child), change)

    def check(self, record: object) -> None:
        """Queue a check: commit only if this is still what was read."""
        self.step("use")
        checked = _any_record(record)
        if head_of(checked) is None:
            message = f"{checked!r} was never stored: there is nothing to check"
            raise UsageError(message)

        self._checks[key_of(checked)] = checked

    def expunge(self, record: object) -> None:
        """Forget a record and what was to happen to it; the object stays as it is."""
        self.step("use")
        checked = _any_record(record)
        key = key_of(checked)
        entry = self._map.get(key)
        if entry is None or entry.record is not checked:
            message = f"{checked!r} is not in this session"
            raise UsageError(message)

        del self._map[key]
        self._checks.pop(key, None)
        object.__setattr__(checked, "_session", None)

    def forget(self) -> None:
        """Forget everything; objects stay as they are and belong to their holders."""
        for entry in self._map.values():
            if entry.record is not None:
                object.__setattr__(entry.record, "_session", None)

        self._map.clear()
        self._completions.clear()
        self._checks.clear()

    def __contains__(self, record: object) -> bool:
        return any(
            entry.record is record and entry.intent is not Intent.DELETED
            for entry in self._map.values()
        )

    # what is pending ------------------------------------------------------------------------------

    def records(self, *intents: Intent) -> tuple[AnyRecord, ...]:
        """The records with one of these intents, in the order they came."""
        return tuple(
            entry.record
            for entry in self._map.values()
            if entry.record is not None and entry.intent in intents
        )

    def dirty(self) -> tuple[AnyRecord, ...]:
        """Loaded records whose encoding has changed."""
        return tuple(record for record in self.records(Intent.LOADED) if _has_changed(record))

    # plan and settle ------------------------------------------------------------------------------

    def plan(self, now_ms: int, limits: Limits) -> Plan:
        """The changes of one commit; raises before anything is sent."""
        pairs: list[tuple[Change, Entry | None]] = []
        idle: list[Entry] = []

        for entry in sorted(self._map.values(), key=_rank):
            change = _plan_entry(entry, now_ms, limits)
            if change is not None:
                pairs.append((change, entry))
            elif isinstance(entry.record, FlowSnapshot) and entry.record._claim is not None:  # noqa: SLF001  the unit keeps records
                idle.append(entry)

        pairs += [(change, None) for change in self._completions.values()]
        if not pairs:
            return Plan((), ())

        pairs += [(_renewal(entry, now_ms), entry) for entry in idle]
        planned = {change.key for change, _ in pairs if type(change) is not Complete}
        for key, record in self._checks.items():
            head = head_of(record)
            if key not in planned and head is not None:
                pairs.append((Check(key, head.revision), None))

        changes, entries = zip(*pairs, strict=True)
        if len(changes) > MAX_CHANGES:
            message = (
                f"this commit names {len(changes)} records, the limit is {MAX_CHANGES};"
                " nothing was sent; commit in parts"
            )
            raise CommitTooLargeError(message, size=len(changes), limit=MAX_CHANGES)

        check_partition(changes, limits)
        return Plan(changes, entries)

    def settle(
        self, commit_id: str, plan: Plan, outcomes: tuple[Outcome, ...], now_ms: int
    ) -> Receipt:
        """Every object takes over what the store answered; from here on they are clean."""
        self.step("settle")

        for change, entry, outcome in zip(plan.changes, plan.entries, outcomes, strict=True):
            if entry is not None:
                self._settle_entry(entry, change, outcome, now_ms)
            elif type(change) is Complete and outcome.satisfied:
                self._settle_satisfied(change.key, outcome)

        self._completions.clear()
        self._checks.clear()
        self.receipt = receipt_of(commit_id, plan.parts, outcomes)
        return self.receipt

    def _settle_entry(self, entry: Entry, change: Change, outcome: Outcome, now_ms: int) -> None:
        record = entry.record

        if type(change) is Delete:
            del self._map[entry.key]
            if record is not None:
                object.__setattr__(record, "_session", None)

            return

        if type(change) is Check:
            assert isinstance(record, FlowSnapshot)  # noqa: S101  only claimed flows are renewed
            _settle_renewal(record, change)
            return

        if isinstance(record, FlowSnapshot) and type(change) is Put:
            settle_flow(record, change, outcome, record._claim)  # noqa: SLF001  the unit keeps records
        elif isinstance(record, WaitCondition) and isinstance(change, Put | SetWait):
            settle_wait(record, change, outcome, now_ms)
        elif isinstance(record, ForEachProgress) and type(change) is Put:
            settle_progress(record, change, outcome)

        entry.intent, entry.instead = Intent.LOADED, None
        entry.rearm = entry.fresh = False

    def _settle_satisfied(self, key: Key, outcome: Outcome) -> None:
        entry = self._map.get(key)
        if entry is None or not isinstance(entry.record, WaitCondition):
            return

        wait, loaded = entry.record, entry.record._loaded  # noqa: SLF001  the unit keeps records
        if loaded is None:
            return

        head = loaded.head._replace(
            version=outcome.version, revision=outcome.revision, status=outcome.status or 0
        )
        if wait.outcome.value == loaded.head.status:
            object.__setattr__(wait, "outcome", WaitOutcome(head.status))

        object.__setattr__(wait, "_loaded", loaded._replace(head=head))

    def refused(self, plan: Plan, conflicts: tuple[Conflict, ...]) -> ConflictError:
        """The error of a refused commit; everything is still pending."""
        self.step("refuse")
        error = _conflict_of(
            [
                conflict_error(
                    plan.changes[conflict.index], conflict, self._record_of(plan, conflict.index)
                )
                for conflict in conflicts
            ]
        )
        self.refusal = error
        return error

    def _record_of(self, plan: Plan, index: int) -> AnyRecord | None:
        entry = plan.entries[index]
        return entry.record if entry is not None else self._checks.get(plan.changes[index].key)

    def __repr__(self) -> str:
        if self.state == "closed":
            return "closed"

        new = self.records(Intent.NEW, Intent.SET, Intent.OVERWRITE)
        deleted = sum(entry.intent is Intent.DELETED for entry in self._map.values())
        return f"dirty: {len(self.dirty())} changed, {len(new)} new, {deleted} deleted"


def key_of(record: AnyRecord) -> Key:
    """What a record is kept under; `UsageError` for a progress that has no step yet."""
    if not isinstance(record, ForEachProgress):
        return record.key

    key = record._key  # noqa: SLF001  the unit of work keeps records
    if key is None:
        message = "a new ForEachProgress has no step yet: save_for_each_progress(flow_id, step, …)"
        raise UsageError(message)

    return key


def _any_record(record: object) -> AnyRecord:
    if isinstance(record, FlowSnapshot | WaitCondition | ForEachProgress):
        return record

    message = f"{record!r} is no record: a FlowSnapshot, WaitCondition or ForEachProgress"
    raise UsageError(message)


_ORDER = {FLOW: 0, WAIT: 1, PROGRESS: 2}


def _rank(entry: Entry) -> int:
    return _ORDER[entry.key.kind]


def _has_changed(record: AnyRecord) -> bool:
    loaded = record._loaded  # noqa: SLF001  the unit of work keeps records
    if loaded is None:
        return True

    head = loaded.head
    if isinstance(record, WaitCondition):
        return envelope.terms_of(record) != loaded.terms or record.outcome.value != head.status

    if isinstance(record, ForEachProgress):
        return envelope.encode_progress(record) != loaded.body

    due_at = record.due_at
    return (
        record.status.value != head.status
        or str(record.position) != head.position
        or record.error != head.error
        or record.attempts != head.attempts
        or (None if due_at is None else to_ms(due_at)) != head.due_ms
        or not envelope.is_same_state(record, envelope.encode_flow(record)[2])
    )


def _plan_entry(entry: Entry, now_ms: int, limits: Limits) -> Change | None:
    record, intent = entry.record, entry.intent

    if intent is Intent.DELETED or record is None:
        instead = entry.instead
        return Delete(entry.key, None if instead is None else instead.revision, instead)

    if isinstance(record, FlowSnapshot):
        return _plan_flow_entry(entry, record, now_ms, limits)

    if isinstance(record, WaitCondition):
        if intent is Intent.SET:
            return plan_set_wait(record, now_ms, limits, rearm=entry.rearm, instead=entry.instead)

        return plan_update_wait(record, now_ms, limits) if _has_changed(record) else None

    if intent is Intent.LOADED and not _has_changed(record):
        return None

    overwrite = intent is Intent.OVERWRITE
    put = plan_progress(record, entry.key, now_ms, limits, overwrite=overwrite)
    return put._replace(fresh=entry.fresh)


def _plan_flow_entry(
    entry: Entry, flow: FlowSnapshot[Any], now_ms: int, limits: Limits
) -> Put | None:
    """The write of a flow, or nothing: decided on the one encoding that would be written."""
    put = plan_flow(flow, now_ms, limits, instead=entry.instead)
    old = put.replaces
    if entry.intent is not Intent.LOADED or old is None:
        return put

    head = put.head
    due_at = flow.due_at
    clean = (
        head.status == old.status
        and head.position == old.position
        and head.error == old.error
        and flow.attempts == old.attempts
        and (None if due_at is None else to_ms(due_at)) == old.due_ms
        and envelope.is_same_state(flow, put.body)
    )
    return None if clean else put


def _renewal(entry: Entry, now_ms: int) -> Check:
    record = entry.record
    assert isinstance(record, FlowSnapshot)  # noqa: S101  only claimed flows are renewed
    head, claim = head_of(record), record._claim  # noqa: SLF001  the unit keeps records
    assert head is not None  # noqa: S101  a claimed flow was read
    assert claim is not None  # noqa: S101  as above
    return Check(entry.key, head.revision, now_ms + claim.lease_ms)


def _settle_renewal(flow: FlowSnapshot[Any], change: Check) -> None:
    loaded = flow._loaded  # noqa: SLF001  the unit keeps records
    assert loaded is not None  # noqa: S101  a claimed flow was read
    head = loaded.head._replace(due_ms=change.due_ms)
    _settle_head(flow, head, loaded.body, flow._claim)  # noqa: SLF001  the unit keeps records
