"""The driver of stores on servers, on an asyncio loop.

A store protocol request is one unit. One that reads stops at once when its caller is cancelled. One that
writes runs in a task of its own, to its reply or to the deadline that the link sets, whatever
cancels the caller: anyio's scopes, `Task.cancel` or `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from typing import TypeVar

from anyio.lowlevel import checkpoint_if_cancelled

from catga_store.drivers.cancellation import see_through
from catga_store.drivers.links import AsyncLink
from catga_store.drivers.links import StartingLink
from catga_store.drivers.links import writes
from catga_store.drivers.sleeping import sleep_async
from catga_store.protocol.conversation import Await
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Finished
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import arun
from catga_store.protocol.store_protocol import StoreProtocol

__all__ = ["AsyncioDriver", "AsyncioUnits"]

T = TypeVar("T")


class AsyncioUnits:
    """Performs store protocol requests on one asyncio loop; the link is made at the first of them.

    `make_link` is called on the loop. The link sets the deadline of each exchange; `timeout`, in
    seconds, is how long closing it may take.
    """

    def __init__(
        self, protocol: StoreProtocol, make_link: Callable[[], AsyncLink], timeout: float
    ) -> None:
        self.protocol = protocol
        self.timeout = timeout
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        """How a unit waits; may be replaced."""
        self.link: AsyncLink | None = None
        self._make_link = make_link
        self._starting: StartingLink | None = None
        self._closed = False

    def perform(self, request: Request[Any]) -> Coroutine[Any, Any, Any]:
        """The reply to a store protocol request, as part of the calling task."""
        return arun(self.protocol.converse(request), self._perform_transport)

    async def perform_to_end(self, request: Request[Any]) -> Any:
        """The same; a cancellation meanwhile is raised as `Finished` when there is a reply."""
        self._open()
        if self._starting is None:
            return await see_through(asyncio.create_task(self.perform(request)))

        # What the link starts continues by itself: waiting for it costs less than a task.
        cancelled: list[BaseException] = []
        try:
            reply = await self._run_started(self.protocol.converse(request), cancelled)
        except BaseException as error:
            if not cancelled:
                raise

            raise Finished(cancelled[0], None, error) from None

        if cancelled:
            raise Finished(cancelled[0], reply, None)

        return reply

    async def _run_started(
        self, conversation: Conversation[Any], cancelled: list[BaseException]
    ) -> Any:
        """`arun` with what the link starts, written out: coroutines are much of what a commit costs."""
        send = conversation.send
        try:
            request = send(None)

            while True:
                try:
                    if self._starting is None or isinstance(request, Pause):
                        rest = asyncio.ensure_future(self._perform_transport(request))
                        reply = await _end_of(rest, cancelled)
                    else:
                        started = self._starting.start(request)
                        try:
                            reply = await started.ended
                        except asyncio.CancelledError as error:
                            cancelled.append(error)
                            reply = await _end_of(started.again(), cancelled)
                except BaseException as error:  # noqa: BLE001  the conversation has it
                    request = conversation.throw(error)
                else:
                    request = send(reply)
        except StopIteration as stop:
            return stop.value

    def _perform_transport(self, request: Request[Any]) -> Awaitable[Any]:
        if isinstance(request, Pause):
            return self.sleep(request.seconds)

        link = self._open()
        if link is None:
            message = "the store was closed"
            raise NotSentError(message)

        return link.perform(request)

    def _open(self) -> AsyncLink | None:
        if self.link is None and not self._closed:
            self.link = link = self._make_link()
            if isinstance(link, StartingLink):
                self._starting = link

        return self.link

    async def close(self) -> None:
        """Close the link, and send nothing more; one that does not end is left after `timeout`."""
        self._closed = True
        self._starting = None
        link, self.link = self.link, None
        if link is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.timeout):
                    await link.close()


class AsyncioDriver:
    """Runs conversations over store protocol requests on the caller's asyncio loop."""

    def __init__(
        self, protocol: StoreProtocol, make_link: Callable[[], AsyncLink], timeout: float
    ) -> None:
        self._units = AsyncioUnits(protocol, make_link, timeout)
        self._finalizer: weakref.finalize[Any, AsyncioDriver] | None = None

    @property
    def protocol(self) -> StoreProtocol:
        """The store's protocol; may be replaced."""
        return self._units.protocol

    @protocol.setter
    def protocol(self, protocol: StoreProtocol) -> None:
        self._units.protocol = protocol

    def run(self, conversation: Conversation[T]) -> Coroutine[Any, Any, T]:
        """Run a conversation to its end."""
        return arun(conversation, self.ask)

    async def ask(self, request: Request[Any]) -> Any:
        """Perform one request. Cancelled, one that writes raises `Finished` when it has ended.

        Already cancelled, a request that writes does not begin.
        """
        if self._finalizer is None:  # a forgotten driver closes its link when it is collected
            loop = asyncio.get_running_loop()
            self._finalizer = weakref.finalize(self, _close_later, loop, self._units)
            self._finalizer.atexit = False

        if isinstance(request, Pause):
            return await self._units.sleep(request.seconds)

        if isinstance(request, Invoke):
            return await request.function()

        if isinstance(request, Await):
            return await sleep_async(request.sleeper)

        if not writes(request):
            return await self._units.perform(request)

        await checkpoint_if_cancelled()
        return await self._units.perform_to_end(request)

    async def close(self) -> None:
        """Close the link, which waits for nothing that is under way; it is seen through."""
        detached = None if self._finalizer is None else self._finalizer.detach()
        if detached is not None and detached[2][0] is not asyncio.get_running_loop():
            _close_later(*detached[2])  # its connections live on the loop that first used it
            return

        try:
            await see_through(asyncio.create_task(self._units.close()))
        except Finished as finished:
            if finished.error is not None:
                raise finished.error from None

            raise finished.cancelled from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._units.link!r}>"


async def _end_of(rest: asyncio.Future[Any], cancelled: list[BaseException]) -> Any:
    """Wait to the end of what must not be left, and note a cancellation that came meanwhile."""
    try:
        return await see_through(rest)
    except Finished as finished:
        cancelled.append(finished.cancelled)
        if finished.error is not None:
            raise finished.error from None

        return finished.reply


def _close_later(loop: asyncio.AbstractEventLoop, units: AsyncioUnits) -> None:
    def close() -> None:
        task = loop.create_task(units.close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    with suppress(RuntimeError):  # the loop is closed, and every connection with it
        loop.call_soon_threadsafe(close)


_closing: set[asyncio.Task[None]] = set()
