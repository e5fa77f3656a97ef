"""What is to be done about flows that are due: claim them, put them off, or nothing. Pure.

`claim_candidates` reads a flow and its conditions into a `Candidate`. Here that becomes a `ClaimPlan`,
the changes of a commit, and what the store returned is settled on the flows that were claimed. The file
is over 400 lines because the decisions about one flow are read together.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from catga_store.core import envelope
from catga_store.core.dropped import warn_of_dropped
from catga_store.core.state_types import Wanted
from catga_store.errors import CorruptRecordError
from catga_store.errors import StateTypeError
from catga_store.model import stored_state
from catga_store.model.flows import Claim
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.tags import Pairs
from catga_store.model.times import to_ms
from catga_store.model.waits import WaitCondition
from catga_store.protocol.chance import choices
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import TIMED_OUT
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import has_tags

__all__ = [
    "Candidate",
    "ClaimPlan",
    "Claimer",
    "Gathered",
    "awaited_of",
    "choose",
    "claim_plans_of",
    "has_all_waits",
    "is_held",
    "is_terminal",
    "needs_notification",
    "plan_claim",
    "put_off",
    "refused_of",
    "settle_plans",
]

_log = logging.getLogger(__name__)

_SOONEST_LOOK_MS = 1000


@frozen
class Claimer:
    """Who claims, as what state, from when and for how long."""

    owner: str
    wanted: Wanted
    now_ms: int
    lease_ms: int
    skip: Container[Key] = ()
    """Flows that are not claimed."""
    tags: Pairs = ()
    """Tags that a flow must all have."""

    @property
    def until_ms(self) -> int:
        """The end of the lease."""
        return self.now_ms + self.lease_ms


class Candidate:
    """A flow that is due, or that is to be notified of a condition, with all that its claim depends on."""

    def __init__(self, flow_id: str, flow: Record | None = None) -> None:
        self.flow_id = flow_id
        self.flow = flow
        self.error: CorruptRecordError | None = None
        """Why it cannot be claimed, if what is stored cannot be read."""
        self.woken_by: dict[str, Record] = {}
        self.unread: list[str] = []
        """Further conditions that wake it."""
        self.awaits: tuple[str, ...] = ()
        """The condition that it is suspended on, and the one that it was shown instead, if any."""
        self.awaited: dict[str, Record] = {}
        self.was_notified_of: str | None = None
        """The condition that an earlier claim has shown it, if it has not suspended since."""
        self.shown_before: Record | None = None

    @property
    def has_ended(self) -> bool:
        """Whether no flow is left to notify."""
        return self.error is None and (self.flow is None or is_terminal(self.flow.head))

    def is_free(self, now_ms: int) -> bool:
        """Whether it is there to be claimed."""
        return self.flow is not None and not (
            is_terminal(self.flow.head) or is_held(self.flow.head, now_ms)
        )

    def is_due(self, now_ms: int) -> bool:
        """Whether it is to be claimed now."""
        assert self.flow is not None, "is_due requires a flow that exists"
        due_ms = self.flow.head.due_ms
        return (due_ms is not None and due_ms <= now_ms) or any(
            needs_notification(wait.head, now_ms) for wait in self.woken_by.values()
        )

    @property
    def waits(self) -> dict[str, Record]:
        """The conditions that its claim depends on: the one it is suspended on, then those that have ended."""
        if not self.awaited:
            return self.woken_by

        first = {name: self.awaited[name] for name in self.awaits[:1] if name in self.awaited}
        return first | self.woken_by | self.awaited


class Gathered:
    """Candidates by flow id, and what is due and cannot be read."""

    def __init__(self) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.stuck: list[Found] = []

    def candidate(self, flow_id: str) -> Candidate:
        """The candidate of that flow."""
        return self.candidates.setdefault(flow_id, Candidate(flow_id))


@frozen(eq=False)
class ClaimPlan:
    """The changes that claim one flow, or that only put its conditions off (`flow` is `None`)."""

    flow_id: str
    changes: tuple[Change, ...]
    flow: FlowSnapshot[Any] | None = None
    shown: WaitCondition | None = None
    closes: bool = False
    """The condition that is shown was pending until now."""
    lease_ms: int = 0

    def named(self, commit_id: str) -> tuple[Change, ...]:
        """The changes of that commit: its id is the token of the claim."""
        put = self.changes[0]
        if self.flow is None or not isinstance(put, Put):
            return self.changes

        return put._replace(head=put.head._replace(claim=commit_id)), *self.changes[1:]


def has_all_waits(chosen: Sequence[Found], found: Sequence[Found], limit: int) -> bool:
    """Whether every condition that has ended was found, and chosen."""
    number = number_of_waits(found)
    return number < limit and number == number_of_waits(chosen)


def number_of_waits(found: Sequence[Found]) -> int:
    """How many of these are conditions."""
    return len([entry for entry in found if entry.key.kind == WAIT])


def claim_plans_of(gathered: Gathered, claimer: Claimer, most: int) -> list[ClaimPlan]:
    """What is to be done about each candidate: claim it, `most` of them, put it off, or nothing."""
    plans: list[ClaimPlan] = []
    number = 0

    for entry in gathered.stuck:
        _log.warning("%s is due but cannot be read, so it is postponed by one lease", entry.key)
        change = Check(entry.key, entry.head.revision, claimer.until_ms)
        plans.append(ClaimPlan(entry.key.id, (change,)))

    for candidate in gathered.candidates.values():
        plan = _claim_plan_of(candidate, claimer)
        if plan is not None and (plan.flow is None or number < most):
            plans.append(plan)
            number += plan.flow is not None

    return plans


def _claim_plan_of(candidate: Candidate, claimer: Claimer) -> ClaimPlan | None:
    now_ms = claimer.now_ms
    error: Exception | None = candidate.error
    if flow_key(candidate.flow_id) in claimer.skip:
        return None

    flow = candidate.flow
    if flow is not None and not has_tags(flow.head, claimer.tags):
        return None  # they were changed since it was found

    if error is None:
        if not candidate.is_free(now_ms):
            return put_off(candidate, now_ms)

        if not candidate.is_due(now_ms):
            return None

        try:
            return plan_claim(candidate, claimer)
        except (CorruptRecordError, StateTypeError) as misfit:
            error = misfit

    key = flow_key(candidate.flow_id)
    _log.warning("%s is due but cannot be read, so it is postponed by one lease: %s", key, error)
    return put_off(candidate, now_ms, until_ms=claimer.until_ms)


def plan_claim(candidate: Candidate, claimer: Claimer) -> ClaimPlan:
    """Claim a flow, close what is overdue of what it waits for, and mark it as notified."""
    record = candidate.flow
    assert record is not None
    key, old = flow_key(candidate.flow_id), record.head
    now_ms = claimer.now_ms
    flow = envelope.decode_flow(key, record, claimer.wanted.type_of(key, record))
    body, shown = record.body, None

    closes = False

    ended = _ended_waits(candidate, now_ms)
    if ended:
        name, wait = ended[0]
        shown = envelope.decode_wait(name, wait)
        closes = candidate.waits[name].head.status == PENDING
        if candidate.awaits and candidate.awaits[0] != name:
            stored_state.set_suspended_on(shown, candidate.awaits[0])

        body = envelope.body_with_wait(old, record.body, shown)
    elif candidate.shown_before is not None:
        _show_again(flow.wait_condition, candidate.shown_before)

    head = old._replace(
        version=old.version + 1,
        updated_ms=now_ms,
        attempts=old.attempts + 1,
        owner=claimer.owner,
        due_ms=claimer.until_ms,
    )
    put = Put(key, head, body, old.revision, old, claiming=True, keeps_body=body is record.body)
    notified = (
        _notify(name, wait, now_ms)
        for name, wait in candidate.waits.items()
        if _is_its_own(candidate, wait)
    )
    changes = (put, *(change for change in notified if change is not None))
    # What a commit has no room for stays due and wakes the flow once more.
    changes = changes[:MAX_CHANGES]
    return ClaimPlan(candidate.flow_id, changes, flow, shown, closes, claimer.lease_ms)


def choose(found: Sequence[Found], number: int) -> list[Found]:
    """Some of the oldest, at random, oldest first.

    Flows and conditions have their shares. Instead of the flows that were drawn, those are taken that
    the store has drawn, since they came with their bodies, if it has drawn as many.
    """
    if len(found) <= number:
        return list(found)

    picked = [place for place, entry in enumerate(found) if entry.picked]
    if len(picked) == number and not number_of_waits(found):
        return [found[place] for place in picked]  # as most claims find it: nothing is left to draw

    places = choices.sample(range(len(found)), number)
    waits = [place for place in places if found[place].key.kind == WAIT]
    flows = number - len(waits)
    if flows <= len(picked):
        places = waits + choices.sample(picked, flows)

    return [found[place] for place in sorted(places)]


def is_terminal(head: Head) -> bool:
    """Whether the flow has ended."""
    return FlowStatus(head.status).is_terminal


def is_held(head: Head, now_ms: int) -> bool:
    """Whether a claim on the flow has not ended."""
    return head.owner is not None and head.due_ms is not None and head.due_ms > now_ms


def needs_notification(head: Head, now_ms: int) -> bool:
    """Whether a condition calls for its parent: it has ended, or is overdue."""
    return head.due_ms is not None and head.due_ms <= now_ms


def awaited_of(candidate: Candidate) -> tuple[str, ...]:
    """What a suspended flow says it waits for; see `Candidate.awaits`."""
    flow = candidate.flow
    if flow is None or flow.head.status != FlowStatus.SUSPENDED.value:
        return ()

    wait = _wait_in(candidate.flow_id, flow)
    if wait is None:
        return ()

    shown, own = wait.correlation_id, wait._suspended_on
    return (shown,) if own is None else (own, shown)


def notified_of(candidate: Candidate) -> str | None:
    """The ended condition in a flow that is not suspended: the worker that received it may have crashed."""
    flow = candidate.flow
    if flow is None or flow.head.status == FlowStatus.SUSPENDED.value:
        return None

    wait = _wait_in(candidate.flow_id, flow)
    return None if wait is None or wait.outcome.value == PENDING else wait.correlation_id


def _wait_in(flow_id: str, flow: Record) -> WaitCondition | None:
    try:
        return envelope.wait_in(flow_key(flow_id), flow)
    except CorruptRecordError:
        return None  # decoding the flow will say so


def _ended_waits(candidate: Candidate, now_ms: int) -> list[tuple[str, Record]]:
    """The conditions that have ended, with those that are overdue as they will be closed."""
    ended: list[tuple[str, Record]] = []

    for name, record in candidate.waits.items():
        head = record.head
        if head.status == PENDING:
            if not needs_notification(head, now_ms) or not _is_its_own(candidate, record):
                continue

            head = head._replace(version=head.version + 1, status=TIMED_OUT)

        ended.append((name, record._replace(head=head)))

    return ended


def _show_again(wait: WaitCondition | None, shown_before: Record) -> None:
    """Show the results of a condition again, if it is still the one that the flow shows."""
    if wait is None or wait.created_at is None or wait.outcome.value != shown_before.head.status:
        return

    if to_ms(wait.created_at) == shown_before.head.created_ms:
        stored_state.load_results(wait, shown_before)


def _is_its_own(candidate: Candidate, wait: Record) -> bool:
    """Whether no other flow has become the parent of a condition that this one waits for."""
    return wait.terms is None or wait.terms.parent in (None, candidate.flow_id)


def _notify(correlation_id: str, record: Record, now_ms: int) -> Put | None:
    """Mark the parent of a condition as notified, and close the condition if it is overdue."""
    head = record.head
    if not needs_notification(head, now_ms) and (head.status == PENDING or head.due_ms is None):
        return None

    return _close(correlation_id, record, now_ms)._replace(notified=True)


def _close(correlation_id: str, record: Record, now_ms: int, due_ms: int | None = None) -> Put:
    old = record.head
    status = TIMED_OUT if old.status == PENDING else old.status
    head = Head(old.version + 1, status, old.created_ms, now_ms, due_ms=due_ms)
    return Put(wait_key(correlation_id), head, b"", old.revision, old, terms=record.terms)


def put_off(candidate: Candidate, now_ms: int, until_ms: int | None = None) -> ClaimPlan | None:
    """For a flow that cannot be claimed: see to it that it does not stand in the way of others.

    While it is held or cannot be read, its conditions are looked at again when that may have
    changed; when it is gone or has ended, no flow is left to notify.
    """
    flow = candidate.flow
    if until_ms is None and flow is not None and not is_terminal(flow.head):
        until_ms = _look_again_ms(flow.head, now_ms)

    changes: list[Change] = []
    if (
        flow is not None
        and flow.head.due_ms is not None
        and flow.head.due_ms <= now_ms
        and until_ms
    ):
        changes.append(Check(flow_key(candidate.flow_id), flow.head.revision, until_ms))

    for name, record in candidate.woken_by.items():
        if not needs_notification(record.head, now_ms):
            continue

        if until_ms is None:
            changes.append(_close(name, record, now_ms)._replace(notified=True))
        elif record.head.status == PENDING:
            changes.append(_close(name, record, now_ms, until_ms))
        else:
            changes.append(Check(wait_key(name), record.head.revision, until_ms))

    return ClaimPlan(candidate.flow_id, tuple(changes[:MAX_CHANGES])) if changes else None


def _look_again_ms(held: Head, now_ms: int) -> int:
    """When to look again at what a held flow is to be notified of.

    Its owner may release it at any time without knowing of that. So the wake-up comes at most a
    quarter of what was left of the lease late, or a second, and costs a few looks in each lease.
    """
    assert held.due_ms is not None, "a claimed flow must have a due time"
    left_ms = held.due_ms - now_ms
    return now_ms + min(left_ms, max(_SOONEST_LOOK_MS, left_ms // 4))


def refused_of(batch: Sequence[ClaimPlan], indices: set[int]) -> list[ClaimPlan]:
    """The plans that have one of the changes with these indices."""
    refused: list[ClaimPlan] = []
    start = 0

    for plan in batch:
        stop = start + len(plan.changes)
        if indices.intersection(range(start, stop)):
            refused.append(plan)

        start = stop

    return refused


def settle_plans(
    batch: Sequence[ClaimPlan], changes: Sequence[Change], outcomes: Sequence[Outcome]
) -> list[FlowSnapshot[Any]]:
    """The flows that a commit has claimed, as they are stored now."""
    claimed: list[FlowSnapshot[Any]] = []
    start = 0

    for plan in batch:
        put, flow = changes[start], plan.flow
        if flow is not None and isinstance(put, Put) and put.head.claim is not None:
            claim = Claim(put.head.claim, plan.lease_ms, warn_of_dropped)
            revision = outcomes[start].revision
            stored_state.set_written(flow, put.head, put.body, revision, claim)
            if plan.shown is not None:
                stored_state.show_wait(flow, plan.shown)
                for place, change in enumerate(plan.changes, start):
                    if change.key == plan.shown.key:
                        end = outcomes[place]
                        stored_state.set_end(plan.shown, end.version, end.revision)

            claimed.append(flow)

        start += len(plan.changes)

    return claimed
