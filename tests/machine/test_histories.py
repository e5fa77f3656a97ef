"""The checker of histories itself, on histories that are known to be right and known to be wrong.

The first are of a register, as in the literature; the others are small histories of flows and
conditions, each wrong one the trace of a bug that stores have been shipped with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from catga_store.testing.interleavings.histories import NEVER
from catga_store.testing.interleavings.histories import Event
from catga_store.testing.interleavings.histories import NotSerialError
from catga_store.testing.interleavings.histories import require_serial
from catga_store.testing.interleavings.histories import serial_order
from catga_store.testing.interleavings.sequential_model import LATER
from catga_store.testing.interleavings.sequential_model import NOW
from catga_store.testing.interleavings.sequential_model import PARKED
from catga_store.testing.interleavings.sequential_model import Base
from catga_store.testing.interleavings.sequential_model import Claimed
from catga_store.testing.interleavings.sequential_model import Refused
from catga_store.testing.interleavings.sequential_model import Seen
from catga_store.testing.interleavings.sequential_model import State
from catga_store.testing.interleavings.sequential_model import Terms
from catga_store.testing.interleavings.sequential_model import WaitSeen
from catga_store.testing.interleavings.sequential_model import step


def event(  # noqa: PLR0917  the columns of a history
    actor: str, name: str, given: Any, answer: Any, called: int, answered: int = 99
) -> Event:
    """Return one event; one without an end is never answered."""
    return Event(actor, name, given, answer, called, answered)


# --- a register -------------------------------------------------------------------------------------


def register(state: int, event: Event) -> Iterator[int]:
    """A number that is written and read."""
    if event.name == "write":
        yield event.given
    elif event.answer in (NEVER, state):
        yield state


RIGHT = {
    "nothing happened": [],
    "one after the other": [event("a", "write", 1, None, 0, 1), event("b", "read", None, 1, 2, 3)],
    "a read beside a write sees it": [
        event("a", "write", 1, None, 0, 3),
        event("b", "read", None, 1, 1, 2),
    ],
    "or does not": [event("a", "write", 1, None, 0, 3), event("b", "read", None, 0, 1, 2)],
    "two writes at once come in either order": [
        event("a", "write", 1, None, 0, 3),
        event("b", "write", 2, None, 0, 3),
        event("c", "read", None, 1, 4, 5),
    ],
    "a write without a reply may have happened": [
        event("a", "write", 1, NEVER, 0),
        event("b", "read", None, 0, 1, 2),
        event("b", "read", None, 1, 3, 4),
    ],
    "and may not": [event("a", "write", 1, NEVER, 0), event("b", "read", None, 0, 1, 2)],
}

WRONG = {
    "a read of what was never written": [event("a", "read", None, 7, 0, 1)],
    "a read after a write that does not see it": [
        event("a", "write", 1, None, 0, 1),
        event("b", "read", None, 0, 2, 3),
    ],
    "a read before a write that sees it": [
        event("b", "read", None, 1, 0, 1),
        event("a", "write", 1, None, 2, 3),
    ],
    "time goes back between two reads beside one write": [
        event("a", "write", 1, None, 0, 9),
        event("b", "read", None, 1, 1, 2),
        event("c", "read", None, 0, 3, 4),
    ],
    "two readers see two writes in different orders": [
        event("a", "write", 1, None, 0, 9),
        event("b", "write", 2, None, 0, 9),
        event("c", "read", None, 1, 1, 2),
        event("c", "read", None, 2, 3, 4),
        event("d", "read", None, 1, 5, 6),
    ],
    "a write without a reply happens twice": [
        event("a", "write", 1, NEVER, 0),
        event("b", "read", None, 1, 1, 2),
        event("c", "write", 2, None, 3, 4),
        event("b", "read", None, 1, 5, 6),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_has_a_serial_order(name: str) -> None:
    """It is found, holds every answered event once, and the model agrees with it step by step."""
    history = RIGHT[name]
    order = require_serial(history, register, 0)
    answered = [one for one in history if one.answer is not NEVER]
    assert all(order.count(one) == 1 for one in answered)

    state = 0
    for one in order:
        (state,) = register(state, one)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_has_no_order(name: str) -> None:
    """It is refused, and the message shows every event."""
    with pytest.raises(NotSerialError) as caught:
        require_serial(WRONG[name], register, 0)

    assert all(str(one) in str(caught.value) for one in WRONG[name])


@pytest.mark.parametrize("seed", range(20))
def test_what_a_real_register_returns_is_right_and_a_forged_reply_is_wrong(seed: int) -> None:
    """Histories of a register that takes effect at a random moment of each operation."""
    draw = random.Random(seed)
    history: list[Event] = []
    for actor in "abc":
        at = 0.0
        for number in range(4):
            called = at = at + draw.random()
            at += draw.random()
            name = draw.choice(["write", "read"])
            # The answer holds the moment of the effect until all are known.
            history.append(Event(actor, name, (actor, number), (called + at) / 2, called, at))  # type: ignore[arg-type]

    state: Any = 0
    real: list[Event] = []
    for one in sorted(history, key=lambda event: event.answer):
        state = one.given if one.name == "write" else state
        real.append(one._replace(answer=None if one.name == "write" else state))

    assert serial_order(real, register, 0) is not None

    reads = [place for place, one in enumerate(real) if one.name == "read"]
    if reads:
        real[reads[0]] = real[reads[0]]._replace(answer="forged")
        assert serial_order(real, register, 0) is None


def test_what_overlaps_is_searched_without_trying_every_order() -> None:
    """Sixteen writes at once and a read that fits none: 16! orders, but only 2^16 sets of them."""
    history = [event("a", "write", 1, None, 0, 9) for _ in range(16)]
    assert serial_order([*history, event("b", "read", None, 2, 10, 11)], register, 0) is None


# --- flows and conditions -----------------------------------------------------------------------------

ONE = Seen("r1", 1, 0, "CREATED", None, NOW)
TWO = ONE._replace(revision="r2", version=2, n=1)
MADE = event("x", "create", 0, ONE, 0, 0)
ASLEEP = Seen("r2", 2, 0, "SUSPENDED", None, PARKED)
BOTH = Terms(frozenset({"a", "b"}), parent=True)
SUSPENDED = event("x", "suspend", (Base("r1"), BOTH), (ASLEEP, "PENDING"), 1, 1)
SET = event(
    "x", "set", Terms(frozenset({"a"})), (False, WaitSeen("w1", 1, "PENDING", frozenset())), 0, 0
)
FIRST = (True, False, False, "PENDING")
LAST = (True, False, True, "SATISFIED")
AGAIN = (False, True, False, "SATISFIED")


def handed(version: int, owner: str, outcome: str | None = "SATISFIED") -> Claimed:
    """Return the parent as its owner claimed it, with all that its children said by then."""
    seen = Seen(f"r{version}", version, 0, "SUSPENDED", owner, LATER)
    done = frozenset({"a", "b"}) if outcome is not None else frozenset[str]()
    return Claimed(seen, f"c{version}", outcome, done)


KNOWN_GOOD = {
    "the slower of two writers is refused": [
        MADE,
        event("a", "update", (Base("r1"), 1), TWO, 1, 3),
        event("b", "update", (Base("r1"), 2), Refused(("StaleFlowError",), 2), 2, 4),
    ],
    "a completion is a duplicate beside the one that counts": [
        SET,
        event("a", "complete", ("a", True), AGAIN, 1, 3),
        event("b", "complete", ("a", True), LAST, 2, 4),
    ],
    "a claim, and the extension that came too late": [
        MADE,
        event("a", "claim", "a", Claimed(Seen("r2", 2, 0, "CREATED", "a", LATER), "c1"), 1, 1),
        event("t", "advance", None, None, 2, 2),
        event("b", "claim", "b", Claimed(Seen("r3", 3, 0, "CREATED", "b", LATER), "c2"), 3, 5),
        event("a", "extend", "c1", Refused(("ClaimLostError",)), 4, 6),
    ],
    "a parent that is claimed again gets the same results": [
        MADE,
        SUSPENDED,
        event("a", "complete", ("a", True), FIRST, 2, 2),
        event("a", "complete", ("b", True), LAST, 3, 3),
        event("b", "claim_due", "b", handed(3, "b"), 4, 4),
        event("t", "advance", None, None, 5, 5),
        event("c", "claim_due", "c", handed(4, "c"), 6, 6),
    ],
    "a parent that is held is not claimed when its wait has ended": [
        MADE,
        SUSPENDED,
        event("b", "claim", "b", handed(3, "b", None), 2, 2),
        event("a", "complete", ("a", True), FIRST, 3, 3),
        event("a", "complete", ("b", True), LAST, 4, 4),
        event("c", "claim_due", "c", None, 5, 5),
    ],
    "a flow that suspends on an ended wait gets the outcome": [
        SET,
        event("a", "complete", ("a", True), LAST, 1, 1),
        MADE._replace(called=2, answered=2),
        event("x", "suspend", (Base("r1"), BOTH), (ASLEEP, "SATISFIED"), 3, 3),
    ],
    "a condition whose set had no reply is there": [
        SET._replace(answer=NEVER, answered=99),
        event("a", "get_wait", None, WaitSeen("w1", 1, "PENDING", frozenset()), 2, 2),
    ],
    "a condition whose end had no reply is over": [
        SET,
        event("a", "close", "w1", NEVER, 1),
        event("a", "get_wait", None, WaitSeen("w2", 2, "TIMED_OUT", frozenset()), 2, 2),
    ],
    "a flow whose suspension had no reply sleeps": [
        MADE,
        SUSPENDED._replace(answer=NEVER, answered=99),
        event("a", "get", None, ASLEEP, 2, 2),
    ],
    "a commit without a reply is read later": [
        MADE,
        event("a", "update", (Base("r1"), 1), NEVER, 1),
        event("b", "get", None, ONE, 2, 2),
        event("b", "get", None, TWO, 3, 3),
    ],
}

KNOWN_BAD = {
    "a lost update: both writers of one version succeed": [
        MADE,
        event("a", "update", (Base("r1"), 1), TWO, 1, 3),
        event("b", "update", (Base("r1"), 2), TWO._replace(revision="r3", n=2), 2, 4),
    ],
    "a write on a flow that took the place of what was read": [
        MADE,
        event("b", "delete", Base("r1"), True, 1, 1),
        event("b", "create", 0, ONE._replace(revision="r9"), 2, 2),
        event("a", "update", (Base("r1"), 1), TWO, 3, 3),
    ],
    "a commit that happened is reported as a conflict": [
        MADE,
        event("a", "update", (Base("r1"), 1), Refused(("StaleFlowError",), 2), 1, 1),
    ],
    "a refused commit is written": [
        MADE,
        event("a", "delete", Base("r0"), Refused(("StaleFlowError",), 1), 1, 1),
        event("b", "get", None, None, 2, 2),
    ],
    "an acknowledged write is not read": [
        MADE,
        event("a", "update", (Base("r1"), 1), TWO, 1, 1),
        event("b", "get", None, ONE, 2, 2),
    ],
    "two increments from one version": [
        MADE,
        event("a", "transact", 10, ONE._replace(revision="r2", version=2, n=10), 1, 3),
        event("b", "transact", 10, ONE._replace(revision="r3", version=3, n=10), 2, 4),
    ],
    "two owners of one flow": [
        MADE,
        event("a", "claim_due", "a", Claimed(Seen("r2", 2, 0, "CREATED", "a", LATER), "c1"), 1, 3),
        event("b", "claim_due", "b", Claimed(Seen("r3", 3, 0, "CREATED", "b", LATER), "c2"), 2, 4),
    ],
    "a former owner writes after another has claimed": [
        MADE,
        event("a", "claim", "a", Claimed(Seen("r2", 2, 0, "CREATED", "a", LATER), "c1"), 1, 1),
        event("t", "advance", None, None, 2, 2),
        event("b", "claim", "b", Claimed(Seen("r3", 3, 0, "CREATED", "b", LATER), "c2"), 3, 3),
        event("a", "update", (Base("r2", "c1"), 5), Seen("r4", 4, 5, "CREATED", "a", LATER), 4, 4),
    ],
    "an extension after the claim was lost": [
        MADE,
        event("a", "claim", "a", Claimed(Seen("r2", 2, 0, "CREATED", "a", LATER), "c1"), 1, 1),
        event("t", "advance", None, None, 2, 2),
        event("b", "claim", "b", Claimed(Seen("r3", 3, 0, "CREATED", "b", LATER), "c2"), 3, 3),
        event("a", "extend", "c1", None, 4, 4),
    ],
    "a due flow is not claimed": [
        MADE,
        event("a", "claim_due", "a", None, 1, 1),
    ],
    "two completions are reported to end the wait": [
        SET,
        event("a", "complete", ("a", True), LAST, 1, 3),
        event("b", "complete", ("a", True), LAST, 2, 4),
    ],
    "no completion is reported to end the wait": [
        SET,
        event("a", "complete", ("a", True), (True, False, False, "SATISFIED"), 1, 1),
    ],
    "a pending completion is dropped": [
        event("a", "complete", ("a", True), (True, False, False, None), 0, 0),
        SET._replace(called=1, answered=1),
    ],
    "a completion of one child is lost beside another's": [
        MADE,
        SUSPENDED,
        event("a", "complete", ("a", True), FIRST, 2, 4),
        event("b", "complete", ("b", True), FIRST, 3, 5),
    ],
    "the parent of a satisfied wait is not claimed": [
        MADE,
        SUSPENDED,
        event("a", "complete", ("a", True), FIRST, 2, 2),
        event("a", "complete", ("b", True), LAST, 3, 3),
        event("b", "claim_due", "b", None, 4, 4),
    ],
    "a parent is claimed without an accepted result": [
        MADE,
        SUSPENDED._replace(given=(Base("r1"), BOTH._replace(overdue=True))),
        event("b", "complete", ("a", True), FIRST, 3, 3),
        event(
            "a",
            "claim_due",
            "a",
            Claimed(Seen("r3", 3, 0, "SUSPENDED", "a", LATER), "c1", "TIMED_OUT", frozenset()),
            2,
            4,
        ),
    ],
    "the deadline and the last completion both win": [
        SET._replace(given=Terms(frozenset({"a"}), overdue=True)),
        event("a", "close", "w1", WaitSeen("w2", 2, "TIMED_OUT", frozenset()), 1, 3),
        event("b", "complete", ("a", True), LAST, 2, 4),
    ],
    "a condition that was never set is read": [
        event("a", "get_wait", None, WaitSeen("w1", 1, "PENDING", frozenset()), 0, 0),
    ],
    "a condition is closed and stays at its version": [
        SET,
        event("a", "close", "w1", WaitSeen("w2", 1, "TIMED_OUT", frozenset()), 1, 1),
    ],
    "a condition that is not there is cleared": [
        event("a", "clear", None, True, 0, 0),
    ],
    "a sweeper's commit passes though the condition was cleared": [
        MADE,
        SUSPENDED,
        event("b", "clear", None, True, 2, 2),
        event("a", "time_out", (Base("r2"), "w1"), ASLEEP._replace(revision="r3"), 3, 3),
    ],
    "half of a commit": [
        MADE,
        SUSPENDED,
        event("a", "get", None, ONE, 2, 2),
    ],
}


@pytest.mark.parametrize("name", KNOWN_GOOD)
def test_a_good_history_of_a_store_is_right(name: str) -> None:
    """The model of the interleavings admits what the contract admits."""
    assert serial_order(KNOWN_GOOD[name], step, State()) is not None


@pytest.mark.parametrize("name", KNOWN_BAD)
def test_a_bad_history_of_a_store_is_wrong(name: str) -> None:
    """No order explains it; without one of its events there is one, so no more is wrong with it."""
    history = KNOWN_BAD[name]
    assert serial_order(history, step, State()) is None
    without = [[one for one in history if one is not left_out] for left_out in history]
    assert any(serial_order(rest, step, State()) is not None for rest in without)
