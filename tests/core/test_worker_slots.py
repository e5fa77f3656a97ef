"""Which slots of an async worker are free: a handler that has ended makes room before its outcome is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from waiting import until_async

import catga_store as cs

LONG = 60

pytestmark = pytest.mark.anyio


async def run_flows(worker: cs.AsyncWorker, number: int, handle: Callable[..., Any]) -> None:
    """Run that many flows of one step with this handler to their end."""
    for place in range(number):
        await worker.store.create(cs.FlowSnapshot(f"f-{place}", state=None))

    worker.handles(None)(handle)
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await until_async(lambda: worker.tally.runs["ok"] == number)
            worker.stop()


async def test_others_run_while_outcomes_are_written() -> None:
    """Two slots, whose first two flows cannot be written before the third one runs."""
    worker = cs.AsyncWorker(cs.AsyncMemoryStore(), concurrency=2)
    third = anyio.Event()
    begun = 0

    async def handle(run: cs.AsyncRun[Any]) -> None:
        nonlocal begun
        begun += 1
        run.complete()
        if begun > 2:
            third.set()
        else:
            delay(run, third.wait)

    await run_flows(worker, 4, handle)
    assert await worker.store.count_flows(status=cs.FlowStatus.COMPLETED) == 4


async def test_handlers_are_never_more_than_slots() -> None:
    """However many outcomes are being written."""
    worker = cs.AsyncWorker(cs.AsyncMemoryStore(), concurrency=3)
    running = most = 0
    claimed: list[int] = []

    async def handle(run: cs.AsyncRun[Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        claimed.append(worker.in_flight)
        await anyio.lowlevel.checkpoint()
        delay(run, some_turns)
        run.complete()
        running -= 1

    await run_flows(worker, 30, handle)
    assert most == 3
    assert max(claimed) <= 6


async def test_one_slot_is_free_when_its_outcome_is_written() -> None:
    """A worker of one flow at a time: a process never dies in two runs."""
    worker = cs.AsyncWorker(cs.AsyncMemoryStore(), concurrency=1)
    in_flight: list[int] = []

    async def handle(run: cs.AsyncRun[Any]) -> None:
        in_flight.append(worker.in_flight)
        await anyio.lowlevel.checkpoint()
        delay(run, some_turns)
        run.complete()

    await run_flows(worker, 5, handle)
    assert in_flight == [1] * 5


async def some_turns() -> None:
    """Let others run."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def delay(run: cs.AsyncRun[Any], wait: Callable[[], Any]) -> None:
    """Have the outcome of a run written after that."""
    session: Any = run.session
    commit = session.commit

    async def late(**options: Any) -> Any:
        await wait()
        return await commit(**options)

    session.commit = late
