"""The blocking API: `Session`. Generated from `aio.py` by `tests/meta/generate_api.py`."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any
from typing import Self
from typing import TypeVar
from typing import overload

from catga_store.core import parts
from catga_store.core import sessions
from catga_store.core.base_session import BaseSession
from catga_store.core.base_store import Runner
from catga_store.core.claims import DEFAULT_LEASE
from catga_store.core.context import Context
from catga_store.core.receipts import Receipt
from catga_store.core.state_types import ManyTypes
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.core.waiting import NO_WAIT
from catga_store.model.flows import FlowSnapshot
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import AnyRecord
from catga_store.model.waits import WaitCondition

__all__ = ["Session"]

S = TypeVar("S")


class Session(BaseSession):
    """A unit of work: it tracks the objects that it loads, and writes all their changes in one commit or not at all.

    `get` always returns the same object for the same id. The session detects changes by comparing the
    encoding of each record with the encoding that was loaded, so you do not have to report what you change. A
    session belongs to one task, and an object belongs to one session. Leaving the `with` block closes
    the session; only `commit` writes.

    >>> from catga_store import MemoryStore, FlowSnapshot
    >>> store = MemoryStore()
    >>> with store.session() as session:
    ...     session.add(FlowSnapshot("order-1", state={"paid": False}))
    ...     receipt = session.commit()
    >>> with store.session() as session:
    ...     order = session.get_one("order-1")
    ...     order.state["paid"] = True
    ...     receipt = session.commit()
    >>> print(order.version)
    2
    """

    def __init__(self, run: Runner, context: Context, unit: UnitOfWork | None = None) -> None:
        super().__init__(context, unit)
        self._run = run

    @overload
    def get(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S] | None: ...
    @overload
    def get(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any] | None: ...
    def get(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any] | None:
        """Return the session's object for this flow, or `None` if the flow does not exist.

        The first call costs one round trip; later calls cost none. Raises the same errors as the store's
        `get`, and `StateTypeError` if the session has loaded the flow as a different type.
        """
        return self._run(sessions.session_get(self._context, self._unit, flow_id, state_type))

    @overload
    def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """Return the flow as `get` does, but raise `FlowNotFoundError` if it does not exist."""
        return self._run(sessions.session_get_one(self._context, self._unit, flow_id, state_type))

    @overload
    def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    def get_many(
        self, flow_ids: Iterable[str] | Mapping[str, type[Any] | None], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    def get_many(self, flow_ids: Iterable[str], state_type: Any | None = None) -> dict[str, Any]:
        """Return the session's objects by id, with `None` for each flow that does not exist.

        If the types differ, pass a mapping of ids to types instead of `state_type`. Costs one round trip per
        500 ids that the session has not loaded yet.
        """
        return self._run(sessions.session_get_many(self._context, self._unit, flow_ids, state_type))

    @overload
    def get_part(self, flow_id: str, name: str, body_type: type[S]) -> Part[S] | None: ...
    @overload
    def get_part(self, flow_id: str, name: str, body_type: None = None) -> Part[Any] | None: ...
    def get_part(self, flow_id: str, name: str, body_type: Any | None = None) -> Part[Any] | None:
        """Return the session's object for this part, or `None` if it does not exist; see the store's `get_part`."""
        return self._run(
            parts.session_get_part(self._context, self._unit, flow_id, name, body_type)
        )

    @overload
    def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: type[S]
    ) -> dict[str, Part[S] | None]: ...
    @overload
    def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: None = None
    ) -> dict[str, Part[Any] | None]: ...
    def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: Any | None = None
    ) -> dict[str, Any]:
        """Return the session's objects for parts of one flow by name, with `None` for each part that does not exist.

        Costs one round trip per 500 names that the session has not loaded yet.
        """
        return self._run(
            parts.session_get_parts(self._context, self._unit, flow_id, names, body_type)
        )

    def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """Return the session's object for this condition, or `None` if the condition does not exist."""
        return self._run(
            sessions.session_get_wait_condition(self._context, self._unit, correlation_id)
        )

    def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """Return the session's object for the progress of this step, or `None` if there is none."""
        return self._run(
            sessions.session_get_for_each_progress(self._context, self._unit, flow_id, step_index)
        )

    @overload
    def claim_due(
        self,
        state_type: type[S],
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait: timedelta = NO_WAIT,
    ) -> list[FlowSnapshot[S]]: ...
    @overload
    def claim_due(
        self,
        state_type: ManyTypes | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait: timedelta = NO_WAIT,
    ) -> list[FlowSnapshot[Any]]: ...
    def claim_due(
        self,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait: timedelta = NO_WAIT,
    ) -> list[FlowSnapshot[Any]]:
        """Claim due flows as the store's `claim_due` does, and track them in this session.

        The claim is written at once, not by `commit`, and a rollback does not release it. Flows that are
        already in the session are not claimed. `tags` and `wait` are as for the store's `claim_due`.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> with store.begin() as session:
        ...     for order in session.claim_due():
        ...         order.state["paid"] = True
        >>> order = store.get_one("order-1")
        >>> print(order.state)
        {'paid': True}
        """
        return self._run(
            sessions.session_claim_due(
                self._context,
                self._unit,
                state_type,
                lease=lease,
                limit=limit,
                owner=owner,
                tags=tags,
                wait=wait,
            )
        )

    @overload
    def claim(
        self,
        flow_id: str,
        state_type: type[S],
        *,
        lease: timedelta = DEFAULT_LEASE,
        timeout: timedelta = timedelta(0),
        owner: str | None = None,
    ) -> FlowSnapshot[S]: ...
    @overload
    def claim(
        self,
        flow_id: str,
        state_type: ManyTypes | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        timeout: timedelta = timedelta(0),
        owner: str | None = None,
    ) -> FlowSnapshot[Any]: ...
    def claim(
        self,
        flow_id: str,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        timeout: timedelta = timedelta(0),
        owner: str | None = None,
    ) -> FlowSnapshot[Any]:
        """Claim one flow as the store's `claim` does, and track it in this session.

        The claim is written at once, not by `commit`, and a rollback does not release it. Raises `UsageError`
        if the flow is already in the session.
        """
        return self._run(
            sessions.session_claim(
                self._context,
                self._unit,
                flow_id,
                state_type,
                lease=lease,
                timeout=timeout,
                owner=owner,
            )
        )

    def refresh(self, record: AnyRecord) -> None:
        """Read a record again into the same object, discarding the object's unwritten changes.

        A claim is kept. If the claim was lost, the call raises `ClaimLostError`. If the record no longer
        exists, it raises `FlowNotFoundError` or the corresponding error. After an error, the object is
        unchanged.
        """
        self._run(sessions.session_refresh(self._context, self._unit, record))

    def commit(self, *, resolve: bool = False) -> Receipt:
        """Write all changes or none of them, each checked against the version that was read.

        Costs one round trip, or none if nothing has changed. If the store refuses the commit, the call raises
        `ConflictError`: the refusal itself if there is only one, or otherwise an error whose `conflicts`
        contains one refusal per record. In this case, nothing was written, and the changes remain pending;
        `rollback()` discards them. The claims of flows in the session are checked and renewed, even if only
        other records change. `UsageError` is raised before anything is sent.

        With `resolve`, if the outcome is unknown, the call itself determines it, with further requests for up
        to the store's `timeout`. If the commit was applied, the objects are updated, and you can continue to
        use the session. If the commit was not applied and never will be, the call raises
        `StoreUnavailableError`.

        If the outcome remains unknown (`CommitUncertainError`), or any other error occurs while the commit is
        being sent, the session is closed.
        """
        return self._run(sessions.session_commit(self._context, self._unit, resolve=resolve))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if _kind is None:
            self.close()
        else:
            self._unit.close()  # an exception drops the changes on purpose


Session.__module__ = "catga_store"
