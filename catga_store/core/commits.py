"""Sending commits, and settling those whose outcome was lost."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TypeVar
from typing import cast

from catga_store.core.conflicts import conflict_error
from catga_store.core.context import Context
from catga_store.core.context import read_all
from catga_store.core.receipts import Receipt
from catga_store.core.receipts import receipt_of
from catga_store.core.reports import amended
from catga_store.core.reports import missing_reports
from catga_store.core.reports import without_reports
from catga_store.core.writes import check_partition
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.model.stored_state import AnyRecord
from catga_store.model.stored_state import stop_watching
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import began_s
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import partition_of
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve

__all__ = [
    "LONGEST_PAUSE",
    "SHORTEST_PAUSE",
    "ask_once",
    "commit_one",
    "in_commits",
    "read_outcomes",
    "resolve",
    "resolve_commit",
    "send",
    "settled",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)

SHORTEST_PAUSE, LONGEST_PAUSE = 0.002, 0.2
"""Seconds between two tries of a transaction, or two questions what became of a commit."""

_MOST_RECORDS = 100
_COMMIT_BYTES = 4 * 1024 * 1024


def send(
    context: Context,
    commit_id: str,
    now_ms: int,
    changes: tuple[Change, ...],
    *,
    keeps_history: bool = True,
    has_reports: bool = False,
) -> Conversation[Reply]:
    """Send one commit, with what flows report that it ends; the reply is about `changes` alone.

    `has_reports`: the known reports are among the changes.

    Flows that are deleted by their ids alone, and report their end, cost another exchange. An error of
    unknown outcome keeps what `resolve_commit` needs.
    """
    sent_at = time.monotonic()
    history = context.settings.history if keeps_history else 1
    reports = () if has_reports else missing_reports(changes)
    sent = reported = (*changes, *reports) if reports else changes
    while True:
        try:
            reply: Reply = yield Commit(commit_id, now_ms, sent, context.retain_ms, history)
        except CommitUncertainError as error:
            error.changes = tuple(map(_without_body, reported))
            _note_sending(context, error, sent_at)
            _log.warning("%s", error)
            raise

        if type(reply) is Applied:
            return reply if sent is changes else Applied(reply.outcomes[: len(changes)])

        more = amended(reported, sent, reply)
        if more is None:
            return without_reports(reply)

        sent = more


def ask_once(context: Context, request: Request[T]) -> Conversation[T]:
    """Ask for a write that the store gives a commit id of its own, such as `Extend`.

    An error of unknown outcome keeps what `resolve_commit` needs.
    """
    sent_at = time.monotonic()
    try:
        return (yield from ask(request))
    except CommitUncertainError as error:
        _note_sending(context, error, sent_at)
        raise


def _note_sending(context: Context, error: CommitUncertainError, sent_at: float) -> None:
    """Keep with the error until when the store has the reply, unless the store has said so itself."""
    error.sent_at = sent_at
    if error.kept_seconds is None:
        error.kept_seconds = 2 * context.settings.timeout


def commit_one(
    context: Context, change: Change, now_ms: int, record: AnyRecord | None = None
) -> Conversation[Outcome]:
    """Commit one change and return its outcome; raises its conflict."""
    changes = (change,)
    check_partition(changes, context.limits)
    try:
        reply = yield from send(context, new_commit_id(), now_ms, changes)
    except CommitUncertainError:
        stop_watching(record)  # what it was changed to may be written
        raise

    if isinstance(reply, Refused):
        stop_watching(record)
        raise conflict_error(change, reply.conflicts[0], record)

    return reply.outcomes[0]


def resolve_commit(context: Context, error: object) -> Conversation[Receipt | None]:
    """Settle an uncertain commit; see `Store.resolve_commit`."""
    if not isinstance(error, CommitUncertainError):
        message = f"resolve_commit: expected a CommitUncertainError, got {shown(error)}"
        raise UsageError(message)

    if not _says_which(error):
        message = (
            "this CommitUncertainError does not identify its commit; pass the error as the store "
            "raised it, with its commit_id and keys"
        )
        raise UsageError(message)

    outcomes = yield from resolve(context, error)
    if outcomes is None:
        return None

    return receipt_of(error.commit_id, _changes_of(error), outcomes)


def _says_which(error: CommitUncertainError) -> bool:
    """Whether the error has the facts of one that a store raised."""
    commit_id: object = getattr(error, "commit_id", None)
    keys: object = getattr(error, "keys", None)
    return (
        isinstance(commit_id, str)
        and bool(commit_id)
        and isinstance(keys, tuple)
        and all(
            isinstance(key, tuple) and list(map(type, cast("tuple[object, ...]", key))) == _KEY
            for key in cast("tuple[object, ...]", keys)
        )
    )


_KEY = [str, str, int, str]


def resolve(
    context: Context, error: CommitUncertainError
) -> Conversation[tuple[Outcome, ...] | None]:
    """Return the outcomes of a commit, `()` if only that it was applied is known, else `None`."""
    keys = tuple(Key(*key) for key in error.keys)
    changes = _changes_of(error)
    try:
        applied = yield from ask(Resolve(error.commit_id, keys))
    except CommitUncertainError as again:
        raise error from again  # the first error knows what was in the commit

    if applied is None:
        yield from _check_remembered(context, error, changes)
        return None

    outcomes: tuple[Outcome, ...] = applied.outcomes
    return outcomes if len(outcomes) == len(changes) else ()


def settled(
    context: Context, changes: Sequence[Change], lost: CommitUncertainError
) -> Conversation[Applied]:
    """Find out what became of a commit whose reply was lost.

    The outcomes are empty if no more is known than that it was applied.
    """
    outcomes = yield from _resolve_in_time(context, lost)
    if outcomes is None:
        message = (
            f"commit {lost.commit_id} was lost in transit and will never be applied, so "
            "nothing was written; try again"
        )
        raise StoreUnavailableError(message) from lost

    known = yield from read_outcomes(context, lost.commit_id, changes, outcomes)
    return Applied(known)


def _resolve_in_time(
    context: Context, lost: CommitUncertainError
) -> Conversation[tuple[Outcome, ...] | None]:
    """Resolve a commit, again and again until the store can tell or the timeout has passed."""
    timeout = context.settings.timeout
    give_up = time.monotonic() + timeout
    pause = paused = 0.0

    while True:
        try:
            return (yield from resolve(context, lost))
        except CommitUncertainError:
            # Both: `Faults` skips the pauses, and each question may take long.
            if paused >= timeout or time.monotonic() >= give_up:
                raise

        pause = min(max(2 * pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        paused += pause
        yield Pause(pause)


def read_outcomes(
    context: Context, commit_id: str, changes: Sequence[Change], outcomes: tuple[Outcome, ...]
) -> Conversation[tuple[Outcome, ...]]:
    """Return the outcomes of a commit that was applied, empty if they are not known.

    Where the store knows only that it was applied, the records show what it did, unless they have been
    written since.
    """
    if not outcomes and all(type(change) is Put and change.key.kind != WAIT for change in changes):
        records = yield from read_all(context, [change.key for change in changes])
        heads = [record.head for record in records if record is not None]
        if len(heads) == len(changes) and all(commit_id in head.commits[:1] for head in heads):
            outcomes = tuple(
                Outcome(head.version, head.revision, head.status, head.created_ms, accepted=True)
                for head in heads
            )

    return outcomes


def _check_remembered(
    context: Context, error: CommitUncertainError, changes: Sequence[Change]
) -> Conversation[None]:
    """Raise the error again if the commit may have been applied and forgotten since.

    A store keeps the reply for twice its timeout. Later only the records can tell. Each remembers
    its last eight commits, so one that still has the commit before this one would have this one as
    well. A record that was written eight times since, or is not there (any more), cannot tell;
    nor can a wait condition, which does not remember each completion.
    """
    if _is_reply_kept(error):
        return

    puts = [change for change in changes if isinstance(change, Put) and change.key.kind != WAIT]
    records = yield from read_all(context, [put.key for put in puts])
    for put, record in zip(puts, records, strict=True):
        if record is not None and put.expected in record.head.commits:
            return

    why = "no record shows whether it was applied; call the method again"
    if error.changes is not None:
        why = (
            f"{changes[0].key} has since been written {REMEMBERED_COMMITS} times, no longer exists, "
            "or is a wait condition or a log; compare the stored records with what the commit "
            "should have written"
        )

    message = (
        f"the outcome of commit {error.commit_id} can no longer be determined, because a store "
        f"keeps a reply only for twice the timeout, and {why}"
    )
    raise CommitUncertainError(message, **error.__dict__)


def _is_reply_kept(error: CommitUncertainError) -> bool:
    """Whether the store certainly still keeps the reply.

    Both clocks must say so: the wall clock may have been set back, and the monotonic one stands
    still while a machine is suspended. An error from another process has no monotonic time.
    """
    if error.kept_seconds is None or error.kept_seconds == math.inf:
        return True

    if error.sent_at is None:
        return False

    by_wall_clock = time.time() - began_s(error.commit_id)
    by_monotonic_clock = time.monotonic() - error.sent_at
    return max(by_wall_clock, by_monotonic_clock) < error.kept_seconds


def _changes_of(error: CommitUncertainError) -> tuple[Change, ...]:
    """What was in a commit; for an error that does not know it, its keys, as if only checked."""
    changes: tuple[Change, ...] | None = error.changes
    return tuple(Check(Key(*key), "") for key in error.keys) if changes is None else changes


def _without_body(change: Change) -> Change:
    """The change without what was written: an error may be kept and pickled."""
    if isinstance(change, Put):
        return change._replace(body=b"", items=())

    if isinstance(change, Append):
        return change._replace(body=b"")

    return change._replace(payload=b"") if isinstance(change, Complete) else change


def in_commits(changes: Sequence[Change], partitions: int) -> Iterator[tuple[Change, ...]]:
    """Group changes by partition into commits of at most 100 records and 4 MiB, or of one record."""
    groups: dict[int, list[Change]] = {}
    sizes: dict[int, int] = {}

    for change in changes:
        number = partition_of(change.key.id, partitions)
        size = len(change.body) if isinstance(change, Put) else 0
        group = groups.setdefault(number, [])

        if group and (len(group) == _MOST_RECORDS or sizes[number] + size > _COMMIT_BYTES):
            yield tuple(group)
            group.clear()
            sizes[number] = 0

        group.append(change)
        sizes[number] = sizes.get(number, 0) + size

    yield from (tuple(group) for group in groups.values() if group)
