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
    """One line of `query_due`: a flow that is due, or that a worker has claimed."""

    flow: FlowSummary
    claimed: bool
    """Whether a claim on it has not ended; it ends at `flow.due_at`."""
    lease_expired: bool
    """Whether it is due because a claim has ended: its worker died, lost the store, or was too slow."""
    age: timedelta
    """How long it has been due. Of a claimed flow: how long ago it was last written, by the claim or by
    its owner since; `extend` does not count."""


@frozen(kw_only=True)
class StoreStats:
    """What a store holds, in numbers, at one time; see `Store.stats`."""

    at: datetime
    """By the clock of the store that asked."""
    flows: Mapping[str, Mapping[FlowStatus, int]]
    """By the name of the type, which is empty for plain data, and by status; without zeros."""
    due: int
    """Flows whose `due_at` has come: under no claim, or under one that has ended."""
    oldest_due_age: timedelta | None
    """How long the first of them has been due; `None` if there is none."""
    claimed: int
    """Flows under a claim that has not ended."""
    expired_leases: int
    """Flows whose claim has ended without a write of its owner; they are due."""
    waits_pending: int
    """Wait conditions that have not ended."""
    waits_overdue: int
    """Those of them whose deadline has passed."""
    waits_due: int
    """Wait conditions that `claim_due` acts upon now: their parent is to be notified of their end, or
    their deadline has passed."""
    unreadable: int = 0
    """Flows that are in none of `flows`: they are stored with a status that does not exist, because another
    program wrote it. `diagnose_all` names them."""

    @property
    def total(self) -> int:
        """The number of flows."""
        readable = sum(number for by_status in self.flows.values() for number in by_status.values())
        return readable + self.unreadable
