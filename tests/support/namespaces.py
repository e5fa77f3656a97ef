"""Hosts of a test network, each a network namespace on one bridge, and partitions between them.

`Network(3)` has three hosts with addresses of their own; programs run in them by `host.enter`. A
partition is a blackhole route on both sides: packets vanish, as they do when a cable is cut, and
connections that exist hang. It needs root and the program `ip`; `why_not()` says what is missing.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable
from typing import NamedTuple
from typing import Self

SECONDS = 30.0


def why_not() -> str | None:
    """Return what keeps this machine from having such a network, or None."""
    if os.geteuid() != 0:
        return "partitions need root: they are made of network namespaces"

    if shutil.which("ip") is None:
        return "partitions need the program ip (iproute2), which is not installed"

    probe = f"catga-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode != 0:
        return f"partitions need network namespaces: {made.stderr.decode().strip()}"

    _ip("netns", "delete", probe)
    return None


class Host(NamedTuple):
    """One host: the namespace it is, and its address."""

    name: str
    address: str

    @property
    def enter(self) -> tuple[str, ...]:
        """The words before a command that make it run on this host."""
        return ("ip", "netns", "exec", self.name)


class Network:
    """Hosts on one bridge; the test itself stands at the bridge and reaches all of them."""

    def __init__(self, count: int) -> None:
        subnet = f"10.{os.getpid() % 200 + 20}.77"
        self._bridge = f"catga{os.getpid() % 100_000}"
        self._gateway = f"{subnet}.1"
        self.hosts = [
            Host(f"{self._bridge}-{number}", f"{subnet}.{number + 10}") for number in range(count)
        ]
        self._cut: set[tuple[Host, Host]] = set()

    def __enter__(self) -> Self:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self._gateway}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for number, host in enumerate(self.hosts):
            inside, outside = f"{self._bridge}i{number}", f"{self._bridge}o{number}"
            _ip("netns", "add", host.name)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            _ip("link", "set", inside, "netns", host.name)
            _ip("link", "set", outside, "master", self._bridge, "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", inside)
            _ip("-n", host.name, "link", "set", inside, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")

        return self

    def __exit__(self, *_error: object) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "delete", host.name], check=False)

        subprocess.run(["ip", "link", "delete", self._bridge], check=False)

    def partition(self, one: Iterable[Host], other: Iterable[Host]) -> None:
        """Let no packet pass between two groups of hosts; the test still reaches both."""
        for left, right in itertools.product(one, other):
            for here, there in ((left, right), (right, left)):
                if (here, there) not in self._cut:
                    _ip("-n", here.name, "route", "add", "blackhole", f"{there.address}/32")
                    self._cut.add((here, there))

    def heal(self) -> None:
        """Let everything pass again."""
        for here, there in self._cut:
            _ip("-n", here.name, "route", "delete", "blackhole", f"{there.address}/32")

        self._cut.clear()


def _ip(*words: str) -> None:
    done = subprocess.run(
        ["ip", *words], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, f"ip {' '.join(words)} failed: {done.stderr}"
