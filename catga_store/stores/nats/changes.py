"""Changes without a commit of the user's: `Extend`, and the removal of what has expired.

Each is read, decided and written until nothing came in between, and may be done twice.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from typing import TypeVar

from catga_store.errors import StoreUnavailableError
from catga_store.protocol import rules
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import Sweep
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.messages import Planner
from catga_store.stores.nats.outcomes import given_up
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.removing import NatsRemover
from catga_store.stores.nats.resolving import NatsResolver
from catga_store.stores.nats.sending import NatsSender
from catga_store.stores.nats.tables import NatsTables
from catga_store.stores.nats.tables import Write

__all__ = ["NatsChanges"]

T = TypeVar("T")


class NatsChanges:
    """Changes records by rules of the store's own."""

    def __init__(self, reader: NatsReader, resolver: NatsResolver) -> None:
        self.layout = reader.layout
        self.exchange = reader.exchange
        self._reader = reader
        self._resolver = resolver
        self.planner = Planner(self.layout, self.exchange)
        self.sender = NatsSender(self.layout, self.exchange, self.planner)
        self.remover = NatsRemover(self.exchange, self.planner)

    def change(
        self,
        rule: Callable[[NatsTables], T],
        keys: Iterable[Key],
        commit_id: str,
        *also: Key,
    ) -> Conversation[T]:
        """Read, decide, write, again until nothing came in between: for what may be done twice.

        `also`: what will be read, too.

        `CommitUncertainError` if it may have been written.
        """
        keys = tuple(keys)
        deadline = self.exchange.deadline()
        subjects = [self.layout.subject(key) for key in (*keys, *also)]
        lost: ReplyLostError | None = None
        try:
            while True:
                result, tables = yield from self._reader.decide(rule, subjects, deadline, commit_id)
                writes = tables.writes()
                if not writes:
                    if lost is not None:
                        yield from self._resolver.complete_index(keys, deadline)

                    return result

                try:
                    if (yield from self._write(commit_id, writes, tables, deadline)):
                        return result
                except ReplyLostError as error:
                    lost = error

                if deadline.has_passed():
                    raise given_up(commit_id, keys, lost, deadline)

                yield deadline.pause()
        except StoreUnavailableError as error:
            if lost is None:
                raise

            raise given_up(commit_id, keys, lost, deadline) from error

    def _write(
        self, commit_id: str, writes: list[Write], tables: NatsTables, deadline: Deadline
    ) -> Conversation[bool]:
        """Write what was decided, in one commit; `False` if there is more to be done, or it raced."""
        steps = self.remover.arrange(commit_id, writes, None).first
        if steps:
            yield from self.remove_steps(commit_id, steps, tables, deadline)
            return False

        checks = self.planner.checks_of_parts(commit_id, tables, writes)
        plan = self.planner.plan(commit_id, writes, checks, tables.epoch)
        self.planner.tidy(plan, tables)
        plan.records[0][1].headers["Nats-Msg-Id"] = commit_id
        ack = yield from self.sender.send(plan, [], deadline)
        return bool(ack.sequence)

    def remove_expired(self, key: Key, request: Sweep) -> Conversation[int]:
        """Remove a record that has expired, with all that belongs to it; returns 1, or 0 if it has not."""
        name = new_commit_id()

        root = root_of(key.id)

        def remove(tables: NatsTables) -> int:
            named = root if key.kind == PART else key
            if tables.stored(named).removed_by == name:
                return 1  # by a try whose reply was lost

            if key.kind == PART:
                expires_ms = tables.parts_of_flows.expires_ms(key.id)
            else:
                row = tables.wait(key) if key.kind == WAIT else None
                head = row.head if row is not None else None
                head = tables.head(key) if key.kind == FLOW else head
                expires_ms = None if head is None else head.expires_ms

            if expires_ms is None or expires_ms > request.now_ms:
                return 0

            tables.expiring = (key,)
            return rules.sweep(tables, request)

        keys = [flow_key(key.id)] if key.kind == PART else [key]
        also = () if key.kind == WAIT else (root,)
        return (yield from self.change(remove, keys, name, *also))

    def remove_steps(
        self, commit_id: str, steps: list[Write], tables: NatsTables, deadline: Deadline
    ) -> Conversation[None]:
        """Remove progress of flows that are as they were read; see `NatsRemover.remove`."""
        owners = {flow_key(step.key.id) for step in steps}
        flows = {owner: tables.stored(owner).sequence for owner in owners}
        yield from self.remover.remove(commit_id, steps, flows, tables.epoch, deadline)
