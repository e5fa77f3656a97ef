"""How a flow with many progress records is removed: in bounded steps, since a batch is bounded.

A flow that is deleted is first written as one that has expired: that single message removes it and
all that belongs to it for every reader. Its progress records then go in batches, each of which
expects that the flow was not written again, and the flow last. Whatever is interrupted there is
finished by a later sweep.
"""

from __future__ import annotations

from typing import NamedTuple

from catga_store.errors import CommitTooLargeError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import Head
from catga_store.protocol.rules.expiry import has_expired
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.messages import Planner
from catga_store.stores.nats.outcomes import GONE_MS
from catga_store.stores.nats.tables import Write

__all__ = ["NatsRemover", "Removal"]

_MOST_STEPS = 400
"""The most progress records that one commit removes with their flows, or one batch without."""


class Removal(NamedTuple):
    """What is written instead of a commit that removes too many records for one batch."""

    writes: list[Write]
    """What is left of the commit."""
    postponed: list[Key]
    """Flows that are expired by it and removed after it."""
    first: list[Write]
    """Progress of flows that have expired: it goes before the commit is decided."""


class NatsRemover:
    """Removes progress records in bounded batches."""

    def __init__(self, exchange: NatsExchange, planner: Planner) -> None:
        self._exchange = exchange
        self._planner = planner

    def arrange(self, commit_id: str, writes: list[Write], now_ms: int | None) -> Removal:
        """Say what a commit writes, what it postpones, and what must go first.

        `now_ms` is `None` where only flows are removed that have expired.
        """
        steps = [write for write in writes if _removes_step(write)]
        if len(steps) <= _MOST_STEPS:
            return Removal(writes, [], [])

        owners = {step.key.id for step in steps}
        flows = {w.key.id: w for w in writes if w.key.kind == FLOW and w.key.id in owners}
        deleted = {name: w for name, w in flows.items() if _deletes_live(w, now_ms)}
        first = [step for step in steps if step.key.id in flows and step.key.id not in deleted]
        for step in first:
            _check_not_replaced(flows[step.key.id], len(first), now_ms)

        left: list[Write] = []
        for write in writes:
            if write.key.kind == FLOW and write.key.id in deleted:
                left.append(_expired(commit_id, write))
            elif not (_removes_step(write) and write.key.id in deleted):
                left.append(write)

        return Removal(left, [write.key for write in deleted.values()], first)

    def remove(
        self,
        commit_id: str,
        steps: list[Write],
        flows: dict[Key, int],
        epoch: int,
        deadline: Deadline,
    ) -> Conversation[None]:
        """Remove progress records, as long as their flows lie at these sequences.

        Returns also where one does not, or where a reply was lost: the caller reads again.
        """
        for start in range(0, len(steps), _MOST_STEPS):
            some = steps[start : start + _MOST_STEPS]
            owners = dict.fromkeys(Key(FLOW, step.key.id) for step in some)
            messages = [
                self._planner.check(commit_id, number, owner, flows[owner])
                for number, owner in enumerate(owners)
            ]
            messages += [
                self._planner.tombstone(commit_id, step.key, step.stored.sequence) for step in some
            ]
            try:
                (ack,) = yield from self._exchange.publish_apart(messages, atomic=True, epoch=epoch)
            except NotSentError as error:
                message = f"{error}; nothing was written"
                raise StoreUnavailableError(message) from error
            except ReplyLostError:
                return

            if ack.refusal is not None:
                raise ack.refusal

            if not ack.sequence or deadline.has_passed():
                return


def _removes_step(write: Write) -> bool:
    return write.key.kind == PROGRESS and write.plain is None


def _deletes_live(write: Write, now_ms: int | None) -> bool:
    if now_ms is None or write.plain is not None or not isinstance(write.before, tuple):
        return False

    return not has_expired(write.before[0], now_ms)


def _check_not_replaced(write: Write, steps: int, now_ms: int | None) -> None:
    """Refuse to replace a live flow: its progress would go before the commit, which may be refused."""
    if now_ms is None or write.plain is None or not isinstance(write.before, tuple):
        return

    if not has_expired(write.before[0], now_ms):
        message = (
            f"{write.key} has {steps} progress records, but one NATS batch can replace a flow "
            f"with at most {_MOST_STEPS}, so nothing was written; delete the flow in a separate "
            "commit, then add it again"
        )
        raise CommitTooLargeError(message, size=steps, limit=_MOST_STEPS)


def _expired(commit_id: str, write: Write) -> Write:
    """The same flow, expired at all times."""
    assert isinstance(write.before, tuple)  # noqa: S101  for the type checker: see `_deletes_live`
    head, body = write.before
    gone: Head = head._replace(due_ms=None, expires_ms=GONE_MS).stamped(
        commit_id, (commit_id, *head.commits[: REMEMBERED_COMMITS - 1])
    )
    return write._replace(plain=(gone, body))
