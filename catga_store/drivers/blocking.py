"""The blocking driver, for memory, SQLite and Redis.

A transport performs one transport request: a `Call` in this process, a `Pipe` on a link to Redis. It is
called in the thread of the caller. `transport` may be replaced; that is how tests inject faults.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from typing import Protocol
from typing import TypeVar

from catga_store.drivers.sleeping import sleep_blocking
from catga_store.protocol.conversation import DRIVERS_OWN
from catga_store.protocol.conversation import Await
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import Request
from catga_store.protocol.store_protocol import StoreProtocol

__all__ = ["BlockingDriver", "EmbeddedDriver", "Transport"]

T = TypeVar("T")


class Transport(Protocol):
    """Performs transport requests; in this process that is a `Call`, as one transaction."""

    threaded: bool

    def __call__(self, request: Any, /) -> Any:
        """Return the reply to one transport request."""
        ...

    def close(self) -> None:
        """Close what the transport has opened."""
        ...


class EmbeddedDriver:
    """What the drivers of embedded stores have in common."""

    def __init__(self, protocol: StoreProtocol, transport: Transport) -> None:
        self.protocol = protocol
        self.transport = transport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.transport!r}>"


class BlockingDriver(EmbeddedDriver):
    """Runs conversations by blocking. The transport performs all but the driver's own requests."""

    def __init__(self, protocol: StoreProtocol, transport: Transport) -> None:
        super().__init__(protocol, transport)
        self.sleep: Callable[[float], None] = time.sleep
        """How it waits; may be replaced, like `transport`."""

    def run(self, conversation: Conversation[T]) -> T:
        """Run a conversation over store protocol requests to its end.

        Each request but `Pause`, `Invoke` and `Await` is held as a conversation of its own, whose requests
        the transport performs. Both loops stand in one function, because a call of one for each request
        costs 3 % of a `get` from the memory store, and one loop for both levels 5 % of a session.
        """
        reply: Any = None
        try:
            request = conversation.send(None)

            while True:
                try:
                    if type(request) in DRIVERS_OWN:
                        reply = self._perform(request)
                    else:
                        inner = self.protocol.converse(request)
                        try:
                            wanted = inner.send(None)

                            while True:
                                try:
                                    is_own = type(wanted) is Pause
                                    reply = (
                                        self._perform(wanted) if is_own else self.transport(wanted)
                                    )
                                except BaseException as error:
                                    wanted = inner.throw(error)
                                else:
                                    wanted = inner.send(reply)
                        except StopIteration as stop:
                            reply = stop.value
                except BaseException as error:
                    request = conversation.throw(error)
                else:
                    request = conversation.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _perform(self, request: Request[Any]) -> Any:
        if type(request) is Pause:
            return self.sleep(request.seconds)

        if type(request) is Invoke:
            return request.function()

        assert type(request) is Await, request  # noqa: S101  there are no others
        return sleep_blocking(request.sleeper)

    def close(self) -> None:
        """Close the transport."""
        self.transport.close()
