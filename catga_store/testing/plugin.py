"""The pytest plugin: stores, clocks, faults and servers as fixtures.

pytest loads this module wherever catga_store is installed. A test run that uses none of the fixtures only
pays for the import of this module: a fixture imports what it needs when a test requests it.

| fixture | value |
|---|---|
| `flow_store` | an empty `Store`, which is closed and removed afterwards |
| `async_flow_store` | the same as an `AsyncStore`, for tests with anyio's plugin or pytest-asyncio |
| `flow_clock` | the `ManualClock` of these stores; time stands still until a test moves the clock |
| `flow_faults` | `Faults` for these stores |
| `redis_server`, `nats_server` | a server that runs for the session, from the wheels of `catga_store[test]` |

The store is determined by the first of these that is present: the marker
`@pytest.mark.flow_store("redis://…", owner="w-1")` on the test, class or module, with options as keyword
arguments; the `--flow-store-url` option; `flow_store_url` in the configuration file; `memory://`. Tests never
use the namespace that the URL names: each test uses a separate namespace beside it (`scratch_url`). `sqlite`
by itself stands for a file in the test's `tmp_path`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import pytest

if TYPE_CHECKING:
    from catga_store.aio import AsyncStore
    from catga_store.store import Store
    from catga_store.testing.clock import ManualClock
    from catga_store.testing.faults import Faults
    from catga_store.testing.servers import NatsServer
    from catga_store.testing.servers import RedisServer

__all__ = [
    "async_flow_store",
    "flow_clock",
    "flow_faults",
    "flow_store",
    "nats_server",
    "open_async_flow_store",
    "pytest_addoption",
    "pytest_configure",
    "redis_server",
]

_TEST_LOOP_SCOPE = "asyncio_default_test_loop_scope"
_HELP = "URL of the store that the flow_store fixture opens; each test uses a separate namespace"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the `--flow-store-url` option and the `flow_store_url` setting."""
    parser.getgroup("catga_store").addoption("--flow-store-url", metavar="URL", help=_HELP)
    parser.addini("flow_store_url", _HELP, default="memory://")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the async fixtures for pytest-asyncio if pytest-asyncio is in use."""
    config.addinivalue_line(
        "markers",
        (
            "flow_store(url=None, **options): URL and options of the store that the flow_store "
            "fixture opens"
        ),
    )
    if config.pluginmanager.hasplugin("asyncio"):
        from catga_store.testing.plugin_asyncio import asyncio_fixtures

        config.pluginmanager.register(asyncio_fixtures(), "catga_store.asyncio_fixtures")


@pytest.fixture
def flow_clock() -> ManualClock:
    """The clock of `flow_store`; it stands still until the test moves it."""
    from catga_store.testing.clock import ManualClock

    return ManualClock()


@pytest.fixture
def flow_faults() -> Faults:
    """Faults for the stores of this test; see `Faults.on_commit`."""
    from catga_store.testing.faults import Faults

    return Faults()


@pytest.fixture
def _flow_store_place(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:  # pyright: ignore[reportUnusedFunction]  a fixture
    """Where the stores of this test are, and their options."""
    from catga_store.testing.scratch import scratch_url

    marker = request.node.get_closest_marker("flow_store")
    args, options = (marker.args, dict(marker.kwargs)) if marker is not None else ((), {})
    if len(args) > 1:
        message = (
            "flow_store marker: expected at most one URL, and options as keyword arguments, got "
            f"{args}"
        )
        raise pytest.UsageError(message)

    url = args[0] if args else options.pop("url", None)
    url = url or request.config.getoption("flow_store_url", None)
    url = url or request.config.getini("flow_store_url")
    if url == "sqlite":
        url = f"sqlite:///{request.getfixturevalue('tmp_path')}/flows.db"

    options.setdefault("clock", request.getfixturevalue("flow_clock"))
    with scratch_url(url) as place:
        yield place, options


@pytest.fixture
def flow_store(
    request: pytest.FixtureRequest, _flow_store_place: tuple[str, dict[str, Any]]
) -> Iterator[Store]:
    """An empty store that uses `flow_clock`; if the test requests `flow_faults`, they are attached to the store."""
    from catga_store.opening.urls import open_store

    url, options = _flow_store_place
    with open_store(url, **options) as store:
        if "flow_faults" in request.fixturenames:
            request.getfixturevalue("flow_faults").attach(store)

        yield store


async def open_async_flow_store(
    request: pytest.FixtureRequest, place: tuple[str, dict[str, Any]]
) -> AsyncIterator[AsyncStore]:
    """Open and close the store of `async_flow_store` on the event loop of the test."""
    from catga_store.opening.urls import open_async_store

    url, options = place
    async with open_async_store(url, **options) as store:
        if "flow_faults" in request.fixturenames:
            request.getfixturevalue("flow_faults").attach(store)

        yield store


@pytest.fixture
async def _anyio_flow_store(  # pyright: ignore[reportUnusedFunction]  a fixture
    request: pytest.FixtureRequest, _flow_store_place: tuple[str, dict[str, Any]]
) -> AsyncIterator[AsyncStore]:
    async for store in open_async_flow_store(request, _flow_store_place):
        yield store


@pytest.fixture
def async_flow_store(request: pytest.FixtureRequest) -> AsyncStore:
    """The counterpart of `flow_store` for async tests, with the same records.

    Mark the test with `@pytest.mark.anyio`, or with `@pytest.mark.asyncio` in the strict mode of
    pytest-asyncio. In the auto mode of pytest-asyncio, the test needs no mark.
    """
    marker = request.node.get_closest_marker("asyncio")
    if marker is None:
        name = "_anyio_flow_store"
    else:
        scope = marker.kwargs.get("loop_scope") or request.config.getini(_TEST_LOOP_SCOPE)
        name = f"_asyncio_flow_store_{scope or 'function'}"

    # Each plugin runs its own async fixtures only, and would leave the other's alone.
    store: AsyncStore = request.getfixturevalue(name)
    return store


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A running Redis server, whose URL is `redis_server.url`. A missing wheel is an error, never a skip."""
    from catga_store.testing.servers import RedisServer

    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A running NATS server with JetStream, whose URL is `nats_server.url`. A missing wheel is an error."""
    from catga_store.testing.servers import NatsServer

    server = NatsServer().start()
    yield server
    server.close()
