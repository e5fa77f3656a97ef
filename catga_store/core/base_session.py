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
        """Track a record, and write it in the next commit.

        A flow without a revision is created, and a wait condition without a revision is set. A record with a
        revision is written if it has changed.
        """
        self._unit.add(record)

    def delete(self, record: AnyRecord) -> None:
        """Queue the deletion of a loaded record; the deletion is version-checked.

        Afterwards, `get` returns `None`. If you `add` a record with the same key, it replaces the deleted
        record in the same commit.
        """
        self._unit.delete(record)

    def delete_by_id(self, flow_id: str) -> None:
        """Queue the deletion of a flow and its ForEach progress, whatever is stored at the time of the commit.

        Nothing is read or checked, so this deletion never causes a conflict, and the receipt does not say
        whether the flow existed. If the flow has not ended and has `reports_to`, the commit also reports its
        end, which costs a second round trip. If the session has an object for the flow, this object and its
        changes are removed from the session; afterwards, `get` returns `None`. A new flow cannot replace the
        deleted flow in the same commit (`add` raises `UsageError`): to replace a flow, load it and `delete`
        it.

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
        """Track a part, and write it in the next commit.

        A part that was read is written if it has changed; if the store no longer has the revision that was
        read, the commit raises `StalePartError`. A new part is written if the flow has no part of that name;
        otherwise, the commit raises `PartExistsError`. With `exists="keep"`, an existing part is kept without
        a conflict: `receipt.kept` names such parts, and your objects for them are removed from the session.
        With `exists="overwrite"`, the part is written whatever is stored.

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
        """Queue the deletion of a part that was read or written; the deletion is version-checked."""
        self._unit.delete(part)

    def append(
        self, flow_id: str, body: object, *, log: str = "log", key: str | None = None
    ) -> None:
        """Queue an entry for a log of a flow; the receipt's `entries` contain its sequence.

        The store assigns the sequence when the session commits: sequences start at 1, have no gaps, and
        follow the order of the commits. An append never causes a conflict. If the log already has an entry
        with the same `key`, nothing is written, and the receipt has a `duplicate` with the sequence of that
        entry. `body` can be `bytes` or anything that a state can be. It is encoded during this call, so later
        changes to the object are not written.

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
        """Make a flow wait: the commit writes both records and ends the flow's claim.

        The flow becomes `SUSPENDED` and is no longer due. `claim_due` returns it again when the wait is
        satisfied or past its deadline, or at once if this is already the case. `flow.wait_condition` is set
        to a copy of the definition, and `wait.parent_flow_id` to the id of the flow.
        """
        sessions.suspend(self._context, self._unit, flow, wait)

    def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> None:
        """Queue the progress of a step, and track it: later commits write the items that you mark later.

        If the store no longer has the revision that was loaded, the commit raises `StaleProgressError`. With
        `overwrite`, the progress is written whatever is stored.
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
        """Queue the completion of a child; the receipt's `completions` contain its result.

        A completion never causes a conflict.
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
        """Commit only if this record has not changed since it was read, even if the commit does not write it.

        This protects against write skew, in which each of two sessions reads what the other one writes. If
        the same commit also writes the record, it must write the object that was read. Otherwise, the commit
        raises `UsageError`, for example if it sets the condition, clears or overwrites the progress, or
        writes another object.
        """
        self._unit.check(record)

    def check(self, record: AnyRecord) -> None:
        """Do the same as `require_unchanged`, which is the preferred name."""
        self.require_unchanged(record)

    def guard(self, flow: FlowSnapshot[Any]) -> None:
        """Commit only if the claim on this flow is still valid, and renew the claim; do not write the flow.

        The flow is not added to the session, and the object does not change. Several workers that act for one
        owner, each with its own session, can therefore commit at the same time under one claim, even while
        the owner writes the flow. If the claim was lost or released, the commit writes nothing and raises
        `ClaimLostError`, or `FlowNotFoundError` if the flow no longer exists. A claim whose lease has ended
        is valid until another owner claims the flow.

        Like `require_unchanged`, a guard applies to the next commit, which is then sent even if there is
        nothing else to write. It costs no additional round trip. The flow must be in the same partition as
        the records of the commit. Raises `UsageError` if the object has no claim; `commit` raises
        `UsageError` if the session writes the flow without having read it under this claim.

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
        """Stop tracking a record and discard its pending change; the object itself does not change.

        If the record was to replace a deleted record, the deletion remains pending.
        """
        self._unit.expunge(record)

    def rollback(self) -> None:
        """Stop tracking all records and discard all pending changes; you can continue to use the session."""
        self._unit.rollback()

    def close(self) -> None:
        """Roll back and end the session; its objects do not change.

        If a claimed flow has uncommitted changes, a warning is logged.
        """
        self._unit.close(self._context.limits)

    @property
    def new(self) -> tuple[AnyRecord, ...]:
        """The records that the next commit creates, sets or overwrites."""
        return self._unit.records(Intent.NEW, Intent.SET, Intent.OVERWRITE, Intent.KEEP)

    @property
    def dirty(self) -> tuple[AnyRecord, ...]:
        """The loaded records that the next commit writes, or that can no longer be encoded.

        Reading this property encodes every loaded record.
        """
        return self._unit.dirty(self._context.limits)

    @property
    def deleted(self) -> tuple[AnyRecord, ...]:
        """The records that the next commit deletes."""
        return self._unit.records(Intent.DELETED)

    @property
    def receipt(self) -> Receipt | None:
        """The receipt of the last commit, or `None` before the first commit."""
        return self._unit.receipt

    def __contains__(self, record: object) -> bool:
        return record in self._unit

    def __repr__(self) -> str:
        store = f" of {self._context.store}" if self._context.store else ""
        return f"<{type(self).__name__}{store}: {self._unit!r}>"
