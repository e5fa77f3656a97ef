"""The doctor of Redis stores: version, memory and eviction, persistence, replicas, and the index.

Every node that keeps records is asked for its settings. A setting that the user may not read, or that
a managed service hides, is `unknown`.

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

from catga_store.errors import StoreUnavailableError
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import ReplyLostError
from catga_store.stores.findings import Finding
from catga_store.stores.findings import Level
from catga_store.stores.findings import Scratch
from catga_store.stores.findings import clock_difference
from catga_store.stores.findings import no_store
from catga_store.stores.redis.index_check import PerformsPipes
from catga_store.stores.redis.index_check import ask
from catga_store.stores.redis.index_check import examine_index
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.parts_check import examine_parts
from catga_store.stores.redis.setup import OLDEST
from catga_store.stores.redis.sweeping import glob

__all__ = ["RedisDoctor"]

_SECONDS = 5.0
_MIB = 1024 * 1024
_NEARLY_FULL = 0.9
_PAGE = 1000
_FAILURES = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    NotSentError,
    ReplyLostError,
    OSError,
)


class RedisServerLink(PerformsPipes, Protocol):
    """What the doctor needs of a link to a server."""

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

    open_link: Callable[[str, float], RedisServerLink]
    default_prefix: str

    def absent(self, url: str) -> str | None:
        """Return why there is no store under the prefix; `None` if there is, or the server does not say."""
        place, prefix, _ = _split(url, self.default_prefix)
        with closing(self.open_link(place, _SECONDS)) as link:
            try:
                laid_out = _partitions(link, prefix) is not None
            except _FAILURES:
                return None

        return None if laid_out else _nothing(prefix)

    def examine(self, url: str) -> Iterator[Finding]:
        """Look at each node that keeps records, then at the records' index."""
        place, prefix, acknowledged_by = _split(url, self.default_prefix)
        with closing(self.open_link(place, _SECONDS)) as link:
            try:
                nodes = _nodes(link)
                for name, node in nodes:
                    yield from _node(node, f" of {name}" if name else "", place)

                if len(nodes) == 1:
                    yield from _fail_over(nodes[0][1], acknowledged_by)

                yield from _store(link, prefix, nodes)
            except _FAILURES as error:
                yield Finding(
                    "server",
                    "problem",
                    str(error),
                    "no worker can read or write a flow",
                    "check that the server is running, that the URL is correct, and that the user"
                    " has access to the server",
                )

    @contextmanager
    def scratch(self, url: str) -> Generator[Scratch]:
        """Use a prefix of its own on the same server, and remove every key under it."""
        place, _, _ = _split(url, self.default_prefix)
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
            message = f"the keys with the prefix {prefix} could not be removed: {error}"
            raise StoreUnavailableError(message) from error

    def _remove(self, place: str, prefix: str) -> None:
        with closing(self.open_link(place, _SECONDS)) as link:
            for _, node in _nodes(link):
                for key in node.scan_iter(match=b"{" + glob(prefix.encode()) + b"*", count=_PAGE):
                    node.unlink(key)


def _nothing(prefix: str) -> str:
    return f"there is no store under the prefix {prefix!r} on this server"


def _split(url: str, default_prefix: str) -> tuple[str, str, int]:
    """Return the URL without the store's own options, and these: prefix and acknowledged_by."""
    place, _, text = url.partition("?")
    query = parse_qsl(text, keep_blank_values=True)
    own = {"prefix": default_prefix, "acknowledged_by": "0"}
    rest = urlencode([(name, value) for name, value in query if name not in own])
    own |= {name: value for name, value in query if name in own}
    return f"{place}?{rest}" if rest else place, own["prefix"], int(own["acknowledged_by"])


def _nodes(link: RedisServerLink) -> list[tuple[str, Any]]:
    """Return a client for each server that keeps records, with its name if there are several."""
    client = link.client()
    if not isinstance(client, RedisCluster):
        return [("", client)]

    cluster: Any = client
    return [(node.name, cluster.get_redis_connection(node)) for node in cluster.get_primaries()]


# --- the store ------------------------------------------------------------------------------------


def _store(link: RedisServerLink, prefix: str, nodes: Sequence[object]) -> Iterator[Finding]:
    stored = _partitions(link, prefix)
    if stored is None:
        yield no_store(_nothing(prefix))
        return

    if not stored.isdigit():
        return  # opening the store says so

    layout = RedisLayout(prefix, int(stored))
    found = f"{layout.partitions} partition{'' if layout.partitions == 1 else 's'}"
    means, change = f"the records are under the prefix {prefix}", ""
    if layout.partitions < len(nodes):
        means += f"; with so few partitions, some of the {len(nodes)} primaries hold no records"
        change = "copy the store to a new prefix with `catga-store copy FROM TO --partitions 16`"

    yield Finding("layout", "info", found, means, change)
    yield from examine_index(link, layout)
    yield from examine_parts(link, layout)


def _partitions(link: RedisServerLink, prefix: str) -> Any:
    """Return the number of partitions that is stored, `None` if there is no layout."""
    (stored,) = ask(link, [(b"HGET", RedisLayout(prefix, 1).layout, b"partitions")])
    return stored


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
    """Return a setting of the server, `None` if it does not say."""
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
            "this version is too old, so the store refuses to use the server",
            f"use Redis {least} or later, or Valkey",
        )

    return Finding(
        f"version{of}",
        "ok",
        shown,
        "this version has every command that the store uses; no module is needed",
    )


def _cluster(node: Any, info: dict[str, Any], of: str, url: str) -> Iterator[Finding]:
    if info.get("redis_mode") != "cluster":
        return

    if "+cluster" not in url.partition("://")[0]:
        yield Finding(
            f"cluster{of}",
            "problem",
            "the server is a node of a cluster, but the URL is for a single server",
            "the store cannot reach records on other nodes",
            "use a URL that begins with redis+cluster:// or rediss+cluster://",
        )
        return

    state = node.execute_command("CLUSTER INFO")
    if state.get("cluster_state") == "ok":
        found = f"{state['cluster_size']} primaries serve every slot"
        yield Finding(f"cluster{of}", "ok", found, "every partition can be reached")
    else:
        found = f"only {state.get('cluster_slots_ok')} of 16384 slots are served"
        yield Finding(
            f"cluster{of}",
            "problem",
            found,
            "the partitions in the other slots cannot be read or written",
            "start the missing nodes, or wait for the failover",
        )


def _memory(info: dict[str, Any], of: str) -> Iterator[Finding]:
    policy, most, used = info.get("maxmemory_policy"), info.get("maxmemory"), info["used_memory"]
    check = f"eviction{of}"
    if policy is None:
        means = "if this is an allkeys policy, the server removes live flows when memory is short"
        yield Finding(
            check,
            "unknown",
            "the server does not show this setting",
            means,
            "check the server's maxmemory-policy setting",
        )
    elif policy.startswith("allkeys"):
        yield Finding(
            check,
            "problem",
            f"maxmemory-policy {policy}",
            "when memory is short, the server removes live flows without an error",
            "set maxmemory-policy noeviction",
        )
    elif policy.startswith("volatile"):
        yield Finding(
            check,
            "warning",
            f"maxmemory-policy {policy}",
            "when memory is short, the server removes ended flows early; live flows are kept",
            "set maxmemory-policy noeviction",
        )
    else:
        means = "when memory is full, the server refuses whole commits; nothing is lost"
        yield Finding(check, "ok", f"maxmemory-policy {policy}", means)

    check = f"memory{of}"
    if not most:
        found = f"{used / _MIB:,.1f} MiB used, no limit" if most == 0 else f"{used / _MIB:,.1f} MiB"
        means = "without a limit, the operating system may kill a server that uses too much memory"
        yield Finding(check, "info", found, means)
        return

    found = f"{used / _MIB:,.1f} of {most / _MIB:,.1f} MiB used"
    if used > _NEARLY_FULL * most:
        yield Finding(
            check,
            "warning",
            found,
            "when memory is full, every commit fails with StoreUnavailableError, and no flow"
            " continues",
            "raise maxmemory, or keep ended flows for a shorter time with `Retention`",
        )
    else:
        yield Finding(check, "ok", found, "the server has enough free memory")


def _persistence(node: Any, info: dict[str, Any], of: str) -> Iterator[Finding]:
    check = f"durability{of}"
    if info.get("aof_enabled"):
        yield _fsync(_setting(node, "appendfsync"), check)
    else:
        points = _setting(node, "save")
        change = "set appendonly yes"
        if points is None:
            means = (
                "if the server saves snapshots, a restart loses every commit since the last "
                "snapshot; otherwise, a restart loses every flow"
            )
            yield Finding(check, "warning", "appendonly no", means, change)
        elif points:
            means = "a restart loses every commit since the last snapshot"
            found = f"appendonly no, save {points}"
            yield Finding(check, "warning", found, means, change)
        else:
            means = "every flow is lost when the server stops"
            yield Finding(check, "problem", "appendonly no, no snapshots", means, change)

    states = {
        "the append-only file": info.get("aof_last_write_status", "ok"),
        "the rewrite of the append-only file": info.get("aof_last_bgrewrite_status", "ok"),
        "the last snapshot": info.get("rdb_last_bgsave_status", "ok"),
    }
    failed = [name for name, state in states.items() if state != "ok"]
    if failed:
        yield Finding(
            f"disk{of}",
            "problem",
            f"these writes failed: {', '.join(failed)}",
            (
                "the server cannot save to its disk; by default, it refuses every commit until "
                "saving succeeds again"
            ),
            "check the server's log: the disk may be full or not writable",
        )


def _fsync(fsync: str | None, check: str) -> Finding:
    found = f"appendonly yes, appendfsync {fsync}"
    if fsync == "always":
        return Finding(check, "ok", found, "an acknowledged commit survives a power failure")

    if fsync == "everysec":
        means = (
            "a power failure may lose the commits of the last two seconds; on a busy host, a "
            "crash of the server may lose them, too"
        )
        return Finding(
            check, "info", found, means, "if this is too much to lose, set appendfsync always"
        )

    if fsync is None:
        means = "whether a power failure loses commits depends on appendfsync"
        return Finding(
            check, "unknown", "appendonly yes", means, "check the server's appendfsync setting"
        )

    means = "a power failure may lose the commits of the last half minute"
    return Finding(check, "warning", found, means, "set appendfsync everysec or appendfsync always")


def _replication(node: Any, info: dict[str, Any], of: str) -> Iterator[Finding]:
    check = f"replicas{of}"
    if info.get("role") != "master":
        yield Finding(
            check,
            "problem",
            "the server is a replica",
            (
                "a replica refuses every commit, and reads return only the data that it has "
                "received so far"
            ),
            "use the URL of the primary, or use a Sentinel client",
        )
        return

    replicas = int(info.get("connected_slaves", 0))
    least = _setting(node, "min-replicas-to-write")
    found = f"{replicas} connected, min-replicas-to-write {'unknown' if least is None else least}"
    if replicas == 0 and least in (None, "0"):
        means = "there is no replica to fail over to, so the store is lost if the machine is lost"
        yield Finding(
            check, "info", found, means, "add a replica, or keep backups on another machine"
        )
    elif least is None:
        means = (
            "if the server does not wait for replicas, a failover loses the commits that the "
            "replicas have not received"
        )
        yield Finding(
            check, "unknown", found, means, "check the server's min-replicas-to-write setting"
        )
    elif least == "0":
        yield Finding(
            check,
            "warning",
            found,
            "a primary that is cut off from its replicas keeps accepting commits, and a "
            "failover loses them",
            "set min-replicas-to-write 1 and min-replicas-max-lag 1 (a failover can still "
            "lose commits within that lag), and use two replicas, because a promoted primary "
            "without a replica refuses every commit",
        )
    elif replicas < int(least):
        means = "too few replicas are connected, so the server refuses every commit"
        yield Finding(check, "problem", found, means, "reconnect the replicas")
    else:
        means = "the server refuses commits while too few replicas are within min-replicas-max-lag"
        change = ""
        if replicas == int(least):
            change = (
                "add a replica; otherwise, every commit is refused after a failover, which "
                "leaves one replica fewer"
            )

        yield Finding(check, "ok", found, means, change)


def _fail_over(node: Any, acknowledged_by: int) -> Iterator[Finding]:
    """Say what a failover can lose, by the store's own option."""
    info = node.info("replication")
    if info.get("role") != "master":
        return

    replicas = int(info.get("connected_slaves", 0))
    found = f"acknowledged_by={acknowledged_by}, {replicas} connected"
    means, change = "", ""
    level: Level = "ok"
    if acknowledged_by == 0:
        level = "info"
        means = (
            "a commit is acknowledged before a replica has it, so a failover may lose the commit"
        )
        change = "to wait for a replica, add acknowledged_by=1 to the URL, and use two replicas"
    elif replicas < acknowledged_by:
        level = "problem"
        means = "too few replicas can confirm a commit, so every commit raises CommitUncertainError"
        change = "reconnect the replicas, or lower acknowledged_by"
    elif replicas == acknowledged_by:
        means = "an acknowledged commit is on every replica, so a failover keeps it"
        change = (
            "add a replica; otherwise, no commit is acknowledged while one replica is down, "
            "or after a failover"
        )
    else:
        means = (
            "an acknowledged commit is on at least that many replicas, so a failover to one "
            "of them keeps it"
        )

    yield Finding("failover", level, found, means, change)
