"""A store that fails at each commit of a run in turn: what is stored stays whole, and the run can continue."""

from __future__ import annotations

from typing import Any
from typing import get_args

import pytest
from graphs import ONE_RUN
from graphs import Log
from graphs import diamond
from marks import EVERY_STORE

import catga_store as cs
from catga_store.langgraph import CatgaSaver
from catga_store.testing.faults import CommitFault
from catga_store.testing.faults import Faults

pytestmark = EVERY_STORE

THREAD: Any = {"configurable": {"thread_id": "t"}}
COMMITS = 9
"""Commits of one run, at least: five checkpoints, and the writes of four tasks."""


@pytest.mark.parametrize("after", range(COMMITS))
@pytest.mark.parametrize("kind", get_args(CommitFault))
def test_a_fault_at_each_commit(store_url: str, kind: CommitFault, after: int) -> None:
    """What was applied counts as done, what was not raises; the graph then continues to the same end."""
    faults = Faults()
    with cs.open_store(store_url) as store:
        graph = diamond(CatgaSaver(faults.attach(store)), Log)
        faults.on_commit(kind, after=after)
        failed = False
        try:
            graph.invoke({"log": ["in"]}, THREAD, durability="sync")
        except cs.StoreUnavailableError:
            failed = True

        assert not any(one.times for one in faults._armed), "the fault was not met"
        assert failed == (kind in ("unavailable", "unknown-not-applied"))
        if failed:
            state = graph.get_state(THREAD)
            graph.invoke(
                None if state.config["configurable"].get("checkpoint_id") else {"log": ["in"]},
                THREAD,
            )

        assert graph.get_state(THREAD).values["log"] == ["in", *ONE_RUN]
