"""Flows that run again and again: when the next time is, and what is kept of that.

The planned time of a round is kept in a part of the flow, because a claim moves `due_at`. So a round that
ran late, or failed and was retried, does not move those after it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import TypeAlias
from zoneinfo import ZoneInfo

from catga_store.errors import NotSupportedError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.parts import Part
from catga_store.model.times import from_ms
from catga_store.model.times import span_ms
from catga_store.model.times import to_ms
from catga_store.protocol.masking import shown

__all__ = ["ONCE", "Schedule", "by_cron", "by_interval", "plan_next"]

Schedule: TypeAlias = Callable[[datetime, datetime], datetime]
"""From when this round was planned and when it began to the planned time of the next one."""

ONCE = "once/"
"""What the names of the parts begin with that hold the results of `run.once`."""

_PLANNED = "worker/planned"
_MOST_IN_COMMIT = 150


def by_interval(interval: timedelta) -> Schedule:
    """The schedule of a flow that runs once in each interval."""
    step_ms = span_ms(interval, "interval")
    if not step_ms:
        message = (
            "every: expected an interval longer than 0, got 0; with 0, the flow would always be due"
        )
        raise UsageError(message)

    def following(planned: datetime, began: datetime) -> datetime:
        planned_ms = to_ms(planned)
        passed = max(to_ms(began) - planned_ms, 0) // step_ms
        return from_ms(planned_ms + (passed + 1) * step_ms)

    return following


def by_cron(expression: str, timezone: str) -> Schedule:
    """The schedule of a cron expression in a time zone."""
    try:
        from cronsim import CronSim  # noqa: PLC0415  an extra
        from cronsim import CronSimError  # noqa: PLC0415  as above
    except ModuleNotFoundError as error:
        message = (
            "run.cron() needs cronsim, which is not installed; run pip install "
            "'catga_store[worker]'"
        )
        raise NotSupportedError(message) from error

    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        message = f"unknown time zone {shown(timezone)}: expected a name such as 'Europe/Berlin'"
        raise UsageError(message) from error

    try:
        CronSim(expression, datetime.now(zone))
    except CronSimError as error:
        message = f"invalid cron expression {shown(expression)}: {error}"
        raise UsageError(message) from error

    def following(planned: datetime, began: datetime) -> datetime:
        times = CronSim(expression, max(planned, began).astimezone(zone))
        found: datetime = next(times)
        return found.astimezone(UTC)

    return following


def plan_next(
    store: Any, session: Any, flow: FlowSnapshot[Any], schedule: Schedule, began: datetime
) -> Generator[Any, Any, None]:
    """Let a flow be due at its next planned time, and forget the results of `once` of this round.

    That is the first one after the round began: what was missed before is left out, and what was
    missed meanwhile is run once, at once. All of that is part of the commit that ends the round. Costs two round trips.
    """
    planned = yield session.get_part(flow.flow_id, _PLANNED)
    following = schedule(began if planned is None else from_ms(planned.body["at"]), began)
    if planned is None:
        session.add_part(Part(flow.flow_id, _PLANNED, {"at": to_ms(following)}))
    else:
        planned.body = {"at": to_ms(following)}

    flow.due_at = following
    page = yield store.list_parts(flow.flow_id, ONCE, limit=_MOST_IN_COMMIT)
    if page.cursor is not None:  # more than a commit has room for
        yield store.delete_parts(flow.flow_id, ONCE)
        return

    for part in page.items:
        session.delete_part(part)
