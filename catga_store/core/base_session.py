"""What `Session` and `AsyncSession` share: everything that does no I/O."""

from __future__ import annotations

from typing import Any
from typing import Literal

from catga_store.core import claims
from catga_store.core import parts
from catga_store.core import sessions
from catga_store.core.arguments import completion_change
from catga_store.core.arguments import step_key
from catga_store.core.bodies import as_shown
from catga_store.core.context import Context
from catga_store.core.entries import Intent
from catga_store.core.receipts import Receipt
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.errors import EncodingError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import AnyRecord
from catga_store.model.waits import WaitCondition
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key

__all__ = ["BaseSession"]


class BaseSession:
    """State and plain methods of a session, the same on both APIs."""

    def __init__(self, context: Context, unit: UnitOfWork | None = None) -> None:
        self._context = context
        self._unit = UnitOfWork() if unit is None else unit

    def add(self, record: AnyRecord) -> None:
        """Track a record, and write it at the next commit.

        A record without a revision is created (flow) or set (condition). One with a revision is
        written if it has changed.
        """
        self._unit.add(record)

    def delete(self, record: AnyRecord) -> None:
        """Queue the deletion of a loaded record; it is version-checked.

        Afterwards `get` returns `None`, and `add` of the same key replaces it in the same commit.
        """
        self._unit.delete(record)

    def delete_by_id(self, flow_id: str) -> None:
        """Queue the deletion of a flow and its ForEach progress, whatever is stored then.

        Nothing is read or checked, so this never makes a commit conflict, and the receipt does not
        say whether there was a flow. A flow that reports its end (`reports_to`) does so in the commit,
        which then takes a second round trip. The session's object for the flow, if it has one, leaves the
        session with its changes; afterwards `get` returns `None`. A new flow cannot take its place
        in the same commit (`UsageError` from `add`): load the flow and `delete` it for that.

        >>> from catga_store import FlowSnapshot, MemoryStore
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={}))
        >>> with store.begin() as session:
        ...     session.delete_by_id("order-1")
        ...     session.delete_by_id("order-2")
        >>> store.get("order-1") is None
        True
        """
        self._unit.delete_by_id(flow_key(check_id(flow_id, "a flow id")))

    def add_part(
        self, part: Part[Any], *, exists: Literal["refuse", "keep", "overwrite"] = "refuse"
    ) -> None:
        """Track a part, and write it at the next commit.

        A part that was read is written if it has changed and the store still holds what was read, else
        the commit raises `StalePartError`. A new part expects that there is none (`PartExistsError`);
        with `exists="keep"` it is written only if there is none, which never makes a commit conflict:
        `receipt.kept` names those that were there, and their objects leave the session. With
        `exists="overwrite"` it is written whatever is there.

        >>> from catga_store import FlowSnapshot, MemoryStore, Part
        >>> store = MemoryStore()
        >>> with store.begin() as session:
        ...     session.add(FlowSnapshot("order-1", state={}))
        ...     session.add_part(Part("order-1", "invoice", b"%PDF-1.7", tag="application/pdf"))
        >>> store.get_part("order-1", "invoice").body
        b'%PDF-1.7'
        """
        self._unit.add_part(part, exists)

    def delete_part(self, part: Part[Any]) -> None:
        """Queue the deletion of a part that was read or written; it is version-checked."""
        self._unit.delete(part)

    def append(
        self, flow_id: str, body: object, *, log: str = "log", key: str | None = None
    ) -> None:
        """Queue an entry of a log of a flow; the receipt's `entries` says its sequence.

        The store gives the sequence at commit: from 1, without gaps, in the order of commits. An append
        never makes a commit conflict. If the log has an entry with the same `key`, nothing is written,
        and the receipt says `duplicate` with the sequence of that entry. The body is encoded now, so
        later changes of the object are not written; it is `bytes` or whatever a state can be.

        >>> from catga_store import FlowSnapshot, MemoryStore
        >>> store = MemoryStore()
        >>> with store.begin() as session:
        ...     session.add(FlowSnapshot("order-1", state={}))
        ...     session.append("order-1", {"event": "created"}, key="create")
        >>> session.receipt.entries
        (Appended(flow_id='order-1', log='log', sequence=1, key='create', duplicate=False),)
        """
        try:
            change = parts.append_change(self._context, flow_id, body, log=log, key=key)
        except EncodingError as error:
            refusal = as_shown(self._context.settings.codecs, error)
        else:
            self._unit.append(change)
            return

        raise refusal

    def suspend(self, flow: FlowSnapshot[Any], wait: WaitCondition) -> None:
        """Let a flow wait: the commit writes both records and ends the flow's claim.

        The flow becomes `SUSPENDED` and is not due. `claim_due` returns it again when the wait is
        satisfied or past its deadline, at once if it already is. `flow.wait_condition` is a copy of
        the definition, `wait.parent_flow_id` the flow.
        """
        sessions.suspend(self._context, self._unit, flow, wait)

    def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> None:
        """Queue the progress of a step, and track it: later marks are written by later commits.

        If the store no longer holds what was loaded, the commit raises `StaleProgressError`;
        `overwrite` writes it whatever is stored.
        """
        key = step_key(flow_id, step_index)
        self._unit.save_progress(key, progress, overwrite=overwrite)

    def clear_for_each_progress(self, flow_id: str, step_index: int) -> None:
        """Queue the removal of a step's progress, whatever is stored."""
        self._unit.clear_progress(step_key(flow_id, step_index))

    def complete_child(
        self,
        correlation_id: str,
        child_flow_id: str,
        *,
        success: bool = True,
        result: object = None,
        error: str | None = None,
    ) -> None:
        """Queue the completion of a child; the receipt's `completions` says what it did.

        Completions never make a commit conflict.
        """
        try:
            change = completion_change(
                correlation_id, child_flow_id, success=success, result=result, error=error
            )
        except EncodingError as wrong:
            refusal = as_shown(self._context.settings.codecs, wrong)
        else:
            self._unit.complete(change)
            return

        raise refusal

    def require_unchanged(self, record: AnyRecord) -> None:
        """Commit only if this record is still what was read, although it is not written.

        This protects against write skew: two sessions that each read what the other writes. If the
        same commit writes the record, that must be through what was read: a commit that sets a
        condition, clears or overwrites progress, or writes another object is a `UsageError`.
        """
        self._unit.check(record)

    def check(self, record: AnyRecord) -> None:
        """Do the same as `require_unchanged`, the name to prefer."""
        self.require_unchanged(record)

    def guard(self, flow: FlowSnapshot[Any]) -> None:
        """Commit only while the claim of this flow stands, and renew it; write nothing of the flow.

        The flow is not attached to the session, and the object is not changed. So workers that act
        for one owner, each with a session of its own, can commit at the same time under one claim,
        also while the owner writes the flow. Once the claim is lost or released, the commit
        raises `ClaimLostError` (`FlowNotFoundError` if the flow is gone) and writes nothing. A
        claim whose lease is over stands until another owner claims the flow.

        Like a check, it is for the next commit, and it makes that a commit if there is nothing else
        to write. It is part of the same round trip, and the flow must be in the same partition.
        `UsageError` if the object holds no claim, or, from `commit`, if the session writes the flow
        without having read it under this claim.

        >>> from catga_store import FlowSnapshot, MemoryStore
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("thread-1", state={}))
        >>> (thread,) = store.claim_due()
        >>> with store.begin() as session:
        ...     session.guard(thread)
        ...     session.add(FlowSnapshot("thread-1/step-1", state={}, due_at=None))
        >>> thread.version
        2
        """
        self._unit.guard(flow, claims.claim_of(flow))

    def expunge(self, record: AnyRecord) -> None:
        """Stop tracking a record and drop its pending change; the object stays as it is.

        If it was to replace a deleted record, that deletion stays pending.
        """
        self._unit.expunge(record)

    def rollback(self) -> None:
        """Stop tracking everything and drop all pending changes; the session stays usable."""
        self._unit.rollback()

    def close(self) -> None:
        """Roll back for good; the objects stay as they are.

        A claimed flow with changes that were not committed is logged as a warning.
        """
        self._unit.close(self._context.limits)

    @property
    def new(self) -> tuple[AnyRecord, ...]:
        """Records that the next commit creates, sets or overwrites."""
        return self._unit.records(Intent.NEW, Intent.SET, Intent.OVERWRITE, Intent.KEEP)

    @property
    def dirty(self) -> tuple[AnyRecord, ...]:
        """Loaded records that the next commit writes, or that can no longer be encoded.

        Encodes every loaded record.
        """
        return self._unit.dirty(self._context.limits)

    @property
    def deleted(self) -> tuple[AnyRecord, ...]:
        """Records that the next commit deletes."""
        return self._unit.records(Intent.DELETED)

    @property
    def receipt(self) -> Receipt | None:
        """The receipt of the last commit; `None` before the first."""
        return self._unit.receipt

    def __contains__(self, record: object) -> bool:
        return record in self._unit

    def __repr__(self) -> str:
        store = f" of {self._context.store}" if self._context.store else ""
        return f"<{type(self).__name__}{store}: {self._unit!r}>"
