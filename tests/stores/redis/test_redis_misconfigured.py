"""Ways to misconfigure a Redis store, and the error of each: one of the library's, by name.

Nothing is sent in any of them, and no exception of redis-py, ssl or the system comes through.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from attrs import frozen
from redis.backoff import NoBackoff
from redis.retry import Retry

import catga_store as cs
from catga_store.testing.servers import RedisServer

SOON = timedelta(seconds=1)


@pytest.fixture
def server(redis_server: Callable[[str], RedisServer]) -> RedisServer:
    """A server that is as it should be."""
    return redis_server("8.2")


def ping_by_url(url: str) -> None:
    """Open the store, and use it."""
    with cs.open_store(url, timeout=SOON) as store:
        store.ping()


def ping_by_async_url(url: str) -> None:
    """Do so with asyncio."""

    async def ping() -> None:
        async with cs.open_async_store(url, timeout=SOON) as store:
            await store.ping()

    asyncio.run(ping())


def ping_by_client(**options: Any) -> None:
    """Open the store on a client with these options, and use it."""
    client = redis.Redis(**options)
    try:
        with cs.RedisStore(client, timeout=SOON) as store:
            store.ping()
    finally:
        with suppress(redis.RedisError):
            client.close()


def ping_by_async_client(**options: Any) -> None:
    """Do so with asyncio."""

    async def ping() -> None:
        client = redis.asyncio.Redis(**options)
        try:
            async with cs.AsyncRedisStore(client, timeout=SOON) as store:
                await store.ping()
        finally:
            await client.aclose()

    asyncio.run(ping())


BY_URL = pytest.mark.parametrize("ping", [ping_by_url, ping_by_async_url])
BY_CLIENT = pytest.mark.parametrize("ping", [ping_by_client, ping_by_async_client])


@frozen
class Wrong:
    """A URL, and the error of a store that is opened with it."""

    url: str
    """`{at}` is the host and port of a server without TLS."""
    error: type[cs.CatgaStoreError]
    says: str


URLS = [
    Wrong("rediss://{at}?ssl_cert_reqs=CERT_NONE", cs.UsageError, "ssl_cert_reqs"),
    Wrong("rediss://{at}?ssl_ca_certs=/none.pem", cs.StoreConfigError, "CA file.*cannot be read"),
    Wrong(
        "rediss://{at}?ssl_ca_certs=/etc/passwd",
        cs.StoreConfigError,
        "a TLS connection cannot be established",
    ),
    Wrong(
        "rediss://{at}?ssl_certfile=/none.pem&ssl_keyfile=/none.key",
        cs.StoreConfigError,
        "certificate.*cannot be read",
    ),
    Wrong("rediss://{at}", cs.StoreUnavailableError, "may not support TLS"),
    Wrong("rediss+cluster://{at}", cs.StoreUnavailableError, "node|reached"),
    Wrong("redis://{at}?protocol=4", cs.UsageError, "protocol"),
    Wrong("redis://{at}?socket_timeout=0", cs.UsageError, "socket_timeout"),
    Wrong("redis://{at}?socket_connect_timeout=0", cs.UsageError, "socket_connect_timeout"),
    Wrong("redis://{at}?ssl=true", cs.UsageError, "ssl"),
    Wrong("redis://{at}/99", cs.StoreConfigError, "DB index is out of range"),
    Wrong("redis://no-such-host.invalid", cs.StoreUnavailableError, "cannot be reached"),
    Wrong("unix:///no/such.sock", cs.StoreUnavailableError, "cannot be reached"),
]


@BY_URL
@pytest.mark.parametrize("wrong", URLS, ids=lambda wrong: wrong.url)
def test_wrong_url_is_an_error_of_the_library(
    wrong: Wrong, ping: Callable[[str], None], server: RedisServer
) -> None:
    """It says what is wrong, and that nothing was written."""
    with pytest.raises(wrong.error, match=wrong.says) as caught:
        ping(wrong.url.format(at=f"{server.host}:{server.port}"))

    if not isinstance(caught.value, cs.UsageError):
        assert "nothing was written" in str(caught.value)


class Provider(redis.CredentialProvider):
    """A credential provider that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_credentials(self) -> Any:
        """Raise."""
        raise self.error

    async def get_credentials_async(self) -> Any:
        """Raise when it is awaited."""
        raise self.error


CLIENTS: list[tuple[dict[str, Any], type[cs.CatgaStoreError], str]] = [
    (
        {"credential_provider": Provider(ValueError("no token"))},
        cs.StoreUnavailableError,
        "credential provider.* raised ValueError: no token",
    ),
    (
        {"credential_provider": Provider(KeyError("token"))},
        cs.StoreUnavailableError,
        "credential provider.* raised KeyError",
    ),
    (
        {"credential_provider": Provider(ConnectionResetError("no network"))},
        cs.StoreUnavailableError,
        "no network",
    ),
    ({"protocol": 4}, cs.StoreConfigError, "options of the Redis client.*protocol"),
    ({"ssl": True, "ssl_cert_reqs": "CERT_NONE"}, cs.StoreConfigError, "options of the Redis"),
    ({"ssl": True, "ssl_ca_certs": "/none.pem"}, cs.StoreConfigError, "cannot be read"),
    ({"socket_timeout": 0}, cs.UsageError, "socket_timeout.*got 0"),
    ({"socket_connect_timeout": 0}, cs.UsageError, "socket_connect_timeout.*got 0"),
    ({"encoding": "klingon"}, cs.UsageError, "encoding"),
]


@BY_CLIENT
@pytest.mark.parametrize(("options", "error", "says"), CLIENTS, ids=lambda value: str(value)[:40])
def test_wrong_client_is_an_error_of_the_library(
    options: dict[str, Any],
    error: type[cs.CatgaStoreError],
    says: str,
    ping: Callable[..., None],
    server: RedisServer,
) -> None:
    """So it is with a client of the user's, as it is with a URL."""
    with pytest.raises(error, match=says):
        ping(host=server.host, port=server.port, retry=Retry(NoBackoff(), 0), **options)


@pytest.mark.parametrize("outer", [KeyError, FileNotFoundError, UnicodeError])
def test_an_exception_that_the_caller_handles_does_not_matter(outer: type[Exception]) -> None:
    """A store that is used in an `except` block is not misconfigured by that."""

    def fail() -> None:
        raise outer

    try:
        fail()
    except outer:
        with pytest.raises(cs.StoreUnavailableError, match="the server cannot be reached"):
            ping_by_url("redis://127.0.0.1:1")


def test_full_pool_of_the_user_is_named(server: RedisServer) -> None:
    """Every connection is taken: that is neither an outage nor a wrong URL."""
    at: dict[str, Any] = {"host": server.host, "port": server.port, "max_connections": 1}
    for pool in (redis.ConnectionPool(**at), redis.BlockingConnectionPool(timeout=0.1, **at)):
        client = redis.Redis(connection_pool=pool)
        held = pool.get_connection()
        with pytest.raises(
            cs.StoreUnavailableError,
            match=r"Redis client's pool is in use.*raise max_connections",
        ):
            cs.RedisStore(client, timeout=SOON).ping()

        pool.release(held)
        pool.disconnect()

    async def ping() -> None:
        other = redis.asyncio.Redis(**at)
        held = await other.connection_pool.get_connection()
        try:
            async with cs.AsyncRedisStore(other, timeout=SOON) as store:
                with pytest.raises(cs.StoreUnavailableError, match="Redis client's pool is in use"):
                    await store.ping()
        finally:
            await other.connection_pool.release(held)
            await other.aclose()

    asyncio.run(ping())


@contextmanager
def no_descriptors_left(free: int = 0) -> Iterator[None]:
    """Take every file descriptor but a few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))

        for _ in range(free):
            os.close(taken.pop())

        yield
    finally:
        for one in taken:
            os.close(one)

        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptors_left_is_named(server: RedisServer) -> None:
    """At the first use, and when a connection must be opened later."""
    says = "no file descriptors left"
    with no_descriptors_left(), pytest.raises(cs.StoreUnavailableError, match=says):
        ping_by_url(server.url)

    with cs.open_store(server.url, timeout=SOON) as store:
        with no_descriptors_left(), pytest.raises(cs.StoreUnavailableError, match=says):
            store.ping()

        store.ping()

    async def ping() -> None:
        async with cs.open_async_store(server.url, timeout=SOON) as store:
            with no_descriptors_left(), pytest.raises(cs.StoreUnavailableError, match=says):
                await store.ping()

            await store.ping()

    asyncio.run(ping())


def test_timeout_of_zero_is_refused() -> None:
    """No reply could come in time."""
    for open_one in (cs.open_store, cs.open_async_store):
        with pytest.raises(cs.UsageError, match="timeout: expected a duration longer than 0"):
            open_one("redis://localhost", timeout=timedelta(0))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a closed loop closes no socket
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_close_in_another_loop_is_quiet(server: RedisServer) -> None:
    """The loop that has the connections was closed: they cannot be closed in order."""
    store = cs.open_async_store(server.url, timeout=SOON)
    asyncio.run(store.ping())
    asyncio.run(store.close())
    del store
    gc.collect()


def test_close_from_another_loop_closes_on_the_first(server: RedisServer) -> None:
    """While the loop that has the connections still runs, they are closed there."""
    store: Any = cs.open_async_store(server.url, timeout=SOON)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(store.ping(), loop).result(timeout=30)
        asyncio.run(store.close())

        async def others() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

        asyncio.run_coroutine_threadsafe(others(), loop).result(timeout=30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def test_rediss_sends_nothing_in_clear() -> None:
    """All that a server without TLS receives is a TLS handshake, never the password."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def listen() -> None:
            for _ in range(2):
                one, _ = listener.accept()
                with one:
                    one.settimeout(30)
                    received.append(one.recv(1 << 16))

        thread = threading.Thread(target=listen)
        thread.start()
        port = listener.getsockname()[1]
        for ping in (ping_by_url, ping_by_async_url):
            with pytest.raises(cs.StoreUnavailableError):
                ping(f"rediss://user:hunter2@127.0.0.1:{port}")

        thread.join(30)

    assert len(received) == 2
    assert all(data[:1] == b"\x16" and b"hunter2" not in data for data in received)


def test_scripts_are_read_from_a_zip_file(tmp_path: Path) -> None:
    """The package need not be a folder."""
    root = Path(cs.__file__).parent
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in root.rglob("*"):
            if path.suffix in {".py", ".lua", ".typed"}:
                archive.write(path, Path("catga_store") / path.relative_to(root))

    code = "from catga_store.stores.redis import scripts; print(scripts.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(packed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "packed.zip" in done.stdout
