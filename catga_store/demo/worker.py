"""A worker process: `python -m catga_store.demo.worker URL NAME orders|shipments [CRASH_AT]`.

It works until its standard input ends, which happens also when the process that started it dies. It
writes its events to standard output, one JSON object a line. At the call with the idempotency key
CRASH_AT it exits at once, as in a power cut: the service has acted, and nothing is committed.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from attrs import asdict

import catga_store as cs
from catga_store.demo.orders import Event
from catga_store.demo.orders import Worker

__all__ = ["CRASHED", "main"]

CRASHED = 70
"""The exit code of a worker that crashed at CRASH_AT."""


def main(url: str, name: str, job: str, crash_at: str | None = None) -> None:
    """Work until standard input ends."""

    def tell(event: Event) -> None:
        print(json.dumps(asdict(event)), flush=True)  # noqa: T201  its output is the interface
        if event.key is not None and event.key == crash_at:
            os._exit(CRASHED)  # pragma: no cover  the measurement ends with the process

    with cs.open_store(url) as store:
        worker = Worker(store, name, tell).working_on(job)

        def stop_at_end_of_input() -> None:
            while os.read(sys.stdin.fileno(), 1024):
                pass

            worker.stop()

        threading.Thread(target=stop_at_end_of_input, daemon=True).start()
        worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
