"""Rules of the parity machine: logs of flows, one operation at a time, and what comes with its flow."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from catga_store.model.flows import FlowStatus
from catga_store.model.parts import Appended
from catga_store.model.parts import LogEntry
from catga_store.model.parts import Part
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import is_version
from catga_store.protocol.requests import Scan
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine import parts_model
from catga_store.testing.machine.base import FLOW_IDS
from catga_store.testing.machine.part_draws import BODY_TYPES
from catga_store.testing.machine.part_draws import bodies
from catga_store.testing.machine.part_draws import body_types
from catga_store.testing.machine.part_draws import plain_of
from catga_store.testing.machine.part_draws import reads_part_as
from catga_store.testing.machine.parts_model import PartDraft
from catga_store.testing.machine.parts_model import PartRow
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_parts import PartRules

__all__ = ["LogRules", "entry_keys", "logs", "same_appended"]

LOGS = ("log", "a/1", "\u00e9\x00")
"""Two have the name of a part."""

logs = st.sampled_from(LOGS)
entry_keys = st.sampled_from([None, None, "k", "k \n🦊\x00"])
sequences = st.sampled_from([0, 1, 2, 3, 5, 10**12 - 1])


def same_appended(got: Appended, change: parts_model.Append, want: oracle.Done) -> None:
    """An append did what the model says."""
    key = change.draft.tag or None
    wanted = Appended(change.flow_id, change.log, want.sequence, key, want.duplicate)
    assert got == wanted, f"the append returned {got}, expected {wanted}"


class LogRules(PartRules):
    """Every operation on logs, one at a time."""

    @rule(place=places, log=logs, body=bodies, key=entry_keys, again=st.booleans())
    def append(self, place: int, log: str, body: Any, key: str | None, again: bool) -> None:
        """Append an entry, perhaps twice."""
        for _ in range(2 if again else 1):
            self.append_one(self.flow_id(place), log, body, key)

    def append_one(self, flow_id: str, log: str, body: Any, key: str | None) -> None:
        """Append one entry."""
        change = parts_model.Append(flow_id, log, PartDraft(*plain_of(body), key or ""))
        got = self.api.append(flow_id, deepcopy(body), log=log, key=key)
        same_appended(got, change, self.world.commit([change])[0])

    @rule(
        place=places,
        log=logs,
        after=sequences,
        before=st.one_of(st.none(), sequences),
        limit=st.sampled_from([1, 2, 1000]),
        reverse=st.booleans(),
        body_type=body_types,
    )
    def read_log(
        self,
        place: int,
        log: str,
        after: int,
        before: int | None,
        limit: int,
        reverse: bool,
        body_type: str | None,
    ) -> None:
        flow_id = self.flow_id(place)
        done = self.agree(
            lambda: self.api.read_log(
                flow_id,
                log,
                after=after,
                before=before,
                limit=limit,
                reverse=reverse,
                body_type=BODY_TYPES[body_type],
            ),
            lambda: self.entries(flow_id, log, after, before, limit, body_type, reverse=reverse),
        )
        if done is not None:
            self.same_entries(f"{log!r} of {flow_id!r}", *done)

    @rule(
        place=places,
        log=logs,
        after=sequences,
        limit=st.sampled_from([1, 2, 1000]),
        body_type=body_types,
    )
    def watch_log(
        self, place: int, log: str, after: int, limit: int, body_type: str | None
    ) -> None:
        """Entries after one that was seen; nothing is added while it waits, so it does not wait."""
        flow_id = self.flow_id(place)
        done = self.agree(
            lambda: self.api.watch_log(
                flow_id,
                log,
                after=after,
                timeout=timedelta(0),
                limit=limit,
                body_type=BODY_TYPES[body_type],
            ),
            lambda: self.entries(flow_id, log, after, None, limit, body_type),
        )
        if done is not None:
            self.same_entries(f"{log!r} of {flow_id!r}, watched", *done)

    def entries(
        self,
        flow_id: str,
        log: str,
        after: int,
        before: int | None,
        limit: int,
        body_type: str | None,
        *,
        reverse: bool = False,
    ) -> dict[int, PartRow]:
        """The entries of a log that a reader finds, if they can be read as that type."""
        self.world.forget_expired()
        found = [
            (sequence, row)
            for sequence, row in self.world.parts.log(flow_id, log).items()
            if after < sequence and (before is None or sequence < before)
        ]
        rows = dict(found[::-1][:limit] if reverse else found[:limit])
        if not all(reads_part_as(row, body_type) for row in rows.values()):
            raise oracle.Refusal("StateTypeError")

        return rows

    def same_entries(self, what: str, found: list[LogEntry], rows: dict[int, PartRow]) -> None:
        """Entries that were read are what the model says."""
        base.compare(f"log {what}", {"sequences": ([e.sequence for e in found], list(rows))})
        for entry in found:
            row = rows[entry.sequence]
            fields: dict[str, tuple[Any, Any]] = {
                "body": (plain_of(entry.body)[0], row.draft.body),
                "key": (entry.key, row.draft.tag or None),
                "at": (entry.at, row.created),
                "version": (entry.version, row.flow_version),
            }
            base.compare(f"entry {entry.sequence} of {what}", fields)

    @rule(place=places, log=logs, before=sequences)
    def trim_log(self, place: int, log: str, before: int) -> None:
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        numbers = [one for one in self.world.parts.log(flow_id, log) if one < before]
        names = [parts_model.name_of_entry(log, number) for number in numbers]
        found = self.api.trim_log(flow_id, log, before=before)
        assert found == self.world.delete_parts(flow_id, names), f"trimmed {found} of {names}"

    @rule(place=places, log=logs, by=st.sampled_from(["trim", "parts", "part"]), body=bodies)
    def count_on(self, place: int, log: str, by: str, body: Any) -> None:
        """A log whose entries go counts on, and knows none of their keys."""
        flow_id = self.flow_id(place)
        for key in ("k", None):
            self.append_one(flow_id, log, body, key)

        number = self.world.parts.counters[flow_id, log]
        name = parts_model.name_of_entry(log, number)
        if by == "trim":
            self.trim_log_to(flow_id, log, number + 1)
        elif by == "parts":
            names = self.world.parts.names(flow_id, f"{log}/")
            assert self.api.delete_parts(flow_id, f"{log}/") == len(names)
            self.world.delete_parts(flow_id, names)
        else:
            assert self.api.delete_part(flow_id, name)
            self.world.delete_parts(flow_id, [name])

        self.append_one(flow_id, log, body, "k")

    def trim_log_to(self, flow_id: str, log: str, before: int) -> None:
        """Trim a log that is there."""
        numbers = [one for one in self.world.parts.log(flow_id, log) if one < before]
        assert self.api.trim_log(flow_id, log, before=before) == len(numbers)
        names = [parts_model.name_of_entry(log, number) for number in numbers]
        self.world.delete_parts(flow_id, names)

    @rule(
        place=places,
        how=st.sampled_from(["expire", "delete", "replace"]),
        then=st.sampled_from(["append", "put", "keep", "get", "list", "delete", "trim", "create"]),
    )
    def parts_of_a_flow_that_is_gone(self, place: int, how: str, then: str) -> None:
        """What is done first after a flow is gone meets none of its parts, and no sequence or key."""
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        if flow_id not in self.world.flows:
            self.create_one({"flow_id": flow_id, "state": {"n": 0, "note": ""}})

        self.append_one(flow_id, "log", b"old", "k")
        self.put_one(base.Copy(new_part(flow_id, b"old"), (flow_id, "a")), "overwrite")
        self.end_a_flow(flow_id, how)
        self.world.forget_expired()
        if then == "append":
            self.append_one(flow_id, "log", b"new", "k")
        elif then in ("put", "keep"):
            copy = base.Copy(new_part(flow_id, b"new"), (flow_id, "a"))
            self.put_one(copy, "refuse" if then == "put" else "keep")
        elif then == "get":
            self.read_parts(lambda: self.api.get_parts(flow_id, ["a"]), flow_id, ["a"], None)
        elif then == "list":
            self.parts_agree()
        elif then == "delete":
            gone = self.api.delete_part(flow_id, "a")
            assert gone is self.world.commit([parts_model.DeletePart(flow_id, "a")])[0].existed
        elif then == "trim":
            self.trim_log_to(flow_id, "log", 100)
        else:
            self.create_one({"flow_id": flow_id, "state": {"n": 1, "note": ""}})

    def end_a_flow(self, flow_id: str, how: str) -> None:
        """Let a flow go in one of the ways in which flows go."""
        copy = self.held(self.api.get(flow_id))
        if how == "delete":
            assert self.api.delete(flow_id)
            self.world.commit([oracle.DeleteFlow(flow_id)])
        elif how == "replace":
            with self.api.begin() as session:
                read = session.get(flow_id)
                session.delete(read)
                new = self.new_snapshot({"flow_id": flow_id, "state": {"n": 5, "note": ""}})
                session.add(new)

            write = oracle.WriteFlow(flow_id, base.draft_of(new), instead=copy.base)
            self.world.commit([write])
            self.held(new)
        else:
            self.change_flow(copy.obj, ("status", FlowStatus.COMPLETED))
            self.write_back(copy)
            expires = self.world.flows[flow_id].expires
            if expires is not None:
                self.pass_time(expires - self.clock.now)

    # parts without a flow -------------------------------------------------------------------------

    @rule(
        place=places,
        early=st.sampled_from([timedelta(0), timedelta(milliseconds=1)]),
        by=st.sampled_from([None, "append", "again", "put", "keep"]),
    )
    def let_orphans_expire(self, place: int, early: timedelta, by: str | None) -> None:
        """Parts without a flow come to their end, or almost; a write before that moves it."""
        self.world.forget_expired()
        absent = [one for one in FLOW_IDS if one not in self.world.flows]
        if not absent:
            return

        orphans = sorted(self.world.parts.orphans)
        if not orphans:
            self.append_one(absent[place % len(absent)], "log", b"", "k")
            orphans = sorted(self.world.parts.orphans)

        if orphans:  # else they are kept forever
            flow_id = orphans[place % len(orphans)]
            self.pass_time((self.world.parts.orphans[flow_id] - self.now) / 2)
            if by in ("append", "again"):
                self.append_one(flow_id, "log", b"", None if by == "append" else "k")
            elif by is not None:
                copy = base.Copy(new_part(flow_id, b""), (flow_id, "a"))
                self.put_one(copy, "keep" if by == "keep" else "overwrite")

            expires = self.world.parts.orphans[flow_id]
            self.pass_time(expires - early - self.clock.now)

    # the look at everything -----------------------------------------------------------------------

    def parts_agree(self) -> None:
        """All parts and logs are what the model says."""
        super().parts_agree()
        for flow_id, log in self.world.parts.counters:
            found = self.api.read_log(flow_id, log, limit=1000)
            self.same_entries(f"{log!r} of {flow_id!r}", found, self.world.parts.log(flow_id, log))

    def scan_of_parts_agrees(self) -> None:
        """What a copy would read is what the model has, and how far its logs have counted."""
        model = self.world.parts
        wanted = {
            (flow_id, name): row.version
            for flow_id in FLOW_IDS
            for name, row in model.rows.get(flow_id, {}).items()
        }
        now_ms = base.ms_of(self.now)
        page: list[Any] = []
        while more := self.api.run(ask(Scan(PART, page[-1].key if page else None, 1000, now_ms))):
            page += more

        found = {
            (one.key.id, one.key.name): one.record.head.version
            for one in page
            if not is_hidden(one.key)
        }
        base.compare("a scan of parts", {"versions": (found, wanted)})
        hidden = {
            (one.key.id, one.key.name): one.record.head.version
            for one in page
            if is_hidden(one.key)
        }
        former = {
            (flow_id, version)
            for flow_id, rows in self.world.history.rows.items()
            for version in rows
        }
        versions = {(key[0], number) for key, number in hidden.items() if is_version(key[1])}
        base.compare("a scan of former versions", {"versions": (versions, former)})
        counted = {key: number for key, number in hidden.items() if not is_version(key[1])}
        counters = {(flow_id, f"{log}/"): last for (flow_id, log), last in model.counters.items()}
        base.compare("a scan of logs", {"counters": (counted, counters)})


def new_part(flow_id: str, body: bytes) -> Any:
    """A part that is not stored yet."""
    return Part(flow_id, "a", body)
