"""The awaiting API, under asyncio and trio: the same promises, and what only async code can see.

One file, slightly long: the blocking tests' promises in short, and what only async code sees.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import attrs
import pytest
import trio

import catga_store as cs
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import ReplyLostError
from catga_store.testing.clock import ManualClock

pytestmark = pytest.mark.anyio

MINUTE = timedelta(minutes=1)
LEASE = timedelta(seconds=30)

Opener = Callable[..., cs.AsyncStore]


@attrs.define
class Order:
    """A state."""

    n: int


def new(flow_id: str = "f", **fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow with plain JSON data as its state."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, **fields)


# --- single operations --------------------------------------------------------------------------


async def test_flows(astore: cs.AsyncStore) -> None:
    """Create, read, update and delete answer and fail as the blocking store does."""
    flow = cs.FlowSnapshot("o", state=Order(1))
    await astore.create(flow)
    assert await astore.get("nobody") is None
    read = await astore.get_one("o", Order)
    assert (read.state, read.version) == (Order(1), 1)
    read.state.n = 2
    await astore.update(read)
    with pytest.raises(cs.StaleFlowError) as stale:
        await astore.update(flow)

    assert (stale.value.expected, stale.value.actual) == (1, 2)
    stored, created = await astore.get_or_create(cs.FlowSnapshot("o", state=Order(9)))
    assert (stored.state, created) == (Order(2), False)
    found = await astore.get_many(["o", "p"], Order)
    assert found["p"] is None
    with pytest.raises(cs.FlowExistsError):
        await astore.create(cs.FlowSnapshot("o", state=Order(1)))

    assert await astore.delete("o", version=2) is True
    assert await astore.delete("o") is False
    with pytest.raises(cs.FlowNotFoundError):
        await astore.get_one("o")


async def test_waits(astore: cs.AsyncStore, clock: ManualClock) -> None:
    """Conditions are set, completed, updated, listed, timed out and cleared."""
    wait = cs.WaitCondition("w", flow_ids=["a", "b"], timeout=MINUTE)
    assert await astore.set_wait_condition(wait) is False
    assert (await astore.complete_child("w", "a", result=1)).accepted
    assert (await astore.complete_child("w", "a")).duplicate
    clock.advance(MINUTE)
    (overdue,) = await astore.get_timed_out_wait_conditions()
    assert overdue.results["a"].result == 1
    overdue.outcome = cs.WaitOutcome.TIMED_OUT
    assert await astore.update_wait_condition(overdue) is False
    assert (await astore.complete_child("w", "b")).outcome is cs.WaitOutcome.TIMED_OUT
    assert len(await astore.query_wait_conditions(outcome=cs.WaitOutcome.TIMED_OUT)) == 1
    assert [one.correlation_id async for one in astore.iter_wait_conditions()] == ["w"]
    assert await astore.clear_wait_condition("w") is True
    assert await astore.get_wait_condition("w") is None


async def test_progress(astore: cs.AsyncStore) -> None:
    """Progress is saved, loaded, listed, checked and cleared."""
    progress = cs.ForEachProgress([1])
    await astore.save_for_each_progress("f", 0, progress)
    with pytest.raises(cs.StaleProgressError):
        await astore.save_for_each_progress("f", 0, cs.ForEachProgress([2]))

    read = await astore.get_for_each_progress("f", 0)
    assert read is not None
    assert list(read.processed_indices) == [1]
    assert list(await astore.list_for_each_progress("f")) == [0]
    assert await astore.clear_for_each_progress("f", 0) is True


async def test_claims(astore: cs.AsyncStore, clock: ManualClock) -> None:
    """Claims are taken, refused, extended, lost and released."""
    await astore.create(cs.FlowSnapshot("o", state=Order(1)))
    (mine,) = await astore.claim_due(Order, lease=LEASE, owner="w-1")
    with pytest.raises(cs.FlowClaimedError):
        await astore.claim("o", timeout=timedelta(milliseconds=10))

    await astore.extend(mine, MINUTE)
    clock.advance(LEASE)
    assert await astore.claim_due() == []
    clock.advance(LEASE)
    yours = await astore.claim("o", Order, owner="w-2")
    with pytest.raises(cs.ClaimLostError):
        await astore.update(mine)

    await astore.release(yours, due_at=None)
    assert (await astore.get_one("o")).owner is None


async def test_listings(astore: cs.AsyncStore) -> None:
    """Pages, counts and async iterators answer the same flows."""
    async with astore.begin() as session:
        for number in range(120):
            session.add(new(f"f-{number:03}"))

    names = [f"f-{number:03}" for number in range(120)]
    page = await astore.query_flows(limit=70)
    rest = await astore.query_flows(limit=70, cursor=page.cursor)
    assert [flow.flow_id for flow in (*page, *rest)] == names
    assert [flow.flow_id async for flow in astore.iter_flows()] == names
    assert await astore.count_flows(status=cs.FlowStatus.CREATED) == 120


async def test_the_store_itself(astore: cs.AsyncStore, clock: ManualClock) -> None:
    """`now` is plain; `ping`, `sweep`, `clear` and `close` are awaited."""
    assert astore.now() == clock.now
    await astore.ping()
    await astore.create(new(status=cs.FlowStatus.COMPLETED))
    clock.advance(timedelta(days=7))
    assert await astore.sweep() == 1
    await astore.create(new())
    await astore.clear()
    assert await astore.count_flows() == 0
    await astore.close()
    await astore.close()
    with pytest.raises(cs.StoreClosedError):
        await astore.get("f")


# --- sessions -----------------------------------------------------------------------------------


async def test_a_session(astore: cs.AsyncStore) -> None:
    """What may do I/O is awaited; queueing is plain; changes are found and written once."""
    await astore.create(new())
    async with astore.session() as session:
        flow = await session.get_one("f")
        assert await session.get("f") is flow
        assert (await session.get_many(["f", "g"]))["f"] is flow
        assert await session.get_wait_condition("w") is None
        assert await session.get_for_each_progress("f", 0) is None
        flow.state["n"] = 1
        session.add(new("g"))
        session.complete_child("w", "c")
        session.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
        assert session.dirty == (flow,)
        receipt = await session.commit()
        assert session.receipt is receipt
        theirs = await astore.get_one("f")
        await astore.update(theirs)
        await session.refresh(flow)
        assert flow.version == 3
        session.delete(flow)
        await session.commit()

    assert sorted(receipt.versions.values()) == [1, 1, 2]
    assert await astore.get("f") is None
    with pytest.raises(cs.SessionClosedError):
        await session.get("g")


async def test_suspend_and_wake(astore: cs.AsyncStore) -> None:
    """A flow that waits is claimed again, with the results of its children."""
    async with astore.begin() as session:
        flow = new("parent")
        session.add(flow)
        session.suspend(flow, cs.WaitCondition("w", flow_ids=["a"]))

    assert await astore.claim_due() == []
    assert (await astore.complete_child("w", "a", result=7)).now_satisfied
    (parent,) = await astore.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.results["a"].result == 7


async def test_begin(astore: cs.AsyncStore) -> None:
    """It commits at the end and rolls back on an exception."""
    async with astore.begin() as session:
        session.add(new())

    assert session.receipt is not None
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  the block is the test
        async with astore.begin() as session:
            session.add(new("g"))
            _ = 1 // 0

    assert await astore.count_flows() == 1
    with pytest.raises(cs.FlowExistsError):
        async with astore.begin() as session:
            session.add(new())


async def test_transact(astore: cs.AsyncStore) -> None:
    """Tasks that add to one flow at once lose no addition."""
    await astore.create(new(due_at=None))

    async def add(session: cs.AsyncSession, amount: int) -> int:
        flow = await session.get_one("f")
        await anyio.lowlevel.checkpoint()
        flow.state["n"] += amount
        n: int = flow.state["n"]
        return n

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(astore.transact, add, 5)

    kept = await astore.get_one("f")
    assert kept.state == {"n": 40}
    assert kept.version == 9


async def test_transact_gives_up(astore: cs.AsyncStore) -> None:
    """After its attempts the conflict is raised; another's error at once."""
    await astore.create(new())
    calls: list[int] = []

    async def collide(session: cs.AsyncSession) -> None:
        calls.append(1)
        (await session.get_one("f")).state["n"] += 1
        await astore.update(await astore.get_one("f"))

    with pytest.raises(cs.StaleFlowError):
        await astore.transact(collide, attempts=2)

    async def miss(session: cs.AsyncSession) -> None:
        calls.append(1)
        await session.get_one("nobody")

    with pytest.raises(cs.FlowNotFoundError):
        await astore.transact(miss)

    assert len(calls) == 3
    with pytest.raises(cs.UsageError, match="transact: expected a function"):
        await astore.transact(None)  # type: ignore[arg-type]

    with pytest.raises(
        cs.UsageError,
        match="expected an async function, got a function that returned 5, so nothing was committed",
    ):
        await astore.transact(lambda _session: 5)  # type: ignore[arg-type, return-value]


# --- what only async code can see ---------------------------------------------------------------


async def test_both_faces_share_their_records(
    astore: cs.AsyncStore, store_url: str, clock: ManualClock
) -> None:
    """A blocking store on the same records sees what the async one wrote, and the other way round."""
    store = cs.open_store(store_url, clock=clock)
    await astore.create(new())
    flow = await anyio.to_thread.run_sync(store.get_one, "f")
    await anyio.to_thread.run_sync(store.update, flow)
    assert (await astore.get_one("f")).version == 2
    store.close()


@pytest.mark.stores("memory", "sqlite")  # it stands before their transport
async def test_a_session_belongs_to_one_task(astore: cs.AsyncStore) -> None:
    """Used while its commit is on the way, a session raises and the commit continues."""
    session = astore.session()
    session.add(new())
    driver: Any = astore._driver
    inner = driver.transport
    caught: list[BaseException] = []

    class Transport:
        threaded = inner.threaded

        def __call__(self, call: Call[Any]) -> Any:
            try:
                session.add(new("g"))
            except cs.UsageError as error:
                caught.append(error)

            return inner(call)

        def close(self) -> None:
            inner.close()

    driver.transport = Transport()
    await session.commit()
    assert caught
    assert "another task is committing this session" in str(caught[0])
    assert (await astore.get_one("f")).version == 1


@pytest.mark.stores("memory", "sqlite")  # it stands before their transport
async def test_a_lost_outcome_closes_the_session(astore: cs.AsyncStore) -> None:
    """The error can be resolved later, and then says what was written."""
    driver: Any = astore._driver
    inner = driver.transport
    dead = [True]

    class Transport:
        threaded = inner.threaded

        def __call__(self, call: Call[Any]) -> Any:
            reply = inner(call)
            if call.writes and dead:
                message = "the line is dead"
                raise ReplyLostError(message)

            return reply

        def close(self) -> None:
            inner.close()

    await astore.ping()
    driver.transport = Transport()
    session = astore.session()
    session.add(new())
    with pytest.raises(cs.CommitUncertainError) as caught:
        await session.commit()

    with pytest.raises(cs.SessionClosedError):
        await session.get("f")

    dead.clear()
    receipt = await astore.resolve_commit(caught.value)
    assert receipt is not None
    assert list(receipt.versions.values()) == [1]


async def test_a_cancelled_task_writes_nothing_more(astore: cs.AsyncStore) -> None:
    """A commit that is cancelled before it was sent is not written."""
    session = astore.session()
    session.add(new())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await session.commit()

    assert scope.cancelled_caught
    assert await astore.count_flows() == 0


@pytest.mark.stores("memory", "sqlite")  # it stands before their transport
async def test_a_commit_on_its_way_is_seen_through(
    astore: cs.AsyncStore, anyio_backend_name: str
) -> None:
    """A cancellation that comes during the commit leaves objects and receipt settled."""
    driver: Any = astore._driver
    await astore.ping()
    inner = driver.transport
    session = astore.session()
    flow = new()
    session.add(flow)

    with anyio.CancelScope() as scope:
        driver.transport = CancellingWire(inner, scope, anyio_backend_name)
        await session.commit()

    driver.transport = inner
    assert (await astore.get_one("f")).version == 1
    assert flow.version == 1
    assert session.receipt is not None
    assert list(session.receipt.versions.values()) == [1]


class CancellingWire:
    """Cancel the task that waits for a call, while the call is on its way."""

    def __init__(self, inner: Any, scope: anyio.CancelScope, loop: str) -> None:
        """Stand before the store's own transport; made in the event loop."""
        self.inner = inner
        self.threaded = inner.threaded
        self.cancel = from_a_thread(scope.cancel, loop) if self.threaded else scope.cancel

    def __call__(self, call: Call[Any]) -> Any:
        """Cancel, then perform the call."""
        self.cancel()
        return self.inner(call)

    def close(self) -> None:
        """Close the store's own transport."""
        self.inner.close()


def from_a_thread(function: Callable[[], None], loop: str) -> Callable[[], None]:
    """Return what calls a function in this event loop from any thread and waits until it is done."""
    if loop == "trio":
        call_soon: Callable[..., object] = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        call_soon = asyncio.get_running_loop().call_soon_threadsafe

    def call() -> None:
        done = threading.Event()
        call_soon(lambda: (function(), done.set()))
        assert done.wait(30)

    return call


async def test_a_slow_reader_does_not_hold_others_up(astore: cs.AsyncStore) -> None:
    """Many tasks may use one store at once."""
    async with astore.begin() as session:
        for number in range(20):
            session.add(new(f"f-{number}"))

    seen: list[str] = []

    async def read(flow_id: str) -> None:
        seen.append((await astore.get_one(flow_id)).flow_id)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(read, f"f-{number}")

    assert sorted(seen) == sorted(f"f-{number}" for number in range(20))


async def test_a_store_belongs_to_one_loop(astore: cs.AsyncStore, anyio_backend_name: str) -> None:
    """Used in a second event loop, an async store raises a usage error, and serves the first on."""

    def use_elsewhere() -> None:
        anyio.run(astore.ping, backend=anyio_backend_name)

    await astore.ping()
    with pytest.raises(cs.UsageError, match="belongs to a different event loop"):
        await anyio.to_thread.run_sync(use_elsewhere)

    await astore.ping()


async def test_an_unused_store_can_be_closed_anywhere(
    store_url: str, anyio_backend_name: str
) -> None:
    """What was never used belongs to no loop yet."""
    unused = cs.open_async_store(store_url)
    await anyio.to_thread.run_sync(partial(anyio.run, unused.close, backend=anyio_backend_name))


async def test_options_reach_an_async_store(open_more_async: Opener) -> None:
    """Owner, retention and limits are those it was opened with."""
    store = open_more_async(owner="w-7", max_record_bytes=100)
    await store.create(new())
    assert (await store.claim("f")).owner == "w-7"
    with pytest.raises(cs.RecordTooLargeError):
        await store.create(cs.FlowSnapshot("g", state={"text": "x" * 100}))
