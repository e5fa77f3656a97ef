"""Rules of the parity machine: what an operator does to flows."""

from __future__ import annotations

from copy import copy
from copy import deepcopy
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from catga_store.model.bulk import BulkReport
from catga_store.model.flows import FlowSummary
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine.base import OWNERS
from catga_store.testing.machine.rules_flows import flow_ids
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_flows import prefixes
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

    @rule(
        action=st.sampled_from(["cancel", "retry", "wake", "release", "purge", "tag", "tag"]),
        prefix=prefixes,
        ids=st.lists(flow_ids, max_size=4),
        how=st.sampled_from(["findings", "ids", "filter"]),
        limit=st.one_of(st.none(), st.integers(1, 3)),
        dry_run=st.booleans(),
        live=st.booleans(),
        tags=st.sampled_from(base.TAGS),
        remove=st.sets(st.sampled_from(["a", "b:", "none"]), max_size=2),
    )
    def bulk(
        self,
        action: str,
        prefix: str | None,
        ids: list[str],
        how: str,
        limit: int | None,
        dry_run: bool,
        live: bool,
        tags: dict[str, str],
        remove: set[str],
    ) -> None:
        """Each flow of a selection is changed as one flow is, or skipped for the same reason."""
        self.world.forget_expired()
        chosen = self.world.list_flows(id_prefix=prefix)
        selected: dict[str, Any] = {"id_prefix": prefix, "everything": prefix is None}
        if how == "ids":
            chosen, selected = list(dict.fromkeys(ids)), {"ids": ids}
        elif how == "findings":
            chosen = [one for one in chosen if "lease_expired" in self.world.findings(one, 1)]
            diagnosis = {"late": timedelta(0), "idle": timedelta(0), "attempts": 1}
            selected = {"findings": ["lease_expired"], "diagnosis": diagnosis, "id_prefix": prefix}

        given: dict[str, Any] = {}
        if action == "purge":
            given = {"live": live}
        elif action == "tag":
            given = {"tags": tags, "remove": (remove - tags.keys()) or {"none"}}

        self.change_many(chosen, selected, action, limit, given, dry_run=dry_run)

    @rule(
        chosen=st.lists(places, min_size=1, max_size=3),
        tags=st.sampled_from(base.TAGS),
        remove=st.sets(st.sampled_from(["a", "b:", "none"]), min_size=1, max_size=2),
    )
    def tag(self, chosen: list[int], tags: dict[str, str], remove: set[str]) -> None:
        """Flows that are named, most of which are there, are tagged."""
        self.world.forget_expired()
        ids = list(dict.fromkeys(map(self.flow_id, chosen)))
        given: dict[str, Any] = {"tags": tags, "remove": remove - tags.keys()}
        if tags or given["remove"]:
            self.change_many(ids, {"ids": ids}, "tag", None, given, dry_run=False)

    def change_many(
        self,
        chosen: list[str],
        selected: dict[str, Any],
        action: str,
        limit: int | None,
        given: dict[str, Any],
        *,
        dry_run: bool,
    ) -> None:
        """Act on the flows of a selection, which the model has chosen, too."""
        wanted: dict[bool, set[str]] = {True: set(), False: set()}
        for flow_id in chosen:
            wanted[self.would_change(flow_id, action, given, dry_run=dry_run)].add(flow_id)

        changed, skipped = self.run_bulk(selected, action, limit, given, dry_run=dry_run)
        base.compare(
            f"bulk {action}",
            {"changed": (changed, wanted[True]), "skipped": (skipped, wanted[False])},
        )

    def run_bulk(
        self,
        selected: dict[str, Any],
        action: str,
        limit: int | None,
        given: dict[str, Any],
        *,
        dry_run: bool,
    ) -> tuple[set[str], set[str]]:
        """Run it to its end, `limit` flows at a time; returns the ids of what was changed and skipped."""
        changed: set[str] = set()
        skipped: set[str] = set()
        reports: list[BulkReport] = []
        options: dict[str, Any] = {"dry_run": dry_run, "limit": limit, "per_second": None}
        options |= {"progress": reports.append, **given}
        cursor: str | None = None
        while True:
            run = getattr(self.api.bulk(**selected), action)
            arguments = ("by hand",) if action == "cancel" else ()
            report = run(*arguments, cursor=cursor, **options)
            assert report.matched == report.changed + sum(report.skipped.values())
            changed |= set(report.first_changed)
            skipped |= {one for ids in report.first_skipped.values() for one in ids}
            cursor = report.cursor
            if cursor is None:
                return changed, skipped

    def would_change(
        self, flow_id: str, action: str, given: dict[str, Any], *, dry_run: bool
    ) -> bool:
        """Whether the model changes a flow; it has done so then, unless it is a dry run."""
        there = self.world.flows.get(flow_id)
        if there is None:
            return False

        kept = copy(self.world.flows), deepcopy(self.world.history)
        try:
            if action == "purge":
                return self.world.purge(flow_id, dry_run=dry_run, **given)

            if action == "tag":
                return self.world.tag(flow_id, **given)

            return self.world.act(flow_id, action, None, "by hand") is not there
        except oracle.Refusal:
            return False
        finally:
            if dry_run:
                self.world.flows, self.world.history = kept

    # diagnosis ------------------------------------------------------------------------------------

    @rule(
        place=places,
        late=st.sampled_from([timedelta(0), timedelta(seconds=1)]),
        attempts=st.sampled_from([1, 2]),
    )
    def diagnose(self, place: int, late: timedelta, attempts: int) -> None:
        """One flow: what its head and its conditions say, and nothing of one that is not there."""
        flow_id = self.flow_id(place)
        done = self.agree(
            lambda: self.api.diagnose(flow_id, late=late, idle=late, attempts=attempts, types=()),
            lambda: self.world.findings(flow_id, attempts),
        )
        if done is not None:
            found, wanted = done
            base.compare(
                f"the diagnosis of {flow_id!r}",
                {"codes": ({code for code in found.codes if code in oracle.MODELLED}, wanted)},
            )
            if found.flow is not None:
                self.same_summary(found.flow, self.world.flows[flow_id])

    @rule(limit=st.sampled_from([1, 3, 100]), most=st.sampled_from([1, 5, 100]), prefix=prefixes)
    def diagnose_all(self, limit: int, most: int, prefix: str | None) -> None:
        """All flows, in pages, are what each of them is."""
        self.world.forget_expired()
        options: dict[str, Any] = {"late": timedelta(0), "idle": timedelta(0), "attempts": 1}
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = self.api.diagnose_all(
                limit=limit,
                cursor=cursor,
                most=most,
                severity="info",
                types=(),
                id_prefix=prefix,
                **options,
            )
            found += [one.flow_id for one in page if one.flow is not None]
            cursor = page.cursor
            if cursor is None:
                break

        wanted = [
            flow_id
            for flow_id, flow in self.world.flows.items()
            if flow.status not in oracle.TERMINAL
            and flow_id.encode().startswith((prefix or "").encode())
            and self.api.diagnose(flow_id, **options).findings
        ]
        base.compare("the diagnosis of all flows", {"ids": (sorted(found), sorted(wanted))})
