"""Expired records that were not swept yet: every way to look passes over them, to the millisecond."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

MS = timedelta(milliseconds=1)
RETENTION = cs.Retention(
    flows=timedelta(minutes=10), failed=timedelta(minutes=20), waits=timedelta(minutes=5)
)
ENDED = (cs.FlowStatus.COMPLETED, cs.FlowStatus.CANCELLED, cs.FlowStatus.FAILED)

Opener = Callable[..., cs.Store]


@attrs.define
class Order:
    """A state."""

    n: int


@pytest.fixture(params=[None, 4], ids=["one partition", "four partitions"])
def store(request: pytest.FixtureRequest, open_more: Opener) -> cs.Store:
    """Open the store with short retentions; writes sweep, so the tests only read after time passed."""
    options: dict[str, Any] = {} if request.param is None else {"partitions": request.param}
    return open_more(retention=RETENTION, **options)


def listed(store: cs.Store, **filters: Any) -> list[str]:
    """Return the ids that match; whole pages, small pages and the count agree on them."""
    names = [flow.flow_id for flow in store.query_flows(limit=1000, **filters)]
    paged: list[str] = []
    page = store.query_flows(limit=2, **filters)
    while True:
        paged += [flow.flow_id for flow in page]
        if page.cursor is None:
            break

        page = store.query_flows(limit=2, cursor=page.cursor, **filters)

    assert paged == names
    assert [flow.flow_id for flow in store.iter_flows(**filters)] == names
    assert store.count_flows(**filters) == len(names)
    return sorted(names)


def test_expired_flows_are_not_listed_counted_or_read(store: cs.Store, clock: ManualClock) -> None:
    """Each listing and its count lose a flow at the millisecond at which its retention ends."""
    for number, status in enumerate(ENDED):
        store.create(cs.FlowSnapshot(f"{status.name}-typed", state=Order(number), status=status))
        store.create(cs.FlowSnapshot(f"{status.name}-raw", state={}, status=status))

    store.create(cs.FlowSnapshot("live", state=Order(9), due_at=None))
    start = clock.now
    live = [f"{status.name}-{kind}" for status in ENDED for kind in ("raw", "typed")] + ["live"]
    for end, gone in ((RETENTION.flows, ENDED[:2]), (RETENTION.failed, ENDED[2:])):
        assert end is not None
        for moment in (start + end - MS, start + end):
            clock.advance(moment - clock.now)
            if moment == start + end:
                live = [name for name in live if not name.startswith(tuple(s.name for s in gone))]

            assert listed(store) == sorted(live)
            for status in ENDED:
                assert listed(store, status=status) == sorted(
                    name for name in live if name.startswith(status.name)
                )

            typed = sorted(name for name in live if name.endswith(("typed", "live")))
            assert listed(store, state_type=Order) == typed
            assert listed(store, created_before=start + MS, created_after=start) == sorted(live)
            assert listed(store, updated_before=start + MS) == sorted(live)
            every = [f"{status.name}-{kind}" for status in ENDED for kind in ("raw", "typed")]
            there = store.get_many(every)
            assert sorted(name for name in every if there[name] is not None) == sorted(live)[:-1]


def test_expired_waits_are_not_listed_or_read(store: cs.Store, clock: ManualClock) -> None:
    """Neither by outcome nor by parent nor one by one."""
    store.set_wait_condition(cs.WaitCondition("ended", flow_ids=["x"]))
    store.set_wait_condition(cs.WaitCondition("pending", flow_ids=["x"]))
    store.complete_child("ended", "x")
    assert RETENTION.waits is not None
    clock.advance(RETENTION.waits - MS)
    assert waits(store) == ["ended", "pending"]
    assert waits(store, outcome=cs.WaitOutcome.SATISFIED) == ["ended"]
    clock.advance(MS)
    assert waits(store) == ["pending"]
    assert waits(store, outcome=cs.WaitOutcome.SATISFIED) == []
    assert store.get_wait_condition("ended") is None


def waits(store: cs.Store, **filters: Any) -> list[str]:
    """Return the ids of the conditions that match; pages agree on them."""
    names = [wait.correlation_id for wait in store.iter_wait_conditions(**filters)]
    page = store.query_wait_conditions(limit=1000, **filters)
    assert [wait.correlation_id for wait in page] == names
    return sorted(names)


def test_expired_records_are_not_copied(store: cs.Store, clock: ManualClock) -> None:
    """A copy has what can be read at its time: flows with their progress, and conditions."""
    for name, status in (("ended", cs.FlowStatus.COMPLETED), ("live", cs.FlowStatus.RUNNING)):
        store.create(cs.FlowSnapshot(name, state={}, status=status))
        store.save_for_each_progress(name, 0, cs.ForEachProgress([1]))
        store.set_wait_condition(cs.WaitCondition(name, flow_ids=["x"]))

    store.complete_child("ended", "x")
    assert RETENTION.flows is not None
    clock.advance(RETENTION.flows)
    with cs.MemoryStore(clock=clock, retention=RETENTION) as target:
        cs.copy(store, target)
        assert [flow.flow_id for flow in target.iter_flows()] == ["live"]
        assert [wait.correlation_id for wait in target.iter_wait_conditions()] == ["live"]
        assert target.get_for_each_progress("ended", 0) is None
        assert target.get_for_each_progress("live", 0) is not None


def test_sweep_removes_exactly_the_expired(store: cs.Store, clock: ManualClock) -> None:
    """One millisecond before nothing is removed; then each expired record is, and nothing else."""
    for number in range(5):
        store.create(cs.FlowSnapshot(f"e-{number}", state={}, status=cs.FlowStatus.COMPLETED))

    store.create(cs.FlowSnapshot("later", state={}, status=cs.FlowStatus.FAILED))
    assert RETENTION.flows is not None
    clock.advance(RETENTION.flows - MS)
    store.sweep()
    assert len(listed(store)) == 6
    clock.advance(MS)
    before = listed(store)
    store.sweep()
    assert listed(store) == before == ["later"]
    clock.advance(-MS)
    assert listed(store) == ["later"]
