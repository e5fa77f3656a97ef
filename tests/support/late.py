"""A write that arrives late: its reply is lost, and the server has it only after later requests."""

from __future__ import annotations

from typing import Any

from interposed import Interposed

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.stores.nats.transport import Publish
from catga_store.stores.nats.transport import Tell
from catga_store.stores.redis.transport import Pipe

__all__ = ["Late"]


class Late(Interposed):
    """Stands between a store on a server and its link."""

    def __init__(self) -> None:
        self.writes = 0
        """How many requests that write were made."""
        self._number = self._after = 0
        self._held: Request[Any] | None = None

    def delay(self, after: int, number: int = 1) -> None:
        """Let the write of that number, from now on, arrive after that many later requests."""
        self.writes, self._number, self._after, self._held = 0, number, after, None

    def stop(self) -> None:
        """Delay nothing any more, and drop what has not arrived."""
        self._number, self._held = 0, None

    def _exchange(self, transport: Request[Any]) -> Conversation[Any]:
        if isinstance(transport, Pause | Tell):  # nothing that the server answers
            return (yield transport)

        writes = isinstance(transport, Publish) or (
            isinstance(transport, Pipe) and transport.writes
        )
        if self._held is not None and not self._after:
            held, self._held = self._held, None
            yield held
        elif self._held is not None:
            self._after -= 1

        self.writes += writes
        if writes and self.writes == self._number:
            self._held, self._number = transport, 0
            message = "held back"
            raise ReplyLostError(message)

        return (yield transport)
