"""What an operation costs on Redis, beside the same commands on a plain redis-py client.

    python benchmarks/redis_store.py [SECTION ...] [--version 8.2] [--calls N] [--rounds N] [--records N ...]

Sections, all of them unless some are named:

- `ops`: `get`, `update`, a session's commit of one flow, and a session that reads and commits,
  beside redis-py asking the same of the same server on its own client with the same settings, and
  the codec, measured alone;
- `tasks`: commits by concurrent tasks, beside `redis.asyncio` sending the same script;
- `peers`: save and load of the same state with langgraph-checkpoint-plainredis, if it is installed;
- `large`: what a small `get` takes while a body of 64 MiB is written or read by another process;
- `fan-in`: completions against the number of children;
- `growth`: operations against the number of stored flows (`--records 1000 1000000` for the long
  form), and what a flow takes of the server's memory.

Exchanges and bytes are counted and asserted; times are reported, and compared only with what took
turns with them in the same run. Starts a server of its own. Needs `catga_store[cli,redis,test]`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from statistics import median
from typing import Any

import redis
from codecs_of_state import codec_calls
from growth import fan_in
from peers import Pair
from peers import plain
from peers import saver
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_large import beside_large
from redis_tasks import rates_of_tasks
from rich.console import Console
from rich.table import Table
from state import Order
from subject import FLOWS
from subject import Subject
from subject import exchanges
from timing import interleaved
from timing import show

import catga_store as cs
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import Due
from catga_store.stores.redis.transport import Pipe
from catga_store.testing.servers import RedisServer

SECTIONS = ("ops", "tasks", "peers", "large", "fan-in", "growth")

EXCHANGES = {"get": 1, "update": 1, "session": 2, "create": 1, "complete_child": 1, "claim_due": 3}
"""Round trips of each operation, asserted: claiming searches the index, reads, and commits."""

BYTES = {"get": 100, "update": 2_300}
"""The most bytes that one may send, asserted; the state is 1,024 of them."""

RATIO = 1.25
"""What `get`, `update` and `commit` may cost, as a multiple of redis-py and the codec."""

TASKS = 100
FASTER = {"commit at the store protocol": 3.0, "update": 1.7}
"""What that many tasks do at least, as a multiple of what `redis.asyncio` does with the same script."""

GROWTH = 1.3
"""What an operation may cost with the most flows, as a multiple of what it costs with the fewest."""

PEER = 4.0
"""How many times faster than the peer a save and a load are to be, at p50."""


PAGE = 100


class Recorder:
    """Stands in for a store's transport and keeps the last commands."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.threaded = transport.threaded
        self.words: tuple[Any, ...] = ()

    def __call__(self, request: Pipe) -> Any:
        """Perform a request."""
        self.words = request.commands[0].args
        return self.transport(request)

    def close(self) -> None:
        """Close the transport beneath."""
        self.transport.close()


def words_of(store: cs.Store, call: Callable[[], object]) -> list[Any]:
    """Return the command that a call sends, the last if it sends several."""
    driver: Any = store._driver  # noqa: SLF001  a benchmark looks under the store protocol
    recorder = driver.transport = Recorder(driver.transport)
    try:
        call()
    finally:
        driver.transport = recorder.transport

    return list(recorder.words)


class Plain:
    """The same commands on redis-py alone, with ready-made bytes."""

    def __init__(self, client: redis.Redis, store: cs.Store) -> None:
        self.client = client
        subject = Subject(store)
        self.get_words = words_of(store, subject.get)
        self.words = words_of(store, subject.update)
        packer = client.connection_pool.get_connection()
        self.bytes = {
            "get": sum(map(len, packer.pack_command(*self.get_words))),
            "update": sum(map(len, packer.pack_command(*self.words))),
        }
        client.connection_pool.release(packer)
        # Words of a commit: EVALSHA, sha, number of keys, keys (first the reply's), id, now, …
        self._keys = self.words[2]
        self._id = 3 + self._keys
        self._expected = self._id + 4 + 4
        self._last = self.words[self._id]
        self._begin = self.words[3].removesuffix(self._last.encode())
        self._numbers = itertools.count()

    def get(self) -> None:
        """HMGET, as the store sends it."""
        assert self.client.execute_command(*self.get_words)[0]

    def hgetall(self) -> None:
        """HGETALL of the same key."""
        assert self.client.hgetall(self.get_words[1])

    def commit(self) -> None:
        """EVALSHA of the same script with the same arguments, but for its id and what it replaces."""
        words = self.words
        commit_id = f"{next(self._numbers):031x}"
        words[3] = self._begin + commit_id.encode()
        words[self._id] = commit_id
        words[self._expected] = self._last
        self._last = commit_id
        assert type(self.client.execute_command(*words)) is bytes


def ops(run: Run) -> Iterator[Table]:
    """The store beside redis-py and the codec."""
    with run.store() as store, run.store() as other, run.client() as client:
        subject = Subject(store)
        subject.prepare_children(1000)
        subject.prepare_due(100)
        counted = {name: exchanges(store, getattr(subject, name)) for name in EXCHANGES}
        assert counted == EXCHANGES, f"exchanges are {counted}, not {EXCHANGES}"
        plain = Plain(client, other)
        assert all(plain.bytes[name] <= most for name, most in BYTES.items()), plain.bytes

        times = interleaved(
            {
                **codec_calls(),
                "get": subject.get,
                "update": subject.update,
                "commit": _committing(other),
                "session": subject.session,
                "HMGET": plain.get,
                "HGETALL": plain.hgetall,
                "EVALSHA": plain.commit,
            },
            calls=run.calls,
            rounds=run.rounds,
        )

    table = Table(title="Redis, blocking, µs", title_justify="left")
    for column in ("", "exchanges", "bytes sent", "p50", "p99", "beside", "ratio", "target"):
        table.add_column(column, justify="right" if column else "left")

    beside = {
        "get": ("HGETALL", "decode"),
        "update": ("EVALSHA", "encode"),
        "commit": ("EVALSHA", "encode"),
        "session": ("HGETALL", "decode", "EVALSHA", "encode"),
    }
    for name in ("encode", "decode", "HMGET", "HGETALL", "EVALSHA"):
        table.add_row(name, "", "", *show((times[name].p50, times[name].p99)))

    for name, parts in beside.items():
        ratio = times[name].over(*(times[part] for part in parts))
        cells = show((times[name].p50, times[name].p99))
        sent = plain.bytes.get(name)
        shown = f"[{'green' if ratio <= RATIO else 'red'}]{ratio:.2f}[/]"
        table.add_row(
            *(name, str(counted.get(name, 1)), "" if sent is None else f"{sent:,}", *cells),
            *(" + ".join(parts), shown, "" if name == "session" else f"≤ {RATIO}"),
        )

    yield table


def _committing(store: cs.Store) -> Callable[[], object]:
    """Commit a loaded flow with a session."""
    flows = itertools.cycle(store.get_one(f"flow-{number}", Order) for number in range(FLOWS))

    def commit() -> None:
        flow = next(flows)
        flow.state.retries = (flow.state.retries + 1) % 10
        with store.session() as session:
            session.add(flow)
            session.commit()

    return commit


def tasks(run: Run) -> Iterator[Table]:
    """Commits by concurrent tasks, beside `redis.asyncio`."""
    with run.store() as store:
        update = words_of(store, Subject(store).update)

    rates = asyncio.run(rates_of_tasks(run.server.url, update, TASKS, run.calls // 2, run.rounds))
    table = Table(title=f"{TASKS} tasks, per second", title_justify="left")
    for column in ("", "per second", "beside redis.asyncio", "target"):
        table.add_column(column, justify="right" if column else "left")

    alone = rates.pop("EVALSHA")
    table.add_row("EVALSHA by redis.asyncio", f"{median(alone):,.0f}", "", "")
    for name, found in rates.items():
        ratio = median(a / b for a, b in zip(found, alone, strict=True))
        shown = f"[{'green' if ratio >= FASTER[name] else 'red'}]{ratio:.2f}[/]"
        table.add_row(name, f"{median(found):,.0f}", shown, f"≥ {FASTER[name]}")

    yield table


def peer(run: Run) -> Iterator[Table]:
    """Save and load beside langgraph-checkpoint-plainredis, and the least that one round trip takes.

    The peer has the client that it opens by itself, and plain data; ours is shown with both.
    """
    try:
        from langgraph_checkpoint_plainredis import RedisSaver  # noqa: PLC0415  may be missing
    except ImportError:
        Console().print("peers: langgraph-checkpoint-plainredis is not installed, left out")
        return

    with run.store() as store, run.store() as other, run.client() as client:
        subject, bare = Subject(store), Plain(client, other)
        pairs: dict[str, Pair] = {
            "catga_store, attrs class": (subject.update, subject.get),
            "catga_store, plain data": plain(subject),
            "redis-py, EVALSHA and HMGET alone": (bare.commit, bare.get),
            "the peer": saver(RedisSaver(url=run.server.url), subject),
        }
        cases: dict[str, Callable[[], object]] = {}
        for name, (save, load) in pairs.items():
            cases |= {f"{name}, save": save, f"{name}, load": load}

        times = interleaved(cases, calls=run.calls, rounds=run.rounds)

    table = Table(title="beside langgraph-checkpoint-plainredis, µs", title_justify="left")
    table.add_column("")
    for column in (
        "save p50",
        "p99",
        "the peer's over it",
        "load p50",
        "p99",
        "the peer's over it",
    ):
        table.add_column(column, justify="right")

    for name in pairs:
        cells: list[str] = []
        for what in ("save", "load"):
            mine = times[f"{name}, {what}"]
            ratio = times[f"the peer, {what}"].over(mine)
            colour = "green" if ratio >= PEER else "red"
            shown = f"[{colour}]{ratio:.2f}[/]" if name.startswith("catga") else f"{ratio:.2f}"
            cells += (*show((mine.p50, mine.p99)), shown)

        table.add_row(name, *cells)

    table.caption = f"target ≥ {PEER:g}"
    yield table


def large(run: Run) -> Iterator[Table]:
    """Small reads while another process writes or reads a large body."""
    title = "a small get while another process has 64 MiB under way"
    table = Table(title=title, title_justify="left")
    for column in ("API", "the other"):
        table.add_column(column)

    for column in ("its ms", "gets meanwhile", "p50, µs", "p99, µs", "worst, ms"):
        table.add_column(column, justify="right")

    for api in ("blocking", "asyncio"):
        url = f"{run.server.url}?prefix={uuid.uuid4().hex[:8]}:"
        for what in ("create", "update", "get"):
            taken, seconds = beside_large(url, api, what)
            ordered = sorted(taken)
            p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
            table.add_row(
                *(api, what, f"{seconds * 1000:.0f}", f"{len(taken):,}"),
                *(f"{median(taken) * 1e6:.0f}", f"{p99 * 1e6:.0f}", f"{ordered[-1] * 1000:.1f}"),
            )

    yield table


def fans(run: Run) -> Iterator[Table]:
    """Completions against the number of children."""

    @contextmanager
    def stores() -> Iterator[dict[str, Any]]:
        with run.store() as store:
            yield {"redis": store}

    yield fan_in(stores, run.calls)


def growth(run: Run) -> Iterator[Table]:
    """Operations, and memory, against the number of stored flows; stores of each size take turns."""
    title = "growth: p50 by number of stored flows, µs (each of about 1,150 bytes)"
    table = Table(title=title, title_justify="left")
    for column in ("", *(f"{size:,}" for size in run.records), "last / first", "target"):
        table.add_column(column, justify="right" if column else "left")

    memory: list[str] = []
    cases: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        client = stack.enter_context(run.client())
        for size in run.records:
            before = client.info("memory")["used_memory"]
            store = stack.enter_context(run.store())
            Subject(store).prepare_due(size)
            used = client.info("memory")["used_memory"] - before
            memory.append(f"{used / size:,.0f} B")
            for name, call in _growing(store, size).items():
                cases[f"{name}/{size}"] = call

        times = interleaved(cases, calls=run.calls // 4, rounds=run.rounds)

    for name in dict.fromkeys(case.partition("/")[0] for case in cases):
        found = [times[f"{name}/{size}"] for size in run.records]
        ratio = found[-1].over(found[0])
        shown = f"[{'green' if ratio <= GROWTH else 'red'}]{ratio:.2f}[/]"
        table.add_row(name, *show(one.p50 for one in found), shown, f"≤ {GROWTH}")

    table.add_row("memory per flow, with its index", *memory, "", "")
    yield table


def _growing(store: cs.Store, size: int) -> dict[str, Callable[[], object]]:
    """Name the operations, each on flows from everywhere among those that are stored."""
    ids = itertools.cycle([f"due-{number * 7919 % size}" for number in range(1000)])
    flows = itertools.cycle([store.get_one(next(ids), Order) for _ in range(20)])
    cursor = store.query_flows(limit=500).cursor
    far = store.now().timestamp() * 1000 + 3_600_000
    due = Due(int(far), PAGE)

    def update() -> None:
        flow = next(flows)
        flow.state.retries = (flow.state.retries + 1) % 10
        store.update(flow)

    def due_scan() -> None:
        assert len(store._run(ask(due))) == PAGE  # noqa: SLF001  the store protocol alone

    def page() -> None:
        assert len(store.query_flows(limit=PAGE)) == PAGE

    def next_page() -> None:
        assert len(store.query_flows(limit=PAGE, cursor=cursor)) == PAGE

    return {
        "get": lambda: store.get(next(ids), Order),
        "update": update,
        f"due scan of {PAGE}": due_scan,
        f"page of {PAGE}": page,
        f"page of {PAGE} after 500": next_page,
        "count": store.count_flows,
    }


class Run:
    """The options of one run, and its server."""

    def __init__(self, options: argparse.Namespace, server: RedisServer) -> None:
        self.calls: int = options.calls
        self.rounds: int = options.rounds
        self.records: list[int] = options.records
        self.server = server

    def store(self) -> cs.Store:
        """Open an empty store."""
        return cs.open_store(f"{self.server.url}?prefix={uuid.uuid4().hex[:8]}:")

    def client(self) -> redis.Redis:
        """Open a client with the settings of the store's own."""
        return redis.Redis.from_url(
            self.server.url,
            socket_timeout=10,
            socket_connect_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )


RUNS: dict[str, Callable[[Run], Iterator[Table]]] = {
    "ops": ops,
    "tasks": tasks,
    "peers": peer,
    "large": large,
    "fan-in": fans,
    "growth": growth,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--version", choices=["6.2", "8.2"], default="8.2")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 100_000])
    options = parser.parse_args(arguments)
    console = Console()
    console.print(
        f"Redis {options.version}, redis-py {redis.__version__}, Python"
        f" {platform.python_version()}, {os.cpu_count()} processors"
    )
    with RedisServer(options.version) as server:
        for name in options.sections or SECTIONS:
            for table in RUNS[name](Run(options, server)):
                console.print(table)


if __name__ == "__main__":
    main()
