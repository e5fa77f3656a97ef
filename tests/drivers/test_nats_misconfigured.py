"""Ways in which the connection to NATS is misconfigured; each is an error of ours that says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections import UserString
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import nats
import pytest

import catga_store as cs
from catga_store.drivers.nats_connecting import meaning_of
from catga_store.protocol.conversation import NotSentError
from catga_store.testing.servers import NatsServer

SECRET = "s3cr3t-of-mine"
PATIENCE = timedelta(seconds=10)


@pytest.fixture(scope="module")
def guarded() -> Iterator[NatsServer]:
    """Start a server that lets one user in."""
    with NatsServer('authorization { user: "me", password: "right" }') as server:
        yield server


def credentials(tmp_path: Path, text: str) -> str:
    """Write a file of credentials."""
    file = tmp_path / "user.creds"
    file.write_text(text, "utf-8")
    return str(file)


WHOLE = "-----BEGIN NATS USER JWT-----\nx\n-----BEGIN USER NKEY SEED-----\nSUx\n"

Connect = Callable[[Path], dict[str, Any]]

WAYS: list[tuple[str, Connect, type[Exception], str]] = [
    (
        "wrong password",
        lambda _: {"user": "me", "password": SECRET},
        cs.StoreConfigError,
        "NATS refused the user, password, token or credentials",
    ),
    ("wrong token", lambda _: {"token": SECRET}, cs.StoreConfigError, "NATS refused the user"),
    ("no user", lambda _: {}, cs.StoreConfigError, "NATS refused the user"),
    (
        "no file of credentials",
        lambda path: {"user_credentials": str(path / "none.creds")},
        cs.StoreConfigError,
        "none.creds' for the connection to NATS cannot be read .No such file",
    ),
    (
        "a directory instead of credentials",
        lambda path: {"user_credentials": str(path)},
        cs.StoreConfigError,
        "Is a directory",
    ),
    (
        "a file without credentials",
        lambda path: {"user_credentials": credentials(path, "hello")},
        cs.StoreConfigError,
        "do not contain the line 'BEGIN NATS USER JWT'",
    ),
    (
        "a text without credentials",
        lambda _: {"user_credentials": UserString(SECRET)},
        cs.StoreConfigError,
        "do not contain the line 'BEGIN NATS USER JWT'",
    ),
    (
        "credentials without the package nkeys",
        lambda path: {"user_credentials": credentials(path, WHOLE)},
        cs.StoreConfigError,
        r"require the nkeys package; run pip install nats-py\[nkeys\]",
    ),
    (
        "a seed without the package nkeys",
        lambda _: {"nkeys_seed_str": SECRET},
        cs.StoreConfigError,
        "require the nkeys package",
    ),
    (
        "not a context",
        lambda _: {"tls": SECRET, "tls_handshake_first": True},
        cs.StoreConfigError,
        "nats.connect raised",
    ),
    (
        "TLS that the server does not speak",
        lambda _: {"tls": ssl.create_default_context(), "user": "me", "password": "right"},
        cs.StoreConfigError,
        "does not offer TLS.*nothing was sent, not even the user name and password",
    ),
    (
        "a name that is not a string",
        lambda _: {"name": object()},
        cs.StoreConfigError,
        "nats.connect",
    ),
    (
        "no time to connect",
        lambda _: {"connect_timeout": 0},
        cs.StoreConfigError,
        "connect_timeout: expected a number of seconds above 0, got 0",
    ),
    (
        "a time that is not a number",
        lambda _: {"connect_timeout": object()},
        cs.StoreConfigError,
        "connect_timeout: expected a number",
    ),
]


@pytest.mark.parametrize(
    ("connect", "kind", "message"), [way[1:] for way in WAYS], ids=[w[0] for w in WAYS]
)
def test_misconfigured_connection(
    guarded: NatsServer, tmp_path: Path, connect: Connect, kind: type[Exception], message: str
) -> None:
    """It is refused in time, and no secret is in the message."""
    with (
        cs.NatsStore(guarded.url, connect=connect(tmp_path), timeout=PATIENCE) as store,
        pytest.raises(kind, match=message) as caught,
    ):
        store.ping()

    assert SECRET not in str(caught.value)


class Listener:
    """A server of NATS that never offers TLS, and keeps what it is sent."""

    def __init__(self) -> None:
        """Listen."""
        self.received = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def serve(self) -> None:
        """Greet each client, and read what it sends until it leaves."""
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                with peer:
                    peer.sendall(
                        b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576}\r\n'
                    )
                    while data := peer.recv(4096):
                        self.received += data

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

        self._socket.close()


@pytest.mark.parametrize("connect", [{}, {"tls": ssl.create_default_context()}])
def test_nothing_is_sent_in_clear_where_tls_was_asked_for(connect: dict[str, Any]) -> None:
    """Neither the password nor anything else, by URL as with a context."""
    with contextlib.closing(Listener()) as listener:
        thread = threading.Thread(target=listener.serve, daemon=True)
        thread.start()
        url = f"tls://me:{SECRET}@127.0.0.1:{listener.port}"
        with (
            cs.NatsStore(url, connect=connect, timeout=PATIENCE) as store,
            pytest.raises(cs.StoreConfigError, match="does not offer TLS") as caught,
        ):
            store.ping()

    thread.join(10)
    assert listener.received == b""
    assert SECRET not in str(caught.value)


def test_client_of_the_user_that_is_in_clear(nats_server: NatsServer) -> None:
    """The store sends nothing over a connection that was to be encrypted and is not."""

    async def use() -> None:
        connect: Any = nats.connect
        client = await connect(nats_server.url, tls=ssl.create_default_context())
        try:
            async with cs.AsyncNatsStore(client) as store:
                with pytest.raises(cs.StoreConfigError, match="does not offer TLS"):
                    await store.ping()
        finally:
            await client.close()

    asyncio.run(use())


WITHOUT_DESCRIPTORS = """
import resource, socket, sys
import catga_store as cs

store = cs.NatsStore(sys.argv[1], bucket="descriptors")
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
first = socket.socket()
for more in 0, 1, 2, 3, 4:
    resource.setrlimit(resource.RLIMIT_NOFILE, (first.fileno() + more, hard))
    try:
        store.ping()
    except cs.StoreUnavailableError as error:
        assert "no file descriptors left" in str(error), error
    else:
        break
else:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    store.ping()

store.close()
"""


def test_no_file_descriptor_is_left(nats_server: NatsServer) -> None:
    """The store is unavailable, and the message names the limit; later it works."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS, nats_server.url],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_meaning_of_an_invalid_seed() -> None:
    """Errors of the package nkeys are about the seed."""
    bad = type("InvalidSeedError", (Exception,), {"__module__": "nkeys"})(SECRET)
    meaning = meaning_of(bad, ["nats://localhost"])
    assert "the seed of the NATS user is invalid" in str(meaning)
    assert SECRET not in str(meaning)


def test_meaning_of_an_outage() -> None:
    """What nats-py says of a server that is away is passed on as it is."""
    meaning = meaning_of(OSError(111, "Connection refused"), [f"nats://me:{SECRET}@host:4222"])
    assert isinstance(meaning, NotSentError)
    assert "Connection refused" in str(meaning)
    assert SECRET not in str(meaning)
