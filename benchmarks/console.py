"""Time the pages of the console over HTTP on a store with many flows: `python benchmarks/console.py URL`.

Fills the store first if it has fewer flows than `--flows`: a tenth live and due, of which some are
claimed. Measures a look of the overview at the store, too, which happens once in five seconds.

The last column says less of a busy machine than times do: the processor time of one load, in this process,
which serves the pages, and in the server with the process id `--server`.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn

import catga_store as cs
from catga_store import console

TOKEN = "a-token-of-the-benchmark"
BATCH = 200
CALLS, LOOKS = 50, 5
PAGES = (
    "/",
    "/flows",
    "/flows?status=FAILED",
    "/flows?id_prefix=flow-0042",
    "/flows?status=FAILED&cursor={cursor}",
    "/flow?id={flow}",
    "/flow/edit?id={flow}",
    "/waits",
    "/waits?overdue=1",
    "/doctor",
)


def fill(store: cs.Store, flows: int) -> None:
    """Write the flows that are missing, 200 in a commit."""
    start = time.perf_counter()
    for first in range(store.stats().total, flows, BATCH):
        with store.begin() as session:
            for number in range(first, min(first + BATCH, flows)):
                session.add(flow_of(number))

    for number in range(0, min(flows, 200), 10):
        flow = store.get_one(name_of(number))
        if not flow.status.is_terminal and flow.owner is None:
            store.claim(flow.flow_id, owner=f"worker-{number % 4}", lease=timedelta(minutes=10))

    for number in range(100):
        wait = cs.WaitCondition(f"wait-{number}", flow_ids=["a", "b"], timeout=timedelta(hours=1))
        store.set_wait_condition(wait)

    print(f"{flows:,} flows after {time.perf_counter() - start:.0f} s")


def name_of(number: int) -> str:
    """Return the id of a flow."""
    return f"flow-{number:07}"


def flow_of(number: int) -> cs.FlowSnapshot[Any]:
    """Return one flow; nine in ten have ended, one in a hundred failed."""
    status = cs.FlowStatus.COMPLETED
    if number % 10 == 0:
        status = cs.FlowStatus.RUNNING
    elif number % 100 == 1:
        status = cs.FlowStatus.FAILED

    return cs.FlowSnapshot(
        name_of(number),
        state={"customer": f"customer-{number % 977}", "lines": [{"sku": "a", "n": number}] * 3},
        status=status,
        error="card declined" if status is cs.FlowStatus.FAILED else None,
    )


@contextmanager
def served(store: cs.Store) -> Iterator[int]:
    """Serve the console while the block runs; yields the port."""
    application = console.app(store, token=TOKEN, write=True)
    config = uvicorn.Config(
        application, port=0, lifespan="on", log_level="warning", timeout_keep_alive=600
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    yield server.servers[0].sockets[0].getsockname()[1]

    server.should_exit = True
    thread.join()


def processor_ms(server: int | None) -> float:
    """Return the processor time of this process so far, and of a server."""
    used = time.process_time() * 1000
    if server is not None:
        for thread in Path(f"/proc/{server}/task").iterdir():
            used += int((thread / "schedstat").read_text().split()[0]) / 1e6

    return used


def late_cursor(store: cs.Store) -> str:
    """Return the cursor of a page far down a listing."""
    cursor: str | None = None
    for _ in range(9):
        page = store.query_flows(status=cs.FlowStatus.FAILED, limit=100, cursor=cursor)
        cursor = page.cursor or cursor

    return cursor or ""


def get(connection: http.client.HTTPConnection, path: str) -> float:
    """Load a page; returns the milliseconds it took."""
    start = time.perf_counter()
    connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
    reply = connection.getresponse()
    body = reply.read()
    assert reply.status == 200, body
    return (time.perf_counter() - start) * 1000


def measure(store: cs.Store, flows: int, server: int | None) -> None:
    """Print what each page takes. The overview and its look at the store are separate rows."""

    def row(name: str, first: str, times: list[float], used: float) -> None:
        middle, most = statistics.median(times), max(times)
        print(f"| `{name}` | {first} | {middle:.1f} | {most:.1f} | {used / len(times):.1f} |")

    with served(store) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        print(f"| page | first | p50 | slowest of {CALLS} | processor |\n|---|--:|--:|--:|--:|")
        for page in PAGES:
            path = page.format(flow=quote(name_of(flows // 2)), cursor=quote(late_cursor(store)))
            first = get(connection, path)
            before = processor_ms(server)
            times = [get(connection, path) for _ in range(CALLS)]
            row(page, f"{first:.1f}", times, processor_ms(server) - before)

        looks = []
        before = processor_ms(server)
        for _ in range(LOOKS):
            time.sleep(5)
            looks.append(get(connection, "/"))

        row("/, every five seconds", "", looks, processor_ms(server) - before)
        connection.close()


def main() -> None:
    """Fill and measure one store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--server", type=int, help="the process id of the server of the store")
    options = parser.parse_args()
    with cs.open_store(options.url, timeout=timedelta(minutes=1)) as store:
        fill(store, options.flows)
        measure(store, options.flows, options.server)


if __name__ == "__main__":
    main()
