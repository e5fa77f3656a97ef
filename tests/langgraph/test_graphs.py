"""Graphs of LangGraph on the saver: durabilities, branches, subgraphs, interrupts, delta channels."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from graphs import ONE_RUN
from graphs import DeltaLog
from graphs import Log
from graphs import diamond
from graphs import opened
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START
from langgraph.graph import StateGraph
from langgraph.types import Command
from langgraph.types import interrupt
from marks import EVERY_STORE

from catga_store.langgraph import CatgaSaver
from catga_store.langgraph import StaleThreadError

pytestmark = EVERY_STORE

THREAD: Any = {"configurable": {"thread_id": "t"}}
DURABILITIES = pytest.mark.parametrize("durability", ["sync", "async", "exit"])


def log_of(graph: Any, config: Any = THREAD) -> list[str]:
    """Return the state's log."""
    log: list[str] = graph.get_state(config).values["log"]
    return log


@DURABILITIES
@pytest.mark.parametrize("state", [Log, DeltaLog])
def test_runs_one_after_the_other(saver: CatgaSaver, durability: str, state: Any) -> None:
    """Each run continues the thread, as on LangGraph's own saver in memory."""
    graph, model = diamond(saver, state), diamond(InMemorySaver(), state)
    for number in range(4):
        for one in (graph, model):
            one.invoke({"log": [str(number)]}, THREAD, durability=durability)

    assert log_of(graph) == [name for number in range(4) for name in (str(number), *ONE_RUN)]
    ours, theirs = (list(one.get_state_history(THREAD)) for one in (graph, model))
    assert [one.values for one in ours] == [one.values for one in theirs]
    if (
        durability != "async"
    ):  # LangGraph may then change what a barrier has seen before it is saved
        assert [one.next for one in ours] == [one.next for one in theirs]


@DURABILITIES
@pytest.mark.parametrize("state", [Log, DeltaLog])
def test_branches(saver: CatgaSaver, durability: str, state: Any) -> None:
    """Replaying, invoking, updating and copying from an older checkpoint do what they do in memory."""
    graphs = diamond(saver, state), diamond(InMemorySaver(), state)
    logs = []
    for graph in graphs:
        for number in range(2):
            graph.invoke({"log": [str(number)]}, THREAD, durability=durability)

        history = list(graph.get_state_history(THREAD))
        old = history[len(history) // 2].config
        graph.invoke(None, old, durability=durability)
        graph.invoke({"log": ["again"]}, old, durability=durability)
        graph.invoke(None, graph.update_state(old, {"log": ["changed"]}), durability=durability)
        graph.invoke(None, graph.update_state(old, None, as_node="__copy__"), durability=durability)
        graph.invoke({"log": ["end"]}, THREAD, durability=durability)
        logs.append([one.values.get("log") for one in graph.get_state_history(THREAD)])

    assert logs[0] == logs[1]


@DURABILITIES
def test_of_runs_at_the_same_time_each_counts_or_is_refused(
    saver: CatgaSaver, durability: str
) -> None:
    """Threads that run one graph thread: what `invoke` has returned is in the state, once."""
    graph = diamond(saver)
    done: list[str] = []

    def work(name: str) -> None:
        for number in range(4):
            try:
                graph.invoke({"log": [f"{name}{number}"]}, THREAD, durability=durability)
            except StaleThreadError:
                continue

            done.append(f"{name}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join(60)

    assert done
    log = log_of(graph)
    assert all(log.count(name) == 1 for name in done)


def test_pruning_keeps_delta_channels_whole(saver: CatgaSaver) -> None:
    """The newest checkpoint has not all of the channel, so its parents up to a whole value stay."""
    graph = diamond(saver, DeltaLog)
    for number in range(7):
        graph.invoke({"log": [str(number)]}, THREAD)

    before, log = len(list(saver.list(THREAD))), log_of(graph)
    saver.prune(["t"])
    assert len(list(saver.list(THREAD))) < before / 2
    assert log_of(graph) == log
    graph.invoke({"log": ["end"]}, THREAD)
    assert log_of(graph) == [*log, "end", *ONE_RUN]
    saver.copy_thread("t", "u")
    assert log_of(graph, {"configurable": {"thread_id": "u"}}) == log_of(graph)


def test_subgraphs_and_interrupts(saver: CatgaSaver) -> None:
    """A subgraph waits for a person, and continues in another run; each has a namespace of its own."""
    asked = StateGraph(Log)
    asked.add_node("ask", lambda _state: {"log": [interrupt("how many?")]})
    asked.add_edge(START, "ask")
    outer = StateGraph(Log)
    outer.add_node("one", asked.compile())
    outer.add_node("two", asked.compile())
    outer.add_edge(START, "one")
    outer.add_edge("one", "two")
    graph = outer.compile(checkpointer=saver)

    found = graph.invoke({"log": []}, THREAD)
    assert [one.value for one in found["__interrupt__"]] == ["how many?"]
    graph.invoke(Command(resume="three"), THREAD)
    graph.invoke(Command(resume="four"), THREAD)
    assert log_of(graph) == ["three", "three", "four"]
    namespaces = {
        one.config["configurable"]["checkpoint_ns"].partition(":")[0] for one in saver.list(THREAD)
    }
    assert namespaces == {"", "one", "two"}

    before = next(one for one in graph.get_state_history(THREAD) if one.next == ("two",))
    graph.invoke(None, before.config)
    graph.invoke(Command(resume="five"), THREAD)
    assert log_of(graph) == ["three", "three", "five"]
    saver.delete_thread("t")
    assert list(saver.list(None)) == []


def test_async_graphs(store_url: str, api: str) -> None:
    """The same on asyncio, with both kinds of stores."""

    async def run() -> None:
        async with opened(store_url, api) as saver:
            graph = diamond(saver, DeltaLog)
            for number in range(3):
                await graph.ainvoke({"log": [str(number)]}, THREAD)

            state = await graph.aget_state(THREAD)
            assert state.values["log"] == [
                name for number in range(3) for name in (str(number), *ONE_RUN)
            ]
            assert len([one async for one in graph.aget_state_history(THREAD)]) == 15
            runs = await asyncio.gather(
                *(graph.ainvoke({"log": [name]}, THREAD) for name in "abc"), return_exceptions=True
            )
            log = (await graph.aget_state(THREAD)).values["log"]
            for name, result in zip("abc", runs, strict=True):
                if not isinstance(result, BaseException):
                    assert log.count(name) == 1
                elif not isinstance(result, StaleThreadError):
                    raise result

            await saver.aprune(["t"])
            assert (await graph.aget_state(THREAD)).values["log"] == log
            await saver.adelete_thread("t")
            assert [one async for one in saver.alist(None)] == []

    asyncio.run(run())
