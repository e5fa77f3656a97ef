"""What a page of parts, and the deletion of a large flow, cost on every store.

    python benchmarks/parts_of_stores.py [memory sqlite redis nats] [--many N] [--parts N] [--directory DIR]

- a page of 100 parts, among 100 and among `--many` parts of one flow;
- what other writers wait while a flow with `--parts` parts of 1 KiB is deleted and its rows are reclaimed,
  beside what they wait in the second before.

Times are reported, not asserted. Starts servers of its own. Needs `catga_store[all,test]`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

from nats_parts import write_until
from parts import add_many
from rich.console import Console
from rich.table import Table
from timing import interleaved

import catga_store as cs
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

KINDS = ("memory", "sqlite", "redis", "nats")
BODY = b"x" * 1024


@contextlib.contextmanager
def url_of(kind: str, directory: Path) -> Iterator[str]:
    """Return the URL of an empty store; start its server, and stop it at the end."""
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        yield f"sqlite:///{directory / 'parts.db'}"
    else:
        server = RedisServer("8.2") if kind == "redis" else NatsServer()
        try:
            server.start()
            yield server.url
        finally:
            server.stop()


def pages(store: cs.Store, many: int) -> tuple[float, float, float]:
    """Return the medians of a page among few and among many parts, in microseconds, and their ratio."""
    add_many(store, "few", 100, b"1")
    add_many(store, "many", many, b"1")
    times = interleaved(
        {name: partial(store.list_parts, name) for name in ("few", "many")},
        calls=20,
        rounds=9,
    )
    return times["few"].p50, times["many"].p50, times["many"].over(times["few"])


def waits(store: cs.Store, other: cs.Store, parts: int) -> tuple[float, float, float, float]:
    """Return how long others waited before, median and longest, and likewise meanwhile, in milliseconds."""
    add_many(store, "large", parts, BODY)
    done, noted = threading.Event(), list[tuple[float, float]]()
    writer = threading.Thread(target=write_until, args=(other, done, noted))
    writer.start()
    time.sleep(1)
    began = time.perf_counter()
    store.delete("large")
    time.sleep(1)  # others' writes reclaim its rows meanwhile
    done.set()
    writer.join()
    calm = [end - start for start, end in noted if end < began]
    busy = [end - start for start, end in noted if end >= began]
    return median(calm) * 1e3, max(calm) * 1e3, median(busy) * 1e3, max(busy) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="*", default=KINDS)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, default=None, help="where the file is made")
    options = parser.parse_args()
    table = Table(title="Parts on every store", title_justify="left")
    for column in (
        "store",
        "page of 100, µs",
        f"among {options.many:,}",
        "ratio",
        "others' writes, ms",
        "longest",
        "while a flow is deleted",
        "longest",
    ):
        table.add_column(column, justify="left" if column == "store" else "right")

    for kind in options.stores:
        with (
            tempfile.TemporaryDirectory(dir=options.directory) as name,
            url_of(kind, Path(name)) as url,
            cs.open_store(url) as store,
        ):
            few, many, ratio = pages(store, options.many)
            with contextlib.ExitStack() as stack:
                # The memory store has its records in this object.
                other = store if kind == "memory" else stack.enter_context(cs.open_store(url))
                found = waits(store, other, options.parts)

            table.add_row(
                kind, f"{few:.0f}", f"{many:.0f}", f"{ratio:.2f}", *(f"{one:.1f}" for one in found)
            )

    Console(width=120).print(table)


if __name__ == "__main__":
    main()
