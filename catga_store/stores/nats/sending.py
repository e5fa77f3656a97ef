"""How the messages of a commit reach the stream: what is too large for a record, then the commit.

One record is one publish; several messages are one atomic batch, in which the records come last. A
server that runs out of storage in the middle of a batch keeps what it had stored of it until then
(nats-server 2.15.1); whether the last record is there shows what it kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from catga_store.errors import CommitTooLargeError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import Key
from catga_store.stores.nats.answers import Ack
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.messages import EXPECTED
from catga_store.stores.nats.messages import MessagePlan
from catga_store.stores.nats.messages import Planner
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import WaitRecord
from catga_store.stores.nats.record_text import encode_item
from catga_store.stores.nats.record_text import long_fields
from catga_store.stores.nats.tables import Write
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish

__all__ = ["NatsSender", "not_written"]

_CHUNK_BYTES = 512 * 1024
_CHUNKS_AT_ONCE = 16
_TERMS_BYTES = 2 * 1024
_ITEMS_BYTES = 4 * 1024
_BATCH_MOST = 1000
_ENTRIES_AT_ONCE = 500


class NatsSender:
    """Sends planned commits."""

    def __init__(self, layout: NatsLayout, exchange: NatsExchange, planner: Planner) -> None:
        self.layout = layout
        self.exchange = exchange
        self._planner = planner

    # before the commit ----------------------------------------------------------------------------

    def upload(self, commit_id: str, writes: list[Write], deadline: Deadline) -> Conversation[None]:
        """Store what does not fit into the records, before them."""
        for place, write in enumerate(writes):
            if write.plain is not None:
                head, body = write.plain
                long = b"" if body.count else long_fields(head, self._planner.most_of_head())
                most = 0 if long else self._planner.most()
                whole = body if body.count else Body(long + body.text)
                generation = f"{write.life}.{commit_id}" if write.life else commit_id
                body = yield from self._chunked(write.key, generation, whole, most, deadline)
                body.long = len(long) or body.long
                writes[place] = write._replace(plain=(head, body))
            elif write.wait is not None:
                wait = write.wait
                terms = yield from self._chunked(
                    write.key, commit_id, wait.terms, _TERMS_BYTES, deadline
                )
                wait = evolve(wait, terms=terms)
                wait = yield from self._parted(write.key, commit_id, wait, deadline)
                wait = yield from self._spilled(write.key, commit_id, wait, deadline)
                writes[place] = write._replace(wait=wait)

    def _chunked(
        self, key: Key, generation: str, body: Body, most: int, deadline: Deadline
    ) -> Conversation[Body]:
        text = body.text
        if body.count or len(text) <= most:
            return body

        size = min(_CHUNK_BYTES, self._planner.most())
        starts = range(0, len(text), size)
        messages = [
            Message(self.layout.chunk(key, generation, number), text[at : at + size], {})
            for number, at in enumerate(starts)
        ]
        for start in range(0, len(messages), _CHUNKS_AT_ONCE):
            yield from self.exchange.surely(messages[start : start + _CHUNKS_AT_ONCE], deadline)

        return Body(b"", generation, len(messages), len(text))

    def _parted(
        self, key: Key, commit_id: str, wait: WaitRecord, deadline: Deadline
    ) -> Conversation[WaitRecord]:
        """The payloads of completions of this commit go before it, where they are too large for it."""
        most = self._planner.most_of_item()
        items = dict(wait.items)
        for child, item in wait.items.items():
            if item.commit != commit_id or len(item.payload) <= most:
                continue

            starts = range(0, len(item.payload), most)
            items[child] = parted = item._replace(payload=b"", parts=len(starts))
            subjects = self.layout.item_parts(key, wait.life, child, parted)
            yield from self.exchange.surely(
                [
                    Message(subject, item.payload[at : at + most], {})
                    for subject, at in zip(subjects, starts, strict=True)
                ],
                deadline,
            )

        return evolve(wait, items=items)

    def _spilled(
        self, key: Key, commit_id: str, wait: WaitRecord, deadline: Deadline
    ) -> Conversation[WaitRecord]:
        """Completions that are too many for the record go into messages of their own.

        Only such as are counted already: a message of its own is there for good.
        """
        if sum(len(item.payload) + 64 for item in wait.items.values()) <= _ITEMS_BYTES:
            return wait

        counted = {child: item for child, item in wait.items.items() if item.commit != commit_id}
        messages = [
            Message(self.layout.item(key, wait.life, child), encode_item(item), {})
            for child, item in counted.items()
        ]
        if messages:
            yield from self.exchange.surely(messages, deadline)

        items = {child: item for child, item in wait.items.items() if child not in counted}
        return evolve(wait, items=items, spilled=wait.spilled + len(counted))

    # the commit -----------------------------------------------------------------------------------

    def send(
        self, plan: MessagePlan, head: Sequence[Message], deadline: Deadline
    ) -> Conversation[Ack]:
        """Send a commit once; the sequence is that of its first record."""
        records = [message for _, message in plan.records]
        several = len(head) + len(plan.checks) + len(records) > 1
        atomic = several or (self.exchange.leader and bool(plan.entries))
        bulk = any(message.payload for message in plan.entries)
        if atomic or bulk:
            messages = yield from self._batch(plan, head, deadline, may_split=not bulk)
            (ack,) = yield from self._sent(messages, plan.epoch, atomic=True)
            if ack.in_part:
                ack = yield from self._what_is_there(messages, ack, deadline)

            if ack.refusal is not None:
                raise ack.refusal

            if ack.sequence:
                ack = ack._replace(sequence=ack.sequence - len(records) + 1)
        else:
            # Entries first: an entry without a record is passed over, a record without an entry is lost.
            *entries, ack = yield from self._sent(
                [*plan.entries, *records], plan.epoch, atomic=False
            )
            if ack.refusal is not None:
                raise ack.refusal

            if ack.sequence:
                unsure = [
                    message
                    for message, one in zip(plan.entries, entries, strict=True)
                    if not one.sequence
                ]
                yield from self._add(unsure, deadline)
            else:
                self.exchange.doubt(message.subject for message in plan.entries)

        deadline.says(ack)
        if ack.sequence and not ack.duplicate:
            yield from self.exchange.forget(
                [
                    (wanted, ack.sequence if only_before else None)
                    for wanted, only_before in plan.purges
                ]
            )

        return ack

    def send_alone(self, message: Message, epoch: int, deadline: Deadline) -> Conversation[Ack]:
        """`send` for what most commits are: one record, with nothing before or after it."""
        try:
            (answer,) = yield Publish(
                (self.exchange.addressed(message),), atomic=False, epoch=epoch
            )
        except NotSentError as error:
            raise not_written(error) from error

        ack = self.exchange.ack(answer)
        if ack.refusal is not None:
            raise ack.refusal

        deadline.says(ack)
        return ack

    def _what_is_there(
        self, messages: Sequence[Message], ack: Ack, deadline: Deadline
    ) -> Conversation[Ack]:
        """What a server has kept of a batch in which it ran out of storage, as an acknowledgement.

        It stores in their order as many as it can. If the first is not there, nothing is, and if the
        last is, all. In between the caller looks for the log of the commit, as after a lost reply.
        """
        first, last = messages[0], messages[-1]
        try:
            found = yield from self.exchange.fetch([first.subject, last.subject], deadline)
        except StoreUnavailableError as error:
            raise ReplyLostError(str(error)) from error

        if found[last.subject].text == last.payload:
            return Ack(found[last.subject].sequence)

        if found[first.subject].text == first.payload and EXPECTED in first.headers:
            raise ReplyLostError(ack.text)

        return ack

    def _batch(
        self, plan: MessagePlan, head: Sequence[Message], deadline: Deadline, *, may_split: bool
    ) -> Conversation[list[Message]]:
        """The messages of a batch; where they are too many, its entries are written before.

        Entries are hints: those of a commit that is refused are passed over.
        """
        before, records = [*head, *plan.checks], [message for _, message in plan.records]
        entries = plan.entries
        if may_split and len(before) + len(entries) + len(records) > _BATCH_MOST:
            entries = []

        messages = [*before, *entries, *records]
        if len(messages) > _BATCH_MOST:
            text = (
                f"this commit needs {len(messages)} messages, but NATS accepts at most "
                f"{_BATCH_MOST} in one batch, so nothing was written; split it into several "
                "commits"
            )
            raise CommitTooLargeError(text, size=len(messages), limit=_BATCH_MOST)

        if not entries:
            self.exchange.doubt(message.subject for message in plan.entries)
            yield from self._add_before(plan.entries, deadline)

        return messages

    def _add_before(self, entries: list[Message], deadline: Deadline) -> Conversation[None]:
        """Write entries before the commit that they are of."""
        for start in range(0, len(entries), _ENTRIES_AT_ONCE):
            some = entries[start : start + _ENTRIES_AT_ONCE]
            yield from self.exchange.surely(some, deadline)

    def _add(self, entries: list[Message], deadline: Deadline) -> Conversation[None]:
        """Add entries that were refused though their record was written, or their outcome is lost."""
        if entries:
            try:
                yield from self.exchange.surely(entries, deadline)
            except StoreUnavailableError as error:
                message = f"the record was written, but its index entries may be missing: {error}"
                raise ReplyLostError(message) from error

    def _sent(
        self, messages: list[Message], epoch: int, *, atomic: bool
    ) -> Conversation[list[Ack]]:
        try:
            return (yield from self.exchange.publish_apart(messages, atomic=atomic, epoch=epoch))
        except NotSentError as error:
            raise not_written(error) from error


def not_written(error: NotSentError) -> StoreUnavailableError:
    """The error of a commit that never left."""
    return StoreUnavailableError(f"{error}; nothing was written")
