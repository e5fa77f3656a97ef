"""The Redis store: one script per commit, every key named, every partition in one cluster slot.

Keys, with the default prefix `dslflow:`. `0` is the partition; the part in braces is the hash tag.

| key | type | content |
|---|---|---|
| `{dslflow:0}:layout` | hash | layout version and number of partitions; in partition 0 only |
| `{dslflow:0}:flow:ID` | hash | `head`, a JSON array (below); `body`, the JSON of the flow |
| `{dslflow:0}:chunks:ID` | hash | a body over 1 MiB, in chunks `0`, `1`, …; its name is in `g` and in `body` |
| `{dslflow:0}:upload:COMMIT.n` | hash | such a body before its commit, which renames it; else gone in an hour |
| `{dslflow:0}:steps:ID` | hash | ForEach progress of a flow: `h3` is the head and `b3` the body of step 3 |
| `{dslflow:0}:parts:ID` | hash | parts: `hNAME` is a head, `bNAME` a body; the other fields are below |
| `{dslflow:0}:names:ID` | sorted set | `nNAME` of each part, `cLOG/` of each counter of a log, by their bytes |
| `{dslflow:0}:wait:ID` | hash | a condition: `head`, `terms` (JSON), `any`, `parent`, `expected`, `done` |
| `{dslflow:0}:items:ID` | hash | its children: three digits (member, done, success), then the result |
| `{dslflow:0}:commit:ID` | string | the reply of a recent commit; empty if the commit was given up |
| `{dslflow:0}:index` | sorted set | every index of the partition, by the first letters of its members |

`redis-cli hget '{dslflow:0}:flow:order-1' body` shows a flow. A head is `["commits, newest first",
version, status, created, updated, due, expires, type, type version, position, error, attempts,
reports_to, owner, claim, [tags]]`, times in ms, the tags only if there are some; its first commit is the
record's revision. An id is written as it is, at the end of its key. Every member of the index has the score
0 and is read by `ZRANGEBYLEX`: `fd…` are flows by due time, `fc…` claimed flows by the end of their lease,
`fa…` all flows by creation, `fg…` and `fh…` flows with a tag, by status and creation and by due time, `fj…`
the tags of a flow, `wd…` deadlines, `wt…` parents to notify, `x…` what expires (records.lua writes each of
them).

**Parts.** An entry of a log is the part `LOG/SEQUENCE`, and the counter of the log the part `LOG/`, whose
version is the last sequence. In the hash of a flow's parts, `k3:logKEY` is the sequence of the entry of
`log` (of 3 bytes) that has this key. `lNAME` is there in place of a body over 1 MiB: the number and name
of its chunks, which stay under `upload:`; the index has them as `nl…`, and as `x…u…` once the part is gone.
`x` is the time in the index entry `x…n…` of parts whose flow does not exist. `ni…` are flows with parts.

**History.** With `history=n` the script of a commit copies what a flow was to the hidden part
`//VERSION//` before it writes the flow; a state over 1 MiB is put together from its chunks for that, which
keeps others waiting for some milliseconds.

**Atomic.** A commit is one script. It reads and decides everything before its first write. The reply is
kept with it for twice the store's timeout, so a commit that is sent again returns the same reply. A
read of one record is atomic; a read of several is not. A listing reads the index, then the heads, and
leaves out records that have changed in between.

**Round trips.** 1 for a commit, any read of records, a page of parts, their removal, and a count. 2 or
more, by pages of at most 1,000, for a listing, for what is due, and for a sweep. A page of parts with
bodies is cut after 1 MiB of them, and takes another for each. 2 more at the first use of a store. 1 more for a script
that the server does not know, after a restart or a failover. 1 more, both ways, for a body over 1 MiB;
2 more to remove that of a part, after the commit that replaced or deleted it.
Every sixteenth commit also lists a few expired records, and removes them in a further round trip.

What is due for one type of flow has an index of its own; ended conditions are filtered by the type of
their parent. The size of one index costs the readers of another only its logarithm.

**Durable** is what the server makes durable: with `appendonly yes` an acknowledged commit survives the
process, with `appendfsync always` a power cut. `everysec` may lose the last second or two; on a busy
host, where the server delays writes while a flush is in progress, also when it is killed. A failover
loses commits that the replica had not received. `acknowledged_by=n` acknowledges a commit only when n
replicas have it (`lost_replies`); `min-replicas-to-write` makes the server refuse commits meanwhile.

**A lost connection.** A request that was never sent is a `StoreUnavailableError` at once. A commit whose
reply is lost is sent again with its id until the timeout; then it is a `CommitUncertainError`. The same
holds for `extend`, for the removal of parts, for each page of a sweep, and for `clear`, which removes page
by page, keeps the replies of recent commits, and is done when its last page is. Error replies of the
server become errors of this library that say what to do, with redis-py's exception as the cause
(`refusals`).

**Expiry.** An expired record is absent at once, by the store's clock; the server removes it an hour
later by its own (`PEXPIRE`), unless a sweep came before. Nothing live and no index has a time to live.
So the eviction policy must be `noeviction`: a `volatile` policy removes ended flows early, and replies
of recent commits, so that a commit that is sent again may be a conflict with itself; an `allkeys` policy
removes live flows. A server that is out of memory refuses whole commits, and still reads and deletes.

The parts of a flow have its time to live, but for their large bodies, which a sweep removes. It also
removes parts whose flow does not exist, after their retention. The other keys of a flow go with `UNLINK`,
which frees their memory in the background.

**Large bodies.** A body over 1 MiB is uploaded before its commit and read after its head, a chunk at a
time, on a connection of its own; so others wait for one chunk at most. The commit takes the
upload over: no reader sees chunks of two bodies. Progress is one value, whatever its size.

**Hints.** Every script that writes a flow, an entry of a log, or when something is due, publishes that on the
channel `{dslflow:0}:hints` of its partition (records.lua). A process in which a call waits has one
subscription to all partitions of its store, on a connection of its own, which ends a second after the
last such call. Hints of a cluster go to all its nodes. Redis has one set of channels for all its
databases: stores of one prefix in two of them wake each other in vain.

**Rights.** EVALSHA, EVAL, SCAN, INFO, ZLEXCOUNT and what layout.lua tries at first use, on these keys; WAIT
with `acknowledged_by`. A user who loses one of them later may leave a commit half written: change ACLs
with care. For hints PUBLISH, SUBSCRIBE and PING, and the channels (`&{dslflow:*}:hints`); without them
nothing fails, and calls that wait look after each `poll_interval`.

**Modules.** `layout` has the keys and the formats of heads and conditions, `scripts` what the server
runs, `transport` the requests to a link, `lost_replies` the retries, `refusals` the errors of the server,
`setup` the first use. `reads`, `commits` with `commit_args`, `listings` and `numbers` with `index`, `parts`, `hints`
and `sweeping` implement the store protocol. `doctor`, `index_check` and `parts_check`
examine a store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from catga_store.errors import NotSupportedError
from catga_store.errors import UsageError
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.keys import PART
from catga_store.protocol.masking import shown
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Identify
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import RemoveParts
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.requests import Stats
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.protocol.wakeups import Listen
from catga_store.stores.redis.commits import RedisCommits
from catga_store.stores.redis.hints import RedisHints
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.listings import RedisListings
from catga_store.stores.redis.lost_replies import RedisExchange
from catga_store.stores.redis.numbers import RedisNumbers
from catga_store.stores.redis.parts import RedisParts
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
        message = f"acknowledged_by: expected an int of at least 0, got {shown(value)}"
        raise UsageError(message)

    if value and cluster:
        message = (
            f"acknowledged_by={value} cannot be used with a cluster, because a cluster does not "
            "report how many replicas have received a commit; set min-replicas-to-write on the "
            "cluster's nodes instead"
        )
        raise NotSupportedError(message)

    return value


class RedisProtocol:
    """The store protocol of a Redis store, as conversations over `Pipe`; see the module.

    `partitions` and the layout version are stored at first use and checked at every later opening;
    `timeout` is in seconds.
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
        numbers = RedisNumbers(self._layout, self._exchange, listings, sweeping)
        hints = RedisHints(self._layout)
        parts = RedisParts(self._layout, self._exchange, reads, sweeping)

        def scan(request: Scan) -> Conversation[tuple[Scanned, ...]]:
            return (parts if request.kind == PART else listings).scan(request)

        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: reads.read,
            Steps: reads.steps,
            Commit: commits.commit,
            Resolve: commits.resolve,
            Extend: commits.extend,
            Due: listings.due,
            DueWaits: listings.due_waits,
            Overdue: listings.overdue,
            Find: listings.find,
            Count: listings.count,
            ListDue: numbers.list_due,
            CountDue: numbers.count_due,
            Stats: numbers.stats,
            Scan: scan,
            Parts: parts.parts,
            RemoveParts: parts.remove_parts,
            Sweep: sweeping.sweep,
            Clear: sweeping.clear,
            Ping: self._ping,
            Identify: self._identify,
            Listen: hints.listen,
        }

    def __repr__(self) -> str:
        return f"<RedisProtocol {self._layout.prefix!r}>"

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Perform a store protocol request, and return its reply."""
        handler = self._handlers[type(request)]
        return handler(request) if self._prepared else self._first(handler, request)

    def _first(
        self, handler: Callable[[Any], Conversation[Any]], request: Request[object]
    ) -> Conversation[object]:
        """Check the server and the layout before the first request."""
        yield from prepare(self._layout, self._exchange)
        self._prepared = True
        return (yield from handler(request))

    def _identify(self, _request: Identify) -> Conversation[str]:
        yield from ()
        return f"redis:{self._layout.prefix}"

    def _ping(self, _request: Ping) -> Conversation[None]:
        key = self._layout.layout
        check((yield from self._exchange.ask([Command((b"EXISTS", key), key)])))
