"""A request in flight: its future, its deadline, and its outcome once there is one.

Shared by the multiplexed Redis connection and the NATS inbox. Each adds what it must know about its
requests.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["InFlight"]


class InFlight:
    """One caller's request; see `links.Started`.

    The outcome outlives the future: a caller whose wait was cancelled asks for it with `again`.
    """

    __slots__ = ("_error", "_reply", "deadline", "ended")

    def __init__(self, ended: asyncio.Future[Any], deadline: float = 0.0) -> None:
        self.ended = ended
        self.deadline = deadline
        """By the clock of the event loop."""
        self._reply: Any = None
        self._error: Exception | None = None

    def settle(self, reply: Any) -> None:
        """Set the reply, which must not be `None`."""
        if self.ended.done():
            self._reply = reply
        else:
            self.ended.set_result(reply)

    def fail(self, error: Exception) -> None:
        """Set the error: there will be no reply."""
        if self.ended.done():
            self._error = error
        else:
            self.ended.set_exception(error)

    def again(self) -> asyncio.Future[Any]:
        """Return a new future for the same outcome, once `ended` was cancelled."""
        self.ended = self.ended.get_loop().create_future()
        if self._error is not None:
            self.ended.set_exception(self._error)
        elif self._reply is not None:
            self.ended.set_result(self._reply)

        return self.ended
