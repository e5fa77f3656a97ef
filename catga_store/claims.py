"""Claims: who may work on a flow, and for how long."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable
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
from catga_store.conversation import ask
from catga_store.errors import CatgaStoreError
from catga_store.errors import ClaimLostError
from catga_store.errors import CorruptRecordError
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.keys import FLOW
from catga_store.keys import WAIT
from catga_store.keys import Key
from catga_store.keys import check_id
from catga_store.keys import flow_key
from catga_store.keys import new_commit_id
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
from catga_store.records import Filter
from catga_store.records import Find
from catga_store.records import Found
from catga_store.records import Head
from catga_store.records import Outcome
from catga_store.records import Put
from catga_store.records import Read
from catga_store.records import Record

__all__ = ["DEFAULT_LEASE", "Claims"]

_log = logging.getLogger("catga_store")

_PAGE_MOST = 1000
_NEARBY = 16
"""A claimer picks among so many more of the oldest due than it wants, so that claimers seldom collide."""
_IDLE_ROUNDS = 64
"""After so many rounds in which others were quicker with everything, a claimer goes away."""
_SOONEST_LOOK_MS = 1000
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
        # What is put off is due later than this, however long it takes: nothing is met twice.
        since_ms = self.settings.now_ms()
        idle = 0
        nearby = 0

        try:
            while len(claimed) < limit and idle < _IDLE_ROUNDS:
                missing = limit - len(claimed)
                due = Due(since_ms, missing + _NEARBY, wanted)
                found = yield due
                if not found:
                    break

                now_ms = max(since_ms, self.settings.now_ms())
                chosen = _choose(found, missing + nearby)
                gathered = yield from self._gather(
                    chosen, now_ms, all_waits=_has_all_waits(chosen, found, due.limit)
                )
                claimer = _Claimer(owner, state_type, now_ms, lease_ms)
                takings = _takings_of(gathered, claimer, missing)
                applied = yield from self._take_all(takings, now_ms, claimed)
                idle = 0 if applied else idle + 1
                # Among many that cannot be claimed, those that can are looked for farther away.
                nearby = 0 if limit - len(claimed) < missing else _NEARBY
        except CatgaStoreError as error:
            # What is claimed is the caller's: an error in its place would lose it for a lease.
            if not claimed:
                raise

            _log.warning("claim_due answers %d of %d flows: %s", len(claimed), limit, error)

        return claimed

    def _gather(
        self, chosen: Sequence[Found], now_ms: int, *, all_waits: bool
    ) -> Conversation[_Gathered]:
        """Candidates, each with its flow and the conditions that bear on it.

        `all_waits`: those chosen are all the conditions that have ended, and none need be looked
        for.
        """
        gathered = _Gathered()
        records, corrupt = yield from self._read_what_can_be([entry.key for entry in chosen])
        gathered.stuck = [entry for entry in chosen if entry.key in corrupt]

        for entry in chosen:
            record = records.get(entry.key)
            if entry.key.kind == FLOW and entry.key not in corrupt:
                gathered.candidate(entry.key.id).flow = record
            elif record is not None and record.terms is not None and record.terms.parent:
                gathered.candidate(record.terms.parent).woken_by[entry.key.id] = record

        unread = [key for key in map(flow_key, gathered.candidates) if key not in records]
        parents, corrupt = yield from self._read_what_can_be(unread)
        for key, parent in parents.items():
            gathered.candidate(key.id).flow = parent

        for key in corrupt:
            gathered.candidate(key.id).error = corrupt[key]

        for candidate in gathered.candidates.values():
            if not all_waits and candidate.is_free(now_ms):
                yield from self._look_for_waits(candidate, now_ms)

        yield from self._read_waits(gathered.candidates.values())
        return gathered

    def _look_for_waits(self, candidate: _Candidate, now_ms: int) -> Conversation[None]:
        """Whatever else has ended that the flow is to be told of; one exchange, as a rule."""
        wanted = Filter(WAIT, parent=candidate.flow_id)
        after: tuple[int, str] | None = None

        while len(candidate.unread) < MAX_CHANGES:
            try:
                page = yield from ask(Find(wanted, after, _PAGE_MOST, now_ms))
            except CorruptRecordError as error:
                if error.key is None:
                    raise

                _log.warning("%s is passed over: %s", flow_key(candidate.flow_id), error)
                return

            candidate.unread += [
                entry.key.id
                for entry in page
                if _needs_telling(entry.head, now_ms) and entry.key.id not in candidate.woken_by
            ]
            if len(page) < _PAGE_MOST:
                return

            after = page[-1].head.created_ms, page[-1].key.id

    def _read_waits(self, candidates: Iterable[_Candidate]) -> Conversation[None]:
        """The conditions that flows await, or that were found to have ended, in one request."""
        keys: dict[Key, None] = {}

        for candidate in candidates:
            candidate.awaits = _awaited(candidate)
            if candidate.awaits is not None and candidate.awaits not in candidate.woken_by:
                keys[wait_key(candidate.awaits)] = None

            keys |= dict.fromkeys(map(wait_key, candidate.unread))

        records, corrupt = yield from self._read_what_can_be(list(keys))

        for candidate in candidates:
            known = {wait_key(name): record for name, record in candidate.woken_by.items()}
            for name in candidate.unread:
                record = records.get(wait_key(name))
                if record is not None:
                    candidate.woken_by[name] = record

            if candidate.awaits is not None:
                key = wait_key(candidate.awaits)
                candidate.awaited = known.get(key) or records.get(key)
                candidate.error = candidate.error or corrupt.get(key)

    def _read_what_can_be(
        self, keys: Sequence[Key]
    ) -> Conversation[tuple[dict[Key, Record], dict[Key, CorruptRecordError]]]:
        """The records that are there, and why others cannot be read: those alone, one by one."""
        found: dict[Key, Record] = {}
        corrupt: dict[Key, CorruptRecordError] = {}

        try:
            records = yield from self._read(keys)
        except CorruptRecordError as error:
            if error.key is None:
                raise  # not a record but all of the store
        else:
            pairs = zip(keys, records, strict=True)
            return {key: record for key, record in pairs if record is not None}, corrupt

        for key in keys:
            try:
                (one,) = yield from self._read([key])
            except CorruptRecordError as error:
                corrupt[key] = error
            else:
                found |= {} if one is None else {key: one}

        return found, corrupt

    def _take_all(
        self, takings: Sequence[_Taking], now_ms: int, claimed: list[FlowSnapshot[Any]]
    ) -> Conversation[bool]:
        """Carry takings out, one commit a partition, and add what was claimed.

        Answers whether anything was written.
        """
        by_partition: dict[int, list[_Taking]] = {}

        for taking in takings:
            number = partition_of(taking.flow_id, self.settings.partitions)
            by_partition.setdefault(number, []).append(taking)

        written = False
        for some in by_partition.values():
            written |= yield from self._commit_takings(some, now_ms, claimed)

        return written

    def _commit_takings(
        self, takings: list[_Taking], now_ms: int, claimed: list[FlowSnapshot[Any]]
    ) -> Conversation[bool]:
        """As few commits as they fit in; whatever is refused is left out and the rest sent again."""
        queue = list(takings)
        written = False

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
                written = True
                claimed += _settle_takings(batch, changes, reply.outcomes)
                yield from self._load_results(
                    [taking.shown for taking in batch if taking.shown and taking.closes]
                )
                queue = [taking for taking in queue if taking not in batch]
            else:
                refused = _refused(batch, {conflict.place for conflict in reply.conflicts})
                queue = [taking for taking in queue if taking not in refused]

        return written

    def _load_results(self, waits: Sequence[WaitCondition]) -> Conversation[None]:
        """After a commit: how the children of waits that have ended had completed.

        A completion changes no revision, so only a look at what was closed tells what had come
        between its reading and its end.
        """
        try:
            records = yield from self._read([wait.key for wait in waits])
        except CatgaStoreError as error:
            # What was committed is: an error would say that it is not.
            names = ", ".join(repr(wait.correlation_id) for wait in waits)
            _log.warning("results of the wait conditions %s may be missing: %s", names, error)
            return

        for wait, record in zip(waits, records, strict=True):
            if record is not None:
                envelope.load_wait(wait, record)

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
            yield from self._look_for_waits(candidate, now_ms)
            yield from self._read_waits([candidate])
            if candidate.error is not None:
                raise candidate.error

            taking = _take(candidate, _Claimer(owner, state_type, now_ms, lease_ms))
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
        gathered = yield from self._gather(chosen, now_ms, all_waits=True)
        takings = [
            _put_off(candidate, now_ms)
            for candidate in gathered.candidates.values()
            if candidate.has_ended
        ]
        yield from self._take_all([taking for taking in takings if taking], now_ms, [])


# --- what claims are made of ------------------------------------------------------------------------


@frozen
class _Claimer:
    """Who claims, as what state, from when and for how long."""

    owner: str
    state_type: Any | None
    now_ms: int
    lease_ms: int

    @property
    def until_ms(self) -> int:
        """The end of the lease."""
        return self.now_ms + self.lease_ms


class _Candidate:
    """A flow that is due, or that conditions say should be told, with what bears on it."""

    def __init__(self, flow_id: str, flow: Record | None = None) -> None:
        self.flow_id = flow_id
        self.flow = flow
        self.error: CorruptRecordError | None = None
        """Why it cannot be claimed, if what is stored cannot be read."""
        self.woken_by: dict[str, Record] = {}
        self.unread: list[str] = []
        """Further conditions that wake it."""
        self.awaits: str | None = None
        self.awaited: Record | None = None

    @property
    def has_ended(self) -> bool:
        """Whether there is nobody left to tell."""
        return self.error is None and (self.flow is None or _is_terminal(self.flow.head))

    def is_free(self, now_ms: int) -> bool:
        """Whether it is there to be claimed."""
        return self.flow is not None and not (
            _is_terminal(self.flow.head) or _is_held(self.flow.head, now_ms)
        )

    def is_due(self, now_ms: int) -> bool:
        """Whether it is to be claimed now."""
        if self.flow is None:
            return False

        due_ms = self.flow.head.due_ms
        return (due_ms is not None and due_ms <= now_ms) or any(
            _needs_telling(wait.head, now_ms) for wait in self.woken_by.values()
        )

    @property
    def waits(self) -> dict[str, Record]:
        """The conditions that bear on it, the one that it says it waits for before others."""
        if self.awaits is None or self.awaited is None:
            return self.woken_by

        return {self.awaits: self.awaited} | self.woken_by


class _Gathered:
    """Candidates by flow id, and what is due and cannot be read."""

    def __init__(self) -> None:
        self.candidates: dict[str, _Candidate] = {}
        self.stuck: list[Found] = []

    def candidate(self, flow_id: str) -> _Candidate:
        """The candidate of that flow."""
        return self.candidates.setdefault(flow_id, _Candidate(flow_id))


@frozen(eq=False)
class _Taking:
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


def _has_all_waits(chosen: Sequence[Found], found: Sequence[Found], limit: int) -> bool:
    """Whether every condition that has ended was found, and chosen."""
    number = sum(entry.key.kind == WAIT for entry in found)
    return number < limit and number == sum(entry.key.kind == WAIT for entry in chosen)


def _takings_of(gathered: _Gathered, claimer: _Claimer, most: int) -> list[_Taking]:
    """What is to be done about each candidate: claim it, `most` of them, put it off, or nothing."""
    takings: list[_Taking] = []
    number = 0

    for entry in gathered.stuck:
        _log.warning("%s is due but cannot be read, put off by one lease", entry.key)
        change = Check(entry.key, entry.head.revision, claimer.until_ms)
        takings.append(_Taking(entry.key.id, (change,)))

    for candidate in gathered.candidates.values():
        taking = _taking_of(candidate, claimer)
        if taking is not None and (taking.flow is None or number < most):
            takings.append(taking)
            number += taking.flow is not None

    return takings


def _taking_of(candidate: _Candidate, claimer: _Claimer) -> _Taking | None:
    now_ms = claimer.now_ms
    error: Exception | None = candidate.error

    if error is None:
        if not candidate.is_free(now_ms):
            return _put_off(candidate, now_ms)

        if not candidate.is_due(now_ms):
            return None

        try:
            return _take(candidate, claimer)
        except (CorruptRecordError, StateTypeError) as misfit:
            error = misfit

    key = flow_key(candidate.flow_id)
    _log.warning("%s is due but cannot be read, put off by one lease: %s", key, error)
    return _put_off(candidate, now_ms, until_ms=claimer.until_ms)


def _take(candidate: _Candidate, claimer: _Claimer) -> _Taking:
    """Claim a flow, close what is overdue of what it waits for, and mark it as told."""
    record = candidate.flow
    assert record is not None
    key, old = flow_key(candidate.flow_id), record.head
    now_ms = claimer.now_ms
    flow = envelope.decode_flow(candidate.flow_id, record, claimer.state_type)
    body, shown = record.body, None

    closes = False

    ended = _ended_waits(candidate, now_ms)
    if ended:
        name, wait = ended[0]
        shown = envelope.decode_wait(name, wait)
        closes = candidate.waits[name].head.status == PENDING
        body = envelope.body_with_wait(old, record.body, shown)

    head = old._replace(
        version=old.version + 1,
        updated_ms=now_ms,
        attempts=old.attempts + 1,
        owner=claimer.owner,
        due_ms=claimer.until_ms,
    )
    put = Put(key, head, body, old.revision, old, claiming=True, keeps_body=body is record.body)
    given = (
        _give(name, wait, now_ms)
        for name, wait in candidate.waits.items()
        if _is_its_own(candidate, wait)
    )
    changes = (put, *(change for change in given if change is not None))
    # What a commit has no room for stays due and wakes the flow once more.
    changes = changes[:MAX_CHANGES]
    return _Taking(candidate.flow_id, changes, flow, shown, closes, claimer.lease_ms)


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
        if not _needs_telling(record.head, now_ms):
            continue

        if until_ms is None:
            changes.append(_close(name, record, now_ms)._replace(given=True))
        elif record.head.status == PENDING:
            changes.append(_close(name, record, now_ms, until_ms))
        else:
            changes.append(Check(wait_key(name), record.head.revision, until_ms))

    return _Taking(candidate.flow_id, tuple(changes[:MAX_CHANGES])) if changes else None


def _look_again_ms(held: Head, now_ms: int) -> int | None:
    """When to look again at what a held flow is to be told of.

    Its owner may give it back any time without knowing of that. So the wake-up comes at most a
    quarter of what was left of the lease late, or a second, and costs a few looks in each lease.
    """
    if held.due_ms is None:
        return None

    left_ms = held.due_ms - now_ms
    return now_ms + min(left_ms, max(_SOONEST_LOOK_MS, left_ms // 4))


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
                for place, change in enumerate(taking.changes, start):
                    if change.key == taking.shown.key:
                        plans.settle_end(taking.shown, outcomes[place])

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
