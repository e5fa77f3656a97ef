"""`open_store` and `open_async_store`: stores by URL.

| URL | store |
|---|---|
| `memory://`, `memory://name` | memory; stores of one name share records inside the process |
| `sqlite:///flows.db`, `sqlite:////var/lib/flows.db` | SQLite; three slashes relative, four absolute |
| `redis://user:password@host:6379/0`, `rediss://…` | Redis or Valkey, plain or by TLS |
| `redis+cluster://host:6379`, `rediss+cluster://…` | a cluster of them; any node names the others |
| `unix:///run/redis.sock?db=0` | Redis through a Unix socket |
| `nats://user:password@a:4222,b:4222`, `tls://…` | NATS JetStream, plain or by TLS; servers of one cluster |

A URL of Redis may have the options `prefix=orders:` (default `dslflow:`), `acknowledged_by=1`, and of
redis-py's `db`, `username`, `password`, `client_name`, `protocol`, `max_connections`, `health_check_interval`,
`socket_timeout`, `socket_connect_timeout`, `socket_keepalive`; with `rediss://` also `ssl_ca_certs`,
`ssl_ca_path`, `ssl_certfile`, `ssl_keyfile`, `ssl_password`, `ssl_cert_reqs`, `ssl_check_hostname` and
`ssl_ciphers`. A URL of NATS may have `bucket=orders` (default `dslflows`), `replicas=3`,
`max_bytes=10000000000`, `stale_reads=true`, `create=false`, `domain=hub`, and of nats-py's options
`token`, `user_credentials`, `nkeys_seed` and `name`. A user without a password is a token of NATS.
Every URL may name codecs of bodies: `codecs=zstd`, and where the keys of an encryption are, as
`keys=env:NAME` or `keys=file:PATH`; see `Keys.parse`. `accept_plain=true` reads what is not encrypted, too.
Anything else in a URL is refused; `url_grammar` and `url_codecs` read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any
from typing import Unpack

from catga_store.core.options import StoreOptions
from catga_store.errors import UsageError
from catga_store.opening.blocking import MemoryStore
from catga_store.opening.blocking import NatsStore
from catga_store.opening.blocking import RedisStore
from catga_store.opening.blocking import SQLiteStore
from catga_store.opening.url_codecs import bare
from catga_store.opening.url_codecs import with_codecs
from catga_store.opening.url_grammar import MemoryURL
from catga_store.opening.url_grammar import NatsURL
from catga_store.opening.url_grammar import RedisURL
from catga_store.opening.url_grammar import SQLiteURL
from catga_store.opening.url_grammar import parse_url
from catga_store.protocol.masking import mask_url
from catga_store.store import Store

if TYPE_CHECKING:
    from catga_store.aio import AsyncStore

__all__ = ["nats_place", "open_async_store", "open_store"]


def open_store(url: str, **options: Unpack[StoreOptions]) -> Store:
    """Open the store at a URL. The store connects at first use.

    These are the forms of a URL:

    - `memory://`, `memory://name`: memory; stores with the same name share their records within the process
    - `sqlite:///flows.db`, `sqlite:////var/lib/flows.db`: SQLite; the path is relative after three slashes
      and absolute after four
    - `redis://user:password@host:6379/0`, `rediss://…`: Redis or Valkey, without or with TLS
    - `redis+cluster://host:6379`, `rediss+cluster://…`: a cluster of these servers; any node names the others
    - `unix:///run/redis.sock?db=0`: Redis through a Unix socket
    - `nats://user:password@a:4222,b:4222`, `tls://…`: NATS JetStream, without or with TLS; all servers must
      belong to one cluster

    A Redis URL can have the options `prefix=orders:` (default: `dslflow:`), `acknowledged_by=1` and these
    options of redis-py: `db`, `username`, `password`, `client_name`, `protocol`, `max_connections`,
    `health_check_interval`, `socket_timeout`, `socket_connect_timeout` and `socket_keepalive`. With
    `rediss://`, it can also have `ssl_ca_certs`, `ssl_ca_path`, `ssl_certfile`, `ssl_keyfile`,
    `ssl_password`, `ssl_cert_reqs`, `ssl_check_hostname` and `ssl_ciphers`.

    A NATS URL can have the options `bucket=orders` (default: `dslflows`), `replicas=3`,
    `max_bytes=10000000000`, `stale_reads=true`, `create=false`, `domain=hub` and these options of nats-py:
    `token`, `user_credentials`, `nkeys_seed` and `name`. A user without a password is a token.

    Every URL can name codecs (`codecs=zstd`) and the place of encryption keys (`keys=env:NAME` or
    `keys=file:PATH`; see `Keys.parse`). With `accept_plain=true`, bodies that are not encrypted can be read,
    too.

    If any part of the URL is not understood, the call raises `UsageError`, which suggests what was probably
    meant, and nothing is opened. No message shows a user, password or token.

    >>> with open_store("memory://") as store:
    ...     store.get("nobody")
    """
    url, options = with_codecs(url, options)
    place = parse_url(url)
    if isinstance(place, MemoryURL):
        return MemoryStore(place.name, **options)

    if isinstance(place, SQLiteURL):
        return SQLiteStore(place.path, **options)

    if isinstance(place, RedisURL):
        return RedisStore.from_url(url, **options)

    return NatsStore(place.servers, connect=place.connect, **place.own, **options)


def open_async_store(url: str, **options: Unpack[StoreOptions]) -> AsyncStore:
    """Open the store at a URL for async code on asyncio or trio; see `open_store`."""
    from catga_store.opening import awaiting

    url, options = with_codecs(url, options)
    place = parse_url(url)
    if isinstance(place, MemoryURL):
        return awaiting.AsyncMemoryStore(place.name, **options)

    if isinstance(place, SQLiteURL):
        return awaiting.AsyncSQLiteStore(place.path, **options)

    if isinstance(place, RedisURL):
        return awaiting.AsyncRedisStore.from_url(url, **options)

    return awaiting.AsyncNatsStore(place.servers, connect=place.connect, **place.own, **options)


def nats_place(url: str) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Return the servers of a URL of NATS, the options of `nats.connect`, and those of the store."""
    place = parse_url(bare(url))
    if isinstance(place, NatsURL):
        return place.servers, dict(place.connect), dict(place.own)

    message = f"{mask_url(url)!r} is not a NATS URL; write nats://host:4222"
    raise UsageError(message)
