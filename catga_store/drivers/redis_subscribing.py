"""The subscription of a blocking Redis link: a thread that reads one connection; see `subscriptions`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from catga_store.drivers.redis_packing import pack
from catga_store.drivers.subscriptions import PING
from catga_store.drivers.subscriptions import TICK
from catga_store.drivers.subscriptions import SubscriptionState
from catga_store.stores.redis.transport import Subscribe

__all__ = ["BlockingSubscription"]


class BlockingSubscription:
    """The one subscription of a link. `connect` returns a connection of redis-py, not connected yet."""

    def __init__(self, connect: Callable[[], Any], timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._pid = os.getpid()
        self._reading: _Reading | None = None
        # Reentrant: a signal handler may wait, or close the store.
        self._lock = threading.RLock()

    def begin(self, request: Subscribe) -> None:
        """See `Subscribe`."""
        if self._pid != os.getpid():  # the thread is the parent's, and so is the connection
            self._pid, self._reading, self._lock = os.getpid(), None, threading.RLock()

        with self._lock:
            reading = self._reading
            if reading is None or not reading.goes_on():
                state = SubscriptionState(request, self._timeout)
                reading = self._reading = _Reading(state, self._connect)
                reading.start()

        reading.settled.wait(self._timeout)
        reading.state.is_confirmed()

    def close(self) -> None:
        """End it, without waiting for its thread."""
        reading, self._reading = self._reading, None
        if reading is not None and self._pid == os.getpid():
            reading.stop()


class _Reading(threading.Thread):
    """Reads until no call waits any more, over as many connections as that takes."""

    def __init__(self, state: SubscriptionState, connect: Callable[[], Any]) -> None:
        super().__init__(name="catga-store-hints", daemon=True)
        self.state = state
        self.settled = threading.Event()
        """It is known whether the subscription works for now."""
        self._connect = connect
        self._connection: Any = None
        self._stopped = threading.Event()
        self._has_ended = False
        self._ending = threading.RLock()

    def goes_on(self) -> bool:
        """Whether it reads for a call that waits from now on."""
        with self._ending:
            return not self._has_ended and self.state.is_needed()

    def stop(self) -> None:
        """End now."""
        self.state.is_over = True
        self._stopped.set()
        connection = self._connection
        socket = None if connection is None else getattr(connection, "_sock", None)
        if socket is not None:
            with suppress(OSError):
                socket.shutdown(2)  # the thread reads its end

    def run(self) -> None:
        """Read; what fails is tried again after a pause."""
        while not self._ends():
            try:
                self._read()
            except Exception as error:  # noqa: BLE001  also what a credential provider of the user's raises
                pause = self.state.broken(error)
                self.settled.set()
                while pause > 0 and not self._ends():
                    self._stopped.wait(min(pause, TICK))
                    pause -= TICK

    def _ends(self) -> bool:
        with self._ending:
            self._has_ended = not self.state.is_needed()
            return self._has_ended

    def _read(self) -> None:
        state = self.state
        self._connection = connection = self._connect()
        try:
            connection.connect()
            state.connected()
            connection.send_packed_command(pack(connection, (state.command,)), check_health=False)
            while not self._ends():
                if connection.can_read(timeout=TICK):
                    reply = connection.read_response(disable_decoding=True, push_request=True)
                    if state.heard(reply):
                        self.settled.set()
                elif state.must_ask():
                    connection.send_packed_command(pack(connection, (PING,)), check_health=False)
        finally:
            self._connection = None
            connection.disconnect()
