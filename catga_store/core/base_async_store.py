"""How an async store runs a conversation. Only this module of `core` and `async_holding` import anyio."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Coroutine
from typing import Any
from typing import Protocol
from typing import TypeVar

from anyio.lowlevel import RunVar

from catga_store.core.base_store import BaseStore
from catga_store.core.settings import Settings
from catga_store.errors import UsageError
from catga_store.protocol.conversation import Conversation

__all__ = ["AsyncDriver", "AsyncRunner", "BaseAsyncStore"]

T = TypeVar("T")

_loop_mark: RunVar[object] = RunVar("catga_store_loop")


class AsyncDriver(Protocol):
    """Runs conversations over store protocol requests by awaiting."""

    def run(self, conversation: Conversation[T], /) -> Coroutine[Any, Any, T]:
        """Run a conversation to its end."""
        ...

    def at_home(self) -> Callable[[], bool]:
        """A cheap check for later: whether the caller is on the event loop that runs now.

        The check may return `False` where it is not cheap to tell.
        """
        ...

    async def close(self) -> None:
        """Close what the driver opened."""
        ...


class AsyncRunner(Protocol):
    """Runs a conversation by awaiting."""

    def __call__(self, conversation: Conversation[T], /) -> Coroutine[Any, Any, T]:
        """Run it to its end."""
        ...


class BaseAsyncStore(BaseStore):
    """A store whose driver awaits; it belongs to the event loop that first used it."""

    _driver: AsyncDriver

    def __init__(self, driver: AsyncDriver, settings: Settings, place: str = "") -> None:
        super().__init__(driver, settings, place)
        self._loop: object | None = None
        self._at_home: Callable[[], bool] | None = None

    def _run(self, conversation: Conversation[T]) -> Coroutine[Any, Any, T]:
        # Not a coroutine function: it returns the driver's. One more coroutine would cost each
        # operation as much as its rules do.
        if self._at_home is None or not self._at_home():
            self._check_loop()

        if self._closed or self._watch is not None or self._bodies is not None:
            conversation = self._checked(conversation)

        return self._driver.run(conversation)

    def _check_loop(self) -> None:
        try:
            mark = _loop_mark.get()
        except LookupError:
            mark = object()
            _loop_mark.set(mark)

        if self._loop is None:
            self._loop = mark
            self._at_home = self._driver.at_home()
        elif self._loop is not mark:
            message = (
                f"{self!r} belongs to a different event loop; open a separate store in each event "
                "loop"
            )
            raise UsageError(message)
