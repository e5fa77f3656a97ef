"""A Redis Sentinel, from the same wheel as the servers that it watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from catga_store.testing.servers import RedisServer
from catga_store.testing.servers import Server


class Sentinel(Server):
    """A Sentinel that watches a primary, and fails over after two seconds."""

    def __init__(self, primary: RedisServer) -> None:
        super().__init__()
        self.program = primary.command()[0]
        (self.directory / "sentinel.conf").write_text(
            f"port {self.port}\nbind {self.host}\n"
            f"sentinel monitor flows {primary.host} {primary.port} 1\n"
            "sentinel down-after-milliseconds flows 2000\n"
            "sentinel failover-timeout flows 3000\n",
            encoding="utf-8",
        )

    def command(self) -> Sequence[str]:
        """Start it on its file, which it rewrites."""
        return [self.program, str(self.directory / "sentinel.conf"), "--sentinel"]

    def is_ready(self) -> bool:
        """Whether it knows the primary and its replica."""
        try:
            with redis.Redis(port=self.port) as client:
                seen: Any = client.sentinel_master("flows")
        except redis.RedisError:
            return False

        return seen["num-slaves"] == 1 and seen["flags"] == "master"
