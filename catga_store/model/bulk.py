"""What an operation on many flows has done."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

__all__ = ["BulkReport"]


@frozen
class BulkReport:
    """The number of flows that an operation of `Store.bulk` has changed and skipped, with the reasons.

    `matched` is the sum of `changed` and of all flows in `skipped`, because each flow that matched is either
    changed or skipped. In a dry run, `changed` is the number of flows that would have been changed.
    """

    matched: int
    """The number of flows that matched."""
    changed: int
    """The number of flows that were changed or, in a dry run, would have been changed."""
    skipped: Mapping[str, int]
    """The number of flows that were skipped, by reason: `{"is claimed": 2}`."""
    first_changed: tuple[str, ...]
    """The ids of the first 100 flows that were changed."""
    first_skipped: Mapping[str, tuple[str, ...]]
    """The ids of the first 100 flows that were skipped for each reason, by reason."""
    cursor: str | None
    """Where to continue; `None` at the end."""
    dry_run: bool
    """Whether the operation changed nothing because `dry_run` was set."""
