"""Flow snapshots: their fields, single operations on them, versions, and what an error leaves.

One file, and long: single operations on a flow share their helpers and are read together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import TypedDict

import attrs
import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

MINUTE = timedelta(minutes=1)
TERMINAL = [cs.FlowStatus.COMPLETED, cs.FlowStatus.FAILED, cs.FlowStatus.CANCELLED]
LIVE = [
    cs.FlowStatus.CREATED,
    cs.FlowStatus.RUNNING,
    cs.FlowStatus.SUSPENDED,
    cs.FlowStatus.COMPENSATING,
]

Opener = Callable[..., cs.Store]


@attrs.define
class Order:
    """A state."""

    total: int
    tags: set[str] = attrs.field(factory=set)


class Ticket(TypedDict):
    """A state that is a dict at run time."""

    seat: int


def new(flow_id: str = "f", **fields: object) -> cs.FlowSnapshot[dict[str, int]]:
    """Make a flow with plain JSON data as its state."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, **fields)  # type: ignore[arg-type]


def facts(flow: cs.FlowSnapshot[object]) -> dict[str, object]:
    """Return everything that can be read off a flow."""
    wait = flow.wait_condition
    return {
        "flow_id": flow.flow_id,
        "state": flow.state,
        "position": flow.position,
        "status": flow.status,
        "error": flow.error,
        "wait": None if wait is None else (wait.correlation_id, wait.flow_ids, wait.outcome),
        "due_at": flow.due_at,
        "expires_at": flow.expires_at,
        "attempts": flow.attempts,
        "created_at": flow.created_at,
        "updated_at": flow.updated_at,
        "version": flow.version,
        "revision": flow.revision,
        "owner": flow.owner,
        "type_name": flow.type_name,
    }


# --- the record ---------------------------------------------------------------------------------


def test_a_flow_needs_only_its_id_and_state() -> None:
    """Everything else of a new flow has a default, and it says that nothing was stored yet."""
    flow = cs.FlowSnapshot("order-1", state=Order(5))
    assert flow.status is cs.FlowStatus.CREATED
    assert flow.position == cs.FlowPosition((0,))
    assert (flow.error, flow.wait_condition, flow.attempts) == (None, None, 0)
    assert (flow.due_at, flow.expires_at) == (cs.NOW, None)
    assert (flow.created_at, flow.updated_at, flow.owner) == (None, None, None)
    assert (flow.version, flow.revision) == (0, None)
    assert flow.type_name == "Order"


def test_every_field_comes_back(store: cs.Store, clock: ManualClock) -> None:
    """What `create` was given is what `get` returns, field by field, with the store's additions."""
    due = clock.now + timedelta(hours=1)
    written = cs.FlowSnapshot(
        "order-1",
        state=Order(7, {"b", "a"}),
        position=cs.FlowPosition((1, 2, 3)),
        status=cs.FlowStatus.COMPENSATING,
        error="card refused: ü\n\0",
        wait_condition=cs.WaitCondition("w", flow_ids=["s-1"], timeout=MINUTE),
        due_at=due,
        expires_at=due + MINUTE,
        attempts=3,
        created_at=datetime(2020, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
    )
    store.create(written)
    read = store.get_one("order-1", Order)
    assert facts(read) == facts(written)
    assert facts(read) == {
        "flow_id": "order-1",
        "state": Order(7, {"a", "b"}),
        "position": cs.FlowPosition((1, 2, 3)),
        "status": cs.FlowStatus.COMPENSATING,
        "error": "card refused: ü\n\0",
        "wait": ("w", ("s-1",), cs.WaitOutcome.PENDING),
        "due_at": due,
        "expires_at": due + MINUTE,
        "attempts": 3,
        "created_at": datetime(2020, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
        "updated_at": clock.now,
        "version": 1,
        "revision": written.revision,
        "owner": None,
        "type_name": "Order",
    }


@pytest.mark.parametrize("status", list(cs.FlowStatus))
def test_every_status_comes_back(store: cs.Store, status: cs.FlowStatus) -> None:
    """The store keeps each status, and lets any follow any other."""
    store.create(new(status=status))
    for following in cs.FlowStatus:
        flow = store.get_one("f")
        flow.status = following
        store.update(flow)
        assert store.get_one("f").status is following


def test_the_last_three_statuses_are_terminal() -> None:
    """COMPLETED, FAILED and CANCELLED are terminal, and no other."""
    assert [status for status in cs.FlowStatus if status.is_terminal] == TERMINAL
    assert [status for status in cs.FlowStatus if not status.is_terminal] == LIVE


def test_positions_walk() -> None:
    """`advance`, `enter` and `exit` answer other positions and change none."""
    top = cs.FlowPosition()
    assert (top.path, top.current, top.depth, str(top)) == ((0,), 0, 1, "0")
    inner = top.advance().enter(3).advance(2)
    assert (inner.path, inner.current, inner.depth, str(inner)) == ((1, 5), 5, 2, "1/5")
    assert inner.exit() == cs.FlowPosition((1,))
    assert top == cs.FlowPosition((0,))
    assert f"{new().flow_id}/{top.enter(3)}" == "f/0/3"
    with pytest.raises(AttributeError):
        top.path = (1,)  # type: ignore[misc]


def test_a_position_has_no_way_out_of_the_top() -> None:
    """`exit` at the top level and an `advance` below 0 are usage errors."""
    with pytest.raises(cs.UsageError, match="top level"):
        cs.FlowPosition().exit()

    with pytest.raises(cs.UsageError, match="from 0"):
        cs.FlowPosition().advance(-1)


@pytest.mark.parametrize(
    "name", ["flow_id", "created_at", "state_type", "version", "revision", "updated_at", "owner"]
)
def test_what_the_store_says_cannot_be_assigned(name: str) -> None:
    """Identity and the store's own facts are read-only on a flow."""
    with pytest.raises(AttributeError):
        setattr(new(), name, None)


def test_instants_are_utc_whole_milliseconds() -> None:
    """`due_at` is rounded up and `created_at` down, both in UTC, as soon as they are set."""
    tokyo = timezone(timedelta(hours=9))
    moment = datetime(2030, 1, 1, 9, 0, 0, 1, tzinfo=tokyo)
    flow = new(due_at=moment, created_at=moment)
    assert flow.due_at == datetime(2030, 1, 1, 0, 0, 0, 1_000, tzinfo=UTC)
    assert flow.created_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert flow.due_at is not None
    assert flow.due_at.tzinfo is UTC
    assert flow.created_at is not None
    assert flow.created_at.tzinfo is UTC


def test_a_typed_dict_is_named(store: cs.Store) -> None:
    """A TypedDict state is stored under the name of the type that was named, and not without."""
    store.create(cs.FlowSnapshot("t", state=Ticket(seat=4), state_type=Ticket))
    read = store.get_one("t", Ticket)
    assert read.state == {"seat": 4}
    assert read.type_name == "Ticket"
    store.create(cs.FlowSnapshot("u", state=Ticket(seat=4)))
    assert store.get_one("u").type_name == ""


def test_snapshots_are_equal_only_to_themselves(store: cs.Store) -> None:
    """Two loads of one flow are two objects, unequal and hashable."""
    store.create(new())
    first, second = store.get("f"), store.get("f")
    assert first is not second
    assert first != second
    assert len({first, second}) == 2


# --- create and get -----------------------------------------------------------------------------


def test_create_writes_version_1(store: cs.Store, clock: ManualClock) -> None:
    """`create` sets version, revision, `created_at` and `updated_at` on the object it was given."""
    flow = new()
    assert store.create(flow) is None
    assert flow.version == 1
    assert flow.revision
    assert flow.created_at == flow.updated_at == clock.now


def test_create_refuses_a_taken_id(store: cs.Store) -> None:
    """`FlowExistsError` says the id and the stored version; the second object stays as it was."""
    store.create(new())
    store.update(store.get_one("f"))
    late = new(attempts=1)
    before = facts(late)
    with pytest.raises(cs.FlowExistsError, match="'f' already exists at version 2") as caught:
        store.create(late)

    assert (caught.value.flow_id, caught.value.actual) == ("f", 2)
    assert facts(late) == before
    assert store.get_one("f").attempts == 0


def test_create_refuses_what_was_stored(store: cs.Store) -> None:
    """A flow with a revision is not a new flow: `create` is then a usage error."""
    flow = new()
    store.create(flow)
    store.delete("f")
    with pytest.raises(cs.UsageError, match="flow 'f' has a revision"):
        store.create(flow)

    assert store.get("f") is None


def test_created_at_never_changes(store: cs.Store, clock: ManualClock) -> None:
    """Later writes move `updated_at` and leave `created_at`."""
    store.create(new())
    start = clock.now
    clock.advance(MINUTE)
    flow = store.get_one("f")
    store.update(flow)
    assert (flow.created_at, flow.updated_at) == (start, start + MINUTE)
    read = store.get_one("f")
    assert (read.created_at, read.updated_at) == (start, start + MINUTE)


def test_get_of_a_missing_flow_returns_none(store: cs.Store) -> None:
    """A flow that is not there is `None` from `get` and an error from `get_one`."""
    assert store.get("nobody") is None
    assert store.get("nobody", Order) is None
    with pytest.raises(cs.FlowNotFoundError, match="flow 'nobody' not found") as caught:
        store.get_one("nobody")

    assert caught.value.flow_id == "nobody"
    assert caught.value.expected is None


def test_get_without_a_type_returns_raw_data(store: cs.Store) -> None:
    """Typed state is plain JSON data when no type is asked for, and keeps its type when written."""
    store.create(cs.FlowSnapshot("o", state=Order(1, {"x"})))
    raw = store.get_one("o")
    assert raw.state == {"total": 1, "tags": ["x"]}
    assert raw.type_name == "Order"
    raw.state["total"] = 2
    store.update(raw)
    assert store.get_one("o", Order).state == Order(2, {"x"})


def test_untyped_data_may_be_read_as_any_type(store: cs.Store) -> None:
    """State that was stored without a type fits every type that its data fits."""
    store.create(cs.FlowSnapshot("o", state={"total": 3, "tags": []}))
    assert store.get_one("o", Order).state == Order(3)
    store.create(cs.FlowSnapshot("t", state={"seat": 3}))
    assert store.get_one("t", Ticket).state == {"seat": 3}


def test_a_state_is_not_read_as_another_named_type(store: cs.Store) -> None:
    """Between two named types stands a `StateTypeError` that names both."""
    store.create(cs.FlowSnapshot("o", state=Order(1)))
    with pytest.raises(
        cs.StateTypeError, match=r"'o' is stored .* 'Order' .* as 'Ticket'"
    ) as caught:
        store.get("o", Ticket)

    assert (caught.value.expected, caught.value.actual) == ("Ticket", "Order")


def test_get_or_create_creates_once(store: cs.Store) -> None:
    """The first call returns its own object and `True`, the second what is stored and `False`."""
    mine = cs.FlowSnapshot("o", state=Order(1))
    assert store.get_or_create(mine) == (mine, True)
    assert mine.version == 1
    other = cs.FlowSnapshot("o", state=Order(2))
    stored, created = store.get_or_create(other)
    assert not created
    assert stored is not other
    assert stored.state == Order(1)
    assert stored.revision == mine.revision
    assert other.version == 0


def test_get_or_create_checks_the_type(store: cs.Store) -> None:
    """An id that is taken by a flow of another type is a `StateTypeError`, not that flow."""
    store.create(cs.FlowSnapshot("o", state=Ticket(seat=1), state_type=Ticket))
    with pytest.raises(cs.StateTypeError):
        store.get_or_create(cs.FlowSnapshot("o", state=Order(1)))


# --- update -------------------------------------------------------------------------------------


def test_update_counts_versions(store: cs.Store) -> None:
    """Each update adds 1 to the version and gives a revision that was never there before."""
    flow = new()
    store.create(flow)
    revisions = [flow.revision]
    for version in range(2, 12):
        flow.state["n"] = version
        store.update(flow)
        revisions.append(flow.revision)
        read = store.get_one("f")
        assert (flow.version, read.version) == (version, version)
        assert read.revision == flow.revision
        assert read.state == {"n": version}

    assert len(set(revisions)) == 11


def test_a_stale_update_is_refused(store: cs.Store, clock: ManualClock) -> None:
    """`StaleFlowError` has both versions; object and store stay as they were."""
    store.create(new())
    mine, yours = store.get_one("f"), store.get_one("f")
    yours.state["n"] = 1
    store.update(yours)
    clock.advance(MINUTE)
    mine.state["n"] = 2
    mine.status = cs.FlowStatus.RUNNING
    before = facts(mine)
    message = "flow 'f' was read at version 1, but the store holds version 2, so nothing in this commit was written"
    with pytest.raises(cs.StaleFlowError, match=re.escape(message)) as caught:
        store.update(mine)

    error = caught.value
    assert (error.flow_id, error.expected, error.actual) == ("f", 1, 2)
    assert error.conflicts == (error,)
    assert facts(mine) == before
    assert facts(store.get_one("f")) == facts(yours)


def test_an_update_of_a_deleted_flow_is_refused(store: cs.Store) -> None:
    """`FlowNotFoundError` says what was expected; the flow does not come back."""
    flow = new()
    store.create(flow)
    store.delete("f")
    before = facts(flow)
    with pytest.raises(
        cs.FlowNotFoundError, match="'f' was read at version 1 but no longer exists"
    ) as caught:
        store.update(flow)

    assert (caught.value.flow_id, caught.value.expected) == ("f", 1)
    assert facts(flow) == before
    assert store.get("f") is None


def test_an_update_without_revision_is_refused(store: cs.Store) -> None:
    """A flow that was never stored or read cannot be updated, whether its id is taken or not."""
    with pytest.raises(cs.UsageError, match="flow 'f' has no revision"):
        store.update(new())

    store.create(new())
    with pytest.raises(cs.UsageError, match="flow 'f' has no revision"):
        store.update(new())

    assert store.get_one("f").version == 1


def test_recreated_flow_is_another_record(store: cs.Store) -> None:
    """After delete and create both say version 1; what was read before is refused all the same."""
    store.create(new())
    old = store.get_one("f")
    store.delete("f")
    store.create(new(attempts=5))
    assert store.get_one("f").version == old.version == 1
    old.state["n"] = 99
    with pytest.raises(
        cs.StaleFlowError, match="another record with the same id has replaced it"
    ) as caught:
        store.update(old)

    assert (caught.value.expected, caught.value.actual) == (1, 1)
    with pytest.raises(cs.StaleFlowError):
        store.delete(old)

    assert store.get_one("f").attempts == 5
    assert store.get_one("f").state == {"n": 0}


def test_an_error_leaves_the_object_alone(store: cs.Store) -> None:
    """A state that cannot be kept changes neither object nor store, and may be mended."""
    flow = new()
    store.create(flow)
    flow.state["n"] = (1, 2)  # type: ignore[assignment]
    before = facts(flow)
    with pytest.raises(cs.EncodingError) as caught:
        store.update(flow)

    assert caught.value.path == "$.n"
    assert facts(flow) == before
    assert store.get_one("f").state == {"n": 0}
    flow.state["n"] = 3
    store.update(flow)
    assert flow.version == 2


def test_a_returned_object_is_the_callers(store: cs.Store) -> None:
    """Changing a state after a write, or after a read, changes nothing that is stored."""
    flow = cs.FlowSnapshot("f", state={"items": [1]})
    store.create(flow)
    flow.state["items"].append(2)
    assert store.get_one("f").state == {"items": [1]}
    read = store.get_one("f")
    read.state["items"].append(3)
    read.error = "mine"
    again = store.get_one("f")
    assert again.state == {"items": [1]}
    assert again.error is None
    (summary,) = store.query_flows()
    assert summary.error is None


# --- due_at and attempts ------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(cs.FlowStatus))
def test_a_new_flow_is_due_at_once_unless_it_waits_or_has_ended(
    store: cs.Store, clock: ManualClock, status: cs.FlowStatus
) -> None:
    """Without `due_at`, a new flow is due now if it is neither suspended nor terminal."""
    flow = new(status=status)
    store.create(flow)
    waits = status.is_terminal or status is cs.FlowStatus.SUSPENDED
    assert flow.due_at == (None if waits else clock.now)
    assert store.get_one("f").due_at == flow.due_at
    assert len(store.claim_due()) == (not waits)


def test_a_new_flow_is_due_when_it_says(store: cs.Store, clock: ManualClock) -> None:
    """A `due_at` in the future is waited for, to the millisecond; `None` is never due."""
    store.create(new("later", due_at=clock.now + MINUTE))
    store.create(new("parked", due_at=None))
    store.create(new("sleeper", status=cs.FlowStatus.SUSPENDED, due_at=clock.now + 2 * MINUTE))
    clock.advance(MINUTE - timedelta(milliseconds=1))
    assert store.claim_due(limit=9) == []
    clock.advance(timedelta(milliseconds=1))
    assert [flow.flow_id for flow in store.claim_due(limit=9, lease=MINUTE * 9)] == ["later"]
    clock.advance(MINUTE)
    assert [flow.flow_id for flow in store.claim_due(limit=9)] == ["sleeper"]


def test_a_pause_is_a_later_due_at(store: cs.Store, clock: ManualClock) -> None:
    """`flow.due_at = store.now() + delay` makes a flow due then, and not before."""
    store.create(new())
    (flow,) = store.claim_due()
    flow.due_at = store.now() + MINUTE
    store.update(flow)
    assert store.get_one("f").due_at == clock.now + MINUTE
    assert store.claim_due() == []
    clock.advance(MINUTE)
    assert len(store.claim_due()) == 1


@pytest.mark.parametrize("status", TERMINAL)
def test_a_terminal_flow_is_never_due(
    store: cs.Store, clock: ManualClock, status: cs.FlowStatus
) -> None:
    """Ending a flow takes away `due_at` and owner, whatever the object said."""
    store.create(new())
    (flow,) = store.claim_due()
    flow.status = status
    flow.due_at = clock.now
    store.update(flow)
    assert (flow.due_at, flow.owner) == (None, None)
    read = store.get_one("f")
    assert (read.due_at, read.owner) == (None, None)
    clock.advance(timedelta(hours=1))
    assert store.claim_due() == []


def test_a_terminal_flow_may_live_again(store: cs.Store, clock: ManualClock) -> None:
    """The store enforces no transitions: a flow that ended can be made to run, and then stays."""
    store.create(new(status=cs.FlowStatus.COMPLETED))
    flow = store.get_one("f")
    flow.status = cs.FlowStatus.RUNNING
    flow.due_at = clock.now
    store.update(flow)
    clock.advance(timedelta(days=400))
    assert [flow.flow_id for flow in store.claim_due()] == ["f"]


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, 1),
        ({"error": "transient"}, 1),
        ({"state": {"n": 9}}, 1),
        ({"position": cs.FlowPosition((1,))}, 0),
        ({"status": cs.FlowStatus.RUNNING}, 0),
        ({"attempts": 0}, 0),
        ({"attempts": 7}, 7),
        ({"attempts": 7, "position": cs.FlowPosition((1,))}, 7),
    ],
)
def test_attempts_count_claims_at_one_place(
    store: cs.Store, change: dict[str, object], left: int
) -> None:
    """Attempts start again when position or status change, and are otherwise what the owner says."""
    store.create(new())
    (flow,) = store.claim_due()
    assert flow.attempts == 1
    for name, value in change.items():
        setattr(flow, name, value)

    store.update(flow)
    assert flow.attempts == left
    assert store.get_one("f").attempts == left


# --- delete -------------------------------------------------------------------------------------


def test_delete_by_id_takes_what_is_there(store: cs.Store) -> None:
    """A plain id is deleted whatever its version; `True` once, then `False`."""
    store.create(new())
    store.update(store.get_one("f"))
    assert store.delete("f") is True
    assert store.get("f") is None
    assert store.delete("f") is False


def test_delete_by_snapshot_is_checked(store: cs.Store) -> None:
    """A loaded snapshot is deleted only at its revision; for one that is gone it returns `False`."""
    store.create(new())
    stale, fresh = store.get_one("f"), store.get_one("f")
    store.update(fresh)
    with pytest.raises(cs.StaleFlowError) as caught:
        store.delete(stale)

    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert store.delete(fresh) is True
    assert store.delete(fresh) is False


def test_delete_by_version_is_checked(store: cs.Store) -> None:
    """An id with a version deletes that version only."""
    store.create(new())
    store.update(store.get_one("f"))
    with pytest.raises(cs.StaleFlowError, match=r"'f'.* holds version 2") as caught:
        store.delete("f", version=1)

    assert (caught.value.flow_id, caught.value.expected, caught.value.actual) == ("f", 1, 2)
    assert store.delete("f", version=2) is True
    assert store.delete("f", version=2) is False


def test_delete_by_revision_is_checked(store: cs.Store) -> None:
    """An id with a revision deletes that incarnation only, even at the same version."""
    first = new()
    store.create(first)
    store.delete("f")
    second = new()
    store.create(second)
    with pytest.raises(cs.StaleFlowError) as caught:
        store.delete("f", revision=first.revision)

    assert caught.value.actual == 1
    assert store.get("f") is not None
    assert store.delete("f", revision=second.revision) is True


def test_delete_checks_version_and_revision_together(store: cs.Store) -> None:
    """Given both, both must fit."""
    flow = new()
    store.create(flow)
    with pytest.raises(cs.StaleFlowError):
        store.delete("f", version=2, revision=flow.revision)

    with pytest.raises(cs.StaleFlowError):
        store.delete("f", version=1, revision="other")

    assert store.delete("f", version=1, revision=flow.revision) is True


def test_delete_of_what_was_never_stored_is_a_usage_error(store: cs.Store) -> None:
    """A new snapshot has nothing to check: its id must be passed instead."""
    store.create(new())
    with pytest.raises(cs.UsageError, match="'f' has never been stored"):
        store.delete(new())

    with pytest.raises(cs.UsageError, match="already has a revision"):
        store.delete(store.get_one("f"), version=1)

    assert store.get("f") is not None


def test_progress_goes_with_its_flow(store: cs.Store) -> None:
    """Deleting a flow deletes its ForEach progress, and that of no other flow."""
    for flow_id in ("f", "g"):
        store.create(new(flow_id))
        store.save_for_each_progress(flow_id, 0, cs.ForEachProgress([1]))

    store.delete("f")
    assert store.get_for_each_progress("f", 0) is None
    assert store.list_for_each_progress("f") == {}
    assert store.get_for_each_progress("g", 0) is not None
    store.create(new())
    assert store.get_for_each_progress("f", 0) is None


# --- many ---------------------------------------------------------------------------------------


def test_get_many_returns_flows_by_id(store: cs.Store) -> None:
    """Each id once, in the order given, `None` for what is absent; more than one request holds."""
    with store.begin() as session:
        for number in range(200):
            session.add(cs.FlowSnapshot(f"o-{number}", state=Order(number)))

    wanted = [f"o-{number}" for number in range(1_201)]
    found = store.get_many([*wanted, "o-0"], Order)
    assert list(found) == wanted
    assert [flow_id for flow_id, flow in found.items() if flow is not None] == wanted[:200]
    flow = found["o-199"]
    assert flow is not None
    assert flow.state == Order(199)
    assert store.get_many([]) == {}
    assert store.get_many(iter(["o-1"]))["o-1"].state == {"total": 1, "tags": []}  # type: ignore[union-attr]


# --- what has expired ---------------------------------------------------------------------------


@pytest.fixture
def expired(store: cs.Store, clock: ManualClock) -> cs.FlowSnapshot[dict[str, int]]:
    """Leave a completed flow `f` with progress behind, past its retention, and not swept."""
    flow = new(status=cs.FlowStatus.COMPLETED)
    store.create(flow)
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    clock.advance(timedelta(days=7))
    return flow


def test_an_expired_flow_cannot_be_read(
    store: cs.Store, expired: cs.FlowSnapshot[dict[str, int]]
) -> None:
    """To every reading operation an expired flow and its progress are absent."""
    assert store.get("f") is None
    assert store.get_many(["f"]) == {"f": None}
    assert store.query_flows().items == ()
    assert store.count_flows() == 0
    assert store.count_flows(status=cs.FlowStatus.COMPLETED, created_before=store.now()) == 0
    assert list(store.iter_flows()) == []
    assert store.get_for_each_progress("f", 0) is None
    assert store.list_for_each_progress("f") == {}
    with store.session() as session:
        assert session.get("f") is None
        assert session.get_for_each_progress("f", 0) is None


def test_an_expired_flow_cannot_be_written(
    store: cs.Store, expired: cs.FlowSnapshot[dict[str, int]]
) -> None:
    """To every writing operation an expired flow is absent."""
    assert store.delete("f") is False
    assert store.delete("f", version=1) is False
    assert store.delete(expired) is False
    assert store.clear_for_each_progress("f", 0) is False
    with pytest.raises(cs.FlowNotFoundError):
        store.update(expired)

    with pytest.raises(cs.FlowNotFoundError):
        store.claim("f")


def test_an_expired_flow_is_absent_inside_a_commit(
    store: cs.Store, expired: cs.FlowSnapshot[dict[str, int]]
) -> None:
    """A session's update, delete and check of an expired flow are refused as not found."""
    for act in ("add", "delete", "check"):
        with store.session() as session:
            if act == "add":
                session.add(expired)
                expired.error = "late"
            else:
                getattr(session, act)(expired)

            session.add(new("other"))
            with pytest.raises(cs.FlowNotFoundError) as caught:
                session.commit()

        assert caught.value.flow_id == "f"
        assert store.get("other") is None


def test_an_expired_flows_id_is_free(
    store: cs.Store, expired: cs.FlowSnapshot[dict[str, int]]
) -> None:
    """`create` succeeds over an expired flow, which leaves no progress to the new one."""
    store.create(new())
    assert store.get_one("f").version == 1
    assert store.get_one("f").revision != expired.revision
    assert store.list_for_each_progress("f") == {}


def test_get_or_create_over_an_expired_flow_creates(
    store: cs.Store, expired: cs.FlowSnapshot[dict[str, int]]
) -> None:
    """An expired flow does not answer for its id any more."""
    _, created = store.get_or_create(new())
    assert created


def test_progress_after_expiry_starts_new(
    store: cs.Store, expired: cs.FlowSnapshot[dict[str, int]]
) -> None:
    """Progress saved as new under an expired flow's id meets none."""
    store.save_for_each_progress("f", 0, cs.ForEachProgress([5]))
    kept = store.get_for_each_progress("f", 0)
    assert kept is not None
    assert (list(kept.processed_indices), kept.version) == ([5], 1)


def test_two_stores_on_the_same_records_see_each_other(open_more: Opener) -> None:
    """A read sees every commit that was acknowledged before it began, from any client."""
    one, other = open_more(), open_more()
    flow = new()
    one.create(flow)
    for _ in range(5):
        copy = other.get_one("f")
        assert copy.revision == flow.revision
        one.update(flow)
