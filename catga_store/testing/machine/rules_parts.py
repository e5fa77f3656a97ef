"""Rules of the parity machine: parts of flows, one operation at a time; logs are in `rules_logs`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from datetime import timedelta
from typing import Any
from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from catga_store.errors import UsageError
from catga_store.model.parts import Part
from catga_store.testing.machine import base
from catga_store.testing.machine import oracle
from catga_store.testing.machine import parts_model
from catga_store.testing.machine.base import FLOW_IDS
from catga_store.testing.machine.base import TYPES
from catga_store.testing.machine.base import Copy
from catga_store.testing.machine.base import Order
from catga_store.testing.machine.base import Parcel
from catga_store.testing.machine.parts_model import PartDraft
from catga_store.testing.machine.parts_model import PartRow
from catga_store.testing.machine.rules_claims import ClaimRules
from catga_store.testing.machine.rules_flows import places

__all__ = [
    "BODY_TYPES",
    "PART_NAMES",
    "PartRules",
    "bodies",
    "body_types",
    "change_part",
    "draft_of",
    "exists_how",
    "is_same_part",
    "part_changes",
    "part_names",
    "plain_of",
    "reads_part_as",
    "some_names",
    "tags",
    "with_parts",
    "written_part",
]

# In the order of their bytes, and of no other: `a/1` is before `a0`, and U+1F98A after U+FFFF.
PART_NAMES = ("a", "a/1", "a/10", "a0\x00*>", "e\u0301 \n", "\u00e9", "\uffff", "\U0001f98a", "log")
_ENTRIES = ("log/000000000001", "log/000000000002", "a/1/000000000001")
_PREFIXES = ("", "a", "a/", "a/1", "e", "log", "log/", "\uffff", "\U0001f98a", "zz")
_LARGE = b"\x00large" * 20_000

BODY_TYPES: dict[str | None, Any] = {**TYPES, "bytes": bytes}

bodies: st.SearchStrategy[Any] = st.one_of(
    base.states,
    st.sampled_from([b"", b"\x00\xff*1 {", b"\xe2", b"text", b"[]", _LARGE]),
    st.sampled_from([[1, None, "🦊\x00"], "text", None, 7]),
)
body_types = st.sampled_from([None, None, None, "Order", "Parcel", "bytes"])
part_names = st.sampled_from(PART_NAMES)
some_names = st.sampled_from((*PART_NAMES, *_ENTRIES))
bounds = st.one_of(st.none(), st.sampled_from((*PART_NAMES, *_ENTRIES, "a/", "b", "zz")))
tags = st.sampled_from(["", "", "t", "tag \n🦊\x00"])
exists_how: st.SearchStrategy[Literal["refuse", "keep", "overwrite"]] = st.sampled_from(
    ["refuse", "refuse", "keep", "overwrite"]
)
part_changes = st.one_of(
    st.tuples(st.just("n"), st.integers(0, 9)),
    st.tuples(st.just("bytes"), st.sampled_from([b"", b"\x00other"])),
    st.tuples(st.just("tag"), tags),
    st.tuples(st.just("nothing"), st.none()),
)
which = st.integers(0, 5)


def with_parts(function: Any) -> Any:
    """Leave a rule to stores that have parts."""
    return precondition(lambda self: self.has_parts)(function)


def draft_of(copy: Copy) -> PartDraft | None:
    """What the user wants a part to be; `None` if its body was not read."""
    try:
        body: Any = copy.obj.body
    except UsageError:
        return None

    return PartDraft(*plain_of(body, copy.base), copy.obj.tag)


def has_type(body: Any) -> bool:
    """Whether a body is of one of the types of the machine."""
    return isinstance(body, Order | Parcel)


def plain_of(body: Any, row: PartRow | None = None) -> tuple[Any, str]:
    """A body as the model has it, and the name of its type: raw data keeps the type it was read of."""
    if isinstance(body, bytes):
        return body, "bytes"

    if has_type(body):
        return asdict(body), type(body).__name__

    kept = "" if row is None or row.draft.type_name == "bytes" else row.draft.type_name
    return deepcopy(body), kept


def reads_part_as(row: PartRow, type_name: str | None) -> bool:
    """Whether a body can be read as that type: it is of it, or untyped and fits."""
    if type_name is None or row.draft.type_name == type_name:
        return True

    body = row.draft.body
    fits = isinstance(body, dict) and isinstance(body["n"], int)  # pyright: ignore[reportUnknownArgumentType]  of any data
    return not row.draft.type_name and type_name != "bytes" and fits


def change_part(copy: Copy, change: tuple[str, Any]) -> None:
    """Change a part as a user would."""
    part, (what, value) = copy.obj, change
    draft = draft_of(copy)
    if what == "tag":
        part.tag = value
    elif what == "bytes" and part.body_type in (None, bytes):
        part.body = value
    elif what == "n" and part.body_type is not bytes:
        stored = copy.base.draft.type_name if draft is None else draft.type_name
        if draft is not None and isinstance(draft.body, dict) and not has_type(part.body):
            part.body["n"] = value
        elif draft is not None and has_type(part.body):
            part.body.n = value
        else:
            kind = TYPES.get(stored) or part.body_type
            new: dict[str, Any] = {"n": value, "note": ""}
            part.body = new if kind is None else kind(**new)


class PartRules(ClaimRules):
    """Every operation on parts, one at a time."""

    def part_name(self, flow_id: str, place: int) -> str:
        """Mostly the name of a part that is there, once there is one."""
        there = self.world.parts.names(flow_id)
        return there[place % len(there)] if there and place % 4 else PART_NAMES[place % 9]

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

    @with_parts
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

    @with_parts
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

    @with_parts
    @rule(place=places, at=places, name=some_names, there=st.booleans())
    def delete_part(self, place: int, at: int, name: str, there: bool) -> None:
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        name = self.part_name(flow_id, at) if there else name
        gone = self.api.delete_part(flow_id, name)
        done = self.world.commit([parts_model.DeletePart(flow_id, name)])
        assert gone is done[0].existed, f"deleted: {gone}"

    @with_parts
    @rule(place=places, prefix=st.sampled_from(_PREFIXES))
    def delete_parts(self, place: int, prefix: str) -> None:
        self.world.forget_expired()
        flow_id = self.flow_id(place)
        names = self.world.parts.names(flow_id, prefix)
        found = self.api.delete_parts(flow_id, prefix)
        assert found == self.world.delete_parts(flow_id, names), f"deleted {found} of {names}"

    # reading --------------------------------------------------------------------------------------

    @with_parts
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

    @with_parts
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

    @with_parts
    @rule(
        place=places,
        prefix=st.sampled_from(_PREFIXES),
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

    # the end of flows -----------------------------------------------------------------------------

    @with_parts
    @rule(place=places, early=st.sampled_from([timedelta(0), timedelta(milliseconds=1)]))
    def let_orphans_expire(self, place: int, early: timedelta) -> None:
        """Parts without a flow come to their end, or almost; a write before moves it."""
        self.world.forget_expired()
        orphans = sorted(self.world.parts.orphans.items())
        if orphans:
            flow_id, expires = orphans[place % len(orphans)]
            if place % 2:
                self.pass_time((expires - self.now) / 2)
                self.put_one(Copy(Part(flow_id, "a", b""), (flow_id, "a")), "overwrite")
                expires = self.world.parts.orphans[flow_id]

            self.pass_time(expires - early - self.clock.now)

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


def is_same_part(copy: Copy) -> bool:
    """Whether a part that was read is as it was."""
    draft, row = draft_of(copy), copy.base
    if draft is None:
        same: bool = copy.obj.tag == row.draft.tag
        return same

    return copy.is_read and draft == row.draft


def written_part(copy: Copy, exists: str, instead: PartRow | None = None) -> parts_model.PutPart:
    """The write of a part; refused by the contract if its body was not read, or of a log's entry."""
    draft, (flow_id, name) = draft_of(copy), copy.key
    if draft is None or parts_model.entry_of(name) is not None:
        raise oracle.Refusal("UsageError")

    return parts_model.PutPart(flow_id, name, draft, copy.base, exists, instead)
