"""What `diagnose` and `diagnose_all` find, each in the words of its code.

Findings are decided above the stores, so most of this runs on memory.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import define
from paging import pages_of

import catga_store as cs
from catga_store.testing.clock import ManualClock
from tests.support import stuck

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


@pytest.fixture
def store(clock: ManualClock) -> cs.Store:
    """An empty store."""
    return cs.MemoryStore(clock=clock)


def codes(store: cs.Store, flow_id: str = "f", **options: Any) -> tuple[str, ...]:
    """The codes of what is found about a flow."""
    return store.diagnose(flow_id, **options).codes


def new(store: cs.Store, flow_id: str = "f", **given: Any) -> cs.FlowSnapshot[Any]:
    """Create a flow."""
    flow: cs.FlowSnapshot[Any] = cs.FlowSnapshot(flow_id, state={"n": 0}, **given)
    store.create(flow)
    return flow


@cs.flow_state("order", version=2, upcasters={1: lambda data: data})
@define
class Order:
    """A state."""

    n: int = 0


# --- flows that are well --------------------------------------------------------------------------


def test_a_flow_that_is_well_has_no_findings(store: cs.Store, clock: ManualClock) -> None:
    """New, claimed, paused, waiting, ended: each goes on by itself."""
    new(store, "new")
    new(store, "paused", due_at=clock.now + DAY)
    new(store, "held")
    store.claim("held", lease=DAY)
    new(store, "ended", status=cs.FlowStatus.COMPLETED)
    stuck.suspended(store, "waits", "child", timeout=DAY)
    stuck.suspended(store, "waits long", "approval")
    for flow_id in ("new", "paused", "held", "ended", "waits", "waits long"):
        found = store.diagnose(flow_id)
        assert (found.findings, found.severity) == ((), None), flow_id
        assert found.flow is not None

    assert store.diagnose_all(severity="info").items == ()


def test_no_flow_is_not_found(store: cs.Store) -> None:
    """There is nothing to say of it."""
    with pytest.raises(cs.FlowNotFoundError):
        store.diagnose("f")


# --- what is found ------------------------------------------------------------------------------


def test_a_lease_that_is_over(store: cs.Store, clock: ManualClock) -> None:
    """At first it may be that a worker is about to take the flow over."""
    stuck.claimed(store, clock, "f")
    clock.advance(MINUTE)
    (finding,) = store.diagnose("f").findings
    assert (finding.code, finding.severity) == ("lease_expired", "info")
    assert finding.text == "was claimed by 'worker-0', whose lease ended 1 min ago"
    clock.advance(4 * MINUTE)
    assert store.diagnose("f").severity == "warning"
    assert store.diagnose("f", late=timedelta(hours=1)).severity == "info"


def test_a_flow_that_no_worker_claims(store: cs.Store, clock: ManualClock) -> None:
    """It is due for longer than workers need."""
    new(store)
    clock.advance(2 * DAY + 3 * timedelta(hours=1))
    (finding,) = store.diagnose("f").findings
    assert (finding.code, finding.severity) == ("overdue", "warning")
    assert finding.text == "has been due for 2 d 3 h, and no worker has claimed it"


def test_a_wait_that_is_over_and_wakes_nobody(store: cs.Store, clock: ManualClock) -> None:
    """Its parent is not due itself: the condition is."""
    stuck.suspended(store, "f", "child")
    store.complete_child("{f}/wait", "child")
    assert codes(store) == ()
    clock.advance(5 * MINUTE)
    assert codes(store) == ("overdue",)


def test_many_attempts(store: cs.Store) -> None:
    """The error of the last one is shown."""
    new(store, attempts=5, error="attempt 5 of 10: no route", position=cs.FlowPosition((2, 1)))
    (finding,) = store.diagnose("f").findings
    assert (finding.code, finding.severity) == ("attempts_high", "warning")
    assert finding.text == "was attempted 5 times at 2/1: attempt 5 of 10: no route"
    assert codes(store, attempts=6) == ()


def test_a_live_flow_that_is_never_due(store: cs.Store) -> None:
    """Unless a condition will wake it."""
    new(store, due_at=None)
    (finding,) = store.diagnose("f").findings
    assert (finding.code, finding.severity) == ("never_due", "warning")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["x"], parent_flow_id="f"))
    assert codes(store) == ()
    store.complete_child("w", "x")
    assert codes(store) == ()


def test_a_suspended_flow_that_waits_for_nothing(store: cs.Store) -> None:
    """It shows no condition."""
    new(store, status=cs.FlowStatus.SUSPENDED)
    (finding,) = store.diagnose("f").findings
    assert finding.text == "is suspended but waits for nothing, so it is never due"


def test_a_wait_that_was_cleared(store: cs.Store) -> None:
    """Whichever children complete, the flow is not notified."""
    stuck.suspended(store, "f", "child")
    store.clear_wait_condition("{f}/wait")
    found = store.diagnose("f")
    assert (found.codes, found.severity) == (("wait_gone",), "problem")
    assert found.correlation_id == "{f}/wait"
    store.wake_flow("f")
    assert codes(store) == ()


def test_a_wait_that_is_now_that_of_another_flow(store: cs.Store) -> None:
    """That flow is notified."""
    stuck.suspended(store, "f", "child")
    wait = store.get_wait_condition("{f}/wait")
    assert wait is not None
    wait.parent_flow_id = "g"
    store.update_wait_condition(wait)
    assert codes(store) == ("wait_gone",)


def test_a_wait_whose_parent_was_notified(store: cs.Store) -> None:
    """A worker claimed the flow, and left it as it was."""
    stuck.suspended(store, "f", "child")
    store.complete_child("{f}/wait", "child")
    (flow,) = store.claim_due()
    store.release(flow, due_at=None)
    found = store.diagnose("f")
    assert (found.codes, found.severity) == (("never_due",), "problem")


@pytest.mark.parametrize("many", [2, 30])
def test_children_that_have_ended_without_a_report(store: cs.Store, many: int) -> None:
    """All of those that have not completed; one that lives is enough for the wait to be right."""
    children = [f"c{number}" for number in range(many)]
    for child in children[1:]:
        stuck.ended(store, child)

    new(store, "c0", due_at=None)
    stuck.suspended(store, "f", *children)
    assert codes(store) == ()
    store.complete_child("{f}/wait", "c0")
    found = store.diagnose("f")
    assert (found.codes, found.severity) == (("children_ended",), "problem")
    assert "ended without a report" in found.findings[0].text
    for child in children[1:-1]:
        store.complete_child("{f}/wait", child)

    assert f"1 child that has ended without a report: {children[-1]!r}" in (
        store.diagnose("f").findings[0].text
    )


def test_children_that_have_ended_before_a_deadline(store: cs.Store) -> None:
    """The deadline wakes the flow, later."""
    stuck.ended(store, "c")
    stuck.suspended(store, "f", "c", timeout=DAY)
    assert store.diagnose("f").severity == "warning"


def test_one_child_that_has_ended_is_enough_for_any(store: cs.Store) -> None:
    """The others may live."""
    stuck.ended(store, "c1")
    new(store, "c2")
    with store.begin() as session:
        flow = cs.FlowSnapshot("f", state={})
        session.add(flow)
        session.suspend(
            flow,
            cs.WaitCondition("w", flow_ids=["c1", "c2"], wait_type=cs.WaitType.WHEN_ANY),
        )

    assert codes(store) == ("children_ended",)


def test_children_that_are_no_flows_may_still_report(store: cs.Store, clock: ManualClock) -> None:
    """Approvals and webhooks; a wait for them is only found if it is old and has no deadline."""
    stuck.suspended(store, "f", "approval")
    assert codes(store) == ()
    clock.advance(DAY)
    (finding,) = store.diagnose("f").findings
    assert (finding.code, finding.severity) == ("no_deadline", "warning")
    assert codes(store, idle=2 * DAY) == ()
    stuck.suspended(store, "g", "approval", timeout=9 * DAY)
    clock.advance(DAY)
    assert codes(store, "g") == ()


def test_status_and_due_time_that_disagree(store: cs.Store, clock: ManualClock) -> None:
    """As another program may have written them."""
    body = b'{"layout":1,"type":"","type_version":1,"schema":"","wait":null,"state":{}}'
    stuck.put_raw(store, "due", body, status=4)
    stuck.put_raw(store, "claimed", body, owner="w", claim="x", due_ms=None)
    for flow_id in ("due", "claimed"):
        found = store.diagnose(flow_id)
        assert (found.codes, found.severity) == (("due_disagrees",), "problem")

    assert {one.flow_id for one in store.diagnose_all()} == {"due", "claimed"}


def test_a_flow_of_a_later_release(store: cs.Store) -> None:
    """It is not damaged."""
    stuck.put_raw(store, "f", stuck.LATER_LAYOUT)
    found = store.diagnose("f")
    assert found.codes == ("future_version",)
    assert "newer release" in found.findings[0].text


def test_a_flow_of_a_later_version_of_its_type(store: cs.Store) -> None:
    """Only a program that says which types it knows can tell."""
    new_state = b'{"layout":1,"type":"order","type_version":3,"schema":"","wait":null,"state":{}}'
    stuck.put_raw(store, "f", new_state, type="order", type_version=3)
    assert codes(store) == ()
    assert codes(store, types=[Order]) == ("future_version",)
    assert [one.codes for one in store.diagnose_all(types=[Order])] == [("future_version",)]


def test_a_flow_that_cannot_be_read(store: cs.Store) -> None:
    """Its head is shown."""
    stuck.put_raw(store, "f", stuck.DAMAGED)
    found = store.diagnose("f")
    assert (found.codes, found.severity) == (("unreadable",), "problem")
    assert found.flow is not None
    assert found.flow.status is cs.FlowStatus.RUNNING


def test_a_condition_whose_parent_does_not_exist(store: cs.Store) -> None:
    """It is found by the id of the parent."""
    stuck.suspended(store, "f", "child")
    store.delete("f")
    found = store.diagnose("f")
    assert (found.flow, found.correlation_id, found.codes) == (None, "{f}/wait", ("parent_gone",))
    assert store.diagnose_all().items == (found,)
    store.clear_wait_condition("{f}/wait")
    assert store.diagnose_all().items == ()


def test_parts_whose_flow_does_not_exist(store: cs.Store) -> None:
    """They are swept some day."""
    store.put_part(cs.Part("f", "p", b""))
    found = store.diagnose("f")
    assert (found.codes, found.severity) == (("orphan_parts",), "info")


def test_a_flow_that_has_failed_says_why(store: cs.Store) -> None:
    """That is no warning: it has ended."""
    new(store, status=cs.FlowStatus.FAILED, error="no stock")
    (finding,) = store.diagnose("f").findings
    assert (finding.code, finding.severity, finding.text) == (
        "failed",
        "info",
        "has failed: no stock",
    )
    assert store.diagnose_all().items == ()
    assert len(store.diagnose_all(status=cs.FlowStatus.FAILED, severity="info")) == 1


def test_the_worst_finding_comes_first(store: cs.Store, clock: ManualClock) -> None:
    """A flow may have several."""
    stuck.claimed(store, clock, "f", times=5)
    clock.advance(5 * MINUTE)
    assert codes(store) == ("lease_expired", "attempts_high")
    stuck.put_raw(store, "g", stuck.DAMAGED, attempts=7)
    assert codes(store, "g") == ("unreadable", "attempts_high")


# --- all flows ----------------------------------------------------------------------------------


def test_pages_have_every_finding_once(store: cs.Store) -> None:
    """However small the pages are, and however few flows each looks at."""
    for number in range(30):
        new(store, f"well {number}")
        new(store, f"stuck {number}", due_at=None, status=cs.FlowStatus(number % 4))

    for number in range(3):
        store.set_wait_condition(
            cs.WaitCondition(f"w{number}", flow_ids=["x"], parent_flow_id="nobody")
        )

    every = [one.correlation_id or one.flow_id for one in store.diagnose_all()]
    assert len(every) == 33
    for arguments in ({"limit": 1}, {"limit": 7}, {"most": 1}, {"most": 4, "limit": 2}):
        found: list[str] = []
        for page in pages_of(store.diagnose_all, **arguments):
            assert len(page) <= arguments.get("limit", 100)
            found += [one.correlation_id or one.flow_id for one in page]

        assert found == every


def test_filters_say_which_flows_are_looked_at(store: cs.Store) -> None:
    """As for listings."""
    for flow_id in ("a1", "a2", "b1"):
        new(store, flow_id, due_at=None)

    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["x"], parent_flow_id="nobody"))
    assert [one.flow_id for one in store.diagnose_all(id_prefix="a")] == ["a1", "a2"]
    assert len(store.diagnose_all(status=cs.FlowStatus.CREATED)) == 3
    assert len(store.diagnose_all(status=cs.FlowStatus.RUNNING)) == 0


def test_damaged_flows_hide_no_others(store: cs.Store) -> None:
    """Each is a finding."""
    for number in range(12):
        stuck.put_raw(store, f"damaged {number}", stuck.DAMAGED)
        new(store, f"f{number}", due_at=None)

    found = store.diagnose_all()
    assert sum(one.codes == ("unreadable",) for one in found) == 12
    assert sum(one.codes == ("never_due",) for one in found) == 12


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1001},
        {"most": 0},
        {"severity": "bad"},
        {"cursor": "x"},
        {"attempts": 0},
        {"late": 5},
        {"idle": -DAY},
        {"types": [5]},
        {"owned_by": "me"},
    ],
)
def test_wrong_arguments_are_refused(store: cs.Store, wrong: dict[str, Any]) -> None:
    """Before anything is read."""
    with pytest.raises(cs.UsageError):
        store.diagnose_all(**wrong)
