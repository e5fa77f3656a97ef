"""The Redis store: one script per commit, every key named, every partition in one cluster slot.

Keys, with the default prefix `dslflow:`; `0` is the partition, and the part in braces the hash tag:

| key | type | what |
|---|---|---|
| `{dslflow:0}:layout` | hash | layout version and number of partitions; in partition 0 only |
| `{dslflow:0}:flow:ID` | hash | `head`, a JSON array (below); `body`, the JSON of the flow |
| `{dslflow:0}:parts:ID` | hash | a body over 1 MiB, in parts `0`, `1`, …; `g` names them, as `body` does |
| `{dslflow:0}:upload:COMMIT.n` | hash | the same on its way: taken by its commit, or gone in an hour |
| `{dslflow:0}:steps:ID` | hash | ForEach progress of a flow: `h3` head and `b3` body of step 3 |
| `{dslflow:0}:wait:ID` | hash | a condition: `head`, `terms` (JSON), `any`, `parent`, `expected`, `done` |
| `{dslflow:0}:items:ID` | hash | its children: three digits (member, done, success), then the result |
| `{dslflow:0}:commit:ID` | string | the reply of a recent commit; empty if it was given up |
| `{dslflow:0}:index` | sorted set | every index of the partition, by the first letters of its members |

`redis-cli hget '{dslflow:0}:flow:order-1' body` shows a flow. A head is `["commits, newest first",
version, status, created, updated, due, expires, type, type version, position, error, attempts,
owner, claim]`, times in ms; its first commit is the record's revision. An id is written as it is,
at the end of its key. The index is all score 0 and is read by `ZRANGEBYLEX`; `fd…` are the due
flows, `fa…` all flows by time, `wd…` deadlines, `wt…` parents to be told, `x…` what expires
(records.lua writes each of them).

What is atomic: a commit is one script; it reads and judges everything before its first write, and
the reply is kept with it for twice the store's timeout, so a commit that is sent again answers as
the first time. A read of one record is atomic, one of several is not. A listing is: which records,
then their heads, and what has changed in between is left out.

What is due for one type of flow is an index of its own; ended conditions are looked through for
those whose parent has the type. No index grows the cost of another's reads beyond its logarithm.

Round trips: a commit, any read of records, a count 1; a listing, what is due and a sweep 2 or more,
by pages of at most 1,000; the first use of a store 2 more; an unknown script (a server restarted,
failed over) 1 more; a body over 1 MiB 1 more, both ways. A commit in sixteen looks for a few expired
records, and removes them in another.

What expires is absent at once, by the store's clock; the server forgets it an hour later by its own
(`PEXPIRE`), if no sweep came before. Nothing live and no index has a time to live. So the eviction
policy must be `noeviction` (a `volatile` one loses ended flows early, and replies of recent commits,
so that one that is sent again may meet itself as a conflict); `allkeys` policies lose live flows. A
server that is out of memory refuses commits whole and still reads and deletes.

What is acknowledged is as durable as the server makes it: with `appendonly yes` it outlives the
process, and with `appendfsync always` the machine; `everysec` may lose the last second or two, and
on a busy host, where the server puts off writing while a flush is under way, also when it is killed. A
failover loses what was not yet replicated, also commits that were acknowledged, unless the server
is told to refuse them (`min-replicas-to-write`).

A lost connection: a request that was never sent is `StoreUnavailableError` at once. A commit whose
reply is lost is sent again, with its id, until the timeout; then it is `CommitUncertainError`. So it
is with `extend`, with each page of a sweep, and with `clear`, which goes page by page, keeps the
replies of recent commits, and has been done once its last page has.
Server errors become errors of ours that say what to do, with the client library's as the cause.

A body over 1 MiB is sent ahead of its commit and read after its head, a part at a time on a
connection that nobody shares, so others wait for a part at most. It is taken over by the commit: no
reader sees some parts of one body and some of another. Progress is one value, whatever its size.

Needs EVALSHA, EVAL, SCAN, INFO, ZLEXCOUNT and what layout.lua tries at first use, on these keys. A user
who loses the right to one of them later may leave a commit half written: change ACLs with care.

`layout` says where records lie and how they are written, `scripts` has what the server runs, `transport`
asks and asks again, `refusals` are the server's errors as ours, `setup` is the first use; `reads`,
`words` and `commits`, `index` and `listings`, and `sweeping` do what the store protocol asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from catga_store.errors import NotSupportedError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.stores.redis.commits import RedisCommits
from catga_store.stores.redis.exchange import RedisExchange
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.listings import RedisListings
from catga_store.stores.redis.reads import RedisReads
from catga_store.stores.redis.refusals import check
from catga_store.stores.redis.setup import prepare
from catga_store.stores.redis.sweeping import RedisSweeping
from catga_store.stores.redis.transport import Command

__all__ = ["RedisProtocol", "check_acknowledged_by"]


def check_acknowledged_by(value: object, *, cluster: bool) -> int:
    """Return the number of replicas that must have each write, else raise.

    `UsageError` unless it is an int of at least 0; `NotSupportedError` for a cluster, where a node
    that redirects a commit has counted the replicas of other writes.
    """
    if type(value) is not int or value < 0:
        message = f"acknowledged_by: expected an int of at least 0, got {value!r}"
        raise UsageError(message)

    if value and cluster:
        message = (
            f"acknowledged_by={value}: expected a single server or a Sentinel client, got a cluster;"
            " a cluster cannot say which replicas have a commit; set min-replicas-to-write on its nodes"
        )
        raise NotSupportedError(message)

    return value


class RedisProtocol:
    """The store protocol of a Redis store, as conversations over `Pipe`; see the module.

    `partitions` and the layout version are stored at first use and checked by whoever opens the
    store later; `timeout` is in seconds.
    """

    def __init__(
        self, *, prefix: str, partitions: int, timeout: float, acknowledged_by: int = 0
    ) -> None:
        self._layout = RedisLayout(prefix, partitions)
        self._exchange = RedisExchange(timeout, acknowledged_by)
        self._prepared = False
        reads = RedisReads(self._layout, self._exchange)
        sweeping = RedisSweeping(self._layout, self._exchange)
        commits = RedisCommits(self._layout, self._exchange, sweeping)
        listings = RedisListings(self._layout, self._exchange, reads, sweeping)
        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: reads.read,
            Steps: reads.steps,
            Commit: commits.commit,
            Resolve: commits.resolve,
            Extend: commits.extend,
            Due: listings.due,
            Overdue: listings.overdue,
            Find: listings.find,
            Count: listings.count,
            Scan: listings.scan,
            Sweep: sweeping.sweep,
            Clear: sweeping.clear,
            Ping: self._ping,
        }

    def __repr__(self) -> str:
        return f"<RedisProtocol {self._layout.prefix!r}>"

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Do what a store protocol request asks and return its reply."""
        handler = self._handlers[type(request)]
        return handler(request) if self._prepared else self._first(handler, request)

    def _first(
        self, handler: Callable[[Any], Conversation[Any]], request: Request[object]
    ) -> Conversation[object]:
        """See that the server will do, and that the store is laid out as it was opened."""
        yield from prepare(self._layout, self._exchange)
        self._prepared = True
        return (yield from handler(request))

    def _ping(self, _request: Ping) -> Conversation[None]:
        key = self._layout.layout
        check((yield from self._exchange.ask([Command((b"EXISTS", key), key)])))
