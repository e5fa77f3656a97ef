"""The command `worker`: run the worker of a program, in one process or several."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.exit_codes import USAGE
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.protocol.masking import shown
from catga_store.worker.stopping import signals_to

__all__ = ["worker"]

_log = logging.getLogger(__name__)
_SHORTEST_LIFE = 5.0
"""A process that ends sooner is started again after a pause."""
_LONGEST_PAUSE = 30.0
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@guarded
def worker(
    *,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="The worker to run, such as `myapp.flows:worker`.",
            show_default=False,
        ),
    ],
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="Number of processes that run the worker.")
    ] = 1,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Maximum number of handlers that run at the same time in each process.",
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help=(
                "Serve `/healthz` and `/metrics` on this port; the second process uses the "
                "next port, and so on."
            ),
        ),
    ] = None,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C; then let its handlers finish, and exit with status 0.

    Flows whose handlers do not finish within the worker's grace period are handed back; a second signal hands
    back all flows immediately. The command also looks for the module in the current directory. A process that
    dies is started again. `/metrics` is in the Prometheus format; both pages need the `worker` extra.
    """
    place = None if health is None else _place(health)
    if processes > 1:
        _load(target)  # what is wrong with it is reported once
        raise typer.Exit(_Processes(target, processes, concurrency, place).run())

    run_worker(_load(target), concurrency, place)


def run_worker(found: Any, concurrency: int | None, place: tuple[str, int] | None) -> None:
    """Run a worker in this process."""
    if not logging.root.handlers:
        logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)

    if concurrency is not None:
        found.concurrency = concurrency

    with ExitStack() as stack:
        if place is not None:
            from catga_store.cli.worker_health import serving  # noqa: PLC0415  an extra

            port = stack.enter_context(serving(found, *place))
            _log.info("the worker serves http://%s:%d/healthz and /metrics", place[0], port)

        if isinstance(found, cs.Worker):
            found.run()
        else:
            import anyio  # noqa: PLC0415  the other commands block

            anyio.run(found.run)


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not int(port) < 2**16:
        message = (
            f"--health: expected PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080, got {shown(text)}"
        )
        raise cs.UsageError(message)

    return host or "127.0.0.1", int(port)


def _load(target: str) -> Any:
    """Import the worker that a target names."""
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        message = f"worker: expected MODULE:NAME, such as myapp.flows:worker, got {shown(target)}"
        raise cs.UsageError(message)

    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise

        leave(
            f"module {module_name!r} was found neither in the current directory, {Path.cwd()}, "
            "nor on Python's module search path",
            USAGE,
        )

    found: Any = getattr(module, name, None)
    if not isinstance(found, cs.Worker | cs.AsyncWorker):
        message = f"{target}: expected a Worker or an AsyncWorker, got {shown(found)}"
        raise cs.UsageError(message)

    return found


class _Processes:
    """Processes that each run the worker; one that dies is started again."""

    def __init__(
        self,
        target: str,
        number: int,
        concurrency: int | None,
        place: tuple[str, int] | None,
    ) -> None:
        self._commands = [
            self._command(target, concurrency, None if place is None else (place[0], place[1] + n))
            for n in range(number)
        ]
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[int, float] = {}
        self._start_at: dict[int, float] = {}
        self._quick: dict[int, int] = dict.fromkeys(range(number), 0)
        self._is_stopping = False
        self._code = 0

    @staticmethod
    def _command(target: str, concurrency: int | None, place: tuple[str, int] | None) -> list[str]:
        command = [sys.executable, "-m", "catga_store", "worker", target]
        if concurrency is not None:
            command += ["--concurrency", str(concurrency)]

        if place is not None:
            command += ["--health", f"{place[0]}:{place[1]}"]

        return command

    def run(self) -> int:
        """Run until all have ended; returns the exit code."""
        with signals_to(self._stop):
            for number in range(len(self._commands)):
                self._start(number)

            while self._running or (self._start_at and not self._is_stopping):
                self._look()
                time.sleep(0.05)

        return self._code

    def _start(self, number: int) -> None:
        # A session of its own: Ctrl-C reaches this process, which passes it on once.
        self._running[number] = subprocess.Popen(  # noqa: S603  this program, by the path of this Python
            self._commands[number], stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._started[number] = time.monotonic()
        if self._is_stopping:
            self._running[number].terminate()

    def _look(self) -> None:
        now = time.monotonic()
        for number, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue

            del self._running[number]
            if code == USAGE:
                self._code = code
                self._stop()
            elif code and not self._is_stopping:
                is_quick = now - self._started[number] < _SHORTEST_LIFE
                self._quick[number] = self._quick[number] + 1 if is_quick else 0
                pause = min(0.5 * 2 ** min(self._quick[number], 10), _LONGEST_PAUSE)
                self._start_at[number] = now + (pause if is_quick else 0)

        for number, start_at in list(self._start_at.items()):
            if now >= start_at and not self._is_stopping:
                del self._start_at[number]
                self._start(number)

    def _stop(self) -> None:
        self._is_stopping = True
        for process in list(self._running.values()):
            process.terminate()
