"""Hints of stores on servers that are lost, cut off or forbidden: they cost time, and nothing else.

Calls here have a poll interval of an hour, so that only a hint, or the renewal of a subscription, ends
their waits, unless the test is about looking without hints.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from forks import together
from proxy import Proxy
from waiting import LONG
from waiting import until
from waiting import until_async

import catga_store as cs
from catga_store.drivers import nats_hints
from catga_store.protocol.requests import Due
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import Server

HOUR = timedelta(hours=1)
LONGEST = timedelta(seconds=LONG)
PROCESSES, THREADS = 4, 50


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[Any]]]:
    """Run a call in a thread of its own."""
    with ThreadPoolExecutor(20) as pool:
        yield pool.submit


def is_waiting(store: cs.Store | cs.AsyncStore, number: int = 1) -> bool:
    """Whether that many calls on this store sleep now."""
    waiters = store._context.waiters._waiters
    return sum(one.notify is not None and not one.is_woken for one in waiters) >= number


def subscriptions() -> int:
    """How many threads of this process read subscriptions."""
    return sum(one.name == "catga-store-hints" for one in threading.enumerate())


KINDS = ["redis-8.2", "redis-6.2", "redis-cluster", "nats", "nats-cluster"]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> str:
    """Name a store on each server."""
    return url_of(request.param)


# every server ---------------------------------------------------------------------------------------


def test_a_commit_wakes_a_waiter_of_another_store(url: str, beside: Any) -> None:
    """A store of its own has a connection of its own, as another process has."""
    with (
        cs.open_store(url, poll_interval=HOUR, partitions=4) as waits,
        cs.open_store(url, partitions=4) as writes,
    ):
        for number in range(8):  # in several partitions
            waiting = beside(waits.claim_due, wait=LONGEST)
            until(lambda: is_waiting(waits))
            writes.create(cs.FlowSnapshot(f"f{number}", state={}))
            (flow,) = waiting.result(LONG)
            assert flow.flow_id == f"f{number}"
            waiting = beside(waits.watch, flow.flow_id, after=flow.version, timeout=LONGEST)
            until(lambda: is_waiting(waits))
            found = writes.get_one(f"f{number}")
            found.state["n"] = 1
            writes.update(found)
            assert waiting.result(LONG).version == found.version

        waiting = beside(waits.watch, "fé \"'\n:/", after=0, timeout=LONGEST)
        until(lambda: is_waiting(waits))
        writes.create(cs.FlowSnapshot("fé \"'\n:/", state={}))
        assert waiting.result(LONG).flow_id == "fé \"'\n:/"


def test_an_async_waiter_of_another_store(url: str) -> None:
    """The subscription of an async store is a task."""

    async def main() -> None:
        async with (
            cs.open_async_store(url, poll_interval=HOUR) as waits,
            cs.open_async_store(url) as writes,
        ):
            claimed: list[str] = []

            async def claim() -> None:
                claimed.extend(flow.flow_id for flow in await waits.claim_due(wait=LONGEST))

            for number in range(3):
                with anyio.fail_after(LONG):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(claim)
                        await until_async(lambda: is_waiting(waits))
                        await writes.create(cs.FlowSnapshot(f"f{number}", state={}))

            assert claimed == ["f0", "f1", "f2"]

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
        with cs.open_store(url) as store:
            store.clear()


def count_and_wait(url: str, folder: str, number: int) -> dict[str, int]:
    """Have many threads wait for one flow; count the looks for what is due that they make because of it."""
    with (
        ThreadPoolExecutor(THREADS) as pool,
        cs.open_store(url, poll_interval=HOUR) as store,
    ):
        protocol: Any = store._driver.protocol  # type: ignore[attr-defined]
        looks: list[int] = []

        class Counting:
            def converse(self, request: Any) -> Any:
                if isinstance(request, Due):
                    looks.append(request.within_ms)

                return protocol.converse(request)

        store._driver.protocol = Counting()  # type: ignore[attr-defined]
        waiting = [pool.submit(store.claim_due, wait=LONGEST) for _ in range(THREADS)]
        until(lambda: is_waiting(store, THREADS))
        looks.clear()
        (Path(folder) / f"ready-{number}").touch()
        until(lambda: looks)
        until(lambda: is_waiting(store, THREADS - sum(one.done() for one in waiting)))
        until((Path(folder) / "claimed").exists)
        attempts = looks.count(0)  # the others look for what will be due
        claimed = sum(len(one.result()) for one in waiting if one.done())
        store.close()
        return {"attempts": attempts, "looks": len(looks), "claimed": claimed}


def test_one_due_flow_and_200_waiters_in_4_processes(url: str, tmp_path: Path, beside: Any) -> None:
    """One of them claims it, and few others have tried."""
    with cs.open_store(url) as store:
        store.ping()
        arguments = [(url, str(tmp_path), number) for number in range(PROCESSES)]
        found = beside(together, count_and_wait, *arguments)
        until(lambda: found.done() or len(list(tmp_path.glob("ready-*"))) == PROCESSES)
        store.create(cs.FlowSnapshot("f", state={}))
        until(lambda: found.done() or store.get_one("f").owner is not None)
        (tmp_path / "claimed").touch()
        counts = found.result(LONG)
        assert sum(one["claimed"] for one in counts) == 1
        assert store.get_one("f").attempts == 1
        assert PROCESSES <= sum(one["attempts"] for one in counts) <= 8, counts


# one server, which these tests start, stop and cut off -----------------------------------------------


@pytest.fixture(params=["redis", "nats"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Start a server of this test."""
    with RedisServer("8.2") if request.param == "redis" else NatsServer() as one:
        yield one


def through(proxy: Proxy, server: Server) -> str:
    """Name the store on this server, by way of the proxy."""
    return server.url.replace(f":{server.port}", f":{proxy.port}")


def test_a_subscription_that_is_cut_is_renewed(server: Server, beside: Any) -> None:
    """What was committed meanwhile is found, once, as soon as there is a connection again."""
    with (
        Proxy(server.port) as proxy,
        cs.open_store(through(proxy, server), poll_interval=HOUR) as waits,
        cs.open_store(server.url) as writes,
    ):
        for number in range(10):
            waiting = beside(waits.claim_due, wait=LONGEST)
            until(lambda: is_waiting(waits))
            proxy.cut()
            writes.create(cs.FlowSnapshot(f"f{number}", state={}))
            (flow,) = waiting.result(LONG)
            assert (flow.flow_id, flow.attempts) == (f"f{number}", 1)


def test_an_async_subscription_that_is_cut_is_renewed(server: Server) -> None:
    """The same in a task."""

    async def main() -> None:
        with Proxy(server.port) as proxy:
            async with (
                cs.open_async_store(through(proxy, server), poll_interval=HOUR) as waits,
                cs.open_async_store(server.url) as writes,
            ):
                claimed: list[tuple[str, int]] = []

                async def claim() -> None:
                    flows = await waits.claim_due(wait=LONGEST)
                    claimed.extend((flow.flow_id, flow.attempts) for flow in flows)

                for number in range(5):
                    with anyio.fail_after(LONG):
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(claim)
                            await until_async(lambda: is_waiting(waits))
                            proxy.cut()
                            await writes.create(cs.FlowSnapshot(f"f{number}", state={}))

                assert claimed == [(f"f{number}", 1) for number in range(5)]

    anyio.run(main)


def test_a_server_that_was_restarted(server: Server, beside: Any) -> None:
    """Those who wait meanwhile are woken by what is committed after it."""
    with cs.open_store(server.url, poll_interval=HOUR) as store:
        waiting = beside(store.claim_due, wait=LONGEST)
        until(lambda: is_waiting(store))
        server.kill()
        server.start()
        store.create(cs.FlowSnapshot("f", state={}))
        (flow,) = waiting.result(LONG)
        assert flow.attempts == 1


def test_a_waiter_asks_once_in_each_poll_interval(server: Server) -> None:
    """With the default of 5 seconds that is less than 0.3 requests a second."""
    interval = 0.2
    sent: list[bytes] = []

    def counted(data: bytes) -> bool:
        sent.append(data)
        return False

    with (
        Proxy(server.port) as proxy,
        cs.open_store(through(proxy, server), poll_interval=timedelta(seconds=interval)) as store,
    ):
        assert store.claim_due(wait=timedelta(milliseconds=1)) == []
        proxy.strike("drop the request", when=counted)
        started = time.monotonic()
        assert store.claim_due(wait=timedelta(seconds=1)) == []
        spent = time.monotonic() - started
        # The first is the claim itself. Subscribing again sends nothing, nor does what waits.
        assert 2 < len(sent) <= 2 + spent / (interval * 0.8), sent


def test_the_end_of_a_subscription(url_of: Callable[[str], str], beside: Any) -> None:
    """At once when the store is closed, or a second after the last call that waited."""
    url = url_of("redis-8.2")
    until(lambda: not subscriptions())  # those of other tests
    with cs.open_store(url, poll_interval=HOUR) as store:
        assert store.claim_due(wait=timedelta(milliseconds=10)) == []
        assert subscriptions() == 1
        until(lambda: not subscriptions())
        calls = [beside(store.claim_due, wait=LONGEST) for _ in range(10)]
        until(lambda: is_waiting(store, 10))
        assert subscriptions() == 1

    for call in calls:
        assert isinstance(call.exception(LONG), cs.StoreClosedError)

    until(lambda: not subscriptions())


# Redis alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["6.2", "8.2"])
def test_a_user_without_the_channels(version: str, beside: Any) -> None:
    """Commits are whole, and calls that wait look after each poll interval."""
    with RedisServer(version) as server, redis.Redis(port=server.port) as client:
        rights = ["+@all", "~*", "resetchannels"]
        client.execute_command("ACL", "SETUSER", "silent", "on", ">secret", *rights)
        url = server.url.replace("://", "://silent:secret@")
        with cs.open_store(url, poll_interval=timedelta(milliseconds=50)) as store:
            waiting = beside(store.claim_due, wait=LONGEST, limit=2)
            until(lambda: is_waiting(store) or waiting.done())
            with store.begin() as session:
                session.add(cs.FlowSnapshot("f", state={}))
                session.add(cs.FlowSnapshot("g", state={}))

            assert len(waiting.result(LONG)) == 2
            flow = store.get_one("f")
            flow.state["n"] = 1
            store.update(flow)
            assert store.get_one("f").state == {"n": 1}


def test_a_client_with_one_connection(
    redis_server: Callable[[str], RedisServer], beside: Any
) -> None:
    """A subscription takes none of the connections of a client of the user's."""
    pool = redis.BlockingConnectionPool(
        port=redis_server("8.2").port, max_connections=1, timeout=LONG, decode_responses=True
    )
    with redis.Redis(connection_pool=pool) as client:
        store = cs.RedisStore(client, prefix=f"{uuid.uuid4().hex}:", poll_interval=HOUR)
        waiting = beside(store.claim_due, wait=LONGEST)
        until(lambda: is_waiting(store))
        store.create(cs.FlowSnapshot("f", state={}))
        assert len(waiting.result(LONG)) == 1
        store.close()
        pool.disconnect()


def test_a_nats_subscription_that_has_ended_begins_again(
    url_of: Callable[[str], str], beside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends a while after the last call that waits; the next one has hints again."""
    monkeypatch.setattr(nats_hints, "_LINGERS", 0.05)
    begun: list[nats_hints.HintSubscription] = []
    begin = nats_hints.HintSubscription.begin

    def noted(self: nats_hints.HintSubscription, request: Any) -> Any:
        begun.append(self)
        return begin(self, request)

    monkeypatch.setattr(nats_hints.HintSubscription, "begin", noted)
    url = url_of("nats")
    with cs.open_store(url, poll_interval=HOUR) as waits, cs.open_store(url) as writes:
        for number in range(3):
            waiting = beside(waits.claim_due, wait=LONGEST)
            until(lambda: is_waiting(waits))
            writes.create(cs.FlowSnapshot(f"f{number}", state={}))
            assert [flow.flow_id for flow in waiting.result(LONG)] == [f"f{number}"]
            until(lambda: begun[-1]._task is None)
