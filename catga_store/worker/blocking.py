"""The worker of a blocking store: one thread claims, one extends, and some run handlers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import TypeAlias
from typing import TypeVar
from typing import overload

from catga_store.core.holding import LONGEST_DOUBT
from catga_store.core.holding import PARTS
from catga_store.store import Store
from catga_store.worker.base import BaseWorker
from catga_store.worker.base import check_plain
from catga_store.worker.base import check_store
from catga_store.worker.flights import Flight
from catga_store.worker.policy import Retry
from catga_store.worker.runs import Run
from catga_store.worker.steps import OUTAGES
from catga_store.worker.steps import CallHandler
from catga_store.worker.steps import Enter
from catga_store.worker.steps import Nap
from catga_store.worker.steps import StoppedError
from catga_store.worker.steps import back_off
from catga_store.worker.steps import execute
from catga_store.worker.steps import extend_all
from catga_store.worker.steps import settle_error
from catga_store.worker.stopping import signals_to

__all__ = ["Worker"]

S = TypeVar("S")
Handled: TypeAlias = Callable[[Run[S]], None]
Failed: TypeAlias = Callable[[Run[Any], Exception], None]

_LAST_WRITES_SECONDS = 10.0


class Worker(BaseWorker):
    """Claims due flows, runs their handlers in threads, and commits what the handlers have changed.

    A worker is optional: it calls only public operations of the store, which you can also call in your own
    loop.

    `concurrency` is the number of handlers that run at the same time. `lease` is the duration of a claim; the
    claims of running flows are extended after each third of their lease. `retry` determines what happens
    after an exception. `grace` is the time for which handlers may continue to run after the worker is
    stopped. `owner` is the name of the worker in claims. With `tags`, the worker claims only flows that have
    all of these tags.

    >>> import catga_store as cs
    >>> store = cs.open_store("memory://")
    >>> worker = cs.Worker(store)
    >>> @worker.handles(None)
    ... def count(run):
    ...     run.flow.state["n"] += 1
    ...     run.complete()
    >>> store.create(cs.FlowSnapshot("counter", state={"n": 0}))
    >>> worker.run_until_idle()
    1
    >>> store.get_one("counter").state
    {'n': 1}
    """

    store: Store
    _run_class = Run
    _is_async = False

    def __init__(
        self,
        store: Store,
        *,
        concurrency: int = 8,
        lease: timedelta = timedelta(seconds=30),
        retry: Retry | None = None,
        grace: timedelta = timedelta(seconds=20),
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        check_store(store, Store, "a Store; with an AsyncStore, use an AsyncWorker")
        super().__init__(
            store,
            concurrency=concurrency,
            lease=lease,
            retry=retry,
            grace=grace,
            owner=owner,
            tags=tags,
        )
        self._changed = threading.Condition()
        self._wake = threading.Event()
        """Set when the worker stops: ends its pauses."""
        self._over = threading.Event()
        """Set when it stops at once: ends pauses in an outage."""
        self._ended = threading.Event()
        """Set when nothing is under way any more, or is waited for."""
        self._queue: queue.SimpleQueue[Flight | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle_threads = 0
        self._wake_at = concurrency + 1
        """How many slots are free when the claim loop is to be woken; more than there are: it does not wait."""

    @overload
    def handles(
        self,
        state_type: type[S],
        /,
        *,
        retry: Retry | None = None,
        time_limit: timedelta | None = None,
    ) -> Callable[[Handled[S]], Handled[S]]: ...
    @overload
    def handles(
        self,
        *types: type[Any] | str | None,
        retry: Retry | None = None,
        time_limit: timedelta | None = None,
    ) -> Callable[[Handled[Any]], Handled[Any]]: ...
    def handles(
        self,
        *types: Any,
        retry: Retry | None = None,
        time_limit: timedelta | None = None,
    ) -> Callable[[Handled[Any]], Handled[Any]]:
        """Decorate the handler for flows of these types: classes, stored type names, or `None` for no type.

        The handler receives a `Run`. `retry` replaces the worker's `retry` for these types. The worker stops
        waiting for a handler that takes longer than `time_limit`: the attempt fails, and none of the
        handler's changes are committed. The thread of the handler cannot be stopped, so the handler continues
        to run.
        """

        def decorate(function: Handled[Any]) -> Handled[Any]:
            self._add_handler(function, types, retry, time_limit)
            return function

        return decorate

    def on_failure(self, *types: type[Any] | str | None) -> Callable[[Failed], Failed]:
        """Decorate a function that is called when a flow of these types fails for good.

        The function receives a `Run` and the error. The flow has its stored state, the status `FAILED`, and
        its `error`. The commit that fails the flow includes the function's changes. The function can also let
        the flow continue, for example with the status `COMPENSATING`, but not with the position and status
        with which the flow failed. If the function raises an exception, the flow fails without the function's
        changes.
        """

        def decorate(function: Failed) -> Failed:
            self._add_failure_handler(function, types)
            return function

        return decorate

    # running --------------------------------------------------------------------------------------

    def run(self, *, signals: bool = True) -> None:
        """Process flows until `stop` is called or, in the main thread, until the process gets SIGTERM or SIGINT.

        With `signals=False`, the worker does not handle signals. Use this option if the worker is part of a
        program that handles signals itself, such as a web server, and call `stop` from that program.

        A worker that has been stopped claims no more flows and gives its handlers the time `grace` to return.
        If a handler is still running after that, its flow is given back to other workers, and the attempt
        does not count. A second signal ends the grace period at once. An outage of the store does not stop
        the worker.
        """
        self._begin()
        keeper = threading.Thread(target=self._keep, name="catga-store-keeper", daemon=True)
        keeper.start()
        try:
            with signals_to(self._signalled) if signals else nullcontext():
                try:
                    self._claim_loop()
                finally:
                    self._is_stopping = True
                    self._drain()
        finally:
            self._ended.set()
            keeper.join()
            for _ in self._threads:
                self._queue.put(None)

            for thread in self._threads:
                thread.join()

            self._reset()

    def stop(self, grace: timedelta | None = None) -> None:
        """Stop the worker, so that `run` returns; `grace` replaces the worker's `grace`.

        This method can be called from any thread.
        """
        with self._changed:
            if grace is not None:
                self._grace_now = grace.total_seconds()

            self._is_stopping = True
            self._wake.set()
            self._changed.notify_all()

        waiter = self._waiter
        if waiter is not None:
            waiter.end()

    @property
    def is_over(self) -> bool:
        """Whether the worker is stopping at once: flows that cannot be written now are free when their leases end."""
        return self._over.is_set()

    def _signalled(self) -> None:
        self.log.info("%s", "stopping immediately" if self._is_stopping else "stopping")
        self.stop(timedelta(0) if self._is_stopping else None)

    def _reset(self) -> None:
        self._threads.clear()
        self._idle_threads = 0
        self._wake.clear()
        self._ended.clear()
        self._over.clear()
        self._is_running = self._is_stopping = False
        self._waiter = None

    def _claim_loop(self) -> None:
        while (free := self._free_slots()) and not self._is_stopping:
            self._turn()
            began = time.monotonic()
            try:
                flows = self.store._run(self._claiming(free))
                self._claimed(len(flows), free, time.monotonic() - began)
            except OUTAGES as error:
                self.store_failed(error)
                self._wake.wait(back_off(self._vain))
                self._vain += 1
                continue

            self._store_works()
            for flight in self._flights_of(flows):
                self._start(flight)

    def _free_slots(self) -> int:
        """Wait for a free slot; 0 when the worker stops."""
        free_since = time.monotonic()
        with self._changed:
            while not self._is_stopping:
                free = self.concurrency - len(self._flights)
                gathering = self._gathering(free_since) if free else 1.0
                if gathering <= 0:
                    return free

                if not free:
                    free_since = time.monotonic() + 1.0

                self._turn()
                # Waking it for each run that ends would take the interpreter from those that run.
                self._wake_at = self.concurrency if free else 1
                self._changed.wait(gathering)
                self._wake_at = self.concurrency + 1
                free_since = min(free_since, time.monotonic())

        return 0

    def _start(self, flight: Flight) -> None:
        with self._changed:
            self._flights.add(flight)
            if self._idle_threads:
                self._idle_threads -= 1
            else:
                name = f"catga-store-worker-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

        self._queue.put(flight)

    def _work(self) -> None:
        while (flight := self._queue.get()) is not None:
            flight.thread = threading.current_thread()
            if self._is_stopping and flight.begin_settling():
                self._drive(settle_error(self, flight, StoppedError()))
            else:
                self._drive(execute(self, flight))

            if not self._finish(flight):
                return

    def _finish(self, flight: Flight) -> bool:
        """Free the slot of a run; `False` if it was free already, because the run was given up."""
        with self._changed:
            is_mine = flight in self._flights
            self._flights.discard(flight)
            self._idle_threads += is_mine
            if not self._flights or self.concurrency - len(self._flights) >= self._wake_at:
                self._wake_at = self.concurrency + 1  # once is enough
                self._changed.notify_all()

            return is_mine

    def _drive(self, steps: Generator[Any, Any, Any]) -> Any:
        """Run steps to their end; an error here would be one of this module, and must not end a thread."""
        try:
            return self._perform(steps)
        except Exception:
            self.log.exception(
                "a run ended with an unexpected error; its flow is due again when the lease ends"
            )

    def _perform(self, steps: Generator[Any, Any, Any]) -> Any:
        result: Any = None
        error: Exception | None = None
        try:
            while True:
                asked = steps.send(result) if error is None else steps.throw(error)
                result, error = asked, None
                if isinstance(asked, CallHandler):
                    try:
                        self._invoke(asked)
                    except Exception as raised:  # noqa: BLE001  the steps decide
                        error = raised
                elif isinstance(asked, Enter):
                    try:
                        self._enter(asked)
                    except StoppedError as stopped:
                        error = stopped
                elif isinstance(asked, Nap):
                    self._over.wait(asked.seconds)
        except StopIteration as end:
            return end.value

    def _enter(self, asked: Enter) -> None:
        began = time.monotonic()
        with self._changed:
            if self._may_enter(asked, 0.0):
                return

            self._gate.want(asked.alone)
            try:
                while not self._may_enter(asked, time.monotonic() - began):
                    self._changed.wait(0.5)
            finally:
                self._gate.want(-asked.alone)

    def leave(self, flight: Flight) -> None:
        """Start handlers that wait for this one to end; do nothing if this one did not begin."""
        with self._changed:
            if self._leave(flight):
                self._changed.notify_all()

    def _invoke(self, asked: CallHandler) -> None:
        more = () if asked.error is None else (asked.error,)
        check_plain(asked.function(asked.run, *more))

    # keeping claims, and giving up ----------------------------------------------------------------

    def _keep(self) -> None:
        """Extend the claims of what is under way, every third of a lease; look at time limits."""
        pause = self._lease.total_seconds() / PARTS
        extend_at = time.monotonic() + pause
        while not self._ended.wait(self._until_next(extend_at)):
            for flight in self._in_flight():
                if flight.is_late:
                    self._give_up(flight, flight.limit_error())

            if time.monotonic() >= extend_at:
                in_doubt = self._drive(extend_all(self, self._in_flight(), pause))
                extend_at = time.monotonic() + (min(pause, LONGEST_DOUBT) if in_doubt else pause)

    def _in_flight(self) -> list[Flight]:
        with self._changed:
            return list(self._flights)

    def _until_next(self, extend_at: float) -> float:
        times = [extend_at - time.monotonic()]
        for flight in self._in_flight():
            limit = flight.handler.time_limit
            if limit is not None and not flight.is_settling:
                times.append(limit - flight.seconds)

        # A run that starts later may have a limit, too.
        shortest = min(
            (one.time_limit for one in self._handlers.values() if one.time_limit is not None),
            default=None,
        )
        if shortest is not None:
            times.append(shortest)

        return max(min(times), 0.001)

    def _give_up(self, flight: Flight, error: BaseException) -> None:
        """End a run whose handler has not returned; what the handler still does is not committed."""
        if flight.begin_settling():
            self._drive(settle_error(self, flight, error))
            flight.lose()
            self.leave(flight)
            with self._changed:
                self._flights.discard(flight)
                if flight.thread in self._threads:
                    self._threads.remove(flight.thread)  # it may never end

                self._changed.notify_all()

    def _drain(self) -> None:
        """Wait for what is under way, and give back what does not end in time."""
        began = time.monotonic()
        with self._changed:
            while self._flights and (left := began + self._grace_now - time.monotonic()) > 0:
                self._changed.wait(left)

        self._over.set()
        for flight in self._in_flight():
            self._give_up(flight, StoppedError())

        give_up = time.monotonic() + _LAST_WRITES_SECONDS
        with self._changed:
            while self._flights and time.monotonic() < give_up:
                self._changed.wait(give_up - time.monotonic())

    # tests ----------------------------------------------------------------------------------------

    def run_until_idle(self, *, until: datetime | None = None, most: int = 10_000) -> int:
        """Run everything that is due, one flow at a time in this thread; return the number of runs.

        This method is intended for tests. If the store has a `ManualClock`, the method moves the clock to the
        time at which something is due next, so pauses, retries and deadlines take no time. With `until`, the
        clock is not moved past that time. Raises `UsageError` after `most` runs. Errors that handlers raise
        are written to their flows, as usual; errors of the store are raised.
        """
        self._begin()
        runs = 0
        try:
            while True:
                flows = self.store.claim_due(
                    self._types, lease=self._lease, owner=self._owner, tags=self._tags
                )
                for flight in self._flights_of(flows):
                    self._check_runs(runs, most)
                    self._perform(execute(self, flight))
                    runs += 1

                if not flows:
                    next_due = self.store._run(self._next_due())
                    if not self._moves_clock(next_due, until):
                        return runs
        finally:
            self._reset()


Worker.__module__ = "catga_store"
