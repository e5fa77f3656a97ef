"""How soon a worker has a flow after its commit, and what a worker that waits costs.

    python benchmarks/wakeups.py [sqlite:///flows.db]

From the return of `create` in one process (or thread, on memory) to the return of `claim_due` in another one
that waits, both read from the system's monotonic clock. Commits come at random intervals around the
one shown, because a store that is written often looks more often. Then the CPU time of a process that waits for
ten seconds and gets nothing.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import Any

import catga_store as cs

INTERVALS = {0.01: 200, 0.2: 100, 2.0: 15}
"""Seconds between two commits -> how many."""
WAIT = timedelta(seconds=20)
IDLE_SECONDS = 10


def claim(url: str, times: Any, ready: Any) -> None:
    """Claim flows as they come, and say when each was there; the last is called "end"."""
    with cs.open_store(url, poll_interval=timedelta(hours=1)) as store:
        store.ping()
        ready.set()
        while True:
            flows = store.claim_due(wait=WAIT, lease=timedelta(hours=9))
            now = time.monotonic()
            for flow in flows:
                if flow.flow_id == "end":
                    return

                times.put((flow.flow_id, now))


def measure(url: str, interval: float, number: int, *, processes: bool) -> list[float]:
    """Return the latencies in milliseconds."""
    context: Any = get_context("spawn") if processes else threading
    spawn: Any = get_context("spawn")
    times, ready = spawn.Queue(), context.Event()
    start: Callable[..., Any] = context.Process if processes else threading.Thread
    worker = start(target=claim, args=(url, times, ready))
    worker.start()
    ready.wait()
    found: list[float] = []
    with cs.open_store(url) as store:
        for place in range(number + 1):
            time.sleep(interval * random.uniform(0.5, 1.5))
            flow_id = "end" if place == number else f"f{interval}-{place}"
            store.create(cs.FlowSnapshot(flow_id, state={}))
            committed = time.monotonic()
            if flow_id != "end":
                name, claimed = times.get(timeout=60)
                assert name == flow_id
                found.append(max(claimed - committed, 0.0) * 1000)

        worker.join()
        store.clear()

    return found


def idle(url: str) -> float:
    """Return the share of a core that a process takes that waits."""
    with cs.open_store(url) as store:
        store.claim_due()
        cpu, start = time.process_time(), time.monotonic()
        store.claim_due(wait=timedelta(seconds=IDLE_SECONDS))
        return (time.process_time() - cpu) / (time.monotonic() - start)


def main() -> None:
    """Measure the stores, or the one that is named."""
    with tempfile.TemporaryDirectory() as folder:
        urls = sys.argv[1:] or ["memory://wakeups", f"sqlite:///{Path(folder) / 'flows.db'}"]
        for url in urls:
            processes = not url.startswith("memory:")
            for interval, number in INTERVALS.items():
                found = measure(url, interval, number, processes=processes)
                cuts = quantiles(found, n=100, method="inclusive")
                print(
                    f"{url.partition(':')[0]:8} a commit every {interval:4} s:"
                    f" p50 {cuts[49]:6.2f} ms, p99 {cuts[98]:6.2f} ms ({number} commits)"
                )

            print(f"{url.partition(':')[0]:8} waiting: {idle(url):.2%} of a core")


if __name__ == "__main__":
    main()
