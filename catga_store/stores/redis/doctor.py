"""Stores on Redis: version, memory and eviction, persistence, replicas, and the index.

Every node that keeps records is asked for its settings. What a user may not ask, or a managed
service hides, is unknown.

The file is over 400 lines because each finding is a paragraph, and they are read one after another.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import closing
from contextlib import contextmanager
from contextlib import suppress
from typing import Any
from typing import Protocol
from urllib.parse import parse_qsl
from urllib.parse import urlencode

from attrs import frozen
from redis import RedisCluster
from redis import exceptions

from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.requests import PENDING
from catga_store.stores.findings import Finding
from catga_store.stores.findings import Scratch
from catga_store.stores.findings import clock_difference
from catga_store.stores.findings import no_store
from catga_store.stores.redis.index import DIGITS
from catga_store.stores.redis.index import newest_first
from catga_store.stores.redis.index import stamp_of
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.layout import id_of
from catga_store.stores.redis.layout import read_head
from catga_store.stores.redis.setup import OLDEST
from catga_store.stores.redis.sweeping import glob
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe

__all__ = ["RedisDoctor"]

_SECONDS = 5.0
_MIB = 1024 * 1024
_NEARLY_FULL = 0.9
_PAGE = 1000
_MOST_ENTRIES = 100_000
"""So many entries of an index are compared with their records; a doctor is not to take hours."""
_FAILURES = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    NotSentError,
    ReplyLostError,
    OSError,
)


class ServerLink(Protocol):
    """What the doctor needs of a link to a server."""

    def perform(self, request: Any, /) -> tuple[object, ...]:
        """Send the commands of a `Pipe` and return the replies."""
        ...

    def client(self) -> Any:
        """Return the client of redis-py."""
        ...

    def close(self) -> None:
        """Close the client."""
        ...


@frozen
class RedisDoctor:
    """Looks at Redis servers and at the index of a store; see `Doctor`.

    `open_link` opens a URL without the store's own options, with a timeout in seconds.
    """

    open_link: Callable[[str, float], ServerLink]
    default_prefix: str

    def absent(self, url: str) -> str | None:
        """Say that nothing is laid out under the prefix; `None` if it is, or the server does not tell."""
        place, prefix = _split(url, self.default_prefix)
        with closing(self.open_link(place, _SECONDS)) as link:
            try:
                laid_out = _partitions(link, prefix) is not None
            except _FAILURES:
                return None

        return None if laid_out else _nothing(prefix)

    def examine(self, url: str) -> Iterator[Finding]:
        """Look at each node that keeps records, then at the records' index."""
        place, prefix = _split(url, self.default_prefix)
        with closing(self.open_link(place, _SECONDS)) as link:
            try:
                nodes = _nodes(link)
                for name, node in nodes:
                    yield from _node(node, f" of {name}" if name else "", place)

                yield from _store(link, prefix, nodes)
            except _FAILURES as error:
                yield Finding(
                    "server",
                    "problem",
                    str(error),
                    "no worker can read or write a flow",
                    "see that the server runs, that the URL is its, and that the user may use it",
                )

    @contextmanager
    def scratch(self, url: str) -> Generator[Scratch]:
        """Use a prefix of its own on the same server, and remove every key under it."""
        place, _ = _split(url, self.default_prefix)
        prefix = f"catga-store-bench-{uuid.uuid4().hex}:"
        begin = "&" if "?" in place else "?"
        named = f"{place}{begin}{urlencode({'prefix': prefix})}"
        try:
            yield Scratch(named, f"under the prefix {prefix} there")
        except BaseException:
            with suppress(*_FAILURES):
                self._remove(place, prefix)

            raise

        try:
            self._remove(place, prefix)
        except _FAILURES as error:
            message = f"what was written under the prefix {prefix} is left there: {error}"
            raise StoreUnavailableError(message) from error

    def _remove(self, place: str, prefix: str) -> None:
        with closing(self.open_link(place, _SECONDS)) as link:
            for _, node in _nodes(link):
                for key in node.scan_iter(match=b"{" + glob(prefix.encode()) + b"*", count=_PAGE):
                    node.unlink(key)


def _nothing(prefix: str) -> str:
    return f"there is no store under the prefix {prefix!r} on this server"


def _split(url: str, default_prefix: str) -> tuple[str, str]:
    """The URL without the prefix in its query, and the prefix."""
    place, _, text = url.partition("?")
    query = parse_qsl(text, keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in query if name != "prefix"])
    prefixes = [value for name, value in query if name == "prefix"]
    return f"{place}?{rest}" if rest else place, (prefixes or [default_prefix])[-1]


def _nodes(link: ServerLink) -> list[tuple[str, Any]]:
    """A client for each server that keeps records, with its name if there are several."""
    client = link.client()
    if not isinstance(client, RedisCluster):
        return [("", client)]

    cluster: Any = client
    return [(node.name, cluster.get_redis_connection(node)) for node in cluster.get_primaries()]


# --- a node -----------------------------------------------------------------------------------------


def _node(node: Any, of: str, url: str) -> Iterator[Finding]:
    info = node.info("everything")
    yield _version(info, of)
    yield from _cluster(node, info, of, url)
    yield from _memory(info, of)
    yield from _persistence(node, info, of)
    yield from _replication(node, info, of)
    yield _clock(node, of)


def _setting(node: Any, name: str) -> str | None:
    """A setting of the server, `None` if it does not tell."""
    try:
        answer = node.config_get(name)
    except exceptions.ResponseError:
        return None

    for value in answer.values():
        return value.decode() if isinstance(value, bytes) else str(value)

    return None


def _clock(node: Any, of: str) -> Finding:
    before = time.time()
    try:
        seconds, micros = node.time()
    except exceptions.ResponseError:
        return clock_difference(None, before, before, of)

    return clock_difference(seconds + micros / 1e6, before, time.time(), of)


def _version(info: dict[str, Any], of: str) -> Finding:
    version = str(info["redis_version"])
    shown = f"Redis {version}"
    if info.get("server_name") == "valkey":
        shown = f"Valkey {info.get('valkey_version')}"

    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        least = ".".join(map(str, OLDEST))
        return Finding(
            f"version{of}",
            "problem",
            shown,
            "it is too old: the store refuses to use it",
            f"use Redis {least} or later, or Valkey",
        )

    return Finding(
        f"version{of}", "ok", shown, "has every command that is used; no module is needed"
    )


def _cluster(node: Any, info: dict[str, Any], of: str, url: str) -> Iterator[Finding]:
    if info.get("redis_mode") != "cluster":
        return

    if "+cluster" not in url.partition("://")[0]:
        yield Finding(
            f"cluster{of}",
            "problem",
            "the server is a node of a cluster, and the URL is that of a single server",
            "what lies on other nodes cannot be reached",
            "write redis+cluster:// or rediss+cluster://",
        )
        return

    state = node.execute_command("CLUSTER INFO")
    if state.get("cluster_state") == "ok":
        found = f"{state['cluster_size']} primaries, every slot is served"
        yield Finding(f"cluster{of}", "ok", found, "every partition can be reached")
    else:
        found = f"{state.get('cluster_slots_ok')} of 16384 slots are served"
        yield Finding(
            f"cluster{of}",
            "problem",
            found,
            "the partitions in the others cannot be read or written",
            "bring the missing nodes back, or wait for the failover",
        )


def _memory(info: dict[str, Any], of: str) -> Iterator[Finding]:
    policy, most, used = info.get("maxmemory_policy"), info.get("maxmemory"), info["used_memory"]
    check = f"eviction{of}"
    if policy is None:
        means = "an allkeys policy would throw away live flows"
        yield Finding(check, "unknown", "the server does not say", means, "look at its settings")
    elif policy.startswith("allkeys"):
        yield Finding(
            check,
            "problem",
            f"maxmemory-policy {policy}",
            "when memory is short the server throws away live flows, without a word",
            "set maxmemory-policy noeviction",
        )
    elif policy.startswith("volatile"):
        yield Finding(
            check,
            "warning",
            f"maxmemory-policy {policy}",
            "when memory is short the server throws away ended flows before their time; live ones stay",
            "set maxmemory-policy noeviction",
        )
    else:
        means = "a full server refuses commits whole, and loses nothing"
        yield Finding(check, "ok", f"maxmemory-policy {policy}", means)

    check = f"memory{of}"
    if not most:
        found = f"{used / _MIB:,.1f} MiB used, no limit" if most == 0 else f"{used / _MIB:,.1f} MiB"
        means = "without a limit it is the system that ends a server which takes too much"
        yield Finding(check, "info", found, means)
        return

    found = f"{used / _MIB:,.1f} of {most / _MIB:,.1f} MiB used"
    if used > _NEARLY_FULL * most:
        yield Finding(
            check,
            "warning",
            found,
            "when it is full every commit fails with StoreUnavailableError, and no flow goes on",
            "raise maxmemory, or let `Retention` keep ended flows for less long",
        )
    else:
        yield Finding(check, "ok", found, "there is room to grow")


def _persistence(node: Any, info: dict[str, Any], of: str) -> Iterator[Finding]:
    check = f"durability{of}"
    if info.get("aof_enabled"):
        yield _fsync(_setting(node, "appendfsync"), check)
    else:
        points = _setting(node, "save")
        change = "set appendonly yes"
        if points is None:
            means = "if it saves snapshots, a restart loses what was committed since the last one"
            yield Finding(check, "warning", "appendonly no", means, change)
        elif points:
            means = "a restart loses every commit since the last snapshot"
            found = f"appendonly no, save {points}"
            yield Finding(check, "warning", found, means, change)
        else:
            means = "every flow is lost when the server ends"
            yield Finding(check, "problem", "appendonly no, no snapshots", means, change)

    states = {
        "the append-only file": info.get("aof_last_write_status", "ok"),
        "its rewriting": info.get("aof_last_bgrewrite_status", "ok"),
        "the last snapshot": info.get("rdb_last_bgsave_status", "ok"),
    }
    failed = [name for name, state in states.items() if state != "ok"]
    if failed:
        yield Finding(
            f"disk{of}",
            "problem",
            f"failed: {', '.join(failed)}",
            "the server cannot save to its disk; by default it refuses every commit until it can",
            "see the server's log: the disk may be full, or not writable",
        )


def _fsync(fsync: str | None, check: str) -> Finding:
    found = f"appendonly yes, appendfsync {fsync}"
    if fsync == "always":
        return Finding(check, "ok", found, "an acknowledged commit outlives the machine")

    if fsync == "everysec":
        means = "a power cut may cost the last two seconds; on a busy host, so may a crash of the server"
        return Finding(check, "info", found, means, "appendfsync always, if that is too much")

    if fsync is None:
        means = "whether a power cut costs commits depends on appendfsync"
        return Finding(check, "unknown", "appendonly yes", means, "look at its settings")

    means = "a power cut may cost what was committed in half a minute"
    return Finding(check, "warning", found, means, "set appendfsync everysec, or always")


def _replication(node: Any, info: dict[str, Any], of: str) -> Iterator[Finding]:
    check = f"replicas{of}"
    if info.get("role") != "master":
        yield Finding(
            check,
            "problem",
            "the server is a replica",
            "it refuses every commit, and answers with what it has been sent so far",
            "use the URL of the primary, or a client that Sentinel made",
        )
        return

    replicas = int(info.get("connected_slaves", 0))
    least = _setting(node, "min-replicas-to-write")
    found = f"{replicas} connected, min-replicas-to-write {'unknown' if least is None else least}"
    if replicas == 0 and least in (None, "0"):
        means = "there is nobody to fail over to: with the machine the store is lost"
        yield Finding(check, "info", found, means, "add a replica, or keep backups elsewhere")
    elif least is None:
        means = "if writes do not wait for replicas, a failover loses what they did not have yet"
        yield Finding(check, "unknown", found, means, "look at its settings")
    elif least == "0":
        yield Finding(
            check,
            "warning",
            found,
            "a failover loses acknowledged commits that the replica had not been sent yet",
            "set min-replicas-to-write 1 and min-replicas-max-lag 1, which leaves a window of that lag",
        )
    elif replicas < int(least):
        means = "too few replicas are connected: the server refuses every commit"
        yield Finding(check, "problem", found, means, "bring the replicas back")
    else:
        means = "the server refuses commits that no replica would have within min-replicas-max-lag"
        yield Finding(check, "ok", found, means)


# --- the records ------------------------------------------------------------------------------------


def _store(link: ServerLink, prefix: str, nodes: Sequence[object]) -> Iterator[Finding]:
    stored = _partitions(link, prefix)
    if stored is None:
        yield no_store(_nothing(prefix))
        return

    if not stored.isdigit():
        return  # opening the store says so

    layout = RedisLayout(prefix, int(stored))
    found = f"{layout.partitions} partition{'' if layout.partitions == 1 else 's'}"
    means, change = f"under the prefix {prefix}", ""
    if layout.partitions < len(nodes):
        means += f": not enough to use each of the {len(nodes)} primaries"
        change = "copy it to a new prefix: `catga-store copy FROM TO --partitions 16`"

    yield Finding("layout", "info", found, means, change)
    yield from _index(link, layout)


def _partitions(link: ServerLink, prefix: str) -> Any:
    """What the layout says of them, `None` if there is none."""
    (stored,) = _ask(link, [(b"HGET", RedisLayout(prefix, 1).layout, b"partitions")])
    return stored


def _ask(link: ServerLink, args: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands, each with its second word as its key, and answer what they answer."""
    if not args:
        return []

    replies = link.perform(Pipe(tuple(Command(one, one[1]) for one in args), writes=False))
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply

    return list(replies)


def _due(head: Any) -> bytes:
    return b"" if head.due_ms is None else stamp_of(head.due_ms)


_LISTED: dict[bytes, tuple[str, Callable[[Any], bytes]]] = {
    b"fa": (FLOW, lambda head: newest_first(head.created_ms)),
    b"fd": (FLOW, _due),
    b"wa": (WAIT, lambda head: newest_first(head.created_ms)),
    b"wd": (WAIT, lambda head: _due(head) if head.status == PENDING else b""),
}
"""Ranges of the index whose members are a time and an id, and what the time must be."""


def _index(link: ServerLink, layout: RedisLayout) -> Iterator[Finding]:
    """Compare entries with the heads of their records, and the records with their entries."""
    entries, astray = 0, list[str]()
    records, lost = 0, list[str]()
    for number in range(layout.partitions):
        for begin in _LISTED:
            for members in _members(link, layout.index[number], begin):
                astray += _unborne(link, layout, number, begin, members)
                entries += len(members)
                if entries >= _MOST_ENTRIES:
                    break

        for flows in _flows(link, layout, number):
            lost += _unlisted(link, layout, number, flows)
            records += len(flows)
            if records >= _MOST_ENTRIES:
                break

    found = f"{entries:,} entries compared with their records"
    if astray:
        yield Finding(
            "index",
            "warning",
            f"{found}: {len(astray):,} say what no record does, as of {_named(astray)}",
            "somebody has written to these keys, or the server has lost records; listings and workers"
            " pass over these entries",
            "keep others from the keys; look for the flows where they may have gone",
        )
    else:
        yield Finding("index", "ok", found, "what is listed and due is what is stored")

    found = f"{records:,} flows looked up in the index"
    if lost:
        yield Finding(
            "flows",
            "problem",
            f"{found}: {len(lost):,} are not as they should be, as {_named(lost)}",
            "no listing shows them and no worker is given them",
            "write each again with `update`, which lists it as it then is",
        )
    else:
        yield Finding("flows", "ok", found, "each is listed, and found when it is due")


def _named(ids: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(ids[:3]))


def _flows(link: ServerLink, layout: RedisLayout, number: int) -> Iterator[list[bytes]]:
    """The keys of a partition's flows, as the server comes across them."""
    begin, cursor = layout.flow[number], b"0"
    while True:
        args = b"SCAN", cursor, b"MATCH", glob(begin) + b"*", b"COUNT", _PAGE
        (answer,) = link.perform(Pipe((Command(args, begin),), writes=False))
        if isinstance(answer, Exception):
            raise answer

        found: Any = answer
        cursor, keys = found
        yield keys
        if int(cursor) == 0:
            return


def _unlisted(
    link: ServerLink, layout: RedisLayout, number: int, keys: Sequence[bytes]
) -> Iterator[str]:
    """The ids of flows that the index does not have as they are, twice asked."""
    left = keys
    for _ in range(2):  # a worker may write a flow between the questions
        heads = _ask(link, [(b"HGET", key, b"head") for key in left])
        members = [_entries(layout, number, *one) for one in zip(left, heads, strict=True)]
        index = layout.index[number]
        asked = [(b"ZSCORE", index, member) for wanted in members for member in wanted]
        scores = iter(_ask(link, asked))
        present = [[next(scores) is not None for _ in wanted] for wanted in members]
        left = [key for key, found in zip(left, present, strict=True) if not all(found)]

    for key in left:
        yield repr(key.removeprefix(layout.flow[number]).decode(errors="replace"))


def _entries(layout: RedisLayout, number: int, key: bytes, text: Any) -> list[bytes]:
    """Some of the members that a flow must have in the index."""
    name = key.removeprefix(layout.flow[number])
    try:
        head = read_head(Key(FLOW, id_of(FLOW, name)), text)
    except CorruptRecordError:
        return []  # it has gone, or reading it says so

    due = [] if head.due_ms is None else [b"fd" + stamp_of(head.due_ms) + name]
    return [b"fi" + name, b"fa" + newest_first(head.created_ms) + name, *due]


def _members(link: ServerLink, index: bytes, begin: bytes) -> Iterator[list[bytes]]:
    first = b"[" + begin
    while True:
        args = b"ZRANGEBYLEX", index, first, b"(" + begin + b":", b"LIMIT", 0, _PAGE
        (members,) = _ask(link, [args])
        if members:
            yield members

        if len(members) < _PAGE:
            return

        first = b"(" + members[-1]


def _unborne(
    link: ServerLink, layout: RedisLayout, number: int, begin: bytes, members: list[bytes]
) -> Iterator[str]:
    """The ids of entries that their records do not bear out; those that change meanwhile, too."""
    kind, stamp = _LISTED[begin]
    keys = layout.flow if kind == FLOW else layout.wait
    places = [member[len(begin) :] for member in members]
    heads = _ask(link, [(b"HGET", keys[number] + place[DIGITS:], b"head") for place in places])
    doubtful = [
        place
        for place, text in zip(places, heads, strict=True)
        if not _bears_out(kind, place, text, stamp)
    ]
    # A worker may have moved it between the two questions: then the entry has gone as well.
    left = _ask(link, [(b"ZSCORE", layout.index[number], begin + place) for place in doubtful])
    for place, score in zip(doubtful, left, strict=True):
        if score is not None:
            yield repr(place[DIGITS:].decode(errors="replace"))


def _bears_out(kind: str, place: bytes, text: Any, stamp: Callable[[Any], bytes]) -> bool:
    try:
        head = read_head(Key(kind, id_of(kind, place[DIGITS:])), text)
    except CorruptRecordError:
        return False

    return stamp(head) == place[:DIGITS]
