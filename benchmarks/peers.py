"""The same state saved and loaded by other libraries, if they are installed beside this one.

    pip install langgraph-checkpoint langgraph-checkpoint-sqlite langgraph-checkpoint-plainredis
    pip install eventsourcing dbos

They keep plain data, so they are given the JSON data of the state and spare themselves the classes
that this library encodes and decodes; beside them stands what this library takes for the same data.
Each does what it does by its own defaults; `ABOUT` says what that is. They are not alike: what one
call of a peer keeps and checks is not what one call of another does.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from state import Order
from subject import FLOWS
from subject import Subject
from timing import interleaved
from timing import show
from timing import time_calls

import catga_store as cs
from catga_store import codec

__all__ = ["ABOUT", "Pair", "beside", "peers", "plain", "saver"]

Pair = tuple[Callable[[], object], Callable[[], object]]

ABOUT = {
    "catga_store": "replaces the flow if the flow is still at the revision that was read, and updates the"
    " indexes of due flows and listings. The format is JSON. SQLite uses WAL and syncs each commit"
    " (`synchronous=FULL`)",
    "LangGraph": "adds one checkpoint and keeps all other checkpoints. It does not check whether another"
    " checkpoint has been added in between. The format is msgpack. SQLite uses WAL and syncs each commit. On"
    " Redis, a save needs several round trips",
    "eventsourcing": "adds one event with the whole state, and takes a snapshot after every tenth event. It checks"
    " versions. A load replays the events after the snapshot. The format is JSON. SQLite uses WAL and syncs"
    " each commit",
    "DBOS step": "stores the result of one workflow step. A load reads the status of the workflow. The"
    " format is pickle. SQLite uses a rollback journal and syncs each commit",
    "DBOS event": "calls `set_event` in a workflow, which is also a step. A load calls `get_event`. The format"
    " is pickle. SQLite uses a rollback journal and syncs each commit",
}
"""What one save of each stores and checks."""


def peers(subjects: dict[str, Subject], directory: Path, calls: int, rounds: int) -> Table:
    """Time save and load of this library and of its peers, alternating."""
    pairs: dict[str, Pair] = {}
    for name, subject in subjects.items():
        pairs[f"catga_store {name}, attrs class"] = subject.update, subject.get
        pairs[f"catga_store {name}, plain data"] = plain(subject)

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


def plain(subject: Subject) -> Pair:
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


def beside(
    subjects: dict[str, Subject], redis_url: str, directory: Path, calls: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return `{library and place: {"save", "load": p50 in µs}}`; all but DBOS alternate.

    DBOS works with threads of its own in the background, so it comes when the others are done.
    """
    pairs = {f"catga_store, {name}": plain(subject) for name, subject in subjects.items()}
    with ExitStack() as stack:
        pairs |= _all_langgraph(subjects["memory"], redis_url, directory, stack)
        pairs |= _eventsourcing(subjects["memory"], directory, stack)
        cases: dict[str, Callable[[], object]] = {}
        for name, (save, load) in pairs.items():
            cases |= {f"{name}, save": save, f"{name}, load": load}

        times = interleaved(cases, calls=calls, rounds=rounds)

    found = {
        name: {"save": times[f"{name}, save"].p50, "load": times[f"{name}, load"].p50}
        for name in pairs
    }
    return found | _dbos(_data(subjects["memory"]), directory, calls)


def _all_langgraph(
    subject: Subject, redis_url: str, directory: Path, stack: ExitStack
) -> dict[str, Pair]:
    import redis  # noqa: PLC0415  of the extra `redis`
    from langgraph.checkpoint.memory import InMemorySaver  # noqa: PLC0415  may be missing
    from langgraph.checkpoint.sqlite import SqliteSaver  # noqa: PLC0415  as above
    from langgraph_checkpoint_plainredis import RedisSaver  # noqa: PLC0415  as above

    connection = sqlite3.connect(directory / "langgraph.db", check_same_thread=False)
    stack.callback(connection.close)
    client = stack.enter_context(redis.Redis.from_url(redis_url))
    return {
        "LangGraph, memory": saver(InMemorySaver(), subject),
        "LangGraph, SQLite": saver(SqliteSaver(connection), subject),
        "LangGraph, Redis": saver(RedisSaver(client), subject),
    }


def _eventsourcing(subject: Subject, directory: Path, stack: ExitStack) -> dict[str, Pair]:
    from eventsourcing.application import Application  # noqa: PLC0415  may be missing
    from eventsourcing.domain import Aggregate  # noqa: PLC0415  as above
    from eventsourcing.domain import event  # noqa: PLC0415  as above

    class Flow(Aggregate):
        def __init__(self, data: Any) -> None:
            self.data = data

        @event("Saved")
        def keep(self, data: Any) -> None:
            self.data = data

    class Flows(Application):  # type: ignore[type-arg,unused-ignore]  generic in some releases
        snapshotting_intervals = {Flow: 10}  # noqa: RUF012  read by the library as it is

    def pair(environment: dict[str, str]) -> Pair:
        flows: Any = stack.enter_context(Flows(env=environment))
        kept = [Flow(_data(subject)) for _ in range(FLOWS)]
        flows.save(*kept)
        turns, others = itertools.cycle(kept), itertools.cycle([flow.id for flow in kept])
        numbers = itertools.cycle(range(10))

        def save() -> None:
            flow = next(turns)
            flow.keep({**flow.data, "retries": next(numbers)})
            flows.save(flow)

        return save, lambda: flows.repository.get(next(others))

    file = {
        "PERSISTENCE_MODULE": "eventsourcing.sqlite",
        "SQLITE_DBNAME": str(directory / "eventsourcing.db"),
    }
    return {"eventsourcing, memory": pair({}), "eventsourcing, SQLite": pair(file)}


def _dbos(data: Any, directory: Path, calls: int) -> dict[str, dict[str, float]]:
    from dbos import DBOS  # noqa: PLC0415  may be missing

    dbos: Any = DBOS
    dbos(
        config={
            "name": "figures",
            "system_database_url": f"sqlite:///{directory / 'dbos.db'}",
            "log_level": "ERROR",
            "run_admin_server": False,
        }
    )

    @dbos.step()  # type: ignore[untyped-decorator,unused-ignore]  it is Any
    def step(number: int) -> Any:
        return {**data, "retries": number % 10}

    @dbos.workflow()  # type: ignore[untyped-decorator,unused-ignore]  as above
    def steps() -> list[int]:
        numbers = itertools.count()
        return time_calls(lambda: step(next(numbers)), calls)

    @dbos.workflow()  # type: ignore[untyped-decorator,unused-ignore]  as above
    def events() -> list[int]:
        numbers = itertools.count()
        return time_calls(
            lambda: dbos.set_event("state", {**data, "retries": next(numbers) % 10}), calls
        )

    dbos.launch()
    try:
        taken: dict[str, dict[str, list[int]]] = {}
        for name, workflow, load in (
            ("DBOS step, SQLite", steps, dbos.get_workflow_status),
            ("DBOS event, SQLite", events, lambda flow: dbos.get_event(flow, "state")),
        ):
            running = dbos.start_workflow(workflow)
            taken[name] = {"save": running.get_result()}
            taken[name]["load"] = time_calls(partial(load, running.get_workflow_id()), calls)
    finally:
        dbos.destroy()

    return {
        name: {what: median(values) / 1000 for what, values in pair.items()}
        for name, pair in taken.items()
    }


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
