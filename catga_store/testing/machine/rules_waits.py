"""Rules of the parity machine: wait conditions and completions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.model.waits import WaitType
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine.base import CHILDREN
from catga_store.testing.machine.base import FLOW_IDS
from catga_store.testing.machine.base import WAIT_IDS
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.rules_flows import FlowRules
from catga_store.testing.machine.rules_flows import places

__all__ = ["WaitRules", "new_wait"]

wait_ids = st.sampled_from(WAIT_IDS)
children = st.lists(st.sampled_from(CHILDREN), min_size=1, max_size=3, unique=True)
timeouts = st.sampled_from([None, timedelta(seconds=1), timedelta(seconds=30), timedelta(0)])
results = st.one_of(st.none(), st.integers(), st.just({"parcel": [1, None, "🦊\x00"]}))


@st.composite
def new_wait(draw: st.DrawFn, parents: st.SearchStrategy[str | None]) -> dict[str, Any]:
    """Draw the arguments of a new `WaitCondition`."""
    return {
        "correlation_id": draw(wait_ids),
        "flow_ids": draw(children),
        "wait_type": draw(st.sampled_from(WaitType)),
        "timeout": draw(timeouts),
        "parent_flow_id": draw(parents),
    }


class WaitRules(FlowRules):
    """Every operation on wait conditions, one at a time."""

    def set_change(self, wait: WaitCondition) -> oracle.SetWait:
        """The setting of a condition."""
        created = wait.created_at
        return oracle.SetWait(wait.correlation_id, base.terms_of(wait), created)

    @rule(
        arguments=new_wait(st.sampled_from([None, None, *FLOW_IDS])),
        created=st.sampled_from([None, None, timedelta(seconds=-5), timedelta(seconds=5)]),
    )
    def set_wait(self, arguments: dict[str, Any], created: timedelta | None) -> None:
        wait = WaitCondition(**arguments, created_at=self.moment(created))
        self.set_one(Copy(wait, wait.correlation_id))

    @precondition(lambda self: self.waits)
    @rule(which=st.integers(0, 5), any_of=st.sampled_from(WaitType))
    def set_held_wait(self, which: int, any_of: WaitType) -> None:
        copy = self.pick(self.waits, which)
        copy.obj.wait_type = any_of
        self.set_one(copy)

    def set_one(self, copy: Copy) -> None:
        """Set a condition; one that has ended is returned instead of written."""
        change = self.set_change(copy.obj)
        done = self.agree(
            lambda: self.api.set_wait_condition(copy.obj), lambda: self.world.commit([change])
        )
        if done is not None:
            got, want = done
            assert got is want[0].now_satisfied, f"set returned {got}, {want}"
            self.keep_wait(copy, results=False)

    def keep_wait(self, copy: Copy, *, results: bool) -> None:
        """Hold a condition that was just read or written."""
        want = self.world.wait(copy.key)
        assert want is not None
        self.same_wait(copy.obj, want, results=results)
        copy.base = want
        if copy not in self.waits:
            self.keep(self.waits, copy)

    @rule(place=places, clear=st.sampled_from([False, False, True]))
    def get_or_clear_wait(self, place: int, clear: bool) -> None:
        name = self.wait_id(place)
        self.world.forget_expired()
        wait = self.api.get_wait_condition(name)
        assert (wait is None) is (self.world.wait(name) is None)
        if wait is not None:
            self.keep_wait(Copy(wait, name), results=True)

        if clear:
            gone = self.api.clear_wait_condition(name)
            done = self.world.commit([oracle.ClearWait(name)])
            assert gone is done[0].existed

    @precondition(lambda self: self.waits)
    @rule(
        which=st.integers(0, 5),
        outcome=st.sampled_from([None, *WaitOutcome]),
        flow_ids=st.one_of(st.none(), children),
        timeout=st.one_of(st.just("as it is"), timeouts),
        parent=st.sampled_from(["as it is", "as it is", "as it is", None, *FLOW_IDS]),
    )
    def update_wait(
        self,
        which: int,
        outcome: WaitOutcome | None,
        flow_ids: list[str] | None,
        timeout: Any,
        parent: str | None,
    ) -> None:
        copy = self.pick(self.waits, which)
        wait = copy.obj
        if outcome is not None:
            wait.outcome = outcome

        if flow_ids is not None:
            wait.flow_ids = flow_ids

        if timeout != "as it is":
            wait.timeout = timeout

        if parent != "as it is":
            wait.parent_flow_id = parent

        self.write_wait(copy)
        if base.reopens(
            copy, wait.outcome
        ):  # refused; otherwise this object could not be written again
            wait.outcome = WaitOutcome[copy.base.outcome]

    @rule(place=places)
    def time_out(self, place: int) -> None:
        """What a sweeper does with a condition: read it, close it, write it."""
        name = self.wait_id(place)
        self.world.forget_expired()
        wait = self.api.get_wait_condition(name)
        if wait is not None and wait.outcome is WaitOutcome.PENDING:
            copy = Copy(wait, name)
            self.keep_wait(copy, results=True)
            wait.outcome = WaitOutcome.TIMED_OUT
            self.write_wait(copy)

    def write_wait(self, copy: Copy) -> None:
        """Update a condition, stale or not."""
        wait = copy.obj
        change = oracle.UpdateWait(copy.key, base.terms_of(wait), wait.outcome.name, copy.base)
        done = self.agree(
            lambda: self.api.update_wait_condition(wait), lambda: self.world.commit([change])
        )
        if done is not None:
            got, want = done
            assert got is want[0].now_satisfied, f"update returned {got}, {want}"
            self.keep_wait(copy, results=False)

    @rule(
        place=places,
        which=st.integers(0, 11),
        success=st.sampled_from([True, True, False]),
        result=results,
        error=st.sampled_from([None, "no: 🦊"]),
    )
    def complete(
        self,
        place: int,
        which: int,
        success: bool,
        result: Any,
        error: str | None,
    ) -> None:
        """A child completes: early, in time, again, late, or as a stranger."""
        name = self.wait_id(place)
        self.complete_one(name, self.child_of(name, which), (success, result, error))

    @rule(
        place=places,
        order=st.permutations(CHILDREN[:3]),
        wait_type=st.sampled_from(WaitType),
        failed=st.integers(0, 3),
    )
    def fan_in(self, place: int, order: list[str], wait_type: WaitType, failed: int) -> None:
        """Three children, each of which says twice that it is done, in any order."""
        name = self.wait_id(place)
        wait = WaitCondition(name, flow_ids=CHILDREN[:3], wait_type=wait_type)
        self.set_one(Copy(wait, name))
        for number, child in enumerate(order):
            for _ in range(2):
                self.complete_one(name, child, (number >= failed, number, None))

    def child_of(self, name: str, which: int) -> str:
        """Mostly a child of that condition."""
        self.world.forget_expired()
        wait = self.world.wait(name)
        own = CHILDREN if wait is None or which < len(CHILDREN) else wait.terms.children
        return own[which % len(own)]

    def complete_one(self, name: str, child: str, result: oracle.Result) -> None:
        """Complete one child."""
        success, value, error = result
        done = self.agree(
            lambda: self.api.complete_child(
                name, child, success=success, result=value, error=error
            ),
            lambda: self.world.commit([oracle.Complete(name, child, result)])[0],
        )
        assert done is not None
        same_completion(*done)

    @rule(which=st.integers(0, 3), result=results, again=st.booleans())
    def complete_what_is_awaited(self, which: int, result: Any, again: bool) -> None:
        """A child that is awaited completes, so that waits end; perhaps it says so twice."""
        self.world.forget_expired()
        awaited = [
            (name, child)
            for name, wait in sorted(self.world.conditions().items())
            for child in wait.terms.children
            if wait.outcome == "PENDING" and child not in wait.completions
        ]
        if awaited:
            name, child = awaited[which % len(awaited)]
            for _ in range(2 if again else 1):
                self.complete_one(name, child, (True, result, None))

    @rule(offset=base.offsets, limit=st.sampled_from([None, 1]))
    def timed_out(self, offset: timedelta | None, limit: int | None) -> None:
        self.world.forget_expired()
        now = self.moment(offset)
        wanted = self.world.list_overdue(self.now if now is None else oracle.floor_ms(now))
        found = self.api.get_timed_out_wait_conditions(now, limit)
        assert [wait.correlation_id for wait in found] == wanted[:limit]
        for wait in found:
            self.same_wait(wait, self.world.conditions()[wait.correlation_id])

    @rule(
        outcome=st.sampled_from([None, *WaitOutcome]),
        parent=st.sampled_from([None, *FLOW_IDS]),
        limit=st.integers(1, 3),
    )
    def query_waits(self, outcome: WaitOutcome | None, parent: str | None, limit: int) -> None:
        self.world.forget_expired()
        wanted = self.world.list_waits(outcome=outcome.name if outcome else None, parent=parent)
        filters = {"outcome": outcome, "parent_flow_id": parent}
        pages = self.pages(self.api.query_wait_conditions, limit, **filters)
        assert [wait.correlation_id for wait in pages] == wanted
        listed = [wait.correlation_id for wait in self.api.iter_wait_conditions(**filters)]
        assert listed == wanted


def same_completion(got: Any, want: oracle.Done) -> None:
    """A completion did what the model says."""
    outcome = None if got.outcome is None else got.outcome.name
    fields = (got.accepted, got.duplicate, got.now_satisfied, outcome)
    wanted = (want.accepted, want.duplicate, want.now_satisfied, want.outcome)
    assert fields == wanted, f"the completion returned {fields}, expected {wanted}"
