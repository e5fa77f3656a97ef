"""Small reads beside a large body that another process writes or reads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import catga_store as cs

__all__ = ["beside_large"]

LARGE_BODY = """
import sys, catga_store as cs
what, url = sys.argv[1:]
flow = cs.FlowSnapshot("large", state={"text": "x" * (63 * 1024 * 1024)})
with cs.open_store(url) as store:
    if what == "update":
        flow = store.get_one("large")
        flow.state["more"] = 1
    store.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    if what == "get":
        store.get_one("large")
    else:
        getattr(store, what)(flow)
"""
"""What the other process does: a process of its own has an interpreter lock of its own."""


def beside_large(url: str, api: str, what: str) -> tuple[list[float], float]:
    """Return the times of small reads while the other process works, and how long it works, in seconds."""
    with (
        subprocess.Popen(
            [sys.executable, "-c", LARGE_BODY, what, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other,
        cs.open_store(url) as store,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        store.get_or_create(cs.FlowSnapshot("small", state={"n": 1}))
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        start = time.perf_counter()
        taken: list[float] = []
        if api == "blocking":
            while other.poll() is None:
                before = time.perf_counter()
                store.get("small")
                taken.append(time.perf_counter() - before)
        else:
            asyncio.run(_reading(url, other, taken))

        return taken, time.perf_counter() - start


async def _reading(url: str, other: subprocess.Popen[str], taken: list[float]) -> None:
    async with cs.open_async_store(url) as store:
        await store.ping()
        while other.poll() is None:
            before = time.perf_counter()
            await store.get("small")
            taken.append(time.perf_counter() - before)
