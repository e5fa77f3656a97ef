"""The blocking API: `Store`; the kinds of store are in `kinds`."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timedelta
from types import TracebackType
from typing import Any
from typing import Protocol
from typing import Self
from typing import TypedDict
from typing import TypeVar
from typing import TypeVarTuple
from typing import overload

from catga_store.core import claims
from catga_store.core import commits
from catga_store.core import listings
from catga_store.core import records
from catga_store.core import sessions
from catga_store.core import upkeep
from catga_store.core.arguments import check_blocking
from catga_store.core.arguments import check_function
from catga_store.core.claims import DEFAULT_LEASE
from catga_store.core.context import Context
from catga_store.core.receipts import Receipt
from catga_store.core.settings import Settings
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreClosedError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.listings import Page
from catga_store.model.listings import Retention
from catga_store.model.progress import ForEachProgress
from catga_store.model.times import AT_ONCE
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Watch
from catga_store.session import Session

__all__ = ["Driver", "Settings", "Store", "StoreOptions"]

S = TypeVar("S")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
T = TypeVar("T")


class StoreOptions(TypedDict, total=False):
    """What every store can be told, as keywords.

    `owner` names this worker in claims (default: host, pid and a random part); `clock` answers the
    time as an aware datetime (default: the system's); `timeout` is how long an operation may take
    to become certain (default 10 s); `retention` how long ended records are kept; `partitions` how
    many parts the store has (default 1; fixed at first use); `max_record_bytes` the most that one
    record may take (default 64 MiB).
    """

    owner: str | None
    clock: Callable[[], datetime] | None
    timeout: timedelta
    retention: Retention
    partitions: int
    max_record_bytes: int


class Driver(Protocol):
    """Runs conversations over store protocol requests by blocking."""

    def run(self, conversation: Conversation[T], /) -> T:
        """Run a conversation to its end."""
        ...

    def close(self) -> None:
        """Close what the driver opened."""
        ...


class Store:
    """Durable state of flows. Threads may share a store; it may be opened before a fork.

    Every operation stands alone and is atomic; several go together in a `session()`. All of them
    raise `StoreUnavailableError` when the store cannot be reached (nothing was written),
    `CommitUncertainError` when a write was sent and its outcome is not known (`resolve_commit`),
    and `UsageError` or one of its kinds, before anything is sent, for what cannot work. On any
    error the objects passed in are as they were.
    """

    _watch: Watch | None = None

    def __init__(self, driver: Driver, settings: Settings) -> None:
        self._driver = driver
        self._context = Context.of(settings)
        self._closed = False

    def _run(self, conversation: Conversation[T]) -> T:
        if self._closed:
            message = f"{self!r} cannot be used: it was closed; open it again"
            raise StoreClosedError(message)

        if self._watch is not None:
            conversation = self._watch(self, conversation)

        return self._driver.run(conversation)

    # flows ----------------------------------------------------------------------------------------

    def create(self, snapshot: FlowSnapshot[Any]) -> None:
        """Write a new flow at version 1; `FlowExistsError` if its id is taken.

        Costs one round trip. Unless `due_at` says otherwise the flow is due at once, if it is
        neither suspended nor terminal.

        >>> from catga_store import FlowSnapshot, MemoryStore
        >>> store = MemoryStore()
        >>> order = FlowSnapshot("order-1", state={"paid": False})
        >>> store.create(order)
        >>> order.version
        1
        """
        self._run(records.create(self._context, snapshot))

    @overload
    def get(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S] | None: ...
    @overload
    def get(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any] | None: ...
    def get(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any] | None:
        """The flow as a new object, or `None`; raw JSON data as state when no type is given.

        Costs one round trip. `StateTypeError` if the state was stored as another named type,
        `CorruptRecordError` if what is stored cannot be read.
        """
        flow: FlowSnapshot[Any] | None = self._run(records.get(self._context, flow_id, state_type))
        return flow

    @overload
    def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """Like `get`, but `FlowNotFoundError` if there is no such flow."""
        return self._run(records.get_one(self._context, flow_id, state_type))

    def get_or_create(self, snapshot: FlowSnapshot[S]) -> tuple[FlowSnapshot[S], bool]:
        """Create the flow, answering `(snapshot, True)`, or `(what is stored, False)`.

        The flow id is the idempotency key of whoever starts flows.
        """
        return self._run(records.get_or_create(self._context, snapshot))

    def update(self, snapshot: FlowSnapshot[Any]) -> None:
        """Write version + 1 if the store still holds the revision that was read.

        Only then do `version`, `revision`, `updated_at` change on the object. Else
        `StaleFlowError` (with `expected` and `actual`), `ClaimLostError` if the flow had been
        claimed through this object, or `FlowNotFoundError`; nothing is written. Costs one round
        trip. A claim is renewed, unless the flow is now terminal, suspended or has another
        `due_at`.

        >>> from catga_store import FlowSnapshot, MemoryStore, StaleFlowError
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> mine, yours = store.get_one("order-1"), store.get_one("order-1")
        >>> store.update(yours)
        >>> try:
        ...     store.update(mine)
        ... except StaleFlowError as error:
        ...     print(error)
        flow 'order-1' was read at version 1 but the store holds 2; nothing in this commit was written
        """
        self._run(records.update(self._context, snapshot))

    def delete(
        self,
        snapshot_or_id: FlowSnapshot[Any] | str,
        *,
        version: int | None = None,
        revision: str | None = None,
    ) -> bool:
        """Delete a flow and its ForEach progress; `True` if it existed.

        A loaded snapshot, a version or a revision is checked: `StaleFlowError` if the store holds
        another one. A plain id deletes what is there. A version or a revision beside an id costs a
        second round trip: the flow is read, and deleted as the revision that was read.
        """
        return self._run(
            records.delete(self._context, snapshot_or_id, version=version, revision=revision)
        )

    @overload
    def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    def get_many(
        self, flow_ids: Iterable[str], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    def get_many(self, flow_ids: Iterable[str], state_type: Any | None = None) -> dict[str, Any]:
        """Flows by id, `None` for what is absent; one round trip per 500 ids."""
        return self._run(records.get_many(self._context, flow_ids, state_type))

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
    ) -> Page[FlowSummary]:
        """A page of flows, newest `created_at` first, then by id, without their states.

        `state_type` may be a type or the name it is stored under; `created_after` is inclusive,
        the others exclusive; `limit` is 1 to 1,000. Pass the `cursor` of a page, with the same
        filters, for the next one: a flow that matches throughout appears exactly once while others
        come and go. One round trip; with `updated_before` it may read more than it answers.
        """
        return self._run(
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

    def iter_flows(
        self,
        *,
        status: FlowStatus | None = None,
        state_type: Any | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
    ) -> Iterator[FlowSummary]:
        """Every flow that `query_flows` would list, page by page."""
        cursor: str | None = None

        while True:
            page = self.query_flows(
                status=status,
                state_type=state_type,
                created_after=created_after,
                created_before=created_before,
                updated_before=updated_before,
                cursor=cursor,
            )
            yield from page
            cursor = page.cursor
            if cursor is None:
                return

    def count_flows(
        self,
        *,
        status: FlowStatus | None = None,
        state_type: Any | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_before: datetime | None = None,
    ) -> int:
        """How many flows `iter_flows` would answer with the same filters."""
        return self._run(
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

    def set_wait_condition(self, condition: WaitCondition) -> bool:
        """Write the definition and count completions that came before it.

        `True` if they satisfied it: then this is the one `now_satisfied`. On a pending condition
        it replaces the definition and keeps `created_at` and completions. On one that has ended
        nothing is written and the object takes what is stored, results included, which costs a
        second round trip. After `clear_wait_condition` it starts afresh.
        """
        return self._run(records.set_wait_condition(self._context, condition))

    def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """The condition with the completions of its children, or `None`."""
        return self._run(records.get_wait_condition(self._context, correlation_id))

    def update_wait_condition(self, condition: WaitCondition) -> bool:
        """Write definition and outcome if the store still holds the revision that was read.

        Results are never written. Completions are counted again; `True` if they satisfy the new
        definition now. Else `StaleWaitConditionError` or `WaitConditionNotFoundError`.
        """
        return self._run(records.update_wait_condition(self._context, condition))

    def clear_wait_condition(self, correlation_id: str) -> bool:
        """Remove a condition and its completions; `True` if it existed.

        A marker stays for `Retention.waits`: later completions are not kept and are told how it
        ended, `CANCELLED` if it was pending.
        """
        return self._run(records.clear_wait_condition(self._context, correlation_id))

    def get_timed_out_wait_conditions(
        self, now: datetime | None = None, limit: int | None = None
    ) -> list[WaitCondition]:
        """Pending conditions whose deadline has passed, oldest deadline first.

        A deadline closes nothing by itself: until somebody sets `outcome = TIMED_OUT` and updates
        the condition, completions count. The version check lets one closer win.
        """
        return self._run(records.get_timed_out_wait_conditions(self._context, now, limit))

    def query_wait_conditions(
        self,
        *,
        outcome: WaitOutcome | None = None,
        parent_flow_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[WaitCondition]:
        """A page of conditions, ended ones included, newest first; see `query_flows`."""
        return self._run(
            listings.query_wait_conditions(
                self._context,
                outcome=outcome,
                parent_flow_id=parent_flow_id,
                limit=limit,
                cursor=cursor,
            )
        )

    def iter_wait_conditions(
        self, *, outcome: WaitOutcome | None = None, parent_flow_id: str | None = None
    ) -> Iterator[WaitCondition]:
        """Every condition that `query_wait_conditions` would list, page by page."""
        cursor: str | None = None

        while True:
            page = self.query_wait_conditions(
                outcome=outcome, parent_flow_id=parent_flow_id, cursor=cursor
            )
            yield from page
            cursor = page.cursor
            if cursor is None:
                return

    def complete_child(
        self,
        correlation_id: str,
        child_flow_id: str,
        *,
        success: bool = True,
        result: object = None,
        error: str | None = None,
    ) -> Completion:
        """Record one child's completion once, however often and concurrently this is called.

        The first call is `accepted`, a repeated one a `duplicate`; a stranger's, or one for a
        condition that has ended or was cleared, is neither, and `outcome` says which. Without a
        condition it is accepted and kept until one is set; then `outcome` is `None`. Exactly one
        caller ever sees `now_satisfied`. `result` is plain JSON data; encoded, and with `error`, it
        takes at most 256 KiB (`RecordTooLargeError`). One round trip, whatever the number of
        children.

        >>> from catga_store import MemoryStore, WaitCondition
        >>> store = MemoryStore()
        >>> store.set_wait_condition(WaitCondition("ship", flow_ids=["s-1"]))
        False
        >>> store.complete_child("ship", "s-1", result={"parcel": 7}).now_satisfied
        True
        >>> store.complete_child("ship", "s-1").duplicate
        True
        """
        return self._run(
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

    def save_for_each_progress(
        self, flow_id: str, step_index: int, progress: ForEachProgress, *, overwrite: bool = False
    ) -> None:
        """Write a step's progress if the store still holds what was loaded, or nothing if it is new.

        Else `StaleProgressError`: load it, `merge`, save. `overwrite` writes whatever is there.
        The flow need not exist yet.
        """
        self._run(
            records.save_for_each_progress(
                self._context, flow_id, step_index, progress, overwrite=overwrite
            )
        )

    def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """A step's progress, or `None`."""
        return self._run(records.get_for_each_progress(self._context, flow_id, step_index))

    def clear_for_each_progress(self, flow_id: str, step_index: int) -> bool:
        """Remove a step's progress; `True` if it existed."""
        return self._run(records.clear_for_each_progress(self._context, flow_id, step_index))

    def list_for_each_progress(self, flow_id: str) -> dict[int, ForEachProgress]:
        """A flow's progress by step index."""
        return self._run(records.list_for_each_progress(self._context, flow_id))

    # claims ---------------------------------------------------------------------------------------

    @overload
    def claim_due(
        self,
        state_type: type[S],
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
    ) -> list[FlowSnapshot[S]]: ...
    @overload
    def claim_due(
        self,
        state_type: None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
    ) -> list[FlowSnapshot[Any]]: ...
    def claim_due(
        self,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
    ) -> list[FlowSnapshot[Any]]:
        """Up to `limit` flows that are due, each claimed: nobody else is given it for `lease`.

        Due are new flows, pauses that are over, flows whose owner has not renewed, and parents
        whose wait is satisfied or past its deadline (which is closed as `TIMED_OUT` in the same
        commit); such a parent's `wait_condition` shows how it ended, results included. Nearly
        oldest first. No flow goes to two: the claim is decided inside the store. A claim adds 1 to
        `attempts` and to `version`.

        With a type, only flows of that type and untyped ones. What cannot be decoded is put off by
        one lease, logged and skipped, also an untyped flow whose data does not fit the type: where
        workers with a type and without share a store, give every flow a type.

        A wait that ends while its parent is held wakes it when the claim ends, at most a quarter of
        what was left of the lease later than that. A parent that is not there, or has ended, when
        its wait is met here is not told of it later, unless it then suspends on it.

        Costs three round trips, one or two more for parents, more under contention.
        """
        return self._run(
            claims.claim_due(self._context, state_type, lease=lease, limit=limit, owner=owner)
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
        state_type: None = None,
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
        """This flow, claimed like one of `claim_due`, due or not.

        Waits up to `timeout` for another's claim to end, then `FlowClaimedError` (with `owner`
        and `until`). A terminal flow is answered as it is, unclaimed. `FlowNotFoundError`. What
        has ended of its waits counts as told; `wait_condition` shows the one that it suspended on,
        if that has ended, else the newest. Costs three round trips, one more for a parent.
        """
        return self._run(
            claims.claim(
                self._context, flow_id, state_type, lease=lease, timeout=timeout, owner=owner
            )
        )

    def extend(self, flow: FlowSnapshot[Any], lease: timedelta | None = None) -> None:
        """Let the claim end `lease` from now (default: as claimed), and change nothing else.

        Neither version nor object changes, so another thread may call it beside the owner's own
        commits. `ClaimLostError` if the claim was lost or given back. After a
        `CommitUncertainError` the claim ends at the one time or the other: extend it again.
        """
        self._run(claims.extend(self._context, flow, lease))

    def release(self, flow: FlowSnapshot[Any], *, due_at: datetime | None = AT_ONCE) -> None:
        """Give the claim back without writing the state.

        The flow is due now unless told otherwise; `None` parks it. `ClaimLostError` if the claim
        was lost. What was changed on the object is still only there.
        """
        self._run(claims.release(self._context, flow, due_at=due_at))

    # sessions -------------------------------------------------------------------------------------

    def session(self) -> Session:
        """A unit of work; nothing is written without its `commit()`. Use it in a `with`."""
        return Session(self._run, self._context)

    @contextmanager
    def begin(self) -> Generator[Session, None, None]:
        """A session that commits at the end of the block, and rolls back on an exception."""
        with self.session() as session:
            yield session
            session.commit()

    def transact(
        self,
        function: Callable[[Session, *Ts], R],
        *args: *Ts,
        attempts: int = 100,
    ) -> R:
        """Call `function(session, *args)`, commit, and answer what it answered.

        When its own commit conflicts, once more with fresh reads, up to `attempts` times, after
        jittered pauses of 2 to 200 ms. An uncertain commit is resolved first. The function must
        do nothing outside the session that may not happen twice; one that has committed something
        by itself is not called again.

        >>> from catga_store import FlowSnapshot, MemoryStore
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("counter", state={"n": 0}))
        >>> def add(session, amount):
        ...     counter = session.get_one("counter")
        ...     counter.state["n"] += amount
        ...     return counter.state["n"]
        >>> store.transact(add, 5)
        5
        """
        check_function(function)

        def call(unit: UnitOfWork) -> R:
            return check_blocking(function(Session(self._run, self._context, unit), *args))

        result: R = self._run(sessions.transact(self._context, call, attempts))
        return result

    def resolve_commit(self, error: CommitUncertainError) -> Receipt | None:
        """Settle an uncertain commit: its receipt, or `None`, and then it never will be applied.

        Raises the error again while the store cannot tell. For twice the store's `timeout` it can; after
        that it cannot if a flow or progress of the commit was written eight times since.
        """
        return self._run(commits.resolve_commit(self._context, error))

    # the store ------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The store's clock, in whole milliseconds."""
        return self._context.now()

    def sweep(self, limit: int = 1000) -> int:
        """Remove up to `limit` records that have expired; answers how many.

        Nobody needs to call it for correctness: what has expired is absent. Writes sweep a few.
        A `CommitUncertainError` may be resolved, or forgotten.
        """
        return self._run(upkeep.sweep(self._context, limit))

    def clear(self) -> None:
        """Remove every record of this store, and nothing else.

        An embedded store does it at once, one on a server in steps. After a `CommitUncertainError`
        `resolve_commit` answers a receipt if everything is gone; if it answers `None` no more will
        go, and on a server a part may be gone: clear it again.
        """
        self._run(upkeep.clear())

    def ping(self) -> None:
        """Do nothing if the store works; else raise what is wrong."""
        self._run(upkeep.ping())

    def close(self) -> None:
        """Close what the store opened; afterwards `StoreClosedError`. May be called again."""
        if not self._closed:
            self._closed = True
            self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__name__} {self._driver!r}{state}>"
