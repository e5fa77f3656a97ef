"""The blocking driver: of the stores in this process, memory and SQLite, and of those on servers.

A wire is a function that performs one wire request: a `Call` in this process, a `Pipe` on a link.
`wire` may be replaced, which is how tests inject faults. It is called where the caller stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from typing import Protocol
from typing import TypeVar

from catga_store.conversation import Call
from catga_store.conversation import Conversation
from catga_store.conversation import Invoke
from catga_store.conversation import NotSentError
from catga_store.conversation import Pause
from catga_store.conversation import ReplyLostError
from catga_store.conversation import Request
from catga_store.conversation import run
from catga_store.records import Waist

__all__ = ["Local", "LocalDriver", "Wire"]

T = TypeVar("T")


class Wire(Protocol):
    """Performs wire requests: in this process, `Call` as one transaction."""

    threaded: bool

    def __call__(self, request: Any, /) -> Any:
        """The reply to one wire request."""
        ...

    def close(self) -> None:
        """Let go of what the wire has opened."""
        ...


class Local:
    """What drives the conversations of an embedded store."""

    def __init__(self, waist: Waist, wire: Wire) -> None:
        self.waist = waist
        self.wire = wire

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.wire!r}>"


class LocalDriver(Local):
    """Runs conversations by blocking; whatever is no pause and no call of the user's is the wire's."""

    def __init__(self, waist: Waist, wire: Wire) -> None:
        super().__init__(waist, wire)
        self.sleep: Callable[[float], None] = time.sleep
        """How it waits; may be replaced, like `wire`."""

    def run(self, conversation: Conversation[T]) -> T:
        """Run a conversation over waist requests to its end."""
        return run(conversation, self._perform)

    def _perform(self, request: Request[Any]) -> Any:
        kind = type(request)
        if kind is Pause or kind is Invoke:
            return self._perform_wire(request)

        # Most requests are one call of an embedded store: a conversation costs as much as its rules.
        waist: Any = self.waist
        first_call = getattr(waist, "first_call", None)
        call: Call[Any] | None = None if first_call is None else first_call(request)
        if call is None:
            return run(waist.converse(request), self._perform_wire)

        try:
            return self.wire(call)
        except (NotSentError, ReplyLostError) as error:
            return run(waist.go_on(request, call, error), self._perform_wire)

    def _perform_wire(self, request: Request[Any]) -> Any:
        if type(request) is Pause:
            return self.sleep(request.seconds)

        if type(request) is Invoke:
            return request.function()

        return self.wire(request)

    def close(self) -> None:
        """Close the wire."""
        self.wire.close()
