"""What `Store` and `AsyncStore` share, and how a blocking store runs a conversation."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from typing import Protocol
from typing import TypeVar

from catga_store.core.bodies import Bodies
from catga_store.core.context import Context
from catga_store.core.settings import Settings
from catga_store.errors import StoreClosedError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Watch
from catga_store.protocol.outages import OUTAGES
from catga_store.protocol.outages import without_internal_frames

__all__ = ["BaseBlockingStore", "BaseStore", "Driver", "Runner"]

T = TypeVar("T")


class BaseStore:
    """State and plain methods of a store, the same on both APIs."""

    _watch: Watch | None
    _bodies: Bodies | None
    """What encodes and decodes bodies, of a store with codecs."""
    _place = ""  # for the repr in a traceback of a store that could not be made
    _closed = False

    def __init__(self, driver: Any, settings: Settings, place: str = "") -> None:
        self._driver = driver
        self._context = Context.of(settings, f"{type(self).__name__} {place}".strip())
        self._place = place
        # Every operation reads these three: from the object, that takes a third of what it takes from the class.
        self._closed = False
        self._watch = None
        self._bodies = None if settings.codecs is None else Bodies(settings.codecs)

    def now(self) -> datetime:
        """Return the current time according to the store's clock, in whole milliseconds."""
        return self._context.now()

    def _checked(self, conversation: Conversation[T]) -> Conversation[T]:
        """The conversation to run, watched and through codecs if the store has them.

        `StoreClosedError` after `close`.
        """
        if self._closed:
            message = f"{self!r} has been closed and cannot be used; open the store again"
            raise StoreClosedError(message)

        if self._watch is not None:
            conversation = self._watch(self, conversation)

        return conversation if self._bodies is None else self._bodies.through(conversation)

    def __repr__(self) -> str:
        place = f" {self._place}" if self._place else ""
        return f"<{type(self).__name__}{place}{' closed' if self._closed else ''}>"


class Driver(Protocol):
    """Runs conversations over store protocol requests by blocking."""

    def run(self, conversation: Conversation[T], /) -> T:
        """Run a conversation to its end."""
        ...

    def close(self) -> None:
        """Close what the driver opened."""
        ...


class Runner(Protocol):
    """Runs a conversation by blocking."""

    def __call__(self, conversation: Conversation[T], /) -> T:
        """Run it to its end."""
        ...


class BaseBlockingStore(BaseStore):
    """A store whose driver blocks."""

    _driver: Driver

    def _run(self, conversation: Conversation[T]) -> T:
        # Every operation comes by here, so the common case calls nothing but the driver.
        if self._closed or self._watch is not None or self._bodies is not None:
            conversation = self._checked(conversation)

        try:
            return self._driver.run(conversation)
        except OUTAGES as error:
            raise without_internal_frames(error)  # noqa: B904  its cause stays
