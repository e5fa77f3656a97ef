"""What parts cost on Redis, beside the same bytes on a plain redis-py client.

    python benchmarks/parts.py [--version 8.2] [--calls N] [--rounds N] [--many N]

- the round trips of each operation, which are asserted;
- a page of 100 parts of a flow that has 100 of them, and of one that has `--many`;
- a part of 32 KiB, beside `HGET` of as many bytes;
- what other callers wait while a flow with 10,000 parts of 1 KiB is deleted.

Times are reported, not asserted, beside what took turns with them in the same run. Starts a server of
its own. Needs `catga_store[cli,redis,test]`.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.console import Console
from rich.table import Table
from subject import exchanges
from timing import interleaved

import catga_store as cs
from catga_store.stores.redis.scripts import SCRIPTS
from catga_store.testing.servers import RedisServer

BODY = b"x" * (32 * 1024)
PARTS = 10_000
AT_ONCE = 200


def add_many(store: cs.Store, flow_id: str, count: int, body: bytes) -> None:
    """Write a flow and so many parts of it."""
    store.create(cs.FlowSnapshot(flow_id, state={}))
    for start in range(0, count, AT_ONCE):
        with store.begin() as session:
            for number in range(start, min(start + AT_ONCE, count)):
                session.add_part(cs.Part(flow_id, f"p/{number:09}", body))


def with_its_flow(store: cs.Store) -> None:
    """Create a flow and two parts, and append to a log, in one commit."""
    with store.begin() as session:
        session.add(cs.FlowSnapshot("new", state={}))
        session.add_part(cs.Part("new", "a", 1))
        session.add_part(cs.Part("new", "b", 1))
        session.append("new", {"event": "created"})


EXCHANGES: dict[str, tuple[Callable[[cs.Store], object], int]] = {
    "put_part": (lambda store: store.put_part(cs.Part("few", "q", 1)), 1),
    "get_part": (lambda store: store.get_part("few", "q"), 1),
    "get_parts of 500": (lambda store: store.get_parts("few", map(str, range(500))), 1),
    "add_part and append with their flow": (with_its_flow, 1),
    "append": (lambda store: store.append("few", 1), 1),
    "read_log": (lambda store: store.read_log("few"), 1),
    "list_parts of 100": (lambda store: store.list_parts("few"), 1),
    "delete_part": (lambda store: store.delete_part("few", "q"), 1),
    "trim_log": (lambda store: store.trim_log("few", before=2), 1),
    "delete of a flow with parts": (lambda store: store.delete("new"), 1),
}
"""Round trips of each operation, asserted."""


def report_exchanges(store: cs.Store, table: Table) -> None:
    """Count the round trips."""
    for name, (call, expected) in EXCHANGES.items():
        found = exchanges(store, lambda call=call: call(store))  # type: ignore[misc]
        assert found == expected, f"{name}: {found} round trips, expected {expected}"
        table.add_row(name, f"{found} round trip{'s' if found > 1 else ''}")


def report_pages(store: cs.Store, table: Table, arguments: argparse.Namespace) -> None:
    """Time a page of parts among few and among many."""
    middle = f"p/{arguments.many // 2:09}"
    times = interleaved(
        {
            "few": lambda: store.list_parts("few", "p/"),
            "many": lambda: store.list_parts("many", "p/", after=middle),
        },
        calls=arguments.calls,
        rounds=arguments.rounds,
    )
    ratio = times["many"].over(times["few"])
    table.add_row("list_parts of 100 among 100", f"{times['few'].p50:,.0f} us")
    table.add_row(
        f"list_parts of 100 among {arguments.many:,}",
        f"{times['many'].p50:,.0f} us, {ratio:.2f} times as much",
    )


def report_body(
    store: cs.Store, client: redis.Redis, table: Table, arguments: argparse.Namespace
) -> None:
    """Time the read of a body beside that of the bare client."""
    store.put_part(cs.Part("few", "body", BODY))
    client.hset("plain", "body", BODY)  # type: ignore[arg-type]
    times = interleaved(
        {
            "get_part": lambda: store.get_part("few", "body"),
            "HGET": lambda: client.hget("plain", "body"),
        },
        calls=arguments.calls,
        rounds=arguments.rounds,
    )
    ratio = times["get_part"].over(times["HGET"])
    table.add_row("HGET of 32 KiB", f"{times['HGET'].p50:,.0f} us")
    table.add_row(
        "get_part of 32 KiB", f"{times['get_part'].p50:,.0f} us, {ratio:.2f} times as much"
    )


def report_removal(
    store: cs.Store, client: redis.Redis, table: Table, arguments: argparse.Namespace
) -> None:
    """Measure what others wait while a flow with many parts is deleted."""
    taken: list[float] = []
    longest: list[float] = []
    for _ in range(arguments.rounds):
        add_many(store, "large", PARTS, b"x" * 1024)
        waits = list[float]()
        done = threading.Event()
        other = threading.Thread(target=_ask_until, args=(client, done, waits))
        other.start()
        time.sleep(0.05)
        start = time.perf_counter()
        store.delete("large")
        taken.append(time.perf_counter() - start)
        time.sleep(0.1)
        done.set()
        other.join()
        longest.append(max(waits))

    table.add_row(f"delete of a flow with {PARTS:,} parts", f"{median(taken) * 1000:.2f} ms")
    table.add_row(
        "longest wait of others meanwhile",
        f"{median(longest) * 1000:.2f} ms; at worst {max(longest) * 1000:.2f} ms",
    )


def _ask_until(client: redis.Redis, done: threading.Event, waits: list[float]) -> None:
    while not done.is_set():
        start = time.perf_counter()
        client.ping()
        waits.append(time.perf_counter() - start)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", default="8.2")
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=100_000)
    arguments = parser.parse_args()
    table = Table(f"Redis {arguments.version}", "", title="Parts")
    with (
        RedisServer(arguments.version) as server,
        cs.open_store(server.url) as store,
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as client,
    ):
        plain: Any = client
        for script in SCRIPTS:
            plain.script_load(script.source)

        add_many(store, "few", 100, b"1")
        add_many(store, "many", arguments.many, b"1")
        report_exchanges(store, table)
        report_pages(store, table, arguments)
        report_body(store, plain, table, arguments)
        report_removal(store, plain, table, arguments)

    Console().print(table)


if __name__ == "__main__":
    main()
