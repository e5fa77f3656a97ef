"""Flows with more progress records than a batch holds messages, on NATS."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest

import catga_store as cs
from catga_store.errors import CatgaStoreError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.requests import Sweep
from catga_store.stores.nats.sweeping import NatsSweeper
from catga_store.testing import ManualClock
from catga_store.testing.servers import NatsServer

STEPS = 1100
"""More than the server takes in one batch."""


@pytest.fixture
def store(nats_server: NatsServer, clock: ManualClock) -> Iterator[cs.Store]:
    """Open a store that no other test uses."""
    with cs.NatsStore(nats_server.url, bucket=uuid.uuid4().hex, clock=clock) as opened:
        yield opened


def with_steps(store: cs.Store, name: str = "f", steps: int = STEPS) -> cs.FlowSnapshot[object]:
    """Create a flow and its progress, in commits of 200 records."""
    flow = cs.FlowSnapshot[object](name, state={})
    store.create(flow)
    for start in range(0, steps, 200):
        session = store.session()
        for step in range(start, min(start + 200, steps)):
            progress = cs.ForEachProgress()
            progress.mark(0, ok=True)
            session.save_for_each_progress(name, step, progress)

        session.commit()

    return flow


def test_flow_with_many_steps_is_deleted(store: cs.Store) -> None:
    """It is gone at once, with its progress, and its name can be used again."""
    flow = with_steps(store)
    stale = store.get_one("f")
    flow.state = {"n": 1}
    store.update(flow)
    with pytest.raises(cs.StaleFlowError):
        store.delete(stale)

    assert len(store.list_for_each_progress("f")) == STEPS
    store.delete(flow)
    assert store.get("f") is None
    assert store.list_for_each_progress("f") == {}
    assert store.sweep() == 0
    store.create(cs.FlowSnapshot("f", state={}))
    assert store.list_for_each_progress("f") == {}


def test_session_that_deletes_many_records(store: cs.Store) -> None:
    """It is one commit, whatever must be removed with its flows."""
    flows = [with_steps(store, name, 500) for name in ("a", "b", "c")]
    session = store.session()
    for flow in flows:
        session.add(flow)
        session.delete(flow)

    session.add(cs.FlowSnapshot("d", state={}))
    session.commit()
    found = store.get_many(["a", "b", "c", "d"])
    assert [name for name, flow in found.items() if flow is not None] == ["d"]
    assert store.list_for_each_progress("b") == {}


def test_flow_with_many_steps_expires(store: cs.Store, clock: ManualClock) -> None:
    """A sweep removes it, and so does a new flow of its name."""
    for name in ("f", "g"):
        flow = with_steps(store, name)
        flow.status = cs.FlowStatus.COMPLETED
        store.update(flow)

    clock.advance(timedelta(days=60))
    store.create(cs.FlowSnapshot("g", state={}))
    assert store.list_for_each_progress("g") == {}
    assert store.sweep() == 1
    assert store.sweep() == 0


def test_interrupted_removal_is_finished_by_a_sweep(
    store: cs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow is gone for every reader as soon as the delete was written."""
    flow = with_steps(store)
    protocol = store._driver.protocol  # type: ignore[attr-defined]  of the driver of servers

    def fail(*_arguments: object) -> Conversation[int]:
        message = "not now"
        raise cs.StoreUnavailableError(message)
        yield

    with monkeypatch.context() as patch:
        patch.setattr(protocol._changes, "remove_expired", fail)
        store.delete(flow)

    assert store.get("f") is None
    assert store.list_for_each_progress("f") == {}
    assert store.count_flows() == 0
    assert store.sweep() == 1


def test_sweep_on_the_way_does_not_fail_the_commit(
    store: cs.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every 16th write sweeps; what fails there is logged."""

    def fail(_self: NatsSweeper, _request: Sweep) -> Conversation[int]:
        message = "it could not be removed"
        raise CatgaStoreError(message)
        yield

    monkeypatch.setattr(NatsSweeper, "expired", fail)
    with caplog.at_level(logging.WARNING, "catga_store.stores.nats"):
        for number in range(16):
            store.create(cs.FlowSnapshot(f"f-{number}", state={}))

    assert (
        "expired records could not be removed and remain until a later sweep: it could not be removed"
        in caplog.text
    )


def test_live_flow_with_many_steps_is_not_replaced(store: cs.Store) -> None:
    """Its progress would go before the commit, and be lost if that were refused."""
    store.create(cs.FlowSnapshot("f", state={"n": 1}, due_at=None))
    for start in range(0, 450, 150):
        with store.begin() as session:
            for step in range(start, start + 150):
                session.save_for_each_progress("f", step, cs.ForEachProgress([step]))

    session = store.session()
    session.delete(session.get_one("f"))
    session.add(cs.FlowSnapshot("f", state={"n": 2}))
    with pytest.raises(
        cs.CommitTooLargeError, match=r"450 progress records, but .* at most 400, so nothing was"
    ):
        session.commit()

    assert store.get_one("f").state == {"n": 1}
    assert len(store.list_for_each_progress("f")) == 450
    store.delete("f")
    store.create(cs.FlowSnapshot("f", state={"n": 2}))
    assert store.list_for_each_progress("f") == {}
