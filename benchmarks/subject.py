"""A store under measurement: what the operations need in it, and each operation as a call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from state import Order
from state import make_order

import catga_store as cs

__all__ = ["FLOWS", "CountingWire", "Subject", "exchanges", "make_flows"]

FLOWS = 20
"""Operations use that many flows in turn, as in the measurements of the peers."""

CHILDREN = 100
"""How many children a condition has, unless that is what is measured."""


class Subject:
    """One store, and its operations as calls without arguments that can be repeated."""

    def __init__(self, store: cs.Store) -> None:
        self.store = store
        store.ping()
        self.flows = make_flows("flow")
        self._held = make_flows("held")
        with store.begin() as session:
            for flow in (*self.flows, *self._held):
                session.add(flow)

        self._ids = itertools.cycle([flow.flow_id for flow in self.flows])
        self._updated = itertools.cycle(self._held)
        self._new = itertools.count()
        self._retries = itertools.cycle(range(10))  # one digit, so that the size stays
        self._completions: Iterator[tuple[str, str]] = iter(())
        self._claimed: list[cs.FlowSnapshot[Order]] = []

    # operations -----------------------------------------------------------------------------------

    def get(self) -> None:
        """Read a flow."""
        self.store.get(next(self._ids), Order)

    def update(self) -> None:
        """Change a loaded flow and write it."""
        flow = next(self._updated)
        flow.state.retries = next(self._retries)
        self.store.update(flow)

    def session(self) -> None:
        """Read a flow in a session, change it, commit."""
        with self.store.session() as session:
            flow = session.get_one(next(self._ids), Order)
            flow.state.retries = (flow.state.retries + 1) % 10
            session.commit()

    def create(self) -> None:
        """Write a new flow."""
        flow_id = f"new-{next(self._new)}"
        self.store.create(cs.FlowSnapshot(flow_id, state=self.flows[0].state, due_at=None))

    def complete_child(self) -> None:
        """Record one of the completions that were prepared."""
        assert self.store.complete_child(*next(self._completions)).accepted

    def claim_due(self) -> None:
        """Claim one of the flows that were made due.

        It is kept, as by a worker that goes on to write it: one that is dropped is encoded, to see whether a
        change was lost.
        """
        claimed = self.store.claim_due(Order)
        assert len(claimed) == 1
        self._claimed += claimed

    # what they need -------------------------------------------------------------------------------

    def prepare_children(self, number: int, children: int = CHILDREN) -> None:
        """Set conditions of that many children each, with at least that many completions to come."""
        waits = [f"wait-{children}-{place}" for place in range(-(-number // children))]
        names = [f"child-{place}" for place in range(children)]
        for wait in waits:
            self.store.set_wait_condition(cs.WaitCondition(wait, flow_ids=names))

        self._completions = itertools.product(waits, names)

    def prepare_due(self, number: int, first: int = 0) -> None:
        """Store flows that are due: `due-0`, `due-1`, … from the first to before `number`."""
        state = self.flows[0].state
        for start in range(first, number, 200):
            with self.store.begin() as session:
                for place in range(start, min(start + 200, number)):
                    session.add(cs.FlowSnapshot(f"due-{place}", state=state))


def make_flows(name: str) -> list[cs.FlowSnapshot[Order]]:
    """Make flows that hold the state, each its own, and are not due."""
    return [
        cs.FlowSnapshot(f"{name}-{number}", state=make_order(), due_at=None)
        for number in range(FLOWS)
    ]


class CountingWire:
    """Stands in for a store's transport and counts what it performs."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.threaded = transport.threaded
        self.count = 0

    def __call__(self, call: Any) -> Any:
        """Perform a call."""
        self.count += 1
        return self.transport(call)

    def close(self) -> None:
        """Close the transport beneath."""
        self.transport.close()


def exchanges(store: cs.Store, call: Any) -> int:
    """Return how many transport requests a call sends."""
    driver: Any = store._driver  # noqa: SLF001  a benchmark looks under the store protocol
    counting = driver.transport = CountingWire(driver.transport)
    try:
        call()
    finally:
        driver.transport = counting.transport

    return counting.count
