"""What an operator does to a flow: cancel, retry, wake, release or purge it.

An action plans one change of one flow from what is stored, or says why it skips the flow. It reads heads
only, so a flow whose state cannot be read, or has a type this program does not know, can be cancelled,
too.
"""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from catga_store.core import commits
from catga_store.core import envelope
from catga_store.core.arguments import check_version
from catga_store.core.arguments import not_found
from catga_store.core.claim_plans import is_held
from catga_store.core.claim_plans import is_terminal
from catga_store.core.conflicts import claimed_error
from catga_store.core.conflicts import conflict_error
from catga_store.core.context import Context
from catga_store.core.writes import Limits
from catga_store.core.writes import check_size
from catga_store.core.writes import retained_until_ms
from catga_store.errors import ConflictError
from catga_store.errors import FlowStatusError
from catga_store.errors import StaleFlowError
from catga_store.errors import UsageError
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.tags import MOST_TAGS
from catga_store.model.tags import Pairs
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused

__all__ = [
    "ATTEMPTS",
    "Action",
    "CancelFlow",
    "PurgeFlow",
    "ReleaseFlow",
    "RetryFlow",
    "Skip",
    "TagFlow",
    "WakeFlow",
    "act",
    "act_on_flow",
    "check_reason",
]

ATTEMPTS = 10
"""How often an action on one flow is planned again after another writer was first."""


@frozen
class Skip:
    """Why a flow is left as it is; without an error it is as the action would leave it."""

    reason: str
    error: ConflictError | UsageError | None = None


class Action(Protocol):
    """Plans what is to be written of a flow. Pure."""

    def skip(self, key: Key, head: Head, now_ms: int, /) -> Skip | None:
        """Why the flow is left as it is; `None` if it is to be changed."""
        ...

    def change(self, key: Key, record: Record, now_ms: int, limits: Limits, /) -> Put | Delete:
        """The change of a flow that is not skipped."""
        ...


@frozen
class CancelFlow:
    """End a live flow as `CANCELLED`, claimed or not."""

    reason: str

    def skip(self, key: Key, head: Head, _now_ms: int) -> Skip | None:
        """Only live flows can be cancelled."""
        if head.status == FlowStatus.CANCELLED.value:
            return Skip("is already CANCELLED")

        return _refused(key, head, "cancelled") if is_terminal(head) else None

    def change(self, key: Key, record: Record, now_ms: int, limits: Limits) -> Put | Delete:
        """End the flow; what it shows of its wait stays."""
        old, body = record.head, record.body
        expires_ms = old.expires_ms  # that of a live flow was set by its user
        if expires_ms is None:
            expires_ms = retained_until_ms(FlowStatus.CANCELLED, now_ms, limits.retention)
        else:
            body = envelope.body_with_own_expiry(key, old, body, own_expiry=True)

        head = _next(old, now_ms)._replace(
            status=FlowStatus.CANCELLED.value,
            error=self.reason,
            attempts=0,
            owner=None,
            claim=None,
            due_ms=None,
            expires_ms=expires_ms,
        )
        check_size(key, len(body) + len(old.position) + len(self.reason.encode()), limits)
        return _put(key, record, head, body)


@frozen
class RetryFlow:
    """Let a flow that has failed or was cancelled run on; let a live one count its attempts again."""

    def skip(self, key: Key, head: Head, now_ms: int) -> Skip | None:
        """A completed flow has nothing left to do, and one that is held is being run."""
        if head.status == FlowStatus.COMPLETED.value:
            return _refused(key, head, "retried")

        if is_held(head, now_ms):
            return _held(key, head)

        if not is_terminal(head) and not head.attempts and _is_due(head, now_ms):
            return Skip("is already due and has not been attempted yet")

        return None

    def change(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Put | Delete:
        """Set the flow running, unless it is live already."""
        old, body = record.head, record.body
        head = _due_now(old, now_ms)._replace(error=None, attempts=0)
        if not is_terminal(old):
            return _put(key, record, head, body)

        expires_ms = None
        if envelope.has_own_expiry(body):
            expires_ms = old.expires_ms
            body = envelope.body_with_own_expiry(key, old, body, own_expiry=False)

        head = head._replace(status=FlowStatus.RUNNING.value, expires_ms=expires_ms)
        return _put(key, record, head, body)


@frozen
class WakeFlow:
    """Let a live flow be due now, whatever it waits for."""

    def skip(self, key: Key, head: Head, now_ms: int) -> Skip | None:
        """One that is held is being run."""
        if is_terminal(head):
            return _refused(key, head, "woken")

        if is_held(head, now_ms):
            return _held(key, head)

        return Skip("is already due") if _is_due(head, now_ms) else None

    def change(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Put | Delete:
        """Change nothing but when the flow is due."""
        return _put(key, record, _due_now(record.head, now_ms), record.body)


@frozen
class ReleaseFlow:
    """Take a claim away from its owner, whether its lease is over or not."""

    def skip(self, key: Key, head: Head, _now_ms: int) -> Skip | None:
        """There must be a claim."""
        if is_terminal(head):
            return _refused(key, head, "released")

        return Skip("is not claimed") if head.owner is None else None

    def change(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Put | Delete:
        """End the claim; the flow is due now."""
        return _put(key, record, _due_now(record.head, now_ms), record.body)


@frozen
class PurgeFlow:
    """Delete a flow that has ended, or, with `live`, any that is not claimed."""

    live: bool = False

    def skip(self, key: Key, head: Head, now_ms: int) -> Skip | None:
        """A live flow is work."""
        if is_terminal(head):
            return None

        if not self.live:
            return _refused(key, head, "purged without live=True")

        return _held(key, head) if is_held(head, now_ms) else None

    def change(self, key: Key, record: Record, _now_ms: int, _limits: Limits) -> Put | Delete:
        """Delete the flow as it was read."""
        return Delete(key, record.head.revision, record.head)


@frozen
class TagFlow:
    """Set some tags of a flow, ended or not, and remove others."""

    wanted: Pairs
    removed: frozenset[str]

    def skip(self, key: Key, head: Head, now_ms: int) -> Skip | None:
        """The worker of a flow that is held could not commit any more."""
        tags = self._tags(head)
        if tags == head.tags:
            return Skip("already has these tags")

        if len(tags) > MOST_TAGS:
            message = f"{key} would have {len(tags)} tags, but the limit is {MOST_TAGS}"
            error = UsageError(f"{message}; nothing was written")
            return Skip(f"would have more than {MOST_TAGS} tags", error)

        return _held(key, head) if is_held(head, now_ms) else None

    def change(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Put | Delete:
        """Change nothing but the tags."""
        head = _next(record.head, now_ms)._replace(tags=self._tags(record.head))
        return _put(key, record, head, record.body)

    def _tags(self, head: Head) -> Pairs:
        kept = {name: text for name, text in head.tags if name not in self.removed}
        return tuple(sorted((kept | dict(self.wanted)).items()))


def _is_due(head: Head, now_ms: int) -> bool:
    return head.due_ms is not None and head.due_ms <= now_ms


def _next(old: Head, now_ms: int) -> Head:
    return old._replace(version=old.version + 1, updated_ms=now_ms)


def _due_now(old: Head, now_ms: int) -> Head:
    return _next(old, now_ms)._replace(owner=None, claim=None, due_ms=now_ms)


def _put(key: Key, record: Record, head: Head, body: bytes) -> Put:
    old = record.head
    return Put(key, head, body, old.revision, old, keeps_body=body is record.body)


def _refused(key: Key, head: Head, done: str) -> Skip:
    status = FlowStatus(head.status)
    message = f"{key} is {status.name}, so it cannot be {done}; nothing was written"
    error = FlowStatusError(message, flow_id=key.id, status=status.name, actual=head.version)
    return Skip(f"is {status.name}", error)


def _held(key: Key, head: Head) -> Skip:
    advice = "try again after that time, or release the flow first"
    return Skip("is claimed", claimed_error(key.id, head, "nothing was written", advice))


# --- one flow -----------------------------------------------------------------------------------


def act_on_flow(
    context: Context, action: Action, flow_id: str, *, version: int | None = None
) -> Conversation[FlowSummary]:
    """Act on one flow, whichever version it has, or only on this one; returns what it is then."""
    key = flow_key(check_id(flow_id, "a flow id"))
    check_version(version)
    attempt = 0
    while True:
        attempt += 1
        (record,) = yield from ask(Read((key,), context.settings.now_ms()))
        if record is None:
            raise not_found(flow_id)

        if version not in (None, record.head.version):
            raise _stale(key, version or 0, record.head)

        stopped, head = yield from act(context, action, key, record)
        if head is not None:
            return envelope.summary_of(Found(key, head))

        if isinstance(stopped, Skip):
            if stopped.error is not None:
                raise stopped.error

            return envelope.summary_of(Found(key, record.head))

        if stopped is not None and (version is not None or attempt == ATTEMPTS):
            raise stopped


def act(
    context: Context, action: Action, key: Key, record: Record
) -> Conversation[tuple[Skip | ConflictError | None, Head | None]]:
    """Carry out an action on what was read.

    Returns why nothing was written, or `None` and the new head; a flow that was deleted has its last one.
    """
    now_ms = context.settings.now_ms()
    skip = action.skip(key, record.head, now_ms)
    if skip is not None:
        return skip, None

    planned = action.change(key, record, now_ms, context.limits)
    reply = yield from commits.send(context, new_commit_id(), now_ms, (planned,))
    if isinstance(reply, Refused):
        return conflict_error(planned, reply.conflicts[0], None), None

    if isinstance(planned, Delete):
        return None, record.head

    return None, planned.head._replace(revision=reply.outcomes[0].revision)


def check_reason(reason: object) -> str:
    """Return the reason of a cancellation; `UsageError` unless it is text that can be stored."""
    try:
        if isinstance(reason, str):
            reason.encode()
            return str.__str__(reason)

        wrong = ""
    except UnicodeEncodeError as error:
        wrong = f": {error}"

    message = f"reason: expected a str, got {shown(reason)}{wrong}"
    raise UsageError(message)


def _stale(key: Key, version: int, head: Head) -> StaleFlowError:
    message = (
        f"{key}: expected version {version}, but the store holds version {head.version}, so "
        "nothing was written; read the flow again"
    )
    return StaleFlowError(message, flow_id=key.id, expected=version, actual=head.version)
