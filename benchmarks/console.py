"""Time the pages of the console over HTTP on a store with many flows: `python benchmarks/console.py URL`.

Fills the store first if it has fewer flows than `--flows`: a tenth live and due, of which some are
claimed. Measures a look of the overview at the store, too, which happens once in five seconds.
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
from typing import Any
from urllib.parse import quote

import uvicorn

import catga_store as cs
from catga_store import console

TOKEN = "a-token-of-the-benchmark"
BATCH = 200
CALLS = 50
PAGES = (
    "/",
    "/flows",
    "/flows?status=FAILED",
    "/flows?id_prefix=flow-0042",
    "/flow?id={flow}",
    "/flow/edit?id={flow}",
    "/waits",
    "/doctor",
)


def fill(store: cs.Store, flows: int) -> None:
    """Write the flows that are missing, 200 in a commit."""
    start = time.perf_counter()
    for first in range(store.count_flows(), flows, BATCH):
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
        application, port=0, lifespan="off", log_level="warning", timeout_keep_alive=600
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    yield server.servers[0].sockets[0].getsockname()[1]

    server.should_exit = True
    thread.join()


def get(connection: http.client.HTTPConnection, path: str) -> float:
    """Load a page; returns the milliseconds it took."""
    start = time.perf_counter()
    connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
    reply = connection.getresponse()
    body = reply.read()
    assert reply.status == 200, body
    return (time.perf_counter() - start) * 1000


def measure(store: cs.Store, flows: int) -> None:
    """Print p50 and the slowest of each page. The overview and its look at the store are separate rows."""
    with served(store) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        print("| page | first | p50 | slowest of", CALLS, "|\n|---|--:|--:|--:|")
        for page in PAGES:
            path = page.format(flow=quote(name_of(flows // 2)))
            first = get(connection, path)
            times = sorted(get(connection, path) for _ in range(CALLS))
            print(f"| `{page}` | {first:.1f} | {statistics.median(times):.1f} | {times[-1]:.1f} |")

        looks = []
        for _ in range(5):
            time.sleep(5)
            looks.append(get(connection, "/"))

        print(
            f"| `/` with a look at the store | | {statistics.median(looks):.1f} | {max(looks):.1f} |"
        )
        connection.close()


def main() -> None:
    """Fill and measure one store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--flows", type=int, default=100_000)
    options = parser.parse_args()
    with cs.open_store(options.url) as store:
        fill(store, options.flows)
        measure(store, options.flows)


if __name__ == "__main__":
    main()
