"""The same state saved and loaded by other libraries, if they are installed beside this one.

    pip install langgraph-checkpoint langgraph-checkpoint-sqlite

A peer's save is a new revision of one thread, its load the latest; they do not check versions.
They keep plain data, so they are given the JSON data of the state and spare themselves the classes
that this library encodes and decodes; beside them stands what this library takes for the same data.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from state import Order
from subject import FLOWS
from subject import Subject
from timing import interleaved
from timing import show

import catga_store as cs
from catga_store import codec

__all__ = ["peers", "saver"]

Pair = tuple[Callable[[], object], Callable[[], object]]


def peers(subjects: dict[str, Subject], directory: Path, calls: int, rounds: int) -> Table:
    """Time save and load of this library and of its peers, taking turns."""
    pairs: dict[str, Pair] = {}
    for name, subject in subjects.items():
        pairs[f"catga_store {name}, attrs class"] = subject.update, subject.get
        pairs[f"catga_store {name}, plain data"] = _plain(subject)

    pairs |= _langgraph(subjects["memory"], directory)
    cases: dict[str, Callable[[], object]] = {}
    for name, (save, load) in pairs.items():
        cases |= {f"{name}, save": save, f"{name}, load": load}

    times = interleaved(cases, calls=calls, rounds=rounds)

    table = Table(title="peers, µs", title_justify="left")
    table.add_column("library")
    for column in ("save p50", "p99", "load p50", "p99"):
        table.add_column(column, justify="right")

    for name in pairs:
        saves, loads = times[f"{name}, save"], times[f"{name}, load"]
        table.add_row(name, *show((saves.p50, saves.p99, loads.p50, loads.p99)))

    return table


def _plain(subject: Subject) -> Pair:
    """Save and load the state as plain JSON data."""
    store = subject.store
    flows = [
        cs.FlowSnapshot(f"plain-{number}", state=_data(subject), due_at=None)
        for number in range(FLOWS)
    ]
    for flow in flows:
        store.create(flow)

    turns = itertools.cycle(flows)
    ids = itertools.cycle([flow.flow_id for flow in flows])

    def save() -> None:
        flow = next(turns)
        flow.state["retries"] = (flow.state["retries"] + 1) % 10
        store.update(flow)

    return save, lambda: store.get(next(ids))


def _data(subject: Subject) -> Any:
    return codec.decode_json(codec.encode_state(subject.flows[0].state, Order))


def _langgraph(subject: Subject, directory: Path) -> dict[str, Pair]:
    try:
        from langgraph.checkpoint.memory import InMemorySaver  # noqa: PLC0415  may be missing
    except ImportError:
        Console().print("peers: langgraph-checkpoint is not installed, left out")
        return {}

    found = {"LangGraph InMemorySaver": saver(InMemorySaver(), subject)}
    try:
        from langgraph.checkpoint.sqlite import SqliteSaver  # noqa: PLC0415  as above
    except ImportError:
        Console().print("peers: langgraph-checkpoint-sqlite is not installed, left out")
        return found

    # Its defaults: WAL, and with it `synchronous` as SQLite was built, FULL nearly everywhere.
    connection = sqlite3.connect(directory / "langgraph.db", check_same_thread=False)
    found["LangGraph SqliteSaver"] = saver(SqliteSaver(connection), subject)
    return found


def saver(saver: Any, subject: Subject) -> Pair:
    """Save and load of a LangGraph checkpoint saver, with the same state as the subject's."""
    from langgraph.checkpoint.base import empty_checkpoint  # noqa: PLC0415  may be missing

    data = _data(subject)
    configs = [
        {"configurable": {"thread_id": f"flow-{number}", "checkpoint_ns": ""}}
        for number in range(FLOWS)
    ]
    turns, others = itertools.cycle(configs), itertools.cycle(configs)
    versions = itertools.count(1)

    def save() -> None:
        data["retries"] = (data["retries"] + 1) % 10
        version = f"{next(versions):032}.0"
        checkpoint = {
            **empty_checkpoint(),
            "channel_values": {"state": data},
            "channel_versions": {"state": version},
        }
        saver.put(next(turns), checkpoint, {"source": "loop", "step": 1}, {"state": version})

    for _ in configs:
        save()

    def load() -> None:
        assert saver.get_tuple(next(others)) is not None

    return save, load
