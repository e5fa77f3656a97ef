"""What every test shares: the Hypothesis profiles, the event loops, stores and their clock.

A test that asks for `store` runs on every store; one that asks for `astore` runs on them under asyncio
and under trio. One marked `stores("sqlite")` runs on the named stores only; `support/marks.py` has the
usual marks. `open_more` opens further stores on the same records, with other options; what a test
opens is closed for it. Time stands still until `clock` is moved.

The default run leaves out what is marked `nightly` or `soak`; `tox -e nightly` runs everything.

Servers are started when a test first needs one, once in each test process, and are shared: every
test has a prefix or a bucket of its own. A server that does not start is a failure, never a skip.
`CATGA_REDIS_URL` and `CATGA_NATS_URL` name servers to be used in place of Redis 8.2 and NATS, by all
tests but those that start, configure or kill a server themselves.
"""

from __future__ import annotations

import gc
import os
import signal
import uuid
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AsyncExitStack
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings
from marks import STORES
from marks import stores_named
from spreading import scheduler
from spreading import spread

import catga_store as cs
from catga_store.testing.clock import ManualClock
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisCluster
from catga_store.testing.servers import RedisServer

# A shell that starts the tests in the background has them ignore Ctrl-C, and so all they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines and no check for slowness: a busy machine must not decide whether a test passes.
settings.register_profile(
    "quick",
    deadline=None,
    derandomize=True,  # the same examples every time, so that a failure is of this change
    max_examples=50,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep",
    database=None,  # `--hypothesis-seed` alone says what is drawn
    deadline=None,
    max_examples=500,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))  # --hypothesis-profile wins


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one process run a file whose tests share what is costly; `spreading` says which."""
    return scheduler(config, log) if config.getoption("dist") in {"load", "loadgroup"} else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Order the tests for several processes, without those that are left out; `tox -e random` draws an order."""
    yield
    is_one_of_several = hasattr(config, "workerinput")
    if is_one_of_several and not config.getoption("random_order_enabled", default=False):
        items[:] = spread(items)


def pytest_collection_finish() -> None:
    """Freeze collected tests so that the garbage collector skips them."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Report how many steps the parity machine took, and the seed they were drawn from."""
    taken = [
        steps
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, steps in report.user_properties
        if name == "steps"
    ]
    if taken:
        drawn = config.getoption("hypothesis_seed")
        terminalreporter.line(
            f"parity: {sum(taken):,} steps in {len(taken)} runs, seed {drawn or 'of the profile'}"
        )


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run a test marked `anyio` once on each event loop."""
    backend: str = request.param
    return backend


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands at the beginning of 2030."""
    return ManualClock()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Callable[[str], RedisServer]]:
    """Return the server of a version, which is started at first use."""
    with ExitStack() as stack:

        @cache
        def started(version: str) -> RedisServer:
            return stack.enter_context(RedisServer(version))

        yield started


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """Start a cluster of three primaries."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """Start one server with JetStream."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def nats_cluster() -> Iterator[NatsCluster]:
    """Start three servers with one JetStream."""
    with NatsCluster() as cluster:
        yield cluster


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that makes the URL of an empty store of a kind."""

    def url(kind: str) -> str:
        if kind == "memory":
            return f"memory://{uuid.uuid4().hex}"

        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'flows.db'}"

        if kind == "nats":
            named = os.environ.get("CATGA_NATS_URL")
            place = named or request.getfixturevalue("nats_server").url
            return f"{place}?bucket={uuid.uuid4().hex}"

        if kind == "nats-cluster":
            servers: NatsCluster = request.getfixturevalue("nats_cluster")
            return f"{servers.url}?replicas=3&bucket={uuid.uuid4().hex}"

        if kind == "redis-cluster":
            nodes: RedisCluster = request.getfixturevalue("redis_cluster")
            return f"{nodes.url}?prefix={uuid.uuid4().hex}:"

        named = os.environ.get("CATGA_REDIS_URL") if kind == "redis-8.2" else None
        version = kind.removeprefix("redis-")
        place = named or request.getfixturevalue("redis_server")(version).url
        return f"{place}?prefix={uuid.uuid4().hex}:"

    return url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a store on every one, or on those that its mark names."""
    if "store_url" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("stores")
        chosen = STORES if mark is None or mark.args == ("all",) else stores_named(*mark.args)
        metafunc.parametrize("store_url", chosen, indirect=True)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> str:
    """Return the URL of an empty store of the kind that the test runs on."""
    return url_of(request.param)


@pytest.fixture
def open_more(store_url: str, clock: ManualClock) -> Iterator[Callable[..., cs.Store]]:
    """Open a store on the records of this test: `open_more(owner="w-1", partitions=4)`."""
    with ExitStack() as stack:

        def open_one(**options: Any) -> cs.Store:
            options.setdefault("clock", clock)
            return stack.enter_context(cs.open_store(store_url, **options))

        yield open_one


@pytest.fixture
def store(open_more: Callable[..., cs.Store]) -> cs.Store:
    """Open the store of this test with the default options and the manual clock."""
    return open_more()


@pytest.fixture
async def open_more_async(
    store_url: str, clock: ManualClock
) -> AsyncIterator[Callable[..., cs.AsyncStore]]:
    """Open an async store on the records of this test; see `open_more`."""
    opened: list[cs.AsyncStore] = []

    def open_one(**options: Any) -> cs.AsyncStore:
        options.setdefault("clock", clock)
        opened.append(cs.open_async_store(store_url, **options))
        return opened[-1]

    async with AsyncExitStack() as stack:
        yield open_one

        for one in opened:
            await stack.enter_async_context(one)


@pytest.fixture
async def astore(open_more_async: Callable[..., cs.AsyncStore]) -> cs.AsyncStore:
    """Open the async store of this test; the test says `@pytest.mark.anyio`."""
    return open_more_async()
