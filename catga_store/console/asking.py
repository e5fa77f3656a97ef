"""A store as one whose operations are awaited: an async store as it is, a blocking one by threads."""

from __future__ import annotations

from functools import partial
from typing import Any
from typing import cast

from anyio import CapacityLimiter
from anyio import to_thread

from catga_store.aio import AsyncStore
from catga_store.errors import UsageError
from catga_store.protocol.masking import shown
from catga_store.store import Store

__all__ = ["MOST_WATCHED", "awaitable"]

MOST_WATCHED = 64
"""How many threads may wait for changes of flows; further pages wait for one of them."""


def awaitable(store: Store | AsyncStore) -> AsyncStore:
    """Return a store that has the operations of an `AsyncStore` which the console calls."""
    if isinstance(store, AsyncStore):
        return store

    given: object = store
    if not isinstance(given, Store):
        message = f"store: expected a Store or an AsyncStore, got {shown(given)}"
        raise UsageError(message)

    return cast("AsyncStore", _InThreads(given))


class _InThreads:
    """Calls each operation of a blocking store in a thread."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._watching: CapacityLimiter | None = None

    def __getattr__(self, name: str) -> Any:
        operation: Any = getattr(self._target, name)
        if name in ("now", "_context"):  # these ask the store for nothing
            return operation

        if name == "bulk":  # asks for nothing; the operations of what it returns do

            def select(**selection: Any) -> _InThreads:
                return _InThreads(operation(**selection))

            return select

        async def call(*args: Any, **kwargs: Any) -> Any:
            limiter = None
            if name == "watch":  # its threads are not those of the other operations
                if self._watching is None:
                    self._watching = CapacityLimiter(MOST_WATCHED)

                limiter = self._watching

            return await to_thread.run_sync(
                partial(operation, *args, **kwargs),
                abandon_on_cancel=limiter is not None,
                limiter=limiter,
            )

        return call

    def __repr__(self) -> str:
        return repr(self._target)
