"""A stream that went back: what was acknowledged is gone, and its sequences come again.

A restore does that, and a power failure of a server that had not flushed. Client A holds records of
before. Client B writes others that get the same sequences. Whatever A writes must be refused.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from typing import NamedTuple

import nats
import nats.errors
import pytest
from waiting import retried
from waiting import until

import catga_store as cs
from catga_store.stores.nats import exchange
from catga_store.stores.nats.transport import Asks
from catga_store.stores.nats.transport import Publish
from catga_store.stores.nats.transport import Tell
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import free_ports

STREAM = "KV_dslflows"
NAMES = (
    "update",
    "one",
    "two-a",
    "two-b",
    "mixed",
    "check",
    "delete",
    "claimed",
    "release",
    "extend",
)


@pytest.fixture
def server() -> Iterator[NatsServer]:
    """Start a server that a test may send back."""
    with NatsServer() as one:
        yield one


class Client:
    """A few requests to the server itself."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def ask(self, subject: str, fields: object = None) -> dict[str, Any]:
        payload = b"" if fields is None else json.dumps(fields).encode()
        answer = await self._client.request(subject, payload, timeout=10)
        reply: dict[str, Any] = json.loads(answer.data)
        assert "error" not in reply, reply
        return reply

    async def snapshot(self) -> tuple[dict[str, Any], list[bytes]]:
        chunks: list[bytes] = []
        ended = asyncio.get_running_loop().create_future()

        async def take(message: Any) -> None:
            if message.data:
                chunks.append(message.data)
                if message.reply:
                    await self._client.publish(message.reply, b"")

            elif not ended.done():
                ended.set_result(None)

        inbox = self._client.new_inbox()
        await self._client.subscribe(inbox, cb=take)
        made = await self.ask(f"$JS.API.STREAM.SNAPSHOT.{STREAM}", {"deliver_subject": inbox})
        await asyncio.wait_for(ended, 10)
        return made, chunks

    async def restore(self, made: dict[str, Any], chunks: list[bytes]) -> None:
        await self.ask(f"$JS.API.STREAM.DELETE.{STREAM}")
        wanted = {"config": made["config"], "state": made["state"]}
        begun = await self.ask(f"$JS.API.STREAM.RESTORE.{STREAM}", wanted)
        for chunk in [*chunks, b""]:
            await self._client.request(begun["deliver_subject"], chunk, timeout=10)


def with_client(url: str, use: Callable[[Client], Any]) -> Any:
    """Do something over a connection of its own."""

    async def go() -> Any:
        connect: Any = nats.connect
        client = await connect(url)
        try:
            return await use(Client(client))
        finally:
            await client.close()

    return asyncio.run(go())


def last_sequence(url: str) -> int:
    """Return where the stream ends."""
    info = with_client(url, lambda client: client.ask(f"$JS.API.STREAM.INFO.{STREAM}"))
    return int(info["state"]["last_seq"])


class Backup(NamedTuple):
    """How a stream goes back: `restore` brings back what was there when this was made."""

    restore: Callable[[], None]


def of_power(server: NatsServer) -> Backup:
    """Copy what is on the disk; to go back, kill the server and start it with the copy."""
    server.stop()
    kept = server.directory.with_name(server.directory.name + "-kept")
    shutil.copytree(server.directory / "jetstream", kept)
    server.start()

    def restore() -> None:
        server.kill()
        there: Path = server.directory / "jetstream"
        shutil.rmtree(there)
        shutil.move(kept, there)
        server.start()

    return Backup(restore)


def of_stream(server: NatsServer) -> Backup:
    """Make a backup of the stream; to go back, restore it while server and clients live."""
    made, chunks = with_client(server.url, Client.snapshot)

    def restore() -> None:
        with_client(server.url, lambda client: client.restore(made, chunks))

    return Backup(restore)


def write(store: cs.Store, who: str) -> dict[str, cs.FlowSnapshot[Any]]:
    """Write every flow once more, always in the same order."""
    held: dict[str, cs.FlowSnapshot[Any]] = {}
    for name in NAMES:
        if name in {"claimed", "release", "extend"}:
            held[name] = store.claim(name, owner=who)
            continue

        flow = held[name] = store.get_one(name)
        flow.state["who"] = who
        store.update(flow)

    return held


def change_others(store: cs.Store) -> tuple[cs.ForEachProgress, cs.WaitCondition]:
    """Write progress and a condition once more."""
    progress = store.get_for_each_progress("update", 0)
    condition = store.get_wait_condition("pending")
    assert progress is not None
    assert condition is not None
    progress.mark(0, ok=True)
    store.save_for_each_progress("update", 0, progress)
    condition.flow_ids = [*condition.flow_ids, "y"]
    store.update_wait_condition(condition)
    return progress, condition


def session_of(store: cs.Store, *flows: cs.FlowSnapshot[Any]) -> None:
    """Commit changed flows together."""
    session = store.session()
    for flow in flows:
        session.add(flow)

    session.commit()


@pytest.mark.parametrize("back", [of_power, of_stream])
def test_stale_writer_after_a_rollback_is_refused(
    server: NatsServer, back: Callable[[NatsServer], Backup]
) -> None:
    """Also where A's connection survives, as with a stream that is restored in a running server."""
    with cs.NatsStore(server.url) as a, cs.NatsStore(server.url) as b:
        for name in NAMES:
            a.create(cs.FlowSnapshot(name, state={"who": ""}))

        a.save_for_each_progress("update", 0, cs.ForEachProgress())
        a.set_wait_condition(cs.WaitCondition("pending", flow_ids=["x"]))
        backup = back(server)
        held = write(a, "A")
        progress, condition = change_others(a)
        before = last_sequence(server.url)
        backup.restore()
        write(b, "B")
        change_others(b)
        assert last_sequence(server.url) == before

        for name, flow in held.items():
            if name != "release":  # which is refused of a changed flow in any case
                flow.state["who"] = "A again"

        def mixed() -> None:
            fresh = a.get_one("two-a")
            fresh.state["who"] = "A again"
            session_of(a, fresh, held["mixed"])

        def check() -> None:
            session = a.session()
            session.check(held["check"])
            session.complete_child("w", "x")
            session.commit()

        stale: dict[str, Callable[[], object]] = {
            "update": lambda: a.update(held["update"]),
            "session of one": lambda: session_of(a, held["one"]),
            "session of two": lambda: session_of(a, held["two-a"], held["two-b"]),
            "session of two, one of them fresh": mixed,
            "check": check,
            "delete": lambda: a.delete(held["delete"]),
            "claimed by B meanwhile": lambda: a.update(held["claimed"]),
            "release": lambda: a.release(held["release"]),
            "extend": lambda: a.extend(held["extend"]),
            "progress": lambda: a.save_for_each_progress("update", 0, progress),
            "condition": lambda: a.update_wait_condition(condition),
        }
        for do in stale.values():
            with pytest.raises(cs.ConflictError):
                do()

        for name in NAMES:
            flow = b.get_one(name)
            assert flow.state["who"] == "B" or flow.owner == "B", name


@pytest.mark.parametrize("back", [of_power, of_stream])
def test_stale_writer_over_a_client_of_the_user(
    server: NatsServer, back: Callable[[NatsServer], Backup]
) -> None:
    """The store notices a new connection that it has not made itself."""

    async def use() -> None:
        connect: Any = nats.connect
        client = await connect(server.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
        try:
            async with cs.AsyncNatsStore(client) as a:
                await a.create(cs.FlowSnapshot("f", state={"who": ""}))
                backup = await asyncio.to_thread(back, server)
                flow = await a.get_one("f")
                flow.state["who"] = "A"
                await a.update(flow)
                await asyncio.to_thread(backup.restore)
                await asyncio.to_thread(overtake, server.url)
                flow.state["who"] = "A again"
                with pytest.raises(cs.StaleFlowError):
                    await a.update(flow)

                assert (await a.get_one("f")).state == {"who": "B"}
        finally:
            await client.close()

    asyncio.run(use())


def overtake(url: str) -> None:
    """Write the next version of a flow."""
    with cs.NatsStore(url) as store:
        flow = store.get_one("f")
        assert flow.state["who"] == ""
        flow.state["who"] = "B"
        store.update(flow)


LONG = 60
"""Seconds that only a test that fails would wait."""


@pytest.mark.nightly
def test_stale_writer_after_three_machines_lost_power() -> None:
    """Replicas that went back together elect their leader again."""
    with NatsCluster() as cluster:
        patience = timedelta(seconds=LONG)
        with (
            cs.NatsStore(cluster.url, replicas=3, timeout=patience) as a,
            cs.NatsStore(cluster.url, replicas=3, timeout=patience) as b,
        ):
            a.create(cs.FlowSnapshot("f", state={"who": ""}))
            b.ping()
            for node in cluster.nodes:
                node.stop()
                shutil.copytree(node.directory / "jetstream", node.directory / "kept")

            cluster.start()
            flow = a.get_one("f")
            flow.state["who"] = "A"
            a.update(flow)

            for node in cluster.nodes:
                node.kill()
                shutil.rmtree(node.directory / "jetstream")
                shutil.move(node.directory / "kept", node.directory / "jetstream")

            cluster.start()
            other = b.get_one("f")
            assert other.state["who"] == ""
            other.state["who"] = "B"
            b.update(other)

            flow.state["who"] = "A again"
            with pytest.raises(cs.ConflictError):
                a.update(flow)

            assert b.get_one("f").state["who"] == "B"


@pytest.mark.soak
def test_stale_writer_after_two_of_three_machines_went_back() -> None:
    """The two elect a leader without what the third has, to which the stale writer is connected.

    What is acknowledged after that is kept. The third server cannot follow the others until its data
    are removed (nats-server 2.15.1), as `docs/operations/nats.md` says.
    """
    patience = timedelta(seconds=LONG)
    with NatsCluster() as cluster:
        third, *back = cluster.nodes
        with cs.NatsStore(third.url, replicas=3, timeout=patience) as a:
            a.create(cs.FlowSnapshot("f", state={"who": ""}))
            for node in back:
                node.stop()
                shutil.copytree(node.directory / "jetstream", node.directory / "kept")

            cluster.start()
            flow = a.get_one("f")
            flow.state["who"] = "A"
            a.update(flow)
            before = last_sequence(third.url)

            third.signal(signal.SIGSTOP)  # else it may become the leader, and nothing is lost
            for node in back:
                node.kill()
                shutil.rmtree(node.directory / "jetstream")
                shutil.move(node.directory / "kept", node.directory / "jetstream")
                node.start(wait=False)

            with cs.NatsStore(back[0].url, replicas=3, timeout=patience) as b:
                other = retried(lambda: b.get_one("f"), cs.StoreUnavailableError)
                assert other.state["who"] == "", "the update of A is lost"
                other.state["who"] = "B"
                b.update(other)
                assert last_sequence(back[0].url) <= before, "the sequences come again"
                third.signal(signal.SIGCONT)

                flow.state["who"] = "A again"
                with pytest.raises(cs.StaleFlowError):
                    a.update(flow)

                for store in (a, b):
                    assert store.get_one("f").state["who"] == "B"

                acknowledged = [f"new-{number}" for number in range(100)]
                for number, name in enumerate(acknowledged):
                    (a, b)[number % 2].create(cs.FlowSnapshot(name, state={}))

            third.kill()
            shutil.rmtree(third.directory / "jetstream")
            third.start(wait=False)
            until(lambda: follows(back[0].url, third.name))
            for node in cluster.nodes:
                node.kill()
                alive = next(one for one in cluster.nodes if one is not node)
                with cs.NatsStore(alive.url, replicas=3, timeout=patience) as c:
                    found = retried(lambda: c.get_many(acknowledged), *NOT_YET)
                    missing = [name for name in acknowledged if found[name] is None]
                    assert missing == [], f"without {node.name}"
                    assert c.get_one("f").state["who"] == "B"

                node.start(wait=False)
                until(lambda: follows(alive.url, node.name))  # noqa: B023  called at once


NOT_YET = cs.StoreUnavailableError, cs.CommitUncertainError


def follows(url: str, name: str) -> bool:
    """Whether a server of the cluster is the stream's leader or has all that the leader has."""
    try:
        info = with_client(url, lambda client: client.ask(f"$JS.API.STREAM.INFO.{STREAM}"))
    except (nats.errors.Error, AssertionError):  # there is no leader yet
        return False

    cluster = info["cluster"]
    states = {one["name"]: one["current"] for one in cluster["replicas"]}
    return bool(cluster["leader"] == name or states.get(name))


def go_back(node: NatsServer, change: Callable[[], None]) -> None:
    """Copy a server's store, let something change, and put the copy back as if power had failed."""
    node.stop()
    shutil.copytree(node.directory / "jetstream", node.directory / "kept")
    node.start()
    change()
    node.kill()
    shutil.rmtree(node.directory / "jetstream")
    shutil.move(node.directory / "kept", node.directory / "jetstream")
    node.start()


def overtake_behind_a_connection(url: str, node: NatsServer, domain: str | None = None) -> None:
    """Let A's last write get lost on a server that A is not connected to, and let B write instead."""
    patience = timedelta(seconds=LONG)
    with (
        cs.NatsStore(url, timeout=patience, domain=domain) as a,
        cs.NatsStore(url, timeout=patience, domain=domain) as b,
    ):
        flow = cs.FlowSnapshot("f", state={"who": ""})
        a.create(flow)

        def change() -> None:
            flow.state["who"] = "A"
            a.update(flow)

        go_back(node, change)
        other = b.get_one("f")
        assert other.state["who"] == ""
        other.state["who"] = "B"
        b.update(other)

        flow.state["who"] = "A again"
        with pytest.raises(cs.StaleFlowError):
            a.update(flow)

        assert b.get_one("f").state["who"] == "B"


def test_stale_writer_whose_connection_is_to_another_server_of_the_cluster() -> None:
    """One replica elects no leader, and the client's connection survives: nothing tells of it."""
    with NatsCluster() as cluster:
        first = cluster.nodes[0].url
        with cs.NatsStore(first, timeout=timedelta(seconds=LONG)) as store:
            store.ping()

        info = with_client(first, lambda client: client.ask(f"$JS.API.STREAM.INFO.{STREAM}"))
        leader = info["cluster"]["leader"]
        (holder,) = [node for node in cluster.nodes if node.name == leader]
        other = next(node for node in cluster.nodes if node is not holder)
        overtake_behind_a_connection(other.url, holder)


def test_stale_writer_behind_a_leaf_node() -> None:
    """The connection to the leaf node survives when the server behind it goes back."""
    (port,) = free_ports(1)
    hub = NatsServer(f'leafnodes {{ listen: "127.0.0.1:{port}" }}')
    hub.jetstream_settings = "domain: hub"
    remote = f'leafnodes {{ remotes: [{{ url: "nats://127.0.0.1:{port}" }}], reconnect: 1 }}'
    with hub, NatsServer(remote, jetstream=False) as leaf:
        overtake_behind_a_connection(leaf.url, hub, "hub")


class Transport:
    """The transport requests of a store, one after the other, as its driver performs them."""

    def __init__(self, store: cs.NatsStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[object] = []
        link = store._driver._portal.units.link  # type: ignore[attr-defined]  of the driver of servers
        perform = link.perform

        async def note(request: Any) -> Any:
            if not isinstance(request, Tell):  # it waits for nothing
                self.requests.append(request)

            return await perform(request)

        monkeypatch.setattr(link, "perform", note)


def test_update_on_a_healthy_connection_is_one_publish(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a flow that another store has written, once it was read."""
    with cs.NatsStore(server.url) as store, cs.NatsStore(server.url) as other:
        store.create(cs.FlowSnapshot("f", state={"n": 0}))
        flow = other.get_one("f")
        monkeypatch.setattr(exchange, "_LOOK_SECONDS", LONG)
        seen = Transport(other, monkeypatch)
        for number in range(5):
            flow.state["n"] = number
            other.update(flow)

        assert [type(one) for one in seen.requests] == [Publish] * 5


def test_updates_after_commits_that_shared_a_batch_are_one_publish_each(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the commits is told the sequence of its own record."""
    flows = [cs.FlowSnapshot(f"f{number}", state={"n": 0}) for number in range(64)]
    with cs.NatsStore(server.url) as store, ThreadPoolExecutor(16) as threads:
        store.ping()
        monkeypatch.setattr(exchange, "_LOOK_SECONDS", LONG)
        list(threads.map(store.create, flows))
        seen = Transport(store, monkeypatch)
        for flow in flows:
            flow.state["n"] = 1
            store.update(flow)

        # None is refused and sent again; every 16th commit asks what to sweep.
        assert sum(type(one) is Publish for one in seen.requests) == len(flows)


def test_leader_is_asked_once_in_a_while(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every time: once in a second, and only where something is to be written unread."""
    with cs.NatsStore(server.url) as store:
        flow = cs.FlowSnapshot("f", state={"n": 0})
        store.create(flow)
        monkeypatch.setattr(exchange, "_LOOK_SECONDS", -1.0)
        seen = Transport(store, monkeypatch)
        flow.state["n"] = 1
        store.update(flow)
        assert [type(one) for one in seen.requests] == [Asks, Publish]


# --- a store that is gone -----------------------------------------------------------------------


def test_empty_stream_where_there_was_a_store_is_an_error(server: NatsServer) -> None:
    """A client that has seen the other store does not take it for an empty one."""
    with cs.NatsStore(server.url) as store:
        store.create(cs.FlowSnapshot("f", state={}))
        with_client(server.url, lambda client: client.ask(f"$JS.API.STREAM.DELETE.{STREAM}"))
        with cs.NatsStore(server.url) as other:
            assert other.get("f") is None

        uses: list[Callable[[], object]] = [
            lambda: store.get("f"),
            store.count_flows,
            lambda: store.create(cs.FlowSnapshot("g", state={})),
            lambda: store.complete_child("w", "x"),
        ]
        for use in uses:
            with pytest.raises(cs.StoreConfigError, match=r"holds another store.*was removed"):
                use()

    with cs.NatsStore(server.url) as store:
        assert store.get("g") is None


def test_store_is_not_created(server: NatsServer) -> None:
    """With `create=False`, a stream that is not there or empty is an error."""
    with (
        cs.NatsStore(server.url, create=False) as store,
        pytest.raises(cs.StoreConfigError, match="does not exist, and create=False"),
    ):
        store.get("f")

    with cs.NatsStore(server.url) as store:
        store.create(cs.FlowSnapshot("f", state={}))

    with cs.open_store(f"{server.url}?create=false") as store:
        assert store.get("f") is not None

    with_client(
        server.url, lambda client: client.ask(f"$JS.API.STREAM.PURGE.{STREAM}", {"keep": 0})
    )
    with (
        cs.open_store(f"{server.url}?create=false") as store,
        pytest.raises(cs.StoreConfigError, match="is empty, and create=False"),
    ):
        store.get("f")


def test_cleared_store_is_used_further(server: NatsServer) -> None:
    """`clear` keeps the store's identity: other clients do not miss it."""
    with cs.NatsStore(server.url) as store, cs.NatsStore(server.url) as other:
        other.create(cs.FlowSnapshot("f", state={}))
        store.clear()
        server.kill()
        server.start()
        assert other.get("f") is None
        other.create(cs.FlowSnapshot("f", state={}))
        assert store.get("f") is not None
