"""Claims: who may work on a flow, and for how long."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from typing import Any

from attrs import frozen

from catga_store import codec
from catga_store import envelope
from catga_store import plans
from catga_store.checks import check_flow
from catga_store.checks import not_found
from catga_store.commits import Commits
from catga_store.conversation import Conversation
from catga_store.conversation import Pause
from catga_store.errors import CatgaStoreError
from catga_store.errors import ClaimLostError
from catga_store.errors import CorruptRecordError
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.keys import FLOW
from catga_store.keys import WAIT
from catga_store.keys import check_id
from catga_store.keys import flow_key
from catga_store.keys import partition_of
from catga_store.keys import wait_key
from catga_store.model import AT_ONCE
from catga_store.model import Claim
from catga_store.model import FlowSnapshot
from catga_store.model import FlowStatus
from catga_store.model import WaitCondition
from catga_store.model import moment_up
from catga_store.model import span_ms
from catga_store.model import to_ms
from catga_store.records import MAX_CHANGES
from catga_store.records import PENDING
from catga_store.records import TIMED_OUT
from catga_store.records import Applied
from catga_store.records import Change
from catga_store.records import Check
from catga_store.records import Due
from catga_store.records import Extend
from catga_store.records import Found
from catga_store.records import Head
from catga_store.records import Outcome
from catga_store.records import Put
from catga_store.records import Read
from catga_store.records import Record
from catga_store.settings import new_commit_id

__all__ = ["DEFAULT_LEASE", "Claims"]

_log = logging.getLogger("catga_store")

_PAGE_MOST = 1000
_NEARBY = 16
"""A claimer picks among so many more of the oldest due than it wants, so that claimers seldom collide."""
_CLAIM_ROUNDS = 64
_POLL_SECONDS = 0.05

DEFAULT_LEASE = timedelta(seconds=30)


class Claims(Commits):
    """Claims as conversations over waist requests."""

    # claims ---------------------------------------------------------------------------------------

    def claim_due(
        self,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
    ) -> Conversation[list[FlowSnapshot[Any]]]:
        if type(limit) is not int or not 1 <= limit <= _PAGE_MOST:
            message = f"limit must be an int from 1 to {_PAGE_MOST}, not {limit!r}"
            raise UsageError(message)

        lease_ms = _lease_ms(lease)
        owner = self.owner if owner is None else check_id(owner, "an owner")
        codec.check_state_type(state_type)
        wanted = codec.type_name(state_type) or None
        claimed: list[FlowSnapshot[Any]] = []

        try:
            for _ in range(_CLAIM_ROUNDS):
                missing = limit - len(claimed)
                if not missing:
                    break

                now_ms = self.settings.now_ms()
                found = yield Due(now_ms, missing + _NEARBY, wanted)
                if not found:
                    break

                chosen = _choose(found, missing)
                gathered = yield from self._gather(chosen)
                yield from self._claim_gathered(
                    gathered, state_type, owner, lease_ms, now_ms, claimed=claimed
                )
        except CatgaStoreError as error:
            # What is claimed is the caller's: an error in its place would lose it for a lease.
            if not claimed:
                raise

            _log.warning("claim_due answers %d of %d flows: %s", len(claimed), limit, error)

        return claimed

    def _gather(self, chosen: Sequence[Found]) -> Conversation[dict[str, _Candidate]]:
        """Candidates by flow id, each with its flow and the conditions that bear on it."""
        records = yield from self._read([entry.key for entry in chosen])
        candidates: dict[str, _Candidate] = {}
        flows: dict[str, Record | None] = {}
        waits: dict[str, Record] = {}

        for entry, record in zip(chosen, records, strict=True):
            if entry.key.kind == FLOW:
                flows[entry.key.id] = record
                candidates.setdefault(entry.key.id, _Candidate(entry.key.id))
            elif record is not None and record.terms is not None and record.terms.parent:
                waits[entry.key.id] = record
                parent = record.terms.parent
                candidates.setdefault(parent, _Candidate(parent)).woken_by.append(entry.key.id)

        absent = [flow_key(flow_id) for flow_id in candidates if flow_id not in flows]
        parents = yield from self._read(absent)
        flows |= {key.id: record for key, record in zip(absent, parents, strict=True)}

        for candidate in candidates.values():
            candidate.flow = flows[candidate.flow_id]
            candidate.awaits = _awaited(candidate)

        unread = [
            candidate.awaits
            for candidate in candidates.values()
            if candidate.awaits is not None and candidate.awaits not in waits
        ]
        more = yield from self._read([wait_key(correlation_id) for correlation_id in unread])
        waits |= {
            correlation_id: record
            for correlation_id, record in zip(unread, more, strict=True)
            if record is not None
        }

        for candidate in candidates.values():
            names = dict.fromkeys(candidate.woken_by)
            if candidate.awaits is not None:
                names = {candidate.awaits: None, **names}

            candidate.waits = {name: waits[name] for name in names if name in waits}

        return candidates

    def _claim_gathered(
        self,
        candidates: dict[str, _Candidate],
        state_type: Any | None,
        owner: str,
        lease_ms: int,
        now_ms: int,
        *,
        claimed: list[FlowSnapshot[Any]],
    ) -> Conversation[None]:
        """Add the candidates that can be claimed, put the others off; one commit a partition."""
        by_partition: dict[int, list[_Taking]] = {}

        for candidate in candidates.values():
            taking = _taking_of(candidate, state_type, owner, lease_ms, now_ms)
            if taking is not None:
                number = partition_of(taking.flow_id, self.settings.partitions)
                by_partition.setdefault(number, []).append(taking)

        for takings in by_partition.values():
            yield from self._commit_takings(takings, now_ms, claimed)

    def _commit_takings(
        self, takings: list[_Taking], now_ms: int, claimed: list[FlowSnapshot[Any]]
    ) -> Conversation[None]:
        """As few commits as they fit in; whatever is refused is left out and the rest sent again."""
        queue = list(takings)

        while queue:
            commit_id = new_commit_id()
            batch: list[_Taking] = []
            changes: list[Change] = []
            for taking in queue:
                if len(changes) + len(taking.changes) <= MAX_CHANGES:
                    batch.append(taking)
                    changes += taking.named(commit_id)

            _, reply = yield from self.commit(tuple(changes), now_ms, commit_id)
            if isinstance(reply, Applied):
                claimed += _settle_takings(batch, changes, reply.outcomes)
                queue = [taking for taking in queue if taking not in batch]
            else:
                refused = _refused(batch, {conflict.place for conflict in reply.conflicts})
                queue = [taking for taking in queue if taking not in refused]

    def claim(
        self,
        flow_id: str,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        timeout: timedelta = timedelta(0),
        owner: str | None = None,
    ) -> Conversation[FlowSnapshot[Any]]:
        check_id(flow_id, "a flow id")
        lease_ms = _lease_ms(lease)
        owner = self.owner if owner is None else check_id(owner, "an owner")
        give_up = time.monotonic() + span_ms(timeout, "timeout") / 1000

        while True:
            now_ms = self.settings.now_ms()
            (record,) = yield Read((flow_key(flow_id),), now_ms)
            if record is None:
                raise not_found(flow_id)

            if _is_terminal(record.head):
                return envelope.decode_flow(flow_id, record, state_type)

            if _is_held(record.head, now_ms):
                left = give_up - time.monotonic()
                if left <= 0:
                    raise plans.claimed_error(flow_id, record.head)

                yield Pause(min(left, _POLL_SECONDS * random.uniform(0.5, 1)))
                continue

            candidate = _Candidate(flow_id, record)
            candidate.awaits = _awaited(candidate)
            if candidate.awaits is not None:
                (wait,) = yield Read((wait_key(candidate.awaits),), now_ms)
                candidate.waits = {} if wait is None else {candidate.awaits: wait}

            taking = _take(candidate, state_type, owner, lease_ms, now_ms)
            claimed: list[FlowSnapshot[Any]] = []
            yield from self._commit_takings([taking], now_ms, claimed)
            if claimed:
                return claimed[0]

    def extend(self, flow: FlowSnapshot[Any], lease: timedelta | None = None) -> Conversation[None]:
        claim = _claim_of(flow)
        now_ms = self.settings.now_ms()
        lease_ms = claim.lease_ms if lease is None else _lease_ms(lease)
        head = yield Extend(flow.key, claim.token, now_ms + lease_ms, now_ms)
        if head is None:
            message = f"the claim on {flow.key} is lost or was given back; it was not extended"
            raise ClaimLostError(message, flow_id=flow.flow_id, expected=flow.version, actual=None)

    def release(
        self, flow: FlowSnapshot[Any], *, due_at: datetime | None = AT_ONCE
    ) -> Conversation[None]:
        claim = _claim_of(flow)
        loaded = flow._loaded
        assert loaded is not None
        old = loaded.head
        now_ms = self.settings.now_ms()
        until = moment_up(due_at)
        due_ms = None if until is None else now_ms if until == AT_ONCE else to_ms(until)
        head = old._replace(
            version=old.version + 1, updated_ms=now_ms, owner=None, claim=None, due_ms=due_ms
        )
        put = Put(flow.key, head, loaded.body, old.revision, old, keeps_body=True)
        attempts = flow.attempts
        outcome = yield from self._commit_one(put, now_ms, flow)
        plans.settle_flow(flow, put, outcome, claim)
        object.__setattr__(flow, "attempts", attempts)

    def _forget_dead_wakes(self, limit: int, now_ms: int) -> Conversation[None]:
        """Ended conditions whose parent is gone or has ended begin their retention."""
        found = yield Due(now_ms, limit)
        chosen = [entry for entry in found if entry.key.kind == WAIT]
        candidates = yield from self._gather(chosen)
        dead = {
            flow_id: candidate
            for flow_id, candidate in candidates.items()
            if candidate.flow is None or _is_terminal(candidate.flow.head)
        }
        yield from self._claim_gathered(dead, None, self.owner, 0, now_ms, claimed=[])


# --- what claims are made of ------------------------------------------------------------------------


class _Candidate:
    """A flow that is due, or that conditions say should be told, with what bears on it."""

    def __init__(self, flow_id: str, flow: Record | None = None) -> None:
        self.flow_id = flow_id
        self.flow = flow
        self.woken_by: list[str] = []
        self.awaits: str | None = None
        self.waits: dict[str, Record] = {}

    def is_due(self, now_ms: int) -> bool:
        if self.flow is None:
            return False

        due_ms = self.flow.head.due_ms
        return (due_ms is not None and due_ms <= now_ms) or any(
            _needs_telling(self.waits[name].head, now_ms)
            for name in self.woken_by
            if name in self.waits
        )


@frozen(eq=False)
class _Taking:
    """The changes that claim one flow, or that only put its conditions off (`flow` is `None`)."""

    flow_id: str
    changes: tuple[Change, ...]
    flow: FlowSnapshot[Any] | None = None
    shown: WaitCondition | None = None
    lease_ms: int = 0

    def named(self, commit_id: str) -> tuple[Change, ...]:
        """The changes of that commit: its id is the token of the claim."""
        put = self.changes[0]
        if self.flow is None or not isinstance(put, Put):
            return self.changes

        return put._replace(head=put.head._replace(claim=commit_id)), *self.changes[1:]


def _taking_of(
    candidate: _Candidate, state_type: Any | None, owner: str, lease_ms: int, now_ms: int
) -> _Taking | None:
    """What is to be done about one candidate: claim it, put it off, or nothing."""
    flow = candidate.flow
    if flow is None or _is_terminal(flow.head) or _is_held(flow.head, now_ms):
        return _put_off(candidate, now_ms)

    if not candidate.is_due(now_ms):
        return None

    try:
        return _take(candidate, state_type, owner, lease_ms, now_ms)
    except (CorruptRecordError, StateTypeError) as error:
        key = flow_key(candidate.flow_id)
        _log.warning("%s is due but cannot be read, put off by one lease: %s", key, error)
        return _put_off(candidate, now_ms, until_ms=now_ms + lease_ms)


def _take(
    candidate: _Candidate, state_type: Any | None, owner: str, lease_ms: int, now_ms: int
) -> _Taking:
    """Claim a flow, close what is overdue of what it waits for, and mark it as told."""
    record = candidate.flow
    assert record is not None
    key, old = flow_key(candidate.flow_id), record.head
    flow = envelope.decode_flow(candidate.flow_id, record, state_type)
    body, shown = record.body, None

    ended = _ended_waits(candidate, now_ms)
    if ended:
        shown = envelope.decode_wait(*ended[0])
        body = envelope.body_with_wait(old, record.body, shown)

    head = old._replace(
        version=old.version + 1,
        updated_ms=now_ms,
        attempts=old.attempts + 1,
        owner=owner,
        due_ms=now_ms + lease_ms,
    )
    put = Put(key, head, body, old.revision, old, claiming=True, keeps_body=body is record.body)
    given = (
        _give(name, wait, now_ms)
        for name, wait in candidate.waits.items()
        if _is_its_own(candidate, wait)
    )
    changes = (put, *(change for change in given if change is not None))
    # What a commit has no room for stays due and wakes the flow once more.
    return _Taking(candidate.flow_id, changes[:MAX_CHANGES], flow, shown, lease_ms)


def _choose(found: Sequence[Found], number: int) -> list[Found]:
    """Some of the oldest, at random, oldest first."""
    if len(found) <= number:
        return list(found)

    places = sorted(random.sample(range(len(found)), number))
    return [found[place] for place in places]


def _is_terminal(head: Head) -> bool:
    return FlowStatus(head.status).is_terminal


def _is_held(head: Head, now_ms: int) -> bool:
    return head.owner is not None and head.due_ms is not None and head.due_ms > now_ms


def _needs_telling(head: Head, now_ms: int) -> bool:
    return head.due_ms is not None and head.due_ms <= now_ms


def _awaited(candidate: _Candidate) -> str | None:
    """The condition that a suspended flow says it waits for."""
    flow = candidate.flow
    if flow is None or flow.head.status != FlowStatus.SUSPENDED.value:
        return None

    try:
        return envelope.awaited_by(flow_key(candidate.flow_id), flow)
    except CorruptRecordError:
        return None  # decoding the flow will say so


def _ended_waits(candidate: _Candidate, now_ms: int) -> list[tuple[str, Record]]:
    """The conditions that have ended, with those that are overdue as they will be closed."""
    ended: list[tuple[str, Record]] = []

    for name, record in candidate.waits.items():
        head = record.head
        if head.status == PENDING:
            if not _needs_telling(head, now_ms) or not _is_its_own(candidate, record):
                continue

            head = head._replace(version=head.version + 1, status=TIMED_OUT)

        ended.append((name, record._replace(head=head)))

    return ended


def _is_its_own(candidate: _Candidate, wait: Record) -> bool:
    """Whether no other flow has become the parent of a condition that this one waits for."""
    return wait.terms is None or wait.terms.parent in (None, candidate.flow_id)


def _give(correlation_id: str, record: Record, now_ms: int) -> Put | None:
    """Mark a condition's parent as told, closing it if it is overdue; nothing if it is neither."""
    head = record.head
    if not _needs_telling(head, now_ms) and (head.status == PENDING or head.due_ms is None):
        return None

    return _close(correlation_id, record, now_ms)._replace(given=True)


def _close(correlation_id: str, record: Record, now_ms: int, due_ms: int | None = None) -> Put:
    old = record.head
    status = TIMED_OUT if old.status == PENDING else old.status
    head = Head(old.version + 1, status, old.created_ms, now_ms, due_ms=due_ms)
    return Put(wait_key(correlation_id), head, b"", old.revision, old, terms=record.terms)


def _put_off(candidate: _Candidate, now_ms: int, until_ms: int | None = None) -> _Taking | None:
    """For a flow that cannot be claimed: see to it that it does not stand in the way of others.

    While it is held or cannot be read, its conditions are looked at again when that may have
    changed; when it is gone or has ended, there is nobody to tell.
    """
    flow = candidate.flow
    if until_ms is None and flow is not None and not _is_terminal(flow.head):
        until_ms = flow.head.due_ms

    changes: list[Change] = []
    if (
        flow is not None
        and flow.head.due_ms is not None
        and flow.head.due_ms <= now_ms
        and until_ms
    ):
        changes.append(Check(flow_key(candidate.flow_id), flow.head.revision, until_ms))

    for name in candidate.woken_by:
        record = candidate.waits.get(name)
        if record is None or not _needs_telling(record.head, now_ms):
            continue

        if until_ms is None:
            changes.append(_close(name, record, now_ms)._replace(given=True))
        elif record.head.status == PENDING:
            changes.append(_close(name, record, now_ms, until_ms))
        else:
            changes.append(Check(wait_key(name), record.head.revision, until_ms))

    return _Taking(candidate.flow_id, tuple(changes[:MAX_CHANGES])) if changes else None


def _refused(batch: Sequence[_Taking], indices: set[int]) -> list[_Taking]:
    """The takings that have one of the changes with these indices."""
    refused: list[_Taking] = []
    start = 0

    for taking in batch:
        stop = start + len(taking.changes)
        if indices.intersection(range(start, stop)):
            refused.append(taking)

        start = stop

    return refused


def _settle_takings(
    batch: Sequence[_Taking], changes: Sequence[Change], outcomes: Sequence[Outcome]
) -> list[FlowSnapshot[Any]]:
    claimed: list[FlowSnapshot[Any]] = []
    start = 0

    for taking in batch:
        put, flow = changes[start], taking.flow
        if flow is not None and isinstance(put, Put) and put.head.claim is not None:
            claim = Claim(put.head.claim, taking.lease_ms)
            plans.settle_flow(flow, put, outcomes[start], claim)
            if taking.shown is not None:
                object.__setattr__(flow, "wait_condition", taking.shown)

            claimed.append(flow)

        start += len(taking.changes)

    return claimed


def _claim_of(flow: FlowSnapshot[Any]) -> Claim:
    check_flow(flow)
    claim = flow._claim
    if claim is None:
        message = f"{flow.key} is not claimed by this object: take it from claim() or claim_due()"
        raise UsageError(message)

    return claim


def _lease_ms(lease: timedelta) -> int:
    lease_ms = span_ms(lease, "a lease")
    if lease_ms == 0:
        message = "a lease must be longer than 0"
        raise UsageError(message)

    return lease_ms
