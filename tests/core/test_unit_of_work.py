"""Planning and settling without any store: what a commit would be made of, compared as data.

One file, slightly long: planning and settling are compared on the same records.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.codec.bitmaps import decode_bitmap
from catga_store.core import envelope
from catga_store.core import writes
from catga_store.core.unit_of_work import CommitPlan
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.model import stored_state
from catga_store.model.flows import Claim
from catga_store.model.times import from_ms
from catga_store.protocol import requests as records
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import progress_key
from catga_store.protocol.keys import wait_key

NOW = 1_900_000_000_000
LATER = NOW + 5_000
LIMITS = writes.Limits(cs.Retention(), 1_000, 1)
DAY_MS = 86_400_000


def new(flow_id: str = "f", **fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, **fields)


def outcomes_of(plan: CommitPlan, revision: str = "r") -> tuple[records.Outcome, ...]:
    """Return what a store says that has applied every change as planned."""
    found = []
    for change in plan.changes:
        if isinstance(change, records.Put):
            head = change.head
            one = records.Outcome(head.version, revision, head.status, head.created_ms)
        elif isinstance(change, records.SetWait):
            one = records.Outcome(1, revision, records.PENDING, change.created_ms, accepted=True)
        else:
            one = records.Outcome(accepted=True)

        found.append(one)

    return tuple(found)


def commit(unit: UnitOfWork, now_ms: int = NOW, revision: str = "r") -> CommitPlan:
    """Plan and settle, as if the store had applied it all."""
    unit.step("commit")
    plan = unit.plan(now_ms, LIMITS)
    unit.settle("c", plan, outcomes_of(plan, revision), now_ms)
    return plan


def loaded(flow_id: str = "f", **fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow as if it had been read at version 1."""
    unit, flow = UnitOfWork(), new(flow_id, **fields)
    unit.add(flow)
    commit(unit, revision="r1")
    unit.close()
    return flow


def claimed(flow_id: str = "f") -> cs.FlowSnapshot[Any]:
    """Make a flow as if it had been claimed for ten seconds."""
    flow = loaded(flow_id)
    record: records.Record = flow._loaded  # type: ignore[assignment]
    head = record.head._replace(owner="w-1", claim="token", due_ms=NOW + 10_000)
    stored_state.set_written(flow, head, record.body, head.revision, Claim("token", 10_000, bool))
    return flow


def only(unit: UnitOfWork, now_ms: int = LATER) -> records.Change:
    """Plan a unit that has one change."""
    (change,) = unit.plan(now_ms, LIMITS).changes
    return change


# --- what is planned ----------------------------------------------------------------------------


def test_an_empty_unit_plans_nothing() -> None:
    """Neither does one that only holds what it loaded."""
    unit = UnitOfWork()
    assert unit.plan(NOW, LIMITS) == CommitPlan((), ())
    unit.add(loaded())
    assert unit.plan(NOW, LIMITS) == CommitPlan((), ())


def test_a_new_flow_is_a_put_that_expects_none() -> None:
    """Version 1, created and due now, body and head as they will be stored."""
    unit, flow = UnitOfWork(), new()
    unit.add(flow)
    assert only(unit, NOW) == records.Put(
        flow_key("f"),
        records.Head(1, 0, NOW, NOW, position="0", due_ms=NOW),
        envelope.encode_flow(flow)[2],
        None,
    )


def test_planning_changes_nothing() -> None:
    """A plan may be made twice, and is the same; the objects stay as they were."""
    unit, flow = UnitOfWork(), loaded()
    unit.add(flow)
    flow.state["n"] = 1
    unit.add(new("g"))
    unit.complete(records.Complete(wait_key("w"), "c", success=True, payload=b""))
    first, second = unit.plan(LATER, LIMITS), unit.plan(LATER, LIMITS)
    assert first.changes == second.changes
    assert (flow.version, flow.updated_at) == (1, from_ms(NOW))
    assert unit.dirty(LIMITS) == (flow,)


def test_a_changed_flow_is_a_put_that_expects_its_revision() -> None:
    """Version + 1, created when it was, with the head that it replaces."""
    unit, flow = UnitOfWork(), loaded()
    before = flow._loaded
    assert before is not None
    unit.add(flow)
    flow.state["n"] = 1
    change = only(unit)
    assert isinstance(change, records.Put)
    assert (change.expected, change.replaces) == ("r1", before.head)
    assert (change.head.version, change.head.created_ms, change.head.updated_ms) == (2, NOW, LATER)
    assert change.head.due_ms == before.head.due_ms
    assert not change.fresh
    assert not change.claiming


@pytest.mark.parametrize(
    ("status", "days"),
    [
        (cs.FlowStatus.RUNNING, None),
        (cs.FlowStatus.COMPLETED, 7),
        (cs.FlowStatus.CANCELLED, 7),
        (cs.FlowStatus.FAILED, 30),
    ],
)
def test_expiry_is_planned_by_status(status: cs.FlowStatus, days: int | None) -> None:
    """Only a flow that has ended is given a time to go."""
    unit, flow = UnitOfWork(), loaded()
    unit.add(flow)
    flow.status = status
    change = only(unit)
    assert isinstance(change, records.Put)
    assert change.head.expires_ms == (None if days is None else LATER + days * DAY_MS)
    assert (change.head.due_ms is None) == (days is not None)


def test_a_plan_keeps_an_order() -> None:
    """Flows, then conditions, then progress, then completions, then checks, each as they came."""
    unit = UnitOfWork()
    unit.complete(records.Complete(wait_key("w"), "c", success=True, payload=b""))
    unit.save_progress(progress_key("f", 0), cs.ForEachProgress([1]), overwrite=False)
    unit.add(cs.WaitCondition("w", flow_ids=["c"]))
    unit.add(new("g"))
    unit.add(new("f"))
    unit.check(loaded("checked"))
    changes = unit.plan(NOW, LIMITS).changes
    assert [(type(change).__name__, change.key.kind, change.key.id) for change in changes] == [
        ("Put", "flow", "g"),
        ("Put", "flow", "f"),
        ("SetWait", "wait", "w"),
        ("Put", "progress", "f"),
        ("Complete", "wait", "w"),
        ("Check", "flow", "checked"),
    ]


def test_a_deleted_flow_is_a_delete_that_expects_its_revision() -> None:
    """And what the session knew of its progress is forgotten."""
    unit, flow = UnitOfWork(), loaded()
    unit.add(flow)
    unit.save_progress(progress_key("f", 0), cs.ForEachProgress([1]), overwrite=False)
    unit.delete(flow)
    record = flow._loaded
    assert record is not None
    assert only(unit) == records.Delete(flow_key("f"), "r1", record.head)


def test_a_replaced_flow_is_one_put() -> None:
    """Delete and add of one key is a fresh version 1 in the place of the old revision."""
    unit, old, fresh = UnitOfWork(), loaded(), new(attempts=3)
    unit.add(old)
    unit.delete(old)
    unit.add(fresh)
    change = only(unit)
    assert isinstance(change, records.Put)
    assert (change.expected, change.fresh, change.head.version) == ("r1", True, 1)
    assert change.head.attempts == 3


def test_a_replaced_flow_that_is_deleted_again_is_a_delete() -> None:
    """The old revision is what goes."""
    unit, old, fresh = UnitOfWork(), loaded(), new()
    unit.add(old)
    unit.delete(old)
    unit.add(fresh)
    unit.delete(fresh)
    change = only(unit)
    assert isinstance(change, records.Delete)
    assert change.expected == "r1"


def test_a_check_of_what_is_written_is_part_of_the_write() -> None:
    """No record is named twice in a commit."""
    unit, flow = UnitOfWork(), loaded()
    unit.add(flow)
    unit.check(flow)
    flow.state["n"] = 1
    assert isinstance(only(unit), records.Put)


def test_a_check_of_what_is_only_read_is_a_check() -> None:
    """Beside another change, the revision that was read is checked."""
    unit, flow = UnitOfWork(), loaded()
    unit.add(flow)
    unit.check(flow)
    unit.add(new("g"))
    changes = unit.plan(LATER, LIMITS).changes
    assert changes[1:] == (records.Check(flow_key("f"), "r1"),)


# --- claims -------------------------------------------------------------------------------------


def test_a_written_claim_is_renewed() -> None:
    """Owner and token stay, the lease begins again."""
    unit, flow = UnitOfWork(), claimed()
    unit.add(flow)
    flow.state["n"] = 1
    change = only(unit)
    assert isinstance(change, records.Put)
    assert (change.head.owner, change.head.claim) == ("w-1", "token")
    assert change.head.due_ms == LATER + 10_000


def test_an_idle_claim_is_checked_and_renewed() -> None:
    """A commit of something else checks the claimed flow's revision and moves its lease."""
    unit, flow = UnitOfWork(), claimed()
    unit.add(flow)
    assert unit.plan(LATER, LIMITS).changes == ()
    unit.add(new("g"))
    changes = unit.plan(LATER, LIMITS).changes
    assert changes[1:] == (records.Check(flow_key("f"), "r1", LATER + 10_000),)
    commit(unit, LATER)
    assert (flow.version, flow.due_at) == (1, from_ms(LATER + 10_000))
    assert unit.dirty(LIMITS) == ()


@pytest.mark.parametrize(
    ("name", "value", "due_ms"),
    [
        ("status", cs.FlowStatus.COMPLETED, None),
        ("status", cs.FlowStatus.SUSPENDED, None),
        ("due_at", None, None),
        ("due_at", from_ms(NOW + 60_000), NOW + 60_000),
    ],
)
def test_a_claim_ends(name: str, value: object, due_ms: int | None) -> None:
    """Terminal, suspended, or with another `due_at`, a flow is planned without an owner."""
    unit, flow = UnitOfWork(), claimed()
    unit.add(flow)
    setattr(flow, name, value)
    change = only(unit)
    assert isinstance(change, records.Put)
    assert (change.head.owner, change.head.claim, change.head.due_ms) == (None, None, due_ms)


# --- conditions and progress --------------------------------------------------------------------


def test_a_new_condition_is_set() -> None:
    """Its terms are what a store must understand."""
    unit = UnitOfWork()
    unit.add(
        cs.WaitCondition(
            "w",
            flow_ids=["b", "a"],
            wait_type=cs.WaitType.WHEN_ANY,
            timeout=timedelta(seconds=1),
            parent_flow_id="p",
        )
    )
    terms = records.Terms(("b", "a"), any=True, timeout_ms=1_000, parent="p")
    assert only(unit, NOW) == records.SetWait(wait_key("w"), terms, NOW)


def test_a_changed_condition_is_a_put() -> None:
    """Version-checked, with its outcome as status."""
    unit, wait = UnitOfWork(), cs.WaitCondition("w", flow_ids=["a"])
    unit.add(wait)
    commit(unit, revision="r1")
    assert unit.plan(LATER, LIMITS).changes == ()
    wait.outcome = cs.WaitOutcome.TIMED_OUT
    change = only(unit)
    assert isinstance(change, records.Put)
    assert (change.expected, change.head.version) == ("r1", 2)
    assert (change.head.status, change.head.created_ms) == (records.TIMED_OUT, NOW)


@pytest.mark.parametrize(("overwrite", "expected"), [(False, None), (True, records.ANY)])
def test_new_progress_expects_none_or_anything(overwrite: bool, expected: str | None) -> None:
    """Its counts are stored, and bitmaps of what was marked and of what failed."""
    unit, progress = UnitOfWork(), cs.ForEachProgress(range(1_000), [2_000])
    unit.save_progress(progress_key("f", 2), progress, overwrite=overwrite)
    change = only(unit, NOW)
    assert isinstance(change, records.Put)
    assert (change.key, change.expected) == (progress_key("f", 2), expected)
    head, _, bitmaps = change.body.partition(b"\n")
    assert head == b'{"layout":1,"last":null,"processed":1000,"failed":1,"sizes":[31,30]}'
    marked, failed = decode_bitmap(bitmaps[:31]), decode_bitmap(bitmaps[31:])
    assert (set(marked), set(failed)) == ({*range(1_000), 2_000}, {2_000})


def test_the_first_completion_of_a_child_is_planned() -> None:
    """Queued twice in one session it is sent once, as it was queued first."""
    unit = UnitOfWork()
    for success in (True, False):
        unit.complete(records.Complete(wait_key("w"), "c", success=success, payload=b""))

    assert only(unit) == records.Complete(wait_key("w"), "c", success=True, payload=b"")


# --- limits -------------------------------------------------------------------------------------


def test_limits_are_checked_by_the_plan() -> None:
    """Too many records, too large a record, too many partitions: nothing is planned."""
    unit = UnitOfWork()
    for number in range(201):
        unit.add(new(f"f-{number}"))

    with pytest.raises(cs.CommitTooLargeError):
        unit.plan(NOW, LIMITS)

    with pytest.raises(cs.RecordTooLargeError):
        unit.plan(NOW, writes.Limits(cs.Retention(), 10, 1))

    unit.rollback()
    unit.add(new("a"))
    unit.add(new("b"))
    unit.add(new("c"))
    with pytest.raises(cs.CrossPartitionError):
        unit.plan(NOW, writes.Limits(cs.Retention(), 1_000, 64))

    assert len(unit.plan(NOW, LIMITS).changes) == 3


# --- settling -----------------------------------------------------------------------------------


def test_settling_makes_everything_clean() -> None:
    """Objects take over versions and revisions; nothing is new, dirty or deleted any more."""
    unit, flow, gone = UnitOfWork(), loaded(), loaded("gone")
    wait, progress = cs.WaitCondition("w", flow_ids=["a"]), cs.ForEachProgress([1])
    unit.add(flow)
    unit.add(gone)
    unit.delete(gone)
    unit.add(wait)
    unit.save_progress(progress_key("f", 0), progress, overwrite=False)
    flow.state["n"] = 1
    commit(unit, LATER, revision="r2")
    assert (flow.version, flow.revision, flow.updated_at) == (2, "r2", from_ms(LATER))
    assert (wait.version, wait.created_at) == (1, from_ms(LATER))
    assert (progress.version, progress.revision) == (1, "r2")
    assert unit.dirty(LIMITS) == ()
    assert repr(unit) == "3 loaded, 0 new, 0 deleted"
    assert gone not in unit
    assert unit.plan(LATER, LIMITS).changes == ()


def test_a_refusal_leaves_everything_pending() -> None:
    """The same plan can be made again, and the error says what was expected and found."""
    unit, flow = UnitOfWork(), loaded()
    unit.add(flow)
    flow.state["n"] = 1
    unit.step("commit")
    plan = unit.plan(LATER, LIMITS)
    held = plan.changes[0].head._replace(version=7)  # type: ignore[union-attr]
    error = unit.refused(plan, (records.Conflict(0, records.STALE, held),))
    assert isinstance(error, cs.StaleFlowError)
    assert (error.expected, error.actual) == (1, 7)
    assert unit.dirty(LIMITS) == (flow,)
    assert unit.plan(LATER, LIMITS).changes == plan.changes


# --- the lifecycle ------------------------------------------------------------------------------

STEPS = {
    "open": {"use": "open", "commit": "committing", "rollback": "open", "close": "closed"},
    "committing": {"settle": "open", "refuse": "open", "lose": "closed", "close": "closed"},
    "closed": {
        "close": "closed",
        "rollback": "closed",
        "settle": "closed",
        "refuse": "closed",
        "lose": "closed",
    },
}


@pytest.mark.parametrize("state", STEPS)
@pytest.mark.parametrize(
    "verb", ["use", "commit", "rollback", "close", "settle", "refuse", "lose", "nonsense"]
)
def test_the_lifecycle_is_a_table(state: str, verb: str) -> None:
    """Each step leads where the table says; any other raises and leads nowhere."""
    unit = UnitOfWork()
    unit.state = state
    following = STEPS[state].get(verb)
    if following is not None:
        unit.step(verb)
        assert unit.state == following
        return

    with pytest.raises(cs.UsageError) as caught:
        unit.step(verb)

    assert unit.state == state
    assert isinstance(caught.value, cs.SessionClosedError) == (state == "closed")
