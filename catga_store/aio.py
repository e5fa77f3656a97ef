"""The awaiting API: `AsyncStore` and `AsyncSession`, under asyncio and trio alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import AsyncIterator
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Coroutine
from collections.abc import Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from datetime import timedelta
from types import TracebackType
from typing import Any
from typing import Protocol
from typing import Self
from typing import TypeVar
from typing import TypeVarTuple
from typing import overload

from anyio.lowlevel import RunVar

from catga_store.core import claims
from catga_store.core import commits
from catga_store.core import listings
from catga_store.core import records
from catga_store.core import sessions
from catga_store.core import upkeep
from catga_store.core.arguments import check_awaitable
from catga_store.core.arguments import check_function
from catga_store.core.claims import DEFAULT_LEASE
from catga_store.core.context import Context
from catga_store.core.receipts import Receipt
from catga_store.core.settings import Settings
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreClosedError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.listings import Page
from catga_store.model.progress import ForEachProgress
from catga_store.model.stored_state import AnyRecord
from catga_store.model.times import AT_ONCE
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Watch
from catga_store.session import BaseSession

__all__ = ["AsyncDriver", "AsyncSession", "AsyncStore"]

S = TypeVar("S")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
T = TypeVar("T")

_loop_mark: RunVar[object] = RunVar("catga_store_loop")


class AsyncDriver(Protocol):
    """Runs conversations over store protocol requests by awaiting."""

    def run(self, conversation: Conversation[T], /) -> Coroutine[Any, Any, T]:
        """Run a conversation to its end."""
        ...

    def at_home(self) -> Callable[[], bool]:
        """A cheap check for later: whether the caller is on the event loop that runs now.

        `False` may also be said where that is not cheap to tell.
        """
        ...

    async def close(self) -> None:
        """Close what the driver opened."""
        ...


class AsyncRun(Protocol):
    """Runs a conversation by awaiting."""

    def __call__(self, conversation: Conversation[T], /) -> Coroutine[Any, Any, T]:
        """Run it to its end."""
        ...


class AsyncStore:
    """`Store` for async code. It belongs to the event loop that first used it.

    Cancelling a read stops it at once. A write that has begun runs to its reply; then the objects
    take over what was written, and the cancellation goes on.
    """

    _watch: Watch | None = None

    def __init__(self, driver: AsyncDriver, settings: Settings) -> None:
        self._driver = driver
        self._context = Context.of(settings)
        self._closed = False
        self._loop: object | None = None
        self._at_home: Callable[[], bool] | None = None

    def _run(self, conversation: Conversation[T]) -> Coroutine[Any, Any, T]:
        # It hands a coroutine on: one of its own would cost each operation as much as its rules do.
        if self._at_home is None or not self._at_home():
            self._check_loop()

        if self._closed:
            message = f"{self!r} cannot be used: it was closed; open it again"
            raise StoreClosedError(message)

        if self._watch is not None:
            conversation = self._watch(self, conversation)

        return self._driver.run(conversation)

    def _check_loop(self) -> None:
        try:
            mark = _loop_mark.get()
        except LookupError:
            mark = object()
            _loop_mark.set(mark)

        if self._loop is None:
            self._loop = mark
            self._at_home = self._driver.at_home()
        elif self._loop is not mark:
            message = f"{self!r} belongs to another event loop; open one in each"
            raise UsageError(message)

    # flows ----------------------------------------------------------------------------------------

    async def create(self, snapshot: FlowSnapshot[Any]) -> None:
        """See `Store.create`."""
        await self._run(records.create(self._context, snapshot))

    @overload
    async def get(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S] | None: ...
    @overload
    async def get(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any] | None: ...
    async def get(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any] | None:
        """See `Store.get`."""
        return await self._run(records.get(self._context, flow_id, state_type))

    @overload
    async def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    async def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    async def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """See `Store.get_one`."""
        return await self._run(records.get_one(self._context, flow_id, state_type))

    async def get_or_create(self, snapshot: FlowSnapshot[S]) -> tuple[FlowSnapshot[S], bool]:
        """See `Store.get_or_create`."""
        return await self._run(records.get_or_create(self._context, snapshot))

    async def update(self, snapshot: FlowSnapshot[Any]) -> None:
        """See `Store.update`."""
        await self._run(records.update(self._context, snapshot))

    async def delete(
        self,
        snapshot_or_id: FlowSnapshot[Any] | str,
        *,
        version: int | None = None,
        revision: str | None = None,
    ) -> bool:
        """See `Store.delete`."""
        return await self._run(
            records.delete(self._context, snapshot_or_id, version=version, revision=revision)
        )

    @overload
    async def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    async def get_many(
        self, flow_ids: Iterable[str], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    async def get_many(
        self, flow_ids: Iterable[str], state_type: Any | None = None
    ) -> dict[str, Any]:
        """See `Store.get_many`."""
        return await self._run(records.get_many(self._context, flow_ids, state_type))

    async def query_flows(
        self,
        *,
        status: FlowStatus | None = None,
        state_type: Any | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[FlowSummary]:
        """See `Store.query_flows`."""
        return await self._run(
            listings.query_flows(
                self._context,
                status=status,
                state_type=state_type,
                created_after=created_after,
                created_before=created_before,
                updated_before=updated_before,
                limit=limit,
                cursor=cursor,
            )
        )

    async def iter_flows(
        self,
        *,
        status: FlowStatus | None = None,
        state_type: Any | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
    ) -> AsyncIterator[FlowSummary]:
        """See `Store.iter_flows`."""
        cursor: str | None = None

        while True:
            page = await self.query_flows(
                status=status,
                state_type=state_type,
                created_after=created_after,
                created_before=created_before,
                updated_before=updated_before,
                cursor=cursor,
            )
            for summary in page:
                yield summary

            cursor = page.cursor
            if cursor is None:
                return

    async def count_flows(
        self,
        *,
        status: FlowStatus | None = None,
        state_type: Any | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
    ) -> int:
        """See `Store.count_flows`."""
        return await self._run(
            listings.count_flows(
                self._context,
                status=status,
                state_type=state_type,
                created_after=created_after,
                created_before=created_before,
                updated_before=updated_before,
            )
        )

    # wait conditions ------------------------------------------------------------------------------

    async def set_wait_condition(self, condition: WaitCondition) -> bool:
        """See `Store.set_wait_condition`."""
        return await self._run(records.set_wait_condition(self._context, condition))

    async def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """See `Store.get_wait_condition`."""
        return await self._run(records.get_wait_condition(self._context, correlation_id))

    async def update_wait_condition(self, condition: WaitCondition) -> bool:
        """See `Store.update_wait_condition`."""
        return await self._run(records.update_wait_condition(self._context, condition))

    async def clear_wait_condition(self, correlation_id: str) -> bool:
        """See `Store.clear_wait_condition`."""
        return await self._run(records.clear_wait_condition(self._context, correlation_id))

    async def get_timed_out_wait_conditions(
        self, now: datetime | None = None, limit: int | None = None
    ) -> list[WaitCondition]:
        """See `Store.get_timed_out_wait_conditions`."""
        return await self._run(records.get_timed_out_wait_conditions(self._context, now, limit))

    async def query_wait_conditions(
        self,
        *,
        outcome: WaitOutcome | None = None,
        parent_flow_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[WaitCondition]:
        """See `Store.query_wait_conditions`."""
        return await self._run(
            listings.query_wait_conditions(
                self._context,
                outcome=outcome,
                parent_flow_id=parent_flow_id,
                limit=limit,
                cursor=cursor,
            )
        )

    async def iter_wait_conditions(
        self, *, outcome: WaitOutcome | None = None, parent_flow_id: str | None = None
    ) -> AsyncIterator[WaitCondition]:
        """See `Store.iter_wait_conditions`."""
        cursor: str | None = None

        while True:
            page = await self.query_wait_conditions(
                outcome=outcome, parent_flow_id=parent_flow_id, cursor=cursor
            )
            for wait in page:
                yield wait

            cursor = page.cursor
            if cursor is None:
                return

    async def complete_child(
        self,
        correlation_id: str,
        child_flow_id: str,
        *,
        success: bool = True,
        result: object = None,
        error: str | None = None,
    ) -> Completion:
        """See `Store.complete_child`."""
        return await self._run(
            records.complete_child(
                self._context,
                correlation_id,
                child_flow_id,
                success=success,
                result=result,
                error=error,
            )
        )

    # ForEach progress -----------------------------------------------------------------------------

    async def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> None:
        """See `Store.save_for_each_progress`."""
        await self._run(
            records.save_for_each_progress(
                self._context, flow_id, step_index, progress, overwrite=overwrite
            )
        )

    async def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """See `Store.get_for_each_progress`."""
        return await self._run(records.get_for_each_progress(self._context, flow_id, step_index))

    async def clear_for_each_progress(self, flow_id: str, step_index: int) -> bool:
        """See `Store.clear_for_each_progress`."""
        return await self._run(records.clear_for_each_progress(self._context, flow_id, step_index))

    async def list_for_each_progress(self, flow_id: str) -> dict[int, ForEachProgress]:
        """See `Store.list_for_each_progress`."""
        return await self._run(records.list_for_each_progress(self._context, flow_id))

    # claims ---------------------------------------------------------------------------------------

    @overload
    async def claim_due(
        self,
        state_type: type[S],
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
    ) -> list[FlowSnapshot[S]]: ...
    @overload
    async def claim_due(
        self,
        state_type: None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
    ) -> list[FlowSnapshot[Any]]: ...
    async def claim_due(
        self,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
    ) -> list[FlowSnapshot[Any]]:
        """See `Store.claim_due`."""
        return await self._run(
            claims.claim_due(self._context, state_type, lease=lease, limit=limit, owner=owner)
        )

    @overload
    async def claim(
        self,
        flow_id: str,
        state_type: type[S],
        *,
        lease: timedelta = DEFAULT_LEASE,
        timeout: timedelta = timedelta(0),
        owner: str | None = None,
    ) -> FlowSnapshot[S]: ...
    @overload
    async def claim(
        self,
        flow_id: str,
        state_type: None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        timeout: timedelta = timedelta(0),
        owner: str | None = None,
    ) -> FlowSnapshot[Any]: ...
    async def claim(
        self,
        flow_id: str,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        timeout: timedelta = timedelta(0),
        owner: str | None = None,
    ) -> FlowSnapshot[Any]:
        """See `Store.claim`."""
        return await self._run(
            claims.claim(
                self._context, flow_id, state_type, lease=lease, timeout=timeout, owner=owner
            )
        )

    async def extend(self, flow: FlowSnapshot[Any], lease: timedelta | None = None) -> None:
        """See `Store.extend`; another task may call it beside the owner's own commits."""
        await self._run(claims.extend(self._context, flow, lease))

    async def release(self, flow: FlowSnapshot[Any], *, due_at: datetime | None = AT_ONCE) -> None:
        """See `Store.release`."""
        await self._run(claims.release(self._context, flow, due_at=due_at))

    # sessions -------------------------------------------------------------------------------------

    def session(self) -> AsyncSession:
        """A unit of work; use it in an `async with`. See `Store.session`."""
        return AsyncSession(self._run, self._context)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncSession, None]:
        """A session that commits at the end of the block, and rolls back on an exception."""
        async with self.session() as session:
            yield session
            await session.commit()

    async def transact(
        self,
        function: Callable[[AsyncSession, *Ts], Awaitable[R]],
        *args: *Ts,
        attempts: int = 100,
    ) -> R:
        """Await `function(session, *args)`, commit, and answer what it answered.

        See `Store.transact`.
        """
        check_function(function)

        def call(unit: UnitOfWork) -> Awaitable[R]:
            session = AsyncSession(self._run, self._context, unit)
            return check_awaitable(function(session, *args))

        result: R = await self._run(sessions.transact(self._context, call, attempts))
        return result

    async def resolve_commit(self, error: CommitUncertainError) -> Receipt | None:
        """See `Store.resolve_commit`."""
        return await self._run(commits.resolve_commit(self._context, error))

    # the store ------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The store's clock, in whole milliseconds."""
        return self._context.now()

    async def sweep(self, limit: int = 1000) -> int:
        """See `Store.sweep`."""
        return await self._run(upkeep.sweep(self._context, limit))

    async def clear(self) -> None:
        """See `Store.clear`."""
        await self._run(upkeep.clear())

    async def ping(self) -> None:
        """See `Store.ping`."""
        await self._run(upkeep.ping())

    async def close(self) -> None:
        """See `Store.close`."""
        if not self._closed:
            self._closed = True
            await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__name__} {self._driver!r}{state}>"


class AsyncSession(BaseSession):
    """`Session` for async code; what may do I/O is awaited."""

    def __init__(self, run: AsyncRun, context: Context, unit: UnitOfWork | None = None) -> None:
        super().__init__(context, unit)
        self._run = run

    @overload
    async def get(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S] | None: ...
    @overload
    async def get(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any] | None: ...
    async def get(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any] | None:
        """See `Session.get`."""
        return await self._run(sessions.session_get(self._context, self._unit, flow_id, state_type))

    @overload
    async def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    async def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    async def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """See `Session.get_one`."""
        return await self._run(
            sessions.session_get_one(self._context, self._unit, flow_id, state_type)
        )

    @overload
    async def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    async def get_many(
        self, flow_ids: Iterable[str], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    async def get_many(
        self, flow_ids: Iterable[str], state_type: Any | None = None
    ) -> dict[str, Any]:
        """See `Session.get_many`."""
        return await self._run(
            sessions.session_get_many(self._context, self._unit, flow_ids, state_type)
        )

    async def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """See `Session.get_wait_condition`."""
        return await self._run(
            sessions.session_get_wait_condition(self._context, self._unit, correlation_id)
        )

    async def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """See `Session.get_for_each_progress`."""
        return await self._run(
            sessions.session_get_for_each_progress(self._context, self._unit, flow_id, step_index)
        )

    async def refresh(self, record: AnyRecord) -> None:
        """See `Session.refresh`."""
        await self._run(sessions.session_refresh(self._context, self._unit, record))

    async def commit(self) -> Receipt:
        """Write every change or none; see `Session.commit`.

        Cancelling waits for the reply and lets the objects take it over before the cancellation
        goes on; `receipt` then tells what was written. `SessionClosedError` afterwards means that
        the outcome was lost.
        """
        return await self._run(sessions.session_commit(self._context, self._unit))

    async def close(self) -> None:
        """See `Session.close`."""
        self._unit.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._unit.close()


for _public in (AsyncSession, AsyncStore):
    _public.__module__ = "catga_store"
