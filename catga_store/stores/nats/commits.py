"""How the NATS store commits: read, decide, write, and again if something was written meanwhile.

A commit of flows that were read before is sent without reading them again. Every other commit reads
what it depends on, is decided by the rules of the store protocol, and is sent with the sequences
that were read. The batch of a commit of several changes begins with the commit's log, expected to be
absent: so no commit is applied twice, and one that was given up never.

It is over 400 lines because it is one operation, from the first try to the last.
"""

from __future__ import annotations

import logging
from itertools import repeat
from typing import TypeVar

from catga_store.errors import CatgaStoreError
from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import counter_key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import version_key
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Sweep
from catga_store.stores.nats.answers import Deadline
from catga_store.stores.nats.changes import NatsChanges
from catga_store.stores.nats.layout import entries_of_flow
from catga_store.stores.nats.layout import entry_of
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.messages import MessagePlan
from catga_store.stores.nats.outcomes import apply
from catga_store.stores.nats.outcomes import given_up
from catga_store.stores.nats.outcomes import keys_of
from catga_store.stores.nats.outcomes import unread_outcome
from catga_store.stores.nats.outcomes import with_revision
from catga_store.stores.nats.reading import UNKNOWN
from catga_store.stores.nats.reading import Known
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.reading import keep
from catga_store.stores.nats.record_text import Body
from catga_store.stores.nats.record_text import encode_record
from catga_store.stores.nats.record_text import revision_at
from catga_store.stores.nats.record_text import sequence_of
from catga_store.stores.nats.resolving import NatsResolver
from catga_store.stores.nats.tables import NatsTables
from catga_store.stores.nats.tables import Write
from catga_store.stores.nats.transport import Message

__all__ = ["NatsCommits"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_KEPT_LIVES = 10_000
_SURELY_SHORT = 2048
"""Error and position of a head that are no longer fit into it, however they are encoded."""


class NatsCommits:
    """Decides and writes commits."""

    def __init__(self, reader: NatsReader, resolver: NatsResolver, changes: NatsChanges) -> None:
        self.layout = reader.layout
        self.exchange = reader.exchange
        self._reader = reader
        self._resolver = resolver
        self._changes = changes
        self._planner = changes.planner
        self._sender = changes.sender
        self._lives: dict[Key, str] = {}
        self._paths: dict[str, list[str]] = {}
        """Nodes of directories of parts that were written last, by flow: an append needs them again."""

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

            keys = keys_of(request)
            reply = yield from self._until_it_is_certain(request, lost, deadline)
            if lost and isinstance(reply, Refused):
                applied = yield from self._resolver.resolve(Resolve(request.id, keys))
                if applied is None:
                    return reply

                # Nothing remembers it any more: it did what it was to do.
                return Applied(
                    applied.outcomes
                    or tuple(map(unread_outcome, request.changes, repeat(request.id)))
                )

            if lost and len(keys) == 1:  # those of several are in its batch
                yield from self._resolver.complete_index(keys, deadline)
        except StoreConfigError as error:
            refused = self._refused(request, lost, deadline, error)
            if refused is error:
                raise

            raise refused from error
        except (StoreUnavailableError, CorruptRecordError) as error:
            if not lost:
                raise

            raise given_up(request.id, keys_of(request), lost[-1], deadline) from error

        return reply

    def _refused(
        self,
        request: Commit,
        lost: list[BaseException],
        deadline: Deadline,
        error: StoreConfigError,
    ) -> Exception:
        """What a commit raises that met an error of configuration."""
        if lost:  # it was sent, to a store that is gone or may not be used any more
            return given_up(request.id, keys_of(request), lost[-1], deadline)

        # Entries and a single record are sent together: the server may have taken the record alone.
        if len(keys_of(request)) > 1 or not any(
            f"'{one}" in str(error) for one in self.layout.entries
        ):
            return error

        message = f"commit {request.id} may have been written, but without its index entries"
        return StoreConfigError(f"{message}: {error}")

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
                raise given_up(request.id, keys_of(request), lost[-1] if lost else None, deadline)

            if reply is None:
                yield deadline.pause()

        return reply

    def _commit_at_once(self, request: Commit, deadline: Deadline) -> Conversation[Reply | None]:
        """The commit of flows without reading them; `None` if they must be read after all."""
        if request.history > 1:
            return None

        if self.exchange.must_look() and any(
            isinstance(change, Put) and change.expected is not None for change in request.changes
        ):
            yield from self.exchange.look(deadline)

        trust = self.exchange.trust
        plan = MessagePlan([], [], [], [], self.exchange.epoch)
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
            log = [self._planner.log(plan, request, Applied(tuple(done)))]
        else:
            plan.records[0][1].headers["Nats-Msg-Id"] = request.id

        if log or plan.entries or plan.purges:
            ack = yield from self._sender.send(plan, log, deadline)
        else:
            ack = yield from self._sender.send_alone(plan.records[0][1], plan.epoch, deadline)

        if not ack.sequence or ack.duplicate:
            return None

        outcomes: list[Outcome] = []
        for sequence, head in enumerate(heads, start=ack.sequence):
            revision = revision_at(request.id, sequence)
            self._reader.remember(revision, Known(head.commits, ""), trust)
            outcomes.append(Outcome(head.version, revision, head.status, head.created_ms))

        return Applied(tuple(outcomes))

    def _put_at_once(self, plan: MessagePlan, change: Put, request: Commit) -> Head | None:
        """MessagePlan the write of a flow, from what was read when it was; `None` if that is not enough."""
        old = change.replaces
        expected = 0
        known = UNKNOWN
        if change.expected is not None:
            sequence = sequence_of(change.expected)
            trusted = self._reader.trusted(change.expected)
            if (
                old is None
                or sequence is None
                or trusted is None
                or old.revision != change.expected
            ):
                return None

            expected, known = sequence, trusted
            held = old.owner is not None and old.due_ms is not None and old.due_ms > request.now_ms
            expired = old.expires_ms is not None and old.expires_ms <= request.now_ms
            if expired or (change.claiming and held):
                return None

        unlimited = len(change.head.error or "") + len(change.head.position)
        if len(change.body) > self._planner.most() or unlimited > _SURELY_SHORT:
            return None

        commits = known.commits
        if old is not None and not commits:
            commits = old.commits or (old.revision.partition("@")[0],)

        head = change.head.stamped(request.id, (request.id, *commits[: REMEMBERED_COMMITS - 1]))
        text = encode_record(head, Body(change.body), moved=False)
        plan.records.append((change.key, self._planner.message(change.key, text, expected)))
        if old is None or _marks_of(old) != _marks_of(head):
            before = (
                frozenset[str]() if old is None else entries_of_flow(self.layout, change.key, old)
            )
            self._planner.index(plan, before, entries_of_flow(self.layout, change.key, head))

        if known.generation:
            plan.purges.append((self.layout.chunks(change.key, known.generation), False))

        return head

    def _commit(
        self, request: Commit, deadline: Deadline, *, again: bool
    ) -> Conversation[Reply | None]:
        """Read, decide, write; `None` if something else was written meanwhile."""
        subjects = self._subjects_of(request)
        # Where it lies if it was spilled, as far as that is known: to be read in the same request.
        subjects += [
            self.layout.item(change.key, self._lives[change.key], change.child)
            for change in request.changes
            if isinstance(change, Complete) and change.key in self._lives
        ]
        trust = self.exchange.trust
        reply, tables = yield from self._reader.decide(
            lambda tables: apply(tables, request), subjects, deadline, request.id
        )
        if again and (len(request.changes) > 1 or _has_parts(request)):
            # The log is read last: an attempt whose reply was lost may arrive at any moment, and if it
            # came before it, what was read may be its own.
            log = self.layout.log(request.id)
            logged = yield from self.exchange.fetch([log], deadline)
            if logged[log].text is not None:
                return (
                    yield from self._resolver.logged(
                        request.id, keys_of(request), logged[log], deadline
                    )
                )

        self._remember_lives(request, tables)
        if isinstance(reply, Refused):
            return reply

        return (yield from self._write(request, reply, tables, trust, deadline, again=again))

    def _subjects_of(self, request: Commit) -> list[str]:
        """What a commit will read, as far as that is known before."""
        keys: list[Key] = []
        for change in request.changes:
            key = change.key
            keys.append(key)  # of an append, too: the rules look at every key
            if isinstance(change, Append):
                keys.append(counter_key(key.id, key.name))
                if change.head.position:
                    keys.append(entry_of(key.id, key.name, change.head.position))

            if key.kind in (PART, PROGRESS):
                keys.append(flow_key(key.id))

            old = change.replaces if isinstance(change, Put) else None
            if request.history > 1 and key.kind == FLOW and old is not None:
                keys += root_of(key.id), version_key(key.id, old.version)

            leaves = isinstance(change, Delete) or (isinstance(change, Put) and change.fresh)
            if key.kind == PART or (key.kind == FLOW and leaves):
                keys.append(root_of(key.id))

        subjects = list(map(self.layout.subject, keys))
        for change in request.changes:
            if change.key.kind == PART:
                subjects += self._paths.get(change.key.id, ())

        return subjects

    def _write(
        self,
        request: Commit,
        reply: Applied,
        tables: NatsTables,
        trust: int,
        deadline: Deadline,
        *,
        again: bool,
    ) -> Conversation[Reply | None]:
        """Write what was decided over what was read; `None` as above."""
        writes, postponed, first = self._changes.remover.arrange(
            request.id, tables.writes(), request.now_ms
        )
        if first:
            yield from self._changes.remove_steps(request.id, first, tables, deadline)
            return None

        reads = self._planner.checks(request, tables, writes)
        if not writes:
            # A record and the root of its parts are of one time at some moment of the reading.
            several = len(request.changes) > 1 and len(reads) > 1
            if several and not (yield from self._is_still(request, tables, deadline)):
                return None

            if again:
                return (yield from self._unless_it_was_wiped_out(request, reply))

            return reply  # what one read found needs no check

        yield from self._sender.upload(request.id, writes, deadline)
        plan = self._planner.plan(request.id, writes, reads, tables.epoch)
        self._planner.tidy(plan, tables)
        head: list[Message] = []
        if len(request.changes) > 1 or len(plan.records) > 1:
            head = [self._planner.log(plan, request, reply)]
        else:
            plan.records[0][1].headers["Nats-Msg-Id"] = request.id

        ack = yield from self._sender.send(plan, head, deadline)
        if not ack.sequence or ack.duplicate:
            return None

        sequences = {
            key: ack.sequence + place
            for place, (key, _) in enumerate(plan.records)
            if key.kind not in (WAIT, PART)
        }
        for flow_id, path in tables.parts_of_flows.paths().items():
            keep(self._paths, flow_id, list(map(self.layout.subject, path)), _KEPT_LIVES)

        self._remember_written(request.id, writes, sequences, trust)
        yield from self._remove_postponed(postponed, request.now_ms)
        return Applied(
            tuple(
                [
                    with_revision(outcome, request.id, sequences.get(change.key))
                    for change, outcome in zip(request.changes, reply.outcomes, strict=True)
                ]
            )
        )

    def _is_still(
        self, request: Commit, tables: NatsTables, deadline: Deadline
    ) -> Conversation[bool]:
        """Whether what a commit depends on that writes nothing is as it was read, all at one time."""
        read = self._planner.dependencies(request, tables, [])
        now = yield from self.exchange.fetch(map(self.layout.subject, read), deadline)
        return all(
            now[self.layout.subject(key)].sequence == sequence for key, sequence in read.items()
        )

    def _remove_postponed(self, keys: list[Key], now_ms: int) -> Conversation[None]:
        """Remove what the commit has expired. It was written; a sweep does what fails here."""
        for key in keys:
            try:
                yield from self._changes.remove_expired(key, Sweep(now_ms, 1))
            except CatgaStoreError as error:
                _log.info(
                    (
                        "%s was deleted, but its progress was not; a later sweep removes the "
                        "progress: %s"
                    ),
                    key,
                    error,
                )

    def _remember_written(
        self, commit_id: str, writes: list[Write], sequences: dict[Key, int], trust: int
    ) -> None:
        for write in writes:
            if write.plain is not None and not write.moved and write.key.kind != PART:
                revision = revision_at(commit_id, sequences[write.key])
                known = Known(write.plain[0].commits, write.plain[1].generation)
                self._reader.remember(revision, known, trust)

    def _remember_lives(self, request: Commit, tables: NatsTables) -> None:
        for change in request.changes:
            if isinstance(change, Complete):
                wait = tables.wait_record(change.key)
                if wait is not None and wait.spilled and change.key not in self._lives:
                    keep(self._lives, change.key, wait.life, _KEPT_LIVES)
                elif wait is None or wait.life != self._lives.get(change.key):
                    self._lives.pop(change.key, None)

    def _unless_it_was_wiped_out(self, request: Commit, reply: Applied) -> Conversation[Reply]:
        """The reply of a commit that has nothing to write now, after one of its replies was lost.

        A completion that an earlier try has counted was forgotten if the condition was cleared since:
        the server knows whether it had it.
        """
        change, outcome = request.changes[0], reply.outcomes[0]
        if not isinstance(change, Complete) or outcome.accepted or outcome.duplicate:
            return reply

        applied = yield from self._resolver.resolve(Resolve(request.id, (change.key,)))
        return reply if applied is None else Applied((Outcome(status=PENDING, accepted=True),))


def _has_parts(request: Commit) -> bool:
    return any(change.key.kind == PART for change in request.changes)


def _marks_of(head: Head) -> tuple[object, ...]:
    """What the index entries of a flow are made of."""
    claimed = head.claim is not None
    times = head.created_ms, head.due_ms, head.expires_ms
    return head.status, head.type, times, claimed, head.tags
