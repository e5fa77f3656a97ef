"""Operations in a session, and transactions.

Each takes the `UnitOfWork` of its session: what was loaded and queued. The contract of each
operation is in the docstrings of `Store` and `Session`. The file is over 400 lines
because each operation of a session stands in it once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from catga_store import codec
from catga_store.core import claims
from catga_store.core import commits
from catga_store.core import envelope
from catga_store.core import records
from catga_store.core import waiting
from catga_store.core.arguments import check_flow
from catga_store.core.arguments import check_number
from catga_store.core.arguments import check_wait
from catga_store.core.arguments import not_found
from catga_store.core.arguments import step_key
from catga_store.core.arguments import typed_ids
from catga_store.core.claims import DEFAULT_LEASE
from catga_store.core.commits import LONGEST_PAUSE
from catga_store.core.commits import SHORTEST_PAUSE
from catga_store.core.commits import send
from catga_store.core.conflicts import conflict_error
from catga_store.core.context import Context
from catga_store.core.entries import Entry
from catga_store.core.entries import Intent
from catga_store.core.receipts import Receipt
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.core.waiting import NO_WAIT
from catga_store.core.writes import check_flag
from catga_store.errors import CommitUncertainError
from catga_store.errors import ConflictError
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import AnyRecord
from catga_store.model.stored_state import head_of
from catga_store.model.stored_state import key_of
from catga_store.model.waits import WaitCondition
from catga_store.protocol.chance import uniform
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import wait_key
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Refused

__all__ = [
    "session_claim",
    "session_claim_due",
    "session_commit",
    "session_get",
    "session_get_for_each_progress",
    "session_get_many",
    "session_get_one",
    "session_get_wait_condition",
    "session_refresh",
    "suspend",
    "transact",
]

_log = logging.getLogger(__name__)

"""The operations of one store: those on single records, and those of its sessions."""

# sessions -----------------------------------------------------------------------------------------


def session_get(
    context: Context, unit: UnitOfWork, flow_id: str, state_type: Any | None = None
) -> Conversation[FlowSnapshot[Any] | None]:
    """Return the session's object for a flow, reading it if it has none."""
    key = flow_key(check_id(flow_id, "a flow id"))
    entry = unit.find(key)
    if entry is not None:
        tracked: FlowSnapshot[Any] | None = _as_tracked(entry, state_type)
        return tracked

    (record,) = yield Read((key,), context.settings.now_ms())
    if record is None:
        codec.check_state_type(state_type)
        return None

    flow = envelope.decode_flow(key, record, state_type)
    kept: FlowSnapshot[Any] | None = _tracked(unit, key, flow, state_type)
    return kept


def session_get_one(
    context: Context, unit: UnitOfWork, flow_id: str, state_type: Any | None = None
) -> Conversation[FlowSnapshot[Any]]:
    """Like `session_get`, for a flow that must be there."""
    flow = yield from session_get(context, unit, flow_id, state_type)
    if flow is None:
        raise not_found(flow_id)

    return flow


def session_get_many(
    context: Context, unit: UnitOfWork, flow_ids: Iterable[str], state_type: Any | None = None
) -> Conversation[dict[str, Any]]:
    """Return the session's objects for flows, reading those that it does not have."""
    types = typed_ids(flow_ids, state_type)
    unknown = {each: types[each] for each in types if unit.find(flow_key(each)) is None}
    read = yield from records.get_many(context, unknown)
    found: dict[str, Any] = {}

    for flow_id, wanted in types.items():
        key = flow_key(flow_id)
        entry = unit.find(key)
        if entry is None:
            found[flow_id] = _tracked(unit, key, read.get(flow_id), wanted)
        else:
            found[flow_id] = _as_tracked(entry, wanted)

    return found


def session_get_wait_condition(
    context: Context, unit: UnitOfWork, correlation_id: str
) -> Conversation[WaitCondition | None]:
    """Return the session's object for a condition."""
    key = wait_key(check_id(correlation_id, "a correlation id"))
    entry = unit.find(key)
    if entry is not None:
        tracked: WaitCondition | None = _as_tracked(entry, None)
        return tracked

    wait = yield from records.get_wait_condition(context, correlation_id)
    kept: WaitCondition | None = _tracked(unit, key, wait, None)
    return kept


def session_get_for_each_progress(
    context: Context, unit: UnitOfWork, flow_id: str, step_index: int
) -> Conversation[ForEachProgress | None]:
    """Return the session's object for the progress of a step."""
    key = step_key(flow_id, step_index)
    entry = unit.find(key)
    if entry is not None:
        tracked: ForEachProgress | None = _as_tracked(entry, None)
        return tracked

    if unit.leaves(flow_id):
        return None  # it goes with its flow, which is deleted or replaced in this session

    progress = yield from records.get_for_each_progress(context, flow_id, step_index)
    kept: ForEachProgress | None = _tracked(unit, key, progress, None)
    return kept


def _tracked(unit: UnitOfWork, key: Key, record: Any, state_type: Any | None) -> Any:
    """Take what was read into the map, unless it got there in the meantime."""
    if record is None:
        return None

    entry = unit.find(key)
    if entry is not None:
        return _as_tracked(entry, state_type)

    unit.track(key, record)
    return record


def session_claim_due(
    context: Context,
    unit: UnitOfWork,
    state_type: Any | None = None,
    *,
    lease: timedelta = DEFAULT_LEASE,
    limit: int = 1,
    owner: str | None = None,
    tags: Mapping[str, str] | None = None,
    wait: timedelta = NO_WAIT,
) -> Conversation[list[FlowSnapshot[Any]]]:
    """Claim due flows that the session does not have yet, and track them."""
    unit.step("use")
    flows = yield from waiting.claim_due(
        context,
        state_type,
        lease=lease,
        limit=limit,
        owner=owner,
        tags=tags,
        wait=wait,
        skip=unit.keys(),
    )
    for flow in flows:
        unit.track_claimed(flow)

    return flows


def session_claim(
    context: Context,
    unit: UnitOfWork,
    flow_id: str,
    state_type: Any | None = None,
    *,
    lease: timedelta = DEFAULT_LEASE,
    timeout: timedelta = timedelta(0),
    owner: str | None = None,
) -> Conversation[FlowSnapshot[Any]]:
    """Claim a flow that the session does not have yet, and track it."""
    key = flow_key(check_id(flow_id, "a flow id"))
    if unit.find(key) is not None:
        message = (
            f"{key} is already in this session, so the session cannot claim it; expunge it first, "
            "or call claim() before get()"
        )
        raise UsageError(message)

    flow = yield from claims.claim(
        context, flow_id, state_type, lease=lease, timeout=timeout, owner=owner
    )
    unit.track_claimed(flow)
    return flow


def session_refresh(context: Context, unit: UnitOfWork, record: AnyRecord) -> Conversation[None]:
    """Read a record again into the same object."""
    if record not in unit:
        message = f"{shown(record)} is not in this session, so it cannot be refreshed"
        raise UsageError(message)

    key = key_of(record)
    head = head_of(record)
    if head is None:
        message = f"{key} has never been stored, so it cannot be refreshed; commit it first"
        raise UsageError(message)

    (found,) = yield Read((key,), context.settings.now_ms())
    entry = unit.find(key)
    if entry is None or entry.record is not record:
        message = (
            f"{record!r} was removed from this session while refresh() was reading it, so nothing "
            "was changed"
        )
        raise UsageError(message)

    if found is None:
        check = Check(key, head.revision)
        raise conflict_error(check, Conflict(0, "missing", None), record)

    if isinstance(record, FlowSnapshot):
        if record._claim is not None and found.head.claim != record._claim.token:
            stored_state.stop_watching(record)
            conflict = Conflict(0, "stale", found.head)
            raise conflict_error(Check(key, head.revision), conflict, record)

        # A flow that was made here declares no type: its state is one.
        envelope.load_flow(record, found, codec.type_of(record.state))
    elif isinstance(record, WaitCondition):
        envelope.load_wait(record, found)
    elif isinstance(record, Part):
        envelope.load_part(record, found)
    else:
        envelope.load_progress(record, key, found)

    entry.intent, entry.instead = Intent.LOADED, None


def suspend(
    context: Context, unit: UnitOfWork, flow: FlowSnapshot[Any], wait: WaitCondition
) -> None:
    """Queue a flow and the condition that it waits for."""
    check_flow(flow)
    check_wait(wait)
    if flow.status.is_terminal:
        message = (
            f"{flow.key} is {flow.status.name}, so it cannot wait; only a flow that has not ended "
            "can wait"
        )
        raise UsageError(message)

    if wait.parent_flow_id not in (None, flow.flow_id):
        message = (
            f"{wait.key} already has the parent {wait.parent_flow_id!r}, so {flow.flow_id!r} "
            "cannot wait for it; create another wait condition"
        )
        raise UsageError(message)

    unit.check_addable(flow)
    unit.check_addable(wait)
    unit.add(flow)
    entry = unit.add(wait)
    entry.intent, entry.renotify = Intent.SET, True
    wait.parent_flow_id = flow.flow_id
    flow.status = FlowStatus.SUSPENDED
    flow.due_at = None
    flow.wait_condition = WaitCondition(
        wait.correlation_id,
        flow_ids=wait.flow_ids,
        wait_type=wait.wait_type,
        timeout=wait.timeout,
        parent_flow_id=wait.parent_flow_id,
        created_at=wait.created_at or context.now(),
    )


def session_commit(
    context: Context, unit: UnitOfWork, *, resolve: bool = False
) -> Conversation[Receipt]:
    """Plan, send one commit, settle; with `resolve`, find out what became of a lost one."""
    if resolve is not False:
        check_flag(resolve, "resolve")

    unit.step("commit")
    try:
        now_ms = context.settings.now_ms()
        plan = unit.plan(now_ms, context.limits)
    except BaseException:
        unit.step("refuse")
        raise

    if not plan.changes:
        unit.step("settle")
        unit.receipt = Receipt()
        return unit.receipt

    try:
        commit_id = new_commit_id()
        try:
            reply = yield from send(context, commit_id, now_ms, plan.changes, has_reports=True)
        except CommitUncertainError as error:
            if not resolve:
                raise

            reply = yield from commits.settled(context, plan.changes, error)
    except BaseException as error:
        unit.lose(error, plan, now_ms)
        raise

    if type(reply) is Refused:
        raise unit.refused(plan, reply.conflicts)

    if not reply.outcomes:
        return unit.settle_unread(commit_id, plan, now_ms)

    receipt = unit.settle(commit_id, plan, reply.outcomes, now_ms)
    if unit.ended_waits:
        yield from claims.load_results(context, unit.ended_waits)

    return receipt


def transact(
    context: Context, call: Callable[[UnitOfWork], Any], attempts: int
) -> Conversation[Any]:
    """Call `call`, the user's function with a session on a unit of work, and commit."""
    check_number("attempts", attempts, 1)
    attempt = 0
    while True:
        attempt += 1
        unit = UnitOfWork()
        result: Any = None
        returned, repeatable = False, True
        try:
            try:
                result = yield from ask(Invoke(partial(call, unit)))
                returned = True
                yield from session_commit(context, unit)
            except CommitUncertainError as error:
                repeatable = False
                if error is not unit.refusal:
                    raise

                outcomes = yield from commits.resolve(context, error)
                repeatable = outcomes is None
                if outcomes is None or not returned:
                    raise

                yield from _recover(context, unit, error.commit_id, outcomes)

        except (ConflictError, CommitUncertainError) as error:
            # A function that has committed by itself would do that twice.
            repeatable = repeatable and error is unit.refusal and not unit.has_written
            if not repeatable or attempt == attempts:
                raise

            _log.debug(
                "transact: attempt %d of %d failed with a conflict: %s", attempt, attempts, error
            )
        else:
            return result
        finally:
            unit.close()

        longest = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2**attempt)
        yield Pause(uniform(SHORTEST_PAUSE, longest))


def _recover(
    context: Context, unit: UnitOfWork, commit_id: str, outcomes: tuple[Outcome, ...]
) -> Conversation[None]:
    """Give the objects of a lost commit what it made of them, or leave them as they were read.

    See `commits.read_outcomes` for what is known of it.
    """
    known = yield from commits.read_outcomes(context, commit_id, unit.lost_changes, outcomes)
    unit.recover(commit_id, known)


def _as_tracked(entry: Entry, state_type: Any | None) -> Any:
    """What a session has under a key; `StateTypeError` if it was loaded as something else."""
    record = entry.record
    if record is None or entry.intent is Intent.DELETED:
        return None

    if state_type is not None and isinstance(record, FlowSnapshot):
        has = record.state_type or codec.type_of(record.state)
        if has != state_type:
            name, wanted = codec.type_name(has), codec.type_name(state_type)
            message = (
                f"{entry.key} is loaded in this session as {shown(name) if name else 'raw data'} "
                f"but was requested as {wanted!r}; request it with the same type, or expunge it "
                "first"
            )
            raise StateTypeError(message, expected=wanted, actual=name)

    return record
