"""The subscription of an asyncio Redis link: a task that reads one connection; see `subscriptions`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from catga_store.drivers.redis_packing import pack
from catga_store.drivers.subscriptions import PING
from catga_store.drivers.subscriptions import TICK
from catga_store.drivers.subscriptions import SubscriptionState
from catga_store.stores.redis.transport import Subscribe

__all__ = ["AsyncSubscription"]


class AsyncSubscription:
    """The one subscription of a link. `connect` returns a connection of redis-py, not connected yet."""

    def __init__(self, connect: Callable[[], Awaitable[Any]], timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._state: SubscriptionState | None = None
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self, request: Subscribe) -> None:
        """See `Subscribe`. Cancelled, it leaves the subscription as it is."""
        state = self._state
        if self._task is None or state is None or not state.is_needed():
            await self.close()
            state = self._state = SubscriptionState(request, self._timeout)
            self._settled = asyncio.Event()
            self._task = asyncio.create_task(self._run(state, self._settled))
            self._task.add_done_callback(self._ended)

        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._settled.wait()

        state.is_confirmed()

    async def close(self) -> None:
        """End it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None

    async def _run(self, state: SubscriptionState, settled: asyncio.Event) -> None:
        while state.is_needed():
            try:
                await self._use(state, settled)
            except Exception as error:  # noqa: BLE001  also what a credential provider of the user's raises
                pause = state.broken(error)
                settled.set()
                while pause > 0 and state.is_needed():
                    await asyncio.sleep(min(pause, TICK))
                    pause -= TICK

    async def _use(self, state: SubscriptionState, settled: asyncio.Event) -> None:
        connection = await self._connect()
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()

            state.connected()
            await connection.send_packed_command(
                pack(connection, (state.command,)), check_health=False
            )
            reader = asyncio.create_task(_read(connection, state, settled))
            try:
                while state.is_needed():
                    # The reader itself has no deadline: one could cut a message in half.
                    await asyncio.wait([reader], timeout=TICK)
                    if reader.done():
                        reader.result()

                    if state.must_ask():
                        await connection.send_packed_command(
                            pack(connection, (PING,)), check_health=False
                        )
            finally:
                reader.cancel()
                await asyncio.wait([reader])
        finally:
            await connection.disconnect(nowait=True)


async def _read(connection: Any, state: SubscriptionState, settled: asyncio.Event) -> None:
    while True:
        reply = await connection.read_response(
            disable_decoding=True, timeout=math.inf, disconnect_on_error=False, push_request=True
        )
        if state.heard(reply):
            settled.set()
