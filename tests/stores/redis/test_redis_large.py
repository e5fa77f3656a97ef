"""Large bodies on Redis: they are sent in chunks, so that no other caller waits for a whole one."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from signal import SIGCONT
from signal import SIGSTOP
from typing import Any

import pytest
import redis
from marks import REDIS_VERSIONS
from proxy import Proxy
from waiting import until

import catga_store as cs
from catga_store.stores.redis.commit_args import LARGE
from catga_store.stores.redis.transport import Pipe
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import ManualClock
from catga_store.testing import StoreAPI
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer

TEXT = "x" * (5 * LARGE // 2)


def flow(flow_id: str = "f", **state: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state=state)


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


@pytest.fixture(params=["blocking", "asyncio", "trio"])
def api(
    request: pytest.FixtureRequest, server: RedisServer, prefix: str, clock: ManualClock
) -> Iterator[StoreAPI]:
    """Open a store by each of its APIs."""
    url = f"{server.url}?prefix={prefix}"
    opened = (
        BlockingAPI(lambda: cs.open_store(url, clock=clock))
        if request.param == "blocking"
        else AsyncAPI(lambda: cs.open_async_store(url, clock=clock), backend=request.param)
    )
    with opened:
        yield opened


@pytest.fixture
def keys(server: RedisServer, prefix: str) -> Iterator[Callable[[], list[str]]]:
    """Return the stored keys by kind and id, without layout, index and replies of commits."""
    with redis.Redis(port=server.port, decode_responses=True) as client:

        def found() -> list[str]:
            names = [
                key.removeprefix(f"{{{prefix}0}}:")
                for key in client.scan_iter(match=f"{{{prefix}*", count=1000)
            ]
            return sorted(name for name in names if ":" in name and not name.startswith("commit:"))

        yield found


def test_large_body_is_written_read_and_removed(
    api: StoreAPI, keys: Callable[[], list[str]]
) -> None:
    """It is in chunks beside the flow; a small body in its place, and a delete, remove them."""
    large = flow(text=TEXT)
    api.create(large)
    assert keys() == ["chunks:f", "flow:f"]
    large.state["more"] = 1
    api.update(large)
    assert api.get_one("f").state == {"text": TEXT, "more": 1}
    api.create(flow("g", text=TEXT))
    assert [one.state["text"] for one in api.get_many(["f", "g"]).values()] == [TEXT, TEXT]
    assert keys() == ["chunks:f", "chunks:g", "flow:f", "flow:g"]
    large.state = {"small": 1}
    api.update(large)
    assert api.get_one("f").state == {"small": 1}
    assert api.delete("g")
    assert keys() == ["flow:f"]


def test_large_body_is_kept_by_writes_that_do_not_carry_it(
    api: StoreAPI, keys: Callable[[], list[str]], server: RedisServer, prefix: str
) -> None:
    """Claim, extend, release and an update of another field keep it; a second store reads it."""
    api.create(flow(text=TEXT))
    with cs.open_store(f"{server.url}?prefix={prefix}") as second:

        def is_whole() -> bool:
            return bool(second.get_one("f").state == {"text": TEXT}) and keys() == [
                "chunks:f",
                "flow:f",
            ]

        (claimed,) = api.claim_due()
        assert claimed.state == {"text": TEXT}
        assert is_whole()
        api.extend(claimed, timedelta(hours=1))
        assert is_whole()
        api.release(claimed)
        assert is_whole()
        claimed = api.claim("f")
        claimed.error = "again"
        api.update(claimed)
        assert is_whole()
        assert second.get_one("f").error == "again"


STEPS = 3000


def with_steps(api: StoreAPI, name: str) -> cs.FlowSnapshot[Any]:
    """Create a flow with the progress of many loops, in commits of 200 records."""
    parent = flow(name)
    api.create(parent)
    for start in range(0, STEPS, 200):
        session = api.session()
        for step in range(start, start + 200):
            progress = cs.ForEachProgress()
            progress.mark(0, ok=True)
            session.save_for_each_progress(name, step, progress)

        session.commit()

    return parent


def test_flow_with_thousands_of_steps_is_removed(
    server: RedisServer, prefix: str, clock: ManualClock, keys: Callable[[], list[str]]
) -> None:
    """Deleted, made again after it expired, or swept: its progress goes with it, at once."""
    url = f"{server.url}?prefix={prefix}"
    with BlockingAPI(lambda: cs.open_store(url, clock=clock)) as api:
        deleted = with_steps(api, "deleted")
        assert len(api.list_for_each_progress("deleted")) == STEPS
        api.delete(deleted)
        assert keys() == []
        for name in ("again", "swept"):
            ended = with_steps(api, name)
            ended.status = cs.FlowStatus.COMPLETED
            api.update(ended)

        clock.advance(timedelta(days=60))
        api.create(flow("again"))
        assert api.list_for_each_progress("again") == {}
        assert api.sweep() == 1
        assert keys() == ["flow:again"]


@pytest.mark.parametrize("backend", ["blocking", "asyncio"])
def test_server_that_stops_reading_ends_a_large_commit_in_time(backend: str) -> None:
    """The body fills every buffer on the way; the commit was not sent, and says so."""
    short = timedelta(seconds=1)
    with RedisServer("8.2") as hung:
        api = (
            BlockingAPI(lambda: cs.open_store(hung.url, timeout=short))
            if backend == "blocking"
            else AsyncAPI(lambda: cs.open_async_store(hung.url, timeout=short), backend=backend)
        )
        with api:
            api.ping()
            hung.signal(SIGSTOP)
            begin = time.monotonic()
            with pytest.raises(cs.StoreUnavailableError, match="nothing was written"):
                api.create(flow(text="x" * (40 * LARGE)))

            assert time.monotonic() - begin < 30
            hung.signal(SIGCONT)
            until(lambda: is_there(api))
            assert api.get("f") is None


def is_there(api: StoreAPI) -> bool:
    """Whether the store can be used."""
    try:
        api.ping()
    except cs.StoreUnavailableError:
        return False

    return True


def test_several_large_bodies_in_one_commit(api: StoreAPI, keys: Callable[[], list[str]]) -> None:
    """All are stored, or none: a refused commit leaves nothing behind."""
    with api.begin() as session:
        for name in "abc":
            session.add(flow(name, text=TEXT + name))

    assert all(api.get_one(name).state == {"text": TEXT + name} for name in "abc")
    before = keys()
    session = api.session()
    session.add(flow("d", text=TEXT))
    session.add(flow("a", text="mine"))
    with pytest.raises(cs.ConflictError):
        session.commit()

    assert keys() == before
    assert api.get_one("a").state == {"text": TEXT + "a"}


def test_chunks_expire_with_their_flow(
    api: StoreAPI,
    keys: Callable[[], list[str]],
    clock: ManualClock,
    server: RedisServer,
    prefix: str,
) -> None:
    """They have the time to live of their flow, and are swept with it."""
    large = flow(text=TEXT)
    api.create(large)
    place = f"{{{prefix}0}}:chunks:f"
    with redis.Redis(port=server.port) as client:
        assert client.ttl(place) == -1
        large.status = cs.FlowStatus.COMPLETED
        api.update(large)
        week = 7 * 24 * 3600
        assert week < client.ttl(place) <= week + 3600
        large.status = cs.FlowStatus.RUNNING
        api.update(large)
        assert client.ttl(place) == -1

    large.status = cs.FlowStatus.COMPLETED
    api.update(large)
    clock.advance(timedelta(days=8))
    assert api.sweep() == 1
    assert keys() == []


def test_missing_chunks_make_a_corrupt_record(
    api: StoreAPI, server: RedisServer, prefix: str
) -> None:
    """The error names the flow, which is left as it is."""
    api.create(flow(text=TEXT))
    with redis.Redis(port=server.port) as client:
        client.hdel(f"{{{prefix}0}}:chunks:f", "1")

    with pytest.raises(cs.CorruptRecordError, match="flow 'f'"):
        api.get("f")

    assert api.delete("f")


def test_reader_never_gets_chunks_of_two_bodies(server: RedisServer, prefix: str) -> None:
    """While a writer replaces large bodies with large and small ones, every read is whole."""
    url = f"{server.url}?prefix={prefix}"
    with cs.open_store(url) as store, cs.open_store(url) as other:
        large = flow(text="", n=0)
        store.create(large)
        texts = [letter * (2 * LARGE + 1) for letter in "ab"] + ["small"]
        failures: list[BaseException] = []

        def write() -> None:
            try:
                for number in range(30):
                    large.state = {"text": texts[number % 3], "n": number}
                    other.update(large)
            except BaseException as error:  # noqa: BLE001  the test looks at it
                failures.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        seen = []
        while writer.is_alive():
            state = store.get_one("f").state
            assert state["text"] in ("", texts[state["n"] % 3])
            seen.append(state["n"])

        assert not failures
        assert seen == sorted(seen)


def test_no_command_is_much_larger_than_a_chunk(server: RedisServer, prefix: str) -> None:
    """No command of a 64 MiB body carries more than one chunk, so others are served in between."""
    sizes: list[int] = []
    with cs.open_store(f"{server.url}?prefix={prefix}") as store:
        driver: Any = store._driver
        transport = driver.transport

        def recording(request: Pipe) -> Any:
            for command in request.commands:
                size = sum(len(word) for word in command.args if isinstance(word, bytes | str))
                sizes.append(size)
                assert request.exclusive or size < LARGE

            return transport(request)

        recording.threaded = True  # type: ignore[attr-defined]
        recording.close = transport.close  # type: ignore[attr-defined]
        driver.transport = recording
        large = flow(text="x" * (64 * LARGE - 1000))
        store.create(large)
        assert store.get_one("f").state == large.state
        store.delete("f")

    assert max(sizes) < LARGE + 1000
    assert sum(sizes) > 64 * LARGE - 2000


@pytest.mark.parametrize("strike", ["drop the request", "drop the reply"])
def test_lost_connection_during_an_upload(strike: Any, server: RedisServer, prefix: str) -> None:
    """The chunks are sent again, and the outcome of the commit is certain."""
    with (
        Proxy(server.port) as proxy,
        cs.open_store(f"redis://127.0.0.1:{proxy.port}?prefix={prefix}") as store,
    ):
        store.ping()
        # The chunks arrive in many pieces: strike at each until the connection is gone.
        proxy.strike(
            strike, times=1000, when=lambda data: len(data) > LARGE // 100, then=proxy.calm
        )
        large = flow(text=TEXT)
        store.create(large)
        assert proxy.struck
        proxy.strike(strike, when=lambda data: b":commit:" in data and b"EVALSHA" in data)
        large.state["more"] = 1
        store.update(large)
        assert store.get_one("f").state == {"text": TEXT, "more": 1}
        assert large.version == 2


def test_large_bodies_on_a_cluster(redis_cluster: RedisCluster, prefix: str) -> None:
    """Chunks are on the node of their flow."""
    with cs.open_store(f"{redis_cluster.url}?prefix={prefix}", partitions=8) as store:
        for number in range(6):
            store.create(flow(f"f-{number}", text=f"{number}{TEXT}"))

        found = store.get_many([f"f-{number}" for number in range(6)])
        assert [one.state["text"][0] for one in found.values() if one] == list("012345")
        store.clear()
        assert store.count_flows() == 0


def test_full_server_keeps_no_chunks() -> None:
    """An upload that is refused halfway is removed."""
    with (
        RedisServer("8.2", "--maxmemory-policy", "noeviction") as full,
        cs.open_store(full.url) as store,
        redis.Redis(port=full.port) as client,
    ):
        small = flow("small")
        store.create(small)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 8 * LARGE)
        with pytest.raises(cs.StoreUnavailableError, match="out of memory"):
            store.create(flow("large", text="x" * 30 * LARGE))

        assert list(client.scan_iter(match="*:upload:*")) == []
        assert store.get("large") is None
        store.update(small)
