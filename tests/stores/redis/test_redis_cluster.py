"""A Redis Cluster: partitions on several nodes, stopped nodes, and slots that move."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio
from redis.crc import key_slot
from waiting import until

import catga_store as cs
from catga_store.protocol.keys import partition_of
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import StoreAPI
from catga_store.testing.servers import RedisCluster

PARTITIONS = 8


def flow(flow_id: str) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state={"id": flow_id})


def node_of(client: redis.RedisCluster, prefix: str, partition: int) -> str:
    """Return the name of the node that has a partition."""
    slot = client.keyslot(f"{{{prefix}{partition}}}")
    name: str = client.nodes_manager.get_node_from_slot(slot).name
    return name


def test_partitions_on_several_nodes_act_as_one_store(redis_cluster: RedisCluster) -> None:
    """Every node has records; listings, claims, counts, sweeps and clear see all of them."""
    prefix = f"{uuid.uuid4().hex}:"
    url = f"{redis_cluster.url}?prefix={prefix}"
    ids = [f"f-{number:03}" for number in range(100)]
    with cs.open_store(url, partitions=PARTITIONS) as store:
        for flow_id in ids:
            store.create(flow(flow_id))

        client = store._driver.transport.client()  # type: ignore[attr-defined]
        assert len({node_of(client, prefix, number) for number in range(PARTITIONS)}) == 3
        assert sorted(one.flow_id for one in store.iter_flows()) == ids
        assert store.count_flows() == 100
        many = store.get_many([*ids, "nobody"])
        assert [name for name, one in many.items() if one is None] == ["nobody"]
        assert len({one.flow_id for one in store.claim_due(limit=100)}) == 100
        session = store.session()
        for flow_id in ids[:10]:
            session.add(flow(f"new-{flow_id}"))

        with pytest.raises(cs.CrossPartitionError):
            session.commit()

        store.clear()
        assert store.count_flows() == 0


def test_cluster_client_of_the_user_is_used_as_it_is(redis_cluster: RedisCluster) -> None:
    """A `RedisCluster` that decodes and retries is used as it is."""
    first = redis_cluster.nodes[0]
    with redis.RedisCluster(first.host, first.port, decode_responses=True) as client:
        store = cs.RedisStore(client, prefix=f"{uuid.uuid4().hex}:")
        store.create(flow("ü"))
        assert store.get_one("ü").state == {"id": "ü"}
        store.close()
        assert client.ping()


async def _use_a_client(host: str, port: int) -> None:
    client = redis.asyncio.RedisCluster(host=host, port=port, decode_responses=True)
    store = cs.AsyncRedisStore(client, prefix=f"{uuid.uuid4().hex}:", partitions=PARTITIONS)
    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(store.create, flow(f"ü-{number}"))

    assert (await store.get_one("ü-7")).state == {"id": "ü-7"}
    assert await store.count_flows() == 20
    await store.close()
    assert await client.ping()
    await client.aclose()


def test_asyncio_cluster_client_of_the_user_is_used_as_it_is(redis_cluster: RedisCluster) -> None:
    """The asyncio client is, too, by any number of tasks."""
    first = redis_cluster.nodes[0]
    anyio.run(_use_a_client, first.host, first.port)


@pytest.mark.nightly
def test_stopped_node_makes_its_partitions_unavailable(
    redis_cluster: RedisCluster,  # started first, so that ports are its own
) -> None:
    """Its records are unavailable, not absent; the others work; it returns with its records."""
    prefix = f"{uuid.uuid4().hex}:"
    # With `everysec` a server whose disk is slow may die with what it has acknowledged unwritten.
    with RedisCluster("8.2", "--appendfsync", "always") as cluster:
        url = f"{cluster.url}?prefix={prefix}"
        with cs.open_store(url, partitions=PARTITIONS, timeout=timedelta(seconds=10)) as store:
            ids = [f"f-{number}" for number in range(40)]
            for flow_id in ids:
                store.create(flow(flow_id))

            client = store._driver.transport.client()  # type: ignore[attr-defined]
            last = cluster.nodes[2]
            name = f"{last.host}:{last.port}"
            gone = {
                flow_id
                for flow_id in ids
                if node_of(client, prefix, partition_of(flow_id, PARTITIONS)) == name
            }
            assert 0 < len(gone) < len(ids)
            last.kill()
            for flow_id in ids:
                if flow_id in gone:
                    with pytest.raises(cs.StoreUnavailableError):
                        store.get(flow_id)
                else:
                    assert store.get(flow_id) is not None

            with pytest.raises(cs.StoreUnavailableError):
                store.query_flows()

            cluster.start_node(last)
            assert len(store.query_flows().items) == len(ids)


@pytest.fixture
def asked(redis_cluster: RedisCluster) -> Callable[..., Any]:
    """Send a command to one node of the cluster."""

    def ask(place: int, *words: Any) -> Any:
        node = redis_cluster.nodes[place]
        with redis.Redis(node.host, node.port) as client:
            return client.execute_command(*words)

    return ask


@pytest.mark.parametrize("api", ["blocking", "asyncio"])
def test_slot_that_moves_to_another_node(
    redis_cluster: RedisCluster, asked: Callable[..., Any], api: str
) -> None:
    """While its keys are moving, reads find them and commits wait; afterwards both work there."""
    prefix = f"{uuid.uuid4().hex}:"
    slot = key_slot(f"{prefix}0".encode())
    old = slot * 3 // 16384
    new = (old + 1) % 3
    names = [asked(place, "CLUSTER", "MYID").decode() for place in (old, new)]
    target = redis_cluster.nodes[new]
    url = f"{redis_cluster.url}?prefix={prefix}"
    short = timedelta(seconds=2)  # in which it also finds the nodes, on a busy machine
    with (
        opened(api, url) as store,
        opened(api, url, timeout=short) as hasty,
        ThreadPoolExecutor(1) as thread,
    ):
        for flow_id in ("a", "b", "d"):
            store.create(flow(flow_id))

        hasty.ping()
        asked(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        asked(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        for flow_id in ("a", "d"):
            name = f"{{{prefix}0}}:flow:{flow_id}"
            asked(old, "MIGRATE", target.host, target.port, name, 0, 5000)

        assert hasty.get("a") is not None
        assert hasty.get("b") is not None
        flow_a, flow_d = hasty.get_one("a"), store.get_one("d")
        with pytest.raises(cs.StoreUnavailableError, match="moving this partition"):
            hasty.update(flow_a)

        before = refused(asked, (old, new))
        waiting = thread.submit(store.update, flow_d)
        until(lambda: refused(asked, (old, new)) != before)
        while keys := asked(old, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            for key in keys:
                asked(old, "MIGRATE", target.host, target.port, key, 0, 5000)

        for place in (new, old):
            asked(place, "CLUSTER", "SETSLOT", slot, "NODE", names[1])

        waiting.result()
        assert flow_d.version == 2
        assert hasty.get("a") is not None
        hasty.update(flow_a)
        store.create(flow("c"))
        assert sorted(one.flow_id for one in store.query_flows().items) == ["a", "b", "c", "d"]


def refused(asked: Callable[..., Any], places: tuple[int, ...]) -> int:
    """Return how often nodes have replied TRYAGAIN."""
    errors = (asked(place, "INFO", "errorstats") for place in places)
    return sum(one.get("errorstat_TRYAGAIN", {"count": 0})["count"] for one in errors)


def opened(api: str, url: str, **options: Any) -> StoreAPI:
    """Open a store by one of its APIs."""
    if api == "blocking":
        return BlockingAPI(lambda: cs.open_store(url, **options))

    return AsyncAPI(lambda: cs.open_async_store(url, **options))


@pytest.mark.parametrize("api", ["blocking", "asyncio"])
def test_cluster_with_a_password(api: str) -> None:
    """A missing or wrong password is a `StoreConfigError` here too."""
    with RedisCluster() as cluster:
        for node in cluster.nodes:
            with redis.Redis(port=node.port) as client:
                client.config_set("requirepass", "secret")

        for user in ("", ":wrong@"):
            url = cluster.url.replace("://", f"://{user}")
            with (
                opened(api, url) as store,
                pytest.raises(cs.StoreConfigError, match="user or password"),
            ):
                store.get("f")
