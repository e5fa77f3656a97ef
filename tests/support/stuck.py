"""Flows that are stuck, each in another way, on any store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.testing.clock import ManualClock

__all__ = ["put_raw", "suspended"]

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
