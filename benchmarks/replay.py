"""Replay an event log through a store with several worker processes, and check the result.

    python benchmarks/replay.py LOG [--store URL] [--workers N] [--check]

LOG is a CSV file with a row per event: the case it belongs to, what was done, and when. Every case
becomes a flow whose state is its history. The workers share the cases by claims: each takes a few
due flows, appends the next event of each, one commit per event, and gives the flow back, so that
the events of a case go through many hands. At the end every history must be exactly the log's, in
its order. A replay that was stopped continues when it is started again on the same store; `--check`
only compares.

Exit codes: 0 all is as in the log; 1 something differs, or a worker failed; 2 nothing was done,
because the log or the options cannot be used. Needs `catga_store[cli]` for the progress bar.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from typing import NamedTuple

from attrs import define
from attrs import field
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.table import Table

import catga_store as cs
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Refused

LEASE = timedelta(seconds=30)
"""How long a worker that died keeps its flows."""

AT_ONCE = 8
"""How many flows a worker claims in one commit."""

HEADERS = {
    "case": ("case:concept:name", "case_id", "case id", "caseid", "case"),
    "activity": ("concept:name", "activity", "activity_name", "activity name", "event"),
    "timestamp": ("time:timestamp", "timestamp", "complete timestamp", "start_timestamp", "time"),
}
"""What the columns of logs are usually called; letter case does not matter."""

EVENTS, CLAIMS, COMMITS, REFUSED, CONFLICTS = range(5)
"""What each worker counts: events written, flows claimed, commits written and refused, and writes
that lost their claim."""


class LogError(Exception):
    """The log or an option is unusable; the message is one line."""


class Event(NamedTuple):
    """What the log says of one event, as text: exactly what stands in the file."""

    activity: str
    timestamp: str


@define
class Case:
    """The state of a flow: what has happened so far."""

    history: list[Event] = field(factory=list)


# --- the log ------------------------------------------------------------------------------------


def read_log(path: Path, columns: dict[str, str | None]) -> dict[str, list[Event]]:
    """Return the events of each case in the order of the file; `LogError` says what is wrong."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read_rows(path, csv.reader(file, strict=True), columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path} cannot be read as a CSV file in UTF-8: {error}"
        raise LogError(message) from error


def _read_rows(
    path: Path, rows: Iterator[list[str]], columns: dict[str, str | None]
) -> dict[str, list[Event]]:
    header = next(rows, None)
    if not header:
        message = f"{path} is empty: a log begins with the names of its columns"
        raise LogError(message)

    places = [_place(path, header, role, named) for role, named in columns.items()]
    cases: dict[str, list[Event]] = {}

    for number, row in enumerate(rows, start=2):
        if not row:
            continue

        if len(row) != len(header):
            message = f"{path}: row {number} has {len(row)} fields, the header has {len(header)}"
            raise LogError(message)

        case, activity, timestamp = (row[place] for place in places)
        if not 1 <= len(case.encode()) <= 512:
            message = f"{path}: row {number} has no usable case id (1 to 512 bytes): {case[:40]!r}"
            raise LogError(message)

        cases.setdefault(case, []).append(Event(activity, timestamp))

    if not cases:
        message = f"{path} has a header and no events"
        raise LogError(message)

    return cases


def _place(path: Path, header: Sequence[str], role: str, named: str | None) -> int:
    """Where a column is: the one that was named, else the first of the usual names."""
    if named is not None:
        if named in header:
            return header.index(named)

        message = f"{path} has no column {named!r}; it has: {', '.join(header)}"
        raise LogError(message)

    lowered = [name.strip().lower() for name in header]
    for usual in HEADERS[role]:
        if usual in lowered:
            return lowered.index(usual)

    message = (
        f"{path} has no column that is usually the {role}; name it with --{role};"
        f" it has: {', '.join(header)}"
    )
    raise LogError(message)


# --- the workers --------------------------------------------------------------------------------


class CountingWaist:
    """Between the operations and a store: counts commits that were written and refused."""

    def __init__(self, protocol: Any, counts: Any, first: int) -> None:
        self._waist = protocol
        self._counts = counts
        self._first = first

    def converse(self, request: Any) -> Any:
        """Run the conversation of the store beneath."""
        reply = yield from self._waist.converse(request)
        if type(request) is Commit:
            self._counts[self._first + (REFUSED if type(reply) is Refused else COMMITS)] += 1

        return reply


def open_store(url: str) -> cs.Store:
    """Open the store; nothing of a replay expires."""
    return cs.open_store(url, retention=cs.Retention(flows=None))


def work(url: str, cases: dict[str, list[Event]], counts: Any, number: int) -> None:
    """Write events, claim by claim, until every case is complete; this is all that one worker does."""
    first = number * 5
    with open_store(url) as store:
        driver: Any = store._driver  # noqa: SLF001  commits refused inside `claim_due` show nowhere else
        driver.protocol = CountingWaist(driver.protocol, counts, first)

        while True:
            jobs = store.claim_due(Case, lease=LEASE, limit=AT_ONCE)
            counts[first + CLAIMS] += len(jobs)

            for job in jobs:
                if write_next(store, job, cases[job.flow_id]):
                    counts[first + EVENTS] += 1
                else:
                    counts[first + CONFLICTS] += 1

            if not jobs:
                if store.count_flows(status=cs.FlowStatus.COMPLETED) == len(cases):
                    return

                time.sleep(0.02)  # others hold what is left


def write_next(store: cs.Store, flow: cs.FlowSnapshot[Case], events: Sequence[Event]) -> bool:
    """Append a case's next event and return the flow; `False` if another worker has it now."""
    history = flow.state.history
    history.append(events[len(history)])
    flow.position = flow.position.advance()

    if len(history) == len(events):
        flow.status = cs.FlowStatus.COMPLETED
    else:
        flow.status = cs.FlowStatus.RUNNING
        flow.due_at = store.now()  # another due time ends the claim

    try:
        store.update(flow)
    except cs.ConflictError:
        return False

    return True


# --- the replay ---------------------------------------------------------------------------------


def create_flows(store: cs.Store, cases: dict[str, list[Event]]) -> int:
    """Create the missing flows; return how many events the others contain."""
    stored = {
        name: flow for name, flow in store.get_many(list(cases), Case).items() if flow is not None
    }
    others = store.count_flows() - len(stored)
    if others:
        message = f"the store holds flows that are not of this log ({others:,}); pass an empty one"
        raise LogError(message)

    for names in batches((name for name in cases if name not in stored), 200):
        with store.begin() as session:
            for name in names:
                session.add(cs.FlowSnapshot(name, state=Case()))

    return sum(len(flow.state.history) for flow in stored.values())


def replay(url: str, cases: dict[str, list[Event]], workers: int, console: Console) -> bool:
    """Run the workers to their end and print what they did; `False` if one of them failed."""
    with open_store(url) as store:
        done = create_flows(store, cases)

    total = sum(map(len, cases.values()))
    spawn = multiprocessing.get_context("spawn")
    counts = spawn.Array("Q", 5 * workers, lock=False)
    processes = [
        spawn.Process(target=work, args=(url, cases, counts, number)) for number in range(workers)
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())

    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("events", total=total, completed=done)
        for process in processes:
            process.start()

        started: float | None = None
        while any(process.is_alive() for process in processes):
            written = sum(counts[EVENTS::5])
            if started is None and sum(counts[CLAIMS::5]):
                started = time.perf_counter()  # starting interpreters is not the store's time

            progress.update(task, completed=done + written)
            time.sleep(0.02)

        seconds = time.perf_counter() - (started or time.perf_counter())
        progress.update(task, completed=done + sum(counts[EVENTS::5]))

    console.print(report(counts, seconds, workers))
    failed = [process for process in processes if process.exitcode]
    for process in failed:
        console.print(f"{process.name} failed: exit code {process.exitcode}")

    return not failed


def report(counts: Sequence[int], seconds: float, workers: int) -> Table:
    """Make a table of what the workers counted."""
    table = Table(title=f"{workers} workers, {seconds:.2f} s", title_justify="left")
    for name in ("", "events", "claims", "commits", "refused commits", "lost claims"):
        table.add_column(name, justify="right" if name else "left")

    for number in range(workers):
        row = counts[5 * number : 5 * number + 5]
        table.add_row(f"worker {number}", *(f"{count:,}" for count in row))

    sums = [sum(counts[place::5]) for place in range(5)]
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in sums))
    if seconds:
        table.add_row("per second", *(f"{count / seconds:,.0f}" for count in sums))

    return table


def differences(store: cs.Store, cases: dict[str, list[Event]]) -> Iterator[str]:
    """Return a line for each difference between the store and the log."""
    for names in batches(cases, 500):
        for name, flow in store.get_many(names, Case).items():
            events = cases[name]
            if flow is None:
                yield f"case {name!r} is not in the store"
                continue

            history = flow.state.history
            if history != events:
                pairs = itertools.zip_longest(history, events)
                at = next(at for at, (stored, logged) in enumerate(pairs) if stored != logged)
                stored = history[at] if at < len(history) else "nothing"
                logged = events[at] if at < len(events) else "nothing"
                yield f"case {name!r}: event {at} is {stored} in the store and {logged} in the log"
            elif flow.status is not cs.FlowStatus.COMPLETED:
                yield f"case {name!r} is {flow.status.name}, all its events are there"

    number = store.count_flows()
    if number > len(cases):
        yield f"the store holds {number:,} flows, the log has {len(cases):,} cases"


def batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut into lists of at most `size`."""
    left = iter(names)
    while batch := list(itertools.islice(left, size)):
        yield batch


def check(url: str, cases: dict[str, list[Event]], console: Console) -> bool:
    """Compare the store with the log and print what differs."""
    with open_store(url) as store:
        found = list(differences(store, cases))

    for line in found[:20]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if len(found) > 20:
        console.print(f"… and {len(found) - 20:,} more")

    events = sum(map(len, cases.values()))
    if found:
        console.print(f"[red]not as in the log: {len(found):,}[/]")
    else:
        console.print(f"all {len(cases):,} cases and {events:,} events are exactly as in the log")

    return not found


# --- the command line ---------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description="Replay an event log through a store with several worker processes."
    )
    parser.add_argument("log", type=Path, help="CSV file with a row per event")
    parser.add_argument("--store", help="URL of an empty store (default: a temporary SQLite file)")
    parser.add_argument("--workers", type=int, default=4, help="processes (default 4)")
    parser.add_argument("--check", action="store_true", help="only compare the store with the log")
    for role in HEADERS:
        parser.add_argument(f"--{role}", help=f"name of the {role} column")

    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        if not 1 <= options.workers <= 64:
            message = f"--workers must be from 1 to 64, not {options.workers}"
            raise LogError(message)  # noqa: TRY301  one place says what cannot be used

        if options.store is not None and options.store.startswith("memory:"):
            message = f"{options.store} lives in one process, the workers are several"
            raise LogError(message)  # noqa: TRY301  as above

        if options.check and options.store is None:
            message = "--check compares a store with the log: say which with --store"
            raise LogError(message)  # noqa: TRY301  as above

        cases = read_log(options.log, {role: getattr(options, role) for role in HEADERS})
        with tempfile.TemporaryDirectory(prefix="replay-") as directory:
            url = options.store or f"sqlite:///{directory}/replay.db"
            ran = options.check or replay(url, cases, options.workers, console)
            return 0 if check(url, cases, console) and ran else 1
    except (LogError, cs.UsageError, cs.StoreConfigError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
