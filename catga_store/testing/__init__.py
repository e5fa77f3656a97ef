"""Tools for tests: a manual clock, faults, interleavings, and the machine that compares stores.

Each name is imported when it is first used: the pytest plugin loads this package in every run, and only the
parity machine needs Hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from catga_store.testing.apis import AsyncAPI
    from catga_store.testing.apis import BlockingAPI
    from catga_store.testing.apis import StoreAPI
    from catga_store.testing.clock import ManualClock
    from catga_store.testing.faults import Faults
    from catga_store.testing.interleavings.play import Part
    from catga_store.testing.interleavings.play import Stage
    from catga_store.testing.interleavings.scenarios import SCENARIOS
    from catga_store.testing.interleavings.scenarios import check_scenario
    from catga_store.testing.machine import StoreMachine
    from catga_store.testing.machine import machine_for
    from catga_store.testing.machine.base import DIFFERENCES
    from catga_store.testing.machine.base import Difference
    from catga_store.testing.scratch import scratch_url

__all__ = [
    "DIFFERENCES",
    "SCENARIOS",
    "AsyncAPI",
    "BlockingAPI",
    "Difference",
    "Faults",
    "ManualClock",
    "Part",
    "Stage",
    "StoreAPI",
    "StoreMachine",
    "check_scenario",
    "machine_for",
    "scratch_url",
]

_MODULES = {
    "DIFFERENCES": "machine.base",
    "SCENARIOS": "interleavings.scenarios",
    "AsyncAPI": "apis",
    "BlockingAPI": "apis",
    "Difference": "machine.base",
    "StoreAPI": "apis",
    "Faults": "faults",
    "ManualClock": "clock",
    "Part": "interleavings.play",
    "Stage": "interleavings.play",
    "StoreMachine": "machine",
    "check_scenario": "interleavings.scenarios",
    "machine_for": "machine",
    "scratch_url": "scratch",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)

    return getattr(import_module(f"{__name__}.{module}"), name)
