"""A ForEach step of a million items: with none failed, and with a tenth failed at random.

    python benchmarks/for_each.py [--items N] [--every N] [--failed 0.1] [--rounds N]

Every item is marked, and the progress is saved every N items, as a worker does it. Shown are
the time of the whole step and of a save, their ratios to the same step with none failed, and the
size of the last record. The two cases take turns, round by round, on each store; the fastest round
of each is shown, since what a busy machine adds is not the library's. Servers are started from the
test extra, on this machine.

    python benchmarks/for_each.py --by-interval

shows the time of the step for several intervals instead.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

import catga_store as cs
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

INTERVALS = (1, 10, 100, 1_000, 10_000)


def step(store: cs.Store, name: str, items: int, every: int, failed: frozenset[int]) -> list[float]:
    """Run one step; the seconds it took, those in saves, and the number of saves."""
    progress = cs.ForEachProgress()
    saving, saves = 0.0, 0
    start = time.perf_counter()
    for index in range(items):
        progress.mark(index, index not in failed)
        if (index + 1) % every == 0:
            before = time.perf_counter()
            store.save_for_each_progress(name, 0, progress)
            saving += time.perf_counter() - before
            saves += 1

    taken = time.perf_counter() - start
    read = store.get_for_each_progress(name, 0)
    assert read is not None
    assert read.failed_indices == failed
    assert read.remaining(items) == 0
    store.clear_for_each_progress(name, 0)
    return [taken, saving, saves]


def open_stores(opened: ExitStack) -> dict[str, cs.Store]:
    """Open a new store of each kind."""
    folder = opened.enter_context(tempfile.TemporaryDirectory())
    urls = {
        "memory": "memory://",
        "SQLite": f"sqlite:///{Path(folder) / 'flows.db'}",
        "Redis": opened.enter_context(RedisServer()).url,
        "NATS": opened.enter_context(NatsServer()).url,
    }
    return {name: opened.enter_context(cs.open_store(url)) for name, url in urls.items()}


def compare(stores: dict[str, cs.Store], options: argparse.Namespace) -> Table:
    """Measure a step with failures beside one without, on each store."""
    items, every = options.items, options.every
    failed = frozenset(random.Random(1).sample(range(items), int(items * options.failed)))
    table = Table(
        title=f"{items:,} items, a save every {every:,}, {len(failed):,} failed",
        title_justify="left",
    )
    for column in (
        "store",
        "none failed, s",
        "failed, s",
        "ratio",
        "a save, ms",
        "failed, ms",
        "ratio",
    ):
        table.add_column(column, justify="left" if column == "store" else "right")

    for name, store in stores.items():
        plain, mixed = [], []
        for _ in range(options.rounds):
            plain.append(step(store, "none", items, every, frozenset()))
            mixed.append(step(store, "some", items, every, failed))

        one, other = min(plain), min(mixed)
        table.add_row(
            name,
            f"{one[0]:.2f}",
            f"{other[0]:.2f}",
            f"{other[0] / one[0]:.2f}",
            f"{one[1] / one[2] * 1e3:.2f}",
            f"{other[1] / other[2] * 1e3:.2f}",
            f"{other[1] / one[1]:.2f}",
        )

    return table


def by_interval(stores: dict[str, cs.Store], options: argparse.Namespace) -> Table:
    """Measure the step by how many items are marked between two saves."""
    items = min(options.items, 10_000)
    failed = frozenset(random.Random(1).sample(range(items), int(items * options.failed)))
    table = Table(title=f"{items:,} items, {len(failed):,} failed: seconds", title_justify="left")
    table.add_column("a save every")
    for every in INTERVALS:
        table.add_column(f"{every:,}", justify="right")

    for name, store in stores.items():
        cells = [
            f"{min(step(store, 'f', items, every, failed)[0] for _ in range(options.rounds)):.2f}"
            for every in INTERVALS
        ]
        table.add_row(name, *cells)

    return table


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=1_000)
    parser.add_argument("--failed", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--by-interval", action="store_true")
    options = parser.parse_args()
    with ExitStack() as opened:
        stores = open_stores(opened)
        measured = by_interval if options.by_interval else compare
        Console().print(measured(stores, options))


if __name__ == "__main__":
    main()
