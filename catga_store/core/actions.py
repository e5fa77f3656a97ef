"""What an operator does to a flow: cancel, retry, wake, release or purge it.

An action plans one change of one flow from what is stored, or says why it leaves the flow as it is. It
reads heads only, so a flow whose state cannot be read, or has a type this program does not know, can be
cancelled, too.
"""

from __future__ import annotations

from typing import Protocol
from typing import TypeAlias

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
    "Action",
    "CancelFlow",
    "PurgeFlow",
    "ReleaseFlow",
    "RetryFlow",
    "Skip",
    "WakeFlow",
    "act",
    "act_on_flow",
    "check_reason",
]

_ATTEMPTS = 10
"""How often an action on one flow is planned again after another writer was first."""


@frozen
class Skip:
    """Why a flow is left as it is; without an error it is as the action would leave it."""

    reason: str
    error: ConflictError | None = None


Planned: TypeAlias = Put | Delete | Skip


class Action(Protocol):
    """Plans what is to be written of a flow. Pure."""

    def plan(self, key: Key, record: Record, now_ms: int, limits: Limits, /) -> Planned:
        """The change of this flow, or why there is none."""
        ...


@frozen
class CancelFlow:
    """End a live flow as `CANCELLED`, claimed or not."""

    reason: str

    def plan(self, key: Key, record: Record, now_ms: int, limits: Limits) -> Planned:
        """End the flow; what it shows of its wait stays."""
        old, body = record.head, record.body
        if old.status == FlowStatus.CANCELLED.value:
            return _already(old)

        if is_terminal(old):
            return _refused(key, old, "cancelled")

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

    def plan(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Planned:
        """Set the flow running, unless it is live already."""
        old, body = record.head, record.body
        if old.status == FlowStatus.COMPLETED.value:
            return _refused(key, old, "retried")

        if is_held(old, now_ms):
            return _held(key, old)

        if not is_terminal(old):
            if not old.attempts and _is_due(old, now_ms):
                return Skip("is due already, and was not attempted")

            return _put(key, record, _due_now(old, now_ms)._replace(attempts=0, error=None), body)

        expires_ms = None
        if envelope.has_own_expiry(body):
            expires_ms = old.expires_ms
            body = envelope.body_with_own_expiry(key, old, body, own_expiry=False)

        head = _due_now(old, now_ms)._replace(
            status=FlowStatus.RUNNING.value, error=None, attempts=0, expires_ms=expires_ms
        )
        return _put(key, record, head, body)


@frozen
class WakeFlow:
    """Let a live flow be due now, whatever it waits for."""

    def plan(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Planned:
        """Change nothing but when the flow is due."""
        old = record.head
        if is_terminal(old):
            return _refused(key, old, "woken")

        if is_held(old, now_ms):
            return _held(key, old)

        if _is_due(old, now_ms):
            return Skip("is due already")

        return _put(key, record, _due_now(old, now_ms), record.body)


@frozen
class ReleaseFlow:
    """Take a claim away from its owner, whether its lease is over or not."""

    def plan(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Planned:
        """End the claim; the flow is due now."""
        old = record.head
        if is_terminal(old):
            return _refused(key, old, "released")

        if old.owner is None:
            return Skip("is not claimed")

        return _put(key, record, _due_now(old, now_ms), record.body)


@frozen
class PurgeFlow:
    """Delete a flow that has ended, or, with `live`, any that is not claimed."""

    live: bool = False

    def plan(self, key: Key, record: Record, now_ms: int, _limits: Limits) -> Planned:
        """Delete the flow as it was read."""
        old = record.head
        if not is_terminal(old):
            if not self.live:
                return _refused(key, old, "purged without live=True")

            if is_held(old, now_ms):
                return _held(key, old)

        return Delete(key, old.revision, old)


def _is_due(head: Head, now_ms: int) -> bool:
    return head.due_ms is not None and head.due_ms <= now_ms


def _next(old: Head, now_ms: int) -> Head:
    return old._replace(version=old.version + 1, updated_ms=now_ms)


def _due_now(old: Head, now_ms: int) -> Head:
    return _next(old, now_ms)._replace(owner=None, claim=None, due_ms=now_ms)


def _put(key: Key, record: Record, head: Head, body: bytes) -> Put:
    old = record.head
    return Put(key, head, body, old.revision, old, keeps_body=body is record.body)


def _already(head: Head) -> Skip:
    return Skip(f"is {FlowStatus(head.status).name} already")


def _refused(key: Key, head: Head, done: str) -> Skip:
    status = FlowStatus(head.status)
    message = f"{key} is {status.name}, so it cannot be {done}; nothing was written"
    error = FlowStatusError(message, flow_id=key.id, status=status.name, actual=head.version)
    return Skip(f"is {status.name}", error)


def _held(key: Key, head: Head) -> Skip:
    return Skip("is claimed", claimed_error(key.id, head))


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

        planned, head = yield from act(context, action, key, record)
        if head is not None:
            return envelope.summary_of(Found(key, head))

        if isinstance(planned, Skip):
            if planned.error is not None:
                raise planned.error

            return envelope.summary_of(Found(key, record.head))

        if isinstance(planned, ConflictError) and (version is not None or attempt == _ATTEMPTS):
            raise planned


def act(
    context: Context, action: Action, key: Key, record: Record
) -> Conversation[tuple[Skip | ConflictError | None, Head | None]]:
    """Carry out an action on what was read.

    Returns why nothing was written, or `None` and the new head; a flow that was deleted has its last one.
    """
    now_ms = context.settings.now_ms()
    planned = action.plan(key, record, now_ms, context.limits)
    if isinstance(planned, Skip):
        return planned, None

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

    message = f"reason must be text, not {shown(reason)}{wrong}"
    raise UsageError(message)


def _stale(key: Key, version: int, head: Head) -> StaleFlowError:
    message = (
        f"{key} was expected at version {version} but the store holds version {head.version}; nothing"
        " was written"
    )
    return StaleFlowError(message, flow_id=key.id, expected=version, actual=head.version)
