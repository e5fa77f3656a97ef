"""The conformance kit of LangGraph: every test of every capability, on every store, with both APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from collections.abc import Callable
from typing import Any

import pytest
from graphs import opened
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES
from langgraph.checkpoint.conformance.capabilities import DetectedCapabilities
from langgraph.checkpoint.conformance.spec.test_copy_thread import ALL_COPY_THREAD_TESTS
from langgraph.checkpoint.conformance.spec.test_delete_for_runs import ALL_DELETE_FOR_RUNS_TESTS
from langgraph.checkpoint.conformance.spec.test_delete_thread import ALL_DELETE_THREAD_TESTS
from langgraph.checkpoint.conformance.spec.test_get_tuple import ALL_GET_TUPLE_TESTS
from langgraph.checkpoint.conformance.spec.test_list import ALL_LIST_TESTS
from langgraph.checkpoint.conformance.spec.test_prune import ALL_PRUNE_TESTS
from langgraph.checkpoint.conformance.spec.test_put import ALL_PUT_TESTS
from langgraph.checkpoint.conformance.spec.test_put_writes import ALL_PUT_WRITES_TESTS
from marks import EVERY_STORE

import catga_store as cs
from catga_store.langgraph import CatgaSaver

Test = Callable[[Any], Awaitable[None]]

KIT: list[Test] = [
    *ALL_PUT_TESTS,
    *ALL_PUT_WRITES_TESTS,
    *ALL_GET_TUPLE_TESTS,
    *ALL_LIST_TESTS,
    *ALL_DELETE_THREAD_TESTS,
    *ALL_DELETE_FOR_RUNS_TESTS,
    *ALL_COPY_THREAD_TESTS,
    *ALL_PRUNE_TESTS,
]


def test_the_kit_is_whole() -> None:
    """The tests are those of all capabilities of the kit, and the saver has all of them."""
    assert len(KIT) >= 81
    assert len({test.__name__ for test in KIT}) == len(KIT)
    with cs.open_store("memory://") as store:
        assert DetectedCapabilities.from_instance(CatgaSaver(store)).detected == ALL_CAPABILITIES


@EVERY_STORE
@pytest.mark.parametrize("test", KIT, ids=lambda test: test.__name__.removeprefix("test_"))
def test_kit(store_url: str, api: str, test: Test) -> None:
    """One test of the kit."""

    async def run() -> None:
        async with opened(store_url, api) as saver:
            await test(saver)

    asyncio.run(run())
