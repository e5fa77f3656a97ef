"""Flows that are stuck, each in another way, on any store."""

from __future__ import annotations

from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

from paging import pages_of

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.testing.clock import ManualClock

__all__ = [
    "DAMAGED",
    "LATER_LAYOUT",
    "STUCK",
    "assert_a_row",
    "claimed",
    "ended",
    "put_raw",
    "seed",
    "suspended",
]

LATER_LAYOUT = b'{"layout":2,"type":"","type_version":1,"schema":"","wait":null,"state":{}}'
DAMAGED = b'{"layout":1,"type":"","type_version":1,"schema":"","wait":null,"state":{"n":'


def put_raw(store: cs.Store, flow_id: str, body: bytes, **fields: Any) -> None:
    """Store a flow with this body, whatever it is; it is due now unless the fields say otherwise."""
    now_ms = store._context.settings.now_ms()
    head = Head(1, 1, now_ms, now_ms, position="0", due_ms=now_ms)._replace(**fields)
    put = Put(flow_key(flow_id), head, body, None)
    store._run(ask(Commit(new_commit_id(), now_ms, (put,), None)))


def suspended(
    store: cs.Store, flow_id: str, *children: str, timeout: timedelta | None = None
) -> None:
    """Store a flow that waits for children by the condition `{flow_id}/wait`."""
    with store.begin() as session:
        flow = cs.FlowSnapshot(flow_id, state={"n": 0}, due_at=None)
        session.add(flow)
        wait = cs.WaitCondition(f"{{{flow_id}}}/wait", flow_ids=children, timeout=timeout)
        session.suspend(flow, wait)


def ended(store: cs.Store, flow_id: str) -> None:
    """Store a flow that has completed."""
    store.create(cs.FlowSnapshot(flow_id, state={}, status=cs.FlowStatus.COMPLETED))


def claimed(store: cs.Store, clock: ManualClock, flow_id: str, times: int = 1) -> None:
    """Store a flow whose workers have died, one after another."""
    store.create(cs.FlowSnapshot(flow_id, state={"n": 0}))
    for number in range(times):
        store.claim(flow_id, owner=f"worker-{number}", lease=timedelta(seconds=30))
        clock.advance(timedelta(seconds=30))


# --- a store with flows that are stuck in all these ways ------------------------------------------

STUCK = {
    "lease_expired": 4,
    "poison": 3,
    "attempts_high": 3,
    "children_ended": 4,
    "no_deadline": 3,
    "wait_gone": 4,
    "never_due": 4,
    "parent_gone": 2,
    "unreadable": 2,
    "future_version": 1,
}
"""How many flows of `seed` are stuck in each way; the last two ways cannot be mended."""


def seed(url: str, others: int) -> set[str]:
    """Fill a store with 30 flows that have been stuck for two days, and others; returns the ids of the 30."""
    clock = ManualClock(datetime.now(UTC) - timedelta(days=2))
    with cs.open_store(url, clock=clock) as store:
        for way, number in STUCK.items():
            for place in range(number):
                _stick(store, clock, way, f"{way}/{place}")

    with cs.open_store(url) as store:
        _fill(store, others)
        damaged = [f"unreadable/{place}" for place in range(STUCK["unreadable"])]
        for flow_id in damaged:
            put_raw(store, flow_id, DAMAGED)

        put_raw(store, "future_version/0", LATER_LAYOUT)

    return {f"{way}/{place}" for way, number in STUCK.items() for place in range(number)}


def _stick(store: cs.Store, clock: ManualClock, way: str, flow_id: str) -> None:
    """Store one flow that is stuck in this way; those that cannot be read come later."""
    if way in ("lease_expired", "poison"):
        claimed(store, clock, flow_id, times=6 if way == "poison" else 1)
    elif way == "attempts_high":
        later = clock.now + timedelta(days=3)
        error = "attempt 7 of 10 at 0: ConnectionError: no route"
        store.create(cs.FlowSnapshot(flow_id, state={}, attempts=7, due_at=later, error=error))
    elif way == "never_due":
        running = cs.FlowStatus.RUNNING
        store.create(cs.FlowSnapshot(flow_id, state={}, status=running, due_at=None))
    elif way in ("children_ended", "no_deadline", "wait_gone", "parent_gone"):
        child = f"{flow_id}/child"
        suspended(store, flow_id, child)
        if way == "children_ended":
            ended(store, child)
        elif way == "wait_gone":
            store.clear_wait_condition(f"{{{flow_id}}}/wait")
        elif way == "parent_gone":
            store.delete(flow_id)


def _fill(store: cs.Store, number: int) -> None:
    """Flows that go on by themselves, 100 in a commit."""
    later = store.now() + timedelta(days=1)
    for first in range(0, number, 100):
        with store.begin() as session:
            for place in range(first, min(first + 100, number)):
                how = place % 5
                flow = cs.FlowSnapshot(f"order-{place}", state={"n": place}, due_at=later)
                flow.status = (
                    cs.FlowStatus.CREATED,
                    cs.FlowStatus.RUNNING,
                    cs.FlowStatus.COMPLETED,
                    cs.FlowStatus.FAILED,
                    cs.FlowStatus.SUSPENDED,
                )[how]
                flow.error = "no stock" if how == 3 else None
                session.add(flow)


# --- a flow whose head another program has written ------------------------------------------------


def assert_a_row(store: cs.Store, flow_id: str, others: set[str]) -> None:
    """In listings it is a row that says why it cannot be read, and hides no others, however pages fall."""
    for filters in ({}, {"id_prefix": flow_id[0]}):
        for limit in (1, 2, 100):
            listed: dict[str, cs.FlowSummary] = {}
            for page in pages_of(store.query_flows, limit=limit, **filters):
                assert not listed.keys() & {one.flow_id for one in page}
                listed |= {one.flow_id: one for one in page}

            assert flow_id in (listed[flow_id].unreadable or "")
            assert filters or listed.keys() == {flow_id, *others}

    codes = {one.flow_id: one.codes for one in store.diagnose_all(limit=1000)}
    assert "unreadable" in codes[flow_id]
    assert store.diagnose(flow_id).codes == ("unreadable",)
    report = store.bulk(id_prefix=flow_id).cancel("damaged", dry_run=True)
    assert report.skipped.get("cannot be read") == 1
