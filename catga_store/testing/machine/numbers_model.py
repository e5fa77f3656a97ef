"""The plain model of what is due or claimed, and of the numbers of a store: read from the `oracle`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catga_store.testing.machine.oracle import Flow
    from catga_store.testing.machine.oracle import World

__all__ = ["Numbers", "list_due", "numbers_of"]


@dataclass(frozen=True)
class Numbers:
    """What `stats` should say."""

    flows: dict[tuple[str, str], int]
    due: int
    oldest_due_age: timedelta | None
    claimed: int
    expired_leases: int
    waits_pending: int
    waits_overdue: int
    waits_due: int


def list_due(
    world: World,
    only: str | None = None,
    type_name: str | None = None,
    tags: dict[str, str] | None = None,
) -> list[tuple[str, bool, bool, timedelta]]:
    """Ids of flows by due time, then by id; whether each is claimed, or was; and its age."""
    now = world.now
    found: list[tuple[Flow, str]] = [
        (flow, flow_id)
        for flow_id, flow in world.flows.items()
        if flow.due is not None
        and type_name in (None, flow.type_name)
        and (tags is None or tags.items() <= dict(flow.tags).items())
    ]
    found.sort(key=lambda pair: (pair[0].due, pair[1].encode()))
    listed: list[tuple[str, bool, bool, timedelta]] = []
    for flow, flow_id in found:
        assert flow.due is not None
        has_come, was_claimed = flow.due <= now, flow.claim is not None
        wanted = {
            None: has_come or was_claimed,
            "due": has_come,
            "claimed": was_claimed and not has_come,
            "expired": was_claimed and has_come,
        }
        if wanted[only]:
            since = flow.due if has_come else flow.updated
            age = max(now - since, timedelta(0))
            listed.append((flow_id, not has_come, was_claimed and has_come, age))

    return listed


def numbers_of(world: World) -> Numbers:
    """What there is, counted."""
    due = list_due(world, "due")
    waits = world.conditions().values()
    return Numbers(
        dict(Counter((flow.type_name, flow.status) for flow in world.flows.values())),
        len(due),
        due[0][3] if due else None,
        len(list_due(world, "claimed")),
        len(list_due(world, "expired")),
        sum(wait.outcome == "PENDING" for wait in waits),
        sum(wait.is_overdue(world.now) for wait in waits),
        sum(wait.terms.parent is not None and wait.calls(world.now) for wait in waits),
    )
