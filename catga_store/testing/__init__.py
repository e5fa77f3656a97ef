"""The test kit: a clock to move, faults to inject, interleavings, and the machine that compares stores.

Everything is imported when it is first asked for: the pytest plugin loads this package in every run,
and only the parity machine needs Hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from catga_store.testing.clock import ManualClock
    from catga_store.testing.core import DIFFERENCES
    from catga_store.testing.core import Difference
    from catga_store.testing.faces import AsyncFace
    from catga_store.testing.faces import BlockingFace
    from catga_store.testing.faces import Face
    from catga_store.testing.faults import Faults
    from catga_store.testing.interleaving import Part
    from catga_store.testing.interleaving import Stage
    from catga_store.testing.machine import StoreMachine
    from catga_store.testing.machine import machine_for
    from catga_store.testing.scenarios import SCENARIOS
    from catga_store.testing.scenarios import check_scenario
    from catga_store.testing.scratch import scratch_url

__all__ = [
    "DIFFERENCES",
    "SCENARIOS",
    "AsyncFace",
    "BlockingFace",
    "Difference",
    "Face",
    "Faults",
    "ManualClock",
    "Part",
    "Stage",
    "StoreMachine",
    "check_scenario",
    "machine_for",
    "scratch_url",
]

_MODULES = {
    "DIFFERENCES": "core",
    "SCENARIOS": "scenarios",
    "AsyncFace": "faces",
    "BlockingFace": "faces",
    "Difference": "core",
    "Face": "faces",
    "Faults": "faults",
    "ManualClock": "clock",
    "Part": "interleaving",
    "Stage": "interleaving",
    "StoreMachine": "machine",
    "check_scenario": "scenarios",
    "machine_for": "machine",
    "scratch_url": "scratch",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)

    return getattr(import_module(f"{__name__}.{module}"), name)
