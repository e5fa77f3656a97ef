"""What the subscriptions of the Redis links have in common: their states, and what a reply means.

A subscription has a connection of its own, outside the pool of the client. It lasts as long as calls
wait, and a second longer, because a worker waits again. If it breaks, it is made again after a
pause, and those who wait look again. What it loses costs time, never truth, so no error of it
reaches a caller.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from redis.exceptions import AuthenticationError
from redis.exceptions import NoPermissionError
from redis.exceptions import RedisError

from catga_store.protocol.chance import jittered
from catga_store.stores.redis.transport import Listener
from catga_store.stores.redis.transport import Subscribe

__all__ = ["PING", "TICK", "SubscriptionState"]

_log = logging.getLogger(__name__)

TICK = 0.5
"""How often, in seconds, a silent subscription sees whether it is still needed."""
PING = (b"PING",)

_LINGERS = 1.0
_SILENT = 30.0
"""After how many seconds of silence it asks whether the server is there."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_REFUSED_PAUSE = 60.0


class SubscriptionState:
    """What is known of one subscription. Any thread may call it."""

    def __init__(self, request: Subscribe, timeout: float) -> None:
        self.listener: Listener = request.listener
        self.command = (b"SUBSCRIBE", *request.channels)
        self.is_over = False
        self._timeout = timeout
        self._left = len(request.channels)
        self._number = len(request.channels)
        self._is_confirmed = False
        self._is_missed = False
        self._pause = _SHORTEST_PAUSE
        self._needed_at = self._heard_at = time.monotonic()
        self._asked_at = 0.0
        # Reentrant: a signal handler may wait, too.
        self._lock = threading.RLock()

    def is_confirmed(self) -> bool:
        """Whether every later message comes; if not, those who wait will be woken."""
        with self._lock:
            if not self._is_confirmed:
                self._is_missed = True

            return self._is_confirmed

    def connected(self) -> None:
        """Note that there is a new connection, on which nothing is confirmed."""
        self._left = self._number
        self._heard_at = time.monotonic()
        self._asked_at = 0.0

    def heard(self, reply: Any) -> bool:
        """Take what the server has sent; return whether that was the confirmation."""
        self._heard_at = time.monotonic()
        self._asked_at = 0.0
        try:
            kind, _, message = reply
        except (TypeError, ValueError):  # the reply to a PING
            return False

        if kind == b"message":
            self.listener.receive(message)
        elif kind == b"subscribe":
            self._left -= 1
            if not self._left:
                self._confirm()
                return True

        return False

    def _confirm(self) -> None:
        with self._lock:
            self._is_confirmed = True
            self._pause = _SHORTEST_PAUSE
            is_missed, self._is_missed = self._is_missed, False

        if is_missed:
            self.listener.missed()

    def must_ask(self) -> bool:
        """Whether to send a PING now. `RedisError` if the last one had no reply in time."""
        now = time.monotonic()
        if self._asked_at and now - self._asked_at > self._timeout:
            message = f"the subscription received no reply within {self._timeout:g} s"
            raise RedisError(message)

        if self._asked_at or now - self._heard_at < _SILENT:
            return False

        self._asked_at = now
        return True

    def is_needed(self) -> bool:
        """Whether a call waits, or did until a second ago."""
        now = time.monotonic()
        if self.listener.is_needed:
            self._needed_at = now

        return not self.is_over and now - self._needed_at < _LINGERS

    def broken(self, error: BaseException) -> float:
        """Note that it has failed or ended; return after how many seconds to begin again."""
        with self._lock:
            self._is_confirmed = False
            self._is_missed = True

        if isinstance(error, NoPermissionError | AuthenticationError):
            if self._pause < _REFUSED_PAUSE:
                _log.warning(
                    "the server refuses the subscription to hints: %s; waiting calls now "
                    "check the store once per poll interval; allow this user the "
                    "SUBSCRIBE command and the store's channels",
                    error,
                )

            self._pause = _REFUSED_PAUSE
            return _REFUSED_PAUSE

        _log.debug("the subscription to hints was lost because of an error: %r", error)
        pause = min(self._pause, _LONGEST_PAUSE)
        self._pause = min(2 * pause, _LONGEST_PAUSE)
        return jittered(pause)
