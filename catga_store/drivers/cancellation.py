"""Writes from async code that are seen through to their end.

A write that has begun runs to its reply, whatever cancels the task that waits for it. anyio's
shield stops its own cancellation and trio's, but not asyncio's `Task.cancel` and
`asyncio.timeout`; this is why the module imports asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from typing import TypeVar

from anyio import CancelScope
from anyio import get_cancelled_exc_class
from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from catga_store.protocol.conversation import Finished

__all__ = ["OwnTask", "at_home", "call_abandonable", "call_to_end", "on_asyncio", "see_through"]

R = TypeVar("R")


def on_asyncio() -> bool:
    """Whether the caller's event loop is asyncio; trio as a guest of asyncio is trio."""
    return get_cancelled_exc_class() is asyncio.CancelledError


def at_home() -> Callable[[], bool]:
    """A cheap check for later: whether the caller is on the loop that runs now; on trio it is not."""
    if not on_asyncio():
        return lambda: False

    loop = asyncio.get_running_loop()

    def is_here() -> bool:
        try:
            return asyncio.get_running_loop() is loop
        except RuntimeError:  # on trio
            return False

    return is_here


async def see_through(future: asyncio.Future[R]) -> R:
    """Wait on asyncio for a future's end; `Finished` if the waiting task was cancelled meanwhile."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError as error:
        if future.cancelled():
            raise

        cancelled = error

    # Not before, because a scope costs more than the wait: it keeps anyio from repeating itself.
    with CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error

    if future.cancelled():
        raise cancelled

    failure = future.exception()
    raise Finished(cancelled, None if failure is not None else future.result(), failure)


async def call_abandonable(function: Callable[[], R]) -> R:
    """Call in a worker thread; a cancellation leaves the thread alone and continues at once."""
    if on_asyncio():
        await checkpoint_if_cancelled()
        return await asyncio.get_running_loop().run_in_executor(None, function)

    return await to_thread.run_sync(function, abandon_on_cancel=True)


async def call_to_end(function: Callable[[], R]) -> R:
    """Call in a worker thread and wait for its end; `Finished` if a cancellation came meanwhile.

    Already cancelled, it does not begin.
    """
    await checkpoint_if_cancelled()
    if on_asyncio():
        return await see_through(asyncio.get_running_loop().run_in_executor(None, function))

    with CancelScope(shield=True):
        return await to_thread.run_sync(function)

    raise AssertionError(
        "a shielding scope must not suppress a cancellation"
    )  # pragma: no cover  for type checkers


class OwnTask:
    """A request that continues by itself because it has a task of its own; see `links.Started`."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self.ended: asyncio.Future[Any] = asyncio.shield(task)

    def again(self) -> asyncio.Future[Any]:
        """Its task."""
        return self._task
