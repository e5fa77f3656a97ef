"""The parity machine: one Hypothesis state machine for every store and every API.

To run it against a store of your own, say how to open it, and let pytest or Hypothesis run it:

    class MyStoreMachine(StoreMachine):
        def open_api(self, clock, retention, partitions):
            return BlockingAPI(lambda: MyStore(clock=clock, retention=retention, partitions=partitions))

    TestMyStore = MyStoreMachine.TestCase

Each example opens a store, which must be empty, and closes it. The rules are in `rules_flows`,
`rules_waits`, `rules_claims`, `rules_numbers`, `rules_parts`, `rules_logs`, `rules_sessions`,
`rules_part_sessions`, `rules_rare_cases`, `rules_history` and `rules_actions`. After each rule, everything
that can be read is compared with the `oracle`, which says what a store must do (`base`; of parts and logs
in `parts_model`, of numbers in `numbers_model`). No rule knows which store it runs on. Open the store with
`history=3` to have former versions of flows tested, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from catga_store.model.listings import Retention
from catga_store.testing.apis import StoreAPI
from catga_store.testing.clock import ManualClock
from catga_store.testing.machine.rules_actions import ActionRules

__all__ = ["OpenEmpty", "StoreMachine", "machine_for"]

OpenEmpty: TypeAlias = Callable[[ManualClock, Retention, int], StoreAPI]
"""Opens an empty store with this clock, retention and number of partitions."""


class StoreMachine(ActionRules):
    """The state machine that runs every public operation of a store in random order and compares it with the oracle.

    Define `open_api` in a subclass to open your store. `partitions` contains the numbers of partitions from
    which the machine chooses.
    """


def machine_for(open_api: OpenEmpty) -> type[StoreMachine]:
    """Return the state machine for the store that `open_api(clock, retention, partitions)` opens."""

    class Machine(StoreMachine):
        def open_api(self, clock: ManualClock, retention: Retention, partitions: int) -> StoreAPI:
            return open_api(clock, retention, partitions)

    return Machine
