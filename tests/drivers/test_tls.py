"""Stores by TLS: an encrypted server is used by its URL, one with an untrusted certificate is not.

nats-server speaks TLS itself. The Redis servers of the wheels are built without it: before one
stands a front that does, as before many a server in the field.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from attrs import frozen

import catga_store as cs
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer


@frozen
class Certificates:
    """An authority of one's own, and what it has issued for loopback, as files."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make an authority, and a certificate of it for loopback."""
    place = tmp_path_factory.mktemp("certificates")
    made = Certificates(place / "authority.pem", place / "certificate.pem", place / "key.pem")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(made.authority))
    issued.private_key_pem.write_to_path(str(made.key))
    for part in issued.cert_chain_pems:
        part.write_to_path(str(made.certificate), append=True)

    return made


class Front:
    """Takes TLS off connections and passes them on to a port of loopback."""

    def __init__(self, port: int, certificates: Certificates) -> None:
        self._server = "127.0.0.1", port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.certificate, certificates.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(plain.close)
            client = stack.enter_context(self._context.wrap_socket(plain, server_side=True))
            server = stack.enter_context(socket.create_connection(self._server))
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()

    def close(self) -> None:
        """Accept no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

        self._listener.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)

    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def redis_url(certificates: Certificates) -> Iterator[str]:
    """Start a Redis server behind a front that speaks TLS."""
    with RedisServer() as server, contextlib.closing(Front(server.port, certificates)) as front:
        yield f"rediss://127.0.0.1:{front.port}/0"


@pytest.fixture(scope="module")
def nats_url(certificates: Certificates) -> Iterator[str]:
    """Start a NATS server that speaks nothing but TLS."""
    files = f'cert_file: "{certificates.certificate}", key_file: "{certificates.key}"'
    with NatsServer(f"tls {{ {files} }}") as server:
        yield f"tls://127.0.0.1:{server.port}"


@pytest.fixture(params=["redis", "nats"])
def url(request: pytest.FixtureRequest) -> str:
    """Name each of them."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def trusted(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the authority, as a machine does that its operator has given it to."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))


@pytest.mark.usefixtures("trusted")
def test_what_is_committed_by_tls_is_there(url: str) -> None:
    """A blocking store writes and reads by an encrypted URL."""
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("blocking", state={"n": 1}))

    with cs.open_store(url) as store:
        assert store.get_one("blocking").state == {"n": 1}


@pytest.mark.anyio
@pytest.mark.usefixtures("trusted")
async def test_what_is_committed_by_tls_is_there_async(url: str, anyio_backend: str) -> None:
    """So does an async one, under asyncio and trio."""
    async with cs.open_async_store(url) as store:
        await store.create(cs.FlowSnapshot(anyio_backend, state={"n": 2}))
        assert (await store.get_one(anyio_backend)).state == {"n": 2}


def test_a_context_brought_along_decides(nats_url: str, certificates: Certificates) -> None:
    """nats-py's `tls` is passed on: the authority need not be the machine's."""
    context = ssl.create_default_context(cafile=str(certificates.authority))
    with cs.NatsStore(nats_url, connect={"tls": context}) as store:
        store.create(cs.FlowSnapshot("context", state={}))
        assert store.get("context") is not None


def test_an_authority_named_in_the_url_decides(redis_url: str, certificates: Certificates) -> None:
    """redis-py's `ssl_ca_certs` is passed on."""
    with cs.open_store(f"{redis_url}?ssl_ca_certs={certificates.authority}") as store:
        store.create(cs.FlowSnapshot("named", state={}))
        assert store.get("named") is not None


def test_an_untrusted_server_is_not_used(url: str) -> None:
    """The deployment is at fault, and the message says so: nothing was sent, no time was waited."""
    with (
        cs.open_store(url, timeout=timedelta(seconds=60)) as store,
        pytest.raises(cs.StoreConfigError, match="certificate") as caught,
    ):
        store.ping()

    assert caught.value.__cause__ is not None
