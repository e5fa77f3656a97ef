"""What a commit did: decided by the rules of the store protocol, or read from what records remember.

Pure functions over `NatsTables` and replies; nothing here asks the server.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol import rules
from catga_store.protocol.failures import uncertain
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import counter_key
from catga_store.protocol.keys import entry_key
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import SATISFIED
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import SetWait
from catga_store.protocol.requests import Terms
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.record_text import WaitRecord
from catga_store.stores.nats.record_text import decode_record
from catga_store.stores.nats.record_text import revision_at
from catga_store.stores.nats.tables import NatsTables

__all__ = [
    "GONE_MS",
    "apply",
    "given_up",
    "keys_of",
    "partly_stored",
    "reply_of",
    "unread_outcome",
    "with_revision",
    "wrote",
]

GONE_MS = 0
"""`Head.expires_ms` of a flow that was deleted and whose progress is still being removed."""


def apply(tables: NatsTables, request: Commit) -> Reply:
    """The rules of the store protocol, for a commit that may have been applied before."""
    if len(request.changes) == 1:
        before = _outcome_before(tables, request.changes[0], request.id)
        if before is not None:
            return Applied((before,))

    tables.parts_of_flows.read_nodes(_parts_of(tables, request))
    reply = rules.apply(tables, request, 0)
    if isinstance(reply, Applied):
        for change, outcome in zip(request.changes, reply.outcomes, strict=True):
            if outcome.satisfied:
                tables.satisfied(change.key)

    return reply


def _parts_of(tables: NatsTables, request: Commit) -> Iterator[Key]:
    """The parts that a commit may write."""
    for change in request.changes:
        key = change.key
        if isinstance(change, Append):
            counter = tables.head(counter_key(key.id, key.name))
            yield entry_key(key.id, key.name, 1 if counter is None else counter.version + 1)
        elif key.kind == PART:
            yield key


def _outcome_before(tables: NatsTables, change: Change, commit_id: str) -> Outcome | None:
    """What a commit of one change did, if the record says that it did."""
    key = change.key
    if isinstance(change, Delete) and key.kind != WAIT:
        return Outcome(accepted=True) if _was_removed_by(tables, key, commit_id) else None

    if isinstance(change, Check | Append):  # only the log knows what an append did
        return None

    if key.kind != WAIT:
        head = tables.head(key)
        if head is None or commit_id not in head.commits:
            return None

        place = head.commits.index(commit_id)
        revision = head.revision if place == 0 else commit_id
        assert isinstance(change, Put)  # noqa: S101  for the type checker
        wrote_it = change.expected == IF_ABSENT
        return Outcome(
            head.version - place,
            revision,
            change.head.status,
            head.created_ms,
            accepted=wrote_it,
        )

    wait = tables.wait_record(key)
    if wait is None:
        return None

    return _wait_outcome_before(tables, wait, change, commit_id)


def _was_removed_by(tables: NatsTables, key: Key, commit_id: str) -> bool:
    """Whether this commit removed a record, or left it as one that has expired at all times."""
    if tables.stored(key).removed_by == commit_id:
        return True

    head = tables.head(key)
    return head is not None and head.expires_ms == GONE_MS and head.commits[0] == commit_id


def _wait_outcome_before(
    tables: NatsTables, wait: WaitRecord, change: Change, commit_id: str
) -> Outcome | None:
    head = wait.row.head
    if isinstance(change, Complete):
        return _completion_before(tables, wait, change, commit_id)

    if commit_id not in head.commits:
        return None

    if isinstance(change, Delete):
        return Outcome(accepted=True, status=rules.TOMBSTONE - head.status)

    place = head.commits.index(commit_id)
    revision = head.revision if place == 0 else commit_id
    satisfied = wait.satisfied_by == commit_id
    ended_since = wait.satisfied_by in head.commits[:place]
    status = SATISFIED if satisfied else PENDING if ended_since else head.status
    accepted = isinstance(change, SetWait)
    return Outcome(
        head.version - place,
        revision,
        status,
        head.created_ms,
        satisfied=satisfied,
        accepted=accepted,
    )


def _completion_before(
    tables: NatsTables, wait: WaitRecord, change: Complete, commit_id: str
) -> Outcome | None:
    """What a completion did, as it was then."""
    head = wait.row.head
    satisfied = wait.satisfied_by == commit_id
    item = tables.completed(change.key, wait, change.child)
    if item is None or item.commit != commit_id:
        # It was the last to be counted, and the condition was cleared since.
        return Outcome(status=SATISFIED, satisfied=True, accepted=True) if satisfied else None

    if item.early:
        return Outcome(accepted=True)

    replaced = head.commits[1] if satisfied and len(head.commits) > 1 else ""
    return Outcome(
        head.version,
        head.revision,
        SATISFIED if satisfied else PENDING,
        head.created_ms,
        satisfied=satisfied,
        accepted=True,
        replaced=replaced,
    )


def unread_outcome(change: Change, commit_id: str) -> Outcome:
    """Return the outcome of a change that was not refused, as far as it is known without its record.

    `CommitUncertainError` for one that depends on what was there.
    """
    if isinstance(change, Append) or (isinstance(change, Put) and change.expected == IF_ABSENT):
        raise uncertain(
            commit_id, (change.key,), "the commit was applied, but its result is unknown"
        )

    if isinstance(change, Put):
        head = change.head
        return Outcome(head.version, commit_id, head.status, head.created_ms)

    return Outcome(accepted=isinstance(change, Delete))


def wrote(tables: NatsTables, key: Key, commit_id: str) -> bool:
    """Whether a record says that a commit wrote it."""
    if tables.stored(key).removed_by == commit_id:
        return True

    if key.kind == PART:  # the key of an append names a log
        heads = tables.head(key), tables.head(counter_key(key.id, key.name))
        return any(head is not None and commit_id in head.commits for head in heads)

    if key.kind != WAIT:
        found = decode_record(key, tables.stored(key))
        return found is not None and commit_id in found[0].commits

    wait = tables.wait_record(key)
    return wait is not None and (
        commit_id in wait.row.head.commits
        or wait.satisfied_by == commit_id
        or any(item.commit == commit_id for item in wait.items.values())
    )


def with_revision(outcome: Outcome, commit_id: str, sequence: int | None) -> Outcome:
    """Flows and progress have their place in the stream in their revision."""
    if sequence is None or outcome.revision != commit_id:
        return outcome

    return outcome._replace(revision=revision_at(commit_id, sequence))


def reply_of(commit_id: str, sequence: int, fields: dict[str, Any]) -> Applied:
    """Return the reply that is in a log at this sequence."""
    outcomes: list[Outcome] = []
    for values, place in zip(fields["outcomes"], fields["places"], strict=True):
        outcome = Outcome(*values)
        if outcome.terms is not None:
            children, any_of, timeout_ms, parent = outcome.terms
            terms = Terms(tuple(children), any=any_of, timeout_ms=timeout_ms, parent=parent)
            outcome = outcome._replace(terms=terms)

        outcomes.append(
            with_revision(outcome, commit_id, None if place is None else sequence + place)
        )

    return Applied(tuple(outcomes))


def keys_of(request: Commit) -> tuple[Key, ...]:
    """The records that a commit names."""
    return tuple([change.key for change in request.changes])


def given_up(
    commit_id: str, keys: Iterable[Key], lost: BaseException | None, deadline: Deadline
) -> Exception:
    """The error of a commit whose time is over: uncertain if a reply of it was lost."""
    if lost is None:
        message = (
            f"commit {commit_id} could not be written within the timeout, because other writers "
            "changed the same records first or NATS was busy (the last reply was "
            f"{deadline.reason!r}), so nothing was written; try again"
        )
        return StoreUnavailableError(message)

    error = uncertain(commit_id, keys, lost)
    error.__cause__ = lost
    return error


def partly_stored(commit_id: str, keys: Iterable[Key]) -> CommitUncertainError:
    """The error of a commit of which the server kept a part."""
    named = tuple(dict.fromkeys(keys))
    message = (
        f"commit {commit_id} was stored only in part, because the server ran out of storage in "
        "the middle of the batch; free up space, check the records of this commit, and write the "
        "changes that are missing (to prevent this, set max_bytes on the stream, which reserves "
        "storage)"
    )
    return CommitUncertainError(message, commit_id=commit_id, keys=named)
