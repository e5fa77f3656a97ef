"""Rules of the parity machine: sequences that single draws make too rarely to rely on.

Each rule goes straight to a case in which stores have differed: a wait condition that is used again or
moved to another flow, records that have expired and are not swept yet, large states under a claim, and
a flow whose state gets a type.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.copying import CopyReport
from catga_store.copying import copy
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.opening.blocking import MemoryStore
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import Scan
from catga_store.store import Store
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine.base import CHILDREN
from catga_store.testing.machine.base import OWNERS
from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import WAIT_IDS
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_part_sessions import PartSessionRules

__all__ = ["RareCaseRules"]

_LEASE = timedelta(seconds=20)
_MILLISECOND = timedelta(milliseconds=1)
_HUGE = "huge " * 240_000
"""More than any store sends in one message, or keeps beside other records."""

ENDED: dict[FlowStatus, oracle.Result] = {
    FlowStatus.COMPLETED: (True, None, None),
    FlowStatus.FAILED: (False, None, "the flow failed"),
    FlowStatus.CANCELLED: (False, None, "the flow was cancelled"),
}
"""What a flow reports that ends so without an error."""
_DELETED: oracle.Result = (False, None, "the flow was deleted before it had ended")

endings = st.sampled_from(["complete", "cancel", "clear", "leave pending"])


class RareCaseRules(PartSessionRules):
    """The cases of this module, each as one rule."""

    # conditions that are used again or moved ------------------------------------------------------

    @precondition(lambda self: len(self.world.flows) > 1)
    @rule(
        first=places,
        name=st.sampled_from(WAIT_IDS),
        ending=endings,
        notified=st.booleans(),
        changed=st.booleans(),
    )
    def use_a_condition_again(
        self, first: int, name: str, ending: str, notified: bool, changed: bool
    ) -> None:
        """Two flows suspend on one condition, the second after the wait of the first has ended."""
        self.world.forget_expired()
        ids = sorted(self.world.flows)
        if len(ids) < 2:  # noqa: PLR2004  one for each wait
            return

        children: tuple[str, ...] = CHILDREN[:2]
        self.suspend_flow(ids[first % len(ids)], WaitCondition(name, flow_ids=children))
        self.end_condition(name, children, ending)
        if notified:
            self.claim_some(None, _LEASE, 50, OWNERS[0])

        children = CHILDREN[1:] if changed else children
        self.suspend_flow(ids[(first + 1) % len(ids)], WaitCondition(name, flow_ids=children))
        self.end_condition(name, children, "complete")
        self.claim_some(None, _LEASE, 50, OWNERS[1])

    @rule(
        place=places,
        parent=st.sampled_from([None, *base.FLOW_IDS]),
        ending=endings,
        before=st.booleans(),
    )
    def move_a_condition(self, place: int, parent: str | None, ending: str, before: bool) -> None:
        """A condition gets another parent before or after its wait ends; workers come by."""
        self.world.forget_expired()
        name = self.wait_id(place)
        wait = self.api.get_wait_condition(name)
        if wait is None:
            return

        children = wait.flow_ids
        if before:
            self.end_condition(name, children, ending)
            wait = self.api.get_wait_condition(name)

        if wait is not None:
            moved = Copy(wait, name)
            self.keep_wait(moved, results=True)
            wait.parent_flow_id = parent
            self.write_wait(moved)

        if not before:
            self.end_condition(name, children, ending)

        self.claim_some(None, _LEASE, 50, OWNERS[0])

    def suspend_flow(self, flow_id: str, wait: WaitCondition) -> None:
        """Load, suspend and commit in a session, unless the flow has ended."""
        opened = self.open_for(flow_id)
        held = opened.live("flow")
        if held and not held[0].obj.status.is_terminal:
            self.suspend(opened, held[0], wait)
            self.commit(opened)

        self.leave(opened)

    def end_condition(self, name: str, children: tuple[str, ...], ending: str) -> None:
        """End a condition in one of the ways in which waits end."""
        self.world.forget_expired()
        if ending == "complete":
            for number, child in enumerate(children):
                self.complete_one(name, child, (True, number, None))
        elif ending == "clear":
            gone = self.api.clear_wait_condition(name)
            assert gone is self.world.commit([oracle.ClearWait(name)])[0].existed
        elif ending == "cancel":
            wait = self.api.get_wait_condition(name)
            if wait is not None and wait.outcome is WaitOutcome.PENDING:
                held = Copy(wait, name)
                self.keep_wait(held, results=True)
                wait.outcome = WaitOutcome.CANCELLED
                self.write_wait(held)

    # flows that report their end ------------------------------------------------------------------

    @rule(
        name=st.sampled_from(WAIT_IDS[:2]),
        how=st.sampled_from([*ENDED, "snapshot", "id", "many"]),
    )
    def child_reports_its_end(self, name: str, how: FlowStatus | str) -> None:
        """A flow ends in one of the ways in which flows end, and completes its condition by that."""
        self.world.forget_expired()
        child = CHILDREN[2]  # of which conditions wait, and in the partition of these
        if child in self.world.flows:
            return

        flow = FlowSnapshot(child, state={"n": 0, "note": ""}, reports_to=name)
        held = Copy(flow, child)
        self.api.create(flow)
        self.world.commit([self.write(held)])
        held.base = self.world.flows[child]
        if isinstance(how, FlowStatus):
            flow.status = how
            written = self.write(held)
            self.api.update(flow)
            self.world.commit([written, oracle.Complete(name, child, ENDED[how])])

        wanted = self.world.commit([oracle.DeleteFlow(child)])[0].existed
        if how == "many":
            assert self.api.delete_many([child]) == wanted
        else:
            assert self.api.delete(flow if how == "snapshot" else child) is wanted

        if not isinstance(how, FlowStatus):
            self.world.commit([oracle.Complete(name, child, _DELETED)])

    # records that have expired and are not swept --------------------------------------------------

    @rule(
        place=places,
        which=st.integers(0, 3),
        status=st.sampled_from([None, FlowStatus.COMPLETED, FlowStatus.FAILED]),
        early=st.sampled_from([timedelta(0), _MILLISECOND]),
    )
    def look_when_a_record_expires(
        self, place: int, which: int, status: FlowStatus | None, early: timedelta
    ) -> None:
        """At the millisecond at which a record expires, or before it, all ways to look agree."""
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        if status is not None and flow_id in self.world.flows:
            ended = self.held(self.api.get(flow_id))
            self.change_flow(ended.obj, ("status", status))
            self.write_back(ended)

        world = self.world
        expiring = [*world.flows.values(), *world.waits.values()]
        expiries = {one.expires for one in expiring if one.expires is not None}
        coming = sorted(one for one in expiries if one - early > self.now)
        if coming:
            self.pass_time(coming[which % len(coming)] - early - self.clock.now)

        world.forget_expired()
        self.scans_agree()
        self.counts_agree()
        self.numbers_agree()
        if isinstance(self.api.store, Store):
            self.copy_agrees(self.api.store)

    def scans_agree(self) -> None:
        """What a copy would read is what the model has."""
        world = self.world
        wanted: dict[str, set[tuple[str, int]]] = {
            FLOW: {(flow_id, 0) for flow_id in world.flows},
            WAIT: {(name, 0) for name in world.conditions()},
            PROGRESS: set(world.progress),
        }
        self.scan_of_parts_agrees()
        now_ms = (self.now - base.EPOCH) // _MILLISECOND
        for kind, want in wanted.items():
            page: Any = self.api.run(ask(Scan(kind, None, 1000, now_ms)))
            found = {
                (entry.key.id, entry.key.step)
                for entry in page
                if kind != WAIT or entry.record.head.status >= PENDING
            }
            assert found == want, f"a scan of {kind} records found {found}, expected {want}"

    def counts_agree(self) -> None:
        """For each status and type, the count is the length of the list."""
        flows = self.world.flows.values()
        for status in sorted({flow.status for flow in flows}):
            filters: dict[str, Any] = {"status": FlowStatus[status]}
            wanted = self.world.list_flows(status=status)
            assert self.api.count_flows(**filters) == len(wanted), f"count of {status}"

        self.types_agree()

    def types_agree(self) -> None:
        """Each type lists its own flows, and no others."""
        for name in sorted({*filter(None, TYPES)}):
            wanted = self.world.list_flows(type_name=name)
            listed = [one.flow_id for one in self.api.iter_flows(state_type=name)]
            assert listed == wanted, f"flows of the type {name}: {listed}, expected {wanted}"
            assert self.api.count_flows(state_type=name) == len(wanted), f"count of {name}"

    def copy_agrees(self, store: Store) -> None:
        """A copy has what is there, and nothing that has expired."""
        world = self.world
        early = [
            wait for wait in world.waits.values() if isinstance(wait, oracle.PendingCompletions)
        ]
        with MemoryStore(
            clock=self.clock, retention=self.retention, partitions=world.partitions
        ) as other:
            report = copy(store, other)
            assert report == CopyReport(
                len(world.flows),
                len(world.conditions()),
                len(world.progress),
                world.parts.count(),
                sum(len(wait.completions) for wait in early),
            )
            assert other.count_flows() == len(world.flows)
            assert {one.flow_id for one in other.iter_flows()} == world.flows.keys()

    # large states ---------------------------------------------------------------------------------

    @rule(place=places, huge=st.sampled_from([False, False, True]), ends=st.booleans())
    def large_state_under_a_claim(self, place: int, huge: bool, ends: bool) -> None:
        """A large state survives claim, extend and release, as read by another store."""
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        if flow_id not in self.world.flows:
            return

        self.write_note(flow_id, _HUGE if huge else base.LARGE)
        self.claim_one(flow_id, _LEASE, OWNERS[0])
        mine = [one for one in self.claimed() if one.base is self.world.flows[flow_id]]
        if mine:
            self.extend_one(mine[-1], 2 * _LEASE)

        self.read_by_another(flow_id)
        # What stays large makes every later step slow.
        if mine and not ends:
            self.set_note(mine[-1].obj, "small again")
            self.write_back(mine[-1])
        elif mine:
            self.release_one(mine[-1])
            self.read_by_another(flow_id)

        self.write_note(flow_id, "small again")

    def write_note(self, flow_id: str, note: str) -> None:
        """Read a flow, change a text of its state, and write it."""
        self.world.forget_expired()
        if flow_id in self.world.flows:
            held = self.held(self.api.get(flow_id))
            self.set_note(held.obj, note)
            self.write_back(held)

    @staticmethod
    def set_note(flow: FlowSnapshot[Any], note: str) -> None:
        """Change a text of a state, which is a dict or has attributes."""
        if hasattr(flow.state, "note"):
            flow.state.note = note
        else:
            flow.state["note"] = note

    def read_by_another(self, flow_id: str) -> None:
        """Read a flow with a store that has seen none of it, if the records outlive a store."""
        if self.api.durable:
            self.api.reopen()
            self.left_open()

        self.same_flow(self.api.get(flow_id), self.world.flows[flow_id], "read by another store")

    # flows that get a type ------------------------------------------------------------------------

    @rule(place=places, name=st.sampled_from(["Order", "Parcel"]), created=st.booleans())
    def state_gets_a_type(self, place: int, name: str, created: bool) -> None:
        """An untyped flow is read as a type and written: listings have it under the new type only."""
        self.world.forget_expired()
        untyped = [one for one, flow in sorted(self.world.flows.items()) if not flow.type_name]
        if created or not untyped:
            flow_id = self.flow_id(place)
            if flow_id not in self.world.flows:
                self.create_one({"flow_id": flow_id, "state": {"n": 1, "note": ""}})
        else:
            flow_id = untyped[place % len(untyped)]

        flow = self.world.flows.get(flow_id)
        if flow is None or flow.type_name or not isinstance(flow.state["n"], int):
            return

        held = self.held(self.api.get(flow_id, TYPES[name]))
        held.obj.state.n += 1
        self.write_back(held)
        self.types_agree()
