"""Partitions between servers, which clients still reach: nothing acknowledged is lost, no stale writer accepted.

Each server is a host of its own (`namespaces`). `CATGA_PARTITIONS` says how many rounds there are (10).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from acknowledged import Writer
from acknowledged import lost
from acknowledged import lost_updates
from acknowledged import open_store
from acknowledged import read_logs
from acknowledged import torn
from acknowledged import wrong_claims
from acknowledged import wrong_listings
from namespaces import Network
from namespaces import why_not
from sites import wait_until_ready
from waiting import until

import catga_store as cs
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import RedisServer

REASON = why_not()
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

ROUNDS = int(os.environ.get("CATGA_PARTITIONS", "10"))
WRITERS = 2
MASTER = "flows"


@pytest.fixture
def network() -> Iterator[Network]:
    """Three hosts."""
    with Network(3) as made:
        yield made


@pytest.fixture
def nats(network: Network) -> Iterator[NatsCluster]:
    """Three NATS servers, one a host."""
    cluster = NatsCluster()
    routes = ", ".join(f"nats://{host.address}:7000" for host in network.hosts)
    with ExitStack() as stack:
        for node, host in zip(cluster.nodes, network.hosts, strict=True):
            node.host = host.address
            node.inside = host.enter
            listen = f"{host.address}:7000"
            node.settings = (f'cluster {{ name: catga, listen: "{listen}", routes: [{routes}] }}',)
            stack.callback(node.close)

        yield cluster.start()


def test_acknowledged_commits_on_nats_after_partitions(
    network: Network, nats: NatsCluster, tmp_path: Path
) -> None:
    """One of three servers is cut off from the others, its clients are not; then all is healed."""
    url = f"{nats.url}?replicas=3"
    draw = random.Random(2030)
    logs: list[Path] = []
    for number in range(ROUNDS):
        writers = [Writer(url, tmp_path, 100 * number + n) for n in range(WRITERS)]
        logs += [writer.log for writer in writers]
        for writer in writers:
            writer.wait_for(20)

        alone = draw.choice(network.hosts)
        network.partition([alone], [host for host in network.hosts if host != alone])
        _pass(draw.uniform(3.0, 15.0))
        network.heal()
        done = [writer.log.read_bytes().count(b"\n") for writer in writers]
        for writer, count in zip(writers, done, strict=True):
            writer.wait_for(count + 20)
            writer.kill()

        known = read_logs(logs, time.monotonic())
        with cs.open_store(url) as store:
            wait_until_ready(store)
            assert lost(store, known) == [], f"after partition {number}"
            assert torn(store) == []
            assert lost_updates(store) == []
            assert wrong_listings(store) == []

    print(f"NATS R3: {ROUNDS} partitions, {known.commits} acknowledged, none lost")  # noqa: T201
    with cs.open_store(url) as store:
        assert wrong_claims(store) == []


class Sentinels:
    """A Redis primary with two replicas and three Sentinels, one of each a host."""

    def __init__(self, network: Network, stack: ExitStack) -> None:
        self.network = network
        self.servers: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []
        first = network.hosts[0].address
        for host in network.hosts:
            of = () if host.address == first else ("--replicaof", f"{first} 6379")
            server = RedisServer("8.2", "--protected-mode", "no", *of)
            server.host, server.port, server.inside = host.address, 6379, host.enter
            self.servers.append(server)
            self.sentinels.append(_Sentinel(host.address, first))
            self.sentinels[-1].inside = host.enter
            for each in (server, self.sentinels[-1]):
                stack.callback(each.close)

    def start(self) -> None:
        """Start all of them and wait until the Sentinels know each other and the replicas."""
        for server in self.servers:
            server.start()

        until(
            lambda: b"connected_slaves:2" in self.servers[0].ask(b"INFO replication\r\n"),
            otherwise="no replicas",
        )
        for sentinel in self.sentinels:
            sentinel.start()

        until(
            lambda: all(map(self._is_complete, self.sentinels)),
            otherwise="the Sentinels did not meet",
        )

    @property
    def url(self) -> str:
        """What `acknowledged.open_store` takes."""
        places = ",".join(f"{one.host}:{one.port}" for one in self.sentinels)
        return f"sentinel://{places}/{MASTER}?acknowledged_by=1"

    def primary(self) -> int:
        """The place of the server that most Sentinels take for the primary."""
        said = [self._primary_of(sentinel) for sentinel in self.sentinels]
        return max(range(3), key=said.count)

    def _primary_of(self, sentinel: RedisServer) -> int:
        reply = sentinel.ask(f"SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}\r\n".encode()).decode()
        return next(n for n, one in enumerate(self.servers) if one.host in reply)

    def is_whole(self) -> bool:
        """Whether the primary has both replicas again, all of them in step."""
        info = self.servers[self.primary()].ask(b"INFO replication\r\n")
        return b"role:master" in info and info.count(b"state=online") == 2

    @staticmethod
    def _is_complete(sentinel: RedisServer) -> bool:
        info = sentinel.ask(b"INFO sentinel\r\n")
        return b"slaves=2" in info and b"sentinels=3" in info


class _Sentinel(RedisServer):
    def __init__(self, host: str, first: str) -> None:
        super().__init__("8.2")
        self.host, self.port, self._first = host, 26379, first

    def command(self) -> list[str]:
        configuration = self.directory / "sentinel.conf"
        if not configuration.exists():
            lines = [
                f"bind {self.host}",
                f"port {self.port}",
                "protected-mode no",
                f"dir {self.directory}",
                f"sentinel monitor {MASTER} {self._first} 6379 2",
                f"sentinel down-after-milliseconds {MASTER} 1000",
                f"sentinel failover-timeout {MASTER} 5000",
            ]
            configuration.write_text("\n".join(lines), "utf-8")

        program = next(iter(super().command()))
        return [program, str(configuration), "--sentinel"]


@pytest.fixture
def sentinels(network: Network) -> Iterator[Sentinels]:
    """Redis with Sentinel on three hosts."""
    with ExitStack() as stack:
        made = Sentinels(network, stack)
        made.start()
        yield made


def test_acknowledged_commits_on_redis_after_fail_overs(
    network: Network, sentinels: Sentinels, tmp_path: Path
) -> None:
    """With `acknowledged_by=1` a primary that is cut off acknowledges nothing that a failover loses."""
    draw = random.Random(2030)
    logs: list[Path] = []
    for number in range(ROUNDS):
        writers = [Writer(sentinels.url, tmp_path, 100 * number + n) for n in range(WRITERS)]
        logs += [writer.log for writer in writers]
        for writer in writers:
            writer.wait_for(20)

        primary = sentinels.primary()
        alone = network.hosts[primary]
        network.partition([alone], [host for host in network.hosts if host != alone])
        until(lambda old=primary: sentinels.primary() != old, otherwise="no failover")
        _pass(draw.uniform(0.5, 3.0))
        network.heal()
        done = [writer.log.read_bytes().count(b"\n") for writer in writers]
        for writer, count in zip(writers, done, strict=True):
            writer.wait_for(count + 20)
            writer.kill()

        until(sentinels.is_whole, otherwise="the replicas did not come back")
        known = read_logs(logs, time.monotonic())
        with open_store(sentinels.url) as store:
            wait_until_ready(store)
            assert lost(store, known) == [], f"after failover {number}"
            assert torn(store) == []
            assert lost_updates(store) == []
            assert wrong_listings(store) == []

    print(f"Redis: {ROUNDS} failovers, {known.commits} acknowledged, none lost")  # noqa: T201


def _pass(seconds: float) -> None:
    """Let the writers meet the partition for so long; decides nothing."""
    time.sleep(seconds)
