"""`reports_to`: a flow completes its parent's condition in the commit that ends it, whoever ends it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest
from marks import ONE_STORE

import catga_store as cs
from catga_store.core import records
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Commit
from catga_store.testing.clock import ManualClock

HOUR = timedelta(hours=1)
WAIT = "{p}/children"
DELETED = "the flow was deleted before it had ended"

Opener = Callable[..., cs.Store]
Ender = Callable[[cs.Store], object]


def child(flow_id: str = "{p}/c", **fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow that reports its end."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, reports_to=WAIT, **fields)


def start(store: cs.Store, *flow_ids: str) -> None:
    """Create the condition and its children."""
    store.set_wait_condition(cs.WaitCondition(WAIT, flow_ids=flow_ids or ["{p}/c"]))
    for flow_id in flow_ids or ["{p}/c"]:
        store.create(child(flow_id))


def ended(status: cs.FlowStatus, error: str | None = None) -> Ender:
    """Return a function that ends the flow by an update."""

    def end(store: cs.Store) -> None:
        flow = store.get_one("{p}/c")
        flow.status, flow.error = status, error
        store.update(flow)

    return end


def end_claimed(store: cs.Store) -> None:
    """End the flow as a worker does, in a session."""
    with store.begin() as session:
        [flow] = session.claim_due()
        flow.status = cs.FlowStatus.COMPLETED


def delete_loaded(store: cs.Store) -> None:
    """Delete the flow in a session that has read it."""
    with store.begin() as session:
        session.delete(session.get_one("{p}/c"))


def delete_unread(store: cs.Store) -> None:
    """Delete the flow in a session that has not read it."""
    with store.begin() as session:
        session.delete_by_id("{p}/c")
        session.add(cs.FlowSnapshot("{p}/other", state={}, due_at=None))


def replace(store: cs.Store) -> None:
    """Put another flow into its place."""
    with store.begin() as session:
        session.delete(session.get_one("{p}/c"))
        session.add(cs.FlowSnapshot("{p}/c", state={}))


FAILED, CANCELLED = cs.FlowStatus.FAILED, cs.FlowStatus.CANCELLED

ENDS: dict[str, tuple[Ender, bool, str | None]] = {
    "completed": (ended(cs.FlowStatus.COMPLETED), True, None),
    "completed by its owner": (end_claimed, True, None),
    "failed": (ended(FAILED, "no stock"), False, "no stock"),
    "failed without an error": (ended(FAILED), False, "the flow failed"),
    "cancelled": (ended(CANCELLED), False, "the flow was cancelled"),
    "cancelled by an operator": (lambda s: s.cancel_flow("{p}/c", "no stock"), False, "no stock"),
    "deleted by id": (lambda store: store.delete("{p}/c"), False, DELETED),
    "deleted by version": (lambda store: store.delete("{p}/c", version=1), False, DELETED),
    "deleted with others": (lambda store: store.delete_many(["{p}/c", "{p}/no"]), False, DELETED),
    "deleted in a session": (delete_loaded, False, DELETED),
    "deleted unread in a session": (delete_unread, False, DELETED),
    "replaced": (replace, False, "the flow was replaced before it had ended"),
}


@pytest.mark.parametrize("how", ENDS)
def test_an_end_is_reported_however_it_comes(store: cs.Store, how: str) -> None:
    """The condition has the completion once the commit returns."""
    end, success, error = ENDS[how]
    start(store)
    end(store)
    wait = store.get_wait_condition(WAIT)
    assert wait is not None
    assert wait.outcome is cs.WaitOutcome.SATISFIED
    result = wait.results["{p}/c"]
    assert (result.success, result.error) == (success, error)


def test_a_report_survives_the_store(open_more: Opener) -> None:
    """Another process that reads the flow knows whom it reports to; so does a claim."""
    start(open_more())
    other = open_more()
    assert other.get_one("{p}/c").reports_to == WAIT
    [claimed] = other.claim_due()
    assert claimed.reports_to == WAIT
    assert [one.reports_to for one in other.get_many(["{p}/c"]).values()] == [WAIT]


def test_only_the_first_end_is_reported(store: cs.Store) -> None:
    """A flow that is set going again reports nothing new; nor does one that is deleted after its end."""
    start(store)
    ended(FAILED, "no stock")(store)
    flow = store.get_one("{p}/c")
    flow.status, flow.error = cs.FlowStatus.RUNNING, None
    store.update(flow)
    ended(cs.FlowStatus.COMPLETED)(store)
    assert store.delete("{p}/c")
    wait = store.get_wait_condition(WAIT)
    assert wait is not None
    assert wait.results["{p}/c"].error == "no stock"


def test_a_refused_end_is_not_reported(store: cs.Store) -> None:
    """End and report are one commit."""
    start(store)
    stale = store.get_one("{p}/c")
    store.update(store.get_one("{p}/c"))
    stale.status = cs.FlowStatus.COMPLETED
    with pytest.raises(cs.StaleFlowError):
        store.update(stale)

    wait = store.get_wait_condition(WAIT)
    assert wait is not None
    assert wait.completed_count == 0


def test_many_unread_deletions_report_in_as_many_commits_as_it_takes(store: cs.Store) -> None:
    """A deletion by id that must report takes two places of a commit."""
    ids = [f"{{p}}/{n}" for n in range(120)]
    start(store, *ids)
    assert store.delete_many(ids) == len(ids)
    wait = store.get_wait_condition(WAIT)
    assert wait is not None
    assert wait.outcome is cs.WaitOutcome.SATISFIED


def delete_step_by_step(store: cs.Store, commits: list[Commit], *, overtaken_at: int) -> bool:
    """Delete a flow by its id, and let another write come before one of the commits."""
    deletion = records.delete(store._context, "{p}/c")
    try:
        request = next(deletion)
        while True:
            assert isinstance(request, Commit)
            commits.append(request)
            if len(commits) == overtaken_at:
                store.update(store.get_one("{p}/c"))

            request = deletion.send(store._run(ask(request)))
    except StopIteration as end:
        return bool(end.value)


@ONE_STORE
def test_a_deletion_that_another_write_overtakes_is_tried_again(store: cs.Store) -> None:
    """What was read for the report may be stale by the time it is written."""
    start(store)
    commits: list[Commit] = []
    assert delete_step_by_step(store, commits, overtaken_at=2)
    assert [len(commit.changes) for commit in commits] == [1, 2, 1, 2]
    wait = store.get_wait_condition(WAIT)
    assert wait is not None
    assert wait.results["{p}/c"].error == DELETED


@ONE_STORE
def test_a_result_of_ones_own_goes_before_the_report(store: cs.Store) -> None:
    """A commit that completes the child by hand says more than its end does."""
    start(store)
    with store.begin() as session:
        flow = session.get_one("{p}/c")
        flow.status = cs.FlowStatus.COMPLETED
        session.complete_child(WAIT, "{p}/c", result={"parcels": 2})

    assert session.receipt is not None
    assert session.receipt.completions[WAIT, "{p}/c"].accepted
    wait = store.get_wait_condition(WAIT)
    assert wait is not None
    assert wait.results["{p}/c"].result == {"parcels": 2}


@ONE_STORE
def test_a_flow_that_reports_does_not_expire_before_its_end(store: cs.Store) -> None:
    """It would be gone without a commit that could report it."""
    with pytest.raises(cs.UsageError, match="cannot expire before it has ended"):
        store.create(child(expires_at=store.now() + HOUR))

    store.create(child(status=cs.FlowStatus.COMPLETED, expires_at=store.now() + HOUR))


@ONE_STORE
def test_a_flow_that_reports_is_in_the_partition_of_its_condition(open_more: Opener) -> None:
    """Else it could not end and report in one commit; so it is refused at its first write."""
    store = open_more(partitions=8)
    with pytest.raises(cs.CrossPartitionError):
        store.create(cs.FlowSnapshot("a", state={}, reports_to="{b}/w"))


@ONE_STORE
def test_a_fork_reports_to_nobody(open_more: Opener) -> None:
    """The parent waits for the flow itself."""
    store = open_more(history=5)
    start(store)
    assert store.fork("{p}/c", "{p}/fork").reports_to is None


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@ONE_STORE
async def test_an_async_commit_reports(astore: cs.AsyncStore) -> None:
    """The same conversation runs on every API."""
    with anyio.fail_after(10):
        await astore.set_wait_condition(cs.WaitCondition(WAIT, flow_ids=["{p}/c"]))
        await astore.create(child())
        async with astore.begin() as session:
            flow = await session.get_one("{p}/c")
            flow.status = cs.FlowStatus.COMPLETED

        wait = await astore.get_wait_condition(WAIT)

    assert wait is not None
    assert wait.outcome is cs.WaitOutcome.SATISFIED


# a worker ---------------------------------------------------------------------------------------------


@ONE_STORE
def test_a_parent_goes_on_when_what_it_spawned_has_ended(
    store: cs.Store, clock: ManualClock
) -> None:
    """One child returns a result, one fails for good, and one is deleted by somebody else."""
    worker = cs.Worker(store, retry=cs.Retry(attempts=1))
    seen: dict[str, Any] = {}

    @worker.handles(None)
    def handle(run: cs.Run[Any]) -> None:
        if run.flow.reports_to is None and run.flow.position.current == 0:
            run.spawn(*(cs.FlowSnapshot(f"p/{name}", state={}) for name in "abc"), timeout=HOUR)
        elif run.flow.reports_to is None:
            wait = run.flow.wait_condition
            assert wait is not None
            seen.update({key: (one.result, one.error) for key, one in wait.results.items()})
            run.complete("kept by nobody")
        elif run.flow.flow_id == "p/a":
            run.complete({"parcels": 2})
        elif run.flow.flow_id == "p/b":
            message = "no stock"
            raise cs.GiveUp(message)
        else:
            run.sleep(2 * HOUR)

    store.create(cs.FlowSnapshot("p", state={}))
    worker.run_until_idle(until=clock.now)
    store.delete("p/c")
    worker.run_until_idle(until=clock.now)
    assert store.get_one("p").status is cs.FlowStatus.COMPLETED
    assert seen == {
        "p/a": ({"parcels": 2}, None),
        "p/b": (None, "no stock"),
        "p/c": (None, DELETED),
    }


@ONE_STORE
def test_a_step_that_is_run_again_spawns_again(store: cs.Store, clock: ManualClock) -> None:
    """A loop has a condition of its own for each round."""
    worker = cs.Worker(store)
    rounds: list[str] = []

    @worker.handles(None)
    def handle(run: cs.Run[Any]) -> None:
        if run.flow.reports_to is not None:
            run.complete()
        elif len(rounds) < 2:
            rounds.append(run.spawn(cs.FlowSnapshot(f"{len(rounds)}", state={})).correlation_id)
            run.flow.position = cs.FlowPosition()
        else:
            run.complete()

    store.create(cs.FlowSnapshot("p", state={}))
    worker.run_until_idle(until=clock.now)
    assert store.get_one("p").status is cs.FlowStatus.COMPLETED
    assert rounds == ["{p}/0/2", "{p}/0/4"]


@ONE_STORE
def test_a_flow_that_is_spawned_has_the_tags_of_its_parent(
    store: cs.Store, clock: ManualClock
) -> None:
    """But for those of a key that it has itself."""
    worker = cs.Worker(store)

    @worker.handles(None)
    def handle(run: cs.Run[Any]) -> None:
        if run.flow.reports_to is not None or run.flow.position.current:
            run.complete()
        else:
            own = {"step": "pack", "more": "1"}
            run.spawn(*(cs.FlowSnapshot(f"p/{n}", state={}, tags=own) for n in "ab"))

    store.create(cs.FlowSnapshot("p", state={}, tags={"tenant": "acme", "step": "all"}))
    worker.run_until_idle(until=clock.now)
    assert [flow.flow_id for flow in store.query_flows(tags={"tenant": "acme"})] == [
        "p",
        "p/a",
        "p/b",
    ]
    assert store.get_one("p/a").tags == {"tenant": "acme", "step": "pack", "more": "1"}


@ONE_STORE
def test_what_is_spawned_is_new(store: cs.Store) -> None:
    """A flow that is stored, or reports to another condition, cannot be spawned."""
    worker = cs.Worker(store, retry=cs.Retry(attempts=1))

    @worker.handles(None)
    def handle(run: cs.Run[Any]) -> None:
        run.spawn(cs.FlowSnapshot("c", state={}, reports_to="elsewhere"))

    store.create(cs.FlowSnapshot("p", state={}))
    worker.run_until_idle()
    failed = store.get_one("p")
    assert failed.error is not None
    assert "expected a new flow" in failed.error
