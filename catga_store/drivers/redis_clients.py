"""Links for the blocking clients of redis-py: the user's own, or one that is opened by URL.

A client of the user's is not altered and not closed. One of ours sends nothing twice, and no connect
takes longer than five seconds.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis import RedisCluster
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from catga_store.drivers.redis_blocking import RedisLink
from catga_store.drivers.redis_cluster_blocking import RedisClusterLink
from catga_store.drivers.redis_failures import not_sent
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.protocol.masking import mask_url
from catga_store.protocol.masking import shown

__all__ = ["check_options", "check_url", "link_to_client", "link_to_url"]

_CONNECT_SECONDS = 5.0


def link_to_client(client: object, timeout: float) -> RedisLink:
    """Return the link for a client that the caller has opened and will close.

    It is not altered. A store waits `timeout` seconds for a reply, even if the client would wait
    longer.
    """
    if isinstance(client, Redis | RedisCluster):
        check_options(client)

    if isinstance(client, Redis):
        return RedisLink(lambda: client, repr(client), timeout, owned=False)

    if isinstance(client, RedisCluster):
        return RedisClusterLink(lambda: client, repr(client), timeout, owned=False)

    message = (
        f"RedisStore: expected a redis.Redis or redis.RedisCluster client, got {shown(client)}; "
        "for a client from redis.asyncio, use AsyncRedisStore"
    )
    raise UsageError(message)


def link_to_url(url: str, timeout: float) -> RedisLink:
    """Return the link for a client of its own, which connects at first use.

    `redis://`, `rediss://` and `unix://` are read by redis-py, its options as a query;
    `redis+cluster://` and `rediss+cluster://` name any node of a cluster.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, _CONNECT_SECONDS),
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 2**31,  # a thread that found none left would be refused
    }
    plain, is_cluster = check_url(url)
    if is_cluster:
        make_cluster: Any = RedisCluster
        return RedisClusterLink(
            lambda: make_cluster.from_url(plain, **options), mask_url(url), timeout, owned=True
        )

    make: Any = Redis
    client = _opened(lambda: make.from_url(plain, **options), url)
    return RedisLink(lambda: client, mask_url(url), timeout, owned=True)


def check_url(url: str) -> tuple[str, bool]:
    """Return the URL as redis-py reads it, and whether it names a cluster; else `UsageError`."""
    given: object = url
    if not isinstance(given, str):
        message = f"Redis URL: expected a str, got {shown(given)}"
        raise UsageError(message)

    scheme, _, place = url.partition("://")
    plain = f"{scheme.removesuffix('+cluster')}://{place}"
    make: Any = Redis
    _opened(lambda: make.from_url(plain), url).close()  # it reads the URL and opens nothing
    return plain, scheme.endswith("+cluster")


def _opened(make: Callable[[], Any], url: str) -> Any:
    """Return a client that has connected to nothing; `UsageError` if it never could."""
    why, client = "", None
    try:
        client = make()
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        check_options(client)
    except UsageError as error:
        why = f": {error}"
    except OSError as error:  # redis-py reads files of its own
        raise StoreUnavailableError(f"{not_sent(error)}; nothing was sent") from error
    except (ValueError, TypeError, LookupError, exceptions.RedisError) as error:
        # Only the name of an option: the error may quote the URL.
        option = re.search(
            r"unexpected keyword argument '(\w+)'|(protocol|SSL|encoding)", str(error)
        )
        why = f": the option {(option[1] or option[2])!r} is invalid" if option else ""
        client = None

    if client is None or why:
        message = f"{mask_url(url)!r} is not a URL that redis-py can open{why}"
        raise UsageError(message)

    return client


def check_options(client: Any) -> None:
    """Raise `UsageError` for options of a client with which it can never reach a server."""
    pool = getattr(client, "connection_pool", None)
    given = getattr(pool, "connection_kwargs", {})
    for name in ("socket_timeout", "socket_connect_timeout"):
        if given.get(name) == 0:
            message = (
                f"Redis client option {name}: expected None or a number of seconds above 0, got 0"
            )
            raise UsageError(message)

    encoding = given.get("encoding", "utf-8")
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        message = (
            "Redis client option encoding: expected the name of a Python encoding, got "
            f"{shown(encoding)}"
        )
        raise UsageError(message) from error
