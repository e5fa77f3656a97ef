"""Rules of the parity machine: parts and logs in sessions, with other sessions in between."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.model.parts import Part
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine import parts_model
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.part_draws import BODY_TYPES
from catga_store.testing.machine.part_draws import bodies
from catga_store.testing.machine.part_draws import body_types
from catga_store.testing.machine.part_draws import change_part
from catga_store.testing.machine.part_draws import draft_of
from catga_store.testing.machine.part_draws import exists_how
from catga_store.testing.machine.part_draws import part_changes
from catga_store.testing.machine.part_draws import part_names
from catga_store.testing.machine.part_draws import plain_of
from catga_store.testing.machine.part_draws import reads_part_as
from catga_store.testing.machine.part_draws import some_names
from catga_store.testing.machine.part_draws import tags
from catga_store.testing.machine.parts_model import PartDraft
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_logs import entry_keys
from catga_store.testing.machine.rules_logs import logs
from catga_store.testing.machine.rules_sessions import SessionRules
from catga_store.testing.machine.rules_sessions import session
from catga_store.testing.machine.rules_sessions import which
from catga_store.testing.machine.session_model import Open
from catga_store.testing.machine.session_model import SessionEntry

__all__ = ["PartSessionRules"]

_INTENTS = {"refuse": "new", "keep": "keep", "overwrite": "overwrite"}


class PartSessionRules(SessionRules):
    """Every operation of a session on parts and logs."""

    # loading --------------------------------------------------------------------------------------

    @rule(number=session, place=places, at=places, body_type=body_types)
    def session_get_part(self, number: int, place: int, at: int, body_type: str | None) -> None:
        opened, flow_id = self.opened(number), self.flow_id(place)
        name = self.part_name(flow_id, at)
        done = self.agree(
            lambda: opened.real.get_part(flow_id, name, BODY_TYPES[body_type]),
            lambda: self.readable_parts(opened, flow_id, [name], body_type),
        )
        if done is not None:
            self.track_part(opened, flow_id, name, done[0])

    @rule(
        number=session,
        place=places,
        names=st.lists(some_names, max_size=4, unique=True),
        body_type=body_types,
    )
    def session_get_parts(
        self, number: int, place: int, names: list[str], body_type: str | None
    ) -> None:
        opened, flow_id = self.opened(number), self.flow_id(place)
        try:
            self.readable_parts(opened, flow_id, names, body_type)
        except oracle.Refusal:
            body_type = None  # it is refused when it comes to that one, with others loaded already

        found = opened.real.get_parts(flow_id, names, BODY_TYPES[body_type])
        assert list(found) == names
        for name in names:
            self.track_part(opened, flow_id, name, found[name])

    def readable_parts(
        self, opened: Open, flow_id: str, names: list[str], body_type: str | None
    ) -> None:
        """Refuse what a session refuses to read."""
        self.world.forget_expired()
        for name in names:
            entry = opened.entries.get(("part", (flow_id, name)))
            row = self.world.parts.get(flow_id, name)
            if entry is None:
                fits = row is None or opened.leaves(flow_id) or reads_part_as(row, body_type)
            elif entry.intent == "deleted" or entry.copy is None or body_type is None:
                fits = True
            else:
                fits = has_body_type(entry.copy) == body_type

            if not fits:
                raise oracle.Refusal("StateTypeError")

    def track_part(self, opened: Open, flow_id: str, name: str, found: Part[Any] | None) -> None:
        """Check what a session returns: the object it has, or what is stored."""
        row = None if opened.leaves(flow_id) else self.world.parts.get(flow_id, name)
        self.track(opened, "part", (flow_id, name), found, row)

    # changing -------------------------------------------------------------------------------------

    @rule(number=session, place=places, name=part_names, body=bodies, tag=tags, exists=exists_how)
    def session_add_part(
        self, number: int, place: int, name: str, body: Any, tag: str, exists: str
    ) -> None:
        flow_id = self.flow_id(place)
        part = Part(flow_id, name, deepcopy(body), tag=tag)
        self.add_part(self.opened(number), Copy(part, (flow_id, name)), exists)

    @precondition(lambda self: self.parts)
    @rule(number=session, which=which, exists=exists_how)
    def session_attach_part(self, number: int, which: int, exists: str) -> None:
        """A part that was read or refused outside of the session is used inside."""
        self.add_part(self.opened(number), self.pick(self.parts, which), exists)

    def add_part(self, opened: Open, copy: Copy, exists: str) -> None:
        """Add a part to a session."""
        before = opened.entries.get(("part", copy.key))
        if exists == "keep" and copy.base is not None:
            self.refused(lambda: opened.real.add_part(copy.obj, exists=exists))
            return

        entry = self.take(opened, "part", copy, _INTENTS[exists])
        if entry is None:
            self.refused(lambda: opened.real.add_part(copy.obj, exists=exists))
            return

        opened.real.add_part(copy.obj, exists=exists)
        assert copy.obj in opened.real
        if exists != "refuse" or (entry is before and copy.base is None):
            entry.intent = _INTENTS[exists]

    @rule(number=session, which=which, change=part_changes)
    def session_change_part(self, number: int, which: int, change: tuple[str, Any]) -> None:
        copies = self.opened(number).live("part")
        if copies:
            change_part_in_session(self.pick(copies, which), change)

    @rule(number=session, which=which, again=st.booleans(), exists=exists_how)
    def session_delete_part(self, number: int, which: int, again: bool, exists: str) -> None:
        """Delete a part of the session; perhaps put a new one in its place."""
        opened = self.opened(number)
        if not opened.live("part"):
            key = self.flow_id(which), "p"
            self.add_part(opened, Copy(Part(*key, b""), key), "overwrite")

        copies = opened.live("part")
        if not copies:
            return

        copy = self.pick(copies, which)
        opened.real.delete_part(copy.obj)
        assert copy.obj not in opened.real
        entry = opened.entries["part", copy.key]
        if copy.base is None:
            del opened.entries["part", copy.key]
            opened.checks.pop(("part", copy.key), None)
            if entry.instead is not None:
                opened.entries["part", copy.key] = SessionEntry(None, "deleted", entry.instead)
        else:
            opened.entries["part", copy.key] = SessionEntry(copy, "deleted", copy.base)

        if again and parts_model.entry_of(copy.key[1]) is None:
            self.add_part(
                opened, Copy(Part(copy.key[0], copy.key[1], b"in its place"), copy.key), exists
            )

    @rule(number=session, place=places, log=logs, body=bodies, key=entry_keys)
    def session_append(self, number: int, place: int, log: str, body: Any, key: str | None) -> None:
        """Queue an entry, perhaps of the flow that the session has; later changes are not written."""
        opened, flow_id = self.opened(number), self.flow_id(place)
        held = opened.live("flow")
        if held and place % 3:
            flow_id = held[place % len(held)].key

        mine = deepcopy(body)
        opened.real.append(flow_id, mine, log=log, key=key)
        opened.appends.append(
            parts_model.Append(flow_id, log, PartDraft(*plain_of(body), key or ""))
        )
        if isinstance(mine, dict):
            mine.clear()

    @precondition(lambda self: self.parts)
    @rule(number=session, which=which)
    def session_check_part(self, number: int, which: int) -> None:
        opened = self.opened(number)
        held = [*self.parts, *opened.live("part")]
        copies = [copy for copy in held if copy.base is not None]
        if copies:
            self.check(opened, "part", self.pick(copies, which))

    @rule(number=session, which=which, expunge=st.booleans())
    def session_refresh_or_expunge_part(self, number: int, which: int, expunge: bool) -> None:
        opened = self.opened(number)
        copies = [copy for copy in opened.live("part") if copy.base is not None or expunge]
        if copies and expunge:
            self.expunge(opened, "part", self.pick(copies, which))
        elif copies:
            self.refresh(opened, "part", self.pick(copies, which))

    # all in one -----------------------------------------------------------------------------------

    @rule(
        place=places,
        change=base.flow_changes,
        exists=exists_how,
        rival=st.sampled_from([None, "part", "delete", "flow", "append", "check", "leave"]),
        body=bodies,
    )
    def commit_parts_beside_a_rival(
        self, place: int, change: tuple[str, Any], exists: str, rival: str | None, body: Any
    ) -> None:
        """A flow, parts and entries in one commit; another client may write before it."""
        self.world.forget_expired()
        ids = sorted(self.world.flows)
        if not ids:
            return

        flow_id = ids[place % len(ids)]
        opened = self.open_for(flow_id)
        (held,) = opened.live("flow")
        self.change_flow(held.obj, change)
        loaded, name = self.load_a_part(opened, flow_id), "a/10"
        if loaded is not None:
            change_part(loaded, ("tag", "mine"))

        self.add_part(opened, Copy(Part(flow_id, name, deepcopy(body)), (flow_id, name)), exists)
        for key in ("k", None):
            opened.real.append(flow_id, deepcopy(body), log="log", key=key)
            draft = PartDraft(*plain_of(body), key or "")
            opened.appends.append(parts_model.Append(flow_id, "log", draft))

        if rival == "part":
            self.put_one(Copy(Part(flow_id, name, b"theirs"), (flow_id, name)), "overwrite")
        elif rival == "delete" and loaded is not None:
            assert self.api.delete_part(*loaded.key)
            self.world.commit([parts_model.DeletePart(*loaded.key)])
        elif rival == "flow":
            self.write_back(self.held(self.api.get(flow_id)))
        elif rival == "append":
            self.append_one(flow_id, "log", b"theirs", "k")
        elif rival == "check" and loaded is not None:
            self.check(opened, "part", self.keep_part(self.api.get_part(*loaded.key)))
        elif rival == "leave":
            assert self.api.delete(flow_id)
            self.world.commit([oracle.DeleteFlow(flow_id)])

        self.commit(opened)
        self.leave(opened)

    def load_a_part(self, opened: Open, flow_id: str) -> Copy | None:
        """Load the first part of a flow that is not an entry of a log, if there is one."""
        names = self.world.parts.names(flow_id)
        names = [one for one in names if parts_model.entry_of(one) is None and one != "a/10"]
        if not names:
            return None

        self.track_part(opened, flow_id, names[0], opened.real.get_part(flow_id, names[0]))
        return opened.entries["part", (flow_id, names[0])].copy

    @rule(place=places, body=bodies, by=st.sampled_from(["object", "id", "replace"]))
    def delete_a_flow_and_write_its_parts(self, place: int, body: Any, by: str) -> None:
        """In one commit: what was there goes, what comes with it stays, in a log that begins again."""
        self.world.forget_expired()
        ids = sorted(self.world.flows)
        if not ids:
            return

        flow_id = ids[place % len(ids)]
        opened = self.open_for(flow_id)
        (held,) = opened.live("flow")
        self.load_a_part(opened, flow_id)
        if by == "id":
            opened.real.delete_by_id(flow_id)
            self.let_go("flow", held)
            opened.entries["flow", flow_id] = SessionEntry(None, "deleted")
        else:
            opened.real.delete(held.obj)
            opened.entries["flow", flow_id] = SessionEntry(held, "deleted", held.base)

        opened.forget_what_belongs_to(flow_id)
        if by == "replace":
            flow = self.new_snapshot({"flow_id": flow_id, "state": {"n": 7, "note": "again"}})
            self.add(opened, "flow", Copy(flow, flow_id), "new")

        assert opened.real.get_part(flow_id, "a") is None
        self.add_part(opened, Copy(Part(flow_id, "a", deepcopy(body)), (flow_id, "a")), "refuse")
        opened.real.append(flow_id, deepcopy(body), log="log", key="k")
        opened.appends.append(parts_model.Append(flow_id, "log", PartDraft(*plain_of(body), "k")))
        self.commit(opened)
        self.leave(opened)


def change_part_in_session(copy: Copy, change: tuple[str, Any]) -> None:
    """Change a part, which may be new."""
    if copy.base is None and change[0] == "n" and not isinstance(copy.obj.body, dict):
        copy.obj.body = {"n": change[1], "note": ""}
    else:
        change_part(copy, change)


def has_body_type(copy: Copy) -> str | None:
    """The name of the type that an object in a session has its body as."""
    names = {kind: name for name, kind in BODY_TYPES.items()}
    if copy.obj.body_type is not None:
        return names[copy.obj.body_type]

    draft = draft_of(copy)
    if draft is None:
        return None

    return plain_of(copy.obj.body)[1] or None
