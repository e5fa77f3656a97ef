"""Where a store keeps its records, in one line, for its `repr`: no secret, and nothing is connected."""

from __future__ import annotations

from typing import Any
from typing import cast

from catga_store.protocol.masking import mask_url

__all__ = ["nats_place", "redis_place"]


def redis_place(server: Any, prefix: str) -> str:
    """The URL of a Redis server, or what a client says of its server, and the prefix of the keys.

    >>> redis_place("redis://user:secret@host:6379/0?protocol=3", "dslflow:")
    "redis://***@host:6379/0 prefix='dslflow:'"
    """
    place = _without_query(server) if isinstance(server, str) else _of_client(server)
    return f"{place} prefix={prefix!r}"


def nats_place(servers: object, bucket: str) -> str:
    """The URLs of NATS servers, or that a client was brought, and the bucket.

    >>> nats_place(["nats://me:secret@a:4222", "nats://b:4222"], "dslflows")
    "nats://***@a:4222,nats://b:4222 bucket='dslflows'"
    """
    if not isinstance(servers, list):
        return f"client of nats-py, bucket={bucket!r}"

    urls = cast("list[str]", servers)
    return f"{','.join(map(_without_query, urls))} bucket={bucket!r}"


def _without_query(url: str) -> str:
    return mask_url(url).partition("?")[0]


def _of_client(client: Any) -> str:
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return type(client).__name__

    service = getattr(pool, "service_name", None)
    if service is not None:
        return f"Sentinel service {service!r}"

    options = getattr(pool, "connection_kwargs", {})
    if "path" in options:
        return f"unix://{options['path']}"

    scheme = "rediss" if "SSL" in getattr(pool, "connection_class", str).__name__ else "redis"
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"{scheme}://{host}:{port}/{options.get('db', 0)}"
