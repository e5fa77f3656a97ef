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
    """One row of `query_due`: a flow that is due, or that a worker has claimed."""

    flow: FlowSummary
    claimed: bool
    """Whether it has a claim that has not ended; the claim ends at `flow.due_at`."""
    lease_expired: bool
    """Whether it is due because a claim has ended: its worker died, lost the store, or was too slow."""
    age: timedelta
    """How long it has been due. For a claimed flow, how long ago it was last written, by the claim or later by its
    owner; `extend` does not count."""


@frozen(kw_only=True)
class StoreStats:
    """The numbers of what a store contains at one time; see `Store.stats`."""

    at: datetime
    """The time, by the clock of the store object that was called."""
    flows: Mapping[str, Mapping[FlowStatus, int]]
    """The number of flows by type name, which is empty for plain data, and by status; zeros are left out."""
    due: int
    """Flows whose `due_at` has passed: they have no claim, or one that has ended."""
    oldest_due_age: timedelta | None
    """How long the oldest of them has been due; `None` if there are none."""
    claimed: int
    """Flows with a claim that has not ended."""
    expired_leases: int
    """Flows whose lease has ended without a write by the owner; they are due."""
    waits_pending: int
    """Wait conditions that have not ended."""
    waits_overdue: int
    """How many of them are past their deadline."""
    waits_due: int
    """Wait conditions that `claim_due` handles now: they have ended and their parent must be notified, or their
    deadline has passed."""
    unreadable: int = 0
    """Flows that are not counted in `flows`, because another program has stored a status that does not exist.
    `diagnose_all` lists them."""

    @property
    def total(self) -> int:
        """The number of flows."""
        readable = sum(number for by_status in self.flows.values() for number in by_status.values())
        return readable + self.unreadable
