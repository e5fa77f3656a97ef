"""What a worker does with one flow, once for both APIs.

Each function is a generator over the public operations of a store. It yields what an operation returned:
with a `Store` that is the result, with an `AsyncStore` a coroutine. `drive` sends it back as it is, and
`drive_async` awaits it first. So `flow = yield store.get("f")` is the flow on both.

Three things are performed by the worker: `Enter` waits until a handler may run, `CallHandler` calls it,
`Nap` sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

from attrs import frozen

from catga_store.errors import ClaimLostError
from catga_store.errors import CommitUncertainError
from catga_store.errors import ConflictError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.times import NOW
from catga_store.protocol.chance import jittered
from catga_store.protocol.chance import uniform
from catga_store.protocol.keys import partition_of
from catga_store.worker import outcomes
from catga_store.worker.policy import GiveUp
from catga_store.worker.recurring import plan_next

if TYPE_CHECKING:
    from catga_store.worker.base import BaseWorker
    from catga_store.worker.flights import Flight
    from catga_store.worker.runs import BaseRun

__all__ = [
    "OUTAGES",
    "CallHandler",
    "Enter",
    "Nap",
    "Steps",
    "StoppedError",
    "execute",
    "extend_all",
    "hand_back",
]

Steps: TypeAlias = Generator[Any, Any, None]
Write: TypeAlias = Callable[[FlowSnapshot[Any], Any], Steps]

OUTAGES = (StoreUnavailableError, CommitUncertainError)
"""The errors of a store that cannot be reached, or was not for a moment."""

_LONGEST_NAP = 5.0
_MOST_TOGETHER = 100
"""Claims that one commit extends."""
_OUTAGE_DELAY = timedelta(seconds=1)
"""How much later a flow is due whose handler could not reach the store."""


class StoppedError(Exception):
    """A handler was stopped, because the worker stops: the run does not count."""


@frozen
class CallHandler:
    """Call a handler with a run, and with the error it is about, if it is called for one."""

    function: Callable[..., Any]
    flight: Flight
    run: BaseRun[Any]
    error: BaseException | None = None


@frozen
class Enter:
    """Wait until a handler may run; with `alone`, until no other one of this worker does."""

    flight: Flight
    alone: bool


@frozen
class Nap:
    """Sleep for some seconds, or until the worker stops at once."""

    seconds: float


def back_off(vain: int) -> float:
    """Seconds to wait after that many vain attempts to reach the store, with jitter."""
    longest: float = min(0.1 * 2.0 ** min(vain, 10), _LONGEST_NAP)
    return jittered(longest)


def execute(worker: BaseWorker, flight: Flight) -> Steps:
    """Run the handler of a claimed flow, and write how that ended. Raises only what is fatal."""
    # Alone is every flow of a worker that runs one at a time.
    alone = worker.concurrency > 1 and outcomes.discount(flight.flow)
    if flight.flow.attempts > flight.handler.retry.attempts:
        flight.begin_settling()
        error = outcomes.poison_error(flight.flow, flight.handler.retry)
        flight.session.close()
        yield from _fail(worker, flight, error)
        return

    try:
        raised = yield from _call(worker, flight, alone=alone)
        if not alone:
            worker.leave(flight)

        if flight.begin_settling():  # else another thread has ended the run
            yield from _settle(worker, flight, raised)
    finally:
        # Alone until the outcome is written: the next handler may end the process, and this run would count.
        worker.leave(flight)


def _settle(worker: BaseWorker, flight: Flight, error: BaseException | None) -> Steps:
    """Write how a run ended, whose handler returned or raised."""
    if error is None and flight.lost:
        error = StoppedError()

    if error is None:
        try:
            yield from _commit(worker, flight)
        except Exception as raised:  # noqa: BLE001  whatever a commit raises is written to its flow
            error = raised

    if error is None:
        flight.session.close()
        worker.tally.ended(flight, "ok")
    else:
        _discard(flight)
        yield from settle_error(worker, flight, error)


def _call(
    worker: BaseWorker, flight: Flight, *, alone: bool
) -> Generator[Any, Any, BaseException | None]:
    """Call the handler, unless the run was given up before; return what it raises."""
    try:
        yield Enter(flight, alone)
        if alone and not flight.is_settling:
            outcomes.note_alone(flight.flow, flight.handler.retry)
            yield flight.session.commit(resolve=True)

        if not flight.is_settling:
            flight.begin(worker.now())
            yield CallHandler(flight.handler.function, flight, flight.run)
    except Exception as raised:  # noqa: BLE001  whatever a handler raises is written to its flow
        return raised
    else:
        return None


def _discard(flight: Flight) -> None:
    session = flight.session
    session.rollback()
    session.close()


def _commit(worker: BaseWorker, flight: Flight) -> Steps:
    """Commit what a handler that returned has changed."""
    flow, session = flight.flow, flight.session
    wish = flight.run._retry
    if wish is not None:
        if outcomes.is_last(outcomes.attempt_of(flow), flight.handler.retry):
            message = (
                f"the handler called run.retry() on the last of {flight.handler.retry.attempts} "
                f"attempts: {wish.reason}"
            )
            raise GiveUp(message)

        outcomes.unbegin(flow, flight.began)
        outcomes.retry_later(flow, wish.error, flight.handler.retry, worker.now(), wish.after)
    else:
        if flight.run._schedule is not None:
            yield from plan_next(worker.store, session, flow, flight.run._schedule, flight.began_at)

        outcomes.end_in_order(flow, flight.began, is_tracked=flow in session)

    yield session.commit(resolve=True)


def settle_error(worker: BaseWorker, flight: Flight, error: BaseException) -> Steps:
    """Write how a run ended that did not end in order."""
    if flight.lost or (isinstance(error, ClaimLostError) and error.flow_id == flight.flow.flow_id):
        _lost(worker, flight)
    elif isinstance(error, StoppedError):
        yield from hand_back(worker, flight)
    elif isinstance(error, OUTAGES):
        worker.log.warning(
            "%s: the store failed during a run, so the attempt does not count: %s",
            flight.flow.key,
            error,
        )
        yield from hand_back(worker, flight, _OUTAGE_DELAY * uniform(0, 1))
    elif isinstance(error, GiveUp):
        yield from _fail(worker, flight, error)
    else:
        yield from _retry_or_fail(worker, flight, error)


def _lost(worker: BaseWorker, flight: Flight) -> bool:
    flight.lose()
    worker.tally.ended(flight, "lost")
    worker.log.warning("%s: the claim was lost, so this run writes nothing more", flight.flow.key)
    return False


def hand_back(worker: BaseWorker, flight: Flight, delay: timedelta | None = None) -> Steps:
    """Give a flow back to other workers; the attempt does not count."""

    def write(flow: FlowSnapshot[Any], _session: Any) -> Steps:
        outcomes.hand_back(flow, NOW if delay is None else worker.now() + delay)
        yield from ()

    if (yield from _write(worker, flight, write)):
        worker.tally.ended(flight, "handed back")


def _retry_or_fail(worker: BaseWorker, flight: Flight, error: BaseException) -> Steps:
    def write(flow: FlowSnapshot[Any], session: Any) -> Steps:
        if outcomes.is_last(outcomes.attempt_of(flow), flight.handler.retry):
            yield from _write_failure(worker, flight, flow, session, error)
        else:
            outcomes.retry_later(flow, error, flight.handler.retry, worker.now())
            worker.log.warning(
                "%s: %s; the flow is due again at %s", flow.key, flow.error, flow.due_at
            )

    if (yield from _write(worker, flight, write)):
        worker.tally.ended(flight, "error", error)


def _fail(worker: BaseWorker, flight: Flight, error: BaseException) -> Steps:
    def write(flow: FlowSnapshot[Any], session: Any) -> Steps:
        yield from _write_failure(worker, flight, flow, session, error)

    if (yield from _write(worker, flight, write)):
        worker.tally.ended(flight, "error", error)


def _write_failure(
    worker: BaseWorker,
    flight: Flight,
    flow: FlowSnapshot[Any],
    session: Any,
    error: BaseException,
) -> Steps:
    """Fail a flow in a session that has read it, and let its `on_failure` handler add to that."""
    entry, where, status = None, flow.position, flow.status
    try:
        outcomes.fail(flow, error, flight.handler.retry)
        entry = outcomes.error_entry(flow, error)
        if flight.handler.on_failure is not None:
            yield CallHandler(
                flight.handler.on_failure, flight, flight.with_flow(flow, session), error
            )
            if outcomes.fail_where_it_failed(flow, where, status):
                worker.log.warning(
                    "%s: the on_failure handler left the flow %s at the position at which the flow "
                    "had failed as %s, so the flow fails permanently",
                    flow.key,
                    status.name,
                    status.name,
                )

            outcomes.let_go(flow)
    except OUTAGES:
        raise
    except Exception:
        worker.log.exception(
            "%s: the on_failure handler raised an exception, so its changes are discarded", flow.key
        )
        session.rollback()
        session.add(flow)
        yield session.refresh(flow)
        outcomes.fail(flow, error, flight.handler.retry)

    session.append(flow.flow_id, entry, log=outcomes.ERRORS)
    worker.log.error("%s: %s: %s", flow.key, flow.status.name, flow.error)


def _write(worker: BaseWorker, flight: Flight, write: Write) -> Generator[Any, Any, bool]:
    """Write to the flow of a run, while it is what the run has claimed; again and again in an outage.

    Returns whether it was written. The object of the run is left alone: its thread may still use it.
    """
    vain = 0
    while True:
        session = worker.store.session()
        try:
            flow = yield session.get(flight.flow.flow_id, flight.flow.state_type)
            if flow is None or flow.revision != flight.flow.revision:
                return _lost(worker, flight)

            yield from write(flow, session)
            yield session.commit(resolve=True)
        except OUTAGES as error:
            worker.store_failed(error)
        except ConflictError:
            return _lost(worker, flight)
        else:
            return True
        finally:
            session.rollback()
            session.close()

        if worker.is_over:
            return False  # the lease ends by itself

        yield Nap(back_off(vain))
        vain += 1


def extend_all(
    worker: BaseWorker, flights: Iterable[Flight], pause: float
) -> Generator[Any, Any, bool]:
    """Extend the claims of runs under way, in one commit for each partition; whether one is in doubt.

    A claim that is younger than `pause` is left for the next time: most runs have ended by then.
    """
    now = time.monotonic()
    partitions = worker.store._context.settings.partitions
    old: dict[int, list[Flight]] = {}
    for flight in flights:
        if flight.doubt.is_open or now - flight.claimed_at >= pause:
            number = partition_of(flight.flow.flow_id, partitions)
            old.setdefault(number, []).append(flight)

    for some in old.values():
        for start in range(0, len(some), _MOST_TOGETHER):
            yield from _extend_together(worker, some[start : start + _MOST_TOGETHER])

    return any(flight.doubt.is_open and not flight.lost for some in old.values() for flight in some)


def _extend_together(worker: BaseWorker, flights: list[Flight]) -> Steps:
    """One commit that checks the claims and renews them; one by one if that is refused."""
    session = worker.store.session()
    try:
        for flight in flights:
            with suppress(UsageError):  # the claim was ended through the object: the run is over
                session.guard(flight.flow)

        if len(flights) > 1:
            yield session.commit(resolve=True)
            for flight in flights:
                flight.doubt.over()

            return
    except ConflictError:
        pass
    except OUTAGES as error:
        worker.store_failed(error)
        return
    finally:
        session.close()

    for flight in flights:
        yield from _extend(worker, flight)


def _extend(worker: BaseWorker, flight: Flight) -> Steps:
    try:
        yield worker.store.extend(flight.flow)
    except (ClaimLostError, FlowNotFoundError):
        if flight.doubt.refused():
            flight.lose()
    except OUTAGES as error:
        worker.store_failed(error)
    except UsageError:
        pass  # as above
    else:
        flight.doubt.over()
