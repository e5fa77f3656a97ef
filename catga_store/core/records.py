"""Operations on single records, and listings, as conversations."""

from __future__ import annotations

import base64
import json
import operator
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from catga_store import codec
from catga_store.core import envelope
from catga_store.core import writes
from catga_store.core.arguments import check_flow
from catga_store.core.arguments import check_wait
from catga_store.core.arguments import completion_change
from catga_store.core.arguments import not_found
from catga_store.core.arguments import step_key
from catga_store.core.arguments import unique_ids
from catga_store.core.claims import Claims
from catga_store.errors import CommitUncertainError
from catga_store.errors import FlowExistsError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import InvalidIdError
from catga_store.errors import StaleFlowError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.listings import Page
from catga_store.model.progress import ForEachProgress
from catga_store.model.records_head import head_of
from catga_store.model.times import from_ms
from catga_store.model.times import to_ms
from catga_store.model.times import to_ms_up
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep

__all__ = ["SingleOperations"]

_PAGE_MOST = 1000


class SingleOperations(Claims):
    """Every operation outside a session."""

    # flows ----------------------------------------------------------------------------------------

    def create(self, flow: FlowSnapshot[Any]) -> Conversation[None]:
        check_flow(flow)
        if head_of(flow) is not None:
            message = f"{flow.key} has a revision: it was stored or read already; update it"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        put = writes.plan_flow(flow, now_ms, self.limits)
        outcome = yield from self._commit_one(put, now_ms, flow)
        writes.settle_flow(flow, put, outcome, None)

    def get(self, flow_id: str, state_type: Any | None = None) -> Conversation[Any]:
        key = flow_key(check_id(flow_id, "a flow id"))
        (record,) = yield Read((key,), self.settings.now_ms())
        if record is None:
            codec.check_state_type(state_type)
            return None

        return envelope.decode_flow(key, record, state_type)

    def get_one(self, flow_id: str, state_type: Any | None = None) -> Conversation[Any]:
        flow = yield from self.get(flow_id, state_type)
        if flow is None:
            raise not_found(flow_id)

        return flow

    def get_or_create(
        self, flow: FlowSnapshot[Any]
    ) -> Conversation[tuple[FlowSnapshot[Any], bool]]:
        check_flow(flow)
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
        check_flow(flow)
        if flow._loaded is None:
            message = f"{flow.key} has no revision: it was never stored or read; create it"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        put = writes.plan_flow(flow, now_ms, self.limits)
        changes = (put,)
        try:  # `_commit_one`, written out: most writes are one of these
            reply = yield Commit(new_commit_id(), now_ms, changes, self._retain_ms)
        except CommitUncertainError as error:
            self._note(error, changes)
            raise

        if isinstance(reply, Refused):
            raise writes.conflict_error(put, reply.conflicts[0], flow)

        writes.settle_flow(flow, put, reply.outcomes[0], flow._claim)

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
                _check_expected(version, revision)
                (found,) = yield from ask(Read((key,), self.settings.now_ms()))
                if found is None:
                    return False

                replaces = _expected(key, found.head, version, revision)

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
        ids = unique_ids(flow_ids)
        codec.check_state_type(state_type)
        keys = [flow_key(flow_id) for flow_id in ids]
        records = yield from self._read(keys)
        return {
            key.id: None if record is None else envelope.decode_flow(key, record, state_type)
            for key, record in zip(keys, records, strict=True)
        }

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
        check_wait(wait)
        now_ms = self.settings.now_ms()
        change = writes.plan_set_wait(wait, now_ms, self.limits)
        outcome = yield from self._commit_one(change, now_ms, wait)
        if not outcome.accepted:
            (stored,) = yield Read((wait.key,), now_ms)
            if stored is not None:
                envelope.load_wait(wait, stored)
                return False

        writes.settle_wait(wait, change, outcome, now_ms)
        return outcome.satisfied

    def get_wait_condition(self, correlation_id: str) -> Conversation[WaitCondition | None]:
        key = wait_key(check_id(correlation_id, "a correlation id"))
        (record,) = yield Read((key,), self.settings.now_ms())
        return None if record is None else envelope.decode_wait(correlation_id, record)

    def update_wait_condition(self, wait: WaitCondition) -> Conversation[bool]:
        check_wait(wait)
        now_ms = self.settings.now_ms()
        put = writes.plan_update_wait(wait, now_ms, self.limits)
        outcome = yield from self._commit_one(put, now_ms, wait)
        writes.settle_wait(wait, put, outcome, now_ms)
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
        return writes.completion_of(outcome)

    # ForEach progress -----------------------------------------------------------------------------

    def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> Conversation[None]:
        key = step_key(flow_id, step_index)
        writes.check_flag(overwrite, "overwrite")
        if type(progress) is not ForEachProgress:
            message = f"progress must be a ForEachProgress, not {progress!r}"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        put = writes.plan_progress(progress, key, now_ms, self.limits, overwrite=overwrite)
        outcome = yield from self._commit_one(put, now_ms, progress)
        writes.settle_progress(progress, put, outcome)

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

    # the store ------------------------------------------------------------------------------------

    def sweep(self, limit: int = 1000) -> Conversation[int]:
        if type(limit) is not int or limit < 1:
            message = f"limit must be an int of at least 1, not {limit!r}"
            raise UsageError(message)

        now_ms = self.settings.now_ms()
        yield from self._forget_dead_wakes(limit, now_ms)
        removed: int = yield Sweep(now_ms, limit)
        return removed

    def ping(self) -> Conversation[None]:
        yield Ping()

    def clear(self) -> Conversation[None]:
        yield Clear()


def _check_expected(version: object, revision: object) -> None:
    if version is not None and type(version) is not int:
        message = f"version must be an int or None, not {version!r}"
        raise UsageError(message)

    if revision is not None and type(revision) is not str:
        message = f"revision must be text or None, not {revision!r}"
        raise UsageError(message)


def _expected(key: Key, head: Head, version: int | None, revision: str | None) -> Head:
    """The head, if it has this version and revision, where they are given."""
    if version in (None, head.version) and revision in (None, head.revision):
        return head

    asked = f"version {version}" if version is not None else f"revision {revision!r}"
    message = (
        f"{key} was to be deleted at {asked} but the store holds version {head.version},"
        f" revision {head.revision!r}; nothing was deleted"
    )
    raise StaleFlowError(message, flow_id=key.id, expected=version or 0, actual=head.version)


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

    if isinstance(state_type, str):
        name: str | None = _type_name(state_type)
    else:
        codec.check_state_type(state_type)
        name = codec.type_name(state_type) or None

    return Filter(
        FLOW,
        None if status is None else status.value,
        name,
        None,
        None if created_after is None else to_ms_up(created_after),
        None if created_before is None else to_ms_up(created_before),
        None if updated_before is None else to_ms_up(updated_before),
    )


def _type_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"no state type is named {name!r}: {error}"
        raise UsageError(message) from error

    return name


def _write_cursor(wanted: Filter, last: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([list(wanted), *last]).encode()).decode()


def _read_cursor(cursor: str, wanted: Filter) -> tuple[int, str]:
    try:
        fields, created_ms, record_id = json.loads(base64.urlsafe_b64decode(cursor))
        after = operator.index(created_ms), check_id(record_id, "the id in a cursor")
        from_ms(after[0])
    except (ValueError, TypeError, OverflowError, RecursionError, InvalidIdError) as error:
        message = f"{cursor!r} is no cursor of this library"
        raise UsageError(message) from error

    if fields != list(wanted):
        message = "a cursor goes on with the listing it came from: pass the same filters with it"
        raise UsageError(message)

    return after
