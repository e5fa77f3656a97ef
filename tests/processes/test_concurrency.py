"""Threads and tasks on one store: chains of versions, fan-in, claimers, and cancelled commits.

What must hold is asserted for whatever order the threads come in; where an order matters, a gate
in front of the store's transport makes it, never a sleep.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from typing import TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

import catga_store as cs
from catga_store.protocol.conversation import Call

R = TypeVar("R")

THREADS = 8
LONG = 30
"""Seconds that only a test that fails would wait."""


def in_threads(function: Callable[[int], R], number: int = THREADS) -> list[R]:
    """Return what `function(thread)` returned in that many threads that begin together."""
    barrier = threading.Barrier(number)

    def run(thread: int) -> R:
        barrier.wait(LONG)
        return function(thread)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


def create_many(store: cs.Store, number: int) -> list[str]:
    """Create that many flows that are due, and return their ids, sorted."""
    ids = [f"flow-{n:04}" for n in range(number)]

    for start in range(0, number, 200):
        with store.begin() as session:
            for flow_id in ids[start : start + 200]:
                session.add(cs.FlowSnapshot(flow_id, state={"n": 0}))

    return ids


# --- threads ------------------------------------------------------------------------------------


def test_versions_form_a_chain_under_transact_by_threads(store: cs.Store) -> None:
    """Each of 8 times 25 transactions read a version that no other committed on, none is missing."""
    store.create(cs.FlowSnapshot("counter", state={"n": 0}))

    def add(session: cs.Session) -> tuple[int, int]:
        flow = session.get_one("counter")
        flow.state["n"] += 1
        return flow.version, flow.state["n"]

    read = in_threads(lambda _: [store.transact(add) for _ in range(25)])

    assert sorted(itertools.chain(*read)) == [(n, n) for n in range(1, 201)]
    counter = store.get_one("counter")
    assert (counter.version, counter.state) == (201, {"n": 200})


def test_every_completion_counts_once_and_one_satisfies(store: cs.Store) -> None:
    """1,000 completions by 8 threads, each sent twice: 1,000 accepted and one `now_satisfied`."""
    children = [f"child-{n}" for n in range(1000)]
    store.set_wait_condition(cs.WaitCondition("all", flow_ids=children))
    sent = [*children, *children]
    random.Random(1).shuffle(sent)

    def complete(thread: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        for child in sent[thread::THREADS]:
            answer = store.complete_child("all", child, result=child)
            seen.update(
                accepted=answer.accepted,
                duplicate=answer.duplicate,
                now_satisfied=answer.now_satisfied,
            )

        return seen

    total = sum(in_threads(complete), Counter())
    assert total == Counter(accepted=1000, duplicate=1000, now_satisfied=1)
    wait = store.get_wait_condition("all")
    assert wait is not None
    assert (wait.outcome, wait.completed_count) == (cs.WaitOutcome.SATISFIED, 1000)
    assert {child: result.result for child, result in wait.results.items()} == {
        child: child for child in children
    }


@pytest.mark.parametrize("limit", [1, 10])
def test_claimers_take_each_due_flow_once(store: cs.Store, limit: int) -> None:
    """8 claimers on many due flows stop when nothing is due, and have each exactly once.

    On NATS a look at what is due names all of it, and this takes turns: 1,000 flows are in the soak.
    """
    ids = create_many(store, 200 if isinstance(store, cs.NatsStore) else 1000)

    def claim(thread: int) -> list[str]:
        taken: list[str] = []
        while flows := store.claim_due(limit=limit, owner=f"worker-{thread}"):
            assert len(flows) <= limit
            taken += [flow.flow_id for flow in flows]

        return taken

    taken = in_threads(claim)
    assert sorted(itertools.chain(*taken)) == ids
    for thread, mine in enumerate(taken):
        owners = {store.get_one(flow_id).owner for flow_id in mine[:5]}
        assert owners <= {f"worker-{thread}"}


def test_claims_by_name_go_to_one_thread(store: cs.Store) -> None:
    """Of 8 threads that claim one flow, one has it and seven get the owner's name."""
    store.create(cs.FlowSnapshot("job", state=None))

    def claim(thread: int) -> str:
        try:
            return f"has {store.claim('job', owner=f'worker-{thread}').owner}"
        except cs.FlowClaimedError as error:
            return f"refused for {error.owner}"

    answers = Counter(in_threads(claim))
    owner = store.get_one("job").owner
    assert answers == {f"has {owner}": 1, f"refused for {owner}": 7}


def test_get_or_create_makes_one_flow(store: cs.Store) -> None:
    """Of 8 threads that start one flow, one has made it and all hold the same revision."""
    answers = in_threads(
        lambda thread: store.get_or_create(cs.FlowSnapshot("order", state={"by": thread}))
    )
    assert sum(made for _, made in answers) == 1
    assert len({flow.revision for flow, _ in answers}) == 1


def test_extend_beside_the_owners_commits_never_fails(store: cs.Store) -> None:
    """A second thread renews the claim as fast as it can, while only the owner makes versions."""
    store.create(cs.FlowSnapshot("job", state={"n": 0}))
    (job,) = store.claim_due(lease=timedelta(seconds=30))
    first, renewing, done = job.version, threading.Event(), threading.Event()

    def work() -> None:
        assert renewing.wait(60)
        try:
            for n in range(200):
                job.state["n"] = n
                store.update(job)
                with store.session() as session:  # a commit beside it renews the claim as well
                    session.add(job)
                    session.add(cs.FlowSnapshot(f"other-{n}", state=None, due_at=None))
                    session.commit()
        finally:
            done.set()

    def renew() -> int:
        renewals = 0
        while not done.is_set():
            store.extend(job, timedelta(hours=1))
            renewals += 1
            renewing.set()

        return renewals

    with ThreadPoolExecutor(2) as pool:
        owner, renewer = pool.submit(work), pool.submit(renew)
        owner.result()
        assert renewer.result() > 0

    assert job.version == store.get_one("job").version == first + 200


def test_a_pool_of_connections_stays_small(tmp_path: Path) -> None:
    """After 40 threads have read and written at once, the store keeps eight connections at most."""
    with cs.SQLiteStore(tmp_path / "flows.db") as store:
        create_many(store, 40)

        def use(thread: int) -> None:
            flow = store.get_one(f"flow-{thread:04}")
            flow.state["n"] = 1
            store.update(flow)
            assert len(store.query_flows().items) == 40

        in_threads(use, 40)
        assert len(store._driver.transport._idle) <= 8  # type: ignore[attr-defined]


# --- tasks --------------------------------------------------------------------------------------


class Gate:
    """Holds up a store's transport: the calls that are wanted say that they began, and wait."""

    threaded = True

    def __init__(self, transport: Any, *, writes: bool) -> None:
        self._wire = transport
        self._writes = writes
        self.began = threading.Event()
        self.opened = threading.Event()

    def __call__(self, call: Call[Any]) -> Any:
        if call.writes is self._writes:
            self.began.set()
            assert self.opened.wait(LONG)

        return self._wire(call)

    def close(self) -> None:
        self._wire.close()


@pytest.fixture
async def filed(tmp_path: Path) -> AsyncIterator[cs.AsyncStore]:
    """Open a store on a file that holds the flow `counter`."""
    async with cs.AsyncSQLiteStore(tmp_path / "flows.db") as store:
        await store.create(cs.FlowSnapshot("counter", state={"n": 0}))
        yield store


def gate_of(store: cs.AsyncStore, *, writes: bool) -> Gate:
    """Put a gate in front of a store's transport."""
    driver: Any = store._driver
    gate = Gate(driver.transport, writes=writes)
    driver.transport = gate
    return gate


async def until(event: threading.Event) -> None:
    """Wait for a thread's event."""
    assert await anyio.to_thread.run_sync(event.wait, LONG)


async def a_few_turns() -> None:
    """Let everything that is ready run, so that a cancellation is delivered."""
    with anyio.CancelScope(shield=True):
        for _ in range(20):
            await checkpoint()


async def assert_committed(
    store: cs.AsyncStore, session: cs.AsyncSession, flow: cs.FlowSnapshot[Any]
) -> None:
    """Object, receipt and store say the same: version 2 was written."""
    receipt = session.receipt
    assert receipt is not None
    assert receipt.versions == {("flow", "counter", 0, ""): 2}
    stored = await store.get_one("counter")
    assert (flow.version, stored.version, stored.state) == (2, 2, {"n": 1})
    assert flow.revision == stored.revision
    assert session.dirty == ()


@pytest.mark.anyio
async def test_a_commit_in_flight_outlives_a_cancelled_scope(filed: cs.AsyncStore) -> None:
    """The commit is finished and settled, and the cancellation continues after it."""
    async with filed.session() as session:
        flow = await session.get_one("counter")
        flow.state["n"] = 1
        gate = gate_of(filed, writes=True)
        went_on = False

        async def commit() -> None:
            nonlocal went_on
            await session.commit()
            await checkpoint()
            went_on = True

        async with anyio.create_task_group() as group:
            group.start_soon(commit)
            await until(gate.began)
            group.cancel_scope.cancel()
            await a_few_turns()
            assert session.receipt is None
            gate.opened.set()

        assert group.cancel_scope.cancelled_caught
        assert not went_on
        await assert_committed(filed, session, flow)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_commit_in_flight_outlives_task_cancel(filed: cs.AsyncStore) -> None:
    """`Task.cancel`, called again and again, waits for the commit and is then raised by it."""
    async with filed.session() as session:
        flow = await session.get_one("counter")
        flow.state["n"] = 1
        gate = gate_of(filed, writes=True)
        task = asyncio.ensure_future(session.commit())
        await until(gate.began)

        for _ in range(3):
            task.cancel()
            await a_few_turns()
            assert not task.done()

        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task

        await assert_committed(filed, session, flow)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_commit_in_flight_outlives_asyncio_timeout(filed: cs.AsyncStore) -> None:
    """`asyncio.timeout` raises its TimeoutError after the commit has been finished and settled."""
    async with filed.session() as session:
        flow = await session.get_one("counter")
        flow.state["n"] = 1
        gate = gate_of(filed, writes=True)

        async def commit(timeout: asyncio.Timeout) -> None:  # noqa: ASYNC109  it is what is tested
            async with timeout:
                await session.commit()

        timeout = asyncio.timeout(LONG)
        task = asyncio.ensure_future(commit(timeout))
        await until(gate.began)
        timeout.reschedule(asyncio.get_running_loop().time())
        await a_few_turns()
        assert timeout.expired()
        assert not task.done()
        gate.opened.set()
        with pytest.raises(TimeoutError):
            await task

        await assert_committed(filed, session, flow)


@pytest.mark.anyio
async def test_an_update_in_flight_settles_its_object(filed: cs.AsyncStore) -> None:
    """The operations of the store are finished like commits: the object has the version it wrote."""
    flow = await filed.get_one("counter")
    flow.state["n"] = 1
    gate = gate_of(filed, writes=True)

    async with anyio.create_task_group() as group:
        group.start_soon(filed.update, flow)
        await until(gate.began)
        group.cancel_scope.cancel()
        await a_few_turns()
        gate.opened.set()

    stored = await filed.get_one("counter")
    assert flow.version == stored.version == 2
    assert flow.revision == stored.revision


@pytest.mark.anyio
async def test_a_cancellation_before_the_start_writes_nothing(filed: cs.AsyncStore) -> None:
    """In a scope that is cancelled already, nothing reaches the file."""
    async with filed.session() as session:
        flow = await session.get_one("counter")
        flow.state["n"] = 1
        gate = gate_of(filed, writes=True)
        gate.opened.set()

        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.commit()

        assert scope.cancelled_caught
        assert not gate.began.is_set()
        assert session.receipt is None
        assert flow.version == (await filed.get_one("counter")).version == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_cancelled_before_it_ran_writes_nothing(filed: cs.AsyncStore) -> None:
    """`Task.cancel` on a commit that has not had its first turn leaves the file alone."""
    async with filed.session() as session:
        flow = await session.get_one("counter")
        flow.state["n"] = 1
        gate = gate_of(filed, writes=True)
        gate.opened.set()
        task = asyncio.ensure_future(session.commit())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert not gate.began.is_set()
        assert flow.version == (await filed.get_one("counter")).version == 1


@pytest.mark.anyio
async def test_a_cancelled_read_stops_at_once(filed: cs.AsyncStore) -> None:
    """A read is left behind where it hangs, and the store serves the next one."""
    gate = gate_of(filed, writes=False)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(filed.get, "counter")
            await until(gate.began)
            group.cancel_scope.cancel()

        assert group.cancel_scope.cancelled_caught
        assert not gate.opened.is_set()
    finally:
        gate.opened.set()

    flow = await filed.get_one("counter")
    flow.state["n"] = 1
    await filed.update(flow)
    assert (await filed.get_one("counter")).version == 2


def cancel_by_scope(task: Callable[[], Any], turns: int) -> Any:
    """Run a task and cancel the scope around it after that many turns of the loop."""

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(task)
            for _ in range(turns):
                await checkpoint()

            group.cancel_scope.cancel()

    return run()


def cancel_by_task(task: Callable[[], Any], turns: int) -> Any:
    """Run a task and cancel it natively after that many turns of the loop."""

    async def run() -> None:
        running = asyncio.ensure_future(task())
        for _ in range(turns):
            await checkpoint()

        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() or running.exception() is None

    return run()


@pytest.mark.parametrize(
    ("anyio_backend", "cancel"),
    [("asyncio", cancel_by_scope), ("asyncio", cancel_by_task), ("trio", cancel_by_scope)],
)
@pytest.mark.anyio
async def test_whenever_a_cancellation_comes_the_receipt_is_true(
    filed: cs.AsyncStore, cancel: Callable[[Callable[[], Any], int], Any]
) -> None:
    """200 cancellations at drawn moments: the file holds what objects and receipts say, each time."""
    draw = random.Random(2)
    stored = 0
    outcomes: Counter[bool] = Counter()

    for _ in range(200):
        sessions: list[cs.AsyncSession] = []
        flows: list[cs.FlowSnapshot[Any]] = []

        async def count_on(
            sessions: list[cs.AsyncSession] = sessions, flows: list[cs.FlowSnapshot[Any]] = flows
        ) -> None:
            session = filed.session()
            sessions.append(session)
            flow = await session.get_one("counter")
            flows.append(flow)
            flow.state["n"] += 1
            await session.commit()

        await cancel(count_on, draw.choice([0, 1, 2, 3, 5, 8, 20, 60, 200, 800]))
        written = bool(sessions) and sessions[0].receipt is not None
        stored += written
        outcomes[written] += 1
        flow = await filed.get_one("counter")
        assert (flow.state, flow.version) == ({"n": stored}, stored + 1)
        if written:
            assert flows[0].revision == flow.revision

    assert outcomes[False] > 0


@pytest.fixture(params=["memory", "sqlite"])
def unbound(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[cs.AsyncStore]:
    """Open an async store outside of any loop."""
    if request.param == "memory":
        yield cs.AsyncMemoryStore()
    else:
        store = cs.AsyncSQLiteStore(tmp_path / "flows.db")
        yield store
        anyio.run(store.close)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_store_belongs_to_one_loop(unbound: cs.AsyncStore, backend: str) -> None:
    """A second event loop, of either kind, is refused by name before anything is asked."""

    async def use() -> None:
        await unbound.get("nobody")
        await unbound.get("nobody")

    anyio.run(use)
    with pytest.raises(cs.UsageError, match="belongs to a different event loop"):
        anyio.run(use, backend=backend)


@pytest.mark.anyio
async def test_tasks_make_a_chain(astore: cs.AsyncStore) -> None:
    """20 tasks that transact on one flow lose no update."""
    await astore.create(cs.FlowSnapshot("counter", state={"n": 0}))

    async def add(session: cs.AsyncSession) -> None:
        flow = await session.get_one("counter")
        flow.state["n"] += 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(astore.transact, add)

    counter = await astore.get_one("counter")
    assert (counter.version, counter.state) == (21, {"n": 20})
