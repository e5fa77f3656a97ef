"""A program that runs a worker until it is stopped, and writes down what its handlers did.

`python worked.py URL LOG LEASE_MS ATTEMPTS` handles flows of the type `Task`: each has some steps, and each
step has one effect, a line in the log. A step named `exit` ends the process at once, as a crash does.
Beside the log, `LOG.runs` has a line for each begin and end of a handler, in their order.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Self

import attrs
from waiting import until

import catga_store as cs


@cs.flow_state("Task")
@attrs.define
class Task:
    """What each step does: a name, or `exit`; how long it takes."""

    steps: list[str]
    seconds: float = 0.0


def create(store: cs.Store, number: int, seconds: float = 0.0, steps: int = 3) -> list[str]:
    """Create tasks; return their ids."""
    names = [f"task-{n}" for n in range(number)]
    for name in names:
        store.create(cs.FlowSnapshot(name, state=Task(["work"] * steps, seconds)))

    return names


class Working:
    """A process that runs the program."""

    def __init__(self, url: str, log: Path, *, lease_ms: int = 400, attempts: int = 100) -> None:
        log.touch()
        runs_of(log).touch()
        self.log = log
        command = [sys.executable, __file__, url, str(log), str(lease_ms), str(attempts)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for_effects(self, number: int) -> None:
        """Wait until its log has that many lines."""

        def has_them() -> bool:
            assert self.process.poll() in (None, 1), "the worker has ended"
            return self.log.read_bytes().count(b"\n") >= number

        until(has_them, pause=0.005)


def effects(log: Path) -> Counter[str]:
    """How often each effect happened: `task-1 0`."""
    return Counter(log.read_text().splitlines())


def runs_of(log: Path) -> Path:
    """Where the begins and ends of handlers are written down."""
    return log.with_name(f"{log.name}.runs")


def main(url: str, log: str, lease_ms: str, attempts: str) -> None:
    """Work until SIGTERM."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    runs = os.open(runs_of(Path(log)), os.O_WRONLY | os.O_APPEND)
    pid = os.getpid()
    no_delay = timedelta(0)
    retry = cs.Retry(attempts=int(attempts), first=no_delay, most=no_delay)
    poll = timedelta(milliseconds=50)
    with cs.open_store(url, poll_interval=poll) as store:
        worker = cs.Worker(
            store, concurrency=4, lease=timedelta(milliseconds=int(lease_ms)), retry=retry
        )

        @worker.handles(Task)
        def handle(run: cs.Run[Task]) -> None:
            task, place = run.flow.state, run.flow.position.current

            def note(what: str) -> None:
                os.write(runs, f"{what} {run.flow.flow_id} {place} {pid}\n".encode())

            def act() -> None:
                os.write(out, f"{run.flow.flow_id} {place}\n".encode())

            note("begin")
            run.once("act", act)
            time.sleep(task.seconds)
            note("end")
            if task.steps[place] == "exit":
                os._exit(1)

            if place + 1 < len(task.steps):
                run.next()
            else:
                run.complete()

        worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
