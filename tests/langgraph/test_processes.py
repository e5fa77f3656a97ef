"""Several processes on one thread, and processes that are killed in a node."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import graphs
import pytest
from graphs import ONE_RUN
from graphs import diamond

import catga_store as cs
from catga_store.langgraph import CatgaSaver

PROCESSES, RUNS = 4, 5
THREAD: Any = {"configurable": {"thread_id": "t"}}

FILES_AND_SERVERS = pytest.mark.stores("sqlite", "redis-8.2", "nats")
"""The stores with parts that several processes can share."""


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a program that runs a graph."""
    command = [sys.executable, str(graphs.__file__), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@FILES_AND_SERVERS
def test_what_processes_are_acknowledged_is_kept(store_url: str) -> None:
    """Four processes invoke a graph on one thread at once: each run that returned is in the state, once."""
    processes = [start("runs", store_url, "t", name, str(RUNS)) for name in "abcd"[:PROCESSES]]
    printed = [process.communicate(timeout=240)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    acknowledged = [name for names in printed for name in names]
    assert len(acknowledged) == PROCESSES * RUNS
    with cs.open_store(store_url) as store:
        saver = CatgaSaver(store)
        log = diamond(saver).get_state(THREAD).values["log"]
        assert {name: log.count(name) for name in acknowledged} == dict.fromkeys(acknowledged, 1)
        assert _is_one_chain(saver)


def _is_one_chain(saver: CatgaSaver) -> bool:
    """Return whether every checkpoint is the parent of exactly one other, except the newest."""
    found = list(saver.list(THREAD))
    parents = [
        one.parent_config["configurable"]["checkpoint_id"] for one in found if one.parent_config
    ]
    return len(parents) == len(set(parents)) == len(found) - 1


@FILES_AND_SERVERS
@pytest.mark.parametrize("node", ["first", "right", "last"])
def test_a_process_killed_in_a_node(store_url: str, tmp_path: Path, node: str) -> None:
    """Another process continues; a parallel task whose writes were saved does not run again."""
    ran = tmp_path / "ran"
    process = start("killed", store_url, "t", node, str(ran))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    before = ran.read_text().split()
    assert node in before  # the parallel one may have begun after it

    again: list[str] = []
    with cs.open_store(store_url) as store:
        graph = diamond(CatgaSaver(store), before=again.append)
        graph.invoke(None, THREAD)
        assert graph.get_state(THREAD).values["log"] == ONE_RUN

    assert sorted(again) == sorted(name for name in ONE_RUN if name not in before or name == node)
