"""The figures of the documentation: measured, written as data, drawn as plots and tables.

    python benchmarks/figures.py [PART ...] [--quick] [--flows N] [--nats-flows N] [--into DIR]

`tox -e figures` installs what it needs and does the same. Without a name every part is measured; each
is written when it is done, so parts can be measured one by one, and one that broke off is named again:

- `latency`: one caller; p50 of `get`, `update` and a session that reads, changes and commits, by store
  and API, and what the bare client takes to read and write as many bytes, without versions; for
  memory, what the codec takes;
- `throughput`: `update` by 1 to 100 asyncio tasks, each on a flow of its own, and the bare client's
  write by as many tasks;
- `growth-memory`, `growth-SQLite`, `growth-Redis`, `growth-NATS`: `get`, `update`, a page and a claim
  while more and more flows are stored, and what a flow takes of memory or disk;
- `fan-in`: one completion on conditions of 10 to 10,000 children;
- `takeover`: from the SIGKILL of a worker whose lease has a second left until another has its flow;
- `restart`: from the SIGKILL of a server, started again at once, until a store that was open commits;
- `peers`: the same state saved and loaded by other libraries, in turns, in one process.

Servers are started on free ports of this machine and stopped in the end, so client and server share
its cores; Redis has `appendonly` off, but for `restart`, and NATS one replica on file storage. Every
plot has its numbers beside it in `figures.json`.
"""

from __future__ import annotations

import argparse
import gc
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
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from typing import NamedTuple
from typing import cast
from uuid import uuid4

import anyio
import nats
import nats.js.errors
import redis
import redis.asyncio
from codecs_of_state import codec_calls
from embedded import async_round
from embedded import loops
from growth import operations
from peers import beside
from plain_sqlite import connect
from subject import Subject
from subject import make_flows
from tables import LEASE_SECONDS
from tables import OPERATIONS
from tables import STORES
from tables import Numbers
from tables import tables
from timing import time_awaits
from timing import time_calls
from timing import warm_up
from worker_peers import rates_and_latencies

import catga_store as cs
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

TASKS = (1, 3, 10, 30, 100)
SIZES = (1_000, 10_000, 100_000, 1_000_000)
CHILDREN = (10, 100, 1_000, 10_000)
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

    def __init__(self, directory: Path, redis_server: RedisServer, nats_server: NatsServer) -> None:
        self.directory = directory
        self.redis_url = redis_server.url
        self.nats_url = nats_server.url
        self.nats_pid = nats_server.pid

    def url(self, kind: str) -> str:
        """Return a place that is not used yet."""
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
        yield Places(directory, server, other)


# --- what is measured -----------------------------------------------------------------------------


def p50(taken: Sequence[int]) -> float:
    """The median, in microseconds."""
    return median(taken) / 1000


def latency(place: Places, calls: int) -> Numbers:
    """`{store: {API: {operation: microseconds}}}`; `bare` is the client alone."""
    found: Numbers = {}
    for kind in STORES:
        with cs.open_store(place.url(kind)) as store:
            subject = Subject(store)
            apis: Numbers = {"blocking": {}}
            for name in OPERATIONS:
                call = getattr(subject, name)
                warm_up(call, calls)
                apis["blocking"][name] = p50(time_calls(call, calls))

        for loop in loops():
            taken = anyio.run(async_round, place.url(kind), calls, backend=loop)
            apis[loop] = {name: p50(some) for name, some in taken.items()}

        apis["bare"] = bare(place, kind, calls)
        apis["bare"]["session"] = apis["bare"]["get"] + apis["bare"]["update"]
        found[kind] = apis

    return found


def bare(place: Places, kind: str, calls: int) -> dict[str, float]:
    """What the client alone takes to read, and to write, the bytes of the state."""
    alone = codec_calls()
    data = cast("bytes", alone["encode"]())
    bodies = itertools.cycle([data, data[::-1]])  # SQLite writes nothing if nothing changes
    if kind == "memory":
        return _timed(alone["decode"], alone["encode"], calls)

    if kind == "SQLite":
        path = place.directory / f"{uuid4().hex}.db"
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE f (id TEXT PRIMARY KEY, body BLOB)")
        connection.execute("INSERT INTO f VALUES ('f', ?)", (data,))
        connection.commit()
        connection.close()
        connection = connect(path)
        result = _timed(
            lambda: connection.execute("SELECT body FROM f WHERE id = 'f'").fetchone(),
            lambda: connection.execute("UPDATE f SET body = ? WHERE id = 'f'", (next(bodies),)),
            calls,
        )
        connection.close()
        return result

    if kind == "Redis":
        with redis.Redis.from_url(place.redis_url) as client:
            return _timed(lambda: client.get("f"), lambda: client.set("f", data), calls)

    return anyio.run(_bare_nats, place.nats_url, data, calls)


def _timed(read: Callable[[], object], write: Callable[[], object], calls: int) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, call in (("update", write), ("get", read)):
        warm_up(call, calls)
        result[name] = p50(time_calls(call, calls))

    return result


async def _bare_nats(url: str, data: bytes, calls: int) -> dict[str, float]:
    client = await nats.connect(url)
    try:
        bucket = await client.jetstream().create_key_value(bucket=uuid4().hex, direct=True)
        result: dict[str, float] = {}
        await bucket.put("f", data)
        for name, call in (
            ("update", lambda: bucket.put("f", data)),
            ("get", lambda: bucket.get("f")),
        ):
            await time_awaits(call, 20)
            result[name] = p50(await time_awaits(call, calls))
    finally:
        await client.close()

    return result


def throughput(place: Places, seconds: float) -> Numbers:
    """`{store: {tasks: updates a second}}` on asyncio; `bare Redis` and `bare NATS` only write."""
    found: Numbers = {
        kind: {str(tasks): anyio.run(_rate, place.url(kind), tasks, seconds) for tasks in TASKS}
        for kind in STORES
    }
    data = cast("bytes", codec_calls()["encode"]())
    for name, bare_rate, url in (
        ("bare Redis", _bare_redis_rate, place.redis_url),
        ("bare NATS", _bare_nats_rate, place.nats_url),
    ):
        found[name] = {
            str(tasks): anyio.run(bare_rate, url, data, tasks, seconds) for tasks in TASKS
        }

    return found


async def _rate(url: str, tasks: int, seconds: float) -> float:
    async with cs.open_async_store(url) as store:
        state = make_flows("rate")[0].state
        flows = [cs.FlowSnapshot(f"f-{number}", state=state) for number in range(tasks)]
        for flow in flows:
            await store.create(flow)

        return await _repeated([partial(store.update, flow) for flow in flows], seconds)


async def _bare_redis_rate(url: str, data: bytes, tasks: int, seconds: float) -> float:
    async with redis.asyncio.Redis.from_url(url) as client:
        writes = [partial(client.set, f"f-{number}", data) for number in range(tasks)]
        return await _repeated(writes, seconds)


async def _bare_nats_rate(url: str, data: bytes, tasks: int, seconds: float) -> float:
    client = await nats.connect(url)
    try:
        bucket = await client.jetstream().create_key_value(bucket=uuid4().hex)
        writes = [partial(bucket.put, f"f-{number}", data) for number in range(tasks)]
        return await _repeated(writes, seconds)
    finally:
        await client.close()


async def _repeated(calls: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> float:
    """Let a task repeat each of the calls; return the calls per second."""
    done = 0
    start = time.perf_counter()

    async def work(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal done
        while time.perf_counter() < start + seconds:
            await call()
            done += 1

    async with anyio.create_task_group() as group:
        for call in calls:
            group.start_soon(work, call)

    return done / (time.perf_counter() - start)


def growing(place: Places, kind: str, calls: int, flows: int) -> Numbers:
    """`{operation: {stored flows: microseconds}}`, and the bytes that a flow takes, by their number."""
    url = place.url(kind)
    found: Numbers = {}
    empty = bytes_taken(place, kind, url)
    stored = 0
    with cs.open_store(url) as store:
        subject = Subject(store)
        for size in [size for size in SIZES if size <= flows] or [flows]:
            subject.prepare_due(size, stored)
            stored = size
            for name, call in operations(store, size).items():
                warm_up(call, calls)
                found.setdefault(name, {})[str(size)] = p50(time_calls(call, calls))

            for what, count in bytes_taken(place, kind, url).items():
                found.setdefault(what, {})[str(size)] = (count - empty[what]) / size

        if kind != "memory":
            store.clear()

    return found


def bytes_taken(place: Places, kind: str, url: str) -> dict[str, float]:
    """What a store takes, by where."""
    if kind == "memory":
        gc.collect()
        return {"bytes in process memory": _resident("self")}

    if kind == "SQLite":
        file = Path(url.removeprefix("sqlite:///"))
        sizes = [one.stat().st_size for one in file.parent.glob(f"{file.name}*")]
        return {"bytes on disk": sum(sizes)}

    if kind == "Redis":
        with redis.Redis.from_url(place.redis_url) as client:
            info: Any = client.info("memory")
            return {"bytes in memory": info["used_memory"]}

    stream = f"KV_{url.rpartition('=')[2]}"
    return {
        "bytes on disk": anyio.run(_stream_bytes, place.nats_url, stream),
        "bytes in server memory": _resident(place.nats_pid),
    }


def _resident(process: object) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _stream_bytes(url: str, stream: str) -> int:
    client = await nats.connect(url)
    try:
        info = await client.jetstream().stream_info(stream)
    except nats.js.errors.NotFoundError:
        return 0
    else:
        return info.state.bytes
    finally:
        await client.close()


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


def restart(times: int, flows: int) -> Numbers:
    """`{store: seconds}` from the SIGKILL of its server, with that many flows, to the next commit."""
    found: Numbers = {}
    for kind, server in (
        ("Redis", RedisServer("8.2", "--appendonly", "yes", "--save", "")),
        ("NATS", NatsServer()),
    ):
        with server, cs.open_store(server.url, timeout=timedelta(seconds=60)) as store:
            subject = Subject(store)
            subject.prepare_due(flows)
            found[kind] = median(_restarted(server, subject) for _ in range(times))

    return found


def _restarted(server: RedisServer | NatsServer, subject: Subject) -> float:
    start = time.perf_counter()
    server.kill()
    server.start(wait=False)
    while True:
        try:
            subject.session()
        except (cs.StoreUnavailableError, cs.CommitUncertainError):
            time.sleep(0.005)
        else:
            return time.perf_counter() - start


def peers_beside(place: Places, calls: int, rounds: int) -> Numbers:
    """`{library and place: {"save", "load": microseconds}}`, and of the bare clients."""
    with ExitStack() as stack:
        subjects = {
            kind: Subject(stack.enter_context(cs.open_store(place.url(kind)))) for kind in STORES
        }
        found: Numbers = beside(subjects, place.redis_url, place.directory, calls, rounds)

    for kind in STORES[1:]:
        alone = bare(place, kind, calls * rounds)
        found[f"bare client, {kind}"] = {"save": alone["update"], "load": alone["get"]}

    return found


# --- the command line -------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """How much is measured."""

    calls: int
    seconds: float
    rounds: int
    times: int
    flows: int
    nats_flows: int
    pythons: tuple[str, ...] = (sys.executable,)


def rounds(sizes: Sizes, measure: Callable[[], Numbers]) -> Numbers:
    """Measure everything several times, and return the median of each number."""
    return _medians([measure() for _ in range(sizes.rounds)])


def _medians(found: Sequence[Any]) -> Any:
    if isinstance(found[0], dict):
        return {name: _medians([one[name] for one in found]) for name in found[0]}

    return median(found)


PARTS: dict[str, Callable[[Places, Sizes], Numbers]] = {
    "latency": lambda place, sizes: rounds(sizes, lambda: latency(place, sizes.calls)),
    "throughput": lambda place, sizes: rounds(sizes, lambda: throughput(place, sizes.seconds)),
    **{
        f"growth-{kind}": lambda place, sizes, kind=kind: growing(
            place,
            kind,
            min(sizes.calls, 100),
            sizes.nats_flows if kind == "NATS" else sizes.flows,
        )
        for kind in STORES
    },
    "fan-in": lambda place, sizes: rounds(sizes, lambda: fan_in(place, min(sizes.calls, 200))),
    "takeover": lambda place, sizes: takeover(place, sizes.times),
    "restart": lambda _, sizes: restart(sizes.times, min(10_000, sizes.flows)),
    "peers": lambda place, sizes: peers_beside(place, min(sizes.calls, 100), sizes.times),
    "workers": lambda _, sizes: rates_and_latencies(4 * sizes.calls, sizes.rounds, sizes.pythons),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, each written when it is done; draw what there is."""
    parser = argparse.ArgumentParser(description="Measure and draw the figures.")
    parser.add_argument("part", nargs="*", help=f"what to measure: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few calls, to check that it works")
    parser.add_argument("--flows", type=int, default=1_000_000, help="most flows stored for growth")
    parser.add_argument("--nats-flows", type=int, default=100_000, help="the same, on NATS")
    parser.add_argument("--python", action="append", help="where the peers of workers are")
    parser.add_argument("--into", type=Path, default=Path("docs/figures"))
    parser.add_argument("--no-plots", action="store_true", help="numbers and tables only")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what there is")
    options = parser.parse_args(arguments)
    unknown = set(options.part) - PARTS.keys()
    if unknown:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")

    pythons = tuple(options.python or (sys.executable,))
    sizes = Sizes(300, 0.7, 3, 5, options.flows, options.nats_flows, pythons)
    if options.quick:
        few = min(1_000, options.flows), min(1_000, options.nats_flows)
        sizes = Sizes(20, 0.1, 1, 1, *few, pythons)

    options.into.mkdir(parents=True, exist_ok=True)
    file: Path = options.into / "figures.json"
    parts = () if options.draw else options.part or tuple(PARTS)
    if len(parts) == 1:
        measure(parts[0], sizes, file)
    else:
        # Each in a process of its own, so that none has the memory and the threads of another.
        given = sys.argv[1:] if arguments is None else arguments
        kept = [word for word in given if word not in PARTS]
        for part in parts:
            words = [sys.executable, __file__, part, *kept, "--no-plots"]
            subprocess.run(words, check=True)

    data: Numbers = json.loads(file.read_text())
    (options.into / "tables.md").write_text(tables(data))
    if not options.no_plots:
        # Not a top-level import: the numbers can be had without matplotlib.
        importlib.import_module("drawing").draw(data, options.into)

    return 0


def measure(part: str, sizes: Sizes, file: Path) -> None:
    """Measure one part, and put it beside the others."""
    start = time.perf_counter()
    with places() as place:
        numbers = PARTS[part](place, sizes)

    data: Numbers = json.loads(file.read_text()) if file.exists() else {}
    data[part] = {"about": about(sizes), "numbers": numbers}
    file.write_text(json.dumps(data, indent=1) + "\n")
    print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)


def about(sizes: Sizes) -> Numbers:
    """On what, when and how much was measured."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "calls": sizes.calls * sizes.rounds,
    }


if __name__ == "__main__":
    sys.exit(main())
