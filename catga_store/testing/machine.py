"""The parity machine: one Hypothesis state machine for every store and every face."""

from __future__ import annotations

from catga_store.testing.rules_sessions import SessionRules

__all__ = ["StoreMachine"]


class StoreMachine(SessionRules):
    """TODO."""
