"""Workers: they claim due flows, run handlers, and commit what those changed. Optional.

A worker calls the public operations of a store, as a loop of your own would. What it decides is in
`outcomes`, `policy` and `recurring`, which do no I/O; what it does with one flow is in `steps`, once for
both APIs; `blocking` runs handlers in threads, `awaiting` in tasks of anyio.

| file | what it holds |
|---|---|
| `policy` | `Retry`, `GiveUp` |
| `outcomes` | what is written when a run ends |
| `recurring` | when a recurring flow is due next |
| `runs` | `Run` and `AsyncRun`, what a handler is given |
| `gate` | which flow runs alone |
| `flights` | a run as its worker sees it, and what a worker counts |
| `steps`, `driving` | what is done with one flow, as generators, and how they are run |
| `base` | what both workers share: handlers, options, claims, health |
| `blocking`, `stopping` | `Worker`, and the signals that stop it |
| `awaiting` | `AsyncWorker` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catga_store.worker.blocking import Worker
from catga_store.worker.policy import GiveUp
from catga_store.worker.policy import Retry
from catga_store.worker.runs import AsyncRun
from catga_store.worker.runs import Run

if TYPE_CHECKING:
    from catga_store.worker.awaiting import AsyncWorker

__all__ = ["AsyncRun", "AsyncWorker", "GiveUp", "Retry", "Run", "Worker"]


def __getattr__(name: str) -> object:
    """The async worker, when it is first asked for: anyio costs blocking programs nothing."""
    if name != "AsyncWorker":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)

    from catga_store.worker.awaiting import AsyncWorker  # noqa: PLC0415  as above

    return AsyncWorker
