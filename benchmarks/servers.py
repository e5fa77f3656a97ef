"""What the drivers of stores on servers cost: the Redis link beside its library, and the portal.

    python benchmarks/servers.py [--operations N] [--rounds N]

One EVALSHA per operation, of ready-made bytes (a 400-byte body into a hash). `redis.asyncio` does it
with its default pool; `link` is our link alone; `store protocol` is a commit through the asyncio driver, and
`read` a request that is not seen through. Then the same store protocol request one at a time: on the loop,
across the portal from trio, and across the portal from blocking code.

Exchanges are counted and asserted; operations per second are reported, and compared only with what
took turns with them in the same run, as is the time that the client's process has spent on each, which
says more on a machine that does other things too. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

import redis
import redis.asyncio
import trio

from catga_store.drivers.asyncio_driver import AsyncioDriver
from catga_store.drivers.portal import PortalDriver
from catga_store.drivers.portal import TrioPortalDriver
from catga_store.drivers.redis_asyncio import open_redis_link
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import Request
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Ping
from catga_store.stores.redis.transport import Command
from catga_store.stores.redis.transport import Pipe
from catga_store.testing.servers import RedisServer

SCRIPT = "redis.call('HSET', KEYS[1], 'body', ARGV[1]) return 1"
BODY = b"x" * 400
SECONDS = 10.0


class Ready:
    """A store protocol whose every request is one EVALSHA of ready-made bytes."""

    def __init__(self, digest: str) -> None:
        self.pipe = Pipe((Command(("EVALSHA", digest, 1, b"k", BODY), b"k"),), writes=True)

    def converse(self, _: Request[Any]) -> Conversation[Any]:
        """Run a request as one script."""
        (reply,) = yield self.pipe
        return reply


async def rate(
    call: Callable[[], Awaitable[Any]], tasks: int, operations: int
) -> tuple[float, float]:
    """Return the operations per second of the tasks, and the processor time of each in us."""
    left = iter(range(operations))

    async def work() -> None:
        for _ in left:
            assert await call() == 1

    start, own = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(tasks)))
    own = (time.process_time() - own) / operations * 1e6
    return operations / (time.perf_counter() - start), own


def calls_of(port: int) -> int:
    """Return how many scripts the server has run."""
    with redis.Redis(port=port) as client:
        stats: Any = client.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


def ratios(found: Mapping[str, list[float]]) -> list[str]:
    """Format medians, and their ratios to the first case in the same rounds."""
    beside = next(iter(found.values()))
    return [
        f"{median(one):,.0f} ({median(a / b for a, b in zip(one, beside, strict=True)):.2f}x)"
        for one in found.values()
    ]


async def throughput(url: str, port: int, digest: str, operations: int, rounds: int) -> None:
    """Print operations per second at 1, 10 and 100 tasks."""
    client = redis.asyncio.Redis.from_url(url)
    link = open_redis_link(url, SECONDS)
    protocol = Ready(digest)
    driver = AsyncioDriver(protocol, lambda: link, SECONDS)

    async def alone() -> Any:
        return (await link.perform(protocol.pipe))[0]

    cases: Mapping[str, Callable[[], Awaitable[Any]]] = {
        "redis.asyncio": partial(client.evalsha, digest, 1, "k", BODY),  # type: ignore[dict-item]
        "link": alone,
        "protocol": partial(driver.ask, Commit("c", 0, (), None)),
        "read": partial(driver.ask, Ping()),
    }
    heads = "".join(f"{name + ', per s':>18}{'own us':>18}" for name in cases)
    print(f"{'tasks':>6}{heads}   writes per store protocol commit")
    for tasks in (1, 10, 100):
        rates: dict[str, list[float]] = {name: [] for name in cases}
        owns: dict[str, list[float]] = {name: [] for name in cases}
        writes = 0
        for _ in range(rounds):
            for name, call in cases.items():
                before = calls_of(port), link.writes
                found, own = await rate(call, tasks, operations)
                rates[name].append(found)
                owns[name].append(own)
                assert calls_of(port) - before[0] == operations
                if name == "protocol":
                    writes += link.writes - before[1]

        assert writes <= rounds * operations
        cells = zip(ratios(rates), ratios(owns), strict=True)
        row = "".join(f"{a:>18}{b:>18}" for a, b in cells)
        print(f"{tasks:>6}{row}   {writes / rounds / operations:.3f}")

    await driver.close()
    await client.aclose()


async def each_awaited(driver: Any, operations: int) -> list[float]:
    """Return the times of single awaited requests, in microseconds."""
    taken: list[float] = []
    for _ in range(operations):
        start = time.perf_counter()
        assert await driver.ask(Commit("c", 0, (), None)) == 1
        taken.append((time.perf_counter() - start) * 1e6)

    return taken


def crossings(url: str, port: int, digest: str, operations: int, rounds: int) -> None:
    """Print what one commit at a time takes from each kind of caller."""

    async def direct(kind: Any) -> list[float]:
        driver = kind(Ready(digest), partial(open_redis_link, url, SECONDS), SECONDS)
        await driver.ask(Ping())
        taken = await each_awaited(driver, operations)
        await driver.close()
        return taken

    def blocking() -> list[float]:
        driver = PortalDriver(Ready(digest), partial(open_redis_link, url, SECONDS), SECONDS)
        driver.ask(Ping())
        taken: list[float] = []
        for _ in range(operations):
            start = time.perf_counter()
            assert driver.ask(Commit("c", 0, (), None)) == 1
            taken.append((time.perf_counter() - start) * 1e6)

        driver.close()
        return taken

    cases: Mapping[str, Callable[[], list[float]]] = {
        "asyncio, direct": lambda: asyncio.run(direct(AsyncioDriver)),
        "trio, portal": lambda: trio.run(direct, TrioPortalDriver),
        "blocking, portal": blocking,
    }
    medians: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            before = calls_of(port)
            medians[name].append(median(case()))
            assert calls_of(port) - before == operations + 1

    for name, found in medians.items():
        more = median(a - b for a, b in zip(found, medians["asyncio, direct"], strict=True))
        print(f"{name:>18} {median(found):>8,.0f} us per commit {more:>+8,.0f} us")


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        digest: Any = client.script_load(SCRIPT)
        asked = server.url, server.port, digest, options.operations, options.rounds
        asyncio.run(throughput(*asked))
        crossings(*asked)


if __name__ == "__main__":
    main()
