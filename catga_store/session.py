"""`Session`: the unit of work of blocking code."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any
from typing import Protocol
from typing import Self
from typing import TypeVar
from typing import overload

from catga_store.core import sessions
from catga_store.core.arguments import completion_change
from catga_store.core.arguments import step_key
from catga_store.core.context import Context
from catga_store.core.receipts import Receipt
from catga_store.core.unit_of_work import Intent
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.model.flows import FlowSnapshot
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import AnyRecord
from catga_store.model.waits import WaitCondition
from catga_store.protocol.conversation import Conversation

__all__ = ["BaseSession", "Run", "Session"]

S = TypeVar("S")
T = TypeVar("T")


class Run(Protocol):
    """Runs a conversation by blocking."""

    def __call__(self, conversation: Conversation[T], /) -> T:
        """Run it to its end."""
        ...


class BaseSession:
    """What a session does without I/O; the same on every API."""

    def __init__(self, context: Context, unit: UnitOfWork | None = None) -> None:
        self._context = context
        self._unit = UnitOfWork() if unit is None else unit

    def add(self, record: AnyRecord) -> None:
        """Queue a record: one without revision is created (flow) or set (condition).

        One with a revision is attached, and written if it changes.
        """
        self._unit.add(record)

    def delete(self, record: AnyRecord) -> None:
        """Queue the deletion of a loaded record; it is version-checked.

        Afterwards `get` answers `None`, and `add` of the same key replaces it in the same commit.
        """
        self._unit.delete(record)

    def suspend(self, flow: FlowSnapshot[Any], wait: WaitCondition) -> None:
        """Let a flow wait: both records are written, and its claim ends, in one commit.

        The flow becomes `SUSPENDED` and is not due; `claim_due` gives it back when the wait is
        satisfied or past its deadline, at once if it is already. `flow.wait_condition` is a copy
        of the definition, `wait.parent_flow_id` the flow.
        """
        sessions.suspend(self._context, self._unit, flow, wait)

    def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> None:
        """Queue a step's progress; see `Store.save_for_each_progress`. Later marks are written too."""
        key = step_key(flow_id, step_index)
        self._unit.save_progress(key, progress, overwrite=overwrite)

    def clear_for_each_progress(self, flow_id: str, step_index: int) -> None:
        """Queue the removal of a step's progress, whatever it holds."""
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
        """Queue a child's completion; what it did stands in the receipt's `completions`.

        Completions never make a commit conflict.
        """
        self._unit.complete(
            completion_change(
                correlation_id, child_flow_id, success=success, result=result, error=error
            )
        )

    def check(self, record: AnyRecord) -> None:
        """Commit only if this record is still what was read, though it is not written.

        If it is written in the same commit, that must be through what was read: a commit that sets a
        condition, or clears or overwrites progress, or writes another object, is a `UsageError`.
        """
        self._unit.check(record)

    def expunge(self, record: AnyRecord) -> None:
        """Forget a record and what was to happen to it; the object stays as it is.

        A deleted record that it was to take the place of is still deleted.
        """
        self._unit.expunge(record)

    def rollback(self) -> None:
        """Forget everything that was loaded and queued; the session can be used on."""
        self._unit.rollback()

    @property
    def new(self) -> tuple[AnyRecord, ...]:
        """Records that the next commit creates, sets or overwrites."""
        return self._unit.records(Intent.NEW, Intent.SET, Intent.OVERWRITE)

    @property
    def dirty(self) -> tuple[AnyRecord, ...]:
        """Loaded records whose encoding has changed, or that cannot be encoded any more.

        Encodes every loaded record.
        """
        return self._unit.dirty(self._context.limits)

    @property
    def deleted(self) -> tuple[AnyRecord, ...]:
        """Records that the next commit deletes."""
        return self._unit.records(Intent.DELETED)

    @property
    def receipt(self) -> Receipt | None:
        """What the last commit answered; `None` before the first."""
        return self._unit.receipt

    def __contains__(self, record: object) -> bool:
        return record in self._unit

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._unit!r}>"


class Session(BaseSession):
    """A unit of work: it tracks what it loads, and writes all changes in one commit, or none.

    `get` answers the same object for the same id each time. A record is dirty when its encoding
    differs from that of what was loaded; nothing needs to be announced. A session belongs to one
    task, and its objects to no other session. `with` closes it; nothing is written without
    `commit()`.

    >>> from catga_store import FlowSnapshot, MemoryStore
    >>> store = MemoryStore()
    >>> with store.session() as session:
    ...     session.add(FlowSnapshot("order-1", state={"paid": False}))
    ...     receipt = session.commit()
    >>> with store.session() as session:
    ...     order = session.get_one("order-1")
    ...     order.state["paid"] = True
    ...     receipt = session.commit()
    >>> order.version
    2
    """

    def __init__(self, run: Run, context: Context, unit: UnitOfWork | None = None) -> None:
        super().__init__(context, unit)
        self._run = run

    @overload
    def get(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S] | None: ...
    @overload
    def get(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any] | None: ...
    def get(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any] | None:
        """The session's object for this flow, or `None`; see `Store.get`."""
        flow: FlowSnapshot[Any] | None = self._run(
            sessions.session_get(self._context, self._unit, flow_id, state_type)
        )
        return flow

    @overload
    def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """Like `get`, but `FlowNotFoundError` if there is no such flow."""
        return self._run(sessions.session_get_one(self._context, self._unit, flow_id, state_type))

    @overload
    def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    def get_many(
        self, flow_ids: Iterable[str], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    def get_many(self, flow_ids: Iterable[str], state_type: Any | None = None) -> dict[str, Any]:
        """The session's objects by id, `None` for what is absent; see `Store.get_many`."""
        return self._run(sessions.session_get_many(self._context, self._unit, flow_ids, state_type))

    def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """The session's object for this condition, or `None`."""
        return self._run(
            sessions.session_get_wait_condition(self._context, self._unit, correlation_id)
        )

    def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """The session's object for this step's progress, or `None`."""
        return self._run(
            sessions.session_get_for_each_progress(self._context, self._unit, flow_id, step_index)
        )

    def refresh(self, record: AnyRecord) -> None:
        """Read a record again into the same object; what was changed on it is gone.

        A claim is kept; `ClaimLostError` if it was lost. `FlowNotFoundError` and the like if the
        record is gone; on an error the object is as it was.
        """
        self._run(sessions.session_refresh(self._context, self._unit, record))

    def commit(self) -> Receipt:
        """Write every change or none, each checked against what was read.

        Costs one round trip, none if nothing has changed. A refused commit raises
        `ConflictError`: the one refusal itself, or one whose `conflicts` holds a refusal per
        record; nothing was written and the changes are still pending. `rollback()` forgets them.
        Claims of flows in the session are checked and renewed, also if only other records change.
        A lost outcome (`CommitUncertainError`), or any other error out of the sending, closes the
        session. `UsageError` and its kinds come before anything is sent.
        """
        return self._run(sessions.session_commit(self._context, self._unit))

    def close(self) -> None:
        """Forget everything for good; objects belong to their holders."""
        self._unit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()
