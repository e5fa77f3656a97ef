"""Start worker processes, read their events, and leave none running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from catga_store.demo.orders import Event

__all__ = ["WorkerProcess"]

_LONGEST_SECONDS = 30


class WorkerProcess:
    """A process that runs `catga_store.demo.worker`; it is killed at the end of the `with`."""

    def __init__(self, url: str, name: str, job: str, crash_at: str | None = None) -> None:
        self.name = name
        crash = [] if crash_at is None else [crash_at]
        self._process = subprocess.Popen(  # noqa: S603  our own module, no shell
            # -P: a file in the current directory must not replace a library. The path is ours, so that
            # the worker imports what we import, installed or not.
            [sys.executable, "-P", "-m", "catga_store.demo.worker", url, name, job, *crash],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            process_group=0,  # Ctrl-C reaches only us; we end the worker
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._watchdog = threading.Timer(_LONGEST_SECONDS, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def events(self) -> Iterator[Event]:
        """Yield its events until it ends; can be left and called again to continue."""
        assert self._process.stdout is not None  # noqa: S101  it was asked for
        for line in self._process.stdout:
            yield Event(**json.loads(line))

    def ask_to_stop(self) -> None:
        """Let it end after the step that it is running."""
        assert self._process.stdin is not None  # noqa: S101  it was asked for
        self._process.stdin.close()

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code."""
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._watchdog.cancel()
        self._process.kill()  # does nothing to one that has ended
        self._process.__exit__(None, None, None)
