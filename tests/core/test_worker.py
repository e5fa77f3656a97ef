"""What a worker does with the flows that it claims: outcomes, attempts, `once`, recurring flows.

Everything runs by `run_until_idle`, in the thread of the test, on a clock that is moved by hand.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import attrs
import pytest

import catga_store as cs
from catga_store.testing.clock import ManualClock

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
NEVER_LATER = cs.Retry(attempts=3, first=SECOND, most=SECOND)


@attrs.define
class Order:
    """A state with a type."""

    n: int = 0
    receipt: str | None = None


@attrs.define
class Receipt:
    """A result with a type."""

    number: int


@pytest.fixture
def store(clock: ManualClock) -> cs.Store:
    """Open a store on the manual clock."""
    return cs.MemoryStore(clock=clock)


@pytest.fixture
def worker(store: cs.Store) -> cs.Worker:
    """Make a worker that gives up after three attempts."""
    return cs.Worker(store, retry=NEVER_LATER, owner="w-1")


def create(store: cs.Store, flow_id: str = "o", **more: Any) -> None:
    """Create an order."""
    store.create(cs.FlowSnapshot(flow_id, state=Order(), **more))


def errors(store: cs.Store, flow_id: str = "o") -> list[Any]:
    """Return the entries of the log of errors."""
    return [entry.body for entry in store.read_log(flow_id, "errors")]


# in order -------------------------------------------------------------------------------------------


def test_changes_are_committed_when_the_handler_returns(store: cs.Store, worker: cs.Worker) -> None:
    """State, other records of the session, and the end of the flow are one commit."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1
        run.session.add(cs.FlowSnapshot("other", state=None, due_at=None))
        run.complete()

    assert worker.run_until_idle() == 1
    order = store.get_one("o", Order)
    assert (order.state.n, order.status, order.version) == (1, cs.FlowStatus.COMPLETED, 3)
    assert store.get("other") is not None


def test_each_step_is_a_run(store: cs.Store, worker: cs.Worker, clock: ManualClock) -> None:
    """`next` advances the position, `sleep` pauses; the clock is moved to what is due next."""
    create(store)
    seen: list[tuple[str, int, datetime]] = []
    start = clock.now

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        seen.append((str(run.flow.position), run.attempt, clock.now))
        if run.flow.position.current == 0:
            run.next()
        elif run.flow.position.current == 1 and run.flow.state.n == 0:
            run.flow.state.n = 1
            run.sleep(HOUR)
        elif run.flow.position.current == 1:
            run.next(after=HOUR)
        else:
            run.complete()

    assert worker.run_until_idle() == 4
    assert seen == [
        ("0", 1, start),
        ("1", 1, start),
        ("1", 1, start + HOUR),
        ("2", 1, start + 2 * HOUR),
    ]


def test_a_flow_is_running_when_it_is_handed_to_a_handler(
    store: cs.Store, worker: cs.Worker
) -> None:
    """CREATED and SUSPENDED become RUNNING by themselves; COMPENSATING stays."""
    create(store)
    create(store, "c", status=cs.FlowStatus.COMPENSATING)
    seen: list[tuple[str, str]] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        seen.append((run.flow.flow_id, run.flow.status.name))
        if run.flow.flow_id == "o" and run.flow.position.current == 0:
            run.next()
            run.suspend(cs.WaitCondition("w", flow_ids=["child"], timeout=HOUR))
        elif run.flow.flow_id == "o" and run.flow.position.current == 1:
            run.next(after=HOUR)
        else:
            run.complete()

    worker.run_until_idle(until=store.now())
    waiting = store.get_one("o", Order)
    assert waiting.status is cs.FlowStatus.SUSPENDED
    store.complete_child("w", "child")
    worker.run_until_idle(until=store.now())
    assert store.get_one("o", Order).status is cs.FlowStatus.RUNNING
    assert sorted(seen) == [("c", "COMPENSATING"), ("o", "RUNNING"), ("o", "RUNNING")]


def test_a_flow_may_be_suspended_again_at_the_same_position(
    store: cs.Store, worker: cs.Worker
) -> None:
    """A wait that timed out is repeated, and every run of it is in order."""
    create(store)
    outcomes: list[Any] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        wait = run.flow.wait_condition
        outcomes.append((run.attempt, wait and wait.outcome))
        if len(outcomes) == 3:
            run.complete()
        else:
            name = f"w-{len(outcomes)}"
            run.suspend(cs.WaitCondition(name, flow_ids=["child"], timeout=HOUR))

    worker.run_until_idle()
    timed_out = cs.WaitOutcome.TIMED_OUT
    assert outcomes == [(1, None), (1, timed_out), (1, timed_out)]


def test_what_a_handler_sets_by_hand_is_kept(store: cs.Store, worker: cs.Worker) -> None:
    """Position, status and due time may be set without the methods of the run."""
    create(store)
    at = store.now() + HOUR

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        if run.flow.position.current == 0:
            run.flow.position = run.flow.position.advance()
        elif run.flow.state.n == 0:
            run.flow.state.n = 1
            run.flow.due_at = at
        else:
            run.flow.status = cs.FlowStatus.SUSPENDED

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert (order.status, order.due_at, order.owner) == (cs.FlowStatus.SUSPENDED, None, None)
    assert store.now() == at


def test_a_commit_in_the_middle(store: cs.Store, worker: cs.Worker) -> None:
    """What was committed before an exception stays; the claim ends when the handler returns."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1
        if run.flow.position.current == 0:
            run.flow.position = run.flow.position.advance()
            run.session.commit()
            if run.flow.state.n < 2:
                run.flow.state.n = 100
                raise ValueError
        else:
            run.complete()

    assert worker.run_until_idle() == 2
    order = store.get_one("o", Order)
    assert (order.state.n, order.status.name) == (2, "COMPLETED")


def test_a_flow_that_moved_by_a_commit_in_the_middle_is_let_go(
    store: cs.Store, worker: cs.Worker
) -> None:
    """Nothing is left to commit, and still the claim ends at once."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.position = run.flow.position.advance()
        run.session.commit()

    start = store.now()
    with pytest.raises(cs.UsageError, match="not idle after 3 runs"):
        worker.run_until_idle(most=3)

    assert store.now() == start
    assert str(store.get_one("o").position) == "3"


def test_a_handler_may_delete_its_flow(store: cs.Store, worker: cs.Worker) -> None:
    """The deletion is the end of the run."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.session.delete(run.flow)

    assert worker.run_until_idle() == 1
    assert store.get("o") is None
    assert worker.tally.runs == {"ok": 1}


# exceptions -----------------------------------------------------------------------------------------


def test_an_exception_discards_and_is_retried(
    store: cs.Store, worker: cs.Worker, clock: ManualClock
) -> None:
    """`error` says attempt, exception and place; the next attempt comes within the bound of the policy."""
    create(store)
    start = clock.now
    attempts: list[int] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        attempts.append(run.attempt)
        run.flow.state.n += 1
        run.session.add(cs.FlowSnapshot("other", state=None))
        if run.attempt < 3:
            message = "no connection"
            raise OSError(message)

        run.complete()

    worker.run_until_idle(until=start)
    order = store.get_one("o", Order)
    assert order.error is not None
    assert order.error.startswith("attempt 1 of 3 at 0: OSError: no connection (test_worker.py:")
    assert order.error.endswith(" in handle)")
    assert (order.state.n, order.attempts, order.owner) == (0, 1, None)
    assert order.due_at is not None
    assert start <= order.due_at <= start + SECOND
    assert store.get("other") is None

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert attempts == [1, 2, 3]
    assert (order.state.n, order.status.name, order.error) == (1, "COMPLETED", None)
    assert worker.tally.runs == {"error": 2, "ok": 1}
    assert worker.tally.errors == {"OSError": 2}


def test_the_last_attempt_fails_the_flow(store: cs.Store, worker: cs.Worker) -> None:
    """FAILED, with the error, and the traceback as an entry of a log; other flows run on."""
    create(store)
    create(store, "good")

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        if run.flow.flow_id == "o":
            message = "always"
            raise ValueError(message)

        run.complete()

    assert worker.run_until_idle() == 4
    order = store.get_one("o", Order)
    assert order.status is cs.FlowStatus.FAILED
    assert order.error is not None
    assert order.error.startswith("attempt 3 of 3 at 0: ValueError: always")
    (entry,) = errors(store)
    assert entry["traceback"].endswith("ValueError: always\n")
    assert (entry["attempt"], entry["type"], entry["error"]) == (3, "ValueError", order.error)
    assert store.get_one("good").status is cs.FlowStatus.COMPLETED


def test_giving_up_fails_at_once(store: cs.Store, worker: cs.Worker) -> None:
    """`GiveUp` is not retried, and its text is the error."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1
        message = "the card was stolen"
        raise cs.GiveUp(message)

    assert worker.run_until_idle() == 1
    order = store.get_one("o", Order)
    assert (order.status.name, order.error, order.state.n) == ("FAILED", "the card was stolen", 0)
    assert len(errors(store)) == 1


def test_fail_keeps_the_changes(store: cs.Store, worker: cs.Worker) -> None:
    """`run.fail` is an end like any other; nothing is logged as an error."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1
        run.fail("out of stock")

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert (order.status.name, order.error, order.state.n) == ("FAILED", "out of stock", 1)
    assert errors(store) == []


def test_a_run_that_moves_nothing_is_an_error(store: cs.Store, worker: cs.Worker) -> None:
    """It is never run again at once: it fails like an exception."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1

    assert worker.run_until_idle() == 3
    order = store.get_one("o", Order)
    assert (order.status.name, order.state.n) == ("FAILED", 0)
    assert order.error is not None
    assert "FlowNotMovedError: the handler returned without changing" in order.error


def test_retry_keeps_the_changes_and_counts(store: cs.Store, worker: cs.Worker) -> None:
    """`run.retry` ends as if the handler had given up when attempts are used up."""
    create(store)
    start = store.now()

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1
        run.retry(after=HOUR, reason="the bank is closed")

    worker.run_until_idle(until=start)
    order = store.get_one("o", Order)
    assert (order.state.n, order.attempts, order.due_at) == (1, 1, start + HOUR)
    assert order.error is not None
    assert order.error.startswith("attempt 1 of 3 at 0: RetryRequestedError: the bank is closed")

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert (order.status.name, order.state.n) == ("FAILED", 2)
    assert order.error is not None
    assert order.error.endswith("the bank is closed")


def test_a_conflict_with_another_writer_is_retried(store: cs.Store, worker: cs.Worker) -> None:
    """Somebody writes the flow while it runs: the run is discarded, and attempted again."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        if run.attempt == 1:
            other = store.get_one("o", Order)
            other.state.receipt = "by hand"
            store.update(other)

        run.flow.state.n += 1
        run.complete()

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert (order.status.name, order.state) == ("COMPLETED", Order(1, "by hand"))


def test_retry_and_handlers_of_their_own(store: cs.Store, worker: cs.Worker) -> None:
    """A type may have its own policy; a claim takes only what is handled."""
    create(store)
    store.create(cs.FlowSnapshot("untyped", state={}))
    store.create(cs.FlowSnapshot("receipt", state=Receipt(1)))
    seen: list[str] = []

    @worker.handles(Order, retry=cs.Retry(attempts=1))
    def handle(run: cs.Run[Order]) -> None:
        raise KeyError

    @worker.handles(None)
    def plain(run: cs.Run[Any]) -> None:
        seen.append(run.flow.flow_id)
        run.complete()

    assert worker.run_until_idle() == 2
    assert store.get_one("o").status is cs.FlowStatus.FAILED
    assert seen == ["untyped"]
    assert store.get_one("receipt").status is cs.FlowStatus.CREATED


# on_failure -----------------------------------------------------------------------------------------


def test_on_failure_is_part_of_the_commit_that_fails(store: cs.Store, worker: cs.Worker) -> None:
    """It sees the flow as stored and failed, and the error; what it adds is committed with it."""
    create(store)
    seen: list[Any] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.flow.state.n += 1
        raise cs.GiveUp

    @worker.on_failure(Order)
    def failed(run: cs.Run[Order], error: Exception) -> None:
        seen.append((run.flow.status, run.flow.state.n, type(error)))
        run.session.add(cs.FlowSnapshot("mail", state={}, due_at=None))

    worker.run_until_idle()
    assert seen == [(cs.FlowStatus.FAILED, 0, cs.GiveUp)]
    assert store.get("mail") is not None


def test_on_failure_may_begin_to_compensate(store: cs.Store, worker: cs.Worker) -> None:
    """A flow that it sets going again is due at once, with attempts of its own, and keeps its error."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        if run.flow.status is cs.FlowStatus.COMPENSATING:
            run.flow.status = cs.FlowStatus.CANCELLED
        else:
            message = "refused"
            raise cs.GiveUp(message)

    @worker.on_failure(Order)
    def failed(run: cs.Run[Order], error: Exception) -> None:
        run.flow.status = cs.FlowStatus.COMPENSATING

    start = store.now()
    assert worker.run_until_idle() == 2
    order = store.get_one("o")
    assert (order.status.name, order.error, store.now()) == ("CANCELLED", "refused", start)


def test_on_failure_cannot_compensate_a_compensation_that_has_failed(
    store: cs.Store, worker: cs.Worker
) -> None:
    """It would run again at once, forever; the flow fails, with the error of the compensation."""
    create(store)

    @worker.handles(Order, retry=cs.Retry(attempts=1))
    def handle(run: cs.Run[Order]) -> None:
        raise cs.GiveUp(run.flow.status.name)

    @worker.on_failure(Order)
    def failed(run: cs.Run[Order], error: Exception) -> None:
        run.flow.status = cs.FlowStatus.COMPENSATING

    assert worker.run_until_idle() == 2
    flow = store.get_one("o")
    assert (flow.status, flow.error) == (cs.FlowStatus.FAILED, "COMPENSATING")


def test_on_failure_that_raises_loses_its_changes(store: cs.Store, worker: cs.Worker) -> None:
    """The flow fails all the same, with the first error."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        message = "first"
        raise cs.GiveUp(message)

    @worker.on_failure(Order)
    def failed(run: cs.Run[Order], error: Exception) -> None:
        run.flow.state.n = 7
        run.session.add(cs.FlowSnapshot("mail", state={}))
        message = "second"
        raise ValueError(message)

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert (order.status.name, order.error, order.state.n) == ("FAILED", "first", 0)
    assert store.get("mail") is None


# crashes --------------------------------------------------------------------------------------------


def test_a_flow_that_fails_keeps_its_error(store: cs.Store, worker: cs.Worker) -> None:
    """Also the one of an attempt before, as after a compensation."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        if run.flow.status is not cs.FlowStatus.COMPENSATING:
            message = "no stock"
            raise LookupError(message)

        run.fail(run.flow.error or "no error")

    @worker.on_failure(Order)
    def compensate(run: cs.Run[Any], _error: Exception) -> None:
        run.flow.status = cs.FlowStatus.COMPENSATING

    worker.run_until_idle()
    order = store.get_one("o")
    assert order.status is cs.FlowStatus.FAILED
    assert (order.error or "").startswith("attempt 3 of 3 at 0: LookupError: no stock")


def die(store: cs.Store, clock: ManualClock, times: int) -> None:
    """Claim the flow as workers do that die in it."""
    for _ in range(times):
        (dead,) = store.claim_due(Order, lease=SECOND)
        clock.advance(2 * SECOND)
        del dead


def test_poison_is_failed_without_running_again(store: cs.Store, clock: ManualClock) -> None:
    """A flow whose workers died as often as it may be attempted is not handed to a handler."""
    worker = cs.Worker(store, concurrency=1, retry=NEVER_LATER)
    create(store)
    die(store, clock, 3)
    ran: list[str] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        ran.append(run.flow.flow_id)

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert ran == []
    assert order.status is cs.FlowStatus.FAILED
    assert order.error is not None
    assert order.error.startswith(
        "the flow was not run again, because 3 of 3 attempts at 0 ended without a result"
    )
    assert len(errors(store)) == 1


def test_the_death_of_a_process_is_not_counted_against_its_neighbours(
    store: cs.Store, clock: ManualClock
) -> None:
    """Any of the flows in it may have been the cause. Even the last attempt is not lost by that."""
    worker = cs.Worker(store, retry=cs.Retry(attempts=1))
    create(store)
    die(store, clock, 1)
    seen: list[tuple[int, str | None]] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        seen.append((run.attempt, run.flow.error))
        run.complete()

    worker.run_until_idle()
    order = store.get_one("o", Order)
    assert (order.status, order.error) == (cs.FlowStatus.COMPLETED, None)
    assert [attempt for attempt, _ in seen] == [1]
    assert "it runs alone, because its process died" in (seen[0][1] or "")


def test_a_flow_that_kills_its_process_alone_is_failed(
    store: cs.Store, worker: cs.Worker, clock: ManualClock
) -> None:
    """The first death is not counted, because others ran beside it; each one after it is."""
    create(store)
    starts: list[int] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        starts.append(run.attempt)
        raise SystemExit

    while store.get_one("o").status is not cs.FlowStatus.FAILED:
        assert len(starts) < 10
        with suppress(SystemExit):  # which leaves the claim as the end of the process does
            worker.run_until_idle(until=clock.now)

        clock.advance(HOUR)

    assert starts == [1, 1, 2, 3]
    error = store.get_one("o").error or ""
    assert error.startswith(
        "the flow was not run again, because 3 of 3 attempts at 0 ended without a result"
    )


def test_an_attempt_that_raised_is_explained(
    store: cs.Store, worker: cs.Worker, clock: ManualClock
) -> None:
    """A death after it is not counted, and what was raised before is kept in the error."""
    create(store)
    raised: list[str | None] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        raised.append(run.flow.error)
        message = "no stock"
        raise LookupError(message)

    worker.run_until_idle(until=clock.now)
    clock.advance(2 * SECOND)
    die(store, clock, 1)
    worker.run_until_idle(until=clock.now)
    assert raised[0] is None
    assert raised[1] is not None
    assert raised[1].startswith("attempt 2 of 3 at 0: it runs alone, ")
    assert "the previous error was: attempt 1 of 3 at 0: LookupError: no stock" in raised[1]
    order = store.get_one("o")
    assert (order.attempts, (order.error or "")[:35]) == (2, "attempt 2 of 3 at 0: LookupError: n")


def test_starts_that_ended_in_order_do_not_count(store: cs.Store, worker: cs.Worker) -> None:
    """A step that sleeps at its position again and again is always in its first attempt."""
    create(store)
    attempts: list[int] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        attempts.append(run.attempt)
        if len(attempts) == 8:
            run.complete()
        else:
            run.sleep(HOUR)

    worker.run_until_idle()
    assert attempts == [1] * 8


def test_a_lost_claim_commits_nothing(
    store: cs.Store, worker: cs.Worker, clock: ManualClock
) -> None:
    """Another worker has taken the flow while the handler ran: neither result nor error is written."""
    create(store)
    others: list[cs.FlowSnapshot[Order]] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        clock.advance(HOUR)
        others.extend(store.claim_due(Order, owner="w-2"))
        run.flow.state.n = 7
        run.complete()

    worker.run_until_idle(until=store.now())
    order = store.get_one("o", Order)
    assert (order.owner, order.state.n, order.status.name) == ("w-2", 0, "CREATED")
    assert worker.tally.runs == {"lost": 1}


def test_an_outage_in_a_handler_does_not_count(store: cs.Store, worker: cs.Worker) -> None:
    """The store failed, not the step: it is attempted again a little later, as often as it takes."""
    create(store)
    runs: list[int] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        runs.append(run.attempt)
        if len(runs) < 6:
            message = "no route"
            raise cs.StoreUnavailableError(message)

        run.complete()

    worker.run_until_idle()
    assert runs == [1] * 6
    assert store.get_one("o").status is cs.FlowStatus.COMPLETED


# once -----------------------------------------------------------------------------------------------


def test_a_result_of_once_is_kept_over_a_failure(store: cs.Store, worker: cs.Worker) -> None:
    """The effect happens once, its result comes back with its type, also as plain data."""
    create(store)
    calls: list[str] = []

    def charge(amount: int) -> Receipt:
        calls.append("charge")
        return Receipt(amount)

    def mail() -> list[Any]:
        calls.append("mail")
        return ["sent", 1]

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        receipt = run.once("charge", charge, 42)
        assert receipt == Receipt(42)
        assert run.once("mail", mail) == ["sent", 1]
        if run.attempt < 3:
            raise OSError

        run.complete()

    worker.run_until_idle()
    assert calls == ["charge", "mail"]
    assert store.get_one("o").status is cs.FlowStatus.COMPLETED
    names = [part.name for part in store.list_parts("o", "once/").items]
    assert names == ["once/0/charge", "once/0/mail"]


def test_once_belongs_to_its_position(store: cs.Store, worker: cs.Worker) -> None:
    """The same name at another step is another effect; the step is that in which the run began."""
    create(store)
    calls: list[int] = []

    def act() -> int:
        calls.append(len(calls))
        return len(calls)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        if run.flow.position.current == 2:
            run.complete()
            return

        first = run.once("act", act)
        run.next()
        assert run.once("act", act) == first

    worker.run_until_idle()
    assert calls == [0, 1]


def test_a_result_without_an_annotation_is_refused_in_every_attempt(
    store: cs.Store, worker: cs.Worker
) -> None:
    """It would come back as plain data; it is stored, so the effect happens once, and is used once annotated."""
    create(store)
    calls: list[int] = []

    def charge(amount):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  that is the point
        calls.append(amount)
        return Receipt(amount)

    def annotated(amount: int) -> Receipt:
        raise AssertionError(amount)

    errors: list[str] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        try:
            run.once("charge", charge if run.attempt < 3 else annotated, 42)
        except cs.UsageError as error:
            errors.append(str(error))
            raise OSError from error

        assert run.once("charge", annotated, 42) == Receipt(42)
        run.complete()

    worker.run_until_idle()
    assert calls == [42]
    assert len(errors) == 2
    assert all("annotate the function's return type" in error for error in errors)
    assert store.get_one("o").status is cs.FlowStatus.COMPLETED


def test_a_lost_claim_cannot_keep_a_result(
    store: cs.Store, worker: cs.Worker, clock: ManualClock
) -> None:
    """The write of the result is guarded: another worker has the flow."""
    create(store)
    raised: list[type[BaseException]] = []

    def slow() -> str:
        clock.advance(HOUR)
        store.claim_due(Order, owner="w-2")
        return "mine"

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        try:
            run.once("slow", slow)
        except cs.ClaimLostError as error:
            raised.append(type(error))
            raise

    worker.run_until_idle(until=store.now())
    assert raised == [cs.ClaimLostError]
    assert store.get_part("o", "once/0/slow") is None
    assert worker.tally.runs == {"lost": 1}


def test_a_result_that_would_come_back_as_something_else(
    store: cs.Store, worker: cs.Worker
) -> None:
    """A class that is not annotated is refused, after it was kept: the effect is not repeated."""
    create(store)
    calls: list[int] = []

    def charge():  # type: ignore[no-untyped-def]  # noqa: ANN202  this is what is tested
        calls.append(1)
        return Receipt(1)

    @worker.handles(Order, retry=cs.Retry(attempts=1))
    def handle(run: cs.Run[Order]) -> None:
        run.once("charge", charge)

    worker.run_until_idle()
    order = store.get_one("o")
    assert order.error is not None
    assert "annotate the function's return type" in order.error
    assert calls == [1]
    assert store.get_part("o", "once/0/charge", Receipt) is not None


# recurring ------------------------------------------------------------------------------------------


def test_rounds_are_an_interval_apart(
    store: cs.Store, worker: cs.Worker, clock: ManualClock
) -> None:
    """However long a round takes; what was missed is run once; results of `once` are forgotten."""
    create(store)
    start = clock.now
    rounds: list[tuple[float, int]] = []

    def effect() -> int:
        return len(rounds)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        assert run.once("effect", effect) == len(rounds)
        assert run.attempt == 1
        rounds.append(((clock.now - start) / HOUR, run.attempt))
        clock.advance(3 * HOUR if len(rounds) == 3 else timedelta(minutes=5))
        run.every(HOUR)

    worker.run_until_idle(until=start + 6 * HOUR)
    # The third round takes three hours, so three planned times are missed: they are one round.
    assert [at for at, _ in rounds] == [0, 1, 2, 5, 6]


def test_a_failed_round_does_not_move_the_others(
    store: cs.Store, worker: cs.Worker, clock: ManualClock
) -> None:
    """The planned time is kept beside the lease and the time of the retry."""
    create(store)
    start = clock.now
    rounds: list[float] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        clock.advance(SECOND)
        if run.attempt == 1 and len(rounds) == 1:
            raise OSError

        rounds.append((clock.now - start) // HOUR)
        run.every(HOUR)

    worker.run_until_idle(until=start + 3 * HOUR)
    due_at = store.get_one("o").due_at
    assert rounds == [0, 1, 2, 3]
    assert due_at == start + 4 * HOUR


def test_cron_in_a_time_zone(store: cs.Store, worker: cs.Worker, clock: ManualClock) -> None:
    """The next time of a cron expression, by the clock on the wall of a place."""
    clock.advance(datetime(2030, 3, 30, 12, tzinfo=UTC) - clock.now)
    create(store)
    seen: list[datetime] = []

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        seen.append(clock.now)
        run.cron("0 3 * * *", "Europe/Berlin")

    worker.run_until_idle(until=datetime(2030, 4, 1, 12, tzinfo=UTC))
    # Clocks in Berlin go forward on 31 March 2030.
    assert seen == [
        datetime(2030, 3, 30, 12, tzinfo=UTC),
        datetime(2030, 3, 31, 1, tzinfo=UTC),
        datetime(2030, 4, 1, 1, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    ("expression", "timezone", "part"),
    [
        ("every day", "UTC", "invalid cron expression 'every day'"),
        ("0 3 * * *", "Mars/Olympus", "unknown time zone 'Mars/Olympus'"),
    ],
)
def test_a_wrong_schedule_fails_the_flow_with_a_reason(
    store: cs.Store, worker: cs.Worker, expression: str, timezone: str, part: str
) -> None:
    """The error says what is wrong."""
    create(store)

    @worker.handles(Order)
    def handle(run: cs.Run[Order]) -> None:
        run.cron(expression, timezone)

    worker.run_until_idle()
    order = store.get_one("o")
    assert order.error is not None
    assert part in order.error


# the worker -----------------------------------------------------------------------------------------


async def _awaiting(_run: Any) -> None:
    """Stand for an async handler."""


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda store: cs.Worker(store, concurrency=0), "concurrency: expected an int from 1"),
        (
            lambda store: cs.Worker(store, lease=timedelta(0)),
            "lease: expected a duration longer than 0",
        ),
        (lambda store: cs.Worker(store, retry=3), "retry: expected a Retry, got 3"),
        (lambda _: cs.Worker(None), "expected a Store, got None"),
        (cs.AsyncWorker, "expected an AsyncStore, got"),
        (lambda store: cs.Worker(store).run_until_idle(), "has no handlers"),
        (lambda store: cs.Worker(store).handles(Order)(_awaiting), "got an async function"),
        (lambda store: cs.Worker(store).on_failure(Order)(print), "have no handler"),
        (lambda store: cs.Worker(store).handles(Order)(3), "expected a function"),
        (lambda _: cs.Retry(attempts=0), "attempts: expected an int of at least 1"),
    ],
)
def test_misuse_is_refused(store: cs.Store, call: Any, part: str) -> None:
    """Before anything is claimed."""
    with pytest.raises(cs.UsageError) as caught:
        call(store)

    assert part in str(caught.value)


def test_one_type_has_one_handler(worker: cs.Worker) -> None:
    """A second one is refused."""
    worker.handles(Order)(print)
    with pytest.raises(cs.UsageError, match="already have a handler"):
        worker.handles(Order)(print)


def test_delays_are_drawn_below_a_bound_that_doubles() -> None:
    """Full jitter: evenly from 0; the bound ends at `most`, however many attempts there are."""
    retry = cs.Retry(first=SECOND, most=timedelta(minutes=1))
    bounds = [retry.longest_delay(n).total_seconds() for n in (1, 2, 3, 6, 7, 10_000)]
    assert bounds == [1, 2, 4, 32, 60, 60]
    drawn = [retry.delay(3) / SECOND for _ in range(500)]
    assert min(drawn) < 1
    assert 3 < max(drawn) <= 4


def test_its_repr_says_what_it_does(worker: cs.Worker) -> None:
    """Store, types, and whether it runs."""
    worker.handles(Order, None)(print)
    assert "Order, untyped, idle>" in repr(worker)


def test_a_worker_with_tags_takes_no_other_flows(store: cs.Store) -> None:
    """Nor does its clock move to what others will take; a child that has ended wakes its tagged parent."""
    worker = cs.Worker(store, tags={"queue": "slow"})
    ran: list[str] = []

    @worker.handles(None)
    def run(run: cs.Run[Any]) -> None:
        ran.append(run.flow.flow_id)
        run.complete()

    both = {"queue": "slow", "tenant": "acme"}
    for flow_id, tags in (("a", both), ("b", {"queue": "fast"}), ("c", {})):
        store.create(cs.FlowSnapshot(flow_id, state={}, tags=tags))

    assert worker.run_until_idle() == 1
    assert ran == ["a"]
    assert {flow.flow_id for flow in store.claim_due(limit=5)} == {"b", "c"}


@pytest.mark.parametrize("wrong", ["slow", {"": "x"}, {"queue": 1}])
def test_a_worker_refuses_tags_that_no_flow_can_have(store: cs.Store, wrong: Any) -> None:
    """When it is made."""
    with pytest.raises(cs.UsageError, match="tags"):
        cs.Worker(store, tags=wrong)
