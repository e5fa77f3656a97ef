"""Cost against size: completions by the number of children, operations by that of stored flows.

Every line should be flat: a completion is an item beside its condition, and listings are indexed.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from typing import TypeAlias

from rich.table import Table
from state import Order
from subject import Subject
from timing import Times
from timing import show
from timing import time_calls
from timing import warm_up

import catga_store as cs

__all__ = ["OpenStores", "fan_in", "growth", "operations"]

OpenStores: TypeAlias = Callable[[], AbstractContextManager[dict[str, Any]]]
"""Makes new, empty stores by name, and closes them at the end."""

CHILDREN = (10, 1_000, 10_000)
PAGE = 100


def fan_in(stores: OpenStores, calls: int) -> Table:
    """Time a completion on conditions of different sizes."""
    table = Table(title="fan-in: complete_child, µs", title_justify="left")
    table.add_column("store")
    for children in CHILDREN:
        table.add_column(f"{children:,} children\np50", justify="right")
        table.add_column("\np99", justify="right")

    with stores() as opened:
        for name, store in opened.items():
            cells: list[str] = []
            subject = Subject(store)
            for children in CHILDREN:
                subject.prepare_children(calls + 50, children)
                times = _timed(subject.complete_child, calls)
                cells += show((times.p50, times.p99))

            table.add_row(name, *cells)

    return table


def growth(stores: OpenStores, calls: int, sizes: Sequence[int]) -> Table:
    """Time operations while more and more flows are stored."""
    table = Table(title="growth: p50 by number of stored flows, µs", title_justify="left")
    for column in ("store", "operation"):
        table.add_column(column)

    for size in sizes:
        table.add_column(f"{size:,}", justify="right")

    with stores() as opened:
        for name, store in opened.items():
            subject = Subject(store)
            rows: dict[str, list[float]] = {}
            stored = 0

            for size in sizes:
                subject.prepare_due(size, stored)
                stored = size
                for operation, call in operations(store, size).items():
                    rows.setdefault(operation, []).append(_timed(call, calls).p50)

            for place, (operation, values) in enumerate(rows.items()):
                table.add_row("" if place else name, operation, *show(values))

            table.add_section()

    return table


def operations(store: cs.Store, size: int) -> dict[str, Callable[[], object]]:
    """Name the operations, each on flows from everywhere among those that are stored."""
    ids = itertools.cycle([f"due-{number * 7919 % size}" for number in range(1000)])
    middle = store.query_flows(limit=500).cursor

    def get() -> None:
        assert store.get(next(ids), Order) is not None

    def update() -> None:
        flow = store.get_one(next(ids), Order)
        flow.state.retries = (flow.state.retries + 1) % 10
        store.update(flow)

    def page() -> None:
        assert len(store.query_flows(limit=PAGE)) == PAGE

    def next_page() -> None:
        assert len(store.query_flows(limit=PAGE, cursor=middle)) == PAGE

    def claim() -> None:
        assert len(store.claim_due(Order)) == 1

    return {
        "get": get,
        "get + update": update,
        f"query_flows, first {PAGE}": page,
        f"query_flows, {PAGE} after 500": next_page,
        "claim_due of 1": claim,
    }


def _timed(call: Callable[[], object], calls: int) -> Times:
    warm_up(call, 50)
    gc.collect()
    times = Times()
    times.rounds.append(time_calls(call, calls))
    return times
