"""Parts and logs on Redis: their keys, large bodies, times to live, lost replies, and the doctor."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
import redis
from marks import REDIS_VERSIONS
from proxy import Proxy

import catga_store as cs
from catga_store.copying import compare
from catga_store.drivers.redis_clients import link_to_url
from catga_store.stores.redis.commit_args import LARGE
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.parts_check import examine_parts
from catga_store.stores.redis.transport import Pipe
from catga_store.testing import ManualClock
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer

BODY = b"*1 x" * (LARGE // 2)
"""Two chunks; it begins like what stands in place of a flow's large body."""
DAY = timedelta(days=1)


@pytest.fixture(params=REDIS_VERSIONS)
def server(
    request: pytest.FixtureRequest, redis_server: Callable[[str], RedisServer]
) -> RedisServer:
    """A server of each version."""
    return redis_server(request.param)


@pytest.fixture
def prefix() -> str:
    """Name records that no other test uses."""
    return f"{uuid.uuid4().hex}:"


@pytest.fixture
def store(server: RedisServer, prefix: str, clock: ManualClock) -> Iterator[cs.Store]:
    """A store under the prefix."""
    with cs.open_store(f"{server.url}?prefix={prefix}", clock=clock) as opened:
        opened.ping()
        yield opened


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of the server."""
    with redis.Redis(port=server.port) as opened:
        yield opened


@pytest.fixture
def keys(client: redis.Redis, prefix: str) -> Callable[[], list[str]]:
    """Return the stored keys, without layout, index and replies of commits; uploads without names."""

    def found() -> list[str]:
        names = [
            key.decode().removeprefix(f"{{{prefix}0}}:")
            for key in client.scan_iter(match=f"{{{prefix}*", count=1000)
        ]
        kept = [name for name in names if ":" in name and not name.startswith("commit:")]
        return sorted("upload" if name.startswith("upload:") else name for name in kept)

    return found


def index_of(client: redis.Redis, prefix: str) -> list[bytes]:
    """Return the members of the index that concern parts."""
    members: Any = client.zrange(f"{{{prefix}0}}:index", 0, -1)
    return [one for one in members if one[:1] == b"n" or one[16:17] in (b"n", b"u")]


def recorded(store: cs.Store) -> list[Pipe]:
    """Begin to record what a store sends."""
    driver: Any = store._driver
    transport, sent = driver.transport, list[Pipe]()

    def recording(request: Any) -> Any:
        if isinstance(request, Pipe):
            sent.append(request)

        return transport(request)

    recording.threaded = True  # type: ignore[attr-defined]
    recording.close = transport.close  # type: ignore[attr-defined]
    driver.transport = recording
    return sent


def add_many(store: cs.Store, flow_id: str, count: int, body: bytes = b"1") -> None:
    """Write many parts in commits of 200."""
    for start in range(0, count, 200):
        with store.begin() as session:
            for number in range(start, min(start + 200, count)):
                session.add_part(cs.Part(flow_id, f"p/{number:06}", body))


# --- keys -----------------------------------------------------------------------------------------


def test_a_flow_with_parts_is_five_keys(
    store: cs.Store, keys: Callable[[], list[str]], client: redis.Redis, prefix: str
) -> None:
    """However many parts it has; all of them go with it, and with its entries in the index."""
    store.create(cs.FlowSnapshot("f", state={}))
    add_many(store, "f", 2000)
    store.append("f", 1, key="k")
    assert keys() == ["flow:f", "names:f", "parts:f"]
    assert index_of(client, prefix) == [b"nif"]
    sent = recorded(store)
    assert store.delete("f")
    assert len(sent) == 1
    assert keys() == []
    assert index_of(client, prefix) == []


def test_the_last_part_leaves_nothing(
    store: cs.Store, keys: Callable[[], list[str]], client: redis.Redis, prefix: str
) -> None:
    """Neither keys nor index entries, whichever way it goes."""
    store.create(cs.FlowSnapshot("f", state={}))
    for way in ("name", "prefix"):
        store.put_part(cs.Part("f", "p", BODY))
        if way == "name":
            assert store.delete_part("f", "p") is True
        else:
            assert store.delete_parts("f", "p") == 1

        assert keys() == ["flow:f"]
        assert index_of(client, prefix) == []


def test_a_key_of_another_type_refuses_the_commit(
    store: cs.Store, client: redis.Redis, prefix: str
) -> None:
    """Before anything is written."""
    store.create(cs.FlowSnapshot("f", state={"n": 0}))
    client.set(f"{{{prefix}0}}:names:f", "other")
    with store.session() as session:
        session.get_one("f").state["n"] = 1
        session.add_part(cs.Part("f", "p", 1))
        with pytest.raises(cs.StoreConfigError, match="another program"):
            session.commit()

    assert store.get_one("f").state == {"n": 0}
    assert store.get_part("f", "p") is None
    with pytest.raises(cs.CorruptRecordError):
        store.list_parts("f")

    with pytest.raises(cs.CorruptRecordError):
        store.delete_parts("f", "")


def test_parts_expire_with_their_flow(
    store: cs.Store, client: redis.Redis, prefix: str, clock: ManualClock
) -> None:
    """They have its time to live, written before or after it ended; none when it runs again."""
    places = [f"{{{prefix}0}}:parts:f", f"{{{prefix}0}}:names:f"]
    week = 7 * 24 * 3600
    flow: cs.FlowSnapshot[Any] = cs.FlowSnapshot("f", state={})
    store.create(flow)
    store.put_part(cs.Part("f", "p", 1))
    assert [client.ttl(place) for place in places] == [-1, -1]
    flow.status = cs.FlowStatus.COMPLETED
    store.update(flow)
    assert all(week < client.ttl(place) <= week + 3600 for place in places)
    store.delete_parts("f", "")
    store.append("f", 1)
    assert all(week < client.ttl(place) <= week + 3600 for place in places)
    flow.status = cs.FlowStatus.RUNNING
    store.update(flow)
    assert [client.ttl(place) for place in places] == [-1, -1]
    store.put_part(cs.Part("g", "before", 1))
    store.create(cs.FlowSnapshot("g", state={}, status=cs.FlowStatus.COMPLETED))
    assert week < client.ttl(f"{{{prefix}0}}:parts:g") <= week + 3600
    clock.advance(8 * DAY)
    store.sweep()
    assert not client.exists(f"{{{prefix}0}}:parts:g")


def test_parts_that_came_after_the_server_removed_their_flow(
    store: cs.Store, client: redis.Redis, prefix: str, clock: ManualClock
) -> None:
    """The sweep of that flow leaves them; theirs removes them, after their own time."""
    with store.begin() as session:
        session.add(cs.FlowSnapshot("f", state={}, status=cs.FlowStatus.COMPLETED))
        session.add_part(cs.Part("f", "old", 1))

    clock.advance(8 * DAY)
    client.unlink(*(f"{{{prefix}0}}:{kind}:f" for kind in ("flow", "parts", "names")))
    store.put_part(cs.Part("f", "new", BODY))
    assert store.sweep() == 1
    assert [part.name for part in store.list_parts("f")] == ["new"]
    clock.advance(DAY)
    assert store.sweep() == 1
    assert store.list_parts("f") == cs.Page((), None)
    assert index_of(client, prefix) == []


def test_parts_of_a_flow_that_came_and_went(
    store: cs.Store, client: redis.Redis, prefix: str, clock: ManualClock
) -> None:
    """The time that was set before it came says nothing of parts that were written after it went."""
    store.put_part(cs.Part("f", "first", 1))
    store.create(cs.FlowSnapshot("f", state={}))
    store.delete("f")
    clock.advance(DAY / 2)
    store.put_part(cs.Part("f", "second", 1))
    clock.advance(DAY / 2)
    assert store.sweep() == 0
    assert [part.name for part in store.list_parts("f")] == ["second"]
    clock.advance(DAY / 2)
    assert store.sweep() == 1
    assert index_of(client, prefix) == []


def test_clearing_removes_parts(
    store: cs.Store, keys: Callable[[], list[str]], client: redis.Redis, prefix: str
) -> None:
    """With their large bodies, orphaned or not."""
    store.create(cs.FlowSnapshot("f", state={}))
    store.put_part(cs.Part("f", "p", BODY))
    store.put_part(cs.Part("g", "p", BODY))
    store.clear()
    assert keys() == []
    assert index_of(client, prefix) == []


# --- pages ----------------------------------------------------------------------------------------


def test_a_page_is_one_round_trip(store: cs.Store) -> None:
    """Counters of logs do not make it short; a page of large bodies is cut after each MiB."""
    for number in range(150):
        store.append("f", number, log=f"a/{number:03}")
        store.trim_log("f", f"a/{number:03}", before=2)

    add_many(store, "f", 300, b"x" * 10_000)
    store.list_parts("f")  # from now on the server knows the script
    sent = recorded(store)
    page = store.list_parts("f", limit=100)
    assert [part.name for part in page] == [f"p/{number:06}" for number in range(100)]
    assert len(sent) == 1
    del sent[:]
    page = store.list_parts("f", limit=250, bodies=True, reverse=True)
    assert [part.name for part in page] == [f"p/{number:06}" for number in range(299, 49, -1)]
    assert all(part.body == b"x" * 10_000 for part in page)
    assert len(sent) == 3
    del sent[:]
    found = store.get_parts("f", [f"p/{number:06}" for number in range(500)])
    assert sum(part is not None for part in found.values()) == 300
    assert len(sent) == 1


def test_entries_among_other_names(store: cs.Store) -> None:
    """They are found behind more names of the same group than one page has."""
    for number in range(120):
        store.append("f", number, log="log/000000000000")

    for number in range(3):
        store.append("f", number)

    assert [entry.body for entry in store.read_log("f", limit=2)] == [0, 1]
    assert [entry.body for entry in store.read_log("f", limit=5, reverse=True)] == [2, 1, 0]
    assert store.trim_log("f", before=3) == 2
    assert [entry.sequence for entry in store.read_log("f")] == [3]


# --- large bodies -----------------------------------------------------------------------------------


def test_a_large_body_goes_with_what_it_belongs_to(
    store: cs.Store,
    keys: Callable[[], list[str]],
    clock: ManualClock,
    client: redis.Redis,
    prefix: str,
) -> None:
    """Replaced, deleted, removed by prefix, trimmed, with its flow, with its expiry, as an orphan."""
    store.create(cs.FlowSnapshot("f", state={}))
    stays = ["flow:f", "names:f", "parts:f"]
    part = cs.Part("f", "p", BODY)
    store.put_part(part)
    assert keys() == [*stays, "upload"]
    part.body = BODY + b"1"
    store.put_part(part)
    assert keys() == [*stays, "upload"]
    part.tag = "t"
    store.put_part(part)
    assert store.get_part("f", "p").body == BODY + b"1"  # type: ignore[union-attr]
    part.body = b"small"
    store.put_part(part)
    assert keys() == stays
    store.append("f", BODY, key="k")
    assert store.read_log("f")[0].body == BODY
    assert keys() == [*stays, "upload"]
    store.trim_log("f", before=2)
    assert keys() == stays
    store.put_part(cs.Part("f", "q", BODY))
    store.delete_part("f", "q")
    assert keys() == stays
    store.put_part(cs.Part("f", "q", BODY))
    with store.begin() as session:
        session.delete(session.get_one("f"))
        session.add(cs.FlowSnapshot("f", state={}, status=cs.FlowStatus.COMPLETED))
        session.add_part(cs.Part("f", "q", BODY + b"2"))

    assert keys() == [*stays, "upload"]
    assert store.get_part("f", "q").body == BODY + b"2"  # type: ignore[union-attr]
    store.put_part(cs.Part("orphan", "p", BODY))
    clock.advance(8 * DAY)
    assert store.sweep() == 2
    store.sweep()
    assert keys() == []
    assert index_of(client, prefix) == []


def test_an_upload_that_is_not_used_is_removed(
    store: cs.Store, keys: Callable[[], list[str]]
) -> None:
    """Of a refused commit, of a part that was kept, of a duplicate entry, of a stale part."""
    store.put_part(cs.Part("f", "p", b"mine"))
    store.append("f", b"mine", key="k")
    before = keys()
    with pytest.raises(cs.PartExistsError):
        store.put_part(cs.Part("f", "p", BODY))

    assert store.put_part(cs.Part("f", "p", BODY), exists="keep") is False
    assert store.append("f", BODY, key="k").duplicate is True
    assert keys() == before
    part = store.get_part("f", "p")
    assert part is not None
    store.delete_part("f", "p")
    part.body = BODY
    with pytest.raises(cs.StalePartError):
        store.put_part(part)

    assert keys() == before


def test_a_lost_upload_refuses_the_commit(store: cs.Store, client: redis.Redis) -> None:
    """Nothing is written, and it can be tried again."""
    driver: Any = store._driver
    transport = driver.transport

    def removing(request: Any) -> Any:
        if isinstance(request, Pipe) and request.commands[0].args[0] == b"EVALSHA":
            for upload in client.scan_iter(match="*upload:*", count=1000):
                client.unlink(upload)

        return transport(request)

    removing.threaded = True  # type: ignore[attr-defined]
    removing.close = transport.close  # type: ignore[attr-defined]
    driver.transport = removing
    with pytest.raises(cs.StoreUnavailableError, match="before its commit arrived"):
        store.put_part(cs.Part("f", "p", BODY))

    driver.transport = transport
    assert store.get_part("f", "p") is None
    assert store.put_part(cs.Part("f", "p", BODY)) is True


def test_a_large_body_without_its_chunks_is_corrupt(
    store: cs.Store, client: redis.Redis, prefix: str
) -> None:
    """Reading it says so, alone and in a list; it can be deleted."""
    store.put_part(cs.Part("f", "p", BODY))
    (upload,) = client.scan_iter(match=f"{{{prefix}0}}:upload:*", count=1000)
    client.hdel(upload, "1")
    with pytest.raises(cs.CorruptRecordError, match="part 'p' of flow 'f'"):
        store.get_part("f", "p")

    with pytest.raises(cs.CorruptRecordError, match="part 'p' of flow 'f'"):
        store.list_parts("f", bodies=True)

    assert store.delete_part("f", "p") is True


def test_a_reader_beside_a_writer_gets_whole_bodies(server: RedisServer, prefix: str) -> None:
    """While large bodies are replaced by large and small ones, alone and in a list."""
    url = f"{server.url}?prefix={prefix}"
    bodies = [b"a" * (2 * LARGE + 1), b"b" * (LARGE + 1), b"small"]
    failures: list[BaseException] = []
    with cs.open_store(url) as store, cs.open_store(url) as other:
        store.put_part(cs.Part("f", "p", bodies[0]))

        def write() -> None:
            try:
                for number in range(40):
                    body = bodies[number % 3]
                    other.put_part(
                        cs.Part("f", "p", body, tag=body[:1].decode()), exists="overwrite"
                    )
            except BaseException as error:  # noqa: BLE001  the test looks at it
                failures.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            read = store.get_part("f", "p")
            (listed,) = store.list_parts("f", bodies=True)
            for part in (read, listed):
                assert part is not None
                assert part.body in bodies
                assert part.tag in ("", part.body[:1].decode())

        assert not failures


def test_no_command_is_much_larger_than_a_chunk(store: cs.Store) -> None:
    """Neither of what is sent shared nor alone, so that others are served in between."""
    sent = recorded(store)
    body = b"x" * (20 * LARGE)
    store.put_part(cs.Part("f", "p", body))
    store.append("f", body)
    assert store.get_part("f", "p").body == body  # type: ignore[union-attr]
    assert [part.body for part in store.list_parts("f", bodies=True)] == [body, body]
    for request in sent:
        for command in request.commands:
            size = sum(len(word) for word in command.args if isinstance(word, bytes | str))
            assert size < LARGE + 1000
            assert request.exclusive or size < LARGE


# --- lost replies -----------------------------------------------------------------------------------


@pytest.fixture
def proxied(
    server: RedisServer, prefix: str, clock: ManualClock
) -> Iterator[tuple[Proxy, cs.Store]]:
    """A store behind a proxy that can lose replies."""
    with (
        Proxy(server.port) as proxy,
        cs.open_store(f"redis://127.0.0.1:{proxy.port}?prefix={prefix}", clock=clock) as store,
    ):
        store.ping()
        yield proxy, store


def is_commit(data: bytes) -> bool:
    """Whether a request is a script that keeps its reply."""
    return b":commit:" in data and b"EVAL" in data


def test_an_append_whose_reply_is_lost(proxied: tuple[Proxy, cs.Store]) -> None:
    """It is one entry, with the sequence that it was given first, with and without a key."""
    proxy, store = proxied
    store.append("f", 0)
    for number, key in ((2, None), (3, "k"), (4, None)):
        proxy.strike("drop the reply", when=is_commit)
        assert store.append("f", number, key=key) == cs.Appended("f", "log", number, key)

    assert proxy.struck == 3
    proxy.strike("drop the reply", when=is_commit)
    assert store.append("f", 9, key="k") == cs.Appended("f", "log", 3, "k", duplicate=True)
    assert [entry.sequence for entry in store.read_log("f")] == [1, 2, 3, 4]


def test_a_kept_part_whose_reply_is_lost(proxied: tuple[Proxy, cs.Store]) -> None:
    """The first one was written, and the store says so; the second was not."""
    proxy, store = proxied
    for body, written in ((1, True), (2, False)):
        proxy.strike("drop the reply", when=is_commit)
        part = cs.Part("f", "p", body)
        assert store.put_part(part, exists="keep") is written
        assert part.version == int(written)

    proxy.strike("drop the reply", when=is_commit)
    over = cs.Part("f", "p", 3)
    assert store.put_part(over, exists="overwrite") is True
    assert over.version == 2
    assert proxy.struck == 3


def test_a_removal_whose_reply_is_lost(proxied: tuple[Proxy, cs.Store]) -> None:
    """It is counted once: each part, and each page of them."""
    proxy, store = proxied
    add_many(store, "f", 700)
    proxy.strike("drop the reply", when=is_commit)
    assert store.delete_parts("f", "p/") == 700
    for number in range(5):
        store.append("f", number)

    proxy.strike("drop the reply", when=is_commit)
    assert store.trim_log("f", before=4) == 3
    assert proxy.struck == 2


def test_a_lost_connection_during_the_upload_of_a_part(
    proxied: tuple[Proxy, cs.Store], keys: Callable[[], list[str]]
) -> None:
    """The chunks are sent again, and the commit is certain."""
    proxy, store = proxied
    proxy.strike(
        "drop the reply", times=1000, when=lambda data: len(data) > LARGE // 100, then=proxy.calm
    )
    store.put_part(cs.Part("f", "p", BODY))
    assert proxy.struck
    proxy.strike("drop the reply", when=is_commit)
    store.put_part(cs.Part("f", "p", BODY + b"1"), exists="overwrite")
    read = store.get_part("f", "p")
    assert read is not None
    assert (read.body, read.version) == (BODY + b"1", 2)
    assert keys() == ["names:f", "parts:f", "upload"]


# --- a cluster, the doctor --------------------------------------------------------------------------


def test_parts_on_a_cluster(redis_cluster: RedisCluster, prefix: str) -> None:
    """Every key of a flow is on the node of its flow; scans go over all of them."""
    with (
        cs.open_store(f"{redis_cluster.url}?prefix={prefix}", partitions=8) as store,
        cs.MemoryStore() as target,
    ):
        for number in range(12):
            with store.begin() as session:
                session.add(cs.FlowSnapshot(f"f-{number}", state={}))
                session.add_part(cs.Part(f"f-{number}", "p", number))
                session.add_part(cs.Part(f"f-{number}", "large", BODY))
                session.append(f"f-{number}", number, key="k")

        for number in range(12):
            names = [part.name for part in store.list_parts(f"f-{number}", bodies=True)]
            assert names == ["large", "log/000000000001", "p"]
            assert store.get_part(f"f-{number}", "p").body == number  # type: ignore[union-attr]

        assert cs.copy(store, target).parts == 36
        assert target.append("f-3", 0).sequence == 2
        assert store.delete_parts("f-0", "") == 3
        assert store.delete_many([f"f-{number}" for number in range(12)]) == 12
        store.clear()
        assert all(store.list_parts(f"f-{number}").items == () for number in range(12))


def test_a_scan_of_many_parts(store: cs.Store) -> None:
    """By flow and name, with the counters, page by page."""
    for name in ("b", "a", "a/x"):
        add_many(store, name, 450)
        store.append(name, 1, log="p/0001")
        store.append(name, 1)

    store.put_part(cs.Part("a", "large", BODY))
    with cs.MemoryStore() as target:
        assert cs.copy(store, target).parts == 3 * 452 + 1
        assert list(compare(store, target)) == []
        assert target.append("a/x", 2, log="p/0001").sequence == 2


def test_the_doctor_finds_parts_that_do_not_agree(
    store: cs.Store, server: RedisServer, client: redis.Redis, prefix: str
) -> None:
    """A name without a head, a head without a name, no body, chunks that are gone, an unlisted flow."""
    store.create(cs.FlowSnapshot("f", state={}))
    for name in ("a", "b", "c", "d", "e"):
        store.put_part(cs.Part("f", name, BODY if name == "d" else 1))

    store.append("g", 1, key="k")
    layout = RedisLayout(prefix, 1)
    parts, names = f"{{{prefix}0}}:parts:f", f"{{{prefix}0}}:names:f"
    with closing(link_to_url(server.url, 5)) as link:
        (found,) = examine_parts(link, layout)
        assert (found.level, found.found) == (
            "ok",
            "7 parts of 2 flows were compared with the lists of part names",
        )
        client.hdel(parts, "ha")
        client.zrem(names, "nb")
        client.hdel(parts, "bc")
        (upload,) = client.scan_iter(match=f"{{{prefix}0}}:upload:*", count=1000)
        client.unlink(upload)
        client.zrem(f"{{{prefix}0}}:index", "nig")
        (found,) = examine_parts(link, layout)

    assert found.level == "problem"
    assert "; 5 do not match" in found.found
    with pytest.raises(cs.CorruptRecordError, match="part 'a' of flow 'f'"):
        store.list_parts("f")

    assert store.delete_parts("f", "a") == 1
    assert [part.name for part in store.list_parts("f")] == ["c", "d", "e"]
