"""The blocking API: `Store`. Generated from `aio.py` by `tests/meta/generate_api.py`."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
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

from catga_store.bulk import Bulk
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
from catga_store.core.arguments import check_blocking
from catga_store.core.arguments import check_function
from catga_store.core.base_store import BaseBlockingStore
from catga_store.core.base_store import Driver
from catga_store.core.claims import DEFAULT_LEASE
from catga_store.core.holding import Holding
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
from catga_store.model.times import NOW
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition
from catga_store.session import Session

__all__ = ["Driver", "Settings", "Store", "StoreOptions"]

S = TypeVar("S")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Store(BaseBlockingStore):
    """A durable store for flow state.

    Each operation is atomic unless its description says otherwise. A `session()` combines several operations
    into one atomic commit. Any operation can raise these errors:

    - `StoreUnavailableError`: the store cannot be reached; nothing was written
    - `CommitUncertainError`: a write was sent, but its outcome is unknown; `resolve_commit` determines it
    - `UsageError`: the call can never succeed as written; nothing was sent

    An error leaves the objects that you passed unchanged.

    Threads can share a store, and a store can be opened before a fork.

    >>> from catga_store import MemoryStore, FlowSnapshot
    >>> with MemoryStore() as store:
    ...     store.create(FlowSnapshot("order-1", state={"paid": False}))
    ...     order = store.get_one("order-1")
    >>> print(order)
    <FlowSnapshot 'order-1' v1 CREATED at 0>
    """

    # flows ----------------------------------------------------------------------------------------

    def create(self, snapshot: FlowSnapshot[Any]) -> None:
        """Create a flow at version 1; raise `FlowExistsError` if its id is already taken.

        Costs one round trip. Unless you set `due_at`, a flow that is neither suspended nor terminal is due at
        once.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> order = FlowSnapshot("order-1", state={"paid": False})
        >>> store.create(order)
        >>> print(order.version)
        1
        """
        self._run(records.create(self._context, snapshot))

    @overload
    def get(
        self, flow_id: str, state_type: type[S], *, version: int | None = None
    ) -> FlowSnapshot[S] | None: ...
    @overload
    def get(
        self, flow_id: str, state_type: None = None, *, version: int | None = None
    ) -> FlowSnapshot[Any] | None: ...
    def get(
        self, flow_id: str, state_type: Any | None = None, *, version: int | None = None
    ) -> FlowSnapshot[Any] | None:
        """Return the flow as a new object, or `None` if it does not exist.

        Without `state_type`, the state is raw JSON data. Costs one round trip. Raises `StateTypeError` if the
        state was stored as a different named type, and `CorruptRecordError` if the flow cannot be read.

        With `version`, returns that version of the flow, or `None` if the store has not kept it (see the
        `history` option). An earlier version cannot be written back: `update` raises `StaleFlowError`.

        >>> from catga_store import MemoryStore
        >>> store = MemoryStore()
        >>> print(store.get("order-1"))
        None
        """
        if version is not None:
            return self._run(history.get_version(self._context, flow_id, state_type, version))

        return self._run(records.get(self._context, flow_id, state_type))

    @overload
    def get_one(self, flow_id: str, state_type: type[S]) -> FlowSnapshot[S]: ...
    @overload
    def get_one(self, flow_id: str, state_type: None = None) -> FlowSnapshot[Any]: ...
    def get_one(self, flow_id: str, state_type: Any | None = None) -> FlowSnapshot[Any]:
        """Return the flow as `get` does, but raise `FlowNotFoundError` if it does not exist."""
        return self._run(records.get_one(self._context, flow_id, state_type))

    def get_or_create(self, snapshot: FlowSnapshot[S]) -> tuple[FlowSnapshot[S], bool]:
        """Create the flow and return `(snapshot, True)`; if its id is taken, return `(stored flow, False)`.

        Starting a flow this way is idempotent, with the flow id as the idempotency key. Costs one round trip,
        or two if the id is taken.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": True}))
        >>> order = FlowSnapshot("order-1", state={"paid": False})
        >>> stored, is_new = store.get_or_create(order)
        >>> print(stored.state, is_new)
        {'paid': True} False
        """
        return self._run(records.get_or_create(self._context, snapshot))

    def update(self, snapshot: FlowSnapshot[Any]) -> None:
        """Write the flow as its next version if the store still has the revision that was read.

        If the write succeeds, it updates the object's `version`, `revision` and `updated_at`. Otherwise,
        nothing is written, and the call raises `StaleFlowError` (with `expected` and `actual`),
        `ClaimLostError` if the flow was claimed through this object, or `FlowNotFoundError` if the flow no
        longer exists. Costs one round trip.

        If the flow was claimed through this object, the write renews the claim. If the flow is now terminal
        or suspended, or has a different `due_at`, the write ends the claim instead.

        >>> from catga_store import MemoryStore, FlowSnapshot, StaleFlowError
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> mine = store.get_one("order-1")
        >>> yours = store.get_one("order-1")
        >>> store.update(yours)
        >>> try:
        ...     store.update(mine)
        ... except StaleFlowError as error:
        ...     print(error.expected, error.actual)
        1 2
        """
        self._run(records.update(self._context, snapshot))

    def delete(
        self,
        snapshot_or_id: FlowSnapshot[Any] | str,
        *,
        version: int | None = None,
        revision: str | None = None,
    ) -> bool:
        """Delete a flow, its ForEach progress and its parts; return whether the flow existed.

        If you pass a loaded snapshot, or an id together with a version or revision, the deletion is
        version-checked: if the store has a different version, the call raises `StaleFlowError`. If you pass
        only an id, the flow is deleted whatever its version. All parts disappear at once, however many there
        are; later writes and sweeps reclaim their space. If the flow has not ended and has `reports_to`, the
        same commit reports its end.

        Costs one round trip, or two if you pass an id together with a version or revision: the call reads the
        flow first and deletes only the revision that it read. The same applies to a flow that reports its end
        and is deleted by its id alone.
        """
        return self._run(
            records.delete(self._context, snapshot_or_id, version=version, revision=revision)
        )

    def delete_many(self, flow_ids: Iterable[str]) -> int:
        """Delete flows by id, with everything that belongs to them; return how many existed.

        Each flow is deleted whatever its version, even if it is claimed. Costs one round trip per 200 ids,
        the maximum for one commit; with several partitions, per 200 ids in each partition. Each commit is
        atomic, but the call as a whole is not: after an error, the earlier commits remain in effect. It is
        safe to call the method again with the same ids. Flows with `reports_to` report their end; a commit
        that contains such flows costs a second round trip.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("thread-1", state={}))
        >>> print(store.delete_many(["thread-1", "thread-2"]))
        1
        """
        return self._run(records.delete_many(self._context, flow_ids))

    @overload
    def get_many(
        self, flow_ids: Iterable[str], state_type: type[S]
    ) -> dict[str, FlowSnapshot[S] | None]: ...
    @overload
    def get_many(
        self, flow_ids: Iterable[str] | Mapping[str, type[Any] | None], state_type: None = None
    ) -> dict[str, FlowSnapshot[Any] | None]: ...
    def get_many(self, flow_ids: Iterable[str], state_type: Any | None = None) -> dict[str, Any]:
        """Return flows by id, with `None` for each flow that does not exist.

        `state_type` is the type of all of these flows. If their types differ, pass a mapping of ids to types
        instead, in which `None` stands for raw JSON data. If any flow has a different type or cannot be read,
        the call returns no flows and raises the same error as `get`. Costs one round trip per 500 ids.

        >>> from dataclasses import dataclass
        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> @dataclass
        ... class Order:
        ...     paid: bool
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state=Order(paid=True)))
        >>> store.create(FlowSnapshot("total", state={"n": 12}))
        >>> flows = store.get_many({"order-1": Order, "total": None, "x": None})
        >>> print([flow and flow.state for flow in flows.values()])
        [Order(paid=True), {'n': 12}, None]
        """
        return self._run(records.get_many(self._context, flow_ids, state_type))

    def query_flows(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[FlowFilters]
    ) -> Page[FlowSummary]:
        """Return a page of flows without their states, ordered by `created_at` (newest first), then by id.

        You can combine these filters:

        - `status`: a `FlowStatus`
        - `state_type`: a type or a stored type name
        - `created_after` and `updated_after`: times, inclusive
        - `created_before` and `updated_before`: times, exclusive
        - `id_prefix`: 1 to 512 bytes of UTF-8, compared byte by byte
        - `owner`: the owner of the claim, even if its lease has ended
        - `error_contains`: a substring of the error, which is case-sensitive
        - `attempts_at_least`: the smallest number of attempts
        - `tags`: tags, all of which a flow must have

        `limit` must be from 1 to 1,000. To get the next page, pass the `cursor` of this page with the same
        filters. A flow that matches throughout appears exactly once, even if other flows are added or removed
        in the meantime. The page also contains flows that cannot be read; their `unreadable` attribute gives
        the reason, and only their ids are known.

        Costs one round trip. There is no index for `updated_after`, `updated_before`, `owner`,
        `error_contains` and `attempts_at_least`: with these filters, the store reads the flows that match the
        other filters until the page is full. Redis and NATS read them in batches that grow to 1,000 and 400
        flows, respectively. Of the `tags`, only the first is looked up in an index, alone or together with
        `status`; the other tags and filters are checked flow by flow.

        With `id_prefix`, the flows are ordered by the UTF-8 bytes of their ids, and the cost of a page
        depends on the number of flows that have the prefix, not on the number of all stored flows. The other
        filters are then checked flow by flow: the store reads flows that have the prefix until the page is
        full. NATS also sends the names of all flows, 100,000 per request. With one replica, it sends all of
        them to each process about once every ten minutes, and only the new names for other pages. With
        several replicas, or with more than 500,000 flows, it sends all of them for each page.

        >>> from catga_store import MemoryStore, FlowSnapshot, FlowStatus
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> page = store.query_flows(status=FlowStatus.CREATED)
        >>> print([flow.flow_id for flow in page])
        ['order-1']
        """
        return self._run(listings.query_flows(self._context, limit=limit, cursor=cursor, **filters))

    def iter_flows(self, **filters: Unpack[FlowFilters]) -> Iterator[FlowSummary]:
        """Iterate over all flows that `query_flows` would list, fetching them page by page."""
        cursor: str | None = None

        while True:
            page = self.query_flows(cursor=cursor, **filters)
            yield from page
            cursor = page.cursor
            if cursor is None:
                return

    def count_flows(self, **filters: Unpack[FlowFilters]) -> int:
        """Return the number of flows that `iter_flows` would yield with the same filters."""
        return self._run(listings.count_flows(self._context, **filters))

    def query_due(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[DueFilters]
    ) -> Page[DueFlow]:
        """Return a page of flows that are due or claimed, earliest `due_at` first, without claiming any.

        The `due_at` of a claimed flow is the end of its lease. The flows that `claim_due` would claim
        therefore come first, followed by those that workers have claimed. `only` restricts the page to
        `"due"`, `"claimed"` or `"expired"` flows; an expired flow is due because its lease has ended.
        `state_type` is a type or a stored type name; with `tags`, only flows that have all of these tags are
        listed. `limit` must be from 1 to 1,000. To get the next page, pass the `cursor` of this page with the
        same filters. A flow that is claimed or written in the meantime may appear twice or not at all.

        A suspended flow is not due. When its wait has ended, `claim_due` claims the flow although `query_due`
        does not list it; `stats` counts such waits as `waits_due`. The page also contains flows that cannot
        be read; their `flow.unreadable` attribute gives the reason, and workers do not claim them.

        Costs one round trip for due flows and one for claimed flows; on Redis and NATS, two each, one of
        which reads the index. To filter claimed flows by type or tag, the store searches all claimed flows.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> store.create(FlowSnapshot("order-2", state={"paid": False}))
        >>> _ = store.claim("order-1", owner="worker-1")
        >>> for one in store.query_due():
        ...     print(one.flow.flow_id, one.claimed, one.flow.owner)
        order-2 False None
        order-1 True worker-1
        """
        return self._run(numbers.query_due(self._context, limit=limit, cursor=cursor, **filters))

    def count_due(self, **filters: Unpack[DueFilters]) -> int:
        """Return the number of flows that `query_due` would list with the same filters, on all pages.

        Costs one round trip for due flows and one for claimed flows. No flow is read unless you pass
        `state_type`. On NATS, the call reads the names of all index entries that it counts.
        """
        return self._run(numbers.count_due(self._context, **filters))

    def stats(self) -> StoreStats:
        """Return the number of flows by type and status, of due flows, of claimed flows, and of waits.

        All numbers come from indexes, so no flow is read, except for one flow of each type on NATS. On memory
        and Redis, the call takes about the same time for any number of flows. SQLite keeps its counts up to
        date as flows change, and reads the index entries of due flows, claimed flows and pending conditions.
        On NATS, the server counts index entries. The first call of a process compares the names of all
        entries, 100,000 per request, as does about one call per minute after that; the operations page for
        NATS describes when more calls do so. If a process dies before it has removed an outdated entry, the
        flow is counted twice until the names are compared again. The numbers may be from slightly different
        times, because other clients may write in the meantime.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> stats = store.stats()
        >>> print(stats.total, stats.due, stats.claimed)
        1 1 0
        """
        return self._run(numbers.stats(self._context))

    # operations of an operator ----------------------------------------------------------------------

    def cancel_flow(self, flow_id: str, reason: str, *, version: int | None = None) -> FlowSummary:
        """End a live flow as `CANCELLED`, with `reason` as its error; return the flow after the change.

        Any claim on the flow ends, too: the owner's next write raises `ClaimLostError`. The call keeps the
        state without reading it, so you can also cancel a flow whose state cannot be read. A flow that is
        already cancelled is returned unchanged. Raises `FlowStatusError` if the flow has completed or failed,
        and `FlowNotFoundError` if it does not exist.

        With `version`, the call raises `StaleFlowError` if the flow has a different version. Without
        `version`, if another writer changes the flow first, the call reads the flow again and retries, making
        at most ten attempts. Costs two round trips.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> order = store.cancel_flow("order-1", "ordered twice")
        >>> print(order.status.name, order.error, order.due_at)
        CANCELLED ordered twice None
        """
        action = actions.CancelFlow(actions.check_reason(reason))
        return self._run(actions.act_on_flow(self._context, action, flow_id, version=version))

    def retry_flow(self, flow_id: str, *, version: int | None = None) -> FlowSummary:
        """Run a failed or cancelled flow again; return the flow after the change.

        The flow becomes `RUNNING` at the position where it ended. It is due now, with no error and no
        attempts. If the flow is live, only its attempts and its error are cleared, and it is due now. Raises
        `FlowStatusError` if the flow has completed, and `FlowClaimedError` if a worker has claimed it.
        `version`, the other errors and the cost are as for `cancel_flow`.

        >>> from catga_store import MemoryStore, FlowSnapshot, FlowStatus
        >>> store = MemoryStore()
        >>> order = FlowSnapshot("order-1", state={}, status=FlowStatus.FAILED, error="no stock")
        >>> store.create(order)
        >>> again = store.retry_flow("order-1", version=1)
        >>> print(again.status.name, again.error, again.due_at is not None)
        RUNNING None True
        """
        return self._run(
            actions.act_on_flow(self._context, actions.RetryFlow(), flow_id, version=version)
        )

    def wake_flow(self, flow_id: str, *, version: int | None = None) -> FlowSummary:
        """Make a live flow due now, whatever it is waiting for; return the flow after the change.

        Its status and its wait condition stay the same: a worker that claims the flow finds the condition as
        it was. A flow that is already due is returned unchanged. Raises `FlowStatusError` if the flow has
        ended, and `FlowClaimedError` if a worker has claimed it. `version`, the other errors and the cost are
        as for `cancel_flow`.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={}, due_at=None))
        >>> order = store.wake_flow("order-1")
        >>> print(order.due_at == order.updated_at)
        True
        """
        return self._run(
            actions.act_on_flow(self._context, actions.WakeFlow(), flow_id, version=version)
        )

    def release_flow(self, flow_id: str, *, version: int | None = None) -> FlowSummary:
        """Take the claim on a flow away from its owner; return the flow after the change.

        The flow is then due now, and the owner's next write raises `ClaimLostError`. Use this method if a
        worker has died or hangs: if the worker is still running, the work that it has done since its last
        commit is done again. A flow that is not claimed is returned unchanged. Raises `FlowStatusError` if
        the flow has ended. `version`, the other errors and the cost are as for `cancel_flow`.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={}))
        >>> order = store.claim("order-1", owner="worker-1")
        >>> print((store.release_flow("order-1")).owner)
        None
        """
        return self._run(
            actions.act_on_flow(self._context, actions.ReleaseFlow(), flow_id, version=version)
        )

    def diagnose(self, flow_id: str, **options: Unpack[DiagnosisOptions]) -> Diagnosis:
        """Diagnose why a flow does not continue; if nothing is wrong, the diagnosis has no findings.

        Each finding has one of these codes:

        - `unreadable`: the flow cannot be read; the diagnosis includes its head if the head can be read
        - `future_version`: the flow was written by a newer release, or with a newer version of one of the
          `types`
        - `due_disagrees`: the flow has ended but is due, or has a claim that never ends
        - `never_due`: the flow is live but never due, and nothing will wake it
        - `wait_gone`: the flow is suspended on a condition that does not exist or belongs to another flow
        - `children_ended`: the flow waits for flows that have ended without reporting their end
        - `no_deadline`: the flow has waited for longer than `idle` on a condition without a deadline
        - `lease_expired`: the flow was claimed by an owner whose lease has ended
        - `overdue`: the flow has been due for longer than `late`
        - `attempts_high`: the flow has had `attempts` attempts or more at one step
        - `parent_gone`: the flow does not exist, but a pending condition would wake it
        - `orphan_parts`: the flow does not exist, but has parts
        - `failed`: the flow has failed

        The options are `late` (default: 5 minutes), `idle` (1 day), `attempts` (5) and `types`, the types
        that the program knows. The call changes nothing and reads the state as raw data. Raises
        `FlowNotFoundError` if the flow does not exist and has left nothing behind. Costs one round trip, and
        up to four more for a flow that is waiting.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={}, due_at=None))
        >>> for finding in (store.diagnose("order-1")).findings:
        ...     print(finding.severity, finding.text)
        warning is CREATED but is never due
        """
        return self._run(examining.diagnose(self._context, flow_id, **options))

    def diagnose_all(
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
        """Check live flows, and return those that have a finding of the given `severity` or worse.

        A page ends when it contains `limit` flows (1 to 1,000) or when `most` flows have been checked, so a
        page can be empty and still have a `cursor`. To get the next page, pass the `cursor` with the same
        arguments. The filters are those of `query_flows`; with `status`, flows that have ended are checked,
        too. The findings and the options are those of `diagnose`.

        Without filters, the flows are followed by pending wait conditions whose parent does not exist; each
        such diagnosis has the id of the parent and no `flow`. A flow that cannot be read has the finding
        `unreadable` and does not end the listing. Without filters, this also applies to a wait condition that
        cannot be read; its diagnosis has the id of the condition and no `flow`.

        The call changes nothing. Live flows are read with their states, so the cost depends on the number of
        flows that are checked, not on the number that are returned. Checking 200 flows costs two round trips,
        up to three more if some of them are waiting, and one more for each flow that is never due.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={}))
        >>> store.create(FlowSnapshot("order-2", state={}, due_at=None))
        >>> for one in store.diagnose_all():
        ...     print(one.flow_id, *one.codes)
        order-2 never_due
        """
        options: DiagnosisOptions = {
            "late": late,
            "idle": idle,
            "attempts": attempts,
            "types": types,
        }
        return self._run(
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
    ) -> Bulk:
        """Return an object that changes many flows: `cancel`, `retry`, `wake`, `release`, `tag` or `purge`.

        Its operations apply to the flows with these `ids`, or to the flows that match the filters of
        `query_flows`. With `findings`, they apply only to flows for which `diagnose_all` reports one of these
        codes; `diagnosis` is a mapping of options for `diagnose_all`. If you pass no ids, filters or
        findings, `everything` must be `True`; otherwise, the call raises `UsageError`. The call itself
        neither reads nor changes anything.

        >>> from catga_store import MemoryStore, FlowSnapshot, FlowStatus
        >>> store = MemoryStore()
        >>> for number in range(3):
        ...     failed = FlowSnapshot(f"order-{number}", state={}, status=FlowStatus.FAILED)
        ...     store.create(failed)
        >>> planned = store.bulk(status=FlowStatus.FAILED).retry(dry_run=True)
        >>> report = store.bulk(status=FlowStatus.FAILED).retry()
        >>> print(planned.changed, report.changed, report.skipped)
        3 3 {}
        """
        selection = bulk.select(
            ids=ids,
            findings=findings,
            everything=everything,
            diagnosis=diagnosis,
            filters=filters,
        )
        return Bulk(self._run, self._context, selection)

    # history --------------------------------------------------------------------------------------

    def list_versions(
        self, flow_id: str, *, before: int | None = None, limit: int = 100
    ) -> list[FlowVersion]:
        """Return the versions of a flow, newest first, including the current version.

        Earlier versions are kept only if the store that wrote them had the `history` option set. To get the
        next page, pass the last version of this page as `before`. `limit` must be from 1 to 1,000. Costs two
        round trips, which transfer the states of these versions.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore(history=10)
        >>> order = FlowSnapshot("order-1", state={"paid": False})
        >>> store.create(order)
        >>> order.position = order.position.advance()
        >>> store.update(order)
        >>> for one in store.list_versions("order-1"):
        ...     print(one.version, one.status.name, one.position)
        2 CREATED 1
        1 CREATED 0
        """
        return self._run(history.list_versions(self._context, flow_id, before=before, limit=limit))

    def fork(self, flow_id: str, new_id: str, *, version: int | None = None) -> FlowSnapshot[Any]:
        """Create a new flow from a version of an existing flow; return it with its state as raw data.

        The new flow is due at once. It has the state and position of the original version, but no error,
        attempts, wait condition or `reports_to`. It keeps the status of the original version if this status
        is `CREATED`, `RUNNING` or `COMPENSATING`; otherwise, its status is `RUNNING`.

        By default, the call forks the current version and also copies its ForEach progress, parts and logs as
        they were at that version. If the flow is written in the meantime, the call reads it again, making at
        most ten attempts before it raises `StaleFlowError`. Changes that other clients make in the meantime
        without writing the flow may be missed; in that case, a copied log may end earlier than the original.
        For earlier versions, progress, parts and logs are not copied.

        Raises `FlowNotFoundError` if the flow or version does not exist, and `FlowExistsError` if the new id
        is taken. Costs four round trips. Records that do not fit into one commit of 200 records are written
        before it, as parts without a flow. If the fork is refused, the call removes these parts; if the call
        is interrupted, a sweep removes them.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": True}))
        >>> print(store.fork("order-1", "order-1-again"))
        <FlowSnapshot 'order-1-again' v1 CREATED at 0>
        """
        return self._run(history.fork(self._context, flow_id, new_id, version=version))

    # wait conditions ------------------------------------------------------------------------------

    def set_wait_condition(self, condition: WaitCondition) -> bool:
        """Write a wait condition and count the completions that arrived before it.

        Returns whether these completions satisfied the condition; if they did, `now_satisfied` is not true
        for any call of `complete_child`. If the stored condition is pending, its definition is replaced, and
        its `created_at` and completions are kept. If the stored condition has ended, nothing is written, and
        the object receives the stored values, including the results, which costs a second round trip. A
        condition that was removed by `clear_wait_condition` starts from the beginning.
        """
        return self._run(records.set_wait_condition(self._context, condition))

    def get_wait_condition(self, correlation_id: str) -> WaitCondition | None:
        """Return the condition with the completions of its children, or `None` if it does not exist."""
        return self._run(records.get_wait_condition(self._context, correlation_id))

    def update_wait_condition(self, condition: WaitCondition) -> bool:
        """Write the condition's definition and outcome if the store still has the revision that was read.

        Results are never written. The completions are counted again, and the call returns whether they now
        satisfy the new definition. If the store no longer has the revision, the call raises
        `StaleWaitConditionError` or `WaitConditionNotFoundError`.
        """
        return self._run(records.update_wait_condition(self._context, condition))

    def clear_wait_condition(self, correlation_id: str) -> bool:
        """Remove a condition and its completions; return whether it existed.

        The store keeps a tombstone for `Retention.waits`. During this time, completions that arrive are not
        kept; their `outcome` says how the condition ended, which is `CANCELLED` if it was pending.
        """
        return self._run(records.clear_wait_condition(self._context, correlation_id))

    def get_timed_out_wait_conditions(
        self, now: datetime | None = None, limit: int | None = None
    ) -> list[WaitCondition]:
        """Return the pending conditions whose deadline has passed, earliest deadline first.

        A deadline does not end a condition by itself: completions count until your code sets `outcome =
        TIMED_OUT` and updates the condition. The version check allows only one caller to do so. The list also
        contains conditions that cannot be read; their `unreadable` attribute gives the reason, and updating
        them raises `CorruptRecordError`.
        """
        return self._run(records.get_timed_out_wait_conditions(self._context, now, limit))

    def query_wait_conditions(
        self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[WaitFilters]
    ) -> Page[WaitCondition]:
        """Return a page of conditions, newest first, including conditions that have ended.

        The filters are `outcome` and `parent_flow_id`; `limit` and `cursor` are as for `query_flows`. The
        page also contains conditions that cannot be read; their `unreadable` attribute gives the reason, and
        only their ids are known. Costs two round trips, and up to one more for each condition that cannot be
        read.
        """
        return self._run(
            listings.query_wait_conditions(self._context, limit=limit, cursor=cursor, **filters)
        )

    def iter_wait_conditions(self, **filters: Unpack[WaitFilters]) -> Iterator[WaitCondition]:
        """Iterate over all conditions that `query_wait_conditions` would list, fetching them page by page."""
        cursor: str | None = None

        while True:
            page = self.query_wait_conditions(cursor=cursor, **filters)
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
        """Record the completion of a child exactly once, even if the call is repeated or made concurrently.

        The first call for a child is `accepted`; a repeated call is a `duplicate`. A call for an unknown
        child, or for a condition that has ended or was cleared, is neither, and its `outcome` says how the
        condition ended. If the condition has not been set yet, the completion is accepted and kept until the
        condition is set; its `outcome` is then `None`. Among all calls, `now_satisfied` is true only for the
        one that satisfies the condition.

        `result` is plain JSON data. Encoded together with `error`, it must not exceed 256 KiB; otherwise, the
        call raises `RecordTooLargeError`. Costs one round trip, for any number of children.

        >>> from catga_store import MemoryStore, WaitCondition
        >>> store = MemoryStore()
        >>> wait = WaitCondition("ship", flow_ids=["s-1"])
        >>> is_satisfied = store.set_wait_condition(wait)
        >>> first = store.complete_child("ship", "s-1", result={"parcel": 7})
        >>> again = store.complete_child("ship", "s-1")
        >>> print(first.now_satisfied, again.duplicate)
        True True
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
        """Write the progress of a step if the store still has the revision that was loaded.

        If the progress object is new, the store must not have any progress for this step yet. If one of these
        checks fails, the call raises `StaleProgressError`: load the stored progress, `merge` yours into it,
        and save it. With `overwrite`, the progress is written whatever is stored. The flow does not have to
        exist yet.
        """
        self._run(
            records.save_for_each_progress(
                self._context, flow_id, step_index, progress, overwrite=overwrite
            )
        )

    def get_for_each_progress(self, flow_id: str, step_index: int) -> ForEachProgress | None:
        """Return the progress of a step, or `None` if there is none."""
        return self._run(records.get_for_each_progress(self._context, flow_id, step_index))

    def clear_for_each_progress(self, flow_id: str, step_index: int) -> bool:
        """Remove the progress of a step; return whether there was any."""
        return self._run(records.clear_for_each_progress(self._context, flow_id, step_index))

    def list_for_each_progress(self, flow_id: str) -> dict[int, ForEachProgress]:
        """Return the progress of all steps of a flow, by step index."""
        return self._run(records.list_for_each_progress(self._context, flow_id))

    # parts and logs -------------------------------------------------------------------------------

    def put_part(
        self, part: Part[Any], *, exists: Literal["refuse", "keep", "overwrite"] = "refuse"
    ) -> bool:
        """Write a part of a flow; return whether it was written.

        A new part is written only if the flow has no part with that name; otherwise, the call raises
        `PartExistsError`. A part that was read is written only if it has changed and the store still has the
        revision that was read; if the store has a different revision, the call raises `StalePartError`. With
        `exists="keep"`, an existing part is kept, and the object stays new. With `exists="overwrite"`, the
        part is written whatever is stored. The flow does not have to exist yet, but parts without a flow may
        be removed after `Retention.waits`. Costs one round trip.

        >>> from catga_store import MemoryStore, Part
        >>> store = MemoryStore()
        >>> part = Part("order-1", "invoice", b"%PDF-1.7")
        >>> print(store.put_part(part), part.version)
        True 1
        """
        return self._run(parts.put_part(self._context, part, exists=exists))

    @overload
    def get_part(self, flow_id: str, name: str, body_type: type[S]) -> Part[S] | None: ...
    @overload
    def get_part(self, flow_id: str, name: str, body_type: None = None) -> Part[Any] | None: ...
    def get_part(self, flow_id: str, name: str, body_type: Any | None = None) -> Part[Any] | None:
        """Return the part as a new object, or `None` if it does not exist.

        Without `body_type`, the body is `bytes` if it was written as `bytes`, and raw JSON data otherwise.
        Costs one round trip. Raises the same errors as `get`.
        """
        return self._run(parts.get_part(self._context, flow_id, name, body_type))

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
        """Return parts of one flow by name, with `None` for each part that does not exist.

        Costs one round trip per 500 names. If any part has a different type or cannot be read, the call
        returns no parts and raises the same error as `get`.
        """
        return self._run(parts.get_parts(self._context, flow_id, names, body_type))

    @overload
    def list_parts(
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
    def list_parts(
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
    def list_parts(
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

        Names are compared by their UTF-8 bytes. `after` and `before` restrict the page to the names between
        them; parts with these names do not have to exist. With `reverse`, the names are in descending order.
        To get the next page, pass the `cursor` of this page as `after`, or as `before` with `reverse`. A part
        that exists throughout appears exactly once, even if other parts are added or removed in the meantime.
        `limit` must be from 1 to 1,000.

        Unless you pass `bodies=True`, the parts have no bodies: you can read everything else, such as `tag`
        and `version`, but reading `body` raises `UsageError`. A page with bodies is held in memory as a
        whole. Log entries are parts and are also listed. Costs one round trip; its duration depends on the
        size of the page, not on the number of parts that the flow has.

        >>> from catga_store import MemoryStore, Part
        >>> store = MemoryStore()
        >>> for name in ("step/1", "step/2", "total"):
        ...     is_new = store.put_part(Part("order-1", name, {}))
        >>> page = store.list_parts("order-1", "step/")
        >>> print([part.name for part in page], page.cursor)
        ['step/1', 'step/2'] None
        """
        return self._run(
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

    def delete_part(self, flow_id: str, name: str) -> bool:
        """Delete a part, whatever its content; return whether it existed. Costs one round trip."""
        return self._run(parts.delete_part(self._context, flow_id, name))

    def delete_parts(self, flow_id: str, prefix: str) -> int:
        """Delete the parts whose names begin with `prefix` (if empty, all parts); return how many were deleted.

        Costs one round trip per 500 parts. Each of these round trips is an atomic commit, but the call as a
        whole is not atomic: after an error, call the method again. If the entries of a log are deleted, the
        log still continues with its next sequence.
        """
        return self._run(parts.delete_parts(self._context, flow_id, prefix))

    def append(
        self, flow_id: str, body: object, *, log: str = "log", key: str | None = None
    ) -> Appended:
        """Add the next entry to a log of a flow; return its sequence. Sequences start at 1 and have no gaps.

        An append never causes a conflict, even if many callers append at the same time. If the log already
        has an entry with the same `key`, nothing is written, and the result is a `duplicate` with the
        sequence of that entry. `body` can be `bytes` or anything that a state can be. Costs one round trip.

        >>> from catga_store import MemoryStore
        >>> store = MemoryStore()
        >>> first = store.append("order-1", {"event": "created"}, key="create")
        >>> print(store.append("order-1", {"event": "created"}, key="create"))
        Appended(flow_id='order-1', log='log', sequence=1, key='create', duplicate=True)
        """
        return self._run(parts.append(self._context, flow_id, body, log=log, key=key))

    def read_log(
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
        """Return up to `limit` entries of a log whose sequences are greater than `after`, in ascending order.

        With `before`, only entries with smaller sequences are returned. With `reverse`, the last entries are
        returned, in descending order. `limit` must be from 1 to 1,000. Each entry records when it was written
        and with which version of its flow. Costs one round trip; its duration depends on the number of
        entries that are returned, not on the length of the log.

        >>> from catga_store import MemoryStore
        >>> store = MemoryStore()
        >>> first = store.append("order-1", {"event": "created"})
        >>> for entry in store.read_log("order-1"):
        ...     print(entry.sequence, entry.body)
        1 {'event': 'created'}
        """
        return self._run(
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

    def watch_log(
        self,
        flow_id: str,
        log: str = "log",
        *,
        after: int,
        timeout: timedelta,
        limit: int = 100,
        body_type: Any | None = None,
    ) -> list[LogEntry]:
        """Return the log entries after `after` as soon as there are any, or an empty list after `timeout`.

        The method works like `read_log`, except that it waits. To follow a log, call it repeatedly with the
        sequence of the last entry. An `append` wakes the call; if no notification arrives, it finds new
        entries after the store's `poll_interval`. Costs one round trip, and one more whenever an entry has
        been added or a poll interval has passed.

        >>> from datetime import timedelta
        >>> from catga_store import MemoryStore
        >>> store = MemoryStore()
        >>> first = store.append("order-1", {"event": "created"})
        >>> for entry in store.watch_log("order-1", after=0, timeout=timedelta(seconds=20)):
        ...     print(entry.sequence, entry.body)
        1 {'event': 'created'}
        """
        return self._run(
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

    def trim_log(self, flow_id: str, log: str = "log", *, before: int) -> int:
        """Delete the log entries whose sequences are less than `before`; return how many were deleted.

        The remaining entries keep their sequences, and the next entry gets the same sequence as it would
        without this call. After an entry has been deleted, its `key` can be used for a new entry. Costs one
        round trip per 500 entries. Each of these round trips is a commit: after an error, call the method
        again.
        """
        return self._run(parts.trim_log(self._context, flow_id, log, before=before))

    # claims ---------------------------------------------------------------------------------------

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
        """Claim up to `limit` due flows, so that no other worker can claim them until the `lease` ends.

        These flows are due: new flows, flows whose pause is over, flows whose owner has not renewed its
        claim, and parents whose wait is satisfied or past its deadline. A wait that is past its deadline ends
        as `TIMED_OUT` in the commit that claims the parent. The parent's `wait_condition` shows how the wait
        ended, including the results. Flows are claimed roughly oldest first. The store decides each claim, so
        two callers never claim the same flow. A claim adds 1 to `attempts` and to `version`.

        `state_type` selects the flows to claim:

        - omitted: only flows without a type
        - a type: flows of this type, and flows without a type
        - several types, in a tuple or list: flows of these types, each with a state of its own type
        - one or more stored type names: flows of these types, with raw JSON data as their states
        - `RAW`: all flows, with raw JSON data as their states

        With `tags`, only flows that have all of these tags are claimed. The first tag is looked up in an
        index; the others are checked flow by flow.

        A flow that cannot be decoded is postponed by one lease, logged and skipped. The same happens to a
        flow without a type whose data does not match the requested type: if workers with and without a type
        share a store, give every flow a type. A flow whose lease ends before this call returns is not
        returned.

        If a wait ends while its parent is claimed, the parent is woken when the claim ends, with a delay of
        at most a quarter of the remaining lease. If the parent is missing or terminal when its wait is
        processed, the wait does not wake the parent later, unless the parent suspends on it again.

        With `wait`, a call that finds nothing due waits until it has claimed a flow, or until the time `wait`
        has passed; in that case, it returns an empty list. The call is woken by commits that make something
        due, and at the end of pauses, deadlines and leases. If several such calls are waiting in one process,
        a commit wakes one of them. If no notification arrives, the call finds due flows after the store's
        `poll_interval`. Raises `StoreClosedError` if the store is closed in the meantime.

        Costs two round trips; on Redis three and on NATS four, because these stores also search the index.
        Parents and the waits of the claimed flows cost up to four more requests in total, or more if other
        callers claim the same flows. A waiting call sends one request per poll interval.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> for job in store.claim_due(owner="worker-1"):
        ...     print(job)
        <FlowSnapshot 'order-1' v2 CREATED at 0 claimed by worker-1>
        """
        return self._run(
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
        """Claim one flow as `claim_due` does, whether or not it is due.

        If another owner has claimed the flow, the call waits up to `timeout` for that claim to end, and then
        raises `FlowClaimedError` (with `owner` and `until`). A terminal flow is returned as it is, without a
        claim. The flow counts as notified of all its waits that have ended. Its `wait_condition` shows the
        wait on which the flow was suspended if that wait has ended, and otherwise the newest wait that has
        ended.

        `state_type` is as for `claim_due`; the call raises `StateTypeError` if the flow is stored with a
        different type. Raises `FlowNotFoundError` if the flow does not exist, and `ClaimLostError` if the
        lease ends before this call returns. Costs three round trips, and up to two more for a parent.
        """
        return self._run(
            claims.claim(
                self._context, flow_id, state_type, lease=lease, timeout=timeout, owner=owner
            )
        )

    def wait_due(
        self,
        state_type: Any | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        timeout: timedelta,
    ) -> bool:
        """Wait until a flow may be due and return `True`, or return `False` after `timeout`.

        `state_type` and `tags` are as for `claim_due`. Nothing is claimed, so another worker may claim the
        flow first: `True` means that it is worth calling `claim_due`. The call is woken in the same way as
        `claim_due` with `wait`. With a timeout of 0, it returns whether a flow is due now, which costs one
        round trip.

        >>> from datetime import timedelta
        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> print(store.wait_due(timeout=timedelta(seconds=30)))
        True
        """
        return self._run(waiting.wait_due(self._context, state_type, tags=tags, timeout=timeout))

    @overload
    def watch(
        self, flow_id: str, state_type: type[S], *, after: int, timeout: timedelta
    ) -> FlowSnapshot[S] | None: ...
    @overload
    def watch(
        self, flow_id: str, state_type: None = None, *, after: int, timeout: timedelta
    ) -> FlowSnapshot[Any] | None: ...
    def watch(
        self, flow_id: str, state_type: Any | None = None, *, after: int, timeout: timedelta
    ) -> FlowSnapshot[Any] | None:
        """Return the flow as soon as its version is greater than `after`, or `None` after `timeout`.

        Use this method to wait for a result. `after` is the version that you have seen, or 0 for a flow that
        may not exist yet. The call returns the newest version, so it may skip versions in between. If a flow
        is deleted and created again, its versions start at 1 again. Raises the same errors as `get`, and
        `StoreClosedError` if the store is closed in the meantime.

        Costs one round trip, and one more whenever the flow has been written or a poll interval has passed.

        >>> from datetime import timedelta
        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> order = store.watch("order-1", after=0, timeout=timedelta(seconds=30))
        >>> print(order)
        <FlowSnapshot 'order-1' v1 CREATED at 0>
        """
        return self._run(
            waiting.watch(self._context, flow_id, state_type, after=after, timeout=timeout)
        )

    def extend(self, flow: FlowSnapshot[Any], lease: timedelta | None = None) -> None:
        """Extend the claim so that it ends `lease` from now (default: the lease of the claim).

        Neither the version nor the object changes, so another thread may extend the claim while the owner
        commits. Raises `ClaimLostError` if the claim was lost or released. After a `CommitUncertainError`,
        the claim may end at the old or the new time; extend the claim again.
        """
        self._run(claims.extend(self._context, flow, lease))

    def holding(self, flow: FlowSnapshot[Any], *, lease: timedelta | None = None) -> Holding:
        """Keep the claim on a flow while a `with` block runs, by extending it after each third of `lease`.

        Use this method for a step that takes longer than its lease. `lease` defaults to the lease of the
        claim. The claim is first extended before the block is entered; if this raises `ClaimLostError`, the
        claim was already lost. In the block, you can write the flow as usual; a commit that ends the claim
        also ends the extensions. While the store cannot be reached, the block continues, because the claim is
        valid until another worker claims the flow.

        If the claim is lost later, the block continues, because a thread cannot be stopped. The `lost`
        attribute of the object that the `with` statement returns is then true, and `ClaimLostError` is raised
        at the end of the block, unless the block raises another error.

        Costs one round trip at the beginning, and one more for each third of a lease.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("order-1", state={"paid": False}))
        >>> order = store.claim("order-1")
        >>> with store.holding(order):
        ...     order.state["paid"] = True  # after a long call, say
        >>> store.update(order)
        >>> print(order.version)
        3
        """
        return Holding(self._run, self._context, flow, lease)

    def release(self, flow: FlowSnapshot[Any], *, due_at: datetime | None = NOW) -> None:
        """Give up a claim without writing the state.

        The flow is then due now, or at `due_at`; with `due_at=None`, it is never due. Raises `ClaimLostError`
        if the claim was lost. Raises `UsageError` if the object was changed, because the changes would be
        lost: set the object's `due_at` and update the flow instead, which writes the changes and ends the
        claim.
        """
        self._run(claims.release(self._context, flow, due_at=due_at))

    # sessions -------------------------------------------------------------------------------------

    def session(self) -> Session:
        """Return a new session, to be used in a `with` statement. Only its `commit` method writes."""
        return Session(self._run, self._context)

    @contextmanager
    def begin(self) -> Generator[Session, None, None]:
        """Open a session that commits at the end of the block, or rolls back if the block raises an exception.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> store = MemoryStore()
        >>> with store.begin() as session:
        ...     session.add(FlowSnapshot("order-1", state={"paid": False}))
        >>> print(session.receipt.versions)
        {Key(kind='flow', id='order-1', step=0): 1}
        """
        with self.session() as session:
            yield session
            session.commit()

    def transact(
        self,
        function: Callable[[Session, *Ts], R],
        *args: *Ts,
        attempts: int = 100,
    ) -> R:
        """Call `function(session, *args)`, commit, and return its result.

        If this commit conflicts, the function is called again with a new session, up to `attempts` times in
        all, after random pauses of 2 to 200 ms. An uncertain commit is resolved first. Because the function
        may be called several times, everything that it does outside the session must be safe to repeat. If
        the function itself has committed something, it is not called again.

        >>> from catga_store import MemoryStore, FlowSnapshot
        >>> def add(session, amount):
        ...     counter = session.get_one("counter")
        ...     counter.state["n"] += amount
        ...     return counter.state["n"]
        >>> store = MemoryStore()
        >>> store.create(FlowSnapshot("counter", state={"n": 0}))
        >>> print(store.transact(add, 5))
        5
        """
        check_function(function)

        def call(unit: UnitOfWork) -> R:
            session = Session(self._run, self._context, unit)
            return check_blocking(function(session, *args))

        result: R = self._run(sessions.transact(self._context, call, attempts))
        return result

    def resolve_commit(self, error: CommitUncertainError) -> Receipt | None:
        """Resolve an uncertain commit: return its receipt, or `None` if it will never be applied.

        Raises the error again if the store cannot determine the outcome. The store can determine the outcome
        for twice its `timeout`; after that, only if each flow and each progress record of the commit has been
        written fewer than eight times since. An `extend`, a sweep, a `clear` or a deletion of parts by prefix
        leaves nothing in the records: resolve it in time, or call the method again.
        """
        return self._run(commits.resolve_commit(self._context, error))

    # the store ------------------------------------------------------------------------------------

    def sweep(self, limit: int = 1000) -> int:
        """Remove up to `limit` expired records; return how many were removed.

        A sweep only reclaims space: expired records are treated as absent in any case. Writes remove a few of
        them, too. If the call raises `CommitUncertainError`, you can resolve the error or ignore it.
        """
        return self._run(upkeep.sweep(self._context, limit))

    def clear(self) -> None:
        """Remove all records of this store, and nothing else.

        An embedded store removes them in one step, a server in several. After a `CommitUncertainError`,
        `resolve_commit` returns a receipt if everything was removed. If it returns `None`, nothing more will
        be removed, but on a server some records may already have been removed: clear the store again.
        """
        self._run(upkeep.clear(self._context))

    def ping(self) -> None:
        """Check that the store works; raise an error that says what is wrong if it does not."""
        self._run(upkeep.ping())

    def close(self) -> None:
        """Close everything that the store opened; operations then raise `StoreClosedError`.

        Calls that are waiting for work raise this error, too. Closing a closed store has no effect.
        """
        if not self._closed:
            self._closed = True
            self._context.waiters.close()
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


Store.__module__ = "catga_store"
