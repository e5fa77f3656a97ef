"""`FlowSnapshot.expires_at`: an expiry that the user sets, on live flows and on ended ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import attrs
import pytest
import redis
from marks import ONE_STORE

import catga_store as cs
from catga_store.copying import compare
from catga_store.testing.clock import ManualClock

MS = timedelta(milliseconds=1)
MINUTE = timedelta(minutes=1)
KEPT = cs.Retention(flows=timedelta(minutes=10), failed=timedelta(minutes=20))
TERMINAL = [status for status in cs.FlowStatus if status.is_terminal]
LIVE = [status for status in cs.FlowStatus if not status.is_terminal]

Opener = Callable[..., cs.Store]


@attrs.define
class Order:
    """A state."""

    n: int


@pytest.fixture
def store(open_more: Opener) -> cs.Store:
    """Open the store with short retentions."""
    return open_more(retention=KEPT)


def flow(flow_id: str = "f", **fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, **fields)


def end(store: cs.Store, status: cs.FlowStatus = cs.FlowStatus.COMPLETED) -> datetime | None:
    """Let the flow end; return when it expires."""
    ended = store.get_one("f")
    ended.status = status
    store.update(ended)
    assert store.get_one("f").expires_at == ended.expires_at
    return ended.expires_at


def assert_absent(store: cs.Store, flow_id: str = "f") -> None:
    """No operation finds the flow, nor its progress."""
    assert store.get(flow_id) is None
    assert store.get_many([flow_id]) == {flow_id: None}
    assert store.query_flows().items == ()
    assert store.query_flows(id_prefix=flow_id).items == ()
    assert store.count_flows() == store.count_flows(id_prefix=flow_id) == 0
    assert store.claim_due() == []
    assert store.list_for_each_progress(flow_id) == {}
    assert store.get_for_each_progress(flow_id, 1) is None
    with pytest.raises(cs.FlowNotFoundError):
        store.claim(flow_id)


@pytest.mark.parametrize("status", LIVE)
def test_live_flow_expires_at_that_millisecond(
    store: cs.Store, clock: ManualClock, status: cs.FlowStatus
) -> None:
    """Until then everything finds it; then nothing does, and its id is free."""
    store.create(flow(status=status, expires_at=clock.now + MINUTE))
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    clock.advance(MINUTE - MS)
    assert store.get_one("f").expires_at == clock.now + MS
    assert [one.expires_at for one in store.query_flows()] == [clock.now + MS]
    assert store.count_flows() == 1
    clock.advance(MS)
    assert_absent(store)
    store.create(flow(due_at=None))
    assert store.get_one("f").expires_at is None
    assert store.list_for_each_progress("f") == {}


def test_expiry_is_set_moved_and_removed(store: cs.Store, clock: ManualClock) -> None:
    """By an update, a session or a transaction; each is a write like any other."""
    start = clock.now
    store.create(flow(due_at=None))
    one = store.get_one("f")
    assert one.expires_at is None
    one.expires_at = start + MINUTE
    store.update(one)
    assert (one.version, store.get_one("f").expires_at) == (2, start + MINUTE)
    with store.begin() as session:
        session.get_one("f").expires_at = start + 2 * MINUTE

    assert store.get_one("f").expires_at == start + 2 * MINUTE
    clock.advance(MINUTE)
    assert store.get_one("f").version == 3
    store.transact(lambda session: setattr(session.get_one("f"), "expires_at", None))
    assert (store.get_one("f").version, store.get_one("f").expires_at) == (4, None)
    clock.advance(timedelta(days=1000))
    store.sweep()
    assert store.get("f") is not None


def test_writes_that_leave_it_alone_keep_it(store: cs.Store, clock: ManualClock) -> None:
    """Updates, claims, their extension, their return and a suspension."""
    until = clock.now + MINUTE
    store.create(flow(expires_at=until))
    store.transact(lambda session: setattr(session.get_one("f"), "error", "slow"))
    (claimed,) = store.claim_due()
    assert claimed.expires_at == until
    store.extend(claimed, 2 * MINUTE)
    claimed.state["n"] = 1
    store.update(claimed)
    assert claimed.expires_at == until
    store.release(claimed)
    assert claimed.expires_at == store.get_one("f").expires_at == until
    with store.begin() as session:
        session.suspend(session.get_one("f"), cs.WaitCondition("w", flow_ids=["x"]))

    store.complete_child("w", "x")
    (claimed,) = store.claim_due()
    assert (claimed.expires_at, claimed.wait_condition is not None) == (until, True)
    with store.begin() as session:
        session.add(claimed)
        claimed.expires_at = None
        session.refresh(claimed)
        assert claimed.expires_at == until

    clock.advance(MINUTE)
    assert_absent(store)


def test_claim_on_a_flow_that_has_expired_is_lost(store: cs.Store, clock: ManualClock) -> None:
    """Its owner can neither write, extend nor release; nobody else is given it."""
    store.create(flow(expires_at=clock.now + MINUTE))
    (claimed,) = store.claim_due(lease=2 * MINUTE)
    clock.advance(MINUTE)
    with pytest.raises(cs.ClaimLostError):
        store.extend(claimed)

    with pytest.raises(cs.FlowNotFoundError):
        store.release(claimed)

    with pytest.raises(cs.FlowNotFoundError):
        store.update(claimed)

    clock.advance(5 * MINUTE)
    assert_absent(store)


def test_expired_copy_is_not_written(store: cs.Store, clock: ManualClock) -> None:
    """What was read before is stale, alone and in a session, also when it sets another expiry."""
    store.create(flow(expires_at=clock.now + MINUTE, due_at=None))
    one = store.get_one("f")
    clock.advance(MINUTE)
    one.expires_at = None
    with pytest.raises(cs.FlowNotFoundError):
        store.update(one)

    with pytest.raises(cs.FlowNotFoundError), store.begin() as session:
        session.add(one)

    assert_absent(store)


@pytest.mark.parametrize("status", TERMINAL)
def test_expiry_outlasts_the_end(
    store: cs.Store, clock: ManualClock, status: cs.FlowStatus
) -> None:
    """Shorter or longer than the retention, it stays, whatever is written later, and after a revival."""
    for until in (clock.now + 5 * MINUTE, clock.now + timedelta(days=400)):
        store.create(flow(expires_at=until, due_at=None))
        assert end(store, status) == until
        assert end(store, status) == until
        assert end(store, TERMINAL[0]) == until
        assert end(store, cs.FlowStatus.RUNNING) == until
        assert end(store, status) == until
        clock.advance(until - MS - clock.now)
        assert store.get("f") is not None
        clock.advance(MS)
        assert_absent(store)


def test_expiry_set_with_the_end_or_after_it(store: cs.Store, clock: ManualClock) -> None:
    """It takes the place of the retention's; `None` gives that back, from that write on."""
    start = clock.now
    store.create(flow(due_at=None))
    one = store.get_one("f")
    one.status, one.expires_at = cs.FlowStatus.COMPLETED, start + MINUTE
    store.update(one)
    assert one.expires_at == start + MINUTE
    clock.advance(MS)
    store.update(one)
    assert one.expires_at == start + MINUTE
    one.expires_at = None
    store.update(one)
    assert one.expires_at == clock.now + 10 * MINUTE
    clock.advance(MS)
    one.status = cs.FlowStatus.FAILED
    store.update(one)
    assert one.expires_at == clock.now + 20 * MINUTE
    one = store.get_one("f")
    one.expires_at = start + timedelta(days=99)
    store.update(one)
    store.update(store.get_one("f"))
    assert store.get_one("f").expires_at == start + timedelta(days=99)


def test_expiry_of_the_retention_goes_when_a_flow_is_revived(
    store: cs.Store, clock: ManualClock
) -> None:
    """A live flow has none unless it is set, also in the write that revives it."""
    store.create(flow(status=cs.FlowStatus.COMPLETED))
    assert store.get_one("f").expires_at == clock.now + 10 * MINUTE
    assert end(store, cs.FlowStatus.RUNNING) is None
    end(store)
    one = store.get_one("f")
    one.status, one.expires_at = cs.FlowStatus.RUNNING, clock.now + timedelta(hours=1)
    store.update(one)
    assert store.get_one("f").expires_at == clock.now + timedelta(hours=1)


@pytest.mark.parametrize("status", [cs.FlowStatus.CREATED, cs.FlowStatus.COMPLETED])
def test_without_retention_an_own_expiry_is_the_only_one(
    open_more: Opener, clock: ManualClock, status: cs.FlowStatus
) -> None:
    """`Retention(flows=None)` keeps what has ended forever, except where it says itself."""
    store = open_more(retention=cs.Retention(flows=None))
    store.create(flow("kept", status=status, due_at=None))
    store.create(flow("f", status=status, due_at=None, expires_at=clock.now + MINUTE))
    clock.advance(timedelta(days=10_000))
    assert [one.flow_id for one in store.iter_flows()] == ["kept"]


def test_expiry_of_any_state(store: cs.Store, clock: ManualClock) -> None:
    """Typed, with a wait condition in it, or large: it is kept through the end and read back."""
    until = clock.now + MINUTE
    states: dict[str, Any] = {"typed": Order(1), "large": "x" * 3_000_000, "none": None}
    states["bytes"] = b'\x00,"own_expiry":true,"wait":null,"state":1}'
    for name, state in states.items():
        one = cs.FlowSnapshot(name, state=state, expires_at=until, due_at=None)
        one.wait_condition = cs.WaitCondition("w", flow_ids=["x"])
        store.create(one)
        for status in (cs.FlowStatus.COMPLETED, cs.FlowStatus.FAILED):
            one.status = status
            store.update(one)

        read = store.get_one(name, Order if name == "typed" else None)
        assert (read.expires_at, read.state) == (until, state)
        assert read.wait_condition is not None
        store.update(read)
        assert store.get_one(name).expires_at == until

    clock.advance(MINUTE)
    assert store.count_flows() == 0
    assert store.sweep() == 4


def test_expiry_in_the_past(store: cs.Store, clock: ManualClock) -> None:
    """The flow is absent as soon as it is written, and its id is free."""
    store.create(flow(expires_at=clock.now))
    assert_absent(store)
    store.create(flow(due_at=None))
    one = store.get_one("f")
    one.expires_at = datetime(1969, 1, 1, tzinfo=UTC)
    store.update(one)
    assert_absent(store)
    store.create(flow(expires_at=cs.NOW))
    assert_absent(store)


def test_sweep_removes_every_trace_of_a_live_flow(store: cs.Store, clock: ManualClock) -> None:
    """Of its listings, its due time and its progress; a flow that was prolonged stays."""
    until = clock.now + MINUTE
    for name in ("f", "g", "prolonged"):
        store.create(flow(name, expires_at=until))
        store.save_for_each_progress(name, 1, cs.ForEachProgress([1]))

    one = store.get_one("prolonged")
    one.expires_at = until + MINUTE
    store.update(one)
    (claimed,) = [one for one in store.claim_due(limit=3) if one.flow_id == "g"]
    assert claimed.expires_at == until
    clock.advance(MINUTE - MS)
    assert store.sweep() == 0
    clock.advance(MS)
    assert store.sweep() == 2
    assert store.sweep() == 0
    clock.advance(-MINUTE)
    assert [one.flow_id for one in store.iter_flows()] == ["prolonged"]
    assert [one.flow_id for one in store.iter_flows(id_prefix="prolonged")] == ["prolonged"]
    assert store.count_flows() == 1
    assert store.list_for_each_progress("f") == {}
    clock.advance(timedelta(seconds=45))
    assert [one.flow_id for one in store.claim_due(limit=9)] == ["prolonged"]


def test_expired_flows_do_not_stand_in_the_way(store: cs.Store, clock: ManualClock) -> None:
    """However many have expired that were due before it, a live flow is claimed."""
    with store.begin() as session:
        for number in range(100):
            session.add(flow(f"f-{number}", expires_at=clock.now + MINUTE))

    clock.advance(MS)
    store.create(flow("live"))
    clock.advance(MINUTE)
    assert [one.flow_id for one in store.claim_due()] == ["live"]


def test_parts_of_a_live_flow_expire_with_it(store: cs.Store, clock: ManualClock) -> None:
    """Its log too; neither is there when the clock is moved back, or for another flow of its id."""
    store.create(flow(expires_at=clock.now + MINUTE))
    store.put_part(cs.Part("f", "a", b"x"))
    store.append("f", b"entry")
    assert len(store.list_parts("f")) == 2
    clock.advance(MINUTE)
    assert (store.list_parts("f").items, store.get_part("f", "a")) == ((), None)
    assert store.sweep() == 1
    clock.advance(-MINUTE)
    assert store.list_parts("f").items == ()
    store.create(flow())
    assert store.list_parts("f").items == ()


def test_condition_of_an_expired_parent(store: cs.Store, clock: ManualClock) -> None:
    """It notifies nobody, and a sweep begins its retention, as for any parent that is gone."""
    with store.begin() as session:
        parent = flow(expires_at=clock.now + MINUTE)
        session.add(parent)
        session.suspend(parent, cs.WaitCondition("w", flow_ids=["x"]))

    clock.advance(MINUTE)
    assert store.complete_child("w", "x").now_satisfied
    assert store.claim_due() == []
    store.sweep()
    assert KEPT.waits is not None
    clock.advance(KEPT.waits)
    assert store.get_wait_condition("w") is None


def test_session_writes_a_changed_expiry_and_nothing_else(
    store: cs.Store, clock: ManualClock
) -> None:
    """It counts as a change; what is the same to the millisecond does not."""
    until = clock.now + MINUTE
    store.create(flow(expires_at=until, due_at=None))
    store.create(flow("ended", status=cs.FlowStatus.FAILED, expires_at=until))
    with store.begin() as session:
        for name in ("f", "ended"):
            session.get_one(name).expires_at = until - MS + timedelta(microseconds=1)

    assert [store.get_one(name).version for name in ("f", "ended")] == [1, 1]
    with store.begin() as session:
        for name in ("f", "ended"):
            session.get_one(name).expires_at = until + MS

    assert [store.get_one(name).version for name in ("f", "ended")] == [2, 2]
    assert [store.get_one(name).expires_at for name in ("f", "ended")] == [until + MS] * 2


def test_copy_keeps_expiries(store: cs.Store, clock: ManualClock, open_more: Opener) -> None:
    """Of live and of ended flows, and whose they are; what has expired is not copied."""
    until = clock.now + timedelta(hours=1)
    store.create(flow("live", expires_at=until))
    store.create(flow("own", expires_at=until, status=cs.FlowStatus.COMPLETED))
    store.create(flow("retained", status=cs.FlowStatus.COMPLETED))
    store.create(flow("gone", expires_at=clock.now + MS))
    clock.advance(MS)
    with cs.MemoryStore(clock=clock, retention=KEPT) as target:
        assert cs.copy(store, target).flows == 3
        assert list(compare(store, target)) == []
        found = {one.flow_id: one.expires_at for one in target.iter_flows()}
        retained = clock.now - MS + 10 * MINUTE
        assert found == {"live": until, "own": until, "retained": retained}
        for name in found:
            target.update(target.get_one(name))

        found = {one.flow_id: one.expires_at for one in target.iter_flows()}
        assert found == {"live": until, "own": until, "retained": retained + MS}
        differing = target.get_one("live")
        differing.expires_at = None
        target.update(differing)
        (what,) = [one.what for one in compare(store, target) if one.key.id == "live"]
        assert "expires_ms" in what


@ONE_STORE
def test_expiry_is_rounded_up_and_copied_with_its_object(clock: ManualClock) -> None:
    """In UTC and whole milliseconds, like a due time."""
    moment = datetime(2030, 1, 1, 2, 0, 0, 1, tzinfo=UTC)
    one = flow(expires_at=moment)
    assert one.expires_at == moment - timedelta(microseconds=1) + MS
    for other in (copy.deepcopy(one), copy.copy(one), pickle.loads(pickle.dumps(one))):
        assert other.expires_at == one.expires_at


@ONE_STORE
@pytest.mark.parametrize("value", [5, "2030-01-01", timedelta(1), datetime(2030, 1, 1)])  # noqa: DTZ001  that is refused
def test_bad_expiry_is_refused(value: Any) -> None:
    """At the assignment, and the object keeps what it had."""
    one = flow()
    with pytest.raises(cs.UsageError):
        one.expires_at = value

    with pytest.raises(cs.UsageError):
        flow(expires_at=value)

    assert one.expires_at is None


@pytest.mark.stores("redis-6.2", "redis-8.2")
def test_the_server_removes_no_live_flow(
    store: cs.Store, store_url: str, clock: ManualClock
) -> None:
    """Only an ended flow gets a time to live: an hour from its expiry, whoever has set that."""
    one = flow(expires_at=clock.now + MINUTE, due_at=None)
    store.create(one)
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    with redis.Redis.from_url(store_url.partition("?")[0]) as client:
        prefix = store_url.partition("prefix=")[2].removesuffix(":")

        def left() -> list[int]:
            names = [f"{{{prefix}:0}}:{name}:f" for name in ("flow", "steps")]
            return [client.pttl(name) for name in names]

        assert left() == [-1, -1]
        one.state["n"] = 1
        store.update(one)
        assert left() == [-1, -1]
        for status, has_one in ((cs.FlowStatus.FAILED, True), (cs.FlowStatus.RUNNING, False)):
            one.status = status
            store.update(one)
            assert one.expires_at == clock.now + MINUTE
            for ttl in left():
                assert (0 < ttl <= 3_660_000) is has_one
                assert (ttl == -1) is not has_one
