"""Rules of the parity machine: flows, listings, ForEach progress, the clock and the store itself.

One file, and long: each rule is the draw, the call and the model's word for it, and they share how a
flow is picked, changed and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.copying import CopyReport
from catga_store.copying import copy
from catga_store.errors import CommitUncertainError
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.progress import ForEachProgress
from catga_store.opening.blocking import MemoryStore
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import wait_key
from catga_store.store import Store
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine.base import FLOW_IDS
from catga_store.testing.machine.base import STEPS
from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.base import MachineBase

__all__ = ["FlowRules"]

flow_ids = st.sampled_from(FLOW_IDS)
places = st.integers(0, 23)
which = st.integers(0, 5)
type_names = st.sampled_from([None, None, "Order", "Parcel"])
prefixes = st.sampled_from(
    [None, None, "{", "{t}", "{t}:a b.*>\n", "{u}\U0001f98a", "e", "\u00e9", "x"]
)
"""What ids begin with: of one, of several, of none."""
wanted_tags = st.sampled_from([*base.TAGS, {"a": "2"}, {"b:": "", "a": "1"}])


def _filter(pair: tuple[str, Any]) -> dict[str, Any]:
    return dict([pair])


heads: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just(dict[str, Any]()),
    st.tuples(st.just("owner"), st.sampled_from([*base.OWNERS, "x"])).map(_filter),
    st.tuples(st.just("error_contains"), st.sampled_from(["broke", "BROKE", "\U0001f98a\x00"])).map(
        _filter
    ),
    st.tuples(st.just("attempts_at_least"), st.integers(0, 3)).map(_filter),
    st.tuples(st.just("updated_after"), base.offsets).map(_filter),
    st.tuples(st.just("tags"), wanted_tags).map(_filter),
    st.tuples(st.just("tags"), wanted_tags).map(_filter),
)
"""Filters that are checked on heads; at most one, so that some flow matches."""
marks = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=3)


def reads_as(flow: oracle.Flow, type_name: str | None) -> bool:
    """Whether a flow's state can be read as that type: it is of it, or untyped and fits."""
    if type_name is None:
        return True

    if flow.type_name or not type_name:
        return flow.type_name == type_name

    return isinstance(flow.state["n"], int)


class FlowRules(MachineBase):
    """Every operation on flows and on their progress, one at a time."""

    # flows ----------------------------------------------------------------------------------------

    def write(self, copy: Copy) -> oracle.WriteFlow:
        """The write of a copy as it is now."""
        return oracle.WriteFlow(copy.key, draft_of(copy), copy.base, copy.lease)

    def held(self, flow: FlowSnapshot[Any], **claim: Any) -> Copy:
        """Hold a flow that was just read or written."""
        base = self.world.flows[flow.flow_id]
        return self.keep(self.flows, Copy(flow, flow.flow_id, base, **claim))

    @rule(arguments=base.new_flow(flow_ids))
    def create(self, arguments: dict[str, Any]) -> None:
        self.create_one(arguments)

    def create_one(self, arguments: dict[str, Any]) -> None:
        """Create a flow, or find its id taken."""
        flow = self.new_snapshot(arguments)
        copy = Copy(flow, flow.flow_id)
        if self.agree(lambda: self.api.create(flow), lambda: self.world.commit([self.write(copy)])):
            self.same_flow(flow, self.world.flows[flow.flow_id], "created")
            self.held(flow)
        else:
            assert flow.version == 0

    @rule(arguments=base.new_flow(flow_ids))
    def get_or_create(self, arguments: dict[str, Any]) -> None:
        flow = self.new_snapshot(arguments)
        type_name = model_type(flow)
        self.world.forget_expired()
        there = self.world.flows.get(flow.flow_id)

        def modelled() -> bool:
            if there is None:
                self.world.commit([self.write(Copy(flow, flow.flow_id))])
            elif not reads_as(there, type_name):
                raise oracle.Refusal("StateTypeError")

            return there is None

        done = self.agree(lambda: self.api.get_or_create(flow), modelled)
        if done is not None:
            (stored, made), want = done
            assert made is want
            assert (stored is flow) is made
            self.same_flow(stored, self.world.flows[flow.flow_id], "got or created")
            self.held(stored)

    @rule(place=places, type_name=type_names, one=st.booleans())
    def get(self, place: int, type_name: str | None, one: bool) -> None:
        flow_id = self.flow_id(place)

        def modelled() -> oracle.Flow | None:
            self.world.forget_expired()
            there = self.world.flows.get(flow_id)
            if there is None and one:
                raise oracle.Refusal("FlowNotFoundError")

            if there is not None and not reads_as(there, type_name):
                raise oracle.Refusal("StateTypeError")

            return there

        read = self.api.get_one if one else self.api.get
        done = self.agree(lambda: read(flow_id, TYPES[type_name]), modelled)
        if done is not None:
            got, want = done
            assert (got is None) is (want is None)
            if want is not None:
                assert type(got.state) is (TYPES[type_name] or dict)
                self.same_flow(got, want)
                self.held(got)

    @rule(ids=st.lists(flow_ids, max_size=4), type_name=type_names)
    def get_many(self, ids: list[str], type_name: str | None) -> None:
        """Many flows, all read as one type."""
        types: dict[str, str | None] = dict.fromkeys(ids, type_name)
        self.read_many(lambda: self.api.get_many(ids, TYPES[type_name]), types)

    @rule(types=st.dictionaries(flow_ids, type_names, max_size=4))
    def get_many_by_type(self, types: dict[str, str | None]) -> None:
        """Many flows, each read as a type of its own."""
        ids = {flow_id: TYPES[type_name] for flow_id, type_name in types.items()}
        self.read_many(lambda: self.api.get_many(ids), types)

    def read_many(self, call: Callable[[], Any], types: dict[str, str | None]) -> None:
        """Read many flows, and compare and hold each."""

        def modelled() -> dict[str, oracle.Flow | None]:
            self.world.forget_expired()
            found = {flow_id: self.world.flows.get(flow_id) for flow_id in types}
            if not all(each is None or reads_as(each, types[key]) for key, each in found.items()):
                raise oracle.Refusal("StateTypeError")

            return found

        done = self.agree(call, modelled)
        if done is not None:
            got, want = done
            assert list(got) == list(want)
            for flow_id, flow in want.items():
                assert (got[flow_id] is None) is (flow is None)
                if flow is not None:
                    self.same_flow(got[flow_id], flow)
                    self.held(got[flow_id])

    @precondition(lambda self: self.flows)
    @rule(which=which, change=base.flow_changes)
    def update(self, which: int, change: tuple[str, Any]) -> None:
        copy = self.pick(self.flows, which)
        if copy.base is not None:
            self.change_flow(copy.obj, change)
            self.write_back(copy)

    def write_back(self, copy: Copy) -> None:
        """Update a copy, stale or not."""
        before = copy.obj.version, copy.obj.revision, copy.obj.updated_at, draft_of(copy)
        write = self.write(copy)
        if self.agree(lambda: self.api.update(copy.obj), lambda: self.world.commit([write])):
            self.written(copy)
        else:
            after = copy.obj.version, copy.obj.revision, copy.obj.updated_at, draft_of(copy)
            assert before == after, "a refused update has changed the object"

    def written(self, copy: Copy) -> None:
        """A copy takes over what is stored; its claim goes if the flow's has."""
        flow = self.world.flows[copy.key]
        self.same_flow(copy.obj, flow, "written")
        copy.base = flow
        if flow.claim is None:
            copy.lease = copy.claim = None

    @rule(place=places, change=base.flow_changes)
    def edit(self, place: int, change: tuple[str, Any]) -> None:
        """Read, change and write in one go, so that most writes are not stale."""
        flow_id = self.flow_id(place)
        self.world.forget_expired()
        flow = self.api.get(flow_id)
        assert (flow is None) is (flow_id not in self.world.flows)
        if flow is not None:
            copy = self.held(flow)
            self.change_flow(flow, change)
            self.write_back(copy)

    @rule(place=places, amount=st.integers(1, 3))
    def transact(self, place: int, amount: int) -> None:
        flow_id = self.flow_id(place)

        def change(flow: FlowSnapshot[Any]) -> int:
            flow.state["n"] = amount
            flow.position = flow.position.advance()
            return amount

        def modelled() -> int:
            self.world.forget_expired()
            base = self.world.flows.get(flow_id)
            if base is None:
                raise oracle.Refusal("FlowNotFoundError")

            position = (*base.position[:-1], base.position[-1] + 1)
            draft = oracle.Draft(
                {**base.state, "n": amount},
                base.type_name,
                position,
                base.status,
                base.error,
                base.waits_for,
                base.due,
                base.attempts,
                expires=base.expires,
                tags=base.tags,
            )
            self.world.commit([oracle.WriteFlow(flow_id, draft, base)])
            return amount

        done = self.agree(lambda: self.api.transact_one(flow_id, change), modelled)
        assert done is None or done[0] == done[1]

    @rule(
        place=places,
        which=which,
        by=st.sampled_from(["snapshot", "id", "many"]),
    )
    def delete(self, place: int, which: int, by: str) -> None:
        copies = [copy for copy in self.flows if copy.base is not None]
        if by == "many":
            self.delete_many([self.flow_id(place), FLOW_IDS[which % len(FLOW_IDS)]])
            return

        if by == "id" or not copies:
            flow_id = self.flow_id(place)
            self._delete(lambda: self.api.delete(flow_id), oracle.DeleteFlow(flow_id))
            return

        copy = self.pick(copies, which)
        change = oracle.DeleteFlow(copy.key, copy.base, copy.lease is not None)
        self._delete(lambda: self.api.delete(copy.obj), change)

    @precondition(lambda self: any(copy.base is not None for copy in self.flows))
    @rule(which=which, by=st.sampled_from(["both", "revision", "version"]))
    def delete_as_read(self, which: int, by: str) -> None:
        """Delete a flow by id, if it still has the version or the revision of a copy."""
        copy = self.pick([copy for copy in self.flows if copy.base is not None], which)
        self.world.forget_expired()
        there = self.world.flows.get(copy.key)
        names = ("version", "revision") if by == "both" else (by,)
        number = {name: getattr(copy.obj, name) for name in names}
        same = there is not None and (
            there.version == copy.base.version
            if by == "version"
            else there.stamp == copy.base.stamp
        )
        change = oracle.DeleteFlow(copy.key, there if same else copy.base)
        self._delete(lambda: self.api.delete(copy.key, **number), change, facts=by != "revision")

    @rule(place=places, change=base.flow_changes, at=st.sampled_from([1, 1, 2]))
    def delete_and_create(self, place: int, change: tuple[str, Any], at: int) -> None:
        """Delete a flow and create another with its id; then write a copy of the first."""
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        if flow_id not in self.world.flows:
            return

        copy = self.held(self.api.get(flow_id))
        if at == 1:
            self.save(Copy(ForEachProgress([1]), (flow_id, STEPS[0])), overwrite=True)

        self._delete(lambda: self.api.delete(flow_id), oracle.DeleteFlow(flow_id))
        self.create_one({"flow_id": flow_id, "state": {"n": 0, "note": "another"}})
        other = self.flows[-1]
        while other.base.version < min(copy.base.version, at):
            self.write_back(other)

        self.change_flow(copy.obj, change)
        self.write_back(copy)

    def delete_many(self, ids: list[str]) -> None:
        """Delete whatever is stored under some ids, in as many partitions as they are."""

        def modelled() -> int:
            wanted = dict.fromkeys(ids)
            return sum(self.world.commit([oracle.DeleteFlow(each)])[0].existed for each in wanted)

        done = self.agree(lambda: self.api.delete_many(ids), modelled)
        assert done is None or done[0] == done[1], f"deleted: {done}"

    def _delete(self, real: Any, change: oracle.DeleteFlow, *, facts: bool = True) -> None:
        def modelled() -> bool:
            try:
                return self.world.commit([change])[0].existed
            except oracle.Refusal as refusal:
                if refusal.names == ("FlowNotFoundError",):
                    return False

                if not facts:
                    refusal.facts.pop("expected")

                raise

        done = self.agree(real, modelled)
        assert done is None or done[0] is done[1], f"deleted: {done}"

    # listings -------------------------------------------------------------------------------------

    @rule(
        status=st.one_of(st.none(), st.sampled_from(FlowStatus)),
        type_name=type_names,
        as_type=st.booleans(),
        after=st.one_of(st.none(), base.offsets),
        before=st.one_of(st.none(), base.offsets),
        updated=st.one_of(st.none(), base.offsets),
        prefix=prefixes,
        of_head=heads,
        limit=st.integers(1, 3),
    )
    def query_flows(
        self,
        status: FlowStatus | None,
        type_name: str | None,
        as_type: bool,
        after: timedelta | None,
        before: timedelta | None,
        updated: timedelta | None,
        prefix: str | None,
        of_head: dict[str, Any],
        limit: int,
    ) -> None:
        """Page by page, and counted, what matches is what the model says."""
        self.world.forget_expired()
        times = {
            "created_after": self.moment(after),
            "created_before": self.moment(before),
            "updated_before": self.moment(updated),
        }
        if "updated_after" in of_head:
            times["updated_after"] = self.moment(of_head["updated_after"])
            of_head = {}

        up: dict[str, Any] = {name: at and oracle.ceil_ms(at) for name, at in times.items()}
        wanted = self.world.list_flows(
            status=status.name if status else None,
            type_name=type_name,
            id_prefix=prefix,
            **of_head,
            **up,
        )
        filters: dict[str, Any] = {**times, **of_head, "status": status, "id_prefix": prefix}
        filters["state_type"] = TYPES[type_name] if as_type else type_name
        pages = self.pages(self.api.query_flows, limit, **filters)
        assert [summary.flow_id for summary in pages] == wanted
        assert self.api.count_flows(**filters) == len(wanted)
        listed = [summary.flow_id for summary in self.api.iter_flows(**filters)]
        assert listed == wanted

    @precondition(lambda self: not self.reading)
    @rule(
        status=st.sampled_from([None, None, FlowStatus.CREATED, FlowStatus.RUNNING]),
        prefix=prefixes,
    )
    def begin_listing(self, status: FlowStatus | None, prefix: str | None) -> None:
        """Begin to read a listing page by page, while flows come and go between the pages."""
        filters = {"status": status, "id_prefix": prefix}
        self.reading.append({"filters": filters, "cursor": None, "seen": [], "throughout": None})
        self.go_on_listing()

    @precondition(lambda self: self.reading)
    @rule()
    def go_on_listing(self) -> None:
        """Read another page; at the end, each flow that matched throughout was there, once."""
        reading = self.reading[0]
        page = self.api.query_flows(limit=1, cursor=reading["cursor"], **reading["filters"])
        reading["seen"] += [summary.flow_id for summary in page]
        reading["cursor"] = page.cursor
        self.note_matching()
        if page.cursor is None:
            self.reading.clear()
            for flow_id, _ in reading["throughout"]:
                assert reading["seen"].count(flow_id) == 1, (
                    f"{flow_id!r} matched the filters the whole time, but the pages were "
                    f"{reading['seen']}"
                )

    def note_matching(self) -> None:
        """Remember what has matched the listing that is being read since its first page."""
        self.world.forget_expired()
        for reading in self.reading:
            status, prefix = reading["filters"]["status"], reading["filters"]["id_prefix"]
            found = self.world.list_flows(status=status.name if status else None, id_prefix=prefix)
            now = {(flow_id, self.world.flows[flow_id].created) for flow_id in found}
            throughout = reading["throughout"]
            reading["throughout"] = now if throughout is None else throughout & now

    # ForEach progress -----------------------------------------------------------------------------

    def save(self, copy: Copy, *, overwrite: bool) -> None:
        """Save a progress, stale or not."""
        value = base.progress_of(copy.obj)
        flow_id, step = copy.key
        change = oracle.SaveProgress(flow_id, step, value, copy.base, overwrite=overwrite)
        done = self.agree(
            lambda: self.api.save_for_each_progress(*copy.key, copy.obj, overwrite=overwrite),
            lambda: self.world.commit([change]),
        )
        if done is not None:
            copy.base = self.world.progress[copy.key]
            self.same_progress(copy.key, copy.obj, copy.base)

    @rule(flow_id=flow_ids, step=st.sampled_from(STEPS), marks=marks, overwrite=st.booleans())
    def save_new_progress(
        self,
        flow_id: str,
        step: int,
        marks: list[tuple[int, bool]],
        overwrite: bool,
    ) -> None:
        copy = self.keep(self.progress, Copy(ForEachProgress(), (flow_id, step)))
        mark(copy.obj, marks)
        self.save(copy, overwrite=overwrite)

    @precondition(lambda self: self.progress)
    @rule(which=which, marks=marks, overwrite=st.sampled_from([False, False, True]))
    def save_held_progress(
        self,
        which: int,
        marks: list[tuple[int, bool]],
        overwrite: bool,
    ) -> None:
        copy = self.pick(self.progress, which)
        mark(copy.obj, marks)
        self.save(copy, overwrite=overwrite)

    @rule(place=places, step=st.sampled_from(STEPS), clear=st.booleans())
    def get_or_clear_progress(self, place: int, step: int, clear: bool) -> None:
        flow_id = self.flow_id(place)
        self.world.forget_expired()
        found = self.api.get_for_each_progress(flow_id, step)
        want = self.world.progress.get((flow_id, step))
        assert (found is None) is (want is None)
        if want is not None:
            self.same_progress((flow_id, step), found, want)
            self.keep(self.progress, Copy(found, (flow_id, step), want))

        if clear:
            gone = self.api.clear_for_each_progress(flow_id, step)
            done = self.world.commit([oracle.ClearProgress(flow_id, step)])
            assert gone is done[0].existed

    # the clock and the store ----------------------------------------------------------------------

    @rule(span=base.spans)
    def advance(self, span: timedelta) -> None:
        self.pass_time(span)

    @rule(which=st.integers(0, 3), early=st.sampled_from([timedelta(0), timedelta(milliseconds=1)]))
    def advance_to_the_next_event(self, which: int, early: timedelta) -> None:
        """To the very millisecond at which something is due or gone, or to the one before."""
        coming = sorted(moment for moment in self.moments() if moment - early > self.now)
        if coming:
            self.pass_time(coming[which % len(coming)] - early - self.clock.now)

    @rule(
        place=places,
        status=st.sampled_from([FlowStatus.COMPLETED, FlowStatus.FAILED]),
        early=st.sampled_from([timedelta(0), timedelta(milliseconds=1)]),
    )
    def let_it_expire(self, place: int, status: FlowStatus, early: timedelta) -> None:
        """A flow ends, and its retention too, or almost."""
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        if flow_id not in self.world.flows:
            return

        copy = self.held(self.api.get(flow_id))
        self.change_flow(copy.obj, ("status", status))
        self.write_back(copy)
        expires = self.world.flows[flow_id].expires
        if expires is not None:
            self.pass_time(expires - early - self.clock.now)

    def moments(self) -> set[datetime]:
        """When something happens by itself."""
        world = self.world
        moments = {flow.due for flow in world.flows.values()}
        moments |= {flow.expires for flow in world.flows.values()}
        moments |= {wait.expires for wait in world.waits.values()}
        moments |= set(world.parts.orphans.values())
        for wait in world.conditions().values():
            moments |= {wait.deadline, wait.wake}

        return {moment for moment in moments if moment is not None}

    @rule(limit=st.sampled_from([1, 1000, 1000]))
    def sweep(self, limit: int) -> None:
        self.world.forget_expired()
        removed = self.api.sweep(limit)
        self.world.sweep(removed, limit, self.see())

    @precondition(lambda self: self.world.flows and self.world.waits and self.world.progress)
    @rule()
    def clear(self) -> None:
        self.api.clear()
        self.world.clear()

    @precondition(lambda self: isinstance(self.api.store, Store))
    @rule(how=st.sampled_from(["skip", "over", "afresh"]))
    def copy_there_and_back(self, how: str) -> None:
        """To a store in memory, and back: onto what is there, over it, or after a clear."""
        self.world.forget_expired()
        world, api = self.world, self.api
        early = [
            wait for wait in world.waits.values() if isinstance(wait, oracle.PendingCompletions)
        ]
        records = (
            len(world.flows),
            len(world.conditions()),
            len(world.progress),
            world.parts.count(),
        )
        completions = sum(len(wait.completions) for wait in early)
        with MemoryStore(
            clock=self.clock, retention=self.retention, partitions=world.partitions
        ) as other:
            report = copy(api.store, other)
            assert report == CopyReport(*records, completions), report
            if how == "afresh":
                api.clear()

            report = copy(other, api.store, overwrite=how == "over")
            skipped = sum(records) if how == "skip" else 0
            skipped += completions if how != "afresh" else 0
            assert report.skipped == skipped, report

        if how != "skip":
            world.copied(over=how == "over")

        if how == "afresh":
            world.expired = 0

    @rule(place=places, kind=st.sampled_from([flow_key, wait_key]))
    def resolve_what_never_came(self, place: int, kind: Callable[[str], Any]) -> None:
        """A commit that the store has not seen is reported as not applied, and nothing changes."""
        key = kind(self.flow_id(place))
        lost = CommitUncertainError("", commit_id=new_commit_id(), keys=(key,))
        assert self.api.resolve_commit(lost) is None

    @rule()
    def reopen(self) -> None:
        """What is stored outlives the store object, if it is durable."""
        self.api.ping()
        assert self.api.now() == self.now
        if self.api.durable:
            self.api.reopen()
            self.left_open()

    def left_open(self) -> None:
        """Forget the sessions of a store that was closed."""


def draft_of(copy: Copy) -> oracle.Draft:
    """What the user wants the flow of a copy to be."""
    return base.draft_of(copy.obj, copy.base)


def model_type(flow: FlowSnapshot[Any]) -> str | None:
    """The name of a new flow's type, if it has one."""
    return base.draft_of(flow).type_name or None


def mark(progress: ForEachProgress, marks: list[tuple[int, bool]]) -> None:
    """Mark items as a worker would."""
    for index, ok in marks:
        progress.mark(index, ok)
