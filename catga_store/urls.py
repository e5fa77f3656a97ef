"""`open_store` and `open_async_store`: stores by URL.

| URL | store |
|---|---|
| `memory://`, `memory://name` | memory; a name is shared inside the process |
| `sqlite:///flows.db`, `sqlite:////var/lib/flows.db` | SQLite; three slashes relative, four absolute |
| `redis://user:password@host:6379/0`, `rediss://…` | Redis or Valkey, plain or by TLS |
| `redis+cluster://host:6379`, `rediss+cluster://…` | a cluster of them; any node tells of the others |
| `unix:///run/redis.sock?db=0` | Redis by its socket |

URLs of Redis take a query: `prefix=orders:` (default `dslflow:`), and what redis-py knows, as
`socket_connect_timeout=2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any
from typing import TypeVar
from typing import Unpack
from urllib.parse import SplitResult
from urllib.parse import parse_qsl
from urllib.parse import unquote
from urllib.parse import urlencode
from urllib.parse import urlsplit

from catga_store.errors import NotSupportedError
from catga_store.errors import UsageError
from catga_store.store import MemoryStore
from catga_store.store import RedisStore
from catga_store.store import SQLiteStore
from catga_store.store import Store
from catga_store.store import StoreOptions

if TYPE_CHECKING:
    from catga_store.aio import AsyncRedisStore
    from catga_store.aio import AsyncStore

__all__ = ["open_async_store", "open_store"]

R = TypeVar("R", RedisStore, "AsyncRedisStore")

_REDIS = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")


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

    return SQLiteStore(place, **options)


def open_async_store(url: str, **options: Unpack[StoreOptions]) -> AsyncStore:
    """Open a store for async code, under asyncio or trio; see `open_store`."""
    from catga_store import aio  # noqa: PLC0415  anyio costs blocking programs nothing

    kind, place = _parse(url)
    if kind == "memory":
        return aio.AsyncMemoryStore(place, **options)

    if kind == "redis":
        return _redis_store(aio.AsyncRedisStore, place, options)

    return aio.AsyncSQLiteStore(place, **options)


def _parse(url: Any) -> tuple[str, str]:
    if not isinstance(url, str):
        message = f"a store's URL must be text, not {url!r}"
        raise UsageError(message)

    try:
        parts = urlsplit(url)
    except ValueError as error:
        message = f"{url!r} is no URL: {error}"
        raise UsageError(message) from error

    if parts.scheme in _REDIS and not parts.fragment:
        if not (parts.hostname or parts.scheme == "unix"):
            message = f"{url!r} names no server; write {parts.scheme}://host:6379/0"
            raise UsageError(message)

        return "redis", url

    if parts.query or parts.fragment:
        message = f"{url!r} has a query or a fragment; pass options as keywords, and escape ? and #"
        raise UsageError(message)

    if parts.scheme == "memory":
        if parts.path not in ("", "/"):
            message = f"{url!r} names no memory store; write memory://name"
            raise UsageError(message)

        return "memory", unquote(parts.netloc)

    if parts.scheme == "sqlite":
        return "sqlite", _sqlite_place(url, parts)

    if parts.scheme in ("nats", "tls"):
        message = (
            f"this release has no store for {parts.scheme}:// yet; use sqlite:/// or memory://"
        )
        raise NotSupportedError(message)

    message = (
        f"{url!r} names no store; write memory://, memory://name, sqlite:///path or redis://host"
    )
    raise UsageError(message)


def _redis_store(kind: type[R], url: str, options: StoreOptions) -> R:
    """The store at a URL of Redis; the prefix is ours, the rest of the query redis-py's."""
    place, _, text = url.partition("?")
    query = parse_qsl(text, keep_blank_values=True)
    prefixes = [value for name, value in query if name == "prefix"]
    rest = urlencode([(name, value) for name, value in query if name != "prefix"])
    place = f"{place}?{rest}" if rest else place
    if not prefixes:
        return kind.from_url(place, **options)

    return kind.from_url(place, prefix=prefixes[-1], **options)


def _sqlite_place(url: str, parts: SplitResult) -> str:
    place = unquote(parts.path)[1:]
    if parts.netloc or not place:
        message = (
            f"{url!r} names no file; write sqlite:///flows.db for a relative path,"
            " sqlite:////var/lib/flows.db for an absolute one"
        )
        raise UsageError(message)

    return place
