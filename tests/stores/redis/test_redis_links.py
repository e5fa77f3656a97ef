"""Both links to Redis in states that a whole store seldom meets: wrong slot maps, lost replies.

`test_drivers_redis` has what the asyncio link does all day; here the blocking one stands beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import asynccontextmanager
from contextlib import closing
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
from redis import exceptions
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

import catga_store as cs
from catga_store.drivers import redis_cluster_blocking
from catga_store.drivers import redis_packing
from catga_store.drivers.redis_asyncio import open_redis_link
from catga_store.drivers.redis_clients import link_to_client
from catga_store.drivers.redis_clients import link_to_url
from catga_store.drivers.redis_multiplexed import CommandsInFlight
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio alone: the awaiting link is for its loops."""
    return "asyncio"


@pytest.fixture
def server(redis_server: Callable[[str], RedisServer]) -> RedisServer:
    """A server that other tests use too."""
    return redis_server("8.2")


def pipe(*commands: tuple[Any, ...]) -> Pipe:
    """Make a pipe of commands, each with its second argument as its key."""
    return Pipe(tuple(Command(words, str(words[1]).encode()) for words in commands), writes=True)


@asynccontextmanager
async def opened(url: str, seconds: float = 10) -> AsyncIterator[Any]:
    """Open the awaiting link, and close it."""
    link = open_redis_link(url, seconds)
    try:
        yield link
    finally:
        await link.close()


# --- one server -------------------------------------------------------------------------------------


def test_two_threads_open_one_client(server: RedisServer) -> None:
    """Two threads use a new link at once: one client is opened, and both get it."""
    link = link_to_url(server.url, 5)
    theirs = object()

    class Gate:
        """A lock that another thread has held until now."""

        def __enter__(self) -> None:
            link._client = theirs

        def __exit__(self, *_: object) -> None:
            """Let go."""

    link._lock = Gate()  # type: ignore[assignment]
    assert link.client() is theirs
    link._client = None


def test_idle_connections_stay_with_the_parent_of_a_fork(server: RedisServer) -> None:
    """A child opens a connection of its own: on a shared one replies would mix."""
    with closing(link_to_url(server.url, 5)) as link:
        link.perform(pipe(("ECHO", "a")))
        stash: Any = link._stash
        (parents,) = stash._idle
        stash._pid -= 1  # as it is in a child
        assert link.perform(pipe(("ECHO", "b"))) == (b"b",)
        (own,) = stash._idle
        assert own is not parents
        assert own._sock is not parents._sock
        parents.disconnect()


def test_refused_connection_refuses_every_command() -> None:
    """A client without a password: each command is refused, none is lost."""
    once = Retry(NoBackoff(), 0)
    with (
        RedisServer("8.2", "--requirepass", "secret") as locked,
        redis.Redis(port=locked.port, protocol=2, driver_info=None, retry=once) as client,
    ):
        link = link_to_client(client, 1)  # which is sooner than the client's own time
        for _ in range(2):
            replies = link.perform(pipe(("ECHO", "a"), ("ECHO", "b")))
            assert [type(reply) for reply in replies] == [exceptions.AuthenticationError] * 2


async def test_unexpected_message_breaks_the_connection(server: RedisServer) -> None:
    """It is not a reply to a request, so the next request gets a new connection."""
    async with opened(f"{server.url}?protocol=2") as link:
        await link.perform(pipe(("SUBSCRIBE", "catga-store-tests")))
        (shared,) = link._multiplexed._shared.values()
        with redis.Redis(port=server.port) as client:
            assert client.publish("catga-store-tests", "hello") == 1

        await shared._task  # it has nothing left to do
        assert await link.perform(pipe(("ECHO", "a"))) == (b"a",)


async def test_connection_that_cannot_be_written_is_replaced(server: RedisServer) -> None:
    """Commands that redis-py fails to write have lost their replies; the next request works."""
    async with opened(server.url) as link:
        await link.perform(pipe(("ECHO", "a")))
        (shared,) = link._multiplexed._shared.values()

        connection = shared._connection

        async def once(*_: object, **__: object) -> None:
            del connection.send_packed_command
            raise exceptions.ConnectionError

        connection.send_packed_command = once
        with pytest.raises(ReplyLostError) as caught:
            await link.perform(pipe(("ECHO", "b")))

        assert type(caught.value.__cause__) is exceptions.ConnectionError
        assert await link.perform(pipe(("ECHO", "c"))) == (b"c",)


async def test_outcome_of_a_cancelled_call_is_kept() -> None:
    """A write is completed; its reply or failure is kept until it is asked for."""
    for failure in (None, ReplyLostError("gone")):
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        request = CommandsInFlight([("ECHO", "a")], ended, 0, kept=True)
        request.ended.cancel()
        if failure is None:
            request.settle((b"a",))
            assert await request.again() == (b"a",)
        else:
            request.fail(failure)
            with pytest.raises(ReplyLostError):
                await request.again()


def test_packing_without_hiredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py packs the commands then; the bytes are the same."""
    commands = [("SET", b"key", "ü"), ("PEXPIRE", b"key", 7)]
    connection = redis.Connection()
    packed = b"".join(redis_packing.pack(connection, commands))
    monkeypatch.setattr(redis_packing, "_pack_command", None)
    assert b"".join(redis_packing.pack(connection, commands)) == packed
    assert b"\r\n".join([b"*3", b"$3", b"SET", b"$3", b"key", b"$2", "ü".encode()]) in packed


def test_blocking_client_for_an_async_store_is_refused(server: RedisServer) -> None:
    """A blocking client cannot be awaited: the error names the right class."""
    with (
        redis.Redis(port=server.port) as client,
        pytest.raises(cs.UsageError, match=r"client from redis\.asyncio, got .* use RedisStore"),
    ):
        cs.AsyncRedisStore(client)  # type: ignore[arg-type]


# --- a cluster --------------------------------------------------------------------------------------


def slot_of(key: str) -> int:
    """Return the slot of a key."""
    slot: int = key_slot(key.encode())
    return slot


@pytest.fixture
def blocking(redis_cluster: RedisCluster) -> Iterator[Any]:
    """Open the blocking link to the cluster."""
    with closing(link_to_url(redis_cluster.url, 5)) as link:
        link.perform(pipe(("SET", "{here}", "1"), ("SET", "{there}", "2")))
        yield link


@pytest.fixture
async def awaiting(redis_cluster: RedisCluster) -> AsyncIterator[Any]:
    """Open the awaiting link to the cluster."""
    async with opened(redis_cluster.url, 5) as link:
        await link.perform(pipe(("SET", "{here}", "1"), ("SET", "{there}", "2")))
        yield link


BOTH = pipe(("GET", "{here}"), ("GET", "{there}"))


def nobody_tells(*_: object, **__: object) -> Any:
    """Replace reading the slot map, as if no node replied."""
    raise exceptions.RedisClusterException


async def nobody_tells_later(*_: object, **__: object) -> Any:
    """Do so for asyncio."""
    raise exceptions.RedisClusterException


def test_two_keys_are_on_two_nodes(redis_cluster: RedisCluster, blocking: Any) -> None:
    """The tests below rely on it."""
    nodes = blocking.client().nodes_manager
    here, there = (nodes.get_node_from_slot(slot_of(key)) for key in ("{here}", "{there}"))
    assert here.name != there.name


def test_unserved_slot_is_not_sent_on_the_blocking_link(
    blocking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot map is read again, so the next try finds the node."""
    nodes = blocking.client().nodes_manager
    for initialize in (nobody_tells, nodes.initialize):
        monkeypatch.setattr(nodes, "initialize", initialize)
        nodes.slots_cache.pop(slot_of("{here}"), None)
        with pytest.raises(NotSentError, match="no cluster node currently serves this partition"):
            blocking.perform(BOTH)

    assert blocking.perform(BOTH) == (b"1", b"2")


async def test_unserved_slot_is_not_sent_on_the_asyncio_link(awaiting: Any) -> None:
    """The asyncio link does the same."""
    nodes = awaiting._client.nodes_manager
    nodes.slots_cache.pop(slot_of("{here}"))
    with pytest.raises(NotSentError, match="no cluster node currently serves the slot"):
        await awaiting.perform(BOTH)

    assert await awaiting.perform(BOTH) == (b"1", b"2")
    assert repr(awaiting).startswith("<RedisClusterAsyncLink ")


def test_broken_node_has_lost_its_replies(redis_cluster: RedisCluster, blocking: Any) -> None:
    """Commands that were sent may have run; the next request connects again."""
    own = "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no"
    commands = Command(own, b"{here}"), Command(("GET", "{here}"), b"{here}")
    with pytest.raises(ReplyLostError):
        blocking.perform(Pipe(commands, writes=True))

    assert blocking.perform(BOTH) == (b"1", b"2")


async def test_partly_replied_pipe_is_uncertain(
    awaiting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command has run, the other was redirected, and no node says where."""
    nodes = awaiting._client.nodes_manager
    nodes.slots_cache[slot_of("{here}")] = nodes.slots_cache[slot_of("{there}")]
    with monkeypatch.context() as patch:
        patch.setattr(type(nodes), "initialize", nobody_tells_later)
        with pytest.raises(ReplyLostError, match="some of the commands were sent, but the others"):
            await awaiting.perform(BOTH)

    assert await awaiting.perform(BOTH) == (b"1", b"2")


@contextmanager
def from_node_to_node(cluster: RedisCluster, key: str) -> Iterator[None]:
    """Let two nodes each say that the other one has the slot of a key."""
    slot = slot_of(key)
    nodes = [redis.Redis(port=node.port) for node in cluster.nodes]
    ids = [str(node.execute_command("CLUSTER MYID"), "ascii") for node in nodes]
    owner = next(place for place, node in enumerate(nodes) if has(node, slot, cluster, place))
    nodes[owner].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[owner - 1])
    try:
        yield
    finally:
        nodes[owner].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[owner])
        for node in nodes:
            node.close()


def has(node: Any, slot: int, cluster: RedisCluster, place: int) -> bool:
    """Return whether a node says that it has a slot."""
    port = cluster.nodes[place].port
    return any(
        low <= slot <= high and owner[1] == port
        for low, high, owner, *_ in node.execute_command("CLUSTER SLOTS")
    )


async def test_endless_redirection_ends_in_try_again(
    redis_cluster: RedisCluster, blocking: Any, awaiting: Any
) -> None:
    """After some rounds the reply is TRYAGAIN; nothing has run."""
    key = "{round and round}"  # of which there is nothing: a node with keys keeps its slot
    with from_node_to_node(redis_cluster, key):
        (reply,) = blocking.perform(pipe(("SET", key, "1")))
        assert type(reply) is exceptions.TryAgainError
        assert "too many cluster redirections" in str(reply)
        for seconds in (5, -1):  # the rounds are over, or the time is
            awaiting._timeout, awaiting._found = seconds, True
            (reply,) = await awaiting.perform(pipe(("SET", key, "1")))
            assert type(reply) is exceptions.TryAgainError
            assert "too many cluster redirections" in str(reply)

    awaiting._timeout = 5
    assert blocking.perform(pipe(("GET", key))) == (None,)


def cut_off(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let a node answer so often, and then none be reached."""
    talk = redis_cluster_blocking.talk
    left = [after]

    def talk_first(*words: Any) -> Any:
        if not left[0]:
            raise NotSentError("down")

        left[0] -= 1
        return talk(*words)

    monkeypatch.setattr(redis_cluster_blocking, "talk", talk_first)


@pytest.mark.parametrize(("answers", "error"), [(0, NotSentError), (1, ReplyLostError)])
def test_node_that_cannot_be_reached(
    blocking: Any, monkeypatch: pytest.MonkeyPatch, answers: int, error: type[Exception]
) -> None:
    """Nothing was sent if no node has answered; else a part was done."""
    here, there = (key for key in ("{here}", "{there}"))
    cut_off(monkeypatch, after=answers)
    with pytest.raises(error, match="down"):
        blocking.perform(pipe(("GET", here), ("GET", there)))


def test_node_that_cannot_be_reached_after_a_redirection(
    redis_cluster: RedisCluster, blocking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran before the redirection was done, whatever the next round can reach."""
    moved, other = "{round and round}", "{here}"
    with from_node_to_node(redis_cluster, moved):
        nodes = len({blocking.client().keyslot(key) for key in (moved, other)})
        cut_off(monkeypatch, after=nodes)
        with pytest.raises(ReplyLostError, match="down"):
            blocking.perform(pipe(("SET", other, "1"), ("SET", moved, "1")))


def test_redirection_to_an_unknown_node(
    redis_cluster: RedisCluster, blocking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new node is looked up, and gets the commands in order."""
    key = "{joined}"
    slot = slot_of(key)
    ports = {f"127.0.0.1:{node.port}": node.port for node in redis_cluster.nodes}
    client = blocking.client()
    nodes = client.nodes_manager
    source = nodes.get_node_from_slot(slot)
    target = next(node for node in client.get_primaries() if node.name != source.name)
    with (
        redis.Redis(port=ports[source.name]) as at_source,
        redis.Redis(port=ports[target.name]) as at_target,
    ):
        ids = [str(one.execute_command("CLUSTER MYID"), "ascii") for one in (at_source, at_target)]
        at_target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        at_source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        try:
            for initialize in (nobody_tells, nodes.initialize):
                monkeypatch.setattr(nodes, "initialize", initialize)
                nodes.nodes_cache.pop(target.name)
                replies = blocking.perform(pipe(("SET", key, "1"), ("GET", key)))
                if initialize is nobody_tells:
                    assert [type(one) for one in replies] == [exceptions.TryAgainError] * 2
                    nodes.nodes_cache[target.name] = target

            assert replies == (b"OK", b"1")
            assert at_source.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        finally:
            for node in (at_source, at_target):
                node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
