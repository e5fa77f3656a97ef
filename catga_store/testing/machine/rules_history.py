"""Rules of the parity machine: former versions of flows, and forks of flows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from catga_store.model.flows import FlowVersion
from catga_store.model.progress import ForEachProgress
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine.base import FLOW_IDS
from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.rules_flows import flow_ids
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_flows import reads_as
from catga_store.testing.machine.rules_flows import type_names
from catga_store.testing.machine.rules_rare_cases import RareCaseRules

__all__ = ["HistoryRules"]

_MOST = 1000

backs = st.sampled_from([-1, 0, 1, 1, 2, 2, 3])
"""How many versions before the current one; -1 is one that does not exist yet."""


class HistoryRules(RareCaseRules):
    """Every operation on former versions, and forks."""

    def version_before(self, flow_id: str, back: int) -> int:
        """The number of a version before the current one, at least 1."""
        self.world.forget_expired()
        flow = self.world.flows.get(flow_id)
        return max(1, (0 if flow is None else flow.version) - back)

    # reading --------------------------------------------------------------------------------------

    @rule(place=places, back=backs, type_name=type_names)
    def get_version(self, place: int, back: int, type_name: str | None) -> None:
        """A version as it was; it is held, and what a user writes through it later is stale."""
        flow_id = self.flow_id(place)
        self.read_version(flow_id, self.version_before(flow_id, back), type_name)

    def read_version(self, flow_id: str, version: int, type_name: str | None) -> Copy | None:
        """Read a version, compare it, and hold it."""

        def modelled() -> oracle.Flow | None:
            self.world.forget_expired()
            there = self.world.version(flow_id, version)
            if there is not None and not reads_as(there, type_name):
                raise oracle.Refusal("StateTypeError")

            return there

        done = self.agree(
            lambda: self.api.get(flow_id, TYPES[type_name], version=version), modelled
        )
        if done is None:
            return None

        got, want = done
        what = f"version {version} of"
        assert (got is None) is (want is None), f"{what} {flow_id!r} is {got!r}, expected {want}"
        if want is None:
            return None

        self.same_flow(got, want, what, former=want is not self.world.flows[flow_id])
        return self.keep(self.flows, Copy(got, flow_id, want))

    @rule(place=places, back=backs, change=base.flow_changes, by_id=st.booleans())
    def write_a_former_version(
        self, place: int, back: int, change: tuple[str, Any], by_id: bool
    ) -> None:
        """Write a version that was read, which is stale unless it is the current one; or write on."""
        flow_id = self.flow_id(place)
        copy = self.read_version(flow_id, self.version_before(flow_id, back), None)
        if copy is not None and by_id:
            copy = self.held(self.api.get(flow_id))

        if copy is not None:
            self.change_flow(copy.obj, change)
            self.write_back(copy)

    @rule(
        place=places,
        before=st.one_of(st.none(), backs),
        limit=st.sampled_from([1, 2, 3, _MOST]),
    )
    def list_versions(self, place: int, before: int | None, limit: int) -> None:
        flow_id = self.flow_id(place)
        last = None if before is None else self.version_before(flow_id, before)
        self.versions_agree(flow_id, last, limit)

    def versions_agree(self, flow_id: str, before: int | None, limit: int) -> None:
        """The versions of a flow are what the model says."""
        world = self.world
        world.forget_expired()
        wanted = world.history.listed(flow_id, world.flows.get(flow_id), before, limit)
        found = self.api.list_versions(flow_id, before=before, limit=limit)
        numbers = [one.version for one in found], [flow.version for flow in wanted]
        base.compare(f"the history of {flow_id!r}", {"versions": numbers})
        for one, flow in zip(found, wanted, strict=True):
            self._same_version(flow_id, one, flow)

    def _same_version(self, flow_id: str, found: FlowVersion, want: oracle.Flow) -> None:
        fields: dict[str, tuple[Any, Any]] = {
            "status": (found.status.name, want.status),
            "position": (found.position.path, want.position),
            "error": (found.error, want.error),
            "owner": (found.owner, want.owner),
            "updated_at": (found.updated_at, want.updated),
            "size": (found.size > 0, True),
        }
        base.compare(f"version {want.version} of {flow_id!r}", fields)

    def history_agrees(self) -> None:
        """The versions of flows that were written since they were last compared."""
        for flow_id, flow in sorted(self.world.flows.items()):
            if self.listed_versions.get(flow_id) != flow.stamp:
                self.versions_agree(flow_id, None, _MOST)
                self.listed_versions[flow_id] = flow.stamp

    # forks ----------------------------------------------------------------------------------------

    @rule(
        place=places,
        other=flow_ids,
        is_new=st.booleans(),
        back=st.one_of(st.none(), backs),
    )
    def fork(self, place: int, other: str, is_new: bool, back: int | None) -> None:
        """To a drawn id, or to one that is not taken."""
        self.world.forget_expired()
        free = [one for one in FLOW_IDS if one not in self.world.flows]
        if is_new and free:
            other = free[place % len(free)]

        flow_id = self.flow_id(place)
        version = None if back is None else self.version_before(flow_id, back)
        self.fork_one(flow_id, other, version)

    @rule(place=places, step=st.sampled_from(base.STEPS), back=st.sampled_from([None, None, 0, 1]))
    def fork_with_all(self, place: int, step: int, back: int | None) -> None:
        """A flow with progress, a part and a log is forked, and its log is continued in both."""
        self.world.forget_expired()
        first, second = FLOW_IDS[:2] if place % 2 else FLOW_IDS[1::-1]  # of one partition
        if second in self.world.flows:
            self.delete_many([second])

        if first not in self.world.flows:
            self.create_one({"flow_id": first, "state": {"n": 1, "note": ""}})

        self.save(Copy(ForEachProgress([step]), (first, step)), overwrite=True)
        self.append_one(first, "log", b"before", "k")
        version = None if back is None else self.version_before(first, back)
        self.fork_one(first, second, version)
        for flow_id in (first, second):
            self.append_one(flow_id, "log", b"after", "k")
            self.append_one(flow_id, "log", b"after", None)

    def fork_one(self, flow_id: str, new_id: str, version: int | None) -> None:
        """Fork a version of a flow, and hold the new one."""
        done = self.agree(
            lambda: self.api.fork(flow_id, new_id, version=version),
            lambda: self.world.fork(flow_id, new_id, version),
        )
        if done is not None:
            got, want = done
            assert got.flow_id == new_id
            self.same_flow(got, want, f"the fork of {flow_id!r},")
            self.held(got)
