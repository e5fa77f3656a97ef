"""Steps a second of a worker, beside the same loop written by hand on the same store.

    python benchmarks/worker.py [--steps 4000] [memory://bench sqlite:///flows.db redis://localhost …]

Each flow has four steps that do nothing; 200 flows are there at a time. By hand: one thread (one task) that
claims 8 at a time, advances each, and commits it. The worker has a concurrency of 8. Both are measured
in turns, three times; the best of each counts. Without URLs: memory and a temporary SQLite file.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import anyio
import attrs

import catga_store as cs

CONCURRENCY = 8
STEPS_PER_FLOW = 4
ROUNDS = 3
LEASE = timedelta(seconds=30)
DONE = cs.FlowStatus.COMPLETED


@attrs.define
class Work:
    """The state of a flow that does nothing."""

    n: int = 0


def create(url: str, flows: int) -> None:
    """Create flows that are due."""
    with cs.open_store(url) as store:
        for start in range(0, flows, 100):
            with store.begin() as session:
                for number in range(start, min(start + 100, flows)):
                    session.add(cs.FlowSnapshot(f"{uuid.uuid4().hex}-{number}", state=Work()))


def advance(flow: cs.FlowSnapshot[Work]) -> bool:
    """Do a step; whether it was the last."""
    flow.state.n += 1
    if flow.state.n == STEPS_PER_FLOW:
        flow.status = DONE
        return True

    flow.status = cs.FlowStatus.RUNNING
    flow.position = flow.position.advance()
    flow.due_at = cs.NOW
    return False


def by_hand(url: str, flows: int) -> None:
    """The loop that a user writes."""
    left = flows
    with cs.open_store(url) as store:
        while left:
            for flow in store.claim_due([Work], lease=LEASE, limit=CONCURRENCY):
                with store.session() as session:
                    session.add(flow)
                    left -= advance(flow)
                    session.commit()


def by_worker(url: str, flows: int) -> None:
    """The same by a worker, in threads."""
    left = threading.Semaphore(0)
    with cs.open_store(url) as store:
        worker = cs.Worker(store, concurrency=CONCURRENCY, lease=LEASE)

        @worker.handles(Work)
        def handle(run: cs.Run[Work]) -> None:
            if advance(run.flow):
                left.release()

        thread = threading.Thread(target=worker.run)
        thread.start()
        for _ in range(flows):
            left.acquire()

        worker.stop()
        thread.join()


def by_hand_async(url: str, flows: int) -> None:
    """The loop by hand, with as many tasks at a time as it claims."""

    async def one(store: cs.AsyncStore, flow: cs.FlowSnapshot[Work]) -> None:
        async with store.session() as session:
            session.add(flow)
            advance(flow)
            await session.commit()

    async def main() -> None:
        left = flows
        async with cs.open_async_store(url) as store:
            while left:
                claimed = await store.claim_due([Work], lease=LEASE, limit=CONCURRENCY)
                left -= sum(flow.state.n == STEPS_PER_FLOW - 1 for flow in claimed)
                async with anyio.create_task_group() as tasks:
                    for flow in claimed:
                        tasks.start_soon(one, store, flow)

    anyio.run(main)


def by_worker_async(url: str, flows: int) -> None:
    """The same by a worker, in tasks."""

    async def main() -> None:
        ended = 0
        async with cs.open_async_store(url) as store:
            worker = cs.AsyncWorker(store, concurrency=CONCURRENCY, lease=LEASE)

            @worker.handles(Work)
            async def handle(run: cs.AsyncRun[Work]) -> None:
                nonlocal ended
                ended += advance(run.flow)
                if ended == flows:
                    worker.stop()

            await worker.run()

    anyio.run(main)


WAYS: dict[str, Callable[[str, int], None]] = {
    "blocking, by hand": by_hand,
    "blocking, worker": by_worker,
    "asyncio, by hand": by_hand_async,
    "asyncio, worker": by_worker_async,
}


def measure(url: str, steps: int) -> dict[str, float]:
    """Return steps a second of each way."""
    flows = max(steps // STEPS_PER_FLOW, 1)
    best = dict.fromkeys(WAYS, 0.0)
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            if url.startswith("memory:") and "asyncio" in name:
                continue

            create(url, flows)
            began = time.perf_counter()
            way(url, flows)
            seconds = time.perf_counter() - began
            best[name] = max(best[name], flows * STEPS_PER_FLOW / seconds)

    return {name: rate for name, rate in best.items() if rate}


def main() -> None:
    """Print a row for each way on each store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="*")
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = arguments.urls or [
            f"memory://{uuid.uuid4().hex}",
            f"sqlite:///{Path(folder) / 'flows.db'}",
        ]
        if any(url.rstrip("/") == "memory:" for url in urls):
            parser.error(
                "a memory store needs a name, as in memory://bench: each open makes another one"
            )

        for url in urls:
            rates = measure(url, arguments.steps)
            for name, rate in rates.items():
                hand = rates[name.partition(",")[0] + ", by hand"]
                print(f"{url.partition(':')[0]:8} {name:20} {rate:8.0f} steps/s {rate / hand:6.0%}")


if __name__ == "__main__":
    main()
