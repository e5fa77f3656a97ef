"""How drivers perform `Await`: a thread sleeps on a lock of its own, a task on an event of its loop."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any

from catga_store.protocol.conversation import Sleeper

__all__ = ["sleep_async", "sleep_blocking"]


def sleep_blocking(sleeper: Sleeper) -> None:
    """Block until no seconds are left. Any exception of a signal handler ends it.

    A bare lock, because a signal handler of this very thread may wake it, by a commit or by closing the
    store: an `Event` could be held by the thread that the handler interrupts.
    """
    bell = threading.Lock()
    bell.acquire()

    def ring() -> None:
        with suppress(RuntimeError):  # it rings already
            bell.release()

    sleeper.notify = ring
    try:
        while (seconds := sleeper.seconds_left()) > 0:
            bell.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
    finally:
        sleeper.notify = None


async def sleep_async(sleeper: Sleeper) -> None:
    """Await the same on the caller's loop; it is always a checkpoint, and can be cancelled."""
    import anyio  # noqa: PLC0415  blocking programs need no event loop
    from anyio.lowlevel import checkpoint  # noqa: PLC0415  as above

    call_soon = _caller_of_loop()
    event = anyio.Event()

    def notify() -> None:
        with suppress(RuntimeError):  # the loop is over, and so is who waited
            call_soon(event.set)

    await checkpoint()
    sleeper.notify = notify
    try:
        while (seconds := sleeper.seconds_left()) > 0:
            with anyio.move_on_after(seconds):
                await event.wait()

            event = anyio.Event()
    finally:
        sleeper.notify = None


def _caller_of_loop() -> Any:
    """A function that lets the running loop call another one soon; it may be called from any thread."""
    from catga_store.drivers.cancellation import on_asyncio  # noqa: PLC0415  as above

    if not on_asyncio():
        # A caller on trio has imported trio.
        return sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon

    import asyncio  # noqa: PLC0415  as above

    return asyncio.get_running_loop().call_soon_threadsafe
