"""What parts cost on Redis, beside the same bytes on a plain redis-py client; and bodies of bytes on SQLite.

    python benchmarks/parts.py [--version 8.2] [--calls N] [--rounds N] [--many N]

- the round trips of each operation, which are asserted;
- a page of 100 parts of a flow that has 100 of them, and of one that has `--many`;
- a part of 32 KiB, beside `HGET` of as many bytes, and 100 of them in one call, beside one `HMGET`;
- on SQLite a state and a part of 32 KiB, beside one `SELECT` of as many bytes from a table of two columns on
  a connection of `sqlite3`, and 100 of each in one call, beside 100 such statements;
- what other callers wait while a flow with 10,000 parts of 1 KiB is deleted.

Times are reported, not asserted, beside what took turns with them in the same run. Starts a server of
its own. Needs `catga_store[cli,redis,test]`.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
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
MANY = 100
"""Bodies that are read in one call."""


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
    """Time the read of a body beside that of the bare client, and of many in one call."""
    plain: Any = client
    names = [f"body/{number}" for number in range(MANY)]
    for name in names:
        store.put_part(cs.Part("few", name, BODY))
        plain.hset("plain", name, BODY)

    one = {
        "HGET": lambda: plain.hget("plain", names[0]),
        "get_part": lambda: store.get_part("few", names[0]),
    }
    many = {
        f"HMGET of {MANY}": lambda: plain.hmget("plain", names),
        f"get_parts of {MANY}": lambda: store.get_parts("few", names),
    }
    compare(one, table, arguments.calls, arguments.rounds)
    compare(many, table, max(arguments.calls // 10, 3), arguments.rounds)


def compare(
    cases: dict[str, Callable[[], object]], table: Table, calls: int, rounds: int, *, of: str = ""
) -> None:
    """Time cases in turn, and report each as a multiple of the first."""
    times = interleaved(cases, calls=calls, rounds=rounds)
    first, *others = cases
    table.add_row(f"{first}{of}", f"{times[first].p50:,.1f} us")
    for name in others:
        ratio = times[name].over(times[first])
        table.add_row(f"{name}{of}", f"{times[name].p50:,.1f} us, {ratio:.2f} times as much")


def report_sqlite(folder: Path, table: Table, arguments: argparse.Namespace) -> None:
    """Time the reads of bodies of bytes from a SQLite file, beside bare statements on another."""
    ids = [f"flow-{number}" for number in range(MANY)]
    with (
        cs.SQLiteStore(folder / "flows.db") as store,
        closing(sqlite3.connect(folder / "plain.db", isolation_level=None)) as bare,
    ):
        bare.execute("PRAGMA journal_mode = WAL")
        bare.execute("CREATE TABLE bodies (id BLOB PRIMARY KEY, body BLOB NOT NULL)")
        bare.execute("BEGIN")
        with store.begin() as session:
            for flow_id in ids:
                body = os.urandom(len(BODY))
                session.add(cs.FlowSnapshot(flow_id, state=body))
                session.add_part(cs.Part("flow-0", flow_id, body))
                bare.execute("INSERT INTO bodies VALUES (?, ?)", (flow_id.encode(), body))

        bare.execute("COMMIT")

        def select(flow_id: str) -> bytes:
            found = bare.execute("SELECT body FROM bodies WHERE id = ?", (flow_id.encode(),))
            body: bytes = found.fetchone()[0]
            return body

        one: dict[str, Callable[[], object]] = {
            "SELECT": lambda: select("flow-0"),
            "get": lambda: store.get("flow-0", bytes),
            "get_part": lambda: store.get_part("flow-0", "flow-0"),
        }
        many: dict[str, Callable[[], object]] = {
            f"{MANY} SELECT": lambda: [select(flow_id) for flow_id in ids],
            f"get_many of {MANY}": lambda: store.get_many(ids, bytes),
            f"get_parts of {MANY}": lambda: store.get_parts("flow-0", ids),
        }
        compare(one, table, arguments.calls, arguments.rounds, of=", 32 KiB, SQLite")
        calls = max(arguments.calls // 10, 3)
        compare(many, table, calls, arguments.rounds, of=", 32 KiB each, SQLite")


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
        tempfile.TemporaryDirectory() as folder,
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
        report_sqlite(Path(folder), table, arguments)
        report_removal(store, plain, table, arguments)

    Console().print(table)


if __name__ == "__main__":
    main()
