"""A running worker on every store and both APIs: it is woken, retries, stops, and gives back.

Every wait has a deadline. Where a store has no hints yet, the poll interval is short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from marks import ONE_STORE
from waiting import LONG
from waiting import until
from waiting import until_async

import catga_store as cs
from catga_store.worker.gate import LONGEST_WAIT
from catga_store.worker.gate import Gate

SOON = timedelta(milliseconds=50)
AT_ONCE = timedelta(0)
EVENTUALLY = timedelta(seconds=LONG)


@attrs.define
class Order:
    """A state with a type."""

    n: int = 0


@pytest.fixture
def store(open_more: Callable[..., cs.Store]) -> cs.Store:
    """Open the store of this test on the real clock."""
    return open_more(clock=None, poll_interval=SOON)


@pytest.fixture
async def astore(open_more_async: Callable[..., cs.AsyncStore]) -> cs.AsyncStore:
    """Open the async store of this test on the real clock."""
    return open_more_async(clock=None, poll_interval=SOON)


@contextmanager
def running(worker: cs.Worker, *, hangs: bool = False) -> Iterator[None]:
    """Run a worker in a thread for as long as the block runs; it must end then."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001  raised in the test
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(LONG)

    assert not thread.is_alive()
    assert raised == []
    left = [one.name for one in threading.enumerate() if one.name.startswith("catga-store-worker")]
    assert hangs or left == []


def status_of(store: cs.Store, flow_id: str = "o") -> str:
    """Return the status of a flow by its name."""
    return store.get_one(flow_id).status.name


# every store ----------------------------------------------------------------------------------------


def test_a_worker_with_tags_is_woken_for_its_flows_only(store: cs.Store) -> None:
    """On every store: by a flow that comes while it waits; those without the tags are left to others."""
    worker = cs.Worker(store, tags={"queue": "slow"})

    @worker.handles(None)
    def run(run: cs.Run[Any]) -> None:
        run.complete()

    with running(worker):
        store.create(cs.FlowSnapshot("other", state={}, tags={"queue": "fast"}))
        store.create(cs.FlowSnapshot("mine", state={}, tags={"queue": "slow"}))
        until(lambda: store.get_one("mine").status is cs.FlowStatus.COMPLETED)

    assert store.get_one("other").version == 1


@ONE_STORE
@pytest.mark.anyio
async def test_an_async_worker_with_tags_takes_its_flows_only(astore: cs.AsyncStore) -> None:
    """As a blocking one does."""
    worker = cs.AsyncWorker(astore, tags={"queue": "slow"})

    @worker.handles(None)
    async def run(run: cs.AsyncRun[Any]) -> None:
        run.complete()

    await astore.create(cs.FlowSnapshot("other", state={}, tags={"queue": "fast"}))
    await astore.create(cs.FlowSnapshot("mine", state={}, tags={"queue": "slow"}))
    assert await worker.run_until_idle() == 1
    assert (await astore.get_one("other")).version == 1


def test_flows_run_to_their_end(store: cs.Store) -> None:
    """Two steps each, some in parallel; a flow that comes later wakes the worker."""
    worker = cs.Worker(store, concurrency=3)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1
        if run.flow.position.current:
            run.complete()
        else:
            run.next()

    for number in range(5):
        store.create(cs.FlowSnapshot(f"o-{number}", state=Order()))

    with running(worker):
        until(lambda: store.count_flows(status=cs.FlowStatus.COMPLETED) == 5)
        assert worker.healthy
        store.create(cs.FlowSnapshot("later", state=Order()))
        until(lambda: status_of(store, "later") == "COMPLETED")

    assert not worker.healthy
    assert worker.tally.runs == {"ok": 12}
    assert store.get_one("o-0", Order).state == Order(2)


def test_stopping_gives_back_what_does_not_end(store: cs.Store) -> None:
    """After the grace the flow is due for others, and its attempt does not count."""
    worker = cs.Worker(store, grace=AT_ONCE)
    begun, may_end = threading.Event(), threading.Event()
    lost: list[bool] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        begun.set()
        assert may_end.wait(LONG)
        lost.append(run.lost)
        run.flow.state.n = 7
        run.complete()

    store.create(cs.FlowSnapshot("o", state=Order()))
    with running(worker, hangs=True):
        assert begun.wait(LONG)

    order = store.get_one("o", Order)
    assert (order.attempts, order.owner, order.status.name) == (0, None, "CREATED")
    (order,) = store.claim_due(Order)
    assert order.attempts == 1
    may_end.set()
    until(lambda: lost)
    assert lost == [True]
    assert store.get_one("o", Order).state.n == 0


@pytest.mark.anyio
async def test_async_flows_run_to_their_end(astore: cs.AsyncStore) -> None:
    """The same in tasks, under asyncio and trio."""
    worker = cs.AsyncWorker(astore, concurrency=3)

    @worker.handles(Order)
    async def handle(run: cs.AsyncRun[Order]) -> None:
        await anyio.lowlevel.checkpoint()
        run.flow.state.n += 1
        if run.flow.position.current:
            run.complete()
        else:
            run.next()

    for number in range(5):
        await astore.create(cs.FlowSnapshot(f"o-{number}", state=Order()))

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await until_async(lambda: worker.tally.runs["ok"] == 10)
            await astore.create(cs.FlowSnapshot("later", state=Order()))
            await until_async(lambda: worker.tally.runs["ok"] == 12)
            worker.stop()

    assert await astore.count_flows(status=cs.FlowStatus.COMPLETED) == 6


@pytest.mark.anyio
async def test_stopping_cancels_and_gives_back(astore: cs.AsyncStore) -> None:
    """An async handler is cancelled after the grace; its attempt does not count."""
    worker = cs.AsyncWorker(astore, grace=AT_ONCE)
    began = anyio.Event()

    @worker.handles(Order)
    async def handle(run: cs.AsyncRun[Order]) -> None:
        run.flow.state.n = 7
        began.set()
        await anyio.sleep_forever()

    await astore.create(cs.FlowSnapshot("o", state=Order()))
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await began.wait()
            worker.stop()

    order = await astore.get_one("o", Order)
    assert (order.attempts, order.owner, order.state.n) == (0, None, 0)
    assert worker.tally.runs == {"handed back": 1}


# one store: what is decided above it ----------------------------------------------------------------


@ONE_STORE
def test_within_the_grace_a_handler_may_end(store: cs.Store) -> None:
    """Stopping waits for it, and commits it."""
    worker = cs.Worker(store, grace=EVENTUALLY)
    begun, may_end = threading.Event(), threading.Event()

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        begun.set()
        assert may_end.wait(LONG)
        run.complete()

    store.create(cs.FlowSnapshot("o", state=Order()))
    with running(worker):
        assert begun.wait(LONG)
        worker.stop()
        assert "stopping" in repr(worker)
        may_end.set()

    assert status_of(store) == "COMPLETED"


def test_a_gate_lets_one_run_alone() -> None:
    """It waits for those that run, and holds the others back until it has ended."""
    gate = Gate()
    assert gate.enter(alone=False)
    assert not gate.enter(alone=True)
    gate.want(1)
    assert not gate.enter(alone=False)
    gate.leave()
    assert gate.enter(alone=True)
    gate.want(-1)
    assert not gate.enter(alone=False)
    assert not gate.enter(alone=True, impatient=True)
    gate.leave()
    assert gate.enter(alone=False)


def test_a_gate_does_not_wait_for_long_handlers() -> None:
    """A flow that has waited long enough runs beside others, and one that was alone long enough lets them in."""
    now = [0.0]
    gate = Gate(lambda: now[0])
    assert gate.enter(alone=False)
    assert gate.enter(alone=True, impatient=True)
    assert gate.enter(alone=False)
    for _ in range(3):
        gate.leave()

    assert gate.enter(alone=True)
    now[0] += LONGEST_WAIT / 2
    assert not gate.enter(alone=False)
    now[0] += LONGEST_WAIT
    assert gate.enter(alone=False)
    gate.leave()
    assert gate.enter(alone=False)


@ONE_STORE
def test_a_flow_that_may_have_killed_its_process_runs_alone(store: cs.Store) -> None:
    """Others run before it and after it, not beside it."""
    for number in range(6):
        store.create(cs.FlowSnapshot(f"o-{number}", state=Order()))

    died = store.claim("o-0", Order, lease=SOON)
    until(lambda: len(store.query_due(only="expired")) == 1)
    del died
    worker = cs.Worker(store, concurrency=4)
    running_now: list[str] = []
    beside: list[int] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        running_now.append(run.flow.flow_id)
        for _ in range(20):
            if "o-0" in running_now:
                beside.append(len(running_now))

            store.get("o-0")

        running_now.remove(run.flow.flow_id)
        run.complete()

    with running(worker):
        until(lambda: store.count_flows(status=cs.FlowStatus.COMPLETED) == 6)

    assert set(beside) == {1}


@ONE_STORE
@pytest.mark.anyio
async def test_an_async_flow_that_may_have_killed_its_process_runs_alone(
    astore: cs.AsyncStore,
) -> None:
    """The same in tasks."""
    for number in range(6):
        await astore.create(cs.FlowSnapshot(f"o-{number}", state=Order()))

    died = await astore.claim("o-0", Order, lease=SOON)
    while not len(await astore.query_due(only="expired")):
        await anyio.lowlevel.checkpoint()

    del died
    worker = cs.AsyncWorker(astore, concurrency=4)
    running_now: set[str] = set()
    beside: dict[str, int] = {}

    @worker.handles(Order)
    async def handle(run: cs.AsyncRun[Order]) -> None:
        running_now.add(run.flow.flow_id)
        for _ in range(5):
            beside[run.flow.flow_id] = max(beside.get(run.flow.flow_id, 0), len(running_now))
            await anyio.lowlevel.checkpoint()

        running_now.remove(run.flow.flow_id)
        run.complete()

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await until_async(lambda: worker.tally.runs["ok"] == 6)
            worker.stop()

    assert beside["o-0"] == 1
    assert max(beside.values()) > 1


@ONE_STORE
def test_claims_are_extended_while_a_handler_runs(store: cs.Store) -> None:
    """A handler may take many times its lease; no other worker gets its flow."""
    worker = cs.Worker(store, lease=timedelta(milliseconds=300))
    ends: list[Any] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        first = store.get_one("o").due_at
        assert first is not None

        def is_extended() -> bool:
            due_at = store.get_one("o").due_at
            return due_at is not None and due_at > first + timedelta(seconds=1)

        until(is_extended)
        ends.append(store.claim_due(Order))
        run.complete()

    store.create(cs.FlowSnapshot("o", state=Order()))
    with running(worker):
        until(lambda: ends)

    assert ends == [[]]
    assert status_of(store) == "COMPLETED"


def test_claims_are_extended_together(store: cs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit renews those of several long runs; if one of them is lost, the others are renewed."""
    worker = cs.Worker(store, lease=timedelta(milliseconds=600))
    may_end = threading.Event()
    alone: list[str] = []
    one_by_one = store.extend

    def extend(flow: cs.FlowSnapshot[Any], lease: timedelta | None = None) -> None:
        alone.append(flow.flow_id)
        one_by_one(flow, lease)

    monkeypatch.setattr(store, "extend", extend)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        until(lambda: run.lost or may_end.is_set())
        run.complete()

    for number in range(3):
        store.create(cs.FlowSnapshot(f"o-{number}", state=Order()))

    def ends() -> list[Any]:
        return [store.get_one(f"o-{number}").due_at for number in range(3)]

    with running(worker):
        until(lambda: worker.in_flight == 3)
        first = ends()
        until(lambda: all(now > then for now, then in zip(ends(), first, strict=True)))
        assert alone == []
        store.delete("o-0")
        until(lambda: worker.tally.runs["lost"] == 1)
        after = store.get_one("o-1").due_at
        assert after is not None
        until(lambda: (store.get_one("o-1").due_at or after) > after)
        may_end.set()

    assert store.count_flows(status=cs.FlowStatus.COMPLETED) == 2


@ONE_STORE
def test_a_blocking_handler_sees_that_its_claim_is_lost(store: cs.Store) -> None:
    """`run.lost` becomes true at the next extension; nothing of the run is committed."""
    worker = cs.Worker(store, lease=timedelta(milliseconds=300))
    seen: list[bool] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        order = store.get_one("o", Order)
        order.due_at = None
        store.update(order)  # which ends the claim of this run
        seen.append(until(lambda: run.lost))
        run.complete()

    store.create(cs.FlowSnapshot("o", state=Order()))
    with running(worker):
        until(lambda: worker.tally.runs["lost"])

    assert seen == [True]
    assert status_of(store) == "CREATED"


@ONE_STORE
@pytest.mark.anyio
async def test_an_async_handler_is_cancelled_when_its_claim_is_lost(
    astore: cs.AsyncStore,
) -> None:
    """At the next extension; nothing of the run is committed."""
    worker = cs.AsyncWorker(astore, lease=timedelta(milliseconds=300))

    @worker.handles(Order)
    async def handle(run: cs.AsyncRun[Order]) -> None:
        order = await astore.get_one("o", Order)
        order.due_at = None
        await astore.update(order)
        run.complete()
        await anyio.sleep_forever()

    await astore.create(cs.FlowSnapshot("o", state=Order()))
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await until_async(lambda: worker.tally.runs["lost"])
            worker.stop()

    assert (await astore.get_one("o")).status is cs.FlowStatus.CREATED


@ONE_STORE
def test_a_handler_that_hangs_fails_its_flow(store: cs.Store) -> None:
    """After the time limit the attempt has failed; other flows run on meanwhile, and the worker ends."""
    no_delay = cs.Retry(attempts=2, first=AT_ONCE, most=AT_ONCE)
    worker = cs.Worker(store, concurrency=1)
    may_end = threading.Event()
    begun: list[int] = []

    @worker.handles(Order, retry=no_delay, time_limit=timedelta(milliseconds=50))
    def hang(run: cs.Run[Order]) -> None:
        begun.append(run.attempt)
        may_end.wait(2 * LONG)
        run.complete()

    @worker.handles(None)
    def handle(run: cs.Run[Any]) -> None:
        run.complete()

    store.create(cs.FlowSnapshot("o", state=Order()))
    store.create(cs.FlowSnapshot("good", state=None))
    try:
        with running(worker, hangs=True):
            until(lambda: status_of(store) == "FAILED")
            until(lambda: status_of(store, "good") == "COMPLETED")
    finally:
        may_end.set()

    order = store.get_one("o")
    assert begun == [1, 2]
    assert order.error == (
        "attempt 2 of 2 at 0: TimeoutError: the handler exceeded its time limit of 0.05 s"
    )


@ONE_STORE
@pytest.mark.anyio
async def test_an_async_handler_that_hangs_fails_its_flow(astore: cs.AsyncStore) -> None:
    """It is cancelled at its time limit, and the attempt counts."""
    worker = cs.AsyncWorker(astore, retry=cs.Retry(attempts=1))

    @worker.handles(Order, time_limit=SOON)
    async def hang(run: cs.AsyncRun[Order]) -> None:
        run.complete()
        await anyio.sleep_forever()

    await astore.create(cs.FlowSnapshot("o", state=Order()))
    with anyio.fail_after(LONG):
        assert await worker.run_until_idle() == 1

    order = await astore.get_one("o")
    assert order.status is cs.FlowStatus.FAILED
    assert order.error is not None
    assert "TimeoutError" in order.error


@ONE_STORE
def test_an_outage_does_not_end_the_worker(
    store: cs.Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It continues by itself, and logs one line for each change of state."""
    worker = cs.Worker(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.complete()

    faults = Outage(store)
    with running(worker):
        faults.begin()
        until(lambda: faults.refused > 3)
        faults.end()
        store.create(cs.FlowSnapshot("o", state=Order()))
        until(lambda: status_of(store) == "COMPLETED")

    texts = [
        record.getMessage() for record in caplog.records if record.name == "catga_store.worker"
    ]
    assert len(texts) == 2
    assert texts[0].startswith("the store cannot be reached, and the worker keeps trying: ")
    assert texts[1].startswith("the store can be reached again after ")


class Outage:
    """Lets operations of a store fail, as if it could not be reached."""

    def __init__(self, store: cs.Store) -> None:
        self.refused = 0
        self._is_on = False
        store._watch = self

    def begin(self) -> None:
        """From now on nothing reaches the store; a call that waits is ended."""
        self._is_on = True

    def end(self) -> None:
        """From now on everything does."""
        self._is_on = False

    def __call__(self, _store: object, conversation: Any) -> Any:
        result: Any = None
        while True:
            if self._is_on:
                self.refused += 1
                conversation.close()
                message = "no route to the store"
                raise cs.StoreUnavailableError(message)

            try:
                request = conversation.send(result)
            except StopIteration as end:
                return end.value

            result = yield request


@ONE_STORE
@pytest.mark.anyio
async def test_cancelling_run_gives_back(astore: cs.AsyncStore) -> None:
    """A service that cancels its tasks loses no attempt and no lease."""
    worker = cs.AsyncWorker(astore)
    began = anyio.Event()

    @worker.handles(Order)
    async def handle(run: cs.AsyncRun[Order]) -> None:
        began.set()
        await anyio.sleep_forever()

    await astore.create(cs.FlowSnapshot("o", state=Order()))
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await began.wait()
            tasks.cancel_scope.cancel()

    order = await astore.get_one("o")
    assert (order.attempts, order.owner) == (0, None)


@pytest.mark.anyio
async def test_once_and_retries_of_async_handlers(astore: cs.AsyncStore) -> None:
    """A result is kept over a failure; an async function is awaited, a plain one called."""
    worker = cs.AsyncWorker(astore, retry=cs.Retry(attempts=5, first=AT_ONCE))
    calls: list[str] = []

    async def charge(amount: int) -> int:
        await anyio.lowlevel.checkpoint()
        calls.append("charge")
        return amount

    def note() -> str:
        calls.append("note")
        return "noted"

    @worker.handles(Order)
    async def handle(run: cs.AsyncRun[Order]) -> None:
        run.flow.state.n = await run.once("charge", charge, 42)
        assert await run.once("note", note) == "noted"
        if run.attempt < 3:
            raise OSError

        run.complete()

    @worker.on_failure(Order)
    async def failed(run: cs.AsyncRun[Order], error: Exception) -> None:
        pytest.fail("it is not given up")

    await astore.create(cs.FlowSnapshot("o", state=Order()))
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await until_async(lambda: worker.tally.runs["ok"])
            worker.stop()

    assert calls == ["charge", "note"]
    assert (await astore.get_one("o", Order)).state.n == 42


@ONE_STORE
def test_a_closed_store_ends_the_worker(store: cs.Store) -> None:
    """The error of the claim is raised by `run`."""
    worker = cs.Worker(store)
    worker.handles(Order)(print)
    store.close()
    with pytest.raises(cs.StoreClosedError):
        worker.run()
