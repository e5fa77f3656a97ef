"""What is due or claimed, and the numbers of a store, on every store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
from marks import ONE_STORE
from paging import pages_of

import catga_store as cs
from catga_store.testing.clock import ManualClock

SECOND = timedelta(seconds=1)
STEP = timedelta(seconds=10)


@attrs.define
class Order:
    """A state."""

    n: int


def listed(store: cs.Store, **filters: Any) -> list[str]:
    """Return the ids of what is due, page by page of one; large pages and the count agree."""
    pages = pages_of(store.query_due, limit=1, **filters)
    ids = [one.flow.flow_id for page in pages for one in page]
    assert [one.flow.flow_id for one in store.query_due(limit=1000, **filters)] == ids
    assert store.count_due(**filters) == len(ids)
    return ids


def fill(store: cs.Store, clock: ManualClock) -> None:
    """Store flows that are due, claimed, under a lease that has ended, asleep and ended."""
    store.create(cs.FlowSnapshot("lost", state=Order(1)))
    store.create(cs.FlowSnapshot("held", state=Order(2)))
    store.create(cs.FlowSnapshot("plain", state={}))
    store.create(cs.FlowSnapshot("asleep", state={}, due_at=clock.now + timedelta(days=1)))
    store.create(cs.FlowSnapshot("never", state={}, due_at=None))
    store.create(cs.FlowSnapshot("ended", state={}, status=cs.FlowStatus.FAILED))
    store.claim("lost", Order, owner="w-1", lease=STEP)
    store.claim("held", Order, owner="w-2", lease=5 * STEP)
    clock.advance(2 * STEP)


def test_what_is_due_comes_before_what_is_claimed(store: cs.Store, clock: ManualClock) -> None:
    """Flows are ordered by their due time, which is the end of the lease of a claimed one."""
    fill(store, clock)
    store.create(cs.FlowSnapshot("b", state={}))
    store.create(cs.FlowSnapshot("a", state={}))
    assert listed(store) == ["plain", "lost", "a", "b", "held"]
    assert listed(store, only="due") == ["plain", "lost", "a", "b"]
    assert listed(store, only="claimed") == ["held"]
    assert listed(store, only="expired") == ["lost"]


def test_a_line_says_who_has_a_flow_and_since_when(store: cs.Store, clock: ManualClock) -> None:
    """The age is since the flow is due, or since the last write of a claimed one."""
    fill(store, clock)
    plain, lost, held = store.query_due()
    assert (plain.claimed, plain.lease_expired, plain.age) == (False, False, 2 * STEP)
    assert (lost.claimed, lost.lease_expired, lost.age) == (False, True, STEP)
    assert (held.claimed, held.lease_expired, held.age) == (True, False, 2 * STEP)
    assert (plain.flow.owner, lost.flow.owner, held.flow.owner) == (None, "w-1", "w-2")
    assert (plain.flow,) == tuple(
        one for one in store.query_flows() if one.flow_id == plain.flow.flow_id
    )


def test_what_is_due_is_filtered_by_type(store: cs.Store, clock: ManualClock) -> None:
    """A type or its name selects the flows of that type, and the empty name those without one."""
    fill(store, clock)
    assert listed(store, state_type=Order) == ["lost", "held"]
    assert listed(store, state_type="Order", only="claimed") == ["held"]
    assert listed(store, state_type="Order", only="expired") == ["lost"]
    assert listed(store, state_type="") == ["plain"]
    assert listed(store, state_type="Nothing") == []


def test_many_are_due_at_one_time(store: cs.Store, clock: ManualClock) -> None:
    """Flows of one due time are ordered by id as bytes, and none is lost between pages."""
    ids = ["ü", "z", "b", "a/1", "Z", "a", *(f"n-{number}" for number in range(30))]
    with store.begin() as session:
        for flow_id in ids:
            session.add(cs.FlowSnapshot(flow_id, state={}))

    expected = sorted(ids, key=str.encode)
    assert listed(store) == expected
    claimed = store.claim_due(limit=50, lease=STEP)
    assert len(claimed) == len(ids)
    assert listed(store, only="claimed") == expected
    clock.advance(STEP)
    assert listed(store, only="expired") == expected


def test_an_expired_flow_is_not_due(store: cs.Store, clock: ManualClock) -> None:
    """It is in no list and no number, whether it was claimed or not, and was not swept yet."""
    store.create(cs.FlowSnapshot("first", state={}, expires_at=clock.now + STEP))
    store.create(cs.FlowSnapshot("held", state={}, expires_at=clock.now + STEP))
    store.create(cs.FlowSnapshot("lost", state={}, expires_at=clock.now + STEP))
    store.claim("held", lease=5 * STEP)
    store.claim("lost", lease=SECOND)
    clock.advance(SECOND)
    store.create(cs.FlowSnapshot("stays", state={}))
    clock.advance(STEP)
    assert listed(store) == ["stays"]
    assert listed(store, only="claimed") == listed(store, only="expired") == []
    assert numbers(store) == {"CREATED": 1, "due": 1, "age": 10}


def numbers(store: cs.Store) -> dict[str, int]:
    """Return what `stats` says and is not zero, with the statuses of untyped flows."""
    stats = store.stats()
    assert stats.at == store.now()
    assert stats.total == sum(sum(one.values()) for one in stats.flows.values())
    found = {
        "due": stats.due,
        "age": 0 if stats.oldest_due_age is None else stats.oldest_due_age // SECOND,
        "claimed": stats.claimed,
        "lost": stats.expired_leases,
        "pending": stats.waits_pending,
        "overdue": stats.waits_overdue,
        "waits due": stats.waits_due,
    }
    for name, by_status in stats.flows.items():
        found |= {f"{name} {status.name}".strip(): n for status, n in by_status.items()}

    return {name: number for name, number in found.items() if number}


def test_an_empty_store_has_no_numbers(store: cs.Store) -> None:
    """Nothing is counted, and there is no oldest flow."""
    assert numbers(store) == {}
    assert store.stats().oldest_due_age is None


def test_flows_are_counted_by_type_and_status(store: cs.Store, clock: ManualClock) -> None:
    """Every change of a flow moves it from one number to another."""
    fill(store, clock)
    assert numbers(store) == {
        "Order CREATED": 2,
        "CREATED": 3,
        "FAILED": 1,
        "due": 2,
        "age": 20,
        "claimed": 1,
        "lost": 1,
    }
    with store.begin() as session:
        flow = session.get_one("plain")
        flow.status = cs.FlowStatus.RUNNING
        flow.due_at = None
        session.delete(session.get_one("never"))
        session.add(cs.FlowSnapshot("new", state=Order(3), status=cs.FlowStatus.SUSPENDED))

    assert numbers(store) == {
        "Order CREATED": 2,
        "Order SUSPENDED": 1,
        "CREATED": 1,
        "RUNNING": 1,
        "FAILED": 1,
        "due": 1,
        "age": 10,
        "claimed": 1,
        "lost": 1,
    }
    flow = store.get_one("new")
    store.delete(flow)
    assert store.delete_many(["lost", "held", "asleep", "plain", "ended"]) == 5
    assert numbers(store) == {}


def test_a_claim_that_leaves_the_due_time_is_counted(store: cs.Store, clock: ManualClock) -> None:
    """A flow may be claimed and released without a change of when it is due."""
    store.create(cs.FlowSnapshot("f", state={}, due_at=clock.now + STEP))
    flow = store.claim("f", lease=STEP)
    assert numbers(store) == {"CREATED": 1, "claimed": 1}
    flow.state = {"n": 1}
    store.update(flow)
    assert numbers(store) == {"CREATED": 1, "claimed": 1}
    store.release(flow, due_at=flow.due_at)
    assert numbers(store) == {"CREATED": 1}
    assert listed(store) == []
    clock.advance(STEP)
    assert numbers(store) == {"CREATED": 1, "due": 1}
    assert listed(store, only="expired") == []


def test_an_extended_claim_is_counted_once(store: cs.Store, clock: ManualClock) -> None:
    """It ends later, and its owner's end of it ends it."""
    store.create(cs.FlowSnapshot("f", state={}))
    flow = store.claim("f", lease=STEP)
    store.extend(flow, 3 * STEP)
    clock.advance(2 * STEP)
    assert numbers(store) == {"CREATED": 1, "claimed": 1}
    assert listed(store) == ["f"]
    clock.advance(2 * STEP)
    assert numbers(store) == {"CREATED": 1, "due": 1, "age": 10, "lost": 1}
    flow.status = cs.FlowStatus.COMPLETED
    store.update(flow)
    assert numbers(store) == {"COMPLETED": 1}


def test_ended_flows_count_until_they_expire(
    open_more: Callable[..., cs.Store], clock: ManualClock
) -> None:
    """What has expired counts no more, swept or not."""
    store = open_more(retention=cs.Retention(flows=STEP, failed=None))
    for number in range(3):
        store.create(cs.FlowSnapshot(f"f-{number}", state={}, status=cs.FlowStatus.COMPLETED))
        clock.advance(SECOND)

    store.create(cs.FlowSnapshot("failed", state={}, status=cs.FlowStatus.FAILED))
    assert numbers(store) == {"COMPLETED": 3, "FAILED": 1}
    clock.advance(8 * SECOND)
    assert numbers(store) == {"COMPLETED": 1, "FAILED": 1}
    store.sweep()
    assert numbers(store) == {"COMPLETED": 1, "FAILED": 1}


def test_a_refused_write_counts_nothing(store: cs.Store, clock: ManualClock) -> None:
    """What was not written leaves the numbers as they were, also after its flow is gone."""
    store.create(cs.FlowSnapshot("f", state={}))
    clock.advance(STEP)
    with pytest.raises(cs.FlowExistsError):
        store.create(cs.FlowSnapshot("f", state={}, status=cs.FlowStatus.RUNNING))

    stale = store.get_one("f")
    store.update(store.get_one("f"))
    stale.status = cs.FlowStatus.SUSPENDED
    with pytest.raises(cs.StaleFlowError):
        store.update(stale)

    assert numbers(store) == {"CREATED": 1, "due": 1, "age": 10}
    assert listed(store) == ["f"]
    store.delete("f")
    assert numbers(store) == {}
    assert listed(store) == []


def test_waits_are_counted(store: cs.Store, clock: ManualClock) -> None:
    """Pending and overdue ones, and those that a claimer would act upon."""
    store.create(cs.FlowSnapshot("parent", state={}, due_at=None))
    for name, timeout, parent in (
        ("open", None, "parent"),
        ("late", STEP, "parent"),
        ("lone", STEP, None),
        ("done", None, "parent"),
    ):
        store.set_wait_condition(
            cs.WaitCondition(name, flow_ids=["x"], timeout=timeout, parent_flow_id=parent)
        )

    assert numbers(store) == {"CREATED": 1, "pending": 4}
    store.complete_child("done", "x")
    store.complete_child("early", "x")
    assert numbers(store) == {"CREATED": 1, "pending": 3, "waits due": 1}
    clock.advance(STEP)
    assert numbers(store) == {"CREATED": 1, "pending": 3, "overdue": 2, "waits due": 2}
    (flow,) = store.claim_due()
    assert numbers(store) == {"CREATED": 1, "pending": 2, "overdue": 1, "claimed": 1}
    store.clear_wait_condition("open")
    store.clear_wait_condition("lone")
    store.delete(flow)
    assert numbers(store) == {}


def test_numbers_of_partitions_are_added(open_more: Callable[..., cs.Store]) -> None:
    """A store with partitions counts and lists over all of them."""
    store = open_more(partitions=4)
    ids = [f"f-{number}" for number in range(20)]
    for number, flow_id in enumerate(ids):
        store.create(cs.FlowSnapshot(flow_id, state=Order(1) if number % 2 else {}))

    assert numbers(store) == {"CREATED": 10, "Order CREATED": 10, "due": 20}
    assert listed(store) == sorted(ids)
    assert listed(store, state_type=Order) == sorted(ids[1::2])


@pytest.mark.stores("redis-8.2")
def test_names_of_types_of_any_length(store: cs.Store) -> None:
    """More pairs of type and status than one script counts, with names that look like times."""
    names = ["0", "9:", "a" * 300, "ü:1", "000000000000000", *(f"T{n}" for n in range(500))]
    made = {name: attrs.make_class("State", ["n"]) for name in names}
    with store.begin() as session:
        for name in names[:100]:
            session.add(cs.FlowSnapshot(name, state=cs.flow_state(name)(made[name])(1)))

    for start in range(100, len(names), 200):
        with store.begin() as session:
            for name in names[start : start + 200]:
                session.add(cs.FlowSnapshot(name, state=cs.flow_state(name)(made[name])(1)))

    flows = store.stats().flows
    assert flows == {name: {cs.FlowStatus.CREATED: 1} for name in names}


@pytest.mark.stores("sqlite")
def test_a_flow_that_cannot_be_read_hides_no_other(store: cs.Store, store_url: str) -> None:
    """It is a line that says so; the numbers, which read no flow, count it."""
    for name in ("a", "b", "c"):
        store.create(cs.FlowSnapshot(name, state={}))

    with sqlite3.connect(urlsplit(store_url).path[1:]) as connection:
        connection.execute("UPDATE catga_flows SET position = 7.5 WHERE id = ?", (b"b",))

    connection.close()
    lines = store.query_due().items
    assert [(one.flow.flow_id, one.flow.unreadable is None) for one in lines] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]
    assert store.count_due() == store.stats().due == 3


@ONE_STORE
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"only": "late"}, "only: expected 'due', 'claimed', 'expired' or None, got 'late'"),
        ({"state_type": 5}, "state type: expected"),
        ({"status": cs.FlowStatus.RUNNING}, "query_due has no filter 'status'"),
        ({"limit": 0}, "limit: expected an int from 1 to 1000, got 0"),
        ({"cursor": "q"}, "invalid cursor 'q'"),
    ],
)
def test_wrong_arguments_are_refused(store: cs.Store, arguments: Any, says: str) -> None:
    """Before anything is sent."""
    with pytest.raises(cs.UsageError) as raised:
        store.query_due(**arguments)

    assert says in str(raised.value)


@ONE_STORE
def test_a_cursor_belongs_to_its_filters(store: cs.Store) -> None:
    """A cursor of another listing is refused."""
    for name in ("a", "b"):
        store.create(cs.FlowSnapshot(name, state={}))

    cursor = store.query_due(limit=1).cursor
    assert cursor is not None
    with pytest.raises(cs.UsageError, match="different filters"):
        store.query_due(cursor=cursor, only="due")

    flows = store.query_flows(limit=1).cursor
    with pytest.raises(cs.UsageError, match="different filters"):
        store.query_due(cursor=flows)
