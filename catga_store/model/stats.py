"""What a store holds, in numbers, and the flows that are due or claimed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta

from attrs import frozen

from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary

__all__ = ["DueFlow", "StoreStats"]


@frozen
class DueFlow:
    """A flow in the result of `query_due`: it is due, or a worker has claimed it."""

    flow: FlowSummary
    claimed: bool
    """Whether the flow has a claim that has not ended; the claim ends at `flow.due_at`."""
    lease_expired: bool
    """Whether the flow is due because a claim has ended: its worker died, could not reach the store, or was too
    slow."""
    age: timedelta
    """How long the flow has been due. For a claimed flow, the time since it was last written, either by the
    claim or later by its owner; `extend` does not count."""


@frozen(kw_only=True)
class StoreStats:
    """The number of flows and wait conditions in a store, in several categories; see `Store.stats`."""

    at: datetime
    """The time of the call, according to the clock of the store object."""
    flows: Mapping[str, Mapping[FlowStatus, int]]
    """The number of flows by type name, which is empty for plain data, and by status; zeros are omitted."""
    due: int
    """The number of flows whose `due_at` has passed: they have no claim, or a claim that has ended."""
    oldest_due_age: timedelta | None
    """How long the oldest due flow has been due; `None` if no flow is due."""
    claimed: int
    """The number of flows with a claim that has not ended."""
    expired_leases: int
    """The number of flows whose lease has ended without a write by the owner; they are due."""
    waits_pending: int
    """The number of wait conditions that have not ended."""
    waits_overdue: int
    """The number of pending wait conditions that are past their deadline."""
    waits_due: int
    """The number of wait conditions that `claim_due` would handle now: they have ended and their parent must be
    notified, or their deadline has passed."""
    unreadable: int = 0
    """The number of flows that are not counted in `flows`, because another program has stored a status that does
    not exist. `diagnose_all` lists these flows."""

    @property
    def total(self) -> int:
        """The total number of flows."""
        readable = sum(number for by_status in self.flows.values() for number in by_status.values())
        return readable + self.unreadable
