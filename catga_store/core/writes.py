"""Planning the write of one record, and settling it. Pure.

`plan_flow` decides version, attempts and expiry; `due_times` when the flow is due, and for whom. The
operations on single records and the unit of work use the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from attrs import frozen

from catga_store.core import envelope
from catga_store.core.due_times import due_and_owner
from catga_store.core.due_times import due_ms_of
from catga_store.errors import CrossPartitionError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import path_text
from catga_store.model.listings import Retention
from catga_store.model.parts import UNREAD
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import head_of
from catga_store.model.tags import pairs_of
from catga_store.model.times import to_ms
from catga_store.model.waits import UnreadResults
from catga_store.model.waits import WaitCondition
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import log_of
from catga_store.protocol.keys import partition_of
from catga_store.protocol.keys import wait_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import ENDED
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import USUAL_PUT
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import SetWait
from catga_store.protocol.requests import head_from
from catga_store.protocol.requests import put_from

__all__ = [
    "Limits",
    "changes_of",
    "check_flag",
    "check_partition",
    "check_size",
    "plan_flow",
    "plan_part",
    "plan_progress",
    "plan_set_wait",
    "plan_update_wait",
    "retained_until_ms",
    "settle_part",
    "settle_progress",
    "settle_wait",
]


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

    Decides what the contract says of attempts and expiry: attempts start again when position or
    status have changed, unless they were set by hand; an expiry that was set by hand stays, and
    without one the retention says when a terminal flow expires.
    """
    # Every write of a flow passes here, so it avoids needless calls.
    loaded = flow._loaded
    old = None if loaded is None or instead is not None else loaded.head
    key, status, error = flow._key, flow.status, flow.error
    number = status._value_
    ends = number >= ENDED
    expires_ms = None if flow.expires_at is None else _own_expiry_ms(flow, old)
    own_expiry = ends and expires_ms is not None
    type_name, type_version, body = envelope.encode_flow(flow, own_expiry=own_expiry)
    position = path_text(flow.position.path)
    size = len(body) + len(position)
    if error is not None:
        size += len(error.encode())

    if size > limits.max_record_bytes:
        raise _too_large(key, size, limits)

    reports_to = flow.reports_to
    if reports_to is not None:
        _check_report(flow, reports_to, limits, expires=expires_ms is not None and not ends)

    if ends and expires_ms is None:
        expires_ms = retained_until_ms(status, now_ms, limits.retention)

    due_ms, owner, claim = due_and_owner(flow, old, now_ms, ends=ends)
    attempts = flow.attempts
    if old is not None and attempts == old.attempts:
        moved = position != old.position or number != old.status
        attempts = 0 if moved else attempts

    head = head_from(
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
            expires_ms,
            reports_to,
            pairs_of(flow.tags),
            "",
            (),
        )
    )
    if instead is not None:
        return Put(key, head, body, instead.revision, instead, fresh=True)

    expected = None if old is None else old.revision
    return put_from((key, head, body, expected, old, *USUAL_PUT))


def _check_report(
    flow: FlowSnapshot[Any], reports_to: str, limits: Limits, *, expires: bool
) -> None:
    """Refuse a flow that could end without reporting it, at its first write."""
    if expires:
        message = (
            f"{flow.key} reports its end to {reports_to!r}, so it cannot expire before it has "
            "ended, and nothing was sent; set its due_at instead, and let a worker end it at "
            "that time"
        )
        raise UsageError(message)

    check_partition((Check(flow.key, ""), Check(wait_key(reports_to), "")), limits)


def changes_of(flow: FlowSnapshot[Any], put: Put) -> tuple[str, ...]:
    """What the planned write of a loaded flow would change, by the names of its attributes."""
    head, old = put.head, put.replaces
    if old is None:
        return ("state",)

    # Every commit of a loaded flow passes here, and seldom finds more than one of these.
    changed: list[str] = []
    if head.status != old.status:
        changed.append("status")

    if head.position != old.position:
        changed.append("position")

    if head.error != old.error:
        changed.append("error")

    if head.tags != old.tags:
        changed.append("tags")

    if flow.attempts != old.attempts:
        changed.append("attempts")

    if due_ms_of(flow, old) != old.due_ms:
        changed.append("due_at")

    if (None if flow.expires_at is None else to_ms(flow.expires_at)) != old.expires_ms:
        changed.append("expires_at")

    if not envelope.is_same_state(flow, put.body):
        changed.append("state")

    return tuple(changed)


def _created_ms(record: FlowSnapshot[Any] | WaitCondition, now_ms: int) -> int:
    return now_ms if record.created_at is None else to_ms(record.created_at)


def _own_expiry_ms(flow: FlowSnapshot[Any], old: Head | None) -> int | None:
    """The `expires_at` that the user has set, now or before; `None` for one of the retention."""
    assert flow.expires_at is not None
    expires_ms = to_ms(flow.expires_at)
    loaded = flow._loaded
    if old is None or loaded is None or expires_ms != old.expires_ms:
        return expires_ms

    # Nothing else gives a live flow one.
    ended = FlowStatus(old.status).is_terminal
    return None if ended and not envelope.has_own_expiry(loaded.body) else expires_ms


def retained_until_ms(status: FlowStatus, now_ms: int, retention: Retention) -> int | None:
    """When a flow that has ended expires, unless its user has said when."""
    kept = retention.failed if status is FlowStatus.FAILED else retention.flows
    return None if kept is None else now_ms + kept // timedelta(milliseconds=1)


def plan_set_wait(
    wait: WaitCondition,
    now_ms: int,
    limits: Limits,
    *,
    renotify: bool = False,
    instead: Head | None = None,
) -> SetWait | Put:
    """The setting of a condition: see `SetWait`; `instead`: it takes the place of another one."""
    terms = envelope.terms_of(wait)
    check_size(wait.key, len("".join(terms.children).encode()), limits)
    created_ms = _created_ms(wait, now_ms)

    if instead is not None:
        head = Head(1, PENDING, created_ms, now_ms)
        return Put(wait.key, head, b"", instead.revision, instead, fresh=True, terms=terms)

    return SetWait(wait.key, terms, created_ms, renotify)


def plan_update_wait(wait: WaitCondition, now_ms: int, limits: Limits) -> Put:
    """The version-checked write of a condition's definition and outcome."""
    old = head_of(wait)
    if old is None:
        message = (
            f"{wait.key} has no revision, so it has never been stored or read; use "
            "set_wait_condition()"
        )
        raise UsageError(message)

    if wait.outcome.value == PENDING and old.status != PENDING:
        message = (
            f"{wait.key} has ended and cannot be reopened, because its parent may already "
            "have been notified; clear it and set a new one"
        )
        raise UsageError(message)

    terms = envelope.terms_of(wait)
    check_size(wait.key, len("".join(terms.children).encode()), limits)
    head = Head(old.version + 1, wait.outcome.value, old.created_ms, now_ms)
    return Put(wait.key, head, b"", old.revision, old, terms=terms)


def plan_progress(
    progress: ForEachProgress, key: Key, now_ms: int, limits: Limits, *, overwrite: bool = False
) -> Put:
    """The write of a ForEach progress; it must be what was loaded unless it is to be overwritten."""
    own_key = progress._key
    if own_key is not None and own_key != key:
        message = f"this ForEachProgress already belongs to {own_key}; create a new one for {key}"
        raise UsageError(message)

    old = head_of(progress)
    body = envelope.encode_progress(progress)
    check_size(key, len(body), limits)
    created_ms = now_ms if old is None else old.created_ms
    head = Head(1 if old is None else old.version + 1, 0, created_ms, now_ms)
    expected = ANY if overwrite else None if old is None else old.revision
    return Put(key, head, body, expected, old)


def plan_part(
    part: Part[Any], now_ms: int, limits: Limits, expected: str | None = None
) -> Put | None:
    """The write of a part: `ANY`, `IF_ABSENT`, or what was loaded; `None` if that has not changed."""
    key, old = part._key, head_of(part)
    if old is not None and part._body is UNREAD and expected is None and part.tag == old.position:
        return None

    name, version, body = envelope.encode_part(part)
    if expected is None and envelope.is_same_part(part, name, body):
        return None

    if log_of(key) is not None:
        message = f"{key} is a log entry, which cannot be changed; append a new entry instead"
        raise UsageError(message)

    check_size(key, len(body), limits)
    created_ms = now_ms if old is None else old.created_ms
    number = 1 if old is None else old.version + 1
    head = Head(number, 0, created_ms, now_ms, name, version, part.tag)
    if expected is None and old is not None:
        expected = old.revision

    return Put(key, head, body, expected, old)


def check_size(key: Key, size: int, limits: Limits) -> None:
    """Raise `RecordTooLargeError` for a record of more bytes than the store's limit."""
    if size > limits.max_record_bytes:
        raise _too_large(key, size, limits)


def _too_large(key: Key, size: int, limits: Limits) -> RecordTooLargeError:
    message = (
        f"{key} is {size} bytes long, but the store's limit is {limits.max_record_bytes}, so "
        "nothing was written; raise max_record_bytes, or store large data elsewhere"
    )
    return RecordTooLargeError(message, size=size, limit=limits.max_record_bytes)


def check_flag(value: object, name: str) -> None:
    """Raise `UsageError` unless it is `True` or `False`."""
    if type(value) is not bool:
        message = f"{name}: expected True or False, got {shown(value)}"
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
        places = ", ".join(
            f"{any_id!r} in {number}" for any_id, number in sorted(found.items())[:5]
        )
        message = (
            f"a commit cannot span partitions ({places}), so nothing was sent; give ids that "
            "belong together the same {tag}"
        )
        raise CrossPartitionError(message, partitions=found)


# --- settling one record --------------------------------------------------------------------------


def settle_wait(wait: WaitCondition, change: Put | SetWait, outcome: Outcome, now_ms: int) -> None:
    """Give a condition what is stored: its own definition, or that of one that has ended."""
    written = isinstance(change, Put) or outcome.accepted
    terms = change.terms if written else outcome.terms
    assert terms is not None, "the stored wait condition must have terms"
    head = Head(
        outcome.version, outcome.status or 0, outcome.created_ms, now_ms, revision=outcome.revision
    )
    results = wait._results
    envelope.load_wait(wait, Record(head, b"", terms, tuple(results._items.values())))
    if isinstance(results, UnreadResults):
        stored_state.keep_results(wait, results)


def settle_part(part: Part[Any], put: Put, outcome: Outcome) -> None:
    """Let a part be what was written."""
    head = put.head._replace(
        version=outcome.version, revision=outcome.revision, created_ms=outcome.created_ms
    )
    stored_state.set_part_written(part, head, put.body)


def settle_progress(progress: ForEachProgress, put: Put, outcome: Outcome) -> None:
    """Let a progress object be what was written."""
    head = put.head._replace(
        version=outcome.version, revision=outcome.revision, created_ms=outcome.created_ms
    )
    stored_state.set_progress_head(progress, put.key, Record(head, put.body))
