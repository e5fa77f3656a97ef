"""Clients made by Sentinel, and a failover to a replica that does not know the scripts."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel
from sentinels import Sentinel
from waiting import retried

import catga_store as cs
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import StoreAPI
from catga_store.testing.servers import RedisServer

LONG = 60
"""Seconds that only a failing test would wait."""


@pytest.fixture(params=[pytest.param("6.2", marks=pytest.mark.soak), "8.2"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, RedisServer, Sentinel]]:
    """Start a primary, its replica and a Sentinel."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer(request.param))
        follow = ("--replicaof", primary.host, str(primary.port))
        replica = stack.enter_context(RedisServer(request.param, *follow))
        replica.wait_until(lambda: b"master_link_status:up" in replica.ask(b"INFO replication\r\n"))
        yield primary, replica, stack.enter_context(Sentinel(primary))


@pytest.fixture(params=["blocking", "asyncio"])
def api(request: pytest.FixtureRequest, servers: Any) -> Iterator[StoreAPI]:
    """Open a store on a client that Sentinel made."""
    *_, sentinel = servers
    at = [(sentinel.host, sentinel.port)]
    timeout = timedelta(seconds=2)
    options = {"socket_timeout": 2}
    if request.param == "blocking":
        watched = redis.sentinel.Sentinel(at)
        client = watched.master_for("flows", **options)
        with BlockingAPI(lambda: cs.RedisStore(client, timeout=timeout)) as blocking:
            yield blocking

        for mine in (client, *watched.sentinels):
            mine.close()
    else:
        seen = redis.asyncio.sentinel.Sentinel(at)
        other = seen.master_for("flows", **options)
        with AsyncAPI(lambda: cs.AsyncRedisStore(other, timeout=timeout)) as awaiting:
            yield awaiting
            awaiting._portal.call(awaiting.store.close)
            for its in (other, *seen.sentinels):
                awaiting._portal.call(its.aclose)


def when_up(call: Callable[[], Any]) -> Any:
    """Repeat a call until the store is available again."""
    return retried(call, cs.StoreUnavailableError)


def test_fail_over_to_a_replica_without_scripts(
    servers: tuple[RedisServer, RedisServer, Sentinel], api: StoreAPI
) -> None:
    """Replicated records are on the new primary, and scripts that it never saw run at once."""
    primary, replica, _ = servers
    flow = cs.FlowSnapshot("f", state={"n": 0})
    when_up(lambda: api.create(flow))
    api.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    claimed = api.claim("f")
    replica.wait_until(lambda: offset_of(replica) == offset_of(primary))
    with redis.Redis(port=replica.port) as client:
        client.script_flush()

    primary.kill()
    found = when_up(lambda: api.get("f"))
    assert found is not None
    assert found.revision == claimed.revision
    with redis.Redis(port=replica.port) as client:
        assert client.info("replication")["role"] == "master"
        client.script_flush()

    with api.begin() as session:  # a flow and a script in one flight, then a commit of three
        assert session.get_many(["f", "g"])["f"] is not None
        assert session.get_wait_condition("w") is not None
        session.get_one("f").state["n"] = 1
        session.add(cs.FlowSnapshot("g", state={"n": 1}))
        session.complete_child("w", "a")

    assert api.get_one("g").state == {"n": 1}
    assert api.get_wait_condition("w").completed_count == 1


def offset_of(server: RedisServer) -> bytes:
    """Return the replication offset of a server."""
    with redis.Redis(port=server.port) as client:
        found: Any = client.info("replication")

    return found["slave_repl_offset"] if found["role"] == "slave" else found["master_repl_offset"]
