"""What happens to wait conditions: how they are set, completed and ended."""

from __future__ import annotations

from catga_store.protocol.requests import CANCELLED
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import SATISFIED
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import SetWait
from catga_store.protocol.requests import Terms
from catga_store.protocol.rules.expiry import after
from catga_store.protocol.rules.tables import PENDING_COMPLETIONS
from catga_store.protocol.rules.tables import TOMBSTONE
from catga_store.protocol.rules.tables import ItemRow
from catga_store.protocol.rules.tables import Tables
from catga_store.protocol.rules.tables import WaitRow
from catga_store.protocol.rules.version_checks import written

__all__ = ["clear_wait", "complete", "put_wait", "set_wait"]


def set_wait(tables: Tables, commit: Commit, change: SetWait) -> Outcome:
    """Create a condition or replace the terms of a pending one; leave an ended one as it is."""
    key, terms = change.key, change.terms
    old = tables.wait(key)
    status = old.head.status if old is not None else TOMBSTONE

    if old is not None and status > PENDING:
        record = tables.record(key)
        stored = record.terms if record is not None else None
        head = old.head
        if change.renotify and stored is not None:
            head, stored = _renotify(tables, commit, change, old, stored)

        return Outcome(head.version, head.revision, status, head.created_ms, terms=stored)

    done, well = tables.set_members(key, terms.children)
    if old is not None and status == PENDING:
        created_ms, version, commits = old.head.created_ms, old.head.version + 1, old.head.commits
    else:
        created_ms, version, commits = change.created_ms, 1, ()

    satisfied = _is_satisfied(done, len(terms.children), well, any_of=terms.any)
    head = Head(
        version,
        SATISFIED if satisfied else PENDING,
        created_ms,
        commit.now_ms,
        revision=commit.id,
        commits=(commit.id, *commits[: REMEMBERED_COMMITS - 1]),
    )
    head = _schedule(head, terms.timeout_ms, terms.parent, commit)
    row = WaitRow(head, terms.any, terms.parent, len(terms.children), done)
    tables.write_wait(key, row, old, terms)
    return Outcome(
        version, head.revision, head.status, created_ms, satisfied=satisfied, accepted=True
    )


def _renotify(
    tables: Tables, commit: Commit, change: SetWait, old: WaitRow, stored: Terms
) -> tuple[Head, Terms]:
    """Make a flow that suspends on an ended condition its parent, and due at once."""
    head = old.head._replace(due_ms=commit.now_ms, expires_ms=None)
    parent = change.terms.parent

    if parent != old.parent:
        stored = stored._replace(parent=parent)
        head = written(
            head._replace(version=head.version + 1, updated_ms=commit.now_ms), commit.id, old.head
        )

    tables.write_wait(change.key, old._replace(head=head, parent=parent), old, stored)
    return head, stored


def put_wait(tables: Tables, commit: Commit, change: Put) -> Outcome:
    """Write a condition whose version was checked, and count its completions again."""
    key, terms = change.key, change.terms
    assert terms is not None, "a wait condition must have terms"  # noqa: S101  a broken rule, not bad input
    old = tables.wait(key)
    if old is not None and change.fresh:
        tables.remove_wait(key, old)
        old = None

    for item in change.items:
        tables.write_item(
            key, item.child, ItemRow(member=False, done=True, success=item.success), item.payload
        )

    done, well = tables.set_members(key, terms.children)
    satisfied = change.head.status == PENDING and _is_satisfied(
        done, len(terms.children), well, any_of=terms.any
    )
    head = written(change.head, commit.id, old.head if old is not None else None)
    if satisfied:
        head = head._replace(status=SATISFIED)

    # A condition without a parent has notified no flow: a parent that it gets now is still to be notified.
    was_notified = (
        old is not None
        and old.head.status > PENDING
        and old.head.due_ms is None
        and (old.parent is not None or terms.parent is None)
    )
    if head.status > PENDING and was_notified and old is not None:
        head = head._replace(due_ms=None, expires_ms=old.head.expires_ms)
    elif head.status > PENDING and change.notified:
        head = head._replace(due_ms=None, expires_ms=after(commit.now_ms, commit.retain_ms))
    else:
        head = _schedule(head, terms.timeout_ms, terms.parent, commit)

    row = WaitRow(head, terms.any, terms.parent, len(terms.children), done)
    tables.write_wait(key, row, old, terms)
    return Outcome(head.version, head.revision, head.status, head.created_ms, satisfied=satisfied)


def complete(tables: Tables, commit: Commit, change: Complete) -> Outcome:
    """Record one child's completion, once, whatever the state of its condition."""
    key, child = change.key, change.child
    row = tables.wait(key)
    status = row.head.status if row is not None else PENDING_COMPLETIONS
    item = tables.item(key, child)

    if status <= TOMBSTONE:
        return Outcome(status=TOMBSTONE - status)

    if item is not None and item.done:
        return Outcome(status=None if status == PENDING_COMPLETIONS else status, duplicate=True)

    if row is None or status == PENDING_COMPLETIONS:
        return _keep_pending(tables, commit, change, row)

    if status != PENDING or item is None or not item.member:
        return Outcome(status=status)

    tables.write_item(
        key, child, ItemRow(member=True, done=True, success=change.success), change.payload
    )
    done = row.done + 1
    satisfied = _is_satisfied(done, row.expected, int(change.success), any_of=row.any)
    head = row.head

    if satisfied:
        head = written(
            head._replace(
                version=head.version + 1, status=SATISFIED, updated_ms=commit.now_ms, due_ms=None
            ),
            commit.id,
            head,
        )
        head = _schedule(head, None, row.parent, commit)

    tables.write_wait(key, row._replace(head=head, done=done), row)
    return Outcome(
        head.version,
        head.revision,
        head.status,
        head.created_ms,
        satisfied=satisfied,
        accepted=True,
        replaced=row.head.revision if satisfied else "",
    )


def _keep_pending(tables: Tables, commit: Commit, change: Complete, row: WaitRow | None) -> Outcome:
    kept = ItemRow(member=False, done=True, success=change.success)
    tables.write_item(change.key, change.child, kept, change.payload)
    expires_ms = after(commit.now_ms, commit.retain_ms)
    head = Head(0, PENDING_COMPLETIONS, commit.now_ms, commit.now_ms, expires_ms=expires_ms)
    tables.write_wait(change.key, WaitRow(head), row, Terms((), any=False))
    return Outcome(accepted=True)


def clear_wait(tables: Tables, commit: Commit, change: Delete) -> Outcome:
    """Remove a condition and its completions, and leave a tombstone with its outcome."""
    row = tables.wait(change.key)
    if row is None or row.head.status < 0:
        return Outcome()

    tables.remove_items(change.key)
    outcome = CANCELLED if row.head.status == PENDING else row.head.status
    head = Head(
        row.head.version,
        TOMBSTONE - outcome,
        row.head.created_ms,
        commit.now_ms,
        expires_ms=after(commit.now_ms, commit.retain_ms),
        revision=commit.id,
        commits=(commit.id,),
    )
    tables.write_wait(change.key, WaitRow(head), row, Terms((), any=False))
    return Outcome(accepted=True, status=outcome)


def _is_satisfied(done: int, expected: int, well: int, *, any_of: bool) -> bool:
    return done == expected or (any_of and well > 0)


def _schedule(head: Head, timeout_ms: int | None, parent: str | None, commit: Commit) -> Head:
    """Return a head with the times at which its condition is due, and expires.

    A pending condition is due at its deadline and does not expire. An ended one with a parent is
    due at once (or when the head says) and stays until the parent is notified. An ended one
    without a parent is not due and expires.
    """
    if head.status == PENDING:
        due_ms = None if timeout_ms is None else head.created_ms + timeout_ms
        return head._replace(due_ms=due_ms, expires_ms=None)

    if parent is not None:
        due_ms = commit.now_ms if head.due_ms is None else head.due_ms
        return head._replace(due_ms=due_ms, expires_ms=None)

    return head._replace(due_ms=None, expires_ms=after(commit.now_ms, commit.retain_ms))
