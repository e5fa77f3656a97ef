"""The pytest plugin: stores, clocks, faults and servers as fixtures.

It is there wherever catga_store is installed, and costs a run that does not use it nothing but its
own import: whatever a fixture needs is imported when it is asked for.

| fixture | answers |
|---|---|
| `flow_store` | an empty `Store`, closed and removed afterwards |
| `async_flow_store` | the same as `AsyncStore`, for tests that run under anyio's plugin |
| `flow_clock` | the `ManualClock` that these stores go by; time stands still until it is moved |
| `flow_faults` | `Faults` on these stores, which must be embedded ones |
| `redis_server`, `nats_server` | a running server for the session, from the wheels of `catga_store[test]` |

Which store: `@pytest.mark.flow_store("redis://…", owner="w-1")` on a test, class or module, with
options as keywords; else `--flow-store-url`; else `flow_store_url` in the configuration file; else
`memory://`. The tests get a namespace of their own there (`scratch_url`), never the one that is
named. `sqlite` alone is a file in the test's `tmp_path`.
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
    "pytest_addoption",
    "pytest_configure",
    "redis_server",
]

_HELP = "the store of the fixture flow_store, by URL; tests get a namespace of their own there"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--flow-store-url` and the setting `flow_store_url`."""
    parser.getgroup("catga_store").addoption("--flow-store-url", metavar="URL", help=_HELP)
    parser.addini("flow_store_url", _HELP, default="memory://")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "flow_store(url=None, **options): the store of the fixture flow_store"
    )


@pytest.fixture
def flow_clock() -> ManualClock:
    """The clock of `flow_store`: it stands still until the test moves it."""
    from catga_store.testing.clock import ManualClock

    return ManualClock()


@pytest.fixture
def flow_faults() -> Faults:
    """Faults on the transport of the stores of this test; see `Faults.on_commit`."""
    from catga_store.testing.faults import Faults

    return Faults()


@pytest.fixture
def _flow_store_place(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:  # pyright: ignore[reportUnusedFunction]  a fixture
    """Where the stores of this test are, and their options."""
    from catga_store.testing.scratch import scratch_url

    marker = request.node.get_closest_marker("flow_store")
    args, options = (marker.args, dict(marker.kwargs)) if marker is not None else ((), {})
    if len(args) > 1:
        message = f"the marker flow_store takes one URL, and options as keywords, not {args}"
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
    """An empty store that goes by `flow_clock`; with `flow_faults` asked for too, they are on it."""
    from catga_store.opening.urls import open_store

    url, options = _flow_store_place
    with open_store(url, **options) as store:
        if "flow_faults" in request.fixturenames:
            request.getfixturevalue("flow_faults").attach(store)

        yield store


@pytest.fixture
async def async_flow_store(
    request: pytest.FixtureRequest, _flow_store_place: tuple[str, dict[str, Any]]
) -> AsyncIterator[AsyncStore]:
    """`flow_store` for async tests, on the same records; the test says `@pytest.mark.anyio`."""
    from catga_store.opening.urls import open_async_store

    url, options = _flow_store_place
    async with open_async_store(url, **options) as store:
        if "flow_faults" in request.fixturenames:
            request.getfixturevalue("flow_faults").attach(store)

        yield store


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A running Redis; `redis_server.url`. A missing wheel is an error, never a skip."""
    from catga_store.testing.servers import RedisServer

    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A running nats-server with JetStream; `nats_server.url`. A missing wheel is an error."""
    from catga_store.testing.servers import NatsServer

    server = NatsServer().start()
    yield server
    server.close()
