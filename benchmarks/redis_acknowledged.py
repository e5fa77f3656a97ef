"""What `acknowledged_by=1` costs on Redis: `update` with and without it, interleaved.

    python benchmarks/redis_acknowledged.py [--calls 2000] [--tasks 50]

Starts a primary and one replica on loopback, from wheels.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import catga_store as cs
from catga_store.testing.servers import RedisServer

AT_ONCE = ("--repl-diskless-sync-delay", "0")


def blocking(url: str, calls: int) -> list[float]:
    """Return the microseconds of each `update`."""
    took: list[float] = []
    with cs.open_store(url) as store:
        store.clear()
        flow = cs.FlowSnapshot("f", state={"n": 0, "text": "x" * 500})
        store.create(flow)
        for _ in range(calls):
            begin = time.perf_counter()
            store.update(flow)
            took.append((time.perf_counter() - begin) * 1e6)

    return took


async def tasks(url: str, number: int, calls: int) -> float:
    """Return the updates a second of that many tasks, each on its own flow."""
    async with cs.open_async_store(url) as store:
        await store.clear()

        async def work(place: int) -> None:
            flow = cs.FlowSnapshot(f"f-{place}", state={"n": 0, "text": "x" * 500})
            await store.create(flow)
            for _ in range(calls):
                await store.update(flow)

        begin = time.perf_counter()
        await asyncio.gather(*(work(place) for place in range(number)))
        return number * calls / (time.perf_counter() - begin)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--tasks", type=int, default=50)
    given = parser.parse_args()
    with RedisServer("8.2", *AT_ONCE) as primary:
        follow = ("--replicaof", primary.host, str(primary.port), *AT_ONCE)
        with RedisServer("8.2", *follow) as replica:
            replica.wait_until(
                lambda: b"master_link_status:up" in replica.ask(b"INFO replication\r\n")
            )
            urls = {n: f"{primary.url}?prefix=bench{'x' * n}:&acknowledged_by={n}" for n in (0, 1)}
            rounds = {n: list[float]() for n in urls}
            rates = {n: list[float]() for n in urls}
            for _ in range(4):
                for number, url in urls.items():
                    rounds[number] += blocking(url, given.calls // 4)
                    rates[number].append(asyncio.run(tasks(url, given.tasks, 20)))

    for number in urls:
        p50, p99 = (
            statistics.median(rounds[number]),
            statistics.quantiles(rounds[number], n=100)[98],
        )
        rate = statistics.median(rates[number])
        print(
            f"acknowledged_by={number}: update p50 {p50:.0f} us, p99 {p99:.0f} us;"
            f" {given.tasks} tasks {rate:,.0f} updates a second"
        )


if __name__ == "__main__":
    main()
