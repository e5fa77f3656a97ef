"""Wait conditions: completions, redefinition, deadlines, clearing, and parents that are woken.

One file, and long: the rules of a wait touch each other, and are read in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

MINUTE = timedelta(minutes=1)
PENDING, SATISFIED, TIMED_OUT, CANCELLED = cs.WaitOutcome
WHEN_ALL, WHEN_ANY = cs.WaitType

Opener = Callable[..., cs.Store]


def wait_for(correlation_id: str, *children: str, **fields: Any) -> cs.WaitCondition:
    """Define a wait for these children."""
    return cs.WaitCondition(correlation_id, flow_ids=children, **fields)


def read(store: cs.Store, correlation_id: str = "w") -> cs.WaitCondition:
    """Load a condition that must be there."""
    wait = store.get_wait_condition(correlation_id)
    assert wait is not None
    return wait


def answer(
    *, accepted: bool = False, duplicate: bool = False, now: bool = False, outcome: Any = None
) -> cs.Completion:
    """Say what a completion should answer."""
    return cs.Completion(accepted=accepted, duplicate=duplicate, now_satisfied=now, outcome=outcome)


def suspended(store: cs.Store, wait: cs.WaitCondition, flow_id: str = "parent") -> None:
    """Store a flow that waits."""
    with store.begin() as session:
        flow = cs.FlowSnapshot(flow_id, state={"n": 0}, due_at=None)
        session.add(flow)
        session.suspend(flow, wait)


def due(store: cs.Store, **options: Any) -> list[str]:
    """Claim what is due and answer the ids."""
    return sorted(flow.flow_id for flow in store.claim_due(limit=50, **options))


# --- the record ---------------------------------------------------------------------------------


def test_a_wait_needs_only_its_id_and_children() -> None:
    """Everything else has a default, and says that nothing was stored yet."""
    wait = cs.WaitCondition("w", flow_ids=["b", "a", "b"])
    assert wait.flow_ids == ("b", "a")
    assert (wait.wait_type, wait.outcome, wait.timeout) == (WHEN_ALL, PENDING, None)
    assert (wait.created_at, wait.deadline, wait.parent_flow_id) == (None, None, None)
    assert (wait.version, wait.revision, wait.completed_count) == (0, None, 0)
    assert dict(wait.results) == {}


def test_every_field_comes_back(store: cs.Store, clock: ManualClock) -> None:
    """What was set is what `get` returns, children in the order given."""
    created = clock.now - MINUTE
    wait = wait_for(
        "w",
        *(f"child {number} ü" for number in (3, 1, 2)),
        wait_type=WHEN_ANY,
        timeout=timedelta(hours=1),
        parent_flow_id="p",
        created_at=created,
    )
    assert store.set_wait_condition(wait) is False
    for one in (wait, read(store)):
        assert one.flow_ids == ("child 3 ü", "child 1 ü", "child 2 ü")
        assert (one.wait_type, one.timeout) == (WHEN_ANY, timedelta(hours=1))
        assert (one.parent_flow_id, one.created_at) == ("p", created)
        assert one.deadline == created + timedelta(hours=1)
        assert (one.outcome, one.version) == (PENDING, 1)
        assert one.revision == wait.revision


def test_created_at_is_the_stores_clock(store: cs.Store, clock: ManualClock) -> None:
    """Unless given, `created_at` is filled at the first write."""
    wait = wait_for("w", "a")
    store.set_wait_condition(wait)
    assert wait.created_at == read(store).created_at == clock.now


@pytest.mark.parametrize("name", ["correlation_id", "created_at", "version", "results"])
def test_what_the_store_says_cannot_be_assigned(name: str) -> None:
    """Identity, results and the store's own facts are read-only on a condition."""
    with pytest.raises(AttributeError):
        setattr(wait_for("w", "a"), name, None)


def test_a_missing_condition_is_read_as_none(store: cs.Store) -> None:
    """`get_wait_condition` of what is not there is `None`, `clear` is `False`."""
    assert store.get_wait_condition("w") is None
    assert store.clear_wait_condition("w") is False


def test_a_timeout_is_rounded_up(store: cs.Store, clock: ManualClock) -> None:
    """Spans are kept in whole milliseconds, never shorter than asked for."""
    wait = wait_for("w", "a", timeout=timedelta(microseconds=1))
    assert wait.timeout == timedelta(milliseconds=1)
    store.set_wait_condition(wait)
    assert store.get_timed_out_wait_conditions() == []
    clock.advance(timedelta(milliseconds=1))
    assert len(store.get_timed_out_wait_conditions()) == 1


# --- completions --------------------------------------------------------------------------------


def test_when_all_needs_every_child(store: cs.Store) -> None:
    """Each child is accepted once; exactly the last one satisfies."""
    store.set_wait_condition(wait_for("w", "a", "b", "c"))
    assert store.complete_child("w", "b") == answer(accepted=True, outcome=PENDING)
    assert store.complete_child("w", "b") == answer(duplicate=True, outcome=PENDING)
    assert store.complete_child("w", "a") == answer(accepted=True, outcome=PENDING)
    assert store.complete_child("w", "c") == answer(accepted=True, now=True, outcome=SATISFIED)
    assert store.complete_child("w", "c") == answer(duplicate=True, outcome=SATISFIED)
    assert read(store).outcome is SATISFIED


def test_when_all_counts_failures(store: cs.Store) -> None:
    """A failed child has completed too."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    store.complete_child("w", "a", success=False, error="lost")
    assert store.complete_child("w", "b", success=False).now_satisfied
    assert read(store).results["a"] == cs.ChildResult(success=False, error="lost")


def test_when_any_needs_one_success(store: cs.Store) -> None:
    """The first success satisfies; what completes later finds the wait closed."""
    store.set_wait_condition(wait_for("w", "a", "b", "c", wait_type=WHEN_ANY))
    assert store.complete_child("w", "a", success=False) == answer(accepted=True, outcome=PENDING)
    assert store.complete_child("w", "b") == answer(accepted=True, now=True, outcome=SATISFIED)
    assert store.complete_child("w", "c") == answer(outcome=SATISFIED)
    assert read(store).completed_count == 2


def test_when_any_ends_when_all_have_failed(store: cs.Store) -> None:
    """If no child succeeds, the last failure satisfies."""
    store.set_wait_condition(wait_for("w", "a", "b", wait_type=WHEN_ANY))
    assert not store.complete_child("w", "a", success=False).now_satisfied
    assert store.complete_child("w", "b", success=False).now_satisfied
    assert [result.success for result in read(store).results.values()] == [False, False]


def test_a_stranger_is_neither_accepted_nor_duplicate(store: cs.Store) -> None:
    """A completion of what is not a child changes nothing, however often."""
    store.set_wait_condition(wait_for("w", "a"))
    for _ in range(2):
        assert store.complete_child("w", "stranger") == answer(outcome=PENDING)

    assert read(store).completed_count == 0


def test_the_first_completion_of_a_child_counts(store: cs.Store) -> None:
    """A duplicate with another result changes nothing."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    store.complete_child("w", "a", result={"parcel": 7})
    store.complete_child("w", "a", success=False, result=0, error="x")
    assert dict(read(store).results) == {"a": cs.ChildResult(True, {"parcel": 7}, None)}


def test_completion_of_a_child_that_is_left_out_waits_for_it(store: cs.Store) -> None:
    """Its result is not among those of the others, and is there when the child is a child again."""
    store.set_wait_condition(wait_for("w", "a", "b", "c"))
    store.complete_child("w", "a", result=1)
    for children, results in ((["b", "c"], {}), (["a", "b"], {"a": cs.ChildResult(True, 1, None)})):
        wait = read(store)
        wait.flow_ids = children
        store.update_wait_condition(wait)
        again = read(store)
        assert (again.completed_count, dict(again.results)) == (len(results), results)


@pytest.mark.parametrize("result", [None, 0, "", "ü\0", [], {"a": [1, 2.5, None]}, 10**30, False])
def test_results_come_back(store: cs.Store, result: object) -> None:
    """A result is plain JSON data and comes back equal in value and type."""
    store.set_wait_condition(wait_for("w", "a"))
    store.complete_child("w", "a", result=result, error="note")
    kept = read(store).results["a"]
    assert kept == cs.ChildResult(True, result, "note")
    assert type(kept.result) is type(result)


def test_completions_do_not_change_the_version(store: cs.Store) -> None:
    """Only the completion that ends a wait writes the condition itself."""
    store.set_wait_condition(wait_for("w", "a", "b", "c"))
    before = read(store)
    store.complete_child("w", "a")
    store.complete_child("w", "b")
    loaded = read(store)
    assert (loaded.version, loaded.revision) == (1, before.revision)
    store.update_wait_condition(before)
    store.complete_child("w", "c")
    assert read(store).version == 3


# --- completions that come first ----------------------------------------------------------------


def test_pending_completions_are_kept(store: cs.Store) -> None:
    """Without a condition a completion is accepted once, and counted when the condition comes."""
    assert store.complete_child("w", "a", result=1) == answer(accepted=True)
    assert store.complete_child("w", "a", result=2) == answer(duplicate=True)
    assert store.get_wait_condition("w") is None
    assert store.query_wait_conditions().items == ()
    assert store.set_wait_condition(wait_for("w", "a", "b")) is False
    assert dict(read(store).results) == {"a": cs.ChildResult(True, 1)}
    assert store.complete_child("w", "a") == answer(duplicate=True, outcome=PENDING)
    assert store.complete_child("w", "b").now_satisfied


@pytest.mark.parametrize("wait_type", list(cs.WaitType))
def test_pending_completions_may_satisfy(store: cs.Store, wait_type: cs.WaitType) -> None:
    """`set_wait_condition` is then the call that returns `now_satisfied`."""
    assert not store.complete_child("w", "a").now_satisfied
    assert not store.complete_child("w", "b", success=False).now_satisfied
    wait = wait_for("w", "a", "b", wait_type=wait_type)
    assert store.set_wait_condition(wait) is True
    assert wait.outcome is SATISFIED
    assert store.set_wait_condition(wait_for("w", "a", "b", wait_type=wait_type)) is False


def test_early_failures_do_not_satisfy_when_any(store: cs.Store) -> None:
    """An early failure leaves a WHEN_ANY pending while another child may succeed."""
    store.complete_child("w", "a", success=False)
    assert store.set_wait_condition(wait_for("w", "a", "b", wait_type=WHEN_ANY)) is False
    assert store.complete_child("w", "b").now_satisfied


def test_pending_completions_of_strangers_do_not_count(store: cs.Store) -> None:
    """Only children of the definition that comes are counted and shown."""
    store.complete_child("w", "stranger")
    assert store.set_wait_condition(wait_for("w", "a")) is False
    assert read(store).completed_count == 0
    assert store.complete_child("w", "a").now_satisfied


def test_clear_forgets_pending_completions_only_with_a_condition(store: cs.Store) -> None:
    """Without a condition there is nothing to clear, and pending completions stay."""
    store.complete_child("w", "a")
    assert store.clear_wait_condition("w") is False
    assert store.set_wait_condition(wait_for("w", "a")) is True


# --- setting again ------------------------------------------------------------------------------


def test_set_on_a_pending_condition_redefines_it(store: cs.Store, clock: ManualClock) -> None:
    """The definition is replaced; `created_at` and completions stay; the version is the next one."""
    start = clock.now
    store.set_wait_condition(wait_for("w", "a", "b", timeout=MINUTE))
    store.complete_child("w", "a", result=1)
    clock.advance(timedelta(seconds=30))
    again = wait_for("w", "a", "b", "c", wait_type=WHEN_ALL, timeout=10 * MINUTE)
    assert store.set_wait_condition(again) is False
    assert (again.version, again.created_at) == (2, start)
    kept = read(store)
    assert (kept.flow_ids, kept.deadline) == (("a", "b", "c"), start + 10 * MINUTE)
    assert dict(kept.results) == {"a": cs.ChildResult(True, 1)}
    clock.advance(MINUTE)
    assert store.get_timed_out_wait_conditions() == []


def test_a_redefinition_may_satisfy(store: cs.Store) -> None:
    """Fewer children, or any of them, may be satisfied already: then `set` returns `True`."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    store.complete_child("w", "a")
    assert store.set_wait_condition(wait_for("w", "a")) is True
    assert store.complete_child("w", "a") == answer(duplicate=True, outcome=SATISFIED)

    store.set_wait_condition(wait_for("v", "a", "b"))
    store.complete_child("v", "a")
    assert store.set_wait_condition(wait_for("v", "a", "b", wait_type=WHEN_ANY)) is True


def test_a_child_that_was_dropped_and_taken_back_has_completed(store: cs.Store) -> None:
    """A redefinition keeps the completions of children that it does not name."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    store.complete_child("w", "a", result=1)
    store.set_wait_condition(wait_for("w", "b"))
    assert read(store).completed_count == 0
    store.set_wait_condition(wait_for("w", "a", "b"))
    assert dict(read(store).results) == {"a": cs.ChildResult(True, 1)}


@pytest.mark.parametrize("how", [SATISFIED, TIMED_OUT, CANCELLED])
def test_set_on_a_closed_condition_writes_nothing(store: cs.Store, how: cs.WaitOutcome) -> None:
    """The object takes what is stored, so a worker that runs again sees that the wait is over."""
    store.set_wait_condition(wait_for("w", "a", "b", timeout=MINUTE, parent_flow_id="p"))
    store.complete_child("w", "a", result=1)
    if how is SATISFIED:
        store.complete_child("w", "b")
    else:
        stored = read(store)
        stored.outcome = how
        store.update_wait_condition(stored)

    before = read(store)
    again, once_more = (
        wait_for("w", "x", wait_type=WHEN_ANY, timeout=9 * MINUTE) for _ in range(2)
    )
    assert store.set_wait_condition(again) is False
    with store.begin() as session:
        session.add(once_more)

    for one in (again, once_more, read(store)):
        assert one.results == before.results
        assert one.results["a"] == cs.ChildResult(True, 1)
        assert (one.outcome, one.version, one.revision) == (how, 2, before.revision)
        assert (one.flow_ids, one.wait_type, one.timeout) == (("a", "b"), WHEN_ALL, MINUTE)
        assert (one.parent_flow_id, one.created_at) == ("p", before.created_at)


# --- update -------------------------------------------------------------------------------------


def test_update_writes_definition_and_outcome(store: cs.Store) -> None:
    """A loaded condition is written back at version + 1, completions untouched."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    store.complete_child("w", "a", result=1)
    wait = read(store)
    wait.flow_ids = ("a", "b", "c")
    wait.timeout = MINUTE
    wait.parent_flow_id = "p"
    assert store.update_wait_condition(wait) is False
    assert wait.version == 2
    kept = read(store)
    assert (kept.flow_ids, kept.timeout, kept.parent_flow_id) == (("a", "b", "c"), MINUTE, "p")
    assert dict(kept.results) == {"a": cs.ChildResult(True, 1)}
    assert kept.revision == wait.revision


def test_update_counts_completions_again(store: cs.Store) -> None:
    """A definition that is satisfied by what has completed closes, and `update` returns `True`."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    wait = read(store)
    store.complete_child("w", "a")
    wait.flow_ids = ("a",)
    assert store.update_wait_condition(wait) is True
    assert wait.outcome is SATISFIED
    assert store.complete_child("w", "a") == answer(duplicate=True, outcome=SATISFIED)


def test_update_is_version_checked(store: cs.Store) -> None:
    """`StaleWaitConditionError` has both versions; `WaitConditionNotFoundError` what was expected."""
    store.set_wait_condition(wait_for("w", "a"))
    mine, yours = read(store), read(store)
    store.update_wait_condition(yours)
    mine.timeout = MINUTE
    with pytest.raises(
        cs.StaleWaitConditionError,
        match="wait condition 'w' was read at version 1, but the store holds version 2, so nothing",
    ) as stale:
        store.update_wait_condition(mine)

    assert (stale.value.correlation_id, stale.value.expected, stale.value.actual) == ("w", 1, 2)
    assert (mine.version, mine.timeout) == (1, MINUTE)
    assert read(store).timeout is None
    store.clear_wait_condition("w")
    with pytest.raises(cs.WaitConditionNotFoundError, match="'w' was read at version 1") as gone:
        store.update_wait_condition(mine)

    assert (gone.value.correlation_id, gone.value.expected) == ("w", 1)
    assert store.get_wait_condition("w") is None


def test_update_of_what_was_never_read_is_a_usage_error(store: cs.Store) -> None:
    """A condition without revision can be set, not updated."""
    store.set_wait_condition(wait_for("w", "a"))
    with pytest.raises(cs.UsageError, match="wait condition 'w' has no revision"):
        store.update_wait_condition(wait_for("w", "b"))

    assert read(store).flow_ids == ("a",)


def test_recreated_wait_is_another_record(store: cs.Store) -> None:
    """A condition that was read before it was cleared and set again is stale at the same version."""
    store.set_wait_condition(wait_for("w", "a"))
    old = read(store)
    store.clear_wait_condition("w")
    store.set_wait_condition(wait_for("w", "a"))
    assert read(store).version == old.version == 1
    with pytest.raises(
        cs.StaleWaitConditionError, match="another record with the same id has replaced it"
    ):
        store.update_wait_condition(old)


def test_one_closer_wins(store: cs.Store, clock: ManualClock) -> None:
    """Of two sweepers one is refused; a completion after the deadline gets the outcome."""
    store.set_wait_condition(wait_for("w", "a", timeout=MINUTE))
    clock.advance(MINUTE)
    (one,), (other,) = store.get_timed_out_wait_conditions(), store.get_timed_out_wait_conditions()
    one.outcome = other.outcome = TIMED_OUT
    store.update_wait_condition(one)
    with pytest.raises(cs.StaleWaitConditionError):
        store.update_wait_condition(other)

    assert store.complete_child("w", "a") == answer(outcome=TIMED_OUT)
    assert read(store).completed_count == 0


def test_the_last_completion_beats_a_late_sweeper(store: cs.Store, clock: ManualClock) -> None:
    """Until it is closed, completions count; then the sweeper's version is stale."""
    store.set_wait_condition(wait_for("w", "a", timeout=MINUTE))
    clock.advance(2 * MINUTE)
    (found,) = store.get_timed_out_wait_conditions()
    assert store.complete_child("w", "a").now_satisfied
    found.outcome = TIMED_OUT
    with pytest.raises(cs.StaleWaitConditionError):
        store.update_wait_condition(found)

    assert read(store).outcome is SATISFIED


def test_a_completion_and_a_close_in_one_commit(store: cs.Store) -> None:
    """A session that closes a wait and completes its child ends with one outcome."""
    store.set_wait_condition(wait_for("w", "a"))
    with store.session() as session:
        wait = session.get_wait_condition("w")
        assert wait is not None
        wait.outcome = CANCELLED
        session.complete_child("w", "a")
        receipt = session.commit()

    assert receipt.completions["w", "a"] == answer(outcome=CANCELLED)
    assert read(store).outcome is CANCELLED


def test_an_ended_wait_is_satisfied_once_in_its_life(store: cs.Store) -> None:
    """However a condition is written again, it is reported only once as satisfied."""
    store.set_wait_condition(wait_for("w", "a"))
    satisfied = [store.complete_child("w", "a").now_satisfied]
    wait = read(store)
    wait.timeout = MINUTE
    satisfied.append(store.update_wait_condition(wait))
    satisfied.append(store.set_wait_condition(wait_for("w", "a")))
    assert satisfied == [True, False, False]


# --- clear --------------------------------------------------------------------------------------


def test_a_cleared_condition_reports_its_outcome(store: cs.Store, clock: ManualClock) -> None:
    """The tombstone stays for `Retention.waits`: completions are not kept, and get CANCELLED."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    store.complete_child("w", "a")
    assert store.clear_wait_condition("w") is True
    assert store.clear_wait_condition("w") is False
    assert store.get_wait_condition("w") is None
    assert store.query_wait_conditions().items == ()
    assert store.get_timed_out_wait_conditions() == []
    for child in ("a", "b", "stranger"):
        assert store.complete_child("w", child) == answer(outcome=CANCELLED)

    clock.advance(timedelta(days=1))
    assert store.complete_child("w", "b") == answer(accepted=True)


@pytest.mark.parametrize("how", [SATISFIED, TIMED_OUT])
def test_a_tombstone_remembers_how_the_wait_ended(store: cs.Store, how: cs.WaitOutcome) -> None:
    """What had ended before it was cleared is reported as it ended."""
    store.set_wait_condition(wait_for("w", "a"))
    if how is SATISFIED:
        store.complete_child("w", "a")
    else:
        wait = read(store)
        wait.outcome = how
        store.update_wait_condition(wait)

    assert store.clear_wait_condition("w") is True
    assert store.complete_child("w", "a") == answer(outcome=how)


def test_set_over_a_tombstone_starts_afresh(store: cs.Store, clock: ManualClock) -> None:
    """Version, `created_at` and completions begin again."""
    store.set_wait_condition(wait_for("w", "a", "b"))
    store.complete_child("w", "a")
    store.clear_wait_condition("w")
    clock.advance(MINUTE)
    store.complete_child("w", "b")
    fresh = wait_for("w", "a", "b")
    assert store.set_wait_condition(fresh) is False
    kept = read(store)
    assert (kept.version, kept.created_at, kept.completed_count) == (1, clock.now, 0)
    assert store.complete_child("w", "a") == answer(accepted=True, outcome=PENDING)
    assert store.complete_child("w", "b").now_satisfied


# --- deadlines ----------------------------------------------------------------------------------


def test_timed_out_conditions_are_listed_oldest_deadline_first(
    store: cs.Store, clock: ManualClock
) -> None:
    """Pending ones whose deadline has passed, and no others; nothing is closed by listing."""
    for minutes in (3, 1, 2, 9):
        store.set_wait_condition(wait_for(f"w-{minutes}", "a", timeout=minutes * MINUTE))

    store.set_wait_condition(wait_for("never", "a"))
    store.set_wait_condition(wait_for("over", "a", timeout=MINUTE))
    store.complete_child("over", "a")
    clock.advance(MINUTE - timedelta(milliseconds=1))
    assert store.get_timed_out_wait_conditions() == []
    clock.advance(timedelta(milliseconds=1) + 2 * MINUTE)

    def listed(*arguments: Any) -> list[str]:
        found = store.get_timed_out_wait_conditions(*arguments)
        assert {wait.outcome for wait in found} <= {PENDING}
        return [wait.correlation_id for wait in found]

    assert listed() == ["w-1", "w-2", "w-3"]
    assert listed(None, 2) == ["w-1", "w-2"]
    assert listed(clock.now - MINUTE) == ["w-1", "w-2"]
    assert listed(clock.now + 6 * MINUTE) == ["w-1", "w-2", "w-3", "w-9"]
    assert read(store, "w-1").outcome is PENDING


def test_timed_out_conditions_come_with_their_completions(
    store: cs.Store, clock: ManualClock
) -> None:
    """A sweeper sees what has completed, and may close the wait together with its parent."""
    suspended(store, wait_for("w", "a", "b", timeout=MINUTE))
    store.complete_child("w", "a", result=1)
    clock.advance(MINUTE)
    (found,) = store.get_timed_out_wait_conditions()
    assert dict(found.results) == {"a": cs.ChildResult(True, 1)}
    found.outcome = TIMED_OUT
    with store.begin() as session:
        session.add(found)
        parent = session.get_one("parent")
        parent.status = cs.FlowStatus.FAILED
        parent.error = "no answer"

    assert read(store).outcome is TIMED_OUT
    assert store.get_timed_out_wait_conditions() == []
    assert store.claim_due() == []


def test_a_deadline_after_the_calendar_is_none(store: cs.Store) -> None:
    """A wait whose deadline no datetime can tell has none, and does not time out."""
    last = datetime(9999, 12, 31, tzinfo=UTC)
    wait = wait_for("w", "a", created_at=last, timeout=timedelta(days=2))
    store.set_wait_condition(wait)
    assert wait.deadline is None
    assert store.get_timed_out_wait_conditions(last) == []
    assert store.complete_child("w", "a").now_satisfied


def test_a_zero_timeout_is_over_at_once(store: cs.Store) -> None:
    """A wait may have no time at all."""
    store.set_wait_condition(wait_for("w", "a", timeout=timedelta(0)))
    assert [wait.correlation_id for wait in store.get_timed_out_wait_conditions()] == ["w"]


# --- suspend ------------------------------------------------------------------------------------


def test_suspend_writes_both_records(store: cs.Store, clock: ManualClock) -> None:
    """Status, wait, parent and the end of the claim are one commit."""
    store.create(cs.FlowSnapshot("parent", state={"n": 0}))
    (flow,) = store.claim_due()
    wait = wait_for("w", "a", wait_type=WHEN_ANY, timeout=MINUTE)
    with store.session() as session:
        session.add(flow)
        flow.state["n"] = 1
        session.suspend(flow, wait)
        assert store.get_wait_condition("w") is None
        receipt = session.commit()
        assert session.dirty == ()
        assert session.commit() == cs.Receipt()

    assert {tuple(key): version for key, version in receipt.versions.items()} == {
        ("flow", "parent", 0, ""): 3,
        ("wait", "w", 0, ""): 1,
    }
    assert wait.parent_flow_id == "parent"
    for one in (flow, store.get_one("parent")):
        assert (one.status, one.due_at, one.owner) == (cs.FlowStatus.SUSPENDED, None, None)
        assert (one.state, one.attempts) == ({"n": 1}, 0)
        copy = one.wait_condition
        assert copy is not None
        assert copy is not wait
        assert (copy.correlation_id, copy.flow_ids, copy.wait_type) == ("w", ("a",), WHEN_ANY)
        assert (copy.timeout, copy.parent_flow_id, copy.created_at) == (MINUTE, "parent", clock.now)
        assert (copy.outcome, copy.completed_count) == (PENDING, 0)

    assert read(store).parent_flow_id == "parent"
    assert due(store) == []


def test_the_copy_on_the_flow_stays_what_was_set(store: cs.Store) -> None:
    """While suspended, the flow shows the definition; completions do not reach it."""
    suspended(store, wait_for("w", "a", "b"))
    store.complete_child("w", "a")
    copy = store.get_one("parent").wait_condition
    assert copy is not None
    assert (copy.outcome, copy.completed_count) == (PENDING, 0)


def test_a_refused_suspend_writes_neither(store: cs.Store) -> None:
    """If the flow is stale, there is no condition either."""
    store.create(cs.FlowSnapshot("parent", state={}))
    with store.session() as session:
        session.suspend(session.get_one("parent"), wait_for("w", "a"))
        store.update(store.get_one("parent"))
        with pytest.raises(cs.StaleFlowError):
            session.commit()

    assert store.get_wait_condition("w") is None
    assert store.get_one("parent").status is cs.FlowStatus.CREATED


@pytest.mark.parametrize("status", [cs.FlowStatus.COMPLETED, cs.FlowStatus.FAILED])
def test_a_flow_that_has_ended_cannot_wait(store: cs.Store, status: cs.FlowStatus) -> None:
    """Suspending a terminal flow is a usage error that changes nothing."""
    with store.session() as session:
        flow, wait = cs.FlowSnapshot("f", state={}, status=status), wait_for("w", "a")
        with pytest.raises(cs.UsageError, match=f"'f' is {status.name}"):
            session.suspend(flow, wait)

        assert (flow.status, flow.wait_condition) == (status, None)
        assert wait.parent_flow_id is None
        assert session.commit() == cs.Receipt()


def test_a_wait_has_one_parent(store: cs.Store) -> None:
    """A condition of another parent is refused, and nothing is queued."""
    with store.session() as session:
        flow = cs.FlowSnapshot("f", state={})
        with pytest.raises(
            cs.UsageError,
            match="wait condition 'w' already has the parent 'other', so 'f' cannot wait",
        ):
            session.suspend(flow, wait_for("w", "a", parent_flow_id="other"))

        assert flow.status is cs.FlowStatus.CREATED
        assert session.commit() == cs.Receipt()


def test_a_suspend_that_is_refused_queues_nothing(store: cs.Store) -> None:
    """If either record cannot join the session, neither has, and the flow is as it was."""
    with store.session() as session:
        session.add(wait_for("w", "a"))
        flow = cs.FlowSnapshot("f", state={})
        with pytest.raises(cs.UsageError, match="another object for wait condition 'w'"):
            session.suspend(flow, wait_for("w", "a"))

        assert flow not in session
        assert (flow.status, flow.wait_condition) == (cs.FlowStatus.CREATED, None)
        with store.session() as other:
            other.add(flow)
            with pytest.raises(cs.UsageError, match="is in another open session"):
                session.suspend(flow, wait_for("v", "a"))

        session.commit()

    assert store.get("f") is None
    assert store.get_wait_condition("v") is None


# --- waits are work -----------------------------------------------------------------------------


def test_a_satisfied_parent_is_claimed(store: cs.Store) -> None:
    """From the last completion on, `claim_due` finds the parent; its wait shows every result."""
    suspended(store, wait_for("w", "a", "b"))
    assert due(store) == []
    store.complete_child("w", "a", result=1)
    assert due(store) == []
    store.complete_child("w", "b", success=False, error="lost")
    (parent,) = store.claim_due()
    assert parent.flow_id == "parent"
    assert parent.status is cs.FlowStatus.SUSPENDED
    wait = parent.wait_condition
    assert wait is not None
    assert wait.outcome is SATISFIED
    assert dict(wait.results) == {
        "a": cs.ChildResult(True, 1),
        "b": cs.ChildResult(False, None, "lost"),
    }
    assert parent.attempts == 1
    assert due(store) == []


def test_an_overdue_parent_is_claimed_as_timed_out(store: cs.Store, clock: ManualClock) -> None:
    """The condition is closed as TIMED_OUT in the commit that claims its parent."""
    suspended(store, wait_for("w", "a", "b", timeout=MINUTE))
    store.complete_child("w", "a", result=1)
    clock.advance(MINUTE - timedelta(milliseconds=1))
    assert due(store) == []
    clock.advance(timedelta(milliseconds=1))
    (parent,) = store.claim_due()
    wait = parent.wait_condition
    assert wait is not None
    assert (wait.outcome, dict(wait.results)) == (TIMED_OUT, {"a": cs.ChildResult(True, 1)})
    assert read(store).outcome is TIMED_OUT
    assert store.complete_child("w", "b") == answer(outcome=TIMED_OUT)
    assert store.get_timed_out_wait_conditions() == []


def test_a_completion_after_the_deadline_still_counts(store: cs.Store, clock: ManualClock) -> None:
    """Until the parent is claimed the wait is pending, and may still be satisfied."""
    suspended(store, wait_for("w", "a", timeout=MINUTE))
    clock.advance(2 * MINUTE)
    assert store.complete_child("w", "a").now_satisfied
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is SATISFIED


@pytest.mark.parametrize("how", [TIMED_OUT, CANCELLED])
def test_a_parent_of_a_wait_that_was_closed_is_claimed(
    store: cs.Store, how: cs.WaitOutcome
) -> None:
    """A wait that was closed by hand is over: its parent is due."""
    suspended(store, wait_for("w", "a"))
    wait = read(store)
    wait.outcome = how
    store.update_wait_condition(wait)
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is how


def test_pending_completions_wake_the_parent_at_once(store: cs.Store) -> None:
    """If the children were faster than `suspend`, the parent is due as soon as it is written."""
    store.complete_child("w", "a", result=1)
    with store.session() as session:
        flow = cs.FlowSnapshot("parent", state={})
        session.add(flow)
        session.suspend(flow, wait_for("w", "a"))
        receipt = session.commit()

    assert receipt.satisfied == ("w",)
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert dict(parent.wait_condition.results) == {"a": cs.ChildResult(True, 1)}


def test_completions_in_the_suspending_commit_wake_the_parent(store: cs.Store) -> None:
    """A child that completes in the commit that suspends its parent is counted."""
    with store.begin() as session:
        flow = cs.FlowSnapshot("parent", state={})
        session.add(flow)
        session.suspend(flow, wait_for("w", "a"))
        session.complete_child("w", "a")

    assert due(store) == ["parent"]


def test_an_ended_wait_wakes_its_parent_again_until_it_is_claimed(
    store: cs.Store, clock: ManualClock
) -> None:
    """A parent whose claimer dies is claimed again, and its wait still shows how it ended."""
    suspended(store, wait_for("w", "a"))
    store.complete_child("w", "a", result=1)
    for attempt in (1, 2, 3):
        (parent,) = store.claim_due(lease=MINUTE)
        assert parent.attempts == attempt
        assert parent.wait_condition is not None
        assert parent.wait_condition.outcome is SATISFIED
        assert dict(parent.wait_condition.results) == {"a": cs.ChildResult(True, 1)}
        assert due(store) == []
        clock.advance(MINUTE)


@pytest.mark.parametrize("claimed_by", ["claim_due", "claim"])
@pytest.mark.parametrize("ended_by", ["completion", "deadline"])
def test_an_ended_wait_wakes_its_parent_once(
    store: cs.Store, clock: ManualClock, claimed_by: str, ended_by: str
) -> None:
    """When the parent was claimed and has gone on, its wait does not wake it any more."""
    suspended(store, wait_for("w", "a", timeout=MINUTE))
    if ended_by == "completion":
        store.complete_child("w", "a")
    else:
        clock.advance(MINUTE)

    parent = store.claim_due()[0] if claimed_by == "claim_due" else store.claim("parent")
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is (SATISFIED if ended_by == "completion" else TIMED_OUT)
    assert read(store).outcome is parent.wait_condition.outcome
    parent.status = cs.FlowStatus.RUNNING
    parent.due_at = None
    store.update(parent)
    clock.advance(timedelta(hours=1))
    assert due(store) == []
    assert store.get_one("parent").status is cs.FlowStatus.RUNNING


def test_suspend_on_an_ended_wait_wakes_the_parent_again(
    store: cs.Store, clock: ManualClock
) -> None:
    """A worker that runs its step again finds the wait over, and is given the flow back at once."""
    suspended(store, wait_for("w", "a"))
    store.complete_child("w", "a", result=1)
    for _ in range(3):
        (parent,) = store.claim_due()
        parent.status = cs.FlowStatus.RUNNING
        parent.due_at = None
        store.update(parent)
        assert due(store) == []
        again = wait_for("w", "a", "b")
        with store.begin() as session:
            session.add(parent)
            session.suspend(parent, again)

        assert (again.outcome, again.flow_ids) == (SATISFIED, ("a",))

    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert dict(parent.wait_condition.results) == {"a": cs.ChildResult(True, 1)}
    clock.advance(timedelta(days=2))
    assert due(store) == ["parent"]


def test_suspend_on_a_wait_that_ended_without_a_parent_wakes_the_flow(store: cs.Store) -> None:
    """A wait that was set and satisfied before it had a parent wakes the flow that suspends on it."""
    store.set_wait_condition(wait_for("w", "a"))
    store.complete_child("w", "a", result=1)
    ended = read(store)
    suspended(store, wait_for("w", "a"))
    assert read(store).version == ended.version + 1
    (parent,) = store.claim_due()
    assert parent.flow_id == "parent"
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is SATISFIED
    assert read(store).parent_flow_id == "parent"


def test_a_wait_that_ends_while_its_parent_is_held_wakes_it_later(
    store: cs.Store, clock: ManualClock
) -> None:
    """A claim that was there first is respected; when it ends, the parent is claimed."""
    suspended(store, wait_for("w", "a"))
    early = store.claim("parent", lease=MINUTE)
    assert early.wait_condition is not None
    assert early.wait_condition.outcome is PENDING
    store.complete_child("w", "a")
    assert due(store) == []
    clock.advance(MINUTE)
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is SATISFIED


def test_ended_wait_of_a_held_parent_is_not_written_again(store: cs.Store) -> None:
    """A worker that looks for work meanwhile puts its wake-up off; the condition stays as it ended."""
    suspended(store, wait_for("w", "a"))
    store.claim("parent", owner="w-1")
    store.complete_child("w", "a", result=1)
    ended = read(store)
    for _ in range(3):
        assert due(store) == []

    assert (read(store).version, read(store).revision) == (ended.version, ended.revision)


def test_a_wait_that_ends_while_its_parent_is_held_wakes_it_on_release(
    store: cs.Store, clock: ManualClock
) -> None:
    """After a release the parent is claimed with its ended wait, once."""
    suspended(store, wait_for("w", "a"))
    early = store.claim("parent", lease=MINUTE)
    store.complete_child("w", "a")
    assert due(store) == []
    store.release(early)
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is SATISFIED
    parent.due_at = None
    store.update(parent)
    clock.advance(timedelta(hours=1))
    assert due(store) == []


def test_an_overdue_wait_of_a_held_parent_is_closed_by_its_claim(
    store: cs.Store, clock: ManualClock
) -> None:
    """A deadline that passes during a claim is not lost."""
    suspended(store, wait_for("w", "a", timeout=MINUTE))
    store.claim("parent", lease=2 * MINUTE)
    clock.advance(MINUTE)
    assert due(store) == []
    clock.advance(MINUTE)
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is TIMED_OUT


@pytest.mark.parametrize("how", ["parked", "suspended"])
def test_a_wake_up_that_was_put_off_comes_soon_after_an_early_end_of_the_claim(
    store: cs.Store, clock: ManualClock, how: str
) -> None:
    """At most a quarter late of what was left of the lease when the wake-up was put off."""
    store.create(cs.FlowSnapshot("p", state={}))
    early = store.claim("p", lease=100 * MINUTE)
    store.set_wait_condition(wait_for("w", "a", parent_flow_id="p"))
    store.complete_child("w", "a")
    assert due(store) == []
    if how == "parked":
        store.release(early, due_at=None)
    else:
        with store.begin() as session:
            session.add(early)
            session.suspend(early, wait_for("other", "a"))

    clock.advance(25 * MINUTE)
    (parent,) = store.claim_due()
    assert parent.wait_condition is not None
    assert parent.wait_condition.correlation_id == "w"


class Meanwhile:
    """Stands in for a store's driver; does something once, just before a claim is written."""

    def __init__(self, store: Any, act: Callable[[], object]) -> None:
        self._driver = store._driver
        self._act = act
        store._driver = self

    def run(self, conversation: Any) -> Any:
        """Run a conversation over store protocol requests, and look at each of them."""
        return self._driver.run(self._watch(conversation))

    def _watch(self, conversation: Any) -> Any:
        step = partial(next, conversation)
        while True:
            try:
                request = step()
            except StopIteration as end:
                return end.value

            changes = getattr(request, "changes", ())
            if any(getattr(change, "claiming", False) for change in changes):
                act, self._act = self._act, lambda: None
                act()

            try:
                step = partial(conversation.send, (yield request))
            except Exception as error:  # noqa: BLE001  it is the conversation's to handle
                step = partial(conversation.throw, error)

    def close(self) -> None:
        """Close the driver beneath."""
        self._driver.close()


@pytest.mark.parametrize("claimed_by", ["claim_due", "claim"])
def test_a_completion_at_the_last_moment_is_among_the_results(
    open_more: Opener, clock: ManualClock, claimed_by: str
) -> None:
    """What was accepted before the deadline closed the wait is in the results that the claim shows."""
    store, other = open_more(), open_more()
    suspended(store, wait_for("w", "a", "b", "c", timeout=MINUTE))
    store.complete_child("w", "a", result=1)
    clock.advance(MINUTE)
    accepted = []
    Meanwhile(
        store, lambda: accepted.append(other.complete_child("w", "b", result=2, success=False))
    )
    parent = store.claim("parent") if claimed_by == "claim" else store.claim_due()[0]
    assert accepted == [answer(accepted=True, outcome=PENDING)]
    shown = parent.wait_condition
    assert shown is not None
    assert shown.outcome is TIMED_OUT
    assert dict(shown.results) == {"a": cs.ChildResult(True, 1), "b": cs.ChildResult(False, 2)}
    assert shown.results == read(store).results
    parent.status = cs.FlowStatus.RUNNING
    store.update(parent)


@pytest.mark.parametrize("ended_by", ["completion", "deadline"])
@pytest.mark.parametrize("claimed_by", ["claim_due", "claim"])
def test_the_wait_of_a_claimed_parent_is_the_stored_one(
    store: cs.Store, clock: ManualClock, claimed_by: str, ended_by: str
) -> None:
    """It has the version and the revision that the store holds, and the flow is not dirty by it."""
    suspended(store, wait_for("w", "a", timeout=MINUTE))
    if ended_by == "completion":
        store.complete_child("w", "a")
    else:
        clock.advance(MINUTE)

    parent = store.claim("parent") if claimed_by == "claim" else store.claim_due()[0]
    shown, stored = parent.wait_condition, read(store)
    assert shown is not None
    assert (shown.version, shown.revision) == (stored.version, stored.revision)
    with store.session() as session:
        session.add(parent)
        assert session.dirty == ()


def test_a_claimed_parent_that_was_only_read_keeps_its_wait(store: cs.Store) -> None:
    """Claiming a parent whose wait is pending shows it as pending and closes nothing."""
    suspended(store, wait_for("w", "a"))
    parent = store.claim("parent")
    assert parent.wait_condition is not None
    assert parent.wait_condition.outcome is PENDING
    assert store.complete_child("w", "a").now_satisfied


def test_a_parent_that_has_ended_is_not_claimed(store: cs.Store, clock: ManualClock) -> None:
    """A terminal or deleted parent stays away, and does not stand in the way of others."""
    for flow_id in ("done", "gone", "live"):
        suspended(store, wait_for(f"w-{flow_id}", "a"), flow_id)

    done = store.get_one("done")
    done.status = cs.FlowStatus.CANCELLED
    store.update(done)
    store.delete("gone")
    for flow_id in ("done", "gone", "live"):
        store.complete_child(f"w-{flow_id}", "a")

    assert due(store) == ["live"]
    clock.advance(timedelta(hours=1))
    assert due(store) == ["live"]


def test_several_waits_of_one_parent_wake_it_once_each(store: cs.Store, clock: ManualClock) -> None:
    """Conditions with a parent wake it whether or not it suspended on them, one claim at a time."""
    store.create(cs.FlowSnapshot("p", state={}, due_at=None))
    store.set_wait_condition(wait_for("w-1", "a", parent_flow_id="p"))
    store.set_wait_condition(wait_for("w-2", "a", parent_flow_id="p"))
    store.complete_child("w-1", "a")
    (parent,) = store.claim_due(limit=5)
    parent.due_at = None
    store.update(parent)
    assert due(store) == []
    store.complete_child("w-2", "a")
    assert due(store) == ["p"]
    parent = store.get_one("p")
    parent.due_at = None
    store.update(parent)
    clock.advance(timedelta(hours=1))
    assert due(store) == []


@pytest.mark.parametrize("claimed_by", ["claim_due", "claim"])
@pytest.mark.parametrize("how", ["parked", "updated", "crashed"])
def test_another_wait_does_not_hide_the_one_that_was_suspended_on(
    store: cs.Store, clock: ManualClock, claimed_by: str, how: str
) -> None:
    """A parent that was woken by another wait is still notified of its own, whichever worker got it first."""

    def claimed() -> cs.FlowSnapshot[Any]:
        return store.claim("parent") if claimed_by == "claim" else store.claim_due()[0]

    def shown(flow: cs.FlowSnapshot[Any]) -> tuple[str, list[str]]:
        assert flow.wait_condition is not None
        return flow.wait_condition.correlation_id, list(flow.wait_condition.results)

    suspended(store, wait_for("own", "a"))
    for name in ("other", "third"):
        store.set_wait_condition(wait_for(name, "b", parent_flow_id="parent"))

    store.complete_child("other", "b")
    parent = claimed()
    assert shown(parent) == ("other", ["b"])
    assert shown(store.get_one("parent"))[0] == "other"
    if how == "parked":
        store.release(parent, due_at=None)
    elif how == "updated":
        parent.due_at = None
        parent.state = {"seen": "other"}
        store.update(parent)
    else:
        clock.advance(MINUTE)
        parent = claimed()
        assert shown(parent) == ("other", ["b"])
        clock.advance(MINUTE)

    store.complete_child("third", "b")
    parent = claimed()
    assert shown(parent) == ("third", ["b"])
    store.complete_child("own", "a")
    clock.advance(MINUTE)
    for _ in range(2):
        assert shown(claimed()) == ("own", ["a"])
        clock.advance(MINUTE)


@pytest.mark.parametrize("claimed_by", ["claim_due", "claim"])
def test_a_wait_that_was_not_suspended_on_wakes_its_parent_once(
    store: cs.Store, clock: ManualClock, claimed_by: str
) -> None:
    """However the parent is claimed, that notifies it of its ended waits: it is not claimed for them again."""
    store.create(cs.FlowSnapshot("p", state={}, due_at=None))
    for number in range(3):
        store.set_wait_condition(wait_for(f"w-{number}", "a", parent_flow_id="p"))
        store.complete_child(f"w-{number}", "a", result=number)
        clock.advance(timedelta(milliseconds=1))

    parent = store.claim("p") if claimed_by == "claim" else store.claim_due()[0]
    shown = parent.wait_condition
    assert shown is not None
    assert shown.outcome is SATISFIED
    if claimed_by == "claim":
        assert dict(shown.results) == {"a": cs.ChildResult(True, 2)}

    parent.due_at = None
    store.update(parent)
    clock.advance(timedelta(hours=1))
    assert due(store) == []


def test_a_due_flow_is_notified_of_waits_that_were_not_chosen(
    store: cs.Store, clock: ManualClock
) -> None:
    """A claimer that takes a flow for its own due time, among many ended waits, tells it of its own."""
    for number in range(40):
        store.create(cs.FlowSnapshot(f"p-{number}", state={}))
        store.set_wait_condition(wait_for(f"w-{number}", "a", parent_flow_id=f"p-{number}"))
        store.complete_child(f"w-{number}", "a")

    taken = []
    while flows := store.claim_due(limit=1):
        assert flows[0].wait_condition is not None
        taken.append(flows[0].flow_id)
        flows[0].due_at = None
        store.update(flows[0])

    assert sorted(taken) == sorted({f"p-{number}" for number in range(40)})


def test_a_wait_with_a_parent_that_comes_later_wakes_it(store: cs.Store) -> None:
    """A condition that names its parent may end before that flow is there."""
    store.set_wait_condition(wait_for("w", "a", parent_flow_id="parent"))
    store.complete_child("w", "a")
    with store.begin() as session:
        flow = cs.FlowSnapshot("parent", state={}, due_at=None)
        session.add(flow)
        session.suspend(flow, wait_for("w", "a"))

    assert due(store) == ["parent"]


def test_a_cleared_wait_does_not_wake_its_parent(store: cs.Store, clock: ManualClock) -> None:
    """Who clears a wait has taken its parent over."""
    suspended(store, wait_for("w", "a", timeout=MINUTE))
    store.clear_wait_condition("w")
    clock.advance(timedelta(hours=1))
    assert due(store) == []
    assert store.claim("parent").wait_condition is not None


def test_the_parents_type_decides_which_claimer_gets_it(store: cs.Store) -> None:
    """A typed claim takes untyped parents, as it takes untyped flows."""
    import attrs  # noqa: PLC0415  one use

    @attrs.define
    class Mine:
        n: int

    suspended(store, wait_for("w", "a"))
    store.complete_child("w", "a")
    (parent,) = store.claim_due(Mine)
    assert parent.state == Mine(0)


def test_two_stores_share_waits(open_more: Opener) -> None:
    """Exactly one caller gets `now_satisfied`, whichever store it came through."""
    one, other = open_more(), open_more()
    one.set_wait_condition(wait_for("w", "a", "b"))
    satisfied = [
        other.complete_child("w", "a").now_satisfied,
        one.complete_child("w", "a").now_satisfied,
        one.complete_child("w", "b").now_satisfied,
        other.complete_child("w", "b").now_satisfied,
    ]
    assert satisfied == [False, False, True, False]


def test_a_condition_that_has_ended_is_not_opened_again(store: cs.Store) -> None:
    """Setting an ended condition back to `PENDING` is refused, or it could be satisfied twice."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["a"]))
    assert store.complete_child("w", "a").now_satisfied
    wait = store.get_wait_condition("w")
    assert wait is not None
    wait.outcome = cs.WaitOutcome.PENDING
    with pytest.raises(cs.UsageError, match="cannot be reopened"):
        store.update_wait_condition(wait)

    with store.session() as session:
        session.add(wait)
        with pytest.raises(cs.UsageError, match="cannot be reopened"):
            session.commit()

    stored = store.get_wait_condition("w")
    assert stored is not None
    assert (stored.outcome, stored.version) == (cs.WaitOutcome.SATISFIED, 2)
