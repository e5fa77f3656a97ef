"""The async API: `AsyncStore` and `AsyncSession`, on asyncio and on trio.

`store.py`, `session.py` and `bulk.py` are generated from this module by `tests/meta/generate_api.py`. To change an
operation of the public API, change it here and run that script.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import AsyncIterator
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from datetime import timedelta
from types import TracebackType
from typing import Any
from typing import Literal
from typing import Self
from typing import TypeVar
from typing import TypeVarTuple
from typing import Unpack
from typing import overload

from catga_store.core import actions
from catga_store.core import bulk
from catga_store.core import claims
from catga_store.core import commits
from catga_store.core import examining
from catga_store.core import history
from catga_store.core import listings
from catga_store.core import numbers
from catga_store.core import parts
from catga_store.core import records
from catga_store.core import sessions
from catga_store.core import upkeep
from catga_store.core import waiting
from catga_store.core import writes
from catga_store.core.arguments import check_awaitable
from catga_store.core.arguments import check_function
from catga_store.core.async_holding import AsyncHolding
from catga_store.core.base_async_store import AsyncDriver
from catga_store.core.base_async_store import AsyncRunner
from catga_store.core.base_async_store import BaseAsyncStore
from catga_store.core.base_session import BaseSession
from catga_store.core.claims import DEFAULT_LEASE
from catga_store.core.context import Context
from catga_store.core.options import BulkOptions
from catga_store.core.options import DiagnosisOptions
from catga_store.core.options import DueFilters
from catga_store.core.options import FlowFilters
from catga_store.core.options import StoreOptions
from catga_store.core.options import WaitFilters
from catga_store.core.receipts import Receipt
from catga_store.core.settings import Settings
from catga_store.core.state_types import ManyTypes
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.core.waiting import NO_WAIT
from catga_store.errors import CommitUncertainError
from catga_store.model.bulk import BulkReport
from catga_store.model.diagnosis import Diagnosis
from catga_store.model.diagnosis import Severity
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowSummary
from catga_store.model.flows import FlowVersion
from catga_store.model.listings import Page
from catga_store.model.parts import Appended
from catga_store.model.parts import LogEntry
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stats import DueFlow
from catga_store.model.stats import StoreStats
from catga_store.model.stored_state import AnyRecord
from catga_store.model.tags import NO_TAGS
from catga_store.model.tags import tag_changes
from catga_store.model.times import NOW
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition

__all__ = ["AsyncDriver", "AsyncSession", "AsyncStore", "Settings", "StoreOptions"]

S = TypeVar("S")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class AsyncStore(BaseAsyncStore):
    """Durable state of flows, for async code.

    Each operation is atomic; a `session()` combines several operations into one atomic commit. Every
    operation may raise `StoreUnavailableError` if the store cannot be reached (nothing was written),
    `CommitUncertainError` if a write was sent and its outcome is unknown (`resolve_commit` determines
    it), and `UsageError`, before anything is sent, if the call can never work. After an error, the
    objects that you passed are unchanged.

    A store belongs to the event loop that first used it. Cancelling a read stops it at once. A write
    that is already in flight completes first: its result is applied to your objects, and then the
    cancellation is raised again.

    >>> import anyio
    >>> from catga_store import AsyncMemoryStore, FlowSnapshot
    >>> async def main():
    ...     async with AsyncMemoryStore() as store:
    ...         await store.create(FlowSnapshot("order-1", state={"paid": False}))
    ...         order = await store.get_one("order-1")
    ...     print(order)
    >>> anyio.run(main)
    <FlowSnapshot 'order-1' v1 CREATED at 0>
    """

    # flows ----------------------------------------------------------------------------------------

    async def create(self, snapshot: FlowSnapshot[Any]) -> None:
        """Write a new flow with version 1; raise `FlowExistsError` if its id is taken.

        Costs one round trip. Unless you set `due_at`, the flow is due at once if it is neither
        suspended nor terminal.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     order = FlowSnapshot("order-1", state={"paid": False})
        ...     await store.create(order)
        ...     print(order.version)
        >>> anyio.run(main)
        1
        """
        await self._run(records.create(self._context, snapshot))

    @overload
    async def get(
        self, flow_id: str, state_type: type[S], *, version: int | None = None
    ) -> FlowSnapshot[S] | None: ...
    @overload
    async def get(
        self, flow_id: str, state_type: None = None, *, version: int | None = None
    ) -> FlowSnapshot[Any] | None: ...
    async def get(
        self, flow_id: str, state_type: Any | None = None, *, version: int | None = None
    ) -> FlowSnapshot[Any] | None:
        """Return the flow as a new object, or `None` if there is none.

        Without a type, the state is raw JSON data. Costs one round trip. Raises `StateTypeError` if the
        state was stored as another named type, and `CorruptRecordError` if it cannot be read.

        With `version`, return this version of the flow, or `None` if the store has not kept it (see the
        option `history`). A former version cannot be written: `update` raises `StaleFlowError`.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     print(await store.get("order-1"))
        >>> anyio.run(main)
        None
        """
        if version is not None:
            return await self._run(history.get_version(self._context, flow_id, state_type, version))

        return await self._run(records.get(self._context, flow_id, state_type))

    @overload
    async def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    async def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    async def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """Return the flow like `get`, but raise `FlowNotFoundError` if there is none."""
        return await self._run(records.get_one(self._context, flow_id, state_type))

    async def get_or_create(self, snapshot: FlowSnapshot[S]) -> tuple[FlowSnapshot[S], bool]:
        """Create the flow and return `(snapshot, True)`, or return `(stored flow, False)`.

        This makes starting a flow idempotent: the flow id is the idempotency key. Costs one round
        trip, or two if the id is taken.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": True}))
        ...     order = FlowSnapshot("order-1", state={"paid": False})
        ...     stored, is_new = await store.get_or_create(order)
        ...     print(stored.state, is_new)
        >>> anyio.run(main)
        {'paid': True} False
        """
        return await self._run(records.get_or_create(self._context, snapshot))

    async def update(self, snapshot: FlowSnapshot[Any]) -> None:
        """Write the flow as its next version if the store still has the revision that was read.

        Only then are `version`, `revision` and `updated_at` of the object changed. Otherwise, nothing
        is written, and the call raises `StaleFlowError` (with `expected` and `actual`),
        `ClaimLostError` if the flow was claimed through this object, or `FlowNotFoundError`. Costs one
        round trip.

        A claim is renewed, unless the flow is now terminal or suspended, or has another `due_at`.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot, StaleFlowError
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     mine = await store.get_one("order-1")
        ...     yours = await store.get_one("order-1")
        ...     await store.update(yours)
        ...     try:
        ...         await store.update(mine)
        ...     except StaleFlowError as error:
        ...         print(error.expected, error.actual)
        >>> anyio.run(main)
        1 2
        """
        await self._run(records.update(self._context, snapshot))

    async def delete(
        self,
        snapshot_or_id: FlowSnapshot[Any] | str,
        *,
        version: int | None = None,
        revision: str | None = None,
    ) -> bool:
        """Delete a flow with its ForEach progress and its parts; return whether it existed.

        If you pass a loaded snapshot, a version or a revision, it is checked: the call raises
        `StaleFlowError` if the store has another one. With an id alone, any version is deleted. All
        parts are absent at once, however many there are; later writes and sweeps reclaim their space. A
        flow that has not ended and reports its end (`reports_to`) does so in the same commit.

        Costs one round trip. With an id and a version or revision, it costs a second one: the flow is
        read, and only the revision that was read is deleted. The same holds for a flow that reports its
        end and is deleted by its id alone.
        """
        return await self._run(
            records.delete(self._context, snapshot_or_id, version=version, revision=revision)
        )

    async def delete_many(self, flow_ids: Iterable[str]) -> int:
        """Delete flows by id, with everything that belongs to them; return how many of them existed.

        Versions and claims are not checked: each flow is deleted as it is. Costs one round trip per 200
        ids, which is the maximum of one commit; with partitions, per 200 ids of one partition. Each
        commit is atomic, but all of them together are not: after an error, the earlier commits remain.
        Deleting again is safe, so call it again with the same ids. Flows that report their end
        (`reports_to`) do so; a commit with such flows costs a second round trip.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("thread-1", state={}))
        ...     print(await store.delete_many(["thread-1", "thread-2"]))
        >>> anyio.run(main)
        1
        """
        return await self._run(records.delete_many(self._context, flow_ids))

    @overload
    async def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    async def get_many(
        self, flow_ids: Iterable[str] | Mapping[str, type[Any] | None], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    async def get_many(
        self, flow_ids: Iterable[str], state_type: Any | None = None
    ) -> dict[str, Any]:
        """Return flows by id, with `None` for each one that is absent; costs one round trip per 500 ids.

        `state_type` is the type of all of them. If their types differ, pass a mapping of ids to types
        instead; `None` as a type means raw JSON data. If one flow has another type or cannot be read,
        no flow is returned, and the call raises the same error as `get`.

        >>> import anyio
        >>> from dataclasses import dataclass
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> @dataclass
        ... class Order:
        ...     paid: bool
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state=Order(paid=True)))
        ...     await store.create(FlowSnapshot("total", state={"n": 12}))
        ...     flows = await store.get_many({"order-1": Order, "total": None, "x": None})
        ...     print([flow and flow.state for flow in flows.values()])
        >>> anyio.run(main)
        [Order(paid=True), {'n': 12}, None]
        """
        return await self._run(records.get_many(self._context, flow_ids, state_type))

    async def query_flows(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[FlowFilters]
    ) -> Page[FlowSummary]:
        """Return a page of flows without their states, ordered by `created_at`, newest first, then by id.

        The filters are `status`, `state_type` (a type, or a stored type name), `created_after` and
        `updated_after` (inclusive), `created_before` and `updated_before` (exclusive), `id_prefix` (1 to
        512 bytes of UTF-8, compared by bytes), `owner` (of a claim, even if its lease has ended),
        `error_contains` (a part of the error; case matters), `attempts_at_least`, and `tags`, all of which
        a flow must have. `limit` is 1 to 1,000. For the next page, pass the `cursor` of this page with the
        same filters. A flow that matches all the time appears exactly once, even if other flows are added
        or removed in the meantime. A flow that cannot be read is in the page, too: its `unreadable` says
        why, and only its id is known.

        Costs one round trip. There is no index for `updated_after`, `updated_before`, `owner`,
        `error_contains` and `attempts_at_least`: with these filters, the store reads the flows that match
        the other filters until the page is full, on Redis and NATS in pages that grow to 1,000 and 400
        flows. Only the first of `tags` is looked up in an index, alone or with `status`; the other tags
        and filters are checked flow by flow.

        With `id_prefix`, the flows are ordered by id, as UTF-8 bytes, and the cost of a page depends on the
        flows that have the prefix, not on all stored flows. Other filters are then checked flow by flow:
        the store reads flows that have the prefix until the page is full. NATS also sends the names of all
        flows, 100,000 per request: with one replica, about once every ten minutes in each process, and only
        the new names for other pages; with replicas, or more than 500,000 flows, for each page.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot, FlowStatus
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     page = await store.query_flows(status=FlowStatus.CREATED)
        ...     print([flow.flow_id for flow in page])
        >>> anyio.run(main)
        ['order-1']
        """
        return await self._run(
            listings.query_flows(self._context, limit=limit, cursor=cursor, **filters)
        )

    async def iter_flows(self, **filters: Unpack[FlowFilters]) -> AsyncIterator[FlowSummary]:
        """Iterate over all flows that `query_flows` would list, page by page."""
        cursor: str | None = None

        while True:
            page = await self.query_flows(cursor=cursor, **filters)
            for summary in page:
                yield summary

            cursor = page.cursor
            if cursor is None:
                return

    async def count_flows(self, **filters: Unpack[FlowFilters]) -> int:
        """Return how many flows `iter_flows` would yield with the same filters."""
        return await self._run(listings.count_flows(self._context, **filters))

    async def query_due(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[DueFilters]
    ) -> Page[DueFlow]:
        """Return a page of flows that are due or claimed, oldest `due_at` first, without claiming any.

        The `due_at` of a claimed flow is the end of its lease. So the flows that `claim_due` would claim
        come first, followed by those that workers have claimed. `only` restricts the page to `"due"`,
        `"claimed"` or `"expired"` flows; the latter are due because a lease has ended. `state_type` is a
        type or a stored type name; a flow must have all of `tags`. `limit` is 1 to 1,000. For the next
        page, pass the `cursor` of this page with the same filters. A flow that is claimed or written in
        the meantime may appear again, or not at all.

        A suspended flow is not due, so it is not listed when its wait has ended, although `claim_due` then
        claims it; `stats` counts such waits as `waits_due`. A flow that cannot be read is in the page, too:
        its `flow.unreadable` says why, and no worker claims it.

        Costs one round trip for due flows and one for claimed flows; on Redis and NATS, two each, one of
        which reads the index. To find claimed flows of one type or tag, all claimed flows are searched.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     await store.create(FlowSnapshot("order-2", state={"paid": False}))
        ...     _ = await store.claim("order-1", owner="worker-1")
        ...     for one in await store.query_due():
        ...         print(one.flow.flow_id, one.claimed, one.flow.owner)
        >>> anyio.run(main)
        order-2 False None
        order-1 True worker-1
        """
        return await self._run(
            numbers.query_due(self._context, limit=limit, cursor=cursor, **filters)
        )

    async def count_due(self, **filters: Unpack[DueFilters]) -> int:
        """Return how many flows `query_due` would list with the same filters, on all pages.

        Costs one round trip for due flows and one for claimed flows, and reads no flow unless you pass
        `state_type`. On NATS, the names of all index entries that are counted are read.
        """
        return await self._run(numbers.count_due(self._context, **filters))

    async def stats(self) -> StoreStats:
        """Return the number of flows by type and status, of due and claimed flows, and of waits.

        All numbers come from indexes, so no flow is read, except for one of each type on NATS. Memory and
        Redis take about the same time for any number of flows. SQLite counts flows as they change, and
        reads the index entries of due flows, claimed flows and pending conditions. On NATS, the server
        counts index entries. The first call of a process compares the names of all entries, 100,000 per
        request, and so does about one call per minute after that; the page on NATS says when more calls do.
        If a process dies before it has removed an old entry, the flow is counted twice until the names are
        compared again. The numbers may be from slightly different times, because others write in the
        meantime.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     stats = await store.stats()
        ...     print(stats.total, stats.due, stats.claimed)
        >>> anyio.run(main)
        1 1 0
        """
        return await self._run(numbers.stats(self._context))

    # operations of an operator ----------------------------------------------------------------------

    async def cancel_flow(
        self, flow_id: str, reason: str, *, version: int | None = None
    ) -> FlowSummary:
        """End a live flow as `CANCELLED`, with `reason` as its error; return the flow after the change.

        This also ends a claim: the owner's next write is refused (`ClaimLostError`). The state is kept as
        it is and is not read, so a flow whose state cannot be read can be cancelled, too. A flow that is
        already cancelled is returned as it is. Raises `FlowStatusError` if the flow has completed or failed,
        and `FlowNotFoundError` if there is no such flow.

        With `version`, the call raises `StaleFlowError` if the flow has another version. Without it, if
        another writer was first, the flow is read again, up to ten times. Costs two round trips.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     order = await store.cancel_flow("order-1", "ordered twice")
        ...     print(order.status.name, order.error, order.due_at)
        >>> anyio.run(main)
        CANCELLED ordered twice None
        """
        action = actions.CancelFlow(actions.check_reason(reason))
        return await self._run(actions.act_on_flow(self._context, action, flow_id, version=version))

    async def retry_flow(self, flow_id: str, *, version: int | None = None) -> FlowSummary:
        """Run a flow again that has failed or was cancelled; return the flow after the change.

        It is then `RUNNING` at the position where it ended, due now, with no error and no attempts. A live
        flow loses its attempts and its error, and is due now. Raises `FlowStatusError` if the flow has
        completed, and `FlowClaimedError` if a worker has claimed it; `version`, the other errors and the
        cost are as for `cancel_flow`.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot, FlowStatus
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     order = FlowSnapshot("order-1", state={}, status=FlowStatus.FAILED, error="no stock")
        ...     await store.create(order)
        ...     again = await store.retry_flow("order-1", version=1)
        ...     print(again.status.name, again.error, again.due_at is not None)
        >>> anyio.run(main)
        RUNNING None True
        """
        return await self._run(
            actions.act_on_flow(self._context, actions.RetryFlow(), flow_id, version=version)
        )

    async def wake_flow(self, flow_id: str, *, version: int | None = None) -> FlowSummary:
        """Make a live flow due now, whatever it waits for; return the flow after the change.

        Its status and its wait condition do not change: a worker that claims the flow finds the condition
        as it is. A flow that is already due is returned as it is. Raises `FlowStatusError` if the flow has
        ended, and `FlowClaimedError` if a worker has claimed it; `version`, the other errors and the cost
        are as for `cancel_flow`.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={}, due_at=None))
        ...     order = await store.wake_flow("order-1")
        ...     print(order.due_at == order.updated_at)
        >>> anyio.run(main)
        True
        """
        return await self._run(
            actions.act_on_flow(self._context, actions.WakeFlow(), flow_id, version=version)
        )

    async def release_flow(self, flow_id: str, *, version: int | None = None) -> FlowSummary:
        """Take a claim away from its owner; return the flow after the change.

        The flow is then due now. The owner's next write is refused (`ClaimLostError`). So use this for a
        worker that has died or hangs: if the worker is still running, what it has done since its last
        commit is done again. A flow that is not claimed is returned as it is. Raises `FlowStatusError` if
        the flow has ended; `version`, the other errors and the cost are as for `cancel_flow`.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={}))
        ...     order = await store.claim("order-1", owner="worker-1")
        ...     print((await store.release_flow("order-1")).owner)
        >>> anyio.run(main)
        None
        """
        return await self._run(
            actions.act_on_flow(self._context, actions.ReleaseFlow(), flow_id, version=version)
        )

    async def diagnose(self, flow_id: str, **options: Unpack[DiagnosisOptions]) -> Diagnosis:
        """Return the reasons why a flow does not continue; there are no findings if nothing is wrong.

        Each finding has one of these codes. The flow

        - `unreadable`: cannot be read; its head is returned if it can be read
        - `future_version`: was written by a newer release, or with a newer version of one of the `types`
        - `due_disagrees`: has ended but is due, or has a claim that never ends
        - `never_due`: is live but never due, and nothing will wake it
        - `wait_gone`: is suspended on a condition that does not exist or belongs to another flow
        - `children_ended`: waits for flows that have ended without reporting it
        - `no_deadline`: has waited for longer than `idle` on a condition without a deadline
        - `lease_expired`: was claimed by an owner whose lease has ended
        - `overdue`: has been due for longer than `late`
        - `attempts_high`: was attempted `attempts` times or more at one step
        - `parent_gone`: does not exist, but a pending condition would wake it
        - `orphan_parts`: does not exist, but has parts
        - `failed`: has failed

        The options are `late` (default: 5 minutes), `idle` (1 day), `attempts` (5) and `types`, the types
        that the program knows. Nothing is changed. The state is read as raw data. Raises
        `FlowNotFoundError` if there is no such flow and nothing is left of it. Costs one round trip, and up
        to four more for a flow that waits.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={}, due_at=None))
        ...     for finding in (await store.diagnose("order-1")).findings:
        ...         print(finding.severity, finding.text)
        >>> anyio.run(main)
        warning is CREATED but is never due
        """
        return await self._run(examining.diagnose(self._context, flow_id, **options))

    async def diagnose_all(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        most: int = examining.MOST,
        severity: Severity = "warning",
        late: timedelta = examining.LATE,
        idle: timedelta = examining.IDLE,
        attempts: int = examining.ATTEMPTS,
        types: Iterable[Any] = (),
        **filters: Unpack[FlowFilters],
    ) -> Page[Diagnosis]:
        """Check live flows, and return those that have a finding of `severity` or worse.

        A page ends when it has `limit` flows (1 to 1,000), or when `most` flows were checked, so it may be
        empty and still have a `cursor`. For the next page, pass the `cursor` with the same arguments. The
        filters are those of `query_flows`; with `status`, flows that have ended are checked, too. Without
        filters, pending wait conditions whose parent does not exist are listed after the flows; such a
        diagnosis has the id of the parent and no `flow`. The findings and the options are those of
        `diagnose`. A flow that cannot be read has the finding `unreadable` and does not end the listing;
        without filters, neither does a wait condition, whose diagnosis has its own id and no `flow`.

        Nothing is changed. Live flows are read with their states, so the cost depends on how many flows are
        checked, not on how many are returned: for 200 flows, two round trips, up to three more if some of
        them wait, and one more for each flow that is never due.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={}))
        ...     await store.create(FlowSnapshot("order-2", state={}, due_at=None))
        ...     for one in await store.diagnose_all():
        ...         print(one.flow_id, *one.codes)
        >>> anyio.run(main)
        order-2 never_due
        """
        options: DiagnosisOptions = {
            "late": late,
            "idle": idle,
            "attempts": attempts,
            "types": types,
        }
        return await self._run(
            examining.diagnose_all(
                self._context,
                limit=limit,
                cursor=cursor,
                most=most,
                severity=severity,
                options=options,
                filters=filters,
            )
        )

    def bulk(
        self,
        *,
        ids: Iterable[str] | None = None,
        findings: Iterable[str] = (),
        everything: bool = False,
        diagnosis: DiagnosisOptions | None = None,
        **filters: Unpack[FlowFilters],
    ) -> AsyncBulk:
        """Return operations on many flows at once: `cancel`, `retry`, `wake`, `release`, `tag`, `purge`.

        They apply to the flows with these `ids`, or to those that match the filters of `query_flows`. With
        `findings`, they apply only to those flows for which `diagnose_all` finds one of these codes;
        `diagnosis` is a mapping of its options. Raises `UsageError` if you pass none of these, unless
        `everything` is `True`. Nothing is read or changed yet.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot, FlowStatus
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     for number in range(3):
        ...         failed = FlowSnapshot(f"order-{number}", state={}, status=FlowStatus.FAILED)
        ...         await store.create(failed)
        ...     planned = await store.bulk(status=FlowStatus.FAILED).retry(dry_run=True)
        ...     report = await store.bulk(status=FlowStatus.FAILED).retry()
        ...     print(planned.changed, report.changed, report.skipped)
        >>> anyio.run(main)
        3 3 {}
        """
        selection = bulk.select(
            ids=ids,
            findings=findings,
            everything=everything,
            diagnosis=diagnosis,
            filters=filters,
        )
        return AsyncBulk(self._run, self._context, selection)

    # history --------------------------------------------------------------------------------------

    async def list_versions(
        self, flow_id: str, *, before: int | None = None, limit: int = 100
    ) -> list[FlowVersion]:
        """Return the versions of a flow, newest first, including the current one.

        Former versions are kept if the store that wrote them had the option `history`. For the next page,
        pass the last version as `before`. `limit` is 1 to 1,000. Costs two round trips and transfers the
        bytes of the states.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore(history=10)
        ...     order = FlowSnapshot("order-1", state={"paid": False})
        ...     await store.create(order)
        ...     order.position = order.position.advance()
        ...     await store.update(order)
        ...     for one in await store.list_versions("order-1"):
        ...         print(one.version, one.status.name, one.position)
        >>> anyio.run(main)
        2 CREATED 1
        1 CREATED 0
        """
        return await self._run(
            history.list_versions(self._context, flow_id, before=before, limit=limit)
        )

    async def fork(
        self, flow_id: str, new_id: str, *, version: int | None = None
    ) -> FlowSnapshot[Any]:
        """Create a new flow from a version of this one, due at once; return it with its state as raw data.

        The new flow has the state and position of that version. It is `CREATED`, `RUNNING` or
        `COMPENSATING` if that version was; otherwise, it is `RUNNING`. It has no error, no attempts, no
        wait condition and no `reports_to`.

        The default is the current version. Its ForEach progress, parts and logs are copied, too, as they
        were at that version: if the flow is written in the meantime, it is read again, up to ten times,
        before the call raises `StaleFlowError`. Changes that others make in the meantime without writing
        the flow may be missed; a log then ends earlier. For former versions, none of these are copied.

        Raises `FlowNotFoundError` if there is no such flow or version, and `FlowExistsError` if the new id
        is taken. Costs four round trips. Records that do not fit into one commit of 200 records are written
        before it, as parts without a flow. If the fork is refused, it removes them; if it is interrupted, a
        sweep removes them.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": True}))
        ...     print(await store.fork("order-1", "order-1-again"))
        >>> anyio.run(main)
        <FlowSnapshot 'order-1-again' v1 CREATED at 0>
        """
        return await self._run(history.fork(self._context, flow_id, new_id, version=version))

    # wait conditions ------------------------------------------------------------------------------

    async def set_wait_condition(self, condition: WaitCondition) -> bool:
        """Write a wait condition, and count the completions that arrived before it.

        Return whether they satisfied it; if so, this call is the one that sees `now_satisfied`. If the
        condition is pending, its definition is replaced, and `created_at` and the completions are kept. If
        it has ended, nothing is written, and the object takes over the stored values, including the
        results, which costs a second round trip. After `clear_wait_condition`, it starts from the beginning.
        """
        return await self._run(records.set_wait_condition(self._context, condition))

    async def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """Return the condition with the completions of its children, or `None`."""
        return await self._run(records.get_wait_condition(self._context, correlation_id))

    async def update_wait_condition(self, condition: WaitCondition) -> bool:
        """Write the definition and outcome if the store still has the revision that was read.

        Results are never written. Completions are counted again; return whether they now satisfy the new
        definition. Otherwise, the call raises `StaleWaitConditionError` or `WaitConditionNotFoundError`.
        """
        return await self._run(records.update_wait_condition(self._context, condition))

    async def clear_wait_condition(self, correlation_id: str) -> bool:
        """Remove a condition and its completions; return whether it existed.

        A tombstone is kept for `Retention.waits`. During this time, later completions are not kept, and
        their `outcome` says how the condition ended: `CANCELLED` if it was pending.
        """
        return await self._run(records.clear_wait_condition(self._context, correlation_id))

    async def get_timed_out_wait_conditions(
        self, now: datetime | None = None, limit: int | None = None
    ) -> list[WaitCondition]:
        """Return the pending conditions whose deadline has passed, oldest deadline first.

        A deadline does not end a condition by itself: completions count until your code sets
        `outcome = TIMED_OUT` and updates the condition. The version check lets only one caller succeed. A
        condition that cannot be read is in the list, too: its `unreadable` says why, and updating it raises
        `CorruptRecordError`.
        """
        return await self._run(records.get_timed_out_wait_conditions(self._context, now, limit))

    async def query_wait_conditions(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[WaitFilters]
    ) -> Page[WaitCondition]:
        """Return a page of conditions, including those that have ended, newest first.

        The filters are `outcome` and `parent_flow_id`; `limit` and `cursor` are as for `query_flows`. A
        condition that cannot be read is in the page, too: its `unreadable` says why, and only its id is
        known. Costs two round trips, and up to one more for each condition that cannot be read.
        """
        return await self._run(
            listings.query_wait_conditions(self._context, limit=limit, cursor=cursor, **filters)
        )

    async def iter_wait_conditions(
        self, **filters: Unpack[WaitFilters]
    ) -> AsyncIterator[WaitCondition]:
        """Iterate over all conditions that `query_wait_conditions` would list, page by page."""
        cursor: str | None = None

        while True:
            page = await self.query_wait_conditions(cursor=cursor, **filters)
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
        """Record the completion of one child once, however often and concurrently this is called.

        The first call for a child is `accepted`; a repeated call is a `duplicate`. A call for an unknown
        child, or for a condition that has ended or was cleared, is neither, and `outcome` says how the
        condition ended. If there is no condition yet, the completion is accepted and kept until one is
        set, and `outcome` is `None`. Exactly one call ever sees `now_satisfied`.

        `result` is plain JSON data. Encoded together with `error`, it must not exceed 256 KiB
        (`RecordTooLargeError`). Costs one round trip, for any number of children.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, WaitCondition
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     wait = WaitCondition("ship", flow_ids=["s-1"])
        ...     is_satisfied = await store.set_wait_condition(wait)
        ...     first = await store.complete_child("ship", "s-1", result={"parcel": 7})
        ...     again = await store.complete_child("ship", "s-1")
        ...     print(first.now_satisfied, again.duplicate)
        >>> anyio.run(main)
        True True
        """
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
        """Write the progress of a step if the store still has the revision that was loaded.

        A new progress object expects that nothing is stored. Otherwise, the call raises
        `StaleProgressError`: load the stored progress, `merge` yours, and save it. With `overwrite`, it is
        written whatever is stored. The flow need not exist yet.
        """
        await self._run(
            records.save_for_each_progress(
                self._context, flow_id, step_index, progress, overwrite=overwrite
            )
        )

    async def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """Return the progress of a step, or `None`."""
        return await self._run(records.get_for_each_progress(self._context, flow_id, step_index))

    async def clear_for_each_progress(self, flow_id: str, step_index: int) -> bool:
        """Remove the progress of a step; return whether it existed."""
        return await self._run(records.clear_for_each_progress(self._context, flow_id, step_index))

    async def list_for_each_progress(self, flow_id: str) -> dict[int, ForEachProgress]:
        """Return the progress of all steps of a flow, by step index."""
        return await self._run(records.list_for_each_progress(self._context, flow_id))

    # parts and logs -------------------------------------------------------------------------------

    async def put_part(
        self, part: Part[Any], *, exists: Literal["refuse", "keep", "overwrite"] = "refuse"
    ) -> bool:
        """Write a part of a flow; return whether it was written.

        A new part is written only if no part of that name exists; otherwise, the call raises
        `PartExistsError`. A part that was read is written only if the store still has the revision that was
        read; otherwise, the call raises `StalePartError`. It is not written if it has not changed. With
        `exists="keep"`, if there is already a part, it is kept, and the object stays new; with
        `exists="overwrite"`, the part is written whatever is stored. The flow need not exist yet; parts
        without a flow may be removed after `Retention.waits`. Costs one round trip.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, Part
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     part = Part("order-1", "invoice", b"%PDF-1.7")
        ...     print(await store.put_part(part), part.version)
        >>> anyio.run(main)
        True 1
        """
        return await self._run(parts.put_part(self._context, part, exists=exists))

    @overload
    async def get_part(self, flow_id: str, name: str, body_type: type[S]) -> Part[S] | None: ...
    @overload
    async def get_part(
        self, flow_id: str, name: str, body_type: None = None
    ) -> Part[Any] | None: ...
    async def get_part(
        self, flow_id: str, name: str, body_type: Any | None = None
    ) -> Part[Any] | None:
        """Return the part as a new object, or `None` if there is none.

        Without a type, the body is `bytes` if it was written as `bytes`, and otherwise raw JSON data. Costs
        one round trip. Raises the same errors as `get`.
        """
        return await self._run(parts.get_part(self._context, flow_id, name, body_type))

    @overload
    async def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: type[S]
    ) -> dict[str, Part[S] | None]: ...
    @overload
    async def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: None = None
    ) -> dict[str, Part[Any] | None]: ...
    async def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: Any | None = None
    ) -> dict[str, Any]:
        """Return parts of one flow by name, with `None` for each one that is absent.

        Costs one round trip per 500 names. If one part has another type or cannot be read, no part is
        returned, and the call raises the same error as `get`.
        """
        return await self._run(parts.get_parts(self._context, flow_id, names, body_type))

    @overload
    async def list_parts(
        self,
        flow_id: str,
        prefix: str = "",
        *,
        after: str | None = None,
        before: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        bodies: bool = False,
        body_type: type[S],
    ) -> Page[Part[S]]: ...
    @overload
    async def list_parts(
        self,
        flow_id: str,
        prefix: str = "",
        *,
        after: str | None = None,
        before: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        bodies: bool = False,
        body_type: None = None,
    ) -> Page[Part[Any]]: ...
    async def list_parts(
        self,
        flow_id: str,
        prefix: str = "",
        *,
        after: str | None = None,
        before: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        bodies: bool = False,
        body_type: Any | None = None,
    ) -> Page[Part[Any]]:
        """Return a page of the parts of a flow whose names begin with `prefix`, ordered by name.

        Names are compared by their UTF-8 bytes. The page contains only names between `after` and `before`,
        which need not exist. With `reverse`, the last names come first. For the next page, pass the
        `cursor` of this page as `after`, or as `before` with `reverse`. A part that exists all the time
        appears exactly once, even if others are added or removed in the meantime. `limit` is 1 to 1,000.

        Unless you pass `bodies=True`, the parts have no bodies: you can read everything else, such as `tag`
        and `version`, but `body` raises `UsageError`. A page with bodies is held in memory as a whole. Log
        entries are parts and are listed, too. Costs one round trip; its duration depends on the size of the
        page, not on the number of parts of the flow.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, Part
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     for name in ("step/1", "step/2", "total"):
        ...         is_new = await store.put_part(Part("order-1", name, {}))
        ...     page = await store.list_parts("order-1", "step/")
        ...     print([part.name for part in page], page.cursor)
        >>> anyio.run(main)
        ['step/1', 'step/2'] None
        """
        return await self._run(
            parts.list_parts(
                self._context,
                flow_id,
                prefix,
                after=after,
                before=before,
                reverse=reverse,
                limit=limit,
                bodies=bodies,
                body_type=body_type,
            )
        )

    async def delete_part(self, flow_id: str, name: str) -> bool:
        """Delete a part, whatever it holds; return whether it existed. Costs one round trip."""
        return await self._run(parts.delete_part(self._context, flow_id, name))

    async def delete_parts(self, flow_id: str, prefix: str) -> int:
        """Delete the parts whose names begin with `prefix` (empty: all); return how many there were.

        Costs one round trip per 500 parts. Each of these commits is atomic, but all of them together are
        not: after an error, call it again. A log whose entries are deleted continues with its next sequence.
        """
        return await self._run(parts.delete_parts(self._context, flow_id, prefix))

    async def append(
        self, flow_id: str, body: object, *, log: str = "log", key: str | None = None
    ) -> Appended:
        """Add the next entry to a log of a flow; return its sequence, which starts at 1 and has no gaps.

        Never conflicts, however many callers append at once. If the log already has an entry with the same
        `key`, nothing is written, and the result is a `duplicate` with the sequence of that entry. `body` is
        `bytes` or anything that a state can be. Costs one round trip.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     first = await store.append("order-1", {"event": "created"}, key="create")
        ...     print(await store.append("order-1", {"event": "created"}, key="create"))
        >>> anyio.run(main)
        Appended(flow_id='order-1', log='log', sequence=1, key='create', duplicate=True)
        """
        return await self._run(parts.append(self._context, flow_id, body, log=log, key=key))

    async def read_log(
        self,
        flow_id: str,
        log: str = "log",
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        reverse: bool = False,
        body_type: Any | None = None,
    ) -> list[LogEntry]:
        """Return up to `limit` entries of a log with sequences greater than `after`, in ascending order.

        With `before`, only entries with smaller sequences are returned; with `reverse`, the last entries come
        first. `limit` is 1 to 1,000. An entry says with which `version` of its flow it was written, and
        when. Costs one round trip; its duration depends on the entries that are returned, not on the length
        of the log.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     first = await store.append("order-1", {"event": "created"})
        ...     for entry in await store.read_log("order-1"):
        ...         print(entry.sequence, entry.body)
        >>> anyio.run(main)
        1 {'event': 'created'}
        """
        return await self._run(
            parts.read_log(
                self._context,
                flow_id,
                log,
                after=after,
                before=before,
                limit=limit,
                reverse=reverse,
                body_type=body_type,
            )
        )

    async def watch_log(
        self,
        flow_id: str,
        log: str = "log",
        *,
        after: int,
        timeout: timedelta,
        limit: int = 100,
        body_type: Any | None = None,
    ) -> list[LogEntry]:
        """Return the entries of a log after `after` as soon as there are any; an empty list after `timeout`.

        Like `read_log`, but it waits. To follow a log, call it again with the sequence of the last entry. It
        is woken by `append`; entries for which no notification arrives are found after the store's
        `poll_interval`. Costs one round trip, and one more whenever an entry was added or a poll interval
        has passed.

        >>> import anyio
        >>> from datetime import timedelta
        >>> from catga_store import AsyncMemoryStore
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     first = await store.append("order-1", {"event": "created"})
        ...     for entry in await store.watch_log("order-1", after=0, timeout=timedelta(seconds=20)):
        ...         print(entry.sequence, entry.body)
        >>> anyio.run(main)
        1 {'event': 'created'}
        """
        return await self._run(
            waiting.watch_log(
                self._context,
                flow_id,
                log,
                after=after,
                timeout=timeout,
                limit=limit,
                body_type=body_type,
            )
        )

    async def trim_log(self, flow_id: str, log: str = "log", *, before: int) -> int:
        """Delete the entries of a log with sequences less than `before`; return how many there were.

        The other entries keep their sequences, and the next entry gets the same sequence as without the
        call. The `key` of a deleted entry counts as new. Costs one round trip per 500 entries, each of which
        is a commit: after an error, call it again.
        """
        return await self._run(parts.trim_log(self._context, flow_id, log, before=before))

    # claims ---------------------------------------------------------------------------------------

    @overload
    async def claim_due(
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
    async def claim_due(
        self,
        state_type: ManyTypes | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait: timedelta = NO_WAIT,
    ) -> list[FlowSnapshot[Any]]: ...
    async def claim_due(
        self,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait: timedelta = NO_WAIT,
    ) -> list[FlowSnapshot[Any]]:
        """Claim up to `limit` due flows: no other worker can claim them until the `lease` ends.

        New flows are due, flows whose pause is over, flows whose owner has not renewed its claim, and
        parents whose wait is satisfied or past its deadline. A wait past its deadline is ended as
        `TIMED_OUT` in the same commit, and the parent's `wait_condition` shows how the wait ended, including
        the results. The order is nearly oldest first. The store decides each claim, so no flow is claimed by
        two callers. A claim adds 1 to `attempts` and to `version`.

        `state_type` selects the flows to claim. Without it, only flows without a type are claimed. A type
        selects flows of this type and flows without a type. Several types, in a tuple or list, select flows
        of these types, each with the state of its own type. One or more stored type names select flows of
        these types, with raw JSON data as their states; `RAW` selects all flows in this way. With `tags`,
        only flows that have all of these tags are claimed; the first tag is looked up in an index, and the
        others are checked flow by flow.

        A flow that cannot be decoded is postponed by one lease, logged and skipped. This includes a flow
        without a type whose data does not match the requested type: if workers with and without a type use
        one store, give every flow a type. A flow whose lease ends before this call returns is not returned.

        A wait that ends while its parent is claimed wakes the parent when the claim ends, at most a
        quarter of the remaining lease later. If the parent is missing or terminal when its wait is
        processed, that wait will not wake it later, unless the parent suspends on it again.

        With `wait`, a call that finds nothing due waits. It returns as soon as it has claimed a flow, or an
        empty list when `wait` has passed. It is woken by commits that make something due, and at the end of
        pauses, deadlines and leases. If several such calls wait in one process, a commit wakes one of them.
        Flows for which no notification arrives are found after the store's `poll_interval`. Raises
        `StoreClosedError` if the store is closed in the meantime.

        Costs two round trips, or three on Redis and four on NATS, which also search the index. Parents and
        the waits of the claimed flows cost up to four more requests for all flows together, and more if other
        callers claim the same flows. While it waits, it sends one request per poll interval.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     for job in await store.claim_due(owner="worker-1"):
        ...         print(job)
        >>> anyio.run(main)
        <FlowSnapshot 'order-1' v2 CREATED at 0 claimed by worker-1>
        """
        return await self._run(
            waiting.claim_due(
                self._context,
                state_type,
                lease=lease,
                limit=limit,
                owner=owner,
                tags=tags,
                wait=wait,
            )
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
        state_type: ManyTypes | None = None,
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
        """Claim one flow, due or not, like `claim_due`.

        If another owner has a claim, wait up to `timeout` for it to end, then raise `FlowClaimedError` (with
        `owner` and `until`). A terminal flow is returned as it is, without a claim. The flow counts as
        notified of its waits that have ended; `wait_condition` shows the one on which it was suspended if
        that has ended, and otherwise the newest of them.

        `state_type` is as for `claim_due`; the call raises `StateTypeError` if the flow is stored with
        another type. Raises `FlowNotFoundError` if there is no such flow, and `ClaimLostError` if the lease
        ends before this call returns. Costs three round trips, and up to two more for a parent.
        """
        return await self._run(
            claims.claim(
                self._context, flow_id, state_type, lease=lease, timeout=timeout, owner=owner
            )
        )

    async def wait_due(
        self,
        state_type: Any | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        timeout: timedelta,
    ) -> bool:
        """Wait until a flow may be due, and return `True`; return `False` when `timeout` has passed.

        `state_type` and `tags` are as for `claim_due`. Nothing is claimed, so another worker may be faster:
        `True` means that it is worth calling `claim_due`. It is woken like `claim_due` with `wait`. With a
        timeout of 0, it returns whether something is due now, which costs one round trip.

        >>> import anyio
        >>> from datetime import timedelta
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     print(await store.wait_due(timeout=timedelta(seconds=30)))
        >>> anyio.run(main)
        True
        """
        return await self._run(
            waiting.wait_due(self._context, state_type, tags=tags, timeout=timeout)
        )

    @overload
    async def watch(
        self, flow_id: str, state_type: type[S], *, after: int, timeout: timedelta
    ) -> FlowSnapshot[S] | None: ...
    @overload
    async def watch(
        self, flow_id: str, state_type: None = None, *, after: int, timeout: timedelta
    ) -> FlowSnapshot[Any] | None: ...
    async def watch(
        self, flow_id: str, state_type: Any | None = None, *, after: int, timeout: timedelta
    ) -> FlowSnapshot[Any] | None:
        """Return the flow as soon as its version is greater than `after`; `None` after `timeout`.

        Use it to wait for a result. `after` is the version that you have seen, or 0 for a flow that may not
        exist yet. The newest version is returned, so versions in between may be skipped. The versions of a
        flow that is deleted and created again start at 1. Raises the same errors as `get`, and
        `StoreClosedError` if the store is closed in the meantime.

        Costs one round trip, and one more whenever the flow was written or a poll interval has passed.

        >>> import anyio
        >>> from datetime import timedelta
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     order = await store.watch("order-1", after=0, timeout=timedelta(seconds=30))
        ...     print(order)
        >>> anyio.run(main)
        <FlowSnapshot 'order-1' v1 CREATED at 0>
        """
        return await self._run(
            waiting.watch(self._context, flow_id, state_type, after=after, timeout=timeout)
        )

    async def extend(self, flow: FlowSnapshot[Any], lease: timedelta | None = None) -> None:
        """Move the end of the claim to `lease` from now (default: the lease of the claim).

        Neither the version nor the object changes, so another task may call it in parallel with the
        owner's commits. Raises `ClaimLostError` if the claim was lost or released. After a
        `CommitUncertainError`, the claim may end at the old or the new time: extend it again.
        """
        await self._run(claims.extend(self._context, flow, lease))

    def holding(self, flow: FlowSnapshot[Any], *, lease: timedelta | None = None) -> AsyncHolding:
        """Keep the claim of a flow while an `async with` block runs: extend it after each third of `lease`.

        For a step that takes longer than its lease (default: the lease of the claim). The claim is extended
        before the block is entered, so `ClaimLostError` there means that the claim was already lost. If it is
        lost later, the block is cancelled, and `ClaimLostError` is raised at its end, not in an exception
        group. In the block, the flow can be written as usual; a commit that ends the claim ends the
        extensions, too. While the store cannot be reached, the block continues, because the claim is valid
        until another worker claims the flow.

        Costs one round trip at the beginning, and one more for each third of a lease.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     order = await store.claim("order-1")
        ...     async with store.holding(order):
        ...         order.state["paid"] = True  # after a long call, say
        ...     await store.update(order)
        ...     print(order.version)
        >>> anyio.run(main)
        3
        """
        return AsyncHolding(self._run, self._context, flow, lease)

    async def release(self, flow: FlowSnapshot[Any], *, due_at: datetime | None = NOW) -> None:
        """Give the claim back without writing the state.

        The flow is then due now, or at `due_at`; with `None`, it is never due. Raises `ClaimLostError` if
        the claim was lost, and `UsageError` if the object was changed, because the changes would be lost: set
        its `due_at` and update it instead, which writes the changes and ends the claim.
        """
        await self._run(claims.release(self._context, flow, due_at=due_at))

    # sessions -------------------------------------------------------------------------------------

    def session(self) -> AsyncSession:
        """Return a new unit of work, to be used in an `async with`. Only its `commit` writes."""
        return AsyncSession(self._run, self._context)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncSession, None]:
        """Open a session that commits at the end of the block and rolls back on an exception.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     async with store.begin() as session:
        ...         session.add(FlowSnapshot("order-1", state={"paid": False}))
        ...     print(session.receipt.versions)
        >>> anyio.run(main)
        {Key(kind='flow', id='order-1', step=0): 1}
        """
        async with self.session() as session:
            yield session
            await session.commit()

    async def transact(
        self,
        function: Callable[[AsyncSession, *Ts], Awaitable[R]],
        *args: *Ts,
        attempts: int = 100,
    ) -> R:
        """Await `function(session, *args)`, commit, and return its result.

        If this commit conflicts, the function is called again with fresh reads, up to `attempts` times,
        after random pauses of 2 to 200 ms. An uncertain commit is resolved first. So outside the session,
        the function must not do anything that may not happen twice. If the function itself has committed
        something, it is not called again.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def add(session, amount):
        ...     counter = await session.get_one("counter")
        ...     counter.state["n"] += amount
        ...     return counter.state["n"]
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("counter", state={"n": 0}))
        ...     print(await store.transact(add, 5))
        >>> anyio.run(main)
        5
        """
        check_function(function)

        def call(unit: UnitOfWork) -> Awaitable[R]:
            session = AsyncSession(self._run, self._context, unit)
            return check_awaitable(function(session, *args))

        result: R = await self._run(sessions.transact(self._context, call, attempts))
        return result

    async def resolve_commit(self, error: CommitUncertainError) -> Receipt | None:
        """Resolve an uncertain commit: return its receipt, or `None` if it will never be applied.

        Raises the error again while the store cannot determine the outcome. The store can determine it for
        twice its `timeout`; after that, only if each flow or progress of the commit was written fewer than
        eight times since.
        """
        return await self._run(commits.resolve_commit(self._context, error))

    # the store ------------------------------------------------------------------------------------

    async def sweep(self, limit: int = 1000) -> int:
        """Remove up to `limit` expired records; return how many there were.

        It only reclaims space: expired records are absent in any case. Writes also remove a few of them. A
        `CommitUncertainError` can be resolved or ignored.
        """
        return await self._run(upkeep.sweep(self._context, limit))

    async def clear(self) -> None:
        """Remove all records of this store, and nothing else.

        An embedded store does this in one step, a server in several steps. After a `CommitUncertainError`,
        `resolve_commit` returns a receipt if everything was removed. If it returns `None`, nothing more
        will be removed, and on a server some records may have been removed: clear the store again.
        """
        await self._run(upkeep.clear())

    async def ping(self) -> None:
        """Do nothing if the store works; otherwise, raise an error that says what is wrong."""
        await self._run(upkeep.ping())

    async def close(self) -> None:
        """Close everything that the store opened; operations then raise `StoreClosedError`.

        Calls that wait for work raise it, too. Closing a closed store does nothing.
        """
        if not self._closed:
            self._closed = True
            self._context.waiters.close()
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


class AsyncSession(BaseSession):
    """A unit of work: it tracks the objects that it loads, and writes all their changes in one commit, or none.

    `get` always returns the same object for the same id. A record has changed if its encoding differs
    from the encoding that was loaded, so you need not report changes. A session belongs to one task, and
    an object to one session. `async with` closes the session; only `commit` writes.

    >>> import anyio
    >>> from catga_store import AsyncMemoryStore, FlowSnapshot
    >>> async def main():
    ...     store = AsyncMemoryStore()
    ...     async with store.session() as session:
    ...         session.add(FlowSnapshot("order-1", state={"paid": False}))
    ...         receipt = await session.commit()
    ...     async with store.session() as session:
    ...         order = await session.get_one("order-1")
    ...         order.state["paid"] = True
    ...         receipt = await session.commit()
    ...     print(order.version)
    >>> anyio.run(main)
    2
    """

    def __init__(self, run: AsyncRunner, context: Context, unit: UnitOfWork | None = None) -> None:
        super().__init__(context, unit)
        self._run = run

    @overload
    async def get(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S] | None: ...
    @overload
    async def get(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any] | None: ...
    async def get(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any] | None:
        """Return the session's object for this flow, or `None` if there is no such flow.

        Costs one round trip for the first call, and none after that. Raises the same errors as the store's
        `get`, and `StateTypeError` if the session has loaded the flow as another type.
        """
        return await self._run(sessions.session_get(self._context, self._unit, flow_id, state_type))

    @overload
    async def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    async def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    async def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """Return the flow like `get`, but raise `FlowNotFoundError` if there is none."""
        return await self._run(
            sessions.session_get_one(self._context, self._unit, flow_id, state_type)
        )

    @overload
    async def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    async def get_many(
        self, flow_ids: Iterable[str] | Mapping[str, type[Any] | None], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    async def get_many(
        self, flow_ids: Iterable[str], state_type: Any | None = None
    ) -> dict[str, Any]:
        """Return the session's objects by id, with `None` for each flow that is absent.

        If their types differ, pass a mapping of ids to types instead of `state_type`. Costs one round trip
        per 500 ids that the session does not have yet.
        """
        return await self._run(
            sessions.session_get_many(self._context, self._unit, flow_ids, state_type)
        )

    @overload
    async def get_part(self, flow_id: str, name: str, body_type: type[S]) -> Part[S] | None: ...
    @overload
    async def get_part(
        self, flow_id: str, name: str, body_type: None = None
    ) -> Part[Any] | None: ...
    async def get_part(
        self, flow_id: str, name: str, body_type: Any | None = None
    ) -> Part[Any] | None:
        """Return the session's object for this part, or `None`; see the store's `get_part`."""
        return await self._run(
            parts.session_get_part(self._context, self._unit, flow_id, name, body_type)
        )

    @overload
    async def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: type[S]
    ) -> dict[str, Part[S] | None]: ...
    @overload
    async def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: None = None
    ) -> dict[str, Part[Any] | None]: ...
    async def get_parts(
        self, flow_id: str, names: Iterable[str], body_type: Any | None = None
    ) -> dict[str, Any]:
        """Return the session's objects for parts of one flow by name, with `None` for each absent part.

        Costs one round trip per 500 names that the session does not have yet.
        """
        return await self._run(
            parts.session_get_parts(self._context, self._unit, flow_id, names, body_type)
        )

    async def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """Return the session's object for this condition, or `None`."""
        return await self._run(
            sessions.session_get_wait_condition(self._context, self._unit, correlation_id)
        )

    async def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """Return the session's object for the progress of this step, or `None`."""
        return await self._run(
            sessions.session_get_for_each_progress(self._context, self._unit, flow_id, step_index)
        )

    @overload
    async def claim_due(
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
    async def claim_due(
        self,
        state_type: ManyTypes | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait: timedelta = NO_WAIT,
    ) -> list[FlowSnapshot[Any]]: ...
    async def claim_due(
        self,
        state_type: Any | None = None,
        *,
        lease: timedelta = DEFAULT_LEASE,
        limit: int = 1,
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        wait: timedelta = NO_WAIT,
    ) -> list[FlowSnapshot[Any]]:
        """Claim due flows like the store's `claim_due`, and track them in this session.

        The claim is written at once, not by `commit`; a rollback does not release it. Flows that are already
        in the session are not claimed. `tags` and `wait` are as for the store's `claim_due`.

        >>> import anyio
        >>> from catga_store import AsyncMemoryStore, FlowSnapshot
        >>> async def main():
        ...     store = AsyncMemoryStore()
        ...     await store.create(FlowSnapshot("order-1", state={"paid": False}))
        ...     async with store.begin() as session:
        ...         for order in await session.claim_due():
        ...             order.state["paid"] = True
        ...     order = await store.get_one("order-1")
        ...     print(order.state)
        >>> anyio.run(main)
        {'paid': True}
        """
        return await self._run(
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
        state_type: ManyTypes | None = None,
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
        """Claim one flow like the store's `claim`, and track it in this session.

        The claim is written at once, not by `commit`; a rollback does not release it. Raises `UsageError`
        if the flow is already in the session.
        """
        return await self._run(
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

    async def refresh(self, record: AnyRecord) -> None:
        """Read a record again into the same object; unwritten changes of the object are discarded.

        A claim is kept; if it was lost, the call raises `ClaimLostError`. If the record no longer exists, it
        raises `FlowNotFoundError` or the corresponding error. After an error, the object is unchanged.
        """
        await self._run(sessions.session_refresh(self._context, self._unit, record))

    async def commit(self, *, resolve: bool = False) -> Receipt:
        """Write all changes or none, each checked against the version that was read.

        Costs one round trip, or none if nothing has changed. If the commit is refused, it raises
        `ConflictError`: the refusal itself if there is only one, or an error whose `conflicts` has one
        refusal per record. In this case, nothing was written and the changes are still pending; `rollback()`
        discards them. Claims of flows in the session are checked and renewed, even if only other records
        change. `UsageError` is raised before anything is sent.

        With `resolve`, if the outcome is unknown, it is determined here, by further requests for up to the
        store's `timeout`. If the commit was applied, the objects are updated, and you can continue to use
        the session. If it was not applied and never will be, the call raises `StoreUnavailableError`.

        An unknown outcome (`CommitUncertainError`), or any other error while sending, closes the session. If
        a commit in flight is cancelled, it completes first and updates the objects, so it is never applied
        without your knowledge: afterwards, `receipt` says what was written. If the session then raises
        `SessionClosedError`, the outcome is unknown.
        """
        return await self._run(sessions.session_commit(self._context, self._unit, resolve=resolve))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if _kind is None:
            self.close()
        else:
            self._unit.close()  # an exception drops the changes on purpose


class AsyncBulk:
    """Operations on many flows of a store; each flow is changed in its own version-checked commit.

    A flow that another writer has changed since it was listed is read again, and is changed only if it
    still matches. `retry`, `wake`, `tag` and `purge` skip a flow that a worker has claimed. Each flow that
    matched is either changed, or counted in the report's `skipped` by the reason. Flows that begin to match
    while the operation runs may be missed, as in `query_flows`.

    Flows that were changed before an error, or before the process died, stay changed: run the operation
    again. Flows that were changed no longer match, or are skipped. To continue after the flows that were
    already checked, pass the `cursor` of the last report that `progress` received.

    All operations take these options: `dry_run=True` changes nothing and counts the flows that would be
    changed; `limit` is the maximum number of flows to check; `cursor` continues where a report has ended;
    `per_second` limits the rate (default: 1,000 changes per second; `None`: no limit); `progress` is called
    with the current report after each page of up to 100 flows. Each page costs two round trips, and each
    change costs one; a dry run costs one per page, or two with `ids`; `findings` cost as much as
    `diagnose_all`.

    >>> import anyio
    >>> from catga_store import AsyncMemoryStore, FlowSnapshot
    >>> async def main():
    ...     store = AsyncMemoryStore()
    ...     for number in range(3):
    ...         await store.create(FlowSnapshot(f"order-{number}", state={}))
    ...     order = await store.claim("order-2", owner="worker-1")
    ...     report = await store.bulk(id_prefix="order-").purge(live=True)
    ...     print(report.changed, report.skipped, report.first_skipped)
    >>> anyio.run(main)
    2 {'is claimed': 1} {'is claimed': ('order-2',)}
    """

    def __init__(self, run: AsyncRunner, context: Context, selection: bulk.Selection) -> None:
        self._run = run
        self._context = context
        self._selection = selection

    async def cancel(self, reason: str, **options: Unpack[BulkOptions]) -> BulkReport:
        """End live flows as `CANCELLED`, with `reason` as their error; see `Store.cancel_flow`."""
        action = actions.CancelFlow(actions.check_reason(reason))
        return await self._run(bulk.run_bulk(self._context, self._selection, action, options))

    async def retry(self, **options: Unpack[BulkOptions]) -> BulkReport:
        """Run flows again that have failed or were cancelled; see `Store.retry_flow`."""
        action = actions.RetryFlow()
        return await self._run(bulk.run_bulk(self._context, self._selection, action, options))

    async def wake(self, **options: Unpack[BulkOptions]) -> BulkReport:
        """Make live flows due now, whatever they wait for; see `Store.wake_flow`."""
        action = actions.WakeFlow()
        return await self._run(bulk.run_bulk(self._context, self._selection, action, options))

    async def release(self, **options: Unpack[BulkOptions]) -> BulkReport:
        """Take claims away from their owners; see `Store.release_flow`."""
        action = actions.ReleaseFlow()
        return await self._run(bulk.run_bulk(self._context, self._selection, action, options))

    async def tag(
        self,
        tags: Mapping[str, str] = NO_TAGS,
        *,
        remove: Iterable[str] = (),
        **options: Unpack[BulkOptions],
    ) -> BulkReport:
        """Add or replace these tags, and remove those whose keys are in `remove`.

        Other tags are kept. Flows that have ended are tagged, too. A flow that a worker has claimed is
        skipped, and so is a flow that would have more than 16 tags. Raises `UsageError`, before anything is
        read, if a tag is invalid, if there is nothing to set or remove, or if a tag is both set and removed.
        """
        action = actions.TagFlow(*tag_changes(tags, remove))
        return await self._run(bulk.run_bulk(self._context, self._selection, action, options))

    async def purge(self, *, live: bool = False, **options: Unpack[BulkOptions]) -> BulkReport:
        """Delete flows that have ended, with their progress and parts; with `live`, live ones, too.

        A wait condition with the finding `parent_gone` is cleared.
        """
        writes.check_flag(live, "live")
        action = actions.PurgeFlow(live)
        return await self._run(bulk.run_bulk(self._context, self._selection, action, options))


for _public in (AsyncBulk, AsyncSession, AsyncStore):
    _public.__module__ = "catga_store"
