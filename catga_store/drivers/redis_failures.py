"""Why a link to Redis could not connect: exceptions of redis-py and of the system, by one table.

Nothing was sent in any of these cases. Some pass by themselves or call for another try
(`NotSentError`); others need the code or the deployment to be changed (`MisconfiguredError`).
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

from redis import exceptions

from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.failures import UNTRUSTED
from catga_store.stores.redis.transport import MisconfiguredError

__all__ = ["NO_TLS", "is_encrypted", "not_sent"]

Matches: TypeAlias = Callable[[BaseException, str], bool]
"""Whether an exception is of a kind, by itself and by the name of its connection class."""

NO_TLS = "the server may not support TLS on this port; nothing is sent unencrypted"


class _Row(NamedTuple):
    """What one exception of a chain looks like, and what the failure means then."""

    matches: Matches
    kind: type[NotSentError]
    message: str
    """`{cause}` is the exception that matched, `{kind}` its class."""


def _is(*kinds: type[BaseException]) -> Matches:
    return lambda error, _: isinstance(error, kinds)


def _says(*texts: str) -> Matches:
    return lambda error, _: any(text in str(error) for text in texts)


def _number(*numbers: int) -> Matches:
    """Match an error number of the system; those of an `SSLError` are of another kind."""

    def matches(error: BaseException, _: str) -> bool:
        return (
            isinstance(error, OSError)
            and not isinstance(error, ssl.SSLError)
            and error.errno in numbers
        )

    return matches


def _is_of_a_file(error: BaseException, connection: str) -> bool:
    """Match a file that cannot be read: over TCP only the TLS options name files."""
    names_files = "Unix" not in connection
    return names_files and isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    )


def _is_slow_handshake(error: BaseException, connection: str) -> bool:
    kinds = TimeoutError, exceptions.TimeoutError
    return "SSL" in connection and isinstance(error, kinds)


def _is_foreign(error: BaseException, _: str) -> bool:
    """Match what neither redis-py nor the system raises: redis-py has called code of the user."""
    known = exceptions.RedisError, exceptions.RedisClusterException, OSError
    return isinstance(error, Exception) and not isinstance(error, known)


_OPTIONS = (
    "the options of the Redis client cannot be used: {cause}; correct the options in the URL "
    "or in the code that creates the client"
)
_FULL = (
    "every connection in the Redis client's pool is in use ({cause}); raise "
    "max_connections, or use a separate client for the store"
)

_TABLE = (
    _Row(
        _number(errno.EMFILE, errno.ENFILE),
        NotSentError,
        (
            "this process has no file descriptors left; close files or connections, or raise the "
            "limit (ulimit -n)"
        ),
    ),
    _Row(_says("Too many connections", "No connection available"), NotSentError, _FULL),
    _Row(_is(ssl.SSLCertVerificationError), MisconfiguredError, UNTRUSTED),
    _Row(
        _says("WRONG_VERSION_NUMBER", "wrong version number", "record layer failure"),
        MisconfiguredError,
        "the server does not support TLS on this port; use its TLS port, or redis:// for a "
        "connection without encryption",
    ),
    _Row(
        _is_of_a_file,
        MisconfiguredError,
        "a certificate, key or CA file of the TLS options cannot be read: {cause}",
    ),
    _Row(
        _is(ssl.SSLEOFError, ssl.SSLZeroReturnError),
        NotSentError,
        "the server closed the connection during the TLS handshake: {cause}; " + NO_TLS,
    ),
    _Row(
        _is(ssl.SSLError), MisconfiguredError, "a TLS connection cannot be established: {cause}; "
    ),
    _Row(_says("protocol must be", "Invalid SSL Certificate"), MisconfiguredError, _OPTIONS),
    _Row(_says("unknown encoding"), MisconfiguredError, _OPTIONS),
    _Row(_is(UnicodeError), MisconfiguredError, _OPTIONS),
    _Row(
        _number(errno.EINPROGRESS, errno.EAGAIN),
        MisconfiguredError,
        "a socket timeout of the Redis client is 0, so the client cannot wait for the "
        "server; set the timeout to a number of seconds above 0, or to None",
    ),
    _Row(_is_slow_handshake, NotSentError, "the server cannot be reached: {cause}; " + NO_TLS),
    _Row(
        _is_foreign,
        NotSentError,
        "the Redis client could not connect, because its credential provider, or other code "
        "that it calls, raised {kind}: {cause}",
    ),
)


def not_sent(error: BaseException, pool: Any = None) -> NotSentError:
    """Return what it means that no connection could be had, with `error` as its cause."""
    connection = _connection_class(pool)
    found = NotSentError(f"the server cannot be reached: {error}")

    for row in _TABLE:
        cause = next((one for one in _chain(error) if row.matches(one, connection)), None)
        if cause is not None:
            found = row.kind(row.message.format(cause=cause, kind=type(cause).__name__))
            break

    found.__cause__ = error
    return found


def is_encrypted(pool: Any) -> bool:
    """Return whether the connections of a pool use TLS."""
    return "SSL" in _connection_class(pool)


def _connection_class(pool: Any) -> str:
    return getattr(getattr(pool, "connection_class", None), "__name__", "")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Return an exception and its causes."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or _handled_by_redis(one.__context__)


def _handled_by_redis(context: BaseException | None) -> BaseException | None:
    """Return an exception that redis-py caught before it raised another without naming the cause.

    Others are the user's: the store may be called in an `except` block.
    """
    trace = None if context is None else context.__traceback__
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return context if module.partition(".")[0] == "redis" else None
