"""The async driver of the stores that live in this process: memory and SQLite.

The transport of the memory store is called in the event loop, because it takes microseconds; that of
SQLite in a worker thread. This is a module of its own so that blocking programs need not import anyio.
"""

from __future__ import annotations

from collections.abc import Awaitable
from collections.abc import Callable
from typing import Any
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint

from catga_store.drivers.blocking import EmbeddedDriver
from catga_store.drivers.blocking import Transport
from catga_store.drivers.cancellation import at_home
from catga_store.drivers.cancellation import call_abandonable
from catga_store.drivers.cancellation import call_to_end
from catga_store.drivers.sleeping import sleep_async
from catga_store.protocol.conversation import Await
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import arun
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import through
from catga_store.protocol.store_protocol import StoreProtocol

__all__ = ["AsyncEmbeddedDriver"]

T = TypeVar("T")


class AsyncEmbeddedDriver(EmbeddedDriver):
    """Runs conversations by awaiting; every operation is a checkpoint."""

    def __init__(self, protocol: StoreProtocol, transport: Transport) -> None:
        super().__init__(protocol, transport)
        self.sleep: Callable[[float], Awaitable[None]] = anyio.sleep
        """How it waits; may be replaced, like `transport`."""

    async def run(self, conversation: Conversation[T]) -> T:
        """Run a conversation over store protocol requests to its end."""
        if not self.transport.threaded:
            await checkpoint()

        return await arun(through(conversation, self._converse), self._perform)

    def at_home(self) -> Callable[[], bool]:
        """See `cancellation.at_home`."""
        return at_home()

    def _converse(self, request: Request[Any]) -> Conversation[Any]:
        if isinstance(request, Pause | Invoke | Await):
            return ask(request)

        return self.protocol.converse(request)

    async def _perform(self, request: Request[Any]) -> Any:
        if isinstance(request, Call):
            call: Call[Any] = request
            if not self.transport.threaded:
                return self.transport(call)

            in_thread = call_to_end if call.writes else call_abandonable
            return await in_thread(lambda: self.transport(call))

        if isinstance(request, Pause):
            return await self.sleep(request.seconds)

        if isinstance(request, Await):
            return await sleep_async(request.sleeper)

        assert isinstance(request, Invoke), request  # noqa: S101  there are no others
        return await request.function()

    async def close(self) -> None:
        """Close the transport."""
        if self.transport.threaded:
            await call_to_end(self.transport.close)
        else:
            self.transport.close()
