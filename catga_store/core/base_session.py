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

        A flow without a revision is created, and a condition without a revision is set. A record with a
        revision is written if it has changed.
        """
        self._unit.add(record)

    def delete(self, record: AnyRecord) -> None:
        """Queue the deletion of a loaded record; it is version-checked.

        After that, `get` returns `None`, and `add` of a record with the same key replaces it in the same commit.
        """
        self._unit.delete(record)

    def delete_by_id(self, flow_id: str) -> None:
        """Queue the deletion of a flow and its ForEach progress, whatever is stored at the commit.

        Nothing is read or checked, so this never causes a conflict, and the receipt does not say whether the
        flow existed. A flow that reports its end (`reports_to`) does so in the commit,
        which then takes a second round trip. The session's object for the flow, if it has one, is removed
        from the session with its changes; after that, `get` returns `None`. A new flow cannot replace it in
        the same commit (`add` raises `UsageError`): to replace it, load the flow and `delete` it.

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

        A part that was read is written if it has changed; if the store no longer has the revision that was
        read, the commit raises `StalePartError`. If a part with the name of a new part exists, the commit
        raises `PartExistsError`. With `exists="keep"`, the existing part is kept without a conflict:
        `receipt.kept` names such parts, and your objects for them are removed from the session. With
        `exists="overwrite"`, the part is written whatever is stored.

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
        """Queue an entry for a log of a flow; its sequence is in the receipt's `entries`.

        The store assigns the sequence at the commit: sequences start at 1, have no gaps, and follow the order of
        commits. An append never causes a conflict. If the log already has an entry with the same `key`,
        nothing is written, and the receipt has a `duplicate` with the sequence of that entry. The body is
        encoded now, so later changes of the object are not written; it is `bytes` or anything that a state
        can be.

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

        The flow becomes `SUSPENDED` and is not due. `claim_due` returns it again when the wait is
        satisfied or past its deadline, at once if it already is. `flow.wait_condition` is set to a
        copy of the definition, and `wait.parent_flow_id` to the id of the flow.
        """
        sessions.suspend(self._context, self._unit, flow, wait)

    def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> None:
        """Queue the progress of a step, and track it: later marks are written by later commits.

        If the store no longer has the revision that was loaded, the commit raises `StaleProgressError`; with
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
        """Queue the completion of a child; its result is in the receipt's `completions`.

        Completions never cause a conflict.
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
        """Commit only if this record has not changed since it was read, although it is not written.

        This protects against write skew: two sessions that each read what the other writes. If the same commit
        also writes the record, it must write the object that was read: `UsageError` if the commit sets the
        condition, clears or overwrites the progress, or writes another object.
        """
        self._unit.check(record)

    def check(self, record: AnyRecord) -> None:
        """Do the same as `require_unchanged`, the name to prefer."""
        self.require_unchanged(record)

    def guard(self, flow: FlowSnapshot[Any]) -> None:
        """Commit only if the claim of this flow is still valid, and renew it; do not write the flow.

        The flow is not added to the session, and the object is not changed. So workers that act for one owner,
        each with its own session, can commit at the same time under one claim, even while the owner writes
        the flow. Once the claim is lost or released, the commit raises `ClaimLostError` (`FlowNotFoundError`
        if the flow no longer exists) and writes nothing. A claim whose lease has ended is valid until another
        owner claims the flow.

        Like `require_unchanged`, it applies to the next commit, which is then sent even if there is nothing else
        to write. It costs no additional round trip, and the flow must be in the same partition. Raises
        `UsageError` if the object has no claim; `commit` raises it if the session writes the flow without
        having read it under this claim.

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
        """Stop tracking a record and discard its pending change; the object stays as it is.

        If the record was to replace a deleted one, the deletion stays pending.
        """
        self._unit.expunge(record)

    def rollback(self) -> None:
        """Stop tracking all records and discard all pending changes; the session stays usable."""
        self._unit.rollback()

    def close(self) -> None:
        """Roll back and end the session; the objects stay as they are.

        If a claimed flow has uncommitted changes, a warning is logged.
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
