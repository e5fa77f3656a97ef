"""How the NATS store writes: what was decided becomes messages, each with its expected sequence.

One record is one publish; several, and whatever a commit of several changes has read, are one
atomic batch. The batch begins with the log of the commit, expected to be absent: so no commit is
applied twice, and one that was given up never. It ends with its records: a server that runs out of
storage in the middle of a batch keeps what it had stored of it until then (nats-server 2.15.1), and
whether the last record is there tells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from itertools import repeat
from typing import Any
from typing import NamedTuple
from typing import TypeVar

from attrs import evolve

from catga_store.errors import CommitTooLargeError
from catga_store.errors import CommitUncertainError
from catga_store.errors import CorruptRecordError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import began_s
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import SATISFIED
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import SetWait
from catga_store.protocol.requests import Terms
from catga_store.stores import embedded
from catga_store.stores.nats.exchange import Ack
from catga_store.stores.nats.exchange import Deadline
from catga_store.stores.nats.exchange import Exchange
from catga_store.stores.nats.layout import VERSION
from catga_store.stores.nats.layout import Body
from catga_store.stores.nats.layout import Layout
from catga_store.stores.nats.layout import Stored
from catga_store.stores.nats.layout import WaitRecord
from catga_store.stores.nats.layout import decode_record
from catga_store.stores.nats.layout import encode_item
from catga_store.stores.nats.layout import encode_record
from catga_store.stores.nats.layout import encode_wait
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entries_of_wait
from catga_store.stores.nats.layout import revision_at
from catga_store.stores.nats.layout import sequence_of
from catga_store.stores.nats.tables import NatsTables
from catga_store.stores.nats.tables import Snapshot
from catga_store.stores.nats.tables import UnreadError
from catga_store.stores.nats.tables import Write
from catga_store.stores.nats.transport import Message
from catga_store.stores.nats.transport import Publish

__all__ = ["Commits"]

K = TypeVar("K")
T = TypeVar("T")

_CHUNK_BYTES = 512 * 1024
_CHUNKS_AT_ONCE = 16
_HEAD_BYTES = 96 * 1024  # of a message are left to the head
_TERMS_BYTES = 2 * 1024
_ITEMS_BYTES = 4 * 1024
_OWN_ITEMS_BYTES = 512 * 1024
_BATCH_MOST = 1000
_LOG_SECONDS = 600
_FENCE_SECONDS = 660  # longer than the server remembers the id
_KEPT = 10_000
_CLEARING = "clear-"

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"


class _Known(NamedTuple):
    """What this process knows of a record that it wrote, or whose chunks it read, by revision."""

    commits: tuple[str, ...]
    generation: str


_UNKNOWN = _Known((), "")


class _Plan(NamedTuple):
    """The messages of one commit: records, each with its key, what goes before them, and purges."""

    records: list[tuple[Key, Message]]
    checks: list[Message]
    entries: list[Message]
    purges: list[tuple[str, bool]]
    """What is in the way afterwards: a filter, and whether only before the commit."""

    def places(self) -> dict[Key, int]:
        """How far behind the log of the commit each record lies."""
        first = 1 + len(self.checks) + len(self.entries)
        return {key: place for place, (key, _) in enumerate(self.records, start=first)}


class Commits:
    """Decides and writes commits."""

    def __init__(self, layout: Layout, exchange: Exchange) -> None:
        self.layout = layout
        self.exchange = exchange
        self._known: dict[str, _Known] = {}
        self._terms: dict[str, bytes] = {}
        self._lives: dict[Key, str] = {}

    # reading and deciding -------------------------------------------------------------------------

    def decide(
        self,
        rule: Callable[[NatsTables], T],
        subjects: Iterable[str],
        deadline: Deadline,
        commit_id: str = "",
    ) -> Conversation[tuple[T, NatsTables]]:
        """Run a rule over what it needs, read as it asks for it."""
        snapshot = Snapshot(bodies=dict(self._terms))
        snapshot.stored |= yield from self.exchange.fetch(subjects, deadline)

        while True:
            tables = NatsTables(self.layout, snapshot, commit_id)
            try:
                return rule(tables), tables
            except UnreadError as unread:
                missing = unread

            yield from self._fill(snapshot, missing, deadline)

    def _fill(
        self, snapshot: Snapshot, missing: UnreadError, deadline: Deadline
    ) -> Conversation[None]:
        snapshot.stored |= yield from self.exchange.fetch(missing.subjects, deadline)
        if missing.filters:
            found = yield from self.exchange.names(missing.filters, deadline)
            snapshot.listed |= dict(zip(missing.filters, found, strict=True))

        if missing.body is not None:
            yield from self._fill_body(snapshot, *missing.body, deadline)

    def _fill_body(
        self, snapshot: Snapshot, key: Key, body: Body, deadline: Deadline
    ) -> Conversation[None]:
        chunks = [self.layout.chunk(key, body.generation, number) for number in range(body.count)]
        parts: list[bytes] = []

        for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
            some = chunks[start : start + _CHUNKS_AT_ONCE]
            found = yield from self.exchange.fetch(some, deadline)
            parts += [found[chunk].text or b"" for chunk in some]

        text = b"".join(parts)
        if len(text) == body.size:
            snapshot.bodies[body.generation] = text
            record = snapshot.stored[self.layout.subject(key)]
            if key.kind == WAIT:
                _keep(self._terms, body.generation, text, 64)
            else:
                plain = decode_record(key, record)
                assert plain is not None  # noqa: S101  for the type checker: it named the chunks
                known = _Known(plain[0].commits, body.generation)
                _keep(self._known, plain[0].revision, known, _KEPT)

            return

        # Chunks go only after the head that named them: if it is still there, they are lost.
        subject = self.layout.subject(key)
        before = snapshot.stored[subject].sequence
        snapshot.stored |= yield from self.exchange.fetch([subject], deadline)
        if snapshot.stored[subject].sequence == before:
            message = f"chunks of the body of {key} are gone; what is left stays as it is"
            raise CorruptRecordError(message, key=tuple(key))

    # commits --------------------------------------------------------------------------------------

    def commit(self, request: Commit) -> Conversation[Reply]:
        """`Commit`."""
        deadline = self.exchange.deadline()
        lost: list[BaseException] = []
        reply: Reply | None = None
        try:
            try:
                reply = yield from self._commit_at_once(request, deadline)
            except ReplyLostError as error:
                lost.append(error)

            if reply is not None:
                return reply

            keys = _keys_of(request)
            reply = yield from self._until_it_is_certain(request, lost, deadline)
            if lost and isinstance(reply, Refused):
                applied = yield from self.resolve(Resolve(request.id, keys))
                if applied is None:
                    return reply

                # Nothing remembers it any more: it did what it was to do.
                return Applied(
                    applied.outcomes or tuple(map(_done, request.changes, repeat(request.id)))
                )

            if lost and len(keys) == 1:  # those of several are in its batch
                yield from self._bear_out(keys, deadline)
        except StoreConfigError as error:
            # Entries and a single record are sent together: the server may have taken the record alone.
            if len(_keys_of(request)) > 1 or not any(
                f"'{one}" in str(error) for one in self.layout.entries
            ):
                raise

            message = f"commit {request.id} may have been written, its index entries were not"
            raise StoreConfigError(f"{message}: {error}") from error
        except (StoreUnavailableError, CorruptRecordError) as error:
            if not lost:
                raise

            raise _gave_up(request.id, _keys_of(request), lost[-1], deadline) from error

        return reply

    def _until_it_is_certain(
        self, request: Commit, lost: list[BaseException], deadline: Deadline
    ) -> Conversation[Reply]:
        """Read and write until there is a reply, remembering those that were lost."""
        reply: Reply | None = None
        while reply is None:
            try:
                reply = yield from self._commit(request, deadline, again=bool(lost))
            except ReplyLostError as error:
                lost.append(error)

            if reply is None and deadline.has_passed():
                raise _gave_up(request.id, _keys_of(request), lost[-1] if lost else None, deadline)

            if reply is None:
                yield deadline.pause()

        return reply

    def _commit_at_once(self, request: Commit, deadline: Deadline) -> Conversation[Reply | None]:
        """The commit of flows without reading them; `None` if they must be read after all."""
        plan = _Plan([], [], [], [])
        heads: list[Head] = []
        for change in request.changes:
            head = None
            if isinstance(change, Put) and change.key.kind == FLOW and not change.fresh:
                head = self._put_at_once(plan, change, request)

            if head is None:
                return None

            heads.append(head)

        log: list[Message] = []
        if len(heads) > 1:
            done = [Outcome(one.version, request.id, one.status, one.created_ms) for one in heads]
            log = [self._log(plan, request, Applied(tuple(done)))]
        else:
            plan.records[0][1].headers["Nats-Msg-Id"] = request.id

        if log or plan.entries or plan.purges:
            ack = yield from self._send(plan, log, deadline)
        else:
            ack = yield from self._send_alone(plan.records[0][1], deadline)

        if not ack.sequence or ack.duplicate:
            return None

        outcomes: list[Outcome] = []
        for sequence, head in enumerate(heads, start=ack.sequence):
            revision = revision_at(request.id, sequence)
            _keep(self._known, revision, _Known(head.commits, ""), _KEPT)
            outcomes.append(Outcome(head.version, revision, head.status, head.created_ms))

        return Applied(tuple(outcomes))

    def _send_alone(self, message: Message, deadline: Deadline) -> Conversation[Ack]:
        """`_send` for what most commits are: one record, with nothing before or after it."""
        try:
            (answer,) = yield Publish((message,), atomic=False)
        except NotSentError as error:
            raise _not_written(error) from error

        ack = self.exchange.ack(answer)
        if ack.refusal is not None:
            raise ack.refusal

        deadline.reason = ack.text
        return ack

    def _put_at_once(self, plan: _Plan, change: Put, request: Commit) -> Head | None:
        """Plan the write of a flow, from what was read when it was; `None` if that is not enough."""
        old = change.replaces
        expected = 0
        known = _UNKNOWN
        if change.expected is not None:
            sequence = sequence_of(change.expected)
            if old is None or sequence is None or old.revision != change.expected:
                return None

            expected = sequence

            held = old.owner is not None and old.due_ms is not None and old.due_ms > request.now_ms
            expired = old.expires_ms is not None and old.expires_ms <= request.now_ms
            if expired or (change.claiming and held):
                return None

            known = self._known.get(change.expected, _UNKNOWN)

        if len(change.body) + len(change.head.error or "") > self._most():
            return None

        commits = known.commits
        if old is not None and not commits:
            commits = old.commits or (old.revision.partition("@")[0],)

        head = change.head.stamped(request.id, (request.id, *commits[: REMEMBERED_COMMITS - 1]))
        text = encode_record(head, Body(change.body), moved=False)
        plan.records.append((change.key, self._message(change.key, text, expected)))
        if old is None or _marks_of(old) != _marks_of(head):
            before = (
                frozenset[str]() if old is None else entries_of_flow(self.layout, change.key, old)
            )
            self._index(plan, before, entries_of_flow(self.layout, change.key, head))

        if known.generation:
            plan.purges.append((self.layout.chunks(change.key, known.generation), False))

        return head

    def _commit(
        self, request: Commit, deadline: Deadline, *, again: bool
    ) -> Conversation[Reply | None]:
        """Read, decide, write; `None` if something else was written meanwhile."""
        subjects = [self.layout.subject(change.key) for change in request.changes]
        subjects += [
            self.layout.subject(flow_key(change.key.id))
            for change in request.changes
            if change.key.kind == PROGRESS
        ]
        # Where it lies if it was spilled, as far as that is known: to be read in the same request.
        subjects += [
            self.layout.item(change.key, self._lives[change.key], change.child)
            for change in request.changes
            if isinstance(change, Complete) and change.key in self._lives
        ]
        log = self.layout.log(request.id)
        if again and len(request.changes) > 1:
            logged = yield from self.exchange.fetch([log], deadline)
            if logged[log].text is not None:
                return (
                    yield from self._logged(request.id, _keys_of(request), logged[log], deadline)
                )

        reply, tables = yield from self.decide(
            lambda tables: _apply(tables, request), subjects, deadline, request.id
        )
        self._remember_lives(request, tables)
        if isinstance(reply, Refused):
            return reply

        writes = tables.writes()
        reads = self._reads(request, tables, writes)
        if not writes and len(reads) <= 1:
            if again:
                return (yield from self._unless_it_was_wiped_out(request, reply))

            return reply  # what one read found needs no check

        yield from self._upload(request.id, writes, deadline)
        plan = self._plan(request.id, writes, reads)
        plan.purges.extend((dropped, False) for dropped in tables.dropped)
        head: list[Message] = []
        if len(request.changes) > 1 or len(plan.records) > 1:
            head = [self._log(plan, request, reply)]
        else:
            plan.records[0][1].headers["Nats-Msg-Id"] = request.id

        ack = yield from self._send(plan, head, deadline)
        if not ack.sequence or ack.duplicate:
            return None

        sequences = {
            key: ack.sequence + place
            for place, (key, _) in enumerate(plan.records)
            if key.kind != WAIT
        }
        for write in writes:
            if write.plain is not None and not write.moved:
                revision = revision_at(request.id, sequences[write.key])
                known = _Known(write.plain[0].commits, write.plain[1].generation)
                _keep(self._known, revision, known, _KEPT)

        return Applied(
            tuple(
                [
                    _with_revision(outcome, request.id, sequences.get(change.key))
                    for change, outcome in zip(request.changes, reply.outcomes, strict=True)
                ]
            )
        )

    def _remember_lives(self, request: Commit, tables: NatsTables) -> None:
        for change in request.changes:
            if isinstance(change, Complete):
                wait = tables.wait_record(change.key)
                if wait is not None and wait.spilled and change.key not in self._lives:
                    _keep(self._lives, change.key, wait.life, _KEPT)
                elif wait is None or wait.life != self._lives.get(change.key):
                    self._lives.pop(change.key, None)

    def _unless_it_was_wiped_out(self, request: Commit, reply: Applied) -> Conversation[Reply]:
        """The reply of a commit that has nothing to write now, after one of its replies was lost.

        A completion that an earlier try has counted was forgotten if the condition was cleared since:
        the server knows whether it had it.
        """
        (change,) = request.changes
        (outcome,) = reply.outcomes
        if not isinstance(change, Complete) or outcome.accepted or outcome.duplicate:
            return reply

        applied = yield from self.resolve(Resolve(request.id, (change.key,)))
        return reply if applied is None else Applied((Outcome(status=PENDING, accepted=True),))

    def change(
        self,
        rule: Callable[[NatsTables], T],
        keys: Iterable[Key],
        commit_id: str,
    ) -> Conversation[T]:
        """Read, decide, write, again until nothing came in between: for what may be done twice.

        `CommitUncertainError` if it may have been written.
        """
        keys = tuple(keys)
        deadline = self.exchange.deadline()
        subjects = [self.layout.subject(key) for key in keys]
        lost: ReplyLostError | None = None
        try:
            while True:
                result, tables = yield from self.decide(rule, subjects, deadline, commit_id)
                writes = tables.writes()
                if not writes:
                    if lost is not None:
                        yield from self._bear_out(keys, deadline)

                    return result

                plan = self._plan(commit_id, writes, [])
                plan.purges.extend((dropped, False) for dropped in tables.dropped)
                plan.records[0][1].headers["Nats-Msg-Id"] = commit_id
                try:
                    ack = yield from self._send(plan, [], deadline)
                    if ack.sequence:
                        return result
                except ReplyLostError as error:
                    lost = error

                if deadline.has_passed():
                    raise _gave_up(commit_id, keys, lost, deadline)

                yield deadline.pause()
        except StoreUnavailableError as error:
            if lost is None:
                raise

            raise _gave_up(commit_id, keys, lost, deadline) from error

    # resolve --------------------------------------------------------------------------------------

    def resolve(self, request: Resolve) -> Conversation[Applied | None]:
        """`Resolve`: the log; else take the commit's id, so that it can come no more, and look."""
        deadline = self.exchange.deadline()
        try:
            if request.id.startswith(_CLEARING):
                return (yield from self._resolve_clear(request, deadline))

            applied = yield from self._resolve(request, deadline)
            if applied is not None and len(request.keys) == 1:
                yield from self._bear_out(request.keys, deadline)
        except (NotSentError, StoreUnavailableError) as error:
            raise _uncertain(request.id, request.keys) from error
        else:
            return applied

    def _resolve(self, request: Resolve, deadline: Deadline) -> Conversation[Applied | None]:
        log = self.layout.log(request.id)
        fence = Message(
            log,
            json.dumps({"layout": VERSION, "fenced": True}).encode(),
            {_EXPECTED: "0", "Nats-Msg-Id": request.id, "Nats-TTL": f"{_FENCE_SECONDS}s"},
        )
        taken = False

        while True:
            found = yield from self.exchange.fetch([log], deadline)
            if found[log].text is not None:
                logged = yield from self._logged(request.id, request.keys, found[log], deadline)
                # The fence is in the stream: what came before it shows in the records.
                return logged or (yield from self._look(request, deadline))

            if taken:
                return Applied(())  # the id was taken, and not by a fence: the commit is there

            try:
                (ack,) = yield from self.exchange.publish([fence], atomic=False)
            except ReplyLostError as error:
                if deadline.has_passed():
                    raise _uncertain(request.id, request.keys) from error
            else:
                taken = ack.duplicate
                if taken or ack.sequence:
                    continue

                if deadline.has_passed():
                    raise _uncertain(request.id, request.keys)

            yield deadline.pause()

    def _look(self, request: Resolve, deadline: Deadline) -> Conversation[Applied | None]:
        subjects = [self.layout.subject(key) for key in request.keys]
        seen, _ = yield from self.decide(
            lambda tables: [_wrote(tables, key, request.id) for key in request.keys],
            subjects,
            deadline,
        )
        return Applied(()) if any(seen) else None

    def _bear_out(self, keys: Iterable[Key], deadline: Deadline) -> Conversation[None]:
        """Add the index entries of records whose commit has lost its reply, and theirs perhaps."""
        wanted = [key for key in dict.fromkeys(keys) if key.kind != PROGRESS]
        subjects = [self.layout.subject(key) for key in wanted]
        entries, _ = yield from self.decide(
            lambda tables: [entry for key in wanted for entry in self.entries_of(tables, key)],
            subjects,
            deadline,
        )
        there = yield from self.exchange.fetch(entries, deadline)
        missing = [Message(one, b"", {}) for one in entries if not there[one].sequence]
        if missing:
            yield from self.exchange.surely(missing, deadline)

    def entries_of(self, tables: NatsTables, key: Key) -> frozenset[str]:
        """The index entries that the record of a flow or condition bears out."""
        if key.kind == WAIT:
            row = tables.wait(key)
            return frozenset() if row is None else entries_of_wait(self.layout, key, row)

        head = tables.head(key)
        return frozenset() if head is None else entries_of_flow(self.layout, key, head)

    # clear ----------------------------------------------------------------------------------------

    def clear(self) -> Conversation[None]:
        """Purge the whole stream, once: a second purge might come after others have written.

        A message that says so is stored before: the purge was done when it is gone.
        """
        deadline = self.exchange.deadline()
        commit_id = _CLEARING + new_commit_id()
        sign = Message(self.layout.log(commit_id), b'{"clearing":true}', {})
        yield from self.exchange.surely([sign], deadline)
        try:
            yield from self.exchange.purge(deadline)
        except ReplyLostError as error:
            try:
                while (yield from self._is_there(sign.subject, deadline)):
                    if deadline.has_passed():
                        raise _uncertain(commit_id, ()) from error

                    yield deadline.pause()
            except StoreUnavailableError as unavailable:
                raise _uncertain(commit_id, ()) from unavailable

    def _resolve_clear(self, request: Resolve, deadline: Deadline) -> Conversation[Applied | None]:
        sign = self.layout.log(request.id)
        if not (yield from self._is_there(sign, deadline)):
            return Applied(())

        # Nothing fences a purge. One that did not come in twice the timeout never left.
        began = began_s(request.id.removeprefix(_CLEARING))
        if time.time() < began + 2 * self.exchange.timeout:
            raise _uncertain(request.id, ())

        return None

    def _is_there(self, subject: str, deadline: Deadline) -> Conversation[bool]:
        found = yield from self.exchange.fetch([subject], deadline)
        return found[subject].text is not None

    # messages -------------------------------------------------------------------------------------

    def _most(self) -> int:
        return max(self.exchange.max_payload - _HEAD_BYTES, 4096)

    def _message(self, key: Key, text: bytes, expected: int) -> Message:
        if len(text) > self.exchange.max_payload - 2048:
            message = (
                f"the head of {key} takes {len(text)} bytes, the server takes"
                f" {self.exchange.max_payload} in one message; nothing was written"
            )
            raise RecordTooLargeError(message, size=len(text), limit=self.exchange.max_payload)

        return Message(self.layout.subject(key), text, {_EXPECTED: str(expected)})

    def _reads(self, request: Commit, tables: NatsTables, writes: list[Write]) -> list[Message]:
        """Checks of what the commit depends on and does not write."""
        written = {write.key for write in writes}
        reads: list[Message] = []

        for number, change in enumerate(request.changes):
            stored = tables.stored(change.key)
            if isinstance(change, Complete) or change.key in written or stored.text is None:
                continue

            reads.append(
                Message(
                    self.layout.check(request.id, number),
                    b"",
                    {
                        _EXPECTED: str(stored.sequence),
                        _EXPECTED_SUBJECT: self.layout.subject(change.key),
                        "Nats-TTL": "1s",
                    },
                )
            )

        return reads

    def _logged(
        self, commit_id: str, keys: Iterable[Key], log: Stored, deadline: Deadline
    ) -> Conversation[Applied | None]:
        """The reply that a log tells, `None` if it is a fence; raises if the rest is not there."""
        fields: dict[str, Any] = json.loads(log.text or b"")
        if fields.get("fenced"):
            return None

        last: str = fields["last"]
        found = yield from self.exchange.fetch([last], deadline)
        if found[last].sequence < log.sequence + fields["length"] - 1:
            age = time.time() - began_s(commit_id)
            is_forgotten = not found[last].sequence and age > 2 * self.exchange.timeout
            raise _uncertain(commit_id, keys) if is_forgotten else _in_part(commit_id, keys)

        return _reply_of(commit_id, log.sequence, fields)

    def _log(self, plan: _Plan, request: Commit, reply: Applied) -> Message:
        # What was removed is forgotten after a while: a record that stays is the better witness.
        plan.records.sort(key=lambda record: "Nats-Rollup" not in record[1].headers)
        places = plan.places()
        last, message = plan.records[-1]
        text = {
            "layout": VERSION,
            "outcomes": [list(outcome) for outcome in reply.outcomes],
            "places": [
                None if change.key.kind == WAIT else places.get(change.key)
                for change in request.changes
            ],
            "length": places[last] + 1,
            "last": message.subject,
        }
        log = self.layout.log(request.id)
        payload = json.dumps(text, separators=(",", ":")).encode()
        headers = {_EXPECTED: "0", "Nats-TTL": f"{_LOG_SECONDS}s", "Nats-Msg-Id": request.id}
        return Message(log, payload, headers)

    def _upload(
        self, commit_id: str, writes: list[Write], deadline: Deadline
    ) -> Conversation[None]:
        """Store what does not fit into the records, before them."""
        for place, write in enumerate(writes):
            if write.plain is not None:
                head, body = write.plain
                body = yield from self._chunked(write.key, commit_id, body, self._most(), deadline)
                writes[place] = write._replace(plain=(head, body))
            elif write.wait is not None:
                wait = write.wait
                terms = yield from self._chunked(
                    write.key, commit_id, wait.terms, _TERMS_BYTES, deadline
                )
                wait = evolve(wait, terms=terms)
                wait = yield from self._spilled(write.key, commit_id, wait, deadline)
                writes[place] = write._replace(wait=wait)

    def _chunked(
        self, key: Key, generation: str, body: Body, most: int, deadline: Deadline
    ) -> Conversation[Body]:
        text = body.text
        if body.count or len(text) <= most:
            return body

        size = min(_CHUNK_BYTES, self._most())
        starts = range(0, len(text), size)
        messages = [
            Message(self.layout.chunk(key, generation, number), text[at : at + size], {})
            for number, at in enumerate(starts)
        ]
        for start in range(0, len(messages), _CHUNKS_AT_ONCE):
            yield from self.exchange.surely(messages[start : start + _CHUNKS_AT_ONCE], deadline)

        return Body(b"", generation, len(messages), len(text))

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

    def _plan(self, commit_id: str, writes: list[Write], checks: list[Message]) -> _Plan:
        plan = _Plan([], checks, [], [])

        for write in writes:
            before, old_body = self._traces(write.key, write.before)
            after: frozenset[str] = frozenset()
            new_body = Body()
            if write.plain is not None:
                head, new_body = write.plain
                text = encode_record(head, new_body, moved=write.moved)
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
            else:
                text = commit_id.encode()

            message = self._message(write.key, text, write.stored.sequence)
            if write.plain is None and write.wait is None:
                seconds = int(self.exchange.timeout * 2) + 1
                message.headers.update(
                    {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{seconds}s"}
                )

            plan.records.append((write.key, message))
            self._index(plan, before, after)
            if old_body.count and old_body.generation != new_body.generation:
                plan.purges.append((self.layout.chunks(write.key, old_body.generation), False))

        return plan

    def _without_bulk(self, commit_id: str, wait: WaitRecord) -> tuple[WaitRecord, dict[str, Any]]:
        """A record that still fits, and the completions of this very commit that do not."""
        own = {child: item for child, item in wait.items.items() if item.commit == commit_id}
        if sum(len(item.payload) + 64 for item in own.values()) <= _OWN_ITEMS_BYTES:
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

    def _index(self, plan: _Plan, before: frozenset[str], after: frozenset[str]) -> None:
        plan.entries.extend(Message(entry, b"", {}) for entry in sorted(after - before))
        plan.purges.extend((entry, True) for entry in sorted(before - after))

    def _send(self, plan: _Plan, head: Sequence[Message], deadline: Deadline) -> Conversation[Ack]:
        """Send a commit once; the sequence is that of its first record."""
        records = [message for _, message in plan.records]
        several = len(head) + len(plan.checks) + len(records) > 1
        atomic = several or (self.exchange.leader and bool(plan.entries))
        bulk = any(message.payload for message in plan.entries)
        if atomic or bulk:
            messages = [*head, *plan.checks, *plan.entries, *records]
            if len(messages) > _BATCH_MOST:
                text = (
                    f"this commit takes {len(messages)} messages, NATS takes {_BATCH_MOST} in one"
                    " batch; nothing was written; commit in parts"
                )
                raise CommitTooLargeError(text, size=len(messages), limit=_BATCH_MOST)

            (ack,) = yield from self._sent(messages, atomic=True)
            if ack.in_part:
                ack = yield from self._what_is_there(messages, ack, deadline)

            if ack.refusal is not None:
                raise ack.refusal

            if ack.sequence:
                ack = ack._replace(sequence=ack.sequence - len(records) + 1)
        else:
            # Entries first: one that nobody needs is only passed over, one that is missing is lost.
            *entries, ack = yield from self._sent([*plan.entries, *records], atomic=False)
            if ack.refusal is not None:
                raise ack.refusal

            if ack.sequence:
                unsure = [
                    message
                    for message, one in zip(plan.entries, entries, strict=True)
                    if not one.sequence
                ]
                yield from self._add(unsure, deadline)

        deadline.reason = ack.text
        if ack.sequence and not ack.duplicate:
            yield from self.exchange.forget(
                [
                    (wanted, ack.sequence if only_before else None)
                    for wanted, only_before in plan.purges
                ]
            )

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

        if found[first.subject].text == first.payload and _EXPECTED in first.headers:
            raise ReplyLostError(ack.text)

        return ack

    def _add(self, entries: list[Message], deadline: Deadline) -> Conversation[None]:
        """Add entries that were refused though their record was written, or their outcome is lost."""
        if entries:
            try:
                yield from self.exchange.surely(entries, deadline)
            except StoreUnavailableError as error:
                message = f"the record was written and its index entries were not: {error}"
                raise ReplyLostError(message) from error

    def _sent(self, messages: list[Message], *, atomic: bool) -> Conversation[list[Ack]]:
        try:
            return (yield from self.exchange.publish_apart(messages, atomic=atomic))
        except NotSentError as error:
            raise _not_written(error) from error


def _not_written(error: NotSentError) -> StoreUnavailableError:
    return StoreUnavailableError(f"{error}; nothing was written")


# --- rules ----------------------------------------------------------------------------------------


def _apply(tables: NatsTables, request: Commit) -> Reply:
    """The rules of the store protocol, for a commit that may have been applied before."""
    if len(request.changes) == 1:
        before = _outcome_before(tables, request.changes[0], request.id)
        if before is not None:
            return Applied((before,))

    reply = embedded.apply(tables, request, 0)
    if isinstance(reply, Applied):
        for change, outcome in zip(request.changes, reply.outcomes, strict=True):
            if outcome.satisfied:
                tables.satisfied(change.key)

    return reply


def _outcome_before(tables: NatsTables, change: Change, commit_id: str) -> Outcome | None:
    """What a commit of one change did, if the record says that it did."""
    key = change.key
    if isinstance(change, Delete) and key.kind != WAIT:
        return Outcome(accepted=True) if tables.stored(key).removed_by == commit_id else None

    if isinstance(change, Check):
        return None

    if key.kind != WAIT:
        head = tables.head(key)
        if head is None or commit_id not in head.commits:
            return None

        place = head.commits.index(commit_id)
        revision = head.revision if place == 0 else commit_id
        assert isinstance(change, Put)  # noqa: S101  for the type checker
        return Outcome(head.version - place, revision, change.head.status, head.created_ms)

    wait = tables.wait_record(key)
    if wait is None:
        return None

    return _wait_outcome_before(tables, wait, change, commit_id)


def _wait_outcome_before(
    tables: NatsTables, wait: WaitRecord, change: Change, commit_id: str
) -> Outcome | None:
    head = wait.row.head
    if isinstance(change, Complete):
        return _completion_before(tables, wait, change, commit_id)

    if commit_id not in head.commits:
        return None

    if isinstance(change, Delete):
        return Outcome(accepted=True, status=embedded.TOMBSTONE - head.status)

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


def _done(change: Change, commit_id: str) -> Outcome:
    """What a change did that could be refused and was not, as far as it can be told without a record."""
    if isinstance(change, Put):
        head = change.head
        return Outcome(head.version, commit_id, head.status, head.created_ms)

    return Outcome(accepted=isinstance(change, Delete))


def _wrote(tables: NatsTables, key: Key, commit_id: str) -> bool:
    """Whether a record says that a commit wrote it."""
    if tables.stored(key).removed_by == commit_id:
        return True

    if key.kind != WAIT:
        found = decode_record(key, tables.stored(key))
        return found is not None and commit_id in found[0].commits

    wait = tables.wait_record(key)
    return wait is not None and (
        commit_id in wait.row.head.commits
        or wait.satisfied_by == commit_id
        or any(item.commit == commit_id for item in wait.items.values())
    )


def _marks_of(head: Head) -> tuple[object, ...]:
    """What the index entries of a flow are made of."""
    return head.status, head.type, head.created_ms, head.due_ms, head.expires_ms


def _with_revision(outcome: Outcome, commit_id: str, sequence: int | None) -> Outcome:
    """Flows and progress have their place in the stream in their revision."""
    if sequence is None or outcome.revision != commit_id:
        return outcome

    return outcome._replace(revision=revision_at(commit_id, sequence))


def _reply_of(commit_id: str, sequence: int, fields: dict[str, Any]) -> Applied:
    """What a log at this sequence tells."""
    outcomes: list[Outcome] = []
    for values, place in zip(fields["outcomes"], fields["places"], strict=True):
        outcome = Outcome(*values)
        if outcome.terms is not None:
            children, any_of, timeout_ms, parent = outcome.terms
            terms = Terms(tuple(children), any=any_of, timeout_ms=timeout_ms, parent=parent)
            outcome = outcome._replace(terms=terms)

        outcomes.append(
            _with_revision(outcome, commit_id, None if place is None else sequence + place)
        )

    return Applied(tuple(outcomes))


def _keys_of(request: Commit) -> tuple[Key, ...]:
    return tuple([change.key for change in request.changes])


def _gave_up(
    commit_id: str, keys: Iterable[Key], lost: BaseException | None, deadline: Deadline
) -> Exception:
    if lost is None:
        message = (
            f"commit {commit_id} could not be written in time: others were always first, or NATS"
            f" was busy; it said {deadline.reason!r}; nothing was written"
        )
        return StoreUnavailableError(message)

    error = _uncertain(commit_id, keys)
    error.__cause__ = lost
    return error


def _uncertain(commit_id: str, keys: Iterable[Key]) -> CommitUncertainError:
    named = tuple(dict.fromkeys(keys))
    message = (
        f"commit {commit_id} was sent and its outcome is not known;"
        " resolve_commit(error) settles whether it was written"
    )
    return CommitUncertainError(message, commit_id=commit_id, keys=named)


def _in_part(commit_id: str, keys: Iterable[Key]) -> CommitUncertainError:
    named = tuple(dict.fromkeys(keys))
    message = (
        f"of commit {commit_id} a part was stored: the server ran out of storage in the middle of its"
        " batch; free space, look at its records, and write what is missing; a stream that has"
        " max_bytes reserves its storage, and its batches are refused whole"
    )
    return CommitUncertainError(message, commit_id=commit_id, keys=named)


def _keep(kept: dict[K, T], name: K, value: T, most: int) -> None:
    """Remember something, and forget what was remembered first."""
    kept[name] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
