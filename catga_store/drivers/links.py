"""What the drivers of stores on servers have in common.

A link is a connection to a server, or several. It performs the transport requests of one store;
waiting, retries and decisions are above it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol
from typing import runtime_checkable

from catga_store.protocol.conversation import Request
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Sweep

__all__ = ["AsyncLink", "Link", "Started", "StartingLink", "writes"]

if TYPE_CHECKING:
    import asyncio

_WRITING = (Commit, Resolve, Extend, Sweep, Clear)


def writes(request: Request[Any]) -> bool:
    """Whether a store protocol request changes the store, and so must be seen through to its end."""
    return isinstance(request, _WRITING)


class Link(Protocol):
    """Performs transport requests by blocking; any number of threads may share it."""

    def perform(self, request: Request[Any], /) -> Any:
        """The reply. `NotSentError` if it never reached the server, `ReplyLostError` if it may have."""
        ...

    def close(self) -> None:
        """Close what the link has opened itself."""
        ...


class AsyncLink(Protocol):
    """Performs transport requests on one asyncio loop, for any number of its tasks."""

    async def perform(self, request: Request[Any], /) -> Any:
        """As `Link.perform`. Cancelled while it waits, it may have been sent and applied."""
        ...

    async def close(self) -> None:
        """Close what the link has opened itself."""
        ...


class Started(Protocol):
    """A request that continues by itself."""

    ended: asyncio.Future[Any]
    """Its reply or its failure. Once cancelled it stays so, but the request continues."""

    def again(self) -> asyncio.Future[Any]:
        """Another future for the same, once `ended` was cancelled."""
        ...


@runtime_checkable
class StartingLink(AsyncLink, Protocol):
    """A link that needs no task to see a request through, which is most of what a request costs."""

    def start(self, request: Request[Any], /) -> Started:
        """Begin a request; it is sent and runs to its reply even if no caller waits for it."""
        ...
