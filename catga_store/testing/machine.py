"""The parity machine: one Hypothesis state machine for every store and every face."""

from __future__ import annotations

from catga_store.testing.rules_claims import ClaimRules

__all__ = ["StoreMachine"]


class StoreMachine(ClaimRules):
    """TODO."""
