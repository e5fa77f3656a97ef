"""Scenarios for the interleavings, by name: what actors do with one flow, its parts, and one condition.

Each is a `Scenario`: what is there before, what two or three actors then do, and whether the leases
of before have ended by then. `check_scenario` plays one in one order and requires that its history,
together with a last look at everything, equals some serial order.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from catga_store.testing.clock import ManualClock
from catga_store.testing.interleavings import sequential_model
from catga_store.testing.interleavings.histories import Event
from catga_store.testing.interleavings.histories import require_serial
from catga_store.testing.interleavings.play import Hand
from catga_store.testing.interleavings.play import Part
from catga_store.testing.interleavings.play import Stage
from catga_store.testing.interleavings.play import play

__all__ = ["SCENARIOS", "SETUPS", "Scenario", "check_scenario"]


class Scenario(NamedTuple):
    """What the first actor does at the beginning, and what several actors then do at once.

    With `leases_end`, time passes in between, and the first of these actors holds what the first actor
    claimed.
    """

    before: Sequence[str]
    actors: Sequence[Sequence[str]]
    leases_end: bool = False


SCENARIOS: dict[str, Scenario] = {
    "writers": Scenario(["create"], [["get", "update"], ["get", "update"]]),
    "sessions": Scenario(["create"], [["get", "commit", "get"], ["get", "commit"]]),
    "increments": Scenario(["create"], [["transact"], ["transact"], ["transact"]]),
    "creators": Scenario([], [["create", "update"], ["create", "get"]]),
    "delete and create": Scenario(
        ["create"], [["get", "update", "get"], ["get", "delete", "create"]]
    ),
    "delete under transact": Scenario(
        ["create"], [["transact"], ["get", "delete", "create", "update"]]
    ),
    "completions": Scenario(
        ["set all"], [["complete a", "complete b"], ["complete b", "complete a"], ["get_wait"]]
    ),
    "first success": Scenario(["set any"], [["fail a", "complete b"], ["complete a", "get_wait"]]),
    "set against complete": Scenario(
        [], [["set all", "get_wait"], ["complete a"], ["complete b", "complete a"]]
    ),
    "set against set": Scenario([], [["set all", "complete a"], ["set any", "complete b"]]),
    "clear against complete": Scenario(
        ["set all", "complete a"], [["clear", "set any"], ["complete b", "complete a"]]
    ),
    "suspend against complete": Scenario(
        ["create"],
        [["get", "suspend all"], ["complete a", "complete b"], ["claim_due", "update"]],
    ),
    "complete against claim": Scenario(
        ["create", "suspend all", "complete a"],
        [["complete b", "complete b"], ["claim_due", "update"], ["claim_due", "get"]],
    ),
    "time-out against completion": Scenario(
        ["create", "suspend all overdue", "complete a"],
        [["get", "get_wait", "time_out"], ["complete b"], ["claim_due"]],
    ),
    "late result against claim": Scenario(
        ["create", "suspend all overdue"],
        [["complete a", "get_wait"], ["claim_due", "claim"]],
    ),
    "close against completion": Scenario(
        ["set all overdue", "complete a"], [["get_wait", "close", "get_wait"], ["complete b"]]
    ),
    "claim against claim": Scenario(
        ["create"], [["claim", "update", "release"], ["claim", "update"]]
    ),
    "workers": Scenario(
        ["create"], [["claim_due", "update", "release"], ["claim_due", "update"], ["claim_due"]]
    ),
    "claim against a writer": Scenario(
        ["create"], [["get", "update"], ["claim_due", "update", "extend"]]
    ),
    "claim against its former owner": Scenario(
        ["create", "claim"],
        [["extend", "update"], ["claim", "update"], ["claim_due", "update"]],
        leases_end=True,
    ),
    "claim against extend": Scenario(
        ["create", "claim"], [["extend", "extend"], ["claim_due", "claim"]], leases_end=True
    ),
    "release against extend": Scenario(
        ["create"], [["claim", "extend", "release", "extend"], ["claim", "claim_due"]]
    ),
    "append against append": Scenario(
        ["create"], [["append", "append k", "read_log"], ["append k", "append"], ["append"]]
    ),
    "append against an update": Scenario(
        ["create"], [["append", "append k"], ["get", "update", "journal k"], ["get", "update"]]
    ),
    "journal against journal": Scenario(
        ["create"], [["get", "journal k", "read_log"], ["get", "journal k", "get", "journal"]]
    ),
    "trim against append": Scenario(
        ["append k", "append"], [["trim 3", "append k"], ["append k", "append", "read_log"]]
    ),
    "keep against keep": Scenario(
        [], [["keep_part 3", "get_part"], ["keep_part 4", "update_part"], ["overwrite_part 5"]]
    ),
    "part against part": Scenario(
        ["put_part 1"],
        [["get_part", "update_part"], ["get_part", "update_part"], ["delete_part", "put_part 2"]],
    ),
    "part against the deletion of its flow": Scenario(
        ["create", "append k"],
        [["get", "delete", "create"], ["put_part 1", "append k"], ["get", "journal", "get_part"]],
    ),
    "journal against the deletion of its flow": Scenario(
        ["create", "keep_part 3"],
        [["get", "delete", "keep_part 4"], ["get", "journal k", "append k", "read_log"]],
    ),
}
SETUPS: tuple[Sequence[str], ...] = (
    [],
    ["create"],
    ["create", "claim"],
    ["create", "suspend all"],
    ["create", "suspend all overdue", "complete a"],
    ["create", "claim_due", "suspend any"],
    ["set all", "complete a"],
    ["create", "append k", "put_part 1"],
)
"""What may be there before drawn actors begin."""

_LONG = timedelta(hours=1)
_ACTORS = ("ann", "bob", "cy")
_LOOK = ("get", "get_wait", "get_part", "read_log", "claim_due", "get", "get_wait")


def check_scenario(
    stage: Stage,
    clock: ManualClock,
    scenario: Scenario,
    order: Iterable[int],
    *,
    lost: Collection[int] = (),
    dies_after: Sequence[int | None] = (None, None, None),
) -> list[Event]:
    """Play a scenario on an empty store; return a serial order, or raise `NotSerialError`."""
    hands: dict[str, Hand] = {}
    before = play(stage, [Part(_ACTORS[0], scenario.before)], [], hands=hands)
    if scenario.leases_end:
        clock.advance(_LONG)
        tick = len(before) and before[-1].answered + 1
        before.append(Event("the clock", "advance", None, None, tick, tick))

    parts = [
        Part(actor, verbs, dies)
        for actor, verbs, dies in zip(_ACTORS, scenario.actors, dies_after, strict=False)
    ]
    history = play(stage, parts, order, lost=lost, hands=hands, history=before)
    history = play(stage, [Part("afterwards", _LOOK)], [], history=history)
    return require_serial(history, sequential_model.step, sequential_model.State())
