"""`acknowledged_by=n`: a commit counts once n replicas have it, and a failover does not lose it.

A replica is stalled with SIGSTOP: it stays connected and confirms nothing.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from datetime import timedelta
from signal import SIGCONT
from signal import SIGSTOP
from typing import Any

import pytest
import redis
from proxy import Proxy
from waiting import until

import catga_store as cs
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import StoreAPI
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer

LONG = 30
"""Seconds that only a failing test would wait."""
QUICK = timedelta(seconds=1)
UNHURRIED = timedelta(seconds=2)
"""Where the reply itself must come in time: the primary waits for three quarters of it for the replica."""
HOUR = timedelta(hours=1)
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A primary waits five seconds for further replicas before the first copy."""


def replica_of(primary: RedisServer, stack: ExitStack) -> RedisServer:
    """Start a replica, and wait until it has caught up."""
    follow = ("--replicaof", primary.host, str(primary.port))
    replica = stack.enter_context(RedisServer(primary.version, *follow, *AT_ONCE))
    replica.wait_until(lambda: b"master_link_status:up" in replica.ask(b"INFO replication\r\n"))
    primary.wait_until(lambda: b"state=online" in primary.ask(b"INFO replication\r\n"))
    return replica


@pytest.fixture(params=[pytest.param("6.2", marks=pytest.mark.nightly), "8.2"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Start a primary and its replica."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer(request.param, *AT_ONCE))
        yield primary, replica_of(primary, stack)


@contextmanager
def stalled(replica: RedisServer) -> Iterator[None]:
    """Stop a replica's process meanwhile."""
    replica.signal(SIGSTOP)
    try:
        yield
    finally:
        replica.signal(SIGCONT)


@pytest.fixture(params=["blocking", "asyncio"])
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[..., StoreAPI]]:
    """Open stores by URL, by each API."""
    stores: list[StoreAPI] = []

    def open_one(place: str, **options: Any) -> StoreAPI:
        stores.append(
            BlockingAPI(lambda: cs.open_store(place, **options))
            if request.param == "blocking"
            else AsyncAPI(lambda: cs.open_async_store(place, **options), backend="asyncio")
        )
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def created(primary: RedisServer) -> cs.FlowSnapshot[Any]:
    """Create a flow without waiting for replicas."""
    flow: cs.FlowSnapshot[Any] = cs.FlowSnapshot("f", state={"n": 0})
    with cs.open_store(primary.url) as store:
        store.create(flow)

    return flow


def is_there(store: StoreAPI) -> bool:
    """Return whether the store can be used."""
    try:
        store.ping()
    except cs.StoreUnavailableError:
        return False

    return True


def settled(store: StoreAPI, error: cs.CommitUncertainError) -> Any:
    """Resolve until the outcome is known."""
    end = time.monotonic() + LONG
    while True:
        try:
            return store.resolve_commit(error)
        except cs.CommitUncertainError:
            assert time.monotonic() < end


def test_confirmed_writes_are_acknowledged(
    pair: tuple[RedisServer, RedisServer], opened: Callable[..., StoreAPI]
) -> None:
    """Every kind of write passes, and the replica has it when the call returns."""
    primary, replica = pair
    store = opened(f"{primary.url}?acknowledged_by=1")
    for place in range(20):  # more than one sweep on the way
        store.create(cs.FlowSnapshot(f"f-{place}", state={"n": place}))

    claimed = store.claim("f-3", lease=HOUR)
    store.extend(claimed, 3 * HOUR)
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    with store.begin() as session:
        session.get_one("f-1").state["n"] = -1
        session.complete_child("w", "a")

    with redis.Redis(port=replica.port) as client:
        assert b'"n":-1' in client.hget("{dslflow:0}:flow:f-1", "body")  # type: ignore[operator]

    assert store.sweep() == 0
    store.clear()
    with redis.Redis(port=replica.port) as client:
        assert client.exists("{dslflow:0}:flow:f-1") == 0


def test_commit_without_confirmation_is_uncertain_until_replica_is_back(
    pair: tuple[RedisServer, RedisServer], opened: Callable[..., StoreAPI]
) -> None:
    """Resolving is uncertain as well while the replica is stalled, and then returns the receipt."""
    primary, replica = pair
    flow = created(primary)
    store = opened(f"{primary.url}?acknowledged_by=1", timeout=UNHURRIED)
    flow.state["n"] = 1
    with stalled(replica):
        said = r"the primary wrote commit .*, but only 0 of 1 replicas confirmed the commit within 1\.5 s"
        with pytest.raises(cs.CommitUncertainError, match=said) as caught:
            store.update(flow)

        with pytest.raises(cs.CommitUncertainError):
            store.resolve_commit(caught.value)

        assert store.get_one("f").state == {"n": 1}  # reads do not wait

    receipt = settled(store, pickle.loads(pickle.dumps(caught.value)))
    assert receipt is not None
    assert receipt.versions == {flow.key: 2}


def test_extension_without_confirmation_is_uncertain(
    pair: tuple[RedisServer, RedisServer], opened: Callable[..., StoreAPI]
) -> None:
    """A lease that a failover could shorten is not acknowledged."""
    primary, replica = pair
    created(primary)
    claimed = opened(primary.url).claim("f", lease=HOUR)
    store = opened(f"{primary.url}?acknowledged_by=1", timeout=UNHURRIED)
    with stalled(replica), pytest.raises(cs.CommitUncertainError, match="0 of 1 replicas"):
        store.extend(claimed, 3 * HOUR)


def test_conflict_needs_no_confirmation(
    pair: tuple[RedisServer, RedisServer], opened: Callable[..., StoreAPI]
) -> None:
    """A refused commit writes nothing, so it stays a conflict."""
    primary, replica = pair
    created(primary)
    store = opened(f"{primary.url}?acknowledged_by=1", timeout=QUICK)
    with stalled(replica), pytest.raises(cs.FlowExistsError):
        store.create(cs.FlowSnapshot("f", state={"n": 0}))


@pytest.mark.parametrize("strike", ["drop the reply", "drop the request"])
def test_commit_sent_again_waits_for_replicas_too(
    strike: Any, pair: tuple[RedisServer, RedisServer], opened: Callable[..., StoreAPI]
) -> None:
    """The second connection has written nothing of its own, and still nothing is acknowledged."""
    primary, replica = pair
    with Proxy(primary.port) as proxy:
        place = f"redis://127.0.0.1:{proxy.port}?acknowledged_by=1"
        flow = created(primary)
        store = opened(place, timeout=QUICK)
        until(lambda: is_there(store))
        with stalled(replica):
            proxy.strike(strike, when=lambda data: b"EVAL" in data and b":commit:" in data)
            with pytest.raises(cs.CommitUncertainError) as caught:
                store.update(flow)

            assert proxy.struck == 1

        assert settled(store, caught.value) is not None


def test_unknown_script_is_confirmed_when_sent_with_its_source(
    pair: tuple[RedisServer, RedisServer], opened: Callable[..., StoreAPI]
) -> None:
    """What WAIT counted before the script ran is not taken for its confirmation."""
    primary, replica = pair
    flow = created(primary)
    store = opened(f"{primary.url}?acknowledged_by=1", timeout=QUICK)
    with redis.Redis(port=primary.port) as client, stalled(replica):
        client.script_flush()
        with pytest.raises(cs.CommitUncertainError, match="0 of 1 replicas") as caught:
            store.update(flow)

        client.script_flush()
        with pytest.raises(cs.CommitUncertainError, match="0 of 1 replicas"):
            store.resolve_commit(caught.value)


def test_fail_over_keeps_acknowledged_commits(
    pair: tuple[RedisServer, RedisServer], opened: Callable[..., StoreAPI]
) -> None:
    """What was acknowledged is on the new primary; what was not resolves to never.

    The same commit without `acknowledged_by` is acknowledged, and lost.
    """
    primary, replica = pair
    patient = opened(f"{primary.url}?acknowledged_by=1")
    store = opened(f"{primary.url}?acknowledged_by=1", timeout=QUICK)
    careless = opened(primary.url)
    flow = cs.FlowSnapshot("f", state={"n": 0})
    patient.create(flow)
    flow.state["n"] = 1
    patient.update(flow)
    careless.create(cs.FlowSnapshot("kept", state={}))
    replica.wait_until(lambda: b":1" in replica.ask(b"EXISTS {dslflow:0}:flow:kept\r\n"))
    with redis.Redis(port=replica.port) as client:  # it hears nothing of its primary any more
        client.execute_command("REPLICAOF", replica.host, "1")

    flow.state["n"] = 2
    with pytest.raises(cs.CommitUncertainError) as caught:
        store.update(flow)

    careless.create(cs.FlowSnapshot("lost", state={}))
    primary.kill()
    with ExitStack() as stack:
        with redis.Redis(port=replica.port) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

        after = opened(f"{replica.url}?acknowledged_by=1", timeout=QUICK)
        with pytest.raises(cs.CommitUncertainError):  # the new primary has no replica yet
            after.resolve_commit(caught.value)

        replica_of(replica, stack)
        assert settled(after, caught.value) is None
        assert after.get_one("f").state == {"n": 1}
        assert after.get("kept") is not None
        assert after.get("lost") is None


def test_cluster_is_refused(redis_cluster: RedisCluster) -> None:
    """A node that redirects a commit counts the replicas of other writes."""
    for open_one in (cs.open_store, cs.open_async_store):
        with pytest.raises(cs.NotSupportedError, match="cannot be used with a cluster"):
            open_one(f"{redis_cluster.url}?acknowledged_by=1")

    with (
        redis.RedisCluster.from_url(redis_cluster.nodes[0].url) as client,
        pytest.raises(cs.NotSupportedError, match="cannot be used with a cluster"),
    ):
        cs.RedisStore(client, acknowledged_by=1)


@pytest.mark.parametrize("value", ["-1", "one", "", "1.5", "true"])
def test_wrong_number_in_url_is_refused(value: str) -> None:
    """It must be a number of replicas."""
    for open_one in (cs.open_store, cs.open_async_store):
        with pytest.raises(cs.UsageError, match="acknowledged_by: expected an int of at least 0"):
            open_one(f"redis://localhost?acknowledged_by={value}")


def test_wrong_number_in_code_is_refused() -> None:
    """A bool is not a number of replicas."""
    for value in (True, None, -1, "1"):
        with pytest.raises(cs.UsageError, match="acknowledged_by"):
            cs.RedisStore(acknowledged_by=value)  # type: ignore[arg-type]
