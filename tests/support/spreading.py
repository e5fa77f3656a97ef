"""Which process runs a test when, where pytest-xdist has several: what waits beside what computes.

In the order of the folders, all processes would wait for servers at one time, and all want a core at
another. So the tests of each file are spread evenly over the run. Those of files that make something costly
for all their tests, as a server, are run by one process, and first. Tests that take seconds do not come
last, where the other processes would wait for them.

The order is the same in every process and in every run. Without pytest-xdist it stays as it is.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

__all__ = ["LONG", "TOGETHER", "scheduler", "spread", "unit_of"]

TOGETHER = frozenset(
    {
        "tests/cli/test_demo.py",
        "tests/drivers/test_drivers_redis.py",
        "tests/drivers/test_drivers_servers.py",
        "tests/drivers/test_nats_misconfigured.py",
        "tests/drivers/test_tls.py",
        "tests/meta/test_layers.py",
        "tests/stores/nats/test_nats_limits.py",
    }
)
"""Files that one process runs. The mark `xdist_group` says nothing to pytest-xdist 3.8 under pytest 9.2,
which keeps the id of a test elsewhere than in `_nodeid`."""
LONG = (
    "tests/faults/test_crash.py",
    "tests/faults/test_hints.py",
    "tests/faults/test_interruptions.py",
    "tests/machine/test_parity.py",
    "tests/processes/",
)
"""Where tests take seconds."""
ENDS_AT = 0.8
"""Where in the run the last of those begins."""


def unit_of(nodeid: str) -> str:
    """Name what one process runs with this test: its file, or the test alone."""
    file = nodeid.partition("::")[0]
    return file if file in TOGETHER else nodeid


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler of pytest-xdist that hands out single tests, and some files whole."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415  it may not be installed

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    return Scheduling(config, log)


def spread(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests in an order in which those of each file are spread evenly."""
    files = [item.nodeid.partition("::")[0] for item in items]
    counts, seen = Counter(files), Counter[str]()
    places: list[tuple[float, int]] = []
    for number, file in enumerate(files):
        # Files begin at different places, or the first tests of all would come together.
        place = (seen[file] + zlib.crc32(file.encode()) / 2**32) / counts[file]
        places.append((place * ENDS_AT if file.startswith(LONG) else place, number))
        seen[file] += 1

    return [items[number] for _, number in sorted(places)]
