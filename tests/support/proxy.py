"""A proxy on loopback that loses what passes through it, when a test says so.

It stands between a client and a server, forwards bytes, and strikes at requests: `strike("drop the
reply")` forwards the next one, waits for its answer, and closes the connection instead of passing
it on. A request is what arrives in one piece, which small requests do.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Literal
from typing import Self
from typing import TypeAlias
from typing import get_args

from attrs import define

__all__ = ["Proxy", "Strike"]

Strike: TypeAlias = Literal[
    "drop the request", "hold the request", "drop the reply", "cut the reply", "hold the reply"
]
"""What happens to a request; held ones continue after `release`, also when no caller waits any more."""

_CHUNK = 1 << 16


@define
class _Armed:
    kind: Strike
    times: int
    when: Callable[[bytes], bool]
    then: Callable[[], object] | None


class Proxy:
    """Forwards from a free port of loopback to `port` until it is closed."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._server = host, port
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._open: set[socket.socket] = set()
        self._free = threading.Event()
        self._rewritten: tuple[bytes, bytes] | None = None
        self.struck = 0
        """How many requests have been struck at."""
        self.late_replies = threading.Semaphore(0)
        """Released once for each reply to a held request: then the server has done it."""
        self._listener = socket.create_server((host, 0))
        self.host, self.port = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def strike(
        self,
        kind: Strike,
        *,
        times: int = 1,
        when: Callable[[bytes], bool] = bool,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Strike at the next `times` requests for which `when(data)` is true.

        `then` is called once the client has lost its reply, before it can notice.
        """
        assert kind in get_args(Strike), kind
        with self._lock:
            self._armed.append(_Armed(kind, times, when, then))

    def rewrite(self, old: bytes, new: bytes) -> None:
        """Put other bytes into the server's reply; as many, or the lengths are wrong."""
        self._rewritten = old, new

    def release(self) -> None:
        """Let everything that is held go on, and hold nothing more."""
        self._free.set()

    def calm(self) -> None:
        """Strike no more."""
        with self._lock:
            self._armed.clear()

    def cut(self) -> None:
        """Close every connection that is open now."""
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and close every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

        self._listener.close()
        self.release()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Proxy {self.host}:{self.port} to {self._server[0]}:{self._server[1]}>"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return

            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue

            with self._lock:
                self._open |= {client, server}

            _Pair(self, client, server).start()

    def take(self, data: bytes) -> _Armed | None:
        """The strike at this request, if there is one."""
        with self._lock:
            for armed in self._armed:
                if armed.times and armed.when(data):
                    armed.times -= 1
                    self.struck += 1
                    return armed

        return None

    def wait(self) -> None:
        """Wait until held things are released."""
        self._free.wait()

    def changed(self, data: bytes) -> bytes:
        """A reply as the client is to see it."""
        return data if self._rewritten is None else data.replace(*self._rewritten)

    def forget(self, *sockets: socket.socket) -> None:
        """These are closed."""
        with self._lock:
            self._open.difference_update(sockets)


class _Pair:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._strike: _Armed | None = None

    def start(self) -> None:
        for pump in (self._up, self._down):
            threading.Thread(target=self._pumping, args=(pump,), daemon=True).start()

    def _pumping(self, pump: Callable[[], None]) -> None:
        try:
            pump()
        except OSError:
            pass
        finally:
            if pump == self._down or self._strike is None:
                self._end()

    def _end(self) -> None:
        for one in (self._client, self._server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

        self._proxy.forget(self._client, self._server)
        self._client.close()
        self._server.close()

    def _up(self) -> None:
        while data := self._client.recv(_CHUNK):
            armed = self._proxy.take(data)
            if armed is not None and armed.kind == "drop the request":
                _call(armed.then)
                return

            self._strike = armed
            if armed is not None and armed.kind == "hold the request":
                self._proxy.wait()

            self._server.sendall(data)

    def _down(self) -> None:
        while data := self._proxy.changed(self._server.recv(_CHUNK)):
            armed, self._strike = self._strike, None
            if armed is None:
                self._client.sendall(data)
                continue

            if armed.kind == "hold the reply":
                self._proxy.wait()

            if armed.kind.startswith("hold"):
                self._proxy.late_replies.release()
                self._client.sendall(data)
                continue

            _call(armed.then)
            if armed.kind == "cut the reply":
                self._client.sendall(data[: len(data) // 2])

            return


def _call(then: Callable[[], object] | None) -> None:
    if then is not None:
        then()
