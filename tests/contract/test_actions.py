"""What an operator does to one flow: `cancel_flow`, `retry_flow`, `wake_flow` and `release_flow`.

What is decided here is decided above the stores; the parity machine runs the same operations on each.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

LEASE = timedelta(seconds=30)
ACTIONS: dict[str, Callable[..., cs.FlowSummary]] = {
    "cancel": lambda store, flow_id, **given: store.cancel_flow(flow_id, "by hand", **given),
    "retry": lambda store, flow_id, **given: store.retry_flow(flow_id, **given),
    "wake": lambda store, flow_id, **given: store.wake_flow(flow_id, **given),
    "release": lambda store, flow_id, **given: store.release_flow(flow_id, **given),
}


@pytest.fixture
def store(clock: ManualClock) -> cs.Store:
    """An empty store."""
    return cs.MemoryStore(clock=clock, history=5)


def made(store: cs.Store, **given: Any) -> cs.FlowSnapshot[Any]:
    """Create a flow."""
    flow: cs.FlowSnapshot[Any] = cs.FlowSnapshot("f", state={"n": 1}, **given)
    store.create(flow)
    return flow


# --- every action -------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_no_flow_is_refused(store: cs.Store, action: str) -> None:
    """There must be such a flow."""
    with pytest.raises(cs.FlowNotFoundError):
        ACTIONS[action](store, "f")


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_another_version_is_refused(store: cs.Store, action: str) -> None:
    """With a version, nothing but that version is changed."""
    made(store, status=cs.FlowStatus.SUSPENDED)
    with pytest.raises(cs.StaleFlowError) as refused:
        ACTIONS[action](store, "f", version=2)

    assert (refused.value.expected, refused.value.actual) == (2, 1)
    assert store.get_one("f").version == 1


@pytest.mark.parametrize("action", ["cancel", "wake", "release"])
@pytest.mark.parametrize("status", [cs.FlowStatus.COMPLETED, cs.FlowStatus.FAILED])
def test_an_action_on_a_flow_that_has_ended_is_refused(
    store: cs.Store, action: str, status: cs.FlowStatus
) -> None:
    """The error says the status; the flow stays as it is."""
    made(store, status=status)
    with pytest.raises(cs.FlowStatusError, match=f"is {status.name}") as refused:
        ACTIONS[action](store, "f")

    assert (refused.value.status, refused.value.actual) == (status.name, 1)
    assert store.get_one("f").version == 1


@pytest.mark.parametrize("action", ["retry", "wake"])
def test_a_flow_that_a_worker_holds_is_left_alone(store: cs.Store, action: str) -> None:
    """Only cancelling and releasing take a claim away."""
    made(store)
    store.claim("f", owner="w", lease=LEASE)
    with pytest.raises(cs.FlowClaimedError):
        ACTIONS[action](store, "f")


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_writes_no_state(store: cs.Store, clock: ManualClock, action: str) -> None:
    """State, position and wait condition stay, and what was before is in the history."""
    flow = made(store, status=cs.FlowStatus.RUNNING, position=cs.FlowPosition((3,)), due_at=None)
    with store.begin() as session:
        own = session.get_one("f")
        session.suspend(own, cs.WaitCondition("w", flow_ids=["child"]))

    store.claim("f", owner="w", lease=LEASE)
    clock.advance(LEASE)
    done = ACTIONS[action](store, "f")
    flow = store.get_one("f")
    wait = flow.wait_condition
    assert (flow.state, flow.position.path, wait and wait.correlation_id) == ({"n": 1}, (3,), "w")
    assert (flow.version, flow.revision) == (done.version, done.revision)
    assert len(store.list_versions("f")) == done.version


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_that_has_nothing_to_do_writes_nothing(store: cs.Store, action: str) -> None:
    """A call again returns the flow as it is."""
    made(store)
    first = ACTIONS[action](store, "f")
    assert ACTIONS[action](store, "f") == first


# --- cancel -------------------------------------------------------------------------------------


def test_cancel_takes_the_claim_away(store: cs.Store) -> None:
    """The owner's next write is refused."""
    made(store)
    claimed = store.claim("f", owner="w")
    done = store.cancel_flow("f", "ordered twice")
    assert (done.status, done.error) == (cs.FlowStatus.CANCELLED, "ordered twice")
    assert (done.owner, done.due_at, done.attempts) == (None, None, 0)
    with pytest.raises(cs.ClaimLostError):
        store.update(claimed)


def test_a_cancelled_flow_expires_by_the_retention(clock: ManualClock) -> None:
    """As one that its worker has cancelled."""
    store = cs.MemoryStore(clock=clock, retention=cs.Retention(flows=timedelta(hours=1)))
    made(store)
    assert store.cancel_flow("f", "").expires_at == clock.now + timedelta(hours=1)
    clock.advance(timedelta(hours=1))
    assert store.get("f") is None


def test_an_expiry_that_the_user_has_set_outlasts_cancel_and_retry(
    store: cs.Store, clock: ManualClock
) -> None:
    """It stays, however often the flow ends and begins again; an unchanged flow is not written."""
    expires = clock.now + timedelta(hours=9)
    made(store, expires_at=expires)
    assert store.cancel_flow("f", "").expires_at == expires
    assert store.retry_flow("f").expires_at == expires
    with store.begin() as session:
        flow = session.get_one("f")
        assert session.dirty == ()

    flow = store.get_one("f")
    flow.status = cs.FlowStatus.COMPLETED
    store.update(flow)
    assert store.get_one("f").expires_at == expires


def test_the_expiry_of_the_retention_ends_with_a_retry(store: cs.Store) -> None:
    """A flow that runs on does not expire."""
    made(store, status=cs.FlowStatus.FAILED)
    assert store.get_one("f").expires_at is not None
    assert store.retry_flow("f").expires_at is None


def test_a_reason_that_cannot_be_stored_is_refused(store: cs.Store) -> None:
    """Before anything is sent."""
    made(store)
    for reason in (None, 5, "\ud800"):
        with pytest.raises(cs.UsageError, match="reason"):
            store.cancel_flow("f", reason)  # type: ignore[arg-type]

    with pytest.raises(cs.UsageError, match="version"):
        store.cancel_flow("f", "", version="1")  # type: ignore[arg-type]


# --- retry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [cs.FlowStatus.FAILED, cs.FlowStatus.CANCELLED])
def test_retry_lets_a_flow_run_on(store: cs.Store, status: cs.FlowStatus) -> None:
    """At the step where it ended: a worker can claim it at once."""
    made(store, status=status, error="no stock", attempts=9, position=cs.FlowPosition((2,)))
    done = store.retry_flow("f")
    assert (done.status, done.error, done.attempts) == (cs.FlowStatus.RUNNING, None, 0)
    assert [flow.position.path for flow in store.claim_due()] == [(2,)]


def test_retry_of_a_completed_flow_is_refused(store: cs.Store) -> None:
    """It has nothing left to do."""
    made(store, status=cs.FlowStatus.COMPLETED)
    with pytest.raises(cs.FlowStatusError):
        store.retry_flow("f")


def test_retry_of_a_live_flow_counts_its_attempts_again(
    store: cs.Store, clock: ManualClock
) -> None:
    """Its status stays."""
    made(store, status=cs.FlowStatus.SUSPENDED, attempts=7, error="attempt 7", due_at=cs.NOW)
    done = store.retry_flow("f")
    assert (done.status, done.attempts, done.error) == (cs.FlowStatus.SUSPENDED, 0, None)
    assert done.due_at == clock.now


# --- wake and release ---------------------------------------------------------------------------


def test_wake_makes_a_suspended_flow_due(store: cs.Store, clock: ManualClock) -> None:
    """Its wait is not touched: who claims it finds the condition pending."""
    made(store, due_at=None)
    with store.begin() as session:
        session.suspend(session.get_one("f"), cs.WaitCondition("w", flow_ids=["child"]))

    done = store.wake_flow("f")
    assert (done.status, done.due_at) == (cs.FlowStatus.SUSPENDED, clock.now)
    (flow,) = store.claim_due()
    assert flow.wait_condition is not None
    assert flow.wait_condition.outcome is cs.WaitOutcome.PENDING


def test_release_takes_a_claim_from_a_worker_that_holds_it(store: cs.Store) -> None:
    """Another worker gets the flow at once; attempts stay."""
    made(store)
    lost = store.claim("f", owner="hangs")
    done = store.release_flow("f")
    assert (done.owner, done.attempts) == (None, 1)
    assert [flow.owner for flow in store.claim_due(owner="other")] == ["other"]
    with pytest.raises(cs.ClaimLostError):
        store.update(lost)


# --- a flow that is set running again -----------------------------------------------------------


@pytest.mark.parametrize("status", [cs.FlowStatus.RUNNING, cs.FlowStatus.COMPENSATING])
def test_a_flow_that_is_set_running_again_is_due_now(
    store: cs.Store, clock: ManualClock, status: cs.FlowStatus
) -> None:
    """Unless it is told another time."""
    flow = made(store, status=cs.FlowStatus.FAILED)
    flow.status = status
    store.update(flow)
    assert flow.due_at == clock.now
    flow.status = cs.FlowStatus.COMPLETED
    store.update(flow)
    assert flow.due_at is None
    flow.status, flow.due_at = status, clock.now + LEASE
    store.update(flow)
    assert store.get_one("f").due_at == clock.now + LEASE


def test_a_flow_that_has_ended_and_is_suspended_again_is_not_due(store: cs.Store) -> None:
    """It waits."""
    flow = made(store, status=cs.FlowStatus.FAILED)
    flow.status = cs.FlowStatus.SUSPENDED
    store.update(flow)
    assert flow.due_at is None
