"""The async fixtures for pytest-asyncio, which in its strict mode runs only fixtures made by it.

`plugin` registers this module where pytest-asyncio is in use. There is a fixture for each scope of an
event loop, because a store must be opened and closed on the loop of its test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any

import pytest

from catga_store.testing.plugin import open_async_flow_store

if TYPE_CHECKING:
    from catga_store.aio import AsyncStore

pytest_asyncio: Any = import_module("pytest_asyncio")  # not a dependency, also not of type checks


def _fixture(loop_scope: Any) -> Any:
    async def opened(
        request: pytest.FixtureRequest, _flow_store_place: tuple[str, dict[str, Any]]
    ) -> AsyncIterator[AsyncStore]:
        async for store in open_async_flow_store(request, _flow_store_place):
            yield store

    name = f"_asyncio_flow_store_{loop_scope}"
    return pytest_asyncio.fixture(opened, loop_scope=loop_scope, name=name)


_function = _fixture("function")
_class = _fixture("class")
_module = _fixture("module")
_package = _fixture("package")
_session = _fixture("session")
