"""CatgaSaver beside other savers of LangGraph, in one run, with the same durability.

    pip install 'catga_store[langgraph]' langgraph-checkpoint-sqlite rich
    pip install langgraph-checkpoint-plainredis  # for --redis
    python benchmarks/langgraph_saver.py [--directory DIR] [--redis URL] [--calls N]

Beside SqliteSaver both keep a WAL file and sync it at each commit (`synchronous=FULL`). With `--redis` it
is RedisSaver of langgraph-checkpoint-plainredis on an empty database of the same server. The calls
alternate, so that both see the same disk. What they keep is not the same: CatgaSaver checks in each commit
that the thread is where the run has read it, the others check nothing.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import redis
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver
from rich.console import Console
from rich.table import Table

import catga_store as cs
from catga_store.langgraph import CatgaSaver

DELETED = 2000
"""Checkpoints of the thread that is deleted, each with the writes of a task."""
ROUNDS = 5
_CHECKPOINT = "checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata"
_WRITE = "checkpoint_ns, checkpoint_id, task_id, idx, channel, type, value"
COPY = [
    f"INSERT INTO {table} (thread_id, {columns}) SELECT ?, {columns} FROM {table}"
    " WHERE thread_id = 'template'"
    for table, columns in (("checkpoints", _CHECKPOINT), ("writes", _WRITE))
]
"""SqliteSaver has no `copy_thread`."""


class Thread:
    """One thread of one saver, which grows."""

    def __init__(self, saver: BaseCheckpointSaver[Any], thread_id: str, kib: int) -> None:
        self.saver = saver
        self.thread_id = thread_id
        self.text = "x" * (kib * 1024)
        self.start: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        self.newest = self.start
        self.step = -1

    def put(self) -> Callable[[], object]:
        """Return a put of the next checkpoint."""
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"messages": self.text, "step": self.step}
        versions: Any = {"messages": str(self.step), "step": str(self.step)}
        checkpoint["channel_versions"] = versions
        metadata: Any = {"source": "loop", "step": self.step, "parents": {}}
        self.step += 1

        def call() -> None:
            self.newest = self.saver.put(self.newest, checkpoint, metadata, versions)

        return call

    def put_writes(self) -> Callable[[], object]:
        """Return a put of what one task has written: two channels."""
        task = f"{self.step:08}-0000-0000-0000-{time.perf_counter_ns():012x}"
        writes = [("messages", {"role": "ai", "content": "y" * 200}), ("branch:to:next", None)]
        newest = self.newest
        return lambda: self.saver.put_writes(newest, writes, task, "~__pregel_pull, node")

    def get_tuple(self) -> Callable[[], object]:
        """Return a read of the newest checkpoint."""
        return lambda: self.saver.get_tuple(self.start)


def beside(pairs: dict[str, tuple[Any, Any]], calls: int) -> dict[str, tuple[float, float]]:
    """Time calls of both, alternating; return their medians in microseconds."""
    found = {}
    for name, makers in pairs.items():
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(calls + calls // 10):
            order = (0, 1) if number % 2 else (1, 0)
            for one in order:
                call = makers[one]()
                start = time.perf_counter()
                call()
                times[one].append(time.perf_counter() - start)

        ours, theirs = (median(one[calls // 10 :]) * 1e6 for one in times)
        found[name] = ours, theirs

    return found


def filled(saver: BaseCheckpointSaver[Any], thread_id: str, count: int) -> None:
    """Put checkpoints with writes."""
    thread = Thread(saver, thread_id, 1)
    for _ in range(count):
        thread.put()()
        thread.put_writes()()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=None, help="where the files are made")
    parser.add_argument("--redis", metavar="URL", default=None, help="beside plainredis, there")
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()

    peer = "SqliteSaver" if options.redis is None else "plainredis"
    table = Table(title=f"CatgaSaver and {peer}, p50 in µs", title_justify="left")
    for column in ("operation", "state", "CatgaSaver", peer, "ratio"):
        table.add_column(column, justify="left" if column == "operation" else "right")

    if options.redis is None:
        with tempfile.TemporaryDirectory(dir=options.directory) as name:
            on_sqlite(Path(name), table, options.calls)
    else:
        on_redis(options.redis, table, options.calls)

    Console().print(table)


def compare(table: Table, ours: Any, theirs: Any, calls: int) -> None:
    """Time the calls of a run, with two sizes of state."""
    for kib in (1, 32):
        a, b = Thread(ours, f"t{kib}", kib), Thread(theirs, f"t{kib}", kib)
        rows = beside(
            {
                "put": (a.put, b.put),
                "get_tuple": (a.get_tuple, b.get_tuple),
                "put_writes": (a.put_writes, b.put_writes),
                "put after writes": (a.put, b.put),
            },
            calls,
        )
        a.put_writes()()
        b.put_writes()()
        rows |= beside({"get_tuple, with writes": (a.get_tuple, b.get_tuple)}, calls)
        for operation, (mine, peer) in rows.items():
            table.add_row(
                operation, f"{kib} KiB", f"{mine:.0f}", f"{peer:.0f}", f"{mine / peer:.2f}"
            )


def on_redis(url: str, table: Table, calls: int) -> None:
    """Both on one server, whose database must be empty."""
    from langgraph_checkpoint_plainredis import RedisSaver  # noqa: PLC0415  only for this

    with redis.Redis.from_url(url) as client, cs.open_store(url) as store:
        if client.dbsize():
            raise SystemExit(f"{url} is not empty")

        compare(table, CatgaSaver(store), RedisSaver(client), calls)
        client.flushdb()


def on_sqlite(directory: Path, table: Table, calls: int) -> None:
    """Each in a file of its own in one directory."""
    store = cs.open_store(f"sqlite:///{directory / 'catga.db'}")
    connection = sqlite3.connect(directory / "langgraph.db", check_same_thread=False)
    connection.execute("PRAGMA synchronous=FULL")
    ours, theirs = CatgaSaver(store), SqliteSaver(connection)
    theirs.setup()
    compare(table, ours, theirs, calls)
    filled(ours, "template", DELETED)
    filled(theirs, "template", DELETED)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(ROUNDS):
        ours.copy_thread("template", f"d{number}")
        for statement in COPY:
            connection.execute(statement, (f"d{number}",))

        connection.commit()
        for key, saver in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            saver.delete_thread(f"d{number}")
            times[key].append(time.perf_counter() - start)

    mine, peer = (median(one) * 1e6 for one in times.values())
    table.add_row(
        f"delete_thread of {DELETED}",
        "1 KiB",
        f"{mine:.0f}",
        f"{peer:.0f}",
        f"{mine / peer:.2f}",
    )
    store.close()
    connection.close()


if __name__ == "__main__":
    main()
