"""The plain model of history: what the flows were before their last writes.

It is a part of the `oracle`, which tells it what each write replaces and when a flow goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catga_store.testing.machine.oracle import Flow

__all__ = ["HistoryModel"]


@dataclass
class HistoryModel:
    """The former versions of all flows, by flow and version."""

    length: int = 1
    """How many versions of a flow are kept, the current one included: the option `history`."""
    rows: dict[str, dict[int, Flow]] = field(default_factory=dict[str, "dict[int, Flow]"])

    def keep(self, flow_id: str, old: Flow) -> None:
        """A write replaces this version of a flow by the next one; what is too old then goes."""
        if self.length == 1:
            return

        rows = self.rows.setdefault(flow_id, {})
        rows[old.version] = old
        oldest = old.version + 1 - self.length + 1
        self.rows[flow_id] = {version: row for version, row in rows.items() if version >= oldest}

    def get(self, flow_id: str, version: int) -> Flow | None:
        """A former version that is kept."""
        return self.rows.get(flow_id, {}).get(version)

    def drop(self, flow_id: str) -> None:
        """A flow is gone, and its history with it."""
        self.rows.pop(flow_id, None)

    def listed(
        self, flow_id: str, current: Flow | None, before: int | None, limit: int
    ) -> list[Flow]:
        """The versions of a flow, the newest first; none of a flow that is not there."""
        if current is None:
            return []

        rows = {**self.rows.get(flow_id, {}), current.version: current}
        found = [rows[one] for one in sorted(rows, reverse=True) if before is None or one < before]
        return found[:limit]
