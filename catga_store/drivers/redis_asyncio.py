"""The asyncio link to Redis: commands of concurrent tasks go out together on one connection.

A single server, or the primary that a Sentinel names, has one shared connection
(`redis_multiplexed`); a cluster has one per node (`redis_cluster_asyncio`). A pipe that is `exclusive`
borrows a connection of its own, so that no other pipe waits behind it. Each takes a place in the client's
pool.

A client of the user's is not altered and not closed. One that is opened here does not retry by
itself, so a lost reply is known. Replies are raw bytes, whatever the client decodes for others.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from catga_store.drivers.cancellation import OwnTask
from catga_store.drivers.links import Started
from catga_store.drivers.redis_clients import check_options
from catga_store.drivers.redis_cluster_asyncio import RedisClusterAsyncLink
from catga_store.drivers.redis_failures import NO_TLS
from catga_store.drivers.redis_failures import is_encrypted
from catga_store.drivers.redis_failures import not_sent
from catga_store.drivers.redis_multiplexed import MultiplexedConnections
from catga_store.drivers.redis_subscribing_asyncio import AsyncSubscription
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Request
from catga_store.protocol.masking import shown
from catga_store.stores.redis.transport import Pipe
from catga_store.stores.redis.transport import Subscribe

__all__ = ["RedisAsyncLink", "check_client", "open_redis_link", "redis_link"]


def open_redis_link(url: str, timeout: float) -> RedisAsyncLink | RedisClusterAsyncLink:
    """Return the link for a client of its own, by URL: one of `redis.asyncio`, or `redis+cluster://`.

    It connects at first use. `timeout`, in seconds, is the longest that an exchange may take.
    """
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        # The multiplexed connection has the deadlines; those of redis-py cost a task for each write.
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "max_connections": 2**31,  # a large body that found none left would be refused
    }
    client: Any = Redis
    scheme, _, place = url.partition("://")
    if scheme.endswith("+cluster"):
        client, url = RedisCluster, f"{scheme.removesuffix('+cluster')}://{place}"

    try:
        opened = client.from_url(url, **options)
    except OSError as error:  # redis-py reads files of its own
        raise StoreUnavailableError(f"{not_sent(error)}; nothing was sent") from error

    return redis_link(opened, timeout, owned=True)


def check_client(client: object) -> bool:
    """Return whether this client of `redis.asyncio` is of a cluster; `UsageError` for any other."""
    if not isinstance(client, Redis | RedisCluster):
        message = (
            "AsyncRedisStore: expected a Redis or RedisCluster client from redis.asyncio, got "
            f"{shown(client)}; for a client from redis, use RedisStore"
        )
        raise UsageError(message)

    check_options(client)
    return isinstance(client, RedisCluster)


def redis_link(
    client: Any, timeout: float, *, owned: bool = False
) -> RedisAsyncLink | RedisClusterAsyncLink:
    """Return the link for a client of `redis.asyncio`; an `owned` one is closed with the link."""
    kind = RedisClusterAsyncLink if isinstance(client, RedisCluster) else RedisAsyncLink
    return kind(client, timeout, owned=owned)


class RedisAsyncLink:
    """Performs `Pipe` requests on one server; see `links.StartingLink`."""

    def __init__(self, client: Any, timeout: float, *, owned: bool = False) -> None:
        self._client = client
        self._owned = owned
        self._multiplexed = MultiplexedConnections(client, timeout)
        self._connections = partial(_Pool, client.connection_pool)
        self._subscription = AsyncSubscription(self._connection_apart, timeout)

    @property
    def writes(self) -> int:
        """The number of writes on the shared connection so far."""
        return self._multiplexed.writes

    def start(self, request: Request[Any], /) -> Started:
        """Start a request. It fails with `NotSentError` or `ReplyLostError`."""
        assert isinstance(request, Pipe), request  # noqa: S101  there are no others
        if request.exclusive:
            return OwnTask(asyncio.create_task(self.perform(request)))

        connection = self._multiplexed.shared("", self._connections)
        return connection.start(self._multiplexed.arguments_of(request.commands))

    async def perform(self, request: Request[Any], /) -> tuple[Any, ...]:
        """Return the replies in the order of the commands. `NotSentError`, `ReplyLostError`."""
        if isinstance(request, Subscribe):
            await self._subscription.begin(request)
            return ()

        assert isinstance(request, Pipe), request  # noqa: S101  there are no others
        arguments = self._multiplexed.arguments_of(request.commands)
        if request.exclusive:
            return await self._multiplexed.put_apart(self._connections, arguments)

        return await self._multiplexed.shared("", self._connections).put(arguments)

    async def close(self) -> None:
        """Fail what is in flight; close the client if it is owned."""
        await self._subscription.close()
        await self._multiplexed.close()
        if self._owned:
            await self._client.aclose()

    async def _connection_apart(self) -> Any:
        """Return a new connection that the client's pool knows nothing of, and does not count."""
        pool = self._client.connection_pool
        return pool.connection_class(**pool.connection_kwargs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._client!r}>"


class _Pool:
    """The pool of a client of one server, or of the primary that a Sentinel names."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.hint = f"; {NO_TLS}" if is_encrypted(pool) else ""

    def failure(self, error: BaseException) -> NotSentError:
        return not_sent(error, self._pool)

    async def take(self) -> Any:
        return await self._pool.get_connection()

    async def give_back(self, connection: Any) -> None:
        await self._pool.release(connection)
