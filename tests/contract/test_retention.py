"""What expires and when; what never does; `sweep`, `clear`, and the settings behind them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
from marks import ONE_STORE

import catga_store as cs
from catga_store.testing.clock import ManualClock

DAY, MS = timedelta(days=1), timedelta(milliseconds=1)
FOREVER = timedelta(days=30_000)

Opener = Callable[..., cs.Store]


def flow(flow_id: str, status: cs.FlowStatus, **fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow of that status."""
    return cs.FlowSnapshot(flow_id, state={}, status=status, **fields)


def end(store: cs.Store, correlation_id: str, outcome: cs.WaitOutcome) -> None:
    """Close a condition by hand."""
    wait = store.get_wait_condition(correlation_id)
    assert wait is not None
    wait.outcome = outcome
    store.update_wait_condition(wait)


@ONE_STORE
@pytest.mark.parametrize(
    ("status", "days"),
    [
        (cs.FlowStatus.COMPLETED, 7),
        (cs.FlowStatus.CANCELLED, 7),
        (cs.FlowStatus.FAILED, 30),
    ],
)
def test_ended_flows_expire(
    store: cs.Store, clock: ManualClock, status: cs.FlowStatus, days: int
) -> None:
    """A flow that has ended is absent from the very millisecond its retention is over."""
    store.create(flow("f", status))
    clock.advance(days * DAY - MS)
    assert store.get("f") is not None
    assert store.count_flows() == 1
    clock.advance(MS)
    assert store.get("f") is None
    assert store.count_flows() == 0


def test_retention_counts_from_the_last_write(store: cs.Store, clock: ManualClock) -> None:
    """Each write of an ended flow starts its time again; a change of status changes it."""
    store.create(flow("f", cs.FlowStatus.COMPLETED))
    clock.advance(6 * DAY)
    store.update(store.get_one("f"))
    clock.advance(6 * DAY)
    late = store.get_one("f")
    late.status = cs.FlowStatus.FAILED
    store.update(late)
    clock.advance(29 * DAY)
    store.update(store.get_one("f"))
    clock.advance(29 * DAY)
    assert store.get("f") is not None
    clock.advance(DAY)
    assert store.get("f") is None


@pytest.mark.parametrize("status", [status for status in cs.FlowStatus if not status.is_terminal])
def test_live_flows_never_expire(
    store: cs.Store, clock: ManualClock, status: cs.FlowStatus
) -> None:
    """However long it waits, a flow that has not ended is there."""
    store.create(flow("f", status, due_at=None))
    store.create(flow("g", cs.FlowStatus.COMPLETED))
    revived = store.get_one("g")
    revived.status = status
    store.update(revived)
    clock.advance(FOREVER)
    store.sweep()
    assert store.get("f") is not None
    assert store.get("g") is not None


def test_retention_is_settable(open_more: Opener, clock: ManualClock) -> None:
    """Each span is the store's; `None` keeps forever."""
    store = open_more(retention=cs.Retention(flows=DAY, failed=None, waits=2 * DAY))
    store.create(flow("done", cs.FlowStatus.COMPLETED))
    store.create(flow("failed", cs.FlowStatus.FAILED))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.complete_child("w", "a")
    clock.advance(DAY)
    assert store.get("done") is None
    assert store.get_wait_condition("w") is not None
    clock.advance(DAY)
    assert store.get_wait_condition("w") is None
    clock.advance(FOREVER)
    assert store.get("failed") is not None


def test_retention_has_the_documented_defaults() -> None:
    """Seven days, thirty days, one day; the record is frozen."""
    kept = cs.Retention()
    assert (kept.flows, kept.failed, kept.waits) == (7 * DAY, 30 * DAY, DAY)
    with pytest.raises(AttributeError):
        kept.flows = None  # type: ignore[misc]


def test_pending_conditions_never_expire(store: cs.Store, clock: ManualClock) -> None:
    """Nor do overdue ones, until they are closed."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.set_wait_condition(cs.WaitCondition("overdue", flow_ids=["a"], timeout=DAY))
    clock.advance(FOREVER)
    store.sweep()
    assert store.get_wait_condition("w") is not None
    assert store.get_wait_condition("overdue") is not None
    assert store.complete_child("w", "a").now_satisfied


@pytest.mark.parametrize("outcome", list(cs.WaitOutcome)[1:])
def test_ended_conditions_without_a_parent_expire(
    store: cs.Store, clock: ManualClock, outcome: cs.WaitOutcome
) -> None:
    """From when they ended; then their correlation id is free."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    clock.advance(DAY)
    if outcome is cs.WaitOutcome.SATISFIED:
        store.complete_child("w", "a")
    else:
        end(store, "w", outcome)

    clock.advance(DAY - MS)
    assert store.get_wait_condition("w") is not None
    assert len(store.query_wait_conditions()) == 1
    clock.advance(MS)
    assert store.get_wait_condition("w") is None
    assert store.query_wait_conditions().items == ()
    assert store.clear_wait_condition("w") is False
    assert store.complete_child("w", "a") == cs.Completion(True, False, False, None)


def test_an_expired_condition_may_be_set_afresh(store: cs.Store, clock: ManualClock) -> None:
    """`set` over an expired condition starts at version 1 without its completions."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.complete_child("w", "a")
    old = store.get_wait_condition("w")
    assert old is not None
    clock.advance(DAY)
    with pytest.raises(cs.WaitConditionNotFoundError):
        store.update_wait_condition(old)

    fresh = cs.WaitCondition("w", flow_ids=["a"])
    assert store.set_wait_condition(fresh) is False
    assert (fresh.version, fresh.created_at, fresh.outcome) == (
        1,
        clock.now,
        cs.WaitOutcome.PENDING,
    )


def test_a_condition_stays_until_its_parent_was_given_to_a_worker(
    store: cs.Store, clock: ManualClock
) -> None:
    """The retention of an ended wait with a parent begins when the parent is claimed."""
    with store.begin() as session:
        parent = flow("p", cs.FlowStatus.RUNNING)
        session.add(parent)
        session.suspend(parent, cs.WaitCondition("w", flow_ids=["a"]))

    store.complete_child("w", "a", result=1)
    clock.advance(FOREVER)
    store.sweep()
    (claimed,) = store.claim_due()
    assert claimed.wait_condition is not None
    assert claimed.wait_condition.results["a"].result == 1
    clock.advance(DAY - MS)
    assert store.get_wait_condition("w") is not None
    clock.advance(MS)
    assert store.get_wait_condition("w") is None


def test_a_condition_whose_parent_is_gone_expires_in_the_end(
    store: cs.Store, clock: ManualClock
) -> None:
    """When no parent is left to notify, a sweep starts the retention."""
    with store.begin() as session:
        for flow_id in ("gone", "done"):
            parent = flow(flow_id, cs.FlowStatus.RUNNING)
            session.add(parent)
            session.suspend(parent, cs.WaitCondition(f"w-{flow_id}", flow_ids=["a"]))

    store.delete("gone")
    ended = store.get_one("done")
    ended.status = cs.FlowStatus.COMPLETED
    store.update(ended)
    for flow_id in ("gone", "done"):
        store.complete_child(f"w-{flow_id}", "a")

    store.sweep()
    clock.advance(DAY)
    assert store.query_wait_conditions().items == ()


def test_pending_completions_expire_after_the_latest(store: cs.Store, clock: ManualClock) -> None:
    """Without a condition, completions are kept for `waits` from the latest of them."""
    store.complete_child("w", "a")
    clock.advance(DAY - MS)
    store.complete_child("w", "b")
    clock.advance(DAY - MS)
    assert store.complete_child("w", "a").duplicate
    clock.advance(MS)
    assert store.complete_child("w", "a").accepted
    assert store.set_wait_condition(cs.WaitCondition("w", flow_ids=["b", "a"])) is False
    wait = store.get_wait_condition("w")
    assert wait is not None
    assert list(wait.results) == ["a"]


def test_sweep_removes_what_has_expired(store: cs.Store, clock: ManualClock) -> None:
    """It returns how many, at most `limit`, and leaves what is live."""
    for number in range(7):
        store.create(flow(f"f-{number}", cs.FlowStatus.COMPLETED))

    store.create(flow("live", cs.FlowStatus.RUNNING))
    store.complete_child("w", "a")
    assert store.sweep() == 0
    clock.advance(7 * DAY)
    assert store.sweep(limit=3) == 3
    assert store.sweep() == 5
    assert store.sweep() == 0
    assert [summary.flow_id for summary in store.iter_flows()] == ["live"]


def test_sweep_takes_progress_with_its_flow(store: cs.Store, clock: ManualClock) -> None:
    """One flow, one expiry: progress is swept with it and does not meet a new flow."""
    store.create(flow("f", cs.FlowStatus.COMPLETED))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    clock.advance(7 * DAY)
    store.sweep()
    clock.advance(-7 * DAY)
    assert store.get("f") is None
    assert store.get_for_each_progress("f", 0) is None


def test_writes_sweep_a_few(store: cs.Store, clock: ManualClock) -> None:
    """A store that is never swept does not keep everything that has expired."""
    for number in range(5):
        store.create(flow(f"f-{number}", cs.FlowStatus.COMPLETED))

    clock.advance(7 * DAY)
    for number in range(40):
        store.create(flow(f"g-{number}", cs.FlowStatus.RUNNING))

    assert store.sweep() == 0


def test_clear_removes_everything(store: cs.Store) -> None:
    """Flows, progress, conditions, pending completions and tombstones are gone; the store still works."""
    store.create(flow("f", cs.FlowStatus.RUNNING))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"], timeout=timedelta(0)))
    store.complete_child("early", "a")
    store.set_wait_condition(cs.WaitCondition("marker", flow_ids=["a"]))
    store.clear_wait_condition("marker")
    assert store.clear() is None
    assert (store.get("f"), store.count_flows()) == (None, 0)
    assert store.list_for_each_progress("f") == {}
    assert store.get_wait_condition("w") is None
    assert store.get_timed_out_wait_conditions() == []
    assert store.claim_due() == []
    for correlation_id in ("early", "marker", "w"):
        assert store.complete_child(correlation_id, "a") == cs.Completion(True, False, False, None)

    store.create(flow("f", cs.FlowStatus.RUNNING))


@ONE_STORE
def test_now_is_the_stores_clock(store: cs.Store, clock: ManualClock) -> None:
    """In whole milliseconds, in UTC, and moved with the clock."""
    clock.advance(timedelta(microseconds=1_999))
    assert store.now() == clock.now - timedelta(microseconds=999)
    before = store.now()
    clock.advance(DAY)
    assert store.now() - before == DAY


@ONE_STORE
def test_a_store_without_a_clock_uses_the_systems(open_more: Opener) -> None:
    """`now` is aware and advances by itself."""
    store = open_more(clock=None)
    first = store.now()
    assert first.utcoffset() == timedelta(0)
    assert store.now() >= first


@pytest.mark.stores("redis-6.2", "redis-8.2")
def test_the_server_removes_ended_flows_and_no_others(store: cs.Store, store_url: str) -> None:
    """A time to live is set when a flow ends, and taken away when it is written again."""
    flow = cs.FlowSnapshot("order-1", state={})
    store.create(flow)
    with redis.Redis.from_url(store_url.partition("?")[0]) as client:
        prefix = store_url.partition("prefix=")[2].removesuffix(":")
        (key,) = client.scan_iter(f"{{{prefix}:0}}:flow:order-1")
        assert client.pttl(key) == -1
        flow.status = cs.FlowStatus.COMPLETED
        store.update(flow)
        assert client.pttl(key) > 0
        flow.status = cs.FlowStatus.RUNNING
        store.update(flow)
        assert client.pttl(key) == -1
