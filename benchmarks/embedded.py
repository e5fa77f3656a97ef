"""The cost of operations on the memory and SQLite stores, beside the cost of their parts.

    python benchmarks/embedded.py [SECTION ...] [--calls N] [--rounds N] [--records N ...]

Sections, all of them unless some are named:

- `memory`: total and the library's own share, which is the total less encoding and decoding; once
  by subtraction, and once measured, with the codec replaced by functions that return constants;
- `sqlite`: beside the same statements, rows and bytes on a plain `sqlite3` connection and the codec;
- `APIs`: blocking, asyncio and trio;
- `fan-in`: completions against the number of children;
- `growth`: operations against the number of stored flows;
- `peers`: the same state in other libraries, if they are installed.

Exchanges are counted and asserted; times are reported, and compared only with what took turns with
them in the same run. Needs `catga_store[cli]` for the tables. Other programs make it slower.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import plain_sqlite
from codecs_of_state import codec_calls
from codecs_of_state import stubbed_codec
from codecs_of_state import timed_codec
from growth import fan_in
from growth import growth
from peers import peers
from rich.console import Console
from rich.table import Table
from state import SIZE
from state import Order
from subject import Subject
from subject import exchanges
from subject import make_flows
from timing import Times
from timing import interleaved
from timing import show
from timing import time_awaits
from timing import time_calls

import catga_store as cs

SECTIONS = ("memory", "sqlite", "APIs", "fan-in", "growth", "peers")

TARGETS = {"get": 15, "update": 25, "session": 50}
"""The library's own share on the memory store: at most that many microseconds at p50."""

RATIO = 1.3
"""The most that `get` and `update` may cost on SQLite, as a multiple of plain `sqlite3` plus the codec."""

EXCHANGES = {
    "get": 1,
    "update": 1,
    "session": 2,  # its `get` and its `commit`
    "create": 1,
    "complete_child": 1,
    "claim_due": 2,
}
"""Transport requests of each operation, asserted."""

CODEC = {
    "get": ("decode",),
    "update": ("encode",),
    "session": ("decode", "encode"),
    "create": ("encode",),
    "complete_child": (),
    "claim_due": ("decode",),
}
"""The codec's part in each operation, which is not the library's own share."""


class Run:
    """The options of one run, and a directory for its files."""

    def __init__(self, options: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self.calls: int = options.calls
        self.rounds: int = options.rounds
        self.records: list[int] = options.records
        self.directory = directory
        self.stack = stack
        self.numbers = itertools.count()

    def file(self) -> Path:
        """Return the path of a new file."""
        return self.directory / f"{next(self.numbers)}.db"

    @contextmanager
    def stores(self) -> Iterator[dict[str, cs.Store]]:
        """Open a new memory store and a new SQLite store."""
        with cs.MemoryStore() as memory, cs.SQLiteStore(self.file()) as sqlite:
            yield {"memory": memory, "sqlite": sqlite}

    def prepare(self, subject: Subject) -> None:
        """Prepare enough completions and claims for `interleaved`, its warm-up included."""
        number = self.calls * self.rounds + 200
        subject.prepare_children(number)
        subject.prepare_due(number)


def assert_exchanges(subject: Subject) -> dict[str, int]:
    """Count the transport requests of every operation, and compare them with the table."""
    counted = {name: exchanges(subject.store, getattr(subject, name)) for name in EXCHANGES}
    assert counted == EXCHANGES, f"exchanges are {counted}, not {EXCHANGES}"
    return counted


# --- sections -----------------------------------------------------------------------------------


def memory(run: Run) -> Iterator[Table]:
    """The memory store: total, codec, own share."""
    subject, inside, stub = (Subject(cs.MemoryStore()) for _ in range(3))
    for each in (subject, inside, stub):
        run.prepare(each)

    counted = assert_exchanges(subject)
    alone = codec_calls()
    times = {name: Times() for name in alone}
    within = {name: Times() for name in EXCHANGES}
    without = {name: Times() for name in EXCHANGES}
    times |= {name: Times() for name in EXCHANGES}

    for number in range(run.rounds + 1):  # the first is to warm up
        taken = [(times[name], time_calls(call, run.calls)) for name, call in alone.items()]
        for name in EXCHANGES:
            taken.append((times[name], time_calls(getattr(subject, name), run.calls)))
            with timed_codec() as spent:
                call = getattr(inside, name)
                taken.append((within[name], time_calls(call, run.calls, less=spent)))

            with stubbed_codec():
                taken.append((without[name], time_calls(getattr(stub, name), run.calls)))

        for place, calls in taken if number else ():
            place.rounds.append(calls)

    table = Table(title=f"codec alone, a state of {SIZE:,} bytes ± 2 %, µs", title_justify="left")
    for column in ("", "p50", "p99"):
        table.add_column(column, justify="right" if column else "left")

    for name in ("encode", "decode"):
        table.add_row(name, *show((times[name].p50, times[name].p99)))

    yield table

    title = "memory store, µs: total, and the library's own share of it, found in three ways"
    table = Table(title=title, title_justify="left")
    columns = ("", "exchanges", "p50", "p99", "less the codec alone", "less the codec in place")
    for column in (*columns, "with a stub of the codec", "target"):
        table.add_column(column, justify="right" if column else "left")

    for name, count in counted.items():
        total = times[name]
        own = total.less(*(times[part] for part in CODEC[name]))
        cells = show((total.p50, total.p99, own, within[name].p50, without[name].p50))
        target = TARGETS.get(name)
        table.add_row(name, str(count), *cells, "" if target is None else _held(own, target))

    yield table


def _held(value: float, limit: float) -> str:
    """Format a limit, with a colour that shows whether it is kept."""
    return f"[{'green' if value < limit else 'red'}]< {limit:g}[/]"


def sqlite(run: Run) -> Iterator[Table]:
    """The SQLite store beside plain `sqlite3`, plus the codec."""
    with cs.SQLiteStore(run.file()) as store:
        subject = Subject(store)
        run.prepare(subject)
        counted = assert_exchanges(subject)

    alone = codec_calls()
    cases: dict[str, Callable[[], object]] = {**alone, "fsync": syncs(run)}
    asked: dict[str, str] = {}

    for name in ("get", "update", "session"):
        store = run.stack.enter_context(cs.SQLiteStore(run.file()))
        cases[name] = getattr(Subject(store), name)
        for kind in ("plain", "both"):
            path, number = run.file(), run.calls * (run.rounds + 1)
            with cs.SQLiteStore(run.file()) as other:
                call = getattr(Subject(other), name)
                recorded = plain_sqlite.record(other, call, number, path)

            connection = run.stack.enter_context(closing(plain_sqlite.connect(path)))
            plain = plain_sqlite.replayed(connection, recorded)
            needed = [alone[part] for part in CODEC[name]] if kind == "both" else []
            cases[f"{kind} {name}"] = in_turn(*needed, plain)
            asked[name] = plain_sqlite.summary(recorded[0])

    gc.freeze()  # the recordings are not garbage either, and only one side has them
    times = interleaved(cases, calls=run.calls, rounds=run.rounds)
    title = f"SQLite {sqlite3.sqlite_version}, synchronous=FULL, µs"
    table = Table(title=title, title_justify="left")
    columns = ("", "exchanges", "p50", "p99", "plain p50", "p99", "codec p50", "ratio", "target")
    for column in (*columns, "plain and\ncodec in turn", "ratio"):
        table.add_column(column, justify="right" if column else "left")

    for name in asked:
        plain_times, both = times[f"plain {name}"], times[f"both {name}"]
        parts = [times[part] for part in CODEC[name]]
        ratio = times[name].over(plain_times, *parts)
        values = (times[name].p50, times[name].p99, plain_times.p50, plain_times.p99)
        cells = show((*values, sum(part.p50 for part in parts)))
        cells += [f"{ratio:.2f}", _held(ratio, RATIO) if name in ("get", "update") else ""]
        cells += [*show((both.p50,)), f"{times[name].over(both):.2f}"]
        table.add_row(name, str(counted[name]), *cells)

    table.add_section()
    table.add_row("write 4 KiB, fsync", "", *show((times["fsync"].p50, times["fsync"].p99)))
    yield table

    table = Table(title="what plain sqlite3 executes for each", title_justify="left")
    for column in ("", "statements"):
        table.add_column(column)

    for name, statements in asked.items():
        table.add_row(name, statements)

    yield table


def in_turn(*calls: Callable[[], object]) -> Callable[[], object]:
    """Make one call of several."""
    if len(calls) == 1:
        return calls[0]

    def call() -> None:
        for each in calls:
            each()

    return call


def syncs(run: Run) -> Callable[[], None]:
    """Write 4 KiB in a file that has them already, and sync: the least a durable commit costs."""
    path = run.file()
    path.write_bytes(bytes(1024 * 4096))
    file = os.open(path, os.O_RDWR)
    run.stack.callback(os.close, file)
    page = b"x" * 4096
    places = itertools.cycle(range(0, 1024 * 4096, 4096))

    def call() -> None:
        os.pwrite(file, page, next(places))
        os.fsync(file)

    return call


def apis(run: Run) -> Iterator[Table]:
    """The blocking API beside asyncio and trio."""
    table = Table(title="APIs: p50 and p99, µs", title_justify="left")
    names = ("get", "update", "session")
    for column in ("store", "API", *(f"{name} {p}" for name in names for p in ("p50", "p99"))):
        table.add_column(column, justify="right" if " p" in column else "left")

    with run.stores() as stores:
        subjects = {name: Subject(store) for name, store in stores.items()}

        for kind, subject in subjects.items():
            times = {(api, name): Times() for api in ("blocking", *loops()) for name in names}
            for _ in range(run.rounds):
                cases = {name: getattr(subject, name) for name in names}
                for name, taken in interleaved(cases, calls=run.calls, rounds=1).items():
                    times["blocking", name].rounds += taken.rounds

                for loop in loops():
                    url = "memory://" if kind == "memory" else f"sqlite:///{run.file()}"
                    taken_by = anyio.run(async_round, url, run.calls, backend=loop)
                    for name, calls in taken_by.items():
                        times[loop, name].rounds.append(calls)

            for api in ("blocking", *loops()):
                values = [times[api, name] for name in names]
                cells = show(v for value in values for v in (value.p50, value.p99))
                table.add_row(kind, api, *cells)

            table.add_section()

    yield table


def loops() -> tuple[str, ...]:
    """Name the event loops that are installed."""
    try:
        import trio  # noqa: F401, PLC0415  it is in the extra `test` only
    except ImportError:
        return ("asyncio",)

    return ("asyncio", "trio")


async def async_round(url: str, calls: int) -> dict[str, list[int]]:
    """Time the operations of an async store inside one event loop."""
    async with cs.open_async_store(url) as store:
        flows, held = make_flows("flow"), make_flows("held")
        async with store.begin() as filling:
            for flow in (*flows, *held):
                filling.add(flow)

        ids, turns = itertools.cycle([flow.flow_id for flow in flows]), itertools.cycle(held)

        async def get() -> None:
            await store.get(next(ids), Order)

        async def update() -> None:
            flow = next(turns)
            flow.state.retries = (flow.state.retries + 1) % 10
            await store.update(flow)

        async def session() -> None:
            async with store.session() as opened:
                flow = await opened.get_one(next(ids), Order)
                flow.state.retries = (flow.state.retries + 1) % 10
                await opened.commit()

        result: dict[str, list[int]] = {}
        for name, call in {"get": get, "update": update, "session": session}.items():
            await time_awaits(call, min(calls, 20))
            result[name] = await time_awaits(call, calls)

        return result


def compared(run: Run) -> Iterator[Table]:
    """Other libraries."""
    with run.stores() as stores:
        subjects = {name: Subject(store) for name, store in stores.items()}
        yield peers(subjects, run.directory, run.calls, run.rounds)


# --- the command line ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Measure the stores that need no server.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--calls", type=int, default=100, help="of each case in a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--records", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="for growth"
    )
    parser.add_argument("--directory", type=Path, help="where to make files (default: temporary)")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")

    console = Console()
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores", highlight=False)
    gc.freeze()  # imported modules are not garbage

    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
        run = Run(options, Path(directory), stack)
        few = run.calls * 5
        drawn: dict[str, Callable[[], Any]] = {
            "memory": lambda: memory(run),
            "sqlite": lambda: sqlite(run),
            "APIs": lambda: apis(run),
            "fan-in": lambda: [fan_in(run.stores, few)],
            "growth": lambda: [growth(run.stores, few, run.records)],
            "peers": lambda: compared(run),
        }
        for section in options.sections or SECTIONS:
            for table in drawn[section]():
                console.print(table)

    return 0


if __name__ == "__main__":
    sys.exit(main())
