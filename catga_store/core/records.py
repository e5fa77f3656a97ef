"""Operations on single records, outside a session; each is one commit or one read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from catga_store import codec
from catga_store.core import commits
from catga_store.core import envelope
from catga_store.core import listings
from catga_store.core import writes
from catga_store.core.arguments import check_flow
from catga_store.core.arguments import check_limit_or_none
from catga_store.core.arguments import check_version
from catga_store.core.arguments import check_wait
from catga_store.core.arguments import completion_change
from catga_store.core.arguments import not_found
from catga_store.core.arguments import step_key
from catga_store.core.arguments import typed_ids
from catga_store.core.arguments import unique_ids
from catga_store.core.conflicts import conflict_error
from catga_store.core.context import Context
from catga_store.core.context import read_all
from catga_store.core.receipts import completion_of
from catga_store.errors import CommitTooLargeError
from catga_store.errors import CommitUncertainError
from catga_store.errors import CorruptRecordError
from catga_store.errors import FlowExistsError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import StaleFlowError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.flows import FlowSnapshot
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import head_of
from catga_store.model.times import to_ms
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import partition_of
from catga_store.protocol.keys import wait_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Steps

__all__ = [
    "clear_for_each_progress",
    "clear_wait_condition",
    "complete_child",
    "create",
    "delete",
    "delete_many",
    "get",
    "get_for_each_progress",
    "get_many",
    "get_one",
    "get_or_create",
    "get_timed_out_wait_conditions",
    "get_wait_condition",
    "list_for_each_progress",
    "readable_progress",
    "save_for_each_progress",
    "set_wait_condition",
    "update",
    "update_wait_condition",
]


# flows --------------------------------------------------------------------------------------------


def create(context: Context, flow: FlowSnapshot[Any]) -> Conversation[None]:
    """Write a new flow."""
    check_flow(flow)
    if head_of(flow) is not None:
        message = f"{flow.key} has a revision, so it has already been stored or read; use update()"
        raise UsageError(message)

    now_ms = context.settings.now_ms()
    put = writes.plan_flow(flow, now_ms, context.limits)
    outcome = yield from commits.commit_one(context, put, now_ms, flow)
    stored_state.set_written(flow, put.head, put.body, outcome.revision, None)


def get(
    context: Context, flow_id: str, state_type: Any | None = None
) -> Conversation[FlowSnapshot[Any] | None]:
    """Read a flow as a new object."""
    key = flow_key(check_id(flow_id, "a flow id"))
    (record,) = yield Read((key,), context.settings.now_ms())
    if record is None:
        codec.check_state_type(state_type)
        return None

    return envelope.decode_flow(key, record, state_type)


def get_one(
    context: Context, flow_id: str, state_type: Any | None = None
) -> Conversation[FlowSnapshot[Any]]:
    """Read a flow that must be there."""
    flow = yield from get(context, flow_id, state_type)
    if flow is None:
        raise not_found(flow_id)

    return flow


def get_or_create(
    context: Context, flow: FlowSnapshot[Any]
) -> Conversation[tuple[FlowSnapshot[Any], bool]]:
    """Create a flow, or read the one that has its id."""
    check_flow(flow)
    state_type = flow.state_type or codec.type_of(flow.state)

    while True:
        try:
            yield from create(context, flow)
        except FlowExistsError:
            stored = yield from get(context, flow.flow_id, state_type)
            if stored is not None:
                return stored, False
        else:
            return flow, True


def update(context: Context, flow: FlowSnapshot[Any]) -> Conversation[None]:
    """Write a loaded flow."""
    check_flow(flow)
    if flow._loaded is None:
        message = f"{flow.key} has no revision, so it has never been stored or read; use create()"
        raise UsageError(message)

    now_ms = context.settings.now_ms()
    put = writes.plan_flow(flow, now_ms, context.limits)
    # One flow is never of two partitions, so unlike `commit_one` this checks none.
    try:
        reply = yield from commits.send(
            context, new_commit_id(), now_ms, (put,), has_reports=flow.reports_to is None
        )
    except CommitUncertainError:
        stored_state.stop_watching(flow)  # the changes may be written
        raise

    if isinstance(reply, Refused):
        stored_state.stop_watching(flow)
        raise conflict_error(put, reply.conflicts[0], flow)

    stored_state.set_written(flow, put.head, put.body, reply.outcomes[0].revision, flow._claim)


def delete(
    context: Context,
    flow: FlowSnapshot[Any] | str,
    *,
    version: int | None = None,
    revision: str | None = None,
) -> Conversation[bool]:
    """Delete a flow, checked where something was read or is expected."""
    record: FlowSnapshot[Any] | None = None
    replaces: Head | None = None

    if isinstance(flow, FlowSnapshot):
        record, key, replaces = flow, flow.key, head_of(flow)
        if replaces is None:
            message = (
                f"this object for {key} has never been stored or read; to delete the stored "
                "flow, pass its id"
            )
            raise UsageError(message)

        if version is not None or revision is not None:
            message = (
                f"the snapshot of {key} already has a revision; pass version or revision only "
                "together with an id"
            )
            raise UsageError(message)
    else:
        key = flow_key(check_id(flow, "a flow id"))
        if version is not None or revision is not None:
            _check_expected(version, revision)
            (found,) = yield from ask(Read((key,), context.settings.now_ms()))
            if found is None:
                return False

            replaces = _expected(key, found.head, version, revision)

    now_ms = context.settings.now_ms()
    change = Delete(key, None if replaces is None else replaces.revision, replaces)
    try:
        outcome = yield from commits.commit_one(context, change, now_ms, record)
    except FlowNotFoundError:
        return False

    stored_state.stop_watching(record)
    existed: bool = outcome.accepted
    return existed


def delete_many(context: Context, flow_ids: Iterable[str]) -> Conversation[int]:
    """Delete flows by id, as few commits as the limit of a commit and the partitions allow."""
    by_partition: dict[int, list[Change]] = {}
    for flow_id in unique_ids(flow_ids):
        number = partition_of(flow_id, context.settings.partitions)
        by_partition.setdefault(number, []).append(Delete(flow_key(flow_id), None))

    existed = 0
    for changes in by_partition.values():
        for start in range(0, len(changes), MAX_CHANGES):
            some = tuple(changes[start : start + MAX_CHANGES])
            existed += yield from _delete_some(context, some)

    return existed


def _delete_some(context: Context, changes: tuple[Change, ...]) -> Conversation[int]:
    now_ms = context.settings.now_ms()
    try:
        reply = yield from commits.send(context, new_commit_id(), now_ms, changes)
    except CommitTooLargeError:  # with what they report
        middle = len(changes) // 2
        first = yield from _delete_some(context, changes[:middle])
        return first + (yield from _delete_some(context, changes[middle:]))

    assert isinstance(reply, Applied), "the store must not refuse an unconditional deletion"
    return sum(outcome.accepted for outcome in reply.outcomes)


def get_many(
    context: Context, flow_ids: Iterable[str], state_type: Any | None = None
) -> Conversation[dict[str, Any]]:
    """Read flows by id."""
    types = typed_ids(flow_ids, state_type)
    keys = [flow_key(flow_id) for flow_id in types]
    records = yield from read_all(context, keys)
    return {
        key.id: None if record is None else envelope.decode_flow(key, record, types[key.id])
        for key, record in zip(keys, records, strict=True)
    }


# wait conditions ----------------------------------------------------------------------------------


def set_wait_condition(context: Context, wait: WaitCondition) -> Conversation[bool]:
    """Write the definition of a condition."""
    check_wait(wait)
    now_ms = context.settings.now_ms()
    change = writes.plan_set_wait(wait, now_ms, context.limits)
    outcome = yield from commits.commit_one(context, change, now_ms, wait)
    if not outcome.accepted:
        (stored,) = yield Read((wait.key,), now_ms)
        if stored is not None:
            envelope.load_wait(wait, stored)
            return False

    writes.settle_wait(wait, change, outcome, now_ms)
    return outcome.satisfied


def get_wait_condition(context: Context, correlation_id: str) -> Conversation[WaitCondition | None]:
    """Read a condition."""
    key = wait_key(check_id(correlation_id, "a correlation id"))
    (record,) = yield Read((key,), context.settings.now_ms())
    return None if record is None else envelope.decode_wait(correlation_id, record)


def update_wait_condition(context: Context, wait: WaitCondition) -> Conversation[bool]:
    """Write a loaded condition."""
    check_wait(wait)
    now_ms = context.settings.now_ms()
    put = writes.plan_update_wait(wait, now_ms, context.limits)
    outcome = yield from commits.commit_one(context, put, now_ms, wait)
    writes.settle_wait(wait, put, outcome, now_ms)
    return outcome.satisfied


_LARGEST_LIMIT = 2**31 - 1
"""More than any store has; a larger int does not fit into what SQLite takes."""


def clear_wait_condition(context: Context, correlation_id: str) -> Conversation[bool]:
    """Remove a condition and its completions."""
    key = wait_key(check_id(correlation_id, "a correlation id"))
    outcome = yield from commits.commit_one(context, Delete(key, None), context.settings.now_ms())
    return outcome.accepted


def get_timed_out_wait_conditions(
    context: Context, now: datetime | None = None, limit: int | None = None
) -> Conversation[list[WaitCondition]]:
    """Read the pending conditions that are past their deadline."""
    check_limit_or_none(limit)
    now_ms = context.settings.now_ms() if now is None else to_ms(now)
    found = yield Overdue(now_ms, None if limit is None else min(limit, _LARGEST_LIMIT))
    waits = yield from listings.read_waits(context, found)
    return [wait for wait in waits if wait.outcome is WaitOutcome.PENDING]


def complete_child(
    context: Context,
    correlation_id: str,
    child_flow_id: str,
    *,
    success: bool = True,
    result: object = None,
    error: str | None = None,
) -> Conversation[Completion]:
    """Record the completion of one child."""
    change = completion_change(
        correlation_id, child_flow_id, success=success, result=result, error=error
    )
    outcome = yield from commits.commit_one(context, change, context.settings.now_ms())
    return completion_of(outcome)


# ForEach progress ---------------------------------------------------------------------------------


def save_for_each_progress(
    context: Context,
    flow_id: str,
    step_index: int,
    progress: ForEachProgress,
    *,
    overwrite: bool = False,
) -> Conversation[None]:
    """Write the progress of a step."""
    key = step_key(flow_id, step_index)
    writes.check_flag(overwrite, "overwrite")
    if type(progress) is not ForEachProgress:
        message = f"progress: expected a ForEachProgress, got {shown(progress)}"
        raise UsageError(message)

    now_ms = context.settings.now_ms()
    put = writes.plan_progress(progress, key, now_ms, context.limits, overwrite=overwrite)
    outcome = yield from commits.commit_one(context, put, now_ms, progress)
    writes.settle_progress(progress, put, outcome)


def get_for_each_progress(
    context: Context, flow_id: str, step_index: int
) -> Conversation[ForEachProgress | None]:
    """Read the progress of a step."""
    key = step_key(flow_id, step_index)
    (record,) = yield Read((key,), context.settings.now_ms())
    return None if record is None else envelope.decode_progress(key, record)


def clear_for_each_progress(context: Context, flow_id: str, step_index: int) -> Conversation[bool]:
    """Remove the progress of a step."""
    key = step_key(flow_id, step_index)
    outcome = yield from commits.commit_one(context, Delete(key, None), context.settings.now_ms())
    return outcome.accepted


def list_for_each_progress(
    context: Context, flow_id: str
) -> Conversation[dict[int, ForEachProgress]]:
    """Read the progress of every step of a flow."""
    check_id(flow_id, "a flow id")
    found = yield Steps(flow_id, context.settings.now_ms())
    keys = [entry.key for entry in found]
    records = yield from read_all(context, keys)
    return {
        key.step: envelope.decode_progress(key, record)
        for key, record in zip(keys, records, strict=True)
        if record is not None
    }


def readable_progress(
    context: Context, flow_id: str
) -> Conversation[tuple[dict[int, ForEachProgress], dict[int, CorruptRecordError]]]:
    """Read the progress of every step of a flow that can be read, and why the others cannot.

    Only if one cannot, it is read in another way, which costs some stores a listing of all progress.
    """
    try:
        return (yield from list_for_each_progress(context, flow_id)), {}
    except CorruptRecordError:
        pass

    progress: dict[int, ForEachProgress] = {}
    unread: dict[int, CorruptRecordError] = {}
    last: Key | None = Key(PROGRESS, flow_id, -1)
    while last is not None:
        page = yield from ask(Scan(PROGRESS, last, _SCANNED, context.settings.now_ms()))
        last = page[-1].key if page and page[-1].key.id == flow_id else None
        for key, record, error in page:
            if key.id != flow_id:
                continue

            try:
                if error is not None:
                    raise error

                progress[key.step] = envelope.decode_progress(key, record)
            except CorruptRecordError as wrong:
                unread[key.step] = wrong

    return progress, unread


_SCANNED = 100


def _check_expected(version: object, revision: object) -> None:
    check_version(version)
    if revision is not None and type(revision) is not str:
        message = f"revision: expected a str or None, got {shown(revision)}"
        raise UsageError(message)


def _expected(key: Key, head: Head, version: int | None, revision: str | None) -> Head:
    """The head, if it has this version and revision, where they are given."""
    if version in (None, head.version) and revision in (None, head.revision):
        return head

    asked = f"version {version}" if version is not None else f"revision {revision!r}"
    message = (
        f"{key} was not deleted: expected {asked}, but the store holds version {head.version}, "
        f"revision {head.revision!r}; read the flow again"
    )
    raise StaleFlowError(message, flow_id=key.id, expected=version or 0, actual=head.version)
