"""The blocking link to a Redis server: pipelines on the connections of a redis-py client.

It takes connections from the client's pool and does the sending and receiving itself. So replies are
raw bytes whatever the client decodes, nothing is sent twice without our knowledge, and a request that
was never sent is distinguished from one that may have arrived. A pool opens new connections in a forked child,
and it checks a connection before it hands it out, so one that the server has closed is replaced.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from redis import exceptions

from catga_store.drivers.redis_failures import not_sent
from catga_store.drivers.redis_packing import pack
from catga_store.drivers.redis_subscribing import BlockingSubscription
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe
from catga_store.stores.redis.transport import Subscribe

__all__ = ["RedisLink", "connection_of", "talk"]

_REPLIED = (
    exceptions.ResponseError,
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.BusyLoadingError,
)
"""Error replies of the server, also those that redis-py treats as a lost connection."""

_MOST_IDLE = 8


class RedisLink:
    """Performs `Pipe` on one server. Threads share it; each has a connection of its own meanwhile."""

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
        self._subscription = BlockingSubscription(self._connection_apart, timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._shown}>"

    def perform(self, request: Any) -> tuple[object, ...]:
        """Send the commands of a `Pipe` together, and return their replies; see there, and `Subscribe`."""
        if isinstance(request, Subscribe):
            self._subscription.begin(request)
            return ()

        assert isinstance(request, Pipe), request  # noqa: S101  there are no others
        return self._perform(request.commands)

    __call__ = perform  # as a transport of the blocking driver

    def close(self) -> None:
        """Close the client if the link has opened it."""
        self._subscription.close()
        client, self._client, self._stash = self._client, None, None
        if self._owned and client is not None:
            client.close()

    def _perform(self, commands: Sequence[Command]) -> tuple[object, ...]:
        args = [command.args for command in commands]
        return tuple(talk(self._pool(), args, self._timeout))

    def _pool(self) -> Any:
        pool = self._stash
        if pool is None:
            pool = self.client().connection_pool
            if self._owned:
                pool = self._stash = _Stash(pool)

        return pool

    def _connection_apart(self) -> Any:
        """Return a new connection that the client's pool knows nothing of, and does not count."""
        return connection_of(self.client().connection_pool)

    def client(self) -> Any:
        """Return the client; the first call opens it."""
        client = self._client
        if client is None:
            with self._lock:
                client = self._client
                if client is None:
                    client = self._client = self._open_client()

        return client


class _Stash:
    """Idle connections of a pool of ours; `pop` costs a tenth of the pool's own `get_connection`.

    Threads share it: a list's `append` and `pop` are atomic. A forked child leaves the connections to
    its parent and takes new ones from the pool, which does the same.
    """

    def __init__(self, pool: Any) -> None:
        self.connection_class = pool.connection_class
        self._pool = pool
        self._idle: list[Any] = []
        self._pid = os.getpid()

    def get_connection(self) -> Any:
        """Return a connection that is open and has nothing to be read."""
        if self._pid != os.getpid():
            self._pid, self._idle = os.getpid(), []

        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None

        if connection is None:  # not in `except`: its errors would have this one as their context
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
        """Keep a connection for later; one that was closed is opened again when it is taken."""
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            self._pool.release(connection)


def connection_of(pool: Any) -> Any:
    """Return a new connection, not connected yet, to where those of a pool go."""
    return pool.connection_class(**pool.connection_kwargs)


def talk(
    pool: Any, commands: Sequence[Sequence[bytes | str | int]], timeout: float
) -> list[object]:
    """Send commands on a connection of the pool; return their replies, each within the timeout."""
    try:
        connection = pool.get_connection()
    except _REPLIED as error:
        return [error] * len(commands)
    except Exception as error:  # also what a credential provider of the user's raises
        raise not_sent(error, pool) from error

    is_clean = False
    try:
        own = connection.socket_timeout
        if own is None or own > timeout:  # a client of the user's may wait longer
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
        # Also if a signal or a cancelled thread has left a reply unread.
        if not is_clean:
            connection.disconnect()

        pool.release(connection)

    return replies


def _socket_of(connection: Any) -> Any:
    # No public way. With client-side caching it is a connection within a connection.
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
        except _REPLIED as error:
            # redis-py has closed the connection: the other commands were refused as well.
            replies += [error] * (len(commands) - len(replies))
            connection.disconnect()
            break

    return replies
