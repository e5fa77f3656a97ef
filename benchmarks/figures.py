"""The figures of the documentation: measured, written as data, drawn as plots and tables.

    python benchmarks/figures.py [--quick] [--flows N] [--into docs/figures]

`tox -e figures` installs what it needs and does the same. Servers are started on free ports of this
machine and stopped in the end, so client and server share its cores; Redis has `appendonly` off and
NATS one replica on file storage. Every plot has its numbers beside it in `figures.json`.

- *latency*: one caller; p50 of `get`, `update` and a session that reads, changes and commits, by store
  and face, and what the bare client takes to read and write as many bytes, without versions; for
  memory, what the codec takes.
- *throughput*: `update` by 1, 10 and 100 asyncio tasks, each on a flow of its own.
- *growth*: `get`, `update`, a page and a claim while more and more flows are stored.
- *fan-in*: one completion on conditions of 10 to 10,000 children.
- *takeover*: from the SIGKILL of a worker whose lease has a second left until another has its flow.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from typing import cast
from uuid import uuid4

import anyio
import nats
import redis
from codecs_of_state import codec_calls
from embedded import async_round
from embedded import loops
from growth import operations
from plain_sqlite import connect
from state import Order
from subject import Subject
from subject import make_flows
from timing import time_awaits
from timing import time_calls
from timing import warm_up

import catga_store as cs
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

Numbers = dict[str, Any]

STORES = ("memory", "SQLite", "Redis", "NATS")
OPERATIONS = ("get", "update", "session")
TASKS = (1, 10, 100)
CHILDREN = (10, 100, 1_000, 10_000)
LEASE_SECONDS = 1.0
POLL_SECONDS = 0.05

WORKER = """
import sys, time
from datetime import timedelta
import catga_store as cs
with cs.open_store(sys.argv[1]) as store:
    store.claim("takeover", lease=timedelta(seconds=float(sys.argv[2])))
    print("claimed", flush=True)
    time.sleep(60)
"""


class Places:
    """New, empty stores by kind, each with records of its own."""

    def __init__(self, directory: Path, redis_url: str, nats_url: str) -> None:
        self.directory = directory
        self.redis_url = redis_url
        self.nats_url = nats_url

    def url(self, kind: str) -> str:
        """A place that nobody else uses."""
        name = uuid4().hex
        return {
            "memory": f"memory://{name}",
            "SQLite": f"sqlite:///{self.directory / name}.db",
            "Redis": f"{self.redis_url}?prefix={name}:",
            "NATS": f"{self.nats_url}?bucket={name}",
        }[kind]


@contextmanager
def places() -> Iterator[Places]:
    """Start the servers."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer("8.2"))
        other = stack.enter_context(NatsServer())
        yield Places(directory, server.url, other.url)


# --- what is measured -----------------------------------------------------------------------------


def p50(taken: Sequence[int]) -> float:
    """The median, in microseconds."""
    return median(taken) / 1000


def latency(place: Places, calls: int) -> Numbers:
    """`{store: {face: {operation: microseconds}}}`; `bare` is the client alone."""
    found: Numbers = {}
    for kind in STORES:
        with cs.open_store(place.url(kind)) as store:
            subject = Subject(store)
            faces: Numbers = {"blocking": {}}
            for name in OPERATIONS:
                call = getattr(subject, name)
                warm_up(call, calls)
                faces["blocking"][name] = p50(time_calls(call, calls))

        for loop in loops():
            taken = anyio.run(async_round, place.url(kind), calls, backend=loop)
            faces[loop] = {name: p50(some) for name, some in taken.items()}

        faces["bare"] = bare(place, kind, calls)
        found[kind] = faces

    return found


def bare(place: Places, kind: str, calls: int) -> dict[str, float]:
    """What the client alone takes to read, and to write, the bytes of the state."""
    alone = codec_calls()
    data = cast("bytes", alone["encode"]())
    bodies = itertools.cycle([data, data[::-1]])  # SQLite writes nothing if nothing changes
    if kind == "memory":
        return _timed(alone["decode"], alone["encode"], calls)

    if kind == "SQLite":
        path = place.directory / "bare.db"
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE f (id TEXT PRIMARY KEY, body BLOB)")
        connection.execute("INSERT INTO f VALUES ('f', ?)", (data,))
        connection.commit()
        connection.close()
        connection = connect(path)
        answer = _timed(
            lambda: connection.execute("SELECT body FROM f WHERE id = 'f'").fetchone(),
            lambda: connection.execute("UPDATE f SET body = ? WHERE id = 'f'", (next(bodies),)),
            calls,
        )
        connection.close()
        return answer

    if kind == "Redis":
        with redis.Redis.from_url(place.redis_url) as client:
            return _timed(lambda: client.get("f"), lambda: client.set("f", data), calls)

    return anyio.run(_bare_nats, place.nats_url, data, calls)


def _timed(read: Callable[[], object], write: Callable[[], object], calls: int) -> dict[str, float]:
    answer: dict[str, float] = {}
    for name, call in (("update", write), ("get", read)):
        warm_up(call, calls)
        answer[name] = p50(time_calls(call, calls))

    return answer


async def _bare_nats(url: str, data: bytes, calls: int) -> dict[str, float]:
    client = await nats.connect(url)
    try:
        bucket = await client.jetstream().create_key_value(bucket=uuid4().hex, direct=True)
        answer: dict[str, float] = {}
        await bucket.put("f", data)
        for name, call in (
            ("update", lambda: bucket.put("f", data)),
            ("get", lambda: bucket.get("f")),
        ):
            await time_awaits(call, 20)
            answer[name] = p50(await time_awaits(call, calls))
    finally:
        await client.close()

    return answer


def throughput(place: Places, seconds: float) -> Numbers:
    """`{store: {tasks: updates a second}}`, on asyncio."""
    return {
        kind: {str(tasks): anyio.run(_rate, place.url(kind), tasks, seconds) for tasks in TASKS}
        for kind in STORES
    }


async def _rate(url: str, tasks: int, seconds: float) -> float:
    async with cs.open_async_store(url) as store:
        state = make_flows("rate")[0].state
        flows = [cs.FlowSnapshot(f"f-{number}", state=state) for number in range(tasks)]
        for flow in flows:
            await store.create(flow)

        done = 0
        until = time.perf_counter() + seconds

        async def work(flow: cs.FlowSnapshot[Order]) -> None:
            nonlocal done
            while time.perf_counter() < until:
                await store.update(flow)
                done += 1

        async with anyio.create_task_group() as group:
            for flow in flows:
                group.start_soon(work, flow)

        return done / (time.perf_counter() - until + seconds)


def growing(place: Places, calls: int, flows: int) -> Numbers:
    """`{store: {operation: {stored flows: microseconds}}}`."""
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= flows]
    found: Numbers = {}
    for kind in STORES:
        with cs.open_store(place.url(kind)) as store:
            subject = Subject(store)
            found[kind] = {}
            stored = 0
            for size in sizes:
                subject.prepare_due(size, stored)
                stored = size
                for name, call in operations(store, size).items():
                    warm_up(call, calls)
                    found[kind].setdefault(name, {})[str(size)] = p50(time_calls(call, calls))

            if kind != "memory":
                store.clear()

    return found


def fan_in(place: Places, calls: int) -> Numbers:
    """`{store: {children: microseconds}}` of one completion."""
    found: Numbers = {}
    for kind in STORES:
        with cs.open_store(place.url(kind)) as store:
            subject = Subject(store)
            found[kind] = {}
            for children in CHILDREN:
                subject.prepare_children(2 * calls + 50, children)
                warm_up(subject.complete_child, calls)
                found[kind][str(children)] = p50(time_calls(subject.complete_child, calls))

    return found


def takeover(place: Places, times: int) -> Numbers:
    """`{store: seconds}` from a SIGKILL with a whole lease to go until another worker has the flow."""
    return {
        kind: median(_taken_over(place.url(kind)) for _ in range(times))
        for kind in STORES
        if kind != "memory"
    }


def _taken_over(url: str) -> float:
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("takeover", state={}))
        words = [sys.executable, "-c", WORKER, url, str(LEASE_SECONDS)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "claimed\n"
            worker.kill()
            start = time.perf_counter()
            while not store.claim_due(lease=timedelta(seconds=30)):
                time.sleep(POLL_SECONDS)

            return time.perf_counter() - start


# --- what is drawn ----------------------------------------------------------------------------------


def draw(data: Numbers, into: Path) -> None:
    """Write one SVG for each group of numbers."""
    # Not a top-level import: the numbers can be had without it.
    mpl: Any = importlib.import_module("matplotlib")
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "catga_store"  # the same picture for the same numbers
    plt: Any = importlib.import_module("matplotlib.pyplot")

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    for axis, name in zip(axes, OPERATIONS, strict=True):
        faces = [face for face in data["latency"]["memory"] if face != "bare"]
        for place, face in enumerate(faces):
            at = [number + 0.26 * (place - 1) for number in range(len(STORES))]
            axis.bar(at, [data["latency"][kind][face][name] for kind in STORES], 0.24, label=face)

        for number, kind in enumerate(STORES):
            raw = data["latency"][kind]["bare"].get(name)
            if raw is not None:
                label = "bare client (memory: codec)" if number == 0 else None
                axis.hlines(raw, number - 0.42, number + 0.42, "black", label=label)

        axis.set(title=name, yscale="log", xticks=range(len(STORES)), xticklabels=STORES)
        axis.grid(axis="y", alpha=0.3)

    axes[0].set_ylabel("p50, µs (log)")
    axes[0].legend(fontsize=8)
    _save(figure, into / "latency.svg")

    figure, axis = plt.subplots(figsize=(6, 3.6))
    for kind in STORES:
        axis.plot(TASKS, [data["throughput"][kind][str(n)] for n in TASKS], "o-", label=kind)

    axis.set(xscale="log", yscale="log", xlabel="asyncio tasks", ylabel="updates per second (log)")
    axis.set_xticks(TASKS, [str(n) for n in TASKS])
    _finish(figure, axis, into / "throughput.svg")

    names = list(data["growth"]["memory"])
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 3.4), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for kind in STORES:
            line = data["growth"][kind][name]
            axis.plot([int(size) for size in line], list(line.values()), "o-", label=kind)

        axis.set(title=name, xscale="log", yscale="log", xlabel="stored flows")
        axis.grid(alpha=0.3)

    axes[0].set_ylabel("p50, µs (log)")
    axes[0].legend(fontsize=8)
    _save(figure, into / "growth.svg")

    figure, axis = plt.subplots(figsize=(6, 3.6))
    for kind in STORES:
        axis.plot(CHILDREN, [data["fan_in"][kind][str(n)] for n in CHILDREN], "o-", label=kind)

    axis.set(xscale="log", yscale="log", xlabel="children", ylabel="one completion, p50, µs (log)")
    _finish(figure, axis, into / "fan-in.svg")

    figure, axis = plt.subplots(figsize=(6, 2.6))
    axis.barh(list(data["takeover"]), list(data["takeover"].values()))
    axis.axvline(LEASE_SECONDS, color="black", label="the lease")
    axis.set(xlabel="seconds from SIGKILL until another worker has the flow")
    _finish(figure, axis, into / "takeover.svg")


def _finish(figure: Any, axis: Any, path: Path) -> None:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def tables(data: Numbers) -> str:
    """The same numbers as Markdown."""
    about = data["about"]
    where = (
        f"`{about['command']}`, {about['date']}: Python {about['python']}, {about['cpus']} cores"
        f" shared by client and servers, {about['calls']} calls of each."
    )
    lines = [
        where,
        "",
        "Latency, p50, µs:",
        "",
        "| store | face | get | update | session |",
        "|---|---|---|---|---|",
    ]
    for kind, faces in data["latency"].items():
        for face, taken in faces.items():
            cells = " | ".join(
                f"{taken[name]:,.0f}" if name in taken else "" for name in OPERATIONS
            )
            lines.append(f"| {kind} | {face} | {cells} |")

    lines += ["", "Updates per second by asyncio tasks:", ""]
    lines += _table("store", data["throughput"])
    lines += ["", "One completion by number of children, p50, µs:", ""]
    lines += _table("store", data["fan_in"])
    lines += ["", "By number of stored flows, p50, µs:", ""]
    lines += _table(
        "store, operation",
        {
            f"{kind}, {name}": line
            for kind, named in data["growth"].items()
            for name, line in named.items()
        },
    )
    lines += ["", f"Takeover of a lease of {LEASE_SECONDS:.0f} s, polled every 50 ms:", ""]
    lines += _table("store", {kind: {"s": one} for kind, one in data["takeover"].items()}, 2)
    return "\n".join(lines) + "\n"


def _table(first: str, rows: dict[str, dict[str, float]], digits: int = 0) -> list[str]:
    columns = list(next(iter(rows.values())))
    heads = " | ".join(f"{int(name):,}" if name.isdecimal() else name for name in columns)
    lines = [f"| {first} | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{row[one]:,.{digits}f}" for one in columns) + " |"
        )

    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the data and the tables, draw."""
    parser = argparse.ArgumentParser(description="Measure and draw the figures.")
    parser.add_argument("--quick", action="store_true", help="few calls: to see that it works")
    parser.add_argument("--flows", type=int, default=100_000, help="most flows stored for growth")
    parser.add_argument("--into", type=Path, default=Path("docs/figures"))
    parser.add_argument("--no-plots", action="store_true", help="numbers and tables only")
    options = parser.parse_args(arguments)
    calls, flows = (20, 1_000) if options.quick else (500, options.flows)
    with places() as place:
        data = {
            "about": {
                "command": "python benchmarks/figures.py"
                + (" --quick" if options.quick else f" --flows {flows}"),
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
                "calls": calls,
            },
            "latency": latency(place, calls),
            "throughput": throughput(place, 0.1 if options.quick else 2),
            "growth": growing(place, min(calls, 100), flows),
            "fan_in": fan_in(place, min(calls, 200)),
            "takeover": takeover(place, 1 if options.quick else 5),
        }

    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "figures.json").write_text(json.dumps(data, indent=1) + "\n")
    (options.into / "tables.md").write_text(tables(data))
    if not options.no_plots:
        draw(data, options.into)

    return 0


if __name__ == "__main__":
    sys.exit(main())
