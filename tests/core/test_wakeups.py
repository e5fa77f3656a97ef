"""How those who wait are woken: by one hint each, by times that were seen coming, and by nothing else.

The stores here are those of this process. Their poll interval is an hour unless a test says
otherwise, so what is not found by a hint or by its time is not found before the test's deadline.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import forks
import pytest
from waiting import LONG
from waiting import until
from waiting import until_async

import catga_store as cs
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.store_protocol import StoreProtocol
from catga_store.protocol.wakeups import CLAIM
from catga_store.protocol.wakeups import LOOK
from catga_store.protocol.wakeups import WATCH
from catga_store.protocol.wakeups import Hint
from catga_store.protocol.wakeups import Listen
from catga_store.protocol.wakeups import Waiter
from catga_store.protocol.wakeups import Wakeups
from catga_store.testing.clock import ManualClock
from catga_store.testing.hooks import wrap_protocol

HOUR = timedelta(hours=1)
LONGEST = timedelta(seconds=LONG)


class Counting:
    """A store protocol that notes the name of each request but `Listen`, which asks a store nothing."""

    def __init__(self, protocol: StoreProtocol) -> None:
        self.protocol = protocol
        self.names: list[str] = []

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """Count a request, and pass it on."""
        if not isinstance(request, Listen):
            self.names.append(type(request).__name__)

        return self.protocol.converse(request)


def counted(store: cs.Store | cs.AsyncStore) -> Counting:
    """Begin to count what a store is asked."""
    found: list[Counting] = []

    def wrap(protocol: StoreProtocol) -> StoreProtocol:
        found.append(Counting(protocol))
        return found[0]

    wrap_protocol(store, wrap)
    return found[0]


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Both embedded stores."""
    if request.param == "memory":
        return f"memory://{tmp_path.name}-{os.getpid()}"

    return f"sqlite:///{tmp_path}/flows.db"


@pytest.fixture
def open_one(url: str) -> Callable[..., cs.Store]:
    """Open a store of this process whose poll interval is too long to matter."""
    return partial(cs.open_store, url, poll_interval=HOUR)


def waiters(store: cs.Store | cs.AsyncStore) -> set[Waiter]:
    """The calls that wait on a store."""
    return set(store._context.waiters._waiters)


def sleepers(store: cs.Store | cs.AsyncStore) -> int:
    """How many calls sleep, and are not about to wake."""
    return sum(one.notify is not None and not one.is_woken for one in waiters(store))


@pytest.fixture
def many() -> Iterator[ThreadPoolExecutor]:
    """Threads for many calls that wait."""
    with ThreadPoolExecutor(200) as pool:
        yield pool


# how many are woken -----------------------------------------------------------------------------------


def test_one_due_flow_wakes_one_of_200(
    open_one: Callable[..., cs.Store], many: ThreadPoolExecutor
) -> None:
    """What 200 waiters ask because of one commit is what one of them asks."""
    with open_one() as store:
        asked = counted(store)
        waiting = [many.submit(store.claim_due, wait=LONGEST) for _ in range(200)]
        until(lambda: sleepers(store) == 200)
        before = len(asked.names)
        store.create(cs.FlowSnapshot("f", state={}))
        until(lambda: any(one.done() for one in waiting))
        until(lambda: sleepers(store) == 199)
        requests = asked.names[before + 1 :]
        assert len(requests) <= 8, requests
        store.close()
        claimed = [one.result(LONG) for one in waiting if one.exception(LONG) is None]
        assert [len(flows) for flows in claimed] == [1]


def test_a_time_wakes_one_of_many(many: ThreadPoolExecutor, clock: ManualClock) -> None:
    """When a pause ends that all have seen coming, one looks, and the others when it has claimed."""
    ticking = [clock.now]
    with cs.MemoryStore(clock=lambda: ticking[0], poll_interval=HOUR) as store:
        due_at = store.now() + timedelta(minutes=1)
        store.create(cs.FlowSnapshot("f", state={}, due_at=due_at))
        asked = counted(store)
        waiting = [many.submit(store.claim_due, wait=LONGEST) for _ in range(20)]
        until(lambda: sleepers(store) == 20)
        before = len(asked.names)
        ticking[0] = due_at
        for waiter in waiters(store):
            waiter.poke()  # as if a minute had passed

        until(lambda: any(one.done() for one in waiting))
        until(lambda: sleepers(store) == 19)
        assert len(asked.names[before:]) <= 8, asked.names[before:]


def test_an_idle_waiter_asks_once_for_each_interval() -> None:
    """That is 0.25 requests a second at most, with the default interval of 5 s."""
    with cs.MemoryStore(poll_interval=timedelta(milliseconds=50)) as store:
        asked = counted(store)
        assert store.claim_due(wait=timedelta(seconds=1)) == []
        assert len(asked.names) <= 2 + 1.25 * 20

    assert cs.MemoryStore()._context.settings.poll_interval == 5


def test_idle_waiters_share_their_looks(many: ThreadPoolExecutor) -> None:
    """Fifty that want the same do not look fifty times as often as one."""
    with cs.MemoryStore(poll_interval=timedelta(milliseconds=500)) as store:
        asked = counted(store)
        waiting = [many.submit(store.claim_due, wait=timedelta(seconds=2)) for _ in range(50)]
        assert [one.result(LONG) for one in waiting] == [[]] * 50
        # Two at the beginning each, and ten more if each of five intervals has a few that are close.
        assert len(asked.names) <= 2 * 50 + 50


def test_a_commit_costs_those_nothing_who_never_wait() -> None:
    """Without waiters no function of the wake-ups is called by any other operation."""
    called: set[str] = set()

    def note(frame: Any, _event: str, _argument: object) -> None:
        called.add(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}")

    with cs.MemoryStore() as store:
        flow = cs.FlowSnapshot("f", state={"n": 0})
        sys.setprofile(note)
        try:
            store.create(flow)
            store.update(flow)
            store.get("f")
            store.claim_due()
            store.complete_child("w", "c")
        finally:
            sys.setprofile(None)

    ours = ("catga_store.protocol.wakeups", "catga_store.protocol.hints")
    assert not [name for name in called if name.startswith(ours)]
    assert "catga_store.core.waiting.claim_due" in called


# hints that are lost, doubled and delayed -------------------------------------------------------------


def dropped(publish: Any, hints: list[Hint]) -> None:
    """Deliver nothing."""


def doubled(publish: Any, hints: list[Hint]) -> None:
    """Deliver everything three times."""
    for _ in range(3):
        publish(hints)


def late(publish: Any, hints: list[Hint]) -> None:
    """Deliver everything some time later."""
    threading.Timer(0.02, publish, [hints]).start()


def early(publish: Any, hints: list[Hint]) -> None:
    """Say that everything is due already, whatever it is."""
    publish([Hint(0) for _ in hints])


@pytest.mark.parametrize("delivery", [dropped, doubled, late, early])
def test_no_delivery_loses_or_doubles_work(
    many: ThreadPoolExecutor, delivery: Callable[[Any, list[Hint]], None]
) -> None:
    """Whatever becomes of hints, every flow is claimed once, at most a poll interval late."""
    options: dict[str, Any] = {"poll_interval": timedelta(milliseconds=100)}
    with cs.MemoryStore(**options) as store:
        wakeups: Wakeups = store._driver.protocol._wakeups  # type: ignore[attr-defined]
        publish = wakeups.publish
        wakeups.publish = lambda hints: delivery(publish, list(hints))  # type: ignore[method-assign]
        claimed: list[str] = []

        def work() -> None:
            while len(claimed) < 40:
                claimed.extend(
                    flow.flow_id for flow in store.claim_due(wait=timedelta(seconds=0.5))
                )

        workers = [many.submit(work) for _ in range(4)]
        for number in range(40):
            later = store.now() + timedelta(milliseconds=number % 3 * 20)
            store.create(cs.FlowSnapshot(f"f{number}", state={}, due_at=later))

        for worker in workers:
            worker.result(LONG)

        assert sorted(claimed) == sorted(f"f{number}" for number in range(40))


# times ------------------------------------------------------------------------------------------------


def test_a_pause_ends_on_time(open_one: Callable[..., cs.Store]) -> None:
    """By the system's clock: a worker wakes when the pause is over, and not before."""
    with open_one() as store:
        due_at = store.now() + timedelta(milliseconds=150)
        store.create(cs.FlowSnapshot("f", state={}, due_at=due_at))
        (flow,) = store.claim_due(wait=LONGEST)
        assert store.now() >= due_at
        store.release(flow, due_at=None)


def test_a_pause_that_begins_while_a_worker_sleeps(
    open_one: Callable[..., cs.Store], many: ThreadPoolExecutor
) -> None:
    """A commit that makes something due soon is no reason to look now, but then."""
    with open_one() as store:
        asked = counted(store)
        waiting = many.submit(store.claim_due, wait=LONGEST)
        until(lambda: sleepers(store) == 1)
        due_at = store.now() + timedelta(milliseconds=150)
        store.create(cs.FlowSnapshot("f", state={}, due_at=due_at))
        (flow,) = waiting.result(LONG)
        assert store.now() >= due_at
        assert flow.flow_id == "f"
        assert asked.names.count("Due") <= 4  # before it slept, and when it woke


def test_a_lease_that_is_cut_short(open_one: Callable[..., cs.Store], many: Any) -> None:
    """An extension may end a claim sooner than it would have ended."""
    with open_one() as store:
        store.create(cs.FlowSnapshot("f", state={}))
        (held,) = store.claim_due(lease=timedelta(hours=9))
        waiting = many.submit(store.claim_due, wait=LONGEST)
        until(lambda: sleepers(store) == 1)
        store.extend(held, timedelta(milliseconds=50))
        (flow,) = waiting.result(LONG)
        assert flow.attempts == 2


def test_a_manual_clock_wakes(
    open_one: Callable[..., cs.Store], clock: ManualClock, many: Any
) -> None:
    """Moving the clock wakes those who wait on its stores, however far it is moved."""
    with open_one(clock=clock) as store:
        store.create(cs.FlowSnapshot("f", state={}, due_at=clock.now + timedelta(days=3)))
        waiting = many.submit(store.claim_due, wait=LONGEST)
        until(lambda: sleepers(store) == 1)
        clock.advance(timedelta(days=3))
        (flow,) = waiting.result(LONG)
        assert flow.flow_id == "f"


# processes and forks ----------------------------------------------------------------------------------

ROUNDS = 20


def take_turns(path: str, role: str) -> int:
    """One process creates flows, each when the one before was claimed; the other claims them."""
    with cs.SQLiteStore(path, poll_interval=HOUR) as store:
        for number in range(ROUNDS):
            flow_id = f"f{number}"
            if role == "creates":
                store.create(cs.FlowSnapshot(flow_id, state={}))
                assert store.watch(flow_id, after=1, timeout=LONGEST) is not None
                assert store.watch_log(flow_id, after=0, timeout=LONGEST)
            else:
                (flow,) = store.claim_due(wait=LONGEST, lease=timedelta(hours=9))
                assert flow.flow_id == flow_id
                store.append(flow_id, {"claimed": True})

    return ROUNDS


def test_two_processes_on_sqlite_wake_each_other(tmp_path: Path) -> None:
    """No poll interval ends in time, so each commit was noticed by the other process."""
    path = str(tmp_path / "flows.db")
    assert forks.together(take_turns, [path, "creates"], [path, "claims"]) == [ROUNDS, ROUNDS]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_thread_waits(open_one: Callable[..., cs.Store], many: Any) -> None:
    """The child has no waiters, and its own are woken; the parent's go on waiting."""
    with open_one() as store:
        waiting = many.submit(store.claim_due, wait=LONGEST)
        until(lambda: sleepers(store) == 1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with ThreadPoolExecutor(1) as pool:
                    mine = pool.submit(store.watch, "child's", after=0, timeout=LONGEST)
                    until(lambda: sleepers(store) == 1)
                    store.create(cs.FlowSnapshot("child's", state={}, due_at=None))
                    status = 0 if mine.result(LONG) is not None else 2
            finally:
                os._exit(status)

        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        store.create(cs.FlowSnapshot("f", state={}))
        (flow,) = waiting.result(LONG)
        assert flow.flow_id == "f"


def test_an_interrupt_ends_the_wait(open_one: Callable[..., cs.Store]) -> None:
    """Ctrl-C is raised out of the call, and nothing is left of it."""
    with open_one() as store:

        def interrupt() -> None:
            until(lambda: sleepers(store) == 1)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            store.claim_due(wait=LONGEST)

        thread.join(LONG)
        assert not waiters(store)
        store.create(cs.FlowSnapshot("f", state={}))
        assert len(store.claim_due(wait=LONGEST)) == 1


def test_a_signal_handler_may_close_the_store(open_one: Callable[..., cs.Store]) -> None:
    """It runs in the thread that waits, and wakes it."""
    store = open_one()

    def signalled() -> None:
        until(lambda: sleepers(store) == 1)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: store.close())
    thread = threading.Thread(target=signalled)
    thread.start()
    try:
        with pytest.raises(cs.StoreClosedError):
            store.claim_due(wait=LONGEST)
    finally:
        thread.join(LONG)
        signal.signal(signal.SIGTERM, before)


@pytest.mark.anyio
async def test_tasks_are_woken_by_other_threads(
    open_one: Callable[..., cs.Store], url: str
) -> None:
    """A commit of a blocking store wakes a task that waits on an async one for the same records."""
    with open_one() as store:
        async with cs.open_async_store(url, poll_interval=HOUR) as waiting:
            claimed: list[Any] = []

            async def work() -> None:
                claimed.extend(await waiting.claim_due(wait=LONGEST))

            with anyio.fail_after(LONG):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work)
                    await until_async(lambda: sleepers(waiting) == 1)
                    await anyio.to_thread.run_sync(store.create, cs.FlowSnapshot("f", state={}))

            assert [flow.flow_id for flow in claimed] == ["f"]


# the waiters of one store -----------------------------------------------------------------------------


class Asleep(Waiter):
    """A waiter that counts as asleep, by a clock that stands still."""

    def __init__(self, wakeups: Wakeups, what: str = CLAIM, **options: Any) -> None:
        super().__init__(what, now_ms=lambda: 1000, seconds=LONG, interval=3600, **options)
        self.poked = 0
        self.notify = self.count
        self.join(wakeups)

    def count(self) -> None:
        """Count how often it is to look at its watch."""
        self.poked += 1


def woken(*several: Waiter) -> list[bool]:
    """Which of these have been woken."""
    return [one.is_woken for one in several]


def test_a_hint_wakes_one_of_each_kind() -> None:
    """One that claims and one that looks; a second hint wakes the next."""
    wakeups = Wakeups()
    first, second = Asleep(wakeups), Asleep(wakeups)
    looks, watches = Asleep(wakeups, LOOK), Asleep(wakeups, WATCH, flow_id="f")
    wakeups.publish([Hint(1000, "")])
    assert woken(first, second, looks, watches) == [True, False, True, False]
    wakeups.publish([Hint(1000, "")])
    assert woken(first, second, looks, watches) == [True, True, True, False]


def test_a_hint_wakes_who_wants_the_type() -> None:
    """Of a type that is not known, one of each group."""
    wakeups = Wakeups()
    orders, more_orders = Asleep(wakeups, types=("Order",)), Asleep(wakeups, types=("Order",))
    parcels, either = Asleep(wakeups, types=("Parcel",)), Asleep(wakeups, types=("Order", "Parcel"))
    wakeups.publish([Hint(1000, "Parcel")])
    assert woken(orders, more_orders, parcels, either) == [False, False, True, False]
    parcels.rested()
    wakeups.publish([Hint(1000)])
    assert woken(orders, more_orders, parcels, either) == [True, False, True, True]


def test_all_who_watch_a_flow_are_woken() -> None:
    """They do not take anything from each other."""
    wakeups = Wakeups()
    first, second = (Asleep(wakeups, WATCH, flow_id="f") for _ in range(2))
    other = Asleep(wakeups, WATCH, flow_id="g")
    wakeups.publish([Hint(flow_id="f")])
    assert woken(first, second, other) == [True, True, False]
    wakeups.look_again()
    assert woken(first, second, other) == [True, True, True]


def test_one_that_leaves_passes_on_what_has_woken_it() -> None:
    """A call that is cancelled before it has looked does not keep the work from others."""
    wakeups = Wakeups()
    first, second = Asleep(wakeups), Asleep(wakeups)
    wakeups.publish([Hint(1000, "")])
    first.leave()
    assert woken(second) == [True]


def test_one_that_has_looked_passes_nothing_on() -> None:
    """What it was woken by is done."""
    wakeups = Wakeups()
    first, second = Asleep(wakeups), Asleep(wakeups)
    wakeups.publish([Hint(1000, "")])
    assert first.rested()
    first.has_looked(is_more=True)
    first.leave()
    assert woken(second) == [False]


def test_one_that_leaves_in_the_middle_of_its_look_passes_on_too() -> None:
    """Its look has failed, or was cancelled: the work is still there."""
    wakeups = Wakeups()
    first, second = Asleep(wakeups), Asleep(wakeups)
    wakeups.publish([Hint(1000, "")])
    assert first.rested()
    first.leave()
    assert woken(second) == [True]


def test_a_hint_that_comes_twice_wakes_once() -> None:
    """By the commit itself, and by what watches the file; another revision of the flow is another hint."""
    wakeups = Wakeups()
    first, second, third = (Asleep(wakeups) for _ in range(3))
    wakeups.publish([Hint(1000, "", "f", 1, "a"), Hint(1000, "", "f", 1, "a")])
    assert woken(first, second, third) == [True, False, False]
    wakeups.publish([Hint(1000, "", "f", 1, "b")])
    assert woken(first, second, third) == [True, True, False]


def test_an_old_version_wakes_no_watcher() -> None:
    """Who has seen a version waits for a later one."""
    wakeups = Wakeups()
    watches = Asleep(wakeups, WATCH, flow_id="f", after=2)
    wakeups.publish([Hint(None, "", "f", 2)])
    assert woken(watches) == [False]
    wakeups.publish([Hint(None, "", "f", 3)])
    assert woken(watches) == [True]


def test_what_may_be_more_than_one_flow_is_passed_on() -> None:
    """One that claimed all it may wakes the next, until one finds nothing."""
    wakeups = Wakeups()
    first, second, third = (Asleep(wakeups) for _ in range(3))
    wakeups.look_again()
    assert woken(first, second, third) == [True, False, False]
    first.rested()
    first.has_looked(is_more=True)
    assert woken(second, third) == [True, False]
    second.rested()
    second.has_looked()
    second.leave()
    assert woken(third) == [False]


def test_one_sleeper_keeps_the_times() -> None:
    """It sleeps to the next time, the others to the end; when it leaves, another one does."""
    wakeups = Wakeups()
    first, second = Asleep(wakeups), Asleep(wakeups)
    wakeups.publish([Hint(3000, ""), Hint(2000, ""), Hint(2000, "")])
    assert first.seconds_left() == 1.0
    assert second.seconds_left() > 50
    before = second.poked
    first.leave()
    assert second.poked == before + 1
    assert second.seconds_left() == 1.0


def test_a_sooner_time_pokes_the_one_that_keeps_them() -> None:
    """It has to sleep less than it thought."""
    wakeups = Wakeups()
    first = Asleep(wakeups)
    wakeups.publish([Hint(3000, "")])
    assert first.seconds_left() == 2.0
    before = first.poked
    wakeups.publish([Hint(4000, "")])
    assert first.poked == before
    wakeups.publish([Hint(2000, "")])
    assert first.poked == before + 1
    assert first.seconds_left() == 1.0


def test_a_time_that_has_come_wakes_who_wants_the_type() -> None:
    """Of a type that is not known, one of each group."""
    for name, expected in (("Parcel", [False, True]), (None, [True, True])):
        wakeups = Wakeups()
        orders, parcels = Asleep(wakeups, types=("Order",)), Asleep(wakeups, types=("Parcel",))
        wakeups.publish([Hint(2000, name)])
        assert woken(orders, parcels) == [False, False]
        wakeups._wake_expected(1999)
        assert woken(orders, parcels) == [False, False]
        wakeups._wake_expected(2000)
        assert woken(orders, parcels) == expected


def test_what_is_due_later_than_the_next_look_is_left_to_that() -> None:
    """The times that are kept are few."""
    wakeups = Wakeups()
    first = Asleep(wakeups)
    wakeups.publish([Hint(1000 + 3_600_001, "")])
    assert first.seconds_left() > 50
    assert first.poked == 0


def test_many_times() -> None:
    """There is a limit to how many are kept; the first look after one that was not finds it."""
    wakeups = Wakeups()
    Asleep(wakeups)
    wakeups.publish([Hint(2000 + number, "") for number in range(5000)])
    assert len(wakeups._expected) == 1000
