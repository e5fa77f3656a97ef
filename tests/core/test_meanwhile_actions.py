"""What others write between the reading and the commit of an action, as in `test_meanwhile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import catga_store as cs
from catga_store.core import actions
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import run
from catga_store.protocol.requests import Commit
from catga_store.testing.clock import ManualClock


@pytest.fixture
def store(clock: ManualClock) -> cs.MemoryStore:
    """A store with one flow."""
    opened = cs.MemoryStore(clock=clock)
    opened.create(cs.FlowSnapshot("f", state={"n": 0}))
    return opened


def before_each_commit(
    store: cs.Store, conversation: Conversation[Any], act: Callable[[], object]
) -> Any:
    """Hold a conversation with the store, and do something before each of its commits."""

    def perform(request: Request[Any]) -> Any:
        if isinstance(request, Commit):
            act()

        return store._run(ask(request))

    return run(conversation, perform)


def write(store: cs.Store) -> None:
    """Write the flow."""
    flow = store.get_one("f")
    flow.state["n"] += 1
    store.update(flow)


def test_without_a_version_a_flow_is_read_again_after_another_write(store: cs.MemoryStore) -> None:
    """The other write stays."""
    writes = iter([write])
    conversation = actions.act_on_flow(store._context, actions.CancelFlow("by hand"), "f")
    done = before_each_commit(store, conversation, lambda: [one(store) for one in writes])
    assert (done.version, store.get_one("f").state) == (3, {"n": 1})


def test_with_a_version_the_first_conflict_is_raised(store: cs.MemoryStore) -> None:
    """Only the version that was named is changed."""
    flow = store.get_one("f")
    flow.due_at = None
    store.update(flow)
    conversation = actions.act_on_flow(store._context, actions.WakeFlow(), "f", version=2)
    with pytest.raises(cs.StaleFlowError) as refused:
        before_each_commit(store, conversation, lambda: write(store))

    assert (refused.value.expected, refused.value.actual) == (2, 3)


def test_a_flow_that_is_always_written_is_given_up(store: cs.MemoryStore) -> None:
    """After ten readings."""
    conversation = actions.act_on_flow(store._context, actions.CancelFlow("by hand"), "f")
    with pytest.raises(cs.StaleFlowError):
        before_each_commit(store, conversation, lambda: write(store))

    assert store.get_one("f").version == 11


def test_a_flow_that_is_deleted_meanwhile_is_not_found(store: cs.MemoryStore) -> None:
    """It is not written again."""
    conversation = actions.act_on_flow(store._context, actions.CancelFlow("by hand"), "f")
    with pytest.raises(cs.FlowNotFoundError):
        before_each_commit(store, conversation, lambda: store.delete("f"))
