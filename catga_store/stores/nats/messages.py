"""The messages of a commit: records with their expected sequences, checks, index entries, the log.

Nothing here asks the server. The order of the messages is in `sending`.
"""

from __future__ import annotations

import json
from typing import Any
from typing import NamedTuple

from attrs import evolve

from catga_store.errors import RecordTooLargeError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Head
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.part_text import encode_part
from catga_store.stores.nats.record_text import VERSION
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import WaitRecord
from catga_store.stores.nats.record_text import encode_item
from catga_store.stores.nats.record_text import encode_record
from catga_store.stores.nats.record_text import encode_wait
from catga_store.stores.nats.tables import NatsTables
from catga_store.stores.nats.tables import Write
from catga_store.stores.nats.transport import Message

__all__ = ["EXPECTED", "MessagePlan", "Planner"]

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"

_HEAD_BYTES = 96 * 1024  # of a message are left to the head
_LONG_BYTES = 32 * 1024
_LOG_SECONDS = 600


class MessagePlan(NamedTuple):
    """The messages of one commit: records, each with its key, what goes before them, and purges."""

    records: list[tuple[Key, Message]]
    checks: list[Message]
    entries: list[Message]
    purges: list[tuple[str, bool]]
    """What is in the way afterwards: a filter, and whether only before the commit."""
    epoch: int = 0
    """The connection over which the expected sequences were read."""

    def places(self) -> dict[Key, int]:
        """How far behind the log of the commit each record lies."""
        first = 1 + len(self.checks) + len(self.entries)
        return {key: place for place, (key, _) in enumerate(self.records, start=first)}


class Planner:
    """Makes the messages of commits."""

    def __init__(self, layout: NatsLayout, exchange: NatsExchange) -> None:
        self.layout = layout
        self.exchange = exchange

    def most(self) -> int:
        """How many bytes of a body one message holds beside a head."""
        return max(self.exchange.max_payload - _HEAD_BYTES, 4096)

    def most_of_head(self) -> int:
        """How many bytes the fields of a head may have that are not limited otherwise."""
        return min(_LONG_BYTES, self.exchange.max_payload // 4)

    def most_of_item(self) -> int:
        """How many bytes of a payload one message holds; as JSON they may take six times as many."""
        return self.exchange.max_payload // 8

    def message(self, key: Key, text: bytes, expected: int) -> Message:
        if len(text) > self.exchange.max_payload - 2048:
            message = (
                f"the head of {key} is {len(text)} bytes long, but the server accepts at most "
                f"{self.exchange.max_payload} bytes in one message, so nothing was written; raise "
                "max_payload on the server"
            )
            raise RecordTooLargeError(message, size=len(text), limit=self.exchange.max_payload)

        headers = {EXPECTED: str(expected)} if expected >= 0 else {}
        return Message(self.layout.subject(key), text, headers)

    def checks(self, request: Commit, tables: NatsTables, writes: list[Write]) -> list[Message]:
        """Checks of what the commit depends on and does not write."""
        return self._checks(request.id, self.dependencies(request, tables, writes))

    def checks_of_parts(
        self, commit_id: str, tables: NatsTables, writes: list[Write]
    ) -> list[Message]:
        """Checks of what changed parts depend on, where no commit of a user changes them."""
        return self._checks(commit_id, _left(tables.parts_of_flows.checks(tables.stored), writes))

    def _checks(self, commit_id: str, wanted: dict[Key, int]) -> list[Message]:
        return [
            self.check(commit_id, number, key, sequence)
            for number, (key, sequence) in enumerate(wanted.items())
        ]

    def dependencies(
        self, request: Commit, tables: NatsTables, writes: list[Write]
    ) -> dict[Key, int]:
        """What the commit depends on and does not write, each with its sequence."""
        found: dict[Key, int] = {}
        for change in request.changes:
            if isinstance(change, Complete | Append):
                continue

            stored = tables.stored(change.key)
            if stored.text is not None:
                found[change.key] = stored.sequence

        return _left(found | tables.parts_of_flows.checks(tables.stored), writes)

    def check(self, commit_id: str, number: int, key: Key, sequence: int) -> Message:
        """A message of a batch that expects a record, which the batch does not write, at a sequence."""
        headers = {
            EXPECTED: str(sequence),
            _EXPECTED_SUBJECT: self.layout.subject(key),
            "Nats-TTL": "1s",
        }
        return Message(self.layout.check(commit_id, number), b"", headers)

    def tombstone(self, commit_id: str, key: Key, sequence: int) -> Message:
        """The message that removes a record, and says for a while which commit did."""
        message = self.message(key, commit_id.encode(), sequence)
        seconds = int(self.exchange.timeout * 2) + 1
        message.headers.update(
            {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{seconds}s"}
        )
        return message

    def log(self, plan: MessagePlan, request: Commit, reply: Applied) -> Message:
        # What was removed is forgotten after a while: a record that stays is the better witness.
        # So is one that is not purged when the parts of its flow are dropped.
        plan.records.sort(
            key=lambda record: (
                "Nats-Rollup" not in record[1].headers,
                not self.layout.belongs_to_parts(record[1].subject),
            )
        )
        places = plan.places()
        last, message = plan.records[-1]
        text = {
            "layout": VERSION,
            "outcomes": [list(outcome) for outcome in reply.outcomes],
            "places": [
                None if change.key.kind in (WAIT, PART) else places.get(change.key)
                for change in request.changes
            ],
            "length": places[last] + 1,
            "last": message.subject,
        }
        log = self.layout.log(request.id)
        payload = json.dumps(text, separators=(",", ":")).encode()
        headers = {EXPECTED: "0", "Nats-TTL": f"{_LOG_SECONDS}s", "Nats-Msg-Id": request.id}
        return Message(log, payload, headers)

    def count_log(self, commit_id: str, count: int) -> Message:
        """The log of a commit of the store's own: how many parts it removed."""
        payload = json.dumps({"layout": VERSION, "removed": count}).encode()
        headers = {EXPECTED: "0", "Nats-TTL": f"{_LOG_SECONDS}s", "Nats-Msg-Id": commit_id}
        return Message(self.layout.log(commit_id), payload, headers)

    def plan(
        self, commit_id: str, writes: list[Write], checks: list[Message], epoch: int
    ) -> MessagePlan:
        """The messages of writes that were decided over what was read on connection `epoch`."""
        plan = MessagePlan([], checks, [], [], epoch)

        for write in writes:
            before, old_body = self._traces(write.key, write.before)
            after: frozenset[str] = frozenset()
            new_body = Body()
            text: bytes | None = None
            if write.raw is not None:
                text, before, after = write.raw.text, write.raw.before, write.raw.after
            elif write.plain is not None:
                head, new_body = write.plain
                text = (
                    encode_part(write.life, write.key.name, head, new_body)
                    if write.key.kind == PART
                    else encode_record(head, new_body, moved=write.moved)
                )
                after = (
                    entries_of_flow(self.layout, write.key, head)
                    if write.key.kind == FLOW
                    else after
                )
            elif write.wait is not None:
                wait, own = self._without_bulk(commit_id, write.wait)
                plan.entries.extend(
                    Message(self.layout.item(write.key, wait.life, child), encode_item(item), {})
                    for child, item in own.items()
                )
                new_body = wait.terms
                text = encode_wait(wait)
                after = entries_of_wait(self.layout, write.key, wait.row)

            if text is None:
                message = self.tombstone(commit_id, write.key, write.stored.sequence)
            else:
                message = self.message(write.key, text, write.stored.sequence)

            plan.records.append((write.key, message))
            self.index(plan, before, after)
            if old_body.count and old_body.generation != new_body.generation:
                plan.purges.append((self.layout.chunks(write.key, old_body.generation), False))

        return plan

    def tidy(self, plan: MessagePlan, tables: NatsTables) -> None:
        """Add what is purged after a commit because its owner is gone."""
        plan.purges.extend((dropped, False) for dropped in tables.dropped)
        parts = tables.parts_of_flows
        plan.purges.extend(
            (wanted, True) for size, wanted in parts.large.values() if size > self.most()
        )
        for flow_id, life in parts.dropped.items():
            # A sweep purges again, and then removes the entry: this may be lost.
            plan.entries.append(Message(self.layout.dead(flow_id, life), b"", {}))
            plan.purges.append((self.layout.parts_of(flow_id), True))
            plan.purges.append((self.layout.pieces_of(flow_id, life), False))

    def _without_bulk(self, commit_id: str, wait: WaitRecord) -> tuple[WaitRecord, dict[str, Any]]:
        """A record that still fits, and the completions of this very commit that do not."""
        own = {child: item for child, item in wait.items.items() if item.commit == commit_id}
        if sum(len(item.payload) + 64 for item in own.values()) <= self.most_of_item():
            return wait, {}

        items = {child: item for child, item in wait.items.items() if child not in own}
        return evolve(wait, items=items, spilled=wait.spilled + len(own)), own

    def _traces(
        self, key: Key, before: tuple[Head, Body] | WaitRecord | None
    ) -> tuple[frozenset[str], Body]:
        """The index entries and the body of what was stored."""
        if isinstance(before, WaitRecord):
            return entries_of_wait(self.layout, key, before.row), before.terms

        if before is None:
            return frozenset(), Body()

        head, body = before
        return entries_of_flow(self.layout, key, head) if key.kind == FLOW else frozenset(), body

    def index(self, plan: MessagePlan, before: frozenset[str], after: frozenset[str]) -> None:
        plan.entries.extend(Message(entry, b"", {}) for entry in sorted(after - before))
        plan.purges.extend((entry, True) for entry in sorted(before - after))


def _left(wanted: dict[Key, int], writes: list[Write]) -> dict[Key, int]:
    written = {write.key for write in writes}
    return {key: sequence for key, sequence in wanted.items() if key not in written}
