"""`catga-store worker`: a worker of a program in one process or several, its health, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import failed
from waiting import LONG
from waiting import until

import catga_store as cs
from catga_store.testing.servers import free_ports

PROGRAM = """
import os
import time
from datetime import timedelta

import catga_store as cs

store = cs.open_store({url!r}, poll_interval=timedelta(milliseconds=50))
worker = cs.Worker(store, lease=timedelta(milliseconds=400))


@worker.handles(None)
def handle(run):
    if run.flow.state.get("kills") and run.attempt == 1:
        os._exit(1)

    run.flow.state["pid"] = os.getpid()
    run.complete()
"""


def command(*arguments: str, folder: Path) -> list[str]:
    """Write the program there, and return the command that runs its worker."""
    url = f"sqlite:///{folder / 'flows.db'}"
    (folder / "program.py").write_text(PROGRAM.format(url=url), "utf-8")
    return [sys.executable, "-m", "catga_store", "worker", *arguments]


@contextmanager
def running(*arguments: str, folder: Path) -> Iterator[cs.Store]:
    """Run a command while the block runs; it must end with 0 on SIGTERM."""
    process = subprocess.Popen(command(*arguments, folder=folder), cwd=folder)
    try:
        with cs.open_store(f"sqlite:///{folder / 'flows.db'}") as store:
            yield store

        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.wait()


def is_done(store: cs.Store, flow_id: str) -> bool:
    """Whether a flow has completed."""
    return store.get_one(flow_id).status is cs.FlowStatus.COMPLETED


def get(port: int, path: str) -> tuple[int, str]:
    """Return status and text of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=LONG) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_health_and_metrics(tmp_path: Path) -> None:
    """Both pages say how the worker is; SIGTERM ends it with 0."""
    (port,) = free_ports(1)
    with running("program:worker", "--health", str(port), folder=tmp_path) as store:
        store.create(cs.FlowSnapshot("f", state={}))
        until(lambda: is_done(store, "f"), pause=0.02)
        until(lambda: answers(port), pause=0.02)
        assert get(port, "/healthz") == (200, "ok\n")
        status, text = until(lambda: get(port, "/metrics"))
        assert status == 200
        until(lambda: 'catga_worker_runs_total{outcome="ok"} 1.0' in get(port, "/metrics")[1])
        assert "catga_worker_healthy 1.0" in text
        assert "catga_worker_due 0.0" in get(port, "/metrics")[1]
        assert get(port, "/")[0] == 404

    assert not answers(port)


def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    """A flow kills the process of its first attempt; the next attempt is run by another one."""
    with running(
        "program:worker", "--processes", "2", "--concurrency", "2", folder=tmp_path
    ) as store:
        store.create(cs.FlowSnapshot("first", state={}))
        until(lambda: is_done(store, "first"), pause=0.02)
        for number in range(2):
            store.create(cs.FlowSnapshot(f"deadly-{number}", state={"kills": True}))
            until(lambda n=number: is_done(store, f"deadly-{n}"), pause=0.02)

        store.create(cs.FlowSnapshot("last", state={}))
        until(lambda: is_done(store, "last"), pause=0.02)
        pids = {store.get_one(name).state["pid"] for name in ("first", "last")}
        assert os.getpid() not in pids

    for pid in pids:
        until(lambda pid=pid: not is_alive(pid))


def is_alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False

    return True


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["program"], "expected MODULE:NAME, such as myapp.flows:worker, got 'program'"),
        (["missing:worker"], "module 'missing' was found neither in the current directory"),
        (["program:store"], "program:store: expected a Worker or an AsyncWorker"),
        (["program:worker", "--health", "eighty"], "--health: expected PORT"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    """Before anything runs."""
    done = subprocess.run(
        command(*arguments, folder=tmp_path),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=LONG,
        check=False,
    )
    failed(done, 2, part)
