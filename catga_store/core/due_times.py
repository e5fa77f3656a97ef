"""When a flow is due, and who owns it, once it is written. Pure.

A terminal flow is never due and has no owner, and is due now when it is set running again. A claim
ends when the flow is suspended or given another `due_at`, and is renewed by any other write of its
owner.
"""

from __future__ import annotations

from typing import Any

from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.times import NOW
from catga_store.model.times import from_ms
from catga_store.model.times import to_ms
from catga_store.protocol.requests import Head

__all__ = ["due_and_owner", "due_ms_of"]


def due_and_owner(  # noqa: PLR0911  one for each rule
    flow: FlowSnapshot[Any], old: Head | None, now_ms: int, *, ends: bool
) -> tuple[int | None, str | None, str | None]:
    """When a flow that is written is due, its owner, and the claim of the owner."""
    if ends:
        return None, None, None

    status, due_at = flow.status, flow.due_at
    if due_at == NOW:
        suspended = status is FlowStatus.SUSPENDED and old is None
        return None if suspended else now_ms, None, None

    due_ms = None if due_at is None else due_ms_of(flow, old)
    if old is None or due_ms != old.due_ms:
        return due_ms, None, None

    if status is FlowStatus.SUSPENDED and old.status != status._value_:
        return None, None, None

    if due_ms is None and old.status != status._value_ and FlowStatus(old.status).is_terminal:
        return now_ms, None, None  # it is set running again

    claim = flow._claim
    if claim is not None:
        return now_ms + claim.lease_ms, old.owner, old.claim

    return due_ms, old.owner, old.claim


def due_ms_of(flow: FlowSnapshot[Any], old: Head | None) -> int | None:
    """The `due_at` that the object says; cheap where it still is what was read."""
    due_at = flow.due_at
    if due_at is None:
        return None

    if old is not None and old.due_ms is not None and due_at is from_ms(old.due_ms):
        return old.due_ms

    return to_ms(due_at)
