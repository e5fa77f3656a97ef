"""What an author of a store implements: one method, which is asked everything as a request."""

from __future__ import annotations

from typing import Protocol

from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request

__all__ = ["StoreProtocol"]


class StoreProtocol(Protocol):
    """A store. It turns each store protocol request into a conversation over its own transport requests."""

    def converse(self, request: Request[object], /) -> Conversation[object]:
        """Do what the request asks for, and return its reply."""
        ...
