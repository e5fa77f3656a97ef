"""Rules of the parity machine: what is due or claimed, and the numbers of a store."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import compare
from catga_store.testing.machine.numbers_model import list_due
from catga_store.testing.machine.numbers_model import numbers_of
from catga_store.testing.machine.rules_claims import ClaimRules
from catga_store.testing.machine.rules_flows import wanted_tags

__all__ = ["NumberRules"]


class NumberRules(ClaimRules):
    """`query_due`, `count_due` and `stats`."""

    @rule(
        only=st.sampled_from([None, "due", "claimed", "expired"]),
        type_name=st.sampled_from([None, None, *filter(None, TYPES)]),
        tags=st.one_of(st.none(), wanted_tags),
        limit=st.integers(1, 3),
    )
    def query_due(
        self, only: str | None, type_name: str | None, tags: dict[str, str] | None, limit: int
    ) -> None:
        """Page by page, and counted, what is due or claimed is what the model says."""
        self.world.forget_expired()
        wanted = list_due(self.world, only, type_name, tags)
        filters: dict[str, Any] = {"only": only, "state_type": type_name, "tags": tags}
        pages = self.pages(self.api.query_due, limit, **filters)
        found = [(one.flow.flow_id, one.claimed, one.lease_expired, one.age) for one in pages]
        compare(
            "what is due",
            {
                "order": (found, wanted),
                "count": (self.api.count_due(**filters), len(wanted)),
            },
        )

    @rule()
    def stats(self) -> None:
        """The numbers of the store are those of the model."""
        self.world.forget_expired()
        self.numbers_agree()

    def numbers_agree(self) -> None:
        """Each number is what the model counts."""
        stats, wanted = self.api.stats(), numbers_of(self.world)
        flows = {
            (name, status.name): number
            for name, by_status in stats.flows.items()
            for status, number in by_status.items()
        }
        fields = {"at": (stats.at, self.now), "flows": (flows, wanted.flows)}
        for name in wanted.__match_args__[1:]:
            fields[name] = (getattr(stats, name), getattr(wanted, name))

        compare("stats", fields)
