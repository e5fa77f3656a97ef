"""`holding`: a claim that is extended for as long as a block runs, on every store and both APIs.

The leases here are short and by the system's clock, because extensions come by real time. Every wait has a
deadline; what is asserted holds however slow the machine is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from marks import ONE_STORE
from waiting import LONG
from waiting import until
from waiting import until_async

import catga_store as cs
from catga_store.core.holding import Doubt
from catga_store.testing.clock import ManualClock
from catga_store.testing.faults import Faults

LEASE = timedelta(milliseconds=600)
LONG_LEASE = timedelta(hours=1)


@pytest.fixture
def store(open_more: Callable[..., cs.Store]) -> cs.Store:
    """Open the store of this test by the system's clock, with one flow."""
    opened = open_more(clock=None)
    opened.create(cs.FlowSnapshot("f", state={"n": 0}))
    return opened


def due_of(store: cs.Store) -> Any:
    """When the claim of the flow ends, by the store."""
    return store.get_one("f").due_at


def lose(store: cs.Store) -> None:
    """Let another worker take the flow: the claim ends, and another one is made."""
    stolen = store.get_one("f")
    stolen.due_at = store.now()
    store.update(stolen)
    store.claim("f", lease=LONG_LEASE, owner="thief", timeout=timedelta(seconds=LONG))


def test_a_block_longer_than_its_lease(store: cs.Store) -> None:
    """The claim is extended again and again, and nothing else is written."""
    (flow,) = store.claim_due(lease=LEASE)
    with store.holding(flow) as held:
        ends: set[Any] = set()
        until(lambda: ends.add(due_of(store)) or len(ends) >= 4, pause=0.02)
        assert not held.lost

    assert store.get_one("f").version == flow.version == 2
    flow.state["n"] = 1
    store.update(flow)


def test_another_lease(store: cs.Store) -> None:
    """The block begins with an extension, by the lease that is asked for."""
    (flow,) = store.claim_due(lease=LEASE)
    with store.holding(flow, lease=LONG_LEASE):
        assert due_of(store) > store.now() + LONG_LEASE / 2


def test_a_claim_that_is_lost_already(store: cs.Store) -> None:
    """The block is not entered."""
    (flow,) = store.claim_due(lease=LONG_LEASE)
    lose(store)
    with pytest.raises(cs.ClaimLostError), store.holding(flow):
        pytest.fail("entered")

    with pytest.raises(cs.UsageError, match="was not claimed"), store.holding(store.get_one("f")):
        pytest.fail("entered")


def test_a_claim_that_is_lost_in_the_block(store: cs.Store) -> None:
    """The block is told by `lost`, and its end raises one plain error."""
    (flow,) = store.claim_due(lease=LEASE)
    with pytest.raises(cs.ClaimLostError), store.holding(flow) as held:  # noqa: PT012  a block is what it is about
        lose(store)
        until(lambda: held.lost)

    with pytest.raises(cs.ConflictError):
        store.update(flow)


def test_an_error_of_the_block(store: cs.Store) -> None:
    """It is raised as it is, also when the claim is lost as well."""
    (flow,) = store.claim_due(lease=LEASE)
    with pytest.raises(ZeroDivisionError), store.holding(flow) as held:  # noqa: PT012  as above
        lose(store)
        until(lambda: held.lost)
        _ = 1 / 0


def test_a_claim_that_the_block_ends(store: cs.Store) -> None:
    """Completing or releasing the flow inside is no loss, however long the block continues."""
    (flow,) = store.claim_due(lease=LEASE)
    with store.holding(flow) as held:
        flow.status = cs.FlowStatus.COMPLETED
        store.update(flow)
        until(lambda: not held._thread.is_alive())
        assert not held.lost


@ONE_STORE
def test_no_thread_is_left(store: cs.Store) -> None:
    """The block's end waits for its thread, and nothing listens to the clock any more."""
    clock = ManualClock()
    with cs.MemoryStore(clock=clock) as other:
        other.create(cs.FlowSnapshot("f", state={}))
        (flow,) = other.claim_due(lease=LONG_LEASE)
        with other.holding(flow) as held:
            assert clock.listeners
            clock.advance(LONG_LEASE / 2)
            until(lambda: other.get_one("f").due_at == clock.now + LONG_LEASE)

        assert not held._thread.is_alive()
        assert not clock.listeners


@ONE_STORE
def test_an_outage_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    """A store that cannot be reached is asked again."""
    caplog.set_level(logging.CRITICAL, "catga_store")
    faults = Faults()
    with cs.MemoryStore() as plain:
        store = faults.attach(plain)
        store.create(cs.FlowSnapshot("f", state={}))
        (flow,) = store.claim_due(lease=LEASE)
        with store.holding(flow) as held:
            faults.reset()
            faults.at_exchange(1, "not sent", times=3)
            until(lambda: len(faults.exchanges) >= 5)
            assert not held.lost

        store.update(flow)


@pytest.mark.anyio
async def test_an_async_block(open_more_async: Callable[..., cs.AsyncStore]) -> None:
    """The same in a task: extended, and left as it is."""
    store = open_more_async(clock=None)
    await store.create(cs.FlowSnapshot("f", state={"n": 0}))
    (flow,) = await store.claim_due(lease=LEASE)
    ends: set[Any] = set()
    with anyio.fail_after(LONG):
        async with store.holding(flow) as held:
            while len(ends) < 4:
                ends.add((await store.get_one("f")).due_at)
                await anyio.sleep(0.02)

            assert not held.lost

    flow.state["n"] = 1
    await store.update(flow)


@pytest.mark.anyio
async def test_an_async_block_is_cancelled_when_its_claim_is_lost(
    open_more_async: Callable[..., cs.AsyncStore],
) -> None:
    """What the block waits for is left, and one plain error is raised."""
    store = open_more_async(clock=None)
    await store.create(cs.FlowSnapshot("f", state={"n": 0}))
    (flow,) = await store.claim_due(lease=LEASE)
    left = False
    with anyio.fail_after(LONG):
        with pytest.raises(cs.ClaimLostError):  # noqa: PT012  a block is what it is about
            async with store.holding(flow):
                stolen = await store.get_one("f")
                stolen.due_at = None
                await store.update(stolen)
                try:
                    await anyio.sleep_forever()
                finally:
                    left = True

        await checkpoint()  # the cancellation does not reach beyond the block

    assert left


@pytest.mark.anyio
@pytest.mark.stores("memory")
async def test_errors_and_cancellations_of_an_async_block(
    open_more_async: Callable[..., cs.AsyncStore],
) -> None:
    """An error is raised as it is, not in a group; an outer cancellation stays what it is."""
    store = open_more_async(clock=None)
    await store.create(cs.FlowSnapshot("f", state={"n": 0}))
    (flow,) = await store.claim_due(lease=LONG_LEASE)
    with pytest.raises(ZeroDivisionError):
        async with store.holding(flow):
            _ = 1 / 0

    with anyio.move_on_after(0.01) as scope:
        async with store.holding(flow):
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    async with store.holding(flow):
        flow.status = cs.FlowStatus.COMPLETED
        await store.update(flow)


@pytest.mark.anyio
@pytest.mark.stores("memory")
async def test_an_async_block_that_ends_its_claim(
    open_more_async: Callable[..., cs.AsyncStore],
) -> None:
    """Suspending or releasing the flow inside is no loss."""
    store = open_more_async(clock=None)
    await store.create(cs.FlowSnapshot("f", state={"n": 0}))
    (flow,) = await store.claim_due(lease=timedelta(milliseconds=30))
    async with store.holding(flow) as held:
        flow.due_at = None
        await store.update(flow)
        started = time.monotonic()
        await until_async(lambda: time.monotonic() > started + 0.1)
        assert not held.lost

    assert threading.active_count() < 50


def test_a_claim_is_lost_at_the_second_refusal() -> None:
    """After the first one its owner may be about to end it; what was extended since is not in doubt."""
    doubt = Doubt()
    assert not doubt.refused()
    assert doubt.refused()
    doubt.over()
    assert not doubt.refused()
