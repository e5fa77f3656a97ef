"""Histories, and whether one equals some serial order: a small linearizability checker.

An event is one operation of one actor, with the steps at which it was called and answered. A
history is right if its events can be put in one order, in which no event comes before another that
was answered before it was called, and in which a plain sequential model returns the same.
An event that was never answered (its actor died) may be in that order or not.

The search is that of J. M. Wing and C. Gong, "Testing and verifying concurrent objects" (Journal
of Parallel and Distributed Computing 17, 1993), with the memo of G. Lowe, "Testing for
linearizability" (Concurrency and Computation 29, 2017): what is left to be placed and the state of
the model are seen once.

It is exponential in how many events overlap, not in how many there are. Check each record's events
alone where nothing ties records together: a history is linearizable if that of each object is
(M. Herlihy and J. Wing, 1990, theorem 1).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import TypeVar

__all__ = ["NEVER", "Event", "NotSerialError", "Step", "require_serial", "serial_order"]

S = TypeVar("S", bound=Hashable)


class _Never:
    """The answer of an operation that was never answered."""

    def __repr__(self) -> str:
        return "never answered"


NEVER: Any = _Never()
"""`Event.answer` of an operation whose actor died before it was answered."""


class Event(NamedTuple):
    """One operation: its actor, name, argument and answer, and the steps at which it began and ended."""

    actor: str
    name: str
    given: Any
    answer: Any
    called: int
    answered: int

    def __str__(self) -> str:
        """One line of a history."""
        span = f"[{self.called}-{'' if self.answer is NEVER else self.answered}]"
        return f"{span:>9} {self.actor}: {self.name}({self.given}) -> {self.answer}"


Step = Callable[[S, Event], Iterable[S]]
"""The states that a sequential model may be in after an event; none if its answer is impossible.

For an event whose answer is `NEVER`: the states after it, whatever it would have answered.
"""


class NotSerialError(AssertionError):
    """A history that equals no serial order; the message shows it."""


def serial_order(
    history: Iterable[Event], step: Callable[[S, Event], Iterable[S]], initial: S
) -> list[Event] | None:
    """An order of the events that a sequential model agrees with; `None` if there is none."""
    events = sorted(history, key=lambda event: event.called)
    must = sum(1 << place for place, event in enumerate(events) if event.answer is not NEVER)
    everything = (1 << len(events)) - 1
    seen: set[tuple[int, S]] = set()
    # Depth first, on a stack of our own: what is left, the state, and the order so far, linked.
    stack: list[tuple[int, S, tuple[Any, ...]]] = [(everything, initial, ())]

    while stack:
        left, state, order = stack.pop()
        if not left & must:
            return _unlinked(order)

        if (left, state) in seen:
            continue

        seen.add((left, state))

        for place in _may_be_next(events, left):
            event = events[place]
            stack += [(left & ~(1 << place), after, (event, order)) for after in step(state, event)]

    return None


def require_serial(
    history: Sequence[Event], step: Callable[[S, Event], Iterable[S]], initial: S
) -> list[Event]:
    """`serial_order`, or `NotSerialError` with the history."""
    order = serial_order(history, step, initial)
    if order is None:
        lines = "\n".join(map(str, sorted(history, key=lambda event: event.called)))
        begins = (
            f"this history does not match any serial order that begins with the state {initial}"
        )
        message = f"{begins}:\n{lines}"
        raise NotSerialError(message)

    return order


def _may_be_next(events: Sequence[Event], left: int) -> list[int]:
    """The places of events that no event which is left must precede."""
    places = [place for place in range(len(events)) if left >> place & 1]
    ends = [events[place].answered for place in places if events[place].answer is not NEVER]
    first_end = min(ends, default=0)
    return [place for place in places if not ends or events[place].called <= first_end]


def _unlinked(order: tuple[Any, ...]) -> list[Event]:
    events: list[Event] = []

    while order:
        event, order = order
        events.append(event)

    return events[::-1]
