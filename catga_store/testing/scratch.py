"""`scratch_url`: a namespace beside any store, by URL, that is removed afterwards.

| URL | scratch |
|---|---|
| `memory://`, `memory://name` | another name |
| `sqlite:///flows.db` | another file in the same directory, and so on the same file system |
| `redis://host/0?prefix=x:`, likewise clusters and sockets | another prefix in the same database |
| `nats://host?bucket=x` | another bucket, of as many replicas, on the same servers |
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from urllib.parse import parse_qsl
from urllib.parse import quote
from urllib.parse import unquote
from urllib.parse import urlencode
from urllib.parse import urlsplit

from catga_store.errors import PartitionCountError
from catga_store.errors import StoreConfigError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.masking import mask_url
from catga_store.stores.nats.answers import STREAM_GONE
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe

if TYPE_CHECKING:
    from catga_store.store import Store
    from catga_store.stores.nats.exchange import NatsExchange

__all__ = ["scratch_url"]

_NATS = ("nats", "tls")
_SERVERS = (*_NATS, "redis", "rediss", "redis+cluster", "rediss+cluster", "unix")


@contextmanager
def scratch_url(url: str, remove: Callable[[str], None] | None = None) -> Generator[str]:
    """Yield the URL of an empty namespace beside the namespace of `url`, which is not touched.

    At the end, the scratch file, prefix or bucket is removed with its layout. If you pass `remove`, this
    function is called with the scratch URL instead. Raises `UsageError` if `url` is not a store URL.
    """
    parts = urlsplit(url)
    name = f"scratch-{uuid.uuid4().hex}"
    codecs = f"?{parts.query}" if parts.query else ""  # the only options of these two
    if parts.scheme == "memory":
        yield f"memory://{name}{codecs}"
    elif parts.scheme == "sqlite":
        path = Path(unquote(parts.path)[1:]).absolute().with_name(f"{name}.db")
        try:
            yield f"sqlite:///{quote(str(path))}{codecs}"
        finally:
            for left in path.parent.glob(f"{name}.db*"):
                left.unlink()
    elif parts.scheme in _SERVERS:
        named = ("bucket", name) if parts.scheme in _NATS else ("prefix", f"{name}:")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        query = [pair for pair in pairs if pair[0] != named[0]]
        there = parts._replace(query=urlencode([*query, named])).geturl()
        try:
            yield there
        finally:
            (remove or _remove)(there)
    else:
        message = f"{mask_url(url)!r} is not a store URL; see open_store for the supported URLs"
        raise UsageError(message)


def _remove(url: str) -> None:
    """Remove every record and the layout, so that no trace of a store is left."""
    from catga_store.opening.urls import open_store  # noqa: PLC0415  the plugin loads this in every run

    try:
        _clear(open_store(url))
    except PartitionCountError as error:
        _clear(open_store(url, partitions=error.expected))


def _clear(store: Store) -> None:
    from catga_store.testing.hooks import conversation_runner  # noqa: PLC0415  as above

    with store:
        protocol, hold = conversation_runner(store)
        store.clear()
        hold(_unlay(protocol))


def _unlay(protocol: Any) -> Conversation[Any]:
    """Remove what a store on a server keeps when it is cleared. Only the test kit needs this."""
    if hasattr(protocol._layout, "tags"):  # Redis: the layout, and the replies of recent commits
        return _unlink(protocol._layout.tags)

    return _remove_stream(protocol._exchange)


def _remove_stream(exchange: NatsExchange) -> Conversation[None]:
    try:
        yield from exchange.call("DELETE", {}, exchange.deadline())
    except StoreConfigError as error:
        # The news that the stream is deleted may overtake the reply, and the store then looks for it.
        if str(error) != str(exchange.refusal(STREAM_GONE, "")):
            raise


def _unlink(tags: Sequence[bytes]) -> Conversation[None]:
    for tag in tags:
        cursor = b"0"
        while True:
            words = b"SCAN", cursor, b"MATCH", tag + b"*", b"COUNT", b"1000"
            ((cursor, keys),) = yield Pipe((Command(words, tag),), writes=False)
            if keys:
                yield Pipe((Command((b"UNLINK", *keys), tag),), writes=True)

            if int(cursor) == 0:
                break
