"""What drives stores on servers, from asyncio, trio and blocking code, over a tiny store on Redis.

One file, slightly long: the same promises for every kind of caller.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import anyio
import forks
import pytest
import redis
import sniffio
from forks import UNMEASURED
from hypothesis import given
from hypothesis import strategies as st
from waiting import until
from waiting import until_async

import catga_store as cs
from catga_store.aio import AsyncStore
from catga_store.core.settings import Settings
from catga_store.drivers import portal
from catga_store.drivers.any_loop import AnyLoopDriver
from catga_store.drivers.asyncio_driver import AsyncioDriver
from catga_store.drivers.cancellation import OwnTask
from catga_store.drivers.cancellation import see_through
from catga_store.drivers.portal import PortalDriver
from catga_store.drivers.portal import TrioPortalDriver
from catga_store.drivers.portal import _Crossing
from catga_store.drivers.redis_asyncio import open_redis_link
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Steps
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe
from catga_store.testing.servers import RedisServer

SECONDS = 20.0


class TinyStore:
    """A store protocol whose commits count, in two exchanges; `Resolve` waits at a gate before it counts."""

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """`Commit`, `Resolve`: the count of an id. `Steps`: wait at a gate. `Ping`: a word."""
        if isinstance(request, Commit | Resolve):
            if isinstance(request, Resolve):
                yield one(("BLPOP", f"gate-{request.id}", 0))

            yield Pause(0)
            (count,) = yield one(("INCR", request.id))
            return count

        if isinstance(request, Steps):
            yield one(("BLPOP", f"gate-{request.flow_id}", 0))

        (word,) = yield one(("ECHO", "here"))
        return word


class TaskLink:
    """A link that cannot start requests without a task, as others may be."""

    def __init__(self, url: str) -> None:
        self.link = open_redis_link(url, SECONDS)
        self.perform = self.link.perform
        self.close = self.link.close


def one(words: tuple[Any, ...]) -> Pipe:
    """Ask one command."""
    return Pipe((Command(words, words[1].encode()),), True)


def commit(name: str) -> Commit:
    """Make a commit of nothing but its id."""
    return Commit(name, 0, (), None)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Run one server for the tests that leave it as it is."""
    with RedisServer() as running:
        yield running


@pytest.fixture(autouse=True)
def direct(server: RedisServer) -> Iterator[Any]:
    """Empty the server, and answer a blocking client of it."""
    with redis.Redis(port=server.port, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture(params=[open_redis_link, TaskLink])
def make_link(server: RedisServer, request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Make links that start requests themselves, and links that do not."""
    if request.param is TaskLink:
        return partial(TaskLink, server.url)

    return partial(open_redis_link, server.url, SECONDS)


@pytest.fixture
async def driver(make_link: Callable[[], Any]) -> AsyncIterator[AnyLoopDriver]:
    """Open a driver on the loop of this test."""
    driver = AnyLoopDriver(TinyStore(), make_link, SECONDS)
    yield driver
    await driver.close()


@pytest.fixture
def blocking(make_link: Callable[[], Any]) -> Iterator[PortalDriver]:
    """Open a driver for blocking code."""
    driver = PortalDriver(TinyStore(), make_link, SECONDS)
    yield driver
    driver.close()


async def until_blocked(direct: Any, number: int = 1) -> None:
    """Wait until that many connections wait at a gate."""
    await until_async(lambda: direct.info("clients")["blocked_clients"] == number)


# --- on an event loop -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_replies_and_failures(driver: AnyLoopDriver, server: RedisServer) -> None:
    """Reads and writes answer; what the store protocol raises is raised; the loop decides who drives."""
    assert await driver.ask(Ping()) == b"here"
    assert [await driver.ask(commit("a")) for _ in range(2)] == [1, 2]
    direct = TrioPortalDriver if sniffio.current_async_library() == "trio" else AsyncioDriver
    assert type(driver._driver) is direct

    class Refusing(TinyStore):
        def converse(self, request: Request[Any]) -> Conversation[Any]:
            yield from super().converse(request)
            raise cs.StoreUnavailableError("as it wishes")

    other = AnyLoopDriver(Refusing(), partial(open_redis_link, server.url, SECONDS), SECONDS)
    for request in (Ping(), commit("a")):
        with pytest.raises(cs.StoreUnavailableError, match="as it wishes"):
            await other.ask(request)

    await other.close()


@pytest.mark.anyio
async def test_a_read_is_left_at_once(driver: AnyLoopDriver, direct: Any) -> None:
    """A cancelled read does not wait for its reply, and the next request gets its own."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.ask, Steps("f", 0))
        await until_blocked(direct)
        tasks.cancel_scope.cancel()

    direct.rpush("gate-f", "go")  # nothing else opens it, and the caller does not wait
    assert await driver.ask(Ping()) == b"here"


@pytest.mark.anyio
async def test_a_write_is_seen_through(driver: AnyLoopDriver, direct: Any) -> None:
    """A cancelled write runs through all of its exchanges; its conversation has the reply."""
    settled: list[Any] = []

    def conversation() -> Conversation[None]:
        settled.append((yield from ask(Resolve("r", ()))))
        settled.append((yield from ask(commit("never"))))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.run, conversation())
        await until_blocked(direct)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(10):
                await anyio.lowlevel.checkpoint()

            direct.rpush("gate-r", "go")

    assert settled == [1]
    assert (direct.get("r"), direct.get("never")) == ("1", None)


@pytest.mark.anyio
async def test_cancelled_before_it_begins(driver: AnyLoopDriver, direct: Any) -> None:
    """A write in a scope that is cancelled already does not begin."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await driver.ask(commit("never"))

    assert scope.cancelled_caught
    assert direct.get("never") is None


@pytest.mark.anyio
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(min_value=0, max_value=5),
            st.none() | st.integers(min_value=0, max_value=12),
        ),
        min_size=1,
        max_size=10,
    )
)
async def test_a_storm_of_cancellations(  # noqa: C901  three kinds of tasks
    server: RedisServer, plan: list[tuple[bool, int, int | None]]
) -> None:
    """A write that was begun has settled what the store holds; one that was not left nothing."""
    driver = AnyLoopDriver(TinyStore(), partial(open_redis_link, server.url, SECONDS), SECONDS)
    run = str(next(_runs))
    settled: dict[str, int] = {}

    def conversation(name: str) -> Conversation[None]:
        settled[name] = yield commit(name)

    async def work(name: str, reads: bool, after: int) -> None:
        for _ in range(after):
            await anyio.lowlevel.checkpoint()

        if reads:
            assert await driver.ask(Ping()) == b"here"
        else:
            await driver.run(conversation(name))

    async def cancel(scope: anyio.CancelScope, after: int) -> None:
        for _ in range(after):
            await anyio.lowlevel.checkpoint()

        scope.cancel()

    async def scoped(number: int, reads: bool, after: int, cancelled: int | None) -> None:
        with anyio.CancelScope() as scope:
            if cancelled is not None:
                tasks.start_soon(cancel, scope, cancelled)

            await work(f"{run}-{number}", reads, after)

    async with anyio.create_task_group() as tasks:
        for number, planned in enumerate(plan):
            tasks.start_soon(scoped, number, *planned)

    await driver.close()
    with redis.Redis(port=server.port) as client:
        for number, (reads, _, cancelled) in enumerate(plan):
            name = f"{run}-{number}"
            held = client.get(name)
            assert held == (b"1" if settled.get(name) == 1 else None)
            assert reads or cancelled is not None or held == b"1"


_runs = iter(range(1 << 30))


@pytest.mark.anyio
async def test_a_store_belongs_to_one_loop(make_link: Callable[[], Any]) -> None:
    """In another loop an `AsyncStore` is refused before its driver is asked."""
    driver = AnyLoopDriver(TinyStore(), make_link, SECONDS)
    store = AsyncStore(driver, Settings())
    await store.ping()
    backend = sniffio.current_async_library()
    with pytest.raises(cs.UsageError, match="a different event loop"):
        await anyio.to_thread.run_sync(partial(anyio.run, store.ping, backend=backend))

    await store.close()


@pytest.mark.anyio
async def test_forgotten_driver_closes_its_link(make_link: Callable[[], Any], direct: Any) -> None:
    """A driver that is collected without being closed closes its connection."""
    before = len(direct.client_list())
    driver = AnyLoopDriver(TinyStore(), make_link, SECONDS)
    await driver.ask(Ping())
    assert len(direct.client_list()) == before + 1
    del driver
    gc.collect()
    await until_async(lambda: len(direct.client_list()) == before)


# --- what only asyncio does to its tasks ------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "twice", "timeout"])
def test_asyncio_cancels_in_its_own_ways(
    make_link: Callable[[], Any], direct: Any, how: str
) -> None:
    """`Task.cancel` and `asyncio.timeout` wait for the end of a write, then continue."""
    settled: list[int] = []

    def conversation() -> Conversation[None]:
        settled.append((yield Resolve("r", ())))

    async def main() -> None:
        driver = AsyncioDriver(TinyStore(), make_link, SECONDS)
        ready = asyncio.get_running_loop().create_future()

        async def write() -> None:
            if how == "timeout":
                async with asyncio.timeout(None) as limit:
                    ready.set_result(limit)
                    await driver.run(conversation())
            else:
                await driver.run(conversation())

        task = asyncio.create_task(write())
        await until_blocked(direct)
        if how == "timeout":
            ready.result().reschedule(0)
        else:
            task.cancel()

        for turn in range(10):
            await asyncio.sleep(0)
            if how == "twice" and turn == 5:
                task.cancel()

        assert not task.done()
        direct.rpush("gate-r", "go")
        with pytest.raises(TimeoutError if how == "timeout" else asyncio.CancelledError):
            await task

        await driver.close()

    asyncio.run(main())
    assert settled == [1]


@pytest.mark.parametrize("times", [1, 2])
def test_a_write_that_fails_after_it_was_cancelled(
    make_link: Callable[[], Any], direct: Any, times: int
) -> None:
    """Its conversation has the failure; the caller continues with the cancellation."""
    settled: list[BaseException] = []

    def conversation() -> Conversation[None]:
        try:
            yield Resolve("r", ())
        except ReplyLostError as error:
            settled.append(error)

    async def main() -> None:
        driver = AsyncioDriver(TinyStore(), make_link, SECONDS)
        task = asyncio.create_task(driver.run(conversation()))
        await until_blocked(direct)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)

        direct.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(asyncio.CancelledError):
            await task

        await driver.close()

    asyncio.run(main())
    assert len(settled) == 1


class SlowLink(TaskLink):
    """A link that closes when it may, and then fails on request."""

    def __init__(self, url: str, failure: Exception | None = None) -> None:
        super().__init__(url)
        self.closing, self.may_close = asyncio.Event(), asyncio.Event()
        self.failure = failure
        self.close = self.close_slowly

    async def close_slowly(self) -> None:
        """Close once it may."""
        self.closing.set()
        await self.may_close.wait()
        await self.link.close()
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("failure", [None, OSError("as it wishes")])
def test_closing_is_seen_through(
    server: RedisServer, direct: Any, failure: Exception | None
) -> None:
    """Cancelled meanwhile, it closes the connection; a failure is raised first."""

    async def main() -> None:
        before = len(direct.client_list())
        link = SlowLink(server.url, failure)
        driver = AsyncioDriver(TinyStore(), lambda: link, SECONDS)
        assert await driver.ask(Ping()) == b"here"
        task = asyncio.create_task(driver.close())
        await link.closing.wait()
        task.cancel()
        await asyncio.sleep(0)
        link.may_close.set()
        with pytest.raises(asyncio.CancelledError if failure is None else OSError):
            await task

        await until_async(lambda: len(direct.client_list()) == before)

    asyncio.run(main())


def test_a_driver_that_was_never_used_is_closed(make_link: Callable[[], Any], direct: Any) -> None:
    """Nothing was opened for it, and nothing is."""
    before = len(direct.client_list())
    asyncio.run(AsyncioDriver(TinyStore(), make_link, SECONDS).close())
    assert len(direct.client_list()) == before


@pytest.mark.parametrize("waiting", [False, True])
def test_request_seen_through_is_cancelled_itself(waiting: bool) -> None:
    """Then there is no reply beside the cancellation; the caller is cancelled."""

    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(see_through(future))
        await asyncio.sleep(0)
        if waiting:
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()

        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_request_with_a_task_of_its_own_is_waited_for_again() -> None:
    """A caller that was cancelled while it was in flight can ask for its reply later."""

    async def main() -> None:
        gate = asyncio.Event()

        async def work() -> str:
            await gate.wait()
            return "done"

        started = OwnTask(asyncio.create_task(work()))
        started.ended.cancel()
        gate.set()
        assert await started.again() == "done"

    asyncio.run(main())


# --- blocking callers -------------------------------------------------------------------------------


def test_threads_share_a_portal(blocking: PortalDriver, direct: Any) -> None:
    """Any number of threads ask through one portal; each gets its own reply."""
    counts: list[int] = []

    def work() -> None:
        counts.extend(blocking.ask(commit("n")) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    assert sorted(counts) == list(range(1, 401))
    assert sum(thread.name == "catga-store-portal" for thread in threading.enumerate()) == 1


def test_a_signal_during_a_write(blocking: PortalDriver, direct: Any) -> None:
    """An interrupted write has its reply before the exception is raised, and nothing follows it."""
    settled: list[Any] = []

    def conversation() -> Conversation[None]:
        settled.append((yield Resolve("r", ())))
        settled.append((yield commit("never")))

    interrupt_when_blocked(direct, "gate-r")
    with pytest.raises(KeyboardInterrupt):
        blocking.run(conversation())

    assert settled == [1]
    assert (direct.get("r"), direct.get("never")) == ("1", None)


def test_a_signal_during_a_read(blocking: PortalDriver, direct: Any) -> None:
    """An interrupted read is left at once, and the next request gets its own reply."""
    interrupt_when_blocked(direct, None)
    with pytest.raises(KeyboardInterrupt):
        blocking.ask(Steps("f", 0))

    direct.rpush("gate-f", "go")
    assert blocking.ask(Ping()) == b"here"


def interrupt_when_blocked(direct: Any, gate: str | None) -> None:
    """Interrupt the main thread once it waits for a gate; then open the gate."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        interrupted.set()
        raise KeyboardInterrupt

    def watch() -> None:
        with redis.Redis(port=direct.connection_pool.connection_kwargs["port"]) as client:
            until(lambda: client.info("clients")["blocked_clients"])
            os.kill(os.getpid(), signal.SIGUSR1)
            assert interrupted.wait(SECONDS)
            if gate is not None:
                client.rpush(gate, "go")

    signal.signal(signal.SIGUSR1, interrupt)
    threading.Thread(target=watch, daemon=True).start()


def test_closing_ends_requests_in_flight(make_link: Callable[[], Any], direct: Any) -> None:
    """Closed from another thread, a waiting caller gets an error, and the portal's thread has ended."""
    driver = PortalDriver(TinyStore(), make_link, SECONDS)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            driver.ask(Resolve("r", ()))
        except ReplyLostError as error:  # what this tiny store makes of it
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    anyio.run(until_blocked, direct)
    driver.close()
    thread.join()
    assert raised
    assert direct.get("r") is None
    assert not any(one.name == "catga-store-portal" for one in threading.enumerate())
    with pytest.raises(cs.StoreClosedError):
        driver.ask(Ping())


def test_request_while_the_portal_ends(make_link: Callable[[], Any]) -> None:
    """Its loop is closed and its thread has not said so yet: no caller waits forever."""
    driver = PortalDriver(TinyStore(), make_link, SECONDS)
    assert driver.ask(Ping()) == b"here"
    ending = driver._portal
    assert ending is not None
    told = threading.Event()
    crossing = _Crossing(Ping(), told.set)
    # What it must have to say so, and what to send it takes, too.
    ending._lock = lock = threading.RLock()  # type: ignore[assignment]  of another kind
    with lock:
        ending.stop()
        until(ending._loop.is_closed)
        ending.send(crossing)

    assert told.wait(SECONDS)
    assert isinstance(crossing.error, cs.StoreClosedError)

    driver.close()


def test_a_forgotten_portal_ends(make_link: Callable[[], Any]) -> None:
    """The thread of a driver that is collected without being closed ends."""
    driver = PortalDriver(TinyStore(), make_link, SECONDS)
    driver.ask(Ping())
    (thread,) = [one for one in threading.enumerate() if one.name == "catga-store-portal"]
    del driver
    gc.collect()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_a_portal_of_the_parent_is_left_alone(
    blocking: PortalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child keeps it from being collected, and neither stops it nor waits for it."""
    assert blocking.ask(Ping()) == b"here"
    running = blocking._portal
    assert running is not None
    monkeypatch.setattr(portal, "_portals", WeakSet([running]))
    monkeypatch.setattr(portal, "_of_parent", [])
    monkeypatch.setattr(portal, "_starting", portal._starting)
    portal._after_fork()
    assert (list(portal._portals), portal._of_parent) == ([], [running])
    with monkeypatch.context() as patch:
        patch.setattr(running, "pid", -1)
        blocking.close()

    assert blocking.ask(Ping()) == b"here"


def test_a_forked_child_has_a_portal_of_its_own(blocking: PortalDriver, direct: Any) -> None:
    """Parent and child continue, each on its own connection; the child's end closes nothing of the parent's."""
    assert blocking.ask(commit("n")) == 1
    mine = {one["id"] for one in direct.client_list()}
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if blocking.ask(commit("n")) in (2, 3) else 2
            blocking.close()
            del blocking
            gc.collect()
        finally:
            os._exit(status)

    assert blocking.ask(commit("n")) in (2, 3)
    assert os.waitpid(pid, 0)[1] == 0
    assert blocking.ask(commit("n")) == 4
    assert mine <= {one["id"] for one in direct.client_list()}


PLACES = [str(Path(__file__).parent), str(Path(forks.__file__).parent)]
SCRIPT = """
import os, sys, time
import anyio
sys.path[:0] = {places!r}
from test_drivers_servers import *

url, kind, fork = sys.argv[1], sys.argv[2], sys.argv[3]
make = partial(open_redis_link, url, 10.0)
if kind == "blocking":
    kept = PortalDriver(TinyStore(), make, 10.0)
    assert kept.ask(Ping()) == b"here"
    if fork == "fork" and os.fork() == 0:
        assert kept.ask(Ping()) == b"here"
        sys.exit(0)
    if fork == "fork":
        assert os.wait()[1] == 0
        assert kept.ask(Ping()) == b"here"
else:
    async def main():
        global kept
        kept = AnyLoopDriver(TinyStore(), make, 10.0)
        assert await kept.ask(Ping()) == b"here"
    anyio.run(main, backend=kind)
print(time.time(), flush=True)
"""


BARE = "import time, anyio, redis.asyncio, catga_store; print(time.time(), flush=True)"


def seconds_to_exit(code: str, *arguments: str) -> float:
    """Run a program, which must say nothing but the time of its last line; return when it exits after that."""
    # Python 3.12 and later warn when a process of several threads forks, and the portal is one.
    quiet = "ignore:This process:DeprecationWarning"
    done = subprocess.run(
        [sys.executable, "-W", quiet, "-c", code, *arguments],
        env=UNMEASURED,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return time.time() - float(done.stdout.split()[-1])


def assert_exits_within(seconds: float, code: str, *arguments: str) -> None:
    """Fail if a program takes longer to exit, thrice, than one that has only imported what it has."""
    took = seconds_to_exit(code, *arguments)
    for _ in range(2):
        if took < seconds:
            break

        bare = seconds_to_exit(BARE)  # so long takes any on a machine that is as busy as this one
        took = min(took, seconds_to_exit(code, *arguments) - bare)

    assert took < seconds


@pytest.mark.parametrize(
    ("kind", "fork"),
    [("blocking", ""), ("blocking", "fork"), ("trio", ""), ("asyncio", "")],
)
def test_a_process_that_forgets_to_close_exits(server: RedisServer, kind: str, fork: str) -> None:
    """It exits within two seconds of its last line, also when it has forked, and says nothing."""
    code = SCRIPT.format(places=PLACES)
    assert_exits_within(2, code, server.url, kind, fork)


def test_a_hanging_server_does_not_keep_a_process(server: RedisServer) -> None:
    """It exits in time even if the server does not answer what is under way."""
    with RedisServer() as hanging:
        code = SCRIPT.format(places=PLACES) + (
            "import threading\n"
            "from contextlib import suppress\n"
            "def ask_in_vain():\n"
            # A daemon thread that prints while the interpreter ends may make it abort.
            "    with suppress(ReplyLostError, cs.StoreClosedError):\n"
            "        kept.ask(Resolve('r', ()))\n"
            "threading.Thread(target=ask_in_vain, daemon=True).start()\n"
            "while not redis.Redis.from_url(url).info('clients')['blocked_clients']: pass\n"
            "print(time.time(), flush=True)\n"
        )
        assert_exits_within(4, code, hanging.url, "blocking", "")
