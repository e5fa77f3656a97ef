"""The blocking stores, by kind; each is a `Store` over a store protocol and a driver of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from typing import Self
from typing import Unpack

from catga_store.core.options import StoreOptions
from catga_store.core.settings import Settings
from catga_store.drivers.blocking import BlockingDriver
from catga_store.drivers.blocking import Transport
from catga_store.errors import NotSupportedError
from catga_store.errors import UsageError
from catga_store.opening.places import nats_place
from catga_store.opening.places import redis_place
from catga_store.opening.url_codecs import with_codecs
from catga_store.opening.url_grammar import check_nats_server
from catga_store.opening.url_grammar import parse_redis_url
from catga_store.protocol.masking import shown
from catga_store.store import Store
from catga_store.stores.embedded import EmbeddedProtocol

__all__ = [
    "DEFAULT_BUCKET",
    "DEFAULT_PREFIX",
    "MemoryStore",
    "NatsStore",
    "RedisStore",
    "SQLiteStore",
    "memory_name",
    "nats_options",
    "nats_servers",
    "need_nats",
    "need_redis",
    "sqlite_path",
]

DEFAULT_BUCKET = "dslflows"
DEFAULT_PREFIX = "dslflow:"

if TYPE_CHECKING:
    from redis import Redis
    from redis import RedisCluster


def sqlite_path(path: str | os.PathLike[str]) -> str:
    """The path of a SQLite file, absolute, so that a later `chdir` does not change the store."""
    text: Any = os.fspath(path) if hasattr(path, "__fspath__") else path
    if not isinstance(text, str) or text in ("", ":memory:") or "\0" in text:
        message = (
            f"path: expected the path of a file, got {shown(text)}; to keep records without a "
            "file, use a MemoryStore"
        )
        raise UsageError(message)

    _refuse_url(text, "path: expected the path of a file")
    return str(Path(text).absolute())


def memory_name(name: str) -> str:
    """Return the name of a memory store; `UsageError` for what was meant to be something else."""
    given: object = name
    if not isinstance(given, str):
        message = f"memory store name: expected a str, got {shown(given)}"
        raise UsageError(message)

    _refuse_url(name, "name: expected the name of a memory store")
    return name


def _refuse_url(text: str, needed: str) -> None:
    if re.match(r"[A-Za-z][\w+.-]*://", text):
        message = f"{needed}, got the URL {shown(text)}; to open a store by its URL, use open_store"
        raise UsageError(message)


class MemoryStore(Store):
    """Keeps records in the memory of this process; the records are lost when the process ends.

    The records are encoded as in every other store. Stores with the same non-empty `name` share their
    records.
    """

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
        super().__init__(BlockingDriver(protocol, transport), settings, place)


class SQLiteStore(Store):
    """Keeps records in a SQLite file, which many processes can share. The file is opened at first use.

    A commit is on disk before it is acknowledged (WAL mode, `synchronous=FULL`).
    """

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[StoreOptions]) -> None:
        from catga_store.stores import sqlite

        settings = Settings.of(type(self), options)
        place = sqlite_path(path)
        protocol = EmbeddedProtocol(
            partitions=settings.partitions,
            timeout=settings.timeout,
            wakeups=sqlite.shared_wakeups(place),
        )
        super().__init__(BlockingDriver(protocol, sqlite.SQLiteTransport(place)), settings, place)


def need_redis() -> None:
    """`NotSupportedError` unless redis-py is installed."""
    if find_spec("redis") is None:
        message = (
            "a Redis store needs redis-py, which is not installed; run pip install "
            "'catga_store[redis]'"
        )
        raise NotSupportedError(message)


class RedisStore(Store):
    """Keeps records on a Redis (6.2 or later) or Valkey server or cluster. The store connects at first use.

    `client` is your own `redis.Redis`, which may also come from a Sentinel, or your own `redis.RedisCluster`.
    The store uses the client as it is, except that it never waits for a reply for longer than `timeout`; you
    close the client. Without a client, the store connects to a server on localhost. Every key begins with
    `prefix` in braces: stores with different prefixes share nothing.

    With `acknowledged_by=n`, a write is acknowledged only when `n` replicas have it, so that it survives a
    failover to one of them. If the replicas have not confirmed the write within three quarters of `timeout`,
    the commit raises `CommitUncertainError`. This option is not available on a cluster.

    The operations page for Redis describes how durable a commit is and which eviction policies lose flows.
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
        from catga_store.drivers import redis_clients

        settings = Settings.of(type(self), options)
        link = (
            redis_clients.link_to_url("redis://localhost", settings.timeout)
            if client is None
            else redis_clients.link_to_client(client, settings.timeout)
        )
        self._begin(link, client or "redis://localhost:6379/0", prefix, acknowledged_by, settings)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        acknowledged_by: int = 0,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Open the store at a Redis URL; for the options of the URL, see `open_store`.

        `prefix` and `acknowledged_by` apply only if the URL does not set them.
        """
        url, options = with_codecs(url, options)
        place = parse_redis_url(url)
        need_redis()
        from catga_store.drivers import redis_clients

        settings = Settings.of(cls, options)
        link = redis_clients.link_to_url(place.text, settings.timeout)
        store = cls.__new__(cls)
        own: dict[str, Any] = {"prefix": prefix, "acknowledged_by": acknowledged_by, **place.own}
        store._begin(link, place.text, own["prefix"], own["acknowledged_by"], settings)
        return store

    def _begin(
        self, link: Transport, server: Any, prefix: str, acknowledged_by: int, settings: Settings
    ) -> None:
        from catga_store.drivers.redis_cluster_blocking import RedisClusterLink
        from catga_store.stores import redis

        cluster = isinstance(link, RedisClusterLink)
        protocol = redis.RedisProtocol(
            prefix=prefix,
            partitions=settings.partitions,
            timeout=settings.timeout,
            acknowledged_by=redis.check_acknowledged_by(acknowledged_by, cluster=cluster),
        )
        Store.__init__(self, BlockingDriver(protocol, link), settings, redis_place(server, prefix))


def need_nats() -> None:
    """`NotSupportedError` unless nats-py is installed."""
    if find_spec("nats") is None:
        message = (
            "a NATS store needs nats-py, which is not installed; run pip install "
            "'catga_store[nats]'"
        )
        raise NotSupportedError(message)


def nats_servers(servers: Any) -> list[str]:
    """The URLs of NATS servers as a list; `UsageError` for anything else."""
    urls: list[Any] = [servers]
    if not isinstance(servers, str):
        urls = [*servers] if hasattr(servers, "__iter__") else []

    if not urls or not all(isinstance(url, str) and url for url in urls):
        message = (
            "servers: expected URLs such as ['nats://a:4222', 'nats://b:4222'], got "
            f"{shown(servers)}; to use your own connection, pass it to AsyncNatsStore on that "
            "connection's event loop"
        )
        raise UsageError(message)

    for url in urls:
        check_nats_server(url)

    return [each for url in urls for each in _servers_of(url)]


def _servers_of(url: str) -> list[str]:
    """Each server of a URL that names several, as nats://user:password@a:4222,b:4222 does."""
    scheme, mark, rest = url.rpartition("://")
    user, at, hosts = rest.rpartition("@")
    return [f"{scheme}{mark}{user}{at}{host}" for host in hosts.split(",")]


def nats_options(connect: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of `nats.connect` besides the servers; `UsageError` for unknown ones."""
    import inspect

    from nats.aio.client import Client

    given: object = connect
    if given is not None and not isinstance(given, Mapping):
        message = f"connect: expected a mapping of nats.connect options, got {shown(given)}"
        raise UsageError(message)

    options = dict(connect or {})
    known = inspect.signature(Client.connect).parameters.keys() - {"self", "servers"}
    unknown = [name for name in options if name not in known]
    if unknown:
        message = (
            f"connect: unknown option {shown(unknown[0])}; expected one of "
            f"{', '.join(sorted(known))}"
        )
        raise UsageError(message)

    return options


class NatsStore(Store):
    """Keeps records in NATS JetStream (2.12.3 or later). The store connects and creates its stream at first use.

    `servers` is the URL of one server, or the URLs of several servers of one cluster. `connect` contains
    further options of `nats.connect`, such as `{"user_credentials": "/etc/flows.creds"}`. The stream
    `KV_<bucket>` is created with `replicas` (1, 3 or 5) if it does not exist; if it exists with different
    settings, the store raises `StoreConfigError`. With `create=False`, the store raises `StoreConfigError`
    instead of creating the stream. `domain` names the JetStream domain that contains the stream.

    `max_bytes` reserves this amount of storage when the stream is created. Without it, a server that runs out
    of storage during a commit of several records may store only some of them, and the commit raises
    `CommitUncertainError`. With `stale_reads`, any replica serves reads, including a replica that lags
    behind. Without it, reads see every commit that was acknowledged before.

    The connection runs on an event loop in a separate thread, which belongs to the store. Any number of
    threads can use the store, and commits that they make at the same time are sent together. The operations
    page for NATS describes what is atomic and what a power failure can cost.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "nats://localhost:4222",
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
        from catga_store.drivers.nats_asyncio import NatsLink
        from catga_store.drivers.portal import PortalDriver
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
        urls = nats_servers(servers)
        make_link = partial(NatsLink, urls, timeout=settings.timeout, **nats_options(connect))
        driver = PortalDriver(protocol, make_link, settings.timeout)
        super().__init__(driver, settings, nats_place(urls, bucket))
