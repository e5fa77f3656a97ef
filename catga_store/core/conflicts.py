"""What was refused, as errors: one for each conflict, with what was expected and what is stored."""

from __future__ import annotations

from typing import Any

from catga_store.errors import ClaimLostError
from catga_store.errors import ConflictError
from catga_store.errors import FlowClaimedError
from catga_store.errors import FlowExistsError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import PartExistsError
from catga_store.errors import StaleFlowError
from catga_store.errors import StalePartError
from catga_store.errors import StaleProgressError
from catga_store.errors import StaleWaitConditionError
from catga_store.errors import WaitConditionNotFoundError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.stored_state import AnyRecord
from catga_store.model.stored_state import head_of
from catga_store.model.times import from_ms
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import EXISTS
from catga_store.protocol.requests import MISSING
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put

__all__ = ["claimed_error", "conflict_error", "conflict_of"]

_SHOWN = 5
"""How many of several conflicts a message lists."""
_AGAIN = "read it again, then repeat the change"
_WHEN_FREE = "try again after that time, or pass a timeout to wait until then"


def conflict_error(  # noqa: PLR0911  one return for each row of the table of conflicts
    change: Change, conflict: Conflict, record: AnyRecord | None
) -> ConflictError:
    """The error for one refused change, with what was expected and what the store holds."""
    key, head = change.key, conflict.head
    actual = None if head is None else head.version
    replaces = change.replaces if isinstance(change, Put | Delete) else None
    loaded = head_of(record) if record is not None else None
    read = replaces or loaded
    expected = 0 if read is None else read.version
    nothing = "nothing in this commit was written"
    stale = _stale(key, expected, actual)

    if key.kind == PROGRESS:
        message = f"{stale}, so {nothing}; {_AGAIN}"
        if read is None:
            message = (
                f"{key} was saved as new but already exists at version {actual}, so {nothing}; "
                "load the stored progress and merge the new progress into it"
            )

        return StaleProgressError(
            message, flow_id=key.id, step_index=key.step, expected=expected, actual=actual
        )

    if key.kind == PART:
        return _part_error(conflict, key, expected, stale)

    if key.kind == WAIT:
        if conflict.reason == MISSING:
            message = f"{key} was read at version {expected} but no longer exists, so {nothing}"
            return WaitConditionNotFoundError(message, correlation_id=key.id, expected=expected)

        return StaleWaitConditionError(
            f"{stale}, so {nothing}; {_AGAIN}",
            correlation_id=key.id,
            expected=expected,
            actual=actual,
        )

    if conflict.reason == EXISTS:
        message = f"{key} already exists at version {actual}, so {nothing}"
        return FlowExistsError(message, flow_id=key.id, actual=actual)

    if conflict.reason == MISSING:
        message = f"{key} was read at version {expected} but no longer exists, so {nothing}"
        return FlowNotFoundError(message, flow_id=key.id, expected=expected)

    facts: dict[str, Any] = {"flow_id": key.id, "expected": expected, "actual": actual}
    guards = isinstance(change, Check) and change.claim is not None
    if guards or (isinstance(record, FlowSnapshot) and record._claim is not None):
        holder = (
            f"owned by {head.owner!r}" if head is not None and head.owner else "without an owner"
        )
        message = (
            f"the claim on {key} was lost: the flow was claimed at version {expected}, but the "
            f"store now holds version {actual}, {holder}, so {nothing}; claim the flow again"
        )
        return ClaimLostError(message, **facts)

    return StaleFlowError(f"{stale}, so {nothing}; {_AGAIN}", **facts)


def _stale(key: Key, expected: int, actual: int | None) -> str:
    """Say which version was read, and what the store holds instead."""
    read = f"{key} was read at version {expected}"
    if actual is None:
        return f"{read}, but the store no longer holds it"

    if actual == expected:
        return f"{read}, but another record with the same id has replaced it"

    return f"{read}, but the store holds version {actual}"


def _part_error(conflict: Conflict, key: Key, expected: int, stale: str) -> ConflictError:
    actual = None if conflict.head is None else conflict.head.version
    facts: dict[str, Any] = {"flow_id": key.id, "name": key.name, "actual": actual}
    if conflict.reason == EXISTS:
        message = f"{key} already exists at version {actual}, so nothing in this commit was written"
        return PartExistsError(message, **facts)

    message = f"{stale}, so nothing in this commit was written; {_AGAIN}"
    return StalePartError(message, expected=expected, **facts)


def claimed_error(
    flow_id: str,
    head: Head,
    state: str = "this call did not claim it",
    advice: str = _WHEN_FREE,
) -> FlowClaimedError:
    """Another owner's claim has not ended."""
    until = from_ms(head.due_ms or 0)
    message = (
        f"flow {flow_id!r} is claimed by {head.owner!r} until {until.isoformat()}, so {state};"
        f" {advice}"
    )
    return FlowClaimedError(message, flow_id=flow_id, owner=head.owner, until=until)


def conflict_of(errors: list[ConflictError]) -> ConflictError:
    """What was refused: the one error, a lost claim before others, or a `ConflictError` of all."""
    if len(errors) == 1:
        return errors[0]

    lost = next((error for error in errors if isinstance(error, ClaimLostError)), None)
    shown = "; ".join(f"({number}) {error}" for number, error in enumerate(errors[:_SHOWN], 1))
    if len(errors) > _SHOWN:
        shown += f"; and {len(errors) - _SHOWN} more"

    error = lost or ConflictError(
        f"the commit was refused because of conflicts in {len(errors)} records: {shown}"
    )
    error._conflicts = tuple(errors)
    return error
