"""Ctrl-C at every line of a transaction of the memory store: all of it is there, or nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest

import catga_store as cs
from catga_store.stores import memory
from catga_store.testing.clock import ManualClock

Trace = Callable[[FrameType, str, object], object]
INSIDE = re.compile(r"catga_store/(protocol/rules/\w+|stores/memory/\w+)\.py$|sortedlist\.py$")


def interrupting(at: int) -> Trace:
    """Trace that presses Ctrl-C at one line, counted from 1, of those that change tables."""
    left = at

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal left
        code = frame.f_code
        file = code.co_filename.replace("\\", "/")
        if not INSIDE.search(file) or code.co_name == "__call__":
            return trace

        if event == "line":
            left -= 1
            if not left:
                raise KeyboardInterrupt

        return trace

    return trace


def filled() -> cs.MemoryStore:
    """Open a store with what the transactions work on."""
    store = cs.MemoryStore(clock=ManualClock())
    store.create(cs.FlowSnapshot("a", state={"n": 1}))
    store.create(cs.FlowSnapshot("b", state={}, due_at=None))
    store.save_for_each_progress("b", 0, cs.ForEachProgress([1]))
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["x", "y"], parent_flow_id="a"))
    store.complete_child("w", "x")
    store.append("a", "first", key="k")
    return store


def everything(store: cs.MemoryStore) -> list[Any]:
    """Return all that can be read, by every index there is, but for what differs each time."""
    flows = [
        (flow.flow_id, flow.status, flow.version, flow.due_at, flow.owner)
        for flow in store.iter_flows()
    ]
    due = sorted(flow.flow_id for flow in store.claim_due(limit=50))
    return [
        flows,
        [flow.flow_id for flow in store.iter_flows(status=cs.FlowStatus.CREATED)],
        store.count_flows(),
        due,
        [
            (wait.correlation_id, wait.outcome, wait.version, dict(wait.results))
            for wait in store.iter_wait_conditions()
        ],
        [wait.correlation_id for wait in store.iter_wait_conditions(parent_flow_id="a")],
        [wait.correlation_id for wait in store.get_timed_out_wait_conditions()],
        *({step: p.version for step, p in store.list_for_each_progress(f).items()} for f in "abn"),
        store.complete_child("early", "z").duplicate,
        [part.name for part in store.list_parts("b")],
        [entry.sequence for entry in store.read_log("a")],
        store.append("a", "again", key="k").sequence,
    ]


def write(store: cs.MemoryStore) -> None:
    """Write records of every kind in one commit."""
    with store.begin() as session:
        session.get_one("a").state["n"] = 2
        session.delete(session.get_one("b"))
        session.add(cs.FlowSnapshot("n", state={}, status=cs.FlowStatus.RUNNING))
        session.save_for_each_progress("n", 1, cs.ForEachProgress([7]))
        session.add(cs.WaitCondition("v", flow_ids=["x"], timeout=timedelta(0)))
        session.complete_child("w", "y")
        session.complete_child("early", "z")


def redefine(store: cs.MemoryStore) -> None:
    """Set a condition again."""
    store.set_wait_condition(cs.WaitCondition("w", flow_ids=["x"]))


TRANSACTIONS: dict[str, Callable[[cs.MemoryStore], object]] = {
    "commit": write,
    "redefine": redefine,
    "clear a condition": lambda store: store.clear_wait_condition("w"),
    "write parts": lambda store: store.put_part(cs.Part("b", "p", b"1")),
    "delete an entry": lambda store: store.delete_part("a", "log/000000000001"),
    "clear": lambda store: store.clear(),
}


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", TRANSACTIONS)
def test_a_transaction_that_is_interrupted_is_undone(name: str, step: int) -> None:
    """After Ctrl-C at any line, or one of three, the store holds what it held or what was written, and works."""
    transaction = TRANSACTIONS[name]
    before = everything(filled())
    store = filled()
    transaction(store)
    done = everything(store)
    assert before != done
    undone, at = 0, 1 - step

    while True:
        at += step
        store = filled()
        tracing = sys.gettrace()
        sys.settrace(interrupting(at))
        try:
            transaction(store)
        except KeyboardInterrupt:
            found = None
        else:
            found = done
        finally:
            sys.settrace(tracing)

        if found is not None:
            break

        found = everything(store)
        assert found in (before, done), f"interrupted at line {at}"
        undone += found == before

    assert undone > 20


def test_an_interrupted_undoing_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a transaction is undone leaves the rest to the next caller."""
    before = everything(filled())
    store = filled()

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    for function in ("log", "_make_indexes"):
        monkeypatch.setattr(memory.MemoryTables, function, interrupt)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            write(store)

    monkeypatch.undo()
    assert everything(store) == before
