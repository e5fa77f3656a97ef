"""What a flow reports when it ends: its completion, in the commit that ends it. Pure.

A flow that ends is written with a terminal status, deleted, or replaced by another one. Most commits know
the head that they replace. One that deletes by id alone does not: the store refuses it as `REPORTS` and
says which head it holds, and the commit is sent again, checked, with the report beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from catga_store.core import envelope
from catga_store.errors import CommitTooLargeError
from catga_store.model.flows import FlowStatus
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import ENDED
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import REPORTS
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Refused

__all__ = ["amended", "missing_reports", "without_reports"]

_LONGEST_ERROR = 10_000
_COMPLETED, _CANCELLED = FlowStatus.COMPLETED.value, FlowStatus.CANCELLED.value
_DELETED = "the flow was deleted before it had ended"
_REPLACED = "the flow was replaced before it had ended"


def _reports_of(change: Put | Delete) -> list[Complete]:
    """Return the completions of the flows that this change ends: of an old one, and of a new one."""
    found: list[Complete] = []
    if isinstance(change, Put):
        if change.head.reports_to is not None and change.head.status >= ENDED:
            old = None if change.fresh else change.replaces
            if not _has_ended(old):
                found.append(_completion(change.key.id, change.head))

        if change.fresh and change.replaces is not None:
            found += _report_of_removed(change.key.id, change.replaces, _REPLACED)
    elif change.replaces is not None:
        found += _report_of_removed(change.key.id, change.replaces, _DELETED)

    return found


def _has_ended(head: Head | None) -> bool:
    return head is not None and head.status >= ENDED


def _completion(flow_id: str, head: Head) -> Complete:
    if head.status == _COMPLETED:
        return _complete(flow_id, head, None)

    how = "the flow was cancelled" if head.status == _CANCELLED else "the flow failed"
    return _complete(flow_id, head, (head.error or how)[:_LONGEST_ERROR])


def _report_of_removed(flow_id: str, head: Head, error: str) -> list[Complete]:
    return [] if head.reports_to is None or _has_ended(head) else [_complete(flow_id, head, error)]


def _complete(flow_id: str, head: Head, error: str | None) -> Complete:
    assert head.reports_to is not None, "the flow must have a wait condition to report to"
    payload = envelope.encode_completion(head.reports_to, None, error)
    return Complete(wait_key(head.reports_to), flow_id, error is None, payload)


def amended(
    changes: tuple[Change, ...], sent: tuple[Change, ...], reply: Refused
) -> tuple[Change, ...] | None:
    """Return what to send after a refusal, or `None` if the refusal is the caller's to know.

    `sent` is what was sent in the place of `changes`: the same, or with deletions that were checked and
    are reported. If one of these is refused, the flow has changed since, and all begins again.
    """
    places = {conflict.place: conflict for conflict in reply.conflicts}
    if any(sent[place] is not changes[place] for place in places if place < len(changes)):
        return changes

    if any(conflict.reason != REPORTS for conflict in reply.conflicts):
        return None

    again: list[Change] = list(sent)
    for place, conflict in places.items():
        head = conflict.head
        assert head is not None, "a flow that must report has to exist"
        again[place] = checked = Delete(changes[place].key, head.revision, head)
        again += _reports_of(checked)

    if len(again) > MAX_CHANGES:
        message = (
            f"this commit contains {len(again)} records, counting the wait conditions that "
            f"deleted flows report to, but the limit is {MAX_CHANGES}, so nothing was written; "
            "split it into several commits"
        )
        raise CommitTooLargeError(message, size=len(again), limit=MAX_CHANGES)

    return tuple(again)


def without_reports(reply: Refused) -> Refused:
    """Return a refusal without what only concerns reports."""
    return Refused(tuple([one for one in reply.conflicts if one.reason != REPORTS]))


def missing_reports(changes: Sequence[Change]) -> list[Complete]:
    """Return the completions of flows that these changes end, but for those that they say themselves."""
    found: list[Complete] = []
    for change in changes:
        # Every commit passes here; a write of a flow that reports to none calls nothing.
        if type(change) is Put:
            if change.fresh or change.head.reports_to is not None:
                found += _reports_of(change)
        elif type(change) is Delete:
            found += _reports_of(change)

    if not found:
        return found

    said = {(one.key, one.child) for one in changes if isinstance(one, Complete)}
    return [one for one in found if (one.key, one.child) not in said]
