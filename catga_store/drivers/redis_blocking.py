"""The blocking link to Redis: pipelines on the connections of a redis-py client.

It takes connections from the client's own pools and speaks on them itself: so replies are raw bytes
whatever the client decodes, nothing is sent twice behind our back, and what was never sent can be
told from what may have been. A pool opens new connections in a forked child and looks at a
connection before it hands it out, so one that the server has closed is replaced, not written to.

In a cluster each command goes to the node that has its key; what a node redirects (MOVED, ASK) has
not been done there, and is sent where it belongs.
"""

from __future__ import annotations

import codecs
import os
import re
import threading
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis import RedisCluster
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from catga_store.drivers.redis_failures import not_sent
from catga_store.drivers.redis_packing import pack
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.masking import mask_url
from catga_store.protocol.masking import shown
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe

__all__ = ["RedisClusterLink", "RedisLink", "check_options", "link_to_client", "link_to_url"]

_REDIRECTIONS = 5
_ANSWERED = (
    exceptions.ResponseError,
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.BusyLoadingError,
)
"""What the server has said, also where the client library counts it as a lost connection."""

_CONNECT_SECONDS = 5.0
_MOST_IDLE = 8


class RedisLink:
    """Performs `Pipe` on one server; threads share it, each with a connection while it asks."""

    threaded = True

    def __init__(
        self, open_client: Callable[[], Any], shown: str, timeout: float, *, owned: bool
    ) -> None:
        self._open_client = open_client
        self._shown = shown
        self._timeout = timeout
        self._owned = owned
        self._client: Any = None
        self._stash: _Stash | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._shown}>"

    def perform(self, request: Any) -> tuple[object, ...]:
        """Send the commands of a `Pipe` as one flight; see there."""
        assert isinstance(request, Pipe), request  # noqa: S101  there are no others
        return self._perform(request.commands)

    __call__ = perform  # as a transport of the blocking driver

    def close(self) -> None:
        """Close the client if the link has opened it."""
        client, self._client, self._stash = self._client, None, None
        if self._owned and client is not None:
            client.close()

    def _perform(self, commands: Sequence[Command]) -> tuple[object, ...]:
        args = [command.args for command in commands]
        return tuple(_talk(self._pool(), args, self._timeout))

    def _pool(self) -> Any:
        pool = self._stash
        if pool is None:
            pool = self.client().connection_pool
            if self._owned:
                pool = self._stash = _Stash(pool)

        return pool

    def client(self) -> Any:
        """The client; opened by the first who asks."""
        client = self._client
        if client is None:
            with self._lock:
                client = self._client
                if client is None:
                    client = self._client = self._open_client()

        return client


class RedisClusterLink(RedisLink):
    """Performs `Pipe` on a cluster: one flight to each node that is concerned."""

    def close(self) -> None:
        """Close the client if the link has opened it, and the pools of its nodes, which it leaves open."""
        client = self._client if self._owned else None
        super().close()
        nodes: list[Any] = [] if client is None else client.get_nodes()
        for node in nodes:
            if node.redis_connection is not None:
                node.redis_connection.connection_pool.disconnect()

    def _perform(self, commands: Sequence[Command]) -> tuple[object, ...]:
        client = self._connected()
        replies: list[object] = [None] * len(commands)
        left = list(range(len(commands)))

        for _ in range(_REDIRECTIONS):
            by_node: dict[str, tuple[Any, list[int]]] = {}
            for place in left:
                node = self._node(client, commands[place].key)
                by_node.setdefault(node.name, (node, []))[1].append(place)

            self._fly(client, by_node, commands, replies)
            left = [
                place for place in left if self._is_redirected(client, commands, replies, place)
            ]
            if not left:
                break

        for place in left:
            message = f"redirected {_REDIRECTIONS} times: {replies[place]}"
            replies[place] = exceptions.TryAgainError(message)

        return tuple(replies)

    def _connected(self) -> Any:
        try:
            return self.client()
        except Exception as error:  # also what a credential provider of the user's raises
            raise not_sent(error) from error

    def _node(self, client: Any, key: bytes) -> Any:
        try:
            return client.nodes_manager.get_node_from_slot(client.keyslot(key))
        except exceptions.SlotNotCoveredError as error:
            self._look_again(client)
            message = f"no node of the cluster serves this partition now: {error}"
            raise NotSentError(message) from error

    def _fly(
        self,
        client: Any,
        by_node: Mapping[str, tuple[Any, list[int]]],
        commands: Sequence[Command],
        replies: list[object],
    ) -> None:
        is_sent = False

        for node, places in by_node.values():
            pool = client.get_redis_connection(node).connection_pool
            try:
                args = [commands[place].args for place in places]
                answers = _talk(pool, args, self._timeout)
            except NotSentError as error:
                # Other nodes have had their part: the whole may have been done in part.
                self._look_again(client)
                if is_sent:
                    raise ReplyLostError(str(error)) from error

                raise
            except ReplyLostError:
                self._look_again(client)
                raise

            is_sent = True
            for place, answer in zip(places, answers, strict=True):
                replies[place] = answer

    def _is_redirected(
        self, client: Any, commands: Sequence[Command], replies: list[object], place: int
    ) -> bool:
        """Whether a command is to be sent again elsewhere; one that was asked for is, at once."""
        reply = replies[place]
        if isinstance(reply, exceptions.MovedError):
            self._look_again(client)
            return True

        if isinstance(reply, exceptions.AskError):
            asked: Any = reply
            node = client.get_node(host=asked.host, port=asked.port)
            if node is None:
                # At once: what follows in this pipe would be asked before it.
                self._look_again(client)
                node = client.get_node(host=asked.host, port=asked.port)
                if node is None:
                    return True

            pool = client.get_redis_connection(node).connection_pool
            args = [(b"ASKING",), commands[place].args]
            replies[place] = _talk(pool, args, self._timeout)[1]

        return False

    @staticmethod
    def _look_again(client: Any) -> None:
        """Learn which node has which slots; if nobody tells, the next try asks again."""
        try:
            client.nodes_manager.initialize()
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError):
            return


class _Stash:
    """The connections of our own pool that are at rest; taking one costs a tenth of what the pool does.

    Threads share it: a list's `append` and `pop` are atomic. A forked child leaves what is there to
    its parent, and takes new ones from the pool, which does likewise.
    """

    def __init__(self, pool: Any) -> None:
        self.connection_class = pool.connection_class
        self._pool = pool
        self._idle: list[Any] = []
        self._pid = os.getpid()

    def get_connection(self) -> Any:
        """A connection that is open, and has nothing to be read."""
        if self._pid != os.getpid():
            self._pid, self._idle = os.getpid(), []

        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None

        if connection is None:  # not above: an error would have the other as its context
            return self._pool.get_connection()

        try:
            is_spent = connection.can_read()
        except (exceptions.RedisError, OSError):
            is_spent = True

        if not is_spent:
            return connection

        connection.disconnect()
        self._pool.release(connection)
        return self._pool.get_connection()

    def release(self, connection: Any) -> None:
        """Put a connection to rest; one that was closed opens again when it is taken."""
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            self._pool.release(connection)


def _talk(
    pool: Any, commands: Sequence[Sequence[bytes | str | int]], timeout: float
) -> list[object]:
    """Send commands on a connection of the pool and read their replies, each within the timeout."""
    try:
        connection = pool.get_connection()
    except _ANSWERED as error:
        return [error] * len(commands)
    except Exception as error:  # also what a credential provider of the user's raises
        raise not_sent(error, pool) from error

    is_clean = False
    try:
        own = connection.socket_timeout
        if own is None or own > timeout:  # a client of the user's, who may wait longer
            _socket_of(connection).settimeout(timeout)
            replies = _converse(connection, commands)
            if (socket := _socket_of(connection)) is not None:
                socket.settimeout(own)
        else:
            replies = _converse(connection, commands)

        is_clean = True
    except (exceptions.RedisError, OSError) as error:
        message = f"the connection to the server was lost: {error}"
        raise ReplyLostError(message) from error
    finally:
        # Also when a signal or a cancelled thread has left a reply unread.
        if not is_clean:
            connection.disconnect()

        pool.release(connection)

    return replies


def _socket_of(connection: Any) -> Any:
    # No public way; with client-side caching it is a connection within a connection.
    return getattr(connection, "_conn", connection)._sock  # noqa: SLF001


def _converse(connection: Any, commands: Sequence[Sequence[bytes | str | int]]) -> list[object]:
    connection.send_packed_command(pack(connection, commands))

    replies: list[object] = []
    read = connection.read_response

    for _ in commands:
        try:
            replies.append(read(disable_decoding=True))
        except exceptions.ResponseError as error:
            replies.append(error)
        except _ANSWERED as error:
            # The library has closed the connection: the rest was told the same, unread.
            replies += [error] * (len(commands) - len(replies))
            connection.disconnect()
            break

    return replies


# --- clients --------------------------------------------------------------------------------------


def link_to_client(client: object, timeout: float) -> RedisLink:
    """The link on a client that somebody else has opened and will close; it is not altered.

    Where it would wait longer for a reply than `timeout`, in seconds, or for ever, it does not for us.
    """
    if isinstance(client, Redis | RedisCluster):
        check_options(client)

    if isinstance(client, Redis):
        return RedisLink(lambda: client, repr(client), timeout, owned=False)

    if isinstance(client, RedisCluster):
        return RedisClusterLink(lambda: client, repr(client), timeout, owned=False)

    message = (
        f"a Redis store needs a redis.Redis or redis.RedisCluster client, not {shown(client)};"
        " an AsyncRedisStore takes those of redis.asyncio"
    )
    raise UsageError(message)


def link_to_url(url: str, timeout: float) -> RedisLink:
    """The link on a client of our own, which sends nothing twice; it connects at first use.

    `redis://`, `rediss://` and `unix://` as redis-py reads them, its options as a query;
    `redis+cluster://` and `rediss+cluster://` name some node of a cluster.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, _CONNECT_SECONDS),
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 2**31,  # a thread that finds none left would be refused
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
    """The URL as redis-py reads it, and whether it names a cluster; `UsageError` if it is wrong."""
    given: object = url
    if not isinstance(given, str):
        message = f"the URL of a Redis server must be text, not {shown(given)}"
        raise UsageError(message)

    scheme, _, place = url.partition("://")
    plain = f"{scheme.removesuffix('+cluster')}://{place}"
    make: Any = Redis
    _opened(lambda: make.from_url(plain), url).close()  # it opens nothing, and reads the URL
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
        why = f": the option {(option[1] or option[2])!r} is wrong" if option else ""
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
            message = f"{name} of the Redis client: expected seconds or None, got 0"
            raise UsageError(message)

    encoding = given.get("encoding", "utf-8")
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        message = (
            f"encoding of the Redis client: expected an encoding of Python, got {shown(encoding)}"
        )
        raise UsageError(message) from error
