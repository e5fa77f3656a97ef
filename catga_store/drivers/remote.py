"""What the drivers of stores on servers have in common.

A link is a connection to a server, or several. It performs the wire requests of one store; who
waits, retries or decides is above it.
"""

from __future__ import annotations

from typing import Any
from typing import Protocol

from catga_store.conversation import Request

__all__ = ["AsyncLink", "Link"]


class Link(Protocol):
    """Performs wire requests by blocking; any number of threads may share it."""

    def perform(self, request: Request[Any], /) -> Any:
        """The reply. `NotSentError` if it never reached the server, `ReplyLostError` if it may have."""
        ...

    def close(self) -> None:
        """Close what the link has opened itself."""
        ...


class AsyncLink(Protocol):
    """Performs wire requests on one asyncio loop, for any number of its tasks."""

    async def perform(self, request: Request[Any], /) -> Any:
        """As `Link.perform`. Cancelled while it waits, it may have been sent and applied."""
        ...

    async def close(self) -> None:
        """Close what the link has opened itself."""
        ...
