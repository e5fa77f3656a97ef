"""What happens between two requests of one operation: what others write there, and what fails there.

An operation is a conversation. Here one is held with a memory store, one request at a time, and
before a request of some kind something is done: by another user of the store, or to the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import catga_store as cs
from catga_store.core import claims
from catga_store.core import records
from catga_store.core import sessions
from catga_store.core.claim_candidates import look_for_waits
from catga_store.core.claim_plans import Candidate
from catga_store.core.context import Context
from catga_store.core.unit_of_work import UnitOfWork
from catga_store.model.waits import UnreadResults
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Invoke
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import run
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Resolve
from catga_store.testing.clock import ManualClock

LEASE = timedelta(seconds=30)
MINUTE = timedelta(minutes=1)
NOW = 1_893_456_000_000


@pytest.fixture
def store(clock: ManualClock) -> cs.MemoryStore:
    """Open a store of this test's own."""
    return cs.MemoryStore(clock=clock)


class Held:
    """Holds conversations with a store; `asked` are their requests."""

    def __init__(self, store: cs.Store) -> None:
        self.store = store
        self.asked: list[Any] = []
        self._acts: list[tuple[Callable[[Any], bool], Callable[[], object]]] = []
        self._answers: list[tuple[Callable[[Any], bool], Callable[[Any], Any]]] = []

    def before(self, when: Callable[[Any], bool], act: Callable[[], object]) -> None:
        """Before the first of such requests, do something; what it raises fails the request."""
        self._acts.append((when, act))

    def instead(self, when: Callable[[Any], bool], answer: Callable[[Any], Any]) -> None:
        """Return all such requests otherwise, or fail them."""
        self._answers.append((when, answer))

    def has_committed(self) -> bool:
        """Whether a commit was asked for."""
        return any(type(request) is Commit for request in self.asked)

    def __call__(self, conversation: Conversation[Any]) -> Any:
        return run(conversation, self._perform)

    def _perform(self, request: Any) -> Any:
        for number, (when, act) in enumerate(self._acts):
            if when(request):
                del self._acts[number]
                act()
                break

        answers = [answer for when, answer in self._answers if when(request)]
        self.asked.append(request)
        if answers:
            return answers[0](request)

        return request.function() if isinstance(request, Invoke) else self.store._run(ask(request))


@pytest.fixture(autouse=True)
def listings_without_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a claim read what it has found by a request of its own, as on a store that lists heads alone."""
    monkeypatch.setattr(claims, "_MOST_BODIES", 0)


@pytest.fixture
def held(store: cs.MemoryStore) -> Held:
    """Hold conversations with the store, in which nothing happens yet."""
    return Held(store)


def new(flow_id: str = "f", **fields: Any) -> cs.FlowSnapshot[Any]:
    """Make a flow."""
    return cs.FlowSnapshot(flow_id, state={"n": 0}, **fields)


def suspended(store: cs.Store, **options: Any) -> None:
    """Let the flow `f` wait for `a` and `b` by the condition `w`."""
    with store.begin() as session:
        flow = new()
        session.add(flow)
        session.suspend(flow, cs.WaitCondition("w", flow_ids=["a", "b"], **options))


def corrupt(*key: Any) -> cs.CorruptRecordError:
    """Make the error of what cannot be read: a record, or all of the store."""
    return cs.CorruptRecordError("it cannot be read", key=key or None)


def fails(error: Exception) -> Callable[..., Any]:
    """Fail a request."""

    def fail(*_: object) -> Any:
        raise error

    return fail


def is_a(kind: type) -> Callable[[Any], bool]:
    """Whether a request is of a kind."""
    return lambda request: type(request) is kind


def reads(key: Any) -> Callable[[Any], bool]:
    """Whether a request reads that record."""
    return lambda request: isinstance(request, Read) and key in request.keys


# --- single records -------------------------------------------------------------------------------


def test_what_is_there_and_gone_again_is_created(store: cs.MemoryStore, held: Held) -> None:
    """`get_or_create` meets a flow that is deleted before it is read: then it makes its own."""
    store.create(new())
    held.before(is_a(Read), lambda: store.delete("f"))
    flow, is_new = held(records.get_or_create(store._context, new()))
    assert is_new
    assert store.get_one("f").revision == flow.revision


def test_an_ended_condition_that_is_gone_is_what_the_store_returned(
    store: cs.MemoryStore, held: Held
) -> None:
    """Setting it again changed nothing; the object is what the store answered, not what was set."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    store.complete_child("w", "a")
    wait = cs.WaitCondition("w", flow_ids=["b", "c"])
    held.before(is_a(Read), lambda: store.clear_wait_condition("w"))
    assert held(records.set_wait_condition(store._context, wait)) is False
    assert (wait.flow_ids, wait.outcome) == (("a",), cs.WaitOutcome.SATISFIED)


def test_a_type_that_no_store_can_name_is_refused(store: cs.MemoryStore) -> None:
    """A text that UTF-8 cannot carry names no type: that is said before anything is asked."""
    with pytest.raises(cs.UsageError, match="invalid state type name"):
        store.query_flows(state_type="\ud800")


# --- claims ---------------------------------------------------------------------------------------


def test_a_parent_that_cannot_be_read_is_put_off_with_its_wait(
    store: cs.MemoryStore, held: Held, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its wait wakes it; it is logged and looked at again after one lease, and nothing is lost."""
    suspended(store)
    for child in "ab":
        store.complete_child("w", child)

    held.instead(reads(flow_key("f")), fails(corrupt(*flow_key("f"))))
    with caplog.at_level(logging.WARNING):
        assert held(claims.claim_due(store._context, lease=LEASE)) == []

    assert "flow 'f' is due but cannot be read, so it is postponed by one lease" in caplog.text
    assert store.claim_due() == []
    clock.advance(LEASE)
    (flow,) = store.claim_due()
    assert flow.wait_condition is not None
    assert flow.wait_condition.outcome is cs.WaitOutcome.SATISFIED


def test_an_unreadable_store_puts_no_flow_off(store: cs.MemoryStore, held: Held) -> None:
    """An error of no record is the caller's, whatever was asked for; nothing is claimed."""
    store.create(new())
    for kind in (Read, DueWaits):
        held.before(is_a(kind), fails(corrupt()))
        with pytest.raises(cs.CorruptRecordError):
            held(
                claims.claim(store._context, "f")
                if kind is DueWaits
                else claims.claim_due(store._context)
            )

    assert store.get_one("f").owner is None


def test_a_listing_of_waits_that_cannot_be_read_keeps_no_flow_from_being_claimed(
    store: cs.MemoryStore, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """Other ended waits are not shown this time; that is logged, and the flow is claimed."""
    store.create(new())
    held.instead(is_a(DueWaits), fails(corrupt(*wait_key("w"))))
    with caplog.at_level(logging.WARNING):
        flow = held(claims.claim(store._context, "f"))

    assert flow.owner is not None
    assert "flow 'f' was not checked for ended wait conditions" in caplog.text


def test_a_wait_that_cannot_be_read_keeps_its_flow_from_being_claimed(
    store: cs.MemoryStore, held: Held
) -> None:
    """A claim without what the flow waits for would not tell it: it is an error, and no claim."""
    suspended(store)
    held.instead(reads(wait_key("w")), fails(corrupt(*wait_key("w"))))
    with pytest.raises(cs.CorruptRecordError):
        held(claims.claim(store._context, "f"))

    assert store.get_one("f").owner is None


def test_a_wait_cleared_before_it_is_read_is_not_shown(store: cs.MemoryStore, held: Held) -> None:
    """It was found to have ended, and cleared: the flow is claimed, and shown nothing of it."""
    store.create(new())
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"], parent_flow_id="f"))
    store.complete_child("w", "a")
    was_there: list[bool] = []
    held.before(reads(wait_key("w")), lambda: was_there.append(store.clear_wait_condition("w")))
    flow = held(claims.claim(store._context, "f"))
    assert was_there == [True]
    assert flow.wait_condition is None


def test_a_wait_cleared_after_it_was_closed_is_shown_as_read(
    store: cs.MemoryStore, held: Held, clock: ManualClock
) -> None:
    """The claim has closed it; the look at what had come last finds nothing, and changes nothing."""
    suspended(store, timeout=MINUTE)
    store.complete_child("w", "a", result=1)
    clock.advance(MINUTE)
    was_there: list[bool] = []
    held.before(
        lambda request: is_a(Read)(request) and held.has_committed(),
        lambda: was_there.append(store.clear_wait_condition("w")),
    )
    shown = held(claims.claim(store._context, "f")).wait_condition
    assert was_there == [True]
    assert shown.outcome is cs.WaitOutcome.TIMED_OUT
    assert shown.results["a"].result == 1


def test_claims_that_no_commit_has_room_for_together_are_several(
    store: cs.MemoryStore, held: Held
) -> None:
    """Flows with many ended waits are claimed in as few commits as they fit in, each whole."""
    for name in "fgh":
        store.create(new(name))
        for number in range(MAX_CHANGES // 2 - 1):
            wait = cs.WaitCondition(f"{name} {number}", flow_ids=["a"], parent_flow_id=name)
            store.set_wait_condition(wait)
            store.complete_child(wait.correlation_id, "a")

    claimed = held(claims.claim_due(store._context, limit=1000))
    assert sorted(flow.flow_id for flow in claimed) == ["f", "g", "h"]
    sizes = [len(request.changes) for request in held.asked if type(request) is Commit]
    assert sorted(sizes) == [MAX_CHANGES // 2, MAX_CHANGES]
    assert store.claim_due(limit=1000) == []


def test_waits_of_several_flows_are_one_request(store: cs.MemoryStore, held: Held) -> None:
    """If they cannot be read, those of each flow are asked for alone: one flow is passed over."""
    for name in "fg":
        store.create(new(name))
        store.set_wait_condition(cs.WaitCondition(name, flow_ids=["a"], parent_flow_id=name))
        store.complete_child(name, "a")

    held.instead(
        lambda request: type(request) is DueWaits and "f" in request.parents,
        fails(corrupt(*wait_key("f"))),
    )
    candidates = [Candidate(name) for name in "fg"]
    held(look_for_waits(candidates, NOW))
    assert [candidate.unread for candidate in candidates] == [[], ["g"]]
    assert [request.parents for request in held.asked] == [("f", "g"), ("f",), ("g",)]


def test_a_wait_that_was_set_again_shows_nothing_of_the_one_before(
    store: cs.MemoryStore, clock: ManualClock
) -> None:
    """The next owner of a notified flow is not shown the results of a condition that is pending."""
    suspended(store)
    for child in "ab":
        store.complete_child("w", child, result=1)

    (flow,) = store.claim_due(lease=LEASE)
    flow.status = cs.FlowStatus.RUNNING
    store.update(flow)
    store.clear_wait_condition("w")
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a", "b"]))
    store.complete_child("w", "a", result=2)
    clock.advance(LEASE)
    (flow,) = store.claim_due()
    assert flow.wait_condition is not None
    assert flow.wait_condition.outcome is cs.WaitOutcome.SATISFIED
    assert dict(flow.wait_condition.results) == {}


# --- results that could not be read ---------------------------------------------------------------


@pytest.fixture
def unread(store: cs.MemoryStore, held: Held, clock: ManualClock) -> cs.WaitCondition:
    """Claim a flow whose wait was closed, when the store could not be asked what had come."""
    suspended(store, timeout=MINUTE)
    store.complete_child("w", "a", result=1)
    clock.advance(MINUTE)
    failed = cs.StoreUnavailableError("cannot be reached")
    held.before(lambda request: is_a(Read)(request) and held.has_committed(), fails(failed))
    wait: cs.WaitCondition = held(claims.claim(store._context, "f")).wait_condition
    return wait


def test_results_that_could_not_be_read_are_an_error_to_look_at(unread: cs.WaitCondition) -> None:
    """Any way to use them; only showing them in a debugger does not raise, and says why they are not there."""
    looks: list[Callable[[], object]] = [
        lambda: unread.results["a"],
        lambda: list(unread.results),
        lambda: len(unread.results),
        lambda: unread.completed_count,
    ]
    for look in looks:
        with pytest.raises(
            cs.StoreUnavailableError, match="read the wait condition again"
        ) as caught:
            look()

        assert isinstance(caught.value.__cause__, cs.StoreUnavailableError)

    assert repr(unread.results) == "<not read: cannot be reached>"


def test_results_that_could_not_be_read_are_not_empty_after_a_write(
    store: cs.MemoryStore, unread: cs.WaitCondition
) -> None:
    """An update of the condition does not make it look as if no child had completed."""
    store.update_wait_condition(unread)
    assert isinstance(unread.results, UnreadResults)
    fresh = store.get_wait_condition("w")
    assert fresh is not None
    assert (fresh.revision, fresh.completed_count) == (unread.revision, 1)


def test_a_condition_whose_results_could_not_be_read_is_read_again(
    store: cs.MemoryStore, unread: cs.WaitCondition
) -> None:
    """A refresh gives what could not be read before."""
    with store.session() as session:
        session.add(unread)
        session.refresh(unread)

    assert {child: one.result for child, one in unread.results.items()} == {"a": 1}
    assert repr(unread.results) == "{'a': ChildResult(success=True, result=1, error=None)}"


# --- sessions -------------------------------------------------------------------------------------


def test_two_reads_of_one_flow_at_once_return_one_object(store: cs.MemoryStore, held: Held) -> None:
    """Two tasks ask a session for the same flow: the one that gets its reply last gets the other's object."""
    store.create(new())
    unit, context = UnitOfWork(), store._context
    first = sessions.session_get(context, unit, "f")
    reply = store._run(ask(next(first)))
    second = held(sessions.session_get(context, unit, "f"))
    with pytest.raises(StopIteration) as stop:
        first.send(reply)

    assert stop.value.value is second


def test_what_was_never_stored_cannot_be_refreshed(store: cs.MemoryStore) -> None:
    """A new record of a session has nothing to be read from."""
    with store.session() as session:
        flow = new()
        session.add(flow)
        with pytest.raises(cs.UsageError, match="so it cannot be refreshed"):
            session.refresh(flow)


def test_what_left_its_session_while_it_was_read_is_not_refreshed(
    store: cs.MemoryStore, held: Held
) -> None:
    """It is its holder's by then: it stays as it was, and the session says so."""
    store.create(new())
    unit, context = UnitOfWork(), store._context
    flow = held(sessions.session_get(context, unit, "f"))
    flow.state["n"] = 7
    held.before(is_a(Read), lambda: unit.expunge(flow))
    with pytest.raises(cs.UsageError, match="was removed from this session while"):
        held(sessions.session_refresh(context, unit, flow))

    assert flow.state == {"n": 7}


def test_progress_of_one_step_is_not_saved_under_another(store: cs.MemoryStore) -> None:
    """An object that was read is of its step; another step needs another."""
    store.create(new())
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    with store.session() as session:
        progress = session.get_for_each_progress("f", 1)
        assert progress is not None
        with pytest.raises(cs.UsageError, match="already belongs to progress 'f' step 1"):
            session.save_for_each_progress("f", 2, progress)


@pytest.mark.parametrize("add", [True, False])
def test_progress_that_was_to_overwrite_and_was_deleted_may_be_saved_after_all(
    store: cs.MemoryStore, add: bool
) -> None:
    """It takes the place of what the session has deleted, as another object would: version 1."""
    store.create(new())
    for marks in ([1], [2]):
        store.save_for_each_progress("f", 1, cs.ForEachProgress(marks), overwrite=True)

    with store.begin() as session:
        progress = cs.ForEachProgress([5])
        session.save_for_each_progress("f", 1, progress, overwrite=True)
        session.delete(progress)
        if add:
            session.add(progress)
        else:
            session.save_for_each_progress("f", 1, progress)

    stored = store.get_for_each_progress("f", 1)
    assert stored is not None
    assert (list(stored.processed_indices), stored.version) == ([5], 1)
    assert progress.revision == stored.revision


def test_progress_that_was_deleted_is_kept_if_it_is_saved_again(store: cs.MemoryStore) -> None:
    """What was read and deleted in a session is what was read once more; `overwrite` still counts."""
    store.create(new())
    store.save_for_each_progress("f", 1, cs.ForEachProgress([1]))
    for overwrite in (False, True):
        with store.begin() as session:
            progress = session.get_for_each_progress("f", 1)
            assert progress is not None
            session.delete(progress)
            session.save_for_each_progress("f", 1, progress, overwrite=overwrite)
            assert session.deleted == ()
            assert session.new == ((progress,) if overwrite else ())
            progress.mark(2)

    stored = store.get_for_each_progress("f", 1)
    assert stored is not None
    assert (list(stored.processed_indices), stored.version) == ([1, 2], 3)


def test_a_completion_that_ends_what_others_have_changed_leaves_what_was_read(
    store: cs.MemoryStore,
) -> None:
    """The session's object stays stale: a write of it would undo what others have written."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    with store.session() as session:
        mine = session.get_wait_condition("w")
        yours = store.get_wait_condition("w")
        assert mine is not None
        assert yours is not None
        yours.timeout = MINUTE
        store.update_wait_condition(yours)
        session.complete_child("w", "a")
        assert session.commit().satisfied == ("w",)
        assert (mine.outcome, mine.version) == (cs.WaitOutcome.PENDING, 1)
        mine.timeout = LEASE
        with pytest.raises(cs.StaleWaitConditionError):
            session.commit()


def test_an_outcome_that_is_set_while_the_commit_is_under_way_is_not_lost(
    store: cs.MemoryStore, held: Held
) -> None:
    """The completion ends the wait; what was set meanwhile is a change for the next commit."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    session = store.session()
    wait = session.get_wait_condition("w")
    assert wait is not None
    session.complete_child("w", "a")

    def decide() -> None:
        wait.outcome = cs.WaitOutcome.TIMED_OUT

    held.before(is_a(Commit), decide)
    receipt = held(sessions.session_commit(store._context, session._unit))
    assert receipt.satisfied == ("w",)
    assert (wait.outcome, session.dirty) == (cs.WaitOutcome.TIMED_OUT, (wait,))


# --- transact -------------------------------------------------------------------------------------


def counted(unit: UnitOfWork, context: Context, held: Held) -> cs.FlowSnapshot[Any]:
    """Add one to the flow, in a session."""
    flow: cs.FlowSnapshot[Any] = held(sessions.session_get_one(context, unit, "f"))
    flow.state["n"] += 1
    return flow


def test_an_uncertain_commit_of_the_functions_own_is_not_settled_for_it(
    store: cs.MemoryStore, held: Held
) -> None:
    """What the function did elsewhere is not this session's: the error comes out, at the first try."""
    uncertain = cs.CommitUncertainError("of another store", commit_id="c" * 32, keys=())
    calls: list[UnitOfWork] = []

    def function(unit: UnitOfWork) -> None:
        calls.append(unit)
        raise uncertain

    with pytest.raises(cs.CommitUncertainError) as caught:
        held(sessions.transact(store._context, function, 5))

    assert caught.value is uncertain
    assert len(calls) == 1


@pytest.mark.parametrize("is_overtaken", [True, False])
def test_a_commit_of_which_only_that_it_was_applied_is_known(
    store: cs.MemoryStore, held: Held, is_overtaken: bool
) -> None:
    """The object is what was written, as the record shows; a writer that was overtaken keeps what it had."""
    store.create(new())
    context = store._context

    def lose(request: Commit) -> Any:
        store._run(ask(request))
        keys = tuple(change.key for change in request.changes)
        raise cs.CommitUncertainError("no reply", commit_id=request.id, keys=keys)

    def overtake(_: object) -> Any:
        if is_overtaken:
            other = store.get_one("f")
            other.state["n"] += 100
            store.update(other)

        return Applied(())

    held.instead(is_a(Commit), lose)
    held.instead(is_a(Resolve), overtake)
    calls: list[UnitOfWork] = []

    def function(unit: UnitOfWork) -> cs.FlowSnapshot[Any]:
        calls.append(unit)
        return counted(unit, context, Held(store))

    flow = held(sessions.transact(context, function, 5))
    assert len(calls) == 1, "it was applied, so it is not done again"
    stored = store.get_one("f")
    if is_overtaken:
        assert (flow.version, stored.version, stored.state) == (1, 3, {"n": 101})
    else:
        assert (flow.version, flow.revision) == (stored.version, stored.revision)
        assert stored.state == {"n": 1}


def test_a_flow_that_changes_after_it_was_listed_is_claimed_as_it_is(
    store: cs.MemoryStore, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body that came with the listing is not believed: the commit checks its revision, and is made again."""
    monkeypatch.undo()
    store.create(new())

    def change() -> None:
        flow = store.get_one("f")
        flow.state = {"n": 7}
        store.update(flow)

    held.before(is_a(Commit), change)
    (claimed,) = held(claims.claim_due(store._context))
    assert (claimed.state, claimed.version) == ({"n": 7}, 3)


def test_a_flow_that_loses_its_tag_is_not_claimed(store: cs.MemoryStore, held: Held) -> None:
    """It was found by the tag, and has another one when it is read."""
    store.create(new(tags={"tenant": "acme"}))
    context = store._context

    def change() -> None:
        flow = store.get_one("f")
        flow.tags = {"tenant": "other"}
        store.update(flow)

    held.before(lambda request: type(request) is Read, change)
    assert held(claims.claim_due(context, tags={"tenant": "acme"})) == []
    assert store.get_one("f").owner is None
    (claimed,) = held(claims.claim_due(context, tags={"tenant": "other"}))
    assert claimed.version == 3
