"""Which hints a commit is worth, for those who wait for what it did; see `wakeups`."""

from __future__ import annotations

from collections.abc import Iterator

from catga_store.protocol.keys import FLOW
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import SetWait
from catga_store.protocol.wakeups import Hint

__all__ = ["hints_of_commit", "hints_of_extension"]


def hints_of_commit(commit: Commit, reply: Applied) -> Iterator[Hint]:
    """What became due, or will be, and which flows were written.

    Of a flow that was deleted nothing is due, and `watch` sees it at its next look.
    """
    outcomes = reply.outcomes
    if len(outcomes) != len(commit.changes):  # settled, and only that it was applied is known
        outcomes = (Outcome(),) * len(commit.changes)

    for change, outcome in zip(commit.changes, outcomes, strict=True):
        if isinstance(change, Put) and change.key.kind == FLOW:
            head = change.head
            yield Hint(head.due_ms, head.type, change.key.id, head.version, outcome.revision)
        elif isinstance(change, Append):
            yield Hint(flow_id=change.key.id, version=outcome.version, log=change.key.name)
        elif isinstance(change, Delete) and change.key.kind == FLOW:
            yield Hint(flow_id=change.key.id)
        else:
            due_ms = _due_of(commit, change, outcome)
            if due_ms is not None:
                yield Hint(due_ms)


def _due_of(commit: Commit, change: Change, outcome: Outcome) -> int | None:
    """When a condition notifies its parent, as far as the change tells; its parent may be of any type."""
    if isinstance(change, Complete):
        return commit.now_ms if outcome.satisfied else None

    if isinstance(change, Check):
        return change.due_ms

    if isinstance(change, SetWait):
        terms, created_ms = change.terms, outcome.created_ms or change.created_ms
    elif isinstance(change, Put) and change.terms is not None and not change.notified:
        terms, created_ms = change.terms, change.head.created_ms
    else:
        return None

    if terms.parent is None:
        return None

    if outcome.status is not None and outcome.status > PENDING:
        return commit.now_ms

    return None if terms.timeout_ms is None else created_ms + terms.timeout_ms


def hints_of_extension(head: Head) -> Iterator[Hint]:
    """When a claim ends that was extended; it may end sooner than before."""
    yield Hint(head.due_ms, head.type)
