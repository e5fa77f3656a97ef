"""One asyncio loop in a thread of its own, for those who cannot await asyncio: blocking code, trio.

A store has one portal. It starts at the first request and belongs to one process: a forked child
starts its own and leaves its parent's alone. It ends when the store is closed or collected and
when the interpreter exits, which waits for it no longer than a second. A store protocol request crosses
into it once and its reply once back, however many exchanges it takes.

The loop is asyncio's own and is called with `call_soon_threadsafe`, because anyio's blocking portal
makes its caller wait for the start of every call, which would hold up a trio loop.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any
from typing import TypeVar
from typing import TypeVarTuple

import anyio
from anyio import CancelScope
from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from catga_store.drivers.asyncio_driver import AsyncioUnits
from catga_store.drivers.links import AsyncLink
from catga_store.drivers.links import writes
from catga_store.drivers.sleeping import sleep_async
from catga_store.drivers.sleeping import sleep_blocking
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreClosedError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Await
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import arun
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import run
from catga_store.protocol.failures import uncertain
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Resolve
from catga_store.protocol.store_protocol import StoreProtocol

__all__ = ["PortalDriver", "TrioPortalDriver"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EXIT_SECONDS = 1.0


class _Crossing:
    """One store protocol request on its way into a portal, and its outcome on the way back."""

    def __init__(self, request: Request[Any], wake: Callable[[], object]) -> None:
        self.request = request
        self.task: asyncio.Task[Any] | None = None
        self.ended = False
        """Whether there is a reply or an error; set before the caller is woken."""
        self.reply: Any = None
        self.error: BaseException | None = None
        self._wake = wake

    def settle(self, reply: Any, error: BaseException | None = None) -> None:
        """Keep the first outcome and wake the caller. Called in the portal's thread while that lives."""
        if not self.ended:
            self.reply, self.error = reply, error
            self.ended = True

        with suppress(RuntimeError):  # the loop that waited is over, or the caller was woken before
            self._wake()


class _Portal:
    """A running loop with the link of one store. What has no `_` before its name is for others."""

    def __init__(self, units: AsyncioUnits) -> None:
        self.pid = os.getpid()
        self.units = units
        self._loop = _new_loop()
        self._stopping = asyncio.Event()
        self._lock = threading.Lock()
        self._crossings: set[_Crossing] = set()
        """What is under way."""
        self._ended = False
        self._thread = threading.Thread(target=self._live, name="catga-store-portal", daemon=True)
        self._thread.start()

    def send(self, crossing: _Crossing) -> None:
        """Start a request; if the portal has ended, its outcome is `StoreClosedError`."""
        self._add(crossing, self._start)

    def recall(self, crossing: _Crossing, error: BaseException) -> None:
        """After an interrupt: settle a request with that error if it was not started; wake the caller again.

        It will not be started later, because the loop calls functions in the order in which they came.
        A caller that was woken when the interrupt came has forgotten it, and waits once more.
        """
        self._add(crossing, partial(self._recall, error=error))

    def abandon(self, crossing: _Crossing) -> None:
        """Stop a request that no caller waits for any more; do not wait for its end."""
        self._call(self._cancel, crossing)

    def stop(self) -> None:
        """Let the link be closed and the loop end; does not wait for it."""
        if self.pid == os.getpid():
            self._call(self._stopping.set)

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread."""
        if self.pid == os.getpid():
            self._thread.join(seconds)

    def _add(self, crossing: _Crossing, function: Callable[[_Crossing], object]) -> None:
        with self._lock:
            if self._ended:
                crossing.settle(None, _cut_off(crossing))
            else:
                # If the loop is closed, and its thread has not said so yet, it will settle what is here.
                self._crossings.add(crossing)
                self._call(function, crossing)

    def _call(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        with suppress(RuntimeError):  # the loop is closed: there is nothing left to do
            self._loop.call_soon_threadsafe(function, *args)

    # in the portal's thread -----------------------------------------------------------------------

    def _live(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._until_stopped())
        finally:
            with self._lock:
                self._ended = True

            for crossing in self._crossings:
                crossing.settle(None, _cut_off(crossing))

    async def _until_stopped(self) -> None:
        await self._stopping.wait()
        await self.units.close()
        # The closed link has failed whatever it held, so that every request comes to a definite end.
        # A copy, because others may still add theirs.
        tasks = [one.task for one in self._crossings.copy() if one.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self.units.timeout)

    def _start(self, crossing: _Crossing) -> None:
        crossing.task = self._loop.create_task(self.units.perform(crossing.request))
        crossing.task.add_done_callback(partial(self._end, crossing))

    def _end(self, crossing: _Crossing, task: asyncio.Task[Any]) -> None:
        self._crossings.discard(crossing)
        if task.cancelled():
            crossing.settle(None, _cut_off(crossing))
        elif (error := task.exception()) is not None:
            crossing.settle(None, error)
        else:
            crossing.settle(task.result())

    def _recall(self, crossing: _Crossing, error: BaseException) -> None:
        if crossing.task is None or crossing.ended:
            self._crossings.discard(crossing)
            crossing.settle(None, error)

    def _cancel(self, crossing: _Crossing) -> None:
        if crossing.task is None:  # `send` was interrupted
            self._crossings.discard(crossing)
        else:
            crossing.task.cancel()


def _closed() -> StoreClosedError:
    message = "the store was closed before this request, so nothing was sent"
    return StoreClosedError(message)


def _cut_off(crossing: _Crossing) -> StoreClosedError | CommitUncertainError:
    """The error of a request that did not come to its end before the store was closed."""
    request = crossing.request
    if crossing.task is None:
        return _closed()

    why = "the store was closed before the reply arrived"
    if isinstance(request, Commit):
        return uncertain(request.id, [change.key for change in request.changes], why)

    if isinstance(request, Resolve):
        return uncertain(request.id, request.keys, why)

    rest = "its changes may have been written" if writes(request) else "nothing was written"
    return StoreClosedError(f"{why}; {rest}")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.new_event_loop()
    except OSError as error:
        message = (
            f"cannot create the store's event loop ({error}); nothing was sent; if this process has"
            " no file descriptors left, close files or connections, or raise the limit (ulimit -n)"
        )
        raise StoreUnavailableError(message) from error


class _Portaled:
    """What the drivers have in common that cross a portal."""

    def __init__(
        self, protocol: StoreProtocol, make_link: Callable[[], AsyncLink], timeout: float
    ) -> None:
        self._protocol = protocol
        self._make_link = make_link
        self._timeout = timeout
        self._portal: _Portal | None = None

    @property
    def protocol(self) -> StoreProtocol:
        """The store's protocol; may be replaced, also while the portal runs."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: StoreProtocol) -> None:
        self._protocol = protocol
        if self._portal is not None:
            self._portal.units.protocol = protocol

    def _started(self) -> _Portal:
        portal = self._portal
        if portal is None or portal.pid != os.getpid():
            with _starting:
                portal = self._portal
                if portal is None or portal.pid != os.getpid():
                    units = AsyncioUnits(self._protocol, self._make_link, self._timeout)
                    portal = self._portal = _Portal(units)
                    _portals.add(portal)
                    weakref.finalize(self, portal.stop).atexit = False

        return portal

    def _leave(self) -> None:
        portal = self._portal
        if portal is not None:
            portal.stop()
            portal.join(2 * self._timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'not started' if self._portal is None else 'started'}>"


class PortalDriver(_Portaled):
    """Runs conversations for blocking callers, any number of threads.

    A `KeyboardInterrupt`, or whatever else a signal handler raises, while a request is handed over
    or its reply is waited for: a request that reads is left at once. One that writes, and is on its
    way, is waited for, to its reply or deadline; the conversation takes the reply over, asks nothing
    more, and the exception is raised. One that writes and is not on its way is never sent.
    """

    def __init__(
        self, protocol: StoreProtocol, make_link: Callable[[], AsyncLink], timeout: float
    ) -> None:
        super().__init__(protocol, make_link, timeout)
        self.sleep: Callable[[float], object] = time.sleep
        """How it waits; may be replaced."""

    def run(self, conversation: Conversation[T]) -> T:
        """Run a conversation over store protocol requests to its end."""
        interrupts: list[BaseException] = []
        try:
            # Not `partial`: Python looks for signals when a function of C returns, and a reply that
            # was taken would be lost. It does not when a function of Python returns.
            return run(conversation, lambda request: self._perform(interrupts, request))
        finally:
            if interrupts:
                raise interrupts[0]

    def ask(self, request: Request[Any]) -> Any:
        """Perform one request."""
        return self.run(ask(request))

    def _perform(self, interrupts: list[BaseException], request: Request[Any]) -> Any:
        if interrupts:
            raise interrupts[0]

        if isinstance(request, Pause):
            return self.sleep(request.seconds)

        if isinstance(request, Invoke):
            return request.function()

        if isinstance(request, Await):
            return sleep_blocking(request.sleeper)

        # A bare lock, released by the portal, is the cheapest thing to wait on.
        woken = threading.Lock()
        woken.acquire()
        crossing = _Crossing(request, woken.release)
        portal = self._started()

        while True:
            try:
                if interrupts:
                    portal.recall(crossing, interrupts[0])
                else:
                    portal.send(crossing)

                woken.acquire()
                break
            except BaseException as error:
                if not writes(request):
                    portal.abandon(crossing)
                    raise

                interrupts.append(error)

        # Nothing is called from here on: an interrupt could not lose what was replied.
        if crossing.error is not None:
            raise crossing.error

        return crossing.reply

    def close(self) -> None:
        """Close the link and end the loop; what is under way fails definitely."""
        self._leave()


class TrioPortalDriver(_Portaled):
    """Runs conversations for tasks on trio.

    A cancelled read is left at once; a write is shielded to its reply or deadline, and the
    cancellation continues at the next checkpoint. Already cancelled, neither begins.
    """

    def __init__(
        self, protocol: StoreProtocol, make_link: Callable[[], AsyncLink], timeout: float
    ) -> None:
        super().__init__(protocol, make_link, timeout)
        self.sleep: Callable[[float], Awaitable[None]] = anyio.sleep
        """How it waits; may be replaced."""

    def run(self, conversation: Conversation[T]) -> Coroutine[Any, Any, T]:
        """Run a conversation over store protocol requests to its end."""
        return arun(conversation, self.ask)

    async def ask(self, request: Request[Any]) -> Any:
        """Perform one request."""
        if isinstance(request, Pause):
            return await self.sleep(request.seconds)

        if isinstance(request, Invoke):
            return await request.function()

        if isinstance(request, Await):
            return await sleep_async(request.sleeper)

        await checkpoint_if_cancelled()
        # anyio has tokens only from 4.11 on, and cannot wake a loop without making the waker wait;
        # a caller on trio has imported trio.
        token = sys.modules["trio"].lowlevel.current_trio_token()
        ended = anyio.Event()
        crossing = _Crossing(request, partial(token.run_sync_soon, ended.set))
        portal = self._started()
        portal.send(crossing)
        if writes(request):
            with CancelScope(shield=True):
                await ended.wait()
        else:
            try:
                await ended.wait()
            except BaseException:
                portal.abandon(crossing)
                raise

        if crossing.error is not None:
            raise crossing.error

        return crossing.reply

    async def close(self) -> None:
        """Close the link and end the loop; what is under way fails definitely. Not cancellable."""
        with CancelScope(shield=True):
            await to_thread.run_sync(self._leave)


# --- the process ----------------------------------------------------------------------------------

_starting = threading.Lock()
_portals: weakref.WeakSet[_Portal] = weakref.WeakSet()
_of_parent: list[_Portal] = []


def _leave_all() -> None:
    """At exit: let every link be closed, and wait a second for all of them together."""
    until = time.monotonic() + _EXIT_SECONDS
    portals = list(_portals)

    for portal in portals:
        portal.stop()

    for portal in portals:
        portal.join(max(0.0, until - time.monotonic()))


def _after_fork() -> None:
    """In a child: keep what is the parent's from being collected, which would reach into it.

    The two share what the kernel knows of the loop: to unregister a socket here is to do it there.
    """
    global _starting  # noqa: PLW0603  another thread may have held it, and is not in this process
    _starting = threading.Lock()
    _of_parent.extend(_portals)
    _portals.clear()


atexit.register(_leave_all)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
