"""Claims: who may work on a flow, and for how long.

`claim_plans` decides about each flow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from typing import Any

from catga_store.core import envelope
from catga_store.core.arguments import check_flow
from catga_store.core.arguments import check_limit
from catga_store.core.arguments import not_found
from catga_store.core.claim_candidates import gather
from catga_store.core.claim_candidates import look_for_waits
from catga_store.core.claim_candidates import read_waits
from catga_store.core.claim_plans import Candidate
from catga_store.core.claim_plans import Claimer
from catga_store.core.claim_plans import ClaimPlan
from catga_store.core.claim_plans import choose
from catga_store.core.claim_plans import claim_plans_of
from catga_store.core.claim_plans import has_all_waits
from catga_store.core.claim_plans import is_held
from catga_store.core.claim_plans import is_terminal
from catga_store.core.claim_plans import plan_claim
from catga_store.core.claim_plans import put_off
from catga_store.core.claim_plans import refused_of
from catga_store.core.claim_plans import settle_plans
from catga_store.core.commits import ask_once
from catga_store.core.commits import commit_one
from catga_store.core.commits import send
from catga_store.core.conflicts import claimed_error
from catga_store.core.context import Context
from catga_store.core.context import read_all
from catga_store.core.state_types import wanted_of
from catga_store.core.writes import changes_of
from catga_store.core.writes import plan_flow
from catga_store.errors import CatgaStoreError
from catga_store.errors import ClaimLostError
from catga_store.errors import UsageError
from catga_store.model import stored_state
from catga_store.model.flows import Claim
from catga_store.model.flows import FlowSnapshot
from catga_store.model.stored_state import head_of
from catga_store.model.tags import wanted_tags
from catga_store.model.times import NOW
from catga_store.model.times import moment_up
from catga_store.model.times import span_ms
from catga_store.model.times import to_ms
from catga_store.model.waits import WaitCondition
from catga_store.protocol.chance import jittered
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Pause
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import partition_of
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read

__all__ = [
    "DEFAULT_LEASE",
    "claim",
    "claim_due",
    "claim_of",
    "extend",
    "load_results",
    "release",
    "release_dead_waits",
]

_log = logging.getLogger(__name__)

_NEARBY = 16
"""A claimer picks among this many more of the oldest due than it wants, so that two seldom collide."""
_IDLE_ROUNDS = 64
"""A claimer returns after this many rounds in which others took everything first."""
_POLL_SECONDS = 0.05
_MOST_BODIES = 500
"""Up to this number of bodies come with what is due; the others are read by a request of their own."""

DEFAULT_LEASE = timedelta(seconds=30)


def claim_due(
    context: Context,
    state_type: Any | None = None,
    *,
    lease: timedelta = DEFAULT_LEASE,
    limit: int = 1,
    owner: str | None = None,
    tags: Mapping[str, str] | None = None,
    skip: Container[Key] = (),
) -> Conversation[list[FlowSnapshot[Any]]]:
    """Claim up to `limit` due flows, none of those to `skip`.

    What is done about each flow is decided in `claim_plans`.
    """
    check_limit(limit)
    lease_ms = _lease_ms(lease)
    owner = context.owner if owner is None else check_id(owner, "an owner")
    wanted = wanted_of(state_type)
    pairs = wanted_tags(tags)
    claimed: list[FlowSnapshot[Any]] = []
    # What is put off is due later than this, however long it takes: nothing is met twice.
    since_ms = context.settings.now_ms()
    idle = 0
    nearby = 0

    try:
        while len(claimed) < limit and idle < _IDLE_ROUNDS:
            missing = limit - len(claimed)
            bodies = min(missing + nearby, _MOST_BODIES)
            due = Due(since_ms, missing + _NEARBY, wanted.names, pairs, bodies=bodies)
            found: tuple[Found, ...] = yield due
            if not found:
                break

            now_ms = max(since_ms, context.settings.now_ms())
            chosen = choose(found, missing + nearby)
            gathered = yield from gather(
                context, chosen, now_ms, all_waits=has_all_waits(chosen, found, due.limit)
            )
            claimer = Claimer(owner, wanted, now_ms, lease_ms, skip, pairs)
            plans = claim_plans_of(gathered, claimer, missing)
            applied = yield from _take_all(context, plans, now_ms, claimed)
            idle = 0 if applied else idle + 1
            # Among many that cannot be claimed, those that can are looked for farther away.
            nearby = 0 if limit - len(claimed) < missing else _NEARBY
    except CatgaStoreError as error:
        # What is claimed is the caller's: an error in its place would lose it for a lease.
        if not claimed:
            raise

        _log.warning(
            "claim_due returned only %d of at most %d flows, because of an error: %s",
            len(claimed),
            limit,
            error,
        )

    return _with_time_left(claimed, context.settings.now_ms())


def _with_time_left(claimed: list[FlowSnapshot[Any]], now_ms: int) -> list[FlowSnapshot[Any]]:
    """The flows whose lease is not over yet; a call may take longer than its lease."""
    kept = [flow for flow in claimed if is_held(_head_of_claimed(flow), now_ms)]
    if len(kept) < len(claimed):
        _log.warning(
            "claim_due took longer than its lease, so %d of %d claimed flows were not "
            "returned and are due again; pass a longer lease or a smaller limit",
            len(claimed) - len(kept),
            len(claimed),
        )

    return kept


def _head_of_claimed(flow: FlowSnapshot[Any]) -> Head:
    head = head_of(flow)
    assert head is not None, "a claimed flow must have been written"
    return head


def _take_all(
    context: Context, plans: Sequence[ClaimPlan], now_ms: int, claimed: list[FlowSnapshot[Any]]
) -> Conversation[bool]:
    """Carry plans out, one commit a partition, and add what was claimed.

    Returns whether anything was written.
    """
    by_partition: dict[int, list[ClaimPlan]] = {}

    for plan in plans:
        number = partition_of(plan.flow_id, context.settings.partitions)
        by_partition.setdefault(number, []).append(plan)

    written = False
    for some in by_partition.values():
        written |= yield from _commit_plans(context, some, now_ms, claimed)

    return written


def _commit_plans(
    context: Context, plans: list[ClaimPlan], now_ms: int, claimed: list[FlowSnapshot[Any]]
) -> Conversation[bool]:
    """As few commits as they fit in; whatever is refused is left out and the rest sent again."""
    queue = list(plans)
    written = False

    while queue:
        commit_id = new_commit_id()
        batch: list[ClaimPlan] = []
        changes: list[Change] = []
        for plan in queue:
            if len(changes) + len(plan.changes) <= MAX_CHANGES:
                batch.append(plan)
                changes += plan.named(commit_id)

        reply = yield from send(context, commit_id, now_ms, tuple(changes))
        if isinstance(reply, Applied):
            written = True
            claimed += settle_plans(batch, changes, reply.outcomes)
            yield from load_results(
                context, [plan.shown for plan in batch if plan.shown and plan.closes]
            )
            queue = [plan for plan in queue if plan not in batch]
        else:
            refused = refused_of(batch, {conflict.place for conflict in reply.conflicts})
            queue = [plan for plan in queue if plan not in refused]

    return written


def load_results(context: Context, waits: Sequence[WaitCondition]) -> Conversation[None]:
    """After a commit: how the children of waits that have ended had completed.

    A completion changes no revision, so only a look at what was closed tells what had come
    between its reading and its end.
    """
    try:
        records = yield from read_all(context, [wait.key for wait in waits])
    except CatgaStoreError as error:
        # What was committed is: an error here would say that it is not.
        for wait in waits:
            stored_state.set_unread_results(wait, error)

        return

    for wait, record in zip(waits, records, strict=True):
        if record is not None:
            envelope.load_wait(wait, record)


def claim(
    context: Context,
    flow_id: str,
    state_type: Any | None = None,
    *,
    lease: timedelta = DEFAULT_LEASE,
    timeout: timedelta = timedelta(0),
    owner: str | None = None,
) -> Conversation[FlowSnapshot[Any]]:
    """Claim one flow, due or not, waiting up to `timeout` for another claim to end."""
    check_id(flow_id, "a flow id")
    lease_ms = _lease_ms(lease)
    owner = context.owner if owner is None else check_id(owner, "an owner")
    wanted = wanted_of(state_type)
    give_up = time.monotonic() + span_ms(timeout, "timeout") / 1000

    while True:
        now_ms = context.settings.now_ms()
        key = flow_key(flow_id)
        (record,) = yield Read((key,), now_ms)
        if record is None:
            raise not_found(flow_id)

        if is_terminal(record.head):
            return envelope.decode_flow(key, record, wanted.type_of(key, record))

        if is_held(record.head, now_ms):
            left = give_up - time.monotonic()
            if left <= 0:
                raise claimed_error(flow_id, record.head)

            yield Pause(min(left, jittered(_POLL_SECONDS)))
            continue

        candidate = Candidate(flow_id, record)
        yield from look_for_waits([candidate], now_ms)
        yield from read_waits(context, [candidate])
        if candidate.error is not None:
            raise candidate.error

        plan = plan_claim(candidate, Claimer(owner, wanted, now_ms, lease_ms))
        claimed: list[FlowSnapshot[Any]] = []
        yield from _commit_plans(context, [plan], now_ms, claimed)
        if claimed:
            return _in_time(claimed[0], context.settings.now_ms(), lease_ms)


def _in_time(flow: FlowSnapshot[Any], now_ms: int, lease_ms: int) -> FlowSnapshot[Any]:
    """The flow, if its lease is not over yet; another worker may have it then."""
    if is_held(_head_of_claimed(flow), now_ms):
        return flow

    message = (
        f"the claim on {flow.key} ended before claim() returned, because the call took longer "
        f"than the lease of {lease_ms} ms; the flow is due again; claim it with a longer lease"
    )
    raise ClaimLostError(message, flow_id=flow.flow_id, expected=flow.version, actual=None)


def extend(
    context: Context, flow: FlowSnapshot[Any], lease: timedelta | None = None
) -> Conversation[None]:
    """Move the end of a claim, and nothing else."""
    claim = claim_of(flow)
    now_ms = context.settings.now_ms()
    lease_ms = claim.lease_ms if lease is None else _lease_ms(lease)
    request = Extend(flow.key, claim.token, now_ms + lease_ms, now_ms)
    head = yield from ask_once(context, request)
    if head is None:
        stored_state.stop_watching(flow)
        message = (
            f"the claim on {flow.key} no longer exists, so it was not extended, and another "
            "worker may hold the flow; stop working on the flow, or claim it again"
        )
        raise ClaimLostError(message, flow_id=flow.flow_id, expected=flow.version, actual=None)


def release(
    context: Context, flow: FlowSnapshot[Any], *, due_at: datetime | None = NOW
) -> Conversation[None]:
    """Give a claim back without writing the state; a changed flow is refused."""
    claim = claim_of(flow)
    loaded = flow._loaded
    assert loaded is not None
    old = loaded.head
    now_ms = context.settings.now_ms()
    changed = changes_of(flow, plan_flow(flow, now_ms, context.limits))
    if changed:
        message = (
            f"{flow.key} has changes that release() does not write ({', '.join(changed)}); to "
            "write them, set due_at and call update(), which also ends the claim; to discard "
            "them, undo them before you call release()"
        )
        raise UsageError(message)

    until = moment_up(due_at)
    due_ms = None if until is None else now_ms if until == NOW else to_ms(until)
    head = old._replace(
        version=old.version + 1, updated_ms=now_ms, owner=None, claim=None, due_ms=due_ms
    )
    put = Put(flow.key, head, loaded.body, old.revision, old, keeps_body=True)
    outcome = yield from commit_one(context, put, now_ms, flow)
    stored_state.set_written(flow, put.head, put.body, outcome.revision, claim)


def release_dead_waits(context: Context, limit: int, now_ms: int) -> Conversation[None]:
    """Ended conditions whose parent is gone or has ended begin their retention."""
    found = yield Due(now_ms, limit)
    chosen = [entry for entry in found if entry.key.kind == WAIT]
    gathered = yield from gather(context, chosen, now_ms, all_waits=True)
    plans = [
        put_off(candidate, now_ms)
        for candidate in gathered.candidates.values()
        if candidate.has_ended
    ]
    yield from _take_all(context, [plan for plan in plans if plan], now_ms, [])


def claim_of(flow: FlowSnapshot[Any]) -> Claim:
    """Return the claim that an object holds; `UsageError` if it holds none."""
    check_flow(flow)
    claim = flow._claim
    if claim is None:
        message = (
            f"this object has no claim on {flow.key}: the flow was not claimed through this "
            "object, or the claim has ended; use the object that claim() or claim_due() "
            "returned, or claim the flow again"
        )
        raise UsageError(message)

    return claim


def _lease_ms(lease: timedelta) -> int:
    lease_ms = span_ms(lease, "lease")
    if lease_ms == 0:
        message = "lease: expected a duration longer than 0, got 0"
        raise UsageError(message)

    return lease_ms
