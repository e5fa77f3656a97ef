"""Rules of the parity machine: parts of flows, one operation at a time; logs are in `rules_logs`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.model.parts import Part
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine import parts_model
from catga_store.testing.machine.base import FLOW_IDS
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.part_draws import BODY_TYPES
from catga_store.testing.machine.part_draws import PART_NAMES
from catga_store.testing.machine.part_draws import PREFIXES
from catga_store.testing.machine.part_draws import bodies
from catga_store.testing.machine.part_draws import body_types
from catga_store.testing.machine.part_draws import bounds
from catga_store.testing.machine.part_draws import change_part
from catga_store.testing.machine.part_draws import exists_how
from catga_store.testing.machine.part_draws import is_same_part
from catga_store.testing.machine.part_draws import part_changes
from catga_store.testing.machine.part_draws import part_names
from catga_store.testing.machine.part_draws import plain_of
from catga_store.testing.machine.part_draws import reads_part_as
from catga_store.testing.machine.part_draws import some_names
from catga_store.testing.machine.part_draws import tags
from catga_store.testing.machine.part_draws import written_part
from catga_store.testing.machine.parts_model import PartRow
from catga_store.testing.machine.rules_flows import places
from catga_store.testing.machine.rules_numbers import NumberRules

__all__ = ["PartRules"]

which = st.integers(0, 5)


class PartRules(NumberRules):
    """Every operation on parts, one at a time."""

    def part_name(self, flow_id: str, place: int) -> str:
        """Mostly the name of a part that is there, once there is one."""
        there = self.world.parts.names(flow_id)
        return (
            there[place % len(there)]
            if there and place % 4
            else PART_NAMES[place % len(PART_NAMES)]
        )

    def same_part(self, part: Part[Any], want: PartRow, *, body: bool = True) -> None:
        """A part, just read or written, is what the model says."""
        draft = want.draft
        fields = {
            "tag": (part.tag, draft.tag),
            "version": (part.version, want.version),
            "created_at": (part.created_at, want.created),
            "updated_at": (part.updated_at, want.updated),
        }
        if body:
            plain, type_name = plain_of(part.body, want)
            fields["body"] = plain, draft.body
            fields["type of the body"] = type_name, draft.type_name or type_name

        if part.body_type is None:
            fields["type_name"] = part.type_name, draft.type_name or part.type_name

        base.compare(f"part {part.name!r} of {part.flow_id!r}", fields)
        self._same_revision(("part", (part.flow_id, part.name)), part.revision, want.stamp)

    def keep_part(self, part: Part[Any], *, is_read: bool = True) -> Copy:
        """Hold a part that was just read."""
        row = self.world.parts.get(part.flow_id, part.name)
        assert row is not None
        self.same_part(part, row, body=is_read)
        copy = Copy(part, (part.flow_id, part.name), row, is_read=is_read)
        return self.keep(self.parts, copy)

    # writing --------------------------------------------------------------------------------------

    @rule(place=places, name=part_names, body=bodies, tag=tags, exists=exists_how)
    def put_new_part(
        self,
        place: int,
        name: str,
        body: Any,
        tag: str,
        exists: Literal["refuse", "keep", "overwrite"],
    ) -> None:
        flow_id = self.flow_id(place)
        part = Part(flow_id, name, deepcopy(body), tag=tag)
        copy = self.keep(self.parts, Copy(part, (flow_id, name)))
        self.put_one(copy, exists)

    @precondition(lambda self: self.parts)
    @rule(which=which, change=part_changes, exists=exists_how)
    def put_held_part(self, which: int, change: tuple[str, Any], exists: str) -> None:
        copy = self.pick(self.parts, which)
        change_part(copy, change)
        self.put_one(copy, exists)

    @rule(place=places, at=places, change=part_changes)
    def edit_part(self, place: int, at: int, change: tuple[str, Any]) -> None:
        """Read, change and write in one go, so that most writes are not stale."""
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        part = self.api.get_part(flow_id, self.part_name(flow_id, at))
        if part is not None:
            copy = self.keep_part(part)
            change_part(copy, change)
            self.put_one(copy, "refuse")

    def put_one(self, copy: Copy, exists: str) -> None:
        """Write a part, stale or not, or find that nothing is to be written."""
        part, before = copy.obj, (copy.obj.version, copy.obj.revision)
        done = self.agree(
            lambda: self.api.put_part(part, exists=exists), lambda: self.put_in_model(copy, exists)
        )
        if done is None:
            assert (part.version, part.revision) == before, "a refused write has changed the part"
            return

        wrote, want = done
        assert wrote is want, f"put_part returned {wrote}, expected {want}"
        if wrote:
            copy.base, copy.is_read = self.world.parts.get(*copy.key), True
            self.same_part(part, copy.base)
        else:
            assert (part.version, part.revision) == before, "nothing was written"

    def put_in_model(self, copy: Copy, exists: str) -> bool:
        """What the model says of `put_part`."""
        if exists == "keep" and copy.base is not None:
            raise oracle.Refusal("UsageError")

        if exists != "overwrite" and copy.base is not None and is_same_part(copy):
            return False

        return self.world.commit([written_part(copy, exists)])[0].accepted

    @rule(place=places, at=places, name=some_names, there=st.booleans())
    def delete_part(self, place: int, at: int, name: str, there: bool) -> None:
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        name = self.part_name(flow_id, at) if there else name
        gone = self.api.delete_part(flow_id, name)
        done = self.world.commit([parts_model.DeletePart(flow_id, name)])
        assert gone is done[0].existed, f"deleted: {gone}"

    @rule(place=places, prefix=st.sampled_from(PREFIXES))
    def delete_parts(self, place: int, prefix: str) -> None:
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        names = self.world.parts.names(flow_id, prefix)
        found = self.api.delete_parts(flow_id, prefix)
        assert found == self.world.delete_parts(flow_id, names), f"deleted {found} of {names}"

    # reading --------------------------------------------------------------------------------------

    @rule(place=places, at=places, body_type=body_types)
    def get_part(self, place: int, at: int, body_type: str | None) -> None:
        flow_id = self.flow_id(place)
        name = self.part_name(flow_id, at)
        self.read_parts(
            lambda: {name: self.api.get_part(flow_id, name, BODY_TYPES[body_type])},
            flow_id,
            [name],
            body_type,
        )

    @rule(place=places, names=st.lists(some_names, max_size=4), body_type=body_types)
    def get_parts(self, place: int, names: list[str], body_type: str | None) -> None:
        flow_id = self.flow_id(place)
        self.read_parts(
            lambda: self.api.get_parts(flow_id, names, BODY_TYPES[body_type]),
            flow_id,
            names,
            body_type,
        )

    def read_parts(self, call: Any, flow_id: str, names: list[str], body_type: str | None) -> None:
        """Read parts, and compare and hold each."""

        def modelled() -> dict[str, PartRow | None]:
            self.world.forget_expired()
            found = {name: self.world.parts.get(flow_id, name) for name in names}
            if not all(row is None or reads_part_as(row, body_type) for row in found.values()):
                raise oracle.Refusal("StateTypeError")

            return found

        done = self.agree(call, modelled)
        if done is not None:
            got, want = done
            assert list(got) == list(want)
            for name, row in want.items():
                assert (got[name] is None) is (row is None), f"{name!r}: {got[name]}, not {row}"
                if row is not None:
                    self.keep_part(got[name])

    @rule(
        place=places,
        prefix=st.sampled_from(PREFIXES),
        after=bounds,
        before=bounds,
        reverse=st.booleans(),
        limit=st.sampled_from([1, 2, 3, 1000]),
        bodies=st.booleans(),
        body_type=body_types,
    )
    def list_parts(
        self,
        place: int,
        prefix: str,
        after: str | None,
        before: str | None,
        reverse: bool,
        limit: int,
        bodies: bool,
        body_type: str | None,
    ) -> None:
        """Page by page; the last part of the last page is held, perhaps without its body."""
        self.world.forget_expired()
        flow_id, model = self.flow_id(place), self.world.parts
        wanted = model.names(flow_id, prefix, after=after, before=before, reverse=reverse)
        rows = [model.get(flow_id, name) for name in wanted]
        if bodies and not all(row is None or reads_part_as(row, body_type) for row in rows):
            body_type = None

        found: list[Part[Any]] = []
        while True:
            page = self.api.list_parts(
                flow_id,
                prefix,
                after=after,
                before=before,
                reverse=reverse,
                limit=limit,
                bodies=bodies,
                body_type=BODY_TYPES[body_type],
            )
            found += page
            assert len(page) <= limit, "the page is longer than the limit"
            assert page.cursor is None or (page and page.cursor == found[-1].name)
            if page.cursor is None:
                break

            after, before = (after, page.cursor) if reverse else (page.cursor, before)

        assert [part.name for part in found] == wanted
        for part, row in zip(found, rows, strict=True):
            assert row is not None
            self.same_part(part, row, body=bodies)

        if found and (bodies or body_type is None):
            self.keep_part(found[-1], is_read=bodies)

    def parts_agree(self) -> None:
        """All parts are what the model says."""
        for flow_id in FLOW_IDS:
            page = self.api.list_parts(flow_id, limit=1000, bodies=True)
            found = [part.name for part in page]
            wanted = self.world.parts.names(flow_id)
            base.compare(f"parts of {flow_id!r}", {"names": (found, wanted)})
            for part in page:
                row = self.world.parts.get(flow_id, part.name)
                assert row is not None
                self.same_part(part, row)
