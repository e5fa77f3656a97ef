"""Planning the write of one record, settling it, and naming what was refused. Pure.

The single operations of a store and the unit of work use the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from typing import TypeAlias

from attrs import field
from attrs import frozen

from catga_store.core import envelope
from catga_store.errors import ClaimLostError
from catga_store.errors import ConflictError
from catga_store.errors import CrossPartitionError
from catga_store.errors import FlowClaimedError
from catga_store.errors import FlowExistsError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import StaleFlowError
from catga_store.errors import StaleProgressError
from catga_store.errors import StaleWaitConditionError
from catga_store.errors import UsageError
from catga_store.errors import WaitConditionNotFoundError
from catga_store.model.flows import Claim
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.listings import Retention
from catga_store.model.progress import ForEachProgress
from catga_store.model.records_head import head_of
from catga_store.model.times import AT_ONCE
from catga_store.model.times import from_ms
from catga_store.model.times import to_ms
from catga_store.model.waits import Completion
from catga_store.model.waits import UnreadResults
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import partition_of
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import EXISTS
from catga_store.protocol.requests import MISSING
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import SetWait

__all__ = [
    "AnyRecord",
    "Limits",
    "Receipt",
    "check_flag",
    "check_partition",
    "claimed_error",
    "completion_of",
    "conflict_error",
    "conflict_of",
    "due_ms_of",
    "parts_of",
    "plan_flow",
    "plan_progress",
    "plan_set_wait",
    "plan_update_wait",
    "receipt_of",
    "settle_end",
    "settle_flow",
    "settle_head",
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
    given another `due_at`, and is renewed by any other write of its owner; attempts start again
    when position or status have changed, unless they were set by hand.
    """
    # Every write of a flow comes by here: what would call a function to no end does not.
    loaded = flow._loaded
    old = None if loaded is None or instead is not None else loaded.head
    key, status, error = flow._key, flow.status, flow.error
    type_name, type_version, body = envelope.encode_flow(flow)
    position = str(flow.position)
    size = len(body) + len(position)
    if error is not None:
        size += len(error.encode())

    if size > limits.max_record_bytes:
        raise _too_large(key, size, limits)

    ends = status.is_terminal
    due_ms, owner, claim = (None, None, None) if ends else _due_and_owner(flow, old, now_ms)
    attempts, number = flow.attempts, status._value_
    if old is not None and attempts == old.attempts:
        moved = position != old.position or number != old.status
        attempts = 0 if moved else attempts

    head = Head.of(
        (
            1 if old is None else old.version + 1,
            number,
            _created_ms(flow, now_ms) if old is None else old.created_ms,
            now_ms,
            type_name,
            type_version,
            position,
            error,
            attempts,
            owner,
            claim,
            due_ms,
            _expires_ms(status, now_ms, limits.retention) if ends else None,
            "",
            (),
        )
    )
    if instead is not None:
        return Put(key, head, body, instead.revision, instead, fresh=True)

    return Put(key, head, body, None if old is None else old.revision, old)


def _due_and_owner(
    flow: FlowSnapshot[Any], old: Head | None, now_ms: int
) -> tuple[int | None, str | None, str | None]:
    status, due_at = flow.status, flow.due_at
    if due_at == AT_ONCE:
        suspended = status is FlowStatus.SUSPENDED and old is None
        return None if suspended else now_ms, None, None

    due_ms = None if due_at is None else due_ms_of(flow, old)
    if old is None or due_ms != old.due_ms:
        return due_ms, None, None

    if status is FlowStatus.SUSPENDED and old.status != status._value_:
        return None, None, None

    claim = flow._claim
    if claim is not None:
        return now_ms + claim.lease_ms, old.owner, old.claim

    return due_ms, old.owner, old.claim


def due_ms_of(flow: FlowSnapshot[Any], old: Head | None) -> int | None:
    """The `due_at` that the object says; cheap where it still is what was read."""
    due_at = flow.due_at
    if due_at is None:
        return None

    if old is not None and old.due_ms is not None and due_at is from_ms(old.due_ms):
        return old.due_ms

    return to_ms(due_at)


def _created_ms(record: FlowSnapshot[Any] | WaitCondition, now_ms: int) -> int:
    return now_ms if record.created_at is None else to_ms(record.created_at)


def _expires_ms(status: FlowStatus, now_ms: int, retention: Retention) -> int | None:
    """When a flow that has ended expires."""
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
    _check_size(wait.key, len("".join(terms.children).encode()), limits)
    created_ms = _created_ms(wait, now_ms)

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

    if wait.outcome.value == PENDING and old.status != PENDING:
        message = (
            f"{wait.key} has ended and cannot be opened again: its end was told already;"
            " clear it and set a new one"
        )
        raise UsageError(message)

    terms = envelope.terms_of(wait)
    _check_size(wait.key, len("".join(terms.children).encode()), limits)
    head = Head(old.version + 1, wait.outcome.value, old.created_ms, now_ms)
    return Put(wait.key, head, b"", old.revision, old, terms=terms)


def plan_progress(
    progress: ForEachProgress, key: Key, now_ms: int, limits: Limits, *, overwrite: bool = False
) -> Put:
    """The write of a ForEach progress; it must be what was loaded unless it is to be overwritten."""
    own_key = progress._key
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
        raise _too_large(key, size, limits)


def _too_large(key: Key, size: int, limits: Limits) -> RecordTooLargeError:
    message = (
        f"{key} takes {size} bytes, the store's limit is {limits.max_record_bytes};"
        " nothing was written; raise max_record_bytes or keep the bulk elsewhere"
    )
    return RecordTooLargeError(message, size=size, limit=limits.max_record_bytes)


def check_flag(value: object, name: str) -> None:
    """Raise `UsageError` unless it is `True` or `False`."""
    if type(value) is not bool:
        message = f"{name} must be True or False, not {value!r}"
        raise UsageError(message)


def check_partition(changes: Iterable[Change], limits: Limits) -> None:
    """Refuse a commit that spans partitions; a condition belongs to its parent's."""
    if limits.partitions == 1:
        return

    found: dict[str, int] = {}

    for change in changes:
        ids = [change.key.id]
        if isinstance(change, Put | SetWait) and change.terms is not None and change.terms.parent:
            ids.append(change.terms.parent)

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
    settle_head(flow, put.head.stamped(outcome.revision, ()), put.body, claim)


def settle_head(flow: FlowSnapshot[Any], head: Head, body: bytes, claim: Claim | None) -> None:
    """The object is this head and body, under this claim if the head has one."""
    _set_due_at(flow, None if head.due_ms is None else from_ms(head.due_ms))
    _set_attempts(flow, head.attempts)
    _set_loaded(flow, Record(head, body))
    _set_claim(flow, claim if head.claim is not None else None)


# Half of what `object.__setattr__` costs.
_set_due_at, _set_attempts, _set_loaded, _set_claim = (
    vars(FlowSnapshot)[name].__set__ for name in ("due_at", "attempts", "_loaded", "_claim")
)


def settle_wait(wait: WaitCondition, change: Put | SetWait, outcome: Outcome, now_ms: int) -> None:
    """The object takes what is stored: its own definition, or that of a condition that is closed."""
    written = isinstance(change, Put) or outcome.accepted
    terms = change.terms if written else outcome.terms
    assert terms is not None, "stores answer with terms"
    head = Head(
        outcome.version, outcome.status or 0, outcome.created_ms, now_ms, revision=outcome.revision
    )
    results = wait._results
    envelope.load_wait(wait, Record(head, b"", terms, tuple(results._items.values())))
    if isinstance(results, UnreadResults):
        object.__setattr__(wait, "_results", results)


def settle_end(wait: WaitCondition, outcome: Outcome) -> None:
    """The copy on a claimed flow is of the write that has marked its parent as told."""
    loaded = wait._loaded
    assert loaded is not None, "it was read"
    head = loaded.head._replace(version=outcome.version, revision=outcome.revision)
    object.__setattr__(wait, "_loaded", loaded._replace(head=head))


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


def parts_of(changes: Iterable[Change]) -> tuple[tuple[Key, str | None, int], ...]:
    """Key, child of a completion, and planned version (-1: none is made) of each change."""
    return tuple(
        (
            change.key,
            change.child if isinstance(change, Complete) else None,
            _planned_version(change),
        )
        for change in changes
    )


def _planned_version(change: Change) -> int:
    if isinstance(change, Put):
        return change.head.version

    if isinstance(change, SetWait):
        return 1

    return 0 if isinstance(change, Delete) else -1


def receipt_of(
    commit_id: str, parts: Iterable[tuple[Key, str | None, int]], outcomes: tuple[Outcome, ...]
) -> Receipt:
    """The receipt of a commit of these parts (key, child of a completion, version).

    `outcomes` may be missing when a commit is settled long after it was sent: then the versions
    are the planned ones, and what its completions did is not known.
    """
    versions: dict[Key, int] = {}
    completions: dict[tuple[str, str], Completion] = {}
    satisfied: list[str] = []
    places = tuple(parts)

    for (key, child, planned), outcome in zip(
        places, outcomes or (None,) * len(places), strict=True
    ):
        if child is None:
            if planned >= 0:
                versions[key] = outcome.version if outcome is not None and planned else planned
        elif outcome is not None:
            completions[key.id, child] = completion_of(outcome)
            if outcome.satisfied and key in versions:
                versions[key] = outcome.version

        if outcome is not None and outcome.satisfied:
            satisfied.append(key.id)

    return Receipt(commit_id, versions, completions, tuple(satisfied))


def conflict_error(  # noqa: PLR0911  one return for each row of the table of conflicts
    change: Change, conflict: Conflict, record: AnyRecord | None
) -> ConflictError:
    """The error for one refused change, with what was expected and what the store holds."""
    key, head = change.key, conflict.head
    actual = None if head is None else head.version
    replaces = change.replaces if isinstance(change, Put | Delete) else None
    loaded = head_of(record) if record is not None else None
    read = replaces or loaded
    expected = 0 if read is None else read.version
    nothing = "nothing in this commit was written"
    stale = f"{key} was read at version {expected} but the store holds {actual or 'none'}"
    if actual == expected:
        stale += ", of another one that has taken its place"

    if key.kind == PROGRESS:
        message = f"{stale}; {nothing}"
        return StaleProgressError(
            message, flow_id=key.id, step_index=key.step, expected=expected, actual=actual
        )

    if key.kind == WAIT:
        if conflict.reason == MISSING:
            message = f"{key} was read at version {expected} and is gone; {nothing}"
            return WaitConditionNotFoundError(message, correlation_id=key.id, expected=expected)

        return StaleWaitConditionError(
            f"{stale}; {nothing}", correlation_id=key.id, expected=expected, actual=actual
        )

    if conflict.reason == EXISTS:
        message = f"{key} exists already, at version {actual}; {nothing}"
        return FlowExistsError(message, flow_id=key.id, actual=actual)

    if conflict.reason == MISSING:
        message = f"{key} was read at version {expected} and is gone; {nothing}"
        return FlowNotFoundError(message, flow_id=key.id, expected=expected)

    facts: dict[str, Any] = {"flow_id": key.id, "expected": expected, "actual": actual}
    if isinstance(record, FlowSnapshot) and record._claim is not None:
        holder = f"{head.owner!r} owns it" if head is not None and head.owner else "nobody owns it"
        message = (
            f"the claim on {key} is lost: it was claimed at version {expected}, the store holds"
            f" {actual} and {holder}; {nothing}"
        )
        return ClaimLostError(message, **facts)

    return StaleFlowError(f"{stale}; {nothing}", **facts)


def claimed_error(flow_id: str, head: Head) -> FlowClaimedError:
    """Another owner's claim has not ended."""
    until = from_ms(head.due_ms or 0)
    message = (
        f"flow {flow_id!r} is claimed by {head.owner!r} until {until.isoformat()} and was not"
        " claimed again; try after that, or pass a timeout to wait"
    )
    return FlowClaimedError(message, flow_id=flow_id, owner=head.owner, until=until)


def conflict_of(errors: list[ConflictError]) -> ConflictError:
    """What was refused: the one error, a lost claim before others, or a `ConflictError` of all."""
    if len(errors) == 1:
        return errors[0]

    lost = next((error for error in errors if isinstance(error, ClaimLostError)), None)
    shown = "; ".join(str(error) for error in errors[:5])
    error = lost or ConflictError(f"{len(errors)} records were refused: {shown}")
    error._conflicts = tuple(errors)
    return error
