"""Conditions that are used again, or moved to another flow: which flow is claimed, and with which results."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

MINUTE = timedelta(minutes=1)
MS = timedelta(milliseconds=1)


def parked(store: cs.Store, *flow_ids: str) -> None:
    """Store flows that only a wait makes due."""
    for flow_id in flow_ids:
        store.create(cs.FlowSnapshot(flow_id, state={}, due_at=None))


def wait_for(parent: str | None, *children: str, **fields: Any) -> cs.WaitCondition:
    """Define the condition `w` of a flow."""
    return cs.WaitCondition("w", flow_ids=children or ("x",), parent_flow_id=parent, **fields)


def read(store: cs.Store) -> cs.WaitCondition:
    """Load the condition, which must be there."""
    wait = store.get_wait_condition("w")
    assert wait is not None
    return wait


def due(store: cs.Store) -> list[str]:
    """Claim what is due, and park it again."""
    flows = store.claim_due(limit=50)
    for flow in flows:
        store.release(flow, due_at=None)

    return sorted(flow.flow_id for flow in flows)


def move(store: cs.Store, parent: str | None, how: str) -> None:
    """Give the stored condition another parent."""
    wait = read(store)
    if how == "set":
        store.set_wait_condition(wait_for(parent, *wait.flow_ids, timeout=wait.timeout))
    else:
        wait.parent_flow_id = parent
        store.update_wait_condition(wait)


@pytest.mark.parametrize("how", ["set", "update"])
def test_pending_wait_that_moves_wakes_its_new_parent(store: cs.Store, how: str) -> None:
    """The completion wakes the flow that the condition names by then, and no other."""
    parked(store, "old", "new")
    store.set_wait_condition(wait_for("old", "x", "y"))
    store.complete_child("w", "x", result=1)
    move(store, "new", how)
    assert [wait.correlation_id for wait in store.iter_wait_conditions(parent_flow_id="new")] == [
        "w"
    ]
    assert list(store.iter_wait_conditions(parent_flow_id="old")) == []
    assert due(store) == []
    assert store.complete_child("w", "y", result=2).now_satisfied
    assert due(store) == ["new"]
    assert due(store) == []
    assert {child: one.result for child, one in read(store).results.items()} == {"x": 1, "y": 2}


@pytest.mark.parametrize("how", ["set", "update"])
def test_overdue_wait_that_moves_wakes_its_new_parent(
    store: cs.Store, clock: ManualClock, how: str
) -> None:
    """The deadline goes with the condition."""
    parked(store, "old", "new")
    store.set_wait_condition(wait_for("old", timeout=MINUTE))
    move(store, "new", how)
    clock.advance(MINUTE)
    assert due(store) == ["new"]
    assert read(store).outcome is cs.WaitOutcome.TIMED_OUT
    assert due(store) == []


def test_ended_wait_that_moves_wakes_its_new_parent(store: cs.Store) -> None:
    """A condition that ended, and whose parent is not notified yet, belongs to the flow it names."""
    parked(store, "old", "new")
    store.set_wait_condition(wait_for("old"))
    store.complete_child("w", "x")
    move(store, "new", "update")
    assert due(store) == ["new"]
    assert due(store) == []


def test_ended_wait_that_loses_its_parent_expires(store: cs.Store, clock: ManualClock) -> None:
    """No flow is claimed by it, and the retention begins."""
    parked(store, "old")
    store.set_wait_condition(wait_for("old"))
    store.complete_child("w", "x")
    move(store, None, "update")
    assert due(store) == []
    clock.advance(timedelta(days=1) - MS)
    assert read(store).outcome is cs.WaitOutcome.SATISFIED
    clock.advance(MS)
    assert store.get_wait_condition("w") is None
    assert list(store.iter_wait_conditions()) == []


def test_ended_wait_that_gains_a_parent_stays_until_it_was_claimed(
    store: cs.Store, clock: ManualClock
) -> None:
    """Its retention, which had begun, begins again when the parent is claimed."""
    parked(store, "new")
    store.set_wait_condition(wait_for(None))
    store.complete_child("w", "x")
    move(store, "new", "update")
    clock.advance(timedelta(days=2))
    store.sweep()
    assert due(store) == ["new"]
    clock.advance(timedelta(days=1) - MS)
    assert read(store).outcome is cs.WaitOutcome.SATISFIED
    clock.advance(MS)
    assert store.get_wait_condition("w") is None


def test_wait_used_again_forgets_the_first_round(store: cs.Store) -> None:
    """Cleared and set with the same children: each round has its own results, and wakes once."""
    parked(store, "parent")
    for result in (1, 2):
        store.set_wait_condition(wait_for("parent"))
        assert (read(store).version, dict(read(store).results)) == (1, {})
        assert due(store) == []
        assert store.complete_child("w", "x", result=result).now_satisfied
        assert due(store) == ["parent"]
        assert due(store) == []
        assert read(store).results["x"].result == result
        assert store.clear_wait_condition("w")


def test_suspending_on_a_wait_used_again_shows_only_its_own_results(store: cs.Store) -> None:
    """The flow that is claimed after the second round sees nothing of the first."""
    parked(store, "parent")
    for result in (1, 2):
        with store.begin() as session:
            flow = session.get_one("parent")
            session.suspend(flow, wait_for(None))

        store.complete_child("w", "x", result=result)
        (flow,) = store.claim_due()
        assert flow.wait_condition is not None
        assert {child: one.result for child, one in flow.wait_condition.results.items()} == {
            "x": result
        }
        assert flow.wait_condition.revision == read(store).revision
        store.clear_wait_condition("w")
        store.release(flow, due_at=None)


def test_wait_of_one_flow_used_again_by_another(store: cs.Store) -> None:
    """The flow that suspended on it first is not claimed for the second round."""
    parked(store, "first", "second")
    for name in ("first", "second"):
        with store.begin() as session:
            session.suspend(session.get_one(name), wait_for(None))

        if name == "first":
            store.clear_wait_condition("w")

    assert store.complete_child("w", "x").now_satisfied
    assert due(store) == ["second"]
    assert store.get_one("first").status is cs.FlowStatus.SUSPENDED


def test_object_of_a_cleared_wait_can_be_set_again(store: cs.Store) -> None:
    """It starts at version 1, with another revision and no results."""
    wait = wait_for(None)
    store.set_wait_condition(wait)
    first = wait.revision
    store.complete_child("w", "x")
    store.clear_wait_condition("w")
    assert store.set_wait_condition(wait) is False
    assert (wait.version, wait.outcome, dict(wait.results)) == (1, cs.WaitOutcome.PENDING, {})
    assert wait.revision != first


def test_expired_wait_used_again_by_another_flow(store: cs.Store, clock: ManualClock) -> None:
    """A condition that expired and was not swept leaves nothing to the one that takes its id."""
    parked(store, "old", "new")
    store.set_wait_condition(wait_for("old"))
    store.complete_child("w", "x", result=1)
    assert due(store) == ["old"]
    clock.advance(timedelta(days=1))
    store.set_wait_condition(wait_for("new"))
    assert (read(store).version, dict(read(store).results)) == (1, {})
    clock.advance(timedelta(days=3))
    store.sweep()
    assert read(store).outcome is cs.WaitOutcome.PENDING
    assert store.complete_child("w", "x", result=2).now_satisfied
    assert due(store) == ["new"]
    assert read(store).results["x"].result == 2
