"""Who may run beside others: a flow that may have killed its process runs alone.

When a process dies, nothing says which of its flows did that. The first such death of a step is therefore not
counted, and from then on the flow runs alone in its worker: if the process dies again, no other flow has
lost an attempt, and this one has.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LONGEST_WAIT", "Gate"]

LONGEST_WAIT = 5.0
"""For how many seconds a flow waits to be alone, and for how many it then is: long handlers do not hold up
the worker."""


class Gate:
    """How many handlers run, and whether one of them is alone. Its worker has the lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running = 0
        self._is_alone = False
        self._alone_until = 0.0
        self._wanted = 0

    def enter(self, *, alone: bool, impatient: bool = False) -> bool:
        """Let a handler run, if it may; `impatient`: it has waited long enough to be alone."""
        if self._is_alone and self._clock() >= self._alone_until:
            self._is_alone = False

        if self._is_alone or (alone and not impatient and self._running):
            return False

        if not alone and self._wanted:
            return False

        self._running += 1
        if alone and self._running == 1:
            self._is_alone, self._alone_until = True, self._clock() + LONGEST_WAIT

        return True

    def leave(self) -> None:
        """A handler has ended."""
        self._running -= 1
        self._is_alone = False

    def want(self, by: int) -> None:
        """One more, or one less, waits to be alone; no other handler begins meanwhile."""
        self._wanted += by

    @property
    def is_wanted(self) -> bool:
        """Whether one waits to be alone, or is."""
        return self._is_alone or self._wanted > 0

    def __repr__(self) -> str:
        return f"<Gate: {self._running} running, {self._wanted} wait to be alone>"
