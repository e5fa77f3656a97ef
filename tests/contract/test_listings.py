"""Listings and counts: order, filters, pages, cursors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from typing import TypedDict

import attrs
import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

SECOND = timedelta(seconds=1)

Opener = Callable[..., cs.Store]


@attrs.define
class Order:
    """A state."""

    n: int


class Ticket(TypedDict):
    """Another state."""

    n: int


def ids(page: Any) -> list[str]:
    """Return the ids of a listing, in its order."""
    return [getattr(item, "flow_id", None) or item.correlation_id for item in page]


def fill(store: cs.Store, clock: ManualClock, number: int) -> list[str]:
    """Store flows, one a second; return their ids, newest first."""
    names = [f"f-{index:03}" for index in range(number)]
    for name in names:
        store.create(cs.FlowSnapshot(name, state={}, due_at=None))
        clock.advance(SECOND)

    return names[::-1]


def test_a_summary_shows_all_but_the_state(store: cs.Store, clock: ManualClock) -> None:
    """Every field of a summary is what the stored flow says."""
    store.create(cs.FlowSnapshot("o", state=Order(1), position=cs.FlowPosition((1, 2))))
    clock.advance(SECOND)
    flow = store.claim("o", Order, owner="w-1")
    flow.error = "slow"
    flow.status = cs.FlowStatus.RUNNING
    flow.attempts = 3
    flow.expires_at = clock.now + timedelta(days=1)
    store.update(flow)
    (summary,) = store.query_flows()
    assert summary == cs.FlowSummary(
        flow_id="o",
        type_name="Order",
        status=cs.FlowStatus.RUNNING,
        position=cs.FlowPosition((1, 2)),
        version=3,
        revision=flow.revision or "",
        created_at=clock.now - SECOND,
        updated_at=clock.now,
        due_at=clock.now + timedelta(seconds=30),
        expires_at=clock.now + timedelta(days=1),
        attempts=3,
        error="slow",
        owner="w-1",
    )


def test_newest_come_first_then_by_id(store: cs.Store, clock: ManualClock) -> None:
    """Equal `created_at` is ordered by id, as bytes."""
    for name in ("b", "a", "ü", "Z"):
        store.create(cs.FlowSnapshot(name, state={}))

    clock.advance(SECOND)
    store.create(cs.FlowSnapshot("c", state={}))
    store.create(cs.FlowSnapshot("old", state={}, created_at=clock.now - timedelta(days=1)))
    assert ids(store.query_flows()) == ["c", "Z", "a", "b", "ü", "old"]
    assert ids(store.query_flows(limit=3)) == ["c", "Z", "a"]


def test_an_update_does_not_move_a_flow(store: cs.Store, clock: ManualClock) -> None:
    """The order is that of creation."""
    names = fill(store, clock, 3)
    store.update(store.get_one(names[-1]))
    assert ids(store.query_flows()) == names


def test_flows_are_filtered_by_status(store: cs.Store) -> None:
    """Each status lists and counts its own flows, also after a change."""
    for status in cs.FlowStatus:
        store.create(cs.FlowSnapshot(status.name, state={}, status=status))

    for status in cs.FlowStatus:
        assert ids(store.query_flows(status=status)) == [status.name]
        assert store.count_flows(status=status) == 1

    flow = store.get_one("CREATED")
    flow.status = cs.FlowStatus.RUNNING
    store.update(flow)
    assert ids(store.query_flows(status=cs.FlowStatus.RUNNING)) == ["CREATED", "RUNNING"]
    assert store.count_flows(status=cs.FlowStatus.CREATED) == 0
    store.delete("RUNNING")
    assert ids(store.iter_flows(status=cs.FlowStatus.RUNNING)) == ["CREATED"]


def test_flows_are_filtered_by_type(store: cs.Store) -> None:
    """A type or the name it is stored under selects the same flows."""
    store.create(cs.FlowSnapshot("o", state=Order(1)))
    store.create(cs.FlowSnapshot("t", state=Ticket(n=1), state_type=Ticket))
    store.create(cs.FlowSnapshot("raw", state={"n": 1}))
    assert ids(store.query_flows(state_type=Order)) == ["o"]
    assert ids(store.query_flows(state_type="Order")) == ["o"]
    assert ids(store.query_flows(state_type=Ticket)) == ["t"]
    assert store.count_flows(state_type="Ticket") == 1
    assert ids(store.query_flows(state_type="Nobody")) == []
    assert len(store.query_flows()) == 3
    assert ids(store.query_flows(state_type=Order, status=cs.FlowStatus.RUNNING)) == []


def test_flow_that_gains_a_type_moves_between_listings(store: cs.Store) -> None:
    """Raw data that is written as a typed state is listed, counted and claimed under the type."""
    store.create(cs.FlowSnapshot("raw", state={"n": 1}))
    assert (ids(store.query_flows(state_type=Order)), store.count_flows(state_type=Order)) == (
        [],
        0,
    )
    flow: cs.FlowSnapshot[Any] = store.get_one("raw")
    flow.state = Order(2)
    store.update(flow)
    (summary,) = store.query_flows(state_type=Order)
    assert (summary.flow_id, summary.type_name, summary.version) == ("raw", "Order", 2)
    assert store.count_flows(state_type=Order) == store.count_flows() == 1
    assert ids(store.iter_flows(state_type="Order")) == ["raw"]
    assert store.claim_due(Ticket) == []
    (claimed,) = store.claim_due(Order)
    assert claimed.state == Order(2)


def test_flow_that_changes_its_type_moves_between_listings(store: cs.Store) -> None:
    """A deleted flow's id that another type takes is in the listings of that type alone."""
    for state, kind in ((Order(1), None), (Ticket(n=2), Ticket), ({"n": 3}, None)):
        store.create(cs.FlowSnapshot("f", state=state, state_type=kind))
        named = kind.__name__ if kind else type(state).__name__
        for name in ("Order", "Ticket"):
            wanted = ["f"] if name == named else []
            assert ids(store.query_flows(state_type=name)) == wanted
            assert store.count_flows(state_type=name) == len(wanted)

        assert ids(store.query_flows()) == ["f"]
        assert store.delete("f")


def test_flows_are_filtered_by_time(store: cs.Store, clock: ManualClock) -> None:
    """`created_after` is inclusive, `created_before` and `updated_before` are exclusive."""
    start = clock.now
    fill(store, clock, 5)

    def at(seconds: int) -> Any:
        return start + seconds * SECOND

    assert ids(store.query_flows(created_after=at(3))) == ["f-004", "f-003"]
    assert ids(store.query_flows(created_before=at(2))) == ["f-001", "f-000"]
    assert ids(store.query_flows(created_after=at(1), created_before=at(3))) == ["f-002", "f-001"]
    assert store.count_flows(created_after=at(1), created_before=at(3)) == 2
    store.update(store.get_one("f-000"))
    assert ids(store.query_flows(updated_before=at(2))) == ["f-001"]
    assert store.count_flows(updated_before=at(5)) == 4
    assert store.count_flows(updated_before=at(6)) == 5


def test_flows_are_filtered_by_what_their_heads_say(store: cs.Store, clock: ManualClock) -> None:
    """Owner, error and attempts; a flow that matches is found among many that do not."""
    names = fill(store, clock, 40)
    for name in names:
        flow = store.claim(name, owner="w-1", lease=SECOND)
        flow.error = "100% of it: \U0001f98a\x00 Broke"
        store.update(flow)
        store.release(flow, due_at=None)

    late = clock.now
    clock.advance(SECOND)
    for name, owner in ((names[30], "w-2"), (names[3], "w-2"), (names[0], "w-3")):
        store.claim(name, owner=owner, lease=SECOND)

    clock.advance(SECOND)
    store.claim(names[3], owner="w-2")
    first = store.get_one(names[0])
    first.error = "broke"
    store.update(first)
    assert ids(store.query_flows(owner="w-2")) == [names[3], names[30]]
    assert ids(store.query_flows(owner="w-3", limit=1)) == [names[0]]
    assert ids(store.query_flows(owner="w-1")) == []
    assert ids(store.query_flows(attempts_at_least=3)) == [names[3]]
    assert ids(store.query_flows(attempts_at_least=2, limit=3)) == [names[0], names[3], names[30]]
    assert store.count_flows(attempts_at_least=1) == 40
    assert ids(store.query_flows(error_contains="broke")) == [names[0]]
    assert store.count_flows(error_contains="% of it: \U0001f98a\x00 B") == 39
    assert store.count_flows(error_contains="%") == 39
    assert ids(store.query_flows(updated_after=clock.now)) == [names[0], names[3]]
    assert store.count_flows(updated_after=late + SECOND, owner="w-2") == 2
    page = store.query_flows(owner="w-2", limit=1)
    assert ids(page) == [names[3]]
    assert ids(store.query_flows(owner="w-2", limit=1, cursor=page.cursor)) == [names[30]]
    prefixed = {"id_prefix": "f-0", "attempts_at_least": 2}
    assert ids(store.query_flows(**prefixed, limit=2)) == [names[30], names[3]]  # type: ignore[arg-type]
    assert store.count_flows(**prefixed) == 3  # type: ignore[arg-type]


def test_pages_hold_together(store: cs.Store, clock: ManualClock) -> None:
    """Page after page each flow comes once, in order; the last page has no cursor."""
    names = fill(store, clock, 25)
    seen: list[str] = []
    cursor = None
    sizes = []
    while True:
        page = store.query_flows(limit=10, cursor=cursor)
        sizes.append(len(page))
        seen += ids(page)
        assert [item.flow_id for item in page] == [item.flow_id for item in page.items]
        cursor = page.cursor
        if cursor is None:
            break

    assert seen == names
    assert sizes == [10, 10, 5]


def test_equal_times_hold_together(store: cs.Store) -> None:
    """Flows of one millisecond are split over pages without loss."""
    with store.begin() as session:
        for number in range(30):
            session.add(cs.FlowSnapshot(f"f-{number:02}", state={}))

    seen: list[str] = []
    cursor = None
    for _ in range(40):
        page = store.query_flows(limit=1, cursor=cursor)
        seen += ids(page)
        cursor = page.cursor
        if cursor is None:
            break

    assert seen == [f"f-{number:02}" for number in range(30)]


def test_a_flow_that_matches_throughout_appears_once(store: cs.Store, clock: ManualClock) -> None:
    """Flows that come, go and change between pages disturb no other."""
    names = fill(store, clock, 20)
    page = store.query_flows(limit=5)
    seen = ids(page)
    turn = 0
    while page.cursor is not None:
        store.create(cs.FlowSnapshot(f"new-{turn}", state={}))
        store.create(
            cs.FlowSnapshot(f"old-{turn}", state={}, created_at=clock.now - timedelta(days=1))
        )
        store.delete(seen[-1])
        store.update(store.get_one(names[turn]))
        turn += 1
        page = store.query_flows(limit=5, cursor=page.cursor)
        seen += ids(page)

    assert [name for name in seen if name in names] == names
    assert len(seen) == len(set(seen))


def test_iter_flows_returns_everything(store: cs.Store, clock: ManualClock) -> None:
    """Beyond one page, with the same filters as a query."""
    with store.begin() as session:
        for number in range(150):
            session.add(cs.FlowSnapshot(f"f-{number:03}", state={}))

    assert ids(store.iter_flows()) == [f"f-{number:03}" for number in range(150)]
    assert ids(store.iter_flows(status=cs.FlowStatus.RUNNING)) == []
    assert len(list(store.iter_flows(created_before=clock.now + SECOND))) == 150
    assert store.count_flows() == 150


def test_a_cursor_belongs_to_its_filters(store: cs.Store, clock: ManualClock) -> None:
    """With other filters it is a usage error; another limit is not another filter."""
    fill(store, clock, 5)
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.set_wait_condition(cs.WaitCondition("v", flow_ids=["a"]))
    cursor = store.query_flows(limit=2).cursor
    assert cursor is not None
    assert len(store.query_flows(limit=1000, cursor=cursor)) == 3
    for filters in (
        {"status": cs.FlowStatus.CREATED},
        {"state_type": "Order"},
        {"created_after": clock.now},
        {"updated_before": clock.now},
        {"updated_after": clock.now},
        {"owner": "w"},
    ):
        with pytest.raises(cs.UsageError, match="listing with different filters"):
            store.query_flows(cursor=cursor, **filters)  # type: ignore[arg-type]

    with pytest.raises(cs.UsageError, match="listing with different filters"):
        store.query_wait_conditions(cursor=cursor)

    waits = store.query_wait_conditions(limit=1)
    with pytest.raises(cs.UsageError, match="listing with different filters"):
        store.query_wait_conditions(cursor=waits.cursor, outcome=cs.WaitOutcome.PENDING)


@pytest.mark.parametrize(
    "cursor", ["", "x", "!!!", "bm90IGpzb24=", "W10=", "NQ==", "bnVsbA==", "ü", "\ud800", 5, b"x"]
)
def test_an_invalid_cursor_is_refused(store: cs.Store, cursor: Any) -> None:
    """Text that no page gave is a usage error, for flows and for conditions."""
    for query in (store.query_flows, store.query_wait_conditions):
        with pytest.raises(cs.UsageError, match="invalid cursor"):
            query(cursor=cursor)


def test_a_page_has_1_to_1000_entries(store: cs.Store) -> None:
    """Limits outside are refused, the bounds are served."""
    store.create(cs.FlowSnapshot("f", state={}))
    for limit in (1, 1000):
        assert len(store.query_flows(limit=limit)) == 1

    for limit in (0, -1, 1001, 1.5, "5", True, None):
        for query in (store.query_flows, store.query_wait_conditions, store.claim_due):
            with pytest.raises(cs.UsageError, match="limit: expected an int from 1 to 1000"):
                query(limit=limit)  # type: ignore[operator]


def test_pages_are_merged_across_partitions(open_more: Opener, clock: ManualClock) -> None:
    """With partitions the order and the counts are the same."""
    store = open_more(partitions=4)
    names = fill(store, clock, 30)
    assert ids(store.iter_flows()) == names
    page = store.query_flows(limit=7)
    assert ids(page) == names[:7]
    assert ids(store.query_flows(limit=7, cursor=page.cursor)) == names[7:14]
    assert store.count_flows() == 30


# --- wait conditions ----------------------------------------------------------------------------


def test_conditions_are_listed(store: cs.Store, clock: ManualClock) -> None:
    """Newest first, ended ones included, with their completions; cleared ones not."""
    for number, parent in enumerate(["p", "q", "p", None]):
        store.set_wait_condition(
            cs.WaitCondition(f"w-{number}", flow_ids=["a", "b"], parent_flow_id=parent)
        )
        clock.advance(SECOND)

    store.complete_child("w-0", "a", result=1)
    store.complete_child("w-1", "a")
    store.complete_child("w-1", "b")
    store.complete_child("early", "a")
    store.clear_wait_condition("w-3")
    assert ids(store.query_wait_conditions()) == ["w-2", "w-1", "w-0"]
    assert ids(store.query_wait_conditions(outcome=cs.WaitOutcome.SATISFIED)) == ["w-1"]
    assert ids(store.query_wait_conditions(outcome=cs.WaitOutcome.PENDING)) == ["w-2", "w-0"]
    assert ids(store.query_wait_conditions(parent_flow_id="p")) == ["w-2", "w-0"]
    assert (
        ids(store.query_wait_conditions(parent_flow_id="p", outcome=cs.WaitOutcome.TIMED_OUT)) == []
    )
    (_, _, first) = store.query_wait_conditions()
    assert dict(first.results) == {"a": cs.ChildResult(True, 1)}
    first.timeout = SECOND
    store.update_wait_condition(first)
    assert first.version == 2


def test_pages_of_conditions_hold_together(store: cs.Store, clock: ManualClock) -> None:
    """Page after page each condition comes once, and `iter_wait_conditions` returns them all."""
    names = [f"w-{number:03}" for number in range(120)]
    for start in range(0, 120, 60):
        with store.begin() as session:
            for name in names[start : start + 60]:
                session.add(cs.WaitCondition(name, flow_ids=["a"]))

        clock.advance(-SECOND)

    assert ids(store.iter_wait_conditions()) == names
    page = store.query_wait_conditions(limit=50)
    following = store.query_wait_conditions(limit=50, cursor=page.cursor)
    assert ids(page) + ids(following) == names[:100]
    assert ids(store.iter_wait_conditions(outcome=cs.WaitOutcome.CANCELLED)) == []


def test_bounds_are_exact_to_the_millisecond(store: cs.Store, clock: ManualClock) -> None:
    """A flow of the millisecond before is not in, nor one of the millisecond after."""
    moments = []
    for name in "abc":
        moments.append(clock.now)
        store.create(cs.FlowSnapshot(name, state={}))
        clock.advance(timedelta(milliseconds=1))

    _, middle, _ = moments
    for after, before in (("created_after", "created_before"), ("updated_after", "updated_before")):
        for bounds, names in (({after: middle}, {"b", "c"}), ({before: middle}, {"a"})):
            filters: Any = bounds
            assert {flow.flow_id for flow in store.iter_flows(**filters)} == names
            assert store.count_flows(**filters) == len(names)
