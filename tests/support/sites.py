"""Stores by kind whose data lie in folders that a test chooses: a disk that fails, a copy to restore."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from waiting import retried

import catga_store as cs
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import Server
from catga_store.testing.servers import ServerStartError

SYNC = {"always": 'sync_interval: "always"', "default": 'sync_interval: "2m"'}


class NotReadyError(Exception):
    """A store could not be read again in time."""


class Site:
    """A store, and the servers that it needs, on given folders, one a machine.

    `kind` is sqlite, redis-<appendfsync>, nats-1-<sync> or nats-3-<sync>, where <sync> is `always` or
    `default`.
    """

    def __init__(self, kind: str, folders: Sequence[Path]) -> None:
        self.kind = kind
        self.folders = folders
        self.may_be_lost = kind.startswith("nats") and kind.endswith("default")
        """Whether a power cut may take the whole store: NATS that does not sync each write."""
        self.servers: list[Server] = []
        self._cluster: NatsCluster | None = None
        name, _, setting = kind.partition("-")
        if name == "redis":
            self.servers = [RedisServer("8.2", "--appendfsync", setting)]
        elif name == "nats":
            replicas, _, sync = setting.partition("-")
            self._cluster = NatsCluster() if replicas == "3" else None
            nodes = [NatsServer()] if self._cluster is None else self._cluster.nodes
            for node in nodes:
                node.jetstream_settings = SYNC[sync]

            self.servers = [*nodes]

        assert len(folders) == machines(kind)

    @property
    def url(self) -> str:
        """What `open_store` takes."""
        if not self.servers:
            return f"sqlite:///{self.folders[0] / 'flows.db'}"

        if self._cluster is not None:
            return f"{self._cluster.url}?replicas=3"

        return self.servers[0].url

    def start(self) -> None:
        """Start the servers on what lies in the folders."""
        for server, folder in zip(self.servers, self.folders, strict=False):
            server.directory = folder / "data"
            server.directory.mkdir(exist_ok=True)

        if self._cluster is not None:
            self._cluster.start()
        elif self.servers:
            try:
                self.servers[0].start()
            except ServerStartError as error:
                if "redis-check-aof" not in str(error):
                    raise

                self._mend_log()
                self.servers[0].start()

    def _mend_log(self) -> None:
        """Cut a Redis log off where a power failure has left a hole, as the server asks for."""
        redis = self.servers[0]
        (manifest,) = (redis.directory / "appendonlydir").glob("*.manifest")
        program = next(iter(redis.command()))  # it is redis-check-aof if it is called so
        subprocess.run(
            ["redis-check-aof", "--fix", str(manifest)],
            executable=program,
            input=b"y\n",
            capture_output=True,
            check=True,
        )

    def kill(self) -> None:
        """Kill the servers; the data stay as they are."""
        for server in self.servers:
            server.kill()


def wait_until_ready(store: cs.Store) -> None:
    """Wait until a store can be read: a cluster elects its leaders after it has started."""

    def read() -> None:
        store.ping()
        store.count_flows()

    try:
        retried(read, cs.StoreUnavailableError, cs.CommitUncertainError)
    except (cs.StoreUnavailableError, cs.CommitUncertainError) as error:
        raise NotReadyError(f"{store!r} did not come back: {error}") from error


def machines(kind: str) -> int:
    """Return how many machines a kind of store runs on."""
    return 3 if kind.startswith("nats-3") else 1
