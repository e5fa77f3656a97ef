"""The worker of an async store: one task claims, one extends, and some run handlers."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import TypeAlias
from typing import TypeVar
from typing import overload

import anyio
from anyio.abc import TaskGroup

from catga_store.aio import AsyncStore
from catga_store.core.holding import LONGEST_DOUBT
from catga_store.core.holding import PARTS
from catga_store.model.flows import FlowSnapshot
from catga_store.worker.base import BaseWorker
from catga_store.worker.base import check_store
from catga_store.worker.flights import Flight
from catga_store.worker.policy import Retry
from catga_store.worker.runs import AsyncRun
from catga_store.worker.steps import OUTAGES
from catga_store.worker.steps import CallHandler
from catga_store.worker.steps import Enter
from catga_store.worker.steps import Nap
from catga_store.worker.steps import Steps
from catga_store.worker.steps import StoppedError
from catga_store.worker.steps import back_off
from catga_store.worker.steps import execute
from catga_store.worker.steps import extend_all
from catga_store.worker.steps import settle_error
from catga_store.worker.stopping import SIGNALS

__all__ = ["AsyncWorker"]

S = TypeVar("S")
Handled: TypeAlias = Callable[[AsyncRun[S]], Awaitable[None]]
Failed: TypeAlias = Callable[[AsyncRun[Any], Exception], Awaitable[None]]


class AsyncWorker(BaseWorker):
    """Claims due flows, runs their async handlers in tasks, and commits what the handlers have changed.

    A worker is optional: it calls only public operations of the store, which you can also call in your own
    loop. It runs on asyncio and on trio.

    `concurrency` is the number of handlers that run at the same time. `lease` is the duration of a claim; the
    claims of running flows are extended after each third of their lease. `retry` determines what happens
    after an exception. `grace` is the time for which handlers may continue to run after the worker is
    stopped. `owner` is the name of the worker in claims. With `tags`, the worker claims only flows that have
    all of these tags.

    >>> import anyio
    >>> import catga_store as cs
    >>> async def main():
    ...     store = cs.open_async_store("memory://")
    ...     worker = cs.AsyncWorker(store)
    ...     @worker.handles(None)
    ...     async def count(run):
    ...         run.flow.state["n"] += 1
    ...         run.complete()
    ...     await store.create(cs.FlowSnapshot("counter", state={"n": 0}))
    ...     await worker.run_until_idle()
    ...     print((await store.get_one("counter")).state)
    >>> anyio.run(main)
    {'n': 1}
    """

    store: AsyncStore
    _run_class = AsyncRun
    _is_async = True

    def __init__(
        self,
        store: AsyncStore,
        *,
        concurrency: int = 8,
        lease: timedelta = timedelta(seconds=30),
        retry: Retry | None = None,
        grace: timedelta = timedelta(seconds=20),
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        check_store(store, AsyncStore, "an AsyncStore; with a Store, use a Worker")
        super().__init__(
            store,
            concurrency=concurrency,
            lease=lease,
            retry=retry,
            grace=grace,
            owner=owner,
            tags=tags,
        )
        self._changed = anyio.Event()
        self._is_over = False
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

        The handler receives an `AsyncRun`. `retry` replaces the worker's `retry` for these types. A handler
        that takes longer than `time_limit` is cancelled: the attempt fails, and none of the handler's changes
        are committed.
        """

        def decorate(function: Handled[Any]) -> Handled[Any]:
            self._add_handler(function, types, retry, time_limit)
            return function

        return decorate

    def on_failure(self, *types: type[Any] | str | None) -> Callable[[Failed], Failed]:
        """Decorate a function that is called when a flow of these types fails for good.

        The function receives an `AsyncRun` and the error. The flow has its stored state, the status `FAILED`,
        and its `error`. The commit that fails the flow includes the function's changes. The function can also
        let the flow continue, for example with the status `COMPENSATING`, but not with the position and
        status with which the flow failed. If the function raises an exception, the flow fails without the
        function's changes.
        """

        def decorate(function: Failed) -> Failed:
            self._add_failure_handler(function, types)
            return function

        return decorate

    # running --------------------------------------------------------------------------------------

    async def run(self, *, signals: bool = True) -> None:
        """Process flows until `stop` is called or, in the main thread, until the process gets SIGTERM or SIGINT.

        With `signals=False`, the worker does not handle signals. Use this option if the worker is part of a
        program that handles signals itself, such as a web server, and call `stop` from that program.

        A worker that has been stopped claims no more flows and gives its handlers the time `grace` to return.
        Handlers that are still running after that are cancelled. Their flows are given back to other workers,
        and the attempts do not count. A second signal, or a cancellation of this call, ends the grace period
        at once. An outage of the store does not stop the worker.
        """
        self._begin()
        self._changed = anyio.Event()
        fatal: BaseException | None = None
        try:
            async with anyio.create_task_group() as helpers:
                if signals and threading.current_thread() is threading.main_thread():
                    helpers.start_soon(self._watch_signals)

                helpers.start_soon(self._keep)
                helpers.start_soon(self._watch_cancellation)
                async with anyio.create_task_group() as runs:
                    try:
                        await self._claim_loop(runs)
                    except Exception as error:  # noqa: BLE001  raised below, not in a group
                        fatal = error

                    self._is_stopping = True
                    await self._drain()

                helpers.cancel_scope.cancel()
        finally:
            self._reset()

        if fatal is not None:
            raise fatal

    def stop(self, grace: timedelta | None = None) -> None:
        """Stop the worker, so that `run` returns; `grace` replaces the worker's `grace`.

        Call this method on the event loop that runs the worker.
        """
        if grace is not None:
            self._grace_now = grace.total_seconds()

        self._is_stopping = True
        self._notify()
        waiter = self._waiter
        if waiter is not None:
            waiter.end()

    @property
    def is_over(self) -> bool:
        """Whether the worker is stopping at once: flows that cannot be written now are free when their leases end."""
        return self._is_over

    def _notify(self) -> None:
        """Wake all who wait for a change: a run has ended, or the worker stops."""
        self._changed.set()
        self._changed = anyio.Event()

    def _reset(self) -> None:
        self._flights.clear()
        self._ending = 0
        self._is_running = self._is_stopping = self._is_over = False
        self._waiter = None

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(*SIGNALS) as received:
            async for _ in received:
                self.log.info("%s", "stopping immediately" if self._is_stopping else "stopping")
                self.stop(timedelta(0) if self._is_stopping else None)

    async def _watch_cancellation(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.stop(timedelta(0))

    async def _claim_loop(self, runs: TaskGroup) -> None:
        while free := await self._free_slots():
            self._turn()
            began = time.monotonic()
            flows: list[FlowSnapshot[Any]] = []
            try:
                # Shielded: what is claimed is given back, not lost for a lease. `stop` ends the wait.
                with anyio.CancelScope(shield=True):
                    flows = await self.store._run(self._claiming(free))

                self._claimed(len(flows), free, time.monotonic() - began)
            except OUTAGES as error:
                self.store_failed(error)
                await self._pause(back_off(self._vain))
                self._vain += 1
                continue

            self._store_works()
            for flight in self._flights_of(flows):
                self._flights.add(flight)
                runs.start_soon(self._work, flight)

    async def _free_slots(self) -> int:
        """Wait for a free slot; 0 when the worker stops."""
        free_since = time.monotonic()
        while not self._is_stopping:
            free = self._free()
            gathering = self._gathering(free_since) if free else 1.0
            if gathering <= 0:
                return free

            if not free:
                free_since = time.monotonic() + 1.0

            self._turn()
            # Waking it for each run that ends would cost a fifth of a step.
            self._wake_at = self.concurrency if free else 1
            await self._wait_for_change(gathering)
            self._wake_at = self.concurrency + 1
            free_since = min(free_since, time.monotonic())

        return 0

    def _free(self) -> int:
        """How many flows may be claimed now.

        The outcomes of as many handlers may be written while others run already: so the next claim does not
        wait for a round trip. A worker that runs one at a time does: no process is to die with two runs.
        """
        running = len(self._flights) - (self._ending if self.concurrency > 1 else 0)
        return min(self.concurrency - running, 2 * self.concurrency - len(self._flights))

    async def _wait_for_change(self, seconds: float) -> None:
        changed = self._changed
        with anyio.move_on_after(max(seconds, 0)):
            await changed.wait()

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not when the worker stops."""
        until = time.monotonic() + seconds
        while not self._is_stopping and (left := until - time.monotonic()) > 0:
            await self._wait_for_change(left)

    async def _work(self, flight: Flight) -> None:
        try:
            if self._is_stopping and flight.begin_settling():
                await self._drive(settle_error(self, flight, StoppedError()))
            else:
                await self._drive(execute(self, flight))
        finally:
            self._flights.discard(flight)
            self._ending -= flight.is_ending
            self._freed()

    async def _drive(self, steps: Steps) -> None:
        """Run steps to their end; an error here would be one of this module, and must not end the others."""
        try:
            await self._perform(steps)
        except Exception:
            self.log.exception(
                "a run ended with an unexpected error; its flow is due again when the lease ends"
            )

    async def _perform(self, steps: Generator[Any, Any, Any]) -> Any:
        step: Callable[[Any], Any] = steps.send
        argument: Any = None
        try:
            while True:
                asked = step(argument)
                try:
                    argument = None
                    if isinstance(asked, CallHandler):
                        await self._invoke(asked)
                    elif isinstance(asked, Enter):
                        if not self._may_enter(asked, 0.0):
                            await self._enter(asked)
                    elif isinstance(asked, Nap):
                        await self._nap(asked.seconds)
                    else:
                        # Shielded: what a run has begun to write at its end, it writes.
                        with anyio.CancelScope(shield=True):
                            argument = await asked

                    step = steps.send
                except Exception as error:  # noqa: BLE001  the steps decide
                    step, argument = steps.throw, error
        except StopIteration as end:
            return end.value

    async def _enter(self, asked: Enter) -> None:
        began = time.monotonic()
        self._gate.want(asked.alone)
        try:
            while not self._may_enter(asked, time.monotonic() - began):
                await self._wait_for_change(0.5)
        except anyio.get_cancelled_exc_class():
            raise StoppedError from None  # as when a handler is cancelled so
        finally:
            self._gate.want(-asked.alone)

    def leave(self, flight: Flight) -> None:
        """Start handlers that wait for this one to end; do nothing if this one did not begin."""
        if flight.is_inside:
            flight.is_ending = True
            self._ending += 1

        if self._leave(flight):
            self._notify()
        else:
            self._freed()

    def _freed(self) -> None:
        """Wake the claim loop, if it waits for as many free slots, and the one that waits for the last run."""
        if self._free() >= self._wake_at or not self._flights:
            self._wake_at = self.concurrency + 1  # once is enough
            self._notify()

    async def _nap(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_over and (left := until - time.monotonic()) > 0:
            await self._wait_for_change(left)

    async def _invoke(self, asked: CallHandler) -> None:
        """Call a handler; if it was cancelled by its worker, raise why."""
        flight = asked.flight
        more = () if asked.error is None else (asked.error,)
        limit = flight.handler.time_limit if asked.error is None else None
        try:
            with anyio.CancelScope() as scope:
                if asked.error is None:
                    flight.scope = scope
                    if limit is not None:
                        scope.deadline = anyio.current_time() + limit

                await asked.function(asked.run, *more)
        except anyio.get_cancelled_exc_class():
            # The task that called `run` was cancelled: the steps give the flow back, under a shield.
            flight.is_stopped = True
            raise StoppedError from None
        finally:
            flight.scope = None

        if scope.cancelled_caught:
            if flight.is_stopped or flight.lost:
                raise StoppedError

            raise flight.limit_error()

    # keeping claims, and giving up ----------------------------------------------------------------

    async def _keep(self) -> None:
        """Extend the claims of what is under way, every third of a lease."""
        pause = self._lease.total_seconds() / PARTS
        in_doubt = False
        while True:
            await anyio.sleep(min(pause, LONGEST_DOUBT) if in_doubt else pause)
            in_doubt = await self._perform(extend_all(self, list(self._flights), pause))

    async def _drain(self) -> None:
        """Wait for what is under way, and cancel what does not end in time; that is given back."""
        began = time.monotonic()
        while self._flights and (left := began + self._grace_now - time.monotonic()) > 0:
            await self._wait_for_change(left)

        self._is_over = True
        self._notify()
        for flight in list(self._flights):
            flight.is_stopped = True
            flight.cancel()

    # tests ----------------------------------------------------------------------------------------

    async def run_until_idle(self, *, until: datetime | None = None, most: int = 10_000) -> int:
        """Run everything that is due, one flow at a time in this task; return the number of runs.

        This method is intended for tests. If the store has a `ManualClock`, the method moves the clock to the
        time at which something is due next, so pauses, retries and deadlines take no time. With `until`, the
        clock is not moved past that time. Raises `UsageError` after `most` runs. Errors that handlers raise
        are written to their flows, as usual; errors of the store are raised.
        """
        self._begin()
        runs = 0
        try:
            while True:
                flows = await self.store.claim_due(
                    self._types, lease=self._lease, owner=self._owner, tags=self._tags
                )
                for flight in self._flights_of(flows):
                    self._check_runs(runs, most)
                    await self._perform(execute(self, flight))
                    runs += 1

                if not flows:
                    next_due = await self.store._run(self._next_due())
                    if not self._moves_clock(next_due, until):
                        return runs
        finally:
            self._reset()


AsyncWorker.__module__ = "catga_store"
