"""Graphs and checkpoints that the tests of the LangGraph saver share; and programs that run graphs.

`python graphs.py URL THREAD NAME RUNS` invokes a graph RUNS times, prints a line for each run that was
acknowledged, and starts again, after a pause, what was refused as stale.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import TypedDict

from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END
from langgraph.graph import START
from langgraph.graph import StateGraph

import catga_store as cs
from catga_store.langgraph import CatgaSaver
from catga_store.langgraph import StaleThreadError

Config = Any


class Log(TypedDict):
    """A state that says what ran, in the order of LangGraph."""

    log: Annotated[list[str], operator.add]


def _joined(log: list[str], writes: list[list[str]]) -> list[str]:
    return log + [name for write in writes for name in write]


class DeltaLog(TypedDict):
    """The same in a delta channel, which is stored whole at each fifth update."""

    log: Annotated[list[str], DeltaChannel(_joined, snapshot_frequency=5)]


def config_of(thread_id: str, ns: str = "", checkpoint_id: str | None = None) -> Config:
    """Return a config."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": ns}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id

    return {"configurable": configurable}


def put(
    saver: BaseCheckpointSaver[Any], config: Config, checkpoint_id: str, **values: Any
) -> Config:
    """Put a checkpoint with this id."""
    checkpoint = empty_checkpoint() | {"id": checkpoint_id, "channel_values": values}
    metadata: Any = {"source": "loop", "step": 1}
    return saver.put(config, checkpoint, metadata, {})  # type: ignore[arg-type]


def ids(saver: BaseCheckpointSaver[Any], config: Config, **options: Any) -> list[str]:
    """Return the ids of the checkpoints that a listing yields."""
    return [one.checkpoint["id"] for one in saver.list(config, **options)]


def newest(saver: BaseCheckpointSaver[Any], config: Config) -> str | None:
    """Return the id of the newest checkpoint."""
    found = saver.get_tuple(config)
    return None if found is None else found.checkpoint["id"]


@contextlib.asynccontextmanager
async def opened(url: str, api: str) -> AsyncIterator[CatgaSaver]:
    """Open a store with one of its two APIs, and a saver on it."""
    if api == "async":
        async with cs.open_async_store(url) as store:
            yield CatgaSaver(store)
    else:
        with cs.open_store(url) as blocking:
            yield CatgaSaver(blocking)


def diamond(
    saver: BaseCheckpointSaver[Any],
    state: Any = Log,
    before: Callable[[str], None] = lambda _name: None,
) -> Any:
    """Compile a graph with two parallel nodes in the middle; `before` is called in each node."""
    graph = StateGraph(state)
    for name in ("first", "left", "right", "last"):

        def node(_state: Any, name: str = name) -> dict[str, list[str]]:
            before(name)
            return {"log": [name]}

        graph.add_node(name, node)

    graph.add_edge(START, "first")
    graph.add_edge("first", "left")
    graph.add_edge("first", "right")
    graph.add_edge(["left", "right"], "last")
    graph.add_edge("last", END)
    return graph.compile(checkpointer=saver)


ONE_RUN = ["first", "left", "right", "last"]


def _run_again_and_again(url: str, thread_id: str, name: str, runs: int) -> None:
    # One of four writers on NATS may wait for its turn for long on a busy machine.
    with cs.open_store(url, timeout=timedelta(minutes=2)) as store:
        graph = diamond(CatgaSaver(store))
        for number in range(runs):
            for attempt in itertools.count():
                # A run that is refused may have put its input, so each attempt has a name of its own.
                entry = f"{name}{number}.{attempt}"
                began = time.monotonic()
                try:
                    graph.invoke({"log": [entry]}, {"configurable": {"thread_id": thread_id}})
                except StaleThreadError:
                    # Each start makes the other runs stale. Those that start again at once may do so
                    # forever: four did on NATS. A pause leaves the others the time of several runs.
                    took = time.monotonic() - began
                    time.sleep(random.uniform(0, took * min(attempt + 2, 8)))
                    continue

                print(entry, flush=True)  # noqa: T201  the one that started it reads this
                break


def _run_until_killed(url: str, thread_id: str, node: str, ran: str) -> None:
    """Run the graph, and kill this process in one of its nodes, after the parallel one was saved."""
    with cs.open_store(url) as store:
        saver = CatgaSaver(store)

        def before(name: str) -> None:
            with Path(ran).open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")

            if name == node:
                if node == "right":
                    _wait_for_writes(saver, thread_id)

                os.kill(os.getpid(), signal.SIGKILL)

        diamond(saver, before=before).invoke(
            {"log": []}, {"configurable": {"thread_id": thread_id}}, durability="sync"
        )


def _wait_for_writes(saver: CatgaSaver, thread_id: str) -> None:
    from waiting import until  # noqa: PLC0415  beside this file when it is a program

    until(lambda: (found := saver.get_tuple(config_of(thread_id))) and found.pending_writes)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "runs":
        _run_again_and_again(*arguments[:3], int(arguments[3]))
    else:
        _run_until_killed(*arguments)
