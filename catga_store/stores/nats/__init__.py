"""The NATS JetStream store: one message per record, one atomic batch per commit of several records.

**Subject layout.** One file-backed stream `KV_<bucket>` (history 1, no limit except perhaps `max_bytes`)
holds the key-value bucket `<bucket>`, which `nats kv get <bucket> flow.<id>` reads, the subjects of
`<bucket>_wait`, and what only the store reads, under `catga.<bucket>.`:

| subject | what its last message is |
|---|---|
| `$KV.<bucket>.flow.<id>` | a flow: its head as one line of JSON, then the body |
| `$KV.<bucket>.progress.<id>.<step>` | the ForEach progress of a flow, in the same form |
| `$KV.<bucket>_wait.<id>` | a condition: one line with its state and newest completions, then its children |
| `….item.<id>.<life>.<child>` | a completion that does not fit into its condition; it is counted there |
| `….item.<id>.<life>.<child>.<commit>.<n>` | a part of a result that is too large for one message |
| `….chunk.<generation>.<kind>.<id>.<step>.<n>` | a part of a body, or of a long error or position before it |
| `….parts.<id>` | the root of the parts of a flow: their life, and the first node of their directory |
| `….part.<id>.part.<name>` | a part, or the counter of a log, in the same form as a flow |
| `….part.<id>.directory.<node>` | another node: names, heads and tags of parts in order, up to 16 KiB |
| `….part.<id>.entry.<key>` | the sequence of the entry of a log that has this key |
| `….piece.<id>.<life>.<generation>.<name>.<n>` | a piece of the body of a part that is too large for one message |
| `….list.flow.<status>.<type>.<time>.flow.<id>` | a flow in listings; `….list.wait.<status>.<parent>…` a condition |
| `….due.flow.<type>.<place>.flow.<id>` | when to look at a flow; `held.<id>` of a claimed flow |
| `….list.tag.<tag>.<status>.<time>.flow.<id>`, `….due.tag.<tag>.<place>…` | likewise, for each tag of a flow |
| `….due.child.<place>…`, `….due.lone.<place>…` | when to look at a condition with a parent, without one |
| `….due.expiry.<place>…` | when a record expires, or parts whose flow never came |
| `….due.dead.<life>.<id>` | nothing: parts of this life were dropped, and what is left of them must be purged |
| `….log.<commit>` | the reply to a commit of several changes, or that it was given up; for ten minutes |
| `….check.<commit>.<n>` | nothing: it carried a check; for a second |
| `….layout` | layout version, partitions, and the identity of the store |

An id is one token: `[A-Za-z0-9_-]` are kept and any other byte is `=XX`. A type or parent is a hash of
eight bytes; the name of a part, or the key of an entry, one of sixteen. A time is 15 tokens of one
digit, milliseconds since the year 1. A place is a time and three more digits, derived from the id, which
separate entries that are due at the same time. The entries between two places are those under some tens
of prefixes; one request asks for them.

**What is atomic.** Every write of a record expects the sequence that was read. A commit of one
record is one publish. Any other commit is one atomic batch, with a log entry that must not exist yet
and a check for every record that was read and is not written. The rules in `protocol.rules` decide
over what was read, and the server decides whether that still holds. If it does not, the store reads
and decides again. Completions therefore never refuse a commit: the condition is one record, and the
loser of a race counts again. Index entries are hints. They are published before the record (one
replica, one record) or in its batch, and a reader verifies them against the head of the record.
Entries that a commit makes wrong are purged after it, up to its sequence. A read of several records
is one state of the stream on one replica, and the newest state of each record on more. Deleting a
flow with hundreds of progress records is atomic too: see `removing`. Replacing a live
one in the same commit is refused: that progress would go before the commit.

**Parts.** Those of a flow have one life, the commit that made their root, and each part says of which
life it is. What is of another life is absent. Deleting a flow therefore removes the root with it, in one
batch, however many parts there are; they are purged afterwards, up to the sequence of that batch, and
again by a sweep. A part is written in one batch with the node of the directory that names it, and the
batch verifies the root, so none is written into a life that has ended. The commit that makes the root
writes the flow again as it is, so that a deletion which has seen no root looks again. A node that is
larger than 16 KiB is divided into two new ones, so a parent that was read too early leads to a node that
is right, or that is gone, and then both are read again. Appends to one log meet at its counter. The
loser reads again, and is never refused.

**Revisions.** The revision of a flow or progress record is `<commit id>@<sequence>`, so the next write
knows what to expect without reading. `extend` and a moved due time write the record again and
keep its revision; the next commit then reads once. A new stream counts from the time
in microseconds, so no sequence of a removed stream comes again. Sequences do come again after a
restore and after a power failure of a server that had not synced. The store therefore relies on a
sequence only as long as the stream cannot have gone back, and reads otherwise: see `NatsExchange`.

**Round trips.** `get`: one request. A commit of flows that were read before, and the claim of one flow:
one flight, no read. Other commits: a read and a publish. `get_many` of 500: one request; with replicas
any of them may answer, if it has seen everything that the leader reports in the same flight. Due
records, and a page of a listing: entries in one or two requests, then the heads, however many are due or
stored. The store remembers how far it had to look, and asks for no more than a few times what is wanted.
The first search among very many takes about twenty requests. `count_*` reads every head that it counts.
`stats`: two flights, in which the server counts subjects, and once a minute the names of all entries.
A part: one request. A listing of 100 parts: the root, and one or two nodes, which is one request as long
as all fit into the root (some 100 do), else two, with 30,000 parts three; with bodies one more. The next
listing of the same flow knows what the root leads to, and asks for all at once (`known_nodes`). A commit
with parts, or an append: a read and a batch; where the directory has more than the root, one more read
for each level, unless this process wrote there last. A process that writes asks the leader once a second
whether the stream is the same. On one replica with file storage a batch costs several fsyncs (about 3 ms
on a fast disk), because the server stages it in a store of its own. Batches of one process that arrive
at the same time share them. Single publishes, and batches on three replicas, do not pay this.

**A lost connection.** When the reply to a publish is lost, the store looks at what the records remember: the
last eight commit ids, the commit of each completion and of each removal, the log. If the commit is not
there, it is sent again with the same expected sequences and the same `Nats-Msg-Id`. `resolve` takes the
log entry and the id of the commit, so the server refuses the commit if it still arrives. Nothing is left
in the buffers of the client library, which would send it after the next connect. Over a new connection the
identity of the store is verified first: a stream that was lost and created again is an error, not an
empty store.

**Hints.** After a commit is acknowledged, a plain message on `catga_hints.<bucket>`, which no stream keeps, says
what will be due and what was written (`hints`). A process in which a call waits has one subscription to it for
each store, on the connection of the store, which ends a second after the last such call.

**What expires.** Heads say when; entries under `due.expiry` find them. Tombstones of removed records
stay for twice the timeout, log entries for ten minutes, by the server's per-message TTL. Nothing
else is left to the server's clock.

**Reads** are answered by the one server, or by the leader of the stream; many at once also by a replica
that has everything the leader has. `stale_reads=True` lets any replica answer. A leader that was deposed
and does not know it yet may return acknowledged, but older, data for some seconds. An acknowledgement
means written, not synced to disk. The server syncs every two minutes unless `sync_interval: always`
is set. With the default, a power failure of the only server, or of two of three, can lose far more than the
last two minutes: the server removes older, synced versions before their successors are synced.
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
from catga_store.protocol.hints import hints_of_commit
from catga_store.protocol.hints import hints_of_extension
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import SWEEP_EVERY
from catga_store.protocol.requests import SWEPT_AT_ONCE
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Identify
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import RemoveParts
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Stats
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.protocol.wakeups import Listen
from catga_store.stores.nats.changes import NatsChanges
from catga_store.stores.nats.commits import NatsCommits
from catga_store.stores.nats.exchange import NatsExchange
from catga_store.stores.nats.hints import NatsHints
from catga_store.stores.nats.known_nodes import KnownNodes
from catga_store.stores.nats.layout import NatsLayout
from catga_store.stores.nats.layout import node_of
from catga_store.stores.nats.layout import root_of
from catga_store.stores.nats.listings import NatsListings
from catga_store.stores.nats.numbers import NatsNumbers
from catga_store.stores.nats.part_removal import NatsPartRemover
from catga_store.stores.nats.reading import NatsReader
from catga_store.stores.nats.resolving import NatsResolver
from catga_store.stores.nats.setup import prepare
from catga_store.stores.nats.sweeping import NatsSweeper

__all__ = ["NatsProtocol"]

_log = logging.getLogger(__name__)


class NatsProtocol:
    """The store protocol of a NATS store; its transport requests are those of `transport`, and `Pause`."""

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
        numbers = NatsNumbers(self._reader, listings)
        self._sweeping = NatsSweeper(self._reader, self._changes, listings)
        self._nodes = KnownNodes()
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
        self._hints = NatsHints(bucket)
        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: self._read,
            Steps: self._steps,
            Commit: self._commit,
            Resolve: self._resolver.resolve,
            Extend: self._extend,
            Due: listings.due,
            DueWaits: listings.due_waits,
            Overdue: listings.overdue,
            Find: listings.find,
            Count: listings.count,
            Parts: self._parts,
            RemoveParts: NatsPartRemover(self._reader, self._changes).remove,
            ListDue: numbers.list_due,
            CountDue: numbers.count_due,
            Stats: numbers.stats,
            Scan: listings.scan,
            Sweep: self._sweeping.sweep,
            Clear: self._clear,
            Ping: self._ping,
            Identify: self._identify,
            Listen: self._hints.listen,
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
            self._layout.subject(flow_key(key.id))
            for key in request.keys
            if key.kind in (PROGRESS, PART)
        ]
        subjects += [
            self._layout.subject(root_of(key.id)) for key in request.keys if key.kind == PART
        ]
        records, _ = yield from self._reader.decide(
            lambda tables: rules.read(tables, request), subjects, self._exchange.deadline()
        )
        return records

    def _commit(self, request: Commit) -> Conversation[Reply]:
        self._committed += 1
        if self._committed % SWEEP_EVERY == 0:
            try:
                yield from self._sweeping.expired(Sweep(request.now_ms, SWEPT_AT_ONCE))
            except CatgaStoreError as error:  # the user asked for the commit, not for this
                _log.warning(
                    "expired records could not be removed and remain until a later sweep: %s", error
                )

        reply = yield from self._commits.commit(request)
        if isinstance(reply, Applied):
            yield from self._hints.send(hints_of_commit(request, reply))

        return reply

    def _steps(self, request: Steps) -> Conversation[tuple[Found, ...]]:
        found, _ = yield from self._reader.decide(
            lambda tables: rules.steps(tables, request),
            [self._layout.subject(flow_key(request.flow_id))],
            self._exchange.deadline(),
        )
        return found

    def _parts(self, request: Parts) -> Conversation[tuple[ListedPart, ...]]:
        flow_id = request.flow_id
        keys = [flow_key(flow_id), root_of(flow_id)]
        keys += [node_of(flow_id, name) for name in self._nodes.foresee(request)]
        found, tables = yield from self._reader.decide(
            lambda tables: rules.parts(tables, request),
            map(self._layout.subject, keys),
            self._exchange.deadline(),
        )
        self._nodes.learn(flow_id, tables.parts_of_flows.inner_nodes(flow_id))
        return found

    def _extend(self, request: Extend) -> Conversation[Head | None]:
        head = yield from self._changes.change(
            lambda tables: rules.extend(tables, request), [request.key], new_commit_id()
        )
        if head is not None:
            yield from self._hints.send(hints_of_extension(head))

        return head

    def _clear(self, _request: Clear) -> Conversation[None]:
        yield from self._resolver.clear()

    def _identify(self, _request: Identify) -> Conversation[str]:
        yield from ()
        return f"nats:{self._layout.stream}"

    def _ping(self, _request: Ping) -> Conversation[None]:
        yield from self._exchange.fetch([self._layout.layout], self._exchange.deadline())


def _check_options(bucket: object, replicas: object, max_bytes: object, domain: object) -> None:
    if not isinstance(bucket, str) or not fullmatch(r"[A-Za-z0-9_-]{1,64}", bucket):
        message = (
            f"bucket: expected 1 to 64 characters from A-Z, a-z, 0-9, _ and -, got {shown(bucket)}"
        )
        raise UsageError(message)

    if bucket.endswith("_wait"):
        message = (
            f"bucket: expected a name that does not end in _wait, got {bucket!r}; that ending is "
            "reserved for the bucket that holds wait conditions; choose another name"
        )
        raise UsageError(message)

    if type(replicas) is not int or replicas not in (1, 3, 5):
        message = f"replicas: expected 1, 3 or 5, got {shown(replicas)}"
        raise UsageError(message)

    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 1):
        message = f"max_bytes: expected None or an int of at least 1, got {shown(max_bytes)}"
        raise UsageError(message)

    if domain is not None and (
        not isinstance(domain, str) or not fullmatch(r"[A-Za-z0-9_-]{1,64}", domain)
    ):
        message = (
            "domain: expected None or 1 to 64 characters from A-Z, a-z, 0-9, _ and -, got "
            f"{shown(domain)}"
        )
        raise UsageError(message)


def _check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if type(value) is not bool:
            message = f"{name}: expected True or False, got {shown(value)}"
            raise UsageError(message)
