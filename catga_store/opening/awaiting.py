"""The stores of async code, by kind; each is an `AsyncStore` over a store protocol and a driver of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from typing import Any
from typing import Self
from typing import Unpack

from catga_store.aio import AsyncStore
from catga_store.core.options import StoreOptions
from catga_store.core.settings import Settings
from catga_store.drivers.embedded_async import AsyncEmbeddedDriver
from catga_store.opening.blocking import DEFAULT_BUCKET
from catga_store.opening.blocking import DEFAULT_PREFIX
from catga_store.opening.blocking import memory_name
from catga_store.opening.blocking import nats_options
from catga_store.opening.blocking import nats_servers
from catga_store.opening.blocking import need_nats
from catga_store.opening.blocking import need_redis
from catga_store.opening.blocking import sqlite_path
from catga_store.opening.places import nats_place
from catga_store.opening.places import redis_place
from catga_store.opening.url_codecs import with_codecs
from catga_store.opening.url_grammar import parse_redis_url
from catga_store.stores.embedded import EmbeddedProtocol

__all__ = ["AsyncMemoryStore", "AsyncNatsStore", "AsyncRedisStore", "AsyncSQLiteStore"]

if TYPE_CHECKING:
    from nats.aio.client import Client
    from redis.asyncio import Redis
    from redis.asyncio import RedisCluster

    from catga_store.drivers.links import AsyncLink


class AsyncMemoryStore(AsyncStore):
    """The async counterpart of `MemoryStore`."""

    def __init__(self, name: str = "", **options: Unpack[StoreOptions]) -> None:
        from catga_store.stores import memory

        settings = Settings.of(type(self), options)
        transport = memory.MemoryTransport(memory.shared_tables(memory_name(name)))
        protocol = EmbeddedProtocol(
            partitions=settings.partitions,
            timeout=settings.timeout,
            wakeups=memory.shared_wakeups(name),
        )
        place = repr(name) if name else ""
        super().__init__(AsyncEmbeddedDriver(protocol, transport), settings, place)


class AsyncSQLiteStore(AsyncStore):
    """The async counterpart of `SQLiteStore`. Each transaction runs in a worker thread."""

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[StoreOptions]) -> None:
        from catga_store.stores import sqlite

        settings = Settings.of(type(self), options)
        place = sqlite_path(path)
        protocol = EmbeddedProtocol(
            partitions=settings.partitions,
            timeout=settings.timeout,
            wakeups=sqlite.shared_wakeups(place),
        )
        transport = sqlite.SQLiteTransport(place)
        super().__init__(AsyncEmbeddedDriver(protocol, transport), settings, place)


class AsyncRedisStore(AsyncStore):
    """The async counterpart of `RedisStore`. `client` is a client of `redis.asyncio`.

    The client may also come from a Sentinel. The requests of concurrent tasks are sent together on one
    connection. On trio, the client runs on an asyncio event loop in a separate thread, which belongs to the
    store.
    """

    def __init__(
        self,
        client: Redis | RedisCluster | None = None,
        *,
        prefix: str = DEFAULT_PREFIX,
        acknowledged_by: int = 0,
        **options: Unpack[StoreOptions],
    ) -> None:
        need_redis()
        from catga_store.drivers import redis_asyncio

        settings = Settings.of(type(self), options)
        if client is None:
            cluster = False
            make = partial(redis_asyncio.open_redis_link, "redis://localhost", settings.timeout)
        else:
            cluster = redis_asyncio.check_client(client)
            make = partial(redis_asyncio.redis_link, client, settings.timeout)

        server = client or "redis://localhost:6379/0"
        self._begin(make, server, prefix, acknowledged_by, settings, cluster=cluster)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        acknowledged_by: int = 0,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Open the store at a Redis URL; see `RedisStore.from_url`."""
        url, options = with_codecs(url, options)
        place = parse_redis_url(url)
        need_redis()
        from catga_store.drivers import redis_asyncio
        from catga_store.drivers import redis_clients

        settings = Settings.of(cls, options)
        _, cluster = redis_clients.check_url(place.text)
        make = partial(redis_asyncio.open_redis_link, place.text, settings.timeout)
        own: dict[str, Any] = {"prefix": prefix, "acknowledged_by": acknowledged_by, **place.own}
        store = cls.__new__(cls)
        acknowledged = own["acknowledged_by"]
        store._begin(make, place.text, own["prefix"], acknowledged, settings, cluster=cluster)
        return store

    def _begin(
        self,
        make_link: Callable[[], AsyncLink],
        server: Any,
        prefix: str,
        acknowledged_by: int,
        settings: Settings,
        *,
        cluster: bool,
    ) -> None:
        from catga_store.drivers.any_loop import AnyLoopDriver
        from catga_store.stores import redis

        protocol = redis.RedisProtocol(
            prefix=prefix,
            partitions=settings.partitions,
            timeout=settings.timeout,
            acknowledged_by=redis.check_acknowledged_by(acknowledged_by, cluster=cluster),
        )
        driver = AnyLoopDriver(protocol, make_link, settings.timeout)
        AsyncStore.__init__(self, driver, settings, redis_place(server, prefix))


class AsyncNatsStore(AsyncStore):
    """The async counterpart of `NatsStore`. `servers` can also be a connected client of nats-py.

    Such a client must be connected on the same event loop, and you close it yourself. On trio, the connection
    runs on an asyncio event loop in a separate thread, which belongs to the store, so you cannot pass a
    client.
    """

    def __init__(
        self,
        servers: str | Sequence[str] | Client = "nats://localhost:4222",
        *,
        bucket: str = DEFAULT_BUCKET,
        replicas: int = 1,
        max_bytes: int | None = None,
        stale_reads: bool = False,
        create: bool = True,
        domain: str | None = None,
        connect: Mapping[str, Any] | None = None,
        **options: Unpack[StoreOptions],
    ) -> None:
        need_nats()
        from nats.aio.client import Client

        from catga_store.drivers.any_loop import AnyLoopDriver
        from catga_store.drivers.nats_asyncio import NatsLink
        from catga_store.stores.nats import NatsProtocol

        settings = Settings.of(type(self), options)
        protocol = NatsProtocol(
            bucket=bucket,
            replicas=replicas,
            max_bytes=max_bytes,
            stale_reads=stale_reads,
            create=create,
            domain=domain,
            partitions=settings.partitions,
            timeout=settings.timeout,
        )
        place = servers if isinstance(servers, Client) else nats_servers(servers)
        options_of_nats = nats_options(connect)
        make_link = partial(NatsLink, place, timeout=settings.timeout, **options_of_nats)
        driver = AnyLoopDriver(protocol, make_link, settings.timeout)
        super().__init__(driver, settings, nats_place(place, bucket))


for _public in (AsyncMemoryStore, AsyncNatsStore, AsyncRedisStore, AsyncSQLiteStore):
    _public.__module__ = "catga_store"
