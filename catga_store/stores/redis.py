"""The Redis store: one script per commit, every key named, every partition in one cluster slot.

Keys, with the default prefix `dslflow:`; `0` is the partition, and the part in braces the hash tag:

| key | type | what |
|---|---|---|
| `{dslflow:0}:layout` | hash | layout version and number of partitions; in partition 0 only |
| `{dslflow:0}:flow:ID` | hash | `head`, a JSON array (below); `body`, the JSON of the flow |
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
(redis_records.lua writes each of them).

What is atomic: a commit is one script; it reads and judges everything before its first write, and
the reply is kept with it for twice the store's timeout, so a commit that is sent again answers as
the first time. A read of one record is atomic, one of several is not. A listing is: which records,
then their heads, and what has changed in between is left out.

What is due for one type of flow is an index of its own; ended conditions are looked through for
those whose parent has the type. No index grows the cost of another's reads beyond its logarithm.

Round trips: a commit, any read of records, a count 1; a listing, what is due and a sweep 2 or more,
by pages of at most 1,000; the first use of a store 2 more; an unknown script (a server restarted,
failed over) 1 more. A commit in sixteen looks for a few expired records, and removes them in another.

What expires is absent at once, by the store's clock; the server forgets it an hour later by its own
(`PEXPIRE`), if no sweep came before. Nothing live and no index has a time to live. So the eviction
policy must be `noeviction` (or a `volatile` one, which loses ended flows early); `allkeys` policies
lose live flows. A server that is out of memory refuses commits whole and still reads and deletes.

What is acknowledged is as durable as the server makes it: with `appendonly yes` it outlives the
process, and with `appendfsync always` the machine; `everysec` may lose the last second or two. A
failover loses what was not yet replicated, also commits that were acknowledged, unless the server
is told to refuse them (`min-replicas-to-write`).

A lost connection: a request that was never sent is `StoreUnavailableError` at once. A commit whose
reply is lost is sent again, with its id, until the timeout; then it is `CommitUncertainError`.
Server errors become errors of ours that say what to do, with the client library's as the cause.

A body is one value: one of 64 MiB keeps the server from others for some 0.4 s while it is written.

Needs EVALSHA, EVAL and the commands that redis_layout.lua tries at first use, on these keys. A user
who loses the right to one of them later may leave a commit half written: change ACLs with care.

The file is over 400 lines because it is read as a whole: what is stored, who asks, what is answered.
"""

from __future__ import annotations

import heapq
import logging
import math
import random
import re
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any
from typing import NamedTuple
from typing import NoReturn
from typing import TypeVar

import msgspec
from redis import exceptions

from catga_store.conversation import Command
from catga_store.conversation import Conversation
from catga_store.conversation import NotSentError
from catga_store.conversation import Pause
from catga_store.conversation import Pipe
from catga_store.conversation import ReplyLostError
from catga_store.conversation import Request
from catga_store.errors import CatgaStoreError
from catga_store.errors import CommitUncertainError
from catga_store.errors import CorruptRecordError
from catga_store.errors import PartitionCountError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.keys import FLOW
from catga_store.keys import PROGRESS
from catga_store.keys import WAIT
from catga_store.keys import Key
from catga_store.keys import partition_of
from catga_store.records import PENDING
from catga_store.records import Applied
from catga_store.records import Change
from catga_store.records import Clear
from catga_store.records import Commit
from catga_store.records import Complete
from catga_store.records import Conflict
from catga_store.records import Count
from catga_store.records import Delete
from catga_store.records import Due
from catga_store.records import Extend
from catga_store.records import Filter
from catga_store.records import Find
from catga_store.records import Found
from catga_store.records import Head
from catga_store.records import Item
from catga_store.records import Outcome
from catga_store.records import Overdue
from catga_store.records import Ping
from catga_store.records import Put
from catga_store.records import Read
from catga_store.records import Record
from catga_store.records import Refused
from catga_store.records import Reply
from catga_store.records import Resolve
from catga_store.records import Scan
from catga_store.records import Scanned
from catga_store.records import SetWait
from catga_store.records import Steps
from catga_store.records import Sweep
from catga_store.records import Terms

__all__ = ["RedisWaist", "check_prefix"]

T = TypeVar("T")

LAYOUT = 1
"""The version of what a store keeps, and where."""

LARGE = 1024 * 1024
"""Commits over so many bytes do not share a connection with others."""

OLDEST = 6, 2
"""The oldest version of Redis that will do."""

_MARKER = -2
_LOWEST, _HIGHEST = -5, 6
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
_SWEEP_EVERY = 16
_SWEEP_A_FEW = 8
_PAGE = 1000
_SWEEP_PAGE = 100
_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE = 0.5
_END = b":"  # follows every digit


# --- scripts ------------------------------------------------------------------------------------


class _Script(NamedTuple):
    sha: bytes
    source: bytes


def _script(name: str, *, shared: bool) -> _Script:
    here = Path(__file__).parent
    source = (here / f"redis_{name}.lua").read_bytes()
    if shared:
        source = (here / "redis_records.lua").read_bytes() + source

    return _Script(sha1(source, usedforsecurity=False).hexdigest().encode(), source)


_COMMIT = _script("commit", shared=True)
_EXTEND = _script("extend", shared=True)
_SWEEP = _script("sweep", shared=True)
_RESOLVE = _script("resolve", shared=False)
_LAY_OUT = _script("layout", shared=False)
_READ_WAIT = _script("read_wait", shared=False)
_STEPS = _script("steps", shared=False)

_SOURCES = {
    script.sha: script.source
    for script in (_COMMIT, _EXTEND, _SWEEP, _RESOLVE, _LAY_OUT, _READ_WAIT, _STEPS)
}


def _call(
    script: _Script, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]
) -> Command:
    return Command((b"EVALSHA", script.sha, len(keys), *keys, *arguments), keys[0])


# --- what is stored -----------------------------------------------------------------------------

_heads: msgspec.json.Decoder[tuple[Any, ...]] = msgspec.json.Decoder(
    tuple[
        str, int, int, int, int, int | None, int | None,  # commits to expires_ms
        str, int, str, str | None, int, str | None, str | None,  # type to claim
    ]
)  # fmt: skip
_terms: msgspec.json.Decoder[tuple[Any, ...]] = msgspec.json.Decoder(
    tuple[tuple[str, ...], bool, int | None, str | None]
)
_outcomes: msgspec.json.Decoder[list[list[Any]]] = msgspec.json.Decoder(list[list[Any]])
_encode = msgspec.json.Encoder().encode


def _write_head(head: Head) -> bytes:
    """A head as it is stored, but for its commits, which the script adds."""
    version, status, created, updated, kind, kind_version, position, error, attempts = head[:9]
    owner, claim, due, expires = head[9:13]
    return _encode(
        (
            *("", version, status, created, updated, due, expires),
            *(kind, kind_version, position, error, attempts, owner, claim),
        )
    )


def _read_head(key: Key, text: Any) -> Head:
    try:
        fields = _heads.decode(text)
    except (msgspec.DecodeError, TypeError) as error:
        raise _corrupt(key, text) from error

    if (
        not _LOWEST <= fields[2] <= _HIGHEST
        or not _FIRST_MS <= fields[3] <= _LAST_MS
        or not _FIRST_MS <= fields[4] <= _LAST_MS
    ):
        raise _corrupt(key, text)

    commits = tuple(fields[0].split())
    revision = commits[0] if commits else ""
    return Head.of((*fields[1:5], *fields[7:14], *fields[5:7], revision, commits))


def _corrupt(key: Key, found: object) -> CorruptRecordError:
    message = (
        f"{key} cannot be read: {repr(found)[:100]} is none of this library's; it is left as it is"
    )
    return CorruptRecordError(message, key=tuple(key))


def _text(key: Key, data: Any) -> str:
    try:
        text: str = data.decode()
    except (AttributeError, UnicodeDecodeError) as error:
        raise _corrupt(key, data) from error

    return text


def _read_terms(key: Key, data: Any) -> Terms:
    try:
        return Terms(*_terms.decode(data))
    except (msgspec.DecodeError, TypeError) as error:
        raise _corrupt(key, data) from error


def _read_record(key: Key, head: Any, body: Any, now_ms: int) -> Record | None:
    if head is None and body is None:
        return None

    read = _read_head(key, head)
    if body is None:
        raise _corrupt(key, body)

    return None if _has_expired(read, now_ms) else Record(read, body)


def _read_wait(key: Key, reply: Any) -> Record:
    """A condition in any state."""
    head, terms, flat = reply
    read = _read_head(key, head)
    hidden = read.status < 0
    items: list[Item] = []

    for child, value in zip(flat[::2], flat[1::2], strict=True):
        member, done, success = value[:1], value[1:2], value[2:3]
        if done == b"1" and (hidden or member == b"1"):
            items.append(Item(_text(key, child), success == b"1", value[3:]))
        elif done not in (b"0", b"1"):
            raise _corrupt(key, value)

    return Record(read, b"", _read_terms(key, terms), tuple(items))


def _has_expired(head: Head, now_ms: int) -> bool:
    return head.expires_ms is not None and head.expires_ms <= now_ms


# --- the index ----------------------------------------------------------------------------------


def _stamp(ms: int) -> bytes:
    """Any time as 15 digits, in order."""
    return b"%015d" % (ms - _FIRST_MS)


def _newest(ms: int) -> bytes:
    """Any time as 15 digits, the latest first."""
    return b"%015d" % (_LAST_MS - ms)


def _named(text: str) -> bytes:
    data = text.encode()
    return b"%d:%b" % (len(data), data)


class _Entry(NamedTuple):
    """A member of the index: by what it is ordered, and the record it stands for."""

    place: bytes
    id: bytes
    parent: bytes
    member: bytes


class _Expiring(NamedTuple):
    """A member of the index that says what has expired, and how it was listed."""

    member: bytes
    kind: str
    status: bytes
    created_ms: int
    of: bytes
    id: bytes


_EXPIRING = re.compile(rb"x\d{15}([fw])([0-9-])(\d{15})(\d+):(.*)", re.DOTALL)


def _read_expiring(member: bytes) -> _Expiring | None:
    found = _EXPIRING.fullmatch(member)
    if found is None:
        return None  # none of ours

    kind, status, created, length, rest = found.groups()
    size, created_ms = int(length), _LAST_MS - int(created)
    listed = FLOW if kind == b"f" else WAIT
    return _Expiring(member, listed, status, created_ms, rest[:size], rest[size:])


def _listing(wanted: Filter) -> bytes:
    """What the members of a listing begin with."""
    kind, of = (b"f", wanted.type) if wanted.kind == FLOW else (b"w", wanted.parent)
    status = b"" if wanted.status is None else b"%d" % wanted.status
    if of is None:
        return kind + (b"s" + status if status else b"a")

    letter = b"b" + status if status else b"t" if wanted.kind == FLOW else b"p"
    return kind + letter + _named(of)


def _bounds(wanted: Filter, after: tuple[int, str] | None) -> tuple[bytes, bytes]:
    """The range of a listing, as ZRANGEBYLEX takes it."""
    begin = _listing(wanted)
    first, last = b"[" + begin, b"(" + begin + _END
    if wanted.created_before_ms is not None:
        first += _newest(wanted.created_before_ms - 1)

    if wanted.created_after_ms is not None:
        last = b"(" + begin + _newest(wanted.created_after_ms - 1)

    if after is not None:
        seen = begin + _newest(after[0]) + after[1].encode()
        if seen >= first[1:]:
            first = b"(" + seen

    return first, last


# --- errors of the server -------------------------------------------------------------------------

_UNWRITTEN = "; nothing was written"

_REFUSALS: tuple[
    tuple[type[Exception] | None, tuple[str, ...], type[CatgaStoreError], str], ...
] = (
    (
        exceptions.AuthenticationError,
        ("NOAUTH", "WRONGPASS", "invalid username-password"),
        StoreConfigError,
        "the server wants another user or password: give them in the URL, or to the client",
    ),
    (
        exceptions.NoPermissionError,
        ("NOPERM", "ACL failure", "executing the script can't"),
        StoreConfigError,
        "the server's ACL refuses what `catga_store.stores.redis` says it needs: allow it this user",
    ),
    (
        exceptions.OutOfMemoryError,
        ("OOM command",),
        StoreUnavailableError,
        "the server is out of memory: free some or raise maxmemory, then try again",
    ),
    (
        exceptions.ReadOnlyError,
        ("READONLY",),
        StoreUnavailableError,
        "the server is a read-only replica: connect to the primary, or wait for the failover to end",
    ),
    (
        exceptions.BusyLoadingError,
        ("LOADING",),
        StoreUnavailableError,
        "the server is still loading its data: try again in a while",
    ),
    (
        exceptions.MasterDownError,
        ("MASTERDOWN",),
        StoreUnavailableError,
        "the server is a replica that has lost its primary: wait for the failover to end",
    ),
    (
        exceptions.ClusterDownError,
        ("CLUSTERDOWN",),
        StoreUnavailableError,
        "the cluster does not serve this partition now: bring its node back, or wait for the failover",
    ),
    (
        exceptions.AskError,
        ("MOVED",),
        StoreConfigError,
        "the server is a node of a cluster: open it as redis+cluster://, or with a RedisCluster client",
    ),
    (
        exceptions.TryAgainError,
        ("TRYAGAIN",),
        StoreUnavailableError,
        "the cluster is moving this partition to another node: try again",
    ),
    (
        None,
        ("MISCONF",),
        StoreUnavailableError,
        "the server cannot save to its disk and refuses writes: mend that, then try again",
    ),
    (
        None,
        ("NOREPLICAS",),
        StoreUnavailableError,
        "too few replicas are connected for the server to accept writes: bring them back",
    ),
    (
        None,
        ("BUSY ",),
        StoreUnavailableError,
        "the server is busy with somebody's long script: try again, or end it with SCRIPT KILL",
    ),
    (
        None,
        ("WRONGTYPE",),
        StoreConfigError,
        "a key of this store holds what is none of this library's: use another prefix, or remove it",
    ),
    (
        None,
        ("unknown command", "Unknown Redis command", "CROSSSLOT"),
        StoreConfigError,
        "the server is none that the store can use: it needs Redis 6.2 or later, or Valkey",
    ),
)


def _refusal(error: Exception) -> CatgaStoreError:
    """What to tell of an error that the server answered."""
    said = str(error)

    for kind, texts, ours, advice in _REFUSALS:
        if (kind is not None and isinstance(error, kind)) or any(text in said for text in texts):
            return ours(f"{advice}{_UNWRITTEN} (the server said: {said})")

    if isinstance(error, exceptions.ConnectionError):
        return StoreUnavailableError(f"the server refuses to be used: {said}{_UNWRITTEN}")

    return StoreConfigError(f"the server refused what the store asked: {said}{_UNWRITTEN}")


def _raise(error: Exception) -> NoReturn:
    raise _refusal(error) from error


def _check(replies: Iterable[object]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            _raise(reply)


def _uncertain(commit_id: str, keys: Iterable[Key], error: Exception) -> CommitUncertainError:
    named = tuple(dict.fromkeys(keys))
    message = (
        f"commit {commit_id} was sent and its outcome is not known ({error});"
        " resolve_commit(error) settles whether it was written"
    )
    return CommitUncertainError(message, commit_id=commit_id, keys=named)


def _unavailable(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"{error}{_UNWRITTEN}")


def check_prefix(prefix: object) -> str:
    """Answer a prefix that keys can begin with, else raise `UsageError`."""
    if (
        isinstance(prefix, str)
        and prefix
        and prefix.isprintable()
        and not re.search(r"[{}]|\d\Z", prefix)
        and len(prefix.encode()) <= 64  # noqa: PLR2004  the message says it
    ):
        return prefix

    message = (
        f"prefix is {prefix!r}; it must be 1 to 64 bytes of printable text without braces that does"
        " not end with a digit, as 'dslflow:'; nothing was sent"
    )
    raise UsageError(message)


# --- the store ----------------------------------------------------------------------------------


class RedisWaist:
    """The waist of a Redis store, as conversations over `Pipe`; see the module.

    `partitions` and the layout version are stored at first use and checked by whoever opens the
    store later; `timeout` is in seconds.
    """

    def __init__(self, *, prefix: str, partitions: int, timeout: float) -> None:
        self.prefix = check_prefix(prefix)
        self._partitions = partitions
        self._timeout = timeout
        self._keep_ms = max(int(timeout * 2000), 1)
        self._prepared = False
        self._commits = 0
        self._tags = tags = [f"{{{prefix}{n}}}:".encode() for n in range(partitions)]
        self._layout_key = tags[0] + b"layout"
        self._flow = [tag + b"flow:" for tag in tags]
        self._steps_of = [tag + b"steps:" for tag in tags]
        self._wait = [tag + b"wait:" for tag in tags]
        self._items = [tag + b"items:" for tag in tags]
        self._log = [tag + b"commit:" for tag in tags]
        self._index = [tag + b"index" for tag in tags]
        self._handlers: dict[type, Callable[[Any], Conversation[Any]]] = {
            Read: self._read,
            Steps: self._steps,
            Commit: self._commit,
            Resolve: self._resolve,
            Extend: self._extend,
            Due: self._due,
            Overdue: self._overdue,
            Find: self._find,
            Count: self._count,
            Scan: self._scan,
            Sweep: self._sweep,
            Clear: self._clear,
            Ping: self._ping,
        }

    def __repr__(self) -> str:
        return f"<RedisWaist {self.prefix!r}>"

    def converse(self, request: Request[object]) -> Conversation[object]:
        """Do what a waist request asks and return its reply."""
        handler = self._handlers[type(request)]
        return handler(request) if self._prepared else self._first(handler, request)

    def _partition(self, any_id: str) -> int:
        return 0 if self._partitions == 1 else partition_of(any_id, self._partitions)

    def _keys(self, key: Key) -> tuple[bytes, bytes]:
        """The two keys of a record: flow and steps, or condition and items."""
        number, data = self._partition(key.id), key.id.encode()
        if key.kind == WAIT:
            return self._wait[number] + data, self._items[number] + data

        return self._flow[number] + data, self._steps_of[number] + data

    # asking ---------------------------------------------------------------------------------------

    def _fly(
        self, commands: tuple[Command, ...], *, writes: bool, large: bool = False
    ) -> Conversation[list[Any]]:
        """Send commands once; scripts that the server does not know are sent whole."""
        replies: list[Any] = list((yield Pipe(commands, writes, large)))
        unknown = [
            place
            for place, reply in enumerate(replies)
            if isinstance(reply, exceptions.NoScriptError)
        ]
        if unknown:
            again = tuple(_with_source(commands[place]) for place in unknown)
            answers: tuple[Any, ...] = yield Pipe(again, writes, large)
            for place, answer in zip(unknown, answers, strict=True):
                replies[place] = answer

        return replies

    def _ask(self, commands: Sequence[Command], *, writes: bool = False) -> Conversation[list[Any]]:
        """Send commands that may be sent twice, until they are answered or the time is up.

        Errors among the replies are the caller's to look at, but for those that pass by themselves.
        """
        sent = tuple(commands)
        until = time.monotonic() + self._timeout
        pause = _PAUSE_SECONDS

        while True:
            try:
                replies = yield from self._fly(sent, writes=writes)
            except NotSentError as error:
                raise _unavailable(error) from error
            except ReplyLostError as error:
                failure: Exception = error
            else:
                moving = [reply for reply in replies if isinstance(reply, exceptions.TryAgainError)]
                if not moving:
                    return replies

                failure = moving[0]

            if time.monotonic() + pause > until:
                if isinstance(failure, exceptions.RedisError):
                    _raise(failure)

                message = f"{failure}; ask again"
                raise StoreUnavailableError(message) from failure

            yield Pause(pause * random.uniform(0.5, 1))  # noqa: S311  jitter
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _first(
        self, handler: Callable[[Any], Conversation[Any]], request: Request[object]
    ) -> Conversation[object]:
        """See that the server will do, and that the store is laid out as it was opened."""
        key = self._layout_key
        (info,) = yield from self._ask([Command((b"INFO", b"server"), key)])
        if isinstance(info, Exception):
            if not isinstance(_refusal(info), StoreConfigError) or isinstance(
                info, exceptions.AuthenticationError
            ):
                _raise(info)
        else:
            _check_version(info)

        keys = key, key.removesuffix(b"layout") + b"probe"
        lay_out = _call(_LAY_OUT, keys, (LAYOUT, self._partitions))
        (layout,) = yield from self._ask([lay_out], writes=True)
        if isinstance(layout, Exception):
            _raise(layout)

        _check_layout(layout, self._partitions)
        self._prepared = True
        return (yield from handler(request))

    # one handler per request ----------------------------------------------------------------------

    def _read(self, request: Read) -> Conversation[tuple[Record | None, ...]]:
        keys = request.keys
        if len(keys) == 1 and keys[0].kind == FLOW:
            return (yield from self._read_flow(keys[0], request.now_ms))

        commands: list[Command] = []
        for key in keys:
            first, second = self._keys(key)
            if key.kind == FLOW:
                commands.append(Command((b"HMGET", first, b"head", b"body"), first))
            elif key.kind == WAIT:
                commands.append(_call(_READ_WAIT, (first, second), ()))
            else:
                step = b"%d" % key.step
                commands.append(Command((b"HMGET", first, b"head"), first))
                commands.append(Command((b"HMGET", second, b"h" + step, b"b" + step), second))

        replies = iter((yield from self._ask(commands)) if commands else ())
        return tuple([self._answer(key, replies, request.now_ms) for key in keys])

    def _read_flow(self, key: Key, now_ms: int) -> Conversation[tuple[Record | None, ...]]:
        """What most reads are: one flow."""
        first = self._flow[self._partition(key.id)] + key.id.encode()
        command = Command((b"HMGET", first, b"head", b"body"), first)
        try:
            (reply,) = yield Pipe((command,), writes=False)
        except (NotSentError, ReplyLostError):
            (reply,) = yield from self._ask([command])

        if type(reply) is not list:
            _raise_for(key, reply)

        return (_read_record(key, reply[0], reply[1], now_ms),)

    def _answer(self, key: Key, replies: Iterator[Any], now_ms: int) -> Record | None:
        reply = next(replies)
        if isinstance(reply, Exception):
            _raise_for(key, reply)

        if key.kind == FLOW:
            return _read_record(key, reply[0], reply[1], now_ms)

        if key.kind == PROGRESS:
            flow, reply = reply[0], next(replies)
            if isinstance(reply, Exception):
                _raise_for(key, reply)

            gone = flow is not None and _has_expired(_read_head(Key(FLOW, key.id), flow), now_ms)
            return None if gone else _read_record(key, reply[0], reply[1], now_ms)

        if reply is None:
            return None

        record = _read_wait(key, reply)
        hidden = record.head.status < 0 or _has_expired(record.head, now_ms)
        return None if hidden else record

    def _steps(self, request: Steps) -> Conversation[tuple[Found, ...]]:
        keys = self._keys(Key(FLOW, request.flow_id))
        (reply,) = yield from self._ask([_call(_STEPS, keys, ("0",))])
        records = _read_steps(request.flow_id, reply, request.now_ms)
        return tuple([Found(key, record.head) for key, record in records])

    def _commit(self, commit: Commit) -> Conversation[Reply]:
        change: Any = commit.changes[0]
        number = self._partition(change.key.id)
        is_plain = len(commit.changes) == 1 and type(change) is Put and change.key.kind == FLOW
        command, large = (
            self._put_command(commit, number) if is_plain else self._commit_command(commit, number)
        )
        commands: tuple[Command, ...] = (command,)
        self._commits += 1
        if self._commits % _SWEEP_EVERY == 0:
            commands = command, self._expired(number, commit.now_ms, _SWEEP_A_FEW)

        # From before it is sent first: its reply is kept for twice as long as it may be sent again.
        until = time.monotonic() + self._timeout
        try:
            replies = yield Pipe(commands, writes=True, large=large)
            reply: Any = replies[0]
            failure: Exception | None = None
        except (NotSentError, ReplyLostError) as error:
            replies, reply, failure = (), None, error

        if failure is None and isinstance(reply, exceptions.RedisError):
            failure = reply

        if failure is not None:
            reply = yield from self._commit_again(commit, command, failure, until, large=large)

        if len(replies) > 1 and type(replies[1]) is list and replies[1]:
            yield from self._tidy(number, commit.now_ms, replies[1])

        if type(reply) is bytes:
            if is_plain and reply == _planned(commit):
                head = change.head
                return Applied((Outcome(head.version, commit.id, head.status, head.created_ms),))

            return Applied(_read_outcomes(commit.id, reply))

        if reply == 0:
            message = (
                f"commit {commit.id} was given up by resolve_commit before it arrived;"
                " nothing of it was written"
            )
            raise StoreUnavailableError(message)

        refused: Any = reply
        return _read_conflicts(commit, refused)

    def _commit_again(
        self, commit: Commit, command: Command, failure: Exception, until: float, *, large: bool
    ) -> Conversation[Any]:
        """After a first failure: go on for as long as a reply is missing and there is time.

        What the server refuses is final, unless an earlier try, whose reply was lost, may have
        been applied: then only the reply of the commit itself settles it.
        """
        pause = _PAUSE_SECONDS
        is_lost = False

        while True:
            is_lost = is_lost or isinstance(failure, ReplyLostError)
            if isinstance(failure, exceptions.NoScriptError):
                command = _with_source(command)
            else:
                is_final = not (is_lost or isinstance(failure, exceptions.TryAgainError))
                if is_final or time.monotonic() + pause > until:
                    _give_up(commit, failure, is_lost=is_lost)

                yield Pause(pause * random.uniform(0.5, 1))  # noqa: S311  jitter
                pause = min(2 * pause, _LONGEST_PAUSE)

            try:
                (reply,) = yield Pipe((command,), writes=True, large=large)
            except (NotSentError, ReplyLostError) as error:
                failure = error
                continue

            if not isinstance(reply, exceptions.RedisError):
                return reply

            failure = reply

    def _tidy(self, number: int, now_ms: int, members: Sequence[bytes]) -> Conversation[None]:
        """Remove a few expired records after a commit, which is done whatever comes of it."""
        try:
            yield from self._fly((self._sweep_command(number, now_ms, members),), writes=True)
        except (NotSentError, ReplyLostError):
            _log.debug("the sweep after a commit was lost; another will follow")

    def _put_command(self, commit: Commit, number: int) -> tuple[Command, bool]:
        """What most commits are: one flow. The words are those of `_commit_command`."""
        put: Any = commit.changes[0]
        data = put.key.id.encode()
        log = self._log[number] + commit.id.encode()
        retain_ms = commit.retain_ms
        words = (
            *(b"EVALSHA", _COMMIT.sha, 4, log, self._index[number]),
            *(self._flow[number] + data, self._steps_of[number] + data),
            *(commit.id, commit.now_ms, b"" if retain_ms is None else retain_ms, self._keep_ms),
            *(b"P", b"F", data, 0, b"" if put.expected is None else put.expected),
            *(_flags(put, leaves=False), _write_head(put.head), put.body),
        )
        return Command(words, log), len(put.body) > LARGE

    def _commit_command(self, commit: Commit, number: int) -> tuple[Command, bool]:
        now_ms, retain_ms = commit.now_ms, commit.retain_ms
        log = self._log[number] + commit.id.encode()
        keys: list[bytes] = [log, self._index[number]]
        retain = b"" if retain_ms is None else retain_ms
        words: list[bytes | str | int] = [commit.id, now_ms, retain, self._keep_ms]
        leaving: set[str] = set()
        size = 0

        if len(commit.changes) > 1:
            leaving = {
                change.key.id
                for change in commit.changes
                if change.key.kind == FLOW
                and (isinstance(change, Delete) or (isinstance(change, Put) and change.fresh))
            }

        for change in commit.changes:
            key = change.key
            keys += self._keys(key)
            if isinstance(change, Put):
                size += len(change.body)

            _add_change(words, change, leaves=key.kind == PROGRESS and key.id in leaving)

        words[:0] = (b"EVALSHA", _COMMIT.sha, len(keys), *keys)
        return Command(tuple(words), log), size > LARGE

    def _resolve(self, request: Resolve) -> Conversation[Applied | None]:
        keys = [Key(*key) for key in request.keys]
        number = self._partition(keys[0].id) if keys else 0
        log = self._log[number] + request.id.encode()
        places = [self._keys(key)[key.kind == PROGRESS] for key in keys]
        fields = [b"h%d" % key.step if key.kind == PROGRESS else b"head" for key in keys]
        command = _call(_RESOLVE, (log, *places), (request.id, self._keep_ms, *fields))
        try:
            (reply,) = yield from self._ask([command], writes=True)
            _check([reply])
        except StoreUnavailableError as error:
            raise _uncertain(request.id, keys, error) from error

        if type(reply) is bytes:
            return Applied(_read_outcomes(request.id, reply))

        return Applied(()) if reply else None

    def _extend(self, request: Extend) -> Conversation[Head | None]:
        flow, _steps = self._keys(request.key)
        index = self._index[self._partition(request.key.id)]
        words = request.key.id.encode(), request.claim, request.due_ms, request.now_ms
        (reply,) = yield from self._ask([_call(_EXTEND, (flow, index), words)], writes=True)
        if isinstance(reply, Exception):
            _raise_for(request.key, reply)

        return None if reply is None else _read_head(request.key, reply)

    # what is due ------------------------------------------------------------------------------------

    def _due(self, request: Due) -> Conversation[tuple[Found, ...]]:
        now_ms, limit, wanted = request.now_ms, request.limit, request.type
        upto = _stamp(now_ms + 1)

        def flow(head: Head, _parent: Head | None) -> bool:
            return _is_due(head, now_ms) and (wanted is None or head.type in {"", wanted})

        def wait(head: Head, parent: Head | None) -> bool:
            is_ours = (
                wanted is None
                or parent is None
                or parent.type in {"", wanted}
                or _has_expired(parent, now_ms)
            )
            return is_ours and _is_due(head, now_ms)

        begins = [b"fd"] if wanted is None else [b"fe" + _named(name) for name in ("", wanted)]
        flows = [(begin, b"[" + begin, b"(" + begin + upto) for begin in begins]
        told = [(_TOLD, b"[" + _TOLD, b"(" + _TOLD + upto)]
        found = yield from self._gather(FLOW, flows, limit, flow, _stamp_of_due)
        found += yield from self._gather(
            WAIT, told, limit, wait, _stamp_of_due, parents=wanted is not None
        )
        found.sort(key=lambda entry: entry.head.due_ms or 0)
        return tuple(found)

    def _overdue(self, request: Overdue) -> Conversation[tuple[Found, ...]]:
        now_ms = request.now_ms

        def is_overdue(head: Head, _parent: Head | None) -> bool:
            return head.status == PENDING and _is_due(head, now_ms)

        deadlines = (b"wd", b"[wd", b"(wd" + _stamp(now_ms + 1))
        return tuple(
            (
                yield from self._gather(
                    WAIT, [deadlines], request.limit, is_overdue, _stamp_of_due, strict=True
                )
            )
        )

    # listings -----------------------------------------------------------------------------------------

    def _find(self, request: Find) -> Conversation[tuple[Found, ...]]:
        wanted, now_ms = request.filter, request.now_ms

        def matches(head: Head, _parent: Head | None) -> bool:
            return (
                not _has_expired(head, now_ms)
                and (wanted.status is None or head.status == wanted.status)
                and (wanted.type is None or head.type == wanted.type)
                and (wanted.updated_before_ms is None or head.updated_ms < wanted.updated_before_ms)
            )

        listing = [(_listing(wanted), *_bounds(wanted, request.after))]
        return tuple(
            (
                yield from self._gather(
                    wanted.kind, listing, request.limit, matches, _stamp_of_creation, strict=True
                )
            )
        )

    def _gather(
        self,
        kind: str,
        bounds: Sequence[tuple[bytes, bytes, bytes]],
        limit: int | None,
        matches: Callable[[Head, Head | None], bool],
        stamp: Callable[[Head], bytes],
        *,
        parents: bool = False,
        strict: bool = False,
    ) -> Conversation[list[Found]]:
        """The first records in these ranges of the index of all partitions, merged.

        A page of the index and the heads that it names are two round trips, and more where many
        entries do not match. An entry counts only if its record still has the `stamp` by which it
        stands there. What cannot be read is passed over with a warning, unless this is `strict`.
        """
        ranges = [_Range(number, *bound) for number in range(self._partitions) for bound in bounds]
        found: list[Found] = []
        most = math.inf if limit is None else limit

        while ranges and len(found) < most:
            page = int(min(most - len(found), _PAGE))
            replies = yield from self._ask([self._range_command(one, page) for one in ranges])
            _check(replies)
            listed = _merged(ranges, replies, page)
            ranges = [one for one in ranges if not one.is_done]
            heads = yield from self._heads(kind, listed, parents=parents)

            for (_, entry), texts in zip(listed, heads, strict=True):
                try:
                    one = _found(kind, entry, texts, matches, stamp)
                except CorruptRecordError as error:
                    if strict:
                        raise

                    _warn(error)
                    continue

                if one is not None:
                    found.append(one)

        return found

    def _range_command(self, one: _Range, page: int) -> Command:
        index = self._index[one.number]
        words = b"ZRANGEBYLEX", index, one.first, one.last, b"LIMIT", 0, page
        return Command(words, index)

    def _heads(
        self, kind: str, listed: Sequence[tuple[int, _Entry]], *, parents: bool
    ) -> Conversation[list[tuple[Any, Any]]]:
        """The stored heads of entries, each with that of its parent if that is asked for."""
        keys = self._flow if kind == FLOW else self._wait
        commands = [_head_command(keys[number] + entry.id) for number, entry in listed]
        if parents:
            commands += [
                _head_command(self._flow[number] + entry.parent) for number, entry in listed
            ]

        replies = (yield from self._ask(commands)) if commands else []
        if not parents:
            return [(reply, None) for reply in replies]

        return list(zip(replies[: len(listed)], replies[len(listed) :], strict=True))

    def _count(self, request: Count) -> Conversation[int]:
        wanted, now_ms = request.filter, request.now_ms
        if wanted.updated_before_ms is not None:
            return (yield from self._count_by_heads(request))

        first, last = _bounds(wanted, None)
        replies = yield from self._ask(
            [
                command
                for number, index in enumerate(self._index)
                for command in (
                    self._expired(number, now_ms, _PAGE),
                    Command((b"ZLEXCOUNT", index, first, last), index),
                )
            ]
        )
        _check(replies)
        total: int = sum(replies[1::2])

        for number, page in enumerate(replies[::2]):
            members: list[bytes] = page
            while members:
                total -= sum(_is_listed(wanted, member) for member in members)
                if len(members) < _PAGE:
                    break

                command = self._expired(number, now_ms, _PAGE, after=members[-1])
                (members,) = yield from self._ask([command])
                _check([members])

        return total

    def _count_by_heads(self, request: Count) -> Conversation[int]:
        """What the index does not know by itself is counted page by page."""
        total, after = 0, None

        while True:
            find = Find(request.filter, after, _PAGE, request.now_ms)
            found = yield from self._find(find)
            total += len(found)
            if len(found) < _PAGE:
                return total

            after = found[-1].head.created_ms, found[-1].key.id

    def _scan(self, request: Scan) -> Conversation[tuple[Scanned, ...]]:
        """`Scan`; early completions come as a record whose status is negative, without terms."""
        kind, after = request.kind, request.after
        begin = {FLOW: b"fi", PROGRESS: b"pi", WAIT: b"wi"}[kind]
        first, last = b"[" + begin, b"(" + begin[:1] + b"j"
        if after is not None:
            # Of the flow whose progress was answered last there may be more.
            first = (b"[" if kind == PROGRESS else b"(") + begin + after.id.encode()

        ranges = [_Range(number, begin, first, last) for number in range(self._partitions)]

        while ranges:
            page = min(request.limit, _PAGE)
            replies = yield from self._ask([self._range_command(one, page) for one in ranges])
            _check(replies)
            listed = _merged(ranges, replies, page)
            ranges = [one for one in ranges if not one.is_done]
            ids = [_id_of(kind, entry.id) for _, entry in listed]
            if kind == PROGRESS:
                found = yield from self._scan_progress(ids, request)
            else:
                found = yield from self._scan_records(kind, ids, request.now_ms)

            if found:
                return tuple(found)

        return ()

    def _scan_records(
        self, kind: str, ids: Sequence[str], now_ms: int
    ) -> Conversation[list[Scanned]]:
        keys = [Key(kind, one) for one in ids]
        if kind == FLOW:
            records = yield from self._read(Read(tuple(keys), now_ms))
            return [
                Scanned(key, record)
                for key, record in zip(keys, records, strict=True)
                if record is not None
            ]

        commands = [_call(_READ_WAIT, self._keys(key), ()) for key in keys]
        replies = (yield from self._ask(commands)) if commands else []
        found: list[Scanned] = []

        for key, reply in zip(keys, replies, strict=True):
            if isinstance(reply, Exception):
                _raise_for(key, reply)

            record = None if reply is None else _read_wait(key, reply)
            if (
                record is not None
                and record.head.status > _MARKER
                and not _has_expired(record.head, now_ms)
            ):
                found.append(Scanned(key, record))

        return found

    def _scan_progress(self, ids: Sequence[str], request: Scan) -> Conversation[list[Scanned]]:
        """The steps of so many flows as it takes; those of one flow are few."""
        after, found = request.after, list[Scanned]()

        for flow_id in ids:
            if len(found) >= request.limit:
                break

            keys = self._keys(Key(FLOW, flow_id))
            (reply,) = yield from self._ask([_call(_STEPS, keys, ("1",))])
            found += [
                Scanned(key, record)
                for key, record in _read_steps(flow_id, reply, request.now_ms)
                if after is None or key > after
            ]

        return found[: request.limit]

    # housekeeping -------------------------------------------------------------------------------------

    def _expired(self, number: int, now_ms: int, limit: int, after: bytes | None = None) -> Command:
        index = self._index[number]
        first = b"[x" if after is None else b"(" + after
        last = b"(x" + _stamp(now_ms + 1)
        return Command((b"ZRANGEBYLEX", index, first, last, b"LIMIT", 0, limit), index)

    def _sweep_command(self, number: int, now_ms: int, members: Sequence[bytes]) -> Command:
        keys = [self._index[number]]
        entries = [entry for entry in map(_read_expiring, members) if entry is not None]
        for expiring in entries:
            pair = (
                (self._flow, self._steps_of) if expiring.kind == FLOW else (self._wait, self._items)
            )
            keys += [begin[number] + expiring.id for begin in pair]

        return _call(_SWEEP, keys, (now_ms, *(entry.member for entry in entries)))

    def _sweep(self, request: Sweep) -> Conversation[int]:
        now_ms, limit = request.now_ms, request.limit
        removed = 0

        for number in range(self._partitions):
            after: bytes | None = None

            while removed < limit:
                page = min(limit - removed, _SWEEP_PAGE)
                (members,) = yield from self._ask([self._expired(number, now_ms, page, after)])
                _check([members])
                if not members:
                    break

                after = members[-1]
                command = self._sweep_command(number, now_ms, members)
                (count,) = yield from self._ask([command], writes=True)
                _check([count])
                removed += count

        return removed

    def _clear(self, _request: Clear) -> Conversation[None]:
        """Remove everything but the layout, a batch at a time, on the node that has it."""
        for tag in self._tags:
            cursor, pattern = b"0", _glob(tag) + b"*"

            while True:
                words = b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _PAGE
                (reply,) = yield from self._ask([Command(words, tag)])
                _check([reply])
                cursor, keys = reply
                commands = [
                    Command((b"UNLINK", key), key) for key in keys if key != self._layout_key
                ]
                if commands:
                    _check((yield from self._ask(commands, writes=True)))

                if int(cursor) == 0:
                    break

    def _ping(self, _request: Ping) -> Conversation[None]:
        _check((yield from self._ask([Command((b"EXISTS", self._layout_key), self._layout_key)])))


# --- ranges of the index ----------------------------------------------------------------------------

_TOLD = b"wt"
"""Members of the index that say whose parent to tell, and when."""


class _Range:
    """A range of one partition's index; `first` moves on as entries are taken."""

    def __init__(self, number: int, begin: bytes, first: bytes, last: bytes) -> None:
        self.number = number
        self.begin = begin
        self.first = first
        self.last = last
        self.is_done = False

    def entries(self, members: Iterable[bytes]) -> Iterator[_Entry]:
        """What the members say; the place of an entry begins with its time, if it has one."""
        cut = len(self.begin)
        timed = self.begin[1:2] != b"i"

        for member in members:
            place = member[cut:]
            name, parent = place[_DIGITS:] if timed else place, b""
            if self.begin == _TOLD:
                length, _, name = name.partition(b":")
                size = int(length) if length.isdigit() else 0
                parent, name = name[:size], name[size:]

            yield _Entry(place, name, parent, member)


_DIGITS = 15


def _merged(
    ranges: Sequence[_Range], replies: Sequence[list[bytes]], page: int
) -> list[tuple[int, _Entry]]:
    """The first `page` entries of all ranges, in order; each range goes on after what was taken."""
    numbered = (
        [(entry.place, place, entry) for entry in one.entries(members)]
        for place, (one, members) in enumerate(zip(ranges, replies, strict=True))
    )
    taken = [0] * len(ranges)
    merged: list[tuple[int, _Entry]] = []

    for _, place, entry in heapq.merge(*numbered):
        if len(merged) == page:
            break

        merged.append((ranges[place].number, entry))
        ranges[place].first = b"(" + entry.member
        taken[place] += 1

    for one, members, count in zip(ranges, replies, taken, strict=True):
        one.is_done = len(members) < page and count == len(members)

    return merged


def _found(
    kind: str,
    entry: _Entry,
    texts: tuple[Any, Any],
    matches: Callable[[Head, Head | None], bool],
    stamp: Callable[[Head], bytes],
) -> Found | None:
    """The record of an entry, if it is there and still stands where the index says."""
    text, parent_text = texts
    key = Key(kind, _id_of(kind, entry.id))
    for answer in texts:
        if isinstance(answer, Exception):
            _raise_for(key, answer)

    if text is None:
        return None

    head = _read_head(key, text)
    parent = None
    if parent_text is not None:
        parent = _read_head(Key(FLOW, _id_of(FLOW, entry.parent)), parent_text)

    is_there = stamp(head) == entry.place[:_DIGITS] and head.status >= 0
    return Found(key, head) if is_there and matches(head, parent) else None


def _is_due(head: Head, now_ms: int) -> bool:
    return head.due_ms is not None and head.due_ms <= now_ms and not _has_expired(head, now_ms)


def _stamp_of_due(head: Head) -> bytes:
    return b"" if head.due_ms is None else _stamp(head.due_ms)


def _stamp_of_creation(head: Head) -> bytes:
    return _newest(head.created_ms)


def _is_listed(wanted: Filter, member: bytes) -> bool:
    """Whether what has expired, as the index says, is counted by a listing."""
    expiring = _read_expiring(member)
    if expiring is None:
        return False

    of = wanted.type if wanted.kind == FLOW else wanted.parent
    return (
        expiring.kind == wanted.kind
        and expiring.status != b"-"
        and (wanted.status is None or expiring.status == b"%d" % wanted.status)
        and (of is None or expiring.of == of.encode())
        and (wanted.created_after_ms is None or expiring.created_ms >= wanted.created_after_ms)
        and (wanted.created_before_ms is None or expiring.created_ms < wanted.created_before_ms)
    )


def _head_command(key: bytes) -> Command:
    return Command((b"HGET", key, b"head"), key)


def _id_of(kind: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _corrupt(Key(kind, repr(data)[:100]), "its id") from error


def _glob(text: bytes) -> bytes:
    """A pattern of SCAN that matches this and nothing else."""
    return re.sub(rb"([*?\[\]\\^-])", rb"\\\1", text)


def _warn(error: CorruptRecordError) -> None:
    """Log what was passed over, for each record once in a while: workers poll."""
    now = time.monotonic()
    if now - _warned.get(error.key, -math.inf) > _WARN_AGAIN_SECONDS:
        if len(_warned) > _WARNED_MOST:
            _warned.clear()

        _warned[error.key] = now
        _log.warning("passed over: %s", error)


_log = logging.getLogger(__name__)
_warned: dict[object, float] = {}
_WARNED_MOST = 1000
_WARN_AGAIN_SECONDS = 30


# --- replies, and the words of a commit ---------------------------------------------------------------


def _with_source(command: Command) -> Command:
    """The same call of a script for a server that does not know it."""
    sha = command.words[1]
    assert isinstance(sha, bytes)  # noqa: S101  only scripts can be unknown
    return Command((b"EVAL", _SOURCES[sha], *command.words[2:]), command.key)


def _raise_for(key: Key, error: Any) -> NoReturn:
    """Raise what an error among replies means for the record that was asked for."""
    said = str(error)
    if "WRONGTYPE" in said or said.startswith("CORRUPT"):
        raise _corrupt(key, said) from error

    _raise(error)


def _raise_for_commit(commit: Commit, error: Exception) -> NoReturn:
    said = str(error)
    if said.startswith("CORRUPT"):
        key = commit.changes[int(said.split()[1])].key
        raise _corrupt(key, "its head") from error

    _raise(error)


def _give_up(commit: Commit, failure: Exception, *, is_lost: bool) -> NoReturn:
    """Raise what a commit that got no answer has come to."""
    if is_lost:
        raise _uncertain(commit.id, [change.key for change in commit.changes], failure) from failure

    if isinstance(failure, NotSentError):
        raise _unavailable(failure) from failure

    _raise_for_commit(commit, failure)


def _read_outcomes(commit_id: str, reply: bytes) -> tuple[Outcome, ...]:
    outcomes: list[Outcome] = []
    try:
        for fields in _outcomes.decode(reply):
            if len(fields) > 1 and fields[1] is None:
                fields[1] = commit_id

            if len(fields) > 7 and fields[7] is not None:  # noqa: PLR2004  the terms' place
                children, any_of, timeout_ms, parent = fields[7]
                fields[7] = Terms(tuple(children), any_of, timeout_ms, parent)

            outcomes.append(Outcome(*fields))
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        message = f"the reply of commit {commit_id} cannot be read: {error}; it is left as it is"
        raise CorruptRecordError(message, key=None) from error

    return tuple(outcomes)


def _read_conflicts(commit: Commit, reply: list[Any]) -> Refused:
    conflicts: list[Conflict] = []

    for start in range(0, len(reply), 3):
        place, reason, text = reply[start : start + 3]
        key: Key = commit.changes[int(place)].key
        head = _read_head(key, text) if text else None
        conflicts.append(Conflict(place, reason.decode(), head))

    return Refused(tuple(conflicts))


def _read_steps(flow_id: str, reply: Any, now_ms: int) -> list[tuple[Key, Record]]:
    """The progress of a flow by step; nothing if the flow has expired."""
    flow_key = Key(FLOW, flow_id)
    if isinstance(reply, Exception):
        _raise_for(flow_key, reply)

    if reply[0] is not None and _has_expired(_read_head(flow_key, reply[0]), now_ms):
        return []

    found: list[tuple[Key, Record]] = []
    for step, head, body in zip(reply[1::3], reply[2::3], reply[3::3], strict=True):
        if not step.isdigit():
            raise _corrupt(flow_key, step)

        key = Key(PROGRESS, flow_id, int(step))
        found.append((key, Record(_read_head(key, head), body or b"")))

    return sorted(found, key=_by_key)


def _by_key(entry: tuple[Key, Record]) -> Key:
    return entry[0]


_LETTER = {FLOW: b"F", PROGRESS: b"G", WAIT: b"W"}


def _add_change(words: list[bytes | str | int], change: Change, *, leaves: bool) -> None:
    """One change as redis_commit.lua takes it."""
    key = change.key
    letter, record_id = _LETTER[key.kind], key.id.encode()

    if isinstance(change, Complete):
        success = b"1" if change.success else b"0"
        words += (b"C", letter, record_id, change.child.encode(), success, change.payload)
    elif isinstance(change, SetWait):
        rearm = b"1" if change.rearm else b""
        words += (b"S", letter, record_id, _encode(change.terms), change.created_ms, rearm)
    elif isinstance(change, Put):
        _add_put(words, change, letter, record_id, leaves=leaves)
    elif isinstance(change, Delete):
        expected = b"" if change.expected is None else change.expected
        words += (b"D", letter, record_id, key.step, expected, b"l" if leaves else b"")
    else:
        due = b"" if change.due_ms is None else change.due_ms
        flags = b"l" if leaves else b""
        words += (b"K", letter, record_id, key.step, change.expected, flags, due)


def _flags(change: Put, *, leaves: bool) -> bytes:
    flags = b"f" if change.fresh else b""
    if change.claiming:
        flags += b"c"

    if change.keeps_body:
        flags += b"k"

    if leaves:
        flags += b"l"

    if change.given:
        flags += b"g"

    return flags


def _planned(commit: Commit) -> bytes:
    """The reply to a commit of one flow that went as planned, as nearly all do."""
    put: Any = commit.changes[0]
    head = put.head
    return b"[[%d,null,%d,%d]]" % (head.version, head.status, head.created_ms)


def _add_put(
    words: list[bytes | str | int], change: Put, letter: bytes, record_id: bytes, *, leaves: bool
) -> None:
    flags = _flags(change, leaves=leaves)
    expected = b"" if change.expected is None else change.expected
    head = _write_head(change.head)

    if letter == b"W":
        assert change.terms is not None, "conditions have terms"  # noqa: S101  a broken rule, not bad input
        terms = _encode(change.terms)
        words += (b"P", letter, record_id, expected, flags, head, terms, len(change.items))
        for item in change.items:
            words += (item.child.encode(), b"1" if item.success else b"0", item.payload)
    else:
        step = change.key.step
        words += (b"P", letter, record_id, step, expected, flags, head, change.body)


# --- the server ---------------------------------------------------------------------------------------


def _check_version(info: bytes) -> None:
    found = re.search(rb"^redis_version:(\d+)\.(\d+)", info, re.MULTILINE)
    if found is not None and (int(found[1]), int(found[2])) < OLDEST:
        message = (
            f"the server is Redis {int(found[1])}.{int(found[2])}; the store needs Redis"
            f" {OLDEST[0]}.{OLDEST[1]} or later, or Valkey; nothing was written"
        )
        raise StoreConfigError(message)


def _check_layout(layout: Sequence[Any], partitions: int) -> None:
    try:
        version, stored = map(int, layout)
    except (TypeError, ValueError) as error:
        message = f"the layout of the store cannot be read: it is {layout!r}; it is left as it is"
        raise CorruptRecordError(message, key=None) from error

    if version != LAYOUT:
        message = (
            f"the store is laid out in version {version}, this catga_store knows {LAYOUT};"
            " use the release that wrote it, or copy it to a new store"
        )
        raise StoreConfigError(message)

    if stored != partitions:
        message = (
            f"the store was laid out with {stored} partitions and opened with {partitions};"
            f" open it with partitions={stored}; nothing was read or written"
        )
        raise PartitionCountError(message, expected=stored, actual=partitions)
