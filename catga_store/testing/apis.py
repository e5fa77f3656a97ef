"""Blocking, asyncio and trio stores behind one blocking interface, for tests.

A test that uses a `StoreAPI` can run against any kind of store. The methods have the names of the store's
methods. A `StoreAPI` waits for the result of an async method, and returns an async iterator as a list.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Generator
from contextlib import AbstractContextManager
from contextlib import ExitStack
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from typing import Self
from typing import TypeVar

from anyio.from_thread import BlockingPortal
from anyio.from_thread import start_blocking_portal

from catga_store.aio import AsyncBulk
from catga_store.aio import AsyncSession
from catga_store.aio import AsyncStore
from catga_store.model.flows import FlowSnapshot
from catga_store.protocol.conversation import Conversation
from catga_store.session import Session
from catga_store.store import Store

__all__ = ["AsyncAPI", "BlockingAPI", "StoreAPI"]

T = TypeVar("T")


class StoreAPI:
    """A store with blocking methods. Attributes that are not defined here are those of the store.

    `durable` is true if the records outlive `close()`; after `reopen`, they are still there.
    """

    durable: bool
    store: Any

    def session(self) -> Any:
        """Open a session with blocking methods."""
        raise NotImplementedError

    def begin(self) -> AbstractContextManager[Any]:
        """Do the same as `Store.begin`, with a session that has blocking methods."""
        raise NotImplementedError

    def transact_one(self, flow_id: str, change: Callable[[Any], T], *, attempts: int = 100) -> T:
        """Do the same as `Store.transact`, with a function that receives one flow and changes it."""
        raise NotImplementedError

    def run(self, conversation: Conversation[T]) -> T:
        """Run a conversation of store protocol requests."""
        raise NotImplementedError

    def reopen(self) -> None:
        """Close the store and open another store with the same records."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the store, and the thread of its event loop if it has one."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class BlockingAPI(StoreAPI):
    """The API of a `Store`, whose methods block anyway."""

    def __init__(self, make: Callable[[], Store], *, durable: bool = False) -> None:
        self.durable = durable
        self._make = make
        self.store: Store = make()

    def session(self) -> Session:
        return self.store.session()

    def begin(self) -> AbstractContextManager[Session]:
        return self.store.begin()

    def transact_one(self, flow_id: str, change: Callable[[Any], T], *, attempts: int = 100) -> T:
        def call(session: Session) -> T:
            return change(session.get_one(flow_id))

        return self.store.transact(call, attempts=attempts)

    def run(self, conversation: Conversation[T]) -> T:
        return self.store._run(conversation)

    def reopen(self) -> None:
        self.store.close()
        self.store = self._make()

    def close(self) -> None:
        self.store.close()


class AsyncAPI(StoreAPI):
    """The API of an `AsyncStore`, which runs on an event loop of `backend` in a separate thread."""

    def __init__(
        self, make: Callable[[], AsyncStore], *, backend: str = "asyncio", durable: bool = False
    ) -> None:
        self.durable = durable
        self._make = make
        self._stack = ExitStack()
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal(backend))
        self.store: AsyncStore = make()

    def session(self) -> _BlockingAsyncSession:
        return _BlockingAsyncSession(self._portal, self.store.session())

    def bulk(self, **selected: Any) -> _BlockingAsyncBulk:
        return _BlockingAsyncBulk(self._portal, self.store.bulk(**selected))

    @contextmanager
    def begin(self) -> Generator[_BlockingAsyncSession]:
        with self._portal.wrap_async_context_manager(self.store.begin()) as session:
            yield _BlockingAsyncSession(self._portal, session)

    def holding(self, flow: FlowSnapshot[Any], *, lease: timedelta | None = None) -> Any:
        return self._portal.wrap_async_context_manager(self.store.holding(flow, lease=lease))

    def transact_one(self, flow_id: str, change: Callable[[Any], T], *, attempts: int = 100) -> T:
        async def call(session: AsyncSession) -> T:
            return change(await session.get_one(flow_id))

        return self._portal.call(partial(self.store.transact, call, attempts=attempts))

    def run(self, conversation: Conversation[T]) -> T:
        result: T = self._portal.call(self.store._run, conversation)
        return result

    def reopen(self) -> None:
        self._portal.call(self.store.close)
        self.store = self._make()

    def close(self) -> None:
        try:
            self._portal.call(self.store.close)
        finally:
            self._stack.close()

    def __getattr__(self, name: str) -> Any:
        return _blocking(self._portal, getattr(self.store, name))


class _BlockingAsyncSession:
    """An async session with blocking methods."""

    def __init__(self, portal: BlockingPortal, session: AsyncSession) -> None:
        self._portal = portal
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return _blocking(self._portal, getattr(self._session, name))

    def __contains__(self, record: object) -> bool:
        return record in self._session


class _BlockingAsyncBulk:
    """Operations on many flows of an async store, with blocking methods."""

    def __init__(self, portal: BlockingPortal, bulk: AsyncBulk) -> None:
        self._portal = portal
        self._bulk = bulk

    def __getattr__(self, name: str) -> Any:
        return _blocking(self._portal, getattr(self._bulk, name))


def _blocking(portal: BlockingPortal, attribute: Any) -> Any:
    """Return a method as a blocking one; anything else as it is."""
    if not callable(attribute):
        return attribute

    if inspect.iscoroutinefunction(attribute):

        def awaited(*args: Any, **kwargs: Any) -> Any:
            return portal.call(partial(attribute, *args, **kwargs))

        return awaited

    if inspect.isasyncgenfunction(attribute):

        def listed(*args: Any, **kwargs: Any) -> list[Any]:
            return portal.call(_listed, attribute(*args, **kwargs))

        return listed

    return attribute


async def _listed(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]
