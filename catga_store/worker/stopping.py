"""How the signals of a process reach a blocking worker."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["SIGNALS", "signals_to"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_to(receive: Callable[[], object]) -> Generator[None]:
    """Call `receive` for each SIGTERM and SIGINT, in a thread of its own, while the block runs.

    A handler of a signal may interrupt code that holds a lock. So it only puts a note into a
    `SimpleQueue`, which is made for that. Outside of the main thread nothing is received.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def note(number: int, _frame: FrameType | None) -> None:
        received.put(number)

    def pass_on() -> None:
        while received.get() is not None:
            receive()

    thread = threading.Thread(target=pass_on, name="catga-store-signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

        received.put(None)
        thread.join()
