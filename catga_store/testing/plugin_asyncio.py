"""The async fixtures for pytest-asyncio, which in its strict mode runs only fixtures made by it.

`plugin` registers them where pytest-asyncio is in use. There is one for each scope of an event loop,
because a store must be opened and closed on the loop of its test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING
from typing import Any

import pytest

from catga_store.testing.plugin import open_async_flow_store

if TYPE_CHECKING:
    from catga_store.aio import AsyncStore

__all__ = ["asyncio_fixtures"]

_SCOPES = ("function", "class", "module", "package", "session")


def asyncio_fixtures() -> ModuleType:
    """Return a plugin with the fixtures `_asyncio_flow_store_<scope of the loop>`."""
    pytest_asyncio: Any = import_module(
        "pytest_asyncio"
    )  # an optional library, unknown to checkers

    plugin = ModuleType("catga_store.asyncio_fixtures")
    for scope in _SCOPES:
        name = f"_asyncio_flow_store_{scope}"
        # A function for each: pytest-asyncio keeps the scope of the loop as an attribute of it.
        setattr(plugin, name, pytest_asyncio.fixture(_opener(), loop_scope=scope, name=name))

    return plugin


def _opener() -> Any:
    async def opened(
        request: pytest.FixtureRequest, _flow_store_place: tuple[str, dict[str, Any]]
    ) -> AsyncIterator[AsyncStore]:
        async for store in open_async_flow_store(request, _flow_store_place):
            yield store

    return opened
