"""The asyncio link to Redis, against real servers: order, coalescing, faults, clusters."""

from __future__ import annotations

import asyncio
import select
import signal
from collections.abc import AsyncIterator
from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from marks import REDIS_VERSIONS
from waiting import until_async

from catga_store.drivers import redis_multiplexed
from catga_store.drivers.redis_asyncio import open_redis_link
from catga_store.drivers.redis_asyncio import redis_link
from catga_store.drivers.redis_clients import check_url
from catga_store.errors import UsageError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only: trio uses the link through the portal."""
    return "asyncio"


@pytest.fixture(scope="module", params=REDIS_VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Run one server for the tests that leave it as it is."""
    with RedisServer(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Run one cluster for the tests of this file."""
    with RedisCluster() as running:
        yield running


@asynccontextmanager
async def opened(url: str, seconds: float = 10) -> AsyncIterator[Any]:
    """Open a link with a client of its own, and close it."""
    link = open_redis_link(url, seconds)
    try:
        yield link
    finally:
        await link.close()


def pipe(*commands: tuple[Any, ...], exclusive: bool = False) -> Pipe:
    """Make a pipe of commands, each with its second argument as its key."""
    return Pipe(
        tuple(Command(words, str(words[1]).encode()) for words in commands),
        True,
        exclusive=exclusive,
    )


def echo(*words: str) -> Pipe:
    """Make a pipe of ECHO commands."""
    return pipe(*(("ECHO", word) for word in words))


async def turns(number: int) -> None:
    """Let the loop run that many turns."""
    for _ in range(number):
        await asyncio.sleep(0)


def ask_directly(port: int, *words: Any) -> Any:
    """Send a command on a blocking connection of its own."""
    with redis.Redis(port=port) as client:
        return client.execute_command(*words)


def calls(port: int, command: str) -> int:
    """Return how often the server has run a command."""
    stats = ask_directly(port, "INFO", "commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


def clients(port: int) -> list[Any]:
    """Return the connected clients without this one."""
    return ask_directly(port, "CLIENT LIST")[:-1]


# --- order and coalescing -------------------------------------------------------------------------


async def test_replies_are_bytes_in_order(server: RedisServer) -> None:
    """Each reply has the place of its command, as bytes; an error is a value."""
    async with opened(server.url) as link:
        replies = await link.perform(
            pipe(("SET", "k", b"\xff"), ("GET", "k"), ("LPOP", "k"), ("GET", "none"), ("DEL", "k"))
        )

    assert replies[:2] == (b"OK", b"\xff")
    assert isinstance(replies[2], redis.ResponseError)
    assert replies[3:] == (None, 1)


async def test_client_of_the_user_is_not_altered_and_stays_open(server: RedisServer) -> None:
    """A client that decodes in another encoding returns bytes here and text to its owner."""
    client = redis.asyncio.Redis.from_url(server.url, decode_responses=True, encoding="latin-1")
    link = redis_link(client, 10)
    assert await link.perform(echo("é")) == ("é".encode(),)
    await link.close()
    assert await client.echo("é") == "é"  # type: ignore[misc]
    await client.aclose()


async def test_tasks_share_one_connection_and_few_writes(server: RedisServer) -> None:
    """Commands of a hundred tasks in one turn of the loop are written for some tasks at a time, on one connection."""
    async with opened(server.url) as link:
        await link.perform(echo("first"))
        before = link.writes, calls(server.port, "echo")
        asked = [link.perform(echo(f"{n}", f"{n}'")) for n in range(100)]
        assert await asyncio.gather(*asked) == [
            (f"{n}".encode(), f"{n}'".encode()) for n in range(100)
        ]
        assert link.writes - before[0] == -(-100 // redis_multiplexed._TOGETHER)
        assert calls(server.port, "echo") - before[1] == 200
        assert len(clients(server.port)) == 1


async def test_commands_of_a_pipe_stay_together(server: RedisServer) -> None:
    """The commands of two pipes of a hundred are not mixed."""
    async with opened(server.url) as link:
        await asyncio.gather(
            *(link.perform(pipe(*[("RPUSH", "l", n)] * 100)) for n in range(5)),
        )
        (left,) = await link.perform(pipe(("LRANGE", "l", 0, -1)))
        await link.perform(pipe(("DEL", "l")))

    assert left == [str(n).encode() for n in range(5) for _ in range(100)]


async def test_exclusive_pipe_has_its_own_connection(server: RedisServer) -> None:
    """It works while the shared connection is blocked, and gives its own back."""
    body = b"x" * (2 << 20)
    async with opened(server.url) as link:
        blocked = asyncio.ensure_future(link.perform(pipe(("BLPOP", "gate", 0))))
        await turns(5)
        assert await link.perform(pipe(("SET", "big", body), exclusive=True)) == (b"OK",)
        assert await link.perform(pipe(("GET", "big"), exclusive=True)) == (body,)
        assert not blocked.done()
        ask_directly(server.port, "RPUSH", "gate", "go")
        assert await blocked == ([b"gate", b"go"],)


async def test_more_exclusive_pipes_than_the_pool_has_connections(server: RedisServer) -> None:
    """However many are in flight, each has a connection and none is refused."""
    async with opened(server.url) as link:
        waiting = [
            asyncio.ensure_future(link.perform(pipe(("BLPOP", "gate", 0), exclusive=True)))
            for _ in range(120)
        ]
        await until_async(
            lambda: ask_directly(server.port, "INFO", "clients")["blocked_clients"] == len(waiting)
        )
        ask_directly(server.port, "RPUSH", "gate", *range(len(waiting)))
        ended = await asyncio.gather(*waiting)

    assert sorted(int(value) for ((_, value),) in ended) == list(range(len(waiting)))


# --- cancellation ---------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(min_value=1, max_value=3),  # commands
            st.integers(min_value=0, max_value=6),  # turns before it asks
            st.none() | st.integers(min_value=0, max_value=8),  # turns before it is cancelled
        ),
        min_size=1,
        max_size=12,
    )
)
async def test_no_reply_reaches_the_wrong_caller(
    server: RedisServer, plan: list[tuple[int, int, int | None]]
) -> None:
    """Callers that are cancelled at any time do not change the replies of others."""

    async def ask(number: int, size: int, after: int) -> None:
        await turns(after)
        words = [f"{number}:{place}" for place in range(size)]
        for _ in range(3):
            assert await link.perform(echo(*words)) == tuple(word.encode() for word in words)

    async def cancel(task: asyncio.Task[None], after: int) -> None:
        await turns(after)
        task.cancel()

    async with opened(server.url) as link:
        tasks = [asyncio.create_task(ask(n, *one[:2])) for n, one in enumerate(plan)]
        await asyncio.gather(
            *(cancel(tasks[n], one[2]) for n, one in enumerate(plan) if one[2] is not None)
        )
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert await link.perform(echo("last")) == (b"last",)

    for (_, _, cancelled), result in zip(plan, ended, strict=True):
        assert result is None or (cancelled is not None and type(result) is asyncio.CancelledError)


async def test_late_reply_of_a_cancelled_call_is_dropped(server: RedisServer) -> None:
    """A call that is cancelled after it was sent takes its reply; the next call has its own."""
    async with opened(server.url) as link:
        await link.perform(echo("before"))
        server.signal(signal.SIGSTOP)
        try:
            first = asyncio.create_task(link.perform(echo("first")))
            await turns(20)
            first.cancel()
            second = asyncio.create_task(link.perform(echo("second")))
            await turns(20)
        finally:
            server.signal(signal.SIGCONT)

        assert await second == (b"second",)
        assert first.cancelled()


async def test_call_cancelled_before_the_write_is_never_sent(server: RedisServer) -> None:
    """A call that is cancelled in its own turn of the loop does not reach the server."""
    async with opened(server.url) as link:
        await link.perform(echo("first"))
        asked = asyncio.ensure_future(link.perform(pipe(("INCR", "never"))))
        await turns(1)
        asked.cancel()
        assert await link.perform(pipe(("EXISTS", "never"))) == (0,)


# --- faults ---------------------------------------------------------------------------------------


async def test_nothing_is_sent_to_a_stopped_server() -> None:
    """It works when the server runs, and again after the server was killed and started."""
    with RedisServer() as server:
        async with opened(server.url) as link:
            assert await link.perform(echo("a")) == (b"a",)
            server.kill()
            with pytest.raises((NotSentError, ReplyLostError)):
                await link.perform(echo("b"))

            with pytest.raises(NotSentError):
                await link.perform(echo("c"))

            server.start()
            assert await link.perform(echo("d")) == (b"d",)


async def test_hung_server_loses_what_was_sent() -> None:
    """At the deadline all calls in flight lose their replies; later calls work."""
    with RedisServer() as server:
        async with opened(server.url, seconds=0.3) as link:
            await link.perform(echo("a"))
            server.signal(signal.SIGSTOP)
            ended = await asyncio.gather(
                *(link.perform(pipe(("INCR", f"n{n}"))) for n in range(10)), return_exceptions=True
            )
            assert {type(one) for one in ended} == {ReplyLostError}
            with pytest.raises(NotSentError):  # no server greets the new connection
                await link.perform(echo("b"))

            server.signal(signal.SIGCONT)
            assert await link.perform(echo("c")) == (b"c",)


async def test_unsent_call_goes_out_on_the_next_connection(server: RedisServer) -> None:
    """A killed connection loses the replies of sent calls only."""
    async with opened(server.url) as link:
        ((own,),) = [await link.perform(pipe(("CLIENT", "ID")))]
        blocked = asyncio.ensure_future(link.perform(pipe(("BLPOP", "gate", 0))))
        await turns(5)
        ask_directly(server.port, "CLIENT KILL", "ID", own)
        with pytest.raises(ReplyLostError):
            await blocked

        assert await link.perform(echo("again")) == (b"again",)


class Cutter:
    """A proxy that breaks its connection after that many more bytes of the server's replies."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.left: int | None = None
        self.ended: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replies, there = await asyncio.open_connection("127.0.0.1", self.port)
        forward = asyncio.ensure_future(self.forward(reader, there))
        while self.left != 0 and (data := await replies.read(1 << 16)):
            if self.left is not None:
                data = data[: self.left]
                self.left -= len(data)

            writer.write(data)

        forward.cancel()
        for one in (writer, there):
            one.close()
            await asyncio.wait([asyncio.ensure_future(one.wait_closed())])

    async def forward(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            there.write(data)

        there.close()


@pytest.mark.parametrize("passed", range(1, 17))
async def test_connection_that_breaks_within_a_reply(server: RedisServer, passed: int) -> None:
    """A complete reply counts; a partial one is lost."""
    cutter = Cutter(server.port)
    proxy = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    async with proxy, opened(f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}") as link:
        await link.perform(echo("first"))
        cutter.left = passed
        first, second = await asyncio.gather(
            link.perform(echo("ab")), link.perform(echo("cd")), return_exceptions=True
        )
        cutter.left = None
        assert await link.perform(echo("after")) == (b"after",)

    whole = len(b"$2\r\nab\r\n")
    assert first == (b"ab",) if passed >= whole else type(first) is ReplyLostError
    assert second == (b"cd",) if passed >= 2 * whole else type(second) is ReplyLostError


async def test_close_fails_what_is_in_flight(server: RedisServer) -> None:
    """A closed link loses what was sent, sends nothing more, and leaves no connection open."""
    before = len(clients(server.port))
    link = open_redis_link(server.url, 10)
    blocked = asyncio.ensure_future(link.perform(pipe(("BLPOP", "gate", 0))))
    await turns(20)
    await link.close()
    with pytest.raises((ReplyLostError, NotSentError), match="the store was closed"):
        await blocked

    with pytest.raises(NotSentError, match="the store was closed"):
        await link.perform(echo("a"))

    assert len(clients(server.port)) == before


# --- a cluster ------------------------------------------------------------------------------------


async def test_pipe_is_divided_among_nodes_and_put_together(cluster: RedisCluster) -> None:
    """Replies are in the order of the commands, whichever nodes send them."""
    async with opened(cluster.url) as link:
        keys = [f"k{n}" for n in range(50)]
        await link.perform(pipe(*(("SET", key, f"v-{key}") for key in keys)))
        assert await link.perform(pipe(*(("GET", key) for key in keys))) == tuple(
            f"v-{key}".encode() for key in keys
        )
        assert link.writes >= 6
        ended = await asyncio.gather(*(link.perform(pipe(("GET", key))) for key in keys))
        assert ended == [(f"v-{key}".encode(),) for key in keys]


async def test_cluster_that_does_not_return_its_slots(cluster: RedisCluster) -> None:
    """Nothing is sent, and the error says how long the wait was."""
    async with opened(cluster.url, seconds=0.3) as link:
        for node in cluster.nodes:
            node.signal(signal.SIGSTOP)

        try:
            with pytest.raises(
                NotSentError, match=r"returned the map of hash slots within 0\.3 s|Timeout"
            ):
                await link.perform(echo("a"))
        finally:
            for node in cluster.nodes:
                node.signal(signal.SIGCONT)

    async with opened(cluster.url) as link:
        assert await link.perform(echo("a")) == (b"a",)


async def test_moved_and_ask_redirections(cluster: RedisCluster) -> None:
    """A moving slot is found at its old and at its new node."""
    key, slot = "{mover}", redis.crc.key_slot(b"mover")
    nodes = {node.port: redis.Redis(port=node.port) for node in cluster.nodes}
    ids = {port: str(node.execute_command("CLUSTER MYID"), "ascii") for port, node in nodes.items()}
    source = next(
        port
        for port, node in nodes.items()
        if any(low <= slot <= high for low, high in slots_of(node, port))
    )
    target = next(port for port in nodes if port != source)
    async with opened(cluster.url) as link:
        await link.perform(pipe(("SET", key, "1")))
        nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        # Not here any more, or not yet: the source says to ask the target.
        assert await link.perform(pipe(("SET", key + "new", "2"), ("GET", key))) == (b"OK", b"1")
        assert nodes[source].execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        nodes[source].execute_command("MIGRATE", "127.0.0.1", target, key, 0, 5000)
        assert await link.perform(pipe(("GET", key), ("GET", key + "new"))) == (b"1", b"2")
        for port in (target, source):
            nodes[port].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

        def agree() -> bool:
            holders = [slots_of(node, target) for node in nodes.values()]
            return all(any(low <= slot <= high for low, high in ranges) for ranges in holders)

        # Until each knows, one may send the command back, and the link gives up in the end: TRYAGAIN.
        await until_async(agree)
        assert await link.perform(pipe(("INCR", key), ("INCR", key))) == (2, 3)
        assert await link.perform(pipe(("GET", key), exclusive=True)) == (b"3",)

    for node in nodes.values():
        node.close()


def slots_of(node: Any, port: int) -> list[tuple[int, int]]:
    """Return the ranges of slots that a node says it has."""
    return [
        (low, high)
        for low, high, owner, *_ in node.execute_command("CLUSTER SLOTS")
        if owner[1] == port
    ]


def is_well(node: RedisServer) -> bool:
    """Return whether a node reports its cluster as complete."""
    return b"cluster_state:ok" in node.ask(b"CLUSTER INFO\r\n")


async def test_stopped_node_is_found_again() -> None:
    """Other nodes work meanwhile."""
    with RedisCluster() as cluster:
        async with opened(cluster.url) as link:
            keys = [f"k{n}" for n in range(30)]
            sets = pipe(*(("SET", key, "v") for key in keys))
            await link.perform(sets)
            cluster.nodes[1].kill()
            for _ in range(2):  # a part of it was done, before the link knows and after
                with pytest.raises(ReplyLostError):
                    await link.perform(sets)

            ended = await asyncio.gather(
                *(link.perform(pipe(("GET", key))) for key in keys), return_exceptions=True
            )
            kinds = {type(one) for one in ended}
            assert tuple in kinds
            assert kinds <= {tuple, NotSentError}
            cluster.nodes[1].start()
            for node in cluster.nodes:
                node.wait_until(partial(is_well, node))

            assert await link.perform(pipe(*(("GET", key) for key in keys))) == (b"v",) * 30


async def test_reply_at_its_deadline_reaches_no_other_caller(
    server: RedisServer,
) -> None:
    """A reply that was read when its connection was given up is not the next caller's."""
    async with opened(server.url) as link:
        await link.perform(echo("first"))
        (shared,) = link._multiplexed._shared.values()
        late = link.start(echo("late"))
        await turns(1)  # the write
        select.select([shared._connection._writer.get_extra_info("socket").fileno()], [], [])
        late.deadline = 0.0
        await turns(1)  # the loop sees the reply, and what follows goes before it
        asyncio.get_running_loop().call_soon(shared._expire)
        next_one = link.start(echo("next"))
        with pytest.raises(ReplyLostError):
            await late.ended

        assert await next_one.ended == (b"next",)


def test_option_that_redis_py_refuses_is_named() -> None:
    """Also one that got past the table of options, and without its value."""
    with pytest.raises(UsageError, match=r"option 'nope' is invalid") as caught:
        check_url("redis://host?nope=hunter2")

    assert "hunter2" not in str(caught.value)
