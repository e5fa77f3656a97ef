"""How many transport requests each operation costs, counted on the embedded stores.

On these stores a transport request is a transaction. The first operation of a store has two more, to
learn or set the layout, so everything here is counted after a `ping`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import catga_store as cs


class CountingWire:
    """Stands in for a store's transport; `reads` and `writes` count what it performed."""

    def __init__(self, transport: Any) -> None:
        self._wire = transport
        self.threaded = transport.threaded
        self.reads = self.writes = 0

    def __call__(self, call: Any) -> Any:
        if call.writes:
            self.writes += 1
        else:
            self.reads += 1

        return self._wire(call)

    def close(self) -> None:
        """Close the transport beneath."""
        self._wire.close()


def count(store: Any) -> CountingWire:
    """Begin to count what a store or an async store sends."""
    transport = CountingWire(store._driver.transport)
    store._driver.transport = transport
    return transport


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Both embedded stores."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/flows.db"


@pytest.fixture
def store(url: str) -> Iterator[cs.Store]:
    """A prepared store with what the operations below need in it."""
    with cs.open_store(url) as opened:
        opened.ping()
        for name in ("a", "b", "c"):
            opened.create(cs.FlowSnapshot(name, state={"n": 0}, due_at=None))

        opened.save_for_each_progress("a", 1, cs.ForEachProgress([1, 2]))
        opened.save_for_each_progress("a", 2, cs.ForEachProgress([3]))
        opened.put_part(cs.Part("a", "p", {"n": 0}))
        for number in range(3):
            opened.append("a", number, key=f"k{number}")

        children = [f"child {number}" for number in range(1000)]
        opened.set_wait_condition(cs.WaitCondition("wait", flow_ids=children))
        opened.set_wait_condition(
            cs.WaitCondition("late", flow_ids=["x"], timeout=timedelta(0), parent_flow_id="b")
        )
        yield opened


def change_one(store: cs.Store) -> None:
    """Change one flow in a session."""
    with store.begin() as session:
        session.get_one("a").state["n"] += 1


def change_many(store: cs.Store) -> None:
    """Change flow, progress and waits in one session, whose reads are in the map by then."""
    with store.begin() as session:
        flows = session.get_many(["a", "b"])
        for flow in flows.values():
            assert flow is not None
            flow.state["n"] += 1

        session.add(cs.FlowSnapshot("new", state=None))
        session.save_for_each_progress("b", 0, cs.ForEachProgress([0]))
        session.complete_child("wait", "child 1")
        session.complete_child("wait", "child 2")
        session.suspend(session.get_one("a"), cs.WaitCondition("own", flow_ids=["z"]))


def change_nothing(store: cs.Store) -> None:
    """Read a flow twice in a session and commit."""
    with store.begin() as session:
        assert session.get_one("a") is session.get_one("a")


def delete_by_id(store: cs.Store) -> None:
    """Delete two flows that the session has not read."""
    with store.begin() as session:
        session.delete_by_id("a")
        session.delete_by_id("nobody")


def guard_and_change(store: cs.Store) -> None:
    """Claim one flow, and change another one under that claim."""
    claimed = store.claim("c")
    with store.begin() as session:
        session.guard(claimed)
        session.get_one("a").state["n"] += 1


def clear_and_sweep(store: cs.Store) -> None:
    """Sweep when there is nothing."""
    store.clear()
    store.sweep()


HOUR = timedelta(hours=1)


def claim_and_hold(store: cs.Store) -> None:
    """Claim a flow by name, and hold the claim for less than a third of its lease."""
    with store.holding(store.claim("a")):
        pass


def change_parts(store: cs.Store) -> None:
    """Change a flow and a part, and add parts and entries, in one session that reads two of them."""
    with store.begin() as session:
        session.get_one("a").state["n"] += 1
        part = session.get_part("a", "p")
        assert part is not None
        part.body["n"] += 1
        session.add_part(cs.Part("a", "p/1", b"1"))
        session.add_part(cs.Part("a", "p/2", b"2"), exists="keep")
        session.append("a", "new", key="k9")
        session.append("a", "again", key="k1")
        assert session.get_part("a", "p") is part


def step_with_entry(store: cs.Store) -> None:
    """Write an entry and a part with a flow that is read."""
    with store.begin() as session:
        session.get_one("a").state["n"] += 1
        session.append("a", "done")


def delete_parts_of_501(store: cs.Store) -> None:
    """Delete one part more than one commit removes."""
    for first in (0, 200, 400):
        with store.begin() as session:
            for number in range(first, min(first + 200, 501)):
                session.add_part(cs.Part("b", f"{number}", b""))

    assert store.delete_parts("b", "") == 501


def claim_and_extend(store: cs.Store) -> None:
    """Claim a flow by name and move the end of the claim."""
    store.extend(store.claim("a"))


# Operation -> what it does, how many reads and writes it sends.
OPERATIONS: dict[str, tuple[Callable[[cs.Store], object], int, int]] = {
    "create": (lambda store: store.create(cs.FlowSnapshot("d", state=None)), 0, 1),
    "get": (lambda store: store.get("a"), 1, 0),
    "get, absent": (lambda store: store.get("nobody"), 1, 0),
    "get_one": (lambda store: store.get_one("a"), 1, 0),
    "get_or_create, new": (lambda store: store.get_or_create(cs.FlowSnapshot("d", state={})), 0, 1),
    "get_or_create, there": (
        lambda store: store.get_or_create(cs.FlowSnapshot("a", state={})),
        1,
        1,
    ),
    "get, update": (lambda store: store.update(store.get_one("a")), 1, 1),
    "get, delete": (lambda store: store.delete(store.get_one("a")), 1, 1),
    "delete by id": (lambda store: store.delete("a"), 0, 1),
    "delete by version": (lambda store: store.delete("a", version=1), 1, 1),
    "delete_many of 200": (lambda store: store.delete_many(map(str, range(200))), 0, 1),
    "delete_many of 201": (lambda store: store.delete_many(map(str, range(201))), 0, 2),
    "delete_many of 0": (lambda store: store.delete_many([]), 0, 0),
    "session, guard": (guard_and_change, 3, 2),
    "session, delete_by_id": (delete_by_id, 0, 1),
    "get_many of 1": (lambda store: store.get_many(["a"]), 1, 0),
    "get_many of 500": (lambda store: store.get_many(map(str, range(500))), 1, 0),
    "get_many of 501": (lambda store: store.get_many(map(str, range(501))), 2, 0),
    "get_many of 501 by type": (
        lambda store: store.get_many(dict.fromkeys(map(str, range(501)))),
        2,
        0,
    ),
    "get_many of 0": (lambda store: store.get_many([]), 0, 0),
    "query_flows": (lambda store: store.query_flows(limit=2), 1, 0),
    "query_flows, id_prefix": (lambda store: store.query_flows(id_prefix="a"), 1, 0),
    "query_flows, id_prefix and status": (
        lambda store: store.query_flows(id_prefix="a", status=cs.FlowStatus.RUNNING),
        1,
        0,
    ),
    "query_due": (lambda store: store.query_due(), 2, 0),
    "query_due, due": (lambda store: store.query_due(only="due"), 1, 0),
    "query_due, a full page": (lambda store: store.query_due(limit=1), 2, 0),
    "count_due": (lambda store: store.count_due(), 2, 0),
    "count_due, claimed": (lambda store: store.count_due(only="claimed"), 1, 0),
    "stats": (lambda store: store.stats(), 1, 0),
    "count_flows": (lambda store: store.count_flows(), 1, 0),
    "count_flows, id_prefix": (lambda store: store.count_flows(id_prefix="a"), 1, 0),
    "cancel_flow": (lambda store: store.cancel_flow("a", "by hand"), 1, 1),
    "retry_flow": (lambda store: store.retry_flow("a"), 1, 1),
    "wake_flow": (lambda store: store.wake_flow("a"), 1, 1),
    "release_flow, not claimed": (lambda store: store.release_flow("a"), 1, 0),
    "diagnose": (lambda store: store.diagnose("b"), 2, 0),
    "diagnose_all": (lambda store: store.diagnose_all(id_prefix="x"), 5, 0),
    "bulk, dry run of 3": (
        lambda store: store.bulk(status=cs.FlowStatus.CREATED).cancel("", dry_run=True),
        1,
        0,
    ),
    "bulk, 3 cancelled": (
        lambda store: store.bulk(status=cs.FlowStatus.CREATED).cancel("", per_second=None),
        2,
        3,
    ),
    "bulk, 2 ids purged": (
        lambda store: store.bulk(ids=["a", "b"]).purge(live=True, per_second=None),
        1,
        2,
    ),
    "set_wait_condition": (
        lambda store: store.set_wait_condition(cs.WaitCondition("w", flow_ids=["x", "y"])),
        0,
        1,
    ),
    "get_wait_condition": (lambda store: store.get_wait_condition("wait"), 1, 0),
    "clear_wait_condition": (lambda store: store.clear_wait_condition("wait"), 0, 1),
    "query_wait_conditions": (lambda store: store.query_wait_conditions(), 2, 0),
    "get_timed_out_wait_conditions": (lambda store: store.get_timed_out_wait_conditions(), 2, 0),
    "complete_child, 1 of 1,000": (lambda store: store.complete_child("wait", "child 7"), 0, 1),
    "complete_child, the last": (lambda store: store.complete_child("late", "x"), 0, 1),
    "complete_child, early": (lambda store: store.complete_child("later", "x"), 0, 1),
    "save_for_each_progress": (
        lambda store: store.save_for_each_progress("b", 1, cs.ForEachProgress()),
        0,
        1,
    ),
    "get_for_each_progress": (lambda store: store.get_for_each_progress("a", 1), 1, 0),
    "clear_for_each_progress": (lambda store: store.clear_for_each_progress("a", 1), 0, 1),
    "list_for_each_progress": (lambda store: store.list_for_each_progress("a"), 2, 0),
    "wait_due, now": (lambda store: store.wait_due(timeout=timedelta(0)), 1, 0),
    "watch, now": (lambda store: store.watch("a", after=1, timeout=timedelta(0)), 1, 0),
    "watch, a later version": (lambda store: store.watch("a", after=0, timeout=HOUR), 1, 0),
    "watch_log, now": (
        lambda store: store.watch_log("a", after=0, timeout=timedelta(0)),
        1,
        0,
    ),
    "claim, hold": (claim_and_hold, 2, 2),
    "claim": (lambda store: store.claim("a"), 2, 1),
    "claim, of a parent": (lambda store: store.claim("b"), 4, 1),
    "claim, extend": (claim_and_extend, 2, 2),
    "claim, release": (lambda store: store.release(store.claim("a")), 2, 2),
    "session, one change": (change_one, 1, 1),
    "session, seven changes": (change_many, 1, 1),
    "session, no change": (change_nothing, 1, 0),
    "transact": (lambda store: store.transact(lambda session: session.get_one("a")), 1, 0),
    "put_part": (lambda store: store.put_part(cs.Part("a", "q", b"")), 0, 1),
    "put_part, keep": (lambda store: store.put_part(cs.Part("a", "p", b""), exists="keep"), 0, 1),
    "put_part, overwrite": (
        lambda store: store.put_part(cs.Part("a", "p", b""), exists="overwrite"),
        0,
        1,
    ),
    "get_part, put_part unchanged": (
        lambda store: store.put_part(store.get_part("a", "p") or cs.Part("a", "p", b"")),
        1,
        0,
    ),
    "get_part": (lambda store: store.get_part("a", "p"), 1, 0),
    "get_parts of 500": (lambda store: store.get_parts("a", map(str, range(500))), 1, 0),
    "get_parts of 501": (lambda store: store.get_parts("a", map(str, range(501))), 2, 0),
    "get_parts of 0": (lambda store: store.get_parts("a", []), 0, 0),
    "list_parts": (lambda store: store.list_parts("a"), 1, 0),
    "list_parts, with bodies": (lambda store: store.list_parts("a", bodies=True, limit=1000), 1, 0),
    "delete_part": (lambda store: store.delete_part("a", "p"), 0, 1),
    "delete_parts": (lambda store: store.delete_parts("a", ""), 0, 1),
    "delete_parts of 501": (delete_parts_of_501, 0, 5),
    "append": (lambda store: store.append("a", "new"), 0, 1),
    "append, again": (lambda store: store.append("a", "new", key="k1"), 0, 1),
    "read_log": (lambda store: store.read_log("a", limit=1000), 1, 0),
    "trim_log": (lambda store: store.trim_log("a", before=3), 0, 1),
    "session, parts": (change_parts, 2, 1),
    "session, one step with an entry": (step_with_entry, 1, 1),
    "sweep, with a wait that is over": (lambda store: store.sweep(), 3, 1),
    "clear, sweep": (clear_and_sweep, 1, 2),
    "ping": (lambda store: store.ping(), 1, 0),
    "clear": (lambda store: store.clear(), 0, 1),
    "now": (lambda store: store.now(), 0, 0),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_exchanges(store: cs.Store, operation: str) -> None:
    """An operation sends as many reads and writes as the table says, and no more."""
    call, reads, writes = OPERATIONS[operation]
    transport = count(store)
    call(store)
    assert (transport.reads, transport.writes) == (reads, writes)


def test_claim_due_of_a_plain_flow(store: cs.Store) -> None:
    """A claim is a listing, which brings what it claims, and one write; nothing due is one listing."""
    store.clear()
    transport = count(store)
    assert store.claim_due() == []
    assert (transport.reads, transport.writes) == (1, 0)

    store.create(cs.FlowSnapshot("due", state={}))
    transport.reads = transport.writes = 0
    assert len(store.claim_due()) == 1
    assert (transport.reads, transport.writes) == (1, 1)


def test_waiting_for_nothing(store: cs.Store) -> None:
    """Beside the claim, a wait is one look for what will be due before the next look."""
    store.clear()
    transport = count(store)
    assert store.claim_due(wait=timedelta(milliseconds=1)) == []
    assert (transport.reads, transport.writes) == (2, 0)
    assert not store.wait_due(timeout=timedelta(milliseconds=1))
    assert (transport.reads, transport.writes) == (3, 0)


def test_waiting_for_a_flow_that_is_due(store: cs.Store) -> None:
    """A wait that need not wait costs what the claim costs."""
    store.clear()
    store.create(cs.FlowSnapshot("due", state={}))
    transport = count(store)
    assert len(store.claim_due(wait=HOUR)) == 1
    assert (transport.reads, transport.writes) == (1, 1)

    store.create(cs.FlowSnapshot("next", state={}))
    transport.reads = transport.writes = 0
    assert store.wait_due(timeout=HOUR)
    assert transport.reads <= 1  # none if the file's watcher was faster than its look


def test_claim_due_of_many(store: cs.Store) -> None:
    """A hundred flows are claimed with one listing and one write."""
    store.clear()
    with store.begin() as session:
        for number in range(100):
            session.add(cs.FlowSnapshot(f"due {number}", state={}))

    transport = count(store)
    assert len(store.claim_due(limit=100)) == 100
    assert (transport.reads, transport.writes) == (1, 1)


def test_claim_due_of_a_parent(store: cs.Store) -> None:
    """A parent whose wait is over costs two reads more than a plain flow: condition, then parent."""
    store.complete_child("late", "x")
    transport = count(store)
    (parent,) = store.claim_due()
    assert parent.flow_id == "b"
    assert (transport.reads, transport.writes) == (3, 1)


def test_claim_due_of_an_overdue_parent(store: cs.Store) -> None:
    """One more: what has completed before the deadline was decided is looked at afterwards."""
    transport = count(store)
    (parent,) = store.claim_due()
    assert parent.flow_id == "b"
    assert (transport.reads, transport.writes) == (4, 1)


def test_claim_due_looks_for_waits_only_if_there_may_be_some(store: cs.Store) -> None:
    """One request for all flows that are claimed while conditions that were not chosen have ended."""
    for name in ("a", "c"):
        store.set_wait_condition(
            cs.WaitCondition(f"of {name}", flow_ids=["x"], parent_flow_id=name)
        )
        store.complete_child(f"of {name}", "x")

    store.complete_child("late", "x")
    transport = count(store)
    assert len(store.claim_due(limit=2)) == 2
    assert (transport.reads, transport.writes) == (4, 1)


@pytest.mark.parametrize("ended", [0, 1, 5, 20, 100])
@pytest.mark.parametrize("limit", [1, 20, 50])
def test_claim_due_in_a_mixed_backlog(url: str, ended: int, limit: int) -> None:
    """New flows, and flows whose wait has ended: never more than three round trips beside the claim.

    These are the due entries, the flows and conditions, the parents, the waits of all of them in one
    request, and those waits; one more write where the claims need a second commit.
    """
    with cs.open_store(url) as store:
        with store.begin() as session:
            for number in range(100):
                session.add(cs.FlowSnapshot(f"new {number}", state={}))

        backlog_of_parents(store, ended)
        transport = count(store)
        assert len(store.claim_due(limit=limit)) == limit
        assert transport.reads <= 5
        assert transport.writes == 1


def test_claim_due_after_a_thousand_waits_ended_at_once(url: str) -> None:
    """The cost does not depend on how many have ended."""
    with cs.open_store(url) as store:
        backlog_of_parents(store, 1_000)
        transport = count(store)
        assert len(store.claim_due(limit=20)) == 20
        assert transport.reads <= 5
        assert transport.writes == 1


def backlog_of_parents(store: cs.Store, number: int) -> None:
    """Make flows that wait for one child each, and let every wait end."""
    for start in range(0, number, 50):
        with store.begin() as session:
            for place in range(start, min(start + 50, number)):
                parent = cs.FlowSnapshot(f"parent {place}", state={})
                wait = cs.WaitCondition(f"wait {place}", flow_ids=["child"])
                session.add(parent)
                session.suspend(parent, wait)
                session.complete_child(f"wait {place}", "child")


def test_a_second_update_reads_nothing(store: cs.Store) -> None:
    """What the first update answered is enough for the second."""
    flow = store.get_one("a")
    store.update(flow)
    transport = count(store)
    store.update(flow)
    assert (transport.reads, transport.writes) == (0, 1)


def test_a_conflict_costs_what_the_commit_would(store: cs.Store) -> None:
    """A refusal is the answer to the one write that was sent."""
    mine, yours = store.get_one("a"), store.get_one("a")
    store.update(yours)
    transport = count(store)
    with pytest.raises(cs.StaleFlowError):
        store.update(mine)

    assert (transport.reads, transport.writes) == (0, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get(""),
        lambda store: store.create(cs.FlowSnapshot("d", state=object())),
        lambda store: store.update(cs.FlowSnapshot("d", state={})),
        lambda store: store.query_flows(limit=0),
        lambda store: store.claim_due(lease=timedelta(0)),
        lambda store: store.complete_child("wait", "child 1", result=object()),
    ],
)
def test_bad_input_sends_nothing(store: cs.Store, call: Callable[[cs.Store], object]) -> None:
    """A usage error comes before anything is sent."""
    transport = count(store)
    with pytest.raises(cs.UsageError):
        call(store)

    assert (transport.reads, transport.writes) == (0, 0)


def test_preparing_costs_two_exchanges_once(url: str) -> None:
    """The first operation reads the layout and sets it; the second does neither."""
    with cs.open_store(url) as store:
        transport = count(store)
        store.get("a")
        assert (transport.reads, transport.writes) == (2, 1)
        store.get("a")
        assert (transport.reads, transport.writes) == (3, 1)


@pytest.mark.anyio
async def test_the_async_face_sends_the_same(url: str) -> None:
    """An async operation costs what the blocking one does."""
    async with cs.open_async_store(url) as store:
        await store.ping()
        transport = count(store)
        flow = cs.FlowSnapshot("a", state={"n": 0})
        await store.create(flow)
        await store.update(flow)
        await store.get("a")
        assert (transport.reads, transport.writes) == (1, 2)

        async with store.begin() as session:
            (await session.get_one("a")).state["n"] += 1

        assert (transport.reads, transport.writes) == (2, 3)
