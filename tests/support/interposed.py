"""What stands between a store and its link, and sees each request to the server."""

from __future__ import annotations

from typing import Any
from typing import Self

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import through

__all__ = ["Interposed"]


class Interposed:
    """A store protocol around another one; `wrap_protocol(store, this.attach)` puts it there."""

    protocol: Any = None

    def attach(self, protocol: Any) -> Self:
        """Wrap a store protocol."""
        self.protocol = protocol
        return self

    def converse(self, request: Request[Any]) -> Conversation[Any]:
        """Perform a request."""
        return through(self.protocol.converse(request), self._exchange)

    def _exchange(self, transport: Request[Any]) -> Conversation[Any]:
        """Perform a request to the server."""
        raise NotImplementedError
