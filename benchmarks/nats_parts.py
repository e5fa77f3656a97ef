"""What parts cost on NATS: other writers while a large flow is deleted, and a step with a log entry.

    python benchmarks/nats_parts.py [--parts N] [--rounds N]

- what other writers wait while a flow with `--parts` parts of 1 KiB is deleted, beside what they wait in the
  second before;
- an update of a flow, beside one with an entry of a log in the same commit.

Times are reported, not asserted. Starts a server of its own. Needs `catga_store[cli,nats,test]`.
"""

from __future__ import annotations

import argparse
import threading
import time
from statistics import median

from parts import add_many
from rich.console import Console
from rich.table import Table
from timing import interleaved

import catga_store as cs
from catga_store.testing.servers import NatsServer


def write_until(store: cs.Store, done: threading.Event, waits: list[tuple[float, float]]) -> None:
    """Update one flow again and again; note when each update began and ended."""
    flow = cs.FlowSnapshot(f"other-{time.monotonic_ns()}", state={"n": 0})
    store.create(flow)
    while not done.is_set():
        start = time.perf_counter()
        flow.state["n"] += 1
        store.update(flow)
        waits.append((start, time.perf_counter()))


def report_removal(store: cs.Store, other: cs.Store, table: Table, parts: int, rounds: int) -> None:
    """Measure what others wait while a flow with many parts is deleted."""
    taken: list[float] = []
    before: list[float] = []
    longest: list[float] = []
    for _ in range(rounds):
        add_many(store, "large", parts, b"x" * 1024)
        done = threading.Event()
        waits = list[tuple[float, float]]()
        thread = threading.Thread(target=write_until, args=(other, done, waits))
        thread.start()
        time.sleep(1)
        start = time.perf_counter()
        store.delete("large")
        end = time.perf_counter()
        time.sleep(1)
        done.set()
        thread.join()
        taken.append(end - start)
        before.append(max(last - first for first, last in waits if last < start))
        longest.append(max(last - first for first, last in waits if last >= start))

    table.add_row(f"delete of a flow with {parts:,} parts", f"{median(taken) * 1000:.1f} ms")
    for name, found in (("in the second before", before), ("from then on", longest)):
        text = f"{median(found) * 1000:.1f} ms; at worst {max(found) * 1000:.1f} ms"
        table.add_row(f"longest update of another flow {name}", text)


def report_step(store: cs.Store, table: Table, rounds: int) -> None:
    """Time an update with and without an entry of a log."""
    flow = cs.FlowSnapshot("journaled", state={"n": 0})
    store.create(flow)

    def step(entry: bytes | None) -> None:
        flow.state["n"] += 1
        with store.begin() as session:
            session.add(flow)
            if entry is not None:
                session.append("journaled", entry)

    times = interleaved(
        {"alone": lambda: step(None), "with an entry": lambda: step(b"x" * 200)},
        calls=20,
        rounds=rounds,
    )
    for name, found in times.items():
        table.add_row(f"update {name}", f"{found.p50:,.0f} us")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = Table("NATS, one server, file storage", "", title="Parts")
    with (
        NatsServer() as server,
        cs.open_store(server.url) as store,
        cs.open_store(server.url) as other,
    ):
        report_step(store, table, arguments.rounds)
        report_removal(store, other, table, arguments.parts, arguments.rounds)

    Console().print(table)


if __name__ == "__main__":
    main()
