"""Which changes a store refuses: optimistic locking and the fence of claims.

SQLite and memory repeat the check in `Tables.replace`, the short path of a single update.
"""

from __future__ import annotations

from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import CLAIMED
from catga_store.protocol.requests import ENDED
from catga_store.protocol.requests import EXISTS
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import MISSING
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import REPORTS
from catga_store.protocol.requests import STALE
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import SetWait
from catga_store.protocol.rules.expiry import live
from catga_store.protocol.rules.tables import Tables

__all__ = ["conflicts_of", "refusal", "written"]


def conflicts_of(tables: Tables, commit: Commit) -> tuple[Conflict, ...]:
    """Return why a commit is refused, change by change; nothing if it can be applied."""
    now_ms = commit.now_ms
    leaving = commit.leaving_flows()
    found: list[Conflict] = []

    for index, change in enumerate(commit.changes):
        key = change.key
        head = live(tables, key, now_ms)
        goes = key.kind in (PROGRESS, PART) and key.id in leaving and not isinstance(change, Check)
        if goes or (head is not None and head.status < 0):
            head = None

        reason = refusal(change, head, now_ms)
        if reason is not None:
            found.append(Conflict(index, reason, head))

    return tuple(found)


def refusal(  # noqa: PLR0911  one return for each rule
    change: Change, head: Head | None, now_ms: int
) -> str | None:
    """Return why a change is refused by a store that holds `head`, or None if it is accepted."""
    if isinstance(change, Complete | SetWait | Append):
        return None

    expected = change.expected
    if expected is None:
        if head is None:
            return None

        return EXISTS if isinstance(change, Put) else _must_report(change, head)

    if expected == IF_ABSENT:
        return None

    if expected == ANY:
        return _lost_claim(change, head) if isinstance(change, Check) else None

    if head is None:
        return MISSING

    if head.revision != expected:
        return STALE

    if (
        isinstance(change, Put)
        and change.claiming
        and head.owner is not None
        and head.due_ms is not None
        and head.due_ms > now_ms
    ):
        return CLAIMED

    return None


def _must_report(change: Change, head: Head) -> str | None:
    is_live = change.key.kind == FLOW and head.status < ENDED
    return REPORTS if is_live and head.reports_to is not None else None


def _lost_claim(change: Check, head: Head | None) -> str | None:
    if head is None:
        return MISSING

    return None if head.claim == change.claim else STALE


def written(head: Head, commit_id: str, old: Head | None) -> Head:
    """Return a head with its new revision, and with the commits that it remembers."""
    before = old.commits[: REMEMBERED_COMMITS - 1] if old is not None else ()
    return head.stamped(commit_id, (commit_id, *before))
