"""The driver of an `AsyncStore` on a server: finds out which event loop it is on.

On asyncio the link runs on the caller's loop; on trio it runs in the store's portal.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Coroutine
from typing import Any
from typing import TypeVar

from catga_store.drivers.asyncio_driver import AsyncioDriver
from catga_store.drivers.cancellation import at_home
from catga_store.drivers.cancellation import on_asyncio
from catga_store.drivers.links import AsyncLink
from catga_store.drivers.portal import TrioPortalDriver
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.store_protocol import StoreProtocol

__all__ = ["AnyLoopDriver"]

T = TypeVar("T")


class AnyLoopDriver:
    """Runs conversations on the loop that first used it; see `AsyncioDriver`, `TrioPortalDriver`.

    `AsyncStore` sees to it that no other loop uses it.
    """

    def __init__(
        self, protocol: StoreProtocol, make_link: Callable[[], AsyncLink], timeout: float
    ) -> None:
        self._protocol = protocol
        self._make_link = make_link
        self._timeout = timeout
        self._driver: AsyncioDriver | TrioPortalDriver | None = None

    @property
    def protocol(self) -> StoreProtocol:
        """The store's protocol; may be replaced."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: StoreProtocol) -> None:
        self._protocol = protocol
        if self._driver is not None:
            self._driver.protocol = protocol

    def run(self, conversation: Conversation[T]) -> Coroutine[Any, Any, T]:
        """Run a conversation over store protocol requests to its end."""
        return self._find().run(conversation)

    async def ask(self, request: Request[Any]) -> Any:
        """Perform one request."""
        return await self._find().ask(request)

    def at_home(self) -> Callable[[], bool]:
        """See `cancellation.at_home`."""
        return at_home()

    async def close(self) -> None:
        """Close the link, if there is one."""
        if self._driver is not None:
            await self._driver.close()

    def _find(self) -> AsyncioDriver | TrioPortalDriver:
        driver = self._driver
        if driver is None:
            kind = AsyncioDriver if on_asyncio() else TrioPortalDriver
            driver = self._driver = kind(self._protocol, self._make_link, self._timeout)

        return driver

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'not used' if self._driver is None else self._driver}>"
