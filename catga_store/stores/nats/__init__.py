"""The NATS JetStream store: one message per record, one atomic batch per commit of several.

**What lies where.** One file-backed stream `KV_<bucket>` (history 1, no limit but perhaps `max_bytes`)
carries the key-value bucket `<bucket>`, which `nats kv get <bucket> flow.<id>` and its like read, the subjects of
`<bucket>_wait`, and what only the store reads, under `catga.<bucket>.`:

| subject | what its last message is |
|---|---|
| `$KV.<bucket>.flow.<id>` | a flow: one line of JSON, its head, then the body |
| `$KV.<bucket>.progress.<id>.<step>` | the ForEach progress of a flow, likewise |
| `$KV.<bucket>_wait.<id>` | a condition: one line with its state and newest completions, then its children |
| `….item.<id>.<life>.<child>` | a completion that no longer fits into its condition; it is counted there |
| `….chunk.<generation>.<kind>.<id>.<step>.<n>` | a part of a body that is too large for one message |
| `….list.flow.<status>.<type>.<time>.flow.<id>` | a flow in listings; `….list.wait.<status>.<parent>…` a condition |
| `….due.flow.<type>.<place>…` | when to look at a flow |
| `….due.child.<place>…`, `….due.lone.<place>…` | when to look at a condition with a parent, without one |
| `….due.expiry.<place>…` | when a record expires |
| `….log.<commit>` | what a commit of several changes answered, or that it was given up; for ten minutes |
| `….check.<commit>.<n>` | nothing: it carried a check; for a second |
| `….layout` | layout version and partitions |

An id is one token, `[A-Za-z0-9_-]` as they are and any other byte `=XX`; a type or parent is a hash
of eight bytes; a time is 15 tokens of one digit, milliseconds since the year 1; a place is a time and
three more, made of the id, so that many that are due at once can be told apart. All entries between
two places are those under some tens of prefixes, of which one request asks for the last messages.

**What is atomic.** Every write of a record expects the sequence that was read. A commit of one
record is one publish; any other is one atomic batch, with a log entry that must not be there yet
and a check for whatever was read and not written. What a commit does is decided by the rules of
`protocol.rules` over what was read; that it still holds when it is written is for the server to say, and
if it does not, everything is read and decided again. So completions never refuse a commit: the
condition is one record, and who lost a race counts again. Index entries are hints: they are
published before the record (on one replica, one record) or in its batch, and believed only when
the head of their record says the same; what a commit makes wrong is purged after it, up to its
sequence. A read of several records is one state of the stream on one replica, and each record's
own newest state on more.

**Revisions.** That of a flow or progress record is `<commit id>@<sequence>`, so the next write knows
what to expect without reading. `extend` and the moving of a due time write the record again and
keep its revision; whoever commits meanwhile reads once more. A new stream counts on from the time
in microseconds: no sequence of a removed stream comes again. After a stream was *restored* from a
backup, restart the workers: what they read after the backup was made must be forgotten.

**What it costs.** `get`: one request. A commit of flows that were read before, and every claim of one
flow: one flight, no read. Other commits: a read and a publish. `get_many` of 500: one request; with
replicas any of them may answer, if it has seen what the leader says, in the same flight, that there
is. What is due, and a page: entries, in a request or two, then the heads, however many are due or
stored: a store remembers how far it had to look, and the server is asked for no more than a few times
what is wanted. The first search among very many takes some twenty requests. `count_*` reads every
head it counts.
On one replica with file storage a batch costs several fsyncs (about 3 ms on a fast disk),
because the server stages it in a store of its own, and those of one process that come at the same time
share one; single publishes, and batches on three replicas, do not pay it.

**Lost connections.** A publish whose reply is lost is looked for in what the records remember: the
last eight commit ids, the commit of each completion and of each removal, the log. Not found, it is
sent again with the same expected sequences and the same `Nats-Msg-Id`. `resolve` takes the log entry
and the id of the commit for itself; from then on the server refuses the commit, should it still be
on its way. What the client library would keep while it is not connected never reaches it.

**What expires.** Heads say when; entries under `due.expiry` find them. Tombstones of removed records
stay for twice the timeout, log entries for ten minutes, by the server's per-message TTL. Nothing
else is left to the server's clock.

**Reads** are answered by the one server, or by the stream's leader, many at once by a replica that
has all that the leader had; `stale_reads=True` lets any replica answer. A leader that was deposed and
does not know it yet may answer for some seconds with what was acknowledged before. An acknowledgement
means written, not flushed to disk: the server flushes every two minutes unless `sync_interval: always`
is set, so a power failure of the only server, or of all replicas, can cost what was written since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from re import fullmatch
from typing import Any

from catga_store.errors import CatgaStoreError
from catga_store.errors import UsageError
from catga_store.protocol import rules
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import SWEEP_EVERY
from catga_store.protocol.requests import SWEPT_AT_ONCE
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.stores.nats.changes import NatsChanges
from catga_store.stores.nats.commits import NatsCommits
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.listings import NatsListings
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.resolving import NatsResolver
from catga_store.stores.nats.setup import prepare
from catga_store.stores.nats.sweeping import NatsSweeper

__all__ = ["NatsProtocol"]

_log = logging.getLogger(__name__)


class NatsProtocol:
    """The store protocol of a NATS store; its transport requests are `Greet`, `Asks`, `Publish` and `Pause`."""

    def __init__(
        self,
        *,
        bucket: str = "dslflows",
        replicas: int = 1,
        max_bytes: int | None = None,
        stale_reads: bool = False,
        create: bool = True,
        domain: str | None = None,
        partitions: int = 1,
        timeout: float = 10.0,
    ) -> None:
        _check_options(bucket, replicas, max_bytes, domain)
        _check_switches(stale_reads=stale_reads, create=create)
        self._layout = NatsLayout(bucket, domain)
        self._exchange = NatsExchange(
            self._layout.stream, timeout, self._layout.layout, self._layout.api
        )
        self._reader = NatsReader(self._layout, self._exchange)
        self._resolver = NatsResolver(self._reader)
        self._changes = NatsChanges(self._reader, self._resolver)
        self._commits = NatsCommits(self._reader, self._resolver, self._changes)
        listings = NatsListings(self._reader)
        self._sweeping = NatsSweeper(self._reader, self._changes, listings)
        self._committed = 0
        self._prepare = partial(
            prepare,
            self._exchange,
            self._layout,
            partitions=partitions,
            replicas=replicas,
            max_bytes=-1 if max_bytes is None else max_bytes,
            stale_reads=stale_reads,
            create=create,
        )
        self._prepared = False
        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: self._read,
            Steps: self._steps,
            Commit: self._commit,
            Resolve: self._resolver.resolve,
            Extend: self._extend,
            Due: listings.due,
            Overdue: listings.overdue,
            Find: listings.find,
            Count: listings.count,
            Scan: listings.scan,
            Sweep: self._sweeping.sweep,
            Clear: self._clear,
            Ping: self._ping,
        }

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Do what a store protocol request asks and return its reply."""
        handler = self._handlers[type(request)]
        return handler(request) if self._prepared else self._first(handler, request)

    def _first(
        self, handler: Callable[[Any], Conversation[Any]], request: Request[object]
    ) -> Conversation[object]:
        """See that the store can be used before anything else is asked of it."""
        yield from self._prepare()
        self._prepared = True
        return (yield from handler(request))

    # one handler per request ----------------------------------------------------------------------

    def _read(self, request: Read) -> Conversation[tuple[Record | None, ...]]:
        subjects = [self._layout.subject(key) for key in request.keys]
        subjects += [
            self._layout.subject(flow_key(key.id)) for key in request.keys if key.kind == PROGRESS
        ]
        records, _ = yield from self._reader.decide(
            lambda tables: rules.read(tables, request), subjects, self._exchange.deadline()
        )
        return records

    def _commit(self, request: Commit) -> Conversation[Reply]:
        self._committed += 1
        commit = self._commits.commit(request)
        return commit if self._committed % SWEEP_EVERY else self._sweep_before(commit, request)

    def _sweep_before(self, commit: Conversation[Reply], request: Commit) -> Conversation[Reply]:
        try:
            yield from self._sweeping.expired(Sweep(request.now_ms, SWEPT_AT_ONCE))
        except CatgaStoreError as error:  # the user asked for the commit, not for this
            _log.warning("expired records could not be removed: %s", error)

        return (yield from commit)

    def _steps(self, request: Steps) -> Conversation[tuple[Found, ...]]:
        found, _ = yield from self._reader.decide(
            lambda tables: rules.steps(tables, request),
            [self._layout.subject(flow_key(request.flow_id))],
            self._exchange.deadline(),
        )
        return found

    def _extend(self, request: Extend) -> Conversation[Head | None]:
        return (
            yield from self._changes.change(
                lambda tables: rules.extend(tables, request),
                [request.key],
                new_commit_id(),
            )
        )

    def _clear(self, _request: Clear) -> Conversation[None]:
        yield from self._resolver.clear()

    def _ping(self, _request: Ping) -> Conversation[None]:
        yield from self._exchange.fetch([self._layout.layout], self._exchange.deadline())


def _check_options(bucket: object, replicas: object, max_bytes: object, domain: object) -> None:
    if not isinstance(bucket, str) or not fullmatch(r"[A-Za-z0-9_-]{1,64}", bucket):
        message = f"bucket must be 1 to 64 of A-Z, a-z, 0-9, _ and -, not {shown(bucket)}"
        raise UsageError(message)

    if bucket.endswith("_wait"):
        message = f"bucket {bucket!r} ends in _wait, as the second bucket of another store would"
        raise UsageError(message)

    if type(replicas) is not int or replicas not in (1, 3, 5):
        message = f"replicas must be 1, 3 or 5, not {shown(replicas)}"
        raise UsageError(message)

    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 1):
        message = f"max_bytes must be an int of at least 1, or None, not {shown(max_bytes)}"
        raise UsageError(message)

    if domain is not None and (
        not isinstance(domain, str) or not fullmatch(r"[A-Za-z0-9_-]{1,64}", domain)
    ):
        message = f"domain must be 1 to 64 of A-Z, a-z, 0-9, _ and -, or None, not {shown(domain)}"
        raise UsageError(message)


def _check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if type(value) is not bool:
            message = f"{name} must be True or False, not {shown(value)}"
            raise UsageError(message)
