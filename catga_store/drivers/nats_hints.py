"""The subscription of a NATS link to the hints of its store, on the connection that it has.

It lasts as long as calls wait, and a second longer, because a worker waits again. The client library
subscribes again when it has connected again; then those who wait look again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from nats import errors as nats_errors

from catga_store.drivers.nats_inbox import Inbox
from catga_store.stores.nats.transport import SubscribeToHints

__all__ = ["HintSubscription"]

_log = logging.getLogger(__name__)

_TICK = 0.2
_LINGERS = 1.0


class HintSubscription:
    """The one subscription of a link. `usable` returns the inbox of the connection if that works now."""

    def __init__(self, usable: Callable[[], Inbox | None], timeout: float) -> None:
        self._usable = usable
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._confirmed: tuple[Inbox, int] | None = None
        """The connection on which every later message comes."""
        self._is_missed = False

    async def begin(self, request: SubscribeToHints) -> None:
        """See `SubscribeToHints`. Cancelled, it leaves the subscription as it is."""
        if self._task is None:
            self._settled = asyncio.Event()
            self._task = asyncio.create_task(self._run(request))

        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._settled.wait()

        inbox = self._usable()
        if inbox is None or self._confirmed != (inbox, inbox.epoch):
            self._is_missed = True

    async def close(self) -> None:
        """End it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, request: SubscribeToHints) -> None:
        needed_at = time.monotonic()
        try:
            while time.monotonic() - needed_at < _LINGERS:
                await self._renew(request)
                await asyncio.sleep(_TICK)
                if request.listener.is_needed:
                    needed_at = time.monotonic()
        finally:
            # Before anything is awaited: a call that waits from now on begins another one.
            confirmed, self._confirmed = self._confirmed, None
            if asyncio.current_task() is self._task:
                self._task = None

            if confirmed is not None:
                with suppress(nats_errors.Error, TimeoutError):
                    await confirmed[0].silence(request.subject)

    async def _renew(self, request: SubscribeToHints) -> None:
        """SubscribeToHints on the connection that there is now, unless that was done."""
        inbox = self._usable()
        if inbox is None:
            self._is_missed = True
        elif self._confirmed != (inbox, inbox.epoch):
            found = inbox, inbox.epoch
            self._is_missed = self._is_missed or self._confirmed is not None
            try:
                async with asyncio.timeout(self._timeout):
                    await inbox.listen(request.subject, request.listener.receive)
            except (nats_errors.Error, TimeoutError) as error:
                _log.debug("the subscription to hints failed with an error: %r", error)
                self._is_missed = True
            else:
                self._confirmed = found
                if self._is_missed:
                    self._is_missed = False
                    request.listener.missed()

        self._settled.set()
