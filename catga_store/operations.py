"""Every operation of a store and of a session, as a conversation: no I/O, written once.

`Operations` asks waist requests (`records`) and answers what the public face promises; the
blocking and the awaiting skins run the same generators. The contract of each operation stands in
the docstrings of `store.Store` and `session.Session`.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from functools import partial
from typing import Any

from attrs import Attribute
from attrs import field
from attrs import frozen

from catga_store import codec
from catga_store import envelope
from catga_store import unit as units
from catga_store.conversation import Conversation
from catga_store.conversation import Invoke
from catga_store.conversation import Pause
from catga_store.conversation import ask
from catga_store.errors import ClaimLostError
from catga_store.errors import CommitUncertainError
from catga_store.errors import ConflictError
from catga_store.errors import CorruptRecordError
from catga_store.errors import FlowExistsError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import StaleFlowError
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError
from catga_store.keys import FLOW
from catga_store.keys import WAIT
from catga_store.keys import Key
from catga_store.keys import check_id
from catga_store.keys import check_step
from catga_store.keys import flow_key
from catga_store.keys import partition_of
from catga_store.keys import progress_key
from catga_store.keys import wait_key
from catga_store.model import AT_ONCE
from catga_store.model import Claim
from catga_store.model import Completion
from catga_store.model import FlowSnapshot
from catga_store.model import FlowStatus
from catga_store.model import FlowSummary
from catga_store.model import ForEachProgress
from catga_store.model import Page
from catga_store.model import Retention
from catga_store.model import WaitCondition
from catga_store.model import WaitOutcome
from catga_store.model import from_ms
from catga_store.model import head_of
from catga_store.model import span_ms
from catga_store.model import to_ms
from catga_store.model import to_ms_up
from catga_store.records import MAX_CHANGES
from catga_store.records import PENDING
from catga_store.records import TIMED_OUT
from catga_store.records import Applied
from catga_store.records import Change
from catga_store.records import Check
from catga_store.records import Clear
from catga_store.records import Commit
from catga_store.records import Complete
from catga_store.records import Conflict
from catga_store.records import Count
from catga_store.records import Delete
from catga_store.records import Due
from catga_store.records import Extend
from catga_store.records import Filter
from catga_store.records import Find
from catga_store.records import Found
from catga_store.records import Head
from catga_store.records import Outcome
from catga_store.records import Overdue
from catga_store.records import Ping
from catga_store.records import Put
from catga_store.records import Read
from catga_store.records import Record
from catga_store.records import Refused
from catga_store.records import Resolve
from catga_store.records import Steps
from catga_store.records import Sweep
from catga_store.unit import Intent
from catga_store.unit import Limits
from catga_store.unit import Receipt
from catga_store.unit import Unit

__all__ = ["DEFAULT_LEASE", "Operations", "Settings", "completion_change", "step_key"]

DEFAULT_LEASE = timedelta(seconds=30)

_log = logging.getLogger("catga_store")

_READ_MANY = 500
_PAGE_MOST = 1000
_NEARBY = 16
"""A claimer picks among so many more of the oldest due than it wants, so that claimers seldom collide."""
_CLAIM_ROUNDS = 64
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.2
_POLL_SECONDS = 0.05


# --- settings -----------------------------------------------------------------------------------


def _default_owner() -> str:
    """Host, process and a random part: who claims, unless told otherwise."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"


def _from_one(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        message = f"{attribute.name} must be an int of at least 1, not {value!r}"
        raise UsageError(message)


def _seconds(value: object) -> float:
    if isinstance(value, timedelta):
        return span_ms(value, "timeout") / 1000

    message = f"timeout must be a timedelta, not {value!r}"
    raise UsageError(message)


def _checked_retention(value: object) -> Retention:
    if isinstance(value, Retention):
        return value

    message = f"retention must be a Retention, not {value!r}"
    raise UsageError(message)


def _checked_owner(value: str | None) -> str | None:
    return None if value is None else check_id(value, "an owner")


@frozen(kw_only=True)
class Settings:
    """What every store can be told; `timeout` becomes seconds."""

    clock: Callable[[], datetime] | None = None
    owner: str | None = field(default=None, converter=_checked_owner)
    timeout: float = field(default=timedelta(seconds=10), converter=_seconds)
    retention: Retention = field(factory=Retention, converter=_checked_retention)
    partitions: int = field(default=1, validator=_from_one)
    max_record_bytes: int = field(default=64 * 1024 * 1024, validator=_from_one)

    def now_ms(self) -> int:
        """The store's time, in milliseconds, rounded down."""
        return time.time_ns() // 1_000_000 if self.clock is None else to_ms(self.clock())


def _new_commit_id() -> str:
    """Unique for ever, and sorting by time: 44 bits of milliseconds, 80 random ones, as hex."""
    return f"{time.time_ns() // 1_000_000:011x}{os.urandom(10).hex()}"


# --- operations ---------------------------------------------------------------------------------


class Operations:
    """The operations of one store, as conversations over waist requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = Limits(
            settings.retention, settings.max_record_bytes, settings.partitions
        )
        self._owner = settings.owner
        self._owner_pid = os.getpid()
        waits = settings.retention.waits
        self._retain_ms = None if waits is None else span_ms(waits, "a retention")

    @property
    def owner(self) -> str:
        """Who claims, unless told otherwise; a forked child is somebody else."""
        if self._owner is None or (self.settings.owner is None and os.getpid() != self._owner_pid):
            self._owner, self._owner_pid = _default_owner(), os.getpid()

        return self._owner

    def now(self) -> datetime:
        """The store's clock, in whole milliseconds."""
        return from_ms(self.settings.now_ms())

    # commits --------------------------------------------------------------------------------------

    def _commit(
        self, changes: tuple[Change, ...], now_ms: int, commit_id: str | None = None
    ) -> Conversation[tuple[str, Applied | Refused]]:
        commit_id = commit_id or _new_commit_id()
        try:
            reply = yield Commit(commit_id, now_ms, changes, self._retain_ms)
        except CommitUncertainError as error:
            error.parts = units.Plan(changes, (None,) * len(changes)).parts  # type: ignore[attr-defined]  # for resolve
            raise

        return commit_id, reply

    def _commit_one(
        self, change: Change, now_ms: int, record: units.AnyRecord | None = None
    ) -> Conversation[Outcome]:
        """A commit of one change; raises its conflict."""
        units.check_partition((change,), self.limits)
        _, reply = yield from self._commit((change,), now_ms)
        if isinstance(reply, Refused):
            raise units.conflict_error(change, reply.conflicts[0], record)

        outcome: Outcome = reply.outcomes[0]
        return outcome

    def resolve_commit(self, error: CommitUncertainError) -> Conversation[Receipt | None]:
        if not isinstance(error, CommitUncertainError):
            message = f"resolve_commit settles a CommitUncertainError, not {error!r}"
            raise UsageError(message)

        keys = tuple(Key(*key) for key in error.keys)
        applied = yield from ask(Resolve(error.commit_id, keys))
        if applied is None:
            return None

        parts = getattr(error, "parts", tuple((key, None, -1) for key in keys))
        known = applied.outcomes if len(applied.outcomes) == len(parts) else ()
        return units.receipt_of(error.commit_id, parts, known)

    # flows ----------------------------------------------------------------------------------------

    def create(self, flow: FlowSnapshot[Any]) -> Conversation[None]:
        _check_flow(flow)
        if head_of(flow) is not None:
            message = f"{flow.key} has a revision: it was stored or read already; update it"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        put = units.plan_flow(flow, now_ms, self.limits)
        outcome = yield from self._commit_one(put, now_ms, flow)
        units.settle_flow(flow, put, outcome, None)

    def get(self, flow_id: str, state_type: Any | None = None) -> Conversation[Any]:
        key = flow_key(check_id(flow_id, "a flow id"))
        (record,) = yield Read((key,), self.settings.now_ms())
        return None if record is None else envelope.decode_flow(flow_id, record, state_type)

    def get_one(self, flow_id: str, state_type: Any | None = None) -> Conversation[Any]:
        flow = yield from self.get(flow_id, state_type)
        if flow is None:
            raise _not_found(flow_id)

        return flow

    def get_or_create(self, flow: FlowSnapshot[Any]) -> Conversation[tuple[FlowSnapshot[Any], bool]]:
        _check_flow(flow)
        state_type = flow.state_type or codec.type_of(flow.state)

        while True:
            try:
                yield from self.create(flow)
            except FlowExistsError:
                stored = yield from self.get(flow.flow_id, state_type)
                if stored is not None:
                    return stored, False
            else:
                return flow, True

    def update(self, flow: FlowSnapshot[Any]) -> Conversation[None]:
        _check_flow(flow)
        if head_of(flow) is None:
            message = f"{flow.key} has no revision: it was never stored or read; create it"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        put = units.plan_flow(flow, now_ms, self.limits)
        outcome = yield from self._commit_one(put, now_ms, flow)
        units.settle_flow(flow, put, outcome, flow._claim)  # noqa: SLF001  the library keeps records

    def delete(
        self,
        flow: FlowSnapshot[Any] | str,
        *,
        version: int | None = None,
        revision: str | None = None,
    ) -> Conversation[bool]:
        record: FlowSnapshot[Any] | None = None
        replaces: Head | None = None

        if isinstance(flow, FlowSnapshot):
            record, key, replaces = flow, flow.key, head_of(flow)
            if replaces is None:
                message = f"{key} was never stored or read: pass its id to delete what is there"
                raise UsageError(message)

            if version is not None or revision is not None:
                message = "a loaded snapshot is its own check: pass version or revision with an id"
                raise UsageError(message)
        else:
            key = flow_key(check_id(flow, "a flow id"))
            if version is not None or revision is not None:
                (found,) = yield Read((key,), self.settings.now_ms())
                if found is None:
                    return False

                replaces = found.head
                asked = revision or version
                holds = replaces.revision if revision is not None else replaces.version
                if asked != holds or (version is not None and version != replaces.version):
                    message = (
                        f"{key} was to be deleted at {asked!r} but the store holds version"
                        f" {replaces.version}; nothing was deleted"
                    )
                    raise StaleFlowError(
                        message, flow_id=key.id, expected=version or 0, actual=replaces.version
                    )

        now_ms = self.settings.now_ms()
        change = Delete(key, None if replaces is None else replaces.revision, replaces)
        try:
            outcome = yield from self._commit_one(change, now_ms, record)
        except FlowNotFoundError:
            return False

        existed: bool = outcome.accepted
        return existed

    def get_many(
        self, flow_ids: Iterable[str], state_type: Any | None = None
    ) -> Conversation[dict[str, Any]]:
        ids = _unique_ids(flow_ids)
        records = yield from self._read([flow_key(flow_id) for flow_id in ids])
        return {
            flow_id: None if record is None else envelope.decode_flow(flow_id, record, state_type)
            for flow_id, record in zip(ids, records, strict=True)
        }

    def _read(self, keys: Sequence[Key]) -> Conversation[list[Record | None]]:
        """Read any number of records, 500 in one request."""
        now_ms = self.settings.now_ms()
        records: list[Record | None] = []

        for start in range(0, len(keys), _READ_MANY):
            records += yield Read(tuple(keys[start : start + _READ_MANY]), now_ms)

        return records

    # listings -------------------------------------------------------------------------------------

    def query_flows(
        self,
        *,
        status: FlowStatus | None = None,
        state_type: Any | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Conversation[Page[FlowSummary]]:
        wanted = _flow_filter(status, state_type, created_after, created_before, updated_before)
        found, following = yield from self._page(wanted, limit, cursor)
        return Page(tuple(envelope.summary_of(entry) for entry in found), following)

    def count_flows(
        self,
        *,
        status: FlowStatus | None = None,
        state_type: Any | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
    ) -> Conversation[int]:
        wanted = _flow_filter(status, state_type, created_after, created_before, updated_before)
        return (yield from ask(Count(wanted, self.settings.now_ms())))

    def query_wait_conditions(
        self,
        *,
        outcome: WaitOutcome | None = None,
        parent_flow_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Conversation[Page[WaitCondition]]:
        if outcome is not None and type(outcome) is not WaitOutcome:
            message = f"outcome must be a WaitOutcome or None, not {outcome!r}"
            raise UsageError(message)

        if parent_flow_id is not None:
            check_id(parent_flow_id, "a parent's flow id")

        status = None if outcome is None else outcome.value
        wanted = Filter(WAIT, status=status, parent=parent_flow_id)
        found, following = yield from self._page(wanted, limit, cursor)
        records = yield from self._read([entry.key for entry in found])
        waits = (
            envelope.decode_wait(entry.key.id, record)
            for entry, record in zip(found, records, strict=True)
            if record is not None
        )
        return Page(tuple(waits), following)

    def _page(
        self, wanted: Filter, limit: int, cursor: str | None
    ) -> Conversation[tuple[tuple[Found, ...], str | None]]:
        if type(limit) is not int or not 1 <= limit <= _PAGE_MOST:
            message = f"limit must be an int from 1 to {_PAGE_MOST}, not {limit!r}"
            raise UsageError(message)

        after = None if cursor is None else _read_cursor(cursor, wanted)
        found = yield Find(wanted, after, limit, self.settings.now_ms())
        if len(found) < limit:
            return found, None

        last: Found = found[-1]
        return found, _write_cursor(wanted, (last.head.created_ms, last.key.id))

    # wait conditions ------------------------------------------------------------------------------

    def set_wait_condition(self, wait: WaitCondition) -> Conversation[bool]:
        _check_wait(wait)
        now_ms = self.settings.now_ms()
        change = units.plan_set_wait(wait, now_ms, self.limits)
        outcome = yield from self._commit_one(change, now_ms, wait)
        units.settle_wait(wait, change, outcome, now_ms)
        return outcome.satisfied

    def get_wait_condition(self, correlation_id: str) -> Conversation[WaitCondition | None]:
        key = wait_key(check_id(correlation_id, "a correlation id"))
        (record,) = yield Read((key,), self.settings.now_ms())
        return None if record is None else envelope.decode_wait(correlation_id, record)

    def update_wait_condition(self, wait: WaitCondition) -> Conversation[bool]:
        _check_wait(wait)
        now_ms = self.settings.now_ms()
        put = units.plan_update_wait(wait, now_ms, self.limits)
        outcome = yield from self._commit_one(put, now_ms, wait)
        units.settle_wait(wait, put, outcome, now_ms)
        return outcome.satisfied

    def clear_wait_condition(self, correlation_id: str) -> Conversation[bool]:
        key = wait_key(check_id(correlation_id, "a correlation id"))
        outcome = yield from self._commit_one(Delete(key, None), self.settings.now_ms())
        return outcome.accepted

    def get_timed_out_wait_conditions(
        self, now: datetime | None = None, limit: int | None = None
    ) -> Conversation[list[WaitCondition]]:
        if limit is not None and (type(limit) is not int or limit < 1):
            message = f"limit must be an int of at least 1 or None, not {limit!r}"
            raise UsageError(message)

        now_ms = self.settings.now_ms() if now is None else to_ms(now)
        found = yield Overdue(now_ms, limit)
        records = yield from self._read([entry.key for entry in found])
        return [
            envelope.decode_wait(entry.key.id, record)
            for entry, record in zip(found, records, strict=True)
            if record is not None and record.head.status == PENDING
        ]

    def complete_child(
        self,
        correlation_id: str,
        child_flow_id: str,
        *,
        success: bool = True,
        result: object = None,
        error: str | None = None,
    ) -> Conversation[Completion]:
        change = completion_change(
            correlation_id, child_flow_id, success=success, result=result, error=error
        )
        outcome = yield from self._commit_one(change, self.settings.now_ms())
        return units.completion_of(outcome)

    # ForEach progress -----------------------------------------------------------------------------

    def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> Conversation[None]:
        key = step_key(flow_id, step_index)
        if type(progress) is not ForEachProgress:
            message = f"progress must be a ForEachProgress, not {progress!r}"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        put = units.plan_progress(progress, key, now_ms, self.limits, overwrite=overwrite)
        outcome = yield from self._commit_one(put, now_ms, progress)
        units.settle_progress(progress, put, outcome)

    def get_for_each_progress(
        self, flow_id: str, step_index: int
    ) -> Conversation[ForEachProgress | None]:
        key = step_key(flow_id, step_index)
        (record,) = yield Read((key,), self.settings.now_ms())
        return None if record is None else envelope.decode_progress(key, record)

    def clear_for_each_progress(self, flow_id: str, step_index: int) -> Conversation[bool]:
        key = step_key(flow_id, step_index)
        outcome = yield from self._commit_one(Delete(key, None), self.settings.now_ms())
        return outcome.accepted

    def list_for_each_progress(self, flow_id: str) -> Conversation[dict[int, ForEachProgress]]:
        check_id(flow_id, "a flow id")
        found = yield Steps(flow_id, self.settings.now_ms())
        keys = [entry.key for entry in found]
        records = yield from self._read(keys)
        return {
            key.step: envelope.decode_progress(key, record)
            for key, record in zip(keys, records, strict=True)
            if record is not None
        }

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
        wanted = codec.type_name(state_type) or None
        claimed: list[FlowSnapshot[Any]] = []

        for _ in range(_CLAIM_ROUNDS):
            missing = limit - len(claimed)
            if not missing:
                break

            now_ms = self.settings.now_ms()
            found = yield Due(now_ms, missing + _NEARBY, wanted)
            if not found:
                break

            chosen = _choose(found, missing)
            gathered = yield from self._gather(chosen, now_ms)
            claimed += yield from self._claim_gathered(
                gathered, state_type, owner, lease_ms, now_ms
            )

        return claimed

    def _gather(
        self, chosen: Sequence[Found], now_ms: int
    ) -> Conversation[dict[str, _Candidate]]:
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
        for correlation_id, record in zip(unread, more, strict=True):
            if record is not None:
                waits[correlation_id] = record

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
    ) -> Conversation[list[FlowSnapshot[Any]]]:
        """Claim the candidates that can be claimed, put the others off; one commit a partition."""
        by_partition: dict[int, list[_Taking]] = {}

        for candidate in candidates.values():
            taking = _taking_of(candidate, state_type, owner, lease_ms, now_ms)
            if taking is not None:
                number = partition_of(taking.flow_id, self.settings.partitions)
                by_partition.setdefault(number, []).append(taking)

        claimed: list[FlowSnapshot[Any]] = []
        for takings in by_partition.values():
            claimed += yield from self._commit_takings(takings, now_ms)

        return claimed

    def _commit_takings(
        self, takings: list[_Taking], now_ms: int
    ) -> Conversation[list[FlowSnapshot[Any]]]:
        """As few commits as they fit in; whatever is refused is left out and the rest sent again."""
        claimed: list[FlowSnapshot[Any]] = []
        queue = list(takings)

        while queue:
            commit_id = _new_commit_id()
            batch: list[_Taking] = []
            changes: list[Change] = []
            for taking in queue:
                if len(changes) + len(taking.changes) <= MAX_CHANGES:
                    batch.append(taking)
                    changes += taking.named(commit_id)

            _, reply = yield from self._commit(tuple(changes), now_ms, commit_id)
            if isinstance(reply, Applied):
                claimed += _settle_takings(batch, changes, reply.outcomes)
                queue = [taking for taking in queue if taking not in batch]
            else:
                refused = _refused(batch, {conflict.index for conflict in reply.conflicts})
                queue = [taking for taking in queue if taking not in refused]

        return claimed

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
                raise _not_found(flow_id)

            if _is_terminal(record.head):
                return envelope.decode_flow(flow_id, record, state_type)

            if _is_held(record.head, now_ms):
                left = give_up - time.monotonic()
                if left <= 0:
                    raise units.claimed_error(flow_id, record.head)

                yield Pause(min(left, _POLL_SECONDS * random.uniform(0.5, 1)))  # noqa: S311  jitter
                continue

            candidate = _Candidate(flow_id, record)
            candidate.awaits = _awaited(candidate)
            if candidate.awaits is not None:
                (wait,) = yield Read((wait_key(candidate.awaits),), now_ms)
                candidate.waits = {} if wait is None else {candidate.awaits: wait}

            taking = _take(candidate, state_type, owner, lease_ms, now_ms)
            claimed = yield from self._commit_takings([taking], now_ms)
            if claimed:
                return claimed[0]

    def extend(self, flow: FlowSnapshot[Any], lease: timedelta | None = None) -> Conversation[None]:
        claim = _claim_of(flow)
        now_ms = self.settings.now_ms()
        lease_ms = claim.lease_ms if lease is None else _lease_ms(lease)
        head = yield Extend(flow.key, claim.token, now_ms + lease_ms, now_ms)
        if head is None:
            message = f"the claim on {flow.key} is lost or was given back; it was not extended"
            raise ClaimLostError(
                message, flow_id=flow.flow_id, expected=flow.version, actual=None
            )

    def release(
        self, flow: FlowSnapshot[Any], *, due_at: datetime | None = AT_ONCE
    ) -> Conversation[None]:
        claim = _claim_of(flow)
        loaded = flow._loaded  # noqa: SLF001  the library keeps records
        assert loaded is not None  # noqa: S101  a claimed flow was read
        old = loaded.head
        now_ms = self.settings.now_ms()
        if due_at is None:
            due_ms = None
        else:
            due_ms = now_ms if due_at is AT_ONCE else to_ms_up(due_at)

        head = old._replace(
            version=old.version + 1, updated_ms=now_ms, owner=None, claim=None, due_ms=due_ms
        )
        put = Put(flow.key, head, loaded.body, old.revision, old, keeps_body=True)
        attempts = flow.attempts
        outcome = yield from self._commit_one(put, now_ms, flow)
        units.settle_flow(flow, put, outcome, claim)
        object.__setattr__(flow, "attempts", attempts)

    # the store ------------------------------------------------------------------------------------

    def sweep(self, limit: int = 1000) -> Conversation[int]:
        if type(limit) is not int or limit < 1:
            message = f"limit must be an int of at least 1, not {limit!r}"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        yield from self._forget_dead_wakes(limit, now_ms)
        removed: int = yield Sweep(now_ms, limit)
        return removed

    def _forget_dead_wakes(self, limit: int, now_ms: int) -> Conversation[None]:
        """Ended conditions whose parent is gone or has ended begin their retention."""
        found = yield Due(now_ms, limit)
        chosen = [entry for entry in found if entry.key.kind == WAIT]
        candidates = yield from self._gather(chosen, now_ms)
        dead = {
            flow_id: candidate
            for flow_id, candidate in candidates.items()
            if candidate.flow is None or _is_terminal(candidate.flow.head)
        }
        yield from self._claim_gathered(dead, None, self.owner, 0, now_ms)

    def ping(self) -> Conversation[None]:
        yield Ping()

    def clear(self) -> Conversation[None]:
        yield Clear()

    # sessions -------------------------------------------------------------------------------------

    def session_get(
        self, unit: Unit, flow_id: str, state_type: Any | None = None
    ) -> Conversation[Any]:
        key = flow_key(check_id(flow_id, "a flow id"))
        entry = unit.find(key)
        if entry is not None:
            return _as_tracked(entry, state_type)

        flow = yield from self.get(flow_id, state_type)
        return self._tracked(unit, key, flow, state_type)

    def session_get_one(
        self, unit: Unit, flow_id: str, state_type: Any | None = None
    ) -> Conversation[Any]:
        flow = yield from self.session_get(unit, flow_id, state_type)
        if flow is None:
            raise _not_found(flow_id)

        return flow

    def session_get_many(
        self, unit: Unit, flow_ids: Iterable[str], state_type: Any | None = None
    ) -> Conversation[dict[str, Any]]:
        ids = _unique_ids(flow_ids)
        unknown = [flow_id for flow_id in ids if unit.find(flow_key(flow_id)) is None]
        read = yield from self.get_many(unknown, state_type)
        answer: dict[str, Any] = {}

        for flow_id in ids:
            key = flow_key(flow_id)
            entry = unit.find(key)
            if entry is None:
                answer[flow_id] = self._tracked(unit, key, read.get(flow_id), state_type)
            else:
                answer[flow_id] = _as_tracked(entry, state_type)

        return answer

    def session_get_wait_condition(
        self, unit: Unit, correlation_id: str
    ) -> Conversation[WaitCondition | None]:
        key = wait_key(check_id(correlation_id, "a correlation id"))
        entry = unit.find(key)
        if entry is not None:
            return _as_tracked(entry, None)

        wait = yield from self.get_wait_condition(correlation_id)
        return self._tracked(unit, key, wait, None)

    def session_get_for_each_progress(
        self, unit: Unit, flow_id: str, step_index: int
    ) -> Conversation[ForEachProgress | None]:
        key = step_key(flow_id, step_index)
        entry = unit.find(key)
        if entry is not None:
            return _as_tracked(entry, None)

        flow = unit.find(flow_key(flow_id))
        if flow is not None and flow.intent is Intent.DELETED:
            return None

        progress = yield from self.get_for_each_progress(flow_id, step_index)
        return self._tracked(unit, key, progress, None)

    def _tracked(self, unit: Unit, key: Key, record: Any, state_type: Any | None) -> Any:
        """Take what was read into the map, unless it got there in the meantime."""
        if record is None:
            return None

        entry = unit.find(key)
        if entry is not None:
            return _as_tracked(entry, state_type)

        unit.track(key, record)
        return record

    def session_refresh(self, unit: Unit, record: units.AnyRecord) -> Conversation[None]:
        if record not in unit:
            message = f"{record!r} is not in this session"
            raise UsageError(message)

        key = units.key_of(record)
        head = head_of(record)
        if head is None:
            message = f"{key} was never stored: there is nothing to refresh it from"
            raise UsageError(message)

        (found,) = yield Read((key,), self.settings.now_ms())
        entry = unit.find(key)
        if entry is None or entry.record is not record:
            message = f"{record!r} left this session while it was read"
            raise UsageError(message)

        if found is None:
            check = Check(key, head.revision)
            raise units.conflict_error(check, Conflict(0, "missing", None), record)

        if isinstance(record, FlowSnapshot):
            if record._claim is not None and found.head.claim != record._claim.token:  # noqa: SLF001  the library keeps records
                conflict = Conflict(0, "stale", found.head)
                raise units.conflict_error(Check(key, head.revision), conflict, record)

            envelope.load_flow(record, found)
        elif isinstance(record, WaitCondition):
            envelope.load_wait(record, found)
        else:
            envelope.load_progress(record, key, found)

        entry.intent = Intent.LOADED

    def suspend(self, unit: Unit, flow: FlowSnapshot[Any], wait: WaitCondition) -> None:
        _check_flow(flow)
        _check_wait(wait)
        if flow.status.is_terminal:
            message = f"{flow.key} is {flow.status.name}: a flow that has ended cannot wait"
            raise UsageError(message)

        if wait.parent_flow_id not in (None, flow.flow_id):
            message = f"{wait.key} has the parent {wait.parent_flow_id!r}, not {flow.flow_id!r}"
            raise UsageError(message)

        unit.add(flow)
        entry = unit.add(wait)
        entry.intent, entry.rearm = Intent.SET, True
        wait.parent_flow_id = flow.flow_id
        flow.status = FlowStatus.SUSPENDED
        flow.due_at = None
        flow.wait_condition = WaitCondition(
            wait.correlation_id,
            flow_ids=wait.flow_ids,
            wait_type=wait.wait_type,
            timeout=wait.timeout,
            parent_flow_id=wait.parent_flow_id,
            created_at=wait.created_at or self.now(),
        )

    def session_commit(self, unit: Unit) -> Conversation[Receipt]:
        unit.step("commit")
        try:
            now_ms = self.settings.now_ms()
            plan = unit.plan(now_ms, self.limits)
        except BaseException:
            unit.step("refuse")
            raise

        if not plan.changes:
            unit.step("settle")
            unit.receipt = Receipt()
            return unit.receipt

        try:
            commit_id, reply = yield from self._commit(plan.changes, now_ms)
        except BaseException as error:
            unit.lose(error)
            raise

        if isinstance(reply, Refused):
            raise unit.refused(plan, reply.conflicts)

        return unit.settle(commit_id, plan, reply.outcomes, now_ms)

    def transact(self, call: Callable[[Unit], Any], attempts: int) -> Conversation[Any]:
        """`call` is the user's function with a session on the unit it is given."""
        if type(attempts) is not int or attempts < 1:
            message = f"attempts must be an int of at least 1, not {attempts!r}"
            raise UsageError(message)

        for attempt in range(1, attempts + 1):
            unit = Unit()
            try:
                result = yield Invoke(partial(call, unit))
                yield from self.session_commit(unit)
            except ConflictError as error:
                if error is not unit.refusal or attempt == attempts:
                    raise
            except CommitUncertainError as error:
                if error is not unit.refusal:
                    raise

                if (yield from self.resolve_commit(error)) is not None:
                    return result

                if attempt == attempts:
                    raise
            else:
                return result
            finally:
                unit.close()

            longest = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2**attempt)
            yield Pause(random.uniform(_SHORTEST_PAUSE, longest))  # noqa: S311  jitter


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
        if self.flow is None or type(put) is not Put:
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
    assert record is not None  # noqa: S101  the caller has looked
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
    given = (_give(name, wait, now_ms) for name, wait in candidate.waits.items())
    changes = (put, *(change for change in given if change is not None))
    return _Taking(candidate.flow_id, changes, flow, shown, lease_ms)


def _choose(found: Sequence[Found], number: int) -> list[Found]:
    """Some of the oldest, at random, oldest first."""
    if len(found) <= number:
        return list(found)

    places = sorted(random.sample(range(len(found)), number))  # noqa: S311  spreads claimers
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
            if not _needs_telling(head, now_ms):
                continue

            head = head._replace(version=head.version + 1, status=TIMED_OUT)

        ended.append((name, record._replace(head=head)))

    return ended


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
    if flow is not None and flow.head.due_ms is not None and flow.head.due_ms <= now_ms and until_ms:
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

    return _Taking(candidate.flow_id, tuple(changes)) if changes else None


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
        if flow is not None and type(put) is Put and put.head.claim is not None:
            claim = Claim(put.head.claim, taking.lease_ms)
            units.settle_flow(flow, put, outcomes[start], claim)
            if taking.shown is not None:
                object.__setattr__(flow, "wait_condition", taking.shown)

            claimed.append(flow)

        start += len(taking.changes)

    return claimed


# --- checks and small things ----------------------------------------------------------------------


def completion_change(
    correlation_id: str,
    child_flow_id: str,
    *,
    success: bool,
    result: object,
    error: str | None,
) -> Complete:
    """The change that records a completion, checked and encoded."""
    key = wait_key(check_id(correlation_id, "a correlation id"))
    child = check_id(child_flow_id, "a child's id")
    if type(success) is not bool:
        message = f"success must be True or False, not {success!r}"
        raise UsageError(message)

    if error is not None and type(error) is not str:
        message = f"error must be text or None, not {error!r}"
        raise UsageError(message)

    return Complete(key, child, success, envelope.encode_completion(correlation_id, result, error))


def _check_flow(flow: object) -> None:
    if type(flow) is not FlowSnapshot:
        message = f"a FlowSnapshot is needed, not {flow!r}"
        raise UsageError(message)


def _check_wait(wait: object) -> None:
    if type(wait) is not WaitCondition:
        message = f"a WaitCondition is needed, not {wait!r}"
        raise UsageError(message)


def _claim_of(flow: FlowSnapshot[Any]) -> Claim:
    _check_flow(flow)
    claim = flow._claim  # noqa: SLF001  the library keeps records
    if claim is None:
        message = f"{flow.key} is not claimed by this object: take it from claim() or claim_due()"
        raise UsageError(message)

    return claim


def step_key(flow_id: str, step_index: int) -> Key:
    """The key of a step's progress, checked."""
    return progress_key(check_id(flow_id, "a flow id"), check_step(step_index))


def _unique_ids(flow_ids: Iterable[str]) -> list[str]:
    if isinstance(flow_ids, str | bytes):
        message = f"flow_ids must be a collection of ids, not the one text {flow_ids!r}"
        raise UsageError(message)

    return list(dict.fromkeys(check_id(flow_id, "a flow id") for flow_id in flow_ids))


def _lease_ms(lease: timedelta) -> int:
    lease_ms = span_ms(lease, "a lease")
    if lease_ms == 0:
        message = "a lease must be longer than 0"
        raise UsageError(message)

    return lease_ms


def _not_found(flow_id: str) -> FlowNotFoundError:
    message = f"there is no flow {flow_id!r}: it never was, was deleted, or has expired"
    return FlowNotFoundError(message, flow_id=flow_id, expected=None)


def _as_tracked(entry: units.Entry, state_type: Any | None) -> Any:
    """What a session has under a key; `StateTypeError` if it was loaded as something else."""
    record = entry.record
    if record is None or entry.intent is Intent.DELETED:
        return None

    if state_type is not None and isinstance(record, FlowSnapshot):
        has = record.state_type or codec.type_of(record.state)
        if has != state_type:
            name, wanted = codec.type_name(has), codec.type_name(state_type)
            message = (
                f"{entry.key} is in this session as {name or 'raw data'!r} and was asked for as"
                f" {wanted!r}; expunge it first, or ask for it as what it is"
            )
            raise StateTypeError(message, expected=wanted, actual=name)

    return record


def _flow_filter(
    status: FlowStatus | None,
    state_type: Any | None,
    created_after: datetime | None,
    created_before: datetime | None,
    updated_before: datetime | None,
) -> Filter:
    if status is not None and type(status) is not FlowStatus:
        message = f"status must be a FlowStatus or None, not {status!r}"
        raise UsageError(message)

    name = state_type if isinstance(state_type, str) else codec.type_name(state_type) or None
    return Filter(
        FLOW,
        None if status is None else status.value,
        name,
        None,
        None if created_after is None else to_ms_up(created_after),
        None if created_before is None else to_ms_up(created_before),
        None if updated_before is None else to_ms_up(updated_before),
    )


def _write_cursor(wanted: Filter, last: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([list(wanted), *last]).encode()).decode()


def _read_cursor(cursor: str, wanted: Filter) -> tuple[int, str]:
    try:
        fields, created_ms, record_id = json.loads(base64.urlsafe_b64decode(cursor))
        after = int(created_ms), str(record_id)
    except (binascii.Error, ValueError, TypeError) as error:
        message = f"{cursor!r} is no cursor of this library"
        raise UsageError(message) from error

    if fields != list(wanted):
        message = "a cursor goes on with the listing it came from: pass the same filters with it"
        raise UsageError(message)

    return after
