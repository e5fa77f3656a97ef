"""The test kit: a clock to move, faults to inject, and the machine that compares stores.

`ManualClock` and `Faults` need nothing but the library; the parity machine needs Hypothesis, which
is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any

from catga_store.testing.clock import ManualClock
from catga_store.testing.faces import AsyncFace
from catga_store.testing.faces import BlockingFace
from catga_store.testing.faces import Face
from catga_store.testing.faults import Faults

if TYPE_CHECKING:
    from catga_store.testing.core import DIFFERENCES
    from catga_store.testing.core import Difference
    from catga_store.testing.machine import StoreMachine
    from catga_store.testing.machine import machine_for

__all__ = [
    "DIFFERENCES",
    "AsyncFace",
    "BlockingFace",
    "Difference",
    "Face",
    "Faults",
    "ManualClock",
    "StoreMachine",
    "machine_for",
]

_NEEDS_HYPOTHESIS = {
    "DIFFERENCES": "core",
    "Difference": "core",
    "StoreMachine": "machine",
    "machine_for": "machine",
}


def __getattr__(name: str) -> Any:
    module = _NEEDS_HYPOTHESIS.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)

    return getattr(import_module(f"{__name__}.{module}"), name)
