"""Claims: leases that end by the clock, fences that do not, `claim_due`, `claim`, `extend`, `release`.

One file, and long: what begins, renews, ends and fences a claim is read together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from datetime import timedelta
from typing import Any

import attrs
import pytest

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Due
from catga_store.testing.clock import ManualClock

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
LEASE = timedelta(seconds=30)

Opener = Callable[..., cs.Store]
Flow = cs.FlowSnapshot[dict[str, Any]]


@attrs.define
class Order:
    """A state."""

    n: int


@attrs.define
class Other:
    """Another state, which the data of `Order` does not fit."""

    text: str


def new(flow_id: str = "f", **fields: Any) -> Flow:
    """Make a flow with plain JSON data as its state."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, **fields)


def due(store: cs.Store, **options: Any) -> list[str]:
    """Claim what is due and answer the ids."""
    return sorted(flow.flow_id for flow in store.claim_due(limit=50, **options))


@pytest.fixture
def claimed(store: cs.Store) -> Flow:
    """Claim the only flow, for 30 seconds."""
    store.create(new())
    (flow,) = store.claim_due(owner="w-1", lease=LEASE)
    return flow


# --- claim_due ----------------------------------------------------------------------------------


def test_a_claim_is_one_write(store: cs.Store, clock: ManualClock) -> None:
    """It sets the owner, moves `due_at` to the end of the lease, adds 1 to attempts and version."""
    store.create(new())
    clock.advance(SECOND)
    (flow,) = store.claim_due(lease=LEASE, owner="w-1")
    for one in (flow, store.get_one("f")):
        assert (one.owner, one.due_at) == ("w-1", clock.now + LEASE)
        assert (one.attempts, one.version) == (1, 2)
        assert (one.state, one.updated_at) == ({"n": 0}, clock.now)
        assert one.revision == flow.revision


def test_nothing_due_is_nothing_claimed(store: cs.Store) -> None:
    """An empty store, and one whose flows are not due, answer an empty list."""
    assert store.claim_due() == []
    store.create(new(due_at=None))
    assert store.claim_due(limit=1000) == []


def test_claim_due_returns_up_to_its_limit(store: cs.Store) -> None:
    """One by default; each flow once, nearly oldest first."""
    with store.begin() as session:
        for number in range(40):
            session.add(new(f"f-{number:02}"))

    (first,) = store.claim_due()
    assert first.flow_id in {f"f-{number:02}" for number in range(40)}
    ten = store.claim_due(limit=10)
    rest = store.claim_due(limit=100)
    ids = [flow.flow_id for flow in (first, *ten, *rest)]
    assert (len(ten), len(rest)) == (10, 29)
    assert len(set(ids)) == 40
    assert store.claim_due(limit=100) == []


def test_the_oldest_are_claimed_first(store: cs.Store, clock: ManualClock) -> None:
    """What is due later than a handful of others is not claimed before them."""
    for number in range(60):
        store.create(new(f"f-{number:02}"))
        clock.advance(SECOND)

    early = {flow.flow_id for _ in range(3) for flow in store.claim_due(limit=4)}
    assert len(early) == 12
    assert max(early) <= "f-31"


def test_no_other_worker_gets_a_claimed_flow(store: cs.Store, clock: ManualClock) -> None:
    """A flow is not due until the lease has ended; then it is, to the millisecond."""
    store.create(new())
    store.claim_due(lease=LEASE)
    clock.advance(LEASE - timedelta(milliseconds=1))
    assert store.claim_due() == []
    clock.advance(timedelta(milliseconds=1))
    (again,) = store.claim_due(owner="w-2")
    assert (again.owner, again.attempts, again.version) == ("w-2", 2, 3)


def test_a_claim_is_respected_by_every_store(open_more: Opener) -> None:
    """Workers with stores of their own share no flow, and each has an owner name of its own."""
    one, other = open_more(), open_more()
    with one.begin() as session:
        for number in range(20):
            session.add(new(f"f-{number}"))

    mine, yours = one.claim_due(limit=12), other.claim_due(limit=12)
    assert len({flow.flow_id for flow in (*mine, *yours)}) == len(mine) + len(yours) == 20
    owners = {flow.owner for flow in (*mine, *yours)}
    assert len(owners) == 2
    assert None not in owners


def test_a_store_has_a_default_owner(open_more: Opener) -> None:
    """`owner` names the worker; a claim may name another."""
    store = open_more(owner="worker-7")
    store.create(new("a"))
    store.create(new("b"))
    assert store.claim("a").owner == "worker-7"
    assert store.claim("b", owner="thread-2").owner == "thread-2"


def test_a_type_limits_what_is_claimed(store: cs.Store) -> None:
    """With a type, flows of that type and untyped ones are claimed, typed; others stay due."""
    store.create(cs.FlowSnapshot("order", state=Order(1)))
    store.create(cs.FlowSnapshot("other", state=Other("x")))
    store.create(new("raw"))
    found = {flow.flow_id: flow.state for flow in store.claim_due(Order, limit=9)}
    assert found == {"order": Order(1), "raw": Order(0)}
    assert store.claim_due(limit=9) == [], "without a type, only untyped flows"
    assert [flow.state for flow in store.claim_due("Other", limit=9)] == [{"text": "x"}]


def test_several_types_are_claimed_at_once(store: cs.Store) -> None:
    """Each flow has the state of its own type; a name gives raw data; untyped flows stay due."""
    store.create(cs.FlowSnapshot("order", state=Order(1)))
    store.create(cs.FlowSnapshot("other", state=Other("x")))
    store.create(new("raw"))
    found = {flow.flow_id: flow.state for flow in store.claim_due([Order, "Other"], limit=9)}
    assert found == {"order": Order(1), "other": {"text": "x"}}
    assert [flow.flow_id for flow in store.claim_due(cs.RAW, limit=9)] == ["raw"]
    with pytest.raises(cs.UsageError, match="at least one type"):
        store.claim_due([])


def test_raw_claims_flows_of_any_type(store: cs.Store) -> None:
    """Their states are raw data."""
    store.create(cs.FlowSnapshot("order", state=Order(1)))
    store.create(new("raw"))
    found = {flow.flow_id: flow.state for flow in store.claim_due(cs.RAW, limit=9)}
    assert found == {"order": {"n": 1}, "raw": {"n": 0}}


def test_claim_of_a_typed_flow_needs_its_type(store: cs.Store) -> None:
    """Its type, its stored name or `RAW`; otherwise it is refused and nothing is claimed."""
    store.create(cs.FlowSnapshot("order", state=Order(1)))
    for wanted in (None, "Other", (Other, "More")):
        with pytest.raises(cs.StateTypeError, match="'Order'") as caught:
            store.claim("order", wanted)

        assert caught.value.actual == "Order"
        assert (caught.value.expected is None) is (wanted is None)

    assert store.get_one("order").owner is None
    assert store.claim("order", "Order", lease=SECOND, owner="w-1").state == {"n": 1}


def test_what_cannot_be_decoded_is_put_off(
    store: cs.Store, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, skipped and looked at again after one lease; nothing of it is written."""
    store.create(cs.FlowSnapshot("bad", state={"n": "no number"}))
    store.create(new("good"))
    with caplog.at_level(logging.WARNING, logger="catga_store"):
        found = store.claim_due(Order, limit=9, lease=LEASE)

    assert [flow.flow_id for flow in found] == ["good"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "flow 'bad' is due but cannot be read" in caplog.text
    bad = store.get_one("bad")
    assert (bad.version, bad.attempts, bad.owner) == (1, 0, None)
    assert bad.due_at == clock.now + LEASE
    caplog.clear()
    assert due(store) == []
    assert caplog.records == []
    clock.advance(LEASE)
    assert due(store) == ["bad", "good"]


@pytest.mark.parametrize("number", [40, 150])
def test_many_that_cannot_be_decoded_do_not_hide_one_that_can(
    store: cs.Store, clock: ManualClock, number: int
) -> None:
    """Older unreadable flows do not stand in the way of a younger one, however many they are."""
    with store.begin() as session:
        for place in range(number):
            session.add(cs.FlowSnapshot(f"bad-{place}", state={"n": "no number"}))

    clock.advance(SECOND)
    store.create(new("good"))
    assert [flow.flow_id for flow in store.claim_due(Order, limit=1)] == ["good"]


def test_a_wait_of_an_unreadable_parent_is_put_off(store: cs.Store, clock: ManualClock) -> None:
    """A parent that cannot be decoded is offered again after one lease, its wait not forgotten."""
    with store.begin() as session:
        flow = cs.FlowSnapshot("bad", state={"n": "no number"})
        session.add(flow)
        session.suspend(flow, cs.WaitCondition("w", flow_ids=["a"], timeout=MINUTE))

    clock.advance(MINUTE)
    assert store.claim_due(Order, lease=LEASE) == []
    assert store.claim_due(lease=LEASE) == []
    clock.advance(LEASE)
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is cs.WaitOutcome.TIMED_OUT


def test_claims_cross_partitions(open_more: Opener) -> None:
    """With several partitions every due flow is found, parents of ended waits too."""
    store = open_more(partitions=8)
    for number in range(30):
        store.create(new(f"f-{number}"))

    with store.begin() as session:
        parent = new("{p}/flow", due_at=None)
        session.add(parent)
        session.suspend(parent, cs.WaitCondition("{p}/wait", flow_ids=["a"]))

    store.complete_child("{p}/wait", "a")
    assert len(due(store)) == 31


def test_a_parent_of_very_many_ended_waits_is_claimed(store: cs.Store) -> None:
    """More ended waits of one parent than a commit has room for do not keep it from being claimed."""
    store.create(new(due_at=None))
    for start in range(0, 250, 50):
        with store.begin() as session:
            for number in range(start, start + 50):
                session.add(cs.WaitCondition(f"w-{number}", flow_ids=["a"], parent_flow_id="f"))

    for number in range(250):
        store.complete_child(f"w-{number}", "a")

    assert [flow.flow_id for flow in store.claim_due(limit=1000)] == ["f"]


def test_the_next_owner_gets_the_same_results(store: cs.Store, clock: ManualClock) -> None:
    """A sweeper lets a parent go on; the worker it is given to dies; the next one has the results."""
    store.create(new())
    with store.begin() as session:
        wait = cs.WaitCondition("w", flow_ids=["a", "b"], timeout=timedelta(seconds=5))
        session.suspend(session.get_one("f"), wait)

    store.complete_child("w", "a", result={"parcels": 1})
    clock.advance(timedelta(seconds=5))
    with store.begin() as session:
        overdue = session.get_wait_condition("w")
        assert overdue is not None
        overdue.outcome = cs.WaitOutcome.TIMED_OUT
        parent = session.get_one("f")
        parent.status, parent.due_at = cs.FlowStatus.RUNNING, store.now()

    for attempts in (1, 2):
        (flow,) = store.claim_due(lease=LEASE)
        shown = flow.wait_condition
        assert shown is not None
        assert (flow.attempts, shown.outcome) == (attempts, cs.WaitOutcome.TIMED_OUT)
        assert {child: one.result for child, one in shown.results.items()} == {"a": {"parcels": 1}}
        clock.advance(LEASE)

    with store.session() as session:
        session.add(store.claim("f"))
        assert session.dirty == (), "to be shown results is not a change"


def test_results_of_another_wait_are_not_shown(store: cs.Store, clock: ManualClock) -> None:
    """A flow that was notified of a wait is not shown the results of another one with its name."""
    store.create(new())
    with store.begin() as session:
        session.suspend(session.get_one("f"), cs.WaitCondition("w", flow_ids=["a"]))

    store.complete_child("w", "a", result=1)
    (flow,) = store.claim_due()
    flow.status = cs.FlowStatus.RUNNING
    store.update(flow)
    store.clear_wait_condition("w")
    clock.advance(LEASE)
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.complete_child("w", "a", result=2)
    (flow,) = store.claim_due()
    shown = flow.wait_condition
    assert shown is not None
    assert dict(shown.results) == {}


# --- claim --------------------------------------------------------------------------------------


def test_claim_takes_a_flow_due_or_not(store: cs.Store, clock: ManualClock) -> None:
    """A parked, a paused and a suspended flow can be claimed by id."""
    store.create(new("parked", due_at=None))
    store.create(new("paused", due_at=clock.now + MINUTE))
    store.create(new("asleep", status=cs.FlowStatus.SUSPENDED))
    for flow_id in ("parked", "paused", "asleep"):
        flow = store.claim(flow_id, lease=LEASE, owner="w-1")
        assert (flow.owner, flow.due_at) == ("w-1", clock.now + LEASE)
        assert (flow.attempts, flow.version) == (1, 2)

    assert store.claim_due() == []


def test_claim_reads_the_state_as_asked(store: cs.Store) -> None:
    """With a type the state is of that type; one that does not fit is refused and not claimed."""
    store.create(cs.FlowSnapshot("o", state=Order(3)))
    assert store.claim("o", Order).state == Order(3)
    store.create(cs.FlowSnapshot("p", state=Order(3)))
    with pytest.raises(cs.StateTypeError):
        store.claim("p", Other)

    assert (store.get_one("p").version, store.get_one("p").owner) == (1, None)


def test_a_held_flow_is_refused_at_once(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """Without a timeout `FlowClaimedError` says who has it until when; nothing is written."""
    with pytest.raises(cs.FlowClaimedError, match="flow 'f' is claimed by 'w-1' until") as caught:
        store.claim("f", owner="w-2")

    error = caught.value
    assert (error.flow_id, error.owner, error.until) == ("f", "w-1", clock.now + LEASE)
    assert store.get_one("f").revision == claimed.revision


def test_a_claim_whose_lease_has_ended_is_taken_over(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """By the clock alone: no process needs to notice that the first owner is gone."""
    clock.advance(LEASE)
    taken = store.claim("f", owner="w-2")
    assert (taken.owner, taken.attempts) == ("w-2", 2)


def test_claim_waits_for_the_others_lease_to_end(open_more: Opener) -> None:
    """Within `timeout` the claim is made as soon as the other one has ended."""
    inner = ManualClock()

    def running() -> datetime:
        return inner.advance(timedelta(seconds=10))

    store = open_more(clock=running)
    store.create(new())
    store.claim("f", owner="w-1", lease=timedelta(seconds=45))
    taken = store.claim("f", owner="w-2", timeout=MINUTE, lease=timedelta(hours=1))
    assert taken.owner == "w-2"
    assert taken.version == 3


def test_claim_that_took_longer_than_its_lease_is_lost(open_more: Opener) -> None:
    """The flow may be another worker's already, so it is not handed out; it stays due."""
    inner = ManualClock()

    def running() -> datetime:
        return inner.advance(timedelta(seconds=10))

    store = open_more(clock=running)
    store.create(new())
    with pytest.raises(cs.ClaimLostError, match="longer than the lease of 5000 ms") as caught:
        store.claim("f", owner="w-1", lease=timedelta(seconds=5))

    assert (caught.value.flow_id, caught.value.expected) == ("f", 2)
    with store.session() as session:
        with pytest.raises(cs.ClaimLostError):
            session.claim("f", owner="w-1", lease=timedelta(seconds=5))

        assert session.dirty == ()

    assert store.claim("f", owner="w-2", lease=timedelta(hours=1)).version == 4


def test_claim_gives_up_waiting(store: cs.Store, claimed: Flow) -> None:
    """When the timeout has passed the claim is refused as if there had been none."""
    with pytest.raises(cs.FlowClaimedError):
        store.claim("f", timeout=timedelta(milliseconds=20))


def test_a_terminal_flow_is_returned_unclaimed(store: cs.Store) -> None:
    """`claim` of a flow that has ended returns it as it is and writes nothing."""
    store.create(new(status=cs.FlowStatus.COMPLETED))
    flow = store.claim("f")
    assert (flow.owner, flow.version, flow.attempts) == (None, 1, 0)
    with pytest.raises(cs.UsageError, match="no claim on flow 'f': the flow was not claimed"):
        store.extend(flow)


def test_claim_of_nothing_is_not_found(store: cs.Store) -> None:
    """`FlowNotFoundError`, also with a timeout, at once."""
    with pytest.raises(cs.FlowNotFoundError, match="'nobody'"):
        store.claim("nobody", timeout=timedelta(hours=1))


# --- the fence ----------------------------------------------------------------------------------


def test_the_former_owner_is_fenced_off(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """After another claim the first owner's update raises `ClaimLostError`; nothing is written."""
    clock.advance(LEASE)
    taken = store.claim("f", owner="w-2")
    claimed.state["n"] = 99
    with pytest.raises(
        cs.ClaimLostError,
        match=r"the claim on flow 'f' was lost: .* version 2, but the store now holds version 3, owned by 'w-2'",
    ) as caught:
        store.update(claimed)

    error = caught.value
    assert isinstance(error, cs.StaleFlowError)
    assert (error.flow_id, error.expected, error.actual) == ("f", 2, 3)
    taken.state["n"] = 1
    store.update(taken)
    assert store.get_one("f").state == {"n": 1}


def test_the_former_owner_cannot_end_or_release(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """Neither `release`, `extend`, `delete` nor a session's commit passes the fence."""
    clock.advance(LEASE)
    taken = store.claim("f", owner="w-2")
    with pytest.raises(cs.ClaimLostError):
        store.release(claimed)

    with pytest.raises(cs.ClaimLostError):
        store.extend(claimed)

    with pytest.raises(cs.StaleFlowError):
        store.delete(claimed)

    with store.session() as session:
        session.add(claimed)
        session.add(new("step-done"))
        with pytest.raises(cs.ClaimLostError):
            session.commit()

    assert store.get("step-done") is None
    assert store.get_one("f").revision == taken.revision


def test_clocks_never_decide_whether_a_write_is_accepted(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """A lease that has run out, with no other claim, lets its owner continue."""
    clock.advance(100 * LEASE)
    claimed.state["n"] = 1
    store.update(claimed)
    assert (claimed.owner, claimed.due_at) == ("w-1", clock.now + LEASE)
    assert store.claim_due() == []


def test_other_writers_need_no_claim(store: cs.Store, claimed: Flow) -> None:
    """Only claims respect claims: another's update is version-checked, and then fences the owner."""
    other = store.get_one("f")
    other.error = "seen by support"
    store.update(other)
    assert other.owner == "w-1"
    assert store.claim_due() == []
    with pytest.raises(cs.ClaimLostError) as caught:
        store.update(claimed)

    assert (caught.value.expected, caught.value.actual) == (2, 3)


def test_a_deleted_flow_is_lost_to_its_owner(store: cs.Store, claimed: Flow) -> None:
    """A claimed flow that was deleted is not found, and does not come back."""
    store.delete("f")
    with pytest.raises(cs.FlowNotFoundError):
        store.update(claimed)

    with pytest.raises(cs.ClaimLostError):
        store.extend(claimed)

    assert store.get("f") is None


# --- renewing and ending ------------------------------------------------------------------------


def test_every_update_of_the_owner_renews(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """The lease begins again with each write, as long as it was when claimed."""
    for n in range(5):
        clock.advance(LEASE - SECOND)
        claimed.state["n"] = n
        store.update(claimed)
        assert claimed.due_at == clock.now + LEASE
        assert store.get_one("f").due_at == clock.now + LEASE
        assert claimed.owner == "w-1"

    assert store.claim_due() == []


def test_a_commit_through_the_session_renews(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """A claimed flow in the session is renewed by a commit of other records, and is not written."""
    clock.advance(LEASE - SECOND)
    with store.session() as session:
        session.add(claimed)
        session.add(new("child", due_at=None))
        receipt = session.commit()

        assert [key.id for key in receipt.versions] == ["child"]
        for one in (claimed, store.get_one("f")):
            assert (one.version, one.owner, one.due_at) == (2, "w-1", clock.now + LEASE)

        assert session.dirty == ()
        clock.advance(LEASE - SECOND)
        assert store.claim_due() == []
        claimed.state["n"] = 1
        session.commit()
        assert claimed.version == 3


def test_completions_renew_too(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """A commit of nothing but completions is a commit through the session."""
    clock.advance(SECOND)
    with store.session() as session:
        session.add(claimed)
        session.complete_child("w", "c")
        session.commit()

    assert store.get_one("f").due_at == clock.now + LEASE


def test_a_lost_claim_refuses_the_commit_of_anything(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """Though the flow itself is not written, a commit through its session raises and writes nothing."""
    with store.session() as session:
        session.add(claimed)
        clock.advance(LEASE)
        store.claim("f", owner="w-2")
        session.add(new("child"))
        session.complete_child("w", "c")
        with pytest.raises(cs.ClaimLostError) as caught:
            session.commit()

    assert (caught.value.expected, caught.value.actual) == (2, 3)
    assert store.get("child") is None
    assert not store.complete_child("w", "c").duplicate


def test_a_lost_claim_comes_before_other_conflicts(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """The error of a commit with several refusals is the lost claim, with all of them in it."""
    store.create(new("taken", due_at=None))
    with store.session() as session:
        session.add(new("taken"))
        session.add(claimed)
        clock.advance(LEASE)
        store.claim("f", owner="w-2")
        with pytest.raises(cs.ClaimLostError) as caught:
            session.commit()

    kinds = {type(error).__name__ for error in caught.value.conflicts}
    assert kinds == {"ClaimLostError", "FlowExistsError"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", cs.FlowStatus.COMPLETED),
        ("status", cs.FlowStatus.SUSPENDED),
        ("due_at", None),
        ("due_at", ManualClock().now + MINUTE),
    ],
)
@pytest.mark.parametrize("through", ["store", "session"])
def test_a_claim_ends_with_the_work(
    store: cs.Store, claimed: Flow, name: str, value: object, through: str
) -> None:
    """Terminal, suspended, or with another `due_at`: the flow has no owner any more."""
    setattr(claimed, name, value)
    if through == "store":
        store.update(claimed)
    else:
        with store.begin() as session:
            session.add(claimed)

    for one in (claimed, store.get_one("f")):
        assert one.owner is None
        assert one.due_at == (value if name == "due_at" else None)

    with pytest.raises(cs.UsageError, match="this object has no claim on flow 'f'"):
        store.extend(claimed)

    with pytest.raises(cs.UsageError, match="this object has no claim on flow 'f'"):
        store.release(claimed)


def test_suspend_ends_the_claim(store: cs.Store, claimed: Flow) -> None:
    """A flow that waits has no owner, and what its worker writes later is a plain update."""
    with store.begin() as session:
        session.add(claimed)
        session.suspend(claimed, cs.WaitCondition("w", flow_ids=["a"]))

    assert (claimed.owner, store.get_one("f").owner) == (None, None)
    claimed.error = "note"
    store.update(claimed)
    assert (claimed.owner, claimed.due_at) == (None, None)


def test_setting_the_same_due_at_keeps_the_claim(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """Only another `due_at` ends a claim."""
    claimed.due_at = claimed.due_at
    store.update(claimed)
    assert claimed.owner == "w-1"


def test_status_and_position_keep_the_claim(store: cs.Store, claimed: Flow) -> None:
    """A flow that is written again is still its owner's."""
    claimed.status = cs.FlowStatus.RUNNING
    claimed.position = claimed.position.advance()
    store.update(claimed)
    assert (claimed.owner, claimed.attempts) == ("w-1", 0)
    assert store.claim_due() == []


def test_refresh_keeps_a_claim(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """After another's write the owner refreshes and continues; after another's claim it cannot."""
    other = store.get_one("f")
    other.error = "note"
    store.update(other)
    with store.session() as session:
        session.add(claimed)
        session.refresh(claimed)
        assert (claimed.error, claimed.owner, claimed.version) == ("note", "w-1", 3)
        clock.advance(SECOND)
        claimed.state["n"] = 1
        session.commit()
        assert claimed.due_at == clock.now + LEASE
        clock.advance(LEASE)
        store.claim("f", owner="w-2")
        claimed.state["n"] = 2
        with pytest.raises(cs.ClaimLostError):
            session.refresh(claimed)

        assert (claimed.state, claimed.owner) == ({"n": 2}, "w-1")


# --- extend and release -------------------------------------------------------------------------


def test_extend_moves_only_the_end(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """Neither version, revision nor the object changes; the owner's next update is accepted."""
    before = claimed.due_at
    clock.advance(LEASE - SECOND)
    assert store.extend(claimed) is None
    read = store.get_one("f")
    assert (read.version, read.revision) == (2, claimed.revision)
    assert (read.due_at, read.owner) == (clock.now + LEASE, "w-1")
    assert (claimed.version, claimed.due_at) == (2, before)
    store.extend(claimed, 5 * MINUTE)
    assert store.get_one("f").due_at == clock.now + 5 * MINUTE
    clock.advance(LEASE)
    assert store.claim_due() == []
    claimed.state["n"] = 1
    store.update(claimed)
    assert claimed.version == 3


def test_extend_from_another_object_of_the_owner(store: cs.Store, claimed: Flow) -> None:
    """Beside the owner's commits: an extension between read and commit is not a conflict."""
    with store.session() as session:
        session.add(claimed)
        claimed.state["n"] = 1
        store.extend(claimed)
        session.commit()
        store.extend(claimed)
        claimed.state["n"] = 2
        session.commit()

    assert store.get_one("f").version == 4


def test_a_backlog_of_flows_does_not_keep_a_parent_waiting(
    store: cs.Store, clock: ManualClock
) -> None:
    """A parent whose condition has ended has its turn among flows that are due, however many there are."""
    with store.begin() as session:
        parent = cs.FlowSnapshot("{p}/parent", state={})
        session.add(parent)
        session.suspend(parent, cs.WaitCondition("{p}/wait", flow_ids=["child"]))

    store.complete_child("{p}/wait", "child")
    for number in range(30):
        store.create(cs.FlowSnapshot(f"f{number}", state={}))

    for _ in range(80):  # its chance is one in five each time
        if "{p}/parent" in {flow.flow_id for flow in store.claim_due(limit=5, lease=LEASE)}:
            return

        clock.advance(LEASE)

    pytest.fail("only flows were claimed")


def test_a_store_picks_at_random_which_flows_come_with_their_bodies(
    store: cs.Store, clock: ManualClock
) -> None:
    """Each has its turn, also one whose body needs another request: what is picked is what is claimed."""
    store.create(cs.FlowSnapshot("large", state={"bulk": "x" * 3_000_000}))
    for number in range(4):
        store.create(new(f"f{number}"))

    now_ms = int(clock.now.timestamp() * 1000)
    picked: set[str] = set()
    for _ in range(80):
        found = [one for one in store._run(ask(Due(now_ms, 20, bodies=2))) if one.picked]
        assert len(found) == 2
        picked |= {one.key.id for one in found}
        assert all(one.body for one in found if one.key.id != "large")

    assert picked == {"large", "f0", "f1", "f2", "f3"}


def test_extend_after_the_lease_has_ended(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """Until another worker claims the flow, the claim can still be extended."""
    clock.advance(2 * LEASE)
    store.extend(claimed)
    assert store.claim_due() == []


def test_extend_of_a_lost_claim(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """`ClaimLostError` names the flow, and the other's lease is not moved."""
    clock.advance(LEASE)
    store.claim("f", owner="w-2", lease=MINUTE)
    with pytest.raises(cs.ClaimLostError, match="the claim on flow 'f' no longer exists") as caught:
        store.extend(claimed, timedelta(hours=1))

    assert (caught.value.flow_id, caught.value.expected) == ("f", 2)
    assert store.get_one("f").due_at == clock.now + MINUTE


def test_extend_needs_a_claim(store: cs.Store) -> None:
    """A flow that was only read has no claim to extend or release."""
    store.create(new())
    flow = store.get_one("f")
    for act in (store.extend, store.release):
        with pytest.raises(cs.UsageError, match="this object has no claim on flow 'f'"):
            act(flow)


def test_release_gives_the_flow_back(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """It is due now and has no owner; the state is as it was."""
    clock.advance(SECOND)
    assert store.release(claimed) is None
    read = store.get_one("f")
    assert (read.owner, read.due_at, read.version) == (None, clock.now, 3)
    assert (read.state, read.status, read.error) == ({"n": 0}, cs.FlowStatus.CREATED, None)
    assert read.attempts == 1
    assert (claimed.state, claimed.owner) == ({"n": 0}, None)
    assert (claimed.version, claimed.revision) == (3, read.revision)
    assert [flow.attempts for flow in store.claim_due()] == [2]


@pytest.mark.parametrize("delay", [None, timedelta(0), MINUTE])
def test_release_until(
    store: cs.Store, clock: ManualClock, claimed: Flow, delay: timedelta | None
) -> None:
    """A released flow is due at the given time; `None` parks it."""
    due_at = None if delay is None else clock.now + delay
    store.release(claimed, due_at=due_at)
    assert store.get_one("f").due_at == claimed.due_at == due_at
    clock.advance(delay or timedelta(0))
    assert len(store.claim_due()) == (delay is not None)


def test_release_of_a_lost_claim(store: cs.Store, clock: ManualClock, claimed: Flow) -> None:
    """Another owner's claim is not released."""
    clock.advance(LEASE)
    taken = store.claim("f", owner="w-2")
    with pytest.raises(cs.ClaimLostError):
        store.release(claimed)

    assert store.get_one("f").owner == "w-2"
    store.update(taken)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", {"n": 5}),
        ("error", "mine"),
        ("status", cs.FlowStatus.RUNNING),
        ("position", cs.FlowPosition((1,))),
        ("attempts", 0),
        ("due_at", None),
        ("expires_at", ManualClock().now + MINUTE),
    ],
)
def test_release_of_a_changed_flow_is_refused(
    store: cs.Store, claimed: Flow, name: str, value: Any
) -> None:
    """It would drop the change: nothing is written, and the claim stays."""
    setattr(claimed, name, value)
    with pytest.raises(
        cs.UsageError, match=f"does not write \\({name}\\); to write them, set due_at .*undo them"
    ):
        store.release(claimed)

    assert (store.get_one("f").version, store.get_one("f").owner) == (2, claimed.owner)
    claimed.due_at = store.now()
    store.update(claimed)
    assert store.get_one("f").owner is None


def test_release_after_the_change_was_undone(store: cs.Store, claimed: Flow) -> None:
    """A flow that is as it was claimed is released."""
    before, claimed.error = claimed.error, "mine"
    with pytest.raises(cs.UsageError, match="undo them before you call release"):
        store.release(claimed)

    claimed.error = before
    store.release(claimed)
    assert store.get_one("f").owner is None


# --- a worker's round ---------------------------------------------------------------------------


def test_an_abandoned_flow_is_given_to_another(open_more: Opener, clock: ManualClock) -> None:
    """A worker that is silent for a lease loses its flow, which continues where it was."""
    one, other = open_more(owner="w-1"), open_more(owner="w-2")
    one.create(cs.FlowSnapshot("o", state=Order(0)))
    (mine,) = one.claim_due(Order, lease=LEASE)
    mine.state.n = 1
    mine.position = mine.position.advance()
    one.update(mine)
    mine.state.n = 2
    clock.advance(LEASE)
    (yours,) = other.claim_due(Order, lease=LEASE)
    assert (yours.state, str(yours.position), yours.owner) == (Order(1), "1", "w-2")
    assert yours.attempts == 1
    with pytest.raises(cs.ClaimLostError):
        one.update(mine)

    yours.status = cs.FlowStatus.COMPLETED
    other.update(yours)
    assert one.get_one("o", Order).state == Order(1)


def test_a_clock_that_goes_back_takes_no_claim_away(
    store: cs.Store, clock: ManualClock, claimed: Flow
) -> None:
    """Moved back, the clock lets the owner write, and lets no worker claim the flow."""
    clock.advance(-MINUTE)
    assert store.claim_due() == []
    claimed.state["n"] = 1
    store.update(claimed)
    assert store.get_one("f").state == {"n": 1}
