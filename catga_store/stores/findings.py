"""What the doctor of a store reports, and what the doctors of all stores share.

Each store has its doctor in its package. `cli/doctor_by_scheme.py` finds it by the scheme of a URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal
from typing import Protocol
from typing import TypeAlias

from attrs import frozen

__all__ = ["Doctor", "Finding", "Level", "Scratch", "clock_difference", "no_store"]

Level: TypeAlias = Literal["ok", "info", "unknown", "warning", "problem"]
"""`warning` and `problem` are findings: the doctor exits with 1."""


@frozen
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    found: str
    means: str
    """What it means for flows."""
    change: str = ""
    """How to change it, if that is called for."""


@frozen
class Scratch:
    """A place for a benchmark: like the one the URL names, empty, and used by nothing else."""

    url: str
    place: str
    """Where it is, in words."""


class Doctor(Protocol):
    """Looks at one kind of store from the outside, given its URL."""

    def absent(self, url: str) -> str | None:
        """Say why there is no store at this URL, `None` if there is one. Creates nothing.

        Also `None` if it cannot be found out: opening the store says why.
        """
        ...

    def examine(self, url: str) -> Iterator[Finding]:
        """Look at everything that affects flows. Creates and changes nothing.

        What cannot be seen is `unknown`, and never `ok`. That there is no store is a problem.
        """
        ...

    def scratch(self, url: str) -> AbstractContextManager[Scratch]:
        """A scratch place beside the store, removed at the end with all that was put there."""
        ...


_MOST_APART = 0.5
"""Seconds: a tenth of a short lease."""


def clock_difference(server: float | None, before: float, after: float, of: str = "") -> Finding:
    """Judge a server's time, in seconds since 1970, that came between two looks at the clock here.

    Leases, deadlines and expiry go by the clocks of the workers, not by the server's; that one is
    what the clocks of several hosts can be held against.
    """
    check = f"clock{of}"
    means = (
        "leases and deadlines follow each worker's clock: a worker whose clock is ahead "
        "by more than a lease claims flows that other workers still hold, so late commits "
        "are refused and steps are repeated"
    )
    if server is None:
        change = "synchronize the hosts' clocks with NTP"
        return Finding(check, "unknown", "the server does not report its time", means, change)

    # A difference that is smaller than the time between the two looks cannot be seen.
    apart = server - min(max(server, before), after)
    if abs(apart) < _MOST_APART:
        found = f"the clocks of this host and the server are less than {_MOST_APART:.1f} s apart"
        return Finding(check, "ok", found, "leases and deadlines have the same meaning on both")

    found = (
        f"the server's clock is {abs(apart):,.1f} s {'ahead of' if apart > 0 else 'behind'} "
        "this host's clock"
    )
    change = "synchronize the clocks with NTP, and run doctor on the host of each worker"
    return Finding(check, "warning", found, means, change)


def no_store(found: str) -> Finding:
    """Say that there is no store, and why."""
    means = "this store holds no flows; a worker creates the store when it first uses it"
    return Finding("store", "problem", found, means, "check that the workers use this URL")
