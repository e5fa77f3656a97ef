"""The unit of work: identity map, change detection, commits, refusals, lost outcomes.

One file, and long: every promise about a session is looked for here.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import attrs
import pytest
from marks import ONE_STORE

import catga_store as cs
from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.testing.clock import ManualClock
from catga_store.testing.faults import CommitFault
from catga_store.testing.faults import Faults

MINUTE = timedelta(minutes=1)

Opener = Callable[..., cs.Store]
Flow = cs.FlowSnapshot[dict[str, Any]]


@attrs.define
class Order:
    """A state."""

    total: int
    tags: set[str] = attrs.field(factory=set)


@cs.flow_state("Grown")
@attrs.define
class Early:
    """A state type before it gained a field."""

    total: int


@cs.flow_state("Grown")
@attrs.define
class Late:
    """The same state type after it gained a field with a default."""

    total: int
    note: str = "none"


ON_TRANSPORT = pytest.mark.stores(
    "memory", "sqlite", "redis-8.2"
)  # those whose transport is called


class Transport:
    """Stand between a store and its records, count what is sent, and fail on request."""

    def __init__(self, store: cs.Store) -> None:
        """Take the place of the store's own transport."""
        driver: Any = store._driver
        self.inner = driver.transport
        self.threaded = self.inner.threaded
        self.calls = 0
        self.on_write: Callable[[Call[Any]], Any] | None = None
        driver.transport = self

    def __call__(self, call: Call[Any]) -> Any:
        """Perform a call, or do what the test has said."""
        self.calls += 1
        if call.writes and self.on_write is not None:
            return self.on_write(call)

        return self.inner(call)

    def close(self) -> None:
        """Close the store's own transport."""
        self.inner.close()


def new(flow_id: str = "f", **fields: Any) -> Flow:
    """Make a flow with plain JSON data as its state."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, **fields)


def create(store: cs.Store, *flow_ids: str) -> None:
    """Store flows that are not due."""
    for flow_id in flow_ids:
        store.create(new(flow_id, due_at=None))


# --- the identity map ---------------------------------------------------------------------------


@ONE_STORE
def test_one_id_is_one_object(store: cs.Store) -> None:
    """Whatever loads a record returns the session's object for it."""
    create(store, "f")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["c"]))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    with store.session() as session:
        flow = session.get("f")
        assert flow is not None
        assert session.get("f") is flow
        assert session.get_one("f") is flow
        assert session.get_many(["f", "g"]) == {"f": flow, "g": None}
        assert session.get_wait_condition("w") is session.get_wait_condition("w")
        progress = session.get_for_each_progress("f", 0)
        assert progress is not None
        assert session.get_for_each_progress("f", 0) is progress
        assert flow in session
        assert progress in session


@ONE_STORE
def test_get_many_tracks_what_it_loads(store: cs.Store) -> None:
    """Flows that `get_many` loaded are written when they change; what was there stays the object."""
    create(store, "f", "g")
    with store.session() as session:
        first = session.get_one("f")
        found = session.get_many(["g", "f", "h"])
        assert found["f"] is first
        second = found["g"]
        assert second is not None
        second.state["n"] = 5
        assert session.get("g") is second
        session.commit()

    assert store.get_one("g").state == {"n": 5}


@ONE_STORE
def test_a_queued_record_is_found(store: cs.Store) -> None:
    """`get` returns what was added, before it was written."""
    with store.session() as session:
        flow = new()
        session.add(flow)
        assert session.get("f") is flow
        progress = cs.ForEachProgress([1])
        session.save_for_each_progress("f", 0, progress)
        assert session.get_for_each_progress("f", 0) is progress


@ONE_STORE
def test_a_loaded_flow_is_not_read_as_another_type(store: cs.Store) -> None:
    """One object has one state: asking for it as another type is a `StateTypeError`."""
    store.create(cs.FlowSnapshot("o", state=Order(1)))
    with store.session() as session:
        order = session.get("o", Order)
        assert session.get("o") is order
        assert session.get("o", Order) is order
        with pytest.raises(
            cs.StateTypeError, match="'o' is loaded in this session as 'Order'"
        ) as caught:
            session.get("o", Early)

        assert (caught.value.expected, caught.value.actual) == ("Grown", "Order")


@ONE_STORE
def test_two_sessions_share_no_object(store: cs.Store) -> None:
    """Two sessions get two objects, and an object of one is refused by another, till it is closed."""
    create(store, "f")
    with store.session() as one, store.session() as other:
        flow = one.get_one("f")
        assert other.get_one("f") is not flow
        with pytest.raises(cs.UsageError, match="in another open session"):
            other.add(flow)

    with store.session() as third:
        third.add(flow)
        assert flow in third


@ONE_STORE
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))],
    ids=["copied", "copied deeply", "pickled"],
)
def test_a_copy_of_a_record_is_in_no_session(
    store: cs.Store, copied: Callable[[Flow], Flow]
) -> None:
    """It carries nothing of the session with it, and another one may take it."""
    create(store, "f", "g")
    with store.session() as session, store.session() as other:
        flow, neighbour = session.get_one("f"), session.get_one("g")
        twin = copied(flow)
        assert twin not in session
        other.add(twin)
        twin.error = "of the copy"
        other.commit()
        assert (flow.version, flow.error) == (1, None)
        with pytest.raises(cs.UsageError, match="is in another open session"):
            other.add(neighbour)

    assert store.get_one("f").error == "of the copy"


@ONE_STORE
def test_a_second_object_for_one_key_is_refused(store: cs.Store) -> None:
    """A session holds one object per key; adding another is a usage error that names the key."""
    create(store, "f")
    with store.session() as session:
        session.get("f")
        with pytest.raises(cs.UsageError, match="another object for flow 'f'"):
            session.add(new())

        with pytest.raises(cs.UsageError, match="another object for flow 'f'"):
            session.delete(store.get_one("f"))


@ONE_STORE
def test_what_leaves_a_session_belongs_to_its_holder(store: cs.Store) -> None:
    """`expunge`, `rollback` and `close` make objects free for another session."""
    create(store, "f")
    for leave in ("expunge", "rollback", "close"):
        one, other = store.session(), store.session()
        flow = one.get_one("f")
        if leave == "expunge":
            one.expunge(flow)
        else:
            getattr(one, leave)()

        assert flow not in one
        other.add(flow)
        flow.state["n"] += 1
        other.commit()
        other.close()
        one.close()

    assert store.get_one("f").state == {"n": 3}


# --- what is dirty ------------------------------------------------------------------------------


@ONE_STORE
def test_a_session_that_only_read_sends_nothing(store: cs.Store) -> None:
    """A commit without changes makes no exchange, and its receipt is empty."""
    create(store, "f")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["c"]))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    transport = Transport(store)
    with store.session() as session:
        session.get("f")
        session.get_wait_condition("w")
        session.get_for_each_progress("f", 0)
        before = transport.calls
        receipt = session.commit()
        assert transport.calls == before

    assert receipt == cs.Receipt()
    assert (receipt.commit_id, receipt.versions, receipt.satisfied) == (None, {}, ())
    assert store.get_one("f").version == 1


@ON_TRANSPORT
def test_a_commit_is_one_exchange(store: cs.Store) -> None:
    """Whatever a commit changes, it is sent once."""
    create(store, "f", "g")
    transport = Transport(store)
    with store.session() as session:
        for flow in session.get_many(["f", "g"]).values():
            assert flow is not None
            flow.state["n"] = 1

        session.add(new("h"))
        session.complete_child("w", "c")
        before = transport.calls
        session.commit()
        assert transport.calls == before + 1


@ONE_STORE
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", {"n": 1}),
        ("position", cs.FlowPosition((1,))),
        ("status", cs.FlowStatus.RUNNING),
        ("error", "broken"),
        ("wait_condition", cs.WaitCondition("w", flow_ids=["c"])),
        ("attempts", 2),
        ("due_at", ManualClock().now + MINUTE),
        ("expires_at", ManualClock().now + MINUTE),
    ],
)
def test_each_field_of_a_flow_is_watched(store: cs.Store, name: str, value: object) -> None:
    """Setting any field makes the flow dirty, setting it back makes it clean."""
    create(store, "f")
    with store.session() as session:
        flow = session.get_one("f")
        old = getattr(flow, name)
        setattr(flow, name, value)
        assert session.dirty == (flow,)
        setattr(flow, name, old)
        assert session.dirty == ()
        setattr(flow, name, value)
        session.commit()
        assert session.dirty == ()
        assert flow.version == 2


@ONE_STORE
def test_a_change_deep_inside_a_state_is_seen(store: cs.Store) -> None:
    """Nothing needs to be announced: dirty is what encodes differently."""
    store.create(cs.FlowSnapshot("f", state={"lines": [{"sku": "a", "left": 2}]}))
    with store.begin() as session:
        flow = session.get_one("f")
        flow.state["lines"][0]["left"] -= 1

    assert store.get_one("f").state == {"lines": [{"sku": "a", "left": 1}]}


@ONE_STORE
def test_the_order_of_a_set_is_not_a_change(store: cs.Store) -> None:
    """A set that was taken apart and put together again is the set that was loaded."""
    names = {f"tag-{number}" for number in range(50)}
    store.create(cs.FlowSnapshot("o", state=Order(1, set(names))))
    with store.session() as session:
        order = session.get_one("o", Order)
        order.state.tags = {*list(names)[::-1]}
        assert session.dirty == ()
        order.state.tags.add("more")
        assert session.dirty == (order,)


@ONE_STORE
def test_a_gained_field_is_not_a_change(store: cs.Store) -> None:
    """State from before a field was added is clean when loaded, and written whole when changed."""
    store.create(cs.FlowSnapshot("o", state=Early(1)))
    with store.session() as session:
        late = session.get_one("o", Late)
        assert late.state == Late(1, "none")
        assert session.dirty == ()
        session.commit()
        assert store.get_one("o").version == 1
        late.state.total = 2
        assert session.dirty == (late,)
        session.commit()

    assert store.get_one("o").state == {"total": 2, "note": "none"}
    with pytest.raises(cs.StateTypeError, match="a field of Early"):
        store.get_one("o", Early)


@ONE_STORE
def test_raw_data_of_a_typed_flow_is_not_a_change(store: cs.Store) -> None:
    """A typed flow that was loaded without a type is clean until its data changes."""
    store.create(cs.FlowSnapshot("o", state=Order(1, {"b", "a"})))
    with store.session() as session:
        raw = session.get_one("o")
        assert session.dirty == ()
        raw.state["tags"].append("c")
        assert session.dirty == (raw,)
        session.commit()

    assert store.get_one("o", Order).state == Order(1, {"a", "b", "c"})


@ONE_STORE
def test_untyped_data_read_as_a_type_is_not_a_change(store: cs.Store) -> None:
    """Reading untyped data as a type does not write it as that type."""
    store.create(cs.FlowSnapshot("o", state={"total": 1, "tags": []}))
    with store.session() as session:
        order = session.get_one("o", Order)
        session.commit()
        assert order.version == 1
        order.state.total = 2
        session.commit()
        assert order.version == 2

    assert store.get_one("o", Order).state == Order(2)


@ONE_STORE
def test_waits_and_progress_are_watched(store: cs.Store) -> None:
    """Changed definitions and marks are written without being queued again."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    with store.session() as session:
        wait, progress = session.get_wait_condition("w"), session.get_for_each_progress("f", 0)
        assert wait is not None
        assert progress is not None
        assert session.dirty == ()
        wait.flow_ids = ("a", "b")
        progress.mark(2)
        assert session.dirty == (wait, progress)
        receipt = session.commit()
        assert session.dirty == ()

    assert {(key.kind, key.id): version for key, version in receipt.versions.items()} == {
        ("wait", "w"): 2,
        ("progress", "f"): 2,
    }
    assert (wait.version, progress.version) == (2, 2)


@ONE_STORE
def test_new_dirty_and_deleted_say_what_a_commit_will_do(store: cs.Store) -> None:
    """Each record stands in one of `new`, `dirty`, `deleted`; only the deleted are not `in`."""
    create(store, "changed", "gone", "read")
    with store.session() as session:
        added = new("added")
        session.add(added)
        wait = cs.WaitCondition("w", flow_ids=["c"])
        session.add(wait)
        changed, gone = session.get_one("changed"), session.get_one("gone")
        read = session.get_one("read")
        changed.state["n"] = 1
        session.delete(gone)
        assert session.new == (added, wait)
        assert session.dirty == (changed,)
        assert session.deleted == (gone,)
        assert [record in session for record in (added, wait, changed, read, gone)] == [
            True,
            True,
            True,
            True,
            False,
        ]
        assert repr(session).endswith("2 loaded, 2 new, 1 deleted>")
        session.commit()
        assert (session.new, session.dirty, session.deleted) == ((), (), ())
        assert gone not in session


# --- add, delete, replace -----------------------------------------------------------------------


@ONE_STORE
def test_what_cannot_be_encoded_any_more_is_dirty(store: cs.Store) -> None:
    """A session can be looked at and shown, whatever was put into a state; its commit refuses it."""
    create(store, "f")
    with store.session() as session:
        flow = session.get_one("f")
        flow.state["n"] = {1, 2}
        assert session.dirty == (flow,)
        assert repr(session).endswith("1 loaded, 0 new, 0 deleted>")
        with pytest.raises(cs.EncodingError):
            session.commit()


def test_add_creates_what_is_new_and_updates_what_was_read(store: cs.Store) -> None:
    """A record without revision is created, one with a revision is written if it has changed."""
    create(store, "f", "g")
    loaded, untouched = store.get_one("f"), store.get_one("g")
    loaded.state["n"] = 1
    with store.begin() as session:
        session.add(loaded)
        session.add(untouched)
        session.add(new("h"))

    assert [store.get_one(flow_id).version for flow_id in "fgh"] == [2, 1, 1]


def test_an_added_flow_may_not_exist(store: cs.Store) -> None:
    """A taken id refuses the whole commit, with `FlowExistsError`."""
    create(store, "f")
    with store.session() as session:
        session.add(new())
        session.add(new("g"))
        with pytest.raises(cs.FlowExistsError) as caught:
            session.commit()

    assert (caught.value.flow_id, caught.value.actual) == ("f", 1)
    assert store.get("g") is None


def test_a_deleted_record_is_gone_from_the_session(store: cs.Store) -> None:
    """After `delete`, `get` returns `None`, also for the flow's progress, before the commit."""
    create(store, "f")
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    with store.session() as session:
        flow = session.get_one("f")
        session.get_for_each_progress("f", 0)
        session.delete(flow)
        assert session.get("f") is None
        assert session.get_many(["f"]) == {"f": None}
        assert session.get_for_each_progress("f", 0) is None
        assert session.get_for_each_progress("f", 1) is None
        with pytest.raises(cs.FlowNotFoundError):
            session.get_one("f")

        assert store.get("f") is not None
        receipt = session.commit()
        assert session.get("f") is None

    assert [(key.id, version) for key, version in receipt.versions.items()] == [("f", 0)]
    assert store.get("f") is None
    assert store.list_for_each_progress("f") == {}


def test_a_delete_is_checked(store: cs.Store) -> None:
    """A loaded record that was written since is not deleted."""
    create(store, "f")
    store.save_for_each_progress("p", 0, cs.ForEachProgress([1]))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    with store.session() as session:
        flow, progress = session.get_one("f"), session.get_for_each_progress("p", 0)
        wait = session.get_wait_condition("w")
        store.update(store.get_one("f"))
        store.save_for_each_progress("p", 0, cs.ForEachProgress([2]), overwrite=True)
        store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
        for record in (flow, progress, wait):
            assert record is not None
            session.delete(record)

        with pytest.raises(cs.ConflictError) as caught:
            session.commit()

    assert sorted(type(error).__name__ for error in caught.value.conflicts) == [
        "StaleFlowError",
        "StaleProgressError",
        "StaleWaitConditionError",
    ]
    assert all((error.expected, error.actual) == (1, 2) for error in caught.value.conflicts)  # type: ignore[attr-defined]
    assert store.get("f") is not None


@ONE_STORE
def test_a_new_record_that_is_deleted_is_only_forgotten(store: cs.Store) -> None:
    """Deleting what was added in this session leaves nothing to send."""
    with store.session() as session:
        flow = new()
        session.add(flow)
        session.delete(flow)
        assert flow not in session
        assert session.commit() == cs.Receipt()
        with pytest.raises(cs.UsageError, match="'f' has never been stored"):
            session.delete(flow)


def test_delete_and_add_replace_in_one_commit(store: cs.Store) -> None:
    """The new flow has version 1, another revision and none of the old one's progress."""
    create(store, "f")
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    with store.session() as session:
        old = session.get_one("f")
        session.delete(old)
        fresh = new(attempts=4)
        session.add(fresh)
        assert session.get("f") is fresh
        receipt = session.commit()
        assert session.get("f") is fresh

    assert list(receipt.versions.values()) == [1]
    assert fresh.version == 1
    assert fresh.revision != old.revision
    assert store.get_one("f").attempts == 4
    assert store.list_for_each_progress("f") == {}
    with pytest.raises(cs.StaleFlowError):
        store.update(old)


def test_a_replacement_checks_what_it_replaces(store: cs.Store) -> None:
    """Delete and add of one key is refused if the deleted flow was written since."""
    create(store, "f")
    with store.session() as session:
        session.delete(session.get_one("f"))
        session.add(new(attempts=4))
        store.update(store.get_one("f"))
        with pytest.raises(cs.StaleFlowError) as caught:
            session.commit()

    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert store.get_one("f").attempts == 0


def test_progress_of_a_replaced_flow_is_the_new_flows(store: cs.Store) -> None:
    """Progress that is saved beside a replacement belongs to the new flow."""
    create(store, "f")
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    with store.begin() as session:
        session.delete(session.get_one("f"))
        session.add(new())
        session.save_for_each_progress("f", 0, cs.ForEachProgress([9]))

    kept = store.list_for_each_progress("f")
    assert [(step, list(progress.processed_indices)) for step, progress in kept.items()] == [
        (0, [9])
    ]


def test_progress_of_a_replaced_flow_is_gone(store: cs.Store) -> None:
    """What the old flow had saved is not the new one's, in the session and after it."""
    create(store, "f")
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    with store.begin() as session:
        session.delete(session.get_one("f"))
        assert session.get_for_each_progress("f", 0) is None
        session.add(new())
        assert session.get_for_each_progress("f", 0) is None

    assert store.list_for_each_progress("f") == {}


def test_what_a_replacement_takes_the_place_of_stays_deleted(store: cs.Store) -> None:
    """Expunging the new record leaves the deletion of the old one, of every kind."""
    create(store, "f")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.save_for_each_progress("p", 0, cs.ForEachProgress([1]))
    with store.begin() as session:
        wait = session.get_wait_condition("w")
        assert wait is not None
        session.delete(session.get_one("f"))
        session.delete(wait)
        session.clear_for_each_progress("p", 0)
        flow, wait, progress = new(), cs.WaitCondition("w", flow_ids=["b"]), cs.ForEachProgress()
        session.add(flow)
        session.add(wait)
        session.save_for_each_progress("p", 0, progress)
        for record in (flow, wait, progress):
            session.expunge(record)

    assert store.get("f") is None
    assert store.get_wait_condition("w") is None
    assert store.get_for_each_progress("p", 0) is None


def test_a_condition_is_replaced_in_one_commit(store: cs.Store) -> None:
    """Delete and add of a correlation id starts a new wait, without the old completions."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.complete_child("w", "a")
    with store.begin() as session:
        old = session.get_wait_condition("w")
        assert old is not None
        session.delete(old)
        assert session.get_wait_condition("w") is None
        session.add(cs.WaitCondition("w", flow_ids=["a", "b"]))

    read = store.get_wait_condition("w")
    assert read is not None
    assert (read.outcome, read.completed_count, read.version) == (cs.WaitOutcome.PENDING, 0, 1)


@ONE_STORE
def test_a_deleted_record_may_be_taken_back(store: cs.Store) -> None:
    """Adding the very object that was deleted attaches it again."""
    create(store, "f")
    with store.session() as session:
        flow = session.get_one("f")
        session.delete(flow)
        session.add(flow)
        assert flow in session
        assert session.deleted == ()
        session.commit()

    assert store.get_one("f").version == 1


@ONE_STORE
def test_a_loaded_record_does_not_replace_a_deleted_one(store: cs.Store) -> None:
    """Another object that was read cannot take the place of what the session deleted."""
    create(store, "f")
    with store.session() as session:
        session.delete(session.get_one("f"))
        with pytest.raises(cs.UsageError, match="'f' was deleted in this session"):
            session.add(store.get_one("f"))


@ONE_STORE
def test_only_records_are_taken(store: cs.Store) -> None:
    """`add`, `delete`, `check`, `expunge` refuse an object that is not a record, or has no place yet."""
    with store.session() as session:
        for act in (session.add, session.delete, session.check, session.expunge):
            with pytest.raises(
                cs.UsageError,
                match="expected a FlowSnapshot, WaitCondition, ForEachProgress or Part",
            ):
                act({"f": 1})  # type: ignore[arg-type]

        with pytest.raises(cs.UsageError, match="has no step until it is saved"):
            session.add(cs.ForEachProgress())

        with pytest.raises(cs.UsageError, match="has never been stored"):
            session.check(new())

        with pytest.raises(cs.UsageError, match="not in this session"):
            session.expunge(new())

        with pytest.raises(cs.UsageError, match="not in this session"):
            session.refresh(new())


# --- check --------------------------------------------------------------------------------------


def test_check_guards_against_write_skew(store: cs.Store) -> None:
    """Of two sessions that each check what the other writes, one is refused."""
    create(store, "a", "b")
    with store.session() as one, store.session() as other:
        one.check(one.get_one("b"))
        one.get_one("a").state["n"] = 1
        other.check(other.get_one("a"))
        other.get_one("b").state["n"] = 1
        one.commit()
        with pytest.raises(cs.StaleFlowError) as caught:
            other.commit()

    assert (caught.value.flow_id, caught.value.expected, caught.value.actual) == ("a", 1, 2)
    assert store.get_one("b").state == {"n": 0}


def test_check_covers_every_kind_of_record(store: cs.Store) -> None:
    """Conditions and progress are checked like flows, and nothing of them is written."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.save_for_each_progress("p", 0, cs.ForEachProgress([1]))
    wait, progress = store.get_wait_condition("w"), store.get_for_each_progress("p", 0)
    assert wait is not None
    assert progress is not None
    with store.session() as session:
        session.check(wait)
        session.check(progress)
        session.add(new())
        session.commit()
        assert (store.get_wait_condition("w") or wait).version == 1
        store.complete_child("w", "a")
        store.clear_for_each_progress("p", 0)
        session.check(wait)
        session.check(progress)
        session.get_one("f").state["n"] = 1
        with pytest.raises(cs.ConflictError) as caught:
            session.commit()

    stale, gone = caught.value.conflicts
    assert isinstance(stale, cs.StaleWaitConditionError)
    assert (stale.correlation_id, stale.expected, stale.actual) == ("w", 1, 2)
    assert isinstance(gone, cs.StaleProgressError)
    assert (gone.flow_id, gone.step_index, gone.expected, gone.actual) == ("p", 0, 1, None)
    assert store.get_one("f").version == 1


@ONE_STORE
def test_check_is_done_with_its_commit(store: cs.Store) -> None:
    """A check holds for the next commit and for none after it."""
    create(store, "a", "b")
    with store.session() as session:
        session.check(session.get_one("b"))
        session.get_one("a").state["n"] = 1
        session.commit()
        store.update(store.get_one("b"))
        session.get_one("a").state["n"] = 2
        session.commit()

    assert store.get_one("a").version == 3


@ONE_STORE
@pytest.mark.parametrize(
    "write",
    [
        lambda session: setattr(session.get_one("f"), "error", "later than the check"),
        lambda session: session.add(new()),
        lambda session: session.delete(session.get_one("f")),
    ],
    ids=["update", "create", "delete"],
)
def test_a_write_does_not_hide_a_stale_check(
    store: cs.Store, write: Callable[[cs.Session], object]
) -> None:
    """A record that is checked as one read and written as another is refused, and nothing is sent."""
    create(store, "f")
    old = store.get_one("f")
    store.update(store.get_one("f"))
    with store.session() as session:
        session.check(old)
        write(session)
        with pytest.raises(cs.UsageError, match="flow 'f' is checked at version 1 but written"):
            session.commit()

        session.rollback()
        session.check(store.get_one("f"))
        session.get_one("f").state["n"] = 1
        session.commit()

    assert (store.get_one("f").version, store.get_one("f").error) == (3, None)


@ONE_STORE
def test_what_is_written_without_a_look_cannot_be_checked(store: cs.Store) -> None:
    """Setting a condition, clearing and overwriting progress regard nothing, so a check is refused."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    wait, progress = store.get_wait_condition("w"), store.get_for_each_progress("f", 0)
    assert wait is not None
    assert progress is not None
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    store.save_for_each_progress("f", 0, cs.ForEachProgress([2]), overwrite=True)
    acts: list[tuple[Any, Callable[[cs.Session], object]]] = [
        (wait, lambda session: session.add(cs.WaitCondition("w", flow_ids=["c"]))),
        (progress, lambda session: session.clear_for_each_progress("f", 0)),
        (
            progress,
            lambda session: session.save_for_each_progress(
                "f", 0, cs.ForEachProgress([3]), overwrite=True
            ),
        ),
    ]
    for checked, act in acts:
        with store.session() as session:
            session.check(checked)
            act(session)
            with pytest.raises(cs.UsageError, match="is checked at version 1 but written"):
                session.commit()


def test_progress_is_checked_beside_the_end_of_its_flow(store: cs.Store) -> None:
    """A flow is deleted only if its progress is what was read, which goes with it then."""
    create(store, "f")
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    old = store.get_for_each_progress("f", 0)
    assert old is not None
    store.save_for_each_progress("f", 0, cs.ForEachProgress([2]), overwrite=True)
    with store.session() as session:
        session.check(old)
        session.delete(session.get_one("f"))
        with pytest.raises(cs.StaleProgressError) as caught:
            session.commit()

        assert (caught.value.expected, caught.value.actual) == (1, 2)
        session.rollback()
        read = session.get_for_each_progress("f", 0)
        assert read is not None
        session.check(read)
        session.delete(session.get_one("f"))
        session.commit()

    assert store.get("f") is None
    assert store.get_for_each_progress("f", 0) is None


@ONE_STORE
def test_two_reads_of_one_record_are_both_checked(store: cs.Store) -> None:
    """Reads that differ cannot both hold, and the second does not replace the first."""
    create(store, "f")
    old, same = store.get_one("f"), store.get_one("f")
    store.update(store.get_one("f"))
    with store.session() as session:
        session.check(old)
        session.check(same)
        with pytest.raises(
            cs.UsageError,
            match="cannot check flow 'f' at version 2, because this session already checks version 1",
        ):
            session.check(store.get_one("f"))

        with pytest.raises(cs.StaleFlowError):
            session.commit()


# --- refresh, expunge, rollback, close ----------------------------------------------------------


@ONE_STORE
def test_refresh_reads_into_the_same_object(store: cs.Store) -> None:
    """What was changed on the object is gone, what others wrote is there, and it is clean."""
    create(store, "f")
    with store.session() as session:
        flow = session.get_one("f")
        flow.state["n"] = 1
        flow.error = "mine"
        theirs = store.get_one("f")
        theirs.state["n"] = 2
        store.update(theirs)
        session.refresh(flow)
        assert session.get("f") is flow
        assert (flow.state, flow.error, flow.version) == ({"n": 2}, None, 2)
        assert flow.revision == theirs.revision
        assert session.dirty == ()
        flow.state["n"] = 3
        session.commit()

    assert store.get_one("f").state == {"n": 3}


def test_refresh_covers_every_kind_of_record(store: cs.Store) -> None:
    """Conditions show their completions, and progress its marks, after a refresh."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    store.save_for_each_progress("p", 0, cs.ForEachProgress([1]))
    with store.session() as session:
        wait, progress = session.get_wait_condition("w"), session.get_for_each_progress("p", 0)
        assert wait is not None
        assert progress is not None
        store.complete_child("w", "a", result=5)
        store.save_for_each_progress("p", 0, cs.ForEachProgress([2]), overwrite=True)
        session.refresh(wait)
        session.refresh(progress)
        assert wait.results == {"a": cs.ChildResult(success=True, result=5)}
        assert list(progress.processed_indices) == [2]
        assert progress.version == 2


@ONE_STORE
def test_refresh_of_what_is_gone_leaves_the_object(store: cs.Store) -> None:
    """Each kind has its own not-found error; the object keeps what it had."""
    create(store, "f")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.save_for_each_progress("p", 0, cs.ForEachProgress([1]))
    with store.session() as session:
        flow, wait = session.get_one("f"), session.get_wait_condition("w")
        progress = session.get_for_each_progress("p", 0)
        assert wait is not None
        assert progress is not None
        flow.state["n"] = 7
        store.delete("f")
        store.clear_wait_condition("w")
        store.clear_for_each_progress("p", 0)
        with pytest.raises(cs.FlowNotFoundError):
            session.refresh(flow)

        with pytest.raises(cs.WaitConditionNotFoundError):
            session.refresh(wait)

        with pytest.raises(cs.StaleProgressError):
            session.refresh(progress)

        assert (flow.state, flow.version) == ({"n": 7}, 1)
        assert flow in session


@ONE_STORE
def test_expunge_forgets_one_record(store: cs.Store) -> None:
    """An expunged record is not written; loading it again gives another object."""
    create(store, "f", "g")
    with store.session() as session:
        flow, other = session.get_one("f"), session.get_one("g")
        flow.state["n"] = other.state["n"] = 1
        session.expunge(flow)
        assert flow.state == {"n": 1}
        assert session.get("f") is not flow
        added = new("h")
        session.add(added)
        session.expunge(added)
        session.commit()

    assert [store.get_one(flow_id).version for flow_id in "fg"] == [1, 2]
    assert store.get("h") is None


@ONE_STORE
def test_rollback_forgets_everything(store: cs.Store) -> None:
    """After a rollback nothing is pending, the map is empty, and the session works on."""
    create(store, "f", "g")
    with store.session() as session:
        flow = session.get_one("f")
        flow.state["n"] = 1
        session.add(new("h"))
        session.delete(session.get_one("g"))
        session.complete_child("w", "c")
        session.check(flow)
        session.rollback()
        assert (session.new, session.dirty, session.deleted) == ((), (), ())
        assert session.commit() == cs.Receipt()
        assert session.get("f") is not flow
        assert session.get_one("f").state == {"n": 0}

    assert store.get("g") is not None
    assert store.get("h") is None
    assert store.complete_child("w", "c").duplicate is False


@ONE_STORE
def test_without_commit_nothing_is_written(store: cs.Store) -> None:
    """Leaving a session's block without `commit()` writes nothing."""
    create(store, "f")
    with store.session() as session:
        session.get_one("f").state["n"] = 1
        session.add(new("g"))

    assert store.get_one("f").version == 1
    assert store.get("g") is None


USES: list[Callable[[cs.Session], object]] = [
    lambda session: session.get("f"),
    lambda session: session.get_one("f"),
    lambda session: session.get_many(["f"]),
    lambda session: session.get_wait_condition("w"),
    lambda session: session.get_for_each_progress("f", 0),
    lambda session: session.add(new()),
    lambda session: session.delete(new()),
    lambda session: session.suspend(new(), cs.WaitCondition("w", flow_ids=["c"])),
    lambda session: session.save_for_each_progress("f", 0, cs.ForEachProgress()),
    lambda session: session.clear_for_each_progress("f", 0),
    lambda session: session.complete_child("w", "c"),
    lambda session: session.check(new()),
    lambda session: session.expunge(new()),
    lambda session: session.commit(),
]


@ONE_STORE
@pytest.mark.parametrize("use", USES)
def test_a_closed_session_is_refused(store: cs.Store, use: Callable[[cs.Session], object]) -> None:
    """Everything but `close` and `rollback` raises `SessionClosedError` that says why."""
    session = store.session()
    session.close()
    session.close()
    session.rollback()
    assert repr(session).endswith(": closed>")
    with pytest.raises(cs.SessionClosedError, match="it was closed; open a new session"):
        use(session)

    assert store.count_flows() == 0


@ONE_STORE
def test_close_with_unwritten_changes_to_a_claimed_flow_is_logged(
    store: cs.Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A forgotten commit is a warning; a rollback, a commit and an unchanged flow are not."""
    create(store, "f")
    with store.session() as session:
        flow = session.claim("f")
        flow.state["n"] = 5

    assert "flow 'f' was claimed and changed" in caplog.text
    caplog.clear()
    with store.session() as session:
        session.add(flow)
        session.rollback()

    with contextlib.suppress(KeyError), store.session() as session:
        session.add(flow)
        raise KeyError

    with store.begin() as session:
        session.add(flow)

    with store.session() as session:
        session.add(flow)

    assert store.get_one("f").state["n"] == 5
    assert caplog.records == []


@ONE_STORE
def test_claims_of_a_session_are_tracked(store: cs.Store) -> None:
    """What claim and claim_due return is written by the commit; what the session has is not claimed."""
    create(store, "f")
    store.create(new("g"))
    with store.begin() as session:
        flow = session.claim("f", owner="w-1")
        flow.state["n"] = 1
        with pytest.raises(cs.UsageError, match="'f' is already in this session"):
            session.claim("f")

        loaded = session.get_one("g")
        assert session.claim_due(limit=9) == []
        session.expunge(loaded)
        (other,) = session.claim_due(limit=9)
        other.state["n"] = 2
        assert (flow in session, other in session) == (True, True)

    assert [store.get_one(name).state["n"] for name in "fg"] == [1, 2]
    assert session.receipt is not None
    assert [session.receipt.version_of(one) for one in (flow, other)] == [3, 3]
    with pytest.raises(cs.UsageError, match="did not write flow 'h'"):
        session.receipt.version_of(cs.FlowSnapshot("h", state={}))


@ONE_STORE
def test_a_commit_of_a_session_closed_meanwhile_is_settled(store: cs.Store) -> None:
    """What was being sent comes to its end: the receipt, and the objects know what they are."""
    create(store, "f", "gone")
    transport = Transport(store)
    session = store.session()
    flow = session.get_one("f")
    flow.state["n"] = 1
    session.delete(session.get_one("gone"))

    def close_it(call: Call[Any]) -> Any:
        session.close()
        return transport.inner(call)

    transport.on_write = close_it
    receipt = session.commit()
    assert session.receipt is receipt
    assert (list(receipt.versions.values()), flow.version) == ([2, 0], 2)
    assert store.get("gone") is None
    with pytest.raises(cs.SessionClosedError, match="it was closed"):
        session.get("f")


@ONE_STORE
@pytest.mark.parametrize("use", USES)
def test_a_session_belongs_to_one_task(
    store: cs.Store, use: Callable[[cs.Session], object]
) -> None:
    """A session that is used while its commit is on the way raises, and the commit continues."""
    create(store, "f")
    transport = Transport(store)
    session = store.session()
    caught: list[BaseException] = []

    def meanwhile(call: Call[Any]) -> Any:
        try:
            use(session)
        except cs.UsageError as error:
            caught.append(error)

        return transport.inner(call)

    session.get_one("f").state["n"] = 1
    transport.on_write = meanwhile
    session.commit()
    assert len(caught) == 1
    assert "another task is committing this session" in str(caught[0])
    assert store.get_one("f").state == {"n": 1}


# --- commit -------------------------------------------------------------------------------------


def test_a_receipt_says_what_was_done(store: cs.Store) -> None:
    """Versions by key, completions by condition and child, and what the commit satisfied."""
    create(store, "f", "gone")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    store.complete_child("w", "a")
    store.complete_child("early", "x")
    with store.session() as session:
        assert session.receipt is None
        flow = session.get_one("f")
        flow.state["n"] = 1
        session.add(new("g"))
        session.delete(session.get_one("gone"))
        session.save_for_each_progress("f", 3, cs.ForEachProgress([0]))
        session.add(cs.WaitCondition("early", flow_ids=["x"]))
        session.complete_child("w", "a")
        session.complete_child("w", "b")
        session.complete_child("w", "stranger")
        session.complete_child("later", "c")
        receipt = session.commit()
        assert session.receipt is receipt

    assert receipt.commit_id
    assert {tuple(key): version for key, version in receipt.versions.items()} == {
        ("flow", "f", 0, ""): 2,
        ("flow", "g", 0, ""): 1,
        ("flow", "gone", 0, ""): 0,
        ("progress", "f", 3, ""): 1,
        ("wait", "early", 0, ""): 1,
    }
    pending, satisfied = cs.WaitOutcome.PENDING, cs.WaitOutcome.SATISFIED
    assert receipt.completions == {
        ("w", "a"): cs.Completion(False, True, False, pending),
        ("w", "b"): cs.Completion(True, False, True, satisfied),
        ("w", "stranger"): cs.Completion(False, False, False, satisfied),
        ("later", "c"): cs.Completion(True, False, False, None),
    }
    assert sorted(receipt.satisfied) == ["early", "w"]


def test_a_resolved_receipt_is_the_one_that_was_lost(store: cs.Store) -> None:
    """It has the version of a condition that the same commit set and satisfied, like any receipt."""
    faults = Faults()
    faults.attach(store)
    receipts: list[cs.Receipt | None] = []

    for name in ("w-1", "w-2"):
        with store.session() as session:
            session.add(new(name))
            session.add(cs.WaitCondition(name, flow_ids=["a", "b"]))
            session.complete_child(name, "a")
            session.complete_child(name, "b")
            try:
                receipts.append(session.commit())
            except cs.CommitUncertainError as error:
                receipts.append(store.resolve_commit(error))

        faults.on_commit("unknown-applied")

    seen, resolved = receipts
    assert seen is not None
    assert resolved is not None
    assert list(seen.versions.values()) == list(resolved.versions.values()) == [1, 2]
    assert list(seen.completions.values()) == list(resolved.completions.values())
    assert (seen.satisfied, resolved.satisfied) == (("w-1",), ("w-2",))


def test_versions_settle_only_after_success(store: cs.Store, clock: ManualClock) -> None:
    """A commit moves version, revision and `updated_at` of what it wrote, and of nothing else."""
    create(store, "f", "g")
    clock.advance(MINUTE)
    with store.session() as session:
        changed, read = session.get_one("f"), session.get_one("g")
        before = changed.revision
        changed.state["n"] = 1
        assert changed.version == 1
        session.commit()
        assert (changed.version, read.version) == (2, 1)
        assert changed.revision != before
        assert changed.updated_at == clock.now
        assert read.updated_at == clock.now - MINUTE


def test_a_refused_commit_writes_nothing(store: cs.Store) -> None:
    """Every refusal is reported with expected and actual; nothing is written, all is pending."""
    create(store, "stale", "deleted", "fine")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.set_wait_condition(cs.WaitCondition("v", flow_ids=["a"]))
    store.save_for_each_progress("p", 2, cs.ForEachProgress([1]))
    with store.session() as session:
        flows = [session.get_one(name) for name in ("stale", "deleted", "fine")]
        for flow in flows:
            flow.state["n"] = 1

        wait, other = session.get_wait_condition("w"), session.get_wait_condition("v")
        progress = session.get_for_each_progress("p", 2)
        assert wait is not None
        assert other is not None
        assert progress is not None
        wait.timeout = other.timeout = MINUTE
        progress.mark(5)
        session.add(new("taken"))
        session.complete_child("c", "x")

        create(store, "taken")
        store.update(store.get_one("stale"))
        store.delete("deleted")
        store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
        store.clear_wait_condition("v")
        store.save_for_each_progress("p", 2, cs.ForEachProgress([9]), overwrite=True)

        with pytest.raises(
            cs.ConflictError, match="the commit was refused because of conflicts in 6 records: "
        ) as caught:
            session.commit()

        error = caught.value
        assert type(error) is cs.ConflictError
        found = {type(conflict): conflict.__dict__ for conflict in error.conflicts}
        assert found == {
            cs.StaleFlowError: {"flow_id": "stale", "expected": 1, "actual": 2},
            cs.FlowNotFoundError: {"flow_id": "deleted", "expected": 1},
            cs.FlowExistsError: {"flow_id": "taken", "actual": 1},
            cs.StaleWaitConditionError: {"correlation_id": "w", "expected": 1, "actual": 2},
            cs.WaitConditionNotFoundError: {"correlation_id": "v", "expected": 1},
            cs.StaleProgressError: {"flow_id": "p", "step_index": 2, "expected": 1, "actual": 2},
        }
        assert store.get_one("fine").version == 1
        assert store.complete_child("c", "y").accepted
        assert session.dirty == (*flows, wait, other, progress)
        assert [flow.version for flow in flows] == [1, 1, 1]
        assert [flow.state for flow in flows] == [{"n": 1}] * 3
        assert session.receipt is None


def test_after_a_refusal_the_rest_can_be_committed(store: cs.Store) -> None:
    """Pending changes survive a refusal: mended, the same session commits them all."""
    create(store, "f", "g")
    with store.session() as session:
        stale, fine = session.get_one("f"), session.get_one("g")
        stale.state["n"] = fine.state["n"] = 1
        session.add(new("h"))
        session.complete_child("w", "c")
        store.update(store.get_one("f"))
        with pytest.raises(cs.StaleFlowError):
            session.commit()

        session.refresh(stale)
        stale.state["n"] = 2
        receipt = session.commit()

    assert [(key.id, version) for key, version in receipt.versions.items()] == [
        ("f", 3),
        ("g", 2),
        ("h", 1),
    ]
    assert receipt.completions["w", "c"].accepted
    assert store.get_one("f").state == {"n": 2}


@ONE_STORE
def test_after_a_refusal_rollback_forgets(store: cs.Store) -> None:
    """`rollback` after a refusal leaves a session that reads afresh."""
    create(store, "f")
    with store.session() as session:
        session.get_one("f").state["n"] = 1
        store.update(store.get_one("f"))
        with pytest.raises(cs.StaleFlowError):
            session.commit()

        session.rollback()
        assert session.get_one("f").version == 2
        assert session.commit() == cs.Receipt()


def test_completions_never_conflict(store: cs.Store) -> None:
    """Completions of closed, cleared and strange waits leave a commit alone."""
    store.set_wait_condition(cs.WaitCondition("closed", flow_ids=["a"]))
    store.complete_child("closed", "a")
    store.set_wait_condition(cs.WaitCondition("cleared", flow_ids=["a"]))
    store.clear_wait_condition("cleared")
    with store.session() as session:
        session.add(new())
        session.complete_child("closed", "b")
        session.complete_child("cleared", "a")
        receipt = session.commit()

    assert receipt.completions == {
        ("closed", "b"): cs.Completion(False, False, False, cs.WaitOutcome.SATISFIED),
        ("cleared", "a"): cs.Completion(False, False, False, cs.WaitOutcome.CANCELLED),
    }
    assert store.get_one("f").version == 1


@ONE_STORE
def test_a_completion_is_sent_by_one_commit(store: cs.Store) -> None:
    """What a commit has completed the next one of its session does not complete again."""
    with store.session() as session:
        session.complete_child("w", "a")
        assert session.commit().completions["w", "a"].accepted
        assert session.commit().completions == {}


def test_a_condition_in_the_session_learns_that_it_was_satisfied(store: cs.Store) -> None:
    """The commit that completes the last child closes the session's own object, which stays clean."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    with store.session() as session:
        wait = session.get_wait_condition("w")
        assert wait is not None
        session.complete_child("w", "a")
        receipt = session.commit()
        assert receipt.satisfied == ("w",)
        assert (wait.outcome, wait.version) == (cs.WaitOutcome.SATISFIED, 2)
        assert session.dirty == ()


@ON_TRANSPORT
@pytest.mark.parametrize("kind", ["flows", "completions", "mixed"])
def test_a_commit_names_at_most_200_records(store: cs.Store, kind: str) -> None:
    """201 are refused before anything is sent, 200 are written."""
    transport = Transport(store)
    with store.session() as session:
        for number in range(201):
            if kind == "flows" or (kind == "mixed" and number % 2):
                session.add(new(f"f-{number}"))
            else:
                session.complete_child("w", f"c-{number}")

        with pytest.raises(
            cs.CommitTooLargeError, match="201 records, but the limit is 200"
        ) as caught:
            session.commit()

        assert (caught.value.size, caught.value.limit) == (201, 200)
        assert transport.calls == 0
        assert store.count_flows() == 0
        assert store.complete_child("w", "c-0").accepted

        session.rollback()
        for number in range(200):
            session.add(new(f"f-{number}"))

        session.commit()
        assert store.count_flows() == 200


@ONE_STORE
def test_a_refused_encoding_keeps_the_session_usable(store: cs.Store) -> None:
    """What cannot be kept is refused before anything is sent; the rest is still pending."""
    create(store, "f", "g")
    transport = Transport(store)
    with store.session() as session:
        bad, good = session.get_one("f"), session.get_one("g")
        bad.state["n"] = object()
        good.state["n"] = 1
        before = transport.calls
        with pytest.raises(cs.EncodingError) as caught:
            session.commit()

        assert caught.value.path == "$.n"
        assert transport.calls == before
        assert (bad.version, good.version) == (1, 1)
        bad.state["n"] = 2
        session.commit()
        assert (bad.version, good.version) == (2, 2)


def test_one_commit_writes_every_kind(store: cs.Store) -> None:
    """Flows, conditions and progress are written together, or not at all."""
    create(store, "f", "stale")
    for outcome in ("refused", "written"):
        with store.session() as session:
            flow, stale = session.get_one("f"), session.get_one("stale")
            flow.state["n"] = stale.state["n"] = 1
            session.add(cs.WaitCondition("w", flow_ids=["a"]))
            session.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
            session.complete_child("v", "x")
            if outcome == "refused":
                store.update(store.get_one("stale"))
                with pytest.raises(cs.StaleFlowError):
                    session.commit()

                assert store.get_wait_condition("w") is None
                assert store.get_for_each_progress("f", 0) is None
                assert store.get_one("f").version == 1
            else:
                session.commit()
                assert store.get_wait_condition("w") is not None
                assert store.get_for_each_progress("f", 0) is not None
                assert store.get_one("f").version == 2
                assert store.complete_child("v", "x").duplicate


def test_progress_in_a_session(store: cs.Store) -> None:
    """Saved progress is created and followed; cleared progress is gone, and may start afresh."""
    with store.session() as session:
        progress = cs.ForEachProgress([1])
        session.save_for_each_progress("f", 0, progress)
        session.commit()
        progress.mark(2)
        session.commit()
        assert progress.version == 2
        session.clear_for_each_progress("f", 0)
        assert session.get_for_each_progress("f", 0) is None
        session.save_for_each_progress("f", 0, cs.ForEachProgress([7]))
        session.commit()
        kept = store.get_for_each_progress("f", 0)
        assert kept is not None
        assert (list(kept.processed_indices), kept.version) == ([7], 1)
        session.clear_for_each_progress("f", 0)
        session.commit()

    assert store.get_for_each_progress("f", 0) is None


def test_progress_in_a_session_is_checked_unless_overwritten(store: cs.Store) -> None:
    """Fresh progress expects none; `overwrite` writes whatever is there, one version on."""
    store.save_for_each_progress("f", 0, cs.ForEachProgress([1]))
    with store.session() as session:
        session.save_for_each_progress("f", 0, cs.ForEachProgress([2]))
        with pytest.raises(cs.StaleProgressError) as caught:
            session.commit()

        assert (caught.value.expected, caught.value.actual) == (0, 1)
        session.rollback()
        mine = cs.ForEachProgress([3])
        session.save_for_each_progress("f", 0, mine, overwrite=True)
        assert session.new == (mine,)
        session.commit()
        assert mine.version == 2

    kept = store.get_for_each_progress("f", 0)
    assert kept is not None
    assert list(kept.processed_indices) == [3]


# --- lost outcomes ------------------------------------------------------------------------------


def lost(transport: Transport, *, applied: bool) -> Callable[[Call[Any]], Any]:
    """Lose every reply, of calls that were performed or of calls that never arrived."""

    def perform(call: Call[Any]) -> Any:
        if applied:
            transport.inner(call)

        raise ReplyLostError("the line is dead")

    return perform


@ON_TRANSPORT
@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_outcome_closes_the_session(
    open_more: Callable[..., cs.Store], applied: bool
) -> None:
    """The outcome is not known: the error has the commit's id and keys, and the session says why it closed."""
    store = open_more(timeout=timedelta(seconds=1))
    create(store, "f")
    transport = Transport(store)
    session = store.session()
    flow = session.get_one("f")
    flow.state["n"] = 1
    session.complete_child("w", "c")
    transport.on_write = lost(transport, applied=applied)
    with pytest.raises(cs.CommitUncertainError, match="outcome is unknown") as caught:
        session.commit()

    error = caught.value
    assert [tuple(key) for key in error.keys] == [("flow", "f", 0, ""), ("wait", "w", 0, "")]
    assert error.commit_id
    assert flow.version == 1
    with pytest.raises(cs.SessionClosedError, match="CommitUncertainError"):
        session.get("f")

    with pytest.raises(cs.CommitUncertainError) as again:
        store.resolve_commit(error)

    assert again.value.commit_id == error.commit_id
    transport.on_write = None
    receipt = store.resolve_commit(error)
    if applied:
        assert receipt is not None
        assert receipt.commit_id == error.commit_id
        assert {tuple(key): version for key, version in receipt.versions.items()} == {
            ("flow", "f", 0, ""): 2
        }
        assert receipt.completions["w", "c"].accepted
        assert store.get_one("f").state == {"n": 1}
    else:
        assert receipt is None
        assert store.get_one("f").state == {"n": 0}

    assert store.resolve_commit(error) == receipt


@ON_TRANSPORT
def test_a_commit_that_was_given_up_is_never_applied(open_more: Opener) -> None:
    """What `resolve_commit` returned `None` about is refused when it arrives late."""
    store = open_more(timeout=timedelta(seconds=1))
    create(store, "f")
    transport = Transport(store)
    late: list[Call[Any]] = []

    def keep(call: Call[Any]) -> Any:
        late.append(call)
        raise ReplyLostError("the line is dead")

    flow = store.get_one("f")
    flow.state["n"] = 1
    transport.on_write = keep
    with pytest.raises(cs.CommitUncertainError) as caught:
        store.update(flow)

    transport.on_write = None
    assert store.resolve_commit(caught.value) is None
    assert late
    for call in late:
        with suppress(cs.StoreUnavailableError):  # so an embedded store says it, inside its call
            transport.inner(call)

    assert store.get_one("f").state == {"n": 0}


@ON_TRANSPORT
def test_a_lost_reply_that_is_found_again_raises_nothing(store: cs.Store) -> None:
    """A commit whose reply was lost once is sent again and returns what the first would have."""
    transport = Transport(store)
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    losses = [True, True]

    def flaky(call: Call[Any]) -> Any:
        reply = transport.inner(call)
        if losses:
            losses.pop()
            raise ReplyLostError("the line is bad")

        return reply

    transport.on_write = flaky
    assert store.complete_child("w", "a") == cs.Completion(
        True, False, True, cs.WaitOutcome.SATISFIED
    )
    assert losses == []


@ON_TRANSPORT
@pytest.mark.parametrize("failure", [NotSentError("no route"), RuntimeError("a bug")])
def test_any_failure_of_the_sending_closes_the_session(store: cs.Store, failure: Exception) -> None:
    """An outage is an error, nothing was written, and the session is not used on."""
    create(store, "f")
    transport = Transport(store)

    def fail(_call: Call[Any]) -> Any:
        raise failure

    session = store.session()
    session.get_one("f").state["n"] = 1
    transport.on_write = fail
    expected = cs.StoreUnavailableError if isinstance(failure, NotSentError) else RuntimeError
    with pytest.raises(expected):
        session.commit()

    with pytest.raises(cs.SessionClosedError):
        session.commit()

    transport.on_write = None
    assert store.get_one("f").version == 1


@ON_TRANSPORT
def test_an_outage_is_never_reported_as_absence(
    store: cs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of a store that cannot be reached raise; none returns `None` or nothing."""
    create(store, "f")
    transport = Transport(store)

    def fail(_call: Call[Any]) -> Any:
        raise NotSentError("no route")

    monkeypatch.setattr(transport, "inner", fail)
    reads: list[Callable[[], object]] = [
        lambda: store.get("f"),
        lambda: store.get_many(["f"]),
        store.query_flows,
        store.count_flows,
        lambda: store.get_wait_condition("w"),
        store.query_wait_conditions,
        store.get_timed_out_wait_conditions,
        lambda: store.get_for_each_progress("f", 0),
        lambda: store.list_for_each_progress("f"),
        store.claim_due,
        lambda: store.claim("f"),
        store.sweep,
        store.ping,
    ]
    for read in reads:
        with pytest.raises(cs.StoreUnavailableError, match="no route"):
            read()


@ON_TRANSPORT
def test_an_uncertain_commit_that_cannot_be_settled_yet_stays_what_it_is(
    open_more: Opener,
) -> None:
    """`resolve_commit` raises the same error again, and later knows all that was in the commit."""
    store = open_more(timeout=timedelta(milliseconds=200))
    create(store, "f")
    transport = Transport(store)

    def lose(call: Call[Any]) -> Any:
        transport.inner(call)
        raise ReplyLostError("the line is dead")

    transport.on_write = lose
    with store.session() as session:
        session.get_one("f").state["n"] = 1
        session.complete_child("w", "a")
        with pytest.raises(cs.CommitUncertainError) as caught:
            session.commit()

    with pytest.raises(cs.CommitUncertainError) as again:
        store.resolve_commit(caught.value)

    assert again.value is caught.value
    transport.on_write = None
    receipt = store.resolve_commit(again.value)
    assert receipt is not None
    assert list(receipt.versions.values()) == [2]
    assert receipt.completions == {("w", "a"): cs.Completion(True, False, False, None)}


@ONE_STORE
def test_resolve_commit_settles_only_uncertain_commits(store: cs.Store) -> None:
    """Any other argument is a usage error."""
    with pytest.raises(cs.UsageError, match="expected a CommitUncertainError"):
        store.resolve_commit(ValueError("x"))  # type: ignore[arg-type]


# --- begin and transact -------------------------------------------------------------------------


@ONE_STORE
def test_begin_commits_at_the_end(store: cs.Store) -> None:
    """The block's changes are written, and `receipt` tells what was."""
    with store.begin() as session:
        session.add(new())

    assert store.get_one("f").version == 1
    assert session.receipt is not None
    assert list(session.receipt.versions.values()) == [1]
    with pytest.raises(cs.SessionClosedError):
        session.get("f")


@ONE_STORE
def test_begin_rolls_back_on_an_exception(store: cs.Store) -> None:
    """Nothing of the block is written, the exception is raised, and the session is closed."""
    with pytest.raises(ZeroDivisionError), store.begin() as session:  # noqa: PT012  the block is the test
        session.add(new())
        _ = 1 // 0

    assert store.get("f") is None
    assert session.receipt is None
    with pytest.raises(cs.SessionClosedError):
        session.get("f")


@ONE_STORE
def test_begin_raises_the_conflict(store: cs.Store) -> None:
    """A refused commit at the end of the block is raised out of it."""
    create(store, "f")
    with pytest.raises(cs.FlowExistsError), store.begin() as session:
        session.add(new())


@ONE_STORE
def test_transact_returns_the_functions_result(store: cs.Store) -> None:
    """The function gets a session and the arguments; its changes are committed."""
    create(store, "f")

    def add(session: cs.Session, amount: int, times: int) -> int:
        flow = session.get_one("f")
        flow.state["n"] += amount * times
        n: int = flow.state["n"]
        return n

    assert store.transact(add, 5, 2) == 10
    assert store.get_one("f").state == {"n": 10}


def test_transact_tries_again_with_fresh_reads(store: cs.Store) -> None:
    """When its own commit conflicts, the function is called again and sees what others wrote."""
    create(store, "f")
    seen: list[int] = []

    def add(session: cs.Session) -> None:
        flow = session.get_one("f")
        seen.append(flow.version)
        flow.state["n"] += 1
        if len(seen) < 4:
            other = store.get_one("f")
            other.state["n"] += 10
            store.update(other)

    store.transact(add)
    assert seen == [1, 2, 3, 4]
    assert store.get_one("f").state == {"n": 31}


@ONE_STORE
def test_transact_gives_up_after_its_attempts(store: cs.Store) -> None:
    """The last conflict is raised when the attempts are used up."""
    create(store, "f")
    calls: list[int] = []

    def collide(session: cs.Session) -> None:
        calls.append(1)
        session.get_one("f").state["n"] += 1
        store.update(store.get_one("f"))

    with pytest.raises(cs.StaleFlowError) as caught:
        store.transact(collide, attempts=3)

    assert len(calls) == 3
    assert (caught.value.expected, caught.value.actual) == (3, 4)


@ONE_STORE
def test_transact_repeats_only_its_own_conflict(store: cs.Store) -> None:
    """A conflict or any other error that the function raises itself is raised at once."""
    create(store, "f")
    calls: list[int] = []

    def create_again(_session: cs.Session) -> None:
        calls.append(1)
        store.create(new())

    with pytest.raises(cs.FlowExistsError):
        store.transact(create_again)

    def miss(session: cs.Session) -> None:
        calls.append(1)
        session.get_one("nobody")

    with pytest.raises(cs.FlowNotFoundError):
        store.transact(miss)

    def fail(session: cs.Session) -> None:
        calls.append(1)
        session.get_one("f").state["n"] = 9
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.transact(fail)

    assert len(calls) == 3
    assert store.get_one("f").state == {"n": 0}


@ON_TRANSPORT
def test_transact_resolves_an_uncertain_commit(store: cs.Store) -> None:
    """A commit that did happen is not done again, though its reply was lost for good."""
    create(store, "f")
    transport = Transport(store)
    failures = iter(range(4))
    calls: list[int] = []

    def lose_four(call: Call[Any]) -> Any:
        reply = transport.inner(call)
        if next(failures, None) is not None:
            raise ReplyLostError("the line is dead")

        return reply

    def add(session: cs.Session) -> str:
        calls.append(1)
        session.get_one("f").state["n"] += 1
        return "done"

    transport.on_write = lose_four
    assert store.transact(add) == "done"
    assert len(calls) == 1
    assert store.get_one("f").state == {"n": 1}


@pytest.mark.parametrize("loss", ["unknown-applied", "unknown-not-applied"])
def test_transact_does_not_repeat_what_its_function_has_committed(
    store: cs.Store, loss: CommitFault
) -> None:
    """A lost commit of the function's own is resolved too: it is called again only if that failed."""
    create(store, "f")
    faults = Faults()
    faults.attach(store)
    calls: list[int] = []

    def add(session: cs.Session) -> None:
        session.get_one("f").state["n"] += 1
        if not calls:
            faults.on_commit(loss)

        calls.append(1)
        session.commit()

    if loss == "unknown-applied":
        with pytest.raises(cs.CommitUncertainError):
            store.transact(add)
    else:
        store.transact(add)

    assert len(calls) == (1 if loss == "unknown-applied" else 2)
    assert store.get_one("f").state == {"n": 1}


@ONE_STORE
def test_transact_does_not_repeat_a_function_that_has_committed(store: cs.Store) -> None:
    """A conflict after a commit of the function's own is raised: that commit would be done twice."""
    create(store, "f", "g")
    calls: list[int] = []

    def add(session: cs.Session) -> None:
        calls.append(1)
        session.get_one("f").state["n"] += 1
        session.commit()
        session.get_one("g").state["n"] += 1
        store.update(store.get_one("g"))

    with pytest.raises(cs.StaleFlowError):
        store.transact(add)

    assert len(calls) == 1
    assert store.get_one("f").state == {"n": 1}


@ON_TRANSPORT
def test_transact_repeats_a_commit_that_never_happened(
    open_more: Callable[..., cs.Store],
) -> None:
    """An uncertain commit that turns out not to be applied is tried again, once."""
    store = open_more(timeout=timedelta(milliseconds=200))
    create(store, "f")
    transport = Transport(store)
    dropped: list[Call[Any]] = []
    calls: list[int] = []

    def drop_the_first(call: Call[Any]) -> Any:
        if not dropped:
            dropped.append(call)

        if call == dropped[0]:
            raise ReplyLostError("the line is dead")

        return transport.inner(call)

    def add(session: cs.Session) -> None:
        calls.append(1)
        session.get_one("f").state["n"] += 1

    transport.on_write = drop_the_first
    store.transact(add)
    assert len(calls) == 2
    assert store.get_one("f").state == {"n": 1}


@ONE_STORE
def test_transact_needs_an_attempt(store: cs.Store) -> None:
    """`attempts` is an int from 1 up; anything else is refused before the function is called."""
    for attempts in (0, -1, True, 1.5, "3"):
        with pytest.raises(cs.UsageError, match="attempts: expected an int of at least 1"):
            store.transact(lambda _session: pytest.fail("called"), attempts=attempts)  # type: ignore[arg-type]


@ONE_STORE
def test_a_session_of_transact_is_closed_afterwards(store: cs.Store) -> None:
    """What the function kept of its session cannot be used."""
    session = store.transact(lambda session: session)
    with pytest.raises(cs.SessionClosedError):
        session.get("f")


@ONE_STORE
def test_progress_rolled_back_may_go_elsewhere(store: cs.Store) -> None:
    """What a session only queued leaves no trace on a new progress."""
    progress = cs.ForEachProgress([1])
    with store.session() as session:
        session.save_for_each_progress("f", 0, progress)
        session.rollback()

    store.save_for_each_progress("g", 1, progress)
    assert list(store.list_for_each_progress("g")) == [1]


def test_a_commit_of_nothing_but_checks_is_sent(store: cs.Store) -> None:
    """A check alone decides a commit: it passes while the record is what was read, else refuses."""
    store.create(new())
    with store.session() as session:
        session.check(session.get_one("f"))
        assert session.commit().commit_id is not None

        read = session.get_one("f")
        session.check(read)
        other = store.get_one("f")
        store.update(other)
        with pytest.raises(cs.StaleFlowError):
            session.commit()
