"""Redis servers that cannot serve: each is an error of the library, with redis-py's as its cause."""

from __future__ import annotations

import os
import re
import signal
import threading
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import redis
from marks import REDIS_VERSIONS
from stuck import assert_a_row

import catga_store as cs
from catga_store.stores.redis import sweeping
from catga_store.stores.redis.scripts import CLEAR
from catga_store.stores.redis.scripts import LAY_OUT
from catga_store.stores.redis.scripts import call
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import StoreAPI
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer


def flow(flow_id: str = "f", **state: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state=state)


@pytest.fixture(params=REDIS_VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Every version that there is a server of."""
    answer: str = request.param
    return answer


@pytest.fixture
def start(version: str) -> Iterator[Callable[..., RedisServer]]:
    """Start a server of its own for the test, with options."""
    started: list[RedisServer] = []

    def start_one(*options: str) -> RedisServer:
        started.append(RedisServer(version, *options))
        return started[-1].start()

    yield start_one
    for server in started:
        server.close()


@pytest.fixture(params=["blocking", "asyncio", "trio"])
def open_api(request: pytest.FixtureRequest) -> Callable[..., StoreAPI]:
    """Open a store by each of its APIs."""

    def open_one(url: str, **options: Any) -> StoreAPI:
        if request.param == "blocking":
            return BlockingAPI(lambda: cs.open_store(url, **options))

        return AsyncAPI(lambda: cs.open_async_store(url, **options), backend=request.param)

    return open_one


@pytest.fixture
def shared(
    version: str, redis_server: Callable[[str], RedisServer]
) -> Iterator[tuple[cs.Store, redis.Redis, str]]:
    """Return a store on a shared server, a client of it, and the tag of the store's keys."""
    prefix = f"{uuid.uuid4().hex}:"
    url = redis_server(version).url
    with cs.open_store(f"{url}?prefix={prefix}") as store, redis.Redis.from_url(url) as client:
        store.ping()
        yield store, client, f"{{{prefix}0}}:"


def test_stopped_server(
    start: Callable[..., RedisServer], open_api: Callable[..., StoreAPI]
) -> None:
    """Reads and writes raise at once, and work again when the server is back."""
    server = start()
    with open_api(server.url) as store:
        store.create(flow())
        server.stop()
        for ask in (lambda: store.get("f"), lambda: store.create(flow("g"))):
            with pytest.raises(
                cs.StoreUnavailableError, match=r"cannot be reached.*nothing"
            ) as got:
                ask()

            assert isinstance(got.value.__cause__, redis.ConnectionError)

        server.start()
        assert store.get("f") is not None
        assert store.get("g") is None


def test_loading_server(
    start: Callable[..., RedisServer], open_api: Callable[..., StoreAPI]
) -> None:
    """It is unavailable, not empty."""
    server = start("--key-load-delay", "100")
    with open_api(server.url) as store, redis.Redis(port=server.port) as client:
        store.create(flow())
        with client.pipeline(transaction=False) as pipe:
            for number in range(20_000):  # it looks up from its file every 1,024 commands
                pipe.set(f"ballast-{number}", "x")

            pipe.execute()

        server.stop()
        server.start(wait=False)
        server.wait_until(lambda: server.ask(b"PING\r\n").startswith(b"-LOADING"))
        with pytest.raises(cs.StoreUnavailableError, match="still loading") as caught:
            store.get("f")

        assert isinstance(caught.value.__cause__, redis.BusyLoadingError)
        server.wait_until(server.is_ready)
        assert store.get("f") is not None


def test_read_only_replica(
    start: Callable[..., RedisServer], open_api: Callable[..., StoreAPI]
) -> None:
    """A replica serves reads and refuses whole commits."""
    primary = start()
    with open_api(primary.url) as store:
        store.create(flow())

    replica = start("--replicaof", primary.host, str(primary.port))
    replica.wait_until(lambda: b"master_link_status:up" in replica.ask(b"INFO replication\r\n"))
    with open_api(replica.url) as store:
        assert store.get("f") is not None
        with pytest.raises(
            cs.StoreUnavailableError, match=r"read-only replica.*the primary"
        ) as got:
            store.create(flow("g"))

        assert isinstance(got.value.__cause__, redis.RedisError)
        assert store.get("g") is None


def test_server_out_of_memory(
    start: Callable[..., RedisServer], open_api: Callable[..., StoreAPI]
) -> None:
    """With `noeviction`, whole commits are refused; reads and deletes work."""
    server = start("--maxmemory-policy", "noeviction")
    with open_api(server.url) as store, redis.Redis(port=server.port) as client:
        store.create(flow())
        store.create(flow("old"))
        client.set("ballast", b"x" * 2_000_000)
        client.config_set("maxmemory", "1mb")
        with pytest.raises(cs.StoreUnavailableError, match=r"out of memory.*maxmemory") as caught:
            store.create(flow("g"))

        assert isinstance(caught.value.__cause__, redis.RedisError)
        assert store.get("g") is None
        assert store.count_flows() == 2
        assert store.get("f") is not None
        assert store.delete("old")

    with open_api(server.url) as store:
        assert store.get("f") is not None, "a new process can still read"


def test_server_with_a_password(
    start: Callable[..., RedisServer], open_api: Callable[..., StoreAPI]
) -> None:
    """A missing or wrong password is a `StoreConfigError`; the right one works."""
    server = start("--requirepass", "secret")
    for user in ("", ":wrong@"):
        with (
            open_api(f"redis://{user}127.0.0.1:{server.port}") as store,
            pytest.raises(cs.StoreConfigError, match="user or password") as caught,
        ):
            store.get("f")

        assert isinstance(caught.value.__cause__, redis.AuthenticationError)

    with open_api(f"redis://:secret@127.0.0.1:{server.port}") as store:
        store.create(flow())


@pytest.mark.parametrize("missing", ["-zadd", "-evalsha", "-hset", "-unlink", "-set", "-hget"])
def test_user_without_the_right_to_a_command(
    start: Callable[..., RedisServer], open_api: Callable[..., StoreAPI], missing: str
) -> None:
    """A command that the ACL refuses is found at first use, before anything is half written."""
    server = start()
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", missing)
        with (
            open_api(f"redis://app:pw@127.0.0.1:{server.port}") as store,
            pytest.raises(cs.StoreConfigError, match=r"ACL.*allow") as caught,
        ):
            store.create(flow())

        assert isinstance(caught.value.__cause__, redis.RedisError)
        assert client.keys() == []


def test_user_without_the_right_to_the_keys(start: Callable[..., RedisServer]) -> None:
    """A user for other keys is refused; a user for exactly this prefix works."""
    server = start()
    with redis.Redis(port=server.port) as client:
        for keys in ("~other*", "~{dslflow:*"):
            client.execute_command("ACL", "SETUSER", keys[1:3], "on", ">pw", keys, "+@all")

        with (
            cs.open_store(f"redis://ot:pw@127.0.0.1:{server.port}") as store,
            pytest.raises(cs.StoreConfigError, match="ACL"),
        ):
            store.create(flow())

        with cs.open_store(f"redis://%7Bd:pw@127.0.0.1:{server.port}") as store:
            store.create(flow())


def test_user_with_the_documented_rights_only(start: Callable[..., RedisServer]) -> None:
    """The documented commands and keys are enough for every kind of request."""
    tried = re.findall(r"\{'([A-Z]+)'", LAY_OUT.source.decode())
    allowed = {*tried, "EVALSHA", "EVAL", "SCAN", "INFO", "ZLEXCOUNT"}
    server = start()
    with redis.Redis(port=server.port) as client:
        rights = ("~{dslflow:*", *(f"+{command}" for command in sorted(allowed)))
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rights)

    with cs.open_store(f"redis://app:pw@127.0.0.1:{server.port}") as store:
        store.create(flow(text="x" * 1_100_000))
        done = flow("done")
        done.status = cs.FlowStatus.COMPLETED
        store.create(done)
        (claimed,) = store.claim_due(limit=5)
        store.extend(claimed, timedelta(hours=1))
        store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
        assert list(store.list_for_each_progress("f")) == [1]
        assert store.clear_for_each_progress("f", 1)
        store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
        store.complete_child("w", "a")
        store.complete_child("early", "a")
        assert store.get_wait_condition("w") is not None
        assert store.get_timed_out_wait_conditions() == []
        store.clear_wait_condition("w")
        assert len(store.query_flows().items) == store.count_flows() == 2
        for _ in range(16):  # one of them sweeps
            store.update(done)

        assert store.sweep() == 0
        store.delete("done")
        store.clear()


def test_keys_of_another_type(shared: tuple[cs.Store, redis.Redis, str]) -> None:
    """A record's key is a corrupt record, the index a `StoreConfigError`; both are left as they are."""
    store, client, tag = shared
    client.set(f"{tag}flow:f", "mine")
    with pytest.raises(cs.CorruptRecordError, match="flow 'f'"):
        store.get("f")

    with pytest.raises(cs.StoreConfigError, match="another prefix"):
        store.create(flow())

    client.set(f"{tag}index", "mine")
    with pytest.raises(cs.StoreConfigError, match="another prefix"):
        store.create(flow("g"))

    assert store.get("g") is None
    assert client.get(f"{tag}flow:f") == client.get(f"{tag}index") == b"mine"


@pytest.mark.parametrize(
    "head", [b"", b"garbage", b"[]", b'["a",1,99,0,0,null,null,"",1,"0",null,0,null,null]']
)
def test_unreadable_head(shared: tuple[cs.Store, redis.Redis, str], head: bytes) -> None:
    """Reading it raises with its name; in listings it is a row; workers skip it; it stays as it is."""
    store, client, tag = shared
    store.create(flow("bad"))
    store.create(flow("good"))
    client.hset(f"{tag}flow:bad", "head", head)
    with pytest.raises(cs.CorruptRecordError, match="flow 'bad'"):
        store.get("bad")

    assert_a_row(store, "bad", {"good"})
    assert [one.flow_id for one in store.claim_due(limit=5)] == ["good"]
    if head != b'["a",1,99,0,0,null,null,"",1,"0",null,0,null,null]':
        with pytest.raises(cs.CorruptRecordError, match="flow 'bad'"):
            store.delete("bad")

    assert client.hget(f"{tag}flow:bad", "head") == head


def test_scripts_are_sent_again_after_script_flush(
    shared: tuple[cs.Store, redis.Redis, str],
) -> None:
    """Every kind of request works as before, alone and with others in one pipe."""
    store, client, _ = shared
    client.script_flush()
    store.create(flow())
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    client.script_flush()
    with store.session() as session:
        assert session.get_many(["f", "g"])["f"] is not None
        assert session.get_wait_condition("w") is not None

    client.script_flush()
    (claimed,) = store.claim_due()
    client.script_flush()
    store.extend(claimed)
    client.script_flush()
    assert store.list_for_each_progress("f") == {}
    client.script_flush()
    assert store.sweep() == 0


def test_client_of_the_user_is_not_altered(
    version: str, redis_server: Callable[[str], RedisServer]
) -> None:
    """The store reads bytes whatever the client decodes, and does not close it."""
    prefix = f"{uuid.uuid4().hex}:"
    with redis.Redis(port=redis_server(version).port, decode_responses=True) as client:
        with cs.RedisStore(client, prefix=prefix) as store:
            store.create(flow("ü", text="ü"))
            assert store.get_one("ü").state == {"text": "ü"}

        assert client.hget(f"{{{prefix}0}}:flow:ü", "head") is not None


def test_hung_server_costs_no_more_than_the_timeout(
    start: Callable[..., RedisServer], open_api: Callable[..., StoreAPI]
) -> None:
    """A read of a stopped process is unavailable and a commit uncertain; later both work."""
    server = start()
    with open_api(server.url, timeout=timedelta(milliseconds=300)) as store:
        store.create(flow())
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(cs.StoreUnavailableError):
                store.get("f")

            with pytest.raises((cs.CommitUncertainError, cs.StoreUnavailableError)):
                store.create(flow("g"))
        finally:
            server.signal(signal.SIGCONT)

        assert store.get("f") is not None


def test_more_threads_than_the_pool_has_connections() -> None:
    """However many read at the same time, none is refused."""
    threads = 120
    with RedisServer() as server, cs.open_store(server.url) as store:
        store.create(flow())
        server.signal(signal.SIGSTOP)
        threading.Timer(0.5, server.signal, [signal.SIGCONT]).start()  # by then all have asked
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(store.get_one, ["f"] * threads))

        assert [one.version for one in found] == [1] * threads


def test_forked_child_has_connections_of_its_own(shared: tuple[cs.Store, redis.Redis, str]) -> None:
    """Parent and child use the same store, and no reply reaches the other process."""
    store, _, _ = shared
    store.create(flow("counter", n=0))

    def add(session: cs.Session) -> None:
        session.get_one("counter").state["n"] += 1

    child = os.fork()
    if child == 0:
        try:
            for _ in range(50):
                store.transact(add)
        finally:
            os._exit(0)

    for _ in range(50):
        store.transact(add)

    assert os.waitpid(child, 0)[1] == 0
    assert store.get_one("counter").state == {"n": 100}


def test_clear_removes_exactly_this_prefix(
    version: str, redis_server: Callable[[str], RedisServer]
) -> None:
    """Prefixes with pattern characters, and longer prefixes, keep their records."""
    url = redis_server(version).url
    base = uuid.uuid4().hex
    prefixes = [f"{base}[a*]?:", f"{base}a:", f"{base}aa:", f"{base}[a*]?:x"]
    stores = [
        cs.RedisStore.from_url(url, prefix=prefix, partitions=number + 1)
        for number, prefix in enumerate(prefixes)
    ]
    for store in stores:
        for number in range(20):
            store.create(flow(f"f-{number}"))

    stores[0].clear()
    assert [store.count_flows() for store in stores] == [0, 20, 20, 20]
    stores[2].clear()
    assert [store.count_flows() for store in stores] == [0, 20, 0, 20]
    for store in stores:
        store.clear()
        store.close()


def test_record_written_during_clear_is_whole_or_gone(
    shared: tuple[cs.Store, redis.Redis, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written between the scan and the removal: it stays, listed and due, or goes with its entries."""
    store, client, tag = shared
    store.create(flow("f"))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    client.hset(f"{tag}flow:corrupt", "head", "garbage")
    client.set(f"{tag}wait:foreign", "mine")
    url = f"redis://127.0.0.1:{client.get_connection_kwargs()['port']}?prefix={tag[1:-3]}"
    written: list[str] = []
    with cs.open_store(url) as other:

        def clear(script: Any, keys: Any, words: Any) -> Any:
            if script is CLEAR and not written:
                written.append("late")
                other.create(flow("late"))
                other.save_for_each_progress("f", 1, cs.ForEachProgress([1]))

            return call(script, keys, words)

        monkeypatch.setattr(sweeping, "call", clear)
        store.clear()
        assert written == ["late"]
        # Whether the rest of the look at the keys comes by it depends on where the server has put it.
        there = [] if store.get("late") is None else ["late"]
        assert [one.flow_id for one in store.query_flows().items] == there
        assert [one.flow_id for one in store.claim_due(limit=5)] == there
        assert store.list_for_each_progress("f") == {}
        left = client.zrange(f"{tag}index", 0, -1)
        assert bool(left) is bool(there)
        assert all(member.endswith(b"late") for member in left)
        store.clear()
        assert {key.split(b":")[2] for key in client.scan_iter(match=f"{tag}*", count=10_000)} <= {
            b"layout",
            b"commit",
        }


def test_renamed_command_is_found_at_first_use(start: Callable[..., RedisServer]) -> None:
    """A server without a command that the scripts need is found before anything is half written."""
    server = start("--rename-command", "PERSIST", "")
    with (
        cs.open_store(server.url) as store,
        redis.Redis(port=server.port) as client,
    ):
        with pytest.raises(cs.StoreConfigError, match=r"unknown command.* need PERSIST"):
            store.create(flow())

        assert client.keys() == []


def test_sweep_removes_entries_of_records_the_server_expired(
    shared: tuple[cs.Store, redis.Redis, str],
) -> None:
    """The server removes records an hour after they expire; a sweep removes their entries."""
    store, client, tag = shared
    done = flow("done")
    done.status = cs.FlowStatus.COMPLETED
    store.create(done)
    week = 7 * 24 * 3600
    assert week < client.ttl(f"{tag}flow:done") <= week + 3600
    assert client.ttl(f"{tag}index") == -1
    (member,) = client.zrangebylex(f"{tag}index", "[x", "(y")
    client.unlink(f"{tag}flow:done")  # as the server would, later
    assert store.query_flows().items == ()
    with cs.RedisStore(
        client,
        prefix=tag[1:-3],
        clock=lambda: done.created_at + timedelta(days=8),  # type: ignore[operator]  it has one
    ) as later:
        assert later.count_flows() == 0
        assert later.sweep() == 1

    assert member
    assert client.zcard(f"{tag}index") == 0


@pytest.mark.parametrize(
    "key", ["flow:f", "steps:f", "chunks:f", "parts:f", "names:f", "wait:w", "items:w"]
)
def test_evicted_key_is_an_absent_or_corrupt_record(
    key: str, shared: tuple[cs.Store, redis.Redis, str]
) -> None:
    """One key of a record was evicted: the rest is read, and can be written again."""
    store, client, tag = shared
    large = flow("f")
    large.state = {"text": "x" * (2 << 20)}
    store.create(large)
    progress = cs.ForEachProgress()
    progress.mark(0, ok=True)
    store.save_for_each_progress("f", 3, progress)
    part = cs.Part("f", "p", 1)
    store.put_part(part)
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"], parent_flow_id="f"))
    store.complete_child("w", "a")
    assert client.unlink(f"{tag}{key}") == 1

    if key == "flow:f":
        assert store.get("f") is None
        assert store.query_flows().items == ()
        assert store.claim_due() == []
        with pytest.raises(cs.FlowNotFoundError):
            store.update(large)

        store.create(flow("f"))
        assert [one.flow_id for one in store.query_flows().items] == ["f"]
    elif key == "chunks:f":
        with pytest.raises(cs.CorruptRecordError, match="without its chunks"):
            store.get("f")
    elif key == "parts:f":
        assert store.get_part("f", "p") is None
        with pytest.raises(cs.CorruptRecordError, match="part 'p' of flow 'f'"):
            store.list_parts("f")

        assert store.put_part(cs.Part("f", "p", 2)) is True
        assert [one.name for one in store.list_parts("f")] == ["p"]
    elif key == "names:f":
        assert store.list_parts("f").items == ()
        part.body = 2
        assert store.put_part(part) is True
        assert [one.name for one in store.list_parts("f")] == ["p"]
    elif key == "steps:f":
        assert store.list_for_each_progress("f") == {}
        assert store.get_one("f").state == large.state
    elif key == "wait:w":
        assert store.get_wait_condition("w") is None
    else:
        condition = store.get_wait_condition("w")
        assert condition is not None
        assert not store.complete_child("w", "b").now_satisfied


def test_resolving_a_commit_whose_reply_was_evicted(
    shared: tuple[cs.Store, redis.Redis, str],
) -> None:
    """The record remembers the commit, so it is not reported as never applied."""
    store, client, tag = shared
    subject = flow("f")
    store.create(subject)
    store.update(subject)
    replies = client.keys(f"{tag}commit:*")
    assert client.unlink(*replies) == len(replies)  # type: ignore[arg-type]
    error = cs.CommitUncertainError("lost", commit_id=subject.revision, keys=(subject.key,))
    assert store.resolve_commit(error) is not None


def test_foreign_index_entries_are_skipped(
    shared: tuple[cs.Store, redis.Redis, str],
) -> None:
    """Members that another program has added are skipped by sweeps, counts and claims."""
    store, client, tag = shared
    store.create(flow())
    added = [
        b"x",
        b"x0",
        b"x" + b"0" * 40,
        b"wt" + b"0" * 15 + b"y",
        b"fd" + b"0" * 15 + b"\xff",
        b"z",
    ]
    client.zadd(f"{tag}index", dict.fromkeys(added, 0))
    assert store.sweep() == 0
    assert store.count_flows() == 1
    assert [one.flow_id for one in store.claim_due(limit=5)] == ["f"]
    for number in range(40):
        store.create(flow(f"f-{number}"))


def test_cluster_node_opened_as_a_single_server(
    redis_cluster: RedisCluster,
) -> None:
    """The error says how a cluster is opened."""
    for node in redis_cluster.nodes:
        with cs.open_store(f"{node.url}?prefix=wrong:") as store:
            try:
                store.ping()
            except cs.StoreConfigError as error:
                assert "redis+cluster://" in str(error)  # noqa: PT017  one of the three has the slot
                return

    pytest.fail("every node answered for the slot")
