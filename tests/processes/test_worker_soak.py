"""The soak of workers: processes that are killed at any moment, stores that go away, and thousands of waits.

`CATGA_WORKER_SOAK=20` is for how many seconds workers are killed on each store (300), `CATGA_WORKER_TERMS` how
often a worker is terminated (50), `CATGA_WORKER_OUTAGE` how many seconds a store is down (30). Figures are
printed: `pytest -s -m soak tests/processes/test_worker_soak.py`.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.sentinel
from sentinels import Sentinel
from waiting import until
from worked import Task
from worked import Working
from worked import effects
from worked import runs_of

import catga_store as cs
from catga_store.testing.servers import NatsCluster
from catga_store.testing.servers import NatsServer
from catga_store.testing.servers import RedisServer

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("CATGA_WORKER_SOAK", "300"))
TERMS = int(os.environ.get("CATGA_WORKER_TERMS", "50"))
OUTAGE = float(os.environ.get("CATGA_WORKER_OUTAGE", "30"))
WORKERS = 4
LIVE = 60
"""How many flows are under way at a time."""
STEPS = 3
EFFECTS = 15
"""After how many effects the next worker is killed: a slow machine takes longer and does the same."""
LEASE_MS = 10_000
LONG = 600.0
DONE = cs.FlowStatus.COMPLETED
STORES = pytest.mark.stores("sqlite", "redis-8.2", "nats")

Opener = Callable[[], cs.Store]


def say(*lines: str) -> None:
    """Print figures."""
    print("", *lines, sep="\n")  # noqa: T201  what `-s` is for


# kill -9 --------------------------------------------------------------------------------------------


@STORES
def test_every_flow_ends_whatever_is_killed(store_url: str, tmp_path: Path) -> None:
    """Every step has its effect, at most once more than it was killed in, and no two run one flow at once."""
    log = tmp_path / "effects"
    draw = random.Random(2030)
    created = kills = 0
    with cs.open_store(store_url) as store, ExitStack() as stack:

        def start() -> Working:
            return stack.enter_context(Working(store_url, log, lease_ms=LEASE_MS))

        working = [start() for _ in range(WORKERS)]
        began = time.monotonic()
        killed_at = 0
        while time.monotonic() < began + SECONDS:
            live = created - store.count_flows(status=DONE)
            more = max(LIVE - live, 0)
            create(store, created, created + more)
            created += more
            if (happened := log.read_bytes().count(b"\n")) >= killed_at + EFFECTS:
                killed_at = happened
                place = draw.randrange(WORKERS)
                kill(working[place], log)
                kills += 1
                working[place] = start()

        until(lambda: store.count_flows(status=DONE) == created, LONG, pause=0.2)

    killed_in, overlaps = read_runs(log)
    counted = effects(log)
    wanted = {f"task-{number} {step}" for number in range(created) for step in range(STEPS)}
    assert set(counted) == wanted
    assert [key for key, count in counted.items() if count > 1 + killed_in[key]] == []
    assert overlaps == []
    twice = sum(count > 1 for count in counted.values())
    say(
        f"{created} flows, {kills} kills, {sum(killed_in.values())} steps killed in,"
        f" {twice} of {len(wanted)} effects more than once, {time.monotonic() - began:.0f} s"
    )


def create(store: cs.Store, first: int, last: int) -> None:
    """Create flows of some steps, each of which takes some milliseconds."""
    for number in range(first, last):
        task = Task(["work"] * STEPS, random.uniform(0.0, 0.02))
        store.create(cs.FlowSnapshot(f"task-{number}", state=task))


def kill(working: Working, log: Path) -> None:
    """Kill a worker, and write that down after it is dead."""
    working.process.kill()
    working.process.wait()
    with runs_of(log).open("a") as out:
        out.write(f"killed - - {working.process.pid}\n")


def read_runs(log: Path) -> tuple[Counter[str], list[str]]:
    """How often each step was killed in, and which flows two processes ran at once."""
    killed_in: Counter[str] = Counter()
    running: dict[str, tuple[str, str]] = {}
    overlaps: list[str] = []
    for line in runs_of(log).read_text().splitlines():
        what, flow_id, step, pid = line.split()
        if what == "begin":
            if flow_id in running:
                overlaps.append(f"{line} while {running[flow_id]}")

            running[flow_id] = step, pid
        elif what == "end":
            running.pop(flow_id, None)
        else:
            for name, (in_step, of) in list(running.items()):
                if of == pid:
                    killed_in[f"{name} {in_step}"] += 1
                    del running[name]

    return killed_in, overlaps


# SIGTERM --------------------------------------------------------------------------------------------

HANDED_OVER = """
import os, sys, threading, time
from datetime import timedelta
import catga_store as cs

url, log = sys.argv[1:]
out = os.open(log, os.O_WRONLY | os.O_APPEND)
with cs.open_store(url) as store:
    worker = cs.Worker(store, concurrency=2, lease=timedelta(minutes=1), grace=timedelta(0))

    @worker.handles(None)
    def handle(run):
        os.write(out, f"{os.getpid()}\\n".encode())
        while not run.lost:
            time.sleep(0.001)

    def report():
        while worker._waiter is None:
            time.sleep(0.001)
        print("waits", flush=True)

    threading.Thread(target=report, daemon=True).start()
    worker.run()
"""


@STORES
def test_the_next_worker_continues_at_once(store_url: str, tmp_path: Path) -> None:
    """A worker that is terminated in a step hands its flow back; one that waits for work has it at once."""
    log = tmp_path / "begins"
    log.touch()
    delays: list[float] = []
    exits: list[float] = []
    with cs.open_store(store_url) as store, ExitStack() as stack:

        def lines() -> list[str]:
            return log.read_text().splitlines()

        def start() -> subprocess.Popen[bytes]:
            """Start a worker and wait until it waits for work."""
            command = [sys.executable, "-c", HANDED_OVER, store_url, str(log)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"waits\n"
            return process

        store.create(cs.FlowSnapshot("flow", state={}))
        current = start()
        until(lambda: str(current.pid) in lines(), LONG)
        for _ in range(TERMS):
            other = start()
            begins = len(lines())
            sent = time.monotonic()
            current.send_signal(signal.SIGTERM)
            until(lambda begins=begins: len(lines()) > begins, LONG)  # type: ignore[misc]
            delays.append(time.monotonic() - sent)
            assert current.wait(LONG) == 0
            exits.append(time.monotonic() - sent)
            assert lines()[-1] == str(other.pid)
            assert store.get_one("flow").attempts == 1
            current = other

    say(
        f"{TERMS} times SIGTERM: the next one runs the flow after {shown(delays)},"
        f" the process has ended after {shown(exits)}"
    )
    assert max(exits) < 10
    assert statistics.median(delays) < 0.1


def shown(seconds: list[float]) -> str:
    """The median and the most, in milliseconds."""
    return f"{statistics.median(seconds) * 1000:.0f} ms (at most {max(seconds) * 1000:.0f})"


# waits ----------------------------------------------------------------------------------------------

WAITING = 10_000
NEAR = 20


@STORES
def test_many_waits_cost_nothing_until_they_are_due(store_url: str) -> None:
    """A worker with 10,000 suspended flows sleeps, and is on time for those whose deadline comes."""
    late: list[float] = []
    with cs.open_store(store_url) as store:
        for start in range(0, WAITING, 50):
            with store.begin() as session:
                for number in range(start, start + 50):
                    flow = cs.FlowSnapshot(f"flow-{number}", state={})
                    session.suspend(flow, waits(number, timedelta(days=1 + number / WAITING)))

        worker = cs.Worker(store)

        @worker.handles(None)
        def handle(run: cs.Run[Any]) -> None:
            wait = run.flow.wait_condition
            assert wait is not None
            assert wait.deadline is not None
            late.append((store.now() - wait.deadline).total_seconds())
            run.complete()

        with running(worker):
            began, used = time.monotonic(), time.process_time()
            until(lambda: time.monotonic() > began + 20, pause=1.0)
            share = (time.process_time() - used) / (time.monotonic() - began)
            for number in range(NEAR):
                flow = cs.FlowSnapshot(f"near-{number}", state={})
                with store.begin() as session:
                    session.suspend(flow, waits(-1 - number, timedelta(seconds=1 + number / 10)))

            until(lambda: len(late) == NEAR)

    say(f"{share:.2%} of a core; {shown(late)} after the deadline")
    assert share < 0.01
    assert statistics.median(late) < 0.02


def waits(number: int, timeout: timedelta) -> cs.WaitCondition:
    """A wait for what never comes."""
    return cs.WaitCondition(f"wait-{number}", flow_ids=["never"], timeout=timeout)


@contextmanager
def running(worker: cs.Worker) -> Iterator[None]:
    """Run a worker in a thread while the block runs."""
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(LONG)


# outages --------------------------------------------------------------------------------------------


def lines_over(
    open_store: Opener, fault: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> list[str]:
    """Run a worker over a fault; return what it has logged of its store. It ends all flows."""
    done: list[str] = []
    caplog.set_level(logging.INFO, "catga_store.worker")
    # Two stores, as the worker is another program.
    with open_store() as store, open_store() as mine:
        worker = cs.Worker(store, lease=timedelta(seconds=5))

        @worker.handles(None)
        def handle(run: cs.Run[Any]) -> None:
            done.append(run.flow.flow_id)
            time.sleep(0.01)
            run.complete()

        def create_some(first: int, last: int) -> None:
            for number in range(first, last):
                until(lambda number=number: is_created(mine, number), LONG)  # type: ignore[misc]

        with running(worker):
            create_some(0, 50)
            until(lambda: len(set(done)) >= 25, LONG)
            fault()
            create_some(50, 100)
            until(lambda: ended(mine) == 100, LONG, pause=0.1)
            assert worker.healthy

    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name == "catga_store.worker" and "the store can" in record.getMessage()
    ]
    say(*lines)
    return lines


def is_created(store: cs.Store, number: int) -> bool:
    """Create a flow, or find that it was created."""
    try:
        store.get_or_create(cs.FlowSnapshot(f"flow-{number}", state={}))
    except (cs.StoreUnavailableError, cs.CommitUncertainError):
        return False

    return True


def ended(store: cs.Store) -> int:
    """How many flows have ended, as far as that can be found out."""
    try:
        return store.count_flows(status=DONE)
    except cs.StoreUnavailableError:
        return 0


def assert_one_line_per_change(lines: list[str]) -> None:
    """The store goes away and comes back: each is one line, and they take turns."""
    assert lines
    for place, line in enumerate(lines):
        expected = "cannot be reached" if place % 2 == 0 else "can be reached again"
        assert expected in line, lines

    assert len(lines) % 2 == 0, lines


def last_for(seconds: float) -> None:
    """Let what was done last for this long."""
    over = time.monotonic() + seconds
    until(lambda: time.monotonic() > over, seconds + LONG, pause=0.1)


def down(server: Any) -> Callable[[], None]:
    """A fault: the server is killed, and started again later."""

    def fault() -> None:
        server.kill()
        last_for(OUTAGE)
        server.start()

    return fault


def test_a_worker_outlives_an_outage_of_redis(caplog: pytest.LogCaptureFixture) -> None:
    """The server is killed and back; the worker continues by itself."""
    with RedisServer("8.2", "--appendonly", "yes", "--appendfsync", "always") as server:
        lines = lines_over(lambda: cs.open_store(server.url), down(server), caplog)

    assert_one_line_per_change(lines)


def test_a_worker_outlives_an_outage_of_nats(caplog: pytest.LogCaptureFixture) -> None:
    """The same with one NATS server."""
    with NatsServer() as server:
        lines = lines_over(lambda: cs.open_store(server.url), down(server), caplog)

    assert_one_line_per_change(lines)


def test_a_worker_outlives_a_fail_over_of_nats(caplog: pytest.LogCaptureFixture) -> None:
    """One of three servers after the other is killed and started again, so one of them was the leader."""
    with NatsCluster() as cluster:

        def fault() -> None:
            for node in cluster.nodes:
                node.kill()
                last_for(5)
                node.start()
                last_for(5)

        lines = lines_over(lambda: cs.open_store(f"{cluster.url}?replicas=3"), fault, caplog)

    if lines:  # a write may wait for the new leader instead of failing
        assert_one_line_per_change(lines)


def test_a_worker_outlives_a_fail_over_of_redis(caplog: pytest.LogCaptureFixture) -> None:
    """Sentinel promotes the replica; the worker finds it by itself."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer("8.2"))
        follow = ("--replicaof", primary.host, str(primary.port))
        replica = stack.enter_context(RedisServer("8.2", *follow))
        replica.wait_until(lambda: b"master_link_status:up" in replica.ask(b"INFO replication\r\n"))
        sentinel = stack.enter_context(Sentinel(primary))

        def open_store() -> cs.Store:
            watched = redis.sentinel.Sentinel([(sentinel.host, sentinel.port)], socket_timeout=2)
            client = watched.master_for("flows", socket_timeout=2)
            return cs.RedisStore(client, timeout=timedelta(seconds=2))

        lines = lines_over(open_store, primary.kill, caplog)

    assert_one_line_per_change(lines)
