"""Rules of the parity machine: several sessions at once, each with its model (`session_model`).

Over 400 lines: each operation of a session is one rule, and all share how a record is loaded, tracked
and compared.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.errors import CommitUncertainError
from catga_store.errors import UsageError
from catga_store.model.progress import ForEachProgress
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import part_key
from catga_store.protocol.keys import progress_key
from catga_store.protocol.keys import wait_key
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine import parts_model
from catga_store.testing.machine.base import CHILDREN
from catga_store.testing.machine.base import FLOW_IDS
from catga_store.testing.machine.base import STEPS
from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import WAIT_IDS
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.part_draws import BODY_TYPES
from catga_store.testing.machine.part_draws import reads_part_as
from catga_store.testing.machine.rules_flows import mark
from catga_store.testing.machine.rules_flows import marks
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_flows import reads_as
from catga_store.testing.machine.rules_logs import LogRules
from catga_store.testing.machine.rules_logs import same_appended
from catga_store.testing.machine.rules_waits import new_wait
from catga_store.testing.machine.rules_waits import same_completion
from catga_store.testing.machine.session_model import Open
from catga_store.testing.machine.session_model import Planned
from catga_store.testing.machine.session_model import SessionEntry
from catga_store.testing.machine.session_model import changed_something
from catga_store.testing.machine.session_model import claim_expected_by
from catga_store.testing.machine.session_model import expected_by
from catga_store.testing.machine.session_model import is_dirty
from catga_store.testing.machine.session_model import key_of
from catga_store.testing.machine.session_model import planned_changes

__all__ = ["SessionRules"]

_SESSIONS = 3

which = st.integers(0, 5)
session = st.integers(0, _SESSIONS - 1)


_GONE = {
    "flow": "FlowNotFoundError",
    "wait": "WaitConditionNotFoundError",
    "progress": "StaleProgressError",
    "part": "StalePartError",
}


BODY_TYPE_NAMES: dict[Any, str | None] = {kind: name for name, kind in BODY_TYPES.items()}


class SessionRules(LogRules):
    """Every operation of a session, with other sessions and single operations in between."""

    def opened(self, number: int) -> Open:
        """One of the open sessions; opens one if there is none."""
        sessions: list[Open] = self.sessions
        if not sessions:
            sessions.append(Open(self.api.session()))

        return sessions[number % len(sessions)]

    def left_open(self) -> None:
        """The store of these sessions was closed: they go with it."""
        for opened in self.sessions:
            opened.forget()
            opened.real.close()

        self.sessions.clear()

    @precondition(lambda self: len(self.sessions) < _SESSIONS)
    @rule()
    def open_session(self) -> None:
        self.sessions.append(Open(self.api.session()))

    # loading --------------------------------------------------------------------------------------

    def track(self, opened: Open, kind: str, key: Any, found: Any, want: Any) -> None:
        """Check what a session returns: the object it has, or what is stored."""
        entry = opened.entries.get((kind, key))
        if entry is not None:
            expected = None if entry.intent == "deleted" or entry.copy is None else entry.copy.obj
            assert found is expected, f"the session has {expected!r} and returned {found!r}"
            return

        assert (found is None) is (want is None), f"{kind} {key!r}: {found!r}, not {want}"
        if want is None:
            return

        copy = Copy(found, key, want)
        self.same_object(kind, copy, results=True)
        opened.entries[kind, key] = SessionEntry(copy)

    @rule(
        number=session,
        place=places,
        kind=st.sampled_from(["flow", "one", "wait", "many"]),
        type_name=st.sampled_from([None, None, None, "Order"]),
    )
    def session_get(self, number: int, place: int, kind: str, type_name: str | None) -> None:
        opened = self.opened(number)
        self.world.forget_expired()
        if kind == "wait":
            name = self.wait_id(place)
            found = opened.real.get_wait_condition(name)
            self.track(opened, "wait", name, found, self.world.wait(name))
            return

        flow_id = self.flow_id(place)
        ids = FLOW_IDS if kind == "many" else (flow_id,)
        if kind == "many" and not all(self.is_had_as(opened, each, type_name) for each in ids):
            type_name = None  # it is refused when it comes to that one, with others loaded already

        state_type = TYPES[type_name]

        def read() -> dict[str, Any]:
            if kind == "many":
                found: dict[str, Any] = opened.real.get_many(ids, state_type)
                return found

            get = opened.real.get_one if kind == "one" else opened.real.get
            return {flow_id: get(flow_id, state_type)}

        done = self.agree(read, lambda: self.readable(opened, ids, type_name, one=kind == "one"))
        if done is not None:
            for each, found in done[0].items():
                self.track(opened, "flow", each, found, self.world.flows.get(each))

    def hold_a_flow(self, opened: Open, place: int) -> None:
        """Load a flow, if there is one and the session has none."""
        self.world.forget_expired()
        if self.world.flows and not opened.live("flow"):
            flow_id = self.flow_id(len(FLOW_IDS) + place)
            found = opened.real.get(flow_id)
            self.track(opened, "flow", flow_id, found, self.world.flows.get(flow_id))

    def is_had_as(self, opened: Open, flow_id: str, type_name: str | None) -> bool:
        """Whether a flow, if the session has it, is there as that type."""
        entry = opened.entries.get(("flow", flow_id))
        gone = entry is None or entry.copy is None or entry.intent == "deleted"
        if gone or type_name is None or entry is None or entry.copy is None:
            return True

        return type(entry.copy.obj.state).__name__ == type_name

    def readable(
        self, opened: Open, ids: tuple[str, ...], type_name: str | None, *, one: bool
    ) -> None:
        """Refuse what a session refuses to read."""
        for flow_id in ids:
            entry = opened.entries.get(("flow", flow_id))
            stored = self.world.flows.get(flow_id)
            leaves = entry is not None and (entry.copy is None or entry.intent == "deleted")
            if one and (leaves or (entry is None and stored is None)):
                raise oracle.Refusal("FlowNotFoundError")

            fits = stored is None or reads_as(stored, type_name)
            if not (self.is_had_as(opened, flow_id, type_name) if entry is not None else fits):
                raise oracle.Refusal("StateTypeError")

    @rule(number=session, place=places, step=st.sampled_from(STEPS), clear=st.booleans())
    def session_progress(self, number: int, place: int, step: int, clear: bool) -> None:
        """Get a step's progress, or clear it."""
        opened, flow_id = self.opened(number), self.flow_id(place)
        if clear:
            opened.real.clear_for_each_progress(flow_id, step)
            opened.entries["progress", (flow_id, step)] = SessionEntry(None, "deleted")
            return

        self.world.forget_expired()
        found = opened.real.get_for_each_progress(flow_id, step)
        want = None if opened.leaves(flow_id) else self.world.progress.get((flow_id, step))
        self.track(opened, "progress", (flow_id, step), found, want)

    # changing -------------------------------------------------------------------------------------

    def take(self, opened: Open, kind: str, copy: Copy, intent: str) -> SessionEntry | None:
        """The rules of `add`: one object for a key, and no object in two sessions."""
        entry = opened.entries.get((kind, copy.key))
        if entry is not None and entry.copy is copy:
            if entry.intent == "deleted":
                opened.entries[kind, copy.key] = entry = SessionEntry(copy)

            return entry

        elsewhere = any(other.holds(copy) for other in self.sessions if other is not opened)
        taken = entry is not None and entry.intent != "deleted"
        if elsewhere or taken or (entry is not None and copy.base is not None):
            return None

        if entry is not None and kind == "flow" and entry.instead is None:
            return None  # it was deleted by its id: nothing was read that it could replace

        instead = None if entry is None else entry.instead
        entry = SessionEntry(copy, "loaded" if copy.base is not None else intent, instead)
        opened.entries[kind, copy.key] = entry
        return entry

    def refused(self, call: Any) -> None:
        """The call is a usage error."""
        try:
            answer = call()
        except UsageError:
            return

        message = f"returned {answer!r} where the contract requires an error"
        raise AssertionError(message)

    @rule(number=session, arguments=base.new_flow(st.sampled_from(FLOW_IDS)))
    def session_add_flow(self, number: int, arguments: dict[str, Any]) -> None:
        opened, flow = self.opened(number), self.new_snapshot(arguments)
        self.add(opened, "flow", Copy(flow, flow.flow_id), "new")

    def add(self, opened: Open, kind: str, copy: Copy, intent: str) -> None:
        """Add an object to a session."""
        if self.take(opened, kind, copy, intent) is None:
            self.refused(lambda: opened.real.add(copy.obj))
        else:
            opened.real.add(copy.obj)

    @precondition(lambda self: any(copy.base for copy in self.flows))
    @rule(number=session, which=which)
    def session_attach_flow(self, number: int, which: int) -> None:
        """A flow that was read, or claimed, outside of the session is used inside."""
        self.add(self.opened(number), "flow", self.pick(self.flows, which), "new")

    @rule(number=session, arguments=new_wait(st.sampled_from([None, *FLOW_IDS])))
    def session_add_wait(self, number: int, arguments: dict[str, Any]) -> None:
        wait = WaitCondition(**arguments)
        self.add(self.opened(number), "wait", Copy(wait, wait.correlation_id), "set")

    @rule(number=session, which=which, change=base.flow_changes)
    def session_change_flow(self, number: int, which: int, change: tuple[str, Any]) -> None:
        copies = self.opened(number).live("flow")
        if copies:
            self.change_flow(self.pick(copies, which).obj, change)

    @rule(number=session, which=which, outcome=st.sampled_from(WaitOutcome))
    def session_change_wait(self, number: int, which: int, outcome: WaitOutcome) -> None:
        copies = [copy for copy in self.opened(number).live("wait") if copy.base is not None]
        copy = self.pick(copies, which) if copies else None
        if copy is not None and not base.reopens(copy, outcome):
            copy.obj.outcome = outcome

    @rule(number=session, which=which, arguments=new_wait(st.none()))
    def session_suspend(self, number: int, which: int, arguments: dict[str, Any]) -> None:
        opened = self.opened(number)
        copies = [copy for copy in opened.live("flow") if not copy.obj.status.is_terminal]
        if copies:
            self.suspend(opened, self.pick(copies, which), WaitCondition(**arguments))

    def suspend(self, opened: Open, copy: Copy, wait: WaitCondition) -> None:
        """Let a flow of the session wait."""
        name = wait.correlation_id
        if opened.entries.get(("wait", name), SessionEntry(None, "deleted")).intent != "deleted":
            self.refused(lambda: opened.real.suspend(copy.obj, wait))
            return

        opened.real.suspend(copy.obj, wait)
        entry = self.take(opened, "wait", Copy(wait, name), "set")
        assert entry is not None
        entry.suspends = True
        flow = copy.obj
        assert (flow.status.name, flow.due_at) == ("SUSPENDED", None)
        assert wait.parent_flow_id == flow.flow_id
        assert base.terms_of(flow.wait_condition) == base.terms_of(wait)

    @rule(
        number=session,
        place=places,
        child=st.sampled_from(CHILDREN),
        success=st.booleans(),
        error=st.sampled_from([None, "no: 🦊"]),
    )
    def session_complete(
        self,
        number: int,
        place: int,
        child: str,
        success: bool,
        error: str | None,
    ) -> None:
        opened, name = self.opened(number), self.wait_id(place)
        opened.real.complete_child(name, child, success=success, result=number, error=error)
        result = (success, number, error)
        opened.completions.setdefault((name, child), oracle.Complete(name, child, result))

    @rule(
        number=session,
        place=places,
        step=st.sampled_from(STEPS),
        marks=marks,
        overwrite=st.booleans(),
    )
    def session_save_progress(
        self,
        number: int,
        place: int,
        step: int,
        marks: list[tuple[int, bool]],
        overwrite: bool,
    ) -> None:
        opened, key = self.opened(number), (self.flow_id(place), step)
        entry = opened.entries.get(("progress", key))
        if entry is not None and entry.copy is not None and entry.intent != "deleted":
            mark(entry.copy.obj, marks)
            self.refused(lambda: opened.real.save_for_each_progress(*key, ForEachProgress()))
            opened.real.save_for_each_progress(*key, entry.copy.obj, overwrite=overwrite)
            entry.intent = "overwrite" if overwrite else entry.intent
            return

        progress = ForEachProgress()
        mark(progress, marks)
        opened.real.save_for_each_progress(*key, progress, overwrite=overwrite)
        intent = "overwrite" if overwrite or entry is not None else "new"
        fresh = entry is not None
        opened.entries["progress", key] = SessionEntry(Copy(progress, key), intent, fresh=fresh)

    @rule(
        number=session,
        which=which,
        kind=st.sampled_from(["flow", "flow", "wait"]),
        add=st.booleans(),
    )
    def session_delete(self, number: int, which: int, kind: str, add: bool) -> None:
        """Delete a record of the session; perhaps put a new one in its place."""
        opened = self.opened(number)
        copies = opened.live(kind)
        if not copies:
            return

        copy = self.pick(copies, which)
        opened.real.delete(copy.obj)
        assert copy.obj not in opened.real
        entry = opened.entries[kind, copy.key]
        if entry.intent in ("new", "set") and copy.base is None:
            del opened.entries[kind, copy.key]
            opened.checks.pop((kind, copy.key), None)
            if entry.instead is not None:
                opened.entries[kind, copy.key] = SessionEntry(None, "deleted", entry.instead)
        else:
            opened.entries[kind, copy.key] = SessionEntry(copy, "deleted", copy.base)
            if kind == "flow":
                opened.forget_what_belongs_to(copy.key)

        if add and kind == "flow":
            flow = self.new_snapshot({"flow_id": copy.key, "state": {"n": 7, "note": "again"}})
            self.add(opened, "flow", Copy(flow, copy.key), "new")

    @rule(number=session, place=places)
    def session_delete_by_id(self, number: int, place: int) -> None:
        """Delete whatever will be stored under an id; what the session has of it leaves."""
        opened, flow_id = self.opened(number), self.flow_id(place)
        opened.real.delete_by_id(flow_id)
        assert opened.real.get(flow_id) is None
        before = opened.entries.get(("flow", flow_id))
        if before is not None and before.copy is not None:
            self.let_go("flow", before.copy)

        opened.entries["flow", flow_id] = SessionEntry(None, "deleted")
        opened.forget_what_belongs_to(flow_id)

    @precondition(lambda self: self.flows or self.waits)
    @rule(number=session, which=which, kind=st.sampled_from(["flow", "wait"]))
    def session_check(self, number: int, which: int, kind: str) -> None:
        opened = self.opened(number)
        held = [*(self.flows if kind == "flow" else self.waits), *opened.live(kind)]
        copies = [copy for copy in held if copy.base is not None]
        if copies:
            self.check(opened, kind, self.pick(copies, which))

    def check(self, opened: Open, kind: str, copy: Copy) -> None:
        """Check an object; two reads of one record that differ cannot both hold."""
        before = opened.checks.setdefault((kind, copy.key), copy)
        if before.base.stamp == copy.base.stamp:
            opened.real.require_unchanged(copy.obj)
            opened.real.check(copy.obj)  # the same by its shorter name
        else:
            self.refused(lambda: opened.real.require_unchanged(copy.obj))

    @precondition(lambda self: any(copy.claim is not None for copy in self.flows))
    @rule(number=session, which=which, commit=st.booleans())
    def session_guard(self, number: int, which: int, commit: bool) -> None:
        """Commit under a claim that another owner may have by then."""
        opened = self.opened(number)
        copies = [copy for copy in self.flows if copy.claim is not None]
        copy = self.pick(copies, which)
        assert copy.claim is not None
        assert copy.lease is not None
        before = opened.guards.setdefault(copy.key, (copy, copy.claim, copy.lease))
        if before[1] != copy.claim:
            self.refused(lambda: opened.real.guard(copy.obj))
            return

        opened.real.guard(copy.obj)
        if commit:
            self.commit(opened)

    # the end --------------------------------------------------------------------------------------

    @rule(number=session, which=which, kind=st.sampled_from(["flow", "wait", "progress"]))
    def session_refresh(self, number: int, which: int, kind: str) -> None:
        opened = self.opened(number)
        self.hold_a_flow(opened, which)
        copies = [copy for copy in opened.live(kind) if copy.base is not None]
        if copies:
            self.refresh(opened, kind, self.pick(copies, which))

    def refresh(self, opened: Open, kind: str, copy: Copy) -> None:
        """Read a record again into its object."""
        state_type: str = type(copy.obj.state).__qualname__ if kind == "flow" else "dict"
        done = self.agree(
            lambda: opened.real.refresh(copy.obj),
            lambda: self.refreshed(kind, copy, None if state_type == "dict" else state_type),
        )
        if done is not None:
            copy.base, copy.is_read = done[1], True
            opened.entries[kind, copy.key].intent = "loaded"
            self.same_object(kind, copy, results=True)
            assert kind != "flow" or type(copy.obj.state).__qualname__ == state_type

    def refreshed(self, kind: str, copy: Copy, type_name: str | None) -> Any:
        """What the model says a refreshed object holds."""
        self.world.forget_expired()
        stored: dict[str, Any] = {
            "flow": self.world.flows.get,
            "wait": self.world.wait,
            "progress": self.world.progress.get,
            "part": self.world.parts.at,
        }
        want = stored[kind](copy.key)
        if want is None:
            raise oracle.Refusal(_GONE[kind], expected=copy.base.version)

        if kind == "flow" and copy.lease is not None and want.claim != copy.claim:
            raise oracle.Refusal("ClaimLostError")

        if kind == "flow" and not reads_as(want, type_name):
            raise oracle.Refusal("StateTypeError")

        if kind == "part" and not reads_part_as(want, BODY_TYPE_NAMES[copy.obj.body_type]):
            raise oracle.Refusal("StateTypeError")

        return want

    def same_object(self, kind: str, copy: Copy, *, results: bool = False) -> None:
        """An object that was just read or written is what is stored."""
        if kind == "flow":
            self.same_flow(copy.obj, copy.base, "in a session")
        elif kind == "wait":
            self.same_wait(copy.obj, copy.base, results=results)
        elif kind == "part":
            self.same_part(copy.obj, copy.base, body=copy.is_read)
        else:
            self.same_progress(copy.key, copy.obj, copy.base)

    def let_go(self, kind: str, copy: Copy) -> None:
        """An object that has left its session is its holder's."""
        if copy.base is not None:
            lists = {"flow": self.flows, "wait": self.waits, "progress": self.progress}
            held = {**lists, "part": self.parts}[kind]
            if copy not in held:
                self.keep(held, copy)

    def forget(self, opened: Open) -> None:
        """All objects leave the session."""
        left = [(kind, entry.copy) for (kind, _), entry in opened.entries.items()]
        opened.forget()
        for kind, copy in left:
            if copy is not None:
                self.let_go(kind, copy)

    @rule(number=session, which=which, kind=st.sampled_from(["flow", "flow", "wait", "progress"]))
    def session_expunge(self, number: int, which: int, kind: str) -> None:
        """Let go of one object, which can be used on outside."""
        opened = self.opened(number)
        self.hold_a_flow(opened, which)
        if opened.live(kind):
            self.expunge(opened, kind, self.pick(opened.live(kind), which))

    def expunge(self, opened: Open, kind: str, copy: Copy) -> None:
        """Let go of one object; what it was to replace is still deleted."""
        opened.real.expunge(copy.obj)
        entry = opened.entries.pop((kind, copy.key))
        opened.checks.pop((kind, copy.key), None)
        self.let_go(kind, copy)
        if entry.fresh or entry.instead is not None:
            opened.entries[kind, copy.key] = SessionEntry(None, "deleted", entry.instead)

    @rule(number=session, close=st.booleans())
    def session_rollback(self, number: int, close: bool) -> None:
        """Let go of everything, and perhaps of the session."""
        opened = self.opened(number)
        if close:
            opened.real.close()
            self.sessions.remove(opened)
            self.refused(lambda: opened.real.get(FLOW_IDS[0]))
        else:
            opened.real.rollback()

        self.forget(opened)

    @rule(number=session, resolve=st.booleans())
    def session_commit(self, number: int, resolve: bool) -> None:
        self.commit(self.opened(number), resolve=resolve)

    def commit(self, opened: Open, *, resolve: bool = False) -> None:
        """Commit a session: every change or none."""
        self.pending_agrees(opened)
        self.world.forget_expired()
        before = opened.real.receipt
        planned: list[Planned] = []

        def modelled() -> list[oracle.Done]:
            planned.extend(planned_changes(opened))
            return self.decided(opened, [change for change, _, _ in planned])

        done = self.agree(lambda: opened.real.commit(resolve=resolve), modelled)
        if done is None:
            assert opened.real.receipt is before
            self.pending_agrees(opened)
            return

        receipt, outcomes = done
        changes = [change for change, _, _ in planned]
        assert opened.real.receipt is receipt
        assert (receipt.commit_id is None) is (not planned)
        if planned:
            self.settle(opened, planned, outcomes)
            self.same_receipt(receipt, planned, outcomes)
            if any(map(changed_something, changes, outcomes)):
                self.resolves(receipt)

            opened.completions.clear()
            opened.appends.clear()
            opened.checks.clear()
            opened.guards.clear()

        self.pending_agrees(opened)

    def decided(self, opened: Open, changes: list[oracle.Change]) -> list[oracle.Done]:
        """What the model says of a commit; a write that does not regard a check is a usage error."""
        unchecked = oracle.Complete | parts_model.Append
        written = {key_of(c): expected_by(c) for c in changes if not isinstance(c, unchecked)}
        for key, copy in opened.checks.items():
            if written.get(key, copy.base.stamp) != copy.base.stamp:
                raise oracle.Refusal("UsageError")

        under = {key_of(c)[1]: claim_expected_by(c) for c in changes if key_of(c)[0] == "flow"}
        for flow_id, (_, claim, _) in opened.guards.items():
            if under[flow_id] != claim:
                raise oracle.Refusal("UsageError")

        return self.world.commit(changes)

    def resolves(self, receipt: Any) -> None:
        """A commit that was applied is reported as applied to a client that has lost its reply.

        One that found nothing to change may be reported as not applied, which is as true.
        """
        keys = (
            *receipt.versions,
            *(wait_key(name) for name, _ in receipt.completions),
            *(part_key(entry.flow_id, entry.log) for entry in receipt.entries),
        )
        lost = CommitUncertainError("", commit_id=receipt.commit_id, keys=keys)
        found = self.api.resolve_commit(lost)
        assert found is not None
        assert found.commit_id == receipt.commit_id

    def settle(self, opened: Open, planned: list[Planned], outcomes: list[oracle.Done]) -> None:
        """Every object takes over what is stored now, and is clean."""
        world = self.world
        for (change, kind, entry), outcome in zip(planned, outcomes, strict=True):
            if entry is None:
                continue

            key = key_of(change)
            if entry.intent == "deleted" or was_kept(change, outcome):
                del opened.entries[key]
                continue

            copy = entry.copy
            assert copy is not None
            stored: dict[str, Any] = {
                "flow": world.flows,
                "wait": world.conditions(),
                "progress": world.progress,
                "part": world.parts.rows.get(copy.key[0], {}),
            }
            copy.base = stored[kind][copy.key[1] if kind == "part" else copy.key]
            copy.is_read = True
            if kind == "flow" and copy.base.claim is None:
                copy.lease = copy.claim = None

            if not isinstance(change, oracle.Renew):
                entry.intent, entry.instead = "loaded", None
                entry.suspends = entry.fresh = False

            self.same_object(kind, copy)

    def same_receipt(
        self,
        receipt: Any,
        planned: list[Planned],
        outcomes: list[oracle.Done],
    ) -> None:
        """The receipt says what was written."""
        versions: dict[Any, int] = {}
        completed: dict[Any, oracle.Done] = {}
        kept: list[Any] = []
        appended: list[tuple[parts_model.Append, oracle.Done]] = []
        for (change, kind, entry), outcome in zip(planned, outcomes, strict=True):
            if isinstance(change, oracle.Complete):
                completed[change.correlation_id, change.child] = outcome
            elif isinstance(change, parts_model.Append):
                appended.append((change, outcome))
            elif was_kept(change, outcome):
                kept.append(part_key(*key_of(change)[1]))
            elif entry is not None and not isinstance(change, oracle.Renew):
                key = key_of(change)[1]
                named: dict[str, Any] = {"progress": progress_key, "part": part_key}
                single = {"flow": flow_key, "wait": wait_key}.get(kind)
                real_key = named[kind](*key) if single is None else single(key)
                gone = (kind, key) not in self.stored_now()
                versions[real_key] = 0 if gone else self.stored_now()[kind, key]

        satisfied = {
            change.correlation_id
            for (change, _, _), outcome in zip(planned, outcomes, strict=True)
            if outcome.now_satisfied
            and isinstance(change, oracle.Complete | oracle.SetWait | oracle.UpdateWait)
        }
        # A condition that is set and then satisfied by the same commit has two versions in it.
        for real_key, version in versions.items():
            found = receipt.versions[real_key]
            assert found in (version, version - (real_key.id in satisfied)), (
                f"the receipt has {real_key} at {found}, not {version}"
            )

        assert receipt.versions.keys() == versions.keys()
        assert set(receipt.satisfied) == satisfied
        assert len(receipt.satisfied) == len(satisfied)
        assert receipt.kept == tuple(kept)
        for got, (change, outcome) in zip(receipt.entries, appended, strict=True):
            same_appended(got, change, outcome)

        assert receipt.completions.keys() == completed.keys()
        for key, want in completed.items():
            same_completion(receipt.completions[key], want)

    def stored_now(self) -> dict[tuple[str, Any], int]:
        """The version of everything that is stored."""
        world = self.world
        return {
            **{("flow", key): flow.version for key, flow in world.flows.items()},
            **{("wait", key): wait.version for key, wait in world.conditions().items()},
            **{("progress", key): progress.version for key, progress in world.progress.items()},
            **{
                ("part", (flow_id, name)): row.version
                for flow_id, rows in world.parts.rows.items()
                for name, row in rows.items()
            },
        }

    def pending_agrees(self, opened: Open) -> None:
        """What a session says it would do."""
        new = {"new", "set", "overwrite", "keep"}
        entries = [entry for entry in opened.entries.values() if entry.copy is not None]
        wanted = {
            "new": {id(e.copy.obj) for e in entries if e.copy and e.intent in new},
            "deleted": {id(e.copy.obj) for e in entries if e.copy and e.intent == "deleted"},
            "dirty": {
                id(entry.copy.obj)
                for (kind, _), entry in opened.entries.items()
                if entry.copy and entry.intent == "loaded" and is_dirty(kind, entry.copy)
            },
        }
        for name, want in wanted.items():
            found = {id(record) for record in getattr(opened.real, name)}
            assert found == want, f"{name} is {getattr(opened.real, name)}, expected {len(want)}"

    # all in one -----------------------------------------------------------------------------------

    @rule(
        place=places,
        arguments=new_wait(st.none()),
        any_wait=st.booleans(),
    )
    def suspend_at_once(self, place: int, arguments: dict[str, Any], any_wait: bool) -> None:
        """What a worker does at the end of its step: load, suspend, commit."""
        flow_id = self.flow_id(place)
        if not any_wait:  # one that shares the flow's partition
            arguments["correlation_id"] = flow_id

        opened = self.open_for(flow_id)
        held = opened.live("flow")
        if held and not held[0].obj.status.is_terminal:
            self.suspend(opened, held[0], WaitCondition(**arguments))
            self.commit(opened)

        self.leave(opened)

    def open_for(self, flow_id: str) -> Open:
        """Open a session for one rule, and load a flow in it."""
        opened = Open(self.api.session())
        self.world.forget_expired()
        self.sessions.append(opened)
        found = opened.real.get(flow_id)
        self.track(opened, "flow", flow_id, found, self.world.flows.get(flow_id))
        return opened

    def leave(self, opened: Open) -> None:
        """Close the session of one rule."""
        opened.real.close()
        self.forget(opened)
        self.sessions.remove(opened)

    @rule(
        place=places,
        change=base.flow_changes,
        rival=st.sampled_from([None, "flow", "wait", "progress", "check"]),
    )
    def commit_beside_a_rival(self, place: int, change: tuple[str, Any], rival: str | None) -> None:
        """A session changes several records; another client may change one of them before it commits."""
        self.world.forget_expired()
        ids = [each for each in sorted(self.world.flows) if each.startswith("{t}")]
        if not ids:
            return

        opened = Open(self.api.session())
        self.sessions.append(opened)
        flow_id, name = ids[place % len(ids)], WAIT_IDS[place % 2]
        found = opened.real.get(flow_id)
        self.track(opened, "flow", flow_id, found, self.world.flows[flow_id])
        self.change_flow(found, change)
        found = opened.real.get_wait_condition(name)
        self.track(opened, "wait", name, found, self.world.wait(name))
        if found is not None:
            found.outcome = WaitOutcome.CANCELLED

        found = opened.real.get_for_each_progress(flow_id, STEPS[0])
        self.track(
            opened,
            "progress",
            (flow_id, STEPS[0]),
            found,
            self.world.progress.get((flow_id, STEPS[0])),
        )
        progress = ForEachProgress() if found is None else found
        progress.mark(place)
        opened.real.save_for_each_progress(flow_id, STEPS[0], progress)
        if found is None:
            opened.entries["progress", (flow_id, STEPS[0])] = SessionEntry(
                Copy(progress, (flow_id, STEPS[0])), "new"
            )

        opened.real.complete_child(WAIT_IDS[1 - place % 2], CHILDREN[0])
        opened.completions[WAIT_IDS[1 - place % 2], CHILDREN[0]] = oracle.Complete(
            WAIT_IDS[1 - place % 2], CHILDREN[0], (True, None, None)
        )
        if rival == "check":
            self.check(opened, "flow", self.held(self.api.get(ids[0])))

        if rival in ("flow", "check"):
            flow = self.api.get(ids[0] if rival == "check" else flow_id)
            self.change_flow(flow, ("n", place))
            self.write_back(self.held(flow))
        elif rival == "wait" and found is not None:
            self.complete_one(name, self.child_of(name, place), (True, None, None))
        elif rival == "progress":
            other = Copy(ForEachProgress(), (flow_id, STEPS[0]))
            self.save(other, overwrite=True)

        self.commit(opened)
        self.leave(opened)

    @rule(place=places, change=base.flow_changes, fails=st.booleans())
    def begin(self, place: int, change: tuple[str, Any], fails: bool) -> None:
        """`begin` commits at the end of the block, and not at all if the block fails."""
        flow_id = self.flow_id(place)
        self.world.forget_expired()
        stored = self.world.flows.get(flow_id)
        if stored is None:
            return

        try:
            with self.api.begin() as real:
                flow = real.get(flow_id)
                copy = Copy(flow, flow_id, stored)
                self.change_flow(flow, change)
                writes = [self.write(copy)] if is_dirty("flow", copy) else []
                if fails:
                    raise _ChangedMindError  # noqa: TRY301  leaving the block is what is tried
        except _ChangedMindError:
            return

        self.world.commit(writes)
        self.written(copy)
        self.let_go("flow", copy)


def was_kept(change: oracle.Change, outcome: oracle.Done) -> bool:
    """Whether a part was left as it was because there was one."""
    return isinstance(change, parts_model.PutPart) and change.is_free and not outcome.accepted


class _ChangedMindError(Exception):
    """Raised in a block, to leave it."""
