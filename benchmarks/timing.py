"""Timing of several cases beside each other on a machine that is also busy with other work.

Cases that are compared take turns: a few calls of each, round after round, so that whatever slows
the machine slows them all. Differences and ratios are worked out within each round; the median of
the rounds is shown.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from statistics import median

__all__ = ["Times", "interleaved", "show", "time_awaits", "time_calls", "warm_up"]


class Times:
    """What the calls of one case took, round by round, in nanoseconds."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []

    def percentile(self, percent: float) -> float:
        """In microseconds, over the calls of all rounds."""
        calls = sorted(call for calls in self.rounds for call in calls)
        return calls[min(len(calls) - 1, int(len(calls) * percent / 100))] / 1000

    @property
    def p50(self) -> float:
        """The median, in microseconds."""
        return self.percentile(50)

    @property
    def p99(self) -> float:
        """What one call in a hundred exceeds, in microseconds."""
        return self.percentile(99)

    @property
    def medians(self) -> list[float]:
        """The median of each round, in microseconds."""
        return [median(calls) / 1000 for calls in self.rounds]

    def less(self, *parts: Times) -> float:
        """What is left of the median when those of the parts are taken off, in microseconds."""
        return median(total - sum(taken) for total, *taken in self._beside(parts))

    def over(self, *parts: Times) -> float:
        """The median as a multiple of the sum of the parts'."""
        return median(total / sum(taken) for total, *taken in self._beside(parts))

    def _beside(self, parts: Iterable[Times]) -> Iterable[tuple[float, ...]]:
        return zip(self.medians, *(part.medians for part in parts), strict=True)


def interleaved(
    cases: Mapping[str, Callable[[], object]], *, calls: int, rounds: int
) -> dict[str, Times]:
    """Time `rounds` times `calls` calls of each case, taking turns in an order drawn for each round.

    After calls that wait, for a disk say, a processor has cooled down, and the next case pays for
    it: the 36 us of a decoding were 23 after something that had kept it busy.
    """
    orders = random.Random(len(cases))
    times = {name: Times() for name in cases}
    for call in cases.values():
        warm_up(call, calls)

    for _ in range(rounds):
        for name, call in orders.sample(list(cases.items()), len(cases)):
            times[name].rounds.append(time_calls(call, calls))

    return times


def warm_up(call: Callable[[], object], calls: int) -> None:
    """Call a few times without timing, and collect garbage before the first round."""
    for _ in range(min(calls, 50)):
        call()

    gc.collect()


def time_calls(call: Callable[[], object], calls: int, less: list[int] | None = None) -> list[int]:
    """Return the time of each call in nanoseconds, less what it has added to a list."""
    clock = time.perf_counter_ns
    taken: list[int] = []
    for _ in range(calls):
        start = clock()
        call()
        taken.append(clock() - start)
        if less:
            taken[-1] -= sum(less)
            less.clear()

    return taken


async def time_awaits(call: Callable[[], Awaitable[object]], calls: int) -> list[int]:
    """Return the time of each awaited call in nanoseconds."""
    clock = time.perf_counter_ns
    taken: list[int] = []
    for _ in range(calls):
        start = clock()
        await call()
        taken.append(clock() - start)

    return taken


def show(values: Iterable[float | None]) -> list[str]:
    """Write microseconds for a table: one decimal below 100, none above."""
    return [
        "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
        for value in values
    ]
