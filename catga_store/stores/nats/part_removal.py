"""How parts are removed by prefix: in batches with a log of their own, so that their number is exact.

A batch changes the directory and removes the messages of the parts, which are not read. One whose reply
was lost is found by its log, or sent again under the same id: the server takes it once.
"""

from __future__ import annotations

import json

from attrs import evolve

from catga_store.errors import StoreUnavailableError
from catga_store.protocol import rules
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import log_of
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import part_key
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import RemoveParts
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.changes import NatsChanges
from catga_store.stores.nats.layout import entry_of
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.outcomes import given_up
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.tables import NatsTables

__all__ = ["NatsPartRemover"]

_AT_ONCE = 200
"""Parts in one batch, which may have two messages of each and some of the directory."""


class NatsPartRemover:
    """Removes parts by prefix."""

    def __init__(self, reader: NatsReader, changes: NatsChanges) -> None:
        self._reader = reader
        self._layout = reader.layout
        self._exchange = reader.exchange
        self._planner = changes.planner
        self._sender = changes.sender

    def remove(self, request: RemoveParts) -> Conversation[int]:
        """`RemoveParts`."""
        removed = 0
        while removed < request.limit:
            most = min(request.limit - removed, _AT_ONCE)
            count = yield from self._remove(evolve(request, limit=most))
            removed += count
            if count < most:
                break

        return removed

    def _remove(self, request: RemoveParts) -> Conversation[int]:
        commit_id = new_commit_id()
        deadline = self._exchange.deadline()
        keys = (flow_key(request.flow_id),)
        lost: ReplyLostError | None = None
        try:
            while True:
                try:
                    count = yield from self._batch(
                        commit_id, request, deadline, again=lost is not None
                    )
                except ReplyLostError as error:
                    lost, count = error, None

                if count is not None:
                    return count

                if deadline.has_passed():
                    raise given_up(commit_id, keys, lost, deadline)

                yield deadline.pause()
        except StoreUnavailableError as error:
            if lost is None:
                raise

            raise given_up(commit_id, keys, lost, deadline) from error

    def _batch(
        self, commit_id: str, request: RemoveParts, deadline: Deadline, *, again: bool
    ) -> Conversation[int | None]:
        """Remove some; return how many, `None` if something was written meanwhile."""

        def decide(tables: NatsTables) -> int:
            tables.read_all(_keys_of_entries(tables, request))
            return rules.remove_parts(tables, request)

        keys = flow_key(request.flow_id), root_of(request.flow_id)
        subjects = map(self._layout.subject, keys)
        count, tables = yield from self._reader.decide(decide, subjects, deadline, commit_id)
        if again:  # the log is read last, as by a commit
            log = self._layout.log(commit_id)
            logged = yield from self._exchange.fetch([log], deadline)
            text = logged[log].text
            if text is not None:
                return int(json.loads(text)["removed"])

        writes = tables.writes()
        if not writes:
            return count

        checks = self._planner.checks_of_parts(commit_id, tables, writes)
        plan = self._planner.plan(commit_id, writes, checks, tables.epoch)
        self._planner.tidy(plan, tables)
        ack = yield from self._sender.send(
            plan, [self._planner.count_log(commit_id, count)], deadline
        )
        return count if ack.sequence and not ack.duplicate else None


def _keys_of_entries(tables: NatsTables, request: RemoveParts) -> list[Key]:
    """What remembers the keys of entries of logs that are removed."""
    wanted = Parts(
        request.flow_id,
        request.prefix,
        after=None,
        before=request.before,
        reverse=False,
        limit=request.limit,
        bodies=False,
        now_ms=request.now_ms,
        entries=request.entries,
    )
    found: list[Key] = []
    for part in rules.parts(tables, wanted):
        logged = log_of(part_key(request.flow_id, part.name)) if part.head.position else None
        if logged is not None:
            found.append(entry_of(request.flow_id, logged[0], part.head.position))

    return found
