"""Rules of the parity machine: claims, leases and wake-ups."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.core.state_types import RAW
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine.base import OWNERS
from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_flows import reads_as
from catga_store.testing.machine.rules_flows import wanted_tags
from catga_store.testing.machine.rules_waits import WaitRules

__all__ = ["ClaimRules"]

owners = st.sampled_from(OWNERS)

CLAIMED_AS: dict[str | None, Any] = {**TYPES, None: RAW, "": None}
"""What a claim is asked for: `None` in the model is any type, `""` only untyped flows."""

_FIELDS = "state", "position", "status", "error", "due", "attempts", "expires", "waits_for", "tags"


def is_changed(copy: Copy) -> bool:
    """Whether a flow differs from what it was read or written as."""
    draft = base.draft_of(copy.obj, copy.base)
    return any(getattr(draft, name) != getattr(copy.base, name) for name in _FIELDS)


class ClaimRules(WaitRules):
    """Every operation on claims."""

    @rule(
        type_name=st.sampled_from([None, None, None, "Order", ""]),
        lease=base.spans,
        limit=st.sampled_from([1, 1, 2, 50, 50]),
        owner=owners,
        tags=st.one_of(st.none(), st.none(), wanted_tags),
        in_session=st.booleans(),
        wait=st.sampled_from([timedelta(0), timedelta(0), timedelta(milliseconds=1)]),
    )
    def claim_due(
        self,
        type_name: str | None,
        lease: timedelta,
        limit: int,
        owner: str,
        tags: dict[str, str] | None,
        in_session: bool,
        wait: timedelta,
    ) -> None:
        self.claim_some(type_name, lease, limit, owner, tags=tags, in_session=in_session, wait=wait)

    def claim_some(
        self,
        type_name: str | None,
        lease: timedelta,
        limit: int,
        owner: str,
        *,
        tags: dict[str, str] | None = None,
        in_session: bool = False,
        wait: timedelta = timedelta(0),
    ) -> None:
        """Claim what is due, perhaps in a session that is closed afterwards.

        The clock stands still while it waits, so nothing becomes due meanwhile.
        """
        self.world.forget_expired()
        claimer: Any = self.api.session() if in_session else self.api
        flows = claimer.claim_due(
            CLAIMED_AS[type_name], lease=lease, limit=limit, owner=owner, tags=tags, wait=wait
        )
        if in_session:
            assert all(flow in claimer for flow in flows)
            claimer.close()

        self.world.claim_due(
            [(flow.flow_id, base.shown_of(flow.wait_condition)) for flow in flows],
            self.see(),
            type_name=type_name,
            tags=tags,
            lease=in_ms(lease),
            limit=limit,
            owner=owner,
            reads=lambda flow: reads_as(flow, type_name),
        )
        for flow in flows:
            self.taken(flow, lease)

    @rule(
        type_name=st.sampled_from([None, "Order", ""]),
        tags=st.one_of(st.none(), wanted_tags),
        timeout=st.sampled_from([timedelta(0), timedelta(milliseconds=1)]),
    )
    def wait_due(
        self, type_name: str | None, tags: dict[str, str] | None, timeout: timedelta
    ) -> None:
        """Whether something is due; nothing becomes due while it waits."""
        self.world.forget_expired()
        is_due = bool(self.world.due_flows(type_name, tags) or self.world.calling(type_name, tags))
        assert self.api.wait_due(CLAIMED_AS[type_name], tags=tags, timeout=timeout) is is_due

    @rule(
        place=places,
        type_name=st.sampled_from([None, "Order"]),
        after=st.integers(0, 3),
        timeout=st.sampled_from([timedelta(0), timedelta(milliseconds=1)]),
    )
    def watch(self, place: int, type_name: str | None, after: int, timeout: timedelta) -> None:
        """A flow at a later version than one that was seen, if it is at one."""
        flow_id = self.flow_id(place)

        def modelled() -> oracle.Flow | None:
            self.world.forget_expired()
            there = self.world.flows.get(flow_id)
            if there is None or there.version <= after:
                return None

            if not reads_as(there, type_name):
                raise oracle.Refusal("StateTypeError")

            return there

        done = self.agree(
            lambda: self.api.watch(flow_id, TYPES[type_name], after=after, timeout=timeout),
            modelled,
        )
        if done is not None:
            got, want = done
            assert (got is None) is (want is None)
            if want is not None:
                self.same_flow(got, want, "watched")
                self.held(got)

    @rule(
        which=st.integers(0, 3),
        how=st.sampled_from(["complete", "twice", "deadline", "almost"]),
        lease=base.spans,
        limit=st.sampled_from([1, 50]),
    )
    def end_a_wait(self, which: int, how: str, lease: timedelta, limit: int) -> None:
        """A wait ends, or almost, and a worker comes by."""
        self.world.forget_expired()
        waits = [
            (name, wait)
            for name, wait in sorted(self.world.conditions().items())
            if wait.terms.parent is not None and wait.outcome == "PENDING"
        ]
        if waits:
            name, wait = waits[which % len(waits)]
            if how in ("complete", "twice"):
                for child in wait.terms.children:
                    for _ in range(2 if how == "twice" else 1):
                        self.complete_one(name, child, (which != 1, which, None))
            elif wait.deadline is not None and wait.deadline > self.now:
                early = timedelta(milliseconds=how == "almost")
                self.pass_time(wait.deadline - early - self.clock.now)

            self.claim_some(None, lease, limit, OWNERS[0])

    def taken(self, flow: Any, lease: timedelta) -> None:
        """Hold a flow that was just claimed; a wait that has ended shows its results."""
        want = self.world.flows[flow.flow_id]
        self.same_flow(flow, want, "claimed")
        self.held(flow, lease=in_ms(lease), claim=want.claim)
        shown: WaitCondition | None = flow.wait_condition
        wait = None if shown is None else self.world.wait(shown.correlation_id)
        if shown is None or shown.outcome is WaitOutcome.PENDING or wait is None:
            return

        if (wait.outcome, wait.created) == (shown.outcome.name, shown.created_at):
            done = wait.completions.items()
            results = {child: result for child, result in done if child in shown.flow_ids}
            assert base.result_of(shown) == results, f"{shown} has {base.result_of(shown)}"

    @rule(
        place=places,
        lease=base.spans,
        owner=owners,
        type_name=st.sampled_from([None, None, None, "Order", ""]),
        timeout=st.sampled_from([timedelta(0), timedelta(0), timedelta(milliseconds=1)]),
        in_session=st.booleans(),
    )
    def claim(
        self,
        place: int,
        lease: timedelta,
        owner: str,
        type_name: str | None,
        timeout: timedelta,
        in_session: bool,
    ) -> None:
        self.claim_one(self.flow_id(place), lease, owner, type_name, timeout, in_session=in_session)

    def claim_one(
        self,
        flow_id: str,
        lease: timedelta,
        owner: str,
        type_name: str | None = None,
        timeout: timedelta = timedelta(0),
        *,
        in_session: bool = False,
    ) -> None:
        """Claim a flow, or find it claimed: the clock stands still while it waits for another's end."""
        self.world.forget_expired()
        claimer: Any = self.api.session() if in_session else self.api
        done = self.agree(
            lambda: claimer.claim(
                flow_id, CLAIMED_AS[type_name], lease=lease, timeout=timeout, owner=owner
            ),
            lambda: self.world.claim(
                flow_id, owner, in_ms(lease), lambda flow: reads_as(flow, type_name)
            ),
        )
        if in_session:
            assert done is None or done[0] in claimer
            claimer.close()

        if done is not None:
            flow, claimed = done
            if claimed:
                self.taken(flow, lease)
            else:
                self.same_flow(flow, self.world.flows[flow_id], "returned as it is")
                self.held(flow)

    def claimed(self) -> list[Copy]:
        """What is held under a claim."""
        return [copy for copy in self.flows if copy.lease is not None]

    @precondition(lambda self: self.claimed())
    @rule(which=st.integers(0, 3), lease=st.one_of(st.none(), base.spans))
    def extend(self, which: int, lease: timedelta | None) -> None:
        self.extend_one(self.pick(self.claimed(), which), lease)

    def extend_one(self, copy: Copy, lease: timedelta | None) -> None:
        """Extend a claim, or find it lost."""
        before = copy.obj.version, copy.obj.revision, copy.obj.due_at
        span = copy.lease if lease is None else in_ms(lease)
        assert span is not None
        self.agree(
            lambda: self.api.extend(copy.obj, lease),
            lambda: self.world.extend(copy.key, copy.claim or 0, span),
        )
        assert before == (copy.obj.version, copy.obj.revision, copy.obj.due_at)

    @precondition(lambda self: self.claimed())
    @rule(which=st.integers(0, 3), lease=st.one_of(st.none(), base.spans))
    def hold(self, which: int, lease: timedelta | None) -> None:
        """A block that holds a claim begins with an extension; none comes later, it is that short."""
        copy = self.pick(self.claimed(), which)
        span = copy.lease if lease is None else in_ms(lease)
        assert span is not None

        def held() -> None:
            with self.api.holding(copy.obj, lease=lease):
                pass

        self.agree(held, lambda: self.world.extend(copy.key, copy.claim or 0, span))

    @rule(
        place=places,
        how=st.sampled_from(["write", "release"]),
        change=base.flow_changes,
        late=st.sampled_from([timedelta(0), timedelta(milliseconds=-1)]),
    )
    def lose_a_claim(self, place: int, how: str, change: tuple[str, Any], late: timedelta) -> None:
        """A lease ends, or almost, another owner claims the flow, and its first owner comes back."""
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        lease = timedelta(seconds=1)
        if flow_id not in self.world.flows:
            return

        self.claim_one(flow_id, lease, OWNERS[0])
        flow = self.world.flows[flow_id]
        mine = [copy for copy in self.claimed() if copy.base is flow]
        if not mine:
            return

        copy = mine[0]
        self.pass_time(lease + late)
        self.claim_one(flow_id, lease, OWNERS[1])
        self.extend_one(copy, None)
        if how == "release":
            self.release_one(copy)
        else:
            self.change_flow(copy.obj, change)
            self.write_back(copy)

    @rule(place=places, which=st.integers(0, 3), offset=base.offsets, at_once=st.booleans())
    def release(self, place: int, which: int, offset: timedelta | None, at_once: bool) -> None:
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        if not self.claimed() and flow_id in self.world.flows:
            self.claim_one(flow_id, timedelta(seconds=1), OWNERS[0])

        if self.claimed():
            self.release_one(self.pick(self.claimed(), which), offset, at_once=at_once)

    def release_one(
        self, copy: Copy, offset: timedelta | None = None, *, at_once: bool = True
    ) -> None:
        """Give a claim back, or find it lost."""
        due = self.moment(offset)
        given: dict[str, Any] = {} if at_once else {"due_at": due}
        modelled = oracle.AT_ONCE if at_once else due and oracle.ceil_ms(due)
        before = base.draft_of(copy.obj, copy.base)
        done = self.agree(
            lambda: self.api.release(copy.obj, **given),
            lambda: self.world.release(copy.key, copy.base, modelled, changed=is_changed(copy)),
        )
        if done is not None:
            want = self.world.flows[copy.key]
            after = base.draft_of(copy.obj, copy.base)
            assert (after.state, after.status) == (before.state, before.status)
            assert (after.due, after.attempts) == (want.due, before.attempts)
            assert copy.obj.version == want.version
            copy.base, copy.lease, copy.claim = want, None, None

    @precondition(lambda self: self.claimed())
    @rule(which=st.integers(0, 3), change=base.flow_changes)
    def owner_writes(self, which: int, change: tuple[str, Any]) -> None:
        """The owner, or a former owner, writes."""
        copy = self.pick(self.claimed(), which)
        self.change_flow(copy.obj, change)
        self.write_back(copy)


def in_ms(span: timedelta) -> timedelta:
    """A span in whole milliseconds, rounded up."""
    return -(-span // timedelta(milliseconds=1)) * timedelta(milliseconds=1)
