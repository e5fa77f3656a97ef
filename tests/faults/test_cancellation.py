"""Cancellation at every await: a call was done or it was not, and its objects say which.

Each operation is cancelled after that many turns of the event loop, from none to more than it takes.
Nothing is timed: a turn is a turn, whatever it does.
"""

from __future__ import annotations

from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from anyio import CancelScope
from anyio import create_task_group
from anyio.lowlevel import checkpoint
from hypothesis import settings

import catga_store as cs
from catga_store.testing import ManualClock

Check = Callable[[], Awaitable[None]]
Trial = tuple[Callable[[], Awaitable[Any]], Check]
LEASE = timedelta(seconds=30)


async def create(store: cs.AsyncStore, name: str) -> Trial:
    """A flow is there if its object says so, and absent if it does not."""
    flow = cs.FlowSnapshot(name, state={"n": 1})

    async def check() -> None:
        stored = await store.get(name)
        assert (0 if stored is None else stored.version) == flow.version
        assert (None if stored is None else stored.revision) == flow.revision

    return lambda: store.create(flow), check


async def update(store: cs.AsyncStore, name: str) -> Trial:
    """The object has the version that is stored, and can be written again."""
    flow = cs.FlowSnapshot(name, state={"n": 1})
    await store.create(flow)
    flow.state["n"] = 2

    async def check() -> None:
        stored = await store.get_one(name)
        assert (stored.version, stored.revision) == (flow.version, flow.revision)
        assert stored.state == {"n": flow.version}
        await store.update(flow)

    return lambda: store.update(flow), check


async def delete(store: cs.AsyncStore, name: str) -> Trial:
    """A flow is there with its progress, or both are gone."""
    flow = cs.FlowSnapshot(name, state={})
    await store.create(flow)
    await store.save_for_each_progress(name, 0, cs.ForEachProgress([1]))

    async def check() -> None:
        progress = await store.get_for_each_progress(name, 0)
        assert (await store.get(name) is None) is (progress is None)

    return lambda: store.delete(flow), check


async def commit(store: cs.AsyncStore, name: str) -> Trial:
    """Everything of a commit is written or nothing, and the receipt says which."""
    old = cs.FlowSnapshot(f"{name} old", state={"n": 1})
    await store.create(old)
    await store.set_wait_condition(cs.WaitCondition(name, flow_ids=["a"]))
    session = store.session()
    session.add(cs.FlowSnapshot(name, state={}))
    session.delete(old)
    session.complete_child(name, "a")

    async def check() -> None:
        done = session.receipt is not None
        wait = await store.get_wait_condition(name)
        assert wait is not None
        assert (await store.get(name) is not None) is done
        assert (await store.get(old.flow_id) is None) is done
        assert (wait.completed_count == 1) is done

    return session.commit, check


async def complete(store: cs.AsyncStore, name: str) -> Trial:
    """A completion was counted once or not at all; the next call returns which."""
    await store.set_wait_condition(cs.WaitCondition(name, flow_ids=["a"]))

    async def check() -> None:
        wait = await store.get_wait_condition(name)
        assert wait is not None
        again = await store.complete_child(name, "a")
        assert again.duplicate is (wait.completed_count == 1)
        assert again.now_satisfied is not again.duplicate

    return lambda: store.complete_child(name, "a"), check


async def claim(store: cs.AsyncStore, name: str) -> Trial:
    """A flow was claimed by one write, or not."""
    await store.create(cs.FlowSnapshot(name, state={}))

    async def check() -> None:
        stored = await store.get_one(name)
        assert (stored.owner, stored.attempts, stored.version) in [(None, 0, 1), ("me", 1, 2)]

    return lambda: store.claim(name, lease=LEASE), check


async def extend(store: cs.AsyncStore, name: str) -> Trial:
    """A claim ends when it did before, or at its new time; its owner can continue."""
    await store.create(cs.FlowSnapshot(name, state={}))
    flow = await store.claim(name, lease=LEASE)
    ends = [store.now() + LEASE, store.now() + 3 * LEASE]

    async def check() -> None:
        assert (await store.get_one(name)).due_at in ends
        await store.update(flow)

    return lambda: store.extend(flow, 3 * LEASE), check


async def get(store: cs.AsyncStore, name: str) -> Trial:
    """What is read next is the answer to that, and not to what was cancelled."""
    await store.create(cs.FlowSnapshot(name, state={"n": 1}))
    await store.create(cs.FlowSnapshot(f"{name} 2", state={"n": 2}))

    async def check() -> None:
        assert (await store.get_one(f"{name} 2")).state == {"n": 2}

    return lambda: store.get(name), check


async def was_cancelled(call: Callable[[], Awaitable[Any]], turns: int) -> bool:
    """Cancel a call after that many turns of the loop; return whether it had not ended by then."""
    scope, ended = CancelScope(), False

    async def run() -> None:
        nonlocal ended
        with scope:
            await call()
            ended = True

    async with create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(turns):
            await checkpoint()

        was_under_way = not ended
        scope.cancel()

    return was_under_way


def numbers_of_turns() -> Iterator[int]:
    """Every number at first, then fewer: what waits for a server takes hundreds."""
    step = 1.1 if settings().max_examples > 50 else 1.7
    turns = 0.0
    while True:
        yield int(turns)
        turns = max(turns + 1, turns * step)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "prepare",
    [create, update, delete, commit, complete, claim, extend, get],
    ids=lambda one: one.__name__,
)
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis-8.2", "nats"])
async def test_a_call_that_is_cancelled_was_done_or_was_not(
    kind: str,
    prepare: Callable[[cs.AsyncStore, str], Awaitable[Trial]],
    url_of: Callable[[str], str],
    clock: ManualClock,
) -> None:
    """At whatever await it is cancelled, what is stored and what its objects say agree."""
    cancelled = 0
    async with cs.open_async_store(url_of(kind), clock=clock, owner="me") as store:
        await store.ping()
        for turns in numbers_of_turns():
            call, check = await prepare(store, f"{turns} turns")
            if not await was_cancelled(call, turns):
                await check()
                break

            cancelled += 1
            await check()

    assert cancelled, "the first was cancelled before it began"
