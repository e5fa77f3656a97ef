"""Outcomes of commits when the connection to Redis fails: no false conflict, no double write.

Every store here speaks through a proxy that loses requests or replies on command. Blocking,
asyncio and trio stores get the same outcome.
"""

from __future__ import annotations

import pickle
import threading
import time
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from marks import REDIS_VERSIONS
from proxy import Proxy
from proxy import Strike
from redis.cache import CacheConfig
from waiting import until

import catga_store as cs
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.redis.scripts import SCRIPTS
from catga_store.testing import AsyncAPI
from catga_store.testing import BlockingAPI
from catga_store.testing import ManualClock
from catga_store.testing import StoreAPI
from catga_store.testing.servers import RedisServer

LOST: list[Strike] = ["drop the request", "drop the reply", "cut the reply"]
LONG = 30
"""Seconds that only a failing test would wait."""


def is_commit(data: bytes) -> bool:
    """Return whether a request is the script of a commit."""
    return b"EVAL" in data and b":commit:" in data and b'"layout"' in data


def in_time(call: Callable[[], Any]) -> Any:
    """Repeat a call until it succeeds: timeouts are short here, and machines busy."""
    until = time.monotonic() + LONG
    while True:
        try:
            return call()
        except (cs.StoreUnavailableError, cs.CommitUncertainError):
            assert time.monotonic() < until


@pytest.fixture(params=REDIS_VERSIONS)
def server(
    request: pytest.FixtureRequest, redis_server: Callable[[str], RedisServer]
) -> RedisServer:
    """A server of each version that knows the scripts: a lost reply is that of one that has run."""
    server = redis_server(request.param)
    with redis.Redis(port=server.port) as client:
        for script in SCRIPTS:
            client.script_load(script.source)

    return server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def prefix() -> str:
    """Name records that no other test uses."""
    return f"{uuid.uuid4().hex}:"


@pytest.fixture(params=["blocking", "asyncio", "trio"])
def open_through(
    request: pytest.FixtureRequest, proxy: Proxy, prefix: str
) -> Iterator[Callable[..., StoreAPI]]:
    """Open a store behind the proxy, by each of its APIs."""
    opened: list[StoreAPI] = []

    def open_one(**options: Any) -> StoreAPI:
        url = f"redis://127.0.0.1:{proxy.port}?prefix={prefix}"
        opened.append(
            BlockingAPI(lambda: cs.open_store(url, **options))
            if request.param == "blocking"
            else AsyncAPI(lambda: cs.open_async_store(url, **options), backend=request.param)
        )
        in_time(opened[-1].ping)
        return opened[-1]

    yield open_one
    for api in opened:
        api.close()


@pytest.fixture
def direct(server: RedisServer, prefix: str) -> Iterator[cs.Store]:
    """Open the same store without the proxy."""
    with cs.open_store(f"{server.url}?prefix={prefix}") as store:
        yield store


def create(store: cs.Store | StoreAPI, flow_id: str = "f") -> cs.FlowSnapshot[Any]:
    """Create a flow and return it."""
    flow = cs.FlowSnapshot(flow_id, state={"n": 0})
    store.create(flow)
    return flow


@pytest.mark.parametrize("strike", LOST)
def test_commit_survives_a_lost_connection(
    strike: Strike, proxy: Proxy, open_through: Callable[..., StoreAPI], direct: cs.Store
) -> None:
    """Sent again with its id it is applied once, and returns the same reply."""
    store = open_through()
    flow = create(store)
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    flow.state["n"] = 1
    proxy.strike(strike, when=is_commit)
    with store.begin() as session:
        session.add(flow)
        session.complete_child("w", "a")

    receipt = session.receipt
    assert proxy.struck == 1
    assert receipt.satisfied == ("w",)
    assert receipt.completions["w", "a"].accepted
    stored = direct.get_one("f")
    assert (flow.version, stored.version, stored.state) == (2, 2, {"n": 1})
    assert stored.revision == flow.revision
    assert direct.complete_child("w", "a").duplicate


@pytest.mark.parametrize("strike", LOST)
def test_read_survives_a_lost_connection(
    strike: Strike, proxy: Proxy, open_through: Callable[..., StoreAPI]
) -> None:
    """It is sent again; an outage is never `None`."""
    store = open_through()
    create(store)
    proxy.strike(strike, when=lambda data: b"HMGET" in data)
    assert store.get("f") is not None
    assert proxy.struck == 1


def test_rival_write_before_the_retry_is_not_a_conflict(
    proxy: Proxy, open_through: Callable[..., StoreAPI], direct: cs.Store
) -> None:
    """The reply was lost and another client has written since: the commit returns its own reply."""
    store = open_through()
    flow = create(store)

    def rival() -> None:
        other = direct.get_one("f")
        other.state["rival"] = True
        direct.update(other)

    proxy.strike("drop the reply", when=is_commit, then=rival)
    flow.state["n"] = 1
    store.update(flow)
    assert flow.version == 2
    stored = direct.get_one("f")
    assert (stored.version, stored.state) == (3, {"n": 1, "rival": True})


@pytest.mark.parametrize(
    ("strike", "applied"), [("drop the reply", True), ("drop the request", False)]
)
def test_lost_commit_is_uncertain_and_can_be_settled(
    strike: Strike,
    applied: bool,
    proxy: Proxy,
    open_through: Callable[..., StoreAPI],
    direct: cs.Store,
) -> None:
    """After the timeout it is an error; `resolve_commit` returns the receipt, or fences the commit."""
    store = open_through(timeout=timedelta(milliseconds=500))
    flow = create(direct)
    flow.state["n"] = 1
    proxy.strike(strike, times=1000, when=is_commit)
    with pytest.raises(cs.CommitUncertainError, match="outcome is unknown") as caught:
        store.update(flow)

    assert proxy.struck > 1
    assert (flow.version, direct.get_one("f").version) == (1, 2 if applied else 1)
    proxy.calm()
    receipt = in_time(lambda: store.resolve_commit(caught.value))
    assert (receipt is not None) is applied
    if receipt is not None:
        assert receipt.versions == {flow.key: 2}


@pytest.mark.parametrize("strike", ["hold the request", "hold the reply"])
def test_late_commit_is_settled_for_good(
    strike: Strike, proxy: Proxy, open_through: Callable[..., StoreAPI], direct: cs.Store
) -> None:
    """A commit that was given up is not applied when it arrives; an applied one has a receipt."""
    store = open_through(timeout=timedelta(milliseconds=500))
    flow = create(direct)
    flow.state["n"] = 1
    proxy.strike(strike, times=1000, when=is_commit)
    with pytest.raises(cs.CommitUncertainError) as caught:
        store.update(flow)

    proxy.calm()
    receipt = in_time(lambda: store.resolve_commit(caught.value))
    proxy.release()
    for _ in range(proxy.struck):
        assert proxy.late_replies.acquire(timeout=LONG)

    applied = strike == "hold the reply"
    assert (receipt is not None) is applied
    stored = direct.get_one("f")
    assert (stored.version, stored.state["n"]) == ((2, 1) if applied else (1, 0))


@pytest.mark.parametrize("caching", [False, True])
def test_client_of_the_user_waits_no_longer_than_the_store(
    server: RedisServer, proxy: Proxy, prefix: str, direct: cs.Store, caching: bool
) -> None:
    """A client that would wait forever is used with the store's timeout, and not altered."""
    if caching and server.version == "6.2":
        return  # redis-py's caching begins with Redis 7.4

    options: Any = {"protocol": 3, "cache_config": CacheConfig()} if caching else {}
    with redis.Redis(port=proxy.port, socket_timeout=None, **options) as client:
        store = cs.RedisStore(client, prefix=prefix, timeout=timedelta(milliseconds=500))
        in_time(store.ping)
        flow = create(direct)
        flow.state["n"] = 1
        proxy.strike("hold the request", when=is_commit)
        rescue = threading.Timer(LONG, proxy.cut)
        rescue.start()
        with pytest.raises(cs.CommitUncertainError) as caught:
            store.update(flow)

        assert rescue.is_alive()
        rescue.cancel()
        assert in_time(lambda: store.resolve_commit(caught.value)) is None
        connection: Any = client.connection_pool.get_connection()
        assert getattr(connection, "_conn", connection)._sock.gettimeout() is None
        client.connection_pool.release(connection)


def test_cut_idle_connection_is_replaced(
    proxy: Proxy, open_through: Callable[..., StoreAPI]
) -> None:
    """The next commit uses a new connection, and its outcome is certain."""
    store = open_through()
    flow = create(store)
    proxy.cut()
    flow.state["n"] = 1
    store.update(flow)
    assert store.get_one("f").version == 2


def test_resolve_without_a_connection_is_uncertain_again(
    proxy: Proxy, open_through: Callable[..., StoreAPI], direct: cs.Store
) -> None:
    """`resolve_commit` raises the error again, and settles the commit later."""
    store = open_through(timeout=timedelta(milliseconds=500))
    flow = create(direct)
    proxy.strike("drop the reply", times=1000)
    with pytest.raises(cs.CommitUncertainError) as caught:
        store.update(flow)

    with pytest.raises(cs.CommitUncertainError):
        store.resolve_commit(caught.value)

    proxy.calm()
    assert in_time(lambda: store.resolve_commit(caught.value)) is not None


def test_old_server_is_refused(
    server: RedisServer, proxy: Proxy, open_through: Callable[..., StoreAPI]
) -> None:
    """A server older than 6.2 is a `StoreConfigError`, and nothing is written to it."""
    proxy.rewrite(b"redis_version:" + server.version[:1].encode(), b"redis_version:5")
    with pytest.raises(cs.StoreConfigError, match=r"Redis 5.* needs Redis 6.2 or later"):
        open_through()


def test_forgotten_commit_of_a_busy_record_stays_uncertain(
    server: RedisServer, proxy: Proxy, prefix: str, direct: cs.Store
) -> None:
    """Its reply is gone, and its record was written eight times since."""
    lost: list[cs.CommitUncertainError] = []
    url = f"redis://127.0.0.1:{proxy.port}?prefix={prefix}"
    with cs.open_store(url, timeout=timedelta(milliseconds=500)) as store:
        in_time(store.ping)
        proxy.strike("drop the reply", times=1000, when=is_commit)
        for flow_id, writes in (("seven", 7), ("eight", 8)):
            flow = create(direct, flow_id)
            with pytest.raises(cs.CommitUncertainError) as caught:
                store.update(flow)

            lost.append(caught.value)
            flow = direct.get_one(flow_id)
            assert flow.version == 2
            for _ in range(writes):
                direct.update(flow)

    with redis.Redis(port=server.port) as client:
        keys = [f"{{{prefix}0}}:commit:{error.commit_id}" for error in lost]
        until(lambda: not client.exists(*keys))

    receipt = direct.resolve_commit(lost[0])
    assert receipt is not None
    assert receipt.versions == {cs.Key("flow", "seven"): 2}
    with pytest.raises(cs.CommitUncertainError, match="compare the stored records") as again:
        direct.resolve_commit(pickle.loads(pickle.dumps(lost[1])))

    assert again.value.commit_id == lost[1].commit_id


def test_forgotten_completion_stays_uncertain(
    server: RedisServer, proxy: Proxy, prefix: str
) -> None:
    """A condition does not remember who completed which child."""
    url = f"redis://127.0.0.1:{proxy.port}?prefix={prefix}"
    with cs.open_store(url, timeout=timedelta(milliseconds=500)) as store:
        in_time(store.ping)
        store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
        proxy.strike("drop the reply", times=1000, when=is_noted)
        with pytest.raises(cs.CommitUncertainError) as caught:
            store.complete_child("w", "a")

        proxy.calm()
        with redis.Redis(port=server.port) as client:
            until(lambda: not client.exists(f"{{{prefix}0}}:commit:{caught.value.commit_id}"))

        assert in_time(lambda: store.get_wait_condition("w")).completed_count == 1
        with pytest.raises(cs.CommitUncertainError, match="compare the stored records"):
            store.resolve_commit(caught.value)


@pytest.mark.parametrize("change", ["written eight times", "deleted", "deleted and created"])
def test_forgotten_commit_stays_uncertain_when_the_wall_clock_was_set_back(
    change: str,
    server: RedisServer,
    proxy: Proxy,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commit was applied, the server has forgotten its reply, and the record cannot tell."""
    url = f"redis://127.0.0.1:{proxy.port}?prefix={prefix}"
    short = timedelta(milliseconds=500)
    place = f"{server.url}?prefix={prefix}"
    with cs.open_store(url, timeout=short) as store, cs.open_store(place) as direct:
        in_time(store.ping)
        flow = create(direct)
        proxy.strike("drop the reply", times=1000, when=is_commit)
        with pytest.raises(cs.CommitUncertainError) as caught:
            store.update(flow)

        flow = direct.get_one("f")
        assert flow.version == 2
        if change == "written eight times":
            for _ in range(8):
                direct.update(flow)
        else:
            direct.delete("f")
            if change == "deleted and created":
                create(direct)

        with redis.Redis(port=server.port) as client:
            until(lambda: not client.exists(f"{{{prefix}0}}:commit:{caught.value.commit_id}"))

        proxy.calm()
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
        with pytest.raises(cs.CommitUncertainError, match="compare the stored records"):
            store.resolve_commit(caught.value)


# --- writes that are no commits of records ----------------------------------------------------------

HOUR = timedelta(hours=1)


def is_noted(data: bytes) -> bool:
    """Return whether a request is a script that stores its reply."""
    return b"EVAL" in data and b":commit:" in data


class Housekeeping:
    """What leaves nothing in a record, of a store through the proxy, and whether it was done."""

    def __init__(self, name: str, store: StoreAPI, direct: cs.Store, clock: ManualClock) -> None:
        self.name = name
        self.store = store
        self.direct = direct
        self._clock = clock
        done = cs.FlowSnapshot("done", state={"n": 0}, status=cs.FlowStatus.COMPLETED)
        direct.create(done)
        create(direct)
        direct.put_part(cs.Part("f", "part", b"x"))
        if name == "sweep":
            clock.advance(timedelta(days=8))

        self._claimed = direct.claim("f", lease=HOUR)
        self._due = clock() + HOUR

    def run(self) -> Any:
        """Do it."""
        if self.name == "extend":
            return self.store.extend(self._claimed, 3 * HOUR)

        if self.name == "delete_parts":
            return self.store.delete_parts("f", "p")

        return self.store.sweep() if self.name == "sweep" else self.store.clear()

    @property
    def is_done(self) -> bool:
        """Whether the store is as it is afterwards."""
        if self.name == "extend":
            return self.direct.get_one("f").due_at == self._due + 2 * HOUR

        if self.name == "clear":
            return self.direct.count_flows() == 0

        if self.name == "delete_parts":
            return self.direct.get_part("f", "part") is None

        return self.direct.sweep() == 0  # nothing was left for this one


@pytest.fixture
def place(server: RedisServer, prefix: str) -> str:
    """The URL of the store without the proxy."""
    return f"{server.url}?prefix={prefix}"


@pytest.fixture
def patience() -> timedelta:
    """The timeout of the store; short where a test waits for its end.

    The server keeps a reply for twice that: so long is there to settle what was lost.
    """
    return timedelta(seconds=1)


@pytest.fixture(params=["extend", "sweep", "clear", "delete_parts"])
def keeping(
    request: pytest.FixtureRequest,
    open_through: Callable[..., StoreAPI],
    place: str,
    clock: ManualClock,
    patience: timedelta,
) -> Iterator[Housekeeping]:
    """A store with something to extend, to sweep, to clear and to delete."""
    with cs.open_store(place, clock=clock) as direct:
        store = open_through(clock=clock, timeout=patience)
        yield Housekeeping(request.param, store, direct, clock)


@pytest.mark.parametrize("patience", [timedelta(seconds=10)])
@pytest.mark.parametrize("strike", LOST)
def test_housekeeping_survives_a_lost_connection(
    strike: Strike, proxy: Proxy, keeping: Housekeeping
) -> None:
    """Sent again it is done once, and returns the same reply."""
    proxy.strike(strike, when=is_noted)
    answer = keeping.run()
    assert proxy.struck == 1
    assert answer == (1 if keeping.name in ("sweep", "delete_parts") else None)
    assert keeping.is_done


@pytest.mark.parametrize(
    ("strike", "applied"), [("drop the reply", True), ("drop the request", False)]
)
def test_lost_housekeeping_is_uncertain_and_can_be_settled(
    strike: Strike, applied: bool, proxy: Proxy, open_through: Any, keeping: Housekeeping
) -> None:
    """Without any reply it may have been done: `resolve_commit` finds out, or fences it."""
    proxy.strike(strike, times=1000, when=is_noted)
    with pytest.raises(cs.CommitUncertainError, match="outcome is unknown") as caught:
        keeping.run()

    assert isinstance(caught.value.__cause__, redis.RedisError | ReplyLostError)
    with pytest.raises(cs.CommitUncertainError):
        keeping.store.resolve_commit(caught.value)

    proxy.calm()
    receipt = in_time(lambda: keeping.store.resolve_commit(caught.value))
    if keeping.name == "clear":
        # It goes in pages of all keys of the server: only the last one makes it done.
        assert receipt is None or keeping.is_done
    else:
        assert (receipt is not None) is keeping.is_done is applied

    if keeping.name != "sweep" or not applied:
        in_time(keeping.run)
        assert keeping.is_done


def test_given_up_housekeeping_is_not_done_later(proxy: Proxy, keeping: Housekeeping) -> None:
    """A request that arrives after it was settled changes nothing."""
    proxy.strike("hold the request", times=1000, when=is_noted)
    with pytest.raises(cs.CommitUncertainError) as caught:
        keeping.run()

    held = proxy.struck
    proxy.calm()
    assert in_time(lambda: keeping.store.resolve_commit(caught.value)) is None
    proxy.release()
    for _ in range(held):
        assert proxy.late_replies.acquire(timeout=LONG)

    assert not keeping.is_done


@pytest.mark.parametrize("strike", ["drop the reply", "drop the request"])
def test_uncertain_housekeeping_is_done_again(
    strike: Strike, proxy: Proxy, keeping: Housekeeping
) -> None:
    """Without settling it first: done twice or once, the store is as it should be."""
    proxy.strike(strike, times=1000, when=is_noted)
    with pytest.raises(cs.CommitUncertainError):
        keeping.run()

    proxy.calm()
    answer = in_time(keeping.run)
    if keeping.name == "sweep":
        assert answer == (0 if strike == "drop the reply" else 1)
    else:
        assert keeping.is_done


def test_housekeeping_whose_reply_is_forgotten_stays_uncertain(
    server: RedisServer, proxy: Proxy, prefix: str, keeping: Housekeeping
) -> None:
    """It was done, and no record shows that, so it is not said that it never will be."""
    proxy.strike("drop the reply", times=1000, when=is_noted)
    with pytest.raises(cs.CommitUncertainError) as caught:
        keeping.run()

    proxy.calm()
    lost = caught.value
    with redis.Redis(port=server.port) as client:
        until(lambda: not client.exists(f"{{{prefix}0}}:commit:{lost.commit_id}"))

    until(lambda: time.monotonic() > (lost.sent_at or 0) + (lost.kept_seconds or 0))
    with pytest.raises(cs.CommitUncertainError, match="call the method again") as again:
        keeping.direct.resolve_commit(lost)

    assert again.value.commit_id == lost.commit_id
    if keeping.name != "clear":  # it goes in pages: see above
        assert keeping.is_done


def test_late_extension_sets_its_own_end(
    proxy: Proxy, open_through: Callable[..., StoreAPI], place: str, clock: ManualClock
) -> None:
    """One that was not settled is not refused when it arrives after another one, as the page says."""
    with cs.open_store(place, clock=clock) as direct:
        create(direct)
        claimed = direct.claim("f", lease=HOUR)
        store = open_through(clock=clock, timeout=timedelta(milliseconds=500))
        began = clock()
        proxy.strike("hold the request", times=1000, when=is_noted)
        with pytest.raises(cs.CommitUncertainError):
            store.extend(claimed, HOUR)

        held = proxy.struck
        proxy.calm()
        clock.advance(HOUR / 2)
        in_time(lambda: store.extend(claimed, HOUR))
        assert direct.get_one("f").due_at == began + 1.5 * HOUR
        proxy.release()
        for _ in range(held):
            assert proxy.late_replies.acquire(timeout=LONG)

        assert direct.get_one("f").due_at == began + HOUR
        direct.update(claimed)  # the claim is the same


def test_interrupted_clear_is_uncertain(
    server: RedisServer, proxy: Proxy, prefix: str, open_through: Callable[..., StoreAPI]
) -> None:
    """A part is removed, so the error does not say that nothing was written; a second clear removes the rest."""
    store = open_through(partitions=4, timeout=timedelta(milliseconds=500))
    with cs.open_store(f"{server.url}?prefix={prefix}", partitions=4) as direct:
        for number in range(20):
            create(direct, f"f-{number}")

    proxy.strike(
        "drop the request", times=1000, when=lambda data: b"SCAN" in data and b"3}" in data
    )
    with pytest.raises(cs.CommitUncertainError) as caught:
        store.clear()

    proxy.calm()
    assert in_time(lambda: store.resolve_commit(caught.value)) is None
    assert 0 < in_time(store.count_flows) < 20
    in_time(store.clear)
    assert in_time(store.count_flows) == 0
    with redis.Redis(port=server.port) as client:
        left = {key.split(b":")[2] for key in client.scan_iter(match=f"{{{prefix}*", count=1000)}

    assert left <= {b"layout", b"commit"}
