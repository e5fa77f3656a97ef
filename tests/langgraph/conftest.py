"""The tests of the saver for LangGraph: `tox -e langgraph` runs them.

They need langgraph, which the other environments do not install. Without it nothing here is collected, so
`pytest tests/langgraph` then fails with "no tests ran"; a module that asks for langgraph would fail too.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import catga_store as cs

collect_ignore_glob = [] if find_spec("langgraph") else ["test_*.py"]

if not collect_ignore_glob:
    from catga_store.langgraph import CatgaSaver

    @pytest.fixture
    def saver(store_url: str) -> Iterator[CatgaSaver]:
        """Return a saver on a blocking store."""
        with cs.open_store(store_url) as store:
            yield CatgaSaver(store)

    @pytest.fixture(params=["blocking", "async"])
    def api(request: pytest.FixtureRequest) -> str:
        """Run a test on a blocking store, whose calls run in threads, and on an async one."""
        name: str = request.param
        return name
