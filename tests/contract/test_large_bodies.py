"""Bodies that no single message or value of a server holds: writes of the head leave them whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

Opener = Callable[..., cs.Store]

# Over the 1 MiB of a NATS message, and what does not compress.
TEXT = random.Random(1).randbytes(1_200_000).hex()
STATE = {"text": TEXT, "n": 1}


@pytest.fixture
def stored(store: cs.Store) -> cs.Store:
    """Store a flow with a large state."""
    store.create(cs.FlowSnapshot("f", state=STATE))
    return store


def from_another(open_more: Opener) -> Any:
    """Read the state from a store that has seen nothing of it."""
    with open_more() as other:
        flow = other.get_one("f")
        assert listed(other) == [("f", flow.version)]
        return flow.state


def listed(store: cs.Store) -> list[tuple[str, int]]:
    """Return what the listing says."""
    return [(flow.flow_id, flow.version) for flow in store.query_flows()]


def test_claims_leave_a_large_body_whole(
    stored: cs.Store, open_more: Opener, clock: ManualClock
) -> None:
    """A claim, an extension, a take-over and a release write the head alone."""
    worker, other = open_more(owner="w-1"), open_more(owner="w-2")
    (flow,) = worker.claim_due()
    assert flow.state == STATE
    assert from_another(open_more) == STATE
    worker.extend(flow)
    assert from_another(open_more) == STATE
    clock.advance(timedelta(minutes=1))
    (again,) = other.claim_due()
    assert again.state == STATE
    assert from_another(open_more) == STATE
    other.release(again)
    assert from_another(open_more) == STATE
    flow = stored.claim("f")
    assert flow.state == STATE


def test_updates_beside_a_large_body_leave_it_whole(
    stored: cs.Store, open_more: Opener, clock: ManualClock
) -> None:
    """Status, position, error and due time change; the body that is read is the one of the create."""
    flow = stored.get_one("f")
    flow.status = cs.FlowStatus.RUNNING
    flow.position = flow.position.advance()
    stored.update(flow)
    assert from_another(open_more) == STATE
    flow.error = "slow"
    flow.due_at = clock.now + timedelta(hours=1)
    stored.update(flow)
    assert from_another(open_more) == STATE
    assert stored.get_one("f").error == "slow"


def test_large_body_survives_sweeps_after_its_claim(
    stored: cs.Store, open_more: Opener, clock: ManualClock
) -> None:
    """A part that a later head still names is not removed, however old it is."""
    flow = stored.claim("f")
    stored.release(flow, due_at=None)
    for _ in range(3):
        clock.advance(timedelta(days=2))
        stored.sweep()

    assert from_another(open_more) == STATE


def test_large_body_that_is_replaced(stored: cs.Store, open_more: Opener) -> None:
    """The next body is read whole, large or small, from every store."""
    for state in ({"text": TEXT[::-1], "n": 2}, {"n": 3}, STATE):
        flow = stored.get_one("f")
        flow.state = state
        stored.update(flow)
        assert from_another(open_more) == state


def test_large_body_of_a_flow_that_is_created_again(stored: cs.Store, open_more: Opener) -> None:
    """Nothing of the body that was deleted comes back with the new flow."""
    stored.delete("f")
    stored.create(cs.FlowSnapshot("f", state={"n": 2}))
    assert from_another(open_more) == {"n": 2}
    stored.sweep()
    assert from_another(open_more) == {"n": 2}


def test_suspending_keeps_a_large_body(stored: cs.Store, open_more: Opener) -> None:
    """A wait, its end and the claim that hands the flow out leave the state as it was."""
    with stored.begin() as session:
        session.suspend(session.get_one("f"), cs.WaitCondition("w", flow_ids=["x"]))

    assert from_another(open_more) == STATE
    stored.complete_child("w", "x", result="y" * 200_000)
    (flow,) = stored.claim_due()
    assert flow.state == STATE
    assert flow.wait_condition is not None
    assert flow.wait_condition.results["x"].result == "y" * 200_000
    assert from_another(open_more) == STATE


def test_large_bodies_of_one_commit_are_told_apart(
    store: cs.Store, open_more: Opener, clock: ManualClock
) -> None:
    """Each flow is read with its own state, alone and together, in claims and copies."""
    texts = {name: name[-1] * 1_200_000 for name in ("{x}a", "{x}b")}
    with store.begin() as session:
        for name, text in texts.items():
            session.add(cs.FlowSnapshot(name, state={"text": text}))

    def states(flows: Any) -> dict[str, str]:
        return {flow.flow_id: flow.state["text"] for flow in flows}

    with open_more() as other, cs.MemoryStore(clock=clock) as copied:
        assert states(other.get_many(list(texts)).values()) == texts
        cs.copy(other, copied)
        assert states(copied.get_many(list(texts)).values()) == texts
        assert states(other.claim_due(limit=2)) == texts


def test_large_condition_and_large_state_of_one_commit_are_told_apart(
    store: cs.Store, open_more: Opener
) -> None:
    """Also in a store that counts completions first: it remembers the children of the condition."""
    children = [f"child-{number}-{'x' * 480}" for number in range(2500)]
    store.create(cs.FlowSnapshot("{x}f", state={}))
    with store.begin() as session:
        flow = session.get_one("{x}f")
        flow.state = STATE
        session.suspend(flow, cs.WaitCondition("{x}w", flow_ids=children))

    with open_more() as other:
        assert other.complete_child("{x}w", children[7]).accepted
        flow = other.get_one("{x}f")
        assert flow.state == STATE
        assert flow.wait_condition is not None
        assert set(flow.wait_condition.flow_ids) == set(children)
        flow.position = flow.position.advance()
        other.update(flow)

    assert from_another_named("{x}f", open_more) == STATE


def from_another_named(name: str, open_more: Opener) -> Any:
    """Read a state from a store that has seen nothing of it."""
    with open_more() as other:
        return other.get_one(name).state
