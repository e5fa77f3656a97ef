"""Rules of the parity machine: what an operator does to flows."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import rule

from catga_store.model.flows import FlowSummary
from catga_store.testing.machine.base import OWNERS
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_history import HistoryRules

__all__ = ["ActionRules"]

actions = st.sampled_from(["cancel", "retry", "wake", "release"])


class ActionRules(HistoryRules):
    """Every operation of an operator."""

    @rule(
        place=places,
        action=actions,
        version=st.sampled_from([None, None, 0, 1]),
        reason=st.sampled_from(["", "by hand \u00e9"]),
    )
    def act(self, place: int, action: str, version: int | None, reason: str) -> None:
        """On whichever version is stored, on the current one, or on the one before."""
        flow_id = self.flow_id(place)
        self.world.forget_expired()
        there = self.world.flows.get(flow_id)
        wanted = None if version is None or there is None else there.version - version
        self.act_one(flow_id, action, wanted, reason)

    @rule(place=places, first=actions, second=actions, claimed=st.booleans())
    def act_twice(self, place: int, first: str, second: str, claimed: bool) -> None:
        """One action after another, perhaps on a flow that a worker holds."""
        flow_id = self.flow_id(place)
        if claimed:
            self.claim_one(flow_id, timedelta(seconds=1), OWNERS[0])

        self.act_one(flow_id, first, None, "first")
        self.act_one(flow_id, second, None, "second")

    def act_one(self, flow_id: str, action: str, version: int | None, reason: str) -> None:
        """Act on one flow."""

        def real() -> FlowSummary:
            arguments = (flow_id, reason) if action == "cancel" else (flow_id,)
            summary: FlowSummary = getattr(self.api, f"{action}_flow")(*arguments, version=version)
            return summary

        done = self.agree(real, lambda: self.world.act(flow_id, action, version, reason))
        if done is not None:
            self.same_summary(*done)
