"""`session.guard`: commits that are made under a claim on a flow that they do not write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

Opener = Callable[..., cs.Store]


def claimed(store: cs.Store) -> cs.FlowSnapshot[Any]:
    """Store a flow and claim it for half a minute."""
    store.create(cs.FlowSnapshot("{t}", state={"n": 0}))
    (flow,) = store.claim_due()
    return flow


def step(store: cs.Store, flow: cs.FlowSnapshot[Any], name: str) -> cs.Receipt:
    """Write a step under the claim of a flow."""
    with store.session() as session:
        session.guard(flow)
        session.add(cs.FlowSnapshot(f"{{t}}/{name}", state={}, due_at=None))
        return session.commit()


def test_guard_renews_the_claim_and_writes_nothing_else(
    store: cs.Store, clock: ManualClock
) -> None:
    """The flow keeps its version, the object is not touched, and the lease starts again."""
    flow = claimed(store)
    before = flow.version, flow.revision, flow.due_at
    clock.advance(timedelta(seconds=20))
    receipt = step(store, flow, "1")
    assert receipt.versions == {cs.Key("flow", "{t}/1"): 1}
    assert (flow.version, flow.revision, flow.due_at) == before
    stored = store.get_one("{t}")
    assert (stored.version, stored.revision) == before[:2]
    assert stored.due_at == store.now() + timedelta(seconds=30)
    flow.state["n"] = 1
    store.update(flow)


def test_guard_alone_is_a_commit(store: cs.Store, clock: ManualClock) -> None:
    """It checks and renews; the next commit does not."""
    flow = claimed(store)
    clock.advance(timedelta(seconds=20))
    with store.session() as session:
        session.guard(flow)
        session.guard(flow)
        receipt = session.commit()
        assert receipt.commit_id is not None
        assert receipt.versions == {}
        assert session.commit().commit_id is None

    assert store.get_one("{t}").due_at == store.now() + timedelta(seconds=30)


def test_guard_stands_while_the_owner_writes(store: cs.Store) -> None:
    """It is the claim that counts, not the revision at which it was read."""
    flow = claimed(store)
    with store.session() as session:
        session.guard(flow)
        session.add(cs.FlowSnapshot("{t}/1", state={}, due_at=None))
        flow.state["n"] = 1
        store.update(flow)
        same = store.get_one("{t}")
        same.state["n"] = 2
        store.update(same)
        session.commit()

    assert store.get_one("{t}/1").version == 1


def test_guard_stands_after_the_lease_until_another_claim(
    store: cs.Store, clock: ManualClock
) -> None:
    """As for any write of the owner."""
    flow = claimed(store)
    clock.advance(timedelta(minutes=1))
    step(store, flow, "1")
    clock.advance(timedelta(minutes=1))
    (other,) = store.claim_due(owner="another")
    with pytest.raises(cs.ClaimLostError, match="another") as caught:
        step(store, flow, "2")

    assert caught.value.flow_id == "{t}"
    assert store.get("{t}/2") is None
    step(store, other, "2")


@pytest.mark.parametrize("end", ["release", "complete", "park"])
def test_guard_of_a_claim_that_was_given_back_is_refused(store: cs.Store, end: str) -> None:
    """However the claim has ended, nothing of the commit is written."""
    flow = claimed(store)
    with store.session() as session:
        session.guard(flow)
        session.add(cs.FlowSnapshot("{t}/1", state={}))
        if end == "release":
            store.release(flow)
        else:
            if end == "complete":
                flow.status = cs.FlowStatus.COMPLETED
            else:
                flow.due_at = None

            store.update(flow)

        with pytest.raises(cs.ClaimLostError):
            session.commit()

    assert store.get("{t}/1") is None


def test_guard_of_a_deleted_flow_is_refused(store: cs.Store) -> None:
    """Deleting the flow stops all that is done for it."""
    flow = claimed(store)
    store.delete("{t}")
    with pytest.raises(cs.FlowNotFoundError):
        step(store, flow, "1")

    assert store.get("{t}/1") is None


def test_parallel_commits_share_a_claim(store: cs.Store) -> None:
    """Eight threads write under one claim, while its owner writes the flow; none conflicts."""
    flow = claimed(store)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for each in range(5):
                step(store, flow, f"{number}-{each}")
        except BaseException as error:  # noqa: BLE001  shown by the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()

    mine = store.get_one("{t}")
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert mine.version == flow.version
    assert store.count_flows() == 41
    flow.state["n"] = 1
    store.update(flow)


def test_guard_in_another_partition_is_refused(open_more: Opener) -> None:
    """A commit is of one partition, and its guards are part of it."""
    store = open_more(partitions=16)
    flow = claimed(store)
    step(store, flow, "1")
    with store.session() as session:
        session.guard(flow)
        session.add(cs.FlowSnapshot("elsewhere", state={}))
        with pytest.raises(cs.CrossPartitionError):
            session.commit()


def test_guard_of_an_unclaimed_object_is_refused(store: cs.Store) -> None:
    """The object must be the one that was claimed."""
    claimed(store)
    with store.session() as session:
        with pytest.raises(cs.UsageError, match="not claimed"):
            session.guard(store.get_one("{t}"))

        wrong: Any = "{t}"
        with pytest.raises(cs.UsageError):
            session.guard(wrong)

        assert session.commit().commit_id is None


def test_guard_under_two_claims_is_refused(store: cs.Store, clock: ManualClock) -> None:
    """One of them is lost already."""
    first = claimed(store)
    clock.advance(timedelta(minutes=1))
    (second,) = store.claim_due(owner="another")
    with store.session() as session:
        session.guard(first)
        with pytest.raises(cs.UsageError, match="another claim"):
            session.guard(second)


def test_guard_beside_a_write_of_the_flow(store: cs.Store) -> None:
    """What was read under the claim may be written too; what was read before may not."""
    store.create(cs.FlowSnapshot("{t}", state={"n": 0}))
    before = store.get_one("{t}")
    (flow,) = store.claim_due()
    with store.session() as session:
        session.guard(flow)
        session.get_one("{t}").state["n"] = 1
        assert session.commit().versions == {cs.Key("flow", "{t}"): 3}

    queues: list[Callable[[cs.Session], None]] = [
        lambda session: session.delete(before),
        lambda session: session.delete_by_id("{t}"),
        lambda session: session.require_unchanged(before),
    ]
    for queue in queues:
        with store.session() as session:
            session.guard(flow)
            queue(session)
            with pytest.raises(cs.UsageError, match="written or checked through another record"):
                session.commit()

    assert store.get_one("{t}").version == 3


def test_rollback_drops_guards(store: cs.Store) -> None:
    """A session that starts again is under no claim."""
    flow = claimed(store)
    with store.session() as session:
        session.guard(flow)
        session.rollback()
        store.delete("{t}")
        session.add(cs.FlowSnapshot("g", state={}))
        session.commit()
