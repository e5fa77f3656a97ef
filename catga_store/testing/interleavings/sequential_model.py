"""What operations on one flow and one wait condition may return when they come one after the other.

The sequential model of the interleavings: a pure function from a state and an event to the states
that may follow. It is smaller than the parity machine's model and knows less (no clock that moves,
no listings); what it adds is that it can be asked about any order. Revisions are taken from
the events: a model of optimistic locking needs to know only which is which.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from typing import NamedTuple

from catga_store.model.flows import FlowSnapshot
from catga_store.model.waits import WaitCondition
from catga_store.testing.interleavings.histories import NEVER
from catga_store.testing.interleavings.histories import Event
from catga_store.testing.interleavings.sequential_parts import PART_STEPS
from catga_store.testing.interleavings.sequential_parts import Parts
from catga_store.testing.interleavings.sequential_parts import journalled

__all__ = ["Flow", "Refused", "Seen", "State", "Wait", "WaitSeen", "seen_flow", "seen_wait", "step"]

UNKNOWN = "unknown"
"""The revision of a write whose answer was lost, until an actor reads it."""

PARKED, NOW, LATER = "parked", "now", "later"


class Refused(NamedTuple):
    """The answer of an operation that was refused, with these errors, one for each record."""

    names: tuple[str, ...]
    actual: int | None = None
    """The version that the store said it holds, where one record was refused."""


class Seen(NamedTuple):
    """What a reader sees of a flow."""

    revision: str
    version: int
    n: int
    status: str
    owner: str | None
    due: str


class WaitSeen(NamedTuple):
    """What a reader sees of a condition."""

    revision: str
    version: int
    outcome: str
    done: frozenset[str]


class Flow(NamedTuple):
    """A flow, the claim on it, and how its wait had ended when it was claimed because of that."""

    seen: Seen
    claim: str | None = None
    ended: str | None = None


class Wait(NamedTuple):
    """A condition; without children it holds pending completions, or is the tombstone of a cleared one."""

    outcome: str
    revision: str = UNKNOWN
    version: int = 1
    children: frozenset[str] = frozenset()
    any_of: bool = False
    overdue: bool = False
    parent: bool = False
    items: frozenset[tuple[str, bool]] = frozenset()
    notified: bool = False
    kind: str = "condition"

    def done(self) -> frozenset[str]:
        """The children that have completed."""
        return frozenset(child for child, _ in self.items if child in self.children)

    def is_complete(self) -> bool:
        """Whether what has completed is enough."""
        well = any(ok for child, ok in self.items if child in self.children)
        return self.done() == self.children or (self.any_of and well)

    def written(self, **fields: Any) -> Wait:
        """The condition after another write, whose revision no actor has seen yet."""
        return self._replace(revision=UNKNOWN, version=self.version + 1, **fields)


class State(NamedTuple):
    """The two records that the operations are about, and what belongs to the flow."""

    flow: Flow | None = None
    wait: Wait | None = None
    parts: Parts = Parts()


def seen_flow(flow: FlowSnapshot[Any], now: datetime) -> Seen:
    """What a reader sees of a flow at that time."""
    due = PARKED if flow.due_at is None else NOW if flow.due_at <= now else LATER
    n: int = flow.state["n"]
    # The commit alone: on NATS a revision has a sequence, too, which is not known of a write whose reply
    # was lost, and whose record is gone.
    commit_id = (flow.revision or "").partition("@")[0]
    return Seen(commit_id, flow.version, n, flow.status.name, flow.owner, due)


def seen_wait(wait: WaitCondition) -> WaitSeen:
    """What a reader sees of a condition."""
    done = frozenset(wait.results)
    return WaitSeen(wait.revision or "", wait.version, wait.outcome.name, done)


def step(state: State, event: Event) -> Iterable[State]:
    """The states that may follow; none if the operation cannot have that answer."""
    on_parts = PART_STEPS.get(event.name)
    if on_parts is not None:
        return (state._replace(parts=after) for after in on_parts(state.parts, event))

    return _STEPS[event.name](state, event)


# --- flows ----------------------------------------------------------------------------------------


def _is_held(flow: Flow) -> bool:
    return flow.seen.owner is not None and flow.seen.due == LATER


def _is(stored: Seen, seen: Seen) -> bool:
    """Whether a reader may see this; the revision of a write that no actor saw may be any."""
    return seen == stored or (
        stored.revision == UNKNOWN and seen == stored._replace(revision=seen.revision)
    )


def _get(state: State, event: Event) -> Iterable[State]:
    """`get`: given nothing; returns `Seen` or `None`."""
    flow, answer = state.flow, event.answer
    if answer is NEVER or (flow is None and answer is None):
        yield state
    elif flow is not None and answer is not None and _is(flow.seen, answer):
        yield state._replace(flow=flow._replace(seen=answer))


def _create(state: State, event: Event) -> Iterable[State]:
    """`create`: given n; returns `Seen`."""
    answer = event.answer
    if state.flow is not None:
        if answer is NEVER or answer == Refused(("FlowExistsError",), state.flow.seen.version):
            yield state

        return

    want = Seen(UNKNOWN, 1, event.given, "CREATED", None, NOW)
    yield from _after_write(state, Flow(want), answer)


def _after_write(state: State, flow: Flow, answer: Any) -> Iterable[State]:
    if answer is NEVER:
        yield state._replace(flow=flow)
    elif isinstance(answer, Seen) and _is(flow.seen, answer):
        yield state._replace(flow=flow._replace(seen=answer))


class Base(NamedTuple):
    """What a writer had read: the revision, the claim it holds, and when the flow was due."""

    revision: str
    claim: str | None = None
    due: str = NOW


def _refusal(state: State, base: Base) -> Refused | None:
    """Why the store refuses a write that is based on this."""
    flow = state.flow
    if flow is None:
        return Refused(("FlowNotFoundError",))

    if flow.seen.revision == base.revision:
        return None

    name = "StaleFlowError" if base.claim is None else "ClaimLostError"
    return Refused((name,), flow.seen.version)


def _guarded(
    state: State, event: Event, base: Base, write: Callable[[Flow], Iterable[State]]
) -> Iterable[State]:
    """A write that is checked against what was read."""
    refusal = _refusal(state, base)
    if refusal is not None:
        if event.answer in (NEVER, refusal):
            yield state
    else:
        assert state.flow is not None, "an accepted operation must find a flow"
        yield from write(state.flow)


def _update(state: State, event: Event) -> Iterable[State]:
    """`update`: given what was read and the new n; returns `Seen`."""
    base, n = event.given

    def write(flow: Flow) -> Iterable[State]:
        # An owner's write renews the lease; another's writes back when the flow was due as it was read.
        due = LATER if base.claim is not None else base.due
        new = flow.seen._replace(revision=UNKNOWN, version=flow.seen.version + 1, n=n, due=due)
        return _after_write(state, flow._replace(seen=new), event.answer)

    return _guarded(state, event, base, write)


def _transact(state: State, event: Event) -> Iterable[State]:
    """`transact` that adds to n: given how much; returns `Seen`. It meets no conflict."""
    flow = state.flow
    if flow is None:
        if event.answer in (NEVER, Refused(("FlowNotFoundError",))):
            yield state

        return

    seen = flow.seen
    new = seen._replace(revision=UNKNOWN, version=seen.version + 1, n=seen.n + event.given)
    yield from _after_write(state, flow._replace(seen=new), event.answer)


def _delete(state: State, event: Event) -> Iterable[State]:
    """`delete` of what was read; returns whether it was there."""
    refusal = _refusal(state, event.given)
    if refusal is None:
        if event.answer in (NEVER, True):
            yield state._replace(flow=None, parts=Parts())
    elif event.answer in (NEVER, False if state.flow is None else refusal):
        yield state


# --- claims ---------------------------------------------------------------------------------------


def _over(state: State) -> bool:
    """Whether the condition calls for its parent."""
    wait = state.wait
    if wait is None or wait.kind != "condition" or wait.notified or not wait.parent:
        return False

    return wait.outcome != "PENDING" or wait.overdue


class Claimed(NamedTuple):
    """A flow that was claimed: as seen, under which claim, and how its wait had ended."""

    seen: Seen
    claim: str | None
    outcome: str | None = None
    done: frozenset[str] = frozenset()


def _claimed(
    state: State, flow: Flow, owner: str, answer: Claimed | None, *, woken: bool
) -> Iterable[State]:
    """The flow is claimed and notified of its condition; `answer` is `None` if it was lost."""
    seen = flow.seen
    new = seen._replace(revision=UNKNOWN, version=seen.version + 1, owner=owner, due=LATER)
    wait, ended = state.wait, flow.ended
    done: frozenset[str] = frozenset()

    if wait is not None and wait.kind == "condition" and (woken or seen.status == "SUSPENDED"):
        closes = wait.outcome == "PENDING" and wait.overdue
        if closes or wait.outcome != "PENDING":
            ended, done = "TIMED_OUT" if closes else wait.outcome, wait.done()
            # The first notification is written on the condition; so is its end, in the same write.
            if closes or (wait.parent and not wait.notified):
                wait = wait.written(outcome=ended, notified=True)

    if answer is None:
        yield state._replace(flow=Flow(new, UNKNOWN, ended), wait=wait)
    elif _is(new, answer.seen) and (answer.outcome, answer.done) == (ended, done):
        yield state._replace(flow=Flow(answer.seen, answer.claim, ended), wait=wait)
    elif not woken and _is(new, answer.seen) and answer[2:] == (flow.ended, frozenset()):
        # It asked for this flow, and saw its condition before it ended: that calls again.
        yield state._replace(flow=Flow(answer.seen, answer.claim, flow.ended))


def _claim(state: State, event: Event) -> Iterable[State]:
    """`claim`: given the owner; returns `Claimed`."""
    flow, answer = state.flow, event.answer
    if flow is None or _is_held(flow):
        name = "FlowNotFoundError" if flow is None else "FlowClaimedError"
        if answer is NEVER or (isinstance(answer, Refused) and answer.names == (name,)):
            yield state
    elif answer is NEVER or isinstance(answer, Claimed):
        known = None if answer is NEVER else answer
        # It looks for whatever calls for this flow, also if the flow was not suspended on it.
        for woken in {False, _over(state)}:
            yield from _claimed(state, flow, event.given, known, woken=woken)


def _claim_due(state: State, event: Event) -> Iterable[State]:
    """`claim_due`: given the owner; returns `Claimed`, or `None` if it was given nothing."""
    flow, answer = state.flow, event.answer
    free = flow is not None and not _is_held(flow)
    due = flow is not None and free and (flow.seen.due == NOW or _over(state))

    if answer is None or answer is NEVER:
        if not due or answer is NEVER:
            yield state

        wait = state.wait
        if not free and wait is not None and _over(state):
            # It is closed even if its parent is held; if its parent is gone, no flow is left to notify.
            ended = "TIMED_OUT" if wait.outcome == "PENDING" else wait.outcome
            if flow is None or ended != wait.outcome:
                yield state._replace(wait=wait.written(outcome=ended, notified=flow is None))

    if due and flow is not None and (answer is NEVER or isinstance(answer, Claimed)):
        known = None if answer is NEVER else answer
        # A flow that is due by itself may be come upon without its condition.
        for woken in {_over(state), flow.seen.due != NOW}:
            yield from _claimed(state, flow, event.given, known, woken=woken)


def _extend(state: State, event: Event) -> Iterable[State]:
    """`extend`: given the claim; returns `None`."""
    flow = state.flow
    mine = flow is not None and flow.claim == event.given
    if flow is not None and mine and event.answer in (NEVER, None):
        yield state._replace(flow=flow._replace(seen=flow.seen._replace(due=LATER)))
    elif not mine and event.answer in (NEVER, Refused(("ClaimLostError",))):
        yield state


def _release(state: State, event: Event) -> Iterable[State]:
    """`release`: given what was read; returns `Seen`."""

    def write(flow: Flow) -> Iterable[State]:
        new = flow.seen._replace(
            revision=UNKNOWN, version=flow.seen.version + 1, owner=None, due=NOW
        )
        return _after_write(state, Flow(new, None, flow.ended), event.answer)

    return _guarded(state, event, event.given, write)


# --- conditions -----------------------------------------------------------------------------------


class Terms(NamedTuple):
    """The definition of a condition; whether its deadline has passed already."""

    children: frozenset[str]
    any_of: bool = False
    overdue: bool = False
    parent: bool = False


def _set_in(old: Wait | None, terms: Terms) -> tuple[Wait, bool]:
    """The condition after a `set`, and whether it was written."""
    if old is not None and old.kind == "condition" and old.outcome != "PENDING":
        return old, False

    items = frozenset[tuple[str, bool]]() if old is None or old.kind == "tombstone" else old.items
    version = old.version + 1 if old is not None and old.kind == "condition" else 1
    new = Wait("PENDING", UNKNOWN, version, *terms, items=items)
    return (new._replace(outcome="SATISFIED") if new.is_complete() else new), True


def _set(state: State, event: Event) -> Iterable[State]:
    """`set_wait_condition`: given the terms; returns (was it satisfied by this, `WaitSeen`)."""
    wait, written = _set_in(state.wait, event.given)
    if event.answer is NEVER:
        yield state._replace(wait=wait)
        return

    satisfied, seen = event.answer
    same = (seen.version, seen.outcome) == (wait.version, wait.outcome)
    if (
        same
        and wait.revision in (UNKNOWN, seen.revision)
        and satisfied is (written and wait.outcome == "SATISFIED")
    ):
        yield state._replace(wait=wait._replace(revision=seen.revision))


def _complete(state: State, event: Event) -> Iterable[State]:
    """`complete_child`: given the child and its success; returns the fields of `Completion`."""
    wait, (child, ok) = state.wait, event.given
    after = wait
    want: tuple[bool, bool, bool, str | None]
    if wait is None or wait.kind == "pending":
        items = frozenset[tuple[str, bool]]() if wait is None else wait.items
        known = any(name == child for name, _ in items)
        want = (not known, known, False, None)
        if not known:
            after = Wait("", items=items | {(child, ok)}, kind="pending")
    elif wait.kind == "tombstone":
        want = (False, False, False, wait.outcome)
    elif any(name == child for name, _ in wait.items):
        want = (False, True, False, wait.outcome)
    elif wait.outcome != "PENDING" or child not in wait.children:
        want = (False, False, False, wait.outcome)
    else:
        after = wait._replace(items=wait.items | {(child, ok)})
        if after.is_complete():
            after = after.written(outcome="SATISFIED")

        want = (True, False, after.outcome == "SATISFIED", after.outcome)

    if event.answer in (NEVER, want):
        yield state._replace(wait=after)


def _get_wait(state: State, event: Event) -> Iterable[State]:
    """`get_wait_condition`: returns `WaitSeen` or `None`."""
    wait, answer = state.wait, event.answer
    there = wait is not None and wait.kind == "condition"
    if answer is NEVER or (not there and answer is None):
        yield state
    elif wait is not None and there and answer is not None:
        same = wait.revision in (UNKNOWN, answer.revision)
        want = wait.version, wait.outcome, wait.done()
        if same and answer[1:] == want:
            yield state._replace(wait=wait._replace(revision=answer.revision))


def _wait_refusal(state: State, revision: str) -> str | None:
    wait = state.wait
    if wait is None or wait.kind != "condition":
        return "WaitConditionNotFoundError"

    return None if wait.revision == revision else "StaleWaitConditionError"


def _close(state: State, event: Event) -> Iterable[State]:
    """`update_wait_condition` to `TIMED_OUT`: given the revision read; returns `WaitSeen`."""
    wait, answer = state.wait, event.answer
    refusal = _wait_refusal(state, event.given)
    if refusal is not None or wait is None:
        if answer is NEVER or (isinstance(answer, Refused) and answer.names == (refusal,)):
            yield state

        return

    after = wait.written(outcome="TIMED_OUT")
    if answer is NEVER:
        yield state._replace(wait=after)
    elif isinstance(answer, WaitSeen) and answer[1:3] == (after.version, "TIMED_OUT"):
        yield state._replace(wait=after._replace(revision=answer.revision))


def _clear(state: State, event: Event) -> Iterable[State]:
    """`clear_wait_condition`: returns whether it was there."""
    wait = state.wait
    there = wait is not None and wait.kind == "condition"
    if event.answer not in (NEVER, there):
        return

    if wait is None or wait.kind == "tombstone":
        yield state
    elif wait.kind == "pending":
        yield state  # completions without a condition are not cleared
    else:
        outcome = "CANCELLED" if wait.outcome == "PENDING" else wait.outcome
        yield state._replace(wait=Wait(outcome, kind="tombstone"))


# --- two records in one commit ----------------------------------------------------------------------


def _suspend(state: State, event: Event) -> Iterable[State]:
    """`suspend` and commit: given what was read and the terms; returns (`Seen`, outcome)."""
    base, terms = event.given

    def write(flow: Flow) -> Iterable[State]:
        wait, written = _set_in(state.wait, terms)
        if not written:  # a condition that has ended: the flow becomes its parent, and is notified
            wait = (wait if wait.parent else wait.written(parent=True))._replace(notified=False)

        new = flow.seen._replace(
            revision=UNKNOWN,
            version=flow.seen.version + 1,
            status="SUSPENDED",
            owner=None,
            due=PARKED,
        )
        if event.answer is NEVER:
            return [state._replace(flow=Flow(new), wait=wait)]

        if isinstance(event.answer, Refused) or event.answer[1] != wait.outcome:
            return []

        return _after_write(state._replace(wait=wait), Flow(new), event.answer[0])

    return _guarded(state, event, base, write)


def _time_out(state: State, event: Event) -> Iterable[State]:
    """A sweeper's commit: closes the condition and resumes the parent, both as they were read.

    Given what was read of either; returns `Seen`.
    """
    base, revision = event.given
    flow_refusal, wait_refusal = _refusal(state, base), _wait_refusal(state, revision)
    names = (
        *(flow_refusal.names if flow_refusal else ()),
        *([wait_refusal] if wait_refusal else []),
    )
    answer = event.answer
    if names or state.flow is None or state.wait is None:
        refused = isinstance(answer, Refused) and sorted(answer.names) == sorted(names)
        if answer is NEVER or refused:
            yield state

        return

    seen = state.flow.seen
    new = seen._replace(revision=UNKNOWN, version=seen.version + 1, status="RUNNING", due=NOW)
    new = new._replace(owner=None)  # it was given another due time
    wait = state.wait.written(outcome="TIMED_OUT")
    yield from _after_write(state._replace(wait=wait), Flow(new), answer)


def _journal(state: State, event: Event) -> Iterable[State]:
    """A commit of the flow, an entry and a part that is kept; given what was read, the new n and the key.

    Returns (`Seen`, the sequence, whether it was a duplicate, whether the part was kept).
    """
    base, n, key = event.given

    def write(flow: Flow) -> Iterable[State]:
        due = LATER if base.claim is not None else base.due
        version = flow.seen.version + 1
        new = flow.seen._replace(revision=UNKNOWN, version=version, n=n, due=due)
        seen, *answer = (NEVER, NEVER) if event.answer is NEVER else event.answer
        after, *did = journalled(state.parts, key, n, version)
        if event.answer is NEVER or answer == did:
            yield from _after_write(state._replace(parts=after), flow._replace(seen=new), seen)

    if isinstance(event.answer, Refused) and _refusal(state, base) is None:
        return ()

    return _guarded(state, event, base, write)


def _advance(state: State, _event: Event) -> Iterable[State]:
    """The clock: whatever lease there was has ended."""
    flow = state.flow
    if flow is not None and flow.seen.due == LATER:
        flow = flow._replace(seen=flow.seen._replace(due=NOW))

    yield state._replace(flow=flow)


_STEPS: dict[str, Callable[[State, Event], Iterable[State]]] = {
    "advance": _advance,
    "claim": _claim,
    "claim_due": _claim_due,
    "clear": _clear,
    "close": _close,
    "complete": _complete,
    "create": _create,
    "delete": _delete,
    "extend": _extend,
    "get": _get,
    "get_wait": _get_wait,
    "journal": _journal,
    "release": _release,
    "set": _set,
    "suspend": _suspend,
    "time_out": _time_out,
    "transact": _transact,
    "update": _update,
}
