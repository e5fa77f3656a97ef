"""What is wrong with a flow, decided from what was read of it. Pure.

`examining` reads a flow, its wait condition and the children of that into a `Case`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Final

from attrs import define
from attrs import frozen

from catga_store.core import envelope
from catga_store.core.claim_plans import is_held
from catga_store.core.claim_plans import is_terminal
from catga_store.errors import CorruptRecordError
from catga_store.model.diagnosis import SEVERITIES
from catga_store.model.diagnosis import FlowFinding
from catga_store.model.diagnosis import Severity
from catga_store.model.flows import FlowStatus
from catga_store.model.time_texts import length
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Record

__all__ = [
    "CODES",
    "Case",
    "Thresholds",
    "findings_of",
    "orphan_parts",
    "parent_gone",
    "worst_first",
]

CODES: Final = (
    "unreadable",
    "future_version",
    "due_disagrees",
    "never_due",
    "wait_gone",
    "children_ended",
    "no_deadline",
    "lease_expired",
    "overdue",
    "attempts_high",
    "parent_gone",
    "orphan_parts",
    "failed",
)
"""Every code of a finding."""


@frozen
class Thresholds:
    """From when on something is wrong."""

    late_ms: int
    """How long a flow may be due before a worker has claimed it."""
    idle_ms: int
    """How long a flow may wait without a deadline."""
    attempts: int
    versions: Mapping[str, int]
    """The newest version that the program knows, by the name of a type."""


@define(eq=False)
class Case:
    """A flow, with all that its findings depend on."""

    key: Key
    head: Head
    record: Record | None = None
    error: CorruptRecordError | None = None
    """Why it cannot be read."""
    wait: WaitCondition | None = None
    """The condition that the flow says it is suspended on."""
    awaited: Record | None = None
    """That condition, as it is stored."""
    children: Mapping[str, Head | None] | None = None
    """Children of that condition that have not completed; `None` for an id that no flow has."""
    are_all_children: bool = True
    may_be_notified: bool = False
    """Whether it is the parent of another condition, which will wake it."""

    @property
    def is_suspended(self) -> bool:
        """Whether it waits, and no worker has it."""
        return self.head.status == FlowStatus.SUSPENDED.value and self.head.owner is None

    @property
    def awaits(self) -> str | None:
        """The id of the condition that it is suspended on."""
        if self.wait is None or not self.is_suspended:
            return None

        return self.wait._suspended_on or self.wait.correlation_id

    @property
    def is_pending(self) -> bool:
        """Whether what it is suspended on has not ended, and will notify it."""
        return self.awaited is not None and self.awaited.head.status == PENDING and self.is_its_own

    @property
    def is_its_own(self) -> bool:
        """Whether it is the parent of the condition that it is suspended on."""
        terms = None if self.awaited is None else self.awaited.terms
        return terms is None or terms.parent in (None, self.key.id)

    @property
    def is_parked(self) -> bool:
        """Whether nothing that is known of it makes it due."""
        head = self.head
        if is_terminal(head) or head.owner is not None or head.due_ms is not None:
            return False

        awaited = self.awaited
        return (
            not self.is_suspended
            or awaited is None
            or not self.is_its_own
            or (awaited.head.status != PENDING and awaited.head.due_ms is None)
        )


def findings_of(case: Case, now_ms: int, thresholds: Thresholds) -> tuple[FlowFinding, ...]:
    """Everything that is wrong with a flow, the worst first."""
    found: list[FlowFinding] = []
    for rule in _RULES:
        found += rule(case, now_ms, thresholds)

    return worst_first(found)


def worst_first(found: list[FlowFinding]) -> tuple[FlowFinding, ...]:
    """Order findings: the worst first, those of one severity as they were found."""
    return tuple(sorted(found, key=lambda one: -SEVERITIES.index(one.severity)))


def parent_gone(correlation_id: str) -> FlowFinding:
    """The parent of a pending condition does not exist."""
    return FlowFinding(
        "parent_gone",
        "warning",
        f"does not exist, but wait condition {correlation_id!r} waits for children on its behalf",
        "clear the wait condition",
    )


def orphan_parts(parts: int) -> FlowFinding:
    """Parts are left of a flow that does not exist."""
    return FlowFinding(
        "orphan_parts",
        "info",
        f"does not exist, but has {_counted(parts, 'part')}" + (" or more" if parts > 1 else ""),
        "do nothing; the parts are removed after the retention of wait conditions, unless "
        "the flow is created",
    )


# --- the rules ----------------------------------------------------------------------------------


def _unreadable(case: Case, _now_ms: int, thresholds: Thresholds) -> Iterator[FlowFinding]:
    head, error = case.head, case.error
    layout = None if case.record is None else envelope.layout_in(case.record.body)
    if layout is not None and layout > envelope.LAYOUT:
        yield FlowFinding(
            "future_version",
            "problem",
            f"was written by a newer release of catga_store (layout {layout}), but this "
            f"release supports layout {envelope.LAYOUT}",
            "run workers with the newer release of catga_store",
        )
    elif error is not None:
        yield FlowFinding(
            "unreadable",
            "problem",
            f"cannot be read: {error}",
            # A head that cannot be read has no version, and no operation writes over it.
            "restore it from a backup" + (", cancel it, or delete it" if head.version else ""),
        )

    known = thresholds.versions.get(head.type)
    if known is not None and head.type_version > known and not is_terminal(head):
        yield FlowFinding(
            "future_version",
            "problem",
            f"has version {head.type_version} of type {head.type!r}, but this program supports"
            f" version {known}",
            "run workers with the newer version of the program",
        )


def _due_disagrees(case: Case, _now_ms: int, _thresholds: Thresholds) -> Iterator[FlowFinding]:
    head = case.head
    status = FlowStatus(head.status)
    if status.is_terminal and (head.due_ms is not None or head.owner is not None):
        what = "is due" if head.owner is None else f"is claimed by {head.owner!r}"
        yield FlowFinding(
            "due_disagrees",
            "problem",
            f"is {status.name}, but {what}",
            "write the flow again with update(), or retry it if it failed or was cancelled",
        )
    elif head.owner is not None and head.due_ms is None:
        yield FlowFinding(
            "due_disagrees",
            "problem",
            f"is claimed by {head.owner!r} with a lease that never ends",
            "release the flow",
        )


def _never_due(case: Case, _now_ms: int, _thresholds: Thresholds) -> Iterator[FlowFinding]:
    if not case.is_parked or case.may_be_notified or case.error is not None:
        return

    status = FlowStatus(case.head.status).name
    name = case.awaits
    if name is None:
        what = "suspended but waits for nothing, so it" if case.is_suspended else f"{status} but"
        yield FlowFinding(
            "never_due", "warning", f"is {what} is never due", "wake the flow, or cancel it"
        )
    elif case.awaited is None:
        yield FlowFinding(
            "wait_gone",
            "problem",
            f"is suspended on wait condition {name!r}, which was cleared or has expired",
            "wake the flow, or cancel it",
        )
    elif not case.is_its_own:
        yield FlowFinding(
            "wait_gone",
            "problem",
            f"is suspended on wait condition {name!r}, which now belongs to another flow",
            "wake the flow, or cancel it",
        )
    else:
        outcome = WaitOutcome(case.awaited.head.status).name
        yield FlowFinding(
            "never_due",
            "problem",
            f"is suspended on wait condition {name!r}, which is {outcome}; the flow was "
            "notified, but its status was not set to RUNNING",
            "wake the flow, or cancel it",
        )


def _waits(case: Case, now_ms: int, thresholds: Thresholds) -> Iterator[FlowFinding]:
    if not case.is_pending or case.awaited is None or case.awaits is None:
        return

    head, terms = case.awaited.head, case.awaited.terms
    ended = [child for child, one in (case.children or {}).items() if _has_ended(one)]
    live = [child for child, one in (case.children or {}).items() if one and not _has_ended(one)]
    has_no_deadline = head.due_ms is None and case.head.due_ms is None
    if ended and case.are_all_children and (not live or (terms is not None and terms.any)):
        yield FlowFinding(
            "children_ended",
            "info" if case.head.due_ms is not None else "problem" if has_no_deadline else "warning",
            f"waits for {_counted(len(ended), 'child', 'children')} that "
            f"{'has' if len(ended) == 1 else 'have'} ended without a report: {_listed(ended)}",
            "complete the children of its wait condition, or wake the flow",
        )
    elif has_no_deadline and now_ms - case.head.updated_ms >= thresholds.idle_ms:
        yield FlowFinding(
            "no_deadline",
            "warning",
            f"has waited for {length(now_ms - case.head.updated_ms)} on wait condition"
            f" {case.awaits!r}, which has no deadline",
            "complete the children of its wait condition, or wake the flow",
        )


def _late(case: Case, now_ms: int, thresholds: Thresholds) -> Iterator[FlowFinding]:
    head = case.head
    if is_terminal(head) or is_held(head, now_ms):
        return

    if head.due_ms is not None and head.due_ms <= now_ms:
        late_ms = now_ms - head.due_ms
        severity: Severity = "warning" if late_ms >= thresholds.late_ms else "info"
        if head.owner is not None:
            yield FlowFinding(
                "lease_expired",
                severity,
                f"was claimed by {head.owner!r}, whose lease ended {length(late_ms)} ago",
                "start a worker for its type, or release the flow",
            )
        elif severity != "info":
            yield _overdue(f"has been due for {length(late_ms)}")
    elif case.awaited is not None and case.is_suspended and case.is_its_own:
        due_ms = case.awaited.head.due_ms
        if due_ms is not None and now_ms - due_ms >= thresholds.late_ms:
            yield _overdue(
                f"is suspended on a wait condition that was due {length(now_ms - due_ms)} ago"
            )


def _overdue(what: str) -> FlowFinding:
    return FlowFinding(
        "overdue",
        "warning",
        f"{what}, and no worker has claimed it",
        (
            "start a worker for its type; if one is already running, read its log to find out "
            "why it skips the flow"
        ),
    )


def _attempts(case: Case, _now_ms: int, thresholds: Thresholds) -> Iterator[FlowFinding]:
    head = case.head
    if head.attempts >= thresholds.attempts and not is_terminal(head):
        why = f": {head.error}" if head.error else ""
        yield FlowFinding(
            "attempts_high",
            "warning",
            f"was attempted {head.attempts} times at {head.position}{why}",
            "fix the cause, then retry the flow, or cancel it",
        )


def _failed(case: Case, _now_ms: int, _thresholds: Thresholds) -> Iterator[FlowFinding]:
    head = case.head
    if head.status == FlowStatus.FAILED.value:
        why = f": {head.error}" if head.error else ""
        yield FlowFinding(
            "failed", "info", f"has failed{why}", "fix the cause, then retry the flow"
        )


_RULES: tuple[Callable[[Case, int, Thresholds], Iterator[FlowFinding]], ...] = (
    _unreadable,
    _due_disagrees,
    _never_due,
    _waits,
    _late,
    _attempts,
    _failed,
)


# --- words --------------------------------------------------------------------------------------


def _has_ended(head: Head | None) -> bool:
    return head is not None and is_terminal(head)


def _counted(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


_SHOWN = 3


def _listed(ids: list[str]) -> str:
    text = ", ".join(repr(one) for one in ids[:_SHOWN])
    return text if len(ids) <= _SHOWN else f"{text}, …"
