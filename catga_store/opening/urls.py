"""`open_store` and `open_async_store`: stores by URL.

| URL | store |
|---|---|
| `memory://`, `memory://name` | memory; a name is shared inside the process |
| `sqlite:///flows.db`, `sqlite:////var/lib/flows.db` | SQLite; three slashes relative, four absolute |
| `redis://user:password@host:6379/0`, `rediss://…` | Redis or Valkey, plain or by TLS |
| `redis+cluster://host:6379`, `rediss+cluster://…` | a cluster of them; any node tells of the others |
| `unix:///run/redis.sock?db=0` | Redis by its socket |
| `nats://user:password@a:4222,b:4222`, `tls://…` | NATS JetStream, plain or by TLS; servers of one cluster |

URLs of Redis take a query: `prefix=orders:` (default `dslflow:`), `acknowledged_by=1`, and what
redis-py knows, as `socket_connect_timeout=2`. URLs of NATS take `bucket=orders` (default `dslflows`), `replicas=3`,
`max_bytes=10000000000`, `stale_reads=true`, and of nats-py's options `token`, `user_credentials`,
`nkeys_seed` and `name`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeVar
from typing import Unpack
from urllib.parse import SplitResult
from urllib.parse import parse_qsl
from urllib.parse import unquote
from urllib.parse import urlencode
from urllib.parse import urlsplit

from catga_store.errors import UsageError
from catga_store.opening.blocking import MemoryStore
from catga_store.opening.blocking import NatsStore
from catga_store.opening.blocking import RedisStore
from catga_store.opening.blocking import SQLiteStore
from catga_store.store import Store
from catga_store.store import StoreOptions

if TYPE_CHECKING:
    from catga_store.aio import AsyncStore
    from catga_store.opening.awaiting import AsyncNatsStore
    from catga_store.opening.awaiting import AsyncRedisStore

__all__ = ["open_async_store", "open_store"]

R = TypeVar("R", RedisStore, "AsyncRedisStore")
N = TypeVar("N", NatsStore, "AsyncNatsStore")

_REDIS = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")
_OWN_OF_REDIS = ("prefix", "acknowledged_by")
_NATS = ("nats", "tls")
_TEXTS_OF_NATS = ("token", "user_credentials", "nkeys_seed", "name")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def open_store(url: str, **options: Unpack[StoreOptions]) -> Store:
    """Open a store by URL; it connects at first use. `UsageError` for a URL that says nothing.

    >>> with open_store("memory://") as store:
    ...     store.get("nobody")
    """
    kind, place = _parse(url)
    if kind == "memory":
        return MemoryStore(place, **options)

    if kind == "redis":
        return _redis_store(RedisStore, place, options)

    if kind == "nats":
        return _nats_store(NatsStore, place, options)

    return SQLiteStore(place, **options)


def open_async_store(url: str, **options: Unpack[StoreOptions]) -> AsyncStore:
    """Open a store for async code, under asyncio or trio; see `open_store`."""
    from catga_store.opening import awaiting

    kind, place = _parse(url)
    if kind == "memory":
        return awaiting.AsyncMemoryStore(place, **options)

    if kind == "redis":
        return _redis_store(awaiting.AsyncRedisStore, place, options)

    if kind == "nats":
        return _nats_store(awaiting.AsyncNatsStore, place, options)

    return awaiting.AsyncSQLiteStore(place, **options)


def _parse(url: Any) -> tuple[str, str]:
    if not isinstance(url, str):
        message = f"a store's URL must be text, not {url!r}"
        raise UsageError(message)

    try:
        parts = urlsplit(url)
    except ValueError as error:
        message = f"{_shown(url)!r} is no URL: {error}"
        raise UsageError(message) from error

    for kind, schemes, rest in (("redis", _REDIS, ":6379/0"), ("nats", _NATS, ":4222")):
        if parts.scheme in schemes and not parts.fragment:
            if not _names_servers(parts):
                message = f"{_shown(url)!r} names no server; write {parts.scheme}://host{rest}"
                raise UsageError(message)

            return kind, url

    if parts.query or parts.fragment:
        message = f"{_shown(url)!r} has a query or a fragment; pass options as keywords, and escape ? and #"
        raise UsageError(message)

    if parts.scheme == "memory":
        if parts.path not in ("", "/"):
            message = f"{url!r} names no memory store; write memory://name"
            raise UsageError(message)

        return "memory", unquote(parts.netloc)

    if parts.scheme == "sqlite":
        return "sqlite", _sqlite_place(url, parts)

    message = (
        f"{_shown(url)!r} names no store; write memory://, memory://name, sqlite:///path, redis://host or"
        " nats://host"
    )
    raise UsageError(message)


def _shown(url: str) -> str:
    """The URL as a message may show it, without user and password."""
    return re.sub(r"//[^/]*@", "//…@", url)


def _names_servers(parts: SplitResult) -> bool:
    if parts.scheme in _NATS:
        hosts = parts.netloc.rpartition("@")[2].split(",")
        return all(hosts) and parts.path in ("", "/")

    return bool(parts.hostname) or parts.scheme == "unix"


def _redis_store(kind: type[R], url: str, options: StoreOptions) -> R:
    """The store at a URL of Redis; prefix and acknowledged_by are ours, the rest redis-py's."""
    place, _, text = url.partition("?")
    query = parse_qsl(text, keep_blank_values=True)
    own: Any = {name: value for name, value in query if name in _OWN_OF_REDIS}
    if own.get("acknowledged_by", "").isdecimal():
        own["acknowledged_by"] = int(own["acknowledged_by"])

    rest = urlencode([(name, value) for name, value in query if name not in _OWN_OF_REDIS])
    return kind.from_url(f"{place}?{rest}" if rest else place, **own, **options)


def _nats_store(kind: type[N], url: str, options: StoreOptions) -> N:
    servers, connect, own = nats_place(url)
    return kind(servers, connect=connect, **own, **options)


def nats_place(url: str) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The servers of a URL of NATS, what `nats.connect` is told, and the store's own options.

    A user without a password is a token, as for `nats.connect`.
    """
    parts = urlsplit(url)
    who, _, hosts = parts.netloc.rpartition("@")
    servers = [f"{parts.scheme}://{host}" for host in hosts.split(",")]
    user, colon, password = who.partition(":")
    own: dict[str, Any] = {}
    connect = {"user": unquote(user), "password": unquote(password)} if colon else {}
    if user and not colon:
        connect["token"] = unquote(user)

    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "bucket":
            own[name] = value
        elif name in ("replicas", "max_bytes") and value.isdecimal():
            own[name] = int(value)
        elif name == "stale_reads" and value in _TRUTHS:
            own[name] = _TRUTHS[value]
        elif name in _TEXTS_OF_NATS:
            connect[name] = value
        else:
            message = (
                f"the query of a NATS URL cannot say {name}={value}; it may say bucket=orders,"
                " replicas=3, max_bytes=10000000000, stale_reads=true, token, user_credentials,"
                " nkeys_seed and name"
            )
            raise UsageError(message)

    return servers, connect, own


def _sqlite_place(url: str, parts: SplitResult) -> str:
    place = unquote(parts.path)[1:]
    if parts.netloc or not place:
        message = (
            f"{url!r} names no file; write sqlite:///flows.db for a relative path,"
            " sqlite:////var/lib/flows.db for an absolute one"
        )
        raise UsageError(message)

    return place
