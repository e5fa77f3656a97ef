"""A connection of nats-py: made as it was asked for, or refused with an error that says why.

What nats-py raises stops here: `meaning_of` is the table. nats-py 2.16 connects in clear where TLS was
asked for and the server does not offer it, and sends user and password; `CheckedClient` does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import UserString
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nats import errors as nats_errors
from nats.aio.client import Client

from catga_store.errors import StoreConfigError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.failures import UNTRUSTED
from catga_store.protocol.failures import is_untrusted
from catga_store.protocol.masking import mask_url
from catga_store.protocol.masking import shown

__all__ = [
    "CheckedClient",
    "NotEncryptedError",
    "asks_for_tls",
    "check_encryption",
    "is_hopeless",
    "meaning_of",
    "open_client",
]

_TRIES_OF_A_CONNECTION = 5
_CLOSING_SECONDS = 1.0
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
_PARTS_OF_CREDENTIALS = b"BEGIN NATS USER JWT", b"BEGIN USER NKEY SEED"


class NotEncryptedError(nats_errors.Error):
    """TLS was asked for, and the connection is not encrypted."""


class CheckedClient(Client):
    """A client that sends nothing over a connection that should be encrypted and is not."""

    def __init__(self, *, encrypted: bool) -> None:
        super().__init__()
        self._wants_encryption = encrypted

    def _connect_command(self) -> bytes:
        # nats-py calls this for every connection, when TLS is set up and before anything is sent.
        if self._wants_encryption and not _is_encrypted(self):
            message = "the server does not offer TLS"
            raise NotEncryptedError(message)

        command: bytes = super()._connect_command()
        return command


def _is_encrypted(client: Any) -> bool:
    transport = client._transport  # noqa: SLF001  there is no public name
    writer = getattr(transport, "_io_writer", None)
    if writer is None:  # a web socket: wss is TLS from the first byte
        return bool(client._current_server.uri.scheme == "wss")  # noqa: SLF001  as above

    return writer.get_extra_info("ssl_object") is not None


def asks_for_tls(servers: list[str], options: Mapping[str, Any]) -> bool:
    """Whether TLS was asked for: by the scheme of any server, or by an option."""
    by_scheme = any(server.startswith(("tls://", "wss://")) for server in servers)
    return by_scheme or any(
        options.get(name) for name in ("tls", "tls_handshake_first", "tls_hostname")
    )


def check_encryption(client: Client) -> None:
    """Refuse a connection of the user's that was to be encrypted and is not: `StoreConfigError`."""
    private: Any = client
    options: dict[str, Any] = private.options
    pool = [str(server.uri.scheme) + "://" for server in private._server_pool]  # noqa: SLF001  there is no public name
    if asks_for_tls(pool, options) and client.is_connected and not _is_encrypted(client):
        raise StoreConfigError(_NOT_ENCRYPTED)


async def open_client(servers: list[str], options: dict[str, Any]) -> Client:
    """Connect. Whatever is raised has a meaning: see `meaning_of`."""
    _check_seconds(options["connect_timeout"])
    _check_credentials(options.get("user_credentials"))
    last: list[Exception] = []
    notify: Callable[[Exception], Awaitable[None]] = options["error_cb"]

    async def note(error: Exception) -> None:
        last.append(error)
        await notify(error)

    tries = _TRIES_OF_A_CONNECTION
    while True:
        tries -= 1
        client: Any = CheckedClient(encrypted=asks_for_tls(servers, options))
        try:
            await client.connect(servers=servers, **{**options, "error_cb": note})
        except BaseException as raised:
            await _close_transport(client)
            if not isinstance(raised, nats_errors.Error | OSError):
                raise

            error: Exception = raised
            if isinstance(raised, nats_errors.NoServersError) and last:
                error = last[-1]  # what the last server said

            # A server that refuses a user closes at once: its reason may be lost with that.
            if tries and isinstance(error, ConnectionResetError | BrokenPipeError):
                continue

            if error is raised:
                raise

            raise error from raised
        else:
            client._error_cb = notify  # noqa: SLF001  what comes later is not about connecting
            connected: Client = client
            return connected


async def _close_transport(client: Any) -> None:
    """Close what nats-py leaves open at errors that it does not expect."""
    transport = client._transport  # noqa: SLF001  there is no public name
    if transport is not None:
        transport.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(transport.wait_closed(), _CLOSING_SECONDS)


def _check_seconds(given: object) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        message = f"connect_timeout: expected a number of seconds above 0, got {shown(given)}"
        raise StoreConfigError(message)


def _check_credentials(given: object) -> None:
    """Read a file of credentials before nats-py does, which looks for its parts forever."""
    pair: Any = given
    files: tuple[Any, ...] = pair if isinstance(given, tuple) else (given,)
    for file in files:
        if isinstance(file, UserString):  # nats-py's RawCredentials: the text itself
            name, text = "given as text", str(file).encode()
        elif isinstance(file, str | Path):
            name, text = repr(str(file)), Path(file).read_bytes()
        else:
            continue

        missing = [part for part in _PARTS_OF_CREDENTIALS if part not in text]
        if missing and len(files) == 1:
            message = f"the credentials {name} do not contain the line {missing[0].decode()!r}"
            raise StoreConfigError(
                f"{message}; use the credentials file that nsc creates for the user"
            )


# --- errors ---------------------------------------------------------------------------------------

_NOT_ENCRYPTED = (
    "the NATS server does not offer TLS, which the URL or an option requires, so nothing was "
    "sent, not even the user name and password; enable TLS on the server, or use nats:// on "
    "a network that you trust"
)


def is_hopeless(error: BaseException) -> bool:
    """Whether no further try to connect can be better."""
    return is_untrusted(error) or isinstance(error, NotEncryptedError)


def meaning_of(error: Exception, servers: list[str]) -> StoreConfigError | NotSentError:
    """What an error of connecting means: the deployment is at fault, or the server is not there.

    Of an error of an unknown kind only the class is named: its text may hold secrets.
    """
    for is_meant, describe in _MEANINGS:
        if is_meant(error):
            return StoreConfigError(describe(error))

    place = ", ".join(map(mask_url, servers))
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
        message = (
            f"cannot connect to NATS at {place}, because this process has no file descriptors "
            "left; close files or connections, or raise the limit (ulimit -n)"
        )
        return NotSentError(message)

    if isinstance(error, nats_errors.Error | OSError | TimeoutError):
        why = str(error) or "timed out"  # a TimeoutError says nothing
        return NotSentError(f"no NATS server can be reached at {place}: {why}")

    message = (
        f"cannot connect to NATS at {place}, because nats.connect raised "
        f"{type(error).__name__}; check the values in connect= and the cause of this error"
    )
    return StoreConfigError(message)


def _names_a_file(error: Exception) -> bool:
    return isinstance(error, OSError) and error.filename is not None


def _is_bad_key(error: Exception) -> bool:
    origin = type(error).__module__
    return origin.startswith(("nkeys", "nacl", "binascii"))


def _is_refused(error: Exception) -> bool:
    text = repr(error).lower()
    return isinstance(error, nats_errors.Error) and (
        "authorization" in text or "authentication" in text or "credentials" in text
    )


def _of_file(error: Exception) -> str:
    assert isinstance(error, OSError)  # noqa: S101  for the type checker: see `_names_a_file`
    return (
        f"the file {error.filename!r} for the connection to NATS cannot be read "
        f"({error.strerror}), so nothing was sent"
    )


def _of_import(error: Exception) -> str:
    missing = "nkeys" if "nkeys" in str(error) else "aiohttp"
    need = "NATS credentials and seeds" if missing == "nkeys" else "WebSocket connections to NATS"
    return f"{need} require the {missing} package; run pip install nats-py[{missing}]"


_MEANINGS: tuple[tuple[Callable[[Exception], bool], Callable[[Exception], str]], ...] = (
    (is_untrusted, lambda _: UNTRUSTED),
    (lambda error: isinstance(error, NotEncryptedError), lambda _: _NOT_ENCRYPTED),
    (
        _is_refused,
        lambda _: (
            "NATS refused the user, password, token or credentials; correct them in the URL or the "
            "options"
        ),
    ),
    (lambda error: isinstance(error, ImportError), _of_import),
    (_names_a_file, _of_file),
    (
        _is_bad_key,
        lambda _: (
            "the seed of the NATS user is invalid: expected the line that begins with SU, as "
            "created by nsc or nk; nothing was sent"
        ),
    ),
)
