"""Calls that wait: `claim_due(wait=)`, `wait_due`, `watch` and `watch_log`, on every store and both APIs.

Each wait has a deadline. Where a store has hints, its poll interval is far longer than that, so a hint or a
time that was seen coming ends the wait; elsewhere it is short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio
import pytest
from marks import ONE_STORE
from waiting import LONG
from waiting import until
from waiting import until_async

import catga_store as cs
from catga_store.testing.clock import ManualClock

SOON = timedelta(milliseconds=50)
LONGEST = timedelta(seconds=LONG)
NOTHING = timedelta(0)
HAS_HINTS = ("memory:", "sqlite:", "redis", "nats:")
"""On these stores every commit wakes those who wait for it, so nothing here depends on looking."""


def options_for(url: str) -> dict[str, Any]:
    """The options of a store whose waits end in time."""
    return {"poll_interval": timedelta(hours=1) if url.startswith(HAS_HINTS) else SOON}


@dataclass
class Order:
    """A state with a type."""


@dataclass
class Invoice:
    """Another one."""


@pytest.fixture
def store(open_more: Callable[..., cs.Store], store_url: str) -> cs.Store:
    """Open the store of this test; where there are no hints, it looks often."""
    return open_more(**options_for(store_url))


@pytest.fixture
def beside() -> Any:
    """Run a call in a thread of its own; the result has a deadline."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def result(waiting: Future[Any]) -> Any:
    """Return what a call in a thread returned."""
    return waiting.result(LONG)


def is_waiting(store: cs.Store) -> Callable[[], bool]:
    """Whether a call on this store sleeps now."""
    return lambda: any(waiter.notify for waiter in store._context.waiters._waiters)


# claim_due(wait=) -----------------------------------------------------------------------------------


def test_what_is_due_is_claimed_at_once(store: cs.Store) -> None:
    """A claim with `wait` is a claim if there is something."""
    store.create(cs.FlowSnapshot("f", state={}))
    (flow,) = store.claim_due(wait=LONGEST)
    assert flow.flow_id == "f"
    assert flow.attempts == 1


def test_nothing_due_is_an_empty_list_after_the_wait(store: cs.Store) -> None:
    """The wait ends by itself."""
    assert store.claim_due(wait=timedelta(milliseconds=120)) == []
    assert store.claim_due(wait=NOTHING) == []


def test_a_new_flow_ends_the_wait(store: cs.Store, beside: Any) -> None:
    """What becomes due while a worker waits is claimed by it."""
    waiting = beside(store.claim_due, wait=LONGEST)
    until(is_waiting(store))
    store.create(cs.FlowSnapshot("f", state={}))
    (flow,) = result(waiting)
    assert flow.flow_id == "f"


def test_a_pause_that_ends_ends_the_wait(store: cs.Store, clock: ManualClock, beside: Any) -> None:
    """A flow that is due later is claimed when its time has come."""
    store.create(cs.FlowSnapshot("f", state={}, due_at=clock.now + timedelta(hours=1)))
    waiting = beside(store.claim_due, wait=LONGEST)
    until(is_waiting(store))
    clock.advance(timedelta(minutes=59))
    assert not waiting.done()
    clock.advance(timedelta(minutes=1))
    (flow,) = result(waiting)
    assert flow.flow_id == "f"


def test_a_lease_that_ends_ends_the_wait(store: cs.Store, clock: ManualClock, beside: Any) -> None:
    """A flow whose worker is gone is claimed when its lease is over."""
    store.create(cs.FlowSnapshot("f", state={}))
    store.claim_due(lease=timedelta(seconds=30))
    waiting = beside(store.claim_due, wait=LONGEST)
    until(is_waiting(store))
    clock.advance(timedelta(seconds=30))
    (flow,) = result(waiting)
    assert flow.attempts == 2


def test_a_release_ends_the_wait(store: cs.Store, beside: Any) -> None:
    """A flow that is given back is claimed by who waits."""
    store.create(cs.FlowSnapshot("f", state={}))
    (first,) = store.claim_due()
    waiting = beside(store.claim_due, wait=LONGEST)
    until(is_waiting(store))
    store.release(first)
    (flow,) = result(waiting)
    assert flow.flow_id == "f"


def test_the_last_completion_ends_the_wait_for_the_parent(store: cs.Store, beside: Any) -> None:
    """A parent is claimed when its children have completed."""
    with store.begin() as session:
        parent = cs.FlowSnapshot("parent", state={})
        session.add(parent)
        session.suspend(parent, cs.WaitCondition("wait", flow_ids=["child"]))

    waiting = beside(store.claim_due, wait=LONGEST)
    until(is_waiting(store))
    store.complete_child("wait", "child")
    (flow,) = result(waiting)
    assert flow.flow_id == "parent"
    assert flow.wait_condition.outcome is cs.WaitOutcome.SATISFIED


def test_a_deadline_ends_the_wait_for_the_parent(
    store: cs.Store, clock: ManualClock, beside: Any
) -> None:
    """A parent is claimed when the deadline of its wait has passed."""
    with store.begin() as session:
        parent = cs.FlowSnapshot("parent", state={})
        session.add(parent)
        wait = cs.WaitCondition("wait", flow_ids=["child"], timeout=timedelta(minutes=1))
        session.suspend(parent, wait)

    waiting = beside(store.claim_due, wait=LONGEST)
    until(is_waiting(store))
    clock.advance(timedelta(minutes=1))
    (flow,) = result(waiting)
    assert flow.wait_condition.outcome is cs.WaitOutcome.TIMED_OUT


def test_other_types_do_not_end_the_wait(store: cs.Store, beside: Any) -> None:
    """A worker of some types waits for flows of these; several types may be waited for."""
    waiting = beside(store.claim_due, [Order, "Invoice"], wait=LONGEST)
    until(is_waiting(store))
    store.create(cs.FlowSnapshot("plain", state={}))
    store.create(cs.FlowSnapshot("f", state=Invoice()))
    (flow,) = result(waiting)
    assert flow.flow_id == "f"


def test_a_session_tracks_what_it_has_waited_for(store: cs.Store, beside: Any) -> None:
    """`session.claim_due` waits, too."""

    def work() -> None:
        with store.begin() as session:
            (flow,) = session.claim_due(wait=LONGEST)
            flow.state["n"] = 1

    waiting = beside(work)
    until(is_waiting(store))
    store.create(cs.FlowSnapshot("f", state={}))
    result(waiting)
    assert store.get_one("f").state == {"n": 1}


def test_a_session_that_has_the_due_flow_does_not_stop_waiting_for_others(
    store: cs.Store, beside: Any
) -> None:
    """What a session cannot claim, because it has it, is no reason not to wait."""
    store.create(cs.FlowSnapshot("mine", state={}))

    def work() -> list[str]:
        with store.session() as session:
            session.get_one("mine")
            return [flow.flow_id for flow in session.claim_due(wait=LONGEST)]

    waiting = beside(work)
    until(is_waiting(store))
    store.create(cs.FlowSnapshot("other", state={}))
    assert result(waiting) == ["other"]


def test_of_many_waiters_each_gets_a_flow_of_its_own(store: cs.Store, beside: Any) -> None:
    """As many flows as workers: nothing is claimed twice, and nothing is left."""
    waiting = [beside(store.claim_due, wait=LONGEST) for _ in range(4)]
    until(lambda: len(store._context.waiters._waiters) == 4)
    with store.begin() as session:
        for number in range(4):
            session.add(cs.FlowSnapshot(f"f{number}", state={}))

    claimed = [flow.flow_id for one in waiting for flow in result(one)]
    assert sorted(claimed) == ["f0", "f1", "f2", "f3"]


# wait_due and watch ---------------------------------------------------------------------------------


def test_wait_due(store: cs.Store, clock: ManualClock, beside: Any) -> None:
    """It says whether something is due now, or waits until something is; it claims nothing."""
    assert not store.wait_due(timeout=NOTHING)
    store.create(cs.FlowSnapshot("f", state={}, due_at=clock.now + timedelta(hours=1)))
    assert not store.wait_due(timeout=NOTHING)
    assert not store.wait_due(timeout=timedelta(milliseconds=20))
    waiting = beside(store.wait_due, cs.RAW, timeout=LONGEST)
    until(is_waiting(store))
    clock.advance(timedelta(hours=1))
    assert result(waiting)
    assert store.wait_due(timeout=NOTHING)
    assert not store.wait_due("order", timeout=NOTHING)
    assert store.get_one("f").owner is None


def test_what_expires_before_the_next_look_is_due_until_then(
    open_more: Callable[..., cs.Store], clock: ManualClock, beside: Any
) -> None:
    """A wait looks one poll interval ahead; a flow that will have expired by then is still seen."""
    store = open_more(poll_interval=timedelta(hours=1))
    minute = timedelta(minutes=1)
    now = cs.FlowSnapshot("now", state={}, expires_at=clock.now + 2 * minute)
    store.create(now)
    assert store.wait_due(timeout=LONGEST)
    store.delete(now)

    soon = clock.now + minute
    store.create(cs.FlowSnapshot("soon", state={}, due_at=soon, expires_at=soon + minute))
    waiting = beside(store.claim_due, lease=minute, wait=LONGEST)
    until(is_waiting(store))
    clock.advance(minute)
    (claimed,) = result(waiting)
    assert claimed.flow_id == "soon"


def test_watch(store: cs.Store, beside: Any) -> None:
    """It returns the next version of a flow, at once if there is one already."""
    assert store.watch("f", after=0, timeout=NOTHING) is None
    waiting = beside(store.watch, "f", after=0, timeout=LONGEST)
    until(is_waiting(store))
    flow = cs.FlowSnapshot("f", state={"n": 0})
    store.create(flow)
    assert result(waiting).state == {"n": 0}
    assert store.watch("f", after=1, timeout=timedelta(milliseconds=20)) is None

    waiting = beside(store.watch, "f", after=1, timeout=LONGEST)
    until(is_waiting(store))
    flow.state["n"] = 1
    store.update(flow)
    assert result(waiting).state == {"n": 1}
    assert store.watch("f", after=1, timeout=NOTHING).version == 2


def test_watch_log(store: cs.Store, beside: Any) -> None:
    """It returns the entries after one that was seen, at once if there are some already."""
    assert store.watch_log("f", after=0, timeout=NOTHING) == []
    waiting = beside(store.watch_log, "f", "events", after=0, timeout=LONGEST)
    until(is_waiting(store))
    store.append("f", {"n": 1})
    store.append("f", {"n": 2}, log="events")
    assert [entry.body for entry in result(waiting)] == [{"n": 2}]
    store.append("f", {"n": 3}, log="events")
    assert [entry.body for entry in store.watch_log("f", "events", after=1, timeout=LONGEST)] == [
        {"n": 3}
    ]
    assert store.watch_log("f", "events", after=2, timeout=timedelta(milliseconds=20)) == []
    waiting = beside(store.watch_log, "f", "events", after=2, timeout=LONGEST)
    until(is_waiting(store))
    store.append("f", b"4", log="events")
    (entry,) = result(waiting)
    assert (entry.sequence, entry.body) == (3, b"4")


# what ends a wait -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.claim_due(wait=LONGEST),
        lambda store: store.wait_due(timeout=LONGEST),
        lambda store: store.watch("f", after=0, timeout=LONGEST),
    ],
    ids=["claim_due", "wait_due", "watch"],
)
def test_closing_the_store_ends_the_wait(
    store: cs.Store, beside: Any, call: Callable[[cs.Store], Any]
) -> None:
    """A call that waits raises what any other call on a closed store raises."""
    waiting = beside(call, store)
    until(is_waiting(store))
    store.close()
    with pytest.raises(cs.StoreClosedError):
        result(waiting)

    assert not store._context.waiters._waiters


@ONE_STORE
@pytest.mark.parametrize("wrong", [timedelta(seconds=-1), 5, None, timedelta(days=40_000)])
def test_durations_are_checked(store: cs.Store, wrong: Any) -> None:
    """`wait`, `timeout` and the poll interval are durations like all others."""
    with pytest.raises(cs.UsageError, match="wait: expected"):
        store.claim_due(wait=wrong)

    with pytest.raises(cs.UsageError, match="timeout: expected"):
        store.wait_due(timeout=wrong)

    with pytest.raises(cs.UsageError, match="timeout: expected"):
        store.watch("f", after=0, timeout=wrong)

    with pytest.raises(cs.UsageError, match="poll_interval: expected"):
        cs.MemoryStore(poll_interval=wrong)


@ONE_STORE
def test_other_arguments_are_checked(store: cs.Store) -> None:
    """What claims and reads refuse is refused, too, before anything is waited for."""
    with pytest.raises(cs.UsageError, match="after: expected a version"):
        store.watch("f", after="1", timeout=LONGEST)  # type: ignore[call-overload]

    with pytest.raises(cs.InvalidIdError):
        store.watch("", after=0, timeout=LONGEST)

    with pytest.raises(cs.UsageError, match="limit: expected"):
        store.claim_due(limit=0, wait=LONGEST)

    with pytest.raises(cs.UsageError, match="expected a duration longer than 0"):
        cs.MemoryStore(poll_interval=NOTHING)


# async ----------------------------------------------------------------------------------------------


async def sleeps(store: cs.AsyncStore) -> None:
    """Wait until a call on this store sleeps."""
    await until_async(lambda: any(one.notify for one in store._context.waiters._waiters))


@pytest.mark.anyio
async def test_async_waits(open_more_async: Callable[..., cs.AsyncStore], store_url: str) -> None:
    """A task that waits lets others run, and is woken by what they commit."""
    store = open_more_async(**options_for(store_url))
    claimed: list[Any] = []

    async def work() -> None:
        claimed.extend(await store.claim_due(wait=LONGEST))

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await sleeps(store)
            await store.create(cs.FlowSnapshot("f", state={}))

        flow = await store.watch("f", after=1, timeout=LONGEST)

    assert [one.flow_id for one in claimed] == ["f"]
    assert flow is not None
    assert flow.version == 2


@pytest.mark.anyio
async def test_cancelled_waits(
    open_more_async: Callable[..., cs.AsyncStore], store_url: str
) -> None:
    """A wait is left at once when it is cancelled, and nothing is left of it."""
    store = open_more_async(**options_for(store_url))
    with anyio.fail_after(LONG):
        for call in (
            lambda: store.claim_due(wait=LONGEST),
            lambda: store.wait_due(timeout=LONGEST),
            lambda: store.watch("f", after=0, timeout=LONGEST),
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await sleeps(store)
                tasks.cancel_scope.cancel()

            assert not store._context.waiters._waiters


@pytest.mark.anyio
async def test_closing_an_async_store_ends_the_wait(
    open_more_async: Callable[..., cs.AsyncStore], store_url: str
) -> None:
    """As with a blocking one."""
    store = open_more_async(**options_for(store_url))
    ended: list[Exception] = []

    async def work() -> None:
        try:
            await store.claim_due(wait=LONGEST)
        except cs.StoreClosedError as error:
            ended.append(error)

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await sleeps(store)
            await store.close()

    assert len(ended) == 1


@ONE_STORE
def test_the_clock_is_listened_to_only_while_somebody_waits(
    store: cs.Store, clock: ManualClock, beside: Any
) -> None:
    """A clock holds no call that has ended."""
    before = threading.active_count()
    waiting = beside(store.wait_due, timeout=timedelta(milliseconds=30))
    until(lambda: clock.listeners or waiting.done())
    assert not result(waiting)
    assert not clock.listeners
    assert threading.active_count() <= before + 1
